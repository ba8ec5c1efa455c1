"""Nodes with their workers as real processes, each with a network namespace, a small disk and a clock of its own; and
what can be done to them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from jobs.testing import EmbeddedCluster, EmbeddedNode
from tests.cluster.namespaces import Network, network, run
from tests.support.processes import descendants

DISK_BYTES: Final = 512 << 20
PORT: Final = 7420
CLOCK_SOURCE: Final = Path(__file__).with_name("clock.c")
BALLAST: Final = "ballast"


class Members(EmbeddedCluster):
    """The nodes `n1`, `n2`, …; a single one is a cluster of one."""

    def __init__(self, directory: Path, net: Network, size: int) -> None:
        self.net = net
        self._clock_library = build_clock(directory)
        super().__init__(directory, size)

    def add(self, name: str) -> EmbeddedNode:
        assert name not in self.nodes
        number = len(self.nodes) + 1
        place = self.directory / name
        place.mkdir(parents=True)
        run("mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=755", "jobs-test", str(place))
        env = {
            "JOBS_NODE__ID": name,
            "JOBS_CLUSTER__LISTEN": f'["{self.net.address(number)}:{PORT}"]',
            "JOBS_WORKERS__LEASE_S": "5",
            # Small, so that logs are cut and members catch up by snapshots.
            "JOBS_LOG__SEGMENT_BYTES": "1MiB",
            "JOBS_LOG__SNAPSHOT_LOG_BYTES": "2MiB",
        }
        if self._clock_library is not None:
            clock = self._clock_file(name)
            clock.write_bytes(bytes(8))
            env |= {"LD_PRELOAD": str(self._clock_library), "JOBS_TEST_CLOCK": str(clock)}
        made = self.nodes[name] = EmbeddedNode(place, env=env, prefix=self.net.inside(number))
        return made

    def numbers(self) -> range:
        return range(1, len(self.nodes) + 1)

    def node(self, number: int) -> EmbeddedNode:
        return self.nodes[f"n{number}"]

    def leader_number(self) -> int:
        """Return the number of the node that leads. Raises NodeFailed when none does in time."""
        return int(self.leader().directory.name[1:])

    # --- faults -----------------------------------------------------------------------------------------------------

    def kill(self, number: int) -> None:
        self.node(number).kill()

    def restart(self, number: int) -> None:
        if not self.node(number).is_running:
            self.node(number).start(wait=False)

    def ended(self) -> dict[int, str]:
        """Return the nodes whose process has ended though nobody told it to, and how."""
        found = {}
        for number in self.numbers():
            if self.node(number).is_running:
                end = os.waitid(os.P_PID, self.node(number).pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if end is not None:
                    found[number] = f"{'exit code' if end.si_code == os.CLD_EXITED else 'signal'} {end.si_status}"
        return found

    def revive(self, number: int) -> None:
        """Start a node again whose process has ended by itself."""
        if number in self.ended():
            self.kill(number)
            self.restart(number)

    def freeze(self, number: int) -> None:
        """Stop the node's process, as a host that swaps or a virtual machine that is moved does."""
        os.kill(self.node(number).pid, signal.SIGSTOP)

    def thaw(self, number: int) -> None:
        os.kill(self.node(number).pid, signal.SIGCONT)

    def fill_disk(self, number: int) -> None:
        """Leave no room on the node's disk."""
        with contextlib.suppress(OSError), (self.node(number).directory / BALLAST).open("ab", buffering=0) as file:
            while file.write(bytes(1 << 16)):
                pass

    def free_disk(self, number: int) -> None:
        (self.node(number).directory / BALLAST).unlink(missing_ok=True)

    def tear_log(self, number: int, noise: bytes) -> None:
        """Leave a write behind the log's last record that a power cut tore. The node must not run."""
        assert not self.node(number).is_running
        segment = max((self.node(number).directory / "data" / "log").glob("*.seg"))
        with segment.open("r+b") as file:
            file.seek(_end_of_records(file.read()))
            file.write(noise)

    def set_clock(self, number: int, ahead_s: int) -> None:
        """Let the node's wall clock jump, and those of its workers."""
        with self._clock_file(self.node(number).directory.name).open("r+b") as file:
            file.write(ahead_s.to_bytes(8, sys.byteorder, signed=True))

    def _clock_file(self, name: str) -> Path:
        return self.directory / f"{name}.clock"

    # --- the end ----------------------------------------------------------------------------------------------------

    def processes(self) -> list[int]:
        """Return every process below the nodes."""
        return [pid for node in self.running() for pid in descendants(node.pid)]

    def unmount(self) -> None:
        for name in self.nodes:
            subprocess.run(["umount", "--lazy", str(self.directory / name)], capture_output=True)


def build_clock(directory: Path) -> Path | None:
    """Build the library that gives a process a wall clock of its own; None without a C compiler."""
    if shutil.which("cc") is None:
        return None
    library = directory / "clock.so"
    run("cc", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(library), str(CLOCK_SOURCE), "-ldl")
    return library


def _end_of_records(segment: bytes) -> int:
    """Return where the next record of a segment of the log would begin (rust/log/src/format.rs)."""
    at = 512
    while any(segment[at : at + 4]):
        length = int.from_bytes(segment[at + 8 : at + 12], "little")
        at += (40 + length + 7) & ~7
    return at


@contextlib.contextmanager
def members(directory: Path, size: int) -> Iterator[Members]:
    """Run a cluster for as long as the context lasts."""
    with network(size) as net:
        made = Members(directory, net, size)
        try:
            with made:
                yield made
        finally:
            made.unmount()
