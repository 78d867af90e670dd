//! Hints of keys that somebody expects to be read or written soon, as they wait for the lane that reads ahead ([`lane`](super::lane)).
//!
//! What is hinted is read into the values in front of the layout, and of what was not in memory there the layout is told, so
//! that it can read ahead what a commitment of writes to these keys will need. A key whose value is in memory was used lately,
//! and so were the nodes above it; to look for them all took 33 ms of CPU time for a block of 400 transactions. Values come
//! first, of all hints there are: an execution may be about to ask for them, while a commitment comes later. Nothing waits for
//! the lane, and nothing depends on it: hints may come late, be wrong, or be dropped when there are too many, and change no
//! answer and no root.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use flagstone_core::diff::Subject;

/// Most hints that wait for their values, and most that then wait for the layout. Those beyond are dropped.
const WAITING_MAX: usize = 1 << 16;
/// Hints whose values are read before new ones are looked for, and that the layout is given together.
const BATCH: usize = 512;

/// What became of hints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct HintStats {
    /// Keys that were hinted.
    pub hinted: u64,
    /// Those that were dropped because too many waited.
    pub dropped: u64,
    /// Those whose values were read ahead.
    pub fetched: u64,
    /// Of these, the ones whose values were not in memory: reads that the lane made instead of an executor.
    pub missed: u64,
}

/// Hints that wait, and how many there were.
#[derive(Default)]
pub struct Hints {
    waiting: Mutex<Waiting>,
    more: Condvar,
    hinted: AtomicU64,
    dropped: AtomicU64,
    fetched: AtomicU64,
    missed: AtomicU64,
}

#[derive(Default)]
struct Waiting {
    for_values: VecDeque<Subject>,
    for_layout: VecDeque<Subject>,
    ended: bool,
}

/// What the lane is to do next.
pub enum Next {
    Values(Vec<Subject>),
    Layout(Vec<Subject>),
    End,
}

impl Hints {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// More hints.
    pub fn add(&self, subjects: impl Iterator<Item = Subject>) {
        let mut waiting = self.waiting();
        for subject in subjects {
            self.hinted.fetch_add(1, Ordering::Relaxed);
            if waiting.for_values.len() < WAITING_MAX {
                waiting.for_values.push_back(subject);
            } else {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.more.notify_all();
    }

    /// Waits until there is something to do.
    pub fn next(&self) -> Next {
        let take = |from: &mut VecDeque<Subject>| from.drain(..from.len().min(BATCH)).collect();
        let mut waiting = self.waiting();
        loop {
            if waiting.ended {
                return Next::End;
            } else if !waiting.for_values.is_empty() {
                return Next::Values(take(&mut waiting.for_values));
            } else if !waiting.for_layout.is_empty() {
                return Next::Layout(take(&mut waiting.for_layout));
            }
            waiting = self.more.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// So many values are in memory, of which these were not before. They are the layout's when no values wait.
    pub fn read(&self, fetched: usize, missed: Vec<Subject>) {
        self.fetched.fetch_add(fetched as u64, Ordering::Relaxed);
        self.missed.fetch_add(missed.len() as u64, Ordering::Relaxed);
        let mut waiting = self.waiting();
        let room = WAITING_MAX - waiting.for_layout.len();
        waiting.for_layout.extend(missed.into_iter().take(room));
    }

    /// What became of all so far.
    pub fn stats(&self) -> HintStats {
        let Hints { hinted, dropped, fetched, missed, .. } = self;
        let [hinted, dropped, fetched, missed] =
            [hinted, dropped, fetched, missed].map(|counter| counter.load(Ordering::Relaxed));
        HintStats { hinted, dropped, fetched, missed }
    }

    /// Drops what waits; the lane ends.
    pub fn end(&self) {
        self.waiting().ended = true;
        self.more.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subjects(from: u64, count: u64) -> impl Iterator<Item = Subject> {
        (from..from + count).map(|number| Subject::Nonce(number.into()))
    }

    #[test]
    fn values_of_later_hints_come_before_what_the_layout_reads_for_earlier_ones() {
        let hints = Hints::default();
        hints.add(subjects(0, 3));
        let Next::Values(first) = hints.next() else { panic!("values first") };
        hints.read(3, first);
        hints.add(subjects(10, 2));
        let Next::Values(second) = hints.next() else { panic!("values first") };
        assert_eq!(second, subjects(10, 2).collect::<Vec<_>>());
        hints.read(2, second);
        let Next::Layout(all) = hints.next() else { panic!("no values wait") };
        assert_eq!(all, subjects(0, 3).chain(subjects(10, 2)).collect::<Vec<_>>());
        hints.add(subjects(0, 1));
        hints.end();
        assert!(matches!(hints.next(), Next::End), "what waits is dropped");
    }

    #[test]
    fn both_queues_keep_to_their_bound() {
        let hints = Hints::default();
        let many = WAITING_MAX as u64 + 10;
        hints.add(subjects(0, many));
        assert_eq!(hints.dropped.load(Ordering::Relaxed), 10);
        for _ in 0..2 {
            hints.read(0, subjects(0, many).collect());
        }
        let waiting = hints.waiting();
        assert_eq!((waiting.for_values.len(), waiting.for_layout.len()), (WAITING_MAX, WAITING_MAX));
    }
}
