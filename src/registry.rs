//! The layouts there are. The only place that names them: engine, tests, benches and CLI iterate this list.

use flagstone_core::layout::Layout;
use flagstone_flat::Flat;
use flagstone_patricia::{ByHash, ByPath, Patricia};

use crate::error::Error;

/// A layout that databases can be opened with.
#[derive(Clone, Copy)]
pub struct LayoutEntry {
    /// Its name: what users write and databases say.
    pub name: &'static str,
    /// One line for people.
    pub about: &'static str,
    make: fn() -> Box<dyn Layout>,
}

impl LayoutEntry {
    /// The layout itself.
    pub fn make(&self) -> Box<dyn Layout> {
        (self.make)()
    }
}

impl std::fmt::Debug for LayoutEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LayoutEntry").field("name", &self.name).finish_non_exhaustive()
    }
}

/// All layouts; the first one is the default.
pub const LAYOUTS: &[LayoutEntry] = &[
    LayoutEntry {
        name: "flat",
        about: "values in sorted rows, one lookup a read; the commitment beside them may lag",
        make: || Box::new(Flat::new()),
    },
    LayoutEntry {
        name: "patricia-path",
        about: "trie nodes as rows by path, values in leaves; latest state only",
        make: || Box::new(Patricia::new(ByPath)),
    },
    LayoutEntry {
        name: "patricia-hash",
        about: "trie nodes as rows by hash, values in leaves; old roots stay readable",
        make: || Box::new(Patricia::new(ByHash)),
    },
];

/// The layout with a name.
///
/// # Errors
/// [`Error::UnknownName`] with the names there are.
pub fn layout(name: &str) -> Result<&'static LayoutEntry, Error> {
    LAYOUTS
        .iter()
        .find(|entry| entry.name == name)
        .ok_or_else(|| Error::unknown_name("layout", name, LAYOUTS.iter().map(|entry| entry.name)))
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
        let expected = "no layout named `verkel`; known layouts: flat, patricia-path, patricia-hash";
        assert_eq!(error.to_string(), expected);
    }
}
