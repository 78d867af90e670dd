//! A layout of a third party: one row for each value, and no other rows. Whoever needs the tries computes them from all values.

use std::ops::ControlFlow;

use flagstone::core::audit::{Findings, Place, Visited, foreign_rows};
use flagstone::core::codec::{DecodeError, Reader};
use flagstone::core::commit::{Overlaid, TrieRows, commit_blocks};
use flagstone::core::commitment::{ContractLeaf, Roots};
use flagstone::core::diff::{StateDiff, StateDiffBuilder, Subject};
use flagstone::core::error::StateError;
use flagstone::core::felt::{Felt, felt_to_be};
use flagstone::core::hash::{Bulk, Hasher};
use flagstone::core::layout::{Layout, StagedCommitment, StateAt};
use flagstone::core::store::keyspace::LAYOUT_FIRST;
use flagstone::core::trie::{Node, NodeRef, NodeSource, Path, TrieId};
use flagstone::core::types::{
    ClassHash, CompiledClassHash, ContractAddress, Nonce, StorageKey, StorageValue, TrieKey,
};
use flagstone::core::witness::{Witness, commit_with_witness};
use flagstone::store::WriteBatch;

/// The layout.
pub struct Ledger;

const STORAGE: u8 = 0;
const CLASS_HASH: u8 = 1;
const NONCE: u8 = 2;
const COMPILED: u8 = 3;

fn key_of(subject: &Subject) -> Vec<u8> {
    let key = |kind: u8, words: &[[u8; 32]]| [&[LAYOUT_FIRST, kind], words.as_flattened()].concat();
    match subject {
        Subject::Storage(address, slot) => key(STORAGE, &[*address.as_be(), *slot.as_be()]),
        Subject::ClassHash(address) => key(CLASS_HASH, &[*address.as_be()]),
        Subject::Nonce(address) => key(NONCE, &[*address.as_be()]),
        Subject::CompiledClassHash(class_hash) => key(COMPILED, &[felt_to_be(&class_hash.0)]),
    }
}

/// The value in a row, which holds no zero.
fn value_of(row: &[u8]) -> Result<Felt, DecodeError> {
    let mut from = Reader::new(row);
    let value = from.felt("value")?;
    from.end("value")?;
    if value == Felt::ZERO { Err(DecodeError::new("value", "it is zero")) } else { Ok(value) }
}

/// Adds what a row says.
fn set(diff: StateDiffBuilder, key: &[u8], row: &[u8]) -> Result<StateDiffBuilder, DecodeError> {
    let (value, mut from) = (value_of(row)?, Reader::new(&key[1..]));
    let diff = match (from.u8("kind")?, from.key("key")?) {
        (STORAGE, address) => diff.storage(address.into(), from.key("slot")?.into(), value.into()),
        (CLASS_HASH, address) => diff.class_hash(address.into(), value.into()),
        (NONCE, address) => diff.nonce(address.into(), value.into()),
        (COMPILED, class_hash) => diff.class(ClassHash(class_hash.to_felt()), value.into()),
        _ => return Err(DecodeError::new("kind", "there is none such")),
    };
    from.end("key").map(|()| diff)
}

/// No rows.
struct Nothing;

impl NodeSource for Nothing {
    fn node(&self, _: &NodeRef) -> Result<Option<Node>, StateError> {
        Ok(None)
    }
}

impl TrieRows for Nothing {
    fn contract_leaf(&self, _: &ContractAddress) -> Result<ContractLeaf, StateError> {
        Ok(ContractLeaf::default())
    }

    fn class_leaf(&self, _: &ClassHash) -> Result<CompiledClassHash, StateError> {
        Ok(CompiledClassHash::ZERO)
    }
}

/// The tries of a state, which are those of its values or an error.
struct Tries(Result<Overlaid<Nothing>, StateError>);

