"""`jobctl submit --from`: files of jobs against a real node that refuses, is full, or dies in the middle."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from jobs import Client, JobState, SubmitProgress, shell_job
from jobs.protocol.model import BATCH_JOBS
from jobs.testing import EmbeddedNode

JOBCTL = [sys.executable, "-m", "jobs.cli.main"]
LINES = 20 * BATCH_JOBS


def environment(node: EmbeddedNode) -> dict[str, str]:
    return {**os.environ, "JOBS_SOCKET": str(node.socket)}


def submit(node: EmbeddedNode, *arguments: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*JOBCTL, "submit", *arguments], input=stdin, capture_output=True, timeout=60, env=environment(node)
    )


def start(node: EmbeddedNode, path: Path) -> subprocess.Popen[bytes]:
    """Start to submit a file; return once the first lot is in."""
    running = subprocess.Popen(
        [*JOBCTL, "submit", "--from", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(node),
    )
    assert running.stdout is not None
    for _ in range(BATCH_JOBS):
        running.stdout.readline()
    return running


def jobs_file(path: Path, count: int, label: str) -> Path:
    """Write jobs that wait until the year 9999."""
    lines = (
        {
            "type": "shell",
            "payload": {"argv": ["true"]},
            "labels": {label: str(n)},
            "not_before_ms": 253_402_300_799_999,
        }
        for n in range(1, count + 1)
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def numbers(client: Client, label: str) -> list[int]:
    """Return the labels of all jobs of the node, oldest first."""
    return [int(job.labels[label]) for job in client.list(newest_first=False, page_size=1000)]


def ids(done: subprocess.CompletedProcess[bytes]) -> Sequence[str]:
    return done.stdout.decode().split()


def test_a_wrong_line_is_named_and_nothing_is_stored(shared_node: EmbeddedNode, client: Client, tmp_path: Path) -> None:
    # Given a file whose line 1,501 is wrong, several lots behind the first
    path = tmp_path / "wrong.jsonl"
    right = json.dumps({"type": "shell", "payload": {"argv": ["true"]}, "labels": {"file": "wrong"}})
    path.write_text("\n".join([right] * 1_500 + ['{"type":"shell","payload":{"argv":"true"}}', right]))
    done = submit(shared_node, "--from", str(path))
    assert done.returncode == 65
    assert done.stderr.decode().splitlines() == [
        f"jobctl: {path}:1501: $.payload.argv: got `str`: expected `array | null`",
        f"jobctl: nothing was submitted: {path} has 1 mistake",
    ]
    assert list(client.list(labels={"file": "wrong"})) == []


def test_ids_come_in_the_order_of_the_lines_also_from_standard_input(shared_node: EmbeddedNode, client: Client) -> None:
    lines = "\n\n".join(
        json.dumps({"type": "shell", "payload": {"argv": ["echo", str(n)]}, "labels": {"file": "ordered"}})
        for n in range(3)
    ).encode()
    first = submit(shared_node, "--from", "-", "--json", stdin=lines)
    rows = [json.loads(line) for line in first.stdout.splitlines()]
    assert [(row["line"], row["created"]) for row in rows] == [(1, True), (3, True), (5, True)]
    assert [client.result(row["id"], timeout_s=20).stdout.text for row in rows] == ["0\n", "1\n", "2\n"]
    assert first.stderr == b"jobctl: 3 jobs: 3 new, 0 known already\n"
    # The same input again makes nothing new; under another name it does; quietly nothing is told
    again = submit(shared_node, "--from", "-", "--quiet", stdin=lines)
    assert (list(ids(again)), again.stderr) == ([row["id"] for row in rows], b"")
    other = submit(shared_node, "--from", "-", "--batch", "other", stdin=lines)
    assert not set(ids(other)) & set(ids(again))
    # And a line that was changed under a name that is known is named
    changed = submit(shared_node, "--from", "-", "--batch", "other", stdin=lines.replace(b'"1"', b'"one"'))
    assert changed.returncode == 1
    assert b"stopped: 0 of 3 jobs are in" in changed.stderr
    assert b"used for job" in changed.stderr


def test_an_interrupted_file_goes_on_after_the_node_was_killed(tmp_path: Path) -> None:
    path = jobs_file(tmp_path / "jobs.jsonl", LINES, "n")
    node = EmbeddedNode(tmp_path / "node").start()
    # Given a submission that is interrupted while its node is dead
    running = start(node, path)
    node.kill()
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=30)
    assert running.returncode == 130
    assert f"the same command goes on: jobctl submit --from {path}" in said.decode()
    # When the node is back, the same command submits what is missing
    with node, node.client() as client:
        stored = numbers(client, "n")
        assert stored == list(range(1, len(stored) + 1))
        assert BATCH_JOBS <= len(stored) < LINES
        assert len(stored) % BATCH_JOBS == 0, "a lot was stored in part"
        done = submit(node, "--from", str(path))
        # Then all are there once
        assert done.stderr.decode() == f"jobctl: {LINES} jobs: {LINES - len(stored)} new, {len(stored)} known already\n"
        assert numbers(client, "n") == list(range(1, LINES + 1))
        assert list(ids(done)) == [job.id for job in client.list(newest_first=False, page_size=1000)]


def test_a_submission_outlives_its_node(tmp_path: Path) -> None:
    path = jobs_file(tmp_path / "jobs.jsonl", LINES, "n")
    node = EmbeddedNode(tmp_path / "node").start()
    running = start(node, path)
    node.kill()
    with node:
        out, said = running.communicate(timeout=60)
        assert running.returncode == 0, said
        with node.client() as client:
            assert numbers(client, "n") == list(range(1, LINES + 1))
            later = [job.id for job in client.list(newest_first=False, page_size=1000)]
        assert out.decode().split() == later[BATCH_JOBS:]


def test_a_full_node_is_waited_for(tmp_path: Path) -> None:
    # Given a node that lets hardly more wait than one lot holds, and three lots
    node = EmbeddedNode(tmp_path / "node", env={"JOBS_QUEUE__MAX_PENDING": str(BATCH_JOBS + 10)})
    path = tmp_path / "jobs.jsonl"
    path.write_text('{"type":"shell","payload":{"argv":["true"]}}\n' * 2 * BATCH_JOBS)
    with node:
        done = submit(node, "--from", str(path))
        # Then the second one waits until there is room, which is told
        assert done.returncode == 0
        assert len(set(ids(done))) == 2 * BATCH_JOBS
        assert f"{BATCH_JOBS} of {2 * BATCH_JOBS} are in; waiting for room: " in done.stderr.decode()
        with node.client() as client:
            assert all(client.wait(job, 30).state is JobState.COMPLETED for job in ids(done)[-10:])
            # And a caller of the library is told as well, and can give up
            told: list[SubmitProgress] = []

            def give_up(progress: SubmitProgress) -> None:
                told.append(progress)
                if progress.waits_for is not None:
                    raise StopAsyncIteration

            later = (shell_job(["true"], not_before_ms=253_402_300_799_999) for _ in range(2 * BATCH_JOBS))
            try:
                for _ in client.submit_many(later, on_progress=give_up):
                    pass
            except StopAsyncIteration:
                assert (told[-1].done, told[-1].created, told[-1].pause_s > 0) == (BATCH_JOBS, BATCH_JOBS, True)
            else:
                raise AssertionError("the node took more than it may")


def test_a_terminal_shows_a_bar(shared_node: EmbeddedNode, tmp_path: Path) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_text('{"type":"shell","payload":{"argv":["true"]},"queue":"bar"}\n' * 10 * BATCH_JOBS)
    parent, child = pty.openpty()
    running = subprocess.Popen(
        [*JOBCTL, "submit", "--from", str(path)], stdout=subprocess.DEVNULL, stderr=child, env=environment(shared_node)
    )
    os.close(child)
    shown = b""
    try:
        while piece := os.read(parent, 4096):
            shown += piece
    except OSError:  # EIO: the other side is closed
        os.close(parent)
    assert running.wait(30) == 0
    text = shown.decode()
    assert "submitting █" in text
    assert text.endswith(f"\r\x1b[Kjobctl: {10 * BATCH_JOBS} jobs: {10 * BATCH_JOBS} new, 0 known already\r\n")


def test_lines_depend_on_lines_of_other_lots_also_after_the_node_was_killed(tmp_path: Path) -> None:
    # Given a chain of lines behind one that never runs, and at its end a line that waits for the first, too
    lines = [{"ref": "0", "not_before_ms": 253_402_300_799_999}]
    lines += [{"ref": str(n), "depends_on": [str(n - 1)]} for n in range(1, LINES)]
    lines[-1]["depends_on"] = [str(LINES - 2), "0"]
    path = tmp_path / "chain.jsonl"
    shell = {"type": "shell", "payload": {"argv": ["true"]}}
    path.write_text("".join(json.dumps({**shell, **line}) + "\n" for line in lines))
    node = EmbeddedNode(tmp_path / "node").start()
    running = start(node, path)
    node.kill()
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=30)
    with node, node.client() as client:
        # When the same file is submitted again
        done = submit(node, "--from", str(path))
        assert done.returncode == 0, done.stderr
        found = ids(done)
        assert len(set(found)) == LINES
        # Then each job waits for the one before it, over the borders of lots
        jobs = [client.get(job) for job in found[:: LINES // 50]]
        assert [job.parents for job in jobs[1:]] == [
            [found[number - 1]] for number in range(LINES // 50, LINES, LINES // 50)
        ]
        assert client.get(found[-1]).parents == [found[-2], found[0]]
        assert sum(job.waits_for for job in client.list(page_size=1000)) == LINES
