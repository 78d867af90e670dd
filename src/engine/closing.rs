//! Closing a block: checked, made durable, and visible.

use std::sync::{Arc, MutexGuard, PoisonError};

use flagstone_core::diff::Subject;
use flagstone_core::types::{BlockNumber, StateCommitment};
use flagstone_core::update::StateUpdate;
use flagstone_core::witness::Witness;

use super::chain::{Chain, Closed, weight};
use super::durable::is_full;
use super::meta::{BLOB_KEY_MAX, Blob, BlockRoot, PendingBlock};
use super::{Cadence, Engine, Progress, Shared};
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
    /// cadence says; [`Engine::wait_for_root`] waits for it. Waits itself if a bound on closed blocks is reached.
    ///
    /// On an error nothing of the block is kept, unless the error says [`Error::Stopped`] or comes from the store: then a
    /// reopen tells. The error may be about an earlier block, whose commitment failed: see [`Error::block`].
    ///
    /// # Errors
    /// [`Error::WrongNumber`] and [`Error::WrongParent`] if the block does not follow, [`Error::VersionNeeded`] if
    /// its commitment would not be defined, [`Error::RootMismatch`] if a committed block's root is not the stated
    /// one (that block and those after it are taken back), [`Error::BlockTooLarge`] if the journal does not take so much
    /// for one block, [`Error::State`] if the store fails or is damaged.
    pub fn close_block(&self, update: &StateUpdate) -> Result<Progress, Error> {
        self.close_block_with(update, &[])
    }

    /// Like [`Engine::close_block`], with blobs that are as durable as the block is: [`View::blob`](super::View::blob)
    /// reads them.
    ///
    /// # Errors
    /// As [`Engine::close_block`]; [`Error::Config`] if a blob's key or bytes are too long, [`Error::BlockTooLarge`] if
    /// they are with the diff.
    pub fn close_block_with(&self, update: &StateUpdate, blobs: &[Blob]) -> Result<Progress, Error> {
        check_blobs(blobs)?;
        Ok(self.close(update, blobs, None)?.0)
    }

    /// Like [`Engine::close_block`] with [`Cadence::AtClose`], and with the block's witness: what committing it read and
    /// wrote in all tries, and the ways to `reads`, which the block only read.
    ///
    /// # Errors
    /// As [`Engine::close_block`].
    pub fn close_block_with_witness(
        &self,
        update: &StateUpdate,
        reads: &[Subject],
    ) -> Result<(Progress, Witness), Error> {
        self.close(update, &[], Some(reads))
    }

    fn close(
        &self,
        update: &StateUpdate,
        blobs: &[Blob],
        reads: Option<&[Subject]>,
    ) -> Result<(Progress, Witness), Error> {
        let (number, witness) = self.shared.in_turn(|| self.shared.close_block(update, blobs, reads))?;
        let progress = Progress { closed: Some(number), ..self.shared.chain().take_news() };
        Ok((progress, Witness { block: Some(number), ..witness }))
    }
}

impl Shared {
    pub(super) fn closer(&self) -> MutexGuard<'_, ()> {
        self.closer.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Closes a block; the caller holds the closer's lock.
    fn close_block(
        &self,
        update: &StateUpdate,
        blobs: &[Blob],
        reads: Option<&[Subject]>,
    ) -> Result<(BlockNumber, Witness), Halt> {
        self.durability.check_writable()?;
        let at_close = self.config.cadence == Cadence::AtClose || !self.ahead_of_store || reads.is_some();
        let chain = self.await_turn(|chain| {
            if at_close {
                chain.waiting.is_empty() && !chain.is_unwritten_full(&self.config)
            } else {
                !chain.is_full(&self.config, weight(&update.diff, blobs))
            }
        })?;
        let (number, stamp, lineage) = (accept(&chain, update)?, chain.stamp + 1, chain.lineage_of_next());
        drop(chain);
        let block = PendingBlock {
            number,
            lineage,
            version: update.starknet_version,
            old_root: update.old_root,
            new_root: update.new_root,
            diff: update.diff.clone(),
            blobs: blobs.to_vec(),
            computed: None,
        };
        check_length(number, block.encoded_len(), self.durability.payload_bytes_max())?;
        let closed = Arc::new(Closed::new(block, stamp));
        if at_close {
            return Ok((number, self.close_committed(&closed, reads)?));
        }
        self.make_durable(&closed, None)?;
        self.show(&closed);
        Ok((number, Witness::default()))
    }

