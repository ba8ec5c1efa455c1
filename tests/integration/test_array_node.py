"""Arrays on a real node: through both clients and jobctl, and through kills of everything."""

from __future__ import annotations

import asyncio
import json
import os
import random
from pathlib import Path

import pytest

from jobs.client import AsyncClient, Client, shell_job
from jobs.errors import InvalidRequest, NotFound, PayloadTooLarge
from jobs.protocol.ids import JobId, task_id
from jobs.protocol.model import ArrayRange, ArraySpec, JobState, Reason, Retry
from jobs.testing import EmbeddedNode
from tests.support.jobctl import jobctl
from tests.support.processes import Ends, descendants

KILLS = 4 * int(os.environ.get("JOBS_TEST_SCALE", "1"))
SEED = int(os.environ.get("JOBS_TEST_SEED", "0")) or random.randrange(1 << 32)
ECHO = 'echo "$JOBS_ARRAY_INDEX of $JOBS_ARRAY_COUNT: $JOBS_ARRAY_ITEM"; test "$JOBS_ARRAY_ITEM" != bad'


@pytest.mark.timeout(120 + 20 * KILLS)
def test_each_task_ends_once_however_often_the_node_is_killed(tmp_path: Path) -> None:
    print(f"replay with JOBS_TEST_SEED={SEED}")
    chance = random.Random(SEED)
    node = EmbeddedNode(tmp_path / "node", env={"JOBS_WORKERS__SHELL__SLOTS": "4"})
    tasks = 150 * KILLS
    array = ""
    for _ in range(KILLS):
        # Given an array under way, when everything is killed at a random moment
        with node.start().client() as client:
            if not array:
                retry = Retry(max_attempts=50, backoff="none", reasons=[Reason.WORKER_LOST])
                spec = ArraySpec(range=ArrayRange(stop=tasks))
                array = client.submit(shell_job("echo $JOBS_ARRAY_ITEM", array=spec, retry=retry)).job.id
            before = client.array(array).completed
            for seen in client.watch_array(array):
                if seen.completed > before:
                    break
        asyncio.run(asyncio.sleep(chance.uniform(0, 0.3)))
        left = Ends(descendants(node.pid))
        node.kill()
        asyncio.run(left.wait(10))
    # Then every task has run to its end, and has one result
    with node, node.client() as client:
        ended = client.wait(array, 120)
        assert (ended.state, ended.message) == (JobState.COMPLETED, None)
        assert client.array(array).completed == tasks
        listed = list(client.list(array=array, newest_first=False))
        assert [job.index for job in listed] == list(range(tasks))
        assert {job.state for job in listed} == {JobState.COMPLETED}
        for job in chance.sample(listed, 40):
            assert client.result(job.id).stdout.text == f"{job.index}\n"
            good = [attempt for attempt in client.attempts(job.id) if attempt.reason is None]
            assert len(good) == 1


def test_both_clients_make_follow_cancel_and_repeat_arrays(shared_node: EmbeddedNode, client: Client) -> None:
    lines = ["good", "bad", "good", "bad"]
    array = client.shell(ECHO, array=ArraySpec(lines=lines)).job
    assert (array.tasks, array.array) == (4, None)
    seen = list(client.watch_array(array.id))[-1]
    assert (seen.completed, seen.failed, seen.failed_indices) == (2, 2, "1,3")
    assert client.result(task_id(array.id, 3)).stdout.text == "3 of 4: bad\n"
    assert array.id in {job.id for job in client.list()}
    assert {job.array for job in client.list()} == {None}
    assert [job.index for job in client.list(array=array.id, index="1-2", newest_first=False)] == [1, 2]
    part = client.retry(array.id, indices=[3])
    assert client.wait(part.job.id).message == "1 of 1 tasks failed, first index 3: exit_code"
    with pytest.raises(NotFound):
        client.array(task_id(array.id, 0))
    with pytest.raises(InvalidRequest) as refused:
        client.run(shell_job("true", array=ArraySpec(lines=lines)))
    assert refused.value.field == "$.array"
    with pytest.raises(PayloadTooLarge) as large:
        client.shell("true", array=ArraySpec(lines=["x" * 1_000] * 11_000))
    assert large.value.field == "$.array.lines"

    async def scenario() -> None:
        async with AsyncClient(str(shared_node.socket)) as other:
            again = (await other.retry(array.id)).job
            assert (again.tasks, again.redrive_of) == (2, array.id)
            assert (await other.wait(again.id)).state is JobState.FAILED
            views = [view async for view in other.watch_array(again.id)]
            assert views[-1] == await other.array(again.id)
            waits = (await other.shell("true", array=ArraySpec(items=[1, {"a": 2}, None]), not_before_ms=1 << 42)).job
            outcome = await other.cancel(waits.id, indices="0-1")
            assert outcome.tasks is not None
            assert (outcome.outcome, outcome.tasks.cancelled) == ("cancelled", 2)
            assert (await other.cancel(waits.id)).outcome == "cancelled"

    asyncio.run(scenario())


