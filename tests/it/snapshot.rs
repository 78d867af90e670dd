//! Dumps: from every layout and store to every other, whole or not at all.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use flagstone::core::commitment::ContractLeaf;
use flagstone::core::felt::Felt;
use flagstone::core::types::{BlockNumber, ContractAddress, StateCommitment, TrieKey};
use flagstone::engine::{ImportProgress, Imported};
use flagstone::registry::LAYOUTS;
use flagstone::snapshot::{
    CHUNK_ITEMS_MAX, DumpReader, DumpWriter, Header, SnapshotError, SnapshotErrorKind, export,
};
use flagstone::store::{MemoryStore, Store};
use flagstone::{Engine, Error, ErrorKind, StateDiff, StateUpdate, database, registry};
use flagstone_testkit::reference::ReferenceState;
use flagstone_testkit::strategies::blocks;
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};

use crate::child;
use crate::store_sled::next_random;
use crate::support::{Place, at_close, updates};

fn update(number: u64, diff: StateDiff) -> StateUpdate {
    let block_number = Some(BlockNumber(number));
    StateUpdate { block_number, starknet_version: "0.13.5".parse().ok(), ..StateUpdate::from(diff) }
}

fn dump_of(engine: &Engine) -> Vec<u8> {
    let mut dump = Vec::new();
    let exported = export(engine, None, &mut dump, &mut |_| ()).unwrap();
    assert_eq!(exported.bytes, dump.len() as u64);
    dump
}

fn import(store: Box<dyn Store>, layout: &str, dump: &[u8]) -> Result<Imported, Error> {
    let layout = registry::layout(layout).unwrap().make();
    Engine::import(store, layout.as_ref(), &at_close(), dump, &mut |_| ())
}

/// Everything of a dump, read and thrown away.
fn read(dump: &[u8]) -> Result<(), SnapshotError> {
    let mut reader = DumpReader::new(dump)?;
    while reader.next_chunk()?.is_some() {}
    Ok(())
}

/// A database of the ten blocks of mainnet, in a layout.
fn mainnet(place: &Place, layout: &str) -> Engine {
    let engine = place.open(layout, at_close());
    updates("mainnet_0_9.jsonl").iter().for_each(|update| drop(engine.close_block(update).unwrap()));
    engine
}

#[test]
fn every_layout_and_store_gives_the_same_dump_and_takes_it() {
    let mut expected: Option<Vec<u8>> = None;
    for from in LAYOUTS {
        for place in Place::all() {
            let engine = mainnet(&place, from.name);
            let dump = dump_of(&engine);
            assert_eq!(&dump, expected.get_or_insert_with(|| dump.clone()), "{} {}", from.name, place.name());
        }
    }
    let dump = expected.unwrap();
    let last = updates("mainnet_0_9.jsonl").last().unwrap().new_root.unwrap();
    for to in LAYOUTS {
        for place in Place::all() {
            let imported = import(place.store(), to.name, &dump).unwrap();
            assert_eq!(imported.header.commitment, last);
            let engine = place.open(to.name, at_close());
            assert_eq!(engine.head().root.commitment, last);
            assert_eq!(engine.head().closed, Some(BlockNumber(9)));
            assert_eq!(dump_of(&engine), dump, "{} {}", to.name, place.name());
            assert!(engine.check(&|_| ()).unwrap().is_sound());
            let slot = StateDiff::builder().storage(1.into(), 2.into(), 3.into()).build().unwrap();
            engine.close_block(&update(10, slot)).unwrap();
            assert_eq!(engine.view().storage_at(&1.into(), &2.into()).unwrap(), 3.into());
        }
    }
}

#[test]
fn random_states_survive_a_dump() {
    let config = ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let property = |diffs: Vec<StateDiff>| {
        let mut reference = ReferenceState::new();
        let mut dumps = Vec::new();
        for (at, layout) in LAYOUTS.iter().enumerate() {
            let engine = Place::memory().open(layout.name, at_close().with_threads(1));
            for (number, diff) in (0..).zip(&diffs) {
                engine.close_block(&update(number, diff.clone())).unwrap();
                if at == 0 {
                    reference.apply(diff);
                }
            }
            prop_assert_eq!(engine.head().root.roots, reference.roots());
            dumps.push(dump_of(&engine));
        }
        prop_assert!(dumps.windows(2).all(|pair| pair[0] == pair[1]));
        for layout in LAYOUTS {
            let place = Place::memory();
            import(place.store(), layout.name, &dumps[0]).unwrap();
            let engine = place.open(layout.name, at_close().with_threads(1));
            prop_assert_eq!(engine.head().root.roots, reference.roots());
            prop_assert!(engine.check(&|_| ()).unwrap().is_sound());
        }
        Ok(())
    };
    runner.run(&blocks(1..6), property).unwrap();
}

