//! Transactions to try a sequencer with, on contracts that the genesis deploys.
//!
//! A block's transactions are a function of workload, seed, block number, their count, and the senders' nonces in the state
//! before it. So a chain that is interrupted and continued is the same as one that is not.
//!
//! | workload | transactions |
//! |---|---|
//! | `transfers` | ERC-20 transfers between accounts that no other transaction of the block uses, as far as there are such |
//! | `multicall` | a tree of 15 calls that writes a slot in each of eight contracts |
//! | `contended` | in threes: A swaps at a pool that all swaps share, B spends what A's swap paid it, C is unrelated |
//! | `mixed` | all of these, with accounts whose validation computes, counters that are shared, transactions that revert, and classes that are declared and used in the same block: by an account, by a library call, deployed, and in another one's place |

mod build;
mod class;
mod genesis;
mod kind;
mod parts;
mod transactions;

pub use build::{BlockOf, block};
pub use class::small_class;
pub use genesis::{Genesis, check_genesis, genesis};
pub use kind::Workload;
pub use parts::{ACCOUNTS, CONTRACTS, account, contract};
pub use transactions::{Builder, Call, GAS_MAX, context, deployed_address};
