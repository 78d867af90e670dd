//! Classes as blocks declare them, and as they run.

use std::sync::Arc;

use blockifier::execution::contract_class::RunnableCompiledClass;
use flagstone_core::types::{ClassHash, CompiledClassHash};
use starknet_api::contract_class::ContractClass;
use starknet_api::contract_class::compiled_class_hash::{HashVersion, HashableCompiledClass};

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
