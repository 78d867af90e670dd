#![doc = include_str!("README.md")]
#![allow(
    unsafe_code,
    reason = "the one room for it: vector intrinsics, prefetch, huge pages; each with its SAFETY comment"
)]

// Reading order: windows and curve say what is computed, table, job and sum how it is fed, portable is the
// plain computation, ifma the fast one.
mod contribution;
mod curve;
mod engine;
mod field;
mod hasher;
mod huge;
mod invert;
mod job;
mod platform;
mod portable;
mod poseidon;
mod reference;
mod sum;
mod table;
mod textbook;
mod width;
mod windows;

#[cfg(target_arch = "x86_64")]
mod ifma;

#[cfg(test)]
mod tests;

pub use contribution::{ChangedNode, Contribution, Side};
pub use engine::Engine;
pub use hasher::Hasher;
pub use platform::Platform;
pub(crate) use platform::prefetch;
pub use reference::StarknetCrypto;
pub use width::{TableWidth, WidthInUse, configure};

use field::Fp;
use starknet_types_core::felt::Felt;

/// A felt's number in 64-bit limbs, least significant first.
pub(crate) fn to_limbs(felt: &Felt) -> [u64; 4] {
    Fp::from_felt(felt).to_canonical()
}

/// The felt of a number below p, in limbs as [`to_limbs`] gives them.
pub(crate) fn from_limbs(limbs: [u64; 4]) -> Felt {
    Fp::from_canonical(limbs).to_felt()
}

/// The engine of this crate, on the fastest backend the machine has and with the process's table width.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Bulk;

impl Bulk {
    fn engine(self) -> Engine {
        Engine::new(Platform::detect(), width::width())
    }
}

impl Hasher for Bulk {
    fn name(&self) -> &'static str {
        self.engine().name()
    }
    fn pedersen_many(&self, pairs: &[[Felt; 2]], out: &mut [Felt]) {
        self.engine().pedersen_many(pairs, out);
    }
    fn poseidon_many(&self, pairs: &[[Felt; 2]], out: &mut [Felt]) {
        self.engine().poseidon_many(pairs, out);
    }
    fn contributions(&self, operands: &[(Side, Felt)], out: &mut [Contribution]) {
        self.engine().contributions(operands, out);
    }
    fn join_many(&self, pairs: &[(Contribution, Contribution)], out: &mut [Felt]) {
        self.engine().join_many(pairs, out);
    }
}

/// Builds the table of [`Bulk`] now, some 100 ms of work, instead of at the first hash.
pub fn warm_up() {
    Bulk.engine().warm_up();
}

/// The Pedersen hash of one pair.
///
/// ```
/// use flagstone_core::hash;
/// use starknet_types_core::felt::Felt;
/// assert_eq!(hash::pedersen(&Felt::ONE, &Felt::TWO), starknet_crypto::pedersen_hash(&Felt::ONE, &Felt::TWO));
/// ```
pub fn pedersen(left: &Felt, right: &Felt) -> Felt {
    Bulk.engine().pedersen(left, right)
}

/// The Poseidon hash of one pair.
pub fn poseidon(left: &Felt, right: &Felt) -> Felt {
    poseidon::poseidon(left, right)
}

/// The Pedersen hash of each pair, on this thread. More pairs are cheaper per pair, up to some hundred.
///
/// ```
/// use flagstone_core::hash;
/// use starknet_types_core::felt::Felt;
/// let pairs = [[Felt::ONE, Felt::TWO], [Felt::THREE, Felt::ZERO]];
/// let mut out = [Felt::ZERO; 2];
/// hash::pedersen_many(&pairs, &mut out);
/// assert_eq!(out[1], hash::pedersen(&Felt::THREE, &Felt::ZERO));
/// ```
///
/// # Panics
/// If `pairs` and `out` differ in length.
pub fn pedersen_many(pairs: &[[Felt; 2]], out: &mut [Felt]) {
    Bulk.pedersen_many(pairs, out);
}

/// The Poseidon hash of each pair, on this thread.
///
/// # Panics
/// If `pairs` and `out` differ in length.
pub fn poseidon_many(pairs: &[[Felt; 2]], out: &mut [Felt]) {
    Bulk.poseidon_many(pairs, out);
}

/// The Poseidon hash of a sequence of any length. It is one chain of permutations, so it gains nothing
/// from lanes.
pub fn poseidon_hash_many(inputs: &[Felt]) -> Felt {
    poseidon::poseidon_hash_many(inputs)
}

/// The contribution of each operand on its side, on this thread.
///
/// ```
/// use flagstone_core::hash::{self, Contribution, Side};
/// use starknet_types_core::felt::Felt;
/// let mut kept = [Contribution::of_zero(Side::Left); 2];
/// hash::contributions(&[(Side::Left, Felt::ONE), (Side::Right, Felt::TWO)], &mut kept);
/// let mut out = [Felt::ZERO];
/// hash::join_many(&[(kept[0], kept[1])], &mut out);
/// assert_eq!(out[0], hash::pedersen(&Felt::ONE, &Felt::TWO));
/// ```
///
/// # Panics
/// If `operands` and `out` differ in length.
pub fn contributions(operands: &[(Side, Felt)], out: &mut [Contribution]) {
    Bulk.contributions(operands, out);
}

/// The Pedersen hash of each pair of contributions, one of each side, on this thread.
///
/// # Panics
/// If `pairs` and `out` differ in length.
pub fn join_many(pairs: &[(Contribution, Contribution)], out: &mut [Felt]) {
    Bulk.join_many(pairs, out);
}

/// The Pedersen hash of each changed node, and the changed child's new contribution, on this thread.
///
/// # Panics
/// If the three slices differ in length.
pub fn pedersen_changed(nodes: &[ChangedNode], fresh: &mut [Contribution], out: &mut [Felt]) {
    Bulk.pedersen_changed(nodes, fresh, out);
}
