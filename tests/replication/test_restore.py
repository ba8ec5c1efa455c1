"""`jobs-node restore`: a new cluster of a backup, also when it is killed, and what it refuses."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pyrage import x25519

from jobs import JobState, ShellJob, ShellPayload
from jobs.config import load_config
from jobs.protocol.model import Retry
from jobs.restore import UNFINISHED, Wanted, restore, unfinished
from jobs.testing import EmbeddedNode, NodeFailed
from tests.replication.series import backup_node, write_some
from tests.support.waiting import until

PLACES = (
    "store.install.before",
    "store.install.rename.before",
    "store.apply.before",
    "store.apply.commit.before",
    "blobs.write.before",
    "blobs.rename.before",
    "store.snapshot.before",
    "store.replace.rename.before",
    "store.close.sync.before",
    "cluster.file.write.before",
    "cluster.file.rename.before",
)


def node_command(
    directory: Path, *arguments: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs.node", "--embedded", str(directory), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)


class Series:
    """A series of backups, and what the cluster had."""

    def __init__(
        self, directory: Path, identity: Path, blob: str, running: str, done: str, revisions: list[int]
    ) -> None:
        self.directory = directory
        self.encrypted = directory.parent / "encrypted"
        self.identity = identity
        self.blob = blob
        self.running = running
        self.done = done
        self.revisions = revisions


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Series:
    place = tmp_path_factory.mktemp("place")
    identity = x25519.Identity.generate()
    key = place / "key"
    key.write_text(f"{identity}\n")
    key.chmod(0o600)
    with backup_node(tmp_path_factory.mktemp("old") / "node", place) as node, node.client() as client:
        blob = client.blobs.put(b"kept by a tag" * 1_000, tag="kept").hash
        done = client.submit(ShellJob(payload=ShellPayload(argv=["echo", "done before"]))).job.id
        assert client.wait(done).state is JobState.COMPLETED
        retry = Retry(max_attempts=5)
        running = client.submit(ShellJob(payload=ShellPayload(argv=["sleep", "1000"]), retry=retry)).job.id
        until(lambda: client.get(running).job.state is JobState.RUNNING)
        revisions = []
        for number in range(3):
            write_some(client, number)
            client.kv.put("/data/number", str(number))
            revisions.append(client.replication.backup(directory=str(place / "series")).source_revision)
        client.replication.backup(directory=str(place / "encrypted"), recipients=[str(identity.to_public())])
    return Series(place / "series", key, blob, running, done, revisions)


def test_a_new_cluster_has_jobs_results_keys_and_blobs(series: Series, tmp_path: Path) -> None:
    """Given a backup of a cluster in which a job ran; then a node that is made of it has what was there, and runs the
    job again as after the loss of its worker."""
    directory = tmp_path / "new"
    told = node_command(directory, "restore", "--from", str(series.directory))
    assert told.returncode == 2
    assert "000001-full to 000003-incremental" in told.stderr
    assert not (directory / "data").exists()
    done = node_command(directory, "restore", "--from", str(series.directory), "--yes")
    assert done.returncode == 0, done.stderr
    with EmbeddedNode(directory, types=("shell", "replication")) as node, node.client() as client:
        assert client.kv.get("/data/number").value.text == "2"
        assert client.blobs.get(series.blob) == b"kept by a tag" * 1_000
        assert client.result(series.done).stdout.text == "done before\n"
        until(
            lambda: (
                client.get(series.running).job.state is JobState.RUNNING and client.get(series.running).job.attempt > 1
            )
        )
        client.cancel(series.running)
        job = client.submit(ShellJob(payload=ShellPayload(argv=["echo", "after"]))).job.id
        assert client.wait(job).state is JobState.COMPLETED
        assert "cluster.restore" in [entry.action for entry in client.audit()]
        # What the sweep of blobs leaves is what the catalogue names, and it names them.
        assert list(client.blobs.stat(series.blob).nodes)


def test_as_of_a_revision(series: Series, tmp_path: Path) -> None:
    directory = tmp_path / "new"
    done = node_command(
        directory, "restore", "--from", str(series.directory), "--revision", str(series.revisions[0]), "--yes"
    )
    assert done.returncode == 0, done.stderr
    with EmbeddedNode(directory) as node, node.client() as client:
        assert client.kv.get("/data/number").value.text == "0"
    late = node_command(tmp_path / "late", "restore", "--from", str(series.directory), "--revision", "999999", "--yes")
    assert (late.returncode, "goes up to" in late.stderr) == (1, True)
    early = node_command(
        tmp_path / "early", "restore", "--from", str(series.directory), "--at", "2001-01-01T00:00:00Z", "--yes"
    )
    assert (early.returncode, "no full backup is as old as that" in early.stderr) == (1, True)


def test_what_is_encrypted(series: Series, tmp_path: Path) -> None:
    directory = tmp_path / "new"
    command = ("restore", "--from", str(series.encrypted), "--yes")
    refused = node_command(directory, *command)
    assert (refused.returncode, "it is encrypted for age1" in refused.stderr) == (1, True)
    assert not (directory / "data").exists()
    done = node_command(directory, *command, "--identity", str(series.identity))
    assert done.returncode == 0, done.stderr
    with EmbeddedNode(directory) as node, node.client() as client:
        assert client.kv.get("/data/number").value.text == "2"
        assert client.blobs.get(series.blob) == b"kept by a tag" * 1_000


def test_what_is_damaged_or_for_others_leaves_nothing(series: Series, tmp_path: Path) -> None:
    """Given a series with a damaged file, one that lacks a blob, and a key that does not fit; then each is told by
    name, and nothing is there."""
    damaged = tmp_path / "series"
    shutil.copytree(series.directory, damaged)
    file = damaged / "000002-incremental" / "changes"
    file.write_bytes(file.read_bytes()[:-1])
    stranger = tmp_path / "stranger"
    stranger.write_text(f"{x25519.Identity.generate()}\n")
    stranger.chmod(0o600)
    lacking = tmp_path / "lacking"
    shutil.copytree(series.directory, lacking)
    (lacking / "blobs" / series.blob[:2] / series.blob).unlink()
    for arguments, told in (
        ((damaged,), "000002-incremental/changes: it has"),
        ((lacking,), f"{series.blob}: it is missing"),
        ((series.encrypted, "--identity", stranger), "none of the secret keys fits"),
        ((tmp_path / "nowhere",), "No such file"),
    ):
        refused = node_command(tmp_path / "new", "restore", "--yes", "--from", *map(str, arguments))
        assert (refused.returncode, told in refused.stderr) == (1, True), refused.stderr
        assert not list((tmp_path / "new" / "data").glob("*")), told


def test_a_key_that_does_not_fit_is_told_before_anything_is_written(series: Series, tmp_path: Path) -> None:
    other = tmp_path / "other-key"
    other.write_text(f"{x25519.Identity.generate()}\n")
    other.chmod(0o600)
    command = ("restore", "--from", str(series.encrypted), "--identity", str(other))
    for more in ((), ("--yes",)):
        refused = node_command(tmp_path / "new", *command, *more)
        assert (refused.returncode, "none of the secret keys fits" in refused.stderr) == (1, True)
        assert not (tmp_path / "new" / "data").exists()


def test_two_at_once_do_not_mix(series: Series, tmp_path: Path) -> None:
    """Given a restore that is at it; then another one is refused, and takes nothing away from it."""
    data = tmp_path / "new" / "data"
    (data / UNFINISHED).mkdir(parents=True)
    (data / UNFINISHED / "of-the-other").touch()
    descriptor = os.open(data, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        refused = node_command(tmp_path / "new", "restore", "--from", str(series.directory), "--yes")
    finally:
        os.close(descriptor)
    assert (refused.returncode, "another restore into it is under way" in refused.stderr) == (1, True)
    assert (data / UNFINISHED / "of-the-other").exists()
    assert node_command(tmp_path / "new", "restore", "--from", str(series.directory), "--yes").returncode == 0


def test_in_the_directory_of_another_user_it_is_refused(
    series: Series, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Given root in the directory of the node's user, who could not read what root restores."""
    (tmp_path / "new" / "data").mkdir(parents=True)
    config = load_config(None, embedded=tmp_path / "new")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert restore(config, Wanted(directory=series.directory), confirmed=True) == 1
    assert "as that user" in capsys.readouterr().err
    assert not list((tmp_path / "new" / "data").iterdir())


