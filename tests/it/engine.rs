//! What the engine accepts, refuses and keeps.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use flagstone::core::types::{BlockNumber, StateCommitment};
use flagstone::engine::{Blob, EngineConfig, NewBlock};
use flagstone::journal::faulty::FaultyFiles;
use flagstone::store::{
    Capabilities, MemoryStore, Row, Store, StoreError, StoreErrorKind, StoreRead, Visit, WriteBatch,
};
use flagstone::{Cadence, Engine, Error, ErrorKind, StateDiff, StateUpdate, database};

use crate::support::{BeforeWrites, CADENCES, Gate, Place, config, every, layouts, replay, settle, updates};

/// A block that sets slot 1 of contract 1, and a slot of its own.
fn block(number: u64) -> StateUpdate {
    let diff = StateDiff::builder()
        .storage(1.into(), 1.into(), (number + 100).into())
        .storage(2.into(), number.into(), 7.into())
        .nonce(1.into(), (number + 1).into())
        .class((number + 50).into(), (number + 60).into());
    StateUpdate {
        block_number: Some(BlockNumber(number)),
        starknet_version: "0.13.5".parse().ok(),
        ..StateUpdate::from(diff.build().unwrap())
    }
}

/// The commitments of blocks 0 to `count` - 1.
fn roots(count: u64) -> Vec<StateCommitment> {
    let blocks: Vec<StateUpdate> = (0..count).map(block).collect();
    replay(&Place::memory().open("flat", EngineConfig::default()), &blocks)
}

fn slot(engine: &Engine) -> u64 {
    let value = engine.view().storage_at(&1.into(), &1.into()).unwrap();
    u64::try_from(value.0).unwrap()
}

/// What an identity that does not match advises.
const WAY_OUT: &str = "open it as what it is, with the version of this program that wrote it, \
                       or import a dump of it into another database";

#[test]
fn another_layout_is_refused_naming_both() {
    for (written, by) in layouts() {
        let place = Place::memory();
        replay(&place.open(written, EngineConfig::default()), &[block(0)]);
        for (opened, layout) in layouts().filter(|(opened, _)| *opened != written) {
            let [old, new] = [by.format_version(), layout.format_version()];
            let error = Engine::open(place.store(), layout, EngineConfig::default()).unwrap_err();
            let expected = format!(
                "layout mismatch: database was written by `{written}` v{old}, opened as `{opened}` v{new}; {WAY_OUT}"
            );
            assert_eq!(error.to_string(), expected);
            assert_eq!(error.kind(), ErrorKind::Misconfigured);
        }
    }
}

/// Changes one word of the identity row behind the engine's back, with a seal that fits.
fn rewrite_identity(place: &Place, from: &str, to: &str) {
    use flagstone::store::Sealed;
    let store = Sealed::from_box(place.store());
    let key = [&[0u8][..], b"identity"].concat();
    let text = String::from_utf8(store.get(&key).unwrap().unwrap()).unwrap();
    assert!(text.contains(from));
    let mut batch = WriteBatch::default();
    batch.put(key, text.replace(from, to).into_bytes());
    store.write(&batch).unwrap();
}

#[track_caller]
fn check_identity(from: &str, to: &str, expected: &str) {
    let place = Place::memory();
    drop(place.open("flat", EngineConfig::default()));
    rewrite_identity(&place, from, to);
    let layout = flagstone::layout("flat").unwrap().make();
    let error = Engine::open(place.store(), layout, EngineConfig::default()).unwrap_err();
    assert_eq!(error.to_string(), format!("{expected}; {WAY_OUT}"));
}

#[test]
fn another_format_version_or_scheme_is_refused_naming_both() {
    check_identity(
        "layout-format: 2",
        "layout-format: 9",
        "layout mismatch: database was written by `flat` v9, opened as `flat` v2",
    );
    check_identity(
        "engine-format: 5",
        "engine-format: 2",
        "engine format mismatch: database was written by v2, opened as v5",
    );
    check_identity(
        "scheme: starknet-state-v0",
        "scheme: blake",
        "scheme mismatch: database was written by blake, opened as starknet-state-v0",
    );
}

