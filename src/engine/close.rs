//! Closing a block: checked, made durable, and visible.

use std::sync::Arc;

use flagstone_core::diff::Subject;
use flagstone_core::types::{BlockHash, BlockNumber, StateId};
use flagstone_core::update::StateUpdate;
use flagstone_core::witness::Witness;

use super::closed::{Closed, weight};
use super::commit::Unit;
use super::config::Cadence;
use super::durable::is_full;
use super::handle::BlockHandle;
use super::life::{Chain, check_parent, next_number};
use super::locks::Locked;
use super::meta::{self, BLOB_KEY_MAX, Blob, BlockRoot, Lineage, PendingBlock};
use super::outcome::Outcome;
use super::rows::Base;
use super::running::Engine;
use super::shared::Shared;
use super::state::Proposed;
use crate::error::Error;

/// From so many values on, a block is shown before its values are in place.
const SHOWN_WRITES_MIN: usize = 512;

/// A blob is at most so long.
const BLOB_BYTES_MAX: usize = 256 << 20;
/// A block's blobs are together at most so long: with its diff they are one frame of the journal.
const BLOBS_BYTES_MAX: usize = 512 << 20;

/// Why a block was not closed.
pub(super) enum Halt {
    Error(Error),
    /// Blocks before it are being taken back.
    Refusing,
}

impl<E: Into<Error>> From<E> for Halt {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

impl Engine {
    /// Closes the next block: checks that it follows, makes it durable and its values visible. Its root follows as the
    /// cadence says; the handle tells what becomes of the block. Waits if a bound on closed blocks is reached.
    ///
    /// On an error nothing of the block is kept, unless the error says [`Error::Stopped`] or comes from the store: then a
    /// reopen tells. If blocks were taken back since one was closed, and nobody who closes blocks was told by their handles or
    /// by [`Engine::commit`], a block that does not say what it was executed on is refused with that failure, once: it was
    /// executed on what is gone.
    ///
    /// # Errors
    /// [`Error::WrongState`], [`Error::WrongNumber`] and [`Error::WrongParent`] if the block does not follow,
    /// [`Error::VersionNeeded`] if its commitment would not be defined, [`Error::RootMismatch`] if its root, or an earlier
    /// block's, is not the stated one, [`Error::BlockTooLarge`] if the journal does not take so much for one block,
    /// [`Error::HashTaken`] if another block has its hash, [`Error::Refused`] if a blob's key or bytes are too long, [`Error::State`] if the
    /// store fails or is damaged.
    pub fn close_block<'a>(&self, block: impl Into<NewBlock<'a>>) -> Result<BlockHandle, Error> {
        Ok(self.close_new(&block.into(), None)?.0)
    }

    /// Like [`Engine::close_block`] with [`Cadence::AtClose`], and with the block's witness: what committing it read and
    /// wrote in all tries, and the ways to `reads`, which the block only read.
    ///
    /// # Errors
    /// As [`Engine::close_block`].
    pub fn close_block_with_witness<'a>(
        &self,
        block: impl Into<NewBlock<'a>>,
        reads: &[Subject],
    ) -> Result<(BlockHandle, Witness), Error> {
        self.close_new(&block.into(), Some(reads))
    }

    fn close_new(
        &self,
        block: &NewBlock<'_>,
        reads: Option<&[Subject]>,
    ) -> Result<(BlockHandle, Witness), Error> {
        check_blobs(block.blobs)?;
        let (outcome, witness) = self.shared.in_turn(|| self.shared.close_block(block, reads, None))?;
        let handle = BlockHandle::new(&outcome, &self.shared);
        let number = Some(handle.number());
        Ok((handle, Witness { block: number, ..witness }))
    }
}

/// A block to be closed. A [`StateUpdate`] alone is one, too: on the tip, without blobs.
#[derive(Debug, Clone, Copy)]
pub struct NewBlock<'a> {
    pub(super) update: &'a StateUpdate,
    pub(super) parent: Option<StateId>,
    pub(super) blobs: &'a [Blob],
}

impl<'a> From<&'a StateUpdate> for NewBlock<'a> {
    fn from(update: &'a StateUpdate) -> Self {
        Self { update, parent: None, blobs: &[] }
    }
}

impl<'a> NewBlock<'a> {
    /// Says which state it was executed on ([`View::state`](super::View::state)): if that is not the tip, it is refused.
    #[must_use]
    pub const fn on(self, parent: StateId) -> Self {
        Self { parent: Some(parent), ..self }
    }

    /// With blobs that are as durable as the block is: [`View::blob`](super::View::blob) reads them.
    #[must_use]
    pub const fn with_blobs(self, blobs: &'a [Blob]) -> Self {
        Self { blobs, ..self }
    }
}

