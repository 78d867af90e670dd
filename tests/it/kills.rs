//! A process that closes blocks is killed at any instant, again and again on the same database. After each: everything it
//! acknowledged is there, all roots are right, values and tries agree, and the next process goes on.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::time::Duration;

use flagstone::core::types::{BlockNumber, StateCommitment, StorageKey};
use flagstone::store::BATCH_ROWS_MAX;
use flagstone::{Cadence, Engine, EngineConfig, StateDiff, StateUpdate, database};

use crate::child;
use crate::support::{Place, check_tries, config, every, root_of};

/// Times a process is killed for each layout. By hand more: `FLAGSTONE_KILLS=1000 cargo test --test it kills::`.
const KILLS: u64 = 70;
const CONTRACTS: u64 = 5;
const KEYS: u64 = 97;
/// Keys of each contract that a large block sets: enough for it to be shown before its values are in place, and for sled to
/// get its rows in several batches.
const KEYS_OF_LARGE: u64 = 130;
const _: () = assert!(CONTRACTS * KEYS_OF_LARGE > BATCH_ROWS_MAX as u64);

fn mix(number: u64) -> u64 {
    let mixed = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 32
}

/// A block that is a function of its number: some slots set, some deleted, nonces, now and then a class or all slots.
fn block(number: u64) -> StateUpdate {
    let mut slots = BTreeMap::new();
    for slot in (number * 30..number * 30 + mix(number) % 60).map(mix) {
        let value = if slot % 5 == 0 { 0 } else { number + 1 };
        slots.insert((slot % CONTRACTS + 1, slot / 7 % KEYS), value);
    }
    slots.extend((0..CONTRACTS).map(|contract| ((contract + 1, KEYS + 1), number + contract)));
    if number % 11 == 3 {
        let all = (1..=CONTRACTS).flat_map(|contract| (0..KEYS_OF_LARGE).map(move |key| (contract, key)));
        slots.extend(all.map(|slot| (slot, number + slot.1)));
    }
    let nonce = StateDiff::builder().nonce((number % CONTRACTS + 1).into(), (number + 1).into());
    let diff = slots.into_iter().fold(nonce, |diff, ((contract, key), value)| {
        diff.storage(contract.into(), key.into(), value.into())
    });
    let diff =
        if number.is_multiple_of(9) { diff.class((number + 50).into(), (number + 60).into()) } else { diff };
    StateUpdate {
        block_number: Some(BlockNumber(number)),
        starknet_version: "0.14.0".parse().ok(),
        ..StateUpdate::from(diff.build().unwrap())
    }
}

fn settings(number: u64) -> EngineConfig {
    let cadence = [Cadence::EVERY_BLOCK, every(4), Cadence::AtClose, Cadence::OnRequest][number as usize % 4];
    config(cadence, 1).with_persist_every(8).with_history_blocks(4).with_pending_blocks_max(32)
}

/// Closes blocks and says so, until it is killed. Now and then it goes back three blocks.
pub fn child_close_forever(dir: &Path, argument: &str) {
    let (layout, round) = argument.split_once(' ').unwrap();
    let round: u64 = round.parse().unwrap();
    let layout = flagstone::layout(layout).unwrap();
    let engine = database::open_or_create(dir, Some(layout), None, settings(round)).unwrap();
    let mut next = engine.head().closed.map_or(0, |block| block.0 + 1);
    println!(">{next} opened");
    loop {
        engine.close_block(&block(next)).unwrap();
        println!(">{next} closed");
        next += 1;
        if round % 3 == 1 && next % 10 == 7 {
            println!(">{} reverting", next - 4);
            engine.revert_to(BlockNumber(next - 4)).unwrap();
            next -= 3;
            // Not back and forth over the same blocks for ever.
            for _ in 0..8 {
                engine.close_block(&block(next)).unwrap();
                println!(">{next} closed");
                next += 1;
            }
        }
    }
}

/// Starts a process, kills it after a while, and returns the last block that it acknowledged (and did not begin to take
/// back since).
fn killed(layout: &str, dir: &Path, round: u64) -> Option<u64> {
    let mut child = child::command(&format!("close-forever {layout} {round}"), dir).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut acknowledged = None;
    let mut note = |line: String| {
        if let Some((block, what)) = child::line(&line).as_deref().and_then(|line| line.split_once(' ')) {
            let block: u64 = block.parse().unwrap();
            acknowledged = if what == "opened" { block.checked_sub(1) } else { Some(block) };
        }
    };
    // A fifth are killed while they open.
    if round % 5 != 4 {
        lines.by_ref().take(4).map_while(Result::ok).for_each(&mut note);
    }
    std::thread::sleep(Duration::from_micros(mix(round * 7 + 1) % 40_000));
    child.kill().unwrap();
    child.wait().unwrap();
    lines.map_while(Result::ok).for_each(note);
    acknowledged
}

/// An undisturbed engine beside the killed ones: roots of all blocks.
struct Undisturbed {
    engine: Engine,
    roots: Vec<StateCommitment>,
}

impl Undisturbed {
    fn root(&mut self, number: u64) -> StateCommitment {
        while self.roots.len() as u64 <= number {
            self.roots.push(root_of(&self.engine, &block(self.roots.len() as u64)));
        }
        self.roots[number as usize]
    }
}

fn check(engine: &Engine, undisturbed: &mut Undisturbed, acknowledged: Option<u64>, what: &str) -> u64 {
    let closed = engine.head().closed.map(|block| block.0);
    assert!(closed >= acknowledged, "{what}: {acknowledged:?} was acknowledged, there is {closed:?}");
    engine.commit().unwrap_or_else(|error| panic!("{what}: {error}"));
    let Some(closed) = closed else { return 0 };
    let expected = undisturbed.root(closed);
    for number in closed.saturating_sub(40)..=closed {
        let root = engine.block_root(BlockNumber(number)).unwrap().map(|root| root.commitment);
        assert_eq!(root, Some(undisturbed.roots[number as usize]), "{what}: block {number}");
    }
    assert_eq!(engine.head().root.commitment, expected, "{what}");
    let keys: Vec<StorageKey> = (0..KEYS_OF_LARGE).map(StorageKey::from).collect();
    let slots: Vec<_> = (1..=CONTRACTS).map(|address| (address.into(), keys.clone())).collect();
    check_tries(engine, &slots, what);
    if closed % 16 == 0 {
        let report = engine.check(&|_| ()).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(report.is_sound(), "{what}: {:?}", report.findings);
    }
    closed + 1
}

#[track_caller]
fn survives_kills(layout: &'static str) {
    let kills = std::env::var("FLAGSTONE_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(KILLS);
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("db");
    let engine = Place::memory().open(layout, config(Cadence::AtClose, 1));
    let mut undisturbed = Undisturbed { engine, roots: Vec::new() };
    let mut blocks = 0;
    for round in 0..kills {
        let acknowledged = killed(layout, &dir, round);
        if acknowledged.is_none() && !dir.join("FLAGSTONE").exists() {
            continue;
        }
        let engine = database::open(&dir, None, settings(round + 1)).unwrap();
        let what = format!("{layout}, kill {round}");
        blocks = blocks.max(check(&engine, &mut undisturbed, acknowledged, &what));
    }
    assert!(blocks > kills, "{blocks} blocks in {kills} kills");
}

#[test]
fn flat_survives_kills_at_any_instant() {
    survives_kills("flat");
}

#[test]
fn patricia_by_path_survives_kills_at_any_instant() {
    survives_kills("patricia-path");
}

#[test]
fn patricia_by_hash_survives_kills_at_any_instant() {
    survives_kills("patricia-hash");
}
