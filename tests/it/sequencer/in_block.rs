//! What a block declares, deploys and replaces, used in the same block.
//!
//! The executor asks the reader only for what it has not written itself; these are all the ways in which it could ask for
//! something that no view knows yet.

use std::collections::BTreeSet;

use blockifier::blockifier_versioned_constants::VersionedConstants;
use blockifier::bouncer::BouncerConfig;
use blockifier::context::BlockContext;
use blockifier::transaction::transaction_execution::Transaction;
use flagstone::core::felt::Felt;
use flagstone::core::types::{CompiledClassHash, StorageValue};
use flagstone::sequencer::to_executor;
use flagstone::sequencer::workload::{
    Builder, Call, GAS_MAX, account, contract, deployed_address, small_class,
};
use starknet_api::transaction::fields::{Fee, TransactionSignature};
use starknet_api::transaction::{DeclareTransaction, DeclareTransactionV0V1, DeclareTransactionV2};

use super::*;

/// How a transaction is to end: if not well, with this in its error.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum End {
    Fine,
    Reverted(&'static str),
    Refused(&'static str),
}
use End::{Fine, Refused, Reverted};

const UNDECLARED: &str = "is not declared";
/// Of a declaration that costs more than it may: known only once it was executed.
const TOO_DEAR: End = Refused("Insufficient max L2Gas");

/// Transactions of a sender each, so that workers begin them in any order, and how they end.
pub struct Script<'a> {
    builder: Builder<'a>,
    senders: u64,
    ends: Vec<End>,
}

impl<'a> Script<'a> {
    pub fn new(view: &'a flagstone::engine::View) -> Self {
        Self { builder: Builder::new(view, BlockNumber(1)), senders: 0, ends: Vec::new() }
    }

    fn sender(&mut self, end: End) -> ContractAddress {
        self.ends.push(end);
        self.senders += 1;
        account(self.senders)
    }

    pub fn call(&mut self, to: ContractAddress, entry: &'static str, arguments: &[Felt], end: End) {
        let sender = self.sender(end);
        self.builder.invoke(sender, &Call::new(to, entry, arguments)).unwrap();
    }

    /// Both calls in one transaction.
    fn calls(&mut self, calls: [&Call; 2], end: End) {
        self.call(contract(0), "test_call_two_contracts", &calls.map(Call::flat).concat(), end);
    }

    /// A library call on the storage of a Cairo 0 contract.
    pub fn library(&mut self, class: &DeclaredClass, entry: &'static str, arguments: &[Felt], end: End) {
        let sender = self.sender(end);
        let call = Call::library(contract(1), "test_library_call", class.class_hash, entry, arguments);
        self.builder.invoke(sender, &call).unwrap();
    }

    pub fn declare(&mut self, class: &DeclaredClass, end: End) {
        let gas_max = if end == TOO_DEAR { 480_000 } else { GAS_MAX };
        let sender = self.sender(end);
        self.builder.declare(sender, class, gas_max).unwrap();
    }

    /// By a transaction of version 2, which names the first compiled class hash.
    fn declare_v2(&mut self, class: &DeclaredClass) {
        let sender = self.sender(Fine);
        let transaction = DeclareTransactionV2 {
            max_fee: Fee(0),
            signature: TransactionSignature::default(),
            nonce: self.builder.nonce(sender).unwrap(),
            class_hash: to_executor::class_hash(class.class_hash),
            compiled_class_hash: starknet_api::core::CompiledClassHash(class.hashes.unwrap().v1.0),
            sender_address: to_executor::address(sender).unwrap(),
        };
        self.builder.declare_as(DeclareTransaction::V2(transaction), class).unwrap();
    }

    pub fn declare_cairo_0(&mut self, class: &DeclaredClass, end: End) {
        let sender = self.sender(end);
        let transaction = DeclareTransactionV0V1 {
            max_fee: Fee(0),
            signature: TransactionSignature::default(),
            nonce: self.builder.nonce(sender).unwrap(),
            class_hash: to_executor::class_hash(class.class_hash),
            sender_address: to_executor::address(sender).unwrap(),
        };
        self.builder.declare_as(DeclareTransaction::V1(transaction), class).unwrap();
    }

