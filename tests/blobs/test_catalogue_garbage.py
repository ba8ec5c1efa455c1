"""What leaves the catalogue: what is given up, what nothing refers to; and what tickets bring to others."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from jobs import keys
from jobs.blobs.catalogue import NewBlob
from jobs.blobs.tickets import decode_ticket, encode_ticket
from jobs.control.blobs.collect import OWNERS_A_STEP
from jobs.control.blobs.collections import ADDED_A_STEP, CLEARED_A_STEP
from jobs.errors import BlobQuotaExceeded, Forbidden, InvalidRequest, JobsError, NotFound
from jobs.protocol.ids import RequestId
from jobs.protocol.model import BlobCollect, BlobCollectPage, BlobShare, BlobTagSet, OwnerChange
from jobs.records import BlobUsageRecord
from jobs.service import AuditFilter, Caller
from jobs.store import Txn
from tests.support.catalogue import ME, blob, check_catalogue, collection, hash_of, read, references, rows
from tests.support.clock import Clock, play
from tests.support.plane import ADMIN, ALICE, BOB, Plane, shell

GRACE_S = 3_600


async def add(plane: Plane, *given: NewBlob, caller: Caller = ALICE) -> None:
    await asyncio.gather(*(plane.control.blobs.register(caller, one, ME) for one in given))


async def collect(plane: Plane, **wanted: object) -> list[BlobCollectPage]:
    """Go through all pages once."""
    pages = [await plane.control.blobs.collect(ADMIN, BlobCollect(**wanted))]  # type: ignore[arg-type]
    while (cursor := pages[-1].next_cursor) is not None:
        pages.append(await plane.control.blobs.collect(ADMIN, BlobCollect(cursor=cursor, **wanted)))  # type: ignore[arg-type]
    return pages


def condemned(pages: list[BlobCollectPage]) -> set[str]:
    return {one.hash for page in pages for one in page.collected if one.outcome == "condemned"}


def hashes(*names: object) -> set[str]:
    return {hash_of(name) for name in names}


# --- garbage ------------------------------------------------------------------------------------------------------


def test_what_nothing_refers_to_goes_after_its_grace_and_nothing_else(tmp_path: Path, clock: Clock) -> None:
    async def scenario(plane: Plane, clock: Clock) -> None:
        blobs = plane.control.blobs
        await add(plane, blob("kept", tag="t"), blob("planned"), blob("loose"), blob("touched"))
        await add(plane, blob("loose"), caller=BOB)
        compares, ops = blobs.references.ops([hash_of("planned")], "schedule", "s", ALICE, clock.now_ms())
        assert (await plane.consensus.propose(Txn(compares, ops))).succeeded
        (page,) = await collect(plane)
        assert (page.examined, page.kept, page.collected) == (4, {"tag": 1, "schedule": 1, "young": 2}, [])
        clock.jump(GRACE_S - 10)
        await add(plane, blob("touched"))
        assert condemned(await collect(plane)) == set()
        clock.jump(20)
        (page,) = await collect(plane)
        assert (condemned([page]), page.kept) == (hashes("loose"), {"tag": 1, "schedule": 1, "young": 1})
        assert page.collected[0].size_bytes == 10
        for caller in (ALICE, BOB, ADMIN):
            with pytest.raises(NotFound):
                await blobs.readable(caller, hash_of("loose"))
        assert await blobs.wanted(ME, (hash_of("loose"), hash_of("kept"))) == (False, True)
        assert set(check_catalogue(plane.store)) == hashes("kept", "planned", "touched")
        assert read(plane.store, keys.blob_usage(BOB.uid), BlobUsageRecord) is None
        # It comes again as any other.
        await add(plane, blob("loose"))
        check_catalogue(plane.store)

    play(tmp_path, clock, scenario)


def test_a_look_changes_nothing_and_may_ask_what_would_go_now(tmp_path: Path, clock: Clock) -> None:
    async def scenario(plane: Plane, clock: Clock) -> None:
        await add(plane, blob("a"), blob("b", tag="t"))
        before = plane.store.revision
        (page,) = await collect(plane, dry_run=True)
        assert page.kept == {"young": 1, "tag": 1}
        (page,) = await collect(plane, dry_run=True, grace_s=0)
        assert condemned([page]) == hashes("a")
        (page,) = await collect(plane, grace_s=0)
        assert (page.collected, page.kept) == ([], {"young": 1, "tag": 1}), "the grace of the configuration holds"
        clock.jump(GRACE_S + 1)
        (page,) = await collect(plane, grace_s=2 * GRACE_S)
        assert page.kept == {"young": 1, "tag": 1}
        assert condemned(await collect(plane)) == hashes("a")
        with pytest.raises(Forbidden):
            await plane.control.blobs.collect(ALICE, BlobCollect())
        assert plane.store.revision > before

    play(tmp_path, clock, scenario)


def test_many_pages_find_everything_once(tmp_path: Path, clock: Clock) -> None:
    async def scenario(plane: Plane, clock: Clock) -> None:
        names = range(1_000)
        await add(plane, *(blob(name, name, tag=f"t{name}" if name % 3 == 0 else None) for name in names))
        clock.jump(GRACE_S + 1)
        before = plane.consensus.transactions
        pages = await collect(plane, limit=150)
        assert (len(pages), sum(page.examined for page in pages)) == (7, 1_000)
        assert condemned(pages) == hashes(*(name for name in names if name % 3))
        assert plane.consensus.transactions - before < 60, "together, not one by one"
        assert len(check_catalogue(plane.store)) == 334

    play(tmp_path, clock, scenario)


def test_whoever_refers_to_it_first_wins(tmp_path: Path, clock: Clock) -> None:
    async def scenario(plane: Plane, clock: Clock) -> None:
        """References that were decided before the collection, and written after it or while it runs."""
        blobs = plane.control.blobs
        names = range(60)
        await add(plane, *map(blob, names))
        clock.jump(GRACE_S + 1)
        referred: set[str] = set()
        refused: set[str] = set()

        async def refer(name: int) -> None:
            for _ in range(name % 7):
                await asyncio.sleep(0)
            while True:
                try:
                    compares, ops = blobs.references.ops([hash_of(name)], "schedule", "s", ALICE, clock.now_ms())
                except NotFound:
                    refused.add(hash_of(name))
                    return
                for _ in range(name % 5):
                    await asyncio.sleep(0)
                if (await plane.consensus.propose(Txn(compares, ops))).succeeded:
                    referred.add(hash_of(name))
                    return

        pages, *_ = await asyncio.gather(collect(plane, limit=10), *map(refer, names))
        gone = condemned(pages)
        assert gone == refused
        assert gone | referred == hashes(*names)
        assert set(check_catalogue(plane.store)) == referred

    play(tmp_path, clock, scenario)


def test_a_reference_in_the_middle_of_a_collection_spares_the_blob(tmp_path: Path, clock: Clock) -> None:
    async def scenario(plane: Plane, clock: Clock) -> None:
        blobs = plane.control.blobs
        await add(plane, blob("a"), blob("b"))
        clock.jump(GRACE_S + 1)
        collecting = asyncio.ensure_future(blobs.collect(ADMIN, BlobCollect()))
        compares, ops = blobs.references.ops([hash_of("a")], "schedule", "s", ALICE, clock.now_ms())
        referring = plane.consensus.propose(Txn(compares, ops))
        # The collection has seen no reference when it decides; that comes into the log before its own transaction.
        page = await collecting
        assert (await referring).succeeded
        assert {one.hash: one.outcome for one in page.collected} == {
            hash_of("a"): "spared",
            hash_of("b"): "condemned",
        }
        assert set(check_catalogue(plane.store)) == hashes("a")

    play(tmp_path, clock, scenario)


def test_a_job_keeps_a_blob_for_as_long_as_it_is_there(tmp_path: Path, clock: Clock) -> None:
    """An array's tasks are deleted in bulk: what they referred to is found out of use, not told."""

    async def scenario(plane: Plane, clock: Clock) -> None:
        blobs = plane.control.blobs
        await add(plane, blob("a"), blob("b"))
        (submitted,) = await plane.control.submit(ALICE, [shell()])
        for name, job in (("a", submitted.job.id), ("b", "01890a5d-ac96-774b-bcce-b302099a8057")):
            compares, ops = blobs.references.ops([hash_of(name)], "job", job, ALICE, clock.now_ms())
            assert (await plane.consensus.propose(Txn(compares, ops))).succeeded
        clock.jump(GRACE_S + 1)
        (page,) = await collect(plane)
        assert (condemned([page]), page.kept) == (hashes("b"), {"job": 1})
        assert set(check_catalogue(plane.store)) == hashes("a")

    play(tmp_path, clock, scenario)


