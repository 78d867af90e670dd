//! Committing closed blocks: roots computed, compared with the stated ones, and rows made readable.

use std::collections::HashMap;
use std::sync::Arc;

use flagstone_core::commit::HashCounts;
use flagstone_core::commitment::{CommitmentRule, Roots, StarknetVersion};
use flagstone_core::diff::{StateDiff, Subject};
use flagstone_core::error::StateError;
use flagstone_core::layout::{StagedCommitment, StateAt};
use flagstone_core::store::{StoreRead, WriteBatch};
use flagstone_core::types::{BlockNumber, StateCommitment};
use flagstone_core::witness::Witness;

use super::closed::Closed;
use super::doubts::Changes;
use super::events::Event;
use super::life::{Unwritten, check_parent};
use super::locks::Locked;
use super::meta::{self, BlockFacts, BlockRoot, PendingBlock, StoredHead, Undo};
use super::outcome::{CommittedBlock, Outcome};
use super::rows::Base;
use super::shared::Shared;
use super::staged::{Staged, StagedRows};
use super::undo::HistoryChange;
use crate::error::{Error, ErrorKind};
use crate::journal::Position;

/// Values of one group of commitments: bounds the size of a batch, and how long a root may take, whatever the backlog.
const GROUP_WRITES_MAX: usize = 4_000;
/// The same where blocks are committed as one.
const COALESCED_WRITES_MAX: usize = 100_000;

/// Blocks after their commitment, before anybody sees it.
pub struct Unit {
    blocks: Vec<Arc<Closed>>,
    committed: Vec<CommittedBlock>,
    pub root: BlockRoot,
    refusal: Position,
    /// What takes the blocks back, with the stamp of the last block of each.
    pub undo: Vec<(u64, StateDiff)>,
    history: HistoryChange,
    batch: WriteBatch,
    hashes: HashCounts,
    applied: Option<Box<dyn FnOnce() + Send>>,
    pub witness: Witness,
}

impl Shared {
    /// Blocks up to this one are to be committed.
    pub(super) fn want(&self, block: BlockNumber) {
        self.chain().want(block);
        self.changed.notify_all();
    }

    /// Has blocks up to this one committed, and returns its root if it has one of its own. Who closes blocks is not told by it.
    pub(super) fn commit_through(&self, outcome: &Outcome) -> Result<Option<BlockRoot>, Error> {
        self.want(outcome.number());
        outcome.wait_committed()
    }

    /// The commitment thread: commits what is due, until the end.
    pub(super) fn commit_waiting(&self) -> Result<(), Error> {
        let writes_max = if self.config.coalesce { COALESCED_WRITES_MAX } else { GROUP_WRITES_MAX };
        while let Some(group) = self.next(|chain| chain.next_group(&self.config, writes_max)) {
            let base = self.rows.base();
            let (unit, refused) = self.pool.install(|| self.stage(&base, &group, None))?;
            let kept = unit.as_ref().map_or(0, |unit| unit.blocks.len());
            let are_there = unit.map_or(Ok(true), |unit| self.install_waiting(&base, unit))?;
            if let Some((error, first)) = refused.zip(group.get(kept)).filter(|_| are_there) {
                let diff = match self.config.coalesce {
                    true => merged(&group),
                    false => first.block.diff.clone(),
                };
                self.refuse(first, self.blame(&self.rows.base(), &diff, error)?)?;
            }
        }
        Ok(())
    }

