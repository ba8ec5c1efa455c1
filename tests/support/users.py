"""What tests need that do something as another user."""

from __future__ import annotations

from pathlib import Path


def let_others_in(directory: Path) -> None:
    """Let other users pass to a directory of a test: pytest makes those above it for its own user alone."""
    for place in (directory, *directory.parents):
        if place.stat().st_mode & 0o001:
            return  # then so are those above
        place.chmod(0o755)
