//! Points of the STARK curve y² = x³ + x + β, and the protocol's Pedersen points.
//!
//! The code here is for building tables and for the one-in-never case where a fast path meets two
//! equal x; it is complete and slow. The fast paths have their own additions.

use super::field::Fp;
use starknet_curve::curve_params;
use starknet_types_core::curve::AffinePoint;

/// A finite point, coordinates in Montgomery form (R = 2^256). One cache line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C, align(64))]
pub(crate) struct Affine {
    pub(crate) x: Fp,
    pub(crate) y: Fp,
}
const _: () = assert!(size_of::<Affine>() == 64);

/// The order of the curve, prime.
const ORDER: [u64; 4] =
    [0x1e66_a241_adc6_4d2f, 0xb781_126d_cae7_b232, 0xffff_ffff_ffff_ffff, 0x0800_0000_0000_0010];

impl Affine {
    fn from_curve(point: &AffinePoint) -> Affine {
        Affine { x: Fp::from_felt(&point.x()), y: Fp::from_felt(&point.y()) }
    }

    pub(crate) fn neg(&self) -> Affine {
        Affine { x: self.x, y: self.y.neg() }
    }

    /// 2P. No point of order two exists, because the order is an odd prime.
    pub(crate) fn double(&self) -> Affine {
        let xx = self.x.square();
        let numerator = xx.add(&xx).add(&xx).add(&Fp::ONE);
        let slope = numerator.mul(&self.y.add(&self.y).invert());
        self.along(&slope, &self.x)
    }

    /// P + Q in every case; `None` is the point at infinity.
    pub(crate) fn add(&self, rhs: &Affine) -> Option<Affine> {
        if self.x != rhs.x {
            let slope = rhs.y.sub(&self.y).mul(&rhs.x.sub(&self.x).invert());
            return Some(self.along(&slope, &rhs.x));
        }
        (self.y == rhs.y).then(|| self.double())
    }

    /// The negated third point of the line through self with this slope and a second x.
    #[inline(always)]
    pub(crate) fn along(&self, slope: &Fp, other_x: &Fp) -> Affine {
        let x = slope.square().sub(&self.x).sub(other_x);
        Affine { x, y: slope.mul(&self.x.sub(&x)).sub(&self.y) }
    }

    /// The point whose double is self: ((n + 1) / 2)·P.
    pub(crate) fn half(&self) -> Affine {
        let mut scalar = ORDER;
        scalar[0] += 1;
        let shifted = |i: usize| (scalar[i] >> 1) | scalar.get(i + 1).map_or(0, |next| next << 63);
        let scalar = [shifted(0), shifted(1), shifted(2), shifted(3)];
        // Left to right from the top set bit (bit 250), so the accumulator is never infinity.
        let mut sum = *self;
        for bit in (0..250).rev() {
            sum = sum.double();
            if scalar[bit / 64] >> (bit % 64) & 1 == 1 {
                // UNWRAP: partial scalars stay between 2 and n − 2, so the sum is not ±P.
                #[expect(clippy::expect_used, reason = "see above")]
                let next = sum.add(self).expect("partial scalar is below the order");
                sum = next;
            }
        }
        sum
    }
}

/// The sum of any points, with no exceptional case; `None` is the point at infinity.
///
/// One inversion per addition: the answer to a failed fast path, not a path of its own.
pub(crate) fn sum_complete(points: impl Iterator<Item = Affine>) -> Option<Affine> {
    points.fold(None, |sum: Option<Affine>, point| match sum {
        None => Some(point),
        Some(sum) => sum.add(&point),
    })
}

/// The points of the protocol: H(l, r) = x(P0 + l_low·P1 + l_high·P2 + r_low·P3 + r_high·P4) where
/// `low` is the low 248 bits of an operand and `high` the four above.
pub(crate) struct PedersenPoints {
    pub(crate) shift: Affine,
    /// For left and right: the point of the low bits and the point of the high bits.
    pub(crate) bases: [[Affine; 2]; 2],
}

impl PedersenPoints {
    pub(crate) fn new() -> PedersenPoints {
        let point = Affine::from_curve;
        // `starknet-curve` counts from the first base: its P0 is the protocol's P1.
        PedersenPoints {
            shift: point(&curve_params::SHIFT_POINT),
            bases: [
                [point(&curve_params::PEDERSEN_P0), point(&curve_params::PEDERSEN_P1)],
                [point(&curve_params::PEDERSEN_P2), point(&curve_params::PEDERSEN_P3)],
            ],
        }
    }
}
