//! Which classes are believed to be declared, and what becomes of a block whose reads fail.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use flagstone::core::diff::StateDiff;
use flagstone::core::felt::Felt;
use flagstone::engine::{NewBlock, View};
use flagstone::sequencer::classes::{CompiledClassHashes, blob_key};
use flagstone::sequencer::to_executor;
use flagstone::sequencer::workload::{Builder, Call, GAS_MAX, account, contract, small_class};

use super::in_block::{End, Script, block_of, cairo_0, close, felts, own_producer};
use super::*;

/// The end of a block in which a class of each kind is used, and declared before that if `declare`.
fn uses(view: &View, declare: bool, end: End) -> (BlockInput, Vec<End>) {
    let (sierra, contract) = (small_class(7).unwrap(), cairo_0(3, 0xc7));
    let mut script = Script::new(view);
    if declare {
        script.declare(&sierra, End::Fine);
        script.declare_cairo_0(&contract, End::Fine);
    }
    script.library(&sierra, "write", &felts([0x500, 1]), end);
    script.library(&contract, "test_storage_read_write", &felts([0x501, 2]), end);
    script.deploy(&sierra, &[], end);
    let (transactions, ends) = script.finish();
    let number = view.block().unwrap().0 + 1;
    (block_of(number, &transactions), ends)
}

const UNDECLARED: End = End::Reverted("is not declared");

#[test]
fn classes_of_a_block_that_was_not_closed_are_not_believed() {
    for workers in [0, 2] {
        let producer = own_producer("flat", workers);
        let view = producer.engine().view();
        let (declares, ends) = uses(&view, true, End::Fine);
        let first = producer.execute(&declares).unwrap();
        let (uses, undeclared) = uses(&view, false, UNDECLARED);
        let dropped = producer.execute(&uses).unwrap();
        in_block::check_ends(&dropped, &undeclared, "the declaring block was dropped");
        let again = close(&producer, &declares, &ends, "and declared again");
        assert_eq!(again.update, first.update);
    }
}

#[test]
fn classes_of_a_block_that_was_taken_back_are_not_believed() {
    for layout in LAYOUTS {
        for workers in [0, 2] {
            let producer = own_producer(layout.name, workers);
            let engine = producer.engine();
            let (declares, ends) = uses(&engine.view(), true, End::Fine);
            let declared = close(&producer, &declares, &ends, layout.name);
            // From here on, the classes are ready in the cache, too.
            let (more, fine) = uses(&engine.view(), false, End::Fine);
            // A contract is deployed once.
            let fine = [&fine[..2], &[End::Reverted("already deployed")]].concat();
            close(&producer, &more, &fine, layout.name);
            for between in [0, 3] {
                engine.revert_to(BlockNumber(0)).unwrap();
                for _ in 0..between {
                    let (undeclared, ends) = uses(&engine.view(), false, UNDECLARED);
                    close(&producer, &undeclared, &ends, "its block was taken back");
                }
                let (declares, ends) = uses(&engine.view(), true, End::Fine);
                let again = close(&producer, &declares, &ends, "declared again");
                assert_eq!(again.classes, declared.classes);
                let [ours, theirs] = [&again, &declared].map(|block| block.update.diff.deprecated_classes());
                assert_eq!(ours, theirs);
                let (more, _) = uses(&engine.view(), false, End::Fine);
                close(&producer, &more, &fine, "and used in the next block");
            }
        }
    }
}

