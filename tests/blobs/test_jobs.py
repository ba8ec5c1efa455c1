"""Jobs of type blob through a real node and its worker: every operation, and what goes wrong with them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jobs import BlobJob, Client, JobState, Reason
from jobs.client.blobjobs import blob_job
from jobs.client.failures import OperationFailed
from jobs.errors import Forbidden, InvalidRequest, NotFound
from jobs.protocol.model import (
    AddFrom,
    BlobAdd,
    BlobExport,
    BlobFetch,
    BlobList,
    BlobPayload,
    BlobPerform,
    BlobReplicate,
    BlobResult,
    BlobStat,
    BlobVerify,
    JobResult,
)
from jobs.testing import EmbeddedNode
from tests.support import processes
from tests.support.disks import small_disk
from tests.support.waiting import until

CANCEL_S = 0.1
"""Within this a cancelled operation is over; a machine that is busy with others may take longer."""
NOWHERE = "00" * 32
LARGE_BYTES = 1 << 32


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that jobs may use."""
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, place: Path) -> Iterator[EmbeddedNode]:
    env = {"JOBS_WORKERS__BLOB__ALLOW_FILES": f'["{place}"]', "JOBS_BLOBS__GRACE_S": "1"}
    with EmbeddedNode(tmp_path_factory.mktemp("jobs") / "node", types=("shell", "blob"), env=env) as made:
        yield made


@pytest.fixture
def client(node: EmbeddedNode) -> Iterator[Client]:
    with node.client() as made:
        yield made


def done(client: Client, payload: BlobPayload) -> tuple[BlobResult, list[dict[str, Any]]]:
    """Carry an operation out; return what it came to and what it has said."""
    result = client.run(blob_job(payload), timeout_s=60)
    assert result.state is JobState.COMPLETED, result
    assert result.blob is not None
    return result.blob, [msgspec.json.decode(line) for line in bytes(result.stdout).splitlines()]


def failed(client: Client, payload: BlobPayload, *texts: str) -> JobResult:
    """Carry an operation out that fails, with a message that holds these texts; return its result."""
    result = client.run(blob_job(payload), timeout_s=60)
    assert (result.state, result.reason, result.blob) == (JobState.FAILED, Reason.BLOB_ERROR, None)
    for text in texts:
        assert text in str(result.message)
    return result


def add(client: Client, text: str, tag: str | None = None) -> str:
    result, _ = done(client, BlobAdd(source=AddFrom(text=text), tag=tag))
    assert result.hash is not None
    return result.hash


# --- what is done ----------------------------------------------------------------------------------------------------


def test_text_is_added_stated_and_listed(client: Client) -> None:
    result, said = done(client, BlobAdd(source=AddFrom(text="hello"), tag="greetings/first"))
    assert (result.operation, result.bytes, result.blobs, said) == ("add", 5, 1, [])
    assert [peer.node for peer in result.peers] == [client.health().node]
    assert result.hash == "ea8f163db38682925e4491c5e58d4bb3506ef8c14eb78a86e908c5624a67200f"  # what b3sum says
    stat, (view,) = done(client, BlobStat(hash=result.hash))
    assert (stat.hash, stat.bytes) == (result.hash, 5)
    assert (view["hash"], view["size_bytes"], view["kind"]) == (result.hash, 5, "raw")
    assert {"kind": "tag", "name": "greetings/first"} in view["references"]
    _, blobs = done(client, BlobList())
    assert result.hash in {blob["hash"] for blob in blobs}
    _, tags = done(client, BlobList(tags=True))
    assert ("greetings/first", result.hash) in {(tag["name"], tag["hash"]) for tag in tags}


def test_the_execution_of_an_operation_is_told_as_of_any_job(client: Client) -> None:
    result = client.run(blob_job(BlobAdd(source=AddFrom(base64="/w=="))), timeout_s=60)
    assert result.execution is not None
    assert (result.execution.sandbox, result.execution.exit_code) == ("worker", None)
    assert result.execution.wall_s > 0
    (attempt,) = client.attempts(result.id)
    assert attempt.state is JobState.COMPLETED


