//! One element of the Starknet field, on any machine.
//!
//! p = 2^251 + 17·2^192 + 1. Elements are in Montgomery form with R = 2^256, least significant limb
//! first: the very limbs a [`Felt`] holds, so entering and leaving this type costs a copy. Nothing
//! here is constant-time; storage hashes are public.
//!
//! Bounds: [`Fp::mul`] and [`Fp::square`] accept any factors below 2^256 whose product is below
//! p·2^256 and return a value below p. Everything named `*_lazy` skips the reduction and leaves the
//! bound to its caller.

use starknet_types_core::felt::Felt;

/// The only limb of p besides a one at the bottom: p = 1 + P3·2^192.
pub(crate) const P3: u64 = 0x0800_0000_0000_0011;

/// An element of the field in Montgomery form, R = 2^256.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C, align(32))]
pub(crate) struct Fp(pub(crate) [u64; 4]);

/// 64×64 → (low, high).
#[inline(always)]
fn wide(a: u64, b: u64) -> (u64, u64) {
    let t = u128::from(a) * u128::from(b);
    (t as u64, (t >> 64) as u64)
}

impl Fp {
    pub(crate) const ZERO: Fp = Fp([0; 4]);
    /// R mod p.
    pub(crate) const ONE: Fp = Fp([0u64.wrapping_sub(31), u64::MAX, u64::MAX, 0x07ff_ffff_ffff_fdf0]);
    /// p itself: not an element, but what lazy sums are kept positive with.
    pub(crate) const MODULUS: Fp = Fp([1, 0, 0, P3]);
    /// R² mod p: multiplying by it enters Montgomery form.
    const R_SQUARED: Fp =
        Fp([0xffff_fd73_7e00_0401, 0x0000_0001_330f_ffff, 0xffff_ffff_ff6f_8000, 0x07ff_d4ab_5e00_8810]);

    /// The limbs of a felt, as they are. `Felt` keeps its limbs most significant first.
    #[inline(always)]
    pub(crate) fn from_felt(felt: &Felt) -> Fp {
        let [d, c, b, a] = felt.to_raw();
        let x = Fp([a, b, c, d]);
        debug_assert!(x.is_reduced(), "felt built from raw limbs above the modulus");
        x
    }

    /// The felt with these limbs.
    #[inline(always)]
    pub(crate) fn to_felt(self) -> Felt {
        debug_assert!(self.is_reduced());
        let [a, b, c, d] = self.0;
        Felt::from_raw([d, c, b, a])
    }

    /// Enters Montgomery form.
    pub(crate) fn from_canonical(limbs: [u64; 4]) -> Fp {
        Fp(limbs).mul(&Self::R_SQUARED)
    }

    /// Leaves Montgomery form: the integer in [0, p).
    #[inline]
    pub(crate) fn to_canonical(self) -> [u64; 4] {
        let [a, b, c, d] = self.0;
        reduce([a, b, c, d, 0, 0, 0, 0]).0
    }

    pub(crate) fn is_zero(&self) -> bool {
        *self == Self::ZERO
    }

    pub(crate) fn is_reduced(&self) -> bool {
        let [a, b, c, d] = self.0;
        d < P3 || (d == P3 && a == 0 && b == 0 && c == 0)
    }

    #[inline(always)]
    pub(crate) fn mul(&self, rhs: &Fp) -> Fp {
        let (a, b) = (&self.0, &rhs.0);
        let mut t = [0u64; 8];
        for i in 0..4 {
            let (l0, h0) = wide(a[i], b[0]);
            let (l1, h1) = wide(a[i], b[1]);
            let (l2, h2) = wide(a[i], b[2]);
            let (l3, h3) = wide(a[i], b[3]);
            // One row of the product, then its addition: two short carry chains run in parallel
            // where a single multiply-accumulate chain would wait for every multiplication.
            let (l1, c) = l1.carrying_add(h0, false);
            let (l2, c) = l2.carrying_add(h1, c);
            let (l3, c) = l3.carrying_add(h2, c);
            let l4 = h3 + u64::from(c);
            let mut c;
            (t[i], c) = t[i].carrying_add(l0, false);
            (t[i + 1], c) = t[i + 1].carrying_add(l1, c);
            (t[i + 2], c) = t[i + 2].carrying_add(l2, c);
            (t[i + 3], c) = t[i + 3].carrying_add(l3, c);
            t[i + 4] = l4 + u64::from(c);
        }
        reduce(t)
    }

    #[inline(always)]
    pub(crate) fn square(&self) -> Fp {
        let a = &self.0;
        // The six cross products once, doubled by a shift, then the four squares.
        let (t1, c) = wide(a[0], a[1]);
        let (t2, c) = a[0].carrying_mul(a[2], c);
        let (t3, t4) = a[0].carrying_mul(a[3], c);
        let (t3, c) = a[1].carrying_mul(a[2], t3);
        let (t4, t5) = a[1].carrying_mul_add(a[3], t4, c);
        let (t5, t6) = a[2].carrying_mul(a[3], t5);
        let doubled = [
            0,
            t1 << 1,
            (t2 << 1) | (t1 >> 63),
            (t3 << 1) | (t2 >> 63),
            (t4 << 1) | (t3 >> 63),
            (t5 << 1) | (t4 >> 63),
            (t6 << 1) | (t5 >> 63),
            t6 >> 63,
        ];
        let mut t = [0u64; 8];
        let mut c = false;
        for i in 0..4 {
            let (lo, hi) = wide(a[i], a[i]);
            (t[2 * i], c) = doubled[2 * i].carrying_add(lo, c);
            (t[2 * i + 1], c) = doubled[2 * i + 1].carrying_add(hi, c);
        }
        reduce(t)
    }

