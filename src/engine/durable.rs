//! How blocks become durable, and stay so.
//!
//! With a journal: a block's frame is appended and synced, and that is its durability point; the store follows behind.
//! Without one (a store in memory, or one that was opened by itself) a durable store is written and synced before a block
//! is acknowledged.
//!
//! In order, where a crash may come between any two:
//!
//! 1. The block's frame is appended to the journal,
//! 2. and synced. From here on the block survives, and only now is anything of it shown or acknowledged. (A block that is
//!    committed as it closes has its root compared before step 1.)
//! 3. Its commitment's rows, its values, what takes it back, and the head are written to the store as one unit, alone or
//!    with those of blocks after it. A store that is lost back to an earlier unit is brought forward by replaying the
//!    frames behind its head.
//! 4. Every [`persist_every`](super::EngineConfig::persist_every) blocks the store is synced (those that the journal held at
//!    the opening count),
//! 5. and only then are journal segments trimmed that hold no block after the store's head.
//!
//! When blocks are taken back, because a root did not hold or because the caller reverts:
//!
//! 6. A refusal is appended to the journal and synced. From here on they are gone: what replays does not see them.
//! 7. If the store has them (only reverts reach that far), rows that restore what was before them are written as one unit.
//!    The head row says up to which refusal it takes account of the journal, so that a crash between 6 and 7 is noticed
//!    at the next opening, which then does 7.
//!
//! An orderly end writes what is committed, syncs the store, and leaves a mark in the journal.

use std::path::Path;
use std::sync::Arc;

use flagstone_core::store::{Store, StoreError};
use flagstone_core::types::{BlockNumber, StateCommitment};

use super::meta::{PendingBlock, StoredHead};
use crate::error::Error;
use crate::journal::{Acknowledged, Files, Journal, JournalConfig, Position};

/// Bytes of frames after which the store is synced, however few blocks they are.
const PERSIST_BYTES: u64 = 32 << 20;

/// Where blocks are made durable.
pub enum Durability {
    /// In the store: each unit is synced.
    Store,
    /// In a journal.
    Journal(Box<Journaled>),
}

/// A journal, and how far the synced store is behind it.
pub struct Journaled {
    journal: Journal,
    persist_every: u32,
    unsynced_blocks: u32,
    unsynced_bytes: u64,
    refusal: Position,
}

/// What the journal has that the store has not.
pub struct Behind {
    /// The first block that was taken back and that the store still has.
    pub taken_back: Option<BlockNumber>,
    /// Blocks to close again, in order.
    pub missing: Vec<PendingBlock>,
}

impl Durability {
    /// Opens the journal of a database whose store is at `head`.
    pub fn open(
        files: Arc<dyn Files>,
        dir: &Path,
        head: &StoredHead,
        persist_every: u32,
    ) -> Result<(Self, Behind), Error> {
        let acknowledged = head.block.map(|block| Acknowledged { block, refusal: head.refusal });
        let (journal, recovery) = Journal::open(files, dir, JournalConfig::default(), acknowledged)?;
        let later = recovery.refusals.iter().filter(|refusal| refusal.at > head.refusal);
        let taken_back = later.map(|refusal| refusal.block).min().filter(|first| Some(*first) <= head.block);
        let refusal = recovery.refusals.last().map_or(head.refusal, |refusal| refusal.at.max(head.refusal));
        let from = match taken_back {
            Some(first) => Some(first),
            None => {
                check_reach(&journal, head)?;
                head.block.map_or(Some(BlockNumber(0)), BlockNumber::next)
            }
        };
        let mut missing = Vec::new();
        for recovered in journal.replay() {
            let recovered = recovered?;
            if from.is_some_and(|from| recovered.block >= from) {
                missing.push(PendingBlock::decode(recovered.block, &recovered.payload).map_err(|error| {
                    Error::damaged(format!("the journal's frame of block {}", recovered.block), error)
                })?);
            }
        }
        // What earlier processes left counts: otherwise those that close a few blocks each would never trim anything.
        let blocks = journal.held().map_or(0, |held| held.last.0 - held.first.0);
        let unsynced_blocks = u32::try_from(blocks).unwrap_or(u32::MAX);
        let unsynced_bytes = journal.bytes();
        let journaled = Journaled { journal, persist_every, unsynced_blocks, unsynced_bytes, refusal };
        Ok((Self::Journal(Box::new(journaled)), Behind { taken_back, missing }))
    }

