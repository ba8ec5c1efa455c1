//! Builds the columns of records.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanBuilder, Float64Builder, Int64Builder, ListBuilder, MapBuilder, MapFieldNames, StringBuilder,
    TimestampMillisecondBuilder,
};
use arrow::datatypes::{DataType, Field, Fields, TimeUnit};

use super::column_number;
use super::layout::Kind;
use crate::msgpack::{Damaged, Reader, Value, to_json};

const UTC: &str = "UTC";

pub(super) const OTHER_TYPE: Damaged = Damaged("a field of the record is of another type than it should be");

type Read<T> = Result<T, Damaged>;

fn time() -> DataType {
    DataType::Timestamp(TimeUnit::Millisecond, Some(UTC.into()))
}

fn map_of(values: DataType) -> DataType {
    let entry = Fields::from(vec![
        Field::new("key", DataType::Utf8, false),
        Field::new("value", values, true),
    ]);
    DataType::Map(Arc::new(Field::new("entries", DataType::Struct(entry), false)), false)
}

impl Kind {
    pub fn data_type(self) -> DataType {
        match self {
            Self::Text | Self::Json => DataType::Utf8,
            Self::Int => DataType::Int64,
            Self::Float => DataType::Float64,
            Self::Bool => DataType::Boolean,
            Self::Time => time(),
            Self::Texts => map_of(DataType::Utf8),
            Self::Counts => map_of(DataType::Int64),
            Self::Times => DataType::List(Arc::new(Field::new("item", time(), true))),
        }
    }

    /// Made of more than one value of the record.
    pub fn is_nested(self) -> bool {
        matches!(self, Self::Json | Self::Texts | Self::Counts | Self::Times)
    }
}

pub(super) enum Builder {
    Text(StringBuilder),
    Int(Int64Builder),
    Float(Float64Builder),
    Bool(BooleanBuilder),
    Time(TimestampMillisecondBuilder),
    Json(StringBuilder),
    Texts(MapBuilder<StringBuilder, StringBuilder>),
    Counts(MapBuilder<StringBuilder, Int64Builder>),
    Times(ListBuilder<TimestampMillisecondBuilder>),
}

fn map_names() -> MapFieldNames {
    MapFieldNames {
        entry: "entries".into(),
        key: "key".into(),
        value: "value".into(),
    }
}

fn times() -> TimestampMillisecondBuilder {
    TimestampMillisecondBuilder::new().with_timezone(UTC)
}

impl Builder {
    pub fn of(kind: Kind) -> Self {
        match kind {
            Kind::Text => Self::Text(StringBuilder::new()),
            Kind::Int => Self::Int(Int64Builder::new()),
            Kind::Float => Self::Float(Float64Builder::new()),
            Kind::Bool => Self::Bool(BooleanBuilder::new()),
            Kind::Time => Self::Time(times()),
            Kind::Json => Self::Json(StringBuilder::new()),
            Kind::Texts => Self::Texts(MapBuilder::new(
                Some(map_names()),
                StringBuilder::new(),
                StringBuilder::new(),
            )),
            Kind::Counts => Self::Counts(MapBuilder::new(
                Some(map_names()),
                StringBuilder::new(),
                Int64Builder::new(),
            )),
            Kind::Times => Self::Times(ListBuilder::new(times())),
        }
    }

    pub fn append_text(&mut self, text: Option<&str>) {
        match self {
            Self::Text(builder) | Self::Json(builder) => builder.append_option(text),
            _ => unreachable!("the column holds text"),
        }
    }

    pub fn append_bool(&mut self, value: bool) {
        match self {
            Self::Bool(builder) => builder.append_value(value),
            _ => unreachable!("the column holds booleans"),
        }
    }

