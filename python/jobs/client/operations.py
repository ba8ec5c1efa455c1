"""Every operation of the API as a typed request: the one place where the clients know paths, queries and bodies."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias, TypedDict

from msgspec import Raw
from msgspec.structs import replace

from jobs.client.requests import Call, Feed, Request, change, get, post, segment
from jobs.client.submission import new_key, to_content
from jobs.protocol import model
from jobs.protocol.model import JobState, JobSubmit, KvCompare, KvOp, Stream

Indices: TypeAlias = str | Iterable[int]
"""Of tasks: as text such as `5,10-20`, or as numbers."""

Consistency: TypeAlias = Literal["linearizable", "stale"]
"""`stale`: of the store of the node that is asked, which may be behind; by default the leader is asked."""

DEFAULT_SOCKET: Final = "/run/jobs/api.sock"


def default_socket() -> str:
    """Return what JOBS_SOCKET names, or the socket of the system's node."""
    return os.environ.get("JOBS_SOCKET") or DEFAULT_SOCKET


class JobFilter(TypedDict, total=False):
    """Which jobs: all that is given, and not None, must match; of several states one."""

    state: JobState | Sequence[JobState]
    type: str | None
    queue: str | None
    schedule: str | None
    labels: Mapping[str, str]


class WatchOptions(JobFilter, total=False):
    """Which jobs; `array` is for its tasks instead of everything but tasks."""

    array: str | None


class ListOptions(JobFilter, total=False):
    """Which jobs, in which order, and how many a request fetches. `owner` is a uid."""

    owner: int | None
    worker: str | None
    array: str | None
    """The tasks of this array instead of everything but tasks."""
    index: str | None
    """Of its tasks only this one, or these: `10-20`."""
    newest_first: bool
    page_size: int
    consistency: Consistency | None


class CancelOptions(JobFilter, total=False):
    """Which jobs; `all` without anything else is every job that may be ended."""

    owner: int | None
    worker: str | None
    all: bool


class AuditOptions(TypedDict, total=False):
    """Which entries: all that is given, and not None, must match."""

    job: str | None
    """What was done to this job."""
    uid: int | None
    """What this user did."""
    action: str | None
    """What it was, or how that begins: `job.`"""
    from_ms: int | None
    to_ms: int | None
    """Before this."""


# --- jobs ------------------------------------------------------------------------------------------------------------


def submit(job: JobSubmit) -> Call[model.Submitted]:
    """`job` carries an idempotency key, so that sending it again is safe."""
    return post("/v1/jobs", model.Submitted, job)


def submit_batch(jobs: list[Raw]) -> Call[model.BatchSubmitted]:
    """Each job carries an idempotency key."""
    call = post("/v1/jobs:batch", model.BatchSubmitted, {"jobs": jobs})
    return Call(replace(call.request, waits_for_room=False), call.answer)


def get_job(job: str, consistency: Consistency | None) -> Call[model.JobDetail]:
    return get(f"/v1/jobs/{segment(job)}", model.JobDetail, {"consistency": consistency})


def list_jobs(options: ListOptions, cursor: str | None) -> Call[model.JobPage]:
    _check_names(options, ListOptions)
    query = {
        **_filter(options),
        "owner": options.get("owner"),
        "worker": options.get("worker"),
        "array": options.get("array"),
        "index": options.get("index"),
        "order": "newest" if options.get("newest_first", True) else "oldest",
        "limit": options.get("page_size"),
        "cursor": cursor,
        "consistency": options.get("consistency"),
    }
    return get("/v1/jobs", model.JobPage, query)


def wait(job: str, timeout_s: float) -> Call[model.JobView]:
    return get(f"/v1/jobs/{segment(job)}/wait", model.JobView, {"timeout_s": timeout_s}, wait_s=timeout_s)


def result(job: str, attempt: int | None, timeout_s: float, consistency: Consistency | None) -> Call[model.JobResult]:
    query = {"attempt": attempt, "timeout_s": timeout_s, "consistency": consistency}
    return get(f"/v1/jobs/{segment(job)}/result", model.JobResult, query, wait_s=timeout_s)


def cancel(job: str) -> Call[model.CancelOutcome]:
    return post(f"/v1/jobs/{segment(job)}/cancel", model.CancelOutcome)


