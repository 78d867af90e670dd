//! The tries behind the packed records: read in bulk, changed in memory, written once.
//!
//! A commitment works on the records it touches, in the cache that it has taken: [`Tries::prepare`] reads those that are
//! not there yet, on the way to all leaves of a block, in one batch across all tries for each level of records;
//! [`Tries::absorb`] changes them; [`Tries::finish`] encodes each changed one once, however many blocks changed it. Work is
//! spread over tries, and inside a large trie over its subtrees. Nothing here reads a value row.

use std::collections::{BTreeSet, HashMap};
use std::hash::BuildHasher;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

use flagstone_core::commit::{BlockChanges, CommitmentSource, TrieRows, Wanted};
use flagstone_core::commitment::{ContractLeaf, TRIE_HEIGHT};
use flagstone_core::error::StateError;
use flagstone_core::felt::Felt;
use flagstone_core::layout::StateAt;
use flagstone_core::store::{Row, WriteBatch};
use flagstone_core::trie::{Node, NodeRef, NodeSource, Path, TrieChanges, TrieId, WrittenNode};
use flagstone_core::types::{ClassHash, CompiledClassHash, ContractAddress};
use foldhash::fast::RandomState;
use rayon::prelude::*;

use crate::cache::{CachedState, RecordCache, Records};
use crate::record::{Record, record_of};
use crate::rows;

/// Records that one task reads at a time.
const READ_CHUNK: usize = 64;

/// From so many leaves on either side of a node on, its sides are walked in parallel.
const PARALLEL_LEAVES_MIN: usize = 512;

/// Which record: its trie and its path.
type RecordKey = (TrieId, Path);

/// The tries of one state, with the records that were read or changed since.
pub struct Tries<'a> {
    state: StateAt<'a>,
    counters: &'a RecordCache,
    records: CachedState,
    /// Records that differ from their rows, each once.
    changed: HashMap<TrieId, Vec<Path>>,
    /// Leaves of classes that the session's blocks set.
    classes: HashMap<[u8; 32], CompiledClassHash>,
    recent: Recent,
}

/// Records that were read one at a time, for the next node that is in the same one: a walk asks for neighbours. Bounded
/// by its number of places; a record that needs another's place takes it.
#[derive(Default)]
struct Recent {
    places: Vec<Mutex<Option<(RecordKey, Record)>>>,
    hash: RandomState,
}

/// Records kept for walks: several walks at a time, with all records on the way down of each.
const RECENT_RECORDS: usize = 1024;
const _: () = assert!(RECENT_RECORDS.is_power_of_two());

impl Recent {
    fn new() -> Self {
        let places = std::iter::repeat_with(|| Mutex::new(None)).take(RECENT_RECORDS).collect();
        Self { places, hash: RandomState::default() }
    }

    /// Asks the record at a key; reads it with `read` if it is not there.
    fn ask<T>(
        &self,
        key: RecordKey,
        read: impl FnOnce() -> Result<Record, StateError>,
        ask: impl FnOnce(&Record) -> T,
    ) -> Result<T, StateError> {
        let Some(last) = self.places.len().checked_sub(1) else { return Ok(ask(&read()?)) };
        let place = &self.places[self.hash.hash_one(key) as usize & last];
        let mut place = place.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, record)) = place.as_ref().filter(|(held, _)| *held == key) {
            return Ok(ask(record));
        }
        let (_, record) = place.insert((key, read()?));
        Ok(ask(record))
    }
}

/// A node whose record is not there yet, and the leaves below it.
struct Missing {
    wanted: usize,
    at: Path,
    leaves: Range<usize>,
}

impl<'a> Tries<'a> {
    /// The tries of a state, with what the cache has of it.
    pub fn new(state: StateAt<'a>, cache: &'a RecordCache) -> Self {
        Self {
            state,
            counters: cache,
            records: cache.take(&state.roots),
            changed: HashMap::new(),
            classes: HashMap::new(),
            recent: Recent::default(),
        }
    }

