"""Key-value operations of users: anything below `/data/` is theirs; admins may read the rest, nobody writes it."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from typing import Final

from jobs import keys
from jobs._native import CompactedError
from jobs.consensus import Consensus
from jobs.content import content_bytes, content_of
from jobs.control.hub import Hub
from jobs.control.leases import Leases, no_lease
from jobs.control.once import LEASE_BITS, lease_id
from jobs.control.queries import decode_cursor, encode_cursor
from jobs.control.transitions import Barrier, check
from jobs.errors import (
    Compacted,
    Forbidden,
    InvalidRequest,
    LeaseNotFound,
    PayloadTooLarge,
    ResultGone,
    StorageFull,
)
from jobs.protocol.ids import LeaseId, Revision
from jobs.protocol.model import (
    KeyValue,
    KvCompare,
    KvDelete,
    KvEvent,
    KvOp,
    KvOpResult,
    KvPage,
    KvPut,
    KvTxn,
    KvTxnResult,
    Lease,
)
from jobs.service import Caller
from jobs.store import (
    EQ,
    GT,
    LT,
    MAX_KEY_BYTES,
    MAX_VALUE_BYTES,
    NE,
    Compare,
    CreateRevisionIs,
    Delete,
    Get,
    LeaseGrant,
    LeaseIs,
    ModRevisionIs,
    Op,
    Put,
    Store,
    Txn,
    ValueIs,
    VersionIs,
    prefix_end,
)

_OPERATORS: Final = {"==": EQ, "!=": NE, "<": LT, ">": GT}
_NUMBERS: Final[dict[str, type[VersionIs] | type[CreateRevisionIs] | type[ModRevisionIs] | type[LeaseIs]]] = {
    "version": VersionIs,
    "create_revision": CreateRevisionIs,
    "mod_revision": ModRevisionIs,
    "lease": LeaseIs,
}


class DataReads:
    """Reads of the users' part of the store, each after a barrier: linearizable by the leader's, stale by none."""

    def __init__(self, barrier: Barrier, store: Store, hub: Hub) -> None:
        self._barrier = barrier
        self._store = store
        self._hub = hub

    async def get(self, caller: Caller, key: str, revision: int) -> KeyValue | None:
        name = readable(caller, key, "key")
        await self._barrier()
        self._check_revision(revision)
        try:
            found = self._store.get(name, revision)
        except CompactedError as error:
            raise Compacted(str(error)) from error
        if revision:
            self._hub.on_read(revision)
        return None if found is None else key_value(found)

    async def scan(
        self, caller: Caller, prefix: str, *, limit: int, cursor: str | None, revision: int, keys_only: bool
    ) -> KvPage:
        name = readable(caller, prefix, "prefix")
        await self._barrier()
        self._check_revision(revision)
        at = revision or self._store.revision
        start = name if cursor is None else decode_cursor(cursor, name) + b"\x00"
        try:
            rows, more = self._store.range(start, prefix_end(name), limit=limit, revision=at, keys_only=keys_only)
        except CompactedError as error:
            raise Compacted(str(error)) from error
        next_cursor = encode_cursor(rows[-1][0]) if more and rows else None
        if revision or next_cursor is not None:
            self._hub.on_read(at)
        return KvPage(kvs=[key_value(row) for row in rows], next_cursor=next_cursor, revision=Revision(at))

    async def watch(
        self, caller: Caller, key: str, *, prefix: bool, after_revision: int | None
    ) -> AsyncIterator[KvEvent | int]:
        name = readable(caller, key, "key")
        async for events in self._hub.watch(name, after_revision):
            if isinstance(events, int):
                yield events
                continue
            for revision, found, value, version, created, lease in events:
                if not prefix and found != name:
                    continue
                kv = None if value is None else key_value((found, value, version, created, revision, lease))
                yield KvEvent(
                    revision=Revision(revision), type="delete" if kv is None else "put", key=text(found), kv=kv
                )

    def _check_revision(self, revision: int) -> None:
        if revision > self._store.revision:
            raise InvalidRequest(
                f"revision {revision} has not been reached",
                field="revision",
                expected=f"0 for the newest, or at most {self._store.revision}",
            )


class Data(DataReads):
    """The users' part of the store, as the leader has it."""

    def __init__(self, consensus: Consensus, store: Store, hub: Hub, leases: Leases) -> None:
        super().__init__(consensus.barrier, store, hub)
        self._consensus = consensus
        self._leases = leases

    async def put(self, caller: Caller, put: KvPut) -> KvTxnResult:
        return await self._write(Txn(then=(self._put(put, "$"),), request_id=caller.request_id))

    async def delete(self, caller: Caller, delete: KvDelete) -> KvTxnResult:
        return await self._write(Txn(then=(self._delete(delete, "$"),), request_id=caller.request_id))

    async def txn(self, caller: Caller, txn: KvTxn) -> KvTxnResult:
        compare = tuple(self._compare(caller, item, f"$.compare[{i}]") for i, item in enumerate(txn.compare))
        then = tuple(self._op(caller, item, f"$.then[{i}]") for i, item in enumerate(txn.then))
        otherwise = tuple(self._op(caller, item, f"$.otherwise[{i}]") for i, item in enumerate(txn.otherwise))
        return await self._write(Txn(compare, then, otherwise, caller.request_id))

    async def lease_grant(self, caller: Caller, ttl_s: float) -> Lease:
        lease = lease_id(caller.request_id, secrets.randbits(LEASE_BITS))
        grant = LeaseGrant(lease, int(ttl_s * 1000))
        done = await self._consensus.propose(Txn(then=(grant,), request_id=caller.request_id))
        check(done)
        if done.remembered:
            self._leases.check(lease)
        else:
            self._leases.keep(lease, ttl_s)
        return self._lease(lease)

    async def lease_keepalive(self, caller: Caller, lease: int) -> Lease:
        self._leases.keep(LeaseId(lease))
        return self._lease(LeaseId(lease))

    def _lease(self, lease: LeaseId) -> Lease:
        return Lease(id=lease, ttl_s=self._leases.ttl_s(lease), remaining_s=self._leases.remaining_s(lease))

    async def lease_revoke(self, caller: Caller, lease: int) -> None:
        if not await self._leases.revoke(LeaseId(lease), caller.request_id):
            raise no_lease(LeaseId(lease))

    async def _write(self, txn: Txn) -> KvTxnResult:
        size_bytes = 128 + sum(
            len(op.key) + len(op.value) + 32 if isinstance(op, Put) else 64 for op in (*txn.then, *txn.otherwise)
        )
        done = await self._consensus.propose(txn, size_bytes)
        if done.error:
            raise _write_error(done.error)
        taken = txn.then if done.succeeded else txn.otherwise
        results = [_op_result(op, result) for op, result in zip(taken, done.results, strict=True)]
        return KvTxnResult(succeeded=done.succeeded, revision=Revision(done.revision), results=results)

    def _op(self, caller: Caller, op: KvOp, where: str) -> Op:
        given = [name for name in ("put", "delete", "get") if getattr(op, name) is not None]
        if len(given) != 1:
            raise InvalidRequest(
                f"{' and '.join(given) or 'nothing'} is given", field=where, expected="exactly one of put, delete, get"
            )
        if op.put is not None:
            return self._put(op.put, f"{where}.put")
        if op.delete is not None:
            return self._delete(op.delete, f"{where}.delete")
        assert op.get is not None
        return Get(readable(caller, op.get, f"{where}.get"))

    def _put(self, put: KvPut, where: str) -> Put:
        value = content_bytes(put.value, f"{where}.value")
        if len(value) > MAX_VALUE_BYTES:
            raise PayloadTooLarge(
                f"the value has {len(value)} bytes", field=f"{where}.value", expected=f"at most {MAX_VALUE_BYTES}"
            )
        if put.lease < 0 or put.lease >= 1 << 63:
            raise InvalidRequest(f"{put.lease} is no lease", field=f"{where}.lease", expected="0, or a lease's id")
        return Put(writable(put.key, f"{where}.key"), value, put.lease)

    def _delete(self, delete: KvDelete, where: str) -> Delete:
        key = writable(delete.key, f"{where}.key")
        return Delete(key, prefix_end(key) if delete.prefix else b"")

    def _compare(self, caller: Caller, item: KvCompare, where: str) -> Compare:
        key = readable(caller, item.key, f"{where}.key")
        operator = _OPERATORS[item.op]
        if item.target == "value":
            if item.value is None or item.number is not None:
                raise InvalidRequest("a value is compared", field=where, expected="value, and no number")
            return ValueIs(key, operator, content_bytes(item.value, f"{where}.value"))
        if item.number is None or item.value is not None or not 0 <= item.number < 1 << 63:
            raise InvalidRequest(
                f"{item.target} is compared", field=where, expected="number from 0 to 2^63-1, and no value"
            )
        return _NUMBERS[item.target](key, operator, item.number)


