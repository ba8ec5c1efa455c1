"""The one table of routes: it drives routing, the decoding of bodies and queries, and the OpenAPI document."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias
from urllib.parse import unquote

import msgspec
from msgspec import Struct

from jobs import errors
from jobs.api.answer import Answer
from jobs.api.call import Call, list_fields
from jobs.api.handlers import Handlers
from jobs.api.handlers import audit as audit_calls
from jobs.api.handlers import backups as backup_calls
from jobs.api.handlers import blobs as blob_calls
from jobs.api.handlers import content as content_calls
from jobs.api.handlers import deadletters as dead_letter_calls
from jobs.api.handlers import dependencies as dependency_calls
from jobs.api.handlers import jobs as job_calls
from jobs.api.handlers import kv as kv_calls
from jobs.api.handlers import node as node_calls
from jobs.api.handlers import queues as queue_calls
from jobs.api.handlers import replication as replication_calls
from jobs.api.handlers import schedules as schedule_calls
from jobs.api.handlers import secrets as secret_calls
from jobs.api.handlers.base import Query, ReadQuery
from jobs.api.streams import NDJSON
from jobs.protocol import model

Handler: TypeAlias = Callable[[Handlers, Call], Awaitable[Answer]]
Errors: TypeAlias = tuple[type[errors.JobsError], ...]

PLACEHOLDER: Final = "{id}"
PLACE: Final = 3
"""Which part of a path, split at its slashes, a placeholder is."""

_READ: Final[Errors] = (errors.Forbidden, errors.NotFound, errors.Gone)
_ADMIN: Final[Errors] = (errors.Forbidden,)
_WRITE: Final[Errors] = (errors.StorageFull,)
_REDRIVE: Final[Errors] = (*_WRITE, errors.QueueClosed, errors.QueueFull)
_SUBMIT: Final[Errors] = (*_WRITE, errors.IdempotencyConflict, errors.QueueClosed, errors.QueueFull)
_BLOB_READ: Final[Errors] = (errors.NotFound, errors.BlobUnavailable, errors.BlobDamaged, errors.StorageFull)
_BLOB_WRITE: Final[Errors] = (*_WRITE, errors.BlobQuotaExceeded, errors.TagTaken)
_POLL: Final[Errors] = (errors.TooManyRequests,)
_LINK: Final[Errors] = (*_WRITE, errors.Forbidden, errors.TooManyRequests)
_BLOB: Final[Errors] = (errors.NotFound, errors.TooManyRequests)
_MADE: Final = "The job is known by its idempotency key, or else by the request id: the answer tells it."
_SET: Final = "By the request id: it is not changed again, and the answer tells how it is now."
_ENDED: Final = "What has ended stays so, and is told as already final."
_PUT_AWAY: Final = "What has been put away stays so, and is not counted again."
_REMEMBERED: Final = "By the request id: the answer is the same again."
ALWAYS: Final[Errors] = (errors.InvalidRequest, errors.RequestTimeout, errors.InternalError, errors.Unavailable)


class Route(Struct, frozen=True, kw_only=True):
    """One operation."""

    method: str
    path: str
    handler: Handler
    summary: str
    query: type[Query] = Query
    body: Any = None
    answer: Any = None
    """Type of the body of a success; None for an empty one."""
    status: int = 200
    again: str | None = None
    """What it means when the status is 200 instead."""
    local: bool = False
    """About the node that is asked, and answered by it, whoever leads."""
    repeat: str | None = None
    """Of those that change something: why it does no harm to send it again with the same request id."""
    streams: tuple[str, ...] = ()
    """Content types of a success that goes on, instead of `answer`."""
    takes_stream: bool = False
    """The body is bytes of any number, which are taken as they come; then it is a local one."""
    also: tuple[tuple[int, str], ...] = ()
    """Further statuses of a success, and what they mean."""
    errors: Errors = ()

    @property
    def in_pieces(self) -> bool:
        """Whether the body or the answer may go on."""
        return bool(self.streams) or self.takes_stream

    @property
    def is_slow(self) -> bool:
        """Whether the answer may take long: it waits for something, or goes on."""
        return self.in_pieces or "timeout_s" in self.query.__struct_fields__


ROUTES: Final = (
    # --- jobs
    Route(
        method="POST", path="/v1/jobs", handler=Handlers.submit, body=model.JobSubmit,
        answer=model.Submitted, status=201, again="The idempotency key was known: the job it made",
        errors=(*_SUBMIT, errors.NotFound),
        summary="Submit a job",
        repeat=_MADE,
    ),
    Route(
        method="POST", path="/v1/jobs:batch", handler=Handlers.submit_batch, body=model.Batch,
        answer=model.BatchSubmitted, status=201, errors=(*_SUBMIT, errors.NotFound),
        summary="Submit several jobs, all or none",
        repeat=_MADE,
    ),
    Route(
        method="GET", path="/v1/jobs", handler=Handlers.list_jobs, query=job_calls.ListQuery, answer=model.JobPage,
        summary="List jobs, page by page",
    ),
    Route(
        method="GET", path="/v1/jobs:watch", handler=Handlers.watch_jobs, query=job_calls.JobsWatchQuery,
        answer=model.JobEvent, streams=("text/event-stream",), errors=(errors.Compacted, *_POLL),
        summary="Follow the changes of jobs",
    ),
    Route(
        method="GET", path="/v1/jobs/{id}", handler=Handlers.get_job, query=ReadQuery, answer=model.JobDetail,
        errors=_READ, summary="Read a job and what was submitted",
    ),
    Route(
        method="GET", path="/v1/jobs/{id}/result", handler=Handlers.result, query=job_calls.ResultQuery,
        answer=model.JobResult, errors=(*_READ, errors.NotFinished, *_POLL), summary="Read what came of a job",
    ),
    Route(
        method="GET", path="/v1/jobs/{id}/wait", handler=Handlers.wait, query=job_calls.WaitQuery,
        answer=model.JobView, errors=(*_READ, *_POLL), summary="Wait for a job to end, or for the time to pass",
    ),
    Route(
        method="POST", path="/v1/jobs/{id}/cancel", handler=Handlers.cancel, answer=model.CancelOutcome, errors=_READ,
        summary="End a job",
        repeat=_ENDED,
    ),
    Route(
        method="POST", path="/v1/jobs:cancel", handler=Handlers.cancel_jobs, body=model.CancelMany,
        answer=model.CancelPage, errors=(errors.Forbidden,), summary="End the jobs of a selection, page by page",
        repeat=_ENDED,
    ),
    Route(
        method="GET", path="/v1/jobs/{id}/attempts", handler=Handlers.attempts, query=ReadQuery,
        answer=model.AttemptList, errors=_READ, summary="Read how each attempt of a job ended",
    ),
    Route(
        method="GET", path="/v1/jobs/{id}/explain", handler=Handlers.explain, answer=model.Explanation, errors=_READ,
        summary="Say why a job is where it is",
    ),
    Route(
        method="GET", path="/v1/jobs/{id}/logs", handler=Handlers.logs, query=job_calls.LogsQuery,
        answer=model.LogEvent, streams=("application/octet-stream", "text/event-stream"),
        errors=(*_READ, errors.LogsGone, *_POLL),
        summary="Read or follow what a job writes",
    ),
    Route(
        method="GET", path="/v1/jobs/{id}/watch", handler=Handlers.watch_job, query=job_calls.WatchQuery,
        answer=model.JobEvent, streams=("text/event-stream",), errors=(*_READ, errors.Compacted, *_POLL),
        summary="Follow the changes of a job",
    ),
    # --- dependencies
    Route(
        method="POST", path="/v1/jobs/{id}/dependencies", handler=Handlers.depend, body=model.Depend,
        answer=model.JobView, errors=(*_READ, *_WRITE, errors.AlreadyStarted),
        summary="Let a job that has not started wait for others",
        repeat="What the job waits for already changes nothing.",
    ),
    Route(
        method="GET", path="/v1/jobs/{id}/graph", handler=Handlers.graph, query=dependency_calls.GraphQuery,
        answer=model.JobGraph, errors=_READ, summary="Read what a job depends on, and what depends on it",
    ),
    # --- arrays
    Route(
        method="GET", path="/v1/jobs/{id}/array", handler=Handlers.get_array, answer=model.ArrayView, errors=_READ,
        summary="Read how far an array is",
    ),
    Route(
        method="GET", path="/v1/jobs/{id}/array/watch", handler=Handlers.watch_array, answer=model.ArrayView,
        streams=("text/event-stream",), errors=(*_READ, *_POLL),
        summary="Follow how far an array is, at most once a second, until it has ended",
    ),
    Route(
        method="POST", path="/v1/jobs/{id}/array/cancel", handler=Handlers.cancel_tasks, body=model.TasksCancel,
        answer=model.CancelOutcome, errors=_READ, summary="End some of an array's tasks",
        repeat=_ENDED,
    ),
    Route(
        method="POST", path="/v1/jobs/{id}/retry", handler=Handlers.retry_array, body=model.ArrayRetry,
        answer=model.Submitted, status=201, again="They were repeated so before: the array that does",
        errors=(*_READ, *_SUBMIT, errors.NotRedrivable),
        summary="Repeat the tasks of an ended array that did not complete, as a new array",
        repeat="All tasks together are repeated by one array; that of some is known as a job is that was submitted.",
    ),
    # --- workers
    Route(
        method="GET", path="/v1/workers", handler=Handlers.list_workers, answer=model.WorkerList,
        summary="List the workers",
    ),
    Route(
        method="POST", path="/v1/workers/{id}/drain", handler=Handlers.drain_worker, answer=model.WorkerView,
        errors=_READ, summary="Give a worker no more jobs",
        repeat=_SET,
    ),
    Route(
        method="POST", path="/v1/workers/{id}/resume", handler=Handlers.resume_worker, answer=model.WorkerView,
        errors=(*_READ, errors.WorkerStopping), summary="Give a drained worker jobs again",
        repeat=_SET,
    ),
    # --- queues and owners
    Route(
        method="GET", path="/v1/queues", handler=Handlers.list_queues, query=queue_calls.QueuesQuery,
        answer=model.QueuePage, summary="List the queues that have settings or jobs, page by page",
    ),
    Route(
        method="GET", path="/v1/queues/{id}", handler=Handlers.get_queue, answer=model.QueueView,
        summary="Read a queue: its settings, and how many jobs are where",
    ),
    Route(
        method="PUT", path="/v1/queues/{id}", handler=Handlers.put_queue, body=model.QueueSettings,
        answer=model.QueueView, errors=_ADMIN, summary="Replace a queue's settings; what is left out is as by default",
        repeat=_SET,
    ),
    Route(
        method="PATCH", path="/v1/queues/{id}", handler=Handlers.change_queue, body=model.QueueChange,
        answer=model.QueueView, errors=_ADMIN, summary="Change some of a queue's settings",
        repeat=_SET,
    ),
    Route(
        method="POST", path="/v1/queues/{id}/pause", handler=Handlers.pause_queue, answer=model.QueueView,
        errors=_ADMIN, summary="Start nothing of a queue any more; what runs goes on",
        repeat=_SET,
    ),
    Route(
        method="POST", path="/v1/queues/{id}/resume", handler=Handlers.resume_queue, answer=model.QueueView,
        errors=_ADMIN, summary="Start jobs of a paused queue again",
        repeat=_SET,
    ),
    Route(
        method="POST", path="/v1/queues/{id}/drain", handler=Handlers.drain_queue, answer=model.QueueView,
        errors=_ADMIN, summary="Take no more jobs in; what waits is still run",
        repeat=_SET,
    ),
    Route(
        method="POST", path="/v1/queues/{id}/open", handler=Handlers.open_queue, answer=model.QueueView,
        errors=_ADMIN, summary="Take jobs in again",
        repeat=_SET,
    ),
    Route(
        method="GET", path="/v1/owners/{id}", handler=Handlers.get_owner, answer=model.OwnerView, errors=_ADMIN,
        summary="Read an owner's limits, and how many jobs are where",
    ),
    Route(
        method="PUT", path="/v1/owners/{id}", handler=Handlers.put_owner, body=model.OwnerSettings,
        answer=model.OwnerView, errors=_ADMIN, summary="Replace an owner's settings; what is left out is as by default",
        repeat=_SET,
    ),
    Route(
        method="PATCH", path="/v1/owners/{id}", handler=Handlers.change_owner, body=model.OwnerChange,
        answer=model.OwnerView, errors=_ADMIN, summary="Change some of an owner's settings",
        repeat=_SET,
    ),
    # --- dead letters
    Route(
        method="GET", path="/v1/dead-letters", handler=Handlers.list_dead_letters,
        query=dead_letter_calls.DeadLettersQuery, answer=model.DeadLetterPage,
        summary="List the jobs that failed for good, page by page",
    ),
    Route(
        method="POST", path="/v1/jobs/{id}/redrive", handler=Handlers.redrive, answer=model.Submitted, status=201,
        again="It was redriven before: the job that repeats it", errors=(*_READ, *_REDRIVE, errors.NotRedrivable),
        summary="Repeat a failed job as a new one",
        repeat="A job is redriven once: the answer tells what repeats it.",
    ),
    Route(
        method="POST", path="/v1/dead-letters:redrive", handler=Handlers.redrive_dead_letters,
        body=model.DeadLetterSelection, answer=model.RedrivePage, errors=(errors.Forbidden, *_REDRIVE),
        summary="Repeat the jobs of a selection of dead letters, page by page",
        repeat="Each job is redriven once; those of a lost answer are not told again.",
    ),
    Route(
        method="DELETE", path="/v1/dead-letters/{id}", handler=Handlers.purge, answer=model.PurgeOutcome, errors=_READ,
        summary="Put a dead letter away; the job is kept as any other is",
        repeat=_PUT_AWAY,
    ),
    Route(
        method="POST", path="/v1/dead-letters:purge", handler=Handlers.purge_dead_letters,
        body=model.DeadLetterSelection, answer=model.PurgePage, errors=(errors.Forbidden,),
        summary="Put the dead letters of a selection away, page by page",
        repeat=_PUT_AWAY,
    ),
    # --- audit trail
    Route(
        method="GET", path="/v1/audit", handler=Handlers.audit, query=audit_calls.AuditQuery, answer=model.AuditPage,
        errors=(errors.Forbidden,), summary="Read who did what, page by page",
    ),
    # --- schedules
    Route(
        method="GET", path="/v1/schedules", handler=Handlers.list_schedules, query=schedule_calls.SchedulesQuery,
        answer=model.SchedulePage, summary="List schedules by name, page by page",
    ),
    Route(
        method="GET", path="/v1/schedules/{id}", handler=Handlers.get_schedule, answer=model.ScheduleDetail,
        errors=_READ, summary="Read a schedule and the job that it makes",
    ),
    Route(
        method="PUT", path="/v1/schedules/{id}", handler=Handlers.put_schedule, body=model.Schedule,
        query=schedule_calls.SetScheduleQuery, answer=model.ScheduleView, status=201,
        again="It was there: as it is now",
        errors=(*_WRITE, errors.Forbidden, errors.RevisionConflict, errors.SchedulesFull),
        summary="Make a schedule, or replace what it says",
        repeat=_SET,
    ),
    Route(
        method="DELETE", path="/v1/schedules/{id}", handler=Handlers.delete_schedule, status=204,
        query=schedule_calls.SetScheduleQuery, errors=(*_READ, errors.RevisionConflict),
        summary="Delete a schedule; its jobs go on",
        repeat="By the request id: one that somebody has made anew since is not deleted.",
    ),
    Route(
        method="POST", path="/v1/schedules/{id}/pause", handler=Handlers.pause_schedule, answer=model.ScheduleView,
        errors=_READ, summary="Make no jobs until it is resumed",
        repeat=_SET,
    ),
    Route(
        method="POST", path="/v1/schedules/{id}/resume", handler=Handlers.resume_schedule, answer=model.ScheduleView,
        errors=_READ, summary="Go on from now",
        repeat=_SET,
    ),
    Route(
        method="POST", path="/v1/schedules/{id}/trigger", handler=Handlers.trigger_schedule, answer=model.Submitted,
        status=201, again="The request had made it before",
        errors=(*_READ, *_WRITE, errors.QueueClosed, errors.QueueFull),
        summary="Make a job now, whatever the timetable says",
        repeat="By the request id: the answer tells the job that was made then.",
    ),
    Route(
        method="GET", path="/v1/schedules/{id}/next", handler=Handlers.next_times, query=schedule_calls.TimesQuery,
        answer=model.ScheduleTimes, errors=_READ, summary="Tell the times to come",
    ),
    Route(
        method="POST", path="/v1/schedules:preview", handler=Handlers.preview_schedule, body=model.TimetablePreview,
        answer=model.ScheduleTimes, summary="Tell the times of a timetable that no schedule has",
        repeat="It changes nothing.",
    ),
    # --- secrets
    Route(
        method="GET", path="/v1/secrets", handler=Handlers.list_secrets, query=secret_calls.SecretsQuery,
        answer=model.SecretPage, errors=_ADMIN, summary="List secrets by owner and name, page by page; no values",
    ),
    Route(
        method="GET", path="/v1/secrets/{id}", handler=Handlers.get_secret, query=secret_calls.SecretQuery,
        answer=model.SecretView, errors=_READ, summary="Read what is told of a secret, which is not its value",
    ),
    Route(
        method="PUT", path="/v1/secrets/{id}", handler=Handlers.set_secret, query=secret_calls.SecretQuery,
        body=model.SecretPut, answer=model.SecretView, status=201, again="It was there: as it is now",
        errors=(*_WRITE, errors.Forbidden, errors.TooManyRequests, errors.SecretKeyMissing),
        summary="Keep a value that only jobs of its owner are given",
        repeat=_SET,
    ),
    Route(
        method="DELETE", path="/v1/secrets/{id}", handler=Handlers.delete_secret, query=secret_calls.SecretQuery,
        status=204, errors=_READ, summary="Delete a secret; jobs that have it keep it",
        repeat="By the request id: one that was made anew since is not deleted.",
    ),
    Route(
        method="GET", path="/v1/secret-key", handler=Handlers.get_secret_key, answer=model.SecretKeyView,
        errors=_ADMIN, summary="Read which key secrets are encrypted with",
    ),
    Route(
        method="POST", path="/v1/secret-key:rotate", handler=Handlers.rotate_secret_key, body=model.SecretKeyRotate,
        answer=model.SecretKeyRotated, errors=(*_ADMIN, errors.SecretKeyMissing),
        summary="Encrypt all secrets with a new key",
        repeat="By the request id: it is not begun once more, and the answer comes when it has ended.",
    ),
    # --- blobs
    Route(
        method="POST", path="/v1/blobs", handler=Handlers.put_blob, query=content_calls.UploadQuery, takes_stream=True,
        answer=model.BlobAdded, status=201, again="It was the caller's before", local=True,
        errors=(*_BLOB_WRITE, errors.Forbidden, errors.PayloadTooLarge, errors.UnsupportedMediaType, *_POLL),
        summary="Add a blob: the body is its content, of any size",
        repeat="The same content is the same blob.",
    ),
    Route(
        method="POST", path="/v1/blobs:collection", handler=Handlers.put_collection, body=model.BlobCollection,
        answer=model.BlobAdded, status=201, again="It was the caller's before", local=True,
        errors=(*_BLOB_WRITE, errors.Forbidden, *_BLOB), summary="Make one blob of several: files by name",
        repeat="The same files are the same collection.",
    ),
    Route(
        method="GET", path="/v1/blobs/{id}", handler=Handlers.get_blob, query=content_calls.DownloadQuery, local=True,
        streams=(content_calls.CONTENT_TYPE,), also=content_calls.STATUSES,
        errors=(*_BLOB_READ, errors.RangeNotSatisfiable, errors.HeadersTooLarge, *_POLL),
        summary="Read a blob, or a part of it by Range; of a collection one of its files by `path`",
    ),
    Route(
        method="HEAD", path="/v1/blobs/{id}", handler=Handlers.head_blob, query=content_calls.DownloadQuery,
        local=True, streams=(content_calls.CONTENT_TYPE,), also=content_calls.STATUSES[-1:],
        errors=(*_BLOB_READ, errors.HeadersTooLarge, *_POLL),
        summary="Tell what reading a blob would give, and how much",
    ),
    Route(
        method="GET", path="/v1/blobs/{id}/files", handler=Handlers.collection_files, answer=model.BlobFiles,
        local=True, errors=_BLOB_READ, summary="Read the names of a collection's files, and their hashes",
    ),
    Route(
        method="GET", path="/v1/blobs", handler=Handlers.list_blobs, query=blob_calls.BlobsQuery,
        answer=model.BlobPage, errors=(errors.Forbidden,), summary="List blobs by their hashes, page by page",
    ),
    Route(
        method="GET", path="/v1/blobs/{id}/stat", handler=Handlers.stat_blob, answer=model.BlobView,
        errors=(errors.NotFound,), summary="Read who has a blob, and what keeps it",
    ),
    Route(
        method="DELETE", path="/v1/blobs/{id}", handler=Handlers.forget_blob, status=204, errors=_BLOB,
        summary="Give a blob up, with the caller's tags on it; it goes when nothing refers to it any more",
        repeat="By the request id: one that was added anew since is not given up.",
    ),
    Route(
        method="POST", path="/v1/blobs/{id}/share", handler=Handlers.share_blob, body=model.BlobShare,
        answer=model.BlobTicket, status=201, errors=(*_BLOB, *_WRITE),
        summary="Make a ticket by which others may have a blob as well",
        repeat="Another ticket is made beside that of the lost answer, which nobody has.",
    ),
    Route(
        method="POST", path="/v1/blobs:collect", handler=Handlers.collect_blobs, body=model.BlobCollect,
        answer=model.BlobCollectPage, errors=(*_ADMIN, errors.TooManyRequests),
        summary="Take what nothing refers to out of the catalogue, page by page",
        repeat="What is gone is not told again.",
    ),
    Route(
        method="GET", path="/v1/blob-tags", handler=Handlers.list_blob_tags, query=blob_calls.TagsQuery,
        answer=model.BlobTagPage, summary="List tags by name, page by page",
    ),
    Route(
        method="GET", path="/v1/blob-tags/{id}", handler=Handlers.get_blob_tag, answer=model.BlobTag, errors=_READ,
        summary="Read which blob a tag names",
    ),
    Route(
        method="PUT", path="/v1/blob-tags/{id}", handler=Handlers.set_blob_tag, body=model.BlobTagSet,
        answer=model.BlobTag, errors=(errors.Forbidden, *_BLOB, errors.TagTaken, *_WRITE),
        summary="Have a tag name a blob, which it keeps",
        repeat=_SET,
    ),
    Route(
        method="DELETE", path="/v1/blob-tags/{id}", handler=Handlers.delete_blob_tag, status=204,
        errors=(errors.Forbidden, *_BLOB), summary="Delete a tag; the blob stays its owners'",
        repeat="By the request id: one that somebody has made anew since is not deleted.",
    ),
    # --- key-value
    Route(
        method="GET", path="/v1/kv", handler=Handlers.kv_get, query=kv_calls.KvGetQuery, answer=model.KeyValue,
        errors=(*_READ, errors.Compacted), summary="Read a key",
    ),
    Route(
        method="GET", path="/v1/kv:scan", handler=Handlers.kv_scan, query=kv_calls.KvScanQuery, answer=model.KvPage,
        errors=(errors.Forbidden, errors.Compacted), summary="Read the keys with a prefix, page by page",
    ),
    Route(
        method="GET", path="/v1/kv:watch", handler=Handlers.kv_watch, query=kv_calls.KvWatchQuery,
        answer=model.KvEvent, streams=("text/event-stream",), errors=(errors.Forbidden, errors.Compacted, *_POLL),
        summary="Follow the changes of a key or prefix",
    ),
    Route(
        method="POST", path="/v1/kv:put", handler=Handlers.kv_put, body=model.KvPut, answer=model.KvTxnResult,
        errors=(*_READ, *_WRITE), summary="Set a key",
        repeat=_REMEMBERED,
    ),
    Route(
        method="POST", path="/v1/kv:delete", handler=Handlers.kv_delete, body=model.KvDelete,
        answer=model.KvTxnResult, errors=_READ, summary="Delete a key or prefix",
        repeat=_REMEMBERED,
    ),
    Route(
        method="POST", path="/v1/kv:txn", handler=Handlers.kv_txn, body=model.KvTxn, answer=model.KvTxnResult,
        errors=(*_READ, errors.ResultGone, *_WRITE), summary="Compare and change keys atomically",
        repeat=_REMEMBERED,
    ),
    Route(
        method="POST", path="/v1/leases", handler=Handlers.grant_lease, body=model.LeaseGrant, answer=model.Lease,
        status=201, errors=(*_WRITE, errors.LeaseNotFound), summary="Make a lease",
        repeat="By the request id: the answer tells the lease that was made then; `lease_not_found` when it ran out.",
    ),
    Route(
        method="POST", path="/v1/leases/{id}/keepalive", handler=Handlers.keep_lease, answer=model.Lease,
        errors=(errors.LeaseNotFound,), summary="Start a lease's time anew",
        repeat="The time begins anew once more.",
    ),
    Route(
        method="DELETE", path="/v1/leases/{id}", handler=Handlers.revoke_lease, status=204,
        errors=(errors.LeaseNotFound,), summary="End a lease and delete its keys",
        repeat=_REMEMBERED,
    ),
    # --- blobs: for workers
    Route(
        method="POST", path="/v1/blobs:perform", handler=Handlers.perform_blob_operation, body=model.BlobPerform,
        local=True, streams=(NDJSON,), errors=(errors.Forbidden, *_POLL),
        summary="Carry out an operation of a job of type blob, and tell how far it is: for workers only",
        repeat="Whatever it has brought about already stays.",
    ),
    # --- maintenance: for workers
    Route(
        method="POST", path="/v1/maintenance:perform", handler=Handlers.perform_maintenance_operation,
        body=model.MaintenancePerform, local=True, streams=(NDJSON,), errors=(errors.Forbidden, *_POLL),
        summary="Carry out an operation of a job of type maintenance, and tell how far it is: for workers only",
        repeat="It goes on where it is, for the same job.",
    ),
    # --- replication
    Route(
        method="GET", path="/v1/replication:invitation", handler=Handlers.get_invitation, answer=model.Invitation,
        errors=(errors.Forbidden, errors.MembershipConflict),
        summary="Read what another cluster is given to make a link to this one",
    ),
    Route(
        method="GET", path="/v1/links", handler=Handlers.list_links, answer=model.LinkList, errors=_ADMIN,
        summary="List the links to other clusters",
    ),
    Route(
        method="PUT", path="/v1/links/{id}", handler=Handlers.set_link, body=model.LinkSet, answer=model.LinkView,
        errors=_LINK, summary="Make a link to the cluster that an invitation is of, or replace it",
        repeat=_SET,
    ),
    Route(
        method="DELETE", path="/v1/links/{id}", handler=Handlers.delete_link, status=204, errors=(*_READ, *_LINK),
        summary="Delete a link: the other cluster is cut off at once",
        repeat="By the request id: one that somebody has made anew since is not deleted.",
    ),
    Route(
        method="GET", path="/v1/syncs", handler=Handlers.list_syncs, answer=model.SyncList, errors=_ADMIN,
        summary="List how far each sync is",
    ),
    Route(
        method="DELETE", path="/v1/syncs/{id}", handler=Handlers.delete_sync, status=204,
        errors=(*_READ, errors.OperationUnderWay), summary="Forget how far a sync is, and its conflicts",
        repeat="By the request id: one that has begun anew since is not forgotten.",
    ),
    Route(
        method="GET", path="/v1/syncs/{id}/conflicts", handler=Handlers.list_conflicts,
        query=replication_calls.ConflictsQuery, answer=model.ConflictPage, errors=_READ,
        summary="List the conflicts of a sync whose target is this cluster, newest first, page by page",
    ),
    # --- replication: for workers
    Route(
        method="POST", path="/v1/replication:perform", handler=Handlers.perform_replication_operation,
        body=model.ReplicationPerform, local=True, streams=(NDJSON,), errors=(errors.Forbidden, *_POLL),
        summary="Carry out an operation of a job of type replication, and tell how far it is: for workers only",
        repeat="It goes on where it was.",
    ),
    # --- backups and exports: for workers
    Route(
        method="GET", path="/v1/replication/snapshot", handler=Handlers.read_snapshot, local=True,
        streams=(backup_calls.OCTETS,), errors=(*_ADMIN, *_WRITE, *_POLL), summary="Read the whole store as it is now",
    ),
    Route(
        method="GET", path="/v1/replication/changes", handler=Handlers.read_changes, query=backup_calls.ChangesQuery,
        local=True, streams=(backup_calls.FRAMES,), errors=(*_ADMIN, errors.Compacted, *_POLL),
        summary="Read all changes of the store after a revision",
    ),
    Route(
        method="GET", path="/v1/replication/rows", handler=Handlers.read_rows, query=backup_calls.RowsQuery,
        local=True, streams=(backup_calls.FRAMES,), errors=(*_ADMIN, errors.Compacted, *_POLL),
        summary="Read all keys with a prefix at a revision",
    ),
    Route(
        method="GET", path="/v1/replication/state", handler=Handlers.read_state, query=backup_calls.StateQuery,
        answer=model.StoreState, local=True, errors=(*_ADMIN, errors.Compacted, *_POLL),
        summary="Read what all keys of the store come to at a revision, as a digest",
    ),
    # --- cluster
    Route(
        method="GET", path="/v1/cluster", handler=Handlers.get_cluster, answer=model.ClusterView, local=True,
        summary="Read who the members are, as the node knows it",
    ),
    Route(
        method="POST", path="/v1/cluster:init", handler=Handlers.init_cluster, answer=model.ClusterView, local=True,
        errors=(errors.Forbidden, errors.MembershipConflict),
        repeat="A node that belongs to a cluster is told so (`membership_conflict`): it is founded once.",
        summary="Found a cluster of the node alone",
    ),
    Route(
        method="POST", path="/v1/cluster:join", handler=Handlers.join_cluster, body=model.ClusterJoin,
        answer=model.ClusterView, local=True, errors=(errors.Forbidden, errors.MembershipConflict),
        repeat="A node that belongs to a cluster is told so (`membership_conflict`); it is let in once.",
        summary="Let the node join the cluster of a ticket",
    ),
    Route(
        method="POST", path="/v1/cluster:ticket", handler=Handlers.make_ticket, body=model.TicketRequest,
        answer=model.TicketView, status=201, errors=(errors.Forbidden, errors.MembershipConflict),
        repeat="Another ticket is made in place of that of the lost answer, which lets nobody in any more.",
        summary="Make a ticket with which one node can join",
    ),
    Route(
        method="GET", path="/v1/tickets", handler=Handlers.list_tickets, answer=model.TicketList,
        errors=(errors.Forbidden, errors.MembershipConflict), summary="List the tickets that are valid",
    ),
    Route(
        method="DELETE", path="/v1/tickets/{id}", handler=Handlers.revoke_ticket, status=204,
        errors=(*_READ, errors.MembershipConflict), repeat="By the request id: one that is revoked stays so.",
        summary="Revoke a ticket",
    ),
    Route(
        method="POST", path="/v1/cluster:transfer", handler=Handlers.transfer_leadership, body=model.LeaderTransfer,
        answer=model.LeaderTransferred, errors=(*_READ, errors.MembershipConflict),
        repeat="By the request id: it is not handed over once more, and the answer tells who leads now.",
        summary="Let another member lead",
    ),
    Route(
        method="DELETE", path="/v1/members/{id}", handler=Handlers.remove_member, answer=model.ClusterView,
        errors=(*_READ, errors.MembershipConflict),
        repeat="By the request id: another member of that name is not removed.",
        summary="Remove a member",
    ),
    # --- node
    Route(
        method="GET", path="/v1/overview", handler=Handlers.overview, query=node_calls.OverviewQuery,
        answer=model.Overview, summary="How the node is and what goes on, in bounded parts",
    ),
    Route(
        method="GET", path="/v1/health", handler=Handlers.health, answer=model.Health, local=True,
        summary="How the node is",
    ),
    Route(
        method="GET", path="/v1/ready", handler=Handlers.ready, answer=model.Health, local=True,
        summary="Whether the node serves: 503 when it does not",
    ),
)  # fmt: skip


class Target(Struct, frozen=True):
    """A route, ready to be called."""

    route: Route
    lists: frozenset[str]
    decoder: msgspec.json.Decoder[Any] | None
    is_slow: bool


class Router:
    """Finds the route of a method and a path by look-ups: whole paths, and paths around their placeholder."""

    def __init__(self) -> None:
        self._as_sent: dict[str, dict[str, Target]] = {}
        """Whole paths as nearly everybody writes them."""
        self._whole: dict[tuple[str, ...], dict[str, Target]] = {}
        self._around: dict[tuple[str, ...], dict[str, Target]] = {}
        for route in ROUTES:
            decoder = None if route.body is None else msgspec.json.Decoder(route.body)
            target = Target(route, list_fields(route.query), decoder, route.is_slow)
            table = self._around if PLACEHOLDER in route.path else self._whole
            methods = table.setdefault(tuple(route.path.split("/")), {})
            methods[route.method] = target
            if table is self._whole:
                self._as_sent[route.path] = methods

    def find(self, method: str, raw_path: str) -> tuple[Target, str]:
        """Return the target of a path as it was sent, and what stands in the placeholder, decoded: an encoded slash is
        part of it. Raises NotFound and MethodNotAllowed.
        """
        methods, filled = self._as_sent.get(raw_path), ""
        if methods is None:
            methods, filled = self._by_segments(raw_path)
        if methods is None:
            raise errors.NotFound(f"there is nothing at {raw_path}", expected="a path of /openapi.json")
        target = methods.get(method)
        if target is None:
            raise errors.MethodNotAllowed(f"{method} is not for {raw_path}", expected=", ".join(sorted(methods)))
        return target, filled

    def _by_segments(self, raw_path: str) -> tuple[dict[str, Target] | None, str]:
        segments = tuple(raw_path.split("/"))
        if "%" in raw_path:
            segments = tuple(map(unquote, segments))
        methods = self._whole.get(segments)
        if methods is not None or len(segments) <= PLACE or not segments[PLACE]:
            return methods, ""
        return self._around.get((*segments[:PLACE], PLACEHOLDER, *segments[PLACE + 1 :])), segments[PLACE]