def test_an_array_through_jobctl(shared_node: EmbeddedNode, tmp_path: Path) -> None:
    def ok(*arguments: str, code: int = 0, stdin: bytes | None = None) -> str:
        done = jobctl(shared_node, *arguments, stdin=stdin)
        assert done.returncode == code, done.stderr.decode()
        return done.stdout.decode().strip()

    array = ok("submit", "--array-lines", "-", "--max-running", "2", "--", "sh", "-c", ECHO, stdin=b"one\nbad\nthree\n")
    assert ok("wait", array, code=1) == f"{array} failed exit_code"
    shown = ok("array", array)
    assert "completed" in shown
    assert ok("array", "-f", array, code=1) == shown
    status = ok("status", array)
    assert "100 % 3 of 3 tasks ended, 1 failed" in status
    assert "attempt" not in status
    # A task goes by its array and index, also in brackets
    assert ok("logs", f"{array}:2") == ok("logs", f"{array}[2]") == "2 of 3: three"
    assert f"{array}, index 1" in ok("status", f"{array}:1")
    assert json.loads(ok("result", "--json", f"{array}:1"))["reason"] == "exit_code"
    listed = [json.loads(line) for line in ok("list", "--json", "--array", array, "--oldest-first").splitlines()]
    assert [job["id"] for job in listed] == [task_id(JobId(array), index) for index in range(3)]
    again = ok("retry", "--index", "1", array)
    assert ok("wait", again, code=1)
    assert ok("logs", f"{again}:1") == "1 of 3: bad"
    whole = ok("retry", array)
    assert ok("retry", array) == whole
    # Numbers, JSON
    even = ok("submit", "--array", "0-8:2", "--", "sh", "-c", ECHO)
    assert "5 completed" in ok("array", "-f", "--quiet", even)
    assert ok("logs", f"{even}:4") == "4 of 5: 8"
    (tmp_path / "values.json").write_text('[{"a": 1}, "two"]')
    values = ok("submit", "--array-json", str(tmp_path / "values.json"), "--", "sh", "-c", ECHO)
    ok("wait", values)
    assert ok("logs", f"{values}:0") == '0 of 2: {"a":1}'
    big = ok("submit", "--array", "0-999999", "--max-running", "1", "--", "sleep", "60")
    assert (
        ok("cancel", "--index", "10-999999", big)
        == f"{big} cancelled: 999,990 cancelled, 0 requested, 0 already_final tasks"
    )
    assert f"{big} " in ok("cancel", big)
    ok("wait", big, code=1)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("run", "--array", "0-9", "--", "true"), 2, "jobctl submit --array"),
        (("submit", "--array", "9-0", "--", "true"), 2, "empty"),
        (("submit", "--array", "0-9", "--array-lines", "/dev/null", "--", "true"), 2, "one of"),
        (("submit", "--array-lines", "/dev/null", "--", "true"), 2, "no lines"),
        (("submit", "--array-json", "/dev/null", "--", "true"), 2, "no JSON array"),
        (("submit", "--array", "0-1000000", "--", "true"), 65, "$.array.range"),
        (("submit", "--max-running", "1", "--", "true"), 2, "--max-running"),
        (("cancel", "--index", "1"), 2, "--index"),
        (("cancel", "--index", "x", "0"), 2, "no index"),
        (("logs", "01900000-0000-7000-8000-000000000001:5"), 2, "no array's id"),
        (("array", "01900000-0000-7000-8000-000000000000"), 1, "no job"),
        (("list", "--index", "5"), 65, "array"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_done(
    shared_node: EmbeddedNode, arguments: tuple[str, ...], code: int, said: str
) -> None:
    done = jobctl(shared_node, *arguments)
    assert (done.returncode, said in done.stderr.decode()) == (code, True), done.stderr.decode()
