//! Who closes a block is told what becomes of it, and nobody else; and a block is closed on the state it was executed on.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use flagstone::core::types::{BlockNumber, StateCommitment};
use flagstone::engine::{Event, NewBlock, Stage};
use flagstone::store::MemoryStore;
use flagstone::{Cadence, Engine, EngineConfig, Error, ErrorKind, StateDiff, StateUpdate, database};

use crate::support::{BeforeWrites, Place, config, settle};

/// A block that sets one slot of contract 1.
fn update(number: Option<u64>, slot: u64, value: u64) -> StateUpdate {
    let diff = StateDiff::builder().storage(1.into(), slot.into(), value.into()).class(7.into(), 8.into());
    StateUpdate {
        block_number: number.map(BlockNumber),
        starknet_version: "0.14.0".parse().ok(),
        ..StateUpdate::from(diff.build().unwrap())
    }
}

fn wrong(slot: u64, value: u64) -> StateUpdate {
    StateUpdate { new_root: Some(StateCommitment::from(0xbad)), ..update(None, slot, value) }
}

fn memory(config: EngineConfig) -> Engine {
    Engine::open(Box::new(MemoryStore::new()), flagstone::layout("flat").unwrap().make(), config).unwrap()
}

fn slot(engine: &Engine, slot: u64) -> u64 {
    let value = engine.view().storage_at(&1.into(), &slot.into()).unwrap();
    (0..10_000).find(|number| value == (*number).into()).unwrap()
}

/// An engine over a store in memory that does something before each write.
fn before_writes(before: impl Fn() + Send + Sync + 'static) -> Engine {
    let store = BeforeWrites { inner: MemoryStore::new(), before };
    let layout = flagstone::layout("flat").unwrap().make();
    Engine::open(Box::new(store), layout, config(Cadence::EVERY_BLOCK, 1)).unwrap()
}

#[test]
fn a_failure_is_told_to_its_own_block_and_those_on_top_and_to_subscribers() {
    let engine = memory(config(Cadence::OnRequest, 1));
    let events = engine.subscribe();
    let before = engine.close_block(&update(None, 1, 1)).unwrap();
    let failing = engine.close_block(&wrong(1, 2)).unwrap();
    let on_top = engine.close_block(&update(None, 2, 2)).unwrap();
    assert!(failing.committed().now().is_none());
    let root = before.committed().wait().unwrap();
    assert_eq!(root, engine.block_root(before.number()).unwrap());
    assert!(matches!(
        on_top.persisted().wait(),
        Err(Error::TakenBack { block: BlockNumber(2), with: BlockNumber(1), .. })
    ));
    assert!(matches!(failing.committed().wait(), Err(Error::RootMismatch { block: BlockNumber(1), .. })));
    assert!(
        matches!(failing.committed().now(), Some(Err(Error::RootMismatch { .. }))),
        "again, who asks again"
    );
    before.persisted().wait().unwrap();
    // Its closer was told, so the next block is one that knows.
    let next = engine.close_block(&update(None, 3, 3)).unwrap();
    assert_eq!(next.number(), BlockNumber(1));
    next.persisted().wait().unwrap();
    let told: Vec<String> = std::iter::from_fn(|| events.next_within(Duration::from_millis(200)))
        .map(|event| match event {
            Event::Committed(block) => format!("committed {}", block.number),
            Event::Persisted(block) => format!("persisted {block}"),
            Event::TakenBack { first, last, error } => {
                format!("taken back {first} to {last}: {}", error.block().unwrap())
            }
            other => format!("{other:?}"),
        })
        .collect();
    let mut committed: Vec<&String> = told.iter().filter(|event| !event.starts_with("persisted")).collect();
    committed.dedup();
    assert_eq!(committed, ["committed 0", "taken back 1 to 2: 1", "committed 1"]);
    assert_eq!(told.iter().filter(|event| event.starts_with("persisted")).count(), 2, "{told:?}");
}

/// Whether the blocks were dropped, as nothing of them was written, or led back from.
#[test]
fn who_subscribed_is_told_of_blocks_that_are_gone_back_from() {
    let engine = memory(config(Cadence::EVERY_BLOCK, 1));
    (1..=5).for_each(|value| drop(engine.close_block(&update(None, 1, value)).unwrap()));
    engine.sync().unwrap();
    let events = engine.subscribe();
    let taken_back = || loop {
        match events.next_within(Duration::from_secs(60)).unwrap() {
            Event::TakenBack { first, last, error } => break (first.0, last.0, error.to_string()),
            _ => continue,
        }
    };
    engine.revert_to(BlockNumber(2)).unwrap();
    let (first, last, why) = taken_back();
    assert_eq!((first, last), (3, 4));
    assert!(why.contains("the state went back to block 2"), "{why}");
    engine.revert_to(BlockNumber(2)).unwrap();
    engine.revert_to(BlockNumber(1)).unwrap();
    assert_eq!(taken_back().0, 2, "going nowhere takes nothing back");
}

