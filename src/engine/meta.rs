//! The engine's own rows: what the database is, how far it has come, roots of blocks, how to take the last ones back, and
//! what callers keep beside the state. All numbers big-endian.
//!
//! ```text
//! 0x00 "identity"             text, one fact a line
//! 0x00 "id"                   the database's id[16]
//! 0x00 "head"                 block | contracts root[32] | classes root[32] | commitment[32] | state u64 | refusal u64 u64
//!                             block = 0, or 1 and a u64; state = the id of the state after it; refusal = place of the last
//!                             refusal in the journal
//! 0x00 "oldest"               block u64: the roots of blocks before it were pruned; not there if none were
//! 0x00 "import"               how far an import has come that is not finished; there is no identity then (`identity.rs`)
//! 0x02 | block u64            contracts root[32] | classes root[32] | commitment[32] | state u64 | first block u64 | hash
//!                             hash = 0, or 1 and the block's hash[32]
//! 0x03 | block u64 | part u32 a piece of what takes the block back (at most PART_BYTES)
//! 0x04 | length u8 | key | part u32   a piece of a blob (at most PART_BYTES); the first begins with the length, a u64
//! 0x05 | hash[32]             block u64: the block that has this hash
//! ```

use std::collections::VecDeque;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;

use flagstone_core::codec::{DecodeError, Reader};
use flagstone_core::commitment::{Roots, StarknetVersion};
use flagstone_core::diff::StateDiff;
use flagstone_core::layout::Layout;
use flagstone_core::store::{StoreError, StoreRead, WriteBatch, keyspace};
use flagstone_core::types::{BlockHash, BlockNumber, ClassesRoot, ContractsRoot, StateCommitment, StateId};

use crate::error::Error;
use crate::journal::{DatabaseId, Position, fresh_salt};
use crate::store::KEY_BYTES_MAX;

/// Version of the rows in this file.
const ENGINE_FORMAT: u32 = 5;

/// The commitment scheme: tries of height 251, Pedersen and Poseidon, state commitment v0.
const SCHEME: &str = "starknet-state-v0";

/// Largest piece of an undo or a blob: stores move larger rows out of line.
const PART_BYTES: usize = 4 << 10;

/// The longest key of a blob: with a prefix, its length and the number of a part it is a row's key.
pub const BLOB_KEY_MAX: usize = KEY_BYTES_MAX - (1 + 1 + size_of::<u32>());
const _: () = assert!(BLOB_KEY_MAX <= u8::MAX as usize);

/// What a database is. A mismatch refuses to open, naming both sides.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Identity {
    /// Name of the layout.
    pub layout: String,
    /// Format version of the layout's rows.
    pub layout_format: u32,
    /// Format version of the engine's rows.
    pub engine_format: u32,
    /// The commitment scheme.
    pub scheme: String,
}

impl Identity {
    /// What this build writes with a layout.
    pub fn of(layout: &dyn Layout) -> Self {
        Self {
            layout: layout.name().to_owned(),
            layout_format: layout.format_version(),
            engine_format: ENGINE_FORMAT,
            scheme: SCHEME.to_owned(),
        }
    }

    /// Refuses to open what `stored` is as `self`.
    ///
    /// # Errors
    /// [`Error::IdentityMismatch`] naming the first difference.
    pub fn check(&self, stored: &Self) -> Result<(), Error> {
        let version = |identity: &Self| format!("`{}` v{}", identity.layout, identity.layout_format);
        let pairs = [
            ("scheme", stored.scheme.clone(), self.scheme.clone()),
            ("engine format", format!("v{}", stored.engine_format), format!("v{}", self.engine_format)),
            ("layout", version(stored), version(self)),
        ];
        match pairs.into_iter().find(|(_, stored, opened)| stored != opened) {
            Some((what, stored, opened)) => Err(Error::IdentityMismatch { what, stored, opened }),
            None => Ok(()),
        }
    }

