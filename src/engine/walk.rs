//! Whole states and whole contracts, some entries at a time.

use flagstone_core::error::StateError;
use flagstone_core::felt::Felt;
use flagstone_core::trie::{Leaves, NodeSource, TrieId};
use flagstone_core::types::{
    BlockNumber, ClassHash, ContractAddress, Nonce, StorageKey, StorageRoot, StorageValue, TrieKey,
};

use super::meta::BlockRoot;
use super::running::Engine;
use crate::error::Error;

/// Some entries of a state, ascending by key.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Page<T, K> {
    /// The block after which the state is; `None` for the empty one. Who names it for the next page reads the same state on.
    pub block: Option<BlockNumber>,
    /// The block's roots.
    pub root: BlockRoot,
    /// The entries.
    pub entries: Vec<T>,
    /// Where the next page begins: the key of the next entry. `None` behind the last.
    pub next: Option<K>,
}

/// A contract of a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ContractEntry {
    /// Its address.
    pub address: ContractAddress,
    /// The class it is an instance of.
    pub class_hash: ClassHash,
    /// Its nonce.
    pub nonce: Nonce,
    /// The root of its storage trie.
    pub storage_root: StorageRoot,
}

/// At most so many leaves of a trie from a key on, and the key of the one behind them.
type Found<K> = (Vec<(TrieKey, Felt)>, Option<K>);

fn leaves<K: From<TrieKey>>(
    tries: &dyn NodeSource,
    trie: TrieId,
    root: Felt,
    from: Option<TrieKey>,
    max: usize,
) -> Result<Found<K>, Error> {
    let all = Leaves::new(tries, trie, root);
    let mut all = match from {
        Some(from) => all.starting_at(&from),
        None => all,
    };
    let mut found = Vec::new();
    for leaf in all.by_ref().take(max) {
        found.push(leaf.map_err(StateError::from)?);
    }
    let next = all.next().transpose().map_err(StateError::from)?;
    Ok((found, next.map(|(key, _)| key.into())))
}

impl Engine {
    /// The contracts of the state after a committed block, the last one if none is named: at most `max` of them, from an address on.
    ///
    /// ```
    /// # use flagstone::{Engine, EngineConfig, StateDiff, StateUpdate, layout, store::MemoryStore};
    /// # let engine = Engine::open(Box::new(MemoryStore::new()), layout("flat")?.make(), EngineConfig::default())?;
    /// # let diff = StateDiff::builder().nonce(1.into(), 2.into()).nonce(7.into(), 3.into()).build()?;
    /// # engine.close_block(&StateUpdate { starknet_version: "0.14.0".parse().ok(), ..diff.into() })?;
    /// # engine.commit()?;
    /// let (mut block, mut from, mut count) = (None, None, 0);
    /// loop {
    ///     let page = engine.contracts_at(block, from, 1)?;
    ///     count += page.entries.len();
    ///     (block, from) = (page.block, page.next);
    ///     if from.is_none() {
    ///         break;
    ///     }
    /// }
    /// assert_eq!(count, 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`Engine::at_commitment`].
    pub fn contracts_at(
        &self,
        block: Option<BlockNumber>,
        from: Option<ContractAddress>,
        max: usize,
    ) -> Result<Page<ContractEntry, ContractAddress>, Error> {
        self.at_commitment(block, |tries, block, root| {
            let (from, contracts) = (from.map(|address| *address.trie_key()), root.roots.contracts.0);
            let (found, next) = leaves(tries, TrieId::Contracts, contracts, from, max)?;
            let entry = |(key, _): &(TrieKey, _)| {
                let address = ContractAddress::from(*key);
                let leaf = tries.contract_leaf(&address)?;
                let (class_hash, nonce, storage_root) = (leaf.class_hash, leaf.nonce, leaf.storage_root);
                Ok(ContractEntry { address, class_hash, nonce, storage_root })
            };
            let entries = found.iter().map(entry).collect::<Result<_, Error>>()?;
            Ok(Page { block, root: *root, entries, next })
        })
    }

    /// The storage of a contract after a committed block, the last one if none is named: at most `max` slots that are not zero, from a
    /// key on. A contract that is not there has none.
    ///
    /// # Errors
    /// As [`Engine::at_commitment`].
    pub fn storage_of_at(
        &self,
        block: Option<BlockNumber>,
        address: &ContractAddress,
        from: Option<StorageKey>,
        max: usize,
    ) -> Result<Page<(StorageKey, StorageValue), StorageKey>, Error> {
        self.at_commitment(block, |tries, block, root| {
            let (trie, from) = (TrieId::Storage(*address), from.map(|key| *key.trie_key()));
            let storage = tries.contract_leaf(address)?.storage_root.0;
            let (found, next) = leaves(tries, trie, storage, from, max)?;
            let entries = found.into_iter().map(|(key, value)| (key.into(), StorageValue(value))).collect();
            Ok(Page { block, root: *root, entries, next })
        })
    }
}
