//! Reading a journal back: what is whole, what is a torn tail, what is damage. The reasoning is in the
//! [module above](super).

use std::io;
use std::path::{Path, PathBuf};

use flagstone_core::types::BlockNumber;

use super::error::{BlockRange, Damage, JournalError, Lost};
use super::files::{Files, OpenFile, read_full, write_full};
use super::format::{
    ALIGN, FORMAT, FRAME_HEAD_BYTES, FrameHead, HEADER_BYTES, Header, HeaderFlaw, Kind, MARKER, SegmentKey,
    padded,
};
use super::lineage::{Acknowledged, DatabaseId, Position, Refusal};
use super::segment::{Held, Segment, io_error, parse_name, segment_path};

/// Bytes read at a time.
const CHUNK_BYTES: usize = 1 << 18;

/// What opening a journal found and did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Recovery {
    /// The database it belongs to; `None` if there is no segment.
    pub database: Option<DatabaseId>,
    /// Segments there are.
    pub segments: usize,
    /// Blocks to replay.
    pub held: Option<BlockRange>,
    /// Refusals that were found, in order.
    pub refusals: Vec<Refusal>,
    /// The last refusal before the segments there are. A store that does not take account of it is on abandoned blocks.
    pub trimmed_refusal: Option<Refusal>,
    /// The block up to which segments had been trimmed, as far as that is noted.
    pub trimmed: Option<BlockNumber>,
    /// Whether the last frame is the mark of an orderly end; or there is no frame at all.
    pub orderly: bool,
    /// The torn tail, if there was one. Nothing of it had been acknowledged, as far as the journal can tell.
    pub cut: Option<Cut>,
    /// Whether a segment was found whose creation had been interrupted; it is removed, and held nothing.
    pub unfinished_segment: bool,
}

/// A torn tail that was cut off.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Cut {
    /// The segment file.
    pub segment: PathBuf,
    /// Where it was cut.
    pub offset: u64,
    /// How long it had been behind that.
    pub bytes: u64,
    /// What is wrong there.
    pub problem: String,
    /// Blocks of whole frames behind the tear, which go with it.
    pub whole: Option<BlockRange>,
}

/// The first thing in a segment that is not a whole frame.
pub(super) struct Flaw {
    pub problem: String,
    /// Whole frames behind it.
    pub after: Vec<FrameHead>,
    /// The furthest synced position that a frame behind it claims.
    claimed: u64,
}

/// What a segment holds.
pub(super) struct Scan {
    pub header: Header,
    /// The whole frames from the beginning, without a gap.
    pub frames: Vec<FrameHead>,
    /// Where they end.
    pub end: u64,
    /// Length of the file.
    size: u64,
    pub flaw: Option<Flaw>,
}

/// What the journal begins with.
pub(super) struct Recovered {
    pub segments: Vec<Segment>,
    pub held: Vec<Held>,
    pub next: Option<BlockNumber>,
    pub refusal: Option<Refusal>,
    pub report: Recovery,
    pub unsettled: Unsettled,
}

/// What was read and is not known to be on the disk, and what is to go.
#[derive(Debug, Default)]
pub(super) struct Unsettled {
    unfinished: Vec<PathBuf>,
    last: Option<LastSegment>,
}

/// The last segment: its length, where its whole frames end, and up to where they claim that it is on the disk.
#[derive(Debug)]
struct LastSegment {
    path: PathBuf,
    size: u64,
    end: u64,
    claimed: u64,
}

struct Replay<'a> {
    files: &'a dyn Files,
    dir: &'a Path,
    sequences: Vec<u64>,
    recovered: Recovered,
}

