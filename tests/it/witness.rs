//! Witnesses: of every block of the test data, of blocks of every shape, and beside the facts of StarkWare's committer.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};

use flagstone::core::Felt;
use flagstone::core::hash::Bulk;
use flagstone::core::proof::ProofNode;
use flagstone::core::trie::{Node, TrieId};
use flagstone::core::types::{ContractAddress, StateCommitment};
use flagstone::core::witness::{Witness, WitnessError};
use flagstone::input::read_witness;
use flagstone::{Engine, StateUpdate, wire};
use flagstone_testkit::reference::ReferenceState;
use flagstone_testkit::strategies::plans;
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
use rayon::prelude::*;

use crate::support::{Place, at_close, data, layouts, updates};

fn engine(layout: &str) -> Engine {
    Place::memory().open(layout, at_close())
}

/// One of each layout, empty.
fn engines() -> Vec<Engine> {
    layouts().map(|(layout, _)| engine(layout)).collect()
}

/// Files of the test data that are no state updates.
const OTHERS: [&str; 4] = ["README.md", "commitment-infos", "sepolia_10149255_proof.json", "trie_unit.json"];

/// All state updates of the test data, by file. A block whose earlier state is not there comes without its roots.
fn all_updates() -> BTreeMap<String, Vec<StateUpdate>> {
    let names =
        fs::read_dir(data("")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let files = names.filter(|name| !OTHERS.contains(&name.as_str())).map(|name| {
        let mut updates = updates(&name);
        if name.starts_with("mainnet_block_") {
            for update in &mut updates {
                (update.old_root, update.new_root) = (None, None);
                update.starknet_version = update.starknet_version.or("0.13.0".parse().ok());
            }
        }
        (name, updates)
    });
    files.collect()
}

/// Closes a block on an engine of each layout. Its witnesses must be the same; it is read back from bytes, or from JSON.
#[track_caller]
fn close(engines: &[Engine], update: &StateUpdate, as_json: bool, what: &str) -> Witness {
    let close = |engine: &Engine| engine.close_block_with_witness(update, &[]).unwrap().1;
    let witnesses: Vec<Witness> = engines.par_iter().map(close).collect();
    assert!(witnesses.iter().all(|witness| *witness == witnesses[0]), "{what}");
    let written = if as_json { through_json(&witnesses[0]) } else { through_bytes(&witnesses[0]) };
    assert_eq!(written, witnesses[0], "{what}");
    written
}

fn through_bytes(witness: &Witness) -> Witness {
    Witness::decode(&witness.encode()).unwrap()
}

fn through_json(witness: &Witness) -> Witness {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    write!(file, "{}", wire::witness(witness)).unwrap();
    read_witness(file.path()).unwrap()
}

#[test]
fn every_block_of_the_test_data_has_a_witness_that_verifies_for_every_layout() {
    let files = all_updates();
    let blocks: usize = files.values().map(Vec::len).sum();
    assert_eq!((files.len(), blocks), (10, 10 + 8 + 1 + 256 + 500 + 3 + 6 + 2));
    for (file, updates) in files {
        let engines = engines();
        for (index, update) in updates.iter().enumerate() {
            let what = format!("{file}:{index}");
            let before = engines[0].head().root;
            let witness = close(&engines, update, index % 20 == 0, &what);
            let applied =
                witness.apply(&update.diff, &Bulk).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(
                (witness.before, applied.roots),
                (before.roots, engines[0].head().root.roots),
                "{what}"
            );
            let stated = update.old_root.unwrap_or(before.commitment);
            assert_eq!(witness.check_commitment_before(stated, None), Ok(()), "{what}");
            let rule = update.starknet_version.map(|version| version.commitment_rule());
            let computed = rule.map(|rule| applied.roots.commitment(rule)).or(update.new_root);
            assert_eq!(computed, update.new_root.or(computed), "{what}");
        }
    }
}

/// The change of the commitment's rule comes before any of the blocks, or after all of them.
#[test]
fn blocks_of_every_shape_on_both_sides_of_0_14_have_witnesses_that_verify() {
    let config = ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let outcome = runner.run(&(plans(1..8), 0..9usize), |(plans, change)| {
        let (engines, mut state) = (engines(), ReferenceState::new());
        let (mut before, mut rule_before) = (StateCommitment::ZERO, None);
        for (index, plan) in plans.iter().enumerate() {
            let version = match index {
                _ if index < change => "0.13.6",
                _ if index == change => "0.14.0",
                _ => "0.14.1",
            };
            let starknet_version: Option<flagstone::core::commitment::StarknetVersion> = version.parse().ok();
            let rule = starknet_version.map(|version| version.commitment_rule());
            let diff = plan.on(&state);
            state.apply(&diff);
            let new_root = rule.map(|rule| state.commitment(rule));
            let update = StateUpdate {
                starknet_version,
                old_root: Some(before),
                new_root,
                diff,
                ..StateUpdate::default()
            };
            let witness = close(&engines, &update, index % 2 == 0, "one of the layouts");
            let applied = witness.apply(&update.diff, &Bulk).map(|applied| applied.roots);
            prop_assert_eq!(applied, Ok(state.roots()));
            for known in [None, rule_before] {
                prop_assert_eq!(witness.check_commitment_before(before, known), Ok(()));
            }
            (before, rule_before) = (new_root.unwrap_or_default(), rule);
        }
        Ok(())
    });
    outcome.unwrap();
}

#[test]
fn a_witness_of_a_real_block_without_a_node_is_refused() {
    let updates = updates("mainnet_0_9.jsonl");
    let engine = engine("flat");
    let mut dropped = 0;
    for update in &updates {
        let whole = engine.close_block_with_witness(update, &[]).unwrap().1;
        let nodes = whole.tries.iter().enumerate().flat_map(|(trie, of_trie)| {
            let before = (0..of_trie.before.len()).map(move |index| (trie, true, index));
            before.chain((0..of_trie.after.len()).map(move |index| (trie, false, index)))
        });
        let nodes: Vec<_> = nodes.collect();
        dropped += nodes.len();
        nodes.into_par_iter().for_each(|(trie, before, index)| {
            let mut less = whole.clone();
            let of_trie = &mut less.tries[trie];
            let list = if before { &mut of_trie.before } else { &mut of_trie.after };
            let gone = list.remove(index);
            let error = less.apply(&update.diff, &Bulk).unwrap_err();
            let named = match &error {
                WitnessError::Missing(at) => at.hash,
                WitnessError::MissingAfter { hash, .. } => *hash,
                other => panic!("{other}"),
            };
            assert_eq!(named, gone.hash, "{error}");
        });
    }
    assert!(dropped > 900, "{dropped}");
}

/// A node that is in the trie before, and on no way of the block.
#[test]
fn a_witness_of_a_real_block_with_a_node_too_many_is_refused() {
    let (updates, engine) = (updates("mainnet_0_9.jsonl"), engine("flat"));
    let mut alive: BTreeMap<TrieId, Vec<ProofNode>> = BTreeMap::new();
    let mut added = 0;
    for update in &updates {
        let whole = engine.close_block_with_witness(update, &[]).unwrap().1;
        for (place, of_trie) in whole.tries.iter().enumerate() {
            let nodes = alive.entry(of_trie.trie).or_default();
            let shown: Vec<Felt> = of_trie.before.iter().map(|node| node.hash).collect();
            for node in nodes.iter().filter(|node| !shown.contains(&node.hash)) {
                let mut more = whole.clone();
                let list = &mut more.tries[place].before;
                list.push(*node);
                list.sort_by_key(|node| node.hash.to_bytes_be());
                let error = more.apply(&update.diff, &Bulk).unwrap_err();
                let named = matches!(error, WitnessError::Superfluous { hash, when: "before", .. } if hash == node.hash);
                assert!(named, "{error}");
                added += 1;
            }
            nodes.retain(|node| !shown.contains(&node.hash));
            nodes.extend(&of_trie.after);
        }
    }
    assert!(added > 200, "{added}");
}

/// What StarkWare's committer says of a trie: roots, and the preimages of the nodes that a prover needs.
struct CommitmentInfo {
    previous_root: Felt,
    updated_root: Felt,
    facts: BTreeMap<[u8; 32], Vec<Felt>>,
}

/// Reads bincode 1.3 with its default options: little-endian numbers, lengths as u64. A felt is its big-endian bytes without
/// leading zeros.
struct Bincode<'a>(&'a [u8]);

