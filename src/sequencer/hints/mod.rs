//! What an execution will read, told early, so that another thread reads it first.
//!
//! The executor holds one lock during a read that it has not made before, and at a block's end it reads serially: the
//! alias (contract 0x2) of every written key and address, most of them absent, and class hash and nonce of every contract
//! touched. All this is known earlier. [`of_transactions`] says what transactions will surely or likely read: of the senders and
//! the fee, and of each call that can be seen in their calldata, at any depth, the keys that calls of its entry point read
//! so far (see [`recipes`]). [`of_writes`] says what the block's end will read for what a transaction wrote. A hint that is
//! wrong costs a read and nothing else, and nothing depends on hints.

pub mod formula;
pub mod recipes;

use std::collections::HashSet;
use std::sync::LazyLock;

use blockifier::context::BlockContext;
use blockifier::state::cached_state::StateMaps;
use blockifier::state::stateful_compression::MIN_VALUE_FOR_ALIAS_ALLOC;
use blockifier::transaction::transaction_execution::Transaction;
use flagstone_core::diff::Subject;
use flagstone_core::felt::Felt;
use flagstone_core::types::{ClassHash, ContractAddress, StorageKey};
use starknet_api::abi::abi_utils::{selector_from_name, starknet_keccak};
use starknet_api::block::FeeType;
use starknet_api::core as api;
use starknet_api::executable_transaction::AccountTransaction;
use starknet_api::transaction::InvokeTransaction;

use super::convert;
use crate::engine::{Engine, View};
use formula::{Base, Call, Formula, Input, keys_of};
pub use recipes::{Recipe, Recipes};

/// Most calls of one transaction that are looked at.
pub const CALLS_MAX: usize = 64;
/// Most felts of calldata in which they are looked for.
pub const CALLDATA_MAX: usize = 4096;

/// Something that reads ahead; the [`Engine`] does.
pub trait Prefetch: Send + Sync {
    /// Starts reading these values of the state after the last closed block. Returns at once. What cannot be read, or not in
    /// time, is left to those who ask.
    fn prefetch(&self, hints: Vec<Subject>);
}

impl Prefetch for Engine {
    fn prefetch(&self, hints: Vec<Subject>) {
        Engine::prefetch(self, hints);
    }
}

