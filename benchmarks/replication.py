"""Two clusters of a node each, and a sync between them: a full copy beside local writes at its target, and what it
takes to compare what is equal, and to catch up when 1 % has changed; in one run, with the bytes that go over the wire.

    python -m benchmarks.replication [--keys 1000000] [--value-bytes 100]

The nodes are in a network namespace of their own, whose device counts every byte of every packet; that needs root and
iproute2. Without, the bytes of keys and values are told that the sync counts itself.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import uvloop
from msgspec import Struct

from benchmarks.load import Connection, closed_loop, request
from benchmarks.report import show
from jobs import Client
from jobs.content import content_of
from jobs.errors import Compacted
from jobs.protocol.model import KvDelete, KvOp, KvPut, LinkScopes, ReplicationResult
from jobs.testing import EmbeddedCluster, EmbeddedNode

LOT: Final = 500
WRITERS: Final = 4
SINGLE_CLIENTS: Final = 64
SINGLE_S: Final = 5.0
LOCAL_SHARE: Final = 5
"""Local writes are measured with one key of so many."""
CHANGED_SHARE: Final = 100
DELETED_SHARE: Final = 10
"""Of the changed keys, one of so many is deleted."""
PREFIX: Final = "/data/bench/"
LOCAL: Final = "/data/local/"
MIB: Final = 1 << 20


class Wire:
    """What goes from a node to another, both ways, as the device between them counts it."""

    def __init__(self) -> None:
        self._name = f"jobs-bench-{os.getpid()}"
        self.prefix: tuple[str, ...] = ()
        """What a command begins with to be on it."""

    def __enter__(self) -> Wire:
        if os.geteuid() == 0 and shutil.which("ip") and shutil.which("nsenter"):
            subprocess.run(["ip", "netns", "add", self._name], check=True)
            subprocess.run(["ip", "-n", self._name, "link", "set", "lo", "up"], check=True)
            self.prefix = ("nsenter", f"--net=/run/netns/{self._name}", "--")
        return self

    def __exit__(self, *args: object) -> None:
        if self.prefix:
            subprocess.run(["ip", "netns", "del", self._name], check=True)

    def sent(self, node: EmbeddedNode) -> int:
        """Return how many bytes have gone over it since it is there; 0 where that is not counted."""
        if not self.prefix:
            return 0
        lines = Path(f"/proc/{node.pid}/net/dev").read_text().splitlines()
        loopback = next(line for line in lines if line.strip().startswith("lo:"))
        return int(loopback.split(":")[1].split()[0])


class Cost(Struct, frozen=True):
    """Of one operation."""

    seconds: float
    wire: int
    result: ReplicationResult

    @property
    def bytes(self) -> int:
        return self.wire or self.result.bytes


class Scene:
    def __init__(self, folder: Path, wire: Wire, options: argparse.Namespace) -> None:
        self._options = options
        self._wire = wire
        self._chance = random.Random(0)
        # As short as it can be while what has changed is followed.
        env = {"JOBS_STORE__HISTORY_EVENTS": str(max(10_000, 2 * options.keys // CHANGED_SHARE))}
        self.source = EmbeddedCluster(folder / "source", 1, types=(), prefix=wire.prefix, env=env)
        self.target = EmbeddedCluster(folder / "target", 1, types=("replication",), prefix=wire.prefix)

    @contextlib.contextmanager
    def running(self) -> Iterator[tuple[Client, Client]]:
        with self.source, self.target, self.source.client() as there, self.target.client() as here:
            invitation = here.replication.invitation().invitation
            here.replication.link("source", there.replication.invitation().invitation, LinkScopes())
            there.replication.link("target", invitation, LinkScopes(read=["/data/"]))
            yield there, here

    # --- local writes -------------------------------------------------------------------------------------------------

    def put(self, cluster: EmbeddedCluster, prefix: str, numbers: range, writers: int) -> float:
        """Put keys in transactions, so many clients at a time, each once it has its answer; return the seconds."""
        parts = [numbers[at::writers] for at in range(writers)]
        threads = [threading.Thread(target=self._put, args=(cluster, prefix, part)) for part in parts]
        began_s = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - began_s

    def _put(self, cluster: EmbeddedCluster, prefix: str, numbers: range) -> None:
        chance, size = random.Random(numbers.start), self._options.value_bytes
        with cluster.client() as client:
            for at in range(0, len(numbers), LOT):
                ops = [
                    KvOp(put=KvPut(key=f"{prefix}{number:09d}", value=content_of(chance.randbytes(size))))
                    for number in numbers[at : at + LOT]
                ]
                client.kv.txn(then=ops)

    def local_rates(self, keys: int) -> dict[str, float]:
        """Return how many keys a second are put at the target by its own clients."""
        few = range(max(LOT * WRITERS, keys // LOCAL_SHARE))
        return {
            f"{LOT} keys each, {writers} at a time": len(few) / self.put(self.target, LOCAL, few, writers)
            for writers in (1, WRITERS)
        } | {f"one key each, {SINGLE_CLIENTS} at a time": self.put_single(self.target.nodes["n1"])}

    def put_single(self, node: EmbeddedNode) -> float:
        """Return how many keys a second are put one by one, by many clients."""

        async def once(connection: Connection, number: int) -> None:
            body = {"key": f"{LOCAL}{number:x}", "value": {"text": "v" * self._options.value_bytes}}
            await connection.send(request("POST", "/v1/kv:put", body))

        rate, _ = uvloop.run(closed_loop(node.socket, SINGLE_CLIENTS, SINGLE_S, once))
        return rate

    def change(self, client: Client) -> int:
        """Change 1 % of the keys at the source, all over; return how many."""
        keys, size = self._options.keys, self._options.value_bytes
        numbers = self._chance.sample(range(keys), keys // CHANGED_SHARE)
        for at in range(0, len(numbers), LOT):
            client.kv.txn(then=[self._changed(f"{PREFIX}{one:09d}", one, size) for one in numbers[at : at + LOT]])
        return len(numbers)

    def _changed(self, key: str, number: int, size: int) -> KvOp:
        if number % DELETED_SHARE == 0:
            return KvOp(delete=KvDelete(key=key))
        return KvOp(put=KvPut(key=key, value=content_of(self._chance.randbytes(size))))

    def forget(self, client: Client) -> None:
        """Write other keys at the source until its history no longer goes back to now."""
        now = client.kv.put(LOCAL, "").revision
        with contextlib.suppress(Compacted):
            while True:
                self._put(self.source, LOCAL, range(10 * LOT))
                client.kv.get(LOCAL, revision=now)

    # --- operations ---------------------------------------------------------------------------------------------------

    def sync(self, here: Client) -> Cost:
        before = self._sent()
        result = here.replication.sync("bench", source="source", prefix=PREFIX)
        return Cost(result.seconds, self._sent() - before, result)

    def verify(self, here: Client) -> Cost:
        before = self._sent()
        result = here.replication.verify(source="source", prefix=PREFIX)
        if result.differences:
            raise RuntimeError(f"they differ: {result.differences[:3]}")
        return Cost(result.seconds, self._sent() - before, result)

    def _sent(self) -> int:
        return self._wire.sent(self.target.nodes["n1"])

    def idle(self, seconds: float) -> float:
        """Return how many bytes a second go over the wire when nothing is done."""
        before = self._sent()
        asyncio.run(asyncio.sleep(seconds))
        return (self._sent() - before) / seconds


def measure(scene: Scene, keys: int) -> None:
    with scene.running() as (there, here):
        scene.put(scene.source, PREFIX, range(keys), WRITERS)
        before = scene.local_rates(keys)
        show("on the wire when nothing is done", f"{scene.idle(3.0) / 1024:.1f} KiB/s")
        full = scene.sync(here)
        after = scene.local_rates(keys)
        copied = full.result.rows / full.seconds
        show(f"sync of {full.result.rows:,} keys to an empty target", f"{copied:,.0f} keys/s")
        show("— over the wire", f"{full.bytes / MIB:.1f} MiB", f"{full.result.bytes / MIB:.1f} MiB counted by the sync")
        for how in before:
            rate = (before[how] + after[how]) / 2
            show(f"local writes at the target, {how}", f"{rate:,.0f} keys/s", f"the sync: {copied / rate:.2f} ×")
        equal = scene.verify(here)
        show(
            "what is equal compared",
            f"{equal.seconds:.2f} s",
            f"{equal.result.rows / equal.seconds:,.0f} keys/s a side",
        )
        show("— over the wire", f"{equal.bytes / 1024:.1f} KiB", f"{equal.bytes / full.bytes:.4%} of the full copy")
        changed = scene.change(there)
        caught_up("following them", changed, scene.sync(here), full)
        changed = scene.change(there)
        scene.forget(there)
        found = scene.sync(here)
        if found.result.snapshots != 1:
            raise RuntimeError("history was not gone")
        caught_up("finding them without history", changed, found, full)
        scene.verify(here)


def caught_up(how: str, changed: int, cost: Cost, full: Cost) -> None:
    show(
        f"{changed:,} keys changed: {how}",
        f"{cost.seconds:.2f} s",
        f"{cost.seconds / full.seconds:.1%} of the full copy",
    )
    show("— over the wire", f"{cost.bytes / MIB:.2f} MiB", f"{cost.bytes / full.bytes:.2%} of the full copy; aim 5 %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--value-bytes", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="jobs-replication-") as folder, Wire() as wire:
        measure(Scene(Path(folder), wire, options), options.keys)


if __name__ == "__main__":
    main()
