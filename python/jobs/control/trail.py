"""Reads the audit trail: pages of what was done, newest first, with bounded work for each."""

from __future__ import annotations

import asyncio
from typing import Final

from jobs import keys, records
from jobs.consensus import Consensus
from jobs.control.audit import SUBMIT
from jobs.control.queries import PAGE_SCAN_ROWS, TURN_ROWS, decode_cursor, encode_cursor, may_see
from jobs.control.transitions import Transitions
from jobs.errors import Forbidden
from jobs.protocol.ids import JobId, array_id, job_time_ms
from jobs.protocol.model import AuditEntry, AuditPage
from jobs.records import AuditRecord, JobRecord
from jobs.service import AuditFilter, Caller
from jobs.store import Store, prefix_end

REQUEST_MS: Final = 1_000
"""The ids of one request's jobs are not further apart than this."""


class Trail:
    """Implements `service.AuditService`."""

    def __init__(self, consensus: Consensus, store: Store, transitions: Transitions) -> None:
        self._consensus = consensus
        self._store = store
        self._transitions = transitions

    async def page(self, caller: Caller, where: AuditFilter, *, limit: int, cursor: str | None) -> AuditPage:
        await self._consensus.barrier()
        if where.job is None:
            return await self._whole_page(caller, where, limit, cursor)
        return self._page_of_job(caller, where, where.job, limit, cursor)

    async def _whole_page(self, caller: Caller, where: AuditFilter, limit: int, cursor: str | None) -> AuditPage:
        start = keys.audit(where.from_ms, 0)
        end = prefix_end(keys.AUDIT) if where.to_ms is None else keys.audit(where.to_ms, 0)
        if cursor is not None:
            end = min(end, decode_cursor(cursor, keys.AUDIT))
        found: list[AuditEntry] = []
        scanned, more = 0, start < end
        while more and scanned < PAGE_SCAN_ROWS:
            rows, more = self._store.range(start, end, limit=TURN_ROWS, reverse=True)
            for key, value, *_ in rows:
                end, scanned = key, scanned + 1
                record = records.decode(AuditRecord, value)
                if _may_see(caller, record) and _matches(where, record):
                    found.append(_entry(record))
                    if len(found) == limit:
                        return AuditPage(entries=found, next_cursor=encode_cursor(key))
            await asyncio.sleep(0)
        return AuditPage(entries=found, next_cursor=encode_cursor(end) if more else None)

    def _page_of_job(self, caller: Caller, where: AuditFilter, job: JobId, limit: int, cursor: str | None) -> AuditPage:
        """What was done to the job stands under it; its submission comes last."""
        stored = self._transitions.read(job)
        if stored is not None and not may_see(caller, stored.record):
            raise Forbidden(f"job {job} belongs to uid {stored.record.owner}", expected="its owner or an admin")
        prefix = keys.audited_prefix(job)
        end = prefix_end(prefix) if cursor is None else decode_cursor(cursor, prefix)
        rows, _ = self._store.range(prefix, end, limit=limit, reverse=True, keys_only=True)
        told = [self._read(keys.audit_of(row[0])) for row in rows]
        rest = len(rows) == limit
        if not rest:
            told.append(self._submission(job, None if stored is None else stored.record))
        shown = [
            _entry(record)
            for record in told
            if record is not None and _may_see(caller, record) and _matches(where, record) and _is_within(where, record)
        ]
        return AuditPage(entries=shown, next_cursor=encode_cursor(rows[-1][0]) if rest else None)

    def _read(self, key: bytes) -> AuditRecord | None:
        found = self._store.get(key)
        return None if found is None else records.decode(AuditRecord, found[1])

    def _submission(self, job: JobId, record: JobRecord | None) -> AuditRecord | None:
        """Return the entry of the request that made the job, or what the job's own record says of it."""
        at_ms = job_time_ms(job)
        start, end = keys.audit(max(0, at_ms - REQUEST_MS), 0), keys.audit(at_ms + 1, 0)
        rows, _ = self._store.range(start, end, limit=PAGE_SCAN_ROWS, reverse=True)
        for row in rows:
            entry = records.decode(AuditRecord, row[1])
            if entry.action == SUBMIT and entry.subject <= job <= (entry.last or entry.subject):
                return entry
        if record is None or record.redrive_of is not None:
            return None
        detail = None if record.schedule is None else f"by schedule {record.schedule}"
        if record.is_task:
            detail = f"with array {array_id(job)}"
        return AuditRecord(
            at_ms=record.submitted_ms, uid=record.owner, action=SUBMIT, subject=job, detail=detail, owner=record.owner
        )


def _may_see(caller: Caller, record: AuditRecord) -> bool:
    return caller.admin or caller.uid in (record.uid, record.owner)


def _matches(where: AuditFilter, record: AuditRecord) -> bool:
    return (where.uid is None or record.uid == where.uid) and record.action.startswith(where.action)


def _is_within(where: AuditFilter, record: AuditRecord) -> bool:
    return where.from_ms <= record.at_ms and (where.to_ms is None or record.at_ms < where.to_ms)


def _entry(record: AuditRecord) -> AuditEntry:
    return AuditEntry(
        at_ms=record.at_ms,
        uid=record.uid,
        action=record.action,
        subject=record.subject,
        last=record.last,
        made=record.made,
        owner=record.owner,
        detail=record.detail,
    )
