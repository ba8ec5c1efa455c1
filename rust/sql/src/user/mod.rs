//! Tables of users: the keys under a prefix, whose values are JSON, CSV, Arrow or Parquet, as typed columns.

mod decode;
mod definition;
mod ipc;
mod objects;
mod pool;
mod types;

use std::collections::VecDeque;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Int64Array, RecordBatch, StringArray, new_null_array};
use arrow::compute::{CastOptions, cast_with_options, concat_batches};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use bytes::Bytes;
use datafusion_common::Result;
use jobs_kv::read::Row;
use jobs_store::view::Access;

use self::decode::{Decoder, Rows};
pub(crate) use self::definition::Definition;
use self::definition::{Format, OnError, Origin, Pattern};
use self::objects::Objects;
use self::pool::Pool;
use crate::filter::{Cell, CellType, Cells, Literal, Predicate};
use crate::ranges::Ranges;
use crate::source::{Place, Sink, Source, Wanted, bad_row, batch_of, signed, text};
use crate::strings::Strings;

/// Values that are gathered before they are decoded: of those that are a row each, and of others.
const GATHERED_BYTES: usize = 4 << 20;
const GATHERED_VALUES: usize = 64;

#[derive(Debug)]
pub(crate) struct User {
    definition: Arc<Definition>,
    schema: SchemaRef,
}

impl User {
    pub fn new(definition: Definition) -> Self {
        let fields: Vec<Field> = definition
            .columns
            .iter()
            .map(|column| Field::new(&column.name, column.data_type.clone(), column.nullable))
            .collect();
        Self {
            definition: Arc::new(definition),
            schema: Arc::new(Schema::new(fields)),
        }
    }

    fn column_from(&self, wanted: impl Fn(&Origin) -> bool) -> Option<usize> {
        self.definition.columns.iter().position(|column| wanted(&column.origin))
    }
}

impl Source for User {
    fn name(&self) -> &'static str {
        "UserTableScan"
    }

    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn cell_type(&self, column: usize) -> Option<CellType> {
        let column = self.definition.columns.get(column)?;
        match (&column.origin, &column.data_type) {
            (Origin::Key | Origin::Capture(_), DataType::Utf8) => Some(CellType::Text),
            (Origin::Revision, _) => Some(CellType::Int),
            _ => None,
        }
    }

    fn place(&self, predicate: &Predicate) -> Place {
        let definition = &self.definition;
        let mut ranges = Ranges::prefix(definition.prefix.as_bytes());
        if let Some(keys) = self
            .column_from(|origin| *origin == Origin::Key)
            .and_then(|column| predicate.ranges(column, &Literal::text))
        {
            ranges = ranges.intersect(&keys);
        }
        let first = self.column_from(|origin| *origin == Origin::Capture(0));
        if let (Some(pattern), Some(first)) = (&definition.pattern, first)
            && let Some(values) = predicate.ranges(first, &Literal::text)
            && self.cell_type(first).is_some()
        {
            let before = [definition.prefix.as_bytes(), pattern.before.as_bytes()].concat();
            let after = pattern.after[0].as_bytes();
            ranges = ranges.intersect(&values.under_with_rest(&before, after));
        }
        Place::Keys(ranges)
    }

    fn is_row_per_key(&self) -> bool {
        self.definition.format == Format::Json
            && self.definition.on_error != OnError::Skip
            && self.definition.pattern.is_none()
    }

    fn sink(&self, wanted: &Wanted) -> Result<Box<dyn Sink>> {
        let schema = Arc::new(self.schema.project(&wanted.columns)?);
        let on_error = self.definition.on_error;
        // Whether a value is a row must not depend on the columns that a query wants.
        let is_needed = |column: &usize| on_error != OnError::Error || wanted.columns.contains(column);
        let in_value: Vec<usize> = (0..self.definition.columns.len())
            .filter(|&column| self.definition.columns[column].origin == Origin::Value)
            .filter(is_needed)
            .collect();
        let is_untouched = in_value.is_empty() && self.definition.format == Format::Json && on_error == OnError::Error;
        let decoder = Decoder::new(&self.definition, &in_value);
        let is_object = self.definition.format == Format::Json;
        Ok(Box::new(UserSink {
            objects: Objects::new(decoder.schema()).filter(|_| is_object),
            decoder,
            decoded: in_value,
            definition: Arc::clone(&self.definition),
            schema,
            wanted: wanted.clone(),
            is_untouched,
            lot: Lot::default(),
            pool: Pool::default(),
            gathered: VecDeque::new(),
            gathered_bytes: 0,
            is_draining: false,
            current: None,
        }))
    }
}

