//! A layout and a store of a third party, made of nothing but the public interface, and databases in directories with them.

mod ledger;
mod one_file;

use std::fs;
use std::path::Path;

use flagstone::core::types::BlockNumber;
use flagstone::database::{
    self, Catalogue, Options, RecoverOptions, STORES, Source, StoreEntry, StoreSetting, StoreSettings,
};
use flagstone::engine::BlockRoot;
use flagstone::registry::{LAYOUTS, LayoutEntry};
use flagstone::{Cadence, Engine, ErrorKind, StateDiff, StateUpdate, snapshot};
use flagstone_testkit::stores::conforms;

use crate::support::{Place, config, settle};
use ledger::Ledger;
use one_file::OneFile;

mod ledger_conforms {
    flagstone_testkit::conformance!(super::Ledger);
}

#[test]
fn the_store_conforms() {
    let dir = tempfile::tempdir().unwrap();
    conforms(dir.path(), |dir| one_file().open(dir, &StoreSettings::default()).unwrap());
}

fn ledger() -> LayoutEntry {
    LayoutEntry::new("ledger", "a row for each value, and nothing else", || Box::new(Ledger))
}

fn one_file() -> StoreEntry {
    StoreEntry::new("one-file", "a map, written whole to one file", |dir, settings| {
        Ok(Box::new(OneFile::open(dir, settings.get("bytes_max")?)?))
    })
    .with_setting(StoreSetting::new::<usize>("bytes_max", "most bytes of the file", "1073741824"))
}

fn catalogue() -> Catalogue {
    Catalogue::default().with_layout(ledger()).unwrap().with_store(one_file()).unwrap()
}

fn options() -> Options {
    Options::default().with_engine(config(Cadence::EVERY_BLOCK, 1))
}

fn ours() -> Options {
    options().with_layout("ledger").with_store("one-file")
}

fn block(number: u64) -> StateUpdate {
    let diff = StateDiff::builder()
        .class_hash(number.into(), (number + 1).into())
        .nonce(1.into(), (number + 1).into())
        .storage(1.into(), (number % 3).into(), (number % 4).into())
        .class((number + 20).into(), (number + 40).into());
    StateUpdate {
        block_number: Some(BlockNumber(number)),
        starknet_version: "0.14.0".parse().ok(),
        ..StateUpdate::from(diff.build().unwrap())
    }
}

/// Closes blocks, and returns the head's root when all are committed and in the store.
fn close(engine: &Engine, blocks: std::ops::Range<u64>) -> BlockRoot {
    blocks.for_each(|number| drop(engine.close_block(&block(number)).unwrap()));
    settle(engine);
    engine.head().root
}

/// The root after so many blocks, by a built-in layout.
fn expected(blocks: u64) -> BlockRoot {
    close(&Place::memory().open("patricia-path", config(Cadence::EVERY_BLOCK, 1)), 0..blocks)
}

/// A database with five blocks.
fn made(dir: &Path) {
    assert_eq!(close(&catalogue().open_or_create(dir, &ours()).unwrap(), 0..5), expected(5));
}

#[test]
fn a_database_is_opened_by_the_names_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("db");
    made(&db);
    let marker = fs::read_to_string(db.join("FLAGSTONE")).unwrap();
    assert!(marker.contains("layout: ledger\n") && marker.contains("store: one-file\n"), "{marker}");

    let engine = catalogue().open(&db, &options()).unwrap();
    assert_eq!((engine.identity().layout.as_str(), engine.store_name()), ("ledger", "one-file"));
    assert_eq!(close(&engine, 5..8), expected(8));
    assert_eq!(engine.view().nonce_at(&1.into()).unwrap(), 8.into());
    assert_eq!(engine.revert_to(BlockNumber(6)).unwrap(), expected(7));
    drop(engine);
    assert_eq!(close(&catalogue().open_or_create(&db, &ours()).unwrap(), 7..9), expected(9));
}

