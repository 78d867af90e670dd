//! The journal over files that lose, tear and reorder, at every operation there is; and over every flipped bit.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flagstone_core::types::BlockNumber;
use proptest::prelude::*;

use super::faulty::{Fault, FaultyFiles};
use super::format::{FrameHead, HeaderFlaw};
use super::segment::parse_name;
use super::*;

const SMALL: JournalConfig =
    JournalConfig { segment_bytes: 1_464, preallocate_bytes: 1_024, payload_bytes_max: 4_096 };

/// Of a store that takes account of all refusals.
const ALL: Position = Position { sequence: u64::MAX, offset: 0 };

fn dir() -> PathBuf {
    PathBuf::from("/data/journal")
}

fn disk() -> FaultyFiles {
    let files = FaultyFiles::new();
    files.create_dir(Path::new("/data")).unwrap();
    files.sync_dir(Path::new("/")).unwrap();
    files
}

fn open(files: &FaultyFiles) -> Result<(Journal, Recovery), JournalError> {
    Journal::open(Arc::new(files.clone()), &dir(), SMALL, None)
}

fn segment(sequence: u64) -> PathBuf {
    segment_path(&dir(), sequence)
}

/// Bytes that tell their block, and which try at it they are.
fn payload(block: u64, attempt: u64, length: usize) -> Vec<u8> {
    let seed = block.wrapping_mul(1_000_003).wrapping_add(attempt.wrapping_mul(7_919));
    (0..length as u64).map(|at| (seed.wrapping_add(at * at) >> (at % 3)) as u8).collect()
}

type Blocks = BTreeMap<u64, Vec<u8>>;

#[track_caller]
fn replayed(journal: &Journal) -> Blocks {
    let blocks: Vec<Recovered> = journal.replay().map(Result::unwrap).collect();
    for pair in blocks.windows(2) {
        assert_eq!(pair[0].block.next(), Some(pair[1].block), "blocks are consecutive");
    }
    assert_eq!(blocks.len(), blocks.len().min(journal.replay().size_hint().0));
    blocks.into_iter().map(|read| (read.block.0, read.payload)).collect()
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Append(usize),
    Sync,
    /// Refuses the last so many blocks.
    Refuse(u64),
    /// Trims all but the last so many blocks.
    Trim(u64),
    RollAhead,
    Close,
}

/// What the journal may hold after a crash.
#[derive(Debug, Clone)]
struct Model {
    /// After the last successful sync, and after each change since then.
    states: Vec<(Blocks, Option<u64>)>,
    trimmed: u64,
    attempt: u64,
}

/// A run that ended with an error, and the journal if it was open.
#[derive(Debug)]
struct Stopped {
    journal: Option<Journal>,
    error: JournalError,
}

impl Model {
    fn new() -> Self {
        Self { states: vec![(Blocks::new(), None)], trimmed: 0, attempt: 0 }
    }

    fn change(&mut self, change: impl FnOnce(&mut Blocks, &mut Option<u64>)) {
        let (mut blocks, mut next) = self.states.last().unwrap().clone();
        change(&mut blocks, &mut next);
        self.states.push((blocks, next));
    }

    fn synced(&mut self) {
        self.states.drain(..self.states.len() - 1);
    }

    fn next(&self) -> u64 {
        self.states.last().unwrap().1.unwrap_or(1)
    }

    /// Runs steps until one fails. Changes that are being made count as possible.
    fn run(&mut self, files: &FaultyFiles, steps: &[Step]) -> Result<Option<Journal>, Box<Stopped>> {
        let mut journal: Option<Journal> = None;
        for step in steps {
            let mut open_journal = match journal.take() {
                Some(journal) => journal,
                None => open(files).map_err(|error| Stopped { journal: None, error })?.0,
            };
            if let Step::Close = step {
                open_journal.close().map_err(|error| Stopped { journal: None, error })?;
                self.synced();
                continue;
            }
            if let Err(error) = self.step(&mut open_journal, *step) {
                return Err(Box::new(Stopped { journal: Some(open_journal), error }));
            }
            journal = Some(open_journal);
        }
        Ok(journal)
    }

    fn step(&mut self, journal: &mut Journal, step: Step) -> Result<(), JournalError> {
        let next = self.next();
        match step {
            Step::Append(length) => {
                self.attempt += 1;
                let bytes = payload(next, self.attempt, length);
                self.change(|blocks, after| {
                    blocks.insert(next, bytes.clone());
                    *after = Some(next + 1);
                });
                journal.append(BlockNumber(next), &bytes)?;
            }
            Step::Refuse(count) => {
                let first = next - count;
                self.change(|blocks, next| {
                    blocks.split_off(&first);
                    *next = Some(first);
                });
                journal.refuse_from(BlockNumber(first))?;
            }
            Step::Sync => {
                journal.sync()?;
                self.synced();
            }
            Step::Trim(kept) => {
                self.trimmed = self.trimmed.max(next - 1 - kept);
                journal.trim(BlockNumber(next - 1 - kept), ALL)?;
                self.synced();
            }
            Step::RollAhead => drop(journal.roll_ahead()?),
            Step::Close => {}
        }
        Ok(())
    }

