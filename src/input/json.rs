//! A JSON value that keeps every field of an object, in order and twice if it is there twice.
//!
//! The usual JSON tree keeps the last of two equal names and drops the first, and with it writes to the state. Texts
//! borrow from the input unless they have escapes. Nesting is bounded by the parser (128 levels).

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::error::quoted;

/// With serde_json's feature `arbitrary_precision`, which another crate of the build may turn on, a number arrives as
/// an object with this one name.
const NUMBER_TOKEN: &str = "$serde_json::private::Number";

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Json<'a> {
    Null,
    Bool(bool),
    /// Its digits; the few that matter are parsed where they are used.
    Number(String),
    Text(Cow<'a, str>),
    List(Vec<Json<'a>>),
    Object(Vec<(Cow<'a, str>, Json<'a>)>),
}

/// Why some bytes are not JSON. Line and column count from 1 at the first of these bytes.
pub(super) struct NotJson {
    pub problem: String,
    pub line: u64,
    pub column: u64,
    /// The bytes end too soon, but what is there is right.
    pub cut_off: bool,
}

impl<'a> Json<'a> {
    pub fn parse(bytes: &'a [u8]) -> Result<Self, NotJson> {
        serde_json::from_str(utf8(bytes)?).map_err(|error| not_json(&error))
    }

    /// What stops these bytes from being JSON, found without building a tree.
    pub fn find_problem(bytes: &[u8]) -> Option<NotJson> {
        let check = |text| serde_json::from_str::<IgnoredAny>(text).map_err(|error| not_json(&error));
        utf8(bytes).and_then(check).err()
    }

    /// What it is, for "expected this, found that".
    pub fn describe(&self) -> &'static str {
        match self {
            Json::Null => "null",
            Json::Bool(_) => "a boolean",
            Json::Number(_) => "a number",
            Json::Text(_) => "a string",
            Json::List(_) => "a list",
            Json::Object(_) => "an object",
        }
    }

    /// The value itself, if it fits into a message.
    pub fn shown(&self) -> Option<String> {
        match self {
            Json::Bool(value) => Some(value.to_string()),
            Json::Number(digits) => Some(digits.clone()),
            Json::Text(text) => Some(quoted(text)),
            Json::Null | Json::List(_) | Json::Object(_) => None,
        }
    }
}

fn utf8(bytes: &[u8]) -> Result<&str, NotJson> {
    std::str::from_utf8(bytes).map_err(|error| {
        let before = &bytes[..error.valid_up_to()];
        let line_begin = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        NotJson {
            problem: format!("byte {:#04x} is not UTF-8", bytes[before.len()]),
            line: 1 + before.iter().filter(|byte| **byte == b'\n').count() as u64,
            column: (before.len() - line_begin) as u64 + 1,
            cut_off: error.error_len().is_none(),
        }
    })
}

fn not_json(error: &serde_json::Error) -> NotJson {
    let text = error.to_string();
    let problem = text.rsplit_once(" at line ").map_or(text.as_str(), |(problem, _)| problem);
    NotJson {
        problem: problem.to_owned(),
        line: error.line() as u64,
        column: error.column() as u64,
        cut_off: error.is_eof(),
    }
}

impl<'de> Deserialize<'de> for Json<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Tree)
    }
}

struct Tree;

impl<'de> Visitor<'de> for Tree {
    type Value = Json<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_unit<E: Error>(self) -> Result<Json<'de>, E> {
        Ok(Json::Null)
    }
    fn visit_bool<E: Error>(self, value: bool) -> Result<Json<'de>, E> {
        Ok(Json::Bool(value))
    }
    fn visit_u64<E: Error>(self, value: u64) -> Result<Json<'de>, E> {
        Ok(Json::Number(value.to_string()))
    }
    fn visit_i64<E: Error>(self, value: i64) -> Result<Json<'de>, E> {
        Ok(Json::Number(value.to_string()))
    }
    fn visit_f64<E: Error>(self, value: f64) -> Result<Json<'de>, E> {
        Ok(Json::Number(format!("{value:?}")))
    }
    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Json<'de>, E> {
        Ok(Json::Text(Cow::Borrowed(text)))
    }
    fn visit_str<E: Error>(self, text: &str) -> Result<Json<'de>, E> {
        Ok(Json::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Json<'de>, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Json::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Json<'de>, A::Error> {
        let mut fields = Vec::new();
        // A name is read as a value, because only so can it borrow.
        while let Some(name) = access.next_key::<Json<'de>>()? {
            match (name, access.next_value()?) {
                (Json::Text(name), Json::Text(digits)) if name == NUMBER_TOKEN && fields.is_empty() => {
                    return Ok(Json::Number(digits.into_owned()));
                }
                (Json::Text(name), value) => fields.push((name, value)),
                (other, _) => return Err(A::Error::custom(format!("{} as a name", other.describe()))),
            }
        }
        Ok(Json::Object(fields))
    }
}
