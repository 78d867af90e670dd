//! The tries behind the packed records: read in bulk, changed in memory, written once.
//!
//! A commitment works on the records it touches, in the cache that it has taken: [`Tries::prepare`] reads those that are
//! not there yet, on the way to all leaves of a block, in one batch across all tries for each level of records;
//! [`Tries::absorb`] changes each one once, however many blocks changed it, and tells its row; [`Tries::finish`] hands all
//! rows over. Work is spread over tries, and inside a large trie over its subtrees. Nothing here reads a value row.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, btree_map, hash_map};
use std::hash::BuildHasher;
use std::ops::Range;
use std::sync::{Mutex, OnceLock, PoisonError};

use flagstone_core::commit::{BlockChanges, CommitmentSource, GroupChanges, NamedLeaves, TrieRows, Wanted};
use flagstone_core::commitment::{ContractLeaf, TRIE_HEIGHT};
use flagstone_core::diff::StateDiff;
use flagstone_core::error::StateError;
use flagstone_core::layout::StateAt;
use flagstone_core::scrub::ValueDigest;
use flagstone_core::store::{Row, WriteBatch};
use flagstone_core::trie::{InMemory, Node, NodeReader, NodeRef, NodeSource, Path, TrieChanges, TrieId};
use flagstone_core::types::{ClassHash, CompiledClassHash, ContractAddress};
use foldhash::fast::RandomState;
use rayon::prelude::*;

use crate::cache::{CachedState, Entry, Look, RecordCache, Records};
use crate::record::{DEPTH, Edits, Record, Way, record_of, slot_of};
use crate::rows::{self, LeafRow};

/// Records that one task reads at a time.
const READ_CHUNK: usize = 64;

/// From so many leaves on either side of a node on, its sides are walked in parallel.
const PARALLEL_LEAVES_MIN: usize = 512;

/// Which record: its trie and its path.
type RecordKey = (TrieId, Path);

/// The tries of one state, with the records that were read or changed since.
pub struct Tries<'a> {
    state: StateAt<'a>,
    cache: &'a RecordCache,
    records: CachedState,
    /// Whether to look into the shared cache: these tries do not have it.
    apart: bool,
    /// Whether blocks are committed on them all the same: what is looked up is copied.
    aside: bool,
    /// Records that were read from rows, if they are to be told.
    read: Vec<RecordKey>,
    /// Whether the blocks' records were counted as hits or misses.
    prepared: bool,
    /// All rows that the blocks changed.
    batch: WriteBatch,
    recent: Recent,
    /// The blocks to commit.
    diffs: &'a [&'a StateDiff],
    /// Rows of leaves that were read for them.
    leaves: Mutex<HashMap<ContractAddress, LeafRow, RandomState>>,
}

/// Records that were read one at a time, for the next node that is in the same one: a walk asks for neighbours. Bounded
/// by its number of places; a record that needs another's place takes it.
#[derive(Default)]
struct Recent {
    /// Made when the first one is asked for.
    places: OnceLock<Vec<RecentPlace>>,
    hash: RandomState,
}

type RecentPlace = Mutex<Option<(RecordKey, Record)>>;

/// Records kept for walks: several walks at a time, with all records on the way down of each.
const RECENT_RECORDS: usize = 1024;
const _: () = assert!(RECENT_RECORDS.is_power_of_two());

impl Recent {
    /// Asks the record at a key; reads it with `read` if it is not there.
    fn ask<T>(
        &self,
        key: RecordKey,
        read: impl FnOnce() -> Result<Record, StateError>,
        ask: impl FnOnce(&Record) -> T,
    ) -> Result<T, StateError> {
        let empty = || std::iter::repeat_with(Mutex::default).take(RECENT_RECORDS).collect();
        let place = &self.places.get_or_init(empty)[self.hash.hash_one(key) as usize & (RECENT_RECORDS - 1)];
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
    /// The tries of a state, with what the cache has of it, to commit these blocks.
    pub fn new(state: StateAt<'a>, cache: &'a RecordCache, diffs: &'a [&'a StateDiff]) -> Self {
        Self { diffs, ..Self::with(state, cache, cache.take(&state.roots), false) }
    }

