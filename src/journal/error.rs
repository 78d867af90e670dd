//! What the journal refuses or fails with.

use std::fmt;
use std::io;
use std::path::PathBuf;

use flagstone_core::store::{StoreError, StoreErrorKind};
use flagstone_core::types::BlockNumber;

/// Blocks from the first to the last, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockRange {
    /// The first one.
    pub first: BlockNumber,
    /// The last one.
    pub last: BlockNumber,
}

impl fmt::Display for BlockRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            return write!(f, "block {}", self.first);
        }
        write!(f, "blocks {} to {}", self.first, self.last)
    }
}

/// What is lost to damage, as far as the rest of the journal can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Lost {
    /// These blocks, and no others.
    Blocks(BlockRange),
    /// Blocks from this one on; how many cannot be told.
    From(BlockNumber),
    /// No block, but something that was said of blocks: perhaps that some were refused.
    NoBlock,
    /// It cannot be told.
    Unknown,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blocks(range) => range.fmt(f),
            Self::From(block) => write!(f, "block {block} and an unknown number after it"),
            Self::NoBlock => f.write_str("no block, but perhaps the refusal of some"),
            Self::Unknown => f.write_str("an unknown number of blocks"),
        }
    }
}

/// Damage to what had been acknowledged, or what cannot be told from it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Damage {
    /// The segment file.
    pub segment: PathBuf,
    /// Where in it.
    pub offset: u64,
    /// What is wrong there.
    pub problem: String,
    /// Blocks before the damage that are whole.
    pub before: Option<BlockRange>,
    /// Blocks that are lost.
    pub lost: Lost,
    /// Blocks after the damage that are whole, and cannot be replayed without the lost ones.
    pub after: Option<BlockRange>,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { segment, offset, problem, before, lost, after } = self;
        write!(f, "journal segment {} is damaged at byte {offset}: {problem}; ", segment.display())?;
        match before {
            Some(before) => write!(f, "readable before it: {before}; ")?,
            None => f.write_str("readable before it: no block; ")?,
        }
        write!(f, "lost: {lost}; ")?;
        if let Some(after) = after {
            write!(f, "readable after it, but of no use without the lost: {after}; ")?;
        }
        f.write_str(
            "restore the file from a copy; or go on from the last block that the store has, with `flagstone recover`; \
             or rebuild the store from a snapshot and feed the blocks after it again",
        )
    }
}

/// An error of the journal. Nothing was written, unless it is [`JournalError::Io`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// The operating system refused. If it was a write or a sync, the journal is poisoned.
    #[error("cannot {what} {path}: {source}", path = .path.display())]
    Io {
        /// What was to be done.
        what: &'static str,
        /// To which file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is no room on the disk. Nothing that was acknowledged is touched, and the journal goes on once there is room.
    #[error("no room on the disk for {path}: {source}; make room and try again: nothing of what was acknowledged is touched", path = .path.display())]
    Full {
        /// The segment that was to be written.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// An earlier write or sync failed. After that neither the disk's content nor the page cache is known, so nothing
    /// is tried again.
    #[error("the journal has stopped after a failure ({cause}); open it again to continue")]
    Poisoned {
        /// The failure.
        cause: String,
    },
    /// It was opened for looking only.
    #[error("the journal was opened for looking only, and takes nothing")]
    LookingOnly,
    /// A block does not follow the last one.
    #[error("block {got} does not follow: the next block of the journal is {expected}")]
    NotConsecutive {
        /// The number it must have.
        expected: BlockNumber,
        /// The number it has.
        got: BlockNumber,
    },
    /// No block can follow this one, so it is not taken.
    #[error("no block could follow block {block}")]
    NoSuccessor {
        /// The block.
        block: BlockNumber,
    },
    /// The journal does not hold the block.
    #[error("the journal does not hold block {block}; it holds {held}", held = .held.map_or("none".to_owned(), |held| held.to_string()))]
    NotHeld {
        /// The block.
        block: BlockNumber,
        /// What it holds.
        held: Option<BlockRange>,
    },
    /// A payload is longer than the configured maximum.
    #[error("block {block}: {bytes} bytes are more than the journal takes for one block ({max})")]
    TooLarge {
        /// The block.
        block: BlockNumber,
        /// Length of its payload.
        bytes: u64,
        /// The most that is allowed.
        max: u64,
    },
    /// Something that was acknowledged cannot be read back.
    #[error("{0}")]
    Corrupt(Box<Damage>),
    /// A segment of another format version.
    #[error(
        "journal segment {segment} has format v{found}, this program knows v{known}; \
         open the database with the version of the program that wrote it, export its state there, and import the dump with this one",
        segment = .segment.display()
    )]
    Format {
        /// The segment file.
        segment: PathBuf,
        /// Its version.
        found: u32,
        /// Ours.
        known: u32,
    },
}

/// What kind of error it is, for callers that branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum JournalErrorKind {
    /// The operating system refused, now or earlier.
    Io,
    /// The disk is full.
    Full,
    /// The caller's block or range does not fit.
    Input,
    /// What is on the disk is damaged.
    Corrupt,
    /// What is on the disk is of another version.
    Format,
}

impl JournalError {
    /// Its kind.
    pub const fn kind(&self) -> JournalErrorKind {
        match self {
            Self::Io { .. } | Self::Poisoned { .. } => JournalErrorKind::Io,
            Self::Full { .. } => JournalErrorKind::Full,
            Self::NotConsecutive { .. }
            | Self::NoSuccessor { .. }
            | Self::LookingOnly
            | Self::NotHeld { .. }
            | Self::TooLarge { .. } => JournalErrorKind::Input,
            Self::Corrupt(_) => JournalErrorKind::Corrupt,
            Self::Format { .. } => JournalErrorKind::Format,
        }
    }

    /// What is damaged, if anything is.
    pub fn damage(&self) -> Option<&Damage> {
        match self {
            Self::Corrupt(damage) => Some(damage),
            _ => None,
        }
    }
}

impl From<Damage> for JournalError {
    fn from(damage: Damage) -> Self {
        Self::Corrupt(Box::new(damage))
    }
}

impl From<JournalError> for StoreError {
    fn from(error: JournalError) -> Self {
        let kind = match error.kind() {
            JournalErrorKind::Io if matches!(error, JournalError::Poisoned { .. }) => StoreErrorKind::Closed,
            JournalErrorKind::Io => StoreErrorKind::Io,
            JournalErrorKind::Full => StoreErrorKind::Full,
            JournalErrorKind::Corrupt => StoreErrorKind::Corrupt,
            JournalErrorKind::Input | JournalErrorKind::Format => StoreErrorKind::Unsupported,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<JournalError> for crate::error::Error {
    fn from(error: JournalError) -> Self {
        StoreError::from(error).into()
    }
}
