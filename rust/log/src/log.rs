//! The log: append, sync, read, truncate, open.

use std::collections::VecDeque;

use crate::disk::{Disk, File};
use crate::error::{LogError, Result};
use crate::format::{
    HEADER_BYTES, Header, Kind, MAX_PAYLOAD_BYTES, MAX_VOTE_BYTES, RECORD_BYTES, Record, decode_record, encode_header,
    encode_record, record_bytes,
};
use crate::index::Place;
use crate::recovery::{State, corrupt, read_segment, replay};

const SPILL_BYTES: usize = 4 << 20;
const ZEROS: [u8; 1 << 16] = [0; 1 << 16];
const READ_AHEAD_BYTES: u64 = 4096;

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
    /// Size of a segment, allocated at once; from 64 KiB to 1 GiB.
    pub segment_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { segment_bytes: 64 << 20 }
    }
}

struct Segment<F> {
    number: u64,
    name: String,
    file: F,
    capacity: u64,
    /// Offset after the last record written (not necessarily durable).
    written: u64,
}

/// A write-ahead log on a disk. One writer.
pub struct Log<D: Disk> {
    disk: D,
    options: Options,
    segments: VecDeque<Segment<D::File>>,
    state: State,
    /// Records that are not written yet; they follow the last segment's `written`.
    pending: Vec<u8>,
    /// How much of the last segment is durable.
    synced: u64,
    durable_index: u64,
    poisoned: Option<String>,
    recovered: Option<String>,
}

impl<D: Disk> Log<D> {
    /// Open the log on a disk, or begin one where there is none.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] for damage that no crash explains, [`LogError::Io`] for what the disk refuses.
    pub fn open(disk: D, options: Options) -> Result<Self> {
        if !(1 << 16..=1 << 30).contains(&options.segment_bytes) {
            return Err(LogError::Invalid(format!("segments of {} bytes; 64 KiB to 1 GiB work", options.segment_bytes)));
        }
        let mut names = segment_names(&disk)?;
        if names.is_empty() {
            let header = Header { number: 1, first_index: 1, next_index: 1, ..Header::default() };
            create_segment(&disk, &options, &header, 0)?;
            names = segment_names(&disk)?;
        }
        let mut state: Option<State> = None;
        let mut segments = VecDeque::new();
        let mut recovered = None;
        let last = names.len() - 1;
        for (position, name) in names.into_iter().enumerate() {
            let path = disk.path(&name);
            let file = disk.open(&name).map_err(LogError::io(format!("open {}", path.display())))?;
            let (header, data) = read_segment(&file, &path)?;
            let expected = segments.back().map_or(header.number, |before: &Segment<D::File>| before.number + 1);
            if header.number != expected || segment_name(header.number) != name {
                return Err(corrupt(&path, 0, format!("is number {}; {expected} should come here", header.number)));
            }
            let state = state.get_or_insert_with(|| State::new(&header));
            let tail = replay(&path, &header, &data, position == last, state)?;
            if tail.dirty_end > tail.end {
                // Zeroed and synced, so that later records cannot be followed by pieces of this tail.
                zero(&file, tail.end, tail.dirty_end).map_err(LogError::io(format!("cut {}", path.display())))?;
                recovered = Some(format!(
                    "{}: cut a torn tail of {} bytes at byte {}, after entry {}",
                    path.display(),
                    tail.dirty_end - tail.end,
                    tail.end,
                    state.next_index().saturating_sub(1),
                ));
            }
            segments.push_back(Segment {
                number: header.number,
                name,
                file,
                capacity: data.len() as u64,
                written: tail.end,
            });
        }
        let state = state.expect("there is at least one segment");
        let oldest = segments.front().expect("there is at least one segment");
        if !state.index.is_empty() && state.first_index < state.index.first() {
            let problem = format!("begins after entry {}; an older segment is missing", state.first_index);
            return Err(corrupt(&disk.path(&oldest.name), 0, problem));
        }
        let tail = segments.back().expect("there is at least one segment");
        // What was read may still be only in the page cache of a process that was killed before its sync.
        tail.file.sync().map_err(LogError::io(format!("sync {}", tail.name)))?;
        let synced = tail.written;
        let durable_index = state.next_index() - 1;
        Ok(Self { disk, options, segments, state, pending: Vec::new(), synced, durable_index, poisoned: None, recovered })
    }

