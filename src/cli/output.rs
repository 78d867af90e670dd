//! Lines to standard output, errors and the progress bar to standard error. Colours only on a terminal.
//!
//! Standard output is what a command is asked for, so a line of it that cannot be written fails the command. Standard error
//! is beside it: what cannot be written there is dropped.

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use flagstone::core::types::BlockNumber;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::failure::Failure;

pub const GOOD: Style = AnsiColor::Green.on_default();
pub const BAD: Style = AnsiColor::Red.on_default().bold();
pub const DIM: Style = Style::new().dimmed();

/// Input from this size on gets a progress bar: what is shorter is done before a bar could be read.
const LONG_INPUT_BYTES: u64 = 256 << 10;

/// Where results are printed.
pub struct Output {
    out: anstream::AutoStream<std::io::Stdout>,
    bar: ProgressBar,
    /// The reader went away, or the failure to write was told: no more is written.
    closed: bool,
}

impl Output {
    pub fn new() -> Self {
        Self { out: anstream::stdout(), bar: ProgressBar::hidden(), closed: false }
    }

    /// Prints a line, above the progress bar if there is one. A line that cannot be written is a failure, told once; a reader
    /// that went away is none, and the work goes on without it.
    pub fn line(&mut self, line: &str) -> Result<(), Failure> {
        if self.closed {
            return Ok(());
        }
        let (bar, out) = (&self.bar, &mut self.out);
        let written = bar.suspend(|| writeln!(out, "{line}").and_then(|()| out.flush()));
        self.closed = written.is_err();
        answered(written)
    }

    /// Prints an error.
    pub fn error(&mut self, message: &str) {
        self.bar.finish_and_clear();
        // If standard error is gone there is nobody left to tell.
        let _ = writeln!(anstream::stderr(), "{BAD}error:{BAD:#} {message}");
    }

    /// Prints a remark beside the result.
    pub fn note(&mut self, message: &str) {
        // If standard error is gone there is nobody left to tell.
        let _ = writeln!(anstream::stderr(), "{DIM}note:{DIM:#} {message}");
    }

    /// Starts a progress bar over `total` bytes of input, or of unknown length, if it is long and somebody can see it.
    pub fn start_progress(&mut self, total: Option<u64>) {
        if !std::io::stderr().is_terminal() || total.is_some_and(|total| total < LONG_INPUT_BYTES) {
            return;
        }
        let template = match total {
            Some(_) => "{bar:30} {bytes}/{total_bytes}  {elapsed}, {eta} left  {msg}",
            None => "{spinner} {bytes}  {elapsed}  {msg}",
        };
        self.start_bar(total, template);
    }

    /// Starts a progress bar over `total` blocks, if somebody can see it.
    #[cfg(feature = "blockifier")]
    pub fn start_blocks(&mut self, total: u64) {
        if std::io::stderr().is_terminal() {
            self.start_bar(Some(total), "{bar:30} {pos}/{len} blocks  {elapsed}, {eta} left  {msg}");
        }
    }

    fn start_bar(&mut self, total: Option<u64>, template: &str) {
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let target = ProgressDrawTarget::stderr();
        self.bar = ProgressBar::with_draw_target(total, target).with_style(style);
        self.bar.enable_steady_tick(Duration::from_millis(200));
    }

    /// Starts a spinner for work whose length is not known, if somebody can see it.
    pub fn start_spinner(&mut self) {
        if std::io::stderr().is_terminal() {
            let style = ProgressStyle::with_template("{spinner} {elapsed}  {msg}");
            self.bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr())
                .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            self.bar.enable_steady_tick(Duration::from_millis(200));
        }
    }

    /// Moves the progress bar to `position`: bytes of input read, or blocks.
    pub fn progress(&self, position: u64, message: impl FnOnce() -> String) {
        if !self.bar.is_hidden() {
            self.bar.set_position(position);
            self.bar.set_message(message());
        }
    }

    /// Takes the progress bar away.
    pub fn end_progress(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// What the outcome of writing to standard output means for the command.
pub fn answered(written: io::Result<()>) -> Result<(), Failure> {
    match written {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Failure::store(format!(
            "cannot write to standard output: {error}; what was printed is not whole"
        ))),
        _ => Ok(()),
    }
}

/// A text in a style.
pub fn styled(style: Style, text: impl std::fmt::Display) -> String {
    format!("{style}{text}{style:#}")
}

/// The state after a block, in the middle of a sentence.
pub fn state_after(block: Option<BlockNumber>) -> String {
    block.map_or_else(|| "the empty state".to_owned(), |block| format!("block {block}"))
}
