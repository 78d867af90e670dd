//! `prove`, `verify-proof`, `verify-witness` and `replay --witness`, through the binary.

use std::fs;
use std::io::Write;
use std::process::Output;

use flagstone::{Cadence, EngineConfig, database};
use serde_json::{Value, json};

use crate::cli::{Bench, check, flagstone, mainnet, mainnet_lines, piped, stated_root, stderr, stdout};
use crate::support::{data, updates};

/// A contract of mainnet's first block, and a slot of it.
const CONTRACT: &str = "0x735596016a37ee972c42adef6a3cf628c19bb3794369c65d2c82ba034aecf2c";
const SLOT: &str = "0x735596016a37ee972c42adef6a3cf628c19bb3794369c65d2c82ba034aecf2c:0x5";

fn real() -> String {
    data("sepolia_10149255_proof.json").to_str().unwrap().to_owned()
}

fn real_json() -> Value {
    serde_json::from_str(&fs::read_to_string(real()).unwrap()).unwrap()
}

/// Runs the command with something on its standard input.
fn with_stdin(args: &[&str], input: &[u8]) -> Output {
    let mut child = piped(args);
    // A command that does not read its input to the end may be gone already.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn verify(file: &Value, more: &[&str]) -> Output {
    with_stdin(&[&["verify-proof", "-"], more].concat(), file.to_string().as_bytes())
}

#[test]
fn the_real_proof_is_verified_in_all_its_wrappings() {
    let file = real_json();
    let root = file["block"]["new_root"].as_str().unwrap();
    let output = flagstone(["verify-proof", "--root", root, &real()]);
    check(&output, 0);
    assert_eq!(stdout(&output).lines().filter(|line| line.ends_with("ok")).count(), 8, "{}", stdout(&output));
    assert!(stdout(&output).contains("absent"));
    assert_eq!(stderr(&output), "");

    let bench = Bench::new("");
    let request = bench.path("request.json");
    let params = &file["request"];
    let positions = json!([
        params["block_id"],
        params["class_hashes"],
        params["contract_addresses"],
        params["contracts_storage_keys"]
    ]);
    let call = |params: &Value| json!({"jsonrpc": "2.0", "id": 1, "method": "starknet_getStorageProof", "params": params});
    for asked in [params.clone(), call(params), call(&positions)] {
        fs::write(&request, asked.to_string()).unwrap();
        for wrapped in [file["result"].clone(), json!({"jsonrpc": "2.0", "id": 1, "result": file["result"]})]
        {
            check(&verify(&wrapped, &["--root", root, "--request", &request]), 0);
        }
    }
    let output = verify(&file["result"], &["--root", root]);
    check(&output, 2);
    assert!(stderr(&output).contains("give what was asked with --request FILE"));
}

#[test]
fn a_root_that_the_file_states_itself_is_told_to_be_so() {
    let output = flagstone(["verify-proof", &real()]);
    check(&output, 0);
    assert!(stderr(&output).contains("note: compared with the root that the file states (0x3313b2e3"));
    let mut file = real_json();
    file["block"] = Value::Null;
    let output = verify(&file, &["--json"]);
    check(&output, 0);
    assert!(stderr(&output).contains("compared with no state commitment"));
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!((report["claims"].as_array().unwrap().len(), &report["root"]), (8, &Value::Null));
}

#[test]
fn a_proof_that_does_not_hold_is_exit_1() {
    let file = real_json();
    let refuses = |change: &dyn Fn(&mut Value), more: &[&str], expected: &str| {
        let mut file = file.clone();
        change(&mut file);
        let output = verify(&file, more);
        check(&output, 1);
        assert!(stderr(&output).contains(expected), "{}", stderr(&output));
    };
    let nothing = |_: &mut Value| {};
    refuses(&nothing, &["--root", "0xbad"], "state commitment: the roots of the proof give 0x3313b2e3");
    refuses(&nothing, &["--block-hash", "0xbad"], "expected 0xbad");
    refuses(
        &|file| file["result"]["classes_proof"][0]["node"]["left"] = json!("0x1"),
        &[],
        "its content hashes to",
    );
    refuses(
        &|file| file["block"]["block_number"] = json!(5),
        &[],
        "the proof is for block 5; the request is for block 10149255",
    );
    let fewer = |file: &mut Value| {
        file["result"]["contracts_storage_proofs"][0] = json!([]);
    };
    refuses(&fewer, &[], "the proof does not lead to storage 0x709c6298");
}

