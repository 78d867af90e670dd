//! The traps of fjall, each shown to be one where that can be, and what keeps us out of it.

use std::collections::BTreeMap;

use super::*;

fn batch(rows: impl IntoIterator<Item = (u32, Vec<u8>)>) -> WriteBatch {
    rows.into_iter().map(|(key, row)| (key.to_be_bytes(), Some(row))).collect()
}

/// A batch of some rows that span several pages.
fn unit(n: u8) -> WriteBatch {
    batch((0..40).map(|key| (key, vec![n; 500])))
}

fn open(dir: &Path) -> Result<FjallStore, StoreError> {
    FjallStore::open(dir, FjallConfig::default())
}

/// A store that has these units, all synced but the last.
fn with_units(dir: &Path, last: u8) {
    let store = open(dir).unwrap();
    for n in 1..=last {
        store.write(&unit(n)).unwrap();
        if n < last {
            store.sync().unwrap();
        }
    }
}

fn rows(store: &dyn StoreRead) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut rows = BTreeMap::new();
    let visit = &mut |key: &[u8], row: &[u8]| {
        rows.insert(key.to_vec(), row.to_vec());
        ControlFlow::Continue(())
    };
    store.scan(b"", visit).unwrap();
    rows
}

fn newest(dir: &Path) -> journal::JournalFile {
    journal::read_all(&dir.join(FILES)).unwrap().pop().unwrap()
}

fn has_unit(store: &dyn StoreRead, n: u8) -> bool {
    let rows = rows(store);
    rows.len() == 40 && rows.values().all(|row| *row == vec![n; 500])
}

#[test]
fn a_panic_inside_fjall_is_an_error_and_stops_the_store() {
    let dir = tempfile::tempdir().unwrap();
    with_units(dir.path(), 1);
    let store = open(dir.path()).unwrap();
    let err = store.opened().unwrap().call::<()>("read", || panic!("lost table {}", 7)).unwrap_err();
    assert_eq!(err.kind(), StoreErrorKind::Corrupt);
    assert!(err.to_string().contains("lost table 7"), "{err}");
    assert_eq!(store.get(b"key"), Err(err.clone()));
    assert_eq!(store.write(&unit(2)), Err(err.clone()));
    assert_eq!(store.sync(), Err(err));
    drop(store);
    assert!(has_unit(&open(dir.path()).unwrap(), 1));
}

#[test]
fn a_creation_that_is_cut_short_is_begun_again() {
    let dir = tempfile::tempdir().unwrap();
    let cut_short = |dir: &Path| {
        fs::create_dir_all(dir.join("keyspaces")).unwrap();
        for file in ["lock", "0.jnl", "version"] {
            fs::write(dir.join(file), "").unwrap();
        }
    };
    let theirs = dir.path().join("theirs");
    cut_short(&theirs);
    assert!(fjall::Database::builder(&theirs).open().is_err(), "no trap any more");
    cut_short(&dir.path().join(MAKING));
    drop(open(dir.path()).unwrap());
    assert!(has_unit(
        &{
            with_units(dir.path(), 1);
            open(dir.path()).unwrap()
        },
        1
    ));
    assert!(!dir.path().join(MAKING).exists());
}

/// The batch was never synced, and the power went: one of its pages is zeros, all around it is there.
#[test]
fn a_torn_batch_at_the_end_goes_and_all_before_it_stays() {
    let dir = tempfile::tempdir().unwrap();
    let dirs = ["whole", "torn"].map(|name| dir.path().join(name));
    with_units(&dirs[0], 2);
    let before = newest(&dirs[0]).whole_bytes;
    with_units(&dirs[1], 3);
    let journal = newest(&dirs[1]);
    let whole = fs::read(&journal.path).unwrap();
    for page in before / 4096 + 1..journal.whole_bytes / 4096 {
        let mut torn = whole.clone();
        let page = page as usize * 4096;
        torn[page..page + 4096].fill(0);
        fs::write(&journal.path, &torn).unwrap();
        assert!(newest(&dirs[1]).is_torn && newest(&dirs[1]).whole_bytes == before);
        assert!(has_unit(&open(&dirs[1]).unwrap(), 2), "page {page}");
        assert_eq!(fs::metadata(&journal.path).unwrap().len(), before);
    }
    let mut torn = whole;
    torn[journal.whole_bytes as usize - 200] ^= 1;
    fs::write(&journal.path, &torn).unwrap();
    let theirs = fjall::Database::builder(dirs[1].join(FILES)).open();
    assert!(matches!(theirs, Err(fjall::Error::JournalRecovery(_))), "no trap any more");
    assert!(has_unit(&open(&dirs[1]).unwrap(), 2));
}

