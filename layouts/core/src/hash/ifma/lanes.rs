//! Eight field elements side by side, for the 52-bit multiply-add of AVX-512.
//!
//! An element is five limbs of 52 bits, Montgomery with R = 2^260; limb i of eight elements is one
//! vector. 2^260 is about 512·p, and that room is what makes this fast: nothing is ever compared
//! with p until it leaves.
//!
//! Two kinds of value pass through here, both as [`Lanes`]:
//! - *factors*: every limb in [0, 2^52), so the value is in [0, 512·p). Multiplication takes only these.
//! - *loose* values: limbs are signed 64-bit numbers, the value may be negative. Sums and differences give
//!   these, and [`Lanes::lift`] turns one into a factor by adding a multiple of p and carrying.
//!
//! A product of factors a·b is in [0, p + a·b/2^260). With a = 30p and b = 2p that is below 1.12·p.

use crate::hash::field::{Fp, P3};
use std::arch::x86_64::*;

/// One limb of eight elements.
pub(crate) type Limb = __m512i;

/// Eight elements, limb by limb.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Lanes(pub(crate) [Limb; 5]);

const MASK: u64 = (1 << 52) - 1;
/// p = 1 + P_LIMB3·2^156 + P_LIMB4·2^208.
const P_LIMB3: u64 = 17 << 36;
const P_LIMB4: u64 = 1 << 43;
const _: () = assert!(P3 == (P_LIMB4 << 16) | (P_LIMB3 >> 36));

#[inline]
#[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
pub(crate) fn all(word: u64) -> Limb {
    _mm512_set1_epi64(word as i64)
}

impl Lanes {
    /// Limbs of zero, to fill buffers with.
    pub(crate) fn zero() -> Lanes {
        // SAFETY: `Lanes` is forty integers; all bits zero is a valid value of each.
        unsafe { std::mem::zeroed() }
    }

    /// Copies vector by vector. A plain copy of 320 bytes may become a call to `memcpy`, which costs more
    /// than the arithmetic around it.
    #[inline]
    #[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
    pub(crate) fn load(&self) -> Lanes {
        let limb = |i: usize| -> Limb {
            // SAFETY: a reference to a vector is readable and aligned to 64 bytes.
            unsafe { _mm512_load_si512(&raw const self.0[i]) }
        };
        Lanes([limb(0), limb(1), limb(2), limb(3), limb(4)])
    }

    /// The counterpart of [`Lanes::load`].
    #[inline]
    #[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
    pub(crate) fn store(&mut self, value: &Lanes) {
        for i in 0..5 {
            // SAFETY: a reference to a vector is writable and aligned to 64 bytes.
            unsafe { _mm512_store_si512(&raw mut self.0[i], value.0[i]) }
        }
    }

    /// The same element in all lanes.
    #[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
    pub(crate) fn splat(limbs: [u64; 4]) -> Lanes {
        let [a, b, c, d] = limbs;
        Lanes([
            all(a & MASK),
            all((a >> 52 | b << 12) & MASK),
            all((b >> 40 | c << 24) & MASK),
            all((c >> 28 | d << 36) & MASK),
            all(d >> 16),
        ])
    }

    /// One.
    #[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
    pub(crate) fn one() -> Lanes {
        Lanes::splat(to_260(Fp::ONE))
    }

    /// 256-bit numbers as factors, unchanged.
    #[inline]
    #[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
    pub(crate) fn from_words(w: [Limb; 4]) -> Lanes {
        let mask = all(MASK);
        Lanes([
            _mm512_and_si512(w[0], mask),
            _mm512_and_si512(_mm512_shrdi_epi64::<52>(w[0], w[1]), mask),
            _mm512_and_si512(_mm512_shrdi_epi64::<40>(w[1], w[2]), mask),
            _mm512_and_si512(_mm512_shrdi_epi64::<28>(w[2], w[3]), mask),
            _mm512_srli_epi64::<16>(w[3]),
        ])
    }

    /// 256-bit numbers times 16: x·2^256 below p becomes x·2^260 below 16·p, which is a factor.
    #[inline]
    #[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
    pub(crate) fn from_words_256(w: [Limb; 4]) -> Lanes {
        let mask = all(MASK);
        Lanes([
            _mm512_and_si512(_mm512_slli_epi64::<4>(w[0]), mask),
            _mm512_and_si512(_mm512_shrdi_epi64::<48>(w[0], w[1]), mask),
            _mm512_and_si512(_mm512_shrdi_epi64::<36>(w[1], w[2]), mask),
            _mm512_and_si512(_mm512_shrdi_epi64::<24>(w[2], w[3]), mask),
            _mm512_srli_epi64::<12>(w[3]),
        ])
    }

