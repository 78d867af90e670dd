//! Hashing in bulk against its rivals, all in one process.
//!
//! First a table of interleaved runs with ratios to starknet-crypto (`FLAGSTONE_TURNS` turns each, 15 by
//! default), then the criterion groups. `cargo bench --bench hash -- --summary` prints only the tables, and with one or more of `pedersen`,
//! `changed-node`, `poseidon` and `threads` only those.
//! One iteration of a criterion bench is one call with `n` items; tables are built before.

use criterion::{Criterion, Throughput, criterion_group};
use flagstone_benches::interleaved::{Contender, compare};
use flagstone_core::hash::{
    ChangedNode, Contribution, Engine, Hasher, Platform, Side, StarknetCrypto, TableWidth, poseidon_hash_many,
};
use pathfinder_crypto::hash as pathfinder;
use starknet_types_core::felt::Felt;
use std::hint::black_box;

const SEED: u64 = 0x5eed;
const BATCHES: [usize; 4] = [8, 32, 128, 1024];
const RIVAL_PAIRS: usize = 16;

/// SplitMix64.
fn felts(count: usize) -> Vec<Felt> {
    let mut state = SEED;
    let mut word = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    (0..count).map(|_| Felt::from_raw([word() >> 6, word(), word(), word()])).collect()
}

fn pairs(count: usize) -> Vec<[Felt; 2]> {
    felts(2 * count).as_chunks::<2>().0.to_vec()
}

fn engines(width: TableWidth) -> Vec<Engine> {
    let engines: Vec<_> =
        Platform::available().into_iter().map(|platform| Engine::new(platform, width)).collect();
    engines.iter().for_each(Engine::warm_up);
    engines
}

/// Each call works on the next stretch of a long list, as a trie update would: the table is not
/// asked for the same lines again and again.
struct Stretches<T> {
    items: Vec<T>,
    at: usize,
}

impl<T> Stretches<T> {
    fn new(items: Vec<T>) -> Stretches<T> {
        Stretches { items, at: 0 }
    }
    fn next(&mut self, n: usize) -> &[T] {
        if self.at + n > self.items.len() {
            self.at = 0;
        }
        self.at += n;
        &self.items[self.at - n..self.at]
    }
}

fn rivals<'a>(contenders: &mut Vec<Contender<'a>>) {
    let mut stretches = Stretches::new(pairs(4096));
    let mut out = vec![Felt::ZERO; RIVAL_PAIRS];
    contenders.push(Contender::new("starknet-crypto", RIVAL_PAIRS, move || {
        StarknetCrypto.pedersen_many(stretches.next(RIVAL_PAIRS), black_box(&mut out));
    }));
    let theirs = pairs(4096).iter().map(|pair| pair.map(pathfinder_felt)).collect();
    let mut stretches = Stretches::new(theirs);
    contenders.push(Contender::new("pathfinder-crypto", RIVAL_PAIRS, move || {
        for &[left, right] in stretches.next(RIVAL_PAIRS) {
            black_box(pathfinder::pedersen_hash(left, right));
        }
    }));
}

fn pathfinder_felt(felt: Felt) -> pathfinder_crypto::Felt {
    match pathfinder_crypto::Felt::from_be_bytes(felt.to_bytes_be()) {
        Ok(felt) => felt,
        Err(_) => unreachable!("a felt is below the modulus"),
    }
}

fn pedersen_contender<'a>(engine: Engine, width: &str, n: usize) -> Contender<'a> {
    let mut stretches = Stretches::new(pairs(8192));
    let mut out = vec![Felt::ZERO; n];
    Contender::new(format!("{} {width} n={n}", engine.name()), n, move || {
        engine.pedersen_many(stretches.next(n), black_box(&mut out));
    })
}

