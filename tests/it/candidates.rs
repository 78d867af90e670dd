//! Candidates: blocks that are executed and not decided, several on one parent, one on top of the other.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use flagstone::core::diff::Subject;
use flagstone::core::felt::Felt;
use flagstone::core::hash::Bulk;
use flagstone::core::types::{BlockNumber, StateCommitment, StateId};
use flagstone::engine::{Blob, Candidate, CandidateStats, NewBlock};
use flagstone::store::MemoryStore;
use flagstone::{Cadence, Engine, Error, ErrorKind, StateDiff, StateUpdate};
use flagstone_testkit::reference::ReferenceState;
use proptest::prelude::*;

use crate::support::{CADENCES, Counting, Place, config, layouts, settle};

fn update(values: &[(u64, u64)]) -> StateUpdate {
    let values: BTreeMap<u64, u64> = values.iter().copied().collect();
    let diff =
        values.into_iter().fold(StateDiff::builder().class(7.into(), 8.into()), |diff, (key, value)| {
            diff.storage((key % 3 + 1).into(), key.into(), value.into())
        });
    StateUpdate { starknet_version: "0.14.0".parse().ok(), ..StateUpdate::from(diff.build().unwrap()) }
}

fn slot(key: u64) -> Subject {
    Subject::Storage((key % 3 + 1).into(), key.into())
}

