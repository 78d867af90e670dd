//! What is wrong with a state, and what was looked at.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::error::StateError;
use crate::store::StoreErrorKind;
use crate::trie::{Broken, Path, TrieId};
use crate::types::{BlockNumber, TrieKey};

/// Findings that are kept; more are counted.
pub const FINDINGS_MAX: usize = 10_000;

/// Where something is wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Place {
    /// A row of the engine, or something else that has a name.
    Named(String),
    /// A block's row or frame.
    Block(BlockNumber),
    /// A node, or if the path is whole a leaf.
    Node(TrieId, Path),
    /// A row of the store, by its key.
    Row(Vec<u8>),
}

impl Place {
    /// The leaf of a key.
    pub fn leaf(trie: TrieId, key: &TrieKey) -> Self {
        Self::Node(trie, Path::of_key(key))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => f.write_str(name),
            Self::Block(block) => write!(f, "block {block}"),
            Self::Node(trie, path) => match path.to_key() {
                Some(key) => write!(f, "leaf {key} of the {trie}"),
                None => write!(f, "node at {path} of the {trie}"),
            },
            Self::Row(key) => {
                f.write_str("row 0x")?;
                key.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
    }
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct Finding {
    /// Where.
    pub place: Place,
    /// What.
    pub problem: String,
}

impl Finding {
    /// What is wrong at a place.
    pub const fn new(place: Place, problem: String) -> Self {
        Self { place, problem }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.problem)
    }
}

/// What was found so far, by any number of threads.
#[derive(Debug, Default)]
pub struct Findings {
    kept: Mutex<Vec<Finding>>,
    total: AtomicU64,
    notes: Mutex<BTreeMap<&'static str, u64>>,
}

impl Findings {
    /// Adds one.
    pub fn add(&self, place: Place, problem: impl Into<String>) {
        self.total.fetch_add(1, Ordering::Relaxed);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < FINDINGS_MAX {
            kept.push(Finding { place, problem: problem.into() });
        }
    }

    /// Takes damage for a finding at a place, and passes on any other failure.
    ///
    /// # Errors
    /// The error, if it does not say that something is damaged or missing.
    pub fn damage(&self, place: Place, error: StateError) -> Result<(), StateError> {
        match error {
            StateError::Store(error) if error.kind() != StoreErrorKind::Corrupt => Err(error.into()),
            damage => {
                self.add(place, damage.to_string());
                Ok(())
            }
        }
    }

    /// Counts things that are worth telling and not wrong.
    pub fn note(&self, what: &'static str, count: u64) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        *notes.entry(what).or_default() += count;
    }

    /// How many were found, kept or not.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Those that were kept, in the order of their places, and the notes.
    pub fn into_parts(self) -> (Vec<Finding>, BTreeMap<&'static str, u64>) {
        let mut kept = self.kept.into_inner().unwrap_or_else(PoisonError::into_inner);
        kept.sort();
        (kept, self.notes.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes a broken place of a trie for a finding, as [`Findings::damage`].
    ///
    /// # Errors
    /// The error, if it does not say that something is damaged or missing.
    pub fn broken(&self, broken: Broken) -> Result<(), StateError> {
        self.damage(Place::Node(broken.trie, broken.path), *broken.problem)
    }
}

/// What a state has, as far as it could be visited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Visited {
    /// Nodes of all tries.
    pub nodes: u64,
    /// Leaves of storage tries.
    pub storage_entries: u64,
    /// Leaves of the contracts trie.
    pub contracts: u64,
    /// Leaves of the classes trie.
    pub classes: u64,
}
