//! What rots, is lost, or is put back from an older time; and states that are carried to another database.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use flagstone::core::types::BlockNumber;
use flagstone::journal::faulty::{Class, Fault};
use flagstone::journal::{Journal, JournalConfig};
use flagstone::snapshot::export;
use flagstone::store::StoreError;
use flagstone::{Engine, Error, ErrorKind, StateUpdate};

use super::model::{Block, State, universe};
use super::store::LOG;
use super::world::{End, World};

/// What was done to the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Done {
    /// Nothing that could not be noticed.
    Noticeable,
    /// The journal's end is another: nobody can know what came behind it, if nothing else tells.
    EndOfJournal,
}

impl World {
    fn segments(&self) -> Vec<PathBuf> {
        let dir = self.journal_dir();
        let is_one =
            |path: &PathBuf| path.parent() == Some(&dir) && path.extension().is_some_and(|of| of == "seg");
        self.disk.paths().into_iter().filter(is_one).collect()
    }

    /// The sequence number of the first segment that is there: those before were let go.
    pub fn let_go(&self) -> u64 {
        let first = self.segments().into_iter().next();
        let name = first.and_then(|path| path.file_stem()?.to_str()?.parse::<u64>().ok());
        name.map_or(0, |first| first - 1)
    }

    /// Damages the files while nothing runs, and looks at what is made of that. Then everything is as it was.
    pub fn damage(&mut self) -> Result<(), Error> {
        let end = self.draw.pick(&[End::Closed, End::Killed, End::PowerCut]);
        self.plan_nothing();
        self.end(end);
        let whole = self.disk.fork();
        let done = self.do_damage();
        self.stats.damaged += 1;
        self.look_at_journal();
        match self.open() {
            Ok(engine) => self.audit_damaged(engine, done),
            Err(error) => {
                self.stats.refused_for_damage += 1;
                check_damage(&error);
                let told = [ErrorKind::Damaged, ErrorKind::Misconfigured];
                assert!(told.contains(&error.kind()), "damage is told as {:?}: {error}", error.kind());
            }
        }
        self.disk = whole;
        self.recover(false);
        self.audit_all();
        Ok(())
    }

    /// A byte of the store rots while the database runs: what is read is right, or an error. Then everything is as it was.
    pub fn rot(&mut self) -> Result<(), Error> {
        self.gate.set(false);
        self.engine().commit()?;
        self.engine().sync()?;
        self.rest();
        let (whole, log) = (self.disk.fork(), self.store_dir().join(LOG));
        for _ in 0..4 {
            let bytes = self.disk.content(&log).unwrap_or_default().len();
            let (at, bits) = (self.draw.below(bytes), 1 << self.draw.below(8));
            self.note(format!("the store rots at {at} of {bytes}"));
            self.disk.rot(&log, at, bits);
        }
        self.stats.damaged += 1;
        self.audit_running();
        self.end(End::Killed);
        self.disk = whole;
        self.recover(false);
        self.audit_all();
        Ok(())
    }

    /// A database that is damaged while it runs.
    fn audit_running(&mut self) {
        let block = Block::draw(&mut self.draw, 0);
        let block = Block { update: StateUpdate { block_number: None, ..block.update }, ..block };
        let (engine, tip) = (self.engine(), self.tip());
        for subject in universe() {
            match engine.view().value(&subject) {
                Ok(value) => {
                    assert!(tip.says(&subject, &value), "{subject} is {value:#x} in a store that rots")
                }
                Err(error) => check_damage(&error),
            }
        }
        match engine.close_block(&block.update) {
            Ok(handle) => self.audit_after(engine, &tip.after(&block), handle.committed().wait()),
            Err(error) => check_damage(&error),
        }
    }