    /// The tries of a state, beside the cache: they look into it, and a commitment is free to take it.
    pub fn apart(state: StateAt<'a>, cache: &'a RecordCache) -> Self {
        Self::with(state, cache, CachedState::default(), true)
    }

    /// The tries of a state, to commit these blocks beside the cache: what they read of it is copied.
    pub fn aside(state: StateAt<'a>, cache: &'a RecordCache, diffs: &'a [&'a StateDiff]) -> Self {
        Self { diffs, aside: true, ..Self::with(state, cache, CachedState::default(), true) }
    }

    fn with(state: StateAt<'a>, cache: &'a RecordCache, records: CachedState, apart: bool) -> Self {
        Self {
            state,
            cache,
            records,
            apart,
            aside: false,
            read: Vec::new(),
            prepared: false,
            batch: WriteBatch::default(),
            recent: Recent::default(),
            diffs: &[],
            leaves: Mutex::default(),
        }
    }

    /// The row of a contract's leaf.
    fn leaf_row(&self, address: &ContractAddress) -> Result<LeafRow, StateError> {
        if let Some(leaf) = self.records.leaf(address) {
            return Ok(leaf);
        }
        if self.apart
            && let Some(leaf) = self.cache.look(&self.state.roots, |look| look.leaf(address))
        {
            return Ok(leaf);
        }
        LeafRow::at(self.state.store, address)
    }

    /// Reads what is on the way to these leaves, and is not in the cache. The leaves of contracts are read as well.
    pub fn read_ahead(mut self, named: NamedLeaves) -> Result<CachedState, StateError> {
        let mut leaves = CachedState::default();
        let wanted = named.wanted(self.state.roots, |address| {
            let row = self.leaf_row(address)?;
            leaves.set_leaf(*address, row);
            Ok(row.leaf)
        })?;
        self.prepare(&wanted)?;
        for (trie, path) in std::mem::take(&mut self.read) {
            let entry = self.records.tries.get_mut(&trie).and_then(|records| records.remove(&path));
            entry.into_iter().for_each(|entry| leaves.insert(trie, path, entry.record));
        }
        Ok(leaves)
    }

    /// The record at a path; empty if it has no row.
    pub fn record(&self, trie: TrieId, path: Path) -> Result<Record, StateError> {
        Ok(self.read(&[(trie, path)])?.pop().unwrap_or_default())
    }

    /// Reads records. One that has no row is empty.
    fn load(&mut self, keys: &[RecordKey]) -> Result<(), StateError> {
        let mut keys = keys.to_vec();
        if self.apart {
            let (cache, roots, records) = (self.cache, self.state.roots, &mut self.records);
            keys.retain(|(trie, path)| {
                let known = cache.look(&roots, |look| look.record(trie, path).cloned());
                known.map(|record| records.insert(*trie, *path, record)).is_none()
            });
            self.read.extend(&keys);
        } else {
            self.cache.count_misses(keys.len() as u64);
        }
        let read = keys.par_chunks(READ_CHUNK).map(|keys| self.read(keys)).collect::<Result<Vec<_>, _>>()?;
        for ((trie, path), record) in keys.iter().zip(read.into_iter().flatten()) {
            self.records.insert(*trie, *path, record);
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
            if !self.apart {
                self.cache.count_hits(visited);
            }
            missing
        };
        visits.into_par_iter().flat_map_iter(walk).collect()
    }

    /// All rows that differ, and the records to give back to the cache once those are written.
    pub fn finish(self) -> (WriteBatch, CachedState) {
        (self.batch, self.records)
    }

    /// What blocks do to the values of each of their contracts.
    fn value_digests(
        &self,
        blocks: &[BlockChanges],
    ) -> Result<BTreeMap<ContractAddress, ValueDigest>, StateError> {
        let mut digests = BTreeMap::new();
        for (diff, block) in self.diffs.iter().zip(blocks) {
            for (contract, before) in diff.contracts().iter().zip(block.undo.contracts()) {
                let digest = match digests.entry(contract.address) {
                    btree_map::Entry::Occupied(entry) => entry.into_mut(),
                    btree_map::Entry::Vacant(place) => place.insert(self.values_before(&contract.address)?),
                };
                for ((key, after), (_, before)) in contract.storage.iter().zip(&before.storage) {
                    digest.change(key, before, after);
                }
            }
        }
        Ok(digests)
    }

    /// The values of a contract before the blocks, as its leaf's row says.
    fn values_before(&self, address: &ContractAddress) -> Result<ValueDigest, StateError> {
        let leaves = self.leaves.lock().unwrap_or_else(PoisonError::into_inner);
        match leaves.get(address) {
            Some(row) => Ok(row.values),
            None => Ok(self.leaf_row(address)?.values),
        }
    }

    /// Takes in the leaves that blocks changed, and tells their rows.
    fn absorb_leaves(&mut self, blocks: &[BlockChanges]) -> Result<(), StateError> {
        let digests = self.value_digests(blocks)?;
        let (mut contracts, mut classes) = (BTreeMap::new(), BTreeMap::new());
        for block in blocks {
            contracts.extend(block.contracts.iter().map(|change| (change.address, change.leaf)));
            let of_block = block.classes.iter();
            classes.extend(of_block.map(|class| (class.class_hash.to_be(), class.compiled_class_hash)));
        }
        for (address, leaf) in contracts {
            let row = LeafRow { leaf, values: digests.get(&address).copied().unwrap_or_default() };
            self.records.set_leaf(address, row);
            if leaf.is_absent() {
                self.batch.delete(rows::contract_leaf(&address));
            } else {
                self.batch.put(rows::contract_leaf(&address), row.encode());
            }
        }
        for (class_hash, compiled) in classes {
            rows::put_felt(&mut self.batch, rows::class_leaf(&class_hash), &compiled.0);
        }
        Ok(())
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
            + match record.way(&at) {
                Some(Way::Fork) => {
                    let leaves = &self.leaves[range.clone()];
                    let middle = range.start + leaves.partition_point(|leaf| !leaf.bit(at.len()));
                    self.both(at, range.start..middle, middle..range.end, held, missing)
                }
                Some(Way::Edge(path)) => {
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
        let path = record_of(&at.path);
        if let Some(entry) = self.records.tries.get(&at.trie).and_then(|records| records.get(&path)) {
            return Ok(entry.record.get(&at.path));
        }
        if !self.apart {
            // A sibling that a deletion must look at: commitments ask for nothing else that was not prepared.
            return Ok(self.record(at.trie, path)?.get(&at.path));
        }
        let look = |look: Look<'_>| look.record(&at.trie, &path).map(|record| record.get(&at.path));
        if let Some(node) = self.cache.look(&self.state.roots, look) {
            return Ok(node);
        }
        let read = || self.record(at.trie, path);
        self.recent.ask((at.trie, path), read, |record| record.get(&at.path))
    }

    fn reader(&self, trie: TrieId) -> Option<Box<dyn NodeReader + '_>> {
        if self.apart && !self.aside {
            return None;
        }
        let records = self.records.tries.get(&trie);
        let counters = (!self.prepared && !self.apart).then_some(self.cache);
        Some(Box::new(TrieReader { state: &self.records, counters, hits: 0, records, held: Vec::new() }))
    }
}

