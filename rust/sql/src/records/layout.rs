//! Which fields the records have, and which columns are made of them.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::msgpack::Value;

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Text,
    Int,
    Float,
    Bool,
    /// Milliseconds since 1970, as a timestamp.
    Time,
    /// Any value, as JSON.
    Json,
    /// A map to texts.
    Texts,
    /// A map to numbers.
    Counts,
    /// A list of times.
    Times,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Step {
    Item(usize),
    Member(&'static str),
}

/// A place in a record.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Path {
    pub field: usize,
    pub steps: &'static [Step],
    /// What a record has there that is older than the field, or leaves it out.
    pub default: Option<Value<'static>>,
}

/// Where the value of a column comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum From {
    /// The key, without its prefix.
    Name,
    /// The job that the key names.
    Job,
    /// The attempt that the key ends with.
    Attempt,
    /// The revision that the record was written at.
    Revision,
    At(Path),
    /// The first one if there is something, else the other.
    Either(Path, Path),
    /// The array that a task is of.
    ArrayId,
    /// The number of a task in its array.
    TaskIndex,
    /// The payload of the job's submission.
    Payload,
    /// The job that a schedule makes.
    Template,
    /// Whether an administrator has taken the worker out of use.
    Drained,
}

#[derive(Debug)]
pub(crate) struct Column {
    pub name: &'static str,
    pub from: From,
    pub kind: Kind,
    pub nullable: bool,
}

/// Who is shown a record: its owner is the number in a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Visible {
    Everybody,
    Owner(usize),
    Either(usize, usize),
    OwnerOfJob,
}

/// A kind of record as a table.
#[derive(Debug)]
pub(crate) struct Layout {
    pub table: &'static str,
    /// Name of its scans in a plan.
    pub scan: &'static str,
    pub prefix: &'static [u8],
    /// The column that comes first in the key.
    pub key_column: Option<&'static str>,
    /// More follows behind it in the key.
    pub key_has_rest: bool,
    pub visible: Visible,
    /// The record's fields in order.
    pub fields: &'static [&'static str],
    /// Fields of which there is no column.
    pub left_out: &'static [&'static str],
    pub columns: &'static [Column],
}

/// The part of a submission that is shown.
#[derive(Deserialize)]
pub(crate) struct Spec<'a> {
    #[serde(borrow)]
    pub payload: &'a RawValue,
}

impl Column {
    /// The last field of the record that the column needs.
    pub fn last_field(&self) -> Option<usize> {
        match self.from {
            From::At(path) => Some(path.field),
            From::Either(first, second) => Some(first.field.max(second.field)),
            From::ArrayId | From::TaskIndex | From::Payload => Some(IS_TASK),
            _ => None,
        }
    }
}

impl Visible {
    pub fn last_field(self) -> Option<usize> {
        match self {
            Self::Owner(field) => Some(field),
            Self::Either(one, other) => Some(one.max(other)),
            Self::Everybody | Self::OwnerOfJob => None,
        }
    }
}

/// Hexadecimal digits at the end of an id that tell the tasks of an array apart.
const TASK_DIGITS: usize = 5;

/// The id of the array that a task is of.
pub(crate) fn array_id(task: &str) -> String {
    let stem = task.get(..task.len().saturating_sub(TASK_DIGITS)).unwrap_or(task);
    format!("{stem}{}", "0".repeat(TASK_DIGITS))
}

/// The number of a task in its array.
pub(crate) fn task_index(task: &str) -> Option<i64> {
    let digits = task.get(task.len().checked_sub(TASK_DIGITS)?..)?;
    Some(i64::from_str_radix(digits, 16).ok()? - 1)
}

const fn at(field: usize) -> Path {
    Path {
        field,
        steps: &[],
        default: None,
    }
}

const fn or(field: usize, default: Value<'static>) -> Path {
    Path {
        field,
        steps: &[],
        default: Some(default),
    }
}

const fn deep(field: usize, steps: &'static [Step]) -> Path {
    Path {
        field,
        steps,
        default: None,
    }
}

const fn given(name: &'static str, from: From, kind: Kind) -> Column {
    Column {
        name,
        from,
        kind,
        nullable: false,
    }
}

const fn maybe(name: &'static str, from: From, kind: Kind) -> Column {
    Column {
        name,
        from,
        kind,
        nullable: true,
    }
}

const NO: Value<'static> = Value::Bool(false);
const ZERO: Value<'static> = Value::Int(0);
const ONE: Value<'static> = Value::Int(1);

/// Fields of a job's record that more than their own columns need.
pub(crate) const OWNER: usize = 3;
pub(crate) const IS_TASK: usize = 42;

