//! States that are held on to: pinned views, earlier states that are asked for again, and walks over whole states.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use flagstone::core::diff::Subject;
use flagstone::core::felt::Felt;
use flagstone::core::trie::{TrieId, lookup};
use flagstone::core::types::{BlockNumber, ContractAddress, StateCommitment, StorageKey};
use flagstone::journal::faulty::FaultyFiles;
use flagstone::store::{MemoryStore, Store, StoreRead, WriteBatch};
use flagstone::{Cadence, Engine, Error, ErrorKind, StateDiff, StateUpdate, View};

use crate::support::{CADENCES, Counting, Place, config, layouts, settle};

const SLOTS: u64 = 300;

/// Block `number`: a third of the slots of three contracts.
fn update(number: u64) -> StateUpdate {
    let slots = (0..SLOTS).filter(|slot| (slot + number).is_multiple_of(3));
    let diff = slots.fold(StateDiff::builder().class(7.into(), 8.into()), |diff, slot| {
        let value = if (slot + number).is_multiple_of(4) { 0 } else { number * 1000 + slot };
        diff.storage((slot % 3 + 1).into(), slot.into(), value.into())
    });
    StateUpdate { starknet_version: "0.14.0".parse().ok(), ..StateUpdate::from(diff.build().unwrap()) }
}

fn subjects() -> Vec<Subject> {
    (0..SLOTS).map(|slot| Subject::Storage((slot % 3 + 1).into(), slot.into())).collect()
}

/// What blocks up to one leave in these slots.
fn expected(last: u64) -> Vec<Felt> {
    let mut values = BTreeMap::new();
    for number in 0..=last {
        for contract in update(number).diff.contracts() {
            values.extend(contract.storage.iter().map(|(key, value)| ((contract.address, *key), value.0)));
        }
    }
    let value = |subject| match subject {
        Subject::Storage(address, key) => values.get(&(address, key)).copied().unwrap_or_default(),
        _ => Felt::ZERO,
    };
    subjects().into_iter().map(value).collect()
}

fn read(view: &View) -> Result<Vec<Felt>, Error> {
    let many = view.get_many(&subjects())?;
    let one_by_one: Result<Vec<Felt>, Error> = subjects().iter().map(|subject| view.value(subject)).collect();
    assert_eq!(many, one_by_one?);
    Ok(many)
}

/// t15 of the trials: a view that is held expires after a few blocks; one that is pinned does not.
#[test]
fn a_pinned_view_answers_beyond_the_recent_values_and_leaves_at_its_own_bound() {
    for (layout, _) in layouts() {
        let bounds = config(Cadence::EVERY_BLOCK, 1).with_recent_blocks_max(2).with_history_blocks(2);
        let engine = Place::memory().open(layout, bounds);
        let close = |numbers: std::ops::Range<u64>| {
            for number in numbers {
                engine.close_block(&update(number)).unwrap();
                settle(&engine);
            }
        };
        close(0..3);
        let (held, pinned) = (engine.view(), engine.view().pinned().unwrap());
        let of_past = engine.view_at(BlockNumber(1)).unwrap().pinned().unwrap();
        let proposed = engine.propose(engine.view().state(), &update(3)).unwrap();
        let of_candidate = proposed.view().pinned().unwrap();
        engine.decide(&proposed).unwrap();
        close(4..20);
        assert_eq!(read(&pinned).unwrap(), expected(2), "{layout}");
        assert_eq!(read(&of_past).unwrap(), expected(1), "{layout}");
        assert_eq!(read(&of_candidate).unwrap(), expected(3), "{layout}");
        assert_eq!(read(&held).unwrap(), expected(2), "what is kept for one is there for all");
        let clone = pinned.clone();
        drop((pinned, of_past, of_candidate));
        close(20..22);
        assert_eq!(read(&clone).unwrap(), expected(2), "a clone keeps it");
        drop(clone);
        close(22..24);
        for gone in [read(&held).unwrap_err(), held.pinned().map(drop).unwrap_err()] {
            assert!(matches!(gone, Error::ViewExpired { .. }), "{gone}");
        }

        let engine = Place::memory().open(layout, bounds.with_pinned_bytes_max(100_000));
        engine.close_block(&update(0)).unwrap();
        let pinned = engine.view().pinned().unwrap();
        let outlived = (1..100).find(|number| {
            engine.close_block(&update(*number)).unwrap();
            settle(&engine);
            read(&pinned).is_err()
        });
        let outlived = outlived.unwrap();
        assert!((4..60).contains(&outlived), "{outlived} blocks of 100 values in 100 kB");
        assert_eq!(read(&pinned).unwrap_err().kind(), ErrorKind::Expired);
    }
}

