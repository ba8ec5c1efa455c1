"""The rules by which tickets come and go."""

from __future__ import annotations

import pytest
from msgspec import structs

from jobs import keys
from jobs.consensus import MemberRecord, Members, Role
from jobs.consensus.membership import MAX_GUESTS, GuestRecord, find_guest, put_guest
from jobs.errors import InvalidRequest, MembershipConflict, NotFound
from jobs.store import Delete

NOW_MS = 1_000_000


def guest(number: int, **changes: object) -> GuestRecord:
    return structs.replace(GuestRecord(id=f"{number:064x}", expires_ms=NOW_MS + 1_000, made_by=0), **changes)


def gone(members: Members, new: GuestRecord) -> list[bytes]:
    """Return the tickets that go when a new one is made."""
    return [op.key for op in put_guest(members, new, NOW_MS).then if isinstance(op, Delete)]


def test_only_tickets_that_may_still_be_used_count_and_the_others_go() -> None:
    voter = MemberRecord(id="v", name="v", role=Role.VOTER)
    learner = MemberRecord(id="l", name="l", role=Role.LEARNER)
    expired = guest(1, expires_ms=NOW_MS)
    of_voter, of_learner, of_nobody = guest(2, used_by="v"), guest(3, used_by="l"), guest(4, used_by="removed")
    valid = [guest(number) for number in range(100, 100 + MAX_GUESTS - 1)]
    members = Members((voter, learner), (expired, of_voter, of_learner, of_nobody, *valid))
    assert sorted(gone(members, guest(5))) == [keys.guest(one.id) for one in (expired, of_voter, of_nobody)]
    full = structs.replace(members, guests=(of_voter, of_learner, *valid, guest(99)))
    with pytest.raises(MembershipConflict, match=r"64 tickets are valid already .*--revoke"):
        put_guest(full, guest(5), NOW_MS)


def test_a_request_that_is_sent_again_leaves_one_ticket() -> None:
    members = Members((), (guest(1, request=b"a"), guest(2, request=b"b"), guest(3)))
    assert gone(members, guest(4, request=b"a")) == [keys.guest(guest(1).id)]
    assert gone(members, guest(4)) == []


def test_a_ticket_is_found_by_the_beginning_of_its_id() -> None:
    one, other = guest(1, id="abcd" + "0" * 60), guest(2, id="abce" + "0" * 60)
    members = Members((), (one, other, guest(3, id="abce1" + "0" * 59)))
    assert find_guest(members, "abcd") == one
    assert find_guest(members, other.id) == other
    with pytest.raises(InvalidRequest, match="several"):
        find_guest(members, "abce")
    for wanted in ("abc", "ffff"):
        with pytest.raises(NotFound, match="no ticket"):
            find_guest(members, wanted)
