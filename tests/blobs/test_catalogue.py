"""The catalogue of blobs over a real log and store: additions, owners, holders, numbers of nodes, references, tags."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from jobs import keys
from jobs.blobs.catalogue import NewBlob
from jobs.consensus.membership import MemberRecord, Role, put_member, remove_member
from jobs.control.blobs import BlobConfig
from jobs.control.blobs.collections import ADDED_A_STEP
from jobs.errors import (
    BlobQuotaExceeded,
    Forbidden,
    InternalError,
    InvalidRequest,
    JobsError,
    NotFound,
    PayloadTooLarge,
    StorageFull,
    TagTaken,
)
from jobs.protocol.ids import RequestId
from jobs.protocol.model import BlobTagSet, OwnerChange
from jobs.records import BlobDraftRecord, BlobsCountedRecord, BlobUsageRecord
from jobs.service import Caller
from jobs.store import Txn
from tests.support.catalogue import ME, blob, check_catalogue, collection, hash_of, read, references, rows
from tests.support.plane import ADMIN, ALICE, BOB, Plane

Scenario = Callable[[Plane], Awaitable[None]]
SECOND, THIRD = "b" * 64, "c" * 64


def play(tmp_path: Path, scenario: Scenario, **settings: object) -> None:
    async def inner() -> None:
        async with asyncio.timeout(60), Plane(tmp_path, **settings) as plane:
            await scenario(plane)

    asyncio.run(inner())


def usage(plane: Plane, caller: Caller) -> tuple[int, int]:
    found = read(plane.store, keys.blob_usage(caller.uid), BlobUsageRecord) or BlobUsageRecord(0, 0)
    return found.size_bytes, found.blobs


async def add(plane: Plane, *given: NewBlob) -> None:
    """Make all of these Alice's, many at once."""
    for start in range(0, len(given), 5_000):
        lot = given[start : start + 5_000]
        await asyncio.gather(*(plane.control.blobs.register(ALICE, one, ME) for one in lot))


async def join(plane: Plane, *members: str) -> None:
    """Make these members beside the one there is; nobody of them is spoken with."""
    for name in (ME, *members):
        now = plane.consensus.members
        txn = put_member(
            now, MemberRecord(id=name, name=f"n-{name[:1]}", role=Role.LEARNER if name != ME else Role.VOTER)
        )
        await plane.consensus.change_members(txn)


async def counted(plane: Plane, members: int) -> None:
    """Wait until it is known which blobs lack nodes by so many members."""
    async with asyncio.timeout(20):
        while read(plane.store, keys.BLOBS_COUNTED, BlobsCountedRecord) != BlobsCountedRecord(1, members):
            await asyncio.sleep(0.01)


# --- additions ----------------------------------------------------------------------------------------------------


