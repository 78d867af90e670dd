//! Proofs and witnesses as JSON, written here and read by [`input`](crate::input).
//!
//! Proofs are as `starknet_getStorageProof` has them. A witness has no form outside of this project; its nodes and
//! leaves are written as those of a proof are.

use flagstone_core::commitment::{ContractLeaf, Roots};
use flagstone_core::diff::Subject;
use flagstone_core::proof::{ContractLeafData, ProofNode, ProofRequest, StorageProof};
use flagstone_core::trie::{Node, TrieId};
use flagstone_core::types::{BlockNumber, ContractAddress};
use flagstone_core::witness::{Witness, WitnessTrie};
use serde_json::{Value, json};

fn felt(felt: &flagstone_core::Felt) -> String {
    format!("{felt:#x}")
}

fn node(listed: &ProofNode) -> Value {
    let node = match &listed.node {
        Node::Binary { left, right } => json!({ "left": felt(left), "right": felt(right) }),
        Node::Edge { path, child } => {
            json!({ "path": felt(&path.value()), "length": path.len(), "child": felt(child) })
        }
    };
    json!({ "node_hash": felt(&listed.hash), "node": node })
}

fn nodes(list: &[ProofNode]) -> Vec<Value> {
    list.iter().map(node).collect()
}

fn roots(roots: &Roots) -> Value {
    json!({
        "contracts_tree_root": roots.contracts.to_string(),
        "classes_tree_root": roots.classes.to_string(),
    })
}

/// The result of `starknet_getStorageProof`. `block_hash` is left out if it is not known.
pub fn storage_proof(proof: &StorageProof) -> Value {
    let leaf = |data: &ContractLeafData| {
        let mut leaf = json!({ "nonce": data.nonce.to_string(), "class_hash": data.class_hash.to_string() });
        if let Some(root) = &data.storage_root {
            leaf["storage_root"] = json!(root.to_string());
        }
        leaf
    };
    let storage: Vec<Vec<Value>> = proof.contracts_storage_proofs.iter().map(|list| nodes(list)).collect();
    let mut global_roots = roots(&proof.global_roots.roots);
    if let Some(hash) = &proof.global_roots.block_hash {
        global_roots["block_hash"] = json!(hash.to_string());
    }
    json!({
        "classes_proof": nodes(&proof.classes_proof),
        "contracts_proof": {
            "nodes": nodes(&proof.contracts_proof),
            "contract_leaves_data": proof.contract_leaves_data.iter().map(leaf).collect::<Vec<_>>(),
        },
        "contracts_storage_proofs": storage,
        "global_roots": global_roots,
    })
}

/// The parameters of `starknet_getStorageProof` for a block; `None` is the latest one.
pub fn proof_request(request: &ProofRequest, block: Option<BlockNumber>) -> Value {
    let texts = |list: &mut dyn Iterator<Item = String>| list.collect::<Vec<_>>();
    let entries = request.contracts_storage_keys.iter().map(|entry| {
        json!({
            "contract_address": entry.contract_address.to_string(),
            "storage_keys": texts(&mut entry.storage_keys.iter().map(ToString::to_string)),
        })
    });
    json!({
        "block_id": block.map_or_else(|| json!("latest"), |block| json!({ "block_number": block.0 })),
        "class_hashes": texts(&mut request.class_hashes.iter().map(ToString::to_string)),
        "contract_addresses": texts(&mut request.contract_addresses.iter().map(ToString::to_string)),
        "contracts_storage_keys": entries.collect::<Vec<_>>(),
    })
}

/// A witness.
pub fn witness(witness: &Witness) -> Value {
    let contract = |(address, leaf): &(ContractAddress, ContractLeaf)| {
        json!({
            "contract_address": address.to_string(),
            "nonce": leaf.nonce.to_string(),
            "class_hash": leaf.class_hash.to_string(),
            "storage_root": leaf.storage_root.to_string(),
        })
    };
    let classes = witness.classes.iter().map(|(class_hash, compiled)| {
        json!({ "class_hash": class_hash.to_string(), "compiled_class_hash": compiled.to_string() })
    });
    json!({
        "witness_version": Witness::VERSION,
        "block_number": witness.block.map(|block| block.0),
        "before": roots(&witness.before),
        "after": roots(&witness.after),
        "reads": witness.reads.iter().map(read).collect::<Vec<_>>(),
        "contract_leaves": witness.contracts.iter().map(contract).collect::<Vec<_>>(),
        "class_leaves": classes.collect::<Vec<_>>(),
        "tries": witness.tries.iter().map(trie).collect::<Vec<_>>(),
    })
}

fn read(subject: &Subject) -> Value {
    match subject {
        Subject::Storage(address, key) => {
            json!({ "read": "storage", "contract_address": address.to_string(), "key": key.to_string() })
        }
        Subject::ClassHash(address) => {
            json!({ "read": "class_hash", "contract_address": address.to_string() })
        }
        Subject::Nonce(address) => json!({ "read": "nonce", "contract_address": address.to_string() }),
        Subject::CompiledClassHash(class_hash) => {
            json!({ "read": "compiled_class_hash", "class_hash": class_hash.to_string() })
        }
    }
}

fn trie(of: &WitnessTrie) -> Value {
    let mut trie = match of.trie {
        TrieId::Contracts => json!({ "trie": "contracts" }),
        TrieId::Classes => json!({ "trie": "classes" }),
        TrieId::Storage(address) => json!({ "trie": "storage", "contract_address": address.to_string() }),
    };
    trie["before"] = json!(nodes(&of.before));
    trie["after"] = json!(nodes(&of.after));
    trie
}
