"""Maintenance as jobs: what gives space back, looks after the nodes, and tells how they are: `client.maintenance`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack

from jobs.client.carrying import RESUMED, OnLine, OnProgress, came_to, carry_out, carry_out_async, parts_of
from jobs.client.submission import JobOptions
from jobs.protocol.model import (
    CleanupPart,
    CompactPart,
    JobResult,
    MaintenanceCleanup,
    MaintenanceCompact,
    MaintenanceHealth,
    MaintenanceJob,
    MaintenanceMetrics,
    MaintenancePayload,
    MaintenanceResult,
    MaintenanceVerify,
    Reason,
    VerifyPart,
)

if TYPE_CHECKING:
    from jobs.client.asynchronous import AsyncClient
    from jobs.client.sync import Client

P = TypeVar("P", bound=MaintenancePayload)


class NodesOptions(JobOptions, total=False):
    """`nodes`: names of the members to look at, by default all."""

    nodes: list[str]


class CompactOptions(NodesOptions, total=False):
    """Meanings and defaults are those of `MaintenanceCompact`."""

    parts: list[CompactPart]
    history_age_s: float | None
    history_events: int | None
    dry_run: bool


class CleanupOptions(JobOptions, total=False):
    """Meanings and defaults are those of `MaintenanceCleanup`."""

    parts: list[CleanupPart]
    dry_run: bool


class VerifyOptions(NodesOptions, total=False):
    """Meanings and defaults are those of `MaintenanceVerify`."""

    parts: list[VerifyPart]


class MetricsOptions(JobOptions, total=False):
    """Meanings and defaults are those of `MaintenanceMetrics`."""

    period: Literal["hour", "day", "month"]
    from_ms: int | None
    to_ms: int | None


def maintenance_job(payload: MaintenancePayload, **options: Unpack[JobOptions]) -> MaintenanceJob:
    """Return a job of maintenance. Another worker goes on with it when its own is lost, unless `retry` says
    otherwise."""
    options.setdefault("retry", RESUMED)
    return MaintenanceJob(payload=payload, **options)


def succeeded(result: JobResult) -> MaintenanceResult:
    """Return what an operation came to. Raises OperationFailed."""
    return came_to(result, result.maintenance, Reason.MAINTENANCE_ERROR)


def job_of(kind: type[P], given: Mapping[str, Any]) -> MaintenanceJob:
    """Return the job whose payload has those of the given fields that are its own."""
    payload, options = parts_of(kind, given)
    return maintenance_job(payload, **options)


class MaintenanceClient:
    """Operations that a worker for maintenance carries out; for administrators. Each returns when it is done, and there
    is one of each kind at a time.

    `on_progress` is told about once a second how far it is, `on_line` at the end what it has said, an object a line.
    Raises OperationFailed. One that is not waited for to its end is cancelled.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def compact(
        self, *, on_progress: OnProgress | None = None, on_line: OnLine | None = None, **options: Unpack[CompactOptions]
    ) -> MaintenanceResult:
        """Give back what is no longer needed: of the log, of old revisions, of the store's file."""
        return self._do(job_of(MaintenanceCompact, options), on_progress, on_line)

    def cleanup(
        self, *, on_progress: OnProgress | None = None, on_line: OnLine | None = None, **options: Unpack[CleanupOptions]
    ) -> MaintenanceResult:
        """Delete now what is no longer kept."""
        return self._do(job_of(MaintenanceCleanup, options), on_progress, on_line)

    def health(
        self, *, on_progress: OnProgress | None = None, on_line: OnLine | None = None, **options: Unpack[NodesOptions]
    ) -> MaintenanceResult:
        """Look at each node: the findings say how it is, and what to do."""
        return self._do(job_of(MaintenanceHealth, options), on_progress, on_line)

    def verify(
        self, *, on_progress: OnProgress | None = None, on_line: OnLine | None = None, **options: Unpack[VerifyOptions]
    ) -> MaintenanceResult:
        """Read everything anew and compare it with its checksums, and the nodes with each other."""
        return self._do(job_of(MaintenanceVerify, options), on_progress, on_line)

    def metrics(
        self, *, on_progress: OnProgress | None = None, on_line: OnLine | None = None, **options: Unpack[MetricsOptions]
    ) -> MaintenanceResult:
        """Tell what ended jobs took, on lines that are each a `UsageLine`."""
        return self._do(job_of(MaintenanceMetrics, options), on_progress, on_line)

    def perform(
        self,
        payload: MaintenancePayload,
        *,
        on_progress: OnProgress | None = None,
        on_line: OnLine | None = None,
        **options: Unpack[JobOptions],
    ) -> MaintenanceResult:
        """Carry any operation out."""
        return self._do(maintenance_job(payload, **options), on_progress, on_line)

    def _do(self, wanted: MaintenanceJob, on_progress: OnProgress | None, on_line: OnLine | None) -> MaintenanceResult:
        return succeeded(carry_out(self._client, wanted, on_progress=on_progress, on_line=on_line))


class AsyncMaintenanceClient:
    """The same for asyncio; see `MaintenanceClient`."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def compact(
        self, *, on_progress: OnProgress | None = None, on_line: OnLine | None = None, **options: Unpack[CompactOptions]
    ) -> MaintenanceResult:
        """Give back what is no longer needed: of the log, of old revisions, of the store's file."""
        return await self._do(job_of(MaintenanceCompact, options), on_progress, on_line)

    async def cleanup(
        self, *, on_progress: OnProgress | None = None, on_line: OnLine | None = None, **options: Unpack[CleanupOptions]
    ) -> MaintenanceResult:
        """Delete now what is no longer kept."""
        return await self._do(job_of(MaintenanceCleanup, options), on_progress, on_line)

    async def health(
        self, *, on_progress: OnProgress | None = None, on_line: OnLine | None = None, **options: Unpack[NodesOptions]
    ) -> MaintenanceResult:
        """Look at each node: the findings say how it is, and what to do."""
        return await self._do(job_of(MaintenanceHealth, options), on_progress, on_line)

    async def verify(
        self, *, on_progress: OnProgress | None = None, on_line: OnLine | None = None, **options: Unpack[VerifyOptions]
    ) -> MaintenanceResult:
        """Read everything anew and compare it with its checksums, and the nodes with each other."""
        return await self._do(job_of(MaintenanceVerify, options), on_progress, on_line)

    async def metrics(
        self, *, on_progress: OnProgress | None = None, on_line: OnLine | None = None, **options: Unpack[MetricsOptions]
    ) -> MaintenanceResult:
        """Tell what ended jobs took, on lines that are each a `UsageLine`."""
        return await self._do(job_of(MaintenanceMetrics, options), on_progress, on_line)

    async def perform(
        self,
        payload: MaintenancePayload,
        *,
        on_progress: OnProgress | None = None,
        on_line: OnLine | None = None,
        **options: Unpack[JobOptions],
    ) -> MaintenanceResult:
        """Carry any operation out."""
        return await self._do(maintenance_job(payload, **options), on_progress, on_line)

    async def _do(
        self, wanted: MaintenanceJob, on_progress: OnProgress | None, on_line: OnLine | None
    ) -> MaintenanceResult:
        return succeeded(await carry_out_async(self._client, wanted, on_progress=on_progress, on_line=on_line))
