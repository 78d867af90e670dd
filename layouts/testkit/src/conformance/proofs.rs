//! The part of the suite about proofs, witnesses and ranges: what a layout's tries show to somebody without a store.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;

use flagstone_core::commitment::{CommitmentRule, Roots};
use flagstone_core::diff::{StateDiff, Subject};
use flagstone_core::felt::Felt;
use flagstone_core::hash::Bulk;
use flagstone_core::layout::Layout;
use flagstone_core::proof::{
    Anchor, ContractStorageKeys, ProofError, ProofNode, ProofRequest, Proven, RangeProof, StorageProof,
    VerifiedProof, prove_range, prove_storage,
};
use flagstone_core::trie::{Node, TrieId};
use flagstone_core::types::{BlockHash, ClassHash, TrieKey};
use flagstone_core::witness::{Witness, WitnessError};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use crate::driver::{Driver, Touched};
use crate::property::{fail, for_random, for_random_blocks, rayon_pool};
use crate::reference::ReferenceState;
use crate::strategies::plans;

impl Touched {
    /// A request for all of it, for a class that nobody declared, and for one that has no place in the classes trie.
    pub fn request(&self) -> ProofRequest {
        let classes = self.classes.iter().map(|class_hash| ClassHash(Felt::from_bytes_be(class_hash)));
        let contract = |address| ContractStorageKeys {
            contract_address: address,
            storage_keys: self.slots.iter().filter(|slot| slot.0 == address).map(|slot| slot.1).collect(),
        };
        ProofRequest {
            class_hashes: classes.chain([0x9999.into(), ClassHash(Felt::MAX)]).collect(),
            contract_addresses: self.contracts.iter().copied().collect(),
            contracts_storage_keys: self.contracts.iter().copied().map(contract).collect(),
        }
    }

    /// All of it as things that a block could read.
    pub fn subjects(&self) -> Vec<Subject> {
        let slots = self.slots.iter().map(|(address, key)| Subject::Storage(*address, *key));
        let contracts = self.contracts.iter();
        let facts = contracts.flat_map(|address| [Subject::Nonce(*address), Subject::ClassHash(*address)]);
        let class = |hash: &[u8; 32]| Subject::CompiledClassHash(ClassHash(Felt::from_bytes_be(hash)));
        slots.chain(facts).chain(self.classes.iter().map(class)).collect()
    }
}

/// Asserts that all asked keys are proven, and are what the reference says.
fn check_claims(proof: &VerifiedProof, request: &ProofRequest, reference: &ReferenceState) {
    let class_leaves = reference.leaves(TrieId::Classes);
    for class_hash in &request.class_hashes {
        let key = TrieKey::try_from(class_hash.0).ok();
        let leaf = class_leaves.iter().find(|(of, _)| Some(*of) == key).map(|(_, leaf)| *leaf);
        let expected = leaf.map_or(Proven::Absent, Proven::Value);
        assert_eq!(proof.class(class_hash), expected, "class {class_hash}");
    }
    for address in &request.contract_addresses {
        let leaf = reference.contract_leaf(address);
        let expected = if leaf.is_absent() { Proven::Absent } else { Proven::Value(leaf) };
        assert_eq!(proof.contract(address), expected, "contract {address}");
    }
    for entry in &request.contracts_storage_keys {
        let address = &entry.contract_address;
        for key in &entry.storage_keys {
            let value = reference.storage_at(address, key);
            let expected = if value.is_zero() { Proven::Absent } else { Proven::Value(value) };
            assert_eq!(proof.storage(address, key), expected, "storage {key} of contract {address}");
        }
    }
}

fn refused(error: ProofError) -> TestCaseError {
    TestCaseError::fail(error.to_string())
}

fn unfit(error: WitnessError) -> TestCaseError {
    TestCaseError::fail(error.to_string())
}

/// What is trusted of a state under a rule.
fn anchor(reference: &ReferenceState, rule: CommitmentRule) -> Anchor {
    let commitment = Some(reference.commitment(rule));
    Anchor { commitment, rule: Some(rule), block_hash: Some(BlockHash::from(7)) }
}

/// A state of committed blocks, with the reference beside it.
fn committed<'a, L: Layout>(
    layout: &'a L,
    diffs: &[StateDiff],
) -> Result<(Driver<'a, L>, ReferenceState), TestCaseError> {
    let mut driver = Driver::new(layout);
    let mut reference = ReferenceState::new();
    for diff in diffs {
        driver.close(diff);
        reference.apply(diff);
        driver.commit().map_err(fail)?;
    }
    Ok((driver, reference))
}

