//! What segments are called, and what is known of what is in them.

use std::io;
use std::path::{Path, PathBuf};

use flagstone_core::types::BlockNumber;

use super::error::JournalError;
use super::format::{FrameHead, SegmentKey};

/// A block read back.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recovered {
    /// Its number.
    pub block: BlockNumber,
    /// The bytes that were appended for it.
    pub payload: Vec<u8>,
    /// The bytes that were appended as its roots, if they were known.
    pub roots: Option<Vec<u8>>,
}

/// A segment of which no more is to be known.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment {
    pub key: SegmentKey,
    pub end: u64,
    /// The block that its header says comes next.
    pub next: Option<BlockNumber>,
}

/// A block that is held, and where; and where its roots are. (Those that were found when the journal was opened: what this
/// process appends, it need not read.)
#[derive(Debug, Clone, Copy)]
pub(super) struct Held {
    pub sequence: u64,
    pub head: FrameHead,
    pub roots: Option<(u64, FrameHead)>,
}

pub(super) fn segment_name(sequence: u64) -> String {
    format!("{sequence:020}.seg")
}

pub(super) fn segment_path(dir: &Path, sequence: u64) -> PathBuf {
    dir.join(segment_name(sequence))
}

/// The sequence number in a segment's file name. Files with other names are none of the journal's.
pub(super) fn parse_name(name: &str) -> Option<u64> {
    let sequence = name.strip_suffix(".seg")?.parse().ok()?;
    (segment_name(sequence) == name).then_some(sequence)
}

pub(super) fn io_error(what: &'static str, path: &Path, source: io::Error) -> JournalError {
    JournalError::Io { what, path: path.to_owned(), source }
}
