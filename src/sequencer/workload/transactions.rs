//! Transactions of current versions, and the context of their block.

use std::collections::HashMap;

use blockifier::blockifier_versioned_constants::VersionedConstants;
use blockifier::bouncer::BouncerConfig;
use blockifier::context::{BlockContext, ChainInfo, FeeTokenAddresses};
use blockifier::transaction::account_transaction::AccountTransaction;
use blockifier::transaction::transaction_execution::Transaction;
use flagstone_core::felt::Felt;
use flagstone_core::types::{BlockNumber, ClassHash, ContractAddress};
use starknet_api::abi::abi_utils::selector_from_name;
use starknet_api::block::{
    BlockInfo, BlockNumber as ApiBlockNumber, BlockTimestamp, GasPriceVector, GasPrices, StarknetVersion,
};
use starknet_api::contract_class::{ClassInfo, SierraVersion};
use starknet_api::core::{CompiledClassHash, Nonce, calculate_contract_address};
use starknet_api::data_availability::DataAvailabilityMode;
use starknet_api::executable_transaction as executable;
use starknet_api::execution_resources::GasAmount;
use starknet_api::transaction::fields::{
    AccountDeploymentData, AllResourceBounds, Calldata, ContractAddressSalt, PaymasterData, ProofFacts,
    ResourceBounds, Tip, TransactionSignature, ValidResourceBounds,
};
use starknet_api::transaction::{
    DeclareTransaction, DeclareTransactionV3, DeployAccountTransaction, DeployAccountTransactionV3,
    InvokeTransaction, InvokeTransactionV3, TransactionHash,
};
use starknet_api::versioned_constants_logic::VersionedConstantsTrait;

use super::parts::{ETH, Part, STRK, address};
use crate::engine::View;
use crate::sequencer::classes::{ClassError, DeclaredClass};
use crate::sequencer::{SequencerError, convert, to_executor};

/// Time of the genesis, in seconds since 1970.
const GENESIS_TIME: u64 = 1_700_000_000;

/// The context of a block: a chain of its own, gas at the lowest price, and room for any number of transactions.
///
/// # Errors
/// [`SequencerError::Diff`] if an address is out of range, which none is.
pub fn context(number: BlockNumber) -> Result<BlockContext, SequencerError> {
    let prices =
        GasPrices { eth_gas_prices: GasPriceVector::default(), strk_gas_prices: GasPriceVector::default() };
    let info = BlockInfo {
        block_number: ApiBlockNumber(number.0),
        block_timestamp: BlockTimestamp(GENESIS_TIME + number.0),
        starknet_version: StarknetVersion::LATEST,
        sequencer_address: to_executor::address(address(Part::Sequencer, 0))?,
        gas_prices: prices,
        use_kzg_da: true,
    };
    let fee_token_addresses = FeeTokenAddresses {
        strk_fee_token_address: to_executor::address(address(Part::Token, STRK))?,
        eth_fee_token_address: to_executor::address(address(Part::Token, ETH))?,
    };
    let chain = ChainInfo { fee_token_addresses, ..ChainInfo::default() };
    let constants = VersionedConstants::latest_constants().clone();
    Ok(BlockContext::new(info, chain, constants, BouncerConfig::max()))
}

/// A call: contract, entry point, arguments.
#[derive(Debug, Clone)]
pub struct Call {
    to: Felt,
    entry: &'static str,
    arguments: Vec<Felt>,
}

impl Call {
    /// A call of a contract.
    pub fn new(to: ContractAddress, entry: &'static str, arguments: impl Into<Vec<Felt>>) -> Self {
        Self { to: to.to_felt(), entry, arguments: arguments.into() }
    }

    /// A call of a class on the storage of `contract`, by whose entry point `library_call`: `test_library_call` of the workloads'
    /// Cairo 0 contracts.
    pub fn library(
        contract: ContractAddress,
        library_call: &'static str,
        class_hash: ClassHash,
        entry: &'static str,
        arguments: impl Into<Vec<Felt>>,
    ) -> Self {
        let call = Self { to: class_hash.0, entry, arguments: arguments.into() };
        Self::new(contract, library_call, call.flat())
    }

