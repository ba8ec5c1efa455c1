"""How fast isolated commands start, at each level, beside what the kernel alone costs and beside others' sandboxes.

    python -m benchmarks.spawn_rate [--seconds 3] [--slots 4] [--turns 3] [--json]

`posix_spawn` and `bare clone` start /bin/true from a small program (spawner.c), the latter in the same new namespaces
as a job has; no mounts, no filter, no limits, no output. bubblewrap and nsjail, where they are, get the same namespaces
and a like view of the files; bubblewrap once also what it can of the rest of a job's walls: the filter, what is covered
of /proc, no user namespaces within. None has Landlock, limits and output. A job without a network may have a network
namespace that another has had; one with a loopback has a new one, as all others here. All by turns, N at a time, as a
worker's slots are; the median of the turns counts.
"""

from __future__ import annotations

import argparse
import json
import select
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from jobs import _native
from jobs.protocol.ids import Attempt, JobId
from jobs.workers.sandbox import Configure, End, Event, Exited, Launcher, Spawn, Started

CLONE_NEW = {
    "mount": 0x00020000,
    "cgroup": 0x02000000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "user": 0x10000000,
    "pid": 0x20000000,
    "net": 0x40000000,
}
ALL = sum(CLONE_NEW.values())
TRUE = "/bin/true"
RUNNING = 20
"""Jobs that run at the same time when their memory is measured."""
BUBBLEWRAP = shlex.split(
    "bwrap --unshare-all --unshare-user --uid 1000 --gid 1000 --hostname job --die-with-parent --new-session "
    "--clearenv --cap-drop ALL --ro-bind /usr /usr --symlink usr/bin /bin --symlink usr/lib /lib "
    "--symlink usr/lib64 /lib64 --ro-bind /etc /etc --proc /proc --dev /dev "
    "--size 268435456 --tmpfs /work --tmpfs /tmp --chdir /work"
)
MASKED = ("kcore", "keys", "timer_list", "sysrq-trigger")
LIKE_A_JOB = [
    *(word for name in MASKED if Path("/proc", name).exists() for word in ("--ro-bind", "/dev/null", f"/proc/{name}")),
    *shlex.split("--ro-bind /proc/sys /proc/sys --disable-userns --seccomp 9"),
]
NSJAIL = shlex.split(
    "nsjail --quiet --mode o --user 1000 --group 1000 --hostname job --disable_rlimits --iface_no_lo "
    "--bindmount_ro /usr --bindmount_ro /etc --symlink usr/bin:/bin --symlink usr/lib:/lib --symlink usr/lib64:/lib64 "
    "--tmpfsmount /tmp --tmpfsmount /work --cwd /work --"
)
Network = Literal["none", "loopback", "host"]


class Spawner:
    """The small program that starts others, compiled for this run."""

    def __init__(self, directory: Path, at_once: int) -> None:
        self._program = directory / "spawner"
        self._at_once = at_once
        source = Path(__file__).with_name("spawner.c")
        subprocess.run(["cc", "-O2", "-o", str(self._program), str(source)], check=True)
        self._filter = directory / "filter"
        """What a job may call, open in each program as number 9."""
        launcher = directory / "jobs-launcher"
        launcher.write_bytes(_native.launcher_program())
        launcher.chmod(0o755)
        self._filter.write_bytes(subprocess.run([launcher, "--filter"], check=True, stdout=subprocess.PIPE).stdout)

    def rate(self, flags: int, seconds: float, argv: list[str]) -> float:
        command = [str(self._program), f"{flags:x}", str(self._at_once), str(seconds), str(self._filter), *argv]
        return float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


class Jobs:
    """Keeps a launcher's slots full, or runs one job at a time."""

    def __init__(self, launcher: Launcher, network: Network = "none") -> None:
        self.launcher = launcher
        self._network: Network = network
        self._count = 0

    def spawn(self, argv: list[str]) -> Spawn:
        self._count += 1
        # Its directory at level `none`, which is made for it and deleted with the others at the end.
        name = str(self._count) if self.launcher.ready.level == "none" else None
        return Spawn(job=JobId(str(self._count)), attempt=Attempt(1), argv=argv, network=self._network, directory=name)

    def _events(self) -> list[Event]:
        select.select([self.launcher], [], [])
        return self.launcher.receive()

    def _ended(self) -> int:
        ended = [event for event in self._events() if isinstance(event, Exited)]
        for event in ended:
            if event.outcome.reason is not None:
                raise RuntimeError(f"job failed: {event.outcome}")
        return len(ended)

    def first_byte_s(self, argv: list[str]) -> float:
        """Return how long it takes until the output of a job, which is ended then, has come."""
        begin = time.perf_counter()
        self.launcher.send([self.spawn(argv)])
        while not self._ended():
            pass
        return time.perf_counter() - begin

    def rate(self, argv: list[str], at_once: int, seconds: float) -> float:
        begin, running, done = time.perf_counter(), 0, 0
        while (elapsed := time.perf_counter() - begin) < seconds or running:
            if elapsed < seconds and running < at_once:
                self.launcher.send([self.spawn(argv) for _ in range(at_once - running)])
                running = at_once
            ended = self._ended()
            running -= ended
            done += ended
        return done / (time.perf_counter() - begin)

    def start(self, argv: list[str], count: int) -> list[int]:
        """Start jobs that run on; return the pids of their first processes."""
        self.launcher.send([self.spawn(argv) for _ in range(count)])
        pids: list[int] = []
        while len(pids) < count:
            pids += [event.pid for event in self._events() if isinstance(event, Started)]
        return pids

    def end_all(self) -> None:
        first = self._count - RUNNING + 1
        ends = range(first, self._count + 1)
        self.launcher.send([End(job=JobId(str(number)), attempt=Attempt(1), now=True) for number in ends])
        left = RUNNING
        while left:
            left -= sum(isinstance(event, Exited) for event in self._events())


