"""Counters under SIGKILL: whatever a client was told counts once, at whatever moment the node died."""

from __future__ import annotations

import asyncio
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

from jobs import AsyncClient, Client, shell_job
from jobs._native import Store
from jobs.protocol.model import Content, KvCompare, KvOp, KvPut, Requires, Schedule
from jobs.testing import EmbeddedNode

SCALE = int(os.environ.get("JOBS_TEST_SCALE", "1"))
SEED = int(os.environ.get("JOBS_TEST_SEED", "0")) or random.randrange(1 << 32)
KILLS = 4 * SCALE
PATIENCE_S = 120.0
TTL_S = 86_400.0


class Load:
    """Repeats calls, each in a thread of its own, and counts those that returned."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.done: dict[str, int] = {}
        self._moved = threading.Condition()
        self._over = False
        self._threads: list[threading.Thread] = []
        self._failures: list[BaseException] = []

    def repeat(self, name: str, call: Callable[[Client], object]) -> None:
        """Call again and again with a client; what is not true does not count."""

        def run() -> None:
            with Client(str(self.socket), patience_s=PATIENCE_S) as client:
                while not self._over:
                    self._count(name, bool(call(client)))

        self._begin(name, run)

    def repeat_async(self, name: str, key: str) -> None:
        """The asynchronous client sets a key again and again."""

        async def loop() -> None:
            async with AsyncClient(str(self.socket), patience_s=PATIENCE_S) as client:
                while not self._over:
                    await client.kv.put(key, "v")
                    self._count(name, True)

        self._begin(name, lambda: asyncio.run(loop()))

    def _begin(self, name: str, run: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                run()
            except BaseException as error:
                with self._moved:
                    self._failures.append(error)
                    self._moved.notify_all()

        self.done[name] = 0
        self._threads.append(threading.Thread(target=guarded))
        self._threads[-1].start()

    def _count(self, name: str, counts: bool) -> None:
        with self._moved:
            self.done[name] += counts
            self._moved.notify_all()

    def wait_for(self, calls: int) -> None:
        """Return after so many more calls of all kinds together, and one of each kind."""
        with self._moved:
            before = dict(self.done)

            def reached() -> bool:
                more = {name: self.done[name] - before[name] for name in before}
                return bool(self._failures) or (sum(more.values()) >= calls and all(more.values()))

            assert self._moved.wait_for(reached, timeout=PATIENCE_S), f"no progress beyond {self.done}"
        self._check()

    def stop(self) -> None:
        self._over = True
        for thread in self._threads:
            thread.join()
        self._check()

    def _check(self) -> None:
        if self._failures:
            raise self._failures[0]


def increment(client: Client) -> bool:
    """Add one to a counter by compare and set; tell whether that was it."""
    found = client.kv.get("/data/counter")
    version, value = (0, 0) if found is None else (found.version, int(found.value.text or ""))
    return client.kv.txn(
        compare=[KvCompare(key="/data/counter", target="version", number=version)],
        then=[KvOp(put=KvPut(key="/data/counter", value=Content(text=str(value + 1))))],
    ).succeeded


def test_every_call_counts_once_however_often_the_node_is_killed(tmp_path: Path) -> None:
    print(f"replay with JOBS_TEST_SEED={SEED}")
    chance = random.Random(SEED)
    # Given counters of several kinds that clients drive as fast as they can
    with EmbeddedNode(tmp_path / "node") as node:
        with node.client() as client:
            waiting = shell_job(["true"], requires=Requires(labels={"never": "there"}))
            client.schedules.set("s", Schedule(job=waiting, every_s=86_400))
        load = Load(node.socket)
        load.repeat("puts", lambda client: client.kv.put("/data/puts", "v"))
        load.repeat("increments", increment)
        load.repeat("increments of another", increment)
        load.repeat("grants", lambda client: client.kv.grant(TTL_S))
        load.repeat("triggers", lambda client: client.schedules.trigger("s"))
        load.repeat_async("asynchronous puts", "/data/async")
        # When the node is killed at any moment, again and again
        try:
            for _ in range(KILLS):
                load.wait_for(chance.randint(20, 300))
                node.kill()
                node.start()
            load.wait_for(1)
        finally:
            load.stop()
        # Then each call that returned counted once
        done = load.done
        with node.client() as client:
            versions = {key: found.version for key in ("puts", "async") if (found := client.kv.get(f"/data/{key}"))}
            counter = client.kv.get("/data/counter")
            made = sum(1 for _ in client.list(schedule="s", page_size=1_000))
        assert versions == {"puts": done["puts"], "async": done["asynchronous puts"]}
        assert counter is not None
        assert int(counter.value.text or "") == done["increments"] + done["increments of another"]
        assert made == done["triggers"]
        node.stop()
        store = Store(str(node.directory / "data" / "store"))
        assert sum(ttl_ms == TTL_S * 1_000 for _, ttl_ms in store.leases()) == done["grants"]
        store.close()
    print(f"{KILLS} kills, calls: {done}")
