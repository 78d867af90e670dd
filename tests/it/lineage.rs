//! Store and journal held against each other when a database is opened: parts of other databases, of other histories, and
//! damage to the store are refused or brought right, and no acknowledged block is taken back for them.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use flagstone::core::types::{BlockNumber, StateCommitment};
use flagstone::engine::{Blob, NewBlock};
use flagstone::journal::OsFiles;
use flagstone::store::{Capabilities, Row, Store, StoreError, StoreRead, Visit, WriteBatch, keyspace};
use flagstone::{Cadence, Engine, EngineConfig, Error, ErrorKind, StateDiff, StateUpdate, database};

use crate::support::{config, layouts, settle};

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

/// A durable store in memory that can be put back to what it was.
#[derive(Clone, Default)]
pub struct Mem(Arc<Mutex<Rows>>);

impl Mem {
    pub fn of(rows: Rows) -> Self {
        Self(Arc::new(Mutex::new(rows)))
    }

    pub fn rows(&self) -> Rows {
        self.0.lock().unwrap().clone()
    }
}

impl StoreRead for Mem {
    fn get(&self, key: &[u8]) -> Result<Row, StoreError> {
        Ok(self.0.lock().unwrap().get(key).cloned())
    }
    fn scan(&self, prefix: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        for (key, row) in self.rows().range(prefix.to_vec()..).take_while(|(key, _)| key.starts_with(prefix))
        {
            if let ControlFlow::Break(()) = visit(key, row) {
                break;
            }
        }
        Ok(())
    }
}

impl Store for Mem {
    fn name(&self) -> &'static str {
        "mem"
    }
    fn write(&self, batch: &WriteBatch) -> Result<(), StoreError> {
        let mut rows = self.0.lock().unwrap();
        for (key, row) in batch.iter() {
            match row {
                Some(row) => rows.insert(key.to_vec(), row.to_vec()),
                None => rows.remove(key),
            };
        }
        Ok(())
    }
    fn sync(&self) -> Result<(), StoreError> {
        Ok(())
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities { atomic_batches: true, durable: true }
    }
}

/// A journal in a directory, and what can be done with it and stores.
struct Place {
    layout: &'static str,
    _dir: tempfile::TempDir,
    journal: PathBuf,
    config: EngineConfig,
}

impl Place {
    fn new(layout: &'static str, config: EngineConfig) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { layout, journal: dir.path().join("journal"), _dir: dir, config }
    }

    fn open(&self, store: &Mem) -> Result<Engine, Error> {
        let layout = flagstone::layout(self.layout).unwrap().make();
        Engine::open_journaled(Box::new(store.clone()), layout, self.config, Arc::new(OsFiles), &self.journal)
    }

    fn saved(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let files = fs::read_dir(&self.journal).unwrap().map(|entry| entry.unwrap().path());
        files.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
    }

    fn put_back(&self, saved: &[(PathBuf, Vec<u8>)]) {
        fs::remove_dir_all(&self.journal).unwrap();
        fs::create_dir(&self.journal).unwrap();
        saved.iter().for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
    }
}

/// Sets some slots, on both sides of the trie's fork, to what tells the block.
fn block(number: u64) -> StateUpdate {
    let slots = (0..40u64).map(|key| key * 0x1000 + number % 3);
    let diff = slots.fold(StateDiff::builder(), |diff, key| {
        diff.storage((1 + key % 2).into(), key.into(), (number + 1).into())
    });
    StateUpdate {
        block_number: Some(BlockNumber(number)),
        starknet_version: "0.14.0".parse().ok(),
        ..StateUpdate::from(
            diff.nonce(1.into(), (number + 1).into()).class(7.into(), 8.into()).build().unwrap(),
        )
    }
}

fn slot(engine: &Engine, key: u64) -> u64 {
    let value = engine.view().storage_at(&(1 + key % 2).into(), &key.into()).unwrap();
    value
        .to_string()
        .trim_start_matches("0x")
        .chars()
        .fold(0, |all, digit| all * 16 + u64::from(digit.to_digit(16).unwrap()))
}

/// Blocks 0 to 3 persisted, 4 to 7 only in the journal, as a kill leaves it; all roots as they were told.
struct Killed {
    place: Place,
    /// The store after blocks 2 and 3.
    before: Rows,
    now: Rows,
    files: Vec<(PathBuf, Vec<u8>)>,
    roots: Vec<StateCommitment>,
}

