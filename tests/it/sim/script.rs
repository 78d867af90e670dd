//! One run, cut or failed at each of its operations on the disk in turn.
//!
//! There are trimmed segments in it, a refused block, candidates, a revert, and syncs of the store: what journal and store do is on one
//! disk and counted together.

use flagstone::journal::faulty::{Class, Fault};
use flagstone::registry::LAYOUTS;
use flagstone::{Cadence, EngineConfig};

use super::draw::Draw;
use super::program::Op;
use super::world::{Pace, Setup, Stats, World};
use crate::support::every;

const SCRIPT: [Op; 26] = [
    Op::Close,
    Op::Close,
    Op::CloseWrong,
    Op::Propose,
    Op::Propose,
    Op::Decide,
    Op::Close,
    Op::Commit,
    Op::Close,
    Op::Close,
    Op::Revert,
    Op::Close,
    Op::Close,
    Op::Sync,
    Op::Propose,
    Op::Root,
    Op::Decide,
    Op::CloseWrong,
    Op::Close,
    Op::Commit,
    Op::Revert,
    Op::Prune,
    Op::Close,
    Op::Close,
    Op::Commit,
    Op::Sync,
];

/// The run with one fault, and to its end. Returns how many operations on the disk it took up to the fault, or in all.
fn run(index: u64, fault: Fault) -> (u64, Stats) {
    let cadence = [Cadence::EVERY_BLOCK, every(3), Cadence::AtClose][index as usize / LAYOUTS.len() % 3];
    let config = EngineConfig::default()
        .with_cadence(cadence)
        .with_threads(1)
        .with_persist_every(3)
        .with_journal_segment_bytes(300)
        .with_history_blocks(4)
        .with_recent_blocks_max(2)
        .with_scrub_rows_per_second(0);
    let layout = LAYOUTS[index as usize % LAYOUTS.len()].clone();
    let setup = Setup { layout, config, pace: Pace::Lockstep, anew: 30, faults: 0 };
    // The steps are the same, what a crash leaves is not.
    let mut world = World::with(setup, Draw::new(3));
    world.plan(Class::default(), fault);
    world.begin();
    for (at, op) in SCRIPT.into_iter().enumerate() {
        world.draw = Draw::new(at as u64 + if world.is_planned { 0 } else { index * 100 });
        world.step(op);
    }
    let operations = world.disk.operations();
    world.plan_nothing();
    world.step(Op::PowerCut);
    world.stats.segments_let_go += world.let_go();
    (operations, world.stats)
}

/// Runs it with a fault at each operation, or at each of so many. Says which one it was if that fails.
fn at_each(what: &str, of: usize, fault: fn(u64) -> Fault) {
    let mut stats = Stats::default();
    for index in 0..9 {
        let (operations, whole) = run(index, Fault::PowerCut(u64::MAX));
        assert!(operations > 150 && whole.segments_let_go > 3, "{operations} operations, {whole:?}");
        // Each operation with one layout and cadence, and all of these.
        for at in (index..operations).step_by(9 * of) {
            let failed = std::panic::catch_unwind(|| run(index, fault(at)));
            let (_, stats_of_run) =
                failed.unwrap_or_else(|_| panic!("setup {index}: {what} at operation {at}"));
            stats += stats_of_run;
        }
    }
    eprintln!("{what}: {stats}");
}

#[test]
fn a_power_cut_at_any_operation_of_journal_and_store_loses_nothing() {
    at_each("power cut", 1, Fault::PowerCut);
}

#[test]
fn a_failure_of_an_operation_of_journal_or_store_loses_nothing() {
    at_each("failure", 2, Fault::Fail);
}
