//! How blocks become durable, and stay so.
//!
//! With a journal: a block's frame is appended and synced, and that is its durability point; the store follows behind.
//! Without one (a store in memory, or one that was opened by itself) a durable store is written and synced before a block
//! is acknowledged. A database that is only looked at keeps nothing.
//!
//! In order, where a crash may come between any two:
//!
//! 1. The block's frame is appended to the journal, with its roots if they were computed before,
//! 2. and synced. From here on the block survives, and only now is anything of it shown or acknowledged. (A block that is
//!    committed as it closes has its root compared before step 1.)
//! 3. Roots that are computed later are appended before anybody is told them. They are synced with the next block, or at 5.
//! 4. The commitment's rows, its values, what takes it back, and the head are written to the store as one unit, alone or
//!    with those of blocks after it. A store that is lost back to an earlier unit is brought forward by replaying the
//!    frames behind its head.
//! 5. Every [`persist_every`](super::EngineConfig::persist_every) blocks the store is synced (those that the journal held at
//!    the opening count),
//! 6. and only then are journal segments let go and removed that hold no block after the store's head, and no refusal that
//!    the head does not take account of.
//!
//! When blocks are taken back, because a root did not hold or because the caller reverts:
//!
//! 7. A refusal is appended to the journal and synced. From here on they are gone: what replays does not see them.
//! 8. If the store has them (only reverts reach that far), rows that restore what was before them are written as one unit.
//!    The head row says up to which refusal it takes account of the journal, so that a crash between 7 and 8 is noticed
//!    at the next opening, which then does 8.
//!
//! An orderly end writes what is committed, syncs the store, and leaves a mark in the journal. The next opening that is to
//! write begins a segment before it changes anything, so the mark is no longer the last frame. `opening.rs` says what is done
//! when there was no orderly end.
//!
//! 1 to 3 and 7 are done by a thread that alone has the journal, one after the other. So nobody holds a lock while the disk is
//! waited for, and the files of 6 are removed by the writing thread, for which nobody who closes a block waits.
//! A failure of 2, 5 or 7 is final: nothing is tried again, as neither disk nor page cache is known then. A frame that did not
//! fit on the disk is no failure of that kind: the block is refused, and the next one begins another segment.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use flagstone_core::store::{StoreError, StoreErrorKind};
use flagstone_core::types::BlockNumber;

use super::meta::{BlockRoot, PendingBlock};
use super::outcome::CommittedBlock;
use super::rows::Rows;
use crate::error::Error;
use crate::journal::{Files, Journal, JournalConfig, JournalError, JournalErrorKind, Position, Released};

/// Bytes of frames after which the store is synced, however few blocks they are.
const PERSIST_BYTES: u64 = 32 << 20;
/// An orderly end lets go of segments if there are more than this.
const SEGMENTS_MAX: usize = 16;

/// Where blocks are made durable.
pub enum Durability {
    /// In the store: each unit is synced.
    Store,
    /// In a journal.
    Journal(Journaled),
    /// Nowhere: the database is only looked at, with its journal if that can be used.
    Nowhere(Option<(Arc<dyn Files>, PathBuf)>),
}

/// A journal on its thread, and how far the synced store is behind it.
pub struct Journaled {
    jobs: Mutex<Option<Sender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    files: Arc<dyn Files>,
    dir: PathBuf,
    payload_bytes_max: u64,
    persist_every: u32,
    unsynced_blocks: AtomicU32,
    unsynced_bytes: AtomicU64,
}

type Answer<T> = SyncSender<Result<T, JournalError>>;

/// What the journal's thread is asked to do, in the order asked.
enum Job {
    Append { block: BlockNumber, payload: Vec<u8>, roots: Option<Vec<u8>>, done: Answer<()> },
    Roots { roots: Vec<(BlockNumber, Vec<u8>)>, done: Answer<()> },
    Refuse { first: BlockNumber, done: Answer<Option<Position>> },
    Release { through: BlockNumber, refusal: Position, done: Answer<Released> },
    End { through: Option<BlockNumber>, refusal: Position, done: Answer<()> },
}

impl Durability {
    /// Whether a block is durable before the store has it, or never.
    pub const fn is_ahead_of_store(&self) -> bool {
        !matches!(self, Self::Store)
    }

