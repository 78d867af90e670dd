//! Where each block is on its way: closed, committed, persisted.
//!
//! One lock, held for moments. Whoever waits, waits on [`Shared::changed`](super::Shared): for room, for a root, for work.

use std::collections::VecDeque;
use std::sync::Arc;

use flagstone_core::commit::HashCounts;
use flagstone_core::commitment::Roots;
use flagstone_core::diff::StateDiff;
use flagstone_core::types::{BlockNumber, StateCommitment, StateId};
use flagstone_core::update::StateUpdate;

use super::base::Layer;
use super::handle::Life;
use super::meta::{Blob, BlockRoot, Head, Lineage, PendingBlock};
use super::values::RECENT_VALUE_BYTES;
use super::{Cadence, EngineConfig};
use crate::error::Error;
use crate::journal::Position;

/// A closed block on its way.
pub struct Closed {
    pub block: PendingBlock,
    /// Larger than those of all states before.
    pub stamp: u64,
    pub life: Arc<Life>,
    pub writes: usize,
    /// Its values, and its blobs as so many values as take their room.
    pub weight: usize,
}

/// Bytes of blobs that count as one value at the bounds: about what a value takes while its block is not committed.
const VALUE_BYTES: usize = 300;

/// What a block counts at the bound on values that are closed and not committed.
pub fn weight(diff: &StateDiff, blobs: &[Blob]) -> usize {
    diff.writes() + blobs.iter().map(|blob| blob.bytes.len() / VALUE_BYTES).sum::<usize>()
}

impl Closed {
    pub fn new(block: PendingBlock, stamp: u64) -> Self {
        let (writes, weight) = (block.diff.writes(), weight(&block.diff, &block.blobs));
        let life = Life::new(block.number, block.lineage.state);
        Self { block, stamp, life, writes, weight }
    }

    /// The block as one of the recent ones: its blobs are in rows, and are not kept in memory for views of it.
    pub fn without_blobs(self: &Arc<Self>) -> Arc<Self> {
        let Self { block, stamp, life, .. } = &**self;
        if block.blobs.is_empty() {
            return Arc::clone(self);
        }
        let facts =
            PendingBlock { number: block.number, diff: block.diff.clone(), ..PendingBlock::default() };
        Arc::new(Self { life: Arc::clone(life), ..Self::new(facts, *stamp) })
    }

    /// About what its values take among the recent ones.
    const fn recent_bytes(&self) -> usize {
        self.writes * RECENT_VALUE_BYTES
    }
}

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
    /// What is to be shown only when the batch is written and synced, as nothing else makes its block durable.
    pub to_show: Option<ToShow>,
    /// It takes back blocks that are written, or are about to be: its one block stands for the state that it leads back to.
    pub goes_back: bool,
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

impl Unwritten {
    /// The stamp of its last state.
    pub fn stamp(&self) -> u64 {
        self.blocks.last().map_or(0, |closed| closed.stamp)
    }
}

/// A block that is committed and not shown yet.
#[derive(Clone)]
pub struct ToShow {
    pub stamp: u64,
    pub life: Arc<Life>,
    pub root: BlockRoot,
}

/// A state that can be viewed by the recent values.
#[derive(Clone)]
pub struct Live {
    pub stamp: u64,
    pub life: Arc<Life>,
    /// Whether it stays so for a while: half of what the bounds on recent values allow was not closed after it yet.
    pub lasts: bool,
}

/// All blocks on their way.
#[derive(Default)]
pub struct Chain {
    pub closed: Option<BlockNumber>,
    /// The id of the state after it.
    pub state: StateId,
    /// The stamp of the newest state.
    pub stamp: u64,
    /// Closed and not committed, in order.
    pub waiting: VecDeque<Arc<Closed>>,
    /// Their weights together.
    pub waiting_weight: usize,
    pub committed: Option<BlockNumber>,
    pub root: BlockRoot,
    /// Committed and not written, in order.
    pub unwritten: VecDeque<Unwritten>,
    /// How many of them are being written.
    pub writing: usize,
    pub persisted: Option<BlockNumber>,
    /// Written, with values that are still among the recent ones, in order.
    pub recent: VecDeque<Arc<Closed>>,
    /// What these take.
    pub recent_bytes: usize,
    /// The stamp of the last block whose values have left: views from before it have expired.
    pub left: u64,
    /// Blocks up to this one are to be committed, whatever the cadence.
    pub wanted: Option<BlockNumber>,
    /// Hashes that commitments took.
    pub hashes: HashCounts,
    /// The last refusal in the journal.
    pub refusal: Position,
    /// The last one that the store's head takes account of.
    pub written_refusal: Position,
    /// Blocks are being taken back.
    pub refusing: bool,
    /// Why blocks were taken back, with the number of that failure, while nobody who closes blocks knows of it.
    pub untold: Option<(u64, Error)>,
    /// How often blocks were taken back.
    pub failures: u64,
    /// The engine is about to be dropped.
    pub ending: Ending,
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
}

