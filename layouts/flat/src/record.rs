//! Packed records: all nodes of a trie that lie in a subtree of a few levels, in one row.
//!
//! Levels are cut into bands of `DEPTH`; the record at a path whose length is a multiple of `DEPTH` holds the nodes that
//! begin in the band below it. A node keeps its children's hashes, so every interior hash is stored once and none is
//! computed to read. An edge is stored where it begins and may end many bands below: bands that hold no node have no
//! record. The README draws the bytes.

use std::fmt;

use flagstone_core::codec::{DecodeError, Reader, put_short_felt};
use flagstone_core::commitment::TRIE_HEIGHT;
use flagstone_core::felt::{Felt, FeltError, felt_to_be, is_felt};
use flagstone_core::trie::{Node, Path};

/// Levels of a record. Stored in each record; see the README for why five.
pub const DEPTH: usize = 5;

/// Places for nodes in a record: a complete binary tree of `DEPTH` levels.
const SLOTS: usize = (1 << DEPTH) - 1;
const _: () = assert!(SLOTS < 32, "slots are numbered in 32 bits");

/// Bytes before the first node: depth, slots, edges.
const HEADER: usize = 9;

/// The nodes of one record, in memory as they are in its row: a cache of them is as dense as the rows are, and what does
/// not change is copied in runs of bytes. Slot 1 is the record's top; slot s has its children at 2s and 2s + 1.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Record {
    /// In the one form that [`Record::decode`] accepts; without any bytes if it holds no node.
    row: Box<[u8]>,
}

/// Path of the record that holds the node at `at`.
pub fn record_of(at: &Path) -> Path {
    at.prefix(at.len() / DEPTH * DEPTH)
}

/// The slot of the node at `at` in its record.
pub fn slot_of(at: &Path) -> u8 {
    let levels = at.len() % DEPTH;
    1 << levels | at.bits(at.len() - levels, levels) as u8
}

/// Changes of one record: slots as bits.
#[derive(Debug, Clone, Copy, Default)]
pub struct Edits {
    /// Slots that get a new node.
    pub written: u32,
    /// Slots that lose their node, unless they get a new one.
    pub removed: u32,
}

/// The ways down from a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// To either side.
    Fork,
    /// Along these bits.
    Edge(Path),
}