def key_value(row: tuple[bytes, bytes, int, int, int, int]) -> KeyValue:
    key, value, version, created, modified, lease = row
    return KeyValue(
        key=text(key),
        value=content_of(value),
        version=version,
        create_revision=Revision(created),
        mod_revision=Revision(modified),
        lease=lease,
    )


def text(key: bytes) -> str:
    """Return a key as text; our own keys may hold a zero byte, which JSON can carry."""
    return key.decode(errors="replace")


def readable(caller: Caller, key: str, where: str) -> bytes:
    """Return the key as bytes if the caller may read it."""
    name = _key(key, where)
    if not name.startswith(keys.DATA) and not caller.admin:
        raise Forbidden(
            f"only admins read outside {keys.DATA.decode()}", field=where, expected="a key of your own part"
        )
    return name


def writable(key: str, where: str) -> bytes:
    """Return the key as bytes if it is in the users' part: the rest is kept consistent by the node alone."""
    name = _key(key, where)
    if not name.startswith(keys.DATA):
        raise Forbidden(f"keys outside {keys.DATA.decode()} are the system's", field=where, expected="/data/…")
    return name


def _key(key: str, where: str) -> bytes:
    try:
        name = key.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"not valid Unicode: {error}", field=where, expected="text without surrogates") from error
    if not 1 <= len(name) <= MAX_KEY_BYTES:
        raise InvalidRequest(
            f"the key has {len(name)} bytes", field=where, expected=f"from 1 to {MAX_KEY_BYTES} bytes of UTF-8"
        )
    return name


def _op_result(op: Op, result: int | tuple[bytes, bytes, int, int, int, int] | None) -> KvOpResult:
    if isinstance(op, Delete):
        assert isinstance(result, int)
        return KvOpResult(deleted=result)
    return KvOpResult(kv=None if result is None or isinstance(result, int) else key_value(result))


def _write_error(error: str) -> Exception:
    if error == "result_gone":
        return ResultGone(
            "the request was carried out before; its result was too large to be kept", expected="a read of the keys"
        )
    if error.startswith("lease_not_found"):
        return LeaseNotFound("the lease of a put is not there: it was revoked or ran out", field="lease")
    if error.startswith("full"):
        return StorageFull(error)
    return InvalidRequest(error, expected="a transaction within the limits")
