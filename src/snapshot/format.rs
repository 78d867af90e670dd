//! The bytes of a dump's parts, as the [module above](super) draws them.

use flagstone_core::codec::{DecodeError, Reader};
use flagstone_core::commitment::{CommitmentRule, Roots};
use flagstone_core::felt::Felt;
use flagstone_core::types::{BlockNumber, ClassesRoot, ContractsRoot, StateCommitment, TrieKey};

use super::error::SnapshotError;

/// Contracts, storage entries and classes of one chunk. An import makes two to three rows of each in one batch, and sled
/// should not be given more than 10 000 at a time.
pub const CHUNK_ITEMS_MAX: usize = 4096;

/// The longest content a chunk can have: every item a contract that begins and ends in it.
pub const CONTENT_BYTES_MAX: usize = 8 + CHUNK_ITEMS_MAX * (1 + 33 + 33 + 33 + 4 + 33);

/// The longest that its compressed form may be: deflate adds a few bytes to what it cannot compress.
pub const COMPRESSED_BYTES_MAX: usize = CONTENT_BYTES_MAX + CONTENT_BYTES_MAX / 64 + 64;

pub const MAGIC: [u8; 8] = *b"FLAGDUMP";
pub const FORMAT: u32 = 1;
pub const HEADER_BYTES: usize = 120;
pub const CHUNK_HEAD_BYTES: usize = 20;
pub const FOOTER_BYTES: usize = 68;
pub const CHUNK_MARK: [u8; 4] = *b"CHNK";
pub const FOOTER_MARK: [u8; 4] = *b"DONE";

/// What a dump says it is.
///
/// Writers of dumps build it by a literal, so it is not `#[non_exhaustive]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The block after which the state is.
    pub block: BlockNumber,
    /// Its roots.
    pub roots: Roots,
    /// Its state commitment.
    pub commitment: StateCommitment,
}

impl Header {
    /// The byte form.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT.to_be_bytes());
        bytes[12..20].copy_from_slice(&self.block.0.to_be_bytes());
        bytes[20..52].copy_from_slice(&self.roots.contracts.to_be());
        bytes[52..84].copy_from_slice(&self.roots.classes.to_be());
        bytes[84..116].copy_from_slice(&self.commitment.to_be());
        let sum = crc32fast::hash(&bytes[..116]);
        bytes[116..].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    /// Reads the byte form, and checks that the commitment is one that the roots can have.
    ///
    /// # Errors
    /// [`SnapshotError`] if these are not the bytes of a header of this version.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, SnapshotError> {
        if !bytes.starts_with(&MAGIC) {
            return Err(SnapshotError::NotADump { magic: String::from_utf8_lossy(&MAGIC).into_owned() });
        }
        let damaged = |problem: &dyn ToString| SnapshotError::damaged("its header", problem.to_string());
        check_sum(bytes).map_err(|error| damaged(&error))?;
        let mut from = Reader::new(&bytes[8..]);
        let format = from.u32("format").map_err(|error| damaged(&error))?;
        if format != FORMAT {
            return Err(SnapshotError::Format { found: format, known: FORMAT });
        }
        let header = Self::decode_facts(&mut from).map_err(|error| damaged(&error))?;
        let possible = [CommitmentRule::ContractsRootAlone, CommitmentRule::AlwaysBoth]
            .map(|rule| header.roots.commitment(rule));
        if possible.contains(&header.commitment) {
            return Ok(header);
        }
        let problem = format!("the state commitment {} is not that of its roots", header.commitment);
        Err(damaged(&problem))
    }

    fn decode_facts(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let block = BlockNumber(from.u64("block")?);
        let contracts = ContractsRoot(from.felt("contracts root")?);
        let classes = ClassesRoot(from.felt("classes root")?);
        let commitment = StateCommitment(from.felt("state commitment")?);
        Ok(Self { block, roots: Roots { contracts, classes }, commitment })
    }
}

/// How much a dump holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Counts {
    /// Contracts.
    pub contracts: u64,
    /// Storage entries of all contracts.
    pub storage_entries: u64,
    /// Classes.
    pub classes: u64,
}

impl Counts {
    /// All items together.
    pub const fn items(&self) -> u64 {
        self.contracts + self.storage_entries + self.classes
    }
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.contracts += other.contracts;
        self.storage_entries += other.storage_entries;
        self.classes += other.classes;
    }
}

/// What stands before a chunk's compressed content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkHead {
    pub number: u32,
    pub content_bytes: u32,
    pub compressed_bytes: u32,
}

impl ChunkHead {
    fn start(&self) -> [u8; CHUNK_HEAD_BYTES - 4] {
        let mut bytes = [0; CHUNK_HEAD_BYTES - 4];
        bytes[..4].copy_from_slice(&CHUNK_MARK);
        bytes[4..8].copy_from_slice(&self.number.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.content_bytes.to_be_bytes());
        bytes[12..].copy_from_slice(&self.compressed_bytes.to_be_bytes());
        bytes
    }

