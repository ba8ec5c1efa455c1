//! Files as the log needs them. [`RealDisk`] is the real one; tests put a failing one in its place.

use std::fs;
use std::io;
use std::num::NonZero;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, FallocateFlags, FlockOperation, fadvise, fallocate, flock};
use rustix::io::Errno;

use crate::error::{LogError, Result};

/// One open file. Offsets and lengths are bytes. Errors are whatever the system says.
#[allow(clippy::missing_errors_doc, reason = "said once for all")]
pub trait File: Send + Sync {
    /// Read exactly `buffer.len()` bytes at `offset`; fails with `UnexpectedEof` past the end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// Write up to `data.len()` bytes at `offset`; returns how many were written.
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<usize>;
    /// Set room aside, so that writes up to `bytes` find it. Changes neither the file's size nor what it holds.
    fn allocate(&self, bytes: u64) -> io::Result<()>;
    /// Make written data durable. When this fails, the data must be taken as lost.
    fn sync(&self) -> io::Result<()>;
    /// Length of the file.
    fn size(&self) -> io::Result<u64>;
    /// Let the next read of a part come from the disk, as far as that can be asked for.
    fn forget_cached(&self, _offset: u64, _bytes: u64) {}
}

/// A directory of files. Errors are whatever the system says.
#[allow(clippy::missing_errors_doc, reason = "said once for all")]
pub trait Disk: Send {
    /// File of this disk.
    type File: File;
    /// Create a file, or empty the one that is there, for reading and writing.
    fn create(&self, name: &str) -> io::Result<Self::File>;
    /// Open a file for reading and writing.
    fn open(&self, name: &str) -> io::Result<Self::File>;
    /// Rename a file.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Remove a file.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Names of all files.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Make creations, renames and removals durable.
    fn sync_directory(&self) -> io::Result<()>;
    /// Path of a file, for messages.
    fn path(&self, name: &str) -> PathBuf;
}

/// A directory of the file system, locked against a second opener.
#[derive(Debug)]
pub struct RealDisk {
    directory: PathBuf,
    handle: fs::File,
    _lock: fs::File,
}

impl RealDisk {
    /// Open a directory, making it if it is not there, and lock it.
    ///
    /// # Errors
    /// [`LogError::Locked`] when it is open already, in this process or another; [`LogError::Io`].
    pub fn open(directory: &Path) -> Result<Self> {
        let failed = || LogError::io(format!("open {}", directory.display()));
        create_directory(directory).map_err(failed())?;
        let lock = fs::File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(directory.join("LOCK"))
            .map_err(failed())?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(LogError::Locked(directory.to_owned())),
            Err(error) => return Err(failed()(error.into())),
        }
        let handle = fs::File::open(directory).map_err(failed())?;
        Ok(Self {
            directory: directory.to_owned(),
            handle,
            _lock: lock,
        })
    }
}

/// Create a directory and those above it as needed, durably.
fn create_directory(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    let parent = directory
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    create_directory(parent)?;
    match fs::create_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    // The directory's own name has to survive, or a power cut takes the whole log with it.
    fs::File::open(parent)?.sync_all()
}

impl File for fs::File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<usize> {
        FileExt::write_at(self, data, offset)
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        match fallocate(self, FallocateFlags::KEEP_SIZE, 0, bytes) {
            // Such a file system cannot promise room; a full disk then shows up as a failed write.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            result => Ok(result?),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn forget_cached(&self, offset: u64, bytes: u64) {
        // It is advice: without it the read is of what is in memory, which is better than none.
        let _ = fadvise(self, offset, NonZero::new(bytes), Advice::DontNeed);
    }
}

impl Disk for RealDisk {
    type File = fs::File;

    fn create(&self, name: &str) -> io::Result<fs::File> {
        fs::File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(self.path(name))
    }

    fn open(&self, name: &str) -> io::Result<fs::File> {
        fs::File::options().read(true).write(true).open(self.path(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path(name))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        fs::read_dir(&self.directory)?
            .filter_map(|entry| entry.map(|entry| entry.file_name().into_string().ok()).transpose())
            .collect()
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.handle.sync_all()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}