/// Reads the segments of a directory. Changes nothing.
pub(super) fn recover(
    files: &dyn Files,
    dir: &Path,
    acknowledged: Option<Acknowledged>,
) -> Result<Recovered, JournalError> {
    let recovered = Recovered {
        segments: Vec::new(),
        held: Vec::new(),
        next: None,
        refusal: None,
        report: Recovery { orderly: true, ..Recovery::default() },
        unsettled: Unsettled::default(),
    };
    let (sequences, unfinished) = list(files, dir)?;
    let mut replay = Replay { files, dir, sequences, recovered };
    let mut last = None;
    for position in 0..replay.sequences.len() {
        last = Some(replay.segment(position)?);
    }
    if let Some(acknowledged) = acknowledged {
        replay.check_acknowledged(acknowledged, last.as_ref())?;
    }
    if let Some(last) = last {
        replay.note_last(&last);
    }
    let Recovered { segments, held, report, unsettled, .. } = &mut replay.recovered;
    report.segments = segments.len();
    report.unfinished_segment = !unfinished.is_empty();
    unsettled.unfinished = unfinished;
    report.held = held
        .first()
        .zip(held.last())
        .map(|(first, last)| BlockRange { first: first.head.block, last: last.head.block });
    Ok(replay.recovered)
}

/// Sequence numbers of the segments, ascending, and paths of those whose creation was interrupted.
pub(super) fn list(files: &dyn Files, dir: &Path) -> Result<(Vec<u64>, Vec<PathBuf>), JournalError> {
    let names = match files.list(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        names => names.map_err(|source| io_error("list", dir, source))?,
    };
    let (mut sequences, mut unfinished) = (Vec::new(), Vec::new());
    for name in names {
        if name.strip_suffix(".new").and_then(parse_name).is_some() {
            unfinished.push(dir.join(name));
        } else if let Some(sequence) = parse_name(&name) {
            sequences.push(sequence);
        }
    }
    sequences.sort_unstable();
    Ok((sequences, unfinished))
}

/// Cuts a torn tail, and makes what is left durable.
pub(super) fn settle(files: &dyn Files, dir: &Path, unsettled: &Unsettled) -> Result<(), JournalError> {
    for path in &unsettled.unfinished {
        files.remove(path).map_err(|source| io_error("remove", path, source))?;
    }
    if let Some(last) = &unsettled.last {
        last.settle(files).map_err(|source| io_error("settle", &last.path, source))?;
    }
    files.sync_dir(dir).map_err(|source| io_error("sync", dir, source))
}

impl LastSegment {
    /// Cuts it behind its whole frames and makes them durable. A frame claims that what is before some place is on the disk. Of
    /// the rest it is not known: the failed sync of an earlier process may have left it in the page cache alone, where it
    /// counts as written.
    fn settle(&self, files: &dyn Files) -> io::Result<()> {
        let mut file = files.open(&self.path)?;
        if self.size > self.end {
            file.set_size(self.end)?;
        }
        rewrite(file.as_mut(), self.claimed, self.end)?;
        file.sync_all()
    }
}

