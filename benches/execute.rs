//! Execution of a block by StarkWare's executor: over flagstone, and over a reader that answers from hash maps.
//!
//! One block of each workload, 200 transactions, on a state that has seen five such blocks and so is warm. All contenders
//! execute the same transactions; nothing is closed. `hash maps` holds what the block reads and its classes, ready to run: the
//! least that reading can cost. `flat` and the Patricia layouts are on the default store, with the read cache that the engine has by
//! default; `no cache` is without, which shows what a read costs the layout itself. Those run one transaction after the
//! other. Last, the streaming executor with one and two workers. A number above 1 is faster than the first line.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use blockifier::blockifier::config::TransactionExecutorConfig;
use blockifier::blockifier::transaction_executor::TransactionExecutor;
use blockifier::execution::contract_class::RunnableCompiledClass;
use blockifier::state::cached_state::StateMaps;
use blockifier::state::errors::StateError;
use blockifier::state::state_api::{StateReader, StateResult};
use flagstone::core::felt::Felt;
use flagstone::core::types::ClassHash;
use flagstone::database::{STORES, StoreSettings};
use flagstone::registry::LAYOUTS;
use flagstone::sequencer::classes::{EngineClasses, ReadyClasses};
use flagstone::sequencer::workload::{self, BlockOf, Genesis, Workload};
use flagstone::sequencer::{BlockInput, ClassStore, Producer, ProducerConfig, SequencerError, ViewReader};
use flagstone::store::{MemoryStore, Store};
use flagstone::{Engine, EngineConfig, layout};
use flagstone_benches::interleaved::{Contender, compare};
use starknet_api::core as api;
use starknet_api::state::StorageKey;

const TRANSACTIONS: usize = 200;
/// Blocks before the one that is timed.
const WARM_BLOCKS: u64 = 5;
const TURNS: usize = 9;

/// Answers from hash maps. What is not in them is zero, as in a state.
#[derive(Clone)]
struct Maps {
    values: Arc<StateMaps>,
    classes: Arc<HashMap<api::ClassHash, (RunnableCompiledClass, api::CompiledClassHash)>>,
}

impl StateReader for Maps {
    fn get_storage_at(&self, address: api::ContractAddress, key: StorageKey) -> StateResult<Felt> {
        Ok(self.values.storage.get(&(address, key)).copied().unwrap_or_default())
    }
    fn get_nonce_at(&self, address: api::ContractAddress) -> StateResult<api::Nonce> {
        Ok(self.values.nonces.get(&address).copied().unwrap_or_default())
    }
    fn get_class_hash_at(&self, address: api::ContractAddress) -> StateResult<api::ClassHash> {
        Ok(self.values.class_hashes.get(&address).copied().unwrap_or_default())
    }
    fn get_compiled_class(&self, class_hash: api::ClassHash) -> StateResult<RunnableCompiledClass> {
        let class = self.classes.get(&class_hash).map(|(class, _)| class.clone());
        class.ok_or(StateError::UndeclaredClassHash(class_hash))
    }
    fn get_compiled_class_hash(&self, class_hash: api::ClassHash) -> StateResult<api::CompiledClassHash> {
        Ok(self.values.compiled_class_hashes.get(&class_hash).copied().unwrap_or_default())
    }
    fn get_compiled_class_hash_v2(
        &self,
        class_hash: api::ClassHash,
        _: &RunnableCompiledClass,
    ) -> StateResult<api::CompiledClassHash> {
        let hash = self.classes.get(&class_hash).map(|(_, v2)| *v2);
        hash.ok_or(StateError::MissingCompiledClassHashV2(class_hash))
    }
}

/// One layout on the default store, warm, and the same rows without a cache.
struct State {
    name: &'static str,
    engine: Arc<Engine>,
    no_cache: Arc<Engine>,
}

fn open(store: &Arc<dyn Store>, name: &str, read_cache_bytes: usize) -> Result<Arc<Engine>, SequencerError> {
    let config = EngineConfig::default().with_read_cache_bytes(read_cache_bytes);
    Ok(Arc::new(Engine::open(Box::new(Arc::clone(store)), layout(name)?.make(), config)?))
}

fn block(engine: &Engine, workload: Workload) -> Result<BlockInput, SequencerError> {
    let view = engine.view();
    let number = view.block().and_then(|block| block.next()).unwrap_or_default();
    workload::block(&BlockOf { workload, seed: 1, number, transactions: TRANSACTIONS }, &view, None)
}

