//! From a database to a dump.

use std::io::{self, BufWriter, Write};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use flagstone_core::commit::TrieRows;
use flagstone_core::error::StateError;
use flagstone_core::store::{StoreError, StoreErrorKind};
use flagstone_core::trie::{HashPairs, Leaves, TrieId};
use flagstone_core::types::{BlockNumber, ClassHash, ContractAddress};

use super::format::{Counts, Header};
use super::write::DumpWriter;
use crate::engine::Engine;
use crate::error::Error;
use crate::threads::give_way;

/// Bytes of a dump that are handed over at a time.
const PIECE_BYTES: usize = 64 << 10;
/// Pieces that may wait to be written.
const PIECES_MAX: usize = 8;

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
/// a database that is damaged gives an error and no footer. `progress` is told of items now and then. The state is read on a thread of
/// its own, which gives way to those that produce blocks; `out` and `progress` are called on the caller's.
///
/// # Errors
/// As [`Engine::at_block`] if the state after this block cannot be read; [`Error::State`] if it is damaged, or the store
/// or the writer fails.
pub fn export(
    engine: &Engine,
    block: Option<BlockNumber>,
    mut out: impl Write,
    progress: &mut dyn FnMut(Counts),
) -> Result<Exported, Error> {
    let (pieces, written) = sync_channel(PIECES_MAX);
    thread::scope(|scope| {
        let read = move || {
            give_way();
            engine.at_block(block, |rows, block, root| {
                let header = Header { block, roots: root.roots, commitment: root.commitment };
                let hash: &HashPairs<'_> = &|function, pairs| engine.hash_pairs(function, pairs);
                let told = pieces.clone();
                let progress = &mut |counts| drop(told.send(Piece::Counts(counts)));
                let out = BufWriter::with_capacity(PIECE_BYTES, Pieces(pieces));
                Ok(write_state(rows, header, hash, out, progress)?)
            })
        };
        let reader = thread::Builder::new().name("flagstone-export".to_owned()).spawn_scoped(scope, read);
        let reader = reader.map_err(Failure::Out)?;
        for piece in written {
            match piece {
                Piece::Bytes(bytes) => out.write_all(&bytes).map_err(Failure::Out)?,
                Piece::Counts(counts) => progress(counts),
            }
        }
        let exported = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        out.flush().map_err(Failure::Out)?;
        Ok(exported)
    })
}

/// What the thread that reads hands over to the caller's.
enum Piece {
    Bytes(Vec<u8>),
    Counts(Counts),
}

/// Writes by handing over. Once the caller's thread has failed, so does this.
struct Pieces(SyncSender<Piece>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.send(Piece::Bytes(bytes.to_owned()));
        sent.map(|()| bytes.len()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
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
