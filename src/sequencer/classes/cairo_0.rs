//! Which Cairo 0 classes are declared: what the state does not say.
//!
//! A Sierra class has a leaf in the classes trie, a Cairo 0 class has none. So the producer writes down, beside each block, the
//! Cairo 0 classes that it declares, as two kinds of blobs:
//!
//! ```text
//! "cairo0/class/" | class hash [32]   ->  format u8 | block u64                  the block that declared it last
//! "cairo0/block/" | block u64         ->  format u8 | class hash [32], ascending  what that block declares
//! ```
//!
//! Numbers are big-endian. A class is declared in a view if its block is not after the view's, and that block's list names it.
//! Blobs outlive a block that is taken back, but the block that comes in its place writes its own list, also an empty one if a
//! list is there; so what the block before it declared is declared no more.

use flagstone_core::codec::{DecodeError, Reader};
use flagstone_core::types::{BlockNumber, ClassHash};

use super::class::DeclaredClass;
use super::error::ClassError;
use super::store::ClassStore;
use crate::engine::{Blob, View};

/// Version of both blobs; another one is refused.
pub const FORMAT: u8 = 1;

fn class_key(class_hash: &[u8; 32]) -> Vec<u8> {
    [b"cairo0/class/".as_slice(), class_hash].concat()
}

fn block_key(block: BlockNumber) -> Vec<u8> {
    [b"cairo0/block/".as_slice(), &block.0.to_be_bytes()].concat()
}

/// Whether this Cairo 0 class is declared in the view's block; `None` if nothing was written down of it.
///
/// # Errors
/// [`ClassError::Store`] if it could not be read, [`ClassError::Damaged`] if it is not what was written.
pub fn is_recorded(view: &View, class_hash: ClassHash) -> Result<Option<bool>, ClassError> {
    let damaged = |error: DecodeError| ClassError::Damaged { class_hash, problem: error.to_string() };
    let read = |key: &[u8]| view.blob(key).map_err(|error| ClassError::Store(error.to_string()));
    let Some(record) = read(&class_key(&class_hash.to_be()))? else { return Ok(None) };
    let mut record = body(&record).map_err(damaged)?;
    let block = BlockNumber(record.u64("declaring block").map_err(damaged)?);
    record.end("declaring block").map_err(damaged)?;
    if view.block().is_none_or(|at| at < block) {
        return Ok(Some(false));
    }
    let list = read(&block_key(block))?.unwrap_or_default();
    let mut list = body(&list).map_err(damaged)?;
    let mut names_it = false;
    while list.remaining() > 0 {
        names_it |= ClassHash(list.felt("declared class").map_err(damaged)?) == class_hash;
    }
    Ok(Some(names_it))
}

fn body(bytes: &[u8]) -> Result<Reader<'_>, DecodeError> {
    let mut from = Reader::new(bytes);
    match from.u8("format version of the record of Cairo 0 declarations")? {
        FORMAT => Ok(from),
        other => {
            let problem = format!("it is {other}, and this program reads {FORMAT}");
            Err(DecodeError::new("format version of the record of Cairo 0 declarations", problem))
        }
    }
}

/// What is to be written with the block that follows the view's and declares these classes. A class that is declared already
/// keeps its record: protocol versions before 0.13.2 let a Cairo 0 class be declared again.
///
/// # Errors
/// As [`is_recorded`] and [`ClassStore::has`].
pub fn records(
    view: &View,
    block: BlockNumber,
    classes: &[DeclaredClass],
    store: &dyn ClassStore,
) -> Result<Vec<Blob>, ClassError> {
    let mut declared = Vec::new();
    for class in classes.iter().filter(|class| class.hashes.is_none()) {
        let before = is_recorded(view, class.class_hash)?;
        if !before.map_or_else(|| store.has(class.class_hash), Ok)? {
            declared.push(class.class_hash.to_be());
        }
    }
    declared.sort_unstable();
    declared.dedup();
    let taken_back = view.blob(&block_key(block)).map_err(|error| ClassError::Store(error.to_string()))?;
    if declared.is_empty() && taken_back.is_none() {
        return Ok(Vec::new());
    }
    let with_format = |bytes: &[u8]| [&[FORMAT], bytes].concat().into();
    let list = Blob { key: block_key(block), bytes: with_format(&declared.concat()) };
    let record = |class_hash: &[u8; 32]| Blob {
        key: class_key(class_hash),
        bytes: with_format(&block.0.to_be_bytes()),
    };
    Ok(declared.iter().map(record).chain([list]).collect())
}