    /// Reads the text form.
    pub fn parse(text: &str) -> Option<Self> {
        let fact = |name: &str| {
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned))
        };
        Some(Self {
            layout: fact("layout")?,
            layout_format: fact("layout-format")?.parse().ok()?,
            engine_format: fact("engine-format")?.parse().ok()?,
            scheme: fact("scheme")?,
        })
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "layout: {}", self.layout)?;
        writeln!(f, "layout-format: {}", self.layout_format)?;
        writeln!(f, "engine-format: {}", self.engine_format)?;
        writeln!(f, "scheme: {}", self.scheme)
    }
}

/// How far a database has come, each height at or below the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Head {
    /// Last closed block: its values are visible, and it is durable.
    pub closed: Option<BlockNumber>,
    /// Last committed block: its root is known.
    pub committed: Option<BlockNumber>,
    /// Last block whose rows are in the store.
    pub persisted: Option<BlockNumber>,
    /// Roots and state commitment after the last committed block; zero before the first.
    pub root: BlockRoot,
    /// How many closed blocks have no root yet.
    pub uncommitted: u64,
}

impl Head {
    /// How many closed blocks have no root yet.
    pub const fn lag(&self) -> u64 {
        self.uncommitted
    }
}

/// What the store's head row says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StoredHead {
    /// The block that the store's rows are at.
    pub block: Option<BlockNumber>,
    /// Its roots.
    pub root: BlockRoot,
    /// The id of the state after it.
    pub state: StateId,
    /// The last refusal in the journal that they take account of.
    pub refusal: Position,
}

/// Draws a new id of a state.
pub fn fresh_state() -> StateId {
    StateId(fresh_salt().max(1))
}

/// Roots after a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct BlockRoot {
    /// Roots of the two global tries.
    pub roots: Roots,
    /// The state commitment under the block's rule.
    pub commitment: StateCommitment,
}

impl BlockRoot {
    /// The byte form, as the journal has it.
    pub fn to_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(96);
        self.encode(&mut bytes);
        bytes
    }

    /// Reads [`BlockRoot::to_bytes`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut from = Reader::new(bytes);
        let root = Self::decode(&mut from)?;
        from.end("roots")?;
        Ok(root)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.roots.contracts.to_be());
        out.extend_from_slice(&self.roots.classes.to_be());
        out.extend_from_slice(&self.commitment.to_be());
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let contracts = ContractsRoot(from.felt("contracts root")?);
        let classes = ClassesRoot(from.felt("classes root")?);
        let commitment = StateCommitment(from.felt("state commitment")?);
        Ok(Self { roots: Roots { contracts, classes }, commitment })
    }
}

/// Which state a block leads to, and from which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lineage {
    /// The state after the block.
    pub state: StateId,
    /// The state before it.
    pub parent: StateId,
    /// The state commitment before it, if it was known when the block was closed.
    pub parent_root: Option<StateCommitment>,
}

impl Lineage {
    /// Reads what a block's byte form begins with.
    pub fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (state, parent) = (StateId(from.u64("state")?), StateId(from.u64("parent state")?));
        let parent_root = option(from, "parent root flag", |from| from.felt("parent root"))?;
        Ok(Self { state, parent, parent_root: parent_root.map(StateCommitment) })
    }
}

/// A closed block: what was stated of it, and its diff.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PendingBlock {
    pub number: BlockNumber,
    pub hash: Option<BlockHash>,
    pub lineage: Lineage,
    pub version: Option<StarknetVersion>,
    pub old_root: Option<StateCommitment>,
    pub new_root: Option<StateCommitment>,
    pub diff: StateDiff,
    pub blobs: Vec<Blob>,
    /// The roots that were computed for it before, as the journal says.
    pub computed: Option<BlockRoot>,
}

/// Bytes that a caller keeps beside the state, such as a compiled class by its hash. Written with the block that brings
/// them, and taken back with it. A later block's bytes under the same key take their place; going back brings the earlier ones
/// again.
///
/// Callers build it by a literal, so it is not `#[non_exhaustive]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// At most 250 bytes.
    pub key: Vec<u8>,
    /// At most 256 MiB, and 512 MiB with the others of its block.
    pub bytes: Arc<[u8]>,
}

