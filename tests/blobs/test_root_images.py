"""Root images through a real node: asked for by command and in Python, unpacked once, kept, let go of, cut short."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from jobs import Client, RootImage, shell_job
from jobs.errors import InvalidRequest, NotFound
from jobs.protocol.model import InputFile, JobResult, Reason
from jobs.testing import EmbeddedNode
from tests.sandbox.conftest import USER_ID
from tests.sandbox.images import add, layer, layout, make_tree, of_tree, squashfs
from tests.support.blobcluster import until
from tests.support.jobctl import jobctl
from tests.support.processes import children_of, is_alive
from tests.support.users import let_others_in
from tests.support.workerprocess import worker_process

MANY = {"JOBS_WORKERS__SHELL__SLOTS": "4"}
SHELL = "cat /etc/image"
requires_mksquashfs = pytest.mark.skipif(shutil.which("mksquashfs") is None, reason="no mksquashfs")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("images")
    let_others_in(made)
    made.chmod(0o755)
    return make_tree(made / "tree")


def node_with(directory: Path, tree: Path, prefix: tuple[str, ...] = (), **settings: str) -> EmbeddedNode:
    let_others_in(directory)
    named = {"JOBS_WORKERS__SHELL__ROOTS": json.dumps({"mine": str(tree)})}
    return EmbeddedNode(directory / "node", env={**named, **settings}, prefix=prefix)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, tree: Path) -> Iterator[EmbeddedNode]:
    with node_with(tmp_path_factory.mktemp("roots"), tree) as made:
        yield made


@pytest.fixture
def client(node: EmbeddedNode) -> Iterator[Client]:
    with node.client() as made:
        yield made


def cache(node: EmbeddedNode) -> list[str]:
    """Names of what the worker keeps: hashes, and drafts that begin with a dot."""
    return sorted(path.name for path in node.directory.glob("roots/jobs-roots-*/shown/*"))


def names(node: EmbeddedNode) -> set[str]:
    """Hashes of the blobs that are kept whole."""
    return {name.partition(".")[0] for name in cache(node) if not name.startswith(".")}


def unpackers(node: EmbeddedNode) -> list[int]:
    """Processes that unpack."""
    return [pid for worker in children_of(node.pid) for pid in children_of(worker) if b"jobs.unpack" in command_of(pid)]


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def put(client: Client, image: Path) -> RootImage:
    return RootImage(blob=client.blobs.put(image).hash)


def oci(tree: Path, target: Path, text: str = "of the image\n", **config: object) -> Path:
    """An image of the tree and a layer above it that says something else."""
    return layout(target, [of_tree(tree), layer(lambda file: add(file, "etc/image", text.encode()))], config)


def ended(client: Client, job: str) -> JobResult:
    return client.result(job, timeout_s=60)


def text(result: JobResult) -> str | None:
    return result.stdout.text


@requires_mksquashfs
def test_a_command_has_each_kind_of_image_for_its_root(node: EmbeddedNode, tree: Path, tmp_path: Path) -> None:
    command = ["sh", "-c", "cat /etc/image; ls -d /usr/bin 2>/dev/null; echo changed > /etc/image; cat /etc/image"]
    squashed = jobctl(node, "blob", "put", str(squashfs(tree, tmp_path / "image.sqfs"))).stdout.decode().split()[0]
    packed = jobctl(node, "blob", "put", str(oci(tree, tmp_path / "image.tar"))).stdout.decode().split()[0]
    for root in (f"blob:{squashed}", f"blob:{packed}", f"blob:{squashed}"):
        ran = jobctl(node, "run", "--root", root, "--", *command)
        assert (ran.returncode, ran.stdout) == (0, b"of the image\nchanged\n"), ran
    # A directory of the operator's is written by nobody whom its modes do not let.
    ran = jobctl(node, "run", "--root", "mine", "--", *command)
    assert (ran.returncode, ran.stdout) == (0, b"of the image\nof the image\n"), ran
    assert (tree / "etc/image").read_text() == "of the image\n"
    assert len([name for name in cache(node) if name.startswith((squashed, packed))]) == 2


def test_results_say_what_a_job_could_do_to_its_image(client: Client, node: EmbeddedNode) -> None:
    result = client.run(shell_job(SHELL, root="mine", cwd="/"))
    assert result.execution is not None
    assert result.execution.root in ("writable", "read_only")
    shown = jobctl(node, "result", result.id)
    assert f"root image {result.execution.root.replace('_', '-')}".encode() in shown.stdout
    result = client.run(shell_job("true"))
    assert result.execution is not None
    assert result.execution.root is None


def test_its_variables_and_directory_give_way_to_the_job_s(client: Client, tree: Path, tmp_path: Path) -> None:
    image = put(client, oci(tree, tmp_path / "image.tar", Env=["A=image", "B=image"], WorkingDir="/app"))
    assert text(client.run(shell_job('echo "$A $B $(pwd)"', root=image, env={"B": "job"}))) == "image job /app\n"
    assert text(client.run(shell_job("pwd; cat /work/in", root=image, cwd="/etc", files={"in": b"in"}))) == "/etc\nin"


def test_jobs_at_once_unpack_once_and_share_nothing_that_they_write(
    client: Client, node: EmbeddedNode, tree: Path, tmp_path: Path
) -> None:
    image = put(client, oci(tree, tmp_path / "image.tar", "shared\n"))
    blob = client.blobs.put(b"an input").hash
    script = 'cat /etc/image in; echo; echo "$0" >> /etc/image; cat /etc/image'
    jobs = [client.submit(shell_job(script, root=image, files={"in": InputFile(blob=blob)})).job.id for _ in range(6)]
    for job in jobs:
        result = ended(client, job)
        assert text(result) == "shared\nan input\nshared\n/.job/script\n", result
    unpacked = [
        line for line in node.log_file.read_text().splitlines() if "root image unpacked" in line and image.blob in line
    ]
    assert len(unpacked) == 1
    assert not [name for name in cache(node) if name.startswith(".")]


def test_what_a_job_leaves_beside_its_image_becomes_blobs(client: Client) -> None:
    result = client.run(shell_job("cat /etc/image > out; ln -s /etc/image link", root="mine", outputs=["out"]))
    assert [artefact.path for artefact in result.artefacts] == ["out"], result
    assert client.blobs.get(result.artefacts[0].hash) == b"of the image\n"


@pytest.mark.parametrize("capabilities", ["", "+setuid,+setgid"])
def test_a_worker_that_is_not_root_has_images_as_well(tmp_path: Path, tree: Path, capabilities: str) -> None:
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("not root, or no setpriv")
    user = ["setpriv", f"--reuid={USER_ID}", f"--regid={USER_ID}", "--clear-groups"]
    if subprocess.run([*user, "test", "-x", os.path.realpath(sys.executable)], check=False).returncode:
        pytest.skip("other users cannot run this interpreter")
    given = [f"--{which}-caps={capabilities}" for which in ("inh", "ambient") if capabilities]
    (tmp_path / "node").mkdir()
    os.chown(tmp_path / "node", USER_ID, USER_ID)
    with node_with(tmp_path, tree, prefix=(*user, *given)) as node, node.client() as client:
        image = put(client, oci(tree, tmp_path / "image.tar"))
        script = "cat /etc/image; echo changed > /etc/image; rm /bin/env; mkdir /made; cat /etc/image"
        for _ in range(2):
            result = client.run(shell_job(script, root=image))
            assert result.execution is not None, result
            changed = "changed" if result.execution.root == "writable" else "of the image"
            assert text(result) == f"of the image\n{changed}\n", result


def test_what_is_no_image_is_refused_with_what_is_wrong(client: Client, tree: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no image at all\n")
    ended = client.run(shell_job(SHELL, root=put(client, tmp_path / "text")))
    assert ended.reason is Reason.BLOB_ERROR
    assert "it is neither a squashfs file nor a tar file" in (ended.message or "")
    collection = client.blobs.collect({"a": client.blobs.put(b"a").hash})
    ended = client.run(shell_job(SHELL, root=RootImage(blob=collection.hash)))
    assert "it is a collection, and no file of an image" in (ended.message or "")
    bare = layout(tmp_path / "bare.tar", [layer(lambda file: add(file, "file", b"x"))])
    ended = client.run(shell_job(SHELL, root=put(client, bare)))
    assert ended.reason is Reason.SPAWN_FAILED
    assert ended.message == "no such file or directory: /bin/sh, or what it needs to be run, in its root image"


def test_what_can_be_known_is_refused_at_once(client: Client, node: EmbeddedNode) -> None:
    with pytest.raises((NotFound, InvalidRequest), match="blob"):
        client.submit(shell_job(SHELL, root=RootImage(blob="0" * 64)))
    for wrong in ("../etc", "a/b", "", "/srv/root"):
        with pytest.raises(InvalidRequest, match="root"):
            client.submit(shell_job(SHELL, root=wrong))
    ran = jobctl(node, "run", "--root", "blob:zz", "--", "true")
    assert ran.returncode == 2
    assert b"zz" in ran.stderr


def test_a_job_that_names_an_image_goes_to_a_worker_that_has_it_or_says_why_it_waits(
    tmp_path: Path, tree: Path
) -> None:
    """Given two other workers with more room: one that has no image, and one without walls, where none can be had."""

    async def scenario() -> None:
        theirs = {"JOBS_WORKERS__SHELL__ROOTS": json.dumps({"theirs": str(tree)})}
        bare = {**theirs, "JOBS_WORKERS__SHELL__SANDBOX": "none", "JOBS_WORKERS__SHELL__WORK_DIR": str(tmp_path / "w")}
        with node_with(tmp_path, tree, JOBS_WORKERS__SHELL__SLOTS="1") as node:
            async with (
                worker_process(node.directory, "--name", "roomy", "--slots", "9"),
                worker_process(node.directory, "--name", "bare", "--slots", "9", **bare),
            ):
                await asyncio.to_thread(among_three, node)
                waiting = await asyncio.to_thread(for_nobody, node)
                async with worker_process(node.directory, "--name", "late", **theirs):
                    result = await asyncio.to_thread(lambda: outcome(node, waiting))
        assert result.execution is not None
        assert (result.execution.worker, text(result)) == ("late", "of the image\n")

    def among_three(node: EmbeddedNode) -> None:
        with node.client() as client:
            until(lambda: len([one for one in client.workers() if one.state == "ready"]) == 3)
            shown = {one.id: one.labels for one in client.workers()}
            (own,) = shown.keys() - {"roomy", "bare"}
            assert shown == {own: {"root:mine": "yes"}, "roomy": {}, "bare": {}}
            # One after the other: the emptiest worker, to which a job goes that asks for nothing, has none.
            for _ in range(3):
                result = client.run(shell_job(SHELL, root="mine"))
                assert result.execution is not None, result
                assert (result.execution.worker, text(result)) == (own, "of the image\n")
            plain = client.run(shell_job("true"))
            assert plain.execution is not None
            assert plain.execution.worker in ("roomy", "bare")

    def for_nobody(node: EmbeddedNode) -> str:
        sent = jobctl(node, "submit", "--root", "theirs", "--", "cat", "/etc/image")
        job = sent.stdout.decode().strip()
        with node.client() as client:
            found = client.explain(job)
            assert (found.job.state, found.job.attempt) == ("pending", 0), found
            assert [obstacle.kind for obstacle in found.obstacles] == ["unsuitable"]
            assert [fit.lacks for fit in found.workers] == [["label root:theirs=yes wanted, has none"]] * 3
        shown = jobctl(node, "explain", job).stdout.decode()
        assert "none of the 3 registered workers can ever take it" in shown
        assert "label root:theirs=yes wanted, has none" in shown
        return job

    def outcome(node: EmbeddedNode, job: str) -> JobResult:
        with node.client() as client:
            return ended(client, job)

    uvloop.run(scenario())


def test_the_cache_is_bounded_and_lets_go_of_none_in_use(tmp_path: Path, tree: Path) -> None:
    """Given room for two images and not for three."""
    size = sum(4_096 + path.lstat().st_size for path in tree.rglob("*"))
    room = str(int(size * 2.7))
    with node_with(tmp_path, tree, JOBS_WORKERS__SHELL__ROOTS_BYTES=room, **MANY) as node, node.client() as client:
        images = [put(client, oci(tree, tmp_path / f"{n}.tar", f"{n}\n")) for n in range(3)]
        held = client.submit(shell_job("cat /etc/image; sleep 1000", root=images[0])).job.id
        assert text(client.run(shell_job(SHELL, root=images[1]))) == "1\n"
        assert text(client.run(shell_job(SHELL, root=images[2]))) == "2\n"
        until(lambda: names(node) == {images[0].blob, images[2].blob})
        other = client.submit(shell_job("sleep 1000", root=images[2])).job.id
        waits = client.submit(shell_job(SHELL, root=images[1])).job.id
        # It is unpacked, and there is no room for it as long as the two others are in use.
        until(lambda: [*node.directory.glob("roots/jobs-roots-*/shown/.*/image.json")])
        assert names(node) == {images[0].blob, images[2].blob}
        client.cancel(other)
        assert text(ended(client, waits)) == "1\n"
        client.cancel(held)
        assert text(ended(client, held)) == "0\n"
        large = layer(lambda file: add(file, "large", bytes(int(size * 2.8))))
        refused = client.run(shell_job(SHELL, root=put(client, layout(tmp_path / "large.tar", [large]))))
        assert "bytes for which there is room" in (refused.message or "")


def test_what_is_cut_short_is_not_taken_for_whole_and_leaves_nothing(tmp_path: Path, tree: Path) -> None:
    """Given an image that takes a while: its job is cancelled, its unpacker killed, and then everything."""

    def many(file: tarfile.TarFile) -> None:
        for number in range(20_000):
            add(file, f"many/{number}", b"x")

    image = layout(tmp_path / "image.tar", [of_tree(tree), layer(many)], compress=False)
    node = node_with(tmp_path, tree)
    with node, node.client() as client:
        wanted = shell_job("cat /etc/image; ls /many | while read n; do echo; done | cat -n", root=put(client, image))
        job = client.submit(wanted).job.id
        until(lambda: unpackers(node))
        client.cancel(job)
        assert ended(client, job).reason is Reason.CANCELLED
        until(lambda: not unpackers(node) and not cache(node))
        job = client.submit(wanted).job.id
        until(lambda: unpackers(node))
        for pid in unpackers(node):
            os.kill(pid, signal.SIGKILL)
        assert "what unpacks it ended with -9" in (ended(client, job).message or "")
        until(lambda: not cache(node))
        client.submit(wanted)
        until(lambda: unpackers(node))
        orphans = unpackers(node)
        node.kill()
        until(lambda: not any(is_alive(pid) for pid in orphans))
        assert all(name.startswith(".") for name in cache(node)), "a part is taken for whole"
        node.start()
        assert (client.run(wanted).stdout.text or "").startswith("of the image\n")
        assert len(names(node)) == len(cache(node)) == 1
        until(lambda: not [*node.directory.glob("roots/jobs-roots-*/gone/*")])
        node.restart()
        assert text(client.run(shell_job(SHELL, root=wanted.payload.root))) == "of the image\n"
    assert node.log_file.read_text().count("root image unpacked") == 1