#[test]
fn classes_of_a_block_that_was_refused_are_not_believed() {
    let engine = Arc::new(Place::memory().open("flat", config(Cadence::OnRequest, 1)));
    let classes = Arc::new(with_classes(&engine));
    let store: Arc<dyn ClassStore> = Arc::<ReadyClasses<EngineClasses>>::clone(&classes);
    let producer = Producer::new(Arc::clone(&engine), store, ProducerConfig::default());
    producer.close_update(&GENESIS.update, &GENESIS.classes).unwrap();
    engine.commit().unwrap();
    let (declares, ends) = uses(&engine.view(), true, End::Fine);
    let executed = producer.execute(&declares).unwrap();
    in_block::check_ends(&executed, &ends, "declared");
    let wrong = StateUpdate { new_root: Some(7.into()), ..executed.update.clone() };
    producer.close_update(&wrong, &executed.classes).unwrap();
    for class in &executed.classes {
        assert!(classes.get(class.class_hash).unwrap().is_some(), "ready from here on");
    }
    assert_eq!(engine.commit().unwrap_err().kind(), ErrorKind::Root);
    let (undeclared, reverted) = uses(&engine.view(), false, UNDECLARED);
    in_block::check_ends(&producer.execute(&undeclared).unwrap(), &reverted, "its block was refused");
    let again = close(&producer, &declares, &ends, "declared again");
    assert_eq!(again.update, executed.update);
}

/// Another compiled class under the same class hash, as of another version of the compiler.
#[test]
fn a_class_that_is_declared_again_otherwise_takes_the_place_of_the_first() {
    for workers in [0, 2] {
        let producer = own_producer("flat", workers);
        let engine = producer.engine();
        let first = small_class(7).unwrap();
        let second = DeclaredClass { class_hash: first.class_hash, ..small_class(8).unwrap() };
        for class in [&first, &second, &first] {
            engine.revert_to(BlockNumber(0)).unwrap();
            for declare in [true, false] {
                let view = engine.view();
                let mut script = Script::new(&view);
                if declare {
                    script.declare(class, End::Fine);
                }
                script.library(class, "write", &felts([0x500, 1]), End::Fine);
                let (transactions, ends) = script.finish();
                let number = view.block().unwrap().0 + 1;
                close(&producer, &block_of(number, &transactions), &ends, "declared anew");
                let in_state = engine.view().compiled_class_hash_at(&class.class_hash).unwrap();
                assert_eq!(in_state, class.hashes.unwrap().v2, "block {number}");
            }
        }
    }
}

#[test]
fn a_cairo_0_class_is_not_declared_in_views_before_its_block() {
    let producer = own_producer("flat", 0);
    let before = producer.engine().view();
    let (declares, ends) = uses(&before, true, End::Fine);
    close(&producer, &declares, &ends, "declared");
    let classes: Arc<dyn ClassStore> = Arc::new(with_classes(producer.engine()));
    let class_hash = starknet_api::core::ClassHash(0xc7u64.into());
    let of = |view: View| ViewReader::new(view, Arc::clone(&classes)).get_compiled_class(class_hash);
    assert!(matches!(of(before), Err(StateError::UndeclaredClassHash(_))));
    assert!(of(producer.engine().view()).is_ok());
}

/// Before protocol version 0.13.2, a Cairo 0 class could be declared again.
#[test]
fn a_cairo_0_class_that_was_declared_twice_is_declared_from_the_first_time_on() {
    for workers in [0, 2] {
        let producer = own_producer("flat", workers);
        let engine = producer.engine();
        for number in [1, 2] {
            let (mut declares, mut ends) = uses(&engine.view(), true, End::Fine);
            if number == 2 {
                declares.transactions.remove(0);
                ends = vec![End::Fine, End::Fine, End::Fine, End::Reverted("already deployed")];
            }
            declares.context =
                in_block::context(number, |constants| constants.disable_cairo0_redeclaration = false);
            close(&producer, &declares, &ends, "declared twice");
        }
        engine.revert_to(BlockNumber(1)).unwrap();
        let (uses, _) = uses(&engine.view(), false, End::Fine);
        let ends = [End::Fine, End::Fine, End::Reverted("already deployed")];
        close(&producer, &uses, &ends, "the second declaration was taken back");
    }
}

/// How [`Faulty`] fails for a class.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    Missing,
    Error,
    Panic,
    Other,
}

