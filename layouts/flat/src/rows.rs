//! Keys and rows, as the layout's README draws them.

use flagstone_core::codec::{DecodeError, Reader, put_short_felt};
use flagstone_core::error::StateError;
use flagstone_core::felt::Felt;
use flagstone_core::store::keyspace::LAYOUT_FIRST;
use flagstone_core::store::{Row, StoreRead, WriteBatch};
use flagstone_core::trie::{Path, TrieId};
use flagstone_core::types::{ClassHash, ContractAddress, StorageKey};

use crate::record::DEPTH;

const STORAGE: u8 = LAYOUT_FIRST;
const CLASS_HASH: u8 = LAYOUT_FIRST + 1;
const NONCE: u8 = LAYOUT_FIRST + 2;
const COMPILED_CLASS_HASH: u8 = LAYOUT_FIRST + 3;

const CONTRACT_LEAF: u8 = 0x20;
const CLASS_LEAF: u8 = 0x21;
const RECORD: u8 = 0x23;

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

pub fn class_leaf(class_hash: &[u8; 32]) -> Vec<u8> {
    key(CLASS_LEAF, class_hash)
}

/// A trie's records are one range, in the order of their paths: a byte for each band, so that a record comes before those
/// below it.
pub fn record(trie: &TrieId, path: &Path) -> Vec<u8> {
    let mut key = Vec::with_capacity(48);
    key.push(RECORD);
    trie.encode(&mut key);
    let band = |start: usize| path.bits(start, DEPTH) as u8;
    key.extend((0..path.len()).step_by(DEPTH).map(band));
    key
}

/// Writes a felt's row, or deletes it if the felt is zero.
pub fn put_felt(batch: &mut WriteBatch, key: Vec<u8>, felt: &Felt) {
    match self::felt(felt) {
        Some(row) => batch.put(key, row),
        None => batch.delete(key),
    }
}

/// A felt's row; a zero has none.
pub fn felt(felt: &Felt) -> Row {
    let mut row = Vec::with_capacity(33);
    put_short_felt(&mut row, felt);
    (*felt != Felt::ZERO).then_some(row)
}

/// Reads a felt's row.
pub fn decode_felt(row: &[u8]) -> Result<Felt, DecodeError> {
    let mut from = Reader::new(row);
    let felt = from.short_felt("value")?;
    from.end("value")?;
    if felt == Felt::ZERO { Err(DecodeError::new("value", "is zero, which has no row")) } else { Ok(felt) }
}

/// A felt's row; zero if there is none.
pub fn felt_at(store: &dyn StoreRead, key: &[u8], what: impl FnOnce() -> String) -> Result<Felt, StateError> {
    match store.get(key)? {
        Some(row) => decode_felt(&row).map_err(|error| StateError::damaged(what(), error)),
        None => Ok(Felt::ZERO),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_a_trie_are_ordered_by_path_and_begin_with_the_trie() {
        let bits = |bits: &str| bits.chars().fold(Path::ROOT, |path, bit| path.child(bit == '1'));
        let paths =
            ["", "00000", "0000000000", "0000011111", "00001", "11110", "1111000000", "11111"].map(bits);
        for trie in [TrieId::Contracts, TrieId::Classes, TrieId::Storage(7.into())] {
            let keys = paths.map(|path| record(&trie, &path));
            assert!(keys.is_sorted());
            assert!(keys.iter().all(|key| key.starts_with(&record(&trie, &Path::ROOT))));
        }
        assert_eq!(record(&TrieId::Contracts, &bits("1111000001")), [0x23, 0, 30, 1]);
    }
}
