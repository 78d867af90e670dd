//! The command's `check`, `diff`, `export`, `import` and `convert`: answers and exit codes.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use flagstone::registry::LAYOUTS;
use flagstone::{StateUpdate, database};
use serde_json::Value;

use crate::check::{blocks, config};

fn flagstone<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    Command::new(env!("CARGO_BIN_EXE_flagstone")).args(args).stdin(Stdio::null()).output().unwrap()
}

#[track_caller]
fn run(args: &[&str], code: i32) -> (String, String) {
    let output = flagstone(args);
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(code), "{args:?}\nstdout: {out}\nstderr: {err}");
    (out, err)
}

fn database(dir: &Path, name: &str, layout: usize, updates: &[StateUpdate]) -> String {
    let path = dir.join(name);
    let engine = database::open_or_create(&path, Some(&LAYOUTS[layout]), None, config()).unwrap();
    updates.iter().for_each(|update| drop(engine.close_block(update).unwrap()));
    path.to_str().unwrap().to_owned()
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn the_command_checks_and_says_so_by_its_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let sound = database(dir.path(), "sound", 2, &blocks());
    let (out, _) = run(&["check", "--data", &sound], 0);
    assert!(out.starts_with("sound: block 7, 4 contracts, "), "{out}");
    let (out, _) = run(&["check", "--json", "--data", &sound], 0);
    assert_eq!(lines(&out)[0]["summary"]["journal_blocks"], 8);
    run(&["check", "--data", dir.path().join("none").to_str().unwrap()], 3);

    // The journal of another database.
    let other = database(dir.path(), "other", 2, &blocks());
    fs::remove_dir_all(Path::new(&sound).join("journal")).unwrap();
    fs::rename(Path::new(&other).join("journal"), Path::new(&sound).join("journal")).unwrap();
    let (out, _) = run(&["check", "--json", "--data", &sound], 1);
    let (summary, findings) = {
        let mut all = lines(&out);
        (all.pop().unwrap(), all)
    };
    assert_eq!(summary["summary"]["findings"], findings.len() as u64);
    let problem = findings[0]["finding"]["problem"].as_str().unwrap();
    assert!(problem.contains("and the journal is of database"), "{out}");
}

#[test]
fn the_command_tells_where_two_databases_differ() {
    let dir = tempfile::tempdir().unwrap();
    let updates = blocks();
    let a = database(dir.path(), "a", 0, &updates);
    let b = database(dir.path(), "b", 1, &updates);
    let older = database(dir.path(), "older", 2, &updates[..7]);
    let (out, _) = run(&["diff", &a, &b], 0);
    assert_eq!(out, "the states are the same\n");
    run(&["diff", &a, &a], 0);

    let (out, err) = run(&["diff", &a, &older], 1);
    assert_eq!(out.lines().count(), 1, "{out}");
    assert!(out.starts_with("class hash of contract 0x1: 0x8 | 0x5  (in the contracts trie, from "), "{out}");
    assert!(err.contains("--all"));
    let (out, _) = run(&["diff", "--all", "--json", &a, &older], 1);
    let mut told = lines(&out);
    assert_eq!(told.pop().unwrap()["summary"]["told"], told.len() as u64);
    let subjects: Vec<&str> =
        told.iter().map(|line| line["difference"]["subject"].as_str().unwrap()).collect();
    assert_eq!(
        subjects,
        [
            "class hash of contract 0x1",
            "nonce of contract 0x1",
            "storage 0x8 of contract 0x1",
            "storage 0x23 of contract 0x1",
            "storage 0x70000000000 of contract 0x12345678",
            "compiled class hash of class 0x16",
        ]
    );
    assert_eq!(told[3]["difference"]["a"], "0x10");
    assert_eq!(told[3]["difference"]["b"], "0x0");

    // A height that is not there to be read.
    let (_, err) = run(&["diff", "--block-a", "9", &a, &b], 2);
    assert!(err.contains("block 9 is not there: the last block is block 7"), "{err}");
    // Two heights of one database.
    run(&["diff", "--block-a", "5", "--block-b", "5", &a, &a], 0);
    run(&["diff", "--block-a", "5", "--block-b", "7", &a, &a], 1);
    run(&["diff", "--block-a", "7", "--block-b", "7", &a, &b], 0);
}

#[test]
fn the_command_moves_states() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let from = database(dir.path(), "from", 1, &blocks());
    let (out, _) = run(&["export", "--data", &from, "--out", &path("dump")], 0);
    assert!(out.starts_with("exported block 7, root 0x"), "{out}");
    let piped = flagstone(["export", "--data", &from]);
    assert_eq!(piped.stdout, fs::read(path("dump")).unwrap());
    let (out, _) =
        run(&["import", "--json", "--data", &path("to"), "--layout", "patricia-hash", &path("dump")], 0);
    assert_eq!(lines(&out)[0]["holds"]["contracts"], 4);
    run(&["convert", "--from", &path("to"), "--to", &path("third"), "--layout", "flat"], 0);
    run(&["diff", &from, &path("third")], 0);
    run(&["check", "--data", &path("third")], 0);

    // What is wrong, by exit code.
    let (_, err) = run(&["import", "--data", &path("to"), &path("dump")], 2);
    assert!(err.contains("holds a database already"), "{err}");
    let mut dump = fs::read(path("dump")).unwrap();
    let middle = dump.len() / 2;
    dump[middle] ^= 1;
    fs::write(path("damaged"), &dump).unwrap();
    let (_, err) = run(&["import", "--data", &path("fresh"), &path("damaged")], 2);
    assert!(err.contains("the dump is damaged in chunk 0: checksum"), "{err}");
    let (_, err) = run(&["get", "--data", &path("fresh"), "nonce", "0x1"], 3);
    assert!(err.contains("run the same `flagstone import` again"), "{err}");
    run(&["import", "--data", &path("fresh"), &path("dump")], 0);
    run(&["diff", &from, &path("fresh")], 0);
    run(&["export", "--data", &from, "--block", "99"], 2);
    run(&["import", "--data", &path("more"), &path("none")], 2);
    run(&["convert", "--from", &from, "--to", &path("to")], 2);
    run(&["convert", "--from", &from, "--to", &path("unmade"), "--block", "99"], 2);
}

#[test]
fn an_export_that_fails_leaves_the_file_that_was_there() {
    let dir = tempfile::tempdir().unwrap();
    let from = database(dir.path(), "from", 1, &blocks());
    let dump = dir.path().join("dump");
    let out = dump.to_str().unwrap();
    run(&["export", "--data", &from, "--out", out], 0);
    let whole = fs::read(&dump).unwrap();
    run(&["export", "--data", &from, "--out", out, "--block", "99"], 2);
    assert_eq!(fs::read(&dump).unwrap(), whole);
    run(&["export", "--data", &from, "--out", out, "--block", "6"], 0);
    assert_ne!(fs::read(&dump).unwrap(), whole);
    let names = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(names.filter(|name| name.to_string_lossy().starts_with("dump")).count(), 1);
    // What is no plain file is written to as it is.
    run(&["export", "--data", &from, "--out", "/dev/null"], 0);
}
