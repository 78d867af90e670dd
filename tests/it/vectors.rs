//! Real blocks with the roots the network published, and the windows of real blocks whose roots are recomputed:
//! every layout, on every store, at every cadence, on one thread and on two.

use flagstone::StateUpdate;
use flagstone::core::error::StateError;
use flagstone::core::felt::{Felt, parse_felt};
use flagstone::core::hash::StarknetCrypto;
use flagstone::core::trie::{HashFunction, Node, NodeRef, NodeSource, TrieId, hash_forest, shape};
use flagstone::core::types::{StateCommitment, TrieKey};
use flagstone_testkit::reference::{ReferenceState, trie_root};
use serde_json::Value;

use crate::support::{CADENCES, Place, config, layouts, replay, updates};

fn stated(updates: &[StateUpdate]) -> Vec<StateCommitment> {
    updates.iter().map(|update| update.new_root.expect("the vector states its root")).collect()
}

#[track_caller]
fn check_everywhere(file: &str, blocks: usize) {
    let updates = updates(file);
    assert_eq!(updates.len(), blocks);
    let expected = stated(&updates);
    for (layout, _) in layouts() {
        for cadence in CADENCES {
            for threads in [1, 2] {
                for place in Place::all() {
                    let engine = place.open(layout, config(cadence, threads));
                    let roots = replay(&engine, &updates);
                    let store = place.name();
                    assert!(roots == expected, "{file}: {layout} on {store}, {cadence:?}, {threads} threads");
                }
            }
        }
    }
}

#[test]
fn mainnet_0_to_9_have_the_published_roots() {
    check_everywhere("mainnet_0_9.jsonl", 10);
}

#[test]
fn sepolia_0_to_7_have_the_published_roots() {
    check_everywhere("sepolia_0_7.jsonl", 8);
}

#[test]
fn a_genesis_of_0_14_commits_to_both_roots() {
    check_everywhere("v0_14_genesis.jsonl", 1);
}

#[test]
fn sepolia_309146_to_309401_have_their_roots() {
    check_everywhere("sepolia_309146_309401.jsonl.zst", 256);
}

#[test]
fn sepolia_789878_to_790377_have_their_roots() {
    check_everywhere("sepolia_789878_790377.jsonl.gz", 500);
}

#[test]
fn the_reference_gives_the_published_roots() {
    for file in ["mainnet_0_9.jsonl", "sepolia_0_7.jsonl"] {
        let mut state = ReferenceState::new();
        for update in updates(file) {
            state.apply(&update.diff);
            let rule =
                "0.13.0".parse::<flagstone::core::commitment::StarknetVersion>().unwrap().commitment_rule();
            assert_eq!(Some(state.commitment(rule)), update.new_root, "{file}");
        }
    }
}

struct Nothing;

impl NodeSource for Nothing {
    fn node(&self, _at: &NodeRef) -> Result<Option<Node>, StateError> {
        Ok(None)
    }
}

#[test]
fn small_tries_have_their_roots() {
    let text = std::fs::read_to_string(crate::support::data("trie_unit.json")).unwrap();
    let vectors: Value = serde_json::from_str(&text).unwrap();
    let cases = vectors["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 5);
    for case in cases {
        let felt = |text: &str| parse_felt(text).unwrap();
        let mut leaves: Vec<(TrieKey, Felt)> = case["leaves"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(key, value)| (TrieKey::try_from(felt(key)).unwrap(), felt(value.as_str().unwrap())))
            .collect();
        leaves.sort_by_key(|(key, _)| *key);
        let expected = felt(case["root"].as_str().unwrap());
        assert_eq!(trie_root(leaves.clone(), |a, b| starknet_crypto::pedersen_hash(&a, &b)), expected);
        let mut tries = [shape(&Nothing, TrieId::Contracts, Felt::ZERO, leaves).unwrap()];
        hash_forest(&StarknetCrypto, HashFunction::Pedersen, &mut tries);
        assert_eq!(tries[0].root(), expected);
    }
}

/// Each new node is hashed once and each changed contract leaf three times: the number is a function of the blocks.
/// Other committers count 169 585 for this window, because they hash a contract's leaf again when all that is
/// written to the contract is what it had; this happens once.
#[test]
fn hashes_done_are_hashes_needed() {
    let updates = updates("sepolia_789878_790377.jsonl.gz");
    for (layout, _) in layouts() {
        let engine = Place::memory().open(layout, config(CADENCES[0], 1));
        let mut unchanged = 0;
        for update in &updates {
            let view = engine.view();
            let same = |contract: &&flagstone::core::diff::ContractDiff| {
                let address = &contract.address;
                contract.storage.iter().all(|(key, value)| view.storage_at(address, key).unwrap() == *value)
                    && contract.nonce.is_none_or(|nonce| view.nonce_at(address).unwrap() == nonce)
                    && contract.class_hash.is_none_or(|class| view.class_hash_at(address).unwrap() == class)
            };
            unchanged += update.diff.contracts().iter().filter(same).count() as u64;
            engine.close_block(update).unwrap();
            engine.commit().unwrap();
        }
        let hashes = engine.hashes();
        let done = hashes.pedersen + hashes.poseidon;
        assert_eq!((done, unchanged), (169_585 - 3, 1), "{layout}");
    }
}
