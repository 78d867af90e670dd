//! StarkWare's executor on this state: the same chain however it is run, and errors that stay errors.

mod believed;
mod in_block;

use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, LazyLock, Mutex};

use blockifier::blockifier::config::{ConcurrencyConfig, TransactionExecutorConfig};
use blockifier::blockifier::transaction_executor::{DEFAULT_STACK_SIZE, TransactionExecutor};
use blockifier::execution::contract_class::RunnableCompiledClass;
use blockifier::state::cached_state::StateMaps;
use blockifier::state::errors::StateError;
use blockifier::state::state_api::StateReader;
use flagstone::core::diff::Subject;
use flagstone::core::types::{BlockNumber, ClassHash, ContractAddress, Nonce, StateCommitment, StorageKey};
use flagstone::engine::{Blob, NewBlock};
use flagstone::registry::LAYOUTS;
use flagstone::sequencer::classes::{ClassError, EngineClasses, ReadyClasses, blob};
use flagstone::sequencer::hints::Prefetch;
use flagstone::sequencer::workload::{self, BlockOf, Genesis, Workload};
use flagstone::sequencer::{
    BlockInput, ClassStore, DeclaredClass, Executed, Producer, ProducerConfig, ReadyClass, SequencerError,
    ViewReader, state_diff,
};
use flagstone::{Cadence, Engine, EngineConfig, ErrorKind, StateUpdate};
use serde_json::Value;
use starknet_api::transaction::TransactionVersion;

use crate::support::{Place, config, settle};

/// All random choices follow from this.
const SEED: u64 = 20;

static GENESIS: LazyLock<Genesis> = LazyLock::new(|| workload::genesis().unwrap());

/// The genesis's classes, ready once for all tests: those of a database that nothing else is done with.
static CLASSES: LazyLock<Arc<dyn ClassStore>> = LazyLock::new(|| {
    let engine = Arc::new(Place::memory().open("flat", config(Cadence::AtClose, 1)));
    let classes: Arc<dyn ClassStore> = Arc::new(with_classes(&engine));
    engine
        .close_block(NewBlock::from(&GENESIS.update).with_blobs(&classes.put(&GENESIS.classes).unwrap()))
        .unwrap();
    classes
});

/// The classes of an engine's own blocks.
fn with_classes(engine: &Arc<Engine>) -> ReadyClasses<EngineClasses> {
    ReadyClasses::new(EngineClasses::new(Arc::clone(engine)), 1 << 30)
}

fn producer(place: &Place, layout: &str, workers: usize) -> Producer {
    let engine = Arc::new(place.open(layout, config(Cadence::EVERY_BLOCK, 1)));
    if engine.head().closed.is_none() {
        engine.close_block(&GENESIS.update).unwrap();
    }
    Producer::new(engine, Arc::clone(&CLASSES), ProducerConfig::default().with_workers(workers))
}

fn of(workload: Workload, number: u64, transactions: usize) -> BlockOf {
    BlockOf { workload, seed: SEED, number: BlockNumber(number), transactions }
}

/// The next block on the engine's state.
fn next(producer: &Producer, workload: Workload, transactions: usize) -> BlockInput {
    let view = producer.engine().view();
    let number = view.block().unwrap().0 + 1;
    workload::block(&of(workload, number, transactions), &view, None).unwrap()
}

fn produce(producer: &Producer, workload: Workload, transactions: usize) -> (Executed, StateCommitment) {
    let executed = producer.execute(&next(producer, workload, transactions)).unwrap();
    let closed = producer.close(&executed).unwrap();
    let root = producer.wait_for_root(closed.number).unwrap();
    (executed, root.commitment)
}

fn chain(producer: &Producer, workload: Workload) -> Vec<(StateUpdate, StateCommitment)> {
    (0..2).map(|_| produce(producer, workload, 20)).map(|(executed, root)| (executed.update, root)).collect()
}

