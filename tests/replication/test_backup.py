"""Backups through a real node and its worker: what series give at each revision, and what goes wrong with them."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyrage import x25519

from jobs import Client
from jobs.backups import manifest as m
from jobs.client.failures import OperationFailed
from jobs.client.replication import replication_job
from jobs.protocol.model import ReplicationBackup, ReplicationResult, Throttle
from jobs.testing import EmbeddedNode
from tests.replication.series import backup_node, opened, restored, users_rows, write_some
from tests.support import processes
from tests.support.api import Raw
from tests.support.disks import small_disk
from tests.support.waiting import until


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that jobs may use."""
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A file with a secret key, and the public one."""
    identity = x25519.Identity.generate()
    file = tmp_path_factory.mktemp("key") / "identity"
    file.write_text(f"{identity}\n")
    file.chmod(0o600)
    return file, str(identity.to_public())


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, place: Path, key: tuple[Path, str]) -> Iterator[EmbeddedNode]:
    directory = tmp_path_factory.mktemp("jobs") / "node"
    with backup_node(directory, place, JOBS_WORKERS__REPLICATION__IDENTITY_FILE=str(key[0])) as made:
        yield made


@pytest.fixture
def client(node: EmbeddedNode) -> Iterator[Client]:
    with node.client() as made:
        yield made


@pytest.fixture
def target(place: Path, request: pytest.FixtureRequest) -> Path:
    """Where the series of a test is to be."""
    return place / request.node.name.split("[")[0]


def series_of(client: Client, target: Path, *, increments: int = 2) -> list[ReplicationResult]:
    """Make a full backup, and incremental ones, with writes between them."""
    made = []
    for number in range(increments + 1):
        write_some(client, number)
        made.append(client.replication.backup(directory=str(target), kind="auto"))
    return made


# --- what a series gives ---------------------------------------------------------------------------------------------


def test_a_full_one_and_those_added_to_it_give_every_revision(client: Client, target: Path, tmp_path: Path) -> None:
    """Given a full backup and three added to it, with writes all along; then the store as of each revision from the
    full one on is what the cluster had then, with versions, revisions and leases."""
    made = series_of(client, target, increments=3)
    assert [one.kind for one in made] == ["full", "incremental", "incremental", "incremental"]
    first, last = made[0].source_revision, made[-1].source_revision
    with restored(target, tmp_path / "all") as whole:
        assert whole.revision == last
        for revision in range(first, last + 1, 3):
            with restored(target, tmp_path / str(revision), revision) as store:
                assert store.revision == revision
                there = store.range(b"/", b"0", limit=10_000)
                assert there == whole.range(b"/", b"0", limit=10_000, revision=revision)
            shutil.rmtree(tmp_path / str(revision))
        live = {kv.key: kv.value.text for kv in client.kv.scan("/data/")}
        assert users_rows(whole) == live
    proven = client.replication.prove(directory=str(target))
    assert (proven.kind, proven.source_revision) == ("incremental", last)


def test_a_full_one_comes_again_after_so_many_and_old_ones_go(client: Client, target: Path) -> None:
    """Given a full one after each other one, of which two are kept; then older backups go with their blobs."""
    blobs = []
    for number in range(6):
        blob = client.blobs.put(f"content {number}".encode(), tag="changing")
        blobs.append(blob.hash)
        client.replication.backup(directory=str(target), full_every=2, keep_full=2)
    with opened(target) as series:
        assert series.names() == ["000003-full", "000004-incremental", "000005-full", "000006-incremental"]
        assert [series.has_blob(blob) for blob in blobs] == [False, False, True, True, True, True]
    client.replication.prove(directory=str(target))


def test_blobs_are_written_once_and_outputs_are_among_them(client: Client, target: Path) -> None:
    content = os.urandom(300_000)
    blob = client.blobs.put(content, tag="random")
    first = client.replication.backup(directory=str(target))
    second = client.replication.backup(directory=str(target))
    assert first.blobs >= 1
    assert second.blobs == 0
    assert (target / "blobs" / blob.hash[:2] / blob.hash).read_bytes() == content
    without = client.replication.backup(directory=f"{target}-without", blobs=False)
    assert without.blobs == 0
    assert not Path(f"{target}-without/blobs").exists()


def test_as_of_a_time(client: Client, target: Path, tmp_path: Path) -> None:
    """Given backups with a while between them; then a time between is the state of the earlier one."""
    client.kv.put("/data/time", "early")
    client.replication.backup(directory=str(target))
    between_ms = time.time_ns() // 1_000_000 + 1
    until(lambda: time.time_ns() // 1_000_000 > between_ms)
    client.kv.put("/data/time", "late")
    client.replication.backup(directory=str(target))
    with opened(target) as series:
        revision = series.revision_at(between_ms)
    with restored(target, tmp_path / "store", revision) as store:
        assert users_rows(store)["/data/time"] == "early"


def test_below_a_prefix_of_the_running_cluster(client: Client, target: Path) -> None:
    for number in range(5):
        client.kv.put(f"/data/part/{number}", f"then {number}")
    then = client.replication.backup(directory=str(target))
    client.kv.put("/data/part/0", "now")
    client.kv.put("/data/copy/1", "in the way")
    client.replication.backup(directory=str(target))
    place, part = str(target), "/data/part/"
    with pytest.raises(
        OperationFailed, match="1 keys are there with other values, and nothing was written: /data/copy/1"
    ):
        client.replication.restore("/data/copy/", directory=place, prefix=part)
    assert [kv.key for kv in client.kv.scan("/data/copy/")] == ["/data/copy/1"]
    tried = client.replication.restore("/data/copy/", directory=place, prefix=part, existing="keep", dry_run=True)
    assert (tried.rows, tried.conflicts) == (4, 1)
    assert len(list(client.kv.scan("/data/copy/"))) == 1
    client.replication.restore("/data/copy/", directory=place, prefix=part, existing="replace")
    assert [kv.value.text for kv in client.kv.scan("/data/copy/")] == ["now", *(f"then {n}" for n in range(1, 5))]
    again = client.replication.restore("/data/copy/", directory=place, prefix=part)
    assert again.rows == 0
    client.replication.restore("/data/old/", directory=place, prefix=part, revision=then.source_revision)
    assert client.kv.get("/data/old/0").value.text == "then 0"


def test_a_backup_that_is_blobs_says_which_blobs_no_node_has(tmp_path: Path) -> None:
    """Given a blob that was damaged, found so, and is nowhere else; then a backup of it that is blobs is made without
    it, its collection is whole, and the job fails; and one that was made before is not proven any more."""
    with EmbeddedNode(tmp_path / "node", types=("replication", "maintenance")) as node, node.client() as client:
        there = client.blobs.put(os.urandom(200_000), tag="there").hash
        lost = client.blobs.put(os.urandom(200_000), tag="lost").hash
        client.replication.backup(tag="series")
        _flip(node.directory / "data" / "blobs" / "data" / lost[:2] / lost)
        assert client.maintenance.verify(parts=["blobs"]).status == "failing"
        with pytest.raises(OperationFailed, match=f"whole but for 1 blobs that no node gave: {lost}"):
            client.replication.backup(tag="series")
        (second,) = client.blobs.tags(prefix="series/000002")
        client.blobs.save_directory(second.hash, tmp_path / "000002-incremental")
        with opened(tmp_path) as series:
            one = series.load("000002-incremental")
            assert (one.lost, set(series.listing(one))) == ([lost], {there})
        with pytest.raises(OperationFailed, match="000001-full lacks 1 blobs"):
            client.replication.prove(tag="series")


# --- encryption ------------------------------------------------------------------------------------------------------


def test_what_is_encrypted_needs_the_key(
    client: Client, target: Path, key: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Given an encrypted series with blobs; then it is proven and restored with the key, and refused without."""
    blob = client.blobs.put(b"a secret", tag="secret")
    client.kv.put("/data/secret", "hidden from others")
    client.replication.backup(directory=str(target), recipients=[key[1]])
    client.kv.put("/data/secret", "hidden again")
    second = client.replication.backup(directory=str(target), recipients=[key[1]])
    assert second.kind == "incremental"
    for file in target.rglob("*"):
        if file.is_file():
            assert b"hidden" not in file.read_bytes(), file
            assert b"a secret" not in file.read_bytes(), file
    assert list((target / "blobs" / blob.hash[:2]).glob(f"{blob.hash}.*.age"))
    assert client.replication.prove(directory=str(target)).blobs >= 1
    with (
        backup_node(tmp_path_factory.mktemp("keyless") / "node", target.parent) as other,
        other.client() as keyless,
        pytest.raises(OperationFailed, match=r"000001-full/snapshot\.age: it is encrypted, and no secret key"),
    ):
        keyless.replication.prove(directory=str(target))
    stranger = str(x25519.Identity.generate().to_public())
    client.replication.backup(directory=f"{target}-other", recipients=[stranger])
    with pytest.raises(OperationFailed, match="none of the secret keys fits"):
        client.replication.prove(directory=f"{target}-other")


