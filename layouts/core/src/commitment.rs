//! Roots, leaves, and the commitment to the whole state.
//!
//! Source of the rules: the protocol's documentation of the state commitment, checked by recomputing real roots.

use std::fmt;
use std::str::FromStr;

use crate::codec::{DecodeError, Reader, put_short_felt};
use crate::felt::Felt;
use crate::hash;
use crate::types::{
    ClassHash, ClassesRoot, CompiledClassHash, ContractsRoot, Nonce, StateCommitment, StorageRoot,
};

/// Height of all three kinds of trie: keys have this many bits.
pub const TRIE_HEIGHT: usize = 251;
const _: () = assert!(TRIE_HEIGHT == 251);

/// The short string `STARKNET_STATE_V0` as a felt.
pub const STATE_V0: Felt = Felt::from_hex_unchecked("0x535441524b4e45545f53544154455f5630");
/// The short string `CONTRACT_CLASS_LEAF_V0` as a felt.
pub const CLASS_LEAF_V0: Felt = Felt::from_hex_unchecked("0x434f4e54524143545f434c4153535f4c4541465f5630");

/// The roots of the two global tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Roots {
    /// Root of the contracts trie.
    pub contracts: ContractsRoot,
    /// Root of the classes trie.
    pub classes: ClassesRoot,
}

/// How the two roots become one. It depends on the *block's* protocol version and on nothing else, and matters only
/// while the classes trie is empty.
///
/// It is matched without a catch-all: a rule that is overlooked would give wrong roots. So it is not `#[non_exhaustive]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CommitmentRule {
    /// Before 0.14.0: with no class declared, the commitment is the contracts root itself.
    ContractsRootAlone,
    /// From 0.14.0: always the Poseidon hash over both roots, unless the state is empty.
    AlwaysBoth,
}

impl Roots {
    /// The commitment to the state under a rule.
    pub fn commitment(&self, rule: CommitmentRule) -> StateCommitment {
        match (self.contracts.is_zero(), self.classes.is_zero(), rule) {
            (true, true, _) => StateCommitment::ZERO,
            (_, true, CommitmentRule::ContractsRootAlone) => StateCommitment(self.contracts.0),
            _ => StateCommitment(hash::poseidon_hash_many(&[STATE_V0, self.contracts.0, self.classes.0])),
        }
    }

    /// Whether the two rules give different commitments for these roots, so that the version must be known.
    pub fn rule_matters(&self) -> bool {
        self.classes.is_zero() && !self.contracts.is_zero()
    }
}

/// A Starknet protocol version, such as `0.13.1.1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StarknetVersion([u16; 4]);

/// A text that is no protocol version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a starknet version; expected two to four numbers with points between, as in 0.13.5")]
pub struct VersionError(String);

impl StarknetVersion {
    /// The rule for the state commitment of blocks of this version.
    pub fn commitment_rule(self) -> CommitmentRule {
        if self < Self([0, 14, 0, 0]) {
            CommitmentRule::ContractsRootAlone
        } else {
            CommitmentRule::AlwaysBoth
        }
    }

    /// The four numbers, missing ones zero.
    pub const fn numbers(self) -> [u16; 4] {
        self.0
    }

    /// A version from its four numbers.
    pub const fn from_numbers(numbers: [u16; 4]) -> Self {
        Self(numbers)
    }
}

impl FromStr for StarknetVersion {
    type Err = VersionError;
    fn from_str(text: &str) -> Result<Self, VersionError> {
        let wrong = || VersionError(text.to_owned());
        let mut numbers = [0; 4];
        let mut parts = 0;
        for part in text.split('.') {
            let digits_only = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
            let number = part.parse().ok().filter(|_| digits_only).ok_or_else(wrong)?;
            *numbers.get_mut(parts).ok_or_else(wrong)? = number;
            parts += 1;
        }
        if parts < 2 { Err(wrong()) } else { Ok(Self(numbers)) }
    }
}

impl fmt::Display for StarknetVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch, build] = self.0;
        write!(f, "{major}.{minor}.{patch}")?;
        if build == 0 { Ok(()) } else { write!(f, ".{build}") }
    }
}

