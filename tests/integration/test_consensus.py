"""Consensus of one member over a real log and store: group commit, restarts, snapshots, failures."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from jobs._native import Log, Store
from jobs.consensus import MAX_PENDING_TXNS, Consensus, ConsensusConfig, ConsensusError
from jobs.errors import StorageFull, Unavailable
from jobs.store import EQ, Put, Txn, VersionIs
from tests.support.disks import small_disk
from tests.support.member import Member


def test_what_was_acknowledged_is_there_after_a_restart_and_the_term_grows(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Member(tmp_path) as member:
            assert member.consensus.is_leader
            term = member.consensus.term
            for number in range(10):
                assert await member.put(f"k{number}") == number + 1
        async with Member(tmp_path) as member:
            assert member.consensus.term > term
            assert member.store.revision == 10
            assert await member.put("more") == 11

    asyncio.run(scenario())


def test_proposals_of_one_moment_share_a_command_and_an_fsync(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Member(tmp_path) as member:
            fsyncs, commands = member.consensus.fsyncs, member.consensus.commands
            revisions = await asyncio.gather(*(member.put(f"k{number}") for number in range(500)))
            assert sorted(revisions) == list(range(1, 501))
            assert member.consensus.commands - commands == 1
            assert member.consensus.fsyncs - fsyncs == 1

    asyncio.run(scenario())


def test_a_large_lot_is_cut_into_bounded_commands_in_order(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Member(tmp_path) as member:
            futures = [member.consensus.propose(Txn(then=(Put(b"k", b"x" * 500_000),)), 500_000) for _ in range(40)]
            results = await asyncio.gather(*futures)
            assert [result.revision for result in results] == list(range(1, 41))
            assert 5 <= member.consensus.commands <= 8

    asyncio.run(scenario())


def test_a_transaction_whose_compare_fails_changes_nothing_and_says_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Member(tmp_path) as member:
            absent = Txn((VersionIs(b"k", EQ, 0),), (Put(b"k", b"1"),))
            first, second = await asyncio.gather(*(member.consensus.propose(absent) for _ in range(2)))
            assert (first.succeeded, second.succeeded, second.revision) == (True, False, 1)

    asyncio.run(scenario())


def test_more_than_the_bound_is_refused_and_the_rest_accepted(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Member(tmp_path) as member:
            futures = [member.consensus.propose(Txn(then=(Put(b"k", b""),))) for _ in range(MAX_PENDING_TXNS + 1)]
            with pytest.raises(Unavailable):
                await futures[-1]
            await asyncio.gather(*futures[:-1])
            assert member.store.revision == MAX_PENDING_TXNS

    asyncio.run(scenario())


def test_what_comes_while_the_last_write_is_finished_is_answered_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        late: list[asyncio.Future[int]] = []
        async with Member(tmp_path) as member:
            synced = member.consensus._synced

            async def slowly() -> None:
                late.append(asyncio.ensure_future(member.put("late")))
                await asyncio.sleep(0)
                await synced()

            monkeypatch.setattr(member.consensus, "_synced", slowly)
        (outcome,) = await asyncio.wait_for(asyncio.gather(*late, return_exceptions=True), 20)
        assert isinstance(outcome, Unavailable)

    asyncio.run(scenario())


def test_snapshots_bound_the_log(tmp_path: Path) -> None:
    async def scenario() -> None:
        config = ConsensusConfig(snapshot_log_bytes=4 << 20)
        async with Member(tmp_path, config) as member:
            for number in range(64):
                await member.consensus.propose(Txn(then=(Put(b"k%d" % (number % 4), b"x" * 500_000),)), 500_000)
            await member.consensus.snapshot()
            assert member.log.size_bytes < 12 << 20
            assert member.log.first_index > 1
            revision = member.store.revision
        files = sum(entry.stat().st_size for entry in (tmp_path / "log").iterdir())
        assert files < 24 << 20
        async with Member(tmp_path, config) as member:
            assert member.store.revision == revision
            assert await member.put("after") == revision + 1

    asyncio.run(scenario())


def test_a_lost_store_is_told_again_by_the_log(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Member(tmp_path) as member:
            await asyncio.gather(*(member.put(f"k{number}", str(number)) for number in range(3_000)))
            before = member.store.state_hash()
        for file in (tmp_path / "store").iterdir():
            file.unlink()
        async with Member(tmp_path) as member:
            assert member.store.state_hash() == before

    asyncio.run(scenario())


def test_a_log_that_does_not_belong_to_the_store_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Member(tmp_path) as member:
            await member.put("k")
        for file in (tmp_path / "log").iterdir():
            file.unlink()
        log, store = Log(str(tmp_path / "log")), Store(str(tmp_path / "store"))
        with pytest.raises(ConsensusError, match=r"the store has applied entry .* but the log ends at"):
            Consensus("one", log, store)

    asyncio.run(scenario())


def test_an_entry_that_the_library_would_unpickle_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Member(tmp_path) as member:
            member.consensus._member.raft._applyCommand(b"\x02" + b"cos\nsystem\n.", None)
            failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
            member.consensus.on_failure = failed.set_result
            member.consensus.schedule()
            async with asyncio.timeout(10):
                assert "is of kind 02" in str(await failed)
            with pytest.raises(Unavailable):
                await member.put("k")

    asyncio.run(scenario())


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_refuses_commands_and_they_go_on_when_there_is_room(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Member(tmp_path) as member:
            large = Txn(then=(Put(b"k", b"x" * 500_000),))
            done = [await asyncio.wait([member.consensus.propose(large, 500_000)]) for _ in range(100)]
            failures = [future.exception() for finished, _ in done for future in finished]
            written = failures.count(None)
            assert 5 < written < 100
            assert all(isinstance(failure, StorageFull) for failure in failures[written:])
            assert member.store.revision == written
            (tmp_path / "log" / "filler").unlink()
            assert await member.put("after") == written + 1
        async with Member(tmp_path) as member:
            assert member.store.revision == written + 1

    with small_disk(tmp_path / "log"):
        asyncio.run(scenario())


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_what_a_full_store_could_not_apply_is_applied_and_answered_when_there_is_room(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Member(tmp_path) as member:
            large = Txn(then=(Put(b"k", b"x" * 500_000),))
            written = 0
            while member.consensus.no_room is None:
                accepted = member.consensus.propose(large, 500_000)
                await asyncio.wait([accepted], timeout=0.2)
                written += 1
                assert written < 200
            # Given an entry that is committed and that the store has no room for, it is neither refused nor answered
            assert not accepted.done()
            # When more comes, that is refused, and changes nothing
            for _ in range(3):
                with pytest.raises(StorageFull, match="store"):
                    await member.consensus.propose(large)
            assert member.log.last_index == member.store.applied_index + 1
            # Then there is room again: the entry is applied and answered, and others follow
            (tmp_path / "store" / "filler").unlink()
            async with asyncio.timeout(10):
                assert (await accepted).revision == written
            assert member.consensus.no_room is None
            assert await member.put("after") == written + 1
        async with Member(tmp_path) as member:
            assert member.store.revision == written + 1

    with small_disk(tmp_path / "store"):
        asyncio.run(scenario())


WRITER = """
    import asyncio, sys
    from jobs._native import Log, Store
    from jobs.consensus import Consensus
    from jobs.store import Put, Txn

    async def main():
        directory, base = sys.argv[1], int(sys.argv[2])
        consensus = Consensus("one", Log(directory + "/log"), Store(directory + "/store"))
        await consensus.start()
        async def write(lane):
            number = base
            while True:
                await consensus.propose(Txn(then=(Put(b"%d/%d" % (lane, number), b"x"),)))
                sys.stdout.write(f"{lane}/{number}\\n")
                sys.stdout.flush()
                number += 1
        await asyncio.gather(*(write(lane) for lane in range(8)))

    asyncio.run(main())
"""


def test_kill_9_under_load_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    """The writer is killed after a growing number of acknowledgements, each time over the same directory."""
    kills = 4 * int(os.environ.get("JOBS_TEST_SCALE", "1"))
    acknowledged: set[bytes] = set()
    for kill in range(kills):
        writer = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), str(tmp_path), str(kill * 1_000_000)],
            stdout=subprocess.PIPE,
        )
        assert writer.stdout is not None
        for _ in range(50 + 137 * kill % 800):
            acknowledged.add(writer.stdout.readline().strip())
        writer.kill()
        acknowledged.update(line.strip() for line in writer.stdout.read().split(b"\n")[:-1])
        writer.wait()

    async def check() -> None:
        async with Member(tmp_path) as member:
            lost = [key for key in acknowledged if member.store.get(key) is None]
            assert not lost, f"{len(lost)} of {len(acknowledged)} acknowledged writes lost: {lost[:5]}"

    asyncio.run(check())
