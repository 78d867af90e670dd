//! Compiled classes: kept by class hash, with both of their compiled class hashes, and served ready to run.
//!
//! [`ClassStore`] is what a sequencer that has a class manager of its own implements. [`EngineClasses`] is ours: one
//! [`blob`] a class in the engine's database. [`ReadyClasses`] puts a bounded cache of ready-to-run classes in front of either.
//!
//! A store is given the classes of a block before the block closes, and says what is to be written with the block, as one
//! unit: that is how ours keeps them. One that keeps them elsewhere may keep a class whose block was then not closed, which
//! does no harm if it is a Sierra class: a [`ViewReader`](super::ViewReader) asks the view whether a class is declared. Of a
//! Cairo 0 class the state does not say so; there the [`Producer`](super::Producer) writes it down beside the block
//! ([`cairo_0`]), and of a class that it did not write down, the store's word has to do.

pub mod blob;
mod cache;
pub mod cairo_0;
mod class;
mod error;
mod store;
mod stored;

pub use cache::ReadyClasses;
pub use class::{CompiledClassHashes, DeclaredClass, ReadyClass};
pub use error::ClassError;
pub use store::ClassStore;
pub use stored::{EngineClasses, blob_key};
