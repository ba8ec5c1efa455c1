"""This node's part in its cluster: its key and endpoint, who may speak to it, and how members come and go."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct, structs

from jobs._native import Endpoint, NativeError, __version__
from jobs.clock import wall_ms
from jobs.cluster.changes import Changes
from jobs.cluster.file import Belonging, load, save
from jobs.cluster.inquiry import REFUSAL
from jobs.cluster.peers import LIMITS, Asked, Peers
from jobs.cluster.tickets import Ticket, TicketPeer, decode, encode
from jobs.consensus import Consensus, MemberRecord, Members
from jobs.consensus.membership import GuestRecord, admit, put_member
from jobs.control.audit import audit_entry
from jobs.control.queries import check_admin
from jobs.errors import JobsError, MembershipConflict, NotFound, Unavailable
from jobs.logs import Seldom
from jobs.net import Declined, RequestFailed
from jobs.protocol.ids import NO_REQUEST, RequestId
from jobs.protocol.model import (
    ClusterJoin,
    ClusterView,
    LeaderTransfer,
    LeaderTransferred,
    MemberView,
    TicketList,
    TicketRequest,
    TicketView,
)
from jobs.service import Caller, Others
from jobs.store import Store, Txn

logger = logging.getLogger(__name__)

JOIN_VERSION: Final = 1
KEY_FILE: Final = "node.key"
GUEST_KEY_FILE: Final = "guest.key"
JOIN_S: Final = 20.0
"""How long a node tries to join."""
ASK_S: Final = 3.0
"""How long it waits for one member, and a follower for the leader's view."""
RETRY_S: Final = 0.2
TURNED_AWAY_ROUNDS: Final = 10
"""So often all members have to refuse a ticket's key: some may not have heard of a new one yet."""
ANNOUNCE_S: Final = 0.5


_Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
_Addresses = Annotated[list[Annotated[str, Meta(max_length=128)]], Meta(min_length=1, max_length=8)]


class ClusterConfig(Struct, frozen=True, kw_only=True):
    """What a node must know to be in a cluster; without `listen` it is alone."""

    name: str
    data_dir: Path
    incoming_dir: Path
    """On the store's file system: where snapshots of others arrive."""
    listen: tuple[str, ...] = ()
    advertise: tuple[str, ...] = ()
    moved: Mapping[str, tuple[str, ...]] = {}
    """Further addresses of members, by name."""


class _Join(Struct, frozen=True, kw_only=True, array_like=True):
    """What a guest asks."""

    version: int
    id: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    name: _Name
    addresses: _Addresses
    release: str


class _Joined(Struct, frozen=True, kw_only=True, array_like=True):
    """The answer: the members, or why not, in which case `leader` may be worth asking."""

    members: dict[str, list[str]] = {}
    refusal: str = ""
    expected: str | None = None
    leader: str | None = None


class _Progress(Struct, frozen=True, array_like=True):
    """What a leader knows of a member."""

    lag_entries: int
    answered_ago_s: float | None


