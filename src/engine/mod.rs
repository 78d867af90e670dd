//! The engine: closes blocks, commits them behind the caller's back, writes them to the store, and serves views.
//!
//! A block is *closed* when it is durable and its values are visible to the next block's executor, *committed* when its
//! root is known, *persisted* when its rows are in the store. Closing is the caller's; the other two happen on threads of
//! the engine, in order, as the [`Cadence`] says. Every block gets its own root, the same one whatever the cadence. What
//! is on its way is bounded; at a bound the one before waits.
//!
//! Closing returns a [`BlockHandle`], which tells what becomes of the block; a failure is told to the handles of the block that failed
//! and of those on top. After one of the store or the journal the engine has stopped, and nothing more is written. A block whose computed root is not the stated one is taken back, with all after it: the state
//! is again that of the last block before, and the engine goes on from there.
//!
//! The store is at one height at any instant: a block's rows (its values, its commitment's nodes, its root, what takes it
//! back, and the head) are written as one unit.

mod base;
mod candidates;
mod check;
mod closed;
mod closing;
mod commit;
mod config;
mod durable;
mod events;
mod handle;
mod hints;
mod history;
pub(crate) mod import;
mod life;
pub(crate) mod meta;
pub(crate) mod opening;
mod outcome;
mod pasts;
mod persist;
mod pins;
mod readers;
mod scrub;
mod state;
mod tries;
mod values;
mod view;
mod walk;

use std::collections::{HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockWriteGuard};
use std::thread::JoinHandle;

use flagstone_core::commit::HashCounts;
use flagstone_core::hash::{Bulk, Hasher};
use flagstone_core::layout::{CacheCounters, Layout};
use flagstone_core::store::Store;
use flagstone_core::types::{BlockHash, BlockNumber};

pub use candidates::Candidate;
pub use check::CheckReport;
pub use closing::NewBlock;
pub use config::{Cadence, EngineConfig, THREADS_MAX};
pub use events::{Event, Subscription};
pub use handle::{BlockHandle, Stage};
pub use hints::HintStats;
pub use import::{ImportProgress, Imported};
pub use meta::{Blob, BlockRoot, Head, Identity};
pub use opening::Opened;
pub use outcome::CommittedBlock;
pub use scrub::ScrubStats;
pub use state::CandidateStats;
pub use values::ReadCacheStats;
pub use view::View;
pub use walk::{ContractEntry, Page};

use crate::error::Error;
use crate::journal::{DatabaseId, Files};
use crate::store::Sealed;
use base::Rows;
use durable::Durability;
use events::Subscribers;
use hints::Hints;
use life::{Chain, Ending, Next, Tip, Unwritten};
use opening::{House, Opening, require_atomic_batches};
use outcome::Outcome;
use pasts::Pasts;
use pins::Pins;
use scrub::{Doubts, Scrubbing};
use state::Registry;
use values::Values;

/// A state database: a layout over a store.
///
/// ```
/// use flagstone::engine::{Engine, EngineConfig};
/// use flagstone::{StateDiff, StateUpdate, layout, store::MemoryStore};
///
/// let engine = Engine::open(Box::new(MemoryStore::new()), layout("flat")?.make(), EngineConfig::default())?;
/// let diff = StateDiff::builder().storage(1.into(), 2.into(), 3.into()).build()?;
/// let update = StateUpdate { starknet_version: "0.13.5".parse().ok(), ..StateUpdate::from(diff) };
/// let block = engine.close_block(&update)?;
/// assert_eq!(engine.view().storage_at(&1.into(), &2.into())?, 3.into());
/// let root = block.committed().wait()?;
/// assert_eq!(root, Some(engine.wait_for_root(block.number())?));
/// engine.close()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Engine {
    shared: Arc<Shared>,
    committer: Option<JoinHandle<()>>,
    persister: Option<JoinHandle<()>>,
    reader_ahead: Option<JoinHandle<()>>,
    scrubber: Option<JoinHandle<()>>,
    ended: bool,
}