fn killed(layout: &'static str, cadence: Cadence) -> Killed {
    let place = Place::new(layout, config(cadence, 1).with_history_blocks(0));
    let store = Mem::default();
    let engine = place.open(&store).unwrap();
    let mut at = Vec::new();
    for number in 0..4 {
        engine.close_block(&block(number)).unwrap();
        settle(&engine);
        at.push(store.rows());
    }
    (4..8).for_each(|number| drop(engine.close_block(&block(number)).unwrap()));
    let roots = (0..8).map(|number| engine.wait_for_root(BlockNumber(number)).unwrap().commitment).collect();
    let files = place.saved();
    drop(engine);
    Killed { place, before: at[2].clone(), now: at[3].clone(), files, roots }
}

/// One row of the layout is as it was a block earlier, with its own valid seal, or gone: what a store that lost writes of
/// acknowledged blocks looks like. The journal has these blocks, so either the store is brought right or it is refused; no
/// block is, and no other root is told.
#[test]
fn a_store_that_lost_a_row_is_brought_right_or_refused_and_no_block_is() {
    for (layout, _) in layouts() {
        for cadence in [Cadence::AtClose, Cadence::EVERY_BLOCK] {
            let Killed { place, before, now, files, roots } = killed(layout, cadence);
            let (mut repaired, mut refused) = (0, 0);
            let stale = now.iter().filter(|(key, row)| {
                key[0] >= keyspace::LAYOUT_FIRST && before.get(*key).is_none_or(|old| old != *row)
            });
            for (key, _) in stale {
                for old in [before.get(key), None] {
                    place.put_back(&files);
                    let mut rows = now.clone();
                    match old {
                        Some(old) => rows.insert(key.clone(), old.clone()),
                        None => rows.remove(key),
                    };
                    let what = format!("{layout}, {cadence:?}, {key:02x?} was {old:02x?}");
                    let opened = place.open(&Mem::of(rows)).and_then(|engine| {
                        engine.commit()?;
                        Ok(engine)
                    });
                    match opened {
                        Ok(engine) => {
                            repaired += 1;
                            for (number, root) in (0..).zip(&roots) {
                                let found = engine.wait_for_root(BlockNumber(number)).unwrap().commitment;
                                assert_eq!(found, *root, "{what}");
                            }
                            for number in 0..3 {
                                (0..40).for_each(|key| {
                                    let last = [6, 7, 5][number as usize] + 1;
                                    assert_eq!(slot(&engine, key * 0x1000 + number), last, "{what}");
                                });
                            }
                            assert!(engine.check(&|_| ()).unwrap().is_sound(), "{what}");
                        }
                        Err(error) => {
                            refused += 1;
                            assert_eq!(error.kind(), ErrorKind::Damaged, "{what}: {error}");
                            assert!(
                                error.to_string().contains("flagstone recover")
                                    || error.to_string().contains("damaged"),
                                "{what}: {error}"
                            );
                        }
                    }
                    // With the store of then, all is there: nothing was taken back.
                    let engine =
                        place.open(&Mem::of(now.clone())).unwrap_or_else(|error| panic!("{what}: {error}"));
                    engine.commit().unwrap_or_else(|error| panic!("{what}: {error}"));
                    assert_eq!(engine.head().closed, Some(BlockNumber(7)), "{what}");
                    assert_eq!(engine.head().root.commitment, roots[7], "{what}");
                }
            }
            println!("{layout}, {cadence:?}: {repaired} brought right, {refused} refused");
            assert!(repaired + refused > 20);
        }
    }
}

/// Values of the flat layout are rows of their own; all that the journal knows of come back, and are told.
#[test]
fn values_that_differ_from_the_journals_are_written_again_and_counted() {
    let Killed { place, now, files, .. } = killed("flat", Cadence::EVERY_BLOCK);
    let values: Vec<_> = now.keys().filter(|key| key[0] == 0x10).cloned().collect();
    assert_eq!(values.len(), 3 * 40);
    place.put_back(&files);
    let mut rows = now.clone();
    rows.retain(|key, _| key[0] != 0x10);
    let engine = place.open(&Mem::of(rows)).unwrap();
    assert_eq!(
        (engine.opened().repaired, engine.opened().held_against, engine.opened().replayed),
        (120, 4, 4)
    );
    assert!(!engine.opened().orderly);
    engine.commit().unwrap();
    assert!(engine.check(&|_| ()).unwrap().is_sound());
    drop(engine);
    let place = killed("flat", Cadence::EVERY_BLOCK).place;
    drop(place.open(&Mem::default()).map(|engine| assert_eq!(engine.opened().repaired, 0)));
}

