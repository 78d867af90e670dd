//! From closed blocks to roots: the part of a commitment that all layouts share.
//!
//! [`commit_blocks`] starts at the height its source's tries are at and takes one diff after another. Each block gets
//! its own roots. Old leaves and nodes come from the source or from earlier blocks of the group, and never from newer
//! values that a layout may already hold: that would commit a block to its successor's state.
//!
//! Hashing is what a commitment costs, and a hasher is several times as quick with many hashes at a time as with a few. So
//! a group of blocks is shaped first, all blocks, and hashed then: the storage tries of all blocks level by level, then
//! all leaves of contracts, then the contracts trie. Every hash of every block is still computed, and once.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rayon::prelude::*;

use crate::commitment::{ContractLeaf, Roots, class_leaf_preimage};
use crate::diff::{ClassDiff, ContractDiff, StateDiff, Subject};
use crate::error::StateError;
use crate::felt::Felt;
use crate::hash::Hasher;
use crate::layout::StagedCommitment;
use crate::trie::{
    HashFunction, Node, NodeRef, NodeSource, Path, ShapedTrie, TrieChanges, TrieId, hash_forest, hash_pairs,
    shape_blocks, shape_blocks_in_memory,
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

    /// Called once, when the blocks are hashed: takes over what they changed. A source that is not asked again need not.
    ///
    /// # Errors
    /// [`StateError`] if the store fails or a node is damaged.
    fn absorb(&mut self, _group: &GroupChanges) -> Result<(), StateError> {
        Ok(())
    }
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
#[non_exhaustive]
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
#[derive(Debug, Clone, Default)]
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

/// What committing a group of blocks changes.
#[derive(Debug, Default)]
pub struct GroupChanges {
    /// What each block changes.
    pub blocks: Vec<BlockChanges>,
    /// What the blocks together do to the tries: the nodes that are there after the last of them.
    pub tries: Vec<TrieChanges>,
}

/// Rows with the nodes and leaves of commitments over them that are in no row: a source that goes from state to state.
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
        let staged = commit_blocks(self, roots, &[diff], hasher, |_| {})?;
        Ok(staged.roots.last().copied().unwrap_or(roots))
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
    fn absorb(&mut self, group: &GroupChanges) -> Result<(), StateError> {
        for trie in &group.tries {
            self.nodes.extend(trie.removed.iter().map(|path| ((trie.trie, *path), None)));
            self.nodes.extend(trie.written().map(|new| ((trie.trie, new.path), Some(new.node))));
        }
        for block in &group.blocks {
            self.leaves.extend(block.contracts.iter().map(|change| (change.address, change.leaf)));
            let classes = block.classes.iter();
            self.classes
                .extend(classes.filter_map(|class| Some((class.trie_key()?, class.compiled_class_hash))));
        }
        Ok(())
    }
}

/// Commits blocks one after another on top of a source that stands at `roots`, in memory, and hands each block's changes
/// to `each`: later ones override earlier ones. A group takes the memory of all its blocks' new nodes, so whoever has many
/// values commits them in several groups. The outcome lacks its batch. Work is spread over the current rayon pool; the
/// result does not depend on its size, nor on how blocks are put into groups.
///
/// # Errors
/// [`StateError`] if old leaves or nodes cannot be read.
pub fn commit_blocks(
    source: &mut dyn CommitmentSource,
    roots: Roots,
    diffs: &[&StateDiff],
    hasher: &dyn Hasher,
    each: impl FnMut(&BlockChanges),
) -> Result<StagedCommitment, StateError> {
    let group = Group::new(hasher, diffs).commit(source, roots)?;
    group.blocks.iter().for_each(each);
    source.absorb(&group)?;
    let mut staged = StagedCommitment::default();
    for block in group.blocks {
        staged.roots.push(block.roots);
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

/// A contract's part of a group.
struct ContractWork<'a> {
    address: ContractAddress,
    /// Its leaf before the group.
    old: ContractLeaf,
    /// What each block that touches it sets, by the block's place in the group.
    diffs: Vec<(usize, &'a ContractDiff)>,
}

impl ContractWork<'_> {
    fn trie(&self) -> TrieId {
        TrieId::Storage(self.address)
    }

    /// The leaves of its storage trie that each block sets.
    fn leaves(&self) -> impl Iterator<Item = (usize, impl Iterator<Item = (TrieKey, Felt)>)> {
        let leaf = |(key, value): &(StorageKey, StorageValue)| (*key.trie_key(), value.0);
        self.diffs.iter().map(move |(block, diff)| (*block, diff.storage.iter().map(leaf)))
    }
}

/// A group of blocks in commitment.
struct Group<'a> {
    hasher: &'a dyn Hasher,
    diffs: &'a [&'a StateDiff],
    /// Ascending by address.
    contracts: Vec<ContractWork<'a>>,
    changes: GroupChanges,
}