def test_nothing_is_added_in_plain_to_what_is_encrypted(client: Client, target: Path, key: tuple[Path, str]) -> None:
    """Given an encrypted series, and one who forgets for whom; then nothing is written that everybody could read."""
    client.replication.backup(directory=str(target), recipients=[key[1]])
    for kind in ("auto", "full", "incremental"):
        with pytest.raises(OperationFailed, match="000001-full is encrypted, and what is to be added to it is not"):
            client.replication.backup(directory=str(target), kind=kind)
    assert [path.name for path in sorted(target.iterdir()) if path.name[0].isdigit()] == ["000001-full"]


# --- damage ----------------------------------------------------------------------------------------------------------


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def _link(path: Path) -> None:
    elsewhere = path.parent.parent / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def _remove(path: Path) -> None:
    path.unlink()


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.fixture(scope="module")
def sound(node: EmbeddedNode, place: Path) -> Path:
    """A series of three backups that nothing is wrong with."""
    target = place / "sound"
    with node.client() as client:
        client.blobs.put(b"of the sound series", tag="sound")
        series_of(client, target)
    return target


@pytest.mark.parametrize("damage", [_cut, _flip, _grow, _link, _remove, _pipe])
@pytest.mark.parametrize(
    "file", ["000001-full/snapshot", "000002-incremental/changes", "000002-incremental/manifest.json"]
)
def test_damage_is_found_by_name_and_nothing_is_written(
    client: Client, sound: Path, target: Path, tmp_path: Path, file: str, damage: Callable[[Path], None]
) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(sound, target)
    damage(target / file)
    if damage is _grow and file.endswith(m.FILE):
        return  # a manifest with something behind it is refused as JSON: the case of _cut
    for attempt in (
        lambda: client.replication.prove(directory=str(target)),
        lambda: client.replication.restore("/data/nothing/", directory=str(target)),
    ):
        with pytest.raises(OperationFailed, match=file.partition("/")[0]):
            attempt()
    assert not list(client.kv.scan("/data/nothing/"))
    # What is added to it would not restore, so the next one is a full one, and the newest state is safe again.
    with pytest.raises(OperationFailed, match=file.partition("/")[0]):
        client.replication.backup(directory=str(target), kind="incremental")
    made = client.replication.backup(directory=str(target))
    assert made.kind == "full"
    with restored(target, tmp_path / "store") as store:
        assert store.revision == made.source_revision


