use std::io::{self, Write};
use std::path::PathBuf;

use flagstone_core::diff::StateDiff;
use flagstone_core::types::{BlockNumber, ContractAddress};
use proptest::prelude::*;

use super::*;

const JSON_RPC: &str = r#"{"block_number": 5, "block_hash": "0xb5", "old_root": "0x1", "new_root": "0x2",
    "starknet_version": "0.13.5", "state_diff": {
    "storage_diffs": [{"address": "0xa", "storage_entries": [{"key": "0x1", "value": "0x2"}, {"key": "0x3", "value": "0x0"}]},
                      {"address": "0xb", "storage_entries": [{"key": "0x1", "value": "0x4"}]}],
    "nonces": [{"contract_address": "0xa", "nonce": "0x5"}],
    "deployed_contracts": [{"address": "0xa", "class_hash": "0xc1"}],
    "replaced_classes": [{"contract_address": "0xb", "class_hash": "0xc2"}],
    "declared_classes": [{"class_hash": "0xc3", "compiled_class_hash": "0xcc3"}],
    "migrated_compiled_classes": [{"class_hash": "0xc4", "compiled_class_hash": "0xcc4"}],
    "deprecated_declared_classes": ["0xd1", "0xd2"]}}"#;

const FEEDER: &str = r#"{"block_number": "0x5", "block_hash": "b5", "old_root": "0001", "new_root": "02",
    "starknet_version": "0.13.5", "state_diff": {
    "storage_diffs": {"0x0b": [{"key": "01", "value": "04"}], "0xa": [{"key": "0x3", "value": "0x0"}, {"key": "0x1", "value": "0x2"}]},
    "nonces": {"0xa": "0x5"},
    "deployed_contracts": [{"address": "0xa", "class_hash": "0xc1"}],
    "replaced_classes": [{"address": "0xb", "class_hash": "0xc2"}],
    "declared_classes": [{"compiled_class_hash": "0xcc3", "class_hash": "0xc3"}],
    "migrated_compiled_classes": [{"class_hash": "0xc4", "compiled_class_hash": "0xcc4"}],
    "old_declared_contracts": ["0xd2", "0xd1"]}}"#;

fn reader(bytes: impl AsRef<[u8]>) -> UpdateReader {
    UpdateReader::from_reader("f", io::Cursor::new(bytes.as_ref().to_vec())).unwrap()
}

fn read(bytes: impl AsRef<[u8]>) -> Result<Vec<StateUpdate>, InputError> {
    reader(bytes).map(|found| found.map(|located| located.update)).collect()
}

#[track_caller]
fn check_error(bytes: impl AsRef<[u8]>, kind: InputErrorKind, text: &str) {
    let mut reader = reader(bytes);
    let error = reader.by_ref().find_map(Result::err).expect("an error");
    assert_eq!((error.to_string().as_str(), error.kind()), (text, kind));
    assert!(reader.next().is_none(), "nothing comes after an error");
}

