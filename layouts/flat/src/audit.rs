//! The layout's rows held against the tries they belong to.
//!
//! Rows and leaves come in the same order, so each kind of row is one scan beside one walk. Nothing is verified here that
//! a walk over the tries verifies; where a trie is broken, its rows are left out.

use flagstone_core::audit::{ExpectedRow, Findings, Place, foreign_rows, match_rows};
use flagstone_core::codec::put_short_felt;
use flagstone_core::commit::TrieRows;
use flagstone_core::commitment::{ContractLeaf, TRIE_HEIGHT};
use flagstone_core::error::StateError;
use flagstone_core::felt::Felt;
use flagstone_core::layout::StateAt;
use flagstone_core::scrub::ValueDigest;
use flagstone_core::trie::{Leaves, Node, Path, TrieId};
use flagstone_core::types::{ClassHash, ContractAddress, StorageValue, TrieKey};

use crate::cache::RecordCache;
use crate::record::{Edits, Record, record_of, slot_of};
use crate::rows::{self, LeafRow};
use crate::tries::Tries;

/// Holds all rows of a state against its tries.
pub fn audit(state: StateAt<'_>, findings: &Findings) -> Result<(), StateError> {
    let no_cache = RecordCache::new(0);
    let tries = || Tries::apart(state, &no_cache);
    foreign_rows(state.store, &rows::PREFIXES, findings)?;
    let (values, nodes) = rayon::join(
        || Audit { tries: tries(), state, findings }.values(),
        || Audit { tries: tries(), state, findings }.records(),
    );
    values.and(nodes)
}

struct Audit<'a> {
    tries: Tries<'a>,
    state: StateAt<'a>,
    findings: &'a Findings,
}

fn felt_row(felt: &Felt) -> Vec<u8> {
    let mut row = Vec::with_capacity(33);
    put_short_felt(&mut row, felt);
    row
}

fn felt_expected(key: impl AsRef<[u8]>, felt: &Felt, of: Place) -> Option<ExpectedRow> {
    (*felt != Felt::ZERO).then(|| ExpectedRow { key: key.as_ref().to_vec(), row: felt_row(felt), of })
}

impl Audit<'_> {
    /// Contracts that are in the trie, with their leaves, as far as both can be read.
    fn contracts(&self) -> impl Iterator<Item = (ContractAddress, ContractLeaf)> + '_ {
        let leaves = Leaves::new(&self.tries, TrieId::Contracts, self.state.roots.contracts.0);
        leaves.filter_map(Result::ok).filter_map(|(key, _)| {
            let address = ContractAddress::from(key);
            Some((address, self.tries.contract_leaf(&address).ok()?))
        })
    }

    fn classes(&self) -> impl Iterator<Item = (TrieKey, ClassHash)> + '_ {
        let leaves = Leaves::new(&self.tries, TrieId::Classes, self.state.roots.classes.0);
        leaves.filter_map(Result::ok).map(|(key, _)| (key, ClassHash(key.to_felt())))
    }

    fn rows(
        &self,
        prefix: u8,
        what: &str,
        expected: impl Iterator<Item = Option<ExpectedRow>>,
    ) -> Result<(), StateError> {
        let mut expected = expected.flatten();
        Ok(match_rows(self.state.store, &[prefix], what, &mut expected, self.findings)?)
    }

    fn values(&self) -> Result<(), StateError> {
        let contract = |address: &ContractAddress| Place::leaf(TrieId::Contracts, address.trie_key());
        let leaf_row = |(address, leaf): (ContractAddress, ContractLeaf)| {
            // What it says of the values is held against the leaves of their trie, further down.
            let values = self.digest_of(&address);
            let row = ExpectedRow {
                key: rows::contract_leaf(&address).to_vec(),
                row: LeafRow { leaf, values }.encode(),
                of: contract(&address),
            };
            (!leaf.is_absent()).then_some(row)
        };
        self.rows(rows::CONTRACT_LEAF, "contract leaf", self.contracts().map(leaf_row))?;
        let class_hash = |(address, leaf): (ContractAddress, ContractLeaf)| {
            felt_expected(rows::class_hash(&address), &leaf.class_hash.0, contract(&address))
        };
        self.rows(rows::CLASS_HASH, "class hash", self.contracts().map(class_hash))?;
        let nonce = |(address, leaf): (ContractAddress, ContractLeaf)| {
            felt_expected(rows::nonce(&address), &leaf.nonce.0, contract(&address))
        };
        self.rows(rows::NONCE, "nonce", self.contracts().map(nonce))?;
        let class_leaf = |class_hash: &ClassHash| rows::class_leaf(&class_hash.to_be());
        for (prefix, what, row_key) in [
            (rows::CLASS_LEAF, "class leaf", class_leaf as fn(&ClassHash) -> rows::ShortKey),
            (rows::COMPILED_CLASS_HASH, "compiled class hash", rows::compiled_class_hash),
        ] {
            let row = |(key, class_hash): (TrieKey, ClassHash)| {
                let compiled = self.tries.class_leaf(&class_hash).ok()?;
                felt_expected(row_key(&class_hash), &compiled.0, Place::leaf(TrieId::Classes, &key))
            };
            self.rows(prefix, what, self.classes().map(row))?;
        }
        self.rows(
            rows::STORAGE,
            "storage value",
            self.contracts().flat_map(|(address, leaf)| {
                let trie = TrieId::Storage(address);
                let leaves = Leaves::new(&self.tries, trie, leaf.storage_root.0);
                Slots {
                    audit: self,
                    address,
                    leaves: Some(leaves),
                    is_whole: true,
                    digest: ValueDigest::default(),
                }
            }),
        )
    }

    /// What a contract's leaf row says of its values; of none if it cannot be read.
    fn digest_of(&self, address: &ContractAddress) -> ValueDigest {
        LeafRow::at(self.state.store, address).map(|row| row.values).unwrap_or_default()
    }

    /// Records hold what is in the tries, and nothing else.
    fn records(&self) -> Result<(), StateError> {
        let storage = self.contracts().map(|(address, leaf)| (TrieId::Storage(address), leaf.storage_root.0));
        let roots = self.state.roots;
        let global = [(TrieId::Contracts, roots.contracts.0), (TrieId::Classes, roots.classes.0)];
        let records = global.into_iter().chain(storage).flat_map(|(trie, root)| {
            let ahead = if root == Felt::ZERO { Vec::new() } else { vec![Path::ROOT] };
            Records { tries: &self.tries, trie, ahead }
        });
        self.rows(rows::RECORD, "record", records.map(Some))
    }
}