def test_a_blob_that_is_damaged_or_missing_is_found_by_name(client: Client, sound: Path, target: Path) -> None:
    shutil.copytree(sound, target)
    blob = next(path for path in (target / "blobs").rglob("*") if path.is_file())
    _flip(blob)
    with pytest.raises(OperationFailed, match=f"{blob.name}: its content is not what its name says"):
        client.replication.prove(directory=str(target))
    blob.unlink()
    with pytest.raises(OperationFailed, match=f"{blob.name}: it is missing"):
        client.replication.prove(directory=str(target))
    client.replication.backup(directory=str(target))
    assert blob.exists()


def test_a_backup_in_the_middle_that_is_missing_is_told(client: Client, sound: Path, target: Path) -> None:
    shutil.copytree(sound, target)
    shutil.rmtree(target / "000002-incremental")
    with pytest.raises(OperationFailed, match="000003-incremental: it is added to backup 000002, which is missing"):
        client.replication.prove(directory=str(target))
    with pytest.raises(OperationFailed, match="000003-incremental"):
        client.replication.backup(directory=str(target), kind="incremental")
    assert client.replication.backup(directory=str(target)).kind == "full"


def test_another_version_and_another_cluster_are_refused(
    client: Client, sound: Path, target: Path, tmp_path: Path
) -> None:
    shutil.copytree(sound, target)
    file = target / "000003-incremental" / m.FILE
    found = json.loads(file.read_text())
    file.write_text(json.dumps({**found, "version": 9}))
    with pytest.raises(OperationFailed, match="version 9; this build knows 1"):
        client.replication.prove(directory=str(target))
    shutil.copytree(sound, f"{target}-foreign")
    for name in ("000001-full", "000002-incremental", "000003-incremental"):
        file = Path(f"{target}-foreign") / name / m.FILE
        other = m.decode(file.read_bytes(), name)
        changed = m.Manifest(**{**{f: getattr(other, f) for f in other.__struct_fields__}, "cluster": "ab" * 16})
        file.write_bytes(m.encode(changed))
    with pytest.raises(OperationFailed, match=f"has backups of the cluster {'ab' * 16}"):
        client.replication.backup(directory=f"{target}-foreign")
    with opened(Path(f"{target}-foreign")) as series:
        assert len(series.names()) == 3


