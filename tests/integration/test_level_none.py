"""A node whose shell worker is told by name to do without a sandbox."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs import shell_job
from jobs.protocol.model import InputFile, Reason, RootImage
from jobs.testing import EmbeddedNode
from tests.support.blobcluster import until
from tests.support.users import let_others_in


@pytest.fixture
def node(tmp_path: Path) -> Iterator[EmbeddedNode]:
    let_others_in(tmp_path)
    settings = {"JOBS_WORKERS__SHELL__SANDBOX": "none", "JOBS_WORKERS__SHELL__WORK_DIR": str(tmp_path / "work")}
    with EmbeddedNode(tmp_path / "node", env=settings) as made:
        yield made


def directories(node: EmbeddedNode) -> list[str]:
    """What there is of jobs."""
    return [path.name for path in (node.directory.parent / "work").glob("jobs-work-*/*")]


def test_jobs_run_results_say_it_and_their_directories_go(node: EmbeddedNode) -> None:
    with node.client() as client:
        blob = client.blobs.put(b"input\n").hash
        script = "cat in && echo made > out && mkdir -m 0 closed && pwd"
        result = client.run(shell_job(script, files={"in": InputFile(blob=blob)}, outputs=["out"]))
        assert result.execution is not None
        assert (result.state, result.execution.sandbox) == ("completed", "none")
        assert result.stdout.text is not None
        assert result.stdout.text.startswith(f"input\n{node.directory.parent}/work/jobs-work-")
        assert [artefact.path for artefact in result.artefacts] == ["out"]
        assert [worker.sandbox for worker in client.workers()] == ["none"]
        assert client.run(shell_job(["false"])).state == "failed"
        refused = client.run(shell_job("true", root=RootImage(blob=blob)))
        assert (refused.reason, refused.message) == (
            Reason.SANDBOX_UNAVAILABLE,
            "root: at level none a job has the host's",
        )
    until(lambda: not directories(node))


def test_the_log_and_the_doctor_say_it_loudly(node: EmbeddedNode) -> None:
    assert "WITHOUT ISOLATION" in node.log_file.read_text()
    command = [sys.executable, "-m", "jobs.cli.main", "doctor"]
    told = subprocess.run(command, env=node.environment, capture_output=True, text=True, check=False)
    assert "WITHOUT ISOLATION" in told.stdout


def test_a_killed_worker_s_directories_are_deleted_by_its_next_life(node: EmbeddedNode) -> None:
    with node.client() as client:
        job = client.submit(shell_job(["sh", "-c", "echo up; setsid sleep 1000 & sleep 1000"]))
        until(lambda: len(directories(node)) == 1)
        first = [path.name for path in (node.directory.parent / "work").iterdir()]
        node.kill()
        node.start()
        assert not [name for name in first if (node.directory.parent / "work" / name).exists()]
        client.cancel(job.job.id)
