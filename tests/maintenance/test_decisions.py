"""What maintenance decides, without a node: pauses, verdicts, beginnings of periods, where replicas differ first."""

from __future__ import annotations

import asyncio
import calendar
import time
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from jobs._native import MemoryStore
from jobs.maintenance import messages as m
from jobs.maintenance.health import HealthLimits, judge, judge_cluster, judge_releases
from jobs.maintenance.pace import LEAST, MAX_PAUSE_S, MOST, Pace
from jobs.maintenance.replicas import END, Comparison
from jobs.maintenance.usage import beginning
from jobs.operations import News
from jobs.store import Delete, Put, Txn, encode_command

LIMITS = HealthLimits(fsync_s=0.1, disk_percent=80, clock_s=0.5, lag_entries=1_000)
WELL = m.Examined(
    at_ms=0,
    release="1",
    disks=(m.DiskSpace("log", "/var", 100, 50),),
    fsync_s=(0.001, 0.002),
    pressure={"cpu": 5.0},
    store_bytes=10,
    max_store_bytes=100,
    file_bytes=20,
    free_file_bytes=0,
    no_room="",
    keys=(m.KeyFile("/node.key", ""),),
    open_files=10,
    max_open_files=1_000,
    quarantined=0,
)


# --- pauses -----------------------------------------------------------------------------------------------------------


def test_pauses_are_short_on_an_idle_node_and_long_on_a_busy_one() -> None:
    pace = Pace()
    assert pace.pause_s(0.1, 0.0, 0.001) == pytest.approx(0.1 * LEAST)
    lagging = [pace.pause_s(0.1, 0.05, 0.001) for _ in range(8)]
    assert lagging == sorted(lagging)
    assert pace.share == MOST
    calm = [pace.pause_s(0.1, 0.0, 0.001) for _ in range(60)]
    assert calm == sorted(calm, reverse=True)
    assert pace.share == LEAST


def test_commits_that_take_longer_than_usual_make_pauses_longer() -> None:
    pace = Pace()
    for _ in range(10):
        pace.pause_s(0.01, 0.0, 0.003)
    assert pace.share == LEAST
    pace.pause_s(0.01, 0.0, 0.009)
    assert pace.share > LEAST


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10), st.none() | st.floats(0, 10)), max_size=50))
def test_pauses_are_bounded(steps: list[tuple[float, float, float | None]]) -> None:
    pace = Pace()
    for step in steps:
        assert 0 <= pace.pause_s(*step) <= MAX_PAUSE_S
        assert LEAST <= pace.share <= MOST


# --- verdicts ---------------------------------------------------------------------------------------------------------


def status(found: m.Examined, check: str, clock_s: float = 0.0, uncertain_s: float = 0.0) -> str:
    return max(
        (verdict.status for verdict in judge(found, LIMITS, clock_s, uncertain_s) if verdict.check == check),
        key=["ok", "warning", "failing"].index,
    )


def test_a_member_that_is_well_needs_nothing() -> None:
    for verdict in judge(WELL, LIMITS, 0.01, 0.0):
        assert (verdict.status, verdict.advice) == ("ok", ""), verdict


