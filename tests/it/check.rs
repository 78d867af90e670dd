//! `check` and `diff`: what is wrong with a database, and where two of them differ.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flagstone::core::compare::{StateTries, compare};
use flagstone::core::felt::Felt;
use flagstone::core::types::{BlockNumber, ContractAddress};
use flagstone::engine::{Blob, CheckReport, NewBlock};
use flagstone::registry::{LAYOUTS, LayoutEntry};
use flagstone::store::{MemoryStore, SEAL_BYTES, Sealed, Store, StoreRead, keyspace};
use flagstone::{Cadence, Engine, EngineConfig, Error, StateDiff, StateUpdate};
use flagstone_testkit::reference::ReferenceState;
use flagstone_testkit::stores::batch;
use flagstone_testkit::strategies;
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

pub fn config() -> EngineConfig {
    EngineConfig::default().with_threads(1).with_read_cache_bytes(0).with_cadence(Cadence::AtClose)
}

/// Small blocks with changes and deletions in all tries.
pub fn blocks() -> Vec<StateUpdate> {
    let build = |n: u64| {
        let contract = ContractAddress::from(n % 3);
        let diff = StateDiff::builder()
            .class_hash(contract, (n + 1).into())
            .nonce(contract, n.into())
            .storage(contract, (n * 5).into(), (n + 9).into())
            .storage(contract, (n + 1).into(), (n % 4).into())
            .storage(0x1234_5678.into(), (n << 40).into(), (n + 3).into())
            .class((n % 5 + 20).into(), (n + 40).into());
        StateUpdate {
            block_number: Some(BlockNumber(n)),
            starknet_version: "0.13.5".parse().ok(),
            ..StateUpdate::from(diff.build().unwrap())
        }
    };
    (0..8).map(build).collect()
}

/// Rows as the engine wrote them, without their seals, after so many blocks.
fn rows_after(layout: &LayoutEntry, count: usize) -> Rows {
    rows_after_each(layout, count).pop().unwrap()
}

/// The same after no block, one, and so on up to so many.
fn rows_after_each(layout: &LayoutEntry, count: usize) -> Vec<Rows> {
    let store = Arc::new(MemoryStore::new());
    let engine = Engine::open(Box::new(Arc::clone(&store)), layout.make(), config()).unwrap();
    let mut after = vec![rows_of(&store)];
    for update in blocks().iter().take(count) {
        engine.close_block(update).unwrap();
        engine.sync().unwrap();
        after.push(rows_of(&store));
    }
    after
}

fn rows_of(store: &MemoryStore) -> Rows {
    let mut rows = Rows::new();
    store
        .scan(&[], &mut |key, row| {
            rows.insert(key.to_vec(), row[..row.len() - SEAL_BYTES].to_vec());
            ControlFlow::Continue(())
        })
        .unwrap();
    rows
}

/// A store with these rows, each with its seal.
fn sealed(rows: &Rows) -> Arc<MemoryStore> {
    let store = Arc::new(MemoryStore::new());
    Sealed::new(Arc::clone(&store))
        .write(&batch(rows.iter().map(|(key, row)| (key.as_slice(), Some(row.as_slice())))))
        .unwrap();
    store
}

/// What a check says of a store; an error if it cannot even be opened.
fn check(layout: &LayoutEntry, store: &Arc<MemoryStore>) -> Result<CheckReport, Error> {
    Engine::open(Box::new(Arc::clone(store)), layout.make(), config())?.check(&|_| ())
}

fn is_sound(layout: &LayoutEntry, store: &Arc<MemoryStore>) -> bool {
    check(layout, store).is_ok_and(|report| report.is_sound())
}

/// Writes a row behind the engine's back, with its seal.
fn put(store: &Arc<MemoryStore>, key: &[u8], row: Option<&[u8]>) {
    Sealed::new(Arc::clone(store)).write(&batch([(key, row)])).unwrap();
}

#[test]
fn blocks_that_were_committed_as_one_are_no_damage_and_a_lost_row_beside_them_is() {
    for layout in LAYOUTS {
        let store = Arc::new(MemoryStore::new());
        let config = config().with_cadence(Cadence::OnRequest).with_coalesce(true);
        let engine = Engine::open(Box::new(Arc::clone(&store)), layout.make(), config).unwrap();
        for (number, update) in blocks().iter().enumerate() {
            engine.close_block(update).unwrap();
            if [1, 4, 5, 7].contains(&number) {
                engine.commit().unwrap();
            }
        }
        let report = engine.check(&|_| ()).unwrap();
        assert!(report.is_sound() && report.blocks == 4, "{}: {:?}", layout.name, report.findings);
        drop(engine);
        put(&store, &[&[keyspace::BLOCK][..], &4u64.to_be_bytes()].concat(), None);
        let report = check(layout, &store).unwrap();
        let found = report.findings.iter().map(|finding| format!("{finding}"));
        assert!(
            found.into_iter().any(|found| found.contains("block 2") && found.contains("is missing")),
            "{:?}",
            report.findings
        );
    }
}

