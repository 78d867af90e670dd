//! Readers of states that are not the newest any more.
//!
//! Whoever goes over tries or rows for long begins with a committed state and keeps it, whatever is committed or written
//! meanwhile. The writer waits for no reader: before it applies a unit to the store it reads what the unit overwrites,
//! while somebody reads an earlier state, and keeps that ([`Readers::keep`]). A reader asks the store first and what was kept
//! then: what was kept before the unit began has the last word, so it does not matter how far the unit has come.
//!
//! What is kept is bounded in bytes. At the bound the oldest reader's reads fail from then on, with
//! [`StoreErrorKind::Expired`].

use std::collections::{BTreeMap, VecDeque};
use std::ops::{Bound, ControlFlow};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use flagstone_core::store::{Row, Store, StoreError, StoreErrorKind, StoreRead, Visit, WriteBatch};

/// Rows that a scan reads at a time, before it looks at what was kept.
const SCAN_ROWS: usize = 256;
/// Rows that are read at a time to be kept.
const KEEP_ROWS: usize = 1024;
/// About what a kept row takes beside its key and bytes.
const KEPT_BYTES: usize = 96;

/// Who reads which generation, and what is kept for them.
pub struct Readers {
    state: RwLock<State>,
    bytes_max: usize,
}

#[derive(Default)]
struct State {
    /// By generation, the flags that say that a reader has expired.
    active: BTreeMap<u64, Vec<Arc<AtomicBool>>>,
    /// In the order of units.
    kept: VecDeque<Arc<Kept>>,
    bytes: usize,
}

/// What a unit overwrites, as it was before.
struct Kept {
    /// The generation after the unit.
    through: u64,
    rows: BTreeMap<Vec<u8>, Row>,
    bytes: usize,
}

impl State {
    /// Drops what nobody needs any more.
    fn prune(&mut self) {
        let oldest = self.active.first_key_value().map(|(generation, _)| *generation);
        let needless = |kept: &mut Arc<Kept>| oldest.is_none_or(|oldest| oldest >= kept.through);
        while let Some(kept) = self.kept.pop_front_if(needless) {
            self.bytes -= kept.bytes;
        }
    }

    /// The readers of a generation fail from now on.
    fn expire(&mut self, generation: u64) {
        let readers = self.active.remove(&generation).unwrap_or_default();
        readers.iter().for_each(|expired| expired.store(true, Ordering::SeqCst));
    }

    /// What was kept for a reader of a generation, the oldest first.
    fn kept_for(&self, generation: u64) -> impl Iterator<Item = &Kept> {
        self.kept.iter().map(|kept| &**kept).filter(move |kept| kept.through > generation)
    }
}