/// t10 of the trials: a block that takes the last class away needs a version, and is asked for it before it is acknowledged.
#[test]
fn no_acknowledged_block_is_refused_for_want_of_a_version() {
    for cadence in CADENCES {
        for is_committed in [false, true] {
            let engine = Place::memory().open("flat", config(cadence, 1));
            engine.close_block(&block(0)).unwrap();
            if is_committed {
                engine.commit().unwrap();
            }
            let undeclared = StateDiff::builder().class(50.into(), 0.into()).build().unwrap();
            let error = engine.close_block(&StateUpdate::from(undeclared.clone())).unwrap_err();
            assert!(matches!(error, Error::VersionNeeded { block: BlockNumber(1) }), "{cadence:?}: {error}");
            let on = engine.view().state();
            let error = engine.propose(on, &StateUpdate::from(undeclared.clone())).unwrap_err();
            assert!(matches!(error, Error::VersionNeeded { block: BlockNumber(1) }), "{cadence:?}: {error}");
            let with =
                StateUpdate { starknet_version: "0.14.0".parse().ok(), ..StateUpdate::from(undeclared) };
            engine.close_block(&with).unwrap();
            engine.commit().unwrap();
        }
    }
}

#[test]
fn a_store_with_rows_of_something_else_is_no_database() {
    let place = Place::memory();
    let mut batch = WriteBatch::default();
    batch.put(b"something", b"else");
    place.store().write(&batch).unwrap();
    let layout = flagstone::layout("flat").unwrap().make();
    let error = Engine::open(place.store(), layout, EngineConfig::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
}

#[test]
fn blocks_must_follow_each_other_by_number() {
    for (layout, _) in layouts() {
        for cadence in [Cadence::EVERY_BLOCK, every(5)] {
            let engine = Place::memory().open(layout, config(cadence, 1));
            engine.close_block(&block(7)).unwrap();
            for wrong in [6, 7, 9] {
                let error = engine.close_block(&block(wrong)).unwrap_err();
                assert_eq!(
                    error.to_string(),
                    format!("block {wrong} does not follow: the next block of this database is 8")
                );
            }
            engine.close_block(&block(8)).unwrap();
            assert_eq!(engine.head().closed, Some(BlockNumber(8)));
            let unnumbered = StateUpdate { block_number: None, ..block(9) };
            engine.close_block(&unnumbered).unwrap();
            assert_eq!(engine.head().closed, Some(BlockNumber(9)));
        }
    }
}

#[test]
fn a_block_on_another_parent_is_refused_at_every_cadence() {
    let known = roots(3);
    for (layout, _) in layouts() {
        for cadence in [Cadence::EVERY_BLOCK, every(2), every(3), Cadence::OnRequest] {
            let engine = Place::memory().open(layout, config(cadence, 1));
            let wrong = StateUpdate { old_root: Some(5.into()), ..block(0) };
            let error = engine.close_block(&wrong).unwrap_err();
            assert!(matches!(error, Error::WrongParent { block: BlockNumber(0), .. }));
            engine.close_block(&block(0)).unwrap();
            engine.close_block(&StateUpdate { old_root: Some(known[0]), ..block(1) }).unwrap();
            let wrong = StateUpdate { old_root: Some(known[0]), ..block(2) };
            let error = engine.close_block(&wrong).and_then(|_| engine.commit()).unwrap_err();
            let Error::WrongParent { block: number, stated, actual } = error else { panic!("{error}") };
            assert_eq!((number.0, stated, actual), (2, known[0], known[1]));
            assert_eq!(engine.head().closed, Some(BlockNumber(1)));
            assert_eq!(slot(&engine), 101);
            engine.close_block(&StateUpdate { old_root: Some(known[1]), ..block(2) }).unwrap();
            engine.commit().unwrap();
            assert_eq!(engine.head().root.commitment, known[2]);
        }
    }
}

#[test]
fn nothing_is_kept_of_a_block_whose_root_does_not_match() {
    let known = roots(4);
    for place in [Place::memory, Place::directory] {
        for (layout, _) in layouts() {
            for cadence in [Cadence::EVERY_BLOCK, every(3), every(4), Cadence::OnRequest] {
                let place = place();
                let engine = place.open(layout, config(cadence, 1));
                let stated = |number: u64, root| StateUpdate { new_root: Some(root), ..block(number) };
                engine.close_block(&stated(0, known[0])).unwrap();
                engine.close_block(&stated(1, known[1])).unwrap();
                let mut outcome = engine.close_block(&stated(2, 0xbad.into())).map(drop);
                if outcome.is_ok() {
                    outcome = engine.close_block(&block(3)).and_then(|_| engine.commit().map(drop));
                }
                let error = outcome.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Root);
                let Error::RootMismatch { block: number, stated: s, computed } = error else {
                    panic!("{error}")
                };
                assert_eq!((number.0, s, computed), (2, 0xbad.into(), known[2]));
                drop(engine);

                let engine = place.open(layout, config(cadence, 1));
                assert_eq!(engine.head().closed, Some(BlockNumber(1)), "{layout}, {cadence:?}");
                assert_eq!(engine.head().committed, Some(BlockNumber(1)));
                let view = engine.view();
                assert_eq!(view.storage_at(&1.into(), &1.into()).unwrap(), 101.into());
                assert_eq!(view.storage_at(&2.into(), &2.into()).unwrap(), 0.into());
                assert_eq!(view.nonce_at(&1.into()).unwrap(), 2.into());
                assert_eq!(view.compiled_class_hash_at(&52.into()).unwrap(), 0.into());
                assert_eq!(engine.block_root(BlockNumber(2)).unwrap(), None);
                engine.close_block(&stated(2, known[2])).unwrap();
                engine.close_block(&stated(3, known[3])).unwrap();
                engine.commit().unwrap();
                assert_eq!(engine.head().root.commitment, known[3]);
            }
        }
    }
}

