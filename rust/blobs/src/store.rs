//! What is here. Every call is made from a thread that may wait for the disk.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File, Metadata};
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::Notify;

use crate::Hash;
use crate::disk::{self, Places, tree_of};
use crate::error::{BlobError, Result};
use crate::hash::parse_bytes;
use crate::tree::{TreeWriter, tree_bytes};

/// Rows of a list at most.
pub(crate) const MAX_PAGE: usize = 10_000;
/// Read at once when a blob is examined.
const EXAMINE_BYTES: usize = 1 << 20;

/// Settings of a store.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Bytes that blobs leave free on the disk for everything else there.
    pub min_free_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            min_free_bytes: 256 << 20,
        }
    }
}

/// A blob that is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Its hash.
    pub hash: Hash,
    /// Its bytes.
    pub size: u64,
    /// When it was last added or fetched, in milliseconds of Unix time.
    pub added_ms: u64,
}

/// A blob of which a part is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialStat {
    /// Its hash.
    pub hash: Hash,
    /// Bytes of the whole.
    pub size: u64,
    /// Bytes that the part takes on the disk.
    pub stored_bytes: u64,
    /// When something last came, in milliseconds of Unix time.
    pub changed_ms: u64,
}

/// What became of a deletion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletion {
    /// It is gone; so many bytes are free.
    Deleted(u64),
    /// It was not here.
    Missing,
    /// It is being read or fetched.
    Held,
    /// It was added too recently.
    Recent,
}

/// What an examination found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All as it should be.
    Sound,
    /// The bytes are right; the tree of hashes was not, and was made anew.
    Mended,
    /// The bytes are wrong; they were put aside, and the blob is not here any more.
    Damaged,
    /// It is not here.
    Missing,
}

/// What is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Whole blobs.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of their trees.
    pub tree_bytes: u64,
    /// Bytes of parts of others.
    pub partial_bytes: u64,
    /// Damaged blobs that were put aside, and not mended yet.
    pub quarantined: u64,
    /// Blobs that were found damaged since the start.
    pub damages: u64,
    /// Bytes of the disk that blobs may still use.
    pub free_bytes: u64,
    /// Bytes of the disk.
    pub disk_bytes: u64,
}

#[derive(Debug)]
struct State {
    /// None once the store is closed.
    lock: Option<File>,
    blobs: u64,
    bytes: u64,
    tree_bytes: u64,
    held: HashMap<Hash, u64>,
    fetched: HashSet<Hash>,
}

#[derive(Debug)]
struct Inner {
    places: Places,
    options: Options,
    state: Mutex<State>,
    damages: AtomicU64,
    fetch_ended: Notify,
}

/// A node's blobs.
#[derive(Clone, Debug)]
pub struct Store(Arc<Inner>);

/// While it lives, a blob is not deleted.
#[derive(Debug)]
pub struct Hold {
    store: Store,
    hash: Hash,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut state = self.store.lock();
        if let Some(count) = state.held.get_mut(&self.hash) {
            *count -= 1;
            if *count == 0 {
                state.held.remove(&self.hash);
            }
        }
    }
}

/// The one that fetches a blob.
#[derive(Debug)]
pub(crate) struct Claim(Hold);

impl Claim {
    pub const fn hash(&self) -> Hash {
        self.0.hash
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.0.store.lock().fetched.remove(&self.0.hash);
        self.0.store.0.fetch_ended.notify_waiters();
    }
}