def test_more_owners_than_a_transaction_takes_lose_it_in_steps(tmp_path: Path, clock: Clock) -> None:
    async def scenario(plane: Plane, clock: Clock) -> None:
        for uid in range(2_000, 2_000 + 2 * OWNERS_A_STEP + 5):
            await plane.control.blobs.register(Caller(uid=uid, gid=uid, admin=False), blob("common"), ME)
        clock.jump(GRACE_S + 1)
        assert condemned(await collect(plane)) == hashes("common")
        assert check_catalogue(plane.store) == {}
        assert not rows(plane.store, keys.BLOB_USAGE)

    play(tmp_path, clock, scenario)


def test_a_collection_goes_before_its_children(tmp_path: Path, clock: Clock) -> None:
    async def scenario(plane: Plane, clock: Clock) -> None:
        blobs = plane.control.blobs
        count = 2 * CLEARED_A_STEP + 1
        await add(plane, *map(blob, range(count)))
        await blobs.register(ALICE, collection("all", range(count), tag="t"), ME)
        await blobs.register(ALICE, collection("one", [0]), ME)
        clock.jump(GRACE_S + 1)
        assert condemned(await collect(plane)) == hashes("one")
        assert references(plane.store, 0) == {f"collection/{hash_of('all')}"}
        await blobs.delete_tag(ALICE, "t")
        assert hash_of("all") in condemned(await collect(plane))
        await collect(plane)
        assert check_catalogue(plane.store) == {}
        assert not rows(plane.store, keys.BLOB_CHILDREN)
        assert not rows(plane.store, keys.BLOBS_CLEARED)

    play(tmp_path, clock, scenario)


