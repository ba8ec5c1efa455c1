"""What kind of file system holds a path."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

MEMORY_FILE_SYSTEMS: Final = frozenset({"tmpfs", "ramfs"})
MOUNTINFO: Final = Path("/proc/self/mountinfo")


class _Mount(NamedTuple):
    point: Path
    kind: str


def file_system_of(path: Path, mountinfo: str) -> str:
    """Return the type of the file system that holds `path`, by the text of /proc/self/mountinfo (proc(5))."""
    best = _Mount(Path("/"), "unknown")
    for line in mountinfo.splitlines():
        head, separator, tail = line.partition(" - ")
        fields = head.split()
        if not separator or len(fields) < 5 or not tail:
            continue
        point = Path(fields[4].encode().decode("unicode_escape"))
        if path.is_relative_to(point) and len(point.parts) >= len(best.point.parts):
            best = _Mount(point, tail.split()[0])
    return best.kind


def is_in_memory(path: Path) -> bool:
    """Tell whether what is written below a path that is there reaches no disk, but by swapping."""
    try:
        return file_system_of(path.resolve(), MOUNTINFO.read_text()) in MEMORY_FILE_SYSTEMS
    except OSError:
        return False