#[test]
fn an_unknown_version_is_refused_only_where_it_matters() {
    let no_class = |number: u64| StateUpdate {
        block_number: Some(BlockNumber(number)),
        ..StateUpdate::from(StateDiff::builder().storage(1.into(), number.into(), 1.into()).build().unwrap())
    };
    let with_class = StateUpdate { starknet_version: None, ..block(1) };
    for cadence in [Cadence::EVERY_BLOCK, Cadence::OnRequest] {
        let engine = Place::memory().open("flat", config(cadence, 1));
        let error = engine.close_block(&no_class(0)).unwrap_err();
        assert!(matches!(error, Error::VersionNeeded { block: BlockNumber(0) }), "{error}");
        assert_eq!(engine.head().closed, None);
        engine.close_block(&StateUpdate { starknet_version: "0.14.0".parse().ok(), ..no_class(0) }).unwrap();
        engine.close_block(&with_class).unwrap();
        engine.close_block(&no_class(2)).unwrap();
        assert_eq!(engine.commit().map(|_| engine.head().committed).unwrap(), Some(BlockNumber(2)));
    }
}

#[test]
fn a_stated_root_tells_the_rule_where_the_version_is_missing() {
    let diff = StateDiff::builder().storage(1.into(), 1.into(), 1.into()).build().unwrap();
    for version in ["0.13.5", "0.14.0"] {
        let stated = {
            let engine = Place::memory().open("flat", EngineConfig::default());
            let starknet_version = version.parse().ok();
            replay(&engine, &[StateUpdate { starknet_version, ..StateUpdate::from(diff.clone()) }])[0]
        };
        let engine = Place::memory().open("flat", EngineConfig::default());
        let update = StateUpdate { new_root: Some(stated), ..StateUpdate::from(diff.clone()) };
        assert_eq!(replay(&engine, std::slice::from_ref(&update)), [stated]);
        let other = StateUpdate {
            new_root: Some(stated),
            starknet_version: (if version == "0.14.0" { "0.13.5" } else { "0.14.0" }).parse().ok(),
            ..StateUpdate::from(diff.clone())
        };
        let engine = Place::memory().open("flat", EngineConfig::default());
        assert_eq!(
            engine.close_block(&other).and_then(|_| engine.commit()).unwrap_err().kind(),
            ErrorKind::Root,
            "a known version is not overruled"
        );
    }
}

