#![doc = include_str!("../README.md")]

pub mod database;
mod disk;
pub mod engine;
pub mod error;
pub mod input;
pub mod journal;
mod lock;
pub mod registry;
#[cfg(feature = "blockifier")]
pub mod sequencer;
mod setters;
pub mod snapshot;
pub mod store;
mod threads;
pub mod wire;

pub use engine::{Cadence, Engine, EngineConfig, View};
pub use error::{Error, ErrorKind};
/// The contract between the engine and its layouts.
pub use flagstone_core as core;
pub use flagstone_core::diff::StateDiff;
pub use flagstone_core::felt::Felt;
pub use flagstone_core::update::StateUpdate;
pub use registry::layout;
