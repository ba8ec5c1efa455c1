"""Batches of tags at a sync's target: with the catalogue of blobs, in one transaction, conflicts recorded."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from msgspec.structs import replace

from jobs import keys, records
from jobs.clock import wall_ms
from jobs.control.replication.tags import TAGS_A_STEP
from jobs.errors import NotFound, ReplicationConflict, RevisionConflict
from jobs.protocol.ids import RequestId
from jobs.protocol.model import BlobTagSet, ConflictPolicy
from jobs.records import BlobTagRecord, CursorRecord
from jobs.replication.messages import MAX_CONFLICTS, Applied, TagBatch, TagChange
from tests.support.catalogue import ME, blob, check_catalogue, hash_of, references
from tests.support.loop import on_loop
from tests.support.plane import ADMIN, ALICE, CLUSTER, Plane

SOURCE = "d" * 32
CURSOR = CursorRecord(source=SOURCE, prefix="app/", target_prefix="app/", is_tags=True, upstream=(SOURCE,), position=5)


def batch(expected: int, *changes: TagChange, policy: ConflictPolicy = "source", position: int = 5) -> TagBatch:
    return TagBatch(CLUSTER, "t", expected, replace(CURSOR, position=position), changes, policy)


def change(name: str, blob_name: object | None, base: str | None = None, at_ms: int = 0) -> TagChange:
    return TagChange(f"app/{name}", None if blob_name is None else hash_of(blob_name), 7, at_ms, base)


async def apply(plane: Plane, wanted: TagBatch, request: bytes = b"") -> Applied:
    return await plane.control.replication.apply_tags(wanted, RequestId(request or random.randbytes(16)))


async def add(plane: Plane, *names: object) -> None:
    for name in names:
        await plane.control.blobs.register(ADMIN, blob(name), ME)


def tag(plane: Plane, name: str) -> BlobTagRecord | None:
    row = plane.store.get(keys.blob_tag(f"app/{name}"))
    return None if row is None else records.decode(BlobTagRecord, row[1])


async def met(plane: Plane) -> list[tuple[str, str, str]]:
    page = await plane.control.replication.conflicts(ADMIN, "t", limit=100, cursor=None)
    return [(one.key, one.winner, one.deleted) for one in page.conflicts]


@on_loop
async def test_tags_come_with_the_cursor_and_keep_their_blobs(tmp_path: Path) -> None:
    async with Plane(tmp_path) as plane:
        await add(plane, 1, 2)
        done = await apply(plane, batch(0, change("a", 1), change("b", 2)), b"r" * 16)
        assert (done.put, done.deleted, done.conflicts) == (2, 0, 0)
        found = tag(plane, "a")
        assert found is not None
        assert (found.hash, found.owner) == (hash_of(1), 0)
        assert references(plane.store, 1) == {"tag/app/a"}
        again = await apply(plane, batch(0, change("a", 1), change("b", 2)), b"r" * 16)
        assert again.mod_revision == done.mod_revision
        with pytest.raises(RevisionConflict):
            await apply(plane, batch(0, change("a", 2)))
        moved = await apply(plane, batch(done.mod_revision, change("a", 2), change("b", None), position=6))
        assert (moved.put, moved.deleted, moved.conflicts) == (1, 1, 0)
        assert references(plane.store, 1) == set()
        assert references(plane.store, 2) == {"tag/app/a"}
        check_catalogue(plane.store)


@on_loop
async def test_a_tag_whose_blob_is_not_there_changes_nothing(tmp_path: Path) -> None:
    async with Plane(tmp_path) as plane:
        await add(plane, 1)
        with pytest.raises(NotFound):
            await apply(plane, batch(0, change("a", 1), change("b", 9)))
        assert tag(plane, "a") is None
        assert plane.store.get(keys.sync_cursor(CLUSTER, "t")) is None


@on_loop
async def test_tags_that_others_have_changed_are_conflicts_by_the_policy(tmp_path: Path) -> None:
    async with Plane(tmp_path) as plane:
        await add(plane, 1, 2, 3)
        done = await apply(plane, batch(0, change("a", 1), change("b", 1), change("c", 1)))
        for name in ("a", "b"):
            await plane.control.blobs.set_tag(ADMIN, f"app/{name}", BlobTagSet(hash=hash_of(2), replace=True))
        await plane.control.blobs.delete_tag(ADMIN, "app/c")
        base, now_ms = hash_of(1), wall_ms()
        changes = (change("a", 3, base, now_ms - 60_000), change("b", 3, base, now_ms), change("c", 3, base, now_ms))
        with pytest.raises(ReplicationConflict, match="3 keys"):
            await apply(plane, batch(done.mod_revision, *changes, policy="fail", position=6))
        assert [one[1] for one in await met(plane)] == ["none"] * 3
        row = plane.store.get(keys.sync_cursor(CLUSTER, "t"))
        assert row is not None
        moved = await apply(plane, batch(row[4], *changes, policy="newer", position=6))
        assert (moved.put, moved.conflicts) == (2, 3)
        assert (await met(plane))[:3] == [
            ("app/c", "source", "target"),
            ("app/b", "source", ""),
            ("app/a", "target", ""),
        ]
        found = tag(plane, "a")
        assert found is not None
        assert found.hash == hash_of(2)
        check_catalogue(plane.store)


@on_loop
async def test_a_tag_of_somebody_else_s_is_taken_over_and_recorded(tmp_path: Path) -> None:
    async with Plane(tmp_path) as plane:
        await add(plane, 1)
        await plane.control.blobs.register(ALICE, blob(2), ME)
        await plane.control.blobs.set_tag(ALICE, "app/a", BlobTagSet(hash=hash_of(2)))
        await apply(plane, batch(0, change("a", 1)))
        found = tag(plane, "a")
        assert found is not None
        assert (found.hash, found.owner) == (hash_of(1), 0)
        assert await met(plane) == [("app/a", "source", "")]


@on_loop
async def test_a_batch_that_is_too_large_is_to_be_a_smaller_one(tmp_path: Path) -> None:
    async with Plane(tmp_path) as plane:
        await add(plane, 1, 2)
        many = [change(f"{number:03}", 1) for number in range(TAGS_A_STEP + 1)]
        assert (await apply(plane, batch(0, *many))).fit == TAGS_A_STEP
        done = await apply(plane, batch(0, *many[:TAGS_A_STEP]))
        assert done.put == TAGS_A_STEP
        for one in many[: MAX_CONFLICTS + 1]:
            await plane.control.blobs.set_tag(ADMIN, one.name, BlobTagSet(hash=hash_of(2), replace=True))
        gone = [replace(one, hash=None) for one in many[:TAGS_A_STEP]]
        less = await apply(plane, batch(done.mod_revision, *gone, position=6))
        assert (less.mod_revision, less.fit) == (0, MAX_CONFLICTS)
        done = await apply(plane, batch(done.mod_revision, *gone[: less.fit], position=6))
        assert (done.deleted, done.conflicts) == (MAX_CONFLICTS, MAX_CONFLICTS)
        check_catalogue(plane.store)