#[test]
fn a_view_answers_for_its_block_or_not_at_all() {
    for (layout, _) in layouts() {
        for cadence in [Cadence::EVERY_BLOCK, every(3), Cadence::OnRequest] {
            let engine = Place::memory().open(layout, config(cadence, 1));
            let mut views = vec![engine.view()];
            for number in 0..7 {
                engine.close_block(&block(number)).unwrap();
                views.push(engine.view());
                for (closed, view) in (0u64..).zip(&views) {
                    match view.storage_at(&1.into(), &1.into()) {
                        Ok(value) if closed == 0 => assert_eq!(value, 0.into()),
                        Ok(value) => assert_eq!(value, (closed - 1 + 100).into()),
                        Err(error) => assert_eq!(error.kind(), ErrorKind::Expired, "{error}"),
                    }
                }
                assert!(views.last().unwrap().storage_at(&1.into(), &1.into()).is_ok());
            }
        }
    }
}

#[test]
fn an_expired_view_says_where_it_is_and_where_the_store_is() {
    let config = EngineConfig::default().with_recent_blocks_max(0);
    let engine = Place::memory().open("flat", config);
    let empty = engine.view();
    engine.close_block(&block(812)).unwrap();
    let view = engine.view();
    engine.close_block(&block(813)).unwrap();
    settle(&engine);
    let message = |view: &flagstone::View| view.nonce_at(&1.into()).unwrap_err().to_string();
    assert_eq!(
        message(&view),
        "view expired: view is at block 812, the state has moved to block 813; take a new view"
    );
    assert_eq!(
        message(&empty),
        "view expired: view is at the empty state, the state has moved to block 813; take a new view"
    );
}

#[test]
fn views_of_recent_blocks_stay_valid_whatever_is_committed_and_written() {
    for place in [Place::memory, Place::directory] {
        for (layout, _) in layouts() {
            for cadence in [Cadence::AtClose, Cadence::EVERY_BLOCK, every(3), Cadence::OnRequest] {
                let config = config(cadence, 1).with_recent_blocks_max(4);
                let place = place();
                let engine = place.open(layout, config);
                let mut views = vec![engine.view()];
                for number in 0..9 {
                    engine.close_block(&block(number)).unwrap();
                    views.push(engine.view());
                }
                settle(&engine);
                for (closed, view) in (0u64..).zip(&views) {
                    let expected = closed.checked_sub(1).map_or(0, |number| number + 100);
                    match view.storage_at(&1.into(), &1.into()) {
                        Ok(value) => assert_eq!(value, expected.into()),
                        // The last four blocks are kept, and so is the state before them.
                        Err(error) => {
                            assert_eq!(error.kind(), ErrorKind::Expired, "{error}");
                            assert!(closed < 5, "{layout}, {cadence:?}: view of block {closed} - 1");
                        }
                    }
                }
                assert!(views[1].storage_at(&1.into(), &1.into()).is_err());
            }
        }
    }
}

#[test]
fn readers_in_other_threads_never_see_a_mixed_state() {
    for (layout, _) in layouts() {
        let engine = Place::memory().open(layout, config(every(2), 2));
        engine.close_block(&block(0)).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..2)
                .map(|_| {
                    scope.spawn(|| {
                        let mut answers = 0;
                        while !done.load(Ordering::Relaxed) || answers == 0 {
                            let view = engine.view();
                            let slot = view.storage_at(&1.into(), &1.into());
                            let nonce = view.nonce_at(&1.into());
                            let (Ok(slot), Ok(nonce)) = (slot, nonce) else { continue };
                            let number = view.block().unwrap().0;
                            assert_eq!((slot, nonce), ((number + 100).into(), (number + 1).into()));
                            answers += 1;
                        }
                        answers
                    })
                })
                .collect();
            for number in 1..60 {
                engine.close_block(&block(number)).unwrap();
            }
            done.store(true, Ordering::Relaxed);
            for reader in readers {
                assert!(reader.join().unwrap() > 0);
            }
        });
    }
}

