//! Turns values into columns.
//!
//! Values are hostile. What the formats' readers return as an error is one; a reader that panics over odd bytes is
//! caught and told of likewise; and a value that says to hold very much more than it is long is refused.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, new_null_array};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::csv::ReaderBuilder as CsvReader;
use arrow::csv::reader::Format as CsvFormat;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::json::ReaderBuilder as JsonReader;
use bytes::Bytes;
use datafusion_common::Result;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::source::batch_of;

use super::definition::{Column, Csv, Definition, Format, OnError};
use super::ipc::Stream;
use super::objects::Objects;

/// What a value may come to when it is decoded.
pub(super) const MAX_DECODED_BYTES: usize = 256 << 20;
pub(super) const MAX_DECODED_ROWS: usize = 16_000_000;
/// Why a value cannot be decoded.
pub(super) type Problem = String;
/// Columns of some rows, and how many these are.
type Part = (Vec<ArrayRef>, usize);
/// The rows of a value, in parts.
pub(super) type Rows = Box<dyn Iterator<Item = Result<Part, Problem>> + Send>;
type Batches = Box<dyn Iterator<Item = Result<RecordBatch, ArrowError>> + Send>;

/// Decodes values as far as some columns need it.
pub(super) struct Decoder {
    format: Format,
    csv: Csv,
    columns: Vec<Column>,
    /// The columns of the value with the names that they have there.
    in_value: SchemaRef,
    /// All columns that the value has, in order, for CSV without a header.
    all: SchemaRef,
}

fn named_in_value<'a>(columns: impl Iterator<Item = &'a Column>) -> SchemaRef {
    let fields: Vec<Field> = columns
        .map(|column| Field::new(&column.field, column.data_type.clone(), column.nullable))
        .collect();
    Arc::new(Schema::new(fields))
}

fn guarded<T>(work: impl FnOnce() -> Result<T, ArrowError>) -> Result<T, Problem> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the value is damaged".into()),
    }
}

impl Decoder {
    pub fn new(definition: &Definition, wanted: &[usize]) -> Self {
        let columns: Vec<Column> = wanted
            .iter()
            .map(|&column| definition.columns[column].clone())
            .collect();
        let in_value = definition
            .columns
            .iter()
            .filter(|column| column.origin == super::Origin::Value);
        Self {
            format: definition.format,
            csv: definition.csv,
            in_value: named_in_value(columns.iter()),
            all: named_in_value(in_value),
            columns,
        }
    }

    pub fn schema(&self) -> &SchemaRef {
        &self.in_value
    }

