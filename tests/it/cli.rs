//! The command, through its binary: what it prints, what it keeps, how it exits.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use crate::support::{copy_dir, data, files_of};
use flagstone::database::STORES;
use flagstone::registry::{LAYOUTS, LayoutEntry};
use serde_json::Value;

pub fn flagstone<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    Command::new(env!("CARGO_BIN_EXE_flagstone")).args(args).stdin(Stdio::null()).output().unwrap()
}

/// The running command, with pipes for all that it reads and writes.
pub fn piped(args: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flagstone"));
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[track_caller]
pub fn check(output: &Output, code: i32) {
    assert_eq!(output.status.code(), Some(code), "stdout: {}\nstderr: {}", stdout(output), stderr(output));
}

/// A directory with a file `in.jsonl` of some text, and a place for a database.
pub struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    pub fn new(text: &str) -> Self {
        let bench = Self { dir: tempfile::tempdir().unwrap() };
        bench.input(text);
        bench
    }
    fn input(&self, text: &str) {
        fs::write(self.path("in.jsonl"), text).unwrap();
    }
    pub fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }
    pub fn replay(&self, more: &[&str]) -> Output {
        let (db, input) = (self.path("db"), self.path("in.jsonl"));
        flagstone(["replay", "--data", &db, &input].iter().chain(more))
    }
    fn root(&self) -> String {
        let output = flagstone(["root", "--data", &self.path("db")]);
        check(&output, 0);
        stdout(&output).trim().to_owned()
    }
}

pub fn mainnet() -> String {
    fs::read_to_string(data("mainnet_0_9.jsonl")).unwrap()
}

pub fn mainnet_lines(range: std::ops::Range<usize>) -> String {
    mainnet().lines().skip(range.start).take(range.len()).map(|line| format!("{line}\n")).collect()
}

const ROOT_0: &str = "0x21870ba80540e7831fb21c591ee93481f5ae1bb71ff85a86ddd465be4eddee6";

/// `new_root` of a block of mainnet_0_9.
pub fn stated_root(block: usize) -> String {
    let value: Value = serde_json::from_str(mainnet().lines().nth(block).unwrap()).unwrap();
    value["new_root"].as_str().unwrap().to_owned()
}

#[test]
fn ten_mainnet_blocks_with_no_options_at_all() {
    let output = flagstone(["replay".as_ref(), data("mainnet_0_9.jsonl").as_os_str()]);
    check(&output, 0);
    let text = stdout(&output);
    assert_eq!(
        text.lines().filter(|line| line.starts_with("block ") && line.ends_with("  ok")).count(),
        10,
        "{text}"
    );
    assert!(text.contains(&format!("root {ROOT_0}")));
    assert!(
        text.lines().last().unwrap().starts_with("10 blocks, 197 writes, 10 roots compared and equal"),
        "{text}"
    );
    assert!(text.contains("flat on fjall, in a temporary directory"));
    assert!(!text.contains('\u{1b}'), "colours without a terminal");
    assert_eq!(stderr(&output), "");
}

#[test]
fn every_layout_store_and_cadence_prints_the_same_roots() {
    let file = data("mainnet_0_9.jsonl");
    let file = file.to_str().unwrap();
    let roots = |entry: &LayoutEntry, store: &str, cadence: &str| -> Vec<String> {
        let layout = entry.name;
        let args = ["replay", "--json", "--layout", layout, "--store", store, "--commit", cadence, file];
        let output = flagstone(args);
        check(&output, 0);
        let lines: Vec<Value> =
            stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let (summary, blocks) = lines.split_last().unwrap();
        assert_eq!(summary["summary"]["verified"], 10);
        assert_eq!(summary["summary"]["store"], store);
        assert!(summary["summary"]["read_cache"]["misses"].is_u64(), "{summary}");
        let of_records = &summary["summary"]["record_cache"];
        assert_eq!(of_records["misses"].is_u64(), entry.make().cache_counters().is_some(), "{summary}");
        assert!(blocks.iter().all(|block| block["matches"] == true && block["layout"] == layout));
        blocks.iter().map(|block| block["root"].as_str().unwrap().to_owned()).collect()
    };
    let expected: Vec<String> = (0..10).map(stated_root).collect();
    for layout in LAYOUTS {
        for store in ["memory"].into_iter().chain(STORES.iter().map(|store| store.name)) {
            for cadence in ["every", "3", "end"] {
                assert_eq!(roots(layout, store, cadence), expected, "{} {store} {cadence}", layout.name);
            }
        }
    }
}