/// Where the columns of some rows come from that are not in values.
trait Keys {
    fn key(&self, row: usize) -> &[u8];
    fn revision(&self, row: usize) -> i64;
}

/// A value of any number of rows, as it stands in the store.
struct Gathered {
    key: Vec<u8>,
    revision: i64,
    value: Bytes,
}

impl Keys for Gathered {
    fn key(&self, _: usize) -> &[u8] {
        &self.key
    }

    fn revision(&self, _: usize) -> i64 {
        self.revision
    }
}

/// Values that are a row each, behind one another.
#[derive(Default)]
struct Lot {
    keys: Vec<u8>,
    values: Vec<u8>,
    /// Where the key and the value of each end, and its revision.
    rows: Vec<(usize, usize, i64)>,
}

impl Lot {
    fn push(&mut self, key: &[u8], value: &[u8], revision: i64) {
        self.keys.extend_from_slice(key);
        self.values.extend_from_slice(value);
        self.rows.push((self.keys.len(), self.values.len(), revision));
    }

    fn clear(&mut self) {
        self.keys.clear();
        self.values.clear();
        self.rows.clear();
    }

    /// Where the key and the value of a row begin.
    fn start(&self, row: usize) -> (usize, usize) {
        match row.checked_sub(1) {
            Some(before) => (self.rows[before].0, self.rows[before].1),
            None => (0, 0),
        }
    }

    fn value(&self, row: usize) -> &[u8] {
        &self.values[self.start(row).1..self.rows[row].1]
    }
}

impl Keys for Lot {
    fn key(&self, row: usize) -> &[u8] {
        &self.keys[self.start(row).0..self.rows[row].0]
    }

    fn revision(&self, row: usize) -> i64 {
        self.rows[row].2
    }
}

/// Some rows of others.
struct Chosen<'a>(&'a Lot, Vec<usize>);

impl Keys for Chosen<'_> {
    fn key(&self, row: usize) -> &[u8] {
        self.0.key(self.1[row])
    }

    fn revision(&self, row: usize) -> i64 {
        self.0.revision(self.1[row])
    }
}

struct UserCells<'a> {
    definition: &'a Definition,
    key: &'a [u8],
    captures: &'a [&'a str],
    revision: i64,
}

impl Cells for UserCells<'_> {
    fn cell(&self, column: usize) -> Cell<'_> {
        match self.definition.columns[column].origin {
            Origin::Key => Cell::Text(self.key),
            Origin::Capture(number) => self
                .captures
                .get(number)
                .map_or(Cell::Null, |text| Cell::Text(text.as_bytes())),
            Origin::Revision => Cell::Int(self.revision),
            Origin::Value => Cell::Null,
        }
    }
}

struct UserSink {
    definition: Arc<Definition>,
    decoder: Decoder,
    /// The same for most objects, and faster.
    objects: Option<Objects>,
    /// The columns that they give.
    decoded: Vec<usize>,
    schema: SchemaRef,
    wanted: Wanted,
    /// Values are not looked at.
    is_untouched: bool,
    /// Rows that are to be decoded together.
    lot: Lot,
    pool: Pool,
    gathered: VecDeque<Gathered>,
    gathered_bytes: usize,
    /// What is gathered is being decoded.
    is_draining: bool,
    /// Rows that are left of a value.
    current: Option<(Gathered, Rows)>,
}

impl Sink for UserSink {
    fn take(&mut self, _: &Access<'_>, row: &Row<'_>) -> Result<usize> {
        let key = row.key;
        let revision = signed(row.key, row.mod_revision)?;
        let Some(captures) = self.definition.captures(key)? else {
            return Ok(key.len());
        };
        let cells = UserCells {
            definition: &self.definition,
            key,
            captures: &captures,
            revision,
        };
        if !self.wanted.predicate.holds(&cells) {
            return Ok(key.len());
        }
        let value = if self.is_untouched { &[] } else { row.value };
        self.gathered_bytes += key.len() + value.len();
        match self.definition.format {
            Format::Json => self.lot.push(key, value, revision),
            _ => self.gathered.push_back(Gathered {
                key: key.to_vec(),
                revision,
                value: self.pool.copy(value),
            }),
        }
        Ok(key.len() + value.len())
    }

