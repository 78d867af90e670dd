//! Trees of states: blocks that are decided, taken back, proposed and dropped, views that are pinned, and kills; everything compared with
//! plain maps and the reference after each step.

use std::cell::RefCell;
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use flagstone::core::felt::Felt;
use flagstone::core::types::{BlockNumber, StateId};
use flagstone::database::{self, STORES, StoreEntry};
use flagstone::engine::{Candidate, CandidateStats};
use flagstone::journal::faulty::FaultyFiles;
use flagstone::registry::LayoutEntry;
use flagstone::store::MemoryStore;
use flagstone::{Engine, EngineConfig, ErrorKind, View};
use flagstone_testkit::reference::ReferenceState;
use proptest::prelude::*;

use crate::candidates::{is_gone, slot, update};
use crate::support::{CADENCES, config, layouts};

/// Where the database is between openings.
enum Home {
    /// With a journal; what was not synced of it is lost in a kill at the latest.
    Memory {
        store: Arc<MemoryStore>,
        files: RefCell<Arc<FaultyFiles>>,
        layout: LayoutEntry,
        config: EngineConfig,
    },
    Directory {
        dir: tempfile::TempDir,
        store: StoreEntry,
        layout: LayoutEntry,
        config: EngineConfig,
    },
}

impl Home {
    fn memory(layout: &str, config: EngineConfig) -> Self {
        let (store, files) = (Arc::new(MemoryStore::new()), RefCell::new(Arc::new(FaultyFiles::new())));
        Self::Memory { store, files, layout: flagstone::layout(layout).unwrap().clone(), config }
    }

    fn directory(layout: &str, store: &StoreEntry, config: EngineConfig) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self::Directory {
            dir,
            store: store.clone(),
            layout: flagstone::layout(layout).unwrap().clone(),
            config,
        }
    }

    fn open(&self) -> Engine {
        match self {
            Self::Memory { store, files, layout, config } => {
                let files = Arc::clone(&files.borrow());
                Engine::open_journaled(
                    Box::new(Arc::clone(store)),
                    layout.make(),
                    *config,
                    files,
                    Path::new("/j"),
                )
            }
            Self::Directory { dir, store, layout, config } => {
                database::open_or_create(&dir.path().join("db"), Some(layout), Some(store), *config)
            }
        }
        .unwrap()
    }

    /// The running engine is killed: from now on the files are what they are at this moment. (Kills of stores in directories need a
    /// process to kill: `kills.rs`.)
    fn kill(&self) {
        if let Self::Memory { files, .. } = self {
            let as_they_are = files.borrow().fork();
            files.replace(Arc::new(as_they_are));
        }
    }
}

fn value_of(state: &ReferenceState, key: u64) -> Felt {
    state.storage_at(&(key % 3 + 1).into(), &key.into()).0
}

#[derive(Debug, Clone)]
enum Op {
    Propose {
        on: usize,
        values: Vec<(u64, u64)>,
    },
    Root(usize),
    Ahead(usize),
    Decide(usize),
    Drop(usize),
    Close(Vec<(u64, u64)>),
    Commit,
    Sync,
    Revert(u64),
    /// Of the tip, or of a candidate.
    Pin(usize),
    Unpin(usize),
    ViewAt(u64),
    Reopen,
    Kill,
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
        2 => (1..3u64).prop_map(Op::Revert),
        2 => any::<usize>().prop_map(Op::Pin),
        1 => any::<usize>().prop_map(Op::Unpin),
        1 => (0..6u64).prop_map(Op::ViewAt),
        1 => Just(Op::Reopen),
        1 => Just(Op::Kill),
    ];
    prop::collection::vec(op, 1..60)
}

/// What a state must be: values by plain maps, roots by the reference.
struct Model<'a> {
    home: &'a Home,
    engine: Option<Engine>,
    /// The decided blocks' states, from the empty one on.
    decided: Vec<(StateId, ReferenceState)>,
    candidates: Vec<(Candidate, ReferenceState)>,
    pins: Vec<(View, ReferenceState)>,
    /// Those in whose place another block was decided once.
    dead: HashSet<StateId>,
}

