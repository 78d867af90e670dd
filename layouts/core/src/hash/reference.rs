//! The oracle: one hash at a time through `starknet-crypto`, contributions by textbook scalar
//! multiplication, as every [`Hasher`] makes them that has no quicker way. Slow, shares no arithmetic with the
//! rest, and stays: everything quick is compared to it.

use super::hasher::Hasher;
use starknet_types_core::felt::Felt;

/// Hashing through the `starknet-crypto` crate, one pair at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StarknetCrypto;

impl Hasher for StarknetCrypto {
    fn name(&self) -> &'static str {
        "starknet-crypto"
    }

    fn pedersen_many(&self, pairs: &[[Felt; 2]], out: &mut [Felt]) {
        assert_eq!(pairs.len(), out.len(), "one output per pair");
        for ([left, right], out) in pairs.iter().zip(out) {
            *out = starknet_crypto::pedersen_hash(left, right);
        }
    }

    fn poseidon_many(&self, pairs: &[[Felt; 2]], out: &mut [Felt]) {
        assert_eq!(pairs.len(), out.len(), "one output per pair");
        for (&[left, right], out) in pairs.iter().zip(out) {
            *out = starknet_crypto::poseidon_hash(left, right);
        }
    }
}