fn check_same_chain(workload: Workload) {
    let expected = chain(&producer(&Place::memory(), "flat", 0), workload);
    assert!(expected.iter().all(|(update, _)| !update.diff.is_empty()));
    for layout in LAYOUTS {
        for workers in [0, 1, 2, 4] {
            for place in Place::all() {
                let what = format!("{} on {}, {workers} workers, seed {SEED}", layout.name, place.name());
                assert_eq!(chain(&producer(&place, layout.name, workers), workload), expected, "{what}");
            }
        }
    }
}

#[test]
fn transfers_give_one_chain_however_they_run() {
    check_same_chain(Workload::Transfers);
}

#[test]
fn multicalls_give_one_chain_however_they_run() {
    check_same_chain(Workload::Multicall);
}

#[test]
fn contended_transactions_give_one_chain_however_they_run() {
    check_same_chain(Workload::Contended);
}

#[test]
fn mixed_transactions_give_one_chain_however_they_run() {
    check_same_chain(Workload::Mixed);
}

#[test]
fn a_block_is_closed_on_the_state_it_was_executed_on_or_not_at_all() {
    let producer = producer(&Place::memory(), "flat", 0);
    let block = next(&producer, Workload::Transfers, 5);
    let [first, second] = [0; 2].map(|_| producer.execute(&block).unwrap());
    assert_eq!(first.parent, producer.engine().view().state());
    let closed = producer.close(&first).unwrap();
    assert_eq!(closed.block.state(), producer.engine().view().state());
    let Err(error) = producer.close(&second) else { panic!("closed on another state") };
    assert!(error.to_string().contains("was executed on state"), "{error}");
    closed.block.committed().wait().unwrap();
}

#[test]
fn the_chunked_executor_makes_the_same_diff() {
    let producer = producer(&Place::memory(), "flat", 0);
    let block = next(&producer, Workload::Mixed, 30);
    let expected = producer.execute(&block).unwrap().update.diff;
    for (n_workers, chunk_size) in [(2, 7), (4, 64)] {
        let concurrency_config = ConcurrencyConfig { enabled: true, n_workers, chunk_size };
        let config = TransactionExecutorConfig { concurrency_config, stack_size: DEFAULT_STACK_SIZE };
        let reader = ViewReader::new(producer.engine().view(), Arc::clone(&CLASSES));
        let mut executor =
            TransactionExecutor::pre_process_and_create(reader.clone(), block.context.clone(), None, config)
                .unwrap();
        assert_eq!(executor.execute_txs(&block.transactions, None).len(), 30);
        let summary = executor.finalize().unwrap();
        assert_eq!(reader.failure(), None);
        assert_eq!(state_diff(&summary.state_diff, &[]).unwrap(), expected, "{n_workers} workers");
    }
}

#[test]
fn transactions_do_what_the_workloads_say() {
    for workload in Workload::ALL {
        let producer = producer(&Place::memory(), "flat", 2);
        let (executed, _) = produce(&producer, workload, 60);
        let reasons: Vec<String> = executed
            .outcomes
            .iter()
            .map(|outcome| outcome.as_ref().expect("nothing is refused"))
            .filter_map(|(info, _)| info.revert_error.as_ref().map(ToString::to_string))
            .collect();
        match workload {
            Workload::Mixed => {
                assert!(!reasons.is_empty(), "some revert");
                assert!(reasons.iter().all(|reason| reason.contains("ASSERT_EQ")), "{reasons:?}");
                check_declared_and_used(&executed);
            }
            _ => assert_eq!(reasons, [] as [String; 0], "{}", workload.name()),
        }
    }
}

/// Two classes are declared. An account of the first is deployed and sends; so is a contract of it, which then is of the second.
fn check_declared_and_used(executed: &Executed) {
    let diff = &executed.update.diff;
    let classes: Vec<ClassHash> = executed.classes.iter().map(|class| class.class_hash).collect();
    assert_eq!(classes.len(), 2);
    let mut deployed: Vec<(ClassHash, Option<Nonce>, usize)> = diff
        .contracts()
        .iter()
        .filter_map(|one| Some((one.class_hash?, one.nonce, one.storage.len())))
        .collect();
    deployed.sort_by_key(|(class_hash, ..)| *class_hash != classes[0]);
    assert_eq!(deployed, [(classes[0], Some(Nonce::from(2)), 0), (classes[1], None, 1)]);
    let second = executed.classes[1].hashes.unwrap().v2;
    assert!(
        diff.classes()
            .iter()
            .any(|class| (class.class_hash, class.compiled_class_hash) == (classes[1], second))
    );
}