/// Proofs of the empty state and after each block verify against the reference's commitment and say what it says, of keys
/// that are there and of keys that are not.
pub fn proofs_verify_and_say_what_the_reference_says<L: Layout>(make: impl Fn() -> L) {
    let layout = &make();
    for_random_blocks(24, 1..6, |diffs| {
        let request = Touched::by(&diffs).request();
        for count in 0..=diffs.len() {
            let (driver, reference) = committed(layout, &diffs[..count])?;
            let tries = layout.tries(driver.state());
            let hash = Some(BlockHash::from(7));
            let proof = prove_storage(&*tries, driver.roots, &request, hash).map_err(fail)?;
            for rule in [CommitmentRule::ContractsRootAlone, CommitmentRule::AlwaysBoth] {
                let verified = proof.verify(&request, &anchor(&reference, rule), &Bulk).map_err(refused)?;
                check_claims(&verified, &request, &reference);
            }
            let other = Anchor { block_hash: Some(BlockHash::from(8)), ..Anchor::default() };
            let outcome = proof.verify(&request, &other, &Bulk).map(|_| ());
            prop_assert!(matches!(outcome, Err(ProofError::BlockHash { .. })), "{:?}", outcome);
        }
        Ok(())
    });
}

/// Lists of a proof, by number.
fn list_of(proof: &mut StorageProof, list: usize) -> Option<&mut Vec<ProofNode>> {
    match list {
        0 => Some(&mut proof.classes_proof),
        1 => Some(&mut proof.contracts_proof),
        storage => proof.contracts_storage_proofs.get_mut(storage - 2),
    }
}

/// A node with another content.
fn altered(node: &Node) -> Node {
    match node {
        Node::Binary { left, right } => Node::Binary { left: *left, right: right + Felt::ONE },
        Node::Edge { path, child } => Node::Edge { path: *path, child: child + Felt::ONE },
    }
}

/// Whether all asked keys are proven.
fn covers_all(proof: &VerifiedProof, request: &ProofRequest) -> bool {
    request.class_hashes.iter().all(|class_hash| proof.class(class_hash) != Proven::NotCovered)
        && request.contract_addresses.iter().all(|address| proof.contract(address) != Proven::NotCovered)
        && request.contracts_storage_keys.iter().all(|entry| {
            let address = &entry.contract_address;
            entry.storage_keys.iter().all(|key| proof.storage(address, key) != Proven::NotCovered)
        })
}

/// A proof without one of its nodes is refused or does not cover a key; one with another node, or with a node twice, is
/// refused.
pub fn a_proof_without_a_node_says_less_or_is_refused<L: Layout>(make: impl Fn() -> L) {
    let layout = &make();
    for_random_blocks(6, 2..5, |diffs| {
        let (driver, _) = committed(layout, &diffs)?;
        let request = Touched::by(&diffs).request();
        let tries = layout.tries(driver.state());
        let whole = prove_storage(&*tries, driver.roots, &request, None).map_err(fail)?;
        let verify = |proof: &StorageProof| proof.verify(&request, &Anchor::default(), &Bulk);
        for list in 0..whole.contracts_storage_proofs.len() + 2 {
            let count = list_of(&mut whole.clone(), list).map_or(0, |nodes| nodes.len());
            for index in 0..count {
                let with = |change: fn(&mut Vec<ProofNode>, usize)| {
                    let mut proof = whole.clone();
                    list_of(&mut proof, list).into_iter().for_each(|nodes| change(nodes, index));
                    verify(&proof)
                };
                let less = with(|nodes, index| {
                    nodes.remove(index);
                });
                prop_assert!(less.is_err() || less.is_ok_and(|less| !covers_all(&less, &request)));
                let twice = with(|nodes, index| nodes.push(nodes[index]));
                prop_assert!(matches!(twice, Err(ProofError::Repeated { .. })), "{:?}", twice);
                let other = with(|nodes, index| nodes[index].node = altered(&nodes[index].node));
                let wrong = matches!(other, Err(ProofError::NodeHash { .. } | ProofError::Malformed { .. }));
                prop_assert!(wrong, "{:?}", other);
            }
        }
        let mut fewer = request.clone();
        fewer.contract_addresses.pop();
        let fewer = whole.verify(&fewer, &Anchor::default(), &Bulk);
        prop_assert!(matches!(fewer, Err(ProofError::Count { .. })), "{:?}", fewer);
        Ok(())
    });
}

