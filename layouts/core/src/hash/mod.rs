//! Hashing, behind a batch seam.
//!
//! Everything that hashes in quantity hands over a whole batch, so that an implementation may share work between the
//! hashes of one call. [`StarknetCrypto`] does one after another with the `starknet-crypto` crate; it is the oracle
//! that any faster engine must equal.

use crate::felt::Felt;

/// Hashes batches of pairs. Implementations are pure functions of their input.
pub trait Hasher: Send + Sync {
    /// Name for reports.
    fn name(&self) -> &'static str;

    /// `out[i] = Pedersen(pairs[i][0], pairs[i][1])`.
    ///
    /// # Panics
    /// If the lengths differ.
    fn pedersen_many(&self, pairs: &[[Felt; 2]], out: &mut [Felt]);

    /// `out[i] = Poseidon(pairs[i][0], pairs[i][1])`, the two-to-one form.
    ///
    /// # Panics
    /// If the lengths differ.
    fn poseidon_many(&self, pairs: &[[Felt; 2]], out: &mut [Felt]);
}

/// One hash at a time through the `starknet-crypto` crate.
#[derive(Debug, Clone, Copy, Default)]
pub struct StarknetCrypto;

impl Hasher for StarknetCrypto {
    fn name(&self) -> &'static str {
        "starknet-crypto"
    }

    fn pedersen_many(&self, pairs: &[[Felt; 2]], out: &mut [Felt]) {
        assert_eq!(pairs.len(), out.len(), "one output for each pair");
        for (out, [left, right]) in out.iter_mut().zip(pairs) {
            *out = starknet_crypto::pedersen_hash(left, right);
        }
    }

    fn poseidon_many(&self, pairs: &[[Felt; 2]], out: &mut [Felt]) {
        assert_eq!(pairs.len(), out.len(), "one output for each pair");
        for (out, [left, right]) in out.iter_mut().zip(pairs) {
            *out = starknet_crypto::poseidon_hash(*left, *right);
        }
    }
}

/// Poseidon over any number of felts.
pub fn poseidon_hash_many(inputs: &[Felt]) -> Felt {
    starknet_crypto::poseidon_hash_many(inputs)
}
