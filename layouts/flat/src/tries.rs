//! The tries behind the packed records: read in bulk, changed in memory, written once.
//!
//! A commitment works on the records it touches, in the cache that it has taken: [`Tries::prepare`] reads those that are
//! not there yet, on the way to all leaves of a block, in one batch across all tries for each level of records;
//! [`Tries::absorb`] changes them; [`Tries::finish`] encodes each changed one once, however many blocks changed it. Work is
//! spread over tries, and inside a large trie over its subtrees. Nothing here reads a value row.

use std::collections::{BTreeMap, BTreeSet, HashMap, hash_map};
use std::ops::Range;
use std::sync::atomic::Ordering;

use flagstone_core::commit::{BlockChanges, CommitmentSource, TrieRows, Wanted};
use flagstone_core::commitment::{ContractLeaf, TRIE_HEIGHT};
use flagstone_core::error::StateError;
use flagstone_core::layout::StateAt;
use flagstone_core::store::{Row, WriteBatch};
use flagstone_core::trie::{Node, NodeReader, NodeRef, NodeSource, Path, TrieChanges, TrieId};
use flagstone_core::types::{ClassHash, CompiledClassHash, ContractAddress};
use rayon::prelude::*;

use crate::cache::{CachedState, Entry, RecordCache, Records};
use crate::record::{DEPTH, Edits, Record, record_of, slot_of};
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
    /// Contracts whose leaves the session's blocks changed.
    changed_leaves: BTreeSet<ContractAddress>,
    /// Leaves of classes that the session's blocks set.
    classes: BTreeMap<[u8; 32], CompiledClassHash>,
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
            changed_leaves: BTreeSet::new(),
            classes: BTreeMap::new(),
        }
    }

    /// The tries of a state, beside the cache: a commitment is free to use it.
    pub fn apart(state: StateAt<'a>, cache: &'a RecordCache) -> Self {
        Self {
            state,
            counters: cache,
            records: CachedState::default(),
            changed: HashMap::new(),
            changed_leaves: BTreeSet::new(),
            classes: BTreeMap::new(),
        }
    }

    /// Reads records. One that has no row is empty.
    fn load(&mut self, keys: &[RecordKey]) -> Result<(), StateError> {
        self.counters.misses.fetch_add(keys.len() as u64, Ordering::Relaxed);
        let read = keys.par_chunks(READ_CHUNK).map(|keys| self.read(keys)).collect::<Result<Vec<_>, _>>()?;
        for ((trie, path), record) in keys.iter().zip(read.into_iter().flatten()) {
            let entry = Entry::new(record, self.records.generation());
            self.records.bytes += entry.memory();
            self.records.tries.entry(*trie).or_default().insert(*path, entry);
        }
        Ok(())
    }

    fn read(&self, keys: &[RecordKey]) -> Result<Vec<Record>, StateError> {
        let row_keys: Vec<Vec<u8>> = keys.iter().map(|(trie, path)| rows::record(trie, path)).collect();
        let row_keys: Vec<&[u8]> = row_keys.iter().map(Vec::as_slice).collect();
        let decode = |((trie, path), row): (&RecordKey, Row)| match row {
            Some(row) => Record::decode(path, row)
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

    /// All rows that differ, and the records to give back to the cache once those are written.
    pub fn finish(mut self) -> (WriteBatch, CachedState) {
        let mut changed = self.changed;
        let tries = self.records.tries.iter_mut();
        let mut tries: Vec<_> =
            tries.filter_map(|(trie, records)| Some((trie, records, changed.remove(trie)?))).collect();
        tries.sort_unstable_by_key(|(trie, _, _)| **trie);
        let rows = |(trie, records, mut changed): (&TrieId, &mut Records, Vec<Path>)| -> Vec<(Vec<u8>, Row)> {
            changed.sort_unstable();
            let row = |path: Path| {
                let entry = records.get_mut(&path)?;
                entry.changed = false;
                Some((rows::record(trie, &path), entry.record.row().map(Vec::from)))
            };
            changed.into_iter().filter_map(row).collect()
        };
        let records: Vec<Vec<(Vec<u8>, Row)>> = tries.into_par_iter().map(rows).collect();
        let leaf = |address: ContractAddress| {
            let leaf = self.records.leaf(&address).filter(|leaf| !leaf.is_absent());
            (rows::contract_leaf(&address), leaf.map(|leaf| leaf.encode()))
        };
        let classes = self
            .classes
            .into_iter()
            .map(|(class_hash, compiled)| (rows::class_leaf(&class_hash), rows::felt(&compiled.0)));
        // The order of keys: leaves of contracts, leaves of classes, records by trie and path.
        let batch =
            self.changed_leaves.into_iter().map(leaf).chain(classes).chain(records.into_iter().flatten());
        (batch.collect(), self.records)
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
                    let end = at.join(&path);
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
        TrieReader::new(self, at.trie).node(at)
    }

    fn reader(&self, trie: TrieId) -> Option<Box<dyn NodeReader + '_>> {
        Some(Box::new(TrieReader::new(self, trie)))
    }
}