#[test]
fn a_file_that_is_no_proof_is_exit_2_and_says_where() {
    for (text, expected) in [
        ("", "standard input: holds nothing; expected a storage proof"),
        ("{", "standard input:1: the object that begins here is cut off"),
        ("[1]", "expected an object or `]`"),
        (
            "{\"error\": {\"code\": 42, \"message\": \"x\"}}",
            "a server's error is here in place of a storage proof (code 42, message \"x\"); fetch the proof again",
        ),
        ("{\"result\": {}}", "result.classes_proof: the field is missing"),
        ("{} {}", "classes_proof: the field is missing"),
    ] {
        let output = with_stdin(&["verify-proof", "-"], text.as_bytes());
        check(&output, 2);
        assert!(stderr(&output).contains(expected), "{text}: {}", stderr(&output));
    }
    let mut file = real_json();
    let first = &mut file["result"]["classes_proof"][0];
    for (node, expected) in [
        (json!({"path": "0x1", "length": 0, "child": "0x1"}), "length is 0: expected a number from 1 to 251"),
        (
            json!({"path": "0x1", "length": 252, "child": "0x1"}),
            "length is 252: expected a number from 1 to 251",
        ),
        (json!({"path": "0x4", "length": 2, "child": "0x1"}), "the path 0x4 does not fit into so many bits"),
        (json!({"path": "0x1", "length": 2, "left": "0x1"}), "the node has fields of an edge too"),
        (json!({"left": "0x1"}), "right: the field is missing"),
        (json!({"left": "0x1", "right": "0x1", "more": 1}), "unknown field, which would go unverified"),
    ] {
        first["node"] = node;
        let text = json!({ "request": {}, "result": { "classes_proof": [first], "contracts_proof": { "nodes": [], "contract_leaves_data": [] },
            "contracts_storage_proofs": [], "global_roots": { "contracts_tree_root": "0x0", "classes_tree_root": "0x0" } } });
        let output = verify(&text, &[]);
        check(&output, 2);
        assert!(stderr(&output).contains(expected), "{}", stderr(&output));
    }
    check(&flagstone(["verify-proof", "/nowhere/at/all"]), 2);
    check(&flagstone(["verify-proof"]), 2);
    check(&flagstone(["verify-proof", "--root", "nonsense", &real()]), 2);
}

#[test]
fn a_database_proves_what_it_holds_and_the_proof_verifies() {
    let bench = Bench::new(&mainnet());
    check(&bench.replay(&[]), 0);
    let db = bench.path("db");
    let absent = format!("{CONTRACT}:0x7777");
    let output = flagstone([
        "prove",
        "--data",
        &db,
        "--class",
        "0x5",
        "--contract",
        "0x1234",
        "--storage",
        SLOT,
        "--storage",
        &absent,
        "--block",
        "9",
    ]);
    check(&output, 0);
    let proof: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(proof["block"]["block_number"], 9);
    assert_eq!(proof["block"]["new_root"], stated_root(9).as_str());
    assert_eq!(proof["request"]["contract_addresses"], json!(["0x1234", CONTRACT]));

    let root = stated_root(9);
    let verified = verify(&proof, &["--root", &root, "--json"]);
    check(&verified, 0);
    let report: Value = serde_json::from_str(&stdout(&verified)).unwrap();
    let claims = report["claims"].as_array().unwrap();
    assert_eq!(claims[0], json!({"class_hash": "0x5", "proven": "absent"}));
    assert_eq!(claims[1], json!({"contract_address": "0x1234", "proven": "absent"}));
    assert_eq!(claims[3], json!({"contract_address": CONTRACT, "key": "0x5", "proven": {"value": "0x64"}}));
    assert_eq!(claims[4], json!({"contract_address": CONTRACT, "key": "0x7777", "proven": "absent"}));
    check(&verify(&proof, &["--root", &stated_root(8)]), 1);

    // The same by a request, from standard input.
    let request = proof["request"].to_string();
    let again = with_stdin(&["prove", "--data", &db, "--request", "-"], request.as_bytes());
    check(&again, 0);
    assert_eq!(stdout(&again), stdout(&output));
}

#[test]
fn what_cannot_be_proven_is_refused_with_the_reason() {
    let bench = Bench::new(&mainnet_lines(0..4));
    check(&bench.replay(&[]), 0);
    let db = bench.path("db");
    let prove = |more: &[&str]| flagstone(["prove", "--data", &db].iter().chain(more));
    for (args, expected) in [
        (["--block", "4"], "block 4 is not there: the last block is block 3"),
        (["--storage", "0x5"], "expected ADDRESS:KEY, such as 0x1234:0x5"),
        (["--storage", "0xzz:0x5"], "is not a hexadecimal digit"),
    ] {
        let output = prove(&args);
        check(&output, 2);
        assert!(stderr(&output).contains(expected), "{}", stderr(&output));
    }
    let earlier = prove(&["--block", "2"]);
    check(&earlier, 0);
    assert!(stdout(&earlier).contains(&stated_root(2)));
    let by_hash =
        with_stdin(&["prove", "--data", &db, "--request", "-"], br#"{"block_id": {"block_hash": "0x5"}}"#);
    check(&by_hash, 2);
    let two = with_stdin(
        &["prove", "--data", &db, "--block", "3", "--request", "-"],
        br#"{"block_id": {"block_number": 2}}"#,
    );
    check(&two, 2);
    assert!(stderr(&two).contains("--block is 3, but the request is for block 2"));
    check(&flagstone(["prove", "--data", &bench.path("nowhere")]), 3);
}

#[test]
fn witnesses_of_replayed_blocks_verify_alone() {
    for form in [&["--witness-json"][..], &[]] {
        let bench = Bench::new(&mainnet());
        let dir = bench.path("witnesses");
        check(&bench.replay(&[&["--witness", &dir], form].concat()), 0);
        let updates = bench.path("in.jsonl");
        for block in 0..10 {
            let file = format!("{dir}/{block}.witness");
            let output = flagstone(["verify-witness", "--witness", &file, "--update", &updates]);
            check(&output, 0);
            let expected = format!("new root  {}  ok", stated_root(block));
            assert!(stdout(&output).contains(&expected), "{}", stdout(&output));
            let bytes = fs::read(&file).unwrap();
            let stdin =
                with_stdin(&["verify-witness", "--witness", "-", "--update", &updates, "--json"], &bytes);
            check(&stdin, 0);
        }
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 10);
    }
}