#[test]
fn a_blob_that_is_gone_comes_back_from_the_journal() {
    let place = Place::new("flat", config(Cadence::EVERY_BLOCK, 1));
    let store = Mem::default();
    let engine = place.open(&store).unwrap();
    let blob = |byte: u8| Blob { key: b"class".to_vec(), bytes: vec![byte; 9_000].into() };
    engine.close_block(NewBlock::from(&block(0)).with_blobs(&[blob(1)])).unwrap();
    engine.close_block(NewBlock::from(&block(1)).with_blobs(&[blob(2)])).unwrap();
    settle(&engine);
    let (mut rows, files) = (store.rows(), place.saved());
    drop(engine);
    place.put_back(&files);
    rows.retain(|key, _| key[0] != keyspace::BLOB);
    let engine = place.open(&Mem::of(rows)).unwrap();
    assert_eq!(engine.opened().repaired, 1);
    assert_eq!(engine.view().blob(b"class").unwrap(), Some(blob(2).bytes));
}

/// A root that is stated and right, on a store whose tries lost something that the journal does not know of any more: the
/// store is at fault, so the engine stops, and the block stays.
#[test]
fn a_root_that_does_not_come_out_for_want_of_a_row_is_the_stores_damage() {
    for (layout, make) in layouts() {
        let reference = Engine::open(Box::new(Mem::default()), make, config(Cadence::AtClose, 1)).unwrap();
        (0..6).for_each(|number| drop(reference.close_block(&block(number)).unwrap()));
        let root = |number| reference.block_root(BlockNumber(number)).unwrap().map(|root| root.commitment);
        for at_close in [true, false] {
            let cadence = if at_close { Cadence::AtClose } else { Cadence::EVERY_BLOCK };
            let place =
                Place::new(layout, config(cadence, 1).with_persist_every(1).with_record_cache_bytes(Some(0)));
            let store = Mem::default();
            let engine = place.open(&store).unwrap();
            (0..4).for_each(|number| drop(engine.close_block(&block(number)).unwrap()));
            settle(&engine);
            let old = store.rows();
            engine.close_block(&block(4)).unwrap();
            settle(&engine);
            // All rows of tries as they were one block before: each has its own valid seal.
            let first = if layout == "flat" { 0x20 } else { keyspace::LAYOUT_FIRST };
            let tries = |key: &[u8]| key[0] >= first;
            let kept = store.rows().into_iter().filter(|(key, _)| !tries(key));
            let stale = kept.chain(old.into_iter().filter(|(key, _)| tries(key))).collect();
            *store.0.lock().unwrap() = stale;
            let stated = StateUpdate { new_root: root(5), old_root: root(4), ..block(5) };
            let error = match engine.close_block(&stated) {
                Err(error) => error,
                Ok(_) => engine.commit().unwrap_err(),
            };
            // Whoever asks after the engine has stopped is told that, with the damage as the cause.
            let kinds = [ErrorKind::Damaged, ErrorKind::Stopped];
            assert!(kinds.contains(&error.kind()), "{layout}, {cadence:?}: {error}");
            assert!(error.to_string().contains("damaged"), "{layout}, {cadence:?}: {error}");
            let error = engine.close_block(&block(5)).unwrap_err();
            assert!(kinds.contains(&error.kind()), "{layout}, {cadence:?}: {error}");
            // The block was acknowledged unless its root came first; either way none was taken back.
            let closed = engine.head().closed.map(|block| block.0);
            assert_eq!(closed, Some(if at_close { 4 } else { 5 }), "{layout}, {cadence:?}");
            // Values in memory are still read.
            assert_eq!(slot(&engine, 1), 5, "{layout}, {cadence:?}");
        }
    }
}