/// What the engine's threads and its views share.
struct Shared {
    layout: Box<dyn Layout>,
    hasher: Box<dyn Hasher>,
    config: EngineConfig,
    pool: rayon::ThreadPool,
    rows: Rows,
    values: Arc<Values>,
    hints: Hints,
    /// The one thread that follows hints, so that what a layout does in parallel stays on it.
    lane: rayon::ThreadPool,
    /// Blobs of blocks that are closed and not committed.
    blobs: RwLock<Brought>,
    tip: RwLock<Tip>,
    chain: Mutex<Chain>,
    /// Something in the chain is new.
    changed: Condvar,
    /// Held by who closes or takes back blocks. Taken before any other lock.
    closer: Mutex<()>,
    /// Held by who installs a commitment of blocks that wait for it, and by who takes such blocks back. Taken before the chain's lock.
    installing: Mutex<()>,
    durability: Durability,
    /// Whether a closed block is durable before the store has it, or nothing is.
    ahead_of_store: bool,
    /// Blocks that can be taken back, ascending.
    history: Mutex<VecDeque<BlockNumber>>,
    pasts: Pasts,
    /// The threads on which earlier states are led back to; made when the first is.
    history_pool: OnceLock<rayon::ThreadPool>,
    pins: Arc<Pins>,
    subscribers: Subscribers,
    candidates: Arc<Registry>,
    scrubbing: Scrubbing,
    doubts: Doubts,
    /// The failure after which nothing is closed, committed or written any more. What can be read stays so: rows that a failed
    /// unit may have written in part are in memory over the store.
    stopped: OnceLock<Error>,
    opened: Opened,
    database: DatabaseId,
    /// Its lock is let go after the store is closed.
    house: Mutex<Option<House>>,
}

/// Blobs by key, each with the stamps of the blocks that brought one, the last block's last.
type Brought = HashMap<Vec<u8>, Vec<(u64, Arc<[u8]>)>>;

impl Engine {
    /// Opens the database in a store, or creates one if the store is empty.
    ///
    /// There is no journal: if the store is durable, closing a block commits it and waits until the store has synced it,
    /// whatever the cadence; if it is not, nothing is durable.
    ///
    /// # Errors
    /// [`Error::IdentityMismatch`] if the store holds another layout, format version or scheme; [`Error::State`] if
    /// its rows are damaged or the store fails; [`Error::Config`] if the store or a setting cannot serve.
    pub fn open(store: Box<dyn Store>, layout: Box<dyn Layout>, config: EngineConfig) -> Result<Self, Error> {
        Self::open_with_hasher(store, layout, config, Box::new(Bulk))
    }

