"""What a job is shown besides its own files, and what it leaves for the worker."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs.protocol.ids import Attempt, JobId
from jobs.protocol.model import Reason
from jobs.workers.sandbox import End, Exited
from tests.support.users import let_others_in

from .conftest import USER_ID, Sandbox, limits

CONTENT = "content of the input\n"


@pytest.fixture
def inputs(identity: str, tmp_path: Path) -> Iterator[Path]:
    """A directory of the worker's, in one that nobody else may enter."""
    outer = tmp_path / "private"
    made = outer / "inputs"
    made.mkdir(parents=True)
    (made / "file").write_text(CONTENT)
    (made / "program").write_text("#!/bin/sh\necho ran\n")
    (made / "other").write_text("another job's\n")
    (made / "tree" / "below").mkdir(parents=True)
    (made / "tree" / "below" / "leaf").write_text("leaf\n")
    for path in made.rglob("*"):
        path.chmod(0o555)
    made.chmod(0o711)
    outer.chmod(0o700)
    if identity == "user" and os.geteuid() == 0:
        for path in (tmp_path, *tmp_path.rglob("*")):
            os.chown(path, USER_ID, USER_ID)
        let_others_in(tmp_path.parent)
    yield made
    outer.chmod(0o700)
    shutil.rmtree(outer)


@pytest.fixture
def shown(fresh: Callable[..., Sandbox], inputs: Path) -> Sandbox:
    return fresh(inputs=str(inputs))


def left(sandbox: Sandbox, job: JobId) -> int | None:
    """What the job left, once it has ended."""
    sandbox.wait(job)
    exited = sandbox.of(job)[-1]
    assert isinstance(exited, Exited)
    return None if exited.kept is None else sandbox.launcher.take(exited.kept)


def test_an_input_is_read_where_it_is_wanted(shown: Sandbox) -> None:
    result = shown.run(
        script="cat a/b/in; cat tree/below/leaf; ./run", inputs={"a/b/in": "file", "tree": "tree", "run": "program"}
    )
    assert (result.outcome.reason, result.stdout) == (None, f"{CONTENT}leaf\nran\n")


def test_nobody_writes_an_input_by_any_way(shown: Sandbox, inputs: Path) -> None:
    """Given a job that tries each way to change what it was shown, or to take it out of the way."""
    script = """
    exec 2>&1
    echo x > in; echo x >> in; chmod 777 in; rm -f in; mv in elsewhere; ln in linked; truncate -s 0 in
    echo x > tree/new; rm -rf tree/below; mkdir tree/d; mv tree moved; touch tree/below/leaf
    rm -f /.job/work/in; rm -rf /.job/work/tree; mount -o remount,rw in; umount in; umount -l tree
    cat in tree/below/leaf
    """
    result = shown.run(script=script, inputs={"in": "file", "tree": "tree"})
    assert result.stdout.endswith(f"{CONTENT}leaf\n"), result.stdout
    assert (inputs / "file").read_text() == CONTENT
    assert sorted(path.name for path in inputs.rglob("*")) == ["below", "file", "leaf", "other", "program", "tree"]


def test_inputs_of_other_jobs_are_not_to_be_seen(shown: Sandbox) -> None:
    result = shown.run(
        script="ls -A /.inputs; cat /.inputs/other; find / -name other -not -path '/proc/*'",
        inputs={"in": "file"},
    )
    assert "another" not in result.stdout
    assert "/other" not in result.stdout
    plain = shown.run(script="ls -A /.inputs; cat /.inputs/other")
    assert plain.stdout == ""
    assert plain.outcome.reason is Reason.EXIT_CODE


def test_an_input_may_go_while_a_job_has_it(shown: Sandbox, inputs: Path) -> None:
    program = "trap 'cat in; exit 0' TERM; echo up; while :; do sleep 5 & wait; done"
    job = shown.start("sh", "-c", program, inputs={"in": "file"})
    shown.wait_output(job, b"up")
    (inputs / "file").unlink()
    shown.launcher.send([End(job=job, attempt=Attempt(1))])
    assert shown.wait(job).stdout == f"up\n{CONTENT}"


@pytest.mark.parametrize("entry", ["missing", "../private", "", ".", "tree/below"])
def test_what_is_no_entry_is_refused(shown: Sandbox, entry: str) -> None:
    outcome = shown.run("true", inputs={"in": entry}).outcome
    assert outcome.reason in (Reason.INVALID_PAYLOAD, Reason.SANDBOX_UNAVAILABLE, Reason.SPAWN_FAILED), outcome


def test_two_things_in_one_place_are_refused(shown: Sandbox) -> None:
    outcome = shown.run("true", inputs={"in": "file"}, files={"in": b"x"}).outcome
    assert outcome.reason is not None
    assert "inputs" in (outcome.message or "")


def test_a_link_among_the_inputs_is_not_followed(shown: Sandbox, inputs: Path) -> None:
    (inputs / "link").symlink_to("file")
    outcome = shown.run("true", inputs={"in": "link"}).outcome
    assert outcome.reason is not None


def test_inputs_without_a_directory_of_them_are_refused(sandbox: Sandbox) -> None:
    outcome = sandbox.run("true", inputs={"in": "file"}).outcome
    assert outcome.reason is Reason.INVALID_PAYLOAD


def test_what_a_job_leaves_can_be_read_after_its_end(sandbox: Sandbox) -> None:
    job = sandbox.start("sh", "-c", "mkdir -p d && echo made > d/out && echo t > /tmp/t", keep=True)
    root = left(sandbox, job)
    assert root is not None
    try:
        with open(os.open("work/d/out", os.O_RDONLY, dir_fd=root)) as out:
            assert out.read() == "made\n"
        with open(os.open("tmp/t", os.O_RDONLY, dir_fd=root)) as out:
            assert out.read() == "t\n"
    finally:
        os.close(root)


def test_only_what_was_asked_for_is_kept_and_each_job_has_its_own(sandbox: Sandbox) -> None:
    """Given jobs that end at the same time, some of which are kept."""
    kept = [sandbox.start("sh", "-c", f"echo {number} > out", keep=True) for number in range(3)]
    plain = sandbox.start("sh", "-c", "echo x > out")
    for number, job in enumerate(kept):
        root = left(sandbox, job)
        assert root is not None
        with open(os.open("work/out", os.O_RDONLY, dir_fd=root)) as out:
            assert out.read() == f"{number}\n"
        os.close(root)
    assert left(sandbox, plain) is None
    never = sandbox.start("/does/not/exist", keep=True)
    root = left(sandbox, never)
    if root is not None:
        os.close(root)


def test_a_flood_of_output_and_what_is_kept_arrive_together(sandbox: Sandbox) -> None:
    jobs = [
        sandbox.start("sh", "-c", f"head -c 3000000 /dev/zero; echo {number} > out", keep=True) for number in range(4)
    ]
    for number, job in enumerate(jobs):
        root = left(sandbox, job)
        assert root is not None
        with open(os.open("work/out", os.O_RDONLY, dir_fd=root)) as out:
            assert out.read() == f"{number}\n"
        os.close(root)


def test_the_size_of_what_is_kept_is_bounded_as_ever(sandbox: Sandbox) -> None:
    job = sandbox.start("sh", "-c", "head -c 3000000 /dev/zero > out", keep=True, limits=limits(tmp_bytes=1 << 20))
    root = left(sandbox, job)
    assert root is not None
    assert os.stat("work/out", dir_fd=root).st_size <= 1 << 20
    os.close(root)
