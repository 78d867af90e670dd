//! Candidates: blocks that are executed and not decided.
//!
//! A candidate is a state of its own, on the tip or on another candidate, any number of them on one parent. Its values are read
//! at once by a view of it: the candidate's own, then those of the candidates below it, then those of the tip. Its root is
//! computed when it is asked for, on the engine's threads and aside: nothing that the tip's own commitments use is changed
//! by it. Deciding it makes it durable and the tip, with what was computed; what does not descend from the new tip is gone. A
//! candidate lives as long as somebody has it, or one on top of it, and leaves nothing when it goes.

use std::sync::Arc;

use flagstone_core::diff::{StateDiff, Subject};
use flagstone_core::types::{BlockNumber, StateCommitment, StateId};
use flagstone_core::witness::Witness;

use super::close::{Halt, NewBlock, check_blobs, check_length, pending};
use super::handle::BlockHandle;
use super::life::{Tip, check_parent, next_number};
use super::meta::{self, BlockRoot, Lineage};
use super::outcome::Outcome;
use super::rows::Base;
use super::running::Engine;
use super::shared::Shared;
use super::state::{CandidateStats, Made, Parent, Proposed};
use super::values::{ByKey, each_value};
use super::view::View;
use crate::error::Error;

/// A block that is executed and not decided. Cheap to clone. When the last clone of it and of those on top of it is dropped, it
/// is gone.
#[derive(Clone)]
pub struct Candidate {
    proposed: Arc<Proposed>,
    shared: Arc<Shared>,
}

impl Candidate {
    /// The number that the block has if it is decided.
    pub fn number(&self) -> BlockNumber {
        self.proposed.number()
    }

    /// Its state: what blocks on top of it are proposed on.
    pub fn state(&self) -> StateId {
        self.proposed.state()
    }

    /// The state it is on.
    pub fn parent(&self) -> StateId {
        self.proposed.parent()
    }

    /// Whether it can still be decided, now or after those below it: no other block was decided in the place of one of them.
    pub fn is_alive(&self) -> bool {
        !self.proposed.outcome.is_gone()
    }

    /// The state after it, for reading, at once. Once another block is decided in its place, the view has expired.
    pub fn view(&self) -> View {
        let proposed = &self.proposed;
        View {
            shared: Arc::clone(&self.shared),
            stamp: proposed.stamp(),
            block: Some(proposed.number()),
            outcome: Arc::clone(&proposed.outcome),
            past: None,
            proposed: Some(Arc::clone(proposed)),
            _pin: None,
        }
    }

    /// Its root: computed now, if it was not, and kept for when it is decided. Waits for the roots of the states below.
    ///
    /// # Errors
    /// [`Error::RootMismatch`] if another one is stated for it; [`Error::CandidateGone`] if it is none any more; [`Error::State`] if the
    /// store fails or is damaged.
    pub fn root(&self) -> Result<BlockRoot, Error> {
        self.shared.make(&self.proposed, None).map(|(root, _)| root)
    }

    /// Its witness, as of [`Engine::close_block_with_witness`].
    ///
    /// # Errors
    /// As [`Candidate::root`].
    pub fn witness(&self, reads: &[Subject]) -> Result<Witness, Error> {
        self.shared.make(&self.proposed, Some(reads)).map(|(_, witness)| witness)
    }

    /// What takes it back: every value that it sets, as it is before. It falls out of the computation of its root, and is had until the
    /// candidate is decided.
    ///
    /// # Errors
    /// As [`Candidate::root`].
    pub fn undo(&self) -> Result<StateDiff, Error> {
        self.root()?;
        let proposed = &self.proposed;
        let made = proposed.made();
        let undo = made.as_ref().and_then(|made| made.staged.undo.first().cloned());
        undo.ok_or_else(|| Error::CandidateGone { block: proposed.number(), state: proposed.state() })
    }

    /// Has its root computed, on a thread that waits for the roots below it, so that it is there when it is asked for or decided.
    ///
    /// # Errors
    /// [`Error::Config`] if the thread cannot be started.
    pub fn compute_ahead(&self) -> Result<(), Error> {
        let candidate = self.clone();
        // Not one of the pool's, on which the commitment that it waits for is computed. Whoever asks is told of a failure.
        let thread = std::thread::Builder::new().name("flagstone-candidate".to_owned());
        let started = thread.spawn(move || drop(candidate.root()));
        started
            .map(drop)
            .map_err(|error| Error::Config(format!("cannot start a thread for a candidate: {error}")))
    }
}

impl std::fmt::Debug for Candidate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Candidate")
            .field("number", &self.number())
            .field("state", &self.state())
            .field("parent", &self.parent())
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// Makes a candidate of a block: on the tip, or on another candidate. Nothing of it is durable, and nobody sees it but
    /// through it.
    ///
    /// # Errors
    /// [`Error::WrongState`] if the parent is neither the tip nor a candidate that is alive; [`Error::TooManyCandidates`] at a
    /// bound on them; [`Error::WrongNumber`], [`Error::WrongParent`], [`Error::VersionNeeded`], [`Error::BlockTooLarge`] and
    /// [`Error::Refused`] as [`Engine::close_block`].
    pub fn propose<'a>(&self, parent: StateId, block: impl Into<NewBlock<'a>>) -> Result<Candidate, Error> {
        let new = block.into();
        let proposed = self.shared.propose(parent, &new)?;
        Ok(Candidate { proposed, shared: Arc::clone(&self.shared) })
    }

    /// Decides a candidate, which must be on the tip: it is durable on return, and the new tip, with what was computed for it.
    /// Candidates that do not descend from it are gone.
    ///
    /// # Errors
    /// [`Error::WrongState`] if it is not on the tip, [`Error::CandidateGone`] if it is none any more; otherwise as
    /// [`Engine::close_block`].
    pub fn decide(&self, candidate: &Candidate) -> Result<BlockHandle, Error> {
        let proposed = &candidate.proposed;
        let outcome = self.shared.in_turn(|| self.shared.decide(proposed))?;
        Ok(BlockHandle::new(&outcome, &self.shared))
    }

    /// How many candidates there are.
    pub fn candidate_stats(&self) -> CandidateStats {
        self.shared.candidates.stats()
    }
}

