"""Runs operations of maintenance, as tasks of the worker's own process."""

from __future__ import annotations

from functools import partial
from typing import TypeAlias

import msgspec
from msgspec.structs import replace

from jobs.config import NodeConfig
from jobs.protocol.model import MaintenancePayload, MaintenanceResult, Reason, tag_of
from jobs.validate import check_maintenance
from jobs.workers.maintenance.leftovers import places
from jobs.workers.maintenance.work import Work
from jobs.workers.task import TaskExecutor, TaskKind

MaintenanceExecutor: TypeAlias = TaskExecutor[MaintenancePayload, MaintenanceResult]


def maintenance_executor(config: NodeConfig) -> MaintenanceExecutor:
    settings, node = config.workers.maintenance, config.node.id
    kind = TaskKind[MaintenancePayload, MaintenanceResult](
        type="maintenance",
        noun="an operation of maintenance",
        failure=Reason.MAINTENANCE_ERROR,
        decode=msgspec.json.Decoder(MaintenancePayload).decode,
        check=check_maintenance,
        called=tag_of,
        begin=partial(Work, places(config.workers), node),
        put=lambda outcome, result: replace(outcome, maintenance=result),
    )
    return TaskExecutor(
        kind, slots=settings.slots, timeout_s=settings.timeout_s, node=node, api_socket=config.api_socket
    )
