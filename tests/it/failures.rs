//! What a failing, full or slow disk does to a running engine, and what it does not.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use flagstone::core::diff::Subject;
use flagstone::core::types::BlockNumber;
use flagstone::journal::faulty::{Fault, FaultyFiles};
use flagstone::journal::{Files, OpenFile};
use flagstone::store::{
    Capabilities, MemoryStore, Row, Store, StoreError, StoreErrorKind, StoreRead, Visit, WriteBatch,
};
use flagstone::{Cadence, Engine, EngineConfig, Error, ErrorKind, StateDiff, StateUpdate};

use crate::lineage::Mem;
use crate::support::{BeforeWrites, config, settle};

fn block(number: u64) -> StateUpdate {
    let diff =
        StateDiff::builder().storage(1.into(), number.into(), (number + 1).into()).class(7.into(), 8.into());
    StateUpdate {
        block_number: Some(BlockNumber(number)),
        starknet_version: "0.14.0".parse().ok(),
        ..StateUpdate::from(diff.build().unwrap())
    }
}

fn open(store: impl Store + 'static, files: impl Files + 'static, config: EngineConfig) -> Engine {
    let layout = flagstone::layout("flat").unwrap().make();
    Engine::open_journaled(Box::new(store), layout, config, Arc::new(files), Path::new("/journal")).unwrap()
}

fn slot(engine: &Engine, number: u64) -> Result<bool, Error> {
    Ok(engine.view().storage_at(&1.into(), &number.into())? == (number + 1).into())
}

/// Says that something begins, and waits for leave to go on.
type Gate = (Sender<()>, Receiver<()>);

/// Files whose appends fail as on a full disk, and whose removals wait for leave.
#[derive(Debug, Clone, Default)]
struct Trying {
    inner: FaultyFiles,
    full: Arc<AtomicBool>,
    /// Bytes of a write that still fit.
    fits: Arc<AtomicU64>,
    removing: Arc<Mutex<Option<Gate>>>,
}

#[derive(Debug)]
struct TryingFile {
    inner: Box<dyn OpenFile>,
    full: Arc<AtomicBool>,
    fits: Arc<AtomicU64>,
}

fn no_room() -> io::Error {
    io::ErrorKind::StorageFull.into()
}

impl Trying {
    fn file(&self, inner: Box<dyn OpenFile>) -> Box<dyn OpenFile> {
        Box::new(TryingFile { inner, full: Arc::clone(&self.full), fits: Arc::clone(&self.fits) })
    }
}

impl Files for Trying {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        self.inner.create_dir(dir)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.inner.list(dir)
    }
    fn create(&self, path: &Path) -> io::Result<Box<dyn OpenFile>> {
        Ok(self.file(self.inner.create(path)?))
    }
    fn open(&self, path: &Path) -> io::Result<Box<dyn OpenFile>> {
        Ok(self.file(self.inner.open(path)?))
    }
    fn open_read(&self, path: &Path) -> io::Result<Box<dyn OpenFile>> {
        self.inner.open_read(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.inner.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        if let Some((began, leave)) = self.removing.lock().unwrap().take() {
            began.send(()).unwrap();
            leave.recv().unwrap();
        }
        self.inner.remove(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.inner.sync_dir(dir)
    }
}

impl OpenFile for TryingFile {
    fn is_linked(&mut self) -> io::Result<bool> {
        self.inner.is_linked()
    }
    fn size(&mut self) -> io::Result<u64> {
        self.inner.size()
    }
    fn read_at(&mut self, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        self.inner.read_at(offset, bytes)
    }
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        if self.full.load(Ordering::SeqCst) {
            let fits = self.fits.swap(0, Ordering::SeqCst) as usize;
            return match bytes.get(..fits).filter(|bytes| !bytes.is_empty()) {
                Some(bytes) => self.inner.write_at(offset, bytes),
                None => Err(no_room()),
            };
        }
        self.inner.write_at(offset, bytes)
    }
    fn set_size(&mut self, bytes: u64) -> io::Result<()> {
        self.inner.set_size(bytes)
    }
    fn sync_data(&mut self) -> io::Result<()> {
        self.inner.sync_data()
    }
    fn sync_all(&mut self) -> io::Result<()> {
        self.inner.sync_all()
    }
}

