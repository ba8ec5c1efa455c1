//! Tables of the records that the node keeps: one byte of version, then a MessagePack array with a field at each index.
//!
//! The layouts follow `python/jobs/records.py`; a test there compares the names of all fields. Fields are only ever
//! added at the end of a record, so an old record lacks the last ones: their columns have the default.

mod columns;
mod layout;

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{Field, Schema, SchemaRef};
use datafusion_common::Result;
use jobs_kv::read::Row;
use jobs_store::view::Access;

use self::columns::Builder;
use self::layout::{Column, From, Kind, Visible, array_id, task_index};
pub(crate) use self::layout::{LAYOUTS, Layout};
use crate::filter::{Cell, CellType, Cells, Literal, Predicate};
use crate::msgpack::{self, Damaged, Reader, Value};
use crate::ranges::Ranges;
use crate::source::{Place, Sink, Source, Wanted, bad_row, batch_of, text};

const RECORD_VERSION: u8 = 1;
/// Bytes that are gathered for a batch at most, apart from its last row.
const BATCH_BYTES: usize = 4 << 20;
/// How long the id of a job is.
const ID_BYTES: usize = 36;
const STATES: &[u8] = b"/jobs/state/";
const SPECS: &[u8] = b"/jobs/spec/";
const TEMPLATES: &[u8] = b"/schedules/job/";
const DRAINED: &[u8] = b"/drained/";
/// Where jobs stand that have not ended.
const WAIT: [&[u8]; 3] = [b"/queue/", b"/waiting/", b"/arrays/open/"];
const RUN: [&[u8]; 2] = [b"/running/", b"/arrays/open/"];

/// The records of a kind that a user sees, or with no owner an administrator.
#[derive(Debug)]
pub(crate) struct Records {
    layout: &'static Layout,
    schema: SchemaRef,
    owner: Option<u32>,
}

impl Records {
    pub fn new(layout: &'static Layout, owner: Option<u32>) -> Self {
        let fields: Vec<Field> = layout
            .columns
            .iter()
            .map(|column| Field::new(column.name, column.kind.data_type(), column.nullable))
            .collect();
        Self {
            layout,
            schema: Arc::new(Schema::new(fields)),
            owner,
        }
    }

    fn column(&self, name: &str) -> Option<usize> {
        self.layout.columns.iter().position(|column| column.name == name)
    }

    /// Where a job stands that is in one of the states that the condition leaves; `None` where it may have ended.
    fn index(&self, predicate: &Predicate) -> Option<Ranges> {
        let states = predicate.values(self.column("state")?)?;
        let mut prefixes = BTreeSet::new();
        for state in states {
            match &state {
                Literal::Text(state) if state == "pending" => prefixes.extend(WAIT),
                Literal::Text(state) if state == "running" => prefixes.extend(RUN),
                _ => return None,
            }
        }
        Some(Ranges::union(prefixes.into_iter().map(Ranges::prefix)))
    }
}

/// A time as the keys of the audit trail have it.
fn key_time(literal: &Literal) -> Option<Vec<u8>> {
    const LAST: i128 = 999_999_999_999_999;
    match literal {
        Literal::Int(at_ms) => Some(format!("{:015}", at_ms.clamp(&0, &LAST)).into_bytes()),
        _ => None,
    }
}

