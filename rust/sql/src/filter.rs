//! The part of a query's filters that tables evaluate themselves, before anything is made of a row.

use datafusion_common::ScalarValue;
use datafusion_expr::expr::{Between, BinaryExpr, InList, Like, ScalarFunction};
use datafusion_expr::{Expr, Operator};

use crate::ranges::{Ranges, after_prefix, next};

/// What a column holds that filters can be about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CellType {
    Text,
    Int,
    Bool,
    /// Milliseconds since 1970.
    Time,
}

/// A value of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Cell<'a> {
    Null,
    /// Text is compared byte by byte, so it is not looked at more closely.
    Text(&'a [u8]),
    Int(i64),
    Bool(bool),
}

/// A value in a query; times are numbers of milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Literal {
    Text(String),
    Int(i128),
    Bool(bool),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// A condition on a row; a comparison with NULL is never true.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Predicate {
    Compare(usize, Comparison, Literal),
    /// In a list that is sorted, or with `true`: not in it.
    OneOf(usize, Vec<Literal>, bool),
    Prefix(usize, String),
    NoPrefix(usize, String),
    IsNull(usize),
    IsNotNull(usize),
    All(Vec<Predicate>),
    Any(Vec<Predicate>),
}

/// The columns that filters can be about: index and type by name.
pub(crate) trait Columns {
    fn column(&self, name: &str) -> Option<(usize, CellType)>;
}

/// What a filter comes to.
#[derive(Clone, Debug)]
pub(crate) struct Understood {
    pub predicate: Predicate,
    /// The predicate is the whole of the filter, not only something that follows from it.
    pub is_exact: bool,
}

fn exact(predicate: Predicate) -> Understood {
    Understood {
        predicate,
        is_exact: true,
    }
}

/// Understand a filter; `None` where nothing can be made of it.
pub(crate) fn understand(filter: &Expr, columns: &dyn Columns) -> Option<Understood> {
    match filter {
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => match op {
            Operator::And => both(understand(left, columns), understand(right, columns)),
            Operator::Or => {
                let (one, other) = (understand(left, columns)?, understand(right, columns)?);
                Some(Understood {
                    is_exact: one.is_exact && other.is_exact,
                    predicate: Predicate::Any(vec![one.predicate, other.predicate]),
                })
            }
            _ => compare(left, *op, right, columns),
        },
        Expr::Between(Between {
            expr,
            negated: false,
            low,
            high,
        }) => both(
            compare(expr, Operator::GtEq, low, columns),
            compare(expr, Operator::LtEq, high, columns),
        ),
        Expr::InList(InList { expr, list, negated }) => {
            let (column, kind) = named(expr, columns)?;
            let mut values = list
                .iter()
                .map(|item| literal(item, kind))
                .collect::<Option<Vec<_>>>()?;
            values.sort_unstable();
            values.dedup();
            Some(exact(Predicate::OneOf(column, values, *negated)))
        }
        Expr::Like(like) => understand_like(like, columns),
        Expr::ScalarFunction(ScalarFunction { func, args }) if func.name() == "starts_with" => {
            let [expr, prefix] = &args[..] else { return None };
            let (column, CellType::Text) = named(expr, columns)? else {
                return None;
            };
            let Literal::Text(prefix) = literal(prefix, CellType::Text)? else {
                return None;
            };
            Some(exact(Predicate::Prefix(column, prefix)))
        }
        Expr::IsNull(expr) => Some(exact(Predicate::IsNull(named(expr, columns)?.0))),
        Expr::IsNotNull(expr) => Some(exact(Predicate::IsNotNull(named(expr, columns)?.0))),
        Expr::Column(_) => truth(filter, true, columns),
        Expr::Not(expr) => truth(expr, false, columns),
        _ => None,
    }
}

