//! The read cache through the engine: never another block's value, and no store where it knows.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use flagstone::core::diff::Subject;
use flagstone::core::layout::CacheCounters;
use flagstone::core::types::BlockNumber;
use flagstone::database::RECORD_CACHE_BYTES;
use flagstone::store::{Capabilities, MemoryStore, Row, Store, StoreError, StoreRead, Visit, WriteBatch};
use flagstone::{Cadence, Engine, EngineConfig, ErrorKind, StateDiff, StateUpdate, View, database};

use crate::support::{Place, config, every, layouts, settle};

const KEYS: u64 = 30;
const BLOCKS: u64 = 60;
/// A slot that only refused blocks set, so that a reader can tell which of two blocks of one number it sees.
const MARK: u64 = 1_000;

fn update(number: u64, builder: flagstone::core::diff::StateDiffBuilder) -> StateUpdate {
    StateUpdate {
        block_number: Some(BlockNumber(number)),
        starknet_version: "0.14.0".parse().ok(),
        ..StateUpdate::from(builder.build().unwrap())
    }
}

/// What block `number` sets slot `key` to, and contract `key`'s nonce.
fn written(key: u64, number: u64) -> Option<u64> {
    let deletes = (key + number).is_multiple_of(5);
    (key * 7 + number * 5).is_multiple_of(3).then_some(if deletes { 0 } else { number + 100 })
}

/// The value after block `number`.
fn expected(key: u64, number: u64) -> u64 {
    (0..=number).rev().find_map(|number| written(key, number)).unwrap_or_default()
}

fn block(number: u64) -> StateUpdate {
    let writes = (0..KEYS).filter_map(|key| Some((key, written(key, number)?)));
    let builder = writes.fold(StateDiff::builder(), |builder, (key, value)| {
        builder.storage(1.into(), key.into(), value.into()).nonce((key + 2).into(), value.into())
    });
    update(number, builder.storage(1.into(), MARK.into(), 0.into()))
}

/// A block whose stated root cannot hold. It sets all even slots.
fn refused_block(number: u64) -> StateUpdate {
    let builder = (0..KEYS).step_by(2).fold(StateDiff::builder(), |builder, key| {
        builder.storage(1.into(), key.into(), 7_777.into()).nonce((key + 2).into(), 7_777.into())
    });
    let update = update(number, builder.storage(1.into(), MARK.into(), 1.into()));
    StateUpdate { new_root: Some(0xbad.into()), ..update }
}

/// Reads some values of a view and holds each against its block; how many it got before the view expired.
fn check_some(view: &View, random: &mut u64) -> u64 {
    let Some(BlockNumber(number)) = view.block() else { return 0 };
    let slot = |key: u64| view.storage_at(&1.into(), &key.into()).map(|value| value.0);
    let nonce = |key: u64| view.nonce_at(&(key + 2).into()).map(|nonce| nonce.0);
    let refused = match slot(MARK) {
        Ok(mark) => mark == 1.into(),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Expired, "{error}");
            return 0;
        }
    };
    for answers in 0..12 {
        *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let key = (*random >> 33) % KEYS;
        let value = match if *random >> 63 == 0 { slot(key) } else { nonce(key) } {
            Ok(value) => value,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Expired, "{error}");
                return answers;
            }
        };
        let good = expected(key, if refused { number - 1 } else { number });
        let right = if refused && key.is_multiple_of(2) { 7_777 } else { good };
        assert_eq!(value, right.into(), "key {key} at block {number}, refused: {refused}");
    }
    12
}

/// Closes blocks; every tenth is first tried with one that is refused.
fn write(engine: &Engine) {
    for number in 0..BLOCKS {
        if number % 10 == 9 {
            let outcome = engine.close_block(&refused_block(number)).and_then(|_| {
                std::thread::yield_now();
                engine.commit()
            });
            assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Root);
            assert_eq!(engine.head().closed, Some(BlockNumber(number - 1)));
        }
        engine.close_block(&block(number)).unwrap();
        if number % 7 == 0 {
            engine.commit().unwrap();
        }
        check_all(&engine.view(), number);
    }
}

