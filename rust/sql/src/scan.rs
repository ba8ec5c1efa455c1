//! A scan as a node of a plan, and as a stream of batches.

use std::collections::VecDeque;
use std::fmt;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion_common::stats::Precision;
use datafusion_common::tree_node::TreeNodeRecursion;
use datafusion_common::{DataFusionError, Result, Statistics};
use datafusion_execution::{RecordBatchStream, SendableRecordBatchStream, TaskContext};
use datafusion_physical_expr::{EquivalenceProperties, Partitioning};
use datafusion_physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion_physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet};
use datafusion_physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, PhysicalExpr, PlanProperties, ReplaceChildrenOptions, StatisticsArgs,
};
use futures::Stream;
use jobs_store::StoreError;

use crate::estimate::RowCount;
use crate::ranges::next;
use crate::snapshot::Snapshot;
use crate::source::{Sink, Source, Wanted};
use crate::split::KeyRange;

/// Rows and bytes that a scan looks at before others have their turn, and a cancellation its chance.
const STEP_ROWS: u64 = 16_384;
const STEP_BYTES: u64 = 8 << 20;

/// A scan of a table.
pub(crate) struct Scan {
    /// With what is pushed down, since a plan from another library shows nothing else.
    pub name: String,
    pub snapshot: Arc<Snapshot>,
    pub source: Arc<dyn Source>,
    pub wanted: Wanted,
    pub schema: SchemaRef,
    /// What each partition reads.
    pub shares: Vec<Vec<KeyRange>>,
    /// About how many keys they have in all.
    pub keys: usize,
    pub rows: RowCount,
    /// Most rows of each partition.
    pub limit: Option<usize>,
}

/// The node of a plan.
pub(crate) struct ScanExec {
    scan: Arc<Scan>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl ScanExec {
    pub fn new(scan: Scan) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&scan.schema)),
            Partitioning::UnknownPartitioning(scan.shares.len().max(1)),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Self {
            scan: Arc::new(scan),
            properties: Arc::new(properties),
            metrics: ExecutionPlanMetricsSet::new(),
        }
    }
}

impl fmt::Debug for ScanExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.scan.name)
    }
}

impl DisplayAs for ScanExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.scan.name)
    }
}

impl ExecutionPlan for ScanExec {
    fn name(&self) -> &str {
        &self.scan.name
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn replace_children(
        self: Arc<Self>,
        _: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn execute(&self, partition: usize, _: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let ranges = self.scan.shares.get(partition).cloned().unwrap_or_default();
        let keys = self.scan.keys / self.scan.shares.len().max(1);
        self.scan
            .snapshot
            .expect(keys.min(self.scan.limit.unwrap_or(usize::MAX)) as u64);
        Ok(Box::pin(ScanStream {
            sink: self.scan.source.sink(&self.scan.wanted)?,
            scan: Arc::clone(&self.scan),
            partition,
            ranges: ranges.into(),
            left: self.scan.limit.unwrap_or(usize::MAX),
            metrics: BaselineMetrics::new(&self.metrics, partition),
        }))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn statistics_from_inputs(&self, _: &[Arc<Statistics>], args: &StatisticsArgs) -> Result<Arc<Statistics>> {
        let mut statistics = Statistics::new_unknown(&self.scan.schema);
        let limit = self.scan.limit.unwrap_or(usize::MAX);
        if args.partition().is_none() {
            statistics.num_rows = match self.scan.rows {
                RowCount::Exact(rows) => Precision::Exact(rows.min(limit)),
                RowCount::About(rows) => Precision::Inexact(rows.min(limit)),
            };
        }
        Ok(Arc::new(statistics))
    }
}

/// What a partition reads.
struct ScanStream {
    scan: Arc<Scan>,
    partition: usize,
    /// What is still to be read.
    ranges: VecDeque<KeyRange>,
    sink: Box<dyn Sink>,
    left: usize,
    metrics: BaselineMetrics,
}

impl ScanStream {
    /// Return the next batch, if this step comes to one.
    fn step(&mut self) -> Result<Option<RecordBatch>> {
        if !self.sink.is_full() {
            self.read()?;
        }
        let Some(batch) = self.sink.next_batch()? else {
            return Ok(None);
        };
        let batch = if batch.num_rows() > self.left {
            batch.slice(0, self.left)
        } else {
            batch
        };
        self.left -= batch.num_rows();
        Ok((batch.num_rows() > 0).then_some(batch))
    }

    /// Read on until there is enough for a batch, or others are to have their turn.
    fn read(&mut self) -> Result<()> {
        let Self {
            scan,
            partition,
            ranges,
            sink,
            ..
        } = self;
        let (mut rows, mut bytes) = (0, 0);
        let mut problem = None;
        let looked = scan.snapshot.view.with(*partition, |access| {
            while let Some((start, end)) = ranges.front_mut() {
                let mut stopped_at = None;
                access.visit((start, end), |row| {
                    rows += 1;
                    match sink.take(access, &row) {
                        Ok(looked_at) => bytes += looked_at as u64,
                        Err(error) => {
                            problem = Some(error);
                            return ControlFlow::Break(());
                        }
                    }
                    if sink.is_full() || rows >= STEP_ROWS || bytes >= STEP_BYTES {
                        stopped_at = Some(next(row.key));
                        return ControlFlow::Break(());
                    }
                    ControlFlow::Continue(())
                })?;
                match stopped_at {
                    Some(key) => {
                        *start = key;
                        break;
                    }
                    None if problem.is_some() => break,
                    None => drop(ranges.pop_front()),
                }
            }
            Ok(())
        });
        scan.snapshot.count(rows, bytes);
        looked.map_err(store_error)?;
        problem.map_or(Ok(()), Err)
    }

    fn is_done(&self) -> bool {
        self.left == 0 || (self.ranges.is_empty() && !self.sink.is_full())
    }
}

/// What a query fails with for an error of the store.
pub(crate) fn store_error(error: StoreError) -> DataFusionError {
    match error {
        StoreError::Closed => DataFusionError::Execution("the snapshot is closed".into()),
        other => DataFusionError::Execution(other.to_string()),
    }
}

impl Stream for ScanStream {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let timer = this.metrics.elapsed_compute().clone();
        let _timing = timer.timer();
        if this.is_done() {
            return Poll::Ready(None);
        }
        let poll = match this.step() {
            Ok(Some(batch)) => Poll::Ready(Some(Ok(batch))),
            Ok(None) if this.is_done() => Poll::Ready(None),
            Ok(None) => {
                context.waker().wake_by_ref();
                Poll::Pending
            }
            Err(error) => {
                this.left = 0;
                Poll::Ready(Some(Err(error)))
            }
        };
        this.metrics.record_poll(poll)
    }
}

impl RecordBatchStream for ScanStream {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.scan.schema)
    }
}
