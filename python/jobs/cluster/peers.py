"""Who this node speaks with, and what about: one endpoint, an allowlist, a table of what each kind of traffic is for.

Members may do everything that members do; a guest, who has a ticket, may ask to join and nothing else. A foreign peer,
of another cluster, is heard by one handler of requests and one of streams that hear nobody else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from msgspec import Struct

from jobs._native import Endpoint, LimitError
from jobs.blobs import BlobStore
from jobs.consensus.membership import MAX_GUESTS, MAX_MEMBERS
from jobs.consensus.messages import MAX_MESSAGE_BYTES
from jobs.logs import Seldom
from jobs.net import Declined, Net, Stream
from jobs.transfer import TransferFailed, read_offer, send_file

logger = logging.getLogger(__name__)

MAX_FOREIGN: Final = 256
"""Foreign peers at most: 16 links of 16 nodes."""
LIMITS: Final = {
    # A second thread of the transport is woken for the second of two messages: that costs more than it gains.
    "threads": 1,
    "max_peers": 2 * (MAX_MEMBERS + MAX_GUESTS) + MAX_FOREIGN,
    # Each sync that follows another cluster has one that waits.
    "max_foreign_requests": 128,
    "max_message_bytes": MAX_MESSAGE_BYTES,
    "outbox_bytes": 2 * MAX_MESSAGE_BYTES,
    "inbox_bytes": 2 * MAX_MESSAGE_BYTES,
}


class Asked(IntEnum):
    """What a request is about: its first byte."""

    JOIN = 1
    PROGRESS = 2
    FORWARD = 3
    MOVED = 4
    LEADER = 5
    RELAY = 6
    BLOBS = 7
    FOREIGN = 8
    REPLICATION = 9
    MAINTENANCE = 10
    SECRET_KEYS = 11


class Opened(IntEnum):
    """What a stream is for: the first byte of its header."""

    SNAPSHOT = 1
    FORWARD = 2
    WORKER = 3
    RELAY = 4
    BLOBS = 5
    FOREIGN = 6
    MAINTENANCE = 7


_ASKED_FOREIGN: Final = bytes((Asked.FOREIGN,))
_OPENED_FOREIGN: Final = bytes((Opened.FOREIGN,))

OnRequest: TypeAlias = Callable[[str, bytes], Awaitable[bytes]]
OnStream: TypeAlias = Callable[[str, bytes, Stream], Awaitable[None]]


class ForeignPeer(Struct, frozen=True, kw_only=True):
    """Another cluster's node."""

    cluster: str
    """What it must say of itself."""
    addresses: tuple[str, ...]


class _Allowlist(NamedTuple):
    """As the endpoint has it."""

    peers: dict[str, list[str]]
    guests: frozenset[str]
    foreign: dict[str, tuple[str, tuple[str, ...]]]