    /// Whether a block is durable before the store has it.
    pub const fn is_journal(&self) -> bool {
        matches!(self, Self::Journal(_))
    }

    /// Makes a closed block durable, if it is not its store that does; with its root, if that is known: a replay then has to
    /// come to the same.
    pub fn close(&mut self, block: &PendingBlock, root: Option<StateCommitment>) -> Result<(), StoreError> {
        if let Self::Journal(journaled) = self {
            let payload = block.encode(root.or(block.new_root));
            journaled.journal.append(block.number, &payload)?; // 1
            journaled.journal.sync()?; // 2
            journaled.unsynced_bytes += payload.len() as u64;
        }
        Ok(())
    }

    /// Does what the next close may need, and would wait for.
    pub fn prepare(&mut self) -> Result<(), StoreError> {
        if let Self::Journal(journaled) = self {
            journaled.journal.roll_ahead()?;
        }
        Ok(())
    }

    /// The last refusal, for the next head row.
    pub fn refusal(&self) -> Position {
        match self {
            Self::Store => Position::default(),
            Self::Journal(journaled) => journaled.refusal,
        }
    }

    /// The journal, if there is one.
    pub fn journal(&self) -> Option<&Journal> {
        match self {
            Self::Store => None,
            Self::Journal(journaled) => Some(&journaled.journal),
        }
    }

    /// Takes back a block and all after it.
    pub fn refuse_from(&mut self, first: BlockNumber) -> Result<(), StoreError> {
        if let Self::Journal(journaled) = self
            && journaled.journal.next_block().is_some_and(|next| first < next)
        {
            journaled.refusal = journaled.journal.refuse_from(first)?;
            journaled.journal.sync()?; // 6
        }
        Ok(())
    }

    /// Whether the store must be synced now that so many more blocks were written to it.
    pub fn sync_is_due(&mut self, blocks: u32) -> bool {
        match self {
            Self::Store => true,
            Self::Journal(journaled) => {
                journaled.unsynced_blocks = journaled.unsynced_blocks.saturating_add(blocks);
                journaled.unsynced_blocks >= journaled.persist_every
                    || journaled.unsynced_bytes >= PERSIST_BYTES
            }
        }
    }

    /// The store was synced while its head was this block.
    pub fn synced(&mut self, head: Option<BlockNumber>) -> Result<(), StoreError> {
        if let Self::Journal(journaled) = self {
            if let Some(head) = head {
                journaled.journal.trim(head)?; // 5
            }
            journaled.unsynced_blocks = 0;
            journaled.unsynced_bytes = 0;
        }
        Ok(())
    }

    /// An orderly end: the store has everything that was committed, and the journal says so.
    pub fn end(self, store: &dyn Store) -> Result<(), StoreError> {
        store.sync()?;
        match self {
            Self::Store => Ok(()),
            Self::Journal(journaled) => Ok(journaled.journal.close()?),
        }
    }
}

/// Refuses a store that has fewer blocks than the journal can bring back.
fn check_reach(journal: &Journal, head: &StoredHead) -> Result<(), Error> {
    // All blocks before this one were acknowledged, and are not in the journal any more.
    let first = journal.held().map(|held| held.first).or(journal.next_block());
    let reaches = match head.block {
        Some(block) => first <= block.next(),
        None => journal.is_whole(),
    };
    if reaches {
        return Ok(());
    }
    let number =
        |block: Option<BlockNumber>| block.map_or("no block".to_owned(), |block| format!("block {block}"));
    let problem = format!(
        "it has {}, and the journal begins with {}: blocks are lost",
        number(head.block),
        number(first)
    );
    Err(Error::damaged("the store", problem))
}
