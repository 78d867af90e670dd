//! What becomes of a closed block, told to who closed it; and what becomes of all of them, told to who looks after them.
//!
//! A block's failure belongs to the handles of that block and of those on top of it. Nobody else is told: not who waits for
//! another block, and not who reads. Who runs the engine may subscribe to everything ([`Engine::subscribe`]).

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use flagstone_core::types::{BlockNumber, StateId};

use super::meta::BlockRoot;
use super::{CommittedBlock, Engine, Shared};
use crate::error::Error;

/// Events that a subscriber may be behind; older ones are dropped, and counted.
const EVENTS_MAX: usize = 4096;

/// A block that was closed, and what becomes of it. Cheap to clone; keeps nothing alive.
#[derive(Clone)]
pub struct BlockHandle {
    life: Arc<Life>,
    shared: Weak<Shared>,
}

/// What is known of a closed block.
pub struct Life {
    number: BlockNumber,
    state: StateId,
    /// The block was taken back: no view answers for its state.
    gone: AtomicBool,
    at: Mutex<At>,
    changed: Condvar,
}

#[derive(Default)]
struct At {
    /// The block's root, unless it was committed as one with later ones.
    committed: Option<Option<BlockRoot>>,
    persisted: bool,
    failed: Option<Failure>,
    wakers: Vec<Waker>,
    callbacks: Vec<Callback>,
}

/// Called with each change; whether it is done.
type Callback = Box<dyn FnMut(&Arc<Life>) -> bool + Send>;

/// Why a block failed, with the number of the failure: one of several blocks.
#[derive(Clone)]
struct Failure {
    id: u64,
    error: Error,
}

impl Life {
    pub fn new(number: BlockNumber, state: StateId) -> Arc<Self> {
        let (at, changed) = (Mutex::default(), Condvar::new());
        Arc::new(Self { number, state, gone: AtomicBool::new(false), at, changed })
    }

    fn at(&self) -> MutexGuard<'_, At> {
        self.at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The block is committed, with a root of its own or as one with later blocks. Whoever waits wakes; [`Life::call`] calls back.
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

impl BlockHandle {
    pub(super) fn new(life: &Arc<Life>, shared: &Arc<Shared>) -> Self {
        Self { life: Arc::clone(life), shared: Arc::downgrade(shared) }
    }

    /// The block's number.
    pub fn number(&self) -> BlockNumber {
        self.life.number
    }

    /// The state after the block.
    pub fn state(&self) -> StateId {
        self.life.state
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
        let at = self.life.at();
        f.debug_struct("BlockHandle")
            .field("number", &self.life.number)
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
        let outcome = self.look(&self.handle.life.at())?;
        Some(self.tell(outcome))
    }

    /// Sees to it that something will become of the block.
    fn want(&self) {
        match self.handle.shared.upgrade() {
            Some(shared) => shared.want(self.handle.life.number),
            // Nobody is left to do it.
            None => self.handle.life.fail(0, Error::Ended),
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
        let life = &self.handle.life;
        let until = Instant::now().checked_add(timeout);
        let mut at = life.at();
        loop {
            if let Some(outcome) = self.look(&at) {
                drop(at);
                return Some(self.tell(outcome));
            }
            let left = until.map_or(timeout, |until| until.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return None;
            }
            let waited = life.changed.wait_timeout(at, left);
            at = waited.unwrap_or_else(PoisonError::into_inner).0;
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
        let BlockHandle { life, shared } = self.handle.clone();
        let reached = self.reached;
        let mut with = move |life: &Arc<Life>| {
            let handle = BlockHandle { life: Arc::clone(life), shared: shared.clone() };
            call(&Self { handle, reached })
        };
        // What came between the two looks has called nobody.
        let mut at = life.at();
        if self.look(&at).is_none() {
            at.callbacks.push(Box::new(with));
            return;
        }
        drop(at);
        with(&life);
    }
}

impl<T> Future for Stage<T> {
    type Output = Result<T, Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(outcome) = self.now() {
            return Poll::Ready(outcome);
        }
        self.want();
        let mut at = self.handle.life.at();
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

/// What happens in an engine.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Event {
    /// A block's root is known.
    Committed(CommittedBlock),
    /// All blocks up to this one are in the store.
    Persisted(BlockNumber),
    /// Blocks were taken back, from the first to the last, because of the first.
    TakenBack {
        /// The first.
        first: BlockNumber,
        /// The last.
        last: BlockNumber,
        /// Why.
        error: Error,
    },
    /// Nothing is closed, committed or written any more.
    Stopped(Error),
}

/// Events, in order, for one subscriber. Ends when it is dropped.
pub struct Subscription {
    queue: Arc<Queue>,
}

/// A subscriber's events.
#[derive(Default)]
pub struct Queue {
    events: Mutex<Events>,
    more: Condvar,
}

#[derive(Default)]
struct Events {
    waiting: VecDeque<Event>,
    lost: u64,
}

impl Queue {
    fn events(&self) -> MutexGuard<'_, Events> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subscription {
    /// The next event; `None` if there is none by then.
    pub fn next_within(&self, timeout: Duration) -> Option<Event> {
        let none = |events: &mut Events| events.waiting.is_empty();
        let events = self.queue.more.wait_timeout_while(self.queue.events(), timeout, none);
        events.unwrap_or_else(PoisonError::into_inner).0.waiting.pop_front()
    }

    /// How many events were dropped because the subscriber was more than 4096 behind; counts from zero again.
    pub fn lost(&self) -> u64 {
        std::mem::take(&mut self.queue.events().lost)
    }
}

/// Who has subscribed.
#[derive(Default)]
pub struct Subscribers(Mutex<Vec<Weak<Queue>>>);

impl Subscribers {
    fn list(&self) -> MutexGuard<'_, Vec<Weak<Queue>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells all of them.
    pub fn tell(&self, event: impl Fn() -> Event) {
        let mut list = self.list();
        list.retain(|queue| {
            let Some(queue) = queue.upgrade() else { return false };
            let mut events = queue.events();
            if events.waiting.len() == EVENTS_MAX {
                events.waiting.pop_front();
                events.lost += 1;
            }
            events.waiting.push_back(event());
            queue.more.notify_all();
            true
        });
    }
}

impl Engine {
    /// Tells of everything that happens from now on: for operators, metrics and logs. A failure is told here whoever else is.
    pub fn subscribe(&self) -> Subscription {
        let queue = Arc::new(Queue::default());
        self.shared.subscribers.list().push(Arc::downgrade(&queue));
        Subscription { queue }
    }
}