    /// The tries of a state, beside the cache: a commitment is free to use it.
    pub fn apart(state: StateAt<'a>, cache: &'a RecordCache) -> Self {
        Self {
            state,
            counters: cache,
            records: CachedState::default(),
            changed: HashMap::new(),
            classes: HashMap::new(),
            recent: Recent::new(),
        }
    }

    /// The record at a path; empty if it has no row.
    pub fn record(&self, trie: TrieId, path: Path) -> Result<Record, StateError> {
        Ok(self.read(&[(trie, path)])?.pop().unwrap_or_default())
    }

    /// Reads records. One that has no row is empty.
    fn load(&mut self, keys: &[RecordKey]) -> Result<(), StateError> {
        self.counters.misses.fetch_add(keys.len() as u64, Ordering::Relaxed);
        let read = keys.par_chunks(READ_CHUNK).map(|keys| self.read(keys)).collect::<Result<Vec<_>, _>>()?;
        for ((trie, path), record) in keys.iter().zip(read.into_iter().flatten()) {
            let entry = self.records.entry(record);
            self.records.bytes += entry.memory();
            self.records.tries.entry(*trie).or_default().insert(*path, entry);
        }
        Ok(())
    }

    fn read(&self, keys: &[RecordKey]) -> Result<Vec<Record>, StateError> {
        let row_keys: Vec<Vec<u8>> = keys.iter().map(|(trie, path)| rows::record(trie, path)).collect();
        let row_keys: Vec<&[u8]> = row_keys.iter().map(Vec::as_slice).collect();
        let decode = |((trie, path), row): (&RecordKey, Row)| match row {
            Some(row) => Record::decode(path, &row)
                .map_err(StateError::undecodable(format!("record {path} of the {trie}"))),
            None => Ok(Record::default()),
        };
        keys.iter().zip(self.state.store.get_many(&row_keys)?).map(decode).collect()
    }

    /// Follows leaves down from the nodes at `visits`, as far as records are there.
    fn walk(&self, wanted: &[Wanted], visits: Vec<Missing>) -> Vec<Missing> {
        let walk = |visit: Missing| {
            let Wanted { trie, leaves, .. } = &wanted[visit.wanted];
            let Some(records) = self.records.tries.get(trie) else { return vec![visit] };
            let walk = Walk { state: &self.records, records, leaves, wanted: visit.wanted };
            let mut missing = Vec::new();
            let visited = walk.node(visit.at, visit.leaves, None, &mut missing);
            self.counters.hits.fetch_add(visited, Ordering::Relaxed);
            missing
        };
        visits.into_par_iter().flat_map_iter(walk).collect()
    }

    /// All rows that differ, and the records to give back to the cache once those are written. `leaves` are the
    /// contracts whose leaves changed.
    pub fn finish(mut self, leaves: impl Iterator<Item = ContractAddress>) -> (WriteBatch, CachedState) {
        let mut changed = self.changed;
        let tries = self.records.tries.iter_mut();
        let tries: Vec<_> =
            tries.filter_map(|(trie, records)| Some((trie, records, changed.remove(trie)?))).collect();
        let encode = |(trie, records, changed): (&TrieId, &mut Records, Vec<Path>)| -> Vec<(Vec<u8>, Row)> {
            let row = |path: Path| {
                let entry = records.get_mut(&path)?;
                entry.changed = false;
                let row = (!entry.record.is_empty()).then(|| entry.record.encode(&path));
                Some((rows::record(trie, &path), row))
            };
            changed.into_iter().filter_map(row).collect()
        };
        let mut batch: Vec<(Vec<u8>, Row)> = tries.into_par_iter().flat_map_iter(encode).collect();
        for address in leaves {
            let leaf = self.records.leaf(&address).filter(|leaf| !leaf.is_absent());
            batch.push((rows::contract_leaf(&address), leaf.map(|leaf| leaf.encode())));
        }
        batch.par_sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        (batch.into_iter().collect(), self.records)
    }
}

/// A walk through the records of one trie.
struct Walk<'a> {
    state: &'a CachedState,
    records: &'a Records,
    leaves: &'a [Path],
    wanted: usize,
}

