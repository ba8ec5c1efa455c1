"""Secrets of owners: kept encrypted, told of without their values, decrypted for a job that is about to be started."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from msgspec import Struct, field

from jobs import keys, records
from jobs.clock import wall_ms
from jobs.consensus import Consensus
from jobs.content import content_bytes
from jobs.control.audit import audit_entry
from jobs.control.once import MAX_TRIES, try_id, was_done
from jobs.control.queries import check_admin, decode_cursor, encode_cursor
from jobs.control.secretkeys import SecretKeys
from jobs.control.transitions import check
from jobs.errors import InternalError, InvalidRequest, NotFound, PayloadTooLarge, TooManyRequests
from jobs.protocol.model import (
    MAX_SECRET_BYTES,
    Reason,
    SecretKeyRotate,
    SecretKeyRotated,
    SecretKeyView,
    SecretPage,
    SecretPut,
    SecretValue,
    SecretView,
)
from jobs.protocol.wire import Lacking
from jobs.records import SecretRecord
from jobs.secrets.keyring import Keyring, Unreadable, seal
from jobs.secrets.keys import Keys
from jobs.service import Caller
from jobs.store import EQ, NE, Compare, Delete, ModRevisionIs, Op, Put, Store, Txn, VersionIs, prefix_end

SEALED_BYTES: Final = 1 << 10
"""About what a value takes more in a command, encrypted and with its key."""


class SecretsConfig(Struct, frozen=True, kw_only=True):
    """Bounds, and the keys that the node has."""

    max_per_owner: int = 1_000
    keys: Keys = field(default_factory=lambda: Keys(Keyring()))


class Secrets:
    """Implements `service.SecretService`, and says what a job is given."""

    def __init__(
        self, consensus: Consensus, store: Store, config: SecretsConfig, check_space: Callable[..., None]
    ) -> None:
        self._consensus = consensus
        self._store = store
        self._config = config
        self._check_space = check_space
        self._keys = SecretKeys(consensus, store, config.keys)

    async def start(self) -> None:
        """Have the keys that are in use, if any member has them."""
        await self._keys.start()

    async def resume(self) -> None:
        """Go on with a rotation that was broken off."""
        await self._keys.resume()

    # --- what the API asks ------------------------------------------------------------------------------------------

    async def page(
        self, caller: Caller, *, owner: int | None, everybody: bool, limit: int, cursor: str | None
    ) -> SecretPage:
        if everybody:
            check_admin(caller, "see the secrets of others")
        prefix = keys.SECRETS if everybody else keys.secrets_prefix(_owner(caller, owner))
        await self._consensus.barrier()
        start = prefix if cursor is None else decode_cursor(cursor, prefix) + b"\x00"
        rows, more = self._store.range(start, prefix_end(prefix), limit=limit)
        return SecretPage(
            secrets=[_view(row) for row in rows],
            next_cursor=encode_cursor(rows[-1][0]) if more and rows else None,
        )

    async def get(self, caller: Caller, name: str, *, owner: int | None) -> SecretView:
        uid = _owner(caller, owner)
        await self._consensus.barrier()
        return self._found(uid, name)

    async def put(self, caller: Caller, name: str, put: SecretPut, *, owner: int | None) -> tuple[SecretView, bool]:
        """Return the secret, and whether it was not there before."""
        uid = _owner(caller, owner)
        value = content_bytes(put.value, "$.value")
        if len(value) > MAX_SECRET_BYTES:
            raise PayloadTooLarge(
                f"the value has {len(value)} bytes", field="$.value", expected=f"at most {MAX_SECRET_BYTES}"
            )
        if not value:
            raise InvalidRequest("the value is empty", field="$.value", expected="a value; or delete the secret")
        self._check_space(caller.request_id)
        key = keys.secret(uid, name)
        for number in range(MAX_TRIES):
            await self._consensus.barrier()
            if was_done(self._store, caller.request_id):
                return self._found(uid, name), False
            with_key, record = await self._keys.current(caller)
            former = self._store.get(key)
            if former is None:
                self._check_count(uid)
            now_ms = wall_ms()
            made = SecretRecord(
                key=record.fingerprint,
                sealed=seal(record.recipient, uid, name, value),
                size_bytes=len(value),
                created_ms=now_ms if former is None else records.decode(SecretRecord, former[1]).created_ms,
                updated_ms=now_ms,
            )
            entry = audit_entry(caller, "secret.set", name, now_ms, _of(uid), uid)
            compares = (with_key, ModRevisionIs(key, EQ, 0 if former is None else former[4]))
            ops = (Put(key, records.encode(made)), entry)
            if await self._write(compares, ops, caller, number, SEALED_BYTES + len(value)):
                return self._found(uid, name), former is None
        raise InternalError(f"the secret was changed by others {MAX_TRIES} times meanwhile")

    async def delete(self, caller: Caller, name: str, *, owner: int | None) -> None:
        uid = _owner(caller, owner)
        key = keys.secret(uid, name)
        for number in range(MAX_TRIES):
            await self._consensus.barrier()
            if was_done(self._store, caller.request_id):
                return
            self._found(uid, name)
            entry = audit_entry(caller, "secret.delete", name, wall_ms(), _of(uid), uid)
            if await self._write((VersionIs(key, NE, 0),), (Delete(key), entry), caller, number, SEALED_BYTES):
                return
        raise InternalError(f"the secret was changed by others {MAX_TRIES} times meanwhile")

    async def key(self, caller: Caller) -> SecretKeyView:
        check_admin(caller, "see the key of secrets")
        await self._consensus.barrier()
        return await self._keys.view()

    async def rotate(self, caller: Caller, wanted: SecretKeyRotate) -> SecretKeyRotated:
        check_admin(caller, "change the key of secrets")
        return await self._keys.rotate(caller, wanted)

    async def _write(
        self, compares: tuple[Compare, ...], ops: tuple[Op, ...], caller: Caller, number: int, size_bytes: int
    ) -> bool:
        done = await self._consensus.propose(
            Txn(compares, ops, request_id=try_id(caller.request_id, number)), size_bytes
        )
        check(done)
        return done.succeeded

    def _found(self, uid: int, name: str) -> SecretView:
        found = self._store.get(keys.secret(uid, name))
        if found is None:
            raise NotFound(f"uid {uid} has no secret {name!r:.200}")
        return _view(found)

    def _check_count(self, uid: int) -> None:
        prefix = keys.secrets_prefix(uid)
        limit = self._config.max_per_owner
        if self._store.count(prefix, prefix_end(prefix), limit=limit) >= limit:
            raise TooManyRequests(
                f"uid {uid} has {limit} secrets already", expected="fewer, or a larger secrets.max_per_owner"
            )

    # --- what a job is given ----------------------------------------------------------------------------------------

    def values(self, owner: int, wanted: Mapping[str, str]) -> dict[str, SecretValue] | Lacking:
        """Return the values of an owner's secrets by the names of files, or why the job cannot have them."""
        found: dict[str, SecretValue] = {}
        for file, name in wanted.items():
            row = self._store.get(keys.secret(owner, name))
            if row is None:
                return Lacking(reason=Reason.INVALID_PAYLOAD, message=f"uid {owner} has no secret {name!r}")
            record = records.decode(SecretRecord, row[1])
            try:
                value = self._config.keys.keyring.open(record.key, record.sealed, owner, name)
            except Unreadable as error:
                return Lacking(reason=Reason.SPAWN_FAILED, message=f"secret {name!r} cannot be read: {error}")
            found[file] = SecretValue(value)
        return found


def check_named(store: Store, owner: int, named: Mapping[str, str]) -> None:
    """Raise NotFound, with the field, for a secret that a job names and its owner has not."""
    for name, where in named.items():
        if store.get(keys.secret(owner, name)) is None:
            raise NotFound(
                f"uid {owner} has no secret {name!r}", field=where, expected=f"jobctl secret set {name}, first"
            )


def _owner(caller: Caller, owner: int | None) -> int:
    if owner is None or owner == caller.uid:
        return caller.uid
    check_admin(caller, "deal with the secrets of others")
    return owner


def _of(uid: int) -> str:
    return f"of uid {uid}"


def _view(row: tuple[bytes, bytes, int, int, int, int]) -> SecretView:
    key, value, version, *_ = row
    owner, name = keys.secret_of(key)
    record = records.decode(SecretRecord, value)
    return SecretView(
        name=name,
        owner=owner,
        size_bytes=record.size_bytes,
        version=version,
        created_ms=record.created_ms,
        updated_ms=record.updated_ms,
    )
