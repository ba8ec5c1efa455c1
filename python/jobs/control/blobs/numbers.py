"""How many nodes are to have a blob, and what blobs may take. Pure."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from jobs.consensus import Members
from jobs.records import BlobRecord

MAX_CHILDREN: Final = 100_000
"""Of a collection."""


class BlobConfig(Struct, frozen=True, kw_only=True):
    """Bounds and times of blobs."""

    replicas: int = 0
    """Nodes that have a blob for which no other number was asked for; 0: a majority of the voters."""
    grace_ms: int = 3_600_000
    max_bytes_per_owner: int = 1 << 40
    max_blob_bytes: int = 1 << 40


class Numbers(Struct, frozen=True):
    """How many nodes there are for a blob."""

    default: int
    """Nodes that are to have a blob for which no other number was asked for."""
    members: int

    def asked(self, record: BlobRecord) -> int:
        """Return how many nodes are to have a blob."""
        return record.replicas or self.default

    def wanted(self, record: BlobRecord) -> int:
        """Return how many nodes are to have it, and can."""
        return min(self.asked(record), self.members)

    def lacks(self, record: BlobRecord) -> bool:
        """Tell whether fewer nodes have a blob than are to."""
        return len(record.holders) < self.wanted(record)


def numbers_of(members: Members, replicas: int) -> Numbers:
    """Return the numbers by these members; `replicas` is as configured."""
    return Numbers(replicas or len(members.voters) // 2 + 1, len(members.records))
