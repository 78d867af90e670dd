//! The life of a block, as one state machine: [`Chain`] says where each block is on its way, and each step is one method of it.
//!
//! ```text
//! push ──> waiting ──commit──> unwritten ──begin_to_write──> being written ──in_store, written──> recent ──> left
//!             │                    │
//!          refuse              take_after, stand_at             (go_back, when nothing is on its way)
//! ```
//!
//! Nothing here waits, locks, reads or writes: whoever calls does the rest, and shows the [`Tip`] that a step returns. What holds after
//! each step is written in [`Chain::broken`]. Builds with debug assertions look at all of it each time; the steps at which a mistake would
//! lose a block look at what they need in any build, and then refuse.

use std::collections::VecDeque;
use std::sync::Arc;

use flagstone_core::commit::HashCounts;
use flagstone_core::commitment::Roots;
use flagstone_core::diff::StateDiff;
use flagstone_core::types::{BlockNumber, StateCommitment, StateId};
use flagstone_core::update::StateUpdate;

use super::closed::Closed;
use super::config::{Cadence, EngineConfig};
use super::meta::{BlockRoot, Head, Lineage, StoredHead};
use super::outcome::Outcome;
use super::rows::Layer;
use super::values::RECENT_VALUE_BYTES;
use crate::error::Error;
use crate::journal::Position;

/// A committed batch that is not written to the store yet, and the blocks in it.
#[derive(Clone)]
pub struct Unwritten {
    pub layer: Layer,
    pub blocks: Vec<Arc<Closed>>,
    pub head: Option<BlockNumber>,
    /// The roots after it.
    pub root: BlockRoot,
    /// The last refusal that the batch takes account of.
    pub refusal: Position,
    /// Whether its state is shown. Otherwise it is when the batch is written and synced, as nothing else makes its block durable.
    pub is_shown: bool,
    /// It takes back blocks that are written, or are about to be: its one block stands for the state that it leads back to.
    pub goes_back: bool,
}

impl Unwritten {
    /// The stamp of its last state.
    pub fn stamp(&self) -> u64 {
        self.blocks.last().map_or(0, |closed| closed.stamp)
    }

    /// Its last state.
    fn tip(&self) -> Option<Tip> {
        let last = self.blocks.last()?;
        Some(Tip { stamp: last.stamp, block: self.head, outcome: Arc::clone(&last.outcome) })
    }
}

/// What was taken off a chain: the last blocks, none of which has begun to be written.
#[derive(Default)]
pub struct Taken {
    /// In order.
    pub unwritten: VecDeque<Unwritten>,
    /// In order, after those.
    pub waiting: VecDeque<Arc<Closed>>,
}

impl Taken {
    /// All blocks, in order.
    pub fn blocks(&self) -> impl Iterator<Item = &Arc<Closed>> {
        self.unwritten.iter().flat_map(|unwritten| &unwritten.blocks).chain(&self.waiting)
    }
}

/// The newest state that is shown: what a new view begins with.
#[derive(Clone)]
pub struct Tip {
    pub stamp: u64,
    pub block: Option<BlockNumber>,
    pub outcome: Arc<Outcome>,
}

/// A state that can be viewed by the recent values.
#[derive(Clone)]
pub struct Live {
    pub stamp: u64,
    pub outcome: Arc<Outcome>,
    /// Whether it stays so for a while: half of what the bounds on recent values allow was not closed after it yet.
    pub lasts: bool,
}

/// What a stage is to do next.
pub enum Next<T> {
    Do(T),
    /// Nothing, until something changes.
    Wait,
    End,
}

/// How far the first unwritten batches are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Writing {
    #[default]
    No,
    /// So many are being written.
    Begun(usize),
    /// So many are in the store. Their blocks are among the recent ones, or have left these already.
    InStore(usize),
}

