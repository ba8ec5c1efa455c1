"""Who did what to what: an entry is stored by the transaction that makes the change it tells of."""

from __future__ import annotations

import secrets

from jobs import keys, records
from jobs.records import AuditRecord
from jobs.service import Caller
from jobs.store import Put


def audit_entry(caller: Caller, action: str, subject: str, now_ms: int, detail: str | None = None) -> Put:
    """Return what stores that `caller` did `action` (such as `job.cancel`) to `subject` (such as a job's id)."""
    record = AuditRecord(at_ms=now_ms, uid=caller.uid, action=action, subject=subject, detail=detail)
    return Put(keys.audit(now_ms, secrets.randbits(64)), records.encode(record))
