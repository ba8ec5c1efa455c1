"""`jobctl backup …` as processes, against a real node."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jobs.testing import EmbeddedNode
from tests.support.jobctl import jobctl


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, place: Path) -> Iterator[EmbeddedNode]:
    env = {"JOBS_WORKERS__REPLICATION__ALLOW_FILES": f'["{place}"]'}
    with EmbeddedNode(tmp_path_factory.mktemp("backup") / "node", types=("replication",), env=env) as made:
        yield made


def told(node: EmbeddedNode, *arguments: str) -> list[dict[str, Any]]:
    """Run a command that succeeds; return what it tells programs."""
    done = jobctl(node, "backup", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return [msgspec.json.decode(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("kind", ["directory", "tag"])
def test_a_series_is_made_listed_proven_and_restored(node: EmbeddedNode, place: Path, kind: str) -> None:
    where = (str(place / "series"),) if kind == "directory" else ("--tag", "backups/main")
    with node.client() as client:
        client.kv.put(f"/data/{kind}/a", "first")
        (full,) = told(node, "create", *where)
        client.kv.put(f"/data/{kind}/b", "second")
        *_, added = told(node, "create", *where)
        assert ((full["operation"], full["kind"]), added["kind"]) == (("backup", "full"), "incremental")
        listed = told(node, "list", *where)
        assert [one["name"] for one in listed] == ["000001-full", "000002-incremental"]
        assert [one["to_revision"] for one in listed] == [full["source_revision"], added["source_revision"]]
        shown = jobctl(node, "backup", "list", *where).stdout.decode()
        assert "000002-incremental" in shown
        *lines, proven = told(node, "prove", *where)
        assert [line["backup"] for line in lines] == ["000001-full", "000002-incremental"]
        assert proven["operation"] == "prove"
        assert b"as the cluster had it" in jobctl(node, "backup", "prove", *where).stdout
        revision = str(full["source_revision"])
        ends = ("--to", f"/data/again/{kind}/", "--prefix", f"/data/{kind}/")
        (line, looked) = told(node, "restore", *where, *ends, "--dry-run")
        assert (line["would_put"], looked["rows"]) == (2, 2)
        told(node, "restore", *where, *ends, "--revision", revision)
        assert [pair.key for pair in client.kv.scan(f"/data/again/{kind}/")] == [f"/data/again/{kind}/a"]
        restored = jobctl(node, "backup", "restore", *where, *ends)
        assert restored.returncode == 0, restored.stderr
        assert b"put 1, same 1, kept 0" in restored.stdout
        assert {bytes(pair.value) for pair in client.kv.scan(f"/data/again/{kind}/")} == {b"first", b"second"}


def test_what_is_damaged_is_told_beside_what_is_sound(node: EmbeddedNode, place: Path) -> None:
    target = place / "damaged"
    for _ in range(3):
        told(node, "create", str(target))
    (target / "000002-incremental" / "manifest.json").write_text("{}")
    shown = jobctl(node, "backup", "list", str(target))
    assert (shown.returncode, b"000002-incremental/manifest.json" in shown.stderr) == (1, True)
    assert [line.split()[0] for line in shown.stdout.decode().splitlines()[1:]] == ["000001-full", "000003-incremental"]


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("create",), 2, "--tag"),
        (("create", "/etc/backups"), 1, "allow_files"),
        (("create", "{place}/x", "--kind", "incremental"), 1, "full or auto"),
        (("create", "{place}/x", "--recipient", "age1nonsense"), 65, "recipients"),
        (("list", "{place}/nothing"), 65, "nothing"),
        (("prove", "{place}/nothing"), 1, "nothing"),
        (("prove", "{place}"), 1, "there is no backup"),
        (("restore", "{place}/x"), 2, "--to"),
        (("restore", "{place}/x", "--to", "/data/y/", "--revision", "1", "--at", "1h"), 2, "--at"),
        (("restore", "{place}/x", "--to", "/jobs/"), 65, "/data/"),
    ],
)
def test_what_fails_says_why_and_ends_with_its_code(
    node: EmbeddedNode, place: Path, arguments: tuple[str, ...], code: int, text: str
) -> None:
    done = jobctl(node, "backup", *(part.format(place=place) for part in arguments))
    assert (done.returncode, text in done.stderr.decode()) == (code, True), done
    assert done.stdout == b""