def test_a_collection_that_nobody_went_on_with_is_cleared(tmp_path: Path, clock: Clock) -> None:
    async def begin(count: int) -> None:
        """Add a part of a collection, and end there."""
        plane = await Plane(tmp_path).start()
        await add(plane, *map(blob, range(count)))
        before = plane.consensus.transactions
        adding = asyncio.ensure_future(plane.control.blobs.register(ALICE, collection("all", range(count)), ME))
        while plane.consensus.transactions < before + 2:
            await asyncio.sleep(0)
        await plane.stop()
        with pytest.raises(JobsError):
            await adding

    async def inner() -> None:
        count = 4 * ADDED_A_STEP
        await begin(count)
        async with Plane(tmp_path) as plane:
            assert rows(plane.store, keys.BLOB_DRAFTS)
            await collect(plane)
            assert rows(plane.store, keys.BLOB_DRAFTS), "it is young"
            assert references(plane.store, 0)
            clock.jump(GRACE_S + 1)
            assert len(condemned(await collect(plane))) == count
            assert check_catalogue(plane.store) == {}
            assert not rows(plane.store, keys.BLOB_CHILDREN)
            assert not rows(plane.store, keys.BLOB_DRAFTS)

    asyncio.run(asyncio.wait_for(inner(), 60))


