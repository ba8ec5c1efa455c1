"""Real nodes under real faults and real load: what clients saw is what one copy of the data would have shown, nothing
that was acknowledged is lost, every job ends once, and nothing runs on.

A schedule is drawn from a seed that is printed: JOBS_TEST_SEED=… runs it again. (Which client came first to what is
never the same twice.) JOBS_TEST_SCALE makes the campaign longer.
"""

from __future__ import annotations

import asyncio
import os
import random
import uuid
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from jobs.client import Client
from jobs.protocol.model import JobState, Reason
from tests.cluster.load import Load
from tests.cluster.members import Members, members
from tests.cluster.nemesis import Nemesis, plan, skipped
from tests.support.linearizability import Operation, assert_linearizable, check
from tests.support.processes import Ends, is_alive, with_argument

SCALE = int(os.environ.get("JOBS_TEST_SCALE", "1"))
SEED = int(os.environ.get("JOBS_TEST_SEED", "0")) or random.randrange(1 << 32)
FAULTS = 4 * SCALE
KEYS = 8
CLIENTS = 6
SETTLE_S = 60.0
ORPHAN_S = 20.0


@pytest.mark.timeout(180 + 25 * FAULTS)
@pytest.mark.parametrize("size", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_what_clients_see_under_faults_is_what_one_copy_would_show(size: int, tmp_path: Path) -> None:
    print(f"replay with JOBS_TEST_SEED={SEED} JOBS_TEST_SCALE={SCALE}")
    for kind, reason in skipped().items():
        print(f"left out: {kind}: {reason}")
    marker = f"faults-{uuid.uuid4()}"
    with members(tmp_path, size) as cluster:
        # Given clients of every node that read, write and submit jobs
        sockets = [node.socket for node in cluster.nodes.values()]
        nemesis = Nemesis(cluster)
        with Load(sockets, random.Random(SEED), marker=marker, clients=CLIENTS, keys=KEYS) as load:
            # When one thing after another goes wrong
            nemesis.run(plan(SEED, size, FAULTS))
        load.check()
        cluster.leader(SETTLE_S)
        # Then every node answers again, and what all saw, these last reads too, is what one copy would have shown
        for socket in sockets:
            with Client(str(socket), patience_s=SETTLE_S) as client:
                load.keys[0].read_all(client)
        verdict = assert_linearizable(load.history)
        # And every job that was accepted ended once; nothing of them runs on
        ends = hold_to_what_was_accepted(cluster, load.accepted)
        all_end(with_argument(marker))
        processes = cluster.processes()
    # And nothing is left of the nodes
    all_end(processes)
    # And the check is one that can fail
    assert check(with_a_stale_read(load.history)).outcome == "violation"
    print(f"{verdict.operations} operations on {KEYS} keys, {verdict.situations} situations looked at; jobs: {ends}")
    answered, unanswered = (sum(getattr(one, name) for one in load.all) for name in ("answered", "unanswered"))
    print(f"{answered} calls answered, {unanswered} not; faults: {nemesis.counts}")


def hold_to_what_was_accepted(cluster: Members, accepted: dict[str, str]) -> dict[str, int]:
    """Every job that was accepted ends once, with its own output or because its worker was lost."""
    ends: Counter[str] = Counter()
    results = {}
    with cluster.leader().client() as client:
        for job, token in accepted.items():
            ended = client.wait(job, SETTLE_S)
            assert ended.state.is_final, f"job {job} is {ended.state}"
            results[job] = result = client.result(job)
            if ended.state is JobState.COMPLETED:
                assert result.stdout.text == f"{token}\n"
            else:
                assert ended.reason is Reason.WORKER_LOST, f"job {job}: {ended.reason}, {ended.message}"
            done = [one for one in client.attempts(job) if one.state is JobState.COMPLETED]
            assert len(done) == (ended.state is JobState.COMPLETED), f"job {job}: {done}"
            ends[str(ended.reason or ended.state)] += 1
    # What has ended stays as it is, whoever is asked.
    for node in cluster.nodes.values():
        with node.client() as client:
            for job, result in results.items():
                assert client.result(job) == result
    assert ends, "no job was accepted"
    return dict(ends)


def all_end(pids: list[int]) -> None:
    """Wait until these processes have ended; raises TimeoutError."""
    left = [pid for pid in pids if is_alive(pid)]
    if left:
        asyncio.run(Ends(left).wait(ORPHAN_S))


def with_a_stale_read(history: Sequence[Operation]) -> list[Operation]:
    """Return the history with one more read, which found what had been overwritten before it was asked for."""
    puts = sorted((o for o in history if o.kind == "put" and o.is_known), key=lambda o: o.end_ns)
    newer = puts[-1]
    older = next(o for o in reversed(puts) if o.key == newer.key and o.end_ns < newer.called_ns)
    stale = replace(
        newer,
        kind="get",
        client=0,
        value=older.value,
        revision=older.revision,
        called_ns=newer.end_ns + 1,
        answered_ns=newer.end_ns + 2,
    )
    return [*history, stale]