    /// By a contract; where it then is.
    pub fn deploy(&mut self, class: &DeclaredClass, constructor: &[Felt], end: End) -> ContractAddress {
        let (call, deployed) = deployment(class, constructor);
        let sender = self.sender(end);
        self.builder.invoke(sender, &call).unwrap();
        deployed
    }

    /// An account, which is paid first.
    fn deploy_account(&mut self, class: &DeclaredClass, end: End) -> ContractAddress {
        let payer = self.sender(Fine);
        self.ends.push(end);
        self.builder.deploy_account(payer, class.class_hash, Felt::from(77)).unwrap()
    }

    fn by(&mut self, sender: ContractAddress, call: &Call) {
        self.ends.push(Fine);
        self.builder.invoke(sender, call).unwrap();
    }

    pub fn finish(self) -> (Vec<Transaction>, Vec<End>) {
        let transactions = self.builder.finish();
        assert_eq!(transactions.len(), self.ends.len());
        (transactions, self.ends)
    }
}

/// The deployment of a contract by a contract, and where it then is.
fn deployment(class: &DeclaredClass, constructor: &[Felt]) -> (Call, ContractAddress) {
    let salt = Felt::from(5);
    let deployed = deployed_address(Some(contract(2)), class.class_hash, salt, constructor).unwrap();
    let head = [class.class_hash.0, salt, constructor.len().into()];
    let arguments = [&head[..], constructor, &[Felt::ZERO]].concat();
    (Call::new(contract(2), "test_deploy", arguments), deployed)
}

pub fn felts<const N: usize>(numbers: [u64; N]) -> [Felt; N] {
    numbers.map(Felt::from)
}

/// A Cairo 0 class of the genesis under another hash: 1 is the account, 3 the contract.
pub fn cairo_0(of: usize, class_hash: u64) -> DeclaredClass {
    DeclaredClass { class_hash: class_hash.into(), ..GENESIS.classes[of].clone() }
}

const ACCOUNT: usize = 1;
const CONTRACT: usize = 3;

/// A Sierra class declared, and used in all ways.
fn sierra(script: &mut Script<'_>) {
    let [class, other, third] = [1, 2, 3].map(|number| small_class(number).unwrap());
    script.library(&class, "write", &felts([0x200, 1]), Reverted(UNDECLARED));
    script.declare(&class, Fine);
    script.declare(&class, Refused("already declared"));
    script.library(&class, "write", &felts([0x201, 2]), Fine);
    let one = script.deploy(&class, &[], Fine);
    script.call(one, "write", &felts([0x202, 3]), Fine);
    let own = script.deploy_account(&class, Fine);
    script.by(own, &Call::new(one, "write", felts([0x203, 4])));
    // From a Sierra class, the executor goes other ways.
    script.declare(&other, Fine);
    let write = Call::library(one, "library_call", other.class_hash, "write", felts([0x204, 5]));
    script.by(own, &write);
    script.by(own, &Call::new(one, "deploy", [other.class_hash.0, Felt::from(9)]));
    let two = deployed_address(Some(one), other.class_hash, Felt::from(9), &[]).unwrap();
    script.call(two, "write", &felts([0x205, 6]), Fine);
    script.call(two, "replace", &[third.class_hash.0], Reverted(UNDECLARED));
    script.declare(&third, Fine);
    script.call(two, "replace", &[third.class_hash.0], Fine);
    script.call(two, "write", &felts([0x206, 7]), Fine);
    let nested = Call::new(one, "call", Call::new(two, "write", felts([0x207, 8])).flat());
    script.by(own, &nested);
}

/// A class whose first declaration is refused, and deployments and replacements that are reverted, each done again.
fn again(script: &mut Script<'_>) {
    let [class, other] = [11, 12].map(|number| small_class(number).unwrap());
    script.declare(&class, TOO_DEAR);
    let one = script.deploy(&class, &[], Reverted(UNDECLARED));
    script.call(one, "write", &felts([0x300, 1]), Reverted("is not deployed"));
    script.declare(&class, Fine);
    let revert = Call::new(contract(3), "write_and_revert", felts([0x301, 2]));
    script.calls([&deployment(&class, &[]).0, &revert], Reverted("ASSERT_EQ"));
    script.call(one, "write", &felts([0x302, 3]), Reverted("is not deployed"));
    script.deploy(&class, &[], Fine);
    script.declare(&other, Fine);
    let replace = Call::new(one, "replace", [other.class_hash.0]);
    script.calls([&replace, &revert], Reverted("ASSERT_EQ"));
    script.call(one, "write", &felts([0x303, 4]), Fine);
    script.call(one, "replace", &[other.class_hash.0], Fine);
    script.call(one, "write", &felts([0x304, 5]), Fine);
    // The state gets the first compiled class hash, and, as the class is used, the second one in its place.
    let migrated = small_class(13).unwrap();
    script.declare_v2(&migrated);
    script.library(&migrated, "write", &felts([0x305, 6]), Fine);
}

