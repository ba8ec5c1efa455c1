"""Content through any member of a cluster: added, read, brought from others, mended."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs import Client
from jobs.errors import NotFound
from jobs.testing import EmbeddedCluster, EmbeddedNode
from tests.support.blobpeer import content
from tests.support.waiting import until

MIB = 1 << 20


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(tmp_path_factory.mktemp("content"), types=()) as made:
        yield made


def file_of(node: EmbeddedNode, blob: str) -> Path:
    return node.directory / "data/blobs/data" / blob[:2] / blob


def test_every_member_takes_and_gives_content(cluster: EmbeddedCluster) -> None:
    nodes = list(cluster.nodes.values())
    for number, node in enumerate(nodes):
        data = content(2 * MIB + number, number)
        with node.client() as client:
            added = client.blobs.put(data, tag=f"content/{number}")
            assert len(added.nodes) == 2
        # A majority has it on the disk when the answer comes.
        assert sorted(name for name, one in cluster.nodes.items() if file_of(one, added.hash).exists()) == sorted(
            added.nodes
        )
        for other in nodes:
            with other.client() as client:
                assert client.blobs.get(added.hash, start=MIB, end=MIB + 9) == data[MIB : MIB + 9]
                assert client.blobs.get(added.hash) == data
                assert client.blobs.stat(added.hash).nodes == sorted(added.nodes)


def test_files_of_a_collection_are_brought_as_they_are_read(cluster: EmbeddedCluster, tmp_path: Path) -> None:
    (tmp_path / "tree/sub").mkdir(parents=True)
    files = {"a": content(70_000, 1), "sub/b": b"", "sub/c": content(MIB, 2)}
    for name, data in files.items():
        (tmp_path / "tree" / name).write_bytes(data)
    first, *others = cluster.nodes.values()
    with first.client() as client:
        made = client.blobs.put_directory(tmp_path / "tree", replicas=1)
        assert made.nodes == ["n1"]
    for number, other in enumerate(others):
        with other.client() as client:
            hashes = client.blobs.files(made.hash)
            assert client.blobs.get(made.hash, path="sub/c") == files["sub/c"]
            # Whoever reads one of them does not wait for the others.
            assert [name for name in files if file_of(other, hashes[name]).exists()] == ["sub/c"]
            client.blobs.save_directory(made.hash, tmp_path / f"copy{number}")
            assert {name: (tmp_path / f"copy{number}" / name).read_bytes() for name in files} == files


@pytest.mark.parametrize("place", [0, 3 * MIB])
def test_damage_is_mended_from_another_member(cluster: EmbeddedCluster, place: int) -> None:
    data = content(4 * MIB, 5 + place)
    first, *_ = cluster.nodes.values()
    with first.client() as client:
        added = client.blobs.put(data, replicas=3)
        assert sorted(added.nodes) == ["n1", "n2", "n3"]
        with file_of(first, added.hash).open("r+b") as file:
            file.seek(place)
            file.write(bytes((data[place] ^ 1,)))
        # Whoever reads it does not notice, wherever the damage is met: the first answer has all of it.
        with Client(str(first.socket), patience_s=0) as once:
            assert once.blobs.get(added.hash) == data
        assert file_of(first, added.hash).read_bytes() == data
        until(lambda: sorted(client.blobs.stat(added.hash).nodes) == ["n1", "n2", "n3"])
        file_of(first, added.hash).unlink()
        file_of(first, added.hash).with_name(f"{added.hash}.tree").unlink()
        assert client.blobs.get(added.hash) == data


def test_what_the_catalogue_does_not_know_is_nowhere(cluster: EmbeddedCluster) -> None:
    for node in cluster.nodes.values():
        with node.client() as client, pytest.raises(NotFound):
            client.blobs.get("0" * 64)
