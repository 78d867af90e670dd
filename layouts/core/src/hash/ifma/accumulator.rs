//! Few sums: accumulators with projective denominators, which need no inversion until the end.
//!
//! x = X/ZZ and y = Y/ZZZ with ZZ³ = ZZZ². Adding an affine point takes eight multiplications and two
//! squarings, against the pipeline's six, but there are no tree levels to keep busy. Up to a few dozen
//! sums that is the better bargain; and one single sum can use all eight lanes by giving each lane
//! every eighth of its points.
//!
//! Two equal x make ZZ zero, and it stays zero: one look at the end finds every exceptional case.
//!
//! Bounds in units of p, of the state after an addition: X in (1.9, 6.2), Y below 1.3, ZZ and ZZZ
//! below 1.1. They reproduce themselves through the lifts below.

use super::lanes::{Lanes, invert};
use super::terms::{LANES, VectorTerm};
use crate::hash::curve::Affine;
use crate::hash::field::Fp;
use crate::hash::job::{Sums, redo};
use crate::hash::table::Table;
use crate::hash::windows::{TERMS_MAX, Term};

/// Eight sums in the making.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Accumulator {
    x: Lanes,
    y: Lanes,
    zz: Lanes,
    zzz: Lanes,
}

impl Accumulator {
    #[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
    fn start(table: &Table, term: &VectorTerm) -> Accumulator {
        let (x, y) = term.fetch(table);
        let one = Lanes::one();
        Accumulator { x, y: y.negate(term.negated()).lift(1), zz: one, zzz: one }
    }

    #[inline]
    #[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
    fn store(&mut self, x: &Lanes, y: &Lanes, zz: &Lanes, zzz: &Lanes) {
        self.x.store(x);
        self.y.store(y);
        self.zz.store(zz);
        self.zzz.store(zzz);
    }

    /// Adds an affine point in the chosen lanes.
    #[inline]
    #[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
    fn add(&mut self, table: &Table, term: &VectorTerm, lanes: u8) {
        let (point_x, point_y) = term.fetch(table);
        let (x, y, zz, zzz) = (self.x.load(), self.y.load(), self.zz.load(), self.zzz.load());
        let p = point_x.mul_loose(&zz).sub(&x).lift(8);
        let r = point_y.mul_loose(&zzz).negate(term.negated()).sub(&y).lift(5);
        let sum = Step { x1: x, s1: y, p, r }.finish(&zz, &zzz);
        if lanes == u8::MAX {
            self.store(&sum.x, &sum.y, &sum.zz, &sum.zzz);
        } else {
            self.store(
                &x.replace(lanes, &sum.x),
                &y.replace(lanes, &sum.y),
                &zz.replace(lanes, &sum.zz),
                &zzz.replace(lanes, &sum.zzz),
            );
        }
    }

    /// Adds another accumulator.
    #[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
    fn merge(&mut self, other: &Accumulator) {
        let (zz, zzz) = (self.zz.load(), self.zzz.load());
        let (other_zz, other_zzz) = (other.zz.load(), other.zzz.load());
        // Both points over the product of their denominators.
        let (x1, s1) = (self.x.load().mul(&other_zz), self.y.load().mul(&other_zzz));
        let p = other.x.load().mul_loose(&zz).sub(&x1).lift(3);
        let r = other.y.load().mul_loose(&zzz).sub(&s1).lift(3);
        let sum = Step { x1, s1, p, r }.finish(&zz.mul(&other_zz), &zzz.mul(&other_zzz));
        self.store(&sum.x, &sum.y, &sum.zz, &sum.zzz);
    }

    /// Adds the lanes at some distance, so that both hold the sum of both.
    #[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
    fn merge_lanes<const DISTANCE: usize>(&mut self) {
        let other = Accumulator {
            x: self.x.exchange::<DISTANCE>(),
            y: self.y.exchange::<DISTANCE>(),
            zz: self.zz.exchange::<DISTANCE>(),
            zzz: self.zzz.exchange::<DISTANCE>(),
        };
        self.merge(&other);
    }
}

/// An addition once both points have the same denominators: the first point's coordinates, and the
/// differences p in x and r in y to the second.
struct Step {
    x1: Lanes,
    s1: Lanes,
    p: Lanes,
    r: Lanes,
}

impl Step {
    #[inline]
    #[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
    fn finish(&self, zz: &Lanes, zzz: &Lanes) -> Accumulator {
        let pp = self.p.square();
        let ppp = self.p.mul(&pp);
        let q = self.x1.mul(&pp);
        let x = self.r.square_loose().sub(&ppp).sub(&q).sub(&q).lift(5);
        let minus_s1 = Lanes::zero().sub(&self.s1).lift(3);
        let y = self.r.mul_add_mul(&q.sub(&x).lift(8), &minus_s1, &ppp);
        Accumulator { x, y, zz: zz.mul(&pp), zzz: zzz.mul(&ppp) }
    }
}

/// Vectors accumulated at once; with the denominators' prefix products this bounds the stack.
const VECTORS_MAX: usize = 8;
/// Sums that [`few`] takes at most.
pub(crate) const FEW_MAX: usize = VECTORS_MAX * LANES;
/// Additions between asking for a table line and using it.
const PREFETCH_AHEAD: usize = 12;

