"""Three real nodes whose links, processes and disks fail in the middle of something."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs._native import Blake3
from jobs.errors import JobsError
from jobs.testing import NodeFailed
from tests.cluster.namespaces import Network, network
from tests.support.blobcluster import BlobCluster, BlobNode, Refused, until
from tests.support.blobpeer import made

SCALE = int(os.environ.get("JOBS_TEST_SCALE", "1"))
SEED = int(os.environ.get("JOBS_TEST_SEED", "0")) or random.randrange(1 << 32)
MIB = 1 << 20
PORT = 7420


class Apart(BlobCluster):
    """Each node in a network namespace of its own."""

    def __init__(self, directory: Path, net: Network, size: int = 3) -> None:
        self.net = net
        super().__init__(directory, size)

    def listen(self, name: str) -> str:
        return f"{self.net.address(int(name[1:]))}:{PORT}"

    def prefix(self, name: str) -> tuple[str, ...]:
        return self.net.inside(int(name[1:]))

    def slow(self, sender: BlobNode, mbit_per_s: int) -> None:
        """Let a node send no faster to each of the others."""
        number = number_of(sender)
        for far in range(1, len(self.nodes) + 1):
            if far != number:
                self.net.slow(number, far, mbit_per_s)

    def cut(self, node: BlobNode) -> None:
        """Lose all between a node and the others."""
        number = number_of(node)
        for far in range(1, len(self.nodes) + 1):
            if far != number:
                self.net.lose(number, far)
                self.net.lose(far, number)


def partials(node: BlobNode) -> list[Path]:
    return list((node.directory / "data" / "blobs" / "partial").iterdir())


def number_of(node: BlobNode) -> int:
    return int(node.directory.name[1:])


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apart]:
    with network(3) as net, Apart(tmp_path_factory.mktemp("apart"), net) as made:
        assert isinstance(made, Apart)
        yield made


@pytest.fixture
def apart(nodes: Apart) -> Iterator[Apart]:
    """Three nodes that reach each other again after each test; the blobs of each have seeds of their own."""
    yield nodes
    nodes.net.heal()
    for node in map(nodes.node, nodes.nodes):
        if not node.is_running:
            node.start(wait=False)
    until(lambda: all(node.order(do="lacking") == [] for node in map(nodes.node, nodes.nodes)))
    until(lambda: all(node.order(do="reached") == 3 for node in map(nodes.node, nodes.nodes)))


def fetching(node: BlobNode, blob: str, **payload: Any) -> Iterator[dict[str, Any]]:
    payload = {"operation": "fetch", "hash": blob, **payload}
    return node.orders(do="perform", payload=payload)


def until_under_way(events: Iterator[dict[str, Any]], at_least: int) -> None:
    for news in events:
        if news.get("done", 0) >= at_least:
            return
    raise AssertionError("it ended before it was seen under way")


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["kill", "cut"])
def test_another_provider_goes_on_where_one_is_lost(apart: Apart, loss: str) -> None:
    # Given a blob on two nodes, of which the slow one that does not lead is asked first
    leader = apart.leading()
    first, third = apart.followers()
    size = 48 * MIB
    blob = first.add(size, seed=10 + len(loss), tag=loss, replicas=1)["hash"]
    leader.perform("replicate", hash=blob, nodes=[first.directory.name, leader.directory.name])
    apart.slow(first, 100)
    # When that is lost in the middle
    events = fetching(third, blob, providers=[first.directory.name, leader.directory.name])
    until_under_way(events, 8 * MIB)
    if loss == "kill":
        first.kill()
    else:
        apart.cut(first)
    # Then the other one gives the rest
    done = list(events)[-1]["end"]
    given = {peer["node"]: peer["bytes"] for peer in done["peers"]}
    assert given[first.directory.name] >= 8 * MIB
    assert sum(given.values()) == done["bytes"] == size
    assert third.has(blob)


def test_a_partition_in_mid_transfer_is_told_and_costs_what_had_not_come(apart: Apart) -> None:
    first, third = apart.followers()
    size = 48 * MIB
    blob = first.add(size, seed=20, tag="partition", replicas=1)["hash"]
    apart.slow(first, 100)
    events = fetching(third, blob)
    until_under_way(events, 8 * MIB)
    apart.cut(first)
    with pytest.raises(Refused) as refused:
        list(events)
    assert refused.value.code == "blob_unavailable"
    assert blob in refused.value.detail
    assert first.directory.name in refused.value.detail
    assert not third.has(blob)
    apart.net.heal()

    def is_fetched() -> bool:
        done = list(fetching(third, blob))[-1]["end"]
        assert done["peers"][0]["bytes"] <= size - 8 * MIB
        return third.has(blob)

    until(is_fetched)


def test_what_is_given_up_ends_and_is_gone_on_with_by_the_next(apart: Apart) -> None:
    first, third = apart.followers()
    size = 48 * MIB
    blob = first.add(size, seed=30, tag="given-up", replicas=1)["hash"]
    apart.slow(first, 100)
    events = fetching(third, blob)
    until_under_way(events, 8 * MIB)
    events.close()  # type: ignore[attr-defined]
    apart.net.heal()
    with pytest.raises(AssertionError):
        until(lambda: third.has(blob), 5)
    done = list(fetching(third, blob))[-1]["end"]
    assert done["bytes"] == size
    assert done["peers"][0]["bytes"] <= size - 8 * MIB


def test_a_node_that_is_cut_off_acknowledges_nothing_and_goes_on_afterwards(apart: Apart) -> None:
    alone = apart.followers()[0]
    apart.cut(alone)
    with pytest.raises(Refused) as refused:
        alone.add(MIB, seed=40, tag="alone")
    assert refused.value.code in ("not_leader", "no_leader", "unavailable")
    apart.net.heal()
    until(lambda: len(alone.add(MIB, seed=40, tag="alone")["nodes"]) >= 2)


@pytest.mark.slow
def test_a_copy_under_way_to_a_node_that_is_cut_off_goes_elsewhere(apart: Apart) -> None:
    leader = apart.leading()
    followers = apart.followers()
    apart.slow(leader, 100)
    acknowledged: list[Any] = []
    adding = threading.Thread(target=lambda: acknowledged.append(leader.add(48 * MIB, seed=50, tag="copy")))
    adding.start()
    until(lambda: any(map(partials, followers)))
    target = next(filter(partials, followers))
    (other,) = set(followers) - {target}
    apart.cut(target)
    adding.join(60)
    (added,) = acknowledged
    assert added["nodes"] == sorted((leader.directory.name, other.directory.name))
    assert other.has(added["hash"])


def test_who_does_not_reach_the_leader_asks_through_another(apart: Apart) -> None:
    leader = apart.leading()
    alone, other = apart.followers()
    apart.net.lose(number_of(alone), number_of(leader))
    apart.net.lose(number_of(leader), number_of(alone))

    def is_added() -> bool:
        added = alone.add(MIB, seed=60, tag="relayed")
        return bool(added["nodes"] == sorted((alone.directory.name, other.directory.name)))

    until(is_added)
    assert apart.leader() is leader


@contextlib.contextmanager
def small_disk(node: BlobNode, size_bytes: int) -> Iterator[Path]:
    """Have a node's blobs on a small disk of their own. The node does not run meanwhile."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    place = node.directory / "data" / "blobs"
    mount(place, f"size={size_bytes},mode=700")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], capture_output=True)


