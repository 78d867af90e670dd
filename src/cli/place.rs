//! Where a command that writes keeps its database: in memory, in the directory it was given, or in a temporary one.

use std::path::Path;

use flagstone::registry::{LAYOUTS, LayoutEntry};
use flagstone::store::MemoryStore;
use flagstone::{Engine, EngineConfig, database};

use super::Failure;

/// A store named on the command line that keeps nothing.
const MEMORY: &str = "memory";

pub enum Place {
    Memory,
    Directory(std::path::PathBuf),
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
            (Some(data), _) => Ok(Self::Directory(data.to_owned())),
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

    pub fn open(
        &self,
        layout: Option<&LayoutEntry>,
        store: Option<&str>,
        config: EngineConfig,
    ) -> Result<Engine, Failure> {
        let Some(directory) = self.directory() else {
            let layout = layout.unwrap_or(&LAYOUTS[0]).make();
            return Ok(Engine::open(Box::new(MemoryStore::new()), layout, config)?);
        };
        let store = store.map(database::store).transpose()?;
        Ok(database::open_or_create(directory, layout, store, config)?)
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
