"""What a worker is told of a job that it is given: the payload, and what the node adds to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from jobs import records
from jobs.clock import rfc3339, wall_ms
from jobs.control.arraystore import environment, spec_key
from jobs.control.dependencies import parents_of
from jobs.control.leases import Leases
from jobs.control.parents import PARENTS_DIR, parent_files
from jobs.control.secrets import Secrets
from jobs.control.tracing import Tracing
from jobs.protocol.ids import JobId, array_id
from jobs.protocol.model import CREDENTIAL
from jobs.protocol.wire import Assignment, Lacking
from jobs.records import JobRecord
from jobs.store import Store
from jobs.validate import JOB_DIR, NODE_DIR

SQL: Final = "sql"
OPERATIONS: Final = frozenset({"blob", "maintenance", "replication"})
"""Types whose workers ask the node for what they do, in the owner's name."""
BLOB_NAMED: Final = b'"blob":"'
"""Stands in the stored payload of each job that is given blobs, and in hardly any other."""
SECRETS_NAMED: Final = b'"secrets":'
"""The same of jobs that are given secrets."""
PARENTS_VARIABLE: Final = "JOBS_PARENTS"
PARENTS_PATH: Final = str(JOB_DIR / NODE_DIR / PARENTS_DIR)


class _Named(Struct, frozen=True):
    """Of a stored payload what names secrets."""

    secrets: dict[str, str] = {}


_decode_named = msgspec.json.Decoder(_Named).decode


class Assignments:
    """Makes assignments out of what is stored."""

    def __init__(
        self, store: Store, leases: Leases, secrets: Secrets, tracing: Tracing, is_admin: Callable[[int], bool]
    ) -> None:
        self._store = store
        self._leases = leases
        self._secrets = secrets
        self._tracing = tracing
        self._is_admin = is_admin

    def of(self, job: JobId, record: JobRecord) -> Assignment:
        """Return the assignment of a job that runs."""
        store = self._store
        spec = store.get(spec_key(job, record))
        assert spec is not None, f"job {job} has a state but no spec"
        made = Assignment(
            job=job,
            attempt=record.attempt,
            payload=records.spec_payload(spec[1]),
            timeout_s=record.timeout_s,
            heartbeat_s=record.heartbeat_s,
            owner=record.owner,
            cpu_milli=record.requires.cpu_milli,
        )
        if record.type == SQL:
            # The assignment is in the store: so is whatever was acknowledged before the job was submitted.
            ends = self._leases.ends(wall_ms()) if _may_ask_for_ends(made.payload) else None
            return replace(made, revision=store.revision, admin=self._is_admin(record.owner), lease_ends=ends)
        if record.type in OPERATIONS:
            return replace(made, admin=self._is_admin(record.owner))
        if BLOB_NAMED in made.payload:
            # Its worker asks for them in the owner's name, as the submission did.
            made = replace(made, admin=self._is_admin(record.owner))
        if SECRETS_NAMED in made.payload:
            made = self._with_secrets(made)
        files = parent_files(store, parents_of(store, array_id(job) if record.is_task else job))
        env = self._tracing.variables(job, record)
        if record.is_task:
            env |= environment(store, job)
        if record.schedule is not None and record.nominal_ms is not None:
            env |= {"JOBS_SCHEDULE": record.schedule, "JOBS_NOMINAL_TIME": rfc3339(record.nominal_ms)}
        return replace(made, env=env | ({PARENTS_VARIABLE: PARENTS_PATH} if files else {}), files=files)

    def _with_secrets(self, made: Assignment) -> Assignment:
        named = _decode_named(made.payload).secrets
        wanted = {file: name for file, name in named.items() if not name.startswith(CREDENTIAL)}
        found = self._secrets.values(made.owner, wanted)
        return replace(made, lacking=found) if isinstance(found, Lacking) else replace(made, secrets=found)


def _may_ask_for_ends(payload: bytes) -> bool:
    """Whether a query's text can be about the column `expires_at` of `kv`: its name is there, or may be among all."""
    text = payload.lower()
    return b"kv" in text and (b"expires_at" in text or b"*" in text)