fn summarise_pedersen(turns: usize) {
    let mut contenders = Vec::new();
    rivals(&mut contenders);
    for engine in engines(TableWidth::Bits14) {
        let mut stretches = Stretches::new(pairs(8192));
        contenders.push(Contender::new(format!("{} 14-bit single call", engine.name()), 1, move || {
            let [left, right] = &stretches.next(1)[0];
            black_box(engine.pedersen(left, right));
        }));
        for n in [2, 4, 8, 16, 32, 48, 64, 96, 128, 256, 1024] {
            contenders.push(pedersen_contender(engine, "14-bit", n));
        }
    }
    for engine in engines(TableWidth::Bits14) {
        let short: Vec<_> = pairs(8192).iter().map(|&[left, _]| [left, Felt::from(250)]).collect();
        let mut stretches = Stretches::new(short);
        let mut out = vec![Felt::ZERO; 1024];
        let name = format!("{} 14-bit n=1024, short right operand", engine.name());
        contenders.push(Contender::new(name, 1024, move || {
            engine.pedersen_many(stretches.next(1024), black_box(&mut out));
        }));
    }
    for engine in engines(TableWidth::Bits12) {
        contenders.push(pedersen_contender(engine, "12-bit", 1024));
    }
    compare("Pedersen, per hash", turns, contenders);
}

fn changed_nodes(engine: Engine, count: usize) -> Vec<ChangedNode> {
    let felts = felts(2 * count);
    let (changed, siblings) = felts.split_at(count);
    let side = |i: usize| {
        if i.is_multiple_of(2) { Side::Left } else { Side::Right }
    };
    let operands: Vec<_> = siblings.iter().enumerate().map(|(i, &felt)| (side(i).other(), felt)).collect();
    let mut kept = vec![Contribution::of_zero(Side::Left); count];
    engine.contributions(&operands, &mut kept);
    let node = |i: usize| ChangedNode { side: side(i), changed: changed[i], sibling: kept[i] };
    (0..count).map(node).collect()
}

fn summarise_contributions(turns: usize) {
    let mut contenders = Vec::new();
    rivals(&mut contenders);
    for engine in engines(TableWidth::Bits14) {
        for n in [8, 32, 128, 1024] {
            let mut stretches = Stretches::new(changed_nodes(engine, 8192));
            let mut fresh = vec![Contribution::of_zero(Side::Left); n];
            let mut out = vec![Felt::ZERO; n];
            let name = format!("{} 14-bit changed node n={n}", engine.name());
            contenders.push(Contender::new(name, n, move || {
                engine.pedersen_changed(stretches.next(n), black_box(&mut fresh), black_box(&mut out));
            }));
        }
        let mut joins = Stretches::new(join_pairs(engine, 8192));
        let mut out = vec![Felt::ZERO; 1024];
        contenders.push(Contender::new(format!("{} join n=1024", engine.name()), 1024, move || {
            engine.join_many(joins.next(1024), black_box(&mut out));
        }));
    }
    compare("Pedersen of a changed node, sibling's contribution kept; per hash", turns, contenders);
}

fn join_pairs(engine: Engine, count: usize) -> Vec<(Contribution, Contribution)> {
    let operands: Vec<_> =
        pairs(count).iter().flat_map(|&[l, r]| [(Side::Left, l), (Side::Right, r)]).collect();
    let mut points = vec![Contribution::of_zero(Side::Left); 2 * count];
    engine.contributions(&operands, &mut points);
    points.as_chunks::<2>().0.iter().map(|&[a, b]| (a, b)).collect()
}

fn summarise_poseidon(turns: usize) {
    let mut contenders = Vec::new();
    let mut stretches = Stretches::new(pairs(4096));
    let mut out = vec![Felt::ZERO; RIVAL_PAIRS];
    contenders.push(Contender::new("starknet-crypto", RIVAL_PAIRS, move || {
        StarknetCrypto.poseidon_many(stretches.next(RIVAL_PAIRS), black_box(&mut out));
    }));
    let theirs = pairs(4096).iter().map(|pair| pair.map(|felt| pathfinder_felt(felt).into())).collect();
    let mut stretches: Stretches<[pathfinder_crypto::MontFelt; 2]> = Stretches::new(theirs);
    contenders.push(Contender::new("pathfinder-crypto", RIVAL_PAIRS, move || {
        for &[left, right] in stretches.next(RIVAL_PAIRS) {
            black_box(pathfinder::poseidon_hash(left, right));
        }
    }));
    for engine in engines(TableWidth::Bits14) {
        for n in [1, 3, 8, 16, 1024] {
            let mut stretches = Stretches::new(pairs(8192));
            let mut out = vec![Felt::ZERO; n];
            contenders.push(Contender::new(format!("{} n={n}", engine.name()), n, move || {
                engine.poseidon_many(stretches.next(n), black_box(&mut out));
            }));
        }
    }
    compare("Poseidon of a pair, per hash", turns, contenders);
    let inputs = felts(64);
    let theirs = inputs.clone();
    let many = vec![
        Contender::new("starknet-crypto", 1, move || {
            black_box(starknet_crypto::poseidon_hash_many(&theirs));
        }),
        Contender::new("flagstone", 1, move || {
            black_box(poseidon_hash_many(&inputs));
        }),
    ];
    compare("Poseidon of 64 felts, per call", turns, many);
}