impl Readers {
    pub fn new(bytes_max: usize) -> Self {
        Self { state: RwLock::default(), bytes_max }
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to read the generation that `newest` names, which is asked while no writer decides what to keep.
    pub fn begin<T>(self: &Arc<Self>, newest: impl FnOnce() -> (u64, T)) -> (Ticket, T) {
        let mut state = self.change();
        let (generation, of) = newest();
        let expired = Arc::new(AtomicBool::new(false));
        state.active.entry(generation).or_default().push(Arc::clone(&expired));
        (Ticket { readers: Arc::clone(self), generation, expired }, of)
    }

    /// Keeps what a unit that leads to a generation is about to overwrite, if somebody reads an earlier one.
    pub fn keep(&self, through: u64, batch: &WriteBatch, store: &dyn Store) {
        let state = self.read();
        let Some(newest) = state.active.range(..through).next_back().map(|(generation, _)| *generation)
        else {
            return;
        };
        // For all of them.
        let known: Vec<Arc<Kept>> =
            state.kept.iter().filter(|kept| kept.through > newest).map(Arc::clone).collect();
        drop(state);
        let keys = batch.iter().map(|(key, _)| key);
        let keys: Vec<&[u8]> =
            keys.filter(|key| known.iter().all(|kept| !kept.rows.contains_key(*key))).collect();
        let (mut rows, mut bytes, mut failed) = (BTreeMap::new(), 0, false);
        for keys in keys.chunks(KEEP_ROWS) {
            let Ok(read) = store.get_many(keys) else {
                failed = true;
                break;
            };
            for (key, row) in keys.iter().zip(read) {
                bytes += KEPT_BYTES + key.len() + row.as_ref().map_or(0, Vec::len);
                rows.insert(key.to_vec(), row);
            }
        }
        let mut state = self.change();
        if failed {
            // They would be told of newer rows.
            while let Some(oldest) = state.active.range(..through).next().map(|(generation, _)| *generation) {
                state.expire(oldest);
            }
        }
        state.bytes += bytes;
        state.kept.push_back(Arc::new(Kept { through, rows, bytes }));
        state.prune();
        while state.bytes > self.bytes_max
            && let Some(oldest) = state.active.first_key_value().map(|(generation, _)| *generation)
        {
            state.expire(oldest);
            state.prune();
        }
    }
}

/// Somebody reads a generation.
pub struct Ticket {
    readers: Arc<Readers>,
    generation: u64,
    expired: Arc<AtomicBool>,
}

impl Ticket {
    /// Whether its reads fail.
    pub fn is_expired(&self) -> bool {
        self.expired.load(Ordering::SeqCst)
    }

    fn check(&self) -> Result<(), StoreError> {
        if !self.is_expired() {
            return Ok(());
        }
        let problem = "more was written since this read began than is kept for readers (`reader_bytes_max`); begin again";
        Err(StoreError::new(StoreErrorKind::Expired, problem))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.readers.change();
        if let Some(readers) = state.active.get_mut(&self.generation) {
            readers.retain(|reader| !Arc::ptr_eq(reader, &self.expired));
            if readers.is_empty() {
                state.active.remove(&self.generation);
            }
        }
        state.prune();
    }
}

/// A store as it was at a generation, without what was not written yet.
pub struct Snapshot<'a> {
    pub ticket: &'a Ticket,
    pub store: Arc<dyn Store>,
}

impl StoreRead for Snapshot<'_> {
    fn get(&self, key: &[u8]) -> Result<Row, StoreError> {
        let row = self.store.get(key)?;
        let state = self.ticket.readers.read();
        self.ticket.check()?;
        let old = state.kept_for(self.ticket.generation).find_map(|kept| kept.rows.get(key));
        Ok(old.cloned().unwrap_or(row))
    }

    fn get_many(&self, keys: &[&[u8]]) -> Result<Vec<Row>, StoreError> {
        let mut rows = self.store.get_many(keys)?;
        let state = self.ticket.readers.read();
        self.ticket.check()?;
        for (key, row) in keys.iter().zip(&mut rows) {
            let old = state.kept_for(self.ticket.generation).find_map(|kept| kept.rows.get(*key));
            old.into_iter().for_each(|old| row.clone_from(old));
        }
        Ok(rows)
    }

    fn scan(&self, prefix: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        self.scan_from(prefix, prefix, visit)
    }

    fn scan_from(&self, prefix: &[u8], from: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        let mut at = from.max(prefix).to_vec();
        loop {
            let (rows, end) = self.some_rows(prefix, &at)?;
            for (key, row) in &rows {
                if row.as_ref().is_some_and(|row| visit(key, row).is_break()) {
                    return Ok(());
                }
            }
            let Some(end) = end else { return Ok(()) };
            at = end;
            at.push(0);
        }
    }
}

/// Rows by their keys, and the last key that they reach to if there are more.
type SomeRows = (BTreeMap<Vec<u8>, Row>, Option<Vec<u8>>);

