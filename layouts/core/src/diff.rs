//! The state diff of a block, in one normal form.
//!
//! A [`StateDiff`] is sorted by address and key, has no duplicates, and all its keys are in range; only
//! [`StateDiffBuilder::build`] makes one, so nobody downstream asks again. A zero value deletes: zero and absent are
//! the same thing everywhere.

use std::cmp::Ordering;
use std::fmt;

use crate::codec::{DecodeError, Reader};
use crate::felt::Felt;
use crate::types::{
    ClassHash, CompiledClassHash, ContractAddress, KeyRangeError, Nonce, StorageKey, StorageValue, TrieKey,
};

/// What a block changes, in normal form: contracts ascending by address, their storage entries ascending by key,
/// classes ascending by class hash, nothing twice.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StateDiff {
    contracts: Vec<ContractDiff>,
    classes: Vec<ClassDiff>,
    deprecated_classes: Vec<ClassHash>,
}

/// What a block changes in one contract.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContractDiff {
    /// The contract.
    pub address: ContractAddress,
    /// The class it has after the block, if the block deployed it or replaced its class.
    pub class_hash: Option<ClassHash>,
    /// Its nonce after the block, if that changed.
    pub nonce: Option<Nonce>,
    /// Storage entries after the block, ascending by key. Zero deletes.
    pub storage: Vec<(StorageKey, StorageValue)>,
}

/// A Sierra class and the compiled class hash that its leaf commits to after the block (declared or migrated).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClassDiff {
    /// The class; its hash is below 2^251.
    pub class_hash: ClassHash,
    /// Its compiled class hash. Zero deletes the leaf.
    pub compiled_class_hash: CompiledClassHash,
}

impl ClassDiff {
    /// The key of the class's leaf in the classes trie.
    pub fn trie_key(&self) -> TrieKey {
        class_trie_key(self.class_hash)
    }
}

/// The key of a declared class's leaf. The builder has checked its range.
fn class_trie_key(class_hash: ClassHash) -> TrieKey {
    debug_assert!(TrieKey::try_from(class_hash.0).is_ok());
    TrieKey::try_from(class_hash.0).unwrap_or_default()
}

impl StateDiff {
    /// Starts a diff.
    pub fn builder() -> StateDiffBuilder {
        StateDiffBuilder::default()
    }

    /// Changed contracts, ascending by address.
    pub fn contracts(&self) -> &[ContractDiff] {
        &self.contracts
    }

    /// Declared and migrated Sierra classes, ascending by class hash.
    pub fn classes(&self) -> &[ClassDiff] {
        &self.classes
    }

    /// Declared Cairo 0 classes, ascending. They have no leaf in the classes trie and change no root.
    pub fn deprecated_classes(&self) -> &[ClassHash] {
        &self.deprecated_classes
    }

    /// Whether the diff changes nothing.
    pub fn is_empty(&self) -> bool {
        self.contracts.is_empty() && self.classes.is_empty() && self.deprecated_classes.is_empty()
    }

    /// How many values the diff writes: storage entries, class hashes, nonces and compiled class hashes.
    pub fn writes(&self) -> usize {
        let of_contract = |contract: &ContractDiff| {
            contract.storage.len()
                + usize::from(contract.class_hash.is_some())
                + usize::from(contract.nonce.is_some())
        };
        self.contracts.iter().map(of_contract).sum::<usize>() + self.classes.len()
    }

    /// A diff of the same things as another, already in normal form.
    pub(crate) const fn of_parts(contracts: Vec<ContractDiff>, classes: Vec<ClassDiff>) -> Self {
        Self { contracts, classes, deprecated_classes: Vec::new() }
    }

    /// A diff from parts that are in normal form, which is checked.
    ///
    /// # Errors
    /// [`DecodeError`] if something is out of order, there twice, or a class hash is no key of the classes trie.
    pub fn from_normal_form(
        contracts: Vec<ContractDiff>,
        classes: Vec<ClassDiff>,
    ) -> Result<Self, DecodeError> {
        for contract in &contracts {
            ascending("storage entries", contract.storage.iter().map(|(key, _)| *key.as_be()))?;
        }
        if classes.iter().any(|class| TrieKey::try_from(class.class_hash.0).is_err()) {
            return Err(DecodeError::new("class hash", "is 2^251 or more"));
        }
        let diff = Self::of_parts(contracts, classes);
        diff.check_order()?;
        Ok(diff)
    }