/// A state over several chunks: contracts large and small, one cut by two ends of chunks, classes.
fn large_state() -> Vec<StateUpdate> {
    let mut random = 7;
    let mut first = StateDiff::builder();
    for n in 0..3_000u64 {
        let address = ContractAddress::from(next_random(&mut random) >> 8);
        first = first.class_hash(address, (1 + n % 5).into()).storage(address, n.into(), (n + 1).into());
        first = first.class((n + 9).into(), (n + 1).into());
    }
    let mut second = StateDiff::builder().nonce(2.into(), 5.into());
    for n in 0..2 * CHUNK_ITEMS_MAX as u64 + 100 {
        second = second.storage(0x5_0000_0000u64.into(), (n * n).into(), (n + 1).into());
    }
    vec![update(0, first.build().unwrap()), update(1, second.build().unwrap())]
}

fn large_dump() -> (Vec<u8>, StateCommitment) {
    let engine = Place::memory().open("flat", at_close());
    large_state().iter().for_each(|update| drop(engine.close_block(update).unwrap()));
    (dump_of(&engine), engine.head().root.commitment)
}

#[test]
fn a_state_of_several_chunks_goes_through_every_layout() {
    let (dump, root) = large_dump();
    assert!(chunks(&dump).len() >= 4);
    for layout in LAYOUTS {
        let place = Place::memory();
        let imported = import(place.store(), layout.name, &dump).unwrap();
        assert_eq!(imported.resumed_after, 0);
        let engine = place.open(layout.name, at_close());
        assert_eq!(engine.head().root.commitment, root);
        assert_eq!(dump_of(&engine), dump, "{}", layout.name);
        let report = engine.check(&|_| ()).unwrap();
        assert!(report.is_sound(), "{:?}", report.findings);
    }
}

/// Where the chunks of a dump are.
fn chunks(dump: &[u8]) -> Vec<std::ops::Range<usize>> {
    let mut chunks = Vec::new();
    let mut at = 120;
    while dump[at..].starts_with(b"CHNK") {
        let bytes = u32::from_be_bytes(dump[at + 12..at + 16].try_into().unwrap()) as usize;
        chunks.push(at..at + 20 + bytes);
        at += 20 + bytes;
    }
    assert_eq!(dump.len(), at + 68);
    chunks
}

fn small_dump() -> Vec<u8> {
    let engine = Place::memory().open("patricia-path", at_close());
    let mut diff = StateDiff::builder().class(7.into(), 8.into()).nonce(9.into(), 1.into());
    for n in 1..6u64 {
        diff = diff.class_hash(n.into(), (n % 2 + 1).into()).storage(
            (n / 2 + 1).into(),
            (n * n).into(),
            n.into(),
        );
    }
    engine.close_block(&update(3, diff.build().unwrap())).unwrap();
    dump_of(&engine)
}

/// The format: if this changes, the format's version must. (The digest is of what is in the dump, not of how this build
/// compresses it.)
#[test]
fn golden_digest() {
    let dump = small_dump();
    let mut reader = DumpReader::new(&dump[..]).unwrap();
    while reader.next_chunk().unwrap().is_some() {}
    let digest: String = reader.summary().unwrap().digest.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(digest, "bec9142f7f482e2bb29487376d230d891e221abf896a6e93f2ef16bb3b93ac05");
}

#[test]
fn every_flipped_bit_of_a_dump_is_refused() {
    let dump = small_dump();
    read(&dump).unwrap();
    for bit in 0..dump.len() * 8 {
        let mut flipped = dump.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(read(&flipped).is_err(), "bit {bit}");
        if bit % 37 == 0 {
            let error = import(Box::new(MemoryStore::new()), "flat", &flipped).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Input, "bit {bit}: {error}");
        }
    }
}

