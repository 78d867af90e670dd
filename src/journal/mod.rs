//! The journal: what makes a block durable.
//!
//! A store takes long to make a block durable, one sequential append and one `fdatasync` do not. So a closed block goes
//! here first, as one frame, and the store follows at its leisure; after a crash the frames are replayed into it. The
//! payload is the engine's affair: it must hold absolute values, so that replaying a block twice is harmless.
//!
//! The journal never guesses. What was acknowledged is read back as it was, or the error says what is lost. It is for
//! one process; whoever opens it holds the database's lock.
//!
//! ```
//! use flagstone::core::types::BlockNumber;
//! use flagstone::journal::{Journal, JournalConfig, OsFiles};
//! # let dir = tempfile::tempdir()?;
//! # let dir = dir.path().join("journal");
//!
//! let (mut journal, _) = Journal::open(std::sync::Arc::new(OsFiles), &dir, JournalConfig::default(), None)?;
//! journal.append(BlockNumber(7), b"values of block 7")?;
//! journal.append(BlockNumber(8), b"values of block 8")?;
//! journal.sync()?; // both are acknowledged
//! journal.refuse_from(BlockNumber(8))?; // its root turned out wrong
//! journal.sync()?;
//! drop(journal);
//!
//! let (journal, recovery) = Journal::open(std::sync::Arc::new(OsFiles), &dir, JournalConfig::default(), None)?;
//! assert!(recovery.cut.is_none());
//! for recovered in journal.replay() {
//!     let recovered = recovered?;
//!     assert_eq!((recovered.block, recovered.payload), (BlockNumber(7), b"values of block 7".to_vec()));
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Format, version 1
//!
//! Segments are files `DIR/00000000000000000042.seg`, named by a sequence number without gaps: block numbers can come
//! twice, when blocks were refused. All numbers are big-endian. A segment is a header and then frames without gaps,
//! perhaps followed by zeros as long as it is the last one.
//!
//! ```text
//!   0        8          12        16           24       32
//!   +--------+----------+---------+------------+--------+
//!   | magic  | format   | flags   | sequence   | salt   |    flags: 1 = next block is known
//!   | 8 B    | u32      | u32     | u64        | u64    |    salt: drawn for this segment
//!   +--------+----------+---------+------------+--------+
//!   | next block | previous end | previous salt | 0      | crc32  |   crc32 over the 60 bytes before
//!   | u64        | u64          | u64           | u32    | u32    |
//!   +------------+--------------+---------------+--------+--------+
//!   32           40             48              56       60       64
//! ```
//!
//! A frame begins at a multiple of 8:
//!
//! ```text
//!   0        4      8       16          24       32            36           40
//!   +--------+------+-------+-----------+--------+-------------+------------+---------+---------------+
//!   | "FRAM" | kind | block | synced to | length | crc32 of    | crc32 of   | payload | zeros to a    |
//!   |        | u32  | u64   | u64       | u64    | the payload | place and  | length  | multiple of 8 |
//!   |        |      |       |           |        | and zeros   | 36 B above | bytes   |               |
//!   +--------+------+-------+-----------+--------+-------------+------------+---------+---------------+
//!
//!   kind 1   the block and its payload
//!   kind 2   block and all after it are refused: not to be replayed; the next block has this number
//!   kind 3   a mark at an orderly end; block is 0
//! ```
//!
//! *Place* is the segment's salt, its sequence and the frame's offset, so the same bytes elsewhere (an older file's
//! blocks, a copied segment) are not a frame. Two checksums and not one: a head that is whole tells of the block and the
//! synced position even if the payload is not, and behind damage frames can be searched for at the cost of one look
//! for each 8 bytes, whatever the payloads are. A header names its predecessor's end and salt, so that a segment that
//! lost its last frames, or was swapped, is noticed.
//!
//! # Durability, step by step
//!
//! Appending:
//! 1. The frame is written. It may be on the disk, or not, or in part, and before or after others.
//! 2. `fdatasync` of the segment: all frames before are *synced*, and only now may they be acknowledged. One call serves
//!    as many appends as came before it.
//!
//! When the segment is full, or none was begun since the journal was opened (or earlier, when nobody waits:
//! [`Journal::roll_ahead`]):
//!
//! 3. The old segment is cut to its end and synced, with all frames that were not yet.
//! 4. The new one is written under the name `….seg.new`: header, synced.
//! 5. It is renamed to `….seg`,
//! 6. and the directory is synced. Only now are frames written to it. So a `.seg` always has a whole header, whatever
//!    happened; and if there is a next segment, then all of this one was synced.
//!
//! Trimming, for each segment, oldest first:
//!
//! 7. What is not synced is synced (a refusal may be why a segment is not needed).
//! 8. The oldest is removed,
//! 9. and the directory is synced, before the next is removed: so none is ever missing in the middle. The newest segment
//!    always stays; it knows which block comes next.
//!
//! Opening:
//!
//! 10. Everything is read and checked. Nothing is changed if anything is wrong.
//! 11. Segments `….seg.new` are removed.
//! 12. The last segment is cut behind its last whole frame, what is not known to be synced is written once more, and it
//!     is synced. (A process whose sync failed leaves pages that the system takes for written and that never were.
//!     Writing them again makes them dirty, so that this sync is worth something.)
//! 13. The directory is synced. Only now are blocks handed out for replay. New frames go to a new segment, so no place in
//!     a segment is ever written with two different things.
//!
//! Any crash in 10 to 13 leaves what a second opening deals with in the same way. A write or sync that fails poisons the
//! journal, and nothing is tried again: after a failed `fsync` neither disk nor page cache is known.
//!
//! # Torn tail or damage?
//!
//! Writes that were not synced may reach the disk in any order, so after a crash a bad frame may be followed by whole ones
//! without anything acknowledged being lost. Each frame therefore says up to where its segment had been synced when it
//! was written (step 2). Let `c` be where the first bad frame begins:
//!
//! - in a segment that is not the last, step 3 has synced it: **damage**;
//! - in the last, if some whole head behind `c` claims a position beyond `c`: the bad frame had been synced: **damage**;
//! - otherwise no frame was written after a sync that covered `c`: a **torn tail**, which is cut.
//!
//! The third case has one blind spot. If the last sync before the end covered `c` and nothing was written after it, then
//! no frame tells. A tear there cannot come from a crash, but rot could. Two things close it: [`Journal::close`] leaves
//! a mark that tells; and whoever notes elsewhere which block was acknowledged last gives it to [`Journal::open`].
//!
//! We rely on this of a disk: a write that is interrupted leaves each byte old or new.
//!
//! # Preallocation
//!
//! Frames that make a file longer cost a change of the file system's own data with each sync. Zeros written ahead avoid
//! that; they are written in steps of [`JournalConfig::preallocate_bytes`] and reach the disk with the sync that is due
//! anyway. For frames that are not small against a step it would only write everything twice, so these just make the
//! file longer. (`fallocate` is not in std, and a longer file without blocks in it saves nothing.)

