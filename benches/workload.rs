//! Workload S from end to end, for each layout: the base, ten blocks of 1 000 slots, ten of 10 000, in memory or in a store
//! in a directory.
//!
//! `cargo bench -p flagstone-benches --bench workload [-- [THREADS] [STORE] [cache=MIB] [hints] [LAYOUT]...]` prints for each size the median and least
//! time from a prepared diff to its root with all rows staged, the CPU time of that over all threads, the time to write
//! the rows, and what they weigh, and checks the roots that the workload's definition states. The layouts take turns
//! block by block, so that a slow spell of the machine hits all of them.
//!
//! The flat layout has its default cache of records, which holds about a third of the larger state, or one of so many
//! MiB: with 512 all reads are from memory. With `hints`, layouts are told each block's writes before the time begins, and
//! the time that they take to read ahead is told apart.
//!
//! With a store's name, such as `sled`, each layout has a database in a directory of its own, with the store's default settings.
//!
//! After the base it prints what the state takes for each leaf: the bytes of all rows, and the anonymous memory by which
//! the process grew (store, caches, and what the allocator keeps), which is exact if one layout is named and runs alone.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use flagstone::database::STORES;
use flagstone::registry::{LAYOUTS, LayoutEntry};
use flagstone::store::{MemoryStore, Store};
use flagstone_benches::process::{anonymous_memory, cpu_time};
use flagstone_benches::store_in;
use flagstone_benches::workload_s::{ROOT_AFTER_LARGE_BLOCKS, ROOTS, WorkloadS};
use flagstone_core::commitment::Roots;
use flagstone_core::diff::{ContractDiff, StateDiff, Subject};
use flagstone_core::hash::Bulk;
use flagstone_core::layout::{Layout, StateAt};
use tempfile::TempDir;

/// A state in one layout, and what its blocks cost.
struct Contender {
    layout: Box<dyn Layout>,
    store: Box<dyn Store>,
    roots: Roots,
    hints: bool,
    blocks: Vec<Cost>,
}

struct Cost {
    ahead: Duration,
    stage: Duration,
    cpu: Duration,
    write: Duration,
    rows: usize,
    bytes: usize,
    hashes: u64,
}

impl Contender {
    fn new(layout: Box<dyn Layout>, store: Box<dyn Store>, hints: bool) -> Self {
        Self { layout, store, roots: Roots::default(), hints, blocks: Vec::new() }
    }

    #[expect(clippy::expect_used, reason = "a bench over a damaged state measures nothing")]
    fn commit(&mut self, pool: &rayon::ThreadPool, diff: &StateDiff) {
        let state = StateAt { store: &*self.store, roots: self.roots };
        let started = Instant::now();
        if self.hints {
            pool.install(|| self.layout.prefetch(state, &subjects(diff))).expect("the state is sound");
        }
        let ahead = started.elapsed();
        let (started, cpu) = (Instant::now(), cpu_time());
        let staged =
            pool.install(|| self.layout.stage_commitment(state, &[diff], &Bulk)).expect("the state is sound");
        let (stage, cpu) = (started.elapsed(), cpu_time().saturating_sub(cpu));
        let rows = staged.batch.len();
        let bytes = staged.batch.iter().map(|(key, row)| key.len() + row.map_or(0, <[u8]>::len)).sum();
        let hashes = staged.hashes.pedersen + staged.hashes.poseidon;
        let started = Instant::now();
        self.store.write(&staged.batch).expect("the store takes it");
        staged.applied.into_iter().for_each(|applied| applied());
        self.roots = staged.roots[0];
        self.blocks.push(Cost { ahead, stage, cpu, write: started.elapsed(), rows, bytes, hashes });
    }

    /// Bytes of all rows, keys included.
    #[expect(clippy::expect_used, reason = "a bench over a damaged state measures nothing")]
    fn row_bytes(&self) -> usize {
        let mut bytes = 0;
        let mut add = |key: &[u8], row: &[u8]| {
            bytes += key.len() + row.len();
            ControlFlow::Continue(())
        };
        self.store.scan(&[], &mut add).expect("the store is sound");
        bytes
    }

