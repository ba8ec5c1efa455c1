"""Where everything stands in the key-value store: one function a kind of key, and nothing else builds keys."""

from __future__ import annotations

import hashlib
from typing import Final

from jobs.protocol.ids import TASK_DIGITS, Attempt, JobId, WorkerId

SPEC: Final = b"/jobs/spec/"
STATE: Final = b"/jobs/state/"
RESULT: Final = b"/jobs/result/"
LOG: Final = b"/jobs/log/"
IDEMPOTENCY: Final = b"/jobs/idem/"
UNIQUE: Final = b"/jobs/unique/"
PROGRESS: Final = b"/jobs/progress/"
QUEUE: Final = b"/queue/"
WAITING: Final = b"/waiting/"
TIMERS: Final = b"/timers/"
RUNNING: Final = b"/running/"
WORKERS: Final = b"/workers/"
DRAINED: Final = b"/drained/"
QUEUES: Final = b"/queues/"
OWNERS: Final = b"/owners/"
RATES: Final = b"/rates/"
CHILDREN: Final = b"/deps/children/"
PARENTS: Final = b"/deps/parents/"
PARENT_ENDED: Final = b"/deps/ended/"
DEPENDENCIES_ADDED: Final = b"/deps/added"
"""Changes whenever a job that is there already comes to depend on others: a search for circles holds until then."""
ENDED: Final = b"/ended/"
ENDED_FULL: Final = ENDED + b"full/"
"""Kept as the node's configuration says, with output."""
ENDED_BARE: Final = ENDED + b"bare/"
"""The same without output."""
ENDED_OWN: Final = ENDED + b"own/"
"""Looked at next at a time of their own."""
GONE: Final = b"/gone/"
OUTPUT_TO_MOVE: Final = b"/output/"
"""Jobs of which an attempt has ended whose output is to become blobs."""
DEAD_LETTERS: Final = b"/dlq/"
ARRAYS: Final = b"/arrays/state/"
ARRAYS_OPEN: Final = b"/arrays/open/"
ARRAY_ITEMS: Final = b"/arrays/items/"
ARRAY_MEMBERS: Final = b"/arrays/members/"
ARRAY_WITHDRAWN: Final = b"/arrays/withdrawn/"
TASKS_ACTIVE: Final = b"/arrays/active/"
TASKS_FAILED: Final = b"/arrays/failed/"
TASKS_CANCELLED: Final = b"/arrays/cancelled/"
AUDIT: Final = b"/audit/"
AUDITED: Final = b"/audited/"
SCHEDULES: Final = b"/schedules/state/"
SCHEDULE_JOBS: Final = b"/schedules/job/"
UNFINISHED: Final = b"/schedules/unfinished/"
MEMBERS: Final = b"/cluster/members/"
GUESTS: Final = b"/cluster/guests/"
MEMBERS_CHANGED: Final = b"/cluster/changed"
"""Changes with every change of a member or a guest."""
HANDOVER: Final = b"/cluster/handover"
"""The last request to hand leadership over."""
TABLES: Final = b"/tables/"
BLOBS: Final = b"/blobs/entry/"
BLOBS_OWNED: Final = b"/blobs/owned/"
BLOB_USAGE: Final = b"/blobs/usage/"
BLOB_TAGS: Final = b"/blobs/tags/"
BLOB_REFERENCES: Final = b"/blobs/refs/"
BLOBS_ON: Final = b"/blobs/on/"
BLOBS_LACKING: Final = b"/blobs/lacking/"
"""Blobs that fewer nodes have than are to."""
BLOB_CHILDREN: Final = b"/blobs/children/"
BLOBS_TOUCHED: Final = b"/blobs/touched/"
BLOB_DRAFTS: Final = b"/blobs/drafts/"
BLOBS_CLEARED: Final = b"/blobs/cleared/"
BLOBS_COUNTED: Final = b"/blobs/counted"
"""By which numbers of members it was last looked which blobs lack nodes."""
BLOB_SHARES: Final = b"/blobs/shares/"
MOMENTS: Final = b"/moments/"
"""Which revision the store had at a time."""
MAINTENANCE: Final = b"/maintenance/"
"""Operations of maintenance that are under way, each once in the cluster, and how far they are."""
BUILT_IN_SCHEDULES: Final = b"/schedules/builtin"
"""Schedules that were made by the system, so that one that was deleted stays so."""
LINKS: Final = b"/replication/links/"
LINKS_CHANGED: Final = b"/replication/linked"
"""Changes with every change of a link."""
SYNCS: Final = b"/replication/syncs/"
SYNC_CURSORS: Final = b"/replication/cursors/"
SYNC_CONFLICTS: Final = b"/replication/conflicts/"
SECRET_KEY: Final = b"/secrets/key"
"""Which key secrets are encrypted with; not the key itself."""
SECRETS: Final = b"/secrets/value/"
DATA: Final = b"/data/"
"""The users' own part."""