mod error;
pub mod faulty;
mod files;
mod format;
mod recovery;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::BuildHasher;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use flagstone_core::types::BlockNumber;

pub use error::{BlockRange, Damage, JournalError, JournalErrorKind, Lost};
pub use files::{Files, OpenFile, OsFiles};
pub use recovery::{Acknowledged, Cut, Recovery, Refusal};

use files::{read_full, write_full};
use format::{FRAME_HEAD_BYTES, FrameHead, HEADER_BYTES, Header, Kind, SegmentKey, padded, put_frame};

/// Frames longer than this part of a preallocation step are not preallocated for.
const PREALLOCATED_FRAMES_MIN: u64 = 8;

/// Bounds of a journal. They may differ at each opening.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournalConfig {
    /// A segment is full when the next frame would make it longer than this. One frame may be longer by itself.
    pub segment_bytes: u64,
    /// Zeros are written ahead in steps of this; 0 for none.
    pub preallocate_bytes: u64,
    /// The longest payload that is taken. The journal keeps a buffer as long as the longest frame so far.
    pub payload_bytes_max: u64,
}

impl Default for JournalConfig {
    fn default() -> Self {
        Self { segment_bytes: 64 << 20, preallocate_bytes: 1 << 20, payload_bytes_max: 1 << 30 }
    }
}

/// A place in the journal. Later places are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Position {
    /// The segment.
    pub sequence: u64,
    /// The byte in it.
    pub offset: u64,
}

/// A block read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// Its number.
    pub block: BlockNumber,
    /// The bytes that were appended for it.
    pub payload: Vec<u8>,
}

/// A segment of which no more is to be known.
#[derive(Debug, Clone, Copy)]
struct Segment {
    key: SegmentKey,
    end: u64,
}

/// A block that is held, and where.
#[derive(Debug, Clone, Copy)]
struct Held {
    sequence: u64,
    head: FrameHead,
}