impl<'a> Group<'a> {
    fn new(hasher: &'a dyn Hasher, diffs: &'a [&'a StateDiff]) -> Self {
        let mut touched: Vec<(usize, &ContractDiff)> = Vec::new();
        for (block, diff) in diffs.iter().enumerate() {
            touched.extend(diff.contracts().iter().map(|contract| (block, contract)));
        }
        // A single block's are in order; of several, the sort keeps a contract's in the order of blocks.
        touched.sort_by_key(|(_, contract)| contract.address);
        let contracts =
            touched.chunk_by(|(_, a), (_, b)| a.address == b.address).map(|of_one| ContractWork {
                address: of_one[0].1.address,
                old: ContractLeaf::default(),
                diffs: of_one.to_vec(),
            });
        let contracts = contracts.collect();
        let blocks = diffs.iter().map(|_| BlockChanges::default()).collect();
        Self { hasher, diffs, contracts, changes: GroupChanges { blocks, tries: Vec::new() } }
    }

    fn commit(
        mut self,
        source: &mut dyn CommitmentSource,
        before: Roots,
    ) -> Result<GroupChanges, StateError> {
        let rows: &dyn CommitmentSource = source;
        self.contracts.par_iter_mut().try_for_each(|contract| {
            contract.old = rows.contract_leaf(&contract.address)?;
            Ok::<_, StateError>(())
        })?;
        let in_memory = |contract: &ContractWork<'_>| {
            shape_blocks_in_memory(rows, contract.trie(), contract.old.storage_root.0, contract.leaves())
        };
        let shaped = self.contracts.par_iter().map(in_memory).collect::<Result<Vec<_>, _>>()?;
        source.prepare(&self.wanted(before, &shaped))?;

        let source: &dyn CommitmentSource = source;
        let (hasher, diffs) = (self.hasher, self.diffs);
        let (contracts, classes) = rayon::join(
            || self.commit_contracts(source, before.contracts, shaped),
            || commit_classes(hasher, diffs, source, before.classes),
        );
        self.finish(contracts?, classes?);
        Ok(self.changes)
    }

