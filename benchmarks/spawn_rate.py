"""How fast isolated commands start: the sandbox beside bare clones into the same namespaces, in one run.

    python benchmarks/spawn_rate.py [--seconds 3] [--slots 4] [--json]

`bare clone` is what the kernel alone costs: clone into the same namespaces, /bin/true, wait; no mounts, no filter, no
output. `posix_spawn` is the same without namespaces. The sandbox starts /bin/true through the launcher, N at
a time as a worker's slots do, and one `echo hello` at a time for the latency.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import select
import signal
import statistics
import sys
import time
from collections.abc import Callable

from jobs.protocol.ids import Attempt, JobId
from jobs.workers.sandbox import Configure, Exited, Launcher, Spawn

CLONE_NEW = {
    "mount": 0x00020000,
    "cgroup": 0x02000000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "user": 0x10000000,
    "pid": 0x20000000,
    "net": 0x40000000,
}
_CLONE = {"x86_64": 56, "aarch64": 220}[os.uname().machine]
_libc = ctypes.CDLL(None, use_errno=True)


def rate(once: Callable[[], int], seconds: float) -> float:
    """Return how many per second `once` starts (it returns how many it did)."""
    once()
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        count += once()
    return count / (time.perf_counter() - begin)


def bare_clones(flags: int, at_once: int) -> int:
    """Start /bin/true `at_once` times, each in new namespaces, and wait for all."""
    for _ in range(at_once):
        pid = _libc.syscall(ctypes.c_long(_CLONE), ctypes.c_long(flags | signal.SIGCHLD), None, None, None, None)
        if pid == 0:
            os.execve("/bin/true", ["true"], {})
        if pid < 0:
            raise OSError(ctypes.get_errno(), f"clone with flags {flags:#x}")
    for _ in range(at_once):
        _, status = os.wait()
        if status != 0:
            raise RuntimeError(f"bare clone with flags {flags:#x} failed: status {status}")
    return at_once


def posix_spawns(at_once: int) -> int:
    pids = [os.posix_spawn("/bin/true", ["true"], {}) for _ in range(at_once)]
    for pid in pids:
        os.waitpid(pid, 0)
    return at_once


class Jobs:
    """Keeps a launcher's slots full, or runs one job at a time."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._count = 0

    def _spawn(self, argv: list[str]) -> Spawn:
        self._count += 1
        return Spawn(job=JobId(str(self._count)), attempt=Attempt(1), argv=argv)

    def _ended(self) -> list[Exited]:
        select.select([self._launcher], [], [])
        ended = [event for event in self._launcher.receive() if isinstance(event, Exited)]
        for event in ended:
            if event.outcome.reason is not None:
                raise RuntimeError(f"job failed: {event.outcome}")
        return ended

    def latency_s(self, argv: list[str]) -> float:
        begin = time.perf_counter()
        self._launcher.send([self._spawn(argv)])
        while not self._ended():
            pass
        return time.perf_counter() - begin

    def rate(self, argv: list[str], at_once: int, seconds: float) -> float:
        begin, running, done = time.perf_counter(), 0, 0
        while (elapsed := time.perf_counter() - begin) < seconds or running:
            if elapsed < seconds and running < at_once:
                self._launcher.send([self._spawn(argv) for _ in range(at_once - running)])
                running = at_once
            ended = len(self._ended())
            running -= ended
            done += ended
        return done / (time.perf_counter() - begin)


def measure(seconds: float, slots: int) -> dict[str, float]:
    """Return every figure: rates per second, latencies in milliseconds."""
    without_net = sum(flag for name, flag in CLONE_NEW.items() if name != "net")
    figures = {
        "posix_spawn_per_s": rate(lambda: posix_spawns(slots), seconds),
        "bare_clone_without_net_per_s": rate(lambda: bare_clones(without_net, slots), seconds),
        "bare_clone_per_s": rate(lambda: bare_clones(without_net | CLONE_NEW["net"], slots), seconds),
    }
    launcher = Launcher.start(Configure(slots=slots))
    try:
        jobs = Jobs(launcher)
        jobs.rate(["/bin/true"], slots, 0.3)
        figures["sandbox_per_s"] = jobs.rate(["/bin/true"], slots, seconds)
        figures["sandbox_one_at_a_time_per_s"] = jobs.rate(["/bin/true"], 1, seconds)
        latencies = sorted(jobs.latency_s(["echo", "hello"]) * 1000 for _ in range(max(50, int(seconds * 100))))
    finally:
        launcher.close()
    figures["echo_p50_ms"] = statistics.median(latencies)
    figures["echo_p99_ms"] = latencies[int(len(latencies) * 0.99)]
    figures["sandbox_of_bare_clone"] = figures["sandbox_per_s"] / figures["bare_clone_per_s"]
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="per figure")
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = measure(options.seconds, options.slots)
    if options.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:32} {value:10.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