    /// What opening cut from a torn tail, in words.
    #[must_use]
    pub fn recovered(&self) -> Option<&str> {
        self.recovered.as_deref()
    }

    /// Index of the oldest entry; `last_index() + 1` when there is none.
    #[must_use]
    pub fn first_index(&self) -> u64 {
        if self.state.index.is_empty() { self.state.next_index() } else { self.state.first_index }
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
        let Some(first) = self.state.index.place(self.state.first_index) else { return 0 };
        let kept = self.segments.iter().filter(|segment| segment.number >= u64::from(first.segment));
        let records: u64 = kept.map(|segment| segment.written).sum();
        records + self.pending.len() as u64 - u64::from(first.offset)
    }

    /// Current term, and who got the vote in it.
    #[must_use]
    pub fn hard_state(&self) -> (u64, Option<&str>) {
        (self.state.term, self.state.vote.as_deref())
    }

    /// Add an entry after the last one; into an empty log, at any index from `first_index` on. Not durable before
    /// [`Log::sync`].
    ///
    /// # Errors
    /// [`LogError::Invalid`] for a gap or a payload that is too large, [`LogError::DiskFull`] when no further segment
    /// can be made (nothing was changed then), [`LogError::Io`] and [`LogError::Poisoned`].
    pub fn append(&mut self, index: u64, term: u64, payload: &[u8]) -> Result<()> {
        let next = self.state.next_index();
        if index != next && !(self.state.index.is_empty() && index > next) {
            return Err(LogError::Invalid(format!("entry {index} does not follow entry {}", next - 1)));
        }
        if payload.len() > MAX_PAYLOAD_BYTES {
            let problem = format!("entry {index} has {} bytes; the limit is {MAX_PAYLOAD_BYTES}", payload.len());
            return Err(LogError::Invalid(problem));
        }
        self.put(Kind::Entry, index, term, payload)
    }

    /// Make everything appended durable with one sync; returns the last index.
    ///
    /// # Errors
    /// [`LogError::Io`], after which the log is poisoned: the system may have dropped the data and would report a
    /// second sync as a success.
    pub fn sync(&mut self) -> Result<u64> {
        self.check()?;
        self.flush()?;
        let tail = self.tail();
        if tail.written != self.synced {
            if let Err(source) = tail.file.sync() {
                return Err(self.poison("sync the log", source));
            }
            self.synced = self.tail().written;
        }
        self.durable_index = self.last_index();
        Ok(self.durable_index)
    }

    /// Return an entry, or `None` if the log does not have it.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] when it fails its checksum, [`LogError::Io`].
    pub fn get(&self, index: u64) -> Result<Option<Entry>> {
        match self.state.index.place(index) {
            Some(place) if index >= self.state.first_index => self.read(place).map(Some),
            _ => Ok(None),
        }
    }

    /// Return at most `max_count` entries from `index` on, and no more than fit into `max_bytes` of payload but at
    /// least one if there is one.
    ///
    /// # Errors
    /// As [`Log::get`].
    pub fn entries(&self, index: u64, max_count: usize, max_bytes: usize) -> Result<Vec<Entry>> {
        let mut found = Vec::new();
        let mut bytes = 0;
        while found.len() < max_count {
            let Some(entry) = self.get(index + found.len() as u64)? else { break };
            bytes += entry.payload.len();
            if bytes > max_bytes && !found.is_empty() {
                break;
            }
            found.push(entry);
        }
        Ok(found)
    }

    /// Term of an entry.
    #[must_use]
    pub fn term_at(&self, index: u64) -> Option<u64> {
        self.state.index.term(index).filter(|_| index >= self.state.first_index)
    }

    /// Drop `index` and every entry after it, durably. Either all of them are gone after a crash or none.
    ///
    /// # Errors
    /// As [`Log::append`] and [`Log::sync`].
    pub fn truncate_suffix(&mut self, index: u64) -> Result<()> {
        if index < self.first_index() {
            return Err(LogError::Invalid(format!("entry {index} is before the log's first, {}", self.first_index())));
        }
        if index > self.last_index() {
            return Ok(());
        }
        self.put(Kind::TruncateSuffix, index, 0, &[])?;
        self.sync().map(drop)
    }