    /// No commitment of blocks that wait is installed by anybody else while this is held, and no such block is taken back.
    pub(super) fn installing(&self) -> Locked<'_, ()> {
        self.installing.lock()
    }

    /// Installs a commitment of blocks that waited for it, unless they were taken back meanwhile. Whether they are still there.
    fn install_waiting(&self, base: &Base, unit: Unit) -> Result<bool, Error> {
        let _installing = self.installing();
        if !self.chain().waits_for(&unit.blocks) {
            self.discard(base, unit);
            return Ok(false);
        }
        self.hold_replaced(base, &unit.undo)?;
        self.durability.note_roots(&unit.committed)?;
        self.install(unit)?;
        Ok(true)
    }

    /// Nothing will become of a commitment: the layout is back at the state before.
    pub(super) fn discard(&self, base: &Base, unit: Unit) {
        unit.applied.into_iter().for_each(|applied| applied());
        self.layout.taken_back(&unit.batch, base.root.roots, unit.root.roots);
    }

    /// The same, of one that the engine's rows were not put to yet.
    fn discard_staged(&self, base: &Base, staged: Staged) {
        let Some(after) = staged.roots.last() else { return };
        staged.rows.applied.into_iter().for_each(|applied| applied());
        self.layout.taken_back(&staged.rows.batch, base.root.roots, *after);
    }

    /// Commits blocks on top of a base, up to the first whose root does not hold, and says why that is.
    pub(super) fn stage(
        &self,
        base: &Base,
        group: &[Arc<Closed>],
        reads: Option<&[Subject]>,
    ) -> Result<(Option<Unit>, Option<Error>), Error> {
        if self.config.coalesce && group.len() > 1 {
            return self.stage_as_one(base, group);
        }
        let diffs: Vec<&StateDiff> = group.iter().map(|closed| &closed.block.diff).collect();
        let mut staged = self.stage_diffs(base, &diffs, reads)?;
        let mut committed = Vec::new();
        let blocks = group.iter().map(|closed| &closed.block);
        let refused = verify(base.root, blocks, &staged.roots, &mut committed).err();
        if refused.is_some() {
            self.discard_staged(base, std::mem::take(&mut staged));
            if committed.is_empty() {
                return Ok((None, refused));
            }
            staged = self.stage_diffs(base, &diffs[..committed.len()], None)?;
        }
        let blocks = &group[..committed.len()];
        let before = std::iter::once((base.block, base.root))
            .chain(committed.iter().map(|block| (Some(block.number), block.root)))
            .collect::<Vec<_>>();
        let undo = blocks.iter().zip(staged.undo).zip(before);
        let undo = undo
            .map(|((closed, diff), (before, root))| (closed, Undo { before, root, diff, blobs: Vec::new() }))
            .collect();
        let unit = self.unit(base, blocks, committed, undo, staged.rows)?;
        Ok((Some(unit), refused))
    }

    /// Commits blocks as if they were one: only the last gets a root.
    fn stage_as_one(
        &self,
        base: &Base,
        group: &[Arc<Closed>],
    ) -> Result<(Option<Unit>, Option<Error>), Error> {
        let Some((last, before)) = group.split_last() else { return Ok((None, None)) };
        let first = before.first().unwrap_or(last);
        let diff = merged(group);
        let mut staged = self.stage_diffs(base, &[&diff], None)?;
        let mut committed = Vec::new();
        let PendingBlock { number, version, new_root, computed, .. } = last.block;
        let one = PendingBlock { number, version, new_root, computed, ..PendingBlock::default() };
        let refused = check_parent(first.block.number, first.block.old_root, Some(base.root.commitment))
            .and_then(|()| verify(base.root, [&one].into_iter(), &staged.roots, &mut committed));
        if let Err(error) = refused {
            self.discard_staged(base, staged);
            return Ok((None, Some(error)));
        }
        committed.iter_mut().for_each(|committed| committed.writes = diff.writes());
        let diff = staged.undo.pop().unwrap_or_default();
        let undo = vec![(last, Undo { before: base.block, root: base.root, diff, blobs: Vec::new() })];
        self.unit(base, group, committed, undo, staged.rows).map(|unit| (Some(unit), None))
    }

    /// Values and commitment of diffs on top of a base, side by side; with the witness, if `reads` says what the one block
    /// only read.
    pub(super) fn stage_diffs(
        &self,
        base: &Base,
        diffs: &[&StateDiff],
        reads: Option<&[Subject]>,
    ) -> Result<Staged, StateError> {
        let rows = self.rows.of(base);
        let state = StateAt { store: &rows, roots: base.root.roots };
        let values = || {
            let mut values = WriteBatch::default();
            diffs.iter().for_each(|diff| values.append(self.layout.stage_values(diff)));
            values
        };
        let (layout, hasher) = (self.layout.as_ref(), self.hasher.as_ref());
        let commitment = || match (reads, diffs) {
            (Some(reads), [diff]) => layout.stage_commitment_with_witness(state, diff, reads, hasher),
            _ => Ok((layout.stage_commitment(state, diffs, hasher)?, Witness::default())),
        };
        let (staged, values) = rayon::join(commitment, values);
        let (mut staged, witness) = staged?;
        staged.batch.append(values);
        let StagedCommitment { batch, hashes, applied, roots, undo, .. } = staged;
        let rows = StagedRows { batch: Arc::new(batch), hashes, applied, witness };
        Ok(Staged { roots, undo, rows })
    }

    /// Commits a diff on top of a base, so that nothing changes that commitments on top of it use.
    pub(super) fn stage_aside(
        &self,
        base: &Base,
        diff: &StateDiff,
        reads: Option<&[Subject]>,
    ) -> Result<(Staged, Witness), StateError> {
        let rows = self.rows.of(base);
        let state = StateAt { store: &rows, roots: base.root.roots };
        let (staged, witness) = self.layout.stage_aside(state, diff, reads, self.hasher.as_ref())?;
        let StagedCommitment { mut batch, hashes, applied, roots, undo, .. } = staged;
        batch.append(self.layout.stage_values(diff));
        let rows = StagedRows { batch: Arc::new(batch), hashes, applied, witness: Witness::default() };
        Ok((Staged { roots, undo, rows }, witness))
    }

    /// The root of a block that was committed on top of a base, if it is the stated one.
    pub(super) fn root_of(
        &self,
        base: &Base,
        block: &PendingBlock,
        staged: &Staged,
    ) -> Result<BlockRoot, Error> {
        let mut committed = Vec::new();
        verify(base.root, [block].into_iter(), &staged.roots, &mut committed)?;
        Ok(committed.first().map_or(base.root, |committed| committed.root))
    }

    /// A block that was committed on top of a base.
    pub(super) fn unit_of_one(
        &self,
        base: &Base,
        closed: &Arc<Closed>,
        mut staged: Staged,
    ) -> Result<Unit, Error> {
        let mut committed = Vec::new();
        verify(base.root, [&closed.block].into_iter(), &staged.roots, &mut committed)?;
        let diff = staged.undo.pop().unwrap_or_default();
        let undo = vec![(closed, Undo { before: base.block, root: base.root, diff, blobs: Vec::new() })];
        self.unit(base, std::slice::from_ref(closed), committed, undo, staged.rows)
    }

    /// Puts the engine's own rows to the layout's.
    fn unit(
        &self,
        base: &Base,
        blocks: &[Arc<Closed>],
        committed: Vec<CommittedBlock>,
        mut undo: Vec<(&Arc<Closed>, Undo)>,
        rows: StagedRows,
    ) -> Result<Unit, Error> {
        let StagedRows { batch: of_layout, hashes, applied, witness } = rows;
        let mut batch = WriteBatch::default();
        let last = committed.last().map_or((base.block, base.root), |last| (Some(last.number), last.root));
        let of = |number| blocks.iter().map(|closed| &closed.block).find(|block| block.number == number);
        let state_after = |number| of(number).map_or(base.state, |block| block.lineage.state);
        let mut first = blocks.first().map_or(BlockNumber(0), |closed| closed.block.number);
        for CommittedBlock { number, root, .. } in &committed {
            let (state, hash) = (state_after(*number), of(*number).and_then(|block| block.hash));
            meta::put_block(&mut batch, *number, &BlockFacts { root: *root, state, first, hash });
            first = number.next().unwrap_or(*number);
        }
        let refusal = self.chain().refusal();
        let state = last.0.map_or(base.state, state_after);
        meta::put_head(&mut batch, &StoredHead { block: last.0, root: last.1, state, refusal });
        put_blobs(&mut batch, &self.rows.of(base), blocks, &mut undo)?;
        let history = self.keep_undo(base, &mut batch, &undo)?;
        let undo = undo.into_iter().map(|(closed, undo)| (closed.stamp, undo.diff)).collect();
        batch.append(Arc::unwrap_or_clone(of_layout));
        let (blocks, root) = (blocks.to_vec(), last.1);
        Ok(Unit { blocks, committed, root, refusal, undo, history, batch, hashes, applied, witness })
    }

    /// Makes a commitment readable, and hands it on to be written.
    pub(super) fn install(&self, unit: Unit) -> Result<(), Error> {
        for (through, undo) in &unit.undo {
            self.values.settle(*through, undo);
        }
        let Some(last) = unit.blocks.last() else { return Ok(()) };
        let (head, stamp, state) = (Some(last.block.number), last.stamp, last.block.lineage.state);
        let after = Base { stamp, block: head, root: unit.root, state, ..Base::default() };
        self.scrubbing.tell(Changes { stamp, blocks: unit.blocks.clone(), undo: unit.undo });
        let layer = self.rows.commit(unit.batch, after);
        self.change_history(unit.history);
        unit.applied.into_iter().for_each(|applied| applied());
        self.forget_blobs(&unit.blocks);
        let unwritten = Unwritten {
            layer,
            blocks: unit.blocks.clone(),
            head,
            root: unit.root,
            refusal: unit.refusal,
            is_shown: self.ahead_of_store,
            goes_back: false,
        };
        let mut chain = self.chain();
        chain.commit(unwritten, unit.hashes)?.into_iter().for_each(|tip| self.set_tip(tip));
        // Before the writer can say that they are persisted.
        self.tell_committed(&unit.blocks, &unit.committed);
        self.changed.notify_all();
        drop(chain);
        unit.blocks.iter().for_each(|closed| closed.outcome.call());
        Ok(())
    }

    /// Tells who waits for these blocks.
    fn tell_committed(&self, blocks: &[Arc<Closed>], committed: &[CommittedBlock]) {
        for closed in blocks {
            let of_block = committed.iter().find(|committed| committed.number == closed.block.number);
            closed.outcome.commit(of_block.map(|committed| committed.root));
        }
        for committed in committed {
            self.subscribers.tell(|| Event::Committed(*committed));
        }
    }

    /// Blobs of these blocks are in rows now, or are taken back.
    pub(super) fn forget_blobs<'a>(&self, blocks: impl IntoIterator<Item = &'a Arc<Closed>>) {
        for closed in blocks.into_iter().filter(|closed| !closed.block.blobs.is_empty()) {
            let mut blobs = self.blobs.write();
            for blob in &closed.block.blobs {
                // Other blocks may have brought others under the same key.
                if let Some(brought) = blobs.get_mut(&blob.key) {
                    brought.retain(|(stamp, _)| *stamp != closed.stamp);
                    if brought.is_empty() {
                        blobs.remove(&blob.key);
                    }
                }
            }
        }
    }

    /// Tells a block that is wrong from a store that is damaged, when a root did not come out. The witness of the block's diff
    /// on a base hashes up to the base's roots only if what was read of the tries is what they commit to.
    ///
    /// # Errors
    /// The store's damage: then no block may be refused for it.
    pub(super) fn blame(&self, base: &Base, diff: &StateDiff, error: Error) -> Result<Error, Error> {
        let Error::RootMismatch { block, .. } = error else {
            return match error.kind() {
                ErrorKind::Root | ErrorKind::Input | ErrorKind::Expired => Ok(error),
                _ => Err(error),
            };
        };
        let rows = self.rows.of(base);
        let state = StateAt { store: &rows, roots: base.root.roots };
        let hasher = self.hasher.as_ref();
        let staged = self.pool.install(|| self.layout.stage_aside(state, diff, Some(&[]), hasher));
        let (_, witness) = staged?;
        match self.pool.install(|| witness.apply(diff, hasher)) {
            Ok(_) => Ok(error),
            Err(problem) => Err(Error::damaged(
                "the store",
                format!(
                    "the root of block {block} does not come out, and what the tries have on the way to its keys does not hash \
                     up to the root before it ({problem}); no block was refused: restore the store from a copy, or rebuild it \
                     with `flagstone recover`"
                ),
            )),
        }
    }

    /// Takes back a block whose root did not hold, and all after it.
    fn refuse(&self, first: &Arc<Closed>, error: Error) -> Result<(), Error> {
        self.chain().begin_to_refuse();
        self.changed.notify_all();
        let closer = self.closer();
        if !self.chain().waits_for(std::slice::from_ref(first)) {
            self.chain().refuse_nothing();
            self.changed.notify_all();
            return Ok(());
        }
        // Nobody closes a block or takes one back from here on, so these are all.
        let refused: Vec<Arc<Closed>> = self.chain().waiting().iter().map(Arc::clone).collect();
        refused.iter().for_each(|closed| closed.outcome.take_back());
        let refusal = self.durability.refuse_from(first.block.number)?;
        self.forget_blobs(&refused);
        self.values.take_back(first.stamp, refused.iter().map(|closed| &closed.block.diff));
        let state = self.rows.base().state;
        let mut chain = self.chain();
        let (failure, tip) = chain.refuse(refusal, state, error.clone());
        self.set_tip(tip);
        self.candidates.keep_on(state);
        self.changed.notify_all();
        drop(chain);
        drop(closer);
        self.tell_taken_back(&refused, failure, &error, &error.to_string());
        Ok(())
    }

    /// Tells who waits for blocks that were taken back: of the first this error, of those on top that they went with it, and the cause.
    pub(super) fn tell_taken_back<'a>(
        &self,
        taken: impl IntoIterator<Item = &'a Arc<Closed>>,
        failure: u64,
        error: &Error,
        cause: &str,
    ) {
        let taken: Vec<&Arc<Closed>> = taken.into_iter().collect();
        let (Some(first), Some(last)) = (taken.first(), taken.last()) else { return };
        let (with, last) = (first.block.number, last.block.number);
        for closed in taken {
            let block = closed.block.number;
            let own = match block == with {
                true => error.clone(),
                false => Error::TakenBack { block, with, cause: cause.to_owned() },
            };
            closed.outcome.fail(failure, own);
        }
        self.subscribers.tell(|| Event::TakenBack { first: with, last, error: error.clone() });
    }
}

