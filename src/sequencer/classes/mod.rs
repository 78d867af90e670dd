//! Compiled classes: kept by class hash, with both of their compiled class hashes, and served ready to run.
//!
//! [`ClassStore`] is what a sequencer that has a class manager of its own implements. [`EngineClasses`] is ours: one
//! [`blob`] a class in the engine's database. [`ReadyClasses`] puts a bounded cache of ready-to-run classes in front of either.
//!
//! A store is given the classes of a block before the block closes, and says what is to be written with the block, as one
//! unit: that is how ours keeps them. One that keeps them elsewhere may keep a class whose block was then not closed, which
//! does no harm: a [`ViewReader`](super::ViewReader) asks the view whether a class is declared.

pub mod blob;
mod cache;
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
    fn put(&self, classes: &[DeclaredClass]) -> Result<Vec<Blob>, ClassError> {
        self.as_ref().put(classes)
    }
}
