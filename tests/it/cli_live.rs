//! `flagstone replay -` behind a live feed: what is known is printed while the feed has nothing more to give.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use serde_json::Value;

use crate::cli::{Bench, check, flagstone, mainnet, piped, stated_root, stdout};

/// Far more than anything here takes: it only keeps a test that fails from waiting for ever.
const TOO_LONG: Duration = Duration::from_secs(60);

/// A running command whose standard input is held open.
pub struct Live {
    child: Child,
    feed: ChildStdin,
    lines: Receiver<String>,
}

impl Live {
    pub fn start(args: &[&str]) -> Self {
        let mut child = piped(args);
        let (feed, out) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (tell, lines) = channel();
        thread::spawn(move || {
            BufReader::new(out).lines().map_while(Result::ok).try_for_each(|line| tell.send(line))
        });
        Self { child, feed, lines }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.feed.write_all(bytes).unwrap();
        self.feed.flush().unwrap();
    }

    /// A block of mainnet, as a line.
    fn block(&mut self, block: usize) {
        self.send(format!("{}\n", block_line(block)).as_bytes());
    }

    #[track_caller]
    fn line(&self) -> String {
        self.lines.recv_timeout(TOO_LONG).expect("no line came while the feed was silent")
    }

    /// The next line is of this block and says that its root is right.
    #[track_caller]
    fn expect_ok(&self, block: usize) {
        let line = self.line();
        let root = format!("root {}  ok", stated_root(block));
        assert!(line.starts_with(&format!("block {block} ")) && line.ends_with(&root), "{line}");
    }

    /// What it says on standard error, once it has ended by itself with this code. The feed is still open.
    #[track_caller]
    pub fn expect_end(mut self, code: i32) -> String {
        let mut said = String::new();
        let (tell, ended) = channel();
        let mut child_stderr = self.child.stderr.take().unwrap();
        thread::spawn(move || {
            let read = child_stderr.read_to_string(&mut said).map(|_| said);
            tell.send(read)
        });
        let said = ended.recv_timeout(TOO_LONG);
        if said.is_err() {
            self.child.kill().unwrap();
        }
        let status = self.child.wait().unwrap();
        drop(self.feed);
        let said = said.expect("it has not ended while the feed was open").unwrap();
        assert_eq!(status.code(), Some(code), "{said}");
        said
    }
}

fn block_line(block: usize) -> String {
    mainnet().lines().nth(block).unwrap().to_owned()
}

#[test]
fn each_block_is_answered_before_the_next_one_comes() {
    for cadence in ["every", "close"] {
        let mut live = Live::start(&["replay", "--store", "memory", "--commit", cadence, "-"]);
        for block in 0..10 {
            live.block(block);
            live.expect_ok(block);
        }
        drop(live.feed);
        assert!(live.lines.recv_timeout(TOO_LONG).unwrap().starts_with("10 blocks, 197 writes"));
        assert!(live.child.wait().unwrap().success());
    }
}

#[test]
fn json_lines_come_as_soon() {
    let mut live = Live::start(&["replay", "--store", "memory", "--json", "-"]);
    for block in 0..3 {
        live.block(block);
        let line: Value = serde_json::from_str(&live.line()).unwrap();
        assert_eq!((&line["block"], &line["matches"]), (&block.into(), &true.into()));
        assert_eq!(line["root"], stated_root(block).as_str());
    }
    live.send(block_line(3).replace(&stated_root(3), "0xbad").as_bytes());
    let line: Value = serde_json::from_str(&live.line()).unwrap();
    assert_eq!((&line["block"], &line["matches"]), (&3.into(), &false.into()));
    live.expect_end(1);
}

#[test]
fn a_mismatch_ends_the_replay_while_the_feed_is_open() {
    for (cadence, wrong) in [("every", 2), ("close", 2), ("3", 1), ("3", 2)] {
        let bench = Bench::new("");
        let db = bench.path("db");
        let mut live = Live::start(&["replay", "--data", &db, "--commit", cadence, "-"]);
        for block in 0..wrong {
            live.block(block);
        }
        live.send(block_line(wrong).replace(&stated_root(wrong), "0xbad").as_bytes());
        // Cadence 3 has something to do with the third block only; of its parent nobody says anything.
        for block in wrong + 1..3 {
            let other = block_line(block).replace("old_root", "was_root");
            live.send(other.as_bytes());
        }
        for block in 0..wrong {
            live.expect_ok(block);
        }
        let line = live.line();
        assert!(line.ends_with("MISMATCH, stated 0xbad"), "{cadence}: {line}");
        let said = live.expect_end(1);
        let expected = format!(
            "standard input:{}: block {wrong}: root mismatch: stated 0xbad, computed {}",
            wrong + 1,
            stated_root(wrong)
        );
        assert!(said.contains(&expected), "{cadence}: {said}");
        let root = flagstone(["root", "--data", &db]);
        check(&root, 0);
        assert_eq!(stdout(&root).trim(), stated_root(wrong - 1));
    }
}

#[test]
fn blocks_that_are_committed_together_are_answered_when_the_last_of_them_came() {
    let mut live = Live::start(&["replay", "--store", "memory", "--commit", "3", "-"]);
    for first in [0, 3, 6] {
        for block in first..first + 3 {
            live.block(block);
        }
        for block in first..first + 3 {
            live.expect_ok(block);
        }
    }
}

#[test]
fn a_file_before_the_feed_is_answered_before_the_feed_begins() {
    let bench = Bench::new(&mainnet());
    let live = Live::start(&["replay", "--store", "memory", &bench.path("in.jsonl"), "-"]);
    for block in 0..10 {
        live.expect_ok(block);
    }
}

#[test]
fn what_is_no_update_ends_the_replay_while_the_feed_is_open() {
    let mut live = Live::start(&["replay", "--store", "memory", "-"]);
    live.block(0);
    live.expect_ok(0);
    live.send(b"and so on");
    let said = live.expect_end(2);
    assert!(said.contains("standard input:2: expected a state update"), "{said}");
}

#[test]
fn updates_in_a_list_and_compressed_ones_are_answered_as_they_come() {
    let mut live = Live::start(&["replay", "--store", "memory", "-"]);
    for (block, begin) in ["[", ",\n", ", "].into_iter().enumerate() {
        live.send(format!("{begin}{}", block_line(block)).as_bytes());
        live.expect_ok(block);
    }

    let mut live = Live::start(&["replay", "--store", "memory", "-"]);
    let mut packed = GzEncoder::new(Vec::new(), Compression::default());
    for block in 0..3 {
        packed.write_all(block_line(block).as_bytes()).unwrap();
        packed.flush().unwrap();
        let bytes = std::mem::take(packed.get_mut());
        live.send(&bytes);
        live.expect_ok(block);
    }

    let mut live = Live::start(&["replay", "--store", "memory", "-"]);
    for block in 0..3 {
        live.send(&compress_to_vec(block_line(block).as_bytes(), CompressionLevel::Fastest));
        live.expect_ok(block);
    }
}