/// Puts the blobs of blocks, and what was there before them to what takes the blocks back: each block's own, or that of all
/// blocks that are taken back together.
fn put_blobs(
    batch: &mut WriteBatch,
    rows: &dyn StoreRead,
    blocks: &[Arc<Closed>],
    undo: &mut [(&Arc<Closed>, Undo)],
) -> Result<(), Error> {
    let mut last: HashMap<&[u8], Arc<[u8]>> = HashMap::new();
    for closed in blocks {
        let of = undo.iter_mut().find(|(through, _)| closed.stamp <= through.stamp);
        let mut of = of.map(|(_, undo)| &mut undo.blobs);
        for blob in &closed.block.blobs {
            if let Some(undo) = of.as_mut().filter(|undo| undo.iter().all(|(key, _)| *key != blob.key)) {
                let before = match last.get(&blob.key[..]) {
                    Some(bytes) => Some(Arc::clone(bytes)),
                    None => meta::read_blob(rows, &blob.key)?,
                };
                undo.push((blob.key.clone(), before));
            }
            last.insert(&blob.key, Arc::clone(&blob.bytes));
            meta::put_blob(batch, rows, blob)?;
        }
    }
    Ok(())
}

/// What blocks set together.
fn merged(blocks: &[Arc<Closed>]) -> StateDiff {
    StateDiff::in_order(&blocks.iter().map(|closed| &closed.block.diff).collect::<Vec<_>>())
}

