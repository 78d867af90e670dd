//! Bytes of segments and frames: pure functions, no files. Drawn in the [module above](super).

use flagstone_core::codec::{DecodeError, Reader};
use flagstone_core::types::BlockNumber;

/// Format version of segments.
pub const FORMAT: u32 = 1;
pub const HEADER_BYTES: u64 = 64;
pub const FRAME_HEAD_BYTES: u64 = 40;
/// Frames begin at multiples of this, so that a search for them has few places to look at.
pub const ALIGN: u64 = 8;
pub const MARKER: [u8; 4] = *b"FRAM";

const MAGIC: [u8; 8] = *b"FLAGJRNL";
const FLAG_NEXT_KNOWN: u32 = 1;

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
    /// The block that comes next when the segment begins; `None` if any may.
    pub next: Option<BlockNumber>,
    /// Length of the segment before it, 0 if there was none.
    pub previous_end: u64,
    pub previous_salt: u64,
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
        let mut out = Vec::with_capacity(HEADER_BYTES as usize);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&FORMAT.to_be_bytes());
        out.extend_from_slice(&u32::from(self.next.is_some()).to_be_bytes());
        out.extend_from_slice(&self.key.sequence.to_be_bytes());
        out.extend_from_slice(&self.key.salt.to_be_bytes());
        out.extend_from_slice(&self.next.unwrap_or_default().0.to_be_bytes());
        out.extend_from_slice(&self.previous_end.to_be_bytes());
        out.extend_from_slice(&self.previous_salt.to_be_bytes());
        out.extend_from_slice(&[0; 4]);
        let sum = crc32fast::hash(&out);
        out.extend_from_slice(&sum.to_be_bytes());
        out
    }

    /// Reads the first bytes of a file. Magic and checksum stand at the same place in every version, so that another
    /// version is told from damage.
    pub fn decode(bytes: &[u8]) -> Result<Self, HeaderFlaw> {
        let mut whole = Reader::new(bytes);
        let summed = whole.bytes("header", HEADER_BYTES as usize - 4)?;
        let sum = whole.u32("header checksum")?;
        let mut from = Reader::new(summed);
        if from.array::<8>("magic")? != MAGIC {
            return Err(HeaderFlaw::Damaged("it does not begin as a journal segment".into()));
        }
        if sum != crc32fast::hash(summed) {
            return Err(HeaderFlaw::Damaged("the header does not match its checksum".into()));
        }
        let format = from.u32("format")?;
        if format != FORMAT {
            return Err(HeaderFlaw::Format(format));
        }
        let flags = from.u32("flags")?;
        let key = SegmentKey { sequence: from.u64("sequence")?, salt: from.u64("salt")? };
        let next = BlockNumber(from.u64("next block")?);
        let (previous_end, previous_salt) = (from.u64("previous end")?, from.u64("previous salt")?);
        Ok(Self { key, next: (flags & FLAG_NEXT_KNOWN != 0).then_some(next), previous_end, previous_salt })
    }
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
}

impl Kind {
    const fn code(self) -> u32 {
        match self {
            Self::Block => 1,
            Self::Refused => 2,
            Self::Mark => 3,
        }
    }

    fn from_code(code: u32) -> Option<Self> {
        [Self::Block, Self::Refused, Self::Mark].into_iter().find(|kind| kind.code() == code)
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