impl Replay<'_> {
    fn path(&self, sequence: u64) -> PathBuf {
        segment_path(self.dir, sequence)
    }

    /// Reads one segment and replays its frames.
    fn segment(&mut self, position: usize) -> Result<Scan, JournalError> {
        let sequence = self.sequences.get(position).copied().unwrap_or_default();
        let path = self.path(sequence);
        if let Some(previous) = self.recovered.segments.last()
            && previous.key.sequence.checked_add(1) != Some(sequence)
        {
            let missing = self.path(previous.key.sequence.saturating_add(1));
            return Err(self.damage(missing, 0, "the file is missing", &[], position));
        }
        let scan = match scan(self.files, &path).map_err(|source| io_error("read", &path, source))? {
            Ok(scan) => scan,
            Err(HeaderFlaw::Format(found)) => {
                return Err(JournalError::Format { segment: path, found, known: FORMAT });
            }
            Err(HeaderFlaw::Damaged(problem)) => {
                return Err(self.damage(path, 0, &problem, &[], position + 1));
            }
        };
        self.check_header(&scan, sequence, position)?;
        if self.recovered.segments.is_empty() {
            let Recovered { refusal, report, .. } = &mut self.recovered;
            (*refusal, report.trimmed_refusal) = (scan.header.refusal, scan.header.refusal);
            report.database = Some(scan.header.database);
        }
        self.recovered.next = scan.header.next;
        self.recovered.report.trimmed = scan.header.trimmed;
        for head in &scan.frames {
            if let Err(problem) = self.apply(scan.header.key, head) {
                return Err(self.damage(path, head.offset, &problem, &[], position + 1));
            }
        }
        let is_last = position + 1 == self.sequences.len();
        if let Some(flaw) = &scan.flaw
            && (!is_last || flaw.claimed > scan.end)
        {
            let problem = format!("{}, and it had been synced", flaw.problem);
            return Err(self.damage(path, scan.end, &problem, &flaw.after, position + 1));
        }
        self.recovered.segments.push(Segment { key: scan.header.key, end: scan.end, next: scan.header.next });
        Ok(scan)
    }

    /// Holds a segment's header against its name and against what came before it.
    fn check_header(&self, scan: &Scan, sequence: u64, position: usize) -> Result<(), JournalError> {
        let header = &scan.header;
        if header.key.sequence != sequence {
            let problem = format!("it says that it is segment {}", header.key.sequence);
            return Err(self.damage(self.path(sequence), 0, &problem, &[], position + 1));
        }
        let Some(previous) = self.recovered.segments.last() else { return Ok(()) };
        if Some(header.database) != self.recovered.report.database {
            let database = self.recovered.report.database.map_or_else(String::new, |id| id.to_string());
            let problem =
                format!("it belongs to database {}, the segment before it to {database}", header.database);
            return Err(self.damage(self.path(sequence), 0, &problem, &[], position + 1));
        }
        if (header.previous_end, header.previous_salt) != (previous.end, previous.key.salt) {
            let problem = format!(
                "it ends at byte {}, the segment after it says that it ended at byte {}",
                previous.end, header.previous_end
            );
            let path = self.path(previous.key.sequence);
            return Err(self.damage(path, previous.end, &problem, &[], position));
        }
        if header.next != self.recovered.next {
            let say = |block: Option<BlockNumber>| block.map_or("any".to_owned(), |block| block.to_string());
            let problem = format!(
                "its first block was to be {}, but {} follows the segment before",
                say(header.next),
                say(self.recovered.next)
            );
            return Err(self.damage(self.path(sequence), 0, &problem, &[], position + 1));
        }
        if header.refusal != self.recovered.refusal {
            let problem = "the last refusal that it names is not the one before it";
            return Err(self.damage(self.path(sequence), 0, problem, &[], position + 1));
        }
        Ok(())
    }

    fn apply(&mut self, key: SegmentKey, head: &FrameHead) -> Result<(), String> {
        let Recovered { held, next, report, refusal, .. } = &mut self.recovered;
        match head.kind {
            Kind::Mark => {}
            Kind::Roots => {
                if next.is_none_or(|next| head.block >= next) {
                    return Err(format!("it has roots of block {}, which was not there", head.block));
                }
                // The block itself need not be held: its segment may be trimmed.
                if let Ok(at) = held.binary_search_by_key(&head.block, |held| held.head.block)
                    && let Some(held) = held.get_mut(at)
                {
                    held.roots = Some((key.sequence, *head));
                }
            }
            Kind::Block => {
                if let Some(expected) = next.filter(|expected| *expected != head.block) {
                    return Err(format!("block {} is where block {expected} must be", head.block));
                }
                let after = head.block.next();
                *next = Some(after.ok_or_else(|| format!("no block could follow block {}", head.block))?);
                held.push(Held { sequence: key.sequence, head: *head, roots: None });
            }
            Kind::Refused => {
                // The block itself need not be held: its segment may be trimmed.
                if next.is_none_or(|next| head.block >= next) {
                    return Err(format!("it refuses block {}, which was not there", head.block));
                }
                held.truncate(held.partition_point(|held| held.head.block < head.block));
                *next = Some(head.block);
                let at = Position { sequence: key.sequence, offset: head.offset };
                report.refusals.push(Refusal { block: head.block, at });
                *refusal = Some(Refusal { block: head.block, at });
            }
        }
        Ok(())
    }

    fn check_acknowledged(&self, known: Acknowledged, last: Option<&Scan>) -> Result<(), JournalError> {
        let Acknowledged { block: acknowledged, refusal } = known;
        let taken_back = |later: &Refusal| later.at > refusal && later.block <= acknowledged;
        if self.recovered.next.is_some_and(|next| next > acknowledged)
            || self.recovered.report.trimmed_refusal.iter().any(taken_back)
            || self.recovered.report.refusals.iter().any(taken_back)
        {
            return Ok(());
        }
        let path = self.recovered.segments.last().map(|segment| self.path(segment.key.sequence));
        let offset = last.map_or(0, |last| last.end);
        let problem = format!("it ends before block {acknowledged}, which was acknowledged");
        let after = last.and_then(|last| last.flaw.as_ref()).map(|flaw| flaw.after.as_slice());
        Err(Damage {
            segment: path.unwrap_or_else(|| self.path(1)),
            offset,
            problem,
            before: self.before(),
            lost: self
                .recovered
                .next
                .map_or(Lost::Unknown, |first| Lost::Blocks(BlockRange { first, last: acknowledged })),
            after: blocks_of(after.unwrap_or_default()),
        }
        .into())
    }

    /// Notes how the journal ends, and what is to be settled there.
    fn note_last(&mut self, last: &Scan) {
        let path = self.path(last.header.key.sequence);
        let Recovered { report, unsettled, .. } = &mut self.recovered;
        report.orderly =
            last.flaw.is_none() && last.frames.last().is_some_and(|head| head.kind == Kind::Mark);
        if let Some(flaw) = &last.flaw {
            report.cut = Some(Cut {
                segment: path.clone(),
                offset: last.end,
                bytes: last.size - last.end,
                problem: flaw.problem.clone(),
                whole: blocks_of(&flaw.after),
            });
        }
        let claims = last.frames.iter().map(|head| head.synced);
        let claimed = claims.max().unwrap_or_default().max(HEADER_BYTES);
        unsettled.last = Some(LastSegment { path, size: last.size, end: last.end, claimed });
    }

    fn before(&self) -> Option<BlockRange> {
        let held = &self.recovered.held;
        let (first, last) = (held.first()?, held.last()?);
        Some(BlockRange { first: first.head.block, last: last.head.block })
    }

    /// The error for damage in a segment: with what is whole behind it there, and in segments from `later` on.
    fn damage(
        &self,
        segment: PathBuf,
        offset: u64,
        problem: &str,
        behind: &[FrameHead],
        later: usize,
    ) -> JournalError {
        let mut after: Vec<FrameHead> = behind.to_vec();
        let mut resumes = None;
        for sequence in self.sequences.get(later..).unwrap_or_default() {
            if let Ok(Ok(scan)) = scan(self.files, &self.path(*sequence)) {
                resumes = resumes.or(scan.header.next);
                after.extend(scan.frames);
                after.extend(scan.flaw.map(|flaw| flaw.after).unwrap_or_default());
            }
        }
        let first_after = behind.iter().find(|head| head.kind == Kind::Block).map(|head| head.block);
        let lost = match (self.recovered.next, first_after.or(resumes)) {
            (Some(first), Some(resumes)) if first < resumes => {
                Lost::Blocks(BlockRange { first, last: BlockNumber(resumes.0.saturating_sub(1)) })
            }
            (Some(_), Some(_)) => Lost::NoBlock,
            (Some(first), None) => Lost::From(first),
            (None, _) => Lost::Unknown,
        };
        let (problem, before) = (problem.to_owned(), self.before());
        Damage { segment, offset, problem, before, lost, after: blocks_of(&after) }.into()
    }
}

