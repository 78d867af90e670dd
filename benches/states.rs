//! What readers, refusals, ways back and candidates cost who produces blocks.
//!
//! `cargo bench -p flagstone-benches --bench states [-- [LEAVES]]` (default 10^5 leaves, in blocks of 1 000 slots; flat on the default store in a
//! directory). Each figure is a ratio of two things that take turns:
//!
//! - **readers**: blocks closed and persisted in two seconds, with 16 threads that each hold trie reads of 50 ms, over without.
//! - **export**: the same beside an export of the whole state, again and again.
//! - **refusals**: a read that is a hit, after 20 000 blocks with a wrong root were refused, over before.
//! - **take back**: `revert_to` right after `close_block` of 4 000 slots, in milliseconds.
//! - **proof**: a storage proof 50 blocks back, asked for the second time, over one at the tip.
//! - **candidate**: a hit by a candidate's view, over one by the tip's.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use flagstone::core::proof::{ContractStorageKeys, ProofRequest, prove_storage};
use flagstone::core::types::{BlockNumber, ContractAddress, StorageKey};
use flagstone::{Cadence, Engine, EngineConfig, StateDiff, StateUpdate, database, snapshot};

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const SLOTS: u64 = 1_000;
const TURNS: usize = 5;
const SPAN: Duration = Duration::from_secs(2);

fn slot(index: u64) -> (ContractAddress, StorageKey) {
    let mixed = index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((index % 100 + 1).into(), (mixed >> 1).into())
}

/// Block `number`: `slots` of `leaves` slots.
fn update(number: u64, slots: u64, leaves: u64) -> Outcome<StateUpdate> {
    let diff = (0..slots).fold(StateDiff::builder().class(7.into(), 8.into()), |diff, index| {
        let index = (number * slots + index) % leaves;
        let (address, key) = slot(index);
        diff.storage(address, key, (number * leaves + index + 1).into())
    });
    Ok(StateUpdate { starknet_version: "0.14.0".parse().ok(), ..StateUpdate::from(diff.build()?) })
}

fn settle(engine: &Engine) -> Outcome {
    engine.commit()?;
    Ok(engine.sync()?)
}

/// A database, and where its blocks have come.
struct Chain {
    engine: Engine,
    next: u64,
    leaves: u64,
}

impl Chain {
    fn close(&mut self, slots: u64) -> Outcome {
        self.engine.close_block(&update(self.next, slots, self.leaves)?)?;
        self.next += 1;
        Ok(())
    }