fn check_all(view: &View, number: u64) {
    assert_eq!(view.block(), Some(BlockNumber(number)));
    for key in 0..KEYS {
        let right = expected(key, number).into();
        assert_eq!(view.storage_at(&1.into(), &key.into()).unwrap().0, right, "slot {key} at block {number}");
        assert_eq!(view.nonce_at(&(key + 2).into()).unwrap().0, right, "nonce {key} at block {number}");
    }
}

#[test]
fn readers_beside_a_closing_writer_get_their_blocks_values_whatever_the_cache() {
    for (layout, _) in layouts() {
        for cadence in [Cadence::EVERY_BLOCK, every(3), Cadence::OnRequest] {
            for read_cache_bytes in [2_500, 1 << 20] {
                let config = config(cadence, 1).with_read_cache_bytes(read_cache_bytes);
                let engine = Place::memory().open(layout, config);
                let done = AtomicBool::new(false);
                std::thread::scope(|scope| {
                    let read = |mut random: u64| {
                        let mut answers = 0;
                        while !done.load(Ordering::Relaxed) || answers == 0 {
                            answers += check_some(&engine.view(), &mut random);
                        }
                    };
                    let readers: Vec<_> = (1..4).map(|seed| scope.spawn(move || read(seed))).collect();
                    write(&engine);
                    done.store(true, Ordering::Relaxed);
                    readers.into_iter().for_each(|reader| reader.join().unwrap());
                });
                check_all(&engine.view(), BLOCKS - 1);
                let stats = engine.read_cache_stats();
                assert!(stats.bytes <= read_cache_bytes as u64);
                assert!(stats.hits > 0 && stats.misses > 0, "{layout}, {cadence:?}: {stats:?}");
                assert_eq!(
                    stats.evictions > 0,
                    read_cache_bytes == 2_500,
                    "{layout}, {cadence:?}: {stats:?}"
                );
            }
        }
    }
}

/// A store that counts what is asked of it.
struct Counting(MemoryStore, Arc<AtomicU64>);

impl StoreRead for Counting {
    fn get(&self, key: &[u8]) -> Result<Row, StoreError> {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.get(key)
    }
    fn scan(&self, prefix: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        self.0.scan(prefix, visit)
    }
}

impl Store for Counting {
    fn name(&self) -> &'static str {
        "counting"
    }
    fn write(&self, batch: &WriteBatch) -> Result<(), StoreError> {
        self.0.write(batch)
    }
    fn sync(&self) -> Result<(), StoreError> {
        self.0.sync()
    }
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }
}

/// An engine, and how often its store was asked since the last time.
fn counting(read_cache_bytes: usize) -> impl Iterator<Item = (Engine, impl Fn() -> u64)> {
    layouts().map(move |(_, layout)| {
        let asked = Arc::new(AtomicU64::new(0));
        let store = Counting(MemoryStore::new(), Arc::clone(&asked));
        let config =
            EngineConfig::default().with_read_cache_bytes(read_cache_bytes).with_recent_blocks_max(0);
        (Engine::open(Box::new(store), layout, config).unwrap(), move || asked.swap(0, Ordering::SeqCst))
    })
}

#[test]
fn what_was_read_or_written_is_answered_without_the_store() {
    for (engine, asked) in counting(1 << 20) {
        engine.close_block(&block(0)).unwrap();
        settle(&engine);
        asked();
        let view = engine.view();
        let (address, absent) = (1.into(), 500.into());
        assert_eq!(view.storage_at(&address, &3.into()).unwrap(), 100.into());
        assert_eq!(asked(), 0, "a written value is known");
        assert_eq!(view.known(&Subject::Storage(address, absent)), None);
        assert_eq!(asked(), 0, "what is not known is not asked for");
        assert_eq!(view.storage_at(&address, &absent).unwrap(), 0.into());
        assert!(asked() > 0);
        assert_eq!(view.storage_at(&address, &absent).unwrap(), 0.into());
        assert_eq!(view.known(&Subject::Storage(address, absent)), Some(0.into()));
        assert_eq!(asked(), 0, "an absence is known once asked for");
        engine.close_block(&block(1)).unwrap();
        settle(&engine);
        asked();
        assert_eq!(engine.view().storage_at(&address, &absent).unwrap(), 0.into());
        assert_eq!(asked(), 0, "and after a block that did not touch it");
        let stats = engine.read_cache_stats();
        assert_eq!((stats.hits, stats.absent_hits, stats.misses), (1, 3, 1));
    }
}