#[test]
fn looking_and_checking_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("db");
    made(&db);
    let file = fs::read(db.join("store/rows")).unwrap();
    let looking = catalogue().open_read_only(&db, &options()).unwrap();
    assert_eq!(looking.head().root, expected(5));
    assert_eq!(looking.close_block(&block(5)).unwrap_err().kind(), ErrorKind::Input);
    drop(looking);
    let check = || catalogue().check(&db, &options(), &|_| ()).unwrap();
    assert!(check().is_sound());
    assert_eq!(fs::read(db.join("store/rows")).unwrap(), file);

    // The file without its last row.
    let store = one_file().open(&db.join("store"), &StoreSettings::default()).unwrap();
    let mut last = Vec::new();
    let mut visit = |key: &[u8], _: &[u8]| {
        last = key.to_vec();
        std::ops::ControlFlow::Continue(())
    };
    store.scan(b"", &mut visit).unwrap();
    store.write(&flagstone_testkit::stores::batch([(last.as_slice(), None)])).unwrap();
    store.sync().unwrap();
    drop(store);
    assert!(!check().is_sound());
}

#[test]
fn states_move_to_and_from_what_is_built_in() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    made(&path("db"));
    let engine = catalogue().open(&path("db"), &options()).unwrap();
    let mut dump = Vec::new();
    snapshot::export(&engine, None, &mut dump, &mut |_| {}).unwrap();
    let import = |name: &str, options: &Options, dump: &[u8]| {
        catalogue().import(&path(name), options, dump, &mut |_| ()).unwrap();
        let engine = catalogue().open(&path(name), &self::options()).unwrap();
        let mut dump = Vec::new();
        snapshot::export(&engine, None, &mut dump, &mut |_| {}).unwrap();
        assert_eq!(close(&engine, 5..7), expected(7), "{name}");
        dump
    };
    let again = import("built-in", &options(), &dump);
    assert!(again == dump && import("ours", &ours(), &again) == dump);
    let marker = fs::read_to_string(path("built-in").join("FLAGSTONE")).unwrap();
    assert!(marker.contains("layout: flat\n"), "{marker}");
}

#[test]
fn an_import_that_was_cut_short_goes_on_and_is_opened_by_nobody_before() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    made(&from);
    let mut dump = Vec::new();
    let engine = catalogue().open(&from, &options()).unwrap();
    snapshot::export(&engine, None, &mut dump, &mut |_| {}).unwrap();
    catalogue().import(&to, &ours(), &dump[..dump.len() - 1], &mut |_| ()).unwrap_err();
    assert!(database::is_in(&to) && to.join("import-one-file").is_dir());
    let error = catalogue().open(&to, &options()).unwrap_err();
    assert!(error.to_string().contains("an import into store `one-file` has begun"), "{error}");
    // Neither the layout nor the store must be named again, and the settings are of that store.
    let roomy = options().with_store_settings(StoreSettings::default().with("bytes_max", 1 << 20));
    catalogue().import(&to, &roomy, &dump[..], &mut |_| ()).unwrap();
    let engine = catalogue().open(&to, &options()).unwrap();
    assert_eq!((engine.identity().layout.as_str(), engine.store_name()), ("ledger", "one-file"));
    assert_eq!(engine.head().root, expected(5));
}

#[test]
fn a_damaged_one_is_recovered() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("db");
    made(&db);
    fs::write(db.join("store/rows"), b"nonsense").unwrap();
    let error = catalogue().open(&db, &options()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
    let recovered = catalogue().recover(&db, &options(), RecoverOptions::default()).unwrap();
    assert_eq!((recovered.source, recovered.lost), (Source::Journal, None));
    assert_eq!(close(&catalogue().open(&db, &options()).unwrap(), 5..6), expected(6));
    let sound = catalogue().recover(&db, &options(), RecoverOptions::default()).unwrap_err();
    assert_eq!(sound.kind(), ErrorKind::Input, "{sound}");
}

