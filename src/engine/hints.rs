//! Reading ahead: a lane of its own for keys that somebody expects to be read or written soon.
//!
//! What is hinted is read into the values in front of the layout, and the layout is told, so that it can read ahead what a
//! commitment of writes to these keys will need. Nothing waits for it, and nothing depends on it: hints may come late, be
//! wrong, or be dropped when there are too many, and change no answer and no root.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use flagstone_core::diff::Subject;

use super::view::View;
use super::{Engine, Shared, Tip};
use crate::error::Error;

/// Most hints that wait. Those beyond are dropped.
const WAITING_MAX: usize = 1 << 16;
/// Hints that are read ahead together.
const BATCH: usize = 512;

/// What became of hints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HintStats {
    /// Keys that were hinted.
    pub hinted: u64,
    /// Those that were dropped because too many waited.
    pub dropped: u64,
    /// Those that were read ahead.
    pub fetched: u64,
}

/// Hints that wait, and how many there were.
#[derive(Default)]
pub struct Hints {
    waiting: Mutex<Waiting>,
    more: Condvar,
    hinted: AtomicU64,
    dropped: AtomicU64,
    fetched: AtomicU64,
}

#[derive(Default)]
struct Waiting {
    subjects: VecDeque<Subject>,
    ended: bool,
}

impl Hints {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, subjects: impl Iterator<Item = Subject>) {
        let mut waiting = self.waiting();
        for subject in subjects {
            self.hinted.fetch_add(1, Ordering::Relaxed);
            if waiting.subjects.len() < WAITING_MAX {
                waiting.subjects.push_back(subject);
            } else {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.more.notify_all();
    }

    /// The next hints, when there are some; none at the end.
    fn next(&self) -> Vec<Subject> {
        let mut waiting = self.waiting();
        while waiting.subjects.is_empty() && !waiting.ended {
            waiting = self.more.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        let count = if waiting.ended { 0 } else { waiting.subjects.len().min(BATCH) };
        waiting.subjects.drain(..count).collect()
    }

    /// Drops what waits; the lane ends.
    pub fn end(&self) {
        self.waiting().ended = true;
        self.more.notify_all();
    }
}

impl Engine {
    /// Says that these things are likely to be read or written by the blocks to come: they are read ahead, on a thread of
    /// their own. Returns at once. Worth its while for what a block's transactions name, before they execute.
    pub fn prefetch(&self, subjects: impl IntoIterator<Item = Subject>) {
        self.shared.hints.add(subjects.into_iter());
    }

    /// What became of hints so far.
    pub fn hint_stats(&self) -> HintStats {
        let Hints { hinted, dropped, fetched, .. } = &self.shared.hints;
        let [hinted, dropped, fetched] =
            [hinted, dropped, fetched].map(|counter| counter.load(Ordering::Relaxed));
        HintStats { hinted, dropped, fetched }
    }
}

/// The lane's thread. A failed read is nothing to it: whoever needs the value will be told.
pub fn follow(shared: &Arc<Shared>) -> Result<(), Error> {
    loop {
        let subjects = shared.hints.next();
        if subjects.is_empty() || shared.check_running().is_err() {
            return Ok(());
        }
        let Tip { stamp, block } = shared.tip();
        let view = View { shared: Arc::clone(shared), stamp, block, past: None };
        for subject in &subjects {
            let _ = view.value(subject);
        }
        let _ = shared.rows.read(|state| shared.layout.prefetch(state, &subjects));
        shared.hints.fetched.fetch_add(subjects.len() as u64, Ordering::Relaxed);
    }
}
