//! How many rows a scan will find: counted where they are few, else told from some of them.
//!
//! LMDB knows how many keys a table has, not how many lie between two. So each part of a scan is taken as the tree of its
//! keys' bytes, and followed down one branch chosen by chance until few keys are left. That their number times the branches
//! that there were on the way is right on average, whatever the tree (D. Knuth, "Estimating the efficiency of backtrack
//! programs", 1975), and keys that are numbered or drawn by chance have even trees. What share of the keys become rows, and
//! how many each, is tried on some of them.

use std::ops::ControlFlow;

use jobs_store::Result;
use jobs_store::view::Access;

use crate::ranges::{after_prefix, next};
use crate::source::{Sink, Source, Wanted};
use crate::split::KeyRange;

/// So few keys are counted, not told about.
const COUNTED_KEYS: usize = 512;
/// Parts that are looked into.
const MAX_PARTS: usize = 32;
/// Keys whose rows are made, of all parts together, and bytes of them. One key in any case.
const TRIED_KEYS: usize = 512;
const TRIED_BYTES: usize = 256 << 10;
/// So few rows are not looked at for which of them meet a condition.
const FEW_KEYS: usize = 64;
/// How many rows there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowCount {
    Exact(usize),
    About(usize),
}

impl RowCount {
    pub fn number(self) -> usize {
        match self {
            Self::Exact(number) | Self::About(number) => number,
        }
    }

    /// In words, for EXPLAIN.
    pub fn describe(self) -> String {
        match self {
            Self::Exact(number) => format!("rows={number}"),
            Self::About(number) => format!("rows~{number}"),
        }
    }
}

/// Return about how many keys there are in parts of the store, at most so many as it has.
pub(crate) fn keys(access: &Access<'_>, parts: &[KeyRange], entries: usize) -> Result<RowCount> {
    let step = parts.len().div_ceil(MAX_PARTS).max(1);
    let (mut total, mut is_exact) = (0.0, step == 1 && access.is_newest());
    for (number, part) in parts.iter().enumerate().step_by(step) {
        let (keys, is_counted) = keys_of(&StoreKeys(access), part, number as u64)?;
        total += keys;
        is_exact &= is_counted;
    }
    if is_exact {
        return Ok(RowCount::Exact(round(total)));
    }
    let share = float(parts.len().div_ceil(step)) / float(parts.len().max(1));
    Ok(RowCount::About(round(total / share).min(entries)))
}

/// Keys in order, as far as they are needed here.
trait Keys {
    /// Count the keys in a range, up to a number.
    fn count(&self, range: &KeyRange, most: usize) -> Result<usize>;
    fn first(&self, start: &[u8], end: &[u8]) -> Result<Option<Vec<u8>>>;
    fn last(&self, start: &[u8], end: &[u8]) -> Result<Option<Vec<u8>>>;
}

struct StoreKeys<'a>(&'a Access<'a>);

