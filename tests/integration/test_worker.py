"""A real `jobs-worker` process with its launcher, against a node's end of the protocol that the test drives."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from jobs.protocol import wire
from jobs.protocol.model import Reason
from jobs.workers.pressure import read_pressure
from tests.support import processes
from tests.support.nodepeer import STEP_S, NodePeer
from tests.support.workerprocess import WorkerProcess

END_S = 10.0


class Worker(WorkerProcess):
    """The process, and the node's end of its socket."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.node = NodePeer(directory)


@asynccontextmanager
async def worker(directory: Path, *arguments: str, **env: str) -> AsyncIterator[Worker]:
    made = Worker(directory)
    await made.node.listen()
    await made.start(*arguments, **env)
    try:
        yield made
    finally:
        await made.kill()


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(scenario())


def sleeper(before: str = "") -> tuple[list[str], str]:
    """Return a command that says `up` and sleeps in a child, and the argument by which both are known."""
    marker = f"9{secrets.randbelow(10**9):09}"
    return ["sh", "-c", f"{before}echo up; sleep $0 & wait", marker], marker


async def start_sleeper(made: Worker) -> tuple[wire.JobRef, processes.Ends]:
    """Give the worker a job that would run for ever; return it, and its processes to wait for."""
    argv, marker = sleeper()
    ref = made.node.assign(argv=argv)
    made.node.ack_output(await made.node.until_output(ref, b"up"))
    return ref, processes.Ends(processes.with_argument(marker))


def output_bytes(frame: wire.Output) -> int:
    return sum(len(data) for _, data in frame.segments)


# --- jobs ----------------------------------------------------------------------------------------------------------


