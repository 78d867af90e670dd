//! The engine: one place that writes.
//!
//! A block is *closed* when its values are visible to the next block's executor, *committed* when its root is known.
//! Closing returns when the block is synced. Commitment happens as the [`Cadence`] says; every block gets its own
//! root, the same one whatever the cadence. A block whose computed root is not the stated one is refused: nothing of
//! it is kept.
//!
//! Each change of the database is one batch, so that at any instant it is wholly at one height:
//! - closing and committing at once: values, nodes, the block's root, the head;
//! - closing: values, the block's diff as a pending block, the head;
//! - committing pending blocks: nodes, their roots, their removal from the pending ones, the head;
//! - dropping refused blocks: the values they overwrote, their removal from the pending ones, the head.

mod config;
mod durable;
pub(crate) mod meta;
mod overlay;
mod read_cache;
mod view;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard};

use flagstone_core::commit::HashCounts;
use flagstone_core::commitment::{CommitmentRule, Roots, StarknetVersion};
use flagstone_core::diff::StateDiff;
use flagstone_core::hash::{Bulk, Hasher};
use flagstone_core::layout::{Layout, StagedCommitment, StateAt, ValuesReadable};
use flagstone_core::store::{Store, StoreError, StoreErrorKind, WriteBatch};
use flagstone_core::types::{BlockNumber, StateCommitment};
use flagstone_core::update::StateUpdate;

pub use config::{Cadence, EngineConfig};
pub use meta::{BlockRoot, Head, Identity};
#[cfg(feature = "blockifier")]
pub(crate) use overlay::ValueKey;
pub use read_cache::ReadCacheStats;
pub use view::View;

use crate::error::Error;
use crate::journal::Files;
use crate::store::Sealed;
use durable::{Durability, Step};
use meta::PendingBlock;
use overlay::Overlay;
use read_cache::ReadCache;

/// Values of one batch of commitments: bounds the size of a store batch, whatever the backlog.
const GROUP_WRITES_MAX: usize = 4_000;

/// A state database: a layout over a store.
///
/// ```
/// use flagstone::engine::{Engine, EngineConfig};
/// use flagstone::{StateDiff, StateUpdate, layout, store::MemoryStore};
///
/// let engine = Engine::open(Box::new(MemoryStore::new()), layout("flat")?.make(), EngineConfig::default())?;
/// let diff = StateDiff::builder().storage(1.into(), 2.into(), 3.into()).build()?;
/// let update = StateUpdate { starknet_version: "0.13.5".parse().ok(), ..StateUpdate::from(diff) };
/// let closed = engine.close_block(&update)?;
/// assert_eq!(closed.committed.len(), 1);
/// assert_eq!(engine.view().storage_at(&1.into(), &2.into())?, 3.into());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Engine {
    shared: Arc<Shared>,
    writer: Mutex<Writer>,
    pool: rayon::ThreadPool,
    config: EngineConfig,
    hasher: Box<dyn Hasher>,
    durability: Mutex<Durability>,
}

/// What views share with the engine.
struct Shared {
    store: Box<dyn Store>,
    layout: Box<dyn Layout>,
    /// Counts the moves of readable values; a view of another epoch has expired.
    epoch: AtomicU64,
    tip: RwLock<Tip>,
    overlay: RwLock<Overlay>,
    /// What the layout answered in this epoch.
    read_cache: ReadCache,
    /// The failure after which the store's content is not known.
    stopped: OnceLock<String>,
}

/// What a new view begins with.
#[derive(Clone, Copy)]
struct Tip {
    head: Head,
    epoch: u64,
}

/// What a batch does to the values that the layout answers with.
#[derive(Clone, Copy)]
enum Moves<'a> {
    /// Nothing: they are the same before and after.
    Nothing,
    /// These blocks' values become readable, in order.
    Blocks(&'a [&'a StateDiff]),
    /// Values of closed blocks are taken back.
    Back,
}

/// A batch's part in a block's life.
#[derive(Clone, Copy)]
struct Write<'a> {
    step: Step<'a>,
    moves: Moves<'a>,
}

