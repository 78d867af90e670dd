//! Reading bytes that came from a disk.
//!
//! Such bytes are never trusted: every read is checked for length and range, and failing is an error with the name
//! of the field. Nothing here panics, whatever the input.

use crate::felt::{Felt, felt_from_be, felt_to_be};
use crate::types::TrieKey;

/// Why bytes could not be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct DecodeError {
    /// The field that was being read.
    pub field: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

impl DecodeError {
    /// An error about `field`.
    pub fn new(field: &'static str, problem: impl Into<String>) -> Self {
        Self { field, problem: problem.into() }
    }
}

/// Appends a felt without its leading zero bytes: their number in one byte, then the rest, big-endian. Most values of
/// a real state are small.
pub fn put_short_felt(out: &mut Vec<u8>, felt: &Felt) {
    let bytes = felt_to_be(felt);
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    out.push(32 - zeros as u8);
    out.extend_from_slice(&bytes[zeros..]);
}

/// A cursor over bytes whose reads name the field they are for.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts at the first byte.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// How many bytes are left.
    pub const fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// The next `length` bytes.
    ///
    /// # Errors
    /// [`DecodeError`] if fewer are left.
    #[inline]
    pub fn bytes(&mut self, field: &'static str, length: usize) -> Result<&'a [u8], DecodeError> {
        let (head, rest) = self.rest.split_at_checked(length).ok_or_else(|| {
            DecodeError::new(field, format!("needs {length} bytes, {} are left", self.rest.len()))
        })?;
        self.rest = rest;
        Ok(head)
    }

    /// The next `N` bytes as an array.
    ///
    /// # Errors
    /// [`DecodeError`] if fewer are left.
    #[inline]
    pub fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(field, N)?);
        Ok(array)
    }

    /// One byte.
    ///
    /// # Errors
    /// [`DecodeError`] at the end.
    #[inline]
    pub fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        self.array::<1>(field).map(|[byte]| byte)
    }

    /// A big-endian 32-bit number.
    ///
    /// # Errors
    /// [`DecodeError`] if fewer than four bytes are left.
    #[inline]
    pub fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        self.array(field).map(u32::from_be_bytes)
    }

    /// A big-endian 64-bit number.
    ///
    /// # Errors
    /// [`DecodeError`] if fewer than eight bytes are left.
    pub fn u64(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        self.array(field).map(u64::from_be_bytes)
    }

    /// A felt in 32 big-endian bytes.
    ///
    /// # Errors
    /// [`DecodeError`] if bytes are missing or the number is not below p.
    #[inline]
    pub fn felt(&mut self, field: &'static str) -> Result<Felt, DecodeError> {
        felt_from_be(&self.array(field)?).map_err(|error| DecodeError::new(field, error.to_string()))
    }

    /// A felt as [`put_short_felt`] writes it.
    ///
    /// # Errors
    /// [`DecodeError`] if bytes are missing, the number is not below p, or it begins with a zero byte.
    #[inline]
    pub fn short_felt(&mut self, field: &'static str) -> Result<Felt, DecodeError> {
        let length = usize::from(self.u8(field)?);
        if length > 32 {
            return Err(DecodeError::new(field, format!("{length} bytes are too many for a felt")));
        }
        let given = self.bytes(field, length)?;
        if given.first() == Some(&0) {
            return Err(DecodeError::new(field, "begins with a zero byte"));
        }
        let mut bytes = [0; 32];
        bytes[32 - length..].copy_from_slice(given);
        felt_from_be(&bytes).map_err(|error| DecodeError::new(field, error.to_string()))
    }

    /// A trie key in 32 big-endian bytes.
    ///
    /// # Errors
    /// [`DecodeError`] if bytes are missing or the number is not below 2^251.
    pub fn key(&mut self, field: &'static str) -> Result<TrieKey, DecodeError> {
        TrieKey::from_be(self.array(field)?).map_err(|error| DecodeError::new(field, error.to_string()))
    }

    /// A count of items of at least `item_bytes` bytes each, which must still fit into what is left: a damaged
    /// count cannot make the caller allocate more than the input is long.
    ///
    /// # Errors
    /// [`DecodeError`] if bytes are missing or the count cannot be true.
    pub fn count(&mut self, field: &'static str, item_bytes: usize) -> Result<usize, DecodeError> {
        let count = self.u32(field)? as usize;
        if count.saturating_mul(item_bytes) > self.rest.len() {
            let problem = format!("{count} items cannot fit into the {} bytes left", self.rest.len());
            return Err(DecodeError::new(field, problem));
        }
        Ok(count)
    }

    /// Checks that everything was read.
    ///
    /// # Errors
    /// [`DecodeError`] if bytes are left over.
    pub fn end(self, field: &'static str) -> Result<(), DecodeError> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(DecodeError::new(field, format!("{} bytes too many", self.rest.len())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_felts_survive_their_bytes() {
        for felt in [Felt::ZERO, Felt::ONE, Felt::from(256u64), Felt::MAX] {
            let mut bytes = Vec::new();
            put_short_felt(&mut bytes, &felt);
            let mut reader = Reader::new(&bytes);
            assert_eq!(reader.short_felt("felt").unwrap(), felt);
            reader.end("felt").unwrap();
        }
        let mut bytes = Vec::new();
        put_short_felt(&mut bytes, &Felt::from(256u64));
        assert_eq!(bytes, [2, 1, 0]);
    }

    #[test]
    fn a_short_felt_has_one_form() {
        assert!(Reader::new(&[2, 0, 1]).short_felt("felt").is_err());
        assert!(Reader::new(&[33; 34]).short_felt("felt").is_err());
        assert!(Reader::new(&[32; 33]).short_felt("felt").is_err());
        assert!(Reader::new(&[3, 1, 1]).short_felt("felt").is_err());
    }

    #[test]
    fn a_damaged_count_cannot_ask_for_more_than_there_is() {
        let error = Reader::new(&[0xff, 0xff, 0xff, 0xff, 1, 2, 3]).count("items", 1).unwrap_err();
        assert_eq!(error.to_string(), "items: 4294967295 items cannot fit into the 3 bytes left");
    }
}
