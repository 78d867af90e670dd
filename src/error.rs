//! What the engine can refuse or fail with.

use std::fmt;

use flagstone_core::error::StateError;
use flagstone_core::felt::Felt;
use flagstone_core::store::{StoreError, StoreErrorKind};
use flagstone_core::trie::TrieId;
use flagstone_core::types::{BlockHash, BlockNumber, StateCommitment, StateId};

use crate::snapshot::error::SnapshotError;

/// What kind of error it is, for callers that branch; the text is for people.
///
/// | kind | what a program does |
/// |---|---|
/// | [`Root`](Self::Root) | asks another source for the block or the dump; nothing of this one was kept |
/// | [`Input`](Self::Input) | corrects what it asked for; the same call fails again |
/// | [`Full`](Self::Full) | makes room, and tries the same call again; if that says `Stopped`, opens the database again |
/// | [`Locked`](Self::Locked) | waits for the process that has the database open, or ends it |
/// | [`Damaged`](Self::Damaged) | takes the database out of service; `flagstone check` says what is wrong, `flagstone recover` rebuilds it |
/// | [`Misconfigured`](Self::Misconfigured) | has a person look at directory, names and settings |
/// | [`Expired`](Self::Expired) | takes a new view, or asks for a later state |
/// | [`Stopped`](Self::Stopped) | opens the database again; what was acknowledged is there |
/// | [`Store`](Self::Store) | opens the database again, and has a person look at the machine if that fails |
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A computed root is not the stated one.
    Root,
    /// The caller's input or arguments are wrong.
    Input,
    /// There is no room: the disk is full, or as many candidates are there as can be. Nothing of what was asked for is kept.
    Full,
    /// Another process has the database open.
    Locked,
    /// What is on the disk is not what was written, or its parts do not belong together.
    Damaged,
    /// There is no database where one is opened, or it is another than it is opened as; or a setting or a name is wrong.
    Misconfigured,
    /// What is asked for is not kept any more: a view, a candidate, or an earlier state.
    Expired,
    /// The engine was closed, or stopped after an earlier failure.
    Stopped,
    /// The store or the operating system failed otherwise.
    Store,
}

impl From<StoreErrorKind> for ErrorKind {
    fn from(kind: StoreErrorKind) -> Self {
        match kind {
            StoreErrorKind::Full => Self::Full,
            StoreErrorKind::Corrupt => Self::Damaged,
            StoreErrorKind::Locked => Self::Locked,
            StoreErrorKind::Unsupported => Self::Misconfigured,
            StoreErrorKind::Expired => Self::Expired,
            StoreErrorKind::Closed => Self::Stopped,
            _ => Self::Store,
        }
    }
}

