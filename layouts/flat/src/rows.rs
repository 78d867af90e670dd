//! Keys and rows, as the layout's README draws them.

use flagstone_core::codec::{DecodeError, Reader, put_short_felt};
use flagstone_core::felt::Felt;
use flagstone_core::store::WriteBatch;
use flagstone_core::store::keyspace::LAYOUT_FIRST;
use flagstone_core::trie::NodeRef;
use flagstone_core::types::{ClassHash, ContractAddress, StorageKey};

const STORAGE: u8 = LAYOUT_FIRST;
const CLASS_HASH: u8 = LAYOUT_FIRST + 1;
const NONCE: u8 = LAYOUT_FIRST + 2;
const COMPILED_CLASS_HASH: u8 = LAYOUT_FIRST + 3;

const CONTRACT_LEAF: u8 = 0x20;
const CLASS_LEAF: u8 = 0x21;
const NODE: u8 = 0x22;

fn key(prefix: u8, rest: &[u8; 32]) -> Vec<u8> {
    let mut key = Vec::with_capacity(33);
    key.push(prefix);
    key.extend_from_slice(rest);
    key
}

pub fn storage(address: &ContractAddress, storage_key: &StorageKey) -> Vec<u8> {
    let mut key = Vec::with_capacity(65);
    key.push(STORAGE);
    key.extend_from_slice(address.as_be());
    key.extend_from_slice(storage_key.as_be());
    key
}

pub fn class_hash(address: &ContractAddress) -> Vec<u8> {
    key(CLASS_HASH, address.as_be())
}

pub fn nonce(address: &ContractAddress) -> Vec<u8> {
    key(NONCE, address.as_be())
}

pub fn compiled_class_hash(class_hash: &ClassHash) -> Vec<u8> {
    key(COMPILED_CLASS_HASH, &class_hash.to_be())
}

pub fn contract_leaf(address: &ContractAddress) -> Vec<u8> {
    key(CONTRACT_LEAF, address.as_be())
}

pub fn class_leaf(class_hash: &ClassHash) -> Vec<u8> {
    key(CLASS_LEAF, &class_hash.to_be())
}

pub fn node(at: &NodeRef) -> Vec<u8> {
    at.path_key(NODE)
}

/// Writes a felt's row, or deletes it if the felt is zero.
pub fn put_felt(batch: &mut WriteBatch, key: Vec<u8>, felt: &Felt) {
    if *felt == Felt::ZERO {
        return batch.delete(key);
    }
    let mut row = Vec::with_capacity(33);
    put_short_felt(&mut row, felt);
    batch.put(key, row);
}

/// Reads a felt's row.
pub fn decode_felt(row: &[u8]) -> Result<Felt, DecodeError> {
    let mut from = Reader::new(row);
    let felt = from.short_felt("value")?;
    from.end("value")?;
    if felt == Felt::ZERO { Err(DecodeError::new("value", "is zero, which has no row")) } else { Ok(felt) }
}
