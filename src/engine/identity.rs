//! What a store says that it is: a database, or what an import has come to that is not finished.

use flagstone_core::codec::{DecodeError, Reader};
use flagstone_core::commitment::Roots;
use flagstone_core::store::StoreRead;
use flagstone_core::types::{ClassesRoot, ContractsRoot};

use super::meta::{self, Identity};
use crate::error::Error;
use crate::snapshot::format::{Counts, Header};
use crate::snapshot::read::Position;

/// What the store says the database is; `None` in an empty store.
pub fn read_identity(store: &dyn StoreRead) -> Result<Option<Identity>, Error> {
    if let Some(row) = store.get(&meta::meta_key("identity"))? {
        let text = String::from_utf8_lossy(&row);
        return match Identity::parse(&text) {
            Some(identity) => Ok(Some(identity)),
            None => Err(Error::damaged("the identity row", format!("cannot read {text:?}"))),
        };
    }
    if let Some(import) = read_unfinished(store)? {
        return Err(Error::UnfinishedImport { block: import.header.block, layout: import.identity.layout });
    }
    match meta::is_empty(store)? {
        true => Ok(None),
        false => Err(Error::damaged("the identity row", "it is missing, and the store is not empty")),
    }
}

/// How far an unfinished import has come, in its row:
///
/// ```text
/// header[120] of the dump | chunks u32 | contracts, storage entries, classes u64 | position
/// | contracts root[32] | classes root[32] | identity: text
/// position   0 | 1 address[32] | 2 address[32] storage key[32] | 3 class hash[32]
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unfinished {
    pub header: Header,
    pub chunks: u32,
    pub counts: Counts,
    pub last: Position,
    pub roots: Roots,
    pub identity: Identity,
}

impl Unfinished {
    /// Its row.
    pub fn encode(&self) -> Vec<u8> {
        let mut row = self.header.encode().to_vec();
        row.extend_from_slice(&self.chunks.to_be_bytes());
        for count in [self.counts.contracts, self.counts.storage_entries, self.counts.classes] {
            row.extend_from_slice(&count.to_be_bytes());
        }
        match &self.last {
            Position::Start => row.push(0),
            Position::Contract(address, None) => {
                row.push(1);
                row.extend_from_slice(address.as_be());
            }
            Position::Contract(address, Some(key)) => {
                row.push(2);
                row.extend_from_slice(address.as_be());
                row.extend_from_slice(key.as_be());
            }
            Position::Class(key) => {
                row.push(3);
                row.extend_from_slice(key.as_be());
            }
        }
        row.extend_from_slice(&self.roots.contracts.to_be());
        row.extend_from_slice(&self.roots.classes.to_be());
        row.extend_from_slice(self.identity.to_string().as_bytes());
        row
    }

    fn decode(row: &[u8]) -> Result<Self, DecodeError> {
        let mut from = Reader::new(row);
        let header = Header::decode(&from.array("header")?);
        let header = header.map_err(|error| DecodeError::new("header", error.to_string()))?;
        let chunks = from.u32("chunks")?;
        let counts = Counts {
            contracts: from.u64("contracts")?,
            storage_entries: from.u64("storage entries")?,
            classes: from.u64("classes")?,
        };
        let last = match from.u8("position")? {
            0 => Position::Start,
            1 => Position::Contract(from.key("address")?.into(), None),
            2 => Position::Contract(from.key("address")?.into(), Some(from.key("storage key")?.into())),
            3 => Position::Class(from.key("class hash")?),
            other => return Err(DecodeError::new("position", format!("{other} is not known"))),
        };
        let roots = Roots {
            contracts: ContractsRoot(from.felt("contracts root")?),
            classes: ClassesRoot(from.felt("classes root")?),
        };
        let text = String::from_utf8_lossy(from.bytes("identity", from.remaining())?).into_owned();
        let identity = Identity::parse(&text).ok_or_else(|| DecodeError::new("identity", text))?;
        Ok(Self { header, chunks, counts, last, roots, identity })
    }
}

/// How far the unfinished import in a store has come; `None` if there is none.
pub(crate) fn read_unfinished(store: &dyn StoreRead) -> Result<Option<Unfinished>, Error> {
    let Some(row) = store.get(&meta::meta_key(meta::IMPORT))? else { return Ok(None) };
    Unfinished::decode(&row).map(Some).map_err(|error| Error::damaged("the import's row", error))
}
