//! Databases in directories.
//!
//! ```text
//! DIR/FLAGSTONE   what the database is: layout, formats, scheme, store
//! DIR/store/      the store's own files
//! DIR/journal/    blocks that the store may not have yet; journal.aside-N if it was damaged and put aside
//! DIR/import-S/   instead of all these: files of the store S while an import into it is not finished
//! ```
//!
//! `FLAGSTONE` says what must be found in the store, the journal how far it must have come. A store that turns up empty,
//! different, or further behind than the journal reaches is damage, not a new database: nothing is created over what was
//! there. Creation makes `DIR/store.new`, then writes `FLAGSTONE`, then renames the store; a creation that was
//! interrupted before `FLAGSTONE` is begun again, one after it is finished. An import does the same with `DIR/import-S`,
//! but is never begun again by anything but an import.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flagstone_core::types::BlockNumber;

use crate::engine::import::{self, ImportProgress, Imported};
use crate::engine::{self, Engine, EngineConfig, Identity, meta};
use crate::error::Error;
use crate::journal::{Journal, JournalConfig, OsFiles, Position};
use crate::registry::{self, LayoutEntry};
use crate::store::{Sealed, SledConfig, SledStore, Store, StoreError, StoreErrorKind, WriteBatch};

/// Most bytes of trie records that a database in a directory keeps decoded, unless
/// [`EngineConfig::record_cache_bytes`] says otherwise. A record that its store has to look up costs more than its hashes.
pub const RECORD_CACHE_BYTES: usize = 256 << 20;

const MARKER: &str = "FLAGSTONE";
const JOURNAL: &str = "journal";
const STORE: &str = "store";
const MARKER_NEW: &str = "FLAGSTONE.new";
const STORE_NEW: &str = "store.new";
const IMPORT: &str = "import-";

/// A store that can live in a directory.
#[derive(Clone, Copy)]
pub struct StoreEntry {
    /// Its name.
    pub name: &'static str,
    /// One line for people.
    pub about: &'static str,
    open: fn(&Path) -> Result<Box<dyn Store>, StoreError>,
}

/// All stores that live in a directory; the first one is the default.
pub const STORES: &[StoreEntry] = &[StoreEntry {
    name: "sled",
    about: "embedded ordered tree in one directory, for one process",
    open: |dir| Ok(Box::new(SledStore::open(dir, SledConfig::default())?)),
}];

/// What a directory says its database is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marker {
    /// What the store must say, too.
    pub identity: Identity,
    /// Name of the store.
    pub store: String,
}

