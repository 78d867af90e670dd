//! What an execution will read, told early, so that another thread reads it first.
//!
//! The executor holds one lock during a read that it has not made before, and at a block's end it reads serially: the
//! alias (contract 0x2) of every written key and address, most of them absent, and class hash and nonce of every contract
//! touched. Both are known earlier: [`of_transactions`] says what transactions will surely or likely read, and
//! [`of_writes`] what the block's end will read for what a transaction wrote. A hint that is wrong costs a read and nothing else.

use std::sync::LazyLock;

use blockifier::context::BlockContext;
use blockifier::state::cached_state::StateMaps;
use blockifier::state::stateful_compression::MIN_VALUE_FOR_ALIAS_ALLOC;
use blockifier::transaction::transaction_execution::Transaction;
use flagstone_core::diff::Subject;
use flagstone_core::felt::Felt;
use flagstone_core::hash::pedersen_many;
use flagstone_core::types::{ClassHash, ContractAddress, StorageKey};
use starknet_api::abi::abi_utils::{selector_from_name, starknet_keccak};
use starknet_api::block::FeeType;
use starknet_api::core::{self as api, L2_ADDRESS_UPPER_BOUND};
use starknet_api::executable_transaction::AccountTransaction;

use super::convert;
use crate::engine::Engine;

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
/// fee tokens do; the second cell follows the first. Hashed together, which is several times faster than one by one.
pub fn balance_keys(accounts: &[ContractAddress]) -> Vec<StorageKey> {
    let variable = starknet_keccak(b"ERC20_balances");
    let pairs: Vec<[Felt; 2]> = accounts.iter().map(|account| [variable, account.to_felt()]).collect();
    let mut keys = vec![Felt::ZERO; pairs.len()];
    pedersen_many(&pairs, &mut keys);
    let key = |hash: Felt| StorageKey::try_from(hash.mod_floor(&L2_ADDRESS_UPPER_BOUND));
    // UNWRAP: what is left of a division by less than 2^251 is a key.
    keys.into_iter().map(|hash| key(hash).unwrap_or_default()).collect()
}

/// Collects hints; what cannot be a key of ours is left out.
struct Hints<'a> {
    context: &'a BlockContext,
    hints: Vec<Subject>,
    /// Token and account.
    balances: Vec<(ContractAddress, ContractAddress)>,
}

impl<'a> Hints<'a> {
    const fn new(context: &'a BlockContext) -> Self {
        Self { context, hints: Vec::new(), balances: Vec::new() }
    }

    /// All hints, with both cells of the balances.
    fn finish(mut self) -> Vec<Subject> {
        let accounts: Vec<ContractAddress> = self.balances.iter().map(|(_, account)| *account).collect();
        for ((token, _), low) in self.balances.iter().zip(balance_keys(&accounts)) {
            self.hints.push(Subject::Storage(*token, low));
            let high = StorageKey::try_from(low.to_felt() + Felt::ONE);
            self.hints.extend(high.map(|high| Subject::Storage(*token, high)));
        }
        self.hints
    }

    fn contract(&mut self, address: api::ContractAddress) {
        if let Ok(address) = convert::address(address) {
            self.hints.extend([Subject::ClassHash(address), Subject::Nonce(address)]);
        }
    }

    fn balance(&mut self, token: api::ContractAddress, of: api::ContractAddress) {
        if let (Ok(token), Ok(account)) = (convert::address(token), convert::address(of)) {
            self.balances.push((token, account));
        }
    }

    fn alias(&mut self, key: api::PatriciaKey) {
        if key < MIN_VALUE_FOR_ALIAS_ALLOC {
            return;
        }
        let constants = &self.context.versioned_constants().os_constants;
        let contract = convert::address(constants.os_contract_addresses.alias_contract_address());
        if let (Ok(contract), Ok(key)) = (contract, StorageKey::try_from(*key.key())) {
            self.hints.push(Subject::Storage(contract, key));
        }
    }

    fn transaction(&mut self, transaction: &Transaction) {
        let sender = transaction.sender_address();
        self.contract(sender);
        let Transaction::Account(account) = transaction else { return };
        self.balance(self.context.chain_info().fee_token_address(&FeeType::Strk), sender);
        match &account.tx {
            AccountTransaction::Invoke(invoke) => self.calls(&invoke.calldata().0),
            AccountTransaction::Declare(declare) => {
                self.hints.push(Subject::CompiledClassHash(ClassHash(declare.class_hash().0)));
            }
            AccountTransaction::DeployAccount(_) => {}
        }
    }

    /// The calls in an account's calldata, in either of the two forms that accounts have: `to, selector, arguments` with
    /// their count, once; or the number of calls and then as many of these.
    fn calls(&mut self, calldata: &[Felt]) {
        let many = calldata.first().and_then(|count| u64::try_from(*count).ok());
        let (mut rest, calls) = match many.filter(|count| *count <= CALLS_MAX) {
            Some(count) => (&calldata[1..], count),
            None => (calldata, 1),
        };
        for _ in 0..calls {
            let [to, selector, length, tail @ ..] = rest else { return };
            let length = u64::try_from(*length).unwrap_or(u64::MAX).min(tail.len() as u64) as usize;
            let (arguments, next) = tail.split_at(length);
            self.call(*to, *selector, arguments);
            rest = next;
        }
    }

    fn call(&mut self, to: Felt, selector: Felt, arguments: &[Felt]) {
        let Ok(to) = api::ContractAddress::try_from(to) else { return };
        self.contract(to);
        if selector == *TRANSFER
            && let Some(Ok(recipient)) = arguments.first().map(|felt| api::ContractAddress::try_from(*felt))
        {
            self.balance(to, recipient);
        }
    }
}

/// Most calls of one transaction that are looked at.
const CALLS_MAX: u64 = 64;

static TRANSFER: LazyLock<Felt> = LazyLock::new(|| selector_from_name("transfer").0);

/// What transactions will read: nonce and class of each sender, the balances that fees go between, and of the calls the
/// contracts and, for transfers, the recipient's balance.
pub fn of_transactions(transactions: &[Transaction], context: &BlockContext) -> Vec<Subject> {
    let mut hints = Hints::new(context);
    let token = context.chain_info().fee_token_address(&FeeType::Strk);
    hints.contract(token);
    hints.balance(token, context.block_info().sequencer_address);
    transactions.iter().for_each(|transaction| hints.transaction(transaction));
    hints.finish()
}

/// What the block's end will read for a transaction's writes: their aliases, and the leaves of the contracts.
pub fn of_writes(writes: &StateMaps, context: &BlockContext) -> Vec<Subject> {
    let mut hints = Hints::new(context);
    for (address, key) in writes.storage.keys() {
        hints.alias(key.0);
        hints.contract(*address);
        hints.alias(address.0);
    }
    for address in writes.nonces.keys().chain(writes.class_hashes.keys()) {
        hints.contract(*address);
        hints.alias(address.0);
    }
    hints.finish()
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
}
