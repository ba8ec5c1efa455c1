"""What is done to blobs as a job: fetch, replicate, collect, verify, export. Part of `client.blobs`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Unpack

from jobs.client.carrying import OnLine, OnProgress, came_to, carry_out, carry_out_async
from jobs.client.submission import JobOptions
from jobs.protocol.model import (
    BlobExport,
    BlobFetch,
    BlobGc,
    BlobJob,
    BlobPayload,
    BlobReplicate,
    BlobResult,
    BlobVerify,
    JobResult,
    Reason,
)

if TYPE_CHECKING:
    from jobs.client.asynchronous import AsyncClient
    from jobs.client.sync import Client

TICKET_PREFIX: Final = "blobticket1."


def blob_job(payload: BlobPayload, **options: Unpack[JobOptions]) -> BlobJob:
    """Return a job that does something with blobs."""
    return BlobJob(payload=payload, **options)


def fetch(blob: str, providers: Sequence[str], tag: str | None) -> BlobFetch:
    """Return the fetch of what a hash or a ticket names."""
    named = {"ticket": blob} if blob.startswith(TICKET_PREFIX) else {"hash": blob}
    return BlobFetch(**named, providers=list(providers), tag=tag)


def succeeded(result: JobResult) -> BlobResult:
    """Return what an operation came to. Raises OperationFailed."""
    return came_to(result, result.blob, Reason.BLOB_ERROR)


class BlobJobsClient:
    """Operations that a worker for blobs carries out; each returns when it is done.

    `on_progress` is told about once a second how far it is, `on_line` at the end what it has said of each blob. Raises
    OperationFailed. One that is not waited for to its end is cancelled.
    """

    _client: Client

    def fetch(
        self,
        blob: str,
        *,
        providers: Sequence[str] = (),
        tag: str | None = None,
        on_progress: OnProgress | None = None,
        **options: Unpack[JobOptions],
    ) -> BlobResult:
        """Have a blob on a worker's node: by its hash, or by a ticket, which makes it the caller's too."""
        return self.perform(fetch(blob, providers, tag), on_progress=on_progress, **options)

    def replicate(
        self,
        blob: str,
        *,
        replicas: int | None = None,
        nodes: Sequence[str] = (),
        on_progress: OnProgress | None = None,
        **options: Unpack[JobOptions],
    ) -> BlobResult:
        """Have a blob on so many nodes, or on these; the cluster sees to it from then on."""
        payload = BlobReplicate(hash=blob, replicas=replicas, nodes=list(nodes))
        return self.perform(payload, on_progress=on_progress, **options)

    def gc(
        self,
        *,
        dry_run: bool = False,
        grace_s: float | None = None,
        on_progress: OnProgress | None = None,
        on_line: OnLine | None = None,
        **options: Unpack[JobOptions],
    ) -> BlobResult:
        """Delete what nothing refers to, on all nodes; with `dry_run` say only what that would be."""
        payload = BlobGc(dry_run=dry_run, grace_s=grace_s)
        return self.perform(payload, on_progress=on_progress, on_line=on_line, **options)

    def verify(
        self,
        blob: str | None = None,
        *,
        on_progress: OnProgress | None = None,
        on_line: OnLine | None = None,
        **options: Unpack[JobOptions],
    ) -> BlobResult:
        """Hash a blob, or all of them, anew on every node that has it, and mend what is damaged."""
        return self.perform(BlobVerify(hash=blob), on_progress=on_progress, on_line=on_line, **options)

    def export(
        self, blob: str, file: str, *, on_progress: OnProgress | None = None, **options: Unpack[JobOptions]
    ) -> BlobResult:
        """Have a worker write a blob to a file of its machine, or a collection to a directory."""
        return self.perform(BlobExport(hash=blob, file=file), on_progress=on_progress, **options)

    def perform(
        self,
        payload: BlobPayload,
        *,
        on_progress: OnProgress | None = None,
        on_line: OnLine | None = None,
        **options: Unpack[JobOptions],
    ) -> BlobResult:
        """Carry any operation out."""
        wanted = blob_job(payload, **options)
        return succeeded(carry_out(self._client, wanted, on_progress=on_progress, on_line=on_line))


class AsyncBlobJobsClient:
    """The same for asyncio; see `BlobJobsClient`."""

    _client: AsyncClient

    async def fetch(
        self,
        blob: str,
        *,
        providers: Sequence[str] = (),
        tag: str | None = None,
        on_progress: OnProgress | None = None,
        **options: Unpack[JobOptions],
    ) -> BlobResult:
        """Have a blob on a worker's node: by its hash, or by a ticket, which makes it the caller's too."""
        return await self.perform(fetch(blob, providers, tag), on_progress=on_progress, **options)

    async def replicate(
        self,
        blob: str,
        *,
        replicas: int | None = None,
        nodes: Sequence[str] = (),
        on_progress: OnProgress | None = None,
        **options: Unpack[JobOptions],
    ) -> BlobResult:
        """Have a blob on so many nodes, or on these; the cluster sees to it from then on."""
        payload = BlobReplicate(hash=blob, replicas=replicas, nodes=list(nodes))
        return await self.perform(payload, on_progress=on_progress, **options)

    async def gc(
        self,
        *,
        dry_run: bool = False,
        grace_s: float | None = None,
        on_progress: OnProgress | None = None,
        on_line: OnLine | None = None,
        **options: Unpack[JobOptions],
    ) -> BlobResult:
        """Delete what nothing refers to, on all nodes; with `dry_run` say only what that would be."""
        payload = BlobGc(dry_run=dry_run, grace_s=grace_s)
        return await self.perform(payload, on_progress=on_progress, on_line=on_line, **options)

    async def verify(
        self,
        blob: str | None = None,
        *,
        on_progress: OnProgress | None = None,
        on_line: OnLine | None = None,
        **options: Unpack[JobOptions],
    ) -> BlobResult:
        """Hash a blob, or all of them, anew on every node that has it, and mend what is damaged."""
        return await self.perform(BlobVerify(hash=blob), on_progress=on_progress, on_line=on_line, **options)

    async def export(
        self, blob: str, file: str, *, on_progress: OnProgress | None = None, **options: Unpack[JobOptions]
    ) -> BlobResult:
        """Have a worker write a blob to a file of its machine, or a collection to a directory."""
        return await self.perform(BlobExport(hash=blob, file=file), on_progress=on_progress, **options)

    async def perform(
        self,
        payload: BlobPayload,
        *,
        on_progress: OnProgress | None = None,
        on_line: OnLine | None = None,
        **options: Unpack[JobOptions],
    ) -> BlobResult:
        """Carry any operation out."""
        wanted = blob_job(payload, **options)
        return succeeded(await carry_out_async(self._client, wanted, on_progress=on_progress, on_line=on_line))