@pytest.mark.parametrize(
    ("check", "changes", "expected"),
    [
        ("disk", {"disks": (m.DiskSpace("log", "/var", 100, 15),)}, "warning"),
        ("disk", {"disks": (m.DiskSpace("log", "/var", 100, 2),)}, "failing"),
        ("fsync", {"fsync_s": (0.001, 0.3)}, "warning"),
        ("fsync", {"fsync_s": (0.001, 3.0)}, "failing"),
        ("pressure", {"pressure": {"io": 70.0}}, "warning"),
        ("store", {"store_bytes": 85}, "warning"),
        ("store", {"store_bytes": 99}, "failing"),
        ("store", {"no_room": "the disk is full"}, "failing"),
        ("store", {"file_bytes": 1 << 30, "free_file_bytes": 1 << 29 | 1}, "warning"),
        ("keys", {"keys": (m.KeyFile("/node.key", "it is empty"),)}, "failing"),
        ("files", {"open_files": 900}, "warning"),
        ("blobs", {"quarantined": 1}, "warning"),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do(check: str, changes: dict[str, Any], expected: str) -> None:
    found = replace(WELL, **changes)
    assert status(found, check) == expected
    assert all(
        verdict.advice
        for verdict in judge(found, LIMITS, 0.0, 0.0)
        if verdict.check == check and verdict.status != "ok"
    )


def test_a_clock_is_not_judged_by_what_may_be_the_network() -> None:
    assert status(WELL, "clock", 0.7, 0.3) == "ok"
    assert status(WELL, "clock", -0.9, 0.3) == "warning"
    assert status(WELL, "clock", 100, 0.3) == "failing"


def test_a_cluster_that_may_lose_nobody_more_is_said_to() -> None:
    members = tuple(m.Standing(name, 0, 0.1, is_voter=True) for name in "abc")
    well = m.Situation("a", 0, members, 0, {"shell": 1}, 0)
    assert {verdict.status for _, verdict in judge_cluster(well, LIMITS)} == {"ok"}

    lost = replace(well, members=(*members[:2], m.Standing("c", 5, 60.0, is_voter=True)))
    verdicts = list(judge_cluster(lost, LIMITS))
    assert ("a", "quorum", "warning") in [(who, one.check, one.status) for who, one in verdicts]
    assert ("c", "lag", "failing") in [(who, one.check, one.status) for who, one in verdicts]

    behind = replace(well, members=(*members[:2], m.Standing("c", 5_000, 0.1, is_voter=True)))
    assert ("c", "warning") in [(who, one.status) for who, one in judge_cluster(behind, LIMITS)]
    idle = replace(well, pending=3, workers={})
    assert any(one.check == "workers" for _, one in judge_cluster(idle, LIMITS))


def test_members_of_another_release_are_told() -> None:
    assert list(judge_releases({"a": "1", "b": "1"})) == []
    assert [who for who, _ in judge_releases({"a": "1", "b": "2", "c": "1"})] == ["b"]


# --- periods ----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 4_000_000_000_000))
def test_a_time_is_in_the_period_that_begins_before_it(at_ms: int) -> None:
    hour, day, month = (beginning(at_ms, period) for period in ("hour", "day", "month"))
    assert month <= day <= hour <= at_ms < hour + 3_600_000
    assert time.gmtime(month // 1_000)[2:6] == (1, 0, 0, 0)
    assert time.gmtime(month // 1_000)[:2] == time.gmtime(at_ms // 1_000)[:2]
    assert day == 1_000 * calendar.timegm((*time.gmtime(at_ms // 1_000)[:3], 0, 0, 0))


# --- replicas ---------------------------------------------------------------------------------------------------------


class Replicas:
    """Members that are stores in memory, and what was found out about them."""

    def __init__(self, stores: dict[str, MemoryStore]) -> None:
        self.stores = stores
        self.claim = self
        self.members = self
        self.link = self
        self.news = News()
        self.me = next(iter(stores))
        self.found: list[tuple[str, str]] = []
        self.counts: dict[str, int] = {}
        self.outcome = ""

    async def reached(self) -> int:
        return max(store.revision for store in self.stores.values())

    async def digest(self, member: str, order: m.Digest) -> m.Digested:
        pieces, cursor = self.stores[member].digests(
            order.start,
            order.end,
            cursor=order.cursor,
            revision=order.revision,
            rows=order.rows,
            limit=order.limit,
            max_rows=100,
        )
        return m.Digested(tuple(m.Piece(*piece) for piece in pieces), cursor)

    async def show(self, member: str, key: bytes, revision: int) -> m.Shown:
        found = self.stores[member].get(key, revision)
        if found is None:
            return m.Shown()
        return m.Shown(found[2], found[3], found[4], found[5], len(found[1]), found[1].hex())

    def name(self, member: str) -> str:
        return member

    def position(self, part: str) -> bytes:
        return b""

    async def moved(self, part: str, position: bytes) -> None: ...

    def node(self, name: str, *, outcome: str) -> None:
        self.outcome = outcome

    def count(self, **counts: int) -> None:
        for name, count in counts.items():
            self.counts[name] = self.counts.get(name, 0) + count

    async def tell(self, member: str, check: str, status: str, value: str, advice: str) -> None:
        self.found.append((member, value))


def store_of(txns: list[Txn]) -> MemoryStore:
    store = MemoryStore()
    store.apply([(index, 1, encode_command([txn])) for index, txn in enumerate(txns, 1)])
    return store


def compare(stores: dict[str, MemoryStore]) -> Replicas:
    replicas = Replicas(stores)
    asyncio.run(Comparison(cast("Any", replicas), list(stores)).carry_out())
    return replicas


KEYS = st.integers(0, 3_000).map(lambda number: b"/data/%04d" % number)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(KEYS, st.integers(0, 3)), min_size=1, max_size=300),
    st.none() | st.tuples(KEYS, st.sampled_from(["changed", "gone", "new"])),
)
def test_the_first_row_that_differs_is_named_with_who_has_it_otherwise(
    rows: list[tuple[bytes, int]], damage: tuple[bytes, str] | None
) -> None:
    txns = [Txn(then=(Put(key, bytes([value]) * 9),)) for key, value in rows]
    # Of the last transaction the odd one has made something else, in as many revisions
    last = Txn(then=(Put(b"/zz", b"same"),))
    other = last
    if damage is not None:
        key, how = damage
        other = Txn(then=(Delete(key) if how == "gone" else Put(key, b"other"), Put(b"/zz", b"same")))
    stores = {"a": store_of([*txns, last]), "b": store_of([*txns, other]), "c": store_of([*txns, last])}
    found = compare(stores)
    expected = sorted(
        key
        for key in {key for key, _ in rows} | ({damage[0]} if damage else set())
        if stores["a"].get(key) != stores["b"].get(key)
    )
    if not expected:
        assert found.found == []
        assert found.counts["replicas"] == stores["a"].count(b"\x00", END, limit=10_000)
    else:
        ((member, value),) = found.found
        assert member == "b"
        assert f"{expected[0].decode()!r}" in value


def test_of_two_that_differ_nobody_knows_which_is_right() -> None:
    found = compare({"a": store_of([Txn(then=(Put(b"/a", b"1"),))]), "b": store_of([Txn(then=(Put(b"/a", b"2"),))])})
    assert sorted(member for member, _ in found.found) == ["a", "b"]


def test_alone_there_is_nobody_to_compare_with() -> None:
    assert "nobody" in compare({"a": store_of([])}).outcome
