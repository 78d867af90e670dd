//! Storage proofs: a real one, every small change to it, and those that the layouts make.

use std::io::Write;

use flagstone::core::Felt;
use flagstone::core::commitment::{ContractLeaf, Roots, class_leaf_preimage};
use flagstone::core::diff::StateDiff;
use flagstone::core::hash::{Bulk, poseidon};
use flagstone::core::proof::{
    Anchor, ContractLeafData, ContractStorageKeys, ProofError, ProofNode, ProofRequest, Proven, StorageProof,
    VerifiedProof, prove_range, prove_storage,
};
use flagstone::core::trie::{Node, Path, TrieId};
use flagstone::core::types::{BlockNumber, ClassHash, ContractAddress, StorageKey, TrieKey};
use flagstone::input::{InputError, ProofFile, read_proof};
use flagstone::{Cadence, Engine, Error, ErrorKind, StateUpdate, wire};
use flagstone_testkit::conformance::Touched;
use flagstone_testkit::reference::trie_root;
use flagstone_testkit::strategies::blocks;
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
use rayon::prelude::*;

use crate::support::{Place, config, data, layouts, updates};

const REAL: &str = "sepolia_10149255_proof.json";

fn real() -> ProofFile {
    read_proof(&data(REAL)).unwrap()
}

fn anchor(file: &ProofFile) -> Anchor {
    let rule = file.block.starknet_version.map(|version| version.commitment_rule());
    Anchor { commitment: file.block.new_root, rule, block_hash: file.block.hash }
}

fn request(file: &ProofFile) -> &ProofRequest {
    &file.request.as_ref().unwrap().request
}

#[test]
fn the_real_proof_verifies_and_tells_every_asked_key() {
    let file = real();
    let proof = &file.proof;
    assert_eq!((proof.contracts_proof.len(), proof.classes_proof.len()), (46, 35));
    assert_eq!(proof.contracts_storage_proofs.iter().map(Vec::len).collect::<Vec<_>>(), [41, 0]);
    assert_eq!(file.request.as_ref().unwrap().block, Some(BlockNumber(10_149_255)));
    assert_eq!(file.block.number, Some(BlockNumber(10_149_255)));

    let verified = proof.verify(request(&file), &anchor(&file), &Bulk).unwrap();
    let [token, other] = request(&file).contract_addresses[..] else { panic!("two contracts") };
    let Proven::Value(leaf) = verified.contract(&token) else { panic!("the contract is there") };
    assert_eq!(leaf.class_hash, request(&file).class_hashes[0]);
    let Proven::Value(leaf) = verified.contract(&other) else { panic!("the contract is there") };
    assert_eq!((leaf.class_hash, leaf.storage_root), (request(&file).class_hashes[1], 0.into()));
    for class_hash in &request(&file).class_hashes {
        assert!(matches!(verified.class(class_hash), Proven::Value(_)), "class {class_hash}");
    }
    let keys = &request(&file).contracts_storage_keys[0].storage_keys;
    let values: Vec<_> = keys.iter().map(|key| verified.storage(&token, key)).collect();
    assert!(values.iter().all(|value| *value != Proven::NotCovered));
    assert!(values.iter().any(|value| matches!(value, Proven::Value(_))));
    assert!(values.contains(&Proven::Absent));
    // A contract whose storage trie is empty has no value anywhere.
    assert_eq!(verified.storage(&other, &keys[0]), Proven::Absent);
    assert_eq!(verified.contract(&0x5555.into()), Proven::NotCovered);
    assert_eq!(verified.storage(&token, &0x5555.into()), Proven::NotCovered);
    assert_eq!(verified.class(&ClassHash(Felt::MAX)), Proven::Absent, "a hash that no leaf can have");
}

#[test]
fn what_is_written_is_what_was_read() {
    let file = real();
    let text: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(data(REAL)).unwrap()).unwrap();
    assert_eq!(wire::storage_proof(&file.proof), text["result"]);
    assert_eq!(wire::proof_request(request(&file), file.block.number), text["request"]);
}