class Peers:
    """An open endpoint: a `net.Owner`, and the `Network` of consensus.

    `requests` and `streams` are called with a member's id and what follows the first byte; `on_foreign_request` and
    `on_foreign_stream` with a foreign peer's.
    """

    def __init__(self, endpoint: Endpoint, incoming: Path) -> None:
        self._net = Net(endpoint, self)
        self._incoming = incoming
        self._members: frozenset[str] = frozenset()
        self._guests: frozenset[str] = frozenset()
        self._foreign: dict[str, ForeignPeer] = {}
        self._told = _Allowlist({}, frozenset(), {})
        self.up: dict[str, str] = {}
        """Names of the peers that messages reach, by id."""
        self.not_allowed = 0
        """What peers were refused that they may not do, or that is not known here; the endpoint counts the rest."""
        self._refusals = Seldom(60.0)
        self._receiving = asyncio.Lock()
        self.requests: dict[Asked, OnRequest] = {}
        self.streams: dict[Opened, OnStream] = {Opened.SNAPSHOT: self._on_snapshot}
        self.on_foreign_request: OnRequest | None = None
        self.on_foreign_stream: OnStream | None = None
        self.on_raft: Callable[[str, bytes], None] = lambda peer, message: None
        self.on_up: Callable[[str], None] = lambda peer: None
        """Called when messages reach a peer from now on."""
        self.on_snapshot_file: Callable[[str, Path], Awaitable[None]] | None = None

    @property
    def id(self) -> str:
        return self._net.id

    @property
    def addresses(self) -> list[str]:
        """Where the endpoint is bound."""
        return self._net.endpoint.addresses

    def allow(self, members: Mapping[str, Sequence[str]], guests: Sequence[str] = ()) -> None:
        """Speak with these from now on, and with nobody else: addresses by id; guests are only listened to."""
        others = {member: list(addresses) for member, addresses in members.items() if member != self.id}
        self._members = frozenset(others)
        self._guests = frozenset(guests) - self._members
        allowed = others | {guest: [] for guest in sorted(self._guests)}
        self._tell(allowed, self._foreign)

    def allow_foreign(self, foreign: Mapping[str, ForeignPeer]) -> None:
        """Speak with these foreign peers from now on, and with no others. Raises NativeError for what cannot be one;
        the former ones stay."""
        if len(foreign) > MAX_FOREIGN:
            raise LimitError(f"{len(foreign)} foreign peers: at most {MAX_FOREIGN}")
        self._tell(self._told.peers, dict(foreign))

    def _tell(self, allowed: dict[str, list[str]], foreign: dict[str, ForeignPeer]) -> None:
        # Whoever is a member of this cluster is no foreign peer.
        apart = {peer: (one.cluster, one.addresses) for peer, one in foreign.items() if peer not in allowed}
        allowlist = _Allowlist(allowed, self._guests, apart)
        if allowlist != self._told:
            self._net.set_peers(*allowlist)
            self._told = allowlist
        self._foreign = foreign

    def carry(self, blobs: BlobStore) -> None:
        """Let members fetch from this store, and it from them. Raises NativeError."""
        blobs.join(self._net.endpoint)

    def counters(self) -> dict[str, int]:
        return self._net.endpoint.counters()

    async def close(self) -> None:
        await self._net.close()

    # --- to others ------------------------------------------------------------------------------------------------

    def send(self, peer: str, message: bytes) -> bool:
        return self._net.send(peer, message)

    def send_urgent(self, peer: str, message: bytes) -> bool:
        return self._net.send_urgent(peer, message)

    async def send_file(self, peer: str, name: str, path: Path) -> None:
        """Send a snapshot. Raises TransferFailed, StreamBroken and OSError."""
        await send_file(await self.open_stream(peer, Opened.SNAPSHOT), path, name)

    async def request(self, peer: str, what: Asked, body: bytes, timeout_s: float) -> bytes:
        """Return the peer's answer. Raises RequestFailed."""
        return await self._net.request(peer, bytes((what,)) + body, timeout_s)

    async def open_stream(self, peer: str, what: Opened, header: bytes = b"") -> Stream:
        """Raises StreamBroken."""
        return await self._net.open_stream(peer, bytes((what,)) + header)

    async def ask_foreign(self, peer: str, body: bytes, timeout_s: float) -> bytes:
        """Return a foreign peer's answer. Raises RequestFailed."""
        return await self.request(peer, Asked.FOREIGN, body, timeout_s)

    async def open_foreign(self, peer: str, header: bytes) -> Stream:
        """Open a stream to a foreign peer. Raises StreamBroken."""
        return await self.open_stream(peer, Opened.FOREIGN, header)

    # --- from others: `net.Owner` -----------------------------------------------------------------------------------

    def on_peer_up(self, peer: str, name: str) -> None:
        self.up[peer] = name
        logger.info("connected with %s", name, extra={"peer": peer})
        self.on_up(peer)

    def on_peer_down(self, peer: str, reason: str) -> None:
        name = self.up.pop(peer, peer)
        logger.warning("lost %s: %s", name, reason, extra={"peer": peer})

    def on_refused(self, who: str, kind: str, detail: str, left_out: int) -> None:
        # A member that was removed, and does not know it, asks again and again.
        if (untold := self._refusals.left_out(f"{who} {kind}")) is not None:
            logger.warning("refused %s: %s: %s", who, kind, detail, extra={"left_out": left_out + untold})

    def on_message(self, peer: str, message: bytes) -> None:
        if peer in self._members:
            self.on_raft(peer, message)
        else:
            self._refuse(peer, "a message")

    async def on_request(self, peer: str, body: bytes) -> bytes:
        if peer in self._told.foreign:
            return await self._on_foreign_request(peer, body)
        try:
            what = Asked(body[0])
            handler = self.requests[what]
        except (IndexError, ValueError, KeyError):
            self._refuse(peer, f"a request of kind {body[:1].hex() or 'none'}")
            raise Declined(f"requests of kind {body[:1].hex() or 'none'} are not known here") from None
        if peer not in self._members and what is not Asked.JOIN:
            self._refuse(peer, f"a request to {what.name.lower()}")
            raise Declined("a guest may only ask to join")
        return await handler(peer, body[1:])

    async def _on_foreign_request(self, peer: str, body: bytes) -> bytes:
        if body[:1] != _ASKED_FOREIGN or self.on_foreign_request is None:
            self._refuse(peer, f"a request of kind {body[:1].hex() or 'none'}")
            raise Declined("a peer of another cluster may not ask this here")
        return await self.on_foreign_request(peer, body[1:])

    async def on_stream(self, peer: str, header: bytes, stream: Stream) -> None:
        if peer in self._told.foreign:
            await self._on_foreign_stream(peer, header, stream)
            return
        try:
            handler = self.streams[Opened(header[0])]
        except (IndexError, ValueError, KeyError):
            self._refuse(peer, f"a stream of kind {header[:1].hex() or 'none'}")
            stream.reset("its kind is not known")
            return
        if peer not in self._members:
            self._refuse(peer, "a stream")
            stream.reset("not a member")
            return
        await handler(peer, header[1:], stream)

    async def _on_foreign_stream(self, peer: str, header: bytes, stream: Stream) -> None:
        if header[:1] != _OPENED_FOREIGN or self.on_foreign_stream is None:
            self._refuse(peer, f"a stream of kind {header[:1].hex() or 'none'}")
            stream.reset("a peer of another cluster may not open this here")
            return
        await self.on_foreign_stream(peer, header[1:], stream)

    def _refuse(self, peer: str, what: str) -> None:
        self.not_allowed += 1
        if (left_out := self._refusals.left_out(peer)) is not None:
            logger.warning("refused %s: %s", self.up.get(peer, peer), what, extra={"left_out": left_out})

    async def _on_snapshot(self, peer: str, header: bytes, stream: Stream) -> None:
        """Receive the leader's snapshot beside the store, and hand it over. One at a time until it is taken in: that of
        another leader would take its place under the same name."""
        async with self._receiving:
            await self._receive_snapshot(peer, stream)

    async def _receive_snapshot(self, peer: str, stream: Stream) -> None:
        try:
            offer = await read_offer(stream)
            if self.on_snapshot_file is None:
                await offer.decline("no snapshot is wanted")
                return
            # One name whatever is offered: what a former try left is gone on with, or thrown away.
            path = self._incoming / "incoming.snap"
            await offer.receive(path)
        except (TransferFailed, OSError) as error:
            logger.warning("a snapshot of %s was not received: %s", peer, error)
            return
        try:
            await self.on_snapshot_file(peer, path)
        except Exception as error:
            logger.warning("a snapshot of %s was not taken in: %s", peer, error)
        finally:
            path.unlink(missing_ok=True)
