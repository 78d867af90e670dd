//! Reading a dump: chunks come out as diffs on the empty state, with what is claimed of them.
//!
//! Nothing in a dump is trusted: sums, lengths, ranges and the order of items are checked, also across chunks, and no
//! length makes more room than a chunk can have.

use std::io::{self, Read};

use flagstone_core::codec::{DecodeError, Reader};
use flagstone_core::diff::{ClassDiff, ContractDiff, StateDiff};
use flagstone_core::felt::Felt;
use flagstone_core::types::{
    ClassHash, CompiledClassHash, ContractAddress, Nonce, StorageKey, StorageRoot, StorageValue, TrieKey,
};
use flate2::read::DeflateDecoder;
use sha2::{Digest, Sha256};

use super::error::SnapshotError;
use super::format::{
    BEGINS, CHUNK_HEAD_BYTES, CHUNK_ITEMS_MAX, CHUNK_MARK, ChunkHead, Counts, ENDS, FOOTER_BYTES,
    FOOTER_MARK, Footer, HEADER_BYTES, Header, KeyList, non_zero,
};

/// How far a dump was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Position {
    /// Nothing yet.
    #[default]
    Start,
    /// A contract, whole or not, and its last storage key so far.
    Contract(ContractAddress, Option<StorageKey>),
    /// A class.
    Class(TrieKey),
}

/// What a dump says of a contract that is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Claim {
    /// The contract.
    pub address: ContractAddress,
    /// Root of its storage trie.
    pub storage_root: StorageRoot,
}

/// A chunk of a dump.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Chunk {
    /// Its number, from 0.
    pub number: u32,
    /// What it sets.
    pub diff: StateDiff,
    /// What is claimed of the contracts that end in it, ascending by address.
    pub claims: Vec<Claim>,
    /// How much it holds; a contract counts where it ends.
    pub counts: Counts,
    /// The last item in it.
    pub last: Position,
}

/// A contract that goes on in the next chunk.
#[derive(Debug, Clone, Copy)]
struct OpenContract {
    address: ContractAddress,
    last_key: Option<StorageKey>,
    /// Whether it has a class or a nonce.
    has_leaf: bool,
}

/// Reads a dump from front to back.
pub struct DumpReader<R> {
    input: R,
    header: Header,
    digest: Sha256,
    next: u32,
    counts: Counts,
    position: Position,
    open: Option<OpenContract>,
    /// Whether a chunk was not full: it must have been the last.
    ended: bool,
    bytes: u64,
    summary: Option<Summary>,
}

/// What a whole dump held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary {
    /// How much.
    pub counts: Counts,
    /// SHA-256 of its header and contents.
    pub digest: [u8; 32],
}