    fn report(&mut self, title: &str) {
        let sorted = |of: fn(&Cost) -> Duration| {
            let mut times: Vec<f64> = self.blocks.iter().map(|block| of(block).as_secs_f64() * 1e3).collect();
            times.sort_unstable_by(f64::total_cmp);
            times
        };
        let (stages, cpus, writes) =
            (sorted(|cost| cost.stage), sorted(|cost| cost.cpu), sorted(|cost| cost.write));
        let count = self.blocks.len();
        let ahead = if self.hints {
            format!("; reading ahead {:>6.1} ms", sorted(|cost| cost.ahead)[count / 2])
        } else {
            String::new()
        };
        let mean = |of: fn(&Cost) -> usize| self.blocks.iter().map(of).sum::<usize>() / count;
        println!(
            "{title:<12} {:<14} stage median {:>7.1} ms, least {:>7.1} ms, cpu {:>7.1}/{:>7.1} ms; write {:>6.1} ms; {} rows, {} bytes, {} hashes a block{ahead}",
            self.layout.name(),
            stages[count / 2],
            stages[0],
            cpus[count / 2],
            cpus[0],
            writes[count / 2],
            mean(|block| block.rows),
            mean(|block| block.bytes),
            mean(|block| block.hashes as usize),
        );
        self.blocks.clear();
    }
}

fn subjects(diff: &StateDiff) -> Vec<Subject> {
    let of_contract = |contract: &ContractDiff| {
        let address = contract.address;
        let slots = contract.storage.iter().map(move |(key, _)| Subject::Storage(address, *key));
        slots.chain([Subject::Nonce(address)]).collect::<Vec<_>>()
    };
    diff.contracts().iter().flat_map(of_contract).collect()
}

fn check(contenders: &[Contender], expected: &str) {
    for contender in contenders {
        assert_eq!(contender.roots.contracts.to_string(), expected, "root of {}", contender.layout.name());
    }
}

/// Loads the base, one contender after the other.
fn load(contenders: &mut [Contender], pool: &rayon::ThreadPool, base: &[StateDiff], expected: &str) {
    let leaves: usize =
        base.iter().flat_map(StateDiff::contracts).map(|contract| contract.storage.len()).sum();
    for contender in contenders.iter_mut() {
        let before = anonymous_memory();
        base.iter().for_each(|diff| contender.commit(pool, diff));
        let grown = anonymous_memory().saturating_sub(before);
        contender.report("base");
        println!(
            "{:<12} {:<14} {:.0} bytes of rows and {:.0} bytes of memory a leaf",
            "",
            contender.layout.name(),
            contender.row_bytes() as f64 / leaves as f64,
            grown as f64 / leaves as f64
        );
    }
    check(contenders, expected);
}

#[expect(clippy::expect_used, reason = "without a directory there is nothing to measure")]
fn directory() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let threads = arguments.iter().filter_map(|argument| argument.parse().ok()).next_back().unwrap_or(0);
    let cache: Option<usize> =
        arguments.iter().find_map(|argument| argument.strip_prefix("cache=")?.parse().ok());
    let stored = STORES.iter().find(|store| arguments.iter().any(|argument| argument == store.name));
    let hints = arguments.iter().any(|argument| argument == "hints");
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    #[expect(clippy::expect_used, reason = "without threads there is nothing to measure")]
    let pool = pool.expect("the system gives threads");
    for (leaves, contracts, after_base, after_blocks) in ROOTS {
        println!("{leaves} leaves over {contracts} contracts, {} threads", pool.current_num_threads());
        let (mut workload, base) = WorkloadS::new(leaves, contracts);
        let make = |entry: &LayoutEntry| {
            let layout = entry.make();
            cache.iter().for_each(|mebibytes| layout.set_cache_bytes(mebibytes << 20));
            layout
        };
        let layouts: Vec<Box<dyn Layout>> = LAYOUTS.iter().map(make).collect();
        let named = |layout: &dyn Layout| arguments.iter().any(|argument| argument == layout.name());
        let all = !layouts.iter().any(|layout| named(layout.as_ref()));
        let layouts = layouts.into_iter().filter(|layout| all || named(layout.as_ref()));
        let dir = stored.map(|store| (store, directory()));
        let contender = |layout: Box<dyn Layout>| {
            let store: Box<dyn Store> = match &dir {
                Some((store, dir)) => store_in(store, &dir.path().join(layout.name())),
                None => Box::new(MemoryStore::new()),
            };
            Contender::new(layout, store, hints)
        };
        let mut contenders: Vec<Contender> = layouts.map(contender).collect();
        load(&mut contenders, &pool, &base, after_base);
        let mut run = |title: String, diffs: &[StateDiff], expected: &str| {
            for diff in diffs {
                contenders.iter_mut().for_each(|contender| contender.commit(&pool, diff));
            }
            check(&contenders, expected);
            contenders.iter_mut().for_each(|contender| contender.report(&title));
        };
        let blocks: Vec<StateDiff> = (0..10).map(|_| workload.block(1_000)).collect();
        run("1000 slots".to_owned(), &blocks, after_blocks);
        if leaves == 1_000_000 {
            let blocks: Vec<StateDiff> = (0..10).map(|_| workload.block(10_000)).collect();
            run("10000 slots".to_owned(), &blocks, ROOT_AFTER_LARGE_BLOCKS);
        }
    }
}