/// How far the end of an engine has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Ending {
    #[default]
    No,
    /// No block is closed any more; the commitment ends when it has done what is wanted.
    Committing,
    /// Nothing is committed any more; writing ends when all is written.
    Writing,
    /// What waited for its commitment was let go.
    Over,
}

/// All blocks on their way.
#[derive(Default)]
pub struct Chain {
    closed: Option<BlockNumber>,
    /// The id of the state after it.
    state: StateId,
    /// The stamp of the newest state.
    stamp: u64,
    /// Closed and not committed, in order.
    waiting: VecDeque<Arc<Closed>>,
    /// Their weights together.
    waiting_weight: usize,
    committed: Option<BlockNumber>,
    root: BlockRoot,
    /// Committed and not written, in order.
    unwritten: VecDeque<Unwritten>,
    writing: Writing,
    persisted: Option<BlockNumber>,
    /// Written, with values that are still among the recent ones, in order.
    recent: VecDeque<Arc<Closed>>,
    /// What these take.
    recent_bytes: usize,
    /// The stamp of the last block whose values have left: views from before it have expired.
    left: u64,
    /// Blocks up to this one are to be committed, whatever the cadence.
    wanted: Option<BlockNumber>,
    /// Hashes that commitments took.
    hashes: HashCounts,
    /// The last refusal in the journal.
    refusal: Position,
    /// The last one that the store's head takes account of.
    written_refusal: Position,
    /// Blocks are being refused.
    refusing: bool,
    /// Blocks were taken off, and the state before them does not stand yet.
    dropping: bool,
    /// Why blocks were taken back, with the number of that failure, while nobody who closes blocks knows of it.
    untold: Option<(u64, Error)>,
    /// How often blocks were taken back.
    failures: u64,
    /// The engine is about to be dropped.
    ending: Ending,
}

/// What is known of all blocks.
impl Chain {
    /// Nothing is on its way to a store with this head; `refusal` is the last one in the journal.
    pub fn at_rest(head: &StoredHead, refusal: Position) -> Self {
        let StoredHead { block, root, state, refusal: written_refusal } = *head;
        let (closed, committed, persisted) = (block, block, block);
        Self { closed, committed, persisted, root, state, refusal, written_refusal, ..Self::default() }
    }

    pub fn head(&self) -> Head {
        let Self { closed, committed, persisted, root, .. } = *self;
        Head { closed, committed, persisted, root, uncommitted: self.waiting.len() as u64 }
    }

    /// The last closed block.
    pub const fn closed(&self) -> Option<BlockNumber> {
        self.closed
    }

    /// The id of the state after it.
    pub const fn state(&self) -> StateId {
        self.state
    }

    /// The stamp that the next state gets.
    pub const fn next_stamp(&self) -> u64 {
        self.stamp + 1
    }

    /// The last committed block.
    pub const fn committed(&self) -> Option<BlockNumber> {
        self.committed
    }

    /// The last refusal in the journal.
    pub const fn refusal(&self) -> Position {
        self.refusal
    }

    /// The last block that the store has, and the last refusal that its head takes account of.
    pub const fn stored(&self) -> (Option<BlockNumber>, Position) {
        (self.persisted, self.written_refusal)
    }

    /// Hashes that commitments took.
    pub const fn hashes(&self) -> HashCounts {
        self.hashes
    }

    /// Closed and not committed, in order.
    pub const fn waiting(&self) -> &VecDeque<Arc<Closed>> {
        &self.waiting
    }

    /// Committed and not written, in order.
    pub const fn unwritten(&self) -> &VecDeque<Unwritten> {
        &self.unwritten
    }

    /// All that are not in the store, in order.
    pub fn on_their_way(&self) -> impl Iterator<Item = &Arc<Closed>> {
        self.unwritten.iter().flat_map(|unwritten| &unwritten.blocks).chain(&self.waiting)
    }

    /// Whether a state with a stamp can still be viewed by the recent values.
    pub const fn reaches(&self, stamp: u64) -> bool {
        self.left <= stamp
    }