/// The keys of the first cells of accounts' balances in an ERC-20 token that keeps them in the variable `ERC20_balances`, as
/// fee tokens do; the second cell follows the first.
pub fn balance_keys(accounts: &[ContractAddress]) -> Vec<StorageKey> {
    let balance = Formula::first(Base::Entry(starknet_keccak(b"ERC20_balances"), Input::Contract));
    let of =
        |account: &ContractAddress| (balance, Call { caller: *account, contract: *account, arguments: &[] });
    let asked: Vec<(Formula, Call<'_>)> = accounts.iter().map(of).collect();
    // UNWRAP: a contract has an address, and storage variables are below the bound on keys.
    keys_of(&asked).into_iter().map(Option::unwrap_or_default).collect()
}

/// What transactions will read, in their order, so that the first is read first. Looks into `view` only for what is in
/// memory: the classes of the contracts called.
pub fn of_transactions(
    transactions: &[Transaction],
    context: &BlockContext,
    view: &View,
    recipes: &Recipes,
) -> Vec<Subject> {
    let mut hints = Hints { context, view, recipes, found: Vec::new(), asked: Vec::new() };
    // The amount does not matter: no key depends on it.
    let fee = [*context.block_info().sequencer_address.0.key(), Felt::ZERO, Felt::ZERO];
    transactions.iter().for_each(|transaction| hints.transaction(transaction, &fee));
    hints.finish()
}

/// What the block's end will read for a transaction's writes: their aliases, and the leaves of the contracts.
pub fn of_writes(writes: &StateMaps, context: &BlockContext) -> Vec<Subject> {
    let mut hints = Vec::new();
    let contracts = writes.nonces.keys().chain(writes.class_hashes.keys());
    let contracts = contracts.chain(writes.storage.keys().map(|(address, _)| address));
    for address in contracts.copied().collect::<HashSet<api::ContractAddress>>() {
        hints.extend(alias(context, *address.0.key()));
        if let Ok(address) = convert::address(address) {
            hints.extend([Subject::ClassHash(address), Subject::Nonce(address)]);
        }
    }
    hints.extend(writes.storage.keys().filter_map(|(_, key)| alias(context, *key.0.key())));
    hints
}

/// Where the alias of a key or address is, if it gets one.
fn alias(context: &BlockContext, key: Felt) -> Option<Subject> {
    let key = api::PatriciaKey::try_from(key).ok().filter(|key| *key >= MIN_VALUE_FOR_ALIAS_ALLOC)?;
    let constants = &context.versioned_constants().os_constants;
    let contract = convert::address(constants.os_contract_addresses.alias_contract_address()).ok()?;
    Some(Subject::Storage(contract, StorageKey::try_from(*key.key()).ok()?))
}

/// A hint, or one whose key is yet to be hashed.
enum Found {
    Known(Subject),
    /// The key that the formula at this place gives, in this contract.
    Asked {
        place: usize,
        contract: ContractAddress,
        written: bool,
    },
}

/// Collects hints; what cannot be a key of ours is left out.
struct Hints<'a> {
    context: &'a BlockContext,
    view: &'a View,
    recipes: &'a Recipes,
    found: Vec<Found>,
    asked: Vec<(Formula, Call<'a>)>,
}

static VALIDATE: LazyLock<Felt> = LazyLock::new(|| selector_from_name("__validate__").0);
static EXECUTE: LazyLock<Felt> = LazyLock::new(|| selector_from_name("__execute__").0);
static TRANSFER: LazyLock<Felt> = LazyLock::new(|| selector_from_name("transfer").0);

impl<'a> Hints<'a> {
    /// All hints, each once.
    fn finish(self) -> Vec<Subject> {
        let keys = keys_of(&self.asked);
        let (mut hints, mut seen) = (Vec::new(), HashSet::new());
        let mut add = |hint: Subject| {
            if seen.insert(hint) {
                hints.push(hint);
            }
        };
        for found in &self.found {
            match found {
                Found::Known(hint) => add(*hint),
                Found::Asked { place, contract, written } => {
                    let Some(key) = keys[*place] else { continue };
                    add(Subject::Storage(*contract, key));
                    let alias = alias(self.context, key.to_felt()).filter(|_| *written);
                    alias.into_iter().for_each(&mut add);
                }
            }
        }
        hints
    }

    fn know(&mut self, hints: impl IntoIterator<Item = Subject>) {
        self.found.extend(hints.into_iter().map(Found::Known));
    }

    fn transaction(&mut self, transaction: &'a Transaction, fee: &'a [Felt]) {
        let Ok(sender) = convert::address(transaction.sender_address()) else { return };
        let outermost = |contract, arguments| Call { caller: 0.into(), contract, arguments };
        let account = match transaction {
            Transaction::Account(account) => account,
            Transaction::L1Handler(handler) => {
                let (selector, calldata) = (handler.tx.entry_point_selector.0, &handler.tx.calldata.0);
                self.call(selector, outermost(sender, calldata));
                return self.nested(calldata, sender);
            }
        };
        self.contract(sender);
        // Its nonce is written.
        self.know(alias(self.context, sender.to_felt()));
        match &account.tx {
            AccountTransaction::Invoke(invoke) => {
                let calldata = match &invoke.tx {
                    InvokeTransaction::V0(tx) => &tx.calldata.0,
                    InvokeTransaction::V1(tx) => &tx.calldata.0,
                    InvokeTransaction::V3(tx) => &tx.calldata.0,
                };
                self.call(*VALIDATE, outermost(sender, calldata));
                self.call(*EXECUTE, outermost(sender, calldata));
                self.nested(calldata, sender);
            }
            AccountTransaction::Declare(declare) => {
                self.know([Subject::CompiledClassHash(ClassHash(declare.class_hash().0))]);
            }
            AccountTransaction::DeployAccount(_) => {}
        }
        if let Ok(token) = convert::address(self.context.chain_info().fee_token_address(&FeeType::Strk)) {
            self.call(*TRANSFER, Call { caller: sender, contract: token, arguments: fee });
        }
    }

    /// The leaf of a contract, and its class's if that is known.
    fn contract(&mut self, address: ContractAddress) -> Option<ClassHash> {
        let class_hash = Subject::ClassHash(address);
        self.know([class_hash, Subject::Nonce(address)]);
        let class_hash = self.view.known(&class_hash).filter(|felt| *felt != Felt::ZERO).map(ClassHash)?;
        self.know([Subject::CompiledClassHash(class_hash)]);
        Some(class_hash)
    }

    fn call(&mut self, selector: Felt, call: Call<'a>) {
        let class_hash = self.contract(call.contract);
        for Recipe { formula, written, .. } in self.recipes.of(class_hash, selector) {
            let (place, contract) = (self.asked.len(), call.contract);
            self.found.push(Found::Asked { place, contract, written });
            self.asked.push((formula, call));
            if written {
                self.know(alias(self.context, contract.to_felt()));
            }
        }
    }

    fn nested(&mut self, calldata: &'a [Felt], sender: ContractAddress) {
        let view = self.view;
        let is_none = |contract| view.known(&Subject::ClassHash(contract)) == Some(Felt::ZERO);
        for (selector, call) in calls_in(calldata, sender, is_none) {
            self.call(selector, call);
        }
    }
}

/// The calls in calldata with their selectors: `to, selector, length, arguments`, at any place, so that it does not matter how
/// an account or a contract takes calls. The caller is the one whose arguments a call is in. A selector is a hash, and so is
/// large; the length is one that there are arguments for; and `to` is a contract that is not known to be none.
fn calls_in(
    calldata: &[Felt],
    sender: ContractAddress,
    is_none: impl Fn(ContractAddress) -> bool,
) -> Vec<(Felt, Call<'_>)> {
    let mut calls = Vec::new();
    let mut around = vec![(usize::MAX, sender)];
    for (at, head) in calldata.windows(3).take(CALLDATA_MAX).enumerate() {
        let [to, selector, length] = *head else { continue };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let Some(arguments) = calldata[at + 3..].get(..length) else { continue };
        if selector.to_bytes_be()[..16] == [0; 16] {
            continue;
        }
        let contract = ContractAddress::try_from(to).unwrap_or_default();
        if contract == ContractAddress::default() || is_none(contract) {
            continue;
        }
        around.retain(|(end, _)| at < *end);
        let caller = around.last().map_or(sender, |(_, contract)| *contract);
        calls.push((selector, Call { caller, contract, arguments }));
        if calls.len() == CALLS_MAX {
            break;
        }
        around.push((at + 3 + length, contract));
    }
    calls
}

#[cfg(test)]
mod tests {
    use starknet_api::abi::abi_utils::get_fee_token_var_address;

    use super::*;

    #[test]
    fn balance_keys_are_those_of_the_executor() {
        let accounts: Vec<ContractAddress> = (1..200u64).map(|n| (n * n * 7919).into()).collect();
        for (account, key) in accounts.iter().zip(balance_keys(&accounts)) {
            let theirs = get_fee_token_var_address(convert::to_executor::address(*account).unwrap());
            assert_eq!(convert::storage_key(theirs), Ok(key), "{account}");
        }
    }
    /// Contract, caller and number of arguments of each call found; contracts from 100 on are none.
    fn check_calls(calldata: &[u64], expected: &[(u64, u64, usize)]) {
        // A 9 stands for a selector.
        let felt = |small: &u64| if *small == 9 { Felt::from_bytes_be(&[2; 32]) } else { Felt::from(*small) };
        let calldata: Vec<Felt> = calldata.iter().map(felt).collect();
        let is_none = |contract: ContractAddress| contract.to_felt().to_bytes_be()[31] >= 100;
        let calls = calls_in(&calldata, 1.into(), is_none);
        let found = calls.iter().map(|(_, call)| (call.contract, call.caller, call.arguments.len()));
        let expected = expected.iter().map(|(contract, caller, count)| {
            (ContractAddress::from(*contract), ContractAddress::from(*caller), *count)
        });
        assert_eq!(found.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    }

    #[test]
    fn calls_are_seen_in_calldata_however_it_is_laid_out() {
        // Alone; after their count; in one another's arguments.
        check_calls(&[20, 9, 1, 5], &[(20, 1, 1)]);
        check_calls(&[2, 20, 9, 1, 5, 30, 9, 0], &[(20, 1, 1), (30, 1, 0)]);
        let two = [40, 9, 8, 20, 9, 1, 5, 30, 9, 1, 5, 50, 9, 0];
        check_calls(&two, &[(40, 1, 8), (20, 40, 1), (30, 40, 1), (50, 1, 0)]);
        check_calls(&[20, 9, 7, 30, 9, 4, 40, 9, 1, 5], &[(20, 1, 7), (30, 20, 4), (40, 30, 1)]);
    }

    #[test]
    fn what_cannot_be_a_call_is_none() {
        check_calls(&[], &[]);
        check_calls(&[20, 9], &[]);
        check_calls(&[20, 9, 2, 5], &[]);
        check_calls(&[20, 8, 1, 5], &[]);
        check_calls(&[0, 9, 1, 5], &[]);
        check_calls(&[200, 9, 1, 5], &[]);
        check_calls(&[20, 9, 9, 5], &[]);
    }

    #[test]
    fn no_more_calls_are_looked_at_than_the_bound() {
        let calls = [20, 9, 0].repeat(2 * CALLS_MAX);
        check_calls(&calls, &[(20, 1, 0)].repeat(CALLS_MAX));
        let late = [vec![5; CALLDATA_MAX], vec![20, 9, 0]].concat();
        check_calls(&late, &[]);
    }
}