impl Shared {
    /// Who closes blocks, or takes them back, is alone while this is held.
    pub(super) fn closer(&self) -> Locked<'_, ()> {
        self.closer.lock()
    }

    /// Does what only one may do at a time, holding the closer's lock; again, if it had to let go.
    pub(super) fn in_turn<T>(&self, work: impl Fn() -> Result<T, Halt>) -> Result<T, Error> {
        loop {
            let closer = self.closer();
            let outcome = work();
            drop(closer);
            match outcome {
                Ok(done) => return Ok(done),
                Err(Halt::Error(error)) => return Err(error),
                Err(Halt::Refusing) => drop(self.wait(self.chain(), |_| true)?),
            }
        }
    }

    /// Closes a block, which may be a candidate; the caller holds the closer's lock.
    pub(super) fn close_block(
        &self,
        new: &NewBlock<'_>,
        reads: Option<&[Subject]>,
        proposed: Option<&Proposed>,
    ) -> Result<(Arc<Outcome>, Witness), Halt> {
        self.durability.check_writable()?;
        let NewBlock { update, parent, blobs } = *new;
        let at_close = self.config.cadence == Cadence::AtClose || !self.ahead_of_store || reads.is_some();
        let mut chain = self.await_turn(|chain| {
            if at_close {
                chain.waiting().is_empty() && !chain.is_unwritten_full(&self.config)
            } else {
                !chain.is_full(&self.config, weight(&update.diff, blobs))
            }
        })?;
        let untold = chain.take_untold().filter(|_| parent.is_none());
        if let Some(error) = untold {
            return Err(error.into());
        }
        if let Some(gone) = proposed.filter(|proposed| !self.candidates.has(proposed)) {
            return Err(Error::CandidateGone { block: gone.number(), state: gone.state() }.into());
        }
        let number = accept(&chain, update, parent)?;
        let stamp = chain.next_stamp();
        let state = proposed.map_or_else(meta::fresh_state, Proposed::state);
        let lineage = chain.lineage_of_next(state);
        let is_committed = chain.waiting().is_empty() && !chain.is_unwritten_full(&self.config);
        drop(chain);
        let block = pending(number, lineage, update, blobs);
        check_length(number, block.encoded_len(), self.durability.payload_bytes_max())?;
        self.check_hash(number, update.block_hash)?;
        let mut closed = Closed::new(block, stamp);
        closed.outcome = proposed.map_or(closed.outcome, |proposed| Arc::clone(&proposed.outcome));
        let (closed, base) = (Arc::new(closed), self.rows.base());
        let made = proposed.filter(|_| is_committed).and_then(|proposed| proposed.take_made(base.state));
        let mut witness = Witness::default();
        if let Some(made) = made {
            let unit = self.unit_of_one(&base, &closed, made.staged)?;
            self.close_unit(&closed, &base, unit)?;
        } else if at_close {
            witness = self.close_committed(&closed, reads)?;
        } else {
            self.make_durable(&closed, None)?;
            self.show(&closed).map_err(|mistake| self.stop_for(mistake))?;
        }
        proposed.into_iter().for_each(|proposed| self.candidates.decide(proposed, stamp));
        self.candidates.keep_on(state);
        Ok((Arc::clone(&closed.outcome), witness))
    }

    /// Refuses a hash that another block has.
    fn check_hash(&self, block: BlockNumber, hash: Option<BlockHash>) -> Result<(), Error> {
        let Some(hash) = hash else { return Ok(()) };
        match self.block_by_hash(hash)? {
            Some(by) => Err(Error::HashTaken { block, hash, by }),
            None => Ok(()),
        }
    }

    /// Waits for room. Lets go if blocks are being taken back, because that needs the closer's lock.
    pub(super) fn await_turn(&self, has_room: impl Fn(&Chain) -> bool) -> Result<Locked<'_, Chain>, Halt> {
        let mut chain = self.chain();
        loop {
            self.check_running()?;
            if chain.is_refusing() {
                return Err(Halt::Refusing);
            }
            if has_room(&chain) {
                return Ok(chain);
            }
            chain.want_all();
            self.changed.notify_all();
            chain = chain.wait(&self.changed);
        }
    }

    /// Makes a block durable with its root, if that is known, and its values ready for views from its stamp on.
    fn make_durable(&self, closed: &Arc<Closed>, root: Option<&BlockRoot>) -> Result<(), Error> {
        self.durability.close(&closed.block, root).map_err(|error| match is_full(&error) {
            true => error.into(),
            false => self.stop_for(error.into()),
        })?;
        if closed.writes < SHOWN_WRITES_MIN {
            self.values.push(closed.stamp, &closed.block.diff);
            return Ok(());
        }
        // At most one block waits for its values: readers look into each that does.
        self.values.place(u64::MAX);
        self.values.show(closed);
        let values = Arc::clone(&self.values);
        self.pool.spawn(move || values.place(u64::MAX));
        Ok(())
    }

    /// Commits a block, makes it durable and visible, in this order.
    fn close_committed(&self, closed: &Arc<Closed>, reads: Option<&[Subject]>) -> Result<Witness, Error> {
        let base = self.rows.base();
        let group = std::slice::from_ref(closed);
        let (unit, refused) = self.pool.install(|| self.stage(&base, group, reads))?;
        let Some(mut unit) = unit.filter(|_| refused.is_none()) else {
            let nothing = Error::NotClosed { block: closed.block.number, closed: base.block };
            let refused = self.blame(&base, &closed.block.diff, refused.unwrap_or(nothing));
            return Err(refused.unwrap_or_else(|damage| self.stop_for(damage)));
        };
        let witness = std::mem::take(&mut unit.witness);
        self.close_unit(closed, &base, unit)?;
        Ok(witness)
    }

    /// Makes a block durable and visible that was committed on a base.
    fn close_unit(&self, closed: &Arc<Closed>, base: &Base, unit: Unit) -> Result<(), Error> {
        self.hold_replaced(base, &unit.undo).map_err(|damage| self.stop_for(damage))?;
        if let Err(error) = self.make_durable(closed, Some(&unit.root)) {
            self.discard(base, unit);
            return Err(error);
        }
        self.install(unit).map_err(|mistake| self.stop_for(mistake))?;
        if self.ahead_of_store { Ok(()) } else { closed.outcome.wait_persisted() }
    }

    /// Shows a durable block to new views, and to the commitment.
    fn show(&self, closed: &Arc<Closed>) -> Result<(), Error> {
        if !closed.block.blobs.is_empty() {
            let mut blobs = self.blobs.write();
            for blob in &closed.block.blobs {
                blobs.entry(blob.key.clone()).or_default().push((closed.stamp, Arc::clone(&blob.bytes)));
            }
        }
        let mut chain = self.chain();
        self.set_tip(chain.push(closed)?);
        self.changed.notify_all();
        Ok(())
    }

    /// Closes a block that the journal has already.
    pub(super) fn close_again(&self, block: PendingBlock) -> Result<(), Error> {
        let closed = Arc::new(Closed::new(block, self.chain().next_stamp()));
        self.values.push(closed.stamp, &closed.block.diff);
        self.show(&closed)
    }
}

