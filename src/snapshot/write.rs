//! Writing a dump: items in order go in, chunks come out, several of them compressed at a time.

use std::io::{self, Write};

use flagstone_core::codec::put_short_felt;
use flagstone_core::commitment::ContractLeaf;
use flagstone_core::felt::Felt;
use flagstone_core::types::{CompiledClassHash, ContractAddress, StorageRoot, TrieKey};
use flate2::Compression;
use flate2::write::DeflateEncoder;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::format::{BEGINS, CHUNK_ITEMS_MAX, ChunkHead, Counts, ENDS, Footer, Header, KeyList};

/// Chunks that are compressed together: bounds what is held in memory.
const TOGETHER: usize = 8;

/// Where a contract's own fields are in the content, to be filled in once they are known.
#[derive(Clone, Copy)]
struct OpenContract {
    address: ContractAddress,
    flags_at: usize,
    entries_at: usize,
    entries: u32,
    keys: KeyList,
}

/// The content of one chunk while it grows.
#[derive(Default)]
struct Content {
    contracts: Vec<u8>,
    contract_count: u32,
    addresses: KeyList,
    open: Option<OpenContract>,
    classes: Vec<u8>,
    class_count: u32,
    class_hashes: KeyList,
    items: usize,
}

impl Content {
    /// Begins a contract, or goes on with one if there is no leaf.
    fn contract(&mut self, address: ContractAddress, leaf: Option<&ContractLeaf>) {
        let out = &mut self.contracts;
        let flags_at = out.len();
        out.push(if leaf.is_some() { BEGINS } else { 0 });
        self.addresses.put(out, *address.trie_key());
        if let Some(leaf) = leaf {
            put_short_felt(out, &leaf.class_hash.0);
            put_short_felt(out, &leaf.nonce.0);
            self.items += 1;
        }
        let entries_at = out.len();
        out.extend_from_slice(&[0; 4]);
        self.contract_count += 1;
        self.open =
            Some(OpenContract { address, flags_at, entries_at, entries: 0, keys: KeyList::default() });
    }

    fn entry(&mut self, key: TrieKey, value: &Felt) {
        let Some(open) = &mut self.open else { return };
        open.keys.put(&mut self.contracts, key);
        put_short_felt(&mut self.contracts, value);
        open.entries += 1;
        self.items += 1;
    }

    /// Ends the contract with its root, or leaves it to the next chunk.
    fn leave(&mut self, root: Option<StorageRoot>) -> Option<ContractAddress> {
        let open = self.open.take()?;
        self.contracts[open.entries_at..open.entries_at + 4].copy_from_slice(&open.entries.to_be_bytes());
        if let Some(root) = root {
            self.contracts[open.flags_at] |= ENDS;
            put_short_felt(&mut self.contracts, &root.0);
        }
        Some(open.address)
    }

    fn class(&mut self, key: TrieKey, compiled: CompiledClassHash) {
        self.class_hashes.put(&mut self.classes, key);
        put_short_felt(&mut self.classes, &compiled.0);
        self.class_count += 1;
        self.items += 1;
    }

    fn bytes(self) -> Vec<u8> {
        let counts = [self.contract_count, self.class_count].map(u32::to_be_bytes);
        [&counts[0][..], &self.contracts, &counts[1], &self.classes].concat()
    }
}

/// Writes a dump. Items must come in the order of the format: each contract with its storage entries, ascending; then
/// classes.
pub struct DumpWriter<W> {
    out: W,
    content: Content,
    waiting: Vec<Vec<u8>>,
    chunks: u32,
    counts: Counts,
    digest: Sha256,
    bytes: u64,
}

impl<W: Write> DumpWriter<W> {
    /// Begins with the header.
    ///
    /// # Errors
    /// What the writer underneath says.
    pub fn new(mut out: W, header: &Header) -> io::Result<Self> {
        let header = header.encode();
        out.write_all(&header)?;
        Ok(Self {
            out,
            content: Content::default(),
            waiting: Vec::new(),
            chunks: 0,
            counts: Counts::default(),
            digest: Sha256::new_with_prefix(header),
            bytes: header.len() as u64,
        })
    }

    /// How much was taken so far.
    pub const fn counts(&self) -> Counts {
        self.counts
    }

    /// A contract with its storage entries, ascending by key. The storage root of the leaf is what they are claimed to
    /// give.
    ///
    /// # Errors
    /// What the writer underneath or the entries say.
    pub fn contract<E: From<io::Error>>(
        &mut self,
        address: ContractAddress,
        leaf: &ContractLeaf,
        entries: impl IntoIterator<Item = Result<(TrieKey, Felt), E>>,
    ) -> Result<(), E> {
        self.room()?;
        self.content.contract(address, Some(leaf));
        for entry in entries {
            let (key, value) = entry?;
            self.room()?;
            self.content.entry(key, &value);
            self.counts.storage_entries += 1;
        }
        self.content.leave(Some(leaf.storage_root));
        self.counts.contracts += 1;
        Ok(())
    }

    /// A class.
    ///
    /// # Errors
    /// What the writer underneath says.
    pub fn class(&mut self, key: TrieKey, compiled: CompiledClassHash) -> io::Result<()> {
        self.room()?;
        self.content.class(key, compiled);
        self.counts.classes += 1;
        Ok(())
    }

    /// Makes room for one more item.
    fn room(&mut self) -> io::Result<()> {
        if self.content.items < CHUNK_ITEMS_MAX {
            return Ok(());
        }
        let goes_on = self.content.leave(None);
        self.waiting.push(std::mem::take(&mut self.content).bytes());
        if let Some(address) = goes_on {
            self.content.contract(address, None);
        }
        if self.waiting.len() < TOGETHER { Ok(()) } else { self.flush() }
    }

    /// Compresses and writes what is waiting.
    fn flush(&mut self) -> io::Result<()> {
        let waiting = std::mem::take(&mut self.waiting);
        let compressed: Vec<Vec<u8>> =
            waiting.par_iter().map(|content| compress(content)).collect::<io::Result<_>>()?;
        for (content, compressed) in waiting.iter().zip(compressed) {
            self.digest.update(content);
            let head = ChunkHead {
                number: self.chunks,
                content_bytes: content.len() as u32,
                compressed_bytes: compressed.len() as u32,
            };
            let chunk = head.with(&compressed);
            self.out.write_all(&chunk)?;
            self.bytes += chunk.len() as u64;
            self.chunks = self
                .chunks
                .checked_add(1)
                .ok_or_else(|| io::Error::other("the state has more chunks than a dump can number"))?;
        }
        Ok(())
    }

    /// Ends the dump. Returns what was written to, and how many bytes that were.
    ///
    /// # Errors
    /// What the writer underneath says.
    pub fn finish(mut self) -> io::Result<(W, u64)> {
        if self.content.items > 0 {
            self.waiting.push(std::mem::take(&mut self.content).bytes());
        }
        self.flush()?;
        let digest = self.digest.finalize().into();
        let footer = Footer { chunks: self.chunks, counts: self.counts, digest }.encode();
        self.out.write_all(&footer)?;
        self.out.flush()?;
        Ok((self.out, self.bytes + footer.len() as u64))
    }
}

fn compress(content: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = DeflateEncoder::new(Vec::with_capacity(content.len()), Compression::new(1));
    encoder.write_all(content)?;
    encoder.finish()
}
