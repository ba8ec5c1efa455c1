//! Streams of Arrow's IPC in memory, without a copy: columns lie where the value lies.
//!
//! Arrow's own reader makes room for what a message says to hold before it looks whether that is there. Here every length
//! is held against what there is first.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::buffer::Buffer;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::convert::fb_to_schema;
use arrow::ipc::reader::{read_dictionary, read_record_batch};
use arrow::ipc::{Message, RecordBatch as Batch, root_as_message};
use bytes::Bytes;

use super::decode::{MAX_DECODED_BYTES, MAX_DECODED_ROWS};

/// How a file begins, and where its stream does.
const FILE: &[u8] = b"ARROW1";
const FILE_START: usize = 8;
/// What stands before the length of a message.
const CONTINUATION: [u8; 4] = [0xff; 4];

/// Where a message lies: what it is, and its data.
type Place = (Range<usize>, Range<usize>);
type Read<T> = Result<T, ArrowError>;

/// The batches of a stream.
pub(super) struct Stream {
    data: Buffer,
    schema: SchemaRef,
    messages: VecDeque<Place>,
    dictionaries: HashMap<i64, ArrayRef>,
    projection: Vec<usize>,
}

fn lies() -> ArrowError {
    ArrowError::IpcError("the value is damaged: a length in it is not so".into())
}

fn message(header: &[u8]) -> Read<Message<'_>> {
    root_as_message(header).map_err(|problem| ArrowError::IpcError(problem.to_string()))
}

impl Stream {
    /// Read the beginning of a stream, or of a file, which is a stream with something before and behind it.
    pub fn open(value: Bytes, places: impl FnOnce(&SchemaRef) -> Vec<usize>) -> Read<Self> {
        let mut messages = messages(&value)?;
        let data = Buffer::from(value);
        let (header, _) = messages.pop_front().ok_or_else(lies)?;
        let schema = message(&data[header])?.header_as_schema().map(fb_to_schema);
        let schema = schema.ok_or_else(|| ArrowError::IpcError("the value does not begin with a schema".into()))?;
        let schema = Arc::new(schema);
        Ok(Self {
            projection: places(&schema),
            data,
            schema,
            messages,
            dictionaries: HashMap::new(),
        })
    }

    fn read(&mut self, (header, body): Place) -> Read<Option<RecordBatch>> {
        let message = message(&self.data[header])?;
        let length = body.len();
        let data = self.data.slice_with_length(body.start, length);
        let version = message.version();
        if let Some(dictionary) = message.header_as_dictionary_batch() {
            read_dictionary(&data, dictionary, &self.schema, &mut self.dictionaries, &version)?;
            return Ok(None);
        }
        let Some(batch) = message.header_as_record_batch() else {
            return Err(ArrowError::IpcError("the value holds what is no batch".into()));
        };
        let schema = Arc::clone(&self.schema);
        read_record_batch(
            &data,
            batch,
            schema,
            &self.dictionaries,
            Some(&self.projection),
            &version,
        )
        .map(Some)
    }
}

impl Iterator for Stream {
    type Item = Read<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let place = self.messages.pop_front()?;
            match self.read(place) {
                Ok(None) => {}
                Ok(Some(batch)) => return Some(Ok(batch)),
                Err(problem) => {
                    self.messages.clear();
                    return Some(Err(problem));
                }
            }
        }
    }
}

/// Find the messages of a stream, and check every length in them.
fn messages(value: &[u8]) -> Read<VecDeque<Place>> {
    let mut found = VecDeque::new();
    let mut at = if value.starts_with(FILE) { FILE_START } else { 0 };
    let mut unfolded = 0;
    while let Some(head) = word(value, at) {
        at += 4;
        let length = if head == CONTINUATION {
            at += 4;
            word(value, at - 4).ok_or_else(lies)?
        } else {
            head
        };
        let length = usize::try_from(i32::from_le_bytes(length)).map_err(|_| lies())?;
        if length == 0 {
            break;
        }
        let header = at..at.checked_add(length).ok_or_else(lies)?;
        let message = message(value.get(header.clone()).ok_or_else(lies)?)?;
        let length = usize::try_from(message.bodyLength()).map_err(|_| lies())?;
        let body = header.end..header.end.checked_add(length).ok_or_else(lies)?;
        let data = value.get(body.clone()).ok_or_else(lies)?;
        let batch = match message.header_as_dictionary_batch() {
            Some(dictionary) => dictionary.data(),
            None => message.header_as_record_batch(),
        };
        if let Some(batch) = batch {
            unfolded += check_batch(batch, data)?;
        }
        if unfolded > MAX_DECODED_BYTES {
            return Err(lies());
        }
        at = body.end;
        found.push_back((header, body));
    }
    Ok(found)
}

fn word(value: &[u8], at: usize) -> Option<[u8; 4]> {
    value.get(at..)?.first_chunk().copied()
}

/// Return what a batch comes to when it is decompressed, as it says.
fn check_batch(batch: Batch<'_>, body: &[u8]) -> Read<usize> {
    if usize::try_from(batch.length()).map_err(|_| lies())? > MAX_DECODED_ROWS {
        return Err(lies());
    }
    let mut unfolded = 0;
    for buffer in batch.buffers().into_iter().flatten() {
        let start = usize::try_from(buffer.offset()).map_err(|_| lies())?;
        let length = usize::try_from(buffer.length()).map_err(|_| lies())?;
        let data = body.get(start..).and_then(|rest| rest.get(..length)).ok_or_else(lies)?;
        if batch.compression().is_none() || data.is_empty() {
            continue;
        }
        let size = data.first_chunk().map(|size| i64::from_le_bytes(*size));
        let size = match size.ok_or_else(lies)? {
            // It is not compressed.
            -1 => length,
            size => usize::try_from(size).map_err(|_| lies())?,
        };
        unfolded = size
            .checked_add(unfolded)
            .filter(|size| *size <= MAX_DECODED_BYTES)
            .ok_or_else(lies)?;
    }
    Ok(unfolded)
}