/// The same work on one thread and split over two.
fn summarise_threads(turns: usize) {
    const PAIRS: usize = 16_384;
    let mut contenders = Vec::new();
    for engine in engines(TableWidth::Bits14) {
        for threads in [1, 2] {
            let pairs = pairs(PAIRS);
            let mut out = vec![Felt::ZERO; PAIRS];
            let share = PAIRS / threads;
            let run = move || {
                std::thread::scope(|scope| {
                    for (pairs, out) in pairs.chunks(share).zip(out.chunks_mut(share)) {
                        scope.spawn(|| engine.pedersen_many(pairs, out));
                    }
                });
            };
            contenders.push(Contender::new(format!("{} threads={threads}", engine.name()), PAIRS, run));
        }
    }
    compare("Pedersen, 16384 pairs, one thread against two; per hash", turns, contenders);
}

fn criterion_groups(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("hash");
    group.sample_size(20).measurement_time(std::time::Duration::from_secs(1));
    let one = pairs(1)[0];
    group.bench_function("op=pedersen engine=starknet-crypto n=1", |b| {
        b.iter(|| starknet_crypto::pedersen_hash(black_box(&one[0]), &one[1]));
    });
    let theirs = one.map(pathfinder_felt);
    group.bench_function("op=pedersen engine=pathfinder-crypto n=1", |b| {
        b.iter(|| pathfinder::pedersen_hash(black_box(theirs[0]), theirs[1]));
    });
    for engine in engines(TableWidth::Bits14) {
        group.throughput(Throughput::Elements(1));
        group.bench_function(format!("op=pedersen engine={} n=1", engine.name()), |b| {
            b.iter(|| engine.pedersen(black_box(&one[0]), &one[1]));
        });
        for n in BATCHES {
            group.throughput(Throughput::Elements(n as u64));
            let mut stretches = Stretches::new(pairs(8192));
            let mut out = vec![Felt::ZERO; n];
            group.bench_function(format!("op=pedersen engine={} n={n}", engine.name()), |b| {
                b.iter(|| engine.pedersen_many(stretches.next(n), &mut out));
            });
            let mut nodes = Stretches::new(changed_nodes(engine, 8192));
            let mut fresh = vec![Contribution::of_zero(Side::Left); n];
            group.bench_function(format!("op=changed-node engine={} n={n}", engine.name()), |b| {
                b.iter(|| engine.pedersen_changed(nodes.next(n), &mut fresh, &mut out));
            });
            let mut stretches = Stretches::new(pairs(8192));
            group.bench_function(format!("op=poseidon engine={} n={n}", engine.name()), |b| {
                b.iter(|| engine.poseidon_many(stretches.next(n), &mut out));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, criterion_groups);

/// Prints a table from this many turns.
type Summary = fn(usize);

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let chosen = |name: &str| arguments.iter().any(|argument| argument == name);
    // Without `--bench` this is `cargo test` asking whether the benches still run.
    let default_turns = if chosen("--bench") { 15 } else { 1 };
    let turns =
        std::env::var("FLAGSTONE_TURNS").ok().and_then(|turns| turns.parse().ok()).unwrap_or(default_turns);
    println!("turns={turns} seed={SEED:#x} backends={:?}", Platform::available());
    let summaries: [(&str, Summary); 4] = [
        ("pedersen", summarise_pedersen),
        ("changed-node", summarise_contributions),
        ("poseidon", summarise_poseidon),
        ("threads", summarise_threads),
    ];
    let all = !summaries.iter().any(|(name, _)| chosen(name));
    for (_, summarise) in summaries.iter().filter(|(name, _)| all || chosen(name)) {
        summarise(turns);
    }
    if !chosen("--summary") {
        benches();
        Criterion::default().configure_from_args().final_summary();
    }
}
