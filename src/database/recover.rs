//! Ways back from damage.
//!
//! A recovery builds the database anew, beside the old one, from what can be believed: the store with the journal's whole
//! frames joined behind it; the journal alone, if it reaches back to the first block; a dump with the frames behind it; or
//! the store's tries, whose leaves have the values and whose hashes tell whether they are whole. What it has built is checked
//! from the leaves up, and only then takes the place of the old one, whose parts are put aside and not touched:
//!
//! 1. Everything is built in `DIR/recovering`, and synced.
//! 2. That is renamed to `DIR/recovered`: from here on it is what the database is, whatever happens.
//! 3. The old store and journal become `store.aside-N` and `journal.aside-N`, and the new ones take their names. An opening
//!    that finds `DIR/recovered` does the rest of this.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use flagstone_core::hash::Bulk;
use flagstone_core::types::{BlockNumber, StateId};

use super::with::With;
use super::{
    Catalogue, JOURNAL, Marker, Options, RECOVERED, RECOVERING, STORE, StoreEntry, marker_of, put_aside,
};
use crate::disk::{copy_file, copy_tree, sync_dir, sync_tree};
use crate::engine::CheckReport;
use crate::engine::identity;
use crate::engine::import::{self, ImportProgress};
use crate::engine::meta::{self, BlockFacts, PendingBlock, StoredHead};
use crate::engine::opened::House;
use crate::engine::opening::Opening;
use crate::error::Error;
use crate::journal::{BlockRange, DatabaseId, Journal, OsFiles, Position, Recovered, Salvaged};
use crate::lock::{DirLock, io_error};
use crate::registry::LayoutEntry;
use crate::setters::setters;
use crate::snapshot;
use crate::store::{Sealed, Store, WriteBatch};

/// What a recovery may use, and whether it is only to tell.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct RecoverOptions<'a> {
    /// A dump of an earlier state of the same chain.
    pub dump: Option<&'a Path>,
    /// Build and check, in a temporary place, and change nothing.
    pub dry_run: bool,
}

impl<'a> RecoverOptions<'a> {
    setters! {
        with_dump => dump: Option<&'a Path>,
        with_dry_run => dry_run: bool,
    }
}

/// From what a database was built anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Source {
    /// The store, and whole frames of the journal behind it.
    Store,
    /// The journal alone, from the first block on.
    Journal,
    /// A dump, and whole frames of the journal behind it.
    Dump,
    /// The store's tries, and whole frames of the journal behind them.
    Tries,
}

impl Source {
    /// For people.
    pub const fn about(self) -> &'static str {
        match self {
            Self::Store => "the store and the journal",
            Self::Journal => "the journal alone",
            Self::Dump => "the dump and the journal",
            Self::Tries => "the store's tries and the journal",
        }
    }
}

/// What a recovery found and did.
#[derive(Debug)]
#[non_exhaustive]
pub struct Recovery {
    /// What is damaged, and what could not be used.
    pub problems: Vec<String>,
    /// What the database was built from.
    pub source: Source,
    /// The last block that it has now.
    pub block: Option<BlockNumber>,
    /// Blocks that are lost, as far as is known of them.
    pub lost: Option<BlockRange>,
    /// What the check of what was built says.
    pub report: CheckReport,
    /// Where the old parts are now; empty if nothing was changed.
    pub aside: Vec<PathBuf>,
}

/// Builds the database in a directory anew, which is in a layout and a store of the built-in [`Catalogue`].
///
/// # Errors
/// As [`Catalogue::recover`].
pub fn recover(dir: &Path, options: RecoverOptions<'_>) -> Result<Recovery, Error> {
    Catalogue::default().recover(dir, &Options::default(), options)
}

