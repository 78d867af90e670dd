//! Visiting everything that a state has, and telling what is wrong with it.
//!
//! [`audit_tries`] reads every node and leaf of a state and computes every hash. What a layout has beside the tries it
//! holds against them itself, in [`Layout::audit`](crate::layout::Layout::audit), for which there are helpers here. None
//! of this ends at damage: each thing that is wrong becomes a [`Finding`], and what cannot be visited because of it is
//! left out. Only a store that fails in another way than by damage ends it.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering as Atomic};
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use crate::commit::{TrieRows, contract_leaf_hashes};
use crate::commitment::{ContractLeaf, Roots, class_leaf_preimage};
use crate::error::StateError;
use crate::felt::Felt;
use crate::hash::Hasher;
use crate::store::{StoreError, StoreErrorKind, StoreRead, keyspace};
use crate::trie::{Broken, HashFunction, Leaves, Path, TrieId, hash_pairs};
use crate::types::{BlockNumber, ClassHash, ContractAddress, TrieKey};

/// Findings that are kept; more are counted.
pub const FINDINGS_MAX: usize = 10_000;

/// Contract or class leaves that are looked at together.
const LEAVES_BATCH: usize = 1024;

/// After so many leaves a storage trie counts as large, and what is left of it is walked in parts.
const SPLIT_AFTER: usize = 4096;
const SPLIT_PARTS: usize = 32;

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
        self.total.fetch_add(1, Atomic::Relaxed);
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
        self.total.load(Atomic::Relaxed)
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

/// Visits all tries of a state: every node is there and can stand where it stands, every hash is that of its content, and
/// the leaves of contracts and classes commit to what their rows say. `progress` is told of storage entries now and then.
///
/// # Errors
/// [`StateError::Store`] if the store fails otherwise than by damage.
pub fn audit_tries(
    rows: &dyn TrieRows,
    roots: Roots,
    hasher: &dyn Hasher,
    findings: &Findings,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Visited, StateError> {
    let auditor =
        Auditor { rows, hasher, findings, progress, nodes: AtomicU64::new(0), entries: AtomicU64::new(0) };
    let (contracts, classes) =
        rayon::join(|| auditor.contracts(roots.contracts.0), || auditor.classes(roots.classes.0));
    Ok(Visited {
        contracts: contracts?,
        classes: classes?,
        nodes: auditor.nodes.into_inner(),
        storage_entries: auditor.entries.into_inner(),
    })
}

struct Auditor<'a> {
    rows: &'a dyn TrieRows,
    hasher: &'a dyn Hasher,
    findings: &'a Findings,
    progress: &'a (dyn Fn(u64) + Sync),
    nodes: AtomicU64,
    entries: AtomicU64,
}

