//! From a JSON object to a [`StateUpdate`]: both spellings, with or without a wrapping.
//!
//! Within `state_diff` nothing is skipped: an unknown field there could be a write to the state, and to drop it would
//! give a wrong root much later. Around it unknown fields are other people's business.

use std::fmt;

use flagstone_core::commitment::StarknetVersion;
use flagstone_core::diff::{StateDiff, StateDiffBuilder};
use flagstone_core::types::{BlockNumber, ContractAddress};
use flagstone_core::update::StateUpdate;

use super::error::{InputError, InputErrorKind};
use super::json::Json;
use super::node::{Node, Path};

/// Reads the update in an object.
pub(super) fn read_update(json: &Json<'_>) -> Result<StateUpdate, InputError> {
    let root = Node { json, path: Path::Root };
    if let (Some(error), None) = (root.get("error")?, root.get("state_diff")?) {
        return Err(server_error(&error, "state", "update"));
    }
    let response = root.unwrap_field("result")?;
    let outer = response.as_ref().unwrap_or(&root);
    let wrapped = outer.unwrap_field("state_update")?;
    let update = wrapped.as_ref().unwrap_or(outer);
    let block = if wrapped.is_some() { outer.get("block")? } else { None };
    let layers: Vec<&Node<'_>> = [update].into_iter().chain(&block).chain([outer, &root]).collect();

    let all = |name| layers.iter().map(move |layer| (*layer, name));
    let block_number = fact(all("block_number"), read_block_number)?;
    let rest = || {
        let diff = match (update.get("state_diff")?, update.get("code")?) {
            (Some(diff), _) => diff,
            (None, Some(_)) => return Err(server_error(update, "state", "update")),
            (None, None) => return Err(update.missing("state_diff", "an object with what the block changes")),
        };
        Ok(StateUpdate {
            block_number,
            block_hash: fact(all("block_hash"), |node| node.parse().map(Some))?,
            starknet_version: fact(all("starknet_version"), read_version)?,
            old_root: fact(all("old_root"), |node| node.parse().map(Some))?,
            // The feeder gateway's blocks have it under a name of their own.
            new_root: fact(all("new_root").chain(block.iter().map(|block| (block, "state_root"))), |node| {
                node.parse().map(Some)
            })?,
            diff: read_diff(&diff)?,
        })
    };
    rest().map_err(|error: InputError| error.in_block(block_number))
}

/// Servers answer what they cannot give with an object too, and scripts save it like any other.
pub(super) fn server_error(node: &Node<'_>, kind: &str, noun: &str) -> InputError {
    let said = match node.json {
        Json::Object(_) => ["code", "message"]
            .into_iter()
            .filter_map(|name| Some(format!("{name} {}", node.get(name).ok()??.json.shown()?)))
            .collect::<Vec<_>>()
            .join(", "),
        other => other.shown().unwrap_or_default(),
    };
    let problem =
        format!("a server's error is here in place of a {kind} {noun} ({said}); fetch the {noun} again");
    InputError::new(InputErrorKind::Field, problem)
}

