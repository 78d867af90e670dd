//! Closing blocks: what a sequencer waits for, and what its reads feel of what goes on behind.
//!
//! `cargo bench -p flagstone-benches --bench close [-- [LEAVES]]` (default 10^6 leaves over 1 000 contracts, workload S):
//!
//! - **close**: blocks of 12 000 slots. One turn of each contender after another: `close_block` of a journaled database on
//!   the default store (flat), until it returns durable and visible, with all that is behind it done before the next turn; a batch of
//!   the same values into such a store of its own, synced; one append of the block's bytes to a file, and `fdatasync`.
//!   `back to back` is `close_block` of the next block at once, with commitments and batches going on behind.
//! - **root**: from `close_block` returning to the root, for 100, 1 000 and 10 000 slots.
//! - **read**: single reads of 2 000 slots that go round, and of absent ones, while nothing goes on, and while blocks of
//!   10 000 slots are committed and written.
//! - **disk**: bytes on disk a leaf for each layout, after 10^5 leaves in blocks of 1 000.

use std::fs::File;
use std::hint::black_box;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use flagstone::core::diff::StateDiff;
use flagstone::core::layout::Layout;
use flagstone::core::types::{ContractAddress, StorageKey};
use flagstone::database::STORES;
use flagstone::registry::LAYOUTS;
use flagstone::{Cadence, Engine, EngineConfig, StateUpdate, database, layout};
use flagstone_benches::store_in;
use flagstone_benches::workload_s::{ROOTS, WorkloadS};
use flagstone_flat::Flat;

const WRITES: usize = 12_000;
const TURNS: usize = 150;
const BACK_TO_BACK: usize = 30;

type Slot = (ContractAddress, StorageKey);

/// Sorted times of one thing.
struct Times(Vec<Duration>);

impl Times {
    fn new(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self(times)
    }

    fn at(&self, percent: usize) -> f64 {
        self.0[(self.0.len() * percent / 100).min(self.0.len() - 1)].as_secs_f64()
    }

    fn print(&self, name: &str, unit: (&str, f64), base: &Self) {
        let [median, high, most] = [50, 99, 100].map(|percent| self.at(percent) * unit.1);
        let ratio = |percent| base.at(percent) / self.at(percent);
        println!(
            "{name:<44} median {median:>9.2} {0}, p99 {high:>9.2} {0}, most {most:>9.2} {0}; x {1:>6.2} (p99 {2:.2})",
            unit.0,
            ratio(50),
            ratio(99)
        );
    }
}

fn timed(run: impl FnOnce()) -> Duration {
    let started = Instant::now();
    run();
    started.elapsed()
}

fn update(diff: StateDiff) -> StateUpdate {
    StateUpdate { starknet_version: "0.14.0".parse().ok(), ..StateUpdate::from(diff) }
}

#[expect(clippy::expect_used, reason = "a bench over a damaged state measures nothing")]
fn close(engine: &Engine, diff: &StateUpdate) {
    engine.close_block(diff).expect("blocks follow");
}

#[expect(clippy::expect_used, reason = "a bench over a damaged state measures nothing")]
fn settle(engine: &Engine) {
    engine.commit().expect("no root is stated");
    engine.sync().expect("the disk takes it");
}

#[expect(clippy::expect_used, reason = "a bench without a place for its database measures nothing")]
fn database(dir: &Path, name: &str) -> Engine {
    let layout = flagstone::registry::layout(name).expect("a layout of the registry");
    let config = EngineConfig::default().with_cadence(Cadence::EVERY_BLOCK);
    database::open_or_create(dir, Some(layout), None, config).expect("an empty directory takes a database")
}

fn closing(dir: &Path, engine: &Engine, workload: &mut WorkloadS) -> std::io::Result<()> {
    let store = store_in(&STORES[0], &dir.join("values"));
    let mut file = File::create(dir.join("appended"))?;
    let flat = Flat::new();
    let mut times: [Vec<Duration>; 4] = Default::default();
    for _ in 0..TURNS {
        let block = update(workload.block(WRITES));
        let mut bytes = Vec::new();
        block.diff.encode(&mut bytes);
        let batch = flat.stage_values(&block.diff);
        let [batched, closed, appended, _] = &mut times;
        batched.push(timed(|| drop(store.write(&batch).and_then(|()| store.sync()))));
        closed.push(timed(|| close(engine, &block)));
        settle(engine);
        appended.push(timed(|| drop(file.write_all(&bytes).and_then(|()| file.sync_data()))));
    }
    let blocks: Vec<StateUpdate> = (0..BACK_TO_BACK).map(|_| update(workload.block(WRITES))).collect();
    times[3] = blocks.iter().map(|block| timed(|| close(engine, block))).collect();
    settle(engine);
    let [batched, closed, appended, running] = times.map(Times::new);
    let unit = ("ms", 1e3);
    println!("\nclose, {WRITES} slots (x: how many times faster than the batch)");
    batched.print("a synced batch of the values", unit, &batched);
    closed.print("close_block", unit, &batched);
    running.print("close_block, back to back", unit, &batched);
    appended.print("append and fdatasync", unit, &batched);
    Ok(())
}