/// The segment that is written to: the last one of [`Journal::segments`].
#[derive(Debug)]
struct Current {
    file: Box<dyn OpenFile>,
    synced: u64,
    /// How far the file is long.
    allocated: u64,
}

/// The journal of one database. See the [module](self).
pub struct Journal {
    files: Arc<dyn Files>,
    dir: PathBuf,
    config: JournalConfig,
    /// In order, without gaps.
    segments: VecDeque<Segment>,
    current: Option<Current>,
    /// In order, without gaps; a few dozen bytes for each block.
    held: VecDeque<Held>,
    next: Option<BlockNumber>,
    frame: Vec<u8>,
    poisoned: Option<String>,
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Journal");
        debug.field("dir", &self.dir).field("segments", &self.segments.len()).field("held", &self.held());
        debug.field("next", &self.next).field("poisoned", &self.poisoned).finish_non_exhaustive()
    }
}

impl Journal {
    /// Opens the journal in a directory, or begins one; the directory's parent must be there. What it held is then
    /// read with [`Journal::replay`].
    ///
    /// `acknowledged` is what the caller knows from elsewhere that the journal must have reached, unless it has taken
    /// that back since.
    ///
    /// # Errors
    /// [`JournalError::Corrupt`] if something acknowledged is lost, [`JournalError::Format`] if another version wrote
    /// it, [`JournalError::Io`] if the system refuses. No segment was changed, unless it is the last of these.
    pub fn open(
        files: Arc<dyn Files>,
        dir: &Path,
        config: JournalConfig,
        acknowledged: Option<Acknowledged>,
    ) -> Result<(Self, Recovery), JournalError> {
        files.create_dir(dir).map_err(|source| io_error("create", dir, source))?;
        let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        files.sync_dir(parent).map_err(|source| io_error("sync", parent, source))?;
        let recovered = recovery::recover(files.as_ref(), dir, acknowledged)?;
        let journal = Self {
            files,
            dir: dir.to_owned(),
            config,
            segments: recovered.segments.into(),
            current: None,
            held: recovered.held.into(),
            next: recovered.next,
            frame: Vec::new(),
            poisoned: None,
        };
        Ok((journal, recovered.report))
    }

    /// Begins a journal in a directory for blocks behind one that the store has from elsewhere; nothing happens if that
    /// was done before. The directory's parent must be there.
    ///
    /// # Errors
    /// As [`Journal::open`]; [`JournalError::NoSuccessor`] if no block can follow; [`JournalError::NotConsecutive`] if
    /// there is a journal that goes on with another block.
    pub fn begin_after(
        files: Arc<dyn Files>,
        dir: &Path,
        config: JournalConfig,
        block: BlockNumber,
    ) -> Result<(), JournalError> {
        let next = block.next().ok_or(JournalError::NoSuccessor { block })?;
        let (mut journal, _) = Self::open(files, dir, config, None)?;
        if journal.segments.is_empty() {
            journal.next = Some(next);
            return journal.roll();
        }
        match journal.next {
            Some(expected) if expected == next => Ok(()),
            expected => {
                Err(JournalError::NotConsecutive { expected: expected.unwrap_or_default(), got: next })
            }
        }
    }

    /// Writes the next block. It is durable only after [`Journal::sync`]. Returns where its frame ends.
    ///
    /// # Errors
    /// [`JournalError::NotConsecutive`], [`JournalError::NoSuccessor`] or [`JournalError::TooLarge`] if it cannot be
    /// taken; [`JournalError::Io`] or [`JournalError::Poisoned`] if writing failed.
    pub fn append(&mut self, block: BlockNumber, payload: &[u8]) -> Result<Position, JournalError> {
        self.check_running()?;
        if let Some(expected) = self.next.filter(|expected| *expected != block) {
            return Err(JournalError::NotConsecutive { expected, got: block });
        }
        let after = block.next().ok_or(JournalError::NoSuccessor { block })?;
        let (bytes, max) = (payload.len() as u64, self.config.payload_bytes_max);
        if bytes > max {
            return Err(JournalError::TooLarge { block, bytes, max });
        }
        let (sequence, head) = self.put(Kind::Block, block, payload)?;
        self.held.push_back(Held { sequence, head });
        self.next = Some(after);
        Ok(self.position())
    }

    /// The longest payload that is taken for one block.
    pub const fn payload_bytes_max(&self) -> u64 {
        self.config.payload_bytes_max
    }

