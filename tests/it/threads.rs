//! On whose threads work is done: the engine's own, and as many as were asked for.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use flagstone::core::diff::Subject;
use flagstone::core::felt::Felt;
use flagstone::core::hash::{Bulk, Hasher};
use flagstone::core::store::{Capabilities, Row, StoreError, StoreRead, Visit, WriteBatch};
use flagstone::engine::THREADS_MAX;
use flagstone::store::{MemoryStore, Store};
use flagstone::{Cadence, Engine, ErrorKind, StateDiff, StateUpdate, database, snapshot};

use crate::support::{config, settle};

/// Names of threads that were seen.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<BTreeSet<String>>>);

impl Seen {
    fn here(&self) {
        let name = std::thread::current().name().unwrap_or("a thread without a name").to_owned();
        self.0.lock().unwrap().insert(name);
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap()).into_iter().collect()
    }
}

/// A store in memory that notes who reads many rows at once.
struct Watched {
    store: Arc<MemoryStore>,
    readers: Seen,
}

impl StoreRead for Watched {
    fn get(&self, key: &[u8]) -> Result<Row, StoreError> {
        self.store.get(key)
    }
    fn get_many(&self, keys: &[&[u8]]) -> Result<Vec<Row>, StoreError> {
        self.readers.here();
        self.store.get_many(keys)
    }
    fn scan(&self, prefix: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        self.store.scan(prefix, visit)
    }
}

impl Store for Watched {
    fn name(&self) -> &'static str {
        self.store.name()
    }
    fn write(&self, batch: &WriteBatch) -> Result<(), StoreError> {
        self.store.write(batch)
    }
    fn sync(&self) -> Result<(), StoreError> {
        self.store.sync()
    }
    fn capabilities(&self) -> Capabilities {
        self.store.capabilities()
    }
}

/// A hasher that notes where it hashes.
struct Noting(Seen);

impl Hasher for Noting {
    fn name(&self) -> &'static str {
        "noting"
    }
    fn pedersen_many(&self, pairs: &[[Felt; 2]], out: &mut [Felt]) {
        self.0.here();
        Bulk.pedersen_many(pairs, out);
    }
    fn poseidon_many(&self, pairs: &[[Felt; 2]], out: &mut [Felt]) {
        self.0.here();
        Bulk.poseidon_many(pairs, out);
    }
}

const SLOTS: u64 = 600;

fn wide_block() -> StateUpdate {
    let diff =
        (0..SLOTS).fold(StateDiff::builder(), |diff, key| diff.storage(1.into(), key.into(), 7.into()));
    StateUpdate { starknet_version: "0.14.0".parse().ok(), ..StateUpdate::from(diff.build().unwrap()) }
}

#[test]
fn what_a_layout_reads_ahead_is_read_on_the_lanes_one_thread() {
    let store = Arc::new(MemoryStore::new());
    let flat = || flagstone::layout("flat").unwrap().make();
    let config = config(Cadence::EVERY_BLOCK, 1);
    let engine = Engine::open(Box::new(Arc::clone(&store)), flat(), config).unwrap();
    engine.close_block(&wide_block()).unwrap();
    settle(&engine);
    drop(engine);

    let readers = Seen::default();
    let watched = Watched { store, readers: readers.clone() };
    let engine = Engine::open(Box::new(watched), flat(), config).unwrap();
    readers.take();
    engine.prefetch((0..SLOTS).map(|key| Subject::Storage(1.into(), key.into())));
    let (begun, mut seen) = (Instant::now(), Vec::new());
    while seen.is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(20), "the layout was told of no hint");
        std::thread::sleep(Duration::from_millis(10));
        seen = readers.take();
    }
    assert_eq!(seen, ["flagstone-read-ahead-0"]);
}

/// As it is refused wherever it is set: before a thread is started, and before anything is made.
#[test]
fn more_threads_than_any_machine_has_are_refused_by_name() {
    let config = config(Cadence::EVERY_BLOCK, THREADS_MAX + 1);
    let flat = || flagstone::layout("flat").unwrap().make();
    let (dir, store) = (tempfile::tempdir().unwrap(), Arc::new(MemoryStore::new()));
    let db = dir.path().join("db");
    for error in [
        config.check().unwrap_err(),
        Engine::open(Box::new(Arc::clone(&store)), flat(), config).unwrap_err(),
        Engine::import(Box::new(Arc::clone(&store)), &*flat(), &config, &b""[..], &mut |_| ()).unwrap_err(),
        database::open_or_create(&db, None, None, config).unwrap_err(),
        database::import(&db, None, None, &b""[..], &config, &mut |_| ()).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Misconfigured);
        let expected =
            "1025 threads for commitment are asked for, at most 1024 can be; 0 takes one for each core";
        assert_eq!(error.to_string(), expected);
    }
    assert!(store.is_empty() && !db.exists());
    config.with_threads(THREADS_MAX).check().unwrap();
}

#[test]
fn an_export_hashes_on_threads_that_commit_nothing() {
    let seen = Seen::default();
    let (store, layout) = (Box::new(MemoryStore::new()), flagstone::layout("flat").unwrap().make());
    let config = config(Cadence::EVERY_BLOCK, 1);
    let engine = Engine::open_with_hasher(store, layout, config, Box::new(Noting(seen.clone()))).unwrap();
    engine.close_block(&wide_block()).unwrap();
    settle(&engine);
    seen.take();
    snapshot::export(&engine, None, std::io::sink(), &mut |_| ()).unwrap();
    assert_eq!(seen.take(), ["flagstone-history-0"]);
}
