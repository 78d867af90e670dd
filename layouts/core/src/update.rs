//! A block's state update: its diff with what the network says about the block.

use crate::commitment::StarknetVersion;
use crate::diff::StateDiff;
use crate::types::{BlockHash, BlockNumber, StateCommitment};

/// A block's state diff with the facts that came with it. What a source does not say is `None`, never a guess.
///
/// Sources of blocks build it by a literal, so it is not `#[non_exhaustive]`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StateUpdate {
    /// Number of the block.
    pub block_number: Option<BlockNumber>,
    /// Hash of the block.
    pub block_hash: Option<BlockHash>,
    /// Protocol version of the block, on which the state commitment's rule depends.
    pub starknet_version: Option<StarknetVersion>,
    /// State commitment before the block (`old_root`).
    pub old_root: Option<StateCommitment>,
    /// State commitment after the block (`new_root`).
    pub new_root: Option<StateCommitment>,
    /// What the block changes.
    pub diff: StateDiff,
}

impl From<StateDiff> for StateUpdate {
    fn from(diff: StateDiff) -> Self {
        Self { diff, ..Self::default() }
    }
}