/// Removing a segment takes as long as it takes; blocks close meanwhile.
#[test]
fn closing_does_not_wait_for_the_removal_of_segments() {
    let files = Trying { inner: FaultyFiles::new(), ..Trying::default() };
    let store = Mem::default();
    let config = config(Cadence::EVERY_BLOCK, 1).with_persist_every(2);
    let engine = open(store.clone(), files.clone(), config);
    (0..3).for_each(|number| drop(engine.close_block(&block(number)).unwrap()));
    settle(&engine);
    drop(engine);
    let engine = open(store, files.clone(), config);
    let (began, removing) = channel();
    let (let_go, leave) = channel();
    *files.removing.lock().unwrap() = Some((began, leave));
    let mut number = 3;
    while removing.try_recv().is_err() {
        engine.close_block(&block(number)).unwrap();
        engine.commit().unwrap();
        number += 1;
        assert!(number < 1_000, "nothing is ever removed");
        thread::yield_now();
    }
    // The writing thread is in there now, and stays.
    for number in number..number + 3 {
        engine.close_block(&block(number)).unwrap();
        assert!(slot(&engine, number).unwrap());
    }
    let_go.send(()).unwrap();
    settle(&engine);
    assert_eq!(engine.head().persisted, Some(BlockNumber(number + 2)));
}

/// A frame that does not fit is no failure: the block is refused, all there is is read, and once there is room the next block
/// goes on, also if a piece of the frame was written.
#[test]
fn on_a_full_disk_blocks_are_refused_and_reads_go_on_and_then_blocks_do() {
    for cadence in [Cadence::AtClose, Cadence::EVERY_BLOCK] {
        for fits in [0, 1, 60, 200] {
            let files = Trying { inner: FaultyFiles::new(), ..Trying::default() };
            let store = Mem::default();
            let engine = open(store.clone(), files.clone(), config(cadence, 1));
            engine.close_block(&block(0)).unwrap();
            settle(&engine);
            files.full.store(true, Ordering::SeqCst);
            for round in 0..3 {
                files.fits.store(fits, Ordering::SeqCst);
                let error = engine.close_block(&block(1)).unwrap_err();
                assert!(error.to_string().contains("no room on the disk"), "{round}: {error}");
                assert_eq!(error.kind(), ErrorKind::Full);
                assert!(slot(&engine, 0).unwrap() && !slot(&engine, 1).unwrap());
            }
            files.full.store(false, Ordering::SeqCst);
            engine.close_block(&block(1)).unwrap();
            engine.close_block(&block(2)).unwrap();
            settle(&engine);
            let root = engine.head().root;
            drop(engine);
            for seed in 0..6 {
                let files = files.inner.fork();
                files.crash(seed);
                let engine = open(Mem::of(store.rows()), files, config(cadence, 1));
                engine.commit().unwrap();
                assert_eq!((engine.head().closed, engine.head().root), (Some(BlockNumber(2)), root));
            }
        }
    }
}

/// A journal that fails otherwise stops the engine, and reads of what is there go on.
#[test]
fn after_a_failed_append_nothing_is_closed_and_everything_is_read() {
    let files = FaultyFiles::new();
    let engine = open(MemoryStore::new(), files.clone(), config(Cadence::EVERY_BLOCK, 1));
    engine.close_block(&block(0)).unwrap();
    settle(&engine);
    let view = engine.view();
    files.plan(Fault::Fail(0));
    assert!(engine.close_block(&block(1)).is_err());
    assert_eq!(view.storage_at(&1.into(), &0.into()).unwrap(), 1.into());
    assert!(slot(&engine, 0).unwrap());
    assert_eq!(engine.at_commitment(None, |_, block, _| Ok(block)).unwrap(), Some(BlockNumber(0)));
    assert!(matches!(engine.close_block(&block(1)), Err(Error::Stopped { .. })));
}

/// A disk in memory whose syncs can be made to fail, once; what was not synced is then gone for good.
#[derive(Clone, Default)]
struct Disk {
    seen: Mem,
    synced: Mem,
    unsynced: Arc<Mutex<Vec<WriteBatch>>>,
    failing: Arc<AtomicBool>,
}

impl StoreRead for Disk {
    fn get(&self, key: &[u8]) -> Result<Row, StoreError> {
        self.seen.get(key)
    }
    fn scan(&self, prefix: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        self.seen.scan(prefix, visit)
    }
}

