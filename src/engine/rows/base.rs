//! The rows that reads begin with: the store, and over it the batches that were committed and are not written yet.
//!
//! A committed batch is readable at once and reaches the store later, so committing does not wait for the store. Batches
//! carry generations. While the batches up to some generation are being applied to the store, a read that looks through
//! the newest of them sees one state, the one after them, before, during and after that: what they change is answered
//! from memory, and the rest stays as it is. A read that began without them may see a mixture; it looks at
//! [`Rows::applying`] when it is done, and begins again.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use flagstone_core::layout::StateAt;
use flagstone_core::store::{
    Capabilities, Row, Store, StoreError, StoreErrorKind, StoreRead, Visit, WriteBatch,
};
use flagstone_core::types::{BlockNumber, StateId};

use super::readers::{Bounds, Readers, Snapshot, Ticket};
use crate::engine::meta::{BlockRoot, StoredHead};

/// A committed state: its rows are the store's with the layers over them.
#[derive(Clone, Default)]
pub struct Base {
    /// Of the newest layer, or of the last one that was written.
    pub generation: u64,
    /// The stamp of the state.
    pub stamp: u64,
    /// The last committed block.
    pub block: Option<BlockNumber>,
    /// Its roots.
    pub root: BlockRoot,
    /// The id of the state after it.
    pub state: StateId,
    /// Not written yet, newest first.
    pub layers: Vec<Layer>,
}

/// A committed batch.
#[derive(Clone)]
pub struct Layer {
    pub generation: u64,
    pub batch: Arc<WriteBatch>,
    /// About how many bytes it takes.
    pub bytes: usize,
}

impl AsRef<WriteBatch> for Layer {
    fn as_ref(&self) -> &WriteBatch {
        &self.batch
    }
}

/// A store with batches over it that it may not have yet.
pub struct Layered<'a, S, L = Layer> {
    /// Newest first.
    pub layers: &'a [L],
    pub store: S,
}

impl<S, L: AsRef<WriteBatch>> Layered<'_, S, L> {
    /// What the layers say of a row, if they say anything.
    fn in_layers(&self, key: &[u8]) -> Option<Row> {
        let mut said = self.layers.iter().filter_map(|layer| layer.as_ref().get(key));
        said.next().map(|row| row.map(<[u8]>::to_vec))
    }
}

impl<S: StoreRead, L: AsRef<WriteBatch> + Sync> StoreRead for Layered<'_, S, L> {
    fn get(&self, key: &[u8]) -> Result<Row, StoreError> {
        self.in_layers(key).map_or_else(|| self.store.get(key), Ok)
    }

    fn get_many(&self, keys: &[&[u8]]) -> Result<Vec<Row>, StoreError> {
        if self.layers.is_empty() {
            return self.store.get_many(keys);
        }
        let mut rows: Vec<Option<Row>> = keys.iter().map(|key| self.in_layers(key)).collect();
        let of_store: Vec<&[u8]> =
            keys.iter().zip(&rows).filter(|(_, row)| row.is_none()).map(|(key, _)| *key).collect();
        let mut read = self.store.get_many(&of_store)?.into_iter();
        rows.iter_mut().filter(|row| row.is_none()).for_each(|row| *row = read.next());
        Ok(rows.into_iter().map(Option::unwrap_or_default).collect())
    }

    fn scan(&self, prefix: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        self.scan_from(prefix, prefix, visit)
    }

    fn scan_from(&self, prefix: &[u8], from: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        let mut over: BTreeMap<&[u8], Option<&[u8]>> = BTreeMap::new();
        for layer in self.layers.iter().rev() {
            let layer = layer.as_ref();
            over.extend(layer.range(from.max(prefix)).take_while(|(key, _)| key.starts_with(prefix)));
        }
        let mut over = over.into_iter().peekable();
        let mut stopped = false;
        self.store.scan_from(prefix, from, &mut |key, row| {
            while let Some((over_key, over_row)) = over.next_if(|(over_key, _)| *over_key < key) {
                if over_row.is_some_and(|row| visit(over_key, row).is_break()) {
                    stopped = true;
                    return ControlFlow::Break(());
                }
            }
            let visited = match over.next_if(|(over_key, _)| *over_key == key) {
                Some((_, Some(row))) => visit(key, row),
                Some((_, None)) => ControlFlow::Continue(()),
                None => visit(key, row),
            };
            stopped = visited.is_break();
            visited
        })?;
        for (key, row) in over.filter(|_| !stopped) {
            if row.is_some_and(|row| visit(key, row).is_break()) {
                break;
            }
        }
        Ok(())
    }
}

/// In the place of a store that was closed.
pub struct EndedStore {
    name: &'static str,
    capabilities: Capabilities,
}

impl EndedStore {
    /// In the place of this one.
    pub fn of(store: &dyn Store) -> Self {
        Self { name: store.name(), capabilities: store.capabilities() }
    }

