//! StarkWare's executor on this state: what a sequencer links. Only with the feature `blockifier`.
//!
//! ```text
//! transactions ─▶ executor (blockifier) ─reads─▶ ViewReader ─▶ View, classes
//!                    │ state diff                                ▲
//!                    ▼                                           │
//!                 Producer ──close──▶ Engine (durable, visible) ─┘   the next block executes
//!                                       └──▶ root, while it does
//! ```
//!
//! [`ViewReader`] is the executor's view of a block; [`Producer`] executes a block on it, closes the block, and says its
//! root once that is known; [`ClassStore`] keeps compiled classes; [`hints`] says early what an execution will read.
//! [`workload`] makes transactions to try all this with, and [`run`] is the loop around them: `flagstone sequence`.
//!
//! This module alone names the executor's crates (`blockifier`, `starknet_api`), and it is the exception to the rule that no
//! dependency's type is in the public interface: handing over the executor's own types is what it is for.
//!
//! A read that fails makes the block fail. The executor takes a failed read for a fault of the transaction, so a
//! [`ViewReader`] remembers the first failure, and [`Producer::execute`] asks it.
#![doc = include_str!("example.md")]

pub mod classes;
mod convert;
mod error;
pub mod hints;
mod producer;
mod reader;
pub mod run;
pub mod workload;

pub use classes::{ClassStore, CompiledClassHashes, DeclaredClass, ReadyClass};
pub use convert::{state_diff, to_executor};
pub use error::SequencerError;
pub use producer::{BlockInput, Closed, Executed, Producer, ProducerConfig};
pub use reader::{ReadCounts, ViewReader};
