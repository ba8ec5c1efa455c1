"""What nodes ask of the leader for syncs: what has to be written goes through it alone."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Annotated, Final, Protocol, TypeAlias

from msgspec import Meta, Struct

from jobs.cluster import Asked
from jobs.control import Site
from jobs.forward.questions import Answering, Questioner, Subject
from jobs.forward.reach import Reach
from jobs.protocol.ids import RequestId
from jobs.records import SyncRecord
from jobs.replication.messages import VERSION, Applied, Batch, TagBatch

REQUEST_BYTES: Final = 16

_Request: TypeAlias = Annotated[bytes, Meta(min_length=REQUEST_BYTES, max_length=REQUEST_BYTES)]
"""The same however often it is asked."""
_Name: TypeAlias = Annotated[str, Meta(max_length=128)]


class _Question(Struct, frozen=True, array_like=True):
    pass


class Apply(_Question, frozen=True, tag=1):
    batch: Batch
    request: _Request


class ApplyTags(_Question, frozen=True, tag=2):
    batch: TagBatch
    request: _Request


class SetSync(_Question, frozen=True, tag=3):
    name: _Name
    record: SyncRecord


class Reached(_Question, frozen=True, tag=4):
    """Which revision the store has, as the leader knows it."""


Question: TypeAlias = Apply | ApplyTags | SetSync | Reached


class Leading(Protocol):
    """What the control plane has for syncs."""

    async def apply(self, batch: Batch, request: RequestId) -> Applied: ...

    async def apply_tags(self, batch: TagBatch, request: RequestId) -> Applied: ...

    async def set_sync(self, name: str, record: SyncRecord) -> None: ...

    async def reached(self) -> int: ...


async def _apply(leading: Leading, member: str, asked: Apply) -> Applied:
    return await leading.apply(asked.batch, RequestId(asked.request))


async def _apply_tags(leading: Leading, member: str, asked: ApplyTags) -> Applied:
    return await leading.apply_tags(asked.batch, RequestId(asked.request))


_ANSWERING: Final[Mapping[type, Answering]] = {
    Apply: _apply,
    ApplyTags: _apply_tags,
    SetSync: lambda leading, member, asked: leading.set_sync(asked.name, asked.record),
    Reached: lambda leading, member, asked: leading.reached(),
}
SUBJECT: Final[Subject[Question]] = Subject(
    "replication", Asked.REPLICATION, VERSION, Question, lambda control: control.replication, _ANSWERING
)


class LeaderLink:
    """A node's way to it. Errors are those of `control.replication`, and Unavailable where no leader is found in time;
    what is asked is asked of whoever leads until it is answered, and done once."""

    def __init__(self, site: Site, reach: Reach | None) -> None:
        self._site = site
        self._ask = Questioner(SUBJECT, site, reach).ask

    async def apply(self, batch: Batch) -> Applied:
        return await self._ask(Apply(batch, secrets.token_bytes(REQUEST_BYTES)), Applied)

    async def apply_tags(self, batch: TagBatch) -> Applied:
        return await self._ask(ApplyTags(batch, secrets.token_bytes(REQUEST_BYTES)), Applied)

    async def set_sync(self, name: str, record: SyncRecord) -> None:
        await self._ask(SetSync(name, record), type(None))

    async def reached(self) -> int:
        """Return a revision of the store that holds all that was answered before this was asked."""
        return await self._ask(Reached(), int)

    async def reach(self, revision: int) -> None:
        """Return once this node's own store is as far. Raises Unavailable."""
        await self._site.reach(revision)
