//! The stores that can live in a directory, and their settings. The only place that names them: CLI, tests and benches iterate
//! this list.
//!
//! A store of yours becomes a [`StoreEntry`] too, and joins these in a [`Catalogue`](super::Catalogue).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use crate::disk::{copy_file, copy_tree};
use crate::error::Error;
use crate::registry::Held;
use crate::store::{FjallConfig, FjallStore, SledConfig, SledStore, Store, StoreError, StoreErrorKind};

/// A setting that a store takes at each opening. No setting is stored.
#[derive(Debug, Clone, Copy)]
pub struct StoreSetting {
    /// Its name.
    pub name: &'static str,
    /// What it means, in one line for people.
    pub about: &'static str,
    /// What it is unless it is given.
    pub default: &'static str,
    check: fn(&str) -> Result<(), String>,
}

impl StoreSetting {
    /// A setting whose text, the default's too, must be that of a `T`.
    pub const fn new<T>(name: &'static str, about: &'static str, default: &'static str) -> Self
    where
        T: FromStr,
        T::Err: fmt::Display,
    {
        Self { name, about, default, check: is_text_of::<T> }
    }
}

fn is_text_of<T>(text: &str) -> Result<(), String>
where
    T: FromStr,
    T::Err: fmt::Display,
{
    text.parse::<T>().map(drop).map_err(|error| error.to_string())
}

/// Settings of a store, by name, as texts.
///
/// ```
/// use flagstone::database::{StoreSettings, store};
///
/// let sled = store("sled")?;
/// let settings = sled.resolve(&StoreSettings::default().with("cache_bytes", 1 << 20))?;
/// assert_eq!(settings.get("cache_bytes"), Ok(1_u64 << 20));
/// assert_eq!(settings.get("verify_closed"), Ok(true));
/// assert!(sled.resolve(&StoreSettings::default().with("cache", 1)).is_err());
/// # Ok::<(), flagstone::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StoreSettings(BTreeMap<String, String>);

impl StoreSettings {
    /// These settings with one more, or with another value of one.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: impl ToString) -> Self {
        self.0.insert(name.into(), value.to_string());
        self
    }

