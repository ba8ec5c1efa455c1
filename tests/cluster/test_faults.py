"""Real nodes under real faults and real load: what clients saw is what one copy of the data would have shown, nothing
that was acknowledged is lost, every job ends once, and nothing runs on.

A schedule is drawn from a seed that is printed: JOBS_TEST_SEED=… runs it again. (Which client came first to what is
never the same twice.) JOBS_TEST_SCALE makes the campaign longer.
"""

from __future__ import annotations

import os
import random
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from jobs.client import Client, shell_job
from jobs.protocol.model import JobState, Reason
from jobs.testing import EmbeddedNode
from tests.cluster.load import ONCE, End, Load, once_value
from tests.cluster.members import Members, members
from tests.cluster.nemesis import Nemesis, plan, skipped
from tests.support.linearizability import Operation, assert_linearizable, check
from tests.support.processes import Process, present, with_argument

SCALE = int(os.environ.get("JOBS_TEST_SCALE", "1"))
SEED = int(os.environ.get("JOBS_TEST_SEED", "0")) or random.randrange(1 << 32)
FAULTS = {1: 4 * SCALE, 3: 4 * SCALE, 5: 3 * SCALE}
"""By how many nodes there are."""
KEYS = 8
CLIENTS = 6
SETTLE_S = 60.0
ORPHAN_S = 20.0


@pytest.mark.timeout(240 + 40 * max(FAULTS.values()))
@pytest.mark.parametrize("size", [pytest.param(1, marks=pytest.mark.slow), 3, pytest.param(5, marks=pytest.mark.slow)])
def test_what_clients_see_under_faults_is_what_one_copy_would_show(size: int, tmp_path: Path) -> None:
    print(f"replay with JOBS_TEST_SEED={SEED} JOBS_TEST_SCALE={SCALE}")
    marker = f"faults-{uuid.uuid4()}"
    with members(tmp_path, size) as cluster:
        # Given clients of every node that read, write and submit jobs
        left_out = skipped(cluster.no_power_cuts)
        for kind, reason in left_out.items():
            print(f"left out: {kind}: {reason}")
        nemesis = Nemesis(cluster)
        with Load(cluster.sockets, random.Random(SEED), marker=marker, clients=CLIENTS, keys=KEYS) as load:
            # When one thing after another goes wrong
            nemesis.run(plan(SEED, size, FAULTS[size], frozenset(left_out)))
        load.check()
        cluster.leader(SETTLE_S)
        # Then every node answers again, and what all saw, these last reads too, is what one copy would have shown
        for socket in cluster.sockets():
            with Client(str(socket), patience_s=SETTLE_S) as client:
                load.keys[0].read_all(client)
                wrong = [*losses(client, load.acknowledged), *doubles(client)]
                assert not wrong, f"lost or written twice: {wrong}"
        verdict = assert_linearizable(load.history)
        # And every job that was accepted ended once; nothing of them runs on
        ends = hold_to_what_was_accepted(cluster, load)
        processes = [*cluster.processes(), *present(with_argument(marker))]
    # And nothing is left of the nodes, nor of any that was killed
    orphans = left_after(processes, ORPHAN_S)
    assert not orphans, f"{len(orphans)} processes are left: {orphans}"
    # And the checks are such that can fail
    assert check(with_a_stale_read(load.history)).outcome == "violation"
    assert check(with_a_lost_write(load.history)).outcome == "violation"
    answered, unanswered = (sum(getattr(one, name) for one in load.all) for name in ("answered", "unanswered"))
    print(f"{size} nodes, seed {SEED}: {sum(nemesis.counts.values())} faults: {dict(sorted(nemesis.counts.items()))}")
    print(f"of them: {dict(sorted(nemesis.notes.items()))}")
    print(
        f"{answered} calls answered, {unanswered} not; {verdict.operations} operations on {KEYS} keys are linearizable"
    )
    print(f"{len(load.acknowledged)} keys acknowledged once: 0 lost, 0 written twice")
    print(f"{len(load.accepted)} jobs accepted: {ends}; {len(load.ends)} ends seen meanwhile; 0 with two results")
    print(f"{len(processes)} processes of nodes and jobs: 0 orphans")


