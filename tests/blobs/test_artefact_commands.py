"""Files in and out of jobs as a person has them: real commands and the client against a real node and its worker."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs import Client, InputFile, Limits, shell_job
from jobs.testing import EmbeddedNode
from tests.support.jobctl import jobctl

MIB = 1 << 20


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedNode]:
    with EmbeddedNode(tmp_path_factory.mktemp("artefacts") / "node", types=("shell",)) as made:
        yield made


def test_a_blob_goes_in_and_files_come_out(node: EmbeddedNode, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"line\n" * MIB)
    blob = jobctl(node, "blob", "put", str(tmp_path / "data")).stdout.decode().strip()
    job = (
        jobctl(
            node, "submit", "--file", f"data=blob:{blob}", "--artefact", "out/*", "--artefact", "count", "--",
            "sh", "-c", "wc -l < data > count; mkdir out; head -n 2 data > out/head; ln -s ../count out/link",
        ).stdout.decode().strip()
    )  # fmt: skip
    listed = jobctl(node, "artefacts", job, "--wait", "30s")
    assert listed.returncode == 0
    assert [row.split()[0] for row in listed.stdout.decode().splitlines()] == ["PATH", "count", "out/head"]
    assert "not taken: out/link is a symbolic link" in listed.stderr.decode()
    saved = jobctl(node, "artefacts", job, "--json", "--to", str(tmp_path / "to"))
    made = [json.loads(row) for row in saved.stdout.splitlines()]
    assert {one["path"]: one["size_bytes"] for one in made} == {"count": 8, "out/head": 10}
    assert (tmp_path / "to/count").read_text() == f"{MIB}\n"
    assert (tmp_path / "to/out/head").read_text() == "line\nline\n"
    assert f"count (8 bytes, blob {made[0]['hash']})" in jobctl(node, "result", job).stdout.decode()
    refers = json.loads(jobctl(node, "blob", "stat", made[0]["hash"], "--json").stdout)["references"]
    assert refers == [{"kind": "output", "name": job}]
    one = jobctl(node, "artefacts", job, "count", "--to", str(tmp_path / "one"))
    assert (one.returncode, list((tmp_path / "one").iterdir())) == (0, [tmp_path / "one/count"])
    assert "has left no none" in jobctl(node, "artefacts", job, "none").stderr.decode()


def test_what_is_no_blob_is_refused_before_anything_is_stored(node: EmbeddedNode) -> None:
    wrong = jobctl(node, "run", "--file", "in=blob:xyz", "--", "true")
    assert (wrong.returncode, "is no hash of a blob" in wrong.stderr.decode()) == (2, True)
    missing = jobctl(node, "run", "--file", f"in=blob:{'0' * 64}", "--", "true")
    assert missing.returncode != 0
    assert "there is no blob" in missing.stderr.decode()


def test_the_client_hands_what_one_job_left_to_the_next(node: EmbeddedNode) -> None:
    with Client(str(node.socket)) as client:
        first = client.run(shell_job("echo made > out", outputs=["out"]))
        (made,) = first.artefacts
        assert client.blobs.get(made.hash) == b"made\n"
        second = client.run(shell_job("cat in/it own", files={"in/it": InputFile(blob=made.hash), "own": "text"}))
        assert bytes(second.stdout) == b"made\ntext"


def test_a_large_blob_is_shown_to_a_job_with_little_room_of_its_own(node: EmbeddedNode) -> None:
    with Client(str(node.socket)) as client:
        blob = client.blobs.put(bytes(64 * MIB)).hash
        done = client.run(shell_job("wc -c < in", files={"in": InputFile(blob=blob)}, limits=Limits(tmp_bytes=MIB)))
        assert bytes(done.stdout).strip() == str(64 * MIB).encode()
