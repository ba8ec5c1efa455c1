//! Applies commands. A transaction is checked whole before anything of it is done, so it is done whole or not at all.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use crate::backend::{Backend, Read};
use crate::command::{
    Compare, Op, OpResult, Operator, REQUEST_ID_BYTES, Results, Target, Txn, TxnResult, decode, encode_fields,
    limit_problem,
};
use crate::error::KvError;
use crate::layout::{
    ATTACHED, After, Before, Change, EVENTS, INLINE_BYTES, LATEST, LEASES, META, Meta, Point, REQUESTS, Version,
    attached_key, deleted_key, event_key, kind_of, latest_key, lease_key, request_key,
};
use crate::read::{KeyValue, after, latest, next_table, remembered};
use crate::{MAX_DELETE_KEYS, MAX_REMEMBERED_BYTES, MAX_TXN_OPS};

/// Events that a command forgets at least, while there are any to forget.
const FORGET_MIN: usize = 64;
/// And so many more where it is asked to compact: that is written for nothing else, and again until all is given back.
const FORGET_ASKED: usize = 512;

/// Read where the machine stands; a new one stands at zero.
///
/// # Errors
/// [`KvError::Backend`] and [`KvError::Damaged`].
pub fn load<B: Read>(backend: &B) -> Result<Meta, KvError<B::Error>> {
    match backend.get(META).map_err(KvError::Backend)? {
        Some(data) => Meta::decode(&data),
        None => Ok(Meta::default()),
    }
}

/// Apply the command of one Raft entry; an empty one only advances the index. Returns the encoded results, one for each
/// transaction; nothing for an empty command. Replicas must agree on `generation_requests`, which is
/// [`crate::GENERATION_REQUESTS`] but in tests.
///
/// # Errors
/// [`KvError`]; the caller must then give up everything it wrote to the backend since the last commit.
pub fn apply<B: Backend>(
    backend: &mut B,
    meta: &mut Meta,
    (index, term, command): (u64, u64, &[u8]),
    generation_requests: u64,
) -> Result<Vec<u8>, KvError<B::Error>> {
    let mut machine = Machine {
        backend,
        meta: *meta,
        generation_requests,
        events: 0,
        number: 0,
        asked: false,
    };
    let results = if command.is_empty() {
        Vec::new()
    } else {
        let txns = decode(command)?;
        let mut results = Results::of(txns.len());
        for txn in &txns {
            machine.apply(txn, &mut results)?;
        }
        results.finish()
    };
    let asked = if machine.asked { FORGET_ASKED } else { 0 };
    let events = machine.events;
    machine.forget(FORGET_MIN + 2 * events + asked)?;
    machine.meta.index = index;
    machine.meta.term = term;
    let now = machine.meta;
    backend.put(META, &now.encode()).map_err(KvError::Backend)?;
    *meta = now;
    Ok(results)
}

struct Machine<'a, B> {
    backend: &'a mut B,
    meta: Meta,
    generation_requests: u64,
    /// Events written by this command.
    events: usize,
    /// Number of the next change within the revision.
    number: u32,
    /// This command compacts.
    asked: bool,
}

type Outcome<T, B> = Result<T, KvError<<B as Read>::Error>>;