#[test]
fn a_dump_that_is_cut_says_so_and_one_that_goes_on_is_refused() {
    let dump = small_dump();
    for length in 0..dump.len() {
        let error = read(&dump[..length]).unwrap_err();
        assert_eq!(error.kind(), SnapshotErrorKind::Cut, "at {length}: {error}");
    }
    for more in [&b"\0"[..], &dump] {
        let error = read(&[&dump, more].concat()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the dump is damaged in its footer: something follows it; fetch or export it again"
        );
    }
    let error =
        read("something else entirely, but long enough to be a header".repeat(3).as_bytes()).unwrap_err();
    assert_eq!(error.kind(), SnapshotErrorKind::Format);
}

#[test]
fn chunks_that_change_places_are_refused() {
    let (dump, _) = large_dump();
    let chunks = chunks(&dump);
    let rebuilt = |order: &[usize]| {
        let middle = order.iter().map(|at| &dump[chunks[*at].clone()]).collect::<Vec<_>>().concat();
        [&dump[..120], &middle, &dump[dump.len() - 68..]].concat()
    };
    let whole: Vec<usize> = (0..chunks.len()).collect();
    read(&rebuilt(&whole)).unwrap();
    let last = chunks.len() - 1;
    for (at, order) in [
        (1, [&[0, 2, 1], &whole[3..]].concat()),
        (1, [&[0, 0], &whole[1..]].concat()),
        (0, whole[1..].to_vec()),
    ] {
        let error = read(&rebuilt(&order)).unwrap_err().to_string();
        assert!(error.starts_with(&format!("the dump is damaged in chunk {at}: chunk ")), "{error}");
    }
    let error = read(&rebuilt(&whole[..last])).unwrap_err().to_string();
    assert!(error.contains("its footer: it says"), "{error}");
}

/// Address, leaf, and storage entries.
type Contract = (u64, ContractLeaf, Vec<(u64, u64)>);

/// A dump as the writer makes it, with a contract and its claims as given.
fn dump_with(header: Header, contracts: &[Contract], classes: &[(u64, u64)]) -> Vec<u8> {
    let mut writer = DumpWriter::new(Vec::new(), &header).unwrap();
    for (address, leaf, entries) in contracts {
        let entries = entries
            .iter()
            .map(|(key, value)| Ok::<_, std::io::Error>((TrieKey::from(*key), Felt::from(*value))));
        writer.contract(ContractAddress::from(*address), leaf, entries).unwrap();
    }
    for (class, compiled) in classes {
        writer.class(TrieKey::from(*class), (*compiled).into()).unwrap();
    }
    writer.finish().unwrap().0
}

#[test]
fn values_that_do_not_give_the_stated_roots_are_refused_naming_the_trie() {
    let engine = Place::memory().open("flat", at_close());
    let diff = StateDiff::builder()
        .class_hash(4.into(), 40.into())
        .storage(4.into(), 1.into(), 10.into())
        .storage(4.into(), 2.into(), 20.into())
        .nonce(6.into(), 60.into())
        .class(8.into(), 80.into());
    engine.close_block(&update(5, diff.build().unwrap())).unwrap();
    let (mut leaf, root) =
        engine.at_block(None, |rows, _, root| Ok((rows.contract_leaf(&4.into())?, root))).unwrap();
    let nonce_only = |nonce: u64| ContractLeaf { nonce: nonce.into(), ..ContractLeaf::default() };
    let header = Header { block: BlockNumber(5), roots: root.roots, commitment: root.commitment };
    let right = [(4, leaf, vec![(1, 10), (2, 20)]), (6, nonce_only(60), vec![])];
    assert_eq!(dump_with(header, &right, &[(8, 80)]), dump_of(&engine));

    let mut cases = vec![
        ("storage trie of contract 0x4", [(4, leaf, vec![(1, 10), (2, 21)]), right[1].clone()], (8, 80)),
        ("storage trie of contract 0x4", [(4, leaf, vec![(1, 10)]), right[1].clone()], (8, 80)),
        ("contracts trie", [right[0].clone(), (6, nonce_only(61), vec![])], (8, 80)),
        ("contracts trie", [right[0].clone(), (7, nonce_only(60), vec![])], (8, 80)),
        ("classes trie", right.clone(), (8, 81)),
    ];
    leaf.storage_root = 99.into();
    cases.push((
        "storage trie of contract 0x4",
        [(4, leaf, vec![(1, 10), (2, 20)]), right[1].clone()],
        (8, 80),
    ));
    for (trie, contracts, class) in cases {
        let dump = dump_with(header, &contracts, &[class]);
        for layout in LAYOUTS {
            let store = Arc::new(MemoryStore::new());
            let error = import(Box::new(Arc::clone(&store)), layout.name, &dump).unwrap_err();
            assert!(
                error.to_string().starts_with(&format!("the dump of block 5 is wrong in the {trie}: ")),
                "{error}"
            );
            assert_eq!(error.kind(), ErrorKind::Root);
            let opened = Engine::open(Box::new(store), layout.make(), at_close());
            assert!(matches!(opened, Err(Error::UnfinishedImport { .. })), "{opened:?}");
        }
    }
}