    /// Whether blocks are being refused.
    pub const fn is_refusing(&self) -> bool {
        self.refusing
    }

    /// Refuses a block that is not closed.
    pub fn is_closed(&self, block: BlockNumber) -> Result<(), Error> {
        if self.closed < Some(block) {
            return Err(Error::NotClosed { block, closed: self.closed });
        }
        Ok(())
    }

    /// The root that a block on top must build on, as far as known.
    pub fn parent(&self) -> Option<StateCommitment> {
        self.waiting.back().map_or(Some(self.root.commitment), |closed| closed.block.new_root)
    }

    /// Where a block that is closed now, and leads to a state, comes from.
    pub fn lineage_of_next(&self, state: StateId) -> Lineage {
        Lineage { state, parent: self.state, parent_root: self.parent() }
    }

    /// Refuses a block whose commitment would not be defined on top of the closed ones and of these.
    pub fn check_defined<'a>(
        &'a self,
        block: BlockNumber,
        update: &'a StateUpdate,
        below: impl Iterator<Item = &'a StateDiff> + Clone,
    ) -> Result<(), Error> {
        let is_said = update.starknet_version.is_some() || update.new_root.is_some();
        if is_said || !self.rule_may_matter(below.chain([&update.diff])) {
            return Ok(());
        }
        Err(Error::VersionNeeded { block })
    }

    /// Whether the state after more diffs may have contracts and no class, so that its commitment depends on the rule.
    fn rule_may_matter<'a>(&'a self, diffs: impl Iterator<Item = &'a StateDiff> + Clone) -> bool {
        let Roots { contracts, classes } = self.root.roots;
        let declares =
            |diff: &StateDiff| diff.classes().iter().any(|class| !class.compiled_class_hash.is_zero());
        let deletes =
            |diff: &StateDiff| diff.classes().iter().any(|class| class.compiled_class_hash.is_zero());
        let diffs = self.waiting.iter().map(|closed| &closed.block.diff).chain(diffs);
        let has_contracts = !contracts.is_zero() || diffs.clone().any(|diff| !diff.is_empty());
        let may_have_none = (classes.is_zero() && !diffs.clone().any(declares)) || diffs.clone().any(deletes);
        has_contracts && may_have_none
    }

    /// Whether a block of this weight would exceed a bound on closed blocks.
    pub fn is_full(&self, config: &EngineConfig, weight: usize) -> bool {
        !self.waiting.is_empty()
            && (self.waiting.len() >= config.pending_blocks_max
                || self.waiting_weight + weight > config.pending_writes_max)
    }

    /// Whether so much is committed and not written that the commitment must wait.
    pub fn is_unwritten_full(&self, config: &EngineConfig) -> bool {
        let bytes: usize = self.unwritten.iter().map(|unwritten| unwritten.layer.bytes).sum();
        !self.unwritten.is_empty()
            && (self.unwritten.len() >= config.unwritten_batches_max || bytes > config.unwritten_bytes_max)
    }

    /// Whether nothing is on its way: all that is closed is in the store.
    pub fn is_at_rest(&self) -> bool {
        self.waiting.is_empty() && self.unwritten.is_empty()
    }

    /// Whether these blocks are the first that wait for their commitment.
    pub fn waits_for(&self, blocks: &[Arc<Closed>]) -> bool {
        self.waiting.len() >= blocks.len()
            && self.waiting.iter().zip(blocks).all(|(waiting, block)| waiting.stamp == block.stamp)
    }

    /// The state after a block whose values are on their way or among the recent ones.
    pub fn live(&self, block: BlockNumber, config: &EngineConfig) -> Option<Live> {
        self.find(config, |closed| closed.block.number == block)
    }

    /// The newest state that is `there`.
    fn find(&self, config: &EngineConfig, is_there: impl Fn(&Closed) -> bool) -> Option<Live> {
        let unwritten = self.unwritten.iter().rev().flat_map(|unwritten| unwritten.blocks.iter().rev());
        let newest_first = self.waiting.iter().rev().chain(unwritten).chain(self.recent.iter().rev());
        let (mut blocks, mut bytes) = (0, 0);
        for closed in newest_first {
            let lasts = blocks <= config.recent_blocks_max / 2 && bytes <= config.recent_bytes_max / 2;
            if is_there(closed) {
                return Some(Live { stamp: closed.stamp, outcome: Arc::clone(&closed.outcome), lasts });
            }
            blocks += 1;
            bytes += recent_bytes(closed);
        }
        None
    }

    /// Whether a state that can be viewed by its stamp stays so for a while.
    pub fn lasts(&self, stamp: u64, config: &EngineConfig) -> bool {
        let newest = self.stamp == stamp;
        newest || self.find(config, |closed| closed.stamp <= stamp).is_some_and(|live| live.lasts)
    }
}

