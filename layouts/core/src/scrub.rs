//! Finding value rows that are lost or stale, without the tries.
//!
//! A row that is damaged says so; one that is missing says nothing, and reads as zero. So a layout that keeps values in rows
//! of their own keeps, for each contract, how many storage values it has and a digest of them ([`ValueDigest`]), brought
//! forward by what each block changes, from the *old values as the tries say them*. A scrub reads rows in order, some at a
//! time, and compares; blocks may be committed between its steps.

use twox_hash::XxHash3_128;

use crate::codec::{DecodeError, Reader};
use crate::felt::Felt;
use crate::outcome::findings::{Finding, Place};
use crate::types::{ClassHash, ContractAddress, StorageKey, StorageValue, TrieKey};

/// Number and digest of a contract's storage values.
///
/// The digest is the sum, modulo 2^128, of a hash of each key with its value (XXH3 with 128 bits over the 64 bytes of both),
/// so that it does not depend on an order and changes with one value in constant time. It is made for rows that a disk or a
/// store lost, and not against somebody who chooses them: nothing that it says is trusted further than that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ValueDigest {
    count: u64,
    sum: u128,
}

impl ValueDigest {
    /// How many values there are.
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Takes in that a slot has another value than before; zero is none.
    pub fn change(&mut self, key: &StorageKey, before: &StorageValue, after: &StorageValue) {
        if before == after {
            return;
        }
        if before.0 != Felt::ZERO {
            self.count = self.count.wrapping_sub(1);
            self.sum = self.sum.wrapping_sub(print(key, before));
        }
        if after.0 != Felt::ZERO {
            self.count = self.count.wrapping_add(1);
            self.sum = self.sum.wrapping_add(print(key, after));
        }
    }

    /// The byte form: number and digest, big-endian, 24 bytes; nothing if there are no values.
    pub fn encode(&self, out: &mut Vec<u8>) {
        if *self != Self::default() {
            out.extend_from_slice(&self.count.to_be_bytes());
            out.extend_from_slice(&self.sum.to_be_bytes());
        }
    }

    /// Reads what [`ValueDigest::encode`] wrote, up to the end of the bytes.
    ///
    /// # Errors
    /// [`DecodeError`] if bytes are missing, too many, or say in another way that there is nothing.
    pub fn decode(mut from: Reader<'_>) -> Result<Self, DecodeError> {
        if from.remaining() == 0 {
            return Ok(Self::default());
        }
        let count = from.u64("number of values")?;
        let sum = u128::from_be_bytes(from.array("digest of values")?);
        from.end("digest of values")?;
        let digest = Self { count, sum };
        if digest == Self::default() {
            return Err(DecodeError::new("digest of values", "is of none, which has no bytes"));
        }
        Ok(digest)
    }
}

fn print(key: &StorageKey, value: &StorageValue) -> u128 {
    let mut bytes = [0; 64];
    bytes[..32].copy_from_slice(key.as_be());
    bytes[32..].copy_from_slice(&value.to_be());
    XxHash3_128::oneshot(&bytes)
}

/// How far a scrub has come: over all contracts, and all classes after them, ascending.
#[derive(Debug, Clone)]
pub struct Scrub {
    at: At,
    /// The last slot of the contract that was read.
    after: Option<StorageKey>,
    /// What was read of the contract so far.
    found: ValueDigest,
}

/// What a scrub reads next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// The first contract from this address on.
    Contract(ContractAddress),
    /// The first class from this key on.
    Class(TrieKey),
    /// Nothing is left.
    End,
}

/// What some steps of a scrub did.
///
/// Layouts build it by a literal, so it is not `#[non_exhaustive]`.
#[derive(Debug, Default)]
pub struct Scrubbed {
    /// Rows that were read.
    pub rows: u64,
    /// What is wrong.
    pub findings: Vec<Contradiction>,
}

/// Rows that contradict one another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contradiction {
    /// The contract whose values cannot be trusted; `None` if it is a class's.
    pub contract: Option<ContractAddress>,
    /// What is wrong.
    pub finding: Finding,
}

impl Default for Scrub {
    fn default() -> Self {
        let at = At::Contract(ContractAddress::default());
        Self { at, after: None, found: ValueDigest::default() }
    }
}

impl Scrub {
    /// What is read next.
    pub const fn at(&self) -> At {
        self.at
    }

    /// The contract of whose slots some are read already, with the last one of them.
    pub const fn inside(&self) -> Option<(ContractAddress, StorageKey)> {
        match (self.at, self.after) {
            (At::Contract(address), Some(key)) => Some((address, key)),
            _ => None,
        }
    }

    /// What was read of the contract so far.
    pub const fn found(&self) -> ValueDigest {
        self.found
    }

    /// Goes on from there.
    pub fn go_to(&mut self, at: At) {
        *self = Self { at, ..Self::default() };
    }

    /// Takes in a slot that was read.
    pub fn read(&mut self, key: StorageKey, value: &StorageValue) {
        self.found.change(&key, &StorageValue::default(), value);
        self.after = Some(key);
    }

