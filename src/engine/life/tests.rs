use flagstone_core::store::WriteBatch;
use proptest::prelude::*;

use super::*;
use crate::engine::meta::PendingBlock;

/// A block with so many values.
fn closed(number: u64, stamp: u64, writes: u64) -> Arc<Closed> {
    let slots = 0..writes;
    let diff = slots.fold(StateDiff::builder(), |diff, slot| diff.storage(1.into(), slot.into(), 7.into()));
    let lineage = Lineage { state: StateId(stamp), ..Lineage::default() };
    let diff = diff.build().unwrap();
    let block = PendingBlock { number: BlockNumber(number), diff, lineage, ..PendingBlock::default() };
    Arc::new(Closed::new(block, stamp))
}

fn unit(blocks: &[Arc<Closed>], is_shown: bool) -> Unwritten {
    let layer = Layer { generation: 1, batch: Arc::new(WriteBatch::default()), bytes: 10 };
    let last = blocks.last().unwrap();
    Unwritten {
        layer,
        blocks: blocks.to_vec(),
        head: Some(last.block.number),
        root: root_of(last.stamp),
        refusal: Position::default(),
        is_shown,
        goes_back: false,
    }
}

/// The root of the state with a stamp, in this test.
fn root_of(stamp: u64) -> BlockRoot {
    BlockRoot { commitment: StateCommitment(stamp.into()), ..BlockRoot::default() }
}

/// Where a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Waiting,
    /// In the unit of this number.
    Unwritten(usize),
    Recent,
    Left,
}

#[derive(Debug, Clone, Copy)]
struct Block {
    number: u64,
    stamp: u64,
    writes: u64,
    at: At,
    /// The unit that it was committed in.
    of: usize,
    /// It stands for a state that was led back to.
    goes_back: bool,
    is_shown: bool,
}

/// All blocks that were not taken back, in one list.
#[derive(Default)]
struct Model {
    blocks: Vec<Block>,
    units: usize,
    /// Stamps of the newest state, and of all that ever were.
    newest: u64,
    largest: u64,
    being_written: Vec<usize>,
    in_store: bool,
    wanted: Option<u64>,
    persisted: Option<u64>,
    config: EngineConfig,
    chain: Chain,
}

#[derive(Debug, Clone)]
enum Step {
    Close(u64),
    /// Of so many of the first that wait.
    Commit(usize),
    /// Of a block that was not closed before, and whether it is shown at once.
    CommitNew(u64, bool),
    BeginToWrite,
    InStore(Option<u64>),
    Written,
    Want(u64),
    Refuse,
    /// What is after the block that is so many before the last.
    Drop(u64),
    GoBack(u64),
}

impl Model {
    fn new() -> Self {
        let config = EngineConfig {
            recent_blocks_max: 3,
            pinned_bytes_max: 9 * RECENT_VALUE_BYTES,
            ..EngineConfig::default()
        };
        Self { config, ..Self::default() }
    }

    fn numbers(&self, is_there: impl Fn(&Block) -> bool) -> Vec<u64> {
        self.blocks.iter().filter(|block| is_there(block)).map(|block| block.number).collect()
    }

    fn is_at_rest(&self) -> bool {
        let is_in_store = |block: &Block| matches!(block.at, At::Recent | At::Left);
        self.being_written.is_empty() && self.blocks.iter().all(is_in_store)
    }

    /// The last block that is closed, or further on its way.
    fn last(&self, is_there: impl Fn(&Block) -> bool) -> Option<u64> {
        self.numbers(is_there).last().copied()
    }

    fn next(&self) -> u64 {
        self.last(|_| true).map_or(0, |last| last + 1)
    }

    fn stamp(&mut self) -> u64 {
        self.largest += 1;
        self.largest
    }

    fn add(&mut self, number: u64, writes: u64, at: At) -> Arc<Closed> {
        let stamp = self.stamp();
        self.blocks.push(Block {
            number,
            stamp,
            writes,
            at,
            of: self.units,
            goes_back: false,
            is_shown: true,
        });
        assert_eq!(self.chain.next_stamp(), stamp);
        closed(number, stamp, writes)
    }

    /// Whether a block is closed that nobody is shown yet: nothing else happens then.
    fn is_held(&self) -> bool {
        self.blocks.iter().any(|block| !block.is_shown)
    }

