"""`jobctl replication …` as processes, against a real node: syncs within one cluster, and links to another one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from jobs.testing import EmbeddedCluster, EmbeddedNode
from tests.support.jobctl import jobctl
from tests.support.waiting import until


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedNode]:
    with EmbeddedCluster(tmp_path_factory.mktemp("commands"), 1, types=("replication",)) as made:
        yield made.nodes["n1"]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedNode]:
    with EmbeddedCluster(tmp_path_factory.mktemp("other"), 1, types=()) as made:
        yield made.nodes["n1"]


def objects(output: bytes) -> list[dict[str, Any]]:
    return [msgspec.json.decode(line) for line in output.splitlines()]


def told(node: EmbeddedNode, *arguments: str) -> list[dict[str, Any]]:
    """Run a command that succeeds; return what it tells programs."""
    done = jobctl(node, "replication", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return objects(done.stdout)


def put(node: EmbeddedNode, pairs: dict[str, str]) -> None:
    with node.client() as client:
        for key, value in pairs.items():
            client.kv.put(key, value)


def values(node: EmbeddedNode, prefix: str) -> dict[str, str]:
    with node.client() as client:
        return {pair.key.removeprefix(prefix): bytes(pair.value).decode() for pair in client.kv.scan(prefix)}


def test_a_range_is_brought_over_compared_and_shown(node: EmbeddedNode) -> None:
    put(node, {f"/data/a/{number}": str(number) for number in range(20)})
    ends = ("--prefix", "/data/a/", "--target-prefix", "/data/b/")
    differing = jobctl(node, "replication", "verify", *ends)
    assert differing.returncode == 1, differing
    assert b"/data/" in differing.stdout
    assert b"20 at the source, 0 at the target" in differing.stdout
    (done,) = told(node, "sync", "copy", *ends)
    assert (done["operation"], done["rows"], done["conflicts"]) == ("sync", 20, 0)
    assert values(node, "/data/b/") == values(node, "/data/a/")
    (same,) = told(node, "verify", *ends)
    assert same["differences"] == []
    (status,) = told(node, "status", "copy")
    assert (status["name"], status["phase"], status["lag_revisions"]) == ("copy", "stopped", 0)
    for arguments in (("status",), ("status", "copy")):
        shown = jobctl(node, "replication", *arguments)
        assert shown.returncode == 0, shown
        assert b"/data/a/" in shown.stdout
        assert b"stopped" in shown.stdout
    (forgotten,) = told(node, "forget", "copy")
    assert forgotten == {"name": "copy", "forgotten": True}
    assert jobctl(node, "replication", "status", "copy").returncode == 1


def test_conflicts_are_listed(node: EmbeddedNode) -> None:
    put(node, {"/data/c/1": "source", "/data/c/2": "same", "/data/d/1": "target", "/data/d/2": "same"})
    ends = ("--prefix", "/data/c/", "--target-prefix", "/data/d/")
    refused = jobctl(node, "replication", "sync", "careful", *ends, "--conflicts", "fail")
    assert refused.returncode == 1
    assert b"sync careful" in refused.stderr
    assert values(node, "/data/d/")["1"] == "target"
    (done,) = told(node, "sync", "bold", *ends)
    assert (done["conflicts"], values(node, "/data/d/")["1"]) == (1, "source")
    (conflict,) = told(node, "conflicts", "bold")
    assert (conflict["key"], conflict["winner"]) == ("/data/d/1", "source")
    assert b"/data/d/1" in jobctl(node, "replication", "conflicts", "bold").stdout


def test_a_continuous_sync_goes_on_until_it_is_cancelled(node: EmbeddedNode) -> None:
    ends = ("--prefix", "/data/e/", "--target-prefix", "/data/f/")
    put(node, {"/data/e/1": "first"})
    job = jobctl(node, "replication", "sync", "live", *ends, "--continuous", "--detach").stdout.decode().strip()
    until(lambda: values(node, "/data/f/") == {"1": "first"})
    put(node, {"/data/e/2": "second"})
    until(lambda: values(node, "/data/f/") == {"1": "first", "2": "second"})
    until(lambda: told(node, "status", "live")[0]["phase"] == "following")
    (status,) = told(node, "status", "live")
    assert (status["job"], status["conflicts"]) == (job, 0)
    assert jobctl(node, "replication", "forget", "live").returncode == 1, "a job is at it"
    assert jobctl(node, "cancel", job).returncode == 0
    until(lambda: told(node, "status", "live")[0]["phase"] == "stopped")
    assert jobctl(node, "replication", "forget", "live").returncode == 0


def test_links_are_made_shown_and_deleted(node: EmbeddedNode, other: EmbeddedNode) -> None:
    (there,) = told(other, "invite")
    (made,) = told(node, "link", "berlin", there["invitation"], "--allow-read", "/data/x/", "--allow-read-tags", "t/")
    assert (made["name"], made["cluster"]) == ("berlin", there["cluster"])
    assert made["scopes"] == {"read": ["/data/x/"], "read_tags": ["t/"]}
    shown = jobctl(node, "replication", "links").stdout.decode()
    assert "read /data/x/, read tags t/" in shown
    here = jobctl(node, "replication", "invite")
    assert b"no secret" in here.stderr
    itself = jobctl(node, "replication", "link", "self", "-", stdin=here.stdout)
    assert itself.returncode == 65, itself
    assert jobctl(node, "replication", "unlink", "berlin").returncode == 0
    assert told(node, "links") == []


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("sync", "x"), 2, "--prefix"),
        (("sync", "x", "--prefix", "/data/a/", "--tags", "t/"), 2, "--tags"),
        (("sync", "x", "--prefix", "/data/a/"), 65, "target_prefix"),
        (("sync", "x", "--prefix", "/data/a/", "--target-prefix", "/data/a/b/"), 65, "overlap"),
        (("sync", "x", "--prefix", "/jobs/", "--from", "berlin"), 65, "/data/"),
        (("sync", "x", "--prefix", "/data/a/", "--from", "nowhere"), 1, "nowhere"),
        (("verify", "--prefix", "/data/a/", "--from", "nowhere"), 1, "nowhere"),
        (("export",), 2, "--tag"),
        (("import", "/a", "--tag", "a"), 2, "--tag"),
        (("link", "x", "nonsense"), 65, "invitation"),
        (("unlink", "nowhere"), 1, "nowhere"),
        (("conflicts", "nowhere"), 1, "nowhere"),
        (("forget", "nowhere"), 1, "nowhere"),
        (("status", "nowhere"), 1, "nowhere"),
    ],
)
def test_what_fails_says_why_and_ends_with_its_code(
    node: EmbeddedNode, arguments: tuple[str, ...], code: int, text: str
) -> None:
    done = jobctl(node, "replication", *arguments)
    assert (done.returncode, text in done.stderr.decode()) == (code, True), done
    assert done.stdout == b""
