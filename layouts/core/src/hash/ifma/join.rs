//! Contributions joined to hashes, eight at a time.

use super::lanes::{Lanes, invert, transpose};
use super::terms::{LANES, row};
use crate::hash::contribution::Contribution;
use crate::hash::field::Fp;
use crate::hash::portable::join_complete;

/// Pairs per shared inversion; the denominators' prefix products stay in the first-level cache.
pub(crate) const JOINS_MAX: usize = 256;

/// x of A + B for each of up to [`JOINS_MAX`] pairs.
///
/// Coordinates of contributions are x·2^256; times 16 they are x·2^260 below 16p, and no multiplication
/// is spent on the change of form.
#[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
pub(crate) fn join(pairs: &[(Contribution, Contribution)], out: &mut [Fp]) {
    assert!(pairs.len() == out.len() && pairs.len() <= JOINS_MAX);
    let mut prefixes = [Lanes::zero(); JOINS_MAX / LANES];
    let vectors = pairs.len().div_ceil(LANES);
    let mut product = Lanes::one();
    for (vector, prefix) in prefixes.iter_mut().enumerate().take(vectors) {
        let (a, b) = load(pairs, vector * LANES);
        prefix.store(&product);
        product = product.mul(&b.0.sub(&a.0).lift(16));
    }
    let Some(mut inverse) = invert(&product) else {
        for ((a, b), x) in pairs.iter().zip(out) {
            *x = join_complete(a, b);
        }
        return;
    };
    for vector in (0..vectors).rev() {
        let ((x1, y1), (x2, y2)) = load(pairs, vector * LANES);
        let slope = y2.sub(&y1).lift(16).mul(&inverse.mul(&prefixes[vector].load()));
        inverse = inverse.mul(&x2.sub(&x1).lift(16));
        let x = slope.square_loose().sub(&x1).sub(&x2).lift(32).scalars();
        let first = vector * LANES;
        for (out, x) in out[first..].iter_mut().zip(x) {
            *out = x;
        }
    }
}

/// Coordinates of eight pairs from `first` on, as factors below 16p. Lanes past the end repeat the last
/// pair.
#[inline]
#[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
fn load(pairs: &[(Contribution, Contribution)], first: usize) -> ((Lanes, Lanes), (Lanes, Lanes)) {
    let pair = |lane: usize| &pairs[(first + lane).min(pairs.len() - 1)];
    let a = |lane: usize| row(&pair(lane).0.0);
    let b = |lane: usize| row(&pair(lane).1.0);
    let a = transpose([a(0), a(1), a(2), a(3), a(4), a(5), a(6), a(7)]);
    let b = transpose([b(0), b(1), b(2), b(3), b(4), b(5), b(6), b(7)]);
    (
        (Lanes::from_words_256([a[0], a[1], a[2], a[3]]), Lanes::from_words_256([a[4], a[5], a[6], a[7]])),
        (Lanes::from_words_256([b[0], b[1], b[2], b[3]]), Lanes::from_words_256([b[4], b[5], b[6], b[7]])),
    )
}
