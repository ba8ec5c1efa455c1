"""What it costs to ask a member that does not lead: the same requests by way of a follower and at the leader itself.

    python -m benchmarks.forward [--seconds 3] [--clients 32]

Three real nodes and the clients share this machine. The turns alternate, so that what else goes on is in both.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any, Final

import uvloop

from benchmarks.load import Connection, closed_loop, percentiles, request
from benchmarks.report import show
from jobs.testing import EmbeddedCluster, EmbeddedNode

TURNS: Final = 3
PUT: Final = request("POST", "/v1/kv:put", {"key": "/data/bench", "value": {"text": "x" * 100}})
GET: Final = request("GET", "/v1/kv?key=/data/bench")
STALE: Final = request("GET", "/v1/kv?key=/data/bench&consistency=stale")


async def measure(node: EmbeddedNode, data: bytes, clients: int, seconds: float) -> tuple[float, list[float]]:
    """Return the rate, and the latencies."""

    async def once(connection: Connection, number: int) -> None:
        await connection.send(data)

    return await closed_loop(node.socket, clients, seconds, once)


async def compare(leader: EmbeddedNode, follower: EmbeddedNode, options: argparse.Namespace) -> None:
    for name, data in (("put of 100 bytes", PUT), ("linearizable get", GET)):
        for clients in (1, options.clients):
            found: dict[str, tuple[list[float], list[float]]] = {"leader": ([], []), "follower": ([], [])}
            for _ in range(TURNS):
                for where, node in (("leader", leader), ("follower", follower)):
                    rate, latencies = await measure(node, data, clients, options.seconds)
                    found[where][0].append(rate)
                    found[where][1].extend(latencies)
            said = {}
            for where, (rates, latencies) in found.items():
                p50, p99 = percentiles(latencies)
                said[where] = f"{statistics.median(rates):.0f}/s, p50 {p50:.2f} p99 {p99:.2f} ms"
            show(f"{name}, {clients} clients, by a follower", said["follower"], f"at the leader {said['leader']}")
    rate, latencies = await measure(follower, STALE, options.clients, options.seconds)
    p50, p99 = percentiles(latencies)
    show(f"stale get, {options.clients} clients, at a follower", f"{rate:.0f}/s, p50 {p50:.2f} p99 {p99:.2f} ms")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--clients", type=int, default=32)
    options: Any = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="jobs-forward-") as directory,
        EmbeddedCluster(Path(directory)) as cluster,
    ):
        leader = cluster.leader()
        follower = next(node for node in cluster.nodes.values() if node is not leader)
        uvloop.run(compare(leader, follower, options))


if __name__ == "__main__":
    main()