impl<R: Read> DumpReader<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// [`SnapshotError`] if it is not the header of a dump of this version.
    pub fn new(mut input: R) -> Result<Self, SnapshotError> {
        let mut bytes = [0; HEADER_BYTES];
        input.read_exact(&mut bytes).map_err(|error| SnapshotError::reading("its header", error))?;
        let header = Header::decode(&bytes)?;
        Ok(Self {
            input,
            header,
            digest: Sha256::new_with_prefix(bytes),
            next: 0,
            counts: Counts::default(),
            position: Position::Start,
            open: None,
            ended: false,
            bytes: HEADER_BYTES as u64,
            summary: None,
        })
    }

    /// What the dump says it is.
    pub const fn header(&self) -> Header {
        self.header
    }

    /// Bytes read so far.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What the dump held, once its footer was read and found right.
    pub const fn summary(&self) -> Option<Summary> {
        self.summary
    }

    /// The next chunk; `None` behind the last one, when the footer has said that all were there.
    ///
    /// # Errors
    /// [`SnapshotError`] if the dump is damaged, cut short, or cannot be read.
    pub fn next_chunk(&mut self) -> Result<Option<Chunk>, SnapshotError> {
        if self.summary.is_some() {
            return Ok(None);
        }
        let place = format!("chunk {} or its footer", self.next);
        let mut mark = [0; 4];
        self.read(&mut mark, &place)?;
        match mark {
            CHUNK_MARK => self.chunk().map(Some),
            FOOTER_MARK => self.footer().map(|()| None),
            _ => Err(SnapshotError::damaged(place, "neither a chunk nor the footer begins here")),
        }
    }

    fn read(&mut self, bytes: &mut [u8], place: &str) -> Result<(), SnapshotError> {
        self.input.read_exact(bytes).map_err(|error| SnapshotError::reading(place, error))?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    fn chunk(&mut self) -> Result<Chunk, SnapshotError> {
        let place = format!("chunk {}", self.next);
        let mut head = [0; CHUNK_HEAD_BYTES - 4];
        self.read(&mut head, &place)?;
        let damaged = |error: DecodeError| SnapshotError::damaged(&place, error);
        let (head, sum) = ChunkHead::decode(&head).map_err(damaged)?;
        let mut compressed = vec![0; head.compressed_bytes as usize];
        self.read(&mut compressed, &place)?;
        head.check(&compressed, sum).map_err(damaged)?;
        if head.number != self.next {
            return Err(SnapshotError::damaged(place, format!("chunk {} is in its place", head.number)));
        }
        let content = decompress(&compressed, head.content_bytes as usize).map_err(damaged)?;
        self.digest.update(&content);
        let chunk = self.content(&content).map_err(damaged)?;
        self.next = self.next.saturating_add(1);
        self.counts += chunk.counts;
        self.position = chunk.last;
        Ok(chunk)
    }

    fn footer(&mut self) -> Result<(), SnapshotError> {
        let place = "its footer";
        let mut bytes = [0; FOOTER_BYTES];
        bytes[..4].copy_from_slice(&FOOTER_MARK);
        self.read(&mut bytes[4..], place)?;
        let footer = Footer::decode(&bytes).map_err(|error| SnapshotError::damaged(place, error))?;
        let digest: [u8; 32] = self.digest.clone().finalize().into();
        if (footer.chunks, footer.counts) != (self.next, self.counts) {
            let (Footer { chunks, counts, .. }, read) = (footer, self.counts);
            let problem = format!(
                "it says {chunks} chunks with {counts:?}, but there were {} with {read:?}",
                self.next
            );
            return Err(SnapshotError::damaged(place, problem));
        }
        if footer.digest != digest {
            return Err(SnapshotError::damaged(place, "its digest is not that of the contents"));
        }
        if self.open.is_some() {
            return Err(SnapshotError::damaged(place, "it comes in the middle of a contract"));
        }
        match self.input.read(&mut [0]) {
            Ok(0) => {}
            Ok(_) => return Err(SnapshotError::damaged(place, "something follows it")),
            Err(error) => return Err(SnapshotError::reading(place, error)),
        }
        self.summary = Some(Summary { counts: footer.counts, digest });
        Ok(())
    }

    fn content(&mut self, content: &[u8]) -> Result<Chunk, DecodeError> {
        let mut from = Reader::new(content);
        let mut chunk = Chunk {
            number: self.next,
            diff: StateDiff::default(),
            claims: Vec::new(),
            counts: Counts::default(),
            last: self.position,
        };
        let mut contracts = Vec::new();
        let mut addresses = KeyList::default();
        let (mut items, mut whole) = (0, true);
        for _ in 0..from.count("contracts", 1 + 1 + 4)? {
            let (contract, begins) = self.contract(&mut from, &mut addresses, &mut chunk)?;
            items += usize::from(begins) + contract.storage.len();
            contracts.push(contract);
        }
        let mut classes: Vec<ClassDiff> = Vec::new();
        let mut class_hashes = KeyList::default();
        for _ in 0..from.count("classes", 2)? {
            let class = self.class(&mut from, &mut class_hashes, &mut chunk)?;
            whole &= self.open.is_none();
            items += 1;
            classes.push(class);
        }
        from.end("content")?;
        if !whole {
            return Err(DecodeError::new("classes", "they begin in the middle of a contract"));
        }
        if items > CHUNK_ITEMS_MAX || items == 0 || self.ended {
            let after = if self.ended { ", behind a chunk that was not full" } else { "" };
            return Err(DecodeError::new("content", format!("it has {items} items{after}")));
        }
        self.ended = items < CHUNK_ITEMS_MAX;
        chunk.diff = StateDiff::from_normal_form(contracts, classes)?;
        Ok(chunk)
    }

    fn contract(
        &mut self,
        from: &mut Reader<'_>,
        addresses: &mut KeyList,
        chunk: &mut Chunk,
    ) -> Result<(ContractDiff, bool), DecodeError> {
        let flags = from.u8("contract flags")?;
        if flags & !(BEGINS | ENDS) != 0 {
            return Err(DecodeError::new("contract flags", format!("{flags:#x} is not known")));
        }
        let address = ContractAddress::from(addresses.read(from, "contract address")?);
        let begins = flags & BEGINS != 0;
        let mut contract = ContractDiff { address, class_hash: None, nonce: None, storage: Vec::new() };
        let mut open = match (self.open.take(), begins) {
            (Some(open), false) if open.address == address => open,
            (None, true) if self.follows(chunk.last, address) => {
                let class_hash = from.short_felt("class hash")?;
                let nonce = from.short_felt("nonce")?;
                contract.class_hash = (class_hash != Felt::ZERO).then_some(ClassHash(class_hash));
                contract.nonce = (nonce != Felt::ZERO).then_some(Nonce(nonce));
                let has_leaf = contract.class_hash.is_some() || contract.nonce.is_some();
                OpenContract { address, last_key: None, has_leaf }
            }
            _ => return Err(DecodeError::new("contract address", "does not follow what was before")),
        };
        let mut keys = KeyList::default();
        let entries = from.count("storage entries", 3)?;
        if entries == 0 && !begins {
            return Err(DecodeError::new("storage entries", "a contract goes on without any"));
        }
        for _ in 0..entries {
            let key = StorageKey::from(keys.read(from, "storage key")?);
            if open.last_key.is_some_and(|last| last >= key) {
                return Err(DecodeError::new("storage key", "not in ascending order"));
            }
            open.last_key = Some(key);
            let value = non_zero(from.short_felt("storage value")?, "storage value")?;
            contract.storage.push((key, StorageValue(value)));
        }
        chunk.counts.storage_entries += contract.storage.len() as u64;
        chunk.last = Position::Contract(address, open.last_key);
        if flags & ENDS == 0 {
            self.open = Some(open);
            return Ok((contract, begins));
        }
        let storage_root = StorageRoot(from.short_felt("storage root")?);
        if storage_root.is_zero() != open.last_key.is_none() {
            return Err(DecodeError::new("storage root", "is zero though there are entries, or the reverse"));
        }
        if storage_root.is_zero() && !open.has_leaf {
            return Err(DecodeError::new("contract", "has nothing, which means absent"));
        }
        chunk.claims.push(Claim { address, storage_root });
        chunk.counts.contracts += 1;
        Ok((contract, begins))
    }

    /// Whether a contract may begin behind a position.
    fn follows(&self, last: Position, address: ContractAddress) -> bool {
        match last {
            Position::Start => true,
            Position::Contract(last, _) => last < address,
            Position::Class(_) => false,
        }
    }

    fn class(
        &self,
        from: &mut Reader<'_>,
        class_hashes: &mut KeyList,
        chunk: &mut Chunk,
    ) -> Result<ClassDiff, DecodeError> {
        let key = class_hashes.read(from, "class hash")?;
        if matches!(chunk.last, Position::Class(last) if last >= key) {
            return Err(DecodeError::new("class hash", "not in ascending order"));
        }
        let compiled = non_zero(from.short_felt("compiled class hash")?, "compiled class hash")?;
        chunk.last = Position::Class(key);
        chunk.counts.classes += 1;
        Ok(ClassDiff {
            class_hash: ClassHash(key.to_felt()),
            compiled_class_hash: CompiledClassHash(compiled),
        })
    }
}

/// Unpacks a content of a known length, which is bounded.
fn decompress(compressed: &[u8], bytes: usize) -> Result<Vec<u8>, DecodeError> {
    let mut content = Vec::with_capacity(bytes);
    let mut decoder = DeflateDecoder::new(compressed);
    // One byte more than there may be tells that there are too many.
    let read = decoder.by_ref().take(bytes as u64 + 1).read_to_end(&mut content);
    let all = decoder.total_in() == compressed.len() as u64;
    match read {
        Ok(read) if read == bytes && all => Ok(content),
        Ok(_) => Err(DecodeError::new("content", format!("does not unpack to the {bytes} bytes it should"))),
        Err(error) => Err(DecodeError::new("content", unpacking(&error))),
    }
}

fn unpacking(error: &io::Error) -> String {
    format!("cannot be unpacked: {error}")
}