/// Also behind blocks that were committed as one with others, and have no state of their own.
#[test]
fn each_lost_row_of_an_old_state_is_found_where_blocks_were_committed_as_one() {
    for layout in LAYOUTS.iter().filter(|layout| layout.make().keeps_old_states()) {
        let store = Arc::new(MemoryStore::new());
        let config = config().with_cadence(Cadence::OnRequest).with_coalesce(true);
        let engine = Engine::open(Box::new(Arc::clone(&store)), layout.make(), config).unwrap();
        let mut early = Rows::new();
        for (number, update) in blocks().iter().enumerate() {
            engine.close_block(update).unwrap();
            if [1, 4, 7].contains(&number) {
                engine.commit().unwrap();
                engine.sync().unwrap();
            }
            if number == 1 {
                early = rows_of(&store);
            }
        }
        drop(engine);
        let rows = rows_of(&store);
        let of_layout = early.keys().filter(|key| key[0] >= keyspace::LAYOUT_FIRST);
        assert!(of_layout.clone().count() > 10);
        let missed: Vec<&Vec<u8>> = of_layout
            .filter(|key| {
                let store = sealed(&rows);
                put(&store, key, None);
                is_sound(layout, &store)
            })
            .collect();
        assert!(missed.is_empty(), "{}: {missed:x?}", layout.name);
    }
}

#[test]
fn sound_databases_have_no_findings() {
    for layout in LAYOUTS {
        for count in 0..=blocks().len() {
            let report = check(layout, &sealed(&rows_after(layout, count))).unwrap();
            assert!(report.is_sound(), "{}: {:?}", layout.name, report.findings);
            assert_eq!(report.blocks, count as u64);
        }
    }
}

/// Any row of any kind, changed behind a valid seal, or removed. Two things are no damage: that the roots of the first block
/// are gone, and what takes it back.
#[test]
fn every_changed_or_removed_row_is_found() {
    for layout in LAYOUTS {
        let rows = rows_after(layout, blocks().len());
        let store = sealed(&rows);
        let of_first = |space| [&[space][..], &[0; 8]].concat();
        let no_damage =
            |key: &[u8]| key == of_first(keyspace::BLOCK) || key.starts_with(&of_first(keyspace::UNDO));
        let mut undo_changes: Vec<bool> = Vec::new();
        for (key, row) in &rows {
            for at in (0..row.len()).step_by(9).chain(row.len().checked_sub(1)) {
                let mut changed = row.clone();
                changed[at] ^= 1 << (at % 8);
                put(&store, key, Some(&changed));
                // A change of what takes a block back may leave what it leads to as it was; then it is no damage.
                let found = !is_sound(layout, &store);
                // Which database and which states these are, only a journal can tell.
                let is_id = key == b"\0id" || key[0] == keyspace::BLOCK && at >= 96;
                assert!(
                    found || is_id || key[0] == keyspace::UNDO,
                    "{}: byte {at} of {key:02x?}",
                    layout.name
                );
                undo_changes.extend((key[0] == keyspace::UNDO).then_some(found));
            }
            put(&store, key, None);
            assert_eq!(is_sound(layout, &store), no_damage(key), "{}: without {key:02x?}", layout.name);
            put(&store, key, Some(row));
        }
        assert!(is_sound(layout, &store));
        let found = undo_changes.iter().filter(|found| **found).count();
        assert!(found * 10 > undo_changes.len() * 9, "{found} of {}", undo_changes.len());
    }
}

/// Also where the seal is broken, whichever row it is, and with others behind it still visited.
#[test]
fn every_broken_seal_is_found() {
    for layout in LAYOUTS {
        let store = sealed(&rows_after(layout, blocks().len()));
        let mut raw = Vec::new();
        store
            .scan(&[], &mut |key, row| {
                raw.push((key.to_vec(), row.to_vec()));
                ControlFlow::Continue(())
            })
            .unwrap();
        for (key, row) in &raw {
            let mut changed = row.clone();
            changed[0] ^= 4;
            store.write(&batch([(key.as_slice(), Some(changed.as_slice()))])).unwrap();
            assert!(!is_sound(layout, &store), "{}: {key:02x?}", layout.name);
            store.write(&batch([(key.as_slice(), Some(row.as_slice()))])).unwrap();
        }
        // Two at once, the last two: both are told.
        let broken: Vec<_> = raw.iter().rev().take(2).collect();
        for (key, _) in &broken {
            store.write(&batch([(key.as_slice(), Some(&b"broken"[..]))])).unwrap();
        }
        let findings = check(layout, &store).unwrap().findings;
        for (key, _) in broken {
            let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
            assert!(findings.iter().any(|finding| finding.problem.contains(&hex)), "{hex}: {findings:?}");
        }
    }
}