/// Refuses blobs that the journal or a store would not take: once the block is closed there is no way back.
pub(super) fn check_blobs(blobs: &[Blob]) -> Result<(), Error> {
    for Blob { key, bytes } in blobs {
        if key.len() > BLOB_KEY_MAX || bytes.len() > BLOB_BYTES_MAX {
            let (key, bytes) = (key.len(), bytes.len());
            let problem = format!(
                "a blob of {bytes} bytes at a key of {key}: at most {BLOB_BYTES_MAX} at {BLOB_KEY_MAX}"
            );
            return Err(Error::Refused(problem));
        }
    }
    let bytes: usize = blobs.iter().map(|blob| blob.bytes.len()).sum();
    if bytes > BLOBS_BYTES_MAX {
        let problem = format!("blobs of {bytes} bytes with one block: at most {BLOBS_BYTES_MAX}");
        return Err(Error::Refused(problem));
    }
    Ok(())
}

/// Refuses a block that is too long for one frame of the journal. The append would, but only after the block's values were
/// put in place, and so the engine would have to stop.
pub(super) fn check_length(block: BlockNumber, bytes: u64, max: u64) -> Result<(), Error> {
    if bytes > max {
        return Err(Error::BlockTooLarge { block, bytes, max });
    }
    Ok(())
}

/// Checks that a block follows and that its commitment will be defined. Returns its number.
fn accept(chain: &Chain, update: &StateUpdate, parent: Option<StateId>) -> Result<BlockNumber, Error> {
    if let Some(parent) = parent.filter(|parent| *parent != chain.state()) {
        let block = update.block_number.or(chain.closed().and_then(BlockNumber::next)).unwrap_or_default();
        return Err(Error::WrongState { block, parent, tip: chain.state(), now: chain.closed() });
    }
    let number = next_number(chain.closed(), update.block_number)?;
    check_parent(number, update.old_root, chain.parent())?;
    chain.check_defined(number, update, std::iter::empty())?;
    Ok(number)
}

/// A block on its way to be closed.
pub(super) fn pending(
    number: BlockNumber,
    lineage: Lineage,
    update: &StateUpdate,
    blobs: &[Blob],
) -> PendingBlock {
    PendingBlock {
        number,
        hash: update.block_hash,
        lineage,
        version: update.starknet_version,
        old_root: update.old_root,
        new_root: update.new_root,
        diff: update.diff.clone(),
        blobs: blobs.to_vec(),
        computed: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn a_block_that_is_too_long_for_the_journal_is_bad_input() {
        let block = BlockNumber(7);
        check_length(block, 100, 100).unwrap();
        let error = check_length(block, 101, 100).unwrap_err();
        assert_eq!((error.kind(), error.block()), (ErrorKind::Input, Some(block)));
        assert_eq!(
            error.to_string(),
            "block 7 takes 101 bytes in the journal, which takes at most 100 for one block; \
             divide its diff over several blocks, or bring its blobs with others"
        );
    }
}
