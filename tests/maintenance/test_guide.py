"""What docs/maintenance.md shows is run as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from jobs.control.builtin import BUILT_IN
from jobs.protocol.model import JobSubmit
from jobs.testing import EmbeddedNode
from jobs.validate import check_job

GUIDE = (Path(__file__).parents[2] / "docs/maintenance.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)


def test_its_commands_and_its_python_run(tmp_path: Path) -> None:
    shell = 'set -e; jobctl() { "$PYTHON" -m jobs.cli.main "$@"; }\n' + "\n".join(blocks("sh"))
    schedules = {"JOBS_MAINTENANCE__SCHEDULES": "true"}
    with EmbeddedNode(tmp_path / "node", types=("maintenance",), env=schedules) as node:
        env = {**os.environ, "PYTHON": sys.executable, "JOBS_SOCKET": str(node.socket)}
        done = subprocess.run(["bash", "-c", shell], cwd=tmp_path, env=env, capture_output=True, timeout=240)
        assert done.returncode == 0, done.stderr.decode()
        python = "\n".join(blocks("python"))
        done = subprocess.run([sys.executable, "-c", python], cwd=tmp_path, env=env, capture_output=True, timeout=240)
        assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("text", [line for block in blocks("json") for line in block.splitlines()])
def test_its_jobs_are_such_as_can_be_submitted(text: str) -> None:
    check_job(msgspec.json.decode(text, type=JobSubmit))


def test_it_names_each_built_in_schedule() -> None:
    named = re.findall(r"^\| `(jobs-[a-z]+)` \|", GUIDE, re.MULTILINE)
    assert sorted(named) == sorted(one.name for one in BUILT_IN)