#[test]
fn what_the_executor_says_it_read_is_what_the_view_says() {
    for layout in LAYOUTS {
        let producer = producer(&Place::memory(), layout.name, 2);
        produce(&producer, Workload::Mixed, 40);
        let view = producer.engine().view();
        let reads = producer.execute(&next(&producer, Workload::Mixed, 40)).unwrap().summary.initial_reads;
        assert!(reads.storage.len() > 100 && reads.nonces.len() > 10 && reads.class_hashes.len() > 10);
        for ((address, key), value) in reads.storage {
            assert_eq!(view.storage_at(&ours(address), &slot(key)).unwrap().0, value);
        }
        for (address, nonce) in reads.nonces {
            assert_eq!(view.nonce_at(&ours(address)).unwrap().0, nonce.0);
        }
        for (address, class_hash) in reads.class_hashes {
            assert_eq!(view.class_hash_at(&ours(address)).unwrap().0, class_hash.0);
        }
        for (class_hash, compiled) in reads.compiled_class_hashes {
            assert_eq!(view.compiled_class_hash_at(&ClassHash(class_hash.0)).unwrap().0, compiled.0);
        }
    }
}

fn ours(address: starknet_api::core::ContractAddress) -> ContractAddress {
    (*address.0.key()).try_into().unwrap()
}

fn slot(key: starknet_api::state::StorageKey) -> StorageKey {
    (*key.0.key()).try_into().unwrap()
}

/// Notes the hints.
#[derive(Default)]
struct Noted(Mutex<HashSet<Subject>>);

impl Prefetch for Noted {
    fn prefetch(&self, hints: Vec<Subject>) {
        self.0.lock().unwrap().extend(hints);
    }
}

/// Storage that the executor read, and that no hint named; the counter of aliases apart, which is read once and kept in memory
/// by being written.
fn not_named(noted: &Noted, reads: &StateMaps) -> Vec<Subject> {
    let noted = noted.0.lock().unwrap();
    let storage = reads.storage.keys().map(|(address, key)| Subject::Storage(ours(*address), slot(*key)));
    let counter = Subject::Storage(2.into(), 0.into());
    storage.filter(|hint| *hint != counter && !noted.contains(hint)).collect()
}

#[test]
fn after_one_block_hints_name_what_the_next_one_reads() {
    for (workload, unnamed_max) in [
        (Workload::Transfers, 0),
        (Workload::Contended, 0),
        (Workload::Multicall, 0),
        // What a reverted transaction read is nowhere said, so it is not learned; nor is what was called once a block (by
        // a library call), or is of a class that no block before has.
        (Workload::Mixed, 3),
    ] {
        let noted = Arc::new(Noted::default());
        let hints: Arc<dyn Prefetch> = Arc::<Noted>::clone(&noted);
        let producer = producer(&Place::memory(), "flat", 2).with_prefetch(hints);
        produce(&producer, workload, 60);
        noted.0.lock().unwrap().clear();
        let reads = producer.execute(&next(&producer, workload, 60)).unwrap().summary.initial_reads;
        let unnamed = not_named(&noted, &reads);
        assert!(unnamed.len() <= unnamed_max, "{}: {unnamed:?}", workload.name());
        assert!(reads.storage.len() > 100);
        let nonces: Vec<Subject> =
            reads.nonces.keys().map(|address| Subject::Nonce(ours(*address))).collect();
        let noted = noted.0.lock().unwrap();
        let missing = nonces.iter().filter(|hint| !noted.contains(hint)).count();
        assert!(missing <= 2, "{}: {missing} of {}", workload.name(), nonces.len());
    }
}