impl Drop for TrieReader<'_> {
    fn drop(&mut self) {
        self.counters.inspect(|counters| counters.count_hits(self.hits));
    }
}

/// Reads nodes of one trie. A record is looked up once on the way down through it and back.
struct TrieReader<'a> {
    state: &'a CachedState,
    /// Where to count records that were there, if nobody has counted them yet.
    counters: Option<&'a RecordCache>,
    hits: u64,
    records: Option<&'a Records>,
    /// The records last looked into, from the top down.
    held: Vec<(Path, &'a Record)>,
}

impl NodeReader for TrieReader<'_> {
    fn node(&mut self, at: &Path) -> InMemory {
        let depth = at.len() / DEPTH * DEPTH;
        while self.held.last().is_some_and(|(path, _)| path.len() > depth) {
            self.held.pop();
        }
        let held = self.held.last().filter(|(path, _)| path.len() == depth && at.starts_with(path));
        let record = match held {
            Some((_, record)) => *record,
            None => {
                let path = record_of(at);
                let Some(entry) = self.records.and_then(|records| records.get(&path)) else {
                    // The walk that leads to reading it counts.
                    self.counters = None;
                    return InMemory::Not;
                };
                self.hits += 1;
                self.state.touch(entry);
                self.held.push((path, &entry.record));
                &entry.record
            }
        };
        record.get(at).map_or(InMemory::Nothing, InMemory::Node)
    }
}

