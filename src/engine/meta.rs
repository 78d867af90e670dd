//! The engine's own rows: what the database is, how far it has come, roots of blocks, and diffs that are closed but
//! not committed. All numbers big-endian.
//!
//! ```text
//! 0x00 "identity"             text, one fact a line
//! 0x00 "head"                 closed | committed | contracts root[32] | classes root[32] | commitment[32]
//!                             closed, committed = 0, or 1 and a u64
//! 0x00 "import"               how far an import has come that is not finished; there is no identity then (`import.rs`)
//! 0x01 | block u64 | part u32 a piece of the block's facts and diff (at most PART_BYTES)
//! 0x02 | block u64            contracts root[32] | classes root[32] | commitment[32]
//! ```

use std::fmt;
use std::ops::ControlFlow;

use flagstone_core::codec::{DecodeError, Reader};
use flagstone_core::commitment::{Roots, StarknetVersion};
use flagstone_core::diff::StateDiff;
use flagstone_core::layout::Layout;
use flagstone_core::store::{StoreRead, WriteBatch, keyspace};
use flagstone_core::types::{BlockNumber, ClassesRoot, ContractsRoot, StateCommitment};

use super::import;
use crate::error::Error;

/// Version of the rows in this file.
const ENGINE_FORMAT: u32 = 1;

/// The commitment scheme: tries of height 251, Pedersen and Poseidon, state commitment v0.
const SCHEME: &str = "starknet-state-v0";

/// Largest piece of a pending block: stores move larger rows out of line.
const PART_BYTES: usize = 4 << 10;

/// What a database is. A mismatch refuses to open, naming both sides.
#[derive(Debug, Clone, PartialEq, Eq)]
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

/// How far a database has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Head {
    /// Last closed block: its values are visible.
    pub closed: Option<BlockNumber>,
    /// Last committed block: its root is known.
    pub committed: Option<BlockNumber>,
    /// Roots and state commitment after the last committed block; zero before the first.
    pub root: BlockRoot,
}

/// Roots after a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BlockRoot {
    /// Roots of the two global tries.
    pub roots: Roots,
    /// The state commitment under the block's rule.
    pub commitment: StateCommitment,
}

impl BlockRoot {
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

/// A closed block: what was stated of it, and its diff.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingBlock {
    pub number: BlockNumber,
    pub version: Option<StarknetVersion>,
    pub old_root: Option<StateCommitment>,
    pub new_root: Option<StateCommitment>,
    pub diff: StateDiff,
}

impl PendingBlock {
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_option(&mut bytes, &self.version, |version, out| {
            version.numbers().iter().for_each(|number| out.extend_from_slice(&number.to_be_bytes()));
        });
        put_option(&mut bytes, &self.old_root, |root, out| out.extend_from_slice(&root.to_be()));
        put_option(&mut bytes, &self.new_root, |root, out| out.extend_from_slice(&root.to_be()));
        self.diff.encode(&mut bytes);
        bytes
    }

    /// How many bytes [`PendingBlock::encode`] gives.
    fn encoded_len(&self) -> usize {
        let version = if self.version.is_some() { 8 } else { 0 };
        let roots = usize::from(self.old_root.is_some()) + usize::from(self.new_root.is_some());
        3 + version + 32 * roots + self.diff.encoded_len()
    }

    pub fn decode(number: BlockNumber, bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut from = Reader::new(bytes);
        let version = option(&mut from, "version flag", |from| {
            let bytes: [u8; 8] = from.array("version")?;
            let number = |i: usize| u16::from_be_bytes([bytes[2 * i], bytes[2 * i + 1]]);
            Ok(StarknetVersion::from_numbers(std::array::from_fn(number)))
        })?;
        let old_root = option(&mut from, "old root flag", |from| from.felt("old root").map(StateCommitment))?;
        let new_root = option(&mut from, "new root flag", |from| from.felt("new root").map(StateCommitment))?;
        let diff = StateDiff::decode(&mut from)?;
        from.end("pending block")?;
        Ok(Self { number, version, old_root, new_root, diff })
    }
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

/// What the store says the database is; `None` in an empty store.
pub fn read_identity(store: &dyn StoreRead) -> Result<Option<Identity>, Error> {
    if let Some(row) = store.get(&meta_key("identity"))? {
        let text = String::from_utf8_lossy(&row);
        return match Identity::parse(&text) {
            Some(identity) => Ok(Some(identity)),
            None => Err(Error::damaged("the identity row", format!("cannot read {text:?}"))),
        };
    }
    if let Some(import) = import::read_unfinished(store)? {
        return Err(Error::UnfinishedImport { block: import.header.block, layout: import.identity.layout });
    }
    match is_empty(store)? {
        true => Ok(None),
        false => Err(Error::damaged("the identity row", "it is missing, and the store is not empty")),
    }
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
    batch.put(meta_key("identity"), identity.to_string().into_bytes());
}

pub fn put_head(batch: &mut WriteBatch, head: &Head) {
    let mut row = Vec::with_capacity(114);
    for block in [&head.closed, &head.committed] {
        put_option(&mut row, block, |block, out| out.extend_from_slice(&block.0.to_be_bytes()));
    }
    head.root.encode(&mut row);
    batch.put(meta_key("head"), row);
}

pub fn read_head(store: &dyn StoreRead) -> Result<Head, Error> {
    let row = store.get(&meta_key("head"))?.ok_or_else(|| Error::damaged("the head row", "it is missing"))?;
    decode_head(&row).map_err(|error| Error::damaged("the head row", error))
}

