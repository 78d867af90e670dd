//! A long load through the whole engine, flat on sled, values and tries: its peak memory.

use std::path::Path;
use std::time::Instant;

use flagstone::core::types::{BlockNumber, ContractAddress, StorageKey, TrieKey};
use flagstone::{EngineConfig, StateDiff, StateUpdate, database};

use crate::child;
use crate::store_sled::{next_random, with_peak_memory};

const MIB: u64 = 1 << 20;
const BLOCK_ENTRIES: u64 = 10_000;

/// Random entries, four in five of them under 200 contracts.
pub fn block(number: u64, random: &mut u64) -> StateUpdate {
    let mut builder = StateDiff::builder();
    for _ in 0..BLOCK_ENTRIES {
        let mut bytes = [0; 32];
        bytes.chunks_exact_mut(8).for_each(|chunk| chunk.copy_from_slice(&next_random(random).to_be_bytes()));
        bytes[0] &= 7;
        let draw = next_random(random);
        let contract = if draw % 5 < 4 { draw / 5 % 200 } else { 1000 + draw / 5 % 100_000 };
        let key = StorageKey::from(TrieKey::from_be(bytes).unwrap());
        builder = builder.storage(ContractAddress::from(contract), key, (draw | 1).into());
    }
    StateUpdate {
        block_number: Some(BlockNumber(number)),
        starknet_version: "0.13.5".parse().ok(),
        ..StateUpdate::from(builder.build().unwrap())
    }
}

/// The role of the child: loads, and prints its figures.
pub fn child_load(dir: &Path, entries: &str) {
    let entries: u64 = entries.parse().unwrap();
    let mut random = 42;
    let started = Instant::now();
    let (peak, bytes) = with_peak_memory(|| {
        let engine = database::open_or_create(dir, None, None, EngineConfig::default()).unwrap();
        for number in 0..entries / BLOCK_ENTRIES {
            engine.close_block(&block(number, &mut random)).unwrap();
        }
        engine.commit().unwrap();
        engine.sync().unwrap();
        drop(engine);
        database::bytes_on_disk(dir).unwrap()
    });
    let seconds = started.elapsed().as_secs_f64();
    println!(
        ">{} MiB; {entries} entries in {seconds:.1} s, {} bytes on disk an entry",
        peak / MIB,
        bytes / entries
    );
}

fn check_load_memory(entries: u64, peak_mib_max: u64) {
    let dir = tempfile::tempdir().unwrap();
    let lines = child::run(&format!("engine-load {entries}"), &dir.path().join("db"));
    println!("{}", lines[0]);
    let peak: u64 = lines[0].split(' ').next().unwrap().parse().unwrap();
    assert!(peak < peak_mib_max, "peak private memory {peak} MiB, bound {peak_mib_max} MiB");
}

#[test]
fn load_of_100_000_entries_through_the_engine_stays_below_384_mib() {
    check_load_memory(100_000, 384);
}

/// `cargo test --release --test it -- --ignored --nocapture load_of_2_000_000_entries_through`
#[test]
#[ignore = "takes minutes"]
fn load_of_2_000_000_entries_through_the_engine_stays_below_1_gib() {
    check_load_memory(2_000_000, 1024);
}
