//! The byte form of a witness. Numbers are big-endian, counts u32.
//!
//! ```text
//! "flagwitn" | version u32 | body | sha-256[32] of all before it
//!
//! body      block 0, or 1 and u64
//!           roots before   contracts[32] classes[32]
//!           roots after    contracts[32] classes[32]
//!           count | reads            kind u8 | address[32] key[32]    0 storage
//!                                              address[32]            1 class hash, 2 nonce
//!                                              class hash[32]         3 compiled class hash
//!           count | contract leaves  address[32] | class hash, storage root, nonce, each a short felt
//!           count | class leaves     class hash[32] | compiled class hash, a short felt
//!           count | tries            trie (kind u8, address[32] of a storage trie)
//!                                    count | nodes before: hash[32], node
//!                                    count | nodes after:  hash[32], node
//! ```
//! A short felt is as [`put_short_felt`] writes it, a node as [`Node::encode`] does.

use sha2::{Digest, Sha256};

use super::error::WitnessError;
use crate::codec::{DecodeError, Reader, put_short_felt};
use crate::commitment::{ContractLeaf, Roots};
use crate::diff::Subject;
use crate::felt::Felt;
use crate::outcome::proof::ProofNode;
use crate::outcome::witness::{Witness, WitnessTrie};
use crate::trie::{Node, TrieId};
use crate::types::{
    BlockNumber, ClassHash, ClassesRoot, CompiledClassHash, ContractsRoot, Nonce, StorageRoot,
};

const CHECKSUM_BYTES: usize = 32;

/// The byte form of a subject, by which reads are ordered.
pub(super) fn subject_key(subject: &Subject) -> Vec<u8> {
    let (kind, parts): (u8, &[[u8; 32]]) = match subject {
        Subject::Storage(address, key) => (0, &[*address.as_be(), *key.as_be()]),
        Subject::ClassHash(address) => (1, &[*address.as_be()]),
        Subject::Nonce(address) => (2, &[*address.as_be()]),
        Subject::CompiledClassHash(class_hash) => (3, &[class_hash.to_be()]),
    };
    let mut bytes = vec![kind];
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes
}

fn read_subject(from: &mut Reader<'_>) -> Result<Subject, DecodeError> {
    Ok(match from.u8("kind of read")? {
        0 => Subject::Storage(from.key("contract address")?.into(), from.key("storage key")?.into()),
        1 => Subject::ClassHash(from.key("contract address")?.into()),
        2 => Subject::Nonce(from.key("contract address")?.into()),
        3 => Subject::CompiledClassHash(ClassHash(from.felt("class hash")?)),
        kind => return Err(DecodeError::new("kind of read", format!("{kind} is not known"))),
    })
}

fn put_list<T>(out: &mut Vec<u8>, items: &[T], put: impl Fn(&T, &mut Vec<u8>)) {
    // A list of 2^32 items would be more than 128 GiB long.
    out.extend_from_slice(&(items.len() as u32).to_be_bytes());
    items.iter().for_each(|item| put(item, out));
}

