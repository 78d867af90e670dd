//! Key-value stores under the engine.
//!
//! A store is one ordered tree of rows behind the traits [`StoreRead`] and [`Store`]. It knows nothing of blocks,
//! tries or layouts, and it is never handed to a layout for writing.
//!
//! | Store | What for |
//! |---|---|
//! | [`MemoryStore`] | tests, and replays that keep nothing |
//! | [`SledStore`] | the embedded default: one directory, one process |
//!
//! The engine puts [`Sealed`] in front of whichever it opened, so that a row that is not what was written is noticed
//! whatever the store.

pub mod sealed;
pub mod sled;

pub use flagstone_core::store::{
    Capabilities, MemoryStore, Row, Store, StoreError, StoreErrorKind, StoreRead, Visit, WriteBatch, keyspace,
};

pub use self::sealed::{SEAL_BYTES, Sealed};
pub use self::sled::{BATCH_ROWS_MAX, KEY_BYTES_MAX, SledConfig, SledStore, VALUE_BYTES_MAX};