@pytest.mark.parametrize(
    ("moment", "expected"), [("2h", "is no moment; for example"), ("2030-01-31T12:00", "no time zone")]
)
def test_a_moment_that_is_none_is_explained(tmp_path: Path, moment: str, expected: str) -> None:
    refused = node_command(tmp_path / "new", "restore", "--from", str(tmp_path), "--at", moment)
    assert (refused.returncode, expected in refused.stderr) == (2, True)


def test_directories_that_were_made_ahead_are_not_in_its_way(series: Series, tmp_path: Path) -> None:
    """As the package and the disk itself make them, before there is a node."""
    for name in ("store", "lost+found"):
        (tmp_path / "new" / "data" / name).mkdir(parents=True)
    restored = node_command(tmp_path / "new", "restore", "--from", str(series.directory), "--yes")
    assert restored.returncode == 0, restored.stderr
    # and what is in one of them is
    refused = node_command(tmp_path / "new", "restore", "--from", str(series.directory), "--yes")
    assert "is not empty (blobs, " in refused.stderr
    assert "lost+found" not in refused.stderr


def test_what_a_node_has_is_not_overwritten(series: Series, tmp_path: Path) -> None:
    with EmbeddedNode(tmp_path / "node") as node, node.client() as client:
        client.kv.put("/data/mine", "x")
    refused = node_command(tmp_path / "node", "restore", "--from", str(series.directory), "--yes")
    assert (refused.returncode, "is not empty" in refused.stderr) == (1, True)
    with EmbeddedNode(tmp_path / "node") as node, node.client() as client:
        assert client.kv.get("/data/mine").value.text == "x"