    /// Holds what was recovered against what may be; what is there now is then what must be.
    #[track_caller]
    fn check(&mut self, journal: &Journal, context: &str) {
        let found = replayed(journal);
        let next = journal.next_block().map(|block| block.0);
        let fits = |(blocks, after): &&(Blocks, Option<u64>)| {
            let first = found.keys().next().copied().unwrap_or(u64::MAX);
            let mut below = blocks.clone();
            let above = below.split_off(&first);
            above == found && below.keys().all(|block| *block <= self.trimmed) && *after == next
        };
        let state = self.states.iter().find(fits);
        assert!(state.is_some(), "{context}: found {:?}, next {next:?}", found.keys());
        self.states = vec![state.unwrap().clone()];
    }
}

/// Appends, group syncs, rolls when they must be and ahead, refusals within and across segments, trims, an orderly end and
/// one that is not.
fn script() -> Vec<Step> {
    use Step::{Append, Close, Refuse, RollAhead, Sync, Trim};
    let mut steps = vec![Append(100), Sync, Append(0), Append(300), Sync, Append(700), Append(5), Sync];
    steps.extend([Append(600), Append(600), Refuse(1), Append(50), Sync, Append(8), Trim(4), Append(1_000)]);
    steps.extend([Sync, Append(90), Close, Append(40), Sync, Refuse(3), Append(64), Append(64), Sync]);
    steps.extend([
        Append(2_000),
        Sync,
        Append(1),
        Append(600),
        Trim(1),
        Append(70),
        Sync,
        Trim(0),
        Append(3),
    ]);
    steps.extend([Append(500), Sync, RollAhead, Append(500), RollAhead, RollAhead, Sync, Append(9)]);
    steps
}

fn operations() -> u64 {
    let files = disk();
    files.plan(Fault::None);
    assert!(Model::new().run(&files, &script()).is_ok());
    files.operations()
}

#[test]
fn whatever_was_acknowledged_survives_a_power_cut_at_every_operation() {
    let operations = operations();
    assert!(operations > 120, "{operations}");
    for k in 0..=operations {
        let (files, mut before) = (disk(), Model::new());
        files.plan(Fault::PowerCut(k));
        let _ = before.run(&files, &script());
        for seed in 0..12 {
            let context = format!("power cut at operation {k}, seed {seed}");
            let (files, mut model) = (files.fork(), before.clone());
            files.crash(seed);
            // The power goes once more while the journal is opened.
            files.plan(Fault::PowerCut(seed * 3 % 17));
            let _ = open(&files);
            files.crash(seed + 1_000);
            let (mut journal, _) = open(&files).unwrap_or_else(|error| panic!("{context}: {error}"));
            model.check(&journal, &context);
            // It goes on, and what it had recovered is there to stay.
            model.step(&mut journal, Step::Append(200)).unwrap();
            model.step(&mut journal, Step::Sync).unwrap();
            drop(journal);
            files.crash(seed + 2_000);
            let (journal, _) = open(&files).unwrap_or_else(|error| panic!("{context}, again: {error}"));
            model.check(&journal, &context);
        }
    }
}

#[test]
fn every_operation_that_fails_poisons_and_nothing_acknowledged_is_lost() {
    for k in 0..operations() {
        let context = format!("operation {k} fails");
        let (files, mut model) = (disk(), Model::new());
        files.plan(Fault::Fail(k));
        let stopped = model.run(&files, &script()).expect_err(&context);
        let Stopped { journal, error } = *stopped;
        assert_eq!(error.kind(), JournalErrorKind::Io, "{context}: {error}");
        if let Some(mut journal) = journal {
            let next = journal.next_block().unwrap_or(BlockNumber(1));
            let poisoned = |error| matches!(error, JournalError::Poisoned { .. });
            assert!(poisoned(journal.append(next, b"more").unwrap_err()), "{context}");
            assert!(poisoned(journal.sync().unwrap_err()), "{context}");
            assert!(poisoned(journal.trim(next, ALL).unwrap_err()), "{context}");
            assert!(poisoned(journal.refuse_from(next).unwrap_err()), "{context}");
            assert!(poisoned(journal.close().unwrap_err()), "{context}");
        }
        // The process ends and another one opens the journal; the machine ran on.
        let (mut journal, _) = open(&files).unwrap_or_else(|error| panic!("{context}: {error}"));
        model.check(&journal, &context);
        model.step(&mut journal, Step::Append(10)).unwrap();
        model.step(&mut journal, Step::Sync).unwrap();
        drop(journal);
        // What it read from the page cache must be on the disk by now.
        for seed in 0..8 {
            let files = files.fork();
            files.crash(seed);
            let (journal, _) = open(&files).unwrap_or_else(|error| panic!("{context}, {seed}: {error}"));
            model.clone().check(&journal, &format!("{context}, seed {seed}"));
        }
    }
}

#[test]
fn a_process_that_is_killed_loses_nothing_that_was_written() {
    let (files, mut model) = (disk(), Model::new());
    let journal = model.run(&files, &script()).unwrap();
    drop(journal);
    model.synced();
    for seed in 0..20 {
        let (files, mut model) = (files.fork(), model.clone());
        // Opening it makes durable what it finds.
        let (journal, recovery) = open(&files).unwrap();
        assert_eq!(recovery.cut, None);
        model.check(&journal, "opened");
        files.crash(seed);
        model.check(&open(&files).unwrap().0, "after the crash");
    }
}

