//! The executor's types to ours and back. Both hold the same felts, so nothing here can round or default: a key out of
//! range is an error.

use blockifier::state::cached_state::CommitmentStateDiff;
use flagstone_core::diff::StateDiff;
use flagstone_core::felt::Felt;
use flagstone_core::types::{
    ClassHash, CompiledClassHash, ContractAddress, KeyRangeError, Nonce, StorageKey, StorageValue,
};
use starknet_api::core as api;
use starknet_api::state as api_state;

use super::error::SequencerError;

/// Our types to the executor's.
pub mod to_executor {
    use super::{ClassHash, ContractAddress, Felt, Nonce, SequencerError, StorageKey, api, api_state};

    fn key(felt: Felt) -> Result<api::PatriciaKey, SequencerError> {
        api::PatriciaKey::try_from(felt).map_err(|error| SequencerError::Diff(error.to_string()))
    }

    /// A contract address.
    ///
    /// # Errors
    /// [`SequencerError::Diff`] if the executor has no such address; all of ours are below its bound.
    pub fn address(address: ContractAddress) -> Result<api::ContractAddress, SequencerError> {
        key(address.to_felt()).map(api::ContractAddress)
    }

    /// A storage key.
    ///
    /// # Errors
    /// As [`address`].
    pub fn storage_key(storage_key: StorageKey) -> Result<api_state::StorageKey, SequencerError> {
        key(storage_key.to_felt()).map(api_state::StorageKey)
    }

    /// A class hash.
    pub const fn class_hash(class_hash: ClassHash) -> api::ClassHash {
        api::ClassHash(class_hash.0)
    }

    /// A nonce.
    pub const fn nonce(nonce: Nonce) -> api::Nonce {
        api::Nonce(nonce.0)
    }
}

pub(super) fn address(from: api::ContractAddress) -> Result<ContractAddress, KeyRangeError> {
    ContractAddress::try_from(*from.0.key())
}

pub(super) fn storage_key(from: api_state::StorageKey) -> Result<StorageKey, KeyRangeError> {
    StorageKey::try_from(*from.0.key())
}

/// What the executor's block changed, and the Cairo 0 classes it declared (which the executor's diff does not mention), as a
/// state diff.
///
/// # Errors
/// [`SequencerError::Diff`] if a key is out of range.
pub fn state_diff(
    diff: &CommitmentStateDiff,
    deprecated_classes: &[ClassHash],
) -> Result<StateDiff, SequencerError> {
    let wrong = |what: &str, felt: &Felt| SequencerError::Diff(format!("{what} {felt:#x} is out of range"));
    let at = |from: &api::ContractAddress| address(*from).map_err(|_| wrong("address", from.0.key()));
    let mut builder = StateDiff::builder();
    for (contract, class_hash) in &diff.address_to_class_hash {
        builder = builder.class_hash(at(contract)?, ClassHash(class_hash.0));
    }
    for (contract, nonce) in &diff.address_to_nonce {
        builder = builder.nonce(at(contract)?, Nonce(nonce.0));
    }
    for (contract, entries) in &diff.storage_updates {
        let contract = at(contract)?;
        for (key, value) in entries {
            let key = storage_key(*key).map_err(|_| wrong("storage key", key.0.key()))?;
            builder = builder.storage(contract, key, StorageValue(*value));
        }
    }
    for (class_hash, compiled) in &diff.class_hash_to_compiled_class_hash {
        builder = builder.class(ClassHash(class_hash.0), CompiledClassHash(compiled.0));
    }
    for class_hash in deprecated_classes {
        builder = builder.deprecated_class(*class_hash);
    }
    builder.build().map_err(|error| SequencerError::Diff(error.to_string()))
}
