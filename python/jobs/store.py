"""The key-value state machine as Python sees it: commands, results, and the protocol that stores implement.

A command is what one Raft entry carries: a batch of transactions, encoded as one version byte and a MessagePack
array. rust/kv decodes the same bytes; this file and rust/kv/src/command.rs are the two places that know the format.
"""

from __future__ import annotations

from typing import Final, Protocol, TypeAlias

import msgspec
from msgspec import Struct

COMMAND_VERSION: Final = 2
MAX_KEY_BYTES: Final = 1 << 10
MAX_VALUE_BYTES: Final = 1 << 20
MAX_TXN_OPS: Final = 1_000

# Operations and compares are MessagePack arrays whose first element is the tag; a transaction is
# [compares, then, otherwise, request id]; a command is [transactions].


class Put(Struct, frozen=True, array_like=True, tag=0):
    """Set `key`; `lease` 0 attaches none. The transaction fails whole (code "lease_not_found") on an unknown lease."""

    key: bytes
    value: bytes
    lease: int = 0


class Delete(Struct, frozen=True, array_like=True, tag=1):
    """Delete `key`, or with a non-empty `end` all keys in [key, end) — at most 10,000, else "limit"."""

    key: bytes
    end: bytes = b""


class Get(Struct, frozen=True, array_like=True, tag=2):
    """Read `key` inside the transaction."""

    key: bytes


class LeaseGrant(Struct, frozen=True, array_like=True, tag=3):
    """Create or renew lease `id` with a time to live. Time passes at the leader, never here."""

    id: int
    ttl_ms: int


class LeaseRevoke(Struct, frozen=True, array_like=True, tag=4):
    """Delete the lease and every key attached to it, if it is there."""

    id: int


class Compact(Struct, frozen=True, array_like=True, tag=5):
    """Forget history below `revision`; the space is given back in bounded steps by later commands."""

    revision: int


class Keep(Struct, frozen=True, array_like=True, tag=6):
    """Keep no more history than so many changes from now on (0: no bound); what is too much goes in bounded steps."""

    events: int


Op: TypeAlias = Put | Delete | Get | LeaseGrant | LeaseRevoke | Compact | Keep


class VersionIs(Struct, frozen=True, array_like=True, tag=0):
    """Compare the version of a key (0: absent) by op 0 ==, 1 !=, 2 <, 3 >; so do its siblings."""

    key: bytes
    op: int
    number: int


class CreateRevisionIs(Struct, frozen=True, array_like=True, tag=1):
    key: bytes
    op: int
    number: int


class ModRevisionIs(Struct, frozen=True, array_like=True, tag=2):
    key: bytes
    op: int
    number: int


class LeaseIs(Struct, frozen=True, array_like=True, tag=3):
    key: bytes
    op: int
    number: int


class ValueIs(Struct, frozen=True, array_like=True, tag=4):
    key: bytes
    op: int
    value: bytes


Compare: TypeAlias = VersionIs | CreateRevisionIs | ModRevisionIs | LeaseIs | ValueIs

EQ: Final = 0
NE: Final = 1
LT: Final = 2
GT: Final = 3


class Txn(Struct, frozen=True, array_like=True):
    """`then` is applied when every compare holds, else `otherwise`; all operations or none.

    A transaction with a request id is applied once: while that is remembered, another one with it only gets the result
    of the first, also where a compare failed or nothing was applied.
    """

    compare: tuple[Compare, ...] = ()
    then: tuple[Op, ...] = ()
    otherwise: tuple[Op, ...] = ()
    request_id: bytes = b""


class TxnResult(Struct, frozen=True, array_like=True):
    """What a transaction did.

    `error` is "" or the code for which nothing of it was applied ("lease_not_found", "limit: …"). `revision` is the
    store's after it. `results`: one item an operation of the branch taken: None (put, compact, keep), the number of
    keys deleted (delete, lease_revoke; lease_grant 0; None for the revocation of no lease), or the key-value found by a
    get as a list, or None. `remembered`: it was applied before, by another transaction with its request id; the error
    is then "result_gone" where the result was too large to be remembered.
    """

    error: str
    succeeded: bool
    revision: int
    results: list[int | tuple[bytes, bytes, int, int, int, int] | None]
    remembered: bool = False


_encode = msgspec.msgpack.Encoder().encode
_decode_results = msgspec.msgpack.Decoder(list[TxnResult]).decode


def encode_command(txns: list[Txn]) -> bytes:
    """Return the command that applies `txns` in order, each atomically by itself."""
    return bytes((COMMAND_VERSION,)) + _encode(txns)


def decode_results(data: bytes) -> list[TxnResult]:
    """Return one result a transaction of the command."""
    return _decode_results(data)


class Store(Protocol):
    """What consensus and control need of a store; `_native.Store` and `_native.MemoryStore` have it."""

    @property
    def applied_index(self) -> int: ...
    @property
    def revision(self) -> int: ...
    @property
    def compact_revision(self) -> int: ...
    @property
    def history_events(self) -> int: ...
    @property
    def max_history_events(self) -> int: ...
    def apply(self, entries: list[tuple[int, int, bytes]]) -> list[bytes]: ...
    def get(self, key: bytes, revision: int = 0) -> tuple[bytes, bytes, int, int, int, int] | None: ...
    def range(
        self,
        start: bytes,
        end: bytes,
        *,
        limit: int,
        revision: int = 0,
        reverse: bool = False,
        keys_only: bool = False,
        max_bytes: int = 8 << 20,
    ) -> tuple[list[tuple[bytes, bytes, int, int, int, int]], bool]: ...
    def count(self, start: bytes, end: bytes, *, limit: int) -> int: ...
    def events(
        self, after_revision: int, prefixes: list[bytes], *, limit: int, max_bytes: int = 4 << 20
    ) -> tuple[list[tuple[int, bytes, bytes | None, int, int, int]], int]: ...
    def digests(
        self,
        start: bytes,
        end: bytes,
        *,
        cursor: bytes = b"",
        revision: int = 0,
        strip: int = 0,
        content_only: bool = False,
        rows: int = 4096,
        limit: int = 1024,
        max_rows: int = 200_000,
    ) -> tuple[list[tuple[bytes, bytes, int, int]], bytes]: ...
    def recall(self, request_id: bytes) -> bytes | None: ...
    def leases(self) -> list[tuple[int, int]]: ...
    def used_bytes(self) -> int: ...


def prefix_end(prefix: bytes) -> bytes:
    """Return the first key after all keys that begin with `prefix`.

    Raises ValueError for a prefix of 0xff bytes only, which has none.
    """
    stripped = prefix.rstrip(b"\xff")
    if not stripped:
        raise ValueError(f"prefix {prefix!r} has no end")
    return stripped[:-1] + bytes((stripped[-1] + 1,))