/// Up to [`FEW_MAX`] sums, eight to a vector, with one inversion for all. `terms` holds `width` terms per
/// vector.
#[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
pub(crate) fn few(table: &Table, terms: &[VectorTerm], width: usize, sums: &mut Sums<'_>) {
    assert!(sums.len() <= FEW_MAX && terms.len() == sums.len().div_ceil(LANES) * width);
    let zero = Lanes::zero();
    let empty = Accumulator { x: zero, y: zero, zz: zero, zzz: zero };
    let mut accumulators = [empty; VECTORS_MAX];
    let accumulators = &mut accumulators[..terms.len() / width];
    for (pair, terms) in accumulators.chunks_mut(2).zip(terms.chunks(2 * width)) {
        match pair {
            [a, b] => {
                let (terms_a, terms_b) = terms.split_at(width);
                accumulate_two(table, [(a, terms_a), (b, terms_b)]);
            }
            // A vector without a partner is its own: half of its terms here, half there.
            [a] if width >= 4 => {
                let mut rest = empty;
                let (terms_a, terms_rest) = terms.split_at(width / 2);
                accumulate_two(table, [(a, terms_a), (&mut rest, terms_rest)]);
                a.merge(&rest);
            }
            [a] => accumulate_two(table, [(a, terms), (&mut empty.clone(), &terms[..1])]),
            _ => unreachable!("chunks of two"),
        }
    }
    let mut prefixes = [zero; VECTORS_MAX];
    let mut product = Lanes::one();
    for (accumulator, prefix) in accumulators.iter().zip(&mut prefixes) {
        *prefix = product;
        product = product.mul(&accumulator.zzz);
    }
    let Some(mut inverse) = invert(&product) else {
        for i in 0..sums.len() {
            let terms = &terms[i / LANES * width..][..width];
            sums.put(i, redo(table, terms.iter().map(|term| term.lane(i % LANES))));
        }
        return;
    };
    for (vector, accumulator) in accumulators.iter().enumerate().rev() {
        // 1/ZZ = (ZZ/ZZZ)².
        let of_zzz = inverse.mul(&prefixes[vector]);
        inverse = inverse.mul(&accumulator.zzz);
        let x = accumulator.x.mul(&accumulator.zz.mul(&of_zzz).square()).scalars();
        let y = if sums.wants_y() { accumulator.y.mul(&of_zzz).scalars() } else { [Fp::ZERO; LANES] };
        let first = vector * LANES;
        for (lane, place) in (first..sums.len().min(first + LANES)).enumerate() {
            sums.put(place, Affine { x: x[lane], y: y[lane] });
        }
    }
}

/// Two independent accumulations, an addition of one and an addition of the other in turn: each alone would
/// wait for its own multiplications half of the time.
#[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
fn accumulate_two(table: &Table, [(a, terms_a), (b, terms_b)]: [(&mut Accumulator, &[VectorTerm]); 2]) {
    let ask = |terms: &[VectorTerm], i: usize| {
        if let Some(term) = terms.get(i) {
            term.prefetch(table);
        }
    };
    for i in 0..PREFETCH_AHEAD {
        ask(terms_a, i);
        ask(terms_b, i);
    }
    *a = Accumulator::start(table, &terms_a[0]);
    *b = Accumulator::start(table, &terms_b[0]);
    for i in 1..terms_a.len().max(terms_b.len()) {
        ask(terms_a, i + PREFETCH_AHEAD - 1);
        ask(terms_b, i + PREFETCH_AHEAD - 1);
        if let Some(term) = terms_a.get(i) {
            a.add(table, term, u8::MAX);
        }
        if let Some(term) = terms_b.get(i) {
            b.add(table, term, u8::MAX);
        }
    }
}

/// One sum of at least eight terms, spread over the lanes: lane i adds up terms i, i + 8, i + 16, …
#[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
pub(crate) fn single(table: &Table, terms: &[Term]) -> Affine {
    const ROUNDS_MAX: usize = (2 * TERMS_MAX).div_ceil(LANES);
    assert!(terms.len() >= LANES);
    let mut rounds = [VectorTerm::default(); ROUNDS_MAX];
    for (i, &term) in terms.iter().enumerate() {
        rounds[i / LANES].set_lane(i % LANES, term);
        table.prefetch(term);
    }
    let (whole, partial) = (terms.len() / LANES, terms.len() % LANES);
    let mut sum = Accumulator::start(table, &rounds[0]);
    for round in &rounds[1..whole] {
        sum.add(table, round, u8::MAX);
    }
    if partial > 0 {
        // Lanes without a term compute something with entry zero, and drop it.
        sum.add(table, &rounds[whole], (1 << partial) - 1);
    }
    sum.merge_lanes::<4>();
    sum.merge_lanes::<2>();
    sum.merge_lanes::<1>();
    let [x, y, zz, zzz] =
        [&sum.x, &sum.y, &sum.zz, &sum.zzz].map(|coordinate| coordinate.load().scalars()[0]);
    if zz.is_zero() {
        return redo(table, terms.iter().copied());
    }
    let inverse = zzz.invert();
    Affine { x: x.mul(&zz.mul(&inverse).square()), y: y.mul(&inverse) }
}