def mount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "jobs-test", str(place)], check=True)


@pytest.mark.slow
def test_a_full_disk_refuses_keeps_nothing_half_and_is_made_use_of_when_it_has_room(tmp_path: Path) -> None:
    with BlobCluster(tmp_path) as cluster:
        assert isinstance(cluster, BlobCluster)
        leader = cluster.leading()
        full = cluster.followers()[0]
        full.stop()
        with small_disk(full, 24 * MIB) as place:
            full.start()
            # One that is too large for it goes to the other one
            name = full.directory.name
            blob = leader.add(32 * MIB, seed=1, tag="t")
            assert name not in blob["nodes"]
            # Where all three are to have it, that is refused with the reason, and what there is of it is kept
            with pytest.raises(Refused) as refused:
                leader.add(32 * MIB, seed=2, tag="u", replicas=3)
            assert refused.value.code == "storage_full"
            assert name in refused.value.detail
            (lacking,) = leader.order(do="lacking")
            assert len(cluster.holders(lacking["hash"])) == 2
            # What comes to the full one itself leaves nothing
            with pytest.raises(Refused, match="DiskFullError"):
                full.add(32 * MIB, seed=3)
            with pytest.raises(Refused) as refused:
                full.perform("fetch", hash=blob["hash"])
            assert refused.value.code == "storage_full"
            usage = full.order(do="usage")
            assert (usage["blobs"], usage["bytes"], usage["partial_bytes"]) == (0, 0, 0)
            # And with room again it gets its copy
            mount(place, f"remount,size={200 * MIB}")
            until(lambda: leader.order(do="lacking") == [] and full.has(lacking["hash"]), 120)
            full.kill()


