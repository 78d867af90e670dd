//! A JSON value that knows where it stands, so that every complaint names the field and the value.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use flagstone_core::felt::FeltError;
use flagstone_core::types::{ClassHash, ContractAddress, ParseError, TrieKey};

use super::error::{InputError, InputErrorKind, quoted};
use super::json::Json;

const A_FELT: &str = "a string with a felt in hexadecimal, such as \"0x1f\"";

/// The way from an update's outermost object to a value. Built on the stack; becomes a text only in an error.
#[derive(Clone, Copy)]
pub(super) enum Path<'a> {
    Root,
    Field(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
    /// A name that is data, such as an address in the feeder gateway's spelling.
    Name(&'a Path<'a>, &'a str),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Field(Self::Root, name) => f.write_str(name),
            Self::Field(parent, name) => write!(f, "{parent}.{name}"),
            Self::Index(parent, index) => write!(f, "{parent}[{index}]"),
            Self::Name(parent, name) => write!(f, "{parent}[{}]", quoted(name)),
        }
    }
}

/// A value and the way to it.
pub(super) struct Node<'a> {
    pub json: &'a Json<'a>,
    pub path: Path<'a>,
}

/// The name of an entry, where it is data.
pub(super) struct EntryName<'a> {
    name: &'a str,
    path: Path<'a>,
}

