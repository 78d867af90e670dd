//! Where the command writes: output that cannot be written is an error, and nothing is written into a database's directory
//! but the database.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use flagstone::core::types::BlockNumber;
use flagstone::{Cadence, EngineConfig, database};
use serde_json::Value;

use crate::cli::{Bench, check, flagstone, mainnet, mainnet_lines, stated_root, stderr, stdout};
use crate::cli_live::Live;
use crate::support::updates;

/// A contract of mainnet's first block.
const CONTRACT: &str = "0x735596016a37ee972c42adef6a3cf628c19bb3794369c65d2c82ba034aecf2c";

/// Runs the command with its standard output and error where they are to go.
fn to(out: impl Into<Stdio>, err: impl Into<Stdio>, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flagstone"));
    command.args(args).stdin(Stdio::null()).stdout(out).stderr(err);
    command.spawn().unwrap().wait_with_output().unwrap()
}

/// A device that is always full.
fn full() -> File {
    OpenOptions::new().write(true).open("/dev/full").unwrap()
}

/// The writing end of a pipe that nobody reads.
fn unread() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

/// A database of ten blocks, one of nine, and what was made of them. Each command that prints, once for each way that it prints
/// in, with the exit code that it has if all is well.
fn commands(bench: &Bench) -> Vec<(Vec<String>, i32)> {
    let [db, other, dump, proof, witnesses] =
        ["db", "other", "dump", "proof", "witnesses"].map(|name| bench.path(name));
    let input = bench.path("in.jsonl");
    check(&bench.replay(&["--witness", &witnesses]), 0);
    let nine = bench.path("nine.jsonl");
    fs::write(&nine, mainnet_lines(0..9)).unwrap();
    check(&flagstone(["replay", "--data", &other, &nine]), 0);
    check(&flagstone(["export", "--data", &db, "--out", &dump]), 0);
    let proved = flagstone(["prove", "--data", &db, "--contract", CONTRACT]);
    check(&proved, 0);
    fs::write(&proof, &proved.stdout).unwrap();
    let witness = format!("{witnesses}/9.witness");
    let block_0 = mainnet_lines(0..1);
    fs::write(bench.path("block_0"), block_0.replace(&stated_root(0), "0xbad")).unwrap();

    let mut commands = Vec::new();
    let mut add = |code: i32, args: &[&str]| {
        commands.push((args.iter().map(|arg| (*arg).to_owned()).collect(), code));
    };
    for form in [&[][..], &["--json"]] {
        let mut add = |code, args: &[&str]| add(code, &[args, form].concat());
        add(0, &["root", "--data", &db]);
        add(0, &["info", "--data", &db]);
        add(0, &["check", "--data", &db]);
        add(0, &["revert", "--data", &db, "9"]);
        add(0, &["layouts"]);
        add(0, &["replay", "--store", "memory", &input]);
        add(0, &["verify-proof", &proof]);
        add(0, &["verify-witness", "--witness", &witness, "--update", &input]);
        add(1, &["diff", &db, &other]);
        add(1, &["diff", "--all", &db, &other]);
        add(0, &["diff", &db, &db]);
        add(1, &["replay", "--store", "memory", &bench.path("block_0")]);
    }
    add(0, &["get", "--data", &db, "storage", CONTRACT, "0x5"]);
    add(0, &["get", "--data", &db, "nonce", CONTRACT]);
    add(0, &["prove", "--data", &db, "--contract", CONTRACT]);
    for help in [&["--help"][..], &["help"], &["--version"], &["replay", "--help"], &["help", "get"]] {
        add(0, help);
    }
    #[cfg(feature = "blockifier")]
    for form in [&[][..], &["--json"]] {
        add(0, &[&["sequence", "--blocks", "2", "--txs", "3", "--store", "memory"], form].concat());
    }
    commands
}