    /// Blocks that are closed and persisted in a span, while `beside` goes on in threads until it is told to end.
    fn rate(&mut self, threads: usize, beside: impl Fn(&Engine, &AtomicBool) + Sync) -> Outcome<f64> {
        let (end, from) = (AtomicBool::new(false), self.next);
        let (leaves, mut next) = (self.leaves, self.next);
        let engine = &self.engine;
        let seconds = std::thread::scope(|scope| -> Outcome<f64> {
            for _ in 0..threads {
                scope.spawn(|| beside(engine, &end));
            }
            let began = Instant::now();
            while began.elapsed() < SPAN {
                engine.close_block(&update(next, SLOTS, leaves)?)?.persisted().wait()?;
                next += 1;
            }
            let seconds = began.elapsed().as_secs_f64();
            end.store(true, Ordering::SeqCst);
            Ok(seconds)
        })?;
        self.next = next;
        Ok((next - from) as f64 / seconds)
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn ratio(name: &str, unit: &str, with: Vec<f64>, without: Vec<f64>) {
    let (with, without) = (median(with), median(without));
    println!("{name:<12} {with:>10.2} {unit:<9} with, {without:>10.2} without: x {:.2}", with / without);
}

fn production(chain: &mut Chain) -> Outcome {
    let hold = |engine: &Engine, end: &AtomicBool| {
        while !end.load(Ordering::SeqCst) {
            let held = engine.at_commitment(None, |tries, _, _| {
                std::thread::sleep(Duration::from_millis(50));
                Ok(tries.contract_leaf(&1.into())?)
            });
            black_box(held.is_ok());
        }
    };
    let export = |engine: &Engine, end: &AtomicBool| {
        while !end.load(Ordering::SeqCst) {
            black_box(snapshot::export(engine, None, std::io::sink(), &mut |_| ()).is_ok());
        }
    };
    let nothing = |_: &Engine, _: &AtomicBool| ();
    let (mut alone, mut readers, mut exports) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..TURNS {
        alone.push(chain.rate(0, nothing)?);
        readers.push(chain.rate(16, hold)?);
        exports.push(chain.rate(1, export)?);
    }
    ratio("readers", "blocks/s", readers, alone.clone());
    ratio("export", "blocks/s", exports, alone);
    Ok(())
}

/// Nanoseconds of a hit, over slots that the last block wrote.
fn hit(view: &flagstone::View, last: u64, leaves: u64) -> Outcome<f64> {
    let slots: Vec<_> = (0..SLOTS).map(|index| slot((last * SLOTS + index) % leaves)).collect();
    let began = Instant::now();
    for _ in 0..100 {
        for (address, key) in &slots {
            black_box(view.storage_at(address, key)?);
        }
    }
    Ok(began.elapsed().as_secs_f64() * 1e9 / (100.0 * SLOTS as f64))
}

fn refusals(leaves: u64) -> Outcome {
    let make = flagstone::layout("flat")?.make();
    let config = EngineConfig::default().with_cadence(Cadence::AtClose);
    let engine = Engine::open(Box::new(flagstone::store::MemoryStore::new()), make, config)?;
    engine.close_block(&update(0, SLOTS, leaves)?)?;
    let before = (0..TURNS).map(|_| hit(&engine.view(), 0, leaves)).collect::<Outcome<_>>()?;
    let wrong = StateUpdate { new_root: Some(0xbad.into()), ..update(1, 2, leaves)? };
    let refused = (0..20_000).filter(|_| engine.close_block(&wrong).is_err()).count();
    let after = (0..TURNS).map(|_| hit(&engine.view(), 0, leaves)).collect::<Outcome<_>>()?;
    println!("{refused} blocks refused");
    ratio("refusals", "ns", after, before);
    Ok(())
}

fn take_back(chain: &mut Chain) -> Outcome {
    let mut took = Vec::new();
    for _ in 0..20 {
        settle(&chain.engine)?;
        chain.close(4_000)?;
        let began = Instant::now();
        chain.engine.revert_to(BlockNumber(chain.next - 2))?;
        took.push(began.elapsed().as_secs_f64() * 1e3);
        chain.next -= 1;
    }
    took.sort_by(f64::total_cmp);
    println!("take back    median {:.2} ms, most {:.2} ms", took[took.len() / 2], took[took.len() - 1]);
    Ok(())
}

fn proofs(chain: &mut Chain) -> Outcome {
    for _ in 0..60 {
        chain.close(SLOTS)?;
    }
    settle(&chain.engine)?;
    let (address, key) = slot(5);
    let request = ProofRequest {
        contract_addresses: vec![address],
        contracts_storage_keys: vec![ContractStorageKeys {
            contract_address: address,
            storage_keys: vec![key],
        }],
        ..ProofRequest::default()
    };
    let prove = |back: u64| -> Outcome<f64> {
        let block = BlockNumber(chain.next - 1 - back);
        let began = Instant::now();
        for _ in 0..100 {
            chain.engine.at_commitment(Some(block), |tries, _, root| {
                black_box(prove_storage(tries, root.roots, &request, None)?);
                Ok(())
            })?;
        }
        Ok(began.elapsed().as_secs_f64() * 1e6 / 100.0)
    };
    let began = Instant::now();
    chain.engine.at_commitment(Some(BlockNumber(chain.next - 51)), |_, _, _| Ok(()))?;
    println!("led back 50 blocks once, in {:.1} ms", began.elapsed().as_secs_f64() * 1e3);
    let (mut tip, mut past) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        tip.push(prove(0)?);
        past.push(prove(50)?);
    }
    ratio("proof", "us", past, tip);
    Ok(())
}

fn candidates(chain: &mut Chain) -> Outcome {
    chain.close(SLOTS)?;
    settle(&chain.engine)?;
    let last = chain.next - 1;
    let own = update(chain.next, 10, chain.leaves)?;
    let candidate = chain.engine.propose(chain.engine.view().state(), &own)?;
    let (mut tip, mut of_candidate) = (Vec::new(), Vec::new());
    for _ in 0..4 * TURNS {
        tip.push(hit(&chain.engine.view(), last, chain.leaves)?);
        of_candidate.push(hit(&candidate.view(), last, chain.leaves)?);
    }
    ratio("candidate", "ns", of_candidate, tip);
    Ok(())
}

fn main() -> Outcome {
    let leaves = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(100_000);
    let dir = tempfile::tempdir()?;
    let config = EngineConfig::default().with_history_blocks(64);
    let engine = database::open_or_create(&dir.path().join("db"), None, None, config)?;
    let mut chain = Chain { engine, next: 0, leaves };
    while chain.next * SLOTS < leaves {
        chain.close(SLOTS)?;
    }
    settle(&chain.engine)?;
    production(&mut chain)?;
    refusals(leaves)?;
    take_back(&mut chain)?;
    proofs(&mut chain)?;
    candidates(&mut chain)
}
