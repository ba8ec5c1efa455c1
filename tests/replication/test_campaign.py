"""A continuous sync between two clusters under real faults, while clients write to its source, and in some runs to its
target: in the end both are the same, nothing that was acknowledged is lost, nothing that was deleted is back, and every
change of others that the sync replaced is recorded.

A schedule is drawn from a seed that is printed: JOBS_TEST_SEED=… runs it again. (Which client came first to what is
never the same twice.) JOBS_TEST_SCALE makes the campaign longer.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest

from jobs.client import Client, replication_job
from jobs.errors import Compacted, JobsError, NotFound, Unavailable
from jobs.protocol.model import Conflict, JobState, ReplicationSync, SyncView
from jobs.testing import EmbeddedNode
from tests.cluster.load import Repeater, Sockets
from tests.cluster.namespaces import network
from tests.replication.load import (
    HURRY,
    Meddler,
    Rows,
    Watcher,
    Writer,
    lost,
    resurrected,
    rows,
    strange,
    unrecorded,
)
from tests.replication.nemesis import Nemesis, plan
from tests.replication.planted import PLANTED
from tests.support.apart import ApartCluster
from tests.support.waiting import until

SCALE = int(os.environ.get("JOBS_TEST_SCALE", "1"))
SEED = int(os.environ.get("JOBS_TEST_SEED", "0")) or random.randrange(1 << 32)
FAULTS = 5 * SCALE
WRITERS: Final = 2
HISTORY: Final = 10_000
ENV: Final = {
    "JOBS_WORKERS__LEASE_S": "5",
    "JOBS_STORE__HISTORY_EVENTS": str(HISTORY),
    "JOBS_REPLICATION__MAX_CONFLICTS": "1000000",
}
SETTLE_S: Final = 90.0
PROBE_S: Final = 2.0
END: Final = "end"
"""A key that is written last."""


class Clusters:
    """One of three nodes and one of a single node, which may do everything at each other."""

    def __init__(self, three: ApartCluster, single: ApartCluster) -> None:
        self.by_name = {"three": three, "single": single}
        three.link("single", single)
        single.link("three", three)

    def mend(self) -> None:
        for cluster in self.by_name.values():
            cluster.net.heal()
            for node in cluster.nodes.values():
                if not node.is_running:
                    node.start(wait=False)
            cluster.leader()


@pytest.fixture(scope="module")
def clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clusters]:
    folder = tmp_path_factory.mktemp("clusters")
    with (
        network(4) as net,
        ApartCluster(folder / "three", net, first=1, size=3, env=ENV) as three,
        ApartCluster(folder / "single", net, first=4, size=1, env=ENV) as single,
    ):
        yield Clusters(three, single)


class Run:
    """A continuous sync, and clients of both its ends for as long as the context lasts."""

    def __init__(self, name: str, clusters: Clusters, source: str, target: str, home: str, *, meddled: bool) -> None:
        self.name = name
        self.prefix = f"/data/{name}/"
        self.source, self.target, self.home = (clusters.by_name[one] for one in (source, target, home))
        chance = random.Random(f"{SEED} {name}")
        self.writers = [
            Writer(number, sockets_of(self.source), random.Random(chance.random()), self.prefix)
            for number in range(WRITERS)
        ]
        self.meddler = (
            Meddler(sockets_of(self.target), random.Random(chance.random()), self.prefix, WRITERS) if meddled else None
        )
        self.watcher = Watcher(sockets_of(self.target), random.Random(chance.random()), self.prefix, self.meddler)
        self._sync = ReplicationSync(
            name=name,
            source=None if source == home else source,
            target=None if target == home else target,
            prefix=self.prefix,
            continuous=True,
        )
        with self.home.client() as client:
            self.job = client.submit(replication_job(self._sync)).job.id

    @property
    def clients(self) -> Sequence[Repeater]:
        return [*self.writers, *([self.meddler] if self.meddler else []), self.watcher]

    def __enter__(self) -> Run:
        for client in self.clients:
            client.start()
        return self

    def __exit__(self, *args: object) -> None:
        self.end(*self.clients)

    def end(self, *clients: Repeater) -> None:
        for client in clients:
            client.end()
        for client in clients:
            client.join()

    # --- what is asked of it meanwhile ------------------------------------------------------------------------------

    def view(self) -> SyncView:
        """Raises NotFound before it has begun."""
        with contextlib.closing(self._probe()) as client:
            for one in client.replication.syncs():
                if one.name == self.name:
                    return one
        raise NotFound(f"there is no sync {self.name!r}")

    def _probe(self) -> Client:
        """Return a client of a node that answers."""
        failed: JobsError = Unavailable("no node runs")
        for node in list(self.home.running()):
            client = Client(str(node.socket), patience_s=PROBE_S)
            try:
                client.kv.get(self.prefix)
                return client
            except JobsError as error:
                failed = error
                client.close()
        raise failed

    def snapshots(self) -> int:
        """Return how often everything was compared, once it was."""
        until(lambda: self.view().position > 0, SETTLE_S, "the sync does not begin")
        return self.view().snapshots

    def worker(self) -> EmbeddedNode | None:
        with contextlib.closing(self._probe()) as client:
            job = client.get(self.job).job
        if job.state is not JobState.RUNNING or job.worker is None:
            return None
        return self.home.nodes[str(job.worker).removeprefix("replication-")]

    def outrun(self) -> None:
        with self.source.leader().client() as client:
            # Whatever the target has is older.
            newest = client.kv.put(f"/data/{self.name}-parted", "").revision
            for writer in self.writers:
                writer.hurry.set()
            try:
                until(lambda: self._is_forgotten(client, newest), SETTLE_S, "history is kept too long")
            finally:
                for writer in self.writers:
                    writer.hurry.clear()

    def _is_forgotten(self, client: Client, revision: int) -> bool:
        try:
            client.kv.get(self.prefix, revision=revision)
        except Compacted:
            return True
        return False

    # --- and in the end ---------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Let nobody write any more, and return when the target has what the source has."""
        self.end(*self.writers, *([self.meddler] if self.meddler else []))
        self.in_step()
        if self.meddler is not None:
            self._overwrite(self.meddler)
            self.in_step()
        until(lambda: self.read(self.source) == self.read(self.target), SETTLE_S, "the target is not as the source")
        self.end(self.watcher)

    def _overwrite(self, meddler: Meddler) -> None:
        """Write at the source whatever others have changed at the target: only then does the sync come upon it."""
        names = sorted(meddler.touched)
        with self.source.leader().client() as client:
            for writer in self.writers:
                own = [name for name in names if writer.owns(name)]
                for at in range(0, len(own), HURRY):
                    writer.resolve(client, own[at : at + HURRY])

    def in_step(self) -> None:
        with self.source.leader().client() as client:
            newest = self.writers[0].write(client, [END])

        def is_there() -> bool:
            view = self.view()
            return view.phase == "following" and view.position >= newest and view.lag_s == 0

        until(is_there, SETTLE_S, "the sync does not come into step")

    def read(self, cluster: ApartCluster) -> Rows:
        with cluster.leader().client() as client:
            return rows(client, self.prefix)

    def conflicts(self) -> list[Conflict]:
        with self.home.leader().client() as client:
            return list(client.replication.conflicts(self.name))

    def lags(self) -> list[float]:
        """Return the metric of each node that works on it."""
        sample = f'jobs_replication_lag_seconds{{sync="{self.name}"}} '
        found = []
        for node in self.home.nodes.values():
            with node.client() as client:
                found += [float(line.split()[-1]) for line in client.metrics().splitlines() if line.startswith(sample)]
        return found