impl<'a> Write<'a> {
    const fn new(step: Step<'a>, moves: Moves<'a>) -> Self {
        Self { step, moves }
    }
}

struct Writer {
    head: Head,
    pending: VecDeque<PendingBlock>,
    pending_writes: usize,
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

/// The outcome of closing a block or of a commitment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Progress {
    /// The block that was closed, if one was.
    pub closed: Option<BlockNumber>,
    /// Blocks that were committed, in order.
    pub committed: Vec<CommittedBlock>,
    /// Hashes that took.
    pub hashes: HashCounts,
}

impl Shared {
    fn tip(&self) -> Tip {
        *self.tip.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn overlay(&self) -> RwLockReadGuard<'_, Overlay> {
        self.overlay.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// After a failed write the store's content is not known: nothing more is read from it or written on top of it.
    fn check_running(&self) -> Result<(), Error> {
        match self.stopped.get() {
            Some(cause) => Err(Error::Stopped { cause: cause.clone() }),
            None => Ok(()),
        }
    }

    fn state_at(&self, roots: Roots) -> StateAt<'_> {
        StateAt { store: self.store.as_ref(), roots }
    }
}

impl Engine {
    /// Opens the database in a store, or creates one if the store is empty.
    ///
    /// # Errors
    /// [`Error::IdentityMismatch`] if the store holds another layout, format version or scheme; [`Error::State`] if
    /// its rows are damaged or the store fails; [`Error::Config`] if the store or a setting cannot serve.
    pub fn open(store: Box<dyn Store>, layout: Box<dyn Layout>, config: EngineConfig) -> Result<Self, Error> {
        Self::open_with_hasher(store, layout, config, Box::new(Bulk))
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
        Self::open_sealed(Sealed::from_box(store), layout, config, files, dir)
    }

    /// [`Engine::open_journaled`] for a store that is behind seals already.
    pub(crate) fn open_sealed(
        store: Sealed<dyn Store>,
        layout: Box<dyn Layout>,
        config: EngineConfig,
        files: Arc<dyn Files>,
        dir: &Path,
    ) -> Result<Self, Error> {
        let engine = Self::start(Box::new(store), layout, config, Box::new(Bulk))?;
        let (durability, missing) = Durability::open(files, dir, &engine.head(), config.persist_every)?;
        *engine.durability() = durability;
        let mut writer = engine.writer()?;
        for block in missing {
            engine.close_pending(&mut writer, block, true)?;
        }
        drop(writer);
        Ok(engine)
    }