/// All felts of a proof, to be changed in place; and, apart, the paths and lengths of edges.
fn felts(proof: &mut StorageProof) -> Vec<&mut Felt> {
    let mut felts = Vec::new();
    let StorageProof {
        classes_proof,
        contracts_proof,
        contract_leaves_data,
        contracts_storage_proofs,
        global_roots,
    } = proof;
    let lists = [classes_proof, contracts_proof].into_iter().chain(contracts_storage_proofs);
    for ProofNode { hash, node } in lists.flatten() {
        felts.push(hash);
        match node {
            Node::Binary { left, right } => felts.extend([left, right]),
            Node::Edge { child, .. } => felts.push(child),
        }
    }
    for ContractLeafData { nonce, class_hash, storage_root } in contract_leaves_data {
        felts.extend([&mut nonce.0, &mut class_hash.0]);
        felts.extend(storage_root.iter_mut().map(|root| &mut root.0));
    }
    felts.extend([&mut global_roots.roots.contracts.0, &mut global_roots.roots.classes.0]);
    felts.extend(global_roots.block_hash.iter_mut().map(|hash| &mut hash.0));
    felts
}

/// The felt whose number differs in one bit; `None` if there is no such felt.
fn flipped(felt: &Felt, bit: usize) -> Option<Felt> {
    let mut bytes = felt.to_bytes_be();
    bytes[31 - bit / 8] ^= 1 << (bit % 8);
    flagstone::core::felt::felt_from_be(&bytes).ok()
}

/// Each bit of the 252 of each hash, leaf, root, nonce and class hash.
#[test]
fn every_single_bit_change_of_a_felt_is_refused() {
    let file = real();
    let count = felts(&mut file.proof.clone()).len();
    assert_eq!(count, 111 * 3 + 11 * 2 + 6 + 3);
    let refused = |(index, bit): (usize, usize)| {
        let mut proof = file.proof.clone();
        let mut felts = felts(&mut proof);
        let Some(other) = flipped(felts[index], bit) else { return 0 };
        *felts[index] = other;
        let outcome = proof.verify(request(&file), &anchor(&file), &Bulk);
        assert!(outcome.is_err(), "felt {index}, bit {bit}");
        1
    };
    let all: Vec<_> = (0..count).flat_map(|index| (0..252).map(move |bit| (index, bit))).collect();
    let changes: usize = all.into_par_iter().map(refused).sum();
    assert!(changes > count * 250, "{changes}");
}

/// The same for paths of edges, with any length that fits.
#[test]
fn every_change_of_an_edges_path_or_length_is_refused() {
    let file = real();
    let mut changes = 0;
    for list in 0..3 {
        let of = |proof: &StorageProof| match list {
            0 => proof.classes_proof.clone(),
            1 => proof.contracts_proof.clone(),
            _ => proof.contracts_storage_proofs[0].clone(),
        };
        for (index, listed) in of(&file.proof).into_iter().enumerate() {
            let Node::Edge { path, child } = listed.node else { continue };
            let others =
                (0..path.len()).filter_map(|bit| Path::of_value(&flipped(&path.value(), bit)?, path.len()));
            let lengths = (0..8).filter_map(|bit| Path::of_value(&path.value(), path.len() ^ (1 << bit)));
            for path in others.chain(lengths) {
                let mut proof = file.proof.clone();
                let nodes = match list {
                    0 => &mut proof.classes_proof,
                    1 => &mut proof.contracts_proof,
                    _ => &mut proof.contracts_storage_proofs[0],
                };
                nodes[index].node = Node::Edge { path, child };
                assert!(
                    proof.verify(request(&file), &anchor(&file), &Bulk).is_err(),
                    "{list}, {index}, {path}"
                );
                changes += 1;
            }
        }
    }
    assert!(changes > 1000, "{changes}");
}

fn read_text(text: &[u8]) -> Result<ProofFile, InputError> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text).unwrap();
    read_proof(file.path())
}

