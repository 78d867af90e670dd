//! Key-value stores under the engine.
//!
//! A store is one ordered tree of rows behind the traits [`StoreRead`] and [`Store`]. It knows nothing of blocks,
//! tries or layouts, and it is never handed to a layout for writing.
//!
//! | Store | What for |
//! |---|---|
//! | [`MemoryStore`] | tests, and replays that keep nothing |
//! | [`FjallStore`] | the embedded default: a log-structured merge tree in a directory, for one process |
//! | [`SledStore`] | an embedded tree in a directory, for one process; a power cut can end it |
//!
//! The engine puts [`Sealed`] in front of whichever it opened, so that a row that is not what was written is noticed
//! whatever the store.

pub mod fjall;
mod foreign;
pub mod sealed;
pub mod sled;

pub use flagstone_core::store::{
    Capabilities, MemoryStore, Row, Store, StoreError, StoreErrorKind, StoreRead, Visit, WriteBatch, keyspace,
};

pub use self::fjall::{FjallConfig, FjallStore};
pub use self::foreign::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
pub use self::sealed::{SEAL_BYTES, Sealed};
pub use self::sled::{BATCH_ROWS_MAX, SledConfig, SledStore};
