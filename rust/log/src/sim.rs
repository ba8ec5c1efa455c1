//! A disk in memory for tests, which fails on demand and loses, at a power cut, what was not synced.
//!
//! Each 512-byte sector written since the last successful sync may or may not have reached the platter, in any
//! combination, in part, and also in an earlier version; so may each change of the directory since its last sync. A failed sync
//! behaves as Linux's: the data stays readable, counts as clean, and no later sync writes it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::disk::{Disk, File};

const SECTOR_BYTES: usize = 512;

/// A small generator of numbers (splitmix64), so that a seed says everything.
#[derive(Clone, Debug)]
pub struct Random(u64);

#[allow(missing_docs, reason = "the names say it")]
impl Random {
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.number() % end.max(1)
    }

    pub fn size(&mut self, end: usize) -> usize {
        usize::try_from(self.below(end as u64)).expect("it is below a size")
    }

    pub fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.number().to_le_bytes()[0]).collect()
    }
}

/// What happens to one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A write takes one byte less than it was given. No error.
    Short,
    /// The operation is interrupted by a signal before it did anything. No error.
    Interrupted,
    /// The operation fails; half of a write was done.
    Eio,
    /// There is no room; nothing was done.
    Enospc,
    /// The power goes: the operation and all later ones fail.
    PowerCut,
}

/// What an operation does, for aiming faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Operation {
    Create,
    Allocate,
    Write,
    Sync,
    Rename,
    Remove,
    SyncDirectory,
}

#[derive(Clone, Debug)]
enum NameChange {
    Create(String, usize),
    Rename(String, String),
    Remove(String),
}

#[derive(Clone, Debug, Default)]
struct Bytes {
    cached: Vec<u8>,
    platter: Vec<u8>,
    /// Sectors that a sync has to write.
    dirty: BTreeSet<usize>,
    /// Sectors that a failed sync has given up.
    lost: BTreeSet<usize>,
}

type Names = BTreeMap<String, usize>;

#[derive(Clone, Debug)]
struct State {
    files: Vec<Bytes>,
    names: Names,
    durable_names: Names,
    unsynced_names: Vec<NameChange>,
    random: Random,
    operations: Vec<Operation>,
    /// The fault, and how many operations (of one kind only, if one is named) succeed before it.
    fault: Option<(usize, Option<Operation>, Fault)>,
    /// Whether no room is left to create or to set aside.
    full: bool,
    off: bool,
}

/// The disk; clones are the same disk.
#[derive(Clone, Debug)]
pub struct SimDisk(Arc<Mutex<State>>);

/// A file of it.
#[derive(Clone, Debug)]
pub struct SimFile(SimDisk, usize);

impl SimDisk {
    /// An empty disk.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            files: Vec::new(),
            names: Names::new(),
            durable_names: Names::new(),
            unsynced_names: Vec::new(),
            random: Random::new(seed),
            operations: Vec::new(),
            fault: None,
            full: false,
            off: false,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Operations done so far that change something.
    #[must_use]
    pub fn operations(&self) -> Vec<Operation> {
        self.state().operations.clone()
    }

    /// Let the operation fail that comes after `after` more ones.
    pub fn fail_after(&self, after: usize, fault: Fault) {
        self.state().fault = Some((after, None, fault));
    }

    /// Let the next operation of a kind fail.
    pub fn fail_next(&self, operation: Operation, fault: Fault) {
        self.fail_later(operation, 0, fault);
    }

    /// Let the operation of a kind fail that comes after `after` more ones of it.
    pub fn fail_later(&self, operation: Operation, after: usize, fault: Fault) {
        self.state().fault = Some((after, Some(operation), fault));
    }

    /// Leave no room for further files, or give it back.
    pub fn set_full(&self, full: bool) {
        self.state().full = full;
    }

    /// Let every further operation fail.
    pub fn turn_off(&self) {
        self.state().off = true;
    }

