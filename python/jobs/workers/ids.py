"""uids and gids that the system gives to a worker which is not root, for its jobs: subuid(5), subgid(5)."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import Final

from msgspec import Struct

SUBUID: Final = Path("/etc/subuid")
SUBGID: Final = Path("/etc/subgid")


class Subordinate(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """As many uids as gids, each from a first one on."""

    uid: int
    gid: int
    count: int

    def has(self, uid: int) -> bool:
        return 0 <= uid - self.uid < self.count


def subordinate_ids(uid: int | None = None, *, subuid: Path = SUBUID, subgid: Path = SUBGID) -> Subordinate | None:
    """Return what a user, by default this process's, may give to others; None for nothing, and for root."""
    uid = os.geteuid() if uid is None else uid
    if uid == 0:
        return None
    users, groups = _largest(subuid, uid), _largest(subgid, uid)
    if users is None or groups is None:
        return None
    return Subordinate(uid=users[0], gid=groups[0], count=min(users[1], groups[1]))


def _largest(path: Path, uid: int) -> tuple[int, int] | None:
    """Return the largest range of a user as first id and count: `NAME:FIRST:COUNT`, or the uid in place of the name."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return None
    names = {str(uid), _name(uid)}
    ranges = []
    for line in text.splitlines():
        name, *numbers = line.strip().split(":")
        if name in names and len(numbers) == 2 and all(number.isdecimal() for number in numbers):
            ranges.append((int(numbers[0]), int(numbers[1])))
    return max(ranges, key=lambda found: found[1], default=None)


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