#[test]
fn output_that_cannot_be_written_is_exit_3_and_says_why() {
    let bench = Bench::new(&mainnet());
    for (args, code) in commands(&bench) {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let output = to(full(), Stdio::piped(), &args);
        let told = stderr(&output);
        // That a root does not hold is said, and comes first.
        let mismatch = args[0] == "replay" && code == 1;
        assert_eq!(output.status.code(), Some(if mismatch { 1 } else { 3 }), "{args:?}: {told}");
        assert!(told.contains("root mismatch: stated 0xbad") == mismatch, "{args:?}: {told}");
        let expected = "cannot write to standard output: No space left on device";
        assert!(told.contains(expected) && !told.contains("Os {"), "{args:?}: {told}");
        assert_eq!(told.matches(expected).count(), 1, "{args:?}: {told}");
    }
    // What is done anew each time.
    let [db, dump, made] = ["db", "dump", "made"].map(|name| bench.path(name));
    for args in [
        &["import", "--data", &made, &dump][..],
        &["convert", "--from", &db, "--to", &made, "--json"],
        &["replay", "--data", &made, &bench.path("in.jsonl")],
    ] {
        let output = to(full(), Stdio::piped(), args);
        check(&output, 3);
        assert!(stderr(&output).contains("No space left on device"), "{args:?}: {}", stderr(&output));
        check(&flagstone(["check", "--data", &made]), 0);
        fs::remove_dir_all(&made).unwrap();
    }
    fs::remove_dir_all(bench.path("db/journal")).unwrap();
    let output = to(full(), Stdio::piped(), &["recover", "--data", &db]);
    check(&output, 3);
    check(&flagstone(["root", "--data", &db]), 0);
}

#[test]
fn a_dump_that_cannot_be_written_is_exit_3_and_says_why() {
    let bench = Bench::new(&mainnet());
    check(&bench.replay(&[]), 0);
    let db = bench.path("db");
    for (output, expected) in [
        (to(full(), Stdio::piped(), &["export", "--data", &db]), "No space left on device"),
        (flagstone(["export", "--data", &db, "--out", "/dev/full"]), "No space left on device"),
        // Half a dump is none: here the reader that went away is what fails.
        (to(unread(), Stdio::piped(), &["export", "--data", &db]), "Broken pipe"),
    ] {
        check(&output, 3);
        let told = stderr(&output);
        assert!(told.contains("cannot write the dump") && told.contains(expected), "{told}");
        assert!(!told.contains("Os {") && !told.contains("exported"), "{told}");
    }
}

#[test]
fn a_reader_that_went_away_is_no_error() {
    let bench = Bench::new(&mainnet());
    for (args, code) in commands(&bench) {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let output = to(unread(), Stdio::piped(), &args);
        check(&output, code);
        assert!(!stderr(&output).contains("cannot write"), "{args:?}: {}", stderr(&output));
    }
    // The work goes on to its end.
    let made = bench.path("made");
    check(&to(unread(), Stdio::piped(), &["replay", "--data", &made, &bench.path("in.jsonl")]), 0);
    assert_eq!(stdout(&flagstone(["root", "--data", &made])).trim(), stated_root(9));
}

#[test]
fn what_cannot_be_written_beside_the_output_fails_nothing() {
    let bench = Bench::new(&mainnet());
    for (args, code) in commands(&bench) {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        for err in [full().into(), unread()] {
            let output = to(Stdio::piped(), err, &args);
            check(&output, code);
            assert!(!output.stdout.is_empty(), "{args:?}");
        }
    }
    for err in [full().into(), unread()] {
        let output = to(Stdio::piped(), err, &["export", "--data", &bench.path("db")]);
        check(&output, 0);
        assert_eq!(output.stdout, fs::read(bench.path("dump")).unwrap());
    }
    check(&to(Stdio::piped(), full(), &["frobnicate"]), 2);
}

/// Every file below a directory.
fn files(dir: &str) -> BTreeMap<String, Vec<u8>> {
    let (mut found, mut open) = (BTreeMap::new(), vec![Path::new(dir).to_owned()]);
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            found.insert(path.to_str().unwrap().to_owned(), fs::read(&path).unwrap());
        }
    }
    found
}

/// Runs the command in a directory.
fn within(dir: &str, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_flagstone")).args(args).current_dir(dir).output().unwrap()
}

