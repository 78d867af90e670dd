//! Committed states, for those who go over whole ones: exports, comparisons, checks.

use flagstone_core::commit::TrieRows;
use flagstone_core::felt::Felt;
use flagstone_core::trie::{HashFunction, hash_pairs};
use flagstone_core::types::BlockNumber;

use super::life::Chain;
use super::meta::{BlockRoot, Head};
use super::running::Engine;
use super::shared::Shared;
use crate::error::Error;
use crate::journal::Journal;

impl Engine {
    /// Like [`Engine::at_commitment`], for who needs a block: `read` is given it and its roots.
    ///
    /// # Errors
    /// As [`Engine::at_commitment`]; [`Error::NothingCommitted`] if nothing is committed yet.
    pub fn at_block<R>(
        &self,
        block: Option<BlockNumber>,
        read: impl FnOnce(&dyn TrieRows, BlockNumber, BlockRoot) -> Result<R, Error>,
    ) -> Result<R, Error> {
        self.at_commitment(block, |tries, at, root| match at {
            Some(at) => read(tries, at, *root),
            None => Err(Error::NothingCommitted),
        })
    }

    /// Hashes pairs in order, on threads that commit nothing.
    pub(crate) fn hash_pairs(&self, function: HashFunction, pairs: &[[Felt; 2]]) -> Vec<Felt> {
        let pool = self.shared.history_pool().unwrap_or(&self.shared.pool);
        pool.install(|| hash_pairs(self.shared.hasher.as_ref(), function, pairs))
    }

    /// Reads anything while nothing changes and nothing is on its way: the store, at the head that it is given with, and
    /// the journal. Commits what is closed first.
    pub(super) fn at_rest<R>(
        &self,
        read: impl Fn(&Shared, Head, Option<&Journal>) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let shared = &self.shared;
        shared.in_turn(|| {
            let head = shared.await_turn(Chain::is_at_rest)?.head();
            let journal = shared.durability.look().transpose().map_err(Error::from)?;
            Ok(read(shared, head, journal.as_ref())?)
        })
    }
}
