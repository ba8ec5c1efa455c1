"""Network namespaces joined by a bridge, and faults on their links."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def need_namespaces() -> None:
    """Skip the test, with the reason, where network namespaces cannot be made."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            pytest.skip(f"network namespaces need the command {tool} (iproute2)")
    probe = f"jobs{os.getpid()}x"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"network namespaces cannot be made here: {made.stderr.strip()}")
    run("ip", "netns", "del", probe)


class Network:
    """A bridge in a namespace of its own; each node is in a namespace with one link to it."""

    def __init__(self, prefix: str, count: int) -> None:
        self._prefix = prefix
        self._bridge = f"{prefix}b"
        self.names = [f"{prefix}{number}" for number in range(1, count + 1)]

    def make(self) -> None:
        for name in (self._bridge, *self.names):
            run("ip", "netns", "add", name)
        run("ip", "-n", self._bridge, "link", "add", "br0", "type", "bridge")
        run("ip", "-n", self._bridge, "link", "set", "br0", "up")
        for number, name in enumerate(self.names, 1):
            port = f"p{number}"
            run("ip", "-n", self._bridge, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
            run("ip", "-n", self._bridge, "link", "set", port, "master", "br0", "up")
            run("ip", "-n", name, "addr", "add", f"{self.address(number)}/24", "dev", "eth0", "nodad")
            run("ip", "-n", name, "link", "set", "eth0", "up")
            run("ip", "-n", name, "link", "set", "lo", "up")

    def delete(self) -> None:
        for name in (self._bridge, *self.names):
            subprocess.run(["ip", "netns", "del", name], capture_output=True)

    def address(self, number: int) -> str:
        return f"10.77.7.{number}"

    def cut(self, number: int) -> None:
        """Take this node off the network."""
        run("ip", "-n", self._bridge, "link", "set", f"p{number}", "down")

    def mend(self, number: int) -> None:
        run("ip", "-n", self._bridge, "link", "set", f"p{number}", "up")

    def lose_sent(self, number: int) -> None:
        """Lose all that this node sends; it still receives. A queue without room drops everything."""
        run("tc", "-n", self.names[number - 1], "qdisc", "replace", "dev", "eth0", "root", "pfifo", "limit", "0")

    def slow(self, number: int, mbit_per_s: int) -> None:
        """Let this node send no faster."""
        limits = ("rate", f"{mbit_per_s}mbit", "burst", "256kb", "latency", "50ms")
        run("tc", "-n", self.names[number - 1], "qdisc", "replace", "dev", "eth0", "root", "tbf", *limits)

    def lose_nothing(self, number: int) -> None:
        run("tc", "-n", self.names[number - 1], "qdisc", "del", "dev", "eth0", "root")

    def sent_packets(self, number: int) -> int:
        counted = run("ip", "netns", "exec", self.names[number - 1], "cat", "/sys/class/net/eth0/statistics/tx_packets")
        return int(counted)


@contextlib.contextmanager
def network(count: int) -> Iterator[Network]:
    need_namespaces()
    made = Network(f"jobs{os.getpid()}n", count)
    try:
        made.make()
        yield made
    finally:
        made.delete()
