//! What a hasher does.

use super::contribution::{ChangedNode, Contribution, Side};
use super::textbook;
use starknet_types_core::felt::Felt;

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
        textbook::contributions(operands, out);
    }

    /// The Pedersen hash of each pair of contributions, one of the left and one of the right side, in
    /// either order.
    fn join_many(&self, pairs: &[(Contribution, Contribution)], out: &mut [Felt]) {
        textbook::join_many(pairs, out);
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