impl TrieRows for Tries<'_> {
    fn contract_leaf(&self, address: &ContractAddress) -> Result<ContractLeaf, StateError> {
        let row = self.leaf_row(address)?;
        if !self.diffs.is_empty() {
            self.leaves.lock().unwrap_or_else(PoisonError::into_inner).insert(*address, row);
        }
        Ok(row.leaf)
    }

    fn class_leaf(&self, class_hash: &ClassHash) -> Result<CompiledClassHash, StateError> {
        let what = || format!("leaf of class {class_hash}");
        rows::felt_at(self.state.store, &rows::class_leaf(&class_hash.to_be()), what).map(CompiledClassHash)
    }
}

impl CommitmentSource for Tries<'_> {
    fn prepare(&mut self, wanted: &[Wanted]) -> Result<(), StateError> {
        self.prepared = true;
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

    fn absorb(&mut self, group: &GroupChanges) -> Result<(), StateError> {
        // The order of keys: leaves of contracts, leaves of classes, records by trie and path.
        self.absorb_leaves(&group.blocks)?;
        let mut changes: HashMap<TrieId, &TrieChanges> =
            group.tries.iter().map(|trie| (trie.trie, trie)).collect();
        for trie in changes.keys() {
            self.records.tries.entry(*trie).or_default();
        }
        let generation = self.records.generation();
        let tries = self.records.tries.iter_mut();
        let mut tries: Vec<_> =
            tries.filter_map(|(trie, records)| Some((records, changes.remove(trie)?))).collect();
        // The largest first, one at a time: the last to be done should not be a large one.
        tries.sort_by_key(|(_, changes)| Reverse(changes.nodes()));
        let absorb = |(records, changes)| Absorbed::of(records, changes, generation);
        let mut absorbed: Vec<Absorbed<'_>> = tries.into_par_iter().with_max_len(1).map(absorb).collect();

        let key = |absorbed: &Absorbed<'_>, run: &Run| (absorbed.changes.trie, run.record);
        let unread = absorbed.iter().flat_map(|of_trie| of_trie.unread.iter().map(|run| key(of_trie, run)));
        self.load(&unread.collect::<Vec<_>>())?;
        absorbed.sort_by_key(|absorbed| absorbed.changes.trie);
        for absorbed in &mut absorbed {
            if !absorbed.unread.is_empty() {
                absorbed.absorb_read(self.records.tries.entry(absorbed.changes.trie).or_default());
            }
            self.records.bytes = self.records.bytes + absorbed.bytes_after - absorbed.bytes_before;
            self.batch.append(std::mem::take(&mut absorbed.rows));
        }
        Ok(())
    }
}

/// What blocks do to one record.
struct Run {
    record: Path,
    /// The record's new nodes, as a range of the trie's new nodes [by record](by_record).
    nodes: Range<usize>,
    /// Slots whose node is no more.
    removed: u32,
}

/// What absorbing blocks does to the records of one trie.
struct Absorbed<'a> {
    changes: &'a TrieChanges,
    by_record: Vec<u32>,
    generation: u32,
    /// Rows of changed records, by path.
    rows: WriteBatch,
    /// Changes to records that have to be read first.
    unread: Vec<Run>,
    bytes_before: usize,
    bytes_after: usize,
    scratch: Vec<u8>,
}

