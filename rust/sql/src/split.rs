//! Cuts ranges of keys into parts of about the same size, by looking at a few keys of the store.

use std::ops::ControlFlow;

use jobs_kv::MAX_KEY_BYTES;
use jobs_store::view::Access;
use jobs_store::{Result, StoreView};

use crate::ranges::Ranges;

/// A scan of no more rows than this is not cut.
const SMALL_ROWS: usize = 2_048;
/// Ranges that are looked at to tell whether a scan is small.
const LOOKED_AT_RANGES: usize = 256;
/// Parts that each partition has of a range that is cut: they differ in size, so it takes some to even that out.
const PARTS: usize = 16;

/// From a key on, up to but without another.
pub(crate) type KeyRange = (Vec<u8>, Vec<u8>);

/// How many rows there are in ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowCount {
    Exact(usize),
    About(usize),
}

/// What lies beyond all keys.
pub(crate) fn beyond_all() -> Vec<u8> {
    vec![0xff; MAX_KEY_BYTES + 1]
}

/// Return the ranges for each of at most so many partitions, in order within each, and how many rows they have.
pub(crate) fn split(view: &StoreView, ranges: &Ranges, partitions: usize) -> Result<(Vec<Vec<KeyRange>>, RowCount)> {
    let ranges: Vec<KeyRange> = ranges
        .iter()
        .map(|(start, end)| (start.to_vec(), end.map_or_else(beyond_all, <[u8]>::to_vec)))
        .collect();
    let entries = usize::try_from(view.entries()?).unwrap_or(usize::MAX);
    view.with(0, |access| {
        if let Some(rows) = small(access, &ranges)? {
            return Ok((vec![ranges], RowCount::Exact(rows)));
        }
        let parts = if partitions > 1 {
            cut(access, ranges, partitions * PARTS)?
        } else {
            ranges
        };
        let mut shares = vec![Vec::new(); partitions.min(parts.len())];
        for (number, part) in parts.into_iter().enumerate() {
            let share = number % shares.len();
            shares[share].push(part);
        }
        Ok((shares, RowCount::About(entries.max(SMALL_ROWS))))
    })
}

/// Count the rows, if they are few.
fn small(access: &Access<'_>, ranges: &[KeyRange]) -> Result<Option<usize>> {
    if ranges.len() > LOOKED_AT_RANGES {
        return Ok(None);
    }
    let mut rows = 0;
    for (start, end) in ranges {
        access.visit((start, end), |_| {
            rows += 1;
            if rows > SMALL_ROWS {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        if rows > SMALL_ROWS {
            return Ok(None);
        }
    }
    Ok(Some(rows))
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