#[test]
fn a_process_that_is_killed_anywhere_leaves_names_that_a_later_power_cut_may_not_mix() {
    let tail = [Step::Trim(0), Step::Append(100), Step::Sync];
    for k in 0..operations() {
        let (files, mut killed) = (disk(), Model::new());
        files.plan(Fault::PowerCut(k));
        let _ = killed.run(&files, &script());
        files.plan(Fault::None);
        let (journal, _) = open(&files).unwrap();
        killed.check(&journal, &format!("killed at operation {k}"));
        let tail = if killed.next() == 1 { &tail[1..] } else { &tail[..] };
        drop(journal);
        for (cut, seed) in (0..110).flat_map(|cut| (0..6).map(move |seed| (cut, seed))) {
            let context = format!("killed at operation {k}, power cut {cut} later, seed {seed}");
            let (files, mut model) = (files.fork(), killed.clone());
            files.plan(Fault::PowerCut(cut));
            let _ = model.run(&files, tail);
            files.crash(seed * 31 + cut);
            let (journal, _) = open(&files).unwrap_or_else(|error| panic!("{context}: {error}"));
            model.check(&journal, &context);
        }
    }
}

#[test]
fn short_and_interrupted_calls_are_finished() {
    let (files, mut model) = (disk(), Model::new());
    files.nag();
    let journal = model.run(&files, &script()).unwrap();
    drop(journal);
    model.synced();
    let (journal, recovery) = open(&files).unwrap();
    assert_eq!(recovery.cut, None);
    model.check(&journal, "nagged");
}

/// Three segments: blocks 1 to 9, the last two in one group that is synced.
fn three_segments(closed: bool) -> (FaultyFiles, Blocks) {
    let (files, mut model) = (disk(), Model::new());
    let mut steps = vec![Step::Append(300), Step::Sync, Step::Append(300), Step::Append(300), Step::Sync];
    steps.extend([Step::Append(300), Step::Append(301), Step::Append(299), Step::Sync, Step::Append(300)]);
    steps.extend([Step::Sync, Step::Append(100), Step::Append(77), Step::Sync]);
    let journal = model.run(&files, &steps).unwrap().unwrap();
    assert_eq!((journal.segments(), journal.held().unwrap().to_string().as_str()), (3, "blocks 1 to 9"));
    if closed {
        journal.close().unwrap();
    }
    let blocks = model.states.last().unwrap().0.clone();
    (files, blocks)
}

fn damage(files: &FaultyFiles) -> Damage {
    match open(files) {
        Err(JournalError::Corrupt(damage)) => *damage,
        other => panic!("not damage: {:?}", other.map(|(_, recovery)| recovery)),
    }
}

fn flip(files: &FaultyFiles, path: &Path, byte: usize, bit: u32) {
    let mut bytes = files.content(path).unwrap();
    bytes[byte] ^= 1 << bit;
    files.set_content(path, &bytes);
}

/// Flips each bit and opens. Where nothing can tell, what is found is a beginning of what was, and the cut is reported.
fn flip_all(closed: bool) -> BTreeMap<u64, usize> {
    let (files, blocks) = three_segments(closed);
    let mut cut_at = BTreeMap::new();
    for path in files.paths() {
        for byte in 0..files.content(&path).unwrap().len() {
            for bit in 0..8 {
                let files = files.fork();
                flip(&files, &path, byte, bit);
                match open(&files) {
                    Err(error) => assert!(error.damage().is_some(), "{error}"),
                    Ok((journal, recovery)) => {
                        let found = replayed(&journal);
                        assert!(recovery.cut.is_some(), "{path:?} byte {byte} bit {bit} went unnoticed");
                        assert_eq!(path, segment(3));
                        assert!(blocks.iter().take(found.len()).eq(found.iter()));
                        *cut_at.entry(recovery.cut.unwrap().offset).or_default() += 1;
                    }
                }
            }
        }
    }
    cut_at
}

#[test]
fn each_flipped_bit_is_noticed() {
    // The frames of the last group, at 128 + 344, + 144 and the zeros behind them.
    let cut_at = flip_all(false);
    assert_eq!(cut_at.keys().copied().collect::<Vec<_>>(), [472, 616, 736]);
}

#[test]
fn after_an_orderly_end_each_flipped_bit_in_a_block_is_damage() {
    // Only the mark itself, and zeros behind it.
    let cut_at = flip_all(true);
    assert_eq!(cut_at.keys().copied().collect::<Vec<_>>(), [736, 776]);
}

fn known(block: u64) -> Option<Acknowledged> {
    Some(Acknowledged { block: BlockNumber(block), refusal: Position::default() })
}

#[test]
fn blocks_that_are_trimmed_can_be_refused_and_are_then_not_missed() {
    let files = disk();
    let steps: Vec<Step> = [Step::Append(600), Step::Sync].into_iter().cycle().take(16).collect();
    let mut journal = Model::new().run(&files, &steps).unwrap().unwrap();
    assert_eq!(journal.held().unwrap().to_string(), "blocks 1 to 8");
    journal.trim(BlockNumber(6), ALL).unwrap();
    assert!(journal.held().unwrap().first > BlockNumber(4));
    let at = journal.refuse_from(BlockNumber(4)).unwrap();
    journal.sync().unwrap();
    assert_eq!((journal.held(), journal.next_block()), (None, Some(BlockNumber(4))));
    journal.append(BlockNumber(4), b"another").unwrap();
    journal.sync().unwrap();
    drop(journal);
    let open = |acknowledged| Journal::open(Arc::new(files.clone()), &dir(), SMALL, acknowledged);
    // A store that was at block 8 before the refusal; one that has followed it and lost block 5 since would be wrong.
    let (journal, recovery) = open(known(8)).unwrap();
    assert_eq!(recovery.refusals, [Refusal { block: BlockNumber(4), at }]);
    assert_eq!(journal.held().unwrap().to_string(), "block 4");
    let followed = |block| Some(Acknowledged { block: BlockNumber(block), refusal: at });
    assert!(open(followed(4)).is_ok());
    assert_eq!(open(followed(5)).unwrap_err().kind(), JournalErrorKind::Corrupt);
}