/// Cairo 0 classes: as they have no leaf, no view ever knows of them.
fn of_cairo_0(script: &mut Script<'_>) {
    // No key of a trie, which a Cairo 0 class does not need.
    let large = DeclaredClass { class_hash: ClassHash(-Felt::ONE), ..cairo_0(CONTRACT, 0) };
    script.library(&large, "test_storage_read_write", &felts([0x407, 8]), Reverted(UNDECLARED));
    script.declare_cairo_0(&large, Fine);
    script.library(&large, "test_storage_read_write", &felts([0x408, 9]), Fine);
    let (class, other) = (cairo_0(CONTRACT, 0xc0), cairo_0(CONTRACT, 0xc1));
    script.library(&class, "test_storage_read_write", &felts([0x400, 1]), Reverted(UNDECLARED));
    script.declare_cairo_0(&class, Fine);
    script.declare_cairo_0(&class, Refused("already declared"));
    script.library(&class, "test_storage_read_write", &felts([0x401, 2]), Fine);
    let one = script.deploy(&class, &felts([0x402, 3]), Fine);
    script.call(one, "test_storage_read_write", &felts([0x403, 4]), Fine);
    script.call(one, "test_replace_class", &[other.class_hash.0], Reverted(UNDECLARED));
    script.declare_cairo_0(&other, Fine);
    script.call(one, "test_replace_class", &[other.class_hash.0], Fine);
    script.call(one, "test_storage_read_write", &felts([0x404, 5]), Fine);
    let payer = cairo_0(ACCOUNT, 0xc2);
    script.declare_cairo_0(&payer, Fine);
    let own = script.deploy_account(&payer, Fine);
    script.by(own, &Call::new(one, "test_storage_read_write", felts([0x405, 6])));
}

fn everything(script: &mut Script<'_>) {
    sierra(script);
    again(script);
    of_cairo_0(script);
}

/// A context for this block, with other constants than the protocol's.
pub fn context(number: u64, change: impl FnOnce(&mut VersionedConstants)) -> BlockContext {
    let context = workload::context(BlockNumber(number)).unwrap();
    let mut constants = context.versioned_constants().clone();
    change(&mut constants);
    let (info, chain) = (context.block_info().clone(), context.chain_info().clone());
    BlockContext::new(info, chain, constants, BouncerConfig::max())
}

pub fn block_of(number: u64, transactions: &[Transaction]) -> BlockInput {
    let context = workload::context(BlockNumber(number)).unwrap();
    BlockInput { context, old_block: None, transactions: transactions.to_vec() }
}

/// A producer with classes of its own, as blocks here declare some.
pub fn own_producer(layout: &str, workers: usize) -> Producer {
    let config = config(Cadence::EVERY_BLOCK, 1).with_history_blocks(16);
    let engine = Arc::new(Place::memory().open(layout, config));
    let classes = Arc::new(with_classes(&engine));
    let producer = Producer::new(engine, classes, ProducerConfig::default().with_workers(workers));
    producer.close_update(&GENESIS.update, &GENESIS.classes).unwrap();
    producer
}

/// Executes and closes; every transaction ends as it is to.
#[track_caller]
pub fn close(producer: &Producer, block: &BlockInput, ends: &[End], what: &str) -> Executed {
    let executed = producer.execute(block).unwrap();
    check_ends(&executed, ends, what);
    producer.close(&executed).unwrap();
    executed
}

