"""What came of the jobs that a job depends on, as files that it finds in its directory.

For each parent there is a directory named by its id, and the same again by its ref if it has one (the first of several
with the same): `result.json` (a `ParentResult`) and `stdout` (bytes). All of them together are bounded, whatever the
parents wrote, because they travel in one frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from jobs import keys, records
from jobs.content import content_of
from jobs.control.output import KEPT_BYTES, beginnings
from jobs.jobs import INLINE_BYTES
from jobs.protocol.ids import JobId
from jobs.protocol.model import ParentResult, Stream
from jobs.records import JobRecord, ResultRecord
from jobs.store import Store

PARENTS_DIR: Final = "parents"
"""Below the directory of what the node adds."""
TOTAL_BYTES: Final = 6 << 20
"""For the files of all parents; each directory gets an equal share of it."""
FILE_BYTES: Final = KEPT_BYTES[0]
"""Of one parent's standard output in its file: what is in the store of any output."""
READ_BYTES: Final = 16 << 20
"""Of all parents' logs that are looked at."""
_JSON_GROWTH: Final = 6
"""Bytes of JSON that one byte of output may take."""
_encode = msgspec.json.Encoder().encode


def parent_files(store: Store, parents: Sequence[JobId]) -> dict[str, bytes]:
    """Return the files of these parents by their paths."""
    found = {parent: _read(store, parent) for parent in parents}
    names: dict[str, JobId] = {str(parent): parent for parent in parents}
    for parent, record in found.items():
        if record is not None and record.ref is not None:
            names.setdefault(record.ref, parent)
    made: dict[JobId, tuple[bytes, bytes]] = {}
    for parent, record in found.items():
        made[parent] = _files(store, parent, record, TOTAL_BYTES // len(names), READ_BYTES // len(parents))
    files: dict[str, bytes] = {}
    for name, parent in names.items():
        files[f"{PARENTS_DIR}/{name}/result.json"], files[f"{PARENTS_DIR}/{name}/stdout"] = made[parent]
    return files


def _read(store: Store, job: JobId) -> JobRecord | None:
    found = store.get(keys.state(job))
    return None if found is None else records.decode(JobRecord, found[1])


def _files(
    store: Store, job: JobId, record: JobRecord | None, share_bytes: int, read_bytes: int
) -> tuple[bytes, bytes]:
    """Return what `result.json` and `stdout` hold."""
    if record is None:
        return _encode(ParentResult(id=job, ref=None, state=None)), b""
    inline_bytes = min(INLINE_BYTES, share_bytes // 2 // (2 * _JSON_GROWTH))
    file_bytes = min(FILE_BYTES, share_bytes // 2)
    limits = {Stream.STDOUT: file_bytes, Stream.STDERR: inline_bytes}
    output = beginnings(store, job, record.attempt, limits, read_bytes)
    stdout, stderr = output[Stream.STDOUT], output[Stream.STDERR]
    found = store.get(keys.result(job, record.attempt))
    execution = None if found is None else records.decode(ResultRecord, found[1]).execution
    wrote = (None, None) if execution is None else (execution.stdout.bytes, execution.stderr.bytes)
    result = ParentResult(
        id=job,
        ref=record.ref,
        state=record.state,
        reason=record.reason,
        message=record.message,
        exit_code=record.exit_code,
        signal=record.signal,
        stdout=content_of(stdout[:inline_bytes]),
        stderr=content_of(stderr),
        stdout_truncated=_is_cut(stdout, wrote[0], inline_bytes),
        stderr_truncated=_is_cut(stderr, wrote[1], inline_bytes),
        file_truncated=_is_cut(stdout, wrote[0], file_bytes),
        execution=execution,
    )
    return _encode(result), stdout


def _is_cut(data: bytes, wrote_bytes: int | None, limit_bytes: int) -> bool:
    """Tell whether some of what a job wrote is left out; `wrote_bytes` is None where that is not known."""
    if wrote_bytes is None:
        return len(data) >= limit_bytes
    return wrote_bytes > min(len(data), limit_bytes)
