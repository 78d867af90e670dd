//! Contributions by textbook scalar multiplication, one at a time: for hashers that have no quicker way.

use super::contribution::{Contribution, Side};
use super::curve::Affine;
use super::field::Fp;
use starknet_curve::curve_params;
use starknet_types_core::curve::{AffinePoint, ProjectivePoint};
use starknet_types_core::felt::Felt;

pub(crate) fn contributions(operands: &[(Side, Felt)], out: &mut [Contribution]) {
    assert_eq!(operands.len(), out.len(), "one output per operand");
    for ((side, felt), out) in operands.iter().zip(out) {
        *out = contribution(*side, felt);
    }
}

pub(crate) fn join_many(pairs: &[(Contribution, Contribution)], out: &mut [Felt]) {
    assert_eq!(pairs.len(), out.len(), "one output per pair");
    for ((a, b), out) in pairs.iter().zip(out) {
        *out = affine(&(projective(a) + projective(b))).0;
    }
}

/// share + low·base + high·base', the operand cut at bit 248.
fn contribution(side: Side, operand: &Felt) -> Contribution {
    let shift = lift(&curve_params::SHIFT_POINT);
    let (share, bases) = match side {
        Side::Left => (&shift + &shift, [&curve_params::PEDERSEN_P0, &curve_params::PEDERSEN_P1]),
        Side::Right => (-&shift, [&curve_params::PEDERSEN_P2, &curve_params::PEDERSEN_P3]),
    };
    let mut low = operand.to_bytes_be();
    let high = Felt::from(low[0]);
    low[0] = 0;
    let low = Felt::from_bytes_be(&low);
    let [low_base, high_base] = bases.map(lift);
    let (x, y) = affine(&(share + &low_base * low + &high_base * high));
    Contribution(Affine { x: Fp::from_felt(&x), y: Fp::from_felt(&y) })
}

fn lift(point: &AffinePoint) -> ProjectivePoint {
    ProjectivePoint::new_unchecked(point.x(), point.y(), Felt::ONE)
}

fn projective(contribution: &Contribution) -> ProjectivePoint {
    let Contribution(Affine { x, y }) = contribution;
    ProjectivePoint::new_unchecked(x.to_felt(), y.to_felt(), Felt::ONE)
}

#[expect(clippy::panic, reason = "documented: the two sides never cancel")]
fn affine(point: &ProjectivePoint) -> (Felt, Felt) {
    match point.to_affine() {
        Ok(point) => (point.x(), point.y()),
        Err(_) => panic!("contributions cancel: not one of the left and one of the right side"),
    }
}
