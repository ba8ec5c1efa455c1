//! A snapshot: everything the machine holds at one applied index, in one checksummed file.
//!
//! `JOBSSNAP`, version, index, term; then blocks of rows: length and CRC-32C of the block, then for each row the lengths
//! of key and value (u32), key, value. A block of length 0 ends them; after it come the number of rows and the BLAKE3
//! hash of everything before. All numbers are little-endian. The file is believed only when all of it fits.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};

use crc32c::crc32c;

use crate::error::{Result, StoreError};

const MAGIC: &[u8; 8] = b"JOBSSNAP";
/// Version of the file's form.
pub const FORMAT_VERSION: u32 = 1;
const BLOCK_BYTES: usize = 1 << 20;
/// A block ends with the row that fills it, and a row has a key and a value of bounded size.
const MAX_BLOCK_BYTES: usize = BLOCK_BYTES + (4 << 20);
const HEADER_BYTES: u64 = 28;

/// Called with each row of a snapshot.
pub type TakeRow<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> Result<()>;

/// File name of the snapshot at an index.
#[must_use]
pub fn file_name(index: u64) -> String {
    format!("snapshot-{index:020}.snap")
}

/// Snapshots in a directory, newest first.
///
/// # Errors
/// [`StoreError::Io`].
pub fn list(directory: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let entries = std::fs::read_dir(directory).map_err(StoreError::io("list", directory))?;
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(StoreError::io("list", directory))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
        if let Some(number) = name
            .strip_prefix("snapshot-")
            .and_then(|rest| rest.strip_suffix(".snap"))
        {
            found.extend(number.parse().ok().map(|index| (index, path)));
        }
    }
    found.sort_unstable_by(|one, other| other.cmp(one));
    Ok(found)
}

/// Writes a snapshot row by row.
pub struct Writer<'a> {
    out: BufWriter<&'a mut File>,
    hash: blake3::Hasher,
    block: Vec<u8>,
    rows: u64,
}

impl<'a> Writer<'a> {
    /// Begin a file.
    ///
    /// # Errors
    /// Whatever the system says.
    pub fn new(file: &'a mut File, index: u64, term: u64) -> io::Result<Self> {
        let mut writer = Self {
            out: BufWriter::with_capacity(BLOCK_BYTES, file),
            hash: blake3::Hasher::new(),
            block: Vec::new(),
            rows: 0,
        };
        writer.emit(MAGIC)?;
        writer.emit(&FORMAT_VERSION.to_le_bytes())?;
        writer.emit(&index.to_le_bytes())?;
        writer.emit(&term.to_le_bytes())?;
        Ok(writer)
    }

