use std::collections::{BTreeMap, HashMap};
use std::sync::RwLock;
use std::sync::atomic::AtomicBool;

use proptest::prelude::*;

use super::*;
use crate::engine::meta::PendingBlock;

const LARGE: usize = 1 << 20;

fn key(number: u64) -> Subject {
    Subject::Storage(1.into(), number.into())
}

fn diff(values: impl IntoIterator<Item = (u64, u64)>) -> StateDiff {
    let values: HashMap<u64, u64> = values.into_iter().collect();
    let builder = values.into_iter().fold(StateDiff::builder(), |builder, (key, value)| {
        builder.storage(1.into(), key.into(), value.into())
    });
    builder.build().unwrap()
}

/// The least bytes at which there are `entries` in one shard.
fn bytes_for(entries: usize) -> usize {
    SHARD_BYTES + entries * (ENTRY_BYTES + TABLE_BYTES)
}

impl Values {
    fn get_by(&self, stamp: u64, subject: Subject) -> Lookup {
        self.get(stamp, self.key(subject))
    }

    fn recall_by(&self, stamp: u64, subject: Subject) -> Option<Felt> {
        self.recall(stamp, self.key(subject))
    }

    /// What is known, without a place for what is not.
    fn known(&self, stamp: u64, number: u64) -> Option<Felt> {
        match self.get_by(stamp, key(number)) {
            Lookup::Known(value) => Some(value),
            _ => None,
        }
    }

    /// What is cached, without a read.
    fn peek(&self, number: u64) -> Option<u64> {
        let key = self.key(key(number));
        let value = self.shard(&key).lock().cached.peek(&key)?;
        u64::try_from(value).ok()
    }

    fn vacancy(&self, stamp: u64, number: u64) -> Vacancy {
        match self.get_by(stamp, key(number)) {
            Lookup::Unknown(vacancy) => vacancy,
            _ => panic!("{number} is known, or the stamp has expired"),
        }
    }

    /// Adds a block's values as the engine does for large blocks.
    fn show_diff(&self, stamp: u64, diff: StateDiff) {
        self.show(&Arc::new(Closed::new(PendingBlock { diff, ..PendingBlock::default() }, stamp)));
    }

    fn fill_one(&self, stamp: u64, number: u64, value: u64) {
        assert_eq!(self.fill(self.vacancy(stamp, number), value.into()), Ok(Some(value.into())));
    }
}

#[test]
fn a_value_and_an_absence_are_known_once_filled() {
    let values = Values::new(LARGE);
    values.fill_one(0, 1, 10);
    values.fill_one(0, 2, 0);
    assert_eq!([1, 2, 3].map(|number| values.known(0, number)), [Some(10.into()), Some(Felt::ZERO), None]);
    let stats = values.stats();
    assert_eq!((stats.hits, stats.absent_hits, stats.misses, stats.entries), (1, 1, 3, 2));
    assert_eq!((stats.evictions, stats.stale_fills, stats.recent), (0, 0, 0));
}

#[test]
fn every_kind_of_value_is_known_by_its_own_key() {
    let all = StateDiff::builder()
        .storage(1.into(), 1.into(), 11.into())
        .nonce(1.into(), 12.into())
        .class_hash(1.into(), 13.into())
        .class(1.into(), 14.into())
        .build()
        .unwrap();
    let keys = [
        Subject::Storage(1.into(), 1.into()),
        Subject::Nonce(1.into()),
        Subject::ClassHash(1.into()),
        Subject::CompiledClassHash(1.into()),
    ];
    let (placed, shown) = (Values::new(0), Values::new(0));
    placed.push(1, &all);
    shown.show_diff(1, all);
    for values in [placed, shown] {
        for (key, value) in keys.into_iter().zip(11u64..) {
            assert!(matches!(values.get_by(1, key), Lookup::Known(known) if known == value.into()));
            assert_eq!(values.recall_by(1, key), Some(value.into()));
            assert!(matches!(values.get_by(0, key), Lookup::Unknown(_)), "before the block nobody knows");
        }
        let stats = values.stats();
        assert_eq!((stats.hits, stats.misses), (8, 4));
    }
}