/// Each bit of the file's text, at random: the file is not read, or reads as the same proof (another case of a digit,
/// another blank), or is refused. Only the note and the names that are not looked at may change freely.
#[test]
fn a_flipped_bit_of_the_text_is_no_other_proof() {
    let file = real();
    let text = std::fs::read(data(REAL)).unwrap();
    let begin = text.windows(9).position(|window| window == b"\"result\":").unwrap() + 9;
    let config = ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let outcome = runner.run(&(begin..text.len(), 0..8), |(at, bit)| {
        let mut changed = text.clone();
        changed[at] ^= 1u8 << bit;
        if let Ok(read) = read_text(&changed)
            && read.proof != file.proof
        {
            let verified = read.proof.verify(request(&file), &anchor(&file), &Bulk);
            prop_assert!(verified.is_err(), "byte {}, bit {}", at, bit);
        }
        Ok(())
    });
    outcome.unwrap();
}

#[test]
fn a_felt_may_be_written_with_leading_zeros_and_says_the_same() {
    let text = std::fs::read_to_string(data(REAL)).unwrap();
    let padded = text.replace("\"0x4718f5a", "\"0x0004718F5A").replace("\"0x0\"", "\"0x000\"");
    assert_ne!(padded, text);
    assert_eq!(read_text(padded.as_bytes()).unwrap(), real());
}

#[track_caller]
fn check_refused(change: impl FnOnce(&mut ProofFile), expected: &str) {
    let mut file = real();
    change(&mut file);
    let error = file.proof.verify(request(&file), &anchor(&file), &Bulk).map(|_| ()).unwrap_err();
    assert_eq!(error.to_string(), expected);
}

#[test]
fn errors_name_the_node_what_it_is_and_what_was_expected() {
    let file = real();
    let (storage, class) = (file.proof.contracts_storage_proofs[0][0], file.proof.classes_proof[3]);
    let [left, right] = class.node.preimage();
    let hashes_to = starknet_crypto::pedersen_hash(&left, &right);
    let token = request(&file).contract_addresses[0];
    check_refused(
        |file| file.proof.contracts_proof.push(class),
        &format!("node {:#x} of the contracts trie: its content hashes to {hashes_to:#x}", class.hash),
    );
    let root = file.proof.global_roots.roots.contracts;
    check_refused(
        |file| file.proof.contracts_proof.push(storage),
        &format!(
            "node {:#x} of the contracts trie: it is superfluous, no way from root {root} to an asked key leads over it",
            storage.hash
        ),
    );
    check_refused(
        |file| file.proof.contracts_storage_proofs[0].push(storage),
        &format!("node {:#x} of the storage trie of contract {token}: it is listed twice", storage.hash),
    );
    check_refused(
        |file| file.proof.contract_leaves_data.truncate(1),
        "contract_leaves_data: 1 entries; expected 2, as many as were asked for",
    );
    check_refused(
        |file| file.proof.global_roots.block_hash = None,
        &format!("block hash: the proof is for no stated block; expected {}", file.block.hash.unwrap()),
    );
    let other = Roots { classes: 5.into(), ..file.proof.global_roots.roots };
    let computed = other.commitment(anchor(&file).rule.unwrap());
    check_refused(
        |file| file.proof.global_roots.roots = other,
        &format!(
            "state commitment: the roots of the proof give {computed}; expected {}",
            file.block.new_root.unwrap()
        ),
    );
    let mut file = real();
    file.proof.contract_leaves_data[0].nonce = 7.into();
    let outcome = file.proof.verify(request(&file), &anchor(&file), &Bulk).map(|_| ());
    let named = |error| matches!(error, ProofError::LeafData { address, .. } if address == token);
    assert!(outcome.is_err_and(named));
}

/// An engine with some blocks of a file in it.
fn engine(layout: &str, updates: &[StateUpdate]) -> Engine {
    let engine = Place::memory().open(layout, config(Cadence::AtClose, 1));
    updates.iter().for_each(|update| drop(engine.close_block(update).unwrap()));
    engine
}

fn prove(engine: &Engine, block: Option<BlockNumber>, request: &ProofRequest) -> Result<StorageProof, Error> {
    engine.at_commitment(block, |tries, _, root| Ok(prove_storage(tries, root.roots, request, None)?))
}