fn both(one: Option<Understood>, other: Option<Understood>) -> Option<Understood> {
    match (one, other) {
        (Some(one), Some(other)) => Some(Understood {
            is_exact: one.is_exact && other.is_exact,
            predicate: Predicate::All(vec![one.predicate, other.predicate]),
        }),
        (Some(part), None) | (None, Some(part)) => Some(Understood {
            is_exact: false,
            ..part
        }),
        (None, None) => None,
    }
}

fn named(expr: &Expr, columns: &dyn Columns) -> Option<(usize, CellType)> {
    match expr {
        Expr::Column(column) => columns.column(&column.name),
        _ => None,
    }
}

fn truth(expr: &Expr, wanted: bool, columns: &dyn Columns) -> Option<Understood> {
    let (column, kind) = named(expr, columns)?;
    if kind != CellType::Bool {
        return None;
    }
    Some(exact(Predicate::Compare(
        column,
        Comparison::Equal,
        Literal::Bool(wanted),
    )))
}

fn compare(left: &Expr, op: Operator, right: &Expr, columns: &dyn Columns) -> Option<Understood> {
    let (column, kind, value, op) = if let Some((column, kind)) = named(left, columns) {
        (column, kind, right, op)
    } else {
        let (column, kind) = named(right, columns)?;
        (column, kind, left, op.swap()?)
    };
    let comparison = match op {
        Operator::Eq => Comparison::Equal,
        Operator::NotEq => Comparison::NotEqual,
        Operator::Lt => Comparison::Less,
        Operator::LtEq => Comparison::LessOrEqual,
        Operator::Gt => Comparison::Greater,
        Operator::GtEq => Comparison::GreaterOrEqual,
        _ => return None,
    };
    Some(exact(Predicate::Compare(column, comparison, literal(value, kind)?)))
}

fn understand_like(like: &Like, columns: &dyn Columns) -> Option<Understood> {
    let (column, CellType::Text) = named(&like.expr, columns)? else {
        return None;
    };
    let Literal::Text(pattern) = literal(&like.pattern, CellType::Text)? else {
        return None;
    };
    if like.case_insensitive || like.escape_char.is_some() || pattern.contains('\\') {
        return None;
    }
    let (prefix, rest) = pattern.split_at(pattern.find(['%', '_']).unwrap_or(pattern.len()));
    let is_exact = rest.is_empty() || rest.chars().all(|sign| sign == '%');
    let predicate = match (rest.is_empty(), like.negated) {
        (true, false) => Predicate::Compare(column, Comparison::Equal, Literal::Text(pattern)),
        (true, true) => Predicate::Compare(column, Comparison::NotEqual, Literal::Text(pattern)),
        (false, false) => Predicate::Prefix(column, prefix.into()),
        (false, true) if is_exact => Predicate::NoPrefix(column, prefix.into()),
        (false, true) => return None,
    };
    Some(Understood { predicate, is_exact })
}

/// Return the value of a literal that can be compared with a column as it is.
fn literal(expr: &Expr, kind: CellType) -> Option<Literal> {
    let Expr::Literal(value, _) = expr else {
        return None;
    };
    match (kind, value) {
        (
            CellType::Text,
            ScalarValue::Utf8(Some(text)) | ScalarValue::Utf8View(Some(text)) | ScalarValue::LargeUtf8(Some(text)),
        ) => Some(Literal::Text(text.clone())),
        (CellType::Bool, ScalarValue::Boolean(Some(value))) => Some(Literal::Bool(*value)),
        (CellType::Int, value) => int(value).map(Literal::Int),
        (CellType::Time, ScalarValue::TimestampMillisecond(Some(at), Some(_))) => Some(Literal::Int((*at).into())),
        _ => None,
    }
}

fn int(value: &ScalarValue) -> Option<i128> {
    match *value {
        ScalarValue::Int8(value) => value.map(Into::into),
        ScalarValue::Int16(value) => value.map(Into::into),
        ScalarValue::Int32(value) => value.map(Into::into),
        ScalarValue::Int64(value) => value.map(Into::into),
        ScalarValue::UInt8(value) => value.map(Into::into),
        ScalarValue::UInt16(value) => value.map(Into::into),
        ScalarValue::UInt32(value) => value.map(Into::into),
        ScalarValue::UInt64(value) => value.map(Into::into),
        _ => None,
    }
}

