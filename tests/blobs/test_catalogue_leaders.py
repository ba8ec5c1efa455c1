"""The catalogue of blobs while leaders come and go: whoever asks again gets what it asked for, once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from jobs import keys
from jobs.control.blobs import Blobs
from jobs.errors import Unavailable
from jobs.records import BlobUsageRecord
from tests.support.catalogue import blob, check_catalogue, collection, hash_of, lacking_is_known, read, rows
from tests.support.cluster import Cluster, cluster, until
from tests.support.plane import ALICE

LOTS = 6
A_LOT = 120


async def ask(made: Cluster, call: Callable[[Blobs], Awaitable[object]]) -> None:
    """Ask whoever leads, again and again, as nodes do."""
    while True:
        leading = [member.site.control for member in made.members if member.site.control is not None]
        try:
            if leading:
                await call(leading[-1].blobs)
                return
        except Unavailable:
            pass
        await asyncio.sleep(0.01)


def test_additions_go_on_under_other_leaders_and_are_counted_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with cluster(tmp_path) as made:
            first, second, third = made.members

            async def fill(lot: int) -> None:
                names = [(lot, number) for number in range(A_LOT)]
                for name in names:
                    await ask(made, lambda blobs, name=name: blobs.register(ALICE, blob(name, 5), first.id))
                await ask(made, lambda blobs: blobs.register(ALICE, collection(lot, names, tag=f"t{lot}"), first.id))
                hashes = tuple(hash_of(name) for name in (*names, lot))
                await ask(made, lambda blobs: blobs.held(second.id, hashes, ()))

            filling = [asyncio.ensure_future(fill(lot)) for lot in range(LOTS)]
            for _ in range(2):
                leader = await made.settled()
                added = len(rows(leader.store, keys.BLOBS))
                await until(lambda leader=leader, added=added: len(rows(leader.store, keys.BLOBS)) > added + 60)
                leader.cut_off()
                others = [member for member in made.members if member is not leader]
                await until(lambda others=others: any(member.site.control is not None for member in others))
                leader.heal()
            await asyncio.gather(*filling)
            leader = await made.settled()
            await until(lambda: all(one.store.revision == leader.store.revision for one in made.members))
            await until(lambda: lacking_is_known(leader.store, members=3, default=2))
            await until(lambda: all(one.store.state_hash() == leader.store.state_hash() for one in made.members))
            found = check_catalogue(third.store, members=3, default=2)
            assert len(found) == LOTS * (A_LOT + 1)
            assert {record.holders for record in found.values()} == {(first.id, second.id)}
            usage = BlobUsageRecord(LOTS * (5 * A_LOT + 64), LOTS * (A_LOT + 1))
            assert read(third.store, keys.blob_usage(ALICE.uid), BlobUsageRecord) == usage
            assert not rows(third.store, keys.BLOB_DRAFTS)

    asyncio.run(asyncio.wait_for(scenario(), 110))
