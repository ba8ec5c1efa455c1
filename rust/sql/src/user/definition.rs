//! What a user says of a table, checked.

use arrow::datatypes::DataType;
use serde::Deserialize;

use super::types::parse_type;
use crate::kv::DATA;

const MAX_COLUMNS: usize = 1_000;

/// How values are encoded.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Format {
    /// One object: one row.
    Json,
    /// Any number of objects, each a row.
    Jsonl,
    Csv,
    /// IPC, as a file or a stream.
    Arrow,
    Parquet,
}

/// What a value does that cannot be decoded.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OnError {
    /// The query fails.
    #[default]
    Error,
    /// It is one row, whose columns of the value are NULL.
    Null,
    /// It is no row.
    Skip,
}

/// Where a column comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Value,
    Key,
    /// A part of the key.
    Capture(usize),
    /// The revision that the key was set at.
    Revision,
}

#[derive(Clone, Debug)]
pub(crate) struct Column {
    pub name: String,
    pub data_type: DataType,
    pub nullable: bool,
    pub origin: Origin,
    /// What it is called in the value.
    pub field: String,
}

/// What follows the prefix in keys: parts with text between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pattern {
    pub before: String,
    /// What comes after each part.
    pub after: Vec<String>,
}

#[derive(Clone, Debug)]
pub(crate) struct Definition {
    pub prefix: String,
    pub format: Format,
    pub columns: Vec<Column>,
    pub pattern: Option<Pattern>,
    pub on_error: OnError,
    pub csv: Csv,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Csv {
    /// The first line has the names of the columns.
    pub header: bool,
    pub delimiter: char,
}

impl Default for Csv {
    fn default() -> Self {
        Self {
            header: true,
            delimiter: ',',
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Given {
    prefix: String,
    format: Format,
    columns: Vec<GivenColumn>,
    #[serde(default)]
    key_pattern: Option<String>,
    #[serde(default)]
    on_error: OnError,
    #[serde(default)]
    csv: Csv,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GivenColumn {
    name: String,
    #[serde(rename = "type")]
    data_type: String,
    #[serde(default = "yes")]
    nullable: bool,
    #[serde(default)]
    from: GivenOrigin,
    /// Another name that it has in the value or in the pattern.
    #[serde(default)]
    field: Option<String>,
}

#[derive(Clone, Copy, Default, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum GivenOrigin {
    #[default]
    Value,
    Key,
    Capture,
    Revision,
}

fn yes() -> bool {
    true
}

impl Pattern {
    /// Return the pattern, and the names of its parts.
    pub fn parse(pattern: &str) -> Result<(Self, Vec<String>), String> {
        let wrong = || {
            format!(
                "key_pattern {pattern:?}: parts in braces with text between them are expected, such as {{host}}/{{day}}"
            )
        };
        let (mut names, mut after) = (Vec::<String>::new(), Vec::new());
        let (before, mut rest) = pattern.split_once('{').ok_or_else(wrong)?;
        loop {
            let (name, behind) = rest.split_once('}').ok_or_else(wrong)?;
            if name.is_empty() || name.contains('{') || names.iter().any(|known| known == name) {
                return Err(wrong());
            }
            names.push(name.into());
            match behind.split_once('{') {
                Some(("", _)) => return Err(wrong()),
                Some((between, behind)) => {
                    after.push(between.to_owned());
                    rest = behind;
                }
                None => {
                    after.push(behind.to_owned());
                    break;
                }
            }
        }
        if before.contains('}') || after.iter().any(|text| text.contains('}')) {
            return Err(wrong());
        }
        let before = before.into();
        Ok((Self { before, after }, names))
    }
}

impl Definition {
    /// Understand a definition in JSON.
    pub fn parse(json: &str) -> Result<Self, String> {
        let given: Given = serde_json::from_str(json).map_err(|error| error.to_string())?;
        if !given.prefix.as_bytes().starts_with(DATA) {
            return Err(format!("prefix {:?}: it has to begin with /data/", given.prefix));
        }
        if given.columns.is_empty() || given.columns.len() > MAX_COLUMNS {
            return Err(format!("columns: from 1 to {MAX_COLUMNS} are expected"));
        }
        if !given.csv.delimiter.is_ascii() {
            return Err("csv.delimiter: an ASCII character is expected".into());
        }
        let pattern = given.key_pattern.as_deref().map(Pattern::parse).transpose()?;
        let (pattern, names) = pattern.map_or((None, Vec::new()), |(pattern, names)| (Some(pattern), names));
        let mut columns: Vec<Column> = Vec::with_capacity(given.columns.len());
        for column in given.columns {
            if columns.iter().any(|known| known.name == column.name) {
                return Err(format!("column {:?} is there twice", column.name));
            }
            columns.push(check_column(column, &names, given.format, given.on_error)?);
        }
        Ok(Self {
            prefix: given.prefix,
            format: given.format,
            columns,
            pattern,
            on_error: given.on_error,
            csv: given.csv,
        })
    }
}

fn check_column(given: GivenColumn, captures: &[String], format: Format, on_error: OnError) -> Result<Column, String> {
    let wrong = |problem: String| format!("column {:?}: {problem}", given.name);
    let data_type = parse_type(&given.data_type).map_err(wrong)?;
    let field = given.field.clone().unwrap_or_else(|| given.name.clone());
    let origin = match given.from {
        GivenOrigin::Value => Origin::Value,
        GivenOrigin::Key => Origin::Key,
        GivenOrigin::Revision => Origin::Revision,
        GivenOrigin::Capture => Origin::Capture(
            captures
                .iter()
                .position(|name| *name == field)
                .ok_or_else(|| wrong(format!("key_pattern has no part {field:?}")))?,
        ),
    };
    match (origin, &data_type) {
        (Origin::Key, DataType::Utf8) | (Origin::Revision, DataType::Int64) => {}
        (Origin::Key, _) => return Err(wrong("a key is text: VARCHAR is expected".into())),
        (Origin::Revision, _) => return Err(wrong("a revision is a number: BIGINT is expected".into())),
        (Origin::Capture(_), DataType::List(_)) => return Err(wrong("a part of a key is no list".into())),
        (Origin::Value, DataType::List(_)) if format == Format::Csv => {
            return Err(wrong("CSV has no lists".into()));
        }
        _ => {}
    }
    let nullable = origin == Origin::Value && (given.nullable || on_error == OnError::Null);
    Ok(Column {
        name: given.name,
        data_type,
        nullable,
        origin,
        field,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"prefix": "/data/m/", "format": "json", "key_pattern": "{host}/{n}",
        "columns": [{"name": "h", "type": "VARCHAR", "from": "capture", "field": "host"},
                    {"name": "x", "type": "DOUBLE"}, {"name": "l", "type": "bigint[]"}]}"#;

    #[test]
    fn a_definition_is_understood() {
        let found = Definition::parse(GOOD).unwrap();
        assert_eq!(found.columns[0].origin, Origin::Capture(0));
        assert!(!found.columns[0].nullable && found.columns[1].nullable);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (from, to, said) in [
            ("/data/m/", "/jobs/", "/data/"),
            ("\"DOUBLE\"", "\"DUBLE\"", "DUBLE"),
            ("{host}/{n}", "{host}{n}", "key_pattern"),
            ("{host}/{n}", "host", "key_pattern"),
            ("{host}/{n}", "{a}", "no part"),
            ("\"name\": \"x\"", "\"name\": \"h\"", "twice"),
            ("\"format\"", "\"fromat\"", "fromat"),
        ] {
            let error = Definition::parse(&GOOD.replace(from, to)).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
    }
}
