//! Root recomputation: how long a block's commitment takes, with the hash engine that everyone uses and with ours.
//!
//! The state is workload S with 10^6 leaves over 1 000 contracts, in memory, in the layout named; one iteration stages the
//! commitment of one block of 1 000 or 10 000 slots (read old nodes, shape, hash, rows to write) and writes nothing, so
//! that both engines do the same work again and again. The summary at the end interleaves them and prints the ratio.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, SamplingMode};
use flagstone_benches::interleaved::{Contender, compare};
use flagstone_benches::workload_s::{ROOTS, WorkloadS};
use flagstone_core::commitment::Roots;
use flagstone_core::diff::StateDiff;
use flagstone_core::hash::{Bulk, Hasher, StarknetCrypto};
use flagstone_core::layout::{Layout, StagedCommitment, StateAt};
use flagstone_core::store::{MemoryStore, Store};
use flagstone_flat::Flat;
use flagstone_patricia::{ByPath, Patricia};

const HASHERS: [(&str, &dyn Hasher); 2] = [("starknet-crypto", &StarknetCrypto), ("bulk", &Bulk)];

/// Room for all records of the state: the runs are warm.
const CACHE_BYTES: usize = 1 << 30;

/// A state in memory.
struct Base {
    layout: Box<dyn Layout>,
    store: MemoryStore,
    roots: Roots,
}

impl Base {
    fn new(layout: Box<dyn Layout>, diffs: &[StateDiff]) -> Self {
        let mut base = Self { layout, store: MemoryStore::new(), roots: Roots::default() };
        for diff in diffs {
            let staged = base.stage(diff, &Bulk);
            // A store in memory takes everything.
            let _ = base.store.write(&staged.batch);
            staged.applied.into_iter().for_each(|applied| applied());
            base.roots = staged.roots[0];
        }
        base
    }

    #[expect(clippy::expect_used, reason = "a bench over a damaged state measures nothing")]
    fn stage(&self, diff: &StateDiff, hasher: &dyn Hasher) -> StagedCommitment {
        let state = StateAt { store: &self.store, roots: self.roots };
        self.layout.stage_commitment(state, &[diff], hasher).expect("the state is sound")
    }
}

fn main() {
    let (leaves, contracts, after_base, _) = ROOTS[1];
    let (mut workload, base) = WorkloadS::new(leaves, contracts);
    let blocks = [1_000, 10_000].map(|slots| (slots, workload.block(slots)));
    let layouts: [Box<dyn Layout>; 2] =
        [Box::new(Flat::with_cache(CACHE_BYTES)), Box::new(Patricia::new(ByPath))];
    let states: Vec<Base> = layouts.into_iter().map(|layout| Base::new(layout, &base)).collect();
    assert!(
        states.iter().all(|state| state.roots.contracts.to_string() == after_base),
        "the base has another root"
    );
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("root");
    group.sampling_mode(SamplingMode::Flat).sample_size(10).warm_up_time(Duration::from_millis(500));
    for state in &states {
        for (slots, block) in &blocks {
            for (name, hasher) in HASHERS {
                let parameters = format!("layout={} slots={slots} hash={name}", state.layout.name());
                let id = BenchmarkId::from_parameter(parameters);
                group.bench_function(id, |bencher| bencher.iter(|| black_box(state.stage(block, hasher))));
            }
        }
    }
    group.finish();
    criterion.final_summary();
    for state in &states {
        for (slots, block) in &blocks {
            let hashes = state.stage(block, &Bulk).hashes;
            let title = format!(
                "root of {slots} slots over 10^6 leaves, layout {}, {} threads, {} hashes (nanoseconds a block)",
                state.layout.name(),
                rayon::current_num_threads(),
                hashes.pedersen + hashes.poseidon
            );
            let contender = |(name, hasher): (&'static str, &'static dyn Hasher)| {
                Contender::new(name, 1, move || drop(state.stage(block, hasher)))
            };
            compare(&title, 7, HASHERS.into_iter().map(contender).collect());
        }
    }
}
