//! How a closed block becomes durable.
//!
//! With a journal: its frame is appended and synced, and that is the block's durability point; the store is written right
//! after and synced only now and then. Without one (a store in memory, or one that was opened by itself) the store is
//! synced with every batch.
//!
//! In order, where a crash may come between any two:
//!
//! 1. The block's frame is appended to the journal,
//! 2. and synced. From here on the block survives, and only now is anything of it shown or acknowledged.
//! 3. Its batch is written to the store, as one unit. A store that is lost back to an earlier batch is brought forward by
//!    replaying the frames behind its head.
//! 4. Every [`persist_every`](super::EngineConfig::persist_every) blocks the store is synced,
//! 5. and only then are journal segments trimmed that hold no block after the last committed one: a block that may yet be
//!    taken back stays in the journal.
//!
//! When blocks are taken back because a root did not hold, the store goes first:
//!
//! 6. The batch that restores the values is written and synced,
//! 7. and then their refusal is appended to the journal and synced. A crash between the two replays them; their roots do not
//!    hold then either, and they are taken back again.

use std::path::Path;
use std::sync::Arc;

use flagstone_core::store::{Store, StoreError, WriteBatch};
use flagstone_core::types::BlockNumber;

use super::meta::{Head, PendingBlock};
use crate::error::Error;
use crate::journal::{Files, Journal, JournalConfig};

/// Bytes of frames after which the store is synced, however few blocks they are.
const PERSIST_BYTES: u64 = 32 << 20;

/// What a batch is about.
#[derive(Clone, Copy)]
pub enum Step<'a> {
    /// A block closes.
    Close(&'a PendingBlock),
    /// A block closes that the journal has already.
    Replay,
    /// Closed blocks are committed.
    Commit,
    /// Closed blocks from this one on are taken back.
    Drop(BlockNumber),
}

/// Writes batches and sees to it that what is acknowledged lasts.
pub enum Durability {
    /// Every batch is synced.
    Store,
    /// Blocks are durable in a journal.
    Journal(Box<Journaled>),
}

/// A journal, and how far the store is behind it.
pub struct Journaled {
    journal: Journal,
    persist_every: u32,
    unsynced_blocks: u32,
    unsynced_bytes: u64,
}

impl Durability {
    /// Opens the journal of a database whose store is at `head`, and returns the blocks that the store does not have.
    pub fn open(
        files: Arc<dyn Files>,
        dir: &Path,
        head: &Head,
        persist_every: u32,
    ) -> Result<(Self, Vec<PendingBlock>), Error> {
        let (journal, _) = Journal::open(files, dir, JournalConfig::default(), head.closed)?;
        check_reach(&journal, head)?;
        let mut missing = Vec::new();
        for recovered in journal.replay() {
            let recovered = recovered?;
            if Some(recovered.block) > head.closed {
                missing.push(PendingBlock::decode(recovered.block, &recovered.payload).map_err(|error| {
                    Error::damaged(format!("the journal's frame of block {}", recovered.block), error)
                })?);
            }
        }
        let journaled = Journaled { journal, persist_every, unsynced_blocks: 0, unsynced_bytes: 0 };
        Ok((Self::Journal(Box::new(journaled)), missing))
    }

    /// Writes a batch; on return what it is about is durable.
    pub fn write(
        &mut self,
        store: &dyn Store,
        batch: WriteBatch,
        step: Step<'_>,
        committed: Option<BlockNumber>,
    ) -> Result<(), StoreError> {
        match self {
            Self::Store => {
                store.write(batch)?;
                store.sync()
            }
            Self::Journal(journaled) => journaled.write(store, batch, step, committed),
        }
    }

    /// The journal, if there is one.
    pub fn journal(&self) -> Option<&Journal> {
        match self {
            Self::Store => None,
            Self::Journal(journaled) => Some(&journaled.journal),
        }
    }

    /// An orderly end: the store has everything, and the journal says so.
    pub fn close(self, store: &dyn Store) -> Result<(), StoreError> {
        store.sync()?;
        match self {
            Self::Store => Ok(()),
            Self::Journal(journaled) => Ok(journaled.journal.close()?),
        }
    }
}

impl Journaled {
    fn write(
        &mut self,
        store: &dyn Store,
        batch: WriteBatch,
        step: Step<'_>,
        committed: Option<BlockNumber>,
    ) -> Result<(), StoreError> {
        match step {
            Step::Close(block) => {
                let payload = block.encode();
                self.journal.append(block.number, &payload)?; // 1
                self.journal.sync()?; // 2
                store.write(batch)?; // 3
                self.unsynced_blocks += 1;
                self.unsynced_bytes += payload.len() as u64;
                self.persist(store, committed)
            }
            Step::Replay | Step::Commit => store.write(batch),
            Step::Drop(first) => {
                store.write(batch)?;
                store.sync()?; // 6
                self.journal.refuse_from(first)?;
                self.journal.sync().map(|_| ())?; // 7
                Ok(())
            }
        }
    }

    fn persist(&mut self, store: &dyn Store, committed: Option<BlockNumber>) -> Result<(), StoreError> {
        if self.unsynced_blocks < self.persist_every && self.unsynced_bytes < PERSIST_BYTES {
            return Ok(());
        }
        store.sync()?; // 4
        if let Some(committed) = committed {
            self.journal.trim(committed)?; // 5
        }
        self.unsynced_blocks = 0;
        self.unsynced_bytes = 0;
        Ok(())
    }
}

/// Refuses a store that has fewer blocks than the journal can bring back.
fn check_reach(journal: &Journal, head: &Head) -> Result<(), Error> {
    // All blocks before this one were acknowledged, and are not in the journal any more.
    let first = journal.held().map(|held| held.first).or(journal.next_block());
    let reaches = match head.closed {
        Some(closed) => first <= closed.next(),
        None => journal.is_whole(),
    };
    if reaches {
        return Ok(());
    }
    let number =
        |block: Option<BlockNumber>| block.map_or("no block".to_owned(), |block| format!("block {block}"));
    let problem = format!(
        "it has {}, and the journal begins with {}: blocks are lost",
        number(head.closed),
        number(first)
    );
    Err(Error::damaged("the store", problem))
}