    /// Factors as elements of the scalar field. Exact: the result is the canonical one, below p.
    #[inline]
    #[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
    pub(crate) fn scalars(&self) -> [Fp; 8] {
        // x·2^260 · 2^256 / 2^260, below 2p; then below p.
        let r = self.mul(&Lanes::splat(Fp::ONE.0));
        let reduced = Lanes([
            _mm512_sub_epi64(r.0[0], all(1)),
            r.0[1],
            r.0[2],
            _mm512_sub_epi64(r.0[3], all(P_LIMB3)),
            _mm512_sub_epi64(r.0[4], all(P_LIMB4)),
        ])
        .carry();
        let below_p = _mm512_cmplt_epi64_mask(reduced.0[4], _mm512_setzero_si512());
        let a: [Limb; 5] = [
            _mm512_mask_mov_epi64(reduced.0[0], below_p, r.0[0]),
            _mm512_mask_mov_epi64(reduced.0[1], below_p, r.0[1]),
            _mm512_mask_mov_epi64(reduced.0[2], below_p, r.0[2]),
            _mm512_mask_mov_epi64(reduced.0[3], below_p, r.0[3]),
            _mm512_mask_mov_epi64(reduced.0[4], below_p, r.0[4]),
        ];
        let words = [
            _mm512_or_si512(a[0], _mm512_slli_epi64::<52>(a[1])),
            _mm512_or_si512(_mm512_srli_epi64::<12>(a[1]), _mm512_slli_epi64::<40>(a[2])),
            _mm512_or_si512(_mm512_srli_epi64::<24>(a[2]), _mm512_slli_epi64::<28>(a[3])),
            _mm512_or_si512(_mm512_srli_epi64::<36>(a[3]), _mm512_slli_epi64::<16>(a[4])),
        ];
        let mut limbs = [[0u64; 8]; 4];
        for (limb, word) in limbs.iter_mut().zip(words) {
            // SAFETY: eight words are 64 bytes; the unaligned store asks for nothing more.
            unsafe { _mm512_storeu_si512(limb.as_mut_ptr().cast(), word) };
        }
        std::array::from_fn(|lane| Fp([limbs[0][lane], limbs[1][lane], limbs[2][lane], limbs[3][lane]]))
    }

    /// Carries signed limbs upwards. The top limb keeps what does not fit, sign and all.
    #[inline]
    #[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
    pub(crate) fn carry(&self) -> Lanes {
        let mut t = self.0;
        let mask = all(MASK);
        for i in 0..4 {
            t[i + 1] = _mm512_add_epi64(t[i + 1], _mm512_srai_epi64::<52>(t[i]));
            t[i] = _mm512_and_si512(t[i], mask);
        }
        Lanes(t)
    }

    /// A loose value plus k·p, as a factor. The caller knows that the sum is in [0, 512·p).
    #[inline]
    #[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
    pub(crate) fn lift(&self, k: u64) -> Lanes {
        let lifted = self.add_multiple(k).carry();
        debug_assert!(lifted.is_factor(), "lifted value outside [0, 512p)");
        lifted
    }

    /// x + k·p, loose.
    #[inline]
    #[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
    pub(crate) fn add_multiple(&self, k: u64) -> Lanes {
        let a = self.0;
        Lanes([
            _mm512_add_epi64(a[0], all(k)),
            a[1],
            a[2],
            _mm512_add_epi64(a[3], all(P_LIMB3 * k)),
            _mm512_add_epi64(a[4], all(P_LIMB4 * k)),
        ])
    }

    /// Whether all limbs are in [0, 2^52).
    #[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
    pub(crate) fn is_factor(&self) -> bool {
        self.0.iter().all(|&limb| _mm512_cmpgt_epu64_mask(limb, all(MASK)) == 0)
    }

    /// x + y, loose.
    #[inline]
    #[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
    pub(crate) fn add(&self, rhs: &Lanes) -> Lanes {
        let (a, b) = (&self.0, &rhs.0);
        Lanes([
            _mm512_add_epi64(a[0], b[0]),
            _mm512_add_epi64(a[1], b[1]),
            _mm512_add_epi64(a[2], b[2]),
            _mm512_add_epi64(a[3], b[3]),
            _mm512_add_epi64(a[4], b[4]),
        ])
    }

