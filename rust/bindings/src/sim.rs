//! Python face of `jobs_log::sim`, and the disk that a log of Python's lies on: a real one, or that one.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use jobs_log::RealDisk;
use jobs_log::disk::{Disk, File};
use jobs_log::sim::{Fault, Operation, SimDisk as CoreSimDisk, SimFile};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// A disk of either kind.
pub(crate) enum AnyDisk {
    Real(RealDisk),
    Sim(CoreSimDisk),
}

/// A file of it.
pub(crate) enum AnyFile {
    Real(std::fs::File),
    Sim(SimFile),
}

impl File for AnyFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Self::Real(file) => File::read_at(file, buffer, offset),
            Self::Sim(file) => file.read_at(buffer, offset),
        }
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<usize> {
        match self {
            Self::Real(file) => File::write_at(file, data, offset),
            Self::Sim(file) => file.write_at(data, offset),
        }
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        match self {
            Self::Real(file) => File::allocate(file, bytes),
            Self::Sim(file) => file.allocate(bytes),
        }
    }

    fn sync(&self) -> io::Result<()> {
        match self {
            Self::Real(file) => file.sync(),
            Self::Sim(file) => file.sync(),
        }
    }

    fn size(&self) -> io::Result<u64> {
        match self {
            Self::Real(file) => file.size(),
            Self::Sim(file) => file.size(),
        }
    }

    fn forget_cached(&self, offset: u64, bytes: u64) {
        match self {
            Self::Real(file) => file.forget_cached(offset, bytes),
            Self::Sim(file) => file.forget_cached(offset, bytes),
        }
    }
}

impl Disk for AnyDisk {
    type File = AnyFile;

    fn create(&self, name: &str) -> io::Result<AnyFile> {
        match self {
            Self::Real(disk) => disk.create(name).map(AnyFile::Real),
            Self::Sim(disk) => disk.create(name).map(AnyFile::Sim),
        }
    }

    fn open(&self, name: &str) -> io::Result<AnyFile> {
        match self {
            Self::Real(disk) => Disk::open(disk, name).map(AnyFile::Real),
            Self::Sim(disk) => disk.open(name).map(AnyFile::Sim),
        }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        match self {
            Self::Real(disk) => disk.rename(from, to),
            Self::Sim(disk) => disk.rename(from, to),
        }
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match self {
            Self::Real(disk) => disk.remove(name),
            Self::Sim(disk) => disk.remove(name),
        }
    }

    fn list(&self) -> io::Result<Vec<String>> {
        match self {
            Self::Real(disk) => disk.list(),
            Self::Sim(disk) => disk.list(),
        }
    }

    fn sync_directory(&self) -> io::Result<()> {
        match self {
            Self::Real(disk) => disk.sync_directory(),
            Self::Sim(disk) => disk.sync_directory(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        match self {
            Self::Real(disk) => disk.path(name),
            Self::Sim(disk) => disk.path(name),
        }
    }
}

const OPERATIONS: [(&str, Operation); 7] = [
    ("create", Operation::Create),
    ("allocate", Operation::Allocate),
    ("write", Operation::Write),
    ("sync", Operation::Sync),
    ("rename", Operation::Rename),
    ("remove", Operation::Remove),
    ("sync_directory", Operation::SyncDirectory),
];
const FAULTS: [(&str, Fault); 5] = [
    ("short", Fault::Short),
    ("interrupted", Fault::Interrupted),
    ("eio", Fault::Eio),
    ("enospc", Fault::Enospc),
    ("power_cut", Fault::PowerCut),
];

fn named<T: Copy>(table: &[(&str, T)], name: &str) -> PyResult<T> {
    let found = table.iter().find(|item| item.0 == name).map(|item| item.1);
    found.ok_or_else(|| PyValueError::new_err(format!("{name} is not known")))
}

/// A disk in memory that fails on demand and loses, at a power cut, what was not synced.
#[pyclass(module = "jobs._native", frozen)]
pub(crate) struct SimDisk {
    seed: u64,
    inner: Mutex<CoreSimDisk>,
}

impl SimDisk {
    fn lock(&self) -> MutexGuard<'_, CoreSimDisk> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The disk as it is, and the salt of a log that is begun on it.
    pub(crate) fn opened(&self) -> (AnyDisk, u64) {
        (AnyDisk::Sim(self.lock().clone()), self.seed)
    }

    /// Put the disk as it is afterwards in the place of the one that is open.
    fn replace(&self, after: impl FnOnce(&CoreSimDisk) -> CoreSimDisk) {
        let mut inner = self.lock();
        let next = after(&inner);
        inner.turn_off();
        *inner = next;
    }
}

#[pymethods]
impl SimDisk {
    #[new]
    fn new(seed: u64) -> Self {
        Self {
            seed,
            inner: Mutex::new(CoreSimDisk::new(seed)),
        }
    }

    fn cut_power(&self) {
        self.replace(CoreSimDisk::after_power_cut);
    }

    fn kill(&self) {
        self.replace(CoreSimDisk::after_kill);
    }

    #[pyo3(signature = (operation, fault, *, after = 0))]
    fn fail(&self, operation: Option<&str>, fault: &str, after: usize) -> PyResult<()> {
        let fault = named(&FAULTS, fault)?;
        match operation {
            None => self.lock().fail_after(after, fault),
            Some(name) => self.lock().fail_later(named(&OPERATIONS, name)?, after, fault),
        }
        Ok(())
    }

    fn set_full(&self, full: bool) {
        self.lock().set_full(full);
    }

    fn operations(&self) -> BTreeMap<&'static str, usize> {
        let mut counts: BTreeMap<_, _> = OPERATIONS.iter().map(|item| (item.0, 0)).collect();
        for done in self.lock().operations() {
            for (name, operation) in OPERATIONS {
                if operation == done {
                    *counts.entry(name).or_default() += 1;
                }
            }
        }
        counts
    }
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<SimDisk>()
}