/// Fails for one class, from the time on when it was asked so often, for so many times, while it is `on`.
struct Faulty {
    class_hash: ClassHash,
    fault: Fault,
    after: usize,
    times: usize,
    asked: AtomicUsize,
    on: AtomicBool,
}

impl Faulty {
    fn new(class_hash: ClassHash, fault: Fault) -> Self {
        let (asked, on) = (AtomicUsize::new(0), AtomicBool::new(true));
        Self { class_hash, fault, after: 0, times: usize::MAX, asked, on }
    }
}

impl ClassStore for Faulty {
    fn get(&self, class_hash: ClassHash) -> Result<Option<ReadyClass>, ClassError> {
        let class = CLASSES.get(class_hash);
        if class_hash != self.class_hash || !self.on.load(Ordering::SeqCst) {
            return class;
        }
        let asked = self.asked.fetch_add(1, Ordering::SeqCst);
        if asked < self.after || asked - self.after >= self.times {
            return class;
        }
        match self.fault {
            Fault::Missing => Ok(None),
            Fault::Error => Err(ClassError::Store("the disk is on fire".into())),
            Fault::Panic => panic!("the store panics, as it is told to"),
            Fault::Other => {
                let hashes = Some(CompiledClassHashes { v1: 1.into(), v2: 2.into() });
                class.map(|class| class.map(|class| ReadyClass { hashes, ..class }))
            }
        }
    }

    fn put(&self, classes: &[DeclaredClass]) -> Result<Vec<Blob>, ClassError> {
        CLASSES.put(classes)
    }
}

fn faulty(faulty: Faulty, workers: usize) -> (Arc<Faulty>, Producer) {
    let faulty = Arc::new(faulty);
    let engine = Arc::new(Place::memory().open("flat", config(Cadence::EVERY_BLOCK, 1)));
    engine.close_block(&GENESIS.update).unwrap();
    let store: Arc<dyn ClassStore> = Arc::<Faulty>::clone(&faulty);
    (faulty, Producer::new(engine, store, ProducerConfig::default().with_workers(workers)))
}

fn error_of(producer: &Producer) -> SequencerError {
    let block = next(producer, Workload::Contended, 12);
    match producer.execute(&block) {
        Ok(_) => panic!("executed although a class could not be read"),
        Err(error) => error,
    }
}

#[test]
fn a_declared_class_that_cannot_be_had_fails_the_block_and_not_the_transaction() {
    let [erc20, account] = [0, 1].map(|class| GENESIS.classes[class].class_hash);
    let another = "the compiled class that is kept for it is another than the declared one: the state has";
    for (class_hash, fault, text) in [
        (erc20, Fault::Missing, "it is declared in the state, and the class store does not have it"),
        (account, Fault::Missing, "it is declared in the state, and the class store does not have it"),
        (erc20, Fault::Other, another),
        (erc20, Fault::Error, "compiled classes: the disk is on fire"),
        (account, Fault::Error, "compiled classes: the disk is on fire"),
    ] {
        for workers in [0, 1, 2, 4] {
            let (store, producer) = faulty(Faulty::new(class_hash, fault), workers);
            let error = error_of(&producer);
            let expected = "block 1: reading the state failed: ";
            assert!(error.to_string().starts_with(expected), "{error}");
            assert!(error.to_string().contains(text), "{error}");
            assert!(matches!(error, SequencerError::Read { .. }), "{error}");
            // The producer is as good as before, also if its workers were not.
            store.on.store(false, Ordering::SeqCst);
            let executed = producer.execute(&next(&producer, Workload::Contended, 12)).unwrap();
            assert!(executed.outcomes.iter().all(Result::is_ok));
            assert_eq!(executed.panicked, None);
        }
    }
}