impl Source for Records {
    fn name(&self) -> &'static str {
        self.layout.scan
    }

    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn cell_type(&self, column: usize) -> Option<CellType> {
        let column = self.layout.columns.get(column)?;
        match (column.from, column.kind) {
            (From::Payload | From::Template | From::Drained, _) => None,
            (_, Kind::Text) => Some(CellType::Text),
            (_, Kind::Int) => Some(CellType::Int),
            (_, Kind::Bool) => Some(CellType::Bool),
            (_, Kind::Time) => Some(CellType::Time),
            _ => None,
        }
    }

    fn place(&self, predicate: &Predicate) -> Place {
        let prefix = self.layout.prefix;
        let Some(column) = self.layout.key_column.and_then(|name| self.column(name)) else {
            return Place::Keys(Ranges::prefix(prefix));
        };
        let found = match self.layout.columns[column].kind {
            Kind::Time => predicate.ranges(column, &key_time),
            _ => predicate.ranges(column, &Literal::text),
        };
        match found {
            Some(ranges) if self.layout.key_has_rest => Place::Keys(ranges.under_with_rest(prefix, b"/")),
            Some(ranges) => Place::Keys(ranges.under(prefix)),
            None => match (prefix == STATES).then(|| self.index(predicate)).flatten() {
                Some(index) => Place::Index {
                    index,
                    prefix: prefix.to_vec(),
                    length: ID_BYTES,
                },
                None => Place::Keys(Ranges::prefix(prefix)),
            },
        }
    }

    fn is_row_per_key(&self) -> bool {
        self.owner.is_none() || self.layout.visible == Visible::Everybody
    }

    fn sink(&self, wanted: &Wanted) -> Result<Box<dyn Sink>> {
        let columns = self.layout.columns;
        let mut filtered = Vec::new();
        wanted.predicate.columns(&mut filtered);
        let fields = wanted
            .columns
            .iter()
            .chain(&filtered)
            .filter_map(|&column| columns[column].last_field())
            .chain(self.owner.and_then(|_| self.layout.visible.last_field()))
            .max();
        Ok(Box::new(RecordSink {
            layout: self.layout,
            owner: self.owner,
            schema: Arc::new(self.schema.project(&wanted.columns)?),
            predicate: wanted.predicate.clone(),
            columns: wanted
                .columns
                .iter()
                .map(|&column| (&columns[column], Builder::of(columns[column].kind)))
                .collect(),
            wanted_fields: fields.map_or(0, |last| last + 1),
            fields: Vec::new(),
            batch_rows: wanted.batch_rows,
            rows: 0,
            bytes: 0,
            last_owner: None,
        }))
    }
}

/// A record, cut into its fields as far as they are needed.
#[derive(Clone, Copy)]
struct Record<'a> {
    layout: &'static Layout,
    key: &'a [u8],
    row: &'a Row<'a>,
    fields: &'a [Range<usize>],
    /// Why a condition could not be looked into.
    problem: &'a std::cell::Cell<Option<Damaged>>,
}

impl<'a> Record<'a> {
    fn field(&self, index: usize) -> Option<&'a [u8]> {
        self.row.value.get(self.fields.get(index)?.clone())
    }

    /// What comes behind the prefix in the key.
    fn name(&self) -> &'a [u8] {
        self.key.get(self.layout.prefix.len()..).unwrap_or_default()
    }

    /// The id that a key of a job's begins with, or ends with.
    fn job(&self) -> std::result::Result<&'a str, Damaged> {
        let id = self.name().get(..ID_BYTES).ok_or(Damaged("the key names no job"))?;
        std::str::from_utf8(id).map_err(|_| Damaged("the key names no job"))
    }

    fn is_task(&self) -> std::result::Result<bool, Damaged> {
        Ok(match self.field(layout::IS_TASK) {
            Some(data) => Reader::new(data).value()? == Value::Bool(true),
            None => false,
        })
    }

    /// The value that a column is made of; `None` where there is none. Of what stands elsewhere: also `None`.
    fn value(&self, column: &Column) -> std::result::Result<Option<Value<'a>>, Damaged> {
        Ok(match column.from {
            From::Name => Some(Value::Text(
                std::str::from_utf8(self.name()).map_err(|_| Damaged("the key is not UTF-8"))?,
            )),
            From::Job => Some(Value::Text(self.job()?)),
            From::Attempt => {
                let digits = self.name().get(ID_BYTES + 1..).unwrap_or_default();
                let number = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
                Some(Value::Int(number.ok_or(Damaged("the key names no attempt"))?))
            }
            From::Revision => Some(Value::Int(self.row.mod_revision.try_into().unwrap_or(i64::MAX))),
            From::TaskIndex => {
                if self.is_task()? {
                    let index = task_index(self.job()?).ok_or(Damaged("the key names no task"))?;
                    Some(Value::Int(index))
                } else {
                    None
                }
            }
            From::Either(first, second) => match self.at(first)? {
                Some(value) => Some(value),
                None => self.at(second)?,
            },
            From::At(path) => self.at(path)?,
            From::Payload | From::Template | From::Drained | From::ArrayId => None,
        })
    }

    fn at(&self, path: layout::Path) -> std::result::Result<Option<Value<'a>>, Damaged> {
        let Some(data) = self.data(path)? else {
            return Ok(path.default);
        };
        Ok(match Reader::new(data).value()? {
            Value::Nil => None,
            value => Some(value),
        })
    }

    fn data(&self, path: layout::Path) -> std::result::Result<Option<&'a [u8]>, Damaged> {
        let mut data = self.field(path.field);
        for step in path.steps {
            data = match (data, step) {
                (None, _) => None,
                (Some(data), layout::Step::Item(index)) => msgpack::item(data, *index)?,
                (Some(data), layout::Step::Member(name)) => msgpack::member(data, name)?,
            };
        }
        Ok(data)
    }
}

