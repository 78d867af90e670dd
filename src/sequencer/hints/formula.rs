//! Storage keys as functions of the call that reads them.
//!
//! A contract's key is a constant, something that the call brings, or an entry of a map: the Pedersen hash of the map's
//! variable and of what the call brings, once or twice. Cells that follow each other differ by a small offset. Keys that are made
//! otherwise have no formula here.

use flagstone_core::felt::Felt;
use flagstone_core::hash::pedersen_many;
use flagstone_core::types::{ContractAddress, StorageKey};
use starknet_api::core::L2_ADDRESS_UPPER_BOUND;

/// A call, as far as its keys depend on it.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// Who calls.
    pub caller: ContractAddress,
    /// Who is called, and whose storage it is.
    pub contract: ContractAddress,
    /// What it is called with.
    pub arguments: &'a [Felt],
}

/// What a call brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// The address of who calls.
    Caller,
    /// The address of who is called.
    Contract,
    /// An argument, by its place.
    Argument(u8),
}

impl Input {
    pub(super) fn of(self, call: &Call<'_>) -> Option<Felt> {
        match self {
            Self::Caller => Some(call.caller.to_felt()),
            Self::Contract => Some(call.contract.to_felt()),
            Self::Argument(place) => call.arguments.get(usize::from(place)).copied(),
        }
    }
}

/// Where the offset of a [`Formula`] counts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// The same key whatever the call brings.
    Constant(Felt),
    /// What the call brings.
    Input(Input),
    /// An entry of the map in this variable.
    Entry(Felt, Input),
    /// An entry of a map of maps.
    EntryOfEntry(Felt, Input, Input),
}

/// A storage key as a function of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Formula {
    /// The first cell.
    pub base: Base,
    /// How many cells further.
    pub offset: u8,
}

impl Formula {
    /// The first cell.
    pub const fn first(base: Base) -> Self {
        Self { base, offset: 0 }
    }
}

/// The keys that formulas give for their calls; `None` where a call does not bring what the formula asks for. Hashed
/// together, which is several times faster than one by one.
pub fn keys_of(asked: &[(Formula, Call<'_>)]) -> Vec<Option<StorageKey>> {
    let once = hash_some(asked.iter().map(|(formula, call)| match formula.base {
        Base::Entry(variable, input) | Base::EntryOfEntry(variable, input, _) => {
            Some([variable, input.of(call)?])
        }
        Base::Constant(_) | Base::Input(_) => None,
    }));
    let twice = hash_some(asked.iter().zip(&once).map(|((formula, call), once)| match formula.base {
        Base::EntryOfEntry(_, _, input) => Some([(*once)?, input.of(call)?]),
        _ => None,
    }));
    let first = asked.iter().zip(once.into_iter().zip(twice)).map(|((formula, call), (once, twice))| {
        let first = match formula.base {
            Base::Constant(key) => Some(key),
            Base::Input(input) => input.of(call),
            Base::Entry(..) => once,
            Base::EntryOfEntry(..) => twice,
        };
        (first, formula.offset)
    });
    first.map(|(first, offset)| key_at(first?, offset)).collect()
}

/// Storage variables are at keys below the bound on addresses, which is less than that on keys.
fn key_at(first: Felt, offset: u8) -> Option<StorageKey> {
    StorageKey::try_from(first.mod_floor(&L2_ADDRESS_UPPER_BOUND) + Felt::from(offset)).ok()
}

fn hash_some(pairs: impl Iterator<Item = Option<[Felt; 2]>>) -> Vec<Option<Felt>> {
    let pairs: Vec<Option<[Felt; 2]>> = pairs.collect();
    let asked: Vec<[Felt; 2]> = pairs.iter().flatten().copied().collect();
    let mut hashes = vec![Felt::ZERO; asked.len()];
    pedersen_many(&asked, &mut hashes);
    let mut hashes = hashes.into_iter();
    pairs.iter().map(|pair| pair.and_then(|_| hashes.next())).collect()
}

#[cfg(test)]
mod tests {
    use starknet_api::abi::abi_utils::{get_storage_var_address, starknet_keccak};

    use super::*;
    use crate::sequencer::convert;

    #[test]
    fn formulas_give_the_keys_of_the_executor() {
        let arguments = [Felt::from(7), Felt::from(1u128 << 90)];
        let call = Call { caller: 5.into(), contract: 6.into(), arguments: &arguments };
        let variable = starknet_keccak(b"some_map");
        let entry =
            |inputs: &[Felt]| convert::storage_key(get_storage_var_address("some_map", inputs)).unwrap();
        let after = |key: StorageKey| StorageKey::try_from(key.to_felt() + Felt::ONE).unwrap();
        let check = |formula: Formula, expected: Option<StorageKey>| {
            // Alone and among others.
            assert_eq!(keys_of(&[(formula, call)]), [expected]);
            let other = Formula::first(Base::EntryOfEntry(variable, Input::Caller, Input::Contract));
            assert_eq!(keys_of(&[(other, call), (formula, call), (other, call)])[1], expected);
        };
        check(Formula::first(Base::Constant(9.into())), Some(9.into()));
        check(Formula { base: Base::Input(Input::Argument(0)), offset: 2 }, Some(9.into()));
        check(Formula::first(Base::Input(Input::Argument(2))), None);
        check(Formula::first(Base::Entry(variable, Input::Argument(2))), None);
        check(Formula::first(Base::Entry(variable, Input::Caller)), Some(entry(&[5.into()])));
        let second = Formula { base: Base::Entry(variable, Input::Argument(1)), offset: 1 };
        check(second, Some(after(entry(&[arguments[1]]))));
        let of_both = Base::EntryOfEntry(variable, Input::Argument(0), Input::Contract);
        check(Formula::first(of_both), Some(entry(&[arguments[0], 6.into()])));
    }

    #[test]
    fn nothing_asked_is_nothing_given() {
        assert_eq!(keys_of(&[]), []);
    }
}