impl<'a> Walk<'a> {
    /// Visits the node at `at` and those below it on the way to leaves. `held` is the record above. Returns how many
    /// records were visited.
    fn node(
        &self,
        at: Path,
        range: Range<usize>,
        held: Option<(Path, &'a Record)>,
        missing: &mut Vec<Missing>,
    ) -> u64 {
        if range.is_empty() || at.len() == TRIE_HEIGHT {
            return 0;
        }
        let path = record_of(&at);
        let (record, entered) = match held {
            Some((held, record)) if held == path => (record, 0),
            _ => match self.records.get(&path) {
                Some(entry) => {
                    self.state.touch(entry);
                    (&entry.record, 1)
                }
                None => {
                    missing.push(Missing { wanted: self.wanted, at, leaves: range });
                    return 0;
                }
            },
        };
        let held = Some((path, record));
        entered
            + match record.get(&at) {
                Some(Node::Binary { .. }) => {
                    let leaves = &self.leaves[range.clone()];
                    let middle = range.start + leaves.partition_point(|leaf| !leaf.bit(at.len()));
                    self.both(at, range.start..middle, middle..range.end, held, missing)
                }
                Some(Node::Edge { path, .. }) => {
                    let end = at.join(path);
                    let start = range.start + self.leaves[range.clone()].partition_point(|leaf| *leaf < end);
                    let count = self.leaves[start..range.end].partition_point(|leaf| leaf.starts_with(&end));
                    self.node(end, start..start + count, held, missing)
                }
                // The update that needs the node says that it is missing.
                None => 0,
            }
    }

    fn both(
        &self,
        at: Path,
        left: Range<usize>,
        right: Range<usize>,
        held: Option<(Path, &'a Record)>,
        missing: &mut Vec<Missing>,
    ) -> u64 {
        if left.len().min(right.len()) < PARALLEL_LEAVES_MIN {
            return self.node(at.child(false), left, held, missing)
                + self.node(at.child(true), right, held, missing);
        }
        let mut aside = Vec::new();
        let (left, right) = rayon::join(
            || self.node(at.child(false), left, held, missing),
            || self.node(at.child(true), right, held, &mut aside),
        );
        missing.append(&mut aside);
        left + right
    }
}

impl NodeSource for Tries<'_> {
    fn node(&self, at: &NodeRef) -> Result<Option<Node>, StateError> {
        let path = record_of(&at.path);
        if let Some(entry) = self.records.tries.get(&at.trie).and_then(|records| records.get(&path)) {
            return Ok(entry.record.get(&at.path).copied());
        }
        // A sibling that a deletion must look at, or a walk: commitments ask for nothing else that was not prepared.
        let read = || self.record(at.trie, path);
        self.recent.ask((at.trie, path), read, |record| record.get(&at.path).copied())
    }
}

impl TrieRows for Tries<'_> {
    fn contract_leaf(&self, address: &ContractAddress) -> Result<ContractLeaf, StateError> {
        if let Some(leaf) = self.records.leaf(address) {
            return Ok(leaf);
        }
        let Some(row) = self.state.store.get(&rows::contract_leaf(address))? else {
            return Ok(ContractLeaf::default());
        };
        ContractLeaf::decode(&row).map_err(StateError::undecodable(format!("leaf of contract {address}")))
    }

    fn class_leaf(&self, class_hash: &ClassHash) -> Result<CompiledClassHash, StateError> {
        if let Some(compiled) = self.classes.get(&class_hash.to_be()) {
            return Ok(*compiled);
        }
        let what = || format!("leaf of class {class_hash}");
        rows::felt_at(self.state.store, &rows::class_leaf(class_hash), what).map(CompiledClassHash)
    }
}