impl Tries {
    fn of(state: StateAt<'_>, hasher: &dyn Hasher) -> Result<Overlaid<Nothing>, StateError> {
        let mut all = Ok(StateDiff::builder());
        state.store.scan(&[LAYOUT_FIRST], &mut |key, row| {
            let so_far = std::mem::replace(&mut all, Ok(StateDiff::builder()));
            all = so_far.and_then(|diff| {
                set(diff, key, row).map_err(StateError::undecodable(format!("row {key:02x?}")))
            });
            if all.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        let all = all?.build().map_err(|error| StateError::damaged("the rows", error))?;
        let mut tries = Overlaid::new(Nothing);
        let roots = tries.advance(Roots::default(), &all, hasher)?;
        let wanted = [
            (TrieId::Contracts, state.roots.contracts.0, roots.contracts.0),
            (TrieId::Classes, state.roots.classes.0, roots.classes.0),
        ];
        match wanted.into_iter().find(|(_, stated, computed)| stated != computed) {
            None => Ok(tries),
            Some((trie, hash, _)) if hash == Felt::ZERO => {
                Err(StateError::damaged(trie, "there are rows, and it is empty"))
            }
            Some((trie, hash, _)) => Err(StateError::MissingNode(NodeRef { trie, path: Path::ROOT, hash })),
        }
    }

    fn get(&self) -> Result<&Overlaid<Nothing>, StateError> {
        self.0.as_ref().map_err(Clone::clone)
    }
}

impl NodeSource for Tries {
    fn node(&self, at: &NodeRef) -> Result<Option<Node>, StateError> {
        self.get()?.node(at)
    }
}

impl TrieRows for Tries {
    fn contract_leaf(&self, address: &ContractAddress) -> Result<ContractLeaf, StateError> {
        self.get()?.contract_leaf(address)
    }

    fn class_leaf(&self, class_hash: &ClassHash) -> Result<CompiledClassHash, StateError> {
        self.get()?.class_leaf(class_hash)
    }
}

fn read(state: StateAt<'_>, subject: Subject) -> Result<Felt, StateError> {
    match state.store.get(&key_of(&subject))? {
        Some(row) => value_of(&row).map_err(StateError::undecodable(subject)),
        None => Ok(Felt::ZERO),
    }
}

/// The rows of what blocks set.
fn rows_of(blocks: &[&StateDiff]) -> WriteBatch {
    let mut batch = WriteBatch::default();
    let mut set = |subject: Subject, value: Felt| {
        if value == Felt::ZERO {
            batch.delete(key_of(&subject));
        } else {
            batch.put(key_of(&subject), felt_to_be(&value));
        }
    };
    for block in blocks {
        for contract in block.contracts() {
            let address = contract.address;
            contract.class_hash.into_iter().for_each(|class| set(Subject::ClassHash(address), class.0));
            contract.nonce.into_iter().for_each(|nonce| set(Subject::Nonce(address), nonce.0));
            for (slot, value) in &contract.storage {
                set(Subject::Storage(address, *slot), value.0);
            }
        }
        for class in block.classes() {
            set(Subject::CompiledClassHash(class.class_hash), class.compiled_class_hash.0);
        }
    }
    batch
}

impl Layout for Ledger {
    fn name(&self) -> &'static str {
        "ledger"
    }

    fn format_version(&self) -> u32 {
        1
    }

    fn storage_at(
        &self,
        state: StateAt<'_>,
        address: &ContractAddress,
        key: &StorageKey,
    ) -> Result<StorageValue, StateError> {
        read(state, Subject::Storage(*address, *key)).map(StorageValue)
    }

    fn nonce_at(&self, state: StateAt<'_>, address: &ContractAddress) -> Result<Nonce, StateError> {
        read(state, Subject::Nonce(*address)).map(Nonce)
    }

    fn class_hash_at(&self, state: StateAt<'_>, address: &ContractAddress) -> Result<ClassHash, StateError> {
        read(state, Subject::ClassHash(*address)).map(ClassHash)
    }

    fn compiled_class_hash_at(
        &self,
        state: StateAt<'_>,
        class_hash: &ClassHash,
    ) -> Result<CompiledClassHash, StateError> {
        // A Cairo 0 class may have any hash; it has no leaf.
        if TrieKey::try_from(class_hash.0).is_err() {
            return Ok(CompiledClassHash::ZERO);
        }
        read(state, Subject::CompiledClassHash(*class_hash)).map(CompiledClassHash)
    }

    fn stage_values(&self, _: &StateDiff) -> WriteBatch {
        WriteBatch::default()
    }

    fn stage_commitment(
        &self,
        state: StateAt<'_>,
        blocks: &[&StateDiff],
        hasher: &dyn Hasher,
    ) -> Result<StagedCommitment, StateError> {
        let mut tries = Tries::of(state, hasher)?;
        let staged = commit_blocks(&mut tries, state.roots, blocks, hasher, |_| {})?;
        Ok(StagedCommitment { batch: rows_of(blocks), ..staged })
    }

    fn stage_commitment_with_witness(
        &self,
        state: StateAt<'_>,
        block: &StateDiff,
        reads: &[Subject],
        hasher: &dyn Hasher,
    ) -> Result<(StagedCommitment, Witness), StateError> {
        let mut tries = Tries::of(state, hasher)?;
        let (staged, witness) = commit_with_witness(&mut tries, state.roots, block, reads, hasher, |_| {})?;
        Ok((StagedCommitment { batch: rows_of(&[block]), ..staged }, witness))
    }

    fn tries<'a>(&'a self, state: StateAt<'a>) -> Box<dyn TrieRows + Send + 'a> {
        Box::new(Tries(Tries::of(state, &Bulk)))
    }

    fn audit(
        &self,
        state: StateAt<'_>,
        _: &Visited,
        hasher: &dyn Hasher,
        findings: &Findings,
    ) -> Result<(), StateError> {
        foreign_rows(state.store, &[LAYOUT_FIRST], findings)?;
        match Tries::of(state, hasher) {
            Ok(_) => Ok(()),
            Err(error) => findings.damage(Place::Named("the ledger".to_owned()), error),
        }
    }
}
