//! Rows by generation: the store, what is committed over it and not written yet, and what was overwritten and is still read.

mod base;
#[cfg(test)]
mod lending;
mod readers;

pub use base::{Base, Held, Layer, Layered, Rows, require_atomic_batches};
pub use readers::Bounds;
