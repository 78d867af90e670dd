//! What each way of opening does with what it was given.

use std::fs;
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::sync::Arc;

use flagstone_core::hash::Bulk;

use super::{
    Catalogue, JOURNAL, MARKER_NEW, Marker, Options, STORE, STORE_NEW, StoreEntry, begun_creation,
    check_empty, check_store, copy_store, finish_begun, finish_creation, import_dir, is_damage, journal_of,
    lost_store, marker_of, recover, store_dir_of, unfinished_import, with_cache,
};
use crate::engine::import::{self, ImportProgress, Imported};
use crate::engine::opened::House;
use crate::engine::opening::Opening;
use crate::engine::{CheckReport, Engine, Identity, identity, meta};
use crate::error::Error;
use crate::journal::{Journal, JournalConfig, OsFiles};
use crate::lock::{DirLock, io_error};
use crate::registry::LayoutEntry;
use crate::store::{Sealed, Store};

/// What a database is opened with, names looked up.
pub struct With<'a> {
    catalogue: &'a Catalogue,
    pub options: &'a Options,
    layout: Option<&'a LayoutEntry>,
    store: Option<&'a StoreEntry>,
}

impl<'a> With<'a> {
    pub fn new(catalogue: &'a Catalogue, options: &'a Options) -> Result<Self, Error> {
        let layout = options.layout.as_deref().map(|name| catalogue.layout(name)).transpose()?;
        let store = options.store.as_deref().map(|name| catalogue.store(name)).transpose()?;
        Ok(Self { catalogue, options, layout, store })
    }

