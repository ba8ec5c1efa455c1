//! The log: append, sync, read, truncate.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use jobs_failpoint::{Point, pass};

use crate::check::Check;
use crate::disk::{Disk, File};
use crate::error::{LogError, Result};
use crate::format::{
    HEADER_BYTES, Kind, MAX_PAYLOAD_BYTES, MAX_VOTE_BYTES, decode_head, decode_record, encode_record, record_bytes,
};
use crate::index::Place;
use crate::open::find;
use crate::recovery::{State, corrupt};
use crate::segment::{Block, Segment};

/// Pending records beyond this are handed to the system, so that memory stays bounded; they are still not durable.
const SPILL_BYTES: usize = 4 << 20;
/// How much is read for one entry, and for many.
const READ_ONE_BYTES: usize = 4 << 10;
const READ_MANY_BYTES: usize = 256 << 10;

/// What entries leave free at the end of a segment, so that on a full disk the log can still be cut and thereby make
/// room, and a term can still be persisted.
const MARGIN_BYTES: usize = 4 << 10;

/// One Raft entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its index.
    pub index: u64,
    /// The term it was proposed in.
    pub term: u64,
    /// What it carries.
    pub payload: Vec<u8>,
}

/// How a log is kept.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Size of a segment, allocated at once; from 64 KiB to 1 GiB. A larger record gets a segment of its size.
    pub segment_bytes: usize,
    /// For a new log: an unpredictable number, so that nobody can make a payload whose bytes pass for a record.
    pub salt: u64,
}

/// A write-ahead log on a disk. One writer.
pub struct Log<D: Disk> {
    disk: D,
    segment_bytes: usize,
    salt: u64,
    /// Never empty; records go into the last one.
    segments: VecDeque<Segment<D::File>>,
    state: State,
    /// Records that are not written yet; they follow the last segment's `written`.
    pending: Vec<u8>,
    /// How much of the last segment is durable.
    synced: usize,
    durable_index: u64,
    poisoned: Option<String>,
    recovered: Option<String>,
}

impl<D: Disk> Log<D> {
    /// Open the log on a disk, or begin one where there is none. Everything it then has is durable.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] for damage that no crash explains, [`LogError::Io`] for what the disk refuses,
    /// [`LogError::DiskFull`] when there is no room to begin.
    pub fn open(disk: D, options: Options) -> Result<Self> {
        if !(64 << 10..=1 << 30).contains(&options.segment_bytes) {
            let problem = format!("segments of {} bytes; 64 KiB to 1 GiB work", options.segment_bytes);
            return Err(LogError::Invalid(problem));
        }
        let found = find(&disk, &options)?;
        let synced = found.segments.back().expect("there is a segment").written;
        Ok(Self {
            disk,
            segment_bytes: options.segment_bytes,
            salt: found.salt,
            segments: found.segments,
            durable_index: found.state.next_index() - 1,
            state: found.state,
            pending: Vec::new(),
            synced,
            poisoned: None,
            recovered: found.recovered,
        })
    }

    /// What opening cut from a torn tail, in words.
    #[must_use]
    pub fn recovered(&self) -> Option<&str> {
        self.recovered.as_deref()
    }

    /// Index of the oldest entry; `last_index() + 1` when there is none.
    #[must_use]
    pub fn first_index(&self) -> u64 {
        self.state.first_index
    }

    /// Index of the newest entry.
    #[must_use]
    pub fn last_index(&self) -> u64 {
        self.state.next_index() - 1
    }

    /// Last index that a sync has covered.
    #[must_use]
    pub fn durable_index(&self) -> u64 {
        self.durable_index
    }

