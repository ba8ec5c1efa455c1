"""Makes names durable: what a rename, a new file or a removal has done to a directory."""

from __future__ import annotations

import os
from pathlib import Path


def sync_directory(directory: Path) -> None:
    """Return once the directory's names are on the disk; their content is for whoever wrote it. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)  # without it a rename may be undone by a power cut
    finally:
        os.close(descriptor)