impl Cells for Record<'_> {
    fn cell(&self, column: usize) -> Cell<'_> {
        let column = &self.layout.columns[column];
        match self.value(column) {
            Ok(None) => Cell::Null,
            Ok(Some(Value::Text(text))) if column.kind == Kind::Text => Cell::Text(text.as_bytes()),
            Ok(Some(Value::Int(number))) if matches!(column.kind, Kind::Int | Kind::Time) => Cell::Int(number),
            Ok(Some(Value::Bool(value))) if column.kind == Kind::Bool => Cell::Bool(value),
            Ok(Some(_)) => {
                self.problem.set(Some(columns::OTHER_TYPE));
                Cell::Null
            }
            Err(problem) => {
                self.problem.set(Some(problem));
                Cell::Null
            }
        }
    }
}

struct RecordSink {
    layout: &'static Layout,
    owner: Option<u32>,
    schema: SchemaRef,
    predicate: Predicate,
    columns: Vec<(&'static Column, Builder)>,
    /// Fields of each record that are needed, from the first on.
    wanted_fields: usize,
    fields: Vec<Range<usize>>,
    batch_rows: usize,
    rows: usize,
    bytes: usize,
    /// A job, and its owner: results of one job stand beside each other.
    last_owner: Option<(Vec<u8>, Option<i64>)>,
}

impl RecordSink {
    /// Cut a record into fields; return how many of its bytes were looked at.
    fn cut(&mut self, row: &Row<'_>) -> Result<usize> {
        let damaged = |problem: Damaged| bad_row(row.key, &problem);
        let (&version, body) = row
            .value
            .split_first()
            .ok_or_else(|| damaged(Damaged("there is no record")))?;
        if version != RECORD_VERSION {
            return Err(bad_row(
                row.key,
                &format_args!("the record has version {version}; this build knows {RECORD_VERSION}"),
            ));
        }
        let mut reader = Reader::new(body);
        let Value::Array(length) = reader.value().map_err(damaged)? else {
            return Err(damaged(Damaged("the record is no array")));
        };
        self.fields.clear();
        for _ in 0..length.min(self.wanted_fields) {
            let start = row.value.len() - reader.left();
            reader.skip().map_err(damaged)?;
            self.fields.push(start..row.value.len() - reader.left());
        }
        Ok(row.value.len() - reader.left())
    }

    /// Whether the API would show a record to the reader.
    fn is_visible(&mut self, access: &Access<'_>, row: &Row<'_>) -> Result<bool> {
        let Some(owner) = self.owner.map(i64::from) else {
            return Ok(true);
        };
        let is_theirs = |field: Option<&[u8]>| match field.map(|data| Reader::new(data).value()) {
            Some(Err(problem)) => Err(bad_row(row.key, &problem)),
            Some(Ok(value)) => Ok(value == Value::Int(owner)),
            None => Ok(false),
        };
        let field = |index: usize| {
            self.fields
                .get(index)
                .and_then(|place: &Range<usize>| row.value.get(place.clone()))
        };
        match self.layout.visible {
            Visible::Everybody => Ok(true),
            Visible::Owner(index) => is_theirs(field(index)),
            Visible::Either(one, other) => Ok(is_theirs(field(one))? || is_theirs(field(other))?),
            Visible::OwnerOfJob => {
                let job = row
                    .key
                    .get(self.layout.prefix.len()..)
                    .and_then(|name| name.get(..ID_BYTES));
                let job = job.ok_or_else(|| bad_row(row.key, &"the key names no job"))?;
                Ok(self.owner_of(access, job)? == Some(owner))
            }
        }
    }

