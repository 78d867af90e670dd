//! Random sequences of blocks through the engine, with reopenings in between: roots and reads are the reference's.

use flagstone::core::types::{BlockNumber, StateCommitment};
use flagstone::{Cadence, Engine, EngineConfig, StateDiff, StateUpdate, View};
use flagstone_testkit::reference::ReferenceState;
use flagstone_testkit::strategies::blocks;
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};

use crate::support::{Place, config, every, layouts};

/// What happens between two blocks.
#[derive(Debug, Clone, Copy)]
enum Between {
    Nothing,
    Reopen,
    Commit,
}

fn steps() -> impl Strategy<Value = Vec<(StateDiff, Between)>> {
    let between =
        prop_oneof![4 => Just(Between::Nothing), 1 => Just(Between::Reopen), 1 => Just(Between::Commit)];
    (blocks(1..9), prop::collection::vec(between, 9))
        .prop_map(|(diffs, between)| diffs.into_iter().zip(between).collect())
}

/// A block of a version in which both commitment rules occur over a run.
fn update(number: usize, diff: &StateDiff) -> StateUpdate {
    let version = if number < 4 { "0.13.5" } else { "0.14.0" };
    StateUpdate {
        block_number: Some(BlockNumber(number as u64)),
        starknet_version: version.parse().ok(),
        ..StateUpdate::from(diff.clone())
    }
}

fn check_view(view: &View, expected: &ReferenceState, diffs: &[StateDiff]) {
    for contract in diffs.iter().flat_map(StateDiff::contracts) {
        let address = &contract.address;
        for (key, _) in &contract.storage {
            assert_eq!(view.storage_at(address, key).unwrap(), expected.storage_at(address, key));
        }
        assert_eq!(view.nonce_at(address).unwrap(), expected.nonce_at(address));
        assert_eq!(view.class_hash_at(address).unwrap(), expected.class_hash_at(address));
    }
    for class in diffs.iter().flat_map(StateDiff::classes) {
        let compiled = view.compiled_class_hash_at(&class.class_hash).unwrap();
        assert_eq!(compiled, expected.compiled_class_hash_at(&class.class_hash));
    }
}

fn run(place: &Place, layout: &str, config: EngineConfig, steps: &[(StateDiff, Between)]) {
    let diffs: Vec<StateDiff> = steps.iter().map(|(diff, _)| diff.clone()).collect();
    let mut engine: Option<Engine> = Some(place.open(layout, config));
    let mut reference = ReferenceState::new();
    let mut expected: Vec<StateCommitment> = Vec::new();
    for (number, (diff, between)) in steps.iter().enumerate() {
        let update = update(number, diff);
        engine.as_ref().unwrap().close_block(&update).unwrap();
        reference.apply(diff);
        expected.push(reference.commitment(update.starknet_version.unwrap().commitment_rule()));
        match between {
            Between::Nothing => {}
            Between::Commit => drop(engine.as_ref().unwrap().commit().unwrap()),
            Between::Reopen => {
                drop(engine.take());
                engine = Some(place.open(layout, config));
            }
        }
        check_view(&engine.as_ref().unwrap().view(), &reference, &diffs);
    }
    let engine = engine.unwrap();
    engine.commit().unwrap();
    for (number, root) in (0u64..).zip(&expected) {
        let stored = engine.block_root(BlockNumber(number)).unwrap().unwrap();
        assert_eq!(stored.commitment, *root, "block {number}: {layout} on {}, {config:?}", place.name());
    }
    check_view(&engine.view(), &reference, &diffs);
}

fn for_random_steps(cases: u32, property: impl Fn(&[(StateDiff, Between)])) {
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    // The same cases on every run; a failure prints the shrunk steps.
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    runner
        .run(&steps(), |steps| {
            property(&steps);
            Ok(())
        })
        .unwrap();
}

#[test]
fn random_blocks_give_the_references_roots_and_reads_in_memory() {
    for_random_steps(24, |steps| {
        for (layout, _) in layouts() {
            for cadence in [Cadence::EVERY_BLOCK, every(3), Cadence::OnRequest] {
                run(&Place::memory(), layout, config(cadence, 1), steps);
            }
        }
    });
}

#[test]
fn random_blocks_are_read_as_the_reference_says_whatever_the_caches() {
    for_random_steps(12, |steps| {
        for (layout, _) in layouts() {
            for cadence in [Cadence::EVERY_BLOCK, every(3), Cadence::OnRequest] {
                for bytes in [0, 2_000, 20_000] {
                    let config = config(cadence, 1);
                    let config = config.with_read_cache_bytes(bytes).with_record_cache_bytes(Some(bytes));
                    run(&Place::memory(), layout, config, steps);
                }
            }
        }
    });
}

#[test]
fn random_blocks_give_the_references_roots_and_reads_on_sled() {
    for_random_steps(4, |steps| {
        for (layout, _) in layouts() {
            for cadence in [Cadence::EVERY_BLOCK, every(3)] {
                run(&Place::directory(), layout, config(cadence, 1), steps);
            }
        }
    });
}