#[test]
fn shown_values_are_placed_in_order_and_before_what_needs_them() {
    let values = Values::new(LARGE);
    values.show_diff(1, diff([(1, 10), (2, 20)]));
    values.show_diff(2, diff([(1, 11)]));
    assert_eq!(values.stats().recent, 0);
    let at = |stamp| values.known(stamp, 1).map(|value| u64::try_from(value).unwrap());
    assert_eq!([0, 1, 2].map(at), [None, Some(10), Some(11)]);
    values.place(1);
    assert_eq!(values.stats().recent, 2);
    assert_eq!([0, 1, 2].map(at), [None, Some(10), Some(11)]);
    values.push(3, &diff([(1, 12)]));
    assert!(values.shown.next(u64::MAX).is_none());
    assert_eq!([0, 1, 2, 3].map(at), [None, Some(10), Some(11), Some(12)]);
    values.show_diff(4, diff([(3, 1)]));
    values.settle(4, &diff([(1, 9), (3, 2)]));
    assert_eq!((values.known(0, 3), values.known(4, 3)), (Some(2.into()), Some(1.into())));
    values.show_diff(5, diff([(1, 13)]));
    values.take_back(5, &[diff([(1, 13)])]);
    assert_eq!(values.known(5, 1), Some(12.into()));
}

#[test]
fn views_of_all_recent_blocks_are_answered_whatever_came_after() {
    let values = Values::new(LARGE);
    values.push(1, &diff([(1, 10), (2, 20)]));
    values.push(2, &diff([(1, 11)]));
    values.push(4, &diff([(1, 0)]));
    let at = |stamp| values.known(stamp, 1).map(|value| u64::try_from(value).unwrap());
    assert_eq!([0, 1, 2, 3, 4, 9].map(at), [None, Some(10), Some(11), Some(11), Some(0), Some(0)]);
    values.settle(1, &diff([(1, 9), (2, 0)]));
    assert_eq!(at(0), Some(9));
    values.retire(1, &diff([(1, 10), (2, 20)]));
    assert!(matches!(values.get_by(0, key(1)), Lookup::Expired));
    assert_eq!([1, 3].map(at), [Some(10), Some(11)]);
    assert_eq!(values.known(1, 2), Some(20.into()), "cached now");
    assert!(values.reaches(1) && !values.reaches(0));
}

#[test]
fn a_slow_reader_gets_its_own_blocks_value_and_leaves_none_behind() {
    let values = Values::new(LARGE);
    let vacancies = [(); 3].map(|()| values.vacancy(0, 1));
    let [before_settling, after_settling, after_retiring] = vacancies;
    values.push(1, &diff([(1, 11)]));
    // The rows it read did not have the block yet.
    assert_eq!(values.fill(before_settling, 10.into()), Ok(Some(10.into())));
    values.settle(1, &diff([(1, 10)]));
    // The rows it read may have had the block.
    assert_eq!(values.fill(after_settling, 11.into()), Ok(Some(10.into())));
    values.retire(1, &diff([(1, 11)]));
    assert_eq!(values.fill(after_retiring, 10.into()), Ok(None));
    assert_eq!(values.known(1, 1), Some(11.into()));
    assert_eq!(values.stats().stale_fills, 3);
}

#[test]
fn what_was_cached_is_right_again_when_a_block_is_taken_back() {
    let values = Values::new(LARGE);
    values.fill_one(0, 1, 10);
    let refused = [diff([(1, 11), (2, 21)]), diff([(1, 12)])];
    values.push(1, &refused[0]);
    values.push(2, &refused[1]);
    assert_eq!(values.known(2, 1), Some(12.into()));
    values.take_back(1, &refused);
    assert_eq!(values.known(3, 1), Some(10.into()));
    assert_eq!(values.known(3, 2), None);
    assert_eq!(values.stats().recent, 0);
}

