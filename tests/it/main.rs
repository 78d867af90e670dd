//! Everything that is tested through the public interface, in one binary.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "all of it is test code, but clippy knows that only of functions marked so"
)]

mod candidates;
mod check;
mod child;
#[cfg(feature = "cli")]
mod cli;
#[cfg(feature = "cli")]
mod cli_check;
#[cfg(feature = "cli")]
mod cli_live;
#[cfg(all(feature = "cli", target_os = "linux"))]
mod cli_outputs;
#[cfg(feature = "cli")]
mod cli_proofs;
mod crash;
mod drops;
mod engine;
mod failures;
mod handles;
mod history;
mod kept;
mod kills;
mod lineage;
#[cfg(target_os = "linux")]
mod load;
#[cfg(target_os = "linux")]
mod moving;
mod outside;
mod proofs;
mod properties;
mod prune;
mod read_cache;
mod readers;
mod recover;
mod scrub;
#[cfg(all(feature = "blockifier", feature = "cli"))]
mod sequencer;
mod sim;
mod snapshot;
mod states;
mod store_conformance;
mod store_damage;
mod store_sled;
mod support;
mod threads;
mod tidy;
mod vectors;
mod witness;

/// As in the binary: what a load takes in memory is asked of it.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;
