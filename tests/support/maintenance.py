"""A node's part in maintenance over a control plane of a test, and what an operation came to."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec

from jobs.maintenance.compact import Kept
from jobs.maintenance.health import HealthLimits
from jobs.maintenance.operations import MaintenanceConfig, Operations
from jobs.maintenance.part import MaintenancePart
from jobs.protocol.model import (
    MaintenanceDone,
    MaintenancePerform,
    MaintenanceResult,
    OperationAdvance,
    OperationLine,
)
from jobs.service import Caller
from tests.support.plane import ADMIN, Plane

JOB = "019aaaaa-0000-7000-8000-000000000001"
OTHER_JOB = "019aaaaa-0000-7000-8000-000000000002"
CONFIG = MaintenanceConfig(
    kept=Kept(age_s=86_400, events=10_000),
    limits=HealthLimits(fsync_s=10.0, disk_percent=99.9, clock_s=0.5, lag_entries=10_000),
)


def operations(plane: Plane, **changes: Any) -> Operations:
    """Return what the plane's node does for jobs of type maintenance; the plane has to have blobs."""
    assert plane.blob_part is not None
    directories = {"log": plane.directory / "log", "store": plane.directory / "store"}
    part = MaintenancePart(
        plane.site,
        plane.consensus,
        plane.store,
        plane.log,
        plane.blob_part,
        None,
        None,
        directories=directories,
        secrets=lambda: changes.get("secrets", ()),
        max_store_bytes=32 << 30,
        config=changes.get("config", CONFIG),
    )
    return part.operations


class Told:
    """All that was told of an operation."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.advances: list[OperationAdvance] = []
        self.result: MaintenanceResult | None = None

    @property
    def done(self) -> MaintenanceResult:
        assert self.result is not None
        return self.result


async def perform(
    asked: Operations, operation: str, *, job: str = JOB, caller: Caller = ADMIN, **payload: Any
) -> MaintenanceResult:
    return (await listen(asked, operation, job=job, caller=caller, **payload)).done


async def listen(asked: Operations, operation: str, *, job: str = JOB, caller: Caller = ADMIN, **payload: Any) -> Told:
    wanted = msgspec.convert({"job": job, "payload": {"operation": operation, **payload}}, MaintenancePerform)
    told = Told()
    async with aclosing(asked.perform(caller, wanted)) as events:
        async for event in events:
            match event:
                case OperationLine(text=text):
                    told.lines.append(msgspec.json.decode(text))
                case OperationAdvance():
                    told.advances.append(event)
                case MaintenanceDone(result=result):
                    told.result = result
    return told


def findings(result: MaintenanceResult, check: str) -> list[tuple[str, str]]:
    """Return the findings of one check: status and value."""
    return [(one.status, one.value) for one in result.findings if one.check == check]


def key_file(path: Path, mode: int) -> Path:
    path.write_text("secret")
    path.chmod(mode)
    return path
