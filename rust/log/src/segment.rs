//! One file of the log: created whole, written at its end, read in blocks.

use std::io;
use std::sync::Arc;

use jobs_failpoint::{Point, pass};

use crate::disk::{Disk, File};
use crate::error::{LogError, Result};
use crate::format::{HEAD_BYTES, HEADER_BYTES, Header, Seal, decode_head, encode_header};

/// How far zeros are written ahead of small writes. The first write to room that was only set aside makes its sync
/// change the file system's journal; one over zeros does not. Measured on ext4, p50 of a 4 KiB write and fdatasync:
/// 0.16 ms into such room, 0.09 ms over zeros; a whole segment of zeros at once would stall the log for 100 ms.
const ZERO_AHEAD_BYTES: usize = 256 << 10;
const BLOCK_BYTES: usize = 4096;
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// A segment that is open.
pub(crate) struct Segment<F> {
    pub number: u32,
    pub name: String,
    pub seal: Seal,
    pub file: Arc<F>,
    pub capacity: usize,
    /// Offset after the last record written (not necessarily durable).
    pub written: usize,
    /// Offset up to which the file has been written to, mostly with zeros; its size.
    zeroed: usize,
}

impl<F: File> Segment<F> {
    /// An existing segment whose records end at `written`.
    pub(crate) fn existing(header: &Header, file: F, capacity: usize, written: usize) -> Self {
        let seal = Seal::new(header.salt, header.number);
        Self {
            number: header.number,
            name: segment_name(header.number),
            seal,
            file: Arc::new(file),
            capacity,
            written,
            zeroed: written,
        }
    }

    /// Make a segment of `capacity` bytes. Before its name is durable, which the caller sees to, a crash leaves it
    /// whole or not at all.
    ///
    /// # Errors
    /// [`LogError::DiskFull`] or [`LogError::Io`], and nothing is left behind.
    pub(crate) fn create<D: Disk<File = F>>(disk: &D, header: &Header, capacity: usize) -> Result<Self> {
        let name = segment_name(header.number);
        let unfinished = format!("{name}{UNFINISHED}");
        let made = || -> io::Result<F> {
            pass(Point::LogSegmentCreateBefore)?;
            let file = disk.create(&unfinished)?;
            file.allocate(capacity as u64)?;
            write_all(&file, &encode_header(header), 0)?;
            // The content before the name: a segment that is there can be read.
            pass(Point::LogSegmentSyncBefore)?;
            file.sync()?;
            pass(Point::LogSegmentRenameBefore)?;
            disk.rename(&unfinished, &name)?;
            pass(Point::LogSegmentRenameAfter)?;
            Ok(file)
        };
        match made() {
            Ok(file) => Ok(Self::existing(header, file, capacity, HEADER_BYTES)),
            Err(source) => {
                let operation = format!("make {}", disk.path(&name).display());
                // Should this fail too, opening removes it.
                let _ = disk.remove(&unfinished);
                Err(match source.kind() {
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                        LogError::DiskFull { operation, source }
                    }
                    _ => LogError::Io { operation, source },
                })
            }
        }
    }

    /// Write records after the last one; they fit.
    pub(crate) fn write(&mut self, records: &[u8]) -> io::Result<()> {
        let end = self.written + records.len();
        debug_assert!(end <= self.capacity);
        if end > self.zeroed {
            let from = end.next_multiple_of(BLOCK_BYTES).min(self.capacity);
            // A large write changes the journal anyway.
            let ahead = if records.len() < ZERO_AHEAD_BYTES / 2 {
                ZERO_AHEAD_BYTES
            } else {
                0
            };
            let to = (from + ahead).min(self.capacity);
            write_zeros(&*self.file, from, to)?;
            self.zeroed = to;
        }
        write_all(&*self.file, records, self.written)?;
        self.written = end;
        Ok(())
    }
}

/// Part of a segment, kept while entries are read one after the other.
pub(crate) struct Block {
    /// How much to read at a time.
    read_bytes: usize,
    segment: u32,
    start: usize,
    data: Vec<u8>,
}

impl Block {
    pub(crate) fn new(read_bytes: usize) -> Self {
        Self {
            read_bytes,
            segment: 0,
            start: 0,
            data: Vec::new(),
        }
    }

    /// The bytes at `offset` of a segment: at least all of the record there, if it is a record.
    pub(crate) fn at<F: File>(&mut self, segment: &Segment<F>, offset: usize) -> io::Result<&[u8]> {
        if self.segment != segment.number || offset < self.start || self.lacks(segment, offset) > 0 {
            let first = self.read_bytes.min(segment.written - offset);
            (self.segment, self.start) = (segment.number, offset);
            self.data.resize(first, 0);
            segment.file.read_at(&mut self.data, offset as u64)?;
            let more = self.lacks(segment, offset).min(segment.written - offset - first);
            self.data.resize(first + more, 0);
            segment.file.read_at(&mut self.data[first..], (offset + first) as u64)?;
        }
        Ok(&self.data[offset - self.start..])
    }

    /// How many bytes of the record at `offset` are not here.
    fn lacks<F: File>(&self, segment: &Segment<F>, offset: usize) -> usize {
        let held = self.data.get(offset - self.start..).unwrap_or(&[]);
        let need = decode_head(segment.seal, offset, held).map_or(HEAD_BYTES, |head| head.record_bytes());
        need.saturating_sub(held.len())
    }
}

const SUFFIX: &str = ".seg";
const UNFINISHED: &str = ".new";

pub(crate) fn segment_name(number: u32) -> String {
    format!("{number:010}{SUFFIX}")
}

/// Numbers of the segments on a disk, in order. What was never finished is removed.
pub(crate) fn segment_numbers<D: Disk>(disk: &D) -> Result<Vec<u32>> {
    let names = disk.list().map_err(LogError::io("list the log's directory"))?;
    for unfinished in names.iter().filter(|name| name.ends_with(UNFINISHED)) {
        disk.remove(unfinished)
            .map_err(LogError::io(format!("remove {}", disk.path(unfinished).display())))?;
    }
    let number = |name: &String| {
        name.strip_suffix(SUFFIX)?
            .parse()
            .ok()
            .filter(|number| segment_name(*number) == *name)
    };
    let mut numbers: Vec<u32> = names.iter().filter_map(number).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

pub(crate) fn write_zeros(file: &impl File, from: usize, to: usize) -> io::Result<()> {
    let mut at = from;
    while at < to {
        let chunk = (to - at).min(ZEROS.len());
        write_all(file, &ZEROS[..chunk], at)?;
        at += chunk;
    }
    Ok(())
}

/// Write all of `data`, however little the system takes at a time.
pub(crate) fn write_all(file: &impl File, mut data: &[u8], mut offset: usize) -> io::Result<()> {
    while !data.is_empty() {
        match file.write_at(data, offset as u64) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                data = &data[count..];
                offset += count;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