#[test]
fn what_was_not_used_since_leaves_first() {
    let values = Values::new(bytes_for(3));
    (1..=3).for_each(|number| values.fill_one(0, number, number));
    assert_eq!(values.known(0, 1), Some(1.into()));
    values.fill_one(0, 4, 4);
    assert_eq!([1, 2, 3, 4].map(|number| values.peek(number)), [Some(1), None, Some(3), Some(4)]);
    for (stamp, number) in [(1, 3), (2, 5)] {
        values.push(stamp, &diff([(number, number * 11)]));
        values.retire(stamp, &diff([(number, number * 11)]));
    }
    // What is put again is used.
    assert_eq!([1, 3, 4, 5].map(|number| values.peek(number)), [None, Some(33), Some(4), Some(55)]);
    assert_eq!(values.stats().evictions, 2);
}

#[test]
fn a_cache_without_room_for_an_entry_is_off() {
    for bytes in [0, 1, bytes_for(1) - 1] {
        let values = Values::new(bytes);
        values.fill_one(0, 1, 10);
        values.push(1, &diff([(1, 11)]));
        values.retire(1, &diff([(1, 11)]));
        assert_eq!(values.known(1, 1), None);
        assert_eq!(values.stats(), ReadCacheStats { misses: 2, ..Default::default() });
    }
}

#[test]
fn most_of_the_bytes_are_for_entries() {
    for bytes in (80 << 10..1 << 20).step_by(1000).chain([64 << 20, 1 << 30]) {
        let values = Values::new(bytes);
        let entries = values.plan.entries_max * values.shards.len();
        assert!(values.plan.bytes(values.plan.entries_max) * values.shards.len() <= bytes);
        assert!(entries * 150 >= bytes, "{entries} entries in {bytes} bytes");
    }
}

#[test]
fn keys_spread_over_all_shards() {
    let values = Values::new(64 << 20);
    assert_eq!(values.shards.len(), SHARDS_MAX);
    // Keys as contracts have them (arrays) and as an attacker would: equal but for a few bits.
    for number in (0..1_000).chain((1..1_000).map(|number| number << 40)) {
        values.fill_one(0, number + 1, 1);
    }
    for shard in &values.shards {
        let entries = shard.lock().cached.len();
        assert!((60..200).contains(&entries), "{entries} of 1 999 in one of {SHARDS_MAX} shards");
    }
}

type Map = BTreeMap<u64, u64>;

/// A block of the model: its stamp, what it sets, and the state after it.
struct Block {
    stamp: u64,
    sets: Map,
    after: Map,
}

/// An engine as far as the values see it. The store is at one block; blocks up to another are settled, and the rows that
/// readers see are at some block in between.
struct Model {
    values: Values,
    blocks: Vec<Block>,
    /// Blocks taken back so far, as stamps.
    taken_back: Vec<u64>,
    settled: usize,
    written: usize,
    retired: usize,
    slow: Vec<(u64, u64, Vacancy, u64)>,
}

#[derive(Debug, Clone)]
enum Op {
    Read {
        back: usize,
        key: u64,
    },
    /// Reads the rows and keeps the answer back.
    ReadSlowly {
        back: usize,
        key: u64,
    },
    FillSlow,
    Close(Map),
    /// Closes a block and leaves its values to be placed.
    Show(Map),
    Place,
    Settle,
    Write,
    Retire,
    TakeBack,
}

fn sets() -> impl Strategy<Value = Map> {
    prop::collection::btree_map(0..12u64, 0..4u64, 0..6)
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let place = || (0..6usize, 0..12u64);
    let op = prop_oneof![
        20 => place().prop_map(|(back, key)| Op::Read { back, key }),
        6 => place().prop_map(|(back, key)| Op::ReadSlowly { back, key }),
        5 => Just(Op::FillSlow),
        3 => sets().prop_map(Op::Close),
        3 => sets().prop_map(Op::Show),
        2 => Just(Op::Place),
        5 => Just(Op::Settle),
        4 => Just(Op::Write),
        3 => Just(Op::Retire),
        1 => Just(Op::TakeBack),
    ];
    prop::collection::vec(op, 1..300)
}