    /// Append a single value; return about how many bytes it takes.
    pub fn append(&mut self, value: Option<Value<'_>>) -> Read<usize> {
        match (self, value) {
            (Self::Text(builder), None) => builder.append_null(),
            (Self::Text(builder), Some(Value::Text(text))) => {
                builder.append_value(text);
                return Ok(text.len());
            }
            (Self::Int(builder), value) => builder.append_option(value.map(column_number).transpose()?),
            (Self::Time(builder), value) => builder.append_option(value.map(column_number).transpose()?),
            (Self::Float(builder), None) => builder.append_null(),
            (Self::Float(builder), Some(Value::Float(number))) => builder.append_value(number),
            #[allow(
                clippy::cast_precision_loss,
                reason = "a count of seconds that was written without a fraction"
            )]
            (Self::Float(builder), Some(Value::Int(number))) => builder.append_value(number as f64),
            (Self::Bool(builder), None) => builder.append_null(),
            (Self::Bool(builder), Some(Value::Bool(value))) => builder.append_value(value),
            _ => return Err(OTHER_TYPE),
        }
        Ok(8)
    }

    /// Append what a value holds; return about how many bytes it takes.
    pub fn append_nested(&mut self, data: Option<&[u8]>) -> Read<usize> {
        let is_nil = match data {
            None => true,
            Some(data) => Reader::new(data).value()? == Value::Nil,
        };
        let data = data.filter(|_| !is_nil);
        match self {
            Self::Json(builder) => match data {
                None => builder.append_null(),
                Some(data) => {
                    let mut json = String::with_capacity(data.len() + 16);
                    to_json(data, &mut json)?;
                    builder.append_value(&json);
                }
            },
            Self::Texts(builder) => {
                for_pairs(data, |name, value| match value {
                    Value::Text(text) => {
                        builder.keys().append_value(name);
                        builder.values().append_value(text);
                        Ok(())
                    }
                    _ => Err(Damaged("a label is no text")),
                })?;
                builder
                    .append(true)
                    .map_err(|_| Damaged("a map of the record is odd"))?;
            }
            Self::Counts(builder) => {
                for_pairs(data, |name, value| {
                    let count = column_number(value)?;
                    builder.keys().append_value(name);
                    builder.values().append_value(count);
                    Ok(())
                })?;
                builder
                    .append(true)
                    .map_err(|_| Damaged("a map of the record is odd"))?;
            }
            Self::Times(builder) => {
                if let Some(data) = data {
                    let mut reader = Reader::new(data);
                    let Value::Array(length) = reader.value()? else {
                        return Err(Damaged("a field of the record is no list"));
                    };
                    for _ in 0..length {
                        builder.values().append_value(column_number(reader.value()?)?);
                    }
                }
                builder.append(true);
            }
            _ => unreachable!("the column is nested"),
        }
        Ok(8 + data.map_or(0, <[u8]>::len))
    }

    pub fn finish(&mut self) -> ArrayRef {
        match self {
            Self::Text(builder) | Self::Json(builder) => Arc::new(builder.finish()),
            Self::Int(builder) => Arc::new(builder.finish()),
            Self::Float(builder) => Arc::new(builder.finish()),
            Self::Bool(builder) => Arc::new(builder.finish()),
            Self::Time(builder) => Arc::new(builder.finish()),
            Self::Texts(builder) => Arc::new(builder.finish()),
            Self::Counts(builder) => Arc::new(builder.finish()),
            Self::Times(builder) => Arc::new(builder.finish()),
        }
    }
}

fn for_pairs(data: Option<&[u8]>, mut each: impl FnMut(&str, Value<'_>) -> Read<()>) -> Read<()> {
    let Some(data) = data else { return Ok(()) };
    let mut reader = Reader::new(data);
    let Value::Map(pairs) = reader.value()? else {
        return Err(Damaged("a field of the record is no map"));
    };
    for _ in 0..pairs {
        let Value::Text(name) = reader.value()? else {
            return Err(Damaged("a name in the record is no text"));
        };
        each(name, reader.value()?)?;
    }
    Ok(())
}
