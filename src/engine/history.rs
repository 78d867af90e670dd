//! The last blocks: viewed, read in tries, and taken back.
//!
//! Each commitment leaves the diff that takes its block back. Those of several blocks, one after another, are one diff that
//! leads to an earlier state: over a view's values it is that state's view, committed in memory its tries, and committed
//! for good a revert. Its root is known, so it is always compared.

use std::collections::HashMap;
use std::sync::Arc;

use flagstone_core::commit::{Overlaid, TrieRows};
use flagstone_core::commitment::Roots;
use flagstone_core::diff::StateDiff;
use flagstone_core::layout::StateAt;
use flagstone_core::store::{StoreRead, WriteBatch};
use flagstone_core::types::{BlockNumber, StateId};

use super::close::Halt;
use super::closed::Closed;
use super::config::EngineConfig;
use super::doubts::Changes;
use super::events::Event;
use super::life::{Chain, Live, Taken, Tip, Unwritten};
use super::meta::{self, Blob, BlockFacts, BlockRoot, Lineage, PendingBlock, StoredHead, Undo};
use super::outcome::Outcome;
use super::pasts::{PastTries, PastValues};
use super::rows::Base;
use super::running::Engine;
use super::shared::Shared;
use super::values::each_value;
use super::view::{Past, View};
use crate::error::{Error, at};
use crate::journal::Position;

/// The id of the state after a block that has roots of its own.
fn state_after(rows: &dyn StoreRead, block: Option<BlockNumber>) -> Result<StateId, Error> {
    let Some(block) = block else { return Ok(StateId::default()) };
    match meta::read_block_state(rows, block)? {
        Some((_, state)) => Ok(state),
        None => Err(Error::damaged(format!("the roots of block {block}"), "they are missing")),
    }
}

/// What is kept of a block up to a base; nothing if that has no roots of its own.
fn committed(rows: &dyn StoreRead, base: &Base, block: BlockNumber) -> Result<Option<BlockFacts>, Error> {
    if base.block < Some(block) { Ok(None) } else { meta::read_block(rows, block) }
}

/// The way from a committed state back to an earlier one.
struct Rewind {
    diff: StateDiff,
    block: Option<BlockNumber>,
    root: BlockRoot,
    state: StateId,
    /// Blobs as they were at the state, where they have changed since.
    blobs: HashMap<Vec<u8>, Option<Arc<[u8]>>>,
}

impl Engine {
    /// The state after a block, pinned there: the last closed one, or one before it as far as values and history reach, or any
    /// that the layout keeps.
    ///
    /// # Errors
    /// [`Error::NotClosed`] if the block is not there yet, [`Error::HistoryGone`] if it is not kept any more,
    /// [`Error::State`] if the store fails or is damaged.
    pub fn view_at(&self, block: BlockNumber) -> Result<View, Error> {
        let shared = &self.shared;
        let view = |stamp, outcome, past| View {
            shared: Arc::clone(shared),
            stamp,
            block: Some(block),
            outcome,
            past,
            proposed: None,
            _pin: None,
        };
        let live = shared.live(block)?;
        if let Some(live) = live.as_ref().filter(|live| live.lasts) {
            return Ok(view(live.stamp, Arc::clone(&live.outcome), None));
        }
        let held = shared.rows.hold();
        let (base, rows) = (held.base(), held.rows(shared.rows.store()));
        let committed = committed(&rows, base, block)?;
        if let Some(kept) = committed.filter(|_| shared.layout.keeps_old_states()) {
            let outcome = Outcome::new(block, kept.state);
            return Ok(view(base.stamp, outcome, Some(Past::Kept(kept.root.roots))));
        }
        match (shared.past_values(&rows, base, block, committed), live) {
            (Ok((state, past)), _) => {
                Ok(view(past.stamp, Outcome::new(block, state), Some(Past::Changed(past.changed))))
            }
            // Not committed yet, or without history: as long as its values are there.
            (Err(Error::NotClosed { .. } | Error::HistoryGone { .. }), Some(live))
                if shared.values.reaches(live.stamp) =>
            {
                Ok(view(live.stamp, live.outcome, None))
            }
            (Err(error), _) => Err(error),
        }
    }