#[test]
fn a_wrong_block_is_still_refused_and_the_engine_goes_on() {
    for (layout, _) in layouts() {
        for cadence in [Cadence::AtClose, Cadence::EVERY_BLOCK, Cadence::OnRequest] {
            let place = Place::new(layout, config(cadence, 1));
            let engine = place.open(&Mem::default()).unwrap();
            (0..3).for_each(|number| drop(engine.close_block(&block(number)).unwrap()));
            let wrong = StateUpdate { new_root: Some(0xbad.into()), ..block(3) };
            let error = engine.close_block(&wrong).and_then(|_| engine.commit()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Root, "{layout}, {cadence:?}: {error}");
            engine.close_block(&block(3)).unwrap();
            settle(&engine);
            assert!(engine.check(&|_| ()).unwrap().is_sound());
        }
    }
}

/// The store went back behind a revert whose refusal is trimmed: its blocks are abandoned ones.
#[test]
fn a_store_from_before_a_trimmed_refusal_is_refused_by_name() {
    let mut place = Place::new("flat", config(Cadence::EVERY_BLOCK, 1));
    let store = Mem::default();
    let close = |place: &Place, numbers: std::ops::Range<u64>, seed: u64| {
        let engine = place.open(&store).unwrap();
        numbers.for_each(|number| {
            let update = block(number + seed);
            drop(
                engine
                    .close_block(&StateUpdate { block_number: Some(BlockNumber(number)), ..update })
                    .unwrap(),
            );
        });
        settle(&engine);
    };
    close(&place, 0..20, 0);
    let old = store.rows();
    place.open(&store).unwrap().revert_to(BlockNumber(9)).unwrap();
    close(&place, 10..14, 100);
    // From before the refusal, which the journal still has: it is led back, and forward again.
    let journal = place.saved();
    let behind = place.open(&Mem::of(old.clone())).unwrap();
    settle(&behind);
    assert_eq!((behind.head().closed, slot(&behind, 2)), (Some(BlockNumber(13)), 114));
    assert!(behind.check(&|_| ()).unwrap().is_sound());
    drop(behind);
    place.put_back(&journal);
    // Each block is synced, and the journal trimmed behind it.
    place.config.persist_every = 1;
    close(&place, 14..18, 100);
    close(&place, 18..22, 100);
    let error = place.open(&Mem::of(old)).unwrap_err();
    assert!(matches!(error, Error::Mixed { .. }), "{error}");
    assert!(error.to_string().contains("block 10 and those after it were taken back"), "{error}");
    assert!(error.to_string().contains("the store, which is at block 19, is from before that"), "{error}");
    assert_eq!(place.open(&store).unwrap().head().closed, Some(BlockNumber(21)));
}

/// Every store with every journal of three databases and two moments each, of which two went on from copies of one.
#[test]
fn stores_and_journals_that_do_not_belong_together_are_refused_by_name() {
    let fast = config(Cadence::EVERY_BLOCK, 1).with_persist_every(2);
    let place = Place::new("flat", fast);
    let (mut stores, mut journals, mut heads) = (Vec::new(), Vec::new(), Vec::new());
    let mut keep = |history: usize, store: &Mem| {
        let engine = place.open(store).unwrap();
        heads.push((history, engine.head().closed, engine.head().root.commitment));
        drop(engine);
        stores.push(store.rows());
        journals.push(place.saved());
    };
    let run = |store: &Mem, numbers: std::ops::Range<u64>, seed: u64| {
        let engine = place.open(store).unwrap();
        for number in numbers {
            let update = StateUpdate { block_number: Some(BlockNumber(number)), ..block(number + seed) };
            engine.close_block(&update).unwrap();
        }
        settle(&engine);
    };
    let store = Mem::default();
    run(&store, 0..3, 0);
    keep(0, &store);
    let (copy, copied) = (store.rows(), place.saved());
    run(&store, 3..5, 0);
    keep(0, &store);
    // A copy of the directory that went on by itself.
    place.put_back(&copied);
    let fork = Mem::of(copy);
    run(&fork, 3..5, 50);
    keep(1, &fork);
    run(&fork, 5..7, 50);
    keep(1, &fork);
    place.put_back(&[]);
    let other = Mem::default();
    run(&other, 0..3, 0);
    keep(2, &other);
    run(&other, 3..6, 0);
    keep(2, &other);

    for (s, store) in stores.iter().enumerate() {
        for (j, journal) in journals.iter().enumerate() {
            place.put_back(journal);
            let opened = place.open(&Mem::of(store.clone())).and_then(|engine| {
                engine.commit()?;
                Ok(engine)
            });
            let what = format!("store {s}, journal {j}");
            match opened {
                // The journal knows more of the store's own history, or the same: its blocks are what there is then. (The first
                // moment is also the copy's past.)
                Ok(engine) => {
                    let (history, closed, root) = heads[j];
                    assert!(heads[s].0 == history || s == 0 && history == 1, "{what}");
                    assert_eq!(
                        (engine.head().closed, engine.head().root.commitment),
                        (closed, root),
                        "{what}"
                    );
                    assert!(engine.check(&|_| ()).unwrap().is_sound(), "{what}");
                }
                Err(error) => {
                    assert_ne!(s, j, "{what}: {error}");
                    assert_eq!(error.kind(), ErrorKind::Damaged, "{what}: {error}");
                    assert!(error.to_string().contains("flagstone recover"), "{what}: {error}");
                }
            }
        }
    }
}