    fn is_full(&self) -> bool {
        self.is_draining
            || self.lot.rows.len() >= self.wanted.batch_rows
            || self.gathered.len() >= GATHERED_VALUES
            || self.gathered_bytes >= GATHERED_BYTES
    }

    fn next_batch(&mut self) -> Result<Option<RecordBatch>> {
        self.is_draining = true;
        let batch = match self.definition.format {
            Format::Json => self.next_rows()?,
            _ => self.next_part()?,
        };
        if batch.is_none() {
            self.is_draining = false;
            self.gathered_bytes = 0;
        }
        Ok(batch)
    }
}

impl UserSink {
    /// The rows of values that are one row each.
    fn next_rows(&mut self) -> Result<Option<RecordBatch>> {
        if self.lot.rows.is_empty() {
            return Ok(None);
        }
        let lot = std::mem::take(&mut self.lot);
        let batch = self.decode_lot(&lot)?;
        self.lot = lot;
        self.lot.clear();
        Ok(Some(batch))
    }

    fn decode_lot(&mut self, lot: &Lot) -> Result<RecordBatch> {
        let count = lot.rows.len();
        if self.is_untouched {
            return self.finish(lot, &[], count);
        }
        if let Some(objects) = &mut self.objects
            // Each is looked at by its bytes, and may hold none that are no text even where nothing of it is wanted.
            && (lot.values.is_ascii() || std::str::from_utf8(&lot.values).is_ok())
            && let Some(columns) = objects.decode((0..count).map(|row| lot.value(row)))
        {
            return self.finish(lot, &columns, count);
        }
        let values: Vec<&[u8]> = (0..count).map(|row| lot.value(row)).collect();
        if let Ok(columns) = self.decoder.rows(&values) {
            return self.finish(lot, &columns, count);
        }
        // One of them is bad: each for itself.
        let (mut good, mut parts) = (Vec::new(), Vec::new());
        for (row, value) in values.into_iter().enumerate() {
            match (self.decoder.rows(&[value]), self.definition.on_error) {
                (Ok(columns), _) => {
                    parts.push(self.decoder.batch(columns, 1)?);
                    good.push(row);
                }
                (Err(problem), OnError::Error) => return Err(bad_row(lot.key(row), &problem)),
                (Err(_), OnError::Skip) => {}
                (Err(_), OnError::Null) => {
                    parts.push(self.decoder.batch(self.decoder.nulls(1), 1)?);
                    good.push(row);
                }
            }
        }
        let columns = concat_batches(self.decoder.schema(), &parts)?.columns().to_vec();
        let count = good.len();
        self.finish(&Chosen(lot, good), &columns, count)
    }

    /// Some rows of values that have any number of them.
    fn next_part(&mut self) -> Result<Option<RecordBatch>> {
        let mut parts: Vec<RecordBatch> = Vec::new();
        let mut rows = 0;
        while rows < self.wanted.batch_rows {
            if self.current.is_none() {
                let Some(mut value) = self.gathered.pop_front() else {
                    break;
                };
                let data = std::mem::take(&mut value.value);
                match (
                    self.decoder
                        .begin(data, self.wanted.batch_rows, self.definition.on_error),
                    self.definition.on_error,
                ) {
                    (Ok(rows), _) => self.current = Some((value, rows)),
                    (Err(problem), OnError::Error) => return Err(bad_row(&value.key, &problem)),
                    (Err(_), OnError::Skip) => continue,
                    (Err(_), OnError::Null) => {
                        let nulls = self.decoder.nulls(1);
                        parts.push(self.finish(&value, &nulls, 1)?);
                        rows += 1;
                        continue;
                    }
                }
            }
            let Some((value, left)) = &mut self.current else { break };
            match left.next() {
                None => self.current = None,
                Some(Err(problem)) => return Err(bad_row(&value.key, &problem)),
                Some(Ok((columns, count))) => {
                    rows += count;
                    let decoded = (&self.decoded[..], &columns[..]);
                    let wanted = &self.wanted.columns;
                    parts.push(finish(&self.definition, &self.schema, wanted, &*value, decoded, count)?);
                }
            }
        }
        match parts.len() {
            0 => Ok(None),
            1 => Ok(parts.pop()),
            _ => Ok(Some(concat_batches(&self.schema, &parts)?)),
        }
    }