    fn refuse<T>() -> Result<T, StoreError> {
        let problem =
            "the engine was closed, and what is asked for is not in memory; open the database again";
        Err(StoreError::new(StoreErrorKind::Closed, problem))
    }
}

impl StoreRead for EndedStore {
    fn get(&self, _: &[u8]) -> Result<Row, StoreError> {
        Self::refuse()
    }
    fn scan(&self, _: &[u8], _: &mut Visit<'_>) -> Result<(), StoreError> {
        Self::refuse()
    }
}

impl Store for EndedStore {
    fn name(&self) -> &'static str {
        self.name
    }
    fn write(&self, _: &WriteBatch) -> Result<(), StoreError> {
        Self::refuse()
    }
    fn sync(&self) -> Result<(), StoreError> {
        Self::refuse()
    }
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }
}

/// A committed state, read for as long as one likes; see [`readers`](super::readers).
pub struct Held {
    base: Arc<Base>,
    ticket: Ticket,
}

impl Held {
    /// What is read.
    pub fn base(&self) -> &Base {
        &self.base
    }

    /// Its rows. They are answered while the store is had, and so while an engine that is closed waits for it.
    pub fn rows(&self, store: Arc<dyn Store>) -> Layered<'_, Snapshot<'_>> {
        Layered { layers: &self.base.layers, store: Snapshot { ticket: &self.ticket, store } }
    }

    /// Whether more was overwritten since than is kept for readers.
    pub fn is_expired(&self) -> bool {
        self.ticket.is_expired()
    }
}

/// The store with what is on its way there.
pub struct Rows {
    current: RwLock<Arc<dyn Store>>,
    base: RwLock<Arc<Base>>,
    /// Generation up to which batches are in the store, or are being applied to it.
    applying: AtomicU64,
    readers: Arc<Readers>,
    /// The first write or sync that failed. After that it is not known what the disk has, so nothing is tried again.
    failed: OnceLock<StoreError>,
}

impl Rows {
    /// A store whose rows are at the given state.
    pub fn new(store: Box<dyn Store>, head: &StoredHead, bounds: Bounds) -> Self {
        let StoredHead { block, root, state, .. } = *head;
        let base = Base { block, root, state, ..Base::default() };
        Self {
            current: RwLock::new(store.into()),
            base: RwLock::new(Arc::new(base)),
            applying: AtomicU64::new(0),
            readers: Arc::new(Readers::new(bounds)),
            failed: OnceLock::new(),
        }
    }

    /// The store, without what is on its way.
    pub fn store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Lets go of the store, once nobody reads it. What asks for rows from now on is refused.
    pub fn close(&self) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let ended = Arc::new(EndedStore::of(current.as_ref()));
        let store = std::mem::replace(&mut *current, ended);
        drop(current);
        while Arc::strong_count(&store) > 1 {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.readers.give_back();
    }

    /// Returns when all that was written is on the disk.
    ///
    /// # Errors
    /// The store's, or that of an earlier write or sync: a second one proves nothing.
    pub fn sync(&self) -> Result<(), StoreError> {
        self.finally(|store| store.sync())
    }

    /// Calls the store, unless a call failed before.
    fn finally(&self, call: impl FnOnce(&dyn Store) -> Result<(), StoreError>) -> Result<(), StoreError> {
        match self.failed.get() {
            Some(failed) => Err(failed.clone()),
            None => call(self.store().as_ref()).inspect_err(|error| drop(self.failed.set(error.clone()))),
        }
    }

    /// The newest committed state.
    pub fn base(&self) -> Arc<Base> {
        Arc::clone(&self.base.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The rows of a base.
    pub fn of<'a>(&self, base: &'a Base) -> Layered<'a, Arc<dyn Store>> {
        Layered { layers: &base.layers, store: self.store() }
    }

