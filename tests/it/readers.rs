//! Who reads tries for long holds up nobody, and sees one state.

use std::sync::mpsc::channel;
use std::time::Duration;

use flagstone::core::commit::TrieRows;
use flagstone::core::felt::Felt;
use flagstone::core::trie::{TrieId, lookup};
use flagstone::core::types::{BlockNumber, StorageKey};
use flagstone::{Cadence, Engine, Error, ErrorKind, StateDiff, StateUpdate};

use crate::support::{Place, config, layouts, settle};

const SLOTS: u64 = 40;

fn update(number: u64) -> StateUpdate {
    let mut diff = StateDiff::builder().class(7.into(), 8.into());
    for slot in (0..SLOTS).filter(|slot| (slot * 7 + number).is_multiple_of(3)) {
        let value = if (slot + number).is_multiple_of(4) { 0 } else { number * 100 + slot };
        diff = diff.storage(1.into(), slot.into(), value.into());
    }
    StateUpdate { starknet_version: "0.14.0".parse().ok(), ..StateUpdate::from(diff.build().unwrap()) }
}

/// All slots, as the tries say them.
fn slots(tries: &dyn TrieRows) -> Result<Vec<Felt>, Error> {
    let root = tries.contract_leaf(&1.into())?.storage_root.0;
    let slot = |slot: u64| {
        let found = lookup(tries, TrieId::Storage(1.into()), root, StorageKey::from(slot).trie_key());
        Ok(found?)
    };
    (0..SLOTS).map(slot).collect()
}

fn values(engine: &Engine) -> Vec<Felt> {
    let view = engine.view();
    (0..SLOTS).map(|slot| view.storage_at(&1.into(), &slot.into()).unwrap().0).collect()
}

/// t01 and t05 of the trials: inside of a read, blocks are closed, committed and written.
#[test]
fn blocks_are_written_while_tries_are_read_and_the_read_sees_none_of_them() {
    for (layout, _) in layouts() {
        for place in Place::all() {
            let engine = place.open(layout, config(Cadence::EVERY_BLOCK, 1));
            for number in 0..4 {
                engine.close_block(&update(number)).unwrap();
            }
            settle(&engine);
            for at in [None, Some(BlockNumber(2))] {
                let head = engine.head().closed.unwrap().0;
                let before = match at {
                    None => values(&engine),
                    Some(_) => Vec::new(),
                };
                let seen = engine.at_commitment(at.map(|_| BlockNumber(head - 1)), |tries, _, _| {
                    let first = slots(tries)?;
                    for number in head + 1..head + 6 {
                        engine.close_block(&update(number))?.persisted().wait()?;
                        assert_eq!(slots(tries)?, first, "{layout}");
                    }
                    Ok(first)
                });
                let seen = seen.unwrap();
                assert!(at.is_some() || seen == before, "{layout}");
                engine.sync().unwrap();
            }
        }
    }
}

/// A revert, too, is done while somebody reads.
#[test]
fn blocks_are_taken_back_while_tries_are_read() {
    let engine = Place::memory().open("flat", config(Cadence::EVERY_BLOCK, 1));
    for number in 0..8 {
        engine.close_block(&update(number)).unwrap();
    }
    settle(&engine);
    let now = values(&engine);
    engine
        .at_commitment(None, |tries, _, _| {
            engine.revert_to(BlockNumber(3))?;
            engine.sync()?;
            assert_eq!(slots(tries)?, now);
            Ok(())
        })
        .unwrap();
    assert_ne!(values(&engine), now);
}

#[test]
fn a_read_that_takes_too_long_is_told_so_and_the_writer_goes_on() {
    let config = config(Cadence::EVERY_BLOCK, 1).with_reader_bytes_max(20_000);
    expires(&Place::memory().open("flat", config));
}

/// fjall lends snapshots: nothing is kept in memory, and what is written meanwhile is bounded.
#[test]
fn a_read_of_a_lent_snapshot_that_takes_too_long_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(Cadence::EVERY_BLOCK, 1).with_reader_bytes_max(0).with_lent_bytes_max(20_000);
    let store = flagstone::database::store("fjall").unwrap();
    expires(&flagstone::database::open_or_create(dir.path(), None, Some(store), config).unwrap());
}

/// Reads one state while others are written, until that fails.
fn expires(engine: &Engine) {
    engine.close_block(&update(0)).unwrap();
    settle(engine);
    let (tell, told) = channel();
    let outcome = engine.at_commitment(None, |tries, _, _| {
        for number in 1..200 {
            engine.close_block(&update(number))?.persisted().wait()?;
            if let Err(error) = slots(tries) {
                tell.send(number).unwrap();
                return Err(error);
            }
        }
        Ok(())
    });
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Expired);
    assert!(told.recv_timeout(Duration::ZERO).unwrap() > 1, "one block is kept");
    engine.close_block(&update(200)).unwrap().persisted().wait().unwrap();
    let now = values(engine);
    assert_eq!(engine.at_commitment(None, |tries, _, _| slots(tries)).unwrap(), now);
}
