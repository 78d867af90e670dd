//! Which layouts and stores there are for a program, and what a database is opened with.

use std::io::Read;
use std::path::Path;

use super::stores::{self, STORES, StoreEntry, StoreSettings};
use super::with::With;
use super::{
    Marker, begun_creation, begun_import, check_empty, marker_of, refuse_database, refuse_unfinished,
};
use crate::engine::import::{ImportProgress, Imported};
use crate::engine::{CheckReport, Engine, EngineConfig};
use crate::error::Error;
use crate::lock::{DirLock, create_dirs};
use crate::registry::{self, LAYOUTS, LayoutEntry};
use crate::setters::setters;

/// The layouts and stores that a program knows, by name. A database in a directory says by name what it is, so whoever opens
/// one with a layout or store of their own does so through a catalogue that has it. [`Catalogue::default`] has the built-in
/// ones; the functions of the [module](super) use that.
///
/// ```no_run
/// use flagstone::database::{Catalogue, Options, StoreEntry};
/// use flagstone::registry::LayoutEntry;
/// # fn my_layout() -> Box<dyn flagstone::core::layout::Layout> { unimplemented!() }
/// # fn my_store(_: &std::path::Path) -> Result<Box<dyn flagstone::store::Store>, flagstone::store::StoreError> { unimplemented!() }
///
/// let catalogue = Catalogue::default()
///     .with_layout(LayoutEntry::new("mine", "rows of mine", my_layout))?
///     .with_store(StoreEntry::new("my-store", "files of mine", |dir, _| my_store(dir)))?;
/// let options = Options::default().with_layout("mine").with_store("my-store");
/// let engine = catalogue.open_or_create("database".as_ref(), &options)?;
/// # Ok::<(), flagstone::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Catalogue {
    layouts: Vec<LayoutEntry>,
    stores: Vec<StoreEntry>,
}

impl Default for Catalogue {
    fn default() -> Self {
        Self { layouts: LAYOUTS.to_vec(), stores: STORES.to_vec() }
    }
}

impl Catalogue {
    /// This catalogue with one more layout.
    ///
    /// # Errors
    /// [`Error::Config`] if there is one of that name, if the name is not of small letters, digits, `-` and `_`, or if the
    /// layout calls itself something else.
    pub fn with_layout(mut self, entry: LayoutEntry) -> Result<Self, Error> {
        check_name("layout", entry.name, self.layouts.iter().map(|entry| entry.name))?;
        let (name, itself) = (entry.name, entry.make().name());
        if name != itself {
            return Err(Error::Config(format!(
                "layout `{name}` cannot be listed: it calls itself `{itself}`"
            )));
        }
        self.layouts.push(entry);
        Ok(self)
    }

    /// This catalogue with one more store.
    ///
    /// # Errors
    /// [`Error::Config`] if there is one of that name, if the name is not of small letters, digits, `-` and `_`, or if the
    /// default of a setting is none of its values.
    pub fn with_store(mut self, entry: StoreEntry) -> Result<Self, Error> {
        check_name("store", entry.name, self.stores.iter().map(|entry| entry.name))?;
        entry.resolve(&StoreSettings::default())?;
        self.stores.push(entry);
        Ok(self)
    }

    /// All layouts; the first one is the default.
    pub fn layouts(&self) -> &[LayoutEntry] {
        &self.layouts
    }

    /// All stores; the first one is the default.
    pub fn stores(&self) -> &[StoreEntry] {
        &self.stores
    }

    /// The layout with a name.
    ///
    /// # Errors
    /// [`Error::UnknownName`] with the names there are.
    pub fn layout(&self, name: &str) -> Result<&LayoutEntry, Error> {
        registry::named(&self.layouts, name)
    }

    /// The store with a name.
    ///
    /// # Errors
    /// [`Error::UnknownName`] with the names there are.
    pub fn store(&self, name: &str) -> Result<&StoreEntry, Error> {
        stores::named(&self.stores, name)
    }

    /// The built-in ones, with these in the place of those of their names.
    pub(super) fn having(layout: Option<&LayoutEntry>, store: Option<&StoreEntry>) -> Self {
        let mut catalogue = Self::default();
        if let Some(layout) = layout {
            match catalogue.layouts.iter_mut().find(|entry| entry.name == layout.name) {
                Some(entry) => *entry = layout.clone(),
                None => catalogue.layouts.push(layout.clone()),
            }
        }
        if let Some(store) = store {
            match catalogue.stores.iter_mut().find(|entry| entry.name == store.name) {
                Some(entry) => *entry = store.clone(),
                None => catalogue.stores.push(store.clone()),
            }
        }
        catalogue
    }
}

impl Catalogue {
    /// Opens the database in a directory.
    ///
    /// # Errors
    /// [`Error::NoDatabase`] if there is none; a [`StoreErrorKind::Locked`](crate::store::StoreErrorKind::Locked) one if another process has it open;
    /// [`Error::UnknownName`] if its layout or store is not in this catalogue; [`Error::IdentityMismatch`] if it is in another
    /// one than the options say; [`Error::Config`] if its store does not take the settings; else as [`Engine::open_journaled`].
    pub fn open(&self, dir: &Path, options: &Options) -> Result<Engine, Error> {
        let with = With::new(self, options)?;
        marker_of(dir)?;
        let lock = DirLock::exclusive(dir)?;
        with.open_marked(dir, &marker_of(dir)?, lock)
    }

