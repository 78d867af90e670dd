//! Blocks taken back, earlier states viewed and read in tries: each compared with the reference at that block.

use std::path::Path;
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use flagstone::core::trie::{TrieId, lookup};
use flagstone::core::types::{BlockNumber, StateCommitment};
use flagstone::engine::{Blob, NewBlock};
use flagstone::journal::faulty::FaultyFiles;
use flagstone::store::{MemoryStore, Store, StoreRead, WriteBatch};
use flagstone::{Cadence, Engine, Error, ErrorKind, StateDiff, StateUpdate, View};
use flagstone_testkit::reference::ReferenceState;
use flagstone_testkit::strategies::blocks;
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};

use crate::support::{BeforeWrites, Place, config, every, layouts, root_of, settle};

#[derive(Debug, Clone)]
enum Step {
    Close(StateDiff),
    /// Goes back so many blocks.
    Revert(usize),
    Reopen,
    Commit,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let diff = || blocks(1..2).prop_map(|mut blocks| Step::Close(blocks.remove(0)));
    let step = prop_oneof![
        8 => diff(),
        2 => (0..6usize).prop_map(Step::Revert),
        1 => Just(Step::Reopen),
        1 => Just(Step::Commit),
    ];
    prop::collection::vec(step, 1..24)
}

/// What the database ought to be: the states after each block, the empty one first.
struct Model {
    states: Vec<(ReferenceState, StateCommitment)>,
    touched: Vec<StateDiff>,
}

impl Model {
    fn new() -> Self {
        Self { states: vec![(ReferenceState::new(), StateCommitment::default())], touched: Vec::new() }
    }

    fn update(&mut self, diff: &StateDiff) -> StateUpdate {
        let number = self.states.len() as u64 - 1;
        let mut state = self.states.last().unwrap().0.clone();
        state.apply(diff);
        let update = StateUpdate {
            block_number: Some(BlockNumber(number)),
            starknet_version: "0.14.0".parse().ok(),
            ..StateUpdate::from(diff.clone())
        };
        let root = state.commitment(update.starknet_version.unwrap().commitment_rule());
        self.states.push((state, root));
        self.touched.push(diff.clone());
        update
    }

    /// Compares a view's values with the reference.
    fn check_view(&self, view: &View, number: u64) {
        let (expected, _) = &self.states[number as usize + 1];
        for contract in self.touched.iter().flat_map(StateDiff::contracts) {
            let address = &contract.address;
            for (key, _) in &contract.storage {
                let value = view.storage_at(address, key).unwrap();
                assert_eq!(value, expected.storage_at(address, key), "{address} {key} at block {number}");
            }
            assert_eq!(view.nonce_at(address).unwrap(), expected.nonce_at(address));
            assert_eq!(view.class_hash_at(address).unwrap(), expected.class_hash_at(address));
        }
        for class in self.touched.iter().flat_map(StateDiff::classes) {
            let compiled = view.compiled_class_hash_at(&class.class_hash).unwrap();
            assert_eq!(compiled, expected.compiled_class_hash_at(&class.class_hash));
        }
    }

    /// Compares views and tries at every block with the reference, as far as the history goes.
    fn check(&self, engine: &Engine, reach: u64) {
        engine.commit().unwrap();
        let Some(last) = (self.states.len() as u64).checked_sub(2) else { return };
        assert_eq!(engine.head().closed, Some(BlockNumber(last)));
        assert_eq!(engine.head().root.commitment, self.states.last().unwrap().1);
        for number in last.saturating_sub(reach)..=last {
            let (state, root) = &self.states[number as usize + 1];
            self.check_view(&engine.view_at(BlockNumber(number)).unwrap(), number);
            assert_eq!(engine.block_root(BlockNumber(number)).unwrap().unwrap().commitment, *root);
            let at = engine.at_commitment(Some(BlockNumber(number)), |tries, block, root| {
                assert_eq!(block, Some(BlockNumber(number)));
                for contract in self.touched.iter().flat_map(StateDiff::contracts) {
                    let leaf = tries.contract_leaf(&contract.address)?;
                    assert_eq!(leaf.nonce, state.nonce_at(&contract.address));
                    assert_eq!(leaf.class_hash, state.class_hash_at(&contract.address));
                }
                Ok(*root)
            });
            assert_eq!(at.unwrap().commitment, *root);
        }
        assert_eq!(engine.block_root(BlockNumber(last + 1)).unwrap(), None);
    }
}

