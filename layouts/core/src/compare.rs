//! What differs between two states, whatever their layouts and stores.
//!
//! Both are walked in lockstep by hashes, so that what is equal is not looked into, however large it is.

use crate::commit::TrieRows;
use crate::commitment::Roots;
use crate::diff::Subject;
use crate::felt::Felt;
use crate::trie::{Broken, Differences, LeafDifference, Path, Side, TrieId};
use crate::types::{ClassHash, ContractAddress};

/// The tries of one state.
#[derive(Clone, Copy)]
pub struct StateTries<'a> {
    /// Its nodes, and what its leaves commit to.
    pub rows: &'a dyn TrieRows,
    /// Its roots.
    pub roots: Roots,
}

/// A value that differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Difference {
    /// Which value.
    pub subject: Subject,
    /// The trie whose leaf shows it.
    pub trie: TrieId,
    /// Where in the trie the two states part; the whole path of the leaf if both have it.
    pub path: Path,
    /// The value in the first and in the second state; zero if absent.
    pub values: [Felt; 2],
}

/// Tells all differences: contracts ascending by address, each with its class hash, nonce, and storage ascending by key;
/// then classes ascending. A place that cannot be read is told, and what is beside it is compared. Ends when `tell` says
/// `false`.
pub fn compare(
    a: StateTries<'_>,
    b: StateTries<'_>,
    tell: &mut dyn FnMut(Result<Difference, Broken>) -> bool,
) {
    let sides = [a, b].map(|state| Side { source: state.rows, root: state.roots.contracts.0 });
    for differing in Differences::new(TrieId::Contracts, sides) {
        let go_on = match differing {
            Ok(leaf) => compare_contract([a, b], &leaf, tell),
            Err(broken) => tell(Err(broken)),
        };
        if !go_on {
            return;
        }
    }
    let sides = [a, b].map(|state| Side { source: state.rows, root: state.roots.classes.0 });
    for differing in Differences::new(TrieId::Classes, sides) {
        let found = differing.and_then(|leaf| class_difference([a, b], &leaf));
        if !tell(found) {
            return;
        }
    }
}

/// Tells what differs in a contract; returns whether to go on.
fn compare_contract(
    states: [StateTries<'_>; 2],
    leaf: &LeafDifference,
    tell: &mut dyn FnMut(Result<Difference, Broken>) -> bool,
) -> bool {
    let address = ContractAddress::from(leaf.key);
    let read = |side: usize| {
        let broken = |problem| Broken::new(TrieId::Contracts, Path::of_key(&leaf.key), problem);
        states[side].rows.contract_leaf(&address).map_err(broken)
    };
    let [a, b] = match (read(0), read(1)) {
        (Ok(a), Ok(b)) => [a, b],
        (a, b) => return [a, b].into_iter().filter_map(Result::err).all(|broken| tell(Err(broken))),
    };
    let own = [
        (Subject::ClassHash(address), [a.class_hash.0, b.class_hash.0]),
        (Subject::Nonce(address), [a.nonce.0, b.nonce.0]),
    ];
    for (subject, values) in own {
        let difference = Difference { subject, trie: TrieId::Contracts, path: leaf.path, values };
        if values[0] != values[1] && !tell(Ok(difference)) {
            return false;
        }
    }
    let trie = TrieId::Storage(address);
    let sides = [
        Side { source: states[0].rows, root: a.storage_root.0 },
        Side { source: states[1].rows, root: b.storage_root.0 },
    ];
    Differences::new(trie, sides).all(|differing| {
        tell(differing.map(|slot| Difference {
            subject: Subject::Storage(address, slot.key.into()),
            trie,
            path: slot.path,
            values: slot.leaves,
        }))
    })
}

fn class_difference(states: [StateTries<'_>; 2], leaf: &LeafDifference) -> Result<Difference, Broken> {
    let class_hash = ClassHash(leaf.key.to_felt());
    let read = |side: usize| {
        let broken = |problem| Broken::new(TrieId::Classes, Path::of_key(&leaf.key), problem);
        states[side].rows.class_leaf(&class_hash).map_err(broken)
    };
    let values = [read(0)?.0, read(1)?.0];
    let subject = Subject::CompiledClassHash(class_hash);
    Ok(Difference { subject, trie: TrieId::Classes, path: leaf.path, values })
}