/// In the executor's commit phase a failed read is a panic of its worker.
#[test]
fn a_read_that_fails_at_any_time_of_a_block_fails_the_block() {
    let erc20 = GENESIS.classes[0].class_hash;
    for workers in [0, 2] {
        let (counted, producer) = faulty(Faulty { times: 0, ..Faulty::new(erc20, Fault::Error) }, workers);
        producer.execute(&next(&producer, Workload::Contended, 12)).unwrap();
        let reads = counted.asked.load(Ordering::SeqCst);
        assert!(reads > 1, "execution asks, and then the end of a transaction does");
        for after in 0..reads {
            let (store, producer) =
                faulty(Faulty { after, times: 1, ..Faulty::new(erc20, Fault::Error) }, workers);
            let executed = producer.execute(&next(&producer, Workload::Contended, 12));
            // Workers ask more or less often, as they happen to meet.
            let has_failed = store.asked.load(Ordering::SeqCst) > after;
            assert!(has_failed || workers > 0);
            match executed {
                Err(SequencerError::Read { .. }) => assert!(has_failed),
                Ok(_) => assert!(!has_failed, "{workers} workers, after {after} of {reads}: it was executed"),
                Err(error) => panic!("{workers} workers, after {after} of {reads}: {error}"),
            }
        }
    }
}

#[test]
fn a_block_whose_worker_panics_is_executed_once_more() {
    let erc20 = GENESIS.classes[0].class_hash;
    let (_, sound) = faulty(Faulty { times: 0, ..Faulty::new(erc20, Fault::Panic) }, 0);
    let expected = sound.execute(&next(&sound, Workload::Contended, 12)).unwrap();
    for workers in [1, 2, 4] {
        let once = Faulty { times: 1, ..Faulty::new(erc20, Fault::Panic) };
        let (_, producer) = faulty(once, workers);
        let executed = producer.execute(&next(&producer, Workload::Contended, 12)).unwrap();
        assert!(executed.panicked.is_some());
        assert_eq!(executed.update, expected.update);
        let executed = producer.execute(&next(&producer, Workload::Contended, 12)).unwrap();
        assert_eq!((executed.panicked, executed.update), (None, expected.update.clone()));
    }
    for workers in [0, 2] {
        let (_, producer) = faulty(Faulty::new(erc20, Fault::Panic), workers);
        let error = error_of(&producer);
        let text = "block 1: the executor failed: it panicked: the store panics, as it is told to";
        assert!(error.to_string().starts_with(text), "{error}");
    }
}

/// Hints are given on the producer's own thread, while its workers wait for more.
#[test]
fn a_panic_while_results_are_taken_leaves_no_worker_waiting() {
    struct Panicking(AtomicUsize);
    impl Prefetch for Panicking {
        fn prefetch(&self, _: Vec<Subject>) {
            assert!(self.0.fetch_add(1, Ordering::SeqCst) != 1, "the second hint panics, as it is told to");
        }
    }
    let producer = own_producer("flat", 2).with_prefetch(Arc::new(Panicking(AtomicUsize::new(0))));
    let block = next(&producer, Workload::Transfers, 12);
    let executed = producer.execute(&block).unwrap();
    assert_eq!(executed.panicked.unwrap(), "the second hint panics, as it is told to");
    assert_eq!(producer.execute(&block).unwrap().update, executed.update);
}

#[test]
fn a_damaged_blob_fails_the_block_that_reads_it() {
    let sierra = small_class(7).unwrap();
    let (class_key, list_key) = ([b"cairo0/class/", &[0; 30][..], &[0, 0xc7]].concat(), {
        [b"cairo0/block/".as_slice(), &1u64.to_be_bytes()].concat()
    });
    for (key, text) in [
        (blob_key(sierra.class_hash), "what is kept for it is damaged: head"),
        (class_key, "what is kept for it is damaged: format version of the record"),
        (list_key, "what is kept for it is damaged: format version of the record"),
    ] {
        for workers in [0, 2] {
            let producer = own_producer("flat", workers);
            let engine = producer.engine();
            let (declares, ends) = uses(&engine.view(), true, End::Fine);
            close(&producer, &declares, &ends, "declared");
            let damaged = Blob { key: key.clone(), bytes: [9; 7].into() };
            let nothing = StateUpdate {
                block_number: Some(BlockNumber(2)),
                starknet_version: "0.14.1".parse().ok(),
                ..StateUpdate::from(StateDiff::default())
            };
            engine.close_block(NewBlock::from(&nothing).with_blobs(&[damaged])).unwrap();
            let Err(error) = producer.execute(&uses(&engine.view(), false, End::Fine).0) else {
                panic!("executed without {}", String::from_utf8_lossy(&key))
            };
            assert!(error.to_string().contains(text), "{error}");
            assert!(matches!(error, SequencerError::Read { .. }), "{error}");
        }
    }
}