impl Bincode<'_> {
    fn bytes(&mut self, count: usize) -> &[u8] {
        let (bytes, rest) = self.0.split_at(count);
        self.0 = rest;
        bytes
    }
    fn length(&mut self) -> usize {
        u64::from_le_bytes(self.bytes(8).try_into().unwrap()).try_into().unwrap()
    }
    fn felt(&mut self) -> Felt {
        let length = self.length();
        Felt::from_bytes_be_slice(self.bytes(length))
    }
    fn list<T>(&mut self, read: impl Fn(&mut Self) -> T) -> Vec<T> {
        (0..self.length()).map(|_| read(self)).collect()
    }
    fn info(&mut self) -> CommitmentInfo {
        let (previous_root, updated_root) = (self.felt(), self.felt());
        assert_eq!(self.bytes(1), [251], "the height of every trie");
        let fact = |from: &mut Self| (from.felt().to_bytes_be(), from.list(Self::felt));
        CommitmentInfo { previous_root, updated_root, facts: self.list(fact).into_iter().collect() }
    }
}

/// The commitment infos of a block, by trie.
fn commitment_infos(file: &str) -> BTreeMap<TrieId, CommitmentInfo> {
    let compressed = fs::read(data("commitment-infos").join(file)).unwrap();
    let mut bytes = Vec::new();
    ruzstd::decoding::StreamingDecoder::new(compressed.as_slice()).unwrap().read_to_end(&mut bytes).unwrap();
    let mut from = Bincode(&bytes);
    let mut infos: BTreeMap<TrieId, CommitmentInfo> =
        [TrieId::Contracts, TrieId::Classes].into_iter().map(|trie| (trie, from.info())).collect();
    let storage = from.list(|from| (ContractAddress::try_from(from.felt()).unwrap(), from.info()));
    infos.extend(storage.into_iter().map(|(address, info)| (TrieId::Storage(address), info)));
    assert!(from.0.is_empty(), "{file}");
    infos
}

