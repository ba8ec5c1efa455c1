"""Who did what to which job."""

from __future__ import annotations

from jobs.protocol.ids import JobId
from jobs.protocol.model.base import Model


class AuditEntry(Model, frozen=True):
    """Who did what to what."""

    at_ms: int
    uid: int
    """Who."""
    action: str
    """Did what, such as `job.cancel`."""
    subject: str
    """To what: the id of a job, the name of a worker."""
    last: str | None
    """The last of several jobs, of which `subject` is the first."""
    made: JobId | None
    """A job that this has made."""
    owner: int | None
    """uid of the subject's owner."""
    detail: str | None


class AuditPage(Model, frozen=True):
    entries: list[AuditEntry]
    next_cursor: str | None