_MAX_PRIORITY: Final = 100


def member(member_id: str) -> bytes:
    """Record of a member of the cluster."""
    return MEMBERS + member_id.encode()


def guest(guest_id: str) -> bytes:
    """Record of a key that may ask to join."""
    return GUESTS + guest_id.encode()


def spec(job: JobId) -> bytes:
    """Body of a job as submitted: large and cold."""
    return SPEC + job.encode()


def state(job: JobId) -> bytes:
    """State record of a job: small and hot."""
    return STATE + job.encode()


def of_tasks(kind: bytes, array_id: JobId) -> bytes:
    """Return a prefix that the keys of one kind of an array and its tasks have, and those of no other job.

    `kind` is one of those in whose keys the job's id comes first.
    """
    return kind + array_id[:-TASK_DIGITS].encode()


def result(job: JobId, attempt: Attempt) -> bytes:
    return b"%s%06d" % (results_prefix(job), attempt)


def results_prefix(job: JobId) -> bytes:
    return b"%s%s/" % (RESULT, job.encode())


def job_of_result(key: bytes) -> JobId:
    """Return the job that the key of a result names."""
    return JobId(key[len(RESULT) : -7].decode())


def attempt_of(result_key: bytes) -> Attempt:
    """Return the attempt that the key of a result names."""
    return Attempt(int(result_key[-6:]))


def log_prefix(job: JobId, attempt: Attempt) -> bytes:
    return b"%s%s/%06d/" % (LOG, job.encode(), attempt)


def log(job: JobId, attempt: Attempt, seq: int) -> bytes:
    """One chunk of output."""
    return b"%s%s/%06d/%08d" % (LOG, job.encode(), attempt, seq)


def log_seq_of(key: bytes) -> int:
    """Return the number of the chunk that a key of output names."""
    return int(key[-8:])


def idempotency(owner: int, key: str) -> bytes:
    """Hashed, because a caller's key may be longer than a key of the store."""
    return b"%s%d/%s" % (IDEMPOTENCY, owner, hashlib.sha256(key.encode()).hexdigest().encode())


def unique(owner: int, key: str) -> bytes:
    """Which job of an owner holds a unique key; hashed as an idempotency key is."""
    return b"%s%d/%s" % (UNIQUE, owner, hashlib.sha256(key.encode()).hexdigest().encode())


def progress(job: JobId) -> bytes:
    """What a job last said of its progress."""
    return PROGRESS + job.encode()


def queue(queue_name: str, owner: int, lane: bytes, priority: int, ready_ms: int, job: JobId) -> bytes:
    """A job that is ready for a worker. Jobs of one queue and owner that ask the same share a lane; in key order within
    it: higher priority, then earlier, then id.

    Name, owner and lane each end with a zero byte, which none of them holds: no lane's keys are within another's.
    """
    lane_key = b"%s%s\x00%d\x00%s\x00" % (QUEUE, queue_name.encode(), owner, lane)
    return b"%s%03d/%015d/%s" % (lane_key, _MAX_PRIORITY - priority, ready_ms, job.encode())


