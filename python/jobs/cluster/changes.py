"""Changes of the members, made at the leader: tickets, who is let in, moves, or is removed, and who is to lead."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import msgspec
from msgspec import Struct

from jobs import keys
from jobs._native import Endpoint
from jobs.clock import wall_ms
from jobs.consensus import Consensus, find_member
from jobs.consensus.membership import GuestRecord, find_guest, put_guest, remove_guest, remove_member
from jobs.control.audit import audit_entry
from jobs.control.once import try_id, was_done
from jobs.errors import MembershipConflict
from jobs.protocol.ids import NO_REQUEST, RequestId
from jobs.protocol.model import TicketInfo
from jobs.service import Caller
from jobs.store import Put, Store, Txn

CHANGE_TRIES: Final = 5
HANDOVER_VERSION: Final = b"\x01"


class _Handover(Struct, frozen=True, array_like=True):
    """The last request to hand leadership over, and in which term it came."""

    request: bytes
    term: int


class Changes:
    def __init__(self, consensus: Consensus, store: Store) -> None:
        self._consensus = consensus
        self._store = store
        self._tried: _Handover | None = None
        """The last request to hand leadership over, and the term in which this member last tried to."""

    async def change(self, make: Callable[[RequestId], Txn | None], request: RequestId) -> None:
        """Carry out a change of the members, if there is one to be made, again when another one came in between; once
        for a request, however often it comes."""
        for number in range(CHANGE_TRIES):
            try:
                if (txn := make(try_id(request, number))) is not None:
                    await self._consensus.change_members(txn)
                return
            except MembershipConflict as error:
                if error.retry_after_s is None or number + 1 == CHANGE_TRIES:
                    raise

    # --- tickets ------------------------------------------------------------------------------------------------------

    async def make_guest(self, caller: Caller, ttl_s: float) -> tuple[GuestRecord, str]:
        """Let a new key ask to join, and return it with its secret. A request that is sent again has another key made
        in place of the first one, of which nobody has the secret."""
        secret, key = Endpoint.generate_key()
        now_ms = wall_ms()
        expires_ms = now_ms + int(ttl_s * 1_000)
        guest = GuestRecord(id=key, expires_ms=expires_ms, made_by=caller.uid, request=caller.request_id)
        entry = audit_entry(caller, "cluster.ticket", key, now_ms, f"expires_ms={expires_ms}")
        await self.change(lambda _: put_guest(self._consensus.members, guest, now_ms, (entry,)), NO_REQUEST)
        return guest, secret

    async def guests(self) -> list[TicketInfo]:
        """Return the tickets that may still be used, or were by a member that has no vote yet."""
        await self._consensus.barrier()
        members, now_ms = self._consensus.members, wall_ms()
        return [
            TicketInfo(
                id=guest.id,
                expires_ms=guest.expires_ms,
                made_by=guest.made_by,
                used_by=None if guest.used_by is None else members.name_of(guest.used_by),
            )
            for guest in sorted(members.guests, key=lambda one: one.expires_ms)
            if guest.expires_ms > now_ms and not members.is_spent(guest)
        ]

    async def revoke(self, caller: Caller, ticket: str) -> None:
        """Let a ticket's key in no more. Raises NotFound, InvalidRequest."""
        if was_done(self._store, caller.request_id):
            return
        guest = find_guest(self._consensus.members, ticket)
        entry = audit_entry(caller, "cluster.ticket_revoke", guest.id, wall_ms())
        await self.change(
            lambda request: remove_guest(self._consensus.members, guest.id, (entry,), request), caller.request_id
        )

    # --- members ------------------------------------------------------------------------------------------------------

    async def remove(self, caller: Caller, member: str) -> None:
        """Remove a member by its name or id. Raises NotFound and MembershipConflict."""
        if was_done(self._store, caller.request_id):
            return
        consensus = self._consensus
        record = find_member(consensus.members, member)
        await self._check_that_enough_stay(record.id)
        entry = audit_entry(caller, "cluster.remove", record.id, wall_ms(), record.name)
        await self.change(
            lambda request: remove_member(consensus.members, record.id, (entry,), request), caller.request_id
        )

    async def _check_that_enough_stay(self, leaving: str) -> None:
        """Raise MembershipConflict when the voters that answer would be no majority without this one."""
        consensus = self._consensus
        stay = [member for member in consensus.members.voters if member != leaving]
        others = [member for member in stay if member != consensus.me]
        heard = await asyncio.gather(*map(consensus.hears, others))
        silent = [member for member, answers in zip(others, heard, strict=True) if not answers]
        if stay and len(stay) - len(silent) <= len(stay) / 2:
            names = ", ".join(sorted(consensus.members.name_of(member) for member in silent))
            raise MembershipConflict(
                f"without {consensus.members.name_of(leaving)} too few would answer: not {names}",
                expected="those to be back, or to be removed first",
            )

    # --- who leads ----------------------------------------------------------------------------------------------------

    async def transfer(self, caller: Caller, wanted: str | None) -> str:
        """Let another member lead, and return who does. Raises NotFound, MembershipConflict, Unavailable.

        The request is on record with the term before anything happens. When it comes again in a later term leadership
        has changed hands since, so it was carried out: it does not change hands once more. Unless nobody took over, and
        this member leads in the next term for that: then it is tried again.
        """
        consensus = self._consensus
        to = None if wanted is None else find_member(consensus.members, wanted).id
        if to == consensus.me:
            return consensus.members.name_of(consensus.me)
        request, term = caller.request_id, consensus.term
        if was_done(self._store, request):
            nobody_else_led = self._tried in (_Handover(request, term), _Handover(request, term - 1))
            if not nobody_else_led and self._last_handover() != _Handover(request, term):
                return consensus.members.name_of(consensus.me)
        else:
            await consensus.check_successor(to)
            entry = audit_entry(caller, "cluster.transfer", consensus.me if to is None else to, wall_ms())
            record = Put(keys.HANDOVER, HANDOVER_VERSION + msgspec.msgpack.encode(_Handover(request, term)))
            await consensus.propose(Txn((), (record, entry), request_id=request))
        self._tried = _Handover(request, term)
        return consensus.members.name_of(await consensus.transfer(to))

    def _last_handover(self) -> _Handover | None:
        found = self._store.get(keys.HANDOVER)
        if found is None or found[1][:1] != HANDOVER_VERSION:
            return None
        return msgspec.msgpack.decode(found[1][1:], type=_Handover)