#[test]
fn rot_in_the_last_frames_is_noticed_after_an_orderly_end_that_appended_nothing() {
    let place = Place::new("flat", config(Cadence::OnRequest, 1));
    let store = Mem::default();
    let engine = place.open(&store).unwrap();
    (0..6).for_each(|number| drop(engine.close_block(&block(number)).unwrap()));
    let (rows, files) = (store.rows(), place.saved());
    drop(engine);
    place.put_back(&files);
    let store = Mem::of(rows);
    let engine = place.open(&store).unwrap();
    assert_eq!((engine.head().closed, engine.opened().orderly), (Some(BlockNumber(5)), false));
    drop(engine); // an orderly end
    let (path, mut bytes) = files.into_iter().max().unwrap();
    let last = bytes.windows(4).rposition(|window| window == b"FRAM").unwrap();
    bytes = fs::read(&path).unwrap();
    bytes[last + 60] ^= 1;
    fs::write(&path, bytes).unwrap();
    let error = place.open(&store).unwrap_err();
    assert!(error.to_string().contains("lost: block 5"), "{error}");
}

#[test]
fn an_orderly_end_is_one_until_the_next_opening_and_a_cut_is_told() {
    let place = Place::new("flat", config(Cadence::EVERY_BLOCK, 1));
    let store = Mem::default();
    let engine = place.open(&store).unwrap();
    assert!(engine.opened().orderly, "new");
    engine.close_block(&block(0)).unwrap();
    let files = place.saved();
    drop(engine);
    for _ in 0..40 {
        assert!(place.open(&store).unwrap().opened().orderly);
    }
    // Each left a segment, and they do not pile up.
    assert!(fs::read_dir(&place.journal).unwrap().count() <= 18);
    place.put_back(&files);
    let (path, bytes) = files.into_iter().next().unwrap();
    // The frame of its roots may follow.
    let torn = bytes.windows(4).position(|window| window == b"FRAM").unwrap() + 60;
    fs::write(&path, &bytes[..torn]).unwrap();
    let engine = place.open(&Mem::default()).unwrap();
    let opened = engine.opened();
    assert!(!opened.orderly && opened.replayed == 0);
    assert_eq!(opened.cut.as_ref().map(|cut| cut.segment.clone()), Some(path));
}

#[test]
fn a_store_or_marker_of_another_database_is_refused_in_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    for name in ["a", "b"] {
        let engine =
            database::open_or_create(&path(name), None, None, config(Cadence::EVERY_BLOCK, 1)).unwrap();
        (0..3).for_each(|number| drop(engine.close_block(&block(number)).unwrap()));
    }
    let swap = |part: &str| {
        let (a, b, c) = (path("a").join(part), path("b").join(part), path("c"));
        fs::rename(&a, &c).unwrap();
        fs::rename(&b, &a).unwrap();
        fs::rename(&c, &b).unwrap();
    };
    for part in ["store", "journal", "FLAGSTONE"] {
        swap(part);
        for open in [database::open, database::open_read_only] {
            let error = open(&path("a"), None, EngineConfig::default()).unwrap_err();
            assert!(matches!(error, Error::Mixed { .. }), "{part}: {error}");
        }
        swap(part);
    }
    assert_eq!(
        database::open(&path("a"), None, EngineConfig::default()).unwrap().head().closed,
        Some(BlockNumber(2))
    );
}

