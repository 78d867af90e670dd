//! What never reached the store is taken back by dropping it: no commitment, no write, and the layout's cache stays.

use std::path::Path;
use std::sync::Arc;

use flagstone::core::types::BlockNumber;
use flagstone::engine::BlockHandle;
use flagstone::journal::faulty::FaultyFiles;
use flagstone::store::MemoryStore;
use flagstone::{Cadence, Engine, Error, StateDiff, StateUpdate};
use flagstone_testkit::reference::ReferenceState;
use flagstone_testkit::strategies::blocks;
use proptest::prelude::*;

use crate::support::{BeforeWrites, Gate, Place, config, layouts, root_of, settle};

/// Block `number`; `fork` tells blocks of one number apart.
fn update(number: u64, fork: u64) -> StateUpdate {
    let diff = (0..300u64).fold(StateDiff::builder().class(7.into(), 8.into()), |diff, slot| {
        let value = if (slot + number).is_multiple_of(5) { 0 } else { number * 1000 + fork * 100_000 + slot };
        diff.storage((slot % 3 + 1).into(), (slot * 31 + number % 2).into(), value.into())
    });
    StateUpdate { starknet_version: "0.14.0".parse().ok(), ..StateUpdate::from(diff.build().unwrap()) }
}

/// The state after blocks, and its root.
fn check(engine: &Engine, blocks: &[StateUpdate], what: &str) {
    let mut expected = ReferenceState::new();
    blocks.iter().for_each(|block| expected.apply(&block.diff));
    let rule = "0.14.0".parse::<flagstone::core::commitment::StarknetVersion>().unwrap().commitment_rule();
    let last = BlockNumber(blocks.len() as u64 - 1);
    assert_eq!(engine.wait_for_root(last).unwrap().commitment, expected.commitment(rule), "{what}");
    let view = engine.view();
    assert_eq!(view.block(), Some(last));
    for contract in blocks.iter().flat_map(|block| block.diff.contracts()) {
        for (key, _) in &contract.storage {
            let value = view.storage_at(&contract.address, key).unwrap();
            assert_eq!(value, expected.storage_at(&contract.address, key), "{what}");
        }
    }
}

fn is_taken_back(handle: &BlockHandle) -> bool {
    matches!(handle.persisted().wait(), Err(Error::TakenBack { .. }))
}

#[test]
fn blocks_that_are_committed_and_not_written_are_dropped_while_the_store_stands_still() {
    for (layout, _) in layouts() {
        let (gate, store, files) =
            (Arc::<Gate>::default(), Arc::new(MemoryStore::new()), Arc::new(FaultyFiles::new()));
        let config = config(Cadence::EVERY_BLOCK, 1).with_unwritten_batches_max(64);
        let open = || {
            let (inner, gate) = (Arc::clone(&store), Arc::clone(&gate));
            let store = Box::new(BeforeWrites { inner, before: move || gate.pass() });
            let make = flagstone::layout(layout).unwrap().make();
            Engine::open_journaled(store, make, config, Arc::clone(&files) as _, Path::new("/j")).unwrap()
        };
        let engine = open();
        let mut blocks: Vec<StateUpdate> = (0..9).map(|number| update(number, 0)).collect();
        // Each is a batch of its own.
        let close = |block: &StateUpdate| {
            let handle = engine.close_block(block).unwrap();
            handle.committed().wait().unwrap();
            handle
        };
        blocks[..3].iter().for_each(|block| drop(close(block)));
        settle(&engine);
        gate.set(true);
        // The first of them is at the gate from here on.
        let handles: Vec<BlockHandle> = blocks[3..].iter().map(close).collect();
        let (stale, hashes) = (engine.view(), engine.hashes());
        assert_eq!(
            engine.revert_to(BlockNumber(6)).unwrap(),
            handles[3].committed().wait().unwrap().unwrap()
        );
        assert_eq!((engine.hashes(), engine.head().committed), (hashes, Some(BlockNumber(6))));
        assert!(is_taken_back(&handles[4]) && is_taken_back(&handles[5]), "{layout}");
        assert!(matches!(stale.storage_at(&1.into(), &0.into()), Err(Error::ViewExpired { .. })));
        check(&engine, &blocks[..7], layout);
        assert!(engine.block_root(BlockNumber(7)).unwrap().is_none());

        blocks.truncate(5);
        engine.revert_to(BlockNumber(4)).unwrap();
        blocks.extend([update(5, 1), update(6, 1)]);
        let again: Vec<BlockHandle> = blocks[5..].iter().map(close).collect();
        check(&engine, &blocks, layout);
        gate.set(false);
        settle(&engine);
        assert!(again.iter().all(|handle| handle.persisted().wait().is_ok()));
        let report = engine.check(&|_| ()).unwrap();
        assert!(report.is_sound(), "{layout}: {:?}", report.findings);
        drop(engine);
        check(&open(), &blocks, layout);
    }
}

