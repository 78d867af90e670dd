//! Random sequences of state diffs.
//!
//! Keys, addresses and values come from small universes, so that a sequence changes, deletes and re-creates the same
//! leaves often: neighbours at the bottom of the trie, long shared prefixes that fork at every few bits, both ends of
//! the key range, the special contracts 0x1 and 0x2. A tenth of the draws are uniform.

use flagstone_core::diff::{StateDiff, StateDiffBuilder, Subject};
use flagstone_core::felt::Felt;
use flagstone_core::types::{
    ClassHash, CompiledClassHash, ContractAddress, Nonce, StorageKey, StorageValue, TrieKey,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use crate::reference::ReferenceState;

/// A trie key: from a nasty universe, or uniform.
pub fn trie_key() -> impl Strategy<Value = TrieKey> {
    prop_oneof![
        4 => prop::sample::select(nasty_keys()),
        1 => any::<[u8; 32]>().prop_map(|mut bytes| {
            bytes[0] &= 0x07;
            TrieKey::from_be(bytes).unwrap_or_default()
        }),
    ]
}

/// Both ends of the range, neighbours, and a family that shares prefixes of many lengths.
fn nasty_keys() -> Vec<TrieKey> {
    let mut keys: Vec<TrieKey> = [0u64, 1, 2, 3, 7, 8, 0x100, u64::MAX].map(TrieKey::from).to_vec();
    let two = Felt::TWO;
    let stem = (0..125).fold(Felt::ONE, |stem, _| stem * two + Felt::ONE);
    for tail in [0u64, 1, 63, 64, 65, 100, 124] {
        let shifted = (0..tail).fold(Felt::ONE, |bit, _| bit * two);
        keys.extend(TrieKey::try_from(stem * Felt::from(1u128 << 64) + shifted));
    }
    keys.extend(
        [TrieKey::MAX.to_felt(), TrieKey::MAX.to_felt() - Felt::ONE]
            .map(|f| TrieKey::try_from(f).unwrap_or_default()),
    );
    keys
}

fn value() -> impl Strategy<Value = Felt> {
    prop_oneof![
        3 => Just(Felt::ZERO),
        4 => (1u64..4).prop_map(Felt::from),
        1 => Just(Felt::MAX),
        1 => any::<[u8; 32]>().prop_map(|bytes| Felt::from_bytes_be(&bytes)),
    ]
}

fn address() -> impl Strategy<Value = ContractAddress> {
    let few =
        [TrieKey::from(0), TrieKey::from(1), TrieKey::from(2), TrieKey::from(0x1234_5678), TrieKey::MAX];
    prop_oneof![
        6 => prop::sample::select(few.to_vec()),
        1 => trie_key(),
    ]
    .prop_map(ContractAddress::from)
}

/// What one block does to one contract: storage entries, and perhaps class hash and nonce.
type ContractChange = (ContractAddress, Vec<(TrieKey, Felt)>, Option<Felt>, Option<u64>);

fn contract_change() -> impl Strategy<Value = ContractChange> {
    (
        address(),
        vec((trie_key(), value()), 0..8),
        option::weighted(0.3, value()),
        option::weighted(0.3, 0u64..3),
    )
}

/// A state diff. Where draws contradict each other the first one counts.
pub fn state_diff() -> impl Strategy<Value = StateDiff> {
    let classes = vec((prop::sample::select(nasty_keys()), value()), 0..3);
    (vec(contract_change(), 0..5), classes).prop_map(|(contracts, classes)| make_diff(contracts, classes))
}

/// A sequence of diffs, one for each block.
pub fn blocks(count: impl Into<prop::collection::SizeRange>) -> impl Strategy<Value = Vec<StateDiff>> {
    vec(state_diff(), count)
}

fn make_diff(contracts: Vec<ContractChange>, classes: Vec<(TrieKey, Felt)>) -> StateDiff {
    use std::collections::BTreeMap;
    let mut storage = BTreeMap::new();
    let (mut class_hashes, mut nonces, mut compiled) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for (address, entries, class_hash, nonce) in contracts {
        for (key, value) in entries {
            storage.entry((address, StorageKey::from(key))).or_insert(StorageValue(value));
        }
        class_hash.map(|class_hash| class_hashes.entry(address).or_insert(ClassHash(class_hash)));
        nonce.map(|nonce| nonces.entry(address).or_insert(Nonce::from(nonce)));
    }
    for (key, value) in classes {
        compiled.entry(key).or_insert(CompiledClassHash(value));
    }
    let mut builder = StateDiff::builder();
    for ((address, key), value) in storage {
        builder = builder.storage(address, key, value);
    }
    for (address, class_hash) in class_hashes {
        builder = builder.class_hash(address, class_hash);
    }
    for (address, nonce) in nonces {
        builder = builder.nonce(address, nonce);
    }
    for (key, value) in compiled {
        builder = builder.class(ClassHash(key.to_felt()), value);
    }
    built(builder)
}

/// A block to come: what it changes depends on the state that it meets.
#[derive(Debug, Clone)]
pub enum Plan {
    /// A diff of the usual kind.
    Any(StateDiff),
    /// Nothing at all.
    Nothing,
    /// Cairo 0 classes alone, which have no leaf.
    DeprecatedClasses,
    /// Sierra classes alone: declared, or with another compiled class hash.
    Classes(Vec<(TrieKey, Felt)>),
    /// Another compiled class hash for each class that there is.
    MigrateClasses,
    /// Zeros where nothing is: right beside each slot, in each contract, and in one that does not exist.
    ZerosBeside,
    /// Every value once more as it is.
    SameAgain,
    /// Zero for every second value, beginning with the first or the second.
    DeleteHalf(bool),
    /// Zero for every value.
    DeleteAll,
}

/// A sequence of blocks of every shape.
pub fn plans(count: impl Into<prop::collection::SizeRange>) -> impl Strategy<Value = Vec<Plan>> {
    let class = (prop::sample::select(nasty_keys()), value());
    let plan = prop_oneof![
        6 => state_diff().prop_map(Plan::Any),
        1 => Just(Plan::Nothing),
        1 => Just(Plan::DeprecatedClasses),
        1 => vec(class, 1..4).prop_map(Plan::Classes),
        1 => Just(Plan::MigrateClasses),
        2 => Just(Plan::ZerosBeside),
        1 => Just(Plan::SameAgain),
        3 => any::<bool>().prop_map(Plan::DeleteHalf),
        1 => Just(Plan::DeleteAll),
    ];
    vec(plan, count)
}

impl Plan {
    /// The diff on top of a state.
    pub fn on(&self, state: &ReferenceState) -> StateDiff {
        let values = state.values();
        let setting = |values: &mut dyn Iterator<Item = (Subject, Felt)>| {
            built(values.fold(StateDiff::builder(), |builder, (subject, value)| set(builder, subject, value)))
        };
        match self {
            Self::Any(diff) => diff.clone(),
            Self::Nothing => StateDiff::default(),
            Self::DeprecatedClasses => built(StateDiff::builder().deprecated_class(ClassHash(Felt::MAX))),
            Self::Classes(classes) => make_diff(Vec::new(), classes.clone()),
            Self::MigrateClasses => {
                let classes = values.into_iter();
                let mut classes =
                    classes.filter(|(subject, _)| matches!(subject, Subject::CompiledClassHash(_)));
                setting(&mut classes.by_ref().map(|(subject, value)| (subject, value + Felt::ONE)))
            }
            Self::ZerosBeside => {
                let beside = values.iter().filter_map(|(subject, _)| match subject {
                    Subject::Storage(address, key) => Some((*address, beside(*key.trie_key()))),
                    Subject::ClassHash(address) | Subject::Nonce(address) => Some((*address, 0x5555.into())),
                    Subject::CompiledClassHash(_) => None,
                });
                let absent = [(0x9999.into(), 1.into())].into_iter();
                let zeros = beside
                    .chain(absent)
                    .filter(|(address, key)| state.storage_at(address, &StorageKey::from(*key)).is_zero());
                setting(&mut zeros.map(|(address, key)| (Subject::Storage(address, key.into()), Felt::ZERO)))
            }
            Self::SameAgain => setting(&mut values.into_iter()),
            Self::DeleteHalf(second) => {
                let half = values.into_iter().skip(usize::from(*second)).step_by(2);
                setting(&mut half.map(|(subject, _)| (subject, Felt::ZERO)))
            }
            Self::DeleteAll => setting(&mut values.into_iter().map(|(subject, _)| (subject, Felt::ZERO))),
        }
    }
}

/// The key that differs in the last bit.
fn beside(key: TrieKey) -> TrieKey {
    let mut bytes = *key.as_be();
    bytes[31] ^= 1;
    TrieKey::from_be(bytes).unwrap_or_default()
}

fn set(builder: StateDiffBuilder, subject: Subject, value: Felt) -> StateDiffBuilder {
    match subject {
        Subject::Storage(address, key) => builder.storage(address, key, StorageValue(value)),
        Subject::ClassHash(address) => builder.class_hash(address, ClassHash(value)),
        Subject::Nonce(address) => builder.nonce(address, Nonce(value)),
        Subject::CompiledClassHash(class_hash) => builder.class(class_hash, CompiledClassHash(value)),
    }
}

// UNWRAP: one entry for each key, and all class hashes come from trie keys.
#[expect(clippy::expect_used, reason = "the callers give one value a key, so no entries disagree")]
fn built(builder: StateDiffBuilder) -> StateDiff {
    builder.build().expect("no entries disagree")
}