#[test]
fn a_block_that_was_acknowledged_elsewhere_is_missed() {
    let (files, _) = three_segments(false);
    flip(&files, &segment(3), 624, 0);
    let acknowledged = known(9);
    let error = Journal::open(Arc::new(files.clone()), &dir(), SMALL, acknowledged).unwrap_err();
    let damage = error.damage().unwrap();
    assert_eq!((damage.offset, damage.before.unwrap().to_string().as_str()), (616, "blocks 1 to 8"));
    assert_eq!(damage.lost.to_string(), "block 9");
    // Nothing was cut, so what is there can still be looked at.
    let (journal, recovery) = Journal::open(Arc::new(files.clone()), &dir(), SMALL, known(8)).unwrap();
    assert_eq!(recovery.cut.unwrap().offset, 616);
    assert_eq!(journal.last_block(), Some(BlockNumber(8)));
    let empty = Journal::open(Arc::new(disk()), &dir(), SMALL, acknowledged).unwrap_err();
    assert_eq!(empty.kind(), JournalErrorKind::Corrupt);
}

#[test]
fn damage_says_what_is_lost() {
    let (files, _) = three_segments(false);
    // In the payload of block 2, of three in the first segment.
    flip(&files, &segment(1), 128 + 344 + 100, 3);
    let found = damage(&files);
    assert_eq!((found.segment.clone(), found.offset), (segment(1), 128 + 344));
    assert_eq!(found.lost.to_string(), "block 2");
    assert_eq!(found.before.unwrap().to_string(), "block 1");
    assert_eq!(found.after.unwrap().to_string(), "blocks 3 to 9");
    assert_eq!(
        found.to_string(),
        "journal segment /data/journal/00000000000000000001.seg is damaged at byte 472: the payload of block 2 does \
         not match its checksum, and it had been synced; readable before it: block 1; lost: block 2; readable after \
         it, but of no use without the lost: blocks 3 to 9; restore the file from a copy; or go on from the last block \
         that the store has, with `flagstone recover`; or rebuild the store from a snapshot and feed the blocks after it \
         again"
    );
    // The frames' lengths gone, the next ones are still found.
    let (files, _) = three_segments(false);
    flip(&files, &segment(2), 128 + 24, 0);
    let found = damage(&files);
    assert_eq!((found.segment, found.offset, found.lost.to_string().as_str()), (segment(2), 128, "block 4"));
    // In the last segment, the next sync tells.
    let (files, _) = three_segments(false);
    flip(&files, &segment(3), 128 + 60, 0);
    let found = damage(&files);
    assert_eq!((found.segment, found.offset, found.lost.to_string().as_str()), (segment(3), 128, "block 7"));
}

#[test]
fn a_missing_cut_or_foreign_segment_is_damage() {
    let (files, _) = three_segments(false);
    files.lose(&segment(2));
    let found = damage(&files);
    assert_eq!((found.segment, found.lost.to_string().as_str()), (segment(2), "blocks 4 to 6"));
    assert_eq!(found.after.unwrap().to_string(), "blocks 7 to 9");

    // Cut at a frame's end, so that each frame left is whole.
    let (files, _) = three_segments(false);
    let bytes = files.content(&segment(2)).unwrap();
    files.set_content(&segment(2), &bytes[..128 + 344]);
    let found = damage(&files);
    assert_eq!((found.segment, found.offset), (segment(2), 128 + 344));
    assert_eq!(found.lost.to_string(), "blocks 5 to 6");

    for bytes in [&b""[..], b"FLAGJRNL", &[0; 128], &[0xa5; 5_000]] {
        for sequence in 1..=3 {
            let (files, _) = three_segments(false);
            files.set_content(&segment(sequence), bytes);
            assert_eq!((damage(&files).segment, damage(&files).offset), (segment(sequence), 0));
        }
    }

    // The place is part of the checksum.
    let (files, _) = three_segments(false);
    files.set_content(&segment(2), &files.content(&segment(1)).unwrap());
    assert_eq!(damage(&files).problem, "it says that it is segment 1");
    let (files, _) = three_segments(false);
    let (first, mut second) = (files.content(&segment(1)).unwrap(), files.content(&segment(2)).unwrap());
    let length = second.len();
    second[128..].copy_from_slice(&first[128..length]);
    files.set_content(&segment(2), &second);
    assert_eq!((damage(&files).segment, damage(&files).offset), (segment(2), 128));

    // Another journal's segment, in itself whole.
    let ((files, _), (other, _)) = (three_segments(false), three_segments(false));
    files.set_content(&segment(2), &other.content(&segment(2)).unwrap());
    assert_eq!(open(&files).unwrap_err().kind(), JournalErrorKind::Corrupt);
}

#[test]
fn frames_that_arrive_before_an_earlier_one_are_a_torn_tail() {
    let files = disk();
    let (mut journal, _) = open(&files).unwrap();
    journal.append(BlockNumber(1), &[1; 100]).unwrap();
    journal.sync().unwrap();
    for block in 2..5 {
        journal.append(BlockNumber(block), &[7; 100]).unwrap();
    }
    drop(journal);
    // Block 2 did not reach the disk, blocks 3 and 4 did.
    let mut bytes = files.content(&segment(1)).unwrap();
    bytes[272..272 + 144].fill(0);
    files.set_content(&segment(1), &bytes);
    let (journal, recovery) = open(&files).unwrap();
    let cut = recovery.cut.unwrap();
    assert_eq!((cut.offset, cut.whole.unwrap().to_string().as_str()), (272, "blocks 3 to 4"));
    assert_eq!(journal.next_block(), Some(BlockNumber(2)));
    assert_eq!(files.content(&segment(1)).unwrap().len(), 272);
    drop(journal);
    assert_eq!(open(&files).unwrap().1.cut, None);
}

