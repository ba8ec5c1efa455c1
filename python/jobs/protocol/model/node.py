"""How a node is, and what is wrong with a request."""

from __future__ import annotations

from typing import Literal

from jobs.protocol.ids import Revision
from jobs.protocol.model.base import Model


class Health(Model, frozen=True):
    status: Literal["ok", "starting", "stopping", "failing"]
    node: str
    version: str
    leader: bool
    revision: Revision
    applied_index: int
    uptime_s: float
    checks: dict[str, str]


class Problem(Model, frozen=True):
    """RFC 9457 problem document."""

    type: str
    title: str
    status: int
    code: str
    """Stable name of the error; see docs/errors.md."""
    detail: str
    field: str | None = None
    """Where in the request, as a JSON path."""
    expected: str | None = None
    """What would have been right."""
