//! A checksum on every row, in front of any store.
//!
//! A row goes to the store as its bytes followed by the CRC-32 of its key and its bytes:
//!
//! ```text
//! +-----------------+------------------+
//! | row (any bytes) | crc32, LE, 4 B   |   crc32 = CRC-32(key ‖ row)
//! +-----------------+------------------+
//! ```
//!
//! The key is in the sum, so a row that turns up at another key is noticed as well as one with a flipped bit. What it
//! cannot notice is a row that is gone, or an older row with its own valid seal: that is for whoever knows what ought
//! to be there.
//!
//! It never repairs and never guesses: a row that does not match its seal is [`StoreErrorKind::Corrupt`].

use std::fmt::Write as _;
use std::ops::ControlFlow;
use std::sync::Arc;

use flagstone_core::store::{
    Capabilities, Row, Store, StoreError, StoreErrorKind, StoreRead, Visit, WriteBatch,
};

/// How much longer a row is in the store than in the caller's hands.
pub const SEAL_BYTES: usize = 4;

/// A store whose rows carry a checksum over key and row.
///
/// ```
/// use flagstone::store::{MemoryStore, Sealed, Store, StoreErrorKind, StoreRead, WriteBatch};
///
/// let store = Sealed::new(MemoryStore::new());
/// let mut batch = WriteBatch::default();
/// batch.put(b"key", b"row");
/// store.write(&batch)?;
/// assert_eq!(store.get(b"key")?, Some(b"row".to_vec()));
///
/// // Somebody changes the row behind its back.
/// let mut batch = WriteBatch::default();
/// batch.put(b"key", b"rowxxxx");
/// store.inner().write(&batch)?;
/// assert_eq!(store.get(b"key").unwrap_err().kind(), StoreErrorKind::Corrupt);
/// # Ok::<(), flagstone::store::StoreError>(())
/// ```
#[derive(Debug)]
pub struct Sealed<S: ?Sized> {
    inner: Box<S>,
}

impl<S: Store> Sealed<S> {
    /// Puts a store behind seals. All of its rows must have been written through one.
    pub fn new(inner: S) -> Self {
        Self { inner: Box::new(inner) }
    }
}

impl<S: Store + ?Sized> Sealed<S> {
    /// Like [`Sealed::new`], for a store chosen at run time.
    pub fn from_box(inner: Box<S>) -> Self {
        Self { inner }
    }

    /// The store behind. Its rows end in a seal.
    pub fn inner(&self) -> &S {
        &self.inner
    }
}

impl<S: StoreRead + ?Sized> StoreRead for Sealed<S> {
    fn get(&self, key: &[u8]) -> Result<Row, StoreError> {
        self.inner.get(key)?.map(|row| unseal_owned(key, row)).transpose()
    }

    fn get_many(&self, keys: &[&[u8]]) -> Result<Vec<Row>, StoreError> {
        let rows = self.inner.get_many(keys)?;
        keys.iter().zip(rows).map(|(key, row)| row.map(|row| unseal_owned(key, row)).transpose()).collect()
    }

    fn scan(&self, prefix: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        self.scan_from(prefix, prefix, visit)
    }

    fn scan_from(&self, prefix: &[u8], from: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        let mut broken = None;
        self.inner.scan_from(prefix, from, &mut |key, sealed| match unseal(key, sealed) {
            Ok(row) => visit(key, row),
            Err(err) => {
                broken = Some(err);
                ControlFlow::Break(())
            }
        })?;
        broken.map_or(Ok(()), Err)
    }
}

impl<S: Store + ?Sized> Store for Sealed<S> {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn write(&self, batch: &WriteBatch) -> Result<(), StoreError> {
        let mut sealed = WriteBatch::default();
        for (key, row) in batch.iter() {
            let Some(row) = row else {
                sealed.delete(key);
                continue;
            };
            let seal = |out: &mut Vec<u8>| {
                out.extend_from_slice(row);
                out.extend_from_slice(&checksum(key, row).to_le_bytes());
            };
            sealed.put_with(|out| out.extend_from_slice(key), seal);
        }
        self.inner.write(&sealed)
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.inner.sync()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn snapshot(&self) -> Option<Arc<dyn StoreRead>> {
        let inner = Box::new(self.inner.snapshot()?);
        Some(Arc::new(Sealed { inner }))
    }
}

fn checksum(key: &[u8], row: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(row);
    hasher.finalize()
}

fn unseal_owned(key: &[u8], mut sealed: Vec<u8>) -> Result<Vec<u8>, StoreError> {
    let len = unseal(key, &sealed)?.len();
    sealed.truncate(len);
    Ok(sealed)
}

/// The row without its seal, if the seal is right.
fn unseal<'a>(key: &[u8], sealed: &'a [u8]) -> Result<&'a [u8], StoreError> {
    let Some((row, seal)) = sealed.split_last_chunk::<SEAL_BYTES>() else {
        return Err(corrupt(key, format!("is {} bytes, shorter than its checksum", sealed.len())));
    };
    let (stored, computed) = (u32::from_le_bytes(*seal), checksum(key, row));
    if stored != computed {
        return Err(corrupt(key, format!("has checksum {stored:08x}, but its bytes give {computed:08x}")));
    }
    Ok(row)
}

