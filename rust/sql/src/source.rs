//! What makes a table: which keys its rows stand at, and how a row becomes columns.

use std::fmt::Debug;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::datatypes::SchemaRef;
use datafusion_common::{DataFusionError, Result};
use jobs_kv::read::Row;
use jobs_store::view::Access;

use crate::filter::{CellType, Columns, Predicate};
use crate::ranges::Ranges;

/// What a scan wants of a table.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// Columns, in their order.
    pub columns: Vec<usize>,
    /// What rows have to meet.
    pub predicate: Predicate,
    /// Rows of a batch.
    pub batch_rows: usize,
}

/// Where a scan finds its rows.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// At the keys in these ranges.
    Keys(Ranges),
    /// At keys that an index names: the keys in the ranges end with the last part of those.
    Index {
        /// Ranges of the index.
        index: Ranges,
        /// What comes before the part that is taken from the index.
        prefix: Vec<u8>,
        /// How long that part is.
        length: usize,
    },
}

/// A kind of table.
pub(crate) trait Source: Debug + Send + Sync {
    /// Name of its scans in a plan.
    fn name(&self) -> &str;
    fn schema(&self) -> &SchemaRef;
    /// What filters on a column are evaluated as, before a row is made; `None` where they are not.
    fn cell_type(&self, column: usize) -> Option<CellType>;
    /// Where rows can be that meet a condition.
    fn place(&self, predicate: &Predicate) -> Place;
    /// Whether every key in the ranges of [`Self::place`] is a row, if it meets the condition.
    fn is_row_per_key(&self) -> bool;
    fn sink(&self, wanted: &Wanted) -> Result<Box<dyn Sink>>;
}

/// Makes batches of rows.
pub(crate) trait Sink: Send {
    /// Take in what stands at a key; return how many bytes of it were looked at.
    fn take(&mut self, access: &Access<'_>, row: &Row<'_>) -> Result<usize>;
    /// Nothing more is to be taken in before [`Self::next_batch`] has given everything.
    fn is_full(&self) -> bool;
    /// What was taken in, in parts; `None` when that is all.
    fn next_batch(&mut self) -> Result<Option<RecordBatch>>;
}

impl Columns for &dyn Source {
    fn column(&self, name: &str) -> Option<(usize, CellType)> {
        let index = self.schema().index_of(name).ok()?;
        Some((index, self.cell_type(index)?))
    }
}

/// Make a batch; it has its number of rows also where it has no columns.
pub(crate) fn batch_of(schema: &SchemaRef, columns: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch> {
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    Ok(RecordBatch::try_new_with_options(
        Arc::clone(schema),
        columns,
        &options,
    )?)
}

/// What is to be said of a row that cannot be read.
pub(crate) fn bad_row(key: &[u8], problem: &dyn std::fmt::Display) -> DataFusionError {
    DataFusionError::Execution(format!("key {}: {problem}", key.escape_ascii()))
}

/// Text in a row.
pub(crate) fn text<'a>(key: &[u8], bytes: &'a [u8]) -> Result<&'a str> {
    std::str::from_utf8(bytes).map_err(|error| bad_row(key, &error))
}

/// A number that a column of 64 bits with a sign can hold.
pub(crate) fn signed(key: &[u8], number: u64) -> Result<i64> {
    i64::try_from(number).map_err(|_| bad_row(key, &"a number is too large"))
}