def cancel_tasks(array: str, indices: Indices) -> Call[model.CancelOutcome]:
    wanted = model.TasksCancel(indices=index_text(indices))
    return post(f"/v1/jobs/{segment(array)}/array/cancel", model.CancelOutcome, wanted)


def cancel_many(where: CancelOptions, cursor: str | None) -> Call[model.CancelPage]:
    _check_names(where, CancelOptions)
    wanted = model.CancelMany(
        labels=dict(where.get("labels", {})),
        queue=where.get("queue"),
        states=_states(where),
        type=where.get("type"),
        owner=where.get("owner"),
        worker=where.get("worker"),
        schedule=where.get("schedule"),
        all=where.get("all", False),
        cursor=cursor,
    )
    return post("/v1/jobs:cancel", model.CancelPage, wanted)


def cancelled(pages: Iterable[model.CancelPage]) -> model.CancelCounts:
    """Return what all pages of a cancellation did together."""
    cancelled = requested = already_final = 0
    for page in pages:
        cancelled += page.cancelled
        requested += page.requested
        already_final += page.already_final
    return model.CancelCounts(cancelled=cancelled, requested=requested, already_final=already_final)


def array(job: str) -> Call[model.ArrayView]:
    return get(f"/v1/jobs/{segment(job)}/array", model.ArrayView)


def watch_array(job: str) -> Feed[model.ArrayView]:
    return Feed(f"/v1/jobs/{segment(job)}/array/watch", {}, model.ArrayView)


def retry(
    array: str, indices: Indices | None, only: Literal["failed", "cancelled"] | None, idempotency_key: str | None
) -> Call[model.Submitted]:
    """A repetition of some tasks is given a key, so that sending it again is safe; of all there is only one anyway."""
    wanted = model.ArrayRetry(
        indices=None if indices is None else index_text(indices),
        only=only,
        idempotency_key=idempotency_key or new_key(),
    )
    return post(f"/v1/jobs/{segment(array)}/retry", model.Submitted, wanted)


def index_text(indices: Indices) -> str:
    """Return the indices of tasks as the API has them: `5,10-20`."""
    if isinstance(indices, str):
        return indices
    from jobs.indices import runs, text

    return text(runs(sorted(set(indices))))


def depend(job: str, on: Sequence[str]) -> Call[model.JobView]:
    return post(f"/v1/jobs/{segment(job)}/dependencies", model.JobView, {"depends_on": list(on)})


def graph(job: str, limit: int | None) -> Call[model.JobGraph]:
    return get(f"/v1/jobs/{segment(job)}/graph", model.JobGraph, {"limit": limit})


class LogOptions(TypedDict, total=False):
    """What of a job's output, and from where on."""

    streams: Sequence[Stream]
    attempt: int | Literal["all"] | None
    """By default the last one, with `follow` also those to come; `all`: one after the other."""
    follow: bool
    """Go on until the job has ended, or the attempt that was asked for."""
    tail_lines: int | None
    """From the last so many lines on."""
    tail_bytes: int | None
    """From the last so many bytes on: 0 is from now on."""


def attempts(job: str) -> Call[model.AttemptList]:
    return get(f"/v1/jobs/{segment(job)}/attempts", model.AttemptList)


def explain(job: str) -> Call[model.Explanation]:
    return get(f"/v1/jobs/{segment(job)}/explain", model.Explanation)


def logs(job: str, options: LogOptions) -> Feed[model.LogEvent]:
    _check_names(options, LogOptions)
    query = {
        "stream": list(options.get("streams", ())),
        "attempt": options.get("attempt"),
        "follow": options.get("follow", False),
        "tail_lines": options.get("tail_lines"),
        "tail_bytes": options.get("tail_bytes"),
    }
    return Feed(f"/v1/jobs/{segment(job)}/logs", query, model.LogEvent)


def watch_job(job: str, after_revision: int | None) -> Feed[model.JobEvent]:
    return Feed(f"/v1/jobs/{segment(job)}/watch", {"after_revision": after_revision}, model.JobEvent)


def watch_jobs(where: WatchOptions, after_revision: int | None) -> Feed[model.JobEvent]:
    _check_names(where, WatchOptions)
    query = {**_filter(where), "array": where.get("array"), "after_revision": after_revision}
    return Feed("/v1/jobs:watch", query, model.JobEvent)