@pytest.mark.slow
@pytest.mark.timeout(180 + 60 * SCALE)
def test_many_small_blobs(tmp_path: Path) -> None:
    count = 1_000 * min(SCALE, 10)
    with BlobCluster(tmp_path) as cluster:
        assert isinstance(cluster, BlobCluster)
        node, other = cluster.followers()
        orders = node.orders(600, do="add", size=4_096, seed=1_000_000, count=count, at_once=32)
        blobs = [one["hash"] for one in list(orders)[-1]["end"]]
        assert len(set(blobs)) == count
        assert node.order(do="lacking") == []
        root = list(node.orders(600, do="sequence", children=blobs, tag="all"))[-1]["end"]["hash"]
        done = list(other.orders(600, do="perform", payload={"operation": "fetch", "hash": root}))[-1]["end"]
        assert (done["blobs"], done["bytes"]) == (count + 1, count * (4_096 + 32))
        assert all(map(other.has, blobs))
        # And a disk that is lost comes back
        node.kill()
        subprocess.run(["rm", "-rf", str(node.directory / "data" / "blobs")], check=True)
        node.start()
        until(lambda: min(len(cluster.holders(blob)) for blob in blobs) >= 2, 300)
        until(lambda: cluster.leading().order(do="lacking") == [])


# --- garbage under faults ---------------------------------------------------------------------------------------------


class Keeper:
    """Adds, tags, fetches and gives up blobs of its own, and knows which of them have to be there."""

    def __init__(self, cluster: BlobCluster, number: int, stop: threading.Event) -> None:
        self._cluster = cluster
        self._number = number
        self._stop = stop
        self._chance = random.Random(f"{SEED}/{number}")
        self.kept: dict[str, int] = {}
        """Blobs with an acknowledged tag, and their sizes."""
        self.loose: dict[str, int] = {}
        """Blobs that nothing refers to, for certain."""
        self.unsure: set[str] = set()
        """Of which an order was not answered."""
        self.thin: set[str] = set()
        """That were not acknowledged, or by one node while no other was reached."""
        self.failures: list[str] = []
        self.done = 0

    def run(self) -> None:
        count = 0
        while not self._stop.is_set():
            count += 1
            try:
                self._step(count)
                self.done += 1
            except (Refused, OSError, JobsError, NodeFailed) as error:
                if isinstance(error, Refused) and error.code in ("AssertionError", "internal", "blob_damaged"):
                    self.failures.append(str(error))
                self._stop.wait(0.1)

    def _node(self) -> BlobNode:
        return self._cluster.node(self._chance.choice(list(self._cluster.nodes)))

    def _step(self, count: int) -> None:
        what = self._chance.choice(("keep", "keep", "leave", "tag", "untag", "fetch"))
        if what in ("keep", "leave"):
            self._add(count, tagged=what == "keep")
        elif what == "fetch" and self.kept:
            self._node().perform("fetch", hash=self._chance.choice(sorted(self.kept)))
        elif what == "tag" and self.loose:
            self._tag(self._chance.choice(sorted(self.loose)))
        elif what == "untag" and self.kept:
            self._untag(self._chance.choice(sorted(self.kept)))

    def _add(self, count: int, *, tagged: bool) -> None:
        seed = (self._number + 1) * 1_000_000 + count
        size = self._chance.choice((100, 20_000, 300_000, 2_500_000))
        blob = hash_of(size, seed)
        self.unsure.add(blob)
        self.thin.add(blob)
        added = self._node().add(size, seed=seed, tag=f"k/{blob}" if tagged else None)
        if len(added["nodes"]) < 2:
            return
        self.thin.discard(blob)
        self.unsure.discard(blob)
        (self.kept if tagged else self.loose)[blob] = size

    def _tag(self, blob: str) -> None:
        size = self.loose.pop(blob)
        self.unsure.add(blob)
        try:
            self._node().order(do="tag", hash=blob, tag=f"k/{blob}")
        except Refused as error:
            if error.code == "not_found":
                # It was collected before: that is the end of it.
                self.unsure.discard(blob)
                self.loose[blob] = size
            raise
        self.unsure.discard(blob)
        self.kept[blob] = size

    def _untag(self, blob: str) -> None:
        size = self.kept.pop(blob)
        self.unsure.add(blob)
        self._cluster.leading().order(do="untag", tag=f"k/{blob}")
        self.unsure.discard(blob)
        self.loose[blob] = size


def hash_of(size: int, seed: int) -> str:
    digest = Blake3()
    for piece in made(size, seed):
        digest.update(piece)
    return digest.digest().hex()