#[test]
fn a_cache_of_no_bytes_is_off() {
    for (engine, asked) in counting(0) {
        engine.close_block(&block(0)).unwrap();
        settle(&engine);
        for _ in 0..2 {
            asked();
            assert_eq!(engine.view().storage_at(&1.into(), &3.into()).unwrap(), 100.into());
            assert!(asked() > 0);
        }
        let stats = engine.read_cache_stats();
        assert_eq!((stats.hits, stats.misses, stats.entries, stats.bytes, stats.recent), (0, 2, 0, 0, 0));
    }
}

#[test]
fn values_of_refused_blocks_leave_the_cache() {
    for (layout, _) in layouts() {
        for cadence in [every(50), Cadence::OnRequest] {
            let engine = Place::memory().open(layout, config(cadence, 1));
            engine.close_block(&block(0)).unwrap();
            engine.commit().unwrap();
            check_all(&engine.view(), 0);
            engine.close_block(&block(1)).unwrap();
            engine.close_block(&refused_block(2)).unwrap();
            assert_eq!(engine.view().storage_at(&1.into(), &4.into()).unwrap(), 7_777.into());
            assert_eq!(engine.view().storage_at(&1.into(), &MARK.into()).unwrap(), 1.into());
            assert_eq!(engine.commit().unwrap_err().kind(), ErrorKind::Root);
            check_all(&engine.view(), 1);
            assert_eq!(engine.view().storage_at(&1.into(), &MARK.into()).unwrap(), 0.into());
        }
    }
}

/// A commitment of a slot, and of the slot again: what the cache of records then did, if the layout has one.
fn record_cache_after_two(engine: &Engine) -> Option<CacheCounters> {
    for value in [1, 2] {
        let diff = StateDiff::builder().storage(1.into(), 1.into(), value.into()).build().unwrap();
        engine.close_block(&StateUpdate { starknet_version: "0.14.0".parse().ok(), ..diff.into() }).unwrap();
        engine.commit().unwrap();
    }
    engine.record_cache_stats()
}

#[test]
fn the_engine_tells_what_its_layouts_cache_of_records_did() {
    for (layout, _) in layouts() {
        let engine = Place::memory().open(layout, EngineConfig::default());
        let counters = record_cache_after_two(&engine);
        assert_eq!(counters.is_some(), layout == "flat", "{layout}");
        assert!(counters.is_none_or(|counters| counters.hits > 0), "{counters:?}");
    }
}

#[test]
fn the_bound_on_records_is_the_configurations() {
    let with = |record_cache_bytes| EngineConfig::default().with_record_cache_bytes(record_cache_bytes);
    let off = record_cache_after_two(&Place::memory().open("flat", with(Some(0)))).unwrap();
    let own = record_cache_after_two(&Place::memory().open("flat", with(None))).unwrap();
    assert!(off.bytes_max == 0 && own.bytes_max > 0, "{off:?}, {own:?}");
    assert!(off.misses > own.misses && off.evictions > 0 && own.evictions == 0, "{off:?}, {own:?}");

    let dir = tempfile::tempdir().unwrap();
    for (asked, bound) in [(Some(1 << 20), 1 << 20), (None, RECORD_CACHE_BYTES)] {
        let engine = database::open_or_create(&dir.path().join("db"), None, None, with(asked)).unwrap();
        assert_eq!(record_cache_after_two(&engine).unwrap().bytes_max, bound as u64);
    }
}
