//! An engine that runs: what it is made of, and the threads that work on it.

use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;

use super::durable::Durability;
use super::life::Ending;
use super::shared::Shared;
use crate::error::Error;
use crate::threads::give_way;

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
    pub(super) shared: Arc<Shared>,
    committer: Option<JoinHandle<()>>,
    persister: Option<JoinHandle<()>>,
    reader_ahead: Option<JoinHandle<()>>,
    scrubber: Option<JoinHandle<()>>,
    ended: bool,
}

impl Engine {
    /// Starts the threads.
    pub(super) fn start(shared: &Arc<Shared>) -> Result<Self, Error> {
        let start = |name: &str, work: fn(&Arc<Shared>) -> Result<(), Error>| {
            let (shared, what) = (Arc::clone(shared), name.to_owned());
            let thread = std::thread::Builder::new().name(format!("flagstone-{name}"));
            let started = thread.spawn(move || shared.run(&what, work));
            started.map_err(|error| Error::Config(format!("cannot start the {name} thread: {error}")))
        };
        let committer = Some(start("commit", |shared| shared.commit_waiting())?);
        let persister = Some(start("persist", |shared| shared.write_committed())?);
        let reader_ahead = Some(start("read-ahead", |shared| shared.follow_hints())?);
        let scrub = |shared: &Arc<Shared>| {
            give_way();
            shared.scrub()
        };
        let scrubber = Some(start("scrub", scrub)?);
        let shared = Arc::clone(shared);
        Ok(Self { shared, committer, persister, reader_ahead, scrubber, ended: false })
    }

    /// Lets the threads end, in order, and lets go of the store.
    pub(super) fn end(&mut self) -> Result<(), Error> {
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

impl Drop for Engine {
    /// As [`Engine::close`]. Nobody is left to tell if that fails; what is acknowledged is durable without it.
    fn drop(&mut self) {
        let _ = self.end();
    }
}