#[test]
fn bounds_on_pending_blocks_make_a_commitment() {
    let bounds = [
        config(Cadence::OnRequest, 1).with_pending_blocks_max(3),
        config(Cadence::OnRequest, 1).with_pending_writes_max(13),
    ];
    for (layout, _) in layouts() {
        for bound in bounds {
            let engine = Place::memory().open(layout, bound);
            for number in 0..8 {
                engine.close_block(&block(number)).unwrap();
                let head = engine.head();
                let lag = head.closed.unwrap().0 + 1 - head.committed.map_or(0, |block| block.0 + 1);
                assert!(lag <= 3, "{lag} blocks pending");
            }
        }
    }
}

#[test]
fn a_reopened_database_is_where_it_was_whatever_the_cadence() {
    let updates = updates("mainnet_0_9.jsonl");
    for (layout, _) in layouts() {
        for place in Place::all() {
            for (chunk, cadence) in
                updates.chunks(3).zip([every(2), Cadence::OnRequest, every(5), Cadence::EVERY_BLOCK])
            {
                let engine = place.open(layout, config(cadence, 1));
                chunk.iter().for_each(|update| drop(engine.close_block(update).unwrap()));
            }
            let engine = place.open(layout, EngineConfig::default());
            engine.commit().unwrap();
            assert_eq!(Some(engine.head().root.commitment), updates.last().unwrap().new_root);
            for update in &updates {
                let stored = engine.block_root(update.block_number.unwrap()).unwrap().unwrap();
                assert_eq!(Some(stored.commitment), update.new_root);
            }
        }
    }
}

/// A store whose syncs fail when told to, or whose scans.
#[derive(Default)]
struct Failing {
    inner: Arc<MemoryStore>,
    broken: Arc<AtomicBool>,
    scans_broken: Arc<AtomicBool>,
}

impl StoreRead for Failing {
    fn get(&self, key: &[u8]) -> Result<Row, StoreError> {
        self.inner.get(key)
    }
    fn scan(&self, prefix: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        if self.scans_broken.load(Ordering::SeqCst) {
            return Err(StoreError::new(StoreErrorKind::Io, "no row to be read"));
        }
        self.inner.scan(prefix, visit)
    }
}

impl Store for Failing {
    fn name(&self) -> &'static str {
        "failing"
    }
    fn write(&self, batch: &WriteBatch) -> Result<(), StoreError> {
        self.inner.write(batch)
    }
    fn sync(&self) -> Result<(), StoreError> {
        if self.broken.load(Ordering::SeqCst) {
            return Err(StoreError::new(StoreErrorKind::Io, "no space left"));
        }
        Ok(())
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities { durable: true, ..self.inner.capabilities() }
    }
}

#[test]
fn after_a_failed_write_the_engine_stops_until_reopened() {
    for (layout, make) in layouts() {
        let inner = Arc::new(MemoryStore::new());
        let broken = Arc::new(AtomicBool::new(false));
        let store = Failing { inner: Arc::clone(&inner), broken: Arc::clone(&broken), ..Failing::default() };
        let engine = Engine::open(Box::new(store), make, EngineConfig::default()).unwrap();
        engine.close_block(&block(0)).unwrap();
        broken.store(true, Ordering::SeqCst);
        assert_eq!(engine.close_block(&block(1)).unwrap_err().to_string(), "no space left");
        broken.store(false, Ordering::SeqCst);
        let error = engine.close_block(&block(1)).unwrap_err();
        assert!(matches!(error, Error::Stopped { .. }), "{layout}: {error}");
        // What is there is still read.
        assert_eq!(slot(&engine), 100, "{layout}");
        assert_eq!(engine.view().block(), Some(BlockNumber(0)), "{layout}");
        let engine =
            Engine::open(Box::new(inner), flagstone::layout(layout).unwrap().make(), EngineConfig::default());
        assert!(engine.unwrap().head().closed >= Some(BlockNumber(0)));
    }
}