impl<B: Backend> Machine<'_, B> {
    /// Apply a transaction, unless one with its request id was.
    fn apply(&mut self, txn: &Txn<'_>, results: &mut Results) -> Outcome<(), B> {
        let Some(id) = txn.request else {
            results.add(&encode_fields(&self.txn(txn)?));
            return Ok(());
        };
        if let Some(fields) = remembered(self.backend, &self.meta, id)? {
            results.add_remembered(&fields);
            return Ok(());
        }
        let result = self.txn(txn)?;
        let fields = encode_fields(&result);
        results.add(&fields);
        if fields.len() <= MAX_REMEMBERED_BYTES {
            return self.remember(id, &fields);
        }
        let short = TxnResult {
            error: "result_gone".into(),
            results: Vec::new(),
            ..result
        };
        self.remember(id, &encode_fields(&short))
    }

    fn remember(&mut self, id: &[u8; REQUEST_ID_BYTES], fields: &[u8]) -> Outcome<(), B> {
        if self.meta.requests >= self.generation_requests {
            self.meta.generation += 1;
            self.meta.requests = 0;
            let oldest = kind_of(&request_key(self.meta.generation, id));
            self.backend.clear(oldest).map_err(KvError::Backend)?;
        }
        self.meta.requests += 1;
        self.backend
            .put(&request_key(self.meta.generation, id), fields)
            .map_err(KvError::Backend)
    }

    fn txn(&mut self, txn: &Txn<'_>) -> Outcome<TxnResult, B> {
        let mut succeeded = true;
        for compare in &txn.compare {
            succeeded = succeeded && self.holds(compare)?;
        }
        let branch = if succeeded { &txn.then } else { &txn.otherwise };
        if let Some(error) = self.problem(txn, branch)? {
            return Ok(TxnResult {
                error,
                succeeded,
                revision: self.meta.revision,
                results: Vec::new(),
            });
        }
        self.number = 0;
        let mut results = Vec::with_capacity(branch.len());
        for op in branch {
            results.push(self.op(op)?);
        }
        if self.number > 0 {
            self.meta.revision += 1;
        }
        Ok(TxnResult {
            error: String::new(),
            succeeded,
            revision: self.meta.revision,
            results,
        })
    }

    fn holds(&self, compare: &Compare<'_>) -> Outcome<bool, B> {
        let found = latest(self.backend, compare.key)?;
        let number = |pick: fn(&KeyValue) -> u64| found.as_ref().map_or(0, pick);
        let ordering = match compare.target {
            Target::Version(right) => number(|kv| kv.version).cmp(&right),
            Target::CreateRevision(right) => number(|kv| kv.create_revision).cmp(&right),
            Target::ModRevision(right) => number(|kv| kv.mod_revision).cmp(&right),
            Target::Lease(right) => number(|kv| kv.lease).cmp(&right),
            Target::Value(right) => found.as_ref().map_or(&[][..], |kv| &kv.value).cmp(right),
        };
        Ok(match compare.operator {
            Operator::Equal => ordering.is_eq(),
            Operator::NotEqual => ordering.is_ne(),
            Operator::Less => ordering.is_lt(),
            Operator::Greater => ordering.is_gt(),
        })
    }

    /// Why the branch cannot be done whole, if so: a limit, or a lease that is not there when its turn comes.
    fn problem(&self, txn: &Txn<'_>, branch: &[Op<'_>]) -> Outcome<Option<String>, B> {
        if let Some(problem) = limit_problem(txn, branch) {
            return Ok(Some(problem));
        }
        let mut granted = BTreeSet::new();
        let mut revoked = BTreeSet::new();
        for op in branch {
            match *op {
                Op::LeaseGrant { id, .. } => {
                    granted.insert(id);
                    revoked.remove(&id);
                }
                Op::LeaseRevoke { id } => {
                    granted.remove(&id);
                    revoked.insert(id);
                    let attached = self.count(&attached_key(id, &[]), &after(&attached_key(id, &[])))?;
                    if attached > MAX_DELETE_KEYS {
                        return Ok(Some(format!("limit: lease {id} has more than {MAX_DELETE_KEYS} keys")));
                    }
                }
                Op::Put { lease, .. } if lease != 0 && !granted.contains(&lease) => {
                    let there = self.backend.get(&lease_key(lease)).map_err(KvError::Backend)?.is_some();
                    if !there || revoked.contains(&lease) {
                        return Ok(Some("lease_not_found".into()));
                    }
                }
                Op::Delete { key, end } if !end.is_empty() => {
                    let count = self.count(&latest_key(key), &latest_key(end))?;
                    if count > MAX_DELETE_KEYS {
                        return Ok(Some(format!("limit: a delete of more than {MAX_DELETE_KEYS} keys")));
                    }
                }
                _ => {}
            }
        }
        Ok(None)
    }

    /// Count the keys in a range of the backend, up to one more than may be deleted at once.
    fn count(&self, start: &[u8], end: &[u8]) -> Outcome<usize, B> {
        Ok(self.keys(start, end, MAX_DELETE_KEYS + 1)?.len())
    }

    fn keys(&self, start: &[u8], end: &[u8], limit: usize) -> Outcome<Vec<Vec<u8>>, B> {
        let mut found = Vec::new();
        let visit = &mut |key: &[u8], _: &[u8]| {
            found.push(key.to_vec());
            if found.len() < limit {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        };
        self.backend.scan(start, end, false, visit).map_err(KvError::Backend)?;
        Ok(found)
    }

    fn op(&mut self, op: &Op<'_>) -> Outcome<OpResult, B> {
        match *op {
            Op::Put { key, value, lease } => self.put(key, value, lease).map(|()| OpResult::Nothing),
            Op::Delete { key, end: [] } => Ok(OpResult::Deleted(u64::from(self.delete(key)?))),
            Op::Delete { key, end } => {
                // Puts of the same transaction may have added as many again as may be in it.
                let keys = self.keys(&latest_key(key), &latest_key(end), MAX_DELETE_KEYS + MAX_TXN_OPS)?;
                for key in &keys {
                    self.delete(&key[1..])?;
                }
                Ok(OpResult::Deleted(keys.len() as u64))
            }
            Op::Get { key } => Ok(OpResult::Found(latest(self.backend, key)?)),
            Op::LeaseGrant { id, ttl_ms } => {
                self.backend
                    .put(&lease_key(id), &ttl_ms.to_le_bytes())
                    .map_err(KvError::Backend)?;
                Ok(OpResult::Deleted(0))
            }
            Op::LeaseRevoke { id } => {
                if self.backend.get(&lease_key(id)).map_err(KvError::Backend)?.is_none() {
                    return Ok(OpResult::Nothing);
                }
                let limit = MAX_DELETE_KEYS + MAX_TXN_OPS;
                let keys = self.keys(&attached_key(id, &[]), &after(&attached_key(id, &[])), limit)?;
                for key in &keys {
                    self.delete(&key[9..])?;
                }
                self.backend.delete(&lease_key(id)).map_err(KvError::Backend)?;
                Ok(OpResult::Deleted(keys.len() as u64))
            }
            Op::Compact { revision } => {
                self.meta.compact_revision = self.meta.compact_revision.max(revision.min(self.meta.revision));
                self.asked = true;
                Ok(OpResult::Nothing)
            }
            Op::Keep { events } => {
                self.meta.max_events = events;
                Ok(OpResult::Nothing)
            }
        }
    }

    fn put(&mut self, key: &[u8], value: &[u8], lease: u64) -> Outcome<(), B> {
        let at = self.next_point();
        let before = self.before(key)?;
        let mut version = Version {
            puts: 1,
            created: at.revision,
            at,
            lease,
        };
        match &before {
            Before::Live(old, _) => {
                version.puts = old.puts + 1;
                version.created = old.created;
                if old.lease != lease {
                    self.detach(old.lease, key)?;
                }
            }
            Before::Deleted(_) => self.backend.delete(&deleted_key(key)).map_err(KvError::Backend)?,
            Before::Nothing => {}
        }
        if lease != 0 {
            self.backend
                .put(&attached_key(lease, key), &[])
                .map_err(KvError::Backend)?;
        }
        self.backend
            .put(&latest_key(key), &version.encode_with(value))
            .map_err(KvError::Backend)?;
        let inline = (value.len() <= INLINE_BYTES).then(|| value.to_vec());
        self.record(
            at,
            &Change {
                key: key.to_vec(),
                after: After::Live(version, inline),
                before,
            },
        )
    }

    fn delete(&mut self, key: &[u8]) -> Outcome<bool, B> {
        let before = self.before(key)?;
        let Before::Live(old, _) = &before else {
            return Ok(false);
        };
        let at = self.next_point();
        self.detach(old.lease, key)?;
        self.backend.delete(&latest_key(key)).map_err(KvError::Backend)?;
        self.backend
            .put(&deleted_key(key), &at.encode())
            .map_err(KvError::Backend)?;
        self.record(
            at,
            &Change {
                key: key.to_vec(),
                after: After::Deleted,
                before,
            },
        )?;
        Ok(true)
    }

    fn next_point(&self) -> Point {
        Point {
            revision: self.meta.revision + 1,
            number: self.number,
        }
    }

    fn before(&self, key: &[u8]) -> Outcome<Before, B> {
        if let Some(data) = self.backend.get(&latest_key(key)).map_err(KvError::Backend)? {
            let (version, value) = Version::decode(&data)?;
            return Ok(Before::Live(version, value.to_vec()));
        }
        match self.backend.get(&deleted_key(key)).map_err(KvError::Backend)? {
            Some(data) => Ok(Before::Deleted(Point::decode(&data)?)),
            None => Ok(Before::Nothing),
        }
    }

    fn detach(&mut self, lease: u64, key: &[u8]) -> Outcome<(), B> {
        if lease == 0 {
            return Ok(());
        }
        self.backend.delete(&attached_key(lease, key)).map_err(KvError::Backend)
    }

    fn record(&mut self, at: Point, change: &Change) -> Outcome<(), B> {
        self.events += 1;
        self.meta.events += 1;
        self.number += 1;
        self.backend
            .put(&event_key(at), &change.encode())
            .map_err(KvError::Backend)
    }

    /// Give back up to `limit` events, oldest first: those that compaction has made unreadable, and what history has
    /// more of than it may.
    fn forget(&mut self, limit: usize) -> Outcome<(), B> {
        let max_events = self.meta.max_events;
        let surplus = if max_events == 0 {
            0
        } else {
            self.meta.events.saturating_sub(max_events)
        };
        let mut compact_revision = self.meta.compact_revision;
        let mut gone: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        let mut problem = None;
        let visit = &mut |key: &[u8], data: &[u8]| {
            match Point::of_event_key::<B::Error>(key) {
                Ok(at) if at.revision <= compact_revision || (gone.len() as u64) < surplus => {
                    compact_revision = compact_revision.max(at.revision);
                    gone.push((key.to_vec(), data.to_vec()));
                }
                Ok(_) => return ControlFlow::Break(()),
                Err(error) => problem = Some(error),
            }
            if gone.len() < limit && problem.is_none() {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        };
        self.backend
            .scan(&[EVENTS], &next_table(EVENTS), false, visit)
            .map_err(KvError::Backend)?;
        if let Some(problem) = problem {
            return Err(problem);
        }
        self.meta.compact_revision = compact_revision;
        self.meta.events = self.meta.events.saturating_sub(gone.len() as u64);
        for (key, data) in gone {
            let change = Change::decode(&data)?;
            if change.after == After::Deleted {
                let mark = deleted_key(&change.key);
                let at = Point::of_event_key(&key)?;
                if self.backend.get(&mark).map_err(KvError::Backend)? == Some(at.encode()) {
                    self.backend.delete(&mark).map_err(KvError::Backend)?;
                }
            }
            self.backend.delete(&key).map_err(KvError::Backend)?;
        }
        Ok(())
    }
}

/// Visit everything that replicas must agree on after one entry, in order: the newest versions, the leases with what is
/// attached to them, and the request ids that are remembered.
///
/// # Errors
/// [`KvError::Backend`].
pub fn visit_state<B: Read>(backend: &B, visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), KvError<B::Error>> {
    for table in [ATTACHED, LATEST, LEASES, REQUESTS[0], REQUESTS[1]] {
        let mut each = |key: &[u8], value: &[u8]| {
            visit(key, value);
            ControlFlow::Continue(())
        };
        backend
            .scan(&[table], &next_table(table), false, &mut each)
            .map_err(KvError::Backend)?;
    }
    Ok(())
}
