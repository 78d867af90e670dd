//! Storage proofs from JSON: `starknet_getStorageProof`, its request and its result.
//!
//! In a proof nothing is skipped: a field that is not known could say what is then not verified. Around it (in the
//! response, and beside request and result) unknown fields are other people's business.

use flagstone_core::commitment::{Roots, StarknetVersion};
use flagstone_core::proof::{
    ContractLeafData, ContractStorageKeys, GlobalRoots, ProofNode, ProofRequest, StorageProof,
};
use flagstone_core::trie::{Node as TrieNode, Path as TriePath};
use flagstone_core::types::{BlockHash, BlockNumber, ClassHash, StateCommitment, StorageRoot, StorageValue};

use super::error::InputError;
use super::json::Json;
use super::node::{Node, Path};
use super::update::{read_block_number, read_version, server_error};

/// A proof in a file: the result alone, a whole JSON-RPC response, or request and result beside facts of the block.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ProofFile {
    /// What the file says of the block.
    pub block: ProofBlock,
    /// The request, if the file has it.
    pub request: Option<AskedProof>,
    /// The proof.
    pub proof: StorageProof,
}

/// Facts of a block's header, as far as a file has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ProofBlock {
    /// Its number.
    pub number: Option<BlockNumber>,
    /// Its hash.
    pub hash: Option<BlockHash>,
    /// The state commitment after it.
    pub new_root: Option<StateCommitment>,
    /// Its protocol version.
    pub starknet_version: Option<StarknetVersion>,
}

/// A request for a proof.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct AskedProof {
    /// The number of the block it asks for.
    pub block: Option<BlockNumber>,
    /// The hash of the block it asks for.
    pub block_hash: Option<BlockHash>,
    /// What the block is that it asks for. With none of the three it asks for the latest block.
    pub tag: Option<BlockTag>,
    /// What it asks for.
    pub request: ProofRequest,
}

impl From<ProofRequest> for AskedProof {
    /// Of the latest block.
    fn from(request: ProofRequest) -> Self {
        Self { request, ..Self::default() }
    }
}

/// A block that is named by what it is when the request is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum BlockTag {
    /// The last block.
    Latest,
    /// The last block whose state is accepted on L1.
    L1Accepted,
    /// The block that is being built.
    PreConfirmed,
    /// The same, as it was called before version 0.9 of the specification.
    Pending,
}

impl BlockTag {
    const ALL: [Self; 4] = [Self::Latest, Self::L1Accepted, Self::PreConfirmed, Self::Pending];

    /// The tag in a request.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Latest => "latest",
            Self::L1Accepted => "l1_accepted",
            Self::PreConfirmed => "pre_confirmed",
            Self::Pending => "pending",
        }
    }
}

impl std::fmt::Display for BlockTag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

pub(super) const UNKNOWN: &str = "unknown field, which would go unverified";
const UNKNOWN_REQUEST: &str = "unknown field, which would go unanswered";

pub(super) fn read_proof(json: &Json<'_>) -> Result<ProofFile, InputError> {
    let root = Node { json, path: Path::Root };
    let result = root.get("result")?;
    if let (Some(error), None) = (root.get("error")?, &result) {
        return Err(server_error(&error, "storage", "proof"));
    }
    Ok(ProofFile {
        block: root.get("block")?.as_ref().map(read_block).transpose()?.unwrap_or_default(),
        request: root.get("request")?.as_ref().map(read_request).transpose()?,
        proof: read_result(result.as_ref().unwrap_or(&root))?,
    })
}

pub(super) fn read_request_file(json: &Json<'_>) -> Result<AskedProof, InputError> {
    let root = Node { json, path: Path::Root };
    let Json::List(items) = json else {
        let request = root.get("request")?;
        return read_request(request.as_ref().unwrap_or(&root));
    };
    // Parameters by position, of which the first may be a block's number or hash; or a batch of requests.
    if !items.first().is_some_and(is_request) {
        return read_params(&root);
    }
    let mut requests = root.items()?;
    match (requests.next(), requests.next()) {
        (Some(request), None) => read_request(&request),
        (_, Some(second)) => {
            Err(second.conflict("a second request begins here; keep that of the storage proof".to_owned()))
        }
        (None, None) => read_params(&root),
    }
}