#[test]
fn a_block_that_failed_and_is_closed_again_is_once_in_the_history() {
    for (layout, make) in layouts() {
        let (store, config) = (Failing::default(), config(Cadence::AtClose, 1));
        let broken = Arc::clone(&store.scans_broken);
        let config = config.with_history_blocks(2);
        let engine = Engine::open(Box::new(store), make, config).unwrap();
        (0..4).for_each(|number| drop(engine.close_block(&block(number)).unwrap()));
        broken.store(true, Ordering::SeqCst);
        assert_eq!(engine.close_block(&block(4)).unwrap_err().to_string(), "no row to be read");
        broken.store(false, Ordering::SeqCst);
        engine.close_block(&block(4)).unwrap();
        engine.revert_to(BlockNumber(2)).unwrap_or_else(|error| panic!("{layout}: {error}"));
        assert_eq!(slot(&engine), 102);
    }
}

#[test]
fn a_store_without_atomic_batches_is_refused() {
    struct Loose(MemoryStore);
    impl StoreRead for Loose {
        fn get(&self, key: &[u8]) -> Result<Row, StoreError> {
            self.0.get(key)
        }
        fn scan(&self, prefix: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
            self.0.scan(prefix, visit)
        }
    }
    impl Store for Loose {
        fn name(&self) -> &'static str {
            "loose"
        }
        fn write(&self, batch: &WriteBatch) -> Result<(), StoreError> {
            self.0.write(batch)
        }
        fn sync(&self) -> Result<(), StoreError> {
            Ok(())
        }
        fn capabilities(&self) -> Capabilities {
            Capabilities { atomic_batches: false, durable: false }
        }
    }
    let (_, layout) = layouts().next().unwrap();
    let error =
        Engine::open(Box::new(Loose(MemoryStore::new())), layout, EngineConfig::default()).unwrap_err();
    assert!(error.to_string().starts_with("store `loose` does not apply batches as one unit"));
}

#[test]
fn every_row_of_a_database_is_sealed() {
    for (layout, _) in layouts() {
        let inner = Arc::new(MemoryStore::new());
        let place = Place::Memory(Arc::clone(&inner));
        let blocks: Vec<_> = (0..3).map(block).collect();
        replay(&place.open(layout, EngineConfig::default()), &blocks);
        let mut rows = Vec::new();
        inner
            .scan(&[], &mut |key, row| {
                rows.push((key.to_vec(), row.to_vec()));
                std::ops::ControlFlow::Continue(())
            })
            .unwrap();
        // Flip a byte of each row in turn: whatever reads it says so, and nothing is answered wrongly.
        for (key, row) in rows {
            let mut damaged = row.clone();
            damaged[row.len() / 2] ^= 4;
            let write = |row: Vec<u8>| {
                let mut batch = WriteBatch::default();
                batch.put(key.clone(), row);
                inner.write(&batch).unwrap();
            };
            write(damaged);
            match Engine::open(
                Box::new(Arc::clone(&inner)),
                flagstone::layout(layout).unwrap().make(),
                config(Cadence::OnRequest, 1),
            ) {
                Err(error) => assert_eq!(error.kind(), ErrorKind::Damaged, "{error}"),
                Ok(engine) => {
                    let view = engine.view();
                    match view.storage_at(&1.into(), &1.into()) {
                        Ok(value) => assert_eq!(value, 102.into()),
                        Err(error) => assert_eq!(error.kind(), ErrorKind::Damaged, "{error}"),
                    }
                }
            }
            write(row);
        }
    }
}

/// Runs something that must come to an end on a thread of its own.
fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Receiver<T> {
    let (done, outcome) = channel();
    std::thread::spawn(move || done.send(work()));
    outcome
}

#[track_caller]
fn ended<T>(outcome: &Receiver<T>) -> T {
    outcome.recv_timeout(Duration::from_secs(20)).expect("it still waits")
}

