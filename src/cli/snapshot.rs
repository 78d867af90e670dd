//! `flagstone export`, `import` and `convert`: states as files, and from one database to another.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, IsTerminal, Read, Write};
use std::path::Path;
use std::thread;
use std::time::Instant;

use flagstone::EngineConfig;
use flagstone::database::Catalogue;
use flagstone::engine::{ImportProgress, Imported};
use flagstone::snapshot::{self, Counts, Exported};
use serde_json::json;

use super::args::{Convert, Existing, Export, Import, NewDatabase, options};
use super::failure::Failure;
use super::inspect::look;
use super::output::Output;
use super::place::{new_database, outside_databases};

/// The name of standard input and output.
const DASH: &str = "-";

/// The longest piece that is read or written at a time.
const BUFFER_BYTES: usize = 1 << 18;

pub fn export(args: &Export, output: &mut Output) -> Result<(), Failure> {
    let started = Instant::now();
    let to_stdout = args.out.as_deref().is_none_or(|out| out == Path::new(DASH));
    refuse_terminal(to_stdout && io::stdout().is_terminal())?;
    if let Some(out) = args.out.as_deref().filter(|_| !to_stdout) {
        outside_databases("--out", out, Some(&args.database.data))?;
    }
    let engine = look(&args.database, output)?;
    output.start_spinner();
    let mut progress = |counts: Counts| output.progress(counts.items(), || rate(counts.items(), started));
    let mut write = |out: &mut dyn Write| snapshot::export(&engine, args.block, out, &mut progress);
    let exported = match args.out.as_deref() {
        Some(path) if !to_stdout => to_file(path, write),
        _ => {
            let mut out = BufWriter::with_capacity(BUFFER_BYTES, io::stdout().lock());
            write(&mut out).map_err(Failure::from)
        }
    };
    output.end_progress();
    let report = exported_line(&exported?, started, args.json);
    // The dump itself is what standard output is for.
    if to_stdout {
        output.note(&report);
        return Ok(());
    }
    output.line(&report)
}

/// A dump is bytes that a terminal cannot show.
fn refuse_terminal(is_terminal: bool) -> Result<(), Failure> {
    if is_terminal {
        return Err(Failure::usage(
            "a dump is not text, and standard output is a terminal; name a file with --out FILE, or write to a pipe",
        ));
    }
    Ok(())
}

/// Writes a dump to a file that is then there whole, or else is what it was before: beside it first, and put in its place at
/// the end. What is no plain file, such as a pipe, is written to as it is.
fn to_file(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> Result<Exported, flagstone::Error>,
) -> Result<Exported, Failure> {
    let failed = |error: io::Error| Failure::store(format!("cannot write {}: {error}", path.display()));
    let is_plain = fs::metadata(path).map_or(true, |found| found.is_file());
    // Through a link to what it leads to.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let beside = path.with_added_extension("part");
    let created = if is_plain { create_anew(&beside) } else { File::create(&path) };
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, created.map_err(failed)?);
    let exported = write(&mut out).map_err(Failure::from).and_then(|exported| {
        let file = out.into_inner().map_err(|error| failed(error.into_error()))?;
        if is_plain {
            file.sync_all().and_then(|()| fs::rename(&beside, &path)).map_err(failed)?;
        }
        Ok(exported)
    });
    if exported.is_err() && is_plain {
        // Nobody is helped by a piece of a dump.
        let _ = fs::remove_file(&beside);
    }
    exported
}

/// Makes a file in place of what an earlier export left there. It is never written through a link, which could lead anywhere.
fn create_anew(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => File::create_new(path),
    }
}

pub fn import(args: &Import, output: &mut Output) -> Result<(), Failure> {
    let started = Instant::now();
    new_database("--data", &args.data, None)?;
    let (input, total): (Box<dyn Read + Send>, _) = if args.file == Path::new(DASH) {
        (Box::new(io::stdin()), None)
    } else {
        let cannot_read =
            |error: io::Error| Failure::usage(format!("cannot read {}: {error}", args.file.display()));
        let file = File::open(&args.file).map_err(cannot_read)?;
        let total = file.metadata().map_err(cannot_read)?.len();
        (Box::new(file), Some(total))
    };
    output.start_progress(total);
    let mut progress = |at: ImportProgress| output.progress(at.bytes, || rate(at.counts.items(), started));
    let imported = fill(&args.data, &args.made, BufReader::with_capacity(BUFFER_BYTES, input), &mut progress);
    output.end_progress();
    let name = args.file.display().to_string();
    let imported = imported.map_err(|error| Failure::from(error).at(Some(&name)))?;
    output.line(&imported_line(&imported, started, args.json))
}

