"""Many jobs, workers and launchers killed among them: nothing is left behind. `JOBS_TEST_SCALE=34` is 10,000 jobs."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import signal
import tempfile
from collections import Counter
from pathlib import Path

from jobs import AsyncClient, JobState, Reason, Retry, shell_job
from tests.support import processes
from tests.support.nodeprocess import node_process
from tests.support.waiting import until
from tests.support.workerprocess import WorkerProcess, worker_process

JOBS = 300 * int(os.environ.get("JOBS_TEST_SCALE", "1"))
KILL_EVERY = 100
"""Jobs that end between two kills."""
SLOTS = 8
STEP_S = 120.0
AGAIN = Retry(max_attempts=50, delay_s=0, reasons=[Reason.WORKER_LOST])

SCRIPTS = (
    "true",
    "echo hello; echo error >&2",
    "exit 3",
    "kill -9 $$",
    "sleep 0.05",
    "(sleep 1000 &) ; (setsid sleep 1000 &) ; echo left",
    "trap '' TERM; sleep 0.1",
    "head -c 200000 /dev/zero > /work/file; mkfifo /tmp/fifo; ln -s / /work/link",
    "yes | head -c 300000",
)


def mounts(own: Path) -> set[str]:
    """Return where something is mounted, but for what other tests have in their directories and networks."""
    places = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    others = (tempfile.gettempdir() + "/", "/run/netns")
    return {place for place in places if place.startswith(f"{own}/") or not place.startswith(others)}


def keys() -> set[str]:
    """Return the kernel's keys by what they are, each with its number among its like."""
    counted = Counter(" ".join(line.split()[5:9]) for line in Path("/proc/keys").read_text().splitlines())
    return {f"key {what} {number}" for what, count in counted.items() for number in range(count)}


def cgroups() -> set[str]:
    return {str(path) for path in Path("/sys/fs/cgroup").rglob("*") if path.is_dir()}


def of_the_host(own: Path) -> set[str]:
    return mounts(own) | keys() | cgroups()


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


async def kill(worker: WorkerProcess, chance: random.Random, temporary: str) -> None:
    """Kill the worker, or its launcher, and start the next life."""
    if chance.random() < 0.5:
        worker.process.kill()
    else:
        os.kill(worker.launcher(), signal.SIGKILL)
    await worker.exit_code()
    await worker.start("--slots", str(SLOTS), TMPDIR=temporary)


def test_many_jobs_and_kills_leave_nothing_behind(tmp_path: Path) -> None:
    seed = int(os.environ.get("JOBS_TEST_SEED", secrets.randbits(32)))
    print(f"JOBS_TEST_SEED={seed}")
    chance = random.Random(seed)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    marker = f"endurance-{secrets.token_hex(8)}"

    async def scenario() -> None:
        async with (
            node_process(tmp_path) as node,
            worker_process(tmp_path, "--slots", str(SLOTS), TMPDIR=str(temporary)) as worker,
            AsyncClient(str(node.socket), patience_s=STEP_S) as client,
        ):
            # Given what is there when a first job has run
            assert (await client.run(shell_job(["true"]), timeout_s=STEP_S)).state is JobState.COMPLETED
            before = of_the_host(tmp_path)
            node_files, launcher_files = descriptors(node.process.pid), descriptors(worker.launcher())
            # When many jobs of all kinds run while workers and launchers are killed
            ended = 0
            while ended < JOBS:
                lot = [shell_job(["sh", "-c", chance.choice(SCRIPTS), marker], retry=AGAIN) for _ in range(KILL_EVERY)]
                made = [one.job.id async for one in client.submit_many(lot)]
                await client.wait(chance.choice(made), STEP_S)
                await kill(worker, chance, str(temporary))
                for job in made:
                    found = await client.wait(job, STEP_S)
                    assert found.state.is_final, found
                    assert found.reason in (None, Reason.EXIT_CODE, Reason.SIGNAL), found
                ended += len(made)
            # Then nothing of them is left: no process, mount, cgroup, key, descriptor, file
            assert (await client.run(shell_job(["true"]), timeout_s=STEP_S)).state is JobState.COMPLETED
            assert processes.with_argument(marker) == []
            # (what is there while another test runs beside this one goes with that)
            until(lambda: of_the_host(tmp_path) <= before, STEP_S, "something of the host's is left")
            # (what has just been closed goes at its end: a job's pipes, a client's streams; and the launcher keeps
            # as many network namespaces for the next jobs as run at once)
            await asyncio.to_thread(
                until,
                lambda: (
                    descriptors(worker.launcher()) <= launcher_files + 2 * SLOTS
                    and descriptors(node.process.pid) <= node_files + 2
                ),
                STEP_S,
                "the launcher or the node keeps what it has opened",
            )
            (lives,) = await client.workers()
            assert lives.running == 0
        left = [str(path.relative_to(temporary)) for path in temporary.rglob("*")]
        assert left == []

    asyncio.run(scenario())
