//! A snapshot: everything the machine holds at one applied index, in one checksummed file.
//!
//! `JOBSSNAP`, version, index, term; then blocks of rows: length and CRC-32C of the block, then for each row the lengths
//! of key and value (u32), key, value. A block of length 0 ends them; after it come the number of rows and the BLAKE3
//! hash of everything before. All numbers are little-endian. The file is believed only when all of it fits.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use crc32c::crc32c;
use jobs_kv::machine::load;
use jobs_kv::{Backend, Kind, META, Memory, Meta, kind_of};

use crate::error::{Result, StoreError};

const MAGIC: &[u8; 8] = b"JOBSSNAP";
/// Version of the file's form.
pub const FORMAT_VERSION: u32 = 1;
const BLOCK_BYTES: usize = 1 << 20;
/// A block ends with the row that fills it, and a row has a key and a value of bounded size.
const MAX_BLOCK_BYTES: usize = BLOCK_BYTES + (4 << 20);
const HEADER_BYTES: u64 = 28;
/// What a snapshot that is not in a file is called.
const IN_MEMORY: &str = "(memory)";

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

/// Index and term of the newest snapshot in a directory that is not ahead of `applied` and whose beginning says what its
/// name says; zeros without one.
///
/// # Errors
/// [`StoreError::Io`].
pub fn newest(directory: &Path, applied: u64) -> Result<(u64, u64)> {
    for (index, path) in list(directory)? {
        if index > applied {
            continue;
        }
        let file = File::open(&path).map_err(StoreError::io("open", &path))?;
        match Reader::new(&path, file).header() {
            Ok((written, term)) if written == index => return Ok((index, term)),
            Ok(_) | Err(StoreError::Corrupt { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok((0, 0))
}

/// Writes a snapshot row by row.
pub struct Writer<W: Write> {
    out: BufWriter<W>,
    hash: blake3::Hasher,
    block: Vec<u8>,
    rows: u64,
}

impl<W: Write> Writer<W> {
    /// Begin a snapshot.
    ///
    /// # Errors
    /// Whatever the system says.
    pub fn new(out: W, index: u64, term: u64) -> io::Result<Self> {
        let mut writer = Self {
            out: BufWriter::with_capacity(BLOCK_BYTES, out),
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

/// Read a snapshot file, handing each row over, and return its index and term. Rows come before the whole file is known
/// to be good: on an error the caller drops what it made of them.
///
/// # Errors
/// [`StoreError::Corrupt`] naming file and offset; [`StoreError::Io`]; whatever `row` returns.
pub fn read(path: &Path, row: TakeRow<'_>) -> Result<(u64, u64)> {
    let file = File::open(path).map_err(StoreError::io("open", path))?;
    read_from(path, file, row)
}

/// Read a snapshot as [`read`] does, from anything; errors call it `path`.
///
/// # Errors
/// As [`read`].
pub fn read_from(path: &Path, input: impl Read, row: TakeRow<'_>) -> Result<(u64, u64)> {
    let mut reader = Reader::new(path, input);
    let (index, term) = reader.header()?;
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

/// Read a snapshot file whole, count its rows, and tell where the machine in it stands.
///
/// # Errors
/// As [`read`], and [`StoreError::Corrupt`] where the machine in it does not stand where the file says.
pub fn check(path: &Path) -> Result<(u64, Meta)> {
    let (mut rows, mut position) = (0, Memory::default());
    let told = read(path, &mut |key, value| {
        rows += 1;
        if key == META {
            let Ok(()) = position.put(key, value);
        }
        Ok(())
    })?;
    let meta = meta_of(path, &position)?;
    check_position(path, told, &meta)?;
    Ok((rows, meta))
}

/// A snapshot of a machine in memory, as bytes.
///
/// # Errors
/// None but what a row beyond every limit would cause.
pub fn of_memory(memory: &Memory, meta: &Meta) -> Result<Vec<u8>> {
    let mut data = Vec::new();
    let mut write = || -> io::Result<()> {
        let mut writer = Writer::new(&mut data, meta.index, meta.term)?;
        for kind in Kind::ALL {
            for (key, value) in memory.rows().filter(|row| kind_of(row.0) == kind) {
                writer.row(key, value)?;
            }
        }
        writer.finish()
    };
    write().map_err(StoreError::io("write", Path::new(IN_MEMORY)))?;
    Ok(data)
}

/// The machine in a snapshot that must be ahead of `applied`.
///
/// # Errors
/// [`StoreError::Corrupt`] and [`StoreError::Behind`].
pub fn to_memory(data: &[u8], applied: u64) -> Result<(Memory, Meta)> {
    let path = Path::new(IN_MEMORY);
    let mut memory = Memory::default();
    let position = read_from(path, data, &mut |key, value| {
        let Ok(()) = memory.put(key, value);
        Ok(())
    })?;
    check_ahead(position.0, applied)?;
    let meta = meta_of(path, &memory)?;
    check_position(path, position, &meta)?;
    Ok((memory, meta))
}

/// Where the machine in a snapshot stands.
fn meta_of(path: &Path, memory: &Memory) -> Result<Meta> {
    load(memory).map_err(|error| StoreError::Corrupt {
        file: path.to_owned(),
        offset: 0,
        problem: error.to_string(),
    })
}

/// Refuse a snapshot that would take the state back.
///
/// # Errors
/// [`StoreError::Behind`].
pub(crate) fn check_ahead(snapshot: u64, applied: u64) -> Result<()> {
    if snapshot > applied {
        return Ok(());
    }
    Err(StoreError::Behind { snapshot, applied })
}

/// Check that the machine in a snapshot stands where the snapshot says.
///
/// # Errors
/// [`StoreError::Corrupt`].
pub(crate) fn check_position(path: &Path, (index, term): (u64, u64), meta: &Meta) -> Result<()> {
    if (index, term) == (meta.index, meta.term) {
        return Ok(());
    }
    Err(StoreError::Corrupt {
        file: path.to_owned(),
        offset: 0,
        problem: format!(
            "it is of entry {index} of term {term}, but holds the state after entry {} of term {}",
            meta.index, meta.term
        ),
    })
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

struct Reader<'a, R> {
    path: &'a Path,
    input: BufReader<R>,
    hash: blake3::Hasher,
    offset: u64,
}

impl<'a, R: Read> Reader<'a, R> {
    fn new(path: &'a Path, input: R) -> Self {
        Self {
            path,
            input: BufReader::with_capacity(BLOCK_BYTES, input),
            hash: blake3::Hasher::new(),
            offset: 0,
        }
    }

    /// Read the beginning: index and term.
    fn header(&mut self) -> Result<(u64, u64)> {
        if self.take::<8>()? != *MAGIC {
            return Err(self.corrupt("this is not a snapshot"));
        }
        let version = u32::from_le_bytes(self.take()?);
        if version != FORMAT_VERSION {
            return Err(self.corrupt(format!("format version {version}; this build knows {FORMAT_VERSION}")));
        }
        let position = (u64::from_le_bytes(self.take()?), u64::from_le_bytes(self.take()?));
        debug_assert_eq!(self.offset, HEADER_BYTES);
        Ok(position)
    }

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
