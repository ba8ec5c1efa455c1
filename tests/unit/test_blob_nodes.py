"""What nodes decide and say about blobs: places, waits, messages, the order in which the leader is told."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs._native import DiskFullError, NativeError
from jobs.blobs import messages as m
from jobs.blobs.catalogue import Catalogue, Entry, NewBlob
from jobs.blobs.link import SUBJECT
from jobs.blobs.members import KIND, VERSION, Members
from jobs.blobs.placement import MAX_BACKOFF_S, backoff_s, choose, order_providers
from jobs.blobs.repair import PAUSE_S, Repairer
from jobs.blobs.replication import Replicator
from jobs.blobs.teller import Teller
from jobs.blobs.tending import OnAdvance
from jobs.blobs.together import each
from jobs.consensus import MemberRecord
from jobs.consensus import Members as MemberSet
from jobs.control.hub import Waiter
from jobs.errors import InternalError, NotFound, StorageFull, TagTaken, Unavailable
from jobs.forward.orders import Unreached
from jobs.forward.questions import Asking
from jobs.forward.speech import MessageError, error_of, refusal
from jobs.protocol.model import BlobCollect
from jobs.service import Caller
from tests.support.loop import on_loop

HASH = "0" * 64
OTHER = "1" * 64
CALLER = Caller(uid=1, gid=2, admin=False, request_id=b"r" * 16)
GIB = 1 << 30


def test_the_one_with_the_most_room_comes_first_and_those_without_room_not_at_all() -> None:
    free = {"a": 10 * GIB, "b": 50 * GIB, "c": 1 * GIB, "d": 100 * GIB}
    assert choose(free, HASH, 2 * GIB, without=("d",)) == ["b", "a"]


def test_equals_are_chosen_alike_by_all_and_otherwise_for_each_blob() -> None:
    noisy = [{"a": 100 * GIB, "b": 100 * GIB - seed * 4_096, "c": 100 * GIB + seed * 8_192} for seed in range(20)]
    blobs = [f"{number:064x}" for number in range(300)]
    for blob in blobs:
        assert len({tuple(choose(free, blob, 1, ())) for free in noisy}) <= 2
    first = Counter(choose(noisy[0], blob, 1, ())[0] for blob in blobs)
    assert min(first[member] for member in "abc") > 50


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_waits_grow_up_to_a_bound(failures: int, chance: float) -> None:
    wait_s = backoff_s(failures, chance)
    assert 0.5 <= wait_s <= MAX_BACKOFF_S
    assert backoff_s(failures + 1, chance) >= wait_s


def test_providers_that_are_reached_come_first_and_each_seeker_has_an_order_of_its_own() -> None:
    members = [f"m{number}" for number in range(8)]
    ordered = order_providers(members, {"m3", "m5"}, HASH, "x")
    assert sorted(ordered) == members
    assert set(ordered[:2]) == {"m3", "m5"}
    assert len({order_providers(members, (), HASH, seeker) for seeker in "abcdef"}) > 1


@pytest.mark.parametrize(
    "question",
    [
        m.Register(CALLER, NewBlob(hash=HASH, size_bytes=1, kind="collection", children=(OTHER,), tag="t")),
        m.Held((HASH,), (OTHER,)),
        m.Collect(CALLER, BlobCollect(limit=5, dry_run=True)),
        m.Entries("", 10, "member"),
    ],
)
def test_questions_come_as_they_were_asked(question: m.Question) -> None:
    assert SUBJECT.asking.decode(SUBJECT.asking.encode(Asking("member", question))) == Asking("member", question)


@given(st.binary(max_size=200))
def test_noise_is_no_message(noise: bytes) -> None:
    for decode in (SUBJECT.asking.decode, SUBJECT.reply.decode, KIND.order.decode, KIND.said.decode):
        with pytest.raises(MessageError):
            decode(b"\x00" + noise)
        with contextlib.suppress(MessageError):
            decode(bytes((VERSION,)) + noise)


def test_what_is_too_much_or_no_hash_is_no_message() -> None:
    for wrong in (
        m.Fetch(tuple(m.Sought(HASH) for _ in range(m.MAX_LOT + 1))),
        m.Check(("../../etc",)),
        m.Check((HASH[1:],)),
    ):
        with pytest.raises(MessageError):
            KIND.order.decode(KIND.order.encode(wrong))


def test_an_error_is_the_same_on_the_other_side() -> None:
    for error in (
        NotFound("no such blob", field="$.hash"),
        TagTaken("taken", expected="another"),
        Unavailable("later", retry_after_s=2),
    ):
        came = error_of(refusal(error))
        assert (type(came), str(came), came.retry_after_s) == (type(error), str(error), error.retry_after_s)


@on_loop
async def test_the_leader_hears_last_what_was_said_last() -> None:
    heard: list[tuple[tuple[str, ...], tuple[str, ...]]] = []
    gate = asyncio.Event()

    async def tell(here: tuple[str, ...], gone: tuple[str, ...]) -> None:
        await gate.wait()
        heard.append((here, gone))

    teller = Teller(tell)
    said = [asyncio.ensure_future(teller.tell((HASH,), ()))]
    await asyncio.sleep(0)
    said += [
        asyncio.ensure_future(teller.tell((), (HASH,))),
        asyncio.ensure_future(teller.tell((OTHER,), ())),
        asyncio.ensure_future(teller.tell((HASH,), ())),
        asyncio.ensure_future(teller.tell((), (OTHER,))),
    ]
    await asyncio.sleep(0)
    said[2].cancel()
    gate.set()
    await asyncio.wait(said)
    # What came meanwhile was told together
    assert heard == [((HASH,), ()), ((HASH,), (OTHER,))]


@on_loop
async def test_who_tells_hears_that_the_leader_does_not_know_and_the_next_is_told_again() -> None:
    answers = [Unavailable("no leader"), None]

    async def tell(here: tuple[str, ...], gone: tuple[str, ...]) -> None:
        if (answer := answers.pop(0)) is not None:
            raise answer

    teller = Teller(tell)
    with pytest.raises(Unavailable):
        await teller.tell((HASH,), ())
    await teller.tell((HASH,), ())
    assert answers == []


@on_loop
async def test_work_ends_together_when_one_fails() -> None:
    under_way = 0

    async def work(number: int) -> int:
        nonlocal under_way
        under_way += 1
        try:
            if number == 3:
                raise ValueError(number)
            await asyncio.sleep(0 if number < 3 else 60)
            return number
        finally:
            under_way -= 1

    assert await each(range(3), 2, work) == [0, 1, 2]
    with pytest.raises(ValueError, match="3"):
        await each(range(10), 4, work)
    assert under_way == 0


class Scripted(Members):
    """Members of which a test says how they answer."""

    def __init__(self, answers: Callable[[str, m.Order], m.End]) -> None:
        self._answers = answers
        self._turns = {}
        self.asked: list[tuple[str, m.Order]] = []

    me = "a"
    ids = frozenset("abc")
    reached = frozenset("abc")

    def name(self, member: str) -> str:
        return member

    def named_in(self, text: str) -> str:
        return text

    async def _order(self, member: str, order: m.Order, on_advance: OnAdvance = lambda now: None) -> m.End:
        self.asked.append((member, order))
        return self._answers(member, order)


class NoCatalogue:
    """Of raw blobs nothing is asked."""


ENTRY = Entry(hash=HASH, size_bytes=10, kind="raw", replicas=2, holders=("a",), created_ms=0, touched_ms=0)


def fetched(order: m.Order) -> m.Fetched:
    assert isinstance(order, m.Fetch)
    return m.Fetched(10, tuple(sought.hash for sought in order.blobs))


@on_loop
async def test_a_member_that_has_not_said_what_room_it_has_is_tried_before_fewer_nodes_have_a_blob() -> None:
    def answers(member: str, order: m.Order) -> m.End:
        if isinstance(order, m.Survey):
            raise Unreached(member, "it is busy")
        return fetched(order)

    spread = await Replicator(Scripted(answers), cast("Catalogue", NoCatalogue())).spread(ENTRY)
    assert spread.holders == ("a", "b")


@on_loop
async def test_a_blob_that_members_cannot_take_is_refused_with_why_of_each() -> None:
    def answers(member: str, order: m.Order) -> m.End:
        if isinstance(order, m.Survey):
            return m.Room(5 if member == "b" else 100, 0, 0)
        return m.Fetched(0, failures=(m.Failure(HASH, "disk_full", "no room"),))

    with pytest.raises(StorageFull, match=r"is on a: b: it has room for 5 bytes more; c: .*no room"):
        await Replicator(Scripted(answers), cast("Catalogue", NoCatalogue())).spread(ENTRY)


@on_loop
async def test_members_that_are_not_reached_do_not_keep_a_blob_from_being_acknowledged() -> None:
    def answers(member: str, order: m.Order) -> m.End:
        if isinstance(order, m.Survey):
            return m.Room(100, 0, 0)
        raise Unreached(member, "the connection was lost")

    members = Scripted(answers)
    assert await Replicator(members, cast("Catalogue", NoCatalogue())).spread(ENTRY) == ENTRY
    assert {who for who, order in members.asked if isinstance(order, m.Fetch)} == {"b", "c"}


@on_loop
async def test_room_is_asked_for_once_for_all_who_want_to_know() -> None:
    members = Scripted(lambda member, order: m.Room(100, 0, 0) if isinstance(order, m.Survey) else fetched(order))
    replicator = Replicator(members, cast("Catalogue", NoCatalogue()))
    await asyncio.gather(*(replicator.spread(ENTRY) for _ in range(50)))
    assert sum(isinstance(order, m.Survey) for _, order in members.asked) == 3


class Leadership:
    """A site whose node leads when the test says so."""

    def __init__(self) -> None:
        self.control: object | None = object()
        self._changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def changed(self) -> asyncio.Future[None]:
        return self._changed

    def set(self, control: object | None) -> None:
        self.control = control
        changed, self._changed = self._changed, asyncio.get_running_loop().create_future()
        changed.set_result(None)

    @contextlib.contextmanager
    def waiter(self, *prefixes: bytes) -> Iterator[Waiter]:
        self.bell = Waiter()
        yield self.bell


class Lacking:
    """A catalogue in which these lack nodes, and that counts the looks."""

    def __init__(self, *entries: Entry) -> None:
        self._entries = entries
        self.looks = 0
        self.looked = asyncio.Event()

    async def lacking(self, after: str, limit: int) -> tuple[Entry, ...]:
        self.looks += 1
        self.looked.set()
        return self._entries


@on_loop
async def test_what_lacks_nodes_is_looked_at_again_when_leadership_comes_back() -> None:
    site, catalogue = Leadership(), Lacking()
    members = Scripted(lambda member, order: m.Room(100, 0, 0))
    replicator = Replicator(members, cast("Catalogue", catalogue))
    repairer = Repairer(cast("Any", site), cast("Catalogue", catalogue), replicator, lambda: 0.5)
    try:
        async with asyncio.timeout(20):
            await catalogue.looked.wait()
            for looks in (1, 2):
                assert catalogue.looks == looks
                site.set(None)
                await asyncio.sleep(2 * PAUSE_S)
                assert catalogue.looks == looks
                catalogue.looked.clear()
                site.set(object())
                await catalogue.looked.wait()
    finally:
        await repairer.stop()


@on_loop
async def test_what_fails_is_not_tried_at_each_change_of_something_else() -> None:
    site, catalogue = Leadership(), Lacking(ENTRY)
    tried: list[str] = []

    def answers(member: str, order: m.Order) -> m.End:
        if isinstance(order, m.Fetch):
            tried.append(member)
            return m.Fetched(0, failures=(m.Failure(HASH, "unavailable", "nobody gives it"),))
        return m.Room(100, 0, 0) if isinstance(order, m.Survey) else m.Checked()

    replicator = Replicator(Scripted(answers), cast("Catalogue", catalogue))
    repairer = Repairer(cast("Any", site), cast("Catalogue", catalogue), replicator, lambda: 0.5)
    try:
        for _ in range(80):
            await asyncio.sleep(0.05)
            site.bell.ring()
        # After 0, 0.75, 2.25 and maybe 5.25 s
        assert 2 <= len(tried) <= 4
    finally:
        await repairer.stop()


class Failing:
    """A node's store that fails."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def carry_out(self, order: m.Order, on_advance: OnAdvance) -> m.End:
        raise self._error


class OneMember:
    """A group of one."""

    me = "a"
    members = MemberSet((MemberRecord(id="a", name="n1"),))


@on_loop
async def test_what_fails_on_this_node_is_told_as_of_any_other() -> None:
    for error, kind in (
        (NativeError("read: input/output error"), InternalError),
        (DiskFullError("no space left"), StorageFull),
        (Unavailable("no leader"), Unavailable),
    ):
        members = Members(None, cast("Any", OneMember()), cast("Any", Failing(error)))
        with pytest.raises(kind, match=f"^n1: .*{error}"):
            await members.sweep("a", m.Sweep("", 10))
        with pytest.raises(Unreached, match="alone"):
            await members.survey("b")