const EXECUTION: usize = 3;
const TIMETABLE: usize = 1;
const LAST_LAPSE: usize = 18;

const fn execution(steps: &'static [Step]) -> From {
    From::At(deep(EXECUTION, steps))
}

use self::Kind::{Bool, Counts, Float, Int, Json, Text, Texts, Time, Times};
use self::Step::{Item, Member};

const JOBS: Layout = Layout {
    table: "jobs",
    scan: "JobsScan",
    prefix: b"/jobs/state/",
    key_column: Some("id"),
    key_has_rest: false,
    visible: Visible::Owner(OWNER),
    fields: &[
        "type",
        "queue",
        "priority",
        "owner",
        "state",
        "submitted_ms",
        "ready_ms",
        "delayed",
        "reason",
        "message",
        "attempt",
        "worker",
        "incarnation",
        "cancel_requested",
        "started_ms",
        "finished_ms",
        "exit_code",
        "signal",
        "timeout_s",
        "retry",
        "requires",
        "labels",
        "deadline_ms",
        "heartbeat_s",
        "waits_for",
        "on_failure",
        "has_children",
        "concurrency_key",
        "concurrency_limit",
        "unique_key",
        "retention",
        "redrive_of",
        "schedule",
        "nominal_ms",
        "stored_bytes",
        "log_bytes",
        "settled",
        "redriven_as",
        "held_until_ms",
        "logs_gone",
        "ref",
        "tasks",
        "is_task",
        "moved",
        "traceparent",
        "tracestate",
    ],
    left_out: &["unique_key", "moved", "tracestate"],
    columns: &[
        given("id", From::Job, Text),
        given("type", From::At(at(0)), Text),
        given("queue", From::At(at(1)), Text),
        given("priority", From::At(at(2)), Int),
        given("owner", From::At(at(OWNER)), Int),
        given("state", From::At(at(4)), Text),
        maybe("reason", From::At(at(8)), Text),
        maybe("message", From::At(at(9)), Text),
        given("attempt", From::At(or(10, ZERO)), Int),
        given(
            "max_attempts",
            From::At(Path {
                field: 19,
                steps: &[Member("max_attempts")],
                default: Some(ONE),
            }),
            Int,
        ),
        maybe("worker", From::At(at(11)), Text),
        maybe("incarnation", From::At(at(12)), Text),
        given("cancel_requested", From::At(or(13, NO)), Bool),
        maybe("exit_code", From::At(at(16)), Int),
        maybe("signal", From::At(at(17)), Int),
        given("submitted_at", From::At(at(5)), Time),
        given("ready_at", From::At(at(6)), Time),
        maybe("started_at", From::At(at(14)), Time),
        maybe("finished_at", From::At(at(15)), Time),
        maybe("deadline_at", From::At(at(22)), Time),
        given("delayed", From::At(or(7, NO)), Bool),
        maybe("timeout_s", From::At(at(18)), Float),
        maybe("heartbeat_s", From::At(at(23)), Float),
        given("waits_for", From::At(or(24, ZERO)), Int),
        given("on_failure", From::At(or(25, Value::Text("fail"))), Text),
        given("has_children", From::At(or(26, NO)), Bool),
        maybe("concurrency_key", From::At(at(27)), Text),
        given("concurrency_limit", From::At(or(28, ONE)), Int),
        given("labels", From::At(at(21)), Texts),
        maybe("requires", From::At(at(20)), Json),
        maybe("retry", From::At(at(19)), Json),
        maybe("retention", From::At(at(30)), Json),
        maybe("redrive_of", From::At(at(31)), Text),
        maybe("redriven_as", From::At(at(37)), Text),
        maybe("schedule", From::At(at(32)), Text),
        maybe("nominal_at", From::At(at(33)), Time),
        maybe("ref", From::At(at(40)), Text),
        given("tasks", From::At(or(41, ZERO)), Int),
        given("is_task", From::At(or(IS_TASK, NO)), Bool),
        maybe("array_id", From::ArrayId, Text),
        maybe("task_index", From::TaskIndex, Int),
        given("stored_bytes", From::At(or(34, ZERO)), Int),
        given("log_bytes", From::At(or(35, ZERO)), Int),
        given("settled", From::At(or(36, NO)), Bool),
        maybe("held_until", From::At(at(38)), Time),
        given("logs_gone", From::At(or(39, NO)), Bool),
        maybe("traceparent", From::At(at(44)), Text),
        maybe("payload", From::Payload, Json),
        given("revision", From::Revision, Int),
    ],
};