#[test]
fn replay_bounds_the_cache_of_records_as_told() {
    let file = data("mainnet_0_9.jsonl");
    for (bound, bytes) in [(&["--record-cache", "3"][..], 3 << 20), (&[], 256 << 20)] {
        let output = flagstone([&["replay", "--json", file.to_str().unwrap()], bound].concat());
        check(&output, 0);
        let summary: Value = serde_json::from_str(stdout(&output).lines().last().unwrap()).unwrap();
        assert_eq!(summary["summary"]["record_cache"]["bytes_max"], bytes);
    }
}

#[test]
fn standard_input_is_a_file_named_dash() {
    let mut child = piped(&["replay", "--store", "memory", "-"]);
    child.stdin.take().unwrap().write_all(mainnet().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    check(&output, 0);
    assert!(stdout(&output).contains("10 blocks"));
}

#[test]
fn a_database_goes_on_where_it_stopped_and_answers_queries() {
    let bench = Bench::new(&mainnet_lines(0..4));
    check(&bench.replay(&["--layout", "patricia-path", "--commit", "3"]), 0);
    assert_eq!(bench.root(), stated_root(3));
    bench.input(&mainnet_lines(4..10));
    check(&bench.replay(&[]), 0);
    assert_eq!(bench.root(), stated_root(9));

    let db = bench.path("db");
    let get = |what: &[&str]| {
        let output = flagstone(["get", "--data", &db].iter().chain(what));
        check(&output, 0);
        stdout(&output).trim().to_owned()
    };
    let first: Value = serde_json::from_str(mainnet().lines().next().unwrap()).unwrap();
    let deployed = &first["state_diff"]["deployed_contracts"][0];
    let address = deployed["address"].as_str().unwrap();
    assert_eq!(get(&["class-hash", address]), deployed["class_hash"].as_str().unwrap());
    let slot = ["storage", "0x735596016a37ee972c42adef6a3cf628c19bb3794369c65d2c82ba034aecf2c", "0x5"];
    assert_eq!(get(&slot), "0x64");
    assert_eq!(get(&["nonce", address]), "0x0");
    assert_eq!(get(&["compiled-class-hash", "0x1"]), "0x0");

    let info = flagstone(["info", "--json", "--data", &db]);
    check(&info, 0);
    let info: Value = serde_json::from_str(&stdout(&info)).unwrap();
    assert_eq!((&info["layout"], &info["store"]), (&"patricia-path".into(), &STORES[0].name.into()));
    assert_eq!(
        (&info["closed"], &info["committed"], &info["layout_format"]),
        (&9.into(), &9.into(), &1.into())
    );
    assert_eq!(info["root"], stated_root(9).as_str());
}

#[test]
fn a_database_goes_back_to_an_earlier_block_and_on_from_there() {
    for layout in LAYOUTS.iter().map(|layout| layout.name) {
        let bench = Bench::new(&mainnet_lines(0..10));
        check(&bench.replay(&["--layout", layout]), 0);
        let db = bench.path("db");
        let slot = ["storage", "0x735596016a37ee972c42adef6a3cf628c19bb3794369c65d2c82ba034aecf2c", "0x5"];
        let get = |block: &str| flagstone(["get", "--data", &db, "--block", block].iter().chain(&slot));
        let [before, after] = [get("0"), get("9")].map(|output| stdout(&output));
        assert_eq!(after.trim(), "0x64");
        let reverted = flagstone(["revert", "--data", &db, "3"]);
        check(&reverted, 0);
        assert_eq!(stdout(&reverted).trim(), stated_root(3));
        assert_eq!(bench.root(), stated_root(3));
        assert_eq!(stdout(&get("0")), before);
        let gone = flagstone(["revert", "--data", &db, "7"]);
        check(&gone, 2);
        assert!(stderr(&gone).contains("block 7 is not there: the last block is block 3"));
        bench.input(&mainnet_lines(4..10));
        check(&bench.replay(&[]), 0);
        assert_eq!(bench.root(), stated_root(9));
    }
}

#[cfg(not(feature = "blockifier"))]
#[test]
fn without_the_executor_the_command_says_how_to_get_it() {
    let output = flagstone(["sequence", "--blocks", "2", "--workload", "transfers"]);
    check(&output, 2);
    let expected = "build it with it: cargo build --release --features blockifier";
    assert!(stderr(&output).contains(expected), "{}", stderr(&output));
}

#[test]
fn layouts_are_listed() {
    let output = flagstone(["layouts"]);
    check(&output, 0);
    for layout in LAYOUTS {
        assert!(stdout(&output).lines().any(|line| line.starts_with(layout.name)));
    }
}

#[test]
fn a_root_that_does_not_match_is_exit_1_and_names_block_and_roots() {
    for cadence in ["every", "3", "100", "end"] {
        let wrong = mainnet().replace(&stated_root(5), "0xbad");
        let bench = Bench::new(&wrong);
        let output = bench.replay(&["--commit", cadence]);
        check(&output, 1);
        let error = stderr(&output);
        let expected =
            format!("in.jsonl:6: block 5: root mismatch: stated 0xbad, computed {}", stated_root(5));
        assert!(error.contains(&expected), "{cadence}: {error}");
        assert!(stdout(&output).contains("MISMATCH, stated 0xbad"));
        let ok = stdout(&output).lines().filter(|line| line.ends_with("ok")).count();
        assert_eq!(ok, 5, "{cadence}: the blocks before it are printed");
        assert_eq!(
            bench.root(),
            stated_root(4),
            "{cadence}: nothing of the block is kept, what came before is"
        );
        bench.input(&mainnet_lines(5..10));
        check(&bench.replay(&[]), 0);
        assert_eq!(bench.root(), stated_root(9));
    }
}

#[test]
fn roots_are_not_compared_when_asked_not_to() {
    let wrong = mainnet().replace(&stated_root(5), "0xbad");
    let bench = Bench::new(&wrong);
    let output = bench.replay(&["--no-verify"]);
    check(&output, 2);
    let expected = "in.jsonl:1: block 0: its starknet version is needed for the state commitment while no class is declared; \
                    name it with --starknet-version; a root that the update states tells it only without --no-verify";
    assert!(stderr(&output).contains(expected), "{}", stderr(&output));
    let output = bench.replay(&["--no-verify", "--starknet-version", "0.9.1"]);
    check(&output, 0);
    assert!(stdout(&output).lines().take(10).all(|line| line.ends_with("not compared")));
    assert_eq!(bench.root(), stated_root(9));
}

#[test]
fn a_block_without_version_and_root_is_refused_with_both_ways_out() {
    let bench = Bench::new(&mainnet_lines(0..1).replace("new_root", "was_root"));
    let output = bench.replay(&[]);
    check(&output, 2);
    let expected = "name it with --starknet-version, or have the update state the block's new_root";
    assert!(stderr(&output).contains(expected), "{}", stderr(&output));
    check(&bench.replay(&["--starknet-version", "0.9.1"]), 0);
}

/// The feeder gateway's answer with the block beside the update has the root twice, under two names.
#[test]
fn a_block_whose_header_has_another_root_than_its_update_is_bad_input() {
    let update: Value = serde_json::from_str(&mainnet_lines(0..1)).unwrap();
    let beside = |state_root: &str| {
        let block = serde_json::json!({ "block_number": 0, "state_root": state_root });
        Bench::new(&serde_json::json!({ "block": block, "state_update": update }).to_string())
    };
    let bench = beside("0xbad");
    let output = bench.replay(&["--commit", "end"]);
    check(&output, 2);
    let expected = format!(
        "in.jsonl:1: block 0: block.state_root is \"0xbad\": in the same object state_update.new_root is {ROOT_0}; keep one"
    );
    assert!(stderr(&output).contains(&expected), "{}", stderr(&output));
    assert_eq!(bench.root(), "0x0");
    check(&beside(ROOT_0).replay(&[]), 0);
}

#[track_caller]
fn check_bad_input(text: &str, kept: Option<usize>, expected: &str) {
    for cadence in ["every", "end"] {
        let bench = Bench::new(text);
        let output = bench.replay(&["--commit", cadence]);
        check(&output, 2);
        assert!(stderr(&output).contains(expected), "{cadence}: {}", stderr(&output));
        assert!(!stderr(&output).contains("panicked"));
        let root = kept.map_or("0x0".to_owned(), stated_root);
        assert_eq!(bench.root(), root, "{cadence}: what came before stays committed");
    }
}

#[test]
fn bad_input_is_exit_2_and_names_file_line_block_field_and_value() {
    let with = |from: &str, to: &str| {
        let text = mainnet();
        let third = text.lines().nth(2).unwrap();
        assert!(third.contains(from));
        text.replace(third, &third.replacen(from, to, 1))
    };
    let too_large = "0x800000000000011000000000000000000000000000000000000000000000001";
    let text = with("\"value\":\"0x", &format!("\"value\":\"{too_large}\",\"was\":\"0x"));
    check_bad_input(&text, Some(1), "in.jsonl:3: block 2: state_diff.storage_diffs[0].storage_entries[0]");
    let key = "0x800000000000000000000000000000000000000000000000000000000000000";
    let text = with("\"key\":\"0x", &format!("\"key\":\"{key}\",\"x\":\"0x")).replace(",\"x\":\"0x", "0x");
    check_bad_input(&text, Some(1), "in.jsonl:3");
    check_bad_input("just some text\n", None, "in.jsonl:1");
    check_bad_input("", None, "holds no state update");
    let cut = mainnet();
    check_bad_input(&cut[..cut.len() - 200], Some(8), "in.jsonl:10");
    check_bad_input(
        &with("\"block_number\":2", "\"block_number\":7"),
        Some(1),
        "in.jsonl:3: block 7 does not follow",
    );
    let text = with(&format!("\"old_root\":\"{}\"", stated_root(1)), "\"old_root\":\"0x77\"");
    let expected = format!(
        "in.jsonl:3: block 2: wrong parent: it builds on root 0x77, the state before it has root {}",
        stated_root(1)
    );
    check_bad_input(&text, Some(1), &expected);
}

#[test]
fn entries_that_disagree_are_bad_input() {
    let text = r#"{"starknet_version":"0.13.0","state_diff":{"storage_diffs":[{"address":"0x1","storage_entries":[
        {"key":"0x1","value":"0x2"},{"key":"0x01","value":"0x3"}]}]}}"#;
    let bench = Bench::new(text);
    let output = bench.replay(&[]);
    check(&output, 2);
    assert!(
        stderr(&output).contains("storage 0x1 of contract 0x1 is set twice, to 0x2 and to 0x3"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn bad_usage_is_exit_2() {
    let file = data("mainnet_0_9.jsonl");
    let file = file.to_str().unwrap();
    for args in [
        &["replay"][..],
        &["replay", "--layout", "verkel", file],
        &["replay", "--store", "rocks", file],
        &["replay", "--commit", "0", file],
        &["replay", "--commit", "often", file],
        &["replay", "--starknet-version", "new", file],
        &["replay", "--store", "memory", "--data", "/tmp/x", file],
        &["replay", "/no/such/file"],
        &["get", "--data", "x", "nonce", "0xzz"],
        &["get", "--data", "x", "nonce", "0x800000000000000000000000000000000000000000000000000000000000000"],
        &["replay", "--threads", "1025", file],
        &["import", "--data", "x", "--threads", "1025", "x"],
        &["convert", "--from", "x", "--to", "y", "--threads", "1025"],
        &["sequence", "--workers", "1025"],
        &["frobnicate"],
        &[],
    ] {
        check(&flagstone(args), 2);
    }
    let output = flagstone(["replay", "--layout", "verkel", file]);
    let known: Vec<&str> = LAYOUTS.iter().map(|layout| layout.name).collect();
    let text = format!("no layout named `verkel`; known layouts: {}", known.join(", "));
    assert!(stderr(&output).contains(&text), "{}", stderr(&output));
}

/// What can be named is in the registries, and help says so of all of it.
#[test]
fn help_names_all_layouts_stores_and_their_settings() {
    for command in ["replay", "import", "convert", "sequence"] {
        let output = flagstone([command, "--help"]);
        check(&output, 0);
        let help = stdout(&output);
        let layouts = LAYOUTS.iter().map(|layout| layout.name);
        let stores = STORES.iter().map(|store| store.name);
        let settings = STORES.iter().flat_map(|store| store.settings()).map(|setting| setting.name);
        for name in layouts.chain(stores).chain(settings) {
            assert!(help.contains(name), "{command}: {name}\n{help}");
        }
    }
}

#[test]
fn settings_of_the_store_are_given_and_refused_by_name() {
    let bench = Bench::new(&mainnet_lines(0..3));
    let refused = |output: Output, text: &str| {
        check(&output, 2);
        assert!(stderr(&output).contains(text), "{}", stderr(&output));
    };
    let replay = |more: &[&str]| bench.replay(&[&["--store", "sled"], more].concat());
    let unknown = "store `sled` has no setting named `cash`; it takes cache_bytes, verify_closed, keep_before_bytes_max";
    refused(replay(&["--store-set", "cash=1"]), unknown);
    refused(replay(&["--store-set", "cache_bytes=much"]), "`cache_bytes` of store `sled` cannot be `much`");
    refused(replay(&["--store-set", "cache_bytes"]), "expected NAME=VALUE");
    assert!(!Path::new(&bench.path("db")).exists(), "nothing is made before the settings are looked at");
    let input = bench.path("in.jsonl");
    refused(flagstone(["replay", "--store", "memory", "--store-set", "a=1", &input]), "takes no settings");

    // A store that does not verify leaves no checksum behind.
    check(&replay(&["--store-set", "verify_closed=false", "--store-set", "cache_bytes=2000000"]), 0);
    let db = bench.path("db");
    let closed = Path::new(&db).join("store/closed");
    assert!(!closed.exists());
    refused(flagstone(["root", "--data", &db, "--store-set", "cash=1"]), unknown);
    for command in ["root", "info", "check", "export"] {
        check(&flagstone([command, "--data", &db, "--store-set", "verify_closed=false"]), 0);
    }
    bench.input(&mainnet_lines(3..5));
    check(&bench.replay(&[]), 0);
    assert!(closed.exists());
}

#[test]
fn threads_are_bounded_and_the_message_names_both_sides() {
    let file = data("mainnet_0_9.jsonl");
    for threads in ["1025", "18446744073709551615"] {
        let output = flagstone(["replay", "--threads", threads, file.to_str().unwrap()]);
        check(&output, 2);
        assert!(stderr(&output).contains(&format!("{threads} is not in 0..=1024")), "{}", stderr(&output));
    }
    check(&flagstone(["replay", "--threads", "3", file.to_str().unwrap()]), 0);
}

/// `10` is sixteen where `0x` goes without saying, and ten to most who type it.
#[test]
fn felts_on_the_command_line_have_0x_in_front() {
    let bench = Bench::new(&mainnet_lines(0..1));
    check(&bench.replay(&[]), 0);
    let db = bench.path("db");
    let proof = data("sepolia_10149255_proof.json");
    let proof = proof.to_str().unwrap();
    let get = |what: &[&str]| {
        [&["get", "--data", &db], what].concat().iter().map(|arg| (*arg).to_owned()).collect()
    };
    let commands: Vec<Vec<String>> = vec![
        get(&["nonce", "10"]),
        get(&["class-hash", "10"]),
        get(&["compiled-class-hash", "10"]),
        get(&["storage", "10", "0x5"]),
        get(&["storage", "0x5", "10"]),
        ["prove", "--data", &db, "--class", "10"].map(str::to_owned).to_vec(),
        ["prove", "--data", &db, "--contract", "10"].map(str::to_owned).to_vec(),
        ["prove", "--data", &db, "--storage", "10:0x5"].map(str::to_owned).to_vec(),
        ["prove", "--data", &db, "--storage", "0x5:10"].map(str::to_owned).to_vec(),
        ["prove", "--data", &db, "--block-hash", "10"].map(str::to_owned).to_vec(),
        ["verify-proof", "--root", "10", proof].map(str::to_owned).to_vec(),
        ["verify-proof", "--block-hash", "10", proof].map(str::to_owned).to_vec(),
    ];
    for args in commands {
        let output = flagstone(&args);
        check(&output, 2);
        let expected = "a felt has 0x in front: decimal 10 is 0xa, hexadecimal 10 is 0x10";
        assert!(stderr(&output).contains(expected), "{args:?}: {}", stderr(&output));
    }
    for (felt, expected) in [
        ("1f", "a felt is hexadecimal, with 0x in front, such as 0x1f"),
        ("12345678901234567890123456789012345678901", "with 0x in front, such as 0x1234567890"),
        ("+5", "expected a felt in hexadecimal, with 0x in front, such as 0x1f"),
        ("", "expected a felt in hexadecimal, with 0x in front, such as 0x1f"),
        ("0x", "a felt needs at least one hexadecimal digit"),
        ("0x1g", "'g' is not a hexadecimal digit"),
    ] {
        let output = flagstone(["get", "--data", &db, "nonce", felt]);
        check(&output, 2);
        assert!(stderr(&output).contains(expected), "{felt}: {}", stderr(&output));
    }
    check(&flagstone(["get", "--data", &db, "nonce", "0X10"]), 0);
}

#[test]
fn what_is_no_database_is_exit_3() {
    let bench = Bench::new("");
    for command in [&["root"][..], &["info"], &["get", "nonce", "0x1"]] {
        let db = bench.path("db");
        let args: Vec<&str> =
            command[..1].iter().chain(&["--data", &db]).chain(&command[1..]).copied().collect();
        let output = flagstone(&args);
        check(&output, 3);
        assert!(stderr(&output).contains("no flagstone database in"), "{}", stderr(&output));
        assert!(!Path::new(&db).exists(), "looking creates nothing");
    }
    // A directory with something else in it is left alone.
    fs::create_dir(bench.path("db")).unwrap();
    fs::write(bench.path("db/thesis.txt"), "years of work").unwrap();
    bench.input(&mainnet());
    let output = bench.replay(&[]);
    check(&output, 3);
    assert!(stderr(&output).contains("holds thesis.txt and no flagstone database"), "{}", stderr(&output));
    assert_eq!(fs::read_dir(bench.path("db")).unwrap().count(), 1);
}

#[test]
fn another_layout_than_the_databases_is_exit_3() {
    let bench = Bench::new(&mainnet_lines(0..2));
    check(&bench.replay(&[]), 0);
    let output = bench.replay(&["--layout", "patricia-hash"]);
    check(&output, 3);
    let expected = "layout mismatch: database was written by `flat` v2, opened as `patricia-hash` v1";
    assert!(stderr(&output).contains(expected), "{}", stderr(&output));
}

#[test]
fn a_damaged_database_is_exit_3_and_never_a_panic() {
    type Damage = fn(&Path);
    let cases: [(&str, &str, Damage); 10] = [
        ("fjall", "store emptied", |db| {
            fs::remove_dir_all(db.join("store")).unwrap();
            fs::create_dir(db.join("store")).unwrap();
        }),
        ("fjall", "store removed", |db| fs::remove_dir_all(db.join("store")).unwrap()),
        ("sled", "store files cut to 0 bytes", |db| {
            for path in files_of(&db.join("store")) {
                fs::write(path, "").unwrap();
            }
        }),
        ("fjall", "store files cut to 0 bytes", |db| {
            for path in files_of(&db.join("store")) {
                fs::write(path, "").unwrap();
            }
        }),
        ("fjall", "a byte flipped in every 4 KiB of the store's journal", |db| {
            let path = db.join("store/rows/0.jnl");
            let mut bytes = fs::read(&path).unwrap();
            bytes.iter_mut().skip(100).step_by(4096).for_each(|byte| *byte ^= 0x10);
            fs::write(&path, bytes).unwrap();
        }),
        ("sled", "log cut to 0 bytes as if after a kill", |db| {
            let _ = fs::remove_file(db.join("store/closed"));
            fs::write(db.join("store/db"), "").unwrap();
        }),
        ("sled", "a byte flipped in every 4 KiB of the log", |db| {
            let path = db.join("store/db");
            let mut bytes = fs::read(&path).unwrap();
            bytes.iter_mut().skip(100).step_by(4096).for_each(|byte| *byte ^= 0x10);
            fs::write(&path, bytes).unwrap();
        }),
        ("fjall", "marker emptied", |db| fs::write(db.join("FLAGSTONE"), "").unwrap()),
        ("sled", "journal removed", |db| fs::remove_dir_all(db.join("journal")).unwrap()),
        ("fjall", "journal cut", |db| {
            for entry in fs::read_dir(db.join("journal")).unwrap() {
                fs::write(entry.unwrap().path(), "").unwrap();
            }
        }),
    ];
    for (store, name, damage) in cases {
        let bench = Bench::new(&mainnet_lines(0..5));
        check(&bench.replay(&["--store", store]), 0);
        let db = bench.dir.path().join("db");
        damage(&db);
        let before: Vec<_> = fs::read_dir(&db).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        for args in [["root", "--data", db.to_str().unwrap()], ["info", "--data", db.to_str().unwrap()]] {
            let output = flagstone(args);
            assert_eq!(output.status.code(), Some(3), "{name}: {}{}", stdout(&output), stderr(&output));
        }
        bench.input(&mainnet_lines(5..10));
        let output = bench.replay(&[]);
        assert_eq!(output.status.code(), Some(3), "{name}: {}{}", stdout(&output), stderr(&output));
        let after: Vec<_> = fs::read_dir(&db).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(before, after, "{name}: nothing is created over it");
    }
}

#[test]
fn a_database_in_use_is_exit_3() {
    let bench = Bench::new(&mainnet_lines(0..2));
    check(&bench.replay(&[]), 0);
    let dir = bench.dir.path().join("db");
    let open = flagstone::database::open(&dir, None, flagstone::EngineConfig::default()).unwrap();
    check(&flagstone(["root", "--data", dir.to_str().unwrap()]), 3);
    drop(open);
    check(&flagstone(["root", "--data", dir.to_str().unwrap()]), 0);
}

#[test]
fn an_interrupted_creation_is_begun_again_or_finished() {
    let bench = Bench::new(&mainnet_lines(0..3));
    check(&bench.replay(&[]), 0);
    let db = bench.dir.path().join("db");
    // After FLAGSTONE was written and before the store was renamed.
    fs::rename(db.join("store"), db.join("store.new")).unwrap();
    assert_eq!(bench.root(), stated_root(2));
    // Before FLAGSTONE was written.
    let fresh = Bench::new(&mainnet());
    let db = fresh.dir.path().join("db");
    fs::create_dir_all(db.join("store.new")).unwrap();
    fs::write(db.join("store.new/db"), "half a store").unwrap();
    fs::write(db.join("FLAGSTONE.new"), "lay").unwrap();
    check(&fresh.replay(&[]), 0);
    assert_eq!(fresh.root(), stated_root(9));
}

#[test]
fn a_replay_killed_at_any_time_keeps_what_it_acknowledged() {
    use std::io::{BufRead, BufReader};
    for (layout, cadence, stop_after) in
        [("flat", "every", 1), ("flat", "3", 4), ("patricia-path", "every", 6), ("patricia-hash", "4", 8)]
    {
        let bench = Bench::new(&mainnet());
        let (db, input) = (bench.path("db"), bench.path("in.jsonl"));
        let mut child = Command::new(env!("CARGO_BIN_EXE_flagstone"))
            .args(["replay", "--json", "--layout", layout, "--commit", cadence, "--data", &db, &input])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let acknowledged: Vec<Value> =
            lines.take(stop_after).map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
        child.kill().unwrap();
        child.wait().unwrap();
        let last = acknowledged.iter().filter_map(|block| block["block"].as_u64()).max().unwrap();

        let engine =
            flagstone::database::open(Path::new(&db), None, flagstone::EngineConfig::default()).unwrap();
        engine.commit().unwrap();
        let closed = engine.head().closed.unwrap().0;
        assert!(closed >= last, "block {last} was acknowledged, the database is at {closed}");
        assert_eq!(engine.head().root.commitment.to_string(), stated_root(closed as usize));
        drop(engine);
        bench.input(&mainnet_lines(closed as usize + 1..10));
        if closed < 9 {
            check(&bench.replay(&[]), 0);
        }
        assert_eq!(bench.root(), stated_root(9));
    }
}

/// A database whose last block was reverted to, so that its store takes account of a refusal late in its journal.
fn with_a_late_refusal() -> Bench {
    let bench = Bench::new("");
    for line in 0..8 {
        bench.input(&mainnet_lines(line..line + 1));
        check(&bench.replay(&[]), 0);
    }
    check(&flagstone(["revert", "--data", &bench.path("db"), "5"]), 0);
    bench
}

fn segments(bench: &Bench) -> Vec<std::path::PathBuf> {
    let mut paths: Vec<_> =
        fs::read_dir(bench.path("db/journal")).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

#[test]
fn the_way_out_of_a_damaged_journal_leads_out() {
    let bench = with_a_late_refusal();
    let db = bench.path("db");
    let mut bytes = fs::read(&segments(&bench)[2]).unwrap();
    bytes[150] ^= 1;
    fs::write(&segments(&bench)[2], bytes).unwrap();
    let output = flagstone(["root", "--data", &db]);
    check(&output, 3);
    assert!(stderr(&output).contains("lost: block 2") && stderr(&output).contains("`flagstone recover`"));

    let output = flagstone(["recover", "--data", &db]);
    check(&output, 0);
    let expected = "the database goes on from block 5, built from the store and the journal and checked; no block is lost";
    assert_eq!(stdout(&output).trim(), expected);
    assert!(
        stderr(&output).contains(&format!("{db}/store.aside-1, {db}/journal.aside-1")),
        "{}",
        stderr(&output)
    );
    assert!(stderr(&output).contains("found: "), "{}", stderr(&output));
    assert_eq!(bench.root(), stated_root(5));
    check(&flagstone(["check", "--data", &db]), 0);
    bench.input(&mainnet_lines(6..9));
    check(&bench.replay(&[]), 0);

    // A store that is lost back to before a revert in the new journal goes back all the same.
    copy_dir(bench.path("db/store").as_ref(), bench.path("older").as_ref());
    check(&flagstone(["revert", "--data", &db, "7"]), 0);
    fs::remove_dir_all(bench.path("db/store")).unwrap();
    copy_dir(bench.path("older").as_ref(), bench.path("db/store").as_ref());
    assert_eq!(bench.root(), stated_root(7));
    check(&flagstone(["check", "--data", &db]), 0);
}

#[test]
fn a_lost_journal_is_begun_again_only_when_asked_for() {
    let bench = Bench::new(&mainnet_lines(0..4));
    check(&bench.replay(&[]), 0);
    let db = bench.path("db");
    fs::remove_dir_all(bench.path("db/journal")).unwrap();
    let output = flagstone(["info", "--data", &db]);
    check(&output, 3);
    assert!(stderr(&output).contains("`flagstone recover`"), "{}", stderr(&output));
    let output = flagstone(["recover", "--data", &db]);
    check(&output, 0);
    assert!(stdout(&output).starts_with("the database goes on from block 3"), "{}", stdout(&output));
    // What is sound stays as it is.
    let output = flagstone(["recover", "--data", &db]);
    check(&output, 2);
    assert!(stderr(&output).contains("is sound, so nothing is to be recovered"), "{}", stderr(&output));
    assert_eq!(bench.root(), stated_root(3));
    bench.input(&mainnet_lines(4..6));
    check(&bench.replay(&[]), 0);
    check(&flagstone(["check", "--data", &db]), 0);

    // Where there is no store, or no database at all, nothing is made.
    fs::remove_dir_all(bench.path("db/store")).unwrap();
    check(&flagstone(["recover", "--data", &db]), 3);
    check(&flagstone(["recover", "--data", &bench.path("none")]), 3);
    assert!(!Path::new(&bench.path("none")).exists() && !Path::new(&bench.path("db/store")).exists());
}

#[test]
fn how_many_blocks_can_be_taken_back_is_for_the_user_to_say() {
    let bench = Bench::new(&mainnet());
    check(&bench.replay(&["--history", "2"]), 0);
    let revert = |block: &str| flagstone(["revert", "--data", &bench.path("db"), block]);
    let output = revert("6");
    check(&output, 2);
    assert!(stderr(&output).contains("history reaches from block 7 to block 9"), "{}", stderr(&output));
    check(&revert("7"), 0);
    assert_eq!(bench.root(), stated_root(7));
    check(&revert("8"), 2);
    check(&revert("6"), 2);
}

/// The state before the first block is empty and has no number: the block before is not there to go back to.
#[test]
fn a_range_of_history_does_not_hold_the_block_that_it_refuses() {
    // 0, 1, 2 become 100, 101, 102.
    let bench = Bench::new(&mainnet_lines(0..3).replace("\"block_number\":", "\"block_number\":10"));
    check(&bench.replay(&[]), 0);
    for block in ["99", "5", "0"] {
        let output = flagstone(["revert", "--data", &bench.path("db"), block]);
        check(&output, 2);
        let expected =
            format!("the state after block {block} is not kept: history reaches from block 100 to block 102");
        assert!(stderr(&output).contains(&expected), "{}", stderr(&output));
    }
    check(&flagstone(["revert", "--data", &bench.path("db"), "100"]), 0);
    assert_eq!(bench.root(), stated_root(0));
}