impl Blob {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.key.len() as u8);
        out.extend_from_slice(&self.key);
        out.extend_from_slice(&(self.bytes.len() as u32).to_be_bytes());
        out.extend_from_slice(&self.bytes);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let length = from.u8("length of a blob's key")?;
        let key = from.bytes("blob's key", usize::from(length))?.to_vec();
        let length = from.u32("blob's length")?;
        Ok(Self { key, bytes: from.bytes("blob", length as usize)?.into() })
    }
}

impl PendingBlock {
    /// The byte form, without what was computed:
    ///
    /// ```text
    /// state u64 | parent state u64 | parent root | hash | version | old root | new root | diff | count u32 | blobs
    /// parent root, hash, version, old root, new root: 0, or 1 and the value
    /// ```
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.encoded_len() as usize);
        bytes.extend_from_slice(&self.lineage.state.0.to_be_bytes());
        bytes.extend_from_slice(&self.lineage.parent.0.to_be_bytes());
        let put_root = |root: &StateCommitment, out: &mut Vec<u8>| out.extend_from_slice(&root.to_be());
        put_option(&mut bytes, &self.lineage.parent_root, put_root);
        put_hash(&mut bytes, &self.hash);
        put_option(&mut bytes, &self.version, |version, out| {
            version.numbers().iter().for_each(|number| out.extend_from_slice(&number.to_be_bytes()));
        });
        put_option(&mut bytes, &self.old_root, put_root);
        put_option(&mut bytes, &self.new_root, put_root);
        self.diff.encode(&mut bytes);
        bytes.extend_from_slice(&(self.blobs.len() as u32).to_be_bytes());
        self.blobs.iter().for_each(|blob| blob.encode(&mut bytes));
        bytes
    }

    /// How long the byte form is.
    pub fn encoded_len(&self) -> u64 {
        let roots = [self.lineage.parent_root, self.old_root, self.new_root];
        let roots = roots.iter().map(|root| 1 + root.map_or(0, |_| size_of::<[u8; 32]>())).sum::<usize>();
        let hash = 1 + self.hash.map_or(0, |_| size_of::<[u8; 32]>());
        let lineage = 2 * size_of::<u64>();
        let version = 1 + self.version.map_or(0, |_| 4 * size_of::<u16>());
        let blobs = self.blobs.iter().map(|blob| 1 + blob.key.len() + size_of::<u32>() + blob.bytes.len());
        let blobs = size_of::<u32>() + blobs.sum::<usize>();
        (lineage + hash + version + roots + self.diff.encoded_len() + blobs) as u64
    }

    pub fn decode(number: BlockNumber, bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut from = Reader::new(bytes);
        let lineage = Lineage::decode(&mut from)?;
        let hash = read_hash(&mut from)?;
        let version = option(&mut from, "version flag", |from| {
            let bytes: [u8; 8] = from.array("version")?;
            let number = |i: usize| u16::from_be_bytes([bytes[2 * i], bytes[2 * i + 1]]);
            Ok(StarknetVersion::from_numbers(std::array::from_fn(number)))
        })?;
        let old_root = option(&mut from, "old root flag", |from| from.felt("old root").map(StateCommitment))?;
        let new_root = option(&mut from, "new root flag", |from| from.felt("new root").map(StateCommitment))?;
        let diff = StateDiff::decode(&mut from)?;
        let blobs = from.u32("number of blobs")?;
        let blobs = (0..blobs).map(|_| Blob::decode(&mut from)).collect::<Result<_, _>>()?;
        from.end("pending block")?;
        Ok(Self { number, hash, lineage, version, old_root, new_root, diff, blobs, computed: None })
    }
}

fn put_hash(out: &mut Vec<u8>, hash: &Option<BlockHash>) {
    put_option(out, hash, |hash, out| out.extend_from_slice(&hash.to_be()));
}

fn read_hash(from: &mut Reader<'_>) -> Result<Option<BlockHash>, DecodeError> {
    option(from, "hash flag", |from| from.felt("block hash").map(BlockHash))
}