/// t02 of the trials.
#[test]
fn a_reader_is_not_told_of_anothers_block_and_a_closer_who_knows_nothing_is_refused_once() {
    let engine = memory(config(Cadence::EVERY_BLOCK, 1));
    engine.close_block(&update(None, 1, 1)).unwrap();
    engine.commit().unwrap();
    let events = engine.subscribe();
    let failing = engine.close_block(&wrong(1, 2)).unwrap();
    let taken_back = |event| matches!(event, Event::TakenBack { .. });
    while !events.next_within(Duration::from_secs(60)).is_some_and(taken_back) {}
    assert!(engine.wait_for_root(BlockNumber(0)).is_ok());
    assert!(matches!(engine.wait_for_root(BlockNumber(1)), Err(Error::NotClosed { .. })));
    engine.sync().unwrap();
    // Executed on the state after the block that is gone.
    let error = engine.close_block(&update(None, 5, 3)).unwrap_err();
    assert!(matches!(error, Error::RootMismatch { block: BlockNumber(1), .. }), "{error}");
    let next = engine.close_block(&update(None, 5, 4)).unwrap();
    assert_eq!((next.number(), slot(&engine, 1), slot(&engine, 5)), (BlockNumber(1), 1, 4));
    assert!(failing.committed().now().unwrap().is_err());
    next.committed().wait().unwrap();
}

/// t03 of the trials: with the state it was executed on, a block is not closed on another one of the same number.
#[test]
fn a_block_is_closed_on_the_state_it_was_executed_on_or_refused() {
    for cadence in [Cadence::AtClose, Cadence::EVERY_BLOCK] {
        let engine = memory(config(cadence, 1));
        for number in 0..3 {
            let parent = engine.view().state();
            let block =
                engine.close_block(NewBlock::from(&update(Some(number), 1, number + 1)).on(parent)).unwrap();
            assert_eq!(block.state(), engine.view().state());
            assert_ne!(block.state(), parent);
        }
        let view = engine.view();
        engine.revert_to(BlockNumber(1)).unwrap();
        let other = engine.close_block(&update(Some(2), 1, 100)).unwrap();
        let executed = update(Some(3), 2, 4);
        let error = engine.close_block(NewBlock::from(&executed).on(view.state())).unwrap_err();
        let Error::WrongState { block, parent, tip, now } = error else { panic!("{error}") };
        assert_eq!(
            (block, parent, tip, now),
            (BlockNumber(3), view.state(), other.state(), Some(BlockNumber(2)))
        );
        assert_eq!((engine.head().closed, slot(&engine, 2)), (Some(BlockNumber(2)), 0));
        engine.close_block(NewBlock::from(&executed).on(engine.view().state())).unwrap();
        // Also after a revert of everything above, where the state is one of before.
        engine.revert_to(BlockNumber(1)).unwrap();
        let state = engine.view_at(BlockNumber(1)).unwrap().state();
        assert_eq!(engine.view().state(), state);
        engine.close_block(NewBlock::from(&update(Some(2), 1, 7)).on(state)).unwrap();
    }
}

#[test]
fn a_state_keeps_its_id_over_reopenings_and_in_views_of_earlier_blocks() {
    for (layout, _) in crate::support::layouts() {
        let place = Place::memory();
        let engine = place.open(layout, config(Cadence::AtClose, 1));
        let states: Vec<_> =
            (0..4).map(|n| engine.close_block(&update(None, 1, n + 1)).unwrap().state()).collect();
        settle(&engine);
        engine.close().unwrap();
        let engine = place.open(layout, config(Cadence::AtClose, 1));
        assert_eq!(engine.view().state(), states[3]);
        for (number, state) in (0..).zip(&states) {
            assert_eq!(
                engine.view_at(BlockNumber(number)).unwrap().state(),
                *state,
                "{layout}, block {number}"
            );
        }
    }
}

/// t21 of the trials.
#[test]
fn who_waits_by_number_is_never_given_the_root_of_another_block() {
    for round in 0..100 {
        let engine = Arc::new(memory(config(Cadence::EVERY_BLOCK, 1)));
        engine.close_block(&update(None, 1, 1)).unwrap();
        engine.commit().unwrap();
        let failing = engine.close_block(&wrong(1, 2)).unwrap();
        let waiters: Vec<_> = (0..3)
            .map(|_| {
                let engine = Arc::clone(&engine);
                thread::spawn(move || engine.wait_for_root(BlockNumber(1)))
            })
            .collect();
        assert!(failing.committed().wait().is_err());
        let outcomes: Vec<_> = waiters.into_iter().map(|waiter| waiter.join().unwrap()).collect();
        assert!(outcomes.iter().all(Result::is_err), "round {round}: {outcomes:?}");
        engine.close_block(&update(None, 9, 9)).unwrap().committed().wait().unwrap();
    }
}

