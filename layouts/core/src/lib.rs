//! The contract of flagstone: what the engine and its layouts agree on.
//!
//! Types, the state diff, hashing, the algorithm over tries, and the traits [`layout::Layout`] and [`store::Store`].
//! No input or output happens here, and nothing here knows a particular layout or store beyond the one in memory.
//!
//! In reading order: [`types`] and [`diff`] are the words, [`commitment`] the rules for roots, [`trie`] the
//! algorithm, [`commit`] puts them together for a block, [`layout`] and [`store`] are the seams. [`proof`] and [`witness`]
//! are what somebody without a store can check, [`audit`] and [`compare`] look at whole states, [`scrub`] at value rows.

pub mod audit;
pub mod codec;
pub mod commit;
pub mod commitment;
pub mod compare;
pub mod diff;
pub mod error;
pub mod felt;
pub mod hash;
pub mod layout;
mod outcome;
pub mod proof;
pub mod scrub;
pub mod store;
pub mod trie;
pub mod types;
pub mod update;
pub mod witness;

pub use felt::Felt;
