//! Batches of rows: what is written as one unit.
//!
//! A block of ten thousand slots changes twenty thousand rows. An allocation for each key and each row would cost more
//! than copying their bytes, so keys and rows lie one behind the other in a few chunks, and an index of them is kept in
//! the order of keys.

use std::fmt;

use rayon::slice::ParallelSliceMut;

/// One key's row: its bytes, or `None` if there is none.
pub type Row = Option<Vec<u8>>;

/// Rows to write and keys to delete, one of them for each key: what is said last counts. Iterates by key.
///
/// Quick to fill in the order of keys. Out of that order each row moves the index behind it: for more than a few such
/// rows there is [`BatchBuilder`].
#[derive(Clone, Default)]
pub struct WriteBatch {
    chunks: Vec<Vec<u8>>,
    /// Ascending by key, each key once.
    index: Vec<Place>,
}

/// Where a key and its row are: one behind the other in one chunk.
#[derive(Clone, Copy)]
struct Place {
    chunk: usize,
    key: usize,
    row: usize,
    /// Where the row ends; [`NO_ROW`] if the key is deleted.
    end: usize,
}

/// In place of a row's end. No chunk ends there.
const NO_ROW: usize = usize::MAX;

/// Room of a chunk.
const CHUNK_BYTES: usize = 256 << 10;
/// With less room than this left, a chunk takes no more rows: almost every row fits, so that chunks do not move.
const ROW_BYTES: usize = 8 << 10;

impl WriteBatch {
    /// Writes a row.
    pub fn put(&mut self, key: impl AsRef<[u8]>, row: impl AsRef<[u8]>) {
        self.put_with(|out| out.extend_from_slice(key.as_ref()), |out| out.extend_from_slice(row.as_ref()));
    }

    /// Writes a row. `key` and `row` append their bytes to what they are given, and change nothing of what it holds.
    pub fn put_with(&mut self, key: impl FnOnce(&mut Vec<u8>), row: impl FnOnce(&mut Vec<u8>)) {
        let place = self.push(key, Some(row));
        self.file(place);
    }

    /// Deletes a row, if there is one.
    pub fn delete(&mut self, key: impl AsRef<[u8]>) {
        let place = self.push(|out| out.extend_from_slice(key.as_ref()), None::<fn(&mut Vec<u8>)>);
        self.file(place);
    }

    /// Takes in another batch, whose word is the last. Quick if all of its keys are before or behind those here.
    pub fn append(&mut self, mut later: Self) {
        let offset = self.chunks.len();
        self.chunks.append(&mut later.chunks);
        later.index.iter_mut().for_each(|place| place.chunk += offset);
        let (Some(first), Some(last)) = (later.index.first(), later.index.last()) else { return };
        if self.index.last().is_none_or(|ours| self.key(ours) < self.key(first)) {
            self.index.append(&mut later.index);
        } else if self.index.first().is_some_and(|ours| self.key(last) < self.key(ours)) {
            later.index.append(&mut self.index);
            self.index = later.index;
        } else {
            self.index = self.merged(&later.index);
        }
    }

    /// What it says of a row: `None` if nothing, `Some(None)` if it deletes it.
    pub fn get(&self, key: &[u8]) -> Option<Option<&[u8]>> {
        let place = self.index.binary_search_by(|place| self.key(place).cmp(key)).ok()?;
        Some(self.row(&self.index[place]))
    }