    /// The layout of a database, which must be the one that wrote it.
    pub fn layout_of(&self, marker: &Marker) -> Result<&'a LayoutEntry, Error> {
        let written_by = self.catalogue.layout(&marker.identity.layout)?;
        let layout = self.layout.unwrap_or(written_by);
        Identity::of(layout.make().as_ref()).check(&marker.identity).map(|()| layout)
    }

    /// The store of a database, which takes the settings.
    pub fn store_of(&self, marker: &Marker) -> Result<&'a StoreEntry, Error> {
        if let Some(store) = self.store.filter(|store| store.name != marker.store) {
            let (stored, opened) = (format!("`{}`", marker.store), format!("`{}`", store.name));
            return Err(Error::IdentityMismatch { what: "store", stored, opened });
        }
        let store = self.catalogue.store(&marker.store)?;
        store.resolve(&self.options.store_settings).map(|_| store)
    }

    /// The layout of a new database.
    fn new_layout(&self) -> &'a LayoutEntry {
        self.layout.unwrap_or(&self.catalogue.layouts()[0])
    }

    /// The store of a new database, which takes the settings.
    pub fn new_store(&self) -> Result<&'a StoreEntry, Error> {
        let store = self.store.unwrap_or(&self.catalogue.stores()[0]);
        store.resolve(&self.options.store_settings).map(|_| store)
    }

    /// The store of a database that is imported, which takes the settings, and the one of an import that was begun there.
    pub fn store_to_fill(&self, dir: &Path) -> Result<(&'a StoreEntry, Option<&'a StoreEntry>), Error> {
        let begun = unfinished_import(dir);
        let begun = begun.map(|begun| self.catalogue.store(&begun)).transpose()?;
        match self.store.or(begun) {
            Some(store) => store.resolve(&self.options.store_settings).map(|_| (store, begun)),
            None => Ok((self.new_store()?, begun)),
        }
    }

    /// Opens a store, behind its seals.
    pub fn open_store(&self, store: &StoreEntry, dir: &Path) -> Result<Sealed<dyn Store>, Error> {
        Ok(Sealed::from_box(store.open(dir, &self.options.store_settings)?))
    }

    /// [`Catalogue::open_read_only`], with the lock that it takes.
    pub fn look(&self, dir: &Path, lock: Option<DirLock>) -> Result<Engine, Error> {
        recover::finish(dir, false)?;
        let marker = marker_of(dir)?;
        let (layout, entry) = (self.layout_of(&marker)?.make(), self.store_of(&marker)?);
        let journal_dir = journal_of(dir)?;
        let (copy, bytes) = copy_store(entry, &store_dir_of(dir, &marker))?;
        let store = Sealed::from_box(entry.open_copy(copy.path(), &self.options.store_settings)?);
        check_store(dir, &marker, &store)?;
        let house = House { lock, copy: Some(copy), copied_bytes: bytes };
        let opening = Opening::new(store, layout, with_cache(self.options.engine), Box::new(Bulk))?;
        opening.in_house(house).start_looking(Arc::new(OsFiles), &journal_dir)
    }

    /// [`Catalogue::check`], for who has a lock.
    pub fn check_locked(&self, dir: &Path, progress: &(dyn Fn(u64) + Sync)) -> Result<CheckReport, Error> {
        let looked = self.look(dir, None).and_then(|engine| {
            engine.commit()?;
            Ok(engine)
        });
        match looked {
            Ok(engine) => engine.check(progress),
            Err(error) if is_damage(&error) => {
                let problem = error.to_string();
                Ok(self.look_alone(dir)?.check(progress)?.with(problem))
            }
            Err(error) => Err(error),
        }
    }

    /// Opens the store of a database for looking, without the journal, whatever is known of damage to its files.
    fn look_alone(&self, dir: &Path) -> Result<Engine, Error> {
        let marker = marker_of(dir)?;
        let (layout, entry) = (self.layout_of(&marker)?.make(), self.store_of(&marker)?);
        let (copy, bytes) = copy_store(entry, &store_dir_of(dir, &marker))?;
        let store = Sealed::from_box(entry.open_damaged(copy.path(), &self.options.store_settings)?);
        if identity::read_identity(&store)?.is_none() {
            return Err(lost_store(dir, "it is empty"));
        }
        let house = House { lock: None, copy: Some(copy), copied_bytes: bytes };
        let opening = Opening::new(store, layout, with_cache(self.options.engine), Box::new(Bulk))?;
        opening.in_house(house).start_to_look_alone()
    }

    /// [`Catalogue::open`], for who has the lock.
    pub fn open_marked(&self, dir: &Path, marker: &Marker, lock: DirLock) -> Result<Engine, Error> {
        let (layout, entry) = (self.layout_of(marker)?.make(), self.store_of(marker)?);
        recover::finish(dir, true)?;
        finish_begun(dir, marker)?;
        let store_dir = dir.join(STORE);
        if !store_dir.is_dir() {
            return Err(lost_store(dir, "it is missing"));
        }
        let store = self.open_store(entry, &store_dir)?;
        check_store(dir, marker, &store)?;
        let journal_dir = journal_of(dir)?;
        let opening = Opening::new(store, layout, with_cache(self.options.engine), Box::new(Bulk))?;
        opening.in_house(House::locked(lock)).start_with_journal(Arc::new(OsFiles), &journal_dir)
    }

    /// Makes a database in a directory that holds nothing but what an interrupted creation may have left, and opens it.
    pub fn create(&self, dir: &Path, lock: DirLock) -> Result<Engine, Error> {
        let leftover = dir.join(STORE_NEW);
        check_empty(dir, &begun_creation(dir))?;
        // A creation that was interrupted: nothing in it was ever acknowledged.
        match fs::remove_dir_all(&leftover) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(io_error("cannot remove", &leftover, &error));
            }
            _ => {}
        }
        let (layout, store) = (self.new_layout().make(), self.new_store()?);
        let identity = Identity::of(layout.as_ref());
        let settings = &self.options.store_settings;
        let made = Engine::open(store.open(&leftover, settings)?, layout, self.options.engine)?;
        let marker = Marker { identity, store: store.name.to_owned(), database: Some(made.database()) };
        drop(made);
        marker.write(dir)?;
        finish_creation(dir, &leftover)?;
        self.open_marked(dir, &marker, lock)
    }

    /// [`Catalogue::import`], for who has the lock on a directory that is none of a database.
    pub fn import(
        &self,
        dir: &Path,
        dump: impl Read + Send,
        progress: &mut dyn FnMut(ImportProgress),
    ) -> Result<Imported, Error> {
        let (store, begun) = self.store_to_fill(dir)?;
        let layout = match self.layout {
            Some(layout) => layout,
            None => self.begun_layout(dir, begun)?.unwrap_or(self.new_layout()),
        };
        let filled = import_dir(dir, store.name);
        check_empty(dir, &[filled.clone(), dir.join(JOURNAL), dir.join(MARKER_NEW)])?;

        let made = layout.make();
        let filling = self.open_store(store, &filled)?;
        let imported = import::import(&filling, made.as_ref(), &self.options.engine, dump, progress)?;
        let database = meta::read_database(&filling)?;
        drop(filling);
        let (block, journal) = (imported.header.block, dir.join(JOURNAL));
        Journal::begin_after(Arc::new(OsFiles), &journal, JournalConfig::default(), database, block)?;
        let (identity, store) = (Identity::of(made.as_ref()), store.name.to_owned());
        Marker { identity, store, database: Some(database) }.write(dir)?;
        finish_creation(dir, &filled)?;
        Ok(imported)
    }

    /// The layout that an unfinished import fills.
    fn begun_layout(&self, dir: &Path, begun: Option<&StoreEntry>) -> Result<Option<&'a LayoutEntry>, Error> {
        let Some(store) = begun else { return Ok(None) };
        let store = self.open_store(store, &import_dir(dir, store.name))?;
        match identity::read_unfinished(&store)? {
            Some(unfinished) => self.catalogue.layout(&unfinished.identity.layout).map(Some),
            None => Ok(None),
        }
    }
}