def losses(client: Client, acknowledged: Mapping[str, int]) -> list[str]:
    """Return the keys that are not as their one write, which was acknowledged, left them."""
    found = {one.key: (one.value.text, one.mod_revision) for one in client.kv.scan(ONCE)}
    return [key for key, revision in acknowledged.items() if found.get(key) != (once_value(key), revision)]


def doubles(client: Client) -> list[str]:
    """Return the keys that were written more than once."""
    return [one.key for one in client.kv.scan(ONCE, keys_only=True) if one.version != 1]


def hold_to_what_was_accepted(cluster: Members, load: Load) -> dict[str, int]:
    """Every job that was accepted ends once, with its own output or because its worker was lost."""
    ends: Counter[str] = Counter()
    results = {}
    finals = set()
    with cluster.leader().client() as client:
        for job, token in load.accepted.items():
            ended = client.wait(job, SETTLE_S)
            assert ended.state.is_final, f"job {job} is {ended.state}"
            finals.add(End(job, ended.state, ended.attempt, ended.finished_ms))
            results[job] = result = client.result(job)
            if ended.state is JobState.COMPLETED:
                assert result.stdout.text == f"{token}\n"
            else:
                assert ended.reason is Reason.WORKER_LOST, f"job {job}: {ended.reason}, {ended.message}"
            done = [one for one in client.attempts(job) if one.state is JobState.COMPLETED]
            assert len(done) == (ended.state is JobState.COMPLETED), f"job {job}: {done}"
            ends[str(ended.reason or ended.state)] += 1
    # Whoever saw a job's end before saw the same one, and every node tells the same result.
    twice = results_twice(load.ends | finals)
    assert not twice, f"two results: {twice}"
    for number in cluster.numbers():
        with cluster.node(number).client() as client:
            for job, result in results.items():
                assert client.result(job) == result
    assert ends, "no job was accepted"
    return dict(ends)


def results_twice(ends: Iterable[End]) -> list[End]:
    """Return the ends of jobs that were seen to end in more than one way."""
    ways = Counter(end.job for end in set(ends))
    return sorted(end for end in set(ends) if ways[end.job] > 1)


def left_after(processes: Sequence[Process], patience_s: float) -> list[Process]:
    """Return the processes that have not ended by then."""
    deadline = time.monotonic() + patience_s
    while (left := [process for process in processes if process.is_alive]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def test_the_checks_find_what_is_planted(tmp_path: Path) -> None:
    with EmbeddedNode(tmp_path / "node") as node, node.client() as client:
        # Given keys that were written once each, and a job that has ended
        keys = [f"{ONCE}{number}" for number in range(3)]
        told = {key: client.kv.put(key, once_value(key)).revision for key in keys}
        job = client.run(shell_job(["true"])).id
        seen = client.get(job).job
        end = End(job, seen.state, seen.attempt, seen.finished_ms)
        assert losses(client, told) == doubles(client) == results_twice([end, end]) == []
        # When one is lost, one is written twice, and somebody has seen another end
        client.kv.delete(keys[0])
        client.kv.put(keys[1], once_value(keys[1]))
        other = end._replace(attempt=end.attempt + 1)
        # Then each check tells
        assert losses(client, told) == keys[:2]
        assert doubles(client) == [keys[1]]
        assert results_twice([end, other]) == [end, other]
        left = Process.of(node.pid)
        assert left_after([left], 0) == [left]
    # And what has ended is no orphan
    assert left_after([left], 0) == []


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


def with_a_lost_write(history: Sequence[Operation]) -> list[Operation]:
    """Return the history with one more write, which was acknowledged and then found by nobody."""
    last = max((o for o in history if o.kind == "get" and o.revision is not None), key=lambda o: o.called_ns)
    end_ns = max(o.end_ns for o in history if o.is_known)
    newest = max(o.revision or 0 for o in history)
    lost = replace(
        last, kind="put", client=0, value="lost", revision=newest + 1, called_ns=end_ns + 1, answered_ns=end_ns + 2
    )
    again = replace(last, client=0, called_ns=end_ns + 3, answered_ns=end_ns + 4)
    return [*history, lost, again]
