"""The transport between nodes on the event loop: messages, requests and duplex streams.

A thin layer over `jobs._native.Endpoint`, which does the work in threads of its own. `Net` watches its descriptor,
hands what comes to an `Owner`, and turns requests and streams into awaitables. Files: `jobs.transfer`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from jobs._native import Endpoint, LimitError, NativeError, UnknownPeerError

if TYPE_CHECKING:
    from jobs._native import NetEvent  # an alias of the stub alone

logger = logging.getLogger(__name__)

WRITE_BYTES: Final = 64 << 10  # what the endpoint takes at once, whatever its limits are
EVENTS_AT_ONCE: Final = 256
MAX_WAIT_MS: Final = 3_600_000


class RequestFailed(Exception):
    """A request was not answered.

    `kind`: unreachable (no connection), refused (the peer declined it), timeout, limit (one of this side), too_large
    (the answer is over this side's limit), closed (the connection was lost on the way), failed (the peer tried).
    `maybe_done` is False only if it was certainly not carried out.
    """

    def __init__(self, kind: str, detail: str, *, peer: str, maybe_done: bool) -> None:
        super().__init__(f"request to {peer}: {kind}: {detail}")
        self.kind = kind
        self.detail = detail
        self.peer = peer
        self.maybe_done = maybe_done


class StreamBroken(Exception):
    """A stream is over before its end.

    `kind`: unreachable, refused or busy (so far the peer's application knows nothing of it), reset (by either side),
    stalled (the peer took nothing for too long), limit (one of this side), closed (the connection was lost).
    """

    def __init__(self, kind: str, detail: str, *, peer: str) -> None:
        super().__init__(f"stream with {peer}: {kind}: {detail}")
        self.kind = kind
        self.detail = detail
        self.peer = peer


class Declined(Exception):
    """Raised by `Owner.on_request`: the request is not carried out, for the reason given, or (`maybe_done`) that is not
    known."""

    def __init__(self, reason: str, *, maybe_done: bool = False) -> None:
        super().__init__(reason)
        self.maybe_done = maybe_done


class Owner(Protocol):
    """Who is told what comes."""

    def on_peer_up(self, peer: str, name: str) -> None:
        """Messages to the peer are sent from now on."""

    def on_peer_down(self, peer: str, reason: str) -> None:
        """Messages to the peer are dropped from now on."""

    def on_refused(self, who: str, kind: str, detail: str, left_out: int) -> None:
        """Somebody was refused, or refused this node (`by_peer`); `left_out` like it were not told."""

    def on_message(self, peer: str, message: bytes) -> None: ...

    async def on_request(self, peer: str, body: bytes) -> bytes:
        """Answer. Cancelled when nobody waits any more; raises Declined for what is not carried out."""

    async def on_stream(self, peer: str, header: bytes, stream: Stream) -> None:
        """Serve a stream that a peer has opened.

        When this returns the stream is finished, as far as it is not; when it raises or is cancelled, it is reset.
        It is not cancelled when the stream breaks: reads, writes and `closed` tell.
        """


class Stream:
    """Bytes both ways, in order, until each side has finished or one of them resets it.

    At most one task reads and one writes. Nothing is known of what the other side has used of what was written:
    where that matters it has to say so.
    """

    def __init__(self, net: Net, number: int, peer: str) -> None:
        self.peer = peer
        loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[None] = loop.create_future()
        """Done when both sides have finished and all that was written has come; StreamBroken when it broke."""
        self._net = net
        self._number = number
        self._arrived: deque[bytes] = deque()  # bounded by the credit that the endpoint gives
        self._ended = False
        self._finished = False
        self._broken: StreamBroken | None = None
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()

    async def read(self, max_bytes: int = 1 << 20) -> bytes:
        """Return what has come, at least one byte; b"" at the end. Raises StreamBroken, after what came before it."""
        while not self._arrived:
            if self._ended:
                return b""
            self._check()
            self._readable.clear()
            await self._readable.wait()
        data = self._arrived.popleft()
        if self._arrived and len(data) < max_bytes:
            data = b"".join((data, *self._arrived))
            self._arrived.clear()
        if len(data) > max_bytes:
            self._arrived.appendleft(data[max_bytes:])
            data = data[:max_bytes]
        self._net._consumed(self._number, len(data))
        return data

    async def read_exactly(self, count: int) -> bytes:
        """Return so many bytes. Raises EOFError when the stream ends before."""
        parts = []
        while count:
            if not (part := await self.read(count)):
                raise EOFError(f"stream with {self.peer}: it ended {count} bytes too soon")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    async def write(self, data: bytes) -> None:
        """Write, as fast as the peer reads. Raises StreamBroken."""
        for start in range(0, len(data), WRITE_BYTES):
            part = data[start : start + WRITE_BYTES]
            while not self._write(part):
                await self._writable.wait()
        self._check()

    def _write(self, part: bytes) -> bool:
        self._check()
        if self._finished:
            raise ValueError("the stream is finished")
        self._writable.clear()
        try:
            return self._net.endpoint.stream_write(self._number, part)
        except NativeError:
            return False  # it is over, and why comes with the events

    async def finish(self) -> None:
        """Write nothing more; the other side sees the end and can still write. Again: nothing."""
        if not self._finished and not self.closed.done():
            self._finished = True
            self._net._finish(self._number)

    def reset(self, reason: str = "given up") -> None:
        """Give the stream up, both ways; what has not come is lost. The reason is for this side. Over: nothing."""
        if self._net._forget(self._number):
            self._net._reset(self._number)
            self._break("reset", reason)

    def _check(self) -> None:
        if self._broken is not None:
            raise StreamBroken(self._broken.kind, self._broken.detail, peer=self.peer)

    def _break(self, kind: str, detail: str) -> None:
        if self.closed.done():
            return
        self._broken = StreamBroken(kind, detail, peer=self.peer)
        self.closed.set_exception(self._broken)
        self.closed.exception()  # whoever does not wait for it is told by the next call
        self._readable.set()
        self._writable.set()

    def _on_event(self, event: NetEvent) -> None:
        what, _, _, body, text, detail, _ = event
        if what == "stream_data":
            self._arrived.append(body)
            self._readable.set()
        elif what == "stream_end":
            self._ended = True
            self._readable.set()
        elif what == "stream_writable":
            self._writable.set()
        elif what == "stream_broken":
            self._break(text, detail)
        elif not self.closed.done():
            self.closed.set_result(None)


class Net:
    """An endpoint on the running event loop."""

    def __init__(self, endpoint: Endpoint, owner: Owner) -> None:
        self.endpoint = endpoint
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._descriptor: int | None = endpoint.fileno()
        self._calls: dict[int, tuple[str, asyncio.Future[bytes]]] = {}
        self._serving: dict[int, asyncio.Task[None]] = {}
        self._streams: dict[int, Stream] = {}
        self._loop.add_reader(self._descriptor, self._on_readable)

    @property
    def id(self) -> str:
        return self.endpoint.id

    def set_peers(
        self,
        peers: Mapping[str, Sequence[str]],
        guests: Collection[str] = (),
        foreign: Mapping[str, tuple[str, Sequence[str]]] | None = None,
    ) -> None:
        """Replace the allowlist: addresses by endpoint id. Who is not on it any more is cut off at once; guests among
        them have no blobs. Foreign peers, by cluster and addresses, have requests and streams only."""
        self.endpoint.set_peers(
            [(peer, list(addresses)) for peer, addresses in peers.items()],
            list(guests),
            [(peer, cluster, list(addresses)) for peer, (cluster, addresses) in (foreign or {}).items()],
        )

    def send(self, peer: str, message: bytes) -> bool:
        """Send a message after those before it; False when it was dropped."""
        try:
            return self.endpoint.send(peer, message)
        except UnknownPeerError:
            return False

    def send_urgent(self, peer: str, message: bytes) -> bool:
        """Send a message of at most 1 KiB before all that waits to be sent; False when it was dropped."""
        try:
            return self.endpoint.send_urgent(peer, message)
        except UnknownPeerError:
            return False

    async def request(self, peer: str, body: bytes, timeout_s: float) -> bytes:
        """Return the peer's answer. Raises RequestFailed."""
        try:
            number = self.endpoint.request(peer, body, min(int(timeout_s * 1000), MAX_WAIT_MS))
        except UnknownPeerError as error:
            raise RequestFailed("unreachable", str(error), peer=peer, maybe_done=False) from None
        except LimitError as error:
            raise RequestFailed("limit", str(error), peer=peer, maybe_done=False) from None
        future: asyncio.Future[bytes] = self._loop.create_future()
        self._calls[number] = peer, future
        try:
            return await future
        finally:
            # Not told yet: the caller gave up.
            if self._calls.pop(number, None) is not None and self._descriptor is not None:
                self.endpoint.cancel(number)

    async def open_stream(self, peer: str, header: bytes) -> Stream:
        """Open a stream; its header tells the peer what it is for. That it cannot be reached, reads and writes tell.

        Whoever opens it ends it: finishes it and reads to the end, or resets it. Raises StreamBroken.
        """
        try:
            number = self.endpoint.stream_open(peer, header)
        except UnknownPeerError as error:
            raise StreamBroken("unreachable", str(error), peer=peer) from None
        except LimitError as error:
            raise StreamBroken("limit", str(error), peer=peer) from None
        stream = self._streams[number] = Stream(self, number, peer)
        return stream

    async def close(self) -> None:
        """Close the endpoint; what waits for it fails. Again: nothing."""
        if self._descriptor is None:
            return
        self._loop.remove_reader(self._descriptor)
        self._descriptor = None
        for task in list(self._serving.values()):
            task.cancel()
        for number in list(self._calls):
            self._fail(number, "closed", "this node closes its endpoint", maybe_done=True)
        for stream in list(self._streams.values()):
            stream._break("closed", "this node closes its endpoint")
        self._streams.clear()
        await asyncio.to_thread(self.endpoint.close)

    def _consumed(self, number: int, size_bytes: int) -> None:
        if self._descriptor is not None:
            self.endpoint.stream_consumed(number, size_bytes)

    def _finish(self, number: int) -> None:
        # Over: its end, or why it broke, is on its way.
        with contextlib.suppress(NativeError):
            self.endpoint.stream_finish(number)

    def _forget(self, number: int) -> bool:
        return self._streams.pop(number, None) is not None

    def _reset(self, number: int) -> None:
        with contextlib.suppress(NativeError):
            self.endpoint.stream_reset(number)

    def _on_readable(self) -> None:
        for event in self.endpoint.receive(EVENTS_AT_ONCE):
            try:
                self._on_event(event)
            except Exception:
                logger.exception("an event of the transport was not handled: %s from %s", event[0], event[1])

    def _on_event(self, event: NetEvent) -> None:
        what, peer, number, body, text, detail, extra = event
        if what == "message":
            self._owner.on_message(peer, body)
        elif what == "answer":
            call = self._calls.pop(number, None)
            if call is not None and not call[1].done():
                call[1].set_result(body)
        elif what == "failure":
            self._fail(number, text, detail, maybe_done=bool(extra))
        elif what.startswith("request"):
            self._on_request(event)
        elif what.startswith("stream"):
            self._on_stream(event)
        elif what == "up":
            self._owner.on_peer_up(peer, text)
        elif what == "down":
            self._owner.on_peer_down(peer, detail)
        else:
            self._owner.on_refused(peer, text, detail, extra)

    def _on_request(self, event: NetEvent) -> None:
        what, peer, number, body, *_ = event
        if what == "request":
            task = self._serving[number] = self._loop.create_task(self._serve(peer, number, body))
            task.add_done_callback(lambda _: self._serving.pop(number, None))
        elif gone := self._serving.get(number):
            gone.cancel()

    def _on_stream(self, event: NetEvent) -> None:
        what, peer, number, body, *_ = event
        if what == "stream":
            stream = self._streams[number] = Stream(self, number, peer)
            task = self._serving[number] = self._loop.create_task(self._serve_stream(peer, body, stream))
            task.add_done_callback(lambda _: self._serving.pop(number, None))
        elif known := self._streams.get(number):
            known._on_event(event)
            if what in ("stream_closed", "stream_broken"):
                del self._streams[number]

    def _fail(self, number: int, kind: str, detail: str, *, maybe_done: bool) -> None:
        call = self._calls.pop(number, None)
        if call is not None and not call[1].done():
            call[1].set_exception(RequestFailed(kind, detail, peer=call[0], maybe_done=maybe_done))

    async def _serve(self, peer: str, number: int, body: bytes) -> None:
        try:
            answer = await self._owner.on_request(peer, body)
            self.endpoint.respond(number, answer)
        except Declined as declined:
            self.endpoint.decline(number, str(declined), maybe_done=declined.maybe_done)
        except LimitError as error:
            self.endpoint.decline(number, str(error), maybe_done=True)
        except Exception:
            logger.exception("a request of %s failed", peer)
            if self._descriptor is not None:
                self.endpoint.decline(number, "internal error", maybe_done=True)

    async def _serve_stream(self, peer: str, header: bytes, stream: Stream) -> None:
        try:
            await self._owner.on_stream(peer, header, stream)
            await stream.finish()
        except StreamBroken as broken:
            logger.debug("%s", broken)
        except Exception:
            logger.exception("a stream of %s failed", peer)
        finally:
            if not stream._finished:
                stream.reset("it is not served any more")
