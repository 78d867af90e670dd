//! The engine when the power goes: over a journal on a faulty disk and a store that loses what it did not sync.
//!
//! A scripted run, with a refused block and a revert in it, is cut at every operation on the journal's files in turn, and at
//! every operation on the store. After each: what was acknowledged is there, roots are right, values and tries agree, and
//! the run goes on to the same end. The engine's threads take their turns as they like, so a cut at one operation is not
//! the same cut each time; what is asserted holds for all of them.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex};

use flagstone::core::diff::ContractDiff;
use flagstone::core::types::{BlockNumber, ContractAddress, StateCommitment, StorageKey};
use flagstone::journal::faulty::{Fault, FaultyFiles};
use flagstone::store::{Capabilities, Row, Store, StoreError, StoreErrorKind, StoreRead, Visit, WriteBatch};
use flagstone::{Cadence, Engine, Error, StateDiff, StateUpdate};

use crate::support::{check_tries, config, every, layouts, root_of};

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

/// A store in memory that has synced some batches and not others.
#[derive(Default)]
struct Unreliable {
    synced: Rows,
    unsynced: Vec<WriteBatch>,
    visible: Rows,
    operations: u64,
    /// The operation that fails, and whether what it was to write is there all the same.
    failing: Option<(u64, bool)>,
    broken: bool,
}

impl Unreliable {
    /// Counts an operation; from the one that fails on, all do.
    fn operation(&mut self) -> Result<(), StoreError> {
        self.broken |= self.failing.is_some_and(|(failing, _)| failing == self.operations);
        self.operations += 1;
        if self.broken { Err(StoreError::new(StoreErrorKind::Io, "the disk is gone")) } else { Ok(()) }
    }
}

#[derive(Clone, Default)]
struct UnreliableStore(Arc<Mutex<Unreliable>>);

fn apply(rows: &mut Rows, batch: &WriteBatch) {
    for (key, row) in batch.iter() {
        match row {
            Some(row) => rows.insert(key.to_vec(), row.to_vec()),
            None => rows.remove(key),
        };
    }
}

impl UnreliableStore {
    /// Loses all but some of the first unsynced batches, as a log does.
    fn crash(&self, seed: u64) {
        let mut store = self.0.lock().unwrap();
        let kept = seed as usize % (store.unsynced.len() + 1);
        let unsynced = std::mem::take(&mut store.unsynced);
        unsynced.iter().take(kept).for_each(|batch| apply(&mut store.synced, batch));
        store.visible = store.synced.clone();
        (store.failing, store.broken) = (None, false);
    }
}

impl StoreRead for UnreliableStore {
    fn get(&self, key: &[u8]) -> Result<Row, StoreError> {
        Ok(self.0.lock().unwrap().visible.get(key).cloned())
    }
    fn scan(&self, prefix: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        let rows = self.0.lock().unwrap().visible.clone();
        for (key, row) in rows.range(prefix.to_vec()..).take_while(|(key, _)| key.starts_with(prefix)) {
            if let ControlFlow::Break(()) = visit(key, row) {
                break;
            }
        }
        Ok(())
    }
}

impl Store for UnreliableStore {
    fn name(&self) -> &'static str {
        "unreliable"
    }
    fn write(&self, batch: &WriteBatch) -> Result<(), StoreError> {
        let mut store = self.0.lock().unwrap();
        let outcome = store.operation();
        if outcome.is_ok() || store.failing.is_some_and(|(_, done)| done) {
            apply(&mut store.visible, batch);
            store.unsynced.push(batch.clone());
        }
        outcome
    }
    fn sync(&self) -> Result<(), StoreError> {
        let mut store = self.0.lock().unwrap();
        store.operation()?;
        for batch in std::mem::take(&mut store.unsynced) {
            apply(&mut store.synced, &batch);
        }
        Ok(())
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities { atomic_batches: true, durable: true }
    }
}

const BLOCKS: u64 = 9;
/// The block that is first given with a wrong root.
const WRONG: u64 = 5;
/// The block after which some are taken back, down to another.
const REVERT_AT: u64 = 7;
const REVERT_TO: u64 = 3;