fn put_option<T>(out: &mut Vec<u8>, value: &Option<T>, put: impl FnOnce(&T, &mut Vec<u8>)) {
    out.push(u8::from(value.is_some()));
    if let Some(value) = value {
        put(value, out);
    }
}

fn option<'a, T>(
    from: &mut Reader<'a>,
    flag: &'static str,
    read: impl FnOnce(&mut Reader<'a>) -> Result<T, DecodeError>,
) -> Result<Option<T>, DecodeError> {
    match from.u8(flag)? {
        0 => Ok(None),
        1 => read(from).map(Some),
        other => Err(DecodeError::new(flag, format!("{other} is neither 0 nor 1"))),
    }
}

/// Name of the row of an unfinished import.
pub const IMPORT: &str = "import";

pub fn meta_key(name: &str) -> Vec<u8> {
    [&[keyspace::META], name.as_bytes()].concat()
}

fn block_key(prefix: u8, block: BlockNumber) -> Vec<u8> {
    [&[prefix][..], &block.0.to_be_bytes()].concat()
}

/// Whether a store has no row.
pub fn is_empty(store: &dyn StoreRead) -> Result<bool, Error> {
    let mut empty = true;
    store.scan(&[], &mut |_, _| {
        empty = false;
        ControlFlow::Break(())
    })?;
    Ok(empty)
}

pub fn put_identity(batch: &mut WriteBatch, identity: &Identity) {
    batch.put(meta_key("identity"), identity.to_string());
}

/// Says to which database a store belongs.
pub fn put_database(batch: &mut WriteBatch, database: DatabaseId) {
    batch.put(meta_key("id"), database.0);
}

/// To which database a store belongs.
pub fn read_database(store: &dyn StoreRead) -> Result<DatabaseId, Error> {
    let row = store.get(&meta_key("id"))?;
    let row = row.ok_or_else(|| Error::damaged("the row of the database's id", "it is missing"))?;
    let length = row.len();
    row.try_into()
        .map(DatabaseId)
        .map_err(|_| Error::damaged("the row of the database's id", format!("it has {length} bytes, not 16")))
}

/// Says before which block roots were pruned.
pub fn put_oldest(batch: &mut WriteBatch, block: BlockNumber) {
    batch.put(meta_key("oldest"), block.0.to_be_bytes());
}

/// Before which block roots were pruned.
pub fn read_oldest(store: &dyn StoreRead) -> Result<Option<BlockNumber>, Error> {
    let Some(row) = store.get(&meta_key("oldest"))? else { return Ok(None) };
    let decoded = decode_number(&row);
    decoded.map(Some).map_err(|error| Error::damaged("the row of the oldest roots", error))
}

pub fn put_head(batch: &mut WriteBatch, head: &StoredHead) {
    let mut row = Vec::with_capacity(129);
    put_option(&mut row, &head.block, |block, out| out.extend_from_slice(&block.0.to_be_bytes()));
    head.root.encode(&mut row);
    row.extend_from_slice(&head.state.0.to_be_bytes());
    row.extend_from_slice(&head.refusal.sequence.to_be_bytes());
    row.extend_from_slice(&head.refusal.offset.to_be_bytes());
    batch.put(meta_key("head"), row);
}

pub fn read_head(store: &dyn StoreRead) -> Result<StoredHead, Error> {
    let row = store.get(&meta_key("head"))?.ok_or_else(|| Error::damaged("the head row", "it is missing"))?;
    decode_head(&row).map_err(|error| Error::damaged("the head row", error))
}

fn decode_head(row: &[u8]) -> Result<StoredHead, DecodeError> {
    let mut from = Reader::new(row);
    let block = option(&mut from, "block flag", |from| from.u64("block").map(BlockNumber))?;
    let root = BlockRoot::decode(&mut from)?;
    let state = StateId(from.u64("state")?);
    let refusal = Position { sequence: from.u64("refusal")?, offset: from.u64("refusal")? };
    from.end("head")?;
    Ok(StoredHead { block, root, state, refusal })
}

