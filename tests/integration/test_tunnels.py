"""Workers of a node that does not lead: their connections go on to the one that does."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from pathlib import Path

from jobs.protocol import wire
from jobs.protocol.ids import JobId
from jobs.service import WorkerProcess
from tests.support import processes
from tests.support.api import job
from tests.support.cluster import STEP_S, Cluster, Member, cluster, until
from tests.support.loop import on_loop
from tests.support.peer import LEAVES_LATER, WorkerPeer
from tests.support.workerprocess import worker_process


async def workers(member: Member) -> list[dict[str, object]]:
    found: list[dict[str, object]] = (await member.ask("GET", "/v1/workers")).json()["workers"]
    return found


async def submit(member: Member, *argv: str, **fields: object) -> JobId:
    answer = await member.change("POST", "/v1/jobs", job(*argv, **fields))
    assert answer.status == 201, answer
    return JobId(answer.json()["job"]["id"])


async def final(member: Member, one: JobId) -> dict[str, object]:
    answer = await member.ask("GET", f"/v1/jobs/{one}/wait?timeout_s={STEP_S:g}")
    found: dict[str, object] = answer.json()
    assert found["state"] in ("completed", "failed"), found
    return found


async def lead(made: Cluster, member: Member) -> None:
    """Hand leadership over."""
    if member.site.control is None:
        await made.leader.consensus.transfer(member.id)
    await until(lambda: member.site.control is not None)
    await made.settled()


@on_loop
async def test_a_worker_of_a_follower_runs_jobs_and_is_known_by_its_node(tmp_path: Path) -> None:
    async with cluster(tmp_path, worker_lease_s=600.0) as made:
        follower, other = made.followers
        peer = WorkerPeer("w", slots=2)
        answer = await peer.register(follower.worker_socket)
        assert isinstance(answer, wire.Registered)
        assert answer.node == follower.name
        (seen,) = await workers(other)
        assert (seen["id"], seen["node"], seen["state"]) == ("w", follower.name, "ready")
        one = await submit(other, "true", labels={"a": "b"})
        item = await peer.assigned()
        assert item.job == one
        peer.output(item, 0, (1, b"x" * 200_000))
        assert (await peer.expect(wire.OutputAck)).seq == 0
        peer.send(wire.Heartbeat())
        peer.finish(item, seq=1)
        assert (await peer.expect(wire.FinishedAck)).accepted
        assert (await final(follower, one))["state"] == "completed"
        result = (await follower.ask("GET", f"/v1/jobs/{one}/result")).json()
        assert result["execution"]["node"] == follower.name
        assert len(result["stdout"]["text"]) == 64 << 10
        await peer.close()
        await until(lambda: made.leader.site.control.gateway.connections == set())  # type: ignore[union-attr]
        (seen,) = await workers(other)
        assert seen["state"] == "lost"


@on_loop
async def test_a_worker_of_a_node_that_does_not_reach_the_leader_runs_jobs_all_the_same(tmp_path: Path) -> None:
    async with cluster(tmp_path, worker_lease_s=600.0) as made:
        leader, (home, other) = made.leader, made.followers
        home.cut(leader)
        await until(lambda: home.consensus.leader is None and home.site.leader == leader.id)
        peer = WorkerPeer("w")
        await peer.register(home.worker_socket)
        one = await submit(other, "true")
        item = await peer.assigned()
        peer.output(item, 0, (1, b"x" * 200_000))
        assert (await peer.expect(wire.OutputAck)).seq == 0
        peer.finish(item, seq=1)
        assert (await peer.expect(wire.FinishedAck)).accepted
        assert (await final(home, one))["state"] == "completed"
        await peer.close()
        await until(lambda: leader.site.control.gateway.connections == set())  # type: ignore[union-attr]


@on_loop
async def test_a_worker_survives_changes_of_leaders(tmp_path: Path) -> None:
    """Given a worker with a job, when leadership goes round, then its connection ends each time, it comes back as the
    same life, keeps its job, and the report at the end is taken once."""
    async with cluster(tmp_path, worker_lease_s=600.0) as made:
        home = made.followers[0]
        peer = WorkerPeer("w")
        await peer.register(home.worker_socket)
        one = await submit(home, "true")
        item = await peer.assigned()
        held = [wire.JobRef(job=item.job, attempt=item.attempt)]
        for leader in (made.followers[1], home, made.leader):
            await lead(made, leader)
            with suppress(EOFError, ConnectionError):
                while True:
                    await peer.receive()
            answer = await peer.register(home.worker_socket, held)
            assert isinstance(answer, wire.Registered), answer
            assert answer.fenced == []
        peer.finish(item)
        assert (await peer.expect(wire.FinishedAck)).accepted
        seen = await final(home, one)
        assert (seen["state"], seen["attempt"]) == ("completed", 1)


@on_loop
async def test_a_worker_waits_at_the_door_until_a_leader_is_known(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        follower = made.followers[0]
        follower.cut_off()
        await until(lambda: follower.site.leader is None)
        peer = WorkerPeer("w")
        registering = asyncio.create_task(peer.register(follower.worker_socket))
        await until(lambda: len(follower.door.guests) == 1)
        follower.heal()
        assert isinstance(await registering, wire.Registered)


@on_loop
async def test_a_dead_worker_of_a_follower_is_lost_at_once(tmp_path: Path) -> None:
    """Given a worker's process on a node that does not lead, when it is killed, then the leader gives its job to
    another at once, long before the lease ends; also when the leader is another by then."""
    async with cluster(tmp_path, worker_lease_s=600.0) as made:
        home = made.followers[0]
        for change in (False, True):
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-c", LEAVES_LATER, str(home.worker_socket),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            assert child.stdout is not None
            assert await child.stdout.readline() == b"registered\n"
            assert len(await workers(home)) == 1
            if change:
                next_leader = next(one for one in made.members if one is not home and one.site.control is None)
                await lead(made, next_leader)
                assert [item["state"] for item in await workers(home)] == ["lost"]
            child.kill()
            await child.wait()
            async with asyncio.timeout(STEP_S):
                while await workers(home):
                    await asyncio.sleep(0.01)


@on_loop
async def test_workers_of_a_partitioned_node_end_their_jobs_when_their_lease_ends(tmp_path: Path) -> None:
    """Given a job on a worker of a node that is alive and reaches nobody, when the lease is over, then no process of
    the job is left there, and the job is run again elsewhere; the worker comes back when the partition has healed."""
    marker = "88123456"
    async with cluster(tmp_path, worker_lease_s=2.0) as made:
        home, other = made.followers
        async with worker_process(tmp_path / home.name, "--name", "cut"):
            one = await submit(other, "sh", "-c", "echo up; sleep $0", marker, retry={"max_attempts": 2, "delay_s": 0})
            await until(lambda: bool(processes.with_argument(marker)))
            gone = processes.Ends(processes.with_argument(marker))
            home.cut_off()
            await gone.wait(STEP_S)
            async with worker_process(tmp_path / other.name, "--name", "free"):
                async with asyncio.timeout(STEP_S):
                    while (await other.ask("GET", f"/v1/jobs/{one}")).json()["job"]["worker"] != "free":
                        await asyncio.sleep(0.05)
                home.heal()
                async with asyncio.timeout(STEP_S):
                    while sorted((item["id"], item["state"]) for item in await workers(other)) != [  # type: ignore[type-var]
                        ("cut", "ready"),
                        ("free", "ready"),
                    ]:
                        await asyncio.sleep(0.05)
                await other.ask("POST", f"/v1/jobs/{one}/cancel")
                seen = await final(other, one)
                assert (seen["reason"], seen["attempt"]) == ("cancelled", 2)
                assert processes.with_argument(marker) == []


@on_loop
async def test_a_worker_that_takes_nothing_holds_up_nobody(tmp_path: Path) -> None:
    """Given a worker of a follower that reads nothing, when it is given jobs with large payloads, then others go on."""
    async with cluster(tmp_path, worker_lease_s=600.0) as made:
        home, other = made.followers
        deaf, able = WorkerPeer("deaf", slots=64), WorkerPeer("able", slots=1)
        await deaf.register(home.worker_socket)
        for _ in range(30):
            await submit(other, "true", *["x" * 100_000] * 9)
        await able.register(home.worker_socket, labels={"able": "yes"})
        one = await submit(other, "true", requires={"labels": {"able": "yes"}})
        item = await able.assigned()
        assert item.job == one
        able.finish(item)
        assert (await able.expect(wire.FinishedAck)).accepted
        deaf.writer.transport.abort()


@on_loop
async def test_the_door_names_a_process_by_more_than_its_pid(tmp_path: Path) -> None:
    async with cluster(tmp_path, 1) as made:
        (member,) = made.members
        peer = WorkerPeer("w")
        await peer.register(member.worker_socket)
        (guest,) = member.door.guests
        assert isinstance(guest.process, WorkerProcess)
        assert (guest.process.pid, guest.process.uid) == (os.getpid(), os.getuid())
        assert guest.process.process.startswith(f"{os.getpid()}.")
        await peer.close()