#[test]
fn nothing_is_written_into_the_directory_of_a_database() {
    let bench = Bench::new(&mainnet());
    check(&bench.replay(&[]), 0);
    let [db, other, dump, link] = ["db", "other", "dump", "link"].map(|name| bench.path(name));
    let input = bench.path("in.jsonl");
    check(&flagstone(["replay", "--data", &other, &input]), 0);
    check(&flagstone(["export", "--data", &db, "--out", &dump]), 0);
    std::os::unix::fs::symlink(&db, &link).unwrap();
    std::os::unix::fs::symlink(format!("{db}/store/lock"), bench.path("file_link")).unwrap();
    std::os::unix::fs::symlink("link/store/nothing", bench.path("dangling")).unwrap();
    let here = bench.path("");
    let before = [files(&db), files(&other)];
    let refused = |dir: &str, args: &[&str]| {
        let output = within(dir, args);
        check(&output, 2);
        let expected = "the directory of a database, where all files are its own; name a place outside of it";
        assert!(stderr(&output).contains(expected), "{args:?}: {}", stderr(&output));
        assert!([files(&db), files(&other)] == before, "{args:?} changed a database");
    };
    for out in [
        "db/FLAGSTONE",
        "db/store/lock",
        "db/dump",
        "db/journal/new/dump",
        "db",
        "link/store/lock",
        "link/dump",
        "file_link",
        "dangling",
        "other/store/lock",
        "none/../db/store/lock",
        "other/../db/dump",
    ] {
        refused(&here, &["export", "--data", "db", "--out", out]);
        refused(&here, &["export", "--data", "link", "--out", &bench.path(out)]);
    }
    refused(&format!("{db}/store"), &["export", "--data", "..", "--out", "db"]);
    refused(&db, &["export", "--data", &link, "--out", "dump"]);
    for place in ["db/new", "link/new", "db/store/new", "other/new", "none/../db/new"] {
        refused(&here, &["replay", "--store", "memory", "--witness", place, &input]);
        refused(&here, &["convert", "--from", "db", "--to", place]);
        refused(&here, &["import", "--data", place, &dump]);
        refused(&here, &["replay", "--data", place, &input]);
    }
    for place in ["db", "link", "db/.", "other"] {
        refused(&here, &["replay", "--store", "memory", "--witness", place, &input]);
    }
    for place in ["db", "link", "db/"] {
        refused(&here, &["convert", "--from", "db", "--to", place]);
    }
    // Of a database that is not there yet, too.
    for place in ["later", "later/witnesses", "later/../later/store"] {
        refused(&here, &["replay", "--data", "later", "--witness", place, &input]);
        assert!(!Path::new(&bench.path("later")).exists());
    }
    // Beside them all is well, however the way there looks.
    for out in ["db.dump", "db/../link.dump", "dump"] {
        check(&within(&here, &["export", "--data", "db", "--out", out]), 0);
    }
    check(&within(&here, &["convert", "--from", "db", "--to", "db/../made"]), 0);
    check(&within(&here, &["replay", "--data", "later", "--witness", "later.witnesses", &input]), 0);
    check(&flagstone(["check", "--data", &db]), 0);
}

#[test]
fn an_export_is_not_written_through_a_link_that_is_in_its_way() {
    let bench = Bench::new(&mainnet());
    check(&bench.replay(&[]), 0);
    let [db, dump] = ["db", "dump"].map(|name| bench.path(name));
    let before = fs::read(format!("{db}/FLAGSTONE")).unwrap();
    std::os::unix::fs::symlink(format!("{db}/FLAGSTONE"), format!("{dump}.part")).unwrap();
    check(&flagstone(["export", "--data", &db, "--out", &dump]), 0);
    assert!(fs::read(format!("{db}/FLAGSTONE")).unwrap() == before, "the database's marker was written over");
    check(&flagstone(["import", "--data", &bench.path("made"), &dump]), 0);
}

/// A database that was left with three blocks closed and one of them committed, or none. That is what a kill leaves.
fn lagging(bench: &Bench, name: &str, committed: bool, wrong: bool) -> String {
    let dir = bench.path(name);
    let config = EngineConfig::default().with_cadence(Cadence::OnRequest);
    let engine = database::open_or_create(dir.as_ref(), None, None, config).unwrap();
    for mut update in updates("mainnet_0_9.jsonl").into_iter().take(3) {
        if wrong && update.block_number == Some(BlockNumber(2)) {
            update.new_root = Some(0xbad.into());
        }
        engine.close_block(&update).unwrap();
        if committed && update.block_number == Some(BlockNumber(0)) {
            engine.commit().unwrap();
        }
    }
    dir
}

