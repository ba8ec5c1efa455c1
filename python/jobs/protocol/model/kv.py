"""The users' key-value data and leases."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, field

from jobs.protocol.ids import Revision
from jobs.protocol.model.base import Model
from jobs.protocol.model.submission import Content

Key = Annotated[str, Meta(min_length=1, max_length=1024)]


class KeyValue(Model, frozen=True):
    key: str
    value: Content
    version: int
    create_revision: Revision
    mod_revision: Revision
    lease: int


class KvPut(Model, frozen=True):
    key: Key
    value: Content
    lease: int = 0


class KvDelete(Model, frozen=True):
    """Delete one key, or with `prefix` every key that begins with it."""

    key: Key
    prefix: bool = False


class KvCompare(Model, frozen=True):
    """One condition of a transaction on a key; a key that is absent has version 0 and revisions 0."""

    key: Key
    target: Literal["version", "create_revision", "mod_revision", "lease", "value"]
    op: Literal["==", "!=", "<", ">"] = "=="
    number: int | None = None
    value: Content | None = None


class KvOp(Model, frozen=True):
    """Exactly one of the three."""

    put: KvPut | None = None
    delete: KvDelete | None = None
    get: Key | None = None


class KvTxn(Model, frozen=True):
    """`then` is applied when every compare holds, `otherwise` when one does not; atomically."""

    compare: Annotated[list[KvCompare], Meta(max_length=1000)] = field(default_factory=list)
    then: Annotated[list[KvOp], Meta(max_length=1000)] = field(default_factory=list)
    otherwise: Annotated[list[KvOp], Meta(max_length=1000)] = field(default_factory=list)


class KvOpResult(Model, frozen=True):
    """What one operation did: `deleted` keys of a delete, `kv` found by a get."""

    deleted: int | None = None
    kv: KeyValue | None = None


class KvTxnResult(Model, frozen=True):
    succeeded: bool
    revision: Revision
    results: list[KvOpResult]


class KvPage(Model, frozen=True):
    kvs: list[KeyValue]
    next_cursor: str | None
    revision: Revision


class KvEvent(Model, frozen=True):
    revision: Revision
    type: Literal["put", "delete"]
    key: str
    kv: KeyValue | None


class LeaseGrant(Model, frozen=True):
    ttl_s: Annotated[float, Meta(ge=1, le=86_400)]


class Lease(Model, frozen=True):
    id: int
    ttl_s: float
    remaining_s: float