    /// All leaves that the blocks are going to set, by trie; without the storage tries that are shaped already.
    fn wanted(&self, before: Roots, shaped: &[Option<ShapedTrie>]) -> Vec<Wanted> {
        let ascending = |mut leaves: Vec<Path>| {
            leaves.sort_unstable();
            leaves.dedup();
            leaves
        };
        let storage = |contract: &ContractWork<'_>| Wanted {
            trie: contract.trie(),
            root: contract.old.storage_root.0,
            leaves: ascending(
                contract.leaves().flat_map(|(_, leaves)| leaves.map(|(key, _)| Path::of_key(&key))).collect(),
            ),
        };
        let contracts =
            self.contracts.iter().map(|contract| Path::of_key(contract.address.trie_key())).collect();
        let classes = self.diffs.iter().flat_map(|diff| diff.classes());
        let classes = classes.map(|class| Path::of_key(&class.trie_key())).collect();
        let unshaped = self.contracts.iter().zip(shaped).filter(|(_, shaped)| shaped.is_none());
        let mut wanted: Vec<Wanted> = unshaped.map(|(contract, _)| storage(contract)).collect();
        wanted.push(Wanted { trie: TrieId::Contracts, root: before.contracts.0, leaves: contracts });
        wanted.push(Wanted { trie: TrieId::Classes, root: before.classes.0, leaves: ascending(classes) });
        wanted.retain(|wanted| wanted.root != Felt::ZERO && !wanted.leaves.is_empty());
        wanted
    }

    /// Storage tries, contract leaves, contracts trie. `shaped` are those storage tries that memory was enough for.
    /// Returns each block's contracts as they were before it.
    fn commit_contracts(
        &mut self,
        source: &dyn CommitmentSource,
        root: ContractsRoot,
        shaped: Vec<Option<ShapedTrie>>,
    ) -> Result<Vec<Vec<ContractDiff>>, StateError> {
        let shape_storage = |(shaped, contract): (Option<_>, &ContractWork<'_>)| {
            let from_rows =
                || shape_blocks(source, contract.trie(), contract.old.storage_root.0, contract.leaves());
            shaped.map_or_else(from_rows, Ok)
        };
        let shaped = shaped.into_par_iter().zip(&self.contracts).map(shape_storage);
        let mut shaped = shaped.collect::<Result<Vec<_>, _>>()?;
        hash_forest(self.hasher, HashFunction::Pedersen, &mut shaped);

        let mut undo: Vec<Vec<ContractDiff>> = self.diffs.iter().map(|_| Vec::new()).collect();
        let mut present_before: Vec<Vec<TrieKey>> = self.diffs.iter().map(|_| Vec::new()).collect();
        for (contract, trie) in self.contracts.iter().zip(&shaped) {
            let mut old = contract.old;
            for (((block, diff), (_, root)), replaced) in
                contract.diffs.iter().zip(trie.roots()).zip(trie.replaced())
            {
                undo[*block].push(contract_before(diff, &old, replaced));
                let leaf = ContractLeaf {
                    class_hash: diff.class_hash.unwrap_or(old.class_hash),
                    storage_root: StorageRoot(root),
                    nonce: diff.nonce.unwrap_or(old.nonce),
                };
                if leaf != old {
                    present_before[*block].extend((!old.is_absent()).then_some(*contract.address.trie_key()));
                    let change = ContractLeafChange { address: contract.address, hash: Felt::ZERO, leaf };
                    self.changes.blocks[*block].contracts.push(change);
                }
                old = leaf;
            }
        }
        let changes = || shaped.into_par_iter().map(ShapedTrie::into_changes).collect::<Vec<_>>();
        let contracts_trie = || {
            self.hash_contract_leaves();
            self.commit_contracts_trie(source, root, &present_before)
        };
        let (contracts_trie, changes) = rayon::join(contracts_trie, changes);
        self.take_changes(changes);
        self.take_changes([contracts_trie?.into_changes()]);
        Ok(undo)
    }

    /// Hashes the contract leaves of all blocks together.
    fn hash_contract_leaves(&mut self) {
        let changes = self.changes.blocks.iter().flat_map(|block| &block.contracts);
        let leaves: Vec<ContractLeaf> = changes.map(|change| change.leaf).collect();
        let hashes = contract_leaf_hashes(self.hasher, &leaves);
        let changes = self.changes.blocks.iter_mut().flat_map(|block| &mut block.contracts);
        changes.zip(hashes).for_each(|(change, hash)| change.hash = hash);
    }

    fn commit_contracts_trie(
        &mut self,
        source: &dyn CommitmentSource,
        root: ContractsRoot,
        present_before: &[Vec<TrieKey>],
    ) -> Result<ShapedTrie, StateError> {
        let leaves = |block: &BlockChanges| -> Vec<_> {
            block.contracts.iter().map(|change| (*change.address.trie_key(), change.hash)).collect()
        };
        let leaves = self.changes.blocks.iter().map(leaves).enumerate();
        let mut trie = shape_blocks(source, TrieId::Contracts, root.0, leaves)?;
        present_before.iter().zip(trie.replaced()).try_for_each(|(rows, trie)| same_leaves(rows, trie))?;
        hash_forest(self.hasher, HashFunction::Pedersen, std::slice::from_mut(&mut trie));
        for (block, root) in trie.roots() {
            self.changes.blocks[block].roots.contracts = ContractsRoot(root);
        }
        Ok(trie)
    }

    /// Takes what became of hashed tries.
    fn take_changes(&mut self, tries: impl IntoIterator<Item = (Vec<(usize, TrieChanges)>, TrieChanges)>) {
        for (blocks, together) in tries {
            for (block, changes) in blocks.into_iter().filter(|(_, changes)| !changes.is_empty()) {
                self.changes.blocks[block].tries.push(changes);
            }
            self.changes.tries.extend((!together.is_empty()).then_some(together));
        }
    }

    /// Puts the classes to the contracts, and counts.
    fn finish(&mut self, contracts_before: Vec<Vec<ContractDiff>>, classes: ClassesWork) {
        let ClassesWork { trie, blocks } = classes;
        for (block, root) in trie.roots() {
            self.changes.blocks[block].roots.classes = ClassesRoot(root);
        }
        self.take_changes([trie.into_changes()]);
        let befores = contracts_before.into_iter().zip(blocks);
        for (block, (contracts, (changes, classes))) in self.changes.blocks.iter_mut().zip(befores) {
            block.classes = changes;
            block.undo = StateDiff::of_parts(contracts, classes);
            block.hashes = hashes_of(block);
        }
    }
}

