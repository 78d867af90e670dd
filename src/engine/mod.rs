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

mod candidates;
mod check;
mod checkpoint;
mod close;
mod closed;
mod commit;
mod config;
mod doubts;
mod durable;
mod events;
mod handle;
mod hints;
mod history;
pub(crate) mod identity;
pub(crate) mod import;
mod lane;
mod life;
mod locks;
pub(crate) mod meta;
pub(crate) mod opened;
pub(crate) mod opening;
mod outcome;
mod pasts;
mod pins;
mod prune;
mod rows;
mod running;
mod scrub;
mod shared;
mod staged;
mod state;
mod tries;
mod undo;
mod values;
mod view;
mod walk;

use std::path::Path;
use std::sync::Arc;

use flagstone_core::commit::HashCounts;
use flagstone_core::hash::{Bulk, Hasher};
use flagstone_core::layout::{CacheCounters, Layout};
use flagstone_core::store::Store;
use flagstone_core::types::{BlockHash, BlockNumber};

pub use candidates::Candidate;
pub use check::CheckReport;
pub use close::NewBlock;
pub use config::{Cadence, EngineConfig, THREADS_MAX};
pub use doubts::ScrubStats;
pub use events::{Event, Subscription};
pub use handle::{BlockHandle, Stage};
pub use hints::HintStats;
pub use import::{ImportProgress, Imported};
pub use meta::{Blob, BlockRoot, Head, Identity};
pub use opened::Opened;
pub use outcome::CommittedBlock;
pub use prune::Pruned;
pub use running::Engine;
pub use state::CandidateStats;
pub use values::ReadCacheStats;
pub use view::View;
pub use walk::{ContractEntry, Page};

use crate::error::Error;
use crate::journal::{DatabaseId, Files};
use crate::store::Sealed;
use life::{Chain, Unwritten};
use opening::Opening;

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