    /// Takes back a block and all after it: they will not be replayed, and the next block to append has this number.
    /// It need not be held any more. Durable only after [`Journal::sync`]. Returns where the refusal stands.
    ///
    /// # Errors
    /// [`JournalError::NotHeld`] if the journal has never had the block, [`JournalError::Io`] or
    /// [`JournalError::Poisoned`] if writing failed.
    pub fn refuse_from(&mut self, block: BlockNumber) -> Result<Position, JournalError> {
        self.check_running()?;
        if self.next.is_none_or(|next| block >= next) {
            return Err(JournalError::NotHeld { block, held: self.held() });
        }
        let (sequence, head) = self.put(Kind::Refused, block, &[])?;
        self.held.truncate(self.held.partition_point(|held| held.head.block < block));
        self.next = Some(block);
        Ok(Position { sequence, offset: head.offset })
    }

    /// Returns when everything that was appended is on the disk; up to the returned place it may be acknowledged.
    ///
    /// # Errors
    /// [`JournalError::Io`] if the sync fails, which poisons the journal: what was appended since the last successful
    /// one may or may not be there at the next opening. [`JournalError::Poisoned`] after that.
    pub fn sync(&mut self) -> Result<Position, JournalError> {
        self.check_running()?;
        let end = self.position();
        if let Some(current) = &mut self.current
            && current.synced < end.offset
        {
            let synced = current.file.sync_data();
            self.or_poison("sync", self.path(end.sequence), synced)?;
            if let Some(current) = &mut self.current {
                current.synced = end.offset;
            }
        }
        Ok(end)
    }

    /// Begins the next segment if one more frame as long as the last would not fit into this one, so that the append to come
    /// need not. Returns whether it did. Changes nothing of what is held or durable.
    ///
    /// # Errors
    /// [`JournalError::Io`] or [`JournalError::Poisoned`] if writing failed.
    pub fn roll_ahead(&mut self) -> Result<bool, JournalError> {
        self.check_running()?;
        let rolls = self.current.is_some() && self.is_full_for(self.frame.len() as u64);
        if rolls {
            self.roll()?;
        }
        Ok(rolls)
    }

    /// Removes the segments, oldest first, of which no block after `through` is held; never the newest. The caller
    /// promises that a store has synced these blocks. Returns how many it removed.
    ///
    /// # Errors
    /// [`JournalError::Io`] if the system refuses, which poisons the journal; [`JournalError::Poisoned`] after that.
    pub fn trim(&mut self, through: BlockNumber) -> Result<usize, JournalError> {
        self.sync()?;
        let kept = self.held.partition_point(|held| held.head.block <= through);
        let needed = self.held.get(kept).map_or(u64::MAX, |held| held.sequence);
        let mut removed = 0;
        while let Some(oldest) = self.segments.front().copied()
            && oldest.key.sequence < needed
            && self.segments.len() > 1
        {
            let path = self.path(oldest.key.sequence);
            let gone = self.files.remove(&path);
            self.or_poison("remove", path, gone)?;
            let synced = self.files.sync_dir(&self.dir);
            self.or_poison("sync", self.dir.clone(), synced)?;
            self.segments.pop_front();
            self.held.drain(..self.held.partition_point(|held| held.sequence <= oldest.key.sequence));
            removed += 1;
        }
        Ok(removed)
    }

    /// Syncs, and leaves a mark by which the next opening can tell damage to the last blocks from a torn tail.
    ///
    /// # Errors
    /// As [`Journal::sync`].
    pub fn close(mut self) -> Result<(), JournalError> {
        self.sync()?;
        if self.current.is_some() {
            self.put(Kind::Mark, BlockNumber(0), &[])?;
            self.sync()?;
        }
        Ok(())
    }

