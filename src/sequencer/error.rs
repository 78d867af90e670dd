//! What producing a block can fail with.

use flagstone_core::types::BlockNumber;

use super::classes::ClassError;
use crate::error::{Error, ErrorKind};

/// An error of block production.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SequencerError {
    /// The engine refused or failed.
    #[error(transparent)]
    Engine(#[from] Error),
    /// Compiled classes could not be kept or read.
    #[error(transparent)]
    Class(#[from] ClassError),
    /// The executor failed; not a transaction, which only fails by itself.
    #[error("block {block}: the executor failed: {problem}; nothing of this block was kept")]
    Executor {
        /// The block.
        block: BlockNumber,
        /// What it said.
        problem: String,
    },
    /// The state could not be read while a block was executed. What the executor made of it is not used.
    #[error("block {block}: reading the state failed: {problem}; nothing of this block was kept")]
    Read {
        /// The block.
        block: BlockNumber,
        /// The first failure.
        problem: String,
    },
    /// The executor's state diff is not one.
    #[error("the executor's state diff: {0}")]
    Diff(String),
    /// The database was not begun by what is to continue it.
    #[error("{0}")]
    Foreign(String),
}

impl SequencerError {
    /// Its kind.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Engine(error) => error.kind(),
            Self::Foreign(_) => ErrorKind::Input,
            Self::Class(_) | Self::Executor { .. } | Self::Read { .. } | Self::Diff(_) => ErrorKind::Store,
        }
    }
}
