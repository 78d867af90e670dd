//! What can be wrong with a dump.

use std::io;
use std::sync::Arc;

/// What kind of error it is, for callers that branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SnapshotErrorKind {
    /// The dump could not be read.
    Io,
    /// It is no dump, or one of another version.
    Format,
    /// It ends too early.
    Cut,
    /// Its bytes are not what was written, or not what a dump can hold.
    Damaged,
}

/// A dump that cannot be read. Says where.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// Reading failed.
    #[error("cannot read {place} of the dump: {source}")]
    Io {
        /// What was to be read.
        place: String,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// It does not begin as a dump does.
    #[error("this is not a dump of a state: it does not begin with `{magic}`; `flagstone export` writes one")]
    NotADump {
        /// What it should begin with.
        magic: String,
    },
    /// Another version wrote it.
    #[error(
        "the dump has format v{found}, this program knows v{known}; export it again with a program that does"
    )]
    Format {
        /// Its version.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// It ends in the middle.
    #[error("the dump is cut short: it ends in {place}; fetch or export it again")]
    Cut {
        /// What was being read.
        place: String,
    },
    /// Something in it is wrong.
    #[error("the dump is damaged in {place}: {problem}; fetch or export it again")]
    Damaged {
        /// What was being read.
        place: String,
        /// What is wrong.
        problem: String,
    },
}

impl SnapshotError {
    /// Its kind.
    pub const fn kind(&self) -> SnapshotErrorKind {
        match self {
            Self::Io { .. } => SnapshotErrorKind::Io,
            Self::NotADump { .. } | Self::Format { .. } => SnapshotErrorKind::Format,
            Self::Cut { .. } => SnapshotErrorKind::Cut,
            Self::Damaged { .. } => SnapshotErrorKind::Damaged,
        }
    }

    pub(super) fn damaged(place: impl ToString, problem: impl ToString) -> Self {
        Self::Damaged { place: place.to_string(), problem: problem.to_string() }
    }

    /// An error of the reader underneath.
    pub(super) fn reading(place: impl ToString, source: io::Error) -> Self {
        let place = place.to_string();
        match source.kind() {
            io::ErrorKind::UnexpectedEof => Self::Cut { place },
            _ => Self::Io { place, source: Arc::new(source) },
        }
    }
}
