//! Reads: a key, a range, events; now or at an older revision.

use std::ops::ControlFlow;

use crate::backend::Read;
use crate::command::{REQUEST_ID_BYTES, Results};
use crate::error::KvError;
use crate::layout::{
    After, Before, Change, DELETED, EVENTS, LATEST, LEASES, Meta, Point, Version, attached_key, damaged, deleted_key,
    event_key, latest_key, lease_key, request_key,
};

/// Rows that one step of a scan in the past looks at.
const STEP_ROWS: usize = 256;
/// Events that one call looks at for each one that it may return.
const EVENT_FACTOR: usize = 8;

/// A key at a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: Vec<u8>,
    /// Its value.
    pub value: Vec<u8>,
    /// Puts since it was created, from 1.
    pub version: u64,
    /// Revision that created it.
    pub create_revision: u64,
    /// Revision that set it last.
    pub mod_revision: u64,
    /// Its lease, 0 for none.
    pub lease: u64,
}

impl KeyValue {
    /// The same as a row that borrows it.
    #[must_use]
    pub fn as_row(&self) -> Row<'_> {
        Row {
            key: &self.key,
            value: &self.value,
            version: self.version,
            create_revision: self.create_revision,
            mod_revision: self.mod_revision,
            lease: self.lease,
        }
    }
}

/// A key at a revision, where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row<'a> {
    /// The key.
    pub key: &'a [u8],
    /// Its value.
    pub value: &'a [u8],
    /// Puts since it was created, from 1.
    pub version: u64,
    /// Revision that created it.
    pub create_revision: u64,
    /// Revision that set it last.
    pub mod_revision: u64,
    /// Its lease, 0 for none.
    pub lease: u64,
}

impl Row<'_> {
    /// The same as a value of its own.
    #[must_use]
    pub fn to_key_value(&self) -> KeyValue {
        KeyValue {
            key: self.key.to_vec(),
            value: self.value.to_vec(),
            version: self.version,
            create_revision: self.create_revision,
            mod_revision: self.mod_revision,
            lease: self.lease,
        }
    }
}

/// A change of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Revision that it made.
    pub revision: u64,
    /// The key.
    pub key: Vec<u8>,
    /// The version it made; `None` for a delete.
    pub put: Option<KeyValue>,
}

/// Rows of a range, and whether there are more.
pub type Page = (Vec<KeyValue>, bool);

/// How to read a range.
#[derive(Clone, Copy, Debug)]
pub struct RangeOptions {
    /// Most rows.
    pub limit: usize,
    /// Most bytes of keys and values; one row comes in any case.
    pub max_bytes: usize,
    /// Revision to read at; 0 for the newest.
    pub revision: u64,
    /// From the end backwards.
    pub reverse: bool,
    /// Leave the values out.
    pub keys_only: bool,
}

type Outcome<T, B> = Result<T, KvError<<B as Read>::Error>>;

fn key_value(key: &[u8], version: Version, value: Vec<u8>) -> KeyValue {
    KeyValue {
        key: key.to_vec(),
        value,
        version: version.puts,
        create_revision: version.created,
        mod_revision: version.at.revision,
        lease: version.lease,
    }
}

pub(crate) fn latest<B: Read>(backend: &B, key: &[u8]) -> Outcome<Option<KeyValue>, B> {
    let Some(data) = backend.get(&latest_key(key)).map_err(KvError::Backend)? else {
        return Ok(None);
    };
    let (version, value) = Version::decode(&data)?;
    Ok(Some(key_value(key, version, value.to_vec())))
}

/// First key after all that begin with `prefix`; for prefixes that begin with a table's letter.
pub(crate) fn after(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            break;
        }
    }
    end
}

pub(crate) fn next_table(table: u8) -> Vec<u8> {
    vec![table + 1]
}

fn check_revision<B: Read>(meta: &Meta, revision: u64) -> Outcome<(), B> {
    if revision != 0 && revision < meta.compact_revision {
        return Err(KvError::Compacted {
            asked: revision,
            kept: meta.compact_revision,
        });
    }
    Ok(())
}

/// Read a key at a revision; 0 is the newest.
///
/// # Errors
/// [`KvError::Compacted`], and what the backend says.
pub fn get<B: Read>(backend: &B, meta: &Meta, key: &[u8], revision: u64) -> Outcome<Option<KeyValue>, B> {
    check_revision::<B>(meta, revision)?;
    if revision == 0 || revision >= meta.revision {
        return latest(backend, key);
    }
    at_revision(backend, key, revision)
}

