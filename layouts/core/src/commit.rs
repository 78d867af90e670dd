//! From closed blocks to roots: the part of a commitment that all layouts share.
//!
//! [`commit_blocks`] starts at the height its source's tries are at and takes one diff after another. Each block gets
//! its own roots. Old leaves and nodes come from the source, which absorbs each block before the next, and never from
//! newer values that a layout may already hold: that would commit a block to its successor's state.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;

use crate::commitment::{ContractLeaf, Roots, class_leaf_preimage};
use crate::diff::{ClassDiff, ContractDiff, StateDiff, Subject};
use crate::error::StateError;
use crate::felt::Felt;
use crate::hash::Hasher;
use crate::layout::StagedCommitment;
use crate::trie::{
    HashFunction, Node, NodeRef, NodeSource, Path, ShapedTrie, TrieChanges, TrieId, hash_forest, hash_pairs,
    shape, shape_in_memory,
};
use crate::types::{
    ClassHash, ClassesRoot, CompiledClassHash, ContractAddress, ContractsRoot, StorageKey, StorageRoot,
    StorageValue, TrieKey,
};

/// The tries of one state, as rows say them.
pub trait TrieRows: NodeSource {
    /// What a contract's leaf commits to; all zero if it has none.
    ///
    /// # Errors
    /// [`StateError`] if the store fails or the leaf is damaged.
    fn contract_leaf(&self, address: &ContractAddress) -> Result<ContractLeaf, StateError>;

    /// What a class's leaf commits to; zero if it has none.
    ///
    /// # Errors
    /// [`StateError`] if the store fails or the leaf is damaged.
    fn class_leaf(&self, class_hash: &ClassHash) -> Result<CompiledClassHash, StateError>;
}

impl<R: TrieRows + Send + ?Sized> TrieRows for Box<R> {
    fn contract_leaf(&self, address: &ContractAddress) -> Result<ContractLeaf, StateError> {
        (**self).contract_leaf(address)
    }

    fn class_leaf(&self, class_hash: &ClassHash) -> Result<CompiledClassHash, StateError> {
        (**self).class_leaf(class_hash)
    }
}

/// The tries that a session works on: at first as a store has them, then as the session's blocks leave them.
pub trait CommitmentSource: TrieRows + Send {
    /// Called before tries are shaped, with all leaves that are going to be set in those that could not be shaped from
    /// memory alone. A source can read the nodes on the way to them ahead, in bulk.
    ///
    /// # Errors
    /// [`StateError`] if the store fails or a node is damaged.
    fn prepare(&mut self, _wanted: &[Wanted]) -> Result<(), StateError> {
        Ok(())
    }

    /// Takes over what a block changed: reads from now on are of the state after it. `last` if there will be none.
    ///
    /// # Errors
    /// [`StateError`] if the store fails or a node is damaged.
    fn absorb(&mut self, block: &BlockChanges, last: bool) -> Result<(), StateError>;
}

/// Leaves of one trie that are going to be set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The trie.
    pub trie: TrieId,
    /// Its root before.
    pub root: Felt,
    /// Whole paths of the leaves, ascending.
    pub leaves: Vec<Path>,
}

/// Leaves of one state's tries that somebody names.
#[derive(Debug, Default)]
pub struct NamedLeaves {
    /// Contracts, with paths in their storage tries.
    contracts: BTreeMap<ContractAddress, BTreeSet<Path>>,
    /// Paths in the classes trie.
    classes: BTreeSet<Path>,
}

impl NamedLeaves {
    /// The leaves that these things are in. A class hash that is no key of the classes trie has none.
    pub fn of(subjects: &[Subject]) -> Self {
        let mut leaves = Self::default();
        for subject in subjects {
            match subject {
                Subject::Storage(address, key) => {
                    let slots = leaves.contracts.entry(*address).or_default();
                    slots.insert(Path::of_key(key.trie_key()));
                }
                Subject::ClassHash(address) | Subject::Nonce(address) => leaves.add_contract(*address),
                Subject::CompiledClassHash(class_hash) => {
                    let key = TrieKey::try_from(class_hash.0).ok();
                    leaves.classes.extend(key.map(|key| Path::of_key(&key)));
                }
            }
        }
        leaves
    }