def test_echo_hello_comes_back_with_its_metadata(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with worker(tmp_path, "--name", "w1", "--slots", "3") as made:
            me = await made.node.register()
            assert (me.worker, me.type, me.slots, me.running) == ("w1", "shell", 3, [])
            assert re.fullmatch("[0-9a-f]{32}", me.incarnation)
            ref = made.node.assign(argv=["echo", "hello"])
            outcome, stdout, stderr = await made.node.finished(ref)
            assert (stdout, stderr) == (b"hello\n", b"")
            assert (outcome.reason, outcome.exit_code, outcome.signal) == (None, 0, None)
            assert outcome.sandbox == me.sandbox
            assert outcome.stdout.bytes == outcome.stdout.stored_bytes == 6
            assert outcome.peak_memory_bytes > 0
            assert 0 < outcome.wall_s < END_S
            assert outcome.started_ms <= outcome.finished_ms

    run(scenario)


@pytest.mark.parametrize(
    ("payload", "reason", "exit_code", "stderr"),
    [
        ({"script": "echo oops >&2; exit 3"}, Reason.EXIT_CODE, 3, b"oops\n"),
        ({"argv": ["/no/such/program"]}, Reason.SPAWN_FAILED, None, b""),
        ({"script": "kill -SEGV $$"}, Reason.SIGNAL, None, b""),
    ],
)
def test_a_job_that_fails_says_how(
    tmp_path: Path, payload: dict[str, Any], reason: Reason, exit_code: int | None, stderr: bytes
) -> None:
    async def scenario() -> None:
        async with worker(tmp_path) as made:
            await made.node.register()
            outcome, _, said = await made.node.finished(made.node.assign(**payload))
            assert (outcome.reason, outcome.exit_code, said) == (reason, exit_code, stderr), outcome.message

    run(scenario)


def test_input_environment_and_files_reach_the_job(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with worker(tmp_path) as made:
            await made.node.register()
            ref = made.node.assign(
                script='cat; echo "$GREETING"; cat sub/data; pwd',
                stdin={"text": "from stdin\n"},
                env={"GREETING": "from env"},
                files={"sub/data": {"base64": "AAEC"}},
            )
            outcome, stdout, stderr = await made.node.finished(ref)
            assert stdout == b"from stdin\nfrom env\n\x00\x01\x02/work\n", stderr
            assert outcome.reason is None

    run(scenario)


UNRUNNABLE = [
    b"{}",
    b'{"argv":["true"],"script":"true"}',
    b'{"argv":["true"],"nice":1}',
    b'{"argv":["a\\u0000b"]}',
    b'{"argv":["true"],"files":{"../x":{"text":""}}}',
    b'{"argv":["true"],"stdin":{"base64":"!"}}',
    b'{"argv":["true"],"limits":{"tmp_bytes":1099511627776}}',
    b"\xff\xfe",
    b'{"script":"' + b"x" * (1 << 20) + b'"}',
]


def test_a_payload_that_cannot_run_is_refused_by_the_worker_itself(tmp_path: Path) -> None:
    """Given a node that checked nothing, the worker answers for each such job and goes on with the next."""

    async def scenario() -> None:
        async with worker(tmp_path, JOBS_WORKERS__SHELL__MAX_LIMITS__TMP_BYTES="1GiB") as made:
            await made.node.register()
            for raw in UNRUNNABLE:
                outcome, _, _ = await made.node.finished(made.node.assign(raw=raw))
                assert outcome.reason is Reason.INVALID_PAYLOAD, raw[:80]
                assert outcome.message
            _, stdout, _ = await made.node.finished(made.node.assign(argv=["echo", "on"]))
            assert stdout == b"on\n"

    run(scenario)


def test_output_stops_at_the_window_until_it_is_acknowledged(tmp_path: Path) -> None:
    size = 6_000_000

    async def scenario() -> None:
        async with worker(tmp_path, "--slots", "2") as made:
            await made.node.register()
            ref = made.node.assign(script=f"head -c {size} /dev/zero")
            frames: list[wire.Output] = []
            # Given a job that writes without end, when nothing is acknowledged while another comes and goes,
            while sum(map(output_bytes, frames)) < wire.OUTPUT_WINDOW_BYTES // 2:
                frames.append(await made.node.expect(wire.Output))
            other = made.node.assign(argv=["echo", "between"])
            while not isinstance(frame := await made.node.receive(), wire.Finished):
                assert isinstance(frame, wire.Output)
                assert output_bytes(frame) <= wire.OUTPUT_CHUNK_BYTES
                frames.append(frame)
            assert frame.job == other.job
            made.node.ack_finished(frame)
            # then the first has sent a window at most; and all of it once that is acknowledged.
            assert sum(map(output_bytes, frames)) <= wire.OUTPUT_WINDOW_BYTES
            made.node.ack_output(frames[-1])
            outcome, stdout, _ = await made.node.finished(ref)
            received = sum(map(output_bytes, frames)) + len(stdout)
            assert received == size == outcome.stdout.bytes == outcome.stdout.stored_bytes

    run(scenario)


def test_output_beyond_the_limit_is_counted_and_dropped(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with worker(tmp_path, JOBS_WORKERS__SHELL__LIMITS__OUTPUT_BYTES="100KiB") as made:
            await made.node.register()
            outcome, stdout, _ = await made.node.finished(made.node.assign(script="head -c 300000 /dev/zero"))
            assert len(stdout) == 100 << 10
            assert outcome.stdout.truncated
            assert (outcome.stdout.bytes, outcome.stdout.stored_bytes) == (300_000, 100 << 10)

    run(scenario)


def test_a_job_past_its_timeout_is_ended(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with worker(tmp_path) as made:
            await made.node.register()
            argv, marker = sleeper()
            outcome, stdout, _ = await made.node.finished(made.node.assign(argv=argv, timeout_s=0.3))
            assert outcome.reason is Reason.TIMEOUT
            assert stdout == b"up\n"
            assert 0.3 <= outcome.wall_s < END_S
            assert processes.with_argument(marker) == []

    run(scenario)


def test_a_cancelled_job_gets_its_grace_and_is_gone(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with worker(tmp_path) as made:
            await made.node.register()
            argv, marker = sleeper("trap 'echo bye; exit 0' TERM; ")
            ref = made.node.assign(argv=argv)
            made.node.ack_output(await made.node.until_output(ref, b"up"))
            made.node.send(wire.Cancel(job=ref.job, attempt=ref.attempt))
            outcome, stdout, _ = await made.node.finished(ref)
            assert (outcome.reason, stdout) == (Reason.CANCELLED, b"bye\n")
            assert processes.with_argument(marker) == []

    run(scenario)


def test_a_job_beyond_the_slots_waits_for_one(tmp_path: Path) -> None:
    """Given one slot and a job in it, when another is assigned and the first is fenced, then the other runs."""

    async def scenario() -> None:
        async with worker(tmp_path, "--slots", "1") as made:
            await made.node.register()
            first, gone = await start_sleeper(made)
            second = made.node.assign(argv=["echo", "second"])
            made.node.send(wire.Fence(job=first.job, attempt=first.attempt))
            _, stdout, _ = await made.node.finished(second)  # Nothing is reported of the first.
            assert stdout == b"second\n"
            await gone.wait(END_S)

    run(scenario)


# --- the node goes and comes -----------------------------------------------------------------------------------------


def test_a_job_outlives_its_node_and_loses_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with worker(tmp_path) as made:
            me = await made.node.register()
            marker = sleeper()[1]
            ref = made.node.assign(argv=["sh", "-c", "echo one; sleep $0; echo two; exit 4", marker])
            one = await made.node.until_output(ref, b"one")
            job = processes.Ends(processes.with_argument(marker))
            # When the node goes with output unacknowledged, and the job goes on without it to its end,
            await made.node.vanish()
            (sleep,) = processes.children_of(processes.with_argument(marker)[0])
            os.kill(sleep, signal.SIGKILL)
            await job.wait(END_S)
            # then the node that returns is told everything that it has not acknowledged, in order.
            await made.node.listen()
            again = await made.node.register()
            assert (again.incarnation, again.running) == (me.incarnation, [ref])
            assert await made.node.expect(wire.Output) == one
            outcome, stdout, _ = await made.node.finished(ref, ack=False)
            assert (outcome.exit_code, stdout) == (4, b"two\n")
            # A report whose acknowledgement is lost is made again; one that is acknowledged is forgotten.
            made.node.hang_up()
            assert (await made.node.register()).running == [ref]
            await made.node.until_output(ref, b"one")
            await made.node.finished(ref)
            ref = made.node.assign(argv=["true"])
            await made.node.finished(ref)
            made.node.hang_up()
            assert (await made.node.register()).running == []

    run(scenario)


def test_attempts_that_a_returning_node_fences_are_killed_and_forgotten(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with worker(tmp_path) as made:
            await made.node.register()
            ref, gone = await start_sleeper(made)
            made.node.hang_up()
            assert (await made.node.register(fenced=[ref])).running == [ref]
            await gone.wait(END_S)
            _, stdout, _ = await made.node.finished(made.node.assign(argv=["echo", "next"]))
            assert stdout == b"next\n"

    run(scenario)


def test_without_contact_for_the_lease_the_jobs_are_ended_before_the_worker_returns(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with worker(tmp_path) as made:
            await made.node.register(lease_ttl_s=1.0)
            done = made.node.assign(argv=["echo", "done"])
            await made.node.finished(done, ack=False)
            ref, gone = await start_sleeper(made)
            await made.node.vanish()
            await gone.wait(END_S)
            await made.node.listen()
            # It returns with what has ended: the result of one, the loss of the other.
            again = await made.node.register()
            assert again.running == [done, ref]
            outcome, stdout, _ = await made.node.finished(done)
            assert (outcome.reason, stdout) == (None, b"done\n")
            outcome, _, _ = await made.node.finished(ref)
            assert outcome.reason is Reason.WORKER_LOST
            # And it takes jobs again.
            await made.node.finished(made.node.assign(argv=["true"]))

    run(scenario)


def test_heartbeats_come_as_often_as_the_node_asked(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with worker(tmp_path) as made:
            await made.node.register(heartbeat_s=0.1)
            started = time.monotonic()
            for _ in range(3):
                await made.node.heartbeat()
            assert time.monotonic() - started >= 0.28

    run(scenario)


def test_a_worker_says_what_it_has_and_what_presses_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        counts = {"JOBS_WORKERS__SHELL__RESOURCES": '{"gpu": 2}'}
        # Any pressure at all is then too much
        limits = {"JOBS_WORKERS__SHELL__PRESSURE__CPU_PERCENT": "0"}
        async with worker(tmp_path, **counts, **limits) as made:
            assert (await made.node.register(heartbeat_s=0.1)).resources == {"gpu": 2}
            beat = await made.node.heartbeat()
            assert set(beat.pressure) == set(read_pressure())
            assert beat.pressed is (beat.pressure.get("cpu", 0.0) > 0.0)

    run(scenario)


def test_a_job_s_progress_reaches_the_node_before_its_end(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with worker(tmp_path) as made:
            await made.node.register()
            ref = made.node.assign(script='for i in 1 2 3; do echo "progress $i"; done >&3; echo "progress 99 x" >&3')
            told = await made.node.expect(wire.Progress)
            while told.percent < 99:
                told = await made.node.expect(wire.Progress)
            assert (told.job, told.attempt, told.message) == (ref.job, ref.attempt, "x")
            assert (await made.node.expect(wire.Finished)).outcome.reason is None

    run(scenario)


@pytest.mark.parametrize(
    "rubbish",
    [
        b"\xff\xff\xff\xffrubbish",
        b"\x00\x00\x00\x04\xc1\xc1\xc1\xc1",
        b"\x00\x00\x00\x00",
        wire.encode_frame(wire.Heartbeat()),
        wire.encode_frame(wire.Registered(node="n", heartbeat_s=1, lease_ttl_s=2, fenced=[])),
    ],
    ids=["oversize", "not msgpack", "empty", "a worker's frame", "registered twice"],
)
def test_rubbish_from_the_node_costs_the_connection_but_no_job(tmp_path: Path, rubbish: bytes) -> None:
    async def scenario() -> None:
        async with worker(tmp_path) as made:
            await made.node.register()
            ref, _ = await start_sleeper(made)
            made.node.send_bytes(rubbish)
            assert (await made.node.register()).running == [ref]
            made.node.send(wire.Cancel(job=ref.job, attempt=ref.attempt))
            outcome, _, _ = await made.node.finished(ref)
            assert outcome.reason is Reason.CANCELLED

    run(scenario)


@pytest.mark.parametrize(("code", "exit_code"), [("protocol", 75), ("unknown_type", 78), ("superseded", 75)])
def test_a_worker_that_is_refused_ends_with_its_jobs(tmp_path: Path, code: str, exit_code: int) -> None:
    async def scenario() -> None:
        async with worker(tmp_path) as made:
            await made.node.register()
            _, gone = await start_sleeper(made)
            made.node.send(wire.Refused(code=code, detail="go away"))
            assert await made.exit_code() == exit_code
            await gone.wait(END_S)
            assert f"go away ({code})" in made.log.read_text()

    run(scenario)


def test_a_refusal_that_passes_is_waited_out(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with worker(tmp_path) as made:
            await made.node.accept()
            made.node.send(wire.Refused(code="unavailable", detail="no leader yet"))
            await made.node.register()
            await made.node.finished(made.node.assign(argv=["true"]))

    run(scenario)


# --- ends ------------------------------------------------------------------------------------------------------------


def test_a_worker_that_is_stopped_lets_its_jobs_finish(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with worker(tmp_path) as made:
            await made.node.register()
            ref = made.node.assign(script="echo up; sleep 0.5; echo finished")
            made.node.ack_output(await made.node.until_output(ref, b"up"))
            made.process.terminate()
            await made.node.expect(wire.Draining)
            # An assignment that crossed the notice is still done: the worker waits for the node to confirm.
            await made.node.finished(ref)
            crossed = made.node.assign(argv=["echo", "crossed"])
            made.node.send(wire.DrainConfirmed())
            _, stdout, _ = await made.node.finished(crossed)
            assert stdout == b"crossed\n"
            assert await made.exit_code() == 0

    run(scenario)


def test_jobs_that_outlast_the_drain_are_ended_and_reported(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with worker(tmp_path, JOBS_WORKERS__SHELL__DRAIN_S="0.2") as made:
            await made.node.register()
            ref, gone = await start_sleeper(made)
            made.process.terminate()
            await made.node.expect(wire.Draining)
            made.node.send(wire.DrainConfirmed())
            outcome, _, _ = await made.node.finished(ref)
            assert outcome.reason is Reason.WORKER_LOST
            assert await made.exit_code() == 0
            await gone.wait(END_S)

    run(scenario)


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with worker(tmp_path) as made:
            await made.node.register()
            _, gone = await start_sleeper(made)
            made.process.terminate()
            await made.node.expect(wire.Draining)
            made.process.terminate()
            assert await made.exit_code() == 1
            await gone.wait(END_S)

    run(scenario)


def test_nothing_runs_on_after_the_worker_is_killed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with worker(tmp_path, "--slots", "2") as made:
            await made.node.register()
            launcher = processes.Ends([made.launcher()])
            _, first = await start_sleeper(made)
            _, second = await start_sleeper(made)
            made.process.kill()
            for gone in (first, second, launcher):
                await gone.wait(END_S)

    run(scenario)


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
def test_the_next_life_begins_when_nothing_of_the_former_one_runs(tmp_path: Path, how: signal.Signals) -> None:
    async def scenario() -> None:
        async with worker(tmp_path) as made:
            me = await made.node.register()
            for _ in range(2):
                await start_sleeper(made)
            launcher = made.launcher()
            left = [launcher, *processes.descendants(launcher)]
            assert len(left) >= 7, "two first processes, each with a shell and a sleep, and the launcher"
            # Given a launcher that is killed with its worker, or that cannot end the jobs when its worker is
            os.kill(launcher, how)
            made.process.kill()
            # When the next life is started at once
            await made.start()
            # Then nothing runs any more when it asks for work
            again = await made.node.accept()
            assert [pid for pid in left if processes.is_alive(pid)] == []
            assert (again.running, again.incarnation != me.incarnation) == ([], True)

    run(scenario)


def test_a_second_life_beside_the_first_waits_for_its_end(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with worker(tmp_path) as made:
            first = await made.node.register()
            process = made.process
            await made.start()
            second = made.process.pid
            _, stdout, _ = await made.node.finished(made.node.assign(argv=["echo", "undisturbed"]))
            assert stdout == b"undisturbed\n"
            process.kill()
            again = await made.node.accept()
            assert (first.pid, again.pid) == (process.pid, second)
            await process.wait()

    run(scenario)


def test_a_worker_without_its_launcher_ends(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with worker(tmp_path) as made:
            await made.node.register()
            _, gone = await start_sleeper(made)
            os.kill(made.launcher(), signal.SIGKILL)
            assert await made.exit_code() == 1
            await gone.wait(END_S)

    run(scenario)


def test_an_embedded_worker_dies_with_its_parent(tmp_path: Path) -> None:
    parent_code = (
        "import subprocess, sys, os\n"
        "child = subprocess.Popen([sys.executable, '-m', 'jobs.worker', '--type', 'shell', '--die-with-parent',"
        " str(os.getpid()), '--embedded', sys.argv[1]])\n"
        "child.wait()\n"
    )

    async def scenario() -> None:
        made = Worker(tmp_path)
        await made.node.listen()
        parent = await asyncio.create_subprocess_exec(sys.executable, "-c", parent_code, str(tmp_path))
        me = await made.node.register()
        child = processes.Ends([me.pid])
        _, gone = await start_sleeper(made)
        parent.kill()
        await parent.wait()
        await gone.wait(END_S)
        await child.wait(END_S)

    run(scenario)


def test_the_service_manager_is_told(tmp_path: Path) -> None:
    path = tmp_path / "notify"

    async def scenario() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(str(path))
            manager.setblocking(False)
            loop = asyncio.get_running_loop()

            async def said(text: bytes) -> bytes:
                async with asyncio.timeout(STEP_S):
                    while text not in (message := await loop.sock_recv(manager, 4096)):
                        pass
                return message

            async with worker(tmp_path, NOTIFY_SOCKET=str(path), WATCHDOG_USEC="200000") as made:
                await said(b"STATUS=waiting for the node")
                await made.node.register(heartbeat_s=0.05)
                assert b"STATUS=ready: 0 of" in await said(b"READY=1")
                await said(b"WATCHDOG=1")
                ref, _ = await start_sleeper(made)
                await said(b"STATUS=ready: 1 of")
                made.process.terminate()
                await said(b"STOPPING=1")
                made.node.send(wire.Cancel(job=ref.job, attempt=ref.attempt))

    run(scenario)


def test_a_worker_without_a_node_does_not_keep_the_service_manager_waiting(tmp_path: Path) -> None:
    path = tmp_path / "notify"

    async def scenario() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(str(path))
            manager.setblocking(False)
            heard: list[bytes] = []
            made = Worker(tmp_path)
            await made.start(NOTIFY_SOCKET=str(path))
            try:
                # Given no node, the worker is ready all the same, and says how things are
                async with asyncio.timeout(STEP_S):
                    while not any(b"READY=1" in one for one in heard):
                        heard.append(await asyncio.get_running_loop().sock_recv(manager, 4096))
                assert b"STATUS=no connection" in heard[-1]
                # When a node comes, it has a worker, and is told of none a second time
                await made.node.listen()
                await made.node.register(heartbeat_s=0.05)
                async with asyncio.timeout(STEP_S):
                    while b"STATUS=ready: 0 of" not in heard[-1]:
                        heard.append(await asyncio.get_running_loop().sock_recv(manager, 4096))
                assert sum(b"READY=1" in one for one in heard) == 1
            finally:
                await made.kill()

    run(scenario)