    fn check_order(&self) -> Result<(), DecodeError> {
        ascending("contracts", self.contracts.iter().map(|contract| *contract.address.as_be()))?;
        ascending("classes", self.classes.iter().map(|class| class.class_hash.to_be()))?;
        ascending("Cairo 0 classes", self.deprecated_classes.iter().map(|class_hash| class_hash.to_be()))
    }

    /// Both diffs as one: where both set the same thing, `later` has the last word.
    #[must_use]
    pub fn then(&self, later: &Self) -> Self {
        let contract = |first: &ContractDiff, later: &ContractDiff| ContractDiff {
            address: later.address,
            class_hash: later.class_hash.or(first.class_hash),
            nonce: later.nonce.or(first.nonce),
            storage: merged(&first.storage, &later.storage, |(key, _)| *key, |_, later| *later),
        };
        let class_key = |class: &ClassDiff| class.trie_key();
        let hash_key = |class_hash: &ClassHash| class_hash.to_be();
        let (first, last) = (&self.deprecated_classes, &later.deprecated_classes);
        Self {
            contracts: merged(&self.contracts, &later.contracts, |contract| contract.address, contract),
            classes: merged(&self.classes, &later.classes, class_key, |_, later| *later),
            deprecated_classes: merged(first, last, hash_key, |_, later| *later),
        }
    }

    /// Diffs one after another as one: of what several set, the last has the last word. Takes time in proportion to the values
    /// and to the logarithm of the number of diffs.
    #[must_use]
    pub fn in_order(diffs: &[&Self]) -> Self {
        match diffs {
            [] => Self::default(),
            [one] => (*one).clone(),
            [first, later] => first.then(later),
            _ => {
                let (first, later) = diffs.split_at(diffs.len() / 2);
                Self::in_order(first).then(&Self::in_order(later))
            }
        }
    }

    /// What the diff says of one contract.
    pub fn contract(&self, address: &ContractAddress) -> Option<&ContractDiff> {
        self.contracts.binary_search_by(|probe| probe.address.cmp(address)).ok().map(|at| &self.contracts[at])
    }

    /// The value it sets, if it sets that; zero deletes. Two binary searches.
    pub fn value(&self, subject: &Subject) -> Option<Felt> {
        match subject {
            Subject::Storage(address, key) => {
                let storage = &self.contract(address)?.storage;
                let at = storage.binary_search_by(|(probe, _)| probe.cmp(key)).ok()?;
                Some(storage[at].1.0)
            }
            Subject::Nonce(address) => Some(self.contract(address)?.nonce?.0),
            Subject::ClassHash(address) => Some(self.contract(address)?.class_hash?.0),
            Subject::CompiledClassHash(class) => {
                let of = |probe: &ClassDiff| probe.class_hash.to_be();
                let at = self.classes.binary_search_by_key(&class.to_be(), of).ok()?;
                Some(self.classes[at].compiled_class_hash.0)
            }
        }
    }
}

/// Two entries of one diff that contradict each other, or an entry out of range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DiffError {
    /// The same thing is set to two values.
    #[error("{subject} is set twice, to {first} and to {second}")]
    Conflict {
        /// What is set twice.
        subject: Subject,
        /// The value given first.
        first: String,
        /// The value given later.
        second: String,
    },
    /// A declared class's hash is no key of the classes trie.
    #[error("class hash {class_hash}: {reason}")]
    ClassHashRange {
        /// The class hash.
        class_hash: ClassHash,
        /// What is wrong with it.
        reason: KeyRangeError,
    },
}

/// A thing that a diff sets.
///
/// It is matched without a catch-all: whoever reads or writes values must have a place for each kind. So it is not `#[non_exhaustive]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Subject {
    /// A storage slot.
    Storage(ContractAddress, StorageKey),
    /// A contract's class hash.
    ClassHash(ContractAddress),
    /// A contract's nonce.
    Nonce(ContractAddress),
    /// A class's compiled class hash.
    CompiledClassHash(ClassHash),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Storage(address, key) => write!(f, "storage {key} of contract {address}"),
            Self::ClassHash(address) => write!(f, "class hash of contract {address}"),
            Self::Nonce(address) => write!(f, "nonce of contract {address}"),
            Self::CompiledClassHash(class_hash) => write!(f, "compiled class hash of class {class_hash}"),
        }
    }
}