impl Catalogue {
    /// Builds the database in a directory anew from what can be believed of it, and says what is lost.
    ///
    /// # Errors
    /// [`Error::Refused`] if it is sound, so that nothing is to be recovered; [`Error::State`] if nothing can be built that is
    /// sound, saying why of each way; and as [`Catalogue::open`]. Then nothing was changed.
    pub fn recover(
        &self,
        dir: &Path,
        options: &Options,
        recovery: RecoverOptions<'_>,
    ) -> Result<Recovery, Error> {
        let with = &With::new(self, options)?;
        marker_of(dir)?;
        let lock = match recovery.dry_run {
            true => DirLock::shared(dir)?,
            false => Some(DirLock::exclusive(dir)?),
        };
        finish(dir, !recovery.dry_run)?;
        let marker = marker_of(dir)?;
        let problem = what_is_wrong(with, dir)?;
        let salvaged = Salvaged::read(&OsFiles, &dir.join(JOURNAL))?;
        let mut problems = vec![problem];
        problems.extend(salvaged.problems.iter().cloned());

        let temporary = if recovery.dry_run { Some(temporary()?) } else { None };
        let place =
            temporary.as_ref().map_or_else(|| dir.join(RECOVERING), |place| place.path().join(RECOVERING));
        let rebuild = Rebuild {
            with,
            layout: with.layout_of(&marker)?,
            store: with.store_of(&marker)?,
            dir,
            marker: &marker,
            salvaged: &salvaged,
            dump: recovery.dump,
            place: &place,
        };
        let built = rebuild.best(&mut problems).inspect_err(|_| {
            // Nothing of it is of use, and it may be as large as the database.
            let _ = fs::remove_dir_all(&place);
        })?;
        let aside = match recovery.dry_run {
            true => Vec::new(),
            false => built.take_place(dir, &place)?,
        };
        drop(lock);
        let lost = rebuild.lost(built.block);
        let Built { source, block, report, .. } = built;
        Ok(Recovery { problems, source, block, lost, report, aside })
    }
}

fn temporary() -> Result<tempfile::TempDir, Error> {
    let place = std::env::temp_dir();
    tempfile::Builder::new()
        .prefix("flagstone-recover-")
        .tempdir_in(&place)
        .map_err(|error| io_error("cannot make a directory in", &place, &error))
}

/// Why a database needs recovery.
fn what_is_wrong(with: &With<'_>, dir: &Path) -> Result<String, Error> {
    let report = match with.check_locked(dir, &|_| ()) {
        Ok(report) => report,
        Err(error) => return Ok(error.to_string()),
    };
    match report.findings.first() {
        Some(finding) => Ok(format!("{finding} (and {} more findings)", report.findings_total - 1)),
        None => Err(Error::Refused(format!(
            "the database in {} is sound, so nothing is to be recovered: open it",
            dir.display()
        ))),
    }
}

/// A database to be built anew.
struct Rebuild<'a> {
    with: &'a With<'a>,
    layout: &'a LayoutEntry,
    store: &'a StoreEntry,
    dir: &'a Path,
    marker: &'a Marker,
    salvaged: &'a Salvaged,
    dump: Option<&'a Path>,
    /// Where it is built.
    place: &'a Path,
}

/// A database that was built and is sound.
struct Built {
    source: Source,
    at: PathBuf,
    block: Option<BlockNumber>,
    report: CheckReport,
}