def _check_names(given: Mapping[str, Any], options: Any) -> None:
    """Raise TypeError for what is no option of this TypedDict: a misspelt one must not mean a larger selection."""
    unknown = given.keys() - options.__optional_keys__
    if unknown:
        known = ", ".join(sorted(options.__optional_keys__))
        raise TypeError(f"unknown: {', '.join(sorted(unknown))}; expected some of {known}")


def _filter(where: JobFilter) -> dict[str, Any]:
    return {
        "state": _states(where),
        "type": where.get("type"),
        "queue": where.get("queue"),
        "schedule": where.get("schedule"),
        "label": [f"{name}={value}" for name, value in where.get("labels", {}).items()],
    }


def _states(where: JobFilter) -> list[JobState]:
    state = where.get("state", ())
    return [JobState(state)] if isinstance(state, str) else list(state)


# --- workers and node ------------------------------------------------------------------------------------------------


def list_workers() -> Call[model.WorkerList]:
    return get("/v1/workers", model.WorkerList)


def drain(worker: str) -> Call[model.WorkerView]:
    return post(f"/v1/workers/{segment(worker)}/drain", model.WorkerView)


def undrain(worker: str) -> Call[model.WorkerView]:
    return post(f"/v1/workers/{segment(worker)}/resume", model.WorkerView)


class OverviewLimits(TypedDict, total=False):
    """How many of each to tell at most, up to 100."""

    queues: int
    workers: int
    jobs: int
    failed: int


def overview(limits: OverviewLimits) -> Call[model.Overview]:
    _check_names(limits, OverviewLimits)
    return get("/v1/overview", model.Overview, limits)


def health() -> Call[model.Health]:
    return get("/v1/health", model.Health)


def ready() -> Call[model.Health]:
    return get("/v1/ready", model.Health)


METRICS: Final = Request(method="GET", target="/metrics")


# --- audit trail -----------------------------------------------------------------------------------------------------


def audit(where: AuditOptions, cursor: str | None) -> Call[model.AuditPage]:
    _check_names(where, AuditOptions)
    return get("/v1/audit", model.AuditPage, {**where, "limit": 1000, "cursor": cursor})


# --- key-value store -------------------------------------------------------------------------------------------------


def kv_get(key: str, revision: int, consistency: Consistency | None) -> Call[model.KeyValue]:
    return get("/v1/kv", model.KeyValue, {"key": key, "revision": revision, "consistency": consistency})


def kv_scan(
    prefix: str, *, revision: int, keys_only: bool, cursor: str | None, consistency: Consistency | None
) -> Call[model.KvPage]:
    query = {
        "prefix": prefix,
        "revision": revision,
        "keys_only": keys_only,
        "limit": 1000,
        "cursor": cursor,
        "consistency": consistency,
    }
    return get("/v1/kv:scan", model.KvPage, query)


def kv_put(key: str, value: bytes | str, lease: int) -> Call[model.KvTxnResult]:
    return post("/v1/kv:put", model.KvTxnResult, model.KvPut(key=key, value=to_content(value), lease=lease))


def kv_delete(key: str, prefix: bool) -> Call[model.KvTxnResult]:
    return post("/v1/kv:delete", model.KvTxnResult, model.KvDelete(key=key, prefix=prefix))


def kv_txn(compare: Sequence[KvCompare], then: Sequence[KvOp], otherwise: Sequence[KvOp]) -> Call[model.KvTxnResult]:
    txn = model.KvTxn(compare=list(compare), then=list(then), otherwise=list(otherwise))
    return post("/v1/kv:txn", model.KvTxnResult, txn)


def kv_watch(key: str, prefix: bool, after_revision: int | None) -> Feed[model.KvEvent]:
    return Feed("/v1/kv:watch", {"key": key, "prefix": prefix, "after_revision": after_revision}, model.KvEvent)


def lease_grant(ttl_s: float) -> Call[model.Lease]:
    return post("/v1/leases", model.Lease, model.LeaseGrant(ttl_s=ttl_s))


def lease_keepalive(lease: int) -> Call[model.Lease]:
    return post(f"/v1/leases/{lease}/keepalive", model.Lease)


def lease_revoke(lease: int) -> Request:
    return change("DELETE", f"/v1/leases/{lease}")