    /// Reads the blocks that are held, in order, one at a time.
    pub fn replay(&self) -> Replay<'_> {
        Replay { journal: self, at: 0, file: None }
    }

    /// Reads a block.
    ///
    /// # Errors
    /// [`JournalError::NotHeld`] if it is not there, [`JournalError::Corrupt`] if it was damaged since the journal was
    /// opened, [`JournalError::Io`] if the system refuses.
    pub fn read(&self, block: BlockNumber) -> Result<Vec<u8>, JournalError> {
        let at = self.find(block)?;
        let read = Replay { journal: self, at, file: None }.next();
        read.unwrap_or(Err(JournalError::NotHeld { block, held: self.held() })).map(|read| read.payload)
    }

    /// Blocks that are held, synced or not.
    pub fn held(&self) -> Option<BlockRange> {
        let (first, last) = (self.held.front()?, self.held.back()?);
        Some(BlockRange { first: first.head.block, last: last.head.block })
    }

    /// Whether it holds every block that was ever appended and not refused: nothing was trimmed yet.
    pub fn is_whole(&self) -> bool {
        self.segments.front().is_none_or(|first| first.key.sequence == 1)
    }

    /// The last block, synced or not; `None` if none is held.
    pub fn last_block(&self) -> Option<BlockNumber> {
        self.held().map(|held| held.last)
    }

    /// The number that the next block must have; `None` if any will do.
    pub const fn next_block(&self) -> Option<BlockNumber> {
        self.next
    }

    /// How many bytes its segments hold, without what is preallocated.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.end).sum()
    }

    /// How many segments there are.
    pub fn segments(&self) -> usize {
        self.segments.len()
    }

    /// Where the next frame will begin, as long as its segment has room.
    pub fn position(&self) -> Position {
        self.segments.back().map_or_else(Position::default, |segment| Position {
            sequence: segment.key.sequence,
            offset: segment.end,
        })
    }

    fn path(&self, sequence: u64) -> PathBuf {
        segment_path(&self.dir, sequence)
    }

    fn find(&self, block: BlockNumber) -> Result<usize, JournalError> {
        let at = self.held.binary_search_by_key(&block, |held| held.head.block);
        at.map_err(|_| JournalError::NotHeld { block, held: self.held() })
    }

    fn check_running(&self) -> Result<(), JournalError> {
        match &self.poisoned {
            Some(cause) => Err(JournalError::Poisoned { cause: cause.clone() }),
            None => Ok(()),
        }
    }

    fn or_poison<T>(
        &mut self,
        what: &'static str,
        path: PathBuf,
        result: io::Result<T>,
    ) -> Result<T, JournalError> {
        result.map_err(|source| {
            let error = JournalError::Io { what, path, source };
            self.poisoned = Some(error.to_string());
            error
        })
    }

    /// Writes a frame at the end; returns where it is.
    fn put(
        &mut self,
        kind: Kind,
        block: BlockNumber,
        payload: &[u8],
    ) -> Result<(u64, FrameHead), JournalError> {
        let bytes = FRAME_HEAD_BYTES + padded(payload.len() as u64);
        if self.current.is_none() || self.is_full_for(bytes) {
            self.roll()?;
        }
        let Position { sequence, offset } = self.position();
        let path = self.path(sequence);
        let step = self.config.preallocate_bytes;
        let Self { frame, current: Some(current), segments, .. } = self else {
            // Not after a roll that succeeded.
            return Err(JournalError::Poisoned { cause: "no segment is open".into() });
        };
        let Some(segment) = segments.back_mut() else {
            return Err(JournalError::Poisoned { cause: "no segment is open".into() });
        };
        frame.clear();
        let head = put_frame(frame, segment.key, (offset, current.synced), (kind, block), payload);
        let written = current.write(offset, frame, step);
        if written.is_ok() {
            segment.end = offset + bytes;
        }
        self.or_poison("append to", path, written)?;
        Ok((sequence, head))
    }

    /// Whether a frame of so many bytes belongs into the next segment.
    fn is_full_for(&self, bytes: u64) -> bool {
        let end = self.position().offset;
        end > HEADER_BYTES && end.saturating_add(bytes) > self.config.segment_bytes
    }

    /// Ends the current segment and begins the next one: steps 3 to 6.
    fn roll(&mut self) -> Result<(), JournalError> {
        let previous = self.segments.back().copied();
        if let Some((current, previous)) = self.current.as_mut().zip(previous) {
            let ended = current.file.set_size(previous.end).and_then(|()| current.file.sync_all());
            self.or_poison("end", self.path(previous.key.sequence), ended)?;
        }
        self.current = None;
        let sequence = previous.map_or(0, |previous| previous.key.sequence) + 1;
        let key = SegmentKey { sequence, salt: fresh_salt() };
        let header = Header {
            key,
            next: self.next,
            previous_end: previous.map_or(0, |previous| previous.end),
            previous_salt: previous.map_or(0, |previous| previous.key.salt),
        };
        let (path, new_path) =
            (self.path(sequence), self.dir.join(format!("{}.new", segment_name(sequence))));
        let begin = || -> io::Result<Box<dyn OpenFile>> {
            let mut file = self.files.create(&new_path)?;
            write_full(file.as_mut(), 0, &header.encode())?;
            file.sync_all()?;
            self.files.rename(&new_path, &path)?;
            self.files.sync_dir(&self.dir)?;
            Ok(file)
        };
        let begun = begin();
        let file = self.or_poison("begin", path, begun)?;
        self.segments.push_back(Segment { key, end: HEADER_BYTES });
        self.current = Some(Current { file, synced: HEADER_BYTES, allocated: HEADER_BYTES });
        Ok(())
    }
}

