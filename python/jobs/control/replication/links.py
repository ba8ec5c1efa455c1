"""Links: other clusters that this one speaks with. The members allow them from what is stored here."""

from __future__ import annotations

import asyncio

import msgspec

from jobs import keys, records
from jobs.clock import wall_ms
from jobs.consensus import Consensus
from jobs.control.audit import audit_entry
from jobs.control.queries import check_admin
from jobs.control.replication.bounds import ReplicationConfig
from jobs.control.replication.changing import Decided, change, unchanged
from jobs.control.transitions import scan
from jobs.errors import InvalidRequest, MembershipConflict, NotFound, TooManyRequests
from jobs.protocol.model import Invitation, LinkList, LinkSet, LinkView, Name
from jobs.records import VERSION_ONLY, LinkRecord
from jobs.replication import invitation
from jobs.replication.invitation import MAX_ADDRESSES, Invited
from jobs.service import Caller
from jobs.store import Delete, Put, Store


class Links:
    def __init__(self, consensus: Consensus, store: Store, config: ReplicationConfig) -> None:
        self._consensus = consensus
        self._store = store
        self._config = config

    async def all(self, caller: Caller) -> LinkList:
        check_admin(caller, "see links to other clusters")
        await self._consensus.barrier()
        found = read_links(self._store)
        problems = await asyncio.gather(*map(self._config.problem, found))
        return LinkList(
            links=[_view(name, found[name], problem) for name, problem in zip(found, problems, strict=True)]
        )

    async def set(self, caller: Caller, name: str, wanted: LinkSet) -> LinkView:
        check_admin(caller, "make links to other clusters")
        _check_name(name)
        invited = invitation.decode(wanted.invitation)
        self._check_other(invited)

        def decide() -> Decided:
            known = read_links(self._store)
            former = known.pop(name, None)
            self._check_room(known, name, invited)
            now_ms = wall_ms()
            record = LinkRecord(
                cluster=invited.cluster,
                peers={peer: tuple(addresses) for peer, addresses in invited.peers.items()},
                scopes=wanted.scopes,
                created_ms=now_ms if former is None else former.created_ms,
            )
            entry = audit_entry(caller, "link.set", name, now_ms, f"cluster {invited.cluster}")
            ops = (Put(keys.link(name), records.encode(record)), Put(keys.LINKS_CHANGED, VERSION_ONLY), entry)
            return (unchanged(self._store, keys.LINKS_CHANGED),), ops

        await change(self._consensus, self._store, caller, decide)
        return _view(name, self._read(name), "it has not been asked yet")

    async def delete(self, caller: Caller, name: str) -> None:
        check_admin(caller, "cut links to other clusters")

        def decide() -> Decided:
            record = self._read(name)
            entry = audit_entry(caller, "link.delete", name, wall_ms(), f"cluster {record.cluster}")
            ops = (Delete(keys.link(name)), Put(keys.LINKS_CHANGED, VERSION_ONLY), entry)
            return (unchanged(self._store, keys.LINKS_CHANGED),), ops

        await change(self._consensus, self._store, caller, decide)

    async def invitation(self, caller: Caller) -> Invitation:
        """Say what another cluster needs to make a link to this one. Raises MembershipConflict for a node alone."""
        check_admin(caller, "invite other clusters")
        await self._consensus.barrier()
        members = self._consensus.members.records
        peers = {one.id: list(one.addresses[:MAX_ADDRESSES]) for one in members if one.addresses}
        if not peers:
            raise MembershipConflict(
                "this node belongs to no cluster, so no other cluster can reach it",
                expected="first: jobctl cluster init",
            )
        text = invitation.encode(Invited(cluster=self._config.cluster, peers=peers))
        return Invitation(invitation=text, cluster=self._config.cluster, peers=peers)

    def _read(self, name: str) -> LinkRecord:
        found = self._store.get(keys.link(name))
        if found is None:
            raise NotFound(f"there is no link {name!r:.200}")
        return records.decode(LinkRecord, found[1])

    def _check_other(self, invited: Invited) -> None:
        own = {member.id for member in self._consensus.members.records}
        if invited.cluster == self._config.cluster or not own.isdisjoint(invited.peers):
            raise invitation.refused("the invitation is to this cluster itself", "one of another cluster")

    def _check_room(self, others: dict[str, LinkRecord], name: str, invited: Invited) -> None:
        """Raise unless a link goes with the others: what comes from a node comes over one link."""
        if len(others) >= self._config.max_links:
            raise TooManyRequests(
                f"there are {len(others)} links already", expected="fewer, or a larger replication.max_links"
            )
        nodes = len(invited.peers) + sum(len(record.peers) for record in others.values())
        if nodes > self._config.max_peers:
            raise TooManyRequests(
                f"the linked clusters would have {nodes} nodes", expected=f"at most {self._config.max_peers}"
            )
        for other, record in others.items():
            if record.cluster == invited.cluster or not record.peers.keys().isdisjoint(invited.peers):
                raise invitation.refused(
                    f"link {other!r} is to that cluster already", f"that name, or another cluster, for {name!r}"
                )


def read_links(store: Store) -> dict[str, LinkRecord]:
    """Return all links, by name; they are few."""
    return {
        key[len(keys.LINKS) :].decode(): records.decode(LinkRecord, value) for key, value, *_ in scan(store, keys.LINKS)
    }


def _view(name: str, record: LinkRecord, problem: str) -> LinkView:
    return LinkView(
        name=name,
        cluster=record.cluster,
        peers={peer: list(addresses) for peer, addresses in record.peers.items()},
        scopes=record.scopes,
        created_ms=record.created_ms,
        reached=not problem,
        problem=problem,
    )


def _check_name(name: str) -> None:
    try:
        msgspec.convert(name, Name)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"{name!r:.200} is no name of a link", field="name", expected="a name") from error