impl Model {
    fn new(bytes: usize) -> Self {
        let empty = Block { stamp: 0, sets: Map::new(), after: Map::new() };
        Self {
            values: Values::new(bytes),
            blocks: vec![empty],
            taken_back: Vec::new(),
            settled: 0,
            written: 0,
            retired: 0,
            slow: Vec::new(),
        }
    }

    fn at(&self, stamp: u64, key: u64) -> u64 {
        let block = self.blocks.iter().rev().find(|block| block.stamp <= stamp).unwrap();
        block.after.get(&key).copied().unwrap_or_default()
    }

    fn row(&self, key: u64) -> u64 {
        self.blocks[self.written].after.get(&key).copied().unwrap_or_default()
    }

    fn check(&self, stamp: u64, key: u64, answer: Option<Felt>) {
        let expired = stamp < self.blocks[self.retired].stamp;
        if !self.taken_back.contains(&stamp) {
            let expected = (!expired).then(|| Felt::from(self.at(stamp, key)));
            assert_eq!(answer, expected, "key {key} at stamp {stamp}");
        }
    }

    fn close(&mut self, sets: &Map) -> u64 {
        let last = self.blocks.last().unwrap();
        let stamp = last.stamp.max(self.taken_back.iter().copied().max().unwrap_or(0)) + 1;
        let mut after = last.after.clone();
        after.extend(sets);
        self.blocks.push(Block { stamp, sets: sets.clone(), after });
        stamp
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Read { back, key: number } => {
                let stamp = self.blocks[self.blocks.len().saturating_sub(back + 1)].stamp;
                let answer = match self.values.get_by(stamp, key(number)) {
                    Lookup::Known(value) => Some(value),
                    Lookup::Expired => None,
                    Lookup::Unknown(vacancy) => self.values.fill(vacancy, self.row(number).into()).unwrap(),
                };
                self.check(stamp, number, answer);
            }
            Op::ReadSlowly { back, key: number } => {
                let stamp = self.blocks[self.blocks.len().saturating_sub(back + 1)].stamp;
                if let Lookup::Unknown(vacancy) = self.values.get_by(stamp, key(number)) {
                    self.slow.push((stamp, number, vacancy, self.row(number)));
                }
            }
            Op::FillSlow => {
                for (stamp, number, vacancy, row) in std::mem::take(&mut self.slow) {
                    let answer = self.values.fill(vacancy, row.into()).unwrap();
                    self.check(stamp, number, answer);
                }
            }
            Op::Close(sets) => {
                let stamp = self.close(&sets);
                self.values.push(stamp, &diff(sets));
            }
            Op::Show(sets) => {
                let stamp = self.close(&sets);
                self.values.show_diff(stamp, diff(sets));
            }
            Op::Place => self.values.place(u64::MAX),
            Op::Settle if self.settled + 1 < self.blocks.len() => {
                let [before, block] = &self.blocks[self.settled..self.settled + 2] else { unreachable!() };
                let undo = block.sets.keys().map(|key| (*key, *before.after.get(key).unwrap_or(&0)));
                let undo = diff(undo);
                let held = self.values.hold(before.stamp, &undo, usize::MAX);
                assert_eq!(held.contradiction, None);
                let beside = diff(block.sets.keys().map(|key| (*key, 1_000_000)));
                let wrong = self.values.hold(before.stamp, &beside, 2);
                let known = block.sets.len() - held.unknown.len();
                assert_eq!(
                    (wrong.contradiction.is_some(), wrong.unknown.len()),
                    (known > 0, held.unknown.len().min(2))
                );
                self.values.settle(block.stamp, &undo);
                self.settled += 1;
            }
            Op::Write if self.written < self.settled => self.written += 1,
            Op::Retire if self.retired < self.written => {
                self.retired += 1;
                let block = &self.blocks[self.retired];
                self.values.retire(block.stamp, &diff(block.sets.clone()));
            }
            Op::TakeBack if self.settled + 1 < self.blocks.len() => {
                let gone = self.blocks.split_off(self.settled + 1);
                let diffs: Vec<_> = gone.iter().map(|block| diff(block.sets.clone())).collect();
                self.values.take_back(gone[0].stamp, &diffs);
                self.taken_back.extend(gone.iter().map(|block| block.stamp));
            }
            _ => {}
        }
    }
}

