//! Bytes of segments and frames: pure functions, no files. Drawn in the [module above](super).

use flagstone_core::codec::{DecodeError, Reader};
use flagstone_core::types::BlockNumber;

use super::lineage::{DatabaseId, Position, Refusal};

/// Format version of segments.
pub const FORMAT: u32 = 2;
pub const HEADER_BYTES: u64 = 128;
pub const FRAME_HEAD_BYTES: u64 = 40;
/// Frames begin at multiples of this, so that a search for them has few places to look at.
pub const ALIGN: u64 = 8;
pub const MARKER: [u8; 4] = *b"FRAM";

const MAGIC: [u8; 8] = *b"FLAGJRNL";
const FLAG_NEXT_KNOWN: u32 = 1;
const FLAG_REFUSED: u32 = 2;
const FLAG_TRIMMED: u32 = 4;
/// Where a header's checksum stands: since version 2, and in version 1.
const SUM_AT: usize = HEADER_BYTES as usize - 4;
const SUM_AT_V1: usize = 60;

const _: () = assert!(HEADER_BYTES.is_multiple_of(ALIGN) && FRAME_HEAD_BYTES.is_multiple_of(ALIGN));

/// What makes a segment's frames its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentKey {
    pub sequence: u64,
    /// Drawn anew for each segment.
    pub salt: u64,
}

/// First bytes of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub key: SegmentKey,
    /// The database that the journal belongs to.
    pub database: DatabaseId,
    /// The block that comes next when the segment begins; `None` if any may.
    pub next: Option<BlockNumber>,
    /// Length of the segment before it, 0 if there was none.
    pub previous_end: u64,
    pub previous_salt: u64,
    /// The last refusal before it, also if its frame is trimmed.
    pub refusal: Option<Refusal>,
    /// The block up to which segments had been trimmed when it began.
    pub trimmed: Option<BlockNumber>,
}

/// Why a header could not be read.
#[derive(Debug, PartialEq, Eq)]
pub enum HeaderFlaw {
    Damaged(String),
    Format(u32),
}

impl From<DecodeError> for HeaderFlaw {
    fn from(error: DecodeError) -> Self {
        Self::Damaged(format!("header: {error}"))
    }
}

impl Header {
    pub fn encode(&self) -> Vec<u8> {
        let flag = |is_set: bool, flag: u32| if is_set { flag } else { 0 };
        let flags = flag(self.next.is_some(), FLAG_NEXT_KNOWN)
            | flag(self.refusal.is_some(), FLAG_REFUSED)
            | flag(self.trimmed.is_some(), FLAG_TRIMMED);
        let refusal = self.refusal.unwrap_or_default();
        let mut out = Vec::with_capacity(HEADER_BYTES as usize);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&FORMAT.to_be_bytes());
        out.extend_from_slice(&flags.to_be_bytes());
        let numbers = [self.key.sequence, self.key.salt];
        numbers.iter().for_each(|number| out.extend_from_slice(&number.to_be_bytes()));
        out.extend_from_slice(&self.database.0);
        let numbers = [
            self.next.unwrap_or_default().0,
            self.previous_end,
            self.previous_salt,
            refusal.at.sequence,
            refusal.at.offset,
            refusal.block.0,
            self.trimmed.unwrap_or_default().0,
        ];
        numbers.iter().for_each(|number| out.extend_from_slice(&number.to_be_bytes()));
        out.resize(SUM_AT, 0);
        let sum = crc32fast::hash(&out);
        out.extend_from_slice(&sum.to_be_bytes());
        out
    }

    /// Reads the first bytes of a file. Another version is told from damage.
    pub fn decode(bytes: &[u8]) -> Result<Self, HeaderFlaw> {
        let mut whole = Reader::new(bytes);
        if whole.array::<8>("magic")? != MAGIC {
            return Err(HeaderFlaw::Damaged("it does not begin as a journal segment".into()));
        }
        let format = whole.u32("format")?;
        if format == 1 && is_summed(bytes, SUM_AT_V1) {
            return Err(HeaderFlaw::Format(format));
        }
        if !is_summed(bytes, SUM_AT) {
            return Err(HeaderFlaw::Damaged("the header does not match its checksum".into()));
        }
        if format != FORMAT {
            return Err(HeaderFlaw::Format(format));
        }
        let flags = whole.u32("flags")?;
        let key = SegmentKey { sequence: whole.u64("sequence")?, salt: whole.u64("salt")? };
        let database = DatabaseId(whole.array("database")?);
        let next = BlockNumber(whole.u64("next block")?);
        let (previous_end, previous_salt) = (whole.u64("previous end")?, whole.u64("previous salt")?);
        let at = Position { sequence: whole.u64("refusal")?, offset: whole.u64("refusal")? };
        let refusal = Refusal { block: BlockNumber(whole.u64("refused block")?), at };
        let trimmed = BlockNumber(whole.u64("trimmed block")?);
        Ok(Self {
            key,
            database,
            next: (flags & FLAG_NEXT_KNOWN != 0).then_some(next),
            previous_end,
            previous_salt,
            refusal: (flags & FLAG_REFUSED != 0).then_some(refusal),
            trimmed: (flags & FLAG_TRIMMED != 0).then_some(trimmed),
        })
    }
}

