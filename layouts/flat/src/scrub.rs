//! Value rows held against the rows of leaves, without reading a trie.
//!
//! A contract's storage values are held against their number and digest in the row of its leaf, its class hash and nonce
//! against the leaf, a class's compiled class hash against the row of its leaf. A contract of which nothing but the trie
//! knows any more is not noticed here; [`audit`](crate::audit) finds it.

use std::ops::ControlFlow;

use flagstone_core::error::StateError;
use flagstone_core::felt::Felt;
use flagstone_core::layout::StateAt;
use flagstone_core::scrub::{At, Contradiction, Scrub, Scrubbed};
use flagstone_core::store::{StoreErrorKind, StoreRead};
use flagstone_core::types::{ClassHash, ContractAddress, StorageKey, StorageValue, TrieKey};

use crate::rows::{self, LeafRow};

/// Goes on with a scrub, over about so many rows.
pub fn scrub(state: StateAt<'_>, scrub: &mut Scrub, rows_max: u64) -> Result<Scrubbed, StateError> {
    let mut step = Step { store: state.store, done: Scrubbed::default(), rows_max };
    while step.done.rows < rows_max && scrub.at() != At::End {
        match scrub.at() {
            At::Contract(from) => step.contract(scrub, from)?,
            At::Class(from) => step.class(scrub, from)?,
            At::End => {}
        }
    }
    Ok(step.done)
}

struct Step<'a> {
    store: &'a dyn StoreRead,
    done: Scrubbed,
    rows_max: u64,
}

/// Why rows cannot be used; any other failure is the caller's.
fn damage(error: StateError) -> Result<String, StateError> {
    match &error {
        StateError::Store(store) if store.kind() != StoreErrorKind::Corrupt => Err(error),
        _ => Ok(error.to_string()),
    }
}

impl Step<'_> {
    /// The first address or class hash at or after one that has a row of one of these kinds.
    fn first(&mut self, prefixes: &[u8], from: &TrieKey) -> Result<Option<TrieKey>, StateError> {
        let mut first: Option<TrieKey> = None;
        for prefix in prefixes {
            let from = [&[*prefix], &from.as_be()[..]].concat();
            let scanned = self.store.scan_from(&[*prefix], &from, &mut |key, _| {
                let key = key.get(1..33).and_then(|key| TrieKey::from_be(key.try_into().ok()?).ok());
                first = first.into_iter().chain(key).min();
                ControlFlow::Break(())
            });
            // Then the damage is told where its row is read.
            scanned.map_err(StateError::from).or_else(|error| damage(error).map(drop))?;
            self.done.rows += 1;
        }
        Ok(first)
    }

    /// Some slots of a contract, and if they are its last ones what is known of it.
    fn contract(&mut self, scrub: &mut Scrub, from: ContractAddress) -> Result<(), StateError> {
        let address = if scrub.inside().is_some() {
            from
        } else {
            let kinds = [rows::STORAGE, rows::CONTRACT_LEAF, rows::CLASS_HASH, rows::NONCE];
            let Some(first) = self.first(&kinds, from.trie_key())? else {
                scrub.go_to(At::Class(TrieKey::default()));
                return Ok(());
            };
            scrub.go_to(At::Contract(first.into()));
            first.into()
        };
        let problem = match self.slots(scrub, &address) {
            Ok(false) => return Ok(()),
            Ok(true) => self.contradiction(scrub, &address),
            Err(error) => Err(error),
        };
        let problem = problem.or_else(|error| damage(error).map(Some))?;
        let found = problem.map(|problem| Contradiction::of_contract(address, problem));
        self.done.findings.extend(found);
        scrub.pass();
        Ok(())
    }

    /// Reads slots of a contract. Whether they were its last ones.
    fn slots(&mut self, scrub: &mut Scrub, address: &ContractAddress) -> Result<bool, StateError> {
        let prefix = &rows::storage(address, &StorageKey::default())[..33];
        let mut from = prefix.to_vec();
        if let Some((_, last)) = scrub.inside() {
            from = rows::storage(address, &last).to_vec();
            from.push(0);
        }
        let (mut wrong, mut any, mut more) = (None, false, false);
        self.store.scan_from(prefix, &from, &mut |key, row| {
            // At least one, or it would not get on.
            if any && self.done.rows >= self.rows_max {
                more = true;
                return ControlFlow::Break(());
            }
            any = true;
            self.done.rows += 1;
            let key = key.get(33..).and_then(|key| TrieKey::from_be(key.try_into().ok()?).ok());
            match (key, rows::decode_felt(row)) {
                (Some(key), Ok(value)) => scrub.read(key.into(), &StorageValue(value)),
                (_, Err(error)) => wrong = Some(StateError::damaged("a storage value", error)),
                (None, _) => wrong = Some(StateError::damaged("a storage value", "its key is none")),
            }
            if wrong.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        wrong.map_or(Ok(!more), Err)
    }

    /// What does not fit among the rows of a contract whose slots were all read.
    fn contradiction(
        &mut self,
        scrub: &Scrub,
        address: &ContractAddress,
    ) -> Result<Option<String>, StateError> {
        self.done.rows += 3;
        let LeafRow { leaf, values } = LeafRow::at(self.store, address)?;
        let found = scrub.found();
        if found.count() != values.count() {
            let (found, kept) = (found.count(), values.count());
            return Ok(Some(format!("there are {found} storage values, and its leaf's row counts {kept}")));
        }
        if found != values {
            return Ok(Some("the digest of the storage values is not the one in its leaf's row".into()));
        }
        let pairs = [
            ("class hash", rows::class_hash(address), leaf.class_hash.0),
            ("nonce", rows::nonce(address), leaf.nonce.0),
        ];
        for (what, key, in_leaf) in pairs {
            let value = rows::felt_at(self.store, &key, || format!("{what} of contract {address}"))?;
            if value != in_leaf {
                return Ok(Some(format!("the {what} is {value:#x}, and in its leaf's row {in_leaf:#x}")));
            }
        }
        Ok(None)
    }

    /// The next class.
    fn class(&mut self, scrub: &mut Scrub, from: TrieKey) -> Result<(), StateError> {
        let Some(key) = self.first(&[rows::COMPILED_CLASS_HASH, rows::CLASS_LEAF], &from)? else {
            scrub.go_to(At::End);
            return Ok(());
        };
        let class_hash = ClassHash(key.to_felt());
        let read = |row: rows::ShortKey| {
            rows::felt_at(self.store, &row, || format!("compiled class hash of class {class_hash}"))
        };
        let rows = [rows::compiled_class_hash(&class_hash), rows::class_leaf(key.as_be())].map(read);
        let [value, in_leaf]: [Result<Felt, StateError>; 2] = rows;
        self.done.rows += 2;
        let problem = match value.and_then(|value| Ok((value, in_leaf?))) {
            Ok((value, in_leaf)) if value == in_leaf => None,
            Ok((value, in_leaf)) => {
                Some(format!("the compiled class hash is {value:#x}, and in its leaf's row {in_leaf:#x}"))
            }
            Err(error) => Some(damage(error)?),
        };
        let found = problem.map(|problem| Contradiction::of_class(class_hash, problem));
        self.done.findings.extend(found);
        scrub.go_to(At::Class(key));
        scrub.pass();
        Ok(())
    }
}