def test_a_blob_that_is_added_is_its_owner_s_and_nobody_else_s(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        blobs = plane.control.blobs
        entry, is_new = await blobs.register(ALICE, blob("a", 7), ME)
        assert (entry.hash, entry.size_bytes, entry.holders, entry.replicas) == (hash_of("a"), 7, (ME,), 1)
        assert is_new
        assert (await blobs.readable(ALICE, hash_of("a"))).holders == (ME,)
        assert (await blobs.readable(ADMIN, hash_of("a"))).hash == hash_of("a")
        with pytest.raises(NotFound) as of_others:
            await blobs.readable(BOB, hash_of("a"))
        with pytest.raises(NotFound) as of_nobody:
            await blobs.readable(BOB, hash_of("b"))
        # Nothing tells a blob of somebody else's from one that is not there.
        assert str(of_others.value).replace(hash_of("a"), "") == str(of_nobody.value).replace(hash_of("b"), "")
        assert (usage(plane, ALICE), usage(plane, BOB)) == ((7, 1), (0, 0))
        check_catalogue(plane.store)

    play(tmp_path, scenario)


def test_a_blob_that_is_added_again_counts_once_for_each_owner(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        blobs = plane.control.blobs
        assert (await blobs.register(ALICE, blob("a", 7), ME))[1]
        assert not (await blobs.register(ALICE, blob("a", 7), ME))[1]
        assert (await blobs.register(BOB, blob("a", 7), ME))[1]
        assert (usage(plane, ALICE), usage(plane, BOB)) == ((7, 1), (7, 1))
        assert check_catalogue(plane.store)[hash_of("a")].owners == (ALICE.uid, BOB.uid)

    play(tmp_path, scenario)


def test_ten_thousand_additions_at_once_are_summed_exactly(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        before = plane.consensus.transactions
        await add(plane, *(blob(name, name) for name in range(10_000)))
        assert usage(plane, ALICE) == (sum(range(10_000)), 10_000)
        # Together, not one by one: each of them changes the same sum.
        assert plane.consensus.transactions - before < 250
        assert len(check_catalogue(plane.store)) == 10_000

    play(tmp_path, scenario)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (blob("a", -1), PayloadTooLarge),
        (blob("a", 101), PayloadTooLarge),
        (blob("a", replicas=0), InvalidRequest),
        (blob("a", replicas=17), InvalidRequest),
        (blob("a", kind="collection"), InvalidRequest),
        (blob("a", tag="/no"), InvalidRequest),
        (blob("a", tag="x" * 129), InvalidRequest),
        (collection("a", ["missing"]), NotFound),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(tmp_path: Path, given: object, error: type[JobsError]) -> None:
    async def scenario(plane: Plane) -> None:
        revision = plane.store.revision
        with pytest.raises(error):
            await plane.control.blobs.register(ALICE, given, ME)  # type: ignore[arg-type]
        assert plane.store.revision == revision

    play(tmp_path, scenario, blobs=BlobConfig(max_blob_bytes=100))


def test_no_hash_another_size_and_no_member_are_refused(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        blobs = plane.control.blobs
        await blobs.register(ALICE, blob("a", 7), ME)
        before = rows(plane.store, keys.BLOBS)
        for text in ("", "A" * 64, "../" * 21 + "a", "a" * 63, "a" * 65):
            with pytest.raises(InvalidRequest):
                await blobs.register(ALICE, type(blob("a"))(hash=text, size_bytes=1), ME)
        with pytest.raises(InternalError):
            await blobs.register(BOB, blob("a", 8), ME)
        with pytest.raises(Forbidden):
            await blobs.register(ALICE, blob("b"), "somebody")
        assert rows(plane.store, keys.BLOBS) == before
        check_catalogue(plane.store)

    play(tmp_path, scenario)


def test_a_full_store_takes_no_blobs(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        with pytest.raises(StorageFull):
            await plane.control.blobs.register(ALICE, blob("a"), ME)

    play(tmp_path, scenario, max_store_bytes=0)


def test_of_decisions_that_come_together_the_bad_ones_are_refused_alone(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        blobs = plane.control.blobs
        given = [blob("a"), blob("b", tag="/no"), blob("a", 11), blob("c", tag="t"), collection("d", ["nothing"])]
        answers = await asyncio.gather(*(blobs.register(ALICE, one, ME) for one in given), return_exceptions=True)
        assert [type(answer) for answer in answers] == [tuple, InvalidRequest, InternalError, tuple, NotFound]
        assert set(check_catalogue(plane.store)) == {hash_of("a"), hash_of("c")}

    play(tmp_path, scenario)


# --- collections --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, ADDED_A_STEP, ADDED_A_STEP + 1, 10_000])
def test_a_collection_keeps_its_children(tmp_path: Path, count: int) -> None:
    async def scenario(plane: Plane) -> None:
        blobs = plane.control.blobs
        await add(plane, *map(blob, range(count)))
        entry, is_new = await blobs.register(ALICE, collection("all", range(count)), ME)
        assert (entry.kind, is_new) == ("collection", True)
        assert set(await blobs.children(hash_of("all"))) == {hash_of(name) for name in range(count)}
        assert await blobs.children(hash_of(0)) == ()
        assert references(plane.store, count - 1) == {f"collection/{hash_of('all')}"}
        assert not rows(plane.store, keys.BLOB_DRAFTS)
        check_catalogue(plane.store)
        # Again, and by somebody who has not got all of it.
        assert not (await blobs.register(ALICE, collection("all", range(count)), ME))[1]
        with pytest.raises(NotFound):
            await blobs.register(BOB, collection("all", range(count)), ME)
        check_catalogue(plane.store)

    play(tmp_path, scenario)


def test_a_collection_of_children_that_are_somebody_else_s_leaves_nothing(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        blobs = plane.control.blobs
        await blobs.register(ALICE, blob("a"), ME)
        await blobs.register(BOB, blob("b"), ME)
        with pytest.raises(NotFound, match=hash_of("b")):
            await blobs.register(ALICE, collection("c", ["a", "b"]), ME)
        assert references(plane.store, "a") == set()
        check_catalogue(plane.store)

    play(tmp_path, scenario)


def test_a_collection_that_is_refused_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        await add(plane, *map(blob, range(3 * ADDED_A_STEP - 1)))
        with pytest.raises(NotFound):
            await plane.control.blobs.register(ALICE, collection("all", range(3 * ADDED_A_STEP)), ME)
        assert not rows(plane.store, keys.BLOB_REFERENCES)
        assert not rows(plane.store, keys.BLOB_CHILDREN)
        assert not rows(plane.store, keys.BLOB_DRAFTS)
        check_catalogue(plane.store)

    play(tmp_path, scenario)


def test_a_blob_that_was_raw_becomes_a_collection_and_stays_one(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        blobs = plane.control.blobs
        await blobs.register(ALICE, blob("a"), ME)
        await blobs.register(ALICE, blob("c", 64), ME)
        entry, is_new = await blobs.register(ALICE, collection("c", ["a"]), ME)
        assert (entry.kind, is_new) == ("collection", False)
        assert (await blobs.register(ALICE, blob("c", 64), ME))[0].kind == "collection"
        check_catalogue(plane.store)

    play(tmp_path, scenario)


def test_a_collection_that_was_begun_before_a_restart_is_gone_on_with(tmp_path: Path) -> None:
    async def inner() -> None:
        plane = await Plane(tmp_path).start()
        blobs = plane.control.blobs
        count = 3 * ADDED_A_STEP
        await add(plane, *map(blob, range(count)))
        before = plane.consensus.transactions
        adding = asyncio.ensure_future(blobs.register(ALICE, collection("all", range(count)), ME))
        while plane.consensus.transactions < before + 2:
            await asyncio.sleep(0)
        await plane.stop()
        with pytest.raises(JobsError):
            await adding
        plane = await Plane(tmp_path).start()
        draft = read(plane.store, keys.blob_draft(hash_of("all")), BlobDraftRecord)
        assert draft is not None
        assert hash_of("all") not in check_catalogue(plane.store)
        await plane.control.blobs.register(ALICE, collection("all", range(count)), ME)
        assert len(await plane.control.blobs.children(hash_of("all"))) == count
        assert not rows(plane.store, keys.BLOB_DRAFTS)
        check_catalogue(plane.store)
        await plane.stop()

    asyncio.run(asyncio.wait_for(inner(), 60))


# --- holders and numbers of nodes ---------------------------------------------------------------------------------


def test_holders_come_and_go_and_what_lacks_nodes_is_known(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        blobs = plane.control.blobs
        await join(plane, SECOND, THIRD)
        for name in range(5):
            await blobs.register(ALICE, blob(name, replicas=2), ME)
        hashes = sorted(hash_of(name) for name in range(5))
        assert [entry.hash for entry in await blobs.lacking("", 100)] == hashes
        assert [entry.hash for entry in await blobs.lacking(hashes[1], 2)] == hashes[2:4]
        await blobs.held(SECOND, (*hashes[:3], hash_of("unknown")), ())
        assert [entry.hash for entry in await blobs.lacking("", 100)] == hashes[3:]
        assert [entry.hash for entry in await blobs.entries("", 2, SECOND)] == hashes[:2]
        assert [entry.hash for entry in await blobs.entries(hashes[1], 9, SECOND)] == hashes[2:3]
        assert [entry.hash for entry in await blobs.entries(hashes[1], 9)] == hashes[2:]
        # What it no longer has, and what it never had.
        await blobs.held(SECOND, (), (hashes[0], hashes[4], hash_of("unknown")))
        assert [entry.hash for entry in await blobs.lacking("", 100)] == [hashes[0], *hashes[3:]]
        revision = plane.store.revision
        await blobs.held(SECOND, (hashes[1],), (hashes[0],))
        assert plane.store.revision == revision, "what is known already writes nothing"
        assert await blobs.wanted(SECOND, (hashes[1], hashes[0], hash_of("unknown"))) == (True, True, False)
        assert await blobs.wanted(THIRD, (hashes[1], hashes[0])) == (False, True), "a copy of what lacks nodes is kept"
        with pytest.raises(Forbidden):
            await blobs.held("d" * 64, (hashes[0],), ())
        for call in (blobs.held(ME, tuple(hashes) * 2_001, ()), blobs.wanted(ME, tuple(hashes) * 2_001)):
            with pytest.raises(InvalidRequest):
                await call
        check_catalogue(plane.store, members=3)

    play(tmp_path, scenario)


def test_a_member_that_is_removed_has_nothing_any_more(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        blobs = plane.control.blobs
        await join(plane, SECOND)
        names = range(450)
        await add(plane, *(blob(name, replicas=2) for name in names))
        await blobs.held(SECOND, tuple(hash_of(name) for name in names), ())
        assert await blobs.lacking("", 1) == ()
        await plane.consensus.change_members(remove_member(plane.consensus.members, SECOND))
        async with asyncio.timeout(20):
            while rows(plane.store, keys.blobs_on_prefix(SECOND)):
                await asyncio.sleep(0.01)
            await counted(plane, 1)
        # One member is all there are: nothing lacks.
        check_catalogue(plane.store)
        with pytest.raises(Forbidden):
            await blobs.held(SECOND, (hash_of(0),), ())

    play(tmp_path, scenario)


def test_members_that_come_let_blobs_lack_nodes_also_after_a_restart(tmp_path: Path) -> None:
    async def inner() -> None:
        async with Plane(tmp_path) as plane:
            await plane.control.blobs.register(ALICE, blob("two", replicas=2), ME)
            await plane.control.blobs.register(ALICE, blob("default"), ME)
            assert await plane.control.blobs.lacking("", 9) == ()
            await join(plane, SECOND)
            plane.control.end()  # so that nothing follows before the restart, or not much
        async with Plane(tmp_path) as plane:
            await counted(plane, 2)
            assert [entry.hash for entry in await plane.control.blobs.lacking("", 9)] == [hash_of("two")]
            check_catalogue(plane.store, members=2)

    asyncio.run(asyncio.wait_for(inner(), 60))


def test_replicate_says_how_many_nodes_and_for_children_at_least_that(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        blobs = plane.control.blobs
        await join(plane, SECOND, THIRD)
        await blobs.register(ALICE, blob("a"), ME)
        await blobs.register(ALICE, blob("b", replicas=3), ME)
        await blobs.register(ALICE, collection("c", ["a", "b"]), ME)
        assert (await blobs.replicate(ALICE, hash_of("c"), 2)).replicas == 2
        replicas = {entry.hash: entry.replicas for entry in await blobs.entries("", 9)}
        assert replicas == {hash_of("a"): 2, hash_of("b"): 3, hash_of("c"): 2}
        assert (await blobs.replicate(ALICE, hash_of("b"), 1)).replicas == 1
        await blobs.register(BOB, blob("b", replicas=2), ME)
        with pytest.raises(Forbidden):
            await blobs.replicate(BOB, hash_of("b"), 1)
        assert (await blobs.replicate(ADMIN, hash_of("b"), 1)).replicas == 1
        with pytest.raises(NotFound):
            await blobs.replicate(BOB, hash_of("a"), 2)
        with pytest.raises(InvalidRequest):
            await blobs.replicate(ALICE, hash_of("a"), 0)
        check_catalogue(plane.store, members=3)

    play(tmp_path, scenario)


# --- references and tags ------------------------------------------------------------------------------------------


def test_a_reference_is_written_with_what_refers_and_not_to_what_is_not_there(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        control = plane.control
        await control.blobs.register(ALICE, blob("a"), ME)
        made = control.blobs.references
        compares, ops = made.ops([hash_of("a"), hash_of("a")], "job", "j1", ALICE, 1_000)
        assert (len(compares), len(ops)) == (1, 2)
        await control.blobs.held(ME, (), (hash_of("a"),))  # the entry changes meanwhile
        assert (await plane.consensus.propose(Txn(compares, ops))).succeeded
        assert references(plane.store, "a") == {"job/j1"}
        with pytest.raises(NotFound, match=hash_of("b")) as missing:
            made.ops([hash_of("a"), hash_of("b")], "job", "j2", ALICE, 1_000, field="$.payload.files")
        assert missing.value.field == "$.payload.files"
        with pytest.raises(NotFound):
            made.ops([hash_of("a")], "job", "j2", BOB, 1_000)
        assert made.ops([hash_of("a")], "job", "j2", ADMIN, 1_000)
        assert (await plane.consensus.propose(Txn((), made.removal([hash_of("a")], "job", "j1")))).succeeded
        assert references(plane.store, "a") == set()

    play(tmp_path, scenario)


def test_a_tag_keeps_a_blob_and_names_another_when_it_is_told_to(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        blobs = plane.control.blobs
        await blobs.register(ALICE, blob("a", tag="dir/name"), ME)
        await blobs.register(ALICE, blob("b"), ME)
        tag = await blobs.tag(ALICE, "dir/name")
        assert (tag.hash, tag.owner) == (hash_of("a"), ALICE.uid)
        assert references(plane.store, "a") == {"tag/dir/name"}
        with pytest.raises(TagTaken):
            await blobs.set_tag(ALICE, "dir/name", BlobTagSet(hash=hash_of("b"), replace=False))
        await blobs.set_tag(ALICE, "dir/name", BlobTagSet(hash=hash_of("a"), replace=False))
        await blobs.set_tag(ALICE, "dir/name", BlobTagSet(hash=hash_of("b")))
        assert (references(plane.store, "a"), references(plane.store, "b")) == (set(), {"tag/dir/name"})
        for call in (
            blobs.set_tag(BOB, "dir/name", BlobTagSet(hash=hash_of("b"))),
            blobs.delete_tag(BOB, "dir/name"),
            blobs.tag(BOB, "dir/name"),
        ):
            with pytest.raises(Forbidden):
                await call
        with pytest.raises(NotFound):
            await blobs.set_tag(BOB, "mine", BlobTagSet(hash=hash_of("b")))
        assert (await blobs.set_tag(ADMIN, "dir/name", BlobTagSet(hash=hash_of("a")))).owner == ALICE.uid
        await blobs.delete_tag(ALICE, "dir/name")
        for gone in (blobs.tag(ALICE, "dir/name"), blobs.delete_tag(ALICE, "dir/name")):
            with pytest.raises(NotFound):
                await gone
        check_catalogue(plane.store)

    play(tmp_path, scenario)


def test_a_change_of_a_tag_that_is_sent_again_is_made_once(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        blobs = plane.control.blobs
        await blobs.register(ALICE, blob("a"), ME)
        await blobs.register(ALICE, blob("b"), ME)
        first = Caller(uid=ALICE.uid, gid=ALICE.gid, admin=False, request_id=RequestId(b"1" * 16))
        second = Caller(uid=ALICE.uid, gid=ALICE.gid, admin=False, request_id=RequestId(b"2" * 16))
        await blobs.set_tag(first, "t", BlobTagSet(hash=hash_of("a")))
        await blobs.set_tag(ALICE, "t", BlobTagSet(hash=hash_of("b")))
        assert (await blobs.set_tag(first, "t", BlobTagSet(hash=hash_of("a")))).hash == hash_of("b")
        await blobs.delete_tag(second, "t")
        await blobs.set_tag(ALICE, "t", BlobTagSet(hash=hash_of("b")))
        await blobs.delete_tag(second, "t")
        assert (await blobs.tag(ALICE, "t")).hash == hash_of("b")

    play(tmp_path, scenario)


def test_tags_are_listed_page_by_page_and_others_see_their_own(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        blobs = plane.control.blobs
        for number in range(25):
            await blobs.register(ALICE if number % 2 else BOB, blob(number, tag=f"t/{number:02}"), ME)
        await blobs.register(ALICE, blob("other", tag="u"), ME)
        seen: list[str] = []
        cursor, pages = None, 0
        while pages == 0 or cursor is not None:
            page = await blobs.tags(ALICE, prefix="t/", limit=5, cursor=cursor)
            seen += [tag.name for tag in page.tags]
            cursor, pages = page.next_cursor, pages + 1
        assert seen == [f"t/{number:02}" for number in range(1, 25, 2)]
        assert len((await blobs.tags(ADMIN, prefix="", limit=100, cursor=None)).tags) == 26
        with pytest.raises(InvalidRequest):
            await blobs.tags(ALICE, prefix="u", limit=5, cursor=page.next_cursor or "AAAA")

    play(tmp_path, scenario)


# --- quotas -------------------------------------------------------------------------------------------------------


def test_an_owner_has_no_more_than_they_may(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        blobs, queues = plane.control.blobs, plane.control.queues
        await blobs.register(ALICE, blob("a", 60), ME)
        answers = await asyncio.gather(
            *(blobs.register(ALICE, blob(name, 30), ME) for name in "bc"), return_exceptions=True
        )
        # Together they would be too much; neither sees the other in the store.
        assert [type(answer) for answer in answers] == [tuple, BlobQuotaExceeded]
        assert usage(plane, ALICE) == (90, 2)
        # What they have already, and what others have, is not in the way.
        await blobs.register(ALICE, blob("a", 60), ME)
        await blobs.register(BOB, blob("c", 100), ME)
        await queues.change_owner(ADMIN, ALICE.uid, OwnerChange(max_blob_bytes=200))
        await blobs.register(ALICE, blob("c", 100), ME)
        await queues.change_owner(ADMIN, ALICE.uid, OwnerChange(max_blob_bytes=0))
        with pytest.raises(BlobQuotaExceeded):
            await blobs.register(ALICE, blob("d", 1), ME)
        owner = await queues.get_owner(ALICE, ALICE.uid)
        assert (owner.blobs, owner.blob_bytes, owner.max_blob_bytes) == (3, 190, 0)
        await queues.change_owner(ADMIN, ALICE.uid, OwnerChange(max_blob_bytes=None))
        with pytest.raises(BlobQuotaExceeded, match="the limit is 100") as refused:
            await blobs.register(ALICE, blob("d", 1), ME)
        # What is advised helps at once, which to delete a tag does not.
        assert "jobctl blob forget" in (refused.value.expected or "")
        for name in ("a", "c"):
            await blobs.forget(ALICE, hash_of(name))
        await blobs.register(ALICE, blob("d", 1), ME)
        check_catalogue(plane.store)

    play(tmp_path, scenario, blobs=BlobConfig(max_bytes_per_owner=100))