fn run(open: &dyn Fn() -> Engine, steps: &[Step], reach: u64) {
    let mut model = Model::new();
    let mut engine = Some(open());
    for step in steps {
        let running = engine.as_ref().unwrap();
        match step {
            Step::Close(diff) => drop(running.close_block(&model.update(diff)).unwrap()),
            Step::Commit => model.check(running, reach),
            Step::Revert(back) => {
                let blocks = model.states.len() - 1;
                let back = (*back).min(reach as usize).min(blocks.saturating_sub(1));
                if blocks > 0 {
                    model.states.truncate(model.states.len() - back);
                    let number = BlockNumber(model.states.len() as u64 - 2);
                    let root = running.revert_to(number).unwrap();
                    assert_eq!(root.commitment, model.states.last().unwrap().1);
                    check_whole(running);
                    model.check(running, reach.saturating_sub(back as u64).min(1));
                }
            }
            Step::Reopen => {
                drop(engine.take());
                engine = Some(open());
            }
        }
    }
    model.check(engine.as_ref().unwrap(), 2);
    check_whole(engine.as_ref().unwrap());
}

/// Tries, rows, history and journal hold against each other.
fn check_whole(engine: &Engine) {
    let report = engine.check(&|_| ()).unwrap();
    assert!(report.is_sound(), "{:?}", report.findings);
}

/// Runs a property over the same random steps each time; a failure prints the shrunk steps.
fn for_random_steps(cases: u32, property: impl Fn(&[Step])) {
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let outcome = runner.run(&steps(), |steps| {
        property(&steps);
        Ok(())
    });
    outcome.unwrap();
}

#[test]
fn any_block_in_the_history_can_be_viewed_read_and_gone_back_to() {
    for_random_steps(24, |steps| {
        for (layout, _) in layouts() {
            for (cadence, recent_blocks_max) in
                [(Cadence::AtClose, 0), (Cadence::EVERY_BLOCK, 2), (every(3), 64)]
            {
                let config =
                    config(cadence, 1).with_recent_blocks_max(recent_blocks_max).with_history_blocks(64);
                let place = Place::memory();
                run(&|| place.open(layout, config), steps, 5);
            }
        }
    });
}

#[test]
fn reverts_are_in_the_journal_and_last() {
    for_random_steps(24, |steps| {
        for (layout, _) in layouts() {
            // On a slow store, blocks are taken back that are committed and not written.
            for pause in [0, 2].map(Duration::from_millis) {
                let (store, files) = (Arc::new(MemoryStore::new()), Arc::new(FaultyFiles::new()));
                let config = config(Cadence::EVERY_BLOCK, 1).with_persist_every(2);
                let open = || {
                    let make = flagstone::layout(layout).unwrap().make();
                    let (inner, files) = (Arc::clone(&store), Arc::clone(&files));
                    let store = Box::new(BeforeWrites { inner, before: move || sleep(pause) });
                    Engine::open_journaled(store, make, config, files, Path::new("/j")).unwrap()
                };
                run(&open, steps, 5);
            }
        }
    });
}

fn block(number: u64) -> StateUpdate {
    let diff = StateDiff::builder().storage(1.into(), 1.into(), (number + 100).into());
    StateUpdate {
        block_number: Some(BlockNumber(number)),
        starknet_version: "0.14.0".parse().ok(),
        ..StateUpdate::from(diff.build().unwrap())
    }
}

