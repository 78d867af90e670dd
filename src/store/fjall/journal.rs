//! fjall's journals, read by ourselves before fjall does.
//!
//! A journal is a row of batches and then zeros, as it is made 64 MiB long at once. Numbers are little-endian:
//!
//! ```text
//! batch   1  items u32  number u64  item ...  3  checksum u64  "FJL" 3
//! item    2  kind u8  compression u8  keyspace u64  key length u16  row length u32  stored length u32  key  row
//!      or 4  keyspace u64
//! ```
//!
//! The checksum is the XXH3 (64 bits) of the items.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

const SUFFIX: &str = ".jnl";
const BEGIN: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;
const MAGIC: &[u8] = b"FJL\x03";
const PIECE_BYTES: usize = 1 << 20;

/// A journal's file.
pub struct JournalFile {
    pub path: PathBuf,
    /// Where its last whole batch ends.
    pub whole_bytes: u64,
    /// Whether there is something else than zeros behind that.
    pub is_torn: bool,
}

/// The journals in a directory, oldest first, each read to its end.
pub fn read_all(dir: &Path) -> io::Result<Vec<JournalFile>> {
    let mut numbered = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        if let Some(number) = name.as_deref().and_then(|name| name.strip_suffix(SUFFIX)?.parse::<u64>().ok())
        {
            numbered.push((number, path));
        }
    }
    numbered.sort();
    numbered.into_iter().map(|(_, path)| read(path)).collect()
}

fn read(path: PathBuf) -> io::Result<JournalFile> {
    let mut bytes = Counted { from: BufReader::with_capacity(PIECE_BYTES, File::open(&path)?), read: 0 };
    let mut whole_bytes = 0;
    while batch(&mut bytes)? {
        whole_bytes = bytes.read;
    }
    let mut rest = File::open(&path)?;
    io::Seek::seek(&mut rest, io::SeekFrom::Start(whole_bytes))?;
    let is_torn = !is_zeros(rest)?;
    Ok(JournalFile { path, whole_bytes, is_torn })
}

impl JournalFile {
    /// Cuts off what is behind the last whole batch.
    pub fn cut(&self) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(&self.path)?;
        file.set_len(self.whole_bytes)?;
        file.sync_all()
    }

    /// Copies it without the zeros behind it.
    pub fn copy(&self, to: &Path) -> io::Result<u64> {
        let from = File::open(&self.path)?;
        let bytes = if self.is_torn { from.metadata()?.len() } else { self.whole_bytes };
        io::copy(&mut from.take(bytes), &mut File::create(to)?)
    }
}

/// A reader that knows how far it is.
struct Counted<R> {
    from: R,
    read: u64,
}

impl<R: Read> Counted<R> {
    /// Fills a buffer. Whether there was enough.
    fn fill(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        match self.from.read_exact(buffer) {
            Ok(()) => {
                self.read += buffer.len() as u64;
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn array<const N: usize>(&mut self) -> io::Result<Option<[u8; N]>> {
        let mut bytes = [0; N];
        Ok(self.fill(&mut bytes)?.then_some(bytes))
    }
}

/// Reads a batch. Whether it is whole, and what its checksum says.
fn batch(from: &mut Counted<impl Read>) -> io::Result<bool> {
    let Some([BEGIN, head @ ..]) = from.array::<13>()? else { return Ok(false) };
    let [a, b, c, d, ..] = head;
    let mut sum = Xxh3::default();
    for _ in 0..u32::from_le_bytes([a, b, c, d]) {
        if !item(from, &mut sum)? {
            return Ok(false);
        }
    }
    let Some(end) = from.array::<13>()? else { return Ok(false) };
    let [END, sum_and_magic @ ..] = end else { return Ok(false) };
    Ok(sum_and_magic[..8] == sum.digest().to_le_bytes() && sum_and_magic[8..] == *MAGIC)
}

/// Reads an item. Whether it is whole.
fn item(from: &mut Counted<impl Read>, sum: &mut Xxh3) -> io::Result<bool> {
    let Some([tag]) = from.array::<1>()? else { return Ok(false) };
    sum.update(&[tag]);
    match tag {
        CLEAR => through(from, 8, sum),
        ITEM => {
            let Some(head) = from.array::<20>()? else { return Ok(false) };
            sum.update(&head);
            let key = u16::from_le_bytes([head[10], head[11]]);
            let row = u32::from_le_bytes([head[16], head[17], head[18], head[19]]);
            through(from, u64::from(key) + u64::from(row), sum)
        }
        _ => Ok(false),
    }
}

/// Reads so many bytes into a checksum. Whether they are there.
fn through(from: &mut Counted<impl Read>, bytes: u64, sum: &mut Xxh3) -> io::Result<bool> {
    let (mut left, mut piece) = (bytes, [0; 4096]);
    while left > 0 {
        let some = left.min(piece.len() as u64) as usize;
        if !from.fill(&mut piece[..some])? {
            return Ok(false);
        }
        sum.update(&piece[..some]);
        left -= some as u64;
    }
    Ok(true)
}

fn is_zeros(mut from: impl Read) -> io::Result<bool> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match from.read(&mut piece) {
            Ok(0) => return Ok(true),
            Ok(some) if piece[..some].iter().all(|byte| *byte == 0) => {}
            Ok(_) => return Ok(false),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