def test_a_file_is_added_and_exported(client: Client, place: Path) -> None:
    data = os.urandom(3 << 20)
    (place / "file").write_bytes(data)
    added, _ = done(client, BlobAdd(source=AddFrom(file=f"{place}/file")))
    assert (added.bytes, added.hash) == (len(data), b3(place / "file"))
    assert added.hash is not None
    (place / "copy").write_bytes(b"an older file")
    exported, _ = done(client, BlobExport(hash=added.hash, file=f"{place}/copy"))
    assert (exported.bytes, exported.blobs, (place / "copy").read_bytes()) == (len(data), 1, data)
    empty, _ = done(client, BlobAdd(source=AddFrom(text="")))
    assert empty.hash is not None
    done(client, BlobExport(hash=empty.hash, file=f"{place}/empty"))
    assert (place / "empty").read_bytes() == b""


def test_a_directory_is_added_as_a_collection_and_exported(client: Client, place: Path) -> None:
    tree = {"a": b"1", "b/c": b"", "b/d/ü": os.urandom(1 << 20), "twice": b"1"}
    for name, data in tree.items():
        (place / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "tree" / name).write_bytes(data)
    added, _ = done(client, BlobAdd(source=AddFrom(file=f"{place}/tree"), tag="tree"))
    assert added.hash is not None
    assert (added.bytes, added.blobs) == (sum(map(len, tree.values())), 5)
    _, (view,) = done(client, BlobStat(hash=added.hash))
    assert view["kind"] == "collection"
    exported, _ = done(client, BlobExport(hash=added.hash, file=f"{place}/again"))
    assert exported.blobs == 5
    found = {str(p.relative_to(place / "again")): p.read_bytes() for p in (place / "again").rglob("*") if p.is_file()}
    assert found == tree
    failed(client, BlobExport(hash=added.hash, file=f"{place}/again"), "export of", added.hash, "File exists")


def test_the_output_of_a_job_is_added(client: Client) -> None:
    job = client.run(client_shell("printf out; printf err >&2"), timeout_s=60).id
    for stream, text in (("stdout", "out"), ("stderr", "err")):
        added, _ = done(client, BlobAdd(source=AddFrom(job=job, stream=stream)))  # type: ignore[arg-type]
        assert (added.bytes, added.hash) == (3, add(client, text))
    long = client.run(client_shell("head -c 300000 /dev/zero | tr '\\0' x"), timeout_s=60).id
    added, _ = done(client, BlobAdd(source=AddFrom(job=long)))
    assert (added.bytes, added.hash) == (300_000, add(client, "x" * 300_000))
    failed(client, BlobAdd(source=AddFrom(job="01890a5d-ac96-774b-bcce-b302099a8057")), "add", "there is no job")
    sleeper = client.submit(client_shell("sleep 60")).job.id
    failed(client, BlobAdd(source=AddFrom(job=sleeper)), "add", sleeper)
    client.cancel(sleeper)


def test_a_snapshot_of_the_store_is_added(client: Client) -> None:
    added, _ = done(client, BlobAdd(source=AddFrom(snapshot=True), tag="snapshot"))
    assert added.bytes > 0


def test_a_blob_that_is_here_is_fetched_without_a_provider(client: Client) -> None:
    blob = add(client, "is here")
    fetched, _ = done(client, BlobFetch(hash=blob, tag="fetched"))
    assert (fetched.hash, fetched.bytes, fetched.blobs) == (blob, 7, 1)


def test_the_clients_operations_wait_and_return_what_they_came_to(client: Client, place: Path) -> None:
    blob = add(client, "by the client", tag="client")
    assert client.blobs.fetch(blob, tag="client/fetched").hash == blob
    assert client.blobs.replicate(blob, replicas=1).blobs == 1
    assert client.blobs.verify(blob).damaged == 0
    assert client.blobs.export(blob, f"{place}/exported").bytes == 13
    said: list[dict[str, Any]] = []
    assert client.blobs.gc(dry_run=True, grace_s=0, on_line=said.append).operation == "gc"
    assert blob not in {line["hash"] for line in said}
    with pytest.raises(OperationFailed, match=r"verify of 0000.*no blob") as caught:
        client.blobs.verify(NOWHERE)
    assert caught.value.reason is Reason.BLOB_ERROR


# --- gc and verify ---------------------------------------------------------------------------------------------------