pub fn convert(args: &Convert, output: &mut Output) -> Result<(), Failure> {
    let started = Instant::now();
    new_database("--to", &args.to, Some(&args.from))?;
    let from = look(&Existing::at(&args.from), output)?;
    let (reader, writer) =
        io::pipe().map_err(|error| Failure::store(format!("cannot make a pipe: {error}")))?;
    output.start_progress(None);
    let (exported, imported) = thread::scope(|scope| {
        let exporting = scope.spawn(|| {
            let out = BufWriter::with_capacity(BUFFER_BYTES, writer);
            snapshot::export(&from, args.block, out, &mut |_| {})
        });
        let mut progress =
            |at: ImportProgress| output.progress(at.bytes, || rate(at.counts.items(), started));
        let imported = fill(&args.to, &args.made, reader, &mut progress);
        (exporting.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), imported)
    });
    output.end_progress();
    match (exported, imported) {
        (Ok(_), Ok(imported)) => output.line(&imported_line(&imported, started, args.json)),
        // Whichever failed first, the other end of the pipe broke: a dump that was cut short is not the cause.
        (Err(error), Err(flagstone::Error::Snapshot(_)) | Ok(_)) => Err(error.into()),
        (_, Err(error)) => Err(error.into()),
    }
}

/// Makes the database in a directory.
fn fill(
    data: &Path,
    made: &NewDatabase,
    dump: impl Read + Send,
    progress: &mut dyn FnMut(ImportProgress),
) -> Result<Imported, flagstone::Error> {
    let config = EngineConfig::default().with_threads(made.threads);
    let options = options(made.layout.as_ref(), made.store.as_ref(), &made.settings, config);
    Catalogue::default().import(data, &options, dump, progress)
}

fn rate(items: u64, since: Instant) -> String {
    format!("{items} items, {:.0}/s", items as f64 / since.elapsed().as_secs_f64().max(0.001))
}

fn counts_text(counts: Counts) -> String {
    let Counts { contracts, storage_entries, classes, .. } = counts;
    format!("{contracts} contracts, {storage_entries} storage entries, {classes} classes")
}

fn counts_json(counts: Counts) -> serde_json::Value {
    json!({
        "contracts": counts.contracts,
        "storage_entries": counts.storage_entries,
        "classes": counts.classes,
    })
}

fn exported_line(exported: &Exported, since: Instant, as_json: bool) -> String {
    let Exported { header, counts, bytes, .. } = *exported;
    let seconds = since.elapsed().as_secs_f64();
    if as_json {
        let facts = json!({
            "block": header.block.0, "root": header.commitment.to_string(), "holds": counts_json(counts),
            "bytes": bytes, "seconds": seconds,
        });
        return facts.to_string();
    }
    let (block, root, holds) = (header.block, header.commitment, counts_text(counts));
    format!("exported block {block}, root {root}: {holds}; {bytes} bytes, {seconds:.2} s")
}

fn imported_line(imported: &Imported, since: Instant, as_json: bool) -> String {
    let Imported { header, counts, resumed_after, .. } = *imported;
    let seconds = since.elapsed().as_secs_f64();
    if as_json {
        let facts = json!({
            "block": header.block.0, "root": header.commitment.to_string(), "holds": counts_json(counts),
            "resumed_after": resumed_after, "seconds": seconds,
        });
        return facts.to_string();
    }
    let resumed = match resumed_after {
        0 => String::new(),
        items => format!(", the first {items} of them by an earlier run"),
    };
    let (block, root, holds) = (header.block, header.commitment, counts_text(counts));
    format!("imported block {block}, root {root}: {holds}{resumed}; {seconds:.2} s")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_gets_a_hint_and_no_dump() {
        assert!(refuse_terminal(false).is_ok());
        let failure = refuse_terminal(true).err().unwrap();
        assert_eq!(failure.code, 2);
        assert!(failure.message.contains("--out FILE"), "{}", failure.message);
    }
}