#[test]
fn refused_blocks_stay_refused_when_segments_go() {
    let (files, mut model) = (disk(), Model::new());
    let mut steps = vec![Step::Append(600); 5];
    steps.extend([Step::Sync, Step::Refuse(3), Step::Append(600), Step::Append(600), Step::Sync]);
    let mut journal = model.run(&files, &steps).unwrap().unwrap();
    assert_eq!(journal.held().unwrap().to_string(), "blocks 1 to 4");
    // Blocks 1 and 2 share a segment; 3 to 5 as they were first written are refused.
    let segments = journal.segments();
    assert_eq!(journal.trim(BlockNumber(1), ALL).unwrap(), 0);
    assert!(journal.trim(BlockNumber(2), ALL).unwrap() >= 2);
    assert!(journal.segments() < segments);
    assert_eq!(journal.held().unwrap().to_string(), "blocks 3 to 4");
    drop(journal);
    let (mut journal, recovery) = open(&files).unwrap();
    assert_eq!(recovery.held.unwrap().to_string(), "blocks 3 to 4");
    // All of it trimmed, the newest segment still knows what comes next.
    journal.trim(BlockNumber(4), ALL).unwrap();
    assert_eq!((journal.segments(), journal.next_block()), (1, Some(BlockNumber(5))));
    drop(journal);
    assert_eq!(open(&files).unwrap().0.next_block(), Some(BlockNumber(5)));
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let files = disk();
    let (mut journal, recovery) = open(&files).unwrap();
    assert_eq!(recovery, Recovery { orderly: true, ..Recovery::default() });
    assert_eq!((journal.bytes(), journal.segments(), journal.last_block()), (0, 0, None));
    let too_large = journal.append(BlockNumber(5), &[0; 4_097]).unwrap_err();
    assert_eq!(
        too_large.to_string(),
        "block 5: 4097 bytes are more than the journal takes for one block (4096)"
    );
    let last = journal.append(BlockNumber(u64::MAX), b"").unwrap_err();
    assert_eq!(last.to_string(), "no block could follow block 18446744073709551615");
    journal.append(BlockNumber(5), b"five").unwrap();
    for wrong in [0, 4, 5, 7] {
        let error = journal.append(BlockNumber(wrong), b"").unwrap_err();
        assert!(matches!(error, JournalError::NotConsecutive { expected: BlockNumber(6), .. }), "{error}");
    }
    let error = journal.refuse_from(BlockNumber(6)).unwrap_err();
    assert_eq!(error.to_string(), "the journal does not hold block 6; it holds block 5");
    let first = journal.sync().unwrap();
    assert!(journal.append(BlockNumber(6), b"six").unwrap() > first);
    assert_eq!(journal.read(BlockNumber(6)).unwrap(), b"six");
    assert_eq!(journal.read(BlockNumber(7)).unwrap_err().kind(), JournalErrorKind::Input);
    assert_eq!(journal.bytes(), 128 + 48 + 48);
    // Zeros ahead do not count.
    assert_eq!(files.content(&segment(1)).unwrap().len(), 128 + 1_024);
}

#[test]
fn files_of_others_and_unfinished_segments_are_no_segments() {
    let (files, blocks) = three_segments(false);
    files.set_content(&dir().join("00000000000000000004.seg.new"), b"FLAG");
    files.set_content(&dir().join("notes.txt"), b"keep");
    files.set_content(&dir().join("4.seg"), b"keep");
    let (mut journal, recovery) = open(&files).unwrap();
    assert!(recovery.unfinished_segment);
    assert_eq!(replayed(&journal), blocks);
    assert_eq!(files.paths().len(), 5);
    journal.append(BlockNumber(10), b"ten").unwrap();
    assert_eq!(journal.position().sequence, 4);
}

#[test]
fn rot_under_an_open_journal_is_noticed() {
    let (files, _) = three_segments(false);
    let (journal, _) = open(&files).unwrap();
    flip(&files, &segment(1), 128 + 344 + 100, 3);
    let results: Vec<_> = journal.replay().collect();
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 8);
    let error = journal.read(BlockNumber(2)).unwrap_err();
    let damage = error.damage().unwrap();
    assert_eq!(damage.after.unwrap().to_string(), "blocks 3 to 9");
}

