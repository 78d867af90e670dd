//! Root known after close, as this layout and hasher do it and as the field does: the flat layout with hashing in bulk,
//! against the by-path Patricia layout with starknet-crypto, which hashes one pair after another.
//!
//! The state is workload S with 10^6 leaves over 1 000 contracts (a quarter of the writes go to the hottest; 8 of 10
//! rewrite a key, 2 make one), on the same kind of store for both: in memory, and each store that lives in a directory. Blocks of 100, 1 000
//! and 10 000 slots; each is staged by one contender and then by the other, its rows are written outside the time, and
//! roots must agree. Both are warm: the flat layout's cache of records has room for the state, the stores' caches have
//! what they keep by default.
//!
//! `cargo bench -p flagstone-benches --bench incumbent [-- [STORE] [BLOCKS]]` prints for each size the least and the median
//! time from a prepared diff to root and rows on the threads there are, their ratios, and the same in CPU time, which
//! neighbours on the machine disturb less. Last it prints how much of the time hashing is on one thread.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use flagstone::database::STORES;
use flagstone::store::{MemoryStore, Store};
use flagstone_benches::process::cpu_time;
use flagstone_benches::store_in;
use flagstone_benches::workload_s::{ROOTS, WorkloadS};
use flagstone_core::commitment::Roots;
use flagstone_core::diff::StateDiff;
use flagstone_core::felt::Felt;
use flagstone_core::hash::{Bulk, Hasher, StarknetCrypto};
use flagstone_core::layout::{Layout, StateAt};
use flagstone_flat::Flat;
use flagstone_patricia::{ByPath, Patricia};

/// Room for all records of the state.
const CACHE_BYTES: usize = 1 << 30;

/// Measures the time that goes into a hasher.
struct Timed<'a> {
    hasher: &'a dyn Hasher,
    nanos: AtomicU64,
}

impl Timed<'_> {
    fn time(&self, hash: impl FnOnce(&dyn Hasher)) {
        let started = Instant::now();
        hash(self.hasher);
        self.nanos.fetch_add(started.elapsed().as_nanos() as u64, Ordering::Relaxed);
    }
}

impl Hasher for Timed<'_> {
    fn name(&self) -> &'static str {
        self.hasher.name()
    }
    fn pedersen_many(&self, pairs: &[[Felt; 2]], out: &mut [Felt]) {
        self.time(|hasher| hasher.pedersen_many(pairs, out));
    }
    fn poseidon_many(&self, pairs: &[[Felt; 2]], out: &mut [Felt]) {
        self.time(|hasher| hasher.poseidon_many(pairs, out));
    }
}

/// A state with its layout, its hasher and its store.
struct Contender {
    layout: Box<dyn Layout>,
    hasher: &'static dyn Hasher,
    store: Box<dyn Store>,
    roots: Roots,
    wall: Vec<f64>,
    cpu: Vec<f64>,
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// The least and the median; forgets them.
fn least_and_median(times: &mut Vec<f64>) -> [f64; 2] {
    let mut times = std::mem::take(times);
    times.sort_unstable_by(f64::total_cmp);
    [times[0], times[times.len() / 2]]
}

impl Contender {
    fn new(layout: Box<dyn Layout>, hasher: &'static dyn Hasher, store: Box<dyn Store>) -> Self {
        Self { layout, hasher, store, roots: Roots::default(), wall: Vec::new(), cpu: Vec::new() }
    }

    #[expect(clippy::expect_used, reason = "a bench over a damaged state measures nothing")]
    fn commit(&mut self, diff: &StateDiff, hasher: &dyn Hasher) {
        let (started, cpu) = (Instant::now(), cpu_time());
        let state = StateAt { store: &*self.store, roots: self.roots };
        let staged = self.layout.stage_commitment(state, &[diff], hasher).expect("the state is sound");
        self.wall.push(millis(started.elapsed()));
        self.cpu.push(millis(cpu_time().saturating_sub(cpu)));
        self.store.write(&staged.batch).expect("the store takes it");
        staged.applied.into_iter().for_each(|applied| applied());
        self.roots = staged.roots[0];
    }

    /// Commits a block on one thread and tells which part of the time is hashing.
    fn hashing_share(&mut self, pool: &rayon::ThreadPool, diff: &StateDiff) -> f64 {
        let hasher = Timed { hasher: self.hasher, nanos: AtomicU64::new(0) };
        pool.install(|| self.commit(diff, &hasher));
        let hashing = hasher.nanos.into_inner() as f64 / 1e6;
        hashing / self.wall.pop().unwrap_or(hashing)
    }
}

fn run(name: &str, blocks: usize, mut store: impl FnMut() -> Box<dyn Store>) {
    let (leaves, contracts, after_base, _) = ROOTS[1];
    let (mut workload, base) = WorkloadS::new(leaves, contracts);
    let mut ours = Contender::new(Box::new(Flat::with_cache(CACHE_BYTES)), &Bulk, store());
    let mut theirs = Contender::new(Box::new(Patricia::new(ByPath)), &StarknetCrypto, store());
    for contender in [&mut ours, &mut theirs] {
        // Loading is not measured, so it may take the quicker hasher.
        base.iter().for_each(|diff| contender.commit(diff, &Bulk));
        assert_eq!(contender.roots.contracts.to_string(), after_base, "root of the base");
        (contender.wall, contender.cpu) = Default::default();
    }
    for slots in [100, 1_000, 10_000] {
        for _ in 0..blocks {
            let diff = workload.block(slots);
            for contender in [&mut ours, &mut theirs] {
                let hasher = contender.hasher;
                contender.commit(&diff, hasher);
            }
            assert_eq!(ours.roots, theirs.roots, "roots after a block");
        }
        for (what, of) in [
            ("wall", (|contender| &mut contender.wall) as fn(&mut Contender) -> &mut Vec<f64>),
            ("cpu", |contender| &mut contender.cpu),
        ] {
            let [least, median] = least_and_median(of(&mut ours));
            let [their_least, their_median] = least_and_median(of(&mut theirs));
            println!(
                "root/store={name} slots={slots} time={what}: flat, bulk {least:.1} / {median:.1} ms; patricia-path, starknet-crypto \
                 {their_least:.1} / {their_median:.1} ms; {:.1}x / {:.1}x (least / median of {blocks})",
                their_least / least,
                their_median / median
            );
        }
    }
    let Ok(pool) = rayon::ThreadPoolBuilder::new().num_threads(1).build() else { return };
    let mut shares: Vec<f64> =
        (0..blocks).map(|_| ours.hashing_share(&pool, &workload.block(10_000))).collect();
    let [_, median] = least_and_median(&mut shares);
    println!("hashing/store={name} slots=10000 threads=1: {:.0} % of the time of flat, bulk", median * 100.0);
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let blocks = arguments.iter().find_map(|argument| argument.parse().ok()).unwrap_or(5);
    let wanted = |name: &str| {
        let named = |name: &str| arguments.iter().any(|argument| argument == name);
        named(name) || !(named("memory") || STORES.iter().any(|store| named(store.name)))
    };
    println!("10^6 leaves over 1 000 contracts, {} threads", rayon::current_num_threads());
    if wanted("memory") {
        run("memory", blocks, || Box::new(MemoryStore::new()));
    }
    for store in STORES.iter().filter(|store| wanted(store.name)) {
        #[expect(clippy::expect_used, reason = "without a directory there is nothing to measure")]
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut count = 0;
        run(store.name, blocks, || {
            count += 1;
            store_in(store, &dir.path().join(count.to_string()))
        });
    }
}