@pytest.mark.parametrize(
    ("action", "places"),
    [
        pytest.param("kill", PLACES[1::4], id="kill"),
        pytest.param("kill", PLACES, marks=pytest.mark.slow, id="kill-everywhere"),
        pytest.param("error:ENOSPC", PLACES[::4], marks=pytest.mark.slow, id="full"),
    ],
)
def test_a_restore_that_breaks_off_anywhere_is_begun_again_and_no_node_starts_with_half_of_it(
    series: Series, tmp_path: Path, action: str, places: tuple[str, ...]
) -> None:
    """Given a restore that is killed, or whose disk is full, at one place after the other; then no node starts with
    what is there; and it can be done again until all of it is there."""
    directory = tmp_path / "new"
    command = ("restore", "--from", str(series.directory), "--yes")
    for point in places:
        env = {**os.environ, "JOBS_FAILPOINTS": f"{point}={action}"}
        broken = node_command(directory, *command, env=env)
        assert broken.returncode == (-signal.SIGKILL if action == "kill" else 1), (point, broken.stderr)
        assert (unfinished(directory / "data") is not None) == (action == "kill")
        assert not (directory / "data" / "store").exists()
    if action == "kill":
        with pytest.raises(NodeFailed, match="did not come to its end here"):
            EmbeddedNode(directory).start()
    assert node_command(directory, *command).returncode == 0
    with EmbeddedNode(directory) as node, node.client() as client:
        assert client.kv.get("/data/number").value.text == "2"
        assert client.blobs.get(series.blob) == b"kept by a tag" * 1_000