    /// Reads the tries as they are after a committed block, the last one if none is named. `read` is handed the tries, the
    /// block (`None` before the first) and its roots. Blocks are closed, committed and written meanwhile, and taken back; the
    /// tries stay what they are, until more was overwritten than
    /// [`EngineConfig::reader_bytes_max`](super::EngineConfig::reader_bytes_max).
    ///
    /// ```
    /// use flagstone::core::hash::Bulk;
    /// use flagstone::core::proof::{Anchor, ContractStorageKeys, ProofRequest, Proven, prove_storage};
    /// # use flagstone::{Engine, EngineConfig, StateDiff, StateUpdate, layout, store::MemoryStore};
    /// # let engine = Engine::open(Box::new(MemoryStore::new()), layout("flat")?.make(), EngineConfig::default())?;
    /// # let diff = StateDiff::builder().storage(1.into(), 2.into(), 3.into()).build()?;
    /// # engine.close_block(&StateUpdate { starknet_version: "0.14.0".parse().ok(), ..diff.into() })?;
    /// # engine.commit()?;
    /// let slots = ContractStorageKeys { contract_address: 1.into(), storage_keys: vec![2.into(), 9.into()] };
    /// let request = ProofRequest {
    ///     contract_addresses: vec![1.into()],
    ///     contracts_storage_keys: vec![slots],
    ///     ..ProofRequest::default()
    /// };
    /// let (proof, root) = engine.at_commitment(None, |tries, _block, root| {
    ///     Ok((prove_storage(tries, root.roots, &request, None)?, root.commitment))
    /// })?;
    ///
    /// // Somebody else, who has the root from the block's header:
    /// let trusted = Anchor { commitment: Some(root), ..Anchor::default() };
    /// let verified = proof.verify(&request, &trusted, &Bulk)?;
    /// assert_eq!(verified.storage(&1.into(), &2.into()), Proven::Value(3.into()));
    /// assert_eq!(verified.storage(&1.into(), &9.into()), Proven::Absent);
    /// assert_eq!(verified.contract(&5.into()), Proven::Absent);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::NotClosed`] if the block is not committed yet, [`Error::HistoryGone`] if its state is not kept any more,
    /// [`Error::State`] if the store fails or is damaged; and whatever `read` returns.
    pub fn at_commitment<R>(
        &self,
        block: Option<BlockNumber>,
        read: impl FnOnce(&dyn TrieRows, Option<BlockNumber>, &BlockRoot) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let shared = &self.shared;
        let held = shared.rows.hold();
        let (base, rows) = (held.base(), held.rows(shared.rows.store()));
        let state = StateAt { store: &rows, roots: base.root.roots };
        let Some(block) = block.filter(|block| Some(*block) != base.block) else {
            return read(&*shared.layout.tries(state), base.block, &base.root);
        };
        let committed = committed(&rows, base, block)?;
        if let Some(BlockFacts { root, .. }) = committed.filter(|_| shared.layout.keeps_old_states()) {
            let kept = StateAt { roots: root.roots, ..state };
            return read(&*shared.layout.tries(kept), Some(block), &root);
        }
        let past = match committed.and_then(|committed| shared.pasts.tries(committed.state)) {
            Some(past) => past,
            None => shared.past_tries(block)?,
        };
        let rows = past.held.rows(shared.rows.store());
        let below = StateAt { store: &rows, roots: past.held.base().root.roots };
        read(&Overlaid::with(shared.layout.tries(below), &past.overlay), Some(block), &past.root)
    }

    /// Takes back all blocks after this one. On return they are gone for good: values, tries, roots and journal are those
    /// of the block, and the next block to close is the one after it. Views of the blocks that were taken back stay what
    /// they are, as long as others would. Commits what is closed first.
    ///
    /// # Errors
    /// [`Error::NotClosed`] if the block is not there, [`Error::HistoryGone`] if what takes the blocks back is not kept any
    /// more; then nothing was changed. [`Error::State`] if the store fails or is damaged.
    pub fn revert_to(&self, block: BlockNumber) -> Result<BlockRoot, Error> {
        let shared = &self.shared;
        shared.durability.check_writable()?;
        let dropped = shared.in_turn(|| shared.drop_after(block))?;
        if let Some(dropped) = dropped {
            if let Some(first) = dropped.blocks().next().map(|first| first.block.number) {
                let cause = went_back(block);
                let error = Error::TakenBack { block: first, with: first, cause: cause.clone() };
                shared.tell_taken_back(dropped.blocks(), 0, &error, &cause);
            }
            return self.wait_for_root(block);
        }
        let (root, last) = shared.in_turn(|| {
            let last = shared.await_turn(Chain::is_at_rest)?.closed();
            Ok((shared.revert(block)?, last))
        })?;
        // Who waited for these blocks was answered long ago.
        if let Some((first, last)) = block.next().zip(last).filter(|(first, last)| first <= last) {
            let error = Error::TakenBack { block: first, with: first, cause: went_back(block) };
            shared.subscribers.tell(|| Event::TakenBack { first, last, error: error.clone() });
        }
        shared.wait(shared.chain(), |chain| chain.unwritten().is_empty()).map(|_| root)
    }
}