/// A class manager may know a class before any block declares it.
#[test]
fn a_sierra_class_that_the_store_knows_early_is_declared_by_its_block() {
    struct Early(DeclaredClass);
    impl ClassStore for Early {
        fn get(&self, class_hash: ClassHash) -> Result<Option<ReadyClass>, ClassError> {
            if class_hash != self.0.class_hash {
                return CLASSES.get(class_hash);
            }
            let bytes = blob::encode(&self.0).unwrap();
            blob::decode(class_hash, &bytes).map(Some)
        }
        fn put(&self, _: &[DeclaredClass]) -> Result<Vec<Blob>, ClassError> {
            Ok(Vec::new())
        }
    }
    let class = small_class(7).unwrap();
    let engine = Arc::new(Place::memory().open("flat", config(Cadence::EVERY_BLOCK, 1)));
    engine.close_block(&GENESIS.update).unwrap();
    let producer = Producer::new(engine, Arc::new(Early(class.clone())), ProducerConfig::default());
    let view = producer.engine().view();
    let mut builder = Builder::new(&view, BlockNumber(1));
    let slot = [0x200u64, 1].map(Felt::from);
    let call = Call::library(contract(1), "test_library_call", class.class_hash, "write", slot);
    builder.invoke(account(1), &call).unwrap();
    builder.declare(account(2), &class, GAS_MAX).unwrap();
    builder.invoke(account(3), &call).unwrap();
    let ends = [UNDECLARED, End::Fine, End::Fine];
    let executed = close(&producer, &block_of(1, &builder.finish()), &ends, "known early");
    let declared = executed.update.diff.classes().iter().find(|one| one.class_hash == class.class_hash);
    assert_eq!(declared.unwrap().compiled_class_hash, class.hashes.unwrap().v2);
}

#[test]
fn the_hash_of_a_ready_class_is_that_of_the_class_it_is_made_of() {
    let engine = Place::memory().open("flat", config(Cadence::AtClose, 1));
    let reader = ViewReader::new(engine.view(), Arc::clone(&CLASSES));
    let number = |number| small_class(number).unwrap();
    let erc20 = GENESIS.classes[0].clone();
    // The same hash for two classes, one after the other, twice: no answer is that of the class before.
    let twice = |number: u64| DeclaredClass { class_hash: 5.into(), ..small_class(number).unwrap() };
    for class in [erc20, number(1), number(2), twice(3), twice(4), twice(3), twice(4)] {
        let runnable = RunnableCompiledClass::try_from((*class.class).clone()).unwrap();
        for _ in 0..2 {
            let v2 = reader.get_compiled_class_hash_v2(to_executor::class_hash(class.class_hash), &runnable);
            assert_eq!(v2.unwrap().0, class.hashes.unwrap().v2.0);
        }
    }
    assert_eq!(reader.failure(), None);
    let cairo_0 = &GENESIS.classes[1];
    let runnable = RunnableCompiledClass::try_from((*cairo_0.class).clone()).unwrap();
    let asked = reader.get_compiled_class_hash_v2(to_executor::class_hash(cairo_0.class_hash), &runnable);
    assert!(matches!(asked, Err(StateError::StateReadError(_))));
    assert!(reader.failure().unwrap().contains("a Cairo 0 class has no compiled class hash"));
}