def test_what_is_no_series_is_told(client: Client, place: Path, target: Path) -> None:
    target.mkdir()
    with pytest.raises(OperationFailed, match="there is no backup in it"):
        client.replication.prove(directory=str(target))
    with pytest.raises(OperationFailed, match=r"in no directory that jobs may use \(workers.replication.allow_files\)"):
        client.replication.backup(directory="/var/tmp/elsewhere")
    (place / "leads-away").symlink_to("/var/tmp")
    with pytest.raises(OperationFailed, match="leads-away"):
        client.replication.backup(directory=str(place / "leads-away"))
    with pytest.raises(OperationFailed, match="no backup to which one could be added"):
        client.replication.backup(directory=str(target), kind="incremental")


# --- what breaks off -------------------------------------------------------------------------------------------------


def test_a_full_target_leaves_the_series_as_it_was(node: EmbeddedNode, client: Client, place: Path) -> None:
    """Given room for a first backup and none for a second; then that fails by name, and the first one still is what it
    was; with room again it goes on."""
    target = place / "small"
    with small_disk(target):
        client.kv.put("/data/small", "x")
        client.replication.backup(directory=str(target), blobs=False)
        blob = client.blobs.put(os.urandom(20 << 20), tag="large")
        with pytest.raises(OperationFailed, match="No space left on device"):
            client.replication.backup(directory=str(target))
        with opened(target) as series:
            assert series.names() == ["000001-full"]
            assert not [name for name in series.shelf.names() if name.startswith(".draft")]
        client.replication.prove(directory=str(target))
        client.blobs.forget(blob.hash)
        client.blobs.put(b"small", tag="large")
        client.replication.backup(directory=str(target))
        client.replication.prove(directory=str(target))


@pytest.mark.slow
def test_a_worker_that_is_killed_leaves_nothing_half_made(
    tmp_path_factory: pytest.TempPathFactory, place: Path, target: Path
) -> None:
    """Given a worker that is killed at different places of a backup; then what has a name is whole, and the next one
    clears what was left."""
    with backup_node(tmp_path_factory.mktemp("killed") / "node", place) as node, node.client() as client:
        for number in range(40):
            client.kv.put(f"/data/bulk/{number:03d}", "x" * 100_000)
            client.blobs.put(os.urandom(200_000), tag=f"bulk-{number}")
        for round_number in range(4):
            job = client.submit(replication_job(_slow_backup(target))).job.id
            until(lambda n=round_number: _drafts(target) > 0 and _size(target) > n * 1_500_000)
            os.kill(_worker_of(node), signal.SIGKILL)
            client.wait(job)
            if target.exists():
                with opened(target) as series:
                    for name in series.names():
                        series.load(name)
            node.wait_until_it_serves()
        client.replication.backup(directory=str(target))
        client.replication.prove(directory=str(target))
        assert _drafts(target) == 0


def _slow_backup(target: Path) -> ReplicationBackup:
    """One that takes several seconds."""
    return ReplicationBackup(directory=str(target), kind="full", throttle=Throttle(bytes_per_s=2_000_000))


def _drafts(target: Path) -> int:
    return sum(1 for path in target.rglob(".draft*")) if target.exists() else 0