def own_memory_bytes(pid: int) -> int:
    """Return the memory of a process that it shares with no other."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Private_"))


def measure(seconds: float, slots: int) -> dict[str, float]:
    """Return the figures of the default level: rates per second, latencies in milliseconds."""
    launcher = Launcher.start(Configure(slots=slots))
    try:
        jobs = Jobs(launcher)
        jobs.rate([TRUE], slots, 0.3)
        figures = {"sandbox_per_s": jobs.rate([TRUE], slots, seconds)}
        latencies = sorted(jobs.first_byte_s(["echo", "hello"]) * 1000 for _ in range(max(50, int(seconds * 100))))
    finally:
        launcher.close()
    figures["echo_p50_ms"] = statistics.median(latencies)
    figures["echo_p99_ms"] = latencies[int(len(latencies) * 0.99)]
    return figures


def compare(seconds: float, slots: int, turns: int, directory: Path) -> dict[str, float]:
    spawner = Spawner(directory, slots)
    directory.chmod(0o755)  # without walls, jobs of other users go through it
    (directory / "none").mkdir()
    configurations: dict[str, tuple[Configure, Network]] = {
        "strict": (Configure(slots=slots), "none"),
        "strict, with a loopback": (Configure(slots=slots), "loopback"),
        "standard, the host's network": (Configure(slots=slots, allow_host_network=True), "host"),
        "none": (Configure(slots=slots, level="none", directories=str(directory / "none")), "none"),
    }
    levels = {name: Jobs(Launcher.start(config), network) for name, (config, network) in configurations.items()}
    kinds: dict[str, Callable[[], float]] = {
        "posix_spawn": lambda: spawner.rate(0, seconds, [TRUE]),
        "bare clone, all namespaces": lambda: spawner.rate(ALL, seconds, [TRUE]),
        "bare clone, all but the network": lambda: spawner.rate(ALL - CLONE_NEW["net"], seconds, [TRUE]),
    }
    wrappers = {"bwrap": BUBBLEWRAP, "bwrap, like a job": [*BUBBLEWRAP, *LIKE_A_JOB], "nsjail": NSJAIL}
    for name, wrapper in wrappers.items():
        if path := shutil.which(wrapper[0]):
            argv = [path, *wrapper[1:], TRUE]
            kinds[name] = lambda argv=argv: spawner.rate(0, seconds, argv)  # type: ignore[misc]
    for name, jobs in levels.items():
        kinds[name] = lambda jobs=jobs: jobs.rate([TRUE], slots, seconds)  # type: ignore[misc]
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    latencies: dict[str, list[float]] = {name: [] for name in levels}
    try:
        for _ in range(turns):
            for name, once in kinds.items():
                rates[name].append(once())
            for name, jobs in levels.items():
                latencies[name] += [jobs.first_byte_s(["echo", "hello"]) * 1000 for _ in range(int(seconds * 100))]
        memory = memory_of_a_job()
    finally:
        for jobs in levels.values():
            jobs.launcher.close()
    figures = {f"{name}, starts/s": statistics.median(found) for name, found in rates.items()}
    for name, found in latencies.items():
        found.sort()
        figures[f"{name}, echo p50 ms"] = statistics.median(found)
        figures[f"{name}, echo p99 ms"] = found[int(len(found) * 0.99)]
    strict = figures["strict, starts/s"]
    for name in [name for name in kinds if name != "strict"]:
        figures[f"strict / {name}"] = strict / figures[f"{name}, starts/s"]
    figures["first process of a job, bytes of its own"] = memory
    return figures


def memory_of_a_job() -> float:
    jobs = Jobs(Launcher.start(Configure(slots=RUNNING)))
    try:
        used = [own_memory_bytes(pid) for pid in jobs.start(["sleep", "1000"], RUNNING)]
        jobs.end_all()
        return statistics.median(used)
    finally:
        jobs.launcher.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="per figure and turn")
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="jobs-spawn-") as directory:
        figures = compare(options.seconds, options.slots, options.turns, Path(directory))
    if options.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:48} {value:10.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
