//! The sled store: durability, atomicity, limits, memory.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use flagstone::store::{
    BATCH_ROWS_MAX, KEY_BYTES_MAX, SEAL_BYTES, SledConfig, SledStore, Store, StoreErrorKind, StoreRead,
    VALUE_BYTES_MAX, WriteBatch,
};
use flagstone_testkit::stores::{batch, scan};

use crate::child;

const MIB: u64 = 1 << 20;

pub fn open(dir: &Path) -> SledStore {
    SledStore::open(dir, SledConfig::default().with_cache_bytes(16 * MIB)).unwrap()
}

/// The next of a sequence of well-mixed numbers (splitmix64).
pub fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[test]
fn rows_outlast_a_reopen() {
    let dir = tempfile::tempdir().unwrap();
    let deep = dir.path().join("made/by/open");
    let store = open(&deep);
    assert!(store.capabilities().atomic_batches && store.capabilities().durable);
    assert_eq!(store.name(), "sled");
    store.write(&batch([(&b"a"[..], Some(&b"1"[..])), (b"b", Some(b"2"))])).unwrap();
    store.write(&batch([(&b"b"[..], None)])).unwrap();
    store.sync().unwrap();
    drop(store);
    for _ in 0..3 {
        let store = open(&deep);
        assert_eq!(scan(&store, b"", 9).unwrap(), [(b"a".to_vec(), b"1".to_vec())]);
    }
}

#[test]
fn second_opener_of_this_process_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let err = SledStore::open(dir.path(), SledConfig::default()).unwrap_err();
    assert_eq!(err.kind(), StoreErrorKind::Locked);
    assert!(err.to_string().contains(&dir.path().display().to_string()), "{err}");
    store.write(&batch([(&b"a"[..], Some(&b"1"[..]))])).unwrap();
    drop(store);
    assert_eq!(open(dir.path()).get(b"a").unwrap(), Some(b"1".to_vec()));
}

#[test]
fn second_opener_of_another_process_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    assert_eq!(child::run("sled-open", dir.path()), ["Locked"]);
    drop(store);
    assert_eq!(child::run("sled-open", dir.path()), ["opened"]);
}

pub fn child_open(dir: &Path) {
    match SledStore::open(dir, SledConfig::default()) {
        Ok(_) => println!(">opened"),
        Err(err) => println!(">{:?}", err.kind()),
    }
}

#[test]
fn a_file_in_the_directorys_place_is_an_io_error() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let err = SledStore::open(file.path(), SledConfig::default()).unwrap_err();
    assert_eq!(err.kind(), StoreErrorKind::Io, "{err}");
    assert!(err.to_string().contains(&file.path().display().to_string()), "{err}");
}

#[test]
fn too_long_rows_and_keys_are_refused_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let long_row = vec![1; VALUE_BYTES_MAX + 1];
    let long_key = vec![2; KEY_BYTES_MAX + 1];
    for bad in [(&b"bad"[..], &long_row[..]), (&long_key[..], &b"row"[..])] {
        let err = store.write(&batch([(&b"a"[..], Some(&b"1"[..])), (bad.0, Some(bad.1))])).unwrap_err();
        assert_eq!(err.kind(), StoreErrorKind::Unsupported, "{err}");
        assert_eq!(scan(&store, b"", 9).unwrap(), []);
    }
    // A refusal is the caller's matter; the store goes on.
    store.write(&batch([(&b"max"[..], Some(&long_row[1..])), (&long_key[1..], Some(b"row"))])).unwrap();
    assert_eq!(scan(&store, b"", 9).unwrap().len(), 2);
}

/// A 4 KiB page with a header and a seal is a row that layouts may want.
const _: () = assert!(VALUE_BYTES_MAX >= 4096 + 64 + SEAL_BYTES);

#[test]
fn longest_rows_and_keys_stay_out_of_blob_files() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut state = 7;
    let mut keys = Vec::new();
    for _ in 0..12 {
        let mut rows = WriteBatch::default();
        for _ in 0..250 {
            let mut key = vec![0; KEY_BYTES_MAX];
            key.iter_mut().for_each(|byte| *byte = next_random(&mut state) as u8);
            keys.push(key.clone());
            rows.put(key, vec![0xab; VALUE_BYTES_MAX]);
        }
        // Deletions make leaves merge, which makes the longest ones.
        for _ in 0..60 {
            let at = (next_random(&mut state) % keys.len() as u64) as usize;
            rows.delete(keys.swap_remove(at));
        }
        store.write(&rows).unwrap();
    }
    store.sync().unwrap();
    assert_eq!(scan(&store, b"", usize::MAX).unwrap().len(), keys.len());
    drop(store);
    assert_eq!(fs::read_dir(dir.path().join("blobs")).unwrap().count(), 0);
    let conf = fs::read(dir.path().join("conf")).unwrap();
    // The threshold follows from the segment's size.
    assert!(String::from_utf8_lossy(&conf).contains("segment_size: 524288"));
}