/// Where a row's values are found.
pub(crate) trait Cells {
    fn cell(&self, column: usize) -> Cell<'_>;
}

fn order(cell: Cell<'_>, literal: &Literal) -> Option<std::cmp::Ordering> {
    match (cell, literal) {
        (Cell::Text(text), Literal::Text(other)) => Some(text.cmp(other.as_bytes())),
        (Cell::Int(number), Literal::Int(other)) => Some(i128::from(number).cmp(other)),
        (Cell::Bool(value), Literal::Bool(other)) => Some(value.cmp(other)),
        _ => None,
    }
}

impl Comparison {
    fn holds(self, order: std::cmp::Ordering) -> bool {
        match self {
            Self::Equal => order.is_eq(),
            Self::NotEqual => order.is_ne(),
            Self::Less => order.is_lt(),
            Self::LessOrEqual => order.is_le(),
            Self::Greater => order.is_gt(),
            Self::GreaterOrEqual => order.is_ge(),
        }
    }

    fn sign(self) -> &'static str {
        match self {
            Self::Equal => "=",
            Self::NotEqual => "!=",
            Self::Less => "<",
            Self::LessOrEqual => "<=",
            Self::Greater => ">",
            Self::GreaterOrEqual => ">=",
        }
    }
}

impl Predicate {
    /// Whether every row meets it.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::All(parts) if parts.is_empty())
    }

    /// Whether a row meets the condition.
    pub fn holds(&self, row: &dyn Cells) -> bool {
        match self {
            Self::Compare(column, comparison, literal) => {
                order(row.cell(*column), literal).is_some_and(|order| comparison.holds(order))
            }
            Self::OneOf(column, list, negated) => match row.cell(*column) {
                Cell::Null => false,
                cell => {
                    let found = list.binary_search_by(|item| {
                        order(cell, item).map_or(std::cmp::Ordering::Less, std::cmp::Ordering::reverse)
                    });
                    found.is_ok() != *negated
                }
            },
            Self::Prefix(column, prefix) => {
                matches!(row.cell(*column), Cell::Text(text) if text.starts_with(prefix.as_bytes()))
            }
            Self::NoPrefix(column, prefix) => {
                matches!(row.cell(*column), Cell::Text(text) if !text.starts_with(prefix.as_bytes()))
            }
            Self::IsNull(column) => row.cell(*column) == Cell::Null,
            Self::IsNotNull(column) => row.cell(*column) != Cell::Null,
            Self::All(parts) => parts.iter().all(|part| part.holds(row)),
            Self::Any(parts) => parts.iter().any(|part| part.holds(row)),
        }
    }

    /// The columns that it is about.
    pub fn columns(&self, found: &mut Vec<usize>) {
        match self {
            Self::Compare(column, ..)
            | Self::OneOf(column, ..)
            | Self::Prefix(column, _)
            | Self::NoPrefix(column, _)
            | Self::IsNull(column)
            | Self::IsNotNull(column) => found.push(*column),
            Self::All(parts) | Self::Any(parts) => parts.iter().for_each(|part| part.columns(found)),
        }
    }

    /// Which values a text column, or one of times or numbers as `as_bytes` writes them in order, has in rows that meet
    /// the condition; `None` where it says nothing of that. May hold others too.
    pub fn ranges(&self, wanted: usize, as_bytes: &dyn Fn(&Literal) -> Option<Vec<u8>>) -> Option<Ranges> {
        match self {
            Self::Compare(column, comparison, literal) if *column == wanted => {
                let value = as_bytes(literal)?;
                match comparison {
                    Comparison::Equal => Some(Ranges::one(&value)),
                    Comparison::NotEqual => None,
                    Comparison::Less => Some(Ranges::between(Vec::new(), Some(value))),
                    Comparison::LessOrEqual => Some(Ranges::between(Vec::new(), Some(next(&value)))),
                    Comparison::Greater => Some(Ranges::between(next(&value), None)),
                    Comparison::GreaterOrEqual => Some(Ranges::between(value, None)),
                }
            }
            Self::OneOf(column, list, false) if *column == wanted => {
                let values = list.iter().map(as_bytes).collect::<Option<Vec<_>>>()?;
                Some(Ranges::union(values.iter().map(|value| Ranges::one(value))))
            }
            Self::Prefix(column, prefix) if *column == wanted => Some(Ranges::between(
                prefix.clone().into_bytes(),
                after_prefix(prefix.as_bytes()),
            )),
            Self::All(parts) => parts
                .iter()
                .filter_map(|part| part.ranges(wanted, as_bytes))
                .reduce(|one, other| one.intersect(&other)),
            Self::Any(parts) => {
                let sets = parts
                    .iter()
                    .map(|part| part.ranges(wanted, as_bytes))
                    .collect::<Option<Vec<_>>>()?;
                Some(Ranges::union(sets))
            }
            _ => None,
        }
    }

    /// The only values that a column has in rows that meet the condition; `None` where it may have any.
    pub fn values(&self, wanted: usize) -> Option<Vec<Literal>> {
        match self {
            Self::Compare(column, Comparison::Equal, literal) if *column == wanted => Some(vec![literal.clone()]),
            Self::OneOf(column, list, false) if *column == wanted => Some(list.clone()),
            Self::All(parts) => parts
                .iter()
                .filter_map(|part| part.values(wanted))
                .reduce(|one, other| one.into_iter().filter(|value| other.contains(value)).collect()),
            Self::Any(parts) => {
                let lists = parts
                    .iter()
                    .map(|part| part.values(wanted))
                    .collect::<Option<Vec<_>>>()?;
                Some(lists.concat())
            }
            _ => None,
        }
    }

    /// In words, for EXPLAIN.
    pub fn describe(&self, name: &dyn Fn(usize) -> String) -> String {
        let list = |parts: &[Self], between: &str| {
            let parts: Vec<String> = parts.iter().map(|part| part.describe(name)).collect();
            format!("({})", parts.join(between))
        };
        match self {
            Self::Compare(column, comparison, literal) => {
                format!("{} {} {}", name(*column), comparison.sign(), literal.describe())
            }
            Self::OneOf(column, values, negated) => {
                const SHOWN: usize = 4;
                let mut shown: Vec<String> = values.iter().take(SHOWN).map(Literal::describe).collect();
                if values.len() > SHOWN {
                    shown.push(format!("and {} more", values.len() - SHOWN));
                }
                let not = if *negated { "NOT " } else { "" };
                format!("{} {not}IN ({})", name(*column), shown.join(", "))
            }
            Self::Prefix(column, prefix) => format!("{} LIKE {:?}", name(*column), format!("{prefix}%")),
            Self::NoPrefix(column, prefix) => format!("{} NOT LIKE {:?}", name(*column), format!("{prefix}%")),
            Self::IsNull(column) => format!("{} IS NULL", name(*column)),
            Self::IsNotNull(column) => format!("{} IS NOT NULL", name(*column)),
            Self::All(parts) => list(parts, " AND "),
            Self::Any(parts) => list(parts, " OR "),
        }
    }
}

impl Literal {
    fn describe(&self) -> String {
        match self {
            Self::Text(text) => format!("{text:?}"),
            Self::Int(number) => number.to_string(),
            Self::Bool(value) => value.to_string(),
        }
    }

    /// As a key holds text.
    pub fn text(&self) -> Option<Vec<u8>> {
        match self {
            Self::Text(text) => Some(text.clone().into_bytes()),
            _ => None,
        }
    }
}
