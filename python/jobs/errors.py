"""Every error that a client can be given: its stable code and its HTTP status, in one table."""

from __future__ import annotations

from typing import ClassVar


class JobsError(Exception):
    """Base of the errors that carry a stable code.

    `detail` says what is wrong with what, `field` where in the request (a JSON path such as `$.payload.argv`),
    `expected` what would be right, `retry_after_s` when to try again where that helps.
    """

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"

    def __init__(
        self,
        detail: str,
        *,
        field: str | None = None,
        expected: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.field = field
        self.expected = expected
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        where = f" at {self.field}" if self.field else ""
        hint = f" (expected {self.expected})" if self.expected else ""
        return f"{self.detail}{where}{hint}"


class InternalError(JobsError):
    pass


class InvalidRequest(JobsError):
    code, status, title = "invalid_request", 400, "The request is not valid"


class Forbidden(JobsError):
    code, status, title = "forbidden", 403, "Not allowed"


class NotFound(JobsError):
    code, status, title = "not_found", 404, "No such object"


class MethodNotAllowed(JobsError):
    code, status, title = "method_not_allowed", 405, "Method not allowed"


class RequestTimeout(JobsError):
    code, status, title = "request_timeout", 408, "The request did not arrive in time"


class IdempotencyConflict(JobsError):
    code, status, title = "idempotency_conflict", 409, "Idempotency key used for another request"


class NotFinished(JobsError):
    code, status, title = "not_finished", 409, "The job has not finished"


class AlreadyStarted(JobsError):
    code, status, title = "already_started", 409, "The job has started or ended"


class NotRedrivable(JobsError):
    code, status, title = "not_redrivable", 409, "The job cannot be redriven"


class QueueClosed(JobsError):
    code, status, title = "queue_closed", 409, "The queue takes no jobs"


class WorkerStopping(JobsError):
    code, status, title = "worker_stopping", 409, "The worker stops"


class RevisionConflict(JobsError):
    code, status, title = "revision_conflict", 409, "Changed by somebody else meanwhile"


class Compacted(JobsError):
    code, status, title = "compacted", 410, "That revision is no longer kept"


class Gone(JobsError):
    code, status, title = "gone", 410, "No longer kept"


class LogsGone(Gone):
    code, title = "logs_gone", "The output is no longer kept"


class ResultGone(Gone):
    code, title = "result_gone", "Done before; its result is no longer kept"


class PayloadTooLarge(JobsError):
    code, status, title = "payload_too_large", 413, "Too large"


class UnsupportedMediaType(JobsError):
    code, status, title = "unsupported_media_type", 415, "Unsupported media type"


class HeadersTooLarge(JobsError):
    code, status, title = "headers_too_large", 431, "The request's head is too large"


class QueueFull(JobsError):
    code, status, title = "queue_full", 429, "The queue is full"


class SchedulesFull(JobsError):
    code, status, title = "schedules_full", 429, "Too many schedules"


class TooManyRequests(JobsError):
    code, status, title = "too_many_requests", 429, "Too many requests"


class Unavailable(JobsError):
    code, status, title = "unavailable", 503, "The node cannot serve this now"


class NotLeader(Unavailable):
    code, title = "not_leader", "This node does not lead the cluster"


class NoLeader(Unavailable):
    code, title = "no_leader", "The cluster has no leader"


class OutcomeUnknown(Unavailable):
    code, title = "outcome_unknown", "Whether the request took effect is not known"


class MembershipConflict(JobsError):
    code, status, title = "membership_conflict", 409, "The cluster's members cannot be changed so"


class StorageFull(JobsError):
    code, status, title = "storage_full", 507, "No room left in the store"


class BlobQuotaExceeded(StorageFull):
    code, title = "blob_quota_exceeded", "The owner's blobs take too much"


class TagTaken(JobsError):
    code, status, title = "tag_taken", 409, "The tag names another blob"


class RangeNotSatisfiable(JobsError):
    code, status, title = "range_not_satisfiable", 416, "The range is beyond the content"


class BlobUnavailable(Unavailable):
    code, title = "blob_unavailable", "No node that can be reached has the blob"


class BlobDamaged(JobsError):
    code, status, title = "blob_damaged", 500, "The blob is damaged, and no good copy was found"


class LinkUnavailable(Unavailable):
    code, title = "link_unavailable", "The other cluster is not reached"


class ReplicationConflict(JobsError):
    code, status, title = "replication_conflict", 409, "The target was changed by others"


class ReplicationLoop(JobsError):
    code, status, title = "replication_loop", 409, "What is copied would come back to where it comes from"


class BackupInvalid(JobsError):
    code, status, title = "backup_invalid", 422, "The backup is damaged, incomplete or of another kind"


class OperationUnderWay(JobsError):
    code, status, title = "operation_under_way", 409, "Another job is at this already"


class SecretKeyMissing(Unavailable):
    code, title = "secret_key_missing", "The key of secrets is not there"


class LeaseNotFound(NotFound):
    code, title = "lease_not_found", "No such lease"


def error_types() -> dict[str, type[JobsError]]:
    """Return every error class by its code."""
    found: dict[str, type[JobsError]] = {}
    todo: list[type[JobsError]] = [JobsError]
    while todo:
        cls = todo.pop()
        found.setdefault(cls.code, cls)
        todo.extend(cls.__subclasses__())
    found["internal"] = InternalError
    return found
