//! The simulator: one seed is one world, in which a database on a faulty disk is asked and ended in every way that there is, and is
//! held against plain maps after each step.
//!
//! ```text
//! FLAGSTONE_SIM_SEED=7 cargo test --test it -- sim::worlds --nocapture         that world once more, with its last steps
//! FLAGSTONE_SIM_SECONDS=60 cargo test --test it -- sim::worlds --nocapture     other worlds than ever before, for a minute
//! ```
//!
//! The journal and the store are on one disk (`FaultyFiles`), which loses, tears and rots; the store is a small log (`store.rs`) that
//! really loses what it did not sync. `program.rs` has the steps, `auditor.rs` and `damage.rs` what must come of them, `world.rs` how a
//! database is opened and ended, `model.rs` what is right.
//!
//! What a seed decides: layout, settings, steps, faults, what a power cut leaves. What varies with the threads of the engine is at which
//! of its operations a counted fault meets it, as far as several threads use the disk at once; worlds whose pace is `Free` do not even
//! wait for them. Ids and salts are drawn anew each time. So what is asserted holds for all of that, and a seed that fails rarely is
//! run several times.

mod auditor;
mod damage;
mod draw;
mod found;
mod model;
mod program;
mod script;
mod store;
mod world;

use std::panic::AssertUnwindSafe;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use world::{Stats, World};

/// Worlds of every layout and pace, and of most cadences. (What was found is kept in `found.rs`: a change of the program makes another
/// world of a seed.)
const KEPT: [u64; 10] = [2, 4, 5, 7, 8, 12, 13, 17, 19, 20];
/// Worlds that nobody has seen before, in each run of the tests.
const FRESH: u64 = 6;
const STEPS: usize = 250;
/// A world takes a second or two; after so long, somebody waits for ever.
const PATIENCE: Duration = Duration::from_secs(240);

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn play(world: &mut World) {
    world.begin();
    let weights = world.draw_weights();
    for _ in 0..STEPS {
        let op = world.choose(&weights);
        world.step(op);
    }
    world.step(program::Op::Commit);
    if world.is_planned {
        world.plan_nothing();
    }
    world.stats.segments_let_go += world.let_go();
    world.step(program::Op::Reopen);
}

/// Runs the world of a seed. Says how to run it once more if it fails.
fn run(seed: u64) -> Stats {
    let (done, ended) = channel();
    let thread = std::thread::Builder::new().name(format!("world-{seed}")).spawn(move || {
        let mut world = World::new(seed);
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| play(&mut world)));
        if outcome.is_err() || variable("FLAGSTONE_SIM_SEED").is_some() {
            let setup = (&world.setup.layout.name, &world.setup.pace, &world.setup.config);
            eprintln!("world {seed}: {setup:?}");
            world.trace.iter().for_each(|step| eprintln!("  {step}"));
        }
        let stats = world.stats;
        let failed = outcome.is_err();
        if failed {
            // It may wait for what never comes.
            std::mem::forget(world);
        }
        let _ = done.send((stats, failed));
    });
    let again = format!("FLAGSTONE_SIM_SEED={seed} cargo test --test it -- sim::worlds --nocapture");
    match ended.recv_timeout(PATIENCE) {
        Ok((stats, false)) => {
            thread.unwrap().join().unwrap();
            stats
        }
        Ok((_, true)) => panic!("world {seed} failed; once more: {again}"),
        Err(_) => panic!("world {seed} does not end; once more: {again}"),
    }
}

#[test]
fn worlds_are_what_plain_maps_say() {
    let mut stats = Stats::default();
    if let Some(seed) = variable("FLAGSTONE_SIM_SEED") {
        stats += run(seed);
        eprintln!("world {seed}: {stats}");
        return;
    }
    let first = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    if let Some(seconds) = variable("FLAGSTONE_SIM_SECONDS") {
        let until = Instant::now() + Duration::from_secs(seconds);
        for seed in (first..).take_while(|_| Instant::now() < until) {
            stats += run(seed);
        }
        eprintln!("seeds {first} to {}: {stats}", first + stats.worlds - 1);
        return;
    }
    KEPT.into_iter().chain(first..first + FRESH).for_each(|seed| stats += run(seed));
    eprintln!("{stats}");
}