    /// Adds the leaf of a contract.
    pub fn add_contract(&mut self, address: ContractAddress) {
        self.contracts.entry(address).or_default();
    }

    /// The leaves by trie, as far as the tries at `roots` are not empty. `contract_leaf` says what a contract's leaf commits
    /// to, and is asked once for each contract.
    ///
    /// # Errors
    /// Whatever `contract_leaf` says.
    pub fn wanted(
        self,
        roots: Roots,
        mut contract_leaf: impl FnMut(&ContractAddress) -> Result<ContractLeaf, StateError>,
    ) -> Result<Vec<Wanted>, StateError> {
        let contracts = self.contracts.keys().map(|address| Path::of_key(address.trie_key())).collect();
        let classes = self.classes.into_iter().collect();
        let mut wanted = vec![
            Wanted { trie: TrieId::Contracts, root: roots.contracts.0, leaves: contracts },
            Wanted { trie: TrieId::Classes, root: roots.classes.0, leaves: classes },
        ];
        for (address, slots) in self.contracts {
            let root = contract_leaf(&address)?.storage_root.0;
            let leaves = slots.into_iter().collect();
            wanted.push(Wanted { trie: TrieId::Storage(address), root, leaves });
        }
        wanted.retain(|wanted| wanted.root != Felt::ZERO && !wanted.leaves.is_empty());
        Ok(wanted)
    }
}

/// A contract's leaf that a block changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContractLeafChange {
    /// The contract.
    pub address: ContractAddress,
    /// The leaf, a hash; zero if the contract is absent now.
    pub hash: Felt,
    /// What it commits to.
    pub leaf: ContractLeaf,
}

/// A class's leaf that a block changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClassLeafChange {
    /// The class.
    pub class_hash: ClassHash,
    /// The leaf, a hash; zero if the class is absent now.
    pub hash: Felt,
    /// What it commits to.
    pub compiled_class_hash: CompiledClassHash,
}

impl ClassLeafChange {
    /// The key of the leaf.
    fn trie_key(&self) -> Option<TrieKey> {
        TrieKey::try_from(self.class_hash.0).ok()
    }
}

/// How many hashes were computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HashCounts {
    /// Pedersen hashes.
    pub pedersen: u64,
    /// Poseidon hashes of two felts.
    pub poseidon: u64,
}

impl std::ops::AddAssign for HashCounts {
    fn add_assign(&mut self, other: Self) {
        self.pedersen += other.pedersen;
        self.poseidon += other.poseidon;
    }
}

/// What committing one block changes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BlockChanges {
    /// Roots after the block.
    pub roots: Roots,
    /// Nodes of all changed tries.
    pub tries: Vec<TrieChanges>,
    /// Changed leaves of the contracts trie, ascending by address.
    pub contracts: Vec<ContractLeafChange>,
    /// Leaves of the classes trie that the block sets, ascending by class hash.
    pub classes: Vec<ClassLeafChange>,
    /// The diff that takes the block back: every value that the block sets, as it was before.
    pub undo: StateDiff,
    /// Hashes computed for it.
    pub hashes: HashCounts,
}

/// Rows with the nodes and leaves of a session's earlier blocks over them: the source for layouts with a row for each
/// node.
pub struct Overlaid<R> {
    rows: R,
    nodes: HashMap<(TrieId, Path), Option<Node>>,
    leaves: HashMap<ContractAddress, ContractLeaf>,
    classes: HashMap<TrieKey, CompiledClassHash>,
}

impl<R: TrieRows> Overlaid<R> {
    /// Starts with what the rows say.
    pub fn new(rows: R) -> Self {
        Self { rows, nodes: HashMap::new(), leaves: HashMap::new(), classes: HashMap::new() }
    }
}