    fn sum(&self, compressed: &[u8]) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&self.start());
        hasher.update(compressed);
        hasher.finalize()
    }

    /// The whole chunk.
    pub fn with(&self, compressed: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(CHUNK_HEAD_BYTES + compressed.len());
        bytes.extend_from_slice(&self.start());
        bytes.extend_from_slice(&self.sum(compressed).to_be_bytes());
        bytes.extend_from_slice(compressed);
        bytes
    }

    /// Reads a head whose mark was read before, and the sum in it.
    pub fn decode(rest: &[u8; CHUNK_HEAD_BYTES - 4]) -> Result<(Self, u32), DecodeError> {
        let mut from = Reader::new(rest);
        let (number, content_bytes) = (from.u32("number")?, from.u32("bytes of content")?);
        let head = Self { number, content_bytes, compressed_bytes: from.u32("bytes as compressed")? };
        let bounded = |field, bytes: u32, max: usize| match bytes as usize > max {
            true => Err(DecodeError::new(field, format!("{bytes} are more than a chunk can have ({max})"))),
            false => Ok(()),
        };
        bounded("bytes of content", content_bytes, CONTENT_BYTES_MAX)?;
        bounded("bytes as compressed", head.compressed_bytes, COMPRESSED_BYTES_MAX)?;
        Ok((head, from.u32("checksum")?))
    }

    /// Checks the sum over the head and the content.
    pub fn check(&self, compressed: &[u8], stored: u32) -> Result<(), DecodeError> {
        same_sum(stored, self.sum(compressed))
    }
}

/// The end of a dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footer {
    pub chunks: u32,
    pub counts: Counts,
    pub digest: [u8; 32],
}

impl Footer {
    pub fn encode(&self) -> [u8; FOOTER_BYTES] {
        let mut bytes = [0; FOOTER_BYTES];
        bytes[..4].copy_from_slice(&FOOTER_MARK);
        bytes[4..8].copy_from_slice(&self.chunks.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.counts.contracts.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.counts.storage_entries.to_be_bytes());
        bytes[24..32].copy_from_slice(&self.counts.classes.to_be_bytes());
        bytes[32..64].copy_from_slice(&self.digest);
        let sum = crc32fast::hash(&bytes[..64]);
        bytes[64..].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8; FOOTER_BYTES]) -> Result<Self, DecodeError> {
        check_sum(bytes)?;
        let mut from = Reader::new(&bytes[4..]);
        let chunks = from.u32("chunks")?;
        let counts = Counts {
            contracts: from.u64("contracts")?,
            storage_entries: from.u64("storage entries")?,
            classes: from.u64("classes")?,
        };
        Ok(Self { chunks, counts, digest: from.array("digest")? })
    }
}

/// Checks the sum that bytes end in.
fn check_sum(bytes: &[u8]) -> Result<(), DecodeError> {
    let Some((before, sum)) = bytes.split_last_chunk::<4>() else {
        return Err(DecodeError::new("checksum", "is missing"));
    };
    same_sum(u32::from_be_bytes(*sum), crc32fast::hash(before))
}

fn same_sum(stored: u32, computed: u32) -> Result<(), DecodeError> {
    if stored == computed {
        return Ok(());
    }
    Err(DecodeError::new("checksum", format!("is {stored:08x}, but the bytes give {computed:08x}")))
}

/// Appends keys, each without what it shares with the one before.
#[derive(Debug, Clone, Copy, Default)]
pub struct KeyList {
    last: TrieKey,
}

impl KeyList {
    pub fn put(&mut self, out: &mut Vec<u8>, key: TrieKey) {
        let shared = shared_bytes(&self.last, &key);
        out.push(shared as u8);
        out.extend_from_slice(&key.as_be()[shared..]);
        self.last = key;
    }

    pub fn read(&mut self, from: &mut Reader<'_>, field: &'static str) -> Result<TrieKey, DecodeError> {
        let shared = usize::from(from.u8(field)?);
        let mut bytes = *self.last.as_be();
        let Some(rest) = bytes.get_mut(shared..) else {
            return Err(DecodeError::new(field, format!("cannot share {shared} bytes with the key before")));
        };
        rest.copy_from_slice(from.bytes(field, rest.len())?);
        let key = TrieKey::from_be(bytes).map_err(|error| DecodeError::new(field, error.to_string()))?;
        if shared_bytes(&self.last, &key) != shared {
            return Err(DecodeError::new(field, "shares more bytes with the key before than it says"));
        }
        self.last = key;
        Ok(key)
    }
}

fn shared_bytes(a: &TrieKey, b: &TrieKey) -> usize {
    a.as_be().iter().zip(b.as_be()).take_while(|(a, b)| a == b).count()
}

pub fn non_zero(felt: Felt, field: &'static str) -> Result<Felt, DecodeError> {
    if felt == Felt::ZERO { Err(DecodeError::new(field, "is zero, which means absent")) } else { Ok(felt) }
}

/// A contract's flags.
pub const BEGINS: u8 = 1;
pub const ENDS: u8 = 2;
