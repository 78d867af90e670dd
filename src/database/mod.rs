//! Databases in directories.
//!
//! ```text
//! DIR/LOCK        who has it open (`lock.rs`); taken before anything else is looked at
//! DIR/FLAGSTONE   what the database is: layout, formats, scheme, store, and its id
//! DIR/store/      the store's own files
//! DIR/journal/    blocks that the store may not have yet; journal.aside-N and store.aside-N if they were damaged and put aside
//! DIR/recovering/ what a recovery is building; DIR/recovered/ what it has built, until it has its place (`recover.rs`)
//! DIR/import-S/   instead of all these: files of the store S while an import into it is not finished
//! ```
//!
//! `FLAGSTONE` says what must be found in the store, the journal how far it must have come. A store that turns up empty,
//! different, or further behind than the journal reaches is damage, not a new database: nothing is created over what was
//! there. Creation makes `DIR/store.new`, then writes `FLAGSTONE`, then renames the store; a creation that was
//! interrupted before `FLAGSTONE` is begun again, one after it is finished. An import does the same with `DIR/import-S`,
//! but is never begun again by anything but an import.
//!
//! Who only looks ([`open_read_only`]) changes no byte: the store is opened as a private copy in a temporary place, and blocks
//! that only the journal has are replayed there.

mod catalogue;
mod recover;
mod stores;
mod with;

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use flagstone_core::error::StateError;
use tempfile::TempDir;

use crate::disk::sync_dir;
use crate::engine::import::{ImportProgress, Imported};
use crate::engine::{CheckReport, Engine, EngineConfig, Identity, identity, meta};
use crate::error::Error;
use crate::journal::DatabaseId;
use crate::lock::{LOCK, io_error};
use crate::registry::LayoutEntry;
use crate::store::{Sealed, Store, StoreErrorKind};

pub use catalogue::{Catalogue, Options};
pub use recover::{RecoverOptions, Recovery, Source, recover};
pub use stores::{STORES, StoreEntry, StoreSetting, StoreSettings, store};

/// Most bytes of trie records that a database in a directory keeps decoded, unless
/// [`EngineConfig::record_cache_bytes`] says otherwise. A record that its store has to look up costs more than its hashes.
pub const RECORD_CACHE_BYTES: usize = 256 << 20;

const MARKER: &str = "FLAGSTONE";
const JOURNAL: &str = "journal";
const STORE: &str = "store";
const MARKER_NEW: &str = "FLAGSTONE.new";
const STORE_NEW: &str = "store.new";
const IMPORT: &str = "import-";
const RECOVERING: &str = "recovering";
const RECOVERED: &str = "recovered";

/// What a directory says its database is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Marker {
    /// What the store must say, too.
    pub identity: Identity,
    /// Name of the store.
    pub store: String,
    /// The database's id, as store and journal must have it, too. `None` only in a marker of an earlier format.
    pub database: Option<DatabaseId>,
}

impl Marker {
    fn text(&self) -> String {
        let database = self.database.map_or_else(String::new, |id| format!("id: {id}\n"));
        format!("{}store: {}\n{database}", self.identity, self.store)
    }

    /// Reads what a directory says; `None` if it says nothing.
    ///
    /// # Errors
    /// [`Error::State`] if the file is there and cannot be read or understood.
    pub fn read(dir: &Path) -> Result<Option<Self>, Error> {
        let path = dir.join(MARKER);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error("cannot read", &path, &error)),
        };
        let fact = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
        let (store, id) = (fact("store: ").map(str::to_owned), fact("id: "));
        let database = id.and_then(DatabaseId::parse);
        if id.is_some() && database.is_none() {
            return Err(Error::damaged(path.display(), "its id is not 32 hex digits"));
        }
        match (Identity::parse(&text), store) {
            (Some(identity), Some(store)) => Ok(Some(Self { identity, store, database })),
            _ => Err(Error::damaged(path.display(), "it does not say layout, formats, scheme and store")),
        }
    }

    fn write(&self, dir: &Path) -> Result<(), Error> {
        let (path, temporary) = (dir.join(MARKER), dir.join(MARKER_NEW));
        let write = || -> io::Result<()> {
            let mut file = File::create(&temporary)?;
            file.write_all(self.text().as_bytes())?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            sync_dir(dir)
        };
        write().map_err(|error| io_error("cannot write", &path, &error))
    }
}

/// Whether a directory has a database in it, or the beginning of an import.
pub fn is_in(dir: &Path) -> bool {
    let is_marked = || match Marker::read(dir) {
        Ok(marker) => marker.is_some(),
        Err(_) => dir.join(STORE).is_dir(),
    };
    unfinished_import(dir).is_some() || is_marked()
}

/// Opens the database in a directory, which is in a layout and a store of the built-in [`Catalogue`], or in the layout given.
///
/// # Errors
/// As [`Catalogue::open`].
pub fn open(dir: &Path, layout: Option<&LayoutEntry>, config: EngineConfig) -> Result<Engine, Error> {
    Catalogue::having(layout, None).open(dir, &Options::of(layout, None, config))
}