#[track_caller]
pub fn check_ends(executed: &Executed, ends: &[End], what: &str) {
    assert_eq!(executed.outcomes.len(), ends.len(), "{what}");
    for (at, (outcome, end)) in executed.outcomes.iter().zip(ends).enumerate() {
        match (outcome, end) {
            (Ok((info, _)), Fine) => {
                assert_eq!(
                    info.revert_error.as_ref().map(ToString::to_string),
                    None,
                    "{what}, transaction {at}"
                );
            }
            (Ok((info, _)), Reverted(text)) => {
                let error = info.revert_error.as_ref().map(ToString::to_string).unwrap_or_default();
                assert!(error.contains(text), "{what}, transaction {at}: `{error}` for `{text}`");
            }
            (Err(error), Refused(text)) => {
                assert!(error.to_string().contains(text), "{what}, transaction {at}: `{error}` for `{text}`");
            }
            (Err(error), end) => panic!("{what}, transaction {at}: {error}; it was to be {end:?}"),
            (Ok(_), end) => panic!("{what}, transaction {at} was to be {end:?}"),
        }
    }
}

fn last_root(producer: &Producer) -> StateCommitment {
    let block = producer.engine().head().closed.unwrap();
    producer.wait_for_root(block).unwrap().commitment
}

/// The transactions after the genesis, in one block or over two. Takes back what the producer did before. Without aliases the
/// state is one of the transactions alone: aliases are numbered block by block.
fn produce_all(producer: &Producer, split: Option<usize>, aliases: bool) -> Vec<Executed> {
    producer.engine().revert_to(BlockNumber(0)).unwrap();
    let view = producer.engine().view();
    let mut script = Script::new(&view);
    everything(&mut script);
    let (transactions, ends) = script.finish();
    let split = split.unwrap_or(transactions.len());
    let blocks = [(1, 0..split), (2, split..transactions.len())];
    let blocks = blocks.into_iter().filter(|(number, range)| *number == 1 || !range.is_empty());
    let produce = |(number, range): (u64, std::ops::Range<usize>)| {
        let context = context(number, |constants| constants.enable_stateful_compression = aliases);
        let transactions = transactions[range.clone()].to_vec();
        let block = BlockInput { context, old_block: None, transactions };
        close(producer, &block, &ends[range], &format!("split at {split}"))
    };
    blocks.map(produce).collect()
}

#[test]
fn what_a_block_declares_can_be_used_in_it_however_it_runs() {
    let expected = own_producer("flat", 0);
    let blocks = produce_all(&expected, None, true);
    let (update, root) = (&blocks[0].update, last_root(&expected));
    let classes: Vec<ClassHash> = blocks[0].classes.iter().map(|class| class.class_hash).collect();
    let sierra = [1, 2, 3, 11, 12, 13].map(|number| small_class(number).unwrap());
    let cairo_0 = [ClassHash(-Felt::ONE), 0xc0.into(), 0xc1.into(), 0xc2.into()];
    assert_eq!(classes, [&sierra.each_ref().map(|class| class.class_hash)[..], &cairo_0].concat());
    assert_eq!(update.diff.deprecated_classes(), [&cairo_0[1..], &cairo_0[..1]].concat());
    let view = expected.engine().view();
    for class in &sierra {
        assert_eq!(view.compiled_class_hash_at(&class.class_hash).unwrap(), class.hashes.unwrap().v2);
    }
    for layout in LAYOUTS {
        for workers in [0, 1, 2, 4] {
            let what = format!("{}, {workers} workers", layout.name);
            let producer = own_producer(layout.name, workers);
            let executed = &produce_all(&producer, None, true)[0];
            assert_eq!(executed.update, *update, "{what}");
            assert_eq!(executed.classes, blocks[0].classes, "{what}");
            assert_eq!(last_root(&producer), root, "{what}");
        }
    }
}

#[test]
fn one_block_and_two_give_one_state() {
    let (sequential, concurrent) = (own_producer("flat", 0), own_producer("patricia-path", 2));
    let transactions = produce_all(&sequential, None, false)[0].outcomes.len();
    let root = last_root(&sequential);
    for split in 0..=transactions {
        produce_all(&sequential, Some(split), false);
        assert_eq!(last_root(&sequential), root, "split at {split}");
        if split % 4 == 0 {
            produce_all(&concurrent, Some(split), false);
            assert_eq!(last_root(&concurrent), root, "split at {split}, with workers");
        }
    }
}

