"""Jobs that failed for good: `client.dead_letters`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, TypedDict, Unpack

from jobs.client.requests import Call, get, post, segment, write
from jobs.protocol.model import (
    DeadLetter,
    DeadLetterPage,
    DeadLetterSelection,
    PurgeOutcome,
    PurgePage,
    Reason,
    Redriven,
    RedrivePage,
    Submitted,
)

if TYPE_CHECKING:
    from jobs.client.asynchronous import AsyncClient
    from jobs.client.sync import Client

PAGE_SIZE = 1_000


class DeadLetterFilter(TypedDict, total=False):
    """Which dead letters: all that is given, and not None, must match."""

    queue: str | None
    reason: Reason | None
    owner: int | None


class DeadLetterChoice(DeadLetterFilter, total=False):
    """The same; something has to be given: `all=True` for every one."""

    all: bool


# --- requests --------------------------------------------------------------------------------------------------------


def list_dead_letters(where: DeadLetterFilter, cursor: str | None) -> Call[DeadLetterPage]:
    return get("/v1/dead-letters", DeadLetterPage, {**where, "limit": PAGE_SIZE, "cursor": cursor})


def redrive(job: str) -> Call[Submitted]:
    return post(f"/v1/jobs/{segment(job)}/redrive", Submitted)


def redrive_many(where: DeadLetterChoice, cursor: str | None) -> Call[RedrivePage]:
    return post("/v1/dead-letters:redrive", RedrivePage, DeadLetterSelection(**where, cursor=cursor))


def purge(job: str) -> Call[PurgeOutcome]:
    return write("DELETE", f"/v1/dead-letters/{segment(job)}", PurgeOutcome)


def purge_many(where: DeadLetterChoice, cursor: str | None) -> Call[PurgePage]:
    return post("/v1/dead-letters:purge", PurgePage, DeadLetterSelection(**where, cursor=cursor))


# --- clients ---------------------------------------------------------------------------------------------------------


class DeadLettersClient:
    """Jobs that failed for good, until somebody deals with them: `client.dead_letters`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self, **where: Unpack[DeadLetterFilter]) -> Iterator[DeadLetter]:
        """Yield dead letters, newest first, fetching page after page."""
        for page in self._client.pages(lambda cursor: list_dead_letters(where, cursor)):
            yield from page.dead_letters

    def redrive(self, job: str) -> Submitted:
        """Repeat a failed job as a new one; asking again gives the same one. Raises NotRedrivable."""
        return self._client.call(redrive(job))

    def redrive_many(self, **where: Unpack[DeadLetterChoice]) -> Iterator[Redriven]:
        """Repeat all that match, and yield what became of each, oldest first. Iterate to the end: nothing is asked
        for before it is needed. What fails anew meanwhile is not among them; asking again repeats nothing twice."""
        for page in self._client.pages(lambda cursor: redrive_many(where, cursor)):
            yield from page.redriven

    def purge(self, job: str) -> PurgeOutcome:
        """Put a dead letter away; the job is kept as any other is."""
        return self._client.call(purge(job))

    def purge_many(self, **where: Unpack[DeadLetterChoice]) -> int:
        """Put all that match away; return how many those were."""
        return sum(page.purged for page in self._client.pages(lambda cursor: purge_many(where, cursor)))


class AsyncDeadLettersClient:
    """The same for asyncio; see `DeadLettersClient`."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def list(self, **where: Unpack[DeadLetterFilter]) -> AsyncIterator[DeadLetter]:
        """Yield dead letters, newest first, fetching page after page."""
        async for page in self._client.pages(lambda cursor: list_dead_letters(where, cursor)):
            for letter in page.dead_letters:
                yield letter

    async def redrive(self, job: str) -> Submitted:
        """Repeat a failed job as a new one; asking again gives the same one. Raises NotRedrivable."""
        return await self._client.call(redrive(job))

    async def redrive_many(self, **where: Unpack[DeadLetterChoice]) -> AsyncIterator[Redriven]:
        """Repeat all that match, and yield what became of each, oldest first."""
        async for page in self._client.pages(lambda cursor: redrive_many(where, cursor)):
            for one in page.redriven:
                yield one

    async def purge(self, job: str) -> PurgeOutcome:
        """Put a dead letter away; the job is kept as any other is."""
        return await self._client.call(purge(job))

    async def purge_many(self, **where: Unpack[DeadLetterChoice]) -> int:
        """Put all that match away; return how many those were."""
        purged = 0
        async for page in self._client.pages(lambda cursor: purge_many(where, cursor)):
            purged += page.purged
        return purged
