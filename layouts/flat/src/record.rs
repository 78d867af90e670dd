//! Packed records: all nodes of a trie that lie in a subtree of a few levels, in one row.
//!
//! Levels are cut into bands of `DEPTH`; the record at a path whose length is a multiple of `DEPTH` holds the nodes that
//! begin in the band below it. A node keeps its children's hashes, so every interior hash is stored once and none is
//! computed to read. An edge is stored where it begins and may end many bands below: bands that hold no node have no
//! record. The README draws the bytes.

use std::fmt;

use flagstone_core::codec::{DecodeError, Reader, put_short_felt};
use flagstone_core::commitment::TRIE_HEIGHT;
use flagstone_core::felt::{Felt, felt_to_be};
use flagstone_core::trie::{Node, Path};

/// Levels of a record. Stored in each record; see the README for why five.
pub const DEPTH: usize = 5;

/// Places for nodes in a record: a complete binary tree of `DEPTH` levels.
const SLOTS: usize = (1 << DEPTH) - 1;
const _: () = assert!(SLOTS < 32, "slots are numbered in 32 bits");

/// The nodes of one record, ascending by slot. Slot 1 is the record's top; slot s has its children at 2s and 2s + 1.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Record {
    nodes: Vec<(u8, Node)>,
}

/// Path of the record that holds the node at `at`.
pub fn record_of(at: &Path) -> Path {
    at.prefix(at.len() / DEPTH * DEPTH)
}

fn slot_of(at: &Path) -> u8 {
    (at.len() / DEPTH * DEPTH..at.len()).fold(1, |slot, bit| slot << 1 | u8::from(at.bit(bit)))
}

/// Path of a slot's node in the record at `record`.
fn path_of(record: &Path, slot: u8) -> Path {
    let levels = slot.ilog2();
    (0..levels).rev().fold(*record, |path, level| path.child(slot >> level & 1 == 1))
}

impl Record {
    /// The node at `at`, whose record this must be.
    pub fn get(&self, at: &Path) -> Option<&Node> {
        let slot = slot_of(at);
        self.nodes.binary_search_by_key(&slot, |(slot, _)| *slot).ok().map(|index| &self.nodes[index].1)
    }

    /// Sets or removes the node at `at`.
    pub fn set(&mut self, at: &Path, node: Option<Node>) {
        let slot = slot_of(at);
        match (self.nodes.binary_search_by_key(&slot, |(slot, _)| *slot), node) {
            (Ok(index), Some(node)) => self.nodes[index].1 = node,
            (Ok(index), None) => drop(self.nodes.remove(index)),
            (Err(index), Some(node)) => self.nodes.insert(index, (slot, node)),
            (Err(_), None) => {}
        }
    }

    /// Whether it holds nothing, and so has no row.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Bytes it takes in memory.
    pub fn memory(&self) -> usize {
        size_of::<Self>() + self.nodes.capacity() * size_of::<(u8, Node)>()
    }

    /// The row of the record at `record`.
    pub fn encode(&self, record: &Path) -> Vec<u8> {
        let mut row = Vec::with_capacity(9 + 65 * self.nodes.len());
        let bits = |wanted: fn(&Node) -> bool| {
            let of_slot = |(slot, node): &(u8, Node)| if wanted(node) { 1u32 << slot } else { 0 };
            self.nodes.iter().map(of_slot).fold(0, |all, bit| all | bit)
        };
        row.push(DEPTH as u8);
        row.extend_from_slice(&bits(|_| true).to_be_bytes());
        row.extend_from_slice(&bits(|node| matches!(node, Node::Edge { .. })).to_be_bytes());
        for (slot, node) in &self.nodes {
            let depth = record.len() + slot.ilog2() as usize;
            match node {
                Node::Binary { left, right } => {
                    put_child(&mut row, left, depth + 1);
                    put_child(&mut row, right, depth + 1);
                }
                Node::Edge { path, child } => {
                    path.encode(&mut row);
                    put_child(&mut row, child, depth + path.len());
                }
            }
        }
        row
    }

    /// Reads the row of the record at `record`.
    ///
    /// # Errors
    /// [`DecodeError`] if the bytes are not a record that can be there, in the one form that it has.
    pub fn decode(record: &Path, row: &[u8]) -> Result<Self, DecodeError> {
        let mut from = Reader::new(row);
        let depth = usize::from(from.u8("record depth")?);
        if depth != DEPTH {
            return Err(DecodeError::new("record depth", format!("is {depth}, this build has {DEPTH}")));
        }
        let (present, edges) = (from.u32("slots")?, from.u32("edges")?);
        if present & 1 != 0 || present == 0 || edges & !present != 0 {
            let problem = format!("slots {present:#x} with edges {edges:#x}");
            return Err(DecodeError::new("slots", problem));
        }
        let mut nodes = Vec::with_capacity(present.count_ones() as usize);
        for slot in (1..=SLOTS as u8).filter(|slot| present >> slot & 1 == 1) {
            let depth = record.len() + slot.ilog2() as usize;
            let node = if edges >> slot & 1 == 1 {
                let path = Path::decode(&mut from)?;
                Node::Edge { path, child: child(&mut from, depth + path.len())? }
            } else {
                Node::Binary { left: child(&mut from, depth + 1)?, right: child(&mut from, depth + 1)? }
            };
            node.check(depth)?;
            nodes.push((slot, node));
        }
        from.end("record")?;
        Ok(Self { nodes })
    }
}