#[test]
fn answers_are_of_the_last_closed_block_after_a_kill_too() {
    let bench = Bench::new(&mainnet_lines(0..3));
    check(&bench.replay(&[]), 0);
    let whole = bench.path("db");
    for committed in [true, false] {
        let begun = if committed { "block 0" } else { "the empty state" };
        let note = format!(
            "note: blocks after {begun}, up to block 2, are in the journal alone; they were committed in memory to answer"
        );
        let mut count = 0;
        let mut ask = |args: &[&str]| -> String {
            count += 1;
            let dir = lagging(&bench, &format!("{committed}-{count}"), committed, false);
            let args: Vec<&str> = args.iter().map(|arg| if *arg == "DIR" { &dir } else { *arg }).collect();
            let output = flagstone(&args);
            check(&output, 0);
            let tells = !["check", "revert"].contains(&args[0]);
            assert_eq!(stderr(&output).contains(&note), tells, "{args:?}: {}", stderr(&output));
            stdout(&output)
        };
        assert_eq!(ask(&["root", "--data", "DIR"]).trim(), stated_root(2));
        for command in ["root", "info"] {
            let facts: Value = serde_json::from_str(&ask(&[command, "--json", "--data", "DIR"])).unwrap();
            assert_eq!(facts["root"], stated_root(2).as_str());
            for height in ["closed", "committed"] {
                assert_eq!(facts[height], 2, "{command}: {height}");
            }
            // Nobody has written it.
            let persisted = committed.then_some(0);
            assert_eq!(facts["persisted"].as_u64(), persisted, "{command}");
        }
        let info = ask(&["info", "--data", "DIR"]);
        assert!(info.contains(&stated_root(2)), "{info}");
        assert_eq!(info.matches("block 2").count(), 2, "{info}");
        let get = ["get", "--data", "DIR", "storage", CONTRACT, "0x5"];
        let expected = flagstone(get.map(|arg| if arg == "DIR" { &whole } else { arg }));
        assert_eq!(ask(&get), stdout(&expected));
        let checked: Value = serde_json::from_str(&ask(&["check", "--json", "--data", "DIR"])).unwrap();
        assert_eq!((&checked["summary"]["block"], &checked["summary"]["sound"]), (&2.into(), &true.into()));
        ask(&["diff", "DIR", &whole]);
        let proof: Value =
            serde_json::from_str(&ask(&["prove", "--data", "DIR", "--contract", CONTRACT])).unwrap();
        assert_eq!(
            (&proof["block"]["block_number"], proof["block"]["new_root"].as_str()),
            (&2.into(), Some(&*stated_root(2)))
        );
        let dump = bench.path(&format!("{committed}.dump"));
        assert!(ask(&["export", "--data", "DIR", "--out", &dump]).contains("exported block 2"));
        let made = bench.path(&format!("{committed}-made"));
        assert!(ask(&["convert", "--from", "DIR", "--to", &made]).contains("imported block 2"));
        assert_eq!(ask(&["revert", "--data", "DIR", "1"]).trim(), stated_root(1));
    }
}

/// The journal took the block before anybody had compared its root.
#[test]
fn a_closed_block_whose_root_does_not_hold_is_answered_by_nobody() {
    let bench = Bench::new("");
    for (at, args) in
        [&["root"][..], &["root", "--json"], &["info"], &["info", "--json"], &["get", "nonce", "0x1"]]
            .into_iter()
            .enumerate()
    {
        let dir = lagging(&bench, &at.to_string(), true, true);
        let args = [&args[..1], &["--data", &dir], &args[1..]].concat();
        let output = flagstone(&args);
        check(&output, 1);
        assert_eq!(stdout(&output), "");
        let expected = format!("block 2: root mismatch: stated 0xbad, computed {}", stated_root(2));
        assert!(stderr(&output).contains(&expected), "{}", stderr(&output));
        // It is still there: who only looks takes nothing back.
        check(&flagstone(["root", "--data", &dir]), 1);
    }
    // Nor is it taken for a fault of what is replayed next: that is not read, if it ever comes.
    let dir = lagging(&bench, "next", true, true);
    let said = Live::start(&["replay", "--data", &dir, "-"]).expect_end(1);
    assert!(said.contains("error: block 2: root mismatch"), "{said}");
    let root = flagstone(["root", "--data", &dir]);
    check(&root, 0);
    assert_eq!(stdout(&root).trim(), stated_root(1));
}