#[test]
fn items_that_a_state_cannot_have_are_refused() {
    let header = DumpReader::new(&small_dump()[..]).unwrap().header();
    let leaf = |class_hash: u64, root: u64| ContractLeaf {
        class_hash: class_hash.into(),
        storage_root: root.into(),
        ..ContractLeaf::default()
    };
    for (contracts, classes, problem) in [
        (vec![(4, leaf(1, 1), vec![(1, 0)])], vec![], "storage value: is zero"),
        (vec![(4, leaf(1, 1), vec![(2, 1), (2, 1)])], vec![], "storage key: not in ascending order"),
        (vec![(4, leaf(1, 1), vec![(2, 1), (1, 1)])], vec![], "storage key: not in ascending order"),
        (vec![(4, leaf(1, 1), vec![])], vec![], "storage root: is zero though"),
        (vec![(4, leaf(1, 0), vec![(1, 1)])], vec![], "storage root: is zero though"),
        (vec![(4, leaf(0, 0), vec![])], vec![], "contract: has nothing"),
        (vec![(4, leaf(1, 0), vec![]), (4, leaf(1, 0), vec![])], vec![], "contract address: does not follow"),
        (vec![(4, leaf(1, 0), vec![]), (3, leaf(1, 0), vec![])], vec![], "contract address: does not follow"),
        (vec![], vec![(1, 0)], "compiled class hash: is zero"),
        (vec![], vec![(2, 1), (1, 1)], "class hash: not in ascending order"),
    ] {
        let error = read(&dump_with(header, &contracts, &classes)).unwrap_err().to_string();
        assert!(error.starts_with(&format!("the dump is damaged in chunk 0: {problem}")), "{error}");
    }
}

#[test]
fn an_import_needs_an_empty_store_or_its_own() {
    let (dump, other) = (small_dump(), large_dump().0);
    let store = Arc::new(MemoryStore::new());
    let cut = import(Box::new(Arc::clone(&store)), "flat", &dump[..dump.len() - 1]).unwrap_err();
    assert_eq!(cut.kind(), ErrorKind::Input);
    for (layout, dump) in [("flat", &other), ("patricia-path", &dump)] {
        let error = import(Box::new(Arc::clone(&store)), layout, dump).unwrap_err();
        let Error::OtherImport { begun, given } = &error else { panic!("{error}") };
        assert_eq!((begun.layout.as_str(), given.layout.as_str()), ("flat", layout));
        for side in [begun, given] {
            assert!(error.to_string().contains(&side.to_string()), "{error}");
        }
        assert_eq!(error.kind(), ErrorKind::Input);
    }
    import(Box::new(Arc::clone(&store)), "flat", &dump).unwrap();
    // Once more changes nothing; another dump is refused.
    let again = import(Box::new(Arc::clone(&store)), "flat", &dump).unwrap();
    assert_eq!(again.resumed_after, again.counts.items());
    let error = import(Box::new(Arc::clone(&store)), "flat", &other).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Input, "{error}");
}

/// The role of the child: imports `DIR/dump`, and prints how far it is.
pub fn child_import(dir: &Path, layout: &str) {
    let dump = fs::File::open(dir.join("dump")).unwrap();
    let layout = Some(registry::layout(layout).unwrap());
    let mut progress = |at: ImportProgress| {
        println!(">{}", at.counts.items());
        // Time for whoever reads this to kill us before the next chunk.
        thread::sleep(Duration::from_millis(50));
    };
    database::import(&dir.join("db"), layout, None, dump, &at_close(), &mut progress).unwrap();
    println!(">done");
}