impl Chain {
    pub fn head(&self) -> Head {
        let Self { closed, committed, persisted, root, .. } = *self;
        Head { closed, committed, persisted, root, uncommitted: self.waiting.len() as u64 }
    }

    /// Somebody who closes blocks knows of a failure.
    pub fn told(&mut self, failure: u64) {
        self.untold.take_if(|(untold, _)| *untold == failure);
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

    /// A block that was committed before it was shown is closed now.
    pub fn show(&mut self, head: Option<BlockNumber>, shown: &ToShow) {
        if self.closed < head {
            self.closed = head;
            self.state = shown.life.state();
            self.stamp = shown.stamp;
        }
        self.committed = head;
        self.root = shown.root;
    }

    /// Adds a closed block.
    pub fn push(&mut self, closed: &Arc<Closed>) {
        self.closed = Some(closed.block.number);
        self.state = closed.block.lineage.state;
        self.stamp = closed.stamp;
        self.waiting_weight += closed.weight;
        self.waiting.push_back(Arc::clone(closed));
    }

    /// Whether these blocks are the first that wait for their commitment.
    pub fn waits_for(&self, blocks: &[Arc<Closed>]) -> bool {
        self.waiting.len() >= blocks.len()
            && self.waiting.iter().zip(blocks).all(|(waiting, block)| waiting.stamp == block.stamp)
    }

    /// From which place on the unwritten batches are all of blocks after one; `None` if one of those is being written, shares its batch
    /// with others, or is one that goes back itself.
    pub fn first_to_take(&self, block: BlockNumber) -> Option<usize> {
        let is_after = |closed: &Arc<Closed>| closed.block.number > block;
        let (kept, taken) = (self.unwritten.iter(), self.unwritten.iter());
        let first = kept.take_while(|unwritten| !unwritten.blocks.iter().any(is_after)).count();
        let mut taken = taken.skip(first);
        let is_whole = |unwritten: &Unwritten| !unwritten.goes_back && unwritten.blocks.iter().all(is_after);
        (first >= self.writing && self.persisted <= Some(block) && taken.all(is_whole)).then_some(first)
    }

    /// Takes off the blocks after one, the batches from a place on. What is left is told by [`Chain::go_back`].
    pub fn take_after(&mut self, block: BlockNumber, first: usize) -> Taken {
        let kept = self.waiting.partition_point(|closed| closed.block.number <= block);
        let waiting = self.waiting.split_off(kept);
        self.waiting_weight -= waiting.iter().map(|closed| closed.weight).sum::<usize>();
        Taken { unwritten: self.unwritten.split_off(first), waiting }
    }

    /// Notes that all closed blocks are to be committed.
    pub fn want_all(&mut self) {
        self.wanted = self.closed;
    }

    /// How many of the waiting blocks are due.
    pub fn due(&self, cadence: Cadence) -> usize {
        match cadence {
            Cadence::Blocks(count) if self.waiting.len() >= count.get() as usize => self.waiting.len(),
            _ => self.waiting.iter().take_while(|closed| Some(closed.block.number) <= self.wanted).count(),
        }
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
                return Some(Live { stamp: closed.stamp, life: Arc::clone(&closed.life), lasts });
            }
            blocks += 1;
            bytes += closed.recent_bytes();
        }
        None
    }

    /// Whether a state that can be viewed by its stamp stays so for a while.
    pub fn lasts(&self, stamp: u64, config: &EngineConfig) -> bool {
        let newest = self.stamp == stamp;
        newest || self.find(config, |closed| closed.stamp <= stamp).is_some_and(|live| live.lasts)
    }

    /// Blocks are written: their values are recent ones from now on.
    pub fn keep_recent(&mut self, written: impl Iterator<Item = Arc<Closed>>) {
        for closed in written {
            self.recent_bytes += closed.recent_bytes();
            self.recent.push_back(closed);
        }
    }

    /// Blocks whose values need not be kept any more, or cannot be; `pinned` is the oldest pinned state.
    pub fn leaving(&mut self, config: &EngineConfig, pinned: Option<u64>) -> Vec<Arc<Closed>> {
        let mut leaving = Vec::new();
        while self.recent_bytes > config.recent_bytes_max || self.recent.len() > config.recent_blocks_max {
            let expires_pinned = |closed: &Arc<Closed>| pinned.is_some_and(|pinned| pinned < closed.stamp);
            let may_stay = self.recent_bytes <= config.pinned_bytes_max;
            let Some(closed) = self.recent.pop_front_if(|closed| !(may_stay && expires_pinned(closed)))
            else {
                break;
            };
            self.recent_bytes -= closed.recent_bytes();
            self.left = closed.stamp;
            leaving.push(closed);
        }
        leaving
    }
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