#[test]
fn the_format_stays_what_it_is() {
    let key = SegmentKey { sequence: 2, salt: 0x0123_4567_89ab_cdef };
    let refusal = Refusal { block: BlockNumber(40), at: Position { sequence: 1, offset: 800 } };
    let header = Header {
        key,
        database: DatabaseId([0xd5; 16]),
        next: Some(BlockNumber(42)),
        previous_end: 1_000,
        previous_salt: 9,
        refusal: Some(refusal),
        trimmed: Some(BlockNumber(30)),
    };
    let bytes = header.encode();
    assert_eq!(Header::decode(&bytes), Ok(header));
    let mut frame = Vec::new();
    let head = put_frame(&mut frame, key, (128, 128), (Kind::Block, BlockNumber(42)), b"payload");
    assert_eq!(FrameHead::decode(&frame, key, 128), Ok(head));
    assert_eq!(head.end(), 128 + 48);
    assert!(FrameHead::decode(&frame, key, 136).is_err());
    assert!(FrameHead::decode(&frame, SegmentKey { salt: 0, ..key }, 128).is_err());
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(hex(&bytes), GOLDEN_HEADER);
    assert_eq!(hex(&frame), GOLDEN_FRAME);

    // Other versions, later ones and the first, are not damage.
    let mut later = bytes;
    later[11] = 3;
    let sum = crc32fast::hash(&later[..124]);
    later[124..].copy_from_slice(&sum.to_be_bytes());
    let first: Vec<u8> = (0..HEADER_V1.len() / 2)
        .map(|at| u8::from_str_radix(&HEADER_V1[2 * at..2 * at + 2], 16).unwrap())
        .collect();
    for (other, version) in [(later, 3), (first, 1)] {
        assert_eq!(Header::decode(&other), Err(HeaderFlaw::Format(version)));
        let files = disk();
        drop(open(&files).unwrap());
        files.set_content(&segment(1), &other);
        let error = open(&files).unwrap_err();
        assert_eq!(error.kind(), JournalErrorKind::Format);
        assert!(error.to_string().contains("export its state there"), "{error}");
    }
}

/// As the first version wrote it.
const HEADER_V1: &str = "464c41474a524e4c000000010000000100000000000000020123456789abcdef\
    000000000000002a00000000000003e8000000000000000900000000887ef3cd";
const GOLDEN_HEADER: &str = "464c41474a524e4c000000020000000700000000000000020123456789abcdef\
    d5d5d5d5d5d5d5d5d5d5d5d5d5d5d5d5000000000000002a00000000000003e8\
    000000000000000900000000000000010000000000000320000000000000002800000000\
    0000001e0000000000000000000000000000000000000000c143ebee";
const GOLDEN_FRAME: &str =
    "4652414d00000001000000000000002a00000000000000800000000000000007bf9d270c9ba1cb0a7061796c6f616400";

#[test]
fn a_segment_begun_ahead_takes_the_next_frame() {
    let files = disk();
    let mut journal = open(&files).unwrap().0;
    assert!(!journal.roll_ahead().unwrap(), "nothing was appended");
    let frame = FRAME_HEAD_BYTES + 600;
    let fit = (SMALL.segment_bytes - HEADER_BYTES) / frame;
    for block in 0..fit {
        assert!(!journal.roll_ahead().unwrap(), "block {block} fits");
        journal.append(BlockNumber(block), &payload(block, 0, 600)).unwrap();
    }
    assert!(journal.roll_ahead().unwrap());
    assert!(!journal.roll_ahead().unwrap(), "it is empty");
    let before = files.operations();
    journal.append(BlockNumber(fit), &payload(fit, 0, 600)).unwrap();
    journal.sync().unwrap();
    assert!(files.operations() - before <= 3, "preallocate, write, sync");
    assert_eq!(replayed(&journal).len() as u64, fit + 1);
    drop(journal);
    files.crash(1);
    assert_eq!(replayed(&open(&files).unwrap().0).len() as u64, fit + 1);
}

#[test]
fn roots_come_back_with_their_block_and_go_with_it() {
    let files = disk();
    let (mut journal, _) = open(&files).unwrap();
    assert_eq!(journal.append_roots(BlockNumber(1), b"x").unwrap_err().kind(), JournalErrorKind::Input);
    for block in 1..=3 {
        journal.append(BlockNumber(block), &payload(block, 0, 600)).unwrap();
    }
    for (block, roots) in [(1, "one"), (2, "two"), (2, "two, later"), (3, "three")] {
        journal.append_roots(BlockNumber(block), roots.as_bytes()).unwrap();
    }
    journal.refuse_from(BlockNumber(3)).unwrap();
    let error = journal.append_roots(BlockNumber(3), b"x").unwrap_err();
    assert_eq!(error.kind(), JournalErrorKind::Input, "{error}");
    journal.append(BlockNumber(3), b"another").unwrap();
    journal.sync().unwrap();
    drop(journal);
    let roots = |journal: &Journal| -> Vec<Option<String>> {
        let text =
            |read: Result<Recovered, _>| read.unwrap().roots.map(|roots| String::from_utf8(roots).unwrap());
        journal.replay().map(text).collect()
    };
    let (mut journal, _) = open(&files).unwrap();
    assert_eq!(roots(&journal), [Some("one".into()), Some("two, later".into()), None]);
    // Roots of blocks that are trimmed are of no account.
    assert!(journal.trim(BlockNumber(2), ALL).unwrap() > 0);
    drop(journal);
    assert_eq!(roots(&open(&files).unwrap().0), [None]);
}