def waiting(queue_name: str, owner: int, job: JobId) -> bytes:
    """A pending job that is not ready: a time or another job has to come first."""
    return b"%s%s\x00%d\x00%s" % (WAITING, queue_name.encode(), owner, job.encode())


def share_prefix(kind: bytes, queue_name: str, owner: int) -> bytes:
    """Return the prefix that the keys of one queue and owner share; `kind` is QUEUE or WAITING."""
    return b"%s%s\x00%d\x00" % (kind, queue_name.encode(), owner)


def share_of(key: bytes) -> tuple[str, int]:
    """Return the queue and the owner that a queue or waiting key names."""
    _, _, name = key.partition(b"/")[2].partition(b"/")
    queue_name, owner, _ = name.split(b"\x00", 2)
    return queue_name.decode(), int(owner)


def lane_of(key: bytes) -> bytes:
    """Return the prefix that the queue keys of one lane share."""
    return key[: key.rindex(b"\x00") + 1]


def queue_order(key: bytes) -> bytes:
    """Return the part of a queue key that orders jobs across queues and lanes."""
    return key[key.rindex(b"\x00") + 1 :]


def ready_ms_of(key: bytes) -> int:
    """Return since when the job of a queue key is ready."""
    return int(key[-52:-37])


def job_of(key: bytes) -> JobId:
    """Return the job that the last segment of a key names."""
    return JobId(key[-36:].decode())


def timer(due_ms: int, job: JobId) -> bytes:
    """A job that waits for a time."""
    return b"%s%015d/%s" % (TIMERS, due_ms, job.encode())


def running_prefix(worker: WorkerId) -> bytes:
    return RUNNING + worker.encode() + b"\x00"


def running(worker: WorkerId, job: JobId) -> bytes:
    """A job that a worker has."""
    return running_prefix(worker) + job.encode()


def worker(worker_id: WorkerId) -> bytes:
    return WORKERS + worker_id.encode()


def drained(worker_id: WorkerId) -> bytes:
    """A worker that an administrator has taken out of use; its lives come and go, this stays."""
    return DRAINED + worker_id.encode()


def queue_name_of(kind: bytes, key: bytes) -> bytes:
    """Return the queue that a key names; `kind` is QUEUE, WAITING or QUEUES."""
    return key[len(kind) :].partition(b"\x00")[0]


def after_queue(kind: bytes, name: bytes) -> bytes:
    """Return what comes after all keys of one queue, and before those of the next."""
    return kind + name + b"\x01"


def queue_settings(name: str) -> bytes:
    return QUEUES + name.encode()


def owner_settings(owner: int) -> bytes:
    return b"%s%d" % (OWNERS, owner)


def rate(queue_name: str) -> bytes:
    """How far the starts of a rate-limited queue have got."""
    return RATES + queue_name.encode()


def children_prefix(parent: JobId) -> bytes:
    return CHILDREN + parent.encode() + b"\x00"


def child(parent: JobId, child_id: JobId) -> bytes:
    """A job that depends on another, and whether it has been told of its end; kept for as long as both are."""
    return children_prefix(parent) + child_id.encode()


def parents(child_id: JobId) -> bytes:
    """The jobs that a job depends on; kept for as long as it is itself."""
    return PARENTS + child_id.encode()


def parent_ended(parent_id: JobId) -> bytes:
    """An ended job whose children have not all been told."""
    return PARENT_ENDED + parent_id.encode()


def schedule(name: str) -> bytes:
    """Settings of a schedule and how far it is: small and hot."""
    return SCHEDULES + name.encode()


def schedule_job(name: str) -> bytes:
    """The job that a schedule makes, as submitted; written whenever the schedule is set."""
    return SCHEDULE_JOBS + name.encode()


