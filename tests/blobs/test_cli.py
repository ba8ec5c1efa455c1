"""`jobctl blob` as a person uses it: real commands against a real node."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import termios
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from jobs.testing import EmbeddedNode
from tests.support.blobpeer import content
from tests.support.jobctl import COMMAND
from tests.support.jobctl import jobctl as run_jobctl
from tests.support.waiting import until

MIB = 1 << 20
ERASE = "\r\x1b[K"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedNode]:
    with EmbeddedNode(tmp_path_factory.mktemp("blobs") / "node", types=()) as made:
        yield made


@pytest.fixture
def blob(node: EmbeddedNode) -> partial[subprocess.CompletedProcess[bytes]]:
    return partial(run_jobctl, node, "blob")


Blob = partial[subprocess.CompletedProcess[bytes]]


def line(done: subprocess.CompletedProcess[bytes]) -> str:
    """Return the only line that a command prints."""
    assert (done.returncode, done.stderr) == (0, b""), done
    (printed,) = done.stdout.decode().splitlines()
    return printed


def said(done: subprocess.CompletedProcess[bytes]) -> tuple[int, str]:
    assert done.stdout == b""
    return done.returncode, done.stderr.decode()


def test_a_file_is_put_kept_shown_and_fetched(blob: Blob, tmp_path: Path) -> None:
    data = content(MIB + 3, 1)
    (tmp_path / "file").write_bytes(data)
    made = line(blob("put", str(tmp_path / "file")))
    tag = f"put/{os.getuid()}/{made[:16]}"
    stat = json.loads(line(blob("stat", made, "--json")))
    assert (stat["hash"], stat["size_bytes"], stat["references"]) == (made, len(data), [{"kind": "tag", "name": tag}])
    assert f"kept by    tag {tag}" in blob("stat", tag).stdout.decode()
    assert f"{made}  1.0 MiB  raw   1/1" in blob("ls").stdout.decode()
    assert json.loads(line(blob("ls", "--tags", "--prefix", tag, "--json")))["hash"] == made
    assert blob("cat", made).stdout == blob("get", made).stdout == blob("get", tag, "-").stdout == data
    assert blob("cat", made, "--range", "10-19").stdout == data[10:20]
    assert blob("cat", made, "--range", "1048576-").stdout == data[MIB:]
    assert said(blob("get", made, str(tmp_path / "copy"))) == (0, "")
    assert (tmp_path / "copy").read_bytes() == data
    told = json.loads(line(blob("get", made, str(tmp_path / "copy"), "--json")))
    assert told == {"hash": made, "bytes": len(data), "target": str(tmp_path / "copy")}
    assert said(blob("forget", made)) == (0, "")
    assert "nothing: it goes" in blob("stat", made).stdout.decode()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("stat", ""), "an empty word names no blob and no tag"),
        (("cat", ""), "an empty word names no blob and no tag"),
        (("unpin", ""), "an empty word names no blob and no tag"),
        (("stat", "A" * 64), "is no hash of a blob, which has 64 digits 0-9 and a-f, and no tag"),
        (("stat", "a" * 63), "is no hash of a blob, which has 64 digits 0-9 and a-f, and no tag"),
    ],
)
def test_what_names_no_blob_is_told_so(blob: Blob, words: tuple[str, ...], why: str) -> None:
    code, text = said(blob(*words))
    assert (code, why in text) == (2, True), text


def test_standard_input_is_kept_by_the_name_that_is_given(blob: Blob) -> None:
    added = json.loads(line(blob("put", "-", "--tag", "greeting", "--json", stdin=b"hello")))
    assert (added["tag"], added["size_bytes"], added["created"]) == ("greeting", 5, True)
    assert line(blob("cat", "greeting")) == "hello"
    assert line(blob("pin", "greeting", "salute")) == "salute"
    assert said(blob("unpin", "greeting")) == (0, "")
    assert line(blob("cat", "salute")) == "hello"
    other = line(blob("put", "-", "--no-pin", stdin=b"other"))
    code, text = said(blob("pin", other, "salute", "--new"))
    assert (code, "salute" in text) == (1, True)
    assert line(blob("pin", other, "salute")) == "salute"
    assert line(blob("cat", "salute")) == "other"
    assert line(blob("share", "salute")).startswith("blobticket1.")
    assert json.loads(line(blob("share", "salute", "--ttl", "1h", "--json")))["hash"] == other


def test_a_directory_is_one_blob(blob: Blob, tmp_path: Path) -> None:
    (tmp_path / "tree/sub").mkdir(parents=True)
    (tmp_path / "tree/a").write_bytes(b"1")
    (tmp_path / "tree/sub/b").write_bytes(b"2")
    made = line(blob("put", str(tmp_path / "tree")))
    listed = [json.loads(text) for text in blob("ls", made, "--json").stdout.splitlines()]
    assert [file["name"] for file in listed] == ["a", "sub/b"]
    assert blob("ls", made).stdout.decode() == f"{listed[0]['hash']}  a\n{listed[1]['hash']}  sub/b\n"
    assert said(blob("get", made, str(tmp_path / "copy"))) == (0, "")
    assert (tmp_path / "copy/sub/b").read_bytes() == b"2"
    assert line(blob("cat", made, "--path", "sub/b")) == "2"
    assert said(blob("get", made, str(tmp_path / "b"), "--path", "sub/b")) == (0, "")
    assert (tmp_path / "b").read_bytes() == b"2"
    code, text = said(blob("cat", made))
    assert (code, "is a collection" in text) == (2, True)
    # The files are kept with it.
    assert [*json.loads(line(blob("stat", listed[0]["hash"], "--json")))["references"]] == [
        {"kind": "collection", "name": made}
    ]
    (tmp_path / "tree/link").symlink_to("a")
    code, text = said(blob("put", str(tmp_path / "tree")))
    assert (code, "neither a file nor a directory" in text) == (65, True)
    assert line(blob("put", str(tmp_path / "tree"), "--skip-others")) == made


def test_what_goes_wrong_is_told_with_its_exit_code(blob: Blob, tmp_path: Path) -> None:
    made = line(blob("put", "-", stdin=b"content"))
    for code, text, *arguments in (
        (1, "there is no tag 'absent'", "cat", "absent"),
        (1, "there is no blob", "cat", "0" * 64),
        (65, "No such file", "put", str(tmp_path / "absent")),
        (74, "cannot write", "get", made, str(tmp_path / "absent/file")),
        (2, "is a directory", "get", made, str(tmp_path)),
        (2, "exclude each other", "put", "-", "--no-pin", "--tag", "a"),
        (2, "is no range", "cat", made, "--range", "a"),
        (1, "beyond the 7 bytes", "cat", made, "--range", "7-"),
        (65, "no collection", "ls", made),
        (65, "no name", "pin", made, "../a b"),
    ):
        done = blob(*arguments)
        assert (done.returncode, text in done.stderr.decode()) == (code, True), done
    assert list(tmp_path.iterdir()) == []


def seen_on(terminal: int) -> str:
    """Return what was written to a terminal whose other end is closed."""
    seen = b""
    while True:
        try:
            seen += os.read(terminal, 4_096)
        except OSError:
            return seen.decode()


def test_a_bar_is_for_terminals(node: EmbeddedNode) -> None:
    """On a terminal it is taken away in the end; a pipe gets the hash and nothing else."""
    env = {**os.environ, "JOBS_SOCKET": str(node.socket)}

    def put_slowly(stderr: int) -> bytes:
        command = [*COMMAND, "blob", "put", "-"]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, env=env
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            for _ in range(4):
                process.stdin.write(bytes(2 * MIB))
                process.stdin.flush()
                time.sleep(0.15)  # a bar is drawn ten times a second at most
            process.stdin.close()
            printed = process.stdout.read()
        assert process.returncode == 0
        return printed

    terminal, child = pty.openpty()
    made = put_slowly(child)
    os.close(child)
    assert len(made) == 65
    frames = seen_on(terminal).split(ERASE)
    os.close(terminal)
    assert any(frame.startswith("put -") and "MiB" in frame for frame in frames)
    assert frames[-1] == ""

    reader, writer = os.pipe()
    assert put_slowly(writer) == made
    os.close(writer)
    assert os.read(reader, 100) == b""
    os.close(reader)

    # A name that is long leaves room for the bar, and how much there is.
    terminal, child = pty.openpty()
    termios.tcsetwinsize(child, (24, 80))
    command = [*COMMAND, "blob", "cat", made.decode().strip()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=child, env=env) as process:
        assert process.stdout is not None
        while process.stdout.read(MIB):
            time.sleep(0.15)
    os.close(child)
    frames = seen_on(terminal).split(ERASE)
    os.close(terminal)
    assert any(f"get {made.decode()[:19]}… █" in frame and "of 8.0 MiB" in frame for frame in frames)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_get_that_is_ended_leaves_nothing(node: EmbeddedNode, tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", 256 * MIB)
    with node.client() as client:
        made = client.blobs.put(tmp_path / "large").hash
    target = tmp_path / "target"
    target.mkdir()
    command = [*COMMAND, "blob", "get", made, str(target / "copy")]
    with subprocess.Popen(command, env={**os.environ, "JOBS_SOCKET": str(node.socket)}) as process:
        until(lambda: any(entry.stat().st_size for entry in os.scandir(target)))
        process.send_signal(number)
        assert process.wait(30) == 130
    assert os.listdir(target) == []
