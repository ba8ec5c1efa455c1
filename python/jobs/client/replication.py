"""Replication: links to other clusters, how far syncs are, and operations as jobs: `client.replication`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, Unpack

from jobs.client.carrying import RESUMED, OnLine, OnProgress, came_to, carry_out, carry_out_async, parts_of
from jobs.client.requests import Call, Request, change, get, segment, write
from jobs.client.submission import JobOptions
from jobs.protocol.model import (
    MAX_ATTEMPTS,
    Conflict,
    ConflictPage,
    ConflictPolicy,
    Invitation,
    JobResult,
    LinkList,
    LinkScopes,
    LinkSet,
    LinkView,
    Reason,
    ReplicationBackup,
    ReplicationExport,
    ReplicationImport,
    ReplicationJob,
    ReplicationPayload,
    ReplicationProve,
    ReplicationRestore,
    ReplicationResult,
    ReplicationSync,
    ReplicationVerify,
    Retry,
    SyncList,
    SyncView,
    Throttle,
)

if TYPE_CHECKING:
    from jobs.client.asynchronous import AsyncClient
    from jobs.client.sync import Client

P = TypeVar("P", bound=ReplicationPayload)
PAGE_SIZE: Final = 1_000
LASTING: Final = Retry(max_attempts=MAX_ATTEMPTS, cap_s=60.0, reasons=[Reason.WORKER_LOST])
"""Of what is to go on until it is cancelled."""


# --- requests --------------------------------------------------------------------------------------------------------


def list_links() -> Call[LinkList]:
    return get("/v1/links", LinkList)


def set_link(name: str, invitation: str, scopes: LinkScopes | None) -> Call[LinkView]:
    wanted = LinkSet(invitation=invitation, scopes=scopes or LinkScopes())
    return write("PUT", f"/v1/links/{segment(name)}", LinkView, wanted)


def delete_link(name: str) -> Request:
    return change("DELETE", f"/v1/links/{segment(name)}")


def get_invitation() -> Call[Invitation]:
    return get("/v1/replication:invitation", Invitation)


def list_syncs() -> Call[SyncList]:
    return get("/v1/syncs", SyncList)


def delete_sync(name: str) -> Request:
    return change("DELETE", f"/v1/syncs/{segment(name)}")


def list_conflicts(name: str, cursor: str | None) -> Call[ConflictPage]:
    return get(f"/v1/syncs/{segment(name)}/conflicts", ConflictPage, {"limit": PAGE_SIZE, "cursor": cursor})


# --- jobs ------------------------------------------------------------------------------------------------------------


class EndsOptions(JobOptions, total=False):
    """What is read, and what is written or compared; meanings and defaults are those of `ReplicationSync`."""

    source: str | None
    target: str | None
    prefix: str | None
    target_prefix: str | None
    tags: str | None


class SyncOptions(EndsOptions, total=False):
    """Meanings and defaults are those of `ReplicationSync`."""

    continuous: bool
    conflicts: ConflictPolicy
    throttle: Throttle
    restart: bool


class PlaceOptions(JobOptions, total=False):
    """Where backups or exports are: a directory of the worker's machine, or a tag. One of the two is given."""

    directory: str | None
    tag: str | None


class ExportOptions(PlaceOptions, total=False):
    """Meanings and defaults are those of `ReplicationExport`."""

    prefix: str
    format: Literal["parquet", "arrow", "native"]
    revision: int | None
    throttle: Throttle


class ImportOptions(PlaceOptions, total=False):
    """Meanings and defaults are those of `ReplicationImport`."""

    prefix: str | None
    existing: Literal["replace", "keep", "fail"]
    throttle: Throttle
    dry_run: bool


class BackupOptions(PlaceOptions, total=False):
    """Meanings and defaults are those of `ReplicationBackup`."""

    kind: Literal["auto", "full", "incremental"]
    full_every: int
    recipients: list[str]
    blobs: bool
    keep_full: int | None
    prove: bool
    throttle: Throttle


class RestoreOptions(PlaceOptions, total=False):
    """Meanings and defaults are those of `ReplicationRestore`."""

    prefix: str
    revision: int | None
    at_ms: int | None
    existing: Literal["replace", "keep", "fail"]
    throttle: Throttle
    dry_run: bool