/// Undo the changes of a key from the newest backwards until the one that was in force at `revision`.
fn at_revision<B: Read>(backend: &B, key: &[u8], revision: u64) -> Outcome<Option<KeyValue>, B> {
    let newest = match backend.get(&latest_key(key)).map_err(KvError::Backend)? {
        Some(data) => {
            let (version, value) = Version::decode(&data)?;
            Before::Live(version, value.to_vec())
        }
        None => match backend.get(&deleted_key(key)).map_err(KvError::Backend)? {
            Some(data) => Before::Deleted(Point::decode(&data)?),
            None => Before::Nothing,
        },
    };
    undo(backend, key, newest, revision)
}

/// Undo changes of a key from a state of it backwards until the one that was in force at `revision`.
fn undo<B: Read>(backend: &B, key: &[u8], mut state: Before, revision: u64) -> Outcome<Option<KeyValue>, B> {
    loop {
        let made = match state {
            Before::Nothing => return Ok(None),
            Before::Deleted(at) if at.revision <= revision => return Ok(None),
            Before::Deleted(at) => at,
            Before::Live(version, _) if version.at.revision > revision => version.at,
            Before::Live(version, value) => return Ok(Some(key_value(key, version, value))),
        };
        state = change_at(backend, made)?.before;
    }
}

fn change_at<B: Read>(backend: &B, at: Point) -> Outcome<Change, B> {
    let data = backend
        .get(&event_key(at))
        .map_err(KvError::Backend)?
        .ok_or_else(damaged)?;
    Change::decode(&data)
}

/// Read the keys in `[start, end)`; an empty `end` means only the key `start`.
///
/// # Errors
/// [`KvError::Compacted`], and what the backend says.
pub fn range<B: Read>(backend: &B, meta: &Meta, start: &[u8], end: &[u8], options: &RangeOptions) -> Outcome<Page, B> {
    check_revision::<B>(meta, options.revision)?;
    if end.is_empty() {
        return Ok((
            get(backend, meta, start, options.revision)?.into_iter().collect(),
            false,
        ));
    }
    let mut page = PageBuilder {
        rows: Vec::new(),
        bytes: 0,
        more: false,
        options,
    };
    if options.revision == 0 || options.revision >= meta.revision {
        range_now(backend, start, end, &mut page)?;
    } else {
        range_then(backend, start, end, &mut page)?;
    }
    Ok((page.rows, page.more))
}