/// What a contract's leaf commits to. A contract is absent when all three are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ContractLeaf {
    /// Its class.
    pub class_hash: ClassHash,
    /// Root of its storage trie.
    pub storage_root: StorageRoot,
    /// Its nonce.
    pub nonce: Nonce,
}

impl ContractLeaf {
    /// Whether the contract has no leaf.
    pub fn is_absent(&self) -> bool {
        self.class_hash.is_zero() && self.storage_root.is_zero() && self.nonce.is_zero()
    }

    /// The byte form: class hash, storage root and nonce, each a [short felt](crate::codec::put_short_felt).
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(99);
        for felt in [&self.class_hash.0, &self.storage_root.0, &self.nonce.0] {
            put_short_felt(&mut bytes, felt);
        }
        bytes
    }

    /// Reads what [`ContractLeaf::encode`] wrote.
    ///
    /// # Errors
    /// [`DecodeError`] if bytes are missing, too many, or out of range.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut from = Reader::new(bytes);
        let leaf = Self::read(&mut from)?;
        from.end("contract leaf")?;
        Ok(leaf)
    }

    /// Like [`ContractLeaf::decode`], where other bytes may follow.
    ///
    /// # Errors
    /// [`DecodeError`] if bytes are missing or out of range.
    pub fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            class_hash: ClassHash(from.short_felt("class hash")?),
            storage_root: StorageRoot(from.short_felt("storage root")?),
            nonce: Nonce(from.short_felt("nonce")?),
        })
    }
}

/// The pair of felts whose Poseidon hash is a class's leaf.
pub fn class_leaf_preimage(compiled_class_hash: CompiledClassHash) -> [Felt; 2] {
    [CLASS_LEAF_V0, compiled_class_hash.0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_strings_are_their_ascii_bytes() {
        assert_eq!(STATE_V0, Felt::from_bytes_be_slice(b"STARKNET_STATE_V0"));
        assert_eq!(CLASS_LEAF_V0, Felt::from_bytes_be_slice(b"CONTRACT_CLASS_LEAF_V0"));
    }

    #[test]
    fn the_rule_changes_with_0_14_0_and_only_there() {
        for (version, rule) in [
            ("0.1.0", CommitmentRule::ContractsRootAlone),
            ("0.13.6", CommitmentRule::ContractsRootAlone),
            ("0.13.99.7", CommitmentRule::ContractsRootAlone),
            ("0.14.0", CommitmentRule::AlwaysBoth),
            ("0.14", CommitmentRule::AlwaysBoth),
            ("1.0.0", CommitmentRule::AlwaysBoth),
        ] {
            assert_eq!(version.parse::<StarknetVersion>().unwrap().commitment_rule(), rule, "{version}");
        }
    }

    #[test]
    fn versions_are_refused_unless_they_are_numbers_with_points() {
        for text in ["", "1", "0.13.", ".14", "0.14.0.0.0", "0.x", "+0.14", "0.+14", "99999999.0"] {
            assert!(text.parse::<StarknetVersion>().is_err(), "{text}");
        }
        assert_eq!("0.13.1.1".parse::<StarknetVersion>().unwrap().to_string(), "0.13.1.1");
    }

    #[test]
    fn an_empty_state_commits_to_zero_under_both_rules() {
        for rule in [CommitmentRule::ContractsRootAlone, CommitmentRule::AlwaysBoth] {
            assert_eq!(Roots::default().commitment(rule), StateCommitment::ZERO);
        }
        assert!(!Roots::default().rule_matters());
    }

    #[test]
    fn the_rule_matters_only_without_classes() {
        let roots = Roots { contracts: 5.into(), classes: 0.into() };
        assert!(roots.rule_matters());
        assert_eq!(roots.commitment(CommitmentRule::ContractsRootAlone), 5.into());
        assert_ne!(roots.commitment(CommitmentRule::AlwaysBoth), 5.into());
        let roots = Roots { contracts: 5.into(), classes: 6.into() };
        assert!(!roots.rule_matters());
        assert_eq!(
            roots.commitment(CommitmentRule::ContractsRootAlone),
            roots.commitment(CommitmentRule::AlwaysBoth)
        );
    }
}
