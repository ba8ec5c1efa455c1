"""Processor time of a commit in consensus alone: three members in one process, no network and no disk between them.

    python -m benchmarks.commit [--against DIR/python]

`--against` measures another working copy by turns in the same run (its package, with its `_native` built) and prints
the ratio. Logs and stores are in memory (/dev/shm), so that what is left is what this code does.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import uvloop

from benchmarks.report import show
from jobs._native import Log, Store
from jobs.consensus import Consensus, MemberRecord, Role
from jobs.consensus.membership import put_member
from jobs.store import Put, Txn

SIZE: Final = 3
COMMITS: Final = 2_000
TURNS: Final = 5
VALUE: Final = bytes(256)


class Wire:
    """One member's end of a network that takes no time: a `Network`."""

    def __init__(self, members: dict[str, Consensus], me: str) -> None:
        self._members = members
        self._me = me

    def send(self, peer: str, message: bytes) -> bool:
        asyncio.get_running_loop().call_soon(self._members[peer].on_message, self._me, message)
        return True

    def send_urgent(self, peer: str, message: bytes) -> bool:
        return self.send(peer, message)

    async def send_file(self, peer: str, name: str, path: Path) -> None:
        raise AssertionError("nobody lacks entries here")


async def group(directory: Path) -> dict[str, Consensus]:
    """Form a group; the first member leads."""
    members: dict[str, Consensus] = {}
    for number in range(SIZE):
        name, place = f"m{number}", directory / f"m{number}"
        log, store = Log(str(place / "log")), Store(str(place / "store"))
        members[name] = Consensus(name, log, store, network=Wire(members, name), alone=number == 0)
    leader = members["m0"]
    for name, member in members.items():
        await member.start()
        role = Role.VOTER if member is leader else Role.LEARNER
        await leader.change_members(put_member(leader.members, MemberRecord(id=name, name=name, role=role)))
    while len(leader.members.voters) < SIZE:
        await asyncio.sleep(0.05)
    return members


async def measure() -> float:
    """Return microseconds of processor time a commit, all members together."""
    with tempfile.TemporaryDirectory(prefix="jobs-bench-", dir="/dev/shm") as directory:
        members = await group(Path(directory))
        started_s = 0.0
        for number in range(COMMITS + COMMITS // 4):
            if number == COMMITS // 4:
                started_s = time.process_time()
            await members["m0"].propose(Txn(then=(Put(b"k%d" % (number % 1000), VALUE),)))
        spent_s = time.process_time() - started_s
        for member in members.values():
            await member.stop()
        return spent_s / COMMITS * 1e6


def measure_of(package: str) -> float:
    """Measure the package in this directory, in a process of its own."""
    here = str(Path(__file__).parents[1])
    command = [sys.executable, "-m", "benchmarks.commit", "--once"]
    env = os.environ | {"PYTHONPATH": os.pathsep.join((package, here))}
    return float(subprocess.run(command, check=True, capture_output=True, text=True, env=env, cwd=here).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", help="directory of another package `jobs`")
    parser.add_argument("--once", action="store_true", help="print the bare figure of one turn")
    options = parser.parse_args()
    if options.once:
        print(uvloop.run(measure()))
        return
    own = str(Path(__file__).parents[1] / "python")
    packages = [own, options.against] if options.against else [own]
    turns = [[measure_of(package) for package in packages] for _ in range(TURNS)]
    ours, *other = (statistics.median(figures) for figures in zip(*turns, strict=True))
    against = f"{ours / other[0]:.2f} × {other[0]:.0f} µs of {options.against}" if other else ""
    show("processor time of a commit, three members", f"{ours:.0f} µs", against)


if __name__ == "__main__":
    main()
