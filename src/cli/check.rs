//! `flagstone check` and `flagstone diff`: what is wrong with a database, and where two of them differ.

use std::time::Instant;

use flagstone::core::audit::Place;
use flagstone::core::compare::{Difference, StateTries, compare};
use flagstone::core::diff::Subject;
use flagstone::core::error::StateError;
use flagstone::core::types::BlockNumber;
use flagstone::database::Catalogue;
use flagstone::engine::CheckReport;
use flagstone::{Engine, EngineConfig, Error};
use serde_json::json;

use super::args::{Diff, Existing, Inspect};
use super::failure::Failure;
use super::inspect::look;
use super::output::{BAD, GOOD, Output, state_after, styled};

pub fn check(args: &Inspect, output: &mut Output) -> Result<(), Failure> {
    let started = Instant::now();
    output.start_spinner();
    let progress = |entries| output.progress(entries, || format!("{entries} storage entries"));
    let report = Catalogue::default().check(
        &args.database.data,
        &args.database.options(EngineConfig::default()),
        &progress,
    );
    output.end_progress();
    let report = report?;
    for finding in &report.findings {
        output.line(&match args.json {
            true => finding_json(&finding.place, &finding.problem).to_string(),
            false => format!("{} {finding}", styled(BAD, "wrong")),
        })?;
    }
    let seconds = started.elapsed().as_secs_f64();
    output.line(&if args.json { summary_json(&report, seconds) } else { summary(&report, seconds) })?;
    if report.is_sound() { Ok(()) } else { Err(Failure::told()) }
}

fn finding_json(place: &Place, problem: &str) -> serde_json::Value {
    let mut finding = json!({ "place": place.to_string(), "problem": problem });
    match place {
        Place::Node(trie, path) => {
            finding["trie"] = json!(trie.to_string());
            finding["path"] = json!(path.to_string());
            finding["key"] = json!(path.to_key().map(|key| key.to_string()));
        }
        Place::Block(block) => finding["block"] = json!(block.0),
        _ => {}
    }
    json!({ "finding": finding })
}

fn summary(report: &CheckReport, seconds: f64) -> String {
    let CheckReport { visited, blocks, journal_blocks, findings_total, .. } = report;
    let verdict = match findings_total {
        0 => styled(GOOD, "sound"),
        total => styled(BAD, format!("{total} findings")),
    };
    let notes: String = report.notes.iter().map(|(what, count)| format!("; {count} {what}")).collect();
    let at = state_after(report.head.committed);
    format!(
        "{verdict}: {at}, {} contracts, {} storage entries, {} classes, {} nodes; roots of {blocks} blocks, \
         {journal_blocks} blocks in the journal{notes}; {seconds:.2} s",
        visited.contracts, visited.storage_entries, visited.classes, visited.nodes
    )
}

fn summary_json(report: &CheckReport, seconds: f64) -> String {
    let visited = report.visited;
    let summary = json!({
        "sound": report.is_sound(),
        "findings": report.findings_total,
        "block": report.head.committed.map(|block| block.0),
        "root": report.head.root.commitment.to_string(),
        "contracts": visited.contracts,
        "storage_entries": visited.storage_entries,
        "classes": visited.classes,
        "nodes": visited.nodes,
        "blocks": report.blocks,
        "journal_blocks": report.journal_blocks,
        "notes": report.notes,
        "seconds": seconds,
    });
    json!({ "summary": summary }).to_string()
}

/// The differences that were told so far.
struct Teller<'a> {
    args: &'a Diff,
    output: &'a mut Output,
    told: u64,
    failed: Option<Failure>,
}

impl Teller<'_> {
    /// Tells one; whether to go on.
    fn tell(&mut self, difference: &Difference) -> bool {
        self.told += 1;
        let Difference { subject, trie, path, values: [a, b], .. } = difference;
        let told = self.output.line(&if self.args.json {
            let difference = json!({
                "trie": trie.to_string(), "path": path.to_string(), "subject": subject.to_string(),
                "kind": kind(subject), "a": format!("{a:#x}"), "b": format!("{b:#x}"),
            });
            json!({ "difference": difference }).to_string()
        } else {
            format!("{subject}: {a:#x} | {b:#x}  (in the {trie}, from {path} on)")
        });
        self.failed = told.err();
        self.args.all && self.failed.is_none()
    }
}

const fn kind(subject: &Subject) -> &'static str {
    match subject {
        Subject::Storage(..) => "storage",
        Subject::ClassHash(_) => "class_hash",
        Subject::Nonce(_) => "nonce",
        Subject::CompiledClassHash(_) => "compiled_class_hash",
    }
}

pub fn diff(args: &Diff, output: &mut Output) -> Result<(), Failure> {
    let a = look(&Existing::at(&args.a), output)?;
    let same_place = args.a.canonicalize().ok() == args.b.canonicalize().ok();
    let b = if same_place { None } else { Some(look(&Existing::at(&args.b), output)?) };
    let mut teller = Teller { args, output, told: 0, failed: None };
    let b = b.as_ref().unwrap_or(&a);
    let number = |engine: &Engine, block| engine.at_block(block, |_, block, _| Ok(block));
    let blocks: [BlockNumber; 2] = [number(&a, args.block_a)?, number(b, args.block_b)?];
    if !(same_place && blocks[0] == blocks[1]) {
        compare_at(&a, b, blocks, &mut teller)?;
    }
    let (told, failed) = (teller.told, teller.failed.take());
    if let Some(failure) = failed {
        return Err(failure);
    }
    if args.json {
        output.line(&json!({ "summary": { "same": told == 0, "told": told } }).to_string())?;
    } else if told == 0 {
        output.line(&styled(GOOD, "the states are the same"))?;
    } else if !args.all {
        output.note("this is the first difference; --all tells all of them");
    }
    if told == 0 { Ok(()) } else { Err(Failure::told()) }
}

fn compare_at(
    a: &Engine,
    b: &Engine,
    blocks: [BlockNumber; 2],
    teller: &mut Teller<'_>,
) -> Result<(), Error> {
    a.at_block(Some(blocks[0]), |a_rows, _, a_root| {
        b.at_block(Some(blocks[1]), |b_rows, _, b_root| {
            let a = StateTries { rows: a_rows, roots: a_root.roots };
            let b = StateTries { rows: b_rows, roots: b_root.roots };
            compare(a, b, &mut |found| match found {
                Ok(difference) => teller.tell(&difference),
                Err(broken) => {
                    teller.failed = Some(Error::from(StateError::from(broken)).into());
                    false
                }
            });
            Ok(())
        })
    })
}