#[test]
fn everybody_who_waits_for_a_block_learns_that_it_was_taken_back() {
    let config = config(Cadence::OnRequest, 1).with_unwritten_batches_max(1);
    let gate = Arc::<Gate>::default();
    let before = Arc::clone(&gate);
    let store = BeforeWrites { inner: MemoryStore::new(), before: move || before.pass() };
    let make = flagstone::layout("flat").unwrap().make();
    let engine = Arc::new(Engine::open(Box::new(store), make, config).unwrap());
    // All of them wait for a block that is not committed while the one before it is not written.
    gate.set(true);
    engine.close_block(&block(0)).unwrap();
    engine.commit().unwrap();
    engine.close_block(&StateUpdate { new_root: Some(0xbad.into()), ..block(1) }).unwrap();
    let waiting: Vec<Receiver<Result<(), Error>>> = (0..4)
        .map(|waiter| {
            let engine = Arc::clone(&engine);
            aside(move || match waiter {
                0 | 1 => engine.wait_for_root(BlockNumber(1)).map(|_| ()),
                _ => engine.commit().map(|_| ()),
            })
        })
        .collect();
    std::thread::sleep(Duration::from_millis(500));
    gate.set(false);
    for outcome in waiting {
        let error = ended(&outcome).unwrap_err();
        assert!(matches!(error, Error::RootMismatch { block: BlockNumber(1), .. }), "{error}");
    }
    engine.close_block(&block(1)).unwrap();
    assert_eq!(engine.wait_for_root(BlockNumber(1)).unwrap(), engine.head().root);
}

#[test]
fn a_revert_ends_the_waiting_of_others() {
    for _ in 0..5 {
        let engine = Arc::new(Place::memory().open("flat", config(Cadence::OnRequest, 1)));
        (0..4).for_each(|number| drop(engine.close_block(&block(number)).unwrap()));
        // Many wait and wake, some of them when the blocks are gone.
        let others = engine.at_commitment(None, |_, _, _| {
            engine.commit()?;
            let wait = |_| {
                let engine = Arc::clone(&engine);
                aside(move || engine.sync())
            };
            let others: Vec<Receiver<Result<(), Error>>> = (0..300).map(wait).collect();
            let reverting = Arc::clone(&engine);
            let reverted = aside(move || reverting.revert_to(BlockNumber(1)).map(|_| ()));
            std::thread::sleep(Duration::from_millis(200));
            Ok(others.into_iter().chain([reverted]).collect::<Vec<_>>())
        });
        others.unwrap().iter().for_each(|outcome| ended(outcome).unwrap());
        assert_eq!(engine.head().closed, Some(BlockNumber(1)));
    }
}

#[test]
fn heights_are_in_order_while_a_revert_is_on_its_way_to_the_store() {
    let engine = Arc::new(Place::memory().open("flat", config(Cadence::EVERY_BLOCK, 1)));
    (0..4).for_each(|number| drop(engine.close_block(&block(number)).unwrap()));
    settle(&engine);
    let reverting = engine.at_commitment(None, |_, _, _| {
        let other = Arc::clone(&engine);
        let reverting = aside(move || other.revert_to(BlockNumber(1)).map(|_| ()));
        let begun = Instant::now();
        while engine.head().committed != Some(BlockNumber(1)) {
            assert!(begun.elapsed() < Duration::from_secs(20), "nothing is gone back to");
            std::thread::sleep(Duration::from_millis(1));
        }
        let head = engine.head();
        assert!(head.persisted <= head.committed, "{head:?}");
        Ok(reverting)
    });
    ended(&reverting.unwrap()).unwrap();
    assert_eq!(engine.head().persisted, Some(BlockNumber(1)));
}

#[test]
fn a_bound_of_nothing_lets_one_batch_through_at_a_time() {
    let config = EngineConfig::default()
        .with_pending_blocks_max(0)
        .with_pending_writes_max(0)
        .with_unwritten_batches_max(0)
        .with_unwritten_bytes_max(0)
        .with_recent_bytes_max(0)
        .with_recent_blocks_max(0)
        .with_history_blocks(0)
        .with_persist_every(0);
    for cadence in [Cadence::AtClose, Cadence::EVERY_BLOCK, Cadence::OnRequest] {
        let engine = Place::memory().open("flat", config.with_cadence(cadence));
        let outcome = aside(move || {
            (0..5).for_each(|number| drop(engine.close_block(&block(number)).unwrap()));
            settle(&engine);
            engine.head().root.commitment
        });
        assert_eq!(ended(&outcome), roots(5)[4], "{cadence:?}");
    }
}