/// An update of block 5 with this state diff, on the first line.
fn with_diff(diff: &str) -> String {
    format!(r#"{{"block_number": 5, "state_diff": {diff}}}"#)
}

#[track_caller]
fn check_diff_error(diff: &str, kind: InputErrorKind, text: &str) {
    check_error(with_diff(diff), kind, &format!("f:1: block 5: {text}"));
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

fn data(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// Updates, contracts, storage entries, class hashes, nonces, Sierra classes, Cairo 0 classes; counted by a script of
/// another language over the same files.
#[track_caller]
fn check_file(name: &str, counts: [usize; 7], last_block: Option<u64>, last_root: &str) {
    let mut reader = UpdateReader::open(&data(name)).unwrap();
    let updates: Vec<_> = reader.by_ref().collect::<Result<_, _>>().unwrap();
    let diffs = || updates.iter().map(|located| &located.update.diff);
    let contracts = || diffs().flat_map(|diff| diff.contracts());
    let found = [
        updates.len(),
        contracts().count(),
        contracts().map(|contract| contract.storage.len()).sum(),
        contracts().filter(|contract| contract.class_hash.is_some()).count(),
        contracts().filter(|contract| contract.nonce.is_some()).count(),
        diffs().map(|diff| diff.classes().len()).sum(),
        diffs().map(|diff| diff.deprecated_classes().len()).sum(),
    ];
    assert_eq!(found, counts);
    let last = &updates.last().unwrap().update;
    assert_eq!(last.block_number.map(|number| number.0), last_block);
    assert_eq!(last.new_root.unwrap().to_string(), last_root);
    assert_eq!(updates.last().unwrap().line, updates.len() as u64, "all files begin an update per line");
    assert_eq!(reader.total_bytes(), Some(std::fs::metadata(data(name)).unwrap().len()));
    assert_eq!(Some(reader.bytes_read()), reader.total_bytes());
}

#[test]
fn small_real_files_parse_with_the_counted_content() {
    check_file(
        "mainnet_0_9.jsonl",
        [10, 69, 168, 29, 0, 0, 0],
        Some(9),
        "0x27e6e1b37a9af4fd44b42752be35ec6c6ee43734342002c1151a403cc6e867f",
    );
    check_file(
        "sepolia_0_7.jsonl",
        [8, 18, 25, 10, 6, 3, 0],
        Some(7),
        "0x4604bb7f9ebbf8bf909ba5982b11adf2ed3638f1d736036ddb4154889e139a0",
    );
    check_file(
        "v0_14_genesis.jsonl",
        [1, 1, 1, 0, 0, 0, 0],
        Some(0),
        "0x68bcf9e9257ab6bffd9425833a208aaab6b85649fd21c787a546cb7cb9abf",
    );
    check_file(
        "mainnet_block_4130000.feeder.json",
        [1, 26, 66, 0, 7, 1, 0],
        None,
        "0x7e72ca880e4fa1f4987257d90b2642860a4574a03b79ac830f6fb5968520977",
    );
}

#[test]
fn compressed_real_files_parse_with_the_counted_content() {
    check_file(
        "mainnet_block_631861.json.gz",
        [1, 365, 1598, 7, 264, 0, 0],
        None,
        "0x4943efe1cc2d0a9c70fadbf8cce18b02da7a8a0150c7487ce13262f57f1cbec",
    );
    check_file(
        "mainnet_block_65000.feeder.json.zst",
        [1, 242, 1175, 9, 215, 0, 0],
        None,
        "0x7b67971649c24ca8999ac9b8a645133e6f37ada7f7d6696c58be6df263ac58a",
    );
    check_file(
        "sepolia_309146_309401.jsonl.zst",
        [256, 4963, 35719, 347, 1975, 32, 0],
        Some(309401),
        "0x57d0693335a9e270aa9c5e9acdf9de93105997ad240ea3bed762ab1bb495767",
    );
    check_file(
        "sepolia_789878_790377.jsonl.gz",
        [500, 6318, 17452, 123, 2441, 21, 0],
        Some(790377),
        "0x149ee449b6d4a55a89434f6a5e50bc94256b713c19078b4567ab232a5fc70da",
    );
}

#[test]
fn versions_and_numbers_are_read_from_real_files() {
    let first = UpdateReader::open(&data("v0_14_genesis.jsonl")).unwrap().next().unwrap().unwrap().update;
    assert_eq!(first.starknet_version, Some("0.14.0".parse().unwrap()));
    assert_eq!((first.old_root, first.block_hash), (None, None));
    let reader = UpdateReader::open(&data("sepolia_309146_309401.jsonl.zst")).unwrap();
    let numbers: Vec<_> = reader.map(|found| found.unwrap().update.block_number.unwrap().0).collect();
    assert_eq!(numbers, (309_146..=309_401).collect::<Vec<_>>());
}

#[test]
fn both_spellings_give_the_same_update() {
    let [update] = read(JSON_RPC).unwrap().try_into().unwrap();
    assert_eq!(read(FEEDER).unwrap(), std::slice::from_ref(&update));
    let expected = StateDiff::builder()
        .storage(0xa.into(), 1.into(), 2.into())
        .storage(0xa.into(), 3.into(), 0.into())
        .storage(0xb.into(), 1.into(), 4.into())
        .nonce(0xa.into(), 5.into())
        .class_hash(0xa.into(), 0xc1.into())
        .class_hash(0xb.into(), 0xc2.into())
        .class(0xc3.into(), 0xcc3.into())
        .class(0xc4.into(), 0xcc4.into())
        .deprecated_class(0xd1.into())
        .deprecated_class(0xd2.into())
        .build()
        .unwrap();
    let expected = StateUpdate {
        block_number: Some(BlockNumber(5)),
        block_hash: Some(0xb5.into()),
        starknet_version: Some("0.13.5".parse().unwrap()),
        old_root: Some(1.into()),
        new_root: Some(2.into()),
        diff: expected,
    };
    assert_eq!(update, expected);
}

#[test]
fn wrapped_updates_are_unwrapped() {
    let bare = read(JSON_RPC).unwrap();
    let inner = JSON_RPC.replace(r#""block_number": 5,"#, "").replace(r#""starknet_version": "0.13.5","#, "");
    let block =
        r#"{"block_number": 5, "starknet_version": "0.13.5", "block_hash": "0xB5", "gas": {"x": [1.5]}}"#;
    assert_eq!(read(format!(r#"{{"jsonrpc": "2.0", "id": 1, "result": {JSON_RPC}}}"#)).unwrap(), bare);
    assert_eq!(read(format!(r#"{{"block": {block}, "state_update": {inner}}}"#)).unwrap(), bare);
    assert_eq!(read(format!(r#"{{"error": null, "state_update": {FEEDER}, "block": null}}"#)).unwrap(), bare);
    let both = format!(r#"{{"id": "a", "result": {{"state_update": {inner}, "block": {block}}}}}"#);
    assert_eq!(read(both).unwrap(), bare);
}

#[test]
fn absent_null_and_unknown_are_nothing() {
    let empty = [StateUpdate::default()];
    for text in [
        r#"{"state_diff": {}}"#,
        r#"{"state_diff": {"storage_diffs": null, "nonces": null, "deployed_contracts": [], "storage_diffs_": null}}"#,
        r#"{"block_number": null, "block_hash": null, "starknet_version": "", "new_root": null, "state_diff": {"nonces": {}}}"#,
        r#"{"starknet_version": null, "finality": {"state_diff": 5}, "finality": 7, "state_diff": {"nonces": []}}"#,
    ] {
        assert_eq!(read(text.replace(r#", "storage_diffs_": null"#, "")).unwrap(), empty, "{text}");
    }
}

#[test]
fn block_numbers_have_three_spellings() {
    for number in ["631861", "\"631861\"", "\"0x9a435\""] {
        let update = &read(format!(r#"{{"block_number": {number}, "state_diff": {{}}}}"#)).unwrap()[0];
        assert_eq!(update.block_number, Some(BlockNumber(631_861)));
    }
    for number in
        ["-1", "1.5", "18446744073709551616", "\"+5\"", "\"0x+5\"", "\"\"", "\"9a\"", "\"latest\"", "[]"]
    {
        let error = read(format!(r#"{{"block_number": {number}, "state_diff": {{}}}}"#)).unwrap_err();
        assert_eq!((error.kind(), error.field()), (InputErrorKind::Field, Some("block_number")), "{number}");
    }
    check_error(
        r#"{"block_number": "latest", "state_diff": {}}"#,
        InputErrorKind::Field,
        r#"f:1: block_number is "latest": expected a block number below 2^64, such as 631861 or "0x9a435""#,
    );
}

#[test]
fn one_address_may_come_twice_if_the_entries_agree() {
    let diff = r#"{"storage_diffs": {"0x1": [{"key": "0x2", "value": "0x3"}], "0x01": [{"key": "0x2", "value": "0x3"}, {"key": "0x4", "value": "0x5"}]},
                   "nonces": {"0x1": "0x2", "0x1": "0x2"}}"#;
    let update = &read(with_diff(diff)).unwrap()[0];
    let contract = update.diff.contract(&ContractAddress::from(1)).unwrap();
    assert_eq!((contract.storage.len(), contract.nonce), (2, Some(2.into())));
}

#[test]
fn bad_felts_are_refused_with_path_and_value() {
    const P: &str = "0x800000000000011000000000000000000000000000000000000000000000001";
    const TWO_251: &str = "0x800000000000000000000000000000000000000000000000000000000000000";
    let entry = r#"{"key": "0x1", "value": "0x1"}"#;
    check_diff_error(
        &format!(
            r#"{{"storage_diffs": [{{"address": "0x1", "storage_entries": [{entry}, {{"key": "0x2", "value": "{P}"}}]}}]}}"#
        ),
        InputErrorKind::Field,
        &format!(
            r#"state_diff.storage_diffs[0].storage_entries[1].value is "{P}": a felt must be below 2^251 + 17*2^192 + 1"#
        ),
    );
    check_diff_error(
        &format!(r#"{{"storage_diffs": {{"0x1": [{{"key": "{TWO_251}", "value": "0x1"}}]}}}}"#),
        InputErrorKind::Field,
        &format!(r#"state_diff.storage_diffs["0x1"][0].key is "{TWO_251}": a trie key must be below 2^251"#),
    );
    check_diff_error(
        &format!(r#"{{"nonces": {{"{TWO_251}": "0x1"}}}}"#),
        InputErrorKind::Field,
        &format!(r#"state_diff.nonces["{TWO_251}"] is "{TWO_251}": a trie key must be below 2^251"#),
    );
    check_diff_error(
        &format!(
            r#"{{"migrated_compiled_classes": [{{"class_hash": "{TWO_251}", "compiled_class_hash": "0x1"}}]}}"#
        ),
        InputErrorKind::Field,
        &format!(
            r#"state_diff.migrated_compiled_classes[0].class_hash is "{TWO_251}": a trie key must be below 2^251"#
        ),
    );
    check_diff_error(
        r#"{"old_declared_contracts": ["0x1", ""]}"#,
        InputErrorKind::Field,
        r#"state_diff.old_declared_contracts[1] is "": a felt needs at least one hexadecimal digit; expected a felt in hexadecimal, such as 0x1f"#,
    );
    check_error(
        "\n\n{\"new_root\": \"0xno\\n\\u001b\", \"state_diff\": {}}",
        InputErrorKind::Field,
        r#"f:3: new_root is "0xno\n\u{1b}": '\u{1b}' is not a hexadecimal digit; expected a felt in hexadecimal, such as 0x1f"#,
    );
}

#[test]
fn long_values_are_cut() {
    let error =
        read(with_diff(&format!(r#"{{"nonces": [{{"address": "{}"}}]}}"#, "é".repeat(5000)))).unwrap_err();
    assert_eq!(error.value(), Some(format!("\"{}\"...", "é".repeat(80)).as_str()));
    let error = read(with_diff(&format!(r#"{{"nonces": {{"{}": 5}}}}"#, "x".repeat(5000)))).unwrap_err();
    assert!(error.to_string().len() < 400, "{error}");
}

#[test]
fn wrong_types_and_missing_fields_are_refused() {
    let felt = "a string with a felt in hexadecimal, such as \"0x1f\"";
    for (diff, text) in [
        (r#"{"nonces": {"0x1": 5}}"#, format!(r#"state_diff.nonces["0x1"] is 5: expected {felt}, found a number"#)),
        (r#"{"nonces": "0x1"}"#, r#"state_diff.nonces is "0x1": expected a list, found a string"#.into()),
        (r#"{"nonces": [["0x1"]]}"#, "state_diff.nonces[0]: expected an object, found a list".into()),
        (r#"{"storage_diffs": {"0x1": null}}"#, r#"state_diff.storage_diffs["0x1"]: expected a list, found null"#.into()),
        ("[]", "state_diff: expected an object, found a list".into()),
        (
            r#"{"nonces": [{"contract_address": "0x1"}]}"#,
            format!("state_diff.nonces[0].nonce: the field is missing; expected {felt}"),
        ),
        (
            r#"{"deployed_contracts": [{"class_hash": "0x1", "address": null}]}"#,
            format!("state_diff.deployed_contracts[0].address: the field is missing; expected {felt}"),
        ),
        (
            r#"{"storage_diffs": [{"address": "0x1"}]}"#,
            r#"state_diff.storage_diffs[0].storage_entries: the field is missing; expected a list of {"key", "value"}"#.into(),
        ),
    ] {
        check_diff_error(diff, InputErrorKind::Field, &text);
    }
    check_diff_error(
        "null",
        InputErrorKind::Field,
        "state_diff: the field is missing; expected an object with what the block changes",
    );
    let error = UpdateReader::open(&data("trie_unit.json")).unwrap().next().unwrap().unwrap_err();
    assert_eq!((error.kind(), error.field()), (InputErrorKind::Field, Some("state_diff")));
    check_error(
        r#"{"starknet_version": "v0.13", "block_number": 8, "state_diff": {}}"#,
        InputErrorKind::Field,
        r#"f:1: block 8: starknet_version is "v0.13": expected a protocol version of two to four numbers with points between, such as 0.13.5"#,
    );
}

#[test]
fn unknown_fields_within_the_diff_are_refused() {
    check_diff_error(
        r#"{"nonces": [], "balances": true}"#,
        InputErrorKind::Field,
        r#"state_diff["balances"] is true: unknown field, which could be a change to the state; known here: storage_diffs, nonces, deployed_contracts, replaced_classes, declared_classes, migrated_compiled_classes, deprecated_declared_classes, old_declared_contracts, declared_contracts"#,
    );
    check_diff_error(
        r#"{"storage_diffs": {"0x1": [{"key": "0x1", "value": "0x2", "old": null}]}}"#,
        InputErrorKind::Field,
        r#"state_diff.storage_diffs["0x1"][0]["old"]: unknown field, which could be a change to the state; known here: key, value"#,
    );
}

#[test]
fn what_is_said_twice_must_agree() {
    for (diff, text) in [
        (
            r#"{"nonces": {"0x1": "0x2", "0x01": "0x3"}}"#,
            "state_diff: nonce of contract 0x1 is set twice, to 0x2 and to 0x3; keep one",
        ),
        (
            r#"{"storage_diffs": {"0x1": [{"key": "0x7", "value": "0x2"}], "0x1": [{"key": "0x7", "value": "0x3"}]}}"#,
            "state_diff: storage 0x7 of contract 0x1 is set twice, to 0x2 and to 0x3; keep one",
        ),
        (
            r#"{"deployed_contracts": [{"address": "0x1", "class_hash": "0x2"}], "replaced_classes": [{"address": "0x1", "class_hash": "0x3"}]}"#,
            "state_diff: class hash of contract 0x1 is set twice, to 0x2 and to 0x3; keep one",
        ),
        (
            r#"{"nonces": {}, "nonces": {"0x1": "0x2"}}"#,
            "state_diff.nonces: the field is given twice; keep one",
        ),
        (
            r#"{"storage_diffs": {"0x1": [{"key": "0x1", "value": "0x2", "value": "0x2"}]}}"#,
            r#"state_diff.storage_diffs["0x1"][0].value is "0x2": the field is given twice; keep one"#,
        ),
        (
            r#"{"nonces": [{"address": "0x1", "contract_address": "0x1", "nonce": "0x1"}]}"#,
            r#"state_diff.nonces[0].contract_address is "0x1": there is an "address" beside it; keep one of them"#,
        ),
    ] {
        check_diff_error(diff, InputErrorKind::Conflict, text);
    }
    check_error(
        r#"{"state_diff": {}, "state_diff": {"nonces": {"0x1": "0x2"}}}"#,
        InputErrorKind::Conflict,
        "f:1: state_diff: the field is given twice; keep one",
    );
    check_error(
        r#"{"state_diff": {}, "state_update": {"state_diff": {}}}"#,
        InputErrorKind::Conflict,
        r#"f:1: state_diff: there is a "state_update" beside it; keep one of them"#,
    );
    check_error(
        r#"{"state_update": {"state_diff": {}}, "result": {"state_diff": {}}}"#,
        InputErrorKind::Conflict,
        r#"f:1: state_update: there is a "result" beside it; keep one of them"#,
    );
    check_error(
        r#"{"block": {"block_number": 6}, "state_update": {"block_number": 5, "state_diff": {}}}"#,
        InputErrorKind::Conflict,
        "f:1: block.block_number is 6: in the same object state_update.block_number is 5; keep one",
    );
    check_error(
        r#"{"block": {"state_root": "0x6"}, "state_update": {"new_root": "0x5", "state_diff": {}}}"#,
        InputErrorKind::Conflict,
        "f:1: block.state_root is \"0x6\": in the same object state_update.new_root is 0x5; keep one",
    );
    check_error(
        r#"{"block": {"state_root": "0x6", "new_root": "0x5"}, "state_update": {"state_diff": {}}}"#,
        InputErrorKind::Conflict,
        "f:1: block.state_root is \"0x6\": in the same object block.new_root is 0x5; keep one",
    );
}

/// What the feeder gateway calls a block's root is stated as any other: it is compared.
#[test]
fn a_root_is_stated_by_the_block_alone_too() {
    let text = r#"{"block": {"state_root": "06"}, "state_update": {"state_diff": {}}}"#;
    let update = UpdateReader::from_reader("f", text.as_bytes()).unwrap().next().unwrap().unwrap().update;
    assert_eq!(update.new_root, Some(6.into()));
}

#[test]
fn answers_with_an_error_are_quoted() {
    let way_out = "fetch the update again";
    for (text, said) in [
        (
            r#"{"jsonrpc": "2.0", "id": 1, "error": {"code": 24, "message": "Block not\nfound"}}"#,
            r#"code 24, message "Block not\nfound""#,
        ),
        (
            r#"{"code": "StarknetErrorCode.BLOCK_NOT_FOUND", "message": "no"}"#,
            r#"code "StarknetErrorCode.BLOCK_NOT_FOUND", message "no""#,
        ),
        (r#"{"error": "rate limit"}"#, r#""rate limit""#),
    ] {
        let text = text.replace("not\nfound", r"not\nfound");
        let expected =
            format!("f:1: a server's error is here in place of a state update ({said}); {way_out}");
        check_error(text, InputErrorKind::Field, &expected);
    }
}

#[test]
fn text_that_is_not_json_is_refused() {
    let expected = "f:1: expected a state update as a JSON object, or an array of them, found";
    check_error("hello", InputErrorKind::Syntax, &format!("{expected} `h`"));
    check_error("\u{7f}ELF", InputErrorKind::Syntax, &format!("{expected} byte 0x7f"));
    check_error("\u{fe00}", InputErrorKind::Syntax, &format!("{expected} byte 0xef"));
    check_error(
        "{\"a\": 1, }",
        InputErrorKind::Syntax,
        "f:1: not valid JSON at column 10 of the line: trailing comma (in the object that begins at line 1)",
    );
    check_error(
        "\n  {\"a\" 1}",
        InputErrorKind::Syntax,
        "f:2: not valid JSON at column 8 of the line: expected `:` (in the object that begins at line 2)",
    );
    check_error(
        "{\"a\":\n 1]",
        InputErrorKind::Syntax,
        "f:2: not valid JSON at column 3 of the line: expected `,` or `}` (in the object that begins at line 1)",
    );
    check_error(
        b"{\"a\":\n \"\xff\"}",
        InputErrorKind::Syntax,
        "f:2: not valid JSON at column 3 of the line: byte 0xff is not UTF-8 (in the object that begins at line 1)",
    );
    check_error(
        format!("{{\"a\": {}{}}}", "[".repeat(5000), "]".repeat(5000)),
        InputErrorKind::Syntax,
        "f:1: not valid JSON at column 133 of the line: recursion limit exceeded (in the object that begins at line 1)",
    );
}

#[test]
fn cut_off_text_is_named_by_its_begin_and_its_end() {
    let text = format!("\n{JSON_RPC}\n{JSON_RPC}");
    check_error(
        &text[..text.len() - 5],
        InputErrorKind::Syntax,
        "f:12: the object that begins here is cut off at line 21, where the input ends; fetch the file again",
    );
    check_error(
        format!("[{JSON_RPC},\n"),
        InputErrorKind::Syntax,
        "f:1: the array that begins here is cut off at line 11, where the input ends; fetch the file again",
    );
    // A line cut short in the middle of a file is found where it is, though its object never ends.
    check_error(
        format!("{{}}\n{{\"state_diff\": {{\"nonces\": \n{}", "{\"a\": {}}\n".repeat(1000)).replacen(
            "{}",
            "{\"state_diff\": {}}",
            1,
        ),
        InputErrorKind::Syntax,
        "f:4: not valid JSON at column 1 of the line: expected `,` or `}` (in the object that begins at line 2)",
    );
}

#[test]
fn arrays_need_their_commas_and_nothing_else() {
    let update = r#"{"state_diff": {}}"#;
    for (text, problem) in [
        (
            format!("[{update}\n{update}]"),
            "f:2: expected `,` or `]` in the array that begins at line 1, found `{`",
        ),
        (
            format!("[{update},]"),
            "f:1: expected an object after `,` in the array that begins at line 1, found `]`",
        ),
        (
            format!("[,{update}]"),
            "f:1: expected an object or `]` in the array that begins at line 1, found `,`",
        ),
        (
            format!("[[{update}]]"),
            "f:1: expected an object or `]` in the array that begins at line 1, found `[`",
        ),
        (
            format!("[{update}]\nend"),
            "f:2: expected a state update as a JSON object, or an array of them, found `e`",
        ),
        (
            format!("[{update}]]"),
            "f:1: expected a state update as a JSON object, or an array of them, found `]`",
        ),
        (
            format!("{update},\n{update}"),
            "f:1: expected a state update as a JSON object, or an array of them, found `,`",
        ),
    ] {
        check_error(text, InputErrorKind::Syntax, problem);
    }
}

#[test]
fn input_without_updates_is_refused() {
    let text = "f: holds no state update; expected the JSON of starknet_getStateUpdate or get_state_update";
    for bytes in [&b""[..], b" \n\t\r\n", b"[]", b"\xef\xbb\xbf", &gzip(b""), &zstd(b"\n")] {
        check_error(bytes, InputErrorKind::Empty, text);
    }
}

#[test]
fn too_large_updates_are_refused_before_they_are_all_read() {
    let endless = io::Cursor::new(br#"{"a": ""#.to_vec()).chain(io::repeat(b'x'));
    let mut endless = UpdateReader::from_reader("f", endless).unwrap();
    endless.frames.bytes_max = 1_000_000;
    let error = endless.next().unwrap().unwrap_err();
    assert_eq!(error.kind(), InputErrorKind::TooLarge);
    assert_eq!(
        error.to_string(),
        "f:1: the object that begins here is too large; a state update may have at most 1000000 bytes and 16777216 values"
    );
    assert!(endless.bytes_read() < 1_200_000);
    let mut many = reader(format!(r#"{{"a": [{}0]}}"#, "0,".repeat(100)));
    many.frames.values_max = 50;
    assert_eq!(many.next().unwrap().unwrap_err().kind(), InputErrorKind::TooLarge);
}

#[test]
fn unreadable_input_is_an_io_error() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("the disk is gone"))
        }
    }
    let error = UpdateReader::from_reader("f", Broken).err().unwrap();
    assert_eq!(
        (error.to_string().as_str(), error.kind()),
        ("f: cannot read: the disk is gone", InputErrorKind::Io)
    );
    let update = b"{\"state_diff\": {}}\n";
    for bytes in [update.to_vec(), gzip(update), zstd(update)] {
        let mut reader = UpdateReader::from_reader("f", io::Cursor::new(bytes).chain(Broken)).unwrap();
        let error = reader.find_map(Result::err).unwrap();
        assert_eq!(error.kind(), InputErrorKind::Io, "{error}");
        assert!(error.to_string().ends_with(": cannot read: the disk is gone"), "{error}");
    }
    let error = UpdateReader::open(&data("no such file")).err().unwrap();
    assert_eq!(error.kind(), InputErrorKind::Io);
    assert!(error.to_string().contains("no such file: cannot open: "), "{error}");
    let error = UpdateReader::open(&data("")).err().unwrap();
    assert_eq!(error.kind(), InputErrorKind::Io, "a folder: {error}");
}

#[test]
fn damaged_compression_is_told_from_damaged_text() {
    let gz = gzip(JSON_RPC.as_bytes());
    check_error(
        &gz[..gz.len() - 9],
        InputErrorKind::Compression,
        "f:10: the gzip data is damaged or cut short (incomplete deflate stream); fetch the file again",
    );
    check_error(
        &zstd(JSON_RPC.as_bytes())[..7],
        InputErrorKind::Compression,
        "f:1: the zstd data is damaged or cut short (Failed to parse/decode block body: Error while reading the block header); fetch the file again",
    );
    let real = std::fs::read(data("mainnet_block_65000.feeder.json.zst")).unwrap();
    let flipped = |at: usize| {
        let mut bytes = real.clone();
        bytes[at] ^= 0x10;
        read(bytes).unwrap_err()
    };
    assert_eq!(flipped(real.len() / 2).kind(), InputErrorKind::Compression);
    assert_eq!(flipped(real.len() - 1).kind(), InputErrorKind::Compression, "the checksum");
}

#[test]
fn members_frames_and_marks_are_joined() {
    let one = read(JSON_RPC).unwrap().remove(0);
    let two = [one.clone(), one];
    let (head, tail) = JSON_RPC.split_at(100);
    let parts = [head, tail, "\n", JSON_RPC].map(str::as_bytes);
    assert_eq!(read(parts.map(gzip).concat()).unwrap(), two);
    let skipped = [&[0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"any"].concat();
    let [a, b, c, d] = parts.map(zstd);
    assert_eq!(
        read([&skipped, &a, &b, &skipped, &c, &d, &skipped].map(|frame| &frame[..]).concat()).unwrap(),
        two
    );
    let marked = format!("\u{feff}{JSON_RPC}");
    assert_eq!(read(&marked).unwrap(), two[..1]);
    assert_eq!(read(gzip(marked.as_bytes())).unwrap(), two[..1]);
}

#[test]
fn updates_know_their_file_and_line() {
    let found: Vec<_> =
        reader(format!("\n[\n{FEEDER},{JSON_RPC}\n] {JSON_RPC}")).map(Result::unwrap).collect();
    assert_eq!(found.iter().map(|located| located.line).collect::<Vec<_>>(), [3, 11, 21]);
    assert!(found.iter().all(|located| located.source == "f"));
}

#[test]
fn numbers_are_numbers_whatever_features_the_parser_was_built_with() {
    use serde::Deserialize as _;
    use serde::de::value::{Error, MapDeserializer};
    let fields = [("$serde_json::private::Number", "12")];
    let json = Json::deserialize(MapDeserializer::<_, Error>::new(fields.into_iter())).unwrap();
    assert_eq!(json, Json::Number("12".into()));
}

#[test]
fn every_truncation_is_an_error_or_fewer_updates() {
    let text = format!("[{JSON_RPC},\n{FEEDER}]");
    let lines = format!("{}\n{FEEDER}\n", JSON_RPC.replace('\n', ""));
    let whole = read(&text).unwrap();
    let check = |bytes: &[u8]| {
        for end in 0..bytes.len() {
            match read(&bytes[..end]) {
                Ok(updates) => assert!(whole.starts_with(&updates), "cut at {end}"),
                Err(error) => assert!(!error.to_string().contains('\n'), "cut at {end}"),
            }
        }
    };
    [text, lines].iter().for_each(|text| check(text.as_bytes()));
    check(&gzip(FEEDER.as_bytes()));
    check(&zstd(FEEDER.as_bytes()));
}

/// Gives few bytes at a time, so that every state of the scanner meets the end of a chunk.
struct Drip(io::Cursor<Vec<u8>>, usize);

impl Read for Drip {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let length = into.len().min(self.1);
        self.0.read(&mut into[..length])
    }
}

proptest! {
    #[test]
    fn layout_compression_and_chunks_do_not_matter(
        numbers in prop::collection::vec(0u64..1000, 1..6), chunk in 1usize..9, layout in 0..4, codec in 0..3,
    ) {
        let texts: Vec<_> = numbers.iter().map(|number| FEEDER.replace("\"0x5\",", &format!("{number},"))).collect();
        let text = match layout {
            0 => format!("[{}]", texts.join(" ,")),
            1 => texts.iter().map(|text| text.replace('\n', "") + "\n").collect(),
            2 => texts.concat(),
            _ => texts.iter().map(|text| text.replace(' ', "\r\n\t ")).collect(),
        };
        let bytes = match codec {
            0 => text.into_bytes(),
            1 => gzip(text.as_bytes()),
            _ => zstd(text.as_bytes()),
        };
        let reader = UpdateReader::from_reader("f", Drip(io::Cursor::new(bytes), chunk)).unwrap();
        let expected = read(JSON_RPC).unwrap().remove(0);
        let expected: Vec<_> = numbers
            .into_iter()
            .map(|number| StateUpdate { block_number: Some(BlockNumber(number)), ..expected.clone() })
            .collect();
        prop_assert_eq!(reader.map(|found| found.unwrap().update).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn mutated_input_never_panics(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3), 1..8), codec in 0..3,
    ) {
        let text = format!("{JSON_RPC}\n{FEEDER}").into_bytes();
        let mut bytes = match codec {
            0 => text,
            1 => gzip(&text),
            _ => zstd(&text),
        };
        for (at, byte, how) in changes {
            let at = at.index(bytes.len());
            match how {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                _ => bytes.truncate(bytes.len().max(2) - 1),
            }
        }
        if let Err(error) = read(bytes) {
            prop_assert!(!error.to_string().contains('\n'));
        }
    }

    #[test]
    fn mutated_real_zstd_never_panics(changes in prop::collection::vec((0usize..2000, any::<u8>()), 1..4)) {
        let mut bytes = std::fs::read(data("mainnet_block_65000.feeder.json.zst")).unwrap();
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        let _either_is_fine = read(bytes);
    }
}