/// Collects entries in any order and makes the normal form. Entries that repeat are fine if they agree.
///
/// ```
/// use flagstone_core::diff::StateDiff;
/// let diff = StateDiff::builder()
///     .storage(2.into(), 7.into(), 9.into())
///     .storage(1.into(), 7.into(), 8.into())
///     .nonce(1.into(), 1.into())
///     .build()
///     .unwrap();
/// assert_eq!(diff.contracts()[0].address, 1.into());
/// assert_eq!(diff.writes(), 3);
/// ```
#[derive(Debug, Clone, Default)]
pub struct StateDiffBuilder {
    storage: Vec<((ContractAddress, StorageKey), StorageValue)>,
    class_hashes: Vec<(ContractAddress, ClassHash)>,
    nonces: Vec<(ContractAddress, Nonce)>,
    classes: Vec<(ClassHash, CompiledClassHash)>,
    deprecated_classes: Vec<ClassHash>,
}

impl StateDiffBuilder {
    /// Sets a storage slot; zero deletes it.
    #[must_use]
    pub fn storage(mut self, address: ContractAddress, key: StorageKey, value: StorageValue) -> Self {
        self.storage.push(((address, key), value));
        self
    }

    /// Sets a contract's class: a deployment or a replacement.
    #[must_use]
    pub fn class_hash(mut self, address: ContractAddress, class_hash: ClassHash) -> Self {
        self.class_hashes.push((address, class_hash));
        self
    }

    /// Sets a contract's nonce.
    #[must_use]
    pub fn nonce(mut self, address: ContractAddress, nonce: Nonce) -> Self {
        self.nonces.push((address, nonce));
        self
    }

    /// Sets a Sierra class's compiled class hash: a declaration or a migration.
    #[must_use]
    pub fn class(mut self, class_hash: ClassHash, compiled_class_hash: CompiledClassHash) -> Self {
        self.classes.push((class_hash, compiled_class_hash));
        self
    }

    /// Notes the declaration of a Cairo 0 class.
    #[must_use]
    pub fn deprecated_class(mut self, class_hash: ClassHash) -> Self {
        self.deprecated_classes.push(class_hash);
        self
    }

    /// Sorts, checks and removes duplicates.
    ///
    /// # Errors
    /// [`DiffError`] if two entries set the same thing to different values, or a declared class's hash is 2^251 or
    /// more.
    pub fn build(self) -> Result<StateDiff, DiffError> {
        let storage = settle(self.storage, |(address, key)| Subject::Storage(*address, *key))?;
        let class_hashes = settle(self.class_hashes, |address| Subject::ClassHash(*address))?;
        let nonces = settle(self.nonces, |address| Subject::Nonce(*address))?;

        let mut contracts = Vec::new();
        for ((address, key), value) in storage {
            contract_entry(&mut contracts, address).storage.push((key, value));
        }
        let with_storage = contracts.len();
        for (address, class_hash) in class_hashes {
            find_or_push(&mut contracts, with_storage, address).class_hash = Some(class_hash);
        }
        contracts.sort_by_key(|contract| contract.address);
        let known = contracts.len();
        for (address, nonce) in nonces {
            find_or_push(&mut contracts, known, address).nonce = Some(nonce);
        }
        contracts.sort_by_key(|contract| contract.address);

        let keyed =
            |(class_hash, compiled): (ClassHash, CompiledClassHash)| match TrieKey::try_from(class_hash.0) {
                Ok(key) => Ok((key, compiled)),
                Err(reason) => Err(DiffError::ClassHashRange { class_hash, reason }),
            };
        let classes = self.classes.into_iter().map(keyed).collect::<Result<Vec<_>, _>>()?;
        let classes = settle(classes, |key| Subject::CompiledClassHash(ClassHash(key.to_felt())))?
            .into_iter()
            .map(|(key, compiled_class_hash)| ClassDiff {
                class_hash: ClassHash(key.to_felt()),
                compiled_class_hash,
            })
            .collect();

        let mut deprecated_classes = self.deprecated_classes;
        deprecated_classes.sort_by_cached_key(|class_hash| class_hash.to_be());
        deprecated_classes.dedup();
        Ok(StateDiff { contracts, classes, deprecated_classes })
    }
}