    fn finish(&self, keys: &dyn Keys, columns: &[ArrayRef], count: usize) -> Result<RecordBatch> {
        let decoded = (&self.decoded[..], columns);
        finish(
            &self.definition,
            &self.schema,
            &self.wanted.columns,
            keys,
            decoded,
            count,
        )
    }
}

/// Put the columns of values, and those of keys, in the order that is wanted.
fn finish(
    definition: &Definition,
    schema: &SchemaRef,
    wanted: &[usize],
    keys: &dyn Keys,
    (decoded, arrays): (&[usize], &[ArrayRef]),
    count: usize,
) -> Result<RecordBatch> {
    let mut columns: Vec<ArrayRef> = Vec::with_capacity(wanted.len());
    for &number in wanted {
        let column = &definition.columns[number];
        columns.push(match column.origin {
            Origin::Value => match decoded.iter().position(|&known| known == number) {
                Some(place) => Arc::clone(&arrays[place]),
                None => new_null_array(&column.data_type, count),
            },
            Origin::Revision => Arc::new(Int64Array::from_iter_values((0..count).map(|row| keys.revision(row)))),
            Origin::Key => {
                let mut strings = Strings::default();
                (0..count).for_each(|row| strings.push(keys.key(row)));
                Arc::new(strings.take_keys()?)
            }
            Origin::Capture(number) => {
                let texts = (0..count).map(|row| {
                    let captures = definition.captures(keys.key(row))?;
                    Ok(captures.and_then(|captures| captures.get(number).copied().map(str::to_owned)))
                });
                let texts: ArrayRef = Arc::new(texts.collect::<Result<StringArray>>()?);
                captured(keys, &texts, &column.data_type)?
            }
        });
    }
    batch_of(schema, columns, count)
}

/// Parts of keys as values of a type.
fn captured(keys: &dyn Keys, texts: &ArrayRef, wanted: &DataType) -> Result<ArrayRef> {
    if texts.data_type() == wanted {
        return Ok(Arc::clone(texts));
    }
    let strict = CastOptions {
        safe: false,
        ..CastOptions::default()
    };
    cast_with_options(texts, wanted, &strict).map_err(|problem| {
        let is_bad = |row: &usize| cast_with_options(&texts.slice(*row, 1), wanted, &strict).is_err();
        let row = (0..texts.len()).find(is_bad).unwrap_or(0);
        bad_row(keys.key(row), &problem)
    })
}

impl Definition {
    /// The parts of a key that the pattern names; `None` when the key is not of the table.
    fn captures<'a>(&self, key: &'a [u8]) -> Result<Option<Vec<&'a str>>> {
        let Some(pattern) = &self.pattern else {
            return Ok(Some(Vec::new()));
        };
        let rest = text(key, key)?.strip_prefix(&self.prefix);
        Ok(rest.and_then(|rest| pattern.captures(rest)))
    }
}

impl Pattern {
    fn captures<'a>(&self, rest: &'a str) -> Option<Vec<&'a str>> {
        let mut rest = rest.strip_prefix(&self.before)?;
        let mut found = Vec::with_capacity(self.after.len());
        for (number, after) in self.after.iter().enumerate() {
            let is_last = number + 1 == self.after.len();
            let end = match (is_last, after.is_empty()) {
                (true, true) => rest.len(),
                (true, false) => rest
                    .len()
                    .checked_sub(after.len())
                    .filter(|&end| rest.ends_with(after) && end > 0)?,
                (false, _) => rest.find(after)?,
            };
            if end == 0 {
                return None;
            }
            found.push(&rest[..end]);
            rest = &rest[end + after.len()..];
        }
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_taken_apart() {
        let pattern = Pattern::parse("host={host}/{day}.json").unwrap().0;
        assert_eq!(
            pattern.captures("host=a/2026-01-01.json"),
            Some(vec!["a", "2026-01-01"])
        );
        assert_eq!(pattern.captures("host=a/b/c.json"), Some(vec!["a", "b/c"]));
        assert_eq!(pattern.captures("host=/x.json"), None);
        assert_eq!(pattern.captures("a/x.json"), None);
        assert_eq!(pattern.captures("host=a/.json"), None);
        assert_eq!(pattern.captures("host=a/x"), None);
    }
}
