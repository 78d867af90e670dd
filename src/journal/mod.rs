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
//! # Format, version 2
//!
//! Segments are files `DIR/00000000000000000042.seg`, named by a sequence number without gaps: block numbers can come
//! twice, when blocks were refused. All numbers are big-endian. A segment is a header and then frames without gaps,
//! perhaps followed by zeros as long as it is the last one.
//!
//! ```text
//!   0        8          12        16           24       32
//!   +--------+----------+---------+------------+--------+
//!   | magic  | format   | flags   | sequence   | salt   |    flags: 1 = next block is known, 2 = refusal is there,
//!   | 8 B    | u32      | u32     | u64        | u64    |    4 = trimmed is there; salt: drawn for this segment
//!   +--------+----------+---------+------------+--------+
//!   | database id | next block | previous end | previous salt |
//!   | 16 B        | u64        | u64          | u64           |
//!   +-------------+------------+--------------+---------------+
//!   32            48           56             64              72
//!   | last refusal: sequence, offset, block | trimmed | zeros | crc32  |   crc32 over the 124 bytes before
//!   | u64, u64, u64                         | u64     | 20 B  | u32    |
//!   +---------------------------------------+---------+-------+--------+
//!   72                                      96        104     124      128
//! ```
//!
//! *Last refusal* is the last one before the segment, also if its frame is trimmed: a store that does not take account of
//! it is on blocks that were abandoned. *Trimmed* is the block up to which segments had been let go: a store had synced it.
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
//!   kind 4   roots that were computed for the block: a replay must come to the same
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
//! When the segment is full, or the journal was opened ([`Journal::begin`]), or earlier, when nobody waits
//! ([`Journal::roll_ahead`]):
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
//!    always stays; it knows which block comes next. A refusal that the store does not take account of stays, too.
//!
//! 8 and 9 need nothing of the journal ([`Released::remove`]), so nobody who appends waits for them.
//!
//! Opening:
//!
//! 10. Everything is read and checked. Nothing is changed if anything is wrong; [`Journal::inspect`] ends here, and changes
//!     nothing at all.
//! 11. Segments `….seg.new` are removed.
//! 12. The last segment is cut behind its last whole frame, what is not known to be synced is written once more, and it
//!     is synced. (A process whose sync failed leaves pages that the system takes for written and that never were.
//!     Writing them again makes them dirty, so that this sync is worth something.)
//! 13. The directory is synced. Only now is what was read known to stay. New frames go to a new segment, so no place in
//!     a segment is ever written with two different things.
//! 14. [`Journal::begin`] begins that segment (steps 4 to 6) before anything else of the database is changed. So the mark of an
//!     orderly end is the last frame there is only until somebody opens the database again.
//!
//! Any crash in 10 to 14 leaves what a second opening deals with in the same way. A write or sync that fails poisons the
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
//! no frame tells. A tear there cannot come from a crash, but rot could. Three things close it: [`Journal::close`] leaves
//! a mark that tells; the next opening begins another segment; and whoever notes elsewhere which block was acknowledged
//! last gives it to [`Journal::open`]. What is cut all the same is told ([`Recovery::cut`]).
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
mod lineage;
mod recovery;
mod salvage;
mod segment;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flagstone_core::types::BlockNumber;

use crate::disk;
use crate::setters::setters;
pub use error::{BlockRange, Damage, JournalError, JournalErrorKind, Lost};
pub use files::{Files, OpenFile, OsFiles};
pub(crate) use lineage::fresh_salt;
pub use lineage::{Acknowledged, DatabaseId, Position, Refusal};
pub use recovery::{Cut, Recovery};
pub use salvage::Salvaged;
pub use segment::Recovered;

use files::{read_full, write_full};
use format::{FRAME_HEAD_BYTES, FrameHead, HEADER_BYTES, Header, Kind, SegmentKey, padded, put_frame};
use recovery::Unsettled;
use segment::{Held, Segment, io_error, segment_name, segment_path};