#[test]
fn looking_changes_nothing_and_an_opening_begins_a_segment() {
    let bytes = |files: &FaultyFiles| -> Vec<_> {
        files.paths().into_iter().map(|path| (files.content(&path), path)).collect()
    };
    let inspect =
        |files: &FaultyFiles| Journal::inspect(Arc::new(files.clone()), &dir(), SMALL, None).unwrap();
    let (mut journal, recovery) = inspect(&disk());
    assert!(recovery.orderly && journal.database().is_none());
    assert_eq!(
        journal.append(BlockNumber(1), b"x").unwrap_err().to_string(),
        "the journal was opened for looking only, and takes nothing"
    );

    // With a torn tail, and a segment whose creation was interrupted.
    let (files, blocks) = three_segments(false);
    files.set_content(&dir().join("00000000000000000004.seg.new"), b"FLAG");
    flip(&files, &segment(3), 624, 0);
    let before = bytes(&files);
    let (mut journal, recovery) = inspect(&files);
    assert!(recovery.cut.is_some() && recovery.unfinished_segment && !recovery.orderly);
    assert_eq!(replayed(&journal).len(), blocks.len() - 1);
    assert!(bytes(&files) == before);

    // For writing: a segment of its own, so that all before it is known to have been synced.
    let database = journal.database().unwrap();
    journal.begin(DatabaseId::fresh()).unwrap();
    assert_eq!((journal.database(), journal.segments()), (Some(database), 4));
    drop(journal);
    let last = files.content(&segment(3)).unwrap().len();
    flip(&files, &segment(3), last - 1, 0);
    assert_eq!(damage(&files).offset, 472, "the last frame of the segment before");
    flip(&files, &segment(3), last - 1, 0);
    // It was not closed in an orderly way; once it is, the mark is the last thing there is until somebody begins again.
    let (mut journal, recovery) = open(&files).unwrap();
    assert!(!recovery.orderly);
    journal.begin(database).unwrap();
    journal.close().unwrap();
    assert!(inspect(&files).1.orderly);
    let (mut journal, recovery) = open(&files).unwrap();
    assert!(recovery.orderly);
    journal.begin(database).unwrap();
    assert!(!inspect(&files).1.orderly);
}

#[test]
fn segments_of_another_database_and_refusals_that_were_trimmed_are_noticed() {
    let files = disk();
    let mut journal = open(&files).unwrap().0;
    let database = DatabaseId([7; 16]);
    journal.begin(database).unwrap();
    for block in 1..=6 {
        journal.append(BlockNumber(block), &payload(block, 0, 600)).unwrap();
    }
    let at = journal.refuse_from(BlockNumber(4)).unwrap();
    for block in 4..=9 {
        journal.append(BlockNumber(block), &payload(block, 1, 600)).unwrap();
    }
    // A store that does not take account of the refusal needs it.
    journal.trim(BlockNumber(9), Position { offset: at.offset - 1, ..at }).unwrap();
    let known = Refusal { block: BlockNumber(4), at };
    let recovery = Journal::inspect(Arc::new(files.clone()), &dir(), SMALL, None).unwrap().1;
    assert_eq!((recovery.refusals, recovery.trimmed_refusal), (vec![known], None));
    journal.trim(BlockNumber(9), at).unwrap();
    drop(journal);
    let (journal, recovery) = open(&files).unwrap();
    assert_eq!((recovery.refusals, recovery.trimmed_refusal), (vec![], Some(known)));
    assert_eq!((recovery.database, journal.refusal()), (Some(database), Some(known)));
    assert!(recovery.trimmed.is_none(), "the last segment was begun before the trim");
    drop(journal);
    let mut journal = open(&files).unwrap().0;
    journal.trim(BlockNumber(9), at).unwrap();
    journal.begin(database).unwrap();
    drop(journal);

    // A segment of another database, with this one's predecessor.
    let last = *files
        .paths()
        .last()
        .map(|path| parse_name(path.file_name().unwrap().to_str().unwrap()))
        .iter()
        .flatten()
        .next()
        .unwrap();
    let mut bytes = files.content(&segment(last)).unwrap();
    bytes[32] ^= 1;
    let sum = crc32fast::hash(&bytes[..124]);
    bytes[124..128].copy_from_slice(&sum.to_be_bytes());
    files.set_content(&segment(last), &bytes);
    assert!(damage(&files).problem.contains("it belongs to database 06070707"), "{}", damage(&files));
}

/// One that begins behind a block lacks what came before, whatever is trimmed of it.
#[test]
fn a_journal_is_whole_if_it_was_begun_for_the_first_block_and_is_not_trimmed() {
    let files = disk();
    let mut journal = open(&files).unwrap().0;
    assert!(journal.is_whole());
    journal.append(BlockNumber(7), b"seven").unwrap();
    journal.close().unwrap();
    assert!(open(&files).unwrap().0.is_whole());

    let files = disk();
    let (database, config) = (DatabaseId::fresh(), JournalConfig::default());
    Journal::begin_after(Arc::new(files.clone()), &dir(), config, database, BlockNumber(6)).unwrap();
    let mut journal = open(&files).unwrap().0;
    assert!(!journal.is_whole());
    journal.append(BlockNumber(7), b"seven").unwrap();
    journal.close().unwrap();
    assert!(!open(&files).unwrap().0.is_whole());
}

#[test]
fn a_segment_that_is_deleted_while_it_is_open_is_noticed() {
    let files = disk();
    let mut journal = open(&files).unwrap().0;
    journal.append(BlockNumber(1), b"one").unwrap();
    journal.sync().unwrap();
    files.lose(&segment(1));
    journal.append(BlockNumber(2), b"two").unwrap();
    let error = journal.sync().unwrap_err();
    assert_eq!(error.kind(), JournalErrorKind::Io);
    assert!(error.to_string().contains("deleted while it was open"), "{error}");
}

