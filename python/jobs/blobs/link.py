"""What nodes ask of the leader's catalogue."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from jobs.blobs import messages as m
from jobs.blobs.catalogue import Catalogue, Entry, NewBlob
from jobs.blobs.teller import Teller
from jobs.cluster import Asked
from jobs.errors import InternalError
from jobs.forward.questions import Answering, Questioner, Subject
from jobs.forward.reach import Reach
from jobs.protocol.model import BlobCollect, BlobCollectPage, BlobTag, BlobTagSet
from jobs.service import BlobService, Caller, Whereabouts

VERSION: Final = 1


class Leading(Catalogue, BlobService, Protocol):
    """What the control plane has for blobs."""


async def _reached(leading: Leading, member: str, asked: m.Reached) -> int:
    return (await leading.page(asked.caller, owner=asked.caller.uid, limit=1, cursor=None)).revision


async def _held(leading: Leading, member: str, asked: m.Held) -> None:
    await leading.held(member, asked.here, asked.gone)


_ANSWERING: Final[Mapping[type, Answering]] = {
    m.Register: lambda leading, member, asked: leading.register(asked.caller, asked.blob, member),
    m.Claim: lambda leading, member, asked: leading.claim(asked.caller, asked.ticket),
    m.Readable: lambda leading, member, asked: leading.readable(asked.caller, asked.blob),
    m.Held: _held,
    m.Wanted: lambda leading, member, asked: leading.wanted(member, asked.blobs),
    m.Replicate: lambda leading, member, asked: leading.replicate(asked.caller, asked.blob, asked.replicas),
    m.Lacking: lambda leading, member, asked: leading.lacking(asked.after, asked.limit),
    m.Entries: lambda leading, member, asked: leading.entries(asked.after, asked.limit, asked.holder),
    m.Children: lambda leading, member, asked: leading.children(asked.blob),
    m.SetTag: lambda leading, member, asked: leading.set_tag(asked.caller, asked.name, asked.wanted),
    m.Collect: lambda leading, member, asked: leading.collect(asked.caller, asked.wanted),
    m.Reached: _reached,
}
SUBJECT: Final[Subject[m.Question]] = Subject(
    "blobs", Asked.BLOBS, VERSION, m.Question, lambda control: control.blobs, _ANSWERING
)


class LeaderLink:
    """Implements `catalogue.Catalogue`, and what of `service.BlobService` nodes ask for; errors are those of these, and
    Unavailable where no leader is found in time."""

    def __init__(self, site: Whereabouts, reach: Reach | None) -> None:
        self._site = site
        self._ask = Questioner(SUBJECT, site, reach).ask
        self._teller = Teller(lambda here, gone: self._ask(m.Held(here, gone), type(None)))

    def stop(self) -> None:
        self._teller.stop()

    async def register(self, caller: Caller, blob: NewBlob, holder: str) -> tuple[Entry, bool]:
        """The holder is this node: nobody registers what others have."""
        if holder != self._site.member:
            raise InternalError(f"{holder} is to register itself what it has")
        return await self._ask(m.Register(caller, blob), tuple[Entry, bool])

    async def claim(self, caller: Caller, ticket: str) -> Entry:
        return await self._ask(m.Claim(caller, ticket), Entry)

    async def readable(self, caller: Caller, blob: str) -> Entry:
        return await self._ask(m.Readable(caller, blob), Entry)

    async def held(self, member: str, here: tuple[str, ...], gone: tuple[str, ...]) -> None:
        """The member is this node. What is said last of a blob is what the leader hears last."""
        if member != self._site.member:
            raise InternalError(f"{member} is to tell itself what it has")
        await self._teller.tell(here, gone)

    async def wanted(self, member: str, blobs: tuple[str, ...]) -> tuple[bool, ...]:
        """The member is this node."""
        if member != self._site.member:
            raise InternalError(f"{member} is to ask itself what it is to keep")
        return await self._ask(m.Wanted(blobs), tuple[bool, ...])

    async def replicate(self, caller: Caller, blob: str, replicas: int) -> Entry:
        return await self._ask(m.Replicate(caller, blob, replicas), Entry)

    async def lacking(self, after: str, limit: int) -> tuple[Entry, ...]:
        return await self._ask(m.Lacking(after, limit), tuple[Entry, ...])

    async def entries(self, after: str, limit: int, holder: str = "") -> tuple[Entry, ...]:
        return await self._ask(m.Entries(after, limit, holder), tuple[Entry, ...])

    async def children(self, blob: str) -> tuple[str, ...]:
        return await self._ask(m.Children(blob), tuple[str, ...])

    async def set_tag(self, caller: Caller, name: str, wanted: BlobTagSet) -> BlobTag:
        return await self._ask(m.SetTag(caller, name, wanted), BlobTag)

    async def collect(self, caller: Caller, wanted: BlobCollect) -> BlobCollectPage:
        return await self._ask(m.Collect(caller, wanted), BlobCollectPage)

    async def reached(self, caller: Caller) -> int:
        """Return a revision of the store that holds all that was answered before this was asked."""
        return await self._ask(m.Reached(caller), int)
