//! What one operand adds to a Pedersen hash, and on which side.

use super::curve::{Affine, PedersenPoints};
use starknet_types_core::felt::Felt;
use std::fmt;
use std::sync::OnceLock;

/// The child's place in a pair.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Side {
    /// The first operand of the hash.
    Left = 0,
    /// The second operand of the hash.
    Right = 1,
}

impl Side {
    /// The side of the sibling.
    pub fn other(self) -> Side {
        match self {
            Side::Left => Side::Right,
            Side::Right => Side::Left,
        }
    }
}

/// What one operand adds to a Pedersen hash: H(l, r) = x(A(l) + B(r)), and this is A(l) or B(r).
///
/// It depends on the operand and on the side it stands on, and on nothing else. A trie node that keeps the
/// contributions of its children pays for one operand when one child changes.
///
/// The protocol's shift point P0 is shared out between the sides, 2·P0 in A and −P0 in B, because
/// without a share B(0) would be the point at infinity. Two contributions of the same side do not
/// make a hash.
///
/// Always a finite point, 64 bytes in memory. It has no byte form on purpose: it is cheap to make
/// again, and a wrong one read from somewhere would give a wrong hash.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Contribution(pub(crate) Affine);
const _: () = assert!(size_of::<Contribution>() == 64);

impl Contribution {
    /// The contribution of a zero operand, known without hashing.
    pub fn of_zero(side: Side) -> Contribution {
        static OF_ZERO: OnceLock<[Contribution; 2]> = OnceLock::new();
        OF_ZERO.get_or_init(|| {
            let shift = PedersenPoints::new().shift;
            [Contribution(shift.double()), Contribution(shift.neg())]
        })[side as usize]
    }
}

impl fmt::Debug for Contribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Contribution(Affine { x, y }) = self;
        f.debug_struct("Contribution").field("x", &x.to_felt()).field("y", &y.to_felt()).finish()
    }
}

/// A node of which one child changed and the other's contribution was kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChangedNode {
    /// Where the changed child stands.
    pub side: Side,
    /// The changed child's hash.
    pub changed: Felt,
    /// The other child's contribution, for the other side.
    pub sibling: Contribution,
}