fn blocks_of(heads: &[FrameHead]) -> Option<BlockRange> {
    let blocks = || heads.iter().filter(|head| head.kind == Kind::Block).map(|head| head.block);
    Some(BlockRange { first: blocks().min()?, last: blocks().max()? })
}

/// How many of so many bytes are read at a time.
fn chunk_bytes(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES)
}

/// Writes what is there once more, so that the next sync writes it to the disk whatever became of an earlier one.
/// A crash in between changes nothing, as old and new bytes are the same.
fn rewrite(file: &mut dyn OpenFile, from: u64, to: u64) -> io::Result<()> {
    let mut chunk = vec![0; chunk_bytes(to - from)];
    let mut at = from;
    while at < to {
        let wanted = chunk_bytes(to - at);
        let piece = chunk.get_mut(..wanted).unwrap_or_default();
        if read_full(file, at, piece)? < wanted {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        write_full(file, at, piece)?;
        at += wanted as u64;
    }
    Ok(())
}

pub(super) fn scan(files: &dyn Files, path: &Path) -> io::Result<Result<Scan, HeaderFlaw>> {
    let mut file = files.open_read(path)?;
    let file = file.as_mut();
    let size = file.size()?;
    let mut bytes = [0; HEADER_BYTES as usize];
    let length = read_full(file, 0, &mut bytes)?;
    let header = match Header::decode(bytes.get(..length).unwrap_or_default()) {
        Ok(header) => header,
        Err(flaw) => return Ok(Err(flaw)),
    };
    let mut chunk = vec![0; chunk_bytes(size)];
    let (mut frames, mut end, mut flaw) = (Vec::new(), HEADER_BYTES, None);
    while end < size {
        match read_frame(file, header.key, end, size, &mut chunk)? {
            Ok(head) => {
                end = head.end();
                frames.push(head);
            }
            Err(problem) => {
                flaw = search(file, header.key, end, size)?.map(|(after, claimed)| Flaw {
                    problem,
                    after,
                    claimed,
                });
                break;
            }
        }
    }
    Ok(Ok(Scan { header, frames, end, size, flaw }))
}

/// Reads the frame at an offset and checks its payload against its checksum.
fn read_frame(
    file: &mut dyn OpenFile,
    key: SegmentKey,
    offset: u64,
    size: u64,
    chunk: &mut [u8],
) -> io::Result<Result<FrameHead, String>> {
    let mut bytes = [0; FRAME_HEAD_BYTES as usize];
    let length = read_full(file, offset, &mut bytes)?;
    let head = match FrameHead::decode(bytes.get(..length).unwrap_or_default(), key, offset) {
        Ok(head) => head,
        Err(problem) => return Ok(Err(problem)),
    };
    payload_problem(file, &head, size, chunk).map(|problem| problem.map_or(Ok(head), Err))
}

fn payload_problem(
    file: &mut dyn OpenFile,
    head: &FrameHead,
    size: u64,
    chunk: &mut [u8],
) -> io::Result<Option<String>> {
    if head.end() > size {
        return Ok(Some(format!("the frame of block {} ends behind the end of the file", head.block)));
    }
    let mut sum = crc32fast::Hasher::new();
    let mut at = head.payload_offset();
    while at < head.end() {
        let wanted = usize::try_from(head.end() - at).unwrap_or(usize::MAX).min(chunk.len());
        let piece = chunk.get_mut(..wanted).unwrap_or_default();
        let length = read_full(file, at, piece)?;
        sum.update(piece.get(..length).unwrap_or_default());
        if length < wanted {
            break;
        }
        at += wanted as u64;
    }
    let wrong = sum.finalize() != head.payload_sum;
    Ok(wrong.then(|| format!("the payload of block {} does not match its checksum", head.block)))
}

/// Looks behind a flaw for frames that are whole, and for the furthest synced position that a frame's head claims
/// (its payload need not be whole for that). `None` if there are but zeros: preallocated, and never written.
///
/// Heads are sealed with the segment's salt and their place, so payload bytes are not taken for one.
fn search(
    file: &mut dyn OpenFile,
    key: SegmentKey,
    flaw: u64,
    size: u64,
) -> io::Result<Option<(Vec<FrameHead>, u64)>> {
    const HEAD: usize = FRAME_HEAD_BYTES as usize;
    let step = chunk_bytes(padded(size - flaw));
    let (mut window, mut chunk) = (vec![0; step + HEAD], vec![0; step]);
    let (mut after, mut claimed, mut zero) = (Vec::new(), 0, true);
    let (mut at, mut resume) = (flaw, flaw);
    while at < size {
        let length = read_full(file, at, &mut window)?;
        let seen = window.get(..length).unwrap_or_default();
        zero &= seen.iter().all(|byte| *byte == 0);
        for place in (0..step.min(length)).step_by(ALIGN as usize) {
            let offset = at + place as u64;
            let Some(bytes) = seen.get(place..place + HEAD) else { break };
            if offset < resume || !bytes.starts_with(&MARKER) {
                continue;
            }
            let Ok(head) = FrameHead::decode(bytes, key, offset) else { continue };
            claimed = claimed.max(head.synced);
            if payload_problem(file, &head, size, &mut chunk)?.is_none() {
                resume = head.end();
                after.push(head);
            }
        }
        at += step as u64;
    }
    Ok((!zero).then_some((after, claimed)))
}
