//! Where a command that writes keeps its database: in memory, in the directory it was given, or in a temporary one.

use std::path::{Component, Path, PathBuf};

use flagstone::Engine;
use flagstone::database::{self, Catalogue, Options, StoreSettings};
use flagstone::store::MemoryStore;

use super::failure::Failure;

/// A store named on the command line that keeps nothing.
pub const MEMORY: &str = "memory";
/// As many links as Linux follows in one path.
const LINKS_MAX: usize = 40;

pub enum Place {
    Memory,
    Directory(PathBuf),
    Temporary(tempfile::TempDir),
}

impl Place {
    /// The place that `--data` and `--store` ask for.
    pub fn new(data: Option<&Path>, store: Option<&str>) -> Result<Self, Failure> {
        match (data, store) {
            (Some(_), Some(MEMORY)) => Err(Failure::usage(
                "--store memory keeps nothing, so it cannot be used with --data; leave one out",
            )),
            (None, Some(MEMORY)) => Ok(Self::Memory),
            (Some(data), _) => {
                new_database("--data", data, None)?;
                Ok(Self::Directory(data.to_owned()))
            }
            (None, _) => match tempfile::Builder::new().prefix("flagstone-").tempdir() {
                Ok(directory) => Ok(Self::Temporary(directory)),
                Err(error) => Err(Failure::store(format!("cannot make a temporary directory: {error}"))),
            },
        }
    }

    /// The directory, unless it is in memory.
    pub fn directory(&self) -> Option<&Path> {
        match self {
            Self::Memory => None,
            Self::Directory(directory) => Some(directory),
            Self::Temporary(directory) => Some(directory.path()),
        }
    }

    pub fn open(&self, options: &Options) -> Result<Engine, Failure> {
        let catalogue = Catalogue::default();
        match self.directory() {
            Some(directory) => Ok(catalogue.open_or_create(directory, options)?),
            None if options.store_settings != StoreSettings::default() => {
                Err(Failure::usage(format!("--store {MEMORY} takes no settings; leave out --store-set")))
            }
            None => {
                let layout = options.layout.as_deref().map(|name| catalogue.layout(name)).transpose()?;
                let layout = layout.unwrap_or(&catalogue.layouts()[0]).make();
                Ok(Engine::open(Box::new(MemoryStore::new()), layout, options.engine)?)
            }
        }
    }

    /// Where it is, for the end of a sentence.
    pub fn suffix(&self) -> String {
        match self {
            Self::Memory => String::new(),
            Self::Directory(directory) => format!(", in {}", directory.display()),
            Self::Temporary(_) => ", in a temporary directory".to_owned(),
        }
    }
}

/// Refuses a place for output in the directory of a database: of any that is there, and of `own`, which need not be there yet.
/// What is in such a directory is the database's own: a dump in the place of one of its files destroys it.
pub fn outside_databases(option: &str, path: &Path, own: Option<&Path>) -> Result<(), Failure> {
    let place = resolve(path);
    let own = own.map(resolve).filter(|own| place.starts_with(own));
    let database = own.or_else(|| place.ancestors().find(|dir| database::is_in(dir)).map(Path::to_owned));
    database.map_or(Ok(()), |database| {
        let (path, database) = (path.display(), database.display());
        Err(Failure::usage(format!(
            "{option} {path} is in {database}, the directory of a database, where all files are its own; \
             name a place outside of it"
        )))
    })
}

/// Refuses a place for a new database in the directory of another one. What is a database already is one wherever it is,
/// unless it is in `own`.
pub fn new_database(option: &str, dir: &Path, own: Option<&Path>) -> Result<(), Failure> {
    let in_own = own.is_some_and(|own| resolve(dir).starts_with(resolve(own)));
    if database::is_in(dir) && !in_own { Ok(()) } else { outside_databases(option, dir, own) }
}

/// Where a path leads: links are followed, also those that lead to nothing yet.
fn resolve(path: &Path) -> PathBuf {
    follow(&std::path::absolute(path).unwrap_or_else(|_| path.to_owned()), LINKS_MAX)
}

fn follow(path: &Path, links_max: usize) -> PathBuf {
    let (mut place, mut parts) = (PathBuf::new(), path.components());
    while let Some(part) = parts.next() {
        if part == Component::ParentDir {
            place.pop();
            continue;
        }
        let here = place.join(part);
        match std::fs::read_link(&here) {
            Ok(target) if links_max > 0 => return follow(&place.join(target).join(parts), links_max - 1),
            _ => place = here,
        }
    }
    place
}
