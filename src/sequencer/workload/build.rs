//! The transactions of one block.

use std::collections::HashMap;

use blockifier::blockifier_versioned_constants::VersionedConstants;
use blockifier::bouncer::BouncerConfig;
use blockifier::context::{BlockContext, ChainInfo, FeeTokenAddresses};
use blockifier::transaction::account_transaction::AccountTransaction;
use blockifier::transaction::transaction_execution::Transaction;
use flagstone_core::felt::Felt;
use flagstone_core::types::{BlockNumber, ClassHash, ContractAddress, StateCommitment};
use serde_json::json;
use starknet_api::abi::abi_utils::selector_from_name;
use starknet_api::block::{
    BlockHash, BlockHashAndNumber, BlockInfo, BlockNumber as ApiBlockNumber, BlockTimestamp, GasPriceVector,
    GasPrices, StarknetVersion,
};
use starknet_api::contract_class::{ClassInfo, ContractClass, SierraVersion};
use starknet_api::core::{CompiledClassHash, Nonce};
use starknet_api::data_availability::DataAvailabilityMode;
use starknet_api::executable_transaction as executable;
use starknet_api::execution_resources::GasAmount;
use starknet_api::transaction::fields::{
    AccountDeploymentData, AllResourceBounds, Calldata, ContractAddressSalt, PaymasterData, ProofFacts,
    ResourceBounds, Tip, TransactionSignature, ValidResourceBounds,
};
use starknet_api::transaction::{
    CalculateContractAddress, DeclareTransaction, DeclareTransactionV3, DeployAccountTransaction,
    DeployAccountTransactionV3, InvokeTransaction, InvokeTransactionV3, TransactionHash,
};
use starknet_api::versioned_constants_logic::VersionedConstantsTrait;

use super::{
    ACCOUNTS, CONTRACTS, Class, ETH, Part, Random, SLOW_ACCOUNTS, STRK, Workload, X, Y, address, felt,
};
use crate::engine::View;
use crate::sequencer::classes::{ClassError, DeclaredClass};
use crate::sequencer::{BlockInput, SequencerError, convert, to_executor};

/// Contracts that a call of `multicall` writes to: 2^3.
const TREE_HEIGHT: u32 = 3;
/// Slots of each contract that calls write to.
const SLOTS: u64 = 4_096;
/// What a transfer moves.
const AMOUNT: u64 = 1_000;
/// Time of the genesis, in seconds since 1970.
const GENESIS_TIME: u64 = 1_700_000_000;

/// Which block is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockOf {
    /// The load.
    pub workload: Workload,
    /// Another seed gives other transactions.
    pub seed: u64,
    /// The block.
    pub number: BlockNumber,
    /// How many transactions it has.
    pub transactions: usize,
}

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

/// A block for the state that `view` shows. `old_root` is the root of the block ten before, which stands for that block's
/// hash: hashes of blocks are their headers' business, and there are no headers here.
///
/// # Errors
/// [`SequencerError`] if the senders' nonces cannot be read.
pub fn block(
    of: &BlockOf,
    view: &View,
    old_root: Option<StateCommitment>,
) -> Result<BlockInput, SequencerError> {
    let random = Random::new(&[of.seed, of.workload as u64, of.number.0]);
    let mut builder = Builder { view, number: of.number.0, random, nonces: HashMap::new(), made: Vec::new() };
    builder.fill(of.workload, of.transactions)?;
    let old_block = of.number.0.checked_sub(10).zip(old_root);
    Ok(BlockInput {
        context: context(of.number)?,
        old_block: old_block.map(|(number, root)| BlockHashAndNumber {
            number: ApiBlockNumber(number),
            hash: BlockHash(root.0),
        }),
        transactions: builder.made,
    })
}

struct Builder<'a> {
    view: &'a View,
    number: u64,
    random: Random,
    nonces: HashMap<ContractAddress, Felt>,
    made: Vec<Transaction>,
}

/// A call: contract, entry point, arguments.
struct Call {
    to: Felt,
    entry: &'static str,
    arguments: Vec<Felt>,
}

impl Call {
    fn new(to: ContractAddress, entry: &'static str, arguments: impl Into<Vec<Felt>>) -> Self {
        Self { to: to.to_felt(), entry, arguments: arguments.into() }
    }

    /// Contract, selector, arguments with their count: as accounts and contracts here take calls.
    fn flat(&self) -> Vec<Felt> {
        let head = [self.to, selector_from_name(self.entry).0, Felt::from(self.arguments.len())];
        head.into_iter().chain(self.arguments.iter().copied()).collect()
    }
}

