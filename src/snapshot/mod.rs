//! Snapshots: a state at a block as one portable file.
//!
//! A dump holds values alone, sorted, and nothing of a layout or a store: whichever database a state is exported from,
//! the file is the same byte for byte. What it states (roots, storage roots) is a claim that an import checks and never
//! takes over. It is written and read from front to back, in bounded memory.
//!
//! Cairo 0 classes have no leaf and are no part of the state, and so of no dump.
//!
//! # Format, version 1
//!
//! All numbers are big-endian; roots, digest and keys are 32 bytes each. A dump is a header, chunks, and a footer, without
//! anything between or behind them.
//!
//! ```text
//! header   0        8        12      20                 52             84               116     120
//!          +--------+--------+-------+------------------+--------------+----------------+-------+
//!          | magic  | format | block | contracts root   | classes root | state          | crc32 |
//!          | 8 B    | u32    | u64   |                  |              | commitment     | u32   |
//!          +--------+--------+-------+------------------+--------------+----------------+-------+
//!
//! chunk    0        4        8            12               16      20
//!          +--------+--------+------------+----------------+-------+------------------+
//!          | "CHNK" | number | bytes      | bytes as       | crc32 | content,         |
//!          |        | from 0 | of content | compressed u32 | u32   | compressed       |
//!          +--------+--------+------------+----------------+-------+------------------+
//!
//! footer   0        4        8           16        24        32       64      68
//!          +--------+--------+-----------+---------+---------+--------+-------+
//!          | "DONE" | chunks | contracts | storage | classes | digest | crc32 |
//!          |        | u32    | u64       | entries | u64     |        | u32   |
//!          +--------+--------+-----------+---------+---------+--------+-------+
//! ```
//!
//! Header and footer end in the crc32 of the bytes before; a chunk's is that of the 16 bytes before it and of the
//! compressed content. The digest is the SHA-256 of the header and then of all contents, as they are before compression:
//! it says that a dump is whole and names its content, whatever compressed it. Contents are compressed one by one with
//! raw deflate, level 1. Which of the two ways of making one commitment of two roots applies is not stated: the three
//! together tell.
//!
//! # Content of a chunk
//!
//! At most 4096 items (contracts, storage entries, classes); all chunks but the last have so many. A *short felt* is one
//! byte for the number of bytes, then the felt without leading zero bytes. A *key* is one byte for the number of leading
//! bytes that it shares with the key before it in the same list (with 0 if there is none), then the others. There is one
//! way to write a content, and any other is refused.
//!
//! ```text
//! contracts u32 | contract ...                ascending by address
//! classes u32   | class ...                   ascending by class hash, behind all contracts of the state
//!
//! contract   flags | address key | class hash, nonce: short felts | entries u32 | entry ... | storage root: short felt
//!                                  if flags & 1: begins here                                  if flags & 2: ends here
//! entry      storage key | value short felt   ascending by key; no value is zero
//! class      class hash key | compiled class hash short felt
//! ```
//!
//! A contract whose entries do not fit goes on in the next chunk, which begins with it.

pub(crate) mod error;
mod export;
pub(crate) mod format;
pub(crate) mod read;
mod write;

pub use error::{SnapshotError, SnapshotErrorKind};
pub use export::{Exported, export};
pub use format::{CHUNK_ITEMS_MAX, Counts, Header};
pub use read::{Chunk, Claim, DumpReader, Position, Summary};
pub use write::DumpWriter;