impl Rebuild<'_> {
    /// The way that keeps the most blocks; the first of them that keeps all there are.
    fn best(&self, problems: &mut Vec<String>) -> Result<Built, Error> {
        let last = self.salvaged.blocks.keys().next_back().copied();
        let mut best: Option<Built> = None;
        let sources = [Source::Store, Source::Journal, Source::Dump, Source::Tries];
        for (number, source) in sources.into_iter().enumerate() {
            if source == Source::Dump && self.dump.is_none() {
                continue;
            }
            let at = self.place.join(number.to_string());
            match self.build(source, &at) {
                Ok(built) if best.as_ref().is_none_or(|best| best.block < built.block) => best = Some(built),
                Ok(_) => {}
                Err(error) => problems.push(format!("not from {}: {error}", source.about())),
            }
            if best.as_ref().is_some_and(|best| best.block >= last) {
                break;
            }
        }
        best.ok_or_else(|| {
            let problem = format!("nothing sound can be built from it: {}", problems.join("; "));
            Error::damaged(format!("the database in {}", self.dir.display()), problem)
        })
    }

    fn build(&self, source: Source, at: &Path) -> Result<Built, Error> {
        if at.exists() {
            fs::remove_dir_all(at).map_err(|error| io_error("cannot remove", at, &error))?;
        }
        let store_dir = at.join(STORE);
        fs::create_dir_all(&store_dir).map_err(|error| io_error("cannot create", at, &error))?;
        match source {
            Source::Store => {
                let copied = copy_tree(&self.dir.join(STORE), &store_dir, &copy_file);
                copied.map_err(|error| io_error("cannot copy the store to", &store_dir, &error))?;
            }
            Source::Journal if !self.salvaged.is_from_beginning => {
                return Err(Error::Refused("it does not reach back to the first block".into()));
            }
            Source::Journal => {}
            Source::Dump => self.import_dump(&store_dir)?,
            Source::Tries => self.import_tries(&store_dir)?,
        }
        let layout = self.layout.make();
        let filled = self.with.open_store(self.store, &store_dir)?;
        let database = self.database();
        let next = self.fit_head(source, &filled, database)?;
        self.put_journal(&at.join(JOURNAL), database, next)?;
        let opening = Opening::new(filled, layout, self.with.options.engine, Box::new(Bulk))?;
        let engine = opening.start_with_journal(Arc::new(OsFiles), &at.join(JOURNAL))?;
        engine.commit()?;
        let report = engine.check(&|_| ())?;
        if let Some(finding) = report.findings.first() {
            return Err(Error::damaged("what was built", finding));
        }
        let block = engine.head().closed;
        if block.is_none() && !self.salvaged.blocks.is_empty() {
            return Err(Error::Refused("no block follows from it".into()));
        }
        drop(engine);
        sync_tree(at).map_err(|error| io_error("cannot sync", at, &error))?;
        Ok(Built { source, at: at.to_owned(), block, report })
    }

    fn database(&self) -> DatabaseId {
        self.marker.database.or(self.salvaged.database).unwrap_or_else(DatabaseId::fresh)
    }

    /// Says in a store whose it is, and that it takes account of no refusal, as its journal will have none. Returns its last
    /// block and the id of the state after it.
    fn fit_head(
        &self,
        source: Source,
        store: &dyn Store,
        database: DatabaseId,
    ) -> Result<(Option<BlockNumber>, StateId), Error> {
        let Some(identity) = identity::read_identity(store)? else {
            return match source {
                Source::Journal => Ok((None, StateId::default())),
                _ => Err(Error::damaged("the store", "it is empty")),
            };
        };
        self.marker.identity.check(&identity)?;
        let stored = meta::read_database(store)?;
        if source == Source::Store && stored != database {
            let problem = format!("the store is of database {stored}, and the marker of database {database}");
            return Err(Error::mixed(problem));
        }
        let head = meta::read_head(store)?;
        let state = match source {
            Source::Store => head.state,
            _ => self.state_after(head.block).unwrap_or(head.state),
        };
        let mut batch = WriteBatch::default();
        meta::put_database(&mut batch, database);
        meta::put_head(&mut batch, &StoredHead { state, refusal: Position::default(), ..head });
        if let Some(block) = head.block.filter(|_| source != Source::Store) {
            let hash = self.salvaged.blocks.get(&block).and_then(decode).and_then(|block| block.hash);
            meta::put_block(&mut batch, block, &BlockFacts { root: head.root, state, first: block, hash });
        }
        store.write(&batch)?;
        store.sync()?;
        Ok((head.block, state))
    }

    /// The id of the state after a block, as the journal knows it from that block's frame or from the next one's.
    fn state_after(&self, block: Option<BlockNumber>) -> Option<StateId> {
        let block = block?;
        let decoded = |number: &BlockNumber| decode(self.salvaged.blocks.get(number)?);
        let own = decoded(&block).map(|block| block.lineage.state);
        own.or_else(|| decoded(&block.next()?).map(|next| next.lineage.parent))
    }

    /// Writes a journal of the frames that follow a state without a gap.
    fn put_journal(
        &self,
        dir: &Path,
        database: DatabaseId,
        (block, state): (Option<BlockNumber>, StateId),
    ) -> Result<(), Error> {
        let next = block.map(|block| block.next().unwrap_or(block));
        let mut journal = Journal::begin_at(Arc::new(OsFiles), dir, database, next)?;
        let mut before = (block, state);
        let behind = self.salvaged.blocks.range(next.unwrap_or_default()..);
        for (number, frame) in behind {
            let Some(decoded) = decode(frame) else { break };
            let follows = before.0.is_none_or(|before| before.next() == Some(*number));
            if !follows || decoded.lineage.parent != before.1 {
                break;
            }
            journal.append_with_roots(*number, &frame.payload, frame.roots.as_deref())?;
            before = (Some(*number), decoded.lineage.state);
        }
        journal.sync()?;
        Ok(())
    }

    fn import_dump(&self, to: &Path) -> Result<(), Error> {
        let path = self.dump.unwrap_or(Path::new(""));
        let file = File::open(path).map_err(|error| io_error("cannot read", path, &error))?;
        self.import(to, BufReader::new(file))
    }

    /// Fills a store from the tries of the damaged one: every value from its leaf, every hash computed again.
    fn import_tries(&self, to: &Path) -> Result<(), Error> {
        let copy = temporary()?;
        let from = self.dir.join(STORE);
        let copied = self.store.shadow(&from, copy.path());
        copied.map_err(|error| io_error("cannot copy the store from", &from, &error))?;
        let damaged = self.store.open_damaged(copy.path(), &self.with.options.store_settings)?;
        let damaged = Sealed::from_box(damaged);
        let layout = self.layout.make();
        let opening = Opening::new(damaged, layout, self.with.options.engine, Box::new(Bulk))?;
        let engine =
            opening.in_house(House { copy: Some(copy), ..House::default() }).start_to_look_alone()?;
        let (reader, writer) = io::pipe().map_err(|error| io_error("cannot make a pipe for", to, &error))?;
        let (exported, imported) = thread::scope(|scope| {
            let export = || snapshot::export(&engine, None, BufWriter::new(writer), &mut |_| {});
            let exporting = scope.spawn(export);
            let imported = self.import(to, BufReader::new(reader));
            (exporting.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), imported)
        });
        exported.map(drop).and(imported)
    }

    fn import(&self, to: &Path, dump: impl io::Read + Send) -> Result<(), Error> {
        let layout = self.layout.make();
        let filling = self.with.open_store(self.store, to)?;
        let mut progress = |_: ImportProgress| ();
        import::import(&filling, layout.as_ref(), &self.with.options.engine, dump, &mut progress).map(drop)
    }

    /// Blocks that are known of and are not there any more.
    fn lost(&self, block: Option<BlockNumber>) -> Option<BlockRange> {
        let last = self.salvaged.blocks.keys().next_back().copied();
        let first = block.map_or(Some(BlockNumber(0)), BlockNumber::next)?;
        last.filter(|last| *last >= first).map(|last| BlockRange { first, last })
    }
}