    /// Takes a step, if it is legal here.
    fn step(&mut self, step: &Step) {
        let waits = |block: &Block| block.at == At::Waiting;
        match *step {
            Step::Close(writes) if !self.is_held() => {
                let block = self.add(self.next(), writes, At::Waiting);
                let tip = self.chain.push(&block).unwrap();
                (self.newest, _) = (tip.stamp, assert!(Arc::ptr_eq(&tip.outcome, &block.outcome)));
            }
            Step::Commit(count) => {
                let group: Vec<_> = self.chain.waiting().iter().take(count).cloned().collect();
                if group.is_empty() {
                    return;
                }
                self.units += 1;
                let units = self.units;
                let first = self.blocks.iter_mut().filter(|block| waits(block)).take(group.len());
                first.for_each(|block| (block.at, block.of) = (At::Unwritten(units), units));
                assert!(self.chain.commit(unit(&group, true), HashCounts::default()).unwrap().is_none());
            }
            Step::CommitNew(writes, is_shown) if !self.is_held() && self.chain.waiting().is_empty() => {
                self.units += 1;
                let block = self.add(self.next(), writes, At::Unwritten(self.units));
                let tip = self.chain.commit(unit(&[block], is_shown), HashCounts::default()).unwrap();
                assert_eq!(tip.map(|tip| tip.stamp), is_shown.then_some(self.largest));
                self.newest = if is_shown { self.largest } else { self.newest };
                self.blocks.last_mut().unwrap().is_shown = is_shown;
            }
            Step::BeginToWrite if self.being_written.is_empty() => {
                let mut units: Vec<usize> = self.blocks.iter().filter_map(Block::unit).collect();
                units.dedup();
                match self.chain.begin_to_write() {
                    Next::Do(unwritten) => assert_eq!(unwritten.len(), units.len()),
                    _ => assert!(units.is_empty()),
                }
                (self.being_written, self.in_store) = (units, false);
            }
            Step::InStore(pinned) if !self.being_written.is_empty() && !self.in_store => {
                self.in_store(pinned)
            }
            Step::Written if self.in_store => self.written(),
            Step::Want(block) => {
                self.chain.want(BlockNumber(block));
                self.wanted = self.wanted.max(Some(block).min(self.last(|block| block.is_shown)));
            }
            Step::Refuse if self.blocks.iter().any(waits) => self.refuse(),
            Step::Drop(back) => self.drop_after(back),
            Step::GoBack(back) if self.is_at_rest() => self.go_back(back),
            _ => {}
        }
    }

    fn in_store(&mut self, pinned: Option<u64>) {
        let left = self.chain.in_store(&self.config, pinned).unwrap();
        // Recent ones are found once, though they are not persisted yet.
        let units = &self.being_written;
        let blocks = self.blocks.iter_mut();
        blocks
            .filter(|block| block.unit().is_some_and(|unit| units.contains(&unit)))
            .for_each(|block| block.at = At::Recent);
        let mut recent: Vec<&mut Block> =
            self.blocks.iter_mut().filter(|block| block.at == At::Recent).collect();
        let mut expected = Vec::new();
        while recent.len() > self.config.recent_blocks_max {
            let bytes: u64 = recent.iter().map(|block| block.writes).sum();
            if bytes <= 9 && pinned.is_some_and(|pinned| pinned < recent[0].stamp) {
                break;
            }
            recent[0].at = At::Left;
            expected.push(recent.remove(0).stamp);
        }
        assert_eq!(left.iter().map(|closed| closed.stamp).collect::<Vec<_>>(), expected);
        self.in_store = true;
    }

    fn written(&mut self) {
        let tip = self.chain.written().unwrap();
        let first_left =
            self.blocks.iter().position(|block| matches!(block.at, At::Waiting | At::Unwritten(_)));
        let last = first_left.unwrap_or(self.blocks.len()).checked_sub(1).map(|last| &mut self.blocks[last]);
        self.persisted = last.as_ref().map(|block| block.number);
        assert_eq!(tip.is_some(), last.as_ref().is_some_and(|block| !block.is_shown));
        if let Some(tip) = tip {
            (self.newest, last.unwrap().is_shown) = (tip.stamp, true);
        }
        (self.being_written, self.in_store) = (Vec::new(), false);
    }