#[test]
fn before_any_block_hints_name_what_transfers_read() {
    let noted = Arc::new(Noted::default());
    let hints: Arc<dyn Prefetch> = Arc::<Noted>::clone(&noted);
    let producer = producer(&Place::memory(), "flat", 2).with_prefetch(hints);
    for workload in [Workload::Transfers, Workload::Contended] {
        noted.0.lock().unwrap().clear();
        let reads = producer.execute(&next(&producer, workload, 30)).unwrap().summary.initial_reads;
        assert_eq!(not_named(&noted, &reads), [], "{}", workload.name());
    }
}

#[test]
fn classes_are_read_back_after_reopening_and_migrate_to_their_second_hash() {
    let dir = tempfile::tempdir().unwrap();
    let open = || {
        let db = dir.path().join("db");
        Arc::new(flagstone::database::open_or_create(&db, None, None, EngineConfig::default()).unwrap())
    };
    let engine = open();
    let classes = Arc::new(with_classes(&engine));
    let producer = Producer::new(engine, classes, ProducerConfig::default());
    producer.close_update(&GENESIS.update, &GENESIS.classes).unwrap();
    let (executed, _) = produce(&producer, Workload::Mixed, 10);
    drop(producer);

    let engine = open();
    let classes = with_classes(&engine);
    let view = engine.view();
    let all: Vec<&DeclaredClass> = GENESIS.classes.iter().chain(&executed.classes).collect();
    assert_eq!(all.len(), 6);
    for declared in all {
        let kept = classes.get(declared.class_hash).unwrap().expect("it was put");
        assert_eq!(kept.runnable, RunnableCompiledClass::try_from((*declared.class).clone()).unwrap());
        assert_eq!(kept.hashes, declared.hashes);
        let in_state = view.compiled_class_hash_at(&declared.class_hash).unwrap();
        assert_eq!(in_state, declared.hashes.unwrap_or_default().v2);
    }
    let erc20 = GENESIS.classes.iter().find_map(|class| class.hashes).unwrap();
    assert_ne!(erc20.v1, erc20.v2, "the genesis declared the first");
    assert_eq!(classes.get(ClassHash::from(77)).unwrap(), None);
}

#[test]
fn a_class_is_there_exactly_if_its_block_is_closed() {
    for cadence in [Cadence::AtClose, Cadence::EVERY_BLOCK, Cadence::OnRequest] {
        let place = Place::memory();
        let engine = Arc::new(place.open("flat", config(cadence, 1)));
        let classes = Arc::new(with_classes(&engine));
        let store: Arc<dyn ClassStore> = Arc::<ReadyClasses<EngineClasses>>::clone(&classes);
        let producer = Producer::new(engine, store, ProducerConfig::default());
        producer.close_update(&GENESIS.update, &GENESIS.classes).unwrap();
        let executed = producer.execute(&next(&producer, Workload::Mixed, 10)).unwrap();
        let declared = executed.classes[0].class_hash;
        assert_eq!(classes.get(declared).unwrap(), None);
        let wrong = StateUpdate { block_number: Some(BlockNumber(99)), ..executed.update.clone() };
        let Err(error) = producer.close_update(&wrong, &executed.classes) else { panic!("closed") };
        assert_eq!(error.kind(), ErrorKind::Input, "{error}");
        assert_eq!(classes.get(declared).unwrap(), None, "its block was refused");
        producer.close(&executed).unwrap();
        assert!(classes.get(declared).unwrap().is_some(), "{cadence:?}: before its block has a root");
        settle(producer.engine());
        drop((producer, classes));
        let classes = with_classes(&Arc::new(place.open("flat", config(cadence, 1))));
        assert!(classes.get(declared).unwrap().is_some(), "{cadence:?}");
    }
}

#[test]
fn hints_to_the_engine_change_no_block_and_are_not_the_executors_reads() {
    for layout in LAYOUTS {
        let expected = chain(&producer(&Place::memory(), layout.name, 2), Workload::Mixed);
        let place = Place::memory();
        let hinting = producer(&place, layout.name, 2);
        let engine: Arc<dyn Prefetch> = Arc::<Engine>::clone(hinting.engine());
        let hinting = hinting.with_prefetch(engine);
        assert_eq!(chain(&hinting, Workload::Mixed), expected, "{}", layout.name);
        let stats = hinting.engine().hint_stats();
        assert!(stats.hinted > 100 && stats.dropped == 0, "{stats:?}");
        drop(hinting);

        let cold = producer(&place, layout.name, 0);
        let block = next(&cold, Workload::Mixed, 20);
        let first = cold.execute(&block).unwrap().reads;
        assert!(0 < first.misses && first.misses < first.of_values(), "{first:?}");
        let again = cold.execute(&block).unwrap().reads;
        assert_eq!((again.misses, again.hit_rate()), (0, 1.0), "{again:?}");
    }
}