    /// x − y, loose.
    #[inline]
    #[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
    pub(crate) fn sub(&self, rhs: &Lanes) -> Lanes {
        let (a, b) = (&self.0, &rhs.0);
        Lanes([
            _mm512_sub_epi64(a[0], b[0]),
            _mm512_sub_epi64(a[1], b[1]),
            _mm512_sub_epi64(a[2], b[2]),
            _mm512_sub_epi64(a[3], b[3]),
            _mm512_sub_epi64(a[4], b[4]),
        ])
    }

    /// −x in the chosen lanes, loose.
    #[inline]
    #[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
    pub(crate) fn negate(&self, lanes: u8) -> Lanes {
        let zero = _mm512_setzero_si512();
        let a = self.0;
        Lanes([
            _mm512_mask_sub_epi64(a[0], lanes, zero, a[0]),
            _mm512_mask_sub_epi64(a[1], lanes, zero, a[1]),
            _mm512_mask_sub_epi64(a[2], lanes, zero, a[2]),
            _mm512_mask_sub_epi64(a[3], lanes, zero, a[3]),
            _mm512_mask_sub_epi64(a[4], lanes, zero, a[4]),
        ])
    }

    /// `other` in the chosen lanes, self in the rest.
    #[inline]
    #[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
    pub(crate) fn replace(&self, lanes: u8, other: &Lanes) -> Lanes {
        let (a, b) = (&self.0, &other.0);
        Lanes([
            _mm512_mask_mov_epi64(a[0], lanes, b[0]),
            _mm512_mask_mov_epi64(a[1], lanes, b[1]),
            _mm512_mask_mov_epi64(a[2], lanes, b[2]),
            _mm512_mask_mov_epi64(a[3], lanes, b[3]),
            _mm512_mask_mov_epi64(a[4], lanes, b[4]),
        ])
    }

    /// Lanes exchanged with those at distance 4, 2 or 1.
    #[inline]
    #[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
    pub(crate) fn exchange<const DISTANCE: usize>(&self) -> Lanes {
        let mut r = *self;
        for limb in &mut r.0 {
            *limb = match DISTANCE {
                4 => _mm512_shuffle_i64x2::<0x4e>(*limb, *limb),
                2 => _mm512_permutex_epi64::<0x4e>(*limb),
                1 => _mm512_shuffle_epi32::<0x4e>(*limb),
                _ => unreachable!("distances are 4, 2 and 1"),
            };
        }
        r
    }

    /// a·b as a factor.
    #[inline]
    #[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
    pub(crate) fn mul(&self, rhs: &Lanes) -> Lanes {
        self.mul_loose(rhs).carry()
    }

    /// a·b, loose but not negative.
    #[inline]
    #[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
    pub(crate) fn mul_loose(&self, rhs: &Lanes) -> Lanes {
        let mut t = empty_accumulator();
        accumulate(&mut t, self, rhs);
        reduce(t)
    }

    /// a·b + c·d as a factor, with one reduction for both.
    #[inline]
    #[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
    pub(crate) fn mul_add_mul(&self, b: &Lanes, c: &Lanes, d: &Lanes) -> Lanes {
        let mut t = empty_accumulator();
        accumulate(&mut t, self, b);
        accumulate(&mut t, c, d);
        reduce(t).carry()
    }

    /// a² as a factor.
    #[inline]
    #[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
    pub(crate) fn square(&self) -> Lanes {
        self.square_loose().carry()
    }

    /// a², loose but not negative.
    #[inline]
    #[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
    pub(crate) fn square_loose(&self) -> Lanes {
        debug_assert!(self.is_factor());
        let a = self.0;
        let mut t = [_mm512_setzero_si512(); 10];
        for i in 0..5 {
            for j in i + 1..5 {
                t[i + j] = _mm512_madd52lo_epu64(t[i + j], a[i], a[j]);
                t[i + j + 1] = _mm512_madd52hi_epu64(t[i + j + 1], a[i], a[j]);
            }
        }
        for limb in &mut t[1..9] {
            *limb = _mm512_add_epi64(*limb, *limb);
        }
        for limb in &mut t[..5] {
            *limb = _mm512_add_epi64(*limb, all(MASK));
        }
        for i in 0..5 {
            t[2 * i] = _mm512_madd52lo_epu64(t[2 * i], a[i], a[i]);
            t[2 * i + 1] = _mm512_madd52hi_epu64(t[2 * i + 1], a[i], a[i]);
        }
        reduce(t)
    }
}