def test_a_collection_whose_beginning_is_cleared_meanwhile_begins_anew(tmp_path: Path, clock: Clock) -> None:
    async def scenario(plane: Plane, clock: Clock) -> None:
        """The clock jumps while its children come: the draft looks as if nobody went on with it."""
        blobs = plane.control.blobs
        count = 4 * ADDED_A_STEP
        await add(plane, *(blob(name, tag=f"t{name}") for name in range(count)))
        adding = asyncio.ensure_future(blobs.register(ALICE, collection("all", range(count)), ME))
        while not plane.store.get(keys.blob_draft(hash_of("all"))):
            await asyncio.sleep(0)
        clock.jump(GRACE_S + 1)
        await collect(plane)
        await adding
        assert len(await blobs.children(hash_of("all"))) == count
        assert all(f"collection/{hash_of('all')}" in references(plane.store, name) for name in range(count))
        check_catalogue(plane.store)

    play(tmp_path, clock, scenario)


def test_what_was_being_cleared_before_a_restart_is_cleared_after_it(tmp_path: Path, clock: Clock) -> None:
    async def inner() -> None:
        count = 5 * CLEARED_A_STEP
        plane = await Plane(tmp_path).start()
        await add(plane, *map(blob, range(count)))
        await plane.control.blobs.register(ALICE, collection("all", range(count)), ME)
        clock.jump(GRACE_S + 1)
        collecting = asyncio.ensure_future(collect(plane))
        while not plane.store.get(keys.blob_cleared(hash_of("all"))):
            await asyncio.sleep(0)
        await plane.stop()
        with pytest.raises(JobsError):
            await collecting
        async with Plane(tmp_path) as plane:
            assert hash_of("all") not in check_catalogue(plane.store)
            async with asyncio.timeout(20):
                while rows(plane.store, keys.BLOBS_CLEARED):
                    await asyncio.sleep(0.01)
            assert not rows(plane.store, keys.BLOB_CHILDREN)
            assert not rows(plane.store, keys.BLOB_REFERENCES)
            check_catalogue(plane.store)

    asyncio.run(asyncio.wait_for(inner(), 60))


def test_a_collection_that_comes_again_while_it_is_cleared_is_whole(tmp_path: Path, clock: Clock) -> None:
    async def scenario(plane: Plane, clock: Clock) -> None:
        blobs = plane.control.blobs
        count = 3 * CLEARED_A_STEP
        await add(plane, *map(blob, range(count)))
        await blobs.register(ALICE, collection("all", range(count)), ME)
        for name in range(count):
            await blobs.set_tag(ALICE, f"t{name}", BlobTagSet(hash=hash_of(name)))
        clock.jump(GRACE_S + 1)
        collecting = asyncio.ensure_future(collect(plane))
        while not plane.store.get(keys.blob_cleared(hash_of("all"))):
            await asyncio.sleep(0)
        await blobs.register(ALICE, collection("all", range(count)), ME)
        assert condemned(await collecting) == hashes("all")
        assert len(await blobs.children(hash_of("all"))) == count
        assert all(f"collection/{hash_of('all')}" in references(plane.store, name) for name in range(count))
        check_catalogue(plane.store)

    play(tmp_path, clock, scenario)


def test_what_is_collected_is_in_the_audit_trail(tmp_path: Path, clock: Clock) -> None:
    async def scenario(plane: Plane, clock: Clock) -> None:
        await add(plane, blob("a", 7))
        clock.jump(GRACE_S + 1)
        await collect(plane)
        page = await plane.control.audit.page(ADMIN, AuditFilter(action="blob."), limit=10, cursor=None)
        assert [(entry.action, entry.subject, entry.uid) for entry in page.entries] == [
            ("blob.collect", hash_of("a"), ADMIN.uid),
            ("blob.add", hash_of("a"), ALICE.uid),
        ]

    play(tmp_path, clock, scenario)


# --- giving up ----------------------------------------------------------------------------------------------------