impl Snapshot<'_> {
    /// The first rows under a prefix from a key on.
    fn some_rows(&self, prefix: &[u8], at: &[u8]) -> Result<SomeRows, StoreError> {
        let (mut rows, mut more) = (BTreeMap::new(), false);
        self.store.scan_from(prefix, at, &mut |key, row| {
            more = rows.len() == SCAN_ROWS;
            if more {
                return ControlFlow::Break(());
            }
            rows.insert(key.to_vec(), Some(row.to_vec()));
            ControlFlow::Continue(())
        })?;
        let end = rows.last_key_value().map(|(key, _)| key.clone()).filter(|_| more);
        let state = self.ticket.readers.read();
        self.ticket.check()?;
        let mut old: BTreeMap<&[u8], &Row> = BTreeMap::new();
        for kept in state.kept_for(self.ticket.generation) {
            let range = kept.rows.range::<[u8], _>((Bound::Included(at), Bound::Unbounded));
            let inside =
                |key: &[u8]| key.starts_with(prefix) && end.as_ref().is_none_or(|end| key <= end.as_slice());
            for (key, row) in range.take_while(|(key, _)| inside(key)) {
                old.entry(key).or_insert(row);
            }
        }
        old.into_iter().for_each(|(key, row)| drop(rows.insert(key.to_vec(), row.clone())));
        Ok((rows, end))
    }
}

#[cfg(test)]
mod tests {
    use flagstone_core::store::MemoryStore;
    use proptest::prelude::*;

    use super::*;
    use crate::engine::rows::base::EndedStore;

    type Model = BTreeMap<Vec<u8>, Vec<u8>>;

    fn batch(rows: &[(u16, Option<u8>)]) -> WriteBatch {
        let mut batch = WriteBatch::default();
        for (key, row) in rows {
            match row {
                Some(row) => batch.put(key.to_be_bytes(), [*row]),
                None => batch.delete(key.to_be_bytes()),
            }
        }
        batch
    }

