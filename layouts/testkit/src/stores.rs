//! The exam for stores: what the engine and the layouts rely on.

#![expect(clippy::unwrap_used, reason = "a store that fails here does not conform")]

use std::ops::ControlFlow;
use std::path::Path;

use flagstone_core::store::{Store, StoreError, WriteBatch};

/// The longest key that is ever written, in bytes.
pub const KEY_BYTES: usize = 256;

/// The longest row that is ever written, in bytes, with its seal.
pub const ROW_BYTES: usize = 4608;

/// A batch in the order said: a row, or `None` to delete.
pub fn batch<'a>(words: impl IntoIterator<Item = (&'a [u8], Option<&'a [u8]>)>) -> WriteBatch {
    let mut batch = WriteBatch::default();
    for (key, row) in words {
        match row {
            Some(row) => batch.put(key, row),
            None => batch.delete(key),
        }
    }
    batch
}

/// Keys and their rows.
pub type Rows = Vec<(Vec<u8>, Vec<u8>)>;

/// All rows under a prefix, at most so many.
pub fn scan(store: &dyn Store, prefix: &[u8], max: usize) -> Result<Rows, StoreError> {
    let mut rows = Vec::new();
    store.scan(prefix, &mut |key, row| {
        rows.push((key.to_vec(), row.to_vec()));
        if rows.len() < max { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    Ok(rows)
}

fn keys(store: &dyn Store, prefix: &[u8]) -> Vec<Vec<u8>> {
    scan(store, prefix, usize::MAX).unwrap().into_iter().map(|(key, _)| key).collect()
}

/// Runs every check. `open` opens the store in a directory, or makes it there; the directories that it gets are below `dir` and
/// missing at first.
///
/// # Panics
/// If the store does not conform.
pub fn conforms(dir: &Path, open: impl Fn(&Path) -> Box<dyn Store>) {
    keeps_rows(&dir.join("rows"), &open);
    takes_the_longest_rows(open(&dir.join("longest")).as_ref());
}

/// Runs the checks for which rows need not be long: a store behind another one that adds to each row passes these alone.
///
/// # Panics
/// If the store does not conform.
pub fn keeps_rows(dir: &Path, open: impl Fn(&Path) -> Box<dyn Store>) {
    let opened = open(dir);
    let store = opened.as_ref();
    assert!(store.capabilities().atomic_batches, "the engine takes no store without");
    empty_store_has_nothing(store);
    rows_come_back_in_the_order_asked(store);
    prefix_scans_are_ascending_and_exact(store);
    scans_begin_where_they_are_told(store);
    deletes_delete(store);
    last_word_in_a_batch_counts(store);
    visitors_stop_a_scan(store);
    many_rows_stay_in_order(store);
    store.sync().unwrap();
    let (name, durable) = (store.name(), store.capabilities().durable);
    let rows = scan(store, b"", usize::MAX).unwrap();
    drop(opened);
    if durable {
        let again = open(dir);
        assert_eq!(again.name(), name);
        assert!(
            scan(again.as_ref(), b"", usize::MAX).unwrap() == rows,
            "what was synced is there after a reopening"
        );
    }
}

fn empty_store_has_nothing(store: &dyn Store) {
    store.write(&WriteBatch::default()).unwrap();
    store.sync().unwrap();
    assert_eq!(store.get(b"").unwrap(), None);
    assert_eq!(store.get_many(&[]).unwrap(), Vec::<Option<Vec<u8>>>::new());
    assert_eq!(keys(store, b""), Vec::<Vec<u8>>::new());
}

fn rows_come_back_in_the_order_asked(store: &dyn Store) {
    store.write(&batch([(&b"b"[..], Some(&b"2"[..])), (b"a", Some(b"1")), (b"empty", Some(b""))])).unwrap();
    assert_eq!(store.get(b"a").unwrap(), Some(b"1".to_vec()));
    assert_eq!(store.get(b"empty").unwrap(), Some(Vec::new()));
    let asked: [&[u8]; 5] = [b"b", b"absent", b"a", b"b", b"empty"];
    let rows = store.get_many(&asked).unwrap();
    let expected = [Some(b"2".to_vec()), None, Some(b"1".to_vec()), Some(b"2".to_vec()), Some(Vec::new())];
    assert_eq!(rows, expected);
}

fn prefix_scans_are_ascending_and_exact(store: &dyn Store) {
    let all: [&[u8]; 10] = [
        &[0x7f, 0xff],
        &[0x80],
        &[0x80, 0x00],
        &[0x80, 0x00, 0x00],
        &[0x80, 0xff],
        &[0x81],
        &[0xff],
        &[0xff, 0x00],
        &[0xff, 0xff],
        &[0xff, 0xff, 0x01],
    ];
    store.write(&batch(all.iter().rev().map(|key| (*key, Some(*key))))).unwrap();
    assert_eq!(keys(store, &[0x80]), all[1..5]);
    assert_eq!(keys(store, &[0x80, 0x00]), all[2..4]);
    assert_eq!(keys(store, &[0x80, 0x01]), Vec::<Vec<u8>>::new());
    assert_eq!(keys(store, &[0xff]), all[6..]);
    assert_eq!(keys(store, &[0xff, 0xff]), all[8..]);
    assert_eq!(keys(store, &[0xff, 0xff, 0xff]), Vec::<Vec<u8>>::new());
    let everything = keys(store, &[]);
    assert!(everything.is_sorted());
    assert!(all.iter().all(|key| everything.iter().any(|found| found == key)));
    for (key, row) in scan(store, &[0xff], usize::MAX).unwrap() {
        assert_eq!(key, row);
    }
}

fn scans_begin_where_they_are_told(store: &dyn Store) {
    let from = |prefix: &[u8], from: &[u8]| {
        let mut keys = Vec::new();
        let mut visit = |key: &[u8], _: &[u8]| {
            keys.push(key.to_vec());
            ControlFlow::Continue(())
        };
        store.scan_from(prefix, from, &mut visit).unwrap();
        keys
    };
    assert_eq!(from(&[0x80], &[0x80, 0x00, 0x00]), keys(store, &[0x80])[2..]);
    assert_eq!(from(&[0x80], &[0x80, 0x01]), keys(store, &[0x80])[3..]);
    assert_eq!(from(&[0x80], &[0x7f]), keys(store, &[0x80]));
    assert_eq!(from(&[0x80], &[0x81]), Vec::<Vec<u8>>::new());
}

fn deletes_delete(store: &dyn Store) {
    store.write(&batch([(&b"gone"[..], Some(&b"1"[..])), (b"stays", Some(b"2"))])).unwrap();
    store.write(&batch([(&b"gone"[..], None), (b"never was", None)])).unwrap();
    assert_eq!(store.get(b"gone").unwrap(), None);
    assert_eq!(store.get(b"never was").unwrap(), None);
    assert_eq!(store.get(b"stays").unwrap(), Some(b"2".to_vec()));
    assert_eq!(keys(store, b"gone"), Vec::<Vec<u8>>::new());
}

fn last_word_in_a_batch_counts(store: &dyn Store) {
    let mut first =
        batch([(&b"x"[..], Some(&b"1"[..])), (b"y", Some(b"1")), (b"x", Some(b"2")), (b"y", None)]);
    store.write(&first).unwrap();
    assert_eq!(store.get_many(&[b"x", b"y"]).unwrap(), [Some(b"2".to_vec()), None]);
    first.append(batch([(&b"x"[..], None), (b"y", Some(&b"3"[..]))]));
    store.write(&first).unwrap();
    assert_eq!(store.get_many(&[b"x", b"y"]).unwrap(), [None, Some(b"3".to_vec())]);
}

fn visitors_stop_a_scan(store: &dyn Store) {
    store.write(&batch([(&b"s1"[..], Some(&b""[..])), (b"s2", Some(b"")), (b"s3", Some(b""))])).unwrap();
    for max in 1..=3 {
        assert_eq!(scan(store, b"s", max).unwrap().len(), max);
    }
    assert_eq!(scan(store, b"s", 2).unwrap()[1].0, b"s2");
}

/// Enough rows for pages to split and, when deleted, to merge.
fn many_rows_stay_in_order(store: &dyn Store) {
    let key = |n: u32| [&b"many"[..], &n.to_be_bytes()].concat();
    for chunk in 0..10_u32 {
        let mut rows = WriteBatch::default();
        // Every tenth key in each batch, so that batches interleave.
        for n in (0..3000).filter(|n| n % 10 == chunk) {
            rows.put(key(n), n.to_le_bytes());
        }
        store.write(&rows).unwrap();
    }
    let found = scan(store, b"many", usize::MAX).unwrap();
    assert!(found.into_iter().eq((0..3000).map(|n| (key(n), n.to_le_bytes().to_vec()))));
    let mut deletes = WriteBatch::default();
    for n in (0..3000).filter(|n| n % 7 != 0) {
        deletes.delete(key(n));
    }
    store.write(&deletes).unwrap();
    assert!(keys(store, b"many").into_iter().eq((0..3000).filter(|n| n % 7 == 0).map(key)));
}

fn takes_the_longest_rows(store: &dyn Store) {
    let long = |first: u8| [vec![first], vec![0xab; KEY_BYTES - 1]].concat();
    let mut rows = WriteBatch::default();
    (0..40).for_each(|first| rows.put(long(first), vec![first; ROW_BYTES]));
    store.write(&rows).unwrap();
    for first in 0..40 {
        assert_eq!(store.get(&long(first)).unwrap(), Some(vec![first; ROW_BYTES]));
    }
}
