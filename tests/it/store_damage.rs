//! Damaged files under the sled store.
//!
//! sled checks each message of its log, but at opening it takes a damaged one for the torn end of a segment and goes on
//! without it. So rows of a store that was killed can be missing or old without an error. What can be had is asked for:
//! whatever is done to the files, there is an answer in time, no panic comes out, and no bytes that were never written;
//! and damage to a store that was closed, or to what is in its page table, is never silent.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use flagstone::store::{SledConfig, SledStore, Store, StoreError, StoreRead, WriteBatch};
use flagstone_testkit::stores::scan;

use crate::child;
use crate::store_sled::{next_random, open};

const ROWS: u64 = 6000;
const GENERATIONS: u64 = 3;
/// How long one reading of a damaged directory may take before it counts as a hang.
const ANSWER_MAX: Duration = Duration::from_secs(100);

fn key(n: u64) -> Vec<u8> {
    let mut state = n;
    [next_random(&mut state).to_be_bytes(), n.to_be_bytes()].concat()
}

/// Whether generation `g` writes row `n`.
fn writes(g: u64, n: u64) -> bool {
    n.is_multiple_of(g + 1)
}

fn row(n: u64, g: u64) -> Vec<u8> {
    let mut state = n ^ (g << 32);
    let mut row = vec![g as u8];
    (0..10).for_each(|_| row.extend_from_slice(&next_random(&mut state).to_be_bytes()));
    row
}

/// The generation whose row must be found.
fn newest(n: u64) -> u64 {
    (0..GENERATIONS).rev().find(|g| writes(*g, n)).unwrap()
}

/// Writes all generations, each in batches of 1000 and synced, with a reopening before generation `reopen_before`.
fn build(dir: &Path, reopen_before: Option<u64>) {
    let mut store = open(dir);
    for g in 0..GENERATIONS {
        if reopen_before == Some(g) {
            drop(store);
            store = open(dir);
        }
        for first in (0..ROWS).step_by(1000) {
            let mut rows = WriteBatch::default();
            for n in (first..first + 1000).filter(|n| writes(g, *n)) {
                rows.put(key(n), row(n, g));
            }
            store.write(&rows).unwrap();
        }
        store.sync().unwrap();
    }
}

/// What is found: how many rows are right, old, missing, refused; and the first error.
#[derive(Default)]
struct Found {
    right: u64,
    old: u64,
    missing: u64,
    refused: u64,
    error: Option<StoreError>,
}

/// Panics on bytes that were never written.
fn read_all(store: &SledStore) -> Found {
    let mut found = Found::default();
    for n in 0..ROWS {
        match store.get(&key(n)) {
            Ok(Some(bytes)) if bytes == row(n, newest(n)) => found.right += 1,
            Ok(Some(bytes)) => {
                assert!(
                    (0..GENERATIONS).any(|g| writes(g, n) && bytes == row(n, g)),
                    "wrong bytes in row {n}"
                );
                found.old += 1;
            }
            Ok(None) => found.missing += 1,
            Err(err) => {
                found.refused += 1;
                found.error.get_or_insert(err);
            }
        }
    }
    match scan(store, &[], usize::MAX) {
        Ok(rows) => {
            let known: BTreeMap<_, _> = (0..ROWS).map(|n| (key(n), n)).collect();
            assert!(rows.is_sorted_by(|a, b| a.0 < b.0));
            for (key, bytes) in rows {
                let n = known[&key];
                assert!((0..GENERATIONS).any(|g| bytes == row(n, g)), "wrong bytes in row {n} of a scan");
            }
        }
        Err(err) => {
            found.error.get_or_insert(err);
        }
    }
    found
}

fn class_of_error(stage: &str, err: &StoreError) -> String {
    let panicked = if err.to_string().contains("panicked") { ", a caught panic" } else { "" };
    format!("{stage} error {:?}{panicked}", err.kind())
}

