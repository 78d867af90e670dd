//! The engine's part, in the plainest way.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use flagstone_core::commitment::Roots;
use flagstone_core::diff::StateDiff;
use flagstone_core::error::StateError;
use flagstone_core::felt::Felt;
use flagstone_core::hash::StarknetCrypto;
use flagstone_core::layout::{Layout, StagedCommitment, StateAt};
use flagstone_core::store::{MemoryStore, Store, StoreRead, WriteBatch};
use flagstone_core::types::{ClassHash, ContractAddress, StorageKey};

use crate::reference::ReferenceState;

/// Plays the engine: applies batches to a store and remembers the roots.
#[derive(Debug)]
pub struct Driver<'a, L: ?Sized> {
    layout: &'a L,
    pub(crate) store: MemoryStore,
    pub(crate) roots: Roots,
    pending: Vec<StateDiff>,
}

/// Everything that a set of diffs names, to be read back.
#[derive(Debug, Default)]
pub struct Touched {
    pub(crate) slots: BTreeSet<(ContractAddress, StorageKey)>,
    pub(crate) contracts: BTreeSet<ContractAddress>,
    pub(crate) classes: BTreeSet<[u8; 32]>,
}

impl Touched {
    /// What `diffs` name, and next to it some keys that they do not.
    pub fn by<'d>(diffs: impl IntoIterator<Item = &'d StateDiff>) -> Self {
        let mut touched = Self::default();
        for diff in diffs {
            for contract in diff.contracts() {
                touched.contracts.insert(contract.address);
                touched.slots.extend(contract.storage.iter().map(|(key, _)| (contract.address, *key)));
                touched.slots.insert((contract.address, 4.into()));
            }
            touched.classes.extend(diff.classes().iter().map(|class| class.class_hash.to_be()));
        }
        touched.contracts.insert(0x7777.into());
        touched.slots.insert((0x7777.into(), 1.into()));
        touched
    }
}

impl<'a, L: Layout + ?Sized> Driver<'a, L> {
    /// An empty database.
    pub fn new(layout: &'a L) -> Self {
        Self { layout, store: MemoryStore::new(), roots: Roots::default(), pending: Vec::new() }
    }

    pub(crate) fn state(&self) -> StateAt<'_> {
        StateAt { store: &self.store, roots: self.roots }
    }

    pub(crate) fn write(&self, batch: WriteBatch) {
        // A store in memory does not fail.
        let written = self.store.write(&batch);
        assert_eq!(written, Ok(()));
    }

    /// Closes a block: its values become readable, if the layout's do so then.
    pub fn close(&mut self, diff: &StateDiff) {
        self.write(self.layout.stage_values(diff));
        self.pending.push(diff.clone());
    }

    /// Commits all closed blocks and returns the roots of each.
    ///
    /// # Errors
    /// Whatever the layout says.
    pub fn commit(&mut self) -> Result<Vec<Roots>, StateError> {
        self.commit_staged().map(|staged| staged.roots)
    }

    /// Like [`Driver::commit`], with all that the layout staged but the rows, which are written.
    ///
    /// # Errors
    /// Whatever the layout says.
    pub fn commit_staged(&mut self) -> Result<StagedCommitment, StateError> {
        let pending: Vec<_> = self.pending.iter().collect();
        let mut staged = self.layout.stage_commitment(self.state(), &pending, &StarknetCrypto)?;
        assert_eq!(staged.roots.len(), pending.len(), "each block has its own roots");
        self.write(std::mem::take(&mut staged.batch));
        staged.applied.take().into_iter().for_each(|applied| applied());
        self.roots = staged.roots.last().copied().unwrap_or(self.roots);
        self.pending.clear();
        Ok(staged)
    }

    /// Reads everything touched and compares it with the reference.
    ///
    /// # Errors
    /// The first read that fails.
    ///
    /// # Panics
    /// If a read differs from the reference.
    pub fn check_reads(&self, touched: &Touched, expected: &ReferenceState) -> Result<(), StateError> {
        check_reads(self.layout, self.state(), touched, expected)
    }

    pub(crate) fn rows(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        rows(&self.store)
    }

    pub(crate) const fn layout(&self) -> &'a L {
        self.layout
    }

    /// The rows that hold values of the sample blocks.
    pub(crate) fn touched_rows(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let of_blocks = sample_blocks().iter().fold(StateDiff::default(), |all, diff| all.then(diff));
        let staged = self.layout.stage_values(&of_blocks);
        self.rows().into_iter().filter(|(key, _)| staged.get(key).is_some()).collect()
    }
}

fn rows(store: &MemoryStore) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut rows = Vec::new();
    let scanned = store.scan(&[], &mut |key, row| {
        rows.push((key.to_vec(), row.to_vec()));
        ControlFlow::Continue(())
    });
    assert_eq!(scanned, Ok(()));
    rows
}

pub(crate) fn check_reads<L: Layout + ?Sized>(
    layout: &L,
    state: StateAt<'_>,
    touched: &Touched,
    expected: &ReferenceState,
) -> Result<(), StateError> {
    for (address, key) in &touched.slots {
        let value = layout.storage_at(state, address, key)?;
        assert_eq!(value, expected.storage_at(address, key), "storage {key} of contract {address}");
    }
    for address in &touched.contracts {
        assert_eq!(layout.nonce_at(state, address)?, expected.nonce_at(address), "nonce of {address}");
        let class_hash = layout.class_hash_at(state, address)?;
        assert_eq!(class_hash, expected.class_hash_at(address), "class hash of {address}");
    }
    for class_hash in &touched.classes {
        let class_hash = ClassHash(Felt::from_bytes_be(class_hash));
        let compiled = layout.compiled_class_hash_at(state, &class_hash)?;
        assert_eq!(
            compiled,
            expected.compiled_class_hash_at(&class_hash),
            "compiled class hash of {class_hash}"
        );
    }
    Ok(())
}

/// Ten blocks whose rows the damage tests break.
pub(crate) fn sample_blocks() -> Vec<StateDiff> {
    let build = |n: u64| {
        let contract = ContractAddress::from(n % 3);
        StateDiff::builder()
            .class_hash(contract, (n + 1).into())
            .nonce(contract, n.into())
            .storage(contract, (n * 5).into(), (n + 9).into())
            .storage(contract, (n + 1).into(), (n + 3).into())
            .class((n + 20).into(), (n + 40).into())
            .build()
    };
    (0..10).filter_map(|n| build(n).ok()).collect()
}

pub(crate) fn sample_driver<L: Layout>(layout: &L) -> Driver<'_, L> {
    let mut driver = Driver::new(layout);
    for diff in sample_blocks() {
        driver.close(&diff);
        assert!(driver.commit().is_ok());
    }
    driver
}