impl Keys for StoreKeys<'_> {
    fn count(&self, (start, end): &KeyRange, most: usize) -> Result<usize> {
        let mut keys = 0;
        self.0.visit_keys((start, end), |_| {
            keys += 1;
            if keys < most {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
        Ok(keys)
    }

    fn first(&self, start: &[u8], end: &[u8]) -> Result<Option<Vec<u8>>> {
        self.0.first_key(start, end)
    }

    fn last(&self, start: &[u8], end: &[u8]) -> Result<Option<Vec<u8>>> {
        self.0.last_key(start, end)
    }
}

/// Return how many keys there are in a range, and whether that is counted.
fn keys_of(keys: &dyn Keys, range: &KeyRange, seed: u64) -> Result<(f64, bool)> {
    let (mut range, mut times, mut chance) = (range.clone(), 1.0, seed);
    loop {
        let counted = keys.count(&range, COUNTED_KEYS)?;
        if counted < COUNTED_KEYS {
            return Ok((times * float(counted), times <= 1.0));
        }
        let mut branches = branches(keys, &range)?;
        if branches.len() < 2 {
            return Ok((times * float(counted), false));
        }
        times *= float(branches.len());
        chance = next_chance(chance);
        let chosen = usize::try_from(chance >> 33).unwrap_or_default() % branches.len();
        range = branches.swap_remove(chosen);
    }
}

/// Cut a range where the first byte differs that its keys do not have in common.
fn branches(keys: &dyn Keys, (start, end): &KeyRange) -> Result<Vec<KeyRange>> {
    let (Some(first), Some(last)) = (keys.first(start, end)?, keys.last(start, end)?) else {
        return Ok(Vec::new());
    };
    let common = first.iter().zip(&last).take_while(|(one, other)| one == other).count();
    let mut found = Vec::new();
    let mut key = first;
    loop {
        // The end of what begins like this key, up to the byte in question; of a key that ends before it, itself.
        let after = match key.get(common) {
            Some(_) => after_prefix(&key[..=common]),
            None => Some(next(&key)),
        };
        let after = after.filter(|after| after < end).unwrap_or_else(|| end.clone());
        let following = keys.first(&after, end)?;
        found.push((key, after));
        match following {
            Some(following) => key = following,
            None => return Ok(found),
        }
    }
}

/// A step of a generator of numbers that are as good as drawn by chance (splitmix64), and the same each time.
fn next_chance(state: u64) -> u64 {
    let mut mixed = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Return how many rows a scan finds at about so many keys.
pub(crate) fn rows(
    access: &Access<'_>,
    source: &dyn Source,
    wanted: &Wanted,
    parts: &[KeyRange],
    keys: RowCount,
) -> Result<RowCount> {
    let is_every_key = wanted.predicate.is_empty();
    if source.is_row_per_key() && (is_every_key || keys.number() <= FEW_KEYS) {
        return Ok(if is_every_key {
            keys
        } else {
            RowCount::About(keys.number())
        });
    }
    let wanted = Wanted {
        columns: Vec::new(),
        ..wanted.clone()
    };
    let Ok(mut sink) = source.sink(&wanted) else {
        return Ok(RowCount::About(keys.number()));
    };
    let step = parts.len().div_ceil(MAX_PARTS).max(1);
    let each = (TRIED_KEYS / parts.len().div_ceil(step).max(1)).max(1);
    let mut tried = Tried::default();
    for (start, end) in parts.iter().step_by(step) {
        let until = tried.keys + each;
        access.visit((start, end), |row| {
            // What is wrong with a row is told by the scan.
            tried.bytes += sink.take(access, &row).unwrap_or_default();
            tried.keys += 1;
            if sink.is_full() || tried.is_enough() {
                tried.drain(&mut *sink);
            }
            if tried.keys < until && !tried.is_enough() {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
        if tried.is_enough() {
            break;
        }
    }
    tried.drain(&mut *sink);
    if tried.keys == 0 {
        return Ok(RowCount::About(keys.number()));
    }
    let share = float(tried.rows) / float(tried.keys);
    // That none of some was a row does not say that none is.
    let least = usize::from(tried.keys < keys.number() && keys.number() > 0);
    Ok(RowCount::About(round(float(keys.number()) * share).max(least)))
}

/// What was tried, and what came of it.
#[derive(Default)]
struct Tried {
    keys: usize,
    bytes: usize,
    rows: usize,
}

impl Tried {
    fn is_enough(&self) -> bool {
        self.keys >= TRIED_KEYS || self.bytes >= TRIED_BYTES
    }

    fn drain(&mut self, sink: &mut dyn Sink) {
        while let Ok(Some(batch)) = sink.next_batch() {
            self.rows += batch.num_rows();
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "it is an estimate")]
fn float(number: usize) -> f64 {
    number as f64
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "it saturates, and is never negative"
)]
fn round(number: f64) -> usize {
    number.round() as usize
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    struct Set(BTreeSet<Vec<u8>>);

    impl Keys for Set {
        fn count(&self, (start, end): &KeyRange, most: usize) -> Result<usize> {
            Ok(self.0.range(start.clone()..end.clone()).take(most).count())
        }

        fn first(&self, start: &[u8], end: &[u8]) -> Result<Option<Vec<u8>>> {
            Ok(self.0.range(start.to_vec()..end.to_vec()).next().cloned())
        }

        fn last(&self, start: &[u8], end: &[u8]) -> Result<Option<Vec<u8>>> {
            Ok(self.0.range(start.to_vec()..end.to_vec()).next_back().cloned())
        }
    }

    const COUNT: usize = 100_000;

    fn told(set: &Set, parts: usize) -> f64 {
        let keys: Vec<&Vec<u8>> = set.0.iter().collect();
        let parts = keys
            .chunks(keys.len().div_ceil(parts))
            .enumerate()
            .map(|(number, keys)| {
                let range = (keys[0].clone(), next(keys[keys.len() - 1]));
                keys_of(set, &range, number as u64).unwrap().0
            });
        parts.sum()
    }

    #[test]
    fn keys_of_every_shape_are_told_about() {
        let drawn = || (0..COUNT as u64).map(next_chance);
        let shapes: [Vec<Vec<u8>>; 6] = [
            (0..COUNT).map(|n| format!("/data/{n:09}").into()).collect(),
            (0..COUNT).map(|n| n.to_string().into()).collect(),
            drawn().map(|n| format!("/data/{n:016x}").into()).collect(),
            drawn().map(|n| n.to_be_bytes().to_vec()).collect(),
            (0..COUNT)
                .map(|n| format!("/d/{:02}/host-{:03}/x", n / 1_000, n % 1_000).into())
                .collect(),
            (0..COUNT)
                .map(|n| format!("/h-{:02}/2026-{:02}-{n:05}", n % 50, n / 50 % 12 + 1).into())
                .collect(),
        ];
        for keys in shapes {
            let set = Set(keys.into_iter().collect());
            for parts in [16, 32] {
                let found = told(&set, parts) / float(COUNT);
                let example = set.0.first().unwrap().escape_ascii().to_string();
                assert!((0.5..2.0).contains(&found), "{example} in {parts}: {found}");
            }
        }
    }

    #[test]
    fn few_keys_are_counted() {
        let set = Set((0..300_u32).map(|n| n.to_be_bytes().to_vec()).collect());
        assert_eq!(keys_of(&set, &(Vec::new(), vec![0xff; 9]), 1).unwrap(), (300.0, true));
        assert_eq!(keys_of(&set, &(vec![9], vec![10]), 1).unwrap(), (0.0, true));
    }
}
