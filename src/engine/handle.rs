//! What becomes of a closed block, told to who closed it; and what becomes of all of them, told to who looks after them.
//!
//! A block's failure belongs to the handles of that block and of those on top of it. Nobody else is told: not who waits for
//! another block, and not who reads. Who runs the engine may subscribe to everything ([`Engine::subscribe`]).

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use flagstone_core::types::{BlockNumber, StateId};

use super::events::Subscription;
use super::meta::BlockRoot;
use super::outcome::{At, Failure, Outcome};
use super::running::Engine;
use super::shared::Shared;
use crate::error::Error;

/// A block that was closed, and what becomes of it. Cheap to clone; keeps nothing alive.
#[derive(Clone)]
pub struct BlockHandle {
    outcome: Arc<Outcome>,
    shared: Weak<Shared>,
}

impl BlockHandle {
    pub(super) fn new(outcome: &Arc<Outcome>, shared: &Arc<Shared>) -> Self {
        Self { outcome: Arc::clone(outcome), shared: Arc::downgrade(shared) }
    }

    /// The block's number.
    pub fn number(&self) -> BlockNumber {
        self.outcome.number()
    }

    /// The state after the block.
    pub fn state(&self) -> StateId {
        self.outcome.state()
    }

    /// When its root is known: that root, or `None` if the block was committed as one with later blocks
    /// ([`EngineConfig::coalesce`](super::EngineConfig::coalesce)). Asks for the commitment, whatever the cadence.
    pub fn committed(&self) -> Stage<Option<BlockRoot>> {
        Stage::new(self, |at| at.committed)
    }

    /// When its rows are in the store. (It is durable before.) Asks for the commitment, whatever the cadence.
    pub fn persisted(&self) -> Stage<()> {
        Stage::new(self, |at| at.persisted.then_some(()))
    }

    /// Who has the handle knows of the failure now.
    fn note_told(&self, failure: &Failure) {
        if let Some(shared) = self.shared.upgrade() {
            shared.chain().told(failure.id);
        }
    }
}

impl std::fmt::Debug for BlockHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let at = self.outcome.at();
        f.debug_struct("BlockHandle")
            .field("number", &self.outcome.number())
            .field("committed", &at.committed.is_some())
            .field("persisted", &at.persisted)
            .field("failed", &at.failed.is_some())
            .finish_non_exhaustive()
    }
}

/// Something that is to become of a block: looked at, waited for (blocking, or as a future, which needs no runtime), or with a
/// callback.
///
/// The error is why it will not: [`Error::RootMismatch`] if the block was taken back for its root, [`Error::TakenBack`] if it
/// was with one before it, [`Error::State`] if store or journal failed, [`Error::Ended`] if the engine was closed before.
#[must_use = "it does nothing by itself"]
pub struct Stage<T> {
    handle: BlockHandle,
    reached: fn(&At) -> Option<T>,
}

impl<T> Stage<T> {
    fn new(handle: &BlockHandle, reached: fn(&At) -> Option<T>) -> Self {
        Self { handle: handle.clone(), reached }
    }

    fn look(&self, at: &At) -> Option<Result<T, Failure>> {
        (self.reached)(at).map(Ok).or_else(|| at.failed.clone().map(Err))
    }

    fn tell(&self, outcome: Result<T, Failure>) -> Result<T, Error> {
        outcome.map_err(|failure| {
            self.handle.note_told(&failure);
            failure.error
        })
    }

    /// What is known now.
    pub fn now(&self) -> Option<Result<T, Error>> {
        let outcome = self.look(&self.handle.outcome.at())?;
        Some(self.tell(outcome))
    }

    /// Sees to it that something will become of the block.
    fn want(&self) {
        match self.handle.shared.upgrade() {
            Some(shared) => shared.want(self.handle.outcome.number()),
            // Nobody is left to do it.
            None => self.handle.outcome.fail(0, Error::Ended),
        }
    }

    /// Waits for it.
    ///
    /// # Errors
    /// Why it will not come, as told above.
    pub fn wait(&self) -> Result<T, Error> {
        loop {
            if let Some(outcome) = self.wait_for(Duration::from_secs(3600)) {
                return outcome;
            }
        }
    }

    /// Waits for it, at most so long; `None` if it is not known by then.
    pub fn wait_for(&self, timeout: Duration) -> Option<Result<T, Error>> {
        if let Some(outcome) = self.now() {
            return Some(outcome);
        }
        self.want();
        let outcome = &self.handle.outcome;
        let until = Instant::now().checked_add(timeout);
        let mut at = outcome.at();
        loop {
            if let Some(outcome) = self.look(&at) {
                drop(at);
                return Some(self.tell(outcome));
            }
            let left = until.map_or(timeout, |until| until.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return None;
            }
            at = outcome.wait_some(at, left);
        }
    }

    /// Calls back with it, at once if it is known, otherwise on the engine's thread that brings it: a callback must be
    /// short, and must not wait for the engine.
    pub fn then(self, callback: impl FnOnce(Result<T, Error>) + Send + 'static)
    where
        T: 'static,
    {
        let mut callback = Some(callback);
        let mut call = move |stage: &Self| match stage.now() {
            Some(outcome) => {
                if let Some(callback) = callback.take() {
                    callback(outcome);
                }
                true
            }
            None => false,
        };
        if call(&self) {
            return;
        }
        self.want();
        let BlockHandle { outcome, shared } = self.handle.clone();
        let reached = self.reached;
        let mut with = move |outcome: &Arc<Outcome>| {
            let handle = BlockHandle { outcome: Arc::clone(outcome), shared: shared.clone() };
            call(&Self { handle, reached })
        };
        // What came between the two looks has called nobody.
        let mut at = outcome.at();
        if self.look(&at).is_none() {
            at.callbacks.push(Box::new(with));
            return;
        }
        drop(at);
        with(&outcome);
    }
}

impl<T> Future for Stage<T> {
    type Output = Result<T, Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(outcome) = self.now() {
            return Poll::Ready(outcome);
        }
        self.want();
        let mut at = self.handle.outcome.at();
        if let Some(outcome) = self.look(&at) {
            drop(at);
            return Poll::Ready(self.tell(outcome));
        }
        if !at.wakers.iter().any(|waker| waker.will_wake(context.waker())) {
            at.wakers.push(context.waker().clone());
        }
        Poll::Pending
    }
}

impl Engine {
    /// Tells of everything that happens from now on: for operators, metrics and logs. A failure is told here whoever else is.
    pub fn subscribe(&self) -> Subscription {
        self.shared.subscribers.add()
    }
}