impl Store {
    /// Open the store in this folder, made when it is absent.
    ///
    /// # Errors
    /// When another process has it open, or the disk fails.
    pub fn open(root: &Path, options: Options) -> Result<Self> {
        let (places, lock) = Places::open(root)?;
        for name in disk::names(&places.incoming)? {
            disk::remove(&places.incoming.join(name))?;
        }
        let mut state = State {
            lock: Some(lock),
            blobs: 0,
            bytes: 0,
            tree_bytes: 0,
            held: HashMap::new(),
            fetched: HashSet::new(),
        };
        for first in 0..=u8::MAX {
            count(&places.folder(first), &mut state)?;
        }
        Ok(Self(Arc::new(Inner {
            places,
            options,
            state: Mutex::new(state),
            damages: AtomicU64::new(0),
            fetch_ended: Notify::new(),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For a change of what is here.
    fn lock_open(&self) -> Result<MutexGuard<'_, State>> {
        let state = self.lock();
        match state.lock {
            Some(_) => Ok(state),
            None => Err(BlobError::Closed("the store is closed")),
        }
    }

    /// Let another process open it. Nothing that is still under way changes it after this.
    pub fn close(&self) {
        self.lock().lock = None;
    }

    pub(crate) fn places(&self) -> &Places {
        &self.0.places
    }

    /// What is known of a blob; none when it is not here.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn stat(&self, hash: &Hash) -> Result<Option<Stat>> {
        let path = self.places().blob(hash);
        match fs::metadata(&path) {
            Ok(metadata) => Ok(Some(Stat {
                hash: *hash,
                size: metadata.len(),
                added_ms: modified_ms(&metadata),
            })),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(BlobError::io("examine", &path)(error)),
        }
    }

    /// Blobs after this one in the order of their hashes, at most so many.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn list(&self, after: Option<&Hash>, max_count: usize) -> Result<Vec<Stat>> {
        let max_count = max_count.min(MAX_PAGE);
        let first = after.map_or(0, |hash| hash.as_bytes()[0]);
        let mut found = Vec::new();
        for first in first..=u8::MAX {
            for name in disk::names(&self.places().folder(first))? {
                let Some(hash) = parse_bytes(name.as_bytes()) else {
                    continue;
                };
                if after.is_some_and(|after| hash.as_bytes() <= after.as_bytes()) {
                    continue;
                }
                if found.len() >= max_count {
                    return Ok(found);
                }
                // It may have gone meanwhile.
                found.extend(self.stat(&hash)?);
            }
        }
        Ok(found)
    }

    /// Keep a blob from being deleted; none when it is not here.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn hold(&self, hash: &Hash) -> Result<Option<(Hold, Stat)>> {
        let mut state = self.lock();
        let Some(stat) = self.stat(hash)? else { return Ok(None) };
        Ok(Some((self.hold_locked(&mut state, hash), stat)))
    }

    fn hold_locked(&self, state: &mut State, hash: &Hash) -> Hold {
        *state.held.entry(*hash).or_default() += 1;
        Hold {
            store: self.clone(),
            hash: *hash,
        }
    }

    /// Be the one that fetches this blob; none when somebody is.
    pub(crate) fn claim(&self, hash: &Hash) -> Option<Claim> {
        let mut state = self.lock();
        let is_mine = state.fetched.insert(*hash);
        is_mine.then(|| Claim(self.hold_locked(&mut state, hash)))
    }

    /// Some claim was given up.
    pub(crate) fn fetch_ended(&self) -> &Notify {
        &self.0.fetch_ended
    }

    /// Whether so many more bytes may be written.
    pub(crate) fn check_room(&self, more_bytes: u64) -> Result<()> {
        let (free, _) = self.places().room()?;
        let least = self.0.options.min_free_bytes;
        if free < least.saturating_add(more_bytes) {
            return Err(BlobError::DiskFull(format!(
                "{more_bytes} bytes more, where {free} are free and {least} are left for others"
            )));
        }
        Ok(())
    }

    /// Give a blob that was written and synced its name; what was there under it goes. True: it was here before.
    ///
    /// What is here is replaced, not kept: what was just hashed is known to be right.
    pub(crate) fn install(&self, hash: &Hash, draft: &Path, size: u64) -> Result<bool> {
        let target = self.places().blob(hash);
        let trees = tree_bytes(size);
        let former = {
            let mut state = self.lock_open()?;
            let former = disk::length(&target)?;
            if trees > 0 {
                // First: a blob without its tree has to be hashed anew, a tree without its blob is only in the way.
                disk::rename(&tree_of(draft), &tree_of(&target))?;
            }
            disk::rename(draft, &target)?;
            if let Some(former) = former {
                state.blobs -= 1;
                state.bytes -= former.min(state.bytes);
                state.tree_bytes -= tree_bytes(former).min(state.tree_bytes);
            }
            state.blobs += 1;
            state.bytes += size;
            state.tree_bytes += trees;
            former
        };
        // So that the name is there after a loss of power: only then it may be told. Also where it was here before, since
        // whoever put it here may not have come so far.
        disk::sync_folder(&self.places().folder(hash.as_bytes()[0]))?;
        self.release_quarantined(hash)?;
        Ok(former.is_some())
    }

    /// Delete a blob, unless it is held or was added within this time.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn delete(&self, hash: &Hash, min_age_ms: u64) -> Result<Deletion> {
        let target = self.places().blob(hash);
        let mut state = self.lock_open()?;
        let Some(stat) = self.stat(hash)? else {
            return Ok(Deletion::Missing);
        };
        if state.held.contains_key(hash) {
            return Ok(Deletion::Held);
        }
        if now_ms().saturating_sub(stat.added_ms) < min_age_ms {
            return Ok(Deletion::Recent);
        }
        let trees = tree_bytes(stat.size);
        disk::remove(&target)?;
        state.blobs -= 1;
        state.bytes -= stat.size.min(state.bytes);
        state.tree_bytes -= trees.min(state.tree_bytes);
        disk::remove(&tree_of(&target))?;
        Ok(Deletion::Deleted(stat.size + trees))
    }

