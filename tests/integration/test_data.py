"""The users' part of the store through the control plane."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from jobs.errors import Compacted, Forbidden, InvalidRequest, LeaseNotFound, PayloadTooLarge
from jobs.protocol.model import Content, KvCompare, KvDelete, KvEvent, KvOp, KvPut, KvTxn
from jobs.store import Compact, Txn
from tests.support.plane import ADMIN, ALICE, Plane


def put(key: str, value: str = "v", lease: int = 0) -> KvPut:
    return KvPut(key=key, value=Content(text=value), lease=lease)


def scenario(test: Callable[[Plane], Awaitable[None]]) -> Callable[[Path], None]:
    def run(tmp_path: Path) -> None:
        async def inner() -> None:
            async with Plane(tmp_path) as plane:
                await test(plane)

        asyncio.run(inner())

    run.__name__ = test.__name__
    return run


@scenario
async def test_put_get_delete(plane: Plane) -> None:
    control = plane.control
    assert await control.kv_get(ALICE, "/data/a", 0) is None
    first = await control.kv_put(ALICE, put("/data/a", "1"))
    await control.kv_put(ALICE, put("/data/a", "2"))
    now, before = await control.kv_get(ALICE, "/data/a", 0), await control.kv_get(ALICE, "/data/a", first.revision)
    assert now is not None
    assert before is not None
    assert (now.value.text, now.version, before.value.text, before.version) == ("2", 2, "1", 1)
    assert now.create_revision == before.mod_revision == first.revision
    gone = await control.kv_delete(ALICE, KvDelete(key="/data/", prefix=True))
    assert [result.deleted for result in gone.results] == [1]
    assert await control.kv_get(ALICE, "/data/a", 0) is None


@scenario
async def test_a_transaction_takes_one_branch_whole(plane: Plane) -> None:
    control = plane.control
    absent = KvCompare(key="/data/lock", target="version", number=0)
    txn = KvTxn(compare=[absent], then=[KvOp(put=put("/data/lock", "mine"))], otherwise=[KvOp(get="/data/lock")])
    first, second = await asyncio.gather(control.kv_txn(ALICE, txn), control.kv_txn(ALICE, txn))
    assert (first.succeeded, second.succeeded) == (True, False)
    held = second.results[0].kv
    assert held is not None
    assert held.value.text == "mine"
    same = KvCompare(key="/data/lock", target="value", value=Content(text="mine"))
    assert (await control.kv_txn(ALICE, KvTxn(compare=[same]))).succeeded


@scenario
async def test_pages_of_a_scan_are_of_one_revision(plane: Plane) -> None:
    control = plane.control
    for number in range(7):
        await control.kv_put(ALICE, put(f"/data/p/{number}"))
    page = await control.kv_scan(ALICE, "/data/p/", limit=3, cursor=None, revision=0, keys_only=False)
    await control.kv_delete(ALICE, KvDelete(key="/data/p/", prefix=True))
    found = [kv.key for kv in page.kvs]
    while page.next_cursor is not None:
        page = await control.kv_scan(
            ALICE, "/data/p/", limit=3, cursor=page.next_cursor, revision=page.revision, keys_only=True
        )
        found += [kv.key for kv in page.kvs]
    assert found == [f"/data/p/{number}" for number in range(7)]


@scenario
async def test_a_watch_tells_puts_and_deletes_of_its_keys_only(plane: Plane) -> None:
    control = plane.control
    start = plane.store.revision
    await control.kv_put(ALICE, put("/data/other"))
    await control.kv_put(ALICE, put("/data/w", "1"))
    await control.kv_put(ALICE, put("/data/wider"))
    await control.kv_delete(ALICE, KvDelete(key="/data/w"))
    seen: list[KvEvent] = []
    async for event in control.kv_watch(ALICE, "/data/w", prefix=False, after_revision=start):
        assert isinstance(event, KvEvent)
        seen.append(event)
        if len(seen) == 2:
            break
    assert [(event.type, event.key, event.revision) for event in seen] == [
        ("put", "/data/w", start + 2),
        ("delete", "/data/w", start + 4),
    ]


@scenario
async def test_a_lease_takes_its_keys_with_it_when_it_runs_out_and_not_while_it_is_kept(plane: Plane) -> None:
    control = plane.control
    lease = await control.lease_grant(ALICE, 1.0)
    await control.kv_put(ALICE, put("/data/session", lease=lease.id))
    watch = control.kv_watch(ALICE, "/data/session", prefix=False, after_revision=plane.store.revision)
    assert await anext(watch) == plane.store.revision, "a watch says at once where it begins"
    ended = asyncio.create_task(anext(watch))  # type: ignore[arg-type]
    loop = asyncio.get_running_loop()
    kept_until = loop.time() + 1.5
    while loop.time() < kept_until:
        await control.lease_keepalive(ALICE, lease.id)
        done, _ = await asyncio.wait([ended], timeout=0.3)
        assert not done, "the lease ended although it was kept"
    async with asyncio.timeout(10):
        event = await ended
    assert event.type == "delete"
    assert loop.time() - kept_until < 3
    for use in (
        control.lease_keepalive(ALICE, lease.id),
        control.lease_revoke(ALICE, lease.id),
        control.kv_put(ALICE, put("/data/late", lease=lease.id)),
    ):
        with pytest.raises(LeaseNotFound):
            await use


@scenario
async def test_a_revoked_lease_takes_its_keys_at_once(plane: Plane) -> None:
    control = plane.control
    lease = await control.lease_grant(ALICE, 600)
    await control.kv_put(ALICE, put("/data/x", lease=lease.id))
    await control.lease_revoke(ALICE, lease.id)
    assert await control.kv_get(ALICE, "/data/x", 0) is None


@scenario
async def test_the_systems_keys_are_read_by_admins_and_written_by_nobody(plane: Plane) -> None:
    control = plane.control
    with pytest.raises(Forbidden):
        await control.kv_get(ALICE, "/jobs/state/x", 0)
    with pytest.raises(Forbidden):
        await control.kv_scan(ALICE, "/", limit=1, cursor=None, revision=0, keys_only=True)
    assert await control.kv_get(ADMIN, "/jobs/state/x", 0) is None
    for write in (
        control.kv_put(ADMIN, put("/jobs/state/x")),
        control.kv_delete(ADMIN, KvDelete(key="/", prefix=True)),
        control.kv_txn(ADMIN, KvTxn(then=[KvOp(put=put("/queue/x"))])),
    ):
        with pytest.raises(Forbidden):
            await write


@scenario
async def test_what_is_wrong_is_named(plane: Plane) -> None:
    control = plane.control
    both = KvOp(put=put("/data/a"), get="/data/a")
    for txn, field in (
        (KvTxn(then=[both]), "$.then[0]"),
        (KvTxn(otherwise=[KvOp()]), "$.otherwise[0]"),
        (KvTxn(compare=[KvCompare(key="/data/a", target="value", number=1)]), "$.compare[0]"),
        (KvTxn(compare=[KvCompare(key="/data/a", target="version")]), "$.compare[0]"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            await control.kv_txn(ALICE, txn)
        assert caught.value.field == field
    with pytest.raises(PayloadTooLarge):
        await control.kv_put(ALICE, put("/data/a", "x" * ((1 << 20) + 1)))
    with pytest.raises(InvalidRequest, match="1025 bytes"):
        await control.kv_put(ALICE, put("/data/" + "ä" * 509 + "x"))
    with pytest.raises(InvalidRequest, match="has not been reached"):
        await control.kv_get(ALICE, "/data/a", 10**6)


@scenario
async def test_history_that_is_gone_is_said_to_be(plane: Plane) -> None:
    control = plane.control
    for number in range(5):
        await control.kv_put(ALICE, put("/data/a", str(number)))
    await plane.consensus.propose(Txn(then=(Compact(4),)))
    with pytest.raises(Compacted):
        await anext(control.kv_watch(ALICE, "/data/a", prefix=False, after_revision=1))
    with pytest.raises(Compacted):
        await control.kv_get(ALICE, "/data/a", 2)
