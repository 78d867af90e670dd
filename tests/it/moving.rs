//! States moved from one database to another by way of a file: memory and time.

use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::Path;
use std::time::Instant;

use flagstone::registry::LAYOUTS;
use flagstone::snapshot::export;
use flagstone::{Engine, database, registry};

use crate::child;
use crate::load::block;
use crate::store_sled::with_peak_memory;
use crate::support::{Place, at_close};

const MIB: u64 = 1 << 20;

/// The role of the child: exports `DIR/from` to `DIR/dump` and imports it into `DIR/to`; prints its peaks of memory.
pub fn child_move(dir: &Path, layout: &str) {
    let layout = Some(registry::layout(layout).unwrap());
    let (exporting, exported) = with_peak_memory(|| {
        let engine = database::open(&dir.join("from"), None, at_close()).unwrap();
        let file = File::create(dir.join("dump")).unwrap();
        let started = Instant::now();
        (export(&engine, None, BufWriter::new(file), &mut |_| ()).unwrap(), started.elapsed())
    });
    let (importing, seconds) = with_peak_memory(|| {
        let dump = BufReader::new(File::open(dir.join("dump")).unwrap());
        let started = Instant::now();
        let config = at_close();
        database::import(&dir.join("to"), layout, None, dump, &config, &mut |_| ()).unwrap();
        started.elapsed()
    });
    let (exported, export_seconds) = exported;
    println!(
        ">{} {} MiB exporting, importing; {:.2} s, {:.2} s; {} bytes; {} items",
        exporting / MIB,
        importing / MIB,
        export_seconds.as_secs_f64(),
        seconds.as_secs_f64(),
        exported.bytes,
        exported.counts.items()
    );
}

/// Loads entries as blocks, moves the state in a child process, and compares. Prints the figures.
fn check_move(layout: &str, entries_blocks: u64, peak_mib_max: u64) {
    let dir = tempfile::tempdir().unwrap();
    let mut random = 42;
    let started = Instant::now();
    let entry = Some(registry::layout(layout).unwrap());
    let engine = database::open_or_create(&dir.path().join("from"), entry, None, at_close()).unwrap();
    for number in 0..entries_blocks {
        engine.close_block(&block(number, &mut random)).unwrap();
    }
    let root = engine.head().root;
    drop(engine);
    let replayed = started.elapsed();
    let lines = child::run(&format!("move {layout}"), dir.path());
    println!("{layout}: replayed in {:.2} s; {}", replayed.as_secs_f64(), lines[0]);
    let to = database::open(&dir.path().join("to"), None, at_close()).unwrap();
    assert_eq!(to.head().root, root);
    let mut peaks = lines[0].split(' ').take(2).map(|peak| peak.parse::<u64>().unwrap());
    assert!(peaks.all(|peak| peak < peak_mib_max), "{}", lines[0]);
}

#[test]
fn moving_100_000_entries_stays_below_512_mib() {
    check_move("flat", 10, 512);
}

/// `cargo test --release --test it -- --ignored --nocapture moving_a_million_entries`
#[test]
#[ignore = "takes minutes"]
fn moving_a_million_entries_stays_below_768_mib() {
    for layout in LAYOUTS {
        check_move(layout.name, 100, 768);
    }
}

/// The same entries, in memory, as blocks in no order and as a dump.
///
/// `cargo test --release --test it -- --ignored --nocapture report_of_a_million_entries_in_memory`
#[test]
#[ignore = "takes minutes"]
fn report_of_a_million_entries_in_memory() {
    for layout in LAYOUTS {
        let place = Place::memory();
        let engine = place.open(layout.name, at_close());
        let mut random = 42;
        let blocks: Vec<_> = (0..100).map(|number| block(number, &mut random)).collect();
        let started = Instant::now();
        blocks.iter().for_each(|block| drop(engine.close_block(block).unwrap()));
        let replayed = started.elapsed().as_secs_f64();
        let (mut dump, started) = (Vec::new(), Instant::now());
        let exported = export(&engine, None, &mut dump, &mut |_| ()).unwrap();
        let export_seconds = started.elapsed().as_secs_f64();
        let (to, started) = (Place::memory(), Instant::now());
        Engine::import(to.store(), layout.make().as_ref(), &at_close(), &dump[..], &mut |_| ()).unwrap();
        let seconds = started.elapsed().as_secs_f64();
        let imported = to.open(layout.name, at_close());
        assert_eq!(imported.head().root, engine.head().root);
        let started = Instant::now();
        assert!(imported.check(&|_| ()).unwrap().is_sound());
        let checked = started.elapsed().as_secs_f64();
        let items = exported.counts.items() as f64;
        println!(
            "{} in memory, {items} items: as blocks {replayed:.2} s; export {export_seconds:.2} s, {} bytes; import \
             {seconds:.2} s, {:.0} items/s, {:.1} times as fast; check {checked:.2} s",
            layout.name,
            exported.bytes,
            items / seconds,
            replayed / seconds
        );
    }
}