/// The slots of a contract as its trie has them, whose digest at their end must be that of the leaf's row.
struct Slots<'a> {
    audit: &'a Audit<'a>,
    address: ContractAddress,
    /// Gone at the end.
    leaves: Option<Leaves<'a>>,
    /// Whether all of the trie could be read.
    is_whole: bool,
    digest: ValueDigest,
}

impl Iterator for Slots<'_> {
    type Item = Option<ExpectedRow>;

    fn next(&mut self) -> Option<Self::Item> {
        let trie = TrieId::Storage(self.address);
        loop {
            match self.leaves.as_mut()?.next() {
                Some(Ok((key, value))) => {
                    self.digest.change(&key.into(), &StorageValue::default(), &StorageValue(value));
                    let row = rows::storage(&self.address, &key.into());
                    return Some(felt_expected(row, &value, Place::leaf(trie, &key)));
                }
                Some(Err(_)) => self.is_whole = false,
                None => {
                    self.leaves = None;
                    if self.is_whole && self.audit.digest_of(&self.address) != self.digest {
                        let of = Place::leaf(TrieId::Contracts, self.address.trie_key());
                        let problem = "its row has not the number and digest of its storage values";
                        self.audit.findings.add(of, problem);
                    }
                }
            }
        }
    }
}

/// The records of a trie that nodes are in, in the order of their rows, each with only those nodes that the trie has.
struct Records<'a> {
    tries: &'a Tries<'a>,
    trie: TrieId,
    /// Nodes that are the first of their record, the nearest last.
    ahead: Vec<Path>,
}

impl Records<'_> {
    /// The nodes below `at` that are in the same record, as a record; those of other records are put ahead.
    fn take(&mut self, from: &Record, at: Path) -> Record {
        let (mut nodes, mut edits) = ([None; 32], Edits::default());
        let mut inside = vec![at];
        while let Some(at) = inside.pop() {
            let Some(node) = from.get(&at) else { continue };
            edits.written |= 1 << slot_of(&at);
            nodes[usize::from(slot_of(&at))] = Some(node);
            let children: &[Path] = match node {
                Node::Binary { .. } => &[at.child(true), at.child(false)],
                Node::Edge { path, .. } => &[at.join(&path)],
            };
            for child in children.iter().filter(|child| child.len() < TRIE_HEIGHT) {
                let list = if record_of(child) == record_of(&at) { &mut inside } else { &mut self.ahead };
                list.push(*child);
            }
        }
        let mut record = Record::default();
        // Only slots with a node are asked for.
        let node = |slot: u8| {
            nodes[usize::from(slot)].unwrap_or(Node::Binary { left: Felt::ZERO, right: Felt::ZERO })
        };
        record.rewrite(record_of(&at).len(), edits, node, &mut Vec::new());
        record
    }
}

impl Iterator for Records<'_> {
    type Item = ExpectedRow;

    fn next(&mut self) -> Option<ExpectedRow> {
        loop {
            let at = self.ahead.pop()?;
            let path = record_of(&at);
            let Ok(stored) = self.tries.record(self.trie, path) else { continue };
            let others = self.ahead.len();
            let expected = self.take(&stored, at);
            // Those put ahead by this record come in the order of their paths, the first one next.
            self.ahead[others..].sort_unstable_by(|a, b| b.cmp(a));
            if let Some(row) = expected.row() {
                let of = Place::Node(self.trie, at);
                return Some(ExpectedRow { key: rows::record(&self.trie, &path), row: row.to_vec(), of });
            }
        }
    }
}