/// Sorts by key and keeps one of each; refuses two values for one key.
fn settle<K: Ord + Copy, V: PartialEq + fmt::Display>(
    mut entries: Vec<(K, V)>,
    subject: impl Fn(&K) -> Subject,
) -> Result<Vec<(K, V)>, DiffError> {
    entries.sort_by_key(|(key, _)| *key);
    if let Some([(key, first), (_, second)]) =
        entries.array_windows().find(|[(a, first), (b, second)]| a == b && first != second)
    {
        let (first, second) = (first.to_string(), second.to_string());
        return Err(DiffError::Conflict { subject: subject(key), first, second });
    }
    entries.dedup_by(|(a, _), (b, _)| a == b);
    Ok(entries)
}

/// Two ascending lists as one; `both` settles what is in both.
fn merged<T: Clone, K: Ord>(
    first: &[T],
    later: &[T],
    key: impl Fn(&T) -> K,
    both: impl Fn(&T, &T) -> T,
) -> Vec<T> {
    let mut merged = Vec::with_capacity(first.len().max(later.len()));
    let (mut first, mut later) = (first.iter().peekable(), later.iter().peekable());
    while let (Some(a), Some(b)) = (first.peek(), later.peek()) {
        match key(a).cmp(&key(b)) {
            Ordering::Less => merged.extend(first.next().cloned()),
            Ordering::Greater => merged.extend(later.next().cloned()),
            Ordering::Equal => {
                merged.push(both(a, b));
                first.next();
                later.next();
            }
        }
    }
    merged.extend(first.cloned());
    merged.extend(later.cloned());
    merged
}

fn empty_contract(address: ContractAddress) -> ContractDiff {
    ContractDiff { address, class_hash: None, nonce: None, storage: Vec::new() }
}

/// The last contract if it is `address`, else a new one behind it.
fn contract_entry(contracts: &mut Vec<ContractDiff>, address: ContractAddress) -> &mut ContractDiff {
    if contracts.last().is_none_or(|last| last.address != address) {
        contracts.push(empty_contract(address));
    }
    let last = contracts.len() - 1;
    &mut contracts[last]
}

/// The contract among the first `sorted` ones, which ascend, else a new one at the end.
fn find_or_push(
    contracts: &mut Vec<ContractDiff>,
    sorted: usize,
    address: ContractAddress,
) -> &mut ContractDiff {
    match contracts[..sorted].binary_search_by(|probe| probe.address.cmp(&address)) {
        Ok(at) => &mut contracts[at],
        Err(_) => contract_entry(contracts, address),
    }
}

const HAS_CLASS_HASH: u8 = 1;
const HAS_NONCE: u8 = 2;

impl StateDiff {
    /// Appends the diff's byte form, which [`StateDiff::decode`] reads back:
    ///
    /// ```text
    /// count u32 | contracts  address[32] flags[1] class_hash[32]? nonce[32]? count u32 | key[32] value[32] ...
    /// count u32 | classes    class_hash[32] compiled_class_hash[32]
    /// count u32 | Cairo 0    class_hash[32]
    /// ```
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_count(out, self.contracts.len());
        for contract in &self.contracts {
            out.extend_from_slice(contract.address.as_be());
            let class_flag = if contract.class_hash.is_some() { HAS_CLASS_HASH } else { 0 };
            out.push(class_flag | if contract.nonce.is_some() { HAS_NONCE } else { 0 });
            contract.class_hash.iter().for_each(|class_hash| out.extend_from_slice(&class_hash.to_be()));
            contract.nonce.iter().for_each(|nonce| out.extend_from_slice(&nonce.to_be()));
            put_count(out, contract.storage.len());
            for (key, value) in &contract.storage {
                out.extend_from_slice(key.as_be());
                out.extend_from_slice(&value.to_be());
            }
        }
        put_count(out, self.classes.len());
        for class in &self.classes {
            out.extend_from_slice(&class.class_hash.to_be());
            out.extend_from_slice(&class.compiled_class_hash.to_be());
        }
        put_count(out, self.deprecated_classes.len());
        self.deprecated_classes.iter().for_each(|class_hash| out.extend_from_slice(&class_hash.to_be()));
    }

    /// How many bytes [`StateDiff::encode`] appends.
    pub fn encoded_len(&self) -> usize {
        let felts = |contract: &ContractDiff| {
            1 + usize::from(contract.class_hash.is_some())
                + usize::from(contract.nonce.is_some())
                + 2 * contract.storage.len()
        };
        let contracts: usize = self.contracts.iter().map(|contract| 32 * felts(contract) + 5).sum();
        12 + contracts + 64 * self.classes.len() + 32 * self.deprecated_classes.len()
    }

    /// Reads what [`StateDiff::encode`] wrote, and checks that it is in normal form.
    ///
    /// # Errors
    /// [`DecodeError`] if bytes are missing, out of range, or out of order.
    pub fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut contracts = Vec::new();
        for _ in 0..from.count("contracts", 37)? {
            contracts.push(decode_contract(from)?);
        }
        let mut classes = Vec::new();
        for _ in 0..from.count("classes", 64)? {
            let class_hash = ClassHash(from.key("class hash")?.to_felt());
            let compiled_class_hash = CompiledClassHash(from.felt("compiled class hash")?);
            classes.push(ClassDiff { class_hash, compiled_class_hash });
        }
        let mut deprecated_classes = Vec::new();
        for _ in 0..from.count("Cairo 0 classes", 32)? {
            deprecated_classes.push(ClassHash(from.felt("Cairo 0 class hash")?));
        }
        let diff = Self { contracts, classes, deprecated_classes };
        diff.check_order()?;
        Ok(diff)
    }
}

