"""The audit trail."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from jobs.api.answer import Answer, json_answer
from jobs.api.call import Call
from jobs.api.handlers.base import Base, Limit, Query, checked_job_id
from jobs.protocol.model import TimeMs
from jobs.service import AuditFilter


class AuditQuery(Query, frozen=True):
    job: str | None = None
    """What was done to this job."""
    uid: Annotated[int, Meta(ge=0, lt=1 << 32)] | None = None
    """What this user did."""
    action: Annotated[str, Meta(max_length=64)] = ""
    """What it was, or how that begins: `job.`"""
    from_ms: TimeMs = 0
    to_ms: TimeMs | None = None
    """Before this."""
    limit: Limit = 100
    cursor: str | None = None


class AuditHandlers(Base):
    async def audit(self, call: Call) -> Answer:
        query: AuditQuery = call.query
        where = AuditFilter(
            job=None if query.job is None else checked_job_id(query.job, "job"),
            uid=query.uid,
            action=query.action,
            from_ms=query.from_ms,
            to_ms=query.to_ms,
        )
        page = await self._service.audit.page(call.caller, where, limit=query.limit, cursor=query.cursor)
        return json_answer(page)
