//! `flagstone prove` and `flagstone verify-proof`: storage proofs out and in.

use std::collections::BTreeMap;

use flagstone::core::commitment::ContractLeaf;
use flagstone::core::error::StateError;
use flagstone::core::hash::Bulk;
use flagstone::core::proof::{
    Anchor, ContractStorageKeys, ProofRequest, Proven, VerifiedProof, prove_storage,
};
use flagstone::core::types::{BlockNumber, ContractAddress, StorageKey};
use flagstone::input::{self, AskedProof, ProofFile};
use flagstone::{EngineConfig, Error, database, wire};
use serde_json::{Value, json};

use super::output::{DIM, GOOD, Output, styled};
use super::{Failure, Prove, VerifyProof};

pub fn prove(args: &Prove, output: &mut Output) -> Result<(), Failure> {
    let asked = match &args.request {
        Some(file) => input::read_proof_request(file)?,
        None => AskedProof { request: request_of(args), ..AskedProof::default() },
    };
    if let Some(hash) = asked.block_hash {
        return Err(Failure::usage(format!(
            "the request is for the block with hash {hash}; the database knows blocks by number, ask with block_number"
        )));
    }
    let block = match (args.block.map(BlockNumber), asked.block) {
        (Some(block), Some(other)) if block != other => {
            return Err(Failure::usage(format!("--block is {block}, but the request is for block {other}")));
        }
        (block, other) => block.or(other),
    };
    let engine = database::open(&args.data, None, EngineConfig::default())?;
    engine.commit()?;
    let object = engine.at_commitment(block, |tries, block, root| {
        let proof = prove_storage(tries, root.roots, &asked.request, args.block_hash);
        let mut facts = json!({
            "block_number": block.map(|block| block.0),
            "new_root": root.commitment.to_string(),
        });
        if let Some(hash) = args.block_hash {
            facts["block_hash"] = json!(hash.to_string());
        }
        Ok(json!({
            "block": facts,
            "request": wire::proof_request(&asked.request, block),
            "result": wire::storage_proof(&proof.map_err(|error: StateError| Error::from(error))?),
        }))
    })?;
    output.line(&format!("{object:#}"))
}

/// The request that the options are. Contracts of slots are asked for too: without their leaves a slot proves nothing.
fn request_of(args: &Prove) -> ProofRequest {
    let mut slots: BTreeMap<ContractAddress, Vec<StorageKey>> = BTreeMap::new();
    for (address, key) in &args.storage {
        slots.entry(*address).or_default().push(*key);
    }
    let mut contract_addresses = args.contract.clone();
    contract_addresses.extend(slots.keys().filter(|address| !args.contract.contains(address)));
    let entry = |(contract_address, storage_keys)| ContractStorageKeys { contract_address, storage_keys };
    ProofRequest {
        class_hashes: args.class.clone(),
        contract_addresses,
        contracts_storage_keys: slots.into_iter().map(entry).collect(),
    }
}

pub fn verify(args: &VerifyProof, output: &mut Output) -> Result<(), Failure> {
    let file = input::read_proof(&args.proof)?;
    let asked = match &args.request {
        Some(request) => input::read_proof_request(request)?,
        None => file.request.clone().ok_or_else(|| {
            Failure::usage("the file has the result only; give what was asked with --request FILE")
        })?,
    };
    let name = args.proof.display();
    check_block(&asked, &file).map_err(|problem| Failure::refused(format!("{name}: {problem}")))?;
    let anchor = Anchor {
        commitment: args.root.or(file.block.new_root),
        // The file's own word on the version counts beside its own word on the root only.
        rule: args
            .starknet_version
            .or(if args.root.is_none() { file.block.starknet_version } else { None })
            .map(|version| version.commitment_rule()),
        block_hash: args.block_hash.or(file.block.hash),
    };
    let verified = file.proof.verify(&asked.request, &anchor, &Bulk);
    let verified = verified.map_err(|error| Failure::refused(format!("{name}: {error}")))?;
    let claims = claims(&verified, &asked.request);
    if args.json {
        output.line(&report(&verified, &claims, args, &anchor).to_string())?;
    } else {
        print(&claims, output)?;
    }
    if let Some(claim) = claims.iter().find(|claim| claim.proven == Proven::NotCovered) {
        return Err(Failure::refused(format!("{name}: the proof does not lead to {}", claim.subject)));
    }
    match (args.root, anchor.commitment) {
        (Some(_), _) => {}
        (None, Some(root)) => output.note(&format!(
            "compared with the root that the file states ({root}); name one that you trust with --root"
        )),
        (None, None) => output.note(
            "compared with no state commitment, so this holds for the proof's own roots only; name one with --root",
        ),
    }
    Ok(())
}