impl<R: TrieRows + Send> Overlaid<R> {
    /// Commits a diff on top of these tries, which stand at `roots`, in memory: reads from now on are of the state after it.
    /// Returns its roots.
    ///
    /// # Errors
    /// [`StateError`] if old leaves or nodes cannot be read.
    pub fn advance(
        &mut self,
        roots: Roots,
        diff: &StateDiff,
        hasher: &dyn Hasher,
    ) -> Result<Roots, StateError> {
        let block = BlockWork::new(hasher).run(self, roots, diff)?;
        self.absorb(&block, false)?;
        Ok(block.roots)
    }
}

impl<R: TrieRows> NodeSource for Overlaid<R> {
    fn node(&self, at: &NodeRef) -> Result<Option<Node>, StateError> {
        match self.nodes.get(&(at.trie, at.path)) {
            Some(node) => Ok(*node),
            None => self.rows.node(at),
        }
    }
}

impl<R: TrieRows> TrieRows for Overlaid<R> {
    fn contract_leaf(&self, address: &ContractAddress) -> Result<ContractLeaf, StateError> {
        self.leaves.get(address).map_or_else(|| self.rows.contract_leaf(address), |leaf| Ok(*leaf))
    }

    fn class_leaf(&self, class_hash: &ClassHash) -> Result<CompiledClassHash, StateError> {
        let known = TrieKey::try_from(class_hash.0).ok().and_then(|key| self.classes.get(&key));
        known.map_or_else(|| self.rows.class_leaf(class_hash), |compiled| Ok(*compiled))
    }
}

impl<R: TrieRows + Send> CommitmentSource for Overlaid<R> {
    fn absorb(&mut self, block: &BlockChanges, last: bool) -> Result<(), StateError> {
        if last {
            return Ok(());
        }
        for trie in &block.tries {
            self.nodes.extend(trie.removed.iter().map(|path| ((trie.trie, *path), None)));
            self.nodes.extend(trie.written().map(|new| ((trie.trie, new.path), Some(new.node))));
        }
        self.leaves.extend(block.contracts.iter().map(|change| (change.address, change.leaf)));
        let classes = block.classes.iter();
        self.classes.extend(classes.filter_map(|class| Some((class.trie_key()?, class.compiled_class_hash))));
        Ok(())
    }
}

/// Commits blocks one after another on top of a source that stands at `roots`, in memory, and hands each block's changes
/// to `each`: later ones override earlier ones. They are dropped before the next block, so a group of blocks takes the
/// memory of one. The outcome lacks its batch. Work is spread over the current rayon pool; the result does not depend
/// on its size.
///
/// # Errors
/// [`StateError`] if old leaves or nodes cannot be read.
pub fn commit_blocks(
    source: &mut dyn CommitmentSource,
    mut roots: Roots,
    diffs: &[&StateDiff],
    hasher: &dyn Hasher,
    mut each: impl FnMut(&BlockChanges),
) -> Result<StagedCommitment, StateError> {
    let mut staged = StagedCommitment::default();
    for (index, diff) in diffs.iter().enumerate() {
        let block = BlockWork::new(hasher).run(source, roots, diff)?;
        each(&block);
        source.absorb(&block, index + 1 == diffs.len())?;
        roots = block.roots;
        staged.roots.push(roots);
        staged.undo.push(block.undo);
        staged.contracts.push(block.contracts);
        staged.hashes += block.hashes;
    }
    Ok(staged)
}