    /// The value of one, for the store that takes it.
    ///
    /// # Errors
    /// [`StoreErrorKind::Unsupported`] if it is not there, or is no `T`: after [`StoreEntry::resolve`], only if the entry does
    /// not list it so.
    pub fn get<T>(&self, name: &str) -> Result<T, StoreError>
    where
        T: FromStr,
        T::Err: fmt::Display,
    {
        let wrong = |problem: String| StoreError::new(StoreErrorKind::Unsupported, problem);
        let text =
            self.0.get(name).ok_or_else(|| wrong(format!("setting `{name}` of the store is missing")))?;
        text.parse()
            .map_err(|error| wrong(format!("setting `{name}` of the store cannot be `{text}`: {error}")))
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for StoreSettings {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(settings: I) -> Self {
        Self(settings.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

type Open = dyn Fn(&Path, &StoreSettings) -> Result<Box<dyn Store>, StoreError> + Send + Sync;
type Shadow = dyn Fn(&Path, &Path) -> io::Result<u64> + Send + Sync;

/// A store that can live in a directory.
#[derive(Clone)]
pub struct StoreEntry {
    /// Its name: what users write and databases say.
    pub name: &'static str,
    /// One line for people.
    pub about: &'static str,
    settings: Cow<'static, [StoreSetting]>,
    open: Held<Open>,
    shadow: Option<Held<Shadow>>,
    copy: Option<Held<Open>>,
    damaged: Option<Held<Open>>,
}

impl StoreEntry {
    /// A store of yours. `open` opens the one in a directory, or makes an empty one if there is none there or no directory; the
    /// settings that it gets are all that the entry lists. Everything that the store has is below that directory, so that
    /// copying and renaming it copies and renames the store, while it is not open.
    ///
    /// It takes batches as one unit ([`Capabilities::atomic_batches`](crate::store::Capabilities)), keys of up to
    /// [`KEY_BYTES_MAX`](crate::store::KEY_BYTES_MAX) bytes, and rows of up to [`VALUE_BYTES_MAX`](crate::store::VALUE_BYTES_MAX).
    pub fn new(
        name: &'static str,
        about: &'static str,
        open: impl Fn(&Path, &StoreSettings) -> Result<Box<dyn Store>, StoreError> + Send + Sync + 'static,
    ) -> Self {
        let open: Held<Open> = Held::Counted(Arc::new(open));
        Self { name, about, settings: Cow::Borrowed(&[]), open, shadow: None, copy: None, damaged: None }
    }

    /// The same with one more setting.
    #[must_use]
    pub fn with_setting(mut self, setting: StoreSetting) -> Self {
        self.settings.to_mut().push(setting);
        self
    }

    /// The same, with a way of its own to copy its files, from the first directory into the second, which is there and empty; it says how
    /// many bytes it copied. Files that nobody changes may be linked to instead. Without it, all files are copied.
    #[must_use]
    pub fn with_shadow(
        mut self,
        shadow: impl Fn(&Path, &Path) -> io::Result<u64> + Send + Sync + 'static,
    ) -> Self {
        self.shadow = Some(Held::Counted(Arc::new(shadow)));
        self
    }

    /// The same, with a way of its own to open a copy of its files that nobody needs when it is closed. Without it, a copy is
    /// opened as any other store.
    #[must_use]
    pub fn with_copy(
        mut self,
        open: impl Fn(&Path, &StoreSettings) -> Result<Box<dyn Store>, StoreError> + Send + Sync + 'static,
    ) -> Self {
        self.copy = Some(Held::Counted(Arc::new(open)));
        self
    }

    /// The same, with a way of its own to open such a copy whatever is known of damage to it, as every row is then distrusted.
    /// Without it, a damaged copy is opened as any other.
    #[must_use]
    pub fn with_damaged(
        mut self,
        open: impl Fn(&Path, &StoreSettings) -> Result<Box<dyn Store>, StoreError> + Send + Sync + 'static,
    ) -> Self {
        self.damaged = Some(Held::Counted(Arc::new(open)));
        self
    }

    /// The settings that it takes.
    pub fn settings(&self) -> &[StoreSetting] {
        &self.settings
    }

    /// All of its settings: those that are given, and of the others the defaults.
    ///
    /// # Errors
    /// [`Error::Config`] that names a setting that it does not take, or one whose value it cannot be.
    pub fn resolve(&self, given: &StoreSettings) -> Result<StoreSettings, Error> {
        let name = self.name;
        let is_taken = |given: &str| self.settings.iter().any(|setting| setting.name == given);
        if let Some(unknown) = given.0.keys().find(|given| !is_taken(given)) {
            let taken: Vec<&str> = self.settings.iter().map(|setting| setting.name).collect();
            let taken = if taken.is_empty() { "no settings".to_owned() } else { taken.join(", ") };
            return Err(Error::Config(format!(
                "store `{name}` has no setting named `{unknown}`; it takes {taken}"
            )));
        }
        let resolve = |setting: &StoreSetting| {
            let text = given.0.get(setting.name).map_or(setting.default, String::as_str);
            match (setting.check)(text) {
                Ok(()) => Ok((setting.name.to_owned(), text.to_owned())),
                Err(problem) => Err(Error::Config(format!(
                    "setting `{}` of store `{name}` cannot be `{text}`: {problem}; it is: {}",
                    setting.name, setting.about
                ))),
            }
        };
        self.settings.iter().map(resolve).collect::<Result<_, _>>().map(StoreSettings)
    }

    /// Opens the store in a directory, or makes one there, by itself: without a database around it.
    ///
    /// # Errors
    /// [`Error::Config`] as [`StoreEntry::resolve`]; [`Error::State`] if the store cannot be opened.
    pub fn open(&self, dir: &Path, settings: &StoreSettings) -> Result<Box<dyn Store>, Error> {
        Ok((self.open)(dir, &self.resolve(settings)?)?)
    }

    /// Makes a private copy of its files in a directory that is there and empty. Returns how many bytes that took.
    pub(super) fn shadow(&self, from: &Path, to: &Path) -> io::Result<u64> {
        self.shadow.as_ref().map_or_else(|| copy_tree(from, to, &copy_file), |shadow| shadow(from, to))
    }

    /// Opens a private copy of its files, which nobody needs afterwards.
    pub(super) fn open_copy(&self, dir: &Path, settings: &StoreSettings) -> Result<Box<dyn Store>, Error> {
        Ok((self.copy.as_ref().unwrap_or(&self.open))(dir, &self.resolve(settings)?)?)
    }

    /// The same, whatever is known of damage to them: every row is then to be distrusted.
    pub(super) fn open_damaged(&self, dir: &Path, settings: &StoreSettings) -> Result<Box<dyn Store>, Error> {
        let open = self.damaged.as_ref().or(self.copy.as_ref()).unwrap_or(&self.open);
        Ok(open(dir, &self.resolve(settings)?)?)
    }
}

impl fmt::Debug for StoreEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreEntry").field("name", &self.name).finish_non_exhaustive()
    }
}

/// All built-in stores that live in a directory; the first one is the default.
pub const STORES: &[StoreEntry] = &[FJALL, SLED];

const FJALL: StoreEntry = StoreEntry {
    name: "fjall",
    about: "log-structured merge tree in one directory, for one process",
    settings: Cow::Borrowed(&[
        StoreSetting::new::<u64>("cache_bytes", "bytes of blocks of tables kept in memory", "67108864"),
        StoreSetting::new::<NonZeroUsize>("worker_threads", "threads that write and merge tables", "2"),
    ]),
    open: Held::Static(&|dir, settings| Ok(Box::new(FjallStore::open(dir, fjall_config(settings)?)?))),
    shadow: Some(Held::Static(&FjallStore::shadow)),
    copy: None,
    damaged: Some(Held::Static(&|dir, settings| {
        Ok(Box::new(FjallStore::open_damaged(dir, fjall_config(settings)?)?))
    })),
};

const SLED: StoreEntry = StoreEntry {
    name: "sled",
    about: "embedded ordered tree in one directory, for one process",
    settings: Cow::Borrowed(&[
        StoreSetting::new::<u64>("cache_bytes", "bytes of pages kept in memory, at least 1 MiB", "33554432"),
        StoreSetting::new::<bool>(
            "verify_closed",
            "`true` or `false`: whether closing takes a checksum of the whole file, and opening compares it",
            "true",
        ),
        StoreSetting::new::<u64>(
            "keep_before_bytes_max",
            "files of at most so many bytes are copied before they are opened, as one failed read would end sled's log",
            "67108864",
        ),
    ]),
    open: Held::Static(&|dir, settings| Ok(Box::new(SledStore::open(dir, sled_config(settings)?)?))),
    shadow: None,
    copy: Some(Held::Static(&|dir, settings| {
        Ok(Box::new(SledStore::open_copy(dir, sled_config(settings)?)?))
    })),
    damaged: Some(Held::Static(&|dir, settings| {
        Ok(Box::new(SledStore::open_copy(dir, sled_config(settings)?.with_verify_closed(false))?))
    })),
};

fn fjall_config(settings: &StoreSettings) -> Result<FjallConfig, StoreError> {
    let worker_threads: NonZeroUsize = settings.get("worker_threads")?;
    Ok(FjallConfig { cache_bytes: settings.get("cache_bytes")?, worker_threads: worker_threads.get() })
}

fn sled_config(settings: &StoreSettings) -> Result<SledConfig, StoreError> {
    Ok(SledConfig {
        cache_bytes: settings.get("cache_bytes")?,
        verify_closed: settings.get("verify_closed")?,
        keep_before_bytes_max: settings.get("keep_before_bytes_max")?,
    })
}

/// The built-in store with a name.
///
/// # Errors
/// [`Error::UnknownName`] with the names there are.
pub fn store(name: &str) -> Result<&'static StoreEntry, Error> {
    named(STORES, name)
}

/// The store of a list with a name.
pub(super) fn named<'a>(stores: &'a [StoreEntry], name: &str) -> Result<&'a StoreEntry, Error> {
    let found = stores.iter().find(|entry| entry.name == name);
    found.ok_or_else(|| Error::unknown_name("store", name, stores.iter().map(|entry| entry.name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_of_settings_are_those_of_the_store() {
        for entry in STORES {
            entry.resolve(&StoreSettings::default()).unwrap();
        }
        let settings = store("sled").unwrap().resolve(&StoreSettings::default()).unwrap();
        assert_eq!(sled_config(&settings).unwrap(), SledConfig::default());
        let settings = store("fjall").unwrap().resolve(&StoreSettings::default()).unwrap();
        assert_eq!(fjall_config(&settings).unwrap(), FjallConfig::default());
    }

    #[test]
    fn what_a_store_does_not_take_is_refused_by_name() {
        let refused = |name: &str, value: &str| {
            let given = StoreSettings::default().with(name, value);
            store("sled").unwrap().resolve(&given).unwrap_err().to_string()
        };
        assert_eq!(
            refused("cache", "1"),
            "store `sled` has no setting named `cache`; it takes cache_bytes, verify_closed, keep_before_bytes_max"
        );
        let text = refused("cache_bytes", "much");
        assert!(text.starts_with("setting `cache_bytes` of store `sled` cannot be `much`: "), "{text}");
    }
}