/// From closed to persisted.
impl Chain {
    /// A block is closed, on top of the last one.
    pub fn push(&mut self, closed: &Arc<Closed>) -> Result<Tip, Error> {
        require(self.is_next(closed), "a block is closed that does not follow")?;
        self.closed = Some(closed.block.number);
        self.state = closed.block.lineage.state;
        self.stamp = closed.stamp;
        self.waiting_weight += closed.weight;
        self.waiting.push_back(Arc::clone(closed));
        self.check();
        Ok(Tip { stamp: closed.stamp, block: self.closed, outcome: Arc::clone(&closed.outcome) })
    }

    /// Whether a block follows the last closed one.
    fn is_next(&self, closed: &Closed) -> bool {
        let next = self.closed.map(BlockNumber::next);
        closed.stamp > self.stamp && next.is_none_or(|next| next == Some(closed.block.number))
    }

    /// Blocks up to this one are to be committed, as far as they are closed.
    pub fn want(&mut self, block: BlockNumber) {
        self.wanted = self.wanted.max(Some(block).min(self.closed));
        self.check();
    }

    /// All closed blocks are to be committed.
    pub const fn want_all(&mut self) {
        self.wanted = self.closed;
    }

    /// How many of the waiting blocks are due.
    fn due(&self, cadence: Cadence) -> usize {
        match cadence {
            Cadence::Blocks(count) if self.waiting.len() >= count.get() as usize => self.waiting.len(),
            _ => self.waiting.iter().take_while(|closed| Some(closed.block.number) <= self.wanted).count(),
        }
    }

    /// The blocks that are to be committed next: the first that are due, as many as have so few values together, at least one. They go
    /// on waiting.
    pub fn next_group(&self, config: &EngineConfig, writes_max: usize) -> Next<Vec<Arc<Closed>>> {
        let due = self.due(config.cadence);
        if due == 0 && self.ending >= Ending::Committing {
            return Next::End;
        }
        if due == 0 || self.is_unwritten_full(config) {
            return Next::Wait;
        }
        let mut writes = 0;
        let fits = |closed: &&Arc<Closed>| {
            writes += closed.writes;
            writes <= writes_max
        };
        let count = self.waiting.iter().take(due).take_while(fits).count().max(1);
        Next::Do(self.waiting.iter().take(count).map(Arc::clone).collect())
    }

    /// Blocks are committed: the first that waited, or one that was not closed before and is so now, if it is shown. Returns the newest
    /// state if it is another.
    pub fn commit(&mut self, unit: Unwritten, hashes: HashCounts) -> Result<Option<Tip>, Error> {
        let is_first = || self.waits_for(&unit.blocks) && unit.is_shown;
        let is_next = || self.waiting.is_empty() && unit.blocks.iter().all(|closed| self.is_next(closed));
        require(!unit.blocks.is_empty() && !unit.goes_back, "no blocks are committed")?;
        require(is_first() || is_next(), "blocks are committed that are not next")?;
        let waited = self.waiting.len().min(unit.blocks.len());
        let weights = self.waiting.drain(..waited).map(|closed| closed.weight);
        self.waiting_weight -= weights.sum::<usize>();
        self.hashes += hashes;
        let tip = if unit.is_shown { self.show(&unit) } else { None };
        self.unwritten.push_back(unit);
        self.check();
        Ok(tip)
    }

