//! Proofs, their verification, and what a witness costs beside a commitment.
//!
//! The state is workload S with 10^6 leaves over 1 000 contracts, in memory. One iteration of `prove` makes the proof of
//! that many storage slots with their contracts, of `verify` verifies it. Slots are drawn as a block draws them.
//!
//! Then two copies of the state take the same blocks of 1 000 slots in turns, one with a witness; only staging is timed,
//! caches are warm, and who goes first changes with each block. `-- witness` runs that part alone, with fewer lines.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion};
use flagstone_benches::workload_s::{ROOTS, WorkloadS};
use flagstone_core::commitment::{CommitmentRule, Roots};
use flagstone_core::diff::StateDiff;
use flagstone_core::hash::Bulk;
use flagstone_core::layout::{Layout, StagedCommitment, StateAt};
use flagstone_core::proof::{Anchor, ContractStorageKeys, ProofRequest, prove_storage};
use flagstone_core::store::{MemoryStore, Store};
use flagstone_core::witness::Witness;
use flagstone_flat::Flat;
use flagstone_patricia::{ByPath, Patricia};

/// Room for all records of the state.
const CACHE_BYTES: usize = 1 << 30;
const BLOCKS: usize = 30;
const SLOTS: usize = 1_000;

fn layouts() -> [Box<dyn Layout>; 2] {
    [Box::new(Flat::with_cache(CACHE_BYTES)), Box::new(Patricia::new(ByPath))]
}

/// A state in memory.
struct State {
    layout: Box<dyn Layout>,
    store: MemoryStore,
    roots: Roots,
}

#[expect(clippy::expect_used, reason = "a bench over a damaged state measures nothing")]
impl State {
    fn new(layout: Box<dyn Layout>, base: &[StateDiff]) -> Self {
        let mut state = Self { layout, store: MemoryStore::new(), roots: Roots::default() };
        for diff in base {
            let staged = state.stage(diff);
            state.apply(staged);
        }
        state
    }

    fn at(&self) -> StateAt<'_> {
        StateAt { store: &self.store, roots: self.roots }
    }

    fn stage(&self, diff: &StateDiff) -> StagedCommitment {
        self.layout.stage_commitment(self.at(), &[diff], &Bulk).expect("the state is sound")
    }

    fn stage_with_witness(&self, diff: &StateDiff) -> (StagedCommitment, Witness) {
        let staged = self.layout.stage_commitment_with_witness(self.at(), diff, &[], &Bulk);
        staged.expect("the state is sound")
    }

    fn apply(&mut self, staged: StagedCommitment) {
        self.store.write(&staged.batch).expect("a store in memory takes everything");
        staged.applied.into_iter().for_each(|applied| applied());
        self.roots = staged.roots[0];
    }
}

/// A request for the first slots that a block writes, and their contracts.
fn request(block: &StateDiff, slots: usize) -> ProofRequest {
    let mut request = ProofRequest::default();
    let mut left = slots;
    for contract in block.contracts().iter().filter(|contract| !contract.storage.is_empty()) {
        let taken = left.min(contract.storage.len()).min(slots.div_ceil(10));
        if taken == 0 {
            break;
        }
        left -= taken;
        request.contract_addresses.push(contract.address);
        request.contracts_storage_keys.push(ContractStorageKeys {
            contract_address: contract.address,
            storage_keys: contract.storage[..taken].iter().map(|(key, _)| *key).collect(),
        });
    }
    request
}

#[expect(clippy::expect_used, reason = "a bench of proofs that do not hold measures nothing")]
fn proofs(criterion: &mut Criterion, states: &[State], block: &StateDiff) {
    let mut group = criterion.benchmark_group("proof");
    group.sample_size(20).warm_up_time(Duration::from_millis(500));
    for keys in [1, 100] {
        let request = request(block, keys);
        for state in states {
            let prove = || {
                let tries = state.layout.tries(state.at());
                prove_storage(tries.as_ref(), state.roots, &request, None).expect("the state is sound")
            };
            let id = BenchmarkId::new("prove", format!("layout={} keys={keys}", state.layout.name()));
            group.bench_function(id, |bencher| bencher.iter(|| black_box(prove())));
            let (proof, rule) = (prove(), CommitmentRule::AlwaysBoth);
            let commitment = Some(state.roots.commitment(rule));
            let anchor = Anchor { commitment, rule: Some(rule), block_hash: None };
            if state.layout.name() == "flat" {
                group.bench_function(BenchmarkId::new("verify", format!("keys={keys}")), |bencher| {
                    bencher.iter(|| black_box(proof.verify(&request, &anchor, &Bulk).expect("it holds")));
                });
            }
        }
    }
    group.finish();
}

fn median(times: &mut [Duration]) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e3
}

#[expect(clippy::expect_used, reason = "a bench of witnesses that do not hold measures nothing")]
fn witnesses(layout: usize, base: &[StateDiff], blocks: &[StateDiff]) {
    let [mut without, mut with] = [0, 1].map(|_| {
        let mut all: Vec<Box<dyn Layout>> = layouts().into();
        State::new(all.swap_remove(layout), base)
    });
    let (mut plain, mut recorded, mut encoded, mut applied) = (vec![], vec![], vec![], vec![]);
    let mut bytes = 0;
    for (number, block) in blocks.iter().enumerate() {
        for turn in 0..2 {
            let started = Instant::now();
            if (turn + number) % 2 == 0 {
                let staged = without.stage(block);
                plain.push(started.elapsed());
                without.apply(staged);
            } else {
                let (staged, witness) = with.stage_with_witness(block);
                recorded.push(started.elapsed());
                with.apply(staged);
                let started = Instant::now();
                bytes += witness.encode().len();
                encoded.push(started.elapsed());
                let started = Instant::now();
                witness.apply(block, &Bulk).expect("it holds");
                applied.push(started.elapsed());
            }
        }
        assert_eq!(without.roots, with.roots);
    }
    let ratios = plain.iter().zip(&recorded).map(|(plain, with)| with.as_secs_f64() / plain.as_secs_f64());
    let mut ratios: Vec<f64> = ratios.collect();
    ratios.sort_by(f64::total_cmp);
    let (name, slots, count) = (without.layout.name(), SLOTS, blocks.len());
    println!(
        "witness of {slots} slots, layout {name}, {count} blocks: commit {:.2} ms, with witness {:.2} ms, ratio {:.2} (median of pairs); \
         encode {:.2} ms, {} bytes; apply without a store {:.2} ms",
        median(&mut plain),
        median(&mut recorded),
        ratios[ratios.len() / 2],
        median(&mut encoded),
        bytes / blocks.len(),
        median(&mut applied),
    );
}

fn main() {
    let (leaves, contracts, ..) = ROOTS[1];
    let (mut workload, base) = WorkloadS::new(leaves, contracts);
    let blocks: Vec<StateDiff> = (0..BLOCKS).map(|_| workload.block(SLOTS)).collect();
    if !std::env::args().any(|argument| argument == "witness") {
        let mut criterion = Criterion::default().configure_from_args();
        let states: Vec<State> = layouts().into_iter().map(|layout| State::new(layout, &base)).collect();
        proofs(&mut criterion, &states, &blocks[0]);
        criterion.final_summary();
    }
    for layout in 0..layouts().len() {
        witnesses(layout, &base, &blocks);
    }
}
