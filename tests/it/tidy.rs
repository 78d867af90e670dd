//! Boundaries that a search can see. `ARCHITECTURE.md` says why each is there.

mod imports;

use std::fs;
use std::path::PathBuf;

use imports::{Circle, Imports};

/// Folders whose files still import each other in circles, and why. Each is taken for one file, so that circles with what is
/// outside are found all the same.
const CIRCLES_INSIDE: &[(&str, &str)] =
    &[("src/database", "being taken apart: recovery opens databases, and is a way to open one")];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(below: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut open = vec![root().join(below)];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
            found.push((name, fs::read_to_string(&path).unwrap()));
        }
    }
    assert!(!found.is_empty(), "nothing below {below}");
    found
}

#[track_caller]
fn check_only_in(below: &str, word: &str, allowed: &[&str]) {
    for (name, text) in rust_files(below) {
        if text.contains(word) {
            assert!(allowed.iter().any(|allowed| name.starts_with(allowed)), "{name} mentions `{word}`");
        }
    }
}

/// The folders of layouts.
fn layouts() -> Vec<String> {
    let names = fs::read_dir(root().join("layouts")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| !["core", "testkit"].contains(&name.as_str())).collect()
}

#[test]
fn only_the_registry_names_layouts() {
    for layout in layouts() {
        check_only_in("src", &format!("flagstone_{layout}"), &["src/registry.rs"]);
    }
}

#[test]
fn layouts_depend_on_core_alone() {
    for layout in layouts() {
        let manifest = fs::read_to_string(root().join("layouts").join(&layout).join("Cargo.toml")).unwrap();
        let dependencies = manifest.split("[dependencies]").nth(1).unwrap().split("\n[").next().unwrap();
        let ours: Vec<&str> = dependencies.lines().filter(|line| line.starts_with("flagstone")).collect();
        assert_eq!(ours, ["flagstone-core.workspace = true"], "layouts/{layout}");
    }
}

#[test]
fn layouts_never_write() {
    for layout in layouts() {
        let sources = format!("layouts/{layout}/src");
        check_only_in(&sources, "dyn Store>", &[]);
        check_only_in(&sources, "Store;", &[]);
        check_only_in(&sources, "std::fs", &[]);
    }
}

#[test]
fn the_core_does_no_input_or_output() {
    for word in ["std::fs", "std::net", "println!", "eprintln!", "std::env"] {
        check_only_in("layouts/core/src", word, &["layouts/core/src/hash/tests.rs"]);
    }
}

#[test]
fn only_their_own_files_know_sled_and_fjall() {
    check_only_in("src", "fjall::", &["src/store/"]);
    check_only_in("src", "FjallStore", &["src/store/", "src/database/stores.rs"]);
    check_only_in("src", "sled::", &["src/store/"]);
    check_only_in("src", "crossbeam_epoch::", &["src/store/sled.rs"]);
}

#[test]
fn stores_are_named_in_their_registry_and_the_command_names_no_layout() {
    check_only_in("src", "SledStore", &["src/store/", "src/database/stores.rs"]);
    check_only_in("src/cli", "sled", &[]);
    check_only_in("src/cli", "patricia", &[]);
}

#[test]
fn only_the_sequencer_knows_the_executor() {
    for below in ["src", "layouts"] {
        check_only_in(below, "blockifier::", &["src/sequencer/"]);
        check_only_in(below, "starknet_api", &["src/sequencer/"]);
    }
}

#[test]
fn unsafe_code_is_allowed_nowhere_but_in_the_hash_module() {
    for below in ["src", "layouts"] {
        check_only_in(below, "allow(unsafe_code", &["layouts/core/src/hash/"]);
        check_only_in(below, "expect(unsafe_code", &["layouts/core/src/hash/"]);
    }
}

#[test]
fn the_engine_writes_to_the_store_in_one_place() {
    let writes: Vec<String> = rust_files("src/engine")
        .into_iter()
        .flat_map(|(name, text)| vec![name; text.matches("store.write(").count()])
        .collect();
    // Before there is an engine: creating a database, bringing its store right, and an import's first batch, its chunks, its last
    // batch. Then the thread that writes. Tests write to stores of their own.
    let mut writes = writes;
    writes.sort();
    writes.retain(|name| name != "src/engine/meta.rs");
    let mut expected = vec!["src/engine/checkpoint.rs"];
    expected.extend(["src/engine/import.rs"; 3]);
    expected.extend(["src/engine/opening.rs"; 2]);
    assert_eq!(writes, expected);
}

#[test]
fn every_layout_documents_its_format() {
    for layout in layouts() {
        let readme = fs::read_to_string(root().join("layouts").join(&layout).join("README.md")).unwrap();
        assert!(readme.contains("format version"), "{layout}");
    }
}

#[test]
fn the_readmes_sequencer_is_the_one_that_is_tested() {
    let read = |name: &str| fs::read_to_string(root().join(name)).unwrap();
    let (tested, readme) = (read("src/sequencer/example.md"), read("README.md"));
    let program = tested.split("```").nth(1).unwrap();
    assert!(program.contains("fn main()"));
    assert!(
        readme.contains(&format!("```rust,ignore{program}```")),
        "README.md and src/sequencer/example.md differ"
    );
}

/// The first files of the workspace's crates.
fn crates() -> Vec<String> {
    let layouts = fs::read_dir(root().join("layouts")).unwrap();
    let layouts = layouts.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let others = ["src/lib.rs", "src/main.rs", "benches/lib.rs"].map(str::to_owned);
    layouts.map(|name| format!("layouts/{name}/src/lib.rs")).chain(others).collect()
}

fn imports_of(first: &str) -> Imports {
    let (folder, _) = first.rsplit_once('/').unwrap();
    Imports::read(&rust_files(folder).into_iter().collect(), first)
}

#[test]
fn no_file_imports_another_in_a_circle() {
    let mut circles: Vec<Circle> = Vec::new();
    for first in crates() {
        let mut imports = imports_of(&first);
        CIRCLES_INSIDE.iter().for_each(|(folder, _)| imports.fold(folder));
        circles.extend(imports.circles());
    }
    let told: String = circles.iter().map(|circle| format!("{circle}\n")).collect();
    assert!(circles.is_empty(), "move what both need into a file below them:\n{told}");
    // What is read is what is there.
    let core = imports_of("layouts/core/src/lib.rs");
    assert!(core.has("layouts/core/src/witness/record.rs", "layouts/core/src/commit.rs"));
    assert!(!core.has("layouts/core/src/commit.rs", "layouts/core/src/witness/record.rs"));
}

#[test]
fn folders_with_circles_inside_have_some() {
    let circles = imports_of("src/lib.rs").circles();
    for (folder, _) in CIRCLES_INSIDE {
        let inside = |circle: &Circle| circle.files.iter().filter(|file| file.starts_with(folder)).count();
        assert!(circles.iter().any(|circle| inside(circle) > 1), "{folder} has none: take it off the list");
    }
}