/// An error of the engine.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Reading or committing failed.
    #[error(transparent)]
    State(#[from] StateError),
    /// The computed state commitment is not the one stated for the block. Nothing of the block is kept.
    #[error(
        "block {block}: root mismatch: stated {stated}, computed {computed}; nothing of this block was kept"
    )]
    RootMismatch {
        /// The block.
        block: BlockNumber,
        /// `new_root` as stated.
        stated: StateCommitment,
        /// The commitment of the state after the block's diff.
        computed: StateCommitment,
    },
    /// The block builds on another state. Nothing of it is kept.
    #[error(
        "block {block}: wrong parent: it builds on root {stated}, the state before it has root {actual}; \
         nothing of this block was kept"
    )]
    WrongParent {
        /// The block.
        block: BlockNumber,
        /// `old_root` as stated.
        stated: StateCommitment,
        /// The commitment of the state it was to be applied to.
        actual: StateCommitment,
    },
    /// The block was executed on another state than the last decided one. Nothing of it is kept.
    #[error(
        "block {block} was executed on state {parent}, and the tip is state {tip}, {now}; execute it on a view of that",
        now = after(.now)
    )]
    WrongState {
        /// The block.
        block: BlockNumber,
        /// The state it was executed on.
        parent: StateId,
        /// The state of the tip.
        tip: StateId,
        /// The block of the tip.
        now: Option<BlockNumber>,
    },
    /// The candidate cannot be decided any more.
    #[error(
        "candidate {state}, of block {block}, is none any more: it was decided, or another block was in its place or below it"
    )]
    CandidateGone {
        /// Its number.
        block: BlockNumber,
        /// Its state.
        state: StateId,
    },
    /// As many blocks are proposed and not decided as can be.
    #[error(
        "{count} candidates are there, at most {count_max} can be, and with this one they would take {bytes} bytes of \
         {bytes_max}; decide or drop some"
    )]
    TooManyCandidates {
        /// How many there are.
        count: usize,
        /// How many there can be.
        count_max: usize,
        /// Bytes that they would take.
        bytes: usize,
        /// Bytes that they may take.
        bytes_max: usize,
    },
    /// The block was taken back with one before it.
    #[error("block {block} was taken back with block {with}: {cause}")]
    TakenBack {
        /// The block.
        block: BlockNumber,
        /// The block for which both were taken back.
        with: BlockNumber,
        /// Why that was.
        cause: String,
    },
    /// The block brings a hash that another block has. Nothing of it is kept.
    #[error("block {block}: its hash {hash} is that of block {by} already")]
    HashTaken {
        /// The block.
        block: BlockNumber,
        /// The hash.
        hash: BlockHash,
        /// The block that has it.
        by: BlockNumber,
    },
    /// The block does not follow the last one.
    #[error("block {got} does not follow: the next block of this database is {expected}")]
    WrongNumber {
        /// The number the next block must have.
        expected: BlockNumber,
        /// The number it has.
        got: BlockNumber,
    },
    /// Without the version the commitment is not defined.
    #[error(
        "block {block}: its starknet version is needed for the state commitment while no class is declared; \
         state the version (or the block's new root)"
    )]
    VersionNeeded {
        /// The block.
        block: BlockNumber,
    },
    /// The block is longer than the journal takes for one. Nothing of it is kept.
    #[error(
        "block {block} takes {bytes} bytes in the journal, which takes at most {max} for one block; \
         divide its diff over several blocks, or bring its blobs with others"
    )]
    BlockTooLarge {
        /// The block.
        block: BlockNumber,
        /// Bytes of its diff and blobs, as the journal would hold them.
        bytes: u64,
        /// The most that the journal takes.
        max: u64,
    },
    /// The view's block is no longer kept, or was taken back.
    #[error("view expired: view is at {view}, the state has moved to {now}; take a new view", view = at(.view), now = at(.now))]
    ViewExpired {
        /// The view's block.
        view: Option<BlockNumber>,
        /// The last closed block.
        now: Option<BlockNumber>,
    },
    /// The block is not there yet.
    #[error("block {block} is not there: the last block is {closed}", closed = at(.closed))]
    NotClosed {
        /// The block asked for.
        block: BlockNumber,
        /// The last block there is.
        closed: Option<BlockNumber>,
    },
    /// The state after the block is not kept any more, or never had a root of its own.
    #[error(
        "the state after block {block} {gone}: history reaches from {oldest} to {newest}; \
         import a dump of that state, or replay the blocks up to it, into another database",
        gone = gone(*.block, .oldest, .newest), oldest = at(.oldest), newest = at(.newest)
    )]
    HistoryGone {
        /// The block asked for.
        block: BlockNumber,
        /// The oldest block whose state is kept.
        oldest: Option<BlockNumber>,
        /// The last committed block.
        newest: Option<BlockNumber>,
    },
    /// The database is not what it is opened as.
    #[error(
        "{what} mismatch: database was written by {stored}, opened as {opened}; \
         open it as what it is, with the version of this program that wrote it, or import a dump of it into another database"
    )]
    IdentityMismatch {
        /// What differs: layout, format version, scheme, or store.
        what: &'static str,
        /// What the database says.
        stored: String,
        /// What it is opened as.
        opened: String,
    },
    /// Parts of a database do not belong together. Nothing was changed.
    #[error(
        "parts of the database do not belong together: {problem}; put back the part that belongs here, or go on from what the \
         store has with `flagstone recover`"
    )]
    Mixed {
        /// What differs, and both sides of it.
        problem: String,
    },
    /// There is no database where one is to be opened.
    #[error("{0}")]
    NoDatabase(String),
    /// No layout or store has this name.
    #[error("no {what} named `{name}`; known {what}s: {known}")]
    UnknownName {
        /// `layout` or `store`.
        what: &'static str,
        /// The name.
        name: String,
        /// The names there are.
        known: String,
    },
    /// There is no state after a block yet.
    #[error("the state after the last committed block cannot be read: no block is committed yet")]
    NothingCommitted,
    /// A dump of a state cannot be read.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The values of a dump do not give the roots that it states.
    #[error(
        "the dump of block {block} is wrong in the {trie}: it states root {stated:#x}, its values give {computed:#x}; \
         nothing was imported that can be opened: remove what was begun, and fetch or export the dump again"
    )]
    ImportRefused {
        /// The dump's block.
        block: BlockNumber,
        /// The first trie that differs.
        trie: TrieId,
        /// Its root as stated.
        stated: Felt,
        /// Its root as the values give it.
        computed: Felt,
    },
    /// Another import was begun here and not finished.
    #[error(
        "an import of another dump has begun here: {begun}; {given}; \
         go on with the one that was begun, or remove what it left and import again",
        given = other_dump(.begun, .given)
    )]
    OtherImport {
        /// What was begun.
        begun: Box<ImportOf>,
        /// What was to be imported now.
        given: Box<ImportOf>,
    },
    /// What is opened as a database is the work of an import that is not finished.
    #[error(
        "an import of the state after block {block} into layout `{layout}` has begun here and is not finished; \
         run the same `flagstone import` again to finish it, or remove what it left"
    )]
    UnfinishedImport {
        /// Block of the dump.
        block: BlockNumber,
        /// The layout.
        layout: String,
    },
    /// After an earlier failure nothing is closed, committed or written any more.
    #[error("the engine has stopped ({cause}); open the database again to continue")]
    Stopped {
        /// The failure.
        cause: String,
    },
    /// The engine was closed.
    #[error("the engine was closed; open the database again to continue")]
    Ended,
    /// A setting cannot work.
    #[error("{0}")]
    Config(String),
    /// What is asked for cannot be done, whatever the settings are.
    #[error("{0}")]
    Refused(String),
}

