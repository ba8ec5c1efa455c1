"""What nodes ask of the leader for syncs, from one that does not lead, while leaders change and answers go lost."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from msgspec.structs import replace

from jobs.control.replication import ReplicationConfig
from jobs.errors import Forbidden, NotFound, RevisionConflict
from jobs.forward.questions import QuestionDesk
from jobs.records import CursorRecord, SyncRecord
from jobs.replication.judge import read_cursor
from jobs.replication.leader import SUBJECT, LeaderLink
from jobs.replication.messages import Batch, Change, TagBatch, TagChange
from jobs.store import prefix_end
from tests.support.catalogue import hash_of
from tests.support.cluster import Cluster, Member, cluster
from tests.support.loop import on_loop
from tests.support.plane import ADMIN, CLUSTER

SOURCE = "d" * 32
PREFIX = b"/data/copy/"
CURSOR = CursorRecord(source=SOURCE, prefix="/data/", target_prefix=PREFIX.decode(), is_tags=False, upstream=(SOURCE,))
CONFIG = ReplicationConfig(cluster=CLUSTER)


def links(made: Cluster) -> dict[str, LeaderLink]:
    """Let all members answer where they lead; return their ways to whoever does, by their names."""

    def join(member: Member) -> LeaderLink:
        QuestionDesk(SUBJECT, member.site, member.peers, lambda one: member.consensus.members.get(one) is not None)
        return LeaderLink(member.site, member.passage.reach)

    return {member.name: join(member) for member in made.members}


def batch(expected: int, position: int, *changes: Change) -> Batch:
    return Batch(CLUSTER, "s", expected, replace(CURSOR, position=position), changes)


@on_loop
async def test_a_member_that_does_not_lead_has_everything_done(tmp_path: Path) -> None:
    async with cluster(tmp_path, replication=CONFIG) as made:
        follower = made.followers[0]
        link = links(made)[follower.name]
        done = await link.apply(batch(0, 5, Change(b"a", b"1", 3), Change(b"b", b"2", 4)))
        assert done.put == 2
        revision = await link.reached()
        assert revision >= done.mod_revision
        await link.reach(revision)
        assert follower.store.count(PREFIX, prefix_end(PREFIX), limit=10) == 2
        record = SyncRecord(
            source="",
            target="",
            prefix="/data/",
            target_prefix="/data/copy/",
            is_tags=False,
            job=None,
            phase="following",
        )
        await link.set_sync("s", record)
        assert made.leader.site.control is not None
        assert [one.name for one in (await made.leader.site.control.replication.syncs(ADMIN)).syncs] == ["s"]


@on_loop
async def test_what_the_leader_refuses_comes_as_the_same_error(tmp_path: Path) -> None:
    async with cluster(tmp_path, replication=CONFIG) as made:
        link = links(made)[made.followers[0].name]
        with pytest.raises(RevisionConflict, match="not at 7"):
            await link.apply(batch(7, 5))
        with pytest.raises(Forbidden, match="is the system's"):
            await link.apply(Batch(CLUSTER, "s", 0, replace(CURSOR, target_prefix="/jobs/")))
        tags = replace(CURSOR, is_tags=True, prefix="", target_prefix="")
        with pytest.raises(NotFound):
            await link.apply_tags(TagBatch(CLUSTER, "t", 0, tags, (TagChange("a", hash_of(1), 1),)))


@on_loop
async def test_every_batch_is_done_once_while_leaders_change_and_members_are_cut_off(tmp_path: Path) -> None:
    chance = random.Random(7)
    async with cluster(tmp_path, replication=CONFIG) as made:
        ways, asker = links(made), made.members[2]
        over = asyncio.Event()

        async def disturb() -> None:
            while not over.is_set():
                leader = await made.settled()
                if chance.random() < 0.5:
                    to = chance.choice([member for member in made.members if member is not leader])
                    await leader.consensus.transfer(to.id)
                else:
                    # The asker's way to the leader goes while there may be a question on it.
                    other = chance.choice([member for member in made.members if member is not asker])
                    asker.cut(other)
                    await asyncio.sleep(0.15)
                    for member in made.members:
                        member.heal()
                await asyncio.sleep(0.05)

        disturbing = asyncio.ensure_future(disturb())
        expected = 0
        for number in range(1, 150):
            done = await ways[asker.name].apply(batch(expected, number, Change(b"%03d" % number, b"x", number)))
            assert done.mod_revision > expected
            expected = done.mod_revision
        over.set()
        await disturbing
        leader = await made.settled()
        rows, _ = leader.store.range(PREFIX, prefix_end(PREFIX), limit=1_000)
        assert [row[0] for row in rows] == [PREFIX + b"%03d" % number for number in range(1, 150)]
        assert {row[2] for row in rows} == {1}, "one was written twice"
        record, modified = read_cursor(leader.store, CLUSTER, "s")
        assert record is not None
        assert (record.position, record.conflicts, modified) == (149, 0, expected)
