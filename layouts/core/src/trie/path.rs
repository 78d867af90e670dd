//! Paths: up to 251 bits from a trie's root downwards.
//!
//! Bits are left-aligned in four words (bit 0 is the top bit of word 0) and zero behind the length, so comparing
//! two paths compares their bits from the root on, a prefix sorting before its extensions. `bitvec` would fit, and
//! the reference implementation in the testkit uses it; here every step of every update cuts and joins paths, and
//! four words that are `Copy` do that in a few instructions.

use std::fmt;

use crate::codec::{DecodeError, Reader};
use crate::commitment::TRIE_HEIGHT;
use crate::felt::{Felt, be_bytes, be_words, from_words, to_words};
use crate::types::TrieKey;

/// Zero to 251 bits, counted from the root.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Path {
    bits: [u64; 4],
    length: u8,
}

/// Bits of a left-aligned 256-bit number that no key has.
const SLACK: u32 = 256 - TRIE_HEIGHT as u32;

impl Path {
    /// The path of a root: no bits.
    pub const ROOT: Self = Self { bits: [0; 4], length: 0 };

    /// The whole path of a key's leaf, 251 bits.
    pub fn of_key(key: &TrieKey) -> Self {
        Self { bits: shift_left(be_words(key.as_be()), SLACK), length: TRIE_HEIGHT as u8 }
    }

    /// The path whose `length` bits, read as a number, are `value`; the way edges write their paths.
    /// `None` if the value needs more bits, or the length is over 251.
    pub fn of_value(value: &Felt, length: usize) -> Option<Self> {
        if length > TRIE_HEIGHT {
            return None;
        }
        let value = to_words(value);
        if shift_right(value, length as u32) != [0; 4] {
            return None;
        }
        Some(Self { bits: shift_left(value, 256 - length as u32), length: length as u8 })
    }

    /// The number that the bits are, most significant first.
    pub fn value(&self) -> Felt {
        from_words(shift_right(self.bits, 256 - u32::from(self.length)))
    }

    /// The key whose leaf this is the path of; `None` if it is shorter than 251 bits.
    pub fn to_key(&self) -> Option<TrieKey> {
        let whole = self.len() == TRIE_HEIGHT;
        whole.then(|| TrieKey::from_be(be_bytes(shift_right(self.bits, SLACK))).ok()).flatten()
    }

    /// How many bits.
    pub const fn len(&self) -> usize {
        self.length as usize
    }

    /// Whether this is the root's path.
    pub const fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The bit at `index`, counted from the root: `false` is left, `true` right.
    pub fn bit(&self, index: usize) -> bool {
        debug_assert!(index < self.len());
        self.bits[index / 64] >> (63 - index % 64) & 1 == 1
    }

    /// `count` bits from `start` on, at most 57 of them, as a number.
    pub fn bits(&self, start: usize, count: usize) -> u64 {
        debug_assert!(start + count <= self.len() && count <= 57);
        let at = |word: usize| self.bits.get(word).copied().unwrap_or(0);
        let (word, skip) = (start / 64, start % 64);
        let both = u128::from(at(word)) << 64 | u128::from(at(word + 1));
        ((both << skip >> 64) as u64).checked_shr(64 - count as u32).unwrap_or(0)
    }

    /// The first `length` bits.
    #[must_use]
    pub fn prefix(&self, length: usize) -> Self {
        debug_assert!(length <= self.len());
        Self { bits: keep_top(self.bits, length), length: length as u8 }
    }

    /// The bits from `start` on.
    #[must_use]
    pub fn suffix(&self, start: usize) -> Self {
        debug_assert!(start <= self.len());
        Self { bits: shift_left(self.bits, start as u32), length: (self.len() - start) as u8 }
    }

    /// This path followed by another.
    #[must_use]
    pub fn join(&self, below: &Self) -> Self {
        debug_assert!(self.len() + below.len() <= TRIE_HEIGHT);
        let shifted = shift_right(below.bits, u32::from(self.length));
        let bits = std::array::from_fn(|i| self.bits[i] | shifted[i]);
        Self { bits, length: self.length + below.length }
    }

    /// This path and one bit more.
    #[must_use]
    pub fn child(&self, right: bool) -> Self {
        debug_assert!(self.len() < TRIE_HEIGHT);
        let mut bits = self.bits;
        bits[self.len() / 64] |= u64::from(right) << (63 - self.len() % 64);
        Self { bits, length: self.length + 1 }
    }

    /// How many leading bits two paths share.
    pub fn common_prefix(&self, other: &Self) -> usize {
        let shortest = self.len().min(other.len());
        let differing = (0..4).find(|&word| self.bits[word] != other.bits[word]);
        let shared = differing
            .map_or(256, |word| word * 64 + (self.bits[word] ^ other.bits[word]).leading_zeros() as usize);
        shared.min(shortest)
    }

    /// Whether the other path's bits come first in this one.
    pub fn starts_with(&self, prefix: &Self) -> bool {
        self.common_prefix(prefix) == prefix.len()
    }