impl Node<'_> {
    /// A field of an object that may have any others. Null is the same as absent.
    pub fn get<'n>(&'n self, name: &'n str) -> Result<Option<Node<'n>>, InputError> {
        let mut found = None;
        for (_, json) in self.object()?.iter().filter(|(field, _)| field == name) {
            let node = Node { json, path: Path::Field(&self.path, name) };
            if found.is_some() {
                return Err(node.conflict("the field is given twice; keep one".into()));
            }
            found = Some(node);
        }
        Ok(found.filter(|node| *node.json != Json::Null))
    }

    /// The fields of an object that may have these and no others. Null is the same as absent.
    pub fn fields<const N: usize>(
        &self,
        known: [&'static str; N],
    ) -> Result<[Option<Node<'_>>; N], InputError> {
        self.only_fields(known, "unknown field, which could be a change to the state")
    }

    /// Like [`Node::fields`], saying of another field what `unknown` says.
    pub fn only_fields<const N: usize>(
        &self,
        known: [&'static str; N],
        unknown: &str,
    ) -> Result<[Option<Node<'_>>; N], InputError> {
        for (name, json) in self.object()? {
            if !known.contains(&name.as_ref()) {
                let node = Node { json, path: Path::Name(&self.path, name) };
                let known = known.join(", ");
                return Err(node.wrong(format!("{unknown}; known here: {known}")));
            }
        }
        let mut found = [const { None }; N];
        for (place, name) in found.iter_mut().zip(known) {
            *place = self.get(name)?;
        }
        Ok(found)
    }

    /// What this wraps under a name. Beside it there must not be another diff: one of the two would be lost.
    pub fn unwrap_field<'n>(&'n self, name: &'n str) -> Result<Option<Node<'n>>, InputError> {
        let inner = self.get(name)?;
        for other in ["state_diff", "state_update"].into_iter().filter(|other| *other != name) {
            if let (Some(_), Some(second)) = (&inner, self.get(other)?) {
                return Err(second.conflict(format!("there is a {name:?} beside it; keep one of them")));
            }
        }
        Ok(inner)
    }

    /// The items of a list.
    pub fn items(&self) -> Result<impl Iterator<Item = Node<'_>>, InputError> {
        let Json::List(items) = self.json else { return Err(self.wrong_type("a list")) };
        let item = |(index, json)| Node { json, path: Path::Index(&self.path, index) };
        Ok(items.iter().enumerate().map(item))
    }

    /// The entries of an object whose names are data; none if this is no object.
    pub fn entries(&self) -> Option<impl Iterator<Item = (EntryName<'_>, Node<'_>)>> {
        let Json::Object(fields) = self.json else { return None };
        Some(fields.iter().map(|(name, json)| {
            let path = Path::Name(&self.path, name);
            (EntryName { name, path }, Node { json, path })
        }))
    }

    /// The contract an entry is about, which the two spellings name differently.
    pub fn address(
        &self,
        address: Option<Node<'_>>,
        contract_address: Option<Node<'_>>,
    ) -> Result<ContractAddress, InputError> {
        match (address, contract_address) {
            (Some(_), Some(second)) => {
                Err(second.conflict("there is an \"address\" beside it; keep one of them".into()))
            }
            (address, contract_address) => self.need(address.or(contract_address), "address")?.parse(),
        }
    }

    /// A field of this that must be there and is a felt.
    pub fn need<'n>(&self, field: Option<Node<'n>>, name: &str) -> Result<Node<'n>, InputError> {
        self.need_as(field, name, A_FELT)
    }

    /// A field of this that must be there; what is `expected` is for the error.
    pub fn need_as<'n>(
        &self,
        field: Option<Node<'n>>,
        name: &str,
        expected: &str,
    ) -> Result<Node<'n>, InputError> {
        field.ok_or_else(|| self.missing(name, expected))
    }

    /// The items of a list, each read.
    pub fn list<T>(&self, read: impl Fn(&Node<'_>) -> Result<T, InputError>) -> Result<Vec<T>, InputError> {
        self.items()?.map(|item| read(&item)).collect()
    }

    pub fn parse<T: FromStr<Err = ParseError>>(&self) -> Result<T, InputError> {
        self.text(A_FELT)?.parse().map_err(|error| self.wrong(felt_problem(&error)))
    }

    /// The hash of a class that has a leaf in the classes trie.
    pub fn sierra_class_hash(&self) -> Result<ClassHash, InputError> {
        let class_hash: ClassHash = self.parse()?;
        TrieKey::try_from(class_hash.0).map_err(|error| self.wrong(error.to_string()))?;
        Ok(class_hash)
    }

    pub fn text(&self, expected: &str) -> Result<&str, InputError> {
        match self.json {
            Json::Text(text) => Ok(text),
            _ => Err(self.wrong_type(expected)),
        }
    }

    fn object(&self) -> Result<&[(Cow<'_, str>, Json<'_>)], InputError> {
        match self.json {
            Json::Object(fields) => Ok(fields),
            _ => Err(self.wrong_type("an object")),
        }
    }

    pub fn wrong_type(&self, expected: &str) -> InputError {
        self.wrong(format!("expected {expected}, found {}", self.json.describe()))
    }

    /// This value cannot be right.
    pub fn wrong(&self, problem: impl Into<String>) -> InputError {
        InputError::new(InputErrorKind::Field, problem).at_field(self.path).with_value(self.json.shown())
    }

    /// This value could be right, but something else contradicts it.
    pub fn conflict(&self, problem: String) -> InputError {
        InputError::new(InputErrorKind::Conflict, problem).at_field(self.path).with_value(self.json.shown())
    }

    pub fn missing(&self, name: &str, expected: &str) -> InputError {
        InputError::new(InputErrorKind::Field, format!("the field is missing; expected {expected}"))
            .at_field(Path::Field(&self.path, name))
    }
}

impl EntryName<'_> {
    pub fn parse<T: FromStr<Err = ParseError>>(&self) -> Result<T, InputError> {
        self.name.parse().map_err(|error| {
            InputError::new(InputErrorKind::Field, felt_problem(&error))
                .at_field(self.path)
                .with_value(Some(quoted(self.name)))
        })
    }
}

fn felt_problem(error: &ParseError) -> String {
    match error {
        ParseError::Felt(FeltError::TooLarge) | ParseError::Range(_) => error.to_string(),
        _ => format!("{error}; expected a felt in hexadecimal, such as 0x1f"),
    }
}
