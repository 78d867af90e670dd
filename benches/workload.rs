//! Workload S from end to end, for each layout: the base, ten blocks of 1 000 slots, ten of 10 000, in memory.
//!
//! `cargo bench -p flagstone-benches --bench workload [-- [THREADS]]` prints for each size the median and least time from
//! a prepared diff to its root with all rows staged, the time to write them, and what they weigh, and checks the roots
//! that the workload's definition states. The layouts take turns block by block, so that a slow spell of the machine
//! hits all of them.

use std::time::{Duration, Instant};

use flagstone_benches::workload_s::{ROOT_AFTER_LARGE_BLOCKS, ROOTS, WorkloadS};
use flagstone_core::commitment::Roots;
use flagstone_core::diff::StateDiff;
use flagstone_core::hash::Bulk;
use flagstone_core::layout::{Layout, StateAt};
use flagstone_core::store::{MemoryStore, Store};
use flagstone_flat::Flat;
use flagstone_patricia::{ByHash, ByPath, Patricia};

/// A state in one layout, and what its blocks cost.
struct Contender {
    layout: Box<dyn Layout>,
    store: MemoryStore,
    roots: Roots,
    blocks: Vec<Cost>,
}

struct Cost {
    stage: Duration,
    write: Duration,
    rows: usize,
    bytes: usize,
    hashes: u64,
}

impl Contender {
    fn new(layout: Box<dyn Layout>) -> Self {
        Self { layout, store: MemoryStore::new(), roots: Roots::default(), blocks: Vec::new() }
    }

    #[expect(clippy::expect_used, reason = "a bench over a damaged state measures nothing")]
    fn commit(&mut self, pool: &rayon::ThreadPool, diff: &StateDiff) {
        let started = Instant::now();
        let state = StateAt { store: &self.store, roots: self.roots };
        let staged =
            pool.install(|| self.layout.stage_commitment(state, &[diff], &Bulk)).expect("the state is sound");
        let stage = started.elapsed();
        let rows = staged.batch.len();
        let bytes = staged.batch.iter().map(|(key, row)| key.len() + row.map_or(0, <[u8]>::len)).sum();
        let hashes = staged.hashes.pedersen + staged.hashes.poseidon;
        let started = Instant::now();
        self.store.write(staged.batch).expect("a store in memory takes everything");
        staged.applied.into_iter().for_each(|applied| applied());
        self.roots = staged.roots[0];
        self.blocks.push(Cost { stage, write: started.elapsed(), rows, bytes, hashes });
    }

    fn report(&mut self, title: &str) {
        let mut stages: Vec<Duration> = self.blocks.iter().map(|block| block.stage).collect();
        let mut writes: Vec<Duration> = self.blocks.iter().map(|block| block.write).collect();
        stages.sort_unstable();
        writes.sort_unstable();
        let count = self.blocks.len();
        let mean = |of: fn(&Cost) -> usize| self.blocks.iter().map(of).sum::<usize>() / count;
        println!(
            "{title:<12} {:<14} stage median {:>8.1} ms, least {:>8.1} ms; write {:>6.1} ms; {} rows, {} bytes, {} hashes a block",
            self.layout.name(),
            stages[count / 2].as_secs_f64() * 1e3,
            stages[0].as_secs_f64() * 1e3,
            writes[count / 2].as_secs_f64() * 1e3,
            mean(|block| block.rows),
            mean(|block| block.bytes),
            mean(|block| block.hashes as usize),
        );
        self.blocks.clear();
    }
}

fn check(contenders: &[Contender], expected: &str) {
    for contender in contenders {
        assert_eq!(contender.roots.contracts.to_string(), expected, "root of {}", contender.layout.name());
    }
}

fn main() {
    let threads = std::env::args().filter_map(|argument| argument.parse().ok()).next_back().unwrap_or(0);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    #[expect(clippy::expect_used, reason = "without threads there is nothing to measure")]
    let pool = pool.expect("the system gives threads");
    for (leaves, contracts, after_base, after_blocks) in ROOTS {
        println!("{leaves} leaves over {contracts} contracts, {} threads", pool.current_num_threads());
        let (mut workload, base) = WorkloadS::new(leaves, contracts);
        let layouts: [Box<dyn Layout>; 3] =
            [Box::new(Flat::new()), Box::new(Patricia::new(ByPath)), Box::new(Patricia::new(ByHash))];
        let mut contenders = layouts.map(Contender::new);
        let mut run = |title: String, diffs: &[StateDiff], expected: &str| {
            for diff in diffs {
                contenders.iter_mut().for_each(|contender| contender.commit(&pool, diff));
            }
            check(&contenders, expected);
            contenders.iter_mut().for_each(|contender| contender.report(&title));
        };
        run("base".to_owned(), &base, after_base);
        let blocks: Vec<StateDiff> = (0..10).map(|_| workload.block(1_000)).collect();
        run("1000 slots".to_owned(), &blocks, after_blocks);
        if leaves == 1_000_000 {
            let blocks: Vec<StateDiff> = (0..10).map(|_| workload.block(10_000)).collect();
            run("10000 slots".to_owned(), &blocks, ROOT_AFTER_LARGE_BLOCKS);
        }
    }
}