def _size(target: Path) -> int:
    return sum(path.stat().st_size for path in target.rglob("*") if path.is_file()) if target.exists() else 0


def _worker_of(node: EmbeddedNode) -> int:
    (found,) = [pid for pid in processes.with_argument("replication") if str(node.directory) in _command(pid)]
    return found


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def test_a_snapshot_that_was_begun_before_is_not_taken_for_what_has_come_since(
    tmp_path_factory: pytest.TempPathFactory, place: Path, target: Path, tmp_path: Path
) -> None:
    """Given a backup whose snapshot takes long, a key that is written meanwhile, and another backup; then that one has
    the key: its snapshot is not the one that was under way."""
    report = tmp_path / "report"
    points = f"report={report};store.snapshot.before=delay:2000ms"
    with (
        backup_node(tmp_path_factory.mktemp("slow") / "node", place, JOBS_FAILPOINTS=points) as node,
        node.client() as client,
    ):
        client.kv.put("/data/first", "x")
        slow = ReplicationBackup(directory=f"{target}-slow", prove=False)
        job = client.submit(replication_job(slow)).job.id
        until(lambda: report.exists() and "store.snapshot.before" in report.read_text())
        client.kv.put("/data/second", "y")
        client.replication.backup(directory=str(target))
        with restored(target, tmp_path / "store") as store:
            assert set(users_rows(store)) == {"/data/first", "/data/second"}
        client.wait(job)


def test_only_administrators_read_the_store_for_backups(node: EmbeddedNode) -> None:
    """Given a worker that asks for somebody who is no administrator; then nothing of the store is given."""

    async def read(path: str) -> int:
        async with await Raw.connect(node.socket) as raw:
            return (await raw.ask("GET", path, Jobs_Act_For="4711")).status

    paths = ("snapshot", "changes?after=0", "rows?prefix=/", "state?revision=1")
    for path in paths:
        assert asyncio.run(read(f"/v1/replication/{path}")) == 403, path


@pytest.mark.parametrize("prove", [True, False])
def test_changes_of_one_node_are_not_added_to_the_backup_of_another(
    client: Client, tmp_path_factory: pytest.TempPathFactory, place: Path, target: Path, tmp_path: Path, prove: bool
) -> None:
    """Given two nodes that are in no cluster, so that no id tells them apart, and one directory for both; then what
    comes out is a full backup of the second, and not its changes on top of the first."""
    directory = Path(f"{target}-{prove}")
    with (
        backup_node(tmp_path_factory.mktemp("other") / "node", place) as other,
        other.client() as first,
    ):
        first.kv.put("/data/of the first", "x")
        until_ahead = first.replication.backup(directory=str(directory), prove=prove).source_revision
    number = 0
    while client.kv.put("/data/of the second", str(number)).revision <= until_ahead:
        number += 1
    assert client.replication.backup(directory=str(directory), prove=prove).kind == "full"
    with restored(directory, tmp_path / "store") as store:
        assert "/data/of the first" not in users_rows(store)
        assert "/data/of the second" in users_rows(store)


def test_a_blob_that_no_node_has_any_more_does_not_stand_in_the_way_and_is_told(
    tmp_path_factory: pytest.TempPathFactory, place: Path, target: Path, tmp_path: Path
) -> None:
    """Given a blob whose content is lost; then the backup has everything else and its name, its manifest says what it
    lacks, and the job fails, so that somebody looks."""
    with backup_node(tmp_path_factory.mktemp("lost") / "node", place) as node, node.client() as client:
        client.kv.put("/data/kept", "x")
        there = client.blobs.put(os.urandom(200_000), tag="there").hash
        lost = client.blobs.put(os.urandom(200_000), tag="lost").hash
        for path in (node.directory / "data" / "blobs" / "data").rglob(f"*{lost[2:]}*"):
            path.unlink()
        with pytest.raises(OperationFailed, match=f"is made, and whole but for 1 blobs that no node gave: {lost}"):
            client.replication.backup(directory=str(target))
        with opened(target) as series:
            (one,) = series.all()
            assert one.lost == [lost]
            assert set(series.listing(one)) == {there}
        with restored(target, tmp_path / "store") as store:
            assert users_rows(store) == {"/data/kept": "x"}
