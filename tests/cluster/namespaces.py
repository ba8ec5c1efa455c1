"""A network for nodes on one machine: a namespace for each, and a link of their own between any two of them.

Packets are lost one way on one link by a queue without room: nobody is told, as when a cable is cut far away. That
needs nothing but iproute2 and kernel features that every distribution has.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from itertools import combinations

import pytest


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class Network:
    """Nodes are numbered from 1; each has one address, wherever it is reached from."""

    def __init__(self, prefix: str, size: int) -> None:
        self._prefix = prefix
        self._numbers = range(1, size + 1)
        self._lost: set[tuple[int, int]] = set()
        self._slow: set[tuple[int, int]] = set()

    def make(self) -> None:
        for number in self._numbers:
            run("ip", "netns", "add", self.namespace(number))
            self._ip(number, "link", "set", "lo", "up")
            self._ip(number, "addr", "add", f"{self.address(number)}/32", "dev", "lo")
        for one, other in combinations(self._numbers, 2):
            name, peer = self._link(other), self._link(one)
            self._ip(one, "link", "add", name, "type", "veth", "peer", "name", peer, "netns", self.namespace(other))
            for number, far in ((one, other), (other, one)):
                self._ip(number, "link", "set", self._link(far), "up")
                self._ip(
                    number,
                    "route",
                    "add",
                    f"{self.address(far)}/32",
                    "dev",
                    self._link(far),
                    "src",
                    self.address(number),
                )

    def delete(self) -> None:
        for number in self._numbers:
            subprocess.run(["ip", "netns", "del", self.namespace(number)], capture_output=True)

    def namespace(self, number: int) -> str:
        return f"{self._prefix}{number}"

    def address(self, number: int) -> str:
        return f"10.77.7.{number}"

    def inside(self, number: int) -> tuple[str, ...]:
        """Return what a command begins with to run in a node's namespace, as the same process."""
        return ("nsenter", f"--net=/run/netns/{self.namespace(number)}", "--")

    def lose(self, sender: int, receiver: int) -> None:
        """Lose everything that one node sends to another from now on."""
        if (sender, receiver) not in self._lost:
            self._lost.add((sender, receiver))
            self._tc(sender, "replace", receiver, "root", "pfifo", "limit", "0")

    def slow(self, sender: int, receiver: int, mbit_per_s: int) -> None:
        """Let one node send no faster to another from now on."""
        self._slow.add((sender, receiver))
        limits = ("rate", f"{mbit_per_s}mbit", "burst", "256kb", "latency", "50ms")
        self._tc(sender, "replace", receiver, "root", "tbf", *limits)

    def heal(self) -> None:
        """Lose nothing any more, and let nobody be slow."""
        for sender, receiver in self._lost | self._slow:
            self._tc(sender, "del", receiver, "root")
        self._lost.clear()
        self._slow.clear()

    def _ip(self, number: int, *command: str) -> None:
        run("ip", "-n", self.namespace(number), *command)

    def _tc(self, number: int, action: str, far: int, *rest: str) -> None:
        run("tc", "-n", self.namespace(number), "qdisc", action, "dev", self._link(far), *rest)

    @staticmethod
    def _link(far: int) -> str:
        return f"to{far}"


def missing() -> str:
    """Return why there can be no such network here, "" when there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", "tc", "nsenter"):
        if shutil.which(tool) is None:
            return f"network namespaces need the command {tool} (iproute2, util-linux)"
    probe = f"jobs{os.getpid()}x"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if made.returncode:
        return f"network namespaces cannot be made here: {made.stderr.strip()}"
    run("ip", "netns", "del", probe)
    return ""


@contextlib.contextmanager
def network(size: int) -> Iterator[Network]:
    """Make a network for as long as the context lasts; skips the test, with the reason, where that cannot be."""
    reason = missing()
    if reason:
        pytest.skip(reason)
    made = Network(f"jobs{os.getpid()}n", size)
    try:
        made.make()
        yield made
    finally:
        made.delete()