fn block(number: u64) -> StateUpdate {
    let diff = StateDiff::builder()
        .storage((number % 3).into(), (number + 10).into(), (number + 100).into())
        .storage(1.into(), 1.into(), (number % 4).into())
        .nonce(1.into(), (number + 1).into())
        .class((number % 5 + 50).into(), (number + 60).into());
    StateUpdate {
        block_number: Some(BlockNumber(number)),
        starknet_version: "0.13.5".parse().ok(),
        ..StateUpdate::from(diff.build().unwrap())
    }
}

struct Machine {
    layout: &'static str,
    cadence: Cadence,
    files: FaultyFiles,
    store: UnreliableStore,
    roots: Vec<StateCommitment>,
}

impl Machine {
    fn open(&self) -> Result<Engine, Error> {
        let layout = flagstone::layout(self.layout).unwrap().make();
        let config = config(self.cadence, 1).with_persist_every(3);
        Engine::open_journaled(
            Box::new(self.store.clone()),
            layout,
            config,
            Arc::new(self.files.clone()),
            Path::new("/journal"),
        )
    }

    fn stated(&self, number: u64) -> StateUpdate {
        StateUpdate { new_root: self.roots.get(number as usize).copied(), ..block(number) }
    }

    /// Closes the blocks from where the database is, one of them first with a wrong root, commits in between, and once goes
    /// back some blocks. Returns the last block that was acknowledged and not taken back since.
    fn run(&self, engine: &Engine) -> (Option<u64>, Result<(), Error>) {
        let mut acknowledged = engine.head().closed.map(|block| block.0);
        let (mut refused, mut reverted) = (false, false);
        while acknowledged.is_none_or(|last| last + 1 < BLOCKS) {
            let number = acknowledged.map_or(0, |last| last + 1);
            let mut update = self.stated(number);
            if number == WRONG && !refused {
                update.new_root = Some(0xbad.into());
                refused = true;
            }
            let mut outcome = engine.close_block(&update).map(|_| Some(number));
            if outcome.is_ok() && (number % 4 == 1 || number + 1 == BLOCKS) {
                outcome = engine.commit().map(|_| Some(number));
            }
            if outcome.is_ok() && number == REVERT_AT && !reverted {
                reverted = true;
                // From here on what was acknowledged is what is left, whether the revert comes about or not.
                acknowledged = Some(REVERT_TO);
                outcome = engine.revert_to(BlockNumber(REVERT_TO)).map(|_| Some(REVERT_TO));
            }
            match outcome {
                Ok(block) => acknowledged = block,
                Err(Error::RootMismatch { .. }) => acknowledged = engine.head().closed.map(|block| block.0),
                // The block may be there or not; those before it must.
                Err(error) => return (acknowledged, Err(error)),
            }
        }
        (acknowledged, engine.commit().map(|_| ()))
    }

    /// What must hold after a crash: everything acknowledged is there, all roots are right, and it goes on to the end.
    fn check(&self, acknowledged: Option<u64>, what: &str) {
        let engine = self.open().unwrap_or_else(|error| panic!("{what}: {error}"));
        let closed = engine.head().closed.map(|block| block.0);
        assert!(
            closed >= acknowledged,
            "{what}: {acknowledged:?} was acknowledged, the database is at {closed:?}"
        );
        // A block with a wrong root may have been acknowledged before its commitment; it is refused now.
        match engine.commit() {
            Ok(_) | Err(Error::RootMismatch { block: BlockNumber(WRONG), .. }) => {}
            Err(error) => panic!("{what}: {error}"),
        }
        let (last, outcome) = self.run(&engine);
        outcome.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(last, Some(BLOCKS - 1), "{what}");
        for (number, root) in (0..).zip(&self.roots) {
            let stored = engine.block_root(BlockNumber(number)).unwrap();
            assert_eq!(stored.map(|root| root.commitment), Some(*root), "{what}: block {number}");
        }
        assert_eq!(check_tries(&engine, &all_slots(), what), Some(BlockNumber(BLOCKS - 1)), "{what}");
        let view = engine.view();
        assert_eq!(view.storage_at(&1.into(), &1.into()).unwrap(), ((BLOCKS - 1) % 4).into(), "{what}");
        assert_eq!(view.nonce_at(&1.into()).unwrap(), BLOCKS.into(), "{what}");
    }
}