impl Marker {
    fn text(&self) -> String {
        format!("{}store: {}\n", self.identity, self.store)
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
        let store = text.lines().find_map(|line| line.strip_prefix("store: ")).map(str::to_owned);
        match (Identity::parse(&text), store) {
            (Some(identity), Some(store)) => Ok(Some(Self { identity, store })),
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
            File::open(dir)?.sync_all()
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

/// Opens the database in a directory.
///
/// # Errors
/// [`Error::NoDatabase`] if there is none, else as [`Engine::open`].
pub fn open(dir: &Path, layout: Option<&LayoutEntry>, config: EngineConfig) -> Result<Engine, Error> {
    open_marked(dir, &marker_of(dir)?, layout, config)
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

/// What [`set_journal_aside`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalAside {
    /// Where the journal is now, if there was one.
    pub journal: Option<PathBuf>,
    /// The last block that the store has: what the database goes on from.
    pub block: Option<BlockNumber>,
}

/// Goes on from the last block that the store has, without the journal, which is put aside: for one that is damaged or
/// lost. Blocks that it alone had are lost with it, and must be fed again.
///
/// # Errors
/// [`Error::Config`] if the journal is whole, so that nothing need be lost; else as [`open`].
pub fn set_journal_aside(dir: &Path) -> Result<JournalAside, Error> {
    let marker = marker_of(dir)?;
    Identity::of(registry::layout(&marker.identity.layout)?.make().as_ref()).check(&marker.identity)?;
    finish_begun(dir, &marker)?;
    let store = open_store(dir, &marker)?;
    let mut head = meta::read_head(&store)?;
    let journal_dir = dir.join(JOURNAL);
    if journal_dir.is_dir() && engine::journal_serves(&journal_dir, &head)? {
        return Err(Error::Config(format!(
            "the journal in {} is whole, so nothing is to be recovered: open the database",
            journal_dir.display()
        )));
    }
    let journal = put_aside(dir, &journal_dir)?;
    // The head must take account of no refusal of the old journal, or it would of the new one's first. Not before the old
    // one is gone: its refusals would take back blocks that came after them.
    head.refusal = Position::default();
    let mut batch = WriteBatch::default();
    meta::put_head(&mut batch, &head);
    store.write(&batch)?;
    store.sync()?;
    match head.block {
        Some(block) => {
            Journal::begin_after(Arc::new(OsFiles), &journal_dir, JournalConfig::default(), block)?;
        }
        None => {
            let made = fs::create_dir_all(&journal_dir).and_then(|()| File::open(dir)?.sync_all());
            made.map_err(|error| io_error("cannot create", &journal_dir, &error))?;
        }
    }
    Ok(JournalAside { journal, block: head.block })
}

/// Gives a directory, if it is there, a name that nothing has yet.
fn put_aside(dir: &Path, from: &Path) -> Result<Option<PathBuf>, Error> {
    if !from.is_dir() {
        return Ok(None);
    }
    let names = (1u32..).map(|number| from.with_added_extension(format!("aside-{number}")));
    let free = names.into_iter().find(|name| !name.exists()).unwrap_or_default();
    let renamed = fs::rename(from, &free).and_then(|()| File::open(dir)?.sync_all());
    renamed.map_err(|error| io_error("cannot rename", from, &error))?;
    Ok(Some(free))
}

/// Opens the database in a directory, or creates one if the directory is missing or empty.
///
/// # Errors
/// [`Error::NoDatabase`] if the directory holds something else, otherwise as [`Engine::open`].
pub fn open_or_create(
    dir: &Path,
    layout: Option<&LayoutEntry>,
    store: Option<&StoreEntry>,
    config: EngineConfig,
) -> Result<Engine, Error> {
    config.check()?;
    if let Some(marker) = Marker::read(dir)? {
        if let Some(store) = store.filter(|store| store.name != marker.store) {
            let (stored, opened) = (format!("`{}`", marker.store), format!("`{}`", store.name));
            return Err(Error::IdentityMismatch { what: "store", stored, opened });
        }
        return open_marked(dir, &marker, layout, config);
    }
    refuse_unfinished(dir)?;
    create(dir, layout.unwrap_or(&registry::LAYOUTS[0]), store.unwrap_or(&STORES[0]), config)
}

/// Makes a database in a directory from a dump of a state, or goes on with an import of it that was interrupted. The
/// directory must be missing or empty, or hold nothing but such an import.
///
/// # Errors
/// As [`Engine::import`]; [`Error::NoDatabase`] if the directory holds something else.
pub fn import(
    dir: &Path,
    layout: Option<&LayoutEntry>,
    store: Option<&StoreEntry>,
    dump: impl Read + Send,
    config: &EngineConfig,
    progress: &mut dyn FnMut(ImportProgress),
) -> Result<Imported, Error> {
    config.check()?;
    if Marker::read(dir)?.is_some() {
        return Err(Error::Config(format!(
            "{} holds a database already, and an import makes a new one; name an empty or a new directory",
            dir.display()
        )));
    }
    let begun = unfinished_import(dir);
    let store = store.or(begun).unwrap_or(&STORES[0]);
    let layout = match layout {
        Some(layout) => layout,
        None => begun_layout(dir, begun)?.unwrap_or(&registry::LAYOUTS[0]),
    };
    let filled = import_dir(dir, store.name);
    fs::create_dir_all(dir).map_err(|error| io_error("cannot create", dir, &error))?;
    check_empty(dir, &[&filled, &dir.join(JOURNAL), &dir.join(MARKER_NEW)])?;

    let made = layout.make();
    let filling = Sealed::from_box((store.open)(&filled)?);
    let imported = import::import(&filling, made.as_ref(), config, dump, progress)?;
    drop(filling);
    let block = imported.header.block;
    Journal::begin_after(Arc::new(OsFiles), &dir.join(JOURNAL), JournalConfig::default(), block)?;
    Marker { identity: Identity::of(made.as_ref()), store: store.name.to_owned() }.write(dir)?;
    finish_creation(dir, &filled)?;
    Ok(imported)
}

/// Where an import keeps the files of the store that it fills.
fn import_dir(dir: &Path, store: &str) -> PathBuf {
    dir.join(format!("{IMPORT}{store}"))
}

/// The store that an unfinished import in a directory fills, if there is one.
fn unfinished_import(dir: &Path) -> Option<&'static StoreEntry> {
    STORES.iter().find(|store| import_dir(dir, store.name).is_dir())
}

fn refuse_unfinished(dir: &Path) -> Result<(), Error> {
    match unfinished_import(dir) {
        None => Ok(()),
        Some(store) => Err(Error::NoDatabase(format!(
            "an import into store `{}` has begun in {} and is not finished; run the same `flagstone import` again to \
             finish it, or remove the directory",
            store.name,
            dir.display()
        ))),
    }
}

/// The layout that an unfinished import fills.
fn begun_layout(
    dir: &Path,
    begun: Option<&'static StoreEntry>,
) -> Result<Option<&'static LayoutEntry>, Error> {
    let Some(store) = begun else { return Ok(None) };
    let store = Sealed::from_box((store.open)(&import_dir(dir, store.name))?);
    match import::read_unfinished(&store)? {
        Some(unfinished) => registry::layout(&unfinished.identity.layout).map(Some),
        None => Ok(None),
    }
}

/// The store with a name.
///
/// # Errors
/// [`Error::UnknownName`] with the names there are.
pub fn store(name: &str) -> Result<&'static StoreEntry, Error> {
    STORES
        .iter()
        .find(|entry| entry.name == name)
        .ok_or_else(|| Error::unknown_name("store", name, STORES.iter().map(|entry| entry.name)))
}