/// A contract's leaf row and its leaf in the trie are there together or not at all. A lost row would otherwise pass
/// for a contract without storage, and give a wrong root.
fn same_leaves(rows: &[TrieKey], trie: &[(TrieKey, Felt)]) -> Result<(), StateError> {
    let without_row = trie.iter().map(|(key, _)| *key).find(|key| rows.binary_search(key).is_err());
    let in_trie = |key: &TrieKey| trie.binary_search_by_key(key, |(key, _)| *key).is_ok();
    let without_leaf = rows.iter().copied().find(|key| !in_trie(key));
    let what = |key: TrieKey| format!("leaf of contract {key}");
    match (without_row, without_leaf) {
        (Some(key), _) => {
            Err(StateError::damaged(what(key), "it is in the contracts trie, but its row is missing"))
        }
        (_, Some(key)) => {
            Err(StateError::damaged(what(key), "it has a row, but is not in the contracts trie"))
        }
        (None, None) => Ok(()),
    }
}

/// One block's commitment.
struct BlockWork<'a> {
    hasher: &'a dyn Hasher,
    pedersen: AtomicU64,
}

impl<'a> BlockWork<'a> {
    fn new(hasher: &'a dyn Hasher) -> Self {
        Self { hasher, pedersen: AtomicU64::new(0) }
    }

    fn run(
        &self,
        source: &mut dyn CommitmentSource,
        before: Roots,
        diff: &StateDiff,
    ) -> Result<BlockChanges, StateError> {
        let rows: &dyn CommitmentSource = source;
        let old_leaf = |contract: &ContractDiff| rows.contract_leaf(&contract.address);
        let old_leaves = diff.contracts().par_iter().map(old_leaf).collect::<Result<Vec<_>, _>>()?;
        let in_memory = |work: (&ContractDiff, &ContractLeaf)| {
            let (contract, old) = work;
            let trie = TrieId::Storage(contract.address);
            shape_in_memory(rows, trie, old.storage_root.0, storage_leaves(contract))
        };
        let shaped = diff.contracts().par_iter().zip(&old_leaves).map(in_memory);
        let shaped = shaped.collect::<Result<Vec<_>, _>>()?;
        source.prepare(&wanted(before, diff, &old_leaves, &shaped))?;

        let source: &dyn CommitmentSource = source;
        let (contracts, classes) = rayon::join(
            || self.contracts(source, before.contracts, diff, &old_leaves, shaped),
            || self.classes(source, before.classes, diff),
        );
        let ContractsWork { mut tries, changes: contracts, undo } = contracts?;
        let (classes_trie, classes, poseidon) = classes?;
        let undo = StateDiff::of_parts(undo, old_classes(source, diff)?);
        let contracts_root = tries.last().map_or(before.contracts, |trie| ContractsRoot(trie.root));
        let classes_root = ClassesRoot(classes_trie.root);
        tries.push(classes_trie);
        tries.retain(|trie| !trie.is_empty());
        let roots = Roots { contracts: contracts_root, classes: classes_root };
        let hashes = HashCounts { pedersen: self.pedersen.load(Ordering::Relaxed), poseidon };
        Ok(BlockChanges { roots, tries, contracts, classes, undo, hashes })
    }

    /// Storage tries, contract leaves, contracts trie. `shaped` are those storage tries that memory was enough for.
    fn contracts(
        &self,
        source: &dyn CommitmentSource,
        root: ContractsRoot,
        diff: &StateDiff,
        old_leaves: &[ContractLeaf],
        shaped: Vec<Option<ShapedTrie>>,
    ) -> Result<ContractsWork, StateError> {
        let shape_storage = |(shaped, (contract, old)): (Option<_>, (&ContractDiff, &ContractLeaf))| {
            let trie = TrieId::Storage(contract.address);
            let from_rows = || shape(source, trie, old.storage_root.0, storage_leaves(contract));
            shaped.map_or_else(from_rows, Ok)
        };
        let contracts = diff.contracts().par_iter().zip(old_leaves);
        let shaped =
            shaped.into_par_iter().zip(contracts).map(shape_storage).collect::<Result<Vec<_>, _>>()?;
        let befores = diff.contracts().par_iter().zip(old_leaves).zip(&shaped);
        let undo = befores.map(|((contract, leaf), trie)| contract_before(contract, leaf, trie)).collect();
        let mut tries = self.hash_tries(shaped);

        let mut changes = Vec::new();
        let mut present_before = Vec::new();
        for ((contract, trie), old) in diff.contracts().iter().zip(&tries).zip(old_leaves) {
            let leaf = ContractLeaf {
                class_hash: contract.class_hash.unwrap_or(old.class_hash),
                storage_root: StorageRoot(trie.root),
                nonce: contract.nonce.unwrap_or(old.nonce),
            };
            if leaf != *old {
                present_before.extend((!old.is_absent()).then_some(*contract.address.trie_key()));
                changes.push(ContractLeafChange { address: contract.address, hash: Felt::ZERO, leaf });
            }
        }
        self.hash_contract_leaves(&mut changes);

        let leaves = changes.iter().map(|change| (*change.address.trie_key(), change.hash));
        let contracts_trie = shape(source, TrieId::Contracts, root.0, leaves)?;
        same_leaves(&present_before, contracts_trie.replaced())?;
        tries.extend(self.hash_tries(vec![contracts_trie]));
        Ok(ContractsWork { tries, changes, undo })
    }

