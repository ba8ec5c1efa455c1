"""Serves the nodes of linked clusters: what their link allows is asked of this cluster's own side."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Final, TypeAlias

import msgspec

from jobs.cluster import Peers
from jobs.errors import BlobDamaged, InternalError, InvalidRequest, JobsError, TooManyRequests, Unavailable
from jobs.forward.questions import Answer
from jobs.forward.speech import MessageError, refusal
from jobs.logs import Seldom
from jobs.net import Stream, StreamBroken
from jobs.records import LinkRecord
from jobs.replication import frames as f
from jobs.replication import messages as m
from jobs.replication.scopes import check_question
from jobs.replication.side import Side
from jobs.replication.streams import closing, read_opening, read_told, write_pieces, write_told

logger = logging.getLogger(__name__)

MAX_SERVED: Final = 128
"""Questions and streams of one cluster that are served at a time; one more is refused."""
LONG_AT_ONCE: Final = 2
"""Of those for which many rows are read, of all clusters: they leave this node's threads and memory to itself."""
OPENING_S: Final = 10.0
SILENT_S: Final = 60.0
LINGER_S: Final = 10.0
"""For so long the end of a stream may take to be read."""

_LONG: Final = (f.Digests, f.Rows, f.Pick, f.Changes)
_Answering: TypeAlias = Callable[[Side, Any], Awaitable[Any]]

_ANSWERING: Final[dict[type, _Answering]] = {
    f.About: lambda side, asked: side.about(),
    f.Digests: lambda side, asked: side.digests(
        asked.prefix, asked.ranges, revision=asked.revision, rows=asked.rows, limit=asked.limit
    ),
    f.Rows: lambda side, asked: side.rows(
        asked.prefix, asked.span, revision=asked.revision, limit=asked.limit, values=asked.values
    ),
    f.Pick: lambda side, asked: side.pick(asked.prefix, asked.names, revision=asked.revision),
    f.Changes: lambda side, asked: side.changes(asked.prefix, asked.after_revision, limit=asked.limit),
    f.Cursor: lambda side, asked: side.cursor(asked.origin, asked.name),
    f.Upstream: lambda side, asked: side.upstream(asked.place),
    f.Apply: lambda side, asked: side.apply(asked.batch),
    f.Tags: lambda side, asked: side.tags(asked.prefix, asked.after, limit=asked.limit),
    f.Tagged: lambda side, asked: side.tagged(asked.prefix, asked.names, asked.revision),
    f.TagsChanged: lambda side, asked: side.tags_changed(asked.prefix, asked.after_revision, wait_s=asked.wait_s),
    f.ApplyTags: lambda side, asked: side.apply_tags(asked.batch),
    f.Blob: lambda side, asked: side.blob(asked.tags, asked.blob),
    f.Lacking: lambda side, asked: side.lacking(asked.tags, asked.blobs),
}


