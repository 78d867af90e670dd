//! Readers of states that are not the newest any more.
//!
//! Whoever goes over tries or rows for long begins with a committed state and keeps it, whatever is committed or written
//! meanwhile. The writer waits for no reader: before it applies a unit to the store it reads what the unit overwrites,
//! while somebody reads an earlier state, and keeps that ([`Readers::keep`]). A reader asks the store first and what was kept
//! then: what was kept before the unit began has the last word, so it does not matter how far the unit has come.
//!
//! A store that lends snapshots ([`Store::snapshot`]) is asked for one instead: it has all rows as they were before the unit, so nothing
//! is read or kept in memory, and what was overwritten stays on the disk.
//!
//! What is kept is bounded in bytes, in memory and on the disk. At the bound the oldest reader's reads fail from then on, with
//! [`StoreErrorKind::Expired`].

use std::collections::{BTreeMap, VecDeque};
use std::ops::{Bound, ControlFlow};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use flagstone_core::store::{Row, Store, StoreError, StoreErrorKind, StoreRead, Visit, WriteBatch};

/// Rows that a scan reads at a time, before it looks at what was kept.
const SCAN_ROWS: usize = 256;
/// Rows that are read at a time to be kept.
const KEEP_ROWS: usize = 1024;
/// About what a kept row takes beside its key and bytes.
const KEPT_BYTES: usize = 96;

/// How much may be kept for readers.
#[derive(Clone, Copy)]
pub struct Bounds {
    /// Bytes of rows in memory.
    pub kept_bytes: usize,
    /// Bytes that are written while a store lends a snapshot.
    pub lent_bytes: u64,
}

/// Who reads which generation, and what is kept for them.
pub struct Readers {
    state: RwLock<State>,
    bounds: Bounds,
}

#[derive(Default)]
struct State {
    /// By generation, the flags that say that a reader has expired.
    active: BTreeMap<u64, Vec<Arc<AtomicBool>>>,
    /// In the order of units.
    kept: VecDeque<Arc<Kept>>,
    /// Of rows that are kept.
    bytes: usize,
    /// Of units, while there were readers.
    written: u64,
}

/// What a unit overwrites, as it was before.
struct Kept {
    /// The generation after the unit.
    through: u64,
    rows: BTreeMap<Vec<u8>, Row>,
    bytes: usize,
    /// All rows, from a store that lends them; then none are kept.
    lent: Option<Arc<dyn StoreRead>>,
    /// What was [`written`](State::written) before the unit.
    written_before: u64,
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

    /// Bytes that were written while the oldest snapshot was lent.
    fn lent_bytes(&self) -> u64 {
        let oldest = self.kept.iter().find(|kept| kept.lent.is_some());
        oldest.map_or(0, |oldest| self.written - oldest.written_before)
    }

