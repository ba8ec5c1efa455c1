"""Who the members of a group are: records in the store itself, and the rules by which they change. Pure.

Members change one at a time, by an entry of its own kind that is an ordinary transaction of the store: it is in force
once it is applied, so snapshots hold it too. Any two majorities of neighbouring configurations overlap, and a leader
begins no change before the former one is applied and an entry of its own term is (Ongaro's thesis, §4.1 to 4.3).
"""

from __future__ import annotations

from enum import Enum
from typing import Final

import msgspec
from msgspec import Struct

from jobs import keys
from jobs.errors import InvalidRequest, MembershipConflict, NotFound
from jobs.store import EQ, Delete, ModRevisionIs, Op, Put, Store, Txn, VersionIs, prefix_end

MAX_MEMBERS: Final = 9
"""More do not make a group safer, only slower."""
RECORD_VERSION: Final = 1


class Role(Enum):
    """What a member does: learners take entries and have no vote."""

    LEARNER = "learner"
    VOTER = "voter"


class MemberRecord(Struct, frozen=True, kw_only=True, array_like=True):
    """One member, as the store has it."""

    id: str
    """Its endpoint's key; of a node that is alone, its name."""
    name: str
    """For people."""
    addresses: tuple[str, ...] = ()
    """Where it is reached, IP:PORT."""
    role: Role = Role.LEARNER
    joined_ms: int = 0


class Members(Struct, frozen=True):
    """All members at one moment."""

    records: tuple[MemberRecord, ...] = ()
    revision: int = 0
    """Of the last change; 0 before the first."""

    @property
    def voters(self) -> tuple[str, ...]:
        return tuple(record.id for record in self.records if record.role is Role.VOTER)

    @property
    def learners(self) -> tuple[str, ...]:
        return tuple(record.id for record in self.records if record.role is Role.LEARNER)

    def get(self, member: str) -> MemberRecord | None:
        return next((record for record in self.records if record.id == member), None)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(MemberRecord).decode
_VERSION: Final = bytes((RECORD_VERSION,))


def read_members(store: Store) -> Members:
    """Return the members that a store knows. Raises ValueError for a record of another version."""
    rows, _ = store.range(keys.MEMBERS, prefix_end(keys.MEMBERS), limit=2 * MAX_MEMBERS)
    change = store.get(keys.MEMBERS_CHANGED)
    return Members(tuple(_read(row[1]) for row in rows), change[4] if change else 0)


def _read(value: bytes) -> MemberRecord:
    if value[:1] != _VERSION:
        raise ValueError(f"a member's record has version {value[:1].hex()}; this build knows {RECORD_VERSION}")
    return _decode(value[1:])


def put_member(members: Members, record: MemberRecord, extra: tuple[Op, ...] = ()) -> Txn:
    """Return the change that adds a member, or replaces its record.

    Raises MembershipConflict for one too many, and for a name that another has.
    """
    if members.get(record.id) is None and len(members.records) >= MAX_MEMBERS:
        raise MembershipConflict(f"the cluster has {MAX_MEMBERS} members already", expected="one to be removed first")
    for other in members.records:
        if other.name == record.name and other.id != record.id:
            raise MembershipConflict(
                f"another member is named {record.name!r}: {other.id}",
                expected=f"another node.id, or first: jobctl cluster remove {record.name}",
            )
    return _change(members, Put(keys.member(record.id), _VERSION + _encode(record)), extra)


def remove_member(members: Members, member: str) -> Txn:
    """Return the change that removes a member. Raises NotFound, and MembershipConflict for the only voter."""
    record = members.get(member)
    if record is None:
        raise NotFound(f"no member has the id {member}", expected=f"one of {', '.join(sorted(members.voters))}")
    if members.voters == (member,):
        raise MembershipConflict(f"{record.name} is the only voter", expected="another one to be added first")
    return _change(members, Delete(keys.member(member)))


def find_member(members: Members, wanted: str) -> MemberRecord:
    """Return the member of a name, an id, or the beginning of one. Raises NotFound and InvalidRequest."""
    found = [record for record in members.records if wanted == record.name] or [
        record for record in members.records if len(wanted) >= 4 and record.id.startswith(wanted)
    ]
    names = ", ".join(sorted(record.name for record in members.records)) or "none"
    if not found:
        raise NotFound(f"no member is named {wanted!r}", expected=f"one of: {names}")
    if len(found) > 1:
        raise InvalidRequest(f"several members' ids begin with {wanted!r}", expected="more of the id, or the name")
    return found[0]


def _change(members: Members, op: Op, extra: tuple[Op, ...] = ()) -> Txn:
    """Only on top of the members that were looked at."""
    compare = (
        ModRevisionIs(keys.MEMBERS_CHANGED, EQ, members.revision)
        if members.revision
        else VersionIs(keys.MEMBERS_CHANGED, EQ, 0)
    )
    return Txn((compare,), (op, Put(keys.MEMBERS_CHANGED, b""), *extra))