#[test]
fn every_added_row_is_found() {
    for layout in LAYOUTS {
        let rows = rows_after(layout, blocks().len());
        let store = sealed(&rows);
        for (key, row) in &rows {
            let mut others: Vec<Vec<u8>> = (0..key.len())
                .filter(|at| at % 4 == 0 || at + 1 == key.len())
                .map(|at| {
                    let mut other = key.clone();
                    other[at] ^= 1 << (at % 8);
                    other
                })
                .collect();
            others.extend([[key.as_slice(), &[0]].concat(), key[..key.len() - 1].to_vec()]);
            for other in others.iter().filter(|other| !rows.contains_key(*other)) {
                put(&store, other, Some(row));
                assert!(!is_sound(layout, &store), "{}: {other:02x?}", layout.name);
                put(&store, other, None);
            }
        }
        put(&store, &[], Some(b"row"));
        assert!(!is_sound(layout, &store));
    }
}

/// A store that fell back to an older version of some row, which has its own valid seal.
#[test]
fn every_row_of_an_older_time_is_found() {
    for layout in LAYOUTS {
        let count = blocks().len();
        let mut older = rows_after_each(layout, count);
        let rows = older.pop().unwrap();
        let store = sealed(&rows);
        let mut seen = 0;
        for older in older.into_iter().skip(1) {
            let keys = rows.keys().chain(older.keys()).collect::<std::collections::BTreeSet<_>>();
            for key in keys.into_iter().filter(|key| rows.get(*key) != older.get(*key)) {
                // Rows that were not there yet are those of `every_changed_or_removed_row_is_found`.
                let Some(before) = older.get(key) else { continue };
                put(&store, key, Some(before));
                assert!(!is_sound(layout, &store), "{}: {key:02x?}", layout.name);
                put(&store, key, rows.get(key).map(Vec::as_slice));
                seen += 1;
            }
        }
        assert!(seen > 0 && is_sound(layout, &store));
    }
}

#[test]
fn findings_name_the_trie_and_the_path_or_key() {
    let flat = &LAYOUTS[0];
    let rows = rows_after(flat, blocks().len());
    let value_row =
        [&[0x10][..], ContractAddress::from(0x1234_5678).as_be(), ContractAddress::from(1 << 40).as_be()]
            .concat();
    for (row, finding) in [
        (
            None,
            "leaf 0x10000000000 of the storage trie of contract 0x12345678: its storage value is missing or cannot be read",
        ),
        (
            Some(&[1, 99][..]),
            "leaf 0x10000000000 of the storage trie of contract 0x12345678: its storage value does not say what the trie says",
        ),
    ] {
        let store = sealed(&rows);
        put(&store, &value_row, row);
        let report = check(flat, &store).unwrap();
        assert_eq!(report.findings_total, 1);
        assert_eq!(report.findings[0].to_string(), finding);
    }
    // A node gone, by path: the contracts trie's root.
    let by_path = &LAYOUTS[1];
    let store = sealed(&rows_after(by_path, blocks().len()));
    put(&store, &[0x10, 0, 0], None);
    let report = check(by_path, &store).unwrap();
    let first =
        report.findings.iter().find(|finding| finding.to_string().contains("contracts trie")).unwrap();
    assert!(first.to_string().starts_with("node at 0x0/0 of the contracts trie: node 0x"), "{first}");
    assert!(first.to_string().contains("is missing from the store"));
}