    /// Refuses to change what is only looked at.
    pub fn check_writable(&self) -> Result<(), Error> {
        match self {
            Self::Store | Self::Journal(_) => Ok(()),
            Self::Nowhere(_) => Err(Error::Refused(
                "the database was opened for looking only, so that no block is closed or taken back; open it to write".into(),
            )),
        }
    }

    /// The longest byte form of a block that is taken.
    pub fn payload_bytes_max(&self) -> u64 {
        match self {
            Self::Journal(journaled) => journaled.payload_bytes_max,
            Self::Store | Self::Nowhere(_) => u64::MAX,
        }
    }

    /// Makes a closed block durable, if it is not its store that does; with its roots, if they are known. A block that is
    /// refused because the disk is full leaves the journal as it was.
    pub fn close(&self, block: &PendingBlock, root: Option<&BlockRoot>) -> Result<(), StoreError> {
        let Self::Journal(journaled) = self else { return Ok(()) };
        let (payload, roots) = (block.encode(), root.map(|root| root.to_bytes()));
        let bytes = payload.len() as u64;
        journaled.ask(|done| Job::Append { block: block.number, payload, roots, done })?; // 1, 2
        journaled.unsynced_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Appends roots that were computed, so that they are in the file before anybody is told. On a full disk they are not: what
    /// is lost is that a replay is held against them, and no block.
    pub fn note_roots(&self, committed: &[CommittedBlock]) -> Result<(), StoreError> {
        let Self::Journal(journaled) = self else { return Ok(()) };
        let roots = committed.iter().map(|block| (block.number, block.root.to_bytes())).collect();
        match journaled.ask(|done| Job::Roots { roots, done }) {
            Err(error) if error.kind() != JournalErrorKind::Full => Err(error.into()), // 3
            _ => Ok(()),
        }
    }

    /// Takes back a block and all after it. Returns where the journal says so, unless it never had them.
    pub fn refuse_from(&self, first: BlockNumber) -> Result<Option<Position>, StoreError> {
        match self {
            Self::Journal(journaled) => Ok(journaled.ask(|done| Job::Refuse { first, done })?), // 7
            Self::Store | Self::Nowhere(_) => Ok(None),
        }
    }

    /// Whether the store must be synced now that so many more blocks were written to it.
    pub fn sync_is_due(&self, blocks: u32) -> bool {
        match self {
            Self::Store => true,
            Self::Nowhere(_) => false,
            Self::Journal(journaled) => {
                let unsynced = journaled.unsynced_blocks.load(Ordering::Relaxed).saturating_add(blocks);
                journaled.unsynced_blocks.store(unsynced, Ordering::Relaxed);
                unsynced >= journaled.persist_every
                    || journaled.unsynced_bytes.load(Ordering::Relaxed) >= PERSIST_BYTES
            }
        }
    }

    /// The store was synced while its head was this block, and took account of this refusal.
    pub fn synced(&self, head: Option<BlockNumber>, refusal: Position) -> Result<(), StoreError> {
        let Self::Journal(journaled) = self else { return Ok(()) };
        journaled.unsynced_blocks.store(0, Ordering::Relaxed);
        journaled.unsynced_bytes.store(0, Ordering::Relaxed);
        if let Some(through) = head {
            journaled.ask(|done| Job::Release { through, refusal, done })?.remove()?; // 6
        }
        Ok(())
    }

    /// An orderly end: the store has everything that was committed, up to a head and a refusal, and the journal says so.
    pub fn end(&self, rows: &Rows, head: Option<BlockNumber>, refusal: Position) -> Result<(), StoreError> {
        if !matches!(self, Self::Nowhere(_)) {
            rows.sync()?;
        }
        match self {
            Self::Journal(journaled) => {
                Ok(journaled.ask(|done| Job::End { through: head, refusal, done })?)
            }
            Self::Store | Self::Nowhere(_) => Ok(()),
        }
    }

    /// Lets the journal's thread end. Nothing is appended any more.
    pub fn stop(&self) {
        if let Self::Journal(journaled) = self {
            *journaled.jobs.lock().unwrap_or_else(PoisonError::into_inner) = None;
            let thread = journaled.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
            // A thread that panicked has answered nobody, and who asked was told.
            let _ = thread.map(JoinHandle::join);
        }
    }

    /// The journal's files as they are now, to be looked at; `None` if there is none.
    pub fn look(&self) -> Option<Result<Journal, JournalError>> {
        match self {
            Self::Journal(Journaled { files, dir, .. }) | Self::Nowhere(Some((files, dir))) => {
                let looked = Journal::inspect(Arc::clone(files), dir, JournalConfig::default(), None);
                Some(looked.map(|(journal, _)| journal))
            }
            Self::Store | Self::Nowhere(None) => None,
        }
    }
}

impl Journaled {
    /// Puts a journal that was begun on its thread.
    pub fn start(
        journal: Journal,
        (files, dir): (Arc<dyn Files>, &Path),
        persist_every: u32,
    ) -> Result<Self, Error> {
        // What earlier processes left counts: otherwise those that close a few blocks each would never trim anything.
        let blocks = journal.held().map_or(0, |held| held.last.0 - held.first.0);
        let unsynced_bytes = journal.bytes();
        let payload_bytes_max = journal.payload_bytes_max();
        let (jobs, waiting) = channel();
        let thread = std::thread::Builder::new().name("flagstone-journal".to_owned());
        let thread = thread.spawn(move || serve(journal, &waiting));
        let thread =
            thread.map_err(|error| Error::Config(format!("cannot start the journal thread: {error}")))?;
        Ok(Self {
            jobs: Mutex::new(Some(jobs)),
            thread: Mutex::new(Some(thread)),
            files,
            dir: dir.to_owned(),
            payload_bytes_max,
            persist_every,
            unsynced_blocks: AtomicU32::new(u32::try_from(blocks).unwrap_or(u32::MAX)),
            unsynced_bytes: AtomicU64::new(unsynced_bytes),
        })
    }