fn request_for(diffs: &[StateDiff]) -> ProofRequest {
    Touched::by(diffs).request()
}

#[test]
fn proofs_of_every_layout_are_identical_and_verify_against_published_roots() {
    for (file, counts) in [("mainnet_0_9.jsonl", [1, 4, 10]), ("sepolia_0_7.jsonl", [1, 3, 8])] {
        let updates = updates(file);
        let diffs: Vec<StateDiff> = updates.iter().map(|update| update.diff.clone()).collect();
        let request = request_for(&diffs);
        for count in counts {
            let proofs = layouts().map(|(layout, _)| {
                let engine = engine(layout, &updates[..count]);
                prove(&engine, updates[count - 1].block_number, &request).unwrap()
            });
            let proofs: Vec<StorageProof> = proofs.collect();
            assert!(proofs.iter().all(|proof| *proof == proofs[0]), "{file} after {count} blocks");
            let rule = "0.12.0".parse::<flagstone::core::commitment::StarknetVersion>().unwrap();
            let anchor = Anchor {
                commitment: updates[count - 1].new_root,
                rule: Some(rule.commitment_rule()),
                block_hash: None,
            };
            let verified = proofs[0].verify(&request, &anchor, &Bulk).unwrap();
            check_values(&verified, &diffs[..count], &request);
        }
    }
}

/// The last value that diffs give each asked slot is what the proof says.
fn check_values(verified: &VerifiedProof, diffs: &[StateDiff], request: &ProofRequest) {
    let last = |address: &ContractAddress, key: &StorageKey| {
        let contracts = diffs.iter().rev().filter_map(|diff| diff.contract(address));
        let mut entries = contracts.flat_map(|contract| &contract.storage);
        entries.find(|entry| entry.0 == *key).map(|entry| entry.1).unwrap_or_default()
    };
    for entry in &request.contracts_storage_keys {
        for key in &entry.storage_keys {
            let proven = verified.storage(&entry.contract_address, key).value_or(0.into());
            assert_eq!(proven, Some(last(&entry.contract_address, key)));
        }
    }
}

#[test]
fn proofs_of_the_windows_are_identical_and_verify_for_every_layout() {
    for file in ["sepolia_309146_309401.jsonl.zst", "sepolia_789878_790377.jsonl.gz"] {
        let updates = updates(file);
        let engines: Vec<Engine> = layouts().map(|(layout, _)| engine(layout, &[])).collect();
        for (index, update) in updates.iter().enumerate() {
            engines.iter().for_each(|engine| drop(engine.close_block(update).unwrap()));
            if index % 50 == 7 {
                let diffs: Vec<StateDiff> =
                    updates[..index + 2].iter().map(|update| update.diff.clone()).collect();
                let request = request_for(&diffs[index - 5..]);
                let proofs: Vec<_> = engines
                    .iter()
                    .map(|engine| prove(engine, update.block_number, &request).unwrap())
                    .collect();
                assert!(proofs.iter().all(|proof| *proof == proofs[0]), "{file}:{index}");
                let rule = update.starknet_version.map(|version| version.commitment_rule());
                let anchor = Anchor { commitment: update.new_root, rule, block_hash: None };
                let verified = proofs[0].verify(&request, &anchor, &Bulk).unwrap();
                check_values(&verified, &diffs[..=index], &request);
            }
        }
    }
}