/// Whether a checksum at a place is that of all bytes before it.
fn is_summed(bytes: &[u8], at: usize) -> bool {
    let sum = bytes.get(at..).and_then(|rest| rest.first_chunk().copied());
    let summed = bytes.get(..at).map(crc32fast::hash);
    sum.map(u32::from_be_bytes).zip(summed).is_some_and(|(stated, computed)| stated == computed)
}

/// What a frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A block with its payload.
    Block,
    /// The block and all after it are taken back.
    Refused,
    /// Nothing; it only carries the synced position of an orderly end.
    Mark,
    /// Computed roots of the block, which a frame before this one holds or a store has.
    Roots,
}

impl Kind {
    const fn code(self) -> u32 {
        match self {
            Self::Block => 1,
            Self::Refused => 2,
            Self::Mark => 3,
            Self::Roots => 4,
        }
    }

    fn from_code(code: u32) -> Option<Self> {
        [Self::Block, Self::Refused, Self::Mark, Self::Roots].into_iter().find(|kind| kind.code() == code)
    }
}

/// First bytes of a frame, and where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHead {
    pub offset: u64,
    pub kind: Kind,
    pub block: BlockNumber,
    /// Up to where the segment was known to be synced when the frame was written.
    pub synced: u64,
    /// Bytes of payload.
    pub length: u64,
    pub payload_sum: u32,
}

impl FrameHead {
    /// Where the payload begins.
    pub const fn payload_offset(&self) -> u64 {
        self.offset.saturating_add(FRAME_HEAD_BYTES)
    }

    /// Payload and its padding.
    pub const fn padded(&self) -> u64 {
        padded(self.length)
    }

    /// Where the next frame begins.
    pub const fn end(&self) -> u64 {
        self.payload_offset().saturating_add(self.padded())
    }

    /// Reads a head at an offset of a segment. The payload is not looked at.
    pub fn decode(bytes: &[u8], key: SegmentKey, offset: u64) -> Result<Self, String> {
        let mut from = Reader::new(bytes);
        Self::decode_from(&mut from, bytes, key, offset).unwrap_or_else(|error| Err(error.to_string()))
    }

    fn decode_from(
        from: &mut Reader<'_>,
        bytes: &[u8],
        key: SegmentKey,
        offset: u64,
    ) -> Result<Result<Self, String>, DecodeError> {
        if from.array::<4>("frame marker")? != MARKER {
            return Ok(Err("no frame begins here".into()));
        }
        let (code, block, synced) = (from.u32("kind")?, from.u64("block")?, from.u64("synced")?);
        let (length, payload_sum) = (from.u64("length")?, from.u32("payload checksum")?);
        let sum = from.u32("head checksum")?;
        let summed = bytes.get(..FRAME_HEAD_BYTES as usize - 4).unwrap_or_default();
        if sum != head_sum(summed, key, offset) {
            return Ok(Err("the frame's head does not match its checksum".into()));
        }
        let Some(kind) = Kind::from_code(code) else {
            return Ok(Err(format!("frames of kind {code} are not known")));
        };
        if synced > offset {
            return Ok(Err(format!("the frame claims that {synced} bytes were synced before it")));
        }
        Ok(Ok(Self { offset, kind, block: BlockNumber(block), synced, length, payload_sum }))
    }
}

/// A length rounded up to the next place where a frame may begin.
pub const fn padded(length: u64) -> u64 {
    length.saturating_add(ALIGN - 1) / ALIGN * ALIGN
}

/// Appends a whole frame to `out`, as it is to stand at `offset`; returns its head.
pub fn put_frame(
    out: &mut Vec<u8>,
    key: SegmentKey,
    (offset, synced): (u64, u64),
    (kind, block): (Kind, BlockNumber),
    payload: &[u8],
) -> FrameHead {
    let padding = padded(payload.len() as u64) - payload.len() as u64;
    let mut payload_sum = crc32fast::Hasher::new();
    payload_sum.update(payload);
    payload_sum.update(&[0; ALIGN as usize][..padding as usize]);
    let length = payload.len() as u64;
    let head = FrameHead { offset, kind, block, synced, length, payload_sum: payload_sum.finalize() };
    let begin = out.len();
    out.extend_from_slice(&MARKER);
    out.extend_from_slice(&kind.code().to_be_bytes());
    out.extend_from_slice(&block.0.to_be_bytes());
    out.extend_from_slice(&synced.to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&head.payload_sum.to_be_bytes());
    let sum = head_sum(out.get(begin..).unwrap_or_default(), key, offset);
    out.extend_from_slice(&sum.to_be_bytes());
    out.extend_from_slice(payload);
    out.resize(out.len() + padding as usize, 0);
    head
}

/// The place is in the sum, so that the same bytes elsewhere are not a frame.
fn head_sum(head: &[u8], key: SegmentKey, offset: u64) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&key.salt.to_be_bytes());
    sum.update(&key.sequence.to_be_bytes());
    sum.update(&offset.to_be_bytes());
    sum.update(head);
    sum.finalize()
}