#[test]
fn blocks_that_are_not_committed_are_dropped_without_a_hash() {
    let engine = Place::memory().open("flat", config(Cadence::OnRequest, 1));
    let blocks: Vec<StateUpdate> = (0..6).map(|number| update(number, 0)).collect();
    let handles: Vec<BlockHandle> = blocks.iter().map(|block| engine.close_block(block).unwrap()).collect();
    engine.wait_for_root(BlockNumber(2)).unwrap();
    let hashes = engine.hashes();
    engine.revert_to(BlockNumber(2)).unwrap();
    assert_eq!(engine.hashes(), hashes);
    for handle in &handles[3..] {
        assert!(matches!(handle.committed().wait(), Err(Error::TakenBack { .. })));
    }
    check(&engine, &blocks[..3], "on request");
    // Its root is computed now, as the way back gives it.
    engine.close_block(&blocks[3]).unwrap();
    engine.close_block(&blocks[4]).unwrap();
    let root = engine.revert_to(BlockNumber(3)).unwrap();
    check(&engine, &blocks[..4], "on request, its root wanted");
    assert_eq!(engine.head().root, root);
}

/// What the state went back to may still be refused: then views of it expire, also of the state as it stood after going back.
#[test]
fn a_view_of_where_the_state_went_back_to_expires_with_a_block_that_is_refused() {
    let (gate, inner) = (Arc::<Gate>::default(), Arc::new(MemoryStore::new()));
    let config = config(Cadence::OnRequest, 1).with_unwritten_batches_max(1);
    let passed = Arc::clone(&gate);
    let store = Box::new(BeforeWrites { inner, before: move || passed.pass() });
    let make = flagstone::layout("flat").unwrap().make();
    let engine = Arc::new(Engine::open(store, make, config).unwrap());
    gate.set(true);
    engine.close_block(&update(0, 0)).unwrap();
    // No other block is committed while this one is at the gate.
    engine.commit().unwrap();
    engine.close_block(&StateUpdate { new_root: Some(0xbad.into()), ..update(1, 0) }).unwrap();
    engine.close_block(&update(2, 0)).unwrap();
    let reverting = Arc::clone(&engine);
    let reverting = std::thread::spawn(move || reverting.revert_to(BlockNumber(1)));
    while engine.view().block() != Some(BlockNumber(1)) {
        std::thread::yield_now();
    }
    let view = engine.view();
    let (address, key) = (1.into(), 1.into());
    view.storage_at(&address, &key).unwrap();
    gate.set(false);
    let refused = reverting.join().unwrap().unwrap_err();
    assert!(matches!(refused, Error::RootMismatch { block: BlockNumber(1), .. }), "{refused}");
    engine.commit().unwrap_err();
    let blocks = [update(0, 0), update(1, 1), update(2, 1)];
    blocks[1..].iter().for_each(|block| drop(engine.close_block(block).unwrap()));
    let read = view.storage_at(&address, &key);
    assert!(matches!(read, Err(Error::ViewExpired { .. })), "{read:?}");
    check(&engine, &blocks, "after a refusal");
}

/// t17 of the trials: a block of somebody else whose root is wrong costs the cache what it touched, and no more.
#[test]
fn a_block_that_is_refused_leaves_the_record_cache() {
    let wide = |number: u64, slots: u64| {
        let diff = (0..slots).fold(StateDiff::builder().class(7.into(), 8.into()), |diff, slot| {
            diff.storage(1.into(), (slot * 7).into(), (slot + number + 1).into())
        });
        StateUpdate { starknet_version: "0.14.0".parse().ok(), ..StateUpdate::from(diff.build().unwrap()) }
    };
    for cadence in [Cadence::AtClose, Cadence::EVERY_BLOCK] {
        let engine = Place::memory().open("flat", config(cadence, 1));
        root_of(&engine, &wide(0, 12_000));
        settle(&engine);
        let misses = || engine.record_cache_stats().unwrap().misses;
        let before = misses();
        let wrong = StateUpdate { new_root: Some(0xbad.into()), ..wide(1, 3) };
        let refused = engine.close_block(&wrong).and_then(|handle| handle.committed().wait());
        assert!(matches!(refused, Err(Error::RootMismatch { .. })), "{cadence:?}");
        // Told by the handle, so that nobody else is.
        root_of(&engine, &wide(2, 12_000));
        let missed = misses() - before;
        assert!(missed < 100, "{missed} records of a block of 12 000 slots were read again, {cadence:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn diffs_in_order_are_what_one_after_another_gives(diffs in blocks(0..9)) {
        let one_by_one = diffs.iter().fold(StateDiff::default(), |all, diff| all.then(diff));
        prop_assert_eq!(StateDiff::in_order(&diffs.iter().collect::<Vec<_>>()), one_by_one);
    }
}
