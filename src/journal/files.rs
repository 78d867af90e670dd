//! The few file operations that the journal is made of, so that a test can stand in for the disk.
//!
//! [`OsFiles`] is the operating system. [`super::faulty::FaultyFiles`] is memory that loses, tears and reorders what
//! was not synced. Nothing here decides anything: the order of the operations is the journal's affair.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::Path;

use crate::disk;

/// A directory tree of files.
pub trait Files: Send + Sync + fmt::Debug {
    /// Makes a directory if it is not there; its parent must be.
    ///
    /// # Errors
    /// What the system says.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;

    /// Names of the entries of a directory, in no order.
    ///
    /// # Errors
    /// What the system says.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Creates a file, or empties the one that is there.
    ///
    /// # Errors
    /// What the system says.
    fn create(&self, path: &Path) -> io::Result<Box<dyn OpenFile>>;

    /// Opens a file that is there, for reading and writing.
    ///
    /// # Errors
    /// What the system says.
    fn open(&self, path: &Path) -> io::Result<Box<dyn OpenFile>>;

    /// Opens a file that is there, for reading alone.
    ///
    /// # Errors
    /// What the system says.
    fn open_read(&self, path: &Path) -> io::Result<Box<dyn OpenFile>>;

    /// Gives a file another name in the same directory.
    ///
    /// # Errors
    /// What the system says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// What the system says.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Returns when the entries of a directory are on the disk.
    ///
    /// # Errors
    /// What the system says.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// An open file. Reads and writes may be short, as the system's are.
pub trait OpenFile: Send + Sync + fmt::Debug {
    /// Whether it still has a name. What is written to a file that was deleted is gone with its process, however well it is
    /// synced.
    ///
    /// # Errors
    /// What the system says.
    fn is_linked(&mut self) -> io::Result<bool>;

    /// Its length in bytes.
    ///
    /// # Errors
    /// What the system says.
    fn size(&mut self) -> io::Result<u64>;

    /// Reads some bytes at an offset; none at the end.
    ///
    /// # Errors
    /// What the system says.
    fn read_at(&mut self, offset: u64, bytes: &mut [u8]) -> io::Result<usize>;

    /// Writes some of the bytes at an offset.
    ///
    /// # Errors
    /// What the system says.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<usize>;

    /// Cuts the file.
    ///
    /// # Errors
    /// What the system says.
    fn set_size(&mut self, bytes: u64) -> io::Result<()>;

    /// Returns when content, and as much as is needed to find it, is on the disk.
    ///
    /// # Errors
    /// What the system says. The system may then take unwritten pages for clean, so a second call proves nothing.
    fn sync_data(&mut self) -> io::Result<()>;

    /// Like [`OpenFile::sync_data`], with everything else that is known of the file.
    ///
    /// # Errors
    /// As [`OpenFile::sync_data`].
    fn sync_all(&mut self) -> io::Result<()>;
}

/// Fills `bytes` from an offset, as far as the file goes; says how far.
pub(super) fn read_full(file: &mut dyn OpenFile, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(offset + done as u64, rest) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Writes all of `bytes` at an offset. An interrupted call has written nothing and is made again, a short one is
/// continued; any other failure is final.
pub(super) fn write_full(file: &mut dyn OpenFile, offset: u64, bytes: &[u8]) -> io::Result<()> {
    let mut done = 0;
    while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
        match file.write_at(offset + done as u64, rest) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => done += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The operating system's files.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsFiles;

impl Files for OsFiles {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        match fs::create_dir(dir) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
            result => result,
        }
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        // A name that is not text is none of the journal's.
        let names = fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().into_string().ok()));
        names.filter_map(io::Result::transpose).collect()
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn OpenFile>> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
        Ok(Box::new(OsFile(file)))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn OpenFile>> {
        Ok(Box::new(OsFile(OpenOptions::new().read(true).write(true).open(path)?)))
    }

    fn open_read(&self, path: &Path) -> io::Result<Box<dyn OpenFile>> {
        Ok(Box::new(OsFile(File::open(path)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        disk::sync_dir(dir)
    }
}

#[derive(Debug)]
struct OsFile(File);

impl OpenFile for OsFile {
    fn is_linked(&mut self) -> io::Result<bool> {
        disk::is_linked(&self.0)
    }

    fn size(&mut self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&mut self, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.seek(SeekFrom::Start(offset))?;
        self.0.read(bytes)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        self.0.seek(SeekFrom::Start(offset))?;
        self.0.write(bytes)
    }

    fn set_size(&mut self, bytes: u64) -> io::Result<()> {
        self.0.set_len(bytes)
    }

    fn sync_data(&mut self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn sync_all(&mut self) -> io::Result<()> {
        self.0.sync_all()
    }
}