/// A process killed while sled writes its page table leaves a piece that sled would take for the newest one.
#[test]
fn half_written_page_table_is_swept_away() {
    let dir = tempfile::tempdir().unwrap();
    for word in [b"1", b"2"] {
        let store = open(dir.path());
        store.write(&batch([(&b"a"[..], Some(&word[..]))])).unwrap();
        store.sync().unwrap();
    }
    let piece = dir.path().join("snap.00000000FFFFFFFF.generating");
    fs::write(&piece, b"half a table").unwrap();
    assert_eq!(open(dir.path()).get(b"a").unwrap(), Some(b"2".to_vec()));
    assert!(!piece.exists());
}

#[test]
fn one_version_of_crossbeam_epoch_is_locked() {
    let lock = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.lock")).unwrap();
    let count = |name: &str| lock.lines().filter(|line| *line == format!("name = \"{name}\"")).count();
    assert_eq!(count("crossbeam-epoch"), 1, "garbage is collected only in the version that sled links");
    assert_eq!(count("sled"), 1);
    assert!(lock.contains("name = \"sled\"\nversion = \"0.34.7\"\n"));
}

/// Rows of a round: such as one batch of sled takes, and such as need several.
const SHORT_ROUND: u64 = BATCH_ROWS_MAX as u64 - 2;
const LONG_ROUND: u64 = 3000;
const KILLS: usize = 30;

/// Rows of round `n`: each has the round's number, so that rows of two rounds cannot be taken for one.
fn kill_batch(n: u64, round_rows: u64) -> WriteBatch {
    let mut rows = WriteBatch::default();
    for i in 0..round_rows {
        let key = [&b"k"[..], &i.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()].concat();
        rows.put(key, [n.to_be_bytes(); 12].concat());
    }
    rows.put([&b"round"[..], &n.to_be_bytes()].concat(), Vec::new());
    if let Some(old) = n.checked_sub(3) {
        rows.delete([&b"round"[..], &old.to_be_bytes()].concat());
    }
    rows
}

/// Checks that the store holds one whole round, and returns it (0 if none was written yet).
fn whole_round(store: &SledStore, round_rows: u64) -> u64 {
    let rows = scan(store, b"k", usize::MAX).unwrap();
    let rounds = scan(store, b"round", usize::MAX).unwrap();
    let Some((_, first)) = rows.first() else {
        assert_eq!(rounds, []);
        return 0;
    };
    assert_eq!(rows.len() as u64, round_rows);
    assert!(rows.iter().all(|(_, row)| row == first), "rows of two batches");
    let n = u64::from_be_bytes(*first.first_chunk().unwrap());
    let expected = (n.saturating_sub(2).max(1)..=n).map(|n| [&b"round"[..], &n.to_be_bytes()].concat());
    assert!(rounds.into_iter().map(|(key, _)| key).eq(expected), "rounds of two batches");
    n
}

pub fn child_write_forever(dir: &Path, argument: &str) {
    let round_rows = argument.parse().unwrap();
    let store = open(dir);
    let mut n = whole_round(&store, round_rows);
    println!(">{n}");
    loop {
        n += 1;
        store.write(&kill_batch(n, round_rows)).unwrap();
        // Not every round, so that kills also fall between a batch and its sync.
        if n.is_multiple_of(2) {
            store.sync().unwrap();
            println!(">{n}");
        }
    }
}

#[test]
fn killed_processes_keep_acknowledged_units_of_one_batch_and_tear_none() {
    check_kills(SHORT_ROUND);
}

#[test]
fn killed_processes_keep_acknowledged_units_of_several_batches_and_tear_none() {
    check_kills(LONG_ROUND);
}

