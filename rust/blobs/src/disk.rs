//! Names, syncs and moves of files.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use jobs_failpoint::{Point, pass, reach};
use rustix::fs::{FlockOperation, flock, statvfs};

use crate::Hash;
use crate::error::{BlobError, Result};

/// Written into a store's folder: what it holds, and how.
const FORMAT: &str = "jobs-blobs 1\n";
/// Ending of the file with a blob's tree, beside its bytes.
pub(crate) const TREE: &str = "tree";

/// Where everything is.
#[derive(Debug)]
pub(crate) struct Places {
    pub root: PathBuf,
    /// Whole blobs, in folders by their first byte.
    pub data: PathBuf,
    /// Blobs that are being added; nothing of it outlives the process.
    pub incoming: PathBuf,
    /// Blobs that are being fetched; what has come stays for the next try.
    pub partial: PathBuf,
    /// Damaged ones, until a sound one comes.
    pub quarantine: PathBuf,
}

impl Places {
    /// Make what is absent, and take the lock.
    pub fn open(root: &Path) -> Result<(Self, File)> {
        let places = Self {
            root: root.to_owned(),
            data: root.join("data"),
            incoming: root.join("incoming"),
            partial: root.join("partial"),
            quarantine: root.join("quarantine"),
        };
        make_folder(root)?;
        let lock = places.lock()?;
        places.check_format()?;
        for folder in [&places.data, &places.incoming, &places.partial, &places.quarantine] {
            make_folder(folder)?;
        }
        for first in 0..=u8::MAX {
            make_folder(&places.folder(first))?;
        }
        // Each time: whoever made them may not have come so far.
        sync_folder(root)?;
        sync_folder(&places.data)?;
        Ok((places, lock))
    }

    fn lock(&self) -> Result<File> {
        let path = self.root.join("lock");
        let mut options = OpenOptions::new();
        options.create(true).write(true).truncate(false).mode(0o600);
        let file = options.open(&path).map_err(BlobError::io("open", &path))?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
            rustix::io::Errno::WOULDBLOCK => {
                BlobError::Invalid(format!("blobs: {} is in use by another process", self.root.display()))
            }
            error => BlobError::io("lock", &path)(error.into()),
        })?;
        Ok(file)
    }

    fn check_format(&self) -> Result<()> {
        let path = self.root.join("format");
        match fs::read_to_string(&path) {
            Ok(text) if text == FORMAT => Ok(()),
            Ok(text) => Err(BlobError::Invalid(format!(
                "blobs: {} holds {:?}: {FORMAT:?} is what this version reads",
                path.display(),
                text.chars().take(40).collect::<String>()
            ))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let draft = self.root.join("format.new");
                fs::write(&draft, FORMAT).map_err(BlobError::io("write", &draft))?;
                sync_file(&draft)?;
                fs::rename(&draft, &path).map_err(BlobError::io("rename", &draft))
            }
            Err(error) => Err(BlobError::io("read", &path)(error)),
        }
    }

    pub fn folder(&self, first: u8) -> PathBuf {
        self.data.join(format!("{first:02x}"))
    }

    pub fn blob(&self, hash: &Hash) -> PathBuf {
        self.folder(hash.as_bytes()[0]).join(hash.to_hex())
    }

    /// A name for something that comes.
    pub fn draft(&self) -> PathBuf {
        self.incoming.join(format!("{:016x}", rand::random::<u64>()))
    }

    /// Parts of a blob that is known to have this size.
    pub fn part(&self, hash: &Hash, size: u64) -> PathBuf {
        self.partial.join(format!("{}.{size}", hash.to_hex()))
    }

    /// Bytes that may still be used, and bytes of the disk.
    pub fn room(&self) -> Result<(u64, u64)> {
        let stat = statvfs(&self.root).map_err(|error| BlobError::io("examine", &self.root)(error.into()))?;
        Ok((stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize))
    }
}

/// The file of the tree beside a blob's.
pub(crate) fn tree_of(path: &Path) -> PathBuf {
    path.with_added_extension(TREE)
}

pub(crate) fn create(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.create_new(true).read(true).write(true).mode(0o600);
    options.open(path).map_err(BlobError::io("make", path))
}

fn make_folder(path: &Path) -> Result<()> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(BlobError::io("make the folder", path))
}

/// Remove a file that may be absent.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(BlobError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Remove what nobody has a use for; what is left over is removed at the next start.
pub(crate) fn discard(path: &Path) {
    let _ = fs::remove_file(path);
    let _ = fs::remove_file(tree_of(path));
}

fn sync_file(path: &Path) -> Result<()> {
    let file = File::open(path).map_err(BlobError::io("open", path))?;
    file.sync_all().map_err(BlobError::io("sync", path))
}

/// So that the bytes are on the disk before their name says that they are whole.
pub(crate) fn sync_content(path: &Path, file: &File) -> Result<()> {
    pass(Point::BlobsContentSyncBefore)
        .and_then(|()| file.sync_data())
        .map_err(BlobError::io("sync", path))
}

/// So that names that were given are still there after a loss of power.
pub(crate) fn sync_folder(path: &Path) -> Result<()> {
    let synced = pass(Point::BlobsDirectorySyncBefore)
        .and_then(|()| File::open(path))
        .and_then(|folder| folder.sync_all());
    reach(Point::BlobsDirectorySyncAfter);
    synced.map_err(BlobError::io("sync the folder", path))
}

pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    let renamed = pass(Point::BlobsRenameBefore).and_then(|()| fs::rename(from, to));
    reach(Point::BlobsRenameAfter);
    renamed.map_err(BlobError::io("rename", from))
}

/// Length of a file; none when there is none.
pub(crate) fn length(path: &Path) -> Result<Option<u64>> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata.len())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(BlobError::io("examine", path)(error)),
    }
}

/// Names of a folder's files, sorted.
pub(crate) fn names(folder: &Path) -> Result<Vec<String>> {
    let wrong = |error| BlobError::io("list", folder)(error);
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(wrong)? {
        let entry = entry.map_err(BlobError::io("list", folder))?;
        // What is no text is not this store's.
        if let Ok(name) = entry.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}