impl Record {
    /// Bits of the slots that have a node, and of those whose node is an edge.
    fn slots(&self) -> (u32, u32) {
        let word = |at: usize| {
            self.row
                .get(at..at + 4)
                .map_or(0, |bytes| u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
        };
        (word(1), word(5))
    }

    /// Bytes of the node that begins at `at` in the row, `depth` bits from the trie's root.
    fn node_bytes(&self, at: usize, depth: usize, is_edge: bool) -> usize {
        let short = |at: usize| 1 + usize::from(self.row[at]);
        if is_edge {
            let length = usize::from(self.row[at]);
            let path = 1 + length.div_ceil(8);
            return path + if depth + length == TRIE_HEIGHT { short(at + path) } else { 32 };
        }
        if depth + 1 < TRIE_HEIGHT {
            return 64;
        }
        let left = short(at);
        left + short(at + left)
    }

    /// Where the node of a slot begins in the row.
    fn find(&self, record_depth: usize, slot: u8) -> usize {
        let (present, edges) = self.slots();
        let before = |slot: u32, slots: u32| slots & ((1 << slot) - 1);
        // Binary nodes are of one size, so only edges have to be looked at. Those over leaves are not, but they are alone.
        const { assert!(TRIE_HEIGHT % DEPTH == 1) };
        let binaries = |slot: u32| 64 * before(slot, present & !edges).count_ones() as usize;
        let mut edges_before = before(slot.into(), edges);
        let mut edge_bytes = 0;
        while edges_before != 0 {
            let edge = edges_before.trailing_zeros();
            edges_before &= edges_before - 1;
            let at = HEADER + binaries(edge) + edge_bytes;
            edge_bytes += self.node_bytes(at, record_depth + edge.ilog2() as usize, true);
        }
        HEADER + binaries(slot.into()) + edge_bytes
    }

    /// The node at `at`, whose record this must be.
    pub fn get(&self, at: &Path) -> Option<Node> {
        let slot = slot_of(at);
        let (present, edges) = self.slots();
        if present >> slot & 1 == 0 {
            return None;
        }
        let record_depth = at.len() / DEPTH * DEPTH;
        let mut from = Reader::new(&self.row[self.find(record_depth, slot)..]);
        node(&mut from, at.len(), edges >> slot & 1 == 1).ok()
    }

    /// Where the ways down from the node at `at` lead, whose record this must be. Takes no hash out of its bytes.
    pub fn way(&self, at: &Path) -> Option<Way> {
        let slot = slot_of(at);
        let (present, edges) = self.slots();
        match (present >> slot & 1, edges >> slot & 1) {
            (0, _) => None,
            (_, 0) => Some(Way::Fork),
            _ => {
                let edge = self.find(at.len() / DEPTH * DEPTH, slot);
                Path::decode(&mut Reader::new(&self.row[edge..])).ok().map(Way::Edge)
            }
        }
    }

    /// Whether it holds nothing, and so has no row.
    pub fn is_empty(&self) -> bool {
        self.row.is_empty()
    }

    /// Bytes it takes in memory.
    pub fn memory(&self) -> usize {
        size_of::<Self>() + self.row.len()
    }

    /// Its row; `None` if it holds nothing.
    pub fn row(&self) -> Option<&[u8]> {
        (!self.is_empty()).then_some(&*self.row)
    }

    /// Changes the record, which is `record_depth` bits from the trie's root. `node` gives the new nodes; `scratch` is a
    /// buffer to use again.
    pub fn rewrite(
        &mut self,
        record_depth: usize,
        edits: Edits,
        node: impl Fn(u8) -> Node,
        scratch: &mut Vec<u8>,
    ) {
        if !self.patch(record_depth, edits, &node, scratch) {
            self.rebuild(record_depth, edits, node, scratch);
        }
    }

    /// Puts new nodes over old ones, if nothing else changes and they are as long: most blocks rewrite most of their keys.
    /// Returns whether that was so; else some of them may have got their places already.
    fn patch(
        &mut self,
        record_depth: usize,
        edits: Edits,
        node: impl Fn(u8) -> Node,
        scratch: &mut Vec<u8>,
    ) -> bool {
        let (present, edges) = self.slots();
        if edits.removed & !edits.written != 0 || edits.written & !present != 0 {
            return false;
        }
        let mut left = edits.written;
        while left != 0 {
            let slot = left.trailing_zeros();
            left &= left - 1;
            let (depth, is_edge) = (record_depth + slot.ilog2() as usize, edges >> slot & 1 == 1);
            let node = node(slot as u8);
            let at = self.find(record_depth, slot as u8);
            let bytes = self.node_bytes(at, depth, is_edge);
            scratch.clear();
            put_node(scratch, &node, depth);
            if matches!(node, Node::Edge { .. }) != is_edge || scratch.len() != bytes {
                return false;
            }
            self.row[at..at + bytes].copy_from_slice(scratch);
        }
        true
    }

    fn rebuild(
        &mut self,
        record_depth: usize,
        edits: Edits,
        node: impl Fn(u8) -> Node,
        scratch: &mut Vec<u8>,
    ) {
        let (present, edges) = self.slots();
        let old = if self.is_empty() { &[0; HEADER] } else { &*self.row };
        let kept = present & !edits.removed & !edits.written;
        let now = kept | edits.written;
        scratch.clear();
        scratch.extend_from_slice(&[0; HEADER]);
        let mut edges_now = edges & kept;
        // The run of old nodes that are to be copied together.
        let mut run = HEADER..HEADER;
        let mut left = present | edits.written;
        while left != 0 {
            let slot = left.trailing_zeros();
            left &= left - 1;
            let depth = record_depth + slot.ilog2() as usize;
            let is = |slots: u32| slots >> slot & 1 == 1;
            let bytes = if is(present) { self.node_bytes(run.end, depth, is(edges)) } else { 0 };
            if is(kept) {
                run.end += bytes;
                continue;
            }
            scratch.extend_from_slice(&old[run.clone()]);
            run = run.end + bytes..run.end + bytes;
            if is(edits.written) {
                let node = node(slot as u8);
                edges_now |= u32::from(matches!(node, Node::Edge { .. })) << slot;
                put_node(scratch, &node, depth);
            }
        }
        scratch.extend_from_slice(&old[run]);
        scratch[0] = DEPTH as u8;
        scratch[1..5].copy_from_slice(&now.to_be_bytes());
        scratch[5..9].copy_from_slice(&edges_now.to_be_bytes());
        if now == 0 {
            scratch.clear();
        }
        if scratch.len() == self.row.len() {
            self.row.copy_from_slice(scratch);
        } else {
            self.row = scratch.as_slice().into();
        }
    }

    /// Takes the row of the record at `record`.
    ///
    /// # Errors
    /// [`DecodeError`] if the bytes are not a record that can be there, in the one form that it has.
    pub fn decode(record: &Path, row: Vec<u8>) -> Result<Self, DecodeError> {
        let mut from = Reader::new(&row);
        let depth = usize::from(from.u8("record depth")?);
        if depth != DEPTH {
            return Err(DecodeError::new("record depth", format!("is {depth}, this build has {DEPTH}")));
        }
        let (present, edges) = (from.u32("slots")?, from.u32("edges")?);
        if present & 1 != 0 || present == 0 || edges & !present != 0 {
            let problem = format!("slots {present:#x} with edges {edges:#x}");
            return Err(DecodeError::new("slots", problem));
        }
        for slot in (1..=SLOTS as u8).filter(|slot| present >> slot & 1 == 1) {
            let depth = record.len() + slot.ilog2() as usize;
            check_node(&mut from, depth, edges >> slot & 1 == 1)?;
        }
        from.end("record")?;
        Ok(Self { row: row.into() })
    }
}

fn put_node(row: &mut Vec<u8>, node: &Node, depth: usize) {
    match node {
        Node::Binary { left, right } => {
            put_child(row, left, depth + 1);
            put_child(row, right, depth + 1);
        }
        Node::Edge { path, child } => {
            path.encode(row);
            put_child(row, child, depth + path.len());
        }
    }
}

fn node(from: &mut Reader<'_>, depth: usize, is_edge: bool) -> Result<Node, DecodeError> {
    if is_edge {
        let path = Path::decode(from)?;
        return Ok(Node::Edge { path, child: child(from, depth + path.len())? });
    }
    Ok(Node::Binary { left: child(from, depth + 1)?, right: child(from, depth + 1)? })
}

/// Passes a node at `depth`, if it is one that can be there. Does not make felts of its hashes.
fn check_node(from: &mut Reader<'_>, depth: usize, is_edge: bool) -> Result<(), DecodeError> {
    let (levels, children) = if is_edge { (Path::decode(from)?.len(), 1) } else { (1, 2) };
    if levels == 0 || depth + levels > TRIE_HEIGHT {
        return Err(DecodeError::new("node", format!("reaches {levels} levels below depth {depth}")));
    }
    for _ in 0..children {
        let is_there = if depth + levels == TRIE_HEIGHT {
            from.short_felt("leaf")? != Felt::ZERO
        } else {
            let bytes = from.array("child")?;
            if !is_felt(&bytes) {
                return Err(DecodeError::new("child", FeltError::TooLarge.to_string()));
            }
            bytes != [0; 32]
        };
        if !is_there {
            return Err(DecodeError::new("child", "is zero, which means absent"));
        }
    }
    Ok(())
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
        f.debug_tuple("Record").field(&self.row).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

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

    /// Path of a slot's node in the record at `record`.
    fn path_of(record: &Path, slot: u8) -> Path {
        let levels = slot.ilog2();
        (0..levels).rev().fold(*record, |path, level| path.child(slot >> level & 1 == 1))
    }

    impl Record {
        /// Sets or removes the node at `at`.
        pub fn set(&mut self, at: &Path, node: Option<Node>) {
            let bit = 1 << slot_of(at);
            let (written, removed) = if node.is_some() { (bit, 0) } else { (0, bit) };
            let depth = record_of(at).len();
            self.rewrite(depth, Edits { written, removed }, |_| node.unwrap(), &mut Vec::new());
        }
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

    /// What decodes is a record: its nodes are such as can be there, and made anew they have the same bytes.
    fn is_one_form_or_refused(at: &Path, row: Vec<u8>) -> Result<(), TestCaseError> {
        let Ok(decoded) = Record::decode(at, row.clone()) else { return Ok(()) };
        let mut again = Record::default();
        for slot in 1..=SLOTS as u8 {
            let levels = slot.ilog2() as usize;
            if at.len() + levels < TRIE_HEIGHT
                && let Some(node) = decoded.get(&path_of(at, slot))
            {
                prop_assert!(node.check(at.len() + levels).is_ok());
                again.set(&path_of(at, slot), Some(node));
            }
        }
        prop_assert_eq!(again.row(), Some(&*row));
        prop_assert_eq!(decoded.row(), Some(&*row));
        Ok(())
    }

    proptest! {
        #[test]
        fn a_record_survives_its_bytes_and_its_changes((at, nodes) in record(), cut in any::<prop::sample::Index>()) {
            let mut record = Record::default();
            for (path, node) in &nodes {
                prop_assert_eq!(record_of(path), at);
                record.set(path, Some(*node));
            }
            let row = record.row().unwrap().to_vec();
            prop_assert_eq!(&Record::decode(&at, row.clone()).unwrap(), &record);
            prop_assert!(Record::decode(&at, row[..cut.index(row.len())].to_vec()).is_err());
            for (path, node) in &nodes {
                prop_assert_eq!(record.get(path), Some(*node));
                prop_assert_eq!(record.way(path), Some(match node {
                    Node::Binary { .. } => Way::Fork,
                    Node::Edge { path, .. } => Way::Edge(*path),
                }));
                record.set(path, None);
                prop_assert_eq!((record.get(path), record.way(path)), (None, None));
            }
            prop_assert!(record.is_empty());
        }

        #[test]
        fn many_changes_at_once_are_as_one_after_another(
            (at, nodes) in record(),
            changes in prop::collection::vec(0u8..4, SLOTS..=SLOTS),
            child in felt(),
        ) {
            let mut record = Record::default();
            nodes.iter().for_each(|(path, node)| record.set(path, Some(*node)));
            let mut edits = BTreeMap::new();
            let slots = (1..=SLOTS as u8).filter(|slot| at.len() + (slot.ilog2() as usize) < TRIE_HEIGHT);
            for (slot, change) in slots.zip(changes) {
                let path = path_of(&at, slot);
                let after = match (change, record.get(&path)) {
                    (1, Some(Node::Binary { left, .. })) => Some(Node::Binary { left, right: child }),
                    (1, Some(Node::Edge { path, .. })) => Some(Node::Edge { path, child }),
                    (2, Some(_)) => None,
                    (3, _) => Some(Node::Binary { left: child, right: child }),
                    _ => continue,
                };
                edits.insert(slot, (path, after));
            }
            let mut expected = record.clone();
            edits.values().for_each(|(path, node)| expected.set(path, *node));
            let slots = |stay: bool| {
                let of = edits.iter().filter(|(_, (_, node))| node.is_some() == stay);
                of.fold(0, |slots, (slot, _)| slots | 1 << slot)
            };
            let both = Edits { written: slots(true), removed: slots(false) };
            record.rewrite(at.len(), both, |slot| edits[&slot].1.unwrap(), &mut Vec::new());
            prop_assert_eq!(&record, &expected);
            if let Some(row) = record.row() {
                prop_assert_eq!(&Record::decode(&at, row.to_vec()).unwrap(), &record);
                is_one_form_or_refused(&at, row.to_vec())?;
            }
        }

        #[test]
        fn any_bytes_decode_to_a_record_of_that_form_or_an_error(
            (at, nodes) in record(),
            noise in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        ) {
            let mut record = Record::default();
            nodes.iter().for_each(|(path, node)| record.set(path, Some(*node)));
            let mut row = record.row().unwrap().to_vec();
            for (index, byte) in noise {
                let index = index.index(row.len());
                row[index] = byte;
            }
            is_one_form_or_refused(&at, row)?;
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]
        #[test]
        fn no_bytes_are_too_strange(
            band in 0..=TRIE_HEIGHT / DEPTH,
            path in bits(TRIE_HEIGHT..=TRIE_HEIGHT),
            // Bytes that get past the header, most of them.
            slots in any::<u32>(),
            edges in any::<u32>(),
            sparse in any::<u32>(),
            rest in prop::collection::vec(prop_oneof![any::<u8>(), 0u8..9], 0..300),
        ) {
            let at = path.prefix(band * DEPTH);
            let mut row = vec![DEPTH as u8];
            row.extend((slots & sparse & !1).to_be_bytes());
            row.extend((slots & edges & sparse & !1).to_be_bytes());
            row.extend(&rest);
            is_one_form_or_refused(&at, row)?;
            is_one_form_or_refused(&at, rest)?;
        }
    }

    /// The format: if this changes, the layout's format version must.
    #[test]
    fn golden_bytes() {
        let at = Path::of_value(&Felt::from(5u64), 250).unwrap();
        let mut record = Record::default();
        record.set(&at, Some(Node::Binary { left: Felt::from(0x1234u64), right: Felt::ONE }));
        assert_eq!(record.row().unwrap(), [5, 0, 0, 0, 2, 0, 0, 0, 0, 2, 0x12, 0x34, 1, 1]);

        let top = Path::ROOT;
        let mut record = Record::default();
        let path = Path::of_value(&Felt::from(0b101u64), 3).unwrap();
        record.set(&top, Some(Node::Edge { path, child: Felt::from(7u64) }));
        let mut expected = vec![5, 0, 0, 0, 2, 0, 0, 0, 2, 3, 0b1010_0000];
        expected.extend([0; 31]);
        expected.push(7);
        assert_eq!(record.row().unwrap(), expected);
    }
}
