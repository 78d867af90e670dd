//! What calls of an entry point read, learned from calls that were executed.
//!
//! For each entry point (class hash and selector) a few [`Formula`]s are kept. A call that was executed says which keys it
//! accessed: formulas that name one of them are confirmed, formulas that name none lose, and for keys that none names one is
//! looked for. The variables of maps are constants in the class's code, so the keys of a map's entries can be found by trying. A
//! formula is used once a second call has confirmed it. So what is learned from one block serves the next.
//!
//! Everything is bounded: [`ENTRY_POINTS_MAX`] entry points, the longest unused leaving first, [`RECIPES_MAX`] formulas each
//! (8 MiB in all); the first [`LESSONS_FIRST`] calls of each are looked at, and later one in [`LESSONS_EVERY`]; hashes are tried in
//! [`SEARCHES_MAX`] of these, [`VARIABLES_MAX`] variables at most. At a bound nothing more is learned. Calls that another
//! contract makes with what it computed itself are not foretold from the outer call.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::num::NonZeroUsize;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use blockifier::execution::call_info::CallInfo;
use blockifier::execution::contract_class::RunnableCompiledClass;
use blockifier::execution::entry_point::CallType;
use blockifier::state::cached_state::StateMaps;
use blockifier::transaction::objects::TransactionExecutionInfo;
use flagstone_core::felt::Felt;
use flagstone_core::types::{ClassHash, StorageKey};
use lru::LruCache;
use starknet_api::abi::abi_utils::{selector_from_name, starknet_keccak};

use super::formula::{Base, Call, Formula, Input, keys_of};
use crate::sequencer::classes::ClassStore;
use crate::sequencer::convert;

/// Most entry points that are known.
pub const ENTRY_POINTS_MAX: NonZeroUsize = match NonZeroUsize::new(4096) {
    Some(most) => most,
    None => NonZeroUsize::MIN,
};
/// Most recipes of an entry point.
pub const RECIPES_MAX: usize = 32;
/// Calls of an entry point that are all learned from.
pub const LESSONS_FIRST: u64 = 8;
/// Of those after, one in so many is.
pub const LESSONS_EVERY: u64 = 32;
/// Lessons in which entries of maps are looked for.
pub const SEARCHES_MAX: u8 = 8;
/// Most variables of a class that are tried.
pub const VARIABLES_MAX: usize = 512;
/// Arguments that entries of maps are looked for with.
const ARGUMENTS_MAX: u8 = 6;
/// And of maps of maps.
const ARGUMENTS_OF_TWO_MAX: u8 = 3;
/// How far behind a first cell others are looked for.
const OFFSET_MAX: u8 = 3;
/// The most that a recipe can be ahead: it goes when as many calls in turn did not follow it.
const SCORE_MAX: i8 = 4;

/// A key that calls of an entry point read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recipe {
    /// Which.
    pub formula: Formula,
    /// Whether it was also written.
    pub written: bool,
    /// How often it was confirmed, less how often it was not.
    score: i8,
}

/// What is known of an entry point.
#[derive(Debug, Default)]
struct Known {
    recipes: Vec<Recipe>,
    calls: u64,
    searches: u8,
}

/// What is known of all entry points.
pub struct Recipes {
    entry_points: Mutex<LruCache<(ClassHash, Felt), Known>>,
}

impl Default for Recipes {
    fn default() -> Self {
        Self { entry_points: Mutex::new(LruCache::new(ENTRY_POINTS_MAX)) }
    }
}

impl Recipes {
    fn entry_points(&self) -> MutexGuard<'_, LruCache<(ClassHash, Felt), Known>> {
        self.entry_points.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What calls of this entry point read. Until two were seen, what tokens usually do.
    pub fn of(&self, class_hash: Option<ClassHash>, selector: Felt) -> Vec<Recipe> {
        let mut entry_points = self.entry_points();
        match class_hash.and_then(|class_hash| entry_points.get(&(class_hash, selector))) {
            Some(known) if known.calls > 1 => {
                known.recipes.iter().filter(|recipe| recipe.score > 0).copied().collect()
            }
            _ => usual(selector).to_vec(),
        }
    }

