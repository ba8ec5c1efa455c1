"""Who the members of a group are: records in the store itself, and the rules by which they change. Pure.

Members change one at a time, by an entry of its own kind that is an ordinary transaction of the store: it is in force
once it is applied, so snapshots hold it too. Any two majorities of neighbouring configurations overlap, and a leader
begins no change before the former one is applied and an entry of its own term is (Ongaro's thesis, §4.1 to 4.3).
"""

from __future__ import annotations

from enum import Enum
from typing import Final, TypeVar

import msgspec
from msgspec import Struct, structs

from jobs import keys
from jobs.errors import InvalidRequest, MembershipConflict, NotFound
from jobs.store import EQ, Delete, ModRevisionIs, Op, Put, Store, Txn, VersionIs, prefix_end

MAX_MEMBERS: Final = 9
"""More do not make a group safer, only slower."""
MAX_GUESTS: Final = 64
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


class GuestRecord(Struct, frozen=True, kw_only=True, array_like=True):
    """A key that may ask once to become a member; whoever has the ticket has it."""

    id: str
    expires_ms: int
    made_by: int
    """Uid of who made the ticket."""
    used_by: str | None = None
    """Member that joined with it: it may ask again, as its answer may have been lost."""
    request: bytes = b""
    """By which it was made."""


class Members(Struct, frozen=True):
    """All members and guests at one moment."""

    records: tuple[MemberRecord, ...] = ()
    guests: tuple[GuestRecord, ...] = ()
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

    def name_of(self, member: str) -> str:
        """Return the name of a member; its id if it is none."""
        record = self.get(member)
        return member if record is None else record.name

    def is_spent(self, guest: GuestRecord) -> bool:
        """Tell whether a ticket has done all that it can: its member is there and has its vote, or is gone."""
        if guest.used_by is None:
            return False
        member = self.get(guest.used_by)
        return member is None or member.role is Role.VOTER

    def guest(self, key: str, now_ms: int) -> GuestRecord | None:
        """Return the guest of a key, unless its time has passed."""
        return next((one for one in self.guests if one.id == key and one.expires_ms > now_ms), None)


_T = TypeVar("_T")
_encode = msgspec.msgpack.Encoder().encode
_member_decoder: Final[msgspec.msgpack.Decoder[MemberRecord]] = msgspec.msgpack.Decoder(MemberRecord)
_guest_decoder: Final[msgspec.msgpack.Decoder[GuestRecord]] = msgspec.msgpack.Decoder(GuestRecord)
_VERSION: Final = bytes((RECORD_VERSION,))


def read_members(store: Store) -> Members:
    """Return the members that a store knows. Raises ValueError for a record of another version."""
    change = store.get(keys.MEMBERS_CHANGED)
    return Members(
        _read(store, keys.MEMBERS, MAX_MEMBERS, _member_decoder),
        _read(store, keys.GUESTS, MAX_GUESTS + MAX_MEMBERS, _guest_decoder),
        change[4] if change else 0,
    )


def _read(store: Store, prefix: bytes, most: int, decoder: msgspec.msgpack.Decoder[_T]) -> tuple[_T, ...]:
    rows, _ = store.range(prefix, prefix_end(prefix), limit=most)
    found = []
    for key, value, *_ in rows:
        if value[:1] != _VERSION:
            raise ValueError(f"{key!r} has version {value[:1].hex()}; this build knows {RECORD_VERSION}")
        found.append(decoder.decode(value[1:]))
    return tuple(found)


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
    return _change(members, (_put(record), *extra))


def put_guest(members: Members, guest: GuestRecord, now_ms: int, extra: tuple[Op, ...] = ()) -> Txn:
    """Return the change that lets a key ask to join. Guests go whose time has passed, who are of no use any more, or
    who were made by the same request.

    Raises MembershipConflict for one too many.
    """
    old = [
        one
        for one in members.guests
        if one.expires_ms <= now_ms or members.is_spent(one) or (one.request and one.request == guest.request)
    ]
    if sum(one.used_by is None for one in members.guests if one not in old) >= MAX_GUESTS:
        raise MembershipConflict(
            f"{MAX_GUESTS} tickets are valid already",
            expected="some to expire first, or: jobctl cluster tickets --revoke ID",
        )
    return _change(members, (*(Delete(keys.guest(one.id)) for one in old), _put(guest), *extra))


def admit(members: Members, guest: GuestRecord, record: MemberRecord, extra: tuple[Op, ...] = ()) -> Txn | None:
    """Return the change by which a guest's ticket is used and its node becomes a member; None for one that has become a
    learner by it already, and asks again.

    Raises MembershipConflict for a ticket that has been used, for a member that has its vote (one that asks to join has
    lost its log, and with it what it has promised), and as `put_member`.
    """
    present = members.get(record.id)
    if present is not None and present.role is Role.LEARNER and guest.used_by == record.id:
        return None
    if present is not None:
        raise MembershipConflict(
            f"a member with this node's key is there already: {present.name}",
            expected=f"first: jobctl cluster remove {present.name}; then a new ticket",
        )
    if guest.used_by is not None:
        raise MembershipConflict("the ticket has been used", expected="a new one: jobctl cluster ticket")
    used = structs.replace(guest, used_by=record.id)
    return put_member(members, record, (_put(used), *extra))


def _put(record: MemberRecord | GuestRecord) -> Put:
    key = keys.member(record.id) if isinstance(record, MemberRecord) else keys.guest(record.id)
    return Put(key, _VERSION + _encode(record))


def find_guest(members: Members, wanted: str) -> GuestRecord:
    """Return the guest of an id, or of the beginning of one. Raises NotFound and InvalidRequest."""
    found = [one for one in members.guests if len(wanted) >= 4 and one.id.startswith(wanted)]
    if not found:
        raise NotFound(f"no ticket has the id {wanted!r}", expected="one that is listed by: jobctl cluster tickets")
    if len(found) > 1:
        raise InvalidRequest(f"the ids of several tickets begin with {wanted!r}", expected="more of the id")
    return found[0]


def remove_guest(members: Members, guest: str, extra: tuple[Op, ...], request: bytes) -> Txn:
    """Return the change after which a key may not ask to join any more."""
    return _change(members, (Delete(keys.guest(guest)), *extra), request)


def remove_member(members: Members, member: str, extra: tuple[Op, ...] = (), request: bytes = b"") -> Txn:
    """Return the change that removes a member. Raises NotFound, and MembershipConflict for the only voter."""
    record = members.get(member)
    if record is None:
        raise NotFound(f"no member has the id {member}", expected=f"one of {', '.join(sorted(members.voters))}")
    if members.voters == (member,):
        raise MembershipConflict(f"{record.name} is the only voter", expected="another one to be added first")
    return _change(members, (Delete(keys.member(member)), *extra), request)


def sole_voter(members: Members, record: MemberRecord) -> Txn:
    """Return the change after which a member is the only one."""
    gone = [keys.member(one.id) for one in members.records if one.id != record.id]
    gone += [keys.guest(one.id) for one in members.guests]
    return _change(members, (*map(Delete, gone), _put(structs.replace(record, role=Role.VOTER))))


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


def _change(members: Members, ops: tuple[Op, ...], request: bytes = b"") -> Txn:
    """Only on top of the members that were looked at."""
    compare = (
        ModRevisionIs(keys.MEMBERS_CHANGED, EQ, members.revision)
        if members.revision
        else VersionIs(keys.MEMBERS_CHANGED, EQ, 0)
    )
    return Txn((compare,), (*ops, Put(keys.MEMBERS_CHANGED, b"")), request_id=request)