#[test]
fn a_damaged_class_is_an_error_and_not_another_class() {
    let declared = GENESIS.classes.last().unwrap();
    let bytes = blob::encode(declared).unwrap();
    blob::decode(declared.class_hash, &bytes).unwrap();
    let damaged = |bytes: &[u8]| {
        let error = blob::decode(declared.class_hash, bytes).unwrap_err();
        assert!(matches!(error, ClassError::Damaged { .. }), "{error}");
    };
    for at in (0..bytes.len()).step_by(97).chain(0..80) {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1;
        damaged(&bytes);
    }
    for length in [0, 3, 74, 78, bytes.len() / 2, bytes.len() - 1] {
        damaged(&bytes[..length]);
    }
    damaged(&[&bytes[..], &[0]].concat());
    let error = blob::decode(ClassHash::from(1), &bytes).unwrap_err();
    assert!(error.to_string().contains("class 0x1: what is kept for it is damaged: checksum"), "{error}");
}

#[test]
fn the_cache_of_ready_classes_keeps_to_its_bytes() {
    let bytes: Vec<usize> =
        GENESIS.classes.iter().map(|class| CLASSES.get(class.class_hash).unwrap().unwrap().bytes).collect();
    let largest = *bytes.iter().max().unwrap();
    let classes = ReadyClasses::new(Arc::clone(&CLASSES), largest);
    for class in GENESIS.classes.iter().cycle().take(20) {
        assert!(classes.get(class.class_hash).unwrap().is_some());
        let (count, held) = classes.held();
        assert!(count > 0 && held <= largest, "{count} classes of {held} bytes");
    }
    let none = ReadyClasses::new(Arc::clone(&CLASSES), 0);
    assert!(none.get(GENESIS.classes[0].class_hash).unwrap().is_some());
    assert_eq!(none.held(), (0, 0));
}

#[test]
fn a_read_that_fails_is_an_error_with_its_text() {
    let producer = producer(&Place::memory(), "flat", 0);
    let reader = ViewReader::new(producer.engine().view(), Arc::clone(&CLASSES));
    let erc20 = GENESIS.classes.iter().find(|class| class.hashes.is_some()).unwrap();
    let class_hash = starknet_api::core::ClassHash(erc20.class_hash.0);
    let runnable = reader.get_compiled_class(class_hash).unwrap();
    let v2 = reader.get_compiled_class_hash_v2(class_hash, &runnable).unwrap();
    assert_eq!(v2.0, erc20.hashes.unwrap().v2.0);
    assert_eq!(reader.get_compiled_class_hash(class_hash).unwrap().0, erc20.hashes.unwrap().v1.0);
    let other = starknet_api::core::ClassHash(77u64.into());
    // Of a class that the view does not have, the one that the executor hands over is hashed.
    assert_eq!(reader.get_compiled_class_hash_v2(other, &runnable).unwrap(), v2);
    assert!(
        matches!(reader.get_compiled_class(other), Err(StateError::UndeclaredClassHash(class)) if class == other)
    );
    assert_eq!(reader.failure(), None);

    let config = EngineConfig::default().with_recent_blocks_max(0);
    let engine = Arc::new(Place::memory().open("flat", config));
    engine.close_block(&GENESIS.update).unwrap();
    let reader = ViewReader::new(engine.view(), Arc::clone(&CLASSES));
    let producer = Producer::new(engine, Arc::clone(&CLASSES), ProducerConfig::default());
    produce(&producer, Workload::Transfers, 2);
    settle(producer.engine());
    let address = 5u128.into();
    let errors = [
        reader.get_storage_at(address, 6u128.into()).unwrap_err(),
        reader.get_nonce_at(address).unwrap_err(),
        reader.get_class_hash_at(address).unwrap_err(),
        reader.get_compiled_class(class_hash).unwrap_err(),
        reader.get_compiled_class_hash(class_hash).unwrap_err(),
        reader.get_compiled_class_hash_v2(class_hash, &runnable).unwrap_err(),
    ];
    for error in errors {
        assert!(
            matches!(&error, StateError::StateReadError(text) if text.contains("view expired")),
            "{error}"
        );
    }
    assert!(reader.failure().unwrap().contains("view expired"));
}