#[test]
fn a_trie_fetched_in_pieces_has_its_root() {
    let updates = updates("sepolia_309146_309401.jsonl.zst");
    let diffs: Vec<StateDiff> = updates.iter().map(|update| update.diff.clone()).collect();
    let contracts = diffs.iter().flat_map(StateDiff::contracts);
    let most_written = contracts.max_by_key(|contract| contract.storage.len()).unwrap().address;
    let mut fetched = Vec::new();
    for (layout, _) in layouts() {
        let engine = engine(layout, &updates);
        let pieces = engine.at_commitment(None, |tries, _, root| {
            let storage_root = tries.contract_leaf(&most_written)?.storage_root.0;
            let tries_and_roots = [
                (TrieId::Contracts, root.roots.contracts.0),
                (TrieId::Classes, root.roots.classes.0),
                (TrieId::Storage(most_written), storage_root),
            ];
            let mut pieces = Vec::new();
            for (trie, root) in tries_and_roots {
                let mut first = TrieKey::default();
                loop {
                    let piece = prove_range(tries, trie, root, first, 50.try_into().unwrap())?;
                    let proven = piece.verify(trie, root, &Bulk).unwrap();
                    let last = proven.last;
                    pieces.push((trie, root, piece));
                    if last == TrieKey::MAX {
                        break;
                    }
                    first = TrieKey::try_from(last.to_felt() + Felt::ONE).unwrap();
                }
            }
            Ok(pieces)
        });
        fetched.push(pieces.unwrap());
    }
    assert!(fetched.iter().all(|pieces| *pieces == fetched[0]), "every layout gives the same pieces");
    assert!(fetched[0].len() > 6, "{}", fetched[0].len());
    for pieces in fetched[0].chunk_by(|a, b| a.0 == b.0) {
        let (trie, root, _) = pieces[0];
        let leaves = pieces.iter().flat_map(|(_, _, piece)| piece.leaves.iter().copied());
        let hash = |a: Felt, b: Felt| match trie {
            TrieId::Classes => starknet_crypto::poseidon_hash(a, b),
            _ => starknet_crypto::pedersen_hash(&a, &b),
        };
        assert_eq!(trie_root(leaves, hash), root, "{trie}");
    }
}

#[test]
fn random_states_give_identical_proofs_on_every_layout() {
    let config = ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let outcome = runner.run(&blocks(1..6), |diffs| {
        let engines: Vec<Engine> = layouts().map(|(layout, _)| engine(layout, &[])).collect();
        let request = request_for(&diffs);
        for diff in &diffs {
            let version = "0.14.0".parse().ok();
            let update = StateUpdate { starknet_version: version, ..StateUpdate::from(diff.clone()) };
            engines.iter().for_each(|engine| drop(engine.close_block(&update).unwrap()));
            let proofs: Vec<_> =
                engines.iter().map(|engine| prove(engine, None, &request).unwrap()).collect();
            prop_assert!(proofs.iter().all(|proof| *proof == proofs[0]));
        }
        Ok(())
    });
    outcome.unwrap();
}

#[test]
fn the_empty_state_proves_that_nothing_is_there() {
    for (layout, _) in layouts() {
        let engine = engine(layout, &[]);
        let request = ProofRequest {
            class_hashes: vec![5.into()],
            contract_addresses: vec![1.into()],
            contracts_storage_keys: vec![ContractStorageKeys {
                contract_address: 1.into(),
                storage_keys: vec![2.into()],
            }],
        };
        let proof = prove(&engine, None, &request).unwrap();
        assert_eq!(proof.global_roots.roots, Roots::default());
        assert!(proof.classes_proof.is_empty() && proof.contracts_storage_proofs == [vec![]]);
        let anchor = Anchor { commitment: Some(0.into()), ..Anchor::default() };
        let verified = proof.verify(&request, &anchor, &Bulk).unwrap();
        assert_eq!(verified.contract(&1.into()), Proven::Absent);
        assert_eq!(verified.class(&5.into()), Proven::Absent);
        assert_eq!(verified.storage(&1.into(), &2.into()), Proven::Absent);
    }
}