/// What a candidate is on, the block before it, and the root there as far as known.
type Known = (Parent, Option<BlockNumber>, Option<StateCommitment>);

impl Shared {
    fn propose(&self, parent: StateId, new: &NewBlock<'_>) -> Result<Arc<Proposed>, Error> {
        let NewBlock { update, blobs, .. } = *new;
        check_blobs(blobs)?;
        let (parent, before, root) = self.parent(parent, update.block_number.unwrap_or_default())?;
        let number = next_number(before, update.block_number)?;
        check_parent(number, update.old_root, root)?;
        self.chain().check_defined(
            number,
            update,
            parent.downwards().map(|proposed| &proposed.update.diff),
        )?;
        let block = pending(number, Lineage::default(), update, blobs);
        check_length(number, block.encoded_len(), self.durability.payload_bytes_max())?;
        let mut values = ByKey::default();
        each_value(&update.diff, |subject, value| {
            values.insert(self.values.key(subject), value);
        });
        let bounds = (self.config.candidates_max, self.config.candidate_bytes_max);
        let outcome = Outcome::new(number, meta::fresh_state());
        let proposed = Proposed::new(&self.candidates, outcome, parent, update, blobs, values);
        let proposed = self.candidates.add(proposed, bounds)?;
        // Somebody may have decided another block meanwhile.
        self.candidates.keep_on(self.chain().state());
        Ok(proposed)
    }

    /// What a candidate on this state is on, with the block before it and its root as far as known.
    fn parent(&self, state: StateId, block: BlockNumber) -> Result<Known, Error> {
        let chain = self.chain();
        if chain.state() == state {
            let Tip { stamp, outcome, block } = self.tip();
            return Ok((Parent::Decided { stamp, outcome }, block, chain.parent()));
        }
        let (tip, now) = (chain.state(), chain.closed());
        drop(chain);
        let candidate = self.candidates.get(state).filter(|proposed| !proposed.outcome.is_gone());
        let parent = candidate.ok_or(Error::WrongState { block, parent: state, tip, now })?;
        let made = parent.made().as_ref().map(|made| made.root.commitment);
        let (number, root) = (Some(parent.number()), parent.update.new_root.or(made));
        Ok((Parent::Candidate(parent), number, root))
    }

    /// Commits a candidate aside, unless that was done. Returns its root, and its witness if that is wanted.
    fn make(
        &self,
        proposed: &Arc<Proposed>,
        reads: Option<&[Subject]>,
    ) -> Result<(BlockRoot, Witness), Error> {
        let mut made = proposed.made();
        loop {
            let base = self.base_below(proposed)?;
            let known = made.as_mut().filter(|made| made.base.state == base.state && reads.is_none());
            if let Some(known) = known {
                // The same state, in rows that may have moved on: those on top read through it.
                known.base = base;
                return Ok((known.root, Witness::default()));
            }
            let staged = self.pool.install(|| self.stage_aside(&base, &proposed.update.diff, reads))?;
            if !self.rows.is_still(&base) {
                continue;
            }
            let block = proposed.facts();
            let (staged, witness) = staged;
            let root = self.root_of(&base, &block, &staged)?;
            *made = Some(Made { base, staged, root });
            let witness = Witness { block: Some(proposed.number()), ..witness };
            return Ok((root, witness));
        }
    }

    /// The committed state that a candidate is on, in rows.
    fn base_below(&self, proposed: &Proposed) -> Result<Base, Error> {
        let gone = || Error::CandidateGone { block: proposed.number(), state: proposed.state() };
        if proposed.outcome.is_gone() {
            return Err(gone());
        }
        let state = proposed.parent();
        if let Parent::Candidate(parent) = &proposed.parent
            && self.chain().state() != state
            && self.rows.base().state != state
        {
            self.make(parent, None)?;
            let made = parent.made();
            let after = made.as_ref().map(|made| made.after(parent));
            return after.ok_or_else(gone);
        }
        self.await_commitment(state)?;
        let base = self.rows.base();
        if base.state == state { Ok(Base::clone(&base)) } else { Err(gone()) }
    }

    /// Waits for the commitment of the tip, if it is this state.
    fn await_commitment(&self, state: StateId) -> Result<(), Error> {
        let chain = self.chain();
        let waiting = chain.waiting().iter().find(|closed| closed.block.lineage.state == state);
        let waiting = waiting.map(|closed| Arc::clone(&closed.outcome));
        drop(chain);
        match waiting {
            Some(outcome) => self.commit_through(&outcome).map(drop),
            None => Ok(()),
        }
    }

    fn decide(&self, proposed: &Arc<Proposed>) -> Result<Arc<Outcome>, Halt> {
        let parent = proposed.parent();
        let new = NewBlock::from(&proposed.update).with_blobs(&proposed.blobs).on(parent);
        let (outcome, _) = self.close_block(&new, None, Some(proposed))?;
        Ok(outcome)
    }
}