#[test]
fn a_class_of_a_block_that_was_not_closed_is_not_declared() {
    let engine = Place::memory().open("flat", config(Cadence::EVERY_BLOCK, 1));
    let reader = ViewReader::new(engine.view(), Arc::clone(&CLASSES));
    let erc20 = GENESIS.classes.iter().find(|class| class.hashes.is_some()).unwrap();
    let class_hash = starknet_api::core::ClassHash(erc20.class_hash.0);
    assert!(matches!(reader.get_compiled_class(class_hash), Err(StateError::UndeclaredClassHash(_))));
    assert_eq!(reader.failure(), None);
}

/// Knows classes until it fails.
struct Failing;

impl ClassStore for Failing {
    fn get(&self, class_hash: ClassHash) -> Result<Option<ReadyClass>, ClassError> {
        let erc20 = GENESIS.classes.iter().find(|class| class.hashes.is_some()).unwrap();
        if class_hash == erc20.class_hash {
            return Err(ClassError::Store("the disk is on fire".into()));
        }
        CLASSES.get(class_hash)
    }
    fn put(&self, _: &[DeclaredClass]) -> Result<Vec<Blob>, ClassError> {
        Err(ClassError::Store("the disk is full".into()))
    }
}

#[test]
fn a_block_whose_reads_failed_is_not_made() {
    for workers in [0, 2] {
        let engine = Arc::new(Place::memory().open("flat", config(Cadence::EVERY_BLOCK, 1)));
        engine.close_block(&GENESIS.update).unwrap();
        let workers = ProducerConfig::default().with_workers(workers);
        let broken = Producer::new(Arc::clone(&engine), Arc::new(Failing), workers);
        let block = next(&broken, Workload::Transfers, 10);
        let Err(error) = broken.execute(&block) else { panic!("executed without the class") };
        let expected = "block 1: reading the state failed: compiled classes: the disk is on fire";
        assert!(error.to_string().starts_with(expected), "{error}");
        assert_eq!(error.kind(), ErrorKind::Store);

        let sound = Producer::new(Arc::clone(&engine), Arc::clone(&CLASSES), workers);
        let executed = sound.execute(&next(&sound, Workload::Mixed, 10)).unwrap();
        let Err(error) = broken.close(&executed) else { panic!("closed without the class") };
        assert!(matches!(error, SequencerError::Class(ClassError::Store(_))), "{error}");
        assert_eq!(engine.head().closed, Some(BlockNumber(0)), "nothing was closed");
    }
}

#[test]
fn transactions_are_of_the_current_version() {
    let producer = producer(&Place::memory(), "flat", 0);
    for transaction in next(&producer, Workload::Mixed, 20).transactions {
        let blockifier::transaction::transaction_execution::Transaction::Account(account) = transaction
        else {
            panic!("only accounts send");
        };
        assert_eq!(account.tx.version(), TransactionVersion::THREE);
    }
}