#[test]
fn beyond_the_history_is_refused_and_nothing_changes() {
    for (layout, _) in layouts() {
        let config = config(Cadence::EVERY_BLOCK, 1).with_history_blocks(3).with_recent_blocks_max(0);
        let engine = Place::memory().open(layout, config);
        (0..9).for_each(|number| drop(engine.close_block(&block(number)).unwrap()));
        settle(&engine);
        let before = engine.head();
        let gone = |error: Error| {
            assert_eq!(error.kind(), ErrorKind::Expired);
            assert_eq!(
                error.to_string(),
                "the state after block 4 is not kept: history reaches from block 5 to block 8; \
                 import a dump of that state, or replay the blocks up to it, into another database"
            );
        };
        gone(engine.revert_to(BlockNumber(4)).unwrap_err());
        if !flagstone::layout(layout).unwrap().make().keeps_old_states() {
            gone(engine.view_at(BlockNumber(4)).unwrap_err());
            gone(engine.at_commitment(Some(BlockNumber(4)), |_, _, _| Ok(())).unwrap_err());
        }
        let ahead = engine.revert_to(BlockNumber(9)).unwrap_err();
        assert_eq!(ahead.to_string(), "block 9 is not there: the last block is block 8");
        assert_eq!(engine.head(), before);
        assert_eq!(
            engine.view_at(BlockNumber(5)).unwrap().storage_at(&1.into(), &1.into()).unwrap(),
            105.into()
        );
        let old = engine.view();
        engine.revert_to(BlockNumber(5)).unwrap();
        assert_eq!(engine.view().storage_at(&1.into(), &1.into()).unwrap(), 105.into());
        assert_eq!(engine.head().closed, Some(BlockNumber(5)));
        assert!(engine.close_block(&block(9)).is_err());
        // The view from before the revert answers for its own block, or not at all.
        if let Ok(value) = old.storage_at(&1.into(), &1.into()) {
            assert_eq!(value, 108.into());
        }
    }
}

#[test]
fn a_view_in_the_history_stays_when_its_blocks_values_leave_the_recent_ones() {
    for (layout, _) in layouts() {
        let config = config(Cadence::EVERY_BLOCK, 1).with_recent_blocks_max(0);
        let engine = Place::memory().open(layout, config);
        engine.close_block(&block(0)).unwrap();
        settle(&engine);
        // Nothing is written to the store meanwhile, so the values of these blocks are still among the recent ones.
        let view = engine.at_commitment(None, |_, _, _| {
            engine.close_block(&block(1))?;
            engine.close_block(&block(2))?;
            engine.wait_for_root(BlockNumber(2))?;
            engine.view_at(BlockNumber(1))
        });
        engine.sync().unwrap();
        assert_eq!(view.unwrap().storage_at(&1.into(), &1.into()).unwrap(), 101.into(), "{layout}");
    }
}

#[test]
fn blocks_committed_as_one_have_one_root_and_are_taken_back_together() {
    let roots: Vec<StateCommitment> = {
        let engine = Place::memory().open("flat", config(Cadence::AtClose, 1));
        (0..7).map(|number| root_of(&engine, &block(number))).collect()
    };
    for (layout, _) in layouts() {
        let config = config(Cadence::OnRequest, 1).with_coalesce(true).with_recent_blocks_max(0);
        let engine = Place::memory().open(layout, config);
        let handles: Vec<_> = (0..7)
            .map(|number| {
                let closed = engine.close_block(&block(number)).unwrap();
                if number == 2 || number == 6 {
                    engine.commit().unwrap();
                }
                closed
            })
            .collect();
        engine.sync().unwrap();
        let told: Vec<_> = handles
            .iter()
            .filter_map(|block| Some((block.number().0, block.committed().wait().unwrap()?.commitment)))
            .collect();
        assert_eq!(told, [(2, roots[2]), (6, roots[6])]);
        assert_eq!(engine.block_root(BlockNumber(4)).unwrap(), None);
        let never = engine.revert_to(BlockNumber(4)).unwrap_err();
        assert_eq!(never.kind(), ErrorKind::Expired);
        assert_eq!(
            never.to_string(),
            "the state after block 4 was never kept by itself, as the block was committed as one with those behind it: \
             history reaches from block 2 to block 6; import a dump of that state, or replay the blocks up to it, into \
             another database"
        );
        let before = engine.revert_to(BlockNumber(1)).unwrap_err().to_string();
        assert!(before.contains("block 1 is not kept: history reaches from block 2 to block 6"), "{before}");
        assert_eq!(engine.revert_to(BlockNumber(2)).unwrap().commitment, roots[2]);
        engine.close_block(&StateUpdate { new_root: Some(roots[3]), ..block(3) }).unwrap();
        engine.commit().unwrap();
    }
}

