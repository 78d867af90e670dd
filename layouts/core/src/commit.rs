//! From closed blocks to roots: the part of a commitment that all layouts share.
//!
//! A [`CommitSession`] starts at the height its source's tries are at and takes one diff after another. Each block
//! gets its own roots. Old leaves and nodes come from the source or from this session's earlier blocks, never from
//! newer values that a layout may already hold: that would commit a block to its successor's state.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;

use crate::commitment::{ContractLeaf, Roots, class_leaf_preimage};
use crate::diff::{ContractDiff, StateDiff};
use crate::error::StateError;
use crate::felt::Felt;
use crate::hash::Hasher;
use crate::layout::StagedCommitment;
use crate::store::WriteBatch;
use crate::trie::{
    HashFunction, Node, NodeRef, NodeSource, Path, ShapedTrie, TrieChanges, TrieId, hash_forest, hash_pairs,
    shape,
};
use crate::types::{
    ClassHash, ClassesRoot, CompiledClassHash, ContractAddress, ContractsRoot, StorageRoot, TrieKey,
};

/// The tries as they are before the session.
pub trait CommitmentSource: NodeSource {
    /// What a contract's leaf commits to; all zero if it has none.
    ///
    /// # Errors
    /// [`StateError`] if the store fails or the leaf is damaged.
    fn contract_leaf(&self, address: &ContractAddress) -> Result<ContractLeaf, StateError>;
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
    /// Hashes computed for it.
    pub hashes: HashCounts,
}

/// Commits blocks one after another on top of a source, in memory.
pub struct CommitSession<'a> {
    source: Overlaid<'a>,
    hasher: &'a dyn Hasher,
    roots: Roots,
    blocks: Vec<BlockChanges>,
}

/// The source with the session's earlier blocks over it.
struct Overlaid<'a> {
    base: &'a dyn CommitmentSource,
    nodes: HashMap<(TrieId, Path), Option<Node>>,
    leaves: HashMap<ContractAddress, ContractLeaf>,
}

impl NodeSource for Overlaid<'_> {
    fn node(&self, at: &NodeRef) -> Result<Option<Node>, StateError> {
        match self.nodes.get(&(at.trie, at.path)) {
            Some(node) => Ok(*node),
            None => self.base.node(at),
        }
    }
}

impl Overlaid<'_> {
    fn contract_leaf(&self, address: &ContractAddress) -> Result<ContractLeaf, StateError> {
        self.leaves.get(address).map_or_else(|| self.base.contract_leaf(address), |leaf| Ok(*leaf))
    }

    fn absorb(&mut self, block: &BlockChanges) {
        for trie in &block.tries {
            self.nodes.extend(trie.removed.iter().map(|(path, _)| ((trie.trie, *path), None)));
            self.nodes.extend(trie.written.iter().map(|new| ((trie.trie, new.path), Some(new.node))));
        }
        self.leaves.extend(block.contracts.iter().map(|change| (change.address, change.leaf)));
    }
}

impl<'a> CommitSession<'a> {
    /// Starts where `base` is, whose roots are `roots`.
    pub fn new(base: &'a dyn CommitmentSource, roots: Roots, hasher: &'a dyn Hasher) -> Self {
        let source = Overlaid { base, nodes: HashMap::new(), leaves: HashMap::new() };
        Self { source, hasher, roots, blocks: Vec::new() }
    }

    /// Commits the next block and returns its roots. Work is spread over the current rayon pool; the result does
    /// not depend on its size.
    ///
    /// # Errors
    /// [`StateError`] if old leaves or nodes cannot be read; the session then still stands at the block before.
    pub fn commit(&mut self, diff: &StateDiff) -> Result<Roots, StateError> {
        if let Some(before) = self.blocks.last() {
            self.source.absorb(before);
        }
        let work = BlockWork { source: &self.source, hasher: self.hasher, pedersen: AtomicU64::new(0) };
        let block = work.run(self.roots, diff)?;
        self.roots = block.roots;
        self.blocks.push(block);
        Ok(self.roots)
    }

    /// The changes of each block, in order. Later ones override earlier ones.
    pub fn into_blocks(self) -> Vec<BlockChanges> {
        self.blocks
    }
}

/// Commits blocks in order and collects the rows that `stage` makes of each block's changes: what a layout's
/// [`stage_commitment`](crate::layout::Layout::stage_commitment) usually is.
///
/// # Errors
/// [`StateError`] if old leaves or nodes cannot be read.
pub fn commit_blocks(
    source: &dyn CommitmentSource,
    roots: Roots,
    blocks: &[&StateDiff],
    hasher: &dyn Hasher,
    mut stage: impl FnMut(&mut WriteBatch, &BlockChanges),
) -> Result<StagedCommitment, StateError> {
    let mut session = CommitSession::new(source, roots, hasher);
    let roots = blocks.iter().map(|diff| session.commit(diff)).collect::<Result<Vec<_>, _>>()?;
    let mut staged = StagedCommitment { roots, ..StagedCommitment::default() };
    for block in session.into_blocks() {
        stage(&mut staged.batch, &block);
        staged.hashes += block.hashes;
    }
    Ok(staged)
}

