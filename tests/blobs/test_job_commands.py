"""`jobctl blob fetch|replicate|gc|verify|export` as processes, against a real node."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jobs.testing import EmbeddedNode
from tests.support.jobctl import jobctl
from tests.support.waiting import until

NOWHERE = "00" * 32


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, place: Path) -> Iterator[EmbeddedNode]:
    env = {"JOBS_WORKERS__BLOB__ALLOW_FILES": f'["{place}"]', "JOBS_BLOBS__GRACE_S": "1"}
    with EmbeddedNode(tmp_path_factory.mktemp("commands") / "node", types=("blob",), env=env) as made:
        yield made


def put(node: EmbeddedNode, data: bytes, *options: str) -> str:
    done = jobctl(node, "blob", "put", "-", *options, stdin=data)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().strip()


def objects(output: bytes) -> list[dict[str, Any]]:
    return [msgspec.json.decode(line) for line in output.splitlines()]


def test_a_blob_is_fetched_replicated_verified_and_exported(node: EmbeddedNode, place: Path) -> None:
    blob = put(node, b"content", "--tag", "named")
    for arguments, operation in (
        (("fetch", "named", "--tag", "fetched"), "fetch"),
        (("replicate", blob, "--replicas", "1"), "replicate"),
        (("verify", "named"), "verify"),
        (("export", blob, f"{place}/out"), "export"),
    ):
        done = jobctl(node, "blob", *arguments, "--json")
        assert done.returncode == 0, done.stderr
        (result,) = objects(done.stdout)
        assert (result["operation"], result["hash"], result["bytes"]) == (operation, blob, 7)
        told = jobctl(node, "blob", *arguments)
        assert told.returncode == 0, told.stderr
        assert blob.encode() in told.stdout
    assert (place / "out").read_bytes() == b"content"


def test_garbage_is_shown_and_collected(node: EmbeddedNode) -> None:
    left = put(node, b"left alone", "--no-pin")

    def told(*options: str) -> list[dict[str, Any]]:
        done = jobctl(node, "blob", "gc", "--json", *options)
        assert done.returncode == 0, done.stderr
        return objects(done.stdout)

    until(lambda: left in {line.get("hash") for line in told("--dry-run")})
    *lines, result = told()
    assert left in {line["hash"] for line in lines}
    assert result["operation"] == "gc"
    assert jobctl(node, "blob", "stat", left).returncode == 1
    assert b"blobs" in jobctl(node, "blob", "gc").stdout


def test_what_fails_says_why_and_ends_with_its_code(node: EmbeddedNode) -> None:
    put(node, b"here", "--tag", "here")
    for arguments, code, text in (
        (("fetch", NOWHERE), 1, f"there is no blob {NOWHERE}"),
        (("verify", NOWHERE), 1, f"verify of {NOWHERE}"),
        (("fetch", "blobticket1.nonsense"), 65, "no ticket"),
        (("export", "here", "/etc/out"), 1, "allow_files"),
        (("replicate", NOWHERE), 2, "--replicas N"),
        (("verify",), 2, "--all"),
        (("verify", NOWHERE, "--all"), 2, "--all"),
        (("fetch", "no-such-tag"), 1, "no-such-tag"),
    ):
        done = jobctl(node, "blob", *arguments)
        assert (done.returncode, text in done.stderr.decode()) == (code, True), (arguments, done)
        assert done.stdout == b""


def test_the_jobs_of_the_commands_are_jobs_like_others(node: EmbeddedNode) -> None:
    blob = put(node, b"as a job")
    done = jobctl(node, "blob", "verify", blob, "--idempotency-key", "once", "--json")
    again = jobctl(node, "blob", "verify", blob, "--idempotency-key", "once", "--json")
    assert done.stdout == again.stdout, "it was one job"
    listed = objects(jobctl(node, "list", "--type", "blob", "--json").stdout)
    assert {job["type"] for job in listed} == {"blob"}
    shown = jobctl(node, "result", listed[0]["id"])
    assert b"sandbox" in shown.stdout


def test_a_command_that_does_not_wait_prints_the_job(node: EmbeddedNode) -> None:
    blob = put(node, b"later")
    job = jobctl(node, "blob", "verify", blob, "--detach").stdout.decode().strip()
    waited = objects(jobctl(node, "wait", job, "--json").stdout)
    assert waited[-1]["state"] == "completed"
    (told,) = objects(jobctl(node, "blob", "verify", blob, "--detach", "--json").stdout)
    assert told["type"] == "blob"