    fn do_damage(&mut self) -> Done {
        let log = self.store_dir().join(LOG);
        let segments = self.segments();
        let segment = self.draw.pick(&segments);
        let path = self.draw.pick(&[log.clone(), segment.clone(), segments[segments.len() - 1].clone()]);
        let is_last = segments.last() == Some(&path);
        let old = self.draw.clone().next() as usize % self.attic.len().max(1);
        let old = self.attic.get(old).filter(|(home, _)| *home == self.home).map(|(_, files)| files.clone());
        let done = if is_last { Done::EndOfJournal } else { Done::Noticeable };
        match (self.draw.below(5), old) {
            (0, Some(files)) if files.iter().any(|(of, _)| *of == path) => {
                self.note(format!("{} is put back", path.display()));
                let old = files.iter().find(|(of, _)| *of == path).unwrap();
                self.disk.set_content(&path, &old.1);
                done
            }
            (1, Some(files)) => {
                let dir = self.draw.pick(&[self.store_dir(), self.journal_dir()]);
                self.put_back(&dir, &files)
            }
            (2, _) => {
                self.note(format!("{} is lost", path.display()));
                self.disk.lose(&path);
                done
            }
            _ => {
                let bytes = self.disk.content(&path).unwrap_or_default().len();
                let (at, bits) = (self.draw.below(bytes), 1 << self.draw.below(8));
                self.note(format!("{} rots at {at} of {bytes}", path.display()));
                self.disk.rot(&path, at, bits);
                done
            }
        }
    }

    /// A whole directory is as it once was.
    fn put_back(&mut self, dir: &Path, files: &[(PathBuf, Vec<u8>)]) -> Done {
        self.note(format!("{} is put back", dir.display()));
        for path in self.disk.paths().into_iter().filter(|path| path.starts_with(dir)) {
            self.disk.lose(&path);
        }
        for (path, bytes) in files.iter().filter(|(path, _)| path.starts_with(dir)) {
            self.disk.set_content(path, bytes);
        }
        if dir == self.journal_dir() { Done::EndOfJournal } else { Done::Noticeable }
    }

    /// A damaged database that opens: what it tells is right, of the last state or, where nothing can tell, of an earlier one.
    fn audit_damaged(&mut self, engine: Engine, done: Done) {
        let view = engine.view();
        let is_tip = Some(view.state()) == self.tip().id;
        let may_be_earlier = done == Done::EndOfJournal;
        assert!(
            is_tip || may_be_earlier,
            "the database is at {:?} without a word, and was at {:?}",
            engine.head(),
            self.number()
        );
        let Some(state) = self.known.get(&view.state()).cloned() else {
            panic!("the database is in a state that never was: {:?}", engine.head());
        };
        for subject in universe() {
            match view.value(&subject) {
                Ok(value) => {
                    assert!(state.says(&subject, &value), "{subject} is {value:#x} in a damaged database")
                }
                Err(error) => check_damage(&error),
            }
        }
        match engine.commit() {
            Ok(head) => assert_eq!(head.root.roots, state.roots(), "roots of a damaged database"),
            // It is once more from before the refusal.
            Err(Error::RootMismatch { .. }) if state.is_wrong => return,
            Err(error) => check_damage(&error),
        }
        if let Err(error) = engine.check(&|_| ()) {
            check_damage(&error);
        }
        let block = Block::draw(&mut self.draw, 0);
        let block = Block { update: StateUpdate { block_number: None, ..block.update }, ..block };
        match engine.close_block(&block.update) {
            Ok(handle) => self.audit_after(&engine, &state.after(&block), handle.committed().wait()),
            Err(error) => check_damage(&error),
        }
        drop(view);
        drop(engine);
    }

    /// A block on top of a damaged database has the right root, or an error that does not blame it.
    fn audit_after(
        &self,
        engine: &Engine,
        state: &State,
        root: Result<Option<flagstone::engine::BlockRoot>, Error>,
    ) {
        match root {
            Ok(root) => {
                let is_right = root.is_none_or(|root| state.has_root(&root, true) == Some(true));
                assert!(is_right, "a block on a damaged database has root {root:?}");
            }
            Err(error) => check_damage(&error),
        }
        for subject in universe() {
            match engine.view().value(&subject) {
                Ok(value) => {
                    assert!(state.says(&subject, &value), "{subject} is {value:#x} after a block on damage")
                }
                Err(error) => check_damage(&error),
            }
        }
    }