#[test]
fn an_import_that_is_killed_goes_on_and_gives_the_same_root() {
    let (dump, root) = large_dump();
    for (layout, kill_after) in
        [("flat", vec![1, 3]), ("patricia-path", vec![2]), ("patricia-hash", vec![1, 1, 1])]
    {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("dump"), &dump).unwrap();
        let db = dir.path().join("db");
        for lines in &kill_after {
            let mut child = child::command(&format!("import {layout}"), dir.path()).spawn().unwrap();
            let stdout = BufReader::new(child.stdout.take().unwrap());
            let printed = stdout.lines().map_while(Result::ok).filter_map(|line| child::line(&line));
            assert_eq!(printed.take(*lines).count(), *lines);
            child.kill().unwrap();
            child.wait().unwrap();
            assert!(!db.join("FLAGSTONE").exists(), "it was killed too late");
            for refused in
                [database::open(&db, None, at_close()), database::open_or_create(&db, None, None, at_close())]
            {
                let error = refused.unwrap_err();
                assert!(error.to_string().contains("run the same `flagstone import` again"), "{error}");
            }
        }
        let config = at_close();
        let imported = database::import(&db, None, None, &dump[..], &config, &mut |_| ()).unwrap();
        println!("{layout}: went on after {} of {} items", imported.resumed_after, imported.counts.items());
        let engine = database::open(&db, None, at_close()).unwrap();
        assert_eq!(engine.identity().layout, layout);
        assert!(engine.opened().orderly, "nothing was lost since the import");
        assert_eq!(engine.head().root.commitment, root);
        let report = engine.check(&|_| ()).unwrap();
        assert!(report.is_sound(), "{:?}", report.findings);
        assert_eq!(dump_of(&engine), dump);
        engine.close_block(&update(2, StateDiff::default())).unwrap();
        drop(engine);
        let engine = database::open(&db, None, at_close()).unwrap();
        assert_eq!(engine.head().closed, Some(BlockNumber(2)));
    }
}

/// Killed after the last batch: before `FLAGSTONE` is written, and between that and the renaming of the store.
#[test]
fn an_import_that_is_killed_at_its_very_end_is_finished() {
    let dump = small_dump();
    let config = at_close();
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("db");
    let importing = db.join(format!("import-{}", database::STORES[0].name));
    let first = database::import(&db, None, None, &dump[..], &config, &mut |_| ()).unwrap();
    fs::rename(db.join("store"), &importing).unwrap();
    assert_eq!(database::open(&db, None, config).unwrap().head().closed, Some(first.header.block));

    fs::rename(db.join("store"), &importing).unwrap();
    fs::remove_file(db.join("FLAGSTONE")).unwrap();
    let error = database::open(&db, None, config).unwrap_err();
    assert!(error.to_string().contains("run the same `flagstone import` again"), "{error}");
    let again = database::import(&db, None, None, &dump[..], &config, &mut |_| ()).unwrap();
    assert_eq!((again.counts, again.resumed_after), (first.counts, first.counts.items()));
    let engine = database::open(&db, None, config).unwrap();
    assert!(engine.check(&|_| ()).unwrap().is_sound());
}

/// Each batch of an import is one unit with how far it has come: a store that lost its last batches goes on from there.
#[test]
fn an_import_goes_on_from_any_of_its_batches() {
    let (dump, root) = large_dump();
    for layout in LAYOUTS {
        for kept in 1..chunks(&dump).len() {
            // What follows the chunks that are kept is missing: the import ends in an error after them.
            let end = chunks(&dump)[kept - 1].end;
            let place = Place::memory();
            let error = import(place.store(), layout.name, &dump[..end]).unwrap_err();
            assert!(matches!(error, Error::Snapshot(_)), "{error}");
            let imported = import(place.store(), layout.name, &dump).unwrap();
            assert!(imported.resumed_after > 0);
            assert!(imported.resumed_after <= (kept * CHUNK_ITEMS_MAX) as u64);
            let engine = place.open(layout.name, at_close());
            assert_eq!(engine.head().root.commitment, root);
            assert!(engine.check(&|_| ()).unwrap().is_sound());
        }
    }
}