def test_who_gives_a_blob_up_has_it_no_longer_and_others_do(tmp_path: Path, clock: Clock) -> None:
    async def scenario(plane: Plane, clock: Clock) -> None:
        blobs = plane.control.blobs
        await add(plane, blob("a", 7, tag="alice/1"), blob("other", 5))
        await blobs.set_tag(ALICE, "alice/2", BlobTagSet(hash=hash_of("a")))
        await blobs.register(BOB, blob("a", 7, tag="bob"), ME)
        await blobs.forget(ALICE, hash_of("a"))
        assert references(plane.store, "a") == {"tag/bob"}
        with pytest.raises(NotFound):
            await blobs.readable(ALICE, hash_of("a"))
        for call in (blobs.forget(ALICE, hash_of("a")), blobs.forget(ADMIN, hash_of("a"))):
            with pytest.raises(NotFound):
                await call
        assert read(plane.store, keys.blob_usage(ALICE.uid), BlobUsageRecord) == BlobUsageRecord(5, 1)
        await blobs.forget(BOB, hash_of("a"))
        check_catalogue(plane.store)
        # Nobody's, but still there until its grace is over.
        assert (await blobs.readable(ADMIN, hash_of("a"))).size_bytes == 7
        clock.jump(GRACE_S + 1)
        assert condemned(await collect(plane)) == hashes("a", "other")

    play(tmp_path, clock, scenario)


def test_a_blob_is_given_up_once_however_often_that_is_sent(tmp_path: Path, clock: Clock) -> None:
    async def scenario(plane: Plane, clock: Clock) -> None:
        blobs = plane.control.blobs
        again = Caller(uid=ALICE.uid, gid=ALICE.gid, admin=False, request_id=RequestId(b"1" * 16))
        await add(plane, blob("a"))
        await blobs.forget(again, hash_of("a"))
        await blobs.forget(again, hash_of("a"))
        await add(plane, blob("a"))
        await blobs.forget(again, hash_of("a"))
        assert (await blobs.readable(ALICE, hash_of("a"))).hash == hash_of("a")

    play(tmp_path, clock, scenario)


# --- tickets ------------------------------------------------------------------------------------------------------


def test_a_ticket_makes_a_blob_somebody_else_s_with_its_children(tmp_path: Path, clock: Clock) -> None:
    async def scenario(plane: Plane, clock: Clock) -> None:
        blobs = plane.control.blobs
        await add(plane, blob("x", 3), blob("y", 4))
        await blobs.register(ALICE, collection("c", ["x", "y"], 64), ME)
        shared = await blobs.share(ALICE, hash_of("c"), BlobShare(ttl_s=60))
        assert shared.ticket.startswith("blobticket1.")
        assert shared.ticket.partition(".")[2] not in str(rows(plane.store, keys.BLOB_SHARES))
        for _ in range(2):
            assert (await blobs.claim(BOB, shared.ticket)).hash == hash_of("c")
        assert read(plane.store, keys.blob_usage(BOB.uid), BlobUsageRecord) == BlobUsageRecord(71, 3)
        for name in "xyc":
            await blobs.readable(BOB, hash_of(name))
        check_catalogue(plane.store)

    play(tmp_path, clock, scenario)


def test_a_ticket_brings_no_child_that_its_maker_has_not_got(tmp_path: Path, clock: Clock) -> None:
    """Whoever guesses what a collection consists of can add its bytes, but does not get to its children."""

    async def scenario(plane: Plane, clock: Clock) -> None:
        blobs = plane.control.blobs
        await add(plane, blob("secret"))
        await blobs.register(ALICE, collection("c", ["secret"], 64), ME)
        await blobs.register(BOB, blob("c", 64), ME)
        shared = await blobs.share(BOB, hash_of("c"), BlobShare())
        carol = Caller(uid=1003, gid=1003, admin=False)
        await blobs.claim(carol, shared.ticket)
        for caller in (BOB, carol):
            await blobs.readable(caller, hash_of("c"))
            with pytest.raises(NotFound):
                await blobs.readable(caller, hash_of("secret"))
        check_catalogue(plane.store)

    play(tmp_path, clock, scenario)


