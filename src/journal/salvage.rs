//! What can still be read of a journal, whatever is damaged in it. Changes nothing.
//!
//! Frames carry their place and checksums, so each that is whole is believed, also behind others that are not. Which blocks
//! follow each other is for the caller, who knows what their payloads say.

use std::collections::BTreeMap;
use std::path::Path;

use flagstone_core::types::BlockNumber;

use super::error::JournalError;
use super::files::{Files, read_full};
use super::format::{FrameHead, HeaderFlaw, Kind};
use super::lineage::DatabaseId;
use super::recovery::{Scan, list, scan};
use super::segment::{Recovered, io_error, segment_path};

/// The whole frames of a journal.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Salvaged {
    /// The database that its segments name.
    pub database: Option<DatabaseId>,
    /// The last whole frame of each block, as far as later frames do not take it back. There may be gaps.
    pub blocks: BTreeMap<BlockNumber, Recovered>,
    /// Whether its first segment is there and names no block before it.
    pub is_from_beginning: bool,
    /// What is damaged, for people.
    pub problems: Vec<String>,
}

impl Salvaged {
    /// Reads what is whole in a directory. One that is not there has nothing.
    ///
    /// # Errors
    /// [`JournalError::Io`] if the system refuses to read.
    pub fn read(files: &dyn Files, dir: &Path) -> Result<Self, JournalError> {
        let mut salvaged = Self::default();
        let (sequences, _) = list(files, dir)?;
        let mut expected = None;
        for sequence in sequences {
            if let Some(missing) = expected.filter(|expected| *expected != sequence) {
                salvaged
                    .problems
                    .push(format!("{} and perhaps more are missing", segment_path(dir, missing).display()));
            }
            expected = sequence.checked_add(1);
            let path = segment_path(dir, sequence);
            match scan(files, &path).map_err(|source| io_error("read", &path, source))? {
                Ok(scan) => salvaged.segment(files, &path, sequence, scan)?,
                Err(HeaderFlaw::Damaged(problem)) => {
                    salvaged
                        .problems
                        .push(format!("{}: {problem}; none of its frames can be told", path.display()));
                }
                Err(HeaderFlaw::Format(found)) => {
                    salvaged.problems.push(format!("{} has format v{found}", path.display()));
                }
            }
        }
        Ok(salvaged)
    }

    fn segment(
        &mut self,
        files: &dyn Files,
        path: &Path,
        sequence: u64,
        scan: Scan,
    ) -> Result<(), JournalError> {
        let header = scan.header;
        if self.database.is_some_and(|database| database != header.database) {
            self.problems.push(format!("{} is of database {}", path.display(), header.database));
            return Ok(());
        }
        self.database = Some(header.database);
        self.is_from_beginning |= sequence == 1 && header.next.is_none_or(|next| next == BlockNumber(0));
        let mut after = Vec::new();
        if let Some(flaw) = scan.flaw {
            self.problems.push(format!("{} at byte {}: {}", path.display(), scan.end, flaw.problem));
            after = flaw.after;
        }
        for head in scan.frames.iter().chain(&after) {
            self.frame(files, path, head).map_err(|source| io_error("read", path, source))?;
        }
        Ok(())
    }

    fn frame(&mut self, files: &dyn Files, path: &Path, head: &FrameHead) -> std::io::Result<()> {
        let block = head.block;
        if head.kind == Kind::Mark {
            return Ok(());
        }
        if head.kind != Kind::Roots {
            // Also where the refusal itself is lost: a block of this number was there, and here is another.
            drop(self.blocks.split_off(&block));
        }
        if head.kind == Kind::Refused {
            return Ok(());
        }
        let mut payload = vec![0; usize::try_from(head.length).unwrap_or_default()];
        let length = read_full(files.open_read(path)?.as_mut(), head.payload_offset(), &mut payload)?;
        payload.truncate(length);
        if head.kind == Kind::Block {
            self.blocks.insert(block, Recovered { block, payload, roots: None });
        } else if let Some(known) = self.blocks.get_mut(&block) {
            known.roots = Some(payload);
        }
        Ok(())
    }
}