    fn refuse(&mut self) {
        self.chain.begin_to_refuse();
        let base = self.blocks.iter().rfind(|block| block.at != At::Waiting);
        let state = StateId(base.map_or(0, |block| block.stamp));
        self.blocks.retain(|block| block.at != At::Waiting);
        let (_, tip) = self.chain.refuse(None, state, Error::Ended);
        self.newest = self.stamp();
        assert_eq!((tip.stamp, tip.outcome.state()), (self.newest, state));
        self.wanted = self.wanted.min(self.last(|_| true));
        assert!(self.chain.take_untold().is_some() && self.chain.take_untold().is_none());
    }

    /// Whether a block can be dropped with all after it.
    fn can_go(&self, block: &Block) -> bool {
        let is_begun = block.unit().is_none_or(|unit| self.being_written.contains(&unit));
        block.at == At::Waiting || (!is_begun && !block.goes_back)
    }

    fn drop_after(&mut self, back: u64) {
        let Some(to) = self.last(|_| true).and_then(|last| last.checked_sub(back)) else { return };
        // What is before a state that was led back to is not on its way any more.
        let from = self.blocks.iter().rposition(|block| block.goes_back).unwrap_or(0);
        let (kept, gone): (Vec<Block>, Vec<Block>) =
            self.blocks[from..].iter().partition(|block| block.number <= to);
        let shares = |unit| kept.iter().any(|block| block.unit() == Some(unit));
        let is_whole =
            gone.iter().all(|block| self.can_go(block) && block.unit().is_none_or(|unit| !shares(unit)));
        let is_whole = is_whole && self.persisted <= Some(to);
        if self.is_held() {
            return;
        }
        assert_eq!(self.chain.can_take_after(BlockNumber(to)), is_whole && !gone.is_empty());
        let Some(taken) = self.chain.take_after(BlockNumber(to)) else { return };
        assert_eq!(
            taken.blocks().map(|closed| closed.stamp).collect::<Vec<_>>(),
            gone.iter().map(|block| block.stamp).collect::<Vec<_>>()
        );
        self.blocks.truncate(from);
        self.blocks.extend(kept);
        let base = self.blocks.iter().rfind(|block| block.at != At::Waiting).map_or(0, |block| block.stamp);
        let root = (!taken.unwritten.is_empty()).then(|| root_of(base));
        let stamp = self.stamp();
        let tip = self.chain.stand_at(BlockNumber(to), stamp, None, root, StateId(base));
        assert_eq!(tip.outcome.state(), StateId(self.blocks.last().unwrap().stamp));
        let last = self.chain.on_their_way().last();
        assert!(
            last.is_none_or(|last| Arc::ptr_eq(&last.outcome, &tip.outcome)),
            "it learns what becomes of it"
        );
        (self.newest, self.wanted) = (stamp, self.wanted.min(Some(to)));
    }

    fn go_back(&mut self, back: u64) {
        let Some(to) = self.last(|_| true).and_then(|last| last.checked_sub(back)) else { return };
        // What is written stays among the recent ones, for views from before.
        let (stamp, at) = (self.stamp(), At::Unwritten(self.units + 1));
        self.units += 1;
        let of = self.units;
        self.blocks.push(Block { number: to, stamp, writes: 1, at, of, goes_back: true, is_shown: true });
        let back = Unwritten { goes_back: true, ..unit(&[closed(to, stamp, 1)], true) };
        assert_eq!(self.chain.go_back(back).unwrap().stamp, stamp);
        (self.newest, self.persisted) = (stamp, self.persisted.min(Some(to)));
        self.wanted = self.wanted.min(Some(to));
    }

