//! Sums of table points as a backend is asked for them.

use super::contribution::Side;
use super::curve::{Affine, sum_complete};
use super::field::Fp;
use super::table::Table;
use super::windows::{Class, Geometry, Term};
use starknet_types_core::felt::Felt;

/// One operand of a sum: its canonical limbs and the side whose points it selects.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Summand {
    pub(crate) limbs: [u64; 4],
    pub(crate) side: Side,
}

impl Summand {
    pub(crate) fn new(side: Side, felt: &Felt) -> Summand {
        Summand { limbs: Fp::from_felt(felt).to_canonical(), side }
    }
}

/// Sums of one shape. Sum i is made of `summands[i * classes.len()..][..classes.len()]`.
#[derive(Clone, Copy)]
pub(crate) struct Job<'a> {
    /// The class each operand of a sum is read as.
    pub(crate) classes: &'a [Class],
    pub(crate) summands: &'a [Summand],
}

impl<'a> Job<'a> {
    /// Number of sums.
    pub(crate) fn len(&self) -> usize {
        self.summands.len() / self.classes.len()
    }

    /// Points added per sum.
    pub(crate) fn terms(&self, geometry: Geometry) -> usize {
        self.classes.iter().map(|&class| geometry.terms(class)).sum()
    }

    pub(crate) fn sum(&self, i: usize) -> &'a [Summand] {
        &self.summands[i * self.classes.len()..][..self.classes.len()]
    }

    /// Writes the terms of sum i, as many as [`Job::terms`] says.
    #[inline]
    pub(crate) fn recode(&self, geometry: Geometry, i: usize, mut out: &mut [Term]) {
        for (summand, &class) in self.sum(i).iter().zip(self.classes) {
            let (terms, rest) = out.split_at_mut(geometry.terms(class));
            geometry.recode(summand.side, class, &summand.limbs, terms);
            out = rest;
        }
    }
}

/// Where sums go, one entry per sum of the job.
pub(crate) enum Sums<'a> {
    /// Only x, when nothing more is asked for: it saves a multiplication.
    X(&'a mut [Fp]),
    Points(&'a mut [Affine]),
}

impl Sums<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Sums::X(x) => x.len(),
            Sums::Points(points) => points.len(),
        }
    }

    #[inline(always)]
    pub(crate) fn wants_y(&self) -> bool {
        matches!(self, Sums::Points(_))
    }

    #[inline(always)]
    pub(crate) fn put(&mut self, i: usize, point: Affine) {
        match self {
            Sums::X(x) => x[i] = point.x,
            Sums::Points(points) => points[i] = point,
        }
    }

    pub(crate) fn range(&mut self, sums: std::ops::Range<usize>) -> Sums<'_> {
        match self {
            Sums::X(x) => Sums::X(&mut x[sums]),
            Sums::Points(points) => Sums::Points(&mut points[sums]),
        }
    }
}

/// Adds up the terms of one sum with complete additions: the way out when a fast path has met two
/// equal x.
///
/// # Panics
/// If the sum is the point at infinity. For operands that would be a known relation between the
/// protocol's points, and the hash itself would be undefined.
#[cold]
#[expect(clippy::panic, reason = "documented: would be a known relation between the protocol's points")]
pub(crate) fn redo(table: &Table, terms: impl Iterator<Item = Term>) -> Affine {
    match sum_complete(terms.map(|term| table.get_limbs64(term))) {
        Some(point) => point,
        None => panic!("sum of pedersen points is the point at infinity"),
    }
}