#[test]
fn blobs_are_there_with_their_block_and_after_a_crash() {
    let blob = |number: u64| Blob {
        key: number.to_be_bytes().to_vec(),
        bytes: (0..number * 5_000).map(|byte| byte as u8).collect::<Vec<u8>>().into(),
    };
    for (layout, _) in layouts() {
        for cadence in [Cadence::AtClose, Cadence::EVERY_BLOCK, Cadence::OnRequest] {
            let (store, files) = (Arc::new(MemoryStore::new()), FaultyFiles::new());
            let open = || {
                let make = flagstone::layout(layout).unwrap().make();
                let files = Arc::new(files.clone());
                let store = Box::new(Arc::clone(&store));
                Engine::open_journaled(store, make, config(cadence, 1), files, Path::new("/j")).unwrap()
            };
            let check = |engine: &Engine| {
                for number in 0..4 {
                    let read = engine.view().blob(&blob(number).key).unwrap();
                    assert_eq!(read, Some(blob(number).bytes), "{layout}, {cadence:?}: blob {number}");
                }
                assert_eq!(engine.view().blob(b"none").unwrap(), None);
            };
            let engine = open();
            for number in 0..4 {
                engine.close_block(NewBlock::from(&block(number)).with_blobs(&[blob(number)])).unwrap();
            }
            check(&engine);
            settle(&engine);
            check(&engine);
            drop(engine);
            files.crash(1);
            check(&open());
            let long = Blob { key: vec![0; 256], bytes: Vec::new().into() };
            assert_eq!(
                open().close_block(NewBlock::from(&block(4)).with_blobs(&[long])).unwrap_err().kind(),
                ErrorKind::Input
            );
        }
    }
}

#[test]
fn a_blob_takes_the_place_of_one_under_its_key() {
    let blob = |bytes: usize| Blob { key: b"key".to_vec(), bytes: vec![bytes as u8; bytes].into() };
    for cadence in [Cadence::AtClose, Cadence::EVERY_BLOCK, Cadence::OnRequest] {
        let place = Place::memory();
        let engine = place.open("flat", config(cadence, 1));
        // Shorter and longer ones, and one of no bytes.
        for (number, bytes) in (0..).zip([20_000, 9_000, 0, 30_000, 5_000]) {
            engine.close_block(NewBlock::from(&block(number)).with_blobs(&[blob(bytes)])).unwrap();
            assert_eq!(engine.view().blob(b"key").unwrap(), Some(blob(bytes).bytes), "{cadence:?}, {bytes}");
        }
        settle(&engine);
        assert_eq!(engine.view().blob(b"key").unwrap(), Some(blob(5_000).bytes), "{cadence:?}");
        check_whole(&engine);
        engine.close_block(NewBlock::from(&block(5)).with_blobs(&[blob(100)])).unwrap();
        settle(&engine);
        assert_eq!(engine.view().blob(b"key").unwrap(), Some(blob(100).bytes), "{cadence:?}");
        check_whole(&engine);
    }
}

#[test]
fn every_blob_that_is_taken_can_be_written_to_every_store() {
    for place in Place::all() {
        for cadence in [Cadence::AtClose, Cadence::EVERY_BLOCK] {
            let engine = place.open("flat", config(cadence, 1));
            let first = engine.head().closed.map_or(0, |block| block.0 + 1);
            let blob = |length: usize| Blob { key: vec![7; length], bytes: vec![1; 9_000].into() };
            let longest = (0..=300).rev().find(|length| {
                match engine.close_block(NewBlock::from(&block(first)).with_blobs(&[blob(*length)])) {
                    Ok(_) => true,
                    Err(error) if error.kind() == ErrorKind::Input => false,
                    Err(error) => panic!("{}: a key of {length} bytes: {error}", place.name()),
                }
            });
            settle(&engine);
            let longest = longest.unwrap();
            assert!(longest >= 200, "{longest}");
            drop(engine);
            let engine = place.open("flat", config(cadence, 1));
            assert_eq!(engine.view().blob(&vec![7; longest]).unwrap(), Some(blob(longest).bytes));
        }
    }
}

#[test]
fn blobs_that_no_journal_takes_are_refused_and_stop_nothing() {
    let (store, files) = (Box::new(MemoryStore::new()), Arc::new(FaultyFiles::new()));
    let make = flagstone::layout("flat").unwrap().make();
    let engine = Engine::open_journaled(store, make, config(Cadence::EVERY_BLOCK, 1), files, Path::new("/j"));
    let engine = engine.unwrap();
    // One buffer, as many times as make more than a gibibyte.
    let bytes: Arc<[u8]> = vec![0; 200 << 20].into();
    let blobs: Vec<Blob> = (0..6).map(|key| Blob { key: vec![key], bytes: Arc::clone(&bytes) }).collect();
    let error = engine.close_block(NewBlock::from(&block(0)).with_blobs(&blobs)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Input, "{error}");
    engine.close_block(&block(0)).unwrap();
}

