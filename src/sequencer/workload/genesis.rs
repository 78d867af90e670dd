//! The state that the workloads begin with: classes, tokens, accounts with balances.

use std::io::Read;

use flagstone_core::diff::{StateDiff, StateDiffBuilder};
use flagstone_core::felt::Felt;
use flagstone_core::types::{BlockNumber, ContractAddress, StorageKey, StorageValue};
use flagstone_core::update::StateUpdate;
use flate2::read::GzDecoder;
use starknet_api::abi::abi_utils::get_storage_var_address;
use starknet_api::contract_class::{ContractClass, SierraVersion};

use super::parts::{ACCOUNTS, CONTRACTS, Class, ETH, Part, SLOW_ACCOUNTS, STRK, X, Y, address};
use crate::engine::View;
use crate::sequencer::classes::DeclaredClass;
use crate::sequencer::hints::balance_keys;
use crate::sequencer::{SequencerError, convert};

/// What every account has of the fee token, and the swappers and the pool of the others.
const BALANCE: u64 = 1 << 62;

/// Block 0.
pub struct Genesis {
    /// What it sets.
    pub update: StateUpdate,
    /// The classes of its contracts.
    pub classes: Vec<DeclaredClass>,
}

/// Block 0 for all workloads. The ERC-20 class is declared by its v1 hash, as before protocol version 0.14.1, so that the
/// first block that uses it migrates it.
///
/// # Errors
/// [`SequencerError`] if the contracts that come with this crate cannot be read.
pub fn genesis() -> Result<Genesis, SequencerError> {
    let classes = [Class::Erc20, Class::Account, Class::SlowAccount, Class::Contract]
        .into_iter()
        .map(class)
        .collect::<Result<Vec<_>, _>>()?;
    let mut diff = StateDiff::builder();
    for class in &classes {
        diff = match class.hashes {
            Some(hashes) => diff.class(class.class_hash, hashes.v1),
            None => diff.deprecated_class(class.class_hash),
        };
    }
    for token in [STRK, ETH, X, Y] {
        diff = diff.class_hash(address(Part::Token, token), Class::Erc20.hash());
    }
    diff = diff.class_hash(address(Part::Pool, 0), Class::Contract.hash());
    for (part, count, class) in [
        (Part::Contract, CONTRACTS, Class::Contract),
        (Part::Account, ACCOUNTS, Class::Account),
        (Part::SlowAccount, SLOW_ACCOUNTS, Class::SlowAccount),
    ] {
        diff = (0..count).fold(diff, |diff, index| diff.class_hash(address(part, index), class.hash()));
    }
    let diff = balances(diff)?.build().map_err(|error| SequencerError::Diff(error.to_string()))?;
    let update = StateUpdate {
        block_number: Some(BlockNumber(0)),
        starknet_version: "0.14.0".parse().ok(),
        ..StateUpdate::from(diff)
    };
    Ok(Genesis { update, classes })
}

fn balances(mut diff: StateDiffBuilder) -> Result<StateDiffBuilder, SequencerError> {
    let all = |part, count| (0..count).map(move |index| address(part, index));
    let payers: Vec<ContractAddress> =
        all(Part::Account, ACCOUNTS).chain(all(Part::SlowAccount, SLOW_ACCOUNTS)).collect();
    let swappers: Vec<ContractAddress> = all(Part::Account, ACCOUNTS / 4).collect();
    let pool = [address(Part::Pool, 0)];
    for (token, holders) in [(STRK, &payers[..]), (X, &swappers), (Y, &pool)] {
        let token = address(Part::Token, token);
        for key in balance_keys(holders) {
            diff = diff.storage(token, key, BALANCE.into());
        }
    }
    let x = address(Part::Token, X);
    for swapper in swappers {
        diff = diff.storage(x, allowance_key(swapper, pool[0])?, StorageValue(Felt::from(BALANCE)));
    }
    Ok(diff)
}

/// The key of the first cell of what `owner` lets `spender` spend.
fn allowance_key(owner: ContractAddress, spender: ContractAddress) -> Result<StorageKey, SequencerError> {
    let key = get_storage_var_address("ERC20_allowances", &[owner.to_felt(), spender.to_felt()]);
    convert::storage_key(key).map_err(|error| SequencerError::Diff(error.to_string()))
}

fn class(class: Class) -> Result<DeclaredClass, SequencerError> {
    let gzipped: &[u8] = match class {
        Class::Erc20 => include_bytes!("contracts/erc20.json.gz"),
        Class::Account => include_bytes!("contracts/account.json.gz"),
        Class::SlowAccount => include_bytes!("contracts/account_long_validate.json.gz"),
        Class::Contract => include_bytes!("contracts/test_contract.json.gz"),
    };
    let unusable = |problem: String| crate::sequencer::classes::ClassError::Unusable {
        class_hash: class.hash(),
        problem,
    };
    let mut json = Vec::new();
    GzDecoder::new(gzipped).read_to_end(&mut json).map_err(|error| unusable(error.to_string()))?;
    let wrong = |error: serde_json::Error| unusable(error.to_string());
    let contract = match class {
        Class::Erc20 => {
            let casm = serde_json::from_slice(&json).map_err(wrong)?;
            ContractClass::V1((casm, SierraVersion::new(1, 7, 0)))
        }
        _ => ContractClass::V0(serde_json::from_slice(&json).map_err(wrong)?),
    };
    Ok(DeclaredClass::new(class.hash(), contract))
}

/// Whether a state began with [`genesis`].
///
/// # Errors
/// [`SequencerError::Foreign`] if it did not, [`SequencerError::Engine`] if it cannot be read.
pub fn check_genesis(view: &View) -> Result<(), SequencerError> {
    if view.class_hash_at(&address(Part::Account, ACCOUNTS - 1))? == Class::Account.hash() {
        return Ok(());
    }
    let problem = "this database was not begun by `flagstone sequence`; name an empty or a new directory";
    Err(SequencerError::Foreign(problem.to_owned()))
}