def collect_until(cluster: BlobCluster, stop: threading.Event, reports: list[dict[str, Any]]) -> None:
    chance = random.Random(f"{SEED}/gc")
    while not stop.is_set():
        with contextlib.suppress(Refused, OSError):
            reports.append(cluster.node(chance.choice(list(cluster.nodes))).perform("gc"))
        stop.wait(0.3)


def lacking(cluster: BlobCluster) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = cluster.leading().order(do="lacking")
    return found


def entries(node: BlobNode) -> Iterator[dict[str, Any]]:
    after = ""
    while page := node.order(do="entries", after=after):
        yield from page
        after = page[-1]["hash"]


def kill_at_random(cluster: BlobCluster, rounds: int) -> int:
    """Kill a node, or two at once, and start them again; one of them without its disk."""
    chance = random.Random(f"{SEED}/kill")
    killed = 0
    for number in range(rounds):
        time.sleep(chance.uniform(1.0, 3.0))
        hit = chance.sample(sorted(cluster.nodes), chance.choice((1, 1, 1, 2)))
        for name in hit:
            cluster.node(name).kill()
            killed += 1
        time.sleep(chance.uniform(0.0, 1.0))
        if number == rounds // 2:
            shutil.rmtree(cluster.node(hit[0]).directory / "data" / "blobs")
        for name in hit:
            cluster.node(name).start(wait=False)
    return killed


@pytest.mark.slow
@pytest.mark.timeout(240 + 60 * SCALE)
def test_garbage_is_collected_and_nothing_that_is_referred_to_is_lost_whoever_is_killed(tmp_path: Path) -> None:
    print(f"replay with JOBS_TEST_SEED={SEED} JOBS_TEST_SCALE={SCALE}")
    with BlobCluster(tmp_path) as cluster:
        assert isinstance(cluster, BlobCluster)
        # Given threads that add, tag, fetch and give up, and one that collects all the time
        stop = threading.Event()
        keepers = [Keeper(cluster, number, stop) for number in range(4)]
        reports: list[dict[str, Any]] = []
        threads = [threading.Thread(target=keeper.run) for keeper in keepers]
        threads.append(threading.Thread(target=collect_until, args=(cluster, stop, reports)))
        for thread in threads:
            thread.start()
        # When nodes are killed
        try:
            killed = kill_at_random(cluster, 6 * SCALE)
        finally:
            stop.set()
            for thread in threads:
                thread.join(60)
        until(lambda: all(node.order(do="lacking") is not None for node in map(cluster.node, cluster.nodes)))
        assert not [failure for keeper in keepers for failure in keeper.failures]
        # Then each blob that is referred to is on as many disks as it is to be, sound
        unsure = {blob for keeper in keepers for blob in keeper.unsure}
        thin = {blob for keeper in keepers for blob in keeper.thin}
        # (The only copy of one that was not acknowledged may have gone with the disk.)
        until(lambda: not [one for one in lacking(cluster) if one["nodes"] or one["hash"] not in thin], 180)
        lost = {one["hash"] for one in lacking(cluster)}
        kept = {blob: size for keeper in keepers for blob, size in keeper.kept.items()}
        few = [blob for blob in kept if len(cluster.holders(blob)) < 2]
        assert not few, f"{len(few)} of {len(kept)} are lost or on too few nodes: {few[:3]}"
        verified = cluster.leading().perform("verify")
        assert verified["damaged"] == 0

        # And what nothing refers to is gone, bytes and all
        def left() -> set[str]:
            cluster.leading().perform("gc")
            pages = [blob for name in cluster.nodes for blob in cluster.node(name).order(do="page")]
            return set(pages) - set(kept) - unsure

        until(lambda: not left(), 60)
        # And so is every other that the catalogue still has, whatever became of the order that was not answered
        known = [entry["hash"] for entry in entries(cluster.leading()) if entry["hash"] not in lost]
        assert set(kept) <= set(known)
        few = [blob for blob in known if len(cluster.holders(blob)) < 2]
        assert not few, f"{len(few)} of {len(known)} are on too few nodes: {few[:3]}"
        usage = [cluster.node(name).order(do="usage") for name in cluster.nodes]
        assert sum(one["quarantined"] for one in usage) == 0
        loose = [blob for keeper in keepers for blob in keeper.loose]
        done = sum(keeper.done for keeper in keepers)
        freed = sum(report["bytes"] for report in reports)
        print(f"seed {SEED}: {done} orders, {killed} kills, {len(reports)} collections that freed {freed >> 20} MiB")
        print(f"{len(kept)} blobs referred to: 0 lost; {len(loose)} given up: 0 bytes left; {len(unsure)} unsure")
        print(f"{len(lost)} that were not acknowledged had their only copy on the disk that was lost")