#[test]
fn a_witness_that_does_not_hold_is_exit_1_and_a_damaged_one_exit_2() {
    let bench = Bench::new(&mainnet_lines(0..3));
    let dir = bench.path("witnesses");
    check(&bench.replay(&["--witness", &dir, "--witness-json"]), 0);
    let updates = bench.path("in.jsonl");
    let verify =
        |bytes: &[u8]| with_stdin(&["verify-witness", "--witness", "-", "--update", &updates], bytes);
    let witness: Value = serde_json::from_slice(&fs::read(format!("{dir}/2.witness")).unwrap()).unwrap();
    check(&verify(witness.to_string().as_bytes()), 0);
    let mut less = witness.clone();
    less["tries"][0]["before"].as_array_mut().unwrap().pop();
    let output = verify(less.to_string().as_bytes());
    check(&output, 1);
    assert!(stderr(&output).contains("it is needed and is not in the witness"), "{}", stderr(&output));
    let mut other = witness.clone();
    other["block_number"] = json!(1);
    check(&verify(other.to_string().as_bytes()), 1);
    other["block_number"] = json!(7);
    let output = verify(other.to_string().as_bytes());
    check(&output, 2);
    assert!(stderr(&output).contains("has no update of block 7"), "{}", stderr(&output));
    other["witness_version"] = json!(2);
    check(&verify(other.to_string().as_bytes()), 2);

    let refused = bench.replay(&["--witness", &dir, "--commit", "3"]);
    check(&refused, 2);
    let bench = Bench::new(&mainnet_lines(0..1));
    check(&bench.replay(&["--witness", &dir]), 0);
    let mut bytes = fs::read(format!("{dir}/0.witness")).unwrap();
    bytes[100] ^= 1;
    let output = verify(&bytes);
    check(&output, 2);
    assert!(stderr(&output).contains("its checksum does not fit its bytes"), "{}", stderr(&output));
    // A block that is refused leaves no witness.
    let wrong = mainnet_lines(0..2).replace(&stated_root(1), "0xbad");
    let (bench, dir) = (Bench::new(&wrong), bench.path("others"));
    check(&bench.replay(&["--witness", &dir]), 1);
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
}

/// What a killed process left in the journal alone is closed, and so can be proven.
#[test]
fn a_block_that_is_closed_and_not_committed_is_committed_and_proven() {
    let bench = Bench::new("");
    let db = bench.path("db");
    let config = EngineConfig { cadence: Cadence::OnRequest, ..EngineConfig::default() };
    let engine = database::open_or_create(db.as_ref(), None, None, config).unwrap();
    let updates = updates("sepolia_309146_309401.jsonl.zst");
    updates.iter().take(100).for_each(|update| drop(engine.close_block(update).unwrap()));
    let last = engine.head();
    assert!(last.committed < last.closed);
    drop(engine);
    let last = last.closed.unwrap().to_string();
    for block in [&["--block", &last][..], &[]] {
        let output = flagstone(["prove", "--data", &db, "--contract", "0x1"].iter().chain(block));
        check(&output, 0);
        let proof: Value = serde_json::from_str(&stdout(&output)).unwrap();
        assert_eq!(proof["block"]["block_number"].to_string(), last);
    }
}

#[test]
fn a_proof_that_does_not_state_the_block_that_was_asked_for_is_refused() {
    let mut file = real_json();
    let hash = file["block"]["block_hash"].take();
    file["request"]["block_id"] = json!({ "block_hash": hash });
    check(&verify(&file, &[]), 0);
    file["result"]["global_roots"]["block_hash"].take();
    let output = verify(&file, &[]);
    check(&output, 1);
    let expected = format!("the request is for block {}", hash.as_str().unwrap());
    assert!(stderr(&output).contains(&expected), "{}", stderr(&output));
}