/// Opens the database in a directory for looking, likewise.
///
/// # Errors
/// As [`Catalogue::open_read_only`].
pub fn open_read_only(
    dir: &Path,
    layout: Option<&LayoutEntry>,
    config: EngineConfig,
) -> Result<Engine, Error> {
    Catalogue::having(layout, None).open_read_only(dir, &Options::of(layout, None, config))
}

/// Checks the database in a directory, which is in a layout and a store of the built-in [`Catalogue`].
///
/// # Errors
/// As [`Catalogue::check`].
pub fn check(
    dir: &Path,
    config: EngineConfig,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<CheckReport, Error> {
    Catalogue::default().check(dir, &Options::of(None, None, config), progress)
}

/// Opens the database in a directory, or creates one if the directory is missing or empty, in a layout and a store of the
/// built-in [`Catalogue`], or in those given.
///
/// # Errors
/// As [`Catalogue::open_or_create`].
pub fn open_or_create(
    dir: &Path,
    layout: Option<&LayoutEntry>,
    store: Option<&StoreEntry>,
    config: EngineConfig,
) -> Result<Engine, Error> {
    Catalogue::having(layout, store).open_or_create(dir, &Options::of(layout, store, config))
}

/// Makes a database in a directory from a dump of a state, or goes on with an import of it that was interrupted, in a layout and
/// a store of the built-in [`Catalogue`], or in those given.
///
/// # Errors
/// As [`Catalogue::import`].
pub fn import(
    dir: &Path,
    layout: Option<&LayoutEntry>,
    store: Option<&StoreEntry>,
    dump: impl Read + Send,
    config: &EngineConfig,
    progress: &mut dyn FnMut(ImportProgress),
) -> Result<Imported, Error> {
    Catalogue::having(layout, store).import(dir, &Options::of(layout, store, *config), dump, progress)
}

/// Copies a store's files to a place of their own; says how many bytes they are.
fn copy_store(store: &StoreEntry, from: &Path) -> Result<(TempDir, u64), Error> {
    let places = [std::env::temp_dir(), PathBuf::from("/dev/shm")];
    let mut refused = None;
    for place in places.iter().filter(|place| place.is_dir()) {
        let copied = tempfile::Builder::new().prefix("flagstone-look-").tempdir_in(place).and_then(|copy| {
            let bytes = store.shadow(from, copy.path())?;
            Ok((copy, bytes))
        });
        match copied {
            Ok(copied) => return Ok(copied),
            Err(error) => refused = Some(error),
        }
    }
    let error = refused.unwrap_or_else(|| ErrorKind::NotFound.into());
    let what = "no place for a copy to look at (TMPDIR names one) of the store in";
    Err(io_error(what, from, &error))
}

/// What a directory with a database says.
fn marker_of(dir: &Path) -> Result<Marker, Error> {
    if let Some(marker) = Marker::read(dir)? {
        return Ok(marker);
    }
    refuse_unfinished(dir)?;
    Err(Error::NoDatabase(format!(
        "no flagstone database in {}; `flagstone replay --data` or `flagstone import --data` makes one",
        dir.display()
    )))
}

/// Whether an error is that something in a database is not what it must be.
fn is_damage(error: &Error) -> bool {
    match error {
        Error::State(StateError::Store(error)) => error.kind() == StoreErrorKind::Corrupt,
        Error::State(_) | Error::Mixed { .. } | Error::RootMismatch { .. } | Error::WrongParent { .. } => {
            true
        }
        _ => false,
    }
}

/// Gives a directory, if it is there, a name that nothing has yet.
fn put_aside(dir: &Path, from: &Path) -> Result<Option<PathBuf>, Error> {
    if !from.is_dir() {
        return Ok(None);
    }
    let names = (1u32..).map(|number| from.with_added_extension(format!("aside-{number}")));
    let free = names.into_iter().find(|name| !name.exists()).unwrap_or_default();
    let renamed = fs::rename(from, &free).and_then(|()| sync_dir(dir));
    renamed.map_err(|error| io_error("cannot rename", from, &error))?;
    Ok(Some(free))
}

fn refuse_database(dir: &Path) -> Result<(), Error> {
    match Marker::read(dir)? {
        None => Ok(()),
        Some(_) => Err(Error::Refused(format!(
            "{} holds a database already, and an import makes a new one; name an empty or a new directory",
            dir.display()
        ))),
    }
}

/// What an import that was interrupted may have left.
fn begun_import(dir: &Path) -> Vec<PathBuf> {
    let filled = unfinished_import(dir).map(|store| import_dir(dir, &store));
    filled.into_iter().chain([dir.join(JOURNAL), dir.join(MARKER_NEW)]).collect()
}

/// What a creation that was interrupted may have left.
fn begun_creation(dir: &Path) -> Vec<PathBuf> {
    vec![dir.join(STORE_NEW), dir.join(MARKER_NEW)]
}

/// Where an import keeps the files of the store that it fills.
fn import_dir(dir: &Path, store: &str) -> PathBuf {
    dir.join(format!("{IMPORT}{store}"))
}

/// The store that an unfinished import in a directory fills, if there is one: whoever began it took the lock there.
fn unfinished_import(dir: &Path) -> Option<String> {
    if !dir.join(LOCK).is_file() {
        return None;
    }
    let names = fs::read_dir(dir).ok()?.flatten().map(|entry| entry.file_name());
    let stores = names.filter_map(|name| name.to_str()?.strip_prefix(IMPORT).map(str::to_owned));
    stores.filter(|store| import_dir(dir, store).is_dir()).min()
}

fn refuse_unfinished(dir: &Path) -> Result<(), Error> {
    match unfinished_import(dir) {
        None => Ok(()),
        Some(store) => Err(Error::NoDatabase(format!(
            "an import into store `{store}` has begun in {} and is not finished; run the same `flagstone import` again to \
             finish it, or remove the directory",
            dir.display()
        ))),
    }
}

/// Where a database's journal is, which must be there if its store is.
fn journal_of(dir: &Path) -> Result<PathBuf, Error> {
    let journal_dir = dir.join(JOURNAL);
    if dir.join(STORE).is_dir() && !journal_dir.is_dir() {
        let problem = "it is missing, and with it blocks that the store may not have; `flagstone recover` goes on from the last \
                       block that the store has";
        return Err(Error::damaged(format!("the journal in {}", journal_dir.display()), problem));
    }
    Ok(journal_dir)
}

fn with_cache(config: EngineConfig) -> EngineConfig {
    let record_cache_bytes = Some(config.record_cache_bytes.unwrap_or(RECORD_CACHE_BYTES));
    EngineConfig { record_cache_bytes, ..config }
}

/// Ends a creation or an import that was interrupted when all but a name was there.
fn finish_begun(dir: &Path, marker: &Marker) -> Result<(), Error> {
    let found = store_dir_of(dir, marker);
    if found.is_dir() && found != dir.join(STORE) { finish_creation(dir, &found) } else { Ok(()) }
}

/// Where a database's store is: it may not have its name yet.
fn store_dir_of(dir: &Path, marker: &Marker) -> PathBuf {
    let store_dir = dir.join(STORE);
    let made = [dir.join(STORE_NEW), import_dir(dir, &marker.store)];
    made.into_iter().find(|made| !store_dir.is_dir() && made.is_dir()).unwrap_or(store_dir)
}

/// Refuses a store that is not what the marker says.
fn check_store(dir: &Path, marker: &Marker, store: &Sealed<dyn Store>) -> Result<(), Error> {
    match identity::read_identity(store)? {
        Some(stored) => marker.identity.check(&stored)?,
        None => return Err(lost_store(dir, "it is empty")),
    }
    let stored = meta::read_database(store)?;
    if marker.database == Some(stored) {
        return Ok(());
    }
    let marked = marker.database.map_or_else(|| "no database".to_owned(), |id| format!("database {id}"));
    Err(Error::mixed(format!(
        "{} is of {marked}, and the store beside it is of database {stored}",
        dir.join(MARKER).display()
    )))
}

fn lost_store(dir: &Path, problem: &str) -> Error {
    let what = format!("the store in {}", dir.join(STORE).display());
    let problem = format!(
        "{problem}, but {} says there is a database; restore it from a copy, or rebuild it with `flagstone recover`",
        dir.join(MARKER).display()
    );
    Error::damaged(what, problem)
}

/// Refuses a directory that holds anything but these.
fn check_empty(dir: &Path, begun: &[PathBuf]) -> Result<(), Error> {
    for entry in fs::read_dir(dir).map_err(|error| io_error("cannot read", dir, &error))? {
        let path = entry.map_err(|error| io_error("cannot read", dir, &error))?.path();
        if !begun.contains(&path) && path.file_name() != Some(LOCK.as_ref()) {
            return Err(Error::NoDatabase(format!(
                "{} holds {} and no flagstone database; name an empty or a new directory",
                dir.display(),
                path.file_name().unwrap_or_default().display()
            )));
        }
    }
    Ok(())
}

/// Gives the files of a store that is whole their name.
fn finish_creation(dir: &Path, made: &Path) -> Result<(), Error> {
    let store_dir = dir.join(STORE);
    let renamed = fs::create_dir_all(dir.join(JOURNAL))
        .and_then(|()| fs::rename(made, &store_dir))
        .and_then(|()| sync_dir(dir));
    renamed.map_err(|error| io_error("cannot create", &store_dir, &error))
}

/// Bytes of all files below a directory.
///
/// # Errors
/// [`Error::State`] if a directory cannot be read.
pub fn bytes_on_disk(dir: &Path) -> Result<u64, Error> {
    let mut total = 0;
    let mut open: Vec<PathBuf> = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        let failed = |error: io::Error| io_error("cannot read", &dir, &error);
        for entry in fs::read_dir(&dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let meta = entry.metadata().map_err(failed)?;
            if meta.is_dir() {
                open.push(entry.path());
            } else {
                total += meta.len();
            }
        }
    }
    Ok(total)
}
