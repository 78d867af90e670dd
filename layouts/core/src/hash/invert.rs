//! Modular inversion by division steps (Bernstein and Yang, "Fast constant-time gcd computation and
//! modular inversion"), in variable time.
//!
//! The pair (f, g) starts as (p, x) and is driven to (±1, 0) by steps that look only at low bits, so 62
//! of them can be run on one machine word and applied to the full numbers as a 2×2 matrix. The
//! pair (d, e) goes through the same matrices modulo p and ends with d = ±1/x. Against
//! exponentiation this takes 1.1 µs in place of 2.8 µs.
//!
//! Numbers are five signed limbs of 62 bits; only the top one carries the sign.

use super::field::{Fp, P3};

const LIMB_BITS: u32 = 62;
const LIMB_MASK: i64 = (1 << LIMB_BITS) - 1;
/// p in 62-bit limbs. Its lowest limb is 1, and so is its inverse modulo 2^62.
const P: [i64; 5] = [1, 0, 0, ((P3 << 6) & LIMB_MASK as u64) as i64, (P3 >> 56) as i64];
const _: () = assert!(P[0] == 1 && P[1] == 0 && P[2] == 0);

/// 2^62 times the matrix of 62 division steps.
struct Matrix {
    u: i64,
    v: i64,
    q: i64,
    r: i64,
}

impl Fp {
    /// 1/x, and 0 for 0.
    pub(crate) fn invert(&self) -> Fp {
        // (xR)^-1 · R³ / R = x^-1 · R.
        const R_CUBED: Fp =
            Fp([0xcc71_77d1_406d_f18e, 0x7545_7066_77ff_cc06, 0xf47d_84f8_3630_0018, 0x038e_5f79_873c_0a6d]);
        Fp(invert(self.0)).mul(&R_CUBED)
    }
}

/// x^-1 mod p for x < p; zero for zero.
fn invert(x: [u64; 4]) -> [u64; 4] {
    debug_assert!(Fp(x).is_reduced());
    let mut d = [0i64; 5];
    let mut e = [1i64, 0, 0, 0, 0];
    let mut f = P;
    let mut g = to_limbs(x);
    let mut eta = -1i64;
    let mut len = 5;
    // Bernstein and Yang bound the steps for 256-bit inputs by 741: twelve rounds of 62.
    for _ in 0..12 {
        let m = division_steps(&mut eta, f[0] as u64, g[0] as u64);
        update_modular(&mut d, &mut e, &m);
        update_exact(&mut f[..len], &mut g[..len], &m);
        if g[..len].iter().all(|&limb| limb == 0) {
            break;
        }
        len = shorten(&mut f, &mut g, len);
    }
    debug_assert!(g[..len].iter().all(|&limb| limb == 0));
    normalise(d, f[len - 1] < 0)
}

fn to_limbs(x: [u64; 4]) -> [i64; 5] {
    let mask = LIMB_MASK as u64;
    [
        (x[0] & mask) as i64,
        (((x[0] >> 62) | (x[1] << 2)) & mask) as i64,
        (((x[1] >> 60) | (x[2] << 4)) & mask) as i64,
        (((x[2] >> 58) | (x[3] << 6)) & mask) as i64,
        (x[3] >> 56) as i64,
    ]
}

/// Runs 62 steps on the low words, taking runs of zero bits at once and cancelling up to six bits
/// of g per subtraction. `eta` is the negated step counter of the paper.
#[inline(always)]
fn division_steps(eta: &mut i64, f0: u64, g0: u64) -> Matrix {
    let (mut u, mut v, mut q, mut r) = (1u64, 0u64, 0u64, 1u64);
    let (mut f, mut g) = (f0, g0);
    let mut left = LIMB_BITS;
    loop {
        // The sentinel bit keeps the count within the steps that are left.
        let zeros = (g | (u64::MAX << left)).trailing_zeros();
        g >>= zeros;
        u <<= zeros;
        v <<= zeros;
        *eta -= i64::from(zeros);
        left -= zeros;
        if left == 0 {
            break;
        }
        debug_assert!(f & 1 == 1 && g & 1 == 1);
        let swap = *eta < 0;
        if swap {
            *eta = -*eta;
            (f, g) = (g, f.wrapping_neg());
            (u, q) = (q, u.wrapping_neg());
            (v, r) = (r, v.wrapping_neg());
        }
        // The multiple w of f that clears the low bits of g; −1/f by one or two Newton steps.
        let bits = left.min((*eta + 1).min(64) as u32);
        let w = if swap {
            let mask = (u64::MAX >> (64 - bits)) & 63;
            f.wrapping_mul(g).wrapping_mul(f.wrapping_mul(f).wrapping_sub(2)) & mask
        } else {
            let mask = (u64::MAX >> (64 - bits)) & 15;
            let inverse = f.wrapping_add((f.wrapping_add(1) & 4) << 1);
            inverse.wrapping_neg().wrapping_mul(g) & mask
        };
        g = g.wrapping_add(f.wrapping_mul(w));
        q = q.wrapping_add(u.wrapping_mul(w));
        r = r.wrapping_add(v.wrapping_mul(w));
    }
    Matrix { u: u as i64, v: v as i64, q: q as i64, r: r as i64 }
}

