//! State updates from files: the network's JSON, in both of its spellings, plain or compressed. Storage proofs and
//! witnesses too ([`read_proof`], [`read_proof_request`], [`read_witness`]), one to a file.
//!
//! What is accepted of updates: one object, an array of them, one per line, or one behind another however they are indented;
//! as `starknet_getStateUpdate` gives them (alone or in the whole JSON-RPC response) or as the feeder gateway's
//! `get_state_update` does (alone or beside its block); plain, gzip or zstd, told by the first bytes and not by the
//! file's name.
//!
//! From a pipe each update is given as soon as its last byte is there, so that a live feed can be followed; packed by gzip, if
//! it is flushed behind each update, and by zstd, if each is a frame of its own: the decoder holds a frame's last window back.
//!
//! Must never drop a write silently: within `state_diff` unknown fields, fields given twice and entries that disagree
//! are errors. Must never panic, whatever the bytes. Memory is bounded by the largest update, not by the file.
//!
//! ```
//! use flagstone::input::UpdateReader;
//!
//! let text = r#"{"block_number": 7, "state_diff": {"nonces": {"0x1": "0x2"}}}"#;
//! let updates = UpdateReader::from_reader("example", text.as_bytes())?.collect::<Result<Vec<_>, _>>()?;
//! assert_eq!(updates[0].update.diff.writes(), 1);
//!
//! let text = "{\"block_number\": 7, \"state_diff\": {\"nonces\": {\"0x1\": \"2 wei\"}}}";
//! let error = UpdateReader::from_reader("example", text.as_bytes())?.find_map(Result::err);
//! assert_eq!(
//!     error.map(|error| error.to_string()).as_deref(),
//!     Some("example:1: block 7: state_diff.nonces[\"0x1\"] is \"2 wei\": \
//!           'i' is not a hexadecimal digit; expected a felt in hexadecimal, such as 0x1f")
//! );
//! # Ok::<(), flagstone::input::InputError>(())
//! ```

mod decompress;
mod error;
mod frame;
mod json;
mod node;
mod proof;
mod update;
mod witness;

use std::fs::File;
use std::io::Read;
use std::iter::FusedIterator;
use std::path::Path;

use flagstone_core::update::StateUpdate;
use flagstone_core::witness::Witness;

pub use error::{InputError, InputErrorKind};
pub use proof::{AskedProof, BlockTag, ProofBlock, ProofFile};

use decompress::Text;
use frame::Frames;
use json::Json;

/// Reads state updates one after another. Stops after the first error.
pub struct UpdateReader {
    name: String,
    frames: Frames,
    total_bytes: Option<u64>,
    progress: Progress,
}

/// A state update and where it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LocatedUpdate {
    /// The update.
    pub update: StateUpdate,
    /// Name of the file.
    pub source: String,
    /// Line on which the update's JSON begins, from 1.
    pub line: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    Begin,
    Reading,
    Ended,
}

impl UpdateReader {
    /// Opens a file; `-` is standard input.
    ///
    /// # Errors
    /// [`InputErrorKind::Io`] if the file cannot be opened or its first bytes cannot be read. What the file holds is
    /// judged while iterating.
    pub fn open(path: &Path) -> Result<Self, InputError> {
        if path.as_os_str() == "-" {
            return Self::from_reader("standard input", std::io::stdin());
        }
        let name = path.display().to_string();
        let file = File::open(path).map_err(|error| {
            InputError::new(InputErrorKind::Io, format!("cannot open: {error}")).in_file(&name)
        })?;
        // Pipes and devices do not know their length.
        let total_bytes = file.metadata().ok().filter(std::fs::Metadata::is_file).map(|data| data.len());
        Ok(Self { total_bytes, ..Self::from_reader(name, file)? })
    }

    /// Reads from anything; the name stands for the file in messages.
    ///
    /// # Errors
    /// [`InputErrorKind::Io`] if the first bytes cannot be read.
    pub fn from_reader(
        name: impl Into<String>,
        reader: impl Read + Send + 'static,
    ) -> Result<Self, InputError> {
        let name = name.into();
        let text = Text::new(reader).map_err(|error| error.in_file(&name))?;
        Ok(Self { name, frames: Frames::new(text), total_bytes: None, progress: Progress::Begin })
    }

    /// Bytes taken from the file so far, before unpacking. Runs ahead of the updates by a buffer.
    pub fn bytes_read(&self) -> u64 {
        self.frames.text().bytes_read()
    }