#[test]
fn a_proof_of_an_earlier_block_is_that_of_a_database_which_ends_there() {
    let updates = updates("mainnet_0_9.jsonl");
    let diffs: Vec<StateDiff> = updates.iter().map(|update| update.diff.clone()).collect();
    let request = request_for(&diffs);
    for (layout, _) in layouts() {
        let whole = engine(layout, &updates);
        for (index, update) in updates.iter().enumerate() {
            let proof = prove(&whole, Some(BlockNumber(index as u64)), &request).unwrap();
            let ends_there = engine(layout, &updates[..=index]);
            assert!(proof == prove(&ends_there, None, &request).unwrap(), "{layout}, block {index}");
            let anchor = Anchor { commitment: update.new_root, ..Anchor::default() };
            let verified = proof.verify(&request, &anchor, &Bulk).unwrap();
            check_values(&verified, &diffs[..=index], &request);
        }
        let error = prove(&whole, Some(BlockNumber(10)), &request).unwrap_err();
        assert_eq!(error.to_string(), "block 10 is not there: the last block is block 9");
        assert_eq!((error.kind(), error.block()), (ErrorKind::Input, Some(BlockNumber(10))));
    }
}

#[test]
fn a_class_leaf_is_that_of_its_compiled_class_hash() {
    let update = StateUpdate {
        starknet_version: "0.14.0".parse().ok(),
        ..StateUpdate::from(StateDiff::builder().class(5.into(), 55.into()).build().unwrap())
    };
    let engine = engine("flat", &[update]);
    let request = ProofRequest { class_hashes: vec![5.into(), 4.into()], ..ProofRequest::default() };
    let proof = prove(&engine, None, &request).unwrap();
    let commitment = Some(engine.head().root.commitment);
    let verified = proof.verify(&request, &Anchor { commitment, ..Anchor::default() }, &Bulk).unwrap();
    let [prefix, compiled] = class_leaf_preimage(55.into());
    assert_eq!(verified.class(&5.into()), Proven::Value(poseidon(&prefix, &compiled)));
    assert_eq!(verified.class(&4.into()), Proven::Absent);
}

/// A server of an early version of the specification leaves the storage root out: it is what the storage proof shows, or
/// that of an empty trie, which has no nodes to be shown.
#[test]
fn a_storage_root_that_is_not_stated_is_the_top_of_the_storage_proof_or_zero() {
    let mut file = real();
    file.proof.contract_leaves_data.iter_mut().for_each(|data| data.storage_root = None);
    let [token, other] = request(&file).contract_addresses[..] else { panic!("two contracts") };
    let verify = |file: &ProofFile| file.proof.verify(request(file), &anchor(file), &Bulk);
    let verified = verify(&file).unwrap();
    assert_eq!(verified.contract(&token), real_leaf(&token));
    assert_eq!(verified.contract(&other), real_leaf(&other));
    let Proven::Value(leaf) = real_leaf(&other) else { panic!("the contract is there") };
    assert!(leaf.storage_root.is_zero());

    // Zero is tried, not believed.
    let mut wrong = file.clone();
    wrong.proof.contract_leaves_data[1].nonce = 1.into();
    assert_eq!(verify(&wrong).map(|_| ()), Err(ProofError::NoStorageRoot(other)));
    // With no slot of it asked for, nothing shows a root that is not zero.
    let asked = &mut file.request.as_mut().unwrap().request;
    asked.contracts_storage_keys.clear();
    file.proof.contracts_storage_proofs.clear();
    let error = verify(&file).unwrap_err();
    assert_eq!(error, ProofError::NoStorageRoot(token));
    assert!(
        error.to_string().ends_with("ask for a storage key of the contract too (contracts_storage_keys)")
    );
    // Where the trie has no leaf, none can be right.
    let asked = &mut file.request.as_mut().unwrap().request;
    asked.contract_addresses = vec![token];
    file.proof.contract_leaves_data.truncate(1);
    file.proof.contracts_proof.clear();
    let empty = Anchor::default();
    file.proof.global_roots.roots.contracts = 0.into();
    let error = file.proof.verify(request(&file), &empty, &Bulk).unwrap_err();
    assert!(matches!(error, ProofError::LeafData { .. }), "{error}");
    // Nor is a leaf proven that the nodes do not lead to.
    file.proof.global_roots.roots.contracts = 5.into();
    let verified = file.proof.verify(request(&file), &empty, &Bulk).unwrap();
    assert_eq!(verified.contract(&token), Proven::NotCovered);
}