    /// Waits for room. Lets go if blocks are being taken back, because that needs the closer's lock.
    pub(super) fn await_turn(
        &self,
        has_room: impl Fn(&Chain) -> bool,
    ) -> Result<MutexGuard<'_, Chain>, Halt> {
        let mut chain = self.chain();
        loop {
            if let Some(failure) = chain.failure.take() {
                return Err(failure.into());
            }
            self.check_running()?;
            if chain.refusing {
                return Err(Halt::Refusing);
            }
            if has_room(&chain) {
                return Ok(chain);
            }
            chain.want_all();
            self.changed.notify_all();
            chain = self.changed.wait(chain).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Makes a block durable with its root, if that is known, and its values ready for views from its stamp on.
    fn make_durable(&self, closed: &Arc<Closed>, root: Option<&BlockRoot>) -> Result<(), Error> {
        self.durability.close(&closed.block, root).map_err(|error| match is_full(&error) {
            true => error.into(),
            false => self.stop_and_tell(error.into()),
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
            return Err(refused.unwrap_or_else(|damage| self.stop_and_tell(damage)));
        };
        self.hold_replaced(&base, &unit.undo).map_err(|damage| self.stop_and_tell(damage))?;
        let witness = std::mem::take(&mut unit.witness);
        self.make_durable(closed, Some(&unit.root))?;
        self.install(unit);
        if !self.ahead_of_store {
            let through = Some(closed.block.number);
            drop(self.wait(self.chain(), |chain| chain.persisted >= through)?);
        }
        Ok(witness)
    }

    /// Stops the engine for an error, which the caller tells at once.
    pub(super) fn stop_and_tell(&self, error: Error) -> Error {
        self.stop(error);
        self.chain().failure.take().unwrap_or(Error::Stopped { cause: "an earlier failure".into() })
    }

    /// Shows a durable block to new views, and to the commitment.
    fn show(&self, closed: &Arc<Closed>) {
        if !closed.block.blobs.is_empty() {
            let mut blobs = self.blobs();
            for blob in &closed.block.blobs {
                blobs.entry(blob.key.clone()).or_default().push((closed.stamp, Arc::clone(&blob.bytes)));
            }
        }
        let mut chain = self.chain();
        chain.push(closed);
        self.set_tip(closed.stamp, Some(closed.block.number));
        self.changed.notify_all();
    }

    /// Closes a block that the journal has already.
    pub(super) fn close_again(&self, block: PendingBlock) {
        let closed = Arc::new(Closed::new(block, self.chain().stamp + 1));
        self.values.push(closed.stamp, &closed.block.diff);
        self.show(&closed);
    }
}

/// Refuses blobs that the journal or a store would not take: once the block is closed there is no way back.
fn check_blobs(blobs: &[Blob]) -> Result<(), Error> {
    for Blob { key, bytes } in blobs {
        if key.len() > BLOB_KEY_MAX || bytes.len() > BLOB_BYTES_MAX {
            let (key, bytes) = (key.len(), bytes.len());
            let problem = format!(
                "a blob of {bytes} bytes at a key of {key}: at most {BLOB_BYTES_MAX} at {BLOB_KEY_MAX}"
            );
            return Err(Error::Config(problem));
        }
    }
    let bytes: usize = blobs.iter().map(|blob| blob.bytes.len()).sum();
    if bytes > BLOBS_BYTES_MAX {
        let problem = format!("blobs of {bytes} bytes with one block: at most {BLOBS_BYTES_MAX}");
        return Err(Error::Config(problem));
    }
    Ok(())
}

/// Refuses a block that is too long for one frame of the journal. The append would, but only after the block's values were
/// put in place, and so the engine would have to stop.
fn check_length(block: BlockNumber, bytes: u64, max: u64) -> Result<(), Error> {
    if bytes > max {
        return Err(Error::BlockTooLarge { block, bytes, max });
    }
    Ok(())
}

/// Checks that a block follows and that its commitment will be defined. Returns its number.
fn accept(chain: &Chain, update: &StateUpdate) -> Result<BlockNumber, Error> {
    let expected = match chain.closed {
        Some(closed) => {
            Some(closed.next().ok_or_else(|| Error::Config("no block follows the last of 64 bits".into()))?)
        }
        None => None,
    };
    let number = update.block_number.or(expected).unwrap_or_default();
    if let Some(expected) = expected
        && number != expected
    {
        return Err(Error::WrongNumber { expected, got: number });
    }
    if number.next().is_none() {
        return Err(Error::Config(format!("no block could follow block {number}, so it is not taken")));
    }
    check_parent(number, update.old_root, chain.parent())?;
    if update.starknet_version.is_none() && update.new_root.is_none() && chain.rule_may_matter(&update.diff) {
        return Err(Error::VersionNeeded { block: number });
    }
    Ok(number)
}

pub(super) fn check_parent(
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
