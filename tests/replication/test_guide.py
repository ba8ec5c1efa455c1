"""What docs/replication.md shows is run as it stands there, with two clusters."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from jobs.protocol.model import JobSubmit, ReplicationResult
from jobs.testing import EmbeddedCluster
from jobs.validate import check_job

GUIDE = (Path(__file__).parents[2] / "docs/replication.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)


def test_its_commands_and_its_python_run(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    allowed = {"JOBS_WORKERS__REPLICATION__ALLOW_FILES": f'["{place}"]'}
    shell = 'set -e; jobctl() { "$PYTHON" -m jobs.cli.main "$@"; }\n' + "\n".join(blocks("sh"))
    with (
        EmbeddedCluster(tmp_path / "here", 1, types=("replication",), env=allowed) as here,
        EmbeddedCluster(tmp_path / "there", 1, types=()) as there,
    ):
        env = {
            **os.environ,
            "PYTHON": sys.executable,
            "JOBS_SOCKET": str(here.nodes["n1"].socket),
            "THERE": str(there.nodes["n1"].socket),
            "PLACE": str(place),
        }
        done = subprocess.run(["bash", "-c", shell], cwd=tmp_path, env=env, capture_output=True, timeout=180)
        assert done.returncode == 0, done.stderr.decode()
        python = "\n".join(blocks("python"))
        done = subprocess.run([sys.executable, "-c", python], cwd=tmp_path, env=env, capture_output=True, timeout=120)
        assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("text", [line for block in blocks("json") for line in block.splitlines() if '"type"' in line])
def test_its_jobs_are_such_as_can_be_submitted(text: str) -> None:
    check_job(msgspec.json.decode(text, type=JobSubmit))


def test_its_result_is_one() -> None:
    (text,) = [block for block in blocks("json") if '"type"' not in block]
    msgspec.json.decode(text, type=ReplicationResult)
