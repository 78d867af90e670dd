//! Candidates: blocks that are executed and not decided, several on one parent, one on top of the other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use flagstone::core::diff::Subject;
use flagstone::core::felt::Felt;
use flagstone::core::hash::Bulk;
use flagstone::core::types::{BlockNumber, StateCommitment, StateId};
use flagstone::engine::{Blob, Candidate, CandidateStats, NewBlock};
use flagstone::store::MemoryStore;
use flagstone::{Cadence, Engine, Error, ErrorKind, StateDiff, StateUpdate};

use crate::support::{CADENCES, Counting, Place, config, layouts, settle};

pub fn update(values: &[(u64, u64)]) -> StateUpdate {
    let values: BTreeMap<u64, u64> = values.iter().copied().collect();
    let diff =
        values.into_iter().fold(StateDiff::builder().class(7.into(), 8.into()), |diff, (key, value)| {
            diff.storage((key % 3 + 1).into(), key.into(), value.into())
        });
    StateUpdate { starknet_version: "0.14.0".parse().ok(), ..StateUpdate::from(diff.build().unwrap()) }
}

pub fn slot(key: u64) -> Subject {
    Subject::Storage((key % 3 + 1).into(), key.into())
}

pub fn is_gone(error: &Error) -> bool {
    matches!(error, Error::WrongState { .. } | Error::CandidateGone { .. })
}

#[test]
fn a_candidate_is_read_rooted_and_decided_and_its_siblings_go() {
    for (layout, _) in layouts() {
        for cadence in CADENCES {
            let engine = Place::memory().open(layout, config(cadence, 1));
            engine.close_block(&update(&[(1, 1), (2, 2)])).unwrap();
            let tip = engine.view();
            let [a, b] = [10, 20].map(|value| engine.propose(tip.state(), &update(&[(1, value)])).unwrap());
            let on_a = engine.propose(a.state(), &update(&[(2, 11)])).unwrap();
            let read = |candidate: &Candidate| [1, 2].map(|key| candidate.view().value(&slot(key)).unwrap());
            assert_eq!(
                [read(&a), read(&b), read(&on_a)],
                [[10, 2], [20, 2], [10, 11]].map(|values| values.map(Felt::from))
            );
            assert_eq!(tip.value(&slot(1)).unwrap(), 1.into(), "nobody else sees them");
            assert_eq!((on_a.number(), on_a.parent()), (BlockNumber(2), a.state()));
            // The roots are those of the same blocks closed elsewhere.
            let elsewhere = Place::memory().open(layout, config(Cadence::AtClose, 1));
            let known = [&update(&[(1, 1), (2, 2)]), &update(&[(1, 10)]), &update(&[(2, 11)])]
                .map(|update| crate::support::root_of(&elsewhere, update));
            assert_eq!(on_a.root().unwrap().commitment, known[2], "{layout}, {cadence:?}");
            assert_eq!(a.root().unwrap().commitment, known[1]);
            assert_ne!(b.root().unwrap().commitment, known[1]);

            assert!(is_gone(&engine.decide(&on_a).unwrap_err()), "its parent is not decided yet");
            let decided = engine.decide(&a).unwrap();
            assert_eq!((decided.number(), decided.state()), (BlockNumber(1), a.state()));
            assert_eq!(engine.view().state(), a.state());
            assert_eq!(decided.committed().wait().unwrap().unwrap().commitment, known[1]);
            assert!(!b.is_alive() && on_a.is_alive());
            assert_eq!(b.view().value(&slot(1)).unwrap_err().kind(), ErrorKind::Expired);
            assert!(is_gone(&engine.decide(&b).unwrap_err()));
            assert!(is_gone(&engine.propose(b.state(), &update(&[(1, 1)])).unwrap_err()));
            assert_eq!(b.root().unwrap_err().kind(), ErrorKind::Expired);
            assert_eq!(read(&on_a), [10.into(), 11.into()]);
            let decided = engine.decide(&on_a).unwrap();
            assert_eq!(decided.committed().wait().unwrap().unwrap().commitment, known[2]);
            assert!(is_gone(&engine.decide(&a).unwrap_err()), "it is decided already");
            settle(&engine);
            assert_eq!(engine.view().value(&slot(2)).unwrap(), 11.into());
            assert_eq!(a.view().value(&slot(1)).unwrap(), 10.into(), "a decided one is viewed as any block");
            drop((a, b, on_a));
            assert_eq!(engine.candidate_stats(), CandidateStats::default());
        }
    }
}

#[test]
fn dropping_leaves_nothing_and_bounds_are_typed_errors() {
    let config = config(Cadence::AtClose, 1).with_candidates_max(3).with_candidate_bytes_max(100_000);
    let engine = Place::memory().open("flat", config);
    engine.close_block(&update(&[(1, 1)])).unwrap();
    let tip = engine.view().state();
    let propose = |on: StateId, values: &[(u64, u64)]| engine.propose(on, &update(values));
    let lowest = propose(tip, &[(1, 2)]).unwrap();
    let top = propose(lowest.state(), &[(1, 3)]).unwrap();
    let state = lowest.state();
    drop(lowest);
    assert_eq!(engine.candidate_stats().count, 2, "one on top keeps it");
    let beside = propose(state, &[(1, 4)]).unwrap();
    let error = propose(tip, &[(1, 5)]).unwrap_err();
    assert!(matches!(error, Error::TooManyCandidates { count: 3, count_max: 3, .. }), "{error}");
    drop(top);
    let long: Vec<(u64, u64)> = (0..2000).map(|key| (key, 1)).collect();
    let error = propose(tip, &long).unwrap_err();
    assert!(matches!(error, Error::TooManyCandidates { count: 2, bytes_max: 100_000, .. }), "{error}");
    drop(beside);
    assert_eq!(engine.candidate_stats(), CandidateStats::default());
    assert!(is_gone(&propose(state, &[(1, 4)]).unwrap_err()));
    let head = engine.head();
    engine.close_block(&update(&[(1, 9)])).unwrap();
    assert_eq!(engine.head().closed, head.closed.unwrap().next());
}