/// Two random states in any two layouts differ as their maps do.
#[test]
fn differences_do_not_depend_on_the_layouts() {
    let config_of_cases =
        ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() };
    // The same cases on every run; a failure prints the shrunk blocks.
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let state = |layout: &LayoutEntry, diffs: &[StateDiff]| {
        let engine = Engine::open(Box::new(MemoryStore::new()), layout.make(), config()).unwrap();
        let mut reference = ReferenceState::new();
        for (number, diff) in (0..).zip(diffs) {
            let block_number = Some(BlockNumber(number));
            let starknet_version = "0.13.5".parse().ok();
            let update = StateUpdate { block_number, starknet_version, ..StateUpdate::from(diff.clone()) };
            engine.close_block(&update).unwrap();
            reference.apply(diff);
        }
        let values: BTreeMap<String, Felt> =
            reference.values().iter().map(|(subject, value)| (subject.to_string(), *value)).collect();
        (engine, values)
    };
    let property = |diffs: Vec<StateDiff>| {
        for (one, other) in LAYOUTS.iter().flat_map(|one| LAYOUTS.iter().map(move |other| (one, other))) {
            let (a, in_a) = state(one, &diffs[..diffs.len() - 1]);
            let (b, in_b) = state(other, &diffs[1..]);
            let mut found = BTreeMap::new();
            a.at_block(None, |a, _, a_root| {
                b.at_block(None, |b, _, b_root| {
                    let a = StateTries { rows: a, roots: a_root.roots };
                    let b = StateTries { rows: b, roots: b_root.roots };
                    compare(a, b, &mut |difference| {
                        let difference = difference.unwrap();
                        found.insert(difference.subject.to_string(), difference.values).is_none()
                    });
                    Ok(())
                })
            })
            .unwrap();
            let value = |of: &BTreeMap<String, Felt>, subject| of.get(subject).copied().unwrap_or_default();
            let subjects = in_a.keys().chain(in_b.keys());
            let both =
                subjects.map(|subject| (subject.clone(), [value(&in_a, subject), value(&in_b, subject)]));
            let expected: BTreeMap<_, _> = both.filter(|(_, [a, b])| a != b).collect();
            prop_assert_eq!(&found, &expected, "{} and {}", one.name, other.name);
        }
        Ok(())
    };
    TestRunner::new_with_rng(config_of_cases, rng).run(&strategies::blocks(2..6), property).unwrap();
}

#[test]
fn a_blob_without_one_of_its_rows_is_found() {
    let layout = &LAYOUTS[0];
    let store = Arc::new(MemoryStore::new());
    let engine = Engine::open(Box::new(Arc::clone(&store)), layout.make(), config()).unwrap();
    let blob = |key: &[u8], bytes: usize| Blob { key: key.to_vec(), bytes: vec![3; bytes].into() };
    let blobs = [blob(b"", 10_000), blob(b"a", 20_000), blob(b"ab", 0), blob(b"b", 4088), blob(b"c", 4089)];
    engine.close_block(NewBlock::from(&blocks()[0]).with_blobs(&blobs)).unwrap();
    assert!(engine.check(&|_| ()).unwrap().is_sound());
    drop(engine);
    let mut rows = Vec::new();
    store
        .scan(&[keyspace::BLOB], &mut |key, row| {
            rows.push((key.to_vec(), row.to_vec()));
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(rows.len(), 3 + 5 + 1 + 1 + 2);
    for (key, row) in rows {
        store.write(&batch([(key.as_slice(), None)])).unwrap();
        let report = check(layout, &store).unwrap();
        // A blob of one row leaves nothing that could say that it was there.
        let alone = key[1] == 2 || key.get(2) == Some(&b'b');
        assert_eq!(report.is_sound(), alone, "{key:02x?}: {:?}", report.findings);
        store.write(&batch([(key.as_slice(), Some(row.as_slice()))])).unwrap();
    }
}

/// Blocks go on while a state is checked, and what is checked is the one that it began with.
#[test]
fn a_check_beside_a_running_engine_holds_up_no_block() {
    for entry in LAYOUTS {
        let engine = Engine::open(Box::new(MemoryStore::new()), entry.make(), config()).unwrap();
        let all = blocks();
        all[..4].iter().for_each(|update| drop(engine.close_block(update).unwrap()));
        let report = std::thread::scope(|scope| {
            let ((ask, asked), (tell, told)) = (channel::<()>(), channel());
            let (engine, rest) = (&engine, &all[4..]);
            scope.spawn(move || {
                for update in rest {
                    if asked.recv().is_err() {
                        break;
                    }
                    tell.send(engine.close_block(update).unwrap().persisted().wait()).unwrap();
                }
            });
            let producer = Mutex::new((ask, told));
            engine.check(&|_| {
                let (ask, told) = &*producer.lock().unwrap();
                if ask.send(()).is_ok() {
                    match told.recv_timeout(Duration::from_secs(30)) {
                        Err(RecvTimeoutError::Timeout) => {
                            panic!("{}: a block waits for the check", entry.name)
                        }
                        outcome => outcome.into_iter().for_each(|persisted| persisted.unwrap()),
                    }
                }
            })
        });
        let report = report.unwrap();
        assert!(report.is_sound(), "{}: {:?}", entry.name, report.findings);
        assert_eq!((report.head.closed, report.blocks), (Some(BlockNumber(3)), 4), "{}", entry.name);
        assert!(engine.head().persisted > report.head.persisted, "{}: none was closed meanwhile", entry.name);
    }
}