    /// Learns from a transaction, which wrote `writes`.
    pub fn learn(&self, info: &TransactionExecutionInfo, writes: &StateMaps, classes: &dyn ClassStore) {
        let calls = info.non_optional_call_infos().flat_map(CallInfo::iter);
        // Called with another contract's storage; it is part of the call of that contract.
        for call in calls.filter(|call| call.call.call_type != CallType::Delegate) {
            self.learn_from(call, writes, classes);
        }
    }

    fn learn_from(&self, info: &CallInfo, writes: &StateMaps, classes: &dyn ClassStore) {
        let Some(class_hash) = info.call.class_hash.map(|class_hash| ClassHash(class_hash.0)) else { return };
        let (Ok(contract), Ok(caller)) =
            (convert::address(info.call.storage_address), convert::address(info.call.caller_address))
        else {
            return;
        };
        let mut entry_points = self.entry_points();
        let known =
            entry_points.get_or_insert_mut((class_hash, info.call.entry_point_selector.0), Known::default);
        known.calls += 1;
        if known.calls > LESSONS_FIRST && !known.calls.is_multiple_of(LESSONS_EVERY) {
            return;
        }
        let call = Call { caller, contract, arguments: &info.call.calldata.0 };
        let mut accessed = Accessed::default();
        accessed.add(info);
        let written = writes.storage.keys().filter(|(address, _)| *address == info.call.storage_address);
        let written = written.filter_map(|(_, key)| convert::storage_key(*key).ok()).collect();
        known.learn(&call, accessed.keys, &written, || variables(&accessed.classes, classes));
    }
}

/// What a call accessed in the storage it was made on, with the classes whose code did so.
#[derive(Default)]
struct Accessed {
    keys: BTreeSet<StorageKey>,
    classes: HashSet<ClassHash>,
}

impl Accessed {
    fn add(&mut self, info: &CallInfo) {
        let keys = info.storage_access_tracker.accessed_storage_keys.iter();
        self.keys.extend(keys.filter_map(|key| convert::storage_key(*key).ok()));
        self.classes.extend(info.call.class_hash.map(|class_hash| ClassHash(class_hash.0)));
        let delegates = info.inner_calls.iter().filter(|inner| inner.call.call_type == CallType::Delegate);
        delegates.for_each(|inner| self.add(inner));
    }
}

