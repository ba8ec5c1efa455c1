"""What jobs of type replication have their node do: syncs and comparisons."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import Any, Final, Literal, Protocol

from msgspec import structs

from jobs import keys, records
from jobs.clock import wall_ms
from jobs.control.queries import check_admin
from jobs.control.transitions import read_job
from jobs.errors import OperationUnderWay, StorageFull, TooManyRequests, Unavailable
from jobs.operations import News, told
from jobs.protocol.ids import JobId, Revision
from jobs.protocol.model import (
    JobState,
    OperationNews,
    ReplicationDone,
    ReplicationPerform,
    ReplicationResult,
    ReplicationSync,
    ReplicationVerify,
)
from jobs.records import SyncRecord
from jobs.replication.keysync import KeySync
from jobs.replication.run import Clock, Progress, Run, Work
from jobs.replication.side import Side
from jobs.replication.status import Status
from jobs.replication.tagsync import TagSync
from jobs.replication.throttle import Limiter
from jobs.replication.verifying import verify_keys, verify_tags
from jobs.service import Caller, LabelledMetrics
from jobs.store import Store

logger = logging.getLogger(__name__)

RETRY_S: Final = 0.5
MAX_RETRY_S: Final = 15.0
MAX_DOUBLINGS: Final = 6
MAX_MESSAGE: Final = 300
PATIENCE_S: Final = 60.0
"""A sync that is not continuous gives up when nothing has helped for so long; a new attempt goes on from there."""

_CLOCK: Final = Clock(now_s=time.monotonic, now_ms=wall_ms, pause=asyncio.sleep)


class Writer(Protocol):
    """What is written of a sync in the cluster whose job it is."""

    async def set_sync(self, name: str, record: SyncRecord) -> None: ...


class Operations:
    """Implements `service.ReplicationOperations`. `origin` is this cluster's id; `find` returns a linked cluster by the
    name of its link, or raises NotFound."""

    def __init__(
        self, store: Store, local: Side, origin: str, writer: Writer, find: Callable[[str], Side], clock: Clock = _CLOCK
    ) -> None:
        self._store = store
        self._local = local
        self._origin = origin
        self._writer = writer
        self._find = find
        self._clock = clock
        self._running: dict[str, Status] = {}
        """By the names of syncs that this node works on."""

    def perform(self, caller: Caller, wanted: ReplicationPerform) -> AsyncGenerator[OperationNews | ReplicationDone]:
        return told(partial(self._carry_out, caller, wanted))

    async def _carry_out(self, caller: Caller, wanted: ReplicationPerform, news: News) -> ReplicationDone:
        check_admin(caller, "replicate")
        began_s = self._clock.now_s()
        match wanted.payload:
            case ReplicationSync() as payload:
                result = await self._sync(wanted.job, payload, news)
            case ReplicationVerify() as payload:
                result = await self._verify(payload, news)
        seconds = round(self._clock.now_s() - began_s, 6)
        return ReplicationDone(result=structs.replace(result, seconds=seconds))

    def _sides(self, payload: ReplicationSync | ReplicationVerify) -> tuple[Side, Side]:
        """Raises NotFound for a link that is not there."""
        source = self._local if payload.source is None else self._find(payload.source)
        target = self._local if payload.target is None else self._find(payload.target)
        return source, target

    # --- sync ---------------------------------------------------------------------------------------------------------

    async def _sync(self, job: JobId, payload: ReplicationSync, news: News) -> ReplicationResult:
        """Be in step until there is no more to do, or nobody wants it any more; how it ended is written in any case."""
        source, target = self._sides(payload)
        former = await self._former(job, payload.name)
        work = _work(self._origin, job, payload)
        if former is None and payload.target is not None:
            # Forgotten here: what its cursor at the other cluster says is of another time.
            work = structs.replace(work, restart=True)
        status = self._running[payload.name] = Status(
            _record(job, payload, former), partial(self._writer.set_sync, payload.name), self._clock
        )
        writing = asyncio.ensure_future(status.run())
        phase: Literal["stopped", "failed"] = "stopped"
        error = ""
        try:
            await status.begin()
            await self._keep_on(source, target, work, payload, status, news)
            return _result(payload, status.total)
        except Exception as failed:
            phase, error = "failed", str(failed)
            raise
        finally:
            writing.cancel()
            await asyncio.wait([writing])
            if self._running.get(payload.name) is status:
                del self._running[payload.name]
            await status.end(phase, error)

    async def _former(self, job: JobId, name: str) -> SyncRecord | None:
        """Return what is stored of the sync. Raises OperationUnderWay while another job works on it."""
        await self._local.about()
        row = self._store.get(keys.sync(name))
        former = None if row is None else records.decode(SyncRecord, row[1])
        if former is not None and former.job not in (None, job) and former.phase in ("comparing", "following"):
            stored = read_job(self._store, former.job)
            if stored is not None and stored.record.state is JobState.RUNNING:
                raise OperationUnderWay(
                    f"job {former.job} works on sync {name!r}", expected="one at a time: cancel it first"
                )
        return former

    async def _keep_on(
        self, source: Side, target: Side, work: Work, payload: ReplicationSync, status: Status, news: News
    ) -> None:
        """Run it, and begin again after whatever may go well later: for ever, if it is continuous."""
        limiter = Limiter(payload.throttle, self._clock.now_s())
        made = TagSync if work.is_tags else KeySync
        went_s, tries, furthest = self._clock.now_s(), 0, (0, 0, 0)

        def tell(progress: Progress) -> None:
            nonlocal went_s, tries, furthest
            status.update(progress)
            _advance(news, progress)
            total = status.total
            now = progress.position, progress.compared, total.rows + total.deleted + total.blobs
            if any(one > other for one, other in zip(now, furthest, strict=True)):
                went_s, tries, furthest = self._clock.now_s(), 0, now

        while True:
            run: Run[Any] = made(source, target, work, limiter, self._clock, tell)
            try:
                await run.run()
                return
            except (Unavailable, TooManyRequests, StorageFull) as failed:
                # Room is made by people, which takes longer than a sync waits that is to end.
                patience_s = 0.0 if isinstance(failed, StorageFull) else PATIENCE_S
                if not work.continuous and self._clock.now_s() - went_s > patience_s:
                    raise
                logger.info("sync %s goes on later: %s", work.name, failed)
                status.failed(str(failed))
                status.again()
                news.advance(0, 0, f"tried again: {failed.detail}"[:MAX_MESSAGE])
                delay_s = min(MAX_RETRY_S, RETRY_S * 2**tries)
                tries = min(tries + 1, MAX_DOUBLINGS)
                await self._clock.pause(max(delay_s, min(failed.retry_after_s or 0.0, MAX_RETRY_S)))

    # --- verify -------------------------------------------------------------------------------------------------------

    async def _verify(self, payload: ReplicationVerify, news: News) -> ReplicationResult:
        source, target = self._sides(payload)
        if payload.tags is not None:
            found = await verify_tags(source, target, payload.tags)
        else:
            assert payload.prefix is not None
            target_prefix = payload.target_prefix or payload.prefix
            found = await verify_keys(
                source,
                target,
                payload.prefix,
                target_prefix,
                lambda rows: news.advance(rows, 0, f"{source.title} and {target.title}"),
            )
        for difference in found.differences:
            await news.line(**structs.asdict(difference))
        return ReplicationResult(
            operation="verify",
            rows=found.rows,
            bytes=found.bytes,
            source_revision=Revision(found.source_revision),
            target_revision=Revision(found.target_revision),
            differences=found.differences,
        )

    # --- how they are -------------------------------------------------------------------------------------------------

    def metrics(self) -> LabelledMetrics:
        """Of the syncs that this node works on."""
        now_ms = self._clock.now_ms()
        told: LabelledMetrics = {}
        for name, (help_text, value) in _METRICS.items():
            told[f"jobs_replication_{name}"] = (
                help_text,
                "sync",
                {sync: value(status, now_ms) for sync, status in self._running.items()},
            )
        return told


def lag_s(record: SyncRecord, now_ms: int) -> float:
    """Return for how long the target has not had all that the source had."""
    return 0.0 if record.behind_since_ms is None else max(0.0, (now_ms - record.behind_since_ms) / 1_000)


_METRICS: Final[dict[str, tuple[str, Callable[[Status, int], float]]]] = {
    "lag_seconds": ("For how long a target has not had all that its source had", lambda s, now: lag_s(s.record, now)),
    "lag_revisions": (
        "Revisions of its source that a target has not",
        lambda s, now: max(0, s.record.source_revision - s.record.position),
    ),
    "position": ("Revision of its source up to which a target has everything", lambda s, now: s.record.position),
    "rows_total": ("Keys and tags that were put at a target by this job", lambda s, now: s.total.rows),
    "deleted_total": ("Keys and tags that were deleted at a target by this job", lambda s, now: s.total.deleted),
    "bytes_total": ("Bytes that went from a source to a target by this job", lambda s, now: s.total.bytes),
    "conflicts_total": ("Conflicts that this job met", lambda s, now: s.total.conflicts),
    "failing": ("Whether a sync cannot go on for now", lambda s, now: float(bool(s.record.last_error))),
}


def _work(origin: str, job: JobId, payload: ReplicationSync) -> Work:
    is_tags = payload.tags is not None
    prefix = payload.tags if payload.tags is not None else payload.prefix
    assert prefix is not None, "the payload was checked"
    return Work(
        origin=origin,
        name=payload.name,
        holder=f"{job}/{secrets.token_hex(4)}",
        prefix=prefix,
        target_prefix=prefix if is_tags else payload.target_prefix or prefix,
        is_tags=is_tags,
        policy=payload.conflicts,
        continuous=payload.continuous,
        restart=payload.restart,
    )


def _record(job: JobId, payload: ReplicationSync, former: SyncRecord | None) -> SyncRecord:
    work = _work("", job, payload)
    fresh = SyncRecord(
        source=payload.source or "",
        target=payload.target or "",
        prefix=work.prefix,
        target_prefix=work.target_prefix,
        is_tags=work.is_tags,
        job=job,
        phase="comparing",
    )
    if former is None or _range_of(former) != _range_of(fresh):
        return fresh
    return structs.replace(
        fresh,
        phase="following" if former.position else "comparing",
        position=former.position,
        source_revision=former.source_revision,
        behind_since_ms=former.behind_since_ms,
        rows=former.rows,
        deleted=former.deleted,
        conflicts=former.conflicts,
        snapshots=former.snapshots,
    )


def _range_of(record: SyncRecord) -> tuple[bool, str, str]:
    return record.is_tags, record.prefix, record.target_prefix


def _advance(news: News, progress: Progress) -> None:
    if progress.phase == "comparing":
        news.advance(progress.compared, 0, f"{progress.compared} compared, {progress.rows} put")
    else:
        news.advance(progress.position, progress.source_revision, "revisions of the source")


def _result(payload: ReplicationSync, total: Progress) -> ReplicationResult:
    return ReplicationResult(
        operation="sync",
        rows=total.rows,
        bytes=total.bytes,
        deleted=total.deleted,
        conflicts=total.conflicts,
        blobs=total.blobs,
        snapshots=total.snapshots,
        source_revision=Revision(total.position),
        target_revision=Revision(total.target_revision),
    )