impl<'a> Auditor<'a> {
    fn leaves(&self, trie: TrieId, root: Felt) -> Leaves<'a> {
        Leaves::new(self.rows, trie, root).verified(self.hasher)
    }

    /// Up to `most` leaves of a walk; what is broken becomes findings.
    fn take(&self, walk: &mut Leaves<'_>, most: usize) -> Result<Vec<(TrieKey, Felt)>, StateError> {
        let mut leaves = Vec::new();
        while leaves.len() < most {
            match walk.next() {
                Some(Ok(leaf)) => leaves.push(leaf),
                Some(Err(broken)) => self.findings.broken(broken)?,
                None => break,
            }
        }
        Ok(leaves)
    }

    /// All of a trie whose leaves are hashes of rows, a batch at a time. Returns how many leaves it has.
    fn in_batches(
        &self,
        trie: TrieId,
        root: Felt,
        mut batch: impl FnMut(&[(TrieKey, Felt)]) -> Result<(), StateError>,
    ) -> Result<u64, StateError> {
        let mut walk = self.leaves(trie, root);
        let mut total = 0;
        loop {
            let leaves = self.take(&mut walk, LEAVES_BATCH)?;
            if leaves.is_empty() {
                self.nodes.fetch_add(walk.nodes(), Atomic::Relaxed);
                return Ok(total);
            }
            total += leaves.len() as u64;
            batch(&leaves)?;
        }
    }

    fn classes(&self, root: Felt) -> Result<u64, StateError> {
        self.in_batches(TrieId::Classes, root, |leaves| {
            let mut read = Vec::new();
            for (key, leaf) in leaves {
                match self.rows.class_leaf(&ClassHash(key.to_felt())) {
                    Ok(compiled) => read.push((key, leaf, compiled)),
                    Err(error) => self.findings.damage(Place::leaf(TrieId::Classes, key), error)?,
                }
            }
            let pairs: Vec<_> = read.iter().map(|(.., compiled)| class_leaf_preimage(*compiled)).collect();
            let hashes = hash_pairs(self.hasher, HashFunction::Poseidon, &pairs);
            for ((key, leaf, compiled), hash) in read.into_iter().zip(hashes) {
                self.same_leaf(TrieId::Classes, key, leaf, hash, compiled.is_zero());
            }
            Ok(())
        })
    }

    fn contracts(&self, root: Felt) -> Result<u64, StateError> {
        self.in_batches(TrieId::Contracts, root, |leaves| {
            let read = leaves.par_iter().map(|(key, leaf)| {
                match self.rows.contract_leaf(&ContractAddress::from(*key)) {
                    Ok(content) => Ok(Some((*key, *leaf, content))),
                    Err(error) => {
                        self.findings.damage(Place::leaf(TrieId::Contracts, key), error).map(|()| None)
                    }
                }
            });
            let read: Vec<_> = read.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect();
            let contents: Vec<ContractLeaf> = read.iter().map(|(.., content)| *content).collect();
            let hashes = contract_leaf_hashes(self.hasher, &contents);
            for ((key, leaf, content), hash) in read.iter().zip(hashes) {
                self.same_leaf(TrieId::Contracts, key, leaf, hash, content.is_absent());
            }
            read.par_iter().try_for_each(|(key, _, content)| {
                self.storage(self.leaves(TrieId::Storage((*key).into()), content.storage_root.0))
            })
        })
    }

    fn same_leaf(&self, trie: TrieId, key: &TrieKey, leaf: &Felt, hash: Felt, absent: bool) {
        if absent {
            self.findings.add(Place::leaf(trie, key), "it is in the trie, and its row is missing");
        } else if hash != *leaf {
            let problem = format!("the trie says {leaf:#x}, its row hashes to {hash:#x}");
            self.findings.add(Place::leaf(trie, key), problem);
        }
    }

    /// A storage trie, or a part of one.
    fn storage(&self, mut walk: Leaves<'_>) -> Result<(), StateError> {
        let count = self.take(&mut walk, SPLIT_AFTER)?.len();
        let before = self.entries.fetch_add(count as u64, Atomic::Relaxed);
        (self.progress)(before + count as u64);
        if count < SPLIT_AFTER {
            self.nodes.fetch_add(walk.nodes(), Atomic::Relaxed);
            return Ok(());
        }
        walk.split(SPLIT_PARTS).into_par_iter().try_for_each(|part| self.storage(part))
    }
}

/// Visits all rows under a prefix, also behind damaged ones, each of which is a finding.
///
/// # Errors
/// [`StoreError`] if the store fails otherwise than by damage.
pub fn scan_rows(
    store: &dyn StoreRead,
    prefix: &[u8],
    findings: &Findings,
    visit: &mut dyn FnMut(&[u8], &[u8]),
) -> Result<(), StoreError> {
    let mut scan = Scan { store, findings, visit, last: None, failures_left: FAILURES_MAX };
    scan.prefix(prefix)
}

/// Damage in more places than this, and a scan is given up: the store, not a row, is broken.
const FAILURES_MAX: u32 = 20_000;

