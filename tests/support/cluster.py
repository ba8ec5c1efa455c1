"""Members of a cluster in the test's own process: real logs, stores and consensus, QUIC between them, their sockets."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from jobs._native import Endpoint, Log, Store
from jobs.api import ApiConfig, serve
from jobs.blobs.output import HostedOutput
from jobs.clock import wall_ms
from jobs.cluster import Peers
from jobs.cluster.peers import LIMITS
from jobs.consensus import Consensus, ConsensusConfig, MemberRecord, Role
from jobs.consensus.membership import put_member
from jobs.control import ControlConfig, Site
from jobs.control.secrets import SecretsConfig
from jobs.forward.passage import Passage
from jobs.protocol.ids import uuid7
from jobs.secrets.exchange import KeyExchange
from jobs.secrets.keyring import Keyring
from jobs.secrets.part import SecretsPart
from jobs.workerdoor import WorkerDoor
from tests.support.api import Answer, Raw, request
from tests.support.backend import SiteBackend

QUICK = ConsensusConfig(heartbeat_s=0.1, election_min_s=0.6, election_max_s=1.2)
STEP_S = 60.0
_numbers = itertools.count()


class Member:
    """One node; `start` after `stop` is a restart."""

    def __init__(self, directory: Path, name: str, **changes: object) -> None:
        directory.mkdir(exist_ok=True)
        self.name = name
        self.socket = directory / "api.sock"
        self.worker_socket = directory / "worker.sock"
        self.known: dict[str, list[str]] = {}
        self._directory = directory
        self._config = ControlConfig(**{"worker_lease_s": 5.0, **changes})  # type: ignore[arg-type]

    async def start(self, *, first: bool = False, api: ApiConfig | None = None) -> Member:
        place = self._directory
        endpoint = Endpoint(
            str(place / "node.key"), bind=["127.0.0.1:0"], cluster="test", node=self.name, limits=LIMITS
        )
        self.peers = Peers(endpoint, place)
        self.log = Log(str(place / "log"), segment_bytes=1 << 20)
        self.store = Store(str(place / "store"))
        self.consensus = Consensus(self.id, self.log, self.store, QUICK, network=self.peers, alone=first)
        self.keyring = Keyring(place / "secrets.key")
        self.keyring.load()
        exchange = KeyExchange(self.keyring, self.peers, self.consensus)
        config = replace(self._config, secrets=SecretsConfig(keys=exchange))
        self.site = Site(self.name, self.consensus, self.store, HostedOutput(), config)
        self.door = WorkerDoor(self.name, frozenset({os.getuid()}))
        await self.door.start(self.worker_socket, 0o600, None)
        self.api = await serve(SiteBackend(self.site), str(self.socket), api or ApiConfig())
        self.passage = Passage(self.site, self.api, self.door)
        self.passage.join(self.peers, self.consensus)
        self.peers.on_raft = self.consensus.on_message
        self.heal()
        await self.consensus.start()
        self.secrets = SecretsPart(self.site, self.store, exchange)
        return self

    async def stop(self) -> None:
        self.site.on_stopping()
        await self.api.stop(1.0)
        await self.secrets.stop()
        self.passage.stop()
        await self.site.stop()
        await self.door.stop()
        await self.consensus.stop()
        await self.peers.close()
        self.store.close()
        self.log.close()

    def cut_off(self) -> None:
        """Reach nobody, and be reached by nobody, from now on."""
        self.peers.allow({})

    def cut(self, other: Member) -> None:
        """Reach all members but one, and be reached by all but that."""
        for one, far in ((self, other), (other, self)):
            one.peers.allow({member: addresses for member, addresses in one.known.items() if member != far.id})

    def heal(self) -> None:
        self.peers.allow(self.known)

    @property
    def id(self) -> str:
        return self.peers.id

    async def ask(self, method: str, target: str, body: Any = None, **headers: str) -> Answer:
        async with await Raw.connect(self.socket) as raw:
            return await raw.ask(method, target, body, **headers)

    async def change(self, method: str, target: str, body: Any = None) -> Answer:
        """Ask as clients do for a change: again under the same id, while there is no leader or the answer is lost."""
        known_by = str(uuid7(wall_ms(), next(_numbers)))
        while (answer := await self.ask(method, target, body, Jobs_Request_Id=known_by)).status == 503:
            await asyncio.sleep(0.05)
        return answer

    async def begin(self, method: str, target: str, body: Any = None, **headers: str) -> Raw:
        """Send a request, and leave its answer to be read."""
        raw = await Raw.connect(self.socket)
        await raw.send(request(method, target, body, **headers))
        return raw


class Cluster:
    """Members that know each other."""

    def __init__(self, members: list[Member]) -> None:
        self.members = members

    @property
    def leader(self) -> Member:
        (found,) = [member for member in self.members if member.site.control is not None]
        return found

    @property
    def followers(self) -> list[Member]:
        leader = self.leader
        return [member for member in self.members if member is not leader]

    async def settled(self) -> Member:
        """Wait until one leads and all the others know it."""
        await until(lambda: len([one for one in self.members if one.site.control is not None]) == 1)
        leader = self.leader
        await until(lambda: all(member.site.leader == leader.id for member in self.members))
        return leader


@asynccontextmanager
async def cluster(directory: Path, size: int = 3, **changes: object) -> AsyncIterator[Cluster]:
    """Run so many members, the first of which leads."""
    members = [Member(directory / f"n{number}", f"n{number}", **changes) for number in range(size)]
    first = await members[0].start(first=True)
    try:
        record = MemberRecord(id=first.id, name=first.name, role=Role.VOTER)
        await first.consensus.change_members(put_member(first.consensus.members, record))
        for member in members[1:]:
            await member.start()
        for member in members:
            member.known = {other.id: other.peers.addresses for other in members if other is not member}
            member.heal()
        for member in members[1:]:
            record = MemberRecord(id=member.id, name=member.name)
            await first.consensus.change_members(put_member(first.consensus.members, record))
            await until(lambda member=member: member.id in first.consensus.members.voters)  # type: ignore[misc]
        await until(lambda: all(len(member.consensus.members.voters) == size for member in members))
        made = Cluster(members)
        await made.settled()
        yield made
    finally:
        for member in members:
            await member.stop()


async def until(holds: Callable[[], bool], timeout_s: float = STEP_S) -> None:
    async with asyncio.timeout(timeout_s):
        while not holds():
            await asyncio.sleep(0.005)
