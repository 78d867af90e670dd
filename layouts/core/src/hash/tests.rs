//! Every backend goes through the harness below, for every table width and for batch lengths
//! around the lane counts, against the oracle.

use super::curve::{Affine, PedersenPoints, sum_complete};
use super::field::{Fp, P3};
use super::job::Sums;
use super::platform::{Backend, Platform};
use super::sum;
use super::table::{Form, Table};
use super::windows::{Class, Geometry, Term};
use super::*;
use proptest::prelude::*;
use std::sync::Mutex;

/// Lengths around one and two vectors of eight lanes, around the batch thresholds, and one large.
const LENGTHS: [usize; 13] = [0, 1, 2, 3, 4, 7, 8, 9, 16, 31, 33, 65, 1000];

/// SplitMix64: the tests' own generator, so that a printed seed means the same in every version.
struct Random(u64);

impl Random {
    /// Seeds from `FLAGSTONE_TEST_SEED` if set; the seed is printed either way.
    fn seeded(name: &str) -> Random {
        let seed = std::env::var("FLAGSTONE_TEST_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(0x5eed);
        println!("{name}: FLAGSTONE_TEST_SEED={seed}");
        Random(seed)
    }
    fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn felt(&mut self) -> Felt {
        Felt::from_raw({
            let mut limbs = [self.word() >> 4, self.word(), self.word(), self.word()];
            if !Fp([limbs[3], limbs[2], limbs[1], limbs[0]]).is_reduced() {
                limbs[0] >>= 1;
            }
            limbs
        })
    }
    /// Mostly whole felts, now and then one of few bits or an edge.
    fn operand(&mut self) -> Felt {
        match self.word() % 8 {
            0 => Felt::from(self.word() >> (self.word() % 64)),
            1 => edges()[self.word() as usize % edges().len()],
            _ => self.felt(),
        }
    }
    fn pairs(&mut self, n: usize) -> Vec<[Felt; 2]> {
        (0..n).map(|_| [self.operand(), self.operand()]).collect()
    }
}

fn power(bit: u32) -> Felt {
    Felt::TWO.pow(bit)
}

/// Where carries, windows, classes and bases meet their limits.
fn edges() -> Vec<Felt> {
    let mut edges = vec![Felt::ZERO, Felt::ONE, Felt::TWO, Felt::MAX, Felt::MAX - Felt::ONE];
    for bit in [12, 13, 14, 24, 28, 64, 128, 192, 224, 238, 240, 248, 250, 251] {
        edges.extend([power(bit) - Felt::ONE, power(bit)]);
    }
    edges
}

fn edge_pairs() -> Vec<[Felt; 2]> {
    let edges = edges();
    edges.iter().flat_map(|&left| edges.iter().map(move |&right| [left, right])).collect()
}

/// A backend and a table: what the harness is run on.
#[derive(Clone, Copy)]
struct Subject {
    platform: Platform,
    bits: u32,
}

impl Subject {
    /// Narrow tables are quick to build and have the longest sums; the public widths are the real ones.
    fn all() -> Vec<Subject> {
        let widths: &[u32] = if cfg!(miri) { &[4] } else { &[4, 7, 12, 14] };
        Platform::available()
            .into_iter()
            .flat_map(|platform| widths.iter().map(move |&bits| Subject { platform, bits }))
            .collect()
    }
    fn table(self) -> &'static Table {
        static BUILT: Mutex<Vec<(Form, u32, &'static Table)>> = Mutex::new(Vec::new());
        let form = engine::form(self.platform);
        match self.bits {
            12 => Table::shared(form, TableWidth::Bits12),
            14 => Table::shared(form, TableWidth::Bits14),
            bits => {
                let mut built = BUILT.lock().unwrap();
                if let Some(found) = built.iter().find(|entry| (entry.0, entry.1) == (form, bits)) {
                    return found.2;
                }
                let table: &'static Table = Box::leak(Box::new(Table::build(form, Geometry::new(bits))));
                built.push((form, bits, table));
                table
            }
        }
    }
    fn pedersen_many(self, pairs: &[[Felt; 2]]) -> Vec<Felt> {
        let mut out = vec![Felt::THREE; pairs.len()];
        sum::pedersen_many(self.platform, self.table(), pairs, &mut out);
        out
    }
    fn contributions(self, operands: &[(Side, Felt)]) -> Vec<Contribution> {
        let mut out = vec![Contribution::of_zero(Side::Left); operands.len()];
        sum::contributions(self.platform, self.table(), operands, &mut out);
        out
    }
    fn join_many(self, pairs: &[(Contribution, Contribution)]) -> Vec<Felt> {
        let mut out = vec![Felt::THREE; pairs.len()];
        Engine::new(self.platform, TableWidth::Bits12).join_many(pairs, &mut out);
        out
    }
    fn describe(self) -> String {
        format!("{} with {}-bit windows", self.platform.name(), self.bits)
    }
}

fn oracle(pairs: &[[Felt; 2]]) -> Vec<Felt> {
    let mut out = vec![Felt::ZERO; pairs.len()];
    StarknetCrypto.pedersen_many(pairs, &mut out);
    out
}

#[track_caller]
fn check_pedersen(subject: Subject, pairs: &[[Felt; 2]], expected: &[Felt]) {
    let got = subject.pedersen_many(pairs);
    for i in 0..pairs.len() {
        assert_eq!(got[i], expected[i], "{}, {:?} at {i} of {}", subject.describe(), pairs[i], pairs.len());
    }
}

/// Both contributions of each pair, the sides mixed in one call, and their join.
#[track_caller]
fn check_contributions(subject: Subject, pairs: &[[Felt; 2]], expected: &[Felt]) {
    let operands: Vec<_> = pairs.iter().flat_map(|&[l, r]| [(Side::Left, l), (Side::Right, r)]).collect();
    let got = subject.contributions(&operands);
    for (operand, contribution) in operands.iter().zip(&got).take(if cfg!(miri) { 2 } else { 40 }) {
        let mut textbook = [Contribution::of_zero(Side::Left)];
        StarknetCrypto.contributions(&[*operand], &mut textbook);
        assert_eq!(*contribution, textbook[0], "{}, {operand:?}", subject.describe());
    }
    let joins: Vec<_> = got.as_chunks::<2>().0.iter().map(|&[a, b]| (a, b)).collect();
    assert_eq!(subject.join_many(&joins), expected, "{}", subject.describe());
    let swapped: Vec<_> = joins.iter().map(|&(a, b)| (b, a)).collect();
    assert_eq!(subject.join_many(&swapped), expected, "{}", subject.describe());
}

#[test]
fn protocol_constants_lead_to_the_published_hashes() {
    // Test vectors of the protocol's reference implementation.
    let hex = |text: &str| Felt::from_hex(text).unwrap();
    let (a, b) = (
        hex("0x03d937c035c878245caf64531a5756109c53068da139362728feb561405371cb"),
        hex("0x0208a0a10250e382e1e4bbe2880906c2791bf6275695e02fbbc6aeff9cd8b31a"),
    );
    let expected = hex("0x030e480bed5fe53fa909cc0f8c4d99b8f9f2c016be4c41e13a4848797979c662");
    for subject in Subject::all() {
        check_pedersen(subject, &[[a, b]], &[expected]);
    }
}

#[test]
fn every_length_equals_the_oracle() {
    let mut random = Random::seeded("every_length_equals_the_oracle");
    let lengths: &[usize] = if cfg!(miri) { &[0, 1, 5] } else { &LENGTHS };
    for &n in lengths {
        let mixed = random.pairs(n);
        let whole: Vec<_> = (0..n).map(|_| [random.felt(), random.felt()]).collect();
        for pairs in [mixed, whole] {
            let expected = oracle(&pairs);
            for subject in Subject::all() {
                check_pedersen(subject, &pairs, &expected);
                check_contributions(subject, &pairs, &expected);
            }
        }
    }
}

#[test]
fn every_edge_pair_equals_the_oracle() {
    let mut pairs = edge_pairs();
    if cfg!(miri) {
        pairs.retain(|[l, r]| (*l * *r) == Felt::ZERO);
        pairs.truncate(4);
    }
    let expected = oracle(&pairs);
    for subject in Subject::all() {
        check_pedersen(subject, &pairs, &expected);
        check_contributions(subject, &pairs, &expected);
        for (pair, expected) in pairs.iter().zip(&expected).step_by(if cfg!(miri) { 3 } else { 1 }) {
            check_pedersen(subject, &[*pair], &[*expected]);
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "minutes under an interpreter")]
fn two_hundred_thousand_random_pairs_equal_the_oracle() {
    const PAIRS: usize = 200_000;
    let mut random = Random::seeded("two_hundred_thousand_random_pairs_equal_the_oracle");
    let pairs: Vec<_> = (0..PAIRS).map(|_| [random.felt(), random.felt()]).collect();
    let mut expected = vec![Felt::ZERO; PAIRS];
    let share = PAIRS.div_ceil(std::thread::available_parallelism().map_or(1, Into::into));
    std::thread::scope(|scope| {
        for (pairs, expected) in pairs.chunks(share).zip(expected.chunks_mut(share)) {
            scope.spawn(|| StarknetCrypto.pedersen_many(pairs, expected));
        }
    });
    for platform in Platform::available() {
        for bits in [12, 14] {
            let subject = Subject { platform, bits };
            // Batches of every length from 1 to 128, so that each path sees its share.
            let (mut start, mut length) = (0, 1);
            while start < PAIRS {
                let end = (start + length).min(PAIRS);
                check_pedersen(subject, &pairs[start..end], &expected[start..end]);
                (start, length) = (end, length % 128 + 1);
            }
        }
    }
}

#[test]
fn poseidon_equals_the_oracle() {
    let mut random = Random::seeded("poseidon_equals_the_oracle");
    let mut cases: Vec<Vec<[Felt; 2]>> = LENGTHS.iter().map(|&n| random.pairs(n)).collect();
    cases.push(edge_pairs());
    if cfg!(miri) {
        cases.iter_mut().for_each(|pairs| pairs.truncate(2));
    }
    for pairs in cases {
        let mut expected = vec![Felt::ZERO; pairs.len()];
        StarknetCrypto.poseidon_many(&pairs, &mut expected);
        for platform in Platform::available() {
            let mut got = vec![Felt::THREE; pairs.len()];
            Engine::new(platform, TableWidth::Bits12).poseidon_many(&pairs, &mut got);
            assert_eq!(got, expected, "{}", platform.name());
        }
        for (pair, expected) in pairs.iter().zip(expected).take(50) {
            assert_eq!(poseidon(&pair[0], &pair[1]), expected);
        }
    }
}

#[test]
fn poseidon_of_any_length_equals_the_oracle() {
    let mut random = Random::seeded("poseidon_of_any_length_equals_the_oracle");
    for n in if cfg!(miri) { 0..4 } else { 0..40 } {
        let inputs: Vec<_> = (0..n).map(|_| random.operand()).collect();
        assert_eq!(poseidon_hash_many(&inputs), starknet_crypto::poseidon_hash_many(&inputs), "{n} inputs");
    }
}

/// Forces equal x inside a batch: terms that name one point twice, or a point and its negative in the
/// middle of other points. No operands can do this, so it goes in below the recoding.
#[test]
fn equal_x_is_redone_on_the_complete_path() {
    let geometry = Geometry::new(4);
    let ordinary = |seed: u64| -> Vec<Term> {
        let mut random = Random(seed);
        let limbs = Fp::from_felt(&random.felt()).to_canonical();
        let mut terms = vec![Term::default(); geometry.terms(Class::Full)];
        geometry.recode(Side::Left, Class::Full, &limbs, &mut terms);
        terms
    };
    let all = if cfg!(miri) { vec![5] } else { vec![1, 5, 17, 40, 100] };
    for subject in Subject::all().into_iter().filter(|subject| subject.bits == 4) {
        let table = subject.table();
        for &n in &all {
            let mut sums: Vec<Vec<Term>> = (0..n as u64).map(ordinary).collect();
            let place = n / 2;
            // A doubling, and in another sum an intermediate point at infinity.
            sums[place][1] = sums[place][0];
            if n > 4 {
                let [a, _, c, ..] = sums[place - 2][..] else { unreachable!() };
                sums[place - 2][3] = Term::new(c.index(), !c.negate());
                sums[place - 2][1] = a;
            }
            let expected: Vec<Affine> = sums
                .iter()
                .map(|terms| sum_complete(terms.iter().map(|&term| table.get_limbs64(term))).unwrap())
                .collect();
            let terms: Vec<Term> = sums.concat();
            check_terms(subject, table, n, &terms, &expected);
        }
    }
}

/// Hands ready-made terms to every path of a backend.
fn check_terms(subject: Subject, table: &Table, n: usize, terms: &[Term], expected: &[Affine]) {
    let width = terms.len() / n;
    let paths: Vec<TermsPath> = match subject.platform.backend() {
        Backend::Portable => portable_paths(),
        #[cfg(target_arch = "x86_64")]
        Backend::Ifma => super::ifma::term_paths(),
    };
    for path in paths {
        let mut points = vec![Affine::default(); n];
        path(table, terms, width, Sums::Points(&mut points));
        assert_eq!(points, expected, "{}", subject.describe());
        let mut x = vec![Fp::ZERO; n];
        path(table, terms, width, Sums::X(&mut x));
        assert!(x.iter().zip(expected).all(|(x, point)| *x == point.x), "{}", subject.describe());
    }
}

pub(super) type TermsPath = fn(&Table, &[Term], usize, Sums<'_>);

fn portable_paths() -> Vec<TermsPath> {
    fn tree(table: &Table, terms: &[Term], width: usize, sums: Sums<'_>) {
        let mut tree = portable::Tree::new(sums.len(), width);
        tree.terms.copy_from_slice(terms);
        tree.run(table, sums);
    }
    fn single(table: &Table, terms: &[Term], width: usize, mut sums: Sums<'_>) {
        for (i, terms) in terms.chunks_exact(width).enumerate() {
            sums.put(i, portable::accumulate(table, terms));
        }
    }
    vec![tree, single]
}

#[test]
fn equal_contributions_are_doubled_when_joined() {
    let mut random = Random::seeded("equal_contributions_are_doubled_when_joined");
    for subject in Subject::all() {
        let count = if cfg!(miri) { 4 } else { 24 };
        let operands: Vec<_> = (0..count).map(|_| (Side::Left, random.felt())).collect();
        let points = subject.contributions(&operands);
        let mut pairs: Vec<_> = points.windows(2).map(|pair| (pair[0], pair[1])).collect();
        pairs[2].1 = pairs[2].0;
        let mut expected = vec![Felt::ZERO; pairs.len()];
        StarknetCrypto.join_many(&pairs, &mut expected);
        assert_eq!(subject.join_many(&pairs), expected, "{}", subject.describe());
        assert_eq!(subject.join_many(&pairs[2..3]), expected[2..3], "{}", subject.describe());
    }
}

#[test]
fn zero_contributions_are_known_without_hashing() {
    for side in [Side::Left, Side::Right] {
        let mut textbook = [Contribution::of_zero(side.other())];
        StarknetCrypto.contributions(&[(side, Felt::ZERO)], &mut textbook);
        assert_eq!(textbook[0], Contribution::of_zero(side));
    }
}

#[test]
fn changed_nodes_equal_their_pairs() {
    let mut random = Random::seeded("changed_nodes_equal_their_pairs");
    let pairs = random.pairs(if cfg!(miri) { 2 } else { 200 });
    let expected = oracle(&pairs);
    let hashers: [&dyn Hasher; 2] = [&Bulk, &StarknetCrypto];
    for hasher in hashers.into_iter().take(if cfg!(miri) { 0 } else { 2 }) {
        for side in [Side::Left, Side::Right] {
            let operands: Vec<_> =
                pairs.iter().map(|pair| (side.other(), pair[side.other() as usize])).collect();
            let mut siblings = vec![Contribution::of_zero(side); pairs.len()];
            hasher.contributions(&operands, &mut siblings);
            let nodes: Vec<_> = pairs
                .iter()
                .zip(&siblings)
                .map(|(pair, &sibling)| ChangedNode { side, changed: pair[side as usize], sibling })
                .collect();
            let (mut fresh, mut out) = (siblings.clone(), vec![Felt::ZERO; pairs.len()]);
            hasher.pedersen_changed(&nodes, &mut fresh, &mut out);
            assert_eq!(out, expected, "{}", hasher.name());
            let joins: Vec<_> = fresh.into_iter().zip(siblings).collect();
            hasher.join_many(&joins, &mut out);
            assert_eq!(out, expected, "{}", hasher.name());
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "builds a full table")]
fn tables_are_built_once_from_many_threads() {
    let tables: Vec<usize> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| std::ptr::from_ref(Table::shared(Form::Limbs64, TableWidth::Bits12)) as usize)
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(tables.iter().all(|&table| table == tables[0]));
}

#[test]
fn table_sizes_are_as_documented() {
    let mebibytes = |bits| Geometry::new(bits).table_points() as f64 * 64.0 / f64::from(1 << 20);
    assert_eq!(format!("{:.1} {:.1}", mebibytes(12), mebibytes(14)), "5.5 19.0");
}

#[test]
fn shares_of_the_shift_point_add_up_to_it() {
    let PedersenPoints { shift, .. } = PedersenPoints::new();
    assert_eq!(shift.double().add(&shift.neg()), Some(shift));
}

#[test]
fn unequal_lengths_are_refused() {
    let refused = |f: fn()| assert!(std::panic::catch_unwind(f).is_err());
    refused(|| poseidon_many(&[[Felt::ONE; 2]], &mut []));
    refused(|| join_many(&[], &mut [Felt::ZERO]));
    if !cfg!(miri) {
        refused(|| pedersen_many(&[[Felt::ONE; 2]], &mut []));
        refused(|| contributions(&[], &mut [Contribution::of_zero(Side::Left)]));
        refused(|| pedersen_changed(&[], &mut [], &mut [Felt::ZERO]));
    }
}

fn any_felt() -> impl Strategy<Value = Felt> {
    any::<[u64; 4]>().prop_map(|limbs| Fp(limbs).fold().to_felt())
}

fn big(limbs: [u64; 4]) -> Felt {
    Fp::from_canonical(limbs).to_felt()
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 4 } else { 256 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn field_operations_equal_those_of_felt(a in any_felt(), b in any_felt()) {
        let (x, y) = (Fp::from_felt(&a), Fp::from_felt(&b));
        prop_assert_eq!(x.add(&y).to_felt(), a + b);
        prop_assert_eq!(x.sub(&y).to_felt(), a - b);
        prop_assert_eq!(x.neg().to_felt(), -a);
        prop_assert_eq!(x.mul(&y).to_felt(), a * b);
        prop_assert_eq!(x.square().to_felt(), a * a);
        prop_assert_eq!(x.to_canonical(), a.to_le_digits());
        prop_assert_eq!(big(x.to_canonical()), a);
        prop_assert_eq!(x.invert().to_felt(), a.inverse().unwrap_or(Felt::ZERO));
    }

    #[test]
    fn folding_keeps_the_class_of_any_value(limbs in any::<[u64; 4]>()) {
        let folded = Fp(limbs).fold();
        prop_assert!(folded.is_reduced());
        // Multiplication accepts the unfolded value as it is when the other factor is small.
        prop_assert_eq!(Fp(limbs).mul(&Fp::ONE), folded.mul(&Fp::ONE));
    }

    #[test]
    fn recoded_terms_add_up_to_the_operand(operand in any_felt(), bits in prop::sample::select(vec![4u32, 6, 7, 9, 12, 14])) {
        // Each window's digit read back from its term gives the operand's bits again.
        let geometry = Geometry::new(bits);
        let limbs = operand.to_le_digits();
        let mut terms = vec![Term::default(); geometry.count()];
        geometry.recode(Side::Right, Class::Full, &limbs, &mut terms);
        let mut sum = Felt::ZERO;
        for (window, term) in terms.iter().enumerate() {
            let entry = term.index() - geometry.window_base(Side::Right, window);
            let digit = match (window + 1 == geometry.count(), term.negate()) {
                (true, _) => entry,
                (false, false) => entry | geometry.signed_points(),
                (false, true) => geometry.signed_points() - 1 - entry,
            };
            sum += Felt::from(digit) * power(window as u32 * bits);
        }
        prop_assert_eq!(sum, operand);
    }

    #[test]
    #[cfg_attr(miri, ignore = "slow oracle")]
    fn batches_of_any_operands_equal_the_oracle(
        pairs in prop::collection::vec([any_felt(), any_felt()], 0..40),
        bits in 0u32..252,
    ) {
        // Right operands of few bits, as path lengths and nonces are.
        let cut = |limbs: [u64; 4]| {
            std::array::from_fn(|i| {
                let kept = bits.saturating_sub(64 * i as u32).min(64);
                if kept == 0 { 0 } else { limbs[i] & (u64::MAX >> (64 - kept)) }
            })
        };
        let small: Vec<[Felt; 2]> = pairs.iter().map(|[l, r]| [*l, big(cut(r.to_le_digits()))]).collect();
        let expected = oracle(&small);
        for subject in Subject::all() {
            check_pedersen(subject, &small, &expected);
        }
    }
}

#[test]
fn inverse_of_every_edge_is_exact() {
    for edge in edges() {
        let inverse = Fp::from_felt(&edge).invert().to_felt();
        assert_eq!(inverse * edge, if edge == Felt::ZERO { Felt::ZERO } else { Felt::ONE }, "{edge}");
    }
    assert!(!Fp([1, 0, 0, P3]).is_reduced());
}