/// A database may begin at any block; nothing before it can be gone back to, and the empty state has no number.
#[test]
fn history_reaches_back_to_the_first_block_and_says_so() {
    for (layout, _) in layouts() {
        let engine = Place::memory().open(layout, config(Cadence::EVERY_BLOCK, 1));
        (700..703).for_each(|number| drop(engine.close_block(&block(number)).unwrap()));
        settle(&engine);
        for asked in [0, 698, 699] {
            let error = engine.revert_to(BlockNumber(asked)).unwrap_err().to_string();
            let expected = format!(
                "the state after block {asked} is not kept: history reaches from block 700 to block 702"
            );
            assert!(error.contains(&expected), "{layout}: {error}");
        }
        engine.revert_to(BlockNumber(700)).unwrap();
    }
}

#[test]
fn without_any_history_the_error_says_that_there_is_none() {
    for (layout, _) in layouts() {
        let config = config(Cadence::AtClose, 1).with_history_blocks(0).with_recent_blocks_max(0);
        let engine = Place::memory().open(layout, config);
        (0..3).for_each(|number| drop(engine.close_block(&block(number)).unwrap()));
        settle(&engine);
        let error = engine.revert_to(BlockNumber(1)).unwrap_err().to_string();
        assert!(error.contains("history reaches from block 2 to block 2"), "{layout}: {error}");
    }
}

/// A store in memory, and a journal on a disk in memory.
#[derive(Clone, Default)]
struct Machine {
    store: Arc<MemoryStore>,
    files: FaultyFiles,
}

impl Machine {
    fn open(&self, layout: &str, cadence: Cadence) -> Engine {
        let make = flagstone::layout(layout).unwrap().make();
        let (store, files) = (Box::new(Arc::clone(&self.store)), Arc::new(self.files.clone()));
        Engine::open_journaled(store, make, config(cadence, 1), files, Path::new("/j")).unwrap()
    }

    /// Blocks that each set a slot, from one on.
    fn with_blocks(layout: &str, cadence: Cadence, first_slot: u64, blocks: u64) -> Self {
        let machine = Self::default();
        let engine = machine.open(layout, cadence);
        for number in 0..blocks {
            let diff = StateDiff::builder().storage(1.into(), (first_slot + number).into(), 7.into());
            engine.close_block(&StateUpdate { diff: diff.build().unwrap(), ..block(number) }).unwrap();
        }
        settle(&engine);
        machine
    }
}

#[test]
fn states_that_the_layout_keeps_are_there_beyond_the_history() {
    for (layout, made) in layouts().filter(|(_, layout)| layout.keeps_old_states()) {
        drop(made);
        for place in Place::all() {
            let config = config(Cadence::EVERY_BLOCK, 1).with_history_blocks(2);
            let config = config.with_recent_blocks_max(0);
            let engine = place.open(layout, config);
            (0..12).for_each(|number| drop(engine.close_block(&block(number)).unwrap()));
            settle(&engine);
            engine.revert_to(BlockNumber(10)).unwrap();
            let other = StateDiff::builder().storage(1.into(), 1.into(), 7.into()).build().unwrap();
            engine.close_block(&StateUpdate { diff: other, ..block(11) }).unwrap();
            settle(&engine);
            for number in 0..12 {
                let at = Some(BlockNumber(number));
                let expected = if number == 11 { 7 } else { number + 100 };
                let view = engine.view_at(BlockNumber(number)).unwrap();
                assert_eq!(
                    view.storage_at(&1.into(), &1.into()).unwrap(),
                    expected.into(),
                    "{layout} {number}"
                );
                assert_eq!((view.block(), view.nonce_at(&1.into()).unwrap()), (at, 0.into()));
                let root = engine.at_commitment(at, |tries, block, root| {
                    let leaf = tries.contract_leaf(&1.into())?;
                    let slot = lookup(tries, TrieId::Storage(1.into()), leaf.storage_root.0, &1.into())?;
                    assert_eq!((block, slot), (at, expected.into()));
                    Ok(*root)
                });
                assert_eq!(engine.block_root(BlockNumber(number)).unwrap(), Some(root.unwrap()));
            }
            assert_eq!(engine.view_at(BlockNumber(12)).unwrap_err().kind(), ErrorKind::Input);
        }
    }
}

