//! What can go wrong below the engine.

use crate::codec::DecodeError;
use crate::store::StoreError;
use crate::trie::place::NodeRef;

/// A read or a commitment failed. Each says where; none of them is ever answered with a default value.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A trie refers to a node that the store does not have.
    #[error("{0} is missing from the store; the database is damaged, rebuild it from its blocks or a backup")]
    MissingNode(NodeRef),
    /// A row is there but is not what its place needs.
    #[error("{what} is damaged ({problem}); rebuild the database from its blocks or a backup")]
    Damaged {
        /// The row.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl StateError {
    /// A row that could not be decoded, or is missing where another row says it must be.
    pub fn damaged(what: impl ToString, problem: impl ToString) -> Self {
        Self::Damaged { what: what.to_string(), problem: problem.to_string() }
    }

    /// Turns a decoding failure into one that names the row.
    pub fn undecodable(what: impl ToString) -> impl FnOnce(DecodeError) -> Self {
        move |error| Self::damaged(what, error)
    }
}