impl Known {
    fn learn(
        &mut self,
        call: &Call<'_>,
        mut accessed: BTreeSet<StorageKey>,
        written: &BTreeSet<StorageKey>,
        variables: impl FnOnce() -> Vec<Felt>,
    ) {
        let asked: Vec<(Formula, Call<'_>)> =
            self.recipes.iter().map(|recipe| (recipe.formula, *call)).collect();
        let named = keys_of(&asked);
        for (recipe, key) in self.recipes.iter_mut().zip(&named) {
            let confirmed = key.filter(|key| accessed.contains(key));
            recipe.written |= confirmed.is_some_and(|key| written.contains(&key));
            recipe.score =
                if confirmed.is_some() { SCORE_MAX.min(recipe.score + 1) } else { recipe.score - 1 };
        }
        self.recipes.retain(|recipe| recipe.score >= 0);
        for key in named.iter().flatten() {
            accessed.remove(key);
        }
        accessed.retain(|_| self.recipes.len() < RECIPES_MAX);
        if accessed.is_empty() {
            return;
        }
        let variables = if self.searches < SEARCHES_MAX { variables() } else { Vec::new() };
        self.searches = self.searches.saturating_add(1);
        for (key, formula) in explain(accessed, call, &variables) {
            if self.recipes.len() < RECIPES_MAX {
                self.recipes.push(Recipe { formula, written: written.contains(&key), score: 0 });
            }
        }
    }
}

/// A formula for each key; that of a key of which nothing can be said is the key.
fn explain(
    mut keys: BTreeSet<StorageKey>,
    call: &Call<'_>,
    variables: &[Felt],
) -> Vec<(StorageKey, Formula)> {
    let inputs =
        |most: u8| [Input::Caller, Input::Contract].into_iter().chain((0..most).map(Input::Argument));
    let plain: Vec<Base> = inputs(u8::MAX).map(Base::Input).collect();
    let entries = || {
        let of = |variable: Felt| inputs(ARGUMENTS_MAX).map(move |input| Base::Entry(variable, input));
        variables.iter().flat_map(|variable| of(*variable)).collect()
    };
    let entries_of_entries = || {
        let pairs = || {
            let second = |first| inputs(ARGUMENTS_OF_TWO_MAX).map(move |second| (first, second));
            inputs(ARGUMENTS_OF_TWO_MAX).flat_map(second)
        };
        let of =
            |variable: Felt| pairs().map(move |(first, second)| Base::EntryOfEntry(variable, first, second));
        variables.iter().flat_map(|variable| of(*variable)).collect()
    };
    let mut explained = Vec::new();
    take_explained(&mut keys, call, &plain, &mut explained);
    let dear: [&dyn Fn() -> Vec<Base>; 2] = [&entries, &entries_of_entries];
    for bases in dear {
        if !keys.is_empty() {
            take_explained(&mut keys, call, &bases(), &mut explained);
        }
    }
    explained.extend(keys.into_iter().map(|key| (key, Formula::first(Base::Constant(key.to_felt())))));
    explained
}

/// Takes the keys out that are near one of these bases.
fn take_explained(
    keys: &mut BTreeSet<StorageKey>,
    call: &Call<'_>,
    bases: &[Base],
    explained: &mut Vec<(StorageKey, Formula)>,
) {
    let asked: Vec<(Formula, Call<'_>)> = bases.iter().map(|base| (Formula::first(*base), *call)).collect();
    let mut first = HashMap::new();
    for (key, base) in keys_of(&asked).into_iter().zip(bases).filter_map(|(key, base)| Some((key?, *base))) {
        first.entry(key).or_insert(base);
    }
    keys.retain(|key| {
        let formula = (0..=OFFSET_MAX).find_map(|offset| {
            let before = StorageKey::try_from(key.to_felt() - Felt::from(offset)).ok()?;
            Some(Formula { base: *first.get(&before)?, offset })
        });
        explained.extend(formula.map(|formula| (*key, formula)));
        formula.is_none()
    });
}

/// What may be the variables of maps: large constants in the code. Of a class that cannot be had, none.
fn variables(class_hashes: &HashSet<ClassHash>, classes: &dyn ClassStore) -> Vec<Felt> {
    let mut seen = BTreeSet::new();
    for class_hash in class_hashes {
        let Ok(Some(class)) = classes.get(*class_hash) else { continue };
        let program = match &class.runnable {
            RunnableCompiledClass::V0(class) => &class.program,
            RunnableCompiledClass::V1(class) => &class.program,
        };
        let constants = program.iter_data().filter_map(|word| word.get_int().map(|felt| felt.to_bytes_be()));
        // Names are hashed to 250 bits: one in 2^34 is smaller, and nothing else in code is as large but negative numbers.
        seen.extend(constants.filter(|bytes| bytes[0] < 0x04 && bytes[..5] != [0; 5]));
    }
    seen.into_iter().take(VARIABLES_MAX).map(|bytes| Felt::from_bytes_be(&bytes)).collect()
}

/// What calls to tokens usually read: the two cells of each balance, and the allowance's.
fn usual(selector: Felt) -> &'static [Recipe] {
    static SELECTORS: LazyLock<[Felt; 3]> = LazyLock::new(|| {
        ["transfer", "transferFrom", "transfer_from"].map(|name| selector_from_name(name).0)
    });
    static USUAL: LazyLock<[Vec<Recipe>; 2]> = LazyLock::new(|| {
        let (balances, allowances) =
            (starknet_keccak(b"ERC20_balances"), starknet_keccak(b"ERC20_allowances"));
        let both = |base| {
            [0, 1].map(|offset| Recipe { formula: Formula { base, offset }, written: offset == 0, score: 1 })
        };
        let [from, to] = [Input::Argument(0), Input::Argument(1)];
        let transfer = [Base::Entry(balances, Input::Caller), Base::Entry(balances, from)];
        let transfer_from = [
            Base::Entry(balances, from),
            Base::Entry(balances, to),
            Base::EntryOfEntry(allowances, from, Input::Caller),
        ];
        [transfer.into_iter().flat_map(both).collect(), transfer_from.into_iter().flat_map(both).collect()]
    });
    match SELECTORS.iter().position(|known| *known == selector) {
        Some(place) => &USUAL[place.min(1)],
        None => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VARIABLE: u128 = 1 << 100;

    fn entry(input: Input) -> Formula {
        Formula::first(Base::Entry(VARIABLE.into(), input))
    }

    /// A call that accesses what these formulas name, and writes the first of them.
    fn called(known: &mut Known, call: Call<'_>, formulas: &[Formula]) {
        let asked: Vec<(Formula, Call<'_>)> = formulas.iter().map(|formula| (*formula, call)).collect();
        let keys: Vec<StorageKey> = keys_of(&asked).into_iter().flatten().collect();
        let written = keys.first().copied().into_iter().collect();
        known.learn(&call, keys.into_iter().collect(), &written, || vec![Felt::from(77), VARIABLE.into()]);
    }

    fn used(known: &Known) -> Vec<Formula> {
        known.recipes.iter().filter(|recipe| recipe.score > 0).map(|recipe| recipe.formula).collect()
    }

    fn call(number: u64, arguments: &[Felt]) -> Call<'_> {
        Call { caller: (1_000_000 * number).into(), contract: 5.into(), arguments }
    }

    #[test]
    fn a_second_call_confirms_what_the_first_one_suggests() {
        let formulas = [
            entry(Input::Caller),
            Formula { offset: 1, ..entry(Input::Caller) },
            entry(Input::Argument(1)),
            Formula::first(Base::EntryOfEntry(VARIABLE.into(), Input::Argument(1), Input::Caller)),
            Formula { base: Base::Input(Input::Argument(0)), offset: 2 },
            Formula::first(Base::Constant(99.into())),
        ];
        let mut known = Known::default();
        for number in 1..4 {
            let arguments = [Felt::from(10_000 * number), Felt::from(500 + number)];
            called(&mut known, call(number, &arguments), &formulas);
            let used = used(&known);
            if number == 1 {
                assert_eq!(used, []);
                continue;
            }
            assert_eq!(used.len(), formulas.len());
            assert!(formulas.iter().all(|formula| used.contains(formula)), "{used:?}");
            let written: Vec<Formula> =
                known.recipes.iter().filter(|recipe| recipe.written).map(|recipe| recipe.formula).collect();
            assert_eq!(written, formulas[..1]);
        }
    }

    #[test]
    fn a_key_that_calls_compute_is_never_used() {
        let mut known = Known::default();
        for number in 1..100 {
            let computed = Formula::first(Base::Constant((7_000 + 13 * number * number).into()));
            called(&mut known, call(number, &[]), &[computed, entry(Input::Caller)]);
            assert!(!used(&known).contains(&computed), "in call {number}");
        }
        assert_eq!(used(&known), [entry(Input::Caller)]);
    }

    #[test]
    fn what_calls_no_longer_read_is_forgotten() {
        let mut known = Known::default();
        for number in 1..10 {
            called(&mut known, call(number, &[]), &[entry(Input::Caller)]);
        }
        for number in 10..20 {
            called(&mut known, call(number, &[]), &[]);
        }
        assert_eq!(known.recipes, []);
    }

    #[test]
    fn recipes_and_searches_keep_to_their_bounds() {
        let mut known = Known::default();
        for number in 1..50 {
            let many: Vec<Formula> =
                (0..200).map(|n| Formula::first(Base::Constant((1_000 * number + 5 * n).into()))).collect();
            called(&mut known, call(number, &[]), &many);
            assert!(known.recipes.len() <= RECIPES_MAX);
        }
        let mut searches = 0;
        for number in 1..50u64 {
            known.learn(&call(number, &[]), [StorageKey::from(number * 7)].into(), &BTreeSet::new(), || {
                searches += 1;
                Vec::new()
            });
        }
        assert_eq!(searches, 0, "the first calls used them up");
    }

    #[test]
    fn entry_points_nobody_called_read_what_tokens_usually_read() {
        let recipes = Recipes::default();
        let selector = |name: &str| selector_from_name(name).0;
        let balance = |input| Formula::first(Base::Entry(starknet_keccak(b"ERC20_balances"), input));
        let transfer = recipes.of(None, selector("transfer"));
        assert_eq!(transfer.len(), 4);
        assert_eq!(transfer[0].formula, balance(Input::Caller));
        assert_eq!(transfer[2].formula, balance(Input::Argument(0)));
        let unknown = Some(ClassHash::from(3));
        assert_eq!(
            recipes.of(unknown, selector("transferFrom")),
            recipes.of(None, selector("transfer_from"))
        );
        assert_eq!(recipes.of(unknown, selector("anything_else")), []);
    }
}
