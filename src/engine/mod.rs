//! The engine: closes blocks, commits them behind the caller's back, writes them to the store, and serves views.
//!
//! A block is *closed* when it is durable and its values are visible to the next block's executor, *committed* when its
//! root is known, *persisted* when its rows are in the store. Closing is the caller's; the other two happen on threads of
//! the engine, in order, as the [`Cadence`] says. Every block gets its own root, the same one whatever the cadence. What
//! is on its way is bounded; at a bound the one before waits.
//!
//! A failure on the way reaches the next caller. After one of the store or the journal the engine has stopped, and
//! nothing more is written. A block whose computed root is not the stated one is taken back, with all after it: the state
//! is again that of the last block before, and the engine goes on from there.
//!
//! The store is at one height at any instant: a block's rows (its values, its commitment's nodes, its root, what takes it
//! back, and the head) are written as one unit.

mod base;
mod chain;
mod check;
mod closing;
mod commit;
mod config;
mod durable;
mod hints;
mod history;
pub(crate) mod import;
pub(crate) mod meta;
pub(crate) mod opening;
mod persist;
mod scrub;
mod tries;
mod values;
mod view;

use std::collections::{HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockWriteGuard};
use std::thread::JoinHandle;

use flagstone_core::commit::HashCounts;
use flagstone_core::hash::{Bulk, Hasher};
use flagstone_core::layout::{CacheCounters, Layout};
use flagstone_core::store::Store;
use flagstone_core::types::BlockNumber;

pub use check::CheckReport;
pub use config::{Cadence, EngineConfig, THREADS_MAX};
pub use hints::HintStats;
pub use import::{ImportProgress, Imported};
pub use meta::{Blob, BlockRoot, Head, Identity};
pub use opening::Opened;
pub use scrub::ScrubStats;
pub use values::ReadCacheStats;
pub use view::View;

use crate::error::Error;
use crate::journal::{DatabaseId, Files};
use crate::store::Sealed;
use base::Rows;
use chain::{Chain, Ending};
use durable::Durability;
use hints::Hints;
use opening::{House, Opening, require_atomic_batches};
use scrub::{Doubts, Scrubbing};
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
/// engine.close_block(&update)?;
/// assert_eq!(engine.view().storage_at(&1.into(), &2.into())?, 3.into());
/// let committed = engine.commit()?.committed;
/// assert_eq!(engine.wait_for_root(committed[0].number)?, committed[0].root);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Engine {
    shared: Arc<Shared>,
    committer: Option<JoinHandle<()>>,
    persister: Option<JoinHandle<()>>,
    reader_ahead: Option<JoinHandle<()>>,
    scrubber: Option<JoinHandle<()>>,
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
    durability: Durability,
    /// Whether a closed block is durable before the store has it, or nothing is.
    ahead_of_store: bool,
    /// Blocks that can be taken back, ascending.
    history: Mutex<VecDeque<BlockNumber>>,
    taken_back: TakenBack,
    scrubbing: Scrubbing,
    doubts: Doubts,
    /// The failure after which nothing is closed, committed or written any more. What can be read stays so: rows that a failed
    /// unit may have written in part are in memory over the store.
    stopped: OnceLock<String>,
    opened: Opened,
    database: DatabaseId,
    /// Last, so that its lock is let go after the store is closed.
    _house: House,
}

/// Blobs by key, each with the stamps of the blocks that brought one, the last block's last.
type Brought = HashMap<Vec<u8>, Vec<(u64, Arc<[u8]>)>>;

/// What a new view begins with.
#[derive(Clone, Copy)]
struct Tip {
    stamp: u64,
    block: Option<BlockNumber>,
}

/// Stamps of blocks that were taken back because a root did not hold: no view answers for them.
#[derive(Default)]
struct TakenBack {
    any: AtomicBool,
    /// First and last stamps.
    stamps: RwLock<Vec<(u64, u64)>>,
}

/// A block that was committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

/// What was done, and what commitments have brought since the caller was last told.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Progress {
    /// The block that was closed, if one was.
    pub closed: Option<BlockNumber>,
    /// Blocks whose roots became known, in order.
    pub committed: Vec<CommittedBlock>,
    /// Hashes that took.
    pub hashes: HashCounts,
}

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
        let Tip { stamp, block } = self.shared.tip();
        View { shared: Arc::clone(&self.shared), stamp, block, past: None }
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
        self.shared.rows.store_name()
    }

    /// Commits all closed blocks and waits until that is done.
    ///
    /// # Errors
    /// [`Error::RootMismatch`] or [`Error::WrongParent`] if a block's stated root does not hold: that block and those
    /// after it are taken back. [`Error::NotClosed`] if blocks were taken back meanwhile, and another caller was told why
    /// or did it. [`Error::State`] if the store fails or is damaged.
    pub fn commit(&self) -> Result<Progress, Error> {
        let mut chain = self.shared.chain();
        chain.want_all();
        let through = chain.closed;
        self.shared.changed.notify_all();
        let mut chain = self.shared.wait(chain, |chain| chain.committed >= through.min(chain.closed))?;
        chain.still_closed(through)?;
        Ok(chain.take_news())
    }

    /// Commits blocks up to this one, if they are not, and returns its root.
    ///
    /// # Errors
    /// As [`Engine::commit`]; [`Error::NotClosed`] if no block of this number is closed, or not any more,
    /// [`Error::HistoryGone`] if it has no root of its own.
    pub fn wait_for_root(&self, block: BlockNumber) -> Result<BlockRoot, Error> {
        let (mut chain, through) = (self.shared.chain(), Some(block));
        chain.wanted = chain.wanted.max(through.min(chain.closed));
        self.shared.changed.notify_all();
        let chain = self.shared.wait(chain, |chain| chain.committed >= through.min(chain.closed))?;
        chain.still_closed(through)?;
        drop(chain);
        self.block_root(block)?.ok_or_else(|| self.shared.history_gone(block))
    }

    /// Waits until everything that is committed is in the store, and syncs it.
    ///
    /// # Errors
    /// [`Error::State`] if the store fails, or an earlier failure that was not told yet.
    pub fn sync(&self) -> Result<(), Error> {
        let chain = self.shared.chain();
        let through = chain.committed;
        let written = |chain: &Chain| chain.persisted >= through.min(chain.committed);
        drop(self.shared.wait(chain, |chain| written(chain) && chain.unwritten.is_empty())?);
        self.shared.rows.sync().map_err(|error| self.shared.stop_and_tell(error.into()))
    }
}