/// x·2^256 → the limbs of x·2^260 mod p.
pub(crate) fn to_260(x: Fp) -> [u64; 4] {
    let mut r = x;
    for _ in 0..4 {
        r = r.add(&r);
    }
    r.0
}

/// The low five limbs start at 2^52 − 1, which is what [`reduce`] expects.
#[inline]
#[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
fn empty_accumulator() -> [Limb; 10] {
    let (zero, bias) = (_mm512_setzero_si512(), all(MASK));
    [bias, bias, bias, bias, bias, zero, zero, zero, zero, zero]
}

#[inline]
#[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
fn accumulate(t: &mut [Limb; 10], a: &Lanes, b: &Lanes) {
    debug_assert!(a.is_factor());
    debug_assert!(b.is_factor());
    let (a, b) = (a.0, b.0);
    for i in 0..5 {
        for j in 0..5 {
            t[i + j] = _mm512_madd52lo_epu64(t[i + j], a[i], b[j]);
        }
        for j in 0..5 {
            t[i + j + 1] = _mm512_madd52hi_epu64(t[i + j + 1], a[i], b[j]);
        }
    }
}

/// Divides by 2^260 modulo p.
///
/// p ≡ 1 mod 2^52, so clearing limb s takes m = −s mod 2^52 times p, and the carry out of s + m is s / 2^52
/// rounded up. With the limb stored as t = s + (2^52 − 1) both come for free: m = (2^52 − 1) − t
/// (the multiplier reads only its low 52 bits) and the carry is t >> 52. Then m·p adds to three limbs
/// above, p having only two others that are not zero.
#[inline]
#[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
fn reduce(mut t: [Limb; 10]) -> Lanes {
    let (bias, p3, p4) = (all(MASK), all(P_LIMB3), all(P_LIMB4));
    for i in 0..5 {
        let m = _mm512_sub_epi64(bias, t[i]);
        t[i + 1] = _mm512_add_epi64(t[i + 1], _mm512_srli_epi64::<52>(t[i]));
        t[i + 3] = _mm512_madd52lo_epu64(t[i + 3], m, p3);
        t[i + 4] = _mm512_madd52hi_epu64(t[i + 4], m, p3);
        t[i + 5] = _mm512_madd52hi_epu64(t[i + 5], m, p4);
        t[i + 4] = _mm512_madd52lo_epu64(t[i + 4], m, p4);
    }
    Lanes([t[5], t[6], t[7], t[8], t[9]])
}

/// The inverse of every lane, with one scalar inversion; `None` if any lane is zero.
#[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
pub(crate) fn invert(x: &Lanes) -> Option<Lanes> {
    // Products over 2, 4 and all 8 lanes; every lane of the last holds the whole product.
    let two = x.mul(&x.exchange::<4>());
    let four = two.mul(&two.exchange::<2>());
    let eight = four.mul(&four.exchange::<1>());
    let product = eight.scalars()[0];
    if product.is_zero() {
        return None;
    }
    let inverse = Lanes::splat(to_260(product.invert()));
    let of_four = inverse.mul(&four.exchange::<1>());
    let of_two = of_four.mul(&two.exchange::<2>());
    Some(of_two.mul(&x.exchange::<4>()))
}

/// The inverses of four values at once.
#[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
pub(crate) fn invert_four(x: &[Lanes; 4]) -> Option<[Lanes; 4]> {
    let (low, high) = (x[0].mul(&x[1]), x[2].mul(&x[3]));
    let inverse = invert(&low.mul(&high))?;
    let (of_low, of_high) = (inverse.mul(&high), inverse.mul(&low));
    Some([of_low.mul(&x[1]), of_low.mul(&x[0]), of_high.mul(&x[3]), of_high.mul(&x[2])])
}