class ForeignDesk:
    """`find` returns the link of a node of another cluster as this node's store has it, or None. `reached` returns when
    that store has all that was acknowledged before: so nothing is done over a link that was cut before it was asked."""

    def __init__(
        self,
        peers: Peers,
        side: Side,
        find: Callable[[str], LinkRecord | None],
        reached: Callable[[], Awaitable[object]],
    ) -> None:
        self._side = side
        self._find = find
        self._reached = reached
        self._serving: Counter[str] = Counter()
        self._turns = asyncio.Semaphore(LONG_AT_ONCE)
        self._seldom = Seldom(60.0)
        self.answered = 0
        self.refused = 0
        peers.on_foreign_request = self._on_request
        peers.on_foreign_stream = self._on_stream

    async def _on_request(self, peer: str, body: bytes) -> bytes:
        try:
            question = f.questions.decode(body)
            with self._place(peer):
                await self._reached()
                self._check(peer, question)
                answer = await self._answer(question)
                # A question may have waited for what has been written since the link was changed.
                self._check(peer, question)
        except MessageError as error:
            # Of another version, it can at least read of which one this is.
            return f.replies.encode(refusal(self._refuse(peer, InvalidRequest(str(error), expected=_SAME_RELEASE))))
        except JobsError as error:
            return f.replies.encode(refusal(self._refuse(peer, error)))
        except Exception as error:
            return f.replies.encode(refusal(self._refuse(peer, self._fault(peer, error))))
        self.answered += 1
        return f.replies.encode(Answer(msgspec.msgpack.encode(answer)))

    async def _answer(self, question: f.AnyQuestion) -> object:
        answer = await self._answer_now(question)
        if isinstance(question, f.Changes) and question.wait_s and _has_nothing(answer):
            # Whoever waits has no turn, and is told no more than that there is something.
            await self._side.changes(question.prefix, question.after_revision, limit=1, wait_s=question.wait_s)
            answer = await self._answer_now(question)
        return answer

    async def _answer_now(self, question: f.AnyQuestion) -> object:
        async with self._turns if isinstance(question, _LONG) else contextlib.nullcontext():
            return await _ANSWERING[type(question)](self._side, question)

    async def _on_stream(self, peer: str, header: bytes, stream: Stream) -> None:
        try:
            await self._serve(peer, stream)
        except StreamBroken as broken:
            logger.debug("%s", broken)
            return
        except (EOFError, TimeoutError):
            error = InvalidRequest("the stream does not say what it is for", expected="one that does")
            await write_told(stream, refusal(self._refuse(peer, error)))
        except MessageError as error:
            await write_told(stream, refusal(self._refuse(peer, InvalidRequest(str(error), expected=_SAME_RELEASE))))
        except JobsError as error:
            await write_told(stream, refusal(self._refuse(peer, error)))
        except Exception as error:
            await write_told(stream, refusal(self._refuse(peer, self._fault(peer, error))))
        await _end(stream)

    async def _serve(self, peer: str, stream: Stream) -> None:
        with self._place(peer):
            async with asyncio.timeout(OPENING_S):
                opening = await read_opening(stream)
            await self._reached()
            self._check(peer, opening)
            if isinstance(opening, f.ReadBlob):
                content = self._side.read_blob(opening.tags, opening.blob, opening.start)
                await write_pieces(stream, self._allowed(peer, opening, content))
            else:
                await write_told(stream, f.End())
                content = _pieces(stream, opening.blob.size_bytes)
                await self._side.add_blob(opening.tags, opening.blob, self._allowed(peer, opening, content))
                await write_told(stream, f.End())
        self.answered += 1

    async def _allowed(self, peer: str, opening: f.AnyOpening, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Pass content on for as long as the link allows it."""
        async with closing(pieces):
            async for piece in pieces:
                self._check(peer, opening)
                yield piece

    def _check(self, peer: str, question: f.AnyQuestion | f.AnyOpening) -> None:
        link = self._find(peer)
        if link is None:
            raise Unavailable("there is no link here any more to the cluster that asks")
        check_question(link, question)

    @contextlib.contextmanager
    def _place(self, peer: str) -> Iterator[None]:
        """Take one of the places of the peer's cluster."""
        link = self._find(peer)
        cluster = "" if link is None else link.cluster
        if self._serving[cluster] >= MAX_SERVED:
            raise TooManyRequests(f"{MAX_SERVED} questions of this cluster are answered already", retry_after_s=1)
        self._serving[cluster] += 1
        try:
            yield
        finally:
            self._serving[cluster] -= 1
            self._serving = +self._serving

    def _fault(self, peer: str, error: Exception) -> InternalError:
        """Take note of a fault of this node, without letting whoever asks fill its log with it."""
        if (left_out := self._seldom.left_out(f"{peer} fault")) is not None:
            logger.error("a question of another cluster failed", exc_info=error, extra={"left_out": left_out})
        return InternalError("internal error")

    def _refuse(self, peer: str, error: JobsError) -> JobsError:
        self.refused += 1
        if (left_out := self._seldom.left_out(f"{peer} {error.code}")) is not None:
            logger.warning("refused a node of another cluster: %s", error, extra={"peer": peer, "left_out": left_out})
        return error


def _has_nothing(answer: object) -> bool:
    return isinstance(answer, m.Changes) and not answer.changes and answer.up_to >= answer.newest


_SAME_RELEASE: Final = "nodes of the same release in both clusters"


async def _pieces(stream: Stream, size_bytes: int) -> AsyncIterator[bytes]:
    """Return the content that comes. Raises BlobDamaged for more of it than was said."""
    came = 0
    while True:
        try:
            async with asyncio.timeout(SILENT_S):
                said = await read_told(stream)
        except (EOFError, TimeoutError) as error:
            raise InvalidRequest(
                "the content ends before its end", expected=f"{size_bytes} bytes, of which {came} came"
            ) from error
        if isinstance(said, f.End):
            return
        if not isinstance(said, f.Piece):
            raise InvalidRequest("a refusal in place of content", expected="pieces of content, and an end")
        came += len(said.data)
        if came > size_bytes:
            raise BlobDamaged(f"more content came than the {size_bytes} bytes that were said")
        yield said.data


async def _end(stream: Stream) -> None:
    """Leave the other side time to read what was written, and no more than that."""
    await stream.finish()
    try:
        async with asyncio.timeout(LINGER_S):
            await stream.closed
    except (TimeoutError, StreamBroken):
        stream.reset("it is over")
