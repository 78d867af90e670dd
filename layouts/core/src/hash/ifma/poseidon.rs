//! Poseidon, eight states to a vector and two vectors interleaved.
//!
//! Partial rounds form one chain of dependent multiplications per state, which leaves the multiplier
//! idle most of the time; a second, independent vector fills the gaps. See the portable
//! `poseidon` for what is computed.

use super::lanes::{Lanes, Limb, all, to_260};
use super::terms::LANES;
use crate::hash::field::Fp;
use crate::hash::poseidon::{
    CONSTANTS, FIRST_CLOSING, FIRST_PARTIAL, FULL_ROUNDS, PAIR_CAPACITY, ROUND_CONSTANTS,
};
use starknet_types_core::felt::Felt;
use std::arch::x86_64::*;
use std::sync::LazyLock;

/// Partial rounds between two folds of u. It grows by 1 + √5 per round: from 2.1p to at most 480p in
/// four rounds, with limbs below 2^62.2.
const ROUNDS_PER_FOLD: usize = 4;

/// Round constants times 2^260.
static CONSTANTS_260: LazyLock<[[u64; 4]; CONSTANTS]> = LazyLock::new(|| ROUND_CONSTANTS.map(to_260));

/// N vectors of each state element.
type States<const N: usize> = [[Lanes; N]; 3];

/// The hash of each pair, `N * 8` at a time; `pairs` may be shorter than that, not longer.
#[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
#[expect(clippy::needless_range_loop, reason = "one index goes through three arrays")]
pub(crate) fn hash<const N: usize>(pairs: &[[Felt; 2]], out: &mut [Felt]) {
    assert!(pairs.len() == out.len() && !pairs.is_empty() && pairs.len() <= N * LANES);
    let capacity = Lanes::splat(to_260(Fp::from_canonical([PAIR_CAPACITY, 0, 0, 0])));
    let mut states = [[capacity; N]; 3];
    for vector in 0..N {
        states[0][vector] = load(pairs, vector * LANES, 0);
        states[1][vector] = load(pairs, vector * LANES, 1);
    }
    permute(&mut states);
    for (vector, out) in out.chunks_mut(LANES).enumerate() {
        for (out, hash) in out.iter_mut().zip(states[0][vector].scalars()) {
            *out = hash.to_felt();
        }
    }
}

/// One side of eight pairs, as factors below 16p. Lanes past the end repeat the last pair.
#[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
fn load(pairs: &[[Felt; 2]], first: usize, side: usize) -> Lanes {
    let mut words = [[0u64; LANES]; 4];
    for lane in 0..LANES {
        let Fp(limbs) = Fp::from_felt(&pairs[(first + lane).min(pairs.len() - 1)][side]);
        for (word, limb) in words.iter_mut().zip(limbs) {
            word[lane] = limb;
        }
    }
    let word = |i: usize| -> Limb {
        // SAFETY: eight words are 64 bytes; the unaligned load asks for nothing more.
        unsafe { _mm512_loadu_si512(words[i].as_ptr().cast()) }
    };
    Lanes::from_words_256([word(0), word(1), word(2), word(3)])
}

/// Brings a loose value to a factor between 0 and about 2p: subtracts one p less than the top limb
/// suggests, so that the carries from below cannot make it negative.
#[inline]
#[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
fn fold(x: &Lanes) -> Lanes {
    let q = _mm512_sub_epi64(_mm512_srai_epi64::<43>(x.0[4]), all(1));
    let q_17 = _mm512_add_epi64(_mm512_slli_epi64::<36>(q), _mm512_slli_epi64::<40>(q));
    let folded = Lanes([
        _mm512_sub_epi64(x.0[0], q),
        x.0[1],
        x.0[2],
        _mm512_sub_epi64(x.0[3], q_17),
        _mm512_sub_epi64(x.0[4], _mm512_slli_epi64::<43>(q)),
    ])
    .carry();
    debug_assert!(folded.is_factor());
    folded
}

#[inline]
#[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
fn cube(x: &Lanes) -> Lanes {
    x.square().mul_loose(x)
}

/// Takes loose state elements, in (−1p, 17p), and leaves them so.
#[inline]
#[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
#[expect(clippy::needless_range_loop, reason = "one index goes through three arrays")]
fn full_round<const N: usize>(states: &mut States<N>, constants: &[[u64; 4]]) {
    for (element, constant) in states.iter_mut().zip(constants) {
        let constant = Lanes::splat(*constant);
        for state in element {
            *state = cube(&state.add(&constant).lift(0));
        }
    }
    for vector in 0..N {
        let [a, b, c] = [states[0][vector], states[1][vector], states[2][vector]];
        let t = a.add(&b).add(&c);
        // Cubes are below 1.6p; multiples of p keep the differences positive.
        states[0][vector] = t.add(&a.add(&a));
        states[1][vector] = t.sub(&b.add(&b)).add_multiple(4);
        states[2][vector] = t.sub(&c.add(&c).add(&c)).add_multiple(6);
    }
}

#[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
fn permute<const N: usize>(states: &mut States<N>) {
    let constants: &[[u64; 4]; CONSTANTS] = &CONSTANTS_260;
    for round in 0..FULL_ROUNDS {
        full_round(states, &constants[3 * round..][..3]);
    }
    partial_rounds(states, &constants[FIRST_PARTIAL..FIRST_CLOSING]);
    for round in 0..FULL_ROUNDS {
        full_round(states, &constants[FIRST_CLOSING + 3 * round..][..3]);
    }
    for state in states.iter_mut().flatten() {
        *state = state.lift(0);
    }
}

/// `previous` and `current` are u of this round and the next, `input` is what is cubed next.
#[inline]
#[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
fn partial_rounds<const N: usize>(states: &mut States<N>, constants: &[[u64; 4]]) {
    let [mut previous, mut current, mut input] = *states;
    let (first, second) = (Lanes::splat(constants[0]), Lanes::splat(constants[1]));
    for v in 0..N {
        let z = cube(&states[2][v].add(&first).lift(0));
        let u = states[0][v].add(&states[1][v]);
        let next = states[0][v].add(&states[0][v]).add(&z);
        input[v] = fold(&u.add(&second).sub(&z.add(&z)));
        current[v] = fold(&next.add(&next));
        previous[v] = fold(&u);
    }
    for group in constants[2..].chunks(ROUNDS_PER_FOLD) {
        for constant in group {
            let constant = Lanes::splat(*constant);
            for v in 0..N {
                let z = cube(&input[v]);
                let next = current[v].add(&previous[v].add(&previous[v])).add(&z);
                input[v] = fold(&current[v].add(&constant).sub(&z.add(&z)));
                previous[v] = current[v];
                current[v] = next.add(&next);
            }
        }
        for v in 0..N {
            previous[v] = fold(&previous[v]);
            current[v] = fold(&current[v]);
        }
    }
    for v in 0..N {
        let z = cube(&input[v]);
        let both = previous[v].add(&current[v]);
        states[0][v] = fold(&both.add(&both).add(&z));
        states[1][v] = fold(&previous[v].add(&previous[v]).add(&z));
        states[2][v] = fold(&current[v].sub(&z.add(&z)));
    }
}
