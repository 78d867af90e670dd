use std::collections::HashMap;
use std::sync::RwLock;
use std::sync::atomic::AtomicBool;

use proptest::prelude::*;

use super::*;

const LARGE: usize = 1 << 20;

fn key(number: u64) -> ValueKey {
    ValueKey::Storage(1.into(), number.into())
}

fn diff(values: &[(u64, u64)]) -> StateDiff {
    let values: HashMap<u64, u64> = values.iter().copied().collect();
    let builder = values.into_iter().fold(StateDiff::builder(), |builder, (key, value)| {
        builder.storage(1.into(), key.into(), value.into())
    });
    builder.build().unwrap()
}

/// The least bytes at which there are `entries` in one shard.
fn bytes_for(entries: usize) -> usize {
    (0..).find(|bytes| Plan::new(*bytes).is_some_and(|plan| plan.entries_max == entries)).unwrap()
}

impl ReadCache {
    /// What is known, without a place for what is not.
    fn known(&self, epoch: u64, number: u64) -> Option<Felt> {
        match self.get(epoch, key(number)) {
            Lookup::Known(value) => Some(value),
            Lookup::Unknown(_) => None,
        }
    }

    fn vacancy(&self, epoch: u64, number: u64) -> Vacancy {
        match self.get(epoch, key(number)) {
            Lookup::Known(value) => panic!("{number} is known to be {value}"),
            Lookup::Unknown(vacancy) => vacancy,
        }
    }

    fn move_to(&self, epoch: u64, values: &[(u64, u64)]) {
        let diff = diff(values);
        self.advance(epoch, self.prepare(&[&diff]));
    }
}

#[test]
fn a_value_and_an_absence_are_known_once_filled() {
    let cache = ReadCache::new(LARGE);
    cache.fill(cache.vacancy(0, 1), 10.into());
    cache.fill(cache.vacancy(0, 2), Felt::ZERO);
    assert_eq!([1, 2, 3].map(|number| cache.known(0, number)), [Some(10.into()), Some(Felt::ZERO), None]);
    let stats = cache.stats();
    assert_eq!((stats.hits, stats.absent_hits, stats.misses, stats.entries), (1, 1, 3, 2));
    assert_eq!((stats.evictions, stats.stale_fills), (0, 0));
}

#[test]
fn kinds_of_values_do_not_meet() {
    let cache = ReadCache::new(LARGE);
    let keys = [
        ValueKey::Storage(1.into(), 1.into()),
        ValueKey::Nonce(1.into()),
        ValueKey::ClassHash(1.into()),
        ValueKey::CompiledClassHash(1.into()),
    ];
    for (value, key) in (10u64..).zip(keys) {
        let Lookup::Unknown(vacancy) = cache.get(0, key) else { panic!("{key:?} is another's") };
        cache.fill(vacancy, value.into());
    }
    for (value, key) in (10u64..).zip(keys) {
        assert!(matches!(cache.get(0, key), Lookup::Known(known) if known == value.into()), "{key:?}");
    }
}

#[test]
fn another_epoch_knows_nothing() {
    let cache = ReadCache::new(LARGE);
    cache.fill(cache.vacancy(0, 1), 10.into());
    assert_eq!(cache.known(1, 1), None);
    cache.move_to(1, &[]);
    assert_eq!(cache.known(0, 1), None);
    assert_eq!(cache.known(1, 1), Some(10.into()), "what no block touched stays");
}

#[test]
fn a_slow_reader_cannot_put_back_what_a_block_replaced() {
    let cache = ReadCache::new(LARGE);
    let (slow, slower) = (cache.vacancy(0, 1), cache.vacancy(0, 2));
    cache.move_to(1, &[(1, 11)]);
    cache.fill(slow, 10.into());
    cache.fill(slower, 20.into());
    assert_eq!(cache.known(1, 1), Some(11.into()));
    assert_eq!(cache.known(1, 2), None);
    assert_eq!(cache.stats().stale_fills, 2);
}

#[test]
fn advancing_writes_the_last_of_several_blocks() {
    let cache = ReadCache::new(LARGE);
    cache.fill(cache.vacancy(0, 1), 10.into());
    cache.fill(cache.vacancy(0, 3), 30.into());
    let blocks = [diff(&[(1, 11), (2, 21)]), diff(&[(1, 12), (2, 0)])];
    cache.advance(1, cache.prepare(&[&blocks[0], &blocks[1]]));
    let known = [1, 2, 3].map(|number| cache.known(1, number));
    assert_eq!(known, [Some(12.into()), Some(Felt::ZERO), Some(30.into())]);
}

#[test]
fn clearing_forgets_everything_and_refuses_what_was_read_before() {
    let cache = ReadCache::new(LARGE);
    cache.fill(cache.vacancy(0, 1), 10.into());
    let slow = cache.vacancy(0, 2);
    cache.clear(1);
    cache.fill(slow, 20.into());
    assert_eq!([1, 2].map(|number| cache.known(1, number)), [None, None]);
    assert_eq!((cache.stats().entries, cache.stats().stale_fills), (0, 1));
    cache.fill(cache.vacancy(1, 1), 11.into());
    assert_eq!(cache.known(1, 1), Some(11.into()));
}