    /// Takes in that a slot of the contract has changed since it was read, if it was.
    pub fn changed(&mut self, key: &StorageKey, before: &StorageValue, after: &StorageValue) {
        if self.after.is_some_and(|last| *key <= last) {
            self.found.change(key, before, after);
        }
    }

    /// Begins once more with the contract that is being read.
    pub fn begin_contract_again(&mut self) {
        self.go_to(self.at);
    }

    /// Goes on behind the contract or class that was read.
    pub fn pass(&mut self) {
        let behind = |key: &TrieKey| TrieKey::try_from(key.to_felt() + Felt::ONE).ok();
        self.go_to(match self.at {
            At::Contract(address) => behind(address.trie_key())
                .map_or(At::Class(TrieKey::default()), |key| At::Contract(key.into())),
            At::Class(key) => behind(&key).map_or(At::End, At::Class),
            At::End => At::End,
        });
    }
}

impl Contradiction {
    /// Of a contract's values.
    pub fn of_contract(address: ContractAddress, problem: String) -> Self {
        let place = Place::Named(format!("the value rows of contract {address}"));
        Self { contract: Some(address), finding: Finding { place, problem } }
    }

    /// Of a class.
    pub fn of_class(class_hash: ClassHash, problem: String) -> Self {
        let place = Place::Named(format!("the value row of class {class_hash}"));
        Self { contract: None, finding: Finding { place, problem } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(digest: &mut ValueDigest, key: u64, before: u64, after: u64) {
        digest.change(&key.into(), &before.into(), &after.into());
    }

    #[test]
    fn a_digest_is_that_of_the_values_whatever_the_way_there() {
        let (mut straight, mut around) = (ValueDigest::default(), ValueDigest::default());
        change(&mut straight, 1, 0, 10);
        change(&mut straight, 2, 0, 20);
        for (key, before, after) in [(3, 0, 7), (2, 0, 5), (1, 0, 10), (3, 7, 0), (2, 5, 20), (9, 4, 4)] {
            change(&mut around, key, before, after);
        }
        assert_eq!((straight, straight.count()), (around, 2));
        for (key, before, after) in [(1, 10, 0), (2, 20, 0)] {
            change(&mut around, key, before, after);
        }
        assert_eq!(around, ValueDigest::default());
    }

    #[test]
    fn it_tells_apart_what_a_lost_or_exchanged_row_leaves() {
        let of = |values: &[(u64, u64)]| {
            let mut digest = ValueDigest::default();
            values.iter().for_each(|(key, value)| change(&mut digest, *key, 0, *value));
            digest
        };
        let all = [
            of(&[(1, 10), (2, 20)]),
            of(&[(1, 20), (2, 10)]),
            of(&[(1, 10)]),
            of(&[(1, 10), (2, 21)]),
            of(&[(1, 10), (3, 20)]),
            of(&[]),
        ];
        for (index, digest) in all.iter().enumerate() {
            assert!(!all[..index].contains(digest), "{index}");
        }
    }

    #[test]
    fn its_byte_form_is_one() {
        let mut digest = ValueDigest::default();
        let bytes = |digest: &ValueDigest| {
            let mut bytes = Vec::new();
            digest.encode(&mut bytes);
            bytes
        };
        assert_eq!(bytes(&digest), Vec::<u8>::new());
        change(&mut digest, 1, 0, 10);
        let encoded = bytes(&digest);
        assert_eq!(encoded.len(), 24);
        assert_eq!(ValueDigest::decode(Reader::new(&encoded)).unwrap(), digest);
        for wrong in [&encoded[..23], &[&encoded[..], &[0]].concat(), &[0; 24]] {
            assert!(ValueDigest::decode(Reader::new(wrong)).is_err());
        }
    }

    #[test]
    fn what_changes_behind_a_scrub_is_taken_in_and_what_changes_before_it_is_read() {
        let mut scrub = Scrub::default();
        scrub.read(1.into(), &10.into());
        scrub.read(5.into(), &50.into());
        scrub.changed(&1.into(), &10.into(), &0.into());
        scrub.changed(&3.into(), &0.into(), &30.into());
        scrub.changed(&9.into(), &90.into(), &91.into());
        scrub.read(9.into(), &91.into());
        let mut now = ValueDigest::default();
        [(3, 30), (5, 50), (9, 91)].into_iter().for_each(|(key, value)| change(&mut now, key, 0, value));
        assert_eq!(scrub.found(), now);
    }

    #[test]
    fn a_scrub_goes_over_all_contracts_and_classes_and_ends() {
        let mut scrub = Scrub::default();
        scrub.pass();
        assert_eq!(scrub.at(), At::Contract(1.into()));
        let last = TrieKey::MAX;
        scrub.go_to(At::Contract(last.into()));
        scrub.pass();
        assert_eq!(scrub.at(), At::Class(TrieKey::default()));
        scrub.go_to(At::Class(last));
        scrub.pass();
        assert_eq!(scrub.at(), At::End);
    }
}