    fn owner_of(&mut self, access: &Access<'_>, job: &[u8]) -> Result<Option<i64>> {
        if let Some((known, owner)) = &self.last_owner
            && known == job
        {
            return Ok(*owner);
        }
        let key = [STATES, job].concat();
        let found = access.get(&key).map_err(|error| bad_row(&key, &error))?;
        let owner = match found {
            None => None,
            Some(found) => {
                let body = found.value.get(1..).unwrap_or_default();
                let field = msgpack::item(body, layout::OWNER).map_err(|problem| bad_row(&key, &problem))?;
                match field.map(|data| Reader::new(data).value()) {
                    Some(Ok(Value::Int(owner))) => Some(owner),
                    _ => return Err(bad_row(&key, &"the record names no owner")),
                }
            }
        };
        self.last_owner = Some((job.to_vec(), owner));
        Ok(owner)
    }
}

/// What a column takes from another key than its row's, as text; `None` where that is not there.
fn from_elsewhere(column: &Column, access: &Access<'_>, record: &Record<'_>) -> Result<Option<String>> {
    let damaged = |problem: Damaged| bad_row(record.key, &problem);
    let key = match column.from {
        From::Payload => {
            let job = record.job().map_err(damaged)?;
            let job = if record.is_task().map_err(damaged)? {
                array_id(job)
            } else {
                job.to_owned()
            };
            [SPECS, job.as_bytes()].concat()
        }
        _ => [TEMPLATES, record.name()].concat(),
    };
    let Some(found) = access.get(&key).map_err(|error| bad_row(&key, &error))? else {
        return Ok(None);
    };
    let spec = match found.value.split_first() {
        Some((&RECORD_VERSION, spec)) => text(&key, spec)?,
        _ => {
            return Err(bad_row(
                &key,
                &"the submission is of a version that this build does not know",
            ));
        }
    };
    if let From::Template = column.from {
        return Ok(Some(spec.to_owned()));
    }
    let parsed: layout::Spec<'_> = serde_json::from_str(spec).map_err(|error| bad_row(&key, &error))?;
    Ok(Some(parsed.payload.get().to_owned()))
}

impl Sink for RecordSink {
    fn take(&mut self, access: &Access<'_>, row: &Row<'_>) -> Result<usize> {
        let mut looked_at = row.key.len() + self.cut(row)?;
        if !self.is_visible(access, row)? {
            return Ok(looked_at);
        }
        let problem = std::cell::Cell::new(None);
        let record = Record {
            layout: self.layout,
            key: row.key,
            row,
            fields: &self.fields,
            problem: &problem,
        };
        let damaged = |problem: Damaged| bad_row(row.key, &problem);
        let holds = self.predicate.holds(&record);
        if let Some(problem) = problem.take() {
            return Err(damaged(problem));
        }
        if !holds {
            return Ok(looked_at);
        }
        for (column, builder) in &mut self.columns {
            self.bytes += match column.from {
                From::Payload | From::Template => {
                    let found = from_elsewhere(column, access, &record)?;
                    let length = found.as_ref().map_or(0, String::len);
                    looked_at += length;
                    builder.append_text(found.as_deref());
                    length
                }
                From::Drained => {
                    let key = [DRAINED, record.name()].concat();
                    let found = access.get(&key).map_err(|error| bad_row(&key, &error))?;
                    builder.append_bool(found.is_some());
                    1
                }
                From::ArrayId => {
                    let is_task = record.is_task().map_err(damaged)?;
                    let array = is_task
                        .then(|| record.job().map(array_id))
                        .transpose()
                        .map_err(damaged)?;
                    builder.append_text(array.as_deref());
                    ID_BYTES
                }
                From::At(path) if column.kind.is_nested() => builder
                    .append_nested(record.data(path).map_err(damaged)?)
                    .map_err(damaged)?,
                _ => {
                    let value = record.value(column).map_err(damaged)?;
                    if value.is_none() && !column.nullable {
                        return Err(bad_row(row.key, &format_args!("the record has no {}", column.name)));
                    }
                    builder.append(value).map_err(damaged)?
                }
            };
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
        let columns = self.columns.iter_mut().map(|(_, builder)| builder.finish()).collect();
        let rows = std::mem::take(&mut self.rows);
        self.bytes = 0;
        batch_of(&self.schema, columns, rows).map(Some)
    }
}

/// A number as a column holds it.
fn column_number(value: Value<'_>) -> std::result::Result<i64, Damaged> {
    match value {
        Value::Int(number) => Ok(number),
        Value::Large(_) => Err(Damaged("a number is too large")),
        _ => Err(Damaged("a field that is to be a number is none")),
    }
}
