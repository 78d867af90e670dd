//! Values of closed blocks that the layout does not hold yet.
//!
//! A layout whose values live in tries shows them only once committed; until then they are served from here. Every
//! version is kept with its block, so that a view answers for its own block, whatever closed since. Bounded by the
//! engine's bounds on pending blocks; emptied when they are committed.

use std::collections::HashMap;

use flagstone_core::diff::StateDiff;
use flagstone_core::felt::Felt;
use flagstone_core::types::{BlockNumber, ClassHash, ContractAddress, StorageKey};

/// What a value belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ValueKey {
    Storage(ContractAddress, StorageKey),
    Nonce(ContractAddress),
    ClassHash(ContractAddress),
    CompiledClassHash(ClassHash),
}

/// Visits every value that a diff sets, each once; zero deletes.
pub fn each_value(diff: &StateDiff, mut visit: impl FnMut(ValueKey, Felt)) {
    for contract in diff.contracts() {
        let address = contract.address;
        contract.class_hash.iter().for_each(|hash| visit(ValueKey::ClassHash(address), hash.0));
        contract.nonce.iter().for_each(|nonce| visit(ValueKey::Nonce(address), nonce.0));
        contract.storage.iter().for_each(|(key, value)| visit(ValueKey::Storage(address, *key), value.0));
    }
    for class in diff.classes() {
        visit(ValueKey::CompiledClassHash(class.class_hash), class.compiled_class_hash.0);
    }
}

/// Versions of values, ascending by block.
#[derive(Debug, Default)]
pub struct Overlay {
    versions: HashMap<ValueKey, Vec<(BlockNumber, Felt)>>,
}

impl Overlay {
    /// Adds a block's values. Blocks come in ascending order.
    pub fn push(&mut self, block: BlockNumber, diff: &StateDiff) {
        each_value(diff, |key, felt| self.versions.entry(key).or_default().push((block, felt)));
    }

    /// The value as of `block`, if a block up to then set it.
    pub fn get(&self, key: &ValueKey, block: BlockNumber) -> Option<Felt> {
        let versions = self.versions.get(key)?;
        let newer = versions.partition_point(|(version, _)| *version <= block);
        Some(versions[..newer].last()?.1)
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.versions.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_the_last_one_up_to_the_block() {
        let mut overlay = Overlay::default();
        let diff = |value: u64| StateDiff::builder().nonce(1.into(), value.into()).build().unwrap();
        overlay.push(BlockNumber(3), &diff(30));
        overlay.push(BlockNumber(5), &diff(50));
        let key = ValueKey::Nonce(1.into());
        let at = |block| overlay.get(&key, BlockNumber(block));
        assert_eq!(
            [2, 3, 4, 5, 6].map(at),
            [None, Some(30), Some(30), Some(50), Some(50)].map(|v: Option<u64>| v.map(Felt::from))
        );
        assert_eq!(overlay.get(&ValueKey::Nonce(2.into()), BlockNumber(9)), None);
    }
}