    fn durability(&self) -> MutexGuard<'_, Durability> {
        self.durability.lock().unwrap_or_else(PoisonError::into_inner)
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
        Self::start(Box::new(Sealed::from_box(store)), layout, config, hasher)
    }

    fn start(
        store: Box<dyn Store>,
        layout: Box<dyn Layout>,
        config: EngineConfig,
        hasher: Box<dyn Hasher>,
    ) -> Result<Self, Error> {
        if !store.capabilities().atomic_batches {
            let problem = format!(
                "store `{}` does not apply batches as one unit, which the engine needs",
                store.name()
            );
            return Err(StoreError::new(StoreErrorKind::Unsupported, problem).into());
        }
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(config.threads)
            .thread_name(|index| format!("flagstone-commit-{index}"))
            .build()
            .map_err(|error| {
                Error::Config(format!("cannot start {} commitment threads: {error}", config.threads))
            })?;
        let head = open_or_create(store.as_ref(), layout.as_ref())?;
        let pending = meta::read_pending(store.as_ref(), &head)?;
        let mut overlay = Overlay::default();
        if layout.values_readable() == ValuesReadable::AtCommitment {
            pending.iter().for_each(|block| overlay.push(block.number, &block.diff));
        }
        let shared = Shared {
            store,
            layout,
            epoch: AtomicU64::new(0),
            tip: RwLock::new(Tip { head, epoch: 0 }),
            overlay: RwLock::new(overlay),
            read_cache: ReadCache::new(config.read_cache_bytes),
            stopped: OnceLock::new(),
        };
        let pending_writes = pending.iter().map(|block| block.diff.writes()).sum();
        let writer = Writer { head, pending: pending.into(), pending_writes };
        Ok(Self {
            shared: Arc::new(shared),
            writer: Mutex::new(writer),
            pool,
            config,
            hasher,
            durability: Mutex::new(Durability::Store),
        })
    }

    /// The state after the last closed block, pinned there. Waits while a batch is being applied.
    pub fn view(&self) -> View {
        let Tip { head, epoch } = self.shared.tip();
        View { shared: Arc::clone(&self.shared), head, epoch }
    }

    /// How far the database has come, and the root there.
    pub fn head(&self) -> Head {
        self.shared.tip().head
    }

    /// The root of a committed block; `None` if this database has not committed it.
    ///
    /// # Errors
    /// [`Error::State`] if the store fails or the row is damaged.
    pub fn block_root(&self, block: BlockNumber) -> Result<Option<BlockRoot>, Error> {
        meta::read_block_root(self.shared.store.as_ref(), block)
    }

    /// What the cache of values in front of the layout has done since the opening, and what it holds.
    pub fn read_cache_stats(&self) -> ReadCacheStats {
        self.shared.read_cache.stats()
    }

    /// What the database says it is.
    pub fn identity(&self) -> Identity {
        Identity::of(self.shared.layout.as_ref())
    }

    /// Name of the store it is in.
    pub fn store_name(&self) -> &'static str {
        self.shared.store.name()
    }

    /// Closes the next block: checks that it follows, makes its values visible, syncs it, and commits if the cadence
    /// or a bound says so. On an error nothing of the block is kept, unless the error says [`Error::Stopped`] or
    /// comes from the store: then a reopen tells.
    ///
    /// # Errors
    /// [`Error::WrongNumber`] and [`Error::WrongParent`] if the block does not follow, [`Error::VersionNeeded`] if
    /// its commitment would not be defined, [`Error::RootMismatch`] if a committed block's root is not the stated
    /// one (that block and those after it are dropped), [`Error::State`] if the store fails or is damaged.
    pub fn close_block(&self, update: &StateUpdate) -> Result<Progress, Error> {
        let mut writer = self.writer()?;
        let block = self.accept(&writer, update)?;
        let number = block.number;
        let mut progress = Progress::default();
        if !writer.pending.is_empty() && self.is_full(&writer, block.diff.writes()) {
            self.commit_pending(&mut writer, &mut progress)?;
        }
        if writer.pending.is_empty() && self.config.cadence == Cadence::EVERY_BLOCK {
            self.close_and_commit(&mut writer, block, &mut progress)?;
        } else {
            self.close_pending(&mut writer, block, false)?;
            if matches!(self.config.cadence, Cadence::Blocks(count) if writer.pending.len() >= count.get() as usize)
            {
                self.commit_pending(&mut writer, &mut progress)?;
            }
        }
        progress.closed = Some(number);
        Ok(progress)
    }

    /// Commits all closed blocks.
    ///
    /// # Errors
    /// [`Error::RootMismatch`] or [`Error::WrongParent`] if a block's stated root does not hold: that block and those
    /// after it are dropped. [`Error::State`] if the store fails or is damaged.
    pub fn commit(&self) -> Result<Progress, Error> {
        let mut progress = Progress::default();
        self.commit_pending(&mut *self.writer()?, &mut progress)?;
        Ok(progress)
    }

    fn writer(&self) -> Result<MutexGuard<'_, Writer>, Error> {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.check_running()?;
        Ok(writer)
    }

    /// Whether a block of `writes` values would exceed a bound on pending blocks.
    fn is_full(&self, writer: &Writer, writes: usize) -> bool {
        writer.pending.len() >= self.config.pending_blocks_max
            || writer.pending_writes + writes > self.config.pending_writes_max
    }

    /// Checks that a block follows and that its commitment will be defined.
    fn accept(&self, writer: &Writer, update: &StateUpdate) -> Result<PendingBlock, Error> {
        let expected = match writer.head.closed {
            Some(closed) => Some(
                closed.next().ok_or_else(|| Error::Config("no block follows the last of 64 bits".into()))?,
            ),
            None => None,
        };
        let number = update.block_number.or(expected).unwrap_or_default();
        if let Some(expected) = expected
            && number != expected
        {
            return Err(Error::WrongNumber { expected, got: number });
        }
        let parent = writer.pending.back().map_or(Some(writer.head.root.commitment), |block| block.new_root);
        check_parent(number, update.old_root, parent)?;
        if update.starknet_version.is_none()
            && update.new_root.is_none()
            && rule_may_matter(writer, &update.diff)
        {
            return Err(Error::VersionNeeded { block: number });
        }
        Ok(PendingBlock {
            number,
            version: update.starknet_version,
            old_root: update.old_root,
            new_root: update.new_root,
            diff: update.diff.clone(),
        })
    }

    /// Closes and commits a block in one batch.
    fn close_and_commit(
        &self,
        writer: &mut Writer,
        block: PendingBlock,
        progress: &mut Progress,
    ) -> Result<(), Error> {
        let staged = self.stage(&writer.head, &[&block.diff])?;
        let mut committed = Vec::new();
        verify_group(writer.head.root, &[&block], &staged, &mut committed)?;
        let mut batch = self.shared.layout.stage_values(&block.diff);
        batch.append(staged.batch);
        let mut head = writer.head;
        put_committed(&mut batch, &mut head, &committed);
        head.closed = Some(block.number);
        self.write(
            writer,
            batch,
            head,
            Write::new(Step::Close(&block), Moves::Blocks(&[&block.diff])),
            |_| {},
        )?;
        staged.applied.into_iter().for_each(|applied| applied());
        progress.committed.extend(committed);
        progress.hashes += staged.hashes;
        Ok(())
    }

    /// Closes a block and leaves its commitment for later. `replayed` blocks are in the journal already.
    fn close_pending(&self, writer: &mut Writer, block: PendingBlock, replayed: bool) -> Result<(), Error> {
        let mut batch = self.shared.layout.stage_values(&block.diff);
        meta::put_pending(&mut batch, &block);
        let head = Head { closed: Some(block.number), ..writer.head };
        let at_close = self.shared.layout.values_readable() == ValuesReadable::AtClose;
        let diffs = [&block.diff];
        let moves = if at_close { Moves::Blocks(&diffs) } else { Moves::Nothing };
        let step = if replayed { Step::Replay } else { Step::Close(&block) };
        self.write(writer, batch, head, Write::new(step, moves), |overlay| {
            if !at_close {
                overlay.push(block.number, &block.diff);
            }
        })?;
        writer.pending_writes += block.diff.writes();
        writer.pending.push_back(block);
        Ok(())
    }

    /// Commits pending blocks, a bounded group at a time.
    fn commit_pending(&self, writer: &mut Writer, progress: &mut Progress) -> Result<(), Error> {
        while !writer.pending.is_empty() {
            let mut writes = 0;
            let fits = |block: &&PendingBlock| {
                writes += block.diff.writes();
                writes <= GROUP_WRITES_MAX
            };
            let count = writer.pending.iter().take_while(fits).count().max(1);
            self.commit_group(writer, count, progress)?;
        }
        Ok(())
    }

    /// Commits the first `count` pending blocks, or those before the first one whose root does not hold; then that
    /// one and all after it are dropped.
    fn commit_group(&self, writer: &mut Writer, count: usize, progress: &mut Progress) -> Result<(), Error> {
        let group: Vec<&PendingBlock> = writer.pending.iter().take(count).collect();
        let diffs: Vec<&StateDiff> = group.iter().map(|block| &block.diff).collect();
        let mut staged = self.stage(&writer.head, &diffs)?;
        let mut committed = Vec::new();
        let refused = verify_group(writer.head.root, &group, &staged, &mut committed).err();
        if refused.is_some() && !committed.is_empty() {
            staged = self.stage(&writer.head, &diffs[..committed.len()])?;
        }
        if !committed.is_empty() {
            let mut batch = staged.batch;
            group[..committed.len()].iter().for_each(|block| meta::delete_pending(&mut batch, block));
            let mut head = writer.head;
            put_committed(&mut batch, &mut head, &committed);
            let at_commitment = self.shared.layout.values_readable() == ValuesReadable::AtCommitment;
            let moves = if at_commitment { Moves::Blocks(&diffs[..committed.len()]) } else { Moves::Nothing };
            let rest: Vec<&PendingBlock> = writer.pending.iter().skip(committed.len()).collect();
            self.write_batch(batch, head, Write::new(Step::Commit, moves), |overlay| {
                overlay.clear();
                if at_commitment {
                    rest.iter().for_each(|block| overlay.push(block.number, &block.diff));
                }
            })?;
            staged.applied.into_iter().for_each(|applied| applied());
            writer.head = head;
            let done = writer.pending.drain(..committed.len());
            writer.pending_writes -= done.map(|block| block.diff.writes()).sum::<usize>();
            progress.hashes += staged.hashes;
            progress.committed.extend(committed);
        }
        match refused {
            None => Ok(()),
            Some(error) => {
                self.drop_pending(writer)?;
                Err(error)
            }
        }
    }

    /// Takes all pending blocks back: the state is again that of the last committed block.
    fn drop_pending(&self, writer: &mut Writer) -> Result<(), Error> {
        let Some(first) = writer.pending.front().map(|block| block.number) else { return Ok(()) };
        let dropped: Vec<&StateDiff> = writer.pending.iter().map(|block| &block.diff).collect();
        let state = self.shared.state_at(writer.head.root.roots);
        let mut batch = self.shared.layout.stage_rollback(state, &dropped)?;
        writer.pending.iter().for_each(|block| meta::delete_pending(&mut batch, block));
        let head = Head { closed: writer.head.committed, ..writer.head };
        self.write(writer, batch, head, Write::new(Step::Drop(first), Moves::Back), Overlay::clear)?;
        writer.pending.clear();
        writer.pending_writes = 0;
        Ok(())
    }

    /// Commits diffs on top of the last committed block, on the engine's own threads.
    fn stage(&self, head: &Head, diffs: &[&StateDiff]) -> Result<StagedCommitment, Error> {
        let state = self.shared.state_at(head.root.roots);
        Ok(self.pool.install(|| self.shared.layout.stage_commitment(state, diffs, self.hasher.as_ref()))?)
    }

    fn write(
        &self,
        writer: &mut Writer,
        batch: WriteBatch,
        head: Head,
        write: Write<'_>,
        update: impl FnOnce(&mut Overlay),
    ) -> Result<(), Error> {
        self.write_batch(batch, head, write, update)?;
        writer.head = head;
        Ok(())
    }

    /// The one place that writes: applies a batch with its head, makes it last, and shows it to new views. Views from
    /// before expire first if the batch moves readable values, and the read cache follows before there are views that
    /// ask it.
    fn write_batch(
        &self,
        mut batch: WriteBatch,
        head: Head,
        Write { step, moves }: Write<'_>,
        update: impl FnOnce(&mut Overlay),
    ) -> Result<(), StoreError> {
        meta::put_head(&mut batch, &head);
        let cache = &self.shared.read_cache;
        let moved = cache.prepare(if let Moves::Blocks(diffs) = moves { diffs } else { &[] });
        let mut tip = self.shared.tip.write().unwrap_or_else(PoisonError::into_inner);
        if !matches!(moves, Moves::Nothing) {
            tip.epoch = self.shared.epoch.fetch_add(1, Ordering::SeqCst) + 1;
        }
        let written = self.durability().write(self.shared.store.as_ref(), batch, step, head.committed);
        if let Err(error) = written {
            // The first failure is the one to tell; a later one cannot come, because nothing is written any more.
            let _ = self.shared.stopped.set(error.to_string());
            return Err(error);
        }
        match moves {
            Moves::Nothing => {}
            Moves::Blocks(_) => cache.advance(tip.epoch, moved),
            Moves::Back => cache.clear(tip.epoch),
        }
        update(&mut self.shared.overlay.write().unwrap_or_else(PoisonError::into_inner));
        tip.head = head;
        Ok(())
    }
}