/// Visit the keys in `[start, end)` in order as they were at a revision (0 for the newest), until the visitor breaks.
/// Values that have not changed since are not copied.
///
/// # Errors
/// [`KvError::Compacted`], and what the backend says.
pub fn visit<B: Read>(
    backend: &B,
    meta: &Meta,
    range: (&[u8], &[u8]),
    revision: u64,
    mut each: impl FnMut(Row<'_>) -> ControlFlow<()>,
) -> Outcome<(), B> {
    look(backend, meta, range, revision, |_, row| {
        row.map_or(ControlFlow::Continue(()), &mut each)
    })
}

/// As [`visit`], but told also of keys that were not there then: who bounds its work has to count them.
///
/// # Errors
/// [`KvError::Compacted`], and what the backend says.
pub fn look<B: Read>(
    backend: &B,
    meta: &Meta,
    (start, end): (&[u8], &[u8]),
    revision: u64,
    mut each: impl FnMut(&[u8], Option<Row<'_>>) -> ControlFlow<()>,
) -> Outcome<(), B> {
    check_revision::<B>(meta, revision)?;
    if revision == 0 || revision >= meta.revision {
        return visit_now(backend, start, end, false, |key, version, value| {
            each(key, Some(row(key, version, value)))
        });
    }
    let mut start = start.to_vec();
    loop {
        let deleted = deletes(backend, &start, end)?;
        // Behind the last of them nothing can be told before the next ones are known.
        let reach = (deleted.len() == STEP_ROWS).then(|| {
            let mut after = deleted.last().expect("there are some").0.clone();
            after.push(0);
            after
        });
        let until = reach.as_deref().unwrap_or(end);
        if look_then(backend, (&start, until), deleted, revision, &mut each)?.is_break() {
            return Ok(());
        }
        match reach {
            Some(reach) => start = reach,
            None => return Ok(()),
        }
    }
}

/// The first keys in a range that have been deleted and are still known, and when that was.
fn deletes<B: Read>(backend: &B, start: &[u8], end: &[u8]) -> Outcome<Vec<(Vec<u8>, Point)>, B> {
    let mut found = Vec::new();
    let visit = |key: &[u8], data: &[u8]| {
        found.push((key[1..].to_vec(), Point::decode::<B::Error>(data)));
        if found.len() < STEP_ROWS {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    };
    backend
        .scan(&deleted_key(start), &deleted_key(end), false, visit)
        .map_err(KvError::Backend)?;
    found.into_iter().map(|(key, at)| Ok((key, at?))).collect()
}

/// Merge the keys that are there now with those that have been `deleted` since, and visit each as it was then.
fn look_then<B: Read>(
    backend: &B,
    (start, end): (&[u8], &[u8]),
    deleted: Vec<(Vec<u8>, Point)>,
    revision: u64,
    each: &mut impl FnMut(&[u8], Option<Row<'_>>) -> ControlFlow<()>,
) -> Outcome<ControlFlow<()>, B> {
    let mut deleted = deleted.into_iter().peekable();
    let mut flow = Ok(ControlFlow::Continue(()));
    let goes_on = |flow: &Outcome<ControlFlow<()>, B>| matches!(flow, Ok(ControlFlow::Continue(())));
    visit_now(backend, start, end, false, |key, version, value| {
        while let Some((gone, at)) = deleted.next_if(|(gone, _)| gone[..] < *key) {
            flow = look_back(backend, &gone, at, revision, each);
            if !goes_on(&flow) {
                return ControlFlow::Break(());
            }
        }
        flow = if version.at.revision <= revision {
            Ok(each(key, Some(row(key, version, value))))
        } else {
            look_back(backend, key, version.at, revision, each)
        };
        if goes_on(&flow) {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    })?;
    for (gone, at) in deleted {
        if !goes_on(&flow) {
            break;
        }
        flow = look_back(backend, &gone, at, revision, each);
    }
    flow
}

/// Visit a key, which the change at `made` has made what it is now, as it was at a revision.
fn look_back<B: Read>(
    backend: &B,
    key: &[u8],
    made: Point,
    revision: u64,
    each: &mut impl FnMut(&[u8], Option<Row<'_>>) -> ControlFlow<()>,
) -> Outcome<ControlFlow<()>, B> {
    if made.revision <= revision {
        return Ok(each(key, None));
    }
    let found = undo(backend, key, change_at(backend, made)?.before, revision)?;
    Ok(each(key, found.as_ref().map(KeyValue::as_row)))
}

/// Visit the keys in `[start, end)` in order as they are in the newest revision, until the visitor breaks.
///
/// # Errors
/// What the backend says.
pub fn visit_keys<B: Read>(
    backend: &B,
    (start, end): (&[u8], &[u8]),
    mut each: impl FnMut(&[u8]) -> ControlFlow<()>,
) -> Outcome<(), B> {
    backend
        .scan_keys(&latest_key(start), &latest_key(end), |key| each(&key[1..]))
        .map_err(KvError::Backend)
}

fn row<'a>(key: &'a [u8], version: Version, value: &'a [u8]) -> Row<'a> {
    Row {
        key,
        value,
        version: version.puts,
        create_revision: version.created,
        mod_revision: version.at.revision,
        lease: version.lease,
    }
}

fn visit_now<B: Read>(
    backend: &B,
    start: &[u8],
    end: &[u8],
    reverse: bool,
    mut each: impl FnMut(&[u8], Version, &[u8]) -> ControlFlow<()>,
) -> Outcome<(), B> {
    let mut problem = None;
    let visit = |key: &[u8], data: &[u8]| match Version::decode::<B::Error>(data) {
        Ok((version, value)) => each(&key[1..], version, value),
        Err(error) => {
            problem = Some(error);
            ControlFlow::Break(())
        }
    };
    backend
        .scan(&latest_key(start), &latest_key(end), reverse, visit)
        .map_err(KvError::Backend)?;
    problem.map_or(Ok(()), Err)
}

struct PageBuilder<'a> {
    rows: Vec<KeyValue>,
    bytes: usize,
    more: bool,
    options: &'a RangeOptions,
}

impl PageBuilder<'_> {
    /// Whether a row of this size still goes on the page; if not, there is more.
    fn admits(&mut self, bytes: usize) -> bool {
        let full = self.rows.len() >= self.options.limit;
        if full || !self.rows.is_empty() && self.bytes + bytes > self.options.max_bytes {
            self.more = true;
            return false;
        }
        self.bytes += bytes;
        true
    }
}

fn range_now<B: Read>(backend: &B, start: &[u8], end: &[u8], page: &mut PageBuilder<'_>) -> Outcome<(), B> {
    let (reverse, keys_only) = (page.options.reverse, page.options.keys_only);
    visit_now(backend, start, end, reverse, |key, version, value| {
        let value = if keys_only { &[] } else { value };
        if !page.admits(key.len() + value.len()) {
            return ControlFlow::Break(());
        }
        page.rows.push(key_value(key, version, value.to_vec()));
        ControlFlow::Continue(())
    })
}

/// Keys that are there now and keys that have been deleted since, merged in order, each as it was then.
fn range_then<B: Read>(backend: &B, start: &[u8], end: &[u8], page: &mut PageBuilder<'_>) -> Outcome<(), B> {
    let (mut start, mut end) = (start.to_vec(), end.to_vec());
    loop {
        let (keys, last) = step(backend, &start, &end, page.options.reverse)?;
        for key in keys {
            let Some(mut row) = at_revision(backend, &key, page.options.revision)? else {
                continue;
            };
            if page.options.keys_only {
                row.value.clear();
            }
            if !page.admits(row.key.len() + row.value.len()) {
                return Ok(());
            }
            page.rows.push(row);
        }
        match last {
            None => return Ok(()),
            Some(key) if page.options.reverse => end = key,
            Some(mut key) => {
                key.push(0);
                start = key;
            }
        }
    }
}

/// Return the next keys of both tables in order, and the last of them if there may be more after it.
#[allow(clippy::type_complexity, reason = "two lists and an end")]
fn step<B: Read>(backend: &B, start: &[u8], end: &[u8], reverse: bool) -> Outcome<(Vec<Vec<u8>>, Option<Vec<u8>>), B> {
    let mut keys = Vec::new();
    let mut reach: Option<Vec<u8>> = None;
    for table in [LATEST, DELETED] {
        let from = keys.len();
        let visit = |key: &[u8], _: &[u8]| {
            keys.push(key[1..].to_vec());
            if keys.len() - from < STEP_ROWS {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        };
        let bounds = [[&[table], start].concat(), [&[table], end].concat()];
        backend
            .scan(&bounds[0], &bounds[1], reverse, visit)
            .map_err(KvError::Backend)?;
        if keys.len() - from == STEP_ROWS {
            // This table may go on, so nothing beyond its last key can be told yet.
            let last = keys.last().cloned();
            reach = match (reach, last) {
                (Some(one), Some(other)) if reverse => Some(one.max(other)),
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            };
        }
    }
    if let Some(reach) = &reach {
        keys.retain(|key| if reverse { key >= reach } else { key <= reach });
    }
    keys.sort_unstable();
    if reverse {
        keys.reverse();
    }
    Ok((keys, reach))
}

/// Count the keys in `[start, end)`, up to `limit`.
///
/// # Errors
/// What the backend says.
pub fn count<B: Read>(backend: &B, start: &[u8], end: &[u8], limit: u64) -> Outcome<u64, B> {
    let mut found = 0;
    let visit = |_: &[u8]| {
        found += 1;
        if found < limit {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    };
    backend
        .scan_keys(&latest_key(start), &latest_key(end), visit)
        .map_err(KvError::Backend)?;
    Ok(found)
}

/// Events after a revision on keys with one of the prefixes, in whole revisions, and the revision up to which
/// everything was looked at. At most about `limit` events and `max_bytes`, but one revision at least; the work is
/// bounded also when nothing matches.
///
/// # Errors
/// [`KvError::Compacted`], and what the backend says.
pub fn events<B: Read>(
    backend: &B,
    meta: &Meta,
    after_revision: u64,
    prefixes: &[Vec<u8>],
    limit: usize,
    max_bytes: usize,
) -> Outcome<(Vec<Event>, u64), B> {
    if after_revision < meta.compact_revision {
        return Err(KvError::Compacted {
            asked: after_revision,
            kept: meta.compact_revision,
        });
    }
    let start = event_key(Point {
        revision: after_revision.saturating_add(1),
        number: 0,
    });
    let mut raw: Vec<(u64, Change)> = Vec::new();
    let (mut looked_at, mut bytes, mut seen) = (0, 0, meta.revision.max(after_revision));
    let mut current = 0;
    let mut problem = None;
    let visit = |key: &[u8], data: &[u8]| {
        let parsed = Point::of_event_key::<B::Error>(key).and_then(|at| Ok((at, Change::decode(data)?)));
        let (at, change) = match parsed {
            Ok(parsed) => parsed,
            Err(error) => {
                problem = Some(error);
                return ControlFlow::Break(());
            }
        };
        let full = raw.len() >= limit || bytes >= max_bytes || looked_at >= limit * EVENT_FACTOR;
        if full && at.revision != current {
            seen = current;
            return ControlFlow::Break(());
        }
        current = at.revision;
        looked_at += 1;
        if prefixes.iter().any(|prefix| change.key.starts_with(prefix)) {
            bytes += data.len();
            raw.push((at.revision, change));
        }
        ControlFlow::Continue(())
    };
    backend
        .scan(&start, &next_table(EVENTS), false, visit)
        .map_err(KvError::Backend)?;
    if let Some(problem) = problem {
        return Err(problem);
    }
    let events = raw
        .into_iter()
        .map(|(revision, change)| event(backend, revision, change))
        .collect::<Result<_, _>>()?;
    Ok((events, seen))
}

fn event<B: Read>(backend: &B, revision: u64, change: Change) -> Outcome<Event, B> {
    let put = match change.after {
        After::Deleted => None,
        After::Live(version, Some(value)) => Some(key_value(&change.key, version, value)),
        After::Live(version, None) => {
            let value = value_of(backend, &change.key, version.at)?;
            Some(key_value(&change.key, version, value))
        }
    };
    Ok(Event {
        revision,
        key: change.key,
        put,
    })
}

/// Find the value that the change at a point wrote, by undoing later ones.
fn value_of<B: Read>(backend: &B, key: &[u8], wanted: Point) -> Outcome<Vec<u8>, B> {
    let mut made = if let Some(data) = backend.get(&latest_key(key)).map_err(KvError::Backend)? {
        let (version, value) = Version::decode(&data)?;
        if version.at == wanted {
            return Ok(value.to_vec());
        }
        version.at
    } else {
        let data = backend
            .get(&deleted_key(key))
            .map_err(KvError::Backend)?
            .ok_or_else(damaged)?;
        Point::decode(&data)?
    };
    loop {
        match change_at(backend, made)?.before {
            Before::Nothing => return Err(damaged()),
            Before::Deleted(at) => made = at,
            Before::Live(version, value) if version.at == wanted => return Ok(value),
            Before::Live(version, _) => made = version.at,
        }
    }
}

/// The encoded fields of what the transaction of a request did; `None` where that is not remembered.
pub(crate) fn remembered<B: Read>(
    backend: &B,
    meta: &Meta,
    request: &[u8; REQUEST_ID_BYTES],
) -> Outcome<Option<Vec<u8>>, B> {
    for generation in [meta.generation, meta.generation.wrapping_sub(1)] {
        let found = backend
            .get(&request_key(generation, request))
            .map_err(KvError::Backend)?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// What the transaction of a request did, encoded as the results of a command with it alone.
///
/// # Errors
/// What the backend says.
pub fn recall<B: Read>(backend: &B, meta: &Meta, request: &[u8; REQUEST_ID_BYTES]) -> Outcome<Option<Vec<u8>>, B> {
    Ok(remembered(backend, meta, request)?.map(|fields| {
        let mut results = Results::of(1);
        results.add_remembered(&fields);
        results.finish()
    }))
}

/// Every lease with its time to live in ms.
///
/// # Errors
/// What the backend says.
pub fn leases<B: Read>(backend: &B) -> Outcome<Vec<(u64, u64)>, B> {
    let mut found = Vec::new();
    let visit = |key: &[u8], data: &[u8]| {
        if let (Ok(id), Ok(ttl)) = (key[1..].try_into(), data.try_into()) {
            found.push((u64::from_be_bytes(id), u64::from_le_bytes(ttl)));
        }
        ControlFlow::Continue(())
    };
    backend
        .scan(&[LEASES], &next_table(LEASES), false, visit)
        .map_err(KvError::Backend)?;
    Ok(found)
}

/// Time to live of a lease in ms; `None` when it is not there.
///
/// # Errors
/// What the backend says.
pub fn lease_ttl_ms<B: Read>(backend: &B, lease: u64) -> Outcome<Option<u64>, B> {
    match backend.get(&lease_key(lease)).map_err(KvError::Backend)? {
        None => Ok(None),
        Some(data) => Ok(Some(u64::from_le_bytes(data.try_into().map_err(|_| damaged())?))),
    }
}

/// Keys attached to a lease.
///
/// # Errors
/// What the backend says.
pub fn lease_keys<B: Read>(backend: &B, lease: u64) -> Outcome<Vec<Vec<u8>>, B> {
    let mut found = Vec::new();
    let visit = |key: &[u8], _: &[u8]| {
        found.push(key[9..].to_vec());
        ControlFlow::Continue(())
    };
    let end = after(&attached_key(lease, &[]));
    backend
        .scan(&attached_key(lease, &[]), &end, false, visit)
        .map_err(KvError::Backend)?;
    Ok(found)
}
