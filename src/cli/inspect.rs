//! Commands that look at a database, and those that go back or on.

use flagstone::core::types::BlockNumber;
use flagstone::database::{Catalogue, bytes_on_disk};
use flagstone::engine::{Head, Opened};
use flagstone::journal::Cut;
use flagstone::registry::LAYOUTS;
use flagstone::{Cadence, Engine, EngineConfig};
use serde_json::json;

use super::args::{Existing, Get, GetWhat, Inspect, Prune, Revert};
use super::failure::Failure;
use super::output::{DIM, Output, state_after, styled};

fn config() -> EngineConfig {
    EngineConfig::default().with_cadence(Cadence::OnRequest)
}

/// Opens a database to answer of its last closed block, and changes no byte of it. Blocks that the journal alone has, as after
/// a kill, are committed in memory first: an answer of an older block would look like one of the last, and one of a block
/// whose root nobody has compared could be of a block that is refused.
pub fn look(database: &Existing, output: &mut Output) -> Result<Engine, Failure> {
    let engine = Catalogue::default().open_read_only(&database.data, &database.options(config()))?;
    tell_opened(engine.opened(), output);
    let Head { closed, committed, .. } = engine.head();
    engine.commit()?;
    if closed != committed {
        let (first, last) = (state_after(committed), state_after(closed));
        output.note(&format!(
            "blocks after {first}, up to {last}, are in the journal alone; they were committed in memory to answer"
        ));
    }
    Ok(engine)
}

/// Opens a database to change it, all its blocks committed.
fn open(database: &Existing, output: &mut Output) -> Result<Engine, Failure> {
    let engine = Catalogue::default().open(&database.data, &database.options(config()))?;
    tell_opened(engine.opened(), output);
    engine.commit()?;
    Ok(engine)
}

/// Tells of what an opening found that is not as an orderly end leaves it.
fn tell_opened(opened: &Opened, output: &mut Output) {
    if let Some(Cut { segment, offset, bytes, problem, .. }) = &opened.cut {
        let segment = segment.display();
        output.note(&format!(
            "the journal's last {bytes} bytes, from byte {offset} of {segment} on, are of a write that was cut short ({problem}); \
             nothing of them had been acknowledged"
        ));
    }
    if opened.repaired > 0 {
        output.note(&format!(
            "the store lacked {} values that the journal has, or had others; they are taken from the journal: run \
             `flagstone check`, and look at the disk",
            opened.repaired
        ));
    }
}

pub fn get(args: &Get, output: &mut Output) -> Result<(), Failure> {
    let engine = look(&args.database, output)?;
    let view = match args.block {
        Some(block) => engine.view_at(BlockNumber(block))?,
        None => engine.view(),
    };
    let value = match &args.what {
        GetWhat::Storage { address, key } => view.storage_at(address, key)?.to_string(),
        GetWhat::Nonce { address } => view.nonce_at(address)?.to_string(),
        GetWhat::ClassHash { address } => view.class_hash_at(address)?.to_string(),
        GetWhat::CompiledClassHash { class_hash } => view.compiled_class_hash_at(class_hash)?.to_string(),
    };
    output.line(&value)
}

pub fn root(args: &Inspect, output: &mut Output) -> Result<(), Failure> {
    let engine = look(&args.database, output)?;
    print_head(&head_on_disk(&engine), args.json, output)
}

/// The head as it is answered, and what of it is in the store on the disk.
fn head_on_disk(engine: &Engine) -> Head {
    let mut head = engine.head();
    head.persisted = engine.opened().persisted;
    head
}

fn print_head(head: &Head, as_json: bool, output: &mut Output) -> Result<(), Failure> {
    output.line(&if as_json { head_json(head).to_string() } else { head.root.commitment.to_string() })
}

pub fn revert(args: &Revert, output: &mut Output) -> Result<(), Failure> {
    let engine = open(&args.database, output)?;
    engine.revert_to(BlockNumber(args.block))?;
    print_head(&engine.head(), args.json, output)
}

