"""What nodes decide and say about blobs: places, waits, messages, the order in which the leader is told."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.blobs import messages as m
from jobs.blobs.catalogue import NewBlob
from jobs.blobs.placement import MAX_BACKOFF_S, backoff_s, choose, order_providers
from jobs.blobs.teller import Teller
from jobs.blobs.together import each
from jobs.errors import NotFound, TagTaken, Unavailable
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
    assert m.decode_asking(m.encode(m.Asking("member", question))) == m.Asking("member", question)


@given(st.binary(max_size=200))
def test_noise_is_no_message(noise: bytes) -> None:
    for decode in (m.decode_asking, m.decode_reply, m.decode_order, m.decode_said):
        with pytest.raises(m.MessageError):
            decode(b"\x00" + noise)
        with contextlib.suppress(m.MessageError):
            decode(bytes((m.VERSION,)) + noise)


def test_what_is_too_much_or_no_hash_is_no_message() -> None:
    for wrong in (
        m.Fetch(tuple(m.Sought(HASH) for _ in range(m.MAX_LOT + 1))),
        m.Check(("../../etc",)),
        m.Check((HASH[1:],)),
    ):
        with pytest.raises(m.MessageError):
            m.decode_order(m.encode(wrong))


def test_an_error_is_the_same_on_the_other_side() -> None:
    for error in (
        NotFound("no such blob", field="$.hash"),
        TagTaken("taken", expected="another"),
        Unavailable("later", retry_after_s=2),
    ):
        came = m.error_of(m.refusal(error))
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