#[test]
fn real_files_work_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("journal");
    let config =
        JournalConfig { segment_bytes: 10_000, preallocate_bytes: 1_000, ..JournalConfig::default() };
    let files: Arc<dyn Files> = Arc::new(OsFiles);
    let (mut journal, _) = Journal::open(Arc::clone(&files), &dir, config, None).unwrap();
    for block in 0..40 {
        journal.append(BlockNumber(block), &payload(block, 0, block as usize * 50)).unwrap();
        if block % 3 == 0 {
            journal.sync().unwrap();
        }
    }
    assert!(journal.trim(BlockNumber(20), ALL).unwrap() > 0);
    let first = journal.held().unwrap().first.0;
    assert!((1..=20).contains(&first), "{first}");
    journal.close().unwrap();
    let (journal, recovery) = Journal::open(files, &dir, config, known(39)).unwrap();
    assert_eq!((recovery.cut, journal.last_block()), (None, Some(BlockNumber(39))));
    let expected: Blocks = (first..40).map(|block| (block, payload(block, 0, block as usize * 50))).collect();
    assert_eq!(replayed(&journal), expected);
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop_oneof![0usize..200, 0usize..2_500].prop_map(Step::Append),
        3 => Just(Step::Sync),
        1 => (1u64..4).prop_map(Step::Refuse),
        1 => (0u64..6).prop_map(Step::Trim),
        1 => Just(Step::RollAhead),
        1 => Just(Step::Close),
    ]
}

/// Leaves out what the engine would not do: refusing what is not held, trimming before there is a block.
fn sensible(steps: Vec<Step>) -> Vec<Step> {
    let (mut blocks, mut firm) = (0u64, 0u64);
    let mut kept = Vec::new();
    for step in steps {
        match step {
            Step::Append(_) => blocks += 1,
            Step::Refuse(count) if blocks < firm + count => continue,
            Step::Refuse(count) => blocks -= count,
            Step::Trim(left) if blocks < firm + left + 1 => continue,
            Step::Trim(left) => firm = blocks - left,
            Step::Sync | Step::RollAhead | Step::Close => {}
        }
        kept.push(step);
    }
    kept
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_run_survives_any_power_cut(
        steps in prop::collection::vec(step(), 1..60), k in 0u64..400, seed in any::<u64>(), nag in any::<bool>(),
    ) {
        let (files, mut model) = (disk(), Model::new());
        if nag {
            files.nag();
        }
        files.plan(Fault::PowerCut(k));
        let _ = model.run(&files, &sensible(steps));
        for round in 0..3 {
            files.crash(seed.wrapping_add(round));
            let opened = open(&files);
            prop_assert!(opened.is_ok(), "{}", opened.unwrap_err());
            let mut journal = opened.unwrap().0;
            model.check(&journal, "reopened");
            model.step(&mut journal, Step::Append(100)).unwrap();
            model.step(&mut journal, Step::Sync).unwrap();
            model.step(&mut journal, Step::Append(400)).unwrap();
        }
    }

    #[test]
    fn no_bytes_make_it_panic_or_lie(
        edits in prop::collection::vec((1u64..4, any::<prop::sample::Index>(), any::<u8>(), 0usize..12), 1..6),
        closed in any::<bool>(),
    ) {
        let (files, blocks) = three_segments(closed);
        for (sequence, at, value, length) in edits {
            let mut bytes = files.content(&segment(sequence)).unwrap();
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                match length {
                    0 => bytes.truncate(at),
                    1 => bytes.extend_from_within(at..),
                    2 => bytes.insert(at, value),
                    _ => bytes[at..].iter_mut().take(length).for_each(|byte| *byte = value),
                }
            }
            files.set_content(&segment(sequence), &bytes);
        }
        match open(&files) {
            Err(error) => prop_assert!(error.damage().is_some(), "{}", error),
            Ok((journal, _)) => {
                let found = replayed(&journal);
                prop_assert!(found.len() >= 6 && blocks.iter().take(found.len()).eq(found.iter()));
            }
        }
    }
}

/// `cargo test -p flagstone --lib journal::tests::costs -- --ignored --nocapture`: what append and sync cost
/// against writing the same bytes plainly, in turns so that both meet the same disk.
#[test]
#[ignore = "a measurement"]
fn costs_of_append_and_sync() {
    use std::time::Instant;
    for (bytes, rounds) in [(1_200_000, 300), (50_000, 1_000), (4_000, 1_000)] {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let files: Arc<dyn Files> = Arc::new(OsFiles);
        let config = JournalConfig::default();
        let (mut journal, _) = Journal::open(files, &dir.path().join("journal"), config, None).unwrap();
        let mut raw = OsFiles.create(&dir.path().join("raw")).unwrap();
        raw.sync_all().unwrap();
        let payload = payload(1, 1, bytes);
        let (mut plain, mut ours, mut append) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..rounds {
            let start = Instant::now();
            write_full(raw.as_mut(), (round * bytes) as u64, &payload).unwrap();
            raw.sync_data().unwrap();
            plain.push(start.elapsed());
            let start = Instant::now();
            journal.append(BlockNumber(round as u64), &payload).unwrap();
            append.push(start.elapsed());
            journal.sync().unwrap();
            ours.push(start.elapsed());
        }
        for times in [&mut plain, &mut ours, &mut append] {
            times.sort_unstable();
        }
        let at = |times: &[std::time::Duration], percent: usize| times[times.len() * percent / 100];
        for percent in [50, 90, 99] {
            let (raw, journal) = (at(&plain, percent), at(&ours, percent));
            let ratio = journal.as_secs_f64() / raw.as_secs_f64();
            println!(
                "bytes={bytes} p{percent}: raw {raw:?}, journal {journal:?}, ratio {ratio:.2}; append {:?}",
                at(&append, percent)
            );
        }
    }
}