/// What is kept of a committed block, for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BlockFacts {
    pub root: BlockRoot,
    /// The id of the state after it.
    pub state: StateId,
    /// The first of the blocks that were committed as one with it: those before it have no roots of their own.
    pub first: BlockNumber,
    pub hash: Option<BlockHash>,
}

fn hash_key(hash: &BlockHash) -> Vec<u8> {
    [&[keyspace::BLOCK_HASH][..], &hash.to_be()].concat()
}

pub fn put_block(batch: &mut WriteBatch, block: BlockNumber, facts: &BlockFacts) {
    let mut row = facts.root.to_bytes();
    row.extend_from_slice(&facts.state.0.to_be_bytes());
    row.extend_from_slice(&facts.first.0.to_be_bytes());
    put_hash(&mut row, &facts.hash);
    batch.put(block_key(keyspace::BLOCK, block), row);
    facts.hash.iter().for_each(|hash| batch.put(hash_key(hash), block.0.to_be_bytes()));
}

/// The block that has a hash.
pub fn read_block_of_hash(store: &dyn StoreRead, hash: &BlockHash) -> Result<Option<BlockNumber>, Error> {
    let Some(row) = store.get(&hash_key(hash))? else { return Ok(None) };
    let damaged = |error| Error::damaged(format!("the block of hash {hash}"), error);
    decode_number(&row).map(Some).map_err(damaged)
}

pub fn decode_number(row: &[u8]) -> Result<BlockNumber, DecodeError> {
    let mut from = Reader::new(row);
    let block = BlockNumber(from.u64("block")?);
    from.end("block number")?;
    Ok(block)
}

/// The hash that a key of a block's hash is of.
pub fn hash_of_key(key: &[u8]) -> Option<BlockHash> {
    let mut from = Reader::new(key.get(1..)?);
    let hash = from.felt("block hash").ok()?;
    from.end("key").ok().map(|()| BlockHash(hash))
}

pub fn read_block_root(store: &dyn StoreRead, block: BlockNumber) -> Result<Option<BlockRoot>, Error> {
    Ok(read_block(store, block)?.map(|facts| facts.root))
}

/// The roots after a block, and the id of the state that they are of.
pub fn read_block_state(
    store: &dyn StoreRead,
    block: BlockNumber,
) -> Result<Option<(BlockRoot, StateId)>, Error> {
    Ok(read_block(store, block)?.map(|facts| (facts.root, facts.state)))
}

/// What is kept of a committed block.
pub fn read_block(store: &dyn StoreRead, block: BlockNumber) -> Result<Option<BlockFacts>, Error> {
    let Some(row) = store.get(&block_key(keyspace::BLOCK, block))? else { return Ok(None) };
    facts_of(block, &row).map(Some)
}

/// What the row of a committed block says.
pub fn facts_of(block: BlockNumber, row: &[u8]) -> Result<BlockFacts, Error> {
    decode_block(row).map_err(|error| Error::damaged(format!("the roots of block {block}"), error))
}

pub fn decode_block(row: &[u8]) -> Result<BlockFacts, DecodeError> {
    let mut from = Reader::new(row);
    let root = BlockRoot::decode(&mut from)?;
    let state = StateId(from.u64("state")?);
    let first = BlockNumber(from.u64("first block")?);
    let hash = read_hash(&mut from)?;
    from.end("block root")?;
    Ok(BlockFacts { root, state, first, hash })
}

/// The block of a key of a block's roots.
pub fn block_of_key(key: &[u8]) -> Option<BlockNumber> {
    let (_, number) = key.split_first()?;
    Some(BlockNumber(u64::from_be_bytes(number.try_into().ok()?)))
}

/// Whether a key is that of a row that a database has.
pub fn is_known(key: &[u8]) -> bool {
    ["identity", "id", "head", "oldest"].iter().any(|name| meta_key(name) == key)
}

/// Deletes what is kept of a committed block.
pub fn delete_block(batch: &mut WriteBatch, store: &dyn StoreRead, block: BlockNumber) -> Result<(), Error> {
    if let Some(hash) = read_block(store, block)?.and_then(|facts| facts.hash) {
        batch.delete(hash_key(&hash));
    }
    batch.delete(block_key(keyspace::BLOCK, block));
    Ok(())
}

