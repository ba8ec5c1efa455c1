"""Queues and the owners of jobs: `client.queues` and `client.owners`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, TypedDict, Unpack

from jobs.client.requests import Call, get, post, segment, write
from jobs.protocol.model import OwnerSettings, OwnerView, QueuePage, QueueSettings, QueueView

if TYPE_CHECKING:
    from jobs.client.asynchronous import AsyncClient
    from jobs.client.sync import Client

PAGE_SIZE = 1_000


class _Changes(TypedDict, total=False):
    """What queues and owners have in common."""

    weight: float
    max_pending: int | None
    max_running: int | None


class OwnerChanges(_Changes, total=False):
    """What is to be other than before of an owner; None takes a limit away. Meanings are those of `OwnerSettings`."""

    max_blob_bytes: int | None


class QueueChanges(_Changes, total=False):
    """What is to be other than before of a queue; None takes a limit away. Meanings are those of `QueueSettings`."""

    max_pending_per_owner: int | None
    max_running_per_owner: int | None
    rate_count: int | None
    rate_period_s: float
    managed_by: str | None


# --- requests --------------------------------------------------------------------------------------------------------


def list_queues(cursor: str | None) -> Call[QueuePage]:
    return get("/v1/queues", QueuePage, {"limit": PAGE_SIZE, "cursor": cursor})


def get_queue(name: str) -> Call[QueueView]:
    return get(_queue(name), QueueView)


def put_queue(name: str, settings: QueueSettings) -> Call[QueueView]:
    return write("PUT", _queue(name), QueueView, settings)


def change_queue(name: str, changes: QueueChanges) -> Call[QueueView]:
    return write("PATCH", _queue(name), QueueView, changes)


def tell_queue(name: str, what: str) -> Call[QueueView]:
    """`what`: pause, resume, drain or open."""
    return post(f"{_queue(name)}/{what}", QueueView)


def get_owner(uid: int) -> Call[OwnerView]:
    return get(f"/v1/owners/{uid}", OwnerView)


def put_owner(uid: int, settings: OwnerSettings) -> Call[OwnerView]:
    return write("PUT", f"/v1/owners/{uid}", OwnerView, settings)


def change_owner(uid: int, changes: OwnerChanges) -> Call[OwnerView]:
    return write("PATCH", f"/v1/owners/{uid}", OwnerView, changes)


def _queue(name: str) -> str:
    return f"/v1/queues/{segment(name)}"


# --- clients ---------------------------------------------------------------------------------------------------------


class QueuesClient:
    """Queues: `client.queues`. Everybody may look at them, administrators change them."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self) -> Iterator[QueueView]:
        """Yield the queues that have settings or jobs, by name."""
        for page in self._client.pages(list_queues):
            yield from page.queues

    def get(self, name: str) -> QueueView:
        """Return a queue; one that nobody has set or used is empty."""
        return self._client.call(get_queue(name))

    def put(self, name: str, settings: QueueSettings) -> QueueView:
        """Replace a queue's weight, limits and rate."""
        return self._client.call(put_queue(name, settings))

    def change(self, name: str, **changes: Unpack[QueueChanges]) -> QueueView:
        """Change what is given of them, at once; what is not given stays as it is."""
        return self._client.call(change_queue(name, changes))

    def pause(self, name: str) -> QueueView:
        """Start nothing of a queue any more; what runs goes on."""
        return self._client.call(tell_queue(name, "pause"))

    def resume(self, name: str) -> QueueView:
        """Start jobs of a paused queue again."""
        return self._client.call(tell_queue(name, "resume"))

    def drain(self, name: str) -> QueueView:
        """Take no more jobs in; what waits is still run."""
        return self._client.call(tell_queue(name, "drain"))

    def open(self, name: str) -> QueueView:
        """Take jobs in again."""
        return self._client.call(tell_queue(name, "open"))


class OwnersClient:
    """Owners of jobs, by uid: `client.owners`. An owner may look at themselves, administrators at all."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def get(self, uid: int) -> OwnerView:
        """Return an owner's settings, and how many jobs are pending and running."""
        return self._client.call(get_owner(uid))

    def put(self, uid: int, settings: OwnerSettings) -> OwnerView:
        """Replace an owner's weight and limits."""
        return self._client.call(put_owner(uid, settings))

    def change(self, uid: int, **changes: Unpack[OwnerChanges]) -> OwnerView:
        """Change what is given of them, at once; what is not given stays as it is."""
        return self._client.call(change_owner(uid, changes))


class AsyncQueuesClient:
    """Queues: `client.queues`; see `QueuesClient`."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def list(self) -> AsyncIterator[QueueView]:
        """Yield the queues that have settings or jobs, by name."""
        async for page in self._client.pages(list_queues):
            for queue in page.queues:
                yield queue

    async def get(self, name: str) -> QueueView:
        """Return a queue; one that nobody has set or used is empty."""
        return await self._client.call(get_queue(name))

    async def put(self, name: str, settings: QueueSettings) -> QueueView:
        """Replace a queue's weight, limits and rate."""
        return await self._client.call(put_queue(name, settings))

    async def change(self, name: str, **changes: Unpack[QueueChanges]) -> QueueView:
        """Change what is given of them, at once; what is not given stays as it is."""
        return await self._client.call(change_queue(name, changes))

    async def pause(self, name: str) -> QueueView:
        """Start nothing of a queue any more; what runs goes on."""
        return await self._client.call(tell_queue(name, "pause"))

    async def resume(self, name: str) -> QueueView:
        """Start jobs of a paused queue again."""
        return await self._client.call(tell_queue(name, "resume"))

    async def drain(self, name: str) -> QueueView:
        """Take no more jobs in; what waits is still run."""
        return await self._client.call(tell_queue(name, "drain"))

    async def open(self, name: str) -> QueueView:
        """Take jobs in again."""
        return await self._client.call(tell_queue(name, "open"))


class AsyncOwnersClient:
    """Owners of jobs, by uid: `client.owners`; see `OwnersClient`."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def get(self, uid: int) -> OwnerView:
        """Return an owner's settings, and how many jobs are pending and running."""
        return await self._client.call(get_owner(uid))

    async def put(self, uid: int, settings: OwnerSettings) -> OwnerView:
        """Replace an owner's weight and limits."""
        return await self._client.call(put_owner(uid, settings))

    async def change(self, uid: int, **changes: Unpack[OwnerChanges]) -> OwnerView:
        """Change what is given of them, at once; what is not given stays as it is."""
        return await self._client.call(change_owner(uid, changes))
