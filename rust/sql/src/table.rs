//! A table as DataFusion asks for it: what is pushed down, and the scan that comes of it.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ffi::FFI_ArrowSchema;
use async_trait::async_trait;
use datafusion_catalog::{Session, TableProvider};
use datafusion_common::Result;
use datafusion_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion_physical_plan::ExecutionPlan;
use jobs_store::StoreError;

use crate::estimate::RowCount;
use crate::filter::{Predicate, understand};
use crate::ranges::{Ranges, next};
use crate::scan::{Scan, ScanExec, store_error};
use crate::snapshot::Snapshot;
use crate::source::{Place, Source, Wanted};
use crate::split::{Split, split};

/// Rows of an index that are looked at; with more, the whole table is read instead.
const MAX_INDEX_ROWS: usize = 50_000;
/// With a limit up to this, one partition reads: it is done before others have begun.
const SMALL_LIMIT: usize = 8_192;

/// A table of a snapshot.
pub struct Table {
    snapshot: Arc<Snapshot>,
    source: Arc<dyn Source>,
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of {:?}", self.source, self.snapshot)
    }
}

impl Table {
    pub(crate) fn new(snapshot: Arc<Snapshot>, source: Arc<dyn Source>) -> Self {
        Self { snapshot, source }
    }

    /// The columns, by Arrow's C interface.
    ///
    /// # Errors
    /// When a type is not known there.
    pub fn c_schema(&self) -> std::result::Result<FFI_ArrowSchema, ArrowError> {
        FFI_ArrowSchema::try_from(self.source.schema().as_ref())
    }

    /// Return the ranges of keys to read, and in words where they come from.
    fn ranges(&self, predicate: &Predicate) -> Result<(Ranges, String)> {
        match self.source.place(predicate) {
            Place::Keys(ranges) => {
                let words = ranges.describe();
                Ok((ranges, format!("keys={words}")))
            }
            Place::Index { index, prefix, length } => {
                if let Some(ranges) = self.named_by(&index, &prefix, length)? {
                    return Ok((ranges, format!("index={}", index.describe())));
                }
                let ranges = Ranges::prefix(&prefix);
                let words = ranges.describe();
                Ok((ranges, format!("keys={words}")))
            }
        }
    }

    /// Return the keys that an index names; `None` when they are very many.
    fn named_by(&self, index: &Ranges, prefix: &[u8], length: usize) -> Result<Option<Ranges>> {
        let mut named = Vec::new();
        let looked = self.snapshot.view.with(0, |access| {
            for (start, end) in index.iter() {
                let Some(end) = end else { continue };
                access.visit((start, end), |row| {
                    if let Some(part) = row.key.len().checked_sub(length) {
                        let key = [prefix, &row.key[part..]].concat();
                        named.push(Ranges::between(key.clone(), Some(next(&key))));
                    }
                    if named.len() > MAX_INDEX_ROWS {
                        std::ops::ControlFlow::Break(())
                    } else {
                        std::ops::ControlFlow::Continue(())
                    }
                })?;
            }
            Ok::<_, StoreError>(())
        });
        looked.map_err(store_error)?;
        Ok((named.len() <= MAX_INDEX_ROWS).then(|| Ranges::union(named)))
    }

    fn describe(
        &self,
        ranges: &str,
        wanted: &Wanted,
        rows: RowCount,
        limit: Option<usize>,
        partitions: usize,
    ) -> String {
        let schema = self.source.schema();
        let name = |column: usize| schema.field(column).name().clone();
        let columns: Vec<String> = wanted.columns.iter().map(|&column| name(column)).collect();
        let filter = match &wanted.predicate {
            predicate if predicate.is_empty() => String::new(),
            predicate => format!(", filter={}", predicate.describe(&name)),
        };
        let limit = limit.map_or_else(String::new, |limit| format!(", limit={limit}"));
        format!(
            "{}: columns=[{}], {ranges}{filter}{limit}, {}, partitions={partitions}",
            self.source.name(),
            columns.join(", "),
            rows.describe(),
        )
    }
}

#[async_trait]
impl TableProvider for Table {
    fn schema(&self) -> SchemaRef {
        Arc::clone(self.source.schema())
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let judge = |filter: &&Expr| match understand(filter, &&*self.source) {
            Some(understood) if understood.is_exact => TableProviderFilterPushDown::Exact,
            Some(_) => TableProviderFilterPushDown::Inexact,
            None => TableProviderFilterPushDown::Unsupported,
        };
        Ok(filters.iter().map(judge).collect())
    }

    async fn scan(
        &self,
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let understood: Vec<_> = filters
            .iter()
            .map(|filter| understand(filter, &&*self.source))
            .collect();
        // A limit holds only for rows that meet all filters.
        let is_exact = understood
            .iter()
            .all(|part| part.as_ref().is_some_and(|part| part.is_exact));
        let limit = limit.filter(|_| is_exact);
        let predicate = Predicate::All(understood.into_iter().flatten().map(|part| part.predicate).collect());
        let columns = projection
            .cloned()
            .unwrap_or_else(|| (0..self.source.schema().fields().len()).collect());
        let config = session.config().options();
        let wanted = Wanted {
            columns,
            batch_rows: config
                .execution
                .batch_size
                .get()
                .min(limit.unwrap_or(usize::MAX))
                .max(1),
            predicate,
        };
        let (ranges, words) = self.ranges(&wanted.predicate)?;
        let partitions = match limit {
            Some(limit) if limit <= SMALL_LIMIT => 1,
            _ => config.execution.target_partitions,
        };
        let view = &self.snapshot.view;
        let split = split(view, &*self.source, &wanted, &ranges, partitions).map_err(store_error)?;
        let Split { shares, keys, rows } = split;
        let schema = Arc::new(self.source.schema().project(&wanted.columns)?);
        Ok(Arc::new(ScanExec::new(Scan {
            name: self.describe(&words, &wanted, rows, limit, shares.len()),
            snapshot: Arc::clone(&self.snapshot),
            source: Arc::clone(&self.source),
            wanted,
            schema,
            shares,
            keys: keys.number(),
            rows,
            limit,
        })))
    }
}