/// What all fields that speak of it agree on.
fn fact<'a, T: PartialEq + fmt::Display>(
    fields: impl Iterator<Item = (&'a Node<'a>, &'a str)>,
    read: impl Fn(&Node<'_>) -> Result<Option<T>, InputError>,
) -> Result<Option<T>, InputError> {
    let mut known: Option<(T, Node<'_>)> = None;
    for (layer, name) in fields {
        let Some(node) = layer.get(name)? else { continue };
        match (read(&node)?, &known) {
            (Some(value), Some((known, first))) if value != *known => {
                let first = &first.path;
                return Err(node.conflict(format!("in the same object {first} is {known}; keep one")));
            }
            (Some(value), None) => known = Some((value, node)),
            _ => {}
        }
    }
    Ok(known.map(|(value, _)| value))
}

pub(super) fn read_block_number(node: &Node<'_>) -> Result<Option<BlockNumber>, InputError> {
    let (digits, radix) = match node.json {
        Json::Number(digits) => (digits.as_str(), 10),
        Json::Text(text) => text.strip_prefix("0x").map_or((text.as_ref(), 10), |digits| (digits, 16)),
        _ => ("", 10),
    };
    let digits_only = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    match u64::from_str_radix(digits, radix) {
        Ok(number) if digits_only => Ok(Some(BlockNumber(number))),
        _ => Err(node.wrong("expected a block number below 2^64, such as 631861 or \"0x9a435\"")),
    }
}

pub(super) fn read_version(node: &Node<'_>) -> Result<Option<StarknetVersion>, InputError> {
    match node.text("a string with a protocol version, such as \"0.13.5\"")? {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|_| {
            node.wrong(
                "expected a protocol version of two to four numbers with points between, such as 0.13.5",
            )
        }),
    }
}

fn read_diff(node: &Node<'_>) -> Result<StateDiff, InputError> {
    let [storage, nonces, deployed, replaced, declared, migrated, old @ ..] = node.fields([
        "storage_diffs",
        "nonces",
        "deployed_contracts",
        "replaced_classes",
        "declared_classes",
        "migrated_compiled_classes",
        // The same list under its three names: JSON-RPC, feeder gateway, and feeder gateway before Sierra.
        "deprecated_declared_classes",
        "old_declared_contracts",
        "declared_contracts",
    ])?;
    let mut builder = StateDiff::builder();
    if let Some(node) = storage {
        builder = read_storage_diffs(&node, builder)?;
    }
    if let Some(node) = nonces {
        builder = read_nonces(&node, builder)?;
    }
    for node in [deployed, replaced].iter().flatten() {
        for entry in node.items()? {
            let [address, contract_address, class_hash] =
                entry.fields(["address", "contract_address", "class_hash"])?;
            let address = entry.address(address, contract_address)?;
            builder = builder.class_hash(address, entry.need(class_hash, "class_hash")?.parse()?);
        }
    }
    for node in [declared, migrated].iter().flatten() {
        for entry in node.items()? {
            let [class_hash, compiled] = entry.fields(["class_hash", "compiled_class_hash"])?;
            let compiled = entry.need(compiled, "compiled_class_hash")?.parse()?;
            builder = builder.class(entry.need(class_hash, "class_hash")?.sierra_class_hash()?, compiled);
        }
    }
    for node in old.iter().flatten() {
        for class_hash in node.items()? {
            builder = builder.deprecated_class(class_hash.parse()?);
        }
    }
    builder.build().map_err(|error| node.conflict(format!("{error}; keep one")))
}

fn read_storage_diffs(
    node: &Node<'_>,
    mut builder: StateDiffBuilder,
) -> Result<StateDiffBuilder, InputError> {
    if let Some(entries) = node.entries() {
        for (address, entries) in entries {
            builder = read_storage_entries(address.parse()?, &entries, builder)?;
        }
        return Ok(builder);
    }
    for entry in node.items()? {
        let [address, contract_address, entries] =
            entry.fields(["address", "contract_address", "storage_entries"])?;
        let entries =
            entries.ok_or_else(|| entry.missing("storage_entries", "a list of {\"key\", \"value\"}"))?;
        builder = read_storage_entries(entry.address(address, contract_address)?, &entries, builder)?;
    }
    Ok(builder)
}

fn read_storage_entries(
    address: ContractAddress,
    node: &Node<'_>,
    mut builder: StateDiffBuilder,
) -> Result<StateDiffBuilder, InputError> {
    for entry in node.items()? {
        let [key, value] = entry.fields(["key", "value"])?;
        let key = entry.need(key, "key")?.parse()?;
        builder = builder.storage(address, key, entry.need(value, "value")?.parse()?);
    }
    Ok(builder)
}

fn read_nonces(node: &Node<'_>, mut builder: StateDiffBuilder) -> Result<StateDiffBuilder, InputError> {
    if let Some(entries) = node.entries() {
        for (address, nonce) in entries {
            builder = builder.nonce(address.parse()?, nonce.parse()?);
        }
        return Ok(builder);
    }
    for entry in node.items()? {
        let [address, contract_address, nonce] = entry.fields(["address", "contract_address", "nonce"])?;
        let address = entry.address(address, contract_address)?;
        builder = builder.nonce(address, entry.need(nonce, "nonce")?.parse()?);
    }
    Ok(builder)
}