const RESULTS: Layout = Layout {
    table: "results",
    scan: "ResultsScan",
    prefix: b"/jobs/result/",
    key_column: Some("job_id"),
    key_has_rest: true,
    visible: Visible::OwnerOfJob,
    fields: &[
        "state",
        "reason",
        "message",
        "execution",
        "worker",
        "started_ms",
        "finished_ms",
        "query",
        "blob",
        "moved",
        "artefacts",
        "skipped",
        "maintenance",
        "replication",
    ],
    left_out: &["moved"],
    columns: &[
        given("job_id", From::Job, Text),
        given("attempt", From::Attempt, Int),
        given("state", From::At(at(0)), Text),
        maybe("reason", From::At(at(1)), Text),
        maybe("message", From::At(at(2)), Text),
        maybe(
            "worker",
            From::Either(deep(EXECUTION, &[Member("worker")]), at(4)),
            Text,
        ),
        maybe("incarnation", execution(&[Member("incarnation")]), Text),
        maybe("node", execution(&[Member("node")]), Text),
        maybe("queued_at", execution(&[Member("queued_ms")]), Time),
        maybe(
            "started_at",
            From::Either(deep(EXECUTION, &[Member("started_ms")]), at(5)),
            Time,
        ),
        maybe(
            "finished_at",
            From::Either(deep(EXECUTION, &[Member("finished_ms")]), at(6)),
            Time,
        ),
        maybe("wall_s", execution(&[Member("wall_s")]), Float),
        maybe("cpu_user_s", execution(&[Member("cpu_user_s")]), Float),
        maybe("cpu_system_s", execution(&[Member("cpu_system_s")]), Float),
        maybe("peak_memory_bytes", execution(&[Member("peak_memory_bytes")]), Int),
        maybe("exit_code", execution(&[Member("exit_code")]), Int),
        maybe("signal", execution(&[Member("signal")]), Int),
        maybe("sandbox", execution(&[Member("sandbox")]), Text),
        maybe("root", execution(&[Member("root")]), Text),
        maybe("stdout_bytes", execution(&[Member("stdout"), Member("bytes")]), Int),
        maybe(
            "stdout_stored_bytes",
            execution(&[Member("stdout"), Member("stored_bytes")]),
            Int,
        ),
        maybe(
            "stdout_truncated",
            execution(&[Member("stdout"), Member("truncated")]),
            Bool,
        ),
        maybe("stderr_bytes", execution(&[Member("stderr"), Member("bytes")]), Int),
        maybe(
            "stderr_stored_bytes",
            execution(&[Member("stderr"), Member("stored_bytes")]),
            Int,
        ),
        maybe(
            "stderr_truncated",
            execution(&[Member("stderr"), Member("truncated")]),
            Bool,
        ),
        maybe("query", From::At(at(7)), Json),
        maybe("blob", From::At(at(8)), Json),
        maybe("artefacts", From::At(at(10)), Json),
        maybe("skipped", From::At(at(11)), Json),
        maybe("maintenance", From::At(at(12)), Json),
        maybe("replication", From::At(at(13)), Json),
        given("revision", From::Revision, Int),
    ],
};

const WORKERS: Layout = Layout {
    table: "workers",
    scan: "WorkersScan",
    prefix: b"/workers/",
    key_column: Some("id"),
    key_has_rest: false,
    visible: Visible::Everybody,
    fields: &[
        "type",
        "incarnation",
        "node",
        "slots",
        "labels",
        "cpu_milli",
        "memory_bytes",
        "sandbox",
        "registered_ms",
        "stopping",
        "resources",
        "process",
    ],
    left_out: &[],
    columns: &[
        given("id", From::Name, Text),
        given("type", From::At(at(0)), Text),
        given("incarnation", From::At(at(1)), Text),
        given("node", From::At(at(2)), Text),
        given("process", From::At(or(11, Value::Text(""))), Text),
        given("slots", From::At(at(3)), Int),
        given("cpu_milli", From::At(at(5)), Int),
        given("memory_bytes", From::At(at(6)), Int),
        given("labels", From::At(at(4)), Texts),
        given("resources", From::At(at(10)), Counts),
        given("sandbox", From::At(at(7)), Text),
        given("registered_at", From::At(at(8)), Time),
        given("stopping", From::At(or(9, NO)), Bool),
        given("drained", From::Drained, Bool),
        given("revision", From::Revision, Int),
    ],
};

