//! Finds the objects in a stream of JSON text: one alone, one per line, one behind another, or in arrays. Where a list can
//! be what is looked for, it counts as one object.
//!
//! It holds one object at a time and only looks for its end; whether it is JSON the parser says. An object that is
//! not closed is held up to the limit, so before blaming the limit or the end of the file we ask the parser for an
//! error further up: a line that was cut in the middle of a long file is reported where it is.

use std::io::{BufRead, Read};

use super::decompress::Text;
use super::error::{InputError, InputErrorKind};
use super::json::{Json, NotJson};

/// Largest accepted text of one update.
const UPDATE_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Largest accepted number of values in one update. They take up to 16 times the memory of their text.
const UPDATE_VALUES_MAX: usize = 1 << 24;
const BYTE_ORDER_MARK: [u8; 3] = [0xef, 0xbb, 0xbf];

/// The objects of an input, one by one.
pub(super) struct Frames {
    text: Text,
    here: Position,
    place: Place,
    object: Vec<u8>,
    /// What the objects are, for messages.
    pub what: &'static str,
    /// Whether an array is one of the objects, and not a sequence of them.
    pub lists_are_objects: bool,
    pub bytes_max: usize,
    pub values_max: usize,
}

/// Line and column, from 1, of the next byte.
#[derive(Clone, Copy)]
struct Position {
    line: u64,
    column: u64,
}

/// Where we are between objects; within an array with the line where it begins.
#[derive(Clone, Copy)]
enum Place {
    Top,
    ArrayBegin(u64),
    AfterItem(u64),
    AfterComma(u64),
}

/// The text of one object.
pub(super) struct Frame<'a> {
    pub bytes: &'a [u8],
    begin: Position,
}

impl Frame<'_> {
    pub fn line(&self) -> u64 {
        self.begin.line
    }

    /// Places the parser's complaint in the file.
    pub fn explain(&self, problem: &NotJson) -> InputError {
        let line = self.begin.line + problem.line.saturating_sub(1);
        let column =
            if problem.line <= 1 { self.begin.column + problem.column.max(1) - 1 } else { problem.column };
        let NotJson { problem, .. } = problem;
        let begin = self.begin.line;
        InputError::new(
            InputErrorKind::Syntax,
            format!(
                "not valid JSON at column {column} of the line: {problem} \
                 (in the object that begins at line {begin})"
            ),
        )
        .at_line(line)
    }
}

impl Frames {
    pub fn new(text: Text) -> Self {
        Self {
            text,
            here: Position { line: 1, column: 1 },
            place: Place::Top,
            object: Vec::new(),
            what: "a state update",
            lists_are_objects: false,
            bytes_max: UPDATE_BYTES_MAX,
            values_max: UPDATE_VALUES_MAX,
        }
    }

    pub fn text(&self) -> &Text {
        &self.text
    }

    /// All bytes of an input that is not JSON.
    pub fn rest(&mut self) -> Result<Vec<u8>, InputError> {
        let mut bytes = Vec::new();
        match self.text.reader.by_ref().take(self.bytes_max as u64 + 1).read_to_end(&mut bytes) {
            Ok(_) if bytes.len() > self.bytes_max => Err(InputError::new(
                InputErrorKind::TooLarge,
                format!("it is larger than {} bytes", self.bytes_max),
            )),
            Ok(_) => Ok(bytes),
            Err(error) => Err(self.text.explain(&error)),
        }
    }

    /// Skips a byte order mark, which some editors put in front of UTF-8.
    pub fn skip_byte_order_mark(&mut self) -> Result<(), InputError> {
        for (at, expected) in BYTE_ORDER_MARK.into_iter().enumerate() {
            match self.peek()? {
                Some(byte) if byte == expected => self.text.reader.consume(1),
                _ if at == 0 => break,
                _ => return Err(self.unexpected(BYTE_ORDER_MARK[0])),
            }
        }
        Ok(())
    }