impl Store for Disk {
    fn name(&self) -> &'static str {
        "disk"
    }
    fn write(&self, batch: &WriteBatch) -> Result<(), StoreError> {
        self.unsynced.lock().unwrap().push(batch.clone());
        self.seen.write(batch)
    }
    fn sync(&self) -> Result<(), StoreError> {
        let unsynced = std::mem::take(&mut *self.unsynced.lock().unwrap());
        if self.failing.swap(false, Ordering::SeqCst) {
            return Err(StoreError::new(StoreErrorKind::Io, "fsync: Input/output error"));
        }
        unsynced.iter().try_for_each(|batch| self.synced.write(batch))
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities { atomic_batches: true, durable: true }
    }
}

/// Whoever's sync fails, the engine has failed: no second one is tried, and the journal is not trimmed behind it.
#[test]
fn a_sync_that_failed_is_final_and_nothing_is_trimmed_behind_it() {
    let (disk, files) = (Disk::default(), FaultyFiles::new());
    let config = config(Cadence::EVERY_BLOCK, 1).with_persist_every(4);
    let engine = open(disk.clone(), files.clone(), config);
    for number in 0..3 {
        engine.close_block(&block(number)).unwrap();
        engine.commit().unwrap();
    }
    disk.failing.store(true, Ordering::SeqCst);
    assert!(engine.sync().unwrap_err().to_string().contains("fsync"));
    assert!(matches!(engine.sync(), Err(Error::Stopped { .. })));
    assert!(matches!(engine.close_block(&block(3)), Err(Error::Stopped { .. })));
    drop(engine);
    assert!(disk.unsynced.lock().unwrap().is_empty(), "something was written after the failure");
    // Power cut.
    files.crash(1);
    let engine = open(disk.synced.clone(), files, config);
    engine.commit().unwrap();
    assert_eq!(engine.head().closed, Some(BlockNumber(2)));
    assert!((0..3).all(|number| slot(&engine, number).unwrap()));
}

/// Without a journal the store is what makes a block durable, so nothing of it is shown before.
#[test]
fn without_a_journal_a_block_is_visible_only_once_it_is_durable() {
    let gate: Arc<Mutex<Option<Gate>>> = Arc::default();
    let waits = Arc::clone(&gate);
    let before = move || {
        if let Some((began, leave)) = waits.lock().unwrap().take() {
            began.send(()).unwrap();
            leave.recv().unwrap();
        }
    };
    let store = BeforeWrites { inner: Mem::default(), before };
    let layout = flagstone::layout("flat").unwrap().make();
    let engine = Engine::open(Box::new(store), layout, config(Cadence::EVERY_BLOCK, 1)).unwrap();
    engine.close_block(&block(0)).unwrap();
    let (began, writing) = channel();
    let (let_go, leave) = channel();
    *gate.lock().unwrap() = Some((began, leave));
    thread::scope(|scope| {
        let closing = scope.spawn(|| engine.close_block(&block(1)).unwrap());
        writing.recv().unwrap();
        let head = engine.head();
        assert_eq!(
            (head.closed, head.committed, head.persisted),
            (Some(BlockNumber(0)), head.closed, head.closed)
        );
        assert_eq!(engine.view().block(), Some(BlockNumber(0)));
        assert!(!slot(&engine, 1).unwrap());
        let_go.send(()).unwrap();
        closing.join().unwrap();
    });
    assert_eq!(engine.view().block(), Some(BlockNumber(1)));
    assert!(slot(&engine, 1).unwrap());
}

#[test]
fn an_iterator_of_hints_may_give_hints_itself() {
    let engine = Arc::new(
        Engine::open(
            Box::new(MemoryStore::new()),
            flagstone::layout("flat").unwrap().make(),
            config(Cadence::EVERY_BLOCK, 1),
        )
        .unwrap(),
    );
    let (other, (done, finished)) = (Arc::clone(&engine), channel());
    thread::spawn(move || {
        let inner = || {
            other.prefetch([Subject::Nonce(2.into())]);
            Subject::Nonce(1.into())
        };
        other.prefetch(std::iter::once_with(inner));
        done.send(()).unwrap();
    });
    finished
        .recv_timeout(std::time::Duration::from_secs(60))
        .expect("the hints' lock is held while the iterator runs");
    assert_eq!(engine.hint_stats().hinted, 2);
}