#[test]
fn two_rows_of_one_value_are_a_contradiction() {
    let values = Values::new(bytes_for(10));
    let [quick, slow] = [0; 2].map(|stamp| values.vacancy(stamp, 1));
    assert_eq!(values.fill(quick, 5.into()), Ok(Some(5.into())));
    assert_eq!(values.fill(slow, 6.into()), Err(5.into()));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_view_gets_its_own_blocks_values(ops in ops(), entries in 0..20usize) {
        let mut model = Model::new(if entries == 0 { 0 } else { bytes_for(entries) });
        ops.into_iter().for_each(|op| model.run(op));
        // Everything settled, written and retired leaves nothing but the cache.
        for op in [Op::Settle, Op::Write, Op::Retire] {
            (0..model.blocks.len()).for_each(|_| model.run(op.clone()));
        }
        prop_assert_eq!(model.values.stats().recent, 0);
        for number in 0..12 {
            model.run(Op::Read { back: 0, key: number });
        }
    }
}

/// A layout and an engine as far as the values see them, with readers that are as slow as they like. Each value in the
/// store is the number of the block that wrote it, so that a wrong answer shows.
#[test]
fn readers_beside_a_writer_get_only_their_blocks_values() {
    const KEYS: u64 = 40;
    const BLOCKS: u64 = 3_000;
    // Which keys a block writes: a third of them.
    let writes = |block: u64| (0..KEYS).filter(move |key| (key * 7 + block * 5).is_multiple_of(3));
    let value = |key: u64, block: u64| {
        let last = (0..=block).rev().take(4);
        last.into_iter().find(|at| *at > 0 && (key * 7 + at * 5).is_multiple_of(3)).unwrap_or_default()
    };
    let of_block = |block: u64| diff(writes(block).map(|key| (key, block)));
    for bytes in [bytes_for(6), 8 * SHARD_BYTES_MIN, LARGE] {
        let values = Values::new(bytes);
        let store: Vec<AtomicU64> = (0..KEYS).map(|_| AtomicU64::new(0)).collect();
        let (tip, done) = (RwLock::new(0), AtomicBool::new(false));
        let read_until_done = |thread: u64| {
            let (mut answers, mut step) = (0u64, thread);
            while !done.load(Ordering::Relaxed) || answers == 0 {
                let view: u64 = *tip.read().unwrap();
                for _ in 0..8 {
                    step =
                        step.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let number = (step >> 33) % KEYS;
                    let answer = match values.get_by(view, key(number)) {
                        Lookup::Known(known) => Some(known),
                        Lookup::Expired => None,
                        Lookup::Unknown(vacancy) => {
                            let row = store[number as usize].load(Ordering::SeqCst);
                            if step & 7 == 0 {
                                std::thread::yield_now();
                            }
                            values.fill(vacancy, row.into()).unwrap()
                        }
                    };
                    let Some(answer) = answer else { break };
                    assert_eq!(answer, value(number, view).into(), "key {number} at block {view}");
                    answers += 1;
                }
            }
        };
        std::thread::scope(|scope| {
            let read_until_done = &read_until_done;
            (0..3).for_each(|thread| drop(scope.spawn(move || read_until_done(thread))));
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    values.place(u64::MAX);
                    std::thread::yield_now();
                }
            });
            for next in 1..=BLOCKS {
                if next.is_multiple_of(3) {
                    values.push(next, &of_block(next));
                } else {
                    values.show_diff(next, of_block(next));
                }
                *tip.write().unwrap() = next;
                std::thread::yield_now();
                values.settle(next, &diff(writes(next).map(|key| (key, value(key, next - 1)))));
                writes(next).for_each(|key| store[key as usize].store(next, Ordering::SeqCst));
                if next > 5 {
                    values.retire(next - 5, &of_block(next - 5));
                }
            }
            done.store(true, Ordering::Relaxed);
        });
        assert!(values.stats().bytes <= bytes as u64);
    }
}