/// How many hashes a block took: one for each new node, and those of its leaves.
fn hashes_of(block: &BlockChanges) -> HashCounts {
    let contracts = block.contracts.iter().filter(|change| !change.leaf.is_absent()).count();
    let classes = block.classes.iter().filter(|change| !change.compiled_class_hash.is_zero()).count();
    let mut counts =
        HashCounts { pedersen: HASHES_OF_A_CONTRACT_LEAF * contracts as u64, poseidon: classes as u64 };
    for trie in &block.tries {
        match trie.trie.hash_function() {
            HashFunction::Pedersen => counts.pedersen += trie.nodes() as u64,
            HashFunction::Poseidon => counts.poseidon += trie.nodes() as u64,
        }
    }
    counts
}

/// A group's work on its classes.
struct ClassesWork {
    /// Hashed.
    trie: ShapedTrie,
    /// For each block the leaves it sets, and the classes that it sets as they were before.
    blocks: Vec<(Vec<ClassLeafChange>, Vec<ClassDiff>)>,
}

/// Class leaves and classes trie.
fn commit_classes(
    hasher: &dyn Hasher,
    diffs: &[&StateDiff],
    source: &dyn CommitmentSource,
    root: ClassesRoot,
) -> Result<ClassesWork, StateError> {
    let classes = || diffs.iter().flat_map(|diff| diff.classes());
    let present = classes().filter(|class| !class.compiled_class_hash.is_zero());
    let pairs: Vec<_> = present.map(|class| class_leaf_preimage(class.compiled_class_hash)).collect();
    let mut hashes = hash_pairs(hasher, HashFunction::Poseidon, &pairs).into_iter();
    let mut change = |class: &ClassDiff| {
        let ClassDiff { class_hash, compiled_class_hash } = *class;
        let hash = if compiled_class_hash.is_zero() { None } else { hashes.next() };
        ClassLeafChange { class_hash, hash: hash.unwrap_or(Felt::ZERO), compiled_class_hash }
    };
    let mut newest: HashMap<Felt, CompiledClassHash> = HashMap::new();
    let mut blocks = Vec::new();
    for diff in diffs {
        let mut before = diff.classes().to_vec();
        for class in &mut before {
            let earlier = newest.insert(class.class_hash.0, class.compiled_class_hash);
            class.compiled_class_hash = match earlier {
                Some(compiled) => compiled,
                None => source.class_leaf(&class.class_hash)?,
            };
        }
        blocks.push((diff.classes().iter().map(&mut change).collect::<Vec<_>>(), before));
    }
    let leaves = |(diff, (changes, _)): (&&StateDiff, &(Vec<ClassLeafChange>, _))| -> Vec<_> {
        let keys = diff.classes().iter().map(ClassDiff::trie_key);
        keys.zip(changes.iter().map(|change| change.hash)).collect()
    };
    let leaves = diffs.iter().zip(&blocks).map(leaves).enumerate();
    let mut tries = [shape_blocks(source, TrieId::Classes, root.0, leaves)?];
    hash_forest(hasher, HashFunction::Poseidon, &mut tries);
    let [trie] = tries;
    Ok(ClassesWork { trie, blocks })
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

/// What a contract's diff sets, as it was before.
/// `replaced` are the slots among them that had a value.
fn contract_before(diff: &ContractDiff, leaf: &ContractLeaf, replaced: &[(TrieKey, Felt)]) -> ContractDiff {
    let mut before = replaced.iter().peekable();
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