impl Drop for Engine {
    /// Syncs the store, so that the next opening has nothing to replay. What is acknowledged is durable without it.
    fn drop(&mut self) {
        if self.shared.check_running().is_ok() {
            let durability = std::mem::replace(&mut *self.durability(), Durability::Store);
            // Nobody is left to tell; the journal has what the store might not.
            let _ = durability.close(self.shared.store.as_ref());
        }
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

fn open_or_create(store: &dyn Store, layout: &dyn Layout) -> Result<Head, Error> {
    let identity = Identity::of(layout);
    if let Some(stored) = meta::read_identity(store)? {
        identity.check(&stored)?;
        return meta::read_head(store);
    }
    let head = Head::default();
    let mut batch = WriteBatch::default();
    meta::put_identity(&mut batch, &identity);
    meta::put_head(&mut batch, &head);
    store.write(batch)?;
    store.sync()?;
    Ok(head)
}

/// Whether the state after one more diff may have contracts and no class, so that its commitment depends on the rule.
fn rule_may_matter(writer: &Writer, diff: &StateDiff) -> bool {
    let Roots { contracts, classes } = writer.head.root.roots;
    let declares = |diff: &StateDiff| diff.classes().iter().any(|class| !class.compiled_class_hash.is_zero());
    let mut diffs = writer.pending.iter().map(|block| &block.diff).chain([diff]);
    let has_contracts = !contracts.is_zero() || diffs.clone().any(|diff| !diff.is_empty());
    has_contracts && classes.is_zero() && !diffs.any(declares)
}

fn check_parent(
    block: BlockNumber,
    stated: Option<StateCommitment>,
    actual: Option<StateCommitment>,
) -> Result<(), Error> {
    match (stated, actual) {
        (Some(stated), Some(actual)) if stated != actual => Err(Error::WrongParent { block, stated, actual }),
        _ => Ok(()),
    }
}

/// Checks computed roots against the stated ones; collects the blocks up to the first that does not hold.
fn verify_group(
    before: BlockRoot,
    group: &[&PendingBlock],
    staged: &StagedCommitment,
    committed: &mut Vec<CommittedBlock>,
) -> Result<(), Error> {
    let mut parent = before.commitment;
    for (block, roots) in group.iter().zip(&staged.roots) {
        check_parent(block.number, block.old_root, Some(parent))?;
        let commitment = commitment_of(roots, block)?;
        if let Some(stated) = block.new_root
            && stated != commitment
        {
            return Err(Error::RootMismatch { block: block.number, stated, computed: commitment });
        }
        parent = commitment;
        committed.push(CommittedBlock {
            number: block.number,
            writes: block.diff.writes(),
            root: BlockRoot { roots: *roots, commitment },
            verified: block.new_root.is_some(),
        });
    }
    Ok(())
}

/// The state commitment under the block's rule. If the block's version is not known and matters, a stated root tells
/// which rule was meant: only one of the two can give it, and either way it commits to exactly these roots.
fn commitment_of(roots: &Roots, block: &PendingBlock) -> Result<StateCommitment, Error> {
    let by = |rule| roots.commitment(rule);
    match (block.version.map(StarknetVersion::commitment_rule), block.new_root) {
        (Some(rule), _) => Ok(by(rule)),
        (None, _) if !roots.rule_matters() => Ok(by(CommitmentRule::AlwaysBoth)),
        (None, Some(stated)) if stated == by(CommitmentRule::AlwaysBoth) => Ok(stated),
        (None, Some(_)) => Ok(by(CommitmentRule::ContractsRootAlone)),
        (None, None) => Err(Error::VersionNeeded { block: block.number }),
    }
}

fn put_committed(batch: &mut WriteBatch, head: &mut Head, committed: &[CommittedBlock]) {
    for block in committed {
        meta::put_block_root(batch, block.number, &block.root);
        head.committed = Some(block.number);
        head.root = block.root;
    }
}