/// A transfer of [`AMOUNT`].
fn transfer(token: u64, to: ContractAddress) -> Call {
    Call::new(address(Part::Token, token), "transfer", [to.to_felt(), AMOUNT.into(), Felt::ZERO])
}

impl Builder<'_> {
    fn fill(&mut self, workload: Workload, count: usize) -> Result<(), SequencerError> {
        let (first, mut turn) = (self.random.below(ACCOUNTS), 0);
        while self.made.len() < count {
            match workload {
                Workload::Transfers => self.pay(first + 2 * turn)?,
                Workload::Multicall => self.multicall(first + turn)?,
                Workload::Contended => self.swap(turn)?,
                Workload::Mixed => self.mixed(first, turn)?,
            }
            turn += 1;
        }
        // A group may have gone over the end.
        self.made.truncate(count);
        Ok(())
    }

    fn account(index: u64) -> ContractAddress {
        address(Part::Account, index % ACCOUNTS)
    }

    /// A transfer to the next account; one in ten goes to an address that was never used.
    fn pay(&mut self, sender: u64) -> Result<(), SequencerError> {
        let to = match self.random.below(10) {
            0 => address(Part::FreshAccount, self.random.next()),
            _ => Self::account(sender + 1),
        };
        self.invoke(Self::account(sender), &transfer(STRK, to))
    }

    fn multicall(&mut self, sender: u64) -> Result<(), SequencerError> {
        let call = self.tree(TREE_HEIGHT);
        self.invoke(Self::account(sender), &call)
    }

    /// A call that makes two calls, which make two calls, and so on; the last ones write a slot each.
    fn tree(&mut self, height: u32) -> Call {
        let contract = address(Part::Contract, self.random.below(CONTRACTS));
        if height == 0 {
            // Above 0x80, so that the slot gets an alias; not zero, so that something is written.
            let (key, value) = (0x100 + self.random.below(SLOTS), 1 + self.random.below(1 << 40));
            return Call::new(contract, "test_storage_read_write", [key.into(), value.into()]);
        }
        let both = [self.tree(height - 1).flat(), self.tree(height - 1).flat()].concat();
        Call::new(contract, "test_call_two_contracts", both)
    }

    /// A swaps X for Y at the pool, which pays B; B, who has no other Y, spends that; C is unrelated. Each quarter of the
    /// accounts plays one part, so that B's balance is what A's swap made it.
    fn swap(&mut self, turn: u64) -> Result<(), SequencerError> {
        let quarter = ACCOUNTS / 4;
        let turn = turn % quarter;
        let [a, b, to, c] = [0, 1, 2, 3].map(|part| Self::account(part * quarter + turn));
        let pool = address(Part::Pool, 0);
        let take = Call::new(
            address(Part::Token, X),
            "transferFrom",
            [a.to_felt(), pool.to_felt(), AMOUNT.into(), Felt::ZERO],
        );
        let both = [take.flat(), transfer(Y, b).flat()].concat();
        self.invoke(a, &Call::new(pool, "test_call_two_contracts", both))?;
        self.invoke(b, &transfer(Y, to))?;
        self.invoke(c, &transfer(STRK, to))
    }

    fn mixed(&mut self, first: u64, turn: u64) -> Result<(), SequencerError> {
        let sender = first + 2 * turn;
        match (turn, self.random.below(20)) {
            (0, _) => self.declare(Self::account(sender)),
            (1, _) => self.deploy(Self::account(sender)),
            (_, 0) => {
                let arguments = [Felt::from(0x100), Felt::ONE];
                let revert = Call::new(address(Part::Contract, 0), "write_and_revert", arguments);
                self.invoke(Self::account(sender), &revert)
            }
            (_, 1..4) => self.count(),
            (_, 4..8) => self.multicall(sender),
            (_, 8..11) => self.swap(turn),
            _ => self.pay(sender),
        }
    }

    /// Advances one of a few counters, from an account whose validation takes as many steps as the counter's number.
    fn count(&mut self) -> Result<(), SequencerError> {
        let sender = address(Part::SlowAccount, self.random.below(SLOW_ACCOUNTS));
        let arguments = [Felt::from(200 + self.random.below(8)), Felt::ONE, Felt::TWO];
        self.invoke(sender, &Call::new(address(Part::Contract, 0), "advance_counter", arguments))
    }

    fn nonce(&mut self, sender: ContractAddress) -> Result<Nonce, SequencerError> {
        let known = match self.nonces.get(&sender) {
            Some(nonce) => *nonce,
            None => self.view.nonce_at(&sender)?.0,
        };
        self.nonces.insert(sender, known + Felt::ONE);
        Ok(Nonce(known))
    }

    fn hash(&self) -> TransactionHash {
        TransactionHash(Felt::from((u128::from(self.number) << 32) + self.made.len() as u128))
    }

    fn push(&mut self, transaction: executable::AccountTransaction) {
        self.made.push(Transaction::Account(AccountTransaction::new_for_sequencing(transaction)));
    }

    fn invoke(&mut self, sender: ContractAddress, call: &Call) -> Result<(), SequencerError> {
        let transaction = InvokeTransactionV3 {
            resource_bounds: bounds(),
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

    /// Declares a class of two instructions that no other block declares.
    fn declare(&mut self, sender: ContractAddress) -> Result<(), SequencerError> {
        let class_hash = ClassHash(felt(Part::DeclaredClass, self.random.next()));
        let unusable = |problem: String| ClassError::Unusable { class_hash, problem };
        let class = small_class(self.random.next()).map_err(|error| unusable(error.to_string()))?;
        let info = ClassInfo::new(&class, 1, 0, SierraVersion::LATEST)
            .map_err(|error| unusable(error.to_string()))?;
        let hashes = DeclaredClass::new(class_hash, class).hashes.unwrap_or_default();
        let transaction = DeclareTransactionV3 {
            resource_bounds: bounds(),
            tip: Tip::default(),
            signature: TransactionSignature::default(),
            nonce: self.nonce(sender)?,
            class_hash: to_executor::class_hash(class_hash),
            compiled_class_hash: CompiledClassHash(hashes.v2.0),
            sender_address: to_executor::address(sender)?,
            nonce_data_availability_mode: DataAvailabilityMode::L1,
            fee_data_availability_mode: DataAvailabilityMode::L1,
            paymaster_data: PaymasterData::default(),
            account_deployment_data: AccountDeploymentData::default(),
        };
        let (tx, tx_hash) = (DeclareTransaction::V3(transaction), self.hash());
        let declare = executable::DeclareTransaction { tx, tx_hash, class_info: info };
        self.push(executable::AccountTransaction::Declare(declare));
        Ok(())
    }

    /// Pays an address, and deploys the account there, which pays for that from what it was just paid.
    fn deploy(&mut self, sender: ContractAddress) -> Result<(), SequencerError> {
        let transaction = DeployAccountTransaction::V3(DeployAccountTransactionV3 {
            resource_bounds: bounds(),
            tip: Tip::default(),
            signature: TransactionSignature::default(),
            nonce: Nonce::default(),
            class_hash: to_executor::class_hash(Class::Account.hash()),
            contract_address_salt: ContractAddressSalt(self.random.felt()),
            constructor_calldata: Calldata::default(),
            nonce_data_availability_mode: DataAvailabilityMode::L1,
            fee_data_availability_mode: DataAvailabilityMode::L1,
            paymaster_data: PaymasterData::default(),
        });
        let wrong = |error: String| SequencerError::Diff(error);
        let contract_address =
            transaction.calculate_contract_address().map_err(|error| wrong(error.to_string()))?;
        let to = convert::address(contract_address).map_err(|error| wrong(error.to_string()))?;
        let fund = [to.to_felt(), Felt::from(FEE_MAX), Felt::ZERO];
        self.invoke(sender, &Call::new(address(Part::Token, STRK), "transfer", fund))?;
        let (tx, tx_hash) = (transaction, self.hash());
        let deploy = executable::DeployAccountTransaction { tx, tx_hash, contract_address };
        self.push(executable::AccountTransaction::DeployAccount(deploy));
        Ok(())
    }
}

/// Most gas of each kind that a transaction may use, at a price of one.
const GAS_MAX: u64 = 1_000_000_000;
/// Most fee that a transaction may cost.
const FEE_MAX: u64 = 3 * GAS_MAX;

fn bounds() -> ValidResourceBounds {
    let bound = ResourceBounds { max_amount: GasAmount(GAS_MAX), max_price_per_unit: 1u32.into() };
    ValidResourceBounds::AllResources(AllResourceBounds { l1_gas: bound, l2_gas: bound, l1_data_gas: bound })
}

/// A compiled class without entry points, made unlike others by a number.
fn small_class(number: u64) -> Result<ContractClass, serde_json::Error> {
    let casm = json!({
        "prime": "0x800000000000011000000000000000000000000000000000000000000000001",
        "compiler_version": "2.11.2",
        "bytecode": ["0x208b7fff7fff7ffe", format!("{number:#x}")],
        "hints": [],
        "entry_points_by_type": { "EXTERNAL": [], "L1_HANDLER": [], "CONSTRUCTOR": [] },
    });
    Ok(ContractClass::V1((serde_json::from_value(casm)?, SierraVersion::LATEST)))
}