    /// Contract, selector, arguments with their count: as accounts and contracts here take calls.
    pub fn flat(&self) -> Vec<Felt> {
        let head = [self.to, selector_from_name(self.entry).0, Felt::from(self.arguments.len())];
        head.into_iter().chain(self.arguments.iter().copied()).collect()
    }
}

/// Makes transactions, one after another, of senders whose nonces it reads once and then counts.
pub struct Builder<'a> {
    view: &'a View,
    number: BlockNumber,
    nonces: HashMap<ContractAddress, Felt>,
    made: Vec<Transaction>,
}

impl<'a> Builder<'a> {
    /// For a block on the state that `view` shows.
    pub fn new(view: &'a View, number: BlockNumber) -> Self {
        Self { view, number, nonces: HashMap::new(), made: Vec::new() }
    }

    /// How many transactions there are.
    pub const fn len(&self) -> usize {
        self.made.len()
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.made.is_empty()
    }

    /// Leaves out those after the first `count`.
    pub fn truncate(&mut self, count: usize) {
        self.made.truncate(count);
    }

    /// All transactions, in order.
    pub fn finish(self) -> Vec<Transaction> {
        self.made
    }

    /// The sender's next nonce, which is used up by that.
    ///
    /// # Errors
    /// [`SequencerError::Engine`] if it cannot be read.
    pub fn nonce(&mut self, sender: ContractAddress) -> Result<Nonce, SequencerError> {
        let known = match self.nonces.get(&sender) {
            Some(nonce) => *nonce,
            None => self.view.nonce_at(&sender)?.0,
        };
        self.nonces.insert(sender, known + Felt::ONE);
        Ok(Nonce(known))
    }

    fn hash(&self) -> TransactionHash {
        TransactionHash(Felt::from((u128::from(self.number.0) << 32) + self.made.len() as u128))
    }

    fn push(&mut self, transaction: executable::AccountTransaction) {
        self.made.push(Transaction::Account(AccountTransaction::new_for_sequencing(transaction)));
    }

    /// A transaction that makes one call.
    ///
    /// # Errors
    /// As [`Builder::nonce`].
    pub fn invoke(&mut self, sender: ContractAddress, call: &Call) -> Result<(), SequencerError> {
        let transaction = InvokeTransactionV3 {
            resource_bounds: bounds(GAS_MAX),
            tip: Tip::default(),
            signature: TransactionSignature::default(),
            nonce: self.nonce(sender)?,
            sender_address: to_executor::address(sender)?,
            calldata: Calldata(call.flat().into()),
            nonce_data_availability_mode: DataAvailabilityMode::L1,
            fee_data_availability_mode: DataAvailabilityMode::L1,
            paymaster_data: PaymasterData::default(),
            account_deployment_data: AccountDeploymentData::default(),
            proof_facts: ProofFacts::default(),
        };
        let (tx, tx_hash) = (InvokeTransaction::V3(transaction), self.hash());
        self.push(executable::AccountTransaction::Invoke(executable::InvokeTransaction { tx, tx_hash }));
        Ok(())
    }

    /// Declares a Sierra class, with at most so much gas of each kind.
    ///
    /// # Errors
    /// As [`Builder::declare_as`].
    pub fn declare(
        &mut self,
        sender: ContractAddress,
        class: &DeclaredClass,
        gas_max: u64,
    ) -> Result<(), SequencerError> {
        let transaction = DeclareTransactionV3 {
            resource_bounds: bounds(gas_max),
            tip: Tip::default(),
            signature: TransactionSignature::default(),
            nonce: self.nonce(sender)?,
            class_hash: to_executor::class_hash(class.class_hash),
            compiled_class_hash: CompiledClassHash(class.hashes.unwrap_or_default().v2.0),
            sender_address: to_executor::address(sender)?,
            nonce_data_availability_mode: DataAvailabilityMode::L1,
            fee_data_availability_mode: DataAvailabilityMode::L1,
            paymaster_data: PaymasterData::default(),
            account_deployment_data: AccountDeploymentData::default(),
        };
        self.declare_as(DeclareTransaction::V3(transaction), class)
    }

