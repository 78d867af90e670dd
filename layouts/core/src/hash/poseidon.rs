//! The Hades permutation of Starknet's Poseidon hash: its constants, and one state at a time.
//!
//! A state is three elements. Eight full rounds (four before, four after) cube every element; 83
//! partial rounds between them cube only the last. Every round ends with
//! (a, b, c) → (t + 2a, t − 2b, t − 3c), t = a + b + c.
//!
//! In partial rounds a and b are only ever added, so all that is needed of them is u = a + b. With
//! z the cube of round r,
//!
//! ```text
//! c(r+1) = u(r) − 2·z(r)
//! u(r+2) = 2·(u(r+1) + 2·u(r) + z(r+1))
//! ```
//!
//! and after the last round a = 2(u(r) + u(r+1)) + z(r+1), b = 2·u(r) + z(r+1).

use super::field::Fp;
use sha2::{Digest, Sha256};
use starknet_types_core::felt::Felt;
use std::sync::LazyLock;

/// Full rounds on each side of the partial rounds.
pub(crate) const FULL_ROUNDS: usize = 4;
pub(crate) const PARTIAL_ROUNDS: usize = 83;
/// Constants that remain: three per full round and one per partial round.
pub(crate) const CONSTANTS: usize = 2 * 3 * FULL_ROUNDS + PARTIAL_ROUNDS;
/// Place of the first partial round's constant, and of the first constant after all of them.
pub(crate) const FIRST_PARTIAL: usize = 3 * FULL_ROUNDS;
pub(crate) const FIRST_CLOSING: usize = FIRST_PARTIAL + PARTIAL_ROUNDS;

/// Constants in the order they are used.
pub(crate) static ROUND_CONSTANTS: LazyLock<[Fp; CONSTANTS]> = LazyLock::new(derive_constants);

/// The protocol defines constant i of the 91·3 as SHA-256 of the text "Hades" and i, modulo p.
///
/// In a partial round the constants of a and b only pass through the linear layer, so they can be added
/// to the next round's instead: 273 constants become 107.
fn derive_constants() -> [Fp; CONSTANTS] {
    let original = |i: usize| {
        let digest: [u8; 32] = Sha256::digest(format!("Hades{i}")).into();
        Fp::from_felt(&Felt::from_bytes_be(&digest))
    };
    let mut constants = Vec::with_capacity(CONSTANTS);
    let mut pushed = [Fp::ZERO; 3];
    for round in 0..2 * FULL_ROUNDS + PARTIAL_ROUNDS {
        let [a, b, c] = [0, 1, 2].map(|i| original(3 * round + i).add(&pushed[i]));
        if (FULL_ROUNDS..FULL_ROUNDS + PARTIAL_ROUNDS).contains(&round) {
            constants.push(c);
            let sum = a.add(&b);
            pushed = [sum.add(&a).add(&a), sum.sub(&b).sub(&b), sum];
        } else {
            constants.extend([a, b, c]);
            pushed = [Fp::ZERO; 3];
        }
    }
    // UNWRAP: eight full rounds with three constants each and 83 partial rounds with one.
    #[expect(clippy::expect_used, reason = "see above")]
    constants.try_into().expect("one constant per cube")
}

/// 2p and 4p, which keep lazy differences positive.
const TWICE: Fp = Fp([2, 0, 0, 2 * super::field::P3]);
const FOUR_TIMES: Fp = Fp([4, 0, 0, 4 * super::field::P3]);

/// x³ for x < 4p: the square's factors stay below p·2^256, and so do the cube's.
#[inline(always)]
fn cube(x: &Fp) -> Fp {
    x.square().mul(x)
}

#[inline(always)]
fn full_round(state: &mut [Fp; 3], constants: &[Fp]) {
    let [a, b, c] = [0, 1, 2].map(|i| cube(&state[i].add_lazy(&constants[i])));
    let t = a.add_lazy(&b).add_lazy(&c);
    // At most 5p, 5p and 7p before folding.
    state[0] = t.add_lazy(&a.double_lazy()).fold();
    state[1] = t.add_lazy(&TWICE).sub_lazy(&b.double_lazy()).fold();
    state[2] = t.add_lazy(&FOUR_TIMES).sub_lazy(&c.double_lazy().add_lazy(&c)).fold();
}

/// Applies the permutation.
pub(crate) fn permute(state: &mut [Fp; 3]) {
    let constants: &[Fp; CONSTANTS] = &ROUND_CONSTANTS;
    for round in 0..FULL_ROUNDS {
        full_round(state, &constants[3 * round..][..3]);
    }
    let z = cube(&state[2].add_lazy(&constants[FIRST_PARTIAL]));
    let mut previous = state[0].add(&state[1]);
    let mut current = state[0].double_lazy().add_lazy(&z).double_lazy().fold();
    // `input` is c plus the round's constant, below 4p and never folded.
    let input_of =
        |u: &Fp, z: &Fp, constant: &Fp| u.add_lazy(constant).add_lazy(&TWICE).sub_lazy(&z.double_lazy());
    let mut input = input_of(&previous, &z, &constants[FIRST_PARTIAL + 1]);
    for constant in &constants[FIRST_PARTIAL + 2..FIRST_CLOSING] {
        let z = cube(&input);
        input = input_of(&current, &z, constant);
        let next = current.add_lazy(&previous.double_lazy()).add_lazy(&z).double_lazy().fold();
        (previous, current) = (current, next);
    }
    let z = cube(&input);
    *state = [
        previous.add_lazy(&current).double_lazy().add_lazy(&z).fold(),
        previous.double_lazy().add_lazy(&z).fold(),
        current.add_lazy(&TWICE).sub_lazy(&z.double_lazy()).fold(),
    ];
    for round in 0..FULL_ROUNDS {
        full_round(state, &constants[FIRST_CLOSING + 3 * round..][..3]);
    }
}

/// The last element of the state when two felts are hashed; it separates pairs from other lengths.
pub(crate) const PAIR_CAPACITY: u64 = 2;

pub(crate) fn poseidon(left: &Felt, right: &Felt) -> Felt {
    let two = Fp::ONE.add(&Fp::ONE);
    const _: () = assert!(PAIR_CAPACITY == 2);
    let mut state = [Fp::from_felt(left), Fp::from_felt(right), two];
    permute(&mut state);
    state[0].to_felt()
}

/// The sponge: two felts per permutation, then a one, then a zero if that leaves a half-filled pair.
pub(crate) fn poseidon_hash_many(inputs: &[Felt]) -> Felt {
    let mut state = [Fp::ZERO; 3];
    let (pairs, rest) = inputs.as_chunks::<2>();
    for [a, b] in pairs {
        state[0] = state[0].add(&Fp::from_felt(a));
        state[1] = state[1].add(&Fp::from_felt(b));
        permute(&mut state);
    }
    match rest.first() {
        Some(last) => {
            state[0] = state[0].add(&Fp::from_felt(last));
            state[1] = state[1].add(&Fp::ONE);
        }
        None => state[0] = state[0].add(&Fp::ONE),
    }
    permute(&mut state);
    state[0].to_felt()
}

pub(crate) fn poseidon_many(pairs: &[[Felt; 2]], out: &mut [Felt]) {
    for ([left, right], out) in pairs.iter().zip(out) {
        *out = poseidon(left, right);
    }
}
