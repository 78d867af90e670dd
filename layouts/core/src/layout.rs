//! The contract between the engine and a layout.
//!
//! A layout decides which rows hold values and nodes. It reads through a [`StoreRead`] and returns batches; it never
//! writes. The engine writes a batch together with its own rows, as one unit.

pub use crate::outcome::changes::StagedCommitment;

use crate::commit::TrieRows;
use crate::commitment::Roots;
use crate::diff::{StateDiff, Subject};
use crate::error::StateError;
use crate::felt::Felt;
use crate::hash::Hasher;
use crate::outcome::findings::{Findings, Visited};
use crate::outcome::witness::Witness;
use crate::scrub::{At, Scrub, Scrubbed};
use crate::store::{StoreRead, WriteBatch};
use crate::types::{ClassHash, CompiledClassHash, ContractAddress, Nonce, StorageKey, StorageValue};

/// A state in a store: the rows, and the roots of the tries in them.
///
/// Callers of a layout build it by a literal, so it is not `#[non_exhaustive]`.
#[derive(Clone, Copy)]
pub struct StateAt<'a> {
    /// Where the rows are.
    pub store: &'a dyn StoreRead,
    /// Roots of the tries, at the height of the last commitment.
    pub roots: Roots,
}

/// How often a layout's cache of decoded records could answer, and its bound.
///
/// Layouts build it by a literal, so it is not `#[non_exhaustive]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheCounters {
    /// Records that were there.
    pub hits: u64,
    /// Records that had to be read and decoded.
    pub misses: u64,
    /// Records and leaves that went to make room.
    pub evictions: u64,
    /// Most bytes that it keeps between commitments.
    pub bytes_max: u64,
}

/// A way to keep a state and its commitment in rows.
///
/// The roots are a function of the state alone: whatever the layout, the store, the number of threads, and however
/// blocks are grouped into commitments, the same blocks give the same roots. The conformance suite in the testkit
/// is the exam.
pub trait Layout: Send + Sync {
    /// Name, as users write it. Part of what a database says of itself.
    fn name(&self) -> &'static str;

    /// Version of the rows' format. A database of another version is refused.
    fn format_version(&self) -> u32;

    /// Whether states of earlier commitments stay readable through their roots. A layout that says no leaves no row
    /// behind for what is deleted.
    fn keeps_old_states(&self) -> bool {
        false
    }

    /// Visits the rows that none of these states needs, each with its key: those of other states, and what is left of blocks that were taken
    /// back. A layout that does not keep old states has none. Returns how many rows the states need, if that was counted: some 40
    /// bytes of memory are taken for each of them.
    ///
    /// # Errors
    /// [`StateError`] if a state's rows cannot be read.
    fn needless_rows(
        &self,
        _store: &dyn StoreRead,
        _kept: &[Roots],
        _visit: &mut dyn FnMut(&[u8], &[u8]),
    ) -> Result<u64, StateError> {
        Ok(0)
    }

    /// Value of a storage slot; zero if it was never written.
    ///
    /// # Errors
    /// [`StateError`] if the store fails or a row is damaged; never a default value instead.
    fn storage_at(
        &self,
        state: StateAt<'_>,
        address: &ContractAddress,
        key: &StorageKey,
    ) -> Result<StorageValue, StateError>;

