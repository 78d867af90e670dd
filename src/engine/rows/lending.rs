//! A store for tests of readers.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, Weak};

use flagstone_core::store::{
    Capabilities, MemoryStore, Row, Store, StoreError, StoreRead, Visit, WriteBatch,
};

type Work = Box<dyn FnOnce() + Send>;

/// A store that may lend snapshots, and in whose reads something may come in between.
#[derive(Default)]
pub struct Lending {
    rows: Arc<MemoryStore>,
    lends: bool,
    /// Done in the middle of the first get.
    during: Mutex<Option<Work>>,
    /// The snapshot that was lent last, if somebody has it.
    last: Arc<Mutex<Weak<MemoryStore>>>,
}

impl Lending {
    pub fn new(rows: &Arc<MemoryStore>, lends: bool) -> Self {
        Self { rows: Arc::clone(rows), lends, ..Self::default() }
    }

    pub fn interrupted_by(self, work: impl FnOnce() + Send + 'static) -> Self {
        Self { during: Mutex::new(Some(Box::new(work))), ..self }
    }

    /// Whether somebody has the snapshot that was lent last.
    pub fn is_held(&self) -> impl Fn() -> bool + use<> {
        let last = Arc::clone(&self.last);
        move || last.lock().unwrap().upgrade().is_some()
    }
}

impl StoreRead for Lending {
    fn get(&self, key: &[u8]) -> Result<Row, StoreError> {
        let work = self.during.lock().unwrap().take();
        work.into_iter().for_each(|work| work());
        self.rows.get(key)
    }
    fn scan(&self, prefix: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        self.rows.scan(prefix, visit)
    }
}

impl Store for Lending {
    fn name(&self) -> &'static str {
        "lending"
    }
    fn write(&self, batch: &WriteBatch) -> Result<(), StoreError> {
        self.rows.write(batch)
    }
    fn sync(&self) -> Result<(), StoreError> {
        self.rows.sync()
    }
    fn capabilities(&self) -> Capabilities {
        self.rows.capabilities()
    }
    fn snapshot(&self) -> Option<Arc<dyn StoreRead>> {
        if !self.lends {
            return None;
        }
        let (copy, mut rows) = (Arc::new(MemoryStore::new()), WriteBatch::default());
        let visit = &mut |key: &[u8], row: &[u8]| {
            rows.put(key, row);
            ControlFlow::Continue(())
        };
        self.rows.scan(&[], visit).unwrap();
        copy.write(&rows).unwrap();
        *self.last.lock().unwrap() = Arc::downgrade(&copy);
        Some(copy)
    }
}