/// Stages the commitment of a block with its witness, and compares it with the one without.
fn stage_with_witness<L: Layout>(
    driver: &Driver<'_, L>,
    diff: &StateDiff,
    reads: &[Subject],
) -> Result<Witness, TestCaseError> {
    let layout = driver.layout();
    let (staged, witness) =
        layout.stage_commitment_with_witness(driver.state(), diff, reads, &Bulk).map_err(fail)?;
    let alone = layout.stage_commitment(driver.state(), &[diff], &Bulk).map_err(fail)?;
    prop_assert_eq!(&staged.batch, &alone.batch);
    prop_assert_eq!((&staged.roots, &staged.undo), (&alone.roots, &alone.undo));
    prop_assert_eq!((witness.before, Some(&witness.after)), (driver.roots, staged.roots.last()));
    Ok(witness)
}

/// A witness does not change what is committed, and alone gives the block's root, whatever the block's shape; also after a
/// way through bytes. A prover finds in it all that it needs.
pub fn witnesses_commit_blocks_without_a_store<L: Layout>(make: impl Fn() -> L) {
    let layout = &make();
    for_random(48, &plans(1..7), |plans| {
        let mut driver = Driver::new(layout);
        let mut reference = ReferenceState::new();
        let mut diffs = Vec::new();
        for plan in &plans {
            let diff = plan.on(&reference);
            diffs.push(diff.clone());
            let mut expected = reference.clone();
            expected.apply(&diff);
            for reads in [Vec::new(), Touched::by(&diffs).subjects()] {
                let witness = stage_with_witness(&driver, &diff, &reads)?;
                let applied = witness.apply(&diff, &Bulk).map_err(unfit)?;
                prop_assert_eq!(applied.roots, expected.roots());
                prop_assert_eq!(Witness::decode(&witness.encode()), Ok(witness.clone()));
                let on_one = rayon_pool(1).install(|| stage_with_witness(&driver, &diff, &reads))?;
                prop_assert_eq!(&on_one, &witness, "threads");
                for rule in [CommitmentRule::ContractsRootAlone, CommitmentRule::AlwaysBoth] {
                    let before = reference.commitment(rule);
                    for known in [None, Some(rule)] {
                        prop_assert_eq!(witness.check_commitment_before(before, known), Ok(()));
                    }
                }
                check_facts(&witness, &diff, [&reference, &expected])?;
            }
            driver.close(&diff);
            reference = expected;
            driver.commit().map_err(fail)?;
        }
        Ok(())
    });
}

/// The keys that a block writes or reads, by trie.
fn accessed(diff: &StateDiff, reads: &[Subject]) -> BTreeMap<TrieId, Vec<TrieKey>> {
    let mut keys: BTreeMap<TrieId, Vec<TrieKey>> =
        [(TrieId::Contracts, Vec::new()), (TrieId::Classes, Vec::new())].into();
    let mut add = |trie, key| keys.entry(trie).or_default().push(key);
    for contract in diff.contracts() {
        add(TrieId::Contracts, *contract.address.trie_key());
        contract.storage.iter().for_each(|(key, _)| add(TrieId::Storage(contract.address), *key.trie_key()));
    }
    diff.classes().iter().for_each(|class| add(TrieId::Classes, class.trie_key()));
    for read in reads {
        match read {
            Subject::Storage(address, key) => {
                add(TrieId::Contracts, *address.trie_key());
                add(TrieId::Storage(*address), *key.trie_key());
            }
            Subject::ClassHash(address) | Subject::Nonce(address) => {
                add(TrieId::Contracts, *address.trie_key());
            }
            Subject::CompiledClassHash(class_hash) => {
                TrieKey::try_from(class_hash.0).into_iter().for_each(|key| add(TrieId::Classes, key));
            }
        }
    }
    keys
}