/// Whether this is an object and not the number or hash of a block.
fn is_request(json: &Json<'_>) -> bool {
    let is_of_block_id = |name: &str| BLOCK_ID_FIELDS.contains(&name);
    matches!(json, Json::Object(fields) if !fields.iter().all(|(name, _)| is_of_block_id(name)))
}

fn read_block(node: &Node<'_>) -> Result<ProofBlock, InputError> {
    let number = node.get("block_number")?.as_ref().map(read_block_number).transpose()?.flatten();
    let version = node.get("starknet_version")?.as_ref().map(read_version).transpose()?.flatten();
    Ok(ProofBlock {
        number,
        hash: node.get("block_hash")?.map(|node| node.parse()).transpose()?,
        new_root: node.get("new_root")?.map(|node| node.parse()).transpose()?,
        starknet_version: version,
    })
}

/// The parameters, by name or by position, alone or in a whole JSON-RPC request.
fn read_request(node: &Node<'_>) -> Result<AskedProof, InputError> {
    let Json::Object(_) = node.json else { return read_params(node) };
    let method = node.get("method")?;
    if let Some(method) = &method
        && method.text(METHOD_EXPECTED)? != METHOD
    {
        return Err(method.wrong(format!("expected {METHOD_EXPECTED}")));
    }
    match node.get("params")? {
        Some(params) => read_params(&params),
        None if method.is_some() || node.get("jsonrpc")?.is_some() => {
            Err(node.missing("params", "an object or a list with what is asked for"))
        }
        None => read_params(node),
    }
}

const METHOD: &str = "starknet_getStorageProof";
const METHOD_EXPECTED: &str = "\"starknet_getStorageProof\"";

fn read_params(node: &Node<'_>) -> Result<AskedProof, InputError> {
    let names = ["block_id", "class_hashes", "contract_addresses", "contracts_storage_keys"];
    let [block, classes, contracts, slots] = match node.json {
        Json::List(_) => {
            let mut items = node.items()?;
            let params = std::array::from_fn(|_| items.next().filter(|item| *item.json != Json::Null));
            if let Some(more) = items.next() {
                return Err(more.wrong(format!("{UNKNOWN_REQUEST}; known here: {}", names.join(", "))));
            }
            params
        }
        _ => node.only_fields(names, UNKNOWN_REQUEST)?,
    };
    let mut asked = block.as_ref().map(read_block_id).transpose()?.unwrap_or_default();
    asked.request = ProofRequest {
        class_hashes: list(classes.as_ref(), |node| node.parse())?,
        contract_addresses: list(contracts.as_ref(), |node| node.parse())?,
        contracts_storage_keys: list(slots.as_ref(), |entry| {
            let [address, keys] = entry.only_fields(["contract_address", "storage_keys"], UNKNOWN_REQUEST)?;
            Ok(ContractStorageKeys {
                contract_address: entry.need(address, "contract_address")?.parse()?,
                storage_keys: list(keys.as_ref(), |node| node.parse())?,
            })
        })?,
    };
    Ok(asked)
}

const BLOCK_ID_FIELDS: [&str; 2] = ["block_number", "block_hash"];

/// The block of a request that asks for nothing yet.
fn read_block_id(node: &Node<'_>) -> Result<AskedProof, InputError> {
    let of_block = AskedProof::default();
    let expected = || {
        let tags = BlockTag::ALL.map(|tag| format!("\"{tag}\"")).join(", ");
        node.wrong(format!("expected {tags}, {{\"block_number\": N}} or {{\"block_hash\": H}}"))
    };
    match node.json {
        Json::Text(text) => {
            let tag = BlockTag::ALL.into_iter().find(|tag| tag.name() == text.as_ref());
            Ok(AskedProof { tag: Some(tag.ok_or_else(expected)?), ..of_block })
        }
        Json::Object(_) => {
            let [number, hash] = node.only_fields(BLOCK_ID_FIELDS, UNKNOWN_REQUEST)?;
            let block = number.as_ref().map(read_block_number).transpose()?.flatten();
            let block_hash = hash.as_ref().map(Node::parse).transpose()?;
            if block.is_none() && block_hash.is_none() {
                return Err(expected());
            }
            Ok(AskedProof { block, block_hash, ..of_block })
        }
        _ => Err(expected()),
    }
}

