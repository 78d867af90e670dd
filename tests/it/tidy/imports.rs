//! Which file of a crate imports which, read from the sources: from `use` and from paths in code.
//!
//! A path imports the file of the module that it leads to, as far as it leads through modules by their own names. What a
//! parent re-exports from a child is the parent's. Items that only tests have are left out, and so are files of modules that
//! only tests have. Nothing is known of types: where a module and something else have one name, it is taken for the module's.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;

/// Texts of files by their names.
pub type Sources = BTreeMap<String, String>;

/// A name, a sign, or `::`.
#[derive(Clone, Copy)]
struct Token<'a> {
    text: &'a str,
    line: usize,
}

fn tokens(source: &str) -> Vec<Token<'_>> {
    let (mut found, mut rest, mut line) = (Vec::new(), source, 1);
    while !rest.is_empty() {
        let (length, is_code) = piece(rest);
        let (text, behind) = rest.split_at(length);
        found.extend(is_code.then_some(Token { text, line }));
        line += text.matches('\n').count();
        rest = behind;
    }
    found
}

/// Length of the comment, literal, name or sign that a text begins with, and whether it is code.
fn piece(text: &str) -> (usize, bool) {
    if text.starts_with("//") {
        return (text.find('\n').unwrap_or(text.len()), false);
    }
    if text.starts_with("/*") {
        return (block_comment(text), false);
    }
    if let Some(length) = string(text).or_else(|| character(text)) {
        return (length, false);
    }
    let name = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    match text.chars().next() {
        _ if name > 0 => (name, true),
        _ if text.starts_with("::") => (2, true),
        Some(sign) => (sign.len_utf8(), !sign.is_whitespace()),
        None => (0, false),
    }
}

fn block_comment(text: &str) -> usize {
    let (mut at, mut depth) = (0, 0);
    while at < text.len() {
        let rest = &text.as_bytes()[at..];
        depth += i32::from(rest.starts_with(b"/*")) - i32::from(rest.starts_with(b"*/"));
        at += if rest.starts_with(b"/*") || rest.starts_with(b"*/") { 2 } else { 1 };
        if depth == 0 {
            break;
        }
    }
    at
}

/// Length of the string that a text begins with.
fn string(text: &str) -> Option<usize> {
    let behind = text.trim_start_matches(['b', 'c', 'r']);
    let prefix = text.len() - behind.len();
    if !["", "b", "c", "r", "br", "cr"].contains(&&text[..prefix]) {
        return None;
    }
    if text[..prefix].ends_with('r') {
        let hashes = behind.len() - behind.trim_start_matches('#').len();
        let content = behind[hashes..].strip_prefix('"')?;
        let end = format!("\"{}", "#".repeat(hashes));
        return Some(text.len() - content.len() + content.find(&end)? + end.len());
    }
    let mut escaped = false;
    let content = behind.strip_prefix('"')?;
    let end = content.find(|c| {
        let ends = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        ends
    })?;
    Some(text.len() - content.len() + end + 1)
}

/// Length of the character, or of a lifetime's quote, that a text begins with.
fn character(text: &str) -> Option<usize> {
    let content = text.strip_prefix("b'").or_else(|| text.strip_prefix('\''))?;
    let begin = text.len() - content.len();
    let first = content.chars().next()?;
    if first == '\\' {
        return Some(begin + 2 + content[2..].find('\'')? + 1);
    }
    let is_character = content[first.len_utf8()..].starts_with('\'');
    Some(begin + if is_character { first.len_utf8() + 1 } else { 0 })
}

fn begins(tokens: &[Token<'_>], with: &[&str]) -> bool {
    tokens.len() >= with.len() && tokens.iter().zip(with).all(|(token, with)| token.text == *with)
}

/// The code without items, fields and statements that only tests have.
fn without_tests<'a>(tokens: &[Token<'a>]) -> Vec<Token<'a>> {
    let (mut kept, mut rest) = (Vec::new(), tokens);
    while let Some((first, behind)) = rest.split_first() {
        let is_test = begins(rest, &["#", "[", "cfg", "(", "test", ")"])
            || begins(rest, &["#", "[", "cfg", "(", "all", "(", "test"]);
        if is_test {
            rest = behind_item(rest);
        } else {
            kept.push(*first);
            rest = behind;
        }
    }
    kept
}