/// Why blocks are taken back that nobody refused.
fn went_back(block: BlockNumber) -> String {
    format!("the state went back to block {block}")
}

impl Rewind {
    /// Whether tries that were led back have the roots that were stored.
    fn check(&self, from: &Base, computed: Roots) -> Result<(), Error> {
        if computed == self.root.roots {
            return Ok(());
        }
        let what = format!("the history from {} back to {}", at(&from.block), at(&self.block));
        let problem = format!("it leads to {computed:?}, the block had {:?}", self.root.roots);
        Err(Error::damaged(what, problem))
    }
}

impl Shared {
    /// A block's state among the recent ones, if its values are all there.
    fn live(&self, block: BlockNumber) -> Result<Option<Live>, Error> {
        let chain = self.chain();
        chain.is_closed(block)?;
        if chain.closed() == Some(block) {
            let Tip { stamp, outcome, .. } = self.tip();
            return Ok(Some(Live { stamp, outcome, lasts: true }));
        }
        Ok(chain.live(block, &self.config).filter(|live| self.values.reaches(live.stamp)))
    }

    /// Leads the tries back to an earlier state, on threads that commit nothing.
    fn past_tries(&self, block: BlockNumber) -> Result<Arc<PastTries>, Error> {
        let _leading = self.pasts.leading();
        let held = self.rows.hold();
        let (base, rows) = (held.base(), held.rows(self.rows.store()));
        let committed = committed(&rows, base, block)?;
        if let Some(known) = committed.and_then(|committed| self.pasts.tries(committed.state)) {
            return Ok(known);
        }
        let rewind = self.rewind(&rows, base, block, |at| at == Some(block))?;
        let state = StateAt { store: &rows, roots: base.root.roots };
        let (mut tries, hasher) = (Overlaid::new(self.layout.tries(state)), self.hasher.as_ref());
        let computed = self.history_pool()?.install(|| tries.advance(state.roots, &rewind.diff, hasher))?;
        rewind.check(base, computed)?;
        let overlay = tries.into_overlay();
        drop(rows);
        let tries = Arc::new(PastTries { held, overlay, root: rewind.root });
        self.pasts.keep_tries(rewind.state, &tries);
        Ok(tries)
    }

    /// The values of an earlier state where they differ from a newer one, and its id.
    fn past_values(
        &self,
        rows: &dyn StoreRead,
        base: &Base,
        block: BlockNumber,
        committed: Option<BlockFacts>,
    ) -> Result<(StateId, PastValues), Error> {
        let known = committed.and_then(|BlockFacts { state, .. }| Some((state, self.pasts.values(state)?)));
        if let Some((state, known)) = known
            && self.chain().lasts(known.stamp, &self.config)
        {
            return Ok((state, known));
        }
        let rewind = self.rewind(rows, base, block, |at| at == Some(block))?;
        let mut changed = HashMap::with_capacity(rewind.diff.writes());
        each_value(&rewind.diff, |key, value| {
            changed.insert(key, value);
        });
        let past = PastValues { stamp: base.stamp, changed: Arc::new(changed) };
        self.pasts.keep_values(rewind.state, &past);
        Ok((rewind.state, past))
    }

    /// The threads on which tries are led back, and on which exports hash. They give way to those that commit.
    pub(super) fn history_pool(&self) -> Result<&rayon::ThreadPool, Error> {
        if let Some(pool) = self.history_pool.get() {
            return Ok(pool);
        }
        let threads = (self.pool.current_num_threads() / 2).max(1);
        let pool = EngineConfig { threads, ..self.config }.background_pool("history")?;
        Ok(self.history_pool.get_or_init(|| pool))
    }

    /// Leads from a base back to the first earlier state that is `there`; `wanted` is for the error if there is none.
    fn rewind(
        &self,
        rows: &dyn StoreRead,
        base: &Base,
        wanted: BlockNumber,
        there: impl Fn(Option<BlockNumber>) -> bool,
    ) -> Result<Rewind, Error> {
        if base.block < Some(wanted) {
            return Err(Error::NotClosed { block: wanted, closed: base.block });
        }
        let (block, root, state) = (base.block, base.root, base.state);
        let mut rewind = Rewind { diff: StateDiff::default(), block, root, state, blobs: HashMap::new() };
        let mut diffs = Vec::new();
        while !there(rewind.block) {
            let undo = match rewind.block {
                Some(block) if block >= wanted => meta::read_undo(rows, block)?,
                _ => None,
            };
            let Some(Undo { before, root, diff, blobs }) = undo else {
                return Err(self.history_gone(wanted));
            };
            rewind.blobs.extend(blobs);
            diffs.push(diff);
            rewind = Rewind { block: before, root, ..rewind };
        }
        rewind.diff = StateDiff::in_order(&diffs.iter().collect::<Vec<_>>());
        if rewind.block != base.block {
            rewind.state = state_after(rows, rewind.block)?;
        }
        Ok(rewind)
    }

