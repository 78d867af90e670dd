//! `flagstone verify-witness`, and the witnesses that `flagstone replay --witness` writes.

use std::fs;
use std::path::Path;

use flagstone::core::commitment::{CommitmentRule, Roots};
use flagstone::core::hash::Bulk;
use flagstone::core::types::{BlockNumber, StateCommitment};
use flagstone::core::witness::Witness;
use flagstone::input::{self, LocatedUpdate, UpdateReader};
use flagstone::wire;
use serde_json::json;

use super::args::VerifyWitness;
use super::failure::Failure;
use super::output::{GOOD, Output, styled};

/// Writes a block's witness into a directory, which is made if it is missing.
pub fn write(witness: &Witness, number: BlockNumber, dir: &Path, as_json: bool) -> Result<(), Failure> {
    let bytes = if as_json { format!("{}\n", wire::witness(witness)).into_bytes() } else { witness.encode() };
    let file = dir.join(format!("{number}.witness"));
    let written = fs::create_dir_all(dir).and_then(|()| fs::write(&file, bytes));
    written.map_err(|error| Failure::store(format!("cannot write {}: {error}", file.display())))
}

pub fn verify(args: &VerifyWitness, output: &mut Output) -> Result<(), Failure> {
    let witness = input::read_witness(&args.witness)?;
    let LocatedUpdate { update, source, line, .. } = find_update(args, witness.block)?;
    let name = args.witness.display();
    let refused = |problem: String| Failure::refused(format!("{name}: {problem}"));
    let applied = witness.apply(&update.diff, &Bulk).map_err(|error| refused(error.to_string()))?;
    if let Some(expected) = update.old_root {
        // The version of the block before is not known here; either rule may have made its commitment.
        let checked = witness.check_commitment_before(expected, None);
        checked
            .map_err(|error| refused(format!("before the block, as {source}:{line} states it: {error}")))?;
    }
    let rule = args.starknet_version.or(update.starknet_version).map(|version| version.commitment_rule());
    let new_root = new_root(&applied.roots, rule, update.new_root)
        .ok_or_else(|| Failure::usage(format!("{source}:{line}: the block's starknet version is needed for its state commitment; name it with --starknet-version")))?;
    if let Some(stated) = update.new_root
        && stated != new_root
    {
        let problem = format!("the new root is {new_root}; {source}:{line} states {stated}");
        return Err(refused(problem));
    }
    let old_root = update.old_root.map(|root| root.to_string());
    if args.json {
        let report = json!({
            "block": witness.block.map(|block| block.0),
            "old_root": old_root,
            "new_root": new_root.to_string(),
            "old_root_stated": update.old_root.is_some(),
            "new_root_stated": update.new_root.is_some(),
            "before": { "contracts_tree_root": witness.before.contracts.to_string(), "classes_tree_root": witness.before.classes.to_string() },
            "after": { "contracts_tree_root": witness.after.contracts.to_string(), "classes_tree_root": witness.after.classes.to_string() },
        });
        return output.line(&report.to_string());
    }
    let before = old_root.unwrap_or_else(|| {
        format!("of contracts {}, of classes {}", witness.before.contracts, witness.before.classes)
    });
    let verdict = |stated: Option<StateCommitment>| {
        if stated.is_some() { styled(GOOD, "ok") } else { "not compared".to_owned() }
    };
    output.line(&format!("old root  {before}  {}", verdict(update.old_root)))?;
    output.line(&format!("new root  {new_root}  {}", verdict(update.new_root)))
}

/// The update of the witness's block; the only update if one of the two does not say its block.
fn find_update(args: &VerifyWitness, block: Option<BlockNumber>) -> Result<LocatedUpdate, Failure> {
    let mut only = None;
    let mut count = 0;
    for update in UpdateReader::open(&args.update)? {
        let located = update?;
        match (located.update.block_number, block) {
            (Some(number), Some(block)) if number == block => return Ok(located),
            (Some(_), Some(_)) => {}
            _ => only = Some(located),
        }
        count += 1;
    }
    let name = args.update.display();
    match only {
        Some(located) if count == 1 => Ok(located),
        _ => Err(Failure::usage(match block {
            Some(block) => format!("{name} has no update of block {block}, which the witness is of"),
            None => format!("the witness does not say its block; {name} must have one update only"),
        })),
    }
}

/// The state commitment under the block's rule; if that is not known, the stated one where one of the rules gives it.
fn new_root(
    roots: &Roots,
    rule: Option<CommitmentRule>,
    stated: Option<StateCommitment>,
) -> Option<StateCommitment> {
    let by = |rule| roots.commitment(rule);
    match (rule, stated) {
        (Some(rule), _) => Some(by(rule)),
        (None, _) if !roots.rule_matters() => Some(by(CommitmentRule::AlwaysBoth)),
        (None, Some(stated)) if stated == by(CommitmentRule::ContractsRootAlone) => Some(stated),
        (None, Some(_)) => Some(by(CommitmentRule::AlwaysBoth)),
        (None, None) => None,
    }
}
