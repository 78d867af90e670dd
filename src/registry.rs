//! The layouts there are. The only place that names them: engine, tests, benches and CLI iterate this list.
//!
//! A layout of yours becomes a [`LayoutEntry`] too, and joins these in a [`Catalogue`](crate::database::Catalogue).

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use flagstone_core::layout::Layout;
use flagstone_flat::Flat;
use flagstone_patricia::{ByHash, ByPath, Patricia};

use crate::error::Error;

/// A function of an entry: part of the program in the lists here, counted in entries that are made while it runs.
pub(crate) enum Held<T: ?Sized + 'static> {
    Static(&'static T),
    Counted(Arc<T>),
}

impl<T: ?Sized> Deref for Held<T> {
    type Target = T;

    fn deref(&self) -> &T {
        match self {
            Self::Static(held) => held,
            Self::Counted(held) => held,
        }
    }
}

impl<T: ?Sized> Clone for Held<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Static(held) => Self::Static(held),
            Self::Counted(held) => Self::Counted(Arc::clone(held)),
        }
    }
}

type Make = dyn Fn() -> Box<dyn Layout> + Send + Sync;

/// A layout that databases can be opened with.
#[derive(Clone)]
pub struct LayoutEntry {
    /// Its name: what users write and databases say.
    pub name: &'static str,
    /// One line for people.
    pub about: &'static str,
    make: Held<Make>,
}

impl LayoutEntry {
    /// A layout of yours. `make` gives a new one at each opening, whose [`Layout::name`] is `name`.
    pub fn new(
        name: &'static str,
        about: &'static str,
        make: impl Fn() -> Box<dyn Layout> + Send + Sync + 'static,
    ) -> Self {
        Self { name, about, make: Held::Counted(Arc::new(make)) }
    }

    const fn built_in(name: &'static str, about: &'static str, make: &'static Make) -> Self {
        Self { name, about, make: Held::Static(make) }
    }

    /// The layout itself.
    pub fn make(&self) -> Box<dyn Layout> {
        (self.make)()
    }
}

impl fmt::Debug for LayoutEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LayoutEntry").field("name", &self.name).finish_non_exhaustive()
    }
}

/// All built-in layouts; the first one is the default.
pub const LAYOUTS: &[LayoutEntry] = &[
    LayoutEntry::built_in(
        "flat",
        "values in sorted rows, one lookup a read; the commitment beside them may lag",
        &|| Box::new(Flat::new()),
    ),
    LayoutEntry::built_in(
        "patricia-path",
        "trie nodes as rows by path, values in leaves; latest state only",
        &|| Box::new(Patricia::new(ByPath)),
    ),
    LayoutEntry::built_in(
        "patricia-hash",
        "trie nodes as rows by hash, values in leaves; old roots stay readable",
        &|| Box::new(Patricia::new(ByHash)),
    ),
];

/// The built-in layout with a name.
///
/// # Errors
/// [`Error::UnknownName`] with the names there are.
pub fn layout(name: &str) -> Result<&'static LayoutEntry, Error> {
    named(LAYOUTS, name)
}

/// The layout of a list with a name.
pub(crate) fn named<'a>(layouts: &'a [LayoutEntry], name: &str) -> Result<&'a LayoutEntry, Error> {
    let found = layouts.iter().find(|entry| entry.name == name);
    found.ok_or_else(|| Error::unknown_name("layout", name, layouts.iter().map(|entry| entry.name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_named_as_their_layouts() {
        for entry in LAYOUTS {
            assert_eq!(entry.name, entry.make().name());
            assert_eq!(layout(entry.name).unwrap().name, entry.name);
        }
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_known_ones() {
        let error = layout("verkel").unwrap_err();
        let known: Vec<&str> = LAYOUTS.iter().map(|entry| entry.name).collect();
        assert_eq!(
            error.to_string(),
            format!("no layout named `verkel`; known layouts: {}", known.join(", "))
        );
    }
}
