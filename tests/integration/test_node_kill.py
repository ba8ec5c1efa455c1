"""The whole node is killed at random moments under load: what was acknowledged is there, and nothing runs on."""

from __future__ import annotations

import asyncio
import os
import random
import threading
from pathlib import Path

import pytest

from jobs.client import Client, shell_job
from jobs.errors import JobsError
from jobs.protocol.model import JobState, Reason
from jobs.testing import EmbeddedNode
from tests.support.processes import Ends, descendants

KILLS = 3 * int(os.environ.get("JOBS_TEST_SCALE", "1"))
SEED = int(os.environ.get("JOBS_TEST_SEED", "0")) or random.randrange(1 << 32)


class Load(threading.Thread):
    """Submits jobs and sets keys until the node is gone; keeps what was acknowledged."""

    def __init__(self, node: EmbeddedNode, name: str) -> None:
        super().__init__()
        self._client = Client(str(node.socket), patience_s=0)
        self._name = name
        self.enough = threading.Event()
        self.jobs: list[str] = []
        self.keys: dict[str, str] = {}

    def run(self) -> None:
        number = 0
        try:
            while True:
                number += 1
                key = f"/data/{self._name}/{number}"
                self._client.kv.put(key, str(number))
                self.keys[key] = str(number)
                job = self._client.submit(shell_job(["sh", "-c", f"echo {key}; sleep 0.0{number % 10}"])).job
                self.jobs.append(job.id)
                if number >= 5:
                    self.enough.set()
        except JobsError:
            self.enough.set()


@pytest.mark.timeout(60 + 20 * KILLS)
def test_nothing_acknowledged_is_lost_and_every_job_ends_once(tmp_path: Path) -> None:
    print(f"replay with JOBS_TEST_SEED={SEED}")
    chance = random.Random(SEED)
    node = EmbeddedNode(tmp_path / "node")
    jobs: list[str] = []
    keys: dict[str, str] = {}
    for kill in range(KILLS):
        # Given a node under load, when it is killed at a random moment
        node.start()
        loads = [Load(node, f"{kill}-{lane}") for lane in range(3)]
        for load in loads:
            load.start()
        for load in loads:
            assert load.enough.wait(30)
        threading.Event().wait(chance.uniform(0, 0.5))
        left = Ends(descendants(node.pid))
        node.kill()
        for load in loads:
            load.join(30)
            jobs += load.jobs
            keys |= load.keys
        # Then nothing that it started runs on
        asyncio.run(left.wait(10))
    # And after the last restart everything that was acknowledged is there, and every job ends
    with node, node.client() as client:
        found = {kv.key: kv.value.text for kv in client.kv.scan("/data/")}
        assert {key: found.get(key) for key in keys} == keys
        listed = {job.id for job in client.list()}
        assert set(jobs) <= listed
        for job in jobs:
            ended = client.wait(job, 60)
            assert ended.state.is_final
            if ended.state is JobState.FAILED:
                assert ended.reason is Reason.WORKER_LOST
            else:
                assert (client.result(job).stdout.text or "").startswith("/data/")