fn class_of(found: &Found) -> String {
    match found {
        Found { error: Some(err), .. } => class_of_error("read", err),
        Found { missing: ROWS, .. } => "SILENT: everything missing".to_owned(),
        Found { missing: 1.., old: 0, .. } => "SILENT: rows missing".to_owned(),
        Found { missing: 1.., .. } => "SILENT: rows missing and old".to_owned(),
        Found { old: 1.., .. } => "SILENT: rows old".to_owned(),
        _ => "fine".to_owned(),
    }
}

/// Opens, reads everything, writes, syncs and closes; prints which class it was.
pub fn child_read(dir: &Path) {
    let store = match SledStore::open(dir, SledConfig::default()) {
        Ok(store) => store,
        Err(err) => {
            println!(">{}\t{err}", class_of_error("open", &err));
            return;
        }
    };
    let found = read_all(&store);
    let mut class = class_of(&found);
    let mut rows = WriteBatch::default();
    for n in ROWS..ROWS + 500 {
        rows.put([b"new ", &key(n)[..]].concat(), row(n, 0));
    }
    if let Err(err) = store.write(&rows).and_then(|()| store.sync())
        && found.error.is_none()
    {
        class = format!("{class}, then {}", class_of_error("write", &err));
    }
    let started = Instant::now();
    drop(store);
    if started.elapsed() > Duration::from_secs(30) {
        class += ", closing given up";
    }
    let Found { right, old, missing, refused, error } = found;
    let error = error.map(|err| err.to_string()).unwrap_or_default();
    println!(">{class}\tright {right} old {old} missing {missing} refused {refused} {error}");
}

/// Reads a directory in a child process, which may be anything but silent.
fn classify(dir: &Path) -> (String, String) {
    let mut child = child::command("sled-read-damaged", dir).stderr(Stdio::piped()).spawn().unwrap();
    let stdout = child.stdout.take().unwrap();
    let stderr = child.stderr.take().unwrap();
    let errors = thread::spawn(move || drain(stderr));
    let lines = thread::spawn(move || drain(stdout));
    let status = wait(&mut child);
    let (lines, errors) = (lines.join().unwrap(), errors.join().unwrap());
    let Some(status) = status else { return ("HANG".to_owned(), errors) };
    match child::lines(lines.as_bytes()).pop() {
        Some(line) if status.success() => {
            let (class, detail) = line.split_once('\t').unwrap();
            (class.to_owned(), detail.to_owned())
        }
        _ => (format!("DIED: {status}"), errors),
    }
}

fn drain(mut pipe: impl std::io::Read) -> String {
    let mut text = Vec::new();
    pipe.read_to_end(&mut text).unwrap();
    String::from_utf8_lossy(&text).into_owned()
}

fn wait(child: &mut Child) -> Option<std::process::ExitStatus> {
    let started = Instant::now();
    while started.elapsed() < ANSWER_MAX {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    None
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn page_table(dir: &Path) -> Option<PathBuf> {
    let mut paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    paths.find(|path| path.file_name().unwrap().to_string_lossy().starts_with("snap."))
}

/// Classes with how often each came, and one case of it.
type Table = BTreeMap<(String, String), (usize, String)>;

/// Damages a copy of `whole` and notes what came of it.
fn try_damage(table: &mut Table, whole: &Path, kind: &str, case: &str, damage: impl FnOnce(&Path)) {
    let copy = tempfile::tempdir().unwrap();
    let dir = copy.path().join("store");
    copy_dir(whole, &dir);
    damage(&dir);
    let (class, detail) = classify(&dir);
    let entry = table.entry((kind.to_owned(), class)).or_insert_with(|| (0, format!("{case}: {detail}")));
    entry.0 += 1;
}

fn flip(path: &Path, at: u64, bit: u64) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at as usize] ^= 1 << bit;
    fs::write(path, bytes).unwrap();
}