/// Puts bytes as rows of at most [`PART_BYTES`], at `prefix` and a part number.
fn put_parts(batch: &mut WriteBatch, prefix: &[u8], bytes: &[u8]) {
    for (part, piece) in (0u32..).zip(bytes.chunks(PART_BYTES)) {
        batch.put_with(
            |key| key.extend(prefix.iter().chain(&part.to_be_bytes())),
            |row| row.extend_from_slice(piece),
        );
    }
}

/// The rows at a prefix, put together; `None` if there are none. `what` names them.
fn read_parts(
    store: &dyn StoreRead,
    prefix: &[u8],
    what: impl Fn() -> String,
) -> Result<Option<Vec<u8>>, Error> {
    let (mut bytes, mut parts) = (Vec::new(), 0u32);
    let mut stray = None;
    store.scan(prefix, &mut |key, row| {
        if key.get(prefix.len()..) != Some(&parts.to_be_bytes()[..]) {
            stray = Some(format!("part {parts} is missing, there is a row at {key:02x?}"));
            return ControlFlow::Break(());
        }
        parts += 1;
        bytes.extend_from_slice(row);
        ControlFlow::Continue(())
    })?;
    match stray {
        Some(problem) => Err(Error::damaged(what(), problem)),
        None => Ok((parts > 0).then_some(bytes)),
    }
}

fn blob_prefix(key: &[u8]) -> Vec<u8> {
    [&[keyspace::BLOB, key.len() as u8], key].concat()
}

/// The blob that a row's key is of a piece of.
pub fn blob_of_key(key: &[u8]) -> Option<&[u8]> {
    let mut from = Reader::new(key.get(1..)?);
    let length = from.u8("length of a blob's key").ok()?;
    let blob = from.bytes("blob's key", length.into()).ok()?;
    from.u32("part").ok().filter(|_| from.remaining() == 0).map(|_| blob)
}

/// Puts a blob in the place of one that the store or the batch has under its key.
pub fn put_blob(batch: &mut WriteBatch, store: &dyn StoreRead, blob: &Blob) -> Result<(), StoreError> {
    let bytes = [&(blob.bytes.len() as u64).to_be_bytes()[..], &blob.bytes].concat();
    let prefix = blob_prefix(&blob.key);
    put_parts(batch, &prefix, &bytes);
    // Parts are numbered without gaps: of a longer blob, these are left over.
    for part in bytes.len().div_ceil(PART_BYTES) as u32.. {
        let key = [&prefix[..], &part.to_be_bytes()].concat();
        let is_there = match batch.get(&key) {
            Some(row) => row.is_some(),
            None => store.get(&key)?.is_some(),
        };
        if !is_there {
            break;
        }
        batch.delete(key);
    }
    Ok(())
}

/// Deletes the blob that the store or the batch has under a key.
pub fn delete_blob(batch: &mut WriteBatch, store: &dyn StoreRead, key: &[u8]) -> Result<(), StoreError> {
    delete_below(batch, store, &blob_prefix(key))
}

/// A blob's bytes; `None` if there is none of this key.
pub fn read_blob(store: &dyn StoreRead, key: &[u8]) -> Result<Option<Arc<[u8]>>, Error> {
    let what = || format!("the blob at {key:02x?}");
    let Some(bytes) = read_parts(store, &blob_prefix(key), what)? else { return Ok(None) };
    match bytes.split_first_chunk::<8>() {
        Some((length, rest)) if u64::from_be_bytes(*length) == rest.len() as u64 => Ok(Some(rest.into())),
        _ => Err(Error::damaged(what(), "it is not as long as it says")),
    }
}

/// What takes blocks back: one, or several that were committed as one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Undo {
    /// The block before them.
    pub before: Option<BlockNumber>,
    /// Its roots.
    pub root: BlockRoot,
    /// Every value that they set, as it was before.
    pub diff: StateDiff,
    /// Every blob that they brought, as it was before; `None` where there was none under its key.
    pub blobs: Vec<BlobBefore>,
}

