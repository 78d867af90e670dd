//! Witnesses from files: the byte form, or the JSON of [`wire`](crate::wire).

use flagstone_core::commitment::{ContractLeaf, Roots};
use flagstone_core::diff::Subject;
use flagstone_core::trie::TrieId;
use flagstone_core::types::{ClassHash, CompiledClassHash};
use flagstone_core::witness::{Witness, WitnessTrie};

use super::error::InputError;
use super::json::Json;
use super::node::{Node, Path};
use super::proof::read_node;
use super::update::read_block_number;
use crate::wire::WITNESS_VERSION;

const UNKNOWN: &str = "unknown field, which would go unverified";

pub(super) fn read_witness(json: &Json<'_>) -> Result<Witness, InputError> {
    let root = Node { json, path: Path::Root };
    let [version, number, before, after, reads, contracts, classes, tries] = root.only_fields(
        [
            "witness_version",
            "block_number",
            "before",
            "after",
            "reads",
            "contract_leaves",
            "class_leaves",
            "tries",
        ],
        UNKNOWN,
    )?;
    let version = needed(&root, version, "witness_version", "a number")?;
    if *version.json != Json::Number(WITNESS_VERSION.to_string()) {
        return Err(version.wrong(format!("this build reads version {WITNESS_VERSION}")));
    }
    Ok(Witness {
        block: number.as_ref().map(read_block_number).transpose()?.flatten(),
        before: read_roots(&needed(&root, before, "before", "the roots before the block")?)?,
        after: read_roots(&needed(&root, after, "after", "the roots after the block")?)?,
        reads: items(&needed(&root, reads, "reads", "a list")?, read_subject)?,
        contracts: items(&needed(&root, contracts, "contract_leaves", "a list")?, |node| {
            let [address, nonce, class_hash, storage_root] =
                node.only_fields(["contract_address", "nonce", "class_hash", "storage_root"], UNKNOWN)?;
            let leaf = ContractLeaf {
                class_hash: node.need(class_hash, "class_hash")?.parse()?,
                storage_root: node.need(storage_root, "storage_root")?.parse()?,
                nonce: node.need(nonce, "nonce")?.parse()?,
            };
            Ok((node.need(address, "contract_address")?.parse()?, leaf))
        })?,
        classes: items(&needed(&root, classes, "class_leaves", "a list")?, |node| {
            let [class_hash, compiled] = node.only_fields(["class_hash", "compiled_class_hash"], UNKNOWN)?;
            let compiled: CompiledClassHash = node.need(compiled, "compiled_class_hash")?.parse()?;
            Ok((node.need(class_hash, "class_hash")?.parse::<ClassHash>()?, compiled))
        })?,
        tries: items(&needed(&root, tries, "tries", "a list")?, read_trie)?,
    })
}

fn needed<'n>(
    of: &Node<'_>,
    field: Option<Node<'n>>,
    name: &str,
    expected: &str,
) -> Result<Node<'n>, InputError> {
    field.ok_or_else(|| of.missing(name, expected))
}

fn items<T>(
    node: &Node<'_>,
    read: impl Fn(&Node<'_>) -> Result<T, InputError>,
) -> Result<Vec<T>, InputError> {
    node.items()?.map(|item| read(&item)).collect()
}

fn read_roots(node: &Node<'_>) -> Result<Roots, InputError> {
    let [contracts, classes] = node.only_fields(["contracts_tree_root", "classes_tree_root"], UNKNOWN)?;
    Ok(Roots {
        contracts: node.need(contracts, "contracts_tree_root")?.parse()?,
        classes: node.need(classes, "classes_tree_root")?.parse()?,
    })
}

fn read_subject(node: &Node<'_>) -> Result<Subject, InputError> {
    let [kind, address, key, class_hash] =
        node.only_fields(["read", "contract_address", "key", "class_hash"], UNKNOWN)?;
    let expected = "\"storage\", \"nonce\", \"class_hash\" or \"compiled_class_hash\"";
    let kind = needed(node, kind, "read", expected)?;
    Ok(match kind.text(expected)? {
        "storage" => {
            let address = node.need(address, "contract_address")?.parse()?;
            Subject::Storage(address, node.need(key, "key")?.parse()?)
        }
        "nonce" => Subject::Nonce(node.need(address, "contract_address")?.parse()?),
        "class_hash" => Subject::ClassHash(node.need(address, "contract_address")?.parse()?),
        "compiled_class_hash" => Subject::CompiledClassHash(node.need(class_hash, "class_hash")?.parse()?),
        _ => return Err(kind.wrong(format!("expected {expected}"))),
    })
}

fn read_trie(node: &Node<'_>) -> Result<WitnessTrie, InputError> {
    let [kind, address, before, after] =
        node.only_fields(["trie", "contract_address", "before", "after"], UNKNOWN)?;
    let expected = "\"contracts\", \"classes\" or \"storage\"";
    let kind = needed(node, kind, "trie", expected)?;
    let trie = match kind.text(expected)? {
        "contracts" => TrieId::Contracts,
        "classes" => TrieId::Classes,
        "storage" => TrieId::Storage(node.need(address, "contract_address")?.parse()?),
        _ => return Err(kind.wrong(format!("expected {expected}"))),
    };
    let nodes = |field, name| items(&needed(node, field, name, "a list of nodes")?, read_node);
    Ok(WitnessTrie { trie, before: nodes(before, "before")?, after: nodes(after, "after")? })
}
