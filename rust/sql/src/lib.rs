//! Tables of SQL over one view of the store, for DataFusion in another library of the process.
//!
//! A table streams Arrow batches straight from LMDB. What a query does not want is not made: columns that it leaves out
//! are not decoded, rows that its filters refuse are seen by their keys and a few fields alone, and key ranges that no
//! row of the answer can be in are not read.
//!
//! - [`snapshot`]: one revision, and counts of what was read.
//! - [`source`]: what makes a table; [`kv`], [`records`] and [`user`] are some.
//! - [`filter`], [`ranges`]: the part of a query's filters that tables evaluate, and the keys it leaves.
//! - [`split`], [`estimate`]: parts for several threads, and how many rows they have.
//! - [`table`], [`scan`]: DataFusion's faces of it.
//! - [`parse`]: what the statements of a text are.
//! - [`export`]: over the binary interface.
#![forbid(unsafe_code)]

mod estimate;
mod export;
mod filter;
mod kv;
mod msgpack;
pub mod parse;
mod ranges;
mod records;
mod scan;
mod snapshot;
mod source;
mod split;
mod strings;
mod table;
mod user;

use std::sync::Arc;

pub use export::{ExportedTable, export};
pub use snapshot::{LeaseEnds, Snapshot};
pub use table::Table;

/// Names of the tables that every snapshot has.
pub const TABLES: [&str; 6] = ["kv", "jobs", "results", "workers", "schedules", "audit"];

/// Return a table as a user sees it, or as an administrator does who sees everything (`None`).
#[must_use]
pub fn table(snapshot: &Arc<Snapshot>, name: &str, owner: Option<u32>) -> Option<Table> {
    let source: Arc<dyn source::Source> = if name == "kv" {
        Arc::new(kv::Kv {
            prefix: if owner.is_some() { kv::DATA } else { b"" },
            snapshot: Arc::clone(snapshot),
        })
    } else {
        let layout = records::LAYOUTS.iter().find(|layout| layout.table == name)?;
        Arc::new(records::Records::new(layout, owner))
    };
    Some(Table::new(Arc::clone(snapshot), source))
}

/// Return a table that a user has defined, in JSON, over values under `/data/`, which every user may read.
///
/// # Errors
/// What is wrong with the definition, in words.
pub fn user_table(snapshot: &Arc<Snapshot>, definition: &str) -> Result<Table, String> {
    let definition = user::Definition::parse(definition)?;
    Ok(Table::new(Arc::clone(snapshot), Arc::new(user::User::new(definition))))
}

/// Names of the fields of the records behind each table, in order, and of those that have no column.
#[must_use]
pub fn record_fields() -> Vec<(&'static str, &'static [&'static str], &'static [&'static str])> {
    let of = |layout: &&'static records::Layout| (layout.table, layout.fields, layout.left_out);
    records::LAYOUTS.iter().map(of).collect()
}
