//! Old roots are pruned, and rows that nobody needs go; what is kept stays whole.

use std::path::Path;
use std::sync::Arc;

use flagstone::core::types::{BlockNumber, ContractAddress};
use flagstone::journal::faulty::FaultyFiles;
use flagstone::store::{MemoryStore, StoreRead};
use flagstone::{Cadence, Engine, Error, ErrorKind, StateDiff, StateUpdate};
use flagstone_testkit::reference::ReferenceState;
use flagstone_testkit::strategies::blocks;
use proptest::prelude::*;

use crate::support::{Place, config, layouts, settle};

fn update(diff: &StateDiff) -> StateUpdate {
    StateUpdate { starknet_version: "0.14.0".parse().ok(), ..StateUpdate::from(diff.clone()) }
}

/// How many rows the layout has.
fn layout_rows(store: &MemoryStore) -> usize {
    let mut rows = 0;
    store
        .scan(&[], &mut |key, _| {
            rows += usize::from(key[0] >= 0x10);
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    rows
}

fn by_hash(store: &Arc<MemoryStore>, history_blocks: usize) -> Engine {
    let config = config(Cadence::EVERY_BLOCK, 1).with_history_blocks(history_blocks);
    let make = flagstone::layout("patricia-hash").unwrap().make();
    Engine::open(Box::new(Arc::clone(store)), make, config).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// After pruning there are the rows of the kept states, no other, and each of these states can be read whole.
    #[test]
    fn what_is_left_is_what_the_kept_states_need(
        first in blocks(1..6), dropped in blocks(0..4), last in blocks(1..6), keep in 1..4u64,
    ) {
        let store = Arc::new(MemoryStore::new());
        let engine = by_hash(&store, 4);
        let close = |diffs: &[StateDiff]| diffs.iter().for_each(|diff| drop(engine.close_block(&update(diff)).unwrap()));
        close(&first);
        settle(&engine);
        close(&dropped);
        settle(&engine);
        engine.revert_to(BlockNumber(first.len() as u64 - 1)).unwrap();
        close(&last);
        settle(&engine);
        let told = engine.prune(Some(keep), true).unwrap();
        let before = layout_rows(&store);
        let pruned = engine.prune(Some(keep), false).unwrap();
        prop_assert_eq!(pruned, told);
        let gone = (pruned.rows_of_roots + pruned.rows_of_none) as usize;
        prop_assert_eq!((layout_rows(&store), pruned.rows_needed as usize), (before - gone, before - gone));
        prop_assert_eq!(engine.prune(None, true).unwrap().rows_of_none, 0);
        let report = engine.check(&|_| ()).unwrap();
        prop_assert!(report.is_sound(), "{:?}", report.findings);

        let all: Vec<&StateDiff> = first.iter().chain(&last).collect();
        let mut state = ReferenceState::new();
        for (number, diff) in all.iter().enumerate() {
            state.apply(diff);
            let number = BlockNumber(number as u64);
            let tries = engine.at_commitment(Some(number), |_, _, root| Ok(root.roots));
            match Some(number) >= pruned.oldest {
                true => prop_assert_eq!(tries.unwrap(), state.roots()),
                false => prop_assert!(matches!(tries, Err(Error::HistoryGone { .. })), "it is pruned"),
            }
        }
        // Nothing but the last state is needed once nothing can be gone back to.
        drop(engine);
        let engine = by_hash(&store, 0);
        engine.close_block(&update(&StateDiff::default())).unwrap();
        settle(&engine);
        engine.prune(Some(1), false).unwrap();
        let fresh = Arc::new(MemoryStore::new());
        let alone = by_hash(&fresh, 0);
        alone.close_block(&update(&StateDiff::in_order(&all))).unwrap();
        settle(&alone);
        prop_assert_eq!(layout_rows(&store), layout_rows(&fresh));
    }
}

/// Values can be chosen so that a node of a storage trie is a node of the contracts trie, with other rows below it.
#[test]
fn a_storage_trie_that_looks_like_the_contracts_trie_hides_no_leaf() {
    let (victim, liar) = (ContractAddress::from(3), ContractAddress::from(3 + (1 << 10)));
    let store = Arc::new(MemoryStore::new());
    let engine = by_hash(&store, 0);
    let close = |diff: StateDiff| {
        engine.close_block(&update(&diff)).unwrap();
        settle(&engine);
    };
    close(StateDiff::builder().nonce(victim, 7.into()).build().unwrap());
    let leaf = engine.at_commitment(None, |tries, _, root| {
        let contracts = flagstone::core::trie::TrieId::Contracts;
        Ok(flagstone::core::trie::lookup(tries, contracts, root.roots.contracts.0, victim.trie_key())?)
    });
    // Both tries fork at the same bit, and have the same edge to the same leaf on one side.
    let slots = StateDiff::builder().storage(liar, 3.into(), leaf.unwrap().into());
    let diff = slots.storage(liar, (3 + (1 << 10)).into(), 1.into());
    close(diff.build().unwrap());
    engine.prune(Some(1), false).unwrap();
    assert!(engine.check(&|_| ()).unwrap().is_sound());
    drop(engine);
    assert_eq!(by_hash(&store, 0).view().nonce_at(&victim).unwrap(), 7.into());
}

#[test]
fn pruned_roots_stay_gone_after_a_crash_and_views_of_them_expire() {
    for (layout, _) in layouts() {
        let (store, files) = (Arc::new(MemoryStore::new()), Arc::new(FaultyFiles::new()));
        let open = |files: &Arc<FaultyFiles>| {
            let (make, files) = (flagstone::layout(layout).unwrap().make(), Arc::clone(files));
            let config = config(Cadence::EVERY_BLOCK, 1).with_history_blocks(2).with_recent_blocks_max(1);
            Engine::open_journaled(Box::new(Arc::clone(&store)), make, config, files, Path::new("/j"))
                .unwrap()
        };
        let engine = open(&files);
        for number in 0..10u64 {
            let diff = StateDiff::builder().storage(1.into(), (number % 3).into(), (number + 1).into());
            engine.close_block(&update(&diff.build().unwrap())).unwrap();
            settle(&engine);
        }
        let kept = engine.view_at(BlockNumber(2));
        let pruned = engine.prune(Some(1), false).unwrap();
        assert_eq!(
            (pruned.roots, pruned.oldest),
            (7, Some(BlockNumber(7))),
            "{layout}: two blocks can be taken back"
        );
        if let Ok(kept) = kept {
            assert_eq!(
                kept.storage_at(&1.into(), &0.into()).unwrap_err().kind(),
                ErrorKind::Expired,
                "{layout}"
            );
        }
        let as_killed = Arc::new(files.fork());
        drop(engine);
        let engine = open(&as_killed);
        assert!(!engine.opened().orderly);
        let root = |block| engine.block_root(BlockNumber(block)).unwrap();
        assert!(root(6).is_none() && root(7).is_some(), "{layout}");
        assert!(engine.check(&|_| ()).unwrap().is_sound());
        engine.revert_to(BlockNumber(7)).unwrap();
    }
}

#[test]
fn pruning_a_database_in_a_directory_frees_rows() {
    for place in Place::all() {
        let engine = place.open("patricia-hash", config(Cadence::EVERY_BLOCK, 1).with_history_blocks(0));
        for number in 0..6u64 {
            let diff = (0..40u64).fold(StateDiff::builder(), |diff, key| {
                diff.storage(1.into(), key.into(), (number * 1000 + key + 1).into())
            });
            engine.close_block(&update(&diff.build().unwrap())).unwrap();
        }
        settle(&engine);
        let pruned = engine.prune(Some(2), false).unwrap();
        assert_eq!((pruned.roots, pruned.oldest, pruned.rows_of_none), (4, Some(BlockNumber(4)), 0));
        assert!(pruned.rows_of_roots > 4 * 40 && pruned.bytes > 0, "{pruned:?}");
    }
}