struct Scan<'a> {
    store: &'a dyn StoreRead,
    findings: &'a Findings,
    visit: &'a mut dyn FnMut(&[u8], &[u8]),
    /// The key visited last.
    last: Option<Vec<u8>>,
    failures_left: u32,
}

impl Scan<'_> {
    /// All rows under a prefix. A store cannot begin a scan behind a damaged row; so if there is one, rows are asked for by
    /// ever longer prefixes, until those with the damaged row under them have no other.
    fn prefix(&mut self, prefix: &[u8]) -> Result<(), StoreError> {
        let Err(error) = self.straight(prefix) else { return Ok(()) };
        if error.kind() != StoreErrorKind::Corrupt {
            return Err(error);
        }
        if self.failures_left == 0 {
            return Ok(());
        }
        self.failures_left -= 1;
        if self.failures_left == 0 {
            self.findings.add(Place::Row(prefix.to_vec()), format!("this and what follows: {error}"));
            return Ok(());
        }
        match self.store.get(prefix) {
            Err(error) if error.kind() == StoreErrorKind::Corrupt => {
                self.findings.add(Place::Row(prefix.to_vec()), error.to_string());
            }
            Err(error) => return Err(error),
            Ok(_) => {}
        }
        (0..=u8::MAX).try_for_each(|byte| self.prefix(&[prefix, &[byte]].concat()))
    }

    /// The rows under a prefix that were not visited yet, up to a damaged one.
    fn straight(&mut self, prefix: &[u8]) -> Result<(), StoreError> {
        let (last, visit) = (&mut self.last, &mut *self.visit);
        self.store.scan(prefix, &mut |key, row| {
            if last.as_deref().is_none_or(|last| last < key) {
                visit(key, row);
                let noted = last.get_or_insert_default();
                noted.clear();
                noted.extend_from_slice(key);
            }
            ControlFlow::Continue(())
        })
    }
}

/// A row that must be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpectedRow {
    /// Its key.
    pub key: Vec<u8>,
    /// Its bytes.
    pub row: Vec<u8>,
    /// What it is a row of.
    pub of: Place,
}

/// Holds the rows under a prefix against those that must be there, ascending by key: none missing, none other, none too
/// many. `what` names the rows.
///
/// # Errors
/// [`StoreError`] if the store fails otherwise than by damage.
pub fn match_rows(
    store: &dyn StoreRead,
    prefix: &[u8],
    what: &str,
    expected: &mut dyn Iterator<Item = ExpectedRow>,
    findings: &Findings,
) -> Result<(), StoreError> {
    let mut expected = expected.peekable();
    let missing = |of: Place| findings.add(of, format!("its {what} is missing or cannot be read"));
    scan_rows(store, prefix, findings, &mut |key, row| {
        while let Some(skipped) = expected.next_if(|next| next.key.as_slice() < key) {
            missing(skipped.of);
        }
        match expected.peek().map(|next| next.key.as_slice().cmp(key)) {
            Some(Ordering::Equal) => {
                let next = expected.next();
                if let Some(next) = next.filter(|next| next.row != row) {
                    findings.add(next.of, format!("its {what} does not say what the trie says"));
                }
            }
            _ => findings.add(Place::Row(key.to_vec()), format!("a {what} of nothing that is in a trie")),
        }
    })?;
    expected.for_each(|left| missing(left.of));
    Ok(())
}

/// Rows in the layouts' part of a store that begin with none of these bytes: nobody's.
///
/// # Errors
/// [`StoreError`] if the store fails otherwise than by damage.
pub fn foreign_rows(store: &dyn StoreRead, known: &[u8], findings: &Findings) -> Result<(), StoreError> {
    for first in (keyspace::LAYOUT_FIRST..=u8::MAX).filter(|first| !known.contains(first)) {
        scan_rows(store, &[first], findings, &mut |key, _| {
            findings.add(Place::Row(key.to_vec()), "a row of no kind that this layout has");
        })?;
    }
    Ok(())
}