    pub fn batch(&self, columns: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch> {
        batch_of(&self.in_value, columns, rows)
    }

    /// Columns of rows without anything.
    pub fn nulls(&self, rows: usize) -> Vec<ArrayRef> {
        let fields = self.in_value.fields();
        fields
            .iter()
            .map(|field| new_null_array(field.data_type(), rows))
            .collect()
    }

    /// Decode values that are one object each.
    pub fn rows(&self, values: &[&[u8]]) -> Result<Vec<ArrayRef>, Problem> {
        let batch = guarded(|| {
            let mut decoder = JsonReader::new(Arc::clone(&self.in_value))
                .with_batch_size(values.len() + 1)
                .build_decoder()?;
            for (number, value) in values.iter().enumerate() {
                decoder.decode(value)?;
                if decoder.has_partial_record() || decoder.len() != number + 1 {
                    let problem = "the value is not one JSON object";
                    return Err(ArrowError::JsonError(problem.into()));
                }
            }
            decoder.flush()
        })?;
        match batch {
            Some(batch) => Ok(batch.columns().to_vec()),
            None => Err("the value is not one JSON object".into()),
        }
    }

    /// Begin to decode a value that holds any number of rows. Errors come at once where they are not to end the query.
    pub fn begin(&self, value: Bytes, batch_rows: usize, on_error: OnError) -> Result<Rows, Problem> {
        let batches = guarded(|| match self.format {
            Format::Json | Format::Jsonl => self.json_lines(value, batch_rows),
            Format::Csv => self.csv(value, batch_rows),
            Format::Arrow => Ok(Box::new(Stream::open(value, |schema| self.places(schema))?)),
            Format::Parquet => self.parquet(value, batch_rows),
        })?;
        let columns = self.columns.clone();
        let mut batches = batches;
        let (mut rows, mut bytes) = (0, 0);
        let mut parts = std::iter::from_fn(move || {
            let batch = match guarded(|| batches.next().transpose()) {
                Ok(None) => return None,
                Ok(Some(batch)) => batch,
                Err(problem) => return Some(Err(problem)),
            };
            rows += batch.num_rows();
            bytes += batch.get_array_memory_size();
            if rows > MAX_DECODED_ROWS || bytes > MAX_DECODED_BYTES {
                return Some(Err(format!(
                    "the value holds more than {MAX_DECODED_ROWS} rows or {MAX_DECODED_BYTES} bytes"
                )));
            }
            Some(guarded(|| adapt(&batch, &columns)))
        });
        if on_error == OnError::Error {
            return Ok(Box::new(parts));
        }
        let all = parts.by_ref().collect::<Result<Vec<_>, _>>()?;
        Ok(Box::new(all.into_iter().map(Ok)))
    }

    fn json_lines(&self, value: Bytes, batch_rows: usize) -> Result<Batches, ArrowError> {
        let is_text = value.is_ascii() || std::str::from_utf8(&value).is_ok();
        match Objects::new(&self.in_value).filter(|_| is_text) {
            None => lines(&self.in_value, value, batch_rows),
            Some(objects) => Ok(Box::new(Lines {
                objects,
                schema: Arc::clone(&self.in_value),
                value,
                batch_rows,
                others: None,
            })),
        }
    }

    fn csv(&self, value: Bytes, batch_rows: usize) -> Result<Batches, ArrowError> {
        #[allow(clippy::cast_possible_truncation, reason = "it is checked to be ASCII")]
        let delimiter = self.csv.delimiter as u8;
        let schema = if self.csv.header {
            let format = CsvFormat::default().with_header(true).with_delimiter(delimiter);
            let (names, _) = format.infer_schema(&value[..], Some(0))?;
            let fields = names.fields().iter().map(|field| {
                let known = self.all.field_with_name(field.name());
                let data_type = known.map_or(DataType::Utf8, |field| csv_type(field.data_type()));
                Field::new(field.name(), data_type, true)
            });
            Schema::new(fields.collect::<Vec<_>>())
        } else {
            let fields = self.all.fields().iter();
            let fields = fields.map(|field| Field::new(field.name(), csv_type(field.data_type()), true));
            Schema::new(fields.collect::<Vec<_>>())
        };
        let projection: Vec<usize> = self.places(&schema);
        let reader = CsvReader::new(Arc::new(schema))
            .with_header(self.csv.header)
            .with_delimiter(delimiter)
            .with_batch_size(batch_rows)
            .with_projection(projection);
        Ok(Box::new(reader.build(Cursor::new(value))?))
    }

    /// Where the columns are that are wanted, as far as they are there.
    fn places(&self, schema: &Schema) -> Vec<usize> {
        let mut places: Vec<usize> = self
            .columns
            .iter()
            .filter_map(|column| schema.index_of(&column.field).ok())
            .collect();
        places.sort_unstable();
        places.dedup();
        places
    }

    fn parquet(&self, value: Bytes, batch_rows: usize) -> Result<Batches, ArrowError> {
        let builder = ParquetRecordBatchReaderBuilder::try_new(value)?;
        let groups = builder.metadata().row_groups();
        let (mut rows, mut bytes) = (0_i64, 0_i64);
        for group in groups {
            rows = rows.saturating_add(group.num_rows());
            bytes = bytes.saturating_add(group.total_byte_size());
        }
        let is_within = |size: i64, most: usize| usize::try_from(size).is_ok_and(|size| size <= most);
        if !is_within(rows, MAX_DECODED_ROWS) || !is_within(bytes, MAX_DECODED_BYTES) {
            let problem = format!("the value holds more than {MAX_DECODED_ROWS} rows or {MAX_DECODED_BYTES} bytes");
            return Err(ArrowError::ParquetError(problem));
        }
        let mask = ProjectionMask::roots(builder.parquet_schema(), self.places(builder.schema()));
        Ok(Box::new(
            builder.with_projection(mask).with_batch_size(batch_rows).build()?,
        ))
    }
}

fn lines(schema: &SchemaRef, value: Bytes, batch_rows: usize) -> Result<Batches, ArrowError> {
    let reader = JsonReader::new(Arc::clone(schema)).with_batch_size(batch_rows);
    Ok(Box::new(reader.build(Cursor::new(value))?))
}

/// Objects of a value: as long as they are plain decoded at once, from then on by Arrow's reader.
struct Lines {
    objects: Objects,
    schema: SchemaRef,
    /// What is left of it.
    value: Bytes,
    batch_rows: usize,
    others: Option<Batches>,
}

impl Iterator for Lines {
    type Item = Result<RecordBatch, ArrowError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(others) = &mut self.others {
            return others.next();
        }
        let mut rest = &self.value[..];
        match self.objects.part(&mut rest, self.batch_rows) {
            Some((_, 0)) => None,
            Some((columns, rows)) => {
                self.value = self.value.slice(self.value.len() - rest.len()..);
                let options = RecordBatchOptions::new().with_row_count(Some(rows));
                Some(RecordBatch::try_new_with_options(
                    Arc::clone(&self.schema),
                    columns,
                    &options,
                ))
            }
            None => match lines(&self.schema, self.value.clone(), self.batch_rows) {
                Ok(others) => self.others.insert(others).next(),
                Err(problem) => Some(Err(problem)),
            },
        }
    }
}

/// What a column of CSV is read as, before it becomes what it is to be.
fn csv_type(wanted: &DataType) -> DataType {
    match wanted {
        DataType::Binary => DataType::Utf8,
        other => other.clone(),
    }
}

/// Make the columns of a batch what they are to be; those that are not there are NULL.
fn adapt(batch: &RecordBatch, columns: &[Column]) -> Result<Part, ArrowError> {
    let strict = CastOptions {
        safe: false,
        ..CastOptions::default()
    };
    let mut adapted = Vec::with_capacity(columns.len());
    for column in columns {
        let array = match batch.column_by_name(&column.field) {
            None => new_null_array(&column.data_type, batch.num_rows()),
            Some(array) if *array.data_type() == column.data_type => Arc::clone(array),
            Some(array) => cast_with_options(array, &column.data_type, &strict)?,
        };
        if !column.nullable && array.null_count() > 0 {
            let problem = format!("column {:?} is NULL in a row", column.name);
            return Err(ArrowError::SchemaError(problem));
        }
        adapted.push(array);
    }
    Ok((adapted, batch.num_rows()))
}