pub fn prune(args: &Prune, output: &mut Output) -> Result<(), Failure> {
    let engine = open(&args.database, output)?;
    let pruned = engine.prune(args.keep, args.dry_run)?;
    engine.close()?;
    if args.json {
        let facts = json!({
            "dry_run": args.dry_run,
            "roots": pruned.roots,
            "oldest": pruned.oldest.map(|block| block.0),
            "rows_of_roots": pruned.rows_of_roots,
            "rows_of_none": pruned.rows_of_none,
            "bytes": pruned.bytes,
        });
        return output.line(&facts.to_string());
    }
    let would = if args.dry_run { "would be deleted" } else { "deleted" };
    let oldest = pruned
        .oldest
        .map_or_else(String::new, |oldest| format!("; the oldest that is left is of block {oldest}"));
    output.line(&format!(
        "{would}: {} roots, {} rows that only their states needed, {} rows that no state needed; {} bytes in all{oldest}",
        pruned.roots, pruned.rows_of_roots, pruned.rows_of_none, pruned.bytes
    ))
}

fn head_json(head: &Head) -> serde_json::Value {
    let number = |block: Option<BlockNumber>| block.map(|block| block.0);
    json!({
        "closed": number(head.closed),
        "committed": number(head.committed),
        "persisted": number(head.persisted),
        "root": head.root.commitment.to_string(),
        "contracts_root": head.root.roots.contracts.to_string(),
        "classes_root": head.root.roots.classes.to_string(),
    })
}

pub fn info(args: &Inspect, output: &mut Output) -> Result<(), Failure> {
    let engine = look(&args.database, output)?;
    let (identity, head, store) = (engine.identity(), head_on_disk(&engine), engine.store_name());
    let hash = head.closed.map_or(Ok(None), |block| engine.block_hash(block))?.map(|hash| hash.to_string());
    let copied = engine.opened().copied_bytes;
    // Files come and go until the engine has ended.
    drop(engine);
    let bytes = bytes_on_disk(&args.database.data)?;
    if args.json {
        let mut facts = head_json(&head);
        facts["layout"] = json!(identity.layout);
        facts["layout_format"] = json!(identity.layout_format);
        facts["engine_format"] = json!(identity.engine_format);
        facts["scheme"] = json!(identity.scheme);
        facts["store"] = json!(store);
        facts["bytes_on_disk"] = json!(bytes);
        facts["block_hash"] = json!(hash);
        facts["copied_bytes"] = json!(copied);
        return output.line(&facts.to_string());
    }
    let block = |block: Option<BlockNumber>| {
        block.map_or_else(|| "none".to_owned(), |block| format!("block {block}"))
    };
    for (name, value) in [
        ("layout", format!("{} (format {})", identity.layout, identity.layout_format)),
        ("store", store.to_owned()),
        ("engine format", identity.engine_format.to_string()),
        ("scheme", identity.scheme),
        ("closed", block(head.closed)),
        ("block hash", hash.unwrap_or_else(|| "not stated".to_owned())),
        ("committed", block(head.committed)),
        ("persisted", block(head.persisted)),
        ("root", head.root.commitment.to_string()),
        ("contracts root", head.root.roots.contracts.to_string()),
        ("classes root", head.root.roots.classes.to_string()),
        ("bytes on disk", bytes.to_string()),
    ] {
        output.line(&format!("{:<15} {value}", styled(DIM, format!("{name:<15}"))))?;
    }
    Ok(())
}

pub fn layouts(as_json: bool, output: &mut Output) -> Result<(), Failure> {
    for (index, entry) in LAYOUTS.iter().enumerate() {
        let format = entry.make().format_version();
        if as_json {
            let facts =
                json!({"name": entry.name, "about": entry.about, "format": format, "default": index == 0});
            output.line(&facts.to_string())?;
        } else {
            let default = if index == 0 { "  [default]" } else { "" };
            output.line(&format!("{:<14} {}{default}", entry.name, entry.about))?;
        }
    }
    Ok(())
}
