//! What the simulator found in the engine, each as the shortest way to it.

use std::path::Path;
use std::sync::Arc;

use flagstone::core::types::BlockNumber;
use flagstone::engine::NewBlock;
use flagstone::journal::faulty::FaultyFiles;
use flagstone::journal::{Journal, JournalConfig};
use flagstone::snapshot::export;
use flagstone::{Cadence, Engine, EngineConfig, Error, ErrorKind};

use super::store::{LOG, LogStore};
use crate::candidates::{slot, update};
use crate::support::{Gate, config, settle};

struct Held(Arc<Gate>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

/// A disk, and the database on it.
struct Machine {
    layout: &'static str,
    disk: FaultyFiles,
    gate: Arc<Gate>,
}

impl Machine {
    fn new(layout: &'static str) -> Self {
        Self { layout, disk: FaultyFiles::new(), gate: Arc::default() }
    }

    fn store(&self) -> Box<LogStore> {
        let salt = self.disk.all_operations();
        Box::new(LogStore::open(&self.disk, Path::new("/store"), &self.gate, (false, salt)).unwrap())
    }

    /// Holds the store back, until what is returned is dropped; also by a test that fails.
    fn hold(&self) -> Held {
        self.gate.set(true);
        Held(Arc::clone(&self.gate))
    }

    fn open(&self, config: EngineConfig) -> Result<Engine, Error> {
        let (layout, files) = (flagstone::layout(self.layout).unwrap().make(), Arc::new(self.disk.clone()));
        Engine::open_journaled(self.store(), layout, config, files, Path::new("/journal"))
    }

    /// The engine is killed: what it still does is done to another disk.
    fn kill(&mut self, engine: Engine) {
        let after = self.disk.fork();
        drop(engine);
        self.disk = after;
    }
}

fn is_sound(engine: &Engine) {
    let report = engine.check(&|_| ()).unwrap();
    assert!(report.is_sound(), "{:?}", report.findings);
}

/// The journal of an imported database begins behind the dump's block, with its first segment: it was taken for whole, so that a store
/// that had lost everything was a new database without a word, and the journal's blocks were put on nothing.
#[test]
fn an_imported_database_whose_store_is_lost_is_not_a_new_one() {
    let from = Machine::new("flat");
    let engine = from.open(config(Cadence::AtClose, 1)).unwrap();
    (0..4).for_each(|value| drop(engine.close_block(&update(&[(value, 7)])).unwrap()));
    let mut dump = Vec::new();
    export(&engine, None, &mut dump, &mut |_| ()).unwrap();

    let to = Machine::new("flat");
    let layout = flagstone::layout("flat").unwrap().make();
    Engine::import(to.store(), layout.as_ref(), &EngineConfig::default(), &dump[..], &mut |_| ()).unwrap();
    let database = Engine::open(to.store(), layout, EngineConfig::default()).unwrap().database();
    let (files, block) = (Arc::new(to.disk.clone()), BlockNumber(3));
    Journal::begin_after(files, Path::new("/journal"), JournalConfig::default(), database, block).unwrap();
    for blocks in [0, 1] {
        let engine = to.open(config(Cadence::AtClose, 1)).unwrap();
        (0..blocks).for_each(|_| drop(engine.close_block(&update(&[(9, 9)])).unwrap()));
        drop(engine);
        let whole = to.disk.content(&Path::new("/store").join(LOG)).unwrap();
        to.disk.lose(&Path::new("/store").join(LOG));
        let error = to.open(config(Cadence::AtClose, 1)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged);
        assert!(error.to_string().contains("are lost"), "{error}");
        to.disk.set_content(&Path::new("/store").join(LOG), &whole);
    }
}

/// A block had a root of its own, and after a crash was committed as one with later ones. The next opening wrote its root's row from
/// the journal, and so promised an old state of which no node was ever written.
#[test]
fn no_old_state_is_promised_that_was_never_written() {
    let mut machine = Machine::new("patricia-hash");
    let alone = config(Cadence::AtClose, 1);
    let engine = machine.open(alone).unwrap();
    let held = machine.hold();
    (0..3).for_each(|value| drop(engine.close_block(&update(&[(value, 7)])).unwrap()));
    let after = machine.disk.fork();
    drop((held, engine));
    machine.disk = after;
    let engine = machine.open(config(Cadence::OnRequest, 1).with_coalesce(true)).unwrap();
    settle(&engine);
    assert_eq!(engine.block_root(BlockNumber(1)).unwrap(), None);
    machine.kill(engine);
    let engine = machine.open(alone).unwrap();
    assert_eq!(engine.opened().held_against, 3);
    for block in 0..3 {
        let root = engine.block_root(BlockNumber(block)).unwrap();
        let state = engine.view_at(BlockNumber(block));
        assert_eq!((root.is_some(), state.is_ok()), (block == 2, block == 2), "block {block}");
    }
}

/// Committed blocks that are dropped took with them, in memory alone, that what takes back older ones was deleted: it stayed in the
/// store for ever, and a check found what nothing leads to.
#[test]
fn what_takes_old_blocks_back_is_deleted_also_after_blocks_were_dropped() {
    for (layout, _) in crate::support::layouts() {
        let machine = Machine::new(layout);
        let engine = machine.open(config(Cadence::EVERY_BLOCK, 1).with_history_blocks(1)).unwrap();
        let close = |value| {
            let update = update(&[(1, value)]);
            engine.close_block(NewBlock::from(&update)).unwrap().committed().wait().unwrap();
        };
        close(1);
        settle(&engine);
        let held = machine.hold();
        // The writer waits with the first; the next one deletes what takes that back, and is dropped.
        (2..4).for_each(close);
        engine.revert_to(BlockNumber(1)).unwrap();
        drop(held);
        (4..6).for_each(close);
        settle(&engine);
        is_sound(&engine);
    }
}

/// A candidate on one that was decided was viewed by the stamp of the state below both: it lived, and could not be read once the
/// values of the decided one had left.
#[test]
fn a_candidate_is_read_as_long_as_it_lives_however_few_values_are_kept() {
    for (layout, _) in crate::support::layouts() {
        let machine = Machine::new(layout);
        let engine = machine.open(config(Cadence::EVERY_BLOCK, 1).with_recent_blocks_max(0)).unwrap();
        let first = engine.propose(engine.view().state(), &update(&[(1, 1)])).unwrap();
        let second = engine.propose(first.state(), &update(&[(2, 2)])).unwrap();
        let third = engine.propose(second.state(), &update(&[(1, 3)])).unwrap();
        for (decided, read) in [(&first, [1, 2]), (&second, [1, 2])] {
            engine.decide(decided).unwrap();
            settle(&engine);
            assert!(third.is_alive());
            let view = second.view();
            assert_eq!([1, 2].map(|key| view.value(&slot(key)).unwrap()), read.map(u64::into));
            assert_eq!([1, 2].map(|key| third.view().value(&slot(key)).unwrap()), [3.into(), 2.into()]);
        }
    }
}

/// Pruning took the first block without a root of its own for the end of all roots: the states before it were promised, and their rows
/// deleted, also when all were to be kept.
#[test]
fn pruning_keeps_what_states_need_that_are_before_blocks_that_were_committed_as_one() {
    let machine = Machine::new("patricia-hash");
    let config = config(Cadence::OnRequest, 1).with_coalesce(true);
    let engine = machine.open(config.with_history_blocks(0).with_recent_blocks_max(0)).unwrap();
    for value in 1..4 {
        (0..2).for_each(|key| drop(engine.close_block(&update(&[(key, value)])).unwrap()));
        settle(&engine);
    }
    let there = |block| engine.view_at(BlockNumber(block)).and_then(|view| view.value(&slot(0)));
    let pruned = engine.prune(None, false).unwrap();
    assert_eq!((pruned.roots, pruned.oldest), (0, Some(BlockNumber(1))));
    for (block, value) in [(1, 1), (3, 2), (5, 3)] {
        assert_eq!(there(block).unwrap(), value.into(), "block {block}");
    }
    let pruned = engine.prune(Some(2), false).unwrap();
    assert_eq!((pruned.roots, pruned.oldest), (1, Some(BlockNumber(3))));
    assert_eq!(there(1).unwrap_err().kind(), ErrorKind::Expired);
    assert_eq!((there(3).unwrap(), there(5).unwrap()), (2.into(), 3.into()));
}
