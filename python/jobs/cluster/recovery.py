"""Going on without a majority: a stopped node becomes a cluster of its own, with what its own disk holds.

What the others had acknowledged and this disk does not hold is lost, and nobody can tell how much that is. So nothing
but an operator's order does it.
"""

from __future__ import annotations

import os
import pwd
import secrets
from pathlib import Path
from typing import Final

from msgspec import Struct

from jobs._native import Endpoint, Log, Store
from jobs.clock import wall_ms
from jobs.cluster.cluster import KEY_FILE
from jobs.cluster.file import Belonging, load, save
from jobs.consensus import Consensus, MemberRecord, Role
from jobs.consensus.membership import read_members, sole_voter

ANYWHERE: Final = ["127.0.0.1:0"]
"""An endpoint is opened for its key alone: nobody is spoken with."""
_NEVER_WITH_OTHERS: Final = "this node has never had other members: there is nobody to go on without"


class RecoveryError(Exception):
    """A node cannot be made a cluster of its own; the text says why and what to do."""


class Remains(Struct, frozen=True, kw_only=True):
    """What a stopped node's disk holds."""

    cluster: str
    id: str
    voters: tuple[str, ...]
    """Names of the members that had a vote, this one among them if it had."""
    others: tuple[str, ...]
    """Names of the other members, with a vote or without."""
    applied_index: int
    last_index: int
    """Of the log: what is beyond `applied_index` may hold writes that were acknowledged, and some that were not."""
    last_term: int
    """Of the last entry. It tells who has more; the term that a node has heard of, or stood in, does not."""


class Recovery:
    """An open log and store that nobody else has open. Raises NativeError when they are in use or damaged, and
    RecoveryError."""

    def __init__(self, name: str, data_dir: Path, log_dir: Path, store_dir: Path, max_store_bytes: int) -> None:
        self._name = name
        self._data_dir = data_dir
        belonging = load(data_dir) if data_dir.is_dir() else None
        if belonging is None:
            raise RecoveryError(f"{data_dir}: there is no node of a cluster here")
        check_owner(data_dir)
        if not (data_dir / KEY_FILE).exists():
            raise RecoveryError(f"{data_dir}: {_NEVER_WITH_OTHERS}")  # and no key is made by asking
        self._belonging = belonging
        self._log = Log(str(log_dir))
        try:
            self._store = Store(str(store_dir), max_bytes=max_store_bytes)
        except BaseException:
            self._log.close()
            raise
        endpoint = Endpoint(str(data_dir / KEY_FILE), bind=ANYWHERE, cluster=belonging.cluster, node=name)
        self._id = endpoint.id
        endpoint.close()

    def close(self) -> None:
        self._store.close()
        self._log.close()

    def remains(self) -> Remains:
        members = read_members(self._store)
        return Remains(
            cluster=self._belonging.cluster,
            id=self._id,
            voters=tuple(sorted(one.name for one in members.records if one.role is Role.VOTER)),
            others=tuple(sorted(one.name for one in members.records if one.id != self._id)),
            applied_index=self._store.applied_index,
            last_index=self._log.last_index,
            last_term=self._log.term_at(self._log.last_index) or self._store.applied_term,
        )

    async def go_alone(self) -> str:
        """Make this node the only member of a new cluster, and return the cluster's id. Done again after a crash in the
        middle, it comes to the same."""
        consensus = Consensus(self._id, self._log, self._store, sole=True)
        try:
            # All of the log counts as committed: what is in it and was acknowledged must not get lost.
            await consensus.start()
            members = read_members(self._store)
            if not members.records:  # a backup restored as a node that is alone: it has another id than a member
                raise RecoveryError(f"{self._data_dir}: {_NEVER_WITH_OTHERS}")
            own = members.get(self._id) or MemberRecord(id=self._id, name=self._name, joined_ms=wall_ms())
            await consensus.change_members(sole_voter(members, own))
            # Durable before the node is told: else a power cut could bring the former members back.
            await consensus.snapshot()
        finally:
            await consensus.stop()
        # Another cluster, so that the former members, should they come back, are strangers and this one to them.
        cluster = secrets.token_hex(16)
        save(self._data_dir, Belonging(cluster=cluster, founder=True))
        return cluster


def check_owner(data_dir: Path) -> None:
    """Raise RecoveryError for another user than the node's own: the files would be of no use to the node."""
    owner = data_dir.stat().st_uid
    if owner != os.geteuid():
        try:
            name = pwd.getpwuid(owner).pw_name
        except KeyError:
            name = str(owner)
        raise RecoveryError(f"{data_dir} belongs to {name}: run the command as that user (sudo -u {name} …)")
