"""Exports and imports through a real node and its worker: every form, directories and tags, and what is damaged."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace
from pyarrow import ipc, parquet

from jobs import Client, Reason, ReplicationExport, Retry, Throttle, replication_job
from jobs.client.failures import OperationFailed
from jobs.exports import manifest as m
from jobs.testing import EmbeddedNode
from tests.support import processes
from tests.support.waiting import until

FORMATS = ("parquet", "arrow", "native")
ROWS = {f"k/{number:04d}": bytes([number % 256]) * (number % 50) for number in range(1_500)} | {"é": b"\xff\x00"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, place: Path) -> Iterator[Client]:
    env = {"JOBS_WORKERS__REPLICATION__ALLOW_FILES": f'["{place}"]'}
    directory = tmp_path_factory.mktemp("export") / "node"
    with EmbeddedNode(directory, types=("replication",), env=env) as node, node.client() as made:
        for name, value in ROWS.items():
            made.kv.put(f"/data/src/{name}", value)
        yield made


def below(client: Client, prefix: str) -> dict[str, bytes]:
    return {pair.key.removeprefix(prefix): bytes(pair.value) for pair in client.kv.scan(prefix)}


def exported(client: Client, place: Path, name: str, form: str = "native") -> Path:
    client.replication.export_keys(directory=str(place / name), prefix="/data/src/", format=form)  # type: ignore[arg-type]
    return place / name


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_exported_is_brought_in_again(client: Client, place: Path, form: str) -> None:
    directory = str(place / form)
    made = client.replication.export_keys(directory=directory, prefix="/data/src/", format=form)  # type: ignore[arg-type]
    assert (made.operation, made.rows, made.place) == ("export", len(ROWS), directory)
    looked = client.replication.import_keys(directory=directory, prefix=f"/data/{form}/", dry_run=True)
    assert (looked.rows, below(client, f"/data/{form}/")) == (len(ROWS), {})
    done = client.replication.import_keys(directory=directory, prefix=f"/data/{form}/")
    assert (done.rows, done.source_revision) == (len(ROWS), made.source_revision)
    assert below(client, f"/data/{form}/") == ROWS
    again = client.replication.import_keys(directory=directory, prefix=f"/data/{form}/")
    assert again.rows == 0, "it was there"
    same = client.replication.import_keys(directory=directory)
    assert same.rows == 0, "by itself it goes where it came from"


def test_other_programs_read_it(client: Client, place: Path) -> None:
    exported(client, place, "for-others", "parquet")
    table = parquet.read_table(place / "for-others" / "rows-000001.parquet")
    assert table.column_names == ["key", "value", "version", "create_revision", "mod_revision"]
    assert dict(zip(table["key"].to_pylist(), table["value"].to_pylist(), strict=True)) == {
        f"/data/src/{name}": value for name, value in ROWS.items()
    }
    exported(client, place, "for-arrow", "arrow")
    assert ipc.open_file(place / "for-arrow" / "rows-000001.arrow").read_all().equals(table)


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_can_be_blobs(client: Client, form: str) -> None:
    made = client.replication.export_keys(tag=f"exports/{form}", prefix="/data/src/", format=form)  # type: ignore[arg-type]
    assert made.place == f"exports/{form}"
    blob = client.blobs.tag(f"exports/{form}").hash
    assert m.FILE in client.blobs.files(blob)
    client.replication.import_keys(tag=f"exports/{form}", prefix=f"/data/tagged/{form}/")
    assert below(client, f"/data/tagged/{form}/") == ROWS


def test_an_export_is_of_one_revision(client: Client, place: Path) -> None:
    client.kv.put("/data/old/1", b"first")
    revision = client.kv.get("/data/old/1").mod_revision  # type: ignore[union-attr]
    client.kv.put("/data/old/1", b"second")
    client.replication.export_keys(directory=str(place / "old"), prefix="/data/old/", revision=revision)
    client.replication.import_keys(directory=str(place / "old"), prefix="/data/older/")
    assert below(client, "/data/older/") == {"1": b"first"}
    with pytest.raises(OperationFailed, match="is at revision"):
        client.replication.export_keys(directory=str(place / "future"), prefix="/data/old/", revision=1 << 40)
    empty = client.replication.export_keys(directory=str(place / "empty"), prefix="/data/nothing/")
    assert (empty.rows, client.replication.import_keys(directory=str(place / "empty")).rows) == (0, 0)
    assert {path.name for path in place.iterdir() if path.name.startswith(".")} == set(), "no drafts are left"


def test_what_is_there_with_other_values_is_kept_replaced_or_refused_before_anything_is_written(
    client: Client, place: Path
) -> None:
    directory = str(exported(client, place, "existing"))
    client.kv.put("/data/there/k/0900", b"mine")
    with pytest.raises(OperationFailed, match="/data/there/k/0900"):
        client.replication.import_keys(directory=directory, prefix="/data/there/")
    assert below(client, "/data/there/") == {"k/0900": b"mine"}
    kept = client.replication.import_keys(directory=directory, prefix="/data/there/", existing="keep")
    assert (kept.rows, kept.conflicts) == (len(ROWS) - 1, 1)
    assert below(client, "/data/there/") == ROWS | {"k/0900": b"mine"}
    client.replication.import_keys(directory=directory, prefix="/data/there/", existing="replace")
    assert below(client, "/data/there/") == ROWS


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("damage", ["bit", "cut", "gone", "manifest", "no manifest", "other rows", "order"])
def test_what_is_damaged_is_refused_before_anything_is_written(
    client: Client, place: Path, form: str, damage: str
) -> None:
    directory = exported(client, place, f"{form}-{damage.replace(' ', '-')}", form)
    (rows,) = directory.glob("rows-*")
    manifest = directory / m.FILE
    data = bytearray(rows.read_bytes())
    match damage:
        case "bit":
            data[len(data) // 2] ^= 1
            rows.write_bytes(data)
        case "cut":
            rows.write_bytes(data[:-10])
        case "gone":
            rows.unlink()
        case "manifest":
            manifest.write_text(manifest.read_text().replace("/data/src/", "/data/abc/"))
        case "no manifest":
            manifest.unlink()
        case "other rows":  # of another export, with checksums that are right
            other = exported(client, place, f"{form}-other", "native" if form != "native" else "arrow")
            (theirs,) = other.glob("rows-*")
            rows.write_bytes(theirs.read_bytes())
            found = json.loads((other / m.FILE).read_text())
            _reseal(manifest, **{key: found["files"][0][key] for key in ("size_bytes", "blake3")})
        case "order":  # rows that are not where the manifest says
            found = m.decode(manifest.read_bytes(), "here")
            manifest.write_bytes(m.encode(_with(found, prefix="/data/src/k/")))
    with pytest.raises(OperationFailed, match=str(directory)):
        client.replication.import_keys(directory=str(directory), prefix="/data/damaged/", existing="replace")
    assert below(client, "/data/damaged/") == {}


def _with(found: m.Manifest, **changes: object) -> m.Manifest:
    return replace(found, **changes)  # type: ignore[arg-type]


def _reseal(manifest: Path, **changes: object) -> None:
    found = m.decode(manifest.read_bytes(), "here")
    manifest.write_bytes(m.encode(_with(found, files=[replace(found.files[0], **changes)])))  # type: ignore[arg-type]


def test_places_that_are_not_allowed_or_taken_are_refused(client: Client, place: Path, tmp_path: Path) -> None:
    directory = str(exported(client, place, "taken"))
    for wanted, text in (
        (directory, "is there already"),
        (str(tmp_path / "out"), "allow_files"),
        (str(place / "no" / "parent"), "cannot"),
    ):
        with pytest.raises(OperationFailed, match=text):
            client.replication.export_keys(directory=wanted, prefix="/data/src/")
    (place / "link").symlink_to(tmp_path)
    with pytest.raises(OperationFailed, match="link"):
        client.replication.export_keys(directory=str(place / "link" / "out"), prefix="/data/src/")
    with pytest.raises(OperationFailed, match=r"no such|there is no"):
        client.replication.import_keys(tag="nothing")
    client.blobs.put(b"content", tag="no-export")
    with pytest.raises(OperationFailed, match=r"no export|no collection"):
        client.replication.import_keys(tag="no-export")
    assert list(tmp_path.iterdir()) == []


def slowly(client: Client, place: Path, name: str, retry: Retry) -> str:
    """Begin an export that takes long; return its job once it writes."""
    for number in range(40):
        client.kv.put(f"/data/large/{number:02d}", bytes(100_000))
    wanted = ReplicationExport(
        directory=str(place / name), prefix="/data/large/", format="native", throttle=Throttle(bytes_per_s=1_024)
    )
    job = client.submit(replication_job(wanted, retry=retry)).job.id
    until(lambda: any(place.glob(".jobs-*/rows-*")))
    return job


def test_an_export_that_is_cancelled_leaves_nothing(client: Client, place: Path) -> None:
    job = slowly(client, place, "cancelled", Retry())
    client.cancel(job)
    assert client.wait(job, timeout_s=20).reason is Reason.CANCELLED
    until(lambda: not any(place.glob(".jobs-*")))
    assert not (place / "cancelled").exists()


def test_what_a_killed_worker_has_left_of_an_export_goes_with_the_next_attempt(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    env = {"JOBS_WORKERS__REPLICATION__ALLOW_FILES": f'["{place}"]'}
    with EmbeddedNode(tmp_path / "node", types=("replication",), env=env) as node, node.client() as client:
        job = slowly(client, place, "killed", Retry(max_attempts=2, backoff="none"))
        (worker,) = processes.children_of(node.pid)
        os.kill(worker, signal.SIGKILL)
        until(lambda: client.attempts(job)[0].reason is Reason.WORKER_LOST)
        assert not (place / "killed").exists()
        until(lambda: client.get(job).job.attempt == 2 and any(place.glob(".jobs-*/rows-*")))
        client.cancel(job)
        until(lambda: list(place.iterdir()) == [])