    /// The state after a committed unit is shown. Returns it if it was not.
    fn show(&mut self, unit: &Unwritten) -> Option<Tip> {
        (self.committed, self.root) = (unit.head, unit.root);
        let tip = unit.tip().filter(|_| self.closed < unit.head)?;
        self.closed = unit.head;
        self.state = tip.outcome.state();
        self.stamp = tip.stamp;
        Some(tip)
    }

    /// What is to be written next: all that is committed.
    pub fn begin_to_write(&mut self) -> Next<Vec<Unwritten>> {
        debug_assert_eq!(self.writing, Writing::No, "one unit is written at a time");
        if self.unwritten.is_empty() {
            return if self.ending >= Ending::Writing { Next::End } else { Next::Wait };
        }
        self.writing = Writing::Begun(self.unwritten.len());
        self.check();
        Next::Do(self.unwritten.iter().map(Unwritten::clone).collect())
    }

    /// What was being written is in the store: the values of its blocks are recent ones. Returns the blocks whose values need not be kept
    /// any more, or cannot be; `pinned` is the oldest pinned state.
    pub fn in_store(
        &mut self,
        config: &EngineConfig,
        pinned: Option<u64>,
    ) -> Result<Vec<Arc<Closed>>, Error> {
        let Writing::Begun(count) = self.writing else { return Err(mistake("nothing was being written")) };
        self.writing = Writing::InStore(count);
        let blocks = self.unwritten.iter().take(count).flat_map(|unwritten| &unwritten.blocks);
        self.recent.extend(blocks.map(Closed::without_blobs));
        let added = self.unwritten.iter().take(count).flat_map(|unwritten| &unwritten.blocks);
        self.recent_bytes += added.map(|closed| recent_bytes(closed)).sum::<usize>();
        let leaving = self.leaving(config, pinned);
        self.check();
        Ok(leaving)
    }

    fn leaving(&mut self, config: &EngineConfig, pinned: Option<u64>) -> Vec<Arc<Closed>> {
        let mut leaving = Vec::new();
        while self.recent_bytes > config.recent_bytes_max || self.recent.len() > config.recent_blocks_max {
            let expires_pinned = |closed: &Arc<Closed>| pinned.is_some_and(|pinned| pinned < closed.stamp);
            let may_stay = self.recent_bytes <= config.pinned_bytes_max;
            let Some(closed) = self.recent.pop_front_if(|closed| !(may_stay && expires_pinned(closed)))
            else {
                break;
            };
            self.recent_bytes -= recent_bytes(&closed);
            self.left = closed.stamp;
            leaving.push(closed);
        }
        leaving
    }

    /// What is in the store is persisted, and the values that leave have left. Returns the newest state if it is another.
    pub fn written(&mut self) -> Result<Option<Tip>, Error> {
        let Writing::InStore(count) = self.writing else { return Err(mistake("nothing came to the store")) };
        self.writing = Writing::No;
        let mut tip = None;
        for unit in self.unwritten.drain(..count).collect::<Vec<_>>() {
            if !unit.is_shown {
                tip = self.show(&unit);
            }
            (self.persisted, self.written_refusal) = (unit.head, unit.refusal);
        }
        self.check();
        Ok(tip)
    }
}

/// Back.
impl Chain {
    /// Blocks that wait are about to be refused: nobody closes one until that is done.
    pub const fn begin_to_refuse(&mut self) {
        self.refusing = true;
    }

    /// They had been taken back by then.
    pub const fn refuse_nothing(&mut self) {
        self.refusing = false;
    }

