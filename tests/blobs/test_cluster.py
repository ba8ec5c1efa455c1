"""Three real nodes: what is acknowledged is on as many disks as it is to be, whichever node is asked, and stays so."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.blobcluster import MODULE, BlobCluster, BlobNode, Refused, until
from tests.support.netpeer import peak_bytes

SCALE = int(os.environ.get("JOBS_TEST_SCALE", "1"))
MIB = 1 << 20


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[BlobCluster]:
    """One of this test alone."""
    with BlobCluster(tmp_path) as made:
        assert isinstance(made, BlobCluster)
        yield made


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BlobCluster]:
    """One for tests that leave its nodes and disks as they found them, and whose blobs have seeds of their own."""
    with BlobCluster(tmp_path_factory.mktemp("shared")) as made:
        assert isinstance(made, BlobCluster)
        yield made


def added(node: BlobNode, **order: Any) -> list[str]:
    return [one["hash"] for one in node.order(do="add", at_once=8, **order)]


def path_of(node: BlobNode, blob: str) -> Path:
    return node.directory / "data" / "blobs" / "data" / blob[:2] / blob


def is_repaired(cluster: BlobCluster, blobs: list[str], copies: int) -> bool:
    lacking = cluster.leading().order(do="lacking")
    return lacking == [] and all(len(cluster.holders(blob)) >= copies for blob in blobs)


def test_a_blob_is_on_a_majority_when_it_is_acknowledged(shared: BlobCluster) -> None:
    for number, node in enumerate((shared.leading(), *shared.followers())):
        blob = node.add(3 * MIB, seed=100 + number, tag=f"majority{number}")
        assert len(blob["nodes"]) == 2
        assert shared.holders(blob["hash"]) == blob["nodes"]
        assert blob["hash"] not in [one["hash"] for one in node.order(do="lacking")]
        # And again it is the same
        assert node.add(3 * MIB, seed=100 + number) == blob
    everywhere = shared.leading().add(MIB, seed=109, replicas=3)
    assert shared.holders(everywhere["hash"]) == ["n1", "n2", "n3"]


def test_many_at_once_all_get_their_copies(shared: BlobCluster) -> None:
    node = shared.followers()[0]
    made = list(node.orders(do="add", size=10_000, seed=10_000, count=400, at_once=400))[-1]["end"]
    assert {len(one["nodes"]) for one in made} == {2}
    assert min(len(shared.holders(one["hash"])) for one in made) == 2


@pytest.mark.timeout(120 + 60 * SCALE)
def test_memory_stays_flat_while_a_large_blob_is_added_copied_and_verified(shared: BlobCluster) -> None:
    size = 256 * MIB if SCALE == 1 else 512 * MIB * SCALE  # 5 GiB where campaigns are long
    nodes = [shared.node(name) for name in sorted(shared.nodes)]
    before = [peak_bytes(node.pid) for node in nodes]
    (blob,) = list(nodes[0].orders(60 * SCALE, do="add", size=size, seed=900, replicas=3))[-1]["end"]
    assert blob["nodes"] == ["n1", "n2", "n3"]
    payload = {"operation": "verify", "hash": blob["hash"]}
    done = list(nodes[0].orders(60 * SCALE, do="perform", payload=payload))[-1]["end"]
    assert (done["bytes"], done["damaged"]) == (3 * size, 0)
    for node, peak in zip(nodes, before, strict=True):
        grown = peak_bytes(node.pid) - peak
        assert grown < 120 * MIB, f"{node.directory.name}: {grown >> 20} MiB more"


def test_what_is_read_elsewhere_is_brought_there_and_goes_with_the_next_sweep(shared: BlobCluster) -> None:
    blob = shared.leading().add(2 * MIB, seed=200, tag="read")
    (other,) = [shared.node(name) for name in shared.nodes if name not in blob["nodes"]]
    assert other.order(do="bring", hash=blob["hash"]) == 2 * MIB
    assert other.has(blob["hash"])
    assert other.order(do="readable", hash=blob["hash"])["nodes"] == blob["nodes"]

    # A look says that it would go, and where
    looked = shared.leading().orders(do="perform", payload={"operation": "gc", "dry_run": True, "grace_s": 0})
    lines = [json.loads(news["text"]) for news in looked if news.get("event") == "line"]
    (line,) = [line for line in lines if line["hash"] == blob["hash"]]
    assert (line["node"], line["outcome"]) == (other.directory.name, "would go")
    assert other.has(blob["hash"])

    def is_swept() -> bool:
        shared.leading().perform("gc")
        return not other.has(blob["hash"])

    until(is_swept)
    assert shared.holders(blob["hash"]) == blob["nodes"]


def test_others_have_it_when_a_member_is_down_and_it_gets_its_copy_when_it_is_back(cluster: BlobCluster) -> None:
    down = cluster.followers()[0]
    alone = down.add(MIB, seed=2, replicas=1, tag="alone")["hash"]
    down.kill()
    # To have looked at nothing is no proof that nothing is damaged
    with pytest.raises(Refused, match=rf"no copy was verified: {down.directory.name}: ") as refused:
        cluster.leading().perform("verify", hash=alone)
    assert refused.value.code == "blob_unavailable"
    blob = cluster.leading().add(2 * MIB, seed=1, replicas=3, tag="t")
    assert len(blob["nodes"]) == 2
    assert [one["hash"] for one in cluster.leading().order(do="lacking")] == [blob["hash"]]
    down.start()
    until(lambda: is_repaired(cluster, [blob["hash"]], 3))


def test_a_member_that_is_removed_leaves_the_factor_as_it_was(cluster: BlobCluster) -> None:
    blobs = [
        one["hash"] for one in cluster.leading().order(do="add", size=100_000, seed=1, count=40, at_once=8, tag="t")
    ]
    gone = cluster.followers()[0]
    had = [blob for blob in blobs if gone.has(blob)]
    assert had
    gone.stop()
    shutil.rmtree(gone.directory / "data" / "blobs")
    with cluster.leading().client() as client:
        client.cluster.remove(gone.directory.name)
    until(lambda: is_repaired(cluster, blobs, 2))


@pytest.mark.slow
def test_the_factor_is_restored_when_a_disk_is_lost(cluster: BlobCluster) -> None:
    blobs = [
        one["hash"] for one in cluster.leading().order(do="add", size=50_000, seed=1, count=60, at_once=8, tag="t")
    ]
    hit = max(cluster.followers(), key=lambda node: sum(map(node.has, blobs)))
    hit.kill()
    shutil.rmtree(hit.directory / "data" / "blobs")
    hit.start()
    until(lambda: is_repaired(cluster, blobs, 2))
    # And one that was swapped for an empty node gives its place to that
    other = next(node for node in cluster.followers() if node is not hit)
    other.stop()
    with cluster.leading().client() as client:
        client.cluster.remove(other.directory.name)
    made = cluster.add("n4")
    made.start(wait=False)
    cluster.join(made)
    del cluster.nodes[other.directory.name]
    until(lambda: is_repaired(cluster, blobs, 2))


def test_what_a_running_node_has_lost_is_found_when_it_cannot_give_it(cluster: BlobCluster) -> None:
    blob = cluster.leading().add(2 * MIB, seed=1, replicas=2, tag="t")
    lost, kept = (cluster.node(name) for name in blob["nodes"])
    (third,) = [cluster.node(name) for name in cluster.nodes if name not in blob["nodes"]]
    path_of(lost, blob["hash"]).unlink()
    # When the one without it is asked first
    done = third.perform("fetch", hash=blob["hash"], providers=[lost.directory.name, kept.directory.name], tag="t2")
    assert done["bytes"] == 2 * MIB
    assert third.has(blob["hash"])
    until(lambda: is_repaired(cluster, [blob["hash"]], 2))
    if any(peer["outcome"] for peer in done["peers"]):
        until(
            lambda: (
                lost.directory.name not in third.order(do="readable", hash=blob["hash"])["nodes"]
                or lost.has(blob["hash"])
            )
        )


def test_a_flipped_byte_is_found_put_aside_and_mended(shared: BlobCluster) -> None:
    blobs = [shared.leading().add(MIB, seed=300 + n, replicas=3, tag=f"flip{n}")["hash"] for n in range(4)]
    hit = shared.followers()[0]
    for blob in blobs[:2]:
        with path_of(hit, blob).open("r+b") as file:
            file.seek(700_000)
            (byte,) = file.read(1)
            file.seek(700_000)
            file.write(bytes((byte ^ 1,)))
    lines, told = [], []
    for news in shared.leading().orders(do="perform", payload={"operation": "verify"}):
        if news.get("event") == "progress":
            told.append(news)
        if news.get("event") == "line":
            lines.append(json.loads(news["text"]))
    done = news["end"]
    assert all(one["done"] <= one["total"] > 0 for one in told), "how far it is, of how much"
    assert told[-1]["done"] == done["bytes"]
    assert (done["damaged"], done["mended"]) == (2, 2)
    assert done["bytes"] >= 3 * 4 * MIB
    assert sorted(line["hash"] for line in lines) == sorted(blobs[:2])
    assert {line["node"] for line in lines} == {hit.directory.name}
    assert hit.order(do="usage")["damages"] == 2
    again = shared.leading().perform("verify", hash=blobs[0])
    assert (again["damaged"], again["blobs"]) == (0, 3)
    assert shared.holders(blobs[0]) == shared.holders(blobs[1]) == ["n1", "n2", "n3"]


def test_what_is_damaged_everywhere_is_told_and_nothing_else_is_lost(shared: BlobCluster) -> None:
    blob = shared.leading().add(MIB, seed=400, replicas=2, tag="damaged")
    for name in blob["nodes"]:
        with path_of(shared.node(name), blob["hash"]).open("r+b") as file:
            file.write(b"no")
    with pytest.raises(Refused) as refused:
        shared.leading().perform("verify", hash=blob["hash"])
    assert refused.value.code == "blob_damaged"
    assert blob["hash"] in refused.value.detail
    assert "no provider gave it: n" in refused.value.detail
    assert re.findall("[0-9a-f]{10}: ", refused.value.detail) == [], "each member is told of once, by its name"
    for name in blob["nodes"]:
        aside = list((shared.node(name).directory / "data" / "blobs" / "quarantine").iterdir())
        assert [path.name[:64] for path in aside] == [blob["hash"]]
    # And adding it again mends it
    shared.leading().add(MIB, seed=400)
    until(lambda: is_repaired(shared, [blob["hash"]], 2))


def test_replicate_by_number_and_by_name_also_the_children_of_a_collection(shared: BlobCluster) -> None:
    node = shared.followers()[0]
    children = added(node, size=10_000, seed=500, count=5)
    root = node.order(do="sequence", children=children, tag="raised")
    done = shared.leading().perform("replicate", hash=root["hash"], replicas=3)
    assert done["blobs"] == 6
    until(lambda: is_repaired(shared, [*children, root["hash"]], 3))
    single = node.add(MIB, seed=507, tag="named")
    (without,) = set(shared.nodes) - set(single["nodes"])
    done = node.perform("replicate", hash=single["hash"], nodes=[without])
    assert [(peer["node"], peer["bytes"]) for peer in done["peers"]] == [(without, MIB)]
    assert shared.node(without).has(single["hash"])
    # To be on one node by name is no wish to be on one alone
    assert node.order(do="readable", hash=single["hash"])["replicas"] == 2
    one = node.add(MIB, seed=508, replicas=1, tag="one")
    others = sorted(set(shared.nodes) - set(one["nodes"]))
    node.perform("replicate", hash=one["hash"], nodes=others)
    assert node.order(do="readable", hash=one["hash"])["replicas"] == 2
    assert shared.holders(one["hash"]) == ["n1", "n2", "n3"]
    with pytest.raises(Refused, match="no member is called n9"):
        node.perform("replicate", hash=single["hash"], nodes=["n9"])


def test_a_collection_fetched_on_another_node_comes_with_its_children(shared: BlobCluster) -> None:
    node = shared.followers()[0]
    children = added(node, size=30_000, seed=600, count=12)
    root = node.order(do="sequence", children=children, tag="tree")
    for name in shared.nodes:
        done = shared.node(name).perform("fetch", hash=root["hash"])
        assert done["blobs"] == 13
        assert all(map(shared.node(name).has, (*children, root["hash"])))
    with pytest.raises(Refused) as refused:
        shared.leading().order(do="perform", uid=1001, payload={"operation": "fetch", "hash": root["hash"]})
    assert refused.value.code == "not_found"


def test_a_snapshot_of_the_store_is_added_from_any_node(shared: BlobCluster) -> None:
    node = shared.followers()[0]
    with node.client() as client:
        client.kv.put("/data/k", "v")
    done = node.perform("add", source={"snapshot": True}, tag="backup")
    assert done["bytes"] > 0
    assert len(shared.holders(done["hash"])) == 2
    with pytest.raises(Refused) as refused:
        node.order(do="perform", uid=1001, payload={"operation": "add", "source": {"snapshot": True}})
    assert refused.value.code == "forbidden"


def test_gc_deletes_what_nothing_refers_to_on_every_node_and_lists_it_first(shared: BlobCluster) -> None:
    node = shared.followers()[0]
    kept = node.add(MIB, seed=700, replicas=3, tag="keep")["hash"]
    loose = node.add(MIB, seed=701, replicas=3)["hash"]

    def lines(**payload: object) -> tuple[list[dict[str, object]], dict[str, object]]:
        found = list(node.orders(do="perform", payload={"operation": "gc", **payload}))
        return [json.loads(news["text"]) for news in found if news.get("event") == "line"], found[-1]["end"]

    listed, _ = lines(dry_run=True, grace_s=0)
    assert (loose, "nothing refers to it") in [(line["hash"], line["why"]) for line in listed]
    assert kept not in [line["hash"] for line in listed]
    assert shared.holders(loose) == ["n1", "n2", "n3"]

    freed = 0

    def is_gone() -> bool:
        nonlocal freed
        freed += lines()[1]["bytes"]  # type: ignore[operator]
        return shared.holders(loose) == []

    until(is_gone)
    assert freed >= 3 * MIB
    assert shared.holders(kept) == ["n1", "n2", "n3"]
    with pytest.raises(Refused) as refused:
        node.order(do="perform", uid=1001, payload={"operation": "gc"})
    assert refused.value.code == "forbidden"


def test_a_small_blob_that_is_damaged_where_it_is_wanted_is_brought_anew(shared: BlobCluster) -> None:
    blob = shared.leading().add(5_000, seed=800, replicas=2, tag="small")
    hit = shared.node(blob["nodes"][0])
    path_of(hit, blob["hash"]).write_bytes(bytes(5_000))
    assert hit.order(do="bring", hash=blob["hash"]) == 5_000


def test_a_node_alone_does_all_that_needs_no_other(tmp_path: Path) -> None:
    node = BlobNode(tmp_path / "alone", env={"JOBS_BLOBS__GRACE_S": "1"}, types=(), module=MODULE)
    with node:
        kept, loose = node.add(MIB, seed=1, tag="t")["hash"], node.add(MIB, seed=2)["hash"]
        assert node.perform("fetch", hash=kept)["bytes"] == MIB
        assert node.perform("verify")["blobs"] == 2
        assert node.perform("replicate", hash=kept, replicas=3)["blobs"] == 1
        assert node.perform("add", source={"snapshot": True})["bytes"] > 0
        until(lambda: node.perform("gc") and not node.has(loose))
        assert node.has(kept)