    /// Hash a blob anew. Wrong bytes are put aside, so that a fetch or an addition mends it; a wrong tree is made anew.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn verify(&self, hash: &Hash) -> Result<Verdict> {
        let Some((_hold, stat)) = self.hold(hash)? else {
            return Ok(Verdict::Missing);
        };
        let target = self.places().blob(hash);
        let mut file = match File::open(&target) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Verdict::Missing),
            Err(error) => return Err(BlobError::io("open", &target)(error)),
        };
        let draft = self.places().draft();
        let made = examine(&mut file, &target, &draft);
        let verdict = made.and_then(|found| {
            if found != *hash {
                self.put_aside(hash, &file)?;
                return Ok(Verdict::Damaged);
            }
            self.mend_tree(&target, &draft, stat.size)
        });
        let _ = fs::remove_file(&draft);
        verdict
    }

    fn mend_tree(&self, target: &Path, draft: &Path, size: u64) -> Result<Verdict> {
        if tree_bytes(size) == 0 || same_content(draft, &tree_of(target))? {
            return Ok(Verdict::Sound);
        }
        let file = File::open(draft).map_err(BlobError::io("open", draft))?;
        disk::sync_content(draft, &file)?;
        let _state = self.lock_open()?;
        disk::rename(draft, &tree_of(target))?;
        Ok(Verdict::Mended)
    }

    /// Take a damaged blob out of use, unless another has taken its place meanwhile.
    fn put_aside(&self, hash: &Hash, damaged: &File) -> Result<()> {
        let target = self.places().blob(hash);
        let inode = |file: &File| rustix::fs::fstat(file).map(|stat| stat.st_ino);
        let mut state = self.lock_open()?;
        let same = File::open(&target).is_ok_and(|now| inode(&now).ok() == inode(damaged).ok());
        if !same {
            return Ok(());
        }
        let size = disk::length(&target)?.unwrap_or(0);
        let aside = self.places().quarantine.join(format!("{}.{}", hash.to_hex(), now_ms()));
        disk::rename(&target, &aside)?;
        disk::remove(&tree_of(&target))?;
        state.blobs -= 1;
        state.bytes -= size.min(state.bytes);
        state.tree_bytes -= tree_bytes(size).min(state.tree_bytes);
        self.0.damages.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// A sound one has come: those that were put aside are of no use any more.
    fn release_quarantined(&self, hash: &Hash) -> Result<()> {
        let hex = hash.to_hex();
        for name in disk::names(&self.places().quarantine)? {
            if name.starts_with(&hex) {
                disk::remove(&self.places().quarantine.join(name))?;
            }
        }
        Ok(())
    }

    /// Parts of blobs, which an unfinished fetch has left.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn partials(&self) -> Result<Vec<PartialStat>> {
        let folder = &self.places().partial;
        let mut found = BTreeMap::new();
        for name in disk::names(folder)? {
            let Some((hash, size)) = part_of(&name) else { continue };
            let Ok(metadata) = fs::metadata(folder.join(&name)) else {
                continue;
            };
            let entry = found.entry((hash, size)).or_insert(PartialStat {
                hash,
                size,
                stored_bytes: 0,
                changed_ms: 0,
            });
            entry.stored_bytes += stored_bytes(&metadata);
            entry.changed_ms = entry.changed_ms.max(modified_ms(&metadata));
        }
        Ok(found.into_values().collect())
    }

    /// Remove parts to which nothing has come within this time, and that nobody fetches; bytes that are free.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn discard_partials(&self, min_age_ms: u64) -> Result<u64> {
        let mut freed = 0;
        for part in self.partials()? {
            let state = self.lock_open()?;
            if state.fetched.contains(&part.hash) || now_ms().saturating_sub(part.changed_ms) < min_age_ms {
                continue;
            }
            disk::discard(&self.places().part(&part.hash, part.size));
            freed += part.stored_bytes;
        }
        Ok(freed)
    }

    /// What is used.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn usage(&self) -> Result<Usage> {
        let partial_bytes = self.partials()?.iter().map(|part| part.stored_bytes).sum();
        let quarantined = disk::names(&self.places().quarantine)?.len() as u64;
        let (free, disk_bytes) = self.places().room()?;
        let state = self.lock();
        Ok(Usage {
            blobs: state.blobs,
            bytes: state.bytes,
            tree_bytes: state.tree_bytes,
            partial_bytes,
            quarantined,
            damages: self.0.damages.load(Ordering::Relaxed),
            free_bytes: free.saturating_sub(self.0.options.min_free_bytes),
            disk_bytes,
        })
    }
}

