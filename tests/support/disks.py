"""Disks with little room."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def small_disk(directory: Path) -> Iterator[None]:
    """Mount 24 MiB at a directory, 8 of them taken by a file that can be deleted, `filler`."""
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(directory)], check=True)
    try:
        (directory / "filler").write_bytes(bytes(8 << 20))
        yield
    finally:
        subprocess.run(["umount", str(directory)], check=True)