    /// Bytes from the oldest entry's record to the end.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        let Some(first) = self.state.index.place(self.first_index()) else {
            return 0;
        };
        let kept = self.segments.iter().filter(|segment| segment.number >= first.segment);
        let records: usize = kept.map(|segment| segment.written).sum();
        (records + self.pending.len() - first.offset as usize) as u64
    }

    /// Current term, and who got the vote in it.
    #[must_use]
    pub fn hard_state(&self) -> (u64, Option<&str>) {
        (self.state.term, self.state.vote.as_deref())
    }

    /// Term of an entry.
    #[must_use]
    pub fn term_at(&self, index: u64) -> Option<u64> {
        self.state.index.term(index)
    }

    /// Add an entry after the last one; into an empty log, at any index from 1 on. Not durable before [`Log::sync`].
    ///
    /// # Errors
    /// [`LogError::Invalid`] for a gap, [`LogError::TooLarge`], [`LogError::DiskFull`] when no further segment can
    /// be made (nothing was changed then), [`LogError::Io`] and [`LogError::Poisoned`].
    pub fn append(&mut self, index: u64, term: u64, payload: &[u8]) -> Result<()> {
        check_size("a payload", payload.len(), MAX_PAYLOAD_BYTES)?;
        let last = self.last_index();
        let jump = index != last + 1;
        if jump && !self.state.index.is_empty() || !(1..u64::MAX).contains(&index) {
            return Err(LogError::Invalid(format!("entry {index} cannot follow entry {last}")));
        }
        let restart_bytes = if jump { record_bytes(0) } else { 0 };
        self.reserve(restart_bytes + record_bytes(payload.len()), MARGIN_BYTES)?;
        if jump {
            self.push(Kind::Restart, index, 0, &[]);
        }
        self.push(Kind::Entry, index, term, payload);
        if self.pending.len() > SPILL_BYTES {
            self.flush()
        } else {
            Ok(())
        }
    }

    /// Make everything appended durable with one sync; returns the last index.
    ///
    /// # Errors
    /// [`LogError::Io`], after which the log is poisoned: the system may have dropped the data and would report a
    /// second sync as a success.
    pub fn sync(&mut self) -> Result<u64> {
        self.check_health()?;
        self.flush()?;
        if self.tail().written != self.synced {
            // An entry may be acknowledged only when a power cut can no longer take it.
            let synced = pass(Point::LogSyncBefore)
                .and_then(|()| self.tail().file.sync())
                .and_then(|()| pass(Point::LogSyncAfter));
            if let Err(source) = synced {
                return Err(self.poison(format!("sync {}", self.tail().name), source));
            }
            self.synced = self.tail().written;
        }
        self.durable_index = self.last_index();
        Ok(self.durable_index)
    }

    /// Return an entry, or `None` if the log does not have it.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] when it fails its checksum, [`LogError::Io`], [`LogError::Poisoned`].
    pub fn get(&self, index: u64) -> Result<Option<Entry>> {
        self.check_health()?;
        self.state
            .index
            .place(index)
            .map(|place| self.read(place, &mut Block::new(READ_ONE_BYTES)))
            .transpose()
    }

    /// Return at most `max_count` entries from `index` on, and no more than fit into `max_bytes` of payload but at
    /// least one if there is one.
    ///
    /// # Errors
    /// As [`Log::get`].
    pub fn entries(&self, index: u64, max_count: usize, max_bytes: usize) -> Result<Vec<Entry>> {
        self.check_health()?;
        let mut block = Block::new(READ_MANY_BYTES);
        let mut found = Vec::new();
        let mut room = max_bytes;
        while found.len() < max_count {
            let Some(place) = self.state.index.place(index + found.len() as u64) else {
                break;
            };
            let entry = self.read(place, &mut block)?;
            let Some(left) = room.checked_sub(entry.payload.len()).or(found.is_empty().then_some(0)) else {
                break;
            };
            room = left;
            found.push(entry);
        }
        Ok(found)
    }

    /// The records to verify next: those on the disk from an entry's on, of one segment, about `max_bytes` of them but one
    /// at least; `None` when there are none. [`Check::run`] verifies them, without the log.
    ///
    /// # Errors
    /// [`LogError::Poisoned`].
    pub fn check(&self, index: u64, max_bytes: usize) -> Result<Option<Check<D::File>>> {
        self.check_health()?;
        let index = index.max(self.first_index());
        let Some(first) = self.state.index.place(index) else {
            return Ok(None);
        };
        let segment = self.segment(first);
        let start = first.offset as usize;
        if start >= segment.written {
            return Ok(None);
        }
        let (mut next, mut end) = (index + 1, segment.written);
        while let Some(place) = self.state.index.place(next) {
            let offset = place.offset as usize;
            if place.segment != first.segment || offset >= segment.written {
                break;
            }
            if offset - start >= max_bytes {
                end = offset;
                break;
            }
            next += 1;
        }
        Ok(Some(Check {
            file: Arc::clone(&segment.file),
            path: self.disk.path(&segment.name),
            seal: segment.seal,
            start,
            end,
            next,
        }))
    }

    /// Drop `index` and every entry after it, durably. After a crash either all of them are gone or none.
    ///
    /// # Errors
    /// [`LogError::Invalid`] for an index before the first; as [`Log::append`] and [`Log::sync`].
    pub fn truncate_suffix(&mut self, index: u64) -> Result<()> {
        self.check_health()?;
        if index < self.first_index() {
            let problem = format!(
                "entry {index} cannot be cut off: the log begins at {}",
                self.first_index()
            );
            return Err(LogError::Invalid(problem));
        }
        if index > self.last_index() {
            return Ok(());
        }
        self.put(Kind::TruncateSuffix, index, 0, &[])
    }

    /// Drop every entry before `index`, durably; segments that hold nothing else are removed. An `index` beyond the end
    /// leaves an empty log that goes on there.
    ///
    /// # Errors
    /// As [`Log::append`] and [`Log::sync`].
    pub fn truncate_prefix(&mut self, index: u64) -> Result<()> {
        self.check_health()?;
        if index == u64::MAX {
            return Err(LogError::Invalid(format!("the log cannot begin at entry {index}")));
        }
        if index > self.first_index() {
            let kind = if index > self.state.next_index() {
                Kind::Restart
            } else {
                Kind::TruncatePrefix
            };
            self.put(kind, index, 0, &[])?;
        }
        self.remove_unneeded()
    }

    /// Persist term and vote; durable when this returns.
    ///
    /// # Errors
    /// [`LogError::TooLarge`] for a name that is too long; as [`Log::append`] and [`Log::sync`].
    pub fn set_hard_state(&mut self, term: u64, vote: Option<&str>) -> Result<()> {
        let vote = vote.unwrap_or("");
        check_size("a vote for a name", vote.len(), MAX_VOTE_BYTES)?;
        self.put(Kind::HardState, 0, term, vote.as_bytes())
    }

    fn tail(&self) -> &Segment<D::File> {
        self.segments.back().expect("there is a segment")
    }

    fn segment(&self, place: Place) -> &Segment<D::File> {
        &self.segments[(place.segment - self.segments[0].number) as usize]
    }

    fn check_health(&self) -> Result<()> {
        self.poisoned
            .as_ref()
            .map_or(Ok(()), |why| Err(LogError::Poisoned(why.clone())))
    }

    fn poison(&mut self, operation: String, source: io::Error) -> LogError {
        self.poisoned = Some(format!("{operation}: {source}"));
        LogError::Io { operation, source }
    }

    /// Add one record and make it and everything before it durable.
    fn put(&mut self, kind: Kind, index: u64, term: u64, payload: &[u8]) -> Result<()> {
        self.reserve(record_bytes(payload.len()), 0)?;
        self.push(kind, index, term, payload);
        self.sync().map(drop)
    }

    /// See to it that the last segment has room for records of `bytes` bytes, and `margin` more.
    fn reserve(&mut self, bytes: usize, margin: usize) -> Result<()> {
        self.check_health()?;
        if self.tail().written + self.pending.len() + bytes + margin <= self.tail().capacity {
            return Ok(());
        }
        // Before another segment is there, so that damage in this one can never be a torn tail.
        self.sync()?;
        let number = self
            .tail()
            .number
            .checked_add(1)
            .expect("segments are numbered for ages");
        let header = self.state.header(self.salt, number);
        let capacity = self.segment_bytes.max(HEADER_BYTES + bytes + MARGIN_BYTES);
        let segment = match Segment::create(&self.disk, &header, capacity) {
            Ok(segment) => segment,
            Err(LogError::Io { operation, source }) => return Err(self.poison(operation, source)),
            Err(full) => return Err(full),
        };
        self.synced = segment.written;
        self.segments.push_back(segment);
        // The name before the first record: a record that is acknowledged must be found.
        self.sync_directory()
    }

    /// Take a record in and put it among the pending ones; there is room.
    fn push(&mut self, kind: Kind, index: u64, term: u64, payload: &[u8]) {
        let (number, seal) = (self.tail().number, self.tail().seal);
        let offset = self.tail().written + self.pending.len();
        let small = |bytes: usize| u32::try_from(bytes).expect("segments are smaller than 4 GiB");
        let start = self.pending.len();
        let marks = (small(self.synced), small(offset));
        encode_record(&mut self.pending, seal, kind, marks, (index, term), payload);
        let head = decode_head(seal, offset, &self.pending[start..]).expect("it was just encoded");
        self.state
            .apply(number, &head, payload)
            .expect("the caller has checked the order");
        self.durable_index = self.durable_index.min(self.last_index());
    }

    /// Hand the pending records to the system, without making them durable.
    fn flush(&mut self) -> Result<()> {
        let tail = self.segments.back_mut().expect("there is a segment");
        if let Err(source) = pass(Point::LogWriteBefore).and_then(|()| tail.write(&self.pending)) {
            let operation = format!("write {}", tail.name);
            return Err(self.poison(operation, source));
        }
        self.pending.clear();
        self.pending.shrink_to(2 * SPILL_BYTES);
        Ok(())
    }

    fn sync_directory(&mut self) -> Result<()> {
        pass(Point::LogDirectorySyncBefore)
            .and_then(|()| self.disk.sync_directory())
            .and_then(|()| pass(Point::LogDirectorySyncAfter))
            .map_err(|source| self.poison("sync the log's directory".into(), source))
    }

    /// Remove the segments before the oldest entry's. That they are not needed is durable already.
    fn remove_unneeded(&mut self) -> Result<()> {
        let oldest = self
            .state
            .index
            .place(self.first_index())
            .map_or(self.tail().number, |place| place.segment);
        let before = self.segments.len();
        while self.segments[0].number < oldest {
            let path = self.disk.path(&self.segments[0].name);
            pass(Point::LogSegmentRemoveBefore)
                .and_then(|()| self.disk.remove(&self.segments[0].name))
                .and_then(|()| pass(Point::LogSegmentRemoveAfter))
                .map_err(LogError::io(format!("remove {}", path.display())))?;
            self.segments.pop_front();
        }
        // So that the room is given back now; a segment that reappears would do no harm.
        if self.segments.len() < before {
            self.sync_directory()
        } else {
            Ok(())
        }
    }

    fn read(&self, place: Place, block: &mut Block) -> Result<Entry> {
        let segment = self.segment(place);
        let offset = place.offset as usize;
        let bytes = if offset >= segment.written {
            &self.pending[offset - segment.written..]
        } else {
            block
                .at(segment, offset)
                .map_err(LogError::io(format!("read {}", segment.name)))?
        };
        let (head, payload) = decode_record(segment.seal, offset, bytes).ok_or_else(|| {
            let problem = "the record is damaged that was good when the log was opened or written";
            corrupt(&self.disk.path(&segment.name), offset, problem)
        })?;
        Ok(Entry {
            index: head.index,
            term: head.term,
            payload: payload.to_vec(),
        })
    }
}

fn check_size(what: &'static str, bytes: usize, limit: usize) -> Result<()> {
    if bytes > limit {
        Err(LogError::TooLarge { what, bytes, limit })
    } else {
        Ok(())
    }
}