    /// Lets readers fail, the oldest first, until no more is kept than may be.
    fn hold_to(&mut self, bounds: Bounds) {
        while (self.bytes > bounds.kept_bytes || self.lent_bytes() > bounds.lent_bytes)
            && let Some(oldest) = self.active.first_key_value().map(|(generation, _)| *generation)
        {
            self.expire(oldest);
            self.prune();
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
    pub fn new(bounds: Bounds) -> Self {
        Self { state: RwLock::default(), bounds }
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
        let is_lent = known.iter().any(|kept| kept.lent.is_some());
        let kept = if is_lent { Some(None) } else { kept_of(through, batch, store, &known).map(Some) };
        let mut state = self.change();
        match kept {
            Some(kept) => {
                let kept = kept.map(|kept| Kept { written_before: state.written, ..kept });
                state.bytes += kept.as_ref().map_or(0, |kept| kept.bytes);
                state.kept.extend(kept.map(Arc::new));
                state.written += batch.bytes() as u64;
            }
            // They would be told of newer rows.
            None => {
                while let Some(oldest) =
                    state.active.range(..through).next().map(|(generation, _)| *generation)
                {
                    state.expire(oldest);
                }
            }
        }
        state.prune();
        state.hold_to(self.bounds);
    }

    /// Gives back what the store has lent, as it is to be closed. The readers fail from then on.
    pub fn give_back(&self) {
        let mut state = self.change();
        while let Some(oldest) = state.active.first_key_value().map(|(generation, _)| *generation) {
            state.expire(oldest);
        }
        let kept = std::mem::take(&mut state.kept);
        state.bytes = 0;
        state.prune();
        drop(state);
        let lent: Vec<Arc<dyn StoreRead>> =
            kept.iter().filter_map(|kept| kept.lent.as_ref().map(Arc::clone)).collect();
        drop(kept);
        // Who is in the middle of a read has one of its own.
        while lent.iter().any(|lent| Arc::strong_count(lent) > 1) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// What is kept of what a unit overwrites, beyond what is known; `None` if the store fails.
fn kept_of(through: u64, batch: &WriteBatch, store: &dyn Store, known: &[Arc<Kept>]) -> Option<Kept> {
    let (mut rows, mut bytes) = (BTreeMap::new(), 0);
    if let Some(lent) = store.snapshot() {
        return Some(Kept { through, rows, bytes, lent: Some(lent), written_before: 0 });
    }
    let keys = batch.iter().map(|(key, _)| key);
    let keys: Vec<&[u8]> =
        keys.filter(|key| known.iter().all(|kept| !kept.rows.contains_key(*key))).collect();
    for keys in keys.chunks(KEEP_ROWS) {
        for (key, row) in keys.iter().zip(store.get_many(keys).ok()?) {
            bytes += KEPT_BYTES + key.len() + row.as_ref().map_or(0, Vec::len);
            rows.insert(key.to_vec(), row);
        }
    }
    Some(Kept { through, rows, bytes, lent: None, written_before: 0 })
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
        let problem = "more was written since this read began than is kept for readers (`reader_bytes_max`, `lent_bytes_max`); begin again";
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

impl Snapshot<'_> {
    /// Reads from the store, or from what it has lent if it has, and lets what was kept in memory have the last word.
    fn read<T>(
        &self,
        read: impl Fn(&dyn StoreRead) -> Result<T, StoreError>,
        last_word: impl Fn(&mut T, &[&BTreeMap<Vec<u8>, Row>]),
    ) -> Result<T, StoreError> {
        let mut lent = self.lent(&self.ticket.readers.read());
        loop {
            self.ticket.check()?;
            let mut rows = match &lent {
                Some(lent) => read(lent)?,
                None => read(&self.store)?,
            };
            let state = self.ticket.readers.read();
            self.ticket.check()?;
            let lent_now = self.lent(&state);
            if lent.is_none() && lent_now.is_some() {
                lent = lent_now;
                continue;
            }
            let before_it = state.kept_for(self.ticket.generation).take_while(|kept| kept.lent.is_none());
            last_word(&mut rows, &before_it.map(|kept| &kept.rows).collect::<Vec<_>>());
            return Ok(rows);
        }
    }

    /// What the store has lent for this reader.
    fn lent(&self, state: &State) -> Option<Arc<dyn StoreRead>> {
        state.kept_for(self.ticket.generation).find_map(|kept| kept.lent.as_ref().map(Arc::clone))
    }
}

impl StoreRead for Snapshot<'_> {
    fn get(&self, key: &[u8]) -> Result<Row, StoreError> {
        self.read(
            |store| store.get(key),
            |row, kept| {
                if let Some(old) = kept.iter().find_map(|rows| rows.get(key)) {
                    row.clone_from(old);
                }
            },
        )
    }

    fn get_many(&self, keys: &[&[u8]]) -> Result<Vec<Row>, StoreError> {
        self.read(
            |store| store.get_many(keys),
            |rows, kept| {
                for (key, row) in keys.iter().zip(rows) {
                    let old = kept.iter().find_map(|rows| rows.get(*key));
                    old.into_iter().for_each(|old| row.clone_from(old));
                }
            },
        )
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
        let scan = |store: &dyn StoreRead| {
            let (mut rows, mut more) = (BTreeMap::new(), false);
            store.scan_from(prefix, at, &mut |key, row| {
                more = rows.len() == SCAN_ROWS;
                if more {
                    return ControlFlow::Break(());
                }
                rows.insert(key.to_vec(), Some(row.to_vec()));
                ControlFlow::Continue(())
            })?;
            let end = rows.last_key_value().map(|(key, _)| key.clone()).filter(|_| more);
            Ok((rows, end))
        };
        self.read(scan, |(rows, end), kept| {
            let mut old: BTreeMap<&[u8], &Row> = BTreeMap::new();
            for kept in kept {
                let range = kept.range::<[u8], _>((Bound::Included(at), Bound::Unbounded));
                let inside = |key: &[u8]| {
                    key.starts_with(prefix) && end.as_ref().is_none_or(|end| key <= end.as_slice())
                };
                for (key, row) in range.take_while(|(key, _)| inside(key)) {
                    old.entry(key).or_insert(row);
                }
            }
            old.into_iter().for_each(|(key, row)| drop(rows.insert(key.to_vec(), row.clone())));
        })
    }
}

#[cfg(test)]
mod tests {
    use flagstone_core::store::MemoryStore;
    use proptest::prelude::*;

    use super::*;
    use crate::engine::rows::base::EndedStore;
    use crate::engine::rows::lending::Lending;

    const UNBOUNDED: Bounds = Bounds { kept_bytes: usize::MAX, lent_bytes: u64::MAX };

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
        fn readers_see_the_state_that_they_began_with(
            units in units(),
            leave in prop::collection::vec(0..12usize, 12),
            lends in prop::collection::vec(any::<bool>(), 12),
        ) {
            let (readers, memory) = (Arc::new(Readers::new(UNBOUNDED)), Arc::new(MemoryStore::new()));
            let mut model = Model::new();
            let mut reading: Vec<(Ticket, Model)> = Vec::new();
            for (generation, ((unit, leaves), lends)) in (0u64..).zip(units.iter().zip(leave).zip(lends)) {
                let (ticket, ()) = readers.begin(|| (generation, ()));
                reading.push((ticket, model.clone()));
                let batch = batch(unit);
                readers.keep(generation + 1, &batch, &Lending::new(&memory, lends));
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
        let (readers, memory) = (
            Arc::new(Readers::new(Bounds { kept_bytes: 3 * (KEPT_BYTES + 3), ..UNBOUNDED })),
            Arc::new(MemoryStore::new()),
        );
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

    #[test]
    fn a_unit_that_comes_in_the_middle_of_a_read_is_not_seen_by_it() {
        for lends in [false, true] {
            let (readers, memory) = (Arc::new(Readers::new(UNBOUNDED)), Arc::new(MemoryStore::new()));
            memory.write(&batch(&[(7, Some(1))])).unwrap();
            let (ticket, ()) = readers.begin(|| (1, ()));
            let (keeper, rows) = (Arc::clone(&readers), Arc::clone(&memory));
            let unit = move || {
                let unit = batch(&[(7, Some(2))]);
                keeper.keep(2, &unit, &Lending::new(&rows, lends));
                rows.write(&unit).unwrap();
            };
            let store = Lending::new(&memory, lends).interrupted_by(unit);
            let snapshot = Snapshot { ticket: &ticket, store: Arc::new(store) };
            assert_eq!(snapshot.get(&[0, 7]).unwrap(), Some(vec![1]), "lends: {lends}");
            assert_eq!(memory.get(&[0, 7]).unwrap(), Some(vec![2]));
        }
    }

    /// One snapshot serves all who began before it, is given back when they end, and is bounded by what is written meanwhile.
    #[test]
    fn a_lent_snapshot_is_held_for_its_readers_and_no_longer() {
        let unit = batch(&[(7, Some(2))]);
        let bounds = Bounds { kept_bytes: 0, lent_bytes: 2 * unit.bytes() as u64 };
        let (readers, memory) = (Arc::new(Readers::new(bounds)), Arc::new(MemoryStore::new()));
        let write = |through| {
            readers.keep(through, &unit, &Lending::new(&memory, true));
            memory.write(&unit).unwrap();
        };
        let begin = |generation| readers.begin(|| (generation, ())).0;
        let get = |ticket: &Ticket| at(ticket, &memory).get(&[0, 7]);
        let lent = || readers.read().kept.len();
        let (first, second) = (begin(1), begin(1));
        write(2);
        write(3);
        assert_eq!((lent(), get(&first).unwrap(), get(&second).unwrap()), (1, None, None));
        drop(first);
        assert_eq!(lent(), 1);
        let third = begin(3);
        write(4);
        assert_eq!(get(&second).unwrap_err().kind(), StoreErrorKind::Expired);
        assert_eq!((lent(), get(&third).unwrap()), (1, Some(vec![2])));
        readers.give_back();
        assert_eq!(get(&third).unwrap_err().kind(), StoreErrorKind::Expired);
        drop((second, third));
        assert_eq!(lent(), 0);
    }

    /// What cannot be kept for a reader, it does not read newer.
    #[test]
    fn who_reads_while_nothing_can_be_kept_fails_and_who_begins_later_does_not() {
        let (readers, memory) = (Arc::new(Readers::new(UNBOUNDED)), Arc::new(MemoryStore::new()));
        let begin = |generation| readers.begin(|| (generation, ())).0;
        let (before, unit) = (begin(1), batch(&[(7, Some(2))]));
        readers.keep(2, &unit, &EndedStore::of(memory.as_ref()));
        memory.write(&unit).unwrap();
        assert_eq!(at(&before, &memory).get(&[0, 7]).unwrap_err().kind(), StoreErrorKind::Expired);
        assert_eq!(at(&begin(2), &memory).get(&[0, 7]).unwrap(), Some(vec![2]));
    }
}