/// Asserts that a witness has each fact that a prover needs, from the tries before and after, and no node that is in
/// neither. Beyond the facts it has only edges beside a fork (what stays of an edge that the block split, or what a deletion
/// merged with the edge above), and the top of the contracts trie where the state commitment may be its hash.
fn check_facts(
    witness: &Witness,
    diff: &StateDiff,
    states: [&ReferenceState; 2],
) -> Result<(), TestCaseError> {
    let keys = accessed(diff, &witness.reads);
    for of_trie in &witness.tries {
        prop_assert!(keys.contains_key(&of_trie.trie), "the {} is not accessed", of_trie.trie);
    }
    for (trie, keys) in keys {
        let of_trie = witness.tries.iter().find(|of_trie| of_trie.trie == trie);
        let lists = of_trie.map_or([&[][..], &[]], |of_trie| [&of_trie.before, &of_trie.after]);
        let mut needed: BTreeMap<[u8; 32], Node> = BTreeMap::new();
        for (state, list) in states.into_iter().zip(lists) {
            let leaves: Vec<TrieKey> = state.leaves(trie).into_iter().map(|(key, _)| key).collect();
            let whole = state.facts(trie, &leaves);
            for ProofNode { hash, node } in list {
                prop_assert_eq!(
                    whole.get(&hash.to_bytes_be()),
                    Some(node),
                    "a node that is not in the {}",
                    trie
                );
            }
            needed.extend(state.facts(trie, &keys));
        }
        let shown: BTreeSet<[u8; 32]> =
            lists.into_iter().flatten().map(|listed| listed.hash.to_bytes_be()).collect();
        for (hash, node) in &needed {
            prop_assert!(shown.contains(hash), "no fact {:x?} of the {}: {:?}", hash, trie, node);
        }
        let beside_a_fork = |hash: &Felt| {
            let has =
                |node: &Node| matches!(node, Node::Binary { left, right } if left == hash || right == hash);
            needed.values().any(has)
        };
        let extra =
            lists.into_iter().flatten().filter(|listed| !needed.contains_key(&listed.hash.to_bytes_be()));
        for ProofNode { hash, node } in extra {
            let rest = matches!(node, Node::Edge { .. }) && beside_a_fork(hash);
            let top =
                trie == TrieId::Contracts && diff.contracts().is_empty() && witness.before.rule_matters();
            prop_assert!(rest || top, "fact {:#x} of the {} is not needed: {:?}", hash, trie, node);
        }
    }
    Ok(())
}

/// A witness without one of its nodes, with another one, or for another diff, is refused.
pub fn a_witness_without_a_node_is_refused<L: Layout>(make: impl Fn() -> L) {
    let layout = &make();
    for_random_blocks(6, 2..4, |diffs| {
        let Some((last, earlier)) = diffs.split_last() else { return Ok(()) };
        let (driver, _) = committed(layout, earlier)?;
        let reads: Vec<Subject> = Touched::by(&diffs).subjects().into_iter().step_by(5).collect();
        let whole = stage_with_witness(&driver, last, &reads)?;
        let check_refused = |change: &dyn Fn(&mut Witness)| {
            let mut witness = whole.clone();
            change(&mut witness);
            assert_ne!(witness, whole, "a change changes");
            assert!(witness.apply(last, &Bulk).is_err(), "{witness:?}");
        };
        for (trie, of_trie) in whole.tries.iter().enumerate() {
            for index in 0..of_trie.before.len() {
                check_refused(&|witness| {
                    witness.tries[trie].before.remove(index);
                });
                check_refused(&|witness| witness.tries[trie].before.push(of_trie.before[index]));
                let other = altered(&of_trie.before[index].node);
                check_refused(&|witness| witness.tries[trie].before[index].node = other);
            }
            for index in 0..of_trie.after.len() {
                check_refused(&|witness| {
                    witness.tries[trie].after.remove(index);
                });
                let other = altered(&of_trie.after[index].node);
                check_refused(&|witness| witness.tries[trie].after[index].node = other);
            }
        }
        for index in 0..whole.contracts.len() {
            check_refused(&|witness| {
                witness.contracts.remove(index);
            });
            check_refused(&|witness| witness.contracts[index].1.nonce.0 += Felt::ONE);
        }
        for index in 0..whole.classes.len() {
            check_refused(&|witness| {
                witness.classes.remove(index);
            });
            check_refused(&|witness| witness.classes[index].1.0 += Felt::ONE);
        }
        check_refused(&|witness| witness.after.contracts.0 += Felt::ONE);
        check_refused(&|witness| witness.before.contracts.0 += Felt::ONE);
        check_refused(&|witness| witness.before.classes.0 += Felt::ONE);
        Ok(())
    });
}

/// The tries of a state, and their roots.
fn tries_of(
    driver: &Driver<'_, impl Layout>,
    reference: &ReferenceState,
    diffs: &[StateDiff],
) -> Vec<(TrieId, Felt)> {
    let Roots { contracts, classes } = driver.roots;
    let storage = Touched::by(diffs).contracts.into_iter().map(|address| {
        let trie = TrieId::Storage(address);
        (trie, reference.trie_root(trie))
    });
    [(TrieId::Contracts, contracts.0), (TrieId::Classes, classes.0)].into_iter().chain(storage).collect()
}