    /// The next object; none at the end of the input.
    pub fn next(&mut self) -> Result<Option<Frame<'_>>, InputError> {
        loop {
            let Some(byte) = self.peek()? else {
                return match self.place {
                    Place::Top => Ok(None),
                    Place::ArrayBegin(line) | Place::AfterItem(line) | Place::AfterComma(line) => {
                        Err(self.cut_off("array", line))
                    }
                };
            };
            self.place = match (byte, self.place) {
                (b' ' | b'\t' | b'\r' | b'\n', place) => place,
                (b'[', Place::Top) if self.lists_are_objects => return self.read_object().map(Some),
                (b'[', Place::Top) => Place::ArrayBegin(self.here.line),
                (b',', Place::AfterItem(line)) => Place::AfterComma(line),
                (b']', Place::ArrayBegin(_) | Place::AfterItem(_)) => Place::Top,
                (b'{', Place::Top) => return self.read_object().map(Some),
                (b'{', Place::ArrayBegin(line) | Place::AfterComma(line)) => {
                    self.place = Place::AfterItem(line);
                    return self.read_object().map(Some);
                }
                _ => return Err(self.unexpected(byte)),
            };
            self.text.reader.consume(1);
            self.here.advance(&[byte]);
        }
    }

    fn read_object(&mut self) -> Result<Frame<'_>, InputError> {
        let begin = self.here;
        let mut scanner = Scanner::default();
        self.object.clear();
        loop {
            let chunk = match self.text.reader.fill_buf() {
                Ok(chunk) => chunk,
                Err(error) => return Err(self.text.explain(&error).at_line(self.here.line)),
            };
            if chunk.is_empty() {
                return Err(self.first_problem(begin, self.cut_off("object", begin.line)));
            }
            let end = scanner.find_end(chunk);
            let taken = end.unwrap_or(chunk.len());
            self.object.extend_from_slice(&chunk[..taken]);
            self.here.advance(&chunk[..taken]);
            self.text.reader.consume(taken);
            if self.object.len() > self.bytes_max || scanner.values > self.values_max {
                return Err(self.first_problem(begin, self.too_large(begin)));
            }
            if end.is_some() {
                return Ok(Frame { bytes: &self.object, begin });
            }
        }
    }

    /// The next byte, which is not taken.
    pub fn peek(&mut self) -> Result<Option<u8>, InputError> {
        match self.text.reader.fill_buf() {
            Ok(chunk) => Ok(chunk.first().copied()),
            Err(error) => Err(self.text.explain(&error).at_line(self.here.line)),
        }
    }

    /// The parser's complaint about the object so far, if it has one, else the other error.
    fn first_problem(&self, begin: Position, otherwise: InputError) -> InputError {
        match Json::find_problem(&self.object) {
            Some(problem) if !problem.cut_off => Frame { bytes: &self.object, begin }.explain(&problem),
            _ => otherwise,
        }
    }

    fn cut_off(&self, what: &str, begin: u64) -> InputError {
        let end = self.here.line;
        InputError::new(
            InputErrorKind::Syntax,
            format!(
                "the {what} that begins here is cut off at line {end}, where the input ends; \
                 fetch the file again"
            ),
        )
        .at_line(begin)
    }

    fn too_large(&self, begin: Position) -> InputError {
        let Self { what, bytes_max, values_max, .. } = self;
        InputError::new(
            InputErrorKind::TooLarge,
            format!(
                "the object that begins here is too large; \
                 {what} may have at most {bytes_max} bytes and {values_max} values"
            ),
        )
        .at_line(begin.line)
    }

    fn unexpected(&self, byte: u8) -> InputError {
        let found = match byte {
            b'!'..=b'~' => format!("`{}`", char::from(byte)),
            _ => format!("byte {byte:#04x}"),
        };
        let or = if self.lists_are_objects { "an array" } else { "an array of them" };
        let top = format!("{} as a JSON object, or {or}", self.what);
        let (expected, array) = match self.place {
            Place::Top => (top.as_str(), None),
            Place::ArrayBegin(line) => ("an object or `]`", Some(line)),
            Place::AfterItem(line) => ("`,` or `]`", Some(line)),
            Place::AfterComma(line) => ("an object after `,`", Some(line)),
        };
        let array = array.map_or(String::new(), |line| format!(" in the array that begins at line {line}"));
        InputError::new(InputErrorKind::Syntax, format!("expected {expected}{array}, found {found}"))
            .at_line(self.here.line)
    }
}

impl Position {
    fn advance(&mut self, over: &[u8]) {
        self.line += over.iter().filter(|byte| **byte == b'\n').count() as u64;
        match over.iter().rposition(|byte| *byte == b'\n') {
            Some(at) => self.column = (over.len() - at) as u64,
            None => self.column += over.len() as u64,
        }
    }
}

/// Looks for the brace that closes an object, through any number of chunks.
#[derive(Default)]
struct Scanner {
    depth: usize,
    in_text: bool,
    escaped: bool,
    /// At most this many values have begun.
    values: usize,
}

impl Scanner {
    /// Length of the part of the chunk that belongs to the object, if the object ends in this chunk.
    fn find_end(&mut self, chunk: &[u8]) -> Option<usize> {
        for (at, byte) in chunk.iter().enumerate() {
            match (byte, self.in_text) {
                _ if self.escaped => self.escaped = false,
                (b'\\', true) => self.escaped = true,
                (b'"', _) => self.in_text = !self.in_text,
                (b'{' | b'[', false) => {
                    self.depth += 1;
                    self.values += 1;
                }
                (b'}' | b']', false) => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return Some(at + 1);
                    }
                }
                (b',', false) => self.values += 1,
                _ => {}
            }
        }
        None
    }
}