    /// Nonce of a contract; zero if it has none.
    ///
    /// # Errors
    /// As [`Layout::storage_at`].
    fn nonce_at(&self, state: StateAt<'_>, address: &ContractAddress) -> Result<Nonce, StateError>;

    /// Class hash of a contract; zero if it is not deployed.
    ///
    /// # Errors
    /// As [`Layout::storage_at`].
    fn class_hash_at(&self, state: StateAt<'_>, address: &ContractAddress) -> Result<ClassHash, StateError>;

    /// Compiled class hash of a Sierra class; zero if it was not declared.
    ///
    /// # Errors
    /// As [`Layout::storage_at`].
    fn compiled_class_hash_at(
        &self,
        state: StateAt<'_>,
        class_hash: &ClassHash,
    ) -> Result<CompiledClassHash, StateError>;

    /// Whatever a diff can set; zero if it is not there.
    ///
    /// # Errors
    /// As [`Layout::storage_at`].
    fn value(&self, state: StateAt<'_>, subject: &Subject) -> Result<Felt, StateError> {
        Ok(match subject {
            Subject::Storage(address, key) => self.storage_at(state, address, key)?.0,
            Subject::Nonce(address) => self.nonce_at(state, address)?.0,
            Subject::ClassHash(address) => self.class_hash_at(state, address)?.0,
            Subject::CompiledClassHash(class_hash) => self.compiled_class_hash_at(state, class_hash)?.0,
        })
    }

    /// Like [`Layout::value`] for many things, in order; a layout with rows for values reads them together.
    ///
    /// # Errors
    /// As [`Layout::storage_at`].
    fn values(&self, state: StateAt<'_>, subjects: &[Subject]) -> Result<Vec<Felt>, StateError> {
        subjects.iter().map(|subject| self.value(state, subject)).collect()
    }

    /// The rows that hold a block's values; none if values live in the tries. Written with the block's commitment, or
    /// before it.
    fn stage_values(&self, diff: &StateDiff) -> WriteBatch;

    /// Commits blocks, in order, on top of `state`. Reads old leaves and nodes at the height of `state.roots`, and
    /// never values that [`Layout::stage_values`] wrote since.
    ///
    /// # Errors
    /// [`StateError`] if old leaves or nodes cannot be read.
    fn stage_commitment(
        &self,
        state: StateAt<'_>,
        blocks: &[&StateDiff],
        hasher: &dyn Hasher,
    ) -> Result<StagedCommitment, StateError>;

    /// Like [`Layout::stage_commitment`] for one block, with the block's witness, recorded on the way
    /// ([`commit_with_witness`](crate::witness::commit_with_witness)). `reads` is what the block read, besides what its
    /// diff writes.
    ///
    /// # Errors
    /// As [`Layout::stage_commitment`].
    fn stage_commitment_with_witness(
        &self,
        state: StateAt<'_>,
        block: &StateDiff,
        reads: &[Subject],
        hasher: &dyn Hasher,
    ) -> Result<(StagedCommitment, Witness), StateError>;

    /// Like [`Layout::stage_commitment`] for one block that may never be written, among others on the same state; with its
    /// witness, if `reads` is there. It takes nothing away that commitments of other blocks use, such as a cache.
    ///
    /// # Errors
    /// As [`Layout::stage_commitment`].
    fn stage_aside(
        &self,
        state: StateAt<'_>,
        block: &StateDiff,
        reads: Option<&[Subject]>,
        hasher: &dyn Hasher,
    ) -> Result<(StagedCommitment, Witness), StateError> {
        match reads {
            Some(reads) => self.stage_commitment_with_witness(state, block, reads, hasher),
            None => Ok((self.stage_commitment(state, &[block], hasher)?, Witness::default())),
        }
    }

    /// A commitment is taken back: its `batch` is not written, and never will be. Comes after its
    /// [`applied`](StagedCommitment::applied), the newest first if several are taken back. What the layout keeps in memory of these
    /// rows is wrong from now on; what it keeps of others is as right as before.
    fn taken_back(&self, _batch: &WriteBatch, _before: Roots, _after: Roots) {}

    /// The tries of a state: nodes and what leaves commit to, for proofs, checks and walks. Reads at the height of
    /// `state.roots`.
    fn tries<'a>(&'a self, state: StateAt<'a>) -> Box<dyn TrieRows + Send + 'a>;

    /// Holds the layout's rows against the tries of the state they are of, which were `visited` before: tells of rows that
    /// are missing, that say something else, and that belong to nothing. Values are at the height of the tries.
    ///
    /// # Errors
    /// [`StateError::Store`] if the store fails otherwise than by damage.
    fn audit(
        &self,
        _state: StateAt<'_>,
        _visited: &Visited,
        _hasher: &dyn Hasher,
        _findings: &Findings,
    ) -> Result<(), StateError> {
        Ok(())
    }

    /// Whether values are in rows of their own, beside the tries, so that one can be lost without the tries noticing.
    fn has_value_rows(&self) -> bool {
        false
    }

    /// Goes on with a scrub of value rows, over about `rows_max` of them: they are held against what each contract keeps of
    /// their number and digest, and whatever else can be known without the tries. Rows that cannot be read are findings.
    /// A layout whose values are in the tries has nothing to scrub.
    ///
    /// # Errors
    /// [`StateError::Store`] if the store fails otherwise than by damage.
    fn scrub(&self, _state: StateAt<'_>, scrub: &mut Scrub, _rows_max: u64) -> Result<Scrubbed, StateError> {
        scrub.go_to(At::End);
        Ok(Scrubbed::default())
    }

    /// Bounds the layout's cache of decoded records, between commitments from the next one on; zero turns it off. Does
    /// nothing if the layout has none.
    fn set_cache_bytes(&self, _bytes_max: usize) {}

    /// What the layout's cache of decoded records has done; `None` if it has none.
    fn cache_counters(&self) -> Option<CacheCounters> {
        None
    }

    /// Reads ahead what a commitment of writes to these things will need, into the layout's own caches. A hint: it may
    /// be late, wrong, or do nothing, and changes no result.
    ///
    /// # Errors
    /// [`StateError`] if what is on the way cannot be read; the commitment will say so again.
    fn prefetch(&self, _state: StateAt<'_>, _subjects: &[Subject]) -> Result<(), StateError> {
        Ok(())
    }
}