impl Built {
    /// Steps 2 and 3.
    fn take_place(&self, dir: &Path, place: &Path) -> Result<Vec<PathBuf>, Error> {
        let decided = fs::rename(&self.at, dir.join(RECOVERED)).and_then(|()| sync_dir(dir));
        decided.map_err(|error| io_error("cannot rename", &self.at, &error))?;
        let aside = finish(dir, true)?;
        // Other ways that were tried.
        fs::remove_dir_all(place).map_err(|error| io_error("cannot remove", place, &error))?;
        Ok(aside)
    }
}

fn decode(frame: &Recovered) -> Option<PendingBlock> {
    PendingBlock::decode(frame.block, &frame.payload).ok()
}

/// The rest of step 3, if a recovery was decided; with `write` unset it is only looked whether there is something to do.
/// Returns what was put aside.
pub(super) fn finish(dir: &Path, write: bool) -> Result<Vec<PathBuf>, Error> {
    let recovered = dir.join(RECOVERED);
    let mut aside = Vec::new();
    if !recovered.is_dir() {
        return Ok(aside);
    }
    if !write {
        return Err(Error::Refused(format!(
            "a recovery in {} was interrupted just before its end; `flagstone recover` without --dry-run, or any command that \
             opens the database to write, ends it",
            dir.display()
        )));
    }
    for part in [STORE, JOURNAL] {
        let (new, old) = (recovered.join(part), dir.join(part));
        if new.is_dir() {
            aside.extend(put_aside(dir, &old)?);
            let moved = fs::rename(&new, &old).and_then(|()| sync_dir(dir));
            moved.map_err(|error| io_error("cannot rename", &new, &error))?;
        }
    }
    let removed = fs::remove_dir_all(&recovered).and_then(|()| sync_dir(dir));
    removed.map_err(|error| io_error("cannot remove", &recovered, &error))?;
    Ok(aside)
}
