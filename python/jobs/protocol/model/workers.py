"""Workers."""

from __future__ import annotations

from typing import Literal

from msgspec import field

from jobs.protocol.ids import Incarnation, WorkerId
from jobs.protocol.model.base import Model

PressureKind = Literal["cpu", "memory", "io"]
"""What the kernel accounts pressure for."""


class WorkerView(Model, frozen=True):
    id: WorkerId
    type: str
    incarnation: Incarnation
    node: str
    state: Literal["ready", "draining", "stopping", "lost"]
    """`draining`: an administrator has said that it is given no more jobs; `stopping`: it has said so itself, and goes
    when those it has are done; `lost`: it is not connected, and has until its lease ends."""
    slots: int
    running: int
    labels: dict[str, str]
    cpu_milli: int
    memory_bytes: int
    sandbox: str
    registered_ms: int
    resources: dict[str, int] = field(default_factory=dict)
    """Counts of what the operator has named, such as `{"gpu": 1}`."""
    pressure: dict[PressureKind, float] = field(default_factory=dict)
    """Percent of the last ten seconds in which something on its machine waited for cpu, memory or io (`some avg10`)."""
    pressed: bool = False
    """That is more than its operator allows: it is given nothing more for now."""
    drained: bool = False
    """An administrator has said that it is given no more jobs; also its next lives, until that is undone."""


class WorkerList(Model, frozen=True):
    workers: list[WorkerView]
