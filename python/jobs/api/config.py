"""Bounds of the API."""

from __future__ import annotations

from msgspec import Struct


class ApiConfig(Struct, frozen=True, kw_only=True):
    """What the API allows, and how long it waits."""

    mode: int = 0o660
    group: str | None = None
    admin_group: str | None = None
    """Its members see and cancel every job, as do root and the node's own user."""
    max_connections: int = 4_096
    max_body_bytes: int = 10 << 20
    idle_timeout_s: float = 75.0
    """A connection without a request is closed after this."""
    header_timeout_s: float = 10.0
    """A request's head has to arrive within this, from its first byte."""
    body_timeout_s: float = 30.0
    """A request's body has to arrive within this; one that is taken as it comes has to go on within it."""
    write_timeout_s: float = 30.0
    """A client that takes nothing of a stream for this long is cut off."""
    ping_s: float = 15.0
    """A stream without news carries a sign of life this often."""
    max_streams_per_uid: int = 256
    """Streams and long polls of one user at a time; one more gets 429."""
    max_transfers: int = 192
    """Uploads and downloads of blobs at a time, each of which has a few files open; one more gets 429."""
    max_transfers_per_uid: int = 64
    worker_uids: frozenset[int] = frozenset()
    """Whose workers act for the owners of jobs."""