    /// The disk as the next process finds it when only the former one died.
    #[must_use]
    pub fn after_kill(&self) -> Self {
        let mut state = self.state().clone();
        (state.fault, state.off) = (None, false);
        state.operations.clear();
        state.forget_unnamed();
        Self(Arc::new(Mutex::new(state)))
    }

    /// The disk as the next process finds it after a power cut.
    #[must_use]
    pub fn after_power_cut(&self) -> Self {
        let disk = self.after_kill();
        disk.state().cut_power();
        disk
    }

    /// How many segments the directory has.
    #[must_use]
    pub fn list_segments(&self) -> usize {
        self.state().names.keys().filter(|name| name.contains(".seg")).count()
    }
}

impl State {
    /// Note an operation; say which fault meets it.
    fn begin(&mut self, operation: Operation) -> io::Result<Option<Fault>> {
        if self.off {
            return Err(io::Error::other("the power is off"));
        }
        self.operations.push(operation);
        let fault = match &mut self.fault {
            Some((after, only, fault)) if only.is_none_or(|only| only == operation) => {
                let fault = *fault;
                if let Some(left) = after.checked_sub(1) {
                    *after = left;
                    None
                } else {
                    self.fault = None;
                    Some(fault)
                }
            }
            _ => None,
        };
        self.off = fault == Some(Fault::PowerCut);
        match fault {
            None if self.full && matches!(operation, Operation::Create | Operation::Allocate) => {
                Err(io::ErrorKind::StorageFull.into())
            }
            Some(Fault::Enospc) => Err(io::ErrorKind::StorageFull.into()),
            Some(Fault::Eio | Fault::PowerCut) if !matches!(operation, Operation::Write | Operation::Sync) => {
                Err(io::Error::other("injected"))
            }
            fault => Ok(fault),
        }
    }

    fn cut_power(&mut self) {
        let State { files, random, .. } = self;
        for file in files {
            if file.platter.len() < file.cached.len() && random.one_in(2) {
                file.platter.resize(file.cached.len(), 0);
            }
            let unsure: Vec<usize> = file.dirty.union(&file.lost).copied().collect();
            // Now and then all or nothing, so that rare mixtures are not all there is.
            let odds = random.below(5);
            for sector in unsure {
                if random.below(4) < odds {
                    // The last one under the head may end in the middle.
                    let torn = random.one_in(8);
                    file.write_back(sector, if torn { random.size(SECTOR_BYTES) } else { SECTOR_BYTES });
                }
            }
            (file.dirty, file.lost) = Default::default();
            file.cached = file.platter.clone();
        }
        self.names = std::mem::take(&mut self.durable_names);
        for change in std::mem::take(&mut self.unsynced_names) {
            if self.random.one_in(2) {
                apply(&mut self.names, &change);
            }
        }
        self.durable_names = self.names.clone();
    }

    /// Give back the room of files that have lost their names for good.
    fn forget_unnamed(&mut self) {
        let mut named: BTreeSet<usize> = self
            .names
            .values()
            .chain(self.durable_names.values())
            .copied()
            .collect();
        named.extend(self.unsynced_names.iter().filter_map(|change| match change {
            NameChange::Create(_, file) => Some(*file),
            NameChange::Rename(..) | NameChange::Remove(_) => None,
        }));
        for (number, file) in self.files.iter_mut().enumerate() {
            if !named.contains(&number) {
                *file = Bytes::default();
            }
        }
    }

    fn change_names(&mut self, change: NameChange) {
        apply(&mut self.names, &change);
        self.unsynced_names.push(change);
    }
}

impl Bytes {
    fn write_back(&mut self, sector: usize, bytes: usize) {
        let begin = sector * SECTOR_BYTES;
        let end = (begin + bytes).min(self.cached.len()).min(self.platter.len());
        if begin < end {
            self.platter[begin..end].copy_from_slice(&self.cached[begin..end]);
        }
    }
}

