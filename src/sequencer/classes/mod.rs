//! Compiled classes: kept by class hash, with both of their compiled class hashes, and served ready to run.
//!
//! [`ClassStore`] is what a sequencer that has a class manager of its own implements. [`EngineClasses`] is ours: one
//! [`blob`] a class in the engine's database. [`ReadyClasses`] puts a bounded cache of ready-to-run classes in front of either.
//!
//! A store is given the classes of a block before the block closes, and says what is to be written with the block, as one
//! unit: that is how ours keeps them. One that keeps them elsewhere may keep a class whose block was then not closed, which
//! does no harm if it is a Sierra class: a [`ViewReader`](super::ViewReader) asks the view whether a class is declared. Of a
//! Cairo 0 class the state does not say so; there the [`Producer`](super::Producer) writes it down beside the block
//! ([`cairo_0`]), and of a class that it did not write down, the store's word has to do.

pub mod blob;
mod cache;
pub mod cairo_0;
mod stored;

use std::sync::Arc;

use blockifier::execution::contract_class::RunnableCompiledClass;
use flagstone_core::types::{ClassHash, CompiledClassHash};
use starknet_api::contract_class::ContractClass;
use starknet_api::contract_class::compiled_class_hash::{HashVersion, HashableCompiledClass};

pub use cache::ReadyClasses;
pub use stored::{EngineClasses, blob_key};

use crate::engine::Blob;

/// Why a class cannot be kept or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClassError {
    /// What is kept for the class is not what was put there.
    #[error("class {class_hash}: what is kept for it is damaged: {problem}")]
    Damaged {
        /// The class.
        class_hash: ClassHash,
        /// What is wrong.
        problem: String,
    },
    /// The class cannot be prepared for execution or written down.
    #[error("class {class_hash}: {problem}")]
    Unusable {
        /// The class.
        class_hash: ClassHash,
        /// Why not.
        problem: String,
    },
    /// The class is declared in the state, and is not kept.
    #[error(
        "class {0}: it is declared in the state, and the class store does not have it; put its compiled class there"
    )]
    Missing(ClassHash),
    /// What is kept for the class is not what was declared.
    #[error(
        "class {class_hash}: the compiled class that is kept for it is another than the declared one: the state has the \
         compiled class hash {in_state}, and what is kept has {}; put the declared one there",
        kept.as_ref().map_or("none, as a Cairo 0 class".to_owned(), |kept| format!("{} (v1) and {} (v2)", kept.v1, kept.v2))
    )]
    Other {
        /// The class.
        class_hash: ClassHash,
        /// Its compiled class hash in the state.
        in_state: CompiledClassHash,
        /// Those of what is kept.
        kept: Option<Box<CompiledClassHashes>>,
    },
    /// The place where classes are kept failed.
    #[error("compiled classes: {0}")]
    Store(String),
}

/// The hashes of a compiled class. Which of the two the classes trie holds is the state's business.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CompiledClassHashes {
    /// By Poseidon: what was declared before protocol version 0.14.1.
    pub v1: CompiledClassHash,
    /// By Blake2: what is declared since, and what classes in use are migrated to.
    pub v2: CompiledClassHash,
}

/// A class as a block declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeclaredClass {
    /// Its hash.
    pub class_hash: ClassHash,
    /// The compiled class.
    pub class: Arc<ContractClass>,
    /// Its compiled class hashes; `None` for a Cairo 0 class, which has none.
    pub hashes: Option<CompiledClassHashes>,
}

impl DeclaredClass {
    /// Computes both compiled class hashes. This is the only place that hashes a class.
    pub fn new(class_hash: ClassHash, class: ContractClass) -> Self {
        let hashes = match &class {
            ContractClass::V0(_) => None,
            ContractClass::V1((casm, _)) => Some(CompiledClassHashes {
                v1: CompiledClassHash(casm.hash(&HashVersion::V1).0),
                v2: CompiledClassHash(casm.hash(&HashVersion::V2).0),
            }),
        };
        Self { class_hash, class: Arc::new(class), hashes }
    }
}

/// A class that can run. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadyClass {
    /// What the executor runs.
    pub runnable: RunnableCompiledClass,
    /// Its compiled class hashes; `None` for a Cairo 0 class.
    pub hashes: Option<CompiledClassHashes>,
    /// About how many bytes of memory it takes, for caches that are bounded in bytes.
    pub bytes: usize,
}

/// Where compiled classes are kept. Asked from many threads.
pub trait ClassStore: Send + Sync {
    /// The class with this hash, ready to run; `None` if it was never put.
    ///
    /// # Errors
    /// [`ClassError`] if what is kept is damaged or cannot be read. Never "none" for what could not be read.
    fn get(&self, class_hash: ClassHash) -> Result<Option<ReadyClass>, ClassError>;

    /// Whether a class with this hash is kept now, which no cache can know. Asked of Cairo 0 classes alone; for those, a store
    /// must not have one whose block was not closed.
    ///
    /// # Errors
    /// As [`ClassStore::get`].
    fn has(&self, class_hash: ClassHash) -> Result<bool, ClassError> {
        Ok(self.get(class_hash)?.is_some())
    }

    /// What was remembered of this class is not what is declared: the next [`ClassStore::get`] must answer with what is kept
    /// then. For a store without a cache there is nothing to do.
    fn forget(&self, _class_hash: ClassHash) {}

    /// Takes the classes that a block declares. Called once before that block closes; what it returns is written with the
    /// block, durable if and only if the block is. A store that keeps classes elsewhere has them durable when it returns,
    /// and returns nothing to write. Putting a class again changes nothing.
    ///
    /// # Errors
    /// [`ClassError`] if one could not be kept. The block is not closed then.
    fn put(&self, classes: &[DeclaredClass]) -> Result<Vec<Blob>, ClassError>;
}

impl<T: ClassStore + ?Sized> ClassStore for Arc<T> {
    fn get(&self, class_hash: ClassHash) -> Result<Option<ReadyClass>, ClassError> {
        self.as_ref().get(class_hash)
    }
    fn has(&self, class_hash: ClassHash) -> Result<bool, ClassError> {
        self.as_ref().has(class_hash)
    }
    fn forget(&self, class_hash: ClassHash) {
        self.as_ref().forget(class_hash);
    }
    fn put(&self, classes: &[DeclaredClass]) -> Result<Vec<Blob>, ClassError> {
        self.as_ref().put(classes)
    }
}
