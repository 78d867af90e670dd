//! The transactions of one block.

use flagstone_core::felt::Felt;
use flagstone_core::types::{BlockNumber, ContractAddress, StateCommitment};
use starknet_api::block::{BlockHash, BlockHashAndNumber, BlockNumber as ApiBlockNumber};

use super::class::small_class;
use super::kind::Workload;
use super::parts::{
    ACCOUNTS, CONTRACTS, Part, Random, SLOW_ACCOUNTS, STRK, X, Y, account, address, contract,
};
use super::transactions::{Builder, Call, GAS_MAX, context, deployed_address};
use crate::engine::View;
use crate::sequencer::{BlockInput, SequencerError};

/// Contracts that a call of `multicall` writes to: 2^3.
const TREE_HEIGHT: u32 = 3;
/// Slots of each contract that calls write to.
const SLOTS: u64 = 4_096;
/// What a transfer moves.
const AMOUNT: u64 = 1_000;

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
    let mut filler = Filler { builder: Builder::new(view, of.number), random };
    filler.fill(of.workload, of.transactions)?;
    let old_block = of.number.0.checked_sub(10).zip(old_root);
    Ok(BlockInput {
        context: context(of.number)?,
        old_block: old_block.map(|(number, root)| BlockHashAndNumber {
            number: ApiBlockNumber(number),
            hash: BlockHash(root.0),
        }),
        transactions: filler.builder.finish(),
    })
}

struct Filler<'a> {
    builder: Builder<'a>,
    random: Random,
}

/// A transfer of [`AMOUNT`].
fn transfer(token: u64, to: ContractAddress) -> Call {
    Call::new(address(Part::Token, token), "transfer", [to.to_felt(), AMOUNT.into(), Felt::ZERO])
}

impl Filler<'_> {
    fn fill(&mut self, workload: Workload, count: usize) -> Result<(), SequencerError> {
        let (first, mut turn) = (self.random.below(ACCOUNTS), 0);
        while self.builder.len() < count {
            match workload {
                Workload::Transfers => self.pay(first + 2 * turn)?,
                Workload::Multicall => self.multicall(first + turn)?,
                Workload::Contended => self.swap(turn)?,
                Workload::Mixed => self.mixed(first, turn)?,
            }
            turn += 1;
        }
        // A group may have gone over the end.
        self.builder.truncate(count);
        Ok(())
    }

    /// A transfer to the next account; one in ten goes to an address that was never used.
    fn pay(&mut self, sender: u64) -> Result<(), SequencerError> {
        let to = match self.random.below(10) {
            0 => address(Part::FreshAccount, self.random.next()),
            _ => account(sender + 1),
        };
        self.builder.invoke(account(sender), &transfer(STRK, to))
    }

    fn multicall(&mut self, sender: u64) -> Result<(), SequencerError> {
        let call = self.tree(TREE_HEIGHT);
        self.builder.invoke(account(sender), &call)
    }

    /// A call that makes two calls, which make two calls, and so on; the last ones write a slot each.
    fn tree(&mut self, height: u32) -> Call {
        let to = contract(self.random.below(CONTRACTS));
        if height == 0 {
            return Call::new(to, "test_storage_read_write", self.slot());
        }
        let both = [self.tree(height - 1).flat(), self.tree(height - 1).flat()].concat();
        Call::new(to, "test_call_two_contracts", both)
    }

    /// A swaps X for Y at the pool, which pays B; B, who has no other Y, spends that; C is unrelated. Each quarter of the
    /// accounts plays one part, so that B's balance is what A's swap made it.
    fn swap(&mut self, turn: u64) -> Result<(), SequencerError> {
        let quarter = ACCOUNTS / 4;
        let turn = turn % quarter;
        let [a, b, to, c] = [0, 1, 2, 3].map(|part| account(part * quarter + turn));
        let pool = address(Part::Pool, 0);
        let take = Call::new(
            address(Part::Token, X),
            "transferFrom",
            [a.to_felt(), pool.to_felt(), AMOUNT.into(), Felt::ZERO],
        );
        let both = [take.flat(), transfer(Y, b).flat()].concat();
        self.builder.invoke(a, &Call::new(pool, "test_call_two_contracts", both))?;
        self.builder.invoke(b, &transfer(Y, to))?;
        self.builder.invoke(c, &transfer(STRK, to))
    }

    fn mixed(&mut self, first: u64, turn: u64) -> Result<(), SequencerError> {
        let sender = first + 2 * turn;
        match (turn, self.random.below(20)) {
            (0, _) => self.declare_and_use(first),
            (_, 0) => {
                let arguments = [Felt::from(0x100), Felt::ONE];
                let revert = Call::new(contract(0), "write_and_revert", arguments);
                self.builder.invoke(account(sender), &revert)
            }
            (_, 1..4) => self.count(),
            (_, 4..8) => self.multicall(sender),
            (_, 8..11) => self.swap(turn),
            _ => self.pay(sender),
        }
    }

    /// Declares two classes that no other block declares, and uses them in all ways there are: an account of the first is deployed
    /// and calls a contract; the first is called on a contract's storage; a contract of it is deployed, gets the second in its
    /// place, and is called.
    fn declare_and_use(&mut self, first: u64) -> Result<(), SequencerError> {
        let sender = |turn: u64| account(first + 1 + 2 * turn);
        let (class, other) = (small_class(self.random.next())?, small_class(self.random.next())?);
        let class_hash = class.class_hash;
        self.builder.declare(sender(0), &class, GAS_MAX)?;
        let own = self.builder.deploy_account(sender(1), class_hash, self.random.felt())?;
        let slot = self.slot();
        self.builder.invoke(own, &Call::new(contract(0), "test_storage_read_write", slot))?;
        let library_call = Call::library(contract(1), "test_library_call", class_hash, "write", self.slot());
        self.builder.invoke(sender(2), &library_call)?;
        let salt = self.random.felt();
        let deploy = [class_hash.0, salt, Felt::ZERO, Felt::ZERO];
        self.builder.invoke(sender(3), &Call::new(contract(2), "test_deploy", deploy))?;
        let deployed = deployed_address(Some(contract(2)), class_hash, salt, &[])?;
        self.builder.declare(sender(4), &other, GAS_MAX)?;
        self.builder.invoke(sender(5), &Call::new(deployed, "replace", [other.class_hash.0]))?;
        let slot = self.slot();
        self.builder.invoke(sender(6), &Call::new(deployed, "write", slot))
    }

    /// A slot above 0x80, so that it gets an alias, and a value that is not zero, so that something is written.
    fn slot(&mut self) -> [Felt; 2] {
        [Felt::from(0x100 + self.random.below(SLOTS)), Felt::from(1 + self.random.below(1 << 40))]
    }

    /// Advances one of a few counters, from an account whose validation takes as many steps as the counter's number.
    fn count(&mut self) -> Result<(), SequencerError> {
        let sender = address(Part::SlowAccount, self.random.below(SLOW_ACCOUNTS));
        let arguments = [Felt::from(200 + self.random.below(8)), Felt::ONE, Felt::TWO];
        self.builder.invoke(sender, &Call::new(contract(0), "advance_counter", arguments))
    }
}