#[test]
fn a_marker_whose_id_is_no_id_is_damaged_and_one_of_an_older_format_is_refused_naming_both() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("db");
    drop(database::open_or_create(&db, None, None, EngineConfig::default()).unwrap());
    let marker = fs::read_to_string(db.join("FLAGSTONE")).unwrap();
    let id = marker.lines().find(|line| line.starts_with("id: ")).unwrap();
    for wrong in ["id: ", "id: 12", "id: +1234567890123456789012345678901"] {
        fs::write(db.join("FLAGSTONE"), marker.replace(id, wrong)).unwrap();
        let error = database::open(&db, None, EngineConfig::default()).unwrap_err();
        assert!(error.to_string().contains("its id is not 32 hex digits"), "{error}");
        assert_eq!(error.kind(), ErrorKind::Damaged);
    }
    let old = marker.replace(id, "").replace("engine-format: 5", "engine-format: 3");
    fs::write(db.join("FLAGSTONE"), old).unwrap();
    let error = database::open(&db, None, EngineConfig::default()).unwrap_err();
    assert!(error.to_string().contains("database was written by v3, opened as v5"), "{error}");
    assert_eq!(error.kind(), ErrorKind::Misconfigured);
    let nothing = database::open(&dir.path().join("none"), None, EngineConfig::default()).unwrap_err();
    assert_eq!(nothing.kind(), ErrorKind::Misconfigured, "{nothing}");
}

#[test]
fn one_process_at_a_time_and_the_one_who_has_it_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("db");
    let engine = database::open_or_create(&db, None, None, EngineConfig::default()).unwrap();
    let me = format!("process {}", std::process::id());
    let locked = |error: Error| {
        assert!(error.to_string().contains(&me), "{error}");
        assert!(error.to_string().contains("database locked"), "{error}");
        assert_eq!(error.kind(), ErrorKind::Locked);
    };
    locked(database::open(&db, None, EngineConfig::default()).unwrap_err());
    locked(database::open_or_create(&db, None, None, EngineConfig::default()).unwrap_err());
    locked(database::open_read_only(&db, None, EngineConfig::default()).unwrap_err());
    locked(database::recover(&db, database::RecoverOptions::default()).unwrap_err());
    drop(engine);
    // Those who look are there together, and whoever is to write is not let in beside them.
    let looking = database::open_read_only(&db, None, EngineConfig::default()).unwrap();
    let also = database::open_read_only(&db, None, EngineConfig::default()).unwrap();
    assert!(database::open(&db, None, EngineConfig::default()).is_err());
    drop((looking, also));
    drop(database::open(&db, None, EngineConfig::default()).unwrap());
}

#[test]
fn creators_and_importers_of_one_directory_come_one_after_the_other() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..12 {
        let db = dir.path().join(round.to_string());
        let made = std::thread::scope(|scope| {
            let tries: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        let engine =
                            database::open_or_create(&db, None, None, config(Cadence::EVERY_BLOCK, 1))?;
                        let closed = engine.head().closed;
                        let next = closed.map_or(0, |block| block.0 + 1);
                        engine.close_block(&block(next)).map(|_| ())
                    })
                })
                .collect();
            tries.into_iter().map(|tried| tried.join().unwrap()).collect::<Vec<_>>()
        });
        let closed = made.iter().filter(|made| made.is_ok()).count() as u64;
        for error in made.into_iter().filter_map(Result::err) {
            assert!(error.to_string().contains("database locked"), "{error}");
        }
        assert!(closed > 0);
        let engine = database::open(&db, None, EngineConfig::default()).unwrap();
        assert_eq!(engine.head().closed, Some(BlockNumber(closed - 1)));
    }
}

fn files_below(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => open.push(path),
                false => drop(files.insert(path.clone(), fs::read(path).unwrap())),
            }
        }
    }
    files
}