    /// Reads from the newest committed state; again, if the store moved on from that meanwhile.
    pub fn read<T, E>(&self, read: impl Fn(StateAt<'_>) -> Result<T, E>) -> Result<T, E> {
        loop {
            let base = self.base();
            let read = read(StateAt { store: &self.of(&base), roots: base.root.roots });
            if self.is_still(&base) {
                return read;
            }
        }
    }

    /// Whether all that was read of a base until now is of its state: nothing after it has begun to be written.
    pub fn is_still(&self, base: &Base) -> bool {
        self.applying.load(Ordering::SeqCst) <= base.generation
    }

    /// The newest committed state, to be read while others come. Nobody waits for it, and it for nobody.
    pub fn hold(&self) -> Held {
        let newest = || {
            let base = self.base();
            (base.generation, base)
        };
        let (ticket, base) = self.readers.begin(newest);
        Held { base, ticket }
    }

    /// Puts a committed batch over the rows: reads from now on are of the state after it.
    /// `after` says which block and roots that is.
    pub fn commit(&self, batch: WriteBatch, after: Base) -> Layer {
        let (bytes, batch) = (batch.bytes(), Arc::new(batch));
        let mut base = self.base.write().unwrap_or_else(PoisonError::into_inner);
        let layer = Layer { generation: base.generation + 1, batch, bytes };
        let layers = std::iter::once(&layer).chain(&base.layers).map(Layer::clone).collect();
        *base = Arc::new(Base { generation: layer.generation, layers, ..after });
        layer
    }

    /// Takes back committed batches, the newest, none of which has begun to be written: those from a generation on. Reads from now
    /// on are of the state before them, which `before` says.
    pub fn take_back(&self, from: u64, before: Base) {
        let mut base = self.base.write().unwrap_or_else(PoisonError::into_inner);
        let layers = base.layers.iter().filter(|layer| layer.generation < from).map(Layer::clone).collect();
        // A new one: who reads one of those that were taken back is told what is overwritten after it.
        *base = Arc::new(Base { generation: base.generation + 1, layers, ..before });
    }

    /// Writes layers to the store, oldest first, as one unit: `write` does it.
    pub fn write(
        &self,
        layers: &[&Layer],
        write: impl FnOnce(&dyn Store, &WriteBatch) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let Some(through) = layers.last().map(|layer| layer.generation) else { return Ok(()) };
        let batch = match layers {
            [layer] => Cow::Borrowed(layer.batch.as_ref()),
            layers => Cow::Owned(as_one(layers)),
        };
        self.readers.keep(through, &batch, self.store().as_ref());
        self.applying.store(through, Ordering::SeqCst);
        self.finally(|store| write(store, &batch))?;
        let mut base = self.base.write().unwrap_or_else(PoisonError::into_inner);
        let mut after = Base::clone(&base);
        after.layers.retain(|layer| layer.generation > through);
        *base = Arc::new(after);
        Ok(())
    }
}

/// What layers, oldest first, say together.
fn as_one(layers: &[&Layer]) -> WriteBatch {
    layers.iter().fold(WriteBatch::default(), |mut batch, layer| {
        batch.append(WriteBatch::clone(&layer.batch));
        batch
    })
}

/// Refuses a store in which a batch could be there in part.
pub fn require_atomic_batches(store: &dyn Store, who: &str) -> Result<(), StoreError> {
    if store.capabilities().atomic_batches {
        return Ok(());
    }
    let problem = format!("store `{}` does not apply batches as one unit, which {who} needs", store.name());
    Err(StoreError::new(StoreErrorKind::Unsupported, problem))
}

#[cfg(test)]
mod tests {
    use flagstone_core::store::MemoryStore;

    use super::*;
    use crate::engine::rows::lending::Lending;

    /// Who reads a batch that is taken back is told what is overwritten after that, as a batch in its place is of another generation.
    #[test]
    fn who_reads_what_is_taken_back_sees_nothing_of_what_comes_in_its_place() {
        let rows = Rows::new(
            Box::new(MemoryStore::new()),
            &StoredHead::default(),
            Bounds { kept_bytes: usize::MAX, lent_bytes: u64::MAX },
        );
        let commit = |keys: &[u8], value: u8| {
            let mut batch = WriteBatch::default();
            keys.iter().for_each(|key| batch.put([*key], [value]));
            rows.commit(batch, Base::default())
        };
        let write = |layer: &Layer| rows.write(&[layer], |to, batch| to.write(batch)).unwrap();
        write(&commit(&[1, 2], 1));
        let second = commit(&[1], 2);
        let held = rows.hold();
        rows.take_back(second.generation, Base::default());
        write(&commit(&[1, 2, 3], 3));
        let read = |held: &Held| [1, 2, 3].map(|key| held.rows(rows.store()).get(&[key]).unwrap());
        assert_eq!(read(&held), [Some(vec![2]), Some(vec![1]), None]);
        assert_eq!(read(&rows.hold()), [Some(vec![3]), Some(vec![3]), Some(vec![3])]);
    }

    /// A lent snapshot holds the store open, and so the directory locked, however long its reader lives.
    #[test]
    fn closing_gives_back_what_was_lent() {
        let store = Lending::new(&Arc::default(), true);
        let is_held = store.is_held();
        let unbounded = Bounds { kept_bytes: usize::MAX, lent_bytes: u64::MAX };
        let rows = Rows::new(Box::new(store), &StoredHead::default(), unbounded);
        let write = |value: u8| {
            let mut batch = WriteBatch::default();
            batch.put([1], [value]);
            rows.write(&[&rows.commit(batch, Base::default())], |to, batch| to.write(batch)).unwrap();
        };
        write(1);
        let held = rows.hold();
        write(2);
        assert!(is_held());
        assert_eq!(held.rows(rows.store()).get(&[1]).unwrap(), Some(vec![1]));
        rows.close();
        assert!(!is_held());
        assert!(held.rows(rows.store()).get(&[1]).is_err());
    }
}