/// What follows an item, field or statement that begins with attributes.
fn behind_item<'a, 'b>(mut tokens: &'a [Token<'b>]) -> &'a [Token<'b>] {
    while begins(tokens, &["#", "["]) {
        let closing = |depth: &mut i32, token: &Token<'_>| {
            *depth += i32::from(token.text == "[") - i32::from(token.text == "]");
            Some(token.text == "]" && *depth == 0)
        };
        let end = tokens.iter().scan(0, closing).position(|closes| closes);
        tokens = &tokens[end.map_or(tokens.len(), |end| end + 1)..];
    }
    const LISTED: [&str; 10] =
        ["pub", "fn", "const", "unsafe", "impl", "struct", "enum", "type", "trait", "static"];
    let commas_end = tokens.first().is_none_or(|first| !LISTED.contains(&first.text));
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate() {
        match token.text {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" if depth == 0 => return &tokens[at..],
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 && (["}", ";"].contains(&token.text) || token.text == "," && commas_end) {
            return &tokens[at + 1..];
        }
    }
    &[]
}

/// A path in a module's code.
struct Path<'a> {
    module: String,
    segments: Vec<&'a str>,
    /// The name that a `use` gives it.
    name: Option<&'a str>,
    line: usize,
}

/// What a file says of modules and paths.
#[derive(Default)]
struct Contents<'a> {
    /// Modules with files of their own.
    declared: Vec<String>,
    /// Modules in this file.
    inline: Vec<String>,
    paths: Vec<Path<'a>>,
}

/// A module's path from the crate's root, which is empty.
fn child(module: &str, name: &str) -> String {
    if module.is_empty() { name.to_owned() } else { format!("{module}::{name}") }
}

fn parent(module: &str) -> &str {
    module.rsplit_once("::").map_or("", |(parent, _)| parent)
}

fn contents<'a>(module: &str, tokens: &[Token<'a>]) -> Contents<'a> {
    let mut contents = Contents::default();
    let mut scopes = vec![(module.to_owned(), 0)];
    let (mut at, mut depth) = (0, 0);
    while let Some(token) = tokens.get(at) {
        let rest = &tokens[at..];
        let scope = scopes.last().map_or("", |(scope, _)| scope).to_owned();
        let text = |ahead: usize| rest.get(ahead).map_or("", |token| token.text);
        at += match token.text {
            "{" => {
                depth += 1;
                1
            }
            "}" => {
                depth -= 1;
                scopes.pop_if(|(_, inside)| *inside > depth);
                1
            }
            "mod" if text(2) == ";" => {
                contents.declared.push(child(&scope, text(1)));
                3
            }
            "mod" if text(2) == "{" => {
                contents.inline.push(child(&scope, text(1)));
                depth += 1;
                scopes.push((child(&scope, text(1)), depth));
                3
            }
            "pub" if begins(rest, &["pub", "(", "in"]) => {
                rest.iter().position(|token| token.text == ")").unwrap_or(rest.len())
            }
            "use" if text(1) != "<" => 1 + use_tree(&rest[1..], &scope, &[], &mut contents.paths),
            name if is_name(name) => chain(rest, &scope, &mut contents.paths),
            "::" if is_name(text(1)) => 2,
            _ => 1,
        };
    }
    contents
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Reads a path in code, from its first name on. Returns how many tokens it has.
fn chain<'a>(tokens: &[Token<'a>], module: &str, paths: &mut Vec<Path<'a>>) -> usize {
    let mut length = 1;
    while begins(&tokens[length..], &["::"]) && tokens.get(length + 1).is_some_and(|next| is_name(next.text))
    {
        length += 2;
    }
    if length > 1 {
        let segments = tokens[..length].iter().step_by(2).map(|token| token.text).collect();
        paths.push(Path { module: module.to_owned(), segments, name: None, line: tokens[0].line });
    }
    length
}

/// Reads one tree of a `use`, below what leads to it. Returns how many tokens it has.
fn use_tree<'a>(tokens: &[Token<'a>], module: &str, above: &[&'a str], paths: &mut Vec<Path<'a>>) -> usize {
    let text = |at: usize| tokens.get(at).map_or(";", |token| token.text);
    let (mut segments, mut at) = (above.to_vec(), 0);
    loop {
        match text(at) {
            "{" => {
                at += 1;
                while !["}", ";"].contains(&text(at)) {
                    at += use_tree(&tokens[at..], module, &segments, paths);
                    at += usize::from(text(at) == ",");
                }
                return at + 1;
            }
            ";" | "}" => return at,
            "*" => {}
            "self" if !segments.is_empty() => {}
            name => segments.push(name),
        }
        at += 1;
        if text(at) != "::" {
            break;
        }
        at += 1;
    }
    let renamed = text(at) == "as";
    let name = if renamed { tokens.get(at + 1).map(|name| name.text) } else { segments.last().copied() };
    paths.push(Path { module: module.to_owned(), segments, name, line: tokens[0].line });
    at + if renamed { 2 } else { 0 }
}

