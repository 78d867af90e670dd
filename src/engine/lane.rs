//! Reading ahead what hints name, on a thread of its own.

use std::sync::Arc;

use flagstone_core::diff::Subject;

use super::hints::{HintStats, Next};
use super::running::Engine;
use super::shared::Shared;
use crate::error::Error;

impl Engine {
    /// Says that these things are likely to be read or written by the blocks to come: they are read ahead, on a thread of
    /// their own. Returns at once. Worth its while for what a block's transactions name, before they execute.
    pub fn prefetch(&self, subjects: impl IntoIterator<Item = Subject>) {
        // The caller's iterator runs before the lock is taken, as it may give hints itself.
        let subjects: Vec<Subject> = subjects.into_iter().collect();
        self.shared.hints.add(subjects.into_iter());
    }

    /// What became of hints so far.
    pub fn hint_stats(&self) -> HintStats {
        self.shared.hints.stats()
    }
}

impl Shared {
    /// The lane. A failed read is nothing to it: whoever needs the value will be told.
    pub(super) fn follow_hints(self: &Arc<Self>) -> Result<(), Error> {
        self.lane.install(|| follow(self))
    }
}

fn follow(shared: &Arc<Shared>) -> Result<(), Error> {
    loop {
        let next = shared.hints.next();
        if shared.check_running().is_err() {
            return Ok(());
        }
        match next {
            Next::Values(subjects) => {
                let fetched = subjects.len();
                shared.hints.read(fetched, read_values(shared, subjects));
            }
            Next::Layout(subjects) => {
                let _ = shared.rows.read(|state| shared.layout.prefetch(state, &subjects));
            }
            Next::End => return Ok(()),
        }
    }
}

/// Reads values of the newest state; keeps the subjects of those that were not in memory.
fn read_values(shared: &Arc<Shared>, mut subjects: Vec<Subject>) -> Vec<Subject> {
    let view = shared.view();
    subjects.retain(|subject| view.known(subject).is_none());
    for subject in &subjects {
        let _ = view.value(subject);
    }
    subjects
}
