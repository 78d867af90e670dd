//! The choices: which backend, which table, which call for how many.

use super::contribution::{Contribution, Side};
use super::field::Fp;
use super::hasher::Hasher;
use super::platform::{Backend, Platform};
use super::sum;
use super::table::{Form, Table};
use super::width::TableWidth;
use super::{portable, poseidon};
use starknet_types_core::felt::Felt;

/// Pairs joined per shared inversion.
const JOIN_BLOCK: usize = 256;

/// Hashing on a chosen backend with a chosen table width.
///
/// [`Bulk`](super::Bulk) makes the choice by itself; this type is for tests and for comparing backends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Engine {
    platform: Platform,
    width: TableWidth,
}

impl Engine {
    /// An engine of this backend and width. Its table is built at the first hash that needs it.
    pub const fn new(platform: Platform, width: TableWidth) -> Engine {
        Engine { platform, width }
    }

    /// One Pedersen hash.
    pub fn pedersen(&self, left: &Felt, right: &Felt) -> Felt {
        sum::pedersen(self.platform, self.table(), left, right)
    }

    /// Builds this engine's table now instead of at its first hash.
    pub fn warm_up(&self) {
        self.table();
    }

    fn table(&self) -> &'static Table {
        Table::shared(form(self.platform), self.width)
    }
}

pub(crate) fn form(platform: Platform) -> Form {
    match platform.backend() {
        Backend::Portable => Form::Limbs64,
        #[cfg(target_arch = "x86_64")]
        Backend::Ifma => Form::Limbs52,
    }
}

impl Hasher for Engine {
    fn name(&self) -> &'static str {
        self.platform.name()
    }

    fn pedersen_many(&self, pairs: &[[Felt; 2]], out: &mut [Felt]) {
        sum::pedersen_many(self.platform, self.table(), pairs, out);
    }

    fn poseidon_many(&self, pairs: &[[Felt; 2]], out: &mut [Felt]) {
        assert_eq!(pairs.len(), out.len(), "one output per pair");
        match self.platform.backend() {
            Backend::Portable => poseidon::poseidon_many(pairs, out),
            #[cfg(target_arch = "x86_64")]
            Backend::Ifma => super::ifma::poseidon_many(pairs, out),
        }
    }

    fn contributions(&self, operands: &[(Side, Felt)], out: &mut [Contribution]) {
        sum::contributions(self.platform, self.table(), operands, out);
    }

    fn join_many(&self, pairs: &[(Contribution, Contribution)], out: &mut [Felt]) {
        assert_eq!(pairs.len(), out.len(), "one output per pair");
        let mut x = [Fp::ZERO; JOIN_BLOCK];
        for (pairs, out) in pairs.chunks(JOIN_BLOCK).zip(out.chunks_mut(JOIN_BLOCK)) {
            let x = &mut x[..pairs.len()];
            match self.platform.backend() {
                Backend::Portable => portable::join(pairs, x),
                #[cfg(target_arch = "x86_64")]
                Backend::Ifma => super::ifma::join(pairs, x),
            }
            for (x, out) in x.iter().zip(out) {
                *out = x.to_felt();
            }
        }
    }
}