/// Damage while the engine runs, as an opening would have brought it right.
#[test]
fn the_check_holds_the_journals_values_against_the_stores() {
    let machine = Machine::with_blocks("flat", Cadence::EVERY_BLOCK, 10, 3);
    let engine = machine.open("flat", Cadence::EVERY_BLOCK);
    check_whole(&engine);
    let mut values = Vec::new();
    machine
        .store
        .scan(&[0x10], &mut |key, _| {
            values.push(key.to_vec());
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    let mut batch = WriteBatch::default();
    batch.delete(&values[0]);
    machine.store.write(&batch).unwrap();
    let report = engine.check(&|_| ()).unwrap();
    let findings: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
    let expected =
        "block 0: its frame in the journal sets storage 0xa of contract 0x1 to 0x7, the store has 0x0";
    assert!(findings.contains(&expected.to_owned()), "{findings:?}");
}

/// Classes go with the block that brought them, and an earlier one under the same key is there again; closed, committed and
/// persisted blocks alike, also when a crash comes before the store has the revert.
#[test]
fn blobs_are_taken_back_with_their_block() {
    let blob = |key: &str, byte: u8| Blob { key: key.as_bytes().to_vec(), bytes: vec![byte; 10_000].into() };
    for (layout, _) in layouts() {
        for cadence in [Cadence::AtClose, Cadence::EVERY_BLOCK, Cadence::OnRequest] {
            let machine = Machine::default();
            let engine = machine.open(layout, cadence);
            let close = |engine: &Engine, number: u64, blobs: &[Blob]| {
                engine.close_block(NewBlock::from(&block(number)).with_blobs(blobs)).unwrap();
            };
            close(&engine, 0, &[blob("a", 1), blob("b", 1)]);
            settle(&engine);
            close(&engine, 1, &[blob("a", 2)]);
            close(&engine, 2, &[blob("a", 3), blob("c", 3)]);
            close(&engine, 3, &[blob("a", 4)]);
            let has = |engine: &Engine, a: Option<u8>, b: Option<u8>, c: Option<u8>, what: &str| {
                for (key, byte) in [("a", a), ("b", b), ("c", c)] {
                    let found = engine.view().blob(key.as_bytes()).unwrap();
                    assert_eq!(
                        found,
                        byte.map(|byte| blob(key, byte).bytes),
                        "{layout}, {cadence:?}, {what}: {key}"
                    );
                }
            };
            has(&engine, Some(4), Some(1), Some(3), "closed");
            engine.revert_to(BlockNumber(2)).unwrap();
            has(&engine, Some(3), Some(1), Some(3), "back to 2");
            settle(&engine);
            engine.revert_to(BlockNumber(0)).unwrap();
            has(&engine, Some(1), Some(1), None, "back to 0");
            check_whole(&engine);
            // Refused blocks' go, too, and what they covered is there again.
            if cadence != Cadence::AtClose {
                close(&engine, 1, &[blob("a", 5)]);
                let wrong = StateUpdate { new_root: Some(0xbad.into()), ..block(2) };
                engine.close_block(NewBlock::from(&wrong).with_blobs(&[blob("a", 6), blob("c", 6)])).unwrap();
                engine.commit().unwrap_err();
                has(&engine, Some(5), Some(1), None, "refused");
            }
            drop(engine);
            check_whole(&machine.open(layout, cadence));
        }
    }
}

/// t09 of the trials: blocks that are committed as one count as many as they are.
#[test]
fn history_counts_blocks_also_where_they_are_committed_as_one() {
    for (layout, _) in layouts() {
        let config = config(Cadence::OnRequest, 1)
            .with_coalesce(true)
            .with_history_blocks(12)
            .with_recent_blocks_max(0);
        let engine = Place::memory().open(layout, config);
        for number in 0..60 {
            engine.close_block(&block(number)).unwrap();
            if number % 10 == 9 {
                engine.commit().unwrap();
            }
        }
        engine.sync().unwrap();
        // The last twelve are 48 to 59, and what takes 48 back takes 40 to 49 back.
        let reach = [29, 39, 49].map(|to| engine.view_at(BlockNumber(to)).is_ok());
        assert!(layout == "patricia-hash" || reach == [false, true, true], "{layout}: {reach:?}");
        assert_eq!(engine.revert_to(BlockNumber(29)).unwrap_err().kind(), ErrorKind::Expired, "{layout}");
        engine.revert_to(BlockNumber(39)).unwrap();
        assert_eq!(engine.head().closed, Some(BlockNumber(39)));
    }
}