def sockets_of(cluster: ApartCluster) -> Sockets:
    return lambda: [node.socket for node in cluster.nodes.values()]


@pytest.mark.timeout(240 + 60 * FAULTS)
@pytest.mark.parametrize(
    ("name", "source", "target", "home", "meddled"),
    [
        pytest.param("pull", "three", "single", "single", True),
        pytest.param("push", "single", "three", "single", False, marks=pytest.mark.slow),
        pytest.param("pull-by-three", "single", "three", "three", True, marks=pytest.mark.slow),
        pytest.param("push-by-three", "three", "single", "three", False, marks=pytest.mark.slow),
    ],
)
def test_both_sides_are_the_same_after_faults(
    name: str, source: str, target: str, home: str, *, meddled: bool, clusters: Clusters
) -> None:
    print(f"replay with JOBS_TEST_SEED={SEED} JOBS_TEST_SCALE={SCALE}")
    # Given a continuous sync, and clients that write to its source, and maybe to its target
    with Run(name, clusters, source, target, home, meddled=meddled) as run:
        nemesis = Nemesis(run)
        # When one thing after another goes wrong
        try:
            nemesis.run(plan(f"{SEED} {name}", FAULTS))
        finally:
            clusters.mend()
        run.settle()
    for one in run.clients:
        assert one.failure is None, one.failure
        assert one.answered > 0
    # Then the target has what the source has, and both have what was acknowledged
    found = run.read(run.target)
    assert wrong_with(found, run) == []
    assert digest_of(found) == digest_of(run.read(run.source))
    with run.home.leader().client() as client:
        verified = client.replication.verify(
            source=None if source == home else source, target=None if target == home else target, prefix=run.prefix
        )
        assert (verified.differences, verified.rows) == ([], len(found))
    # And whatever others had written there is told of
    conflicts = run.conflicts() if target == home else []
    if run.meddler is not None:
        assert unrecorded(conflicts, run.meddler, run.prefix) == []
        assert run.view().conflicts == len(conflicts)
    # And it says itself that it lags behind in nothing
    view = run.view()
    assert (view.phase, view.lag_s, view.lag_revisions, view.last_error) == ("following", 0, 0, "")
    assert run.lags() == [0]
    with run.home.leader().client() as client:
        attempts = len(client.attempts(run.job))
        client.cancel(run.job)
        client.wait(run.job, SETTLE_S)
    print(f"{name}, seed {SEED}: {nemesis.counts.total()} faults: {dict(sorted(nemesis.counts.items()))}")
    events = sum(one.events for one in run.writers)
    doubtful = sum(len(one.doubtful) for one in run.writers)
    print(f"{events} puts acknowledged at the source, {doubtful} keys left in doubt; {len(found)} keys in the end")
    print(
        f"{view.rows} put at the target, {view.deleted} deleted, compared {view.snapshots} times, {attempts} attempts"
    )
    if run.meddler is not None:
        print(f"{len(run.meddler.done)} changes by others at the target, {len(conflicts)} conflicts recorded")
    print(f"0 lost, 0 back; both sides are {digest_of(found)}")


