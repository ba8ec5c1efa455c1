//! Types of columns by their names in SQL.

use std::sync::Arc;

use arrow::datatypes::{DECIMAL128_MAX_PRECISION, DataType, Field, TimeUnit};

/// Return the type that a name stands for, in SQL or as Arrow writes it.
pub(super) fn parse_type(name: &str) -> Result<DataType, String> {
    if let Some(found) = arrow_type(name.trim()) {
        return Ok(found);
    }
    let wrong = || {
        format!(
            "type {name:?} is none of BOOLEAN, TINYINT, SMALLINT, INTEGER, BIGINT (each also UNSIGNED), REAL, DOUBLE, \
             DECIMAL(p, s), VARCHAR, BYTEA, DATE, TIMESTAMP(0|3|6|9) [WITH TIME ZONE], or one of them with [] for a list"
        )
    };
    let upper = name.to_uppercase();
    let upper = upper.trim();
    if let Some(item) = upper.strip_suffix("[]") {
        return match parse_type(item)? {
            DataType::List(_) => Err(wrong()),
            item => Ok(DataType::List(Arc::new(Field::new("item", item, true)))),
        };
    }
    let (base, numbers, rest) = match upper.split_once('(') {
        None => (upper, Vec::new(), ""),
        Some((base, rest)) => {
            let (inside, rest) = rest.split_once(')').ok_or_else(wrong)?;
            let numbers = inside
                .split(',')
                .map(|number| number.trim().parse::<u8>().map_err(|_| wrong()));
            (base, numbers.collect::<Result<_, _>>()?, rest)
        }
    };
    let words: Vec<&str> = base.split_whitespace().chain(rest.split_whitespace()).collect();
    simple(&words, &numbers).ok_or_else(wrong)
}

/// The types that Arrow's libraries write otherwise than SQL does.
fn arrow_type(name: &str) -> Option<DataType> {
    if let Some(inside) = name.strip_prefix("list<").and_then(|rest| rest.strip_suffix('>')) {
        let (_, item) = inside.split_once(": ")?;
        return match parse_type(item).ok()? {
            DataType::List(_) => None,
            item => Some(DataType::List(Arc::new(Field::new("item", item, true)))),
        };
    }
    if let Some(inside) = name.strip_prefix("timestamp[").and_then(|rest| rest.strip_suffix(']')) {
        let (unit, zone) = match inside.split_once(", tz=") {
            None => (inside, None),
            Some((unit, zone)) => (unit, Some(zone.into())),
        };
        let unit = match unit {
            "s" => TimeUnit::Second,
            "ms" => TimeUnit::Millisecond,
            "us" => TimeUnit::Microsecond,
            "ns" => TimeUnit::Nanosecond,
            _ => return None,
        };
        return Some(DataType::Timestamp(unit, zone));
    }
    if let Some(rest) = name.strip_prefix("decimal128(") {
        return parse_type(&format!("DECIMAL({rest}")).ok();
    }
    Some(match name {
        "int16" => DataType::Int16,
        "int32" => DataType::Int32,
        "int64" => DataType::Int64,
        "uint8" => DataType::UInt8,
        "uint16" => DataType::UInt16,
        "uint32" => DataType::UInt32,
        "uint64" => DataType::UInt64,
        "float" | "float32" => DataType::Float32,
        "double" | "float64" => DataType::Float64,
        "string" | "utf8" | "large_string" | "string_view" => DataType::Utf8,
        "binary" | "large_binary" | "binary_view" => DataType::Binary,
        "date32" | "date32[day]" => DataType::Date32,
        _ => return None,
    })
}

fn simple(words: &[&str], numbers: &[u8]) -> Option<DataType> {
    let timestamp = |zone: Option<&str>| {
        let unit = match numbers {
            [0] => TimeUnit::Second,
            [3] => TimeUnit::Millisecond,
            [] | [6] => TimeUnit::Microsecond,
            [9] => TimeUnit::Nanosecond,
            _ => return None,
        };
        Some(DataType::Timestamp(unit, zone.map(Into::into)))
    };
    match words {
        ["TIMESTAMP" | "DATETIME"] | ["TIMESTAMP", "WITHOUT", "TIME", "ZONE"] => return timestamp(None),
        ["TIMESTAMPTZ"] | ["TIMESTAMP", "WITH", "TIME", "ZONE"] => return timestamp(Some("UTC")),
        ["DECIMAL" | "NUMERIC" | "DEC"] => {
            let (precision, scale) = match numbers {
                [] => (38, 10),
                [precision] => (*precision, 0),
                [precision, scale] => (*precision, *scale),
                _ => return None,
            };
            let is_good = (1..=DECIMAL128_MAX_PRECISION).contains(&precision) && scale <= precision;
            return is_good.then(|| DataType::Decimal128(precision, scale.cast_signed()));
        }
        ["VARCHAR" | "CHAR" | "TEXT" | "STRING" | "CHARACTER"] | ["CHARACTER" | "CHAR", "VARYING"] => {
            return Some(DataType::Utf8);
        }
        _ if !numbers.is_empty() => return None,
        _ => {}
    }
    Some(match words {
        ["BOOLEAN" | "BOOL"] => DataType::Boolean,
        ["TINYINT"] => DataType::Int8,
        ["SMALLINT" | "INT2"] => DataType::Int16,
        ["INTEGER" | "INT" | "INT4"] => DataType::Int32,
        ["BIGINT" | "INT8"] => DataType::Int64,
        ["TINYINT", "UNSIGNED"] => DataType::UInt8,
        ["SMALLINT", "UNSIGNED"] => DataType::UInt16,
        ["INTEGER" | "INT", "UNSIGNED"] => DataType::UInt32,
        ["BIGINT", "UNSIGNED"] => DataType::UInt64,
        ["REAL" | "FLOAT" | "FLOAT4"] => DataType::Float32,
        ["DOUBLE" | "FLOAT8"] | ["DOUBLE", "PRECISION"] => DataType::Float64,
        ["BYTEA" | "BINARY" | "VARBINARY" | "BLOB"] => DataType::Binary,
        ["DATE"] => DataType::Date32,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_have_their_names() {
        for (name, expected) in [
            ("bigint", DataType::Int64),
            ("INT UNSIGNED", DataType::UInt32),
            ("DOUBLE PRECISION", DataType::Float64),
            ("CHARACTER VARYING(25)", DataType::Utf8),
            ("DECIMAL(15,2)", DataType::Decimal128(15, 2)),
            (
                "TIMESTAMP(3) WITH TIME ZONE",
                DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())),
            ),
            ("TIMESTAMP", DataType::Timestamp(TimeUnit::Microsecond, None)),
            (
                "BIGINT[]",
                DataType::List(Arc::new(Field::new("item", DataType::Int64, true))),
            ),
        ] {
            assert_eq!(parse_type(name).unwrap(), expected);
        }
        for name in [
            "",
            "BIG INT",
            "DECIMAL(50,2)",
            "DECIMAL(2,5)",
            "INT(4)",
            "TIMESTAMP(4)",
            "INT[][]",
            "DATE(",
        ] {
            assert!(parse_type(name).is_err(), "{name}");
        }
    }
}