    /// Keys from `first` on with their rows, ascending.
    pub fn range<'a>(&'a self, first: &[u8]) -> impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)> {
        let start = self.index.partition_point(|place| self.key(place) < first);
        self.index[start..].iter().map(|place| (self.key(place), self.row(place)))
    }

    /// Keys and rows, ascending by key.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        self.index.iter().map(|place| (self.key(place), self.row(place)))
    }

    /// About how many bytes it takes in memory.
    pub fn bytes(&self) -> usize {
        let chunks = self.chunks.iter().map(Vec::capacity).sum::<usize>();
        chunks + self.chunks.len() * size_of::<Vec<u8>>() + self.index.len() * size_of::<Place>()
    }

    /// How many keys it touches.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether it touches nothing.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    fn key(&self, place: &Place) -> &[u8] {
        &self.chunks[place.chunk][place.key..place.row]
    }

    fn row(&self, place: &Place) -> Option<&[u8]> {
        (place.end != NO_ROW).then(|| &self.chunks[place.chunk][place.row..place.end])
    }

    /// Puts a key and its row behind the others, without a place in the index.
    fn push(&mut self, key: impl FnOnce(&mut Vec<u8>), row: Option<impl FnOnce(&mut Vec<u8>)>) -> Place {
        if self.chunks.last().is_none_or(|chunk| chunk.len() + ROW_BYTES > CHUNK_BYTES) {
            // The first may stay small; after a full one there will be more.
            let room = if self.chunks.is_empty() { 0 } else { CHUNK_BYTES };
            self.chunks.push(Vec::with_capacity(room));
        }
        let number = self.chunks.len() - 1;
        let chunk = &mut self.chunks[number];
        let begin = chunk.len();
        key(chunk);
        let middle = chunk.len();
        let end = row.map_or(NO_ROW, |row| {
            row(chunk);
            chunk.len()
        });
        Place { chunk: number, key: begin, row: middle, end }
    }

    /// Gives a pushed key its place in the index.
    fn file(&mut self, place: Place) {
        let key = self.key(&place);
        if self.index.last().is_none_or(|last| self.key(last) < key) {
            return self.index.push(place);
        }
        match self.index.binary_search_by(|other| self.key(other).cmp(key)) {
            Ok(said) => self.index[said] = place,
            Err(at) => self.index.insert(at, place),
        }
    }

    /// Both indices as one; `later` counts where both have a key.
    fn merged(&self, later: &[Place]) -> Vec<Place> {
        let mut merged = Vec::with_capacity(self.index.len() + later.len());
        let mut earlier = self.index.iter().peekable();
        for place in later {
            let key = self.key(place);
            while let Some(before) = earlier.next_if(|other| self.key(other) < key) {
                merged.push(*before);
            }
            earlier.next_if(|other| self.key(other) == key);
            merged.push(*place);
        }
        merged.extend(earlier);
        merged
    }
}

impl<K: AsRef<[u8]>> FromIterator<(K, Row)> for WriteBatch {
    /// Of equal keys the last one counts.
    fn from_iter<I: IntoIterator<Item = (K, Row)>>(rows: I) -> Self {
        let mut builder = BatchBuilder::default();
        for (key, row) in rows {
            match row {
                Some(row) => builder.put_with(key, |out| out.extend_from_slice(&row)),
                None => builder.delete(key),
            }
        }
        builder.build()
    }
}

impl PartialEq for WriteBatch {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for WriteBatch {}

impl fmt::Debug for WriteBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// Collects rows in any order into a [`WriteBatch`].
#[derive(Default)]
pub struct BatchBuilder {
    /// Its index is in the order of what was said.
    batch: WriteBatch,
}

impl BatchBuilder {
    /// Writes a row; `row` appends its bytes to what it is given, and changes nothing of what that holds.
    pub fn put_with(&mut self, key: impl AsRef<[u8]>, row: impl FnOnce(&mut Vec<u8>)) {
        let place = self.batch.push(|out| out.extend_from_slice(key.as_ref()), Some(row));
        self.batch.index.push(place);
    }

    /// Deletes a row, if there is one.
    pub fn delete(&mut self, key: impl AsRef<[u8]>) {
        let place = self.batch.push(|out| out.extend_from_slice(key.as_ref()), None::<fn(&mut Vec<u8>)>);
        self.batch.index.push(place);
    }

