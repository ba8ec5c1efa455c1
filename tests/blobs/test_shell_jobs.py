"""Shell jobs that are given blobs and leave some: a real worker and its sandbox, a real API, a real store of blobs."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import uvloop

from jobs import keys
from jobs.blobs.host import Wanted
from jobs.errors import NotFinished, NotFound
from jobs.protocol.ids import JobId, task_id
from jobs.protocol.model import (
    ArrayRange,
    ArraySpec,
    InputFile,
    JobResult,
    Limits,
    OwnerChange,
    Reason,
    ShellJob,
    ShellPayload,
)
from jobs.service import Caller
from jobs.store import prefix_end
from tests.support.blobs import BlobApi, served
from tests.support.ended import until
from tests.support.plane import ADMIN, ALICE, BOB
from tests.support.workerprocess import WorkerProcess, worker_process

WAIT_S = 60.0
MIB = 1 << 20
Scenario = Callable[["Scene"], Awaitable[None]]


class Scene:
    """The node and its worker."""

    def __init__(self, api: BlobApi, worker: WorkerProcess) -> None:
        self.api = api
        self.worker = worker
        self.control = api.plane.control

    async def add(self, data: bytes, caller: Caller = ALICE) -> str:
        """Make bytes a blob; return its hash."""

        async def pieces() -> AsyncIterator[bytes]:
            for start in range(0, len(data), MIB):
                yield data[start : start + MIB]

        return (await self.api.host.add(caller, pieces(), Wanted())).hash

    async def tree(self, files: dict[str, bytes]) -> str:
        """Make files a collection; return its hash."""
        return (
            await self.api.host.add_collection(ALICE, {name: await self.add(data) for name, data in files.items()})
        ).hash

    async def read(self, blob: str, caller: Caller = ALICE) -> bytes:
        async with self.api.host.reading(caller, blob, None) as found:
            return b"".join([piece async for piece in found.pieces()])

    async def submit(
        self, script: str, *, array: ArraySpec | None = None, timeout_s: float | None = None, **payload: object
    ) -> JobId:
        wanted = ShellPayload(script=script, **payload)  # type: ignore[arg-type]
        (made,) = await self.control.submit(ALICE, [ShellJob(payload=wanted, array=array, timeout_s=timeout_s)])
        return made.job.id

    async def result(self, job: JobId) -> JobResult:
        await self.control.wait(ALICE, job, WAIT_S)
        return await self.control.result(ALICE, job, None)

    async def run(self, script: str, **payload: object) -> JobResult:
        return await self.result(await self.submit(script, **payload))

    def hide(self, *, hidden: bool = True) -> None:
        """Take the API from where the worker finds it, or put it back."""
        places = self.api.directory / "api.sock", self.api.directory / "hidden.sock"
        os.rename(*(places if hidden else reversed(places)))

    def cache(self) -> dict[str, int]:
        """What the worker keeps of blobs: names and sizes."""
        (shown,) = (self.api.directory / "inputs").glob("jobs-inputs-*/shown")
        return {path.name: path.stat().st_size for path in shown.iterdir()}


def play(tmp_path: Path, scenario: Scenario, *, slots: int = 2, **env: str) -> None:
    async def inner() -> None:
        async with (
            asyncio.timeout(110),
            served(tmp_path, worker_uids=frozenset({os.getuid()})) as api,
            worker_process(tmp_path, "--slots", str(slots), **env) as worker,
        ):
            await scenario(Scene(api, worker))

    uvloop.run(inner())


def given(**files: str) -> dict[str, InputFile]:
    return {path: InputFile(blob=blob) for path, blob in files.items()}


def text(result: JobResult) -> str:
    return bytes(result.stdout).decode()


# --- inputs -----------------------------------------------------------------------------------------------------------


def test_a_job_reads_a_blob_and_a_collection_and_writes_neither(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        data = os.urandom(3 * MIB)
        blob = await scene.add(data)
        tree = await scene.tree({"a": b"A", "deep/er/b": b"B", "empty": b""})
        result = await scene.run(
            "cmp data copy; wc -c < data; cat tree/a tree/deep/er/b; echo; rm -f data tree/a; echo x > tree/new; "
            "echo x > data; cat /.inputs/* | wc -c; ls tree",
            files={
                "data": InputFile(blob=blob), "copy": InputFile(blob=blob), "tree": InputFile(blob=tree),
                "own": InputFile(text="own"),
            },
        )  # fmt: skip
        assert text(result) == f"{len(data)}\nAB\n0\na\ndeep\nempty\n", result
        assert await scene.read(blob) == data
        assert scene.cache() == {blob: len(data), tree: scene.cache()[tree]}

    play(tmp_path, scenario)


def test_what_one_job_fetched_another_finds_there_and_only_what_it_names(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        one, two = await scene.add(b"one" * 100), await scene.add(b"two" * 100)
        assert text(await scene.run("cat in", files=given(**{"in": one}))) == "one" * 100
        assert text(await scene.run("cat in; ls -A / /work", files=given(**{"in": two}))).startswith("two" * 100)
        scene.hide()  # nobody can be asked any more, and nobody is
        assert text(await scene.run("cat a b", files=given(a=one, b=two))) == "one" * 100 + "two" * 100

    play(tmp_path, scenario)


def test_jobs_that_start_at_once_share_one_fetch(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        blob = await scene.add(os.urandom(MIB))
        jobs = [await scene.submit("md5sum < in", files=given(**{"in": blob})) for _ in range(8)]
        assert len({text(await scene.result(job)) for job in jobs}) == 1
        assert scene.cache() == {blob: MIB}

    play(tmp_path, scenario, slots=4)


def test_room_is_made_for_what_is_needed_and_what_does_not_fit_fails(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        blobs = [await scene.add(bytes([number]) * (MIB // 2)) for number in range(4)]
        for blob in blobs:
            assert text(await scene.run("wc -c < in", files=given(**{"in": blob}))).strip() == str(MIB // 2)
        await until(lambda: sum(scene.cache().values()) <= MIB)
        assert blobs[-1] in scene.cache()
        assert blobs[0] not in scene.cache()
        much = await scene.run("true", files=given(a=blobs[0], b=blobs[1], c=blobs[2]))
        assert much.reason is Reason.BLOB_ERROR
        assert f"{3 * MIB // 2} bytes" in (much.message or "")
        # Two jobs that need all of the room, one after the other.
        pairs = [(blobs[0], blobs[1]), (blobs[2], blobs[3])]
        jobs = [await scene.submit("cat a b | wc -c", files=given(a=a, b=b)) for a, b in pairs * 3]
        assert {text(await scene.result(job)).strip() for job in jobs} == {str(MIB)}

    play(tmp_path, scenario, slots=4, JOBS_WORKERS__SHELL__INPUTS_BYTES=str(MIB))


def test_a_blob_that_cannot_be_had_fails_its_job_with_the_cause(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        blob = await scene.add(b"x" * 1000)
        for path in (scene.api.directory / "blobs" / "data").rglob(blob):
            path.unlink()
        result = await scene.run("echo ran", files=given(**{"in": blob}))
        assert (result.reason, text(result)) == (Reason.BLOB_ERROR, "")
        assert "input in" in (result.message or "")
        assert blob in (result.message or "")
        assert (await scene.run("echo ran")).reason is None
        assert scene.cache() == {}

    play(tmp_path, scenario)


def test_a_damaged_blob_is_never_shown(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        blob = await scene.add(bytes(2 * MIB))
        (path,) = [path for path in (scene.api.directory / "blobs" / "data").rglob(blob) if path.is_file()]
        with path.open("r+b") as file:
            file.seek(MIB)
            file.write(b"X")
        result = await scene.run("echo ran", files=given(**{"in": blob}))
        assert result.reason is Reason.BLOB_ERROR
        assert scene.cache() == {}

    play(tmp_path, scenario)


def test_a_job_that_is_cancelled_while_it_is_fetched_for_ends_and_leaves_nothing(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        blob = await scene.add(os.urandom(8 * MIB))
        scene.hide()  # so it is tried again
        job = await scene.submit("echo ran", files=given(**{"in": blob}))
        other = await scene.submit("echo other")
        assert text(await scene.result(other)) == "other\n"
        await scene.control.cancel(ALICE, job)
        result = await scene.result(job)
        assert (result.reason, text(result)) == (Reason.CANCELLED, "")
        assert scene.cache() == {}

    play(tmp_path, scenario)


def test_time_of_fetching_is_not_time_of_the_attempt(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        blob = await scene.add(b"x")
        scene.hide()
        job = await scene.submit("cat in", timeout_s=0.5, files=given(**{"in": blob}))
        await asyncio.sleep(1.0)
        with pytest.raises(NotFinished):
            await scene.control.result(ALICE, job, None)
        scene.hide(hidden=False)
        result = await scene.result(job)
        assert (result.reason, text(result)) == (None, "x")
        assert result.execution is not None
        assert result.execution.wall_s < 0.5

    play(tmp_path, scenario)


# --- outputs ----------------------------------------------------------------------------------------------------------


def test_what_a_job_leaves_becomes_blobs_of_its_owner_s(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        job = await scene.submit(
            "mkdir -p out/deep; echo one > out/1.csv; head -c 3000000 /dev/urandom | tee out/deep/2.csv | md5sum; "
            "echo no > other",
            outputs=["out/**"],
        )
        result = await scene.result(job)
        assert [(one.path, one.size_bytes) for one in result.artefacts] == [
            ("out/1.csv", 4),
            ("out/deep/2.csv", 3_000_000),
        ]
        assert (result.reason, result.skipped) == (None, [])
        assert await scene.read(result.artefacts[0].hash) == b"one\n"
        digest = hashlib.md5(await scene.read(result.artefacts[1].hash)).hexdigest()
        assert text(result).startswith(digest)
        with pytest.raises(NotFound):
            await scene.read(result.artefacts[0].hash, BOB)

    play(tmp_path, scenario)


def test_outputs_of_one_job_are_inputs_of_the_next(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        first = await scene.run("echo made > out", outputs=["out"])
        (made,) = first.artefacts
        again = await scene.run("cat in | tee out; echo more >> out", files=given(**{"in": made.hash}), outputs=["*"])
        # What it was given is no output of it.
        assert (text(again), [one.path for one in again.artefacts]) == ("made\n", ["out"])
        assert await scene.read(again.artefacts[0].hash) == b"made\nmore\n"

    play(tmp_path, scenario)


def test_a_job_that_fails_leaves_something_only_where_that_is_wanted(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        script = "echo log > log; exit 3"
        without = await scene.run(script, outputs=["log"])
        assert (without.reason, without.artefacts) == (Reason.EXIT_CODE, [])
        wanted = await scene.run(script, outputs=["log"], outputs_on_failure=True)
        assert (wanted.reason, [one.path for one in wanted.artefacts]) == (Reason.EXIT_CODE, ["log"])
        missing = await scene.run(script, outputs=["none"], outputs_on_failure=True)
        assert missing.reason is Reason.EXIT_CODE
        assert "its outputs were not stored: output none is not there" in (missing.message or "")
        late = await scene.submit("echo log > log; sleep 60", outputs=["log"], outputs_on_failure=True, timeout_s=0.5)
        assert [one.path for one in (await scene.result(late)).artefacts] == ["log"]

    play(tmp_path, scenario)


HOSTILE = {
    "a link to a file of the host's": ("ln -s /etc/passwd out", "is a symbolic link"),
    "a link out of the directory": ("echo x > /tmp/x; ln -s ../tmp/x out", "is a symbolic link"),
    "a link on the way": ("mkdir d; echo x > d/out; ln -s d e", "not there"),
    "a hard link": ("echo x > a; ln a out", "hard links"),
    "a fifo": ("mkfifo out", "is a FIFO"),
    "a socket": (
        "python3 -c 'import socket; s = socket.socket(socket.AF_UNIX); s.bind(\"out\")'", "is a socket"
    ),
    "a directory": ("mkdir out", "is a directory"),
    "nothing": ("true", "not there"),
    "nothing that may be read": ("echo x > out; chmod 0 out", None),
}  # fmt: skip


def test_what_a_hostile_job_leaves_is_refused(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        for name, (script, why) in HOSTILE.items():
            outputs = ["e/out"] if "on the way" in name else ["out"]
            result = await scene.run(script, outputs=outputs)
            if why is None and os.geteuid() == 0:
                continue
            assert result.reason is Reason.BLOB_ERROR, name
            assert why is None or why in (result.message or ""), (name, result.message)
            assert result.artefacts == [], name
        loose = await scene.run("echo x > a; ln -s a b; ln a c; mkfifo d; mkdir e; echo g > good", outputs=["*"])
        assert (loose.reason, [one.path for one in loose.artefacts]) == (None, ["good"])
        assert [one.path for one in loose.skipped] == ["a", "b", "c", "d"]

    play(tmp_path, scenario)


def test_more_than_is_taken_ends_the_job_as_output_limit(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        many = await scene.run("i=0; while [ $i -lt 300 ]; do : > $i; i=$((i+1)); done", outputs=["*"])
        sparse = await scene.run("truncate -s 1T out", outputs=["out"], limits=Limits())
        flood = await scene.run("echo x > in; while :; do mkdir d && cd d || exit 0; done 2> /dev/null", outputs=["**"])
        for result in (many, sparse, flood):
            assert result.reason is Reason.OUTPUT_LIMIT, result.message
            assert result.artefacts == []
        assert "256 files" in (many.message or "")
        assert str(1 << 40) in (sparse.message or "")

    play(tmp_path, scenario)


def test_processes_that_outlive_the_command_change_nothing_that_is_stored(tmp_path: Path) -> None:
    """Given a job that leaves a process behind, which goes on to swap its output for a link and a FIFO."""

    async def scenario(scene: Scene) -> None:
        script = """
        echo good > out
        (setsid sh -c 'trap "" TERM HUP; while :; do ln -sfn /etc/passwd l; mv -Tf l out; mkfifo f; mv -f f out;
        echo good > g; mv -f g out; done' > /dev/null 2>&1 &)
        sleep 0.3; echo good > last; mv -f last out
        """
        taken = set()
        for _ in range(10):
            result = await scene.run(script, outputs=["out"])
            assert result.reason in (None, Reason.BLOB_ERROR)
            taken |= {await scene.read(one.hash) for one in result.artefacts}
        assert taken <= {b"good\n", b""}

    play(tmp_path, scenario)


def test_a_quota_that_is_full_fails_the_job_and_says_so(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.control.queues.change_owner(ADMIN, ALICE.uid, OwnerChange(max_blob_bytes=10))
        result = await scene.run("head -c 100 /dev/zero > out", outputs=["out"])
        assert result.reason is Reason.BLOB_ERROR
        assert "10" in (result.message or "")

    play(tmp_path, scenario)


def test_a_worker_that_is_killed_while_it_stores_leaves_the_job_to_the_next(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        scene.hide()
        job = await scene.submit("echo made > out; echo done", outputs=["out"])
        prefix = keys.LOG + job.encode()
        await until(lambda: scene.api.plane.store.count(prefix, prefix_end(prefix), limit=1) == 1)
        await scene.worker.kill()
        await scene.worker.start("--slots", "1")
        scene.hide(hidden=False)
        result = await scene.result(job)
        assert result.reason in (None, Reason.WORKER_LOST)
        assert len(list((scene.api.directory / "inputs").iterdir())) == 1

    play(tmp_path, scenario)


def test_each_task_of_an_array_leaves_its_own(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        blob = await scene.add(b"shared")
        array = await scene.submit(
            "cat in > out; echo $JOBS_ARRAY_INDEX >> out", files=given(**{"in": blob}), outputs=["out"],
            array=ArraySpec(range=ArrayRange(stop=3)),
        )  # fmt: skip
        await scene.control.wait(ALICE, array, WAIT_S)
        for number in range(3):
            result = await scene.result(task_id(array, number))
            assert await scene.read(result.artefacts[0].hash) == b"shared%d\n" % number

    play(tmp_path, scenario)