/// Earlier states are led back to once; whoever asks again, also after more blocks, waits for no hash.
#[test]
fn an_earlier_state_is_led_back_to_once() {
    let hashes = Arc::<AtomicUsize>::default();
    let bounds = config(Cadence::EVERY_BLOCK, 1).with_recent_blocks_max(4);
    let make = || flagstone::layout("flat").unwrap().make();
    let counting = Box::new(Counting(Arc::clone(&hashes)));
    let engine = Engine::open_with_hasher(Box::new(MemoryStore::new()), make(), bounds, counting).unwrap();
    (0..30).for_each(|number| drop(engine.close_block(&update(number)).unwrap()));
    settle(&engine);
    let count = || hashes.load(Ordering::Relaxed);
    let proof = |block: u64| {
        let slots = engine.at_commitment(Some(BlockNumber(block)), |tries, at, root| {
            assert_eq!(at, Some(BlockNumber(block)));
            let of = |address: ContractAddress| Ok::<_, Error>(tries.contract_leaf(&address)?.storage_root.0);
            let slot = |slot: u64| {
                let address = ContractAddress::from(slot % 3 + 1);
                let key = StorageKey::from(slot);
                Ok(lookup(tries, TrieId::Storage(address), of(address)?, key.trie_key())?)
            };
            Ok((root.commitment, (0..SLOTS).map(slot).collect::<Result<Vec<Felt>, Error>>()?))
        });
        slots.unwrap()
    };
    let before = count();
    let first = proof(7);
    assert!(count() > before && first.1 == expected(7));
    let led = count();
    assert_eq!((proof(7), count()), (first.clone(), led));
    assert_eq!(engine.block_root(BlockNumber(7)).unwrap().unwrap().commitment, first.0);
    (30..34).for_each(|number| drop(engine.close_block(&update(number)).unwrap()));
    settle(&engine);
    let committed = count();
    assert_eq!((proof(7), count()), (first.clone(), committed), "the blocks since change nothing for it");
    // A number that another block has now is another state.
    engine.revert_to(BlockNumber(5)).unwrap();
    (10..14).for_each(|number| drop(engine.close_block(&update(number)).unwrap()));
    settle(&engine);
    assert_ne!(proof(7).0, first.0);
    let view = engine.view_at(BlockNumber(5)).unwrap();
    assert_eq!(read(&view).unwrap(), expected(5));
}

/// What a kept earlier state is over is kept within a bound; beyond it the state is led back to anew, and nobody is told to begin again.
#[test]
fn an_earlier_state_whose_generation_is_gone_is_led_back_to_again() {
    let bounds = config(Cadence::EVERY_BLOCK, 1).with_reader_bytes_max(2_000);
    let engine = Place::memory().open("flat", bounds);
    let close = |numbers: std::ops::Range<u64>| {
        numbers.for_each(|number| drop(engine.close_block(&update(number)).unwrap()));
        settle(&engine);
    };
    // Blocks 8 and 9 changed nothing of contract 3, so what is asked of it is in rows.
    let read = || {
        let at_block = engine.at_commitment(Some(BlockNumber(7)), |tries, _, root| {
            let leaf = tries.contract_leaf(&3.into())?;
            let key = StorageKey::from(2);
            let slot = lookup(tries, TrieId::Storage(3.into()), leaf.storage_root.0, key.trie_key())?;
            Ok((root.commitment, slot))
        });
        at_block.unwrap()
    };
    close(0..10);
    let first = read();
    close(10..14);
    assert_eq!(read(), first);
}

