//! How an operand is cut into windows, and which table entry each window asks for.
//!
//! An operand has 252 bits, and bit i has its own point Q_i. Write each bit as b = (1 + s) / 2 with
//! s = ±1: then Σ b_i·Q_i = Σ Q_i/2 + Σ s_i·Q_i/2. In that signed form a window of w bits needs only
//! 2^(w−1) points, because complementing all its bits negates it. The constant Σ Q_i/2 rides in the
//! top window, which stays unsigned. No window is ever the point at infinity, and no bit length
//! is a special case.
//!
//! Each side also carries a share of the protocol's shift point P0, so that the sum of one side alone is
//! a finite point for every operand including zero: 2·P0 on the left, −P0 on the right.
//!
//! Table order, per side: windows 0 to count−2 with 2^(w−1) points each, then the top window with 2^w.
//! After both sides come two points per side that stand for leading zero windows, see [`Class`].

use super::contribution::Side;

/// Bits of an operand. The modulus is above 2^251, so the top bit is used.
pub(crate) const OPERAND_BITS: u32 = 252;
/// Windows that a short operand keeps.
pub(crate) const SHORT_WINDOWS: usize = 2;
/// Points added per operand, at most: 63 windows of 4 bits, the narrowest width in use (in tests).
pub(crate) const TERMS_MAX: usize = 63;

/// Which windows of an operand are not constant.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Class {
    /// The operand is zero: one constant point.
    Zero,
    /// Only the two lowest windows are in use: these and one constant point.
    Short,
    /// Every window.
    Full,
}

/// Window width and what follows from it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Geometry {
    /// Bits per window, a divisor of [`OPERAND_BITS`].
    bits: u32,
}

/// A table entry, negated or not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Term(u32);

impl Term {
    const NEGATE: u32 = 1 << 31;

    pub(crate) fn new(index: usize, negate: bool) -> Term {
        debug_assert!(index < Self::NEGATE as usize);
        Term(index as u32 | if negate { Self::NEGATE } else { 0 })
    }
    pub(crate) fn index(self) -> usize {
        (self.0 & !Self::NEGATE) as usize
    }
    pub(crate) fn negate(self) -> bool {
        self.0 & Self::NEGATE != 0
    }
}

impl Geometry {
    pub(crate) const fn new(bits: u32) -> Geometry {
        assert!(bits >= 4 && bits <= 14 && OPERAND_BITS.is_multiple_of(bits));
        Geometry { bits }
    }

    pub(crate) fn bits(self) -> u32 {
        self.bits
    }

    /// Windows per operand.
    pub(crate) fn count(self) -> usize {
        (OPERAND_BITS / self.bits) as usize
    }

    /// Points of one signed window.
    pub(crate) fn signed_points(self) -> usize {
        1 << (self.bits - 1)
    }

    /// Points of one side: every window, the unsigned top one counting twice.
    pub(crate) fn side_points(self) -> usize {
        (self.count() + 1) * self.signed_points()
    }

    /// Points of the whole table.
    pub(crate) fn table_points(self) -> usize {
        2 * self.side_points() + 4
    }

    /// First entry of a window.
    pub(crate) fn window_base(self, side: Side, window: usize) -> usize {
        side as usize * self.side_points() + window * self.signed_points()
    }

    /// The constant standing for all windows of a zero operand, or for all but the two lowest ones of
    /// a short operand.
    pub(crate) fn constant(self, side: Side, class: Class) -> usize {
        debug_assert!(class != Class::Full);
        2 * self.side_points() + 2 * side as usize + class as usize
    }

    pub(crate) fn classify(self, limbs: &[u64; 4]) -> Class {
        if limbs[1] | limbs[2] | limbs[3] != 0 || limbs[0] >> (SHORT_WINDOWS as u32 * self.bits) != 0 {
            Class::Full
        } else if limbs[0] != 0 {
            Class::Short
        } else {
            Class::Zero
        }
    }

    /// Points to add for an operand of this class.
    pub(crate) fn terms(self, class: Class) -> usize {
        match class {
            Class::Zero => 1,
            Class::Short => SHORT_WINDOWS + 1,
            Class::Full => self.count(),
        }
    }

    /// Windows read from an operand of this class.
    pub(crate) fn windows_read(self, class: Class) -> usize {
        match class {
            Class::Zero => 0,
            Class::Short => SHORT_WINDOWS,
            Class::Full => self.count(),
        }
    }

    /// Writes the terms of an operand, as many as [`Geometry::terms`] says.
    #[inline]
    pub(crate) fn recode(self, side: Side, class: Class, limbs: &[u64; 4], out: &mut [Term]) {
        debug_assert_eq!(out.len(), self.terms(class));
        debug_assert!(self.classify(limbs) <= class);
        let windows = self.windows_read(class);
        let mut base = self.window_base(side, 0);
        for (window, term) in out[..windows].iter_mut().enumerate() {
            *term = self.term(base, window, limbs);
            base += self.signed_points();
        }
        if class != Class::Full {
            out[windows] = Term::new(self.constant(side, class), false);
        }
    }

    #[inline(always)]
    fn term(self, base: usize, window: usize, limbs: &[u64; 4]) -> Term {
        let offset = window as u32 * self.bits;
        let (limb, shift) = ((offset / 64) as usize, offset % 64);
        let above = if limb < 3 { limbs[limb + 1] } else { 0 };
        let word = ((u128::from(above) << 64 | u128::from(limbs[limb])) >> shift) as u64;
        let digit = word as usize & ((1 << self.bits) - 1);
        if window == self.count() - 1 {
            return Term::new(base + digit, false);
        }
        let negate = digit >> (self.bits - 1) == 0;
        let digit = if negate { !digit } else { digit };
        Term::new(base + (digit & (self.signed_points() - 1)), negate)
    }
}