/// (f, g) ← M·(f, g) / 2^62; the division is exact.
#[inline(always)]
fn update_exact(f: &mut [i64], g: &mut [i64], m: &Matrix) {
    let (mut cf, mut cg) = (0i128, 0i128);
    for i in 0..f.len() {
        let (fi, gi) = (i128::from(f[i]), i128::from(g[i]));
        cf += i128::from(m.u) * fi + i128::from(m.v) * gi;
        cg += i128::from(m.q) * fi + i128::from(m.r) * gi;
        if i > 0 {
            f[i - 1] = cf as i64 & LIMB_MASK;
            g[i - 1] = cg as i64 & LIMB_MASK;
        }
        cf >>= LIMB_BITS;
        cg >>= LIMB_BITS;
    }
    let top = f.len() - 1;
    f[top] = cf as i64;
    g[top] = cg as i64;
}

/// (d, e) ← M·(d, e) / 2^62 mod p, both kept in (−2p, p).
///
/// A multiple of p makes the low 62 bits vanish. Since p ≡ 1 mod 2^62 that multiple is just the
/// negated low limb; the two middle limbs of p are zero and skipped.
#[inline(always)]
fn update_modular(d: &mut [i64; 5], e: &mut [i64; 5], m: &Matrix) {
    let (sign_d, sign_e) = (d[4] >> 63, e[4] >> 63);
    let mut kd = (m.u & sign_d) + (m.v & sign_e);
    let mut ke = (m.q & sign_d) + (m.r & sign_e);
    let (d0, e0) = (i128::from(d[0]), i128::from(e[0]));
    let mut cd = i128::from(m.u) * d0 + i128::from(m.v) * e0;
    let mut ce = i128::from(m.q) * d0 + i128::from(m.r) * e0;
    kd -= (cd as i64).wrapping_add(kd) & LIMB_MASK;
    ke -= (ce as i64).wrapping_add(ke) & LIMB_MASK;
    cd = (cd + i128::from(kd)) >> LIMB_BITS;
    ce = (ce + i128::from(ke)) >> LIMB_BITS;
    for i in 1..5 {
        let (di, ei) = (i128::from(d[i]), i128::from(e[i]));
        cd += i128::from(m.u) * di + i128::from(m.v) * ei;
        ce += i128::from(m.q) * di + i128::from(m.r) * ei;
        if i >= 3 {
            cd += i128::from(P[i]) * i128::from(kd);
            ce += i128::from(P[i]) * i128::from(ke);
        }
        d[i - 1] = cd as i64 & LIMB_MASK;
        e[i - 1] = ce as i64 & LIMB_MASK;
        cd >>= LIMB_BITS;
        ce >>= LIMB_BITS;
    }
    d[4] = cd as i64;
    e[4] = ce as i64;
}

/// Drops the top limb of f and g once both hold nothing but sign there.
#[inline(always)]
fn shorten(f: &mut [i64; 5], g: &mut [i64; 5], len: usize) -> usize {
    let (ft, gt) = (f[len - 1], g[len - 1]);
    let only_sign = (ft ^ (ft >> 63)) | (gt ^ (gt >> 63)) == 0;
    if len < 2 || !only_sign {
        return len;
    }
    f[len - 2] |= ((ft as u64) << LIMB_BITS) as i64;
    g[len - 2] |= ((gt as u64) << LIMB_BITS) as i64;
    len - 1
}

/// ±d in (−2p, p) → the canonical representative as 64-bit limbs.
fn normalise(mut d: [i64; 5], negate: bool) -> [u64; 4] {
    let add_p_if_negative = |d: &mut [i64; 5]| {
        let mask = d[4] >> 63;
        for i in 0..5 {
            d[i] += P[i] & mask;
        }
    };
    let carry = |d: &mut [i64; 5]| {
        for i in 0..4 {
            d[i + 1] += d[i] >> LIMB_BITS;
            d[i] &= LIMB_MASK;
        }
    };
    add_p_if_negative(&mut d);
    if negate {
        d.iter_mut().for_each(|limb| *limb = -*limb);
    }
    carry(&mut d);
    add_p_if_negative(&mut d);
    carry(&mut d);
    let r = d.map(|limb| limb as u64);
    [r[0] | (r[1] << 62), (r[1] >> 2) | (r[2] << 60), (r[2] >> 4) | (r[3] << 58), (r[3] >> 6) | (r[4] << 56)]
}