#[test]
fn a_candidate_that_states_a_wrong_root_is_not_decided_and_harms_nothing() {
    for (layout, _) in layouts() {
        let engine = Place::memory().open(layout, config(Cadence::EVERY_BLOCK, 1));
        engine.close_block(&update(&[(1, 1)])).unwrap();
        let tip = engine.view().state();
        let wrong = StateUpdate { new_root: Some(StateCommitment::from(0xbad)), ..update(&[(1, 2)]) };
        let wrong = engine.propose(tip, &wrong).unwrap();
        assert!(matches!(wrong.root(), Err(Error::RootMismatch { block: BlockNumber(1), .. })));
        let right = engine.propose(tip, &update(&[(1, 3)])).unwrap();
        right.root().unwrap();
        engine.decide(&right).unwrap().persisted().wait().unwrap();
        let stated = StateUpdate { old_root: Some(0xbad.into()), ..update(&[(1, 2)]) };
        assert!(matches!(engine.propose(right.state(), &stated), Err(Error::WrongParent { .. })));
        let numbered = StateUpdate { block_number: Some(BlockNumber(9)), ..update(&[(1, 2)]) };
        assert!(matches!(engine.propose(right.state(), &numbered), Err(Error::WrongNumber { .. })));
    }
}

/// The block below fails for its root only after a candidate was proposed on it.
#[test]
fn candidates_on_a_block_that_is_taken_back_are_gone() {
    let engine = Place::memory().open("flat", config(Cadence::OnRequest, 1));
    engine.close_block(&update(&[(1, 1)])).unwrap();
    let wrong = StateUpdate { new_root: Some(StateCommitment::from(0xbad)), ..update(&[(1, 2)]) };
    let failing = engine.close_block(&wrong).unwrap();
    let on_it = engine.propose(failing.state(), &update(&[(2, 2)])).unwrap();
    assert!(on_it.root().is_err());
    assert!(failing.committed().wait().is_err());
    assert!(!on_it.is_alive());
    assert!(is_gone(&engine.decide(&on_it).unwrap_err()));
    // And those on blocks that the caller takes back.
    for value in 3..6 {
        engine.close_block(&update(&[(1, value)])).unwrap();
    }
    let on_tip = engine.propose(engine.view().state(), &update(&[(2, 2)])).unwrap();
    engine.revert_to(BlockNumber(1)).unwrap();
    assert!(!on_tip.is_alive());
    let again = engine.propose(engine.view().state(), &update(&[(2, 3)])).unwrap();
    engine.decide(&again).unwrap();
}

#[test]
fn a_candidates_witness_is_that_of_the_block_and_its_blobs_come_with_it() {
    for (layout, _) in layouts() {
        let engine = Place::memory().open(layout, config(Cadence::EVERY_BLOCK, 1));
        engine.close_block(&update(&[(1, 1), (4, 4)])).unwrap();
        let blob = |value: u8| Blob { key: b"class".to_vec(), bytes: vec![value].into() };
        let (block, blobs) = (update(&[(1, 2)]), [blob(1)]);
        let new = NewBlock::from(&block).with_blobs(&blobs);
        let candidate = engine.propose(engine.view().state(), new).unwrap();
        assert_eq!(candidate.view().blob(b"class").unwrap().as_deref(), Some(&[1][..]));
        assert_eq!(engine.view().blob(b"class").unwrap(), None);
        candidate.compute_ahead().unwrap();
        let witness = candidate.witness(&[slot(4)]).unwrap();
        let roots = witness.apply(&block.diff, &Bulk).unwrap().roots;
        assert_eq!(roots, candidate.root().unwrap().roots, "{layout}");
        let undo = candidate.undo().unwrap();
        assert_eq!((undo.value(&slot(1)), undo.value(&slot(4))), (Some(1.into()), None), "{layout}");
        let decided = engine.decide(&candidate).unwrap();
        assert_eq!(decided.committed().wait().unwrap().unwrap().roots, roots);
        assert_eq!(engine.view().blob(b"class").unwrap().as_deref(), Some(&[1][..]));
    }
}

#[test]
fn what_was_computed_for_a_candidate_is_not_computed_again() {
    for cadence in CADENCES {
        for (name, layout) in layouts() {
            let hashed = Arc::new(AtomicUsize::new(0));
            let hasher = Box::new(Counting(Arc::clone(&hashed)));
            let store = Box::new(MemoryStore::new());
            let engine = Engine::open_with_hasher(store, layout, config(cadence, 1), hasher).unwrap();
            engine.close_block(&update(&[(1, 1), (2, 2)])).unwrap();
            engine.commit().unwrap();
            let lower = engine.propose(engine.view().state(), &update(&[(1, 2)])).unwrap();
            let upper = engine.propose(lower.state(), &update(&[(2, 3)])).unwrap();
            let root = upper.root().unwrap();
            let before = hashed.load(Ordering::SeqCst);
            assert_eq!(upper.root().unwrap(), root);
            engine.decide(&lower).unwrap();
            assert_eq!(upper.root().unwrap(), root);
            let decided = engine.decide(&upper).unwrap();
            assert_eq!(decided.committed().wait().unwrap(), Some(root));
            assert_eq!(hashed.load(Ordering::SeqCst), before, "{name}, {cadence:?}");
        }
    }
}