def test_what_nothing_refers_to_is_collected_and_the_rest_kept(client: Client, node: EmbeddedNode) -> None:
    kept, left = add(client, "kept", tag="kept"), add(client, "left alone")

    def would_go() -> bool:
        said: list[dict[str, Any]] = []
        client.blobs.gc(dry_run=True, on_line=said.append)
        return left in {line["hash"] for line in said}

    until(would_go)  # its grace has passed
    assert (data_of(node, left)).exists(), "a dry run deletes nothing"
    said: list[dict[str, Any]] = []
    result = client.blobs.gc(on_line=said.append)
    assert left in {line["hash"] for line in said}
    assert result.bytes >= len("left alone")
    assert not data_of(node, left).exists()
    failed(client, BlobStat(hash=left), "stat of", left, "no blob")
    assert done(client, BlobStat(hash=kept))[0].bytes == 4


def test_a_damaged_blob_is_found_and_named(client: Client, node: EmbeddedNode) -> None:
    blob = add(client, "to be damaged", tag="damaged")
    file = data_of(node, blob)
    file.chmod(0o600)
    file.write_bytes(b"to be dAmaged")
    with pytest.raises(OperationFailed, match=f"verify of {blob}.*damaged"):
        client.blobs.verify(blob)
    # The same content mends it.
    assert add(client, "to be damaged") == blob
    assert client.blobs.verify(blob).damaged == 0


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_what_could_never_be_carried_out_is_refused_before_it_is_stored(client: Client) -> None:
    before = [job.id for job in client.list(type="blob")]
    for payload in (
        BlobStat(hash="short"),
        BlobFetch(ticket="blobticket1.none"),
        BlobFetch(),
        BlobExport(hash=NOWHERE, file="/a/../b"),
        BlobAdd(source=AddFrom(file="relative")),
        BlobAdd(source=AddFrom(text="x"), tag="no such tag!"),
    ):
        with pytest.raises(InvalidRequest):
            client.submit(BlobJob(payload=payload))
    assert [job.id for job in client.list(type="blob")] == before


def test_a_failure_names_operation_blob_node_and_cause(client: Client, place: Path) -> None:
    name = client.health().node
    failed(client, BlobStat(hash=NOWHERE), f"stat of {NOWHERE} on node {name}: ", "no blob")
    failed(client, BlobVerify(hash=NOWHERE), f"verify of {NOWHERE} on node {name}: ", "no blob")
    first = client.submit(client_shell("true")).job.id
    late = blob_job(BlobExport(hash=NOWHERE, file=f"{place}/x"), depends_on=[first])
    assert f"export of {NOWHERE} on node {name}: there is no blob" in str(client.run(late, timeout_s=60).message)
    failed(client, BlobFetch(ticket="blobticket1." + "A" * 86), f"fetch on node {name}: ", "ticket")
    blob = add(client, "for providers")
    failed(client, BlobFetch(hash=blob, providers=["nobody"]), f"fetch of {blob} on node {name}: ", "nobody")
    assert not (place / "x").exists()


