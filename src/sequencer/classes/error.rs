//! Why a class cannot be kept or read.

use flagstone_core::types::{ClassHash, CompiledClassHash};

use super::class::CompiledClassHashes;

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
