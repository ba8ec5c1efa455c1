"""A side of a sync that is another cluster, reached over a link by whichever of its nodes answers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, Final, Protocol, TypeVar, cast

from jobs.errors import (
    BlobDamaged,
    BlobUnavailable,
    Compacted,
    Forbidden,
    InternalError,
    InvalidRequest,
    JobsError,
    LinkUnavailable,
    NotFound,
    ReplicationConflict,
    ReplicationLoop,
    RevisionConflict,
    StorageFull,
    TooManyRequests,
    Unavailable,
)
from jobs.forward.questions import Answer
from jobs.forward.speech import MessageError, Refused, error_of
from jobs.net import RequestFailed, Stream, StreamBroken
from jobs.records import LinkRecord
from jobs.replication import frames as f
from jobs.replication import messages as m
from jobs.replication.streams import read_told, write_pieces

logger = logging.getLogger(__name__)

T = TypeVar("T")
Q = TypeVar("Q", bound=f.AnyQuestion)
ANSWER_S: Final = 30.0
"""For one answer of one node, besides what it was asked to wait."""
SILENT_S: Final = 60.0
"""A node from which no piece of a blob comes for so long is given up."""
MAX_TEXT: Final = 1_000
TAKEN: Final = (
    BlobDamaged,
    BlobUnavailable,
    Compacted,
    Forbidden,
    InvalidRequest,
    NotFound,
    ReplicationConflict,
    ReplicationLoop,
    RevisionConflict,
    StorageFull,
    TooManyRequests,
)
"""Errors of the other cluster that are told as they are: others would be taken for ones of this cluster."""


_POSITIONED: Final = cast("type[m.Positioned | None]", m.Positioned | None)


class Way(Protocol):
    """To other clusters' nodes: `cluster.Peers`."""

    async def ask_foreign(self, peer: str, body: bytes, timeout_s: float) -> bytes: ...

    async def open_foreign(self, peer: str, header: bytes) -> Stream: ...


