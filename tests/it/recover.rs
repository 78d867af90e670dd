//! Ways back from damage: what can be believed is joined, checked, and put in place of the old; what is lost is told.

use std::fs;
use std::path::{Path, PathBuf};

use flagstone::core::types::{BlockNumber, StateCommitment};
use flagstone::database::{self, RecoverOptions, Recovery, Source};
use flagstone::{Cadence, Engine, EngineConfig, Error, ErrorKind, StateDiff, StateUpdate, snapshot};

use crate::support::{config, copy_dir, layouts, settle};

fn block(number: u64) -> StateUpdate {
    let diff = StateDiff::builder()
        .storage(1.into(), number.into(), (number + 1).into())
        .storage(2.into(), (number % 4).into(), (number + 1).into())
        .nonce(1.into(), (number + 1).into())
        .class((number % 5).into(), (number + 8).into());
    StateUpdate {
        block_number: Some(BlockNumber(number)),
        starknet_version: "0.14.0".parse().ok(),
        ..StateUpdate::from(diff.build().unwrap())
    }
}

struct Bench {
    dir: tempfile::TempDir,
    roots: Vec<StateCommitment>,
}

const BLOCKS: u64 = 12;

impl Bench {
    /// Blocks 0 to 5 persisted, 6 to 11 only in the journal, and a copy as a kill leaves it.
    fn new(layout: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let entry = flagstone::layout(layout).unwrap();
        let live = dir.path().join("live");
        let engine =
            database::open_or_create(&live, Some(entry), None, config(Cadence::OnRequest, 1)).unwrap();
        (0..6).for_each(|number| drop(engine.close_block(&block(number)).unwrap()));
        settle(&engine);
        let bench = Self { dir, roots: Vec::new() };
        bench.dump(&engine, "dump");
        (6..BLOCKS).for_each(|number| drop(engine.close_block(&block(number)).unwrap()));
        copy_dir(&live, &bench.db());
        engine.commit().unwrap();
        let root = |number| engine.block_root(BlockNumber(number)).unwrap().unwrap().commitment;
        Self { roots: (0..BLOCKS).map(root).collect(), ..bench }
    }

    fn db(&self) -> PathBuf {
        self.dir.path().join("db")
    }

    fn dump(&self, engine: &Engine, name: &str) {
        let out = fs::File::create(self.dir.path().join(name)).unwrap();
        snapshot::export(engine, None, out, &mut |_| {}).unwrap();
    }

    fn recover(&self, options: RecoverOptions<'_>) -> Result<Recovery, Error> {
        database::recover(&self.db(), options)
    }

    /// The segment with the blocks, and where frames of blocks begin in it.
    fn frames(&self) -> (PathBuf, Vec<u8>, Vec<usize>) {
        let segments = fs::read_dir(self.db().join("journal")).unwrap().map(|entry| entry.unwrap().path());
        let path = segments.max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
        let bytes = fs::read(&path).unwrap();
        let is_block = |at: &usize| bytes[*at..].starts_with(b"FRAM\0\0\0\x01");
        let frames = (0..bytes.len()).step_by(8).filter(is_block).collect();
        (path, bytes, frames)
    }

    /// Flips a bit in the payload of a block's frame.
    fn damage_frame(&self, block: usize) {
        let (path, mut bytes, frames) = self.frames();
        bytes[frames[block] + 60] ^= 1;
        fs::write(path, bytes).unwrap();
    }