/// After a kill, with a block that will be refused: all is answered as after an opening, and no byte changes.
#[test]
fn who_only_looks_changes_no_byte_and_sees_the_last_closed_block() {
    for (layout, _) in layouts() {
        let dir = tempfile::tempdir().unwrap();
        let (db, killed) = (dir.path().join("db"), dir.path().join("killed"));
        let entry = flagstone::layout(layout).unwrap();
        let engine = database::open_or_create(&db, Some(entry), None, config(Cadence::OnRequest, 1)).unwrap();
        (0..4).for_each(|number| drop(engine.close_block(&block(number)).unwrap()));
        settle(&engine);
        (4..6).for_each(|number| drop(engine.close_block(&block(number)).unwrap()));
        crate::support::copy_dir(&db, &killed);
        engine.commit().unwrap();
        let root = engine.head().root;
        drop(engine);

        let before = files_below(&killed);
        let looking = database::open_read_only(&killed, None, config(Cadence::OnRequest, 1)).unwrap();
        assert_eq!((looking.opened().replayed, looking.opened().orderly), (2, false));
        assert!(looking.opened().copied_bytes > 0);
        assert_eq!(slot(&looking, 2), 6);
        looking.commit().unwrap();
        assert_eq!(looking.head().root, root, "{layout}");
        assert!(looking.check(&|_| ()).unwrap().is_sound());
        for refused in [looking.revert_to(BlockNumber(3)).map(drop), looking.close_block(&block(6)).map(drop)]
        {
            let refused = refused.unwrap_err();
            assert!(refused.to_string().contains("for looking only"), "{refused}");
            assert_eq!(refused.kind(), ErrorKind::Input);
        }
        drop(looking);
        assert!(database::check(&killed, EngineConfig::default(), &|_| ()).unwrap().is_sound());
        assert!(files_below(&killed) == before, "{layout}");
        let engine = database::open(&killed, None, EngineConfig::default()).unwrap();
        engine.commit().unwrap();
        assert_eq!(engine.head().root, root);
    }
}

#[cfg(unix)]
#[test]
fn a_directory_that_cannot_be_written_can_be_looked_at() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("db");
    drop(
        database::open_or_create(&db, None, None, config(Cadence::EVERY_BLOCK, 1))
            .map(|engine| engine.close_block(&block(0)).unwrap()),
    );
    let set = |mode: u32| {
        for path in files_below(&db).into_keys().chain([db.join("store"), db.join("journal"), db.clone()]) {
            let wanted = if path.is_dir() { mode | 0o111 } else { mode };
            fs::set_permissions(path, fs::Permissions::from_mode(wanted)).unwrap();
        }
    };
    set(0o444);
    let looking = database::open_read_only(&db, None, EngineConfig::default());
    let closed = looking.map(|engine| engine.head().closed);
    set(0o644);
    assert_eq!(closed.unwrap(), Some(BlockNumber(0)));
}

/// What an opening refuses, a check tells.
#[test]
fn a_check_never_refuses_to_check() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("db");
    let make = |db: &Path| {
        let engine = database::open_or_create(
            db,
            None,
            Some(database::store("sled").unwrap()),
            config(Cadence::EVERY_BLOCK, 1),
        )
        .unwrap();
        (0..4).for_each(|number| drop(engine.close_block(&block(number)).unwrap()));
        settle(&engine);
    };
    make(&db);
    make(&dir.path().join("other"));
    let check = || database::check(&db, EngineConfig::default(), &|_| ()).unwrap();
    assert!(check().is_sound());

    let closed = fs::read(db.join("store/closed")).unwrap();
    fs::write(db.join("store/closed"), "db: 1 bytes, crc32 00000000\n").unwrap();
    let report = check();
    assert_eq!(report.findings_total, 1, "{:?}", report.findings);
    assert!(report.findings[0].problem.contains("it was closed with"), "{:?}", report.findings);
    fs::write(db.join("store/closed"), closed).unwrap();

    fs::rename(db.join("journal"), db.join("own")).unwrap();
    fs::rename(dir.path().join("other/journal"), db.join("journal")).unwrap();
    let report = check();
    assert_eq!(report.findings_total, 1, "{:?}", report.findings);
    assert!(report.findings[0].problem.contains("and the journal is of database"), "{:?}", report.findings);
    fs::remove_dir_all(db.join("journal")).unwrap();
    assert!(check().findings[0].problem.contains("it is missing"));
    fs::rename(db.join("own"), db.join("journal")).unwrap();
    assert!(check().is_sound());
}
