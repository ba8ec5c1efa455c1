"""What a node does for members that do not reach the leader, which it hears itself: it passes their requests on.

Circles are impossible: what it passes on is carried out by the one that it goes to, or not at all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from jobs.cluster import Asked, Opened, Peers
from jobs.consensus import Consensus
from jobs.forward.leader import LeaderSide
from jobs.net import Declined, RequestFailed, Stream

logger = logging.getLogger(__name__)

MAX_RELAYED: Final = 256
"""Requests and streams that are relayed at a time; one more is declined."""
RELAY_S: Final = 300.0
"""Bound for an answer; whoever asked gives up earlier."""
_REQUESTS: Final = (bytes((Asked.FORWARD,)), bytes((Asked.BLOBS,)))
_STREAMS: Final = (bytes((Opened.FORWARD,)), bytes((Opened.WORKER,)))


class Relay:
    """Passes on what members send for a leader that they do not reach. A node that leads answers itself."""

    def __init__(self, peers: Peers, consensus: Consensus, side: LeaderSide) -> None:
        self._peers = peers
        self._consensus = consensus
        self._side = side
        self._under_way = 0
        peers.requests[Asked.RELAY] = self._on_request
        peers.streams[Opened.RELAY] = self._on_stream

    def _onward(self, what: bytes, relayed: Sequence[bytes]) -> str | None:
        """Return the leader, as this node hears it itself; None where that is nobody else. Raises Declined."""
        if what not in relayed:
            raise Declined(f"what begins with {what.hex() or 'nothing'} is not relayed")
        if self._under_way >= MAX_RELAYED:
            raise Declined(f"{MAX_RELAYED} requests and streams are relayed already")
        leader = self._consensus.leader
        return None if leader == self._consensus.me else leader

    async def _on_request(self, peer: str, body: bytes) -> bytes:
        leader = self._onward(body[:1], _REQUESTS)
        what = Asked(body[0])
        if leader is None:
            return await self._peers.requests[what](peer, body[1:])
        self._under_way += 1
        try:
            return await self._peers.request(leader, what, body[1:], RELAY_S)
        except RequestFailed as failed:
            raise Declined(f"it could not be relayed: {failed}", maybe_done=failed.maybe_done) from failed
        finally:
            self._under_way -= 1

    async def _on_stream(self, peer: str, header: bytes, stream: Stream) -> None:
        try:
            leader = self._onward(header[:1], _STREAMS)
        except Declined as declined:
            logger.warning("a stream of %s is refused: %s", peer, declined)
            stream.reset(str(declined))
            return
        if leader is None:
            await self._side.on_stream(peer, header[1:], stream)
            return
        self._under_way += 1
        try:
            onward = await self._peers.open_stream(leader, Opened(header[0]), header[1:])
            try:
                await asyncio.gather(_copy(stream, onward), _copy(onward, stream))
            finally:
                onward.reset("the other side has ended")
        finally:
            self._under_way -= 1


async def _copy(source: Stream, target: Stream) -> None:
    """Write what one stream brings to another. Raises StreamBroken."""
    while data := await source.read():
        await target.write(data)
    await target.finish()