    /// Opens the database in a directory for looking: no byte of it is changed, whatever is found. It may be on a read-only or
    /// a full disk. Blocks that only the journal has are there as they would be after [`Catalogue::open`], and are committed in a
    /// private copy of the store, which is made in the temporary directory (or in `/dev/shm` if there is no room) and removed with
    /// the engine. So the copy's size is what looking costs: see [`Opened::copied_bytes`](crate::engine::Opened). No block can be
    /// closed or taken back.
    ///
    /// # Errors
    /// As [`Catalogue::open`]; a [`StoreErrorKind::Full`](crate::store::StoreErrorKind::Full) one if there is nowhere room for the copy.
    pub fn open_read_only(&self, dir: &Path, options: &Options) -> Result<Engine, Error> {
        let with = With::new(self, options)?;
        marker_of(dir)?;
        with.look(dir, DirLock::shared(dir)?)
    }

    /// Opens the database in a directory, or creates one if the directory is missing or empty.
    ///
    /// # Errors
    /// [`Error::NoDatabase`] if the directory holds something else, otherwise as [`Catalogue::open`].
    pub fn open_or_create(&self, dir: &Path, options: &Options) -> Result<Engine, Error> {
        options.engine.check()?;
        let with = With::new(self, options)?;
        if Marker::read(dir)?.is_none() {
            with.new_store()?;
            refuse_unfinished(dir)?;
            create_dirs(dir)?;
            check_empty(dir, &begun_creation(dir))?;
        }
        let lock = DirLock::exclusive(dir)?;
        // Somebody may have made one between the two looks.
        if let Some(marker) = Marker::read(dir)? {
            return with.open_marked(dir, &marker, lock);
        }
        refuse_unfinished(dir)?;
        with.create(dir, lock)
    }

    /// Makes a database in a directory from a dump of a state, or goes on with an import of it that was interrupted. The
    /// directory must be missing or empty, or hold nothing but such an import.
    ///
    /// # Errors
    /// As [`Engine::import`]; [`Error::NoDatabase`] if the directory holds something else; [`Error::UnknownName`] and
    /// [`Error::Config`] as [`Catalogue::open`].
    pub fn import(
        &self,
        dir: &Path,
        options: &Options,
        dump: impl Read + Send,
        progress: &mut dyn FnMut(ImportProgress),
    ) -> Result<Imported, Error> {
        let config = &options.engine;
        config.check()?;
        let with = With::new(self, options)?;
        refuse_database(dir)?;
        with.store_to_fill(dir)?;
        create_dirs(dir)?;
        check_empty(dir, &begun_import(dir))?;
        let _lock = DirLock::exclusive(dir)?;
        refuse_database(dir)?;
        with.import(dir, dump, progress)
    }

    /// Checks the database in a directory, whatever is wrong with it: what an opening would refuse is a finding as well. No byte
    /// is changed. Blocks that only the journal has are committed first, in memory. `progress` is told of storage entries now
    /// and then.
    ///
    /// # Errors
    /// [`Error::NoDatabase`] if there is none; [`Error::State`] if the store cannot be opened at all, or the system refuses;
    /// [`Error::UnknownName`] and [`Error::Config`] as [`Catalogue::open`].
    pub fn check(
        &self,
        dir: &Path,
        options: &Options,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<CheckReport, Error> {
        let with = With::new(self, options)?;
        marker_of(dir)?;
        let _lock = DirLock::shared(dir)?;
        with.check_locked(dir, progress)
    }
}

/// Names are lines of files and parts of directories' names.
fn check_name(what: &str, name: &str, mut taken: impl Iterator<Item = &'static str>) -> Result<(), Error> {
    let is_of_name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
    if name.is_empty() || !name.bytes().all(is_of_name) {
        return Err(Error::Config(format!(
            "`{name}` cannot be the name of a {what}: small letters, digits, `-` and `_` make one"
        )));
    }
    match taken.any(|taken| taken == name) {
        true => Err(Error::Config(format!("there is a {what} named `{name}` already; name yours otherwise"))),
        false => Ok(()),
    }
}

/// What a database in a directory is opened with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Options {
    /// The layout by name: of a new database, the first of the catalogue unless it is given; of one that is there, which must
    /// have it.
    pub layout: Option<String>,
    /// The store by name, likewise.
    pub store: Option<String>,
    /// Settings of the store, whichever it is.
    pub store_settings: StoreSettings,
    /// Settings of the engine.
    pub engine: EngineConfig,
}

impl Options {
    /// These options with a layout.
    #[must_use]
    pub fn with_layout(mut self, name: impl Into<String>) -> Self {
        self.layout = Some(name.into());
        self
    }

    /// These options with a store.
    #[must_use]
    pub fn with_store(mut self, name: impl Into<String>) -> Self {
        self.store = Some(name.into());
        self
    }

    /// These options with other settings of the store.
    #[must_use]
    pub fn with_store_settings(mut self, settings: StoreSettings) -> Self {
        self.store_settings = settings;
        self
    }

    setters! {
        with_engine => engine: EngineConfig,
    }

    /// Those of the [module](super)'s functions.
    pub(super) fn of(layout: Option<&LayoutEntry>, store: Option<&StoreEntry>, engine: EngineConfig) -> Self {
        let (layout, store) =
            (layout.map(|entry| entry.name.to_owned()), store.map(|entry| entry.name.to_owned()));
        Self { layout, store, store_settings: StoreSettings::default(), engine }
    }
}