    /// All waiting blocks are refused, for the first of them. `state` is that of the last committed block, on which the next one is
    /// closed; who closes it is told the error. Returns the number of this failure, and the newest state.
    pub fn refuse(&mut self, refusal: Option<Position>, state: StateId, error: Error) -> (u64, Tip) {
        debug_assert!(
            self.refusing && !self.dropping,
            "blocks are refused by who has begun to, and by nobody else"
        );
        self.waiting.clear();
        self.waiting_weight = 0;
        self.refusing = false;
        self.failures += 1;
        self.untold = Some((self.failures, error));
        let (block, stamp) = (self.committed, self.next_stamp());
        let outcome = Outcome::new(block.unwrap_or_default(), state);
        let tip = self.stand(Tip { stamp, block, outcome }, refusal.unwrap_or(self.refusal));
        self.check();
        (self.failures, tip)
    }

    /// The newest state is one of a block that was closed before; it has a stamp of its own: views of the state before keep theirs, and
    /// blocks to come get larger ones than those that were taken back.
    fn stand(&mut self, tip: Tip, refusal: Position) -> Tip {
        debug_assert!(self.stamp < tip.stamp, "stamps ascend");
        (self.closed, self.state, self.stamp) = (tip.block, tip.outcome.state(), tip.stamp);
        (self.wanted, self.refusal) = (self.wanted.min(tip.block), refusal);
        tip
    }

    /// Takes the last failure that nobody who closes blocks knows of.
    pub fn take_untold(&mut self) -> Option<Error> {
        self.untold.take().map(|(_, error)| error)
    }

    /// Somebody who closes blocks knows of a failure.
    pub fn told(&mut self, failure: u64) {
        self.untold.take_if(|(untold, _)| *untold == failure);
    }

    /// From which place on the unwritten batches are all of blocks after one; `None` if one of those is being written, shares its batch
    /// with others, or is one that goes back itself.
    fn first_to_take(&self, block: BlockNumber) -> Option<usize> {
        let is_after = |closed: &Arc<Closed>| closed.block.number > block;
        let (kept, taken) = (self.unwritten.iter(), self.unwritten.iter());
        let first = kept.take_while(|unwritten| !unwritten.blocks.iter().any(is_after)).count();
        let mut taken = taken.skip(first);
        let is_whole = |unwritten: &Unwritten| !unwritten.goes_back && unwritten.blocks.iter().all(is_after);
        (first >= self.being_written() && self.persisted <= Some(block) && taken.all(is_whole))
            .then_some(first)
    }

    /// Whether the blocks after one can be taken off.
    pub fn can_take_after(&self, block: BlockNumber) -> bool {
        self.closed > Some(block) && self.first_to_take(block).is_some()
    }

    /// Takes off the blocks after one, if they can be. What is left stands once [`Chain::stand_at`] says so.
    pub fn take_after(&mut self, block: BlockNumber) -> Option<Taken> {
        let first = self.first_to_take(block).filter(|_| self.closed > Some(block))?;
        self.dropping = true;
        let kept = self.waiting.partition_point(|closed| closed.block.number <= block);
        let waiting = self.waiting.split_off(kept);
        self.waiting_weight -= waiting.iter().map(|closed| closed.weight).sum::<usize>();
        let taken = Taken { unwritten: self.unwritten.split_off(first), waiting };
        self.check();
        Some(taken)
    }

    /// The blocks after one are taken off, and it is the last closed one. `committed` is its root if commitments were taken back with
    /// them, and `state` that of the last committed block. Returns the newest state.
    pub fn stand_at(
        &mut self,
        block: BlockNumber,
        stamp: u64,
        refusal: Option<Position>,
        committed: Option<BlockRoot>,
        state: StateId,
    ) -> Tip {
        debug_assert!(self.dropping, "blocks were taken off before");
        self.dropping = false;
        if let Some(root) = committed {
            (self.committed, self.root) = (Some(block), root);
        }
        let state = self.waiting.back().map_or(state, |last| last.block.lineage.state);
        // The block's own, if it is on its way: it may still be refused, and views of it must learn of that.
        let last = self.on_their_way().last().filter(|last| last.block.number == block);
        let outcome = last.map_or_else(|| Outcome::new(block, state), |last| Arc::clone(&last.outcome));
        let tip = Tip { stamp, block: Some(block), outcome };
        let tip = self.stand(tip, refusal.unwrap_or(self.refusal));
        self.check();
        tip
    }