def test_a_ticket_ends(tmp_path: Path, clock: Clock) -> None:
    async def scenario(plane: Plane, clock: Clock) -> None:
        blobs = plane.control.blobs
        await add(plane, blob("a"), blob("b"))
        with pytest.raises(NotFound):
            await blobs.share(BOB, hash_of("a"), BlobShare())
        for text in ("", "blobticket1.", "blobticket1.AAAA", "nonsense", "blobticket1." + "A" * 85, "é"):
            with pytest.raises(InvalidRequest):
                await blobs.claim(BOB, text)
        short, long = [await blobs.share(ALICE, hash_of("a"), BlobShare(ttl_s=ttl_s)) for ttl_s in (60, 86_400)]
        parts = decode_ticket(short.ticket)
        for forged in (
            type(parts)(share=parts.share, secret=b"x" * 16, hash=parts.hash),
            type(parts)(share=parts.share, secret=parts.secret, hash=hash_of("b")),
            type(parts)(share="0" * 32, secret=parts.secret, hash=parts.hash),
        ):
            with pytest.raises(NotFound):
                await blobs.claim(BOB, encode_ticket(forged))
        clock.jump(61)
        with pytest.raises(NotFound):
            await blobs.claim(BOB, short.ticket)
        await collect(plane)
        assert len(rows(plane.store, keys.BLOB_SHARES)) == 1, "those that are over go with the garbage"
        await blobs.forget(ALICE, hash_of("a"))
        with pytest.raises(NotFound):
            await blobs.claim(BOB, long.ticket)
        check_catalogue(plane.store)

    play(tmp_path, clock, scenario)


def test_a_ticket_to_more_than_one_may_have_brings_nothing(tmp_path: Path, clock: Clock) -> None:
    async def scenario(plane: Plane, clock: Clock) -> None:
        blobs = plane.control.blobs
        count = 450
        await add(plane, *map(blob, range(count)))
        await blobs.register(ALICE, collection("c", range(count), 64), ME)
        shared = await blobs.share(ALICE, hash_of("c"), BlobShare())
        await plane.control.queues.change_owner(ADMIN, BOB.uid, OwnerChange(max_blob_bytes=4_563))
        with pytest.raises(BlobQuotaExceeded):
            await blobs.claim(BOB, shared.ticket)
        assert not rows(plane.store, keys.blobs_owned_prefix(BOB.uid))
        check_catalogue(plane.store)

    play(tmp_path, clock, scenario)


# --- pages --------------------------------------------------------------------------------------------------------


def test_owners_see_their_own_blobs_and_what_of_theirs_keeps_them(tmp_path: Path, clock: Clock) -> None:
    async def scenario(plane: Plane, clock: Clock) -> None:
        blobs = plane.control.blobs
        await add(plane, *(blob(name, tag=f"alice/{name}") for name in range(5)))
        await add(plane, *(blob(name, tag=f"bob/{name}") for name in range(3, 8)), caller=BOB)
        for caller, owner, expected in (
            (ALICE, None, range(5)),
            (BOB, None, range(3, 8)),
            (ADMIN, None, range(8)),
            (ADMIN, BOB.uid, range(3, 8)),
        ):
            seen, cursor, first = set(), None, True
            while first or cursor is not None:
                page = await blobs.page(caller, owner=owner, limit=2, cursor=cursor)
                seen |= {one.hash for one in page.blobs}
                cursor, first = page.next_cursor, False
            assert seen == hashes(*expected)
        with pytest.raises(Forbidden):
            await blobs.page(ALICE, owner=BOB.uid, limit=1, cursor=None)
        shared = await blobs.view(ALICE, hash_of(3))
        assert [(one.kind, one.name) for one in shared.references] == [("tag", "alice/3")]
        assert (shared.owners, shared.nodes, shared.replicas) == ([ALICE.uid], [ME], 1)
        assert len((await blobs.view(ADMIN, hash_of(3))).references) == 2
        assert (await blobs.view(ADMIN, hash_of(3))).owners == [ALICE.uid, BOB.uid]
        with pytest.raises(NotFound):
            await blobs.view(ALICE, hash_of(7))

    play(tmp_path, clock, scenario)