    pub(super) fn history_gone(&self, block: BlockNumber) -> Error {
        let first = self.history().front().copied();
        let newest = self.chain().committed();
        let base = self.rows.base();
        // An undo that cannot be read may have become too old just now; it says no more than that.
        let undo = first.and_then(|first| meta::read_undo(&self.rows.of(&base), first).ok().flatten());
        // The empty state has no number to ask for it by. Of no block that could be taken back, the state that there is is all.
        let oldest = undo.and_then(|undo| undo.before).or(first).or(newest);
        Error::HistoryGone { block, oldest, newest }
    }

    /// Drops the blocks after one, if nothing of them has begun to be written: the state before them is in memory as it was. `None`
    /// if it must be led back to. The caller holds the closer's lock.
    fn drop_after(&self, block: BlockNumber) -> Result<Option<Taken>, Halt> {
        let _installing = self.installing();
        let base = self.rows.base();
        let chain = self.chain();
        self.check_running()?;
        if chain.is_refusing() {
            return Err(Halt::Refusing);
        }
        if !self.ahead_of_store || !chain.can_take_after(block) {
            return Ok(None);
        }
        drop(chain);
        let rewind = match base.block > Some(block) {
            true => Some(self.rewind(&self.rows.of(&base), &base, block, |at| at == Some(block))?),
            false => None,
        };
        // The writer may have begun with them.
        let Some(taken) = self.chain().take_after(block) else { return Ok(None) };
        let Some(first) = taken.blocks().next() else { return Ok(None) };
        let refused = self.durability.refuse_from(first.block.number);
        let refusal = refused.map_err(|error| {
            let error = self.stop_for(error.into());
            // They are off the chain, so nobody else tells who waits for them.
            taken.blocks().for_each(|closed| closed.outcome.fail(0, error.clone()));
            error
        })?;
        taken.blocks().for_each(|closed| closed.outcome.take_back());
        self.forget_blobs(&taken.waiting);
        let stamp = self.chain().next_stamp();
        rewind.iter().for_each(|rewind| self.uncommit(&taken, rewind, stamp));
        self.values.take_back(first.stamp, taken.blocks().map(|closed| &closed.block.diff));
        let (state, committed) = (self.rows.base().state, rewind.map(|rewind| rewind.root));
        let mut chain = self.chain();
        let tip = chain.stand_at(block, stamp, refusal, committed, state);
        self.set_tip(tip);
        self.candidates.keep_on(chain.state());
        self.changed.notify_all();
        drop(chain);
        Ok(Some(taken))
    }

    /// Takes back commitments that are in memory only. `rewind` leads back, `stamp` is of the state that it leads to.
    fn uncommit(&self, taken: &Taken, rewind: &Rewind, stamp: u64) {
        let Rewind { diff, block, root, state, .. } = rewind;
        let Some(generation) = taken.unwritten.front().map(|first| first.layer.generation) else { return };
        let blocks = taken.unwritten.iter().flat_map(|unwritten| &unwritten.blocks);
        let redo = StateDiff::in_order(&blocks.map(|closed| &closed.block.diff).collect::<Vec<_>>());
        let facts = PendingBlock { diff: diff.clone(), ..PendingBlock::default() };
        let back = Arc::new(Closed::new(facts, stamp));
        self.scrubbing.tell(Changes { stamp, blocks: vec![back], undo: vec![(stamp, redo)] });
        let before = Base { stamp, block: *block, root: *root, state: *state, ..Base::default() };
        self.rows.take_back(generation, before);
        let roots = taken.unwritten.iter().map(|unwritten| unwritten.root.roots);
        let before = std::iter::once(root.roots).chain(roots);
        let each: Vec<_> = taken.unwritten.iter().zip(before).collect();
        for (unwritten, before) in each.into_iter().rev() {
            self.layout.taken_back(&unwritten.layer.batch, before, unwritten.root.roots);
        }
        // Those that the commitments would have deleted as too old are there again, too. If that cannot be read, they are not counted.
        let base = self.rows.base();
        let there = meta::undo_chain(&self.rows.of(&base), *block);
        let mut history = self.history();
        while history.pop_back_if(|last| Some(*last) > *block).is_some() {}
        there.into_iter().for_each(|there| *history = there);
    }

