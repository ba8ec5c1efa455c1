"""What a worker has its node carry out: it asks, passes on what it is told, and asks again when the way was lost."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import cache
from typing import Any, Final, TypeVar, cast

import msgspec
from msgspec import Struct

from jobs.errors import InternalError, JobsError, error_types
from jobs.protocol.ids import JobId
from jobs.protocol.model import OperationAdvance, OperationFailed, OperationLine, Problem
from jobs.workers.nodeapi import NodeApi
from jobs.workers.task import Report
from jobs.workers.transfers import Persistence

D = TypeVar("D", bound=Struct)
MAX_RESTARTS: Final = 20
"""Of an operation that was broken off after it had begun: what breaks it off so often is the operation."""
STEADY_S: Final = 60.0
"""What breaks an endless one off after that is not itself."""
MAX_LINES_BYTES: Final = 8 << 20
"""Of what an operation says that may have to be begun again; what is more is counted and dropped."""
_encode = msgspec.json.Encoder().encode


async def perform(
    node: NodeApi,
    path: str,
    job: JobId,
    payload: Struct,
    done: type[D],
    report: Report,
    *,
    endless: bool = False,
    final: tuple[type[JobsError], ...] = (),
) -> D:
    """Have the node carry it out, from the beginning again when the way to it was lost; what it says of the last time
    counts. Return its last event, a `done`. Raises JobsError.

    An endless one outlives any number of nodes, as long as each has it for a while. `final`: what ends it though it may
    go well later, as the operation has waited for that itself.
    """
    wanted = _encode({"job": job, "payload": payload})
    persistence, restarts = Persistence(), 0
    while True:
        lines, was_begun, began_s = _Lines(), False, time.monotonic()
        try:
            async with aclosing(_events(node, path, wanted, _decoder(done))) as events:
                async for event in events:
                    persistence.reset()
                    was_begun = True
                    match event:
                        case OperationAdvance(done=so_far, total=total, message=message):
                            report.progress(so_far, total, message)
                        case OperationLine(text=text):
                            lines.add(text)
                        case OperationFailed(problem=problem):
                            raise _error(problem)
                        case _:
                            await lines.write(report)
                            return cast("D", event)
            raise InternalError("the node said nothing of how it ended")
        except JobsError as error:
            if endless and time.monotonic() - began_s > STEADY_S:
                restarts = 0
            restarts += was_begun
            if isinstance(error, final) or restarts > MAX_RESTARTS or not await persistence.may_help(error):
                await lines.write(report)
                raise


class _Lines:
    """What an operation says, held back until it is known to be all."""

    def __init__(self) -> None:
        self._held: list[bytes] = []
        self._size_bytes = 0
        self._dropped_bytes = 0

    def add(self, text: str) -> None:
        line = text.encode(errors="replace") + b"\n"
        if self._dropped_bytes or self._size_bytes + len(line) > MAX_LINES_BYTES:
            self._dropped_bytes += len(line)
        else:
            self._held.append(line)
            self._size_bytes += len(line)

    async def write(self, report: Report) -> None:
        if self._held:
            await report.write(b"".join(self._held))
        report.drop(self._dropped_bytes)


@cache
def _decoder(done: type[D]) -> Callable[[bytes], OperationAdvance | OperationLine | OperationFailed | D]:
    events: Any = OperationAdvance | OperationLine | OperationFailed | done
    return msgspec.json.Decoder(events).decode


async def _events(node: NodeApi, path: str, wanted: bytes, decode: Callable[[bytes], Any]) -> AsyncGenerator[Any]:
    buffer = bytearray()
    async with node.exchange("POST", path, body=wanted) as answer:
        async for piece in answer.pieces():
            buffer += piece
            *lines, rest = buffer.split(b"\n")
            buffer = bytearray(rest)
            for line in lines:
                if line:  # an empty one is a sign of life
                    yield _event(bytes(line), decode)


def _event(line: bytes, decode: Callable[[bytes], Any]) -> Any:
    try:
        return decode(line)
    except msgspec.MsgspecError as error:
        raise InternalError(f"the node said what is no event: {error}") from error


def _error(problem: Problem) -> JobsError:
    kind = error_types().get(problem.code, InternalError)
    return kind(problem.detail, field=problem.field, expected=problem.expected)