def test_what_is_to_be_used_has_to_be_there_and_stays_for_the_job(client: Client) -> None:
    for payload in (
        BlobFetch(hash=NOWHERE),
        BlobReplicate(hash=NOWHERE, replicas=1),
        BlobExport(hash=NOWHERE, file="/srv/x"),
    ):
        with pytest.raises(NotFound, match="there is no blob") as caught:
            client.submit(blob_job(payload))
        assert caught.value.field == "$.payload.hash"
    blob = add(client, "kept by a job")
    later = blob_job(BlobFetch(hash=blob), not_before_ms=time.time_ns() // 1_000_000 + 3_600_000)
    job = client.submit(later).job.id
    (view,) = done(client, BlobStat(hash=blob))[1]
    assert view["references"] == [{"kind": "job", "name": job}]
    client.cancel(job)


def test_files_outside_and_links_are_refused(client: Client, place: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (place / "link").symlink_to(tmp_path / "secret")
    (place / "way").symlink_to(tmp_path)
    blob = add(client, "for links")
    for path, text in (
        (f"{tmp_path}/secret", "allow_files"),
        ("/etc/passwd", "allow_files"),
        (f"{place}/link", "symbolic link"),
        (f"{place}/way/secret", f"cannot read {place}/way/secret"),
        (f"{place}/nothing", "No such file"),
    ):
        failed(client, BlobAdd(source=AddFrom(file=path)), "add on node", text)
    for path in (f"{tmp_path}/new", f"{place}/way/new", f"{place}/no/directory"):
        failed(client, BlobExport(hash=blob, file=path), f"export of {blob}", path)
    assert {path.name for path in tmp_path.iterdir()} == {"secret"}


def test_only_workers_have_operations_carried_out(client: Client) -> None:
    from jobs.client.requests import change

    body = BlobPerform(job="01890a5d-ac96-774b-bcce-b302099a8057", payload=BlobFetch(hash=NOWHERE))  # type: ignore[arg-type]
    with pytest.raises(Forbidden, match="only workers"):
        client.send(change("POST", "/v1/blobs:perform", body))


def test_a_file_beyond_the_limit_is_refused_while_it_is_sent(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(64 << 20)
    env = {"JOBS_WORKERS__BLOB__ALLOW_FILES": f'["{tmp_path}"]', "JOBS_BLOBS__MAX_BLOB_BYTES": "1MiB"}
    with EmbeddedNode(tmp_path / "node", types=("blob",), env=env) as node, node.client() as client:
        failed(client, BlobAdd(source=AddFrom(file=f"{tmp_path}/large")), "add on node", "at most 1048576 bytes")
        until(lambda: not drafts(node))


def test_an_export_to_a_full_disk_fails_and_leaves_nothing(client: Client, place: Path) -> None:
    with small_disk(place / "disk"):
        blob = client.blobs.put(bytes(32 << 20), tag="larger-than-the-disk").hash
        before = set((place / "disk").iterdir())
        failed(client, BlobExport(hash=blob, file=f"{place}/disk/file"), f"export of {blob}", "No space left on device")
        tree = client.blobs.collect({"a": blob, "b/c": blob}, tag="tree-of-it").hash
        failed(client, BlobExport(hash=tree, file=f"{place}/disk/tree"), f"export of {tree}", "No space left on device")
        assert set((place / "disk").iterdir()) == before


# --- ends ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def large(place: Path) -> Iterator[BlobAdd]:
    """The addition of a file that takes seconds."""
    path = place / "large"
    with path.open("wb") as file:
        file.truncate(LARGE_BYTES)
    yield BlobAdd(source=AddFrom(file=str(path)))
    path.unlink()


def drafts(node: EmbeddedNode) -> list[Path]:
    return list((node.directory / "data/blobs/incoming").iterdir())


def test_a_cancelled_operation_is_over_at_once_and_leaves_nothing(
    client: Client, node: EmbeddedNode, large: BlobAdd
) -> None:
    taken: list[float] = []
    (worker,) = [pid for pid in processes.children_of(node.pid) if "blob" in arguments_of(pid)]
    before = files_of(worker)
    for _ in range(3):
        job = client.submit(blob_job(large)).job.id
        until(lambda job=job: client.get(job).progress is not None)  # type: ignore[misc]
        began = time.monotonic()
        assert client.cancel(job).outcome == "requested"
        ended = client.wait(job, 30)
        taken.append(time.monotonic() - began)
        assert (ended.state, ended.reason) == (JobState.FAILED, Reason.CANCELLED)
        until(lambda: not drafts(node))
    assert min(taken) < CANCEL_S
    until(lambda: files_of(worker) == before)


def test_an_operation_past_its_time_is_ended(client: Client, node: EmbeddedNode, large: BlobAdd) -> None:
    with pytest.raises(OperationFailed, match=r"longer than 0\.3 s") as caught:
        client.blobs.perform(large, timeout_s=0.3)
    assert caught.value.reason is Reason.TIMEOUT
    until(lambda: not drafts(node))


def b3(path: Path) -> str:
    from jobs._native import Blake3

    digest = Blake3()
    digest.update(path.read_bytes())
    return digest.digest().hex()


def arguments_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


def files_of(pid: int) -> int:
    """Return how many descriptors a process has."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def data_of(node: EmbeddedNode, blob: str) -> Path:
    return node.directory / "data/blobs/data" / blob[:2] / blob


def client_shell(script: str) -> Any:
    from jobs import shell_job

    return shell_job(script)