/// Frames longer than this part of a preallocation step are not preallocated for.
const PREALLOCATED_FRAMES_MIN: u64 = 8;

/// Bounds of a journal. They may differ at each opening.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct JournalConfig {
    /// A segment is full when the next frame would make it longer than this. One frame may be longer by itself.
    pub segment_bytes: u64,
    /// Zeros are written ahead in steps of this; 0 for none.
    pub preallocate_bytes: u64,
    /// The longest payload that is taken. The journal keeps a buffer as long as the longest frame so far.
    pub payload_bytes_max: u64,
}

impl JournalConfig {
    setters! {
        with_segment_bytes => segment_bytes: u64,
        with_preallocate_bytes => preallocate_bytes: u64,
        with_payload_bytes_max => payload_bytes_max: u64,
    }
}

impl Default for JournalConfig {
    fn default() -> Self {
        Self { segment_bytes: 64 << 20, preallocate_bytes: 1 << 20, payload_bytes_max: 1 << 30 }
    }
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
    /// What the segments say; drawn with the first of them if nobody names one.
    database: Option<DatabaseId>,
    /// In order, without gaps.
    segments: VecDeque<Segment>,
    current: Option<Current>,
    /// In order, without gaps; a few dozen bytes for each block.
    held: VecDeque<Held>,
    next: Option<BlockNumber>,
    /// Those in the segments, in order.
    refusals: Vec<Refusal>,
    /// The last one there ever was.
    refusal: Option<Refusal>,
    trimmed: Option<BlockNumber>,
    /// What steps 11 to 13 are still to be done for.
    unsettled: Option<Unsettled>,
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
        let (mut journal, recovery) = Self::inspect(files, dir, config, acknowledged)?;
        journal.settle()?;
        Ok((journal, recovery))
    }

    /// Reads the journal in a directory and changes nothing, whatever is found; it cannot be appended to before
    /// [`Journal::settle`]. A directory that is not there is a journal that is empty.
    ///
    /// # Errors
    /// As [`Journal::open`].
    pub fn inspect(
        files: Arc<dyn Files>,
        dir: &Path,
        config: JournalConfig,
        acknowledged: Option<Acknowledged>,
    ) -> Result<(Self, Recovery), JournalError> {
        let recovered = recovery::recover(files.as_ref(), dir, acknowledged)?;
        let journal = Self {
            files,
            dir: dir.to_owned(),
            config,
            database: recovered.report.database,
            segments: recovered.segments.into(),
            current: None,
            held: recovered.held.into(),
            next: recovered.next,
            refusals: recovered.report.refusals.clone(),
            refusal: recovered.refusal,
            trimmed: recovered.report.trimmed,
            unsettled: Some(recovered.unsettled),
            frame: Vec::new(),
            poisoned: None,
        };
        Ok((journal, recovered.report))
    }

    /// Makes what was read last, and cuts what is torn: steps 11 to 13. Nothing happens if that was done.
    ///
    /// # Errors
    /// [`JournalError::Io`] if the system refuses.
    pub fn settle(&mut self) -> Result<(), JournalError> {
        let Some(unsettled) = &self.unsettled else { return Ok(()) };
        let (files, dir) = (self.files.as_ref(), &self.dir);
        files.create_dir(dir).map_err(|source| io_error("create", dir, source))?;
        let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        files.sync_dir(parent).map_err(|source| io_error("sync", parent, source))?;
        recovery::settle(files, dir, unsettled)?;
        self.unsettled = None;
        Ok(())
    }

    /// Settles, and begins the segment that new frames go to: from here on the database counts as open until
    /// [`Journal::close`]. `database` is the id of a journal that has none yet.
    ///
    /// # Errors
    /// [`JournalError::Io`] or [`JournalError::Poisoned`] if writing failed.
    pub fn begin(&mut self, database: DatabaseId) -> Result<(), JournalError> {
        self.settle()?;
        self.check_running()?;
        self.database.get_or_insert(database);
        if self.current.is_none() { self.roll() } else { Ok(()) }
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
        database: DatabaseId,
        block: BlockNumber,
    ) -> Result<(), JournalError> {
        let next = block.next().ok_or(JournalError::NoSuccessor { block })?;
        let (mut journal, _) = Self::open(files, dir, config, None)?;
        if journal.segments.is_empty() {
            journal.next = Some(next);
            journal.database = Some(database);
            journal.roll()?;
            return journal.close();
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
    /// taken; [`JournalError::Full`] if there is no room for it; [`JournalError::Io`] or [`JournalError::Poisoned`] if
    /// writing failed.
    pub fn append(&mut self, block: BlockNumber, payload: &[u8]) -> Result<Position, JournalError> {
        self.append_with_roots(block, payload, None)
    }

    /// [`Journal::append`], with the roots that were computed for the block as [`Journal::append_roots`] has them. Both are
    /// there or neither.
    ///
    /// # Errors
    /// As [`Journal::append`].
    pub fn append_with_roots(
        &mut self,
        block: BlockNumber,
        payload: &[u8],
        roots: Option<&[u8]>,
    ) -> Result<Position, JournalError> {
        self.check_running()?;
        if let Some(expected) = self.next.filter(|expected| *expected != block) {
            return Err(JournalError::NotConsecutive { expected, got: block });
        }
        let after = block.next().ok_or(JournalError::NoSuccessor { block })?;
        let (bytes, max) = (payload.len() as u64, self.config.payload_bytes_max);
        if bytes > max {
            return Err(JournalError::TooLarge { block, bytes, max });
        }
        let frames = [(Kind::Block, payload)].into_iter().chain(roots.map(|roots| (Kind::Roots, roots)));
        let (sequence, head) = self.put(block, frames)?;
        self.held.push_back(Held { sequence, head, roots: None });
        self.next = Some(after);
        Ok(self.position())
    }

    /// Writes the roots that were computed for a block; a later frame of the same block takes their place. Durable only after
    /// [`Journal::sync`].
    ///
    /// # Errors
    /// [`JournalError::NotHeld`] if the journal has never had the block, [`JournalError::Io`] or
    /// [`JournalError::Poisoned`] if writing failed.
    pub fn append_roots(&mut self, block: BlockNumber, roots: &[u8]) -> Result<(), JournalError> {
        self.check_running()?;
        if self.next.is_none_or(|next| block >= next) {
            return Err(JournalError::NotHeld { block, held: self.held() });
        }
        self.put(block, [(Kind::Roots, roots)]).map(drop)
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
        let (sequence, head) = self.put(block, [(Kind::Refused, &[][..])])?;
        self.held.truncate(self.held.partition_point(|held| held.head.block < block));
        self.next = Some(block);
        let at = Position { sequence, offset: head.offset };
        self.refusals.push(Refusal { block, at });
        self.refusal = Some(Refusal { block, at });
        Ok(at)
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
            let synced = current.file.sync_data().and_then(|()| match current.file.is_linked()? {
                true => Ok(()),
                false => Err(disk::deleted()),
            });
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

    /// Lets go of the segments, oldest first, of which no block after `through` is held, nor a refusal after `refusal`; never
    /// of the newest. The caller promises that a store has synced these blocks, and takes account of these refusals.
    /// The files are there until [`Released::remove`].
    ///
    /// # Errors
    /// [`JournalError::Io`] if the system refuses, which poisons the journal; [`JournalError::Poisoned`] after that.
    pub fn release(&mut self, through: BlockNumber, refusal: Position) -> Result<Released, JournalError> {
        self.sync()?;
        let kept = self.held.partition_point(|held| held.head.block <= through);
        let needed = self.held.get(kept).map_or(u64::MAX, |held| held.sequence);
        let unaccounted = self.refusals.iter().find(|known| known.at > refusal);
        let needed = needed.min(unaccounted.map_or(u64::MAX, |known| known.at.sequence));
        let mut paths = Vec::new();
        while let Some(oldest) = self.segments.front().copied()
            && oldest.key.sequence < needed
            && self.segments.len() > 1
        {
            paths.push(self.path(oldest.key.sequence));
            self.segments.pop_front();
            self.held.drain(..self.held.partition_point(|held| held.sequence <= oldest.key.sequence));
            self.refusals.retain(|known| known.at.sequence > oldest.key.sequence);
            self.trimmed = self.trimmed.max(Some(through));
        }
        Ok(Released { files: Arc::clone(&self.files), dir: self.dir.clone(), paths })
    }

    /// [`Journal::release`], with the files removed. Returns how many.
    ///
    /// # Errors
    /// As [`Journal::release`] and [`Released::remove`].
    pub fn trim(&mut self, through: BlockNumber, refusal: Position) -> Result<usize, JournalError> {
        let removed = self.release(through, refusal)?.remove();
        removed.inspect_err(|error| self.poisoned = Some(error.to_string()))
    }

    /// Syncs, and leaves a mark by which the next opening can tell damage to the last blocks from a torn tail.
    ///
    /// # Errors
    /// As [`Journal::sync`].
    pub fn close(mut self) -> Result<(), JournalError> {
        self.sync()?;
        if self.current.is_some() {
            self.put(BlockNumber(0), [(Kind::Mark, &[][..])])?;
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

    /// Begins a journal of nothing in a directory, for blocks from `next` on, any if there is none. The directory's parent must
    /// be there.
    ///
    /// # Errors
    /// As [`Journal::open`].
    pub(crate) fn begin_at(
        files: Arc<dyn Files>,
        dir: &Path,
        database: DatabaseId,
        next: Option<BlockNumber>,
    ) -> Result<Self, JournalError> {
        let (mut journal, _) = Self::open(files, dir, JournalConfig::default(), None)?;
        journal.next = journal.next.or(next);
        journal.begin(database)?;
        Ok(journal)
    }

    /// The database that it belongs to; `None` if it has no segment yet.
    pub const fn database(&self) -> Option<DatabaseId> {
        self.database
    }

    /// The last refusal there ever was, also if its frame is trimmed.
    pub const fn refusal(&self) -> Option<Refusal> {
        self.refusal
    }

    /// Whether it holds every block that there is: it was begun for the first of them ([`Journal::begin_after`] begins it for later
    /// ones), and nothing was trimmed yet.
    pub fn is_whole(&self) -> bool {
        self.segments.front().is_none_or(|first| first.key.sequence == 1 && first.next.is_none())
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
        if self.unsettled.is_some() {
            return Err(JournalError::LookingOnly);
        }
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

    /// Writes frames at the end, all into one segment; returns where the first is.
    fn put<'a>(
        &mut self,
        block: BlockNumber,
        frames: impl IntoIterator<Item = (Kind, &'a [u8]), IntoIter: Clone>,
    ) -> Result<(u64, FrameHead), JournalError> {
        let frames = frames.into_iter();
        let length = |(_, payload): (Kind, &[u8])| FRAME_HEAD_BYTES + padded(payload.len() as u64);
        let bytes: u64 = frames.clone().map(length).sum();
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
        let mut first = None;
        for (kind, payload) in frames {
            let at = offset + frame.len() as u64;
            let head = put_frame(frame, segment.key, (at, current.synced), (kind, block), payload);
            first.get_or_insert(head);
        }
        match current.write(offset, frame, step) {
            Ok(()) => segment.end = offset + bytes,
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                return Err(self.give_up_segment(path, error));
            }
            Err(error) => self.or_poison("append to", path, Err(error))?,
        }
        let head = first.ok_or(JournalError::Poisoned { cause: "no frame was to be written".into() })?;
        Ok((sequence, head))
    }

    /// After a frame that did not fit on the disk: its segment ends before it, so that the next append begins another. What was
    /// written of the frame is cut, for which there is always room; until that is synced, nothing may be appended.
    fn give_up_segment(&mut self, path: PathBuf, source: io::Error) -> JournalError {
        let end = self.position().offset;
        if let Some(mut current) = self.current.take() {
            let ended = current.file.set_size(end).and_then(|()| current.file.sync_all());
            if let Err(error) = self.or_poison("end", path.clone(), ended) {
                return error;
            }
        }
        JournalError::Full { path, source }
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
            database: *self.database.get_or_insert_with(DatabaseId::fresh),
            next: self.next,
            refusal: self.refusal,
            trimmed: self.trimmed,
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
        let file = match begin() {
            // Nothing has the segment's name yet, or it has a whole header: the next try begins it anew.
            Err(source) if source.kind() == io::ErrorKind::StorageFull => {
                return Err(JournalError::Full { path, source });
            }
            begun => self.or_poison("begin", path, begun)?,
        };
        self.segments.push_back(Segment { key, end: HEADER_BYTES, next: header.next });
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

/// Segments that are not needed any more, and whose files are still there.
#[derive(Debug)]
#[must_use = "the files are still there"]
#[non_exhaustive]
pub struct Released {
    files: Arc<dyn Files>,
    dir: PathBuf,
    /// Oldest first.
    paths: Vec<PathBuf>,
}

impl Released {
    /// Removes the files: steps 8 and 9. Returns how many.
    ///
    /// # Errors
    /// [`JournalError::Io`] if the system refuses. Which files are gone for good is not known then.
    pub fn remove(self) -> Result<usize, JournalError> {
        for path in &self.paths {
            self.files.remove(path).map_err(|source| io_error("remove", path, source))?;
            self.files.sync_dir(&self.dir).map_err(|source| io_error("sync", &self.dir, source))?;
        }
        Ok(self.paths.len())
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
        let block = held.head.block;
        let roots = held.roots.map(|(sequence, head)| self.payload(block, sequence, &head)).transpose();
        Some(roots.and_then(|roots| {
            let payload = self.payload(block, held.sequence, &held.head)?;
            Ok(Recovered { block, payload, roots })
        }))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.journal.held.len().saturating_sub(self.at);
        (left, Some(left))
    }
}

impl Replay<'_> {
    /// A frame's payload, which must be what it was when its head was read.
    fn payload(
        &mut self,
        block: BlockNumber,
        sequence: u64,
        head: &FrameHead,
    ) -> Result<Vec<u8>, JournalError> {
        let path = self.journal.path(sequence);
        match self.read(sequence, head, &path) {
            Ok(Some(payload)) => Ok(payload),
            Ok(None) => Err(self.damage(block, head.offset, path)),
            Err(source) => Err(io_error("read", &path, source)),
        }
    }

    fn read(&mut self, sequence: u64, head: &FrameHead, path: &Path) -> io::Result<Option<Vec<u8>>> {
        if self.file.as_ref().is_none_or(|(open, _)| *open != sequence) {
            self.file = Some((sequence, self.journal.files.open_read(path)?));
        }
        let Some((_, file)) = &mut self.file else { return Ok(None) };
        let (padded, length) = (usize::try_from(head.padded()), usize::try_from(head.length));
        let (Ok(padded), Ok(length)) = (padded, length) else { return Ok(None) };
        let mut payload = vec![0; padded];
        let read = read_full(file.as_mut(), head.payload_offset(), &mut payload)?;
        let whole = read == padded && crc32fast::hash(&payload) == head.payload_sum;
        payload.truncate(length);
        Ok(whole.then_some(payload))
    }

    fn damage(&self, block: BlockNumber, offset: u64, segment: PathBuf) -> JournalError {
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
            offset,
            problem: format!("the payload of block {block} does not match its checksum, and did before"),
            before: to(block.0.checked_sub(1).map(BlockNumber)),
            lost: Lost::Blocks(BlockRange { first: block, last: block }),
            after: from(block.next()),
        }
        .into()
    }
}
