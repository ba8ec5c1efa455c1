"""What docs/backup.md shows is run as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.replication.series import backup_node

GUIDE = (Path(__file__).parents[2] / "docs/backup.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)


def test_its_commands_and_its_python_run(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    shell = 'set -e; jobctl() { "$PYTHON" -m jobs.cli.main "$@"; }\n' + "\n".join(blocks("sh"))
    with backup_node(tmp_path / "node", place) as node, node.client() as client:
        client.kv.put("/data/some", "thing")
        env = {**os.environ, "PYTHON": sys.executable, "JOBS_SOCKET": str(node.socket), "PLACE": str(place)}
        done = subprocess.run(["bash", "-c", shell], cwd=tmp_path, env=env, capture_output=True, timeout=180)
        assert done.returncode == 0, done.stderr.decode()
        assert client.kv.get("/data/restored/some").value.text == "thing"
        python = "\n".join(blocks("python"))
        done = subprocess.run([sys.executable, "-c", python], cwd=tmp_path, env=env, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr.decode()
        assert client.schedules.get("hourly-backup").schedule.cron == "0 * * * *"