    /// A state is exported, and imported into another database; sometimes the world goes on with that.
    pub fn carry(&mut self) -> Result<(), Error> {
        self.engine().commit()?;
        let Some(last) = self.number() else { return Ok(()) };
        let number = last.saturating_sub(self.draw.below(3) as u64);
        let state = self.chain[number as usize + 1].clone();
        let mut dump = Vec::new();
        match export(self.engine(), Some(BlockNumber(number)), &mut dump, &mut |_| ()) {
            Ok(exported) => assert_eq!(exported.header.roots, state.roots()),
            Err(error) if error.kind() == ErrorKind::Expired => {
                assert!(number < self.undo_floor || self.setup.config.coalesce, "{error}");
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        if self.is_planned {
            return Ok(());
        }
        self.end(End::Closed);
        let from = self.home;
        self.home = self.stats.steps;
        if self.draw.chance(50) {
            let at = self.draw.next() % 12;
            self.plan(Class { under: self.store_dir(), kind: None }, Fault::PowerCut(at));
            if let Err(error) = self.import(&dump) {
                self.expect_fault(&error);
            }
            self.end(End::PowerCut);
        }
        self.import(&dump).unwrap();
        let before = (self.chain.clone(), self.undo_floor, self.root_floor);
        self.arrive(number, &state);
        let (there, goes_back) = (self.home, self.draw.chance(50));
        if goes_back {
            self.end(End::Closed);
            self.home = from;
            (self.chain, self.undo_floor, self.root_floor) = before;
            self.recover(true);
            self.audit_all();
        }
        self.leave(if goes_back { there } else { from });
        Ok(())
    }

    /// Nobody needs what is in the directories of a home any more.
    fn leave(&self, home: u64) {
        let dirs = [format!("/store{home}"), format!("/journal{home}")];
        let is_there = |path: &PathBuf| dirs.iter().any(|dir| path.starts_with(dir));
        self.disk.paths().iter().filter(|path| is_there(path)).for_each(|path| self.disk.lose(path));
    }

    fn import(&mut self, dump: &[u8]) -> Result<(), Error> {
        let dir = self.store_dir();
        let store = self.open_store(&dir)?;
        let layout = self.setup.layout.make();
        let imported =
            Engine::import(Box::new(store), layout.as_ref(), &self.setup.config, dump, &mut |_| ())?;
        // Alone, to learn whose its journal will be.
        let store = self.open_store(&dir)?;
        let engine = Engine::open(Box::new(store), layout, self.setup.config)?;
        let (files, config) = (Arc::new(self.disk.clone()), JournalConfig::default());
        let (database, block) = (engine.database(), imported.header.block);
        engine.close()?;
        Ok(Journal::begin_after(files, &self.journal_dir(), config, database, block)
            .map_err(StoreError::from)?)
    }

    /// Opens what was imported: it is the state that was exported.
    fn arrive(&mut self, number: u64, state: &State) {
        self.stats.segments_let_go += self.let_go();
        let engine = self.open().unwrap();
        assert_eq!(engine.head().closed, Some(BlockNumber(number)));
        let state = state.imported(engine.view().state());
        self.engine = Some(engine);
        self.chain.truncate(number as usize + 1);
        self.chain.push(state.clone());
        self.known.extend(state.id.map(|id| (id, state)));
        (self.undo_floor, self.root_floor) = (number, number);
        self.audit_all();
    }
}

fn is_told(error: &Error) -> bool {
    let wrong = [ErrorKind::Root, ErrorKind::Input, ErrorKind::Full, ErrorKind::Locked];
    !wrong.contains(&error.kind()) && !error.to_string().contains("panicked")
}

/// Damage is told as such, or at least not as somebody else's fault.
#[track_caller]
fn check_damage(error: &Error) {
    assert!(is_told(error), "{:?}: {error}", error.kind());
}