def unfinished_prefix(schedule_name: str) -> bytes:
    return UNFINISHED + schedule_name.encode() + b"\x00"


def unfinished(schedule_name: str, job: JobId) -> bytes:
    """A job of a schedule that has not ended."""
    return unfinished_prefix(schedule_name) + job.encode()


def ended(kind: bytes, time_ms: int, job: JobId) -> bytes:
    """An ended job, by the time of its end (ENDED_FULL, ENDED_BARE) or by the time to look at it (ENDED_OWN)."""
    return b"%s%015d/%s" % (kind, time_ms, job.encode())


def gone(job: JobId) -> bytes:
    """A job that was here and is no longer kept; as ids go by time, the oldest come first."""
    return GONE + job.encode()


def dead_letter(finished_ms: int, job: JobId) -> bytes:
    return b"%s%015d/%s" % (DEAD_LETTERS, finished_ms, job.encode())


def output_to_move(job: JobId) -> bytes:
    return OUTPUT_TO_MOVE + job.encode()


def dead_letters_before(finished_ms: int) -> bytes:
    """Return the end of the keys of dead letters that are older."""
    return b"%s%015d/" % (DEAD_LETTERS, finished_ms)


def array(array_id: JobId) -> bytes:
    """What makes an array's tasks, and how far it has got with that."""
    return ARRAYS + array_id.encode()


def array_open(array_id: JobId) -> bytes:
    """An array that has not ended."""
    return ARRAYS_OPEN + array_id.encode()


def of_array(kind: bytes, array_id: JobId) -> bytes:
    """Return the prefix of one kind of keys of an array; `numbered` makes the keys."""
    return kind + array_id.encode() + b"\x00"


def numbered(kind: bytes, array_id: JobId, number: int) -> bytes:
    """ARRAY_ITEMS: items from this index on; ARRAY_MEMBERS, ARRAY_WITHDRAWN: a chunk of indices; TASKS_…: a task."""
    return b"%s%s\x00%07d" % (kind, array_id.encode(), number)


def number_of(key: bytes) -> int:
    """Return the number that a key of `numbered` ends with."""
    return int(key[-7:])


def audit(at_ms: int, number: int) -> bytes:
    """An entry of the audit trail; `number` tells apart those of one millisecond."""
    return b"%s%015d/%016x" % (AUDIT, at_ms, number)


def audited_prefix(job: JobId) -> bytes:
    return b"%s%s/" % (AUDITED, job.encode())


def audited(job: JobId, audit_key: bytes) -> bytes:
    """An entry of the audit trail that is about one job, its submission excepted."""
    return audited_prefix(job) + audit_key[len(AUDIT) :]


def audit_of(audited_key: bytes) -> bytes:
    """Return the key of the entry that stands under a job."""
    return AUDIT + audited_key[len(AUDITED) + 37 :]


def table(name: str) -> bytes:
    """Definition of a table that a user has made."""
    return TABLES + name.encode()


def blob(blob_hash: str) -> bytes:
    """What the catalogue has of a blob."""
    return BLOBS + blob_hash.encode()


def blobs_owned_prefix(uid: int) -> bytes:
    return b"%s%010d/" % (BLOBS_OWNED, uid)


def blob_owned(uid: int, blob_hash: str) -> bytes:
    """That a blob is this owner's, who may read it."""
    return blobs_owned_prefix(uid) + blob_hash.encode()


def blob_usage(uid: int) -> bytes:
    """What an owner's blobs come to."""
    return b"%s%010d" % (BLOB_USAGE, uid)


def blob_tag(name: str) -> bytes:
    """A name that keeps a blob."""
    return BLOB_TAGS + name.encode()


def blob_references_prefix(blob_hash: str) -> bytes:
    return b"%s%s/" % (BLOB_REFERENCES, blob_hash.encode())