impl Model<'_> {
    fn engine(&self) -> &Engine {
        self.engine.as_ref().unwrap()
    }

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
        let view = self.engine().view();
        assert_eq!(view.state(), self.tip().0);
        for key in 0..12u64 {
            assert_eq!(view.value(&slot(key)).unwrap(), value_of(&self.tip().1, key));
            for (candidate, state) in &self.candidates {
                match candidate.view().value(&slot(key)) {
                    Ok(value) => assert_eq!(value, value_of(state, key), "slot {key} of {candidate:?}"),
                    Err(error) => assert!(!candidate.is_alive(), "{candidate:?}: {error}"),
                }
            }
        }
        for (view, state) in &self.pins {
            let is_decided = self.decided.iter().any(|(decided, _)| *decided == view.state());
            let of_candidate =
                self.candidates.iter().find(|(candidate, _)| candidate.state() == view.state());
            let is_there = is_decided || of_candidate.is_some_and(|(candidate, _)| candidate.is_alive());
            for key in 0..12u64 {
                match view.value(&slot(key)) {
                    Ok(value) => assert_eq!(value, value_of(state, key), "slot {key} of {view:?}"),
                    Err(error) => {
                        assert!(!is_there && error.kind() == ErrorKind::Expired, "{view:?}: {error}")
                    }
                }
            }
        }
    }

    fn view_at(&self, back: u64) {
        let Some(number) = self.engine().head().closed.and_then(|head| head.0.checked_sub(back)) else {
            return;
        };
        match self.engine().view_at(BlockNumber(number)) {
            Ok(view) => {
                let (state, values) = &self.decided[number as usize + 1];
                assert_eq!(view.state(), *state);
                let many = view.get_many(&(0..12).map(slot).collect::<Vec<_>>()).unwrap();
                assert!(many.into_iter().eq((0..12).map(|key| value_of(values, key))));
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::Expired, "{error}"),
        }
    }

    fn pin(&mut self, index: usize) {
        let (view, state) = match index % (self.candidates.len() + 1) {
            0 => (self.engine().view(), self.tip().1.clone()),
            index => (self.candidates[index - 1].0.view(), self.candidates[index - 1].1.clone()),
        };
        match view.pinned() {
            Ok(view) => self.pins.push((view, state)),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Expired),
        }
    }

    /// What was closed is there, and nothing else.
    fn reopen(&mut self, kill: bool) {
        self.candidates.clear();
        self.pins.clear();
        self.dead.clear();
        let engine = self.engine.take().unwrap();
        if kill {
            self.home.kill();
        }
        drop(engine);
        let engine = self.home.open();
        assert_eq!(engine.candidate_stats(), CandidateStats::default());
        self.engine = Some(engine);
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
        match self.engine().propose(parent, &update) {
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
        match self.engine().decide(candidate) {
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
                let block = self.engine().close_block(&update).unwrap();
                let mut state = self.tip().1.clone();
                state.apply(&update.diff);
                self.decided.push((block.state(), state));
            }
            Op::Commit => {
                self.engine().commit().unwrap();
                assert_eq!(self.engine().head().root.roots, self.tip().1.roots());
            }
            Op::Sync => self.engine().sync().unwrap(),
            Op::Revert(back) => {
                let Some(head) = self.engine().head().closed.and_then(|head| head.0.checked_sub(back)) else {
                    return;
                };
                self.engine().revert_to(BlockNumber(head)).unwrap();
                self.decided.truncate(head as usize + 2);
            }
            Op::Pin(index) => self.pin(index),
            Op::Unpin(index) => {
                if !self.pins.is_empty() {
                    self.pins.swap_remove(index % self.pins.len());
                }
            }
            Op::ViewAt(back) => self.view_at(back),
            Op::Reopen => self.reopen(false),
            Op::Kill => self.reopen(true),
        }
    }
}

/// Runs operations on an engine at home, comparing after each; at the end everything holds against everything else.
fn play(home: &Home, ops: &[Op]) {
    let engine = home.open();
    let decided = vec![(engine.view().state(), ReferenceState::new())];
    let (candidates, pins) = (Vec::new(), Vec::new());
    let mut model = Model { home, engine: Some(engine), decided, candidates, pins, dead: HashSet::new() };
    for op in ops {
        model.run(op.clone());
        model.bury();
        model.check();
    }
    model.engine().commit().unwrap();
    assert_eq!(model.engine().head().root.roots, model.tip().1.roots());
    let report = model.engine().check(&|_| ()).unwrap();
    assert!(report.is_sound(), "{:?}", report.findings);
    model.candidates.clear();
}

/// So few recent values that pins matter.
fn bounds(cadence: usize) -> EngineConfig {
    config(CADENCES[cadence], 2).with_recent_blocks_max(2)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn trees_of_states_are_what_plain_maps_say_also_after_kills(ops in ops(), cadence in 0..CADENCES.len()) {
        for (layout, _) in layouts() {
            play(&Home::memory(layout, bounds(cadence)), &ops);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn trees_of_states_are_what_plain_maps_say_in_every_store(ops in ops(), cadence in 0..CADENCES.len()) {
        for (layout, _) in layouts() {
            for store in STORES {
                play(&Home::directory(layout, store, bounds(cadence)), &ops);
            }
        }
    }
}