fn is_gone(error: &Error) -> bool {
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

#[derive(Debug, Clone)]
enum Op {
    Propose { on: usize, values: Vec<(u64, u64)> },
    Root(usize),
    Ahead(usize),
    Decide(usize),
    Drop(usize),
    Close(Vec<(u64, u64)>),
    Commit,
    Sync,
    Revert(u64),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let values = || prop::collection::vec((0..12u64, 0..6u64), 0..5);
    let op = prop_oneof![
        8 => (any::<usize>(), values()).prop_map(|(on, values)| Op::Propose { on, values }),
        3 => any::<usize>().prop_map(Op::Root),
        1 => any::<usize>().prop_map(Op::Ahead),
        5 => any::<usize>().prop_map(Op::Decide),
        2 => any::<usize>().prop_map(Op::Drop),
        2 => values().prop_map(Op::Close),
        1 => Just(Op::Commit),
        1 => Just(Op::Sync),
        1 => (1..3u64).prop_map(Op::Revert),
    ];
    prop::collection::vec(op, 1..60)
}

/// What a state must be: values by plain maps, roots by the reference.
struct Model {
    engine: Engine,
    /// The decided blocks' states, from the empty one on.
    decided: Vec<(StateId, ReferenceState)>,
    candidates: Vec<(Candidate, ReferenceState)>,
    /// Those in whose place another block was decided once.
    dead: HashSet<StateId>,
}

impl Model {
    fn tip(&self) -> &(StateId, ReferenceState) {
        self.decided.last().unwrap()
    }

    /// Whether the way from a candidate down ends at the tip, and always did.
    fn is_alive(&self, candidate: &Candidate) -> bool {
        let tip = self.tip().0;
        let mut at = candidate.parent();
        while at != tip {
            match self.candidates.iter().find(|(below, _)| below.state() == at) {
                Some((below, _)) => at = below.parent(),
                None => return false,
            }
        }
        !self.dead.contains(&candidate.state())
    }

    fn bury(&mut self) {
        let dead = self.candidates.iter().filter(|(candidate, _)| !self.is_alive(candidate));
        let dead: Vec<StateId> = dead.map(|(candidate, _)| candidate.state()).collect();
        self.dead.extend(dead);
        assert!(
            self.candidates.iter().all(|(candidate, _)| candidate.is_alive() == self.is_alive(candidate))
        );
    }

    fn check(&self) {
        let view = self.engine.view();
        assert_eq!(view.state(), self.tip().0);
        for key in 0..12u64 {
            let expected = |state: &ReferenceState| state.storage_at(&(key % 3 + 1).into(), &key.into()).0;
            assert_eq!(view.value(&slot(key)).unwrap(), expected(&self.tip().1));
            for (candidate, state) in &self.candidates {
                match candidate.view().value(&slot(key)) {
                    Ok(value) => assert_eq!(value, expected(state), "slot {key} of {candidate:?}"),
                    Err(error) => assert!(!candidate.is_alive(), "{candidate:?}: {error}"),
                }
            }
        }
    }

    fn pick(&self, index: usize) -> Option<usize> {
        (!self.candidates.is_empty()).then(|| index % self.candidates.len().max(1))
    }

    fn propose(&mut self, on: usize, values: &[(u64, u64)]) {
        let (parent, state) = match on % (self.candidates.len() + 1) {
            0 => self.tip().clone(),
            index => {
                let (candidate, state) = &self.candidates[index - 1];
                (candidate.state(), state.clone())
            }
        };
        let is_there = parent == self.tip().0
            || self.candidates.iter().any(|(on, _)| on.state() == parent && self.is_alive(on));
        let update = update(values);
        match self.engine.propose(parent, &update) {
            Ok(candidate) => {
                assert!(is_there);
                let mut state = state;
                state.apply(&update.diff);
                self.candidates.push((candidate, state));
            }
            Err(error) => assert!(!is_there && is_gone(&error), "{error}"),
        }
    }

    fn decide(&mut self, index: usize) {
        let Some(index) = self.pick(index) else { return };
        let (candidate, state) = &self.candidates[index];
        let on_tip = candidate.parent() == self.tip().0 && self.is_alive(candidate);
        match self.engine.decide(candidate) {
            Ok(block) => {
                assert!(on_tip);
                assert_eq!(block.state(), candidate.state());
                let decided = (block.state(), state.clone());
                self.candidates.remove(index);
                self.decided.push(decided);
            }
            Err(error) => assert!(!on_tip && is_gone(&error), "{error}"),
        }
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Propose { on, values } => self.propose(on, &values),
            Op::Root(index) => {
                let Some(index) = self.pick(index) else { return };
                let (candidate, state) = &self.candidates[index];
                match candidate.root() {
                    Ok(root) => assert_eq!(root.roots, state.roots()),
                    Err(error) => {
                        assert!(!self.is_alive(candidate) && error.kind() == ErrorKind::Expired, "{error}")
                    }
                }
            }
            Op::Ahead(index) => {
                let Some(index) = self.pick(index) else { return };
                self.candidates[index].0.compute_ahead().unwrap();
            }
            Op::Decide(index) => self.decide(index),
            Op::Drop(index) => {
                let Some(index) = self.pick(index) else { return };
                let state = self.candidates[index].0.state();
                // Those on top keep it alive, and the model would not see it any more.
                if self.candidates.iter().all(|(on, _)| on.parent() != state) {
                    self.candidates.remove(index);
                }
            }
            Op::Close(values) => {
                let update = update(&values);
                let block = self.engine.close_block(&update).unwrap();
                let mut state = self.tip().1.clone();
                state.apply(&update.diff);
                self.decided.push((block.state(), state));
            }
            Op::Commit => {
                self.engine.commit().unwrap();
                assert_eq!(self.engine.head().root.roots, self.tip().1.roots());
            }
            Op::Sync => self.engine.sync().unwrap(),
            Op::Revert(back) => {
                let Some(head) = self.engine.head().closed.and_then(|head| head.0.checked_sub(back)) else {
                    return;
                };
                self.engine.revert_to(BlockNumber(head)).unwrap();
                self.decided.truncate(head as usize + 2);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn trees_of_candidates_are_what_plain_maps_say(ops in ops(), cadence in 0..CADENCES.len()) {
        for (layout, _) in layouts() {
            let engine = Place::memory().open(layout, config(CADENCES[cadence], 2));
            let empty = (engine.view().state(), ReferenceState::new());
            let mut model = Model { engine, decided: vec![empty], candidates: Vec::new(), dead: HashSet::new() };
            for op in ops.clone() {
                model.run(op);
                model.bury();
                model.check();
            }
            model.engine.commit().unwrap();
            prop_assert_eq!(model.engine.head().root.roots, model.tip().1.roots());
            model.candidates.clear();
        }
    }
}
