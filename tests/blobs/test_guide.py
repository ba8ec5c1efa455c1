"""What docs/blobs.md shows is run as it stands there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from jobs.protocol.model import BlobResult, JobSubmit
from jobs.testing import EmbeddedNode
from jobs.validate import check_job

GUIDE = (Path(__file__).parents[2] / "docs/blobs.md").read_text()
HASH = "af13" * 16
ELIDED = {
    "af13…": HASH,
    "01890a5d-…": "01890a5d-ac96-774b-bcce-b302099a8057",
    "blobticket1.…": "blobticket1." + "A" * 86,
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)


def test_its_commands_and_its_python_run(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(os.urandom(1_000))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "file").write_bytes(b"content")
    shell = 'set -e; jobctl() { "$PYTHON" -m jobs.cli.main "$@"; }\n' + "\n".join(blocks("sh"))
    if shutil.which("curl") is None:
        shell = re.sub(r"^curl .*$", "", shell, flags=re.MULTILINE)
    with EmbeddedNode(tmp_path / "node", types=("blob",)) as node:
        env = {**os.environ, "PYTHON": sys.executable, "JOBS_SOCKET": str(node.socket)}
        done = subprocess.run(["bash", "-c", shell], cwd=tmp_path, env=env, capture_output=True, timeout=120)
        assert done.returncode == 0, done.stderr.decode()
        assert (tmp_path / "copy.bin").read_bytes() == (tmp_path / "model.bin").read_bytes()
        python = "\n".join(blocks("python"))
        done = subprocess.run([sys.executable, "-c", python], cwd=tmp_path, env=env, capture_output=True, timeout=120)
        assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("text", [line for block in blocks("json") for line in block.splitlines() if '"type"' in line])
def test_its_jobs_are_such_as_can_be_submitted(text: str) -> None:
    for short, whole in ELIDED.items():
        text = text.replace(short, whole)
    check_job(msgspec.json.decode(text, type=JobSubmit))


def test_its_result_is_one() -> None:
    (text,) = [block for block in blocks("json") if '"type"' not in block]
    msgspec.json.decode(text.replace("af13…", HASH), type=BlobResult)
