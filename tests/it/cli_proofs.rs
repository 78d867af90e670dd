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
    let mut forms = vec![
        params.clone(),
        call(params),
        positions.clone(),
        call(&positions),
        json!([call(params)]),
        json!([params]),
    ];
    for tag in ["latest", "l1_accepted", "pre_confirmed", "pending"] {
        let (mut by_name, mut by_position) = (params.clone(), positions.clone());
        (by_name["block_id"], by_position[0]) = (json!(tag), json!(tag));
        forms.extend([by_name, by_position]);
    }
    let (mut no_block, mut null_block) = (positions.clone(), params.clone());
    (no_block[0], null_block["block_id"]) = (Value::Null, Value::Null);
    forms.extend([no_block, null_block]);
    for asked in forms {
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

/// Lists that are null or not there ask for nothing, by name and by position.
#[test]
fn a_request_may_leave_lists_out() {
    let bench = Bench::new(&mainnet_lines(0..1));
    check(&bench.replay(&[]), 0);
    let prove = |request: &str| {
        let output =
            with_stdin(&["prove", "--data", &bench.path("db"), "--request", "-"], request.as_bytes());
        check(&output, 0);
        serde_json::from_str::<Value>(&stdout(&output)).unwrap()
    };
    let expected = prove(&json!({ "contract_addresses": [CONTRACT] }).to_string());
    assert_eq!(expected["request"]["class_hashes"], json!([]));
    for request in [
        json!(["latest", [], [CONTRACT], []]),
        json!(["latest", null, [CONTRACT]]),
        json!([null, null, [CONTRACT], null]),
        json!([{ "block_number": 0 }, [], [CONTRACT]]),
        json!({ "block_id": null, "class_hashes": null, "contract_addresses": [CONTRACT], "contracts_storage_keys": null }),
        json!({ "method": "starknet_getStorageProof", "params": [null, null, [CONTRACT]] }),
    ] {
        let proof = prove(&request.to_string());
        assert_eq!(proof["result"], expected["result"], "{request}");
    }
    assert_eq!(prove("[{\"block_number\": 0}]"), prove("[]"));
}

#[test]
fn a_request_that_is_none_is_exit_2_and_says_where() {
    for (request, expected) in [
        (
            json!({ "block_id": "newest" }),
            "block_id is \"newest\": expected \"latest\", \"l1_accepted\", \"pre_confirmed\", \"pending\", {\"block_number\": N} or {\"block_hash\": H}",
        ),
        (json!([5]), "[0] is 5: expected \"latest\""),
        (json!([{}]), "[0]: expected \"latest\""),
        (
            json!(["latest", [], [], [], []]),
            "[4]: unknown field, which would go unanswered; known here: block_id",
        ),
        (json!(["latest", ["zz"]]), "[1][0] is \"zz\""),
        (json!({ "jsonrpc": "2.0", "method": "starknet_getStorageProof" }), "params: the field is missing"),
        (
            json!({ "method": "starknet_getStorageAt", "params": [] }),
            "method is \"starknet_getStorageAt\": expected \"starknet_getStorageProof\"",
        ),
        (
            json!([{ "params": [] }, { "params": [] }]),
            "[1]: a second request begins here; keep that of the storage proof",
        ),
        (json!([{ "block_number": 1, "more": 2 }]), "unknown field, which would go unanswered"),
        (json!("latest"), "expected a request for a storage proof as a JSON object, or an array, found"),
    ] {
        let output = with_stdin(&["verify-proof", "--request", "-", &real()], request.to_string().as_bytes());
        check(&output, 2);
        assert!(stderr(&output).contains(expected), "{request}: {}", stderr(&output));
    }
    let cut = with_stdin(&["verify-proof", "--request", "-", &real()], b"[\"latest\", [");
    check(&cut, 2);
    assert!(stderr(&cut).contains("is cut off at line 1"), "{}", stderr(&cut));
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

/// Slots are proven under the storage root in their contract's leaf, so the contract is asked for with them.
#[test]
fn contracts_of_slots_are_added_to_a_request() {
    let bench = Bench::new(&mainnet());
    check(&bench.replay(&[]), 0);
    let slots = json!({ "contract_address": CONTRACT, "storage_keys": ["0x5"] });
    let none = json!({ "contract_address": "0x7", "storage_keys": [] });
    let request = json!({ "block_id": "latest", "contracts_storage_keys": [slots, none, slots] });
    let args = ["prove", "--data", &bench.path("db"), "--request", "-"];
    let output = with_stdin(&args, request.to_string().as_bytes());
    check(&output, 0);
    let note = format!("note: contract {CONTRACT} was added to the request");
    assert_eq!(stderr(&output).matches("note: ").count(), 1, "{}", stderr(&output));
    assert!(stderr(&output).contains(&note), "{}", stderr(&output));
    let proof: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(proof["request"]["contract_addresses"], json!([CONTRACT]));
    let verified = verify(&proof, &["--root", &stated_root(9)]);
    check(&verified, 0);
    assert!(stdout(&verified).contains("value 0x64"), "{}", stdout(&verified));
    // The request that was made is answered too, and a smaller one; another one is not.
    let file = bench.path("request.json");
    let with_request = |request: &Value| {
        fs::write(&file, request.to_string()).unwrap();
        verify(&proof, &["--root", &stated_root(9), "--request", &file])
    };
    let made = with_request(&request);
    check(&made, 0);
    assert!(stdout(&made).contains("value 0x64"), "{}", stdout(&made));
    check(&with_request(&json!({ "contract_addresses": [CONTRACT] })), 0);
    for other in [
        json!({ "class_hashes": ["0x5"] }),
        json!({ "contract_addresses": ["0x5"] }),
        json!({ "contracts_storage_keys": [{ "contract_address": CONTRACT, "storage_keys": ["0x6"] }] }),
        json!({ "contracts_storage_keys": [{ "contract_address": "0x7", "storage_keys": ["0x5"] }] }),
    ] {
        check(&with_request(&other), 1);
    }
    // As it was asked for with options, without a word.
    let again = with_stdin(&args, proof["request"].to_string().as_bytes());
    check(&again, 0);
    assert_eq!((stdout(&again), stderr(&again)), (stdout(&output), String::new()));
    let by_options = flagstone(["prove", "--data", &bench.path("db"), "--storage", SLOT]);
    check(&by_options, 0);
    assert_eq!(stderr(&by_options), "");
}

/// While no class is declared, and before 0.14.0, the commitment is the contracts root: only its node shows that.
#[test]
fn a_contract_is_added_to_a_request_if_the_commitment_needs_one() {
    let bench = Bench::new(&mainnet());
    check(&bench.replay(&[]), 0);
    let prove = |db: &str, more: &[&str]| flagstone(["prove", "--data", db].iter().chain(more));
    for more in [&["--class", "0x5"][..], &[]] {
        let output = prove(&bench.path("db"), more);
        check(&output, 0);
        assert!(
            stderr(&output).contains("note: contract 0x1 was added to the request"),
            "{}",
            stderr(&output)
        );
        let proof: Value = serde_json::from_str(&stdout(&output)).unwrap();
        check(&verify(&proof, &["--root", &stated_root(9)]), 0);

        // A server that answers the request as it is.
        let mut without = proof.clone();
        without["request"]["contract_addresses"] = json!([]);
        without["result"]["contracts_proof"] = json!({ "nodes": [], "contract_leaves_data": [] });
        let output = verify(&without, &["--root", &stated_root(9)]);
        check(&output, 1);
        let lead = "ask for a contract too (contract_addresses), any one will do";
        assert!(stderr(&output).contains(lead), "{}", stderr(&output));
    }
    let output = prove(&bench.path("db"), &["--class", "0x5", "--contract", "0x1234"]);
    assert_eq!(stderr(&output), "");

    // From 0.14.0 on the commitment is over both roots.
    let bench = Bench::new(&fs::read_to_string(data("v0_14_genesis.jsonl")).unwrap());
    check(&bench.replay(&[]), 0);
    let output = prove(&bench.path("db"), &["--class", "0x5"]);
    check(&output, 0);
    assert_eq!(stderr(&output), "");
    let proof: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(proof["request"]["contract_addresses"], json!([]));
    let root = proof["block"]["new_root"].as_str().unwrap();
    check(&verify(&proof, &["--root", root]), 0);
}

#[test]
fn a_slot_without_its_contract_is_refused_with_what_to_ask_for() {
    let mut file = real_json();
    file["request"]["contract_addresses"] = json!([]);
    file["result"]["contracts_proof"] = json!({ "nodes": [], "contract_leaves_data": [] });
    let output = verify(&file, &[]);
    check(&output, 1);
    let address = file["request"]["contracts_storage_keys"][0]["contract_address"].as_str().unwrap();
    let lead = format!(
        "its storage root is in the leaf of contract {address}, ask for the contract too (contract_addresses)"
    );
    assert!(stderr(&output).contains(&lead), "{}", stderr(&output));
}

/// Version 0.8.0 of the specification has no storage root in the leaf data; the second contract has no storage.
#[test]
fn an_answer_without_storage_roots_is_verified() {
    let mut file = real_json();
    for data in file["result"]["contracts_proof"]["contract_leaves_data"].as_array_mut().unwrap() {
        data.as_object_mut().unwrap().remove("storage_root");
    }
    let (stated, left_out) = (verify(&real_json(), &["--json"]), verify(&file, &["--json"]));
    check(&left_out, 0);
    assert_eq!(stdout(&left_out), stdout(&stated));
}

#[test]
fn a_tag_whose_block_the_database_does_not_know_is_refused() {
    let bench = Bench::new(&mainnet_lines(0..2));
    check(&bench.replay(&[]), 0);
    let db = bench.path("db");
    for (tag, code) in [("latest", 0), ("l1_accepted", 2), ("pre_confirmed", 2), ("pending", 2)] {
        let request = json!([tag, [], [CONTRACT]]).to_string();
        let prove = |more: &[&str]| {
            with_stdin(&[&["prove", "--data", &db, "--request", "-"], more].concat(), request.as_bytes())
        };
        let output = prove(&[]);
        check(&output, code);
        let expected = format!(
            "the request is for the block that is \"{tag}\", and the database does not know which one is; name it with --block"
        );
        assert_eq!(stderr(&output).contains(&expected), code == 2, "{}", stderr(&output));
        let named = prove(&["--block", "0"]);
        check(&named, 0);
        assert!(stdout(&named).contains(&stated_root(0)));
    }
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

/// Every block of the files that are short.
#[test]
fn witnesses_of_replayed_blocks_verify_alone() {
    for (file, blocks) in [
        ("mainnet_0_9.jsonl", 10),
        ("sepolia_0_7.jsonl", 8),
        ("v0_14_genesis.jsonl", 1),
        ("no_contract_touched_0.13.6.jsonl", 6),
        ("edge_left_at_its_last_bit.jsonl", 2),
    ] {
        let text = fs::read_to_string(data(file)).unwrap();
        for form in [&["--witness-json"][..], &[]] {
            let bench = Bench::new(&text);
            let dir = bench.path("witnesses");
            check(&bench.replay(&[&["--witness", &dir], form].concat()), 0);
            let updates = bench.path("in.jsonl");
            for (block, line) in text.lines().enumerate() {
                let update: Value = serde_json::from_str(line).unwrap();
                let witness = format!("{dir}/{block}.witness");
                let output = flagstone(["verify-witness", "--witness", &witness, "--update", &updates]);
                check(&output, 0);
                let expected = format!("new root  {}  ok", update["new_root"].as_str().unwrap());
                assert!(stdout(&output).contains(&expected), "{}", stdout(&output));
            }
            assert_eq!(fs::read_dir(&dir).unwrap().count(), blocks, "{file}");
            let bytes = fs::read(format!("{dir}/0.witness")).unwrap();
            let stdin =
                with_stdin(&["verify-witness", "--witness", "-", "--update", &updates, "--json"], &bytes);
            check(&stdin, 0);
        }
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
    other["witness_version"] = json!(1);
    let output = verify(other.to_string().as_bytes());
    check(&output, 2);
    let expected =
        "witness_version is 1: this build reads version 2, make the witness again from the block's update";
    assert!(stderr(&output).contains(expected), "{}", stderr(&output));

    let refused = bench.replay(&["--witness", &dir, "--commit", "3"]);
    check(&refused, 2);
    let bench = Bench::new(&mainnet_lines(0..1));
    check(&bench.replay(&["--witness", &dir]), 0);
    let mut bytes = fs::read(format!("{dir}/0.witness")).unwrap();
    let mut of_version_1 = bytes.clone();
    of_version_1[11] = 1;
    let output = verify(&of_version_1);
    check(&output, 2);
    assert!(
        stderr(&output).contains("it is of version 1; this build reads version 2"),
        "{}",
        stderr(&output)
    );
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
    let config = EngineConfig::default().with_cadence(Cadence::OnRequest);
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