/// Reads nodes of one trie. A record is looked up once on the way down through it and back.
struct TrieReader<'a> {
    tries: &'a Tries<'a>,
    records: Option<&'a Records>,
    /// The records last looked into, from the top down.
    held: Vec<(Path, &'a Record)>,
}

impl<'a> TrieReader<'a> {
    fn new(tries: &'a Tries<'a>, trie: TrieId) -> Self {
        Self { tries, records: tries.records.tries.get(&trie), held: Vec::new() }
    }
}

impl NodeReader for TrieReader<'_> {
    fn node(&mut self, at: &NodeRef) -> Result<Option<Node>, StateError> {
        let record_depth = at.path.len() / DEPTH * DEPTH;
        while self.held.last().is_some_and(|(path, _)| path.len() > record_depth) {
            self.held.pop();
        }
        if let Some((path, record)) = self.held.last()
            && path.len() == record_depth
            && at.path.starts_with(path)
        {
            return Ok(record.get(&at.path));
        }
        let path = record_of(&at.path);
        if let Some(entry) = self.records.and_then(|records| records.get(&path)) {
            self.held.push((path, &entry.record));
            return Ok(entry.record.get(&at.path));
        }
        // A sibling that a deletion must look at; nobody else asks for what was not prepared.
        let record = self.tries.read(&[(at.trie, path)])?.pop();
        Ok(record.and_then(|record| record.get(&at.path)))
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
        rows::felt_at(self.state.store, &rows::class_leaf(&class_hash.to_be()), what).map(CompiledClassHash)
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

    fn absorb(&mut self, block: &BlockChanges, _last: bool) -> Result<(), StateError> {
        for change in &block.contracts {
            self.records.set_leaf(change.address, change.leaf);
            self.changed_leaves.insert(change.address);
        }
        let classes = block.classes.iter();
        self.classes.extend(classes.map(|class| (class.class_hash.to_be(), class.compiled_class_hash)));
        let mut changes: HashMap<TrieId, &TrieChanges> =
            block.tries.iter().map(|trie| (trie.trie, trie)).collect();
        for trie in changes.keys() {
            self.records.tries.entry(*trie).or_default();
        }
        let generation = self.records.generation();
        let tries = self.records.tries.iter_mut();
        let tries: Vec<_> =
            tries.filter_map(|(trie, records)| Some((*trie, records, changes.remove(trie)?))).collect();
        let absorb = |(trie, records, changes)| (trie, Absorbed::of(records, changes, generation));
        let absorbed: Vec<(TrieId, Absorbed<'_>)> = tries.into_par_iter().map(absorb).collect();

        let unread =
            absorbed.iter().flat_map(|(trie, of_trie)| of_trie.unread.keys().map(|path| (*trie, *path)));
        self.load(&unread.collect::<Vec<_>>())?;
        for (trie, mut absorbed) in absorbed {
            let records = self.records.tries.entry(trie).or_default();
            absorbed.absorb_read(records);
            self.records.bytes = self.records.bytes + absorbed.bytes_after - absorbed.bytes_before;
            self.changed.entry(trie).or_default().extend(absorbed.changed);
        }
        Ok(())
    }
}

/// What a block does to one record.
#[derive(Default)]
struct RecordChanges {
    edits: Edits,
    /// For each slot that gets a new node, its index among the trie's new nodes.
    nodes: [u32; 1 << DEPTH],
    /// Whether the record held a node before: one that is replaced, removed, or now a new node's child.
    over_old: bool,
}

/// What absorbing a block does to the records of one trie.
struct Absorbed<'a> {
    changes: &'a TrieChanges,
    /// Records that were as their rows before.
    changed: Vec<Path>,
    /// Changes to records that have to be read first.
    unread: BTreeMap<Path, RecordChanges>,
    bytes_before: usize,
    bytes_after: usize,
    generation: u32,
    scratch: Vec<u8>,
}

