"""Orders between members about their blobs: each is a stream, on which its progress and its end come back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import Final, TypeVar

from msgspec import structs

from jobs._native import DiskFullError, NativeError
from jobs.blobs import messages as m
from jobs.blobs.tending import OnAdvance, Tending
from jobs.cluster import Opened, Peers
from jobs.consensus import Consensus
from jobs.consensus.membership import MAX_MEMBERS
from jobs.errors import InternalError, JobsError, NotFound, StorageFull, TooManyRequests
from jobs.net import Stream, StreamBroken

logger = logging.getLogger(__name__)

End = TypeVar("End", bound=m.End)
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


class Members:
    """The members as this node knows them, itself among them; and the way to each."""

    def __init__(self, peers: Peers | None, consensus: Consensus, tending: Tending) -> None:
        self._peers = peers
        self._consensus = consensus
        self._tending = tending
        self._turns: dict[str, asyncio.Semaphore] = {}

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

    async def fetch(self, member: str, order: m.Fetch, on_advance: OnAdvance) -> m.Fetched:
        """Raises Unreached and errors of `jobs.errors`, as those below."""
        async with self._turn(member):
            return _as(m.Fetched, await self._order(member, order, on_advance))

    async def survey(self, member: str) -> m.Room:
        return _as(m.Room, await self._order(member, m.Survey()))

    async def verify(self, member: str, order: m.Verify, on_advance: OnAdvance) -> m.Verified:
        async with self._turn(member):
            return _as(m.Verified, await self._order(member, order, on_advance))

    async def sweep(self, member: str, order: m.Sweep) -> m.Swept:
        async with self._turn(member):
            return _as(m.Swept, await self._order(member, order))

    async def check(self, member: str, blobs: tuple[str, ...]) -> m.Checked:
        return _as(m.Checked, await self._order(member, m.Check(blobs)))

    def _turn(self, member: str) -> asyncio.Semaphore:
        """What takes its time waits for its turn; a question about room does not."""
        self._turns = {known: turns for known, turns in self._turns.items() if known in self.ids}
        return self._turns.setdefault(member, asyncio.Semaphore(MAX_SENT))

    async def _order(self, member: str, order: m.Order, on_advance: OnAdvance = lambda now: None) -> m.End:
        if member == self.me:
            end = await _ended(self._tending.carry_out(order, on_advance))
        else:
            end = await self._order_other(member, order, on_advance)
        if isinstance(end, m.Declined):
            raise m.error_of(structs.replace(end.error, detail=f"{self.name(member)}: {end.error.detail}"))
        return end

    async def _order_other(self, member: str, order: m.Order, on_advance: OnAdvance) -> m.End:
        name = self.name(member)
        if self._peers is None:
            raise Unreached(name, "this node is alone")
        try:
            stream = await self._peers.open_stream(member, Opened.BLOBS)
            try:
                await stream.write(m.framed(order))
                await stream.finish()
                return await _end(stream, on_advance)
            finally:
                stream.reset("the order is over or given up")
        except (StreamBroken, EOFError) as broken:
            raise Unreached(name, str(broken)) from broken
        except TimeoutError:
            raise Unreached(name, f"it has said nothing for {SILENT_S:g} s") from None
        except m.MessageError as error:
            raise InternalError(f"what {name} says cannot be read: {error}") from error


async def _end(stream: Stream, on_advance: OnAdvance) -> m.End:
    """Read to the end of an order."""
    while True:
        async with asyncio.timeout(SILENT_S):
            said = m.decode_said(await _read_frame(stream))
        if not isinstance(said, m.Advance):
            return said
        on_advance(said)


async def _read_frame(stream: Stream) -> bytes:
    """Raises MessageError, EOFError, StreamBroken."""
    size = int.from_bytes(await stream.read_exactly(4), "big")
    if size > m.MAX_FRAME_BYTES:
        raise m.MessageError(f"a message of {size} bytes; at most {m.MAX_FRAME_BYTES} are taken")
    return await stream.read_exactly(size)


def _as(kind: type[End], end: m.End) -> End:
    if not isinstance(end, kind):
        raise InternalError(f"{type(end).__name__} is no answer to an order for {kind.__name__}")
    return end


async def _ended(work: Awaitable[m.End]) -> m.End:
    """Return the end of an order, whatever comes of it."""
    try:
        return await work
    except JobsError as error:
        return m.Declined(m.refusal(error))
    except NativeError as error:
        return m.Declined(m.refusal(StorageFull(str(error)) if isinstance(error, DiskFullError) else _own(error)))


def _own(error: NativeError) -> JobsError:
    return InternalError(f"its blobs cannot be used: {error}")


class MemberDesk:
    """Carries out what other members order."""

    def __init__(self, peers: Peers, tending: Tending) -> None:
        self._tending = tending
        self._under_way = 0
        peers.streams[Opened.BLOBS] = self._on_stream

    async def _on_stream(self, peer: str, header: bytes, stream: Stream) -> None:
        try:
            async with asyncio.timeout(SILENT_S):
                order = m.decode_order(await _read_frame(stream))
        except (m.MessageError, EOFError, TimeoutError) as error:
            logger.warning("an order of %s is refused: %s", peer, error or "it did not come")
            stream.reset("it cannot be read")
            return
        if self._under_way >= MAX_SERVED:
            busy = TooManyRequests(f"{MAX_SERVED} orders of members are carried out already", retry_after_s=1)
            await stream.write(m.framed(m.Declined(m.refusal(busy))))
            return
        self._under_way += 1
        try:
            await self._serve(order, stream)
        finally:
            self._under_way -= 1

    async def _serve(self, order: m.Order, stream: Stream) -> None:
        """Carry an order out for as long as somebody waits for its end."""
        news = _News()
        work = asyncio.ensure_future(_ended(self._tending.carry_out(order, news.tell)))
        work.add_done_callback(lambda _: news.bell.set())
        stream.closed.add_done_callback(lambda _: work.cancel())
        try:
            while not work.done():
                await news.next()
                if not work.done():
                    await stream.write(m.framed(news.latest))
            await stream.write(m.framed(work.result()))
        finally:
            work.cancel()
            await asyncio.wait([work])


class _News:
    """The latest that is known of an order's progress."""

    def __init__(self) -> None:
        self.latest = m.Advance()
        self.bell = asyncio.Event()

    def tell(self, now: m.Advance) -> None:
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