fn open_marked(
    dir: &Path,
    marker: &Marker,
    layout: Option<&LayoutEntry>,
    config: EngineConfig,
) -> Result<Engine, Error> {
    let written_by = registry::layout(&marker.identity.layout)?;
    let layout = layout.unwrap_or(written_by).make();
    Identity::of(layout.as_ref()).check(&marker.identity)?;
    finish_begun(dir, marker)?;
    let journal_dir = dir.join(JOURNAL);
    if dir.join(STORE).is_dir() && !journal_dir.is_dir() {
        let problem = "it is missing, and with it blocks that the store may not have; `flagstone recover` goes on from the last \
                       block that the store has";
        return Err(Error::damaged(format!("the journal in {}", journal_dir.display()), problem));
    }
    let store = open_store(dir, marker)?;
    let record_cache_bytes = Some(config.record_cache_bytes.unwrap_or(RECORD_CACHE_BYTES));
    let config = EngineConfig { record_cache_bytes, ..config };
    Engine::open_sealed(store, layout, config, Arc::new(OsFiles), &journal_dir)
}

/// Ends a creation or an import that was interrupted when all but a name was there.
fn finish_begun(dir: &Path, marker: &Marker) -> Result<(), Error> {
    let store_dir = dir.join(STORE);
    let made = [dir.join(STORE_NEW), import_dir(dir, &marker.store)];
    match made.iter().find(|made| !store_dir.is_dir() && made.is_dir()) {
        Some(made) => finish_creation(dir, made),
        None => Ok(()),
    }
}

/// Opens the store of a database, which must be one.
fn open_store(dir: &Path, marker: &Marker) -> Result<Sealed<dyn Store>, Error> {
    let store_dir = dir.join(STORE);
    let lost = |problem: &str| {
        let what = format!("the store in {}", store_dir.display());
        Error::damaged(
            what,
            format!("{problem}, but {} says there is a database", dir.join(MARKER).display()),
        )
    };
    if !store_dir.is_dir() {
        return Err(lost("it is missing"));
    }
    let store = Sealed::from_box((self::store(&marker.store)?.open)(&store_dir)?);
    match meta::read_identity(&store)? {
        Some(stored) => marker.identity.check(&stored).map(|()| store),
        None => Err(lost("it is empty")),
    }
}

fn create(
    dir: &Path,
    layout: &LayoutEntry,
    store: &StoreEntry,
    config: EngineConfig,
) -> Result<Engine, Error> {
    fs::create_dir_all(dir).map_err(|error| io_error("cannot create", dir, &error))?;
    let leftover = dir.join(STORE_NEW);
    check_empty(dir, &[&leftover, &dir.join(MARKER_NEW)])?;
    // A creation that was interrupted: nothing in it was ever acknowledged.
    match fs::remove_dir_all(&leftover) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(io_error("cannot remove", &leftover, &error));
        }
        _ => {}
    }
    let layout = layout.make();
    let marker = Marker { identity: Identity::of(layout.as_ref()), store: store.name.to_owned() };
    drop(Engine::open((store.open)(&leftover)?, layout, config)?);
    marker.write(dir)?;
    finish_creation(dir, &leftover)?;
    open_marked(dir, &marker, None, config)
}

/// Refuses a directory that holds anything but these.
fn check_empty(dir: &Path, begun: &[&Path]) -> Result<(), Error> {
    for entry in fs::read_dir(dir).map_err(|error| io_error("cannot read", dir, &error))? {
        let path = entry.map_err(|error| io_error("cannot read", dir, &error))?.path();
        if !begun.contains(&path.as_path()) {
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
        .and_then(|()| File::open(dir)?.sync_all());
    renamed.map_err(|error| io_error("cannot create", &store_dir, &error))
}

fn io_error(what: &str, path: &Path, error: &io::Error) -> Error {
    StoreError::new(StoreErrorKind::Io, format!("{what} {}: {error}", path.display())).into()
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