/// What the real proof says of a contract.
fn real_leaf(address: &ContractAddress) -> Proven<ContractLeaf> {
    let file = real();
    file.proof.verify(request(&file), &anchor(&file), &Bulk).unwrap().contract(address)
}

#[test]
fn slots_of_a_contract_that_was_not_asked_for_are_not_covered() {
    let updates = updates("mainnet_0_9.jsonl");
    let engine = engine("flat", &updates);
    let contract = updates[0].diff.contracts().iter().find(|contract| !contract.storage.is_empty()).unwrap();
    let (address, (key, value)) = (contract.address, contract.storage[0]);
    let slot = ContractStorageKeys { contract_address: address, storage_keys: vec![key] };
    let mut request = ProofRequest { contracts_storage_keys: vec![slot], ..ProofRequest::default() };
    let anchor = Anchor { commitment: updates[9].new_root, ..Anchor::default() };

    let alone = prove(&engine, None, &request).unwrap();
    let unanchored = Anchor::default();
    let verified = alone.verify(&request, &unanchored, &Bulk).unwrap();
    assert_eq!(verified.storage(&address, &key), Proven::NotCovered);
    // Nothing shows that the commitment is a contracts root.
    let outcome = alone.verify(&request, &anchor, &Bulk).map(|_| ());
    assert_eq!(outcome, Err(ProofError::ContractsRootNotShown(updates[9].new_root.unwrap())));

    request.contract_addresses.push(address);
    let proof = prove(&engine, None, &request).unwrap();
    let verified = proof.verify(&request, &anchor, &Bulk).unwrap();
    assert_eq!(verified.storage(&address, &key), Proven::Value(value));
}

/// Nodes that refer to each other as no honest ones can are bounded work and an error, never a panic.
#[test]
fn hostile_shapes_are_refused() {
    let hash_of = |node: &Node| {
        let [left, right] = node.preimage();
        flagstone::core::hash::pedersen(&left, &right) + node.addend()
    };
    let listed = |node: Node| ProofNode { hash: hash_of(&node), node };
    let edge = |bits: usize, child: Felt| {
        listed(Node::Edge { path: Path::of_value(&Felt::ZERO, bits).unwrap(), child })
    };
    let request = ProofRequest { contract_addresses: vec![0.into()], ..ProofRequest::default() };
    let verify = |nodes: Vec<ProofNode>, root: Felt| {
        let mut proof = StorageProof { contracts_proof: nodes, ..StorageProof::default() };
        proof
            .contract_leaves_data
            .push(ContractLeafData { storage_root: Some(0.into()), ..ContractLeafData::default() });
        proof.global_roots.roots.contracts = root.into();
        proof.verify(&request, &Anchor::default(), &Bulk).map(|_| ())
    };
    let leaf = Felt::from(9u64);
    let lower = edge(250, leaf);
    let upper = edge(1, lower.hash);
    assert!(
        matches!(verify(vec![upper, lower], upper.hash), Err(ProofError::Misplaced { .. })),
        "an edge below an edge"
    );
    let whole = edge(251, leaf);
    let above = listed(Node::Binary { left: whole.hash, right: leaf });
    assert!(matches!(verify(vec![above, whole], above.hash), Err(ProofError::Misplaced { .. })), "too deep");
    let none = listed(Node::Binary { left: Felt::ZERO, right: leaf });
    assert!(matches!(verify(vec![none], none.hash), Err(ProofError::Malformed { .. })), "a zero child");
    let no_bits = listed(Node::Edge { path: Path::ROOT, child: leaf });
    assert!(matches!(verify(vec![no_bits], no_bits.hash), Err(ProofError::Malformed { .. })), "no bits");
    // A tower of binary nodes that ends nowhere, with each node on both sides of the next.
    let mut tower = vec![listed(Node::Binary { left: leaf, right: leaf })];
    for _ in 0..300 {
        let below = tower[tower.len() - 1].hash;
        tower.push(listed(Node::Binary { left: below, right: below }));
    }
    let top = tower[300].hash;
    assert!(matches!(verify(tower, top), Err(ProofError::LeafData { .. } | ProofError::Superfluous { .. })));
}