    /// Declares a class by a transaction of any version.
    ///
    /// # Errors
    /// [`SequencerError::Class`] if the executor does not take the class; otherwise as [`Builder::nonce`].
    pub fn declare_as(
        &mut self,
        transaction: DeclareTransaction,
        class: &DeclaredClass,
    ) -> Result<(), SequencerError> {
        let (length, version) = match class.hashes {
            Some(_) => (1, SierraVersion::LATEST),
            None => (0, SierraVersion::DEPRECATED),
        };
        let class_info = ClassInfo::new(&class.class, length, 0, version).map_err(|error| {
            ClassError::Unusable { class_hash: class.class_hash, problem: error.to_string() }
        })?;
        let declare = executable::DeclareTransaction { tx: transaction, tx_hash: self.hash(), class_info };
        self.push(executable::AccountTransaction::Declare(declare));
        Ok(())
    }

    /// Pays an address, and deploys an account there, which pays for that, and for one more transaction, from what it was paid.
    /// Says the address.
    ///
    /// # Errors
    /// [`SequencerError::Diff`] if there is no such address; otherwise as [`Builder::nonce`].
    pub fn deploy_account(
        &mut self,
        payer: ContractAddress,
        class_hash: ClassHash,
        salt: Felt,
    ) -> Result<ContractAddress, SequencerError> {
        let transaction = DeployAccountTransaction::V3(DeployAccountTransactionV3 {
            resource_bounds: bounds(GAS_MAX),
            tip: Tip::default(),
            signature: TransactionSignature::default(),
            nonce: Nonce::default(),
            class_hash: to_executor::class_hash(class_hash),
            contract_address_salt: ContractAddressSalt(salt),
            constructor_calldata: Calldata::default(),
            nonce_data_availability_mode: DataAvailabilityMode::L1,
            fee_data_availability_mode: DataAvailabilityMode::L1,
            paymaster_data: PaymasterData::default(),
        });
        let to = deployed_address(None, class_hash, salt, &[])?;
        let contract_address = to_executor::address(to)?;
        let fund = [to.to_felt(), Felt::from(2 * FEE_MAX), Felt::ZERO];
        self.invoke(payer, &Call::new(address(Part::Token, STRK), "transfer", fund))?;
        let (tx, tx_hash) = (transaction, self.hash());
        let deploy = executable::DeployAccountTransaction { tx, tx_hash, contract_address };
        self.push(executable::AccountTransaction::DeployAccount(deploy));
        self.nonces.insert(to, Felt::ONE);
        Ok(to)
    }
}

/// Where a contract is deployed, with these arguments of its constructor: by a contract, or, as an account, by itself.
///
/// # Errors
/// [`SequencerError::Diff`] if the executor gives no address of ours.
pub fn deployed_address(
    deployer: Option<ContractAddress>,
    class_hash: ClassHash,
    salt: Felt,
    arguments: &[Felt],
) -> Result<ContractAddress, SequencerError> {
    let wrong = |error: String| SequencerError::Diff(error);
    let deployer = deployer.map(to_executor::address).transpose()?.unwrap_or_default();
    let (salt, class_hash) = (ContractAddressSalt(salt), to_executor::class_hash(class_hash));
    let address =
        calculate_contract_address(salt, class_hash, &Calldata(arguments.to_vec().into()), deployer)
            .map_err(|error| wrong(error.to_string()))?;
    convert::address(address).map_err(|error| wrong(error.to_string()))
}

/// Most gas of each kind that a transaction may use, at a price of one.
pub const GAS_MAX: u64 = 1_000_000_000;
/// Most fee that a transaction may cost.
const FEE_MAX: u64 = 3 * GAS_MAX;

fn bounds(gas_max: u64) -> ValidResourceBounds {
    let bound = ResourceBounds { max_amount: GasAmount(gas_max), max_price_per_unit: 1u32.into() };
    ValidResourceBounds::AllResources(AllResourceBounds { l1_gas: bound, l2_gas: bound, l1_data_gas: bound })
}