/// The preimage of a node as the committer writes it.
fn preimage(node: &Node) -> Vec<Felt> {
    match node {
        Node::Binary { left, right } => vec![*left, *right],
        Node::Edge { path, child } => vec![Felt::from(path.len() as u64), path.value(), *child],
    }
}

/// Checks a witness's part of a trie: it has all facts that the committer has, no node that is not under a root, and
/// beyond the facts only edges beside a fork. Returns how many these are.
#[track_caller]
fn check_facts(witness: &Witness, trie: TrieId, info: &CommitmentInfo, what: &str) -> usize {
    let of_trie = witness.tries.iter().find(|of_trie| of_trie.trie == trie);
    let lists = of_trie.map_or([&[][..], &[]], |of_trie| [&of_trie.before, &of_trie.after]);
    let ours: BTreeMap<[u8; 32], Node> =
        lists.into_iter().flatten().map(|listed| (listed.hash.to_bytes_be(), listed.node)).collect();
    for (hash, expected) in &info.facts {
        let node = ours.get(hash).unwrap_or_else(|| {
            panic!("{what}: no fact {:#x} of the {trie}: {expected:x?}", Felt::from_bytes_be(hash))
        });
        assert_eq!(preimage(node), *expected, "{what}: {trie}");
    }
    let mut under_a_root = BTreeSet::new();
    let mut open = vec![info.previous_root, info.updated_root];
    while let Some(hash) = open.pop() {
        if let Some(node) = ours.get(&hash.to_bytes_be())
            && under_a_root.insert(hash.to_bytes_be())
        {
            match node {
                Node::Binary { left, right } => open.extend([*left, *right]),
                Node::Edge { child, .. } => open.push(*child),
            }
        }
    }
    for (hash, node) in &ours {
        assert!(under_a_root.contains(hash), "{what}: {node:?} of the {trie} is under no root");
        let [left, right] = node.preimage();
        let pair = match trie {
            TrieId::Classes => starknet_crypto::poseidon_hash(left, right),
            _ => starknet_crypto::pedersen_hash(&left, &right),
        };
        assert_eq!((pair + node.addend()).to_bytes_be(), *hash, "{what}: {trie}");
    }
    let forks = info.facts.values().filter(|felts| felts.len() == 2).flatten();
    let beside_a_fork: BTreeSet<[u8; 32]> = forks.map(Felt::to_bytes_be).collect();
    let beyond: Vec<_> = ours.iter().filter(|(hash, _)| !info.facts.contains_key(*hash)).collect();
    for (hash, node) in &beyond {
        let explained = matches!(node, Node::Edge { .. }) && beside_a_fork.contains(*hash);
        assert!(explained, "{what}: {node:?} of the {trie} is not needed");
    }
    beyond.len()
}

/// Blocks with the commitment infos that StarkWare's committer made of them. What a witness has beyond these facts is what
/// stays of edges that the block split, and edges that a deletion merged with the ones above them: few.
#[test]
fn no_fact_of_starkwares_committer_is_missing_and_no_node_is_false() {
    for (dir, file, first, blocks) in [
        ("mainnet", "mainnet_0_9.jsonl", 0, 10),
        ("gap", "edge_left_at_its_last_bit.jsonl", 0, 2),
        ("window", "sepolia_789878_790377.jsonl.gz", 789_878, 6),
    ] {
        let (updates, engines) = (updates(file), engines());
        assert_eq!(fs::read_dir(data("commitment-infos").join(dir)).unwrap().count(), blocks);
        let (mut facts, mut beyond) = (0, 0);
        for (index, update) in updates.iter().take(blocks).enumerate() {
            let what = format!("{dir}, block {}", first + index);
            let witness = close(&engines, update, false, &what);
            let infos = commitment_infos(&format!("{dir}/{}.infos", first + index));
            let of = |trie| (infos[&trie].previous_root, infos[&trie].updated_root);
            let contracts = (witness.before.contracts.0, witness.after.contracts.0);
            assert_eq!(of(TrieId::Contracts), contracts, "{what}");
            assert_eq!(of(TrieId::Classes), (witness.before.classes.0, witness.after.classes.0), "{what}");
            assert!(witness.tries.iter().all(|of_trie| infos.contains_key(&of_trie.trie)), "{what}");
            for (trie, info) in infos {
                beyond += check_facts(&witness, trie, &info, &what);
                facts += info.facts.len();
            }
        }
        assert!(facts > 0 && beyond * 10 < facts, "{dir}: {beyond} beyond {facts}");
    }
}