/// Count what is in a folder, and remove trees without blobs, which a kill in a deletion or an addition leaves.
fn count(folder: &Path, state: &mut State) -> Result<()> {
    let names = disk::names(folder)?;
    let blobs: HashSet<&str> = names
        .iter()
        .map(String::as_str)
        .filter(|name| name.len() == 64)
        .collect();
    for name in &names {
        let path = folder.join(name);
        if let Some(blob) = name.strip_suffix(disk::TREE).and_then(|name| name.strip_suffix('.')) {
            if blobs.contains(blob) {
                state.tree_bytes += disk::length(&path)?.unwrap_or(0);
            } else {
                disk::remove(&path)?;
            }
        } else if parse_bytes(name.as_bytes()).is_some() {
            state.blobs += 1;
            state.bytes += disk::length(&path)?.unwrap_or(0);
        }
    }
    Ok(())
}

/// Hash a file, and write its tree into a new one.
fn examine(file: &mut File, path: &Path, draft: &Path) -> Result<Hash> {
    let out = std::io::BufWriter::with_capacity(64 << 10, disk::create(draft)?);
    let mut tree = TreeWriter::new(out);
    let mut buffer = vec![0; EXAMINE_BYTES];
    loop {
        let read = match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) => return Err(BlobError::io("read", path)(error)),
        };
        tree.update(&buffer[..read]).map_err(BlobError::io("write", draft))?;
    }
    let finished = tree.finish().and_then(|(hash, out)| {
        out.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        Ok(hash)
    });
    finished.map_err(BlobError::io("write", draft))
}

fn same_content(one: &Path, other: &Path) -> Result<bool> {
    if disk::length(one)? != disk::length(other)? {
        return Ok(false);
    }
    let open = |path: &Path| File::open(path).map_err(BlobError::io("open", path));
    let (mut first, mut second) = (open(one)?, open(other)?);
    let (mut left, mut right) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        let read = first.read(&mut left).map_err(BlobError::io("read", one))?;
        if read == 0 {
            return Ok(true);
        }
        let read_too = second.read_exact(&mut right[..read]);
        if read_too.is_err() || left[..read] != right[..read] {
            return Ok(false);
        }
    }
}

/// The blob and its size, of which a file in the folder of parts is one.
pub(crate) fn part_of(name: &str) -> Option<(Hash, u64)> {
    let (hash, size) = name.split_once('.')?;
    let size = size
        .strip_suffix(disk::TREE)
        .and_then(|size| size.strip_suffix('.'))
        .unwrap_or(size);
    Some((parse_bytes(hash.as_bytes())?, size.parse().ok()?))
}

fn stored_bytes(metadata: &Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt;
    metadata.blocks() * 512
}

fn modified_ms(metadata: &Metadata) -> u64 {
    metadata.modified().map_or(0, ms)
}

fn now_ms() -> u64 {
    ms(SystemTime::now())
}

fn ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