fn sequence(args: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_flagstone"))
        .args(["sequence", "--json", "--txs", "12", "--seed", "7"])
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// All lines of a run that must succeed.
fn lines(child: Child) -> Vec<Value> {
    let output = child.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{error}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Roots of all blocks of a database, all committed.
fn roots(dir: &Path, blocks: u64) -> Vec<String> {
    let engine = flagstone::database::open(dir, None, flagstone::EngineConfig::default()).unwrap();
    engine.commit().unwrap();
    let root = |block| engine.block_root(BlockNumber(block)).unwrap().unwrap().commitment.to_string();
    (0..=blocks).map(root).collect()
}

fn closed(engine: &Engine) -> u64 {
    engine.head().closed.unwrap().0
}

const BLOCKS: u64 = 12;

fn undisturbed() -> Vec<String> {
    let all = lines(sequence(&["--store", "memory", "--blocks", &BLOCKS.to_string()]));
    let (summary, blocks) = all.split_last().unwrap();
    assert_eq!(summary["summary"]["blocks"], BLOCKS);
    assert_eq!(summary["summary"]["verified"], BLOCKS + 1);
    blocks.iter().map(|block| block["root"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_command_gives_one_chain_for_all_layouts_and_workers() {
    let expected = undisturbed();
    for layout in LAYOUTS {
        for workers in ["0", "1", "2", "4"] {
            let blocks =
                ["--store", "memory", "--blocks", "4", "--layout", layout.name, "--workers", workers];
            let all = lines(sequence(&blocks));
            let (summary, blocks) = all.split_last().unwrap();
            let what = format!("{}, {workers} workers", layout.name);
            let roots: Vec<&str> = blocks.iter().map(|block| block["root"].as_str().unwrap()).collect();
            assert_eq!(roots, expected[..5], "{what}");
            assert_eq!(summary["summary"]["failed"], 0, "{what}");
        }
    }
}

#[test]
fn production_killed_at_any_time_continues_to_the_same_chain() {
    let expected = undisturbed();
    for (layout, stop_after) in [("flat", 1), ("flat", 5), ("patricia-path", 3), ("patricia-hash", 8)] {
        let dir = tempfile::tempdir().unwrap();
        let db = dir.path().join("db");
        let data = db.to_str().unwrap();
        let mut child = sequence(&["--data", data, "--layout", layout, "--blocks", "1000"]);
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        let acknowledged: Vec<Value> =
            output.take(stop_after).map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
        child.kill().unwrap();
        child.wait().unwrap();
        let last = acknowledged.last().unwrap()["block"].as_u64().unwrap();

        let engine = flagstone::database::open(&db, None, flagstone::EngineConfig::default()).unwrap();
        let reached = closed(&engine);
        drop(engine);
        assert!(reached >= last, "block {last} was reported, the database is at {reached}");
        assert!(reached < BLOCKS, "the test would show nothing");
        let rest = (BLOCKS - reached).to_string();
        lines(sequence(&["--data", data, "--blocks", &rest]));
        assert_eq!(roots(&db, BLOCKS), expected, "{layout}, killed after {stop_after} reports");
    }
}

#[cfg(unix)]
#[test]
fn an_interrupt_ends_production_at_a_blocks_border() {
    let expected = undisturbed();
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("db");
    let data = db.to_str().unwrap();
    let mut child = sequence(&["--data", data, "--blocks", "1000"]);
    let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
    for _ in 0..3 {
        output.next().unwrap().unwrap();
    }
    let signalled = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(signalled.success());
    let last: Value = serde_json::from_str(&output.last().unwrap().unwrap()).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let reached = last["summary"]["blocks"].as_u64().unwrap();
    assert!(reached < BLOCKS, "the test would show nothing");
    assert_eq!(roots(&db, reached), expected[..=reached as usize]);
    let more = lines(sequence(&["--data", data, "--blocks", "2"]));
    assert_eq!(more[1]["root"], expected[reached as usize + 2].as_str());
    assert_eq!(more[1]["verified"], false, "there is no genesis to compare from");
}

#[test]
fn what_cannot_be_run_is_refused() {
    let refused = |args: &[&str], text: &str| {
        let output = sequence(args).wait_with_output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains(text), "{error}");
    };
    let known = "no workload named `idle`; known workloads: transfers, multicall, contended, mixed";
    refused(&["--workload", "idle"], known);
    refused(&["--store", "memory", "--data", "x"], "keeps nothing");
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("db");
    let engine = flagstone::database::open_or_create(&db, None, None, Default::default()).unwrap();
    for update in crate::support::updates("mainnet_0_9.jsonl") {
        engine.close_block(&update).unwrap();
    }
    drop(engine);
    refused(&["--data", db.to_str().unwrap()], "was not begun by `flagstone sequence`");
}