/// A blob's key, and the bytes that were there.
pub type BlobBefore = (Vec<u8>, Option<Arc<[u8]>>);

pub fn put_undo(batch: &mut WriteBatch, block: BlockNumber, undo: &Undo) {
    let mut bytes = Vec::with_capacity(160 + undo.diff.encoded_len());
    put_option(&mut bytes, &undo.before, |block, out| out.extend_from_slice(&block.0.to_be_bytes()));
    undo.root.encode(&mut bytes);
    undo.diff.encode(&mut bytes);
    bytes.extend_from_slice(&(undo.blobs.len() as u32).to_be_bytes());
    for (key, before) in &undo.blobs {
        bytes.push(key.len() as u8);
        bytes.extend_from_slice(key);
        put_option(&mut bytes, before, |before, out| {
            out.extend_from_slice(&(before.len() as u32).to_be_bytes());
            out.extend_from_slice(before);
        });
    }
    put_parts(batch, &block_key(keyspace::UNDO, block), &bytes);
}

/// What takes a block back; `None` if that is not kept (any more).
pub fn read_undo(store: &dyn StoreRead, block: BlockNumber) -> Result<Option<Undo>, Error> {
    let what = || format!("the undo of block {block}");
    let Some(bytes) = read_parts(store, &block_key(keyspace::UNDO, block), what)? else { return Ok(None) };
    let decode = || {
        let mut from = Reader::new(&bytes);
        let before = block_before(&mut from)?;
        let root = BlockRoot::decode(&mut from)?;
        let diff = StateDiff::decode(&mut from)?;
        let count = from.count("number of blobs", 2)?;
        let blobs = (0..count).map(|_| blob_before(&mut from)).collect::<Result<_, _>>()?;
        from.end("undo")?;
        Ok(Undo { before, root, diff, blobs })
    };
    decode().map(Some).map_err(|error: DecodeError| Error::damaged(what(), error))
}

fn blob_before(from: &mut Reader<'_>) -> Result<BlobBefore, DecodeError> {
    let length = from.u8("length of a blob's key")?;
    let key = from.bytes("blob's key", usize::from(length))?.to_vec();
    let before = option(from, "blob flag", |from| {
        let length = from.u32("blob's length")?;
        Ok(from.bytes("blob", length as usize)?.into())
    })?;
    Ok((key, before))
}

fn block_before(from: &mut Reader<'_>) -> Result<Option<BlockNumber>, DecodeError> {
    option(from, "block flag", |from| from.u64("block").map(BlockNumber))
}

/// Blocks that can be taken back, one after another from the head on; ascending. Looks at the beginning of each undo only.
pub fn undo_chain(store: &dyn StoreRead, head: Option<BlockNumber>) -> Result<VecDeque<BlockNumber>, Error> {
    let (mut chain, mut at) = (VecDeque::new(), head);
    while let Some(block) = at {
        let first_part = [&block_key(keyspace::UNDO, block)[..], &[0; 4]].concat();
        let Some(row) = store.get(&first_part)? else { break };
        let before = block_before(&mut Reader::new(&row));
        let before = before.map_err(|error| Error::damaged(format!("the undo of block {block}"), error))?;
        chain.push_front(block);
        at = before.filter(|before| *before < block);
    }
    Ok(chain)
}

/// Blocks whose undo is there, ascending.
pub fn undo_blocks(store: &dyn StoreRead) -> Result<Vec<BlockNumber>, Error> {
    let mut blocks: Vec<BlockNumber> = Vec::new();
    store.scan(&[keyspace::UNDO], &mut |key, _| {
        let mut from = Reader::new(key.get(1..).unwrap_or_default());
        if let Ok(block) = from.u64("block").map(BlockNumber)
            && blocks.last() != Some(&block)
        {
            blocks.push(block);
        }
        ControlFlow::Continue(())
    })?;
    Ok(blocks)
}