#[test]
fn what_was_longest_not_used_leaves_first() {
    let cache = ReadCache::new(bytes_for(3));
    (1..=3).for_each(|number| cache.fill(cache.vacancy(0, number), number.into()));
    assert_eq!(cache.known(0, 1), Some(1.into()));
    cache.fill(cache.vacancy(0, 4), 4.into());
    let order = |cache: &ReadCache| {
        let entries = cache.shards[0].lock();
        entries.values.iter().map(|(_, value)| u64::try_from(*value).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(order(&cache), [4, 1, 3], "2 left: 1 was asked for since");
    cache.move_to(1, &[(3, 33), (5, 5)]);
    assert_eq!(order(&cache), [5, 33, 4], "written is used");
    assert_eq!(cache.stats().evictions, 2);
}

#[test]
fn a_cache_without_room_for_an_entry_is_off() {
    for bytes in [0, 1, bytes_for(1) - 1] {
        let cache = ReadCache::new(bytes);
        cache.fill(cache.vacancy(0, 1), 10.into());
        cache.move_to(1, &[(1, 11)]);
        cache.clear(2);
        assert_eq!(cache.known(2, 1), None);
        assert_eq!(cache.stats(), ReadCacheStats::default());
    }
}

#[test]
fn most_of_the_bytes_are_for_entries() {
    for bytes in (64 << 10..1 << 20).step_by(1000).chain([64 << 20, 1 << 30]) {
        let cache = ReadCache::new(bytes);
        let entries = cache.plan.entries_max * cache.shards.len();
        assert!(cache.plan.bytes(cache.plan.entries_max + 1) * cache.shards.len() <= bytes);
        assert!(entries * 270 >= bytes, "{entries} entries in {bytes} bytes");
    }
}

#[test]
fn the_table_never_grows() {
    let cache = ReadCache::new(bytes_for(27));
    let takes = cache.shards[0].lock().values.cap().get();
    assert_eq!(takes, cache.plan.buckets / 8 * 7);
    assert!(
        cache.plan.entries_max < takes / 2,
        "hashbrown cleans a table in place up to half of what it takes"
    );
}

#[test]
fn keys_spread_over_all_shards() {
    let cache = ReadCache::new(64 << 20);
    assert_eq!(cache.shards.len(), SHARDS_MAX);
    // Keys as contracts have them (arrays) and as an attacker would: equal but for a few bits.
    for number in (0..1_000).chain((1..1_000).map(|number| number << 40)) {
        cache.fill(cache.vacancy(0, number + 1), 1.into());
    }
    for shard in &cache.shards {
        let entries = shard.lock().values.len();
        assert!((60..200).contains(&entries), "{entries} of 1 999 in one of {SHARDS_MAX} shards");
    }
}

#[derive(Debug, Clone)]
enum Op {
    Read(u64),
    /// Reads and keeps the answer back.
    ReadSlowly(u64),
    FillSlow,
    Close(Vec<Vec<(u64, u64)>>),
    Rollback,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let number = || 0..60u64;
    let block = prop::collection::vec((number(), 0..4u64), 0..12);
    let op = prop_oneof![
        20 => number().prop_map(Op::Read),
        4 => number().prop_map(Op::ReadSlowly),
        4 => Just(Op::FillSlow),
        4 => prop::collection::vec(block, 1..4).prop_map(Op::Close),
        1 => Just(Op::Rollback),
    ];
    prop::collection::vec(op, 1..400)
}

/// The cache beside a plain map that holds all values.
struct Model {
    cache: ReadCache,
    bytes_max: usize,
    epoch: u64,
    values: HashMap<u64, u64>,
    before: HashMap<u64, u64>,
    slow: Vec<(Vacancy, u64)>,
    reads: u64,
}

impl Model {
    fn value(&self, number: u64) -> u64 {
        self.values.get(&number).copied().unwrap_or_default()
    }

    fn ask(&mut self, number: u64) -> Option<Vacancy> {
        self.reads += 1;
        match self.cache.get(self.epoch, key(number)) {
            Lookup::Unknown(vacancy) => Some(vacancy),
            Lookup::Known(known) => {
                assert_eq!(known, self.value(number).into(), "key {number} at epoch {}", self.epoch);
                None
            }
        }
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Read(number) => {
                let value = self.value(*number);
                if let Some(vacancy) = self.ask(*number) {
                    self.cache.fill(vacancy, value.into());
                    assert_eq!(self.cache.known(self.epoch, *number), Some(value.into()));
                    self.reads += 1;
                }
            }
            Op::ReadSlowly(number) => {
                let value = self.value(*number);
                let vacancy = self.ask(*number);
                self.slow.extend(vacancy.map(|vacancy| (vacancy, value)));
            }
            Op::FillSlow => {
                self.slow.drain(..).for_each(|(vacancy, value)| self.cache.fill(vacancy, value.into()));
            }
            Op::Close(blocks) => {
                self.before = self.values.clone();
                self.values.extend(blocks.iter().flatten().copied());
                let diffs: Vec<StateDiff> = blocks.iter().map(|block| diff(block)).collect();
                self.epoch += 1;
                self.cache.advance(self.epoch, self.cache.prepare(&diffs.iter().collect::<Vec<_>>()));
            }
            Op::Rollback => {
                self.values = self.before.clone();
                self.epoch += 1;
                self.cache.clear(self.epoch);
            }
        }
        let stats = self.cache.stats();
        assert!(stats.bytes <= self.bytes_max as u64, "{} bytes in {}", stats.bytes, self.bytes_max);
        let held: usize = self.cache.shards.iter().map(|shard| shard.lock().values.len()).sum();
        assert_eq!(stats.entries, held as u64);
        assert!(held <= self.cache.plan.entries_max * self.cache.shards.len());
        assert_eq!(stats.hits + stats.absent_hits + stats.misses, self.reads);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn answers_are_a_plain_maps_across_closes_and_rollbacks(
        ops in ops(),
        bytes_max in prop_oneof![Just(0), bytes_for(1)..4_000usize, 4_000..40_000usize, Just(LARGE)],
    ) {
        let mut model = Model {
            cache: ReadCache::new(bytes_max),
            bytes_max,
            epoch: 0,
            values: HashMap::new(),
            before: HashMap::new(),
            slow: Vec::new(),
            reads: 0,
        };
        if model.cache.shards.is_empty() {
            return Ok(());
        }
        ops.iter().for_each(|op| model.apply(op));
    }
}

/// A layout and an engine as far as the cache sees them, with readers that are as slow as they like. Each value in the
/// store is the number of the epoch that wrote it, so that a wrong answer shows.
#[test]
fn readers_beside_a_writer_get_only_their_epochs_values() {
    const KEYS: u64 = 40;
    const EPOCHS: u64 = 3_000;
    // Which keys an epoch writes: a third of them.
    let writes = |epoch: u64| (0..KEYS).filter(move |key| (key * 7 + epoch * 5).is_multiple_of(3));
    let value = |key: u64, epoch: u64| {
        (0..=epoch)
            .rev()
            .take(4)
            .find(|at| *at > 0 && (key * 7 + at * 5).is_multiple_of(3))
            .unwrap_or_default()
    };
    for bytes in [bytes_for(6), 8 * SHARD_BYTES_MIN, LARGE] {
        let cache = ReadCache::new(bytes);
        let store: Vec<AtomicU64> = (0..KEYS).map(|_| AtomicU64::new(0)).collect();
        let (epoch, tip, done) = (AtomicU64::new(0), RwLock::new(0), AtomicBool::new(false));
        let read_until_done = |thread: u64| {
            let (mut answers, mut step) = (0u64, thread);
            while !done.load(Ordering::Relaxed) || answers == 0 {
                let view: u64 = *tip.read().unwrap();
                for _ in 0..8 {
                    step =
                        step.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let number = (step >> 33) % KEYS;
                    let (answer, vacancy) = match cache.get(view, key(number)) {
                        Lookup::Known(known) => (known, None),
                        Lookup::Unknown(vacancy) => {
                            (Felt::from(store[number as usize].load(Ordering::SeqCst)), Some(vacancy))
                        }
                    };
                    if step & 7 == 0 {
                        std::thread::yield_now();
                    }
                    if epoch.load(Ordering::SeqCst) != view {
                        break;
                    }
                    assert_eq!(answer, value(number, view).into(), "key {number} at epoch {view}");
                    if step & 3 == 0 {
                        std::thread::yield_now();
                    }
                    vacancy.into_iter().for_each(|vacancy| cache.fill(vacancy, answer));
                    answers += 1;
                }
            }
        };
        std::thread::scope(|scope| {
            let read_until_done = &read_until_done;
            (0..3).for_each(|thread| drop(scope.spawn(move || read_until_done(thread))));
            for next in 1..=EPOCHS {
                let block: Vec<(u64, u64)> = writes(next).map(|key| (key, next)).collect();
                let block = diff(&block);
                let moved = cache.prepare(&[&block]);
                let mut tip = tip.write().unwrap();
                epoch.store(next, Ordering::SeqCst);
                writes(next).for_each(|key| store[key as usize].store(next, Ordering::SeqCst));
                if next % 50 == 0 {
                    cache.clear(next)
                } else {
                    cache.advance(next, moved)
                }
                *tip = next;
                drop(tip);
                std::thread::yield_now();
            }
            done.store(true, Ordering::Relaxed);
        });
        assert!(cache.stats().bytes <= bytes as u64);
    }
}