/// Keys from which ranges are taken: the ends, and around each leaf.
fn starts(leaves: &[(TrieKey, Felt)]) -> Vec<TrieKey> {
    let around = leaves.iter().flat_map(|(key, _)| {
        let key = key.to_felt();
        [key - Felt::ONE, key, key + Felt::ONE].into_iter().filter_map(|key| TrieKey::try_from(key).ok())
    });
    around.chain([TrieKey::default(), TrieKey::MAX]).collect()
}

/// Chunks of any size, from any key on, verify and have exactly the reference's leaves; put together they are the trie.
pub fn ranges_have_exactly_the_leaves_of_the_reference<L: Layout>(make: impl Fn() -> L) {
    let layout = &make();
    for_random_blocks(12, 1..5, |diffs| {
        let (driver, reference) = committed(layout, &diffs)?;
        let source = layout.tries(driver.state());
        for (trie, root) in tries_of(&driver, &reference, &diffs) {
            let leaves = reference.leaves(trie);
            for first in starts(&leaves) {
                for max in [1, 2, 5, usize::MAX] {
                    let max = NonZeroUsize::new(max).unwrap_or(NonZeroUsize::MIN);
                    let range = prove_range(&*source, trie, root, first, max).map_err(fail)?;
                    let proven = range.verify(trie, root, &Bulk).map_err(refused)?;
                    let within = leaves.iter().filter(|(key, _)| (first..=proven.last).contains(key));
                    let expected: Vec<(TrieKey, Felt)> = within.copied().collect();
                    prop_assert_eq!(proven.leaves, expected.as_slice());
                    let rest = leaves.iter().filter(|(key, _)| *key >= first).count();
                    prop_assert_eq!(
                        (range.leaves.len(), range.to_end),
                        (rest.min(max.get()), rest <= max.get())
                    );
                    prop_assert!(first != TrieKey::default() || !range.to_end || range.nodes.is_empty());
                }
            }
        }
        Ok(())
    });
}

/// Ranges with a leaf too few, too many or another, a node too few or another, or other bounds.
fn tampered(range: &RangeProof) -> Vec<RangeProof> {
    let mut all = Vec::new();
    let mut with = |change: &dyn Fn(&mut RangeProof)| {
        let mut range = range.clone();
        change(&mut range);
        all.push(range);
    };
    for index in 0..range.leaves.len() {
        with(&|range| {
            range.leaves.remove(index);
        });
        with(&|range| range.leaves[index].1 += Felt::ONE);
        let beside = TrieKey::try_from(range.leaves[index].0.to_felt() + Felt::ONE);
        if let Ok(key) = beside
            && range.leaves.iter().all(|leaf| leaf.0 != key)
        {
            with(&|range| range.leaves.insert(index + 1, (key, Felt::ONE)));
            with(&|range| range.leaves[index].0 = key);
        }
    }
    for index in 0..range.nodes.len() {
        with(&|range| {
            range.nodes.remove(index);
        });
        with(&|range| range.nodes.push(range.nodes[index]));
        with(&|range| range.nodes[index].node = altered(&range.nodes[index].node));
    }
    all
}

/// A range that leaves out, adds or changes a leaf or a node is refused, also if it says that it goes further than it
/// does.
pub fn a_range_with_other_leaves_is_refused<L: Layout>(make: impl Fn() -> L) {
    let layout = &make();
    for_random_blocks(8, 1..5, |diffs| {
        let (driver, reference) = committed(layout, &diffs)?;
        let source = layout.tries(driver.state());
        for (trie, root) in tries_of(&driver, &reference, &diffs) {
            let leaves = reference.leaves(trie);
            for first in starts(&leaves).into_iter().step_by(2) {
                let three = NonZeroUsize::MIN.saturating_add(2);
                let range = prove_range(&*source, trie, root, first, three).map_err(fail)?;
                for tampered in tampered(&range) {
                    // Without its last leaf a range can be a shorter one, which is as true.
                    let shorter = !range.to_end && range.leaves.starts_with(&tampered.leaves);
                    let outcome = tampered.verify(trie, root, &Bulk).map(|range| (range.last, range.leaves));
                    let last = tampered.leaves.last().map(|leaf| leaf.0);
                    let truth = outcome.as_ref().is_ok_and(|(end, _)| shorter && Some(*end) == last);
                    prop_assert!(outcome.is_err() || truth, "{:?}", tampered);
                }
                prop_assert!(range.verify(trie, root + Felt::ONE, &Bulk).is_err());
                let further = RangeProof { to_end: true, ..range.clone() };
                prop_assert!(range.to_end || further.verify(trie, root, &Bulk).is_err());
            }
        }
        Ok(())
    });
}