/// An engine over a journal on a disk in memory.
fn journaled(config: EngineConfig) -> Engine {
    let (store, files) = (Box::new(MemoryStore::new()), Arc::new(FaultyFiles::new()));
    let layout = flagstone::layout("flat").unwrap().make();
    Engine::open_journaled(store, layout, config, files, Path::new("/journal")).unwrap()
}

#[test]
fn a_block_that_none_could_follow_is_refused_and_stops_nothing() {
    for cadence in [Cadence::AtClose, Cadence::EVERY_BLOCK] {
        for engine in [Place::memory().open("flat", config(cadence, 1)), journaled(config(cadence, 1))] {
            let last = StateUpdate { block_number: Some(BlockNumber(u64::MAX)), ..block(0) };
            let error = engine.close_block(&last).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Input, "{error}");
            assert!(error.to_string().contains("block 18446744073709551615"), "{error}");
            engine.close_block(&block(0)).unwrap();
        }
    }
}

#[test]
fn blobs_count_at_the_bound_on_what_is_not_committed() {
    let config = config(Cadence::OnRequest, 1).with_pending_writes_max(10_000);
    let engine = Place::memory().open("flat", config);
    for number in 0..8 {
        let blob = Blob { key: vec![number as u8], bytes: vec![7; 1 << 20].into() };
        engine.close_block(NewBlock::from(&block(number)).with_blobs(&[blob])).unwrap();
        let committed = engine.head().committed.map_or(0, |block| block.0 + 1);
        assert!(number + 1 - committed <= 3, "{:?}", engine.head());
    }
}

#[test]
fn blobs_leave_memory_once_they_are_written() {
    let engine = Place::memory().open("flat", config(Cadence::EVERY_BLOCK, 1));
    let bytes: Arc<[u8]> = vec![7; 1 << 20].into();
    engine
        .close_block(
            NewBlock::from(&block(0)).with_blobs(&[Blob { key: vec![1], bytes: Arc::clone(&bytes) }]),
        )
        .unwrap();
    settle(&engine);
    let waited = (0..500).find(|_| {
        std::thread::sleep(Duration::from_millis(10));
        Arc::strong_count(&bytes) == 1
    });
    assert!(waited.is_some(), "{} hold it", Arc::strong_count(&bytes));
    // The block is still one of the recent ones.
    engine.close_block(&block(1)).unwrap();
    assert_eq!(engine.view_at(BlockNumber(0)).unwrap().blob(&[1]).unwrap(), Some(bytes));
    assert_eq!(slot(&engine), 101);
}

#[test]
fn a_journal_does_not_grow_with_the_number_of_openings() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(Cadence::EVERY_BLOCK, 1).with_persist_every(4);
    for number in 0..20 {
        let engine = database::open_or_create(dir.path(), None, None, config).unwrap();
        engine.close_block(&block(number)).unwrap();
        settle(&engine);
        drop(engine);
        let segments = std::fs::read_dir(dir.path().join("journal")).unwrap().count();
        assert!(segments <= 6, "{segments} segments after {number} blocks");
    }
}

#[test]
fn the_lag_is_how_many_blocks_have_no_root_yet() {
    let engine = Place::memory().open("flat", config(Cadence::OnRequest, 1));
    assert_eq!(engine.head().lag(), 0);
    // A database may begin at any block.
    for number in 812..820 {
        engine.close_block(&block(number)).unwrap();
        assert_eq!(engine.head().lag(), number - 811);
    }
    engine.wait_for_root(BlockNumber(815)).unwrap();
    assert_eq!(engine.head().lag(), 4);
    engine.commit().unwrap();
    assert_eq!(engine.head().lag(), 0);
}