    /// Takes back the blocks after one; the caller holds the closer's lock, and nothing is on its way.
    fn revert(&self, block: BlockNumber) -> Result<BlockRoot, Error> {
        let base = self.rows.base();
        if base.block == Some(block) {
            return Ok(base.root);
        }
        let rewind = self.rewind(&self.rows.of(&base), &base, block, |at| at == Some(block))?;
        self.apply(&base, &rewind, |first| {
            let refusal = self.durability.refuse_from(first)?;
            Ok(refusal.unwrap_or_else(|| self.chain().refusal()))
        })
    }

    /// Finishes a revert that a crash interrupted: the journal has taken back `first` and all after it, the store has not.
    pub(super) fn finish_taking_back(&self, first: BlockNumber) -> Result<(), Error> {
        let base = self.rows.base();
        let rewind = self.rewind(&self.rows.of(&base), &base, first, |at| at < Some(first))?;
        self.apply(&base, &rewind, |_| Ok(self.chain().refusal())).map(|_| ())
    }

    /// Commits a rewind for good. `refuse` makes it durable that blocks from one on are gone, and is called once their
    /// state before is known to be right.
    fn apply(
        &self,
        base: &Base,
        rewind: &Rewind,
        refuse: impl FnOnce(BlockNumber) -> Result<Position, Error>,
    ) -> Result<BlockRoot, Error> {
        let Rewind { diff, block, root, state: id, blobs } = rewind;
        let staged = self.pool.install(|| self.stage_diffs(base, &[diff], None))?;
        rewind.check(base, staged.roots.first().copied().unwrap_or_default())?;
        let first = block.map_or(Some(BlockNumber(0)), BlockNumber::next).unwrap_or_default();
        let refusal = refuse(first).map_err(|error| self.stop_for(error))?;

        let mut batch = WriteBatch::default();
        meta::put_head(&mut batch, &StoredHead { block: *block, root: *root, state: *id, refusal });
        self.forget_after(base, *block, &mut batch)?;
        let rows = self.rows.of(base);
        for (key, before) in blobs {
            match before {
                Some(bytes) => {
                    let blob = Blob { key: key.clone(), bytes: Arc::clone(bytes) };
                    meta::put_blob(&mut batch, &rows, &blob)?;
                }
                None => meta::delete_blob(&mut batch, &rows, key)?,
            }
        }
        batch.append(Arc::unwrap_or_clone(staged.rows.batch));
        let stamp = self.chain().next_stamp();
        self.values.push(stamp, diff);
        staged.undo.iter().for_each(|redo| self.values.settle(stamp, redo));
        let lineage = Lineage { state: *id, ..Lineage::default() };
        let facts = PendingBlock { number: block.unwrap_or_default(), lineage, ..PendingBlock::default() };
        let state = Arc::new(Closed::new(PendingBlock { diff: diff.clone(), ..facts }, stamp));
        let undo = staged.undo.into_iter().map(|redo| (stamp, redo)).collect();
        self.scrubbing.tell(Changes { stamp, blocks: vec![Arc::clone(&state)], undo });
        let layer = self
            .rows
            .commit(batch, Base { stamp, block: *block, root: *root, state: *id, ..Base::default() });
        staged.rows.applied.into_iter().for_each(|applied| applied());

        let unwritten = Unwritten {
            layer,
            blocks: vec![state],
            head: *block,
            root: *root,
            refusal,
            is_shown: true,
            goes_back: true,
        };
        let mut chain = self.chain();
        self.set_tip(chain.go_back(unwritten)?);
        self.candidates.keep_on(*id);
        self.changed.notify_all();
        Ok(*root)
    }

    /// Deletes the roots of blocks after one, and what takes them back.
    fn forget_after(
        &self,
        base: &Base,
        block: Option<BlockNumber>,
        batch: &mut WriteBatch,
    ) -> Result<(), Error> {
        let rows = self.rows.of(base);
        let mut history = self.history();
        while let Some(last) = history.pop_back_if(|last| Some(*last) > block) {
            meta::delete_undo(batch, &rows, last)?;
        }
        let first = block.map_or(0, |block| block.0 + 1);
        let last = base.block.map_or(0, |block| block.0);
        (first..=last).try_for_each(|block| meta::delete_block(batch, &rows, BlockNumber(block)))
    }
}