#[test]
fn what_is_not_in_the_catalogue_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("db");
    made(&db);
    let open = |catalogue: Catalogue, options: &Options| {
        let error = catalogue.open(&db, options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Misconfigured, "{error}");
        error.to_string()
    };
    let known = |names: Vec<&str>| names.join(", ");
    let layouts = known(LAYOUTS.iter().map(|layout| layout.name).collect());
    let error = open(Catalogue::default(), &options());
    assert_eq!(error, format!("no layout named `ledger`; known layouts: {layouts}"));
    let error = open(Catalogue::default().with_layout(ledger()).unwrap(), &options());
    let stores = known(STORES.iter().map(|store| store.name).collect());
    assert_eq!(error, format!("no store named `one-file`; known stores: {stores}"));
    let error = open(catalogue(), &options().with_store("sled"));
    assert!(error.contains("written by `one-file`, opened as `sled`"), "{error}");
    let error = open(catalogue(), &options().with_layout("flat"));
    assert!(error.contains("written by `ledger` v1, opened as `flat`"), "{error}");
    let error = database::check(&db, config(Cadence::EVERY_BLOCK, 1), &|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Misconfigured, "{error}");
    // Who has no catalogue names the layout itself; the store is then the built-in one.
    let other = dir.path().join("other");
    let engine = database::open_or_create(&other, Some(&ledger()), None, config(Cadence::EVERY_BLOCK, 1));
    assert_eq!(close(&engine.unwrap(), 0..2), expected(2));
}

#[test]
fn names_that_are_taken_or_are_none_are_refused() {
    let make = || -> Box<dyn flagstone::core::layout::Layout> { Box::new(Ledger) };
    for (name, text) in [
        ("flat", "there is a layout named `flat` already"),
        ("led/ger", "`led/ger` cannot be the name of a layout"),
        ("book", "layout `book` cannot be listed: it calls itself `ledger`"),
    ] {
        let error = Catalogue::default().with_layout(LayoutEntry::new(name, "", make)).unwrap_err();
        assert!(error.to_string().starts_with(text), "{error}");
        assert_eq!(error.kind(), ErrorKind::Misconfigured);
    }
    let store = |name| StoreEntry::new(name, "", |dir, _| Ok(Box::new(OneFile::open(dir, 0)?)));
    for (name, text) in [("sled", "there is a store named `sled` already"), ("", "`` cannot be the name")] {
        let error = Catalogue::default().with_store(store(name)).unwrap_err();
        assert!(error.to_string().starts_with(text), "{error}");
    }
    let wrong = store("mine").with_setting(StoreSetting::new::<bool>("keen", "", "perhaps"));
    assert!(Catalogue::default().with_store(wrong).is_err());
}

#[test]
fn settings_reach_the_store_and_others_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("db");
    let with =
        |name: &str, value: &str| ours().with_store_settings(StoreSettings::default().with(name, value));
    for (name, value, text) in [
        ("bytes", "1", "store `one-file` has no setting named `bytes`; it takes bytes_max"),
        ("bytes_max", "few", "setting `bytes_max` of store `one-file` cannot be `few`"),
    ] {
        let error = catalogue().open_or_create(&db, &with(name, value)).unwrap_err();
        assert!(error.to_string().starts_with(text), "{error}");
        assert_eq!(error.kind(), ErrorKind::Misconfigured);
        assert!(!db.exists(), "nothing is made before the settings are looked at");
    }
    made(&db);
    let error = catalogue().open(&db, &with("bytes", "1")).unwrap_err();
    assert!(error.to_string().contains("no setting named `bytes`"), "{error}");
    let length = fs::metadata(db.join("store/rows")).unwrap().len();
    let engine = catalogue().open(&db, &with("bytes_max", &(length + 10).to_string())).unwrap();
    engine.close_block(&block(5)).unwrap();
    engine.commit().unwrap();
    let error = engine.sync().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Full, "{error}");
    drop(engine);
    // The block is in the journal, and with room it goes on.
    assert_eq!(close(&catalogue().open(&db, &options()).unwrap(), 6..7), expected(7));
}