/// Every slot that a block sets, by contract.
fn all_slots() -> Vec<(ContractAddress, Vec<StorageKey>)> {
    let diffs = (0..BLOCKS).flat_map(|number| block(number).diff.contracts().to_vec());
    let slots = |contract: ContractDiff| contract.storage.into_iter().map(|(key, _)| key).collect();
    diffs.map(|contract| (contract.address, slots(contract))).collect()
}

fn machine(layout: &'static str, cadence: Cadence, roots: &[StateCommitment]) -> Machine {
    let (files, store) = (FaultyFiles::new(), UnreliableStore::default());
    Machine { layout, cadence, files, store, roots: roots.to_vec() }
}

fn known_roots() -> Vec<StateCommitment> {
    let reference = machine("flat", Cadence::AtClose, &[]);
    let engine = reference.open().unwrap();
    (0..BLOCKS).map(|number| root_of(&engine, &block(number))).collect()
}

#[test]
fn a_power_cut_at_any_operation_loses_nothing_acknowledged() {
    let roots = known_roots();
    for (layout, _) in layouts() {
        for cadence in [Cadence::AtClose, Cadence::EVERY_BLOCK, every(3), Cadence::OnRequest] {
            let whole = machine(layout, cadence, &roots);
            whole.run(&whole.open().unwrap()).1.unwrap();
            let operations = whole.files.operations();
            assert!(operations > 15, "{operations}");
            for cut in 0..operations {
                for seed in 0..3 {
                    let machine = machine(layout, cadence, &roots);
                    machine.files.plan(Fault::PowerCut(cut));
                    let acknowledged = machine.open().map_or(None, |engine| machine.run(&engine).0);
                    machine.files.crash(cut * 7 + seed);
                    machine.store.crash(cut * 5 + seed);
                    let what = format!("{layout}, {cadence:?}, power cut at operation {cut}, seed {seed}");
                    machine.check(acknowledged, &what);
                }
            }
        }
    }
}

#[test]
fn a_failing_operation_stops_the_engine_and_loses_nothing_acknowledged() {
    let roots = known_roots();
    for (layout, _) in layouts() {
        let whole = machine(layout, every(3), &roots);
        whole.run(&whole.open().unwrap()).1.unwrap();
        for failing in 0..whole.files.operations() {
            let machine = machine(layout, every(3), &roots);
            machine.files.plan(Fault::Fail(failing));
            let acknowledged = machine.open().map_or(None, |engine| machine.run(&engine).0);
            machine.files.crash(failing);
            machine.store.crash(failing);
            machine.check(acknowledged, &format!("{layout}, operation {failing} fails"));
        }
    }
}

#[test]
fn a_failing_store_stops_the_engine_and_loses_nothing_acknowledged() {
    let roots = known_roots();
    for (layout, _) in layouts() {
        for cadence in [Cadence::AtClose, every(2)] {
            let whole = machine(layout, cadence, &roots);
            whole.run(&whole.open().unwrap()).1.unwrap();
            let operations = whole.store.0.lock().unwrap().operations;
            assert!(operations > 5, "{operations}");
            for failing in 0..operations {
                for done in [false, true] {
                    let machine = machine(layout, cadence, &roots);
                    machine.store.0.lock().unwrap().failing = Some((failing, done));
                    let acknowledged = machine.open().map_or(None, |engine| machine.run(&engine).0);
                    machine.files.crash(failing);
                    machine.store.crash(failing * 3 + u64::from(done));
                    let what =
                        format!("{layout}, {cadence:?}, store operation {failing} fails, done: {done}");
                    machine.check(acknowledged, &what);
                }
            }
        }
    }
}

#[test]
fn a_store_that_lost_more_than_the_journal_holds_is_refused() {
    let roots = known_roots();
    let machine = machine("flat", Cadence::EVERY_BLOCK, &roots);
    for _ in 0..3 {
        // Each opening begins a segment, and trims those before it.
        let engine = machine.open().unwrap();
        let next = engine.head().closed.map_or(0, |block| block.0 + 1);
        (next..next + 3).for_each(|number| drop(engine.close_block(&machine.stated(number)).unwrap()));
        engine.commit().unwrap();
    }
    *machine.store.0.lock().unwrap() = Unreliable::default();
    let error = machine.open().unwrap_err();
    assert!(error.to_string().contains("are lost"), "{error}");
}