    /// Whether the thread will see it.
    fn send(&self, job: Job) -> bool {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner).clone();
        jobs.is_some_and(|jobs| jobs.send(job).is_ok())
    }

    /// Has a job done, and waits for its answer.
    fn ask<T>(&self, job: impl FnOnce(Answer<T>) -> Job) -> Result<T, JournalError> {
        let gone = || JournalError::Poisoned { cause: "its thread has ended".into() };
        let (done, answer) = sync_channel(1);
        if !self.send(job(done)) {
            return Err(gone());
        }
        answer.recv().unwrap_or_else(|_| Err(gone()))
    }
}

/// The journal's thread: one job after the other, until nobody is left who could ask.
fn serve(mut journal: Journal, jobs: &Receiver<Job>) {
    while let Ok(job) = jobs.recv() {
        // Who asked may have gone.
        match job {
            Job::Append { block, payload, roots, done } => {
                let _ = done.send(append(&mut journal, block, &payload, roots.as_deref()));
                // While nobody waits, so that the next append need not. The next append tells of a failure.
                let _ = journal.roll_ahead();
            }
            Job::Roots { roots, done } => {
                let mut roots = roots.iter();
                let appended = roots.try_for_each(|(block, roots)| journal.append_roots(*block, roots));
                let _ = done.send(appended);
            }
            Job::Refuse { first, done } => drop(done.send(refuse(&mut journal, first))),
            Job::Release { through, refusal, done } => drop(done.send(journal.release(through, refusal))),
            Job::End { through, refusal, done } => {
                let _ = done.send(end(journal, through, refusal));
                return;
            }
        }
    }
}

fn append(
    journal: &mut Journal,
    block: BlockNumber,
    payload: &[u8],
    roots: Option<&[u8]>,
) -> Result<(), JournalError> {
    journal.append_with_roots(block, payload, roots)?;
    journal.sync().map(drop)
}

fn refuse(journal: &mut Journal, first: BlockNumber) -> Result<Option<Position>, JournalError> {
    if journal.next_block().is_none_or(|next| first >= next) {
        return Ok(None);
    }
    let at = journal.refuse_from(first)?;
    journal.sync()?;
    Ok(Some(at))
}

fn end(mut journal: Journal, through: Option<BlockNumber>, refusal: Position) -> Result<(), JournalError> {
    if let Some(through) = through.filter(|_| journal.segments() > SEGMENTS_MAX) {
        journal.trim(through, refusal)?;
    }
    journal.close()
}

/// Whether a failure to make a block durable is that the disk is full, and left everything as it was.
pub fn is_full(error: &StoreError) -> bool {
    error.kind() == StoreErrorKind::Full
}