    fn check(&self) {
        let chain = &self.chain;
        let is_committed = |block: &Block| block.at != At::Waiting && block.is_shown;
        let number = |number: Option<u64>| number.map(BlockNumber);
        let head = chain.head();
        let waiting: Vec<&Block> = self.blocks.iter().filter(|block| block.at == At::Waiting).collect();
        assert_eq!(
            (head.closed, head.committed, head.persisted, head.uncommitted),
            (
                number(self.last(|block| block.is_shown)),
                number(self.last(is_committed)),
                number(self.persisted),
                waiting.len() as u64
            )
        );
        let last = self.blocks.iter().rfind(|block| is_committed(block));
        assert_eq!(head.root, last.map_or_else(BlockRoot::default, |block| root_of(block.stamp)));
        assert_eq!(chain.next_stamp(), self.newest + 1);
        let weight: u64 = waiting.iter().map(|block| block.writes).sum();
        let bounds = |pending_writes_max| EngineConfig { pending_writes_max, ..self.config };
        assert_eq!(chain.is_full(&bounds(weight as usize), 1), !waiting.is_empty());
        assert!(!chain.is_full(&bounds(weight as usize + 1), 1));
        let due = waiting.iter().take_while(|block| Some(block.number) <= self.wanted).count();
        let on_request =
            EngineConfig { cadence: Cadence::OnRequest, unwritten_batches_max: 99, ..self.config };
        match chain.next_group(&on_request, usize::MAX) {
            Next::Do(group) => assert_eq!(group.len(), due),
            _ => assert_eq!(due, 0),
        }
        self.check_live();
    }

    /// The newest of each number is found, as long as it has not left and is persisted.
    fn check_live(&self) {
        let is_there = |block: &Block| block.at != At::Left || self.being_written.contains(&block.of);
        for asked in 0..=self.blocks.iter().map(|block| block.number).max().unwrap_or(0) {
            let found = self.blocks.iter().rfind(|block| block.number == asked && is_there(block));
            let live = self.chain.live(BlockNumber(asked), &self.config).map(|live| live.stamp);
            assert_eq!(live, found.map(|block| block.stamp));
        }
    }
}

impl Block {
    const fn unit(&self) -> Option<usize> {
        match self.at {
            At::Unwritten(unit) => Some(unit),
            _ => None,
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..4u64).prop_map(Step::Close),
        4 => (1..4usize).prop_map(Step::Commit),
        2 => (1..4u64, any::<bool>()).prop_map(|(writes, shown)| Step::CommitNew(writes, shown)),
        4 => Just(Step::BeginToWrite),
        4 => prop::option::of(0..20u64).prop_map(Step::InStore),
        4 => Just(Step::Written),
        2 => (0..20u64).prop_map(Step::Want),
        1 => Just(Step::Refuse),
        2 => (0..4u64).prop_map(Step::Drop),
        1 => (1..4u64).prop_map(Step::GoBack),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever steps are taken, in whatever order they can be, the machine says what a list of all blocks says.
    #[test]
    fn the_machine_is_a_list_of_blocks(steps in prop::collection::vec(step(), 0..60)) {
        let mut model = Model::new();
        for step in &steps {
            model.step(step);
            model.check();
        }
    }
}

/// A chain with a committed block, one that waits, and nothing written.
fn two() -> (Chain, Arc<Closed>, Arc<Closed>) {
    let mut chain = Chain::default();
    let (first, second) = (closed(4, 1, 2), closed(5, 2, 3));
    chain.push(&first).unwrap();
    chain.push(&second).unwrap();
    chain.commit(unit(std::slice::from_ref(&first), true), HashCounts::default()).unwrap();
    (chain, first, second)
}

fn is_refused<T>(outcome: Result<T, Error>) -> bool {
    matches!(outcome, Err(Error::Stopped { cause }) if cause.contains("a mistake in the engine"))
}

#[test]
fn what_does_not_follow_is_neither_closed_nor_committed() {
    let (mut chain, first, second) = two();
    let before = chain.head();
    for wrong in [closed(7, 3, 1), closed(5, 3, 1), closed(6, 2, 1)] {
        assert!(is_refused(chain.push(&wrong)), "block {} at {}", wrong.block.number, wrong.stamp);
    }
    let mut refuses = |unit| is_refused(chain.commit(unit, HashCounts::default()));
    assert!(refuses(unit(&[first], true)), "it is committed already");
    assert!(refuses(unit(&[closed(6, 3, 1)], true)), "another one waits");
    assert!(refuses(unit(std::slice::from_ref(&second), false)), "it is shown already");
    assert!(refuses(Unwritten { goes_back: true, ..unit(&[second], true) }), "it does not go back");
    assert!(refuses(Unwritten { blocks: Vec::new(), ..unit(&[closed(5, 2, 3)], true) }));
    assert_eq!(chain.head(), before);
}

#[test]
fn what_was_not_begun_is_not_written_and_nothing_goes_back_while_blocks_are_on_their_way() {
    let (mut chain, first, _) = two();
    let back = || Unwritten { goes_back: true, ..unit(&[closed(3, 3, 1)], true) };
    assert!(is_refused(chain.in_store(&EngineConfig::default(), None)) && is_refused(chain.written()));
    assert!(is_refused(chain.go_back(back())));
    assert!(matches!(chain.begin_to_write(), Next::Do(unwritten) if unwritten.len() == 1));
    assert!(is_refused(chain.written()), "it is not in the store");
    assert!(!chain.can_take_after(BlockNumber(3)), "what is being written is not dropped");
    chain.in_store(&EngineConfig::default(), None).unwrap();
    assert!(chain.written().unwrap().is_none() && is_refused(chain.written()));
    assert_eq!(chain.stored().0, Some(first.block.number));
    assert!(is_refused(chain.go_back(back())), "a block waits");
}

#[test]
#[cfg(debug_assertions)]
fn steps_out_of_order_are_asserted() {
    fn asserts(wrong: impl FnOnce(&mut Chain)) -> bool {
        let (mut chain, ..) = two();
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| wrong(&mut chain))).is_err()
    }
    assert!(asserts(|chain| drop(chain.refuse(None, StateId::default(), Error::Ended))));
    assert!(asserts(|chain| drop(chain.stand_at(BlockNumber(4), 3, None, None, StateId::default()))));
    assert!(asserts(|chain| {
        chain.take_after(BlockNumber(4)).unwrap();
        chain.stand_at(BlockNumber(4), 2, None, None, StateId::default());
    }));
    assert!(asserts(|chain| (0..2).for_each(|_| drop(chain.begin_to_write()))));
    assert!(asserts(|chain| [Ending::Writing, Ending::Committing]
        .iter()
        .for_each(|ending| chain.end(*ending))));
}