    /// Sum in [0, p).
    #[inline(always)]
    pub(crate) fn add(&self, rhs: &Fp) -> Fp {
        self.add_lazy(rhs).sub(&Self::MODULUS)
    }

    /// Difference in [0, p), for operands in [0, p] — or for any left operand below p + `rhs`.
    #[inline(always)]
    pub(crate) fn sub(&self, rhs: &Fp) -> Fp {
        let ([x0, x1, x2, x3], [y0, y1, y2, y3]) = (self.0, rhs.0);
        let (r0, b) = x0.borrowing_sub(y0, false);
        let (r1, b) = x1.borrowing_sub(y1, b);
        let (r2, b) = x2.borrowing_sub(y2, b);
        let (r3, b) = x3.borrowing_sub(y3, b);
        add_modulus_if(b, [r0, r1, r2, r3])
    }

    /// −x in [0, p).
    #[inline(always)]
    pub(crate) fn neg(&self) -> Fp {
        Fp::ZERO.sub(self)
    }

    /// Sum without reduction; the caller keeps it below 2^256.
    #[inline(always)]
    pub(crate) fn add_lazy(&self, rhs: &Fp) -> Fp {
        let ([x0, x1, x2, x3], [y0, y1, y2, y3]) = (self.0, rhs.0);
        let (r0, c) = x0.carrying_add(y0, false);
        let (r1, c) = x1.carrying_add(y1, c);
        let (r2, c) = x2.carrying_add(y2, c);
        let (r3, c) = x3.carrying_add(y3, c);
        debug_assert!(!c, "lazy sum above 2^256");
        Fp([r0, r1, r2, r3])
    }

    /// Difference without reduction; the caller keeps it non-negative.
    #[inline(always)]
    pub(crate) fn sub_lazy(&self, rhs: &Fp) -> Fp {
        let ([x0, x1, x2, x3], [y0, y1, y2, y3]) = (self.0, rhs.0);
        let (r0, b) = x0.borrowing_sub(y0, false);
        let (r1, b) = x1.borrowing_sub(y1, b);
        let (r2, b) = x2.borrowing_sub(y2, b);
        let (r3, b) = x3.borrowing_sub(y3, b);
        debug_assert!(!b, "lazy difference below zero");
        Fp([r0, r1, r2, r3])
    }

    /// 2x without reduction; the caller keeps it below 2^256.
    #[inline(always)]
    pub(crate) fn double_lazy(&self) -> Fp {
        let [a, b, c, d] = self.0;
        debug_assert!(d >> 63 == 0, "lazy double above 2^256");
        Fp([a << 1, (b << 1) | (a >> 63), (c << 1) | (b >> 63), (d << 1) | (c >> 63)])
    }

    /// Brings any value below 2^256 into [0, p).
    ///
    /// With q = x >> 251 < 32, x − q·p is x mod 2^251 less q·(17·2^192 + 1): below 2^251 < p, and
    /// above −p, so one conditional addition of p is enough.
    #[inline(always)]
    pub(crate) fn fold(&self) -> Fp {
        let [a, b, c, d] = self.0;
        let q = d >> 59;
        let (r0, w) = a.borrowing_sub(q, false);
        let (r1, w) = b.borrowing_sub(0, w);
        let (r2, w) = c.borrowing_sub(0, w);
        let (r3, w) = (d & ((1 << 59) - 1)).borrowing_sub(17 * q, w);
        add_modulus_if(w, [r0, r1, r2, r3])
    }
}

#[inline(always)]
fn add_modulus_if(condition: bool, x: [u64; 4]) -> Fp {
    let mask = u64::from(condition).wrapping_neg();
    let (r0, c) = x[0].carrying_add(mask & 1, false);
    let (r1, c) = x[1].carrying_add(0, c);
    let (r2, c) = x[2].carrying_add(0, c);
    let (r3, _) = x[3].carrying_add(mask & P3, c);
    Fp([r0, r1, r2, r3])
}

/// T/R mod p for T < p·2^256, in [0, p).
///
/// p ≡ 1 mod 2^192, so the quotient digit that clears the low 192 bits is the low 192 bits: with
/// T = U·2^192 + L, subtracting L·p leaves (U − L·P3)·2^192. One more limb goes the same way. Four
/// multiplications instead of the sixteen of a general modulus; the result may be negative, once.
#[inline(always)]
fn reduce(t: [u64; 8]) -> Fp {
    let (l0, h0) = wide(t[0], P3);
    let (l1, h1) = wide(t[1], P3);
    let (l2, h2) = wide(t[2], P3);
    let (q1, c) = l1.carrying_add(h0, false);
    let (q2, c) = l2.carrying_add(h1, c);
    let q3 = h2 + u64::from(c);
    let (u0, b) = t[3].borrowing_sub(l0, false);
    let (u1, b) = t[4].borrowing_sub(q1, b);
    let (u2, b) = t[5].borrowing_sub(q2, b);
    let (u3, b) = t[6].borrowing_sub(q3, b);
    let (u4, _) = t[7].borrowing_sub(0, b);
    let (g0, g1) = wide(u0, P3);
    let (r2, b) = u3.borrowing_sub(g0, false);
    let (r3, _) = u4.borrowing_sub(g1, b);
    // A negative U shows in the sign of the top limb, whichever of the two borrows made it.
    add_modulus_if((r3 as i64) < 0, [u1, u2, r2, r3])
}
