//! What several test modules share.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use flagstone::core::felt::Felt;
use flagstone::core::hash::{Bulk, Hasher};
use flagstone::core::layout::Layout;
use flagstone::core::trie::{TrieId, lookup};
use flagstone::core::types::{BlockNumber, ContractAddress, StateCommitment, StorageKey};
use flagstone::database::{STORES, StoreEntry, StoreSettings};
use flagstone::engine::BlockHandle;
use flagstone::input::UpdateReader;
use flagstone::registry::LAYOUTS;
use flagstone::store::{Capabilities, MemoryStore, Row, Store, StoreError, StoreRead, Visit, WriteBatch};
use flagstone::{Cadence, Engine, EngineConfig, StateUpdate};

/// A file of `tests/data`.
pub fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// All state updates of a file of `tests/data`.
pub fn updates(name: &str) -> Vec<StateUpdate> {
    UpdateReader::open(&data(name)).unwrap().map(|update| update.unwrap().update).collect()
}

/// All layouts of the registry.
pub fn layouts() -> impl Iterator<Item = (&'static str, Box<dyn Layout>)> {
    LAYOUTS.iter().map(|entry| (entry.name, entry.make()))
}

/// Every N blocks.
pub fn every(blocks: u32) -> Cadence {
    Cadence::Blocks(blocks.try_into().unwrap())
}

pub const CADENCES: [Cadence; 4] = [
    Cadence::AtClose,
    Cadence::EVERY_BLOCK,
    Cadence::Blocks(std::num::NonZeroU32::new(7).unwrap()),
    Cadence::OnRequest,
];

pub fn config(cadence: Cadence, threads: usize) -> EngineConfig {
    EngineConfig::default().with_cadence(cadence).with_threads(threads)
}

/// A place to keep a database over several openings.
pub enum Place {
    Memory(Arc<MemoryStore>),
    Directory(&'static StoreEntry, tempfile::TempDir),
}

impl Place {
    /// In memory, and in a directory for each store of the registry; empty.
    pub fn all() -> Vec<Self> {
        let in_directories = STORES.iter().map(|store| Self::Directory(store, tempfile::tempdir().unwrap()));
        [Self::memory()].into_iter().chain(in_directories).collect()
    }

    /// In a directory, in the default store.
    pub fn directory() -> Self {
        Self::Directory(&STORES[0], tempfile::tempdir().unwrap())
    }

    pub fn memory() -> Self {
        Self::Memory(Arc::new(MemoryStore::new()))
    }

    pub fn name(&self) -> &'static str {
        match self {
            Self::Memory(_) => "memory",
            Self::Directory(store, _) => store.name,
        }
    }

    pub fn store(&self) -> Box<dyn Store> {
        match self {
            Self::Memory(store) => Box::new(Arc::clone(store)),
            Self::Directory(store, dir) => store.open(dir.path(), &StoreSettings::default()).unwrap(),
        }
    }

    pub fn open(&self, layout: &str, config: EngineConfig) -> Engine {
        Engine::open(self.store(), flagstone::layout(layout).unwrap().make(), config).unwrap()
    }
}

/// Each block committed before it counts as closed.
pub fn at_close() -> EngineConfig {
    EngineConfig::default().with_cadence(Cadence::AtClose)
}

/// Waits until everything that is closed is committed and in the store.
pub fn settle(engine: &Engine) {
    engine.commit().unwrap();
    engine.sync().unwrap();
}

/// Nonces and slots are the same in the values and in the tries. Returns the block that was looked at.
pub fn check_tries(
    engine: &Engine,
    slots: &[(ContractAddress, Vec<StorageKey>)],
    what: &str,
) -> Option<BlockNumber> {
    let view = engine.view();
    let compared = engine.at_commitment(None, |tries, block, _| {
        for (address, keys) in slots {
            let leaf = tries.contract_leaf(address)?;
            assert_eq!(leaf.nonce, view.nonce_at(address)?, "{what}: nonce of {address}");
            for key in keys {
                let trie = TrieId::Storage(*address);
                let in_trie = lookup(tries, trie, leaf.storage_root.0, key.trie_key())?;
                assert_eq!(in_trie, view.storage_at(address, key)?.0, "{what}: {address} {key}");
            }
        }
        Ok(block)
    });
    compared.unwrap_or_else(|error| panic!("{what}: {error}"))
}

/// Closes all updates and commits; returns the commitments in order.
pub fn replay(engine: &Engine, updates: &[StateUpdate]) -> Vec<StateCommitment> {
    let blocks: Vec<BlockHandle> = updates.iter().map(|update| engine.close_block(update).unwrap()).collect();
    engine.commit().unwrap();
    blocks.iter().filter_map(|block| block.committed().wait().unwrap()).map(|root| root.commitment).collect()
}

/// Closes a block and waits for its root.
pub fn root_of(engine: &Engine, update: &StateUpdate) -> StateCommitment {
    engine.close_block(update).unwrap().committed().wait().unwrap().unwrap().commitment
}

/// Counts the hashes.
#[derive(Default)]
pub struct Counting(pub Arc<AtomicUsize>);

impl Hasher for Counting {
    fn name(&self) -> &'static str {
        "counting"
    }
    fn pedersen_many(&self, pairs: &[[Felt; 2]], out: &mut [Felt]) {
        self.0.fetch_add(pairs.len(), Ordering::SeqCst);
        Bulk.pedersen_many(pairs, out);
    }
    fn poseidon_many(&self, pairs: &[[Felt; 2]], out: &mut [Felt]) {
        self.0.fetch_add(pairs.len(), Ordering::SeqCst);
        Bulk.poseidon_many(pairs, out);
    }
}

/// A store that does something before each write.
pub struct BeforeWrites<S, F> {
    pub inner: S,
    pub before: F,
}

impl<S: Store, F: Fn() + Send + Sync> StoreRead for BeforeWrites<S, F> {
    fn get(&self, key: &[u8]) -> Result<Row, StoreError> {
        self.inner.get(key)
    }
    fn scan(&self, prefix: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        self.inner.scan(prefix, visit)
    }
}

impl<S: Store, F: Fn() + Send + Sync> Store for BeforeWrites<S, F> {
    fn name(&self) -> &'static str {
        self.inner.name()
    }
    fn write(&self, batch: &WriteBatch) -> Result<(), StoreError> {
        (self.before)();
        self.inner.write(batch)
    }
    fn sync(&self) -> Result<(), StoreError> {
        self.inner.sync()
    }
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
}

/// A gate that writes pass when it is open.
#[derive(Default)]
pub struct Gate {
    shut: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    pub fn set(&self, shut: bool) {
        *self.shut.lock().unwrap() = shut;
        self.changed.notify_all();
    }

    pub fn pass(&self) {
        drop(self.changed.wait_while(self.shut.lock().unwrap(), |shut| *shut).unwrap());
    }
}

/// A copy of a directory as it is, as a kill would leave it.
pub fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_dir(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

/// All files below a directory.
pub fn files_of(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => files.extend(files_of(&entry.path())),
            false => files.push(entry.path()),
        }
    }
    files
}