impl CommitmentSource for Tries<'_> {
    fn prepare(&mut self, wanted: &[Wanted]) -> Result<(), StateError> {
        let whole = |(wanted, of_trie): (usize, &Wanted)| Missing {
            wanted,
            at: Path::ROOT,
            leaves: 0..of_trie.leaves.len(),
        };
        let mut missing = self.walk(wanted, wanted.iter().enumerate().map(whole).collect());
        while !missing.is_empty() {
            let key = |missing: &Missing| (wanted[missing.wanted].trie, record_of(&missing.at));
            self.load(&missing.iter().map(key).collect::<Vec<_>>())?;
            missing = self.walk(wanted, missing);
        }
        Ok(())
    }

    fn absorb(&mut self, block: &BlockChanges) -> Result<(), StateError> {
        block.contracts.iter().for_each(|change| self.records.set_leaf(change.address, change.leaf));
        let classes = block.classes.iter();
        self.classes.extend(classes.map(|class| (class.class_hash.to_be(), class.compiled_class_hash)));
        let mut changes: HashMap<TrieId, &TrieChanges> =
            block.tries.iter().map(|trie| (trie.trie, trie)).collect();
        for trie in changes.keys() {
            self.records.tries.entry(*trie).or_default();
        }
        let tries = self.records.tries.iter_mut();
        let tries: Vec<_> =
            tries.filter_map(|(trie, records)| Some((*trie, records, changes.remove(trie)?))).collect();
        let absorb = |(trie, records, changes)| (trie, Absorbed::of(records, changes));
        let absorbed: Vec<(TrieId, Absorbed<'_>)> = tries.into_par_iter().map(absorb).collect();

        // A new node can be in a record that nobody had to look into: behind the fork of a split edge.
        let unread =
            absorbed.iter().flat_map(|(trie, of_trie)| of_trie.unread.iter().map(|run| (*trie, run.record)));
        let unread: BTreeSet<RecordKey> = unread.collect();
        self.load(&unread.into_iter().collect::<Vec<_>>())?;
        for (trie, mut absorbed) in absorbed {
            let records = self.records.tries.entry(trie).or_default();
            std::mem::take(&mut absorbed.unread).into_iter().for_each(|run| absorbed.absorb(records, run));
            self.records.bytes = self.records.bytes + absorbed.bytes_after - absorbed.bytes_before;
            self.changed.entry(trie).or_default().extend(absorbed.changed);
        }
        Ok(())
    }
}

/// Changes that follow each other and are of one record, which is then looked up once. Neighbours mostly are.
struct Run<'a> {
    record: Path,
    nodes: RunNodes<'a>,
}

enum RunNodes<'a> {
    Removed(&'a [(Path, Felt)]),
    Written(&'a [WrittenNode]),
}

fn runs_of_removed(changes: &TrieChanges) -> impl Iterator<Item = Run<'_>> {
    let runs = changes.removed.chunk_by(|(a, _), (b, _)| record_of(a) == record_of(b));
    runs.map(|run| Run { record: record_of(&run[0].0), nodes: RunNodes::Removed(run) })
}

fn runs_of_written(changes: &TrieChanges) -> impl Iterator<Item = Run<'_>> {
    let runs = changes.written.chunk_by(|a, b| record_of(&a.path) == record_of(&b.path));
    runs.map(|run| Run { record: record_of(&run[0].path), nodes: RunNodes::Written(run) })
}

/// What absorbing a block did to the records of one trie.
#[derive(Default)]
struct Absorbed<'a> {
    /// Records that were as their rows before.
    changed: Vec<Path>,
    /// Changes to records that have to be read first.
    unread: Vec<Run<'a>>,
    bytes_before: usize,
    bytes_after: usize,
}

impl<'a> Absorbed<'a> {
    fn of(records: &mut Records, changes: &'a TrieChanges) -> Self {
        let mut absorbed = Self::default();
        let runs = runs_of_removed(changes).chain(runs_of_written(changes));
        runs.for_each(|run| absorbed.absorb(records, run));
        absorbed
    }

    fn absorb(&mut self, records: &mut Records, run: Run<'a>) {
        let Some(entry) = records.get_mut(&run.record) else {
            return self.unread.push(run);
        };
        self.bytes_before += entry.memory();
        match run.nodes {
            RunNodes::Removed(nodes) => nodes.iter().for_each(|(path, _)| entry.record.set(path, None)),
            RunNodes::Written(nodes) => {
                nodes.iter().for_each(|new| entry.record.set(&new.path, Some(new.node)))
            }
        }
        self.bytes_after += entry.memory();
        if !entry.changed {
            entry.changed = true;
            self.changed.push(run.record);
        }
    }
}