/// Pages over contracts and storage are what was written, whatever the size of a page.
#[test]
fn walks_page_by_page_see_what_was_written() {
    for (layout, _) in layouts() {
        let engine = Place::memory().open(layout, config(Cadence::EVERY_BLOCK, 1));
        (0..6).for_each(|number| drop(engine.close_block(&update(number)).unwrap()));
        engine.commit().unwrap();
        for (block, last) in [(None, 5), (Some(BlockNumber(3)), 3)] {
            let expected: Vec<Felt> = expected(last);
            for max in [1, 7, 1000] {
                let (mut contracts, mut from) = (Vec::new(), None);
                loop {
                    let page = engine.contracts_at(block, from, max).unwrap();
                    assert!(page.entries.len() <= max && page.block == Some(BlockNumber(last)));
                    contracts.extend(page.entries);
                    from = page.next;
                    if from.is_none() {
                        break;
                    }
                }
                let addresses: Vec<_> = contracts.iter().map(|entry| entry.address).collect();
                assert_eq!(addresses, [1u64, 2, 3].map(ContractAddress::from), "{layout}");
                for address in addresses {
                    let (mut slots, mut from) = (Vec::new(), None);
                    loop {
                        let page = engine.storage_of_at(block, &address, from, max).unwrap();
                        slots.extend(page.entries);
                        from = page.next;
                        if from.is_none() {
                            break;
                        }
                    }
                    let of_contract = subjects().into_iter().zip(&expected).filter_map(|(subject, value)| {
                        let Subject::Storage(of, key) = subject else { return None };
                        (of == address && *value != Felt::ZERO).then_some((key, *value))
                    });
                    let slots: Vec<_> = slots.into_iter().map(|(key, value)| (key, value.0)).collect();
                    assert_eq!(slots, of_contract.collect::<Vec<_>>(), "{layout}, {max} a page");
                }
            }
        }
        let nothing = engine.storage_of_at(None, &9.into(), None, 10).unwrap();
        assert!(nothing.entries.is_empty() && nothing.next.is_none());
        assert!(engine.contracts_at(Some(BlockNumber(9)), None, 1).is_err());
    }
}

/// A block is found by its hash from its closing on, as long as its root is kept.
#[test]
fn a_block_is_found_by_the_hash_that_it_brings() {
    let hashed = |number: u64, hash: u64| StateUpdate { block_hash: Some(hash.into()), ..update(number) };
    for cadence in CADENCES {
        let (store, files) = (Arc::new(MemoryStore::new()), Arc::new(FaultyFiles::new()));
        let open = || {
            let (make, files) = (flagstone::layout("flat").unwrap().make(), Arc::clone(&files));
            Engine::open_journaled(
                Box::new(Arc::clone(&store)),
                make,
                config(cadence, 1),
                files,
                Path::new("/j"),
            )
            .unwrap()
        };
        let found =
            |engine: &Engine| [100u64, 101, 102].map(|hash| engine.block_by_hash(hash.into()).unwrap());
        let engine = open();
        engine.close_block(&hashed(0, 100)).unwrap();
        engine.close_block(&update(1)).unwrap();
        engine.close_block(&hashed(2, 102)).unwrap();
        let there = [Some(BlockNumber(0)), None, Some(BlockNumber(2))];
        assert_eq!(found(&engine), there, "{cadence:?}");
        assert_eq!(engine.block_hash(BlockNumber(2)).unwrap(), Some(102.into()));
        assert_eq!(engine.block_hash(BlockNumber(1)).unwrap(), None);
        let taken = engine.close_block(&hashed(3, 100)).unwrap_err();
        assert!(matches!(taken, Error::HashTaken { by: BlockNumber(0), .. }), "{taken}");
        drop(engine);
        let engine = open();
        assert_eq!(found(&engine), there, "replayed");
        settle(&engine);
        assert_eq!(found(&engine), there, "committed and written");
        engine.revert_to(BlockNumber(1)).unwrap();
        assert_eq!(found(&engine), [Some(BlockNumber(0)), None, None]);
        engine.close_block(&hashed(2, 101)).unwrap();
        settle(&engine);
        assert_eq!(found(&engine), [Some(BlockNumber(0)), Some(BlockNumber(2)), None]);
        let is_sound = |engine: &Engine| engine.check(&|_| ()).unwrap().findings;
        assert_eq!(is_sound(&engine), []);

        // A row that is lost, and one that belongs to nothing.
        let row = [&[0x05][..], &StateCommitment::from(101).to_be()].concat();
        let mut batch = WriteBatch::default();
        batch.delete(&row);
        let value = store.get(&row).unwrap().unwrap();
        store.write(&batch).unwrap();
        assert_eq!(is_sound(&engine).len(), 1, "{value:?}");
    }
}