    /// What leads back to the state after an earlier block is committed. Nothing is on its way. Returns the newest state.
    pub fn go_back(&mut self, unit: Unwritten) -> Result<Tip, Error> {
        require(self.is_at_rest() && unit.goes_back, "blocks are on their way while others are taken back")?;
        let tip = unit.tip().ok_or_else(|| mistake("no state is led back to"))?;
        (self.committed, self.root) = (unit.head, unit.root);
        self.persisted = self.persisted.min(unit.head);
        let tip = self.stand(tip, unit.refusal);
        self.unwritten.push_back(unit);
        self.check();
        Ok(tip)
    }

    /// Rows are deleted that no kept state needs: a unit without blocks, which leaves everything where it is. Nothing is on its way.
    pub fn tidy(&mut self, layer: Layer) -> Result<(), Error> {
        require(self.is_at_rest(), "blocks are on their way while rows are deleted")?;
        let (head, root, refusal) = (self.committed, self.root, self.written_refusal);
        let (blocks, is_shown, goes_back) = (Vec::new(), true, true);
        self.unwritten.push_back(Unwritten { layer, blocks, head, root, refusal, is_shown, goes_back });
        self.check();
        Ok(())
    }

    /// The engine's end has come so far.
    pub fn end(&mut self, ending: Ending) {
        debug_assert!(self.ending <= ending, "an end is not taken back");
        self.ending = ending;
    }

    /// The engine has ended: what waits will not be committed by it. Returns that.
    pub fn let_go(&mut self) -> VecDeque<Arc<Closed>> {
        self.end(Ending::Over);
        self.waiting_weight = 0;
        let left = std::mem::take(&mut self.waiting);
        self.check();
        left
    }
}

/// What always holds.
impl Chain {
    const fn being_written(&self) -> usize {
        match self.writing {
            Writing::No => 0,
            Writing::Begun(count) | Writing::InStore(count) => count,
        }
    }

    /// Looks at everything that must hold, in builds that assert.
    fn check(&self) {
        debug_assert_eq!(self.broken(), None, "the life of a block");
    }

