"""Where what is at a side comes from, so that nothing is copied in a circle.

An origin is a range at a cluster, as text: the cluster's id, a space, and a prefix of keys or "tags:" and one of tags.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from jobs.errors import ReplicationLoop
from jobs.records import CursorRecord
from jobs.replication.side import Side

TAGS: Final = "tags:"


def origin(cluster: str, place: str) -> str:
    return f"{cluster} {place}"


def place_of(prefix: str, *, is_tags: bool) -> str:
    return TAGS + prefix if is_tags else prefix


async def upstream_of(side: Side, cluster: str, place: str) -> tuple[str, ...]:
    """Return all origins of what is at a place of a side: the place itself, and from where syncs bring it there."""
    return tuple(sorted({origin(cluster, place), *(await side.upstream(place))}))


def brought(cursors: Iterable[CursorRecord], place: str) -> frozenset[str]:
    """Return the origins from which syncs bring what is at a place, by the cursors that are there."""
    found: set[str] = set()
    for cursor in cursors:
        if _overlap(place_of(cursor.target_prefix, is_tags=cursor.is_tags), place):
            found.update(cursor.upstream)
    return frozenset(found)


def check_no_loop(upstream: Iterable[str], cluster: str, place: str) -> None:
    """Raise ReplicationLoop where what is to be written at a place is where it comes from."""
    for one in upstream:
        where, _, what = one.partition(" ")
        if where == cluster and _overlap(what, place):
            raise ReplicationLoop(
                f"{place} of this target is where it comes from: {what}",
                expected="syncs in one direction, or of ranges apart",
            )


def _overlap(one: str, other: str) -> bool:
    return one.startswith(other) or other.startswith(one)