fn truncate(path: &Path, len: u64) {
    fs::OpenOptions::new().write(true).open(path).unwrap().set_len(len).unwrap();
}

/// All damages to one directory: `flips` single bits in `db` and a sixth as many in each other file, and cuts.
fn damage_all(table: &mut Table, name: &str, whole: &Path, flips: u64) {
    let mut state = flips;
    let mut files = vec![("db", whole.join("db"), flips), ("conf", whole.join("conf"), flips.div_ceil(6))];
    files.extend(page_table(whole).map(|path| ("snap", path, flips.div_ceil(6))));
    for (file, path, flips) in &files {
        let file_name = path.file_name().unwrap();
        let len = fs::metadata(path).unwrap().len();
        for i in 0..*flips {
            // Evenly spread, with the first and the last byte among them; half of them shifted by a little.
            let at = i * (len - 1) / (flips - 1).max(1);
            let at = (at + next_random(&mut state) % 40 * (i % 2)).min(len - 1);
            let bit = next_random(&mut state) % 8;
            let kind = format!("{name}: {file} bit flip");
            try_damage(table, whole, &kind, &format!("byte {at} of {len} bit {bit}"), |dir| {
                flip(&dir.join(file_name), at, bit);
            });
        }
        for (cut, len) in [("0", 0), ("half", len / 2), ("all but 1 byte", len - 1)] {
            try_damage(table, whole, &format!("{name}: {file} cut to {cut}"), "", |dir| {
                truncate(&dir.join(file_name), len);
            });
        }
        try_damage(table, whole, &format!("{name}: {file} deleted"), "", |dir| {
            fs::remove_file(dir.join(file_name)).unwrap();
        });
    }
}

/// The histories a directory can have: killed and never reopened (no page table), killed and reopened in the middle (a
/// page table and a log after it), reopened at the end and killed (a page table of everything), and closed in good order
/// (a checksum of `db`).
fn damage_report(flips: u64) -> Table {
    let mut table = Table::new();
    for (name, reopen_before, reopen_last, killed) in [
        ("never reopened", None, false, true),
        ("reopened midway", Some(1), false, true),
        ("reopened last", None, true, true),
        ("closed", Some(1), false, false),
    ] {
        let whole = tempfile::tempdir().unwrap();
        build(whole.path(), reopen_before);
        if reopen_last {
            open(whole.path()).sync().unwrap();
        }
        if killed {
            // A kill right after the last sync leaves the same, but for the checksum that closing takes.
            fs::remove_file(whole.path().join("closed")).unwrap();
        }
        assert_eq!(page_table(whole.path()).is_some(), reopen_before.is_some() || reopen_last);
        try_damage(&mut table, whole.path(), &format!("{name}: nothing"), "", |_| ());
        damage_all(&mut table, name, whole.path(), flips);
    }
    for ((kind, class), (count, case)) in &table {
        println!("{count:>5}  {kind:<40} {class:<50} {case}");
    }
    table
}

#[track_caller]
fn check_damage(flips: u64) {
    for ((kind, class), (_, case)) in damage_report(flips) {
        assert!(!class.starts_with("HANG") && !class.starts_with("DIED"), "{kind}: {class} ({case})");
        assert!(!kind.ends_with("nothing") || class == "fine", "{kind}: {class} ({case})");
        if kind.starts_with("closed: db") {
            assert_eq!(class, "open error Corrupt", "{kind} ({case})");
        }
        if kind.starts_with("closed") || kind.starts_with("reopened last: db bit") || !kind.contains(": db") {
            assert!(!class.contains("SILENT"), "{kind}: {class} ({case})");
        }
    }
}

#[test]
fn damaged_files_give_answers_in_time_and_never_wrong_bytes() {
    check_damage(12);
}

/// `cargo test --release --test it -- --ignored --nocapture store_damage::report_of_many_damages`
#[test]
#[ignore = "takes minutes"]
fn report_of_many_damages() {
    check_damage(400);
}