const SCHEDULES: Layout = Layout {
    table: "schedules",
    scan: "SchedulesScan",
    prefix: b"/schedules/state/",
    key_column: Some("name"),
    key_has_rest: false,
    visible: Visible::Owner(0),
    fields: &[
        "owner",
        "timetable",
        "catch_up",
        "max_catch_up",
        "catch_up_window_ms",
        "overlap",
        "max_queued",
        "max_per_minute",
        "since_ms",
        "passed_ms",
        "paused",
        "last_nominal_ms",
        "last_job",
        "queued",
        "fired_ms",
        "fired",
        "skipped",
        "missed",
        "last_lapse",
        "managed_by",
    ],
    left_out: &[],
    columns: &[
        given("name", From::Name, Text),
        given("owner", From::At(at(0)), Int),
        maybe("cron", From::At(deep(TIMETABLE, &[Item(0)])), Text),
        maybe("every_ms", From::At(deep(TIMETABLE, &[Item(1)])), Int),
        maybe("once_at", From::At(deep(TIMETABLE, &[Item(2)])), Time),
        given("timezone", From::At(deep(TIMETABLE, &[Item(3)])), Text),
        maybe("starts_at", From::At(deep(TIMETABLE, &[Item(4)])), Time),
        maybe("ends_at", From::At(deep(TIMETABLE, &[Item(5)])), Time),
        given("anchor_at", From::At(deep(TIMETABLE, &[Item(6)])), Time),
        given("catch_up", From::At(at(2)), Text),
        given("max_catch_up", From::At(at(3)), Int),
        given("catch_up_window_ms", From::At(at(4)), Int),
        given("overlap", From::At(at(5)), Text),
        given("max_queued", From::At(at(6)), Int),
        given("max_per_minute", From::At(at(7)), Int),
        given("since_at", From::At(at(8)), Time),
        given("passed_at", From::At(at(9)), Time),
        given("paused", From::At(or(10, NO)), Bool),
        maybe("last_nominal_at", From::At(at(11)), Time),
        maybe("last_job", From::At(at(12)), Text),
        given("queued", From::At(at(13)), Times),
        given("recent_fires", From::At(at(14)), Times),
        given("fired", From::At(or(15, ZERO)), Int),
        given("skipped", From::At(or(16, ZERO)), Int),
        given("missed", From::At(or(17, ZERO)), Int),
        maybe("last_lapse_nominal_at", From::At(deep(LAST_LAPSE, &[Item(0)])), Time),
        maybe("last_lapse_at", From::At(deep(LAST_LAPSE, &[Item(1)])), Time),
        maybe("last_lapse_outcome", From::At(deep(LAST_LAPSE, &[Item(2)])), Text),
        maybe("last_lapse_detail", From::At(deep(LAST_LAPSE, &[Item(3)])), Text),
        maybe("managed_by", From::At(at(19)), Text),
        maybe("job", From::Template, Json),
        given("revision", From::Revision, Int),
    ],
};

const AUDIT: Layout = Layout {
    table: "audit",
    scan: "AuditScan",
    prefix: b"/audit/",
    key_column: Some("at"),
    key_has_rest: true,
    visible: Visible::Either(1, 5),
    fields: &["at_ms", "uid", "action", "subject", "detail", "owner", "last", "made"],
    left_out: &[],
    columns: &[
        given("at", From::At(at(0)), Time),
        given("uid", From::At(at(1)), Int),
        given("action", From::At(at(2)), Text),
        given("subject", From::At(at(3)), Text),
        maybe("detail", From::At(at(4)), Text),
        maybe("owner", From::At(at(5)), Int),
        maybe("last_subject", From::At(at(6)), Text),
        maybe("made", From::At(at(7)), Text),
        given("revision", From::Revision, Int),
    ],
};

/// All of them.
pub(crate) const LAYOUTS: [&Layout; 5] = [&JOBS, &RESULTS, &WORKERS, &SCHEDULES, &AUDIT];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_has_a_column_or_is_left_out() {
        for layout in LAYOUTS {
            for (index, field) in layout.fields.iter().enumerate() {
                let used = layout.columns.iter().any(|column| match column.from {
                    From::At(path) => path.field == index,
                    From::Either(first, second) => first.field == index || second.field == index,
                    _ => false,
                });
                assert!(used != layout.left_out.contains(field), "{}.{field}", layout.table);
            }
        }
        assert_eq!((JOBS.fields[OWNER], JOBS.fields[IS_TASK]), ("owner", "is_task"));
        assert_eq!(RESULTS.fields[EXECUTION], "execution");
        assert_eq!(
            (SCHEDULES.fields[TIMETABLE], SCHEDULES.fields[LAST_LAPSE]),
            ("timetable", "last_lapse")
        );
    }

    #[test]
    fn tasks_know_their_array() {
        let task = "01890000-0000-7000-8000-00000000000b";
        assert_eq!(array_id(task), "01890000-0000-7000-8000-000000000000");
        assert_eq!(task_index(task), Some(10));
    }
}
