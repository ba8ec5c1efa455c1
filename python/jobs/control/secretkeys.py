"""Which key secrets are encrypted with: made with the first secret, changed by a rotation, and never in the store.

A rotation names the new key first, so that nothing is encrypted with the former one from then on, and then encrypts
what there is anew in bounded steps. Whoever leads next goes on with one that was broken off.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from jobs import keys, records
from jobs.clock import wall_ms
from jobs.consensus import Consensus
from jobs.control.audit import audit_entry
from jobs.control.once import MAX_TRIES, try_id, was_done
from jobs.control.transitions import check, count_in_turns, scan_in_turns
from jobs.errors import InternalError, InvalidRequest, SecretKeyMissing, Unavailable
from jobs.protocol.ids import NO_REQUEST, RequestId
from jobs.protocol.model import SecretKeyRotate, SecretKeyRotated, SecretKeyView
from jobs.records import SecretKeyRecord, SecretRecord
from jobs.secrets.keyring import KeyFileError, SecretKey, Unreadable, generate, seal
from jobs.secrets.keys import Keys
from jobs.service import Caller
from jobs.store import EQ, Compare, Delete, ModRevisionIs, Op, Put, Store, Txn

logger = logging.getLogger(__name__)

BATCH_SECRETS: Final = 16
"""Encrypted anew by one transaction: of the largest secrets a megabyte."""
MAX_RETIRED: Final = 32
EXPECTED: Final = (
    "the file secrets.key of a member in the node's data directory again, or jobctl secret rotate-key --forget-lost, "
    "which deletes what cannot be read any more"
)
ENTRY_BYTES: Final = 512
RETRY_S: Final = 1.0
"""A key that no member could give is asked for again: members come back."""


class _Rewritten(Struct):
    """What a rotation has come to."""

    rewritten: int = 0
    forgotten: int = 0
    unreadable: str | None = None
    """Why one cannot be read."""


class SecretKeys:
    """Of the node that leads."""

    def __init__(self, consensus: Consensus, store: Store, held: Keys) -> None:
        self._consensus = consensus
        self._store = store
        self._held = held
        self._changing = asyncio.Lock()
        """One at a time makes or changes the key."""

    async def start(self) -> None:
        """Have the keys that are in use, if any member has them."""
        record = read_key(self._store)
        for fingerprint in keys_in_use(record):
            if not await self._held.fetch(fingerprint):
                logger.error("no member gives the key of secrets %s: jobs that need it fail", fingerprint)

    async def resume(self) -> None:
        """Go on with a rotation that was broken off, once its keys are here."""
        while (record := read_key(self._store)) is not None and record.former:
            if all([await self._held.fetch(fingerprint) for fingerprint in keys_in_use(record)]):
                async with self._changing:
                    await self._rewrite(forget_lost=False)
                return
            await asyncio.sleep(RETRY_S)

    async def current(self, caller: Caller) -> tuple[ModRevisionIs, SecretKeyRecord]:
        """Return the key to encrypt with, which is made if there is none, and what holds while it is that.

        Raises SecretKeyMissing where nobody could read what is encrypted with it.
        """
        if read_key(self._store) is None:
            async with self._changing:
                if read_key(self._store) is None:
                    key = self._provided() or generate()
                    await self._held.spread(key)
                    # The request goes on to do something else.
                    await self._name(caller, key, "secret.key", NO_REQUEST)
        record = read_key(self._store)
        assert record is not None
        if not await self._held.fetch(record.fingerprint):
            raise _missing(record.fingerprint)
        return self._unchanged(), record

    async def view(self) -> SecretKeyView:
        record = read_key(self._store)
        to_rewrite = 0
        if record is not None and record.former:
            async for page in scan_in_turns(self._store, keys.SECRETS):
                to_rewrite += sum(
                    records.decode(SecretRecord, value).key != record.fingerprint for _, value, *_ in page
                )
        return SecretKeyView(
            fingerprint=None if record is None else record.fingerprint,
            created_ms=None if record is None else record.created_ms,
            secrets=await count_in_turns(self._store, keys.SECRETS),
            to_rewrite=to_rewrite,
            present=all(self._held.keyring.get(key) is not None for key in keys_in_use(record)),
        )

    async def rotate(self, caller: Caller, wanted: SecretKeyRotate) -> SecretKeyRotated:
        """Encrypt all secrets with another key. Raises SecretKeyMissing where some cannot be read, unless those are to
        be forgotten."""
        async with self._changing:
            await self._consensus.barrier()
            if not was_done(self._store, caller.request_id):
                former = read_key(self._store)
                if not wanted.forget_lost:
                    for fingerprint in keys_in_use(former):
                        if not await self._held.fetch(fingerprint):
                            raise _missing(fingerprint)
                await self._begin(caller, former)
            done = await self._rewrite(forget_lost=wanted.forget_lost)
            record = read_key(self._store)
            assert record is not None
            return SecretKeyRotated(fingerprint=record.fingerprint, rewritten=done.rewritten, forgotten=done.forgotten)

    # --- the steps of a rotation --------------------------------------------------------------------------------------

    async def _begin(self, caller: Caller, former: SecretKeyRecord | None) -> None:
        """Have a new key be the one to encrypt with."""
        key = self._provided() or generate()
        if former is not None and key.fingerprint == former.fingerprint:
            if former.former:
                return  # it is being changed to: go on with that
            raise InvalidRequest(
                f"the first key in {self._held.keyring.path} is the one that is in use",
                expected="a new key before it in that file, on every node; the former one stays there until the end",
            )
        await self._held.spread(key)
        for number in range(MAX_TRIES):
            if await self._name(caller, key, "secret.rotate-key", try_id(caller.request_id, number)):
                return
        raise InternalError(f"the key of secrets was changed by others {MAX_TRIES} times meanwhile")

    def _provided(self) -> SecretKey | None:
        try:
            return self._held.keyring.provided()
        except KeyFileError as error:
            raise Unavailable(str(error), expected="a file as age-keygen writes it, in secrets.key_file") from error

    async def _name(self, caller: Caller, key: SecretKey, action: str, request: RequestId) -> bool:
        """Write down that a key is the one to encrypt with from now on."""
        former = read_key(self._store)
        now_ms = wall_ms()
        record = SecretKeyRecord(
            fingerprint=key.fingerprint,
            recipient=key.recipient,
            created_ms=now_ms,
            former=() if former is None else (former.fingerprint, *former.former),
            retired=() if former is None else tuple(one for one in former.retired if one != key.fingerprint),
        )
        entry = audit_entry(caller, action, key.fingerprint, now_ms)
        return await self._write((self._unchanged(),), (Put(keys.SECRET_KEY, records.encode(record)), entry), request)

    async def _rewrite(self, *, forget_lost: bool) -> _Rewritten:
        """Encrypt what still has a former key with the one in use, and retire those then."""
        done = _Rewritten()
        record = read_key(self._store)
        if record is None or not record.former:
            return done
        async for page in scan_in_turns(self._store, keys.SECRETS):
            for start in range(0, len(page), BATCH_SECRETS):
                changes = [
                    change
                    for key, value, _, _, revision, _ in page[start : start + BATCH_SECRETS]
                    if (change := self._rewritten(record, key, value, revision, done)) is not None
                ]
                if done.unreadable is not None and not forget_lost:
                    raise SecretKeyMissing(done.unreadable, expected=EXPECTED)
                # What somebody has set meanwhile has the new key already.
                await asyncio.gather(*(self._write((compare,), (op,)) for compare, op in changes))
        retired = dict.fromkeys((*record.former, *record.retired))
        finished = replace(record, former=(), retired=tuple(retired)[:MAX_RETIRED])
        await self._write((self._unchanged(),), (Put(keys.SECRET_KEY, records.encode(finished)),))
        return done

    def _rewritten(
        self, record: SecretKeyRecord, key: bytes, value: bytes, revision: int, done: _Rewritten
    ) -> tuple[Compare, Op] | None:
        """Return what encrypts a secret anew, or deletes one that cannot be read; None for one that is as it should."""
        old = records.decode(SecretRecord, value)
        if old.key == record.fingerprint:
            return None
        owner, name = keys.secret_of(key)
        unchanged = ModRevisionIs(key, EQ, revision)
        try:
            opened = self._held.keyring.open(old.key, old.sealed, owner, name)
        except Unreadable as error:
            logger.error("%s", error)
            done.unreadable = str(error)
            done.forgotten += 1
            return unchanged, Delete(key)
        sealed = seal(record.recipient, owner, name, opened)
        done.rewritten += 1
        return unchanged, Put(key, records.encode(replace(old, key=record.fingerprint, sealed=sealed)))

    async def _write(self, compares: tuple[Compare, ...], ops: tuple[Op, ...], request: RequestId = NO_REQUEST) -> bool:
        size_bytes = ENTRY_BYTES + sum(len(op.value) for op in ops if isinstance(op, Put))
        done = await self._consensus.propose(Txn(compares, ops, request_id=request), size_bytes)
        check(done)
        return done.succeeded

    def _unchanged(self) -> ModRevisionIs:
        found = self._store.get(keys.SECRET_KEY)
        return ModRevisionIs(keys.SECRET_KEY, EQ, 0 if found is None else found[4])


def read_key(store: Store) -> SecretKeyRecord | None:
    """Return with which key secrets are encrypted, if there were any."""
    found = store.get(keys.SECRET_KEY)
    return None if found is None else records.decode(SecretKeyRecord, found[1])


def keys_in_use(record: SecretKeyRecord | None) -> tuple[str, ...]:
    """Return the fingerprints of the keys with which secrets are encrypted, the newest first."""
    return () if record is None else (record.fingerprint, *record.former)


def _missing(fingerprint: str) -> SecretKeyMissing:
    return SecretKeyMissing(
        f"the key of secrets {fingerprint} is on no node that can be reached", expected=EXPECTED, retry_after_s=5
    )