/// A contract's leaf row and its leaf in the trie are there together or not at all. A lost row would otherwise pass
/// for a contract without storage, and give a wrong root.
fn same_leaves(rows: &[TrieKey], trie: &[TrieKey]) -> Result<(), StateError> {
    let in_one = |a: &[TrieKey], b: &[TrieKey]| a.iter().find(|key| b.binary_search(key).is_err()).copied();
    let what = |key: TrieKey| format!("leaf of contract {key}");
    match (in_one(trie, rows), in_one(rows, trie)) {
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
    source: &'a Overlaid<'a>,
    hasher: &'a dyn Hasher,
    pedersen: AtomicU64,
}

impl BlockWork<'_> {
    fn run(&self, before: Roots, diff: &StateDiff) -> Result<BlockChanges, StateError> {
        let (contracts, classes) =
            rayon::join(|| self.contracts(before.contracts, diff), || self.classes(before.classes, diff));
        let (mut tries, contracts) = contracts?;
        let (classes_trie, classes, poseidon) = classes?;
        let contracts_root = tries.last().map_or(before.contracts, |trie| ContractsRoot(trie.root));
        let classes_root = ClassesRoot(classes_trie.root);
        tries.push(classes_trie);
        tries.retain(|trie| !trie.written.is_empty() || !trie.removed.is_empty());
        let roots = Roots { contracts: contracts_root, classes: classes_root };
        let hashes = HashCounts { pedersen: self.pedersen.load(Ordering::Relaxed), poseidon };
        Ok(BlockChanges { roots, tries, contracts, classes, hashes })
    }

    /// Storage tries, contract leaves, contracts trie; the contracts trie comes last in the result.
    fn contracts(
        &self,
        root: ContractsRoot,
        diff: &StateDiff,
    ) -> Result<(Vec<TrieChanges>, Vec<ContractLeafChange>), StateError> {
        let prepare = |contract| self.prepare_contract(contract);
        let prepared = diff.contracts().par_iter().map(prepare).collect::<Result<Vec<_>, _>>()?;
        let (leaves, shaped): (Vec<ContractLeaf>, Vec<ShapedTrie>) = prepared.into_iter().unzip();
        let storage_tries = self.hash_tries(shaped);

        let mut changes = Vec::new();
        let mut present_before = Vec::new();
        for ((contract, trie), old) in diff.contracts().iter().zip(&storage_tries).zip(leaves) {
            let leaf = ContractLeaf {
                class_hash: contract.class_hash.unwrap_or(old.class_hash),
                storage_root: StorageRoot(trie.root),
                nonce: contract.nonce.unwrap_or(old.nonce),
            };
            if leaf != old {
                present_before.extend((!old.is_absent()).then_some(*contract.address.trie_key()));
                changes.push(ContractLeafChange { address: contract.address, hash: Felt::ZERO, leaf });
            }
        }
        self.hash_contract_leaves(&mut changes);

        let leaves = changes.iter().map(|change| (*change.address.trie_key(), change.hash));
        let contracts_trie = shape(self.source, TrieId::Contracts, root.0, leaves)?;
        same_leaves(&present_before, contracts_trie.replaced())?;
        let mut tries = storage_tries;
        tries.extend(self.hash_tries(vec![contracts_trie]));
        Ok((tries, changes))
    }

    fn prepare_contract(&self, contract: &ContractDiff) -> Result<(ContractLeaf, ShapedTrie), StateError> {
        let old = self.source.contract_leaf(&contract.address)?;
        let leaves = contract.storage.iter().map(|(key, value)| (*key.trie_key(), value.0));
        let shaped = shape(self.source, TrieId::Storage(contract.address), old.storage_root.0, leaves)?;
        Ok((old, shaped))
    }

    fn hash_tries(&self, mut shaped: Vec<ShapedTrie>) -> Vec<TrieChanges> {
        let hashes = hash_forest(self.hasher, HashFunction::Pedersen, &mut shaped);
        self.pedersen.fetch_add(hashes, Ordering::Relaxed);
        shaped.into_iter().map(ShapedTrie::into_changes).collect()
    }

    /// `Ped(Ped(Ped(class_hash, storage_root), nonce), 0)`, in three dependent batches; zero for an absent contract.
    fn hash_contract_leaves(&self, changes: &mut [ContractLeafChange]) {
        let mut present: Vec<_> = changes.iter_mut().filter(|change| !change.leaf.is_absent()).collect();
        let mut step = |operands: fn(&ContractLeafChange) -> [Felt; 2]| {
            let pairs: Vec<_> = present.iter().map(|change| operands(change)).collect();
            let hashes = hash_pairs(self.hasher, HashFunction::Pedersen, &pairs);
            self.pedersen.fetch_add(hashes.len() as u64, Ordering::Relaxed);
            for (change, hash) in present.iter_mut().zip(hashes) {
                change.hash = hash;
            }
        };
        step(|change| [change.leaf.class_hash.0, change.leaf.storage_root.0]);
        step(|change| [change.hash, change.leaf.nonce.0]);
        step(|change| [change.hash, Felt::ZERO]);
    }

    /// Class leaves and classes trie, and how many Poseidon hashes they took.
    fn classes(
        &self,
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
        let mut trie = vec![shape(self.source, TrieId::Classes, root.0, leaves)?];
        let inner = hash_forest(self.hasher, HashFunction::Poseidon, &mut trie);
        let trie = trie.remove(0).into_changes();
        Ok((trie, changes, pairs.len() as u64 + inner))
    }
}