def wrong_with(found: Rows, run: Run) -> list[str]:
    """Return what of the target is not as it has to be, in words."""
    checks = {
        "lost": lost(found, run.writers),
        "back": resurrected(found, run.writers),
        "strange": strange(found, run.writers),
        "came back meanwhile": run.watcher.resurrected(),
    }
    return [f"{what}: {name}" for what, names in checks.items() for name in names]


def digest_of(found: Rows) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(found.items()):
        digest.update(b"%d %s %d %s" % (len(name), name.encode(), len(value), value))
    return digest.hexdigest()


@pytest.mark.parametrize(
    "planted", ["", "deletes are forgotten", "some puts are forgotten", "conflicts are not recorded"]
)
def test_the_checks_find_what_is_planted(planted: str, tmp_path: Path) -> None:
    source, target = "/data/a/", "/data/b/"
    env = {PLANTED: planted}
    with (
        EmbeddedNode(tmp_path / "node", types=("replication",), env=env, module="tests.replication.planted") as node,
        node.client() as client,
    ):
        sockets: Sockets = lambda: [node.socket]  # noqa: E731
        writers = [Writer(number, sockets, random.Random(number), source) for number in range(WRITERS)]
        meddler = Meddler(sockets, random.Random(0), target, WRITERS)

        def sync() -> None:
            client.replication.sync("copy", prefix=source, target_prefix=target)

        # Given a sync that is wrong in one way, what it brought, what others changed of it, and what it brought then
        for writer in writers:
            for _ in range(20):
                writer.once(client)
        sync()
        for _ in range(50):
            meddler.once(client)
        for writer in writers:
            writer.resolve(client, sorted(filter(writer.owns, meddler.touched)))
            writer.once(client)
        sync()
        # Then what the source has is what was acknowledged
        there = rows(client, source)
        assert lost(there, writers) == resurrected(there, writers) == strange(there, writers) == []
        # And the check that is meant tells, and none where nothing is wrong
        found = rows(client, target)
        told = {
            "some puts are forgotten": lost(found, writers),
            "deletes are forgotten": resurrected(found, writers),
            "conflicts are not recorded": unrecorded(client.replication.conflicts("copy"), meddler, target),
        }
        assert {what for what, names in told.items() if names} >= ({planted} - {""})
        assert planted or not any(told.values())
