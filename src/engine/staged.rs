//! What a layout staged, before the engine's own rows are put to it.

use std::sync::Arc;

use flagstone_core::commit::HashCounts;
use flagstone_core::commitment::Roots;
use flagstone_core::diff::StateDiff;
use flagstone_core::store::WriteBatch;
use flagstone_core::witness::Witness;

/// What a layout staged for diffs.
#[derive(Default)]
pub struct Staged {
    pub roots: Vec<Roots>,
    pub undo: Vec<StateDiff>,
    pub rows: StagedRows,
}

/// The layout's rows of a commitment.
#[derive(Default)]
pub struct StagedRows {
    pub batch: Arc<WriteBatch>,
    pub hashes: HashCounts,
    pub applied: Option<Box<dyn FnOnce() + Send>>,
    pub witness: Witness,
}
