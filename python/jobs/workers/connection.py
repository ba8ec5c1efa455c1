"""A worker's end of the socket to its node: frames, and coming back after every loss."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from typing import Final, Protocol, cast

from jobs.protocol.wire import MAX_FRAME_BYTES, NodeFrame, WorkerFrame, decode_node_frame, encode_frame
from jobs.workers.framing import take_frames
from jobs.workers.session import ProtocolError

logger = logging.getLogger(__name__)

RETRY_MIN_S: Final = 0.05
RETRY_MAX_S: Final = 1.0


class Owner(Protocol):
    """Who is told what happens on a connection."""

    def on_connected(self, connection: Connection) -> None: ...

    def on_frames(self, frames: Sequence[NodeFrame]) -> None:
        """Raises ProtocolError for what no node may send: the connection is cut."""

    def on_disconnected(self) -> None: ...


class Connection(asyncio.Protocol):
    """One connection, from its opening to its loss."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's does not derive from asyncio's.
        self._owner.on_connected(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            self._owner.on_frames(cut_frames(self._buffer))
        except ProtocolError as error:
            logger.error("the connection to the node is given up: %s", error)
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._owner.on_disconnected()
        self._transport = None
        if not self.lost.done():
            self.lost.set_result(None)

    def send(self, frames: Iterable[WorkerFrame]) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(map(encode_frame, frames)))

    def close(self) -> None:
        """Close after what has been written is sent."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


def cut_frames(buffer: bytearray) -> list[NodeFrame]:
    """Take the whole frames out of `buffer`.

    Raises ProtocolError for a frame that is too large or cannot be read.
    """
    return take_frames(buffer, MAX_FRAME_BYTES, decode_node_frame, ProtocolError)


def retry_delay_s(failures: int, chance: float) -> float:
    """Return the wait before the next attempt to connect, `chance` in [0, 1) spreading workers over its second half."""
    delay_s: float = min(RETRY_MAX_S, RETRY_MIN_S * 2.0 ** min(failures, 16))
    return delay_s * (0.5 + 0.5 * chance)


async def connect(path: str, owner: Owner) -> Connection:
    """Open a connection. Raises OSError."""
    _, connection = await asyncio.get_running_loop().create_unix_connection(lambda: Connection(owner), path)
    return connection