/// Deletes what takes a block back, in the store and in the batch.
pub fn delete_undo(
    batch: &mut WriteBatch,
    store: &dyn StoreRead,
    block: BlockNumber,
) -> Result<(), StoreError> {
    delete_below(batch, store, &block_key(keyspace::UNDO, block))
}

/// Deletes all rows whose keys begin so, in the store and in the batch.
fn delete_below(batch: &mut WriteBatch, store: &dyn StoreRead, prefix: &[u8]) -> Result<(), StoreError> {
    store.scan(prefix, &mut |key, _| {
        batch.delete(key);
        ControlFlow::Continue(())
    })?;
    let unwritten: Vec<Vec<u8>> =
        batch.range(prefix).map(|(key, _)| key.to_vec()).take_while(|key| key.starts_with(prefix)).collect();
    unwritten.into_iter().for_each(|key| batch.delete(key));
    Ok(())
}

#[cfg(test)]
mod tests {
    use flagstone_core::store::{MemoryStore, Store};

    use super::*;

    fn undo(values: u64) -> Undo {
        let diff =
            (0..values).fold(StateDiff::builder(), |diff, key| diff.storage(1.into(), key.into(), 7.into()));
        let root = BlockRoot { commitment: 9.into(), ..BlockRoot::default() };
        let blobs = vec![(b"class".to_vec(), Some(vec![7; 9_000].into())), (vec![], None)];
        Undo { before: Some(BlockNumber(values)), root, diff: diff.build().unwrap(), blobs }
    }

    #[test]
    fn a_blocks_length_is_known_before_it_is_encoded() {
        let blob = |bytes: usize| Blob { key: vec![1; bytes % 7], bytes: vec![2; bytes].into() };
        let least = PendingBlock { diff: undo(20).diff, ..PendingBlock::default() };
        let most = PendingBlock {
            version: "0.14.0".parse().ok(),
            old_root: Some(1.into()),
            new_root: Some(2.into()),
            lineage: Lineage { parent_root: Some(3.into()), ..Lineage::default() },
            hash: Some(4.into()),
            blobs: vec![blob(0), blob(9), blob(500)],
            ..least.clone()
        };
        for block in [least, most] {
            assert_eq!(block.encode().len() as u64, block.encoded_len());
            assert_eq!(PendingBlock::decode(block.number, &block.encode()).unwrap(), block);
        }
    }

    #[test]
    fn undo_of_any_size_is_read_back_and_deleted_whole() {
        let store = MemoryStore::new();
        let mut batch = WriteBatch::default();
        put_undo(&mut batch, BlockNumber(3), &undo(0));
        put_undo(&mut batch, BlockNumber(4), &undo(500));
        store.write(&batch).unwrap();
        assert_eq!(undo_blocks(&store).unwrap(), [BlockNumber(3), BlockNumber(4)]);
        assert_eq!(undo_chain(&store, Some(BlockNumber(4))).unwrap(), [BlockNumber(4)], "4 is not on 3");
        assert_eq!(undo_chain(&store, Some(BlockNumber(5))).unwrap(), []);
        assert_eq!(read_undo(&store, BlockNumber(3)).unwrap(), Some(undo(0)));
        assert_eq!(read_undo(&store, BlockNumber(4)).unwrap(), Some(undo(500)));
        assert_eq!(read_undo(&store, BlockNumber(5)).unwrap(), None);
        for block in [3, 4] {
            let mut batch = WriteBatch::default();
            delete_undo(&mut batch, &store, BlockNumber(block)).unwrap();
            store.write(&batch).unwrap();
        }
        assert!(store.is_empty());
    }

    #[test]
    fn an_undo_without_one_of_its_parts_is_damaged() {
        let mut batch = WriteBatch::default();
        put_undo(&mut batch, BlockNumber(4), &undo(500));
        let keys: Vec<Vec<u8>> = batch.iter().map(|(key, _)| key.to_vec()).collect();
        assert!(keys.len() > 5);
        for key in keys {
            let store = MemoryStore::new();
            let mut damaged = batch.clone();
            damaged.delete(key);
            store.write(&damaged).unwrap();
            assert!(read_undo(&store, BlockNumber(4)).is_err());
        }
    }
}
