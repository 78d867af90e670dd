//! The parts that contracts and classes play, and where they are.

use flagstone_core::felt::Felt;
use flagstone_core::types::{ClassHash, ContractAddress};

/// Accounts without validation. A block with more than half as many transactions uses some of them twice.
pub const ACCOUNTS: u64 = 2_000;
/// Contracts that calls go to.
pub const CONTRACTS: u64 = 64;
/// Accounts whose validation computes.
pub(super) const SLOW_ACCOUNTS: u64 = 64;

/// A part that a contract or class plays; with an index, it is one of them.
#[derive(Clone, Copy)]
pub(super) enum Part {
    Token = 1,
    Pool,
    Contract,
    Account,
    SlowAccount,
    Sequencer,
    FreshAccount,
    Class,
    DeclaredClass,
}

/// Tokens: the fee tokens, and two for swaps.
pub(super) const STRK: u64 = 0;
pub(super) const ETH: u64 = 1;
pub(super) const X: u64 = 2;
pub(super) const Y: u64 = 3;

/// Small random numbers of good quality (SplitMix64), the same everywhere.
#[derive(Clone)]
pub(super) struct Random(u64);

impl Random {
    /// Numbers that depend on all of `seeds`.
    pub(super) fn new(seeds: &[u64]) -> Self {
        seeds.iter().fold(Self(0x666c_6167_7374_6f6e), |mut random, seed| {
            random.0 ^= seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            Self(random.next())
        })
    }

    pub(super) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(super) const fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// A felt below 2^250, so that it can be an address, a key or a class hash of the tries.
    pub(super) fn felt(&mut self) -> Felt {
        let mut bytes = [0; 32];
        for word in bytes.chunks_exact_mut(8) {
            word.copy_from_slice(&self.next().to_be_bytes());
        }
        bytes[0] &= 0x03;
        Felt::from_bytes_be(&bytes)
    }
}

/// A felt for a part, spread like real addresses and hashes.
pub(super) fn felt(part: Part, index: u64) -> Felt {
    Random::new(&[part as u64, index]).felt()
}

/// The address of a part.
pub(super) fn address(part: Part, index: u64) -> ContractAddress {
    // UNWRAP: the felt is below 2^250.
    ContractAddress::try_from(felt(part, index)).unwrap_or_default()
}

/// An account without validation; the [`ACCOUNTS`] of them come again after the last.
pub fn account(index: u64) -> ContractAddress {
    address(Part::Account, index % ACCOUNTS)
}

/// A contract that calls go to, as [`account`].
pub fn contract(index: u64) -> ContractAddress {
    address(Part::Contract, index % CONTRACTS)
}

/// Classes that the genesis declares. Their class hashes stand for the real ones, which nothing here looks at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Erc20,
    Account,
    SlowAccount,
    Contract,
}

impl Class {
    pub(super) fn hash(self) -> ClassHash {
        ClassHash(felt(Part::Class, self as u64))
    }
}