impl<'a> Absorbed<'a> {
    fn of(records: &mut Records, changes: &'a TrieChanges, generation: u32) -> Self {
        let mut absorbed = Self {
            changes,
            by_record: by_record(changes),
            generation,
            rows: WriteBatch::default(),
            unread: Vec::new(),
            bytes_before: 0,
            bytes_after: 0,
            scratch: Vec::new(),
        };
        let runs = absorbed.runs();
        runs.into_iter().for_each(|run| absorbed.absorb(records, run));
        absorbed
    }

    /// The changes by record, ascending by path.
    fn runs(&self) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for (place, index) in self.by_record.iter().enumerate() {
            let record = record_of(&self.changes.path_at(*index as usize));
            match runs.last_mut() {
                Some(run) if run.record == record => run.nodes.end = place + 1,
                _ => runs.push(Run { record, nodes: place..place + 1, removed: 0 }),
            }
        }
        let removed = self.changes.removed.iter();
        runs.extend(removed.map(|path| Run {
            record: record_of(path),
            nodes: 0..0,
            removed: 1 << slot_of(path),
        }));
        runs.sort_by_key(|run| run.record);
        runs.dedup_by(|later, run| {
            let same = later.record == run.record && later.nodes.is_empty();
            run.removed |= if same { later.removed } else { 0 };
            same
        });
        runs
    }

    fn absorb(&mut self, records: &mut Records, run: Run) {
        let over_old =
            run.removed != 0 || self.by_record[run.nodes.clone()].iter().any(|i| self.is_over_old(&run, *i));
        let entry = match records.entry(run.record) {
            hash_map::Entry::Occupied(entry) => entry.into_mut(),
            // Behind the fork of a split edge a new node can be in a record that nobody had to look into.
            hash_map::Entry::Vacant(_) if over_old => return self.unread.push(run),
            // All that is in it now is new, so there was nothing in it.
            hash_map::Entry::Vacant(slot) => {
                let entry = slot.insert(Entry::new(Record::default(), self.generation));
                self.bytes_after += entry.memory();
                entry
            }
        };
        let (mut written, mut nodes) = (0, [0; 1 << DEPTH]);
        for index in &self.by_record[run.nodes] {
            let slot = slot_of(&self.changes.path_at(*index as usize));
            written |= 1 << slot;
            nodes[usize::from(slot)] = *index;
        }
        self.bytes_before += entry.memory();
        let node = |slot: u8| self.changes.node_at(nodes[usize::from(slot)] as usize);
        let edits = Edits { written, removed: run.removed };
        entry.record.rewrite(run.record.len(), edits, node, &mut self.scratch);
        self.bytes_after += entry.memory();
        rows::put_record(&mut self.rows, &self.changes.trie, &run.record, &entry.record);
    }

    /// Whether a new node says that its record held nodes before: in its place, or as its child.
    fn is_over_old(&self, run: &Run, index: u32) -> bool {
        let mut old_children = self.changes.paths_of_old_children(index as usize);
        self.changes.replaces_old_at(index as usize)
            || old_children.any(|child| child.len() < run.record.len() + DEPTH)
    }

    /// Takes up the changes to records that have been read now.
    fn absorb_read(&mut self, records: &mut Records) {
        std::mem::take(&mut self.unread).into_iter().for_each(|run| self.absorb(records, run));
    }
}

/// Indices of a trie's new nodes, those of one record together: by band, from the top, and within a band by path.
fn by_record(changes: &TrieChanges) -> Vec<u32> {
    let mut ends = [0; TRIE_HEIGHT / DEPTH + 1];
    let band = |index: usize| changes.depth_at(index) / DEPTH;
    changes.indices().for_each(|index| ends[band(index)] += 1);
    let count = ends.iter_mut().fold(0, |start, count| {
        let end = start + *count;
        *count = start;
        end
    });
    let mut by_record = vec![0; count];
    for index in changes.indices() {
        let place = &mut ends[band(index)];
        by_record[*place] = index as u32;
        *place += 1;
    }
    // A block's nodes come subtree by subtree, and so are in that order.
    if changes.of_many {
        let mut start = 0;
        for end in ends {
            by_record[start..end].sort_by_key(|index| record_of(&changes.path_at(*index as usize)));
            start = end;
        }
    }
    by_record
}