/// Checks computed roots against the stated ones; collects the blocks up to the first that does not hold.
fn verify<'a>(
    before: BlockRoot,
    blocks: impl Iterator<Item = &'a PendingBlock>,
    roots: &[Roots],
    committed: &mut Vec<CommittedBlock>,
) -> Result<(), Error> {
    let mut parent = before.commitment;
    for (block, roots) in blocks.zip(roots) {
        check_parent(block.number, block.old_root, Some(parent))?;
        let commitment = commitment_of(roots, block)?;
        let root = BlockRoot { roots: *roots, commitment };
        if let Some(computed) = block.computed.filter(|computed| *computed != root) {
            return Err(Error::damaged(
                "the store",
                format!(
                    "block {} gives root {commitment} now, and gave {} before, as the journal says; no block was refused: \
                     restore the store from a copy, or rebuild it with `flagstone recover`",
                    block.number, computed.commitment
                ),
            ));
        }
        if let Some(stated) = block.new_root
            && stated != commitment
        {
            return Err(Error::RootMismatch { block: block.number, stated, computed: commitment });
        }
        parent = commitment;
        committed.push(CommittedBlock {
            number: block.number,
            writes: block.diff.writes(),
            root,
            verified: block.new_root.is_some(),
        });
    }
    Ok(())
}

/// The state commitment under the block's rule. If the block's version is not known and matters, a stated root tells
/// which rule was meant: only one of the two can give it, and either way it commits to exactly these roots.
fn commitment_of(roots: &Roots, block: &PendingBlock) -> Result<StateCommitment, Error> {
    let by = |rule| roots.commitment(rule);
    match (block.version.map(StarknetVersion::commitment_rule), block.new_root) {
        (Some(rule), _) => Ok(by(rule)),
        (None, _) if !roots.rule_matters() => Ok(by(CommitmentRule::AlwaysBoth)),
        (None, Some(stated)) if stated == by(CommitmentRule::AlwaysBoth) => Ok(stated),
        (None, Some(_)) => Ok(by(CommitmentRule::ContractsRootAlone)),
        (None, None) => Err(Error::VersionNeeded { block: block.number }),
    }
}
