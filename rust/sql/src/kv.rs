//! The table `kv`: every key that a reader may see, as it is stored.

use std::sync::{Arc, LazyLock};

use arrow::array::{ArrayRef, BinaryArray, Int64Array, Int64Builder, RecordBatch, TimestampMillisecondBuilder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion_common::Result;
use jobs_kv::read::Row;
use jobs_store::view::Access;

use crate::filter::{Cell, CellType, Cells, Literal, Predicate};
use crate::ranges::Ranges;
use crate::snapshot::Snapshot;
use crate::source::{Place, Sink, Source, Wanted, bad_row, batch_of, signed};
use crate::strings::Strings;

/// The part of the store that all users may read.
pub(crate) const DATA: &[u8] = b"/data/";
/// Bytes that are gathered for a batch at most, apart from its last row.
const BATCH_BYTES: usize = 4 << 20;

const KEY: usize = 0;
const VALUE: usize = 1;
const VERSION: usize = 2;
const CREATE_REVISION: usize = 3;
const MOD_REVISION: usize = 4;
const LEASE_ID: usize = 5;
const LEASE_TTL_MS: usize = 6;
const EXPIRES_AT: usize = 7;

static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        Field::new("key", DataType::Utf8, false),
        Field::new("value", DataType::Binary, false),
        Field::new("version", DataType::Int64, false),
        Field::new("create_revision", DataType::Int64, false),
        Field::new("mod_revision", DataType::Int64, false),
        Field::new("lease_id", DataType::Int64, true),
        Field::new("lease_ttl_ms", DataType::Int64, true),
        Field::new(
            "expires_at",
            DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())),
            true,
        ),
    ]))
});

/// The keys below a prefix.
#[derive(Debug)]
pub(crate) struct Kv {
    /// What the reader may see; empty for everything.
    pub prefix: &'static [u8],
    pub snapshot: Arc<Snapshot>,
}

impl Source for Kv {
    fn name(&self) -> &'static str {
        "KvScan"
    }

    fn schema(&self) -> &SchemaRef {
        &SCHEMA
    }

    fn cell_type(&self, column: usize) -> Option<CellType> {
        match column {
            KEY => Some(CellType::Text),
            VERSION | CREATE_REVISION | MOD_REVISION | LEASE_ID => Some(CellType::Int),
            _ => None,
        }
    }

    fn place(&self, predicate: &Predicate) -> Place {
        let wanted = predicate.ranges(KEY, &Literal::text).unwrap_or_else(Ranges::all);
        Place::Keys(wanted.intersect(&Ranges::prefix(self.prefix)))
    }

    fn is_row_per_key(&self) -> bool {
        true
    }

    fn sink(&self, wanted: &Wanted) -> Result<Box<dyn Sink>> {
        let columns = wanted.columns.iter();
        let columns = columns.map(|&column| Builder::of(column)).collect();
        Ok(Box::new(KvSink {
            schema: Arc::new(SCHEMA.project(&wanted.columns)?),
            predicate: wanted.predicate.clone(),
            columns,
            snapshot: Arc::clone(&self.snapshot),
            lease: (0, None),
            batch_rows: wanted.batch_rows,
            rows: 0,
            bytes: 0,
        }))
    }
}

enum Builder {
    Key(Strings),
    Value(Strings),
    Number(usize, Vec<i64>),
    Nullable(usize, Int64Builder),
    Time(TimestampMillisecondBuilder),
}

impl Builder {
    fn of(column: usize) -> Self {
        match column {
            KEY => Self::Key(Strings::default()),
            VALUE => Self::Value(Strings::default()),
            EXPIRES_AT => Self::Time(TimestampMillisecondBuilder::new()),
            LEASE_ID | LEASE_TTL_MS => Self::Nullable(column, Int64Builder::with_capacity(0)),
            number => Self::Number(number, Vec::new()),
        }
    }