    /// Drop every entry before `index`, durably; segments that hold nothing else are removed. An `index` beyond the end
    /// leaves an empty log that goes on there.
    ///
    /// # Errors
    /// As [`Log::append`] and [`Log::sync`].
    pub fn truncate_prefix(&mut self, index: u64) -> Result<()> {
        if index <= self.state.first_index {
            return Ok(());
        }
        self.put(Kind::TruncatePrefix, index, 0, &[])?;
        self.sync()?;
        let oldest = self.state.index.place(index).map(|place| u64::from(place.segment));
        let mut removed = false;
        while self.segments.len() > 1 && oldest.is_none_or(|oldest| self.segments[0].number < oldest) {
            let segment = self.segments.pop_front().expect("there is more than one");
            self.disk.remove(&segment.name).map_err(LogError::io(format!("remove {}", segment.name)))?;
            removed = true;
        }
        if removed {
            // So that the space is given back now; a segment that reappears is ignored by what was synced above.
            self.disk.sync_directory().map_err(LogError::io("sync the log's directory"))?;
        }
        Ok(())
    }

    /// Persist term and vote; durable when this returns.
    ///
    /// # Errors
    /// [`LogError::Invalid`] for a name that is too long; as [`Log::sync`].
    pub fn set_hard_state(&mut self, term: u64, vote: Option<&str>) -> Result<()> {
        let vote = vote.unwrap_or("");
        if vote.len() > MAX_VOTE_BYTES {
            return Err(LogError::Invalid(format!("a vote for a name of {} bytes", vote.len())));
        }
        self.put(Kind::HardState, 0, term, vote.as_bytes())?;
        self.sync().map(drop)
    }

    fn tail(&self) -> &Segment<D::File> {
        self.segments.back().expect("there is at least one segment")
    }

    fn check(&self) -> Result<()> {
        self.poisoned.as_ref().map_or(Ok(()), |why| Err(LogError::Poisoned(why.clone())))
    }

    fn poison(&mut self, operation: &str, source: std::io::Error) -> LogError {
        self.poisoned = Some(format!("{operation}: {source}"));
        LogError::Io { operation: operation.into(), source }
    }

    fn put(&mut self, kind: Kind, index: u64, term: u64, payload: &[u8]) -> Result<()> {
        self.check()?;
        let size = record_bytes(payload.len());
        if self.tail().written + (self.pending.len() + size) as u64 > self.tail().capacity {
            self.roll(size)?;
        }
        let tail = self.tail();
        let (number, offset) = (tail.number, tail.written + self.pending.len() as u64);
        #[allow(clippy::cast_possible_truncation, reason = "segments are smaller than 4 GiB")]
        let (synced, place) = (self.synced as u32, Place { segment: number as u32, offset: offset as u32 });
        let record = Record { kind, synced, index, term, len: 0 };
        encode_record(&mut self.pending, number, record, payload);
        self.state.apply(record, payload, place).map_err(LogError::Invalid)?;
        self.durable_index = self.durable_index.min(self.last_index());
        if self.pending.len() > SPILL_BYTES { self.flush() } else { Ok(()) }
    }

    /// Hand the pending records to the system, without making them durable.
    fn flush(&mut self) -> Result<()> {
        let tail = self.segments.back_mut().expect("there is at least one segment");
        if let Err(source) = write_all(&tail.file, &self.pending, tail.written) {
            return Err(self.poison("write the log", source));
        }
        tail.written += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }

    /// Begin another segment with room for a record of `need` bytes. The former one is durable before, so that damage
    /// in it can never be a torn tail.
    fn roll(&mut self, need: usize) -> Result<()> {
        self.sync()?;
        let header = Header {
            number: self.tail().number + 1,
            first_index: self.state.first_index,
            next_index: self.state.next_index(),
            term: self.state.term,
            vote: self.state.vote.clone(),
        };
        let segment = match create_segment(&self.disk, &self.options, &header, need) {
            Ok(segment) => segment,
            Err(full @ LogError::DiskFull { .. }) => return Err(full),
            Err(error) => {
                self.poisoned = Some(error.to_string());
                return Err(error);
            }
        };
        self.synced = segment.written;
        self.segments.push_back(segment);
        Ok(())
    }

