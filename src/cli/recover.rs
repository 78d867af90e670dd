//! `flagstone recover`: a way back from damage.

use flagstone::EngineConfig;
use flagstone::database::{Catalogue, RecoverOptions, Recovery};
use serde_json::json;

use super::args::Recover;
use super::failure::Failure;
use super::output::{Output, state_after};

pub fn recover(args: &Recover, output: &mut Output) -> Result<(), Failure> {
    let recovery = RecoverOptions::default().with_dump(args.dump.as_deref()).with_dry_run(args.dry_run);
    let recovered = Catalogue::default().recover(
        &args.database.data,
        &args.database.options(EngineConfig::default()),
        recovery,
    )?;
    let Recovery { problems, source, block, lost, aside, .. } = &recovered;
    let aside: Vec<String> = aside.iter().map(|path| path.display().to_string()).collect();
    if args.json {
        let facts = json!({
            "dry_run": args.dry_run,
            "source": source.about(),
            "block": block.map(|block| block.0),
            "lost": lost.map(|lost| [lost.first.0, lost.last.0]),
            "problems": problems,
            "aside": aside,
        });
        return output.line(&facts.to_string());
    }
    for problem in problems {
        output.note(&format!("found: {problem}"));
    }
    let would = if args.dry_run { "would go on" } else { "goes on" };
    let lost = lost.map_or_else(|| "no block is lost".to_owned(), |lost| format!("lost: {lost}"));
    output.line(&format!(
        "the database {would} from {}, built from {} and checked; {lost}",
        state_after(*block),
        source.about()
    ))?;
    if !aside.is_empty() {
        output
            .note(&format!("the old parts are now {}; remove them when nobody needs them", aside.join(", ")));
    }
    Ok(())
}
