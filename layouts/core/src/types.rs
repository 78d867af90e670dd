//! One type for each kind of felt, so that an address and a storage key cannot change places.
//!
//! Two families. *Keys* (contract address, storage key) address leaves of a trie of height 251: they hold their 32
//! canonical big-endian bytes, compare as numbers, and exist only below 2^251. *Values* (class hash, nonce, storage
//! value, roots) hold a [`Felt`]; zero means absent everywhere.

use std::fmt;

use crate::felt::{Felt, FeltError, be_words, felt_from_be, felt_to_be, from_words, parse_felt, write_hex};

/// A key of a trie of height 251: an integer below 2^251, as 32 big-endian bytes. Ordered as a number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TrieKey([u8; 32]);

/// A number that cannot be a key of a trie of height 251.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a trie key must be below 2^251")]
pub struct KeyRangeError;

impl TrieKey {
    /// The largest key, 2^251 − 1.
    pub const MAX: Self = {
        let mut bytes = [0xff; 32];
        bytes[0] = 0x07;
        Self(bytes)
    };

    /// Checks the range of 32 big-endian bytes.
    ///
    /// # Errors
    /// [`KeyRangeError`] if the number is 2^251 or more.
    pub fn from_be(bytes: [u8; 32]) -> Result<Self, KeyRangeError> {
        if bytes[0] < 0x08 { Ok(Self(bytes)) } else { Err(KeyRangeError) }
    }

    /// The key as 32 big-endian bytes.
    pub const fn as_be(&self) -> &[u8; 32] {
        &self.0
    }

    /// The key as a felt.
    pub fn to_felt(self) -> Felt {
        from_words(be_words(&self.0))
    }
}

impl TryFrom<Felt> for TrieKey {
    type Error = KeyRangeError;
    fn try_from(felt: Felt) -> Result<Self, KeyRangeError> {
        Self::from_be(felt_to_be(&felt))
    }
}

impl From<u64> for TrieKey {
    fn from(number: u64) -> Self {
        let mut bytes = [0; 32];
        bytes[24..].copy_from_slice(&number.to_be_bytes());
        Self(bytes)
    }
}

impl fmt::Display for TrieKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.to_felt(), f)
    }
}

impl fmt::Debug for TrieKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is not a value of one of the felt types.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseError {
    /// It is not a felt.
    #[error(transparent)]
    Felt(#[from] FeltError),
    /// It is a felt, but too large for a key.
    #[error(transparent)]
    Range(#[from] KeyRangeError),
}

macro_rules! key_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(TrieKey);

        impl $name {
            /// The key of its leaf.
            pub const fn trie_key(&self) -> &TrieKey {
                &self.0
            }
            /// As 32 big-endian bytes.
            pub const fn as_be(&self) -> &[u8; 32] {
                self.0.as_be()
            }
            /// As a felt.
            pub fn to_felt(self) -> Felt {
                self.0.to_felt()
            }
        }
        impl From<TrieKey> for $name {
            fn from(key: TrieKey) -> Self {
                Self(key)
            }
        }
        impl From<u64> for $name {
            fn from(number: u64) -> Self {
                Self(TrieKey::from(number))
            }
        }
        impl TryFrom<Felt> for $name {
            type Error = KeyRangeError;
            fn try_from(felt: Felt) -> Result<Self, KeyRangeError> {
                TrieKey::try_from(felt).map(Self)
            }
        }
        impl std::str::FromStr for $name {
            type Err = ParseError;
            fn from_str(text: &str) -> Result<Self, ParseError> {
                Ok(Self::try_from(parse_felt(text)?)?)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

macro_rules! value_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
        pub struct $name(pub Felt);

        impl $name {
            /// Zero, which everywhere means absent.
            pub const ZERO: Self = Self(Felt::ZERO);
            /// Whether this is zero, that is, absent.
            pub fn is_zero(&self) -> bool {
                self.0 == Felt::ZERO
            }
            /// Checks and reads 32 big-endian bytes.
            ///
            /// # Errors
            /// [`FeltError::TooLarge`] if the number is not below the field's modulus.
            pub fn from_be(bytes: &[u8; 32]) -> Result<Self, FeltError> {
                felt_from_be(bytes).map(Self)
            }
            /// As 32 big-endian bytes.
            pub fn to_be(self) -> [u8; 32] {
                felt_to_be(&self.0)
            }
        }
        impl From<Felt> for $name {
            fn from(felt: Felt) -> Self {
                Self(felt)
            }
        }
        impl From<u64> for $name {
            fn from(number: u64) -> Self {
                Self(Felt::from(number))
            }
        }
        impl std::str::FromStr for $name {
            type Err = ParseError;
            fn from_str(text: &str) -> Result<Self, ParseError> {
                Ok(Self(parse_felt(text)?))
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_hex(&self.0, f)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_hex(&self.0, f)
            }
        }
    };
}

key_type! {
    /// Address of a contract: the key of its leaf in the contracts trie.
    ContractAddress
}
key_type! {
    /// Key of a storage slot: the key of its leaf in the contract's storage trie.
    StorageKey
}
value_type! {
    /// Value of a storage slot, which is also its leaf.
    StorageValue
}
value_type! {
    /// Nonce of a contract.
    Nonce
}
value_type! {
    /// Hash of a contract class. For a Sierra class also the key of its leaf in the classes trie.
    ClassHash
}
value_type! {
    /// Hash of a compiled class (CASM).
    #[doc(alias = "casm hash")]
    CompiledClassHash
}
value_type! {
    /// Root of one contract's storage trie.
    #[doc(alias = "contract state root")]
    StorageRoot
}
value_type! {
    /// Root of the contracts trie.
    ContractsRoot
}
value_type! {
    /// Root of the classes trie.
    ClassesRoot
}
value_type! {
    /// The commitment to the whole state, as a block header carries it.
    #[doc(alias = "global root")]
    #[doc(alias = "state root")]
    #[doc(alias = "new_root")]
    StateCommitment
}
value_type! {
    /// Hash of a block. Carried along, never computed here.
    BlockHash
}

/// Number of a block.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct BlockNumber(pub u64);

impl BlockNumber {
    /// The number after this one; none after the last of 64 bits.
    pub const fn next(self) -> Option<Self> {
        match self.0.checked_add(1) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }
}

impl fmt::Display for BlockNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What tells a state from all others, also from one after a block of the same number, and in a copy of a database that
/// went on by itself: drawn at random for each block, and never used again. Zero is the empty state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct StateId(pub u64);

impl fmt::Display for StateId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stop_below_two_to_the_251() {
        let largest = TrieKey::MAX.to_felt();
        assert_eq!(TrieKey::try_from(largest), Ok(TrieKey::MAX));
        assert_eq!(TrieKey::try_from(largest + Felt::ONE), Err(KeyRangeError));
        assert_eq!(
            "0x800000000000000000000000000000000000000000000000000000000000000".parse::<StorageKey>(),
            Err(ParseError::Range(KeyRangeError))
        );
    }

    #[test]
    fn keys_order_as_numbers() {
        let numbers = [0u64, 1, 255, 256, u64::MAX];
        assert!(numbers.map(StorageKey::from).is_sorted());
        assert!(StorageKey::from(u64::MAX) < StorageKey::from(TrieKey::MAX));
    }
}
