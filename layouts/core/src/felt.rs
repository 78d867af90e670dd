//! Field elements from and to text.
//!
//! A felt is an integer modulo p = 2^251 + 17·2^192 + 1. The type is the one StarkWare's crates use, so values
//! cross into an executor without conversion. Parsing here never reduces: a number ≥ p is an error, because a
//! silently reduced key or value would give a wrong root that looks right.

use std::fmt;

pub use starknet_types_core::felt::Felt;

/// p, the field's modulus, as 32 big-endian bytes.
pub const MODULUS_BE: [u8; 32] = {
    let mut bytes = [0u8; 32];
    bytes[0] = 0x08;
    bytes[7] = 0x11;
    bytes[31] = 0x01;
    bytes
};

/// Why a text or some bytes are not a felt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
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
pub fn felt_from_be(bytes: &[u8; 32]) -> Result<Felt, FeltError> {
    if *bytes < MODULUS_BE { Ok(Felt::from_bytes_be(bytes)) } else { Err(FeltError::TooLarge) }
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
