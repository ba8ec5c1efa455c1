"""Orders between members: each is a stream, on which its progress and its end come back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar, cast

from msgspec import Struct, structs

from jobs._native import DiskFullError, NativeError
from jobs.cluster import Opened, Peers
from jobs.consensus import Consensus
from jobs.consensus.membership import MAX_MEMBERS
from jobs.errors import InternalError, JobsError, NotFound, StorageFull, TooManyRequests
from jobs.forward.speech import Codec, MessageError, Refused, error_of, refusal
from jobs.net import Stream, StreamBroken

logger = logging.getLogger(__name__)

O = TypeVar("O")  # noqa: E741
A = TypeVar("A")
E = TypeVar("E")
End = TypeVar("End")
MAX_FRAME_BYTES: Final = 4 << 20
MAX_SENT: Final = 32
"""Orders that one member is sent at a time; others wait for their turn."""
MAX_SERVED: Final = MAX_SENT * MAX_MEMBERS + 64
"""Orders of others that are carried out at a time; one more is refused."""
TICK_S: Final = 5.0
"""So often at least something is said while an order is carried out."""
SILENT_S: Final = 20.0
"""A member that says nothing for so long is given up."""


class Unreached(Exception):
    """A member could not be asked, or broke off: what it was to do may have been done, or not."""

    def __init__(self, name: str, detail: str) -> None:
        super().__init__(f"{name} is not reached: {detail}")


class Declined(Struct, frozen=True, array_like=True, tag=7):
    """It was not done, or not all of it."""

    error: Refused


class Kind(Generic[O, A, E]):
    """Orders of one kind: what may be ordered, how far it is, and what it comes to."""

    def __init__(
        self, subject: str, opened: Opened, version: int, *, order: object, said: object, beginning: A, failure: str
    ) -> None:
        """`said`: the union of what says how far it is, of the ends, and of Declined. `beginning`: what is said before
        anything is known. `failure`: of a fault of the extension, such as `its blobs cannot be used`."""
        self.opened = opened
        self.beginning = beginning
        self.failure = failure
        self.order: Codec[O] = Codec(order, version, subject)
        self.said: Codec[A | E | Declined] = Codec(said, version, subject)


CarryOut = Callable[[O, Callable[[A], None]], Awaitable[E]]
"""Raises errors of `jobs.errors`, and of the extension."""


class MemberOrders(Generic[O, A, E]):
    """The members as this node knows them, itself among them; and the way to each."""

    def __init__(
        self, kind: Kind[O, A, E], peers: Peers | None, consensus: Consensus, carry_out: CarryOut[O, A, E]
    ) -> None:
        self._kind = kind
        self._peers = peers
        self._consensus = consensus
        self._carry_out = carry_out

    @property
    def me(self) -> str:
        return self._consensus.me

    @property
    def ids(self) -> frozenset[str]:
        return frozenset(record.id for record in self._consensus.members.records) | {self.me}

    @property
    def reached(self) -> frozenset[str]:
        """Those that messages reach, as far as is known."""
        up = frozenset() if self._peers is None else frozenset(self._peers.up)
        return (up & self.ids) | {self.me}

    def name(self, member: str) -> str:
        return self._consensus.members.name_of(member)

    def named(self, name: str) -> str:
        """Return the id of a member by its name. Raises NotFound."""
        for record in self._consensus.members.records:
            if name in (record.name, record.id):
                return record.id
        names = ", ".join(sorted(record.name for record in self._consensus.members.records))
        raise NotFound(f"no member is called {name}", expected=f"one of {names}")

    def named_in(self, text: str) -> str:
        """Return a text with the names of members in place of their ids."""
        for record in self._consensus.members.records:
            text = text.replace(record.id, record.name)
        return text

    async def _order(self, member: str, order: O, on_advance: Callable[[A], None] = lambda now: None) -> E:
        """Raises Unreached and errors of `jobs.errors`."""
        if member == self.me:
            end = await _ended(self._kind.failure, self._carry_out(order, on_advance))
        else:
            end = await self._order_other(member, order, on_advance)
        if isinstance(end, Declined):
            raise error_of(structs.replace(end.error, detail=f"{self.name(member)}: {end.error.detail}"))
        return end

    async def _order_other(self, member: str, order: O, on_advance: Callable[[A], None]) -> E | Declined:
        name = self.name(member)
        if self._peers is None:
            raise Unreached(name, "this node is alone")
        try:
            stream = await self._peers.open_stream(member, self._kind.opened)
            try:
                await stream.write(self._kind.order.framed(order))
                await stream.finish()
                return await self._end(stream, on_advance)
            finally:
                stream.reset("the order is over or given up")
        except (StreamBroken, EOFError) as broken:
            raise Unreached(name, str(broken)) from broken
        except TimeoutError:
            raise Unreached(name, f"it has said nothing for {SILENT_S:g} s") from None
        except MessageError as error:
            raise InternalError(f"what {name} says cannot be read: {error}") from error

    async def _end(self, stream: Stream, on_advance: Callable[[A], None]) -> E | Declined:
        """Read to the end of an order."""
        while True:
            async with asyncio.timeout(SILENT_S):
                said = self._kind.said.decode(await _read_frame(stream))
            if not isinstance(said, type(self._kind.beginning)):
                return cast("E | Declined", said)
            on_advance(said)


def as_end(kind: type[End], end: object) -> End:
    """Return an end as what it is to be. Raises InternalError for another."""
    if not isinstance(end, kind):
        raise InternalError(f"{type(end).__name__} is no answer to an order for {kind.__name__}")
    return end


async def _read_frame(stream: Stream) -> bytes:
    """Raises MessageError, EOFError, StreamBroken."""
    size = int.from_bytes(await stream.read_exactly(4), "big")
    if size > MAX_FRAME_BYTES:
        raise MessageError(f"a message of {size} bytes; at most {MAX_FRAME_BYTES} are taken")
    return await stream.read_exactly(size)


async def _ended(failure: str, work: Awaitable[E]) -> E | Declined:
    """Return the end of an order, whatever comes of it."""
    try:
        return await work
    except JobsError as error:
        return Declined(refusal(error))
    except DiskFullError as error:
        return Declined(refusal(StorageFull(str(error))))
    except NativeError as error:
        return Declined(refusal(InternalError(f"{failure}: {error}")))


class OrderDesk(Generic[O, A, E]):
    """Carries out what other members order."""

    def __init__(self, kind: Kind[O, A, E], peers: Peers, carry_out: CarryOut[O, A, E]) -> None:
        self._kind = kind
        self._carry_out = carry_out
        self._under_way = 0
        peers.streams[kind.opened] = self._on_stream

    async def _on_stream(self, peer: str, header: bytes, stream: Stream) -> None:
        try:
            async with asyncio.timeout(SILENT_S):
                order = self._kind.order.decode(await _read_frame(stream))
        except (MessageError, EOFError, TimeoutError) as error:
            logger.warning("an order of %s is refused: %s", peer, error or "it did not come")
            stream.reset("it cannot be read")
            return
        if self._under_way >= MAX_SERVED:
            busy = TooManyRequests(f"{MAX_SERVED} orders of members are carried out already", retry_after_s=1)
            await stream.write(self._kind.said.framed(Declined(refusal(busy))))
            return
        self._under_way += 1
        try:
            await self._serve(order, stream)
        finally:
            self._under_way -= 1

    async def _serve(self, order: O, stream: Stream) -> None:
        """Carry an order out for as long as somebody waits for its end."""
        news = _News(self._kind.beginning)
        work: asyncio.Task[E | Declined] = asyncio.ensure_future(
            _ended(self._kind.failure, self._carry_out(order, news.tell))
        )
        work.add_done_callback(lambda _: news.bell.set())
        stream.closed.add_done_callback(lambda _: work.cancel())
        try:
            while not work.done():
                await news.next()
                if not work.done():
                    await stream.write(self._kind.said.framed(news.latest))
            await stream.write(self._kind.said.framed(work.result()))
        finally:
            work.cancel()
            await asyncio.wait([work])


class _News(Generic[A]):
    """The latest that is known of an order's progress."""

    def __init__(self, beginning: A) -> None:
        self.latest = beginning
        self.bell = asyncio.Event()

    def tell(self, now: A) -> None:
        self.latest = now
        self.bell.set()

    async def next(self) -> None:
        """Return when there is something new, or it is time to say that there is not."""
        try:
            async with asyncio.timeout(TICK_S):
                await self.bell.wait()
        except TimeoutError:
            return
        self.bell.clear()
