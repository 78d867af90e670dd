//! `flagstone prove` and `flagstone verify-proof`: storage proofs out and in.

use std::collections::{BTreeMap, HashSet};
use std::hash::Hash;

use flagstone::core::commitment::{CommitmentRule, ContractLeaf};
use flagstone::core::error::StateError;
use flagstone::core::hash::Bulk;
use flagstone::core::proof::{
    Anchor, ContractStorageKeys, ProofRequest, Proven, VerifiedProof, prove_storage,
};
use flagstone::core::types::{BlockNumber, ContractAddress, StorageKey};
use flagstone::input::{self, AskedProof, BlockTag, ProofFile};
use flagstone::{Error, wire};
use serde_json::{Value, json};

use super::args::{Prove, VerifyProof};
use super::failure::Failure;
use super::inspect::look;
use super::output::{DIM, GOOD, Output, styled};

pub fn prove(args: &Prove, output: &mut Output) -> Result<(), Failure> {
    let mut asked = match &args.request {
        Some(file) => input::read_proof_request(file)?,
        None => AskedProof::from(request_of(args)),
    };
    if args.request.is_some() {
        add_contracts_of_slots(&mut asked.request, output);
    }
    let block = block_of(args, &asked)?;
    let engine = look(&args.database, output)?;
    // The contract with the hashes of blocks; any other one would do.
    let any_contract = ContractAddress::from(1);
    let mut shows_root = false;
    let object = engine.at_commitment(block, |tries, block, root| {
        let mut request = asked.request.clone();
        // While no class is declared, the commitment may be the contracts root itself, as the node with that hash shows.
        shows_root = request.contract_addresses.is_empty()
            && root.roots.rule_matters()
            && root.commitment == root.roots.commitment(CommitmentRule::ContractsRootAlone);
        request.contract_addresses.extend(shows_root.then_some(any_contract));
        let proof = prove_storage(tries, root.roots, &request, args.block_hash);
        let mut facts = json!({
            "block_number": block.map(|block| block.0),
            "new_root": root.commitment.to_string(),
        });
        if let Some(hash) = args.block_hash {
            facts["block_hash"] = json!(hash.to_string());
        }
        Ok(json!({
            "block": facts,
            "request": wire::proof_request(&request, block),
            "result": wire::storage_proof(&proof.map_err(|error: StateError| Error::from(error))?),
        }))
    })?;
    if shows_root {
        output.note(&format!(
            "contract {any_contract} was added to the request: the block's state commitment is the contracts root itself, \
             which only a proof with a contract in it can show; the request that was answered is beside the result"
        ));
    }
    output.line(&format!("{object:#}"))
}

/// The block to prove the state of; none is the last one.
fn block_of(args: &Prove, asked: &AskedProof) -> Result<Option<BlockNumber>, Failure> {
    if let Some(hash) = asked.block_hash {
        return Err(Failure::usage(format!(
            "the request is for the block with hash {hash}; the database knows blocks by number, ask with block_number"
        )));
    }
    match (args.block.map(BlockNumber), asked.block, asked.tag) {
        (Some(block), Some(other), _) if block != other => {
            Err(Failure::usage(format!("--block is {block}, but the request is for block {other}")))
        }
        (None, None, Some(tag)) if tag != BlockTag::Latest => Err(Failure::usage(format!(
            "the request is for the block that is \"{tag}\", and the database does not know which one is; name it with --block"
        ))),
        (block, other, _) => Ok(block.or(other)),
    }
}

/// Asks for the contracts of asked slots too, after those that are asked for.
fn add_contracts_of_slots(request: &mut ProofRequest, output: &mut Output) {
    let mut added: Vec<ContractAddress> = Vec::new();
    for ContractStorageKeys { contract_address, storage_keys } in &request.contracts_storage_keys {
        let known = request.contract_addresses.contains(contract_address) || added.contains(contract_address);
        added.extend((!known && !storage_keys.is_empty()).then_some(*contract_address));
    }
    for address in &added {
        output.note(&format!(
            "contract {address} was added to the request: its slots are proven under the storage root that its leaf holds; \
             the request that was answered is beside the result"
        ));
    }
    request.contract_addresses.extend(added);
}

/// The request that the options are, with the contracts of slots, as the help says.
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
    // `prove` may have answered a larger request than the one it was given; then that one says what the lists are for.
    let answered = file.request.as_ref().map(|own| &own.request).filter(|own| contains(own, &asked.request));
    let verified = file.proof.verify(answered.unwrap_or(&asked.request), &anchor, &Bulk);
    let verified = verified.map_err(|error| Failure::refused(format!("{name}: {error}")))?;
    let claims = claims(&verified, &asked.request);
    if args.json {
        output.line(&report(&verified, &claims, args, &anchor).to_string())?;
    } else {
        print(&claims, output)?;
    }
    if let Some(claim) = claims.iter().find(|claim| claim.proven == Proven::NotCovered) {
        let Claim { subject, lead, .. } = claim;
        return Err(Failure::refused(format!("{name}: the proof does not lead to {subject}; {lead}")));
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

/// Whether everything that is asked for in one request is in another.
fn contains(larger: &ProofRequest, request: &ProofRequest) -> bool {
    fn slots(of: &ProofRequest) -> HashSet<(&ContractAddress, &StorageKey)> {
        let entries = of.contracts_storage_keys.iter();
        entries.flat_map(|of| of.storage_keys.iter().map(|key| (&of.contract_address, key))).collect()
    }
    fn all_of<T: Eq + Hash>(list: &[T]) -> HashSet<&T> {
        list.iter().collect()
    }
    all_of(&request.class_hashes).is_subset(&all_of(&larger.class_hashes))
        && all_of(&request.contract_addresses).is_subset(&all_of(&larger.contract_addresses))
        && slots(request).is_subset(&slots(larger))
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
    /// What to do if it is not covered.
    lead: String,
}

fn claims(verified: &VerifiedProof, request: &ProofRequest) -> Vec<Claim> {
    let incomplete = || "the answer lacks nodes on the way to it, fetch the proof again".to_owned();
    let class = |class_hash| Claim {
        subject: format!("class {class_hash}"),
        name: json!({ "class_hash": format!("{class_hash}") }),
        proven: verified.class(class_hash).map(|leaf| json!({ "leaf": format!("{leaf:#x}") })),
        lead: incomplete(),
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
        lead: incomplete(),
    };
    let slots = request.contracts_storage_keys.iter().flat_map(|entry| {
        let address = &entry.contract_address;
        let is_asked = request.contract_addresses.contains(address);
        entry.storage_keys.iter().map(move |key| Claim {
            subject: format!("storage {key} of contract {address}"),
            name: json!({ "contract_address": address.to_string(), "key": key.to_string() }),
            proven: verified.storage(address, key).map(|value| json!({ "value": value.to_string() })),
            lead: if is_asked {
                incomplete()
            } else {
                format!(
                    "its storage root is in the leaf of contract {address}, ask for the contract too (contract_addresses)"
                )
            },
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