    /// Appends the byte form: the length in one byte, then the bits, padded with zeros to whole bytes.
    /// Different paths have different forms, and none is a prefix of another.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.length);
        out.extend_from_slice(&be_bytes(self.bits)[..self.len().div_ceil(8)]);
    }

    /// Reads what [`Path::encode`] wrote.
    ///
    /// # Errors
    /// [`DecodeError`] if bytes are missing, the length is over 251, or the padding is not zero.
    pub fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let length = from.u8("path length")?;
        if usize::from(length) > TRIE_HEIGHT {
            return Err(DecodeError::new("path length", format!("{length} is over {TRIE_HEIGHT}")));
        }
        let given = from.bytes("path bits", usize::from(length).div_ceil(8))?;
        let mut bytes = [0; 32];
        bytes[..given.len()].copy_from_slice(given);
        let bits = be_words(&bytes);
        if keep_top(bits, usize::from(length)) != bits {
            return Err(DecodeError::new("path bits", "the padding is not zero"));
        }
        Ok(Self { bits, length })
    }
}

impl fmt::Display for Path {
    /// The value in hexadecimal and the length, as in `0x5/3` for the bits 101.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}/{}", self.value(), self.length)
    }
}

impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn keep_top(bits: [u64; 4], length: usize) -> [u64; 4] {
    std::array::from_fn(|i| match length.saturating_sub(64 * i) {
        0 => 0,
        kept @ 1..64 => bits[i] & (u64::MAX << (64 - kept)),
        _ => bits[i],
    })
}

fn shift_left(words: [u64; 4], by: u32) -> [u64; 4] {
    let (skip, bits) = ((by / 64) as usize, by % 64);
    let word = |i: usize| words.get(i).copied().unwrap_or(0);
    std::array::from_fn(|i| match bits {
        0 => word(i + skip),
        _ => word(i + skip) << bits | word(i + skip + 1) >> (64 - bits),
    })
}

fn shift_right(words: [u64; 4], by: u32) -> [u64; 4] {
    let (skip, bits) = ((by / 64) as usize, by % 64);
    let word = |i: usize, back: usize| i.checked_sub(back).map_or(0, |at| words[at]);
    std::array::from_fn(|i| match bits {
        0 => word(i, skip),
        _ => word(i, skip) >> bits | word(i, skip + 1) << (64 - bits),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path(bits: &str) -> Path {
        bits.chars().fold(Path::ROOT, |path, bit| path.child(bit == '1'))
    }

    fn text(path: &Path) -> String {
        (0..path.len()).map(|i| if path.bit(i) { '1' } else { '0' }).collect()
    }

    #[test]
    fn a_key_is_its_bits_from_the_most_significant() {
        assert_eq!(text(&Path::of_key(&5.into())), format!("{}101", "0".repeat(248)));
        assert_eq!(text(&Path::of_key(&TrieKey::MAX)), "1".repeat(251));
        assert_eq!(Path::of_key(&TrieKey::MAX).to_key(), Some(TrieKey::MAX));
        assert_eq!(path("101").to_key(), None);
    }

    #[test]
    fn a_value_must_fit_its_length() {
        assert_eq!(Path::of_value(&Felt::from(5u64), 3), Some(path("101")));
        assert_eq!(Path::of_value(&Felt::from(5u64), 4), Some(path("0101")));
        assert_eq!(Path::of_value(&Felt::from(5u64), 2), None);
        assert_eq!(Path::of_value(&Felt::ZERO, 0), Some(Path::ROOT));
        assert_eq!(Path::of_value(&Felt::ZERO, 252), None);
    }

    #[test]
    fn bytes_with_padding_or_excess_length_are_refused() {
        assert!(Path::decode(&mut Reader::new(&[252; 40])).is_err());
        assert!(Path::decode(&mut Reader::new(&[3, 0b1011_0000])).is_err());
        assert_eq!(Path::decode(&mut Reader::new(&[3, 0b1010_0000])).unwrap(), path("101"));
    }

    proptest! {
        #[test]
        fn cutting_and_joining_agree_with_strings(bits in "[01]{0,251}", cut: prop::sample::Index) {
            let whole = path(&bits);
            let cut = cut.index(bits.len() + 1);
            prop_assert_eq!(text(&whole.prefix(cut)), &bits[..cut]);
            prop_assert_eq!(text(&whole.suffix(cut)), &bits[cut..]);
            prop_assert_eq!(whole.prefix(cut).join(&whole.suffix(cut)), whole);
            let count = (bits.len() - cut).min(57);
            let number = u64::from_str_radix(&bits[cut..cut + count], 2).unwrap_or(0);
            prop_assert_eq!(whole.bits(cut, count), number);
            prop_assert_eq!(Path::of_value(&whole.value(), bits.len()), Some(whole));
            let mut bytes = Vec::new();
            whole.encode(&mut bytes);
            prop_assert_eq!(Path::decode(&mut Reader::new(&bytes)).unwrap(), whole);
        }

        #[test]
        fn order_and_shared_prefix_agree_with_strings(shared in "[01]{0,130}", a in "[01]{0,120}", b in "[01]{0,120}") {
            let (a, b) = (format!("{shared}{a}"), format!("{shared}{b}"));
            let expected = a.bytes().zip(b.bytes()).take_while(|(x, y)| x == y).count();
            prop_assert_eq!(path(&a).common_prefix(&path(&b)), expected);
            prop_assert_eq!(path(&a).cmp(&path(&b)), a.cmp(&b));
            prop_assert_eq!(path(&a).starts_with(&path(&b)), a.starts_with(&b));
        }
    }
}