impl Chain {
    /// What was committed since the caller was last told.
    fn take_news(&mut self) -> Progress {
        let committed = std::mem::take(&mut self.news);
        Progress { closed: None, committed, hashes: std::mem::take(&mut self.hashes) }
    }

    /// Refuses a block that is not closed; it may have been, and was taken back while somebody waited for it.
    fn still_closed(&self, block: Option<BlockNumber>) -> Result<(), Error> {
        match block.filter(|block| self.closed < Some(*block)) {
            Some(block) => Err(Error::NotClosed { block, closed: self.closed }),
            None => Ok(()),
        }
    }
}

impl Shared {
    fn tip(&self) -> Tip {
        *self.tip.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_tip(&self, stamp: u64, block: Option<BlockNumber>) {
        *self.tip.write().unwrap_or_else(PoisonError::into_inner) = Tip { stamp, block };
    }

    fn chain(&self) -> MutexGuard<'_, Chain> {
        self.chain.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn history(&self) -> MutexGuard<'_, VecDeque<BlockNumber>> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn blobs(&self) -> RwLockWriteGuard<'_, Brought> {
        self.blobs.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// After a failure of the disk nothing more is closed, committed or written.
    fn check_running(&self) -> Result<(), Error> {
        match self.stopped.get() {
            Some(cause) => Err(Error::Stopped { cause: cause.clone() }),
            None => Ok(()),
        }
    }

    /// Waits until something holds of the chain; a failure that comes first, or was there already, is the caller's.
    fn wait<'a>(
        &self,
        mut chain: MutexGuard<'a, Chain>,
        holds: impl Fn(&Chain) -> bool,
    ) -> Result<MutexGuard<'a, Chain>, Error> {
        loop {
            if let Some(failure) = chain.failure.take() {
                return Err(failure);
            }
            self.check_running()?;
            if !chain.refusing && holds(&chain) {
                return Ok(chain);
            }
            chain = self.changed.wait(chain).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Stops the engine. The next caller learns why.
    fn stop(&self, error: Error) {
        let mut chain = self.chain();
        if self.stopped.set(error.to_string()).is_ok() {
            chain.failure = Some(error);
        }
        self.changed.notify_all();
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

    fn is_taken_back(&self, stamp: u64) -> bool {
        let ranges = || self.taken_back.stamps.read().unwrap_or_else(PoisonError::into_inner);
        self.taken_back.any.load(Ordering::SeqCst)
            && ranges().iter().any(|(first, last)| (*first..=*last).contains(&stamp))
    }

    fn note_taken_back(&self, first: u64, last: u64) {
        self.taken_back.stamps.write().unwrap_or_else(PoisonError::into_inner).push((first, last));
        self.taken_back.any.store(true, Ordering::SeqCst);
    }
}

impl Drop for Engine {
    /// Lets the commitment that is wanted and all writing end, and syncs the store, so that the next opening has little
    /// to replay. What is acknowledged is durable without it.
    fn drop(&mut self) {
        let join = |thread: &mut Option<JoinHandle<()>>, ending: Ending| {
            self.shared.chain().ending = ending;
            self.shared.changed.notify_all();
            // A thread that panicked has stopped the engine.
            let _ = thread.take().map(JoinHandle::join);
        };
        let mut chain = self.shared.chain();
        if matches!(self.shared.durability, Durability::Store) {
            chain.want_all();
        }
        drop(chain);
        self.shared.hints.end();
        self.shared.scrubbing.end();
        join(&mut self.scrubber, Ending::No);
        join(&mut self.reader_ahead, Ending::No);
        join(&mut self.committer, Ending::Committing);
        join(&mut self.persister, Ending::Writing);
        if self.shared.check_running().is_ok() {
            let chain = self.shared.chain();
            let (head, refusal) = (chain.persisted, chain.written_refusal);
            drop(chain);
            // Nobody is left to tell; the journal has what the store might not.
            let _ = self.shared.durability.end(&self.shared.rows, head, refusal);
        }
        self.shared.durability.stop();
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