    fn hash_tries(&self, mut shaped: Vec<ShapedTrie>) -> Vec<TrieChanges> {
        let hashes = hash_forest(self.hasher, HashFunction::Pedersen, &mut shaped);
        self.pedersen.fetch_add(hashes, Ordering::Relaxed);
        shaped.into_par_iter().map(ShapedTrie::into_changes).collect()
    }

    fn hash_contract_leaves(&self, changes: &mut [ContractLeafChange]) {
        let leaves: Vec<ContractLeaf> = changes.iter().map(|change| change.leaf).collect();
        let present = leaves.iter().filter(|leaf| !leaf.is_absent()).count();
        self.pedersen.fetch_add(HASHES_OF_A_CONTRACT_LEAF * present as u64, Ordering::Relaxed);
        for (change, hash) in changes.iter_mut().zip(contract_leaf_hashes(self.hasher, &leaves)) {
            change.hash = hash;
        }
    }

    /// Class leaves and classes trie, and how many Poseidon hashes they took.
    fn classes(
        &self,
        source: &dyn CommitmentSource,
        root: ClassesRoot,
        diff: &StateDiff,
    ) -> Result<(TrieChanges, Vec<ClassLeafChange>, u64), StateError> {
        let present: Vec<_> =
            diff.classes().iter().filter(|class| !class.compiled_class_hash.is_zero()).collect();
        let pairs: Vec<_> =
            present.iter().map(|class| class_leaf_preimage(class.compiled_class_hash)).collect();
        let mut hashes = hash_pairs(self.hasher, HashFunction::Poseidon, &pairs).into_iter();
        let change = |class: &crate::diff::ClassDiff| {
            let absent = class.compiled_class_hash.is_zero();
            let hash = if absent { None } else { hashes.next() }.unwrap_or(Felt::ZERO);
            ClassLeafChange {
                class_hash: class.class_hash,
                hash,
                compiled_class_hash: class.compiled_class_hash,
            }
        };
        let changes: Vec<ClassLeafChange> = diff.classes().iter().map(change).collect();
        let keys: Vec<TrieKey> = diff.classes().iter().map(|class| class.trie_key()).collect();
        let leaves = keys.into_iter().zip(changes.iter().map(|change| change.hash));
        let mut trie = vec![shape(source, TrieId::Classes, root.0, leaves)?];
        let inner = hash_forest(self.hasher, HashFunction::Poseidon, &mut trie);
        let trie = trie.remove(0).into_changes();
        Ok((trie, changes, pairs.len() as u64 + inner))
    }
}

const HASHES_OF_A_CONTRACT_LEAF: u64 = 3;

