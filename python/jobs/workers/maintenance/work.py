"""What is done for a job of type maintenance."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

from jobs.protocol.ids import JobId
from jobs.protocol.model import (
    MaintenanceCleanup,
    MaintenanceDone,
    MaintenanceNode,
    MaintenancePayload,
    MaintenanceResult,
)
from jobs.workers.maintenance.leftovers import Leftover, Place, candidates, remove
from jobs.workers.nodeapi import NodeApi
from jobs.workers.perform import perform
from jobs.workers.task import Report
from jobs.workers.transfers import in_thread

PATH: Final = "/v1/maintenance:perform"
FILES: Final = "files"
"""The part of `cleanup` that is done here."""
COUNTED: Final = {"directory": "directories", "cgroup": "cgroups"}
_encode = msgspec.json.Encoder().encode


class Work:
    """Carries out operations for the owner of one job."""

    def __init__(self, places: Sequence[Place], name: str, node: NodeApi, report: Report, job: JobId) -> None:
        """`name`: of the node."""
        self._places = places
        self._name = name
        self._node = node
        self._report = report
        self._job = job

    async def carry_out(self, payload: MaintenancePayload) -> MaintenanceResult:
        if not (isinstance(payload, MaintenanceCleanup) and FILES in payload.parts):
            return await self._perform(payload)
        began_s = time.monotonic()
        others = [part for part in payload.parts if part != FILES]
        done = await self._perform(replace(payload, parts=others)) if others else _nothing(payload)
        done = self._together(done, await self._files(dry_run=payload.dry_run))
        return replace(done, seconds=time.monotonic() - began_s)

    async def _perform(self, payload: MaintenancePayload) -> MaintenanceResult:
        done = await perform(self._node, PATH, self._job, payload, MaintenanceDone, self._report)
        return done.result

    async def _files(self, *, dry_run: bool) -> list[Leftover]:
        """Return what was found of leftovers, each of which was told as well."""
        found: list[Leftover] = []
        for place in self._places:
            self._report.progress(0, 0, f"{self._name}: {place.directory}")
            try:
                names = await in_thread(candidates, place)
            except OSError as error:
                found.append(Leftover(kind=place.kind, path=str(place.directory), stays=error.strerror or str(error)))
                await self._tell(found[-1], dry_run=dry_run)
                continue
            for name in names:
                left = await in_thread(_remove, place, name, dry_run)
                if left is not None:
                    found.append(left)
                    await self._tell(left, dry_run=dry_run)
        return found

    async def _tell(self, left: Leftover, *, dry_run: bool) -> None:
        outcome = "stays" if left.stays else "would go" if dry_run else "deleted"
        fields = {"node": self._name, "path": left.path, "bytes": left.bytes, "outcome": outcome, "why": left.stays}
        await self._report.write(_encode(fields) + b"\n")

    def _together(self, done: MaintenanceResult, found: Sequence[Leftover]) -> MaintenanceResult:
        """Return what the node has done, and what was done here."""
        freed = sum(left.bytes for left in found)
        gone = Counter(COUNTED[left.kind] for left in found if not left.stays)
        staying = sum(bool(left.stays) for left in found)
        here = MaintenanceNode(
            node=self._name,
            freed_bytes=freed,
            examined=len(found),
            outcome=f"{staying} leftovers stay, as the output tells" if staying else "",
        )
        nodes = [_with(node, here) if node.node == here.node else node for node in done.nodes]
        if not any(node.node == here.node for node in nodes):
            nodes.append(here)
        counts = {name: done.counts.get(name, 0) + gone[name] for name in COUNTED.values()}
        return replace(done, nodes=nodes, counts=done.counts | counts, freed_bytes=done.freed_bytes + freed)


def _remove(place: Place, name: str, dry_run: bool) -> Leftover | None:
    return remove(place, name, time.time(), dry_run=dry_run)


def _with(node: MaintenanceNode, here: MaintenanceNode) -> MaintenanceNode:
    return MaintenanceNode(
        node=node.node,
        freed_bytes=node.freed_bytes + here.freed_bytes,
        examined=node.examined + here.examined,
        outcome="; ".join(filter(None, (node.outcome, here.outcome))),
    )


def _nothing(wanted: MaintenanceCleanup) -> MaintenanceResult:
    return MaintenanceResult(
        operation="cleanup",
        dry_run=wanted.dry_run,
        status="ok",
        nodes=[],
        counts={},
        freed_bytes=0,
        findings=[],
        seconds=0.0,
    )