    /// Add a row.
    ///
    /// # Errors
    /// Whatever the system says.
    pub fn row(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        for part in [key, value] {
            let len = u32::try_from(part.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
            self.block.extend_from_slice(&len.to_le_bytes());
        }
        self.block.extend_from_slice(key);
        self.block.extend_from_slice(value);
        self.rows += 1;
        if self.block.len() >= BLOCK_BYTES {
            self.flush_block()
        } else {
            Ok(())
        }
    }

    /// Write the end. The caller syncs the file.
    ///
    /// # Errors
    /// Whatever the system says.
    pub fn finish(mut self) -> io::Result<()> {
        if !self.block.is_empty() {
            self.flush_block()?;
        }
        self.emit(&[0; 8])?;
        self.emit(&self.rows.to_le_bytes())?;
        let digest = self.hash.finalize();
        self.out.write_all(digest.as_bytes())?;
        self.out.flush()
    }

    fn flush_block(&mut self) -> io::Result<()> {
        let block = std::mem::take(&mut self.block);
        let len = u32::try_from(block.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        self.emit(&len.to_le_bytes())?;
        self.emit(&crc32c(&block).to_le_bytes())?;
        self.emit(&block)
    }

    fn emit(&mut self, data: &[u8]) -> io::Result<()> {
        self.hash.update(data);
        self.out.write_all(data)
    }
}

/// Read a snapshot, handing each row over, and return its index and term. Rows come before the whole file is known to be
/// good: on an error the caller drops what it made of them.
///
/// # Errors
/// [`StoreError::Corrupt`] naming file and offset; [`StoreError::Io`]; whatever `row` returns.
pub fn read(path: &Path, row: TakeRow<'_>) -> Result<(u64, u64)> {
    let file = File::open(path).map_err(StoreError::io("open", path))?;
    let mut reader = Reader {
        path,
        input: BufReader::with_capacity(BLOCK_BYTES, file),
        hash: blake3::Hasher::new(),
        offset: 0,
    };
    if reader.take::<8>()? != *MAGIC {
        return Err(reader.corrupt("this is not a snapshot"));
    }
    let version = u32::from_le_bytes(reader.take()?);
    if version != FORMAT_VERSION {
        return Err(reader.corrupt(format!("format version {version}; this build knows {FORMAT_VERSION}")));
    }
    let (index, term) = (u64::from_le_bytes(reader.take()?), u64::from_le_bytes(reader.take()?));
    debug_assert_eq!(reader.offset, HEADER_BYTES);
    let mut rows = 0;
    while let Some(block) = reader.block()? {
        rows += split_rows(&block, row)?.ok_or_else(|| reader.corrupt("a row is longer than its block"))?;
    }
    if u64::from_le_bytes(reader.take()?) != rows {
        return Err(reader.corrupt(format!("it holds {rows} rows, and says otherwise")));
    }
    let digest = *reader.hash.finalize().as_bytes();
    if reader.take::<32>()? != digest {
        return Err(reader.corrupt("the file fails its hash"));
    }
    if reader.input.read(&mut [0]).map_err(StoreError::io("read", path))? != 0 {
        return Err(reader.corrupt("there is something after the end"));
    }
    Ok((index, term))
}

/// Hand over the rows of a block and count them; `None` when their lengths do not fit.
fn split_rows(mut block: &[u8], row: TakeRow<'_>) -> Result<Option<u64>> {
    let mut rows = 0;
    while !block.is_empty() {
        let Some((lens, rest)) = block.split_at_checked(8) else {
            return Ok(None);
        };
        let len = |at: usize| u32::from_le_bytes([lens[at], lens[at + 1], lens[at + 2], lens[at + 3]]) as usize;
        let Some((key, rest)) = rest.split_at_checked(len(0)) else {
            return Ok(None);
        };
        let Some((value, rest)) = rest.split_at_checked(len(4)) else {
            return Ok(None);
        };
        row(key, value)?;
        rows += 1;
        block = rest;
    }
    Ok(Some(rows))
}

struct Reader<'a> {
    path: &'a Path,
    input: BufReader<File>,
    hash: blake3::Hasher,
    offset: u64,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut data = [0; N];
        self.fill(&mut data)?;
        Ok(data)
    }

    fn fill(&mut self, data: &mut [u8]) -> Result<()> {
        match self.input.read_exact(data) {
            Ok(()) => {
                self.hash.update(data);
                self.offset += data.len() as u64;
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(self.corrupt("the file ends early")),
            Err(error) => Err(StoreError::io("read", self.path)(error)),
        }
    }

    fn block(&mut self) -> Result<Option<Vec<u8>>> {
        let len = u32::from_le_bytes(self.take()?) as usize;
        let crc = u32::from_le_bytes(self.take()?);
        if len == 0 {
            return if crc == 0 {
                Ok(None)
            } else {
                Err(self.corrupt("the end mark is damaged"))
            };
        }
        if len > MAX_BLOCK_BYTES {
            return Err(self.corrupt(format!("a block of {len} bytes; {MAX_BLOCK_BYTES} are possible")));
        }
        let mut block = vec![0; len];
        self.fill(&mut block)?;
        if crc32c(&block) == crc {
            Ok(Some(block))
        } else {
            Err(self.corrupt("a block fails its checksum"))
        }
    }

    fn corrupt(&self, problem: impl Into<String>) -> StoreError {
        StoreError::Corrupt {
            file: self.path.to_owned(),
            offset: self.offset,
            problem: problem.into(),
        }
    }
}