/// The items of a list; none if it is not there.
fn list<T>(
    node: Option<&Node<'_>>,
    read: impl Fn(&Node<'_>) -> Result<T, InputError>,
) -> Result<Vec<T>, InputError> {
    node.map_or_else(|| Ok(Vec::new()), |node| node.list(read))
}

const A_NODE_LIST: &str = "a list of {\"node_hash\", \"node\"}";

fn read_result(node: &Node<'_>) -> Result<StorageProof, InputError> {
    let names = ["classes_proof", "contracts_proof", "contracts_storage_proofs", "global_roots"];
    let [classes, contracts, storage, roots] = node.only_fields(names, UNKNOWN)?;
    let classes = node.need_as(classes, names[0], A_NODE_LIST)?;
    let contracts = node.need_as(contracts, names[1], "an object with nodes and contract_leaves_data")?;
    let storage = node.need_as(storage, names[2], "a list of lists of nodes")?;
    let roots = node.need_as(roots, names[3], "an object with the roots")?;

    let [nodes, leaves] = contracts.only_fields(["nodes", "contract_leaves_data"], UNKNOWN)?;
    let nodes = contracts.need_as(nodes, "nodes", A_NODE_LIST)?;
    let leaves =
        contracts.need_as(leaves, "contract_leaves_data", "a list of {\"nonce\", \"class_hash\"}")?;
    let [contracts_root, classes_root, block_hash] =
        roots.only_fields(["contracts_tree_root", "classes_tree_root", "block_hash"], UNKNOWN)?;
    Ok(StorageProof {
        classes_proof: classes.list(read_node)?,
        contracts_proof: nodes.list(read_node)?,
        contract_leaves_data: leaves.list(read_leaf_data)?,
        contracts_storage_proofs: storage.list(|nodes| nodes.list(read_node))?,
        global_roots: GlobalRoots {
            roots: Roots {
                contracts: roots.need(contracts_root, "contracts_tree_root")?.parse()?,
                classes: roots.need(classes_root, "classes_tree_root")?.parse()?,
            },
            block_hash: block_hash.map(|node| node.parse()).transpose()?,
        },
    })
}

fn read_leaf_data(node: &Node<'_>) -> Result<ContractLeafData, InputError> {
    let [nonce, class_hash, root] = node.only_fields(["nonce", "class_hash", "storage_root"], UNKNOWN)?;
    Ok(ContractLeafData {
        nonce: node.need(nonce, "nonce")?.parse()?,
        class_hash: node.need(class_hash, "class_hash")?.parse::<ClassHash>()?,
        storage_root: root.map(|node| node.parse::<StorageRoot>()).transpose()?,
    })
}

/// A felt that is none of the typed ones.
fn felt(of: &Node<'_>, field: Option<Node<'_>>, name: &str) -> Result<flagstone_core::Felt, InputError> {
    of.need(field, name)?.parse().map(|StorageValue(felt)| felt)
}

/// A node with its hash.
pub(super) fn read_node(entry: &Node<'_>) -> Result<ProofNode, InputError> {
    let [hash, node] = entry.only_fields(["node_hash", "node"], UNKNOWN)?;
    let node = entry.need_as(node, "node", "{\"left\", \"right\"} or {\"path\", \"length\", \"child\"}")?;
    let hash = felt(entry, hash, "node_hash")?;
    let [left, right, path, length, child] =
        node.only_fields(["left", "right", "path", "length", "child"], UNKNOWN)?;
    if path.is_none() && length.is_none() && child.is_none() {
        let (left, right) = (felt(&node, left, "left")?, felt(&node, right, "right")?);
        return Ok(ProofNode { hash, node: TrieNode::Binary { left, right } });
    }
    if let Some(second) = left.or(right) {
        return Err(second.conflict("the node has fields of an edge too; it is one or the other".to_owned()));
    }
    let length = node.need_as(length, "length", "a number from 1 to 251")?;
    let bits = read_length(&length)?;
    let value = felt(&node, path, "path")?;
    let path = TriePath::of_value(&value, bits)
        .ok_or_else(|| length.wrong(format!("the path {value:#x} does not fit into so many bits")))?;
    Ok(ProofNode { hash, node: TrieNode::Edge { path, child: felt(&node, child, "child")? } })
}

fn read_length(node: &Node<'_>) -> Result<usize, InputError> {
    let digits = match node.json {
        Json::Number(digits) => digits.as_str(),
        _ => "",
    };
    let length = digits.parse().ok().filter(|length| (1..=251).contains(length));
    length.ok_or_else(|| node.wrong("expected a number from 1 to 251"))
}