#[test]
fn what_is_broken_is_named() {
    let broken = |wrong: fn(&mut Chain)| {
        let (mut chain, ..) = two();
        assert_eq!(chain.broken(), None);
        wrong(&mut chain);
        chain.broken().unwrap_or_default()
    };
    assert!(broken(|chain| chain.committed = Some(BlockNumber(6))).contains("up to committed"));
    assert!(broken(|chain| chain.wanted = Some(BlockNumber(6))).contains("wanted"));
    assert!(broken(|chain| chain.waiting_weight = 4).contains("weight"));
    assert!(broken(|chain| chain.recent_bytes = 1).contains("bytes"));
    assert!(broken(|chain| chain.writing = Writing::Begun(2)).contains("being written"));
    assert!(broken(|chain| drop(chain.unwritten.pop_back())).contains("last unit"));
    assert!(broken(|chain| chain.closed = Some(BlockNumber(6))).contains("waits is closed"));
    assert!(broken(|chain| chain.unwritten[0].blocks.push(closed(9, 2, 1))).contains("consecutive"));
    assert!(broken(|chain| chain.stamp = 1).contains("ascend"));
    assert!(broken(|chain| chain.left = 1).contains("ascend"));
}

#[test]
fn an_end_lets_go_of_what_waits_and_ends_the_stages_in_turn() {
    let (mut chain, ..) = two();
    let config = EngineConfig { cadence: Cadence::OnRequest, ..EngineConfig::default() };
    let stages =
        |chain: &mut Chain| (chain.next_group(&config, 1), matches!(chain.begin_to_write(), Next::End));
    assert!(matches!(chain.next_group(&config, 1), Next::Wait));
    chain.end(Ending::Committing);
    assert!(matches!(chain.next_group(&config, 1), Next::End));
    chain.end(Ending::Writing);
    assert!(matches!(chain.begin_to_write(), Next::Do(_)), "what is committed is written");
    chain.in_store(&config, None).unwrap();
    chain.written().unwrap();
    assert!(matches!(stages(&mut chain), (Next::End, true)));
    assert_eq!(chain.let_go().len(), 1);
    assert!(chain.waiting().is_empty() && matches!(chain.next_group(&config, 1), Next::End));
}
