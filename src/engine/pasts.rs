//! Earlier states that were led back to, kept for who asks again.
//!
//! An earlier state's tries are those of a newer one with a diff committed over them in memory ([`history`](super::history)). What that
//! commitment made is kept here with the generation that it is over ([`Held`]), so that it stays right whatever is committed and
//! written since; so are the values that differ, with the stamp of the state that they are over. Both are bounded in bytes together,
//! and leave when nobody has asked for a while: who reads an earlier generation makes the writer keep what it overwrites.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use flagstone_core::commit::Overlay;
use flagstone_core::diff::Subject;
use flagstone_core::felt::Felt;
use flagstone_core::types::StateId;

use super::meta::BlockRoot;
use super::rows::Held;

/// How long a state stays that nobody asks for.
const IDLE: Duration = Duration::from_secs(10);
/// About what a value that differs takes.
const VALUE_BYTES: usize = size_of::<(Subject, Felt)>() * 8 / 7 + 1;

/// The tries of an earlier state.
pub struct PastTries {
    pub held: Held,
    pub overlay: Overlay,
    pub root: BlockRoot,
}

/// The values of an earlier state, where they differ from a newer one.
#[derive(Clone)]
pub struct PastValues {
    /// The stamp of the state that they are over.
    pub stamp: u64,
    pub changed: Arc<HashMap<Subject, Felt>>,
}

enum Past {
    Tries(Arc<PastTries>),
    Values(PastValues),
}

impl Past {
    fn bytes(&self) -> usize {
        match self {
            Self::Tries(tries) => tries.overlay.bytes(),
            Self::Values(values) => values.changed.capacity() * VALUE_BYTES,
        }
    }
}

struct Entry {
    state: StateId,
    past: Past,
    used: Instant,
}

/// The earlier states that are kept, the one that was used last at the end.
pub struct Pasts {
    entries: Mutex<Vec<Entry>>,
    /// Held by who leads back, so that two who ask for one state do it once.
    leading: Mutex<()>,
    bytes_max: usize,
}

impl Pasts {
    pub const fn new(bytes_max: usize) -> Self {
        Self { entries: Mutex::new(Vec::new()), leading: Mutex::new(()), bytes_max }
    }

    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn leading(&self) -> MutexGuard<'_, ()> {
        self.leading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is kept of a state, and moves it to the end.
    fn find<T>(&self, state: StateId, pick: impl Fn(&Past) -> Option<T>) -> Option<T> {
        let mut entries = self.entries();
        let place = entries.iter().position(|entry| entry.state == state && pick(&entry.past).is_some())?;
        let mut entry = entries.remove(place);
        entry.used = Instant::now();
        let found = pick(&entry.past);
        entries.push(entry);
        found
    }

    /// The tries of a state, if they can still be read.
    pub fn tries(&self, state: StateId) -> Option<Arc<PastTries>> {
        let tries = self.find(state, |past| match past {
            Past::Tries(tries) => Some(Arc::clone(tries)),
            Past::Values(_) => None,
        })?;
        (!tries.held.is_expired()).then_some(tries)
    }

    /// The values of a state that differ.
    pub fn values(&self, state: StateId) -> Option<PastValues> {
        self.find(state, |past| match past {
            Past::Values(values) => Some(values.clone()),
            Past::Tries(_) => None,
        })
    }

    pub fn keep_tries(&self, state: StateId, tries: &Arc<PastTries>) {
        self.keep(state, Past::Tries(Arc::clone(tries)));
    }

    pub fn keep_values(&self, state: StateId, values: &PastValues) {
        self.keep(state, Past::Values(values.clone()));
    }

    fn keep(&self, state: StateId, past: Past) {
        let kind = std::mem::discriminant(&past);
        let mut entries = self.entries();
        entries.retain(|entry| entry.state != state || std::mem::discriminant(&entry.past) != kind);
        entries.push(Entry { state, past, used: Instant::now() });
        let mut bytes: usize = entries.iter().map(|entry| entry.past.bytes()).sum();
        let count = entries.iter().take_while(|entry| {
            let is_over = bytes > self.bytes_max;
            bytes -= if is_over { entry.past.bytes() } else { 0 };
            is_over
        });
        let count = count.count();
        entries.drain(..count);
    }

    /// Drops what nobody has asked for.
    pub fn drop_idle(&self) {
        self.entries().retain(|entry| entry.used.elapsed() < IDLE);
    }

    /// Drops everything.
    pub fn clear(&self) {
        self.entries().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(count: u64) -> PastValues {
        let changed = (0..count).map(|key| (Subject::Nonce(key.into()), Felt::ONE)).collect();
        PastValues { stamp: 0, changed: Arc::new(changed) }
    }

    #[test]
    fn what_was_used_longest_ago_leaves_at_the_bound() {
        let pasts = Pasts::new(240 * VALUE_BYTES);
        let is_there = |state| pasts.values(StateId(state)).is_some();
        (1..=3).for_each(|state| pasts.keep_values(StateId(state), &values(50)));
        assert!(is_there(1));
        pasts.keep_values(StateId(4), &values(100));
        assert!(is_there(1) && !is_there(2) && is_there(4), "1 was asked for after 2 and 3");
        pasts.keep_values(StateId(5), &values(1_000));
        assert!(!is_there(5) && !is_there(1), "what does not fit is not kept");
        pasts.keep_values(StateId(6), &values(10));
        pasts.keep_values(StateId(6), &values(20));
        let count = pasts.entries().len();
        assert_eq!((count, pasts.values(StateId(6)).unwrap().changed.len()), (1, 20));
        pasts.clear();
        assert!(!is_there(6));
    }
}