/// An import: the file and line where it is first, and the path there.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Import {
    place: String,
    path: String,
}

/// Files, and which of them each one imports.
#[derive(Debug, Default)]
pub struct Imports {
    of: BTreeMap<String, BTreeMap<String, Import>>,
}

/// Files that import each other in a circle.
#[derive(Debug, PartialEq, Eq)]
pub struct Circle {
    /// All that are on circles with one another.
    pub files: Vec<String>,
    /// The imports of a shortest circle among them, each with its line.
    pub closed_by: Vec<String>,
}

impl fmt::Display for Circle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} files in circles: {}", self.files.len(), self.files.join(", "))?;
        self.closed_by.iter().try_for_each(|import| write!(f, "\n    {import}"))
    }
}

/// The file of a module that is declared in another file.
fn file_of(sources: &Sources, declaring: &str, of_module: &str, declared: &str) -> Option<String> {
    let (folder, name) = declaring.rsplit_once('/')?;
    let is_top = ["lib.rs", "main.rs", "mod.rs"].contains(&name);
    let folder = if is_top { folder.to_owned() } else { format!("{folder}/{}", name.strip_suffix(".rs")?) };
    let below = declared.strip_prefix(of_module)?.trim_start_matches("::").replace("::", "/");
    let names = [format!("{folder}/{below}.rs"), format!("{folder}/{below}/mod.rs")];
    names.into_iter().find(|name| sources.contains_key(name))
}

/// The modules of a crate.
#[derive(Default)]
struct Modules {
    /// Their files.
    files: BTreeMap<String, String>,
    /// What a `use` names in a module, if it is a module.
    named: BTreeMap<String, String>,
}

impl Modules {
    /// The module that a path leads to, as far as it leads through modules, and what is left of the path there.
    fn follow<'a, 'b>(&self, path: &'a Path<'b>) -> Option<(String, &'a [&'b str])> {
        let (mut at, mut segments) = (path.module.clone(), path.segments.as_slice());
        match *segments.first()? {
            "crate" => (at, segments) = (String::new(), &segments[1..]),
            "self" => segments = &segments[1..],
            "super" => {
                while let Some((&"super", behind)) = segments.split_first() {
                    (at, segments) = (parent(&at).to_owned(), behind);
                }
            }
            name if self.files.contains_key(&child(&at, name)) => {}
            name => (at, segments) = (self.named.get(&child(&at, name))?.clone(), &segments[1..]),
        }
        while let Some((name, behind)) = segments.split_first() {
            let below = child(&at, name);
            if !self.files.contains_key(&below) {
                break;
            }
            (at, segments) = (below, behind);
        }
        Some((at, segments))
    }

    /// Takes note of what a `use` names.
    fn name(&mut self, path: &Path<'_>) {
        let module = self.follow(path).filter(|(_, left)| left.is_empty()).map(|(module, _)| module);
        if let Some((module, name)) = module.zip(path.name) {
            self.named.insert(child(&path.module, name), module);
        }
    }
}

impl Imports {
    /// Reads a crate from its first file on.
    pub fn read(sources: &Sources, first: &str) -> Self {
        let mut modules = Modules::default();
        modules.files.insert(String::new(), first.to_owned());
        let mut open = vec![(String::new(), first.to_owned())];
        let (mut paths, mut imports) = (Vec::new(), Self::default());
        while let Some((module, file)) = open.pop() {
            let code = without_tests(&tokens(&sources[&file]));
            let contents = contents(&module, &code);
            for declared in contents.declared {
                let Some(of_declared) = file_of(sources, &file, &module, &declared) else {
                    panic!("{file} declares the module {declared}, which has no file");
                };
                modules.files.insert(declared.clone(), of_declared.clone());
                open.push((declared, of_declared));
            }
            modules.files.extend(contents.inline.into_iter().map(|inline| (inline, file.clone())));
            imports.of.insert(file.clone(), BTreeMap::new());
            paths.extend(contents.paths.into_iter().map(|path| (file.clone(), path)));
        }
        paths.iter().for_each(|(_, path)| modules.name(path));
        for (file, path) in &paths {
            let to = modules.follow(path).and_then(|(module, _)| modules.files.get(&module));
            if let Some(to) = to.filter(|to| *to != file) {
                let import =
                    Import { place: format!("{file}:{}", path.line), path: path.segments.join("::") };
                imports.of.entry(file.clone()).or_default().entry(to.clone()).or_insert(import);
            }
        }
        imports
    }

