"""Jobs that stand for operations: submitted, followed, and waited for to the end. Part of the groups that have such."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import msgspec
from msgspec import Struct

from jobs.client.failures import OperationFailed
from jobs.client.submission import JobOptions
from jobs.errors import JobsError
from jobs.protocol.model import JobResult, JobState, JobSubmit, Progress, Reason, Retry, Stream

if TYPE_CHECKING:
    from jobs.client.asynchronous import AsyncClient
    from jobs.client.sync import Client

P = TypeVar("P", bound=Struct)
R = TypeVar("R")
OnProgress: TypeAlias = Callable[[Progress], object]
OnLine: TypeAlias = Callable[[dict[str, Any]], object]
RESUMED: Final = Retry(max_attempts=5, cap_s=60.0, reasons=[Reason.WORKER_LOST])
"""What is left of an operation whose worker is lost, another one does."""
PROGRESS_S: Final = 1.0
"""How often to ask how far an operation is."""


def parts_of(kind: type[P], given: Mapping[str, Any]) -> tuple[P, JobOptions]:
    """Return the payload that those of the given fields make that are its own, and the others."""
    options: Any = dict(given)
    payload = {name: options.pop(name) for name in kind.__struct_fields__ if name in options}
    return kind(**payload), options


def carry_out(
    client: Client, wanted: JobSubmit, *, on_progress: OnProgress | None = None, on_line: OnLine | None = None
) -> JobResult:
    """Return the result of an operation's job once it has ended; one that is not waited for so long is cancelled."""
    job = client.submit(wanted).job.id
    try:
        while on_progress is not None and not client.wait(job, PROGRESS_S).state.is_final:
            if (progress := client.get(job).progress) is not None:
                on_progress(progress)
        result = client.result(job, timeout_s=None)
    except BaseException:
        with suppress(JobsError):
            client.cancel(job)
        raise
    if on_line is not None:
        for line in lines(b"".join(bytes(event.data) for event in client.logs(job, streams=(Stream.STDOUT,)))):
            on_line(line)
    return result


async def carry_out_async(
    client: AsyncClient, wanted: JobSubmit, *, on_progress: OnProgress | None = None, on_line: OnLine | None = None
) -> JobResult:
    """The same for asyncio."""
    job = (await client.submit(wanted)).job.id
    try:
        while on_progress is not None and not (await client.wait(job, PROGRESS_S)).state.is_final:
            if (progress := (await client.get(job)).progress) is not None:
                on_progress(progress)
        result = await client.result(job, timeout_s=None)
    except BaseException:
        with suppress(JobsError):
            await client.cancel(job)
        raise
    if on_line is not None:
        pieces = [bytes(event.data) async for event in client.logs(job, streams=(Stream.STDOUT,))]
        for line in lines(b"".join(pieces)):
            on_line(line)
    return result


def lines(data: bytes) -> list[dict[str, Any]]:
    """Return what an operation has told on its standard output."""
    return [msgspec.json.decode(line) for line in data.splitlines()]


def came_to(result: JobResult, found: R | None, failure: Reason) -> R:
    """Return what the operation came to, which is what was found in its job's result. Raises OperationFailed."""
    if result.state is JobState.COMPLETED and found is not None:
        return found
    reason = result.reason or failure
    raise OperationFailed(result.message or "the operation failed", job=result.id, reason=reason)