    /// What does not hold and must, if anything.
    fn broken(&self) -> Option<&'static str> {
        let weight: usize = self.waiting.iter().map(|closed| closed.weight).sum();
        let bytes: usize = self.recent.iter().map(|closed| recent_bytes(closed)).sum();
        let ordered = self.persisted <= self.committed && self.committed <= self.closed;
        let is_shown = |unit: &&Unwritten| unit.is_shown;
        let last_shown = self.unwritten.iter().rev().find(is_shown).map_or(self.persisted, |unit| unit.head);
        let stands = !self.dropping && self.ending < Ending::Over;
        let last_closed = self.waiting.back().map_or(self.committed, |closed| Some(closed.block.number));
        let held = [
            (ordered, "persisted is up to committed, and that up to closed"),
            (self.wanted <= self.closed, "only closed blocks are wanted"),
            (self.written_refusal <= self.refusal, "the store takes account of refusals that there are"),
            (weight == self.waiting_weight, "the weight of waiting blocks is the sum of theirs"),
            (bytes == self.recent_bytes, "the bytes of recent blocks are the sum of theirs"),
            (self.being_written() <= self.unwritten.len(), "what is being written is not persisted"),
            (self.dropping || last_shown == self.committed, "the last unit is committed"),
            (!stands || last_closed == self.closed, "the last block that waits is closed"),
            (self.numbers_follow(), "blocks on their way are consecutive"),
            (self.stamps_ascend(), "stamps ascend"),
        ];
        held.iter().find(|(holds, _)| !holds).map(|(_, what)| *what)
    }

    /// Whether each block on its way follows the one before it, from what is persisted on.
    fn numbers_follow(&self) -> bool {
        let follows = |before: Option<BlockNumber>, number: BlockNumber| {
            before.is_none_or(|before| before.next() == Some(number))
        };
        let mut last = self.persisted;
        for unit in &self.unwritten {
            let mut before = if unit.goes_back { None } else { last };
            for closed in &unit.blocks {
                if !follows(before, closed.block.number) {
                    return false;
                }
                before = Some(closed.block.number);
            }
            last = unit.head;
        }
        self.waiting.iter().all(|closed| {
            let before = last.replace(closed.block.number);
            follows(before, closed.block.number)
        })
    }

    /// Whether each state has a larger stamp than those before: left, recent, committed, waiting. The newest that is shown has the
    /// largest, but for one that is not shown yet.
    fn stamps_ascend(&self) -> bool {
        let stamps = |unit: &Unwritten| unit.blocks.iter().map(|closed| closed.stamp).collect::<Vec<_>>();
        let waiting = self.waiting.iter().map(|closed| closed.stamp);
        let way: Vec<u64> = self.unwritten.iter().flat_map(stamps).chain(waiting).collect();
        let in_store = match self.writing {
            Writing::InStore(count) => self.unwritten.iter().take(count).map(|unit| unit.blocks.len()).sum(),
            Writing::No | Writing::Begun(_) => 0,
        };
        let recent = self.recent.iter().map(|closed| closed.stamp);
        let all: Vec<u64> =
            std::iter::once(self.left).chain(recent).chain(way.iter().skip(in_store).copied()).collect();
        let ascend = |stamps: &[u64]| stamps.is_sorted_by(|before, after| before < after);
        let last_is_shown = self.unwritten.back().is_none_or(|unit| unit.is_shown);
        let is_newest = way.last().is_none_or(|last| (*last <= self.stamp) == last_is_shown);
        ascend(&way) && ascend(&all) && is_newest
    }
}

/// About what a block's values take among the recent ones.
fn recent_bytes(closed: &Closed) -> usize {
    closed.writes * RECENT_VALUE_BYTES
}

/// Refuses a step that would lose a block: a mistake in the engine, which stops for it.
fn require(holds: bool, otherwise: &str) -> Result<(), Error> {
    if holds { Ok(()) } else { Err(mistake(otherwise)) }
}

fn mistake(what: &str) -> Error {
    Error::Stopped { cause: format!("a mistake in the engine: {what}") }
}

/// The number of a block on top of another one, or of the first.
///
/// # Errors
/// [`Error::WrongNumber`] if it has another, [`Error::Refused`] if none could follow it.
pub fn next_number(before: Option<BlockNumber>, given: Option<BlockNumber>) -> Result<BlockNumber, Error> {
    let none = || Error::Refused("no block follows the last of 64 bits".into());
    let expected = before.map(|before| before.next().ok_or_else(none)).transpose()?;
    let number = given.or(expected).unwrap_or_default();
    if let Some(expected) = expected.filter(|expected| *expected != number) {
        return Err(Error::WrongNumber { expected, got: number });
    }
    if number.next().is_none() {
        return Err(Error::Refused(format!("no block could follow block {number}, so it is not taken")));
    }
    Ok(number)
}

/// Refuses a block that states another root before it than there is, as far as that is known.
pub fn check_parent(
    block: BlockNumber,
    stated: Option<StateCommitment>,
    actual: Option<StateCommitment>,
) -> Result<(), Error> {
    match (stated, actual) {
        (Some(stated), Some(actual)) if stated != actual => Err(Error::WrongParent { block, stated, actual }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