/// t04 of the trials: `sync` is for what is there when it is called.
#[test]
fn sync_returns_while_blocks_come() {
    let engine = before_writes(|| thread::sleep(Duration::from_millis(5)));
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let closer = scope.spawn(|| {
            for number in 0.. {
                if stop.load(Ordering::Relaxed) {
                    return number;
                }
                engine.close_block(&update(None, number % 50, number)).unwrap();
            }
            0
        });
        while engine.head().closed < Some(BlockNumber(3)) {
            thread::yield_now();
        }
        for _ in 0..50 {
            let committed = engine.head().committed;
            engine.sync().unwrap();
            assert!(engine.head().persisted >= committed);
        }
        stop.store(true, Ordering::Relaxed);
        assert!(closer.join().unwrap() > 0);
    });
}

/// t06 of the trials.
#[test]
fn a_view_that_outlives_its_engine_locks_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("db");
    for value in 1..4 {
        let engine = database::open_or_create(&dir, None, None, config(Cadence::EVERY_BLOCK, 1)).unwrap();
        let block = engine.close_block(&update(None, 1, value)).unwrap();
        let (view, committed) = (engine.view(), block.committed());
        engine.close().unwrap();
        assert!(committed.now().is_some(), "what is wanted is committed before the end");
        assert_eq!(view.storage_at(&1.into(), &1.into()).unwrap(), value.into());
        let error = view.storage_at(&1.into(), &77.into()).unwrap_err();
        assert!(error.to_string().contains("the engine was closed"), "{error}");
        assert_eq!(error.kind(), ErrorKind::Stopped);
    }
}

#[test]
fn what_is_closed_and_not_committed_at_the_end_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("db");
    let engine = database::open_or_create(&dir, None, None, config(Cadence::OnRequest, 1)).unwrap();
    let block = engine.close_block(&update(None, 1, 1)).unwrap();
    let later = block.persisted();
    drop(engine);
    assert!(matches!(block.committed().wait(), Err(Error::Ended)));
    assert!(matches!(later.wait(), Err(Error::Ended)));
    let engine = database::open(&dir, None, config(Cadence::OnRequest, 1)).unwrap();
    assert_eq!(engine.commit().unwrap().committed, Some(BlockNumber(0)));
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// The plainest executor of one future.
fn block_on<T>(future: Stage<T>) -> Result<T, Error> {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(outcome) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return outcome;
        }
        thread::park();
    }
}

#[test]
fn a_stage_is_waited_for_with_a_timeout_a_callback_or_as_a_future() {
    for cadence in
        [Cadence::AtClose, Cadence::EVERY_BLOCK, Cadence::Blocks(100.try_into().unwrap()), Cadence::OnRequest]
    {
        let engine = memory(config(cadence, 1));
        for number in 0..20u64 {
            let block = engine.close_block(&update(None, number, number + 1)).unwrap();
            let root = match number % 4 {
                0 => block_on(block.committed()).unwrap(),
                1 => {
                    let (tell, told) = channel();
                    block.committed().then(move |root| tell.send(root.unwrap()).unwrap());
                    told.recv_timeout(Duration::from_secs(60)).unwrap()
                }
                2 => block.committed().wait_for(Duration::from_secs(60)).unwrap().unwrap(),
                _ => {
                    block_on(block.persisted()).unwrap();
                    block.committed().now().unwrap().unwrap()
                }
            };
            assert_eq!(root, engine.block_root(block.number()).unwrap(), "{cadence:?}");
        }
        if cadence == Cadence::AtClose {
            continue;
        }
        let (tell, told) = channel();
        let failing = engine.close_block(&wrong(1, 99)).unwrap();
        failing.persisted().then(move |outcome| tell.send(outcome).unwrap());
        assert!(told.recv_timeout(Duration::from_secs(60)).unwrap().is_err());
        assert!(block_on(failing.persisted()).is_err());
    }
}

/// A wait that ends in time has not harmed the block.
#[test]
fn a_timeout_says_nothing_of_the_block() {
    let gate = Arc::new(Mutex::new(()));
    let waits = Arc::clone(&gate);
    let engine = before_writes(move || drop(waits.lock().unwrap()));
    let held = gate.lock().unwrap();
    let block = engine.close_block(&update(None, 1, 1)).unwrap();
    let began = Instant::now();
    assert!(block.persisted().wait_for(Duration::from_millis(50)).is_none());
    assert!(began.elapsed() >= Duration::from_millis(50));
    drop(held);
    block.persisted().wait().unwrap();
}
