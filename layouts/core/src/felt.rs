//! Field elements from and to text.
//!
//! A felt is an integer modulo p = 2^251 + 17·2^192 + 1. The type is the one StarkWare's crates use, so values
//! cross into an executor without conversion. Parsing here never reduces: a number ≥ p is an error, because a
//! silently reduced key or value would give a wrong root that looks right.

use std::fmt;

use crate::hash;

pub use starknet_types_core::felt::Felt;

/// p, the field's modulus, as 32 big-endian bytes.
pub const MODULUS_BE: [u8; 32] = {
    let mut bytes = [0u8; 32];
    bytes[0] = 0x08;
    bytes[7] = 0x11;
    bytes[31] = 0x01;
    bytes
};

/// p in words, most significant first.
const MODULUS_WORDS: [u64; 4] = be_words(&MODULUS_BE);

/// Why a text or some bytes are not a felt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FeltError {
    /// There are no digits.
    #[error("a felt needs at least one hexadecimal digit")]
    Empty,
    /// A character is not a hexadecimal digit.
    #[error("{0:?} is not a hexadecimal digit")]
    NotHex(char),
    /// The number is not below the field's modulus.
    #[error("a felt must be below 2^251 + 17*2^192 + 1")]
    TooLarge,
}

/// Reads a felt from hexadecimal, with or without `0x`, with or without leading zeros.
///
/// # Errors
/// [`FeltError`] if the text has no digit, has another character, or its number is not below p.
///
/// ```
/// use flagstone_core::felt::{parse_felt, Felt};
/// assert_eq!(parse_felt("0x00ff").unwrap(), Felt::from(255u64));
/// assert!(parse_felt("0x800000000000011000000000000000000000000000000000000000000000001").is_err());
/// ```
pub fn parse_felt(text: &str) -> Result<Felt, FeltError> {
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text);
    if digits.is_empty() {
        return Err(FeltError::Empty);
    }
    let mut bytes = [0u8; 32];
    for (nibbles, digit) in digits.chars().rev().enumerate() {
        let value = digit.to_digit(16).ok_or(FeltError::NotHex(digit))? as u8;
        match 31usize.checked_sub(nibbles / 2) {
            Some(at) => bytes[at] |= value << (4 * (nibbles % 2)),
            None if value != 0 => {
                // The rest is still looked at, so that "not hex" wins over "too large".
                digits
                    .chars()
                    .find(|c| !c.is_ascii_hexdigit())
                    .map_or(Ok(()), |c| Err(FeltError::NotHex(c)))?;
                return Err(FeltError::TooLarge);
            }
            None => {}
        }
    }
    felt_from_be(&bytes)
}

/// Reads a felt from its 32 big-endian bytes.
///
/// # Errors
/// [`FeltError::TooLarge`] if the number is not below p.
#[inline]
pub fn felt_from_be(bytes: &[u8; 32]) -> Result<Felt, FeltError> {
    let words = be_words(bytes);
    if words < MODULUS_WORDS { Ok(from_words(words)) } else { Err(FeltError::TooLarge) }
}

/// Whether 32 big-endian bytes are a felt's: a number below p.
#[inline]
pub fn is_felt(bytes: &[u8; 32]) -> bool {
    be_words(bytes) < MODULUS_WORDS
}

/// A felt's 32 big-endian bytes. Several times quicker than the felt's own conversion, which does not know that this
/// prime needs next to no multiplications to leave Montgomery form.
#[inline]
pub fn felt_to_be(felt: &Felt) -> [u8; 32] {
    be_bytes(to_words(felt))
}

/// A felt's number in words, most significant first.
pub(crate) fn to_words(felt: &Felt) -> [u64; 4] {
    let [a, b, c, d] = hash::to_limbs(felt);
    [d, c, b, a]
}

/// The felt of a number below p in words, most significant first.
pub(crate) fn from_words([d, c, b, a]: [u64; 4]) -> Felt {
    hash::from_limbs([a, b, c, d])
}

/// A big-endian number in words, most significant first.
pub(crate) const fn be_words(bytes: &[u8; 32]) -> [u64; 4] {
    let (words, _) = bytes.as_chunks::<8>();
    [
        u64::from_be_bytes(words[0]),
        u64::from_be_bytes(words[1]),
        u64::from_be_bytes(words[2]),
        u64::from_be_bytes(words[3]),
    ]
}

/// Words, most significant first, as a big-endian number.
pub(crate) fn be_bytes(words: [u64; 4]) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (chunk, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        *chunk = word.to_be_bytes();
    }
    bytes
}

/// Writes a felt as `0x` and its hexadecimal digits without leading zeros.
pub(crate) fn write_hex(felt: &Felt, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "{felt:#x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<Felt, FeltError>) {
        assert_eq!(parse_felt(text), expected, "{text}");
    }

    #[test]
    fn accepts_every_spelling_of_a_felt() {
        for text in
            ["0x1f", "1f", "0X1F", "0x00000000000000000000000000000000000000000000000000000000000000001f"]
        {
            check(text, Ok(Felt::from(31u64)));
        }
        check("0x0", Ok(Felt::ZERO));
        check("0x800000000000011000000000000000000000000000000000000000000000000", Ok(Felt::MAX));
    }

    #[test]
    fn refuses_what_is_not_a_felt() {
        check("", Err(FeltError::Empty));
        check("0x", Err(FeltError::Empty));
        check("0xg1", Err(FeltError::NotHex('g')));
        check("-1", Err(FeltError::NotHex('-')));
        check("0x800000000000011000000000000000000000000000000000000000000000001", Err(FeltError::TooLarge));
        check(&"f".repeat(64), Err(FeltError::TooLarge));
        check(&"f".repeat(65), Err(FeltError::TooLarge));
        check(&format!("x{}", "f".repeat(65)), Err(FeltError::NotHex('x')));
    }

    #[test]
    fn bytes_are_those_of_the_felt_itself() {
        let mut felt = Felt::from(3u64);
        for _ in 0..1000 {
            assert_eq!(felt_to_be(&felt), felt.to_bytes_be());
            assert_eq!(felt_from_be(&felt.to_bytes_be()), Ok(felt));
            felt = felt * felt + Felt::ONE;
        }
        for felt in [Felt::ZERO, Felt::ONE, Felt::MAX] {
            assert_eq!(felt_to_be(&felt), felt.to_bytes_be());
            assert_eq!(felt_from_be(&felt.to_bytes_be()), Ok(felt));
        }
    }

    #[test]
    fn bytes_of_no_felt_are_refused() {
        assert_eq!(be_words(&MODULUS_BE), [0x0800_0000_0000_0011, 0, 0, 1]);
        let mut too_large = vec![MODULUS_BE, [0xff; 32]];
        for at in 0..32 {
            let mut bytes = MODULUS_BE;
            bytes[at] += 1;
            too_large.push(bytes);
        }
        for bytes in too_large {
            assert_eq!(felt_from_be(&bytes), Err(FeltError::TooLarge));
            assert!(!is_felt(&bytes) && is_felt(&felt_to_be(&Felt::MAX)));
        }
    }

    #[test]
    fn hex_is_written_without_leading_zeros() {
        struct Shown(Felt);
        impl fmt::Display for Shown {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_hex(&self.0, f)
            }
        }
        assert_eq!(Shown(Felt::ZERO).to_string(), "0x0");
        assert_eq!(Shown(Felt::from(0xabcu64)).to_string(), "0xabc");
    }
}
