"""`cleanup`: deletes now what is no longer kept. The lists in the store say what that is."""

from __future__ import annotations

from contextlib import aclosing
from typing import Final

import msgspec

from jobs.maintenance.run import Run
from jobs.protocol.ids import JobId
from jobs.protocol.model import (
    BlobDone,
    BlobGc,
    BlobPerform,
    CleanupPart,
    MaintenanceCleanup,
    OperationAdvance,
    OperationLine,
)
from jobs.service import BlobOperations, Caller, Whereabouts

ORDER: Final[tuple[CleanupPart, ...]] = ("arrays", "jobs", "audit", "leases", "blobs")
"""Blobs last: what ended jobs have kept goes with them. `files` is the worker's to do."""


class Cleanup:
    def __init__(
        self,
        run: Run,
        payload: MaintenanceCleanup,
        caller: Caller,
        job: JobId,
        site: Whereabouts,
        blobs: BlobOperations,
    ) -> None:
        self._run = run
        self._payload = payload
        self._caller = caller
        self._job = job
        self._site = site
        self._blobs = blobs

    async def carry_out(self) -> None:
        claim = self._run.claim
        for part in ORDER:
            if part in self._payload.parts and claim.goes_on(part):
                await (self._collect() if part == "blobs" else self._clean(part))
                await claim.ended(part)

    async def _clean(self, part: CleanupPart) -> None:
        """Have the leader do one part, step by step."""
        run, claim = self._run, self._run.claim
        cursor: bytes | None = claim.position(part)
        while cursor is not None:
            work = run.link.clean(claim.token, part, dry_run=self._payload.dry_run, cursor=cursor)
            cleaned = await run.pacing.step(work)
            claim.count(**cleaned.counts)
            if cleaned.size_bytes:
                claim.node(self._leader, freed_bytes=cleaned.size_bytes)
            run.news.advance(0, 0, f"{part}: {', '.join(f'{n} {name}' for name, n in claim.counts.items())}")
            cursor = cleaned.cursor
            if cursor is not None:
                await claim.moved(part, cursor)

    @property
    def _leader(self) -> str:
        return self._run.members.name(self._site.leader or self._site.member)

    async def _collect(self) -> None:
        """Take out of the catalogue what nothing refers to, and have every member sweep its files, as a job would."""
        run, claim = self._run, self._run.claim
        wanted = BlobPerform(job=self._job, payload=BlobGc(dry_run=self._payload.dry_run))
        async with aclosing(self._blobs.perform(self._caller, wanted)) as events:
            async for event in events:
                match event:
                    case OperationAdvance(message=message):
                        run.news.advance(0, 0, f"blobs: {message}")
                        await claim.moved("blobs", b"")
                    case OperationLine(text=text):
                        await run.news.line(**msgspec.json.decode(text))
                    case BlobDone(result=result):
                        claim.count(blobs=result.blobs)
                        for peer in result.peers:
                            claim.node(peer.node, freed_bytes=peer.bytes, outcome=peer.outcome)
