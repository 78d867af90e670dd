//! What is asked of the operating system in more than one place: directories that last, files that are still there.

use std::fs::{self, File};
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

/// Syncs all files and directories below one, and itself.
pub(crate) fn sync_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => sync_tree(&entry.path())?,
            false => File::open(entry.path())?.sync_all()?,
        }
    }
    sync_dir(dir)
}

/// Copies a file. Not as `fs::copy`, which takes over permissions: the copy is written to. Returns how many bytes it is.
pub(crate) fn copy_file(from: &Path, to: &Path) -> io::Result<u64> {
    io::copy(&mut File::open(from)?, &mut File::create(to)?)
}

/// Does something with each file below a directory and the place of its copy, and makes the directories for those. Returns the sum
/// of what it says.
pub(crate) fn copy_tree(
    from: &Path,
    to: &Path,
    copy: &dyn Fn(&Path, &Path) -> io::Result<u64>,
) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        bytes += match entry.file_type()?.is_dir() {
            true => {
                fs::create_dir(&target)?;
                copy_tree(&path, &target, copy)?
            }
            false => copy(&path, &target)?,
        };
    }
    Ok(bytes)
}