    fn at<'a>(ticket: &'a Ticket, memory: &Arc<MemoryStore>) -> Snapshot<'a> {
        Snapshot { ticket, store: Arc::clone(memory) as Arc<dyn Store> }
    }

    fn scanned(snapshot: &Snapshot<'_>, prefix: &[u8], from: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut rows = Vec::new();
        let visit = &mut |key: &[u8], row: &[u8]| {
            rows.push((key.to_vec(), row.to_vec()));
            ControlFlow::Continue(())
        };
        snapshot.scan_from(prefix, from, visit).unwrap();
        rows
    }

    fn units() -> impl Strategy<Value = Vec<Vec<(u16, Option<u8>)>>> {
        let row = (0..700u16, prop::option::weighted(0.7, any::<u8>()));
        prop::collection::vec(prop::collection::vec(row, 0..300), 1..12)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

        /// Each reader sees the store as it was when it began, whatever units came since, also in the middle of a unit.
        #[test]
        fn readers_see_the_state_that_they_began_with(units in units(), leave in prop::collection::vec(0..12usize, 12)) {
            let (readers, memory) = (Arc::new(Readers::new(usize::MAX)), Arc::new(MemoryStore::new()));
            let mut model = Model::new();
            let mut reading: Vec<(Ticket, Model)> = Vec::new();
            for (generation, (unit, leaves)) in (0u64..).zip(units.iter().zip(leave)) {
                let (ticket, ()) = readers.begin(|| (generation, ()));
                reading.push((ticket, model.clone()));
                let batch = batch(unit);
                readers.keep(generation + 1, &batch, memory.as_ref());
                // A part of the unit first.
                let half: Vec<_> = batch.iter().collect();
                let mut part = WriteBatch::default();
                half.iter().take(half.len() / 2).for_each(|(key, row)| match row {
                    Some(row) => part.put(key, *row),
                    None => part.delete(key),
                });
                for written in [&part, &batch] {
                    memory.write(written).unwrap();
                    for (ticket, then) in &reading {
                        let snapshot = &at(ticket, &memory);
                        let expected: Vec<_> = then.iter().map(|(key, row)| (key.clone(), row.clone())).collect();
                        prop_assert_eq!(scanned(snapshot, &[], &[]), expected.clone());
                        let behind: Vec<_> = expected.into_iter().filter(|(key, _)| key.as_slice() >= &[1, 7][..] && key[0] == 1).collect();
                        prop_assert_eq!(scanned(snapshot, &[1], &[1, 7]), behind);
                        let keys: Vec<[u8; 2]> = (0..700u16).step_by(13).map(u16::to_be_bytes).collect();
                        let keys: Vec<&[u8]> = keys.iter().map(<[u8; 2]>::as_slice).collect();
                        let rows: Vec<Row> = keys.iter().map(|key| then.get(*key).cloned()).collect();
                        prop_assert_eq!(snapshot.get_many(&keys).unwrap(), rows.clone());
                        for (key, row) in keys.iter().zip(rows) {
                            prop_assert_eq!(snapshot.get(key).unwrap(), row);
                        }
                    }
                }
                for (key, row) in unit {
                    match row {
                        Some(row) => model.insert(key.to_be_bytes().to_vec(), vec![*row]),
                        None => model.remove(&key.to_be_bytes()[..]),
                    };
                }
                if leaves < reading.len() {
                    reading.remove(leaves);
                }
            }
            drop(reading);
            let state = readers.read();
            prop_assert!(state.kept.is_empty() && state.bytes == 0 && state.active.is_empty());
        }
    }

    #[test]
    fn nothing_is_kept_for_nobody_and_at_the_bound_the_oldest_reader_fails() {
        let (readers, memory) = (Arc::new(Readers::new(3 * (KEPT_BYTES + 3))), Arc::new(MemoryStore::new()));
        let begin = |generation| readers.begin(|| (generation, ())).0;
        let unit = |generation: u64, keys: std::ops::Range<u16>| {
            let rows: Vec<_> = keys.map(|key| (key, Some(generation as u8))).collect();
            readers.keep(generation, &batch(&rows), memory.as_ref());
            memory.write(&batch(&rows)).unwrap();
        };
        unit(1, 0..100);
        assert_eq!(readers.read().bytes, 0);
        let tickets = (begin(1), unit(2, 0..2), begin(2));
        let (oldest, newer) = (at(&tickets.0, &memory), at(&tickets.2, &memory));
        unit(3, 2..3);
        assert_eq!(oldest.get(&[0, 0]).unwrap(), Some(vec![1]));
        unit(4, 0..1);
        let error = oldest.get(&[0, 50]).unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Expired);
        assert!(
            oldest.get_many(&[&[0, 50]]).is_err()
                && oldest.scan(&[], &mut |_, _| ControlFlow::Continue(())).is_err()
        );
        assert_eq!(
            [newer.get(&[0, 0]).unwrap(), newer.get(&[0, 2]).unwrap()],
            [Some(vec![2]), Some(vec![1])]
        );
        drop(tickets);
        assert_eq!(readers.read().bytes, 0);
    }

    /// What cannot be kept for a reader, it does not read newer.
    #[test]
    fn who_reads_while_nothing_can_be_kept_fails_and_who_begins_later_does_not() {
        let (readers, memory) = (Arc::new(Readers::new(usize::MAX)), Arc::new(MemoryStore::new()));
        let begin = |generation| readers.begin(|| (generation, ())).0;
        let (before, unit) = (begin(1), batch(&[(7, Some(2))]));
        readers.keep(2, &unit, &EndedStore::of(memory.as_ref()));
        memory.write(&unit).unwrap();
        assert_eq!(at(&before, &memory).get(&[0, 7]).unwrap_err().kind(), StoreErrorKind::Expired);
        assert_eq!(at(&begin(2), &memory).get(&[0, 7]).unwrap(), Some(vec![2]));
    }
}
