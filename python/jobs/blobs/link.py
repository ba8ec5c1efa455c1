"""The way to the leader's catalogue: asked here where this node leads, by a request between nodes where it does not.

All that is asked may be asked again with the same effect. So a question goes to whoever leads until it is answered, for
as long as any request of the API looks for a leader.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol, TypeAlias, TypeVar, cast

import msgspec

from jobs.blobs import messages as m
from jobs.blobs.catalogue import Catalogue, Entry, NewBlob
from jobs.blobs.teller import Teller
from jobs.cluster import Asked, Peers
from jobs.errors import InternalError, JobsError, NotLeader
from jobs.forward.reach import Reach
from jobs.forward.whereabouts import NotCarriedOut, Search, Unanswered, while_it_leads
from jobs.net import Declined, RequestFailed
from jobs.protocol.model import BlobCollect, BlobCollectPage, BlobTag, BlobTagSet
from jobs.service import BlobService, Caller, Whereabouts

logger = logging.getLogger(__name__)

T = TypeVar("T")
ANSWER_S: Final = 30.0
"""For one answer."""


class Leading(Catalogue, BlobService, Protocol):
    """What the control plane has for blobs."""


_Answering: TypeAlias = Callable[[Leading, str, Any], Awaitable[Any]]


async def _reached(leading: Leading, member: str, asked: m.Reached) -> int:
    return (await leading.page(asked.caller, owner=asked.caller.uid, limit=1, cursor=None)).revision


async def _held(leading: Leading, member: str, asked: m.Held) -> None:
    await leading.held(member, asked.here, asked.gone)


_ANSWERING: Final[dict[type, _Answering]] = {
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


class LeaderLink:
    """Implements `catalogue.Catalogue`, and what of `service.BlobService` nodes ask for; errors are those of these, and
    Unavailable where no leader is found in time."""

    def __init__(self, site: Whereabouts, reach: Reach | None) -> None:
        self._site = site
        self._reach = reach
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

    async def _ask(self, question: m.Question, answer: type[T]) -> T:
        search = Search(self._site)
        while True:
            leader = await search.next()
            try:
                if isinstance(leader, str):
                    return await self._ask_member(leader, question, answer)
                leading = cast("Leading", leader.blobs)
                return cast("T", await _ANSWERING[type(question)](leading, self._site.member, question))
            except NotLeader as error:
                search.refused(self._site.member, NotCarriedOut(error.detail))
            except NotCarriedOut as refusal:
                search.refused(str(leader), refusal)

    async def _ask_member(self, leader: str, question: m.Question, answer: type[T]) -> T:
        """Raises NotCarriedOut where another try does no harm, which it never does here."""
        assert self._reach is not None, "only a member of a cluster has another leader"
        body = m.encode(m.Asking(self._site.member, question))
        try:
            asking = self._reach.request(leader, Asked.BLOBS, body, ANSWER_S)
            reply = m.decode_reply(await while_it_leads(self._site, leader, asking))
            if isinstance(reply, m.Answer):
                return msgspec.msgpack.decode(reply.body, type=answer)
        except (RequestFailed, Unanswered) as failed:
            raise NotCarriedOut(str(failed)) from failed
        except (m.MessageError, msgspec.MsgspecError) as error:
            raise InternalError(f"the leader's answer cannot be read: {error}") from error
        if isinstance(reply, m.NotLeading):
            raise NotCarriedOut("the node that was asked does not lead", reply.leader)
        raise m.error_of(reply)


class LeaderDesk:
    """The leader's side: answers the questions of members, who tell of themselves only."""

    def __init__(self, site: Whereabouts, peers: Peers, is_member: Callable[[str], bool]) -> None:
        self._site = site
        self._is_member = is_member
        peers.requests[Asked.BLOBS] = self._on_request

    async def _on_request(self, peer: str, body: bytes) -> bytes:
        try:
            asking = m.decode_asking(body)
        except m.MessageError as error:
            raise Declined(str(error)) from error
        # Another id than the peer's came through a member that relays, which is believed as it is with callers.
        if asking.member != peer and not self._is_member(asking.member):
            raise Declined(f"{asking.member} is no member")
        control = self._site.control
        if control is None:
            return m.encode(m.NotLeading(self._site.leader))
        leading = cast("Leading", control.blobs)
        try:
            answer = await _ANSWERING[type(asking.question)](leading, asking.member, asking.question)
        except NotLeader:
            return m.encode(m.NotLeading(self._site.leader))
        except JobsError as error:
            return m.encode(m.refusal(error))
        return m.encode(m.Answer(msgspec.msgpack.encode(answer)))