    /// Whether a file imports another.
    pub fn has(&self, from: &str, to: &str) -> bool {
        self.of.get(from).is_some_and(|imported| imported.contains_key(to))
    }

    /// Takes all files of a folder for one.
    pub fn fold(&mut self, folder: &str) {
        let name = |file: &String| match file.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/')) {
            true => folder.to_owned(),
            false => file.clone(),
        };
        for (file, to) in std::mem::take(&mut self.of) {
            let folded = self.of.entry(name(&file)).or_default();
            for (to, import) in to {
                let to = name(&to);
                if to != name(&file) {
                    folded.entry(to).or_insert(import);
                }
            }
        }
    }

    /// The way from one file to another by as few imports as there can be, both ends included.
    fn way<'a>(&'a self, from: &'a str, to: &str) -> Option<Vec<&'a str>> {
        let (mut before, mut open) = (BTreeMap::new(), VecDeque::from([from]));
        while let Some(at) = open.pop_front() {
            for next in self.of.get(at).into_iter().flat_map(BTreeMap::keys) {
                if !before.contains_key(next.as_str()) {
                    before.insert(next.as_str(), at);
                    open.push_back(next);
                }
            }
        }
        let mut way = vec![before.get_key_value(to)?.0.to_owned()];
        loop {
            let previous = *before.get(way[way.len() - 1])?;
            way.push(previous);
            if previous == from {
                way.reverse();
                return Some(way);
            }
        }
    }

    /// The circles that there are; each file is in one of them at most.
    pub fn circles(&self) -> Vec<Circle> {
        let mut known = BTreeSet::new();
        let mut circles = Vec::new();
        for file in self.of.keys() {
            if known.contains(file) || self.way(file, file).is_none() {
                continue;
            }
            let on_it = |other: &&String| self.way(file, other).and(self.way(other, file)).is_some();
            let files: Vec<String> = self.of.keys().filter(on_it).cloned().collect();
            known.extend(files.iter().cloned());
            let shortest = files.iter().filter_map(|file| self.way(file, file)).min_by_key(Vec::len);
            let closed_by = shortest.unwrap_or_default();
            let closed_by = closed_by.windows(2).map(|ends| self.told(ends[0], ends[1])).collect();
            circles.push(Circle { files, closed_by });
        }
        circles
    }

    fn told(&self, from: &str, to: &str) -> String {
        let Import { place, path } = &self.of[from][to];
        format!("{place} imports {to} ({path})")
    }
}

#[cfg(test)]
mod tests {
    use super::{Circle, Imports};

    fn read(files: &[(&str, &str)]) -> Imports {
        let sources = files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
        Imports::read(&sources.collect(), "src/lib.rs")
    }

    #[track_caller]
    fn assert_circle(files: &[(&str, &str)], expected: &[&str], closed_by: &[&str]) {
        let circle = Circle {
            files: expected.iter().map(|file| (*file).to_owned()).collect(),
            closed_by: closed_by.iter().map(|import| (*import).to_owned()).collect(),
        };
        assert_eq!(read(files).circles(), [circle]);
    }

    #[track_caller]
    fn assert_none(files: &[(&str, &str)]) {
        assert_eq!(read(files).circles(), []);
    }

    #[test]
    fn a_circle_of_two_is_found_with_its_lines() {
        assert_circle(
            &[
                ("src/lib.rs", "mod a;\nmod b;\npub use a::A;\n"),
                ("src/a.rs", "use std::fmt;\n\nuse crate::b::{self, B as Other};\n"),
                ("src/b.rs", "pub struct B;\nuse super::a::A;\n"),
            ],
            &["src/a.rs", "src/b.rs"],
            &["src/a.rs:3 imports src/b.rs (crate::b)", "src/b.rs:2 imports src/a.rs (super::a::A)"],
        );
    }

    #[test]
    fn a_circle_of_three_is_found_in_nested_braces_and_behind_what_is_on_none() {
        assert_circle(
            &[
                ("src/lib.rs", "mod a; mod b; mod c; mod d;"),
                ("src/a.rs", "use crate::{d::D,\n    b::{self as it, deep::{X}}};"),
                ("src/b.rs", "pub use super::c::*;"),
                ("src/c.rs", "pub(crate) use crate::a;"),
                ("src/d.rs", ""),
            ],
            &["src/a.rs", "src/b.rs", "src/c.rs"],
            &[
                "src/a.rs:2 imports src/b.rs (crate::b)",
                "src/b.rs:1 imports src/c.rs (super::c)",
                "src/c.rs:1 imports src/a.rs (crate::a)",
            ],
        );
    }

