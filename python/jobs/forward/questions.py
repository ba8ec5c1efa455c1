"""Questions of members to the leader: asked here where this node leads, by a request between nodes where it does not.

All that is asked may be asked again with the same effect. So a question goes to whoever leads until it is answered, for
as long as any request of the API looks for a leader.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Generic, TypeAlias, TypeVar, cast

import msgspec
from msgspec import Struct

from jobs.cluster import Asked, Peers
from jobs.errors import InternalError, JobsError, NotLeader
from jobs.forward.reach import Reach
from jobs.forward.speech import Codec, Member, MessageError, Refused, error_of, refusal
from jobs.forward.whereabouts import NotCarriedOut, Search, Unanswered, while_it_leads
from jobs.net import Declined, RequestFailed
from jobs.service import Service, Whereabouts

T = TypeVar("T")
Q = TypeVar("Q")
Answering: TypeAlias = Callable[[Any, str, Any], Awaitable[Any]]
"""Called with what the control plane has for such questions, the id of the member that asks, and the question."""
ANSWER_S: Final = 30.0
"""For one answer."""


class Asking(Struct, Generic[Q], frozen=True, array_like=True):
    """A question of a member."""

    member: Member
    question: Q


class Answer(Struct, frozen=True, array_like=True, tag=1):
    """What was returned, in MessagePack."""

    body: bytes


class NotLeading(Struct, frozen=True, array_like=True, tag=2):
    """Nothing was done: this node does not lead. `leader`: who does, as far as it knows."""

    leader: Member | None = None


Reply: TypeAlias = Answer | NotLeading | Refused


class Subject(Generic[Q]):
    """What may be asked about something, and what answers it."""

    def __init__(
        self,
        name: str,
        asked: Asked,
        version: int,
        question: object,
        leading: Callable[[Service], Any],
        answering: Mapping[type, Answering],
    ) -> None:
        """`question`: the union of the questions. `leading`: what of the control plane answers them."""
        self.asked = asked
        self.asking: Codec[Asking[Q]] = Codec(Asking[question], version, name)  # type: ignore[valid-type]
        self.reply: Codec[Reply] = Codec(Reply, version, name)
        self._leading = leading
        self._answering = answering

    async def answer(self, control: Service, member: str, question: Q) -> Any:
        return await self._answering[type(question)](self._leading(control), member, question)


class Questioner(Generic[Q]):
    """A node's way to whoever leads."""

    def __init__(self, subject: Subject[Q], site: Whereabouts, reach: Reach | None) -> None:
        self._subject = subject
        self._site = site
        self._reach = reach

    async def ask(self, question: Q, answer: type[T]) -> T:
        """Raises errors of `jobs.errors`; Unavailable where no leader is found in time."""
        search = Search(self._site)
        while True:
            leader = await search.next()
            try:
                if isinstance(leader, str):
                    return await self._ask_member(leader, question, answer)
                return cast("T", await self._subject.answer(leader, self._site.member, question))
            except NotLeader as error:
                search.refused(self._site.member, NotCarriedOut(error.detail))
            except NotCarriedOut as refused:
                search.refused(str(leader), refused)

    async def _ask_member(self, leader: str, question: Q, answer: type[T]) -> T:
        """Raises NotCarriedOut where another try does no harm, which it never does here."""
        assert self._reach is not None, "only a member of a cluster has another leader"
        body = self._subject.asking.encode(Asking(self._site.member, question))
        try:
            asking = self._reach.request(leader, self._subject.asked, body, ANSWER_S)
            reply = self._subject.reply.decode(await while_it_leads(self._site, leader, asking))
            if isinstance(reply, Answer):
                return msgspec.msgpack.decode(reply.body, type=answer)
        except (RequestFailed, Unanswered) as failed:
            raise NotCarriedOut(str(failed)) from failed
        except (MessageError, msgspec.MsgspecError) as error:
            raise InternalError(f"the leader's answer cannot be read: {error}") from error
        if isinstance(reply, NotLeading):
            raise NotCarriedOut("the node that was asked does not lead", reply.leader)
        raise error_of(reply)


class QuestionDesk(Generic[Q]):
    """The leader's side: answers the questions of members, who tell of themselves only."""

    def __init__(self, subject: Subject[Q], site: Whereabouts, peers: Peers, is_member: Callable[[str], bool]) -> None:
        self._subject = subject
        self._site = site
        self._is_member = is_member
        peers.requests[subject.asked] = self._on_request

    async def _on_request(self, peer: str, body: bytes) -> bytes:
        return self._subject.reply.encode(await self._reply(peer, body))

    async def _reply(self, peer: str, body: bytes) -> Reply:
        try:
            asking = self._subject.asking.decode(body)
        except MessageError as error:
            raise Declined(str(error)) from error
        # Another id than the peer's came through a member that relays, which is believed as it is with callers.
        if asking.member != peer and not self._is_member(asking.member):
            raise Declined(f"{asking.member} is no member")
        control = self._site.control
        if control is None:
            return NotLeading(self._site.leader)
        try:
            answer = await self._subject.answer(control, asking.member, asking.question)
        except NotLeader:
            return NotLeading(self._site.leader)
        except JobsError as error:
            return refusal(error)
        return Answer(msgspec.msgpack.encode(answer))
