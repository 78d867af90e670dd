//! Whose a journal is, and what its places are called: what a store and a journal are held against each other by.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::BuildHasher;
use std::time::SystemTime;

use flagstone_core::types::BlockNumber;

/// What tells a database from all others, drawn at random when it is created. It stands in the directory's marker, in the
/// store, and in each segment of the journal, so that parts of two databases are never taken for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DatabaseId(pub [u8; 16]);

impl DatabaseId {
    /// Draws a new one.
    pub fn fresh() -> Self {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&fresh_salt().to_be_bytes());
        id[8..].copy_from_slice(&fresh_salt().to_be_bytes());
        Self(id)
    }

    /// Reads the text form: 32 hex digits.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let id = u128::from_str_radix(text, 16).ok().filter(|_| digits && text.len() == 32)?;
        Some(Self(id.to_be_bytes()))
    }
}

impl fmt::Display for DatabaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

/// A place in the journal. Later places are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Position {
    /// The segment.
    pub sequence: u64,
    /// The byte in it.
    pub offset: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "byte {} of segment {}", self.offset, self.sequence)
    }
}

/// A block and all after it were taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Refusal {
    /// The first block that was taken back.
    pub block: BlockNumber,
    /// Where the journal says so.
    pub at: Position,
}

/// What the caller knows from elsewhere that the journal must have reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acknowledged {
    /// The last block that was acknowledged.
    pub block: BlockNumber,
    /// The last refusal that this takes account of; a later one may have taken the block back.
    pub refusal: Position,
}

/// Sixty-four bits that nothing else has, as far as chance goes: the standard library's hash keys come from the system's
/// randomness.
pub(crate) fn fresh_salt() -> u64 {
    RandomState::new().hash_one(SystemTime::now())
}
