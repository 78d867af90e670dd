//! Hashing through the public door only, in a process of its own: the table width is a choice of the process.

use flagstone_core::hash::{self, Bulk, Contribution, Hasher, Platform, Side, StarknetCrypto, TableWidth};
use starknet_types_core::felt::Felt;

fn pairs(count: u64) -> Vec<[Felt; 2]> {
    let felt = |i: u64| Felt::from(i + 1).pow(97u128) + Felt::from(i);
    (0..count).map(|i| [felt(2 * i), if i % 5 == 0 { Felt::from(i) } else { felt(2 * i + 1) }]).collect()
}

#[test]
fn width_is_chosen_once_and_hashes_do_not_depend_on_it() {
    // All tests of this file need the same width, whichever runs first.
    hash::configure(TableWidth::Bits12).unwrap();
    hash::warm_up();
    hash::configure(TableWidth::Bits12).unwrap();
    let refused = hash::configure(TableWidth::Bits14).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "table width in use: asked for 14-bit windows, process hashes with 12-bit windows; \
         configure before the first hash"
    );
    let [left, right] = pairs(2)[1];
    assert_eq!(hash::pedersen(&left, &right), starknet_crypto::pedersen_hash(&left, &right));
}

#[test]
fn engine_and_oracle_are_the_same_behind_the_trait() {
    hash::configure(TableWidth::Bits12).unwrap();
    let pairs = pairs(70);
    let hashers: [Box<dyn Hasher>; 2] = [Box::new(StarknetCrypto), Box::new(Bulk)];
    let answers = hashers.map(|hasher| {
        let mut pedersen = vec![Felt::ZERO; pairs.len()];
        let mut poseidon = pedersen.clone();
        hasher.pedersen_many(&pairs, &mut pedersen);
        hasher.poseidon_many(&pairs, &mut poseidon);
        let operands: Vec<_> = pairs.iter().flat_map(|&[l, r]| [(Side::Left, l), (Side::Right, r)]).collect();
        let mut contributions = vec![Contribution::of_zero(Side::Left); operands.len()];
        hasher.contributions(&operands, &mut contributions);
        let joins: Vec<_> = contributions.as_chunks::<2>().0.iter().map(|&[a, b]| (a, b)).collect();
        let mut joined = pedersen.clone();
        hasher.join_many(&joins, &mut joined);
        assert_eq!(joined, pedersen, "{}", hasher.name());
        (pedersen, poseidon, contributions)
    });
    assert_eq!(answers[0], answers[1]);
}

#[test]
fn hashes_do_not_depend_on_thread_count() {
    hash::configure(TableWidth::Bits12).unwrap();
    let pairs = pairs(1000);
    let hash_on = |threads: usize| {
        let mut out = vec![Felt::ZERO; pairs.len()];
        let share = pairs.len().div_ceil(threads);
        std::thread::scope(|scope| {
            for (pairs, out) in pairs.chunks(share).zip(out.chunks_mut(share)) {
                scope.spawn(|| hash::pedersen_many(pairs, out));
            }
        });
        out
    };
    let one = hash_on(1);
    assert!([2, 3, 7, 16].iter().all(|&threads| hash_on(threads) == one));
}

#[test]
fn platform_is_named_and_portable_is_always_there() {
    println!("backend: {}", Platform::detect().name());
    assert_eq!(Platform::available().first(), Some(&Platform::PORTABLE));
    assert_eq!(Platform::available().last(), Some(&Platform::detect()));
}
