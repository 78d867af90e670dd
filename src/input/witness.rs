//! Witnesses from files: the byte form, or the JSON of [`wire`](crate::wire).

use flagstone_core::commitment::{ContractLeaf, Roots};
use flagstone_core::diff::Subject;
use flagstone_core::trie::TrieId;
use flagstone_core::types::{ClassHash, CompiledClassHash};
use flagstone_core::witness::{Witness, WitnessTrie};

use super::error::InputError;
use super::json::Json;
use super::node::{Node, Path};
use super::proof::{UNKNOWN, read_node};
use super::update::read_block_number;

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
    let version = root.need_as(version, "witness_version", "a number")?;
    let expected = Witness::VERSION;
    if *version.json != Json::Number(expected.to_string()) {
        let problem =
            format!("this build reads version {expected}, make the witness again from the block's update");
        return Err(version.wrong(problem));
    }
    Ok(Witness {
        block: number.as_ref().map(read_block_number).transpose()?.flatten(),
        before: read_roots(&root.need_as(before, "before", "the roots before the block")?)?,
        after: read_roots(&root.need_as(after, "after", "the roots after the block")?)?,
        reads: root.need_as(reads, "reads", "a list")?.list(read_subject)?,
        contracts: root.need_as(contracts, "contract_leaves", "a list")?.list(|node| {
            let [address, nonce, class_hash, storage_root] =
                node.only_fields(["contract_address", "nonce", "class_hash", "storage_root"], UNKNOWN)?;
            let leaf = ContractLeaf {
                class_hash: node.need(class_hash, "class_hash")?.parse()?,
                storage_root: node.need(storage_root, "storage_root")?.parse()?,
                nonce: node.need(nonce, "nonce")?.parse()?,
            };
            Ok((node.need(address, "contract_address")?.parse()?, leaf))
        })?,
        classes: root.need_as(classes, "class_leaves", "a list")?.list(|node| {
            let [class_hash, compiled] = node.only_fields(["class_hash", "compiled_class_hash"], UNKNOWN)?;
            let compiled: CompiledClassHash = node.need(compiled, "compiled_class_hash")?.parse()?;
            Ok((node.need(class_hash, "class_hash")?.parse::<ClassHash>()?, compiled))
        })?,
        tries: root.need_as(tries, "tries", "a list")?.list(read_trie)?,
    })
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
    let kind = node.need_as(kind, "read", expected)?;
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
    let kind = node.need_as(kind, "trie", expected)?;
    let trie = match kind.text(expected)? {
        "contracts" => TrieId::Contracts,
        "classes" => TrieId::Classes,
        "storage" => TrieId::Storage(node.need(address, "contract_address")?.parse()?),
        _ => return Err(kind.wrong(format!("expected {expected}"))),
    };
    let nodes = |field, name| node.need_as(field, name, "a list of nodes")?.list(read_node);
    Ok(WitnessTrie { trie, before: nodes(before, "before")?, after: nodes(after, "after")? })
}