class Cluster:
    """Implements `service.ClusterService`. Life: `open`, then `attach` once consensus is there, `close`."""

    def __init__(self, config: ClusterConfig) -> None:
        self._config = config
        self._belonging: Belonging | None = load(config.data_dir) if config.listen else None
        self._consensus: Consensus | None = None
        self._changes: Changes | None = None
        """Of a node in a cluster."""
        self._forming = asyncio.Lock()
        self.peers: Peers | None = None
        self._announcing: asyncio.Task[None] | None = None
        self.others: Others | None = None
        """What other members say while no leader is heard."""
        self.formed = asyncio.Event()
        """Set once the node is alone or belongs to a cluster, and its endpoint is open."""
        self.is_empty: Callable[[], bool] = lambda: True
        """Whether the node holds nothing that joining would throw away."""

    # --- life -------------------------------------------------------------------------------------------------------

    @property
    def is_alone(self) -> bool:
        return not self._config.listen

    @property
    def is_founder(self) -> bool:
        """Whether this node is a group of its own until its store says otherwise."""
        return self.is_alone or (self._belonging is not None and self._belonging.founder)

    @property
    def belongs_to(self) -> str:
        """Id of the cluster; "" for a node that is in none, and was made none of its own."""
        belonging = self._belonging or load(self._config.data_dir)
        return "" if belonging is None else belonging.cluster

    @property
    def id(self) -> str:
        """Id as a member."""
        return self._config.name if self.peers is None else self.peers.id

    @property
    def secrets(self) -> tuple[Path, ...]:
        """Files that nobody but this node's user may read."""
        return () if self.is_alone else (self._config.data_dir / KEY_FILE,)

    def open(self) -> None:
        """Open the endpoint of a node that belongs to a cluster. Raises MembershipConflict for one that has no address,
        or none that is to be had."""
        if self.is_alone and self.belongs_to and (self._config.data_dir / KEY_FILE).exists():
            # It would wait for a leader, and never have one. Without a key it was never reached by anybody.
            raise MembershipConflict(
                f"this node is a member of cluster {self.belongs_to}, and has no address for the others",
                expected="cluster.listen in its configuration",
            )
        if self._belonging is not None:
            self.peers = self._open_endpoint(self._belonging.cluster)
            self._allow()
        if self.is_alone or self._belonging is not None:
            self.formed.set()

    def attach(self, consensus: Consensus, store: Store) -> None:
        """Connect consensus with the others."""
        self._consensus = consensus
        if self.peers is None:
            return
        self._changes = Changes(consensus, store)
        consensus.on_members = self._allow
        self.peers.on_raft = consensus.on_message
        self.peers.on_snapshot_file = consensus.install_snapshot
        self.peers.requests[Asked.JOIN] = self._on_join
        self.peers.requests[Asked.PROGRESS] = self._on_progress
        self.peers.requests[Asked.MOVED] = self._on_moved
        self._allow()
        self._announcing = asyncio.get_running_loop().create_task(self._announce())

    async def close(self) -> None:
        if self._announcing is not None:
            self._announcing.cancel()
        if self.peers is not None:
            await self.peers.close()

    @property
    def cluster_id(self) -> str:
        """Id of the cluster; the name of a node that is alone."""
        return self._config.name if self._belonging is None else self._belonging.cluster

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where others reach this node."""
        if self._config.advertise or self.peers is None:
            return self._config.advertise or self._config.listen
        return tuple(self.peers.addresses)

    def _open_endpoint(self, cluster: str) -> Peers:
        config = self._config
        key = str(config.data_dir / KEY_FILE)
        try:
            endpoint = Endpoint(key, bind=list(config.listen), cluster=cluster, node=config.name, limits=LIMITS)
        except NativeError as error:
            refused = _refused(config.listen)
            if refused is None:
                raise
            raise MembershipConflict(
                f"cluster.listen: {refused}", expected="an address of this machine, and a port that nobody else has"
            ) from error
        return Peers(endpoint, config.incoming_dir)

    def _allow(self) -> None:
        """Speak with the members that the store knows, or that were known when this node joined."""
        if self.peers is None or self._belonging is None:
            return
        members = self._consensus.members if self._consensus is not None else None
        moved = self._config.moved
        records = () if members is None else members.records
        known = {one.id: list(dict.fromkeys((*one.addresses, *moved.get(one.name, ())))) for one in records}
        if self.id not in known:
            # Not on record here yet: who let this node in still has to reach it.
            known = self._belonging.peers | known
        now_ms = wall_ms()
        guests = () if members is None else members.guests
        self.peers.allow(known, [guest.id for guest in guests if guest.expires_ms > now_ms])

    # --- what the API asks ------------------------------------------------------------------------------------------

    async def view(self, caller: Caller) -> ClusterView:
        """Return the cluster as this node knows it, with what the leader tells of the others' progress."""
        consensus = self._consensus
        leader = None if consensus is None else consensus.leader or (self.others.leader if self.others else None)
        progress = await self._progress_of(leader)
        members = () if consensus is None else consensus.members.records
        return ClusterView(
            state=self._state(),
            node=self._config.name,
            id=None if self.peers is None else self.id,
            addresses=list(self.addresses),
            cluster=None if self._belonging is None else self._belonging.cluster,
            leader=None if leader is None or consensus is None else consensus.members.name_of(leader),
            term=0 if consensus is None else consensus.term,
            members=[
                MemberView(
                    id=record.id,
                    name=record.name,
                    addresses=list(record.addresses),
                    role=record.role.value,
                    leader=record.id == leader,
                    joined_ms=record.joined_ms,
                    connected=None if record.id == self.id else self._reaches(record.id),
                    lag_entries=progress[record.id].lag_entries if record.id in progress else None,
                    answered_ago_s=progress[record.id].answered_ago_s if record.id in progress else None,
                )
                for record in sorted(members, key=lambda one: one.name)
            ],
        )

    def _reaches(self, member: str) -> bool:
        """Tell whether messages reach a member: by its word if it was asked, as a connection outlives a cut a while."""
        asked = None if self.others is None else self.others.reached(member)
        return (self.peers is not None and member in self.peers.up) if asked is None else asked

    async def init(self, caller: Caller) -> ClusterView:
        """Found a cluster of this node alone, with all that it holds. Raises MembershipConflict."""
        check_admin(caller, "found a cluster")
        async with self._forming:
            self._check_unformed()
            belonging = Belonging(cluster=secrets.token_hex(16), founder=True)
            peers = self._open_endpoint(belonging.cluster)
            try:
                save(self._config.data_dir, belonging)
            except BaseException:
                # Else the next try would find its own addresses taken.
                await peers.close()
                raise
            self.peers = peers
            self._belonging = belonging
            logger.info("founded a cluster", extra={"cluster": belonging.cluster, "id": self.id})
            self.formed.set()
        return await self.view(caller)

    async def join(self, caller: Caller, wanted: ClusterJoin) -> ClusterView:
        """Ask the members on a ticket to let this node in. Raises InvalidRequest for a ticket that is none,
        MembershipConflict when it is not let in, Unavailable when nobody answers."""
        check_admin(caller, "join a cluster")
        async with self._forming:
            self._check_unformed()
            ticket = decode(wanted.ticket, wall_ms())
            if not self.is_empty():
                raise MembershipConflict(
                    "this node holds jobs or data of its own, which joining would throw away",
                    expected="a node with an empty node.data_dir",
                )
            peers = self._open_endpoint(ticket.cluster)
            try:
                self.peers = peers
                members = await self._ask_to_join(ticket)
                belonging = Belonging(cluster=ticket.cluster, founder=False, peers=members)
                save(self._config.data_dir, belonging)
            except BaseException:
                self.peers = None
                await peers.close()
                raise
            self._belonging = belonging
            self._allow()
            logger.info("joined a cluster", extra={"cluster": belonging.cluster, "id": self.id})
            self.formed.set()
        return await self.view(caller)

    async def ticket(self, caller: Caller, wanted: TicketRequest) -> TicketView:
        """Make a ticket. Raises NotLeader elsewhere than on the leader, Unavailable just after it was founded."""
        check_admin(caller, "let nodes join")
        changes = self._led("make tickets")
        assert self._belonging is not None
        assert self._consensus is not None
        own = self._consensus.members.get(self.id)
        if own is not None and not own.addresses:
            # The record of a founder is in memory alone until it says where the founder is: who is let in now would be
            # the only member on record.
            raise Unavailable(
                "the founder is not on record as a member yet", expected="the same a moment later", retry_after_s=0.1
            )
        guest, secret = await changes.make_guest(caller, wanted.ttl_s)
        peers = [TicketPeer(one, addresses) for one, addresses in self._addresses_of(self._consensus.members).items()]
        text = encode(Ticket(cluster=self._belonging.cluster, expires_ms=guest.expires_ms, secret=secret, peers=peers))
        return TicketView(id=guest.id, ticket=text, expires_ms=guest.expires_ms)

    async def tickets(self, caller: Caller) -> TicketList:
        check_admin(caller, "see tickets")
        return TicketList(tickets=await self._led("tell of tickets").guests())

    async def revoke_ticket(self, caller: Caller, ticket: str) -> None:
        """Raises NotFound, InvalidRequest."""
        check_admin(caller, "revoke tickets")
        await self._led("revoke tickets").revoke(caller, ticket)

    async def remove(self, caller: Caller, member: str) -> ClusterView:
        """Remove a member by its name or id, which may be the leader. Raises NotFound and MembershipConflict."""
        check_admin(caller, "remove members")
        await self._led("remove members").remove(caller, member)
        return await self.view(caller)

    async def transfer(self, caller: Caller, wanted: LeaderTransfer) -> LeaderTransferred:
        """Let another member lead. Raises NotFound, MembershipConflict, Unavailable."""
        check_admin(caller, "choose the leader")
        return LeaderTransferred(leader=await self._led("hand leadership over").transfer(caller, wanted.to))

    def _state(self) -> Literal["alone", "unformed", "outside", "member", "removed"]:
        if self.is_alone:
            return "alone"
        if self._belonging is None or self._consensus is None:
            return "unformed"
        if self.others is not None and self.others.removed:
            return "removed"
        return "outside" if self._consensus.members.get(self.id) is None else "member"

    def _check_unformed(self) -> None:
        if self.is_alone:
            raise MembershipConflict(
                "this node has no address for others", expected="cluster.listen in its configuration, and a restart"
            )
        if self._belonging is not None:
            how = "was removed from" if self._state() == "removed" else "belongs already to"
            raise MembershipConflict(
                f"this node {how} cluster {self._belonging.cluster}",
                expected="a stopped node and an empty node.data_dir, to be another member or in another cluster",
            )

    def _led(self, what: str) -> Changes:
        if self._changes is None:
            raise MembershipConflict(
                f"this node belongs to no cluster, so it cannot {what}", expected="first: jobctl cluster init"
            )
        return self._changes

    def metrics(self) -> dict[str, tuple[str, float]]:
        """Prometheus metrics: name → (help, value)."""
        found: dict[str, tuple[str, float]] = {}
        if self._consensus is not None:
            raft = self._consensus
            found |= {
                "jobs_raft_term": ("Term", raft.term),
                "jobs_raft_commit_index": ("Last log entry committed, as far as is known", raft.commit_index),
                "jobs_raft_members": ("Members of the cluster", len(raft.members.records)),
                "jobs_raft_snapshots_sent_total": ("Snapshots sent to members", raft.snapshots_sent),
                "jobs_raft_snapshots_installed_total": ("Snapshots taken in", raft.snapshots_installed),
                "jobs_raft_dropped_messages_total": (
                    "Messages of members for which there was no room",
                    raft.dropped_messages,
                ),
                "jobs_raft_bad_messages_total": ("Messages of members that could not be read", raft.bad_messages),
            }
        if self.peers is not None:
            counters = self.peers.counters()
            refused = sum(count for name, count in counters.items() if name.startswith("refused_"))
            found |= {
                "jobs_peers_connected": ("Peers that messages reach", len(self.peers.up)),
                "jobs_peers_refused_total": (
                    "Connections and traffic refused, of strangers, other clusters and versions, or malformed",
                    refused + self.peers.not_allowed,
                ),
            }
            for name, count in counters.items():
                found[f"jobs_net_{name}_total"] = (f"Transport: {name.replace('_', ' ')}", count)
        return found

    # --- joining ------------------------------------------------------------------------------------------------------

    async def _ask_to_join(self, ticket: Ticket) -> dict[str, list[str]]:
        """Return the members' addresses once one of them has let this node in."""
        guest_key = self._config.data_dir / GUEST_KEY_FILE
        guest_key.unlink(missing_ok=True)
        guest_key.touch(0o600)
        guest_key.write_text(ticket.secret + "\n")
        try:
            endpoint = Endpoint(
                str(guest_key), bind=_any_ports(self._config.listen), cluster=ticket.cluster, node=self._config.name
            )
        finally:
            guest_key.unlink()
        guest = Peers(endpoint, self._config.incoming_dir)
        try:
            guest.allow({peer.id: peer.addresses for peer in ticket.peers})
            async with asyncio.timeout(JOIN_S):
                return await self._ask_members(guest, [peer.id for peer in ticket.peers])
        except TimeoutError:
            raise Unavailable(
                f"no member let this node in within {JOIN_S:g} s",
                expected="a network on which the members' addresses are reached, and a ticket that is still valid",
            ) from None
        finally:
            await guest.close()

    async def _ask_members(self, guest: Peers, members: list[str]) -> dict[str, list[str]]:
        asked = _Join(
            version=JOIN_VERSION,
            id=self.id,
            name=self._config.name,
            addresses=list(self.addresses),
            release=__version__,
        )
        body = msgspec.msgpack.encode(asked)
        rounds = 0
        while rounds < TURNED_AWAY_ROUNDS:
            turned_away = 0
            for member in members:
                try:
                    answer = await guest.request(member, Asked.JOIN, body, ASK_S)
                except RequestFailed as error:
                    logger.info("%s did not let this node in: %s", member, error)
                    turned_away += REFUSAL in error.detail
                    continue
                joined = msgspec.msgpack.decode(answer, type=_Joined)
                if joined.members:
                    return joined.members
                if joined.leader is None and joined.refusal:
                    raise MembershipConflict(joined.refusal, expected=joined.expected)
            rounds = rounds + 1 if turned_away == len(members) else 0
            await asyncio.sleep(RETRY_S)
        raise MembershipConflict(
            "no member knows the ticket: it has expired, was used or revoked",
            expected="a new one: jobctl cluster ticket",
        )

    async def _on_join(self, peer: str, body: bytes) -> bytes:
        """Let a guest's node in."""
        try:
            asked = msgspec.msgpack.decode(body, type=_Join)
            joined = await self._let_in(peer, asked)
        except msgspec.MsgspecError as error:
            raise Declined(f"the request to join cannot be read: {error}") from error
        except Unavailable as error:
            assert self._consensus is not None
            joined = _Joined(refusal=str(error), leader=self._consensus.leader or "unknown")
        except JobsError as error:
            joined = _Joined(refusal=error.detail, expected=error.expected)
        return msgspec.msgpack.encode(joined)

    async def _let_in(self, guest_key: str, asked: _Join) -> _Joined:
        consensus = self._consensus
        assert consensus is not None
        if asked.version != JOIN_VERSION:
            return _Joined(refusal=f"it asks in version {asked.version}; this build knows {JOIN_VERSION}")
        await consensus.barrier()
        made_by = Caller(uid=self._guest(guest_key).made_by, gid=0, admin=True)
        record = MemberRecord(id=asked.id, name=asked.name, addresses=tuple(asked.addresses), joined_ms=wall_ms())
        entry = audit_entry(made_by, "cluster.join", asked.id, wall_ms(), asked.name)
        await self._led("let nodes in").change(
            lambda _: admit(consensus.members, self._guest(guest_key), record, (entry,)), NO_REQUEST
        )
        logger.info("%s joins the cluster", asked.name, extra={"id": asked.id, "release": asked.release})
        return _Joined(members=self._addresses_of(consensus.members))

    def _guest(self, key: str) -> GuestRecord:
        """Return the guest as it is now. Raises MembershipConflict."""
        assert self._consensus is not None
        guest = self._consensus.members.guest(key, wall_ms())
        if guest is None:
            raise MembershipConflict("the ticket has expired", expected="a new one: jobctl cluster ticket")
        return guest

    def _addresses_of(self, members: Members) -> dict[str, list[str]]:
        """Return where to find the members that can be found, this one even before it is on record."""
        known = {
            one.id: list(one.addresses or (self.addresses if one.id == self.id else ())) for one in members.records
        }
        return {member: addresses for member, addresses in known.items() if addresses}

    # --- where this node is -------------------------------------------------------------------------------------------

    async def _announce(self) -> None:
        """See to it that this member's record says where it is and what it is called: a founder's first of all, and
        that of a node whose configuration has changed."""
        consensus, peers = self._consensus, self.peers
        assert consensus is not None
        assert peers is not None
        seldom = Seldom()
        while True:
            own = consensus.members.get(self.id)
            if own is not None and own.addresses == self.addresses and own.name == self._config.name:
                return
            try:
                if own is None or consensus.leader is None:
                    pass
                elif consensus.is_leader:
                    await self._move(self.id, self._config.name, self.addresses)
                else:
                    body = msgspec.msgpack.encode((self._config.name, self.addresses))
                    await peers.request(consensus.leader, Asked.MOVED, body, ASK_S)
            except (JobsError, RequestFailed) as error:
                if (left_out := seldom.left_out("announce")) is not None:
                    logger.warning(
                        "this node's name and addresses cannot be put on record yet: %s",
                        error,
                        extra={"left_out": left_out},
                    )
            await asyncio.sleep(ANNOUNCE_S)

    async def _on_moved(self, peer: str, body: bytes) -> bytes:
        try:
            name, addresses = msgspec.msgpack.decode(body, type=tuple[_Name, _Addresses])
            await self._move(peer, name, tuple(addresses))
        except (msgspec.MsgspecError, JobsError) as error:
            raise Declined(f"the record is not changed: {error}") from error
        return b""

    async def _move(self, member: str, name: str, addresses: tuple[str, ...]) -> None:
        consensus = self._consensus
        assert consensus is not None

        def change(_: RequestId) -> Txn:
            record = consensus.members.get(member)
            if record is None:
                raise NotFound(f"no member has the id {member}")
            moved = structs.replace(record, name=name, addresses=addresses, joined_ms=record.joined_ms or wall_ms())
            return put_member(consensus.members, moved)

        await self._led("move members").change(change, NO_REQUEST)
        logger.info("%s is at %s", name, ", ".join(addresses), extra={"id": member})

    # --- progress -----------------------------------------------------------------------------------------------------

    async def _progress_of(self, leader: str | None) -> dict[str, _Progress]:
        if leader is None or self.peers is None or self._consensus is None:
            return {}
        if leader == self.id:
            return self._own_progress()
        try:
            answer = await self.peers.request(leader, Asked.PROGRESS, b"", ASK_S)
            return msgspec.msgpack.decode(answer, type=dict[str, _Progress])
        except (RequestFailed, msgspec.MsgspecError):
            return {}

    async def _on_progress(self, peer: str, body: bytes) -> bytes:
        return msgspec.msgpack.encode(self._own_progress())

    def _own_progress(self) -> dict[str, _Progress]:
        consensus = self._consensus
        if consensus is None or not consensus.is_leader:
            return {}
        found = {self.id: _Progress(0, 0.0)}
        for record in consensus.members.records:
            if record.id != self.id:
                seen = consensus.progress(record.id)
                lag = max(0, consensus.commit_index - seen.match_index)
                found[record.id] = _Progress(lag, seen.answered_ago_s)
        return found


def _refused(addresses: tuple[str, ...]) -> str | None:
    """Return the first address that the system does not let be listened on, and why."""
    for address in addresses:
        host, _, port = address.rpartition(":")
        family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind((host.strip("[]"), int(port)))
            except OSError as error:
                return f"{address} cannot be listened on: {error.strerror}"
    return None


def _any_ports(listen: tuple[str, ...]) -> list[str]:
    """Return the same addresses without the ports, which the node itself has."""
    return [address.rpartition(":")[0] + ":0" for address in listen]