#[test]
fn an_older_journal_that_is_torn_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    with_units(dir.path(), 3);
    let files = dir.path().join(FILES);
    let (oldest, newer) = (newest(dir.path()).path, files.join("1.jnl"));
    fs::copy(&oldest, &newer).unwrap();
    let mut bytes = fs::read(&oldest).unwrap();
    bytes[1000] ^= 1;
    fs::write(&oldest, bytes).unwrap();
    let err = open(dir.path()).unwrap_err();
    assert_eq!(err.kind(), StoreErrorKind::Corrupt);
    assert!(err.to_string().contains("0.jnl is damaged behind its first"), "{err}");
    // Who distrusts every row gets those that are there.
    let store = FjallStore::open_damaged(dir.path(), FjallConfig::default()).unwrap();
    assert!(has_unit(&store, 3));
}

/// As a read that fails at the wrong byte does it.
#[test]
fn a_journal_that_is_shorter_after_the_opening_is_told() {
    let dir = tempfile::tempdir().unwrap();
    with_units(dir.path(), 3);
    let before = newest(dir.path());
    check_uncut(dir.path(), Some(newest(dir.path()))).unwrap();
    File::options().write(true).open(&before.path).unwrap().set_len(before.whole_bytes - 1).unwrap();
    let err = check_uncut(dir.path(), Some(before)).unwrap_err();
    assert!(err.kind() == StoreErrorKind::Corrupt && err.to_string().contains("was cut from"), "{err}");
}

#[test]
fn one_store_at_a_time_has_the_directory_and_a_snapshot_holds_it() {
    let dir = tempfile::tempdir().unwrap();
    with_units(dir.path(), 1);
    let store = open(dir.path()).unwrap();
    assert_eq!(open(dir.path()).unwrap_err().kind(), StoreErrorKind::Locked);
    let snapshot = store.snapshot().unwrap();
    store.write(&unit(2)).unwrap();
    assert!(has_unit(&snapshot, 1) && has_unit(&store, 2));
    assert_eq!(snapshot.get(&7u32.to_be_bytes()).unwrap(), Some(vec![1; 500]));
    drop(store);
    assert_eq!(open(dir.path()).unwrap_err().kind(), StoreErrorKind::Locked);
    drop(snapshot);
    assert!(has_unit(&open(dir.path()).unwrap(), 2));
}

#[test]
#[cfg(unix)]
fn a_store_whose_files_are_deleted_syncs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    store.write(&unit(1)).unwrap();
    fs::remove_dir_all(dir.path()).unwrap();
    let err = store.sync().unwrap_err();
    assert!(err.to_string().contains("deleted while it was open"), "{err}");
    assert_eq!(store.get(b"key"), Err(err));
}

/// fjall's threads die of a table that cannot be written, and it would wait for them for ever.
#[test]
#[cfg(unix)]
fn writing_fails_when_the_threads_have_died() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    fs::remove_dir_all(dir.path().join(FILES).join("keyspaces")).unwrap();
    let large = batch((0..4000).map(|key| (key, vec![7; 4096])));
    let units = usize::try_from(10 * MEMTABLE_BYTES).unwrap() / large.bytes();
    let failed = (0..units).find_map(|_| store.write(&large).err()).expect("a failure is told");
    assert_eq!(failed.kind(), StoreErrorKind::Io);
    assert!(failed.to_string().contains("an earlier write of its threads failed"), "{failed}");
    assert_eq!(store.sync(), Err(failed));
}

/// All files are as they were, whatever the shadow's store does.
#[test]
fn a_shadow_has_all_rows_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    let large = batch((0..12_000).map(|key| (key, vec![7; 4096])));
    let store = open(&from).unwrap();
    store.write(&large).unwrap();
    while store.opened().unwrap().rows.table_count() == 0 {
        thread::sleep(WAIT);
    }
    store.write(&unit(1)).unwrap();
    let rows_then = rows(&store);
    drop(store);
    let bytes = |dir: &Path| {
        let mut bytes = BTreeMap::new();
        let mut dirs = vec![dir.to_owned()];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(&dir).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => dirs.push(path),
                    false => drop(bytes.insert(path.clone(), crc32fast::hash(&fs::read(path).unwrap()))),
                }
            }
        }
        bytes
    };
    let before = bytes(&from);
    fs::create_dir(&to).unwrap();
    let copied = FjallStore::shadow(&from, &to).unwrap();
    assert!(copied < 60 << 20, "{copied} bytes are more than the journal's");
    let shadow = open(&to).unwrap();
    assert!(rows(&shadow) == rows_then);
    shadow.write(&large).unwrap();
    shadow.opened().unwrap().rows.major_compact().unwrap();
    drop(shadow);
    assert!(bytes(&from) == before);
}