fn decode_contract(from: &mut Reader<'_>) -> Result<ContractDiff, DecodeError> {
    let mut contract = empty_contract(from.key("contract address")?.into());
    let flags = from.u8("contract flags")?;
    if flags & !(HAS_CLASS_HASH | HAS_NONCE) != 0 {
        return Err(DecodeError::new("contract flags", format!("{flags:#x} is not known")));
    }
    if flags & HAS_CLASS_HASH != 0 {
        contract.class_hash = Some(ClassHash(from.felt("class hash")?));
    }
    if flags & HAS_NONCE != 0 {
        contract.nonce = Some(Nonce(from.felt("nonce")?));
    }
    for _ in 0..from.count("storage entries", 64)? {
        contract.storage.push((from.key("storage key")?.into(), StorageValue(from.felt("storage value")?)));
    }
    ascending("storage entries", contract.storage.iter().map(|(key, _)| *key.as_be()))?;
    Ok(contract)
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    // A diff of 2^32 entries would be 256 GiB long.
    out.extend_from_slice(&(count as u32).to_be_bytes());
}

fn ascending(field: &'static str, keys: impl Iterator<Item = [u8; 32]>) -> Result<(), DecodeError> {
    if keys.is_sorted_by(|a, b| a < b) {
        Ok(())
    } else {
        Err(DecodeError::new(field, "not in ascending order"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::felt::Felt;

    fn sample() -> StateDiff {
        StateDiff::builder()
            .storage(9.into(), 1.into(), 5.into())
            .storage(3.into(), 2.into(), 0.into())
            .storage(3.into(), 1.into(), 4.into())
            .nonce(1.into(), 7.into())
            .nonce(3.into(), 8.into())
            .class_hash(3.into(), 0xcafe.into())
            .class_hash(2.into(), 0xbeef.into())
            .class(6.into(), 66.into())
            .class(5.into(), 55.into())
            .deprecated_class(4.into())
            .deprecated_class(4.into())
            .build()
            .unwrap()
    }

    #[test]
    fn normal_form_is_sorted_and_merged_by_contract() {
        let diff = sample();
        let addresses: Vec<_> = diff.contracts().iter().map(|c| c.address).collect();
        assert_eq!(addresses, [1, 2, 3, 9].map(ContractAddress::from));
        let third = diff.contract(&3.into()).unwrap();
        assert_eq!(third.nonce, Some(8.into()));
        assert_eq!(third.class_hash, Some(0xcafe.into()));
        assert_eq!(third.storage, [(1.into(), 4.into()), (2.into(), 0.into())]);
        assert_eq!(diff.classes().iter().map(|c| c.class_hash).collect::<Vec<_>>(), [5.into(), 6.into()]);
        assert_eq!(diff.deprecated_classes(), [4.into()]);
        assert_eq!(diff.writes(), 9);
    }

    #[test]
    fn a_value_is_found_by_its_subject_and_by_no_other() {
        let diff = sample();
        for (subject, value) in [
            (Subject::Storage(3.into(), 1.into()), Some(4)),
            (Subject::Storage(3.into(), 2.into()), Some(0)),
            (Subject::Storage(3.into(), 7.into()), None),
            (Subject::Storage(7.into(), 1.into()), None),
            (Subject::Nonce(3.into()), Some(8)),
            (Subject::Nonce(2.into()), None),
            (Subject::ClassHash(2.into()), Some(0xbeef)),
            (Subject::ClassHash(7.into()), None),
            (Subject::CompiledClassHash(5.into()), Some(55)),
            (Subject::CompiledClassHash(6.into()), Some(66)),
            (Subject::CompiledClassHash(4.into()), None),
        ] {
            assert_eq!(diff.value(&subject), value.map(|value: u64| Felt::from(value)), "{subject}");
        }
    }

    #[test]
    fn duplicates_that_agree_are_one() {
        let diff = StateDiff::builder()
            .storage(1.into(), 1.into(), 2.into())
            .storage(1.into(), 1.into(), 2.into())
            .build()
            .unwrap();
        assert_eq!(diff.writes(), 1);
    }

    #[test]
    fn duplicates_that_disagree_are_refused_with_both_values() {
        let error = StateDiff::builder()
            .storage(1.into(), 1.into(), 2.into())
            .storage(0x10.into(), 1.into(), 2.into())
            .storage(1.into(), 1.into(), 3.into())
            .build()
            .unwrap_err();
        assert_eq!(error.to_string(), "storage 0x1 of contract 0x1 is set twice, to 0x2 and to 0x3");
        let error =
            StateDiff::builder().class(1.into(), 2.into()).class(1.into(), 3.into()).build().unwrap_err();
        assert_eq!(error.to_string(), "compiled class hash of class 0x1 is set twice, to 0x2 and to 0x3");
    }

    #[test]
    fn a_declared_class_needs_a_trie_key() {
        let class_hash = ClassHash(Felt::MAX);
        let error = StateDiff::builder().class(class_hash, 2.into()).build().unwrap_err();
        assert!(matches!(error, DiffError::ClassHashRange { .. }));
    }

    #[test]
    fn decoding_gives_the_diff_back_and_every_truncation_is_an_error() {
        let diff = sample();
        let mut bytes = Vec::new();
        diff.encode(&mut bytes);
        assert_eq!(bytes.len(), diff.encoded_len());
        let mut reader = Reader::new(&bytes);
        assert_eq!(StateDiff::decode(&mut reader).unwrap(), diff);
        reader.end("diff").unwrap();
        for length in 0..bytes.len() {
            assert!(StateDiff::decode(&mut Reader::new(&bytes[..length])).is_err(), "cut at {length}");
        }
    }

    #[test]
    fn decoding_refuses_what_the_builder_would_not_make() {
        let mut bytes = Vec::new();
        StateDiff::builder()
            .nonce(1.into(), 1.into())
            .nonce(2.into(), 1.into())
            .build()
            .unwrap()
            .encode(&mut bytes);
        bytes[4 + 31] = 3; // the first address now follows the second
        let error = StateDiff::decode(&mut Reader::new(&bytes)).unwrap_err();
        assert_eq!(error.to_string(), "contracts: not in ascending order");
    }

    #[test]
    fn of_two_diffs_in_one_the_later_has_the_last_word() {
        let first = StateDiff::builder()
            .storage(1.into(), 1.into(), 11.into())
            .storage(1.into(), 2.into(), 12.into())
            .nonce(1.into(), 1.into())
            .class_hash(3.into(), 31.into())
            .class(5.into(), 51.into())
            .class(6.into(), 61.into());
        let later = StateDiff::builder()
            .storage(1.into(), 2.into(), 0.into())
            .storage(1.into(), 3.into(), 13.into())
            .class_hash(1.into(), 10.into())
            .nonce(2.into(), 2.into())
            .class(5.into(), 52.into())
            .deprecated_class(9.into());
        let both = StateDiff::builder()
            .storage(1.into(), 1.into(), 11.into())
            .storage(1.into(), 2.into(), 0.into())
            .storage(1.into(), 3.into(), 13.into())
            .nonce(1.into(), 1.into())
            .class_hash(1.into(), 10.into())
            .nonce(2.into(), 2.into())
            .class_hash(3.into(), 31.into())
            .class(5.into(), 52.into())
            .class(6.into(), 61.into())
            .deprecated_class(9.into());
        let [first, later, both] = [first, later, both].map(|builder| builder.build().unwrap());
        assert_eq!(first.then(&later), both);
    }
}