    /// Length of the file, if it is one.
    pub fn total_bytes(&self) -> Option<u64> {
        self.total_bytes
    }

    fn read_next(&mut self) -> Result<Option<(StateUpdate, u64)>, InputError> {
        if self.progress == Progress::Begin {
            self.frames.skip_byte_order_mark()?;
        }
        let Some(frame) = self.frames.next()? else {
            return match self.progress {
                Progress::Begin => Err(InputError::new(
                    InputErrorKind::Empty,
                    "holds no state update; expected the JSON of starknet_getStateUpdate or get_state_update",
                )),
                Progress::Reading | Progress::Ended => Ok(None),
            };
        };
        let json = Json::parse(frame.bytes).map_err(|problem| frame.explain(&problem))?;
        let update = update::read_update(&json).map_err(|error| error.at_line(frame.line()))?;
        Ok(Some((update, frame.line())))
    }
}

impl Iterator for UpdateReader {
    type Item = Result<LocatedUpdate, InputError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.progress == Progress::Ended {
            return None;
        }
        let next = self.read_next();
        self.progress = if matches!(next, Ok(Some(_))) { Progress::Reading } else { Progress::Ended };
        match next {
            Ok(found) => {
                found.map(|(update, line)| Ok(LocatedUpdate { update, source: self.name.clone(), line }))
            }
            Err(error) => Some(Err(error.in_file(&self.name))),
        }
    }
}

impl FusedIterator for UpdateReader {}

/// Reads a storage proof: the result of `starknet_getStorageProof`, the whole response, or an object with `request`,
/// `result` and `block`. `-` is standard input.
///
/// # Errors
/// [`InputError`] if the file cannot be read or is no proof. Whether the proof holds is for
/// [`StorageProof::verify`](flagstone_core::proof::StorageProof::verify) to say.
pub fn read_proof(path: &Path) -> Result<ProofFile, InputError> {
    read_one(UpdateReader::open(path)?, "a storage proof", proof::read_proof)
}

/// Reads the request for a storage proof: the parameters of `starknet_getStorageProof` by name or by position, or the whole
/// JSON-RPC request with them. `-` is standard input.
///
/// # Errors
/// [`InputError`] if the file cannot be read or is no request.
pub fn read_proof_request(path: &Path) -> Result<AskedProof, InputError> {
    let mut file = UpdateReader::open(path)?;
    file.frames.lists_are_objects = true;
    read_one(file, "a request for a storage proof", proof::read_request_file)
}

/// Reads a witness, in its byte form or as JSON. `-` is standard input.
///
/// # Errors
/// [`InputError`] if the file cannot be read or is no witness. Whether the witness holds is for [`Witness::apply`] to
/// say.
pub fn read_witness(path: &Path) -> Result<Witness, InputError> {
    let mut file = UpdateReader::open(path)?;
    // The byte form begins as no JSON does.
    if file.frames.peek().map_err(|error| error.in_file(&file.name))? != Some(Witness::MAGIC[0]) {
        return read_one(file, "a witness", witness::read_witness);
    }
    let bytes = file.frames.rest().map_err(|error| error.in_file(&file.name))?;
    Witness::decode(&bytes)
        .map_err(|error| InputError::new(InputErrorKind::Syntax, error.to_string()).in_file(&file.name))
}

/// Reads a file that holds one object.
fn read_one<T>(
    file: UpdateReader,
    what: &'static str,
    read: impl FnOnce(&Json<'_>) -> Result<T, InputError>,
) -> Result<T, InputError> {
    let UpdateReader { name, mut frames, .. } = file;
    frames.what = what;
    let read_object = || {
        frames.skip_byte_order_mark()?;
        let empty = || InputError::new(InputErrorKind::Empty, format!("holds nothing; expected {what}"));
        let frame = frames.next()?.ok_or_else(empty)?;
        let line = frame.line();
        let json = Json::parse(frame.bytes).map_err(|problem| frame.explain(&problem))?;
        let object = read(&json).map_err(|error| error.at_line(line))?;
        match frames.next()? {
            Some(second) => {
                let problem = format!("a second object begins here; expected {what} and nothing else");
                Err(InputError::new(InputErrorKind::Conflict, problem).at_line(second.line()))
            }
            None => Ok(object),
        }
    };
    read_object().map_err(|error: InputError| error.in_file(&name))
}

#[cfg(test)]
mod tests;