    #[test]
    fn a_child_that_asks_its_parent_closes_a_circle_with_its_re_export() {
        let parent = ("src/x/mod.rs", "mod y;\nmod z;\npub use y::Y;\npub use z::Z;\n");
        let others = [("src/lib.rs", "mod x;"), ("src/x/z.rs", "pub struct Z;")];
        assert_circle(
            &[parent, others[0], others[1], ("src/x/y.rs", "use super::Z;")],
            &["src/x/mod.rs", "src/x/y.rs"],
            &["src/x/mod.rs:3 imports src/x/y.rs (y::Y)", "src/x/y.rs:1 imports src/x/mod.rs (super::Z)"],
        );
        assert_none(&[parent, others[0], others[1], ("src/x/y.rs", "use super::z::Z;")]);
    }

    #[test]
    fn paths_in_code_count_without_a_use() {
        let lib = ("src/lib.rs", "mod a;");
        assert_circle(
            &[
                lib,
                ("src/a.rs", "mod b;\nfn f() -> u8 {\n    b::g::<u8>(1) + self::b::ONE\n}"),
                ("src/a/b.rs", "impl From<super::A> for B {}\n"),
            ],
            &["src/a.rs", "src/a/b.rs"],
            &["src/a.rs:3 imports src/a/b.rs (b::g)", "src/a/b.rs:1 imports src/a.rs (super::A)"],
        );
        assert_circle(
            &[
                ("src/lib.rs", "mod a; mod c;"),
                ("src/a.rs", "pub mod b;"),
                ("src/a/b.rs", "use crate::c::C;"),
                ("src/c.rs", "use crate::a as it;\nfn f() {\n    it::b::g()\n}"),
            ],
            &["src/a/b.rs", "src/c.rs"],
            &["src/a/b.rs:1 imports src/c.rs (crate::c::C)", "src/c.rs:3 imports src/a/b.rs (it::b::g)"],
        );
        let inner = "pub mod own { use super::X; fn f() { super::super::A::new() } }\nuse self::own::Y;";
        assert_circle(
            &[lib, ("src/a.rs", "mod b; type B = b::own::B;"), ("src/a/b.rs", inner)],
            &["src/a.rs", "src/a/b.rs"],
            &[
                "src/a.rs:1 imports src/a/b.rs (b::own::B)",
                "src/a/b.rs:1 imports src/a.rs (super::super::A::new)",
            ],
        );
    }

    #[test]
    fn comments_texts_tests_and_visibilities_import_nothing() {
        let code = r###"
            //! See [`super::A`].
            /* crate::a::A /* nested */ super::A */
            const TEXTS: [&str; 3] = ["\"super::A", r#"" crate::a::A "#, "//"];
            const SIGNS: [char; 3] = ['"', '\'', 'x'];
            fn f<'a>(of: &'a str) -> char { '"' }
            pub(in crate::a) struct B<'a> {
                #[cfg(test)]
                seen: super::A<u8, u8>,
                text: &'a str,
            }
            #[cfg(test)]
            pub fn g<T, U>(a: super::A) -> [u8; 2] { super::h() }
            #[cfg(all(test, unix))]
            use super::{A, h};
            #[cfg(test)]
            mod tests { use super::super::A; }
        "###;
        let files = [
            ("src/lib.rs", "mod a;"),
            ("src/a.rs", "mod b;\npub use b::B;\n#[cfg(test)]\nmod tests;\n"),
            ("src/a/tests.rs", "use super::*; use super::b::B;"),
        ];
        assert_none(&[files[0], files[1], files[2], ("src/a/b.rs", code)]);
        let behind = format!("{code}\nuse super::A;");
        assert_eq!(read(&[files[0], files[1], files[2], ("src/a/b.rs", &behind)]).circles().len(), 1);
    }

    #[test]
    fn a_folder_taken_for_one_file_hides_its_own_circles_alone() {
        let inside = [
            ("src/lib.rs", "mod a; mod e;"),
            ("src/e/mod.rs", "mod x; pub use x::X;"),
            ("src/e/x.rs", "use super::Y; use crate::a::A;"),
        ];
        let outside =
            ["src/a.rs:1 imports src/e (crate::e::X)", "src/e/x.rs:1 imports src/a.rs (crate::a::A)"];
        for (a, expected) in [("", vec![]), ("use crate::e::X;", vec![outside.map(str::to_owned).to_vec()])] {
            let mut imports = read(&[inside[0], inside[1], inside[2], ("src/a.rs", a)]);
            assert_eq!(imports.circles().len(), 1);
            imports.fold("src/e");
            let closed_by: Vec<_> = imports.circles().into_iter().map(|circle| circle.closed_by).collect();
            assert_eq!(closed_by, expected);
        }
    }
}
