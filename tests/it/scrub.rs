//! Value rows that were lost or are old: found as blocks are committed, as values are read, and by the scrub.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flagstone::core::diff::Subject;
use flagstone::core::types::BlockNumber;
use flagstone::journal::faulty::FaultyFiles;
use flagstone::store::{Store, WriteBatch};
use flagstone::{Cadence, Engine, EngineConfig, Error, ErrorKind, StateDiff, StateUpdate};

use crate::lineage::Mem;
use crate::support::{config, settle};

const SLOTS: u64 = 50;

fn update(block: u64, slots: impl Iterator<Item = u64>) -> StateUpdate {
    let mut diff = StateDiff::builder().class(7.into(), 8.into()).nonce(1.into(), (block + 1).into());
    for slot in slots {
        diff = diff.storage((slot % 2 + 1).into(), slot.into(), (block * 1000 + slot + 1).into());
    }
    let diff = diff.class_hash(1.into(), 7.into()).build().unwrap();
    StateUpdate {
        block_number: Some(BlockNumber(block)),
        starknet_version: "0.14.0".parse().ok(),
        ..StateUpdate::from(diff)
    }
}

/// A key and its row.
type Row = (Vec<u8>, Vec<u8>);

/// A database in which rows can be lost.
#[derive(Default)]
struct Place {
    store: Mem,
    files: FaultyFiles,
}

impl Place {
    fn open(&self, config: EngineConfig) -> Engine {
        let layout = flagstone::layout("flat").unwrap().make();
        let (store, files) = (Box::new(self.store.clone()), Arc::new(self.files.clone()));
        Engine::open_journaled(store, layout, config, files, Path::new("/journal")).unwrap()
    }

    /// Three blocks that write all slots, and the value rows as the first of them left them.
    fn filled() -> (Self, Vec<Row>) {
        let place = Self::default();
        let engine = place.open(quiet(Cadence::AtClose));
        engine.close_block(&update(0, 0..SLOTS)).unwrap();
        settle(&engine);
        let old = place.store.rows().into_iter().filter(|(key, _)| matches!(key[0], 0x10..=0x13)).collect();
        (1..3).for_each(|block| drop(engine.close_block(&update(block, 0..SLOTS)).unwrap()));
        settle(&engine);
        (place, old)
    }

    fn damage(&self, key: &[u8], row: Option<&[u8]>) {
        let mut batch = WriteBatch::default();
        match row {
            Some(row) => batch.put(key, row),
            None => batch.delete(key),
        }
        self.store.write(&batch).unwrap();
    }
}

/// Without a scrub of its own accord.
fn quiet(cadence: Cadence) -> EngineConfig {
    config(cadence, 2).with_scrub_rows_per_second(0)
}

/// The key of a slot's row in the flat layout.
fn row_of(slot: u64) -> Vec<u8> {
    let word = |number: u64| [[0; 24].as_slice(), &number.to_be_bytes()].concat();
    [vec![0x10], word(slot % 2 + 1), word(slot)].concat()
}

fn is_damage(error: &Error, names: &str) -> bool {
    let text = error.to_string();
    [ErrorKind::Damaged, ErrorKind::Stopped].contains(&error.kind())
        && text.contains(names)
        && text.contains("flagstone recover")
}

/// Closes a block, and waits for its root.
fn close(engine: &Engine, update: &StateUpdate) -> Result<(), Error> {
    engine.close_block(update)?;
    engine.commit().map(drop)
}

#[test]
fn a_lost_or_old_row_under_a_written_slot_stops_the_engine_and_refuses_nothing() {
    for cadence in [Cadence::AtClose, Cadence::EVERY_BLOCK, Cadence::OnRequest] {
        for with_old in [false, true] {
            let (place, old) = Place::filled();
            let row = old.iter().find(|(key, _)| *key == row_of(7)).map(|(_, row)| row.as_slice());
            assert!(row.is_some());
            place.damage(&row_of(7), row.filter(|_| with_old));
            let engine = place.open(quiet(cadence));
            close(&engine, &update(3, 0..7)).unwrap();
            let error = close(&engine, &update(4, 5..9)).unwrap_err();
            assert!(is_damage(&error, "storage 0x7 of contract 0x2"), "{cadence:?} {with_old}: {error}");
            assert!(matches!(close(&engine, &update(5, 0..1)).unwrap_err(), Error::Stopped { .. }));
            let beside = engine.view().value(&Subject::Storage(2.into(), 9.into())).unwrap_err();
            assert!(is_damage(&beside, "storage 0x9"), "{beside}");
            assert!(engine.view().storage_at(&1.into(), &8.into()).is_ok(), "others are read");
            drop(engine);
            let closed = if cadence == Cadence::AtClose { 3 } else { 4 };
            assert_eq!(place.open(quiet(Cadence::OnRequest)).head().closed, Some(BlockNumber(closed)));
        }
    }
}

/// What was read before it is written is held against the leaf, also in a block of which few rows are read again.
#[test]
fn what_an_execution_read_is_held_against_the_leaf_in_a_large_block_too() {
    for cadence in [Cadence::AtClose, Cadence::EVERY_BLOCK] {
        let (place, _) = Place::filled();
        place.damage(&row_of(7), None);
        let engine = place.open(quiet(cadence));
        assert_eq!(engine.view().storage_at(&2.into(), &7.into()).unwrap(), 0.into(), "nothing knows better");
        let error =
            close(&engine, &update(3, (0..4000).map(|n| if n == 0 { 7 } else { n * 2 + 100 }))).unwrap_err();
        assert!(is_damage(&error, "storage 0x7 of contract 0x2"), "{error}");
    }
}

#[test]
fn the_scrub_finds_each_kind_of_value_row_beside_blocks() {
    let (_, old) = Place::filled();
    let kinds = [0x10, 0x11, 0x12, 0x13].map(|kind| old.iter().find(|(key, _)| key[0] == kind).unwrap());
    for (key, _) in kinds {
        let (place, _) = Place::filled();
        place.damage(key, None);
        let config = config(Cadence::EVERY_BLOCK, 2).with_scrub_rows_per_second(1000);
        let engine = place.open(config);
        let began = Instant::now();
        let error = (3u64..).find_map(|block| {
            assert!(began.elapsed() < Duration::from_secs(60), "nothing was found at {key:02x?}");
            std::thread::sleep(Duration::from_millis(5));
            // Of what the block writes nothing was lost.
            let diff = StateDiff::builder().storage(9.into(), block.into(), 1.into()).build().unwrap();
            let next = StateUpdate {
                block_number: Some(BlockNumber(block)),
                starknet_version: "0.14.0".parse().ok(),
                ..StateUpdate::from(diff)
            };
            engine.close_block(&next).err()
        });
        let error = error.unwrap();
        assert!(is_damage(&error, "the value row"), "{key:02x?}: {error}");
    }
}

#[test]
fn the_scrub_goes_over_all_rows_again_and_again_at_its_rate() {
    let (place, _) = Place::filled();
    let config = config(Cadence::EVERY_BLOCK, 2).with_scrub_rows_per_second(1000);
    let engine = place.open(config);
    let began = Instant::now();
    while engine.scrub_stats().passes < 2 {
        assert!(began.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(20));
    }
    let (stats, took) = (engine.scrub_stats(), began.elapsed());
    assert!(stats.rows >= 2 * SLOTS);
    assert!(stats.rows as f64 <= 1000.0 * took.as_secs_f64() + 100.0, "{stats:?} in {took:?}");
    close(&engine, &update(3, 0..SLOTS)).unwrap();
}
