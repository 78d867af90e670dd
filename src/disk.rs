//! What is asked of the operating system in more than one place: directories that last, files that are still there.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// Returns when the entries of a directory are on the disk.
#[cfg(unix)]
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Directories cannot be opened as files elsewhere, and need not be.
#[cfg(not(unix))]
pub(crate) fn sync_dir(_dir: &Path) -> io::Result<()> {
    Ok(())
}

/// Makes a directory and those above it. Returns every directory that has got a new entry.
pub(crate) fn create_dirs(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let missing = dir.ancestors().take_while(|path| !path.as_os_str().is_empty() && !path.exists());
    let parents = missing.filter_map(Path::parent).map(|parent| match parent.as_os_str().is_empty() {
        true => PathBuf::from("."),
        false => parent.to_owned(),
    });
    let parents = parents.collect();
    std::fs::create_dir_all(dir)?;
    Ok(parents)
}

/// Whether an open file still has a name. What is written to one that was deleted is gone with the process, however well it
/// is synced.
#[cfg(unix)]
pub(crate) fn is_linked(file: &File) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    Ok(file.metadata()?.nlink() > 0)
}

/// Elsewhere a file that is open cannot be deleted.
#[cfg(not(unix))]
pub(crate) fn is_linked(_file: &File) -> io::Result<bool> {
    Ok(true)
}

/// The error for a file that is not linked any more.
pub(crate) fn deleted() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "the file was deleted while it was open")
}