impl Current {
    fn write(&mut self, offset: u64, frame: &[u8], step: u64) -> io::Result<()> {
        let end = offset + frame.len() as u64;
        if end > self.allocated && frame.len() as u64 <= step / PREALLOCATED_FRAMES_MIN {
            let ahead = usize::try_from(step).unwrap_or_default();
            write_full(self.file.as_mut(), self.allocated, &vec![0; ahead])?;
            self.allocated += ahead as u64;
        }
        write_full(self.file.as_mut(), offset, frame)?;
        self.allocated = self.allocated.max(end);
        Ok(())
    }
}

/// Blocks of a journal in order; what [`Journal::replay`] returns.
#[derive(Debug)]
pub struct Replay<'a> {
    journal: &'a Journal,
    at: usize,
    file: Option<(u64, Box<dyn OpenFile>)>,
}

impl Iterator for Replay<'_> {
    type Item = Result<Recovered, JournalError>;

    fn next(&mut self) -> Option<Self::Item> {
        let held = *self.journal.held.get(self.at)?;
        self.at += 1;
        let path = self.journal.path(held.sequence);
        Some(match self.payload(&held, &path) {
            Ok(Some(payload)) => Ok(Recovered { block: held.head.block, payload }),
            Ok(None) => Err(self.damage(&held, path)),
            Err(source) => Err(io_error("read", &path, source)),
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.journal.held.len().saturating_sub(self.at);
        (left, Some(left))
    }
}

impl Replay<'_> {
    /// The payload, if it is what it was when its head was read.
    fn payload(&mut self, held: &Held, path: &Path) -> io::Result<Option<Vec<u8>>> {
        if self.file.as_ref().is_none_or(|(sequence, _)| *sequence != held.sequence) {
            self.file = Some((held.sequence, self.journal.files.open(path)?));
        }
        let Some((_, file)) = &mut self.file else { return Ok(None) };
        let (padded, length) = (usize::try_from(held.head.padded()), usize::try_from(held.head.length));
        let (Ok(padded), Ok(length)) = (padded, length) else { return Ok(None) };
        let mut payload = vec![0; padded];
        let read = read_full(file.as_mut(), held.head.payload_offset(), &mut payload)?;
        let whole = read == padded && crc32fast::hash(&payload) == held.head.payload_sum;
        payload.truncate(length);
        Ok(whole.then_some(payload))
    }

    fn damage(&self, held: &Held, segment: PathBuf) -> JournalError {
        let block = held.head.block;
        let all = self.journal.held();
        let to = |last: Option<BlockNumber>| {
            let first = all?.first;
            last.filter(|last| *last >= first).map(|last| BlockRange { first, last })
        };
        let from = |first: Option<BlockNumber>| {
            let last = all?.last;
            first.filter(|first| *first <= last).map(|first| BlockRange { first, last })
        };
        Damage {
            segment,
            offset: held.head.offset,
            problem: format!("the payload of block {block} does not match its checksum, and did before"),
            before: to(block.0.checked_sub(1).map(BlockNumber)),
            lost: Lost::Blocks(BlockRange { first: block, last: block }),
            after: from(block.next()),
        }
        .into()
    }
}

fn segment_name(sequence: u64) -> String {
    format!("{sequence:020}.seg")
}

fn segment_path(dir: &Path, sequence: u64) -> PathBuf {
    dir.join(segment_name(sequence))
}

/// The sequence number in a segment's file name. Files with other names are none of the journal's.
fn parse_name(name: &str) -> Option<u64> {
    let sequence = name.strip_suffix(".seg")?.parse().ok()?;
    (segment_name(sequence) == name).then_some(sequence)
}

fn io_error(what: &'static str, path: &Path, source: io::Error) -> JournalError {
    JournalError::Io { what, path: path.to_owned(), source }
}

/// Sixty-four bits that no other segment has, as far as chance goes: the standard library's hash keys come from the
/// system's randomness.
fn fresh_salt() -> u64 {
    RandomState::new().hash_one(SystemTime::now())
}
