"""What the functions of all routes share: the service, places for streams, answers, and the parts of a call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from jobs.api.answer import Answer, json_answer
from jobs.api.call import Call
from jobs.api.config import ApiConfig
from jobs.api.streams import EVENT_STREAM, Place, StreamAnswer, StreamSlots, event, seen
from jobs.errors import InvalidRequest
from jobs.protocol.ids import JobId, is_job_id
from jobs.protocol.model import Name, Submitted
from jobs.service import Backend, Service

NAME_EXPECTED: Final = "1 to 128 letters, digits and signs of _.:/@-, a letter, a digit or _ first"

AfterRevision = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Limit = Annotated[int, Meta(ge=1, le=1_000)]


class Query(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every query; this one has no parameters."""


class ReadQuery(Query, frozen=True, kw_only=True):
    """Base of the queries of reads that any node can answer from its own store."""

    consistency: Literal["linearizable", "stale"] = "linearizable"
    """`stale`: as the node that is asked has it, which may be behind; header `Jobs-Revision` says how far it is."""


class Base:
    """What every group of handlers stands on."""

    def __init__(
        self, service: Service, backend: Backend, config: ApiConfig, slots: StreamSlots, transfers: StreamSlots
    ) -> None:
        self._service = service
        self._backend = backend
        self._config = config
        self._slots = slots
        self._transfers = transfers

    async def _send_revisions(self, call: Call, place: Place, events: AsyncIterator[Any]) -> Answer:
        """Send a watch; its first word comes at once, so that the head can wait for it."""
        return await StreamAnswer(call.outlet, self._config, place, at_once=False).send(
            _revisions(events), EVENT_STREAM
        )

    def _place(self, call: Call) -> AbstractContextManager[Place]:
        return self._slots.take(call.caller.uid, self._service.ended, call.outlet.gone)

    def _transfer(self, call: Call) -> AbstractContextManager[Place]:
        """A place for what takes long and goes on whoever leads."""
        return self._transfers.take(call.caller.uid, asyncio.get_running_loop().create_future(), call.outlet.gone)


def submitted_answer(submitted: Submitted) -> Answer:
    """Return the answer to what makes a job: 201, or 200 when it was there already."""
    answer = json_answer(submitted, 201 if submitted.created else 200)
    return answer.saying({"Location": f"/v1/jobs/{submitted.job.id}"})


def job_id(call: Call) -> JobId:
    """Return the job in the path; raise InvalidRequest for what is no id."""
    return checked_job_id(call.path, "id")


def checked_job_id(text: str, field: str) -> JobId:
    """Return what a path or a parameter gives as a job's id; raise InvalidRequest for what is none."""
    if not is_job_id(text):
        raise InvalidRequest(f"{text!r} is no job id", field=field, expected="a UUIDv7 in lower case")
    return JobId(text)


def name(call: Call) -> str:
    """Return the name in the path, of a queue or whatever else is named so; raise InvalidRequest for what is none."""
    try:
        return msgspec.convert(call.path, Name)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"{call.path!r:.200} is no name", field="id", expected=NAME_EXPECTED) from error


def labels_of(given: Sequence[str]) -> tuple[tuple[str, str], ...]:
    pairs = []
    for label in given:
        name, equals, value = label.partition("=")
        if not equals or not name:
            raise InvalidRequest(f"{label!r} is no label", field="label", expected="name=value")
        pairs.append((name, value))
    return tuple(pairs)


def last_event_id(call: Call, after_revision: int | None) -> int | None:
    """Return where to go on: the header that a reconnecting client sends wins over the query."""
    header = call.ask.headers.get("Last-Event-ID")
    if header is None:
        return after_revision
    if not (header.isascii() and header.isdigit() and len(header) <= 18):
        raise InvalidRequest(f"{header!r} is no revision", field="Last-Event-ID", expected="the id of a former event")
    return int(header)


async def _revisions(events: AsyncIterator[Any]) -> AsyncIterator[bytes]:
    async for item in events:
        yield seen(str(item)) if isinstance(item, int) else event(item, str(item.revision))
