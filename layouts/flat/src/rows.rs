//! Keys and rows, as the layout's README draws them.

use flagstone_core::codec::{DecodeError, Reader, put_short_felt};
use flagstone_core::commitment::ContractLeaf;
use flagstone_core::diff::Subject;
use flagstone_core::error::StateError;
use flagstone_core::felt::Felt;
use flagstone_core::scrub::ValueDigest;
use flagstone_core::store::keyspace::LAYOUT_FIRST;
use flagstone_core::store::{StoreRead, WriteBatch};
use flagstone_core::trie::{Path, TrieId};
use flagstone_core::types::{ClassHash, ContractAddress, StorageKey};

use crate::record::{DEPTH, Record};

pub const STORAGE: u8 = LAYOUT_FIRST;
pub const CLASS_HASH: u8 = LAYOUT_FIRST + 1;
pub const NONCE: u8 = LAYOUT_FIRST + 2;
pub const COMPILED_CLASS_HASH: u8 = LAYOUT_FIRST + 3;

pub const CONTRACT_LEAF: u8 = 0x20;
pub const CLASS_LEAF: u8 = 0x21;
pub const RECORD: u8 = 0x23;

/// First bytes of all rows.
pub const PREFIXES: [u8; 7] =
    [STORAGE, CLASS_HASH, NONCE, COMPILED_CLASS_HASH, CONTRACT_LEAF, CLASS_LEAF, RECORD];

/// A key of one address or class hash.
pub type ShortKey = [u8; 33];

fn key(prefix: u8, rest: &[u8; 32]) -> ShortKey {
    let mut key = [prefix; 33];
    key[1..].copy_from_slice(rest);
    key
}

pub fn storage(address: &ContractAddress, storage_key: &StorageKey) -> [u8; 65] {
    let mut key = [STORAGE; 65];
    key[1..33].copy_from_slice(address.as_be());
    key[33..].copy_from_slice(storage_key.as_be());
    key
}

pub fn class_hash(address: &ContractAddress) -> ShortKey {
    key(CLASS_HASH, address.as_be())
}

pub fn nonce(address: &ContractAddress) -> ShortKey {
    key(NONCE, address.as_be())
}

pub fn compiled_class_hash(class_hash: &ClassHash) -> ShortKey {
    key(COMPILED_CLASS_HASH, &class_hash.to_be())
}

/// The key of whatever a diff can set.
pub fn value(subject: &Subject) -> Vec<u8> {
    match subject {
        Subject::Storage(address, key) => storage(address, key).to_vec(),
        Subject::Nonce(address) => nonce(address).to_vec(),
        Subject::ClassHash(address) => class_hash(address).to_vec(),
        Subject::CompiledClassHash(hash) => compiled_class_hash(hash).to_vec(),
    }
}

pub fn contract_leaf(address: &ContractAddress) -> ShortKey {
    key(CONTRACT_LEAF, address.as_be())
}

pub fn class_leaf(class_hash: &[u8; 32]) -> ShortKey {
    key(CLASS_LEAF, class_hash)
}

/// What the row of a contract's leaf says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LeafRow {
    /// What the leaf commits to.
    pub leaf: ContractLeaf,
    /// The contract's value rows, at the height of the tries.
    pub values: ValueDigest,
}

impl LeafRow {
    pub fn encode(&self) -> Vec<u8> {
        let mut row = self.leaf.encode();
        self.values.encode(&mut row);
        row
    }

    pub fn decode(row: &[u8]) -> Result<Self, DecodeError> {
        let mut from = Reader::new(row);
        Ok(Self { leaf: ContractLeaf::read(&mut from)?, values: ValueDigest::decode(from)? })
    }

    /// The row at a contract; of an absent contract if there is none.
    pub fn at(store: &dyn StoreRead, address: &ContractAddress) -> Result<Self, StateError> {
        match store.get(&contract_leaf(address))? {
            Some(row) => {
                Self::decode(&row).map_err(StateError::undecodable(format!("leaf of contract {address}")))
            }
            None => Ok(Self::default()),
        }
    }
}

/// A trie's records are one range, in the order of their paths: a byte for each band, so that a record comes before those
/// below it.
pub fn record(trie: &TrieId, path: &Path) -> Vec<u8> {
    let mut key = Vec::with_capacity(48);
    record_key(trie, path, &mut key);
    key
}

/// Appends a record's key.
pub fn record_key(trie: &TrieId, path: &Path, key: &mut Vec<u8>) {
    key.push(RECORD);
    trie.encode(key);
    let band = |start: usize| path.bits(start, DEPTH) as u8;
    key.extend((0..path.len()).step_by(DEPTH).map(band));
}

/// What is kept in memory of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cached {
    /// The record of a trie at a path.
    Record(TrieId, Path),
    /// A contract's leaf.
    Leaf(ContractAddress),
}

/// What is kept in memory of the row at a key; `None` for a row that is not kept.
pub fn cached_of_key(key: &[u8]) -> Option<Cached> {
    let mut from = Reader::new(key.get(1..)?);
    match *key.first()? {
        CONTRACT_LEAF => Some(Cached::Leaf(from.key("contract address").ok()?.into())),
        RECORD => {
            let trie = TrieId::decode(&mut from).ok()?;
            let bands = from.bytes("bands", from.remaining()).ok()?;
            let bits = bands.iter().flat_map(|band| (0..DEPTH).rev().map(move |bit| band >> bit & 1 == 1));
            Some(Cached::Record(trie, bits.fold(Path::ROOT, |path, bit| path.child(bit))))
        }
        _ => None,
    }
}

/// Writes a record's row, or deletes it if the record has none.
pub fn put_record(batch: &mut WriteBatch, trie: &TrieId, path: &Path, record: &Record) {
    match record.row() {
        Some(row) => batch.put_with(|key| record_key(trie, path, key), |out| out.extend_from_slice(row)),
        None => batch.delete(self::record(trie, path)),
    }
}

/// Writes a felt's row, or deletes it if the felt is zero.
pub fn put_felt(batch: &mut WriteBatch, key: impl AsRef<[u8]>, felt: &Felt) {
    if *felt == Felt::ZERO {
        batch.delete(key);
    } else {
        batch.put_with(|out| out.extend_from_slice(key.as_ref()), |row| put_short_felt(row, felt));
    }
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
            let named = keys.iter().map(|key| cached_of_key(key).unwrap());
            assert!(named.eq(paths.map(|path| Cached::Record(trie, path))));
        }
        assert_eq!(record(&TrieId::Contracts, &bits("1111000001")), [0x23, 0, 30, 1]);
        assert_eq!(cached_of_key(&contract_leaf(&7.into())), Some(Cached::Leaf(7.into())));
        assert_eq!(cached_of_key(&nonce(&7.into())), None);
    }
}