/// With aliases, the numbers of keys that got theirs in the second block are other ones; all else is the same.
#[test]
fn with_aliases_one_block_and_two_differ_in_the_numbers_of_aliases_alone() {
    let (one, other) = (own_producer("flat", 0), own_producer("flat", 2));
    let blocks = produce_all(&one, None, true);
    let expected = one.engine().view();
    let aliases = ContractAddress::from(2);
    for split in [7, 20, 33] {
        let two = produce_all(&other, Some(split), true);
        let view = other.engine().view();
        let (mut keys, mut numbers) = (0, [BTreeSet::new(), BTreeSet::new()]);
        let all = blocks.iter().chain(&two).flat_map(|block| block.update.diff.contracts());
        for contract in all {
            let address = &contract.address;
            assert_eq!(view.nonce_at(address).unwrap(), expected.nonce_at(address).unwrap());
            assert_eq!(view.class_hash_at(address).unwrap(), expected.class_hash_at(address).unwrap());
            for (key, _) in &contract.storage {
                let [ours, theirs] = [&view, &expected].map(|view| view.storage_at(address, key).unwrap());
                if *address == aliases && *key != StorageKey::from(0) {
                    assert!(ours != StorageValue::ZERO && theirs != StorageValue::ZERO, "{key}");
                    numbers[0].insert(ours.to_be());
                    numbers[1].insert(theirs.to_be());
                } else {
                    assert_eq!(ours, theirs, "{address} {key}, split at {split}");
                    keys += 1;
                }
            }
        }
        assert!(keys > 50 && numbers[0].len() > 50);
        assert_eq!(numbers[0], numbers[1], "the same numbers, for other keys");
        for class in blocks[0].update.diff.classes() {
            let of = |view: &flagstone::engine::View| view.compiled_class_hash_at(&class.class_hash).unwrap();
            assert_ne!(of(&view), CompiledClassHash::ZERO);
            assert_eq!(of(&view), of(&expected));
        }
    }
}

/// A payment changes the balance that the declaration after it has read; the workers that went ahead have used the class by
/// then, and do all of it again. In a few of a hundred such blocks, the executor (0.20.0-rc.1) fails an assertion of its own: a
/// transaction that used the class is validated while the declaration is taken back and another user still has the class among
/// its writes. The block is then executed once more.
#[test]
fn declarations_that_workers_repeat_give_the_same_block() {
    let expected = own_producer("flat", 0);
    let crowded = own_producer("flat", 4);
    for number in 1..=20 {
        let view = expected.engine().view();
        let mut builder = Builder::new(&view, BlockNumber(number));
        let token = GENESIS.update.diff.contracts().iter().map(|one| one.address);
        let strk = token.into_iter().find(is_fee_token).unwrap();
        for round in 0..3 {
            let class = small_class(1_000 * number + round).unwrap();
            let declarer = account(round);
            let pay = [declarer.to_felt(), Felt::from(1), Felt::ZERO];
            builder.invoke(account(100 + round), &Call::new(strk, "transfer", pay)).unwrap();
            builder.declare(declarer, &class, GAS_MAX).unwrap();
            for user in 0..6 {
                let slot = [0x200 + 10 * round + user, number].map(Felt::from);
                let call =
                    Call::library(contract(user), "test_library_call", class.class_hash, "write", slot);
                builder.invoke(account(200 + 10 * round + user), &call).unwrap();
            }
        }
        let transactions = builder.finish();
        let mut block = block_of(number, &transactions);
        if let Some(old) = number.checked_sub(10) {
            let hash = starknet_api::block::BlockHash(Felt::from(old));
            let number = starknet_api::block::BlockNumber(old);
            block.old_block = Some(starknet_api::block::BlockHashAndNumber { number, hash });
        }
        let ends = vec![Fine; transactions.len()];
        let one = close(&expected, &block, &ends, "one after the other");
        let many = close(&crowded, &block, &ends, "workers");
        assert_eq!(many.update, one.update, "block {number}");
    }
    assert_eq!(last_root(&crowded), last_root(&expected));
}

fn is_fee_token(address: &ContractAddress) -> bool {
    let context = workload::context(BlockNumber(0)).unwrap();
    let token = context.chain_info().fee_token_addresses.strk_fee_token_address;
    ours(token) == *address
}