    /// Like [`Engine::open`], with another hash engine. All of them give the same roots.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn open_with_hasher(
        store: Box<dyn Store>,
        layout: Box<dyn Layout>,
        config: EngineConfig,
        hasher: Box<dyn Hasher>,
    ) -> Result<Self, Error> {
        Opening::new(Sealed::from_box(store), layout, config, hasher)?.start_alone()
    }

    /// Like [`Engine::open`], with a journal in the directory `dir`: a block is durable once its frame is synced there,
    /// and the store follows. What the store lost in a crash is replayed. The directory's parent must be there.
    ///
    /// # Errors
    /// As [`Engine::open`], and [`Error::State`] if the journal is damaged or does not reach back to the store.
    pub fn open_journaled(
        store: Box<dyn Store>,
        layout: Box<dyn Layout>,
        config: EngineConfig,
        files: Arc<dyn Files>,
        dir: &Path,
    ) -> Result<Self, Error> {
        let opening = Opening::new(Sealed::from_box(store), layout, config, Box::new(Bulk))?;
        opening.start_with_journal(files, dir)
    }

    /// What tells this database from all others.
    pub fn database(&self) -> DatabaseId {
        self.shared.database
    }

    /// What opening found and did.
    pub fn opened(&self) -> &Opened {
        &self.shared.opened
    }

    /// The state after the last closed block, pinned there. Waits for nothing.
    pub fn view(&self) -> View {
        self.shared.view()
    }

    /// How far the database has come, and the root there.
    pub fn head(&self) -> Head {
        self.shared.chain().head()
    }

    /// The root of a committed block; `None` if this database has not committed it, or not by itself (see
    /// [`EngineConfig::coalesce`]).
    ///
    /// # Errors
    /// [`Error::State`] if the store fails or the row is damaged.
    pub fn block_root(&self, block: BlockNumber) -> Result<Option<BlockRoot>, Error> {
        let base = self.shared.rows.base();
        meta::read_block_root(&self.shared.rows.of(&base), block)
    }

    /// The hash of a closed block, if it was brought with the block ([`StateUpdate::block_hash`](crate::StateUpdate)). It is kept as long
    /// as the block's root.
    ///
    /// # Errors
    /// [`Error::State`] if the store fails or the row is damaged.
    pub fn block_hash(&self, block: BlockNumber) -> Result<Option<BlockHash>, Error> {
        let chain = self.shared.chain();
        if let Some(closed) = chain.waiting().iter().find(|closed| closed.block.number == block) {
            return Ok(closed.block.hash);
        }
        drop(chain);
        let base = self.shared.rows.base();
        Ok(meta::read_block(&self.shared.rows.of(&base), block)?.and_then(|facts| facts.hash))
    }

    /// The closed block that has a hash; `None` if none was brought with it.
    ///
    /// # Errors
    /// [`Error::State`] if the store fails or the row is damaged.
    pub fn block_by_hash(&self, hash: BlockHash) -> Result<Option<BlockNumber>, Error> {
        self.shared.block_by_hash(hash)
    }

    /// What the values in front of the layout have done since the opening, and what they hold.
    pub fn read_cache_stats(&self) -> ReadCacheStats {
        self.shared.values.stats()
    }

    /// What the layout's cache of decoded records has done since the opening; `None` if the layout has none.
    pub fn record_cache_stats(&self) -> Option<CacheCounters> {
        self.shared.layout.cache_counters()
    }

    /// What the database says it is.
    pub fn identity(&self) -> Identity {
        Identity::of(self.shared.layout.as_ref())
    }

    /// Name of the store it is in.
    pub fn store_name(&self) -> &'static str {
        self.shared.rows.store().name()
    }

    /// Commits all closed blocks and waits until that is done: for who closes blocks.
    ///
    /// # Errors
    /// [`Error::RootMismatch`] or [`Error::WrongParent`] if a block's stated root does not hold, or did not and nobody who closes
    /// blocks was told yet: that block and those after it are taken back. [`Error::State`] if the store fails or is damaged.
    pub fn commit(&self) -> Result<Head, Error> {
        let mut chain = self.shared.chain();
        if let Some(untold) = chain.take_untold() {
            return Err(untold);
        }
        self.shared.check_running()?;
        let last = chain.waiting().back().map(|closed| Arc::clone(&closed.outcome));
        drop(chain);
        let committed = last.map_or(Ok(None), |last| self.shared.commit_through(&last));
        committed.map_err(|error| self.shared.chain().take_untold().unwrap_or(error))?;
        Ok(self.head())
    }

    /// How many hashes commitments took since the opening.
    pub fn hashes(&self) -> HashCounts {
        self.shared.chain().hashes()
    }

    /// Commits blocks up to this one, if they are not, and returns its root. It is the root of the block that has this number
    /// now, or the failure of that one: never of another that comes in its place.
    ///
    /// # Errors
    /// As [`Engine::commit`], if it is this block that fails; [`Error::NotClosed`] if no block of this number is closed,
    /// [`Error::HistoryGone`] if it has no root of its own.
    pub fn wait_for_root(&self, block: BlockNumber) -> Result<BlockRoot, Error> {
        let chain = self.shared.chain();
        chain.is_closed(block)?;
        let waiting = chain.waiting().iter().find(|closed| closed.block.number == block);
        let waiting = waiting.map(|closed| Arc::clone(&closed.outcome));
        drop(chain);
        let root = match waiting {
            Some(waiting) => self.shared.commit_through(&waiting)?,
            None => self.block_root(block)?,
        };
        root.ok_or_else(|| self.shared.history_gone(block))
    }

    /// Waits until everything that is committed by now is in the store, and syncs it.
    ///
    /// # Errors
    /// [`Error::State`] if the store fails, [`Error::Stopped`] if something failed before.
    pub fn sync(&self) -> Result<(), Error> {
        let chain = self.shared.chain();
        let through = chain.unwritten().back().map(Unwritten::stamp);
        let is_written =
            |chain: &Chain| chain.unwritten().front().is_none_or(|first| Some(first.stamp()) > through);
        drop(self.shared.wait(chain, is_written)?);
        self.shared.rows.sync().map_err(|error| self.shared.stop_for(error.into()))
    }

    /// Ends the engine: lets the commitment that is wanted and all writing end, syncs the store, and lets go of it, whatever views
    /// there are. They go on answering what is in memory. What is closed and not committed is committed after the next opening.
    ///
    /// # Errors
    /// [`Error::State`] if the store or the journal fails, [`Error::Stopped`] if something failed before. What was acknowledged is
    /// durable all the same.
    pub fn close(mut self) -> Result<(), Error> {
        self.end()
    }

    fn end(&mut self) -> Result<(), Error> {
        if std::mem::replace(&mut self.ended, true) {
            return Ok(());
        }
        let shared = &self.shared;
        let join = |thread: &mut Option<JoinHandle<()>>, ending: Ending| {
            shared.chain().end(ending);
            shared.changed.notify_all();
            // A thread that panicked has stopped the engine.
            let _ = thread.take().map(JoinHandle::join);
        };
        let mut chain = shared.chain();
        if matches!(shared.durability, Durability::Store) {
            chain.want_all();
        }
        drop(chain);
        shared.hints.end();
        shared.scrubbing.end();
        join(&mut self.scrubber, Ending::No);
        join(&mut self.reader_ahead, Ending::No);
        join(&mut self.committer, Ending::Committing);
        join(&mut self.persister, Ending::Writing);
        let ended = shared.check_running().and_then(|()| {
            let (head, refusal) = shared.chain().stored();
            Ok(shared.durability.end(&shared.rows, head, refusal)?)
        });
        shared.durability.stop();
        shared.pasts.clear();
        shared.rows.close();
        shared.house.lock().unwrap_or_else(PoisonError::into_inner).take();
        let left = shared.chain().let_go();
        left.iter().for_each(|closed| closed.outcome.fail(0, Error::Ended));
        ended
    }
}