/// Reads a list whose items have at least `item_bytes` bytes each.
fn read_list<T>(
    from: &mut Reader<'_>,
    field: &'static str,
    item_bytes: usize,
    read: impl Fn(&mut Reader<'_>) -> Result<T, DecodeError>,
) -> Result<Vec<T>, DecodeError> {
    (0..from.count(field, item_bytes)?).map(|_| read(from)).collect()
}

fn put_roots(out: &mut Vec<u8>, roots: &Roots) {
    out.extend_from_slice(&roots.contracts.to_be());
    out.extend_from_slice(&roots.classes.to_be());
}

fn read_roots(from: &mut Reader<'_>) -> Result<Roots, DecodeError> {
    let contracts = ContractsRoot(from.felt("contracts root")?);
    Ok(Roots { contracts, classes: ClassesRoot(from.felt("classes root")?) })
}

fn put_node(listed: &ProofNode, out: &mut Vec<u8>) {
    out.extend_from_slice(&listed.hash.to_bytes_be());
    listed.node.encode(out);
}

fn read_node(from: &mut Reader<'_>) -> Result<ProofNode, DecodeError> {
    let hash: Felt = from.felt("node hash")?;
    Ok(ProofNode { hash, node: Node::read(from)? })
}

/// The least bytes of a node in a list: its hash, and an edge of one bit.
const NODE_BYTES_MIN: usize = 32 + 35;

impl Witness {
    /// The first bytes of every witness.
    pub const MAGIC: [u8; 8] = *b"flagwitn";

    /// Version of what a witness holds, in bytes and as JSON. Version 1 had no bottoms of edges, and no contracts root
    /// for blocks that touch no contract.
    pub const VERSION: u32 = 2;

    /// The byte form.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Self::MAGIC.to_vec();
        out.extend_from_slice(&Self::VERSION.to_be_bytes());
        out.push(u8::from(self.block.is_some()));
        self.block.iter().for_each(|block| out.extend_from_slice(&block.0.to_be_bytes()));
        put_roots(&mut out, &self.before);
        put_roots(&mut out, &self.after);
        put_list(&mut out, &self.reads, |read, out| out.extend(subject_key(read)));
        put_list(&mut out, &self.contracts, |(address, leaf), out| {
            out.extend_from_slice(address.as_be());
            out.extend(leaf.encode());
        });
        put_list(&mut out, &self.classes, |(class_hash, compiled), out| {
            out.extend_from_slice(&class_hash.to_be());
            put_short_felt(out, &compiled.0);
        });
        put_list(&mut out, &self.tries, |trie, out| {
            trie.trie.encode(out);
            put_list(out, &trie.before, put_node);
            put_list(out, &trie.after, put_node);
        });
        let checksum = Sha256::digest(&out);
        out.extend_from_slice(&checksum);
        out
    }

    /// Reads what [`Witness::encode`] wrote.
    ///
    /// # Errors
    /// [`WitnessError`] if the bytes are no witness, of another version, or damaged.
    pub fn decode(bytes: &[u8]) -> Result<Self, WitnessError> {
        let mut from = Reader::new(bytes);
        if from.array::<8>("first bytes")? != Self::MAGIC {
            return Err(DecodeError::new("first bytes", "are not those of a witness").into());
        }
        match from.u32("version")? {
            Self::VERSION => {}
            got => return Err(WitnessError::Version { got, expected: Self::VERSION }),
        }
        let body = from.remaining().checked_sub(CHECKSUM_BYTES);
        let body = body.ok_or_else(|| DecodeError::new("checksum", "the bytes end before it"))?;
        let mut from = Reader::new(from.bytes("body", body)?);
        let (content, checksum) = bytes.split_at(bytes.len() - CHECKSUM_BYTES);
        if Sha256::digest(content).as_slice() != checksum {
            return Err(WitnessError::Checksum);
        }
        let witness = Self::read_body(&mut from)?;
        from.end("witness")?;
        Ok(witness)
    }

    fn read_body(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let block = match from.u8("block flag")? {
            0 => None,
            1 => Some(BlockNumber(from.u64("block")?)),
            other => return Err(DecodeError::new("block flag", format!("{other} is neither 0 nor 1"))),
        };
        Ok(Self {
            block,
            before: read_roots(from)?,
            after: read_roots(from)?,
            reads: read_list(from, "reads", 33, read_subject)?,
            contracts: read_list(from, "contract leaves", 35, |from| {
                let address = from.key("contract address")?.into();
                let leaf = ContractLeaf {
                    class_hash: ClassHash(from.short_felt("class hash")?),
                    storage_root: StorageRoot(from.short_felt("storage root")?),
                    nonce: Nonce(from.short_felt("nonce")?),
                };
                Ok((address, leaf))
            })?,
            classes: read_list(from, "class leaves", 33, |from| {
                let class_hash = ClassHash(from.felt("class hash")?);
                Ok((class_hash, CompiledClassHash(from.short_felt("compiled class hash")?)))
            })?,
            tries: read_list(from, "tries", 9, |from| {
                Ok(WitnessTrie {
                    trie: TrieId::decode(from)?,
                    before: read_list(from, "nodes before", NODE_BYTES_MIN, read_node)?,
                    after: read_list(from, "nodes after", NODE_BYTES_MIN, read_node)?,
                })
            })?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commit::{Overlaid, TrieRows};
    use crate::diff::StateDiff;
    use crate::error::StateError;
    use crate::hash::Bulk;
    use crate::trie::{NodeRef, NodeSource};
    use crate::types::ContractAddress;
    use crate::witness::commit_with_witness;

    /// The rows of the empty state.
    struct Empty;

    impl NodeSource for Empty {
        fn node(&self, _at: &NodeRef) -> Result<Option<Node>, StateError> {
            Ok(None)
        }
    }

    impl TrieRows for Empty {
        fn contract_leaf(&self, _address: &ContractAddress) -> Result<ContractLeaf, StateError> {
            Ok(ContractLeaf::default())
        }
        fn class_leaf(&self, _class_hash: &ClassHash) -> Result<CompiledClassHash, StateError> {
            Ok(CompiledClassHash::ZERO)
        }
    }

    /// A block that changes, deletes, and reads, and its witness.
    fn sample() -> (StateDiff, Witness) {
        let before = StateDiff::builder()
            .storage(1.into(), 5.into(), 50.into())
            .storage(1.into(), 6.into(), 60.into())
            .storage(1.into(), 7.into(), 70.into())
            .class_hash(2.into(), 22.into())
            .class(8.into(), 88.into())
            .build()
            .unwrap();
        let diff = StateDiff::builder()
            .storage(1.into(), 6.into(), 0.into())
            .nonce(2.into(), 1.into())
            .class(8.into(), 89.into())
            .build()
            .unwrap();
        let reads = [
            Subject::Storage(1.into(), 5.into()),
            Subject::Nonce(9.into()),
            Subject::ClassHash(2.into()),
            Subject::CompiledClassHash(9.into()),
        ];
        let mut base = Overlaid::new(Empty);
        let roots = base.advance(Roots::default(), &before, &Bulk).unwrap();
        let (_, witness) = commit_with_witness(&mut base, roots, &diff, &reads, &Bulk, |_| {}).unwrap();
        (diff, Witness { block: Some(BlockNumber(1)), ..witness })
    }

    fn resealed(mut bytes: Vec<u8>) -> Vec<u8> {
        bytes.truncate(bytes.len() - CHECKSUM_BYTES);
        let checksum = Sha256::digest(&bytes);
        bytes.extend_from_slice(&checksum);
        bytes
    }

    #[test]
    fn a_witness_survives_its_bytes_and_applies() {
        let (diff, witness) = sample();
        assert_eq!(Witness::decode(&witness.encode()), Ok(witness.clone()));
        assert_eq!(witness.apply(&diff, &Bulk).map(|applied| applied.roots), Ok(witness.after));
        assert!(witness.tries.iter().any(|trie| !trie.before.is_empty() && !trie.after.is_empty()));
    }

    #[test]
    fn every_truncation_is_an_error() {
        let bytes = sample().1.encode();
        for length in 0..bytes.len() {
            assert!(Witness::decode(&bytes[..length]).is_err(), "cut at {length}");
        }
        for length in Witness::MAGIC.len() + 4 + CHECKSUM_BYTES..bytes.len() {
            let cut = resealed(bytes[..length].to_vec());
            assert!(Witness::decode(&cut).is_err(), "cut at {length} and sealed again");
        }
    }

    /// Also with a checksum that fits: then only what nothing depends on may be another, the number of the block and
    /// which of the keys that the same nodes show was read.
    #[test]
    fn every_flipped_bit_is_refused() {
        let (diff, witness) = sample();
        let bytes = witness.encode();
        for bit in 0..8 * bytes.len() {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Witness::decode(&flipped).is_err(), "bit {bit}");
            let sealed = resealed(flipped);
            if sealed == bytes {
                continue;
            }
            if let Ok(other) = Witness::decode(&sealed)
                && other.apply(&diff, &Bulk).is_ok()
            {
                let (block, reads) = (witness.block, witness.reads.clone());
                assert_eq!(Witness { block, reads, ..other }, witness, "bit {bit}");
            }
        }
    }

    #[test]
    fn another_version_is_named() {
        let mut bytes = sample().1.encode();
        for version in [1, 9] {
            bytes[11] = version;
            let error = Witness::decode(&bytes).unwrap_err();
            let expected = format!(
                "witness: it is of version {version}; this build reads version 2, make it again from the block's update"
            );
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn another_diff_is_refused() {
        let (_, witness) = sample();
        for (diff, expected) in [
            (StateDiff::default(), "roots after the block"),
            (StateDiff::builder().nonce(5.into(), 1.into()).build().unwrap(), "roots after the block"),
            (
                StateDiff::builder().storage(1.into(), (1 << 40).into(), 1.into()).build().unwrap(),
                "roots after the block",
            ),
            (StateDiff::builder().storage(1.into(), 7.into(), 0.into()).build().unwrap(), ""),
        ] {
            let error = witness.apply(&diff, &Bulk).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
