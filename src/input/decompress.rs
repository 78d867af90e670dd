//! From the bytes of a file to the bytes of its text: tells gzip and zstd by their first bytes and unpacks them.
//!
//! Streams; never holds more than the decoder's window (at most 128 MiB, which a zstd frame may ask for).

use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use super::error::{InputError, InputErrorKind};

const BUFFER_BYTES: usize = 64 * 1024;
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// A zstd file may begin with a frame to skip, `0x184D2A5?` in little-endian order.
const ZSTD_SKIPPABLE: [u8; 3] = [0x2a, 0x4d, 0x18];

/// What happened below the decoders, shared with them.
#[derive(Default)]
pub(super) struct Tally {
    bytes: AtomicU64,
    /// The file's own failure. Decoders wrap errors in different ways; this tells a broken disk from broken data.
    failure: OnceLock<String>,
}

/// The text of an input, unpacked.
pub(super) struct Text {
    pub reader: Box<dyn BufRead + Send>,
    codec: Option<&'static str>,
    tally: Arc<Tally>,
}

impl Text {
    pub fn new(reader: impl Read + Send + 'static) -> Result<Self, InputError> {
        let tally = Arc::new(Tally::default());
        let mut file =
            BufReader::with_capacity(BUFFER_BYTES, Tallied { inner: reader, tally: Arc::clone(&tally) });
        let mut head = Vec::new();
        let read = file.by_ref().take(4).read_to_end(&mut head);
        let (gzip, zstd) = (head.starts_with(&GZIP_MAGIC), is_zstd(&head));
        let file = Cursor::new(head).chain(file);
        let (reader, codec): (Box<dyn BufRead + Send>, _) = match (gzip, zstd) {
            (true, _) => (Box::new(buffered(MultiGzDecoder::new(file))), Some("gzip")),
            (_, true) => (Box::new(buffered(ZstdFrames::new(file))), Some("zstd")),
            _ => (Box::new(file), None),
        };
        let text = Self { reader, codec, tally };
        match read {
            Ok(_) => Ok(text),
            Err(error) => Err(text.explain(&error)),
        }
    }

    /// Bytes taken from the file so far, as they are there.
    pub fn bytes_read(&self) -> u64 {
        self.tally.bytes.load(Ordering::Relaxed)
    }

    /// Says what an error of `reader` means.
    pub fn explain(&self, error: &io::Error) -> InputError {
        match (self.tally.failure.get(), self.codec) {
            (None, Some(codec)) => InputError::new(
                InputErrorKind::Compression,
                format!("the {codec} data is damaged or cut short ({error}); fetch the file again"),
            ),
            (Some(failure), _) => InputError::new(InputErrorKind::Io, format!("cannot read: {failure}")),
            (None, None) => InputError::new(InputErrorKind::Io, format!("cannot read: {error}")),
        }
    }
}

fn buffered<R: Read>(reader: R) -> BufReader<R> {
    BufReader::with_capacity(BUFFER_BYTES, reader)
}

fn is_zstd(head: &[u8]) -> bool {
    head == ZSTD_MAGIC || (head.len() == 4 && head[0] >> 4 == 5 && head[1..] == ZSTD_SKIPPABLE)
}

/// Counts bytes, notes failures, and repeats interrupted reads, which the decoders could not resume.
struct Tallied<R> {
    inner: R,
    tally: Arc<Tally>,
}

impl<R: Read> Read for Tallied<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.inner.read(into) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let _first_failure_stays = self.tally.failure.set(error.to_string());
                    return Err(error);
                }
                Ok(count) => {
                    self.tally.bytes.fetch_add(count as u64, Ordering::Relaxed);
                    return Ok(count);
                }
            }
        }
    }
}

/// All frames of a zstd file one after another, checksums compared. The library's own reader stops after the first
/// frame and leaves the checksum to the caller.
struct ZstdFrames<R> {
    source: R,
    decoder: FrameDecoder,
    in_frame: bool,
}

impl<R: BufRead> ZstdFrames<R> {
    fn new(source: R) -> Self {
        Self { source, decoder: FrameDecoder::new(), in_frame: false }
    }

    fn begin_frame(&mut self) -> io::Result<()> {
        match self.decoder.reset(&mut self.source) {
            Ok(()) => self.in_frame = true,
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                length, ..
            })) => {
                let length = u64::from(length);
                if io::copy(&mut self.source.by_ref().take(length), &mut io::sink())? < length {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            Err(error) => return Err(io::Error::other(error)),
        }
        Ok(())
    }

    fn end_frame(&mut self) -> io::Result<()> {
        self.in_frame = false;
        match self.decoder.get_checksum_from_data() {
            Some(stored) if self.decoder.get_calculated_checksum() != Some(stored) => {
                Err(io::Error::new(io::ErrorKind::InvalidData, "checksum does not match"))
            }
            _ => Ok(()),
        }
    }
}

impl<R: BufRead> Read for ZstdFrames<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            if into.is_empty() {
                return Ok(0);
            } else if self.in_frame && self.decoder.can_collect() > 0 {
                return self.decoder.read(into);
            } else if self.in_frame && !self.decoder.is_finished() {
                let one_block = BlockDecodingStrategy::UptoBlocks(1);
                self.decoder.decode_blocks(&mut self.source, one_block).map_err(io::Error::other)?;
            } else if self.in_frame {
                self.end_frame()?;
            } else if self.source.fill_buf()?.is_empty() {
                return Ok(0);
            } else {
                self.begin_frame()?;
            }
        }
    }
}