impl Shared {
    fn tip(&self) -> Tip {
        self.tip.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_tip(&self, tip: Tip) {
        *self.tip.write().unwrap_or_else(PoisonError::into_inner) = tip;
    }

    fn view(self: &Arc<Self>) -> View {
        let Tip { stamp, block, outcome } = self.tip();
        View { shared: Arc::clone(self), stamp, block, outcome, past: None, proposed: None, _pin: None }
    }

    fn block_by_hash(&self, hash: BlockHash) -> Result<Option<BlockNumber>, Error> {
        let chain = self.chain();
        if let Some(closed) = chain.waiting().iter().find(|closed| closed.block.hash == Some(hash)) {
            return Ok(Some(closed.block.number));
        }
        drop(chain);
        let base = self.rows.base();
        meta::read_block_of_hash(&self.rows.of(&base), &hash)
    }

    /// Blocks up to this one are to be committed.
    fn want(&self, block: BlockNumber) {
        self.chain().want(block);
        self.changed.notify_all();
    }

    /// Has blocks up to this one committed, and returns its root if it has one of its own. Who closes blocks is not told by it.
    fn commit_through(&self, outcome: &Outcome) -> Result<Option<BlockRoot>, Error> {
        self.want(outcome.number());
        outcome.wait_committed()
    }

    fn chain(&self) -> MutexGuard<'_, Chain> {
        self.chain.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn installing(&self) -> MutexGuard<'_, ()> {
        self.installing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn history(&self) -> MutexGuard<'_, VecDeque<BlockNumber>> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn blobs(&self) -> RwLockWriteGuard<'_, Brought> {
        self.blobs.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// After a failure nothing more is closed, committed or written.
    fn check_running(&self) -> Result<(), Error> {
        match self.stopped.get() {
            Some(cause) => Err(Error::Stopped { cause: cause.to_string() }),
            None => Ok(()),
        }
    }

    /// Waits until something holds of the chain.
    fn wait<'a>(
        &self,
        mut chain: MutexGuard<'a, Chain>,
        holds: impl Fn(&Chain) -> bool,
    ) -> Result<MutexGuard<'a, Chain>, Error> {
        loop {
            self.check_running()?;
            if !chain.is_refusing() && holds(&chain) {
                return Ok(chain);
            }
            chain = self.changed.wait(chain).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// What a stage's thread is to do next, when there is something; `None` at the end.
    fn next<T>(&self, ask: impl Fn(&mut Chain) -> Next<T>) -> Option<T> {
        let mut chain = self.chain();
        loop {
            if self.stopped.get().is_some() {
                return None;
            }
            match ask(&mut chain) {
                Next::Do(work) => return Some(work),
                Next::Wait => {}
                Next::End => return None,
            }
            chain = self.changed.wait(chain).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Stops the engine. The blocks that are on their way fail with it.
    fn stop(&self, error: Error) {
        let chain = self.chain();
        let is_first = self.stopped.set(error.clone()).is_ok();
        let outcomes: Vec<_> = chain.on_their_way().map(|closed| Arc::clone(&closed.outcome)).collect();
        self.changed.notify_all();
        drop(chain);
        if is_first {
            outcomes.iter().for_each(|outcome| outcome.fail(0, error.clone()));
            self.subscribers.tell(|| Event::Stopped(error.clone()));
        }
    }

    /// Stops the engine for an error, and returns it for who met with it.
    fn stop_for(&self, error: Error) -> Error {
        self.stop(error.clone());
        error
    }

    /// Runs a thread's loop; whatever ends it other than the engine's end stops the engine.
    fn run(self: &Arc<Self>, what: &str, work: impl Fn(&Arc<Self>) -> Result<(), Error>) {
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| work(self)));
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.stop(error),
            Err(_) => self.stop(Error::Stopped { cause: format!("the {what} panicked") }),
        }
    }
}

impl Drop for Engine {
    /// As [`Engine::close`]. Nobody is left to tell if that fails; what is acknowledged is durable without it.
    fn drop(&mut self) {
        let _ = self.end();
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (layout, store) = (self.shared.layout.name(), self.store_name());
        f.debug_struct("Engine")
            .field("layout", &layout)
            .field("store", &store)
            .field("head", &self.head())
            .finish()
    }
}