/// The leaves of contracts in the contracts trie, `Ped(Ped(Ped(class_hash, storage_root), nonce), 0)`, in three dependent
/// batches; zero for an absent contract, without hashing it.
pub fn contract_leaf_hashes(hasher: &dyn Hasher, leaves: &[ContractLeaf]) -> Vec<Felt> {
    let present: Vec<&ContractLeaf> = leaves.iter().filter(|leaf| !leaf.is_absent()).collect();
    let pedersen = |pairs: Vec<[Felt; 2]>| hash_pairs(hasher, HashFunction::Pedersen, &pairs);
    let hashes = pedersen(present.iter().map(|leaf| [leaf.class_hash.0, leaf.storage_root.0]).collect());
    let hashes =
        pedersen(hashes.into_iter().zip(&present).map(|(hash, leaf)| [hash, leaf.nonce.0]).collect());
    let mut hashes = pedersen(hashes.into_iter().map(|hash| [hash, Felt::ZERO]).collect()).into_iter();
    let of_leaf = |leaf: &ContractLeaf| if leaf.is_absent() { None } else { hashes.next() };
    leaves.iter().map(of_leaf).map(Option::unwrap_or_default).collect()
}

/// A block's work on its contracts.
struct ContractsWork {
    /// Changes of the storage tries, and last of the contracts trie.
    tries: Vec<TrieChanges>,
    changes: Vec<ContractLeafChange>,
    undo: Vec<ContractDiff>,
}

/// What a contract's diff sets, as it was before.
fn contract_before(diff: &ContractDiff, leaf: &ContractLeaf, trie: &ShapedTrie) -> ContractDiff {
    let mut before = trie.replaced().iter().peekable();
    let value_before = |(key, _): &(StorageKey, StorageValue)| {
        let replaced = before.next_if(|(replaced, _)| replaced == key.trie_key());
        (*key, StorageValue(replaced.map_or(Felt::ZERO, |(_, value)| *value)))
    };
    ContractDiff {
        address: diff.address,
        class_hash: diff.class_hash.map(|_| leaf.class_hash),
        nonce: diff.nonce.map(|_| leaf.nonce),
        storage: diff.storage.iter().map(value_before).collect(),
    }
}

/// The classes that a diff sets, as they were before.
fn old_classes(source: &dyn CommitmentSource, diff: &StateDiff) -> Result<Vec<ClassDiff>, StateError> {
    let before = |class: &ClassDiff| {
        let compiled_class_hash = source.class_leaf(&class.class_hash)?;
        Ok(ClassDiff { class_hash: class.class_hash, compiled_class_hash })
    };
    diff.classes().iter().map(before).collect()
}

/// The leaves of a contract's storage trie that a block sets.
fn storage_leaves(contract: &ContractDiff) -> impl Iterator<Item = (TrieKey, Felt)> {
    contract.storage.iter().map(|(key, value)| (*key.trie_key(), value.0))
}

/// All leaves that a block is going to set, by trie; without the storage tries that are shaped already.
fn wanted(
    before: Roots,
    diff: &StateDiff,
    old_leaves: &[ContractLeaf],
    shaped: &[Option<ShapedTrie>],
) -> Vec<Wanted> {
    let storage = |(contract, old): (&ContractDiff, &ContractLeaf)| Wanted {
        trie: TrieId::Storage(contract.address),
        root: old.storage_root.0,
        leaves: contract.storage.iter().map(|(key, _)| Path::of_key(key.trie_key())).collect(),
    };
    let contracts =
        diff.contracts().iter().map(|contract| Path::of_key(contract.address.trie_key())).collect();
    let classes = diff.classes().iter().map(|class| Path::of_key(&class.trie_key())).collect();
    let unshaped = diff.contracts().iter().zip(old_leaves).zip(shaped).filter(|(_, shaped)| shaped.is_none());
    let mut wanted: Vec<Wanted> = unshaped.map(|(work, _)| storage(work)).collect();
    wanted.push(Wanted { trie: TrieId::Contracts, root: before.contracts.0, leaves: contracts });
    wanted.push(Wanted { trie: TrieId::Classes, root: before.classes.0, leaves: classes });
    wanted.retain(|wanted| wanted.root != Felt::ZERO && !wanted.leaves.is_empty());
    wanted
}