/// The proof must be for the block that was asked for.
fn check_block(asked: &AskedProof, file: &ProofFile) -> Result<(), String> {
    match (asked.block, file.block.number, asked.block_hash, file.proof.global_roots.block_hash) {
        (Some(asked), Some(got), ..) if asked != got => {
            Err(format!("the proof is for block {got}; the request is for block {asked}"))
        }
        (_, _, Some(asked), Some(got)) if asked != got => {
            Err(format!("the proof is for block {got}; the request is for block {asked}"))
        }
        (_, _, Some(asked), None) => {
            Err(format!("the proof does not state its block's hash; the request is for block {asked}"))
        }
        _ => Ok(()),
    }
}

/// What the proof says of one asked thing.
struct Claim {
    subject: String,
    name: Value,
    proven: Proven<Value>,
}

fn claims(verified: &VerifiedProof, request: &ProofRequest) -> Vec<Claim> {
    let class = |class_hash| Claim {
        subject: format!("class {class_hash}"),
        name: json!({ "class_hash": format!("{class_hash}") }),
        proven: verified.class(class_hash).map(|leaf| json!({ "leaf": format!("{leaf:#x}") })),
    };
    let contract = |address: &ContractAddress| Claim {
        subject: format!("contract {address}"),
        name: json!({ "contract_address": address.to_string() }),
        proven: verified.contract(address).map(|ContractLeaf { class_hash, storage_root, nonce }| {
            json!({
                "class_hash": class_hash.to_string(),
                "nonce": nonce.to_string(),
                "storage_root": storage_root.to_string(),
            })
        }),
    };
    let slots = request.contracts_storage_keys.iter().flat_map(|entry| {
        let address = &entry.contract_address;
        entry.storage_keys.iter().map(move |key| Claim {
            subject: format!("storage {key} of contract {address}"),
            name: json!({ "contract_address": address.to_string(), "key": key.to_string() }),
            proven: verified.storage(address, key).map(|value| json!({ "value": value.to_string() })),
        })
    });
    let classes = request.class_hashes.iter().map(class);
    classes.chain(request.contract_addresses.iter().map(contract)).chain(slots).collect()
}

fn print(claims: &[Claim], output: &mut Output) -> Result<(), Failure> {
    for Claim { subject, proven, .. } in claims {
        let said = match proven {
            Proven::Value(Value::Object(facts)) => facts
                .iter()
                .map(|(name, value)| format!("{name} {}", value.as_str().unwrap_or_default()))
                .collect::<Vec<_>>()
                .join(", "),
            Proven::Value(other) => other.to_string(),
            Proven::Absent => "absent".to_owned(),
            Proven::NotCovered => "not covered".to_owned(),
        };
        let verdict = if *proven == Proven::NotCovered { styled(DIM, "?") } else { styled(GOOD, "ok") };
        output.line(&format!("{subject}  {said}  {verdict}"))?;
    }
    Ok(())
}

fn report(verified: &VerifiedProof, claims: &[Claim], args: &VerifyProof, anchor: &Anchor) -> Value {
    let claim = |claim: &Claim| {
        let mut line = claim.name.clone();
        line["proven"] = match &claim.proven {
            Proven::Value(value) => value.clone(),
            Proven::Absent => json!("absent"),
            Proven::NotCovered => json!("not covered"),
        };
        line
    };
    let roots = verified.roots().roots;
    json!({
        "claims": claims.iter().map(claim).collect::<Vec<_>>(),
        "contracts_tree_root": roots.contracts.to_string(),
        "classes_tree_root": roots.classes.to_string(),
        "root": anchor.commitment.map(|root| root.to_string()),
        "root_given": args.root.is_some(),
    })
}
