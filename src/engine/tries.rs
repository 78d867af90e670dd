//! Committed states, for those who go over whole ones: exports, comparisons, checks.

use flagstone_core::commit::TrieRows;
use flagstone_core::types::BlockNumber;

use super::closing::Halt;
use super::{BlockRoot, Engine, Head, Shared};
use crate::error::Error;
use crate::journal::Journal;

impl Engine {
    /// Like [`Engine::at_commitment`], for who needs a block: `read` is given it and its roots.
    ///
    /// # Errors
    /// As [`Engine::at_commitment`]; [`Error::NotHeld`] if nothing is committed yet.
    pub fn at_block<R>(
        &self,
        block: Option<BlockNumber>,
        read: impl FnOnce(&dyn TrieRows, BlockNumber, BlockRoot) -> Result<R, Error>,
    ) -> Result<R, Error> {
        self.at_commitment(block, |tries, at, root| match at {
            Some(at) => read(tries, at, *root),
            None => Err(Error::NotHeld { asked: block, committed: None }),
        })
    }

    /// Reads anything while nothing changes and nothing is on its way: the store, at the head that it is given with, and
    /// the journal.
    pub(super) fn at_rest<R>(
        &self,
        read: impl FnOnce(&Shared, Head, Option<&Journal>) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let shared = &self.shared;
        let closer = shared.closer();
        let turn = shared
            .await_turn(shared.chain(), |chain| chain.waiting.is_empty() && chain.unwritten.is_empty())
            .map(|chain| chain.head());
        let head = match turn {
            Ok(head) => head,
            Err(Halt::Error(error)) => return Err(error),
            Err(Halt::Refusing) => {
                drop(closer);
                drop(shared.wait(shared.chain(), |_| true)?);
                return self.at_rest(read);
            }
        };
        let durability = shared.durability();
        read(shared, head, durability.journal())
    }
}