fn apply(names: &mut Names, change: &NameChange) {
    match change {
        NameChange::Create(name, file) => drop(names.insert(name.clone(), *file)),
        NameChange::Remove(name) => drop(names.remove(name)),
        NameChange::Rename(from, to) => {
            if let Some(file) = names.remove(from) {
                names.insert(to.clone(), file);
            }
        }
    }
}

fn position(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(|_| io::ErrorKind::FileTooLarge.into())
}

fn missing(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, name.to_owned())
}

impl File for SimFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.0.state();
        let begin = position(offset)?;
        let data = state.files[self.1].cached.get(begin..begin + buffer.len());
        buffer.copy_from_slice(data.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<usize> {
        let mut state = self.0.state();
        let fault = state.begin(Operation::Write)?;
        let count = match fault {
            Some(Fault::Interrupted) => return Err(io::ErrorKind::Interrupted.into()),
            Some(Fault::Short) => (data.len() - 1).max(1),
            Some(_) => data.len() / 2,
            None => data.len(),
        };
        let begin = position(offset)?;
        let State { files, random, .. } = &mut *state;
        let file = &mut files[self.1];
        if file.cached.len() < begin + count {
            file.cached.resize(begin + count, 0);
        }
        file.cached[begin..begin + count].copy_from_slice(&data[..count]);
        if count > 0 {
            for sector in begin / SECTOR_BYTES..=(begin + count - 1) / SECTOR_BYTES {
                file.lost.remove(&sector);
                file.dirty.insert(sector);
                // The system may write back at any time.
                if random.one_in(8) {
                    file.write_back(sector, SECTOR_BYTES);
                }
            }
        }
        match fault {
            Some(Fault::Eio | Fault::PowerCut) => Err(io::Error::other("injected")),
            _ => Ok(count),
        }
    }

    fn allocate(&self, _bytes: u64) -> io::Result<()> {
        self.0.state().begin(Operation::Allocate).map(drop)
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.0.state();
        let fault = state.begin(Operation::Sync)?;
        let file = &mut state.files[self.1];
        match fault {
            Some(Fault::Eio) => {
                let mut given_up = std::mem::take(&mut file.dirty);
                file.lost.append(&mut given_up);
                Err(io::Error::other("injected"))
            }
            Some(Fault::PowerCut) => Err(io::Error::other("injected")),
            _ => {
                file.platter.resize(file.cached.len(), 0);
                for sector in std::mem::take(&mut file.dirty) {
                    file.write_back(sector, SECTOR_BYTES);
                }
                Ok(())
            }
        }
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.0.state().files[self.1].cached.len() as u64)
    }
}

impl Disk for SimDisk {
    type File = SimFile;

    fn create(&self, name: &str) -> io::Result<SimFile> {
        let mut state = self.state();
        state.begin(Operation::Create)?;
        let file = state.files.len();
        state.files.push(Bytes::default());
        state.change_names(NameChange::Create(name.to_owned(), file));
        Ok(SimFile(self.clone(), file))
    }

    fn open(&self, name: &str) -> io::Result<SimFile> {
        let file = *self.state().names.get(name).ok_or_else(|| missing(name))?;
        Ok(SimFile(self.clone(), file))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        state.begin(Operation::Rename)?;
        if !state.names.contains_key(from) {
            return Err(missing(from));
        }
        state.change_names(NameChange::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        state.begin(Operation::Remove)?;
        if !state.names.contains_key(name) {
            return Err(missing(name));
        }
        state.change_names(NameChange::Remove(name.to_owned()));
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.state().names.keys().cloned().collect())
    }

    fn sync_directory(&self) -> io::Result<()> {
        let mut state = self.state();
        state.begin(Operation::SyncDirectory)?;
        state.durable_names = state.names.clone();
        state.unsynced_names.clear();
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from("/sim").join(name)
    }
}