fn corrupt(key: &[u8], what: String) -> StoreError {
    let mut text = String::from("corrupt row: the row at key 0x");
    for byte in key {
        // Writing to a `String` cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    let _ = write!(text, " {what}; restore a backup, or rebuild the store from its blocks");
    StoreError::new(StoreErrorKind::Corrupt, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flagstone_core::store::MemoryStore;

    const KEY: &[u8] = &[0x10, 0xab, 0x00];

    fn put(store: &dyn Store, key: &[u8], row: &[u8]) {
        let mut batch = WriteBatch::default();
        batch.put(key, row);
        store.write(&batch).unwrap();
    }

    type Rows = Vec<(Vec<u8>, Vec<u8>)>;

    fn scan_all(store: &dyn Store) -> Result<Rows, StoreError> {
        let mut rows = Vec::new();
        store.scan(&[], &mut |key, row| {
            rows.push((key.to_vec(), row.to_vec()));
            ControlFlow::Continue(())
        })?;
        Ok(rows)
    }

    /// Every way of reading the key must refuse, and name it.
    #[track_caller]
    fn check_refused(store: &Sealed<MemoryStore>, key: &[u8]) {
        let errors = [
            store.get(key).unwrap_err(),
            store.get_many(&[b"absent", key]).unwrap_err(),
            scan_all(store).unwrap_err(),
        ];
        for err in errors {
            assert_eq!(err.kind(), StoreErrorKind::Corrupt);
            let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
            assert!(err.to_string().contains(&format!("0x{hex}")), "{err}");
        }
    }

    #[test]
    fn rows_of_all_lengths_come_back_as_written() {
        let store = Sealed::new(MemoryStore::new());
        for len in [0, 1, 3, 4, 5, 31, 32, 33, 4096] {
            let row = vec![0x5a; len];
            put(&store, KEY, &row);
            assert_eq!(store.inner().get(KEY).unwrap().unwrap().len(), len + SEAL_BYTES);
            assert_eq!(store.get(KEY).unwrap(), Some(row.clone()));
            assert_eq!(store.get_many(&[KEY, b"absent"]).unwrap(), [Some(row.clone()), None]);
            assert_eq!(scan_all(&store).unwrap(), [(KEY.to_vec(), row)]);
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let store = Sealed::new(MemoryStore::new());
        let row: Vec<u8> = (0_u8..36).collect();
        put(&store, KEY, &row);
        let sealed = store.inner().get(KEY).unwrap().unwrap();
        for bit in 0..sealed.len() * 8 {
            let mut flipped = sealed.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            put(store.inner(), KEY, &flipped);
            check_refused(&store, KEY);
        }
        put(store.inner(), KEY, &sealed);
        assert_eq!(store.get(KEY).unwrap(), Some(row));
    }

    #[test]
    fn every_truncation_is_noticed() {
        let store = Sealed::new(MemoryStore::new());
        put(&store, KEY, &[7; 32]);
        let sealed = store.inner().get(KEY).unwrap().unwrap();
        for len in 0..sealed.len() {
            put(store.inner(), KEY, &sealed[..len]);
            check_refused(&store, KEY);
        }
    }

    #[test]
    fn a_row_at_another_key_is_noticed() {
        let store = Sealed::new(MemoryStore::new());
        put(&store, KEY, &[7; 32]);
        let sealed = store.inner().get(KEY).unwrap().unwrap();
        let other = [0x10, 0xab, 0x01];
        put(store.inner(), &other, &sealed);
        let err = store.get(&other).unwrap_err();
        assert!(err.to_string().contains("0x10ab01 has checksum"), "{err}");
        assert_eq!(store.get(KEY).unwrap(), Some(vec![7; 32]));
    }

    #[test]
    fn a_store_chosen_at_run_time_can_be_sealed() {
        let store: Sealed<dyn Store> = Sealed::from_box(Box::new(MemoryStore::new()));
        put(&store, KEY, b"row");
        let mut batch = WriteBatch::default();
        batch.delete(KEY);
        assert_eq!(store.get(KEY).unwrap(), Some(b"row".to_vec()));
        store.write(&batch).unwrap();
        assert_eq!(store.get(KEY).unwrap(), None);
        store.sync().unwrap();
        assert_eq!(store.name(), "memory");
        assert!(!store.capabilities().durable);
    }

    #[test]
    fn a_scan_stops_when_told_even_before_a_broken_row() {
        let store = Sealed::new(MemoryStore::new());
        put(&store, b"a", b"fine");
        put(store.inner(), b"b", b"broken");
        let mut seen = 0;
        store
            .scan(&[], &mut |_, _| {
                seen += 1;
                ControlFlow::Break(())
            })
            .unwrap();
        assert_eq!(seen, 1);
    }
}
