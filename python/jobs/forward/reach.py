"""The way to the leader: straight, or by one hop through a member that hears it, where this node does not."""

from __future__ import annotations

from jobs.cluster import Asked, Inquiry, Opened, Peers
from jobs.net import Stream


class Reach:
    def __init__(self, peers: Peers, inquiry: Inquiry) -> None:
        self._peers = peers
        self._inquiry = inquiry

    async def request(self, peer: str, what: Asked, body: bytes, timeout_s: float) -> bytes:
        """Return the leader's answer. Raises RequestFailed."""
        through = self._inquiry.through(peer)
        if through is None:
            return await self._peers.request(peer, what, body, timeout_s)
        return await self._peers.request(through, Asked.RELAY, bytes((what,)) + body, timeout_s)

    async def open_stream(self, peer: str, what: Opened, header: bytes) -> Stream:
        """Raises StreamBroken."""
        through = self._inquiry.through(peer)
        if through is None:
            return await self._peers.open_stream(peer, what, header)
        return await self._peers.open_stream(through, Opened.RELAY, bytes((what,)) + header)