/// Eight rows of eight words → eight columns.
#[inline]
#[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
pub(crate) fn transpose(r: [Limb; 8]) -> [Limb; 8] {
    // Words within pairs of rows, then 128-bit pieces within and between groups of four rows.
    let mut pairs = r;
    for i in 0..4 {
        pairs[2 * i] = _mm512_unpacklo_epi64(r[2 * i], r[2 * i + 1]);
        pairs[2 * i + 1] = _mm512_unpackhi_epi64(r[2 * i], r[2 * i + 1]);
    }
    let mut columns = r;
    for odd in 0..2 {
        let [a, b, c, d] = [pairs[odd], pairs[2 + odd], pairs[4 + odd], pairs[6 + odd]];
        let (ab_even, ab_odd) = (_mm512_shuffle_i64x2::<0x88>(a, b), _mm512_shuffle_i64x2::<0xdd>(a, b));
        let (cd_even, cd_odd) = (_mm512_shuffle_i64x2::<0x88>(c, d), _mm512_shuffle_i64x2::<0xdd>(c, d));
        columns[odd] = _mm512_shuffle_i64x2::<0x88>(ab_even, cd_even);
        columns[4 + odd] = _mm512_shuffle_i64x2::<0xdd>(ab_even, cd_even);
        columns[2 + odd] = _mm512_shuffle_i64x2::<0x88>(ab_odd, cd_odd);
        columns[6 + odd] = _mm512_shuffle_i64x2::<0xdd>(ab_odd, cd_odd);
    }
    columns
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::Platform;
    use proptest::prelude::*;

    /// All operations on eight pairs, as scalars. A factor v comes out of `scalars` as v / 2^4.
    #[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
    fn all_operations(a: &[[u64; 4]; 8], b: &[[u64; 4]; 8]) -> [[Fp; 8]; 7] {
        let gather = |rows: &[[u64; 4]; 8]| {
            let row = |i: usize| {
                let [w, x, y, z] = rows[i].map(|word| word as i64);
                _mm512_setr_epi64(w, x, y, z, 0, 0, 0, 0)
            };
            let columns = transpose([row(0), row(1), row(2), row(3), row(4), row(5), row(6), row(7)]);
            Lanes::from_words([columns[0], columns[1], columns[2], columns[3]])
        };
        let (a, b) = (gather(a), gather(b));
        let inverse = invert(&a).map_or([Fp::ZERO; 8], |inverse| inverse.scalars());
        [
            a.scalars(),
            a.mul(&b).scalars(),
            a.square().scalars(),
            a.mul_add_mul(&b, &b, &b).scalars(),
            a.sub(&b).lift(32).scalars(),
            a.negate(0b1010_0101).lift(32).scalars(),
            inverse,
        ]
    }

    fn check(a: [[u64; 4]; 8], b: [[u64; 4]; 8]) {
        if Platform::detect() == Platform::PORTABLE {
            return;
        }
        // SAFETY: the platform has just been asked.
        let got = unsafe { all_operations(&a, &b) };
        let sixteenth = Fp::from_canonical([16, 0, 0, 0]).invert();
        // A product of factors is divided by 2^260 and one of scalars by 2^256: four bits again.
        let product = |x: &Fp, y: &Fp| x.mul(y).mul(&sixteenth);
        let all_invertible = a.iter().all(|&row| !Fp(row).fold().is_zero());
        for lane in 0..8 {
            let (x, y) = (Fp(a[lane]).fold(), Fp(b[lane]).fold());
            let expected = [
                x,
                product(&x, &y),
                product(&x, &x),
                product(&x, &y).add(&product(&y, &y)),
                x.sub(&y),
                if lane % 2 == usize::from(lane >= 4) { x.neg() } else { x },
            ];
            for (operation, value) in expected.iter().enumerate() {
                assert_eq!(got[operation][lane], value.mul(&sixteenth), "operation {operation} lane {lane}");
            }
            if all_invertible {
                // v · v^-1, both as x·2^260.
                let inverse = got[6][lane];
                assert_eq!(x.mul(&sixteenth).mul(&inverse), Fp::ONE, "inverse, lane {lane}");
            }
        }
    }

    #[test]
    fn lanes_hold_at_the_largest_words() {
        let edges = [[u64::MAX; 4], [1, 0, 0, P3], [0, 0, 0, P3], [0; 4], [1, 0, 0, 0], [2, 0, 0, 2 * P3]];
        for a in edges {
            for b in edges {
                let mut lanes = [a; 8];
                lanes[3] = b;
                check(lanes, [b; 8]);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn lanes_equal_scalars(a in any::<[[u64; 4]; 8]>(), b in any::<[[u64; 4]; 8]>()) {
            check(a, b);
        }
    }
}
