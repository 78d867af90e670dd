//! From a database to a dump.

use std::io::{self, Write};

use flagstone_core::commit::TrieRows;
use flagstone_core::error::StateError;
use flagstone_core::store::{StoreError, StoreErrorKind};
use flagstone_core::trie::{HashPairs, Leaves, TrieId};
use flagstone_core::types::{BlockNumber, ClassHash, ContractAddress};

use super::format::{Counts, Header};
use super::write::DumpWriter;
use crate::engine::Engine;
use crate::error::Error;

/// What was exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Exported {
    /// What the dump says it is.
    pub header: Header,
    /// How much it holds.
    pub counts: Counts,
    /// How long it is.
    pub bytes: u64,
}

/// Why an export ended, until it is known what it says to the caller.
enum Failure {
    Out(io::Error),
    State(StateError),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Out(error)
    }
}

impl From<StateError> for Failure {
    fn from(error: StateError) -> Self {
        Self::State(error)
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::State(error) => error.into(),
            Failure::Out(error) => {
                let problem = format!("cannot write the dump: {error}; it is not whole, remove it");
                StoreError::new(StoreErrorKind::Io, problem).into()
            }
        }
    }
}

/// Writes a dump of the state after a block, or after the last committed one. Every node's hash is computed on the way:
/// a database that is damaged gives an error and no footer. `progress` is told of items now and then.
///
/// # Errors
/// As [`Engine::at_block`] if the state after this block cannot be read; [`Error::State`] if it is damaged, or the store
/// or the writer fails.
pub fn export(
    engine: &Engine,
    block: Option<BlockNumber>,
    out: impl Write,
    progress: &mut dyn FnMut(Counts),
) -> Result<Exported, Error> {
    engine.at_block(block, |rows, block, root| {
        let header = Header { block, roots: root.roots, commitment: root.commitment };
        let hash: &HashPairs<'_> = &|function, pairs| engine.hash_pairs(function, pairs);
        Ok(write_state(rows, header, hash, out, progress)?)
    })
}

fn write_state(
    rows: &dyn TrieRows,
    header: Header,
    hash: &HashPairs<'_>,
    out: impl Write,
    progress: &mut dyn FnMut(Counts),
) -> Result<Exported, Failure> {
    let mut dump = DumpWriter::new(out, &header)?;
    let leaves = |trie, root| Leaves::new(rows, trie, root).verified_by(hash);
    for contract in leaves(TrieId::Contracts, header.roots.contracts.0) {
        let (key, _) = contract.map_err(StateError::from)?;
        let address = ContractAddress::from(key);
        let leaf = rows.contract_leaf(&address)?;
        let entries = leaves(TrieId::Storage(address), leaf.storage_root.0);
        let entries = entries.map(|entry| entry.map_err(|broken| Failure::State(broken.into())));
        dump.contract(address, &leaf, entries)?;
        progress(dump.counts());
    }
    for class in leaves(TrieId::Classes, header.roots.classes.0) {
        let (key, _) = class.map_err(StateError::from)?;
        dump.class(key, rows.class_leaf(&ClassHash(key.to_felt()))?)?;
    }
    let counts = dump.counts();
    progress(counts);
    let (_, bytes) = dump.finish()?;
    Ok(Exported { header, counts, bytes })
}
