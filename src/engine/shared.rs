//! What the engine's threads, its handles and its views share.

use std::collections::{HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Condvar, Mutex, OnceLock};

use flagstone_core::hash::Hasher;
use flagstone_core::layout::Layout;
use flagstone_core::types::{BlockHash, BlockNumber};

use super::config::EngineConfig;
use super::doubts::{Doubts, Scrubbing};
use super::durable::Durability;
use super::events::{Event, Subscribers};
use super::hints::Hints;
use super::life::{Chain, Next, Tip};
use super::locks::{Lock, Locked, Watched};
use super::meta;
use super::opened::{House, Opened};
use super::pasts::Pasts;
use super::pins::Pins;
use super::rows::Rows;
use super::state::Registry;
use super::values::Values;
use crate::error::Error;
use crate::journal::DatabaseId;

/// What the engine's threads and its views share.
pub struct Shared {
    pub layout: Box<dyn Layout>,
    pub hasher: Box<dyn Hasher>,
    pub config: EngineConfig,
    pub pool: rayon::ThreadPool,
    pub rows: Rows,
    pub values: Arc<Values>,
    pub hints: Hints,
    /// The one thread that follows hints, so that what a layout does in parallel stays on it.
    pub lane: rayon::ThreadPool,
    /// Blobs of blocks that are closed and not committed.
    pub blobs: Watched<Brought>,
    pub tip: Watched<Tip>,
    pub chain: Lock<Chain>,
    /// Something in the chain is new.
    pub changed: Condvar,
    /// Held by who closes or takes back blocks.
    pub closer: Lock<()>,
    /// Held by who installs a commitment of blocks that wait for it, and by who takes such blocks back.
    pub installing: Lock<()>,
    pub durability: Durability,
    /// Whether a closed block is durable before the store has it, or nothing is.
    pub ahead_of_store: bool,
    /// Blocks that can be taken back, ascending.
    pub history: Lock<VecDeque<BlockNumber>>,
    pub pasts: Pasts,
    /// The threads on which earlier states are led back to; made when the first is.
    pub history_pool: OnceLock<rayon::ThreadPool>,
    pub pins: Arc<Pins>,
    pub subscribers: Subscribers,
    pub candidates: Arc<Registry>,
    pub scrubbing: Scrubbing,
    pub doubts: Doubts,
    /// The failure after which nothing is closed, committed or written any more. What can be read stays so: rows that a failed
    /// unit may have written in part are in memory over the store.
    pub stopped: OnceLock<Error>,
    pub opened: Opened,
    pub database: DatabaseId,
    /// Its lock is let go after the store is closed.
    pub house: Mutex<Option<House>>,
}

/// Blobs by key, each with the stamps of the blocks that brought one, the last block's last.
pub type Brought = HashMap<Vec<u8>, Vec<(u64, Arc<[u8]>)>>;

impl Shared {
    pub fn tip(&self) -> Tip {
        self.tip.read().clone()
    }

    pub fn set_tip(&self, tip: Tip) {
        *self.tip.write() = tip;
    }

    pub fn block_by_hash(&self, hash: BlockHash) -> Result<Option<BlockNumber>, Error> {
        let chain = self.chain();
        if let Some(closed) = chain.waiting().iter().find(|closed| closed.block.hash == Some(hash)) {
            return Ok(Some(closed.block.number));
        }
        drop(chain);
        let base = self.rows.base();
        meta::read_block_of_hash(&self.rows.of(&base), &hash)
    }

    /// Where each block is on its way.
    pub fn chain(&self) -> Locked<'_, Chain> {
        self.chain.lock()
    }

    /// After a failure nothing more is closed, committed or written.
    pub fn check_running(&self) -> Result<(), Error> {
        match self.stopped.get() {
            Some(cause) => Err(Error::Stopped { cause: cause.to_string() }),
            None => Ok(()),
        }
    }

    /// Waits until something holds of the chain.
    pub fn wait<'a>(
        &self,
        mut chain: Locked<'a, Chain>,
        holds: impl Fn(&Chain) -> bool,
    ) -> Result<Locked<'a, Chain>, Error> {
        loop {
            self.check_running()?;
            if !chain.is_refusing() && holds(&chain) {
                return Ok(chain);
            }
            chain = chain.wait(&self.changed);
        }
    }

    /// What a stage's thread is to do next, when there is something; `None` at the end.
    pub fn next<T>(&self, ask: impl Fn(&mut Chain) -> Next<T>) -> Option<T> {
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
            chain = chain.wait(&self.changed);
        }
    }

    /// Stops the engine. The blocks that are on their way fail with it.
    pub fn stop(&self, error: Error) {
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
    pub fn stop_for(&self, error: Error) -> Error {
        self.stop(error.clone());
        error
    }

    /// Runs a thread's loop; whatever ends it other than the engine's end stops the engine.
    pub fn run(self: &Arc<Self>, what: &str, work: impl Fn(&Arc<Self>) -> Result<(), Error>) {
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| work(self)));
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.stop(error),
            Err(_) => self.stop(Error::Stopped { cause: format!("the {what} panicked") }),
        }
    }
}
