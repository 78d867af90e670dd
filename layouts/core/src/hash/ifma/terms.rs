//! Terms of eight sums at a time: cutting operands into windows, and fetching the points.

use super::lanes::{Lanes, Limb, all, transpose};
use crate::hash::curve::Affine;
use crate::hash::job::{Job, Summand};
use crate::hash::table::Table;
use crate::hash::windows::{Class, Geometry, Term};
use std::arch::x86_64::*;

pub(crate) const LANES: usize = 8;

/// One term of each of eight sums.
#[derive(Clone, Copy, Default)]
pub(crate) struct VectorTerm {
    entries: [u32; LANES],
    negated: u8,
}

impl VectorTerm {
    pub(crate) fn lane(&self, lane: usize) -> Term {
        Term::new(self.entries[lane] as usize, self.negated >> lane & 1 == 1)
    }

    pub(crate) fn set_lane(&mut self, lane: usize, term: Term) {
        self.entries[lane] = term.index() as u32;
        self.negated = self.negated & !(1 << lane) | u8::from(term.negate()) << lane;
    }

    pub(crate) fn negated(&self) -> u8 {
        self.negated
    }

    /// Asks for all eight cache lines. Into the second level only: they are wanted in microseconds.
    #[inline]
    pub(crate) fn prefetch(&self, table: &Table) {
        let start = table.points().as_ptr();
        for entry in self.entries {
            // SAFETY: a prefetch reads nothing the program can see and cannot fault.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(start.wrapping_add(entry as usize).cast()) };
        }
    }

    /// x and y as factors below p, the sign not yet applied.
    #[inline]
    #[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
    pub(crate) fn fetch(&self, table: &Table) -> (Lanes, Lanes) {
        let points = table.points();
        let row = |lane: usize| row(&points[self.entries[lane] as usize]);
        let c = transpose([row(0), row(1), row(2), row(3), row(4), row(5), row(6), row(7)]);
        (Lanes::from_words([c[0], c[1], c[2], c[3]]), Lanes::from_words([c[4], c[5], c[6], c[7]]))
    }
}

/// A point as one vector.
#[inline]
#[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
pub(crate) fn row(point: &Affine) -> Limb {
    // SAFETY: `Affine` is 64 bytes, aligned to 64.
    unsafe { _mm512_load_si512(std::ptr::from_ref(point).cast()) }
}

/// Writes the terms of sums `first..first + 8` of a job. Lanes beyond its end repeat its last sum.
#[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
pub(crate) fn recode(geometry: Geometry, job: &Job<'_>, first: usize, mut out: &mut [VectorTerm]) {
    for (slot, &class) in job.classes.iter().enumerate() {
        let operands = std::array::from_fn(|lane| {
            let sum = (first + lane).min(job.len() - 1);
            job.sum(sum)[slot]
        });
        let (terms, rest) = out.split_at_mut(geometry.terms(class));
        recode_operands(geometry, class, &operands, terms);
        out = rest;
    }
    debug_assert!(out.is_empty());
}

/// The vector form of [`Geometry::recode`].
#[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
fn recode_operands(geometry: Geometry, class: Class, operands: &[Summand; LANES], out: &mut [VectorTerm]) {
    let words = |word: [u64; LANES]| -> Limb {
        // SAFETY: eight words are 64 bytes; the unaligned load asks for nothing more.
        unsafe { _mm512_loadu_si512(word.as_ptr().cast()) }
    };
    let zero = _mm512_setzero_si512();
    let limb = |i: usize| words(operands.map(|operand| operand.limbs[i]));
    let limbs = [limb(0), limb(1), limb(2), limb(3), zero];
    let sides = words(operands.map(|operand| operand.side as u64));
    // Products of a 0 or 1 and a number below 2^32.
    let side_base = _mm512_mul_epu32(sides, all(geometry.side_points() as u64));
    let bits = geometry.bits();
    let windows = geometry.windows_read(class);
    for (window, term) in out[..windows].iter_mut().enumerate() {
        let offset = window as u32 * bits;
        let (i, shift) = ((offset / 64) as usize, all(u64::from(offset % 64)));
        let word = _mm512_shrdv_epi64(limbs[i], limbs[i + 1], shift);
        let digit = _mm512_and_si512(word, all((1 << bits) - 1));
        let (digit, negated) = if window == geometry.count() - 1 {
            (digit, 0)
        } else {
            let negated = _mm512_testn_epi64_mask(digit, all(1 << (bits - 1)));
            let entry = all((1 << (bits - 1)) - 1);
            (_mm512_and_si512(_mm512_mask_xor_epi64(digit, negated, digit, entry), entry), negated)
        };
        let base = _mm512_add_epi64(side_base, all((window * geometry.signed_points()) as u64));
        *term = VectorTerm { entries: narrow(_mm512_add_epi64(base, digit)), negated };
    }
    if class != Class::Full {
        let entries = operands.map(|operand| geometry.constant(operand.side, class) as u32);
        out[windows] = VectorTerm { entries, negated: 0 };
    }
}

#[inline]
#[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
fn narrow(x: Limb) -> [u32; LANES] {
    let mut out = [0; LANES];
    // SAFETY: eight narrowed words are 32 bytes; the unaligned store asks for nothing more.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm512_cvtepi64_epi32(x)) };
    out
}
