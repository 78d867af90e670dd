//! A closed block.

use std::sync::Arc;

use flagstone_core::diff::StateDiff;

use super::meta::{Blob, PendingBlock};
use super::outcome::Outcome;

/// A closed block on its way.
pub struct Closed {
    pub block: PendingBlock,
    /// Larger than those of all states before.
    pub stamp: u64,
    pub outcome: Arc<Outcome>,
    pub writes: usize,
    /// Its values, and its blobs as so many values as take their room.
    pub weight: usize,
}

/// Bytes of blobs that count as one value at the bounds: about what a value takes while its block is not committed.
const VALUE_BYTES: usize = 300;

/// What a block counts at the bound on values that are closed and not committed.
pub fn weight(diff: &StateDiff, blobs: &[Blob]) -> usize {
    diff.writes() + blobs.iter().map(|blob| blob.bytes.len() / VALUE_BYTES).sum::<usize>()
}

impl Closed {
    pub fn new(block: PendingBlock, stamp: u64) -> Self {
        let (writes, weight) = (block.diff.writes(), weight(&block.diff, &block.blobs));
        let outcome = Outcome::new(block.number, block.lineage.state);
        Self { block, stamp, outcome, writes, weight }
    }

    /// The block as one of the recent ones: its blobs are in rows, and are not kept in memory for views of it.
    pub fn without_blobs(self: &Arc<Self>) -> Arc<Self> {
        let Self { block, stamp, outcome, .. } = &**self;
        if block.blobs.is_empty() {
            return Arc::clone(self);
        }
        let facts =
            PendingBlock { number: block.number, diff: block.diff.clone(), ..PendingBlock::default() };
        Arc::new(Self { outcome: Arc::clone(outcome), ..Self::new(facts, *stamp) })
    }
}