    fn read(&self, place: Place) -> Result<Entry> {
        let first = self.segments[0].number;
        let position = usize::try_from(u64::from(place.segment) - first).expect("segments are few");
        let segment = &self.segments[position];
        let offset = u64::from(place.offset);
        if offset >= segment.written {
            let start = usize::try_from(offset - segment.written).expect("pending records are bounded");
            return entry_of(segment, &self.disk, place, &self.pending[start..]);
        }
        let failed = || LogError::io(format!("read {}", segment.name));
        let mut data = vec![0; usize::try_from(READ_AHEAD_BYTES.min(segment.written - offset)).unwrap_or(0)];
        segment.file.read_at(&mut data, offset).map_err(failed())?;
        let len = u32::from_le_bytes([data[0], data[1], data[2], data[3]]) as usize;
        let whole = (RECORD_BYTES + len.min(MAX_PAYLOAD_BYTES)).min(usize::try_from(segment.written - offset).unwrap_or(0));
        if whole > data.len() {
            let read = data.len();
            data.resize(whole, 0);
            segment.file.read_at(&mut data[read..], offset + read as u64).map_err(failed())?;
        }
        entry_of(segment, &self.disk, place, &data)
    }
}

fn entry_of<D: Disk>(segment: &Segment<D::File>, disk: &D, place: Place, data: &[u8]) -> Result<Entry> {
    let (record, payload) = decode_record(segment.number, data).ok_or_else(|| {
        corrupt(&disk.path(&segment.name), place.offset as usize, "a record that was good when it was written")
    })?;
    Ok(Entry { index: record.index, term: record.term, payload: payload.to_vec() })
}

fn segment_name(number: u64) -> String {
    format!("{number:020}.seg")
}

/// Names of the segments in order. What was never finished is removed.
fn segment_names<D: Disk>(disk: &D) -> Result<Vec<String>> {
    let mut names = disk.list().map_err(LogError::io("list the log's directory"))?;
    for unfinished in names.iter().filter(|name| name.ends_with(".new")) {
        disk.remove(unfinished).map_err(LogError::io(format!("remove {unfinished}")))?;
    }
    names.retain(|name| name.ends_with(".seg"));
    names.sort_unstable();
    Ok(names)
}

/// Make a segment: filled with zeros, so that a later sync has no metadata to write; durable and named before use.
fn create_segment<D: Disk>(disk: &D, options: &Options, header: &Header, need: usize) -> Result<Segment<D::File>> {
    let name = segment_name(header.number);
    let unfinished = format!("{name}.new");
    let capacity = options.segment_bytes.max((HEADER_BYTES + need) as u64);
    let made = (|| {
        let file = disk.create(&unfinished)?;
        write_all(&file, &encode_header(header), 0)?;
        let mut at = HEADER_BYTES as u64;
        while at < capacity {
            let chunk = usize::try_from(capacity - at).unwrap_or(usize::MAX).min(ZEROS.len());
            write_all(&file, &ZEROS[..chunk], at)?;
            at += chunk as u64;
        }
        // The content before the name, and the name before the first record: a crash leaves a whole segment or none.
        file.sync()?;
        disk.rename(&unfinished, &name)?;
        disk.sync_directory()?;
        Ok(file)
    })();
    match made {
        Ok(file) => Ok(Segment { number: header.number, name, file, capacity, written: HEADER_BYTES as u64 }),
        Err(source) => {
            let operation = format!("make {}", disk.path(&name).display());
            let _ = disk.remove(&unfinished);
            Err(if LogError::is_full(&source) {
                LogError::DiskFull { operation, source }
            } else {
                LogError::Io { operation, source }
            })
        }
    }
}

fn zero(file: &impl File, from: u64, to: u64) -> std::io::Result<()> {
    let mut at = from;
    while at < to {
        let chunk = usize::try_from(to - at).unwrap_or(usize::MAX).min(ZEROS.len());
        write_all(file, &ZEROS[..chunk], at)?;
        at += chunk as u64;
    }
    file.sync()
}

/// Write all of `data`, however little the system takes at a time.
fn write_all(file: &impl File, mut data: &[u8], mut offset: u64) -> std::io::Result<()> {
    while !data.is_empty() {
        match file.write_at(data, offset) {
            Ok(0) => return Err(std::io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                data = &data[count..];
                offset += count as u64;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