    /// It is sound up to a block, the next blocks can follow, and nothing but the parts put aside is left over.
    #[track_caller]
    fn check(&self, last: u64) {
        let engine = database::open(&self.db(), None, config(Cadence::EVERY_BLOCK, 1)).unwrap();
        assert_eq!(engine.head().closed, Some(BlockNumber(last)));
        (last + 1..BLOCKS).for_each(|number| drop(engine.close_block(&block(number)).unwrap()));
        engine.commit().unwrap();
        assert_eq!(engine.head().root.commitment, self.roots[BLOCKS as usize - 1]);
        assert!(engine.check(&|_| ()).unwrap().is_sound());
        drop(engine);
        for left in ["recovering", "recovered"] {
            assert!(!self.db().join(left).exists());
        }
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A frame of a block that the store has is damaged: the blocks behind it are whole, and are joined to the store.
#[test]
fn whole_frames_behind_a_damaged_one_are_joined_to_the_store() {
    for (layout, _) in layouts() {
        let bench = Bench::new(layout);
        bench.damage_frame(2);
        let error = database::open(&bench.db(), None, EngineConfig::default()).unwrap_err();
        assert!(error.to_string().contains("flagstone recover"), "{error}");
        let told = bench.recover(RecoverOptions::default().with_dry_run(true)).unwrap();
        assert_eq!((told.source, told.block, told.lost), (Source::Store, Some(BlockNumber(11)), None));
        assert!(told.aside.is_empty());
        assert!(
            database::open(&bench.db(), None, EngineConfig::default()).is_err(),
            "a dry run changed something"
        );
        let done = bench.recover(RecoverOptions::default()).unwrap();
        assert_eq!((done.source, done.block, done.lost), (Source::Store, Some(BlockNumber(11)), None));
        assert_eq!(done.aside.len(), 2);
        assert!(done.problems.iter().any(|problem| problem.contains("checksum")), "{:?}", done.problems);
        bench.check(11);
        let expected = ["FLAGSTONE", "LOCK", "journal", "journal.aside-1", "store", "store.aside-1"];
        assert_eq!(names(&bench.db()), expected);
    }
}

#[test]
fn blocks_behind_a_gap_that_nothing_fills_are_lost_and_told() {
    let bench = Bench::new("flat");
    bench.damage_frame(8);
    let done = bench.recover(RecoverOptions::default()).unwrap();
    assert_eq!(done.block, Some(BlockNumber(7)));
    assert_eq!(done.lost.map(|lost| lost.to_string()).as_deref(), Some("blocks 8 to 11"));
    bench.check(7);
}

#[test]
fn a_store_that_is_gone_is_built_from_the_journal_or_from_a_dump_and_the_journal() {
    for (layout, _) in layouts() {
        let bench = Bench::new(layout);
        fs::remove_dir_all(bench.db().join("store")).unwrap();
        let done = bench.recover(RecoverOptions::default()).unwrap();
        assert_eq!((done.source, done.block, done.lost), (Source::Journal, Some(BlockNumber(11)), None));
        bench.check(11);

        let bench = Bench::new(layout);
        fs::remove_dir_all(bench.db().join("store")).unwrap();
        // The journal does not reach back any more.
        bench.damage_frame(0);
        let error = bench.recover(RecoverOptions::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged);
        assert!(error.to_string().contains("nothing sound can be built"), "{error}");
        assert!(!bench.db().join("recovering").exists(), "what was tried is left over");
        let dump = bench.dir.path().join("dump");
        let done = bench.recover(RecoverOptions::default().with_dump(Some(&dump))).unwrap();
        assert_eq!((done.source, done.block, done.lost), (Source::Dump, Some(BlockNumber(11)), None));
        bench.check(11);
    }
}

/// Value rows of the flat layout that the journal does not know of any more: the tries' leaves have them.
#[test]
fn value_rows_that_are_gone_are_built_from_the_tries() {
    use flagstone::database::{STORES, StoreSettings};
    use flagstone::store::{Sealed, Store, StoreRead, WriteBatch};
    let bench = Bench::new("flat");
    {
        let store = STORES[0].open(&bench.db().join("store"), &StoreSettings::default()).unwrap();
        let store = Sealed::from_box(store);
        let mut batch = WriteBatch::default();
        store
            .scan(&[0x10], &mut |key, _| {
                batch.delete(key);
                std::ops::ControlFlow::Continue(())
            })
            .unwrap();
        assert!(batch.len() > 4);
        store.write(&batch).unwrap();
        store.sync().unwrap();
    }
    // And the journal is not there to tell.
    fs::remove_dir_all(bench.db().join("journal")).unwrap();
    let done = bench.recover(RecoverOptions::default()).unwrap();
    assert_eq!((done.source, done.block), (Source::Tries, Some(BlockNumber(5))));
    bench.check(5);
}

#[test]
fn what_is_sound_is_left_alone() {
    let bench = Bench::new("flat");
    let error = bench.recover(RecoverOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Input);
    assert!(error.to_string().contains("is sound"), "{error}");
    bench.check(11);
}

/// Killed at each step of putting what was built in its place: the next opening ends it.
#[test]
fn a_recovery_that_is_killed_is_decided_or_not_begun() {
    let made = Bench::new("flat");
    made.damage_frame(8);
    copy_dir(&made.db(), &made.dir.path().join("damaged"));
    made.recover(RecoverOptions::default()).unwrap();
    let (damaged, db) = (made.dir.path().join("damaged"), made.db());
    for step in 0..5 {
        let at = made.dir.path().join(format!("step{step}"));
        copy_dir(&damaged, &at);
        fs::create_dir(at.join("recovered")).unwrap();
        copy_dir(&db.join("store"), &at.join("recovered/store"));
        copy_dir(&db.join("journal"), &at.join("recovered/journal"));
        let rename = |from: &str, to: &str| fs::rename(at.join(from), at.join(to)).unwrap();
        let steps = [
            ("store", "store.aside-1"),
            ("recovered/store", "store"),
            ("journal", "journal.aside-1"),
            ("recovered/journal", "journal"),
        ];
        steps.iter().take(step).for_each(|(from, to)| rename(from, to));
        // Who only looks cannot end it, and says so.
        let looked = database::open_read_only(&at, None, EngineConfig::default()).unwrap_err();
        assert!(looked.to_string().contains("interrupted just before its end"), "{looked}");
        let engine = database::open(&at, None, EngineConfig::default()).unwrap();
        assert_eq!(engine.head().closed, Some(BlockNumber(7)), "step {step}");
        drop(engine);
        let expected = ["FLAGSTONE", "LOCK", "journal", "journal.aside-1", "store", "store.aside-1"];
        assert_eq!(names(&at), expected, "step {step}");
    }
    // What was being built and not decided is of no account.
    fs::create_dir(db.join("recovering")).unwrap();
    assert_eq!(
        database::open(&db, None, EngineConfig::default()).unwrap().head().closed,
        Some(BlockNumber(7))
    );
}
