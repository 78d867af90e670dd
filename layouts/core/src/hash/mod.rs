#![doc = include_str!("README.md")]
#![allow(
    unsafe_code,
    reason = "the one room for it: vector intrinsics, prefetch, huge pages; each with its SAFETY comment"
)]

// Reading order: windows and curve say what is computed, table and sum how it is fed, portable is the
// plain computation, ifma the fast one.
mod engine;
mod reference;

mod curve;
mod field;
mod huge;
mod invert;
mod platform;
mod portable;
mod poseidon;
mod sum;
mod table;
mod windows;

#[cfg(target_arch = "x86_64")]
mod ifma;

#[cfg(test)]
mod tests;

pub use engine::Engine;
pub use platform::Platform;
pub(crate) use platform::prefetch;
pub use reference::StarknetCrypto;

use curve::Affine;
use field::Fp;
use starknet_types_core::felt::Felt;
use std::fmt;
use std::sync::OnceLock;

/// A felt's number in 64-bit limbs, least significant first.
pub(crate) fn to_limbs(felt: &Felt) -> [u64; 4] {
    Fp::from_felt(felt).to_canonical()
}

/// The felt of a number below p, in limbs as [`to_limbs`] gives them.
pub(crate) fn from_limbs(limbs: [u64; 4]) -> Felt {
    Fp::from_canonical(limbs).to_felt()
}

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
pub struct Contribution(Affine);
const _: () = assert!(size_of::<Contribution>() == 64);

impl Contribution {
    /// The contribution of a zero operand, known without hashing.
    pub fn of_zero(side: Side) -> Contribution {
        static OF_ZERO: OnceLock<[Contribution; 2]> = OnceLock::new();
        OF_ZERO.get_or_init(|| {
            let shift = curve::PedersenPoints::new().shift;
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

/// Hashing as the tries ask for it: many at once.
///
/// All calls are single-threaded and may be made from many threads; split the slices to use more cores.
/// Every implementation gives the same hashes and the same contributions.
///
/// # Panics
/// All calls panic if input and output differ in length.
pub trait Hasher: Send + Sync {
    /// A short name for logs and benches.
    fn name(&self) -> &'static str;

    /// The Pedersen hash of each pair.
    fn pedersen_many(&self, pairs: &[[Felt; 2]], out: &mut [Felt]);

    /// The Poseidon hash of each pair.
    fn poseidon_many(&self, pairs: &[[Felt; 2]], out: &mut [Felt]);

    /// The contribution of each operand on its side. Sides may be mixed freely.
    fn contributions(&self, operands: &[(Side, Felt)], out: &mut [Contribution]) {
        reference::contributions(operands, out);
    }

    /// The Pedersen hash of each pair of contributions, one of the left and one of the right side, in
    /// either order.
    fn join_many(&self, pairs: &[(Contribution, Contribution)], out: &mut [Felt]) {
        reference::join_many(pairs, out);
    }

    /// The Pedersen hash of each changed node, and its changed child's new contribution in `fresh` for
    /// the caller to keep.
    fn pedersen_changed(&self, nodes: &[ChangedNode], fresh: &mut [Contribution], out: &mut [Felt]) {
        assert_eq!(nodes.len(), out.len(), "one output per node");
        assert_eq!(nodes.len(), fresh.len(), "one fresh contribution per node");
        // Bounds the memory of a call; large enough for the batches to run at full speed.
        const NODES: usize = 2048;
        let (mut operands, mut pairs) = (Vec::new(), Vec::new());
        let outputs = fresh.chunks_mut(NODES).zip(out.chunks_mut(NODES));
        for (nodes, (fresh, out)) in nodes.chunks(NODES).zip(outputs) {
            operands.clear();
            operands.extend(nodes.iter().map(|node| (node.side, node.changed)));
            self.contributions(&operands, fresh);
            pairs.clear();
            pairs.extend(nodes.iter().zip(fresh.iter()).map(|(node, &fresh)| (fresh, node.sibling)));
            self.join_many(&pairs, out);
        }
    }
}

/// The engine of this crate, on the fastest backend the machine has and with the process's table width.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Bulk;

impl Bulk {
    fn engine(self) -> Engine {
        Engine::new(Platform::detect(), width())
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

/// Bits per window of the Pedersen tables: memory against speed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum TableWidth {
    /// 5.5 MiB, 42 points per hash: for small machines.
    Bits12,
    /// 19.0 MiB, 36 points per hash.
    #[default]
    Bits14,
}

impl TableWidth {
    pub(crate) const fn bits(self) -> u32 {
        match self {
            TableWidth::Bits12 => 12,
            TableWidth::Bits14 => 14,
        }
    }
}

/// [`configure`] came after the first hash, or twice with different widths.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WidthInUse {
    /// The width asked for.
    pub asked: TableWidth,
    /// The width in use, to the end of the process.
    pub in_use: TableWidth,
}

impl fmt::Display for WidthInUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "table width in use: asked for {}-bit windows, process hashes with {}-bit windows; configure before the first hash",
            self.asked.bits(),
            self.in_use.bits()
        )
    }
}

impl std::error::Error for WidthInUse {}

static WIDTH: OnceLock<TableWidth> = OnceLock::new();

fn width() -> TableWidth {
    *WIDTH.get_or_init(TableWidth::default)
}

/// Chooses the table width of the process. Call it before the first hash.
///
/// # Errors
/// If another width is already in use.
pub fn configure(asked: TableWidth) -> Result<(), WidthInUse> {
    let in_use = *WIDTH.get_or_init(|| asked);
    if in_use == asked { Ok(()) } else { Err(WidthInUse { asked, in_use }) }
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
