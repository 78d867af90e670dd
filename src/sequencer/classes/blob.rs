//! A compiled class as bytes.
//!
//! ```text
//! "FSCC" | format u8 | kind u8 | v1 [32] | v2 [32] | length u32 | checksum u32 | the class as JSON, deflated
//! ```
//!
//! `kind` is 0 for a Cairo 0 class (whose two hashes are zero) and 1 for a Sierra class. `length` is that of the JSON.
//! The checksum (CRC-32) goes over the class hash and all other bytes, so that a blob under another class's key is told, too.
//! Numbers are big-endian. Nothing is trusted when reading: the checksum comes first, and no more than `length` bytes, and no
//! more than [`CLASS_BYTES_MAX`], are unpacked.

use std::io::{Read, Write};

use blockifier::execution::contract_class::RunnableCompiledClass;
use flagstone_core::codec::{DecodeError, Reader};
use flagstone_core::types::{ClassHash, CompiledClassHash};
use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use starknet_api::contract_class::ContractClass;

use super::class::{CompiledClassHashes, DeclaredClass, ReadyClass};
use super::error::ClassError;

/// Most bytes of a class's JSON. The network's bound on classes is far below.
pub const CLASS_BYTES_MAX: usize = 64 << 20;
/// Version of the format; a blob of another one is refused.
pub const FORMAT: u8 = 1;
const MAGIC: [u8; 4] = *b"FSCC";
const CAIRO_0: u8 = 0;
const SIERRA: u8 = 1;
/// Bytes before the checksum, and those of the checksum.
const HEAD: usize = 4 + 1 + 1 + 32 + 32 + 4;
const CHECKSUM: usize = 4;

/// The class as bytes.
///
/// # Errors
/// [`ClassError::Unusable`] if it cannot be written as JSON, or is larger than [`CLASS_BYTES_MAX`].
pub fn encode(class: &DeclaredClass) -> Result<Vec<u8>, ClassError> {
    let unusable = |problem: String| ClassError::Unusable { class_hash: class.class_hash, problem };
    let json = serde_json::to_vec(class.class.as_ref()).map_err(|error| unusable(error.to_string()))?;
    if json.len() > CLASS_BYTES_MAX {
        return Err(unusable(format!("it has {} bytes, at most {CLASS_BYTES_MAX} can be kept", json.len())));
    }
    let hashes = class.hashes.unwrap_or_default();
    let mut head = Vec::with_capacity(HEAD);
    head.extend_from_slice(&MAGIC);
    head.push(FORMAT);
    head.push(if class.hashes.is_some() { SIERRA } else { CAIRO_0 });
    head.extend_from_slice(&hashes.v1.to_be());
    head.extend_from_slice(&hashes.v2.to_be());
    head.extend_from_slice(&(json.len() as u32).to_be_bytes());
    let mut deflated = DeflateEncoder::new(Vec::new(), Compression::default());
    let deflated = deflated.write_all(&json).and_then(|()| deflated.finish());
    let deflated = deflated.map_err(|error| unusable(error.to_string()))?;
    let checksum = checksum(class.class_hash, &head, &deflated);
    Ok([head, checksum.to_be_bytes().to_vec(), deflated].concat())
}

/// Reads what [`encode`] wrote for this class, and prepares it for execution.
///
/// # Errors
/// [`ClassError::Damaged`] if the bytes are not what was written, [`ClassError::Unusable`] if the executor refuses the class.
pub fn decode(class_hash: ClassHash, bytes: &[u8]) -> Result<ReadyClass, ClassError> {
    let (class, hashes, bytes) = unpack(class_hash, bytes)
        .map_err(|error| ClassError::Damaged { class_hash, problem: error.to_string() })?;
    let runnable = RunnableCompiledClass::try_from(class)
        .map_err(|error| ClassError::Unusable { class_hash, problem: error.to_string() })?;
    Ok(ReadyClass { runnable, hashes, bytes })
}

type Unpacked = (ContractClass, Option<CompiledClassHashes>, usize);

fn unpack(class_hash: ClassHash, bytes: &[u8]) -> Result<Unpacked, DecodeError> {
    let mut from = Reader::new(bytes);
    let head = from.bytes("head", HEAD)?;
    let stored = from.u32("checksum")?;
    let deflated = from.bytes("class", bytes.len() - HEAD - CHECKSUM)?;
    if !head.starts_with(&MAGIC) {
        return Err(DecodeError::new("magic", "this is no compiled class"));
    }
    if head[MAGIC.len()] != FORMAT {
        let problem = format!("it is {}, and this program reads {FORMAT}", head[MAGIC.len()]);
        return Err(DecodeError::new("format version", problem));
    }
    let computed = checksum(class_hash, head, deflated);
    if stored != computed {
        let problem = format!("it is {stored:#010x}, and that of the bytes {computed:#010x}");
        return Err(DecodeError::new("checksum", problem));
    }
    let mut head = Reader::new(&head[MAGIC.len() + 1..]);
    let kind = head.u8("kind")?;
    let v1 = CompiledClassHash(head.felt("compiled class hash v1")?);
    let v2 = CompiledClassHash(head.felt("compiled class hash v2")?);
    let length = head.u32("length")? as usize;
    if length > CLASS_BYTES_MAX {
        return Err(DecodeError::new("length", format!("{length} is more than {CLASS_BYTES_MAX}")));
    }
    let mut json = Vec::with_capacity(length);
    let read = DeflateDecoder::new(deflated).take(length as u64 + 1).read_to_end(&mut json);
    read.map_err(|error| DecodeError::new("class", error.to_string()))?;
    if json.len() != length {
        return Err(DecodeError::new("length", format!("{length} stated, {} unpacked", json.len())));
    }
    let class: ContractClass =
        serde_json::from_slice(&json).map_err(|error| DecodeError::new("class", error.to_string()))?;
    let hashes = match (kind, &class) {
        (SIERRA, ContractClass::V1(_)) => Some(CompiledClassHashes { v1, v2 }),
        (CAIRO_0, ContractClass::V0(_)) => None,
        _ => return Err(DecodeError::new("kind", format!("{kind} is not that of the class"))),
    };
    Ok((class, hashes, length))
}

fn checksum(class_hash: ClassHash, head: &[u8], deflated: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&class_hash.to_be());
    hasher.update(head);
    hasher.update(deflated);
    hasher.finalize()
}
