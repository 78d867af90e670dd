//! What can be wrong with a file of state updates, and how it is said.

use std::fmt;

use flagstone_core::types::BlockNumber;

/// Values and names in messages are cut to this many characters.
const SHOWN_CHARS_MAX: usize = 80;

/// What went wrong, for callers that act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum InputErrorKind {
    /// The input could not be opened or read.
    Io,
    /// The gzip or zstd data is damaged or cut short.
    Compression,
    /// The text is not JSON, is cut short, is not UTF-8, or is not laid out as updates.
    Syntax,
    /// A field is missing, unknown, of the wrong type or out of range.
    Field,
    /// Two statements of one update contradict each other, or one field is given twice.
    Conflict,
    /// The input holds no state update at all.
    Empty,
    /// One update is larger than the reader accepts.
    TooLarge,
}

/// Why reading stopped. Its text is one line: the place (`file:line`), the block, the field and its value where they
/// are known, what is wrong with it, and what would be right.
#[derive(Clone, PartialEq, Eq)]
pub struct InputError(Box<Details>);

#[derive(Clone, PartialEq, Eq)]
struct Details {
    kind: InputErrorKind,
    file: String,
    line: Option<u64>,
    block: Option<BlockNumber>,
    field: Option<String>,
    value: Option<String>,
    problem: String,
}

impl InputError {
    /// What went wrong.
    pub fn kind(&self) -> InputErrorKind {
        self.0.kind
    }
    /// Name of the file.
    pub fn file(&self) -> &str {
        &self.0.file
    }
    /// Line of the problem, from 1. For a problem with a field: the line where its update begins.
    pub fn line(&self) -> Option<u64> {
        self.0.line
    }
    /// Number of the block, if the update has told it.
    pub fn block(&self) -> Option<BlockNumber> {
        self.0.block
    }
    /// Path of the field, such as `state_diff.nonces[3].nonce`.
    pub fn field(&self) -> Option<&str> {
        self.0.field.as_deref()
    }
    /// The value found there, cut if it is long.
    pub fn value(&self) -> Option<&str> {
        self.0.value.as_deref()
    }
    /// What is wrong, and what would be right.
    pub fn problem(&self) -> &str {
        &self.0.problem
    }

    pub(super) fn new(kind: InputErrorKind, problem: impl Into<String>) -> Self {
        Self(Box::new(Details {
            kind,
            file: String::new(),
            line: None,
            block: None,
            field: None,
            value: None,
            problem: problem.into(),
        }))
    }

    pub(super) fn in_file(mut self, file: &str) -> Self {
        file.clone_into(&mut self.0.file);
        self
    }

    pub(super) fn at_line(mut self, line: u64) -> Self {
        self.0.line = Some(line);
        self
    }

    pub(super) fn in_block(mut self, block: Option<BlockNumber>) -> Self {
        self.0.block = block;
        self
    }

    pub(super) fn at_field(mut self, field: impl fmt::Display) -> Self {
        self.0.field = Some(field.to_string());
        self
    }

    pub(super) fn with_value(mut self, value: Option<String>) -> Self {
        self.0.value = value;
        self
    }
}

impl fmt::Display for InputError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Details { file, line, block, field, value, problem, .. } = &*self.0;
        write!(f, "{file}")?;
        line.map_or(Ok(()), |line| write!(f, ":{line}"))?;
        block.map_or(Ok(()), |block| write!(f, ": block {block}"))?;
        match (field, value) {
            (Some(field), Some(value)) => write!(f, ": {field} is {value}")?,
            (Some(field), None) => write!(f, ": {field}")?,
            (None, _) => {}
        }
        write!(f, ": {problem}")
    }
}

impl fmt::Debug for InputError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.kind)
    }
}

impl std::error::Error for InputError {}

/// A text from the input in quotes: cut if it is long, with everything escaped that could break the line.
pub(super) fn quoted(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{:?}...", &text[..end]),
        None => format!("{text:?}"),
    }
}
