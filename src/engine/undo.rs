//! Which blocks can be taken back: what does it is put beside them when they are committed, and deleted when it is too old.

use std::collections::VecDeque;
use std::sync::Arc;

use flagstone_core::store::WriteBatch;
use flagstone_core::types::BlockNumber;

use super::closed::Closed;
use super::locks::Locked;
use super::meta::{self, Undo};
use super::rows::Base;
use super::shared::Shared;
use crate::error::Error;

/// What a commitment does to the list of blocks that can be taken back.
#[derive(Default)]
pub struct HistoryChange {
    added: Vec<BlockNumber>,
    /// How many of the oldest go.
    too_old: usize,
}

impl Shared {
    /// The blocks that can be taken back, ascending.
    pub(super) fn history(&self) -> Locked<'_, VecDeque<BlockNumber>> {
        self.history.lock()
    }

    /// Puts what takes blocks back to their batch, and deletes what is too old. Returns what that does to the list in memory, once
    /// the batch is committed.
    pub(super) fn keep_undo(
        &self,
        base: &Base,
        batch: &mut WriteBatch,
        blocks: &[(&Arc<Closed>, Undo)],
    ) -> Result<HistoryChange, Error> {
        let blocks = if self.config.history_blocks > 0 { blocks } else { &[] };
        for (closed, undo) in blocks {
            meta::put_undo(batch, closed.block.number, undo);
        }
        let history = self.history();
        let added: Vec<BlockNumber> = blocks.iter().map(|(closed, _)| closed.block.number).collect();
        let all = || history.iter().chain(&added).copied();
        // What takes several blocks back is kept as long as its last one.
        let kept = self.config.history_blocks as u64;
        let head = all().last().map_or(0, |last| last.0);
        let too_old = all().take_while(|block| block.0.saturating_add(kept) <= head).count();
        for oldest in all().take(too_old) {
            meta::delete_undo(batch, &self.rows.of(base), oldest)?;
        }
        Ok(HistoryChange { added, too_old })
    }

    /// The list of blocks that can be taken back, after a commitment.
    pub(super) fn change_history(&self, change: HistoryChange) {
        let mut history = self.history();
        history.extend(change.added);
        history.drain(..change.too_old);
    }
}