/// A dump, and the layout that it is imported into.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImportOf {
    /// The dump's block.
    pub block: BlockNumber,
    /// Its state commitment.
    pub commitment: StateCommitment,
    /// The layout.
    pub layout: String,
}

impl fmt::Display for ImportOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { block, commitment, layout } = self;
        write!(f, "block {block}, state commitment {commitment}, into layout `{layout}`")
    }
}

/// How the dump that is given is another than the one that was begun.
fn other_dump(begun: &ImportOf, given: &ImportOf) -> String {
    if begun == given {
        return "this one states the same, but its chunks are others".to_owned();
    }
    format!("this one is of {given}")
}

/// Why there is no state after a block, for the middle of a sentence.
fn gone(block: BlockNumber, oldest: &Option<BlockNumber>, newest: &Option<BlockNumber>) -> &'static str {
    if *oldest <= Some(block) && Some(block) <= *newest {
        return "was never kept by itself, as the block was committed as one with those behind it";
    }
    "is not kept"
}

/// Which state, for the middle of a sentence.
fn after(block: &Option<BlockNumber>) -> String {
    block.map_or_else(|| "the empty one".to_owned(), |block| format!("after block {block}"))
}

/// A state, for the middle of a sentence.
pub(crate) fn at(block: &Option<BlockNumber>) -> String {
    block.map_or_else(|| "the empty state".to_owned(), |block| format!("block {block}"))
}

impl Error {
    /// Its kind.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::RootMismatch { .. } | Self::TakenBack { .. } | Self::ImportRefused { .. } => {
                ErrorKind::Root
            }
            Self::WrongParent { .. }
            | Self::WrongState { .. }
            | Self::WrongNumber { .. }
            | Self::VersionNeeded { .. }
            | Self::BlockTooLarge { .. }
            | Self::HashTaken { .. }
            | Self::NotClosed { .. }
            | Self::NothingCommitted
            | Self::Snapshot(_)
            | Self::OtherImport { .. }
            | Self::Refused(_) => ErrorKind::Input,
            Self::TooManyCandidates { .. } => ErrorKind::Full,
            Self::ViewExpired { .. } | Self::HistoryGone { .. } | Self::CandidateGone { .. } => {
                ErrorKind::Expired
            }
            Self::State(StateError::Store(error)) => error.kind().into(),
            Self::State(_) | Self::Mixed { .. } => ErrorKind::Damaged,
            Self::Config(_)
            | Self::UnknownName { .. }
            | Self::IdentityMismatch { .. }
            | Self::NoDatabase(_)
            | Self::UnfinishedImport { .. } => ErrorKind::Misconfigured,
            Self::Stopped { .. } | Self::Ended => ErrorKind::Stopped,
        }
    }

    /// No `what` has this name; these there are.
    pub(crate) fn unknown_name(
        what: &'static str,
        name: &str,
        known: impl Iterator<Item = &'static str>,
    ) -> Self {
        let known = known.collect::<Vec<_>>().join(", ");
        Self::UnknownName { what, name: name.to_owned(), known }
    }

    /// The block it is about, if it is about one.
    pub fn block(&self) -> Option<BlockNumber> {
        match self {
            Self::RootMismatch { block, .. }
            | Self::WrongParent { block, .. }
            | Self::WrongState { block, .. }
            | Self::CandidateGone { block, .. }
            | Self::TakenBack { block, .. }
            | Self::WrongNumber { got: block, .. }
            | Self::VersionNeeded { block }
            | Self::BlockTooLarge { block, .. }
            | Self::HashTaken { block, .. }
            | Self::NotClosed { block, .. }
            | Self::HistoryGone { block, .. } => Some(*block),
            _ => None,
        }
    }

    /// A store and a journal, or a marker, that are not of one database.
    pub(crate) fn mixed(problem: String) -> Self {
        Self::Mixed { problem }
    }

    /// A row of the engine that is not what it must be.
    pub(crate) fn damaged(what: impl ToString, problem: impl ToString) -> Self {
        Self::State(StateError::damaged(what, problem))
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        Self::State(StateError::Store(error))
    }
}