    /// Return the column, and begin anew with room for as much.
    fn finish(&mut self, rows: usize) -> Result<ArrayRef> {
        Ok(match self {
            Self::Key(strings) => Arc::new(strings.take_keys()?),
            Self::Value(strings) => {
                let (offsets, bytes) = strings.take();
                Arc::new(BinaryArray::try_new(offsets, bytes, None)?)
            }
            Self::Number(_, numbers) => {
                let full = std::mem::replace(numbers, Vec::with_capacity(rows));
                Arc::new(Int64Array::from(full))
            }
            Self::Nullable(_, builder) => {
                Arc::new(std::mem::replace(builder, Int64Builder::with_capacity(rows)).finish())
            }
            Self::Time(builder) => Arc::new(builder.finish().with_timezone("UTC")),
        })
    }
}

struct KvCells<'a>(&'a Row<'a>);

/// Revisions and leases are below 2^63, which what is stored was checked for.
fn number(column: usize, row: &Row<'_>) -> Option<u64> {
    match column {
        VERSION => Some(row.version),
        CREATE_REVISION => Some(row.create_revision),
        MOD_REVISION => Some(row.mod_revision),
        _ => (row.lease != 0).then_some(row.lease),
    }
}

impl Cells for KvCells<'_> {
    fn cell(&self, column: usize) -> Cell<'_> {
        if column == KEY {
            return Cell::Text(self.0.key);
        }
        number(column, self.0).map_or(Cell::Null, |number| Cell::Int(number.try_into().unwrap_or(i64::MAX)))
    }
}

/// The time to live of a row's lease; `None` where it has none, or the lease has gone since.
fn ttl_ms(known: &mut (u64, Option<i64>), access: &Access<'_>, row: &Row<'_>) -> Result<Option<i64>> {
    if row.lease != known.0 {
        let ttl_ms = access
            .lease_ttl_ms(row.lease)
            .map_err(|error| bad_row(row.key, &error))?;
        *known = (row.lease, ttl_ms.map(|ttl_ms| signed(row.key, ttl_ms)).transpose()?);
    }
    Ok(known.1)
}

struct KvSink {
    schema: SchemaRef,
    predicate: Predicate,
    columns: Vec<Builder>,
    snapshot: Arc<Snapshot>,
    /// A lease, and its time to live: keys of one lease often stand beside each other.
    lease: (u64, Option<i64>),
    batch_rows: usize,
    rows: usize,
    bytes: usize,
}

impl Sink for KvSink {
    fn take(&mut self, access: &Access<'_>, row: &Row<'_>) -> Result<usize> {
        let mut looked_at = row.key.len();
        if !self.predicate.holds(&KvCells(row)) {
            return Ok(looked_at);
        }
        for column in &mut self.columns {
            match column {
                Builder::Key(strings) => {
                    strings.push(row.key);
                    self.bytes += row.key.len();
                }
                Builder::Value(strings) => {
                    strings.push(row.value);
                    looked_at += row.value.len();
                    self.bytes += row.value.len();
                }
                Builder::Number(column, numbers) => {
                    let value = number(*column, row).unwrap_or_default();
                    numbers.push(signed(row.key, value)?);
                }
                Builder::Nullable(LEASE_TTL_MS, builder) => {
                    builder.append_option(ttl_ms(&mut self.lease, access, row)?);
                }
                Builder::Time(builder) => {
                    let end_ms = match self.snapshot.lease_ends() {
                        None => None,
                        Some(ends) => {
                            ttl_ms(&mut self.lease, access, row)?.map(|ttl_ms| ends.end_ms(row.lease, ttl_ms))
                        }
                    };
                    builder.append_option(end_ms);
                }
                Builder::Nullable(column, builder) => {
                    let value = number(*column, row).map(|number| signed(row.key, number)).transpose()?;
                    builder.append_option(value);
                }
            }
        }
        self.rows += 1;
        Ok(looked_at)
    }

    fn is_full(&self) -> bool {
        self.rows >= self.batch_rows || self.bytes >= BATCH_BYTES
    }

    fn next_batch(&mut self) -> Result<Option<RecordBatch>> {
        if self.rows == 0 {
            return Ok(None);
        }
        let rows = self.rows;
        let columns = self
            .columns
            .iter_mut()
            .map(|column| column.finish(rows))
            .collect::<Result<_>>()?;
        let rows = std::mem::take(&mut self.rows);
        self.bytes = 0;
        batch_of(&self.schema, columns, rows).map(Some)
    }
}