def blob_reference(blob_hash: str, kind: str, name: str) -> bytes:
    """That something keeps a blob: a kind of reference and which one."""
    return b"%s%s/%s" % (blob_references_prefix(blob_hash), kind.encode(), name.encode())


def reference_of(reference_key: bytes) -> tuple[str, str]:
    """Return the kind of a reference, and which one it is, that the key of one names."""
    _, kind, name = reference_key[len(BLOB_REFERENCES) :].decode().split("/", 2)
    return kind, name


def blobs_on_prefix(member_id: str) -> bytes:
    return b"%s%s/" % (BLOBS_ON, member_id.encode())


def blob_on(member_id: str, blob_hash: str) -> bytes:
    """That a member has a blob."""
    return blobs_on_prefix(member_id) + blob_hash.encode()


def blob_holder_of(key: bytes) -> str:
    """Return the member that a key of `blob_on` names."""
    return key[len(BLOBS_ON) :].partition(b"/")[0].decode()


def blob_lacking(blob_hash: str) -> bytes:
    return BLOBS_LACKING + blob_hash.encode()


def blob_children_prefix(parent: str) -> bytes:
    return b"%s%s/" % (BLOB_CHILDREN, parent.encode())


def blob_child(parent: str, child: str) -> bytes:
    """That a collection has a blob."""
    return blob_children_prefix(parent) + child.encode()


def blob_touched(blob_hash: str) -> bytes:
    """When a blob was last added or referred to: apart from its entry, so that jobs that refer to the same blob do not
    get in each other's way."""
    return BLOBS_TOUCHED + blob_hash.encode()


def blob_draft(parent: str) -> bytes:
    """A collection that has children here already, and no entry yet."""
    return BLOB_DRAFTS + parent.encode()


def blob_cleared(parent: str) -> bytes:
    """A collection that is gone, some of whose children have not been told."""
    return BLOBS_CLEARED + parent.encode()


def blob_of(key: bytes) -> str:
    """Return the hash that a key ends with."""
    return key[-64:].decode()


def blob_share(share: str) -> bytes:
    """A ticket by which somebody else may make a blob theirs."""
    return BLOB_SHARES + share.encode()


def moment(at_ms: int) -> bytes:
    """The store's revision at a time."""
    return b"%s%015d/" % (MOMENTS, at_ms)


def maintenance(operation: str) -> bytes:
    """Which job carries an operation out, and how far it is."""
    return MAINTENANCE + operation.encode()


def link(name: str) -> bytes:
    """Another cluster that this one speaks with."""
    return LINKS + name.encode()


def sync(name: str) -> bytes:
    """How far a sync is, for people: in the cluster whose job it is."""
    return SYNCS + name.encode()


def sync_cursor(origin: str, name: str) -> bytes:
    """How far a sync is, at its target, written with what it changes; `origin` is the id of the cluster whose job it
    is."""
    return b"%s%s/%s" % (SYNC_CURSORS, origin.encode(), name.encode())


def sync_conflicts_prefix(origin: str, name: str) -> bytes:
    return b"%s%s/%s\x00" % (SYNC_CONFLICTS, origin.encode(), name.encode())


def sync_conflict(origin: str, name: str, number: int) -> bytes:
    """A conflict that a sync met at its target."""
    return b"%s%012d" % (sync_conflicts_prefix(origin, name), number)


def secrets_prefix(uid: int) -> bytes:
    return b"%s%010d/" % (SECRETS, uid)


def secret(uid: int, name: str) -> bytes:
    """An owner's secret, encrypted."""
    return secrets_prefix(uid) + name.encode()


def secret_of(key: bytes) -> tuple[int, str]:
    """Return the owner and the name that the key of a secret names."""
    uid, _, name = key[len(SECRETS) :].decode().partition("/")
    return int(uid), name


def time_of(prefix: bytes, key: bytes) -> int:
    """Return the time in ms that stands after the prefix of a key."""
    return int(key[len(prefix) : len(prefix) + 15])