def replication_job(payload: ReplicationPayload, **options: Unpack[JobOptions]) -> ReplicationJob:
    """Return a job that keeps something in step with elsewhere, backs it up, or brings it back.

    It is given to another worker when its own is lost, a continuous sync as often as that happens, unless `retry` says
    otherwise: each may be begun again at any time.
    """
    is_lasting = isinstance(payload, ReplicationSync) and payload.continuous
    options.setdefault("retry", LASTING if is_lasting else RESUMED)
    return ReplicationJob(payload=payload, **options)


def succeeded(result: JobResult) -> ReplicationResult:
    """Return what an operation came to. Raises OperationFailed."""
    return came_to(result, result.replication, Reason.REPLICATION_ERROR)


def job_of(kind: type[P], given: Mapping[str, Any]) -> ReplicationJob:
    """Return the job whose payload has those of the given fields that are its own."""
    payload, options = parts_of(kind, given)
    return replication_job(payload, **options)


# --- clients ---------------------------------------------------------------------------------------------------------


class ReplicationClient:
    """Data in step with elsewhere, and backups: `client.replication`. For administrators.

    Operations are jobs that a worker carries out; each method returns when that has ended. `on_progress` is told about
    once a second how far it is, `on_line` at the end what it has said. Raises OperationFailed. One that is not waited
    for to its end is cancelled; to submit one and go on, submit a `replication_job`.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    # --- links and syncs ----------------------------------------------------------------------------------------

    def links(self) -> list[LinkView]:
        """Return the links to other clusters, by name."""
        return self._client.call(list_links()).links

    def invitation(self) -> Invitation:
        """Return what another cluster is given to make a link to this one."""
        return self._client.call(get_invitation())

    def link(self, name: str, invitation: str, scopes: LinkScopes | None = None) -> LinkView:
        """Make a link to the cluster that the invitation is of, or replace it; `scopes`: what it may do here, by
        default nothing."""
        return self._client.call(set_link(name, invitation, scopes))

    def unlink(self, name: str) -> None:
        """Delete a link; the other cluster is cut off at once."""
        self._client.send(delete_link(name))

    def syncs(self) -> list[SyncView]:
        """Return how far each sync is, by name."""
        return self._client.call(list_syncs()).syncs

    def forget(self, name: str) -> None:
        """Forget how far a sync is. Raises OperationUnderWay while a job is at it."""
        self._client.send(delete_sync(name))

    def conflicts(self, name: str) -> Iterator[Conflict]:
        """Yield the conflicts of a sync whose target is this cluster, newest first."""
        for page in self._client.pages(lambda cursor: list_conflicts(name, cursor)):
            yield from page.conflicts

    # --- operations ---------------------------------------------------------------------------------------------

    def sync(
        self, name: str, *, on_progress: OnProgress | None = None, **options: Unpack[SyncOptions]
    ) -> ReplicationResult:
        """Have at the target what the source has, from where the last one of this name stopped."""
        return self._do(ReplicationSync, {"name": name, **options}, on_progress)

    def verify(self, *, on_progress: OnProgress | None = None, **options: Unpack[EndsOptions]) -> ReplicationResult:
        """Compare two sides; the result says in which ranges they differ."""
        return self._do(ReplicationVerify, options, on_progress)

    def export_keys(
        self, *, on_progress: OnProgress | None = None, **options: Unpack[ExportOptions]
    ) -> ReplicationResult:
        """Write keys as they are at one revision to files, with a manifest and checksums."""
        return self._do(ReplicationExport, options, on_progress)

    def import_keys(
        self, *, on_progress: OnProgress | None = None, **options: Unpack[ImportOptions]
    ) -> ReplicationResult:
        """Put what was exported below a prefix."""
        return self._do(ReplicationImport, options, on_progress)

    def backup(self, *, on_progress: OnProgress | None = None, **options: Unpack[BackupOptions]) -> ReplicationResult:
        """Back the whole cluster up."""
        return self._do(ReplicationBackup, options, on_progress)

    def prove(self, *, on_progress: OnProgress | None = None, **options: Unpack[PlaceOptions]) -> ReplicationResult:
        """Restore a series of backups aside, and compare it with what its manifests say."""
        return self._do(ReplicationProve, options, on_progress)

    def restore(
        self, target_prefix: str, *, on_progress: OnProgress | None = None, **options: Unpack[RestoreOptions]
    ) -> ReplicationResult:
        """Put the users' keys of a backup below a prefix."""
        return self._do(ReplicationRestore, {"target_prefix": target_prefix, **options}, on_progress)

    def perform(
        self,
        payload: ReplicationPayload,
        *,
        on_progress: OnProgress | None = None,
        on_line: OnLine | None = None,
        **options: Unpack[JobOptions],
    ) -> ReplicationResult:
        """Carry any operation out."""
        wanted = replication_job(payload, **options)
        return succeeded(carry_out(self._client, wanted, on_progress=on_progress, on_line=on_line))

    def _do(self, kind: type[P], given: Mapping[str, Any], on_progress: OnProgress | None) -> ReplicationResult:
        return succeeded(carry_out(self._client, job_of(kind, given), on_progress=on_progress))