#[expect(clippy::expect_used, reason = "a bench over a damaged state measures nothing")]
fn roots(engine: &Engine, workload: &mut WorkloadS) {
    println!("\nroot, from close_block returning");
    for slots in [100, 1_000, 10_000] {
        let one = |_| {
            let block = update(workload.block(slots));
            let number = engine.close_block(&block).expect("blocks follow").number();
            let waited = timed(|| {
                engine.wait_for_root(number).expect("no root is stated");
            });
            settle(engine);
            waited
        };
        let times = Times::new((0..15).map(one).collect());
        times.print(&format!("{slots} slots"), ("ms", 1e3), &times);
    }
}

#[expect(clippy::expect_used, reason = "a bench over a damaged state measures nothing")]
fn reads(engine: &Engine, workload: &mut WorkloadS, slots: &[Slot]) {
    let read_while = |busy: &AtomicBool, at_least: usize| {
        let mut times = Vec::new();
        while busy.load(Ordering::Relaxed) || times.len() < at_least {
            let view = engine.view();
            for (address, key) in slots {
                times.push(timed(|| {
                    black_box(view.storage_at(address, key).expect("the view is recent"));
                }));
            }
        }
        Times::new(times)
    };
    let idle = read_while(&AtomicBool::new(false), 1_000_000);
    let blocks: Vec<StateUpdate> = (0..10).map(|_| update(workload.block(10_000))).collect();
    let busy = AtomicBool::new(true);
    let beside = std::thread::scope(|scope| {
        let reader = scope.spawn(|| read_while(&busy, 1));
        for block in &blocks {
            close(engine, block);
            settle(engine);
        }
        busy.store(false, Ordering::Relaxed);
        reader.join().expect("reads do not fail")
    });
    println!("\nread, {} slots going round, half of them absent (x: against nothing going on)", slots.len());
    idle.print("nothing goes on", ("ns", 1e9), &idle);
    beside.print("blocks of 10 000 slots are committed", ("ns", 1e9), &idle);
}

#[expect(clippy::expect_used, reason = "a bench without a place for its database measures nothing")]
fn disk(dir: &Path) {
    println!("\ndisk, bytes a leaf");
    let (leaves, contracts, ..) = ROOTS[0];
    for entry in LAYOUTS {
        let (mut workload, base) = WorkloadS::new(leaves, contracts);
        let place = dir.join(entry.name);
        let engine = database(&place, entry.name);
        base.into_iter().for_each(|diff| close(&engine, &update(diff)));
        (0..10).for_each(|_| close(&engine, &update(workload.block(1_000))));
        settle(&engine);
        drop(engine);
        let bytes = database::bytes_on_disk(&place).expect("the directory is there");
        println!("{:<44} {:>9.0}", entry.name, bytes as f64 / leaves as f64);
    }
}

fn slots(base: &[StateDiff]) -> Vec<Slot> {
    let contracts = base.iter().flat_map(StateDiff::contracts);
    let present =
        contracts.flat_map(|contract| contract.storage.iter().map(|(key, _)| (contract.address, *key)));
    let present: Vec<Slot> = present.step_by(97).take(1_000).collect();
    let absent = (0..1_000u64).map(|key| (ContractAddress::from(2), StorageKey::from(key)));
    present.into_iter().chain(absent).collect()
}

fn main() -> std::io::Result<()> {
    let leaves =
        std::env::args().filter_map(|argument| argument.parse().ok()).next_back().unwrap_or(1_000_000);
    let contracts = if leaves >= 1_000_000 { 1_000 } else { 200 };
    println!(
        "{leaves} leaves over {contracts} contracts, {} on {}",
        layout("flat").map_or("", |flat| flat.name),
        STORES[0].name
    );
    let dir = tempfile::tempdir()?;
    let (mut workload, base) = WorkloadS::new(leaves, contracts);
    let slots = slots(&base);
    let engine = database(&dir.path().join("flat"), "flat");
    for diff in base {
        close(&engine, &update(diff));
    }
    settle(&engine);
    closing(dir.path(), &engine, &mut workload)?;
    roots(&engine, &mut workload);
    reads(&engine, &mut workload, &slots);
    drop(engine);
    disk(&dir.path().join("disk"));
    Ok(())
}
