"""`jobctl` as a process, for a node."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Protocol

COMMAND = [sys.executable, "-m", "jobs.cli.main"]


class Served(Protocol):
    """A node with its API's socket."""

    socket: Path


def jobctl(node: Served, *arguments: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run one command to its end."""
    return subprocess.run(
        [*COMMAND, *arguments],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        timeout=60,
        env={**os.environ, "JOBS_SOCKET": str(node.socket)},
    )