fn check_kills(round_rows: u64) {
    let dir = tempfile::tempdir().unwrap();
    let mut state = 1;
    let mut rounds = Vec::new();
    for kill in 0..KILLS {
        let mut child =
            child::command(&format!("sled-write-forever {round_rows}"), dir.path()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut acknowledged = None;
        // A few acknowledged rounds, and then at once (every third) or somewhere in the next ones.
        for _ in 0..=kill % 4 {
            acknowledged = lines.by_ref().map(Result::unwrap).find_map(|line| child::line(&line));
        }
        if kill % 3 != 0 {
            thread::sleep(Duration::from_micros(next_random(&mut state) % 60_000));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What it printed before it was killed was acknowledged as well.
        let last = lines.map_while(Result::ok).filter_map(|line| child::line(&line)).last();
        let acknowledged: u64 = last.or(acknowledged).expect("a round").parse().unwrap();
        let found = whole_round(&open(dir.path()), round_rows);
        assert!(found >= acknowledged, "kill {kill}: round {acknowledged} was acknowledged, found {found}");
        rounds.push(found);
    }
    println!("rounds found after each kill: {rounds:?}");
    assert!(rounds.last() > rounds.first());
}

/// This process's memory that is its own and not a file's, in bytes.
#[cfg(target_os = "linux")]
fn private_bytes() -> u64 {
    let rollup = fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let kilobytes = |name: &str| -> u64 {
        let line = rollup.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    1024 * (kilobytes("Private_Clean:") + kilobytes("Private_Dirty:"))
}

/// Does some work and samples the process's private memory meanwhile; returns the peak in bytes.
#[cfg(target_os = "linux")]
pub fn with_peak_memory<T>(work: impl FnOnce() -> T) -> (u64, T) {
    let (peak, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let result = thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                peak.fetch_max(private_bytes(), Ordering::Relaxed);
                thread::sleep(Duration::from_millis(20));
            }
        });
        let result = work();
        peak.fetch_max(private_bytes(), Ordering::Relaxed);
        done.store(true, Ordering::Relaxed);
        result
    });
    (peak.into_inner(), result)
}

/// Key `n` of a load: 64 bytes, four in five under one of 200 hot contracts.
fn load_key(n: u64) -> Vec<u8> {
    let mut state = n;
    let first = next_random(&mut state);
    let mut contract = if first % 10 < 8 { first / 10 % 200 } else { first };
    let mut key = Vec::with_capacity(64);
    for half in [&mut contract, &mut state] {
        for _ in 0..4 {
            key.extend_from_slice(&next_random(half).to_be_bytes());
        }
    }
    key
}

#[cfg(target_os = "linux")]
const LOAD_UNIT: usize = 10_000;

/// Loads so many entries in units of [`LOAD_UNIT`], each made durable, and prints the peak of private memory in MiB.
#[cfg(target_os = "linux")]
pub fn child_load(dir: &Path, argument: &str) {
    let (entries, cache_mib) = argument.split_once(' ').unwrap();
    let (entries, cache_mib): (u64, u64) = (entries.parse().unwrap(), cache_mib.parse().unwrap());
    let config = SledConfig::default().with_cache_bytes(cache_mib * MIB);
    let started = Instant::now();
    let mut slowest = Duration::ZERO;
    let (peak, store) = with_peak_memory(|| {
        let store = SledStore::open(dir, config.clone()).unwrap();
        for first in (0..entries).step_by(LOAD_UNIT) {
            let mut rows = WriteBatch::default();
            for n in first..(first + LOAD_UNIT as u64).min(entries) {
                rows.put(load_key(n), vec![n as u8; 32]);
            }
            let unit_started = Instant::now();
            store.write(&rows).unwrap();
            store.sync().unwrap();
            slowest = slowest.max(unit_started.elapsed());
        }
        store
    });
    let file = fs::metadata(dir.join("db")).unwrap().len();
    let loaded = started.elapsed();
    let closing = Instant::now();
    drop(store);
    let closing = closing.elapsed();
    let opening = Instant::now();
    let store = SledStore::open(dir, config).unwrap();
    let opening = opening.elapsed();
    assert_eq!(store.get(&load_key(entries / 2)).unwrap(), Some(vec![(entries / 2) as u8; 32]));
    println!(
        ">{} MiB; {entries} entries in {loaded:.1?}, slowest unit {slowest:.1?}, file {} MiB, \
         closed in {closing:.1?}, reopened in {opening:.1?}",
        peak / MIB,
        file / MIB
    );
}

#[cfg(not(target_os = "linux"))]
pub fn child_load(_dir: &Path, _argument: &str) {
    println!(">0 MiB; not measured here");
}

/// Loads in a child process and checks its peak of private memory.
fn check_load_memory(entries: u64, cache_mib: u64, peak_mib_max: u64) {
    let dir = tempfile::tempdir().unwrap();
    let report = child::run(&format!("sled-load {entries} {cache_mib}"), dir.path()).pop().unwrap();
    println!("peak private memory of a load: {report}");
    let peak_mib: u64 = report.split(' ').next().unwrap().parse().unwrap();
    assert!(peak_mib < peak_mib_max, "{report}, at most {peak_mib_max} MiB allowed");
}

/// A fifth of the load below, as much as fits a test run. Its peak is 133 MiB; with batches as long as units it was 270, and
/// without garbage collection after each 930.
#[test]
#[cfg(target_os = "linux")]
fn load_of_400_000_entries_stays_below_256_mib() {
    check_load_memory(400_000, 256, 256);
}

/// `cargo test --release --test it -- --ignored --nocapture store_sled::load_of_2_000_000`
#[test]
#[ignore = "takes more than a minute"]
#[cfg(target_os = "linux")]
fn load_of_2_000_000_entries_stays_below_1_gib() {
    check_load_memory(2_000_000, 256, 1024);
}