/// A child at the height of the leaves is a value, and most values are small; others are hashes.
fn put_child(row: &mut Vec<u8>, child: &Felt, depth: usize) {
    if depth == TRIE_HEIGHT {
        put_short_felt(row, child);
    } else {
        row.extend_from_slice(&felt_to_be(child));
    }
}

fn child(from: &mut Reader<'_>, depth: usize) -> Result<Felt, DecodeError> {
    if depth == TRIE_HEIGHT { from.short_felt("leaf") } else { from.felt("child") }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(self.nodes.iter().map(|(slot, node)| (path_of(&Path::ROOT, *slot), node)))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::btree_map;
    use proptest::prelude::*;

    use super::*;

    fn felt() -> impl Strategy<Value = Felt> {
        prop_oneof![
            (1u64..300).prop_map(Felt::from),
            any::<[u8; 32]>().prop_map(|b| Felt::from_bytes_be(&b) + Felt::ONE)
        ]
        .prop_filter("absent", |felt| *felt != Felt::ZERO)
    }

    fn bits(length: std::ops::RangeInclusive<usize>) -> impl Strategy<Value = Path> {
        prop::collection::vec(any::<bool>(), length)
            .prop_map(|bits| bits.into_iter().fold(Path::ROOT, |path, bit| path.child(bit)))
    }

    /// A record's path and the nodes in it by their own paths.
    fn record() -> impl Strategy<Value = (Path, Vec<(Path, Node)>)> {
        let node = |room: usize| {
            prop_oneof![
                (felt(), felt()).prop_map(|(left, right)| Node::Binary { left, right }),
                (bits(1..=room), felt()).prop_map(|(path, child)| Node::Edge { path, child }),
            ]
        };
        (0usize..=TRIE_HEIGHT / DEPTH).prop_flat_map(move |band| {
            let room = TRIE_HEIGHT - band * DEPTH;
            let levels = DEPTH.min(room);
            let slots = 1u8..1 << levels;
            let nodes = btree_map(slots, node(room - levels + 1), 1..=SLOTS.min((1 << levels) - 1));
            (bits(band * DEPTH..=band * DEPTH), nodes).prop_map(|(at, nodes)| {
                (at, nodes.into_iter().map(|(slot, node)| (path_of(&at, slot), node)).collect())
            })
        })
    }

    proptest! {
        #[test]
        fn a_record_survives_its_bytes_and_its_changes((at, nodes) in record(), cut in any::<prop::sample::Index>()) {
            let mut record = Record::default();
            for (path, node) in &nodes {
                prop_assert_eq!(record_of(path), at);
                record.set(path, Some(*node));
            }
            let row = record.encode(&at);
            prop_assert_eq!(&Record::decode(&at, &row).unwrap(), &record);
            prop_assert!(Record::decode(&at, &row[..cut.index(row.len())]).is_err());
            for (path, node) in &nodes {
                prop_assert_eq!(record.get(path), Some(node));
                record.set(path, None);
                prop_assert_eq!(record.get(path), None);
            }
            prop_assert!(record.is_empty());
        }

        #[test]
        fn any_bytes_decode_to_a_record_of_that_form_or_an_error(
            (at, nodes) in record(),
            noise in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        ) {
            let mut record = Record::default();
            nodes.iter().for_each(|(path, node)| record.set(path, Some(*node)));
            let mut row = record.encode(&at);
            for (index, byte) in noise {
                let index = index.index(row.len());
                row[index] = byte;
            }
            if let Ok(decoded) = Record::decode(&at, &row) {
                prop_assert_eq!(decoded.encode(&at), row);
            }
        }
    }

    /// The format: if this changes, the layout's format version must.
    #[test]
    fn golden_bytes() {
        let at = Path::of_value(&Felt::from(5u64), 250).unwrap();
        let mut record = Record::default();
        record.set(&at, Some(Node::Binary { left: Felt::from(0x1234u64), right: Felt::ONE }));
        assert_eq!(record.encode(&at), [5, 0, 0, 0, 2, 0, 0, 0, 0, 2, 0x12, 0x34, 1, 1]);

        let top = Path::ROOT;
        let mut record = Record::default();
        let path = Path::of_value(&Felt::from(0b101u64), 3).unwrap();
        record.set(&top, Some(Node::Edge { path, child: Felt::from(7u64) }));
        let mut expected = vec![5, 0, 0, 0, 2, 0, 0, 0, 2, 3, 0b1010_0000];
        expected.extend([0; 31]);
        expected.push(7);
        assert_eq!(record.encode(&top), expected);
    }
}
