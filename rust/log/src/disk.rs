//! Files as the log needs them. [`RealDisk`] is the real one; tests put a failing one in its place.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// One open file. Offsets and lengths are bytes.
pub trait File: Send {
    /// Read exactly `buffer.len()` bytes at `offset`; fails with `UnexpectedEof` past the end.
    ///
    /// # Errors
    /// Whatever the system says.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// Write up to `data.len()` bytes at `offset`; returns how many were written.
    ///
    /// # Errors
    /// Whatever the system says.
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<usize>;
    /// Make written data durable.
    ///
    /// # Errors
    /// Whatever the system says; the data must then be taken as lost.
    fn sync(&self) -> io::Result<()>;
    /// Length of the file.
    ///
    /// # Errors
    /// Whatever the system says.
    fn len(&self) -> io::Result<u64>;
}

/// A directory of files.
pub trait Disk: Send {
    /// File of this disk.
    type File: File;
    /// Create a file that is not there yet, for reading and writing.
    ///
    /// # Errors
    /// Whatever the system says.
    fn create(&self, name: &str) -> io::Result<Self::File>;
    /// Open a file for reading and writing.
    ///
    /// # Errors
    /// Whatever the system says.
    fn open(&self, name: &str) -> io::Result<Self::File>;
    /// Rename a file.
    ///
    /// # Errors
    /// Whatever the system says.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Remove a file.
    ///
    /// # Errors
    /// Whatever the system says.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Names of all files.
    ///
    /// # Errors
    /// Whatever the system says.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Make creations, renames and removals durable.
    ///
    /// # Errors
    /// Whatever the system says.
    fn sync_directory(&self) -> io::Result<()>;
    /// Path of a file, for messages.
    fn path(&self, name: &str) -> PathBuf;
}

/// A directory of the file system, locked against a second process.
#[derive(Debug)]
pub struct RealDisk {
    directory: PathBuf,
    handle: fs::File,
    _lock: fs::File,
}

impl RealDisk {
    /// Open a directory, making it if it is not there, and lock it. `None` when another process holds the lock.
    ///
    /// # Errors
    /// Whatever the system says.
    pub fn open(directory: &Path) -> io::Result<Option<Self>> {
        fs::create_dir_all(directory)?;
        let lock = fs::File::options().create(true).truncate(false).write(true).open(directory.join("LOCK"))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(None);
        }
        let handle = fs::File::open(directory)?;
        if let Some(parent) = directory.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            // The directory's own name has to survive, or a power cut takes the whole log with it.
            fs::File::open(parent)?.sync_all()?;
        }
        Ok(Some(Self { directory: directory.to_owned(), handle, _lock: lock }))
    }
}

impl File for fs::File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<usize> {
        FileExt::write_at(self, data, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

impl Disk for RealDisk {
    type File = fs::File;

    fn create(&self, name: &str) -> io::Result<fs::File> {
        fs::File::options().read(true).write(true).create_new(true).open(self.path(name))
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
