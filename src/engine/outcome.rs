//! What is known of a closed block: its root, whether it is in the store, or why nothing becomes of it.
//!
//! Each closed block has one [`Outcome`], and so has each candidate. The stages tell it; handles, views and whoever waits ask it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use flagstone_core::types::{BlockNumber, StateId};

use super::meta::BlockRoot;
use crate::error::Error;

/// A block that was committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct CommittedBlock {
    /// The block.
    pub number: BlockNumber,
    /// How many values its diff wrote.
    pub writes: usize,
    /// Its roots and state commitment.
    pub root: BlockRoot,
    /// Whether a root was stated for it, and so was found equal.
    pub verified: bool,
}

/// What is known of a closed block, or of a candidate.
pub struct Outcome {
    number: BlockNumber,
    state: StateId,
    /// The block was taken back: no view answers for its state.
    gone: AtomicBool,
    at: Mutex<At>,
    changed: Condvar,
}

/// How far a block has come, and who is to be told when that changes.
#[derive(Default)]
pub struct At {
    /// The block's root, unless it was committed as one with later ones.
    pub committed: Option<Option<BlockRoot>>,
    pub persisted: bool,
    pub failed: Option<Failure>,
    pub wakers: Vec<Waker>,
    pub callbacks: Vec<Callback>,
}

/// Called with each change; whether it is done.
pub type Callback = Box<dyn FnMut(&Arc<Outcome>) -> bool + Send>;

/// Why a block failed, with the number of the failure: one of several blocks.
#[derive(Clone)]
pub struct Failure {
    pub id: u64,
    pub error: Error,
}

impl Outcome {
    pub fn new(number: BlockNumber, state: StateId) -> Arc<Self> {
        let (at, changed) = (Mutex::default(), Condvar::new());
        Arc::new(Self { number, state, gone: AtomicBool::new(false), at, changed })
    }

    /// What is known of it, which stays so while this is held.
    pub fn at(&self) -> MutexGuard<'_, At> {
        self.at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The block is committed, with a root of its own or as one with later blocks. Whoever waits wakes; [`Outcome::call`] calls back.
    pub fn commit(&self, root: Option<BlockRoot>) {
        self.at().committed = Some(root);
        self.changed.notify_all();
    }

    /// The block's rows are in the store.
    pub fn persist(self: &Arc<Self>) {
        self.change(|at| at.persisted = true);
    }

    /// Nothing will become of the block any more, unless it has become that already.
    pub fn fail(self: &Arc<Self>, id: u64, error: Error) {
        self.change(|at| {
            at.failed.get_or_insert(Failure { id, error });
        });
    }

    /// The block's number.
    pub const fn number(&self) -> BlockNumber {
        self.number
    }

    /// Waits until the block is committed, or has failed. Somebody must want it.
    pub fn wait_committed(&self) -> Result<Option<BlockRoot>, Error> {
        self.wait(|at| at.committed)
    }

    /// Waits until the block's rows are in the store, or it has failed.
    pub fn wait_persisted(&self) -> Result<(), Error> {
        self.wait(|at| at.persisted.then_some(()))
    }

    fn wait<T>(&self, reached: impl Fn(&At) -> Option<T>) -> Result<T, Error> {
        let mut at = self.at();
        loop {
            match (reached(&at), &at.failed) {
                (Some(reached), _) => return Ok(reached),
                (None, Some(failure)) => return Err(failure.error.clone()),
                (None, None) => at = self.changed.wait(at).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// Waits until something changes, at most so long.
    pub fn wait_some<'a>(&self, at: MutexGuard<'a, At>, most: Duration) -> MutexGuard<'a, At> {
        self.changed.wait_timeout(at, most).unwrap_or_else(PoisonError::into_inner).0
    }

    /// From now on no view answers for the block's state.
    pub fn take_back(&self) {
        self.gone.store(true, Ordering::SeqCst);
    }

    /// Whether the block was taken back because a root did not hold.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::SeqCst)
    }

    /// The state after the block.
    pub const fn state(&self) -> StateId {
        self.state
    }

    fn change(self: &Arc<Self>, change: impl FnOnce(&mut At)) {
        change(&mut self.at());
        self.call();
    }

    /// Tells all who wait that something has changed.
    pub fn call(self: &Arc<Self>) {
        let mut at = self.at();
        let (wakers, callbacks) = (std::mem::take(&mut at.wakers), std::mem::take(&mut at.callbacks));
        drop(at);
        self.changed.notify_all();
        wakers.into_iter().for_each(Waker::wake);
        for mut callback in callbacks {
            if !callback(self) {
                self.at().callbacks.push(callback);
            }
        }
    }
}