fn state(
    name: &'static str,
    dir: &Path,
    genesis: &Genesis,
    classes: &Arc<dyn ClassStore>,
    workload: Workload,
) -> Result<State, SequencerError> {
    let store: Arc<dyn Store> = Arc::from(STORES[0].open(dir, &StoreSettings::default())?);
    let engine = open(&store, name, EngineConfig::default().read_cache_bytes)?;
    let producer = Producer::new(Arc::clone(&engine), Arc::clone(classes), ProducerConfig::default());
    producer.close_update(&genesis.update, &genesis.classes)?;
    for _ in 0..WARM_BLOCKS {
        producer.close(&producer.execute(&block(&engine, workload)?)?)?;
    }
    drop(producer);
    engine.commit()?;
    engine.sync()?;
    let no_cache = open(&store, name, 0)?;
    Ok(State { name, engine, no_cache })
}

/// One after the other, over any reader.
#[expect(clippy::expect_used, reason = "a bench over a damaged state measures nothing")]
fn execute<S: StateReader + Send + Sync + 'static>(reader: S, block: &BlockInput) -> StateMaps {
    let (context, config) = (block.context.clone(), TransactionExecutorConfig::default());
    let mut executor = TransactionExecutor::pre_process_and_create(reader, context, None, config)
        .expect("the first ten blocks need no old one");
    let outcomes = executor.execute_txs(&block.transactions, None);
    assert!(outcomes.iter().all(Result::is_ok), "no transaction is refused");
    executor.finalize().expect("the state can be read").initial_reads
}

fn bench(
    workload: Workload,
    genesis: &Genesis,
    classes: &Arc<dyn ClassStore>,
) -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let states = LAYOUTS
        .iter()
        .map(|entry| state(entry.name, &dir.path().join(entry.name), genesis, classes, workload))
        .collect::<Result<Vec<_>, _>>()?;
    let block = &block(&states[0].engine, workload)?;
    let values = Arc::new(execute(ViewReader::new(states[0].engine.view(), Arc::clone(classes)), block));
    let mut ready = HashMap::new();
    for class in &genesis.classes {
        if let Some(class) = classes.get(class.class_hash)?.map(|kept| (class.class_hash, kept)) {
            let (ClassHash(class_hash), kept) = class;
            let v2 = api::CompiledClassHash(kept.hashes.unwrap_or_default().v2.0);
            ready.insert(api::ClassHash(class_hash), (kept.runnable, v2));
        }
    }
    let maps = Maps { values, classes: Arc::new(ready) };
    let mut contenders = vec![Contender::new("hash maps", TRANSACTIONS, move || {
        execute(maps.clone(), block);
    })];
    for State { name, engine, no_cache } in &states {
        for (suffix, engine) in [("", engine), (", no cache", no_cache)] {
            contenders.push(Contender::new(
                format!("{name} on {}{suffix}", STORES[0].name),
                TRANSACTIONS,
                move || {
                    execute(ViewReader::new(engine.view(), Arc::clone(classes)), block);
                },
            ));
        }
    }
    for workers in [1, 2] {
        let config = ProducerConfig::default().with_workers(workers);
        let producer = Producer::new(Arc::clone(&states[0].engine), Arc::clone(classes), config);
        #[expect(clippy::expect_used, reason = "a bench over a damaged state measures nothing")]
        let run = move || {
            producer.execute(block).expect("the state can be read");
        };
        contenders.push(Contender::new(
            format!("flat on {}, {workers} workers", STORES[0].name),
            TRANSACTIONS,
            run,
        ));
    }
    compare(&format!("execute/workload={} (nanoseconds a transaction)", workload.name()), TURNS, contenders);
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let genesis = workload::genesis()?;
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let engine = open(&store, "flat", 0)?;
    let classes = ReadyClasses::new(EngineClasses::new(Arc::clone(&engine)), usize::MAX);
    let classes: Arc<dyn ClassStore> = Arc::new(classes);
    let declarer = Producer::new(engine, Arc::clone(&classes), ProducerConfig::default());
    declarer.close_update(&genesis.update, &genesis.classes)?;
    Workload::ALL
        .into_iter()
        .filter(|workload| *workload != Workload::Mixed)
        .try_for_each(|workload| bench(workload, &genesis, &classes))
}