class ForeignSide:
    """Implements `side.Side`. `find` returns the link as it is now, or raises NotFound."""

    def __init__(self, way: Way, link: str, find: Callable[[str], LinkRecord]) -> None:
        self._way = way
        self._link = link
        self._find = find
        self._cluster = find(link).cluster
        self._last: str | None = None
        """The node that answered last."""

    @property
    def title(self) -> str:
        return f"cluster {self._link}"

    async def about(self) -> m.About:
        about = await self._ask(f.About(), m.About)
        if about.cluster != self._cluster:
            raise self._unreadable(MessageError(f"it says that it is cluster {about.cluster:.64}"))
        return about

    # --- keys ---------------------------------------------------------------------------------------------------------

    async def digests(
        self, prefix: bytes, ranges: tuple[m.Range, ...], *, revision: int, rows: int, limit: int = m.MAX_PIECES
    ) -> m.Digests:
        return await self._ask(f.Digests(prefix, ranges, revision, rows, limit), m.Digests, f.check_digests)

    async def rows(
        self, prefix: bytes, span: m.Range, *, revision: int, limit: int = m.MAX_ROWS, values: bool = True
    ) -> m.Rows:
        return await self._ask(f.Rows(prefix, span, revision, limit, values), m.Rows, f.check_rows)

    async def pick(self, prefix: bytes, names: tuple[bytes, ...], *, revision: int) -> m.Rows:
        return await self._ask(f.Pick(prefix, names, revision), m.Rows, f.check_pick)

    async def changes(
        self, prefix: bytes, after_revision: int, *, limit: int = m.MAX_EVENTS, wait_s: float = 0.0
    ) -> m.Changes:
        question = f.Changes(prefix, after_revision, limit, min(wait_s, m.MAX_WAIT_S))
        return await self._ask(question, m.Changes, f.check_changes, wait_s=question.wait_s)

    # --- the target's part --------------------------------------------------------------------------------------------

    async def cursor(self, origin: str, name: str) -> m.Positioned | None:
        return await self._ask(f.Cursor(origin, name), _POSITIONED)

    async def upstream(self, place: str) -> frozenset[str]:
        return await self._ask(f.Upstream(place), frozenset[str])

    async def apply(self, batch: m.Batch) -> m.Applied:
        return await self._ask(f.Apply(batch), m.Applied)

    # --- tags and blobs -----------------------------------------------------------------------------------------------

    async def tags(self, prefix: str, after: str, *, limit: int = m.MAX_TAGS) -> m.Tags:
        return await self._ask(f.Tags(prefix, after, limit), m.Tags, f.check_tags)

    async def tagged(self, prefix: str, names: tuple[str, ...], revision: int) -> tuple[str | None, ...]:
        return await self._ask(f.Tagged(prefix, names, revision), tuple[m.Hash | None, ...], f.check_tagged)

    async def tags_changed(self, prefix: str, after_revision: int, *, wait_s: float) -> int:
        question = f.TagsChanged(prefix, after_revision, min(wait_s, m.MAX_WAIT_S))
        return max(after_revision, await self._ask(question, int, wait_s=question.wait_s))

    async def apply_tags(self, batch: m.TagBatch) -> m.Applied:
        return await self._ask(f.ApplyTags(batch), m.Applied)

    async def blob(self, tags: str, blob: str) -> m.Blob:
        return await self._ask(f.Blob(tags, blob), m.Blob, f.check_blob)

    async def lacking(self, tags: str, blobs: tuple[str, ...]) -> tuple[str, ...]:
        found: list[str] = []
        for start in range(0, len(blobs), f.MAX_BLOBS):
            question = f.Lacking(tags, blobs[start : start + f.MAX_BLOBS])
            some: tuple[str, ...] = await self._ask(question, tuple[m.Hash, ...], f.check_lacking)
            found += some
        return tuple(found)

    async def read_blob(self, tags: str, blob: str, start: int = 0) -> AsyncIterator[bytes]:
        async with self._opened(f.ReadBlob(tags, blob, start)) as (stream, first):
            piece = first
            while isinstance(piece, f.Piece):
                yield piece.data
                piece = await self._read(stream)
            self._check_end(piece)

    async def add_blob(self, tags: str, blob: m.Blob, pieces: AsyncIterator[bytes]) -> None:
        async with self._opened(f.AddBlob(tags, blob)) as (stream, first):
            # Wanted: the node has said so.
            self._check_end(first)
            writing = asyncio.ensure_future(write_pieces(stream, pieces))
            answering = asyncio.ensure_future(self._answer(stream, writing))
            tasks: list[asyncio.Task[Any]] = [writing, answering]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                if writing.done():
                    # Why the node does not take more, its answer says.
                    with contextlib.suppress(StreamBroken):
                        await writing
                self._check_end(await answering)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)

    async def _answer(self, stream: Stream, writing: asyncio.Task[None]) -> f.Told:
        """Return what a node says of content: while it is written there is no hurry."""
        said = asyncio.ensure_future(self._said(stream))
        try:
            tasks: list[asyncio.Task[Any]] = [said, writing]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            async with asyncio.timeout(SILENT_S):
                return await said
        except TimeoutError as error:
            raise self._broken(error) from error
        finally:
            said.cancel()
            await asyncio.wait([said])

    # --- the way ------------------------------------------------------------------------------------------------------

    async def _ask(
        self, question: Q, answer: type[T], check: Callable[[Q, T], T] | None = None, *, wait_s: float = 0.0
    ) -> T:
        """Ask the nodes, the one that answered last first, until one says something. All of it may be asked twice: what
        is applied twice is refused by the cursor."""
        body = f.questions.encode(question)
        failures = _Failures(self._link)
        for peer in self._nodes():
            try:
                replied = await self._way.ask_foreign(peer, body, ANSWER_S + wait_s)
            except RequestFailed as failed:
                failures.unreached(peer, f"{failed.kind}: {failed.detail}")
                continue
            try:
                reply = f.replies.decode(replied)
                if isinstance(reply, Answer):
                    answered = f.decode_answer(reply, answer)
                    answered = answered if check is None else check(question, answered)
                    self._last = peer
                    return answered
            except MessageError as error:
                raise self._unreadable(error) from error
            failures.refused(self._passing(reply))
        raise failures.error()

    @contextlib.asynccontextmanager
    async def _opened(self, opening: f.AnyOpening) -> AsyncGenerator[tuple[Stream, f.Told]]:
        """Open a stream to one of the nodes; what comes first on it is no refusal."""
        framed = f.openings.framed(opening)
        failures = _Failures(self._link)
        for peer in self._nodes():
            try:
                stream = await self._way.open_foreign(peer, b"")
            except StreamBroken as broken:
                failures.unreached(peer, f"{broken.kind}: {broken.detail}")
                continue
            try:
                first = await self._first(stream, framed, peer, failures)
                if first is not None:
                    yield stream, first
                    return
            finally:
                stream.reset("it is over or given up")
        raise failures.error()

    async def _first(self, stream: Stream, framed: bytes, peer: str, failures: _Failures) -> f.Told | None:
        try:
            async with asyncio.timeout(ANSWER_S):
                await stream.write(framed)
                first = await read_told(stream)
        except (StreamBroken, EOFError, TimeoutError) as broken:
            failures.unreached(peer, str(broken) or f"it has said nothing for {ANSWER_S:g} s")
            return None
        except MessageError as error:
            raise self._unreadable(error) from error
        if not isinstance(first, Refused):
            self._last = peer
            return first
        failures.refused(self._passing(first))
        return None

    async def _read(self, stream: Stream) -> f.Told:
        try:
            async with asyncio.timeout(SILENT_S):
                return await self._said(stream)
        except TimeoutError as error:
            raise self._broken(error) from error

    async def _said(self, stream: Stream) -> f.Told:
        try:
            return await read_told(stream)
        except MessageError as error:
            raise self._unreadable(error) from error
        except (StreamBroken, EOFError) as broken:
            raise self._broken(broken) from broken

    def _broken(self, error: Exception) -> LinkUnavailable:
        text = str(error) or f"nothing has come for {SILENT_S:g} s"
        return LinkUnavailable(f"link {self._link}: {_clean(text)}", retry_after_s=1)

    def _check_end(self, said: f.Told) -> None:
        if isinstance(said, Refused):
            raise self._error_of(said)
        if not isinstance(said, f.End):
            raise self._unreadable(MessageError("it sends content that nobody wants"))

    def _nodes(self) -> list[str]:
        """Return the nodes in the order in which they are asked. Raises NotFound where the link is no more, or another
        one."""
        record = self._find(self._link)
        if record.cluster != self._cluster:
            raise NotFound(
                f"link {self._link} leads to another cluster now", expected="a job that begins after that change"
            )
        # Not all jobs ask the same node first.
        return sorted(record.peers, key=lambda peer: (peer != self._last, hash((id(self), peer))))

    def _passing(self, refused: Refused) -> Unavailable:
        """Return a refusal that another node may not give. Raises any other."""
        error = self._error_of(refused)
        if isinstance(error, Unavailable) and not isinstance(error, BlobUnavailable):
            return error
        raise error

    def _error_of(self, refused: Refused) -> JobsError:
        error = error_of(refused)
        detail = f"link {self._link}: {_clean(error.detail)}"
        expected = None if error.expected is None else _clean(error.expected)
        if isinstance(error, TAKEN):
            return type(error)(detail, expected=expected, retry_after_s=error.retry_after_s)
        if isinstance(error, Unavailable):
            return Unavailable(detail, expected=expected, retry_after_s=error.retry_after_s)
        return InternalError(detail, expected=expected)

    def _unreadable(self, error: Exception) -> JobsError:
        return InvalidRequest(
            f"link {self._link}: what the other cluster says cannot be used: {_clean(str(error))}",
            expected="nodes of the same release in both clusters",
        )


class _Failures:
    """Why none of a cluster's nodes has answered."""

    def __init__(self, link: str) -> None:
        self._link = link
        self._unreached: list[str] = []
        self._refused: Unavailable | None = None

    def unreached(self, peer: str, why: str) -> None:
        self._unreached.append(f"{peer[:10]} {_clean(why)}")

    def refused(self, error: Unavailable) -> None:
        self._refused = error

    def error(self) -> Unavailable:
        if self._refused is not None:
            return self._refused
        return LinkUnavailable(
            f"link {self._link}: no node of the other cluster is reached: {'; '.join(self._unreached)}",
            expected="a network between the clusters, and a link to this one there, too (jobctl replication link)",
            retry_after_s=1,
        )


def _clean(text: str) -> str:
    """Return a stranger's words so that they cannot steer a terminal or fill a log."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text[:MAX_TEXT])