class AsyncReplicationClient:
    """The same for asyncio; see `ReplicationClient`."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    # --- links and syncs ----------------------------------------------------------------------------------------

    async def links(self) -> list[LinkView]:
        """Return the links to other clusters, by name."""
        return (await self._client.call(list_links())).links

    async def invitation(self) -> Invitation:
        """Return what another cluster is given to make a link to this one."""
        return await self._client.call(get_invitation())

    async def link(self, name: str, invitation: str, scopes: LinkScopes | None = None) -> LinkView:
        """Make a link to the cluster that the invitation is of, or replace it; `scopes`: what it may do here, by
        default nothing."""
        return await self._client.call(set_link(name, invitation, scopes))

    async def unlink(self, name: str) -> None:
        """Delete a link; the other cluster is cut off at once."""
        await self._client.send(delete_link(name))

    async def syncs(self) -> list[SyncView]:
        """Return how far each sync is, by name."""
        return (await self._client.call(list_syncs())).syncs

    async def forget(self, name: str) -> None:
        """Forget how far a sync is. Raises OperationUnderWay while a job is at it."""
        await self._client.send(delete_sync(name))

    async def conflicts(self, name: str) -> AsyncIterator[Conflict]:
        """Yield the conflicts of a sync whose target is this cluster, newest first."""
        async for page in self._client.pages(lambda cursor: list_conflicts(name, cursor)):
            for conflict in page.conflicts:
                yield conflict

    # --- operations ---------------------------------------------------------------------------------------------

    async def sync(
        self, name: str, *, on_progress: OnProgress | None = None, **options: Unpack[SyncOptions]
    ) -> ReplicationResult:
        """Have at the target what the source has, from where the last one of this name stopped."""
        return await self._do(ReplicationSync, {"name": name, **options}, on_progress)

    async def verify(
        self, *, on_progress: OnProgress | None = None, **options: Unpack[EndsOptions]
    ) -> ReplicationResult:
        """Compare two sides; the result says in which ranges they differ."""
        return await self._do(ReplicationVerify, options, on_progress)

    async def export_keys(
        self, *, on_progress: OnProgress | None = None, **options: Unpack[ExportOptions]
    ) -> ReplicationResult:
        """Write keys as they are at one revision to files, with a manifest and checksums."""
        return await self._do(ReplicationExport, options, on_progress)

    async def import_keys(
        self, *, on_progress: OnProgress | None = None, **options: Unpack[ImportOptions]
    ) -> ReplicationResult:
        """Put what was exported below a prefix."""
        return await self._do(ReplicationImport, options, on_progress)

    async def backup(
        self, *, on_progress: OnProgress | None = None, **options: Unpack[BackupOptions]
    ) -> ReplicationResult:
        """Back the whole cluster up."""
        return await self._do(ReplicationBackup, options, on_progress)

    async def prove(
        self, *, on_progress: OnProgress | None = None, **options: Unpack[PlaceOptions]
    ) -> ReplicationResult:
        """Restore a series of backups aside, and compare it with what its manifests say."""
        return await self._do(ReplicationProve, options, on_progress)

    async def restore(
        self, target_prefix: str, *, on_progress: OnProgress | None = None, **options: Unpack[RestoreOptions]
    ) -> ReplicationResult:
        """Put the users' keys of a backup below a prefix."""
        return await self._do(ReplicationRestore, {"target_prefix": target_prefix, **options}, on_progress)

    async def perform(
        self,
        payload: ReplicationPayload,
        *,
        on_progress: OnProgress | None = None,
        on_line: OnLine | None = None,
        **options: Unpack[JobOptions],
    ) -> ReplicationResult:
        """Carry any operation out."""
        wanted = replication_job(payload, **options)
        return succeeded(await carry_out_async(self._client, wanted, on_progress=on_progress, on_line=on_line))

    async def _do(self, kind: type[P], given: Mapping[str, Any], on_progress: OnProgress | None) -> ReplicationResult:
        return succeeded(await carry_out_async(self._client, job_of(kind, given), on_progress=on_progress))
