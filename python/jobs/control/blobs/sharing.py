"""What owners do with what is theirs: give it up, and let others have it as well."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from msgspec.structs import replace

from jobs import keys, records
from jobs.blobs.catalogue import Entry
from jobs.blobs.tickets import HASH_BYTES, SECRET_BYTES, BlobTicketParts, decode_ticket, encode_ticket
from jobs.consensus import Consensus
from jobs.control.audit import audit_entry
from jobs.control.blobs.collections import Collections
from jobs.control.blobs.lookup import entry_of, read_entry, read_usage
from jobs.control.blobs.owners import Owners, owned
from jobs.control.blobs.references import not_there
from jobs.control.blobs.stage import Stage
from jobs.control.blobs.writer import Writer
from jobs.control.once import was_done
from jobs.errors import NotFound
from jobs.protocol.model import BlobShare, BlobTicket
from jobs.records import BlobShareRecord, BlobTagRecord
from jobs.service import Caller
from jobs.store import Store, prefix_end

GIVEN_A_STEP: Final = 200
"""Children that one decision makes somebody's: three operations each."""
TAGS_A_STEP: Final = 200
TAG_ROWS: Final = 1_000
SHARES_A_STEP: Final = 500
RANDOM_BYTES: Final = 8
assert hashlib.sha256().digest_size == HASH_BYTES


