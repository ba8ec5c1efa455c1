//! Cuts ranges of keys into parts of about the same size, by looking at a few keys of the store.

use std::ops::ControlFlow;

use jobs_kv::MAX_KEY_BYTES;
use jobs_store::view::Access;
use jobs_store::{Result, StoreView};

use crate::estimate::{self, RowCount};
use crate::ranges::Ranges;
use crate::source::{Source, Wanted};

/// A scan of no more rows than this is not cut.
const SMALL_ROWS: usize = 2_048;
/// Ranges that are looked at to tell whether a scan is small.
const LOOKED_AT_RANGES: usize = 256;
/// Parts that each partition has of a range that is cut: they differ in size, so it takes some to even that out.
const PARTS: usize = 16;

/// From a key on, up to but without another.
pub(crate) type KeyRange = (Vec<u8>, Vec<u8>);

/// What lies beyond all keys.
pub(crate) fn beyond_all() -> Vec<u8> {
    vec![0xff; MAX_KEY_BYTES + 1]
}

/// How a scan reads.
pub(crate) struct Split {
    /// The ranges for each partition, in order within each.
    pub shares: Vec<Vec<KeyRange>>,
    /// How many keys there are in them.
    pub keys: RowCount,
    /// How many rows it finds, without a limit.
    pub rows: RowCount,
}

/// Give ranges to at most so many partitions, and tell how many rows there are in them.
pub(crate) fn split(
    view: &StoreView,
    source: &dyn Source,
    wanted: &Wanted,
    ranges: &Ranges,
    partitions: usize,
) -> Result<Split> {
    let ranges: Vec<KeyRange> = ranges
        .iter()
        .map(|(start, end)| (start.to_vec(), end.map_or_else(beyond_all, <[u8]>::to_vec)))
        .collect();
    let entries = usize::try_from(view.entries()?).unwrap_or(usize::MAX);
    view.with(0, |access| {
        if let Some(keys) = small(access, &ranges)? {
            let rows = estimate::rows(access, source, wanted, &ranges, keys)?;
            let shares = vec![ranges];
            return Ok(Split { shares, keys, rows });
        }
        let parts = cut(access, ranges, partitions * PARTS)?;
        let keys = estimate::keys(access, &parts, entries)?;
        let rows = estimate::rows(access, source, wanted, &parts, keys)?;
        let mut shares = vec![Vec::new(); partitions.min(parts.len())];
        for (number, part) in parts.into_iter().enumerate() {
            let share = number % shares.len();
            shares[share].push(part);
        }
        Ok(Split { shares, keys, rows })
    })
}

/// Count the keys, if they are few.
fn small(access: &Access<'_>, ranges: &[KeyRange]) -> Result<Option<RowCount>> {
    if ranges.len() > LOOKED_AT_RANGES {
        return Ok(None);
    }
    let mut keys = 0;
    for (start, end) in ranges {
        access.visit_keys((start, end), |_| {
            keys += 1;
            if keys > SMALL_ROWS {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        if keys > SMALL_ROWS {
            return Ok(None);
        }
    }
    // Of an older revision, keys that have been made or deleted since are missing or too many.
    let count = if access.is_newest() {
        RowCount::Exact
    } else {
        RowCount::About
    };
    Ok(Some(count(keys)))
}

/// Cut ranges until there are so many, or no more can be cut.
fn cut(access: &Access<'_>, mut ranges: Vec<KeyRange>, wanted: usize) -> Result<Vec<KeyRange>> {
    while ranges.len() < wanted {
        let mut halves = Vec::with_capacity(2 * ranges.len());
        let before = ranges.len();
        for (start, end) in ranges {
            match middle(access, &start, &end)? {
                Some(middle) => halves.extend([(start, middle.clone()), (middle, end)]),
                None => halves.push((start, end)),
            }
        }
        ranges = halves;
        if ranges.len() == before {
            break;
        }
    }
    Ok(ranges)
}

/// Return a key of the store about in the middle of a range, neither its first nor beyond its last.
fn middle(access: &Access<'_>, start: &[u8], end: &[u8]) -> Result<Option<Vec<u8>>> {
    let (Some(first), Some(last)) = (access.first_key(start, end)?, access.last_key(start, end)?) else {
        return Ok(None);
    };
    let common = first.iter().zip(&last).take_while(|(one, other)| one == other).count();
    let number = |key: &[u8]| {
        let mut bytes = [0; 8];
        let rest = &key[common..];
        let length = rest.len().min(8);
        bytes[..length].copy_from_slice(&rest[..length]);
        u64::from_be_bytes(bytes)
    };
    let half = number(&first).midpoint(number(&last));
    let wanted = [&first[..common], &half.to_be_bytes()].concat();
    let found = access.first_key(&wanted, end)?;
    Ok(found.filter(|key| *key > first))
}