impl<'a> Absorbed<'a> {
    fn of(records: &mut Records, changes: &'a TrieChanges, generation: u32) -> Self {
        let mut absorbed = Self {
            changes,
            changed: Vec::new(),
            unread: BTreeMap::new(),
            bytes_before: 0,
            bytes_after: 0,
            generation,
            scratch: Vec::new(),
        };
        let mut removed: BTreeMap<Path, u32> = BTreeMap::new();
        for path in &changes.removed {
            *removed.entry(record_of(path)).or_default() |= 1 << slot_of(path);
        }
        let by_band = by_band(changes);
        let mut nodes = by_band.iter().map(|index| (*index, changes.path_at(*index as usize))).peekable();
        while let Some((index, path)) = nodes.next() {
            let record = record_of(&path);
            let mut of_record = RecordChanges::default();
            of_record.take(changes, &record, index, &path);
            while let Some((index, path)) = nodes.next_if(|(_, path)| record_of(path) == record) {
                of_record.take(changes, &record, index, &path);
            }
            of_record.remove(removed.remove(&record).unwrap_or(0));
            absorbed.absorb(records, record, of_record);
        }
        for (record, slots) in removed {
            let mut of_record = RecordChanges::default();
            of_record.remove(slots);
            absorbed.absorb(records, record, of_record);
        }
        absorbed
    }

    fn absorb(&mut self, records: &mut Records, record: Path, changes: RecordChanges) {
        let entry = match records.entry(record) {
            hash_map::Entry::Occupied(entry) => entry.into_mut(),
            // Behind the fork of a split edge a new node can be in a record that nobody had to look into.
            hash_map::Entry::Vacant(_) if changes.over_old => {
                let seen_before = self.unread.insert(record, changes);
                debug_assert!(seen_before.is_none(), "a record's nodes follow each other");
                return;
            }
            // All that is in it now is new, so there was nothing in it.
            hash_map::Entry::Vacant(slot) => {
                let entry = slot.insert(Entry::new(Record::default(), self.generation));
                self.bytes_after += entry.memory();
                entry
            }
        };
        self.bytes_before += entry.memory();
        let node = |slot: u8| self.changes.written_at(changes.nodes[usize::from(slot)] as usize).node;
        entry.record.rewrite(record.len(), changes.edits, node, &mut self.scratch);
        self.bytes_after += entry.memory();
        if !entry.changed {
            entry.changed = true;
            self.changed.push(record);
        }
    }

    /// Takes up the changes to records that have been read now.
    fn absorb_read(&mut self, records: &mut Records) {
        for (record, changes) in std::mem::take(&mut self.unread) {
            self.absorb(records, record, changes);
        }
    }
}

impl RecordChanges {
    fn take(&mut self, changes: &TrieChanges, record: &Path, index: u32, path: &Path) {
        let slot = slot_of(path);
        self.edits.written |= 1 << slot;
        self.nodes[usize::from(slot)] = index;
        let mut old_children = changes.paths_of_old_children(index as usize);
        let has_old_child = old_children.any(|child| child.len() < record.len() + DEPTH);
        self.over_old |= has_old_child || changes.replaces_at(index as usize);
    }

    fn remove(&mut self, slots: u32) {
        self.edits.removed |= slots;
        self.over_old |= slots != 0;
    }
}

/// Indices of a trie's new nodes by band, from the top. Nodes come subtree by subtree, so within a band those of one
/// record follow each other.
fn by_band(changes: &TrieChanges) -> Vec<u32> {
    let mut places = [0; TRIE_HEIGHT / DEPTH + 2];
    let band = |depth: usize| depth / DEPTH;
    changes.written_depths().for_each(|depth| places[band(depth) + 1] += 1);
    (1..places.len()).for_each(|band| places[band] += places[band - 1]);
    let mut by_band = vec![0; changes.written_depths().len()];
    for (index, depth) in changes.written_depths().enumerate() {
        by_band[places[band(depth)]] = index as u32;
        places[band(depth)] += 1;
    }
    by_band
}