class Sharing:
    """Ownership that ends, and that spreads."""

    def __init__(
        self,
        consensus: Consensus,
        store: Store,
        writer: Writer,
        owners: Owners,
        collections: Collections,
        is_admin: Callable[[int], bool],
    ) -> None:
        self._consensus = consensus
        self._store = store
        self._writer = writer
        self._owners = owners
        self._collections = collections
        self._is_admin = is_admin

    # --- giving up --------------------------------------------------------------------------------------------------

    async def forget(self, caller: Caller, blob: str) -> None:
        """As `service.BlobService.forget` says."""
        await self._consensus.barrier()
        if was_done(self._store, caller.request_id):
            return
        record = read_entry(self._store, blob)
        if record is None or caller.uid not in record.owners:
            raise not_there(blob)
        await self._drop_tags(caller, blob)
        await self._writer.change(partial(_forget, caller, blob), caller.request_id)

    async def _drop_tags(self, caller: Caller, blob: str) -> None:
        """Delete the tags of the caller's that name a blob."""
        prefix = keys.blob_reference(blob, "tag", "")
        start, more = prefix, True
        while more:
            rows, more = self._store.range(start, prefix_end(prefix), limit=TAG_ROWS, keys_only=True)
            names = [key[len(prefix) :].decode() for key, *_ in rows]
            mine = [name for name in names if self._owner_of_tag(name) == caller.uid]
            for first in range(0, len(mine), TAGS_A_STEP):
                await self._writer.change(partial(_untag, caller, blob, mine[first : first + TAGS_A_STEP]))
            if rows:
                start = rows[-1][0] + b"\x00"
            await asyncio.sleep(0)

    def _owner_of_tag(self, name: str) -> int | None:
        found = self._store.get(keys.blob_tag(name))
        return None if found is None else records.decode(BlobTagRecord, found[1]).owner

    # --- tickets ----------------------------------------------------------------------------------------------------

    async def share(self, caller: Caller, blob: str, wanted: BlobShare) -> BlobTicket:
        """As `service.BlobService.share` says. Asked again, another ticket is made: the secret of a lost answer is
        nowhere."""

        def decide(stage: Stage, now_ms: int) -> BlobTicket:
            owned(stage, caller, blob)
            expires_ms = now_ms + int(wanted.ttl_s * 1_000)
            share = expires_ms.to_bytes(8).hex() + secrets.token_hex(RANDOM_BYTES)
            secret = secrets.token_bytes(SECRET_BYTES)
            record = BlobShareRecord(blob, hashlib.sha256(secret).digest(), expires_ms, caller.uid)
            stage.put(keys.blob_share(share), records.encode(record))
            stage.note(audit_entry(caller, "blob.share", blob, now_ms, f"until {expires_ms}"))
            text = encode_ticket(BlobTicketParts(share=share, secret=secret, hash=blob))
            return BlobTicket(ticket=text, hash=blob, expires_ms=expires_ms)

        return await self._writer.change(decide)

    async def claim(self, caller: Caller, ticket: str) -> Entry:
        """As `Catalogue.claim` says: of the children, those that are also theirs who made the ticket."""
        parts = decode_ticket(ticket)
        share = await self._writer.change(lambda stage, now_ms: self._opened(stage, parts, now_ms))
        self._check_room(caller, await self._fresh(caller, share))
        async for children in self._collections.children_in_steps(parts.hash, GIVEN_A_STEP):
            await self._writer.change(partial(self._give_children, caller, parts, children))
        return await self._writer.change(partial(self._give, caller, parts))

    def _opened(self, stage: Stage, parts: BlobTicketParts, now_ms: int) -> BlobShareRecord:
        """Return the share of a ticket that is good. Raises NotFound."""
        found = stage.read(keys.blob_share(parts.share))
        record = None if found is None else records.decode(BlobShareRecord, found)
        given = hashlib.sha256(parts.secret).digest()
        if (
            record is None
            or not hmac.compare_digest(record.secret_sha256, given)
            or record.hash != parts.hash
            or record.expires_ms <= now_ms
        ):
            raise NotFound("the ticket is not valid, or not any more", field="ticket", expected="a new ticket")
        entry = stage.entry(parts.hash)
        if entry is None or not self._has(record.owner, entry.owners):
            raise NotFound(
                f"blob {parts.hash} is gone, or no longer theirs who made the ticket",
                field="ticket",
                expected="a new one",
            )
        return record

    def _has(self, uid: int, owners: Sequence[int]) -> bool:
        return uid in owners or self._is_admin(uid)

    async def _fresh(self, caller: Caller, share: BlobShareRecord) -> int:
        """Return how many bytes would come to the caller's."""
        hashes = [[share.hash]]
        hashes += [part async for part in self._collections.children_in_steps(share.hash)]
        found = (read_entry(self._store, blob) for part in hashes for blob in part)
        return sum(
            record.size_bytes
            for record in found
            if record is not None and caller.uid not in record.owners and self._has(share.owner, record.owners)
        )

    def _check_room(self, caller: Caller, more_bytes: int) -> None:
        """Raise BlobQuotaExceeded before any of a collection is given."""
        self._owners.check(caller.uid, read_usage(self._store, caller.uid), more_bytes)

    def _give_children(
        self, caller: Caller, parts: BlobTicketParts, children: Sequence[str], stage: Stage, now_ms: int
    ) -> None:
        share = self._opened(stage, parts, now_ms)
        for child in children:
            record = stage.entry(child)
            if record is not None and self._has(share.owner, record.owners):
                self._owners.give_entry(stage, caller, child, record, now_ms)

    def _give(self, caller: Caller, parts: BlobTicketParts, stage: Stage, now_ms: int) -> Entry:
        share = self._opened(stage, parts, now_ms)
        found = stage.entry(parts.hash)
        assert found is not None, "the ticket is good"
        record, is_new = self._owners.give_entry(stage, caller, parts.hash, found, now_ms)
        stage.touch(parts.hash, now_ms)
        if is_new:
            stage.note(audit_entry(caller, "blob.claim", parts.hash, now_ms, owner=share.owner))
        return entry_of(parts.hash, record, now_ms, stage.numbers)

    async def drop_expired(self, now_ms: int) -> None:
        """Delete tickets whose time has passed."""
        end = keys.blob_share(now_ms.to_bytes(8).hex())
        rows, _ = self._store.range(keys.BLOB_SHARES, end, limit=SHARES_A_STEP, keys_only=True)
        if rows:
            await self._writer.change(partial(_delete_all, [key for key, *_ in rows]))


def _untag(caller: Caller, blob: str, names: Sequence[str], stage: Stage, now_ms: int) -> None:
    for name in names:
        record = stage.tag(name)
        if record is not None and record.owner == caller.uid and record.hash == blob:
            stage.delete_tag(name, record)
            stage.note(audit_entry(caller, "blob.untag", name, now_ms, blob))


def _forget(caller: Caller, blob: str, stage: Stage, now_ms: int) -> None:
    record = stage.entry(blob)
    if record is None or caller.uid not in record.owners:
        raise not_there(blob)
    stage.take(caller.uid, blob)
    stage.put_entry(blob, replace(record, owners=tuple(uid for uid in record.owners if uid != caller.uid)))
    stage.note(audit_entry(caller, "blob.forget", blob, now_ms))


def _delete_all(found: Sequence[bytes], stage: Stage, _: int) -> None:
    for key in found:
        stage.delete(key)