    /// The batch: of equal keys, what was said last.
    pub fn build(self) -> WriteBatch {
        let mut batch = self.batch;
        let mut index = std::mem::take(&mut batch.index);
        let is_sorted = index.is_sorted_by(|a, b| batch.key(a) < batch.key(b));
        if !is_sorted {
            index.par_sort_by(|a, b| batch.key(a).cmp(batch.key(b)));
            // Equal keys stand in the order in which they were said, and the first of a run is what is kept.
            index.dedup_by(|later, kept| {
                let same = batch.key(later) == batch.key(kept);
                if same {
                    *kept = *later;
                }
                same
            });
        }
        batch.index = index;
        batch
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    type Said = (Vec<u8>, Row);

    fn said() -> impl Strategy<Value = Vec<Said>> {
        let key = vec(0u8..4, 0..4);
        let row = proptest::option::of(vec(any::<u8>(), 0..6));
        vec((key, row), 0..40)
    }

    fn put(batch: &mut WriteBatch, (key, row): &Said) {
        match row {
            Some(row) => batch.put(key, row),
            None => batch.delete(key),
        }
    }

    fn assert_says(batch: &WriteBatch, expected: &BTreeMap<Vec<u8>, Row>) -> Result<(), TestCaseError> {
        let rows = |from: &[u8]| {
            expected.range(from.to_vec()..).map(|(key, row)| (key.clone(), row.clone())).collect::<Vec<_>>()
        };
        let owned = |(key, row): (&[u8], Option<&[u8]>)| (key.to_vec(), row.map(<[u8]>::to_vec));
        prop_assert_eq!(batch.iter().map(owned).collect::<Vec<_>>(), rows(&[]));
        prop_assert_eq!(batch.len(), expected.len());
        for from in [&[][..], &[1], &[1, 2], &[3, 3, 3]] {
            prop_assert_eq!(batch.range(from).map(owned).collect::<Vec<_>>(), rows(from));
            let get = batch.get(from).map(|row| row.map(<[u8]>::to_vec));
            prop_assert_eq!(get, expected.get(from).cloned());
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn a_batch_says_what_an_ordered_map_says(parts in vec(said(), 1..4)) {
            let (mut one, mut appended) = (WriteBatch::default(), WriteBatch::default());
            for part in &parts {
                part.iter().for_each(|said| put(&mut one, said));
                appended.append(part.iter().cloned().collect());
            }
            let expected: BTreeMap<Vec<u8>, Row> = parts.into_iter().flatten().collect();
            assert_says(&one, &expected)?;
            assert_says(&appended, &expected)?;
            prop_assert_eq!(one, appended);
        }

        #[test]
        fn batches_apart_are_put_one_behind_the_other(low in said(), high in said(), later_first in any::<bool>()) {
            let under = |first: u8, said: Vec<Said>| -> Vec<Said> {
                said.into_iter().map(|(key, row)| ([&[first], &*key].concat(), row)).collect()
            };
            let mut parts = [under(0, low), under(1, high)];
            if later_first {
                parts.reverse();
            }
            let mut batch = WriteBatch::default();
            parts.iter().for_each(|part| batch.append(part.iter().cloned().collect()));
            assert_says(&batch, &parts.into_iter().flatten().collect())?;
        }
    }

    #[test]
    fn many_rows_go_into_several_chunks_and_come_back() {
        let row = |n: u32| vec![n as u8; 1000 + n as usize % 100];
        let mut batch = WriteBatch::default();
        (0..1000u32).for_each(|n| batch.put(n.to_be_bytes(), row(n)));
        assert!(batch.chunks.len() > 2);
        assert!(batch.bytes() < 2 * 1000 * 1100);
        for (n, (key, found)) in (0u32..).zip(batch.iter()) {
            assert_eq!((key, found), (&n.to_be_bytes()[..], Some(&*row(n))));
        }
        assert_eq!(batch.len(), 1000);
    }
}