fn decode_head(row: &[u8]) -> Result<Head, DecodeError> {
    let mut from = Reader::new(row);
    let closed = option(&mut from, "closed flag", |from| from.u64("closed").map(BlockNumber))?;
    let committed = option(&mut from, "committed flag", |from| from.u64("committed").map(BlockNumber))?;
    let root = BlockRoot::decode(&mut from)?;
    from.end("head")?;
    if committed > closed {
        return Err(DecodeError::new("committed", "is after the last closed block"));
    }
    Ok(Head { closed, committed, root })
}

pub fn put_block_root(batch: &mut WriteBatch, block: BlockNumber, root: &BlockRoot) {
    let mut row = Vec::with_capacity(96);
    root.encode(&mut row);
    batch.put(block_key(keyspace::BLOCK, block), row);
}

pub fn read_block_root(store: &dyn StoreRead, block: BlockNumber) -> Result<Option<BlockRoot>, Error> {
    let Some(row) = store.get(&block_key(keyspace::BLOCK, block))? else { return Ok(None) };
    let damaged = |error| Error::damaged(format!("the roots of block {block}"), error);
    decode_block_root(&row).map(Some).map_err(damaged)
}

pub fn decode_block_root(row: &[u8]) -> Result<BlockRoot, DecodeError> {
    let mut from = Reader::new(row);
    let root = BlockRoot::decode(&mut from)?;
    from.end("block root")?;
    Ok(root)
}

/// The block of a key of a block's roots.
pub fn block_of_key(key: &[u8]) -> Option<BlockNumber> {
    let (_, number) = key.split_first()?;
    Some(BlockNumber(u64::from_be_bytes(number.try_into().ok()?)))
}

/// Whether a key is that of a row that a database has.
pub fn is_known(key: &[u8]) -> bool {
    ["identity", "head"].iter().any(|name| meta_key(name) == key)
}

fn part_key(block: BlockNumber, part: u32) -> Vec<u8> {
    let mut key = block_key(keyspace::PENDING, block);
    key.extend_from_slice(&part.to_be_bytes());
    key
}

pub fn put_pending(batch: &mut WriteBatch, block: &PendingBlock) {
    for (part, bytes) in (0u32..).zip(block.encode().chunks(PART_BYTES)) {
        batch.put(part_key(block.number, part), bytes.to_vec());
    }
}

pub fn delete_pending(batch: &mut WriteBatch, block: &PendingBlock) {
    let parts = block.encoded_len().div_ceil(PART_BYTES) as u32;
    (0..parts).for_each(|part| batch.delete(part_key(block.number, part)));
}

/// The blocks that are closed and not committed, in order; exactly those that the head says.
pub fn read_pending(store: &dyn StoreRead, head: &Head) -> Result<Vec<PendingBlock>, Error> {
    let mut blocks: Vec<(BlockNumber, u32, Vec<u8>)> = Vec::new();
    let mut bad_key = None;
    store.scan(&[keyspace::PENDING], &mut |key, row| {
        let mut from = Reader::new(&key[1..]);
        let (Ok(number), Ok(part), 0) = (from.u64("block"), from.u32("part"), from.remaining()) else {
            bad_key = Some(format!("a pending block's key {key:02x?}"));
            return ControlFlow::Break(());
        };
        match blocks.last_mut() {
            Some((last, parts, bytes)) if last.0 == number && *parts == part => {
                bytes.extend_from_slice(row);
                *parts += 1;
            }
            _ if part == 0 => blocks.push((BlockNumber(number), 1, row.to_vec())),
            _ => {
                bad_key = Some(format!("part {part} of pending block {number}"));
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    })?;
    if let Some(what) = bad_key {
        return Err(Error::damaged(what, "it does not follow the one before"));
    }
    let first = match head.committed {
        Some(committed) => committed.0.saturating_add(1),
        None => blocks.first().map_or(0, |(number, ..)| number.0),
    };
    let expected = head
        .closed
        .filter(|_| head.closed != head.committed)
        .map_or(first..first, |closed| first..closed.0.saturating_add(1));
    if !blocks.iter().map(|(number, ..)| number.0).eq(expected.clone()) {
        let found: Vec<u64> = blocks.iter().map(|(number, ..)| number.0).collect();
        return Err(Error::damaged(
            "the list of pending blocks",
            format!("expected {expected:?}, found {found:?}"),
        ));
    }
    let decode = |(number, _, bytes): (BlockNumber, u32, Vec<u8>)| {
        PendingBlock::decode(number, &bytes)
            .map_err(|error| Error::damaged(format!("pending block {number}"), error))
    };
    blocks.into_iter().map(decode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taking_a_pending_block_away_leaves_none_of_its_parts() {
        let many =
            (0..500u64).fold(StateDiff::builder(), |diff, key| diff.storage(1.into(), key.into(), 7.into()));
        for (diff, facts) in [(StateDiff::default(), false), (many.build().unwrap(), true)] {
            let root = facts.then(|| StateCommitment::from(9));
            let version = facts.then(|| StarknetVersion::from_numbers([0, 13, 5, 0]));
            let block =
                PendingBlock { number: BlockNumber(3), version, old_root: root, new_root: None, diff };
            assert_eq!(block.encode().len(), block.encoded_len());
            let (mut put, mut deleted) = (WriteBatch::default(), WriteBatch::default());
            put_pending(&mut put, &block);
            delete_pending(&mut deleted, &block);
            assert!(put.iter().map(|(key, _)| key).eq(deleted.iter().map(|(key, _)| key)));
        }
    }
}
