//! Committed states, for those who read tries and not values: proofs, exports, comparisons, checks.

use flagstone_core::commit::TrieRows;
use flagstone_core::types::BlockNumber;

use super::{BlockRoot, Engine, Head, Shared};
use crate::error::Error;
use crate::journal::Journal;

impl Engine {
    /// Reads the tries of the state after a block, or after the last committed one, which stand still until `read`
    /// returns: no block closes or is committed meanwhile. It is given the block and its roots.
    ///
    /// # Errors
    /// [`Error::NotHeld`] if the state after this block cannot be read, and what `read` says.
    pub fn at_commitment<R>(
        &self,
        block: Option<BlockNumber>,
        read: impl FnOnce(&dyn TrieRows, BlockNumber, BlockRoot) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let writer = self.writer()?;
        let head = writer.head;
        let committed = head.committed.filter(|committed| block.is_none_or(|asked| asked == *committed));
        let Some(at) = committed else {
            return Err(Error::NotHeld { asked: block, committed: head.committed });
        };
        let rows = self.shared.layout.tries(self.shared.state_at(head.root.roots));
        read(rows.as_ref(), at, head.root)
    }

    /// Reads anything while nothing changes: the store, at the head that it is given with, and the journal.
    pub(super) fn at_rest<R>(
        &self,
        read: impl FnOnce(&Shared, Head, Option<&Journal>) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let writer = self.writer()?;
        let durability = self.durability();
        read(&self.shared, writer.head, durability.journal())
    }
}
