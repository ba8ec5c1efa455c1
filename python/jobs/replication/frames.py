"""What nodes of two clusters say to each other: the questions of `side.Side` as bytes, and what an answer must be like.
Pure.

The other cluster is a stranger that is trusted with what its link allows and with nothing else: what it says is bounded
here, and an answer that does not fit its question is refused before anybody goes by it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Final, TypeAlias, TypeVar

import msgspec
from msgspec import Meta, Struct

from jobs.blobs.collection import MAX_FILES
from jobs.forward.questions import Answer
from jobs.forward.speech import Codec, MessageError, Refused
from jobs.protocol.model.base import Name
from jobs.replication import messages as m

SUBJECT: Final = "replication between clusters"
MAX_FRAME_BYTES: Final = 1 << 20
"""Of a stream; pieces of content are smaller."""
MAX_PIECE_BYTES: Final = 256 << 10
MAX_CURSOR_BYTES: Final = 16 << 10
MAX_BLOBS: Final = MAX_FILES + 1
"""Of one question, and children of one collection."""

Cluster: TypeAlias = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}\Z")]
TagName: TypeAlias = Annotated[str, Meta(max_length=128)]
_Count: TypeAlias = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
_Wait: TypeAlias = Annotated[float, Meta(ge=0, le=m.MAX_WAIT_S)]
_Hashes: TypeAlias = Annotated[tuple[m.Hash, ...], Meta(max_length=MAX_BLOBS)]


class Question(Struct, frozen=True, array_like=True):
    pass


# --- of keys ----------------------------------------------------------------------------------------------------------


class About(Question, frozen=True, tag=1):
    pass


class Digests(Question, frozen=True, tag=2):
    prefix: m.Prefix
    ranges: Annotated[tuple[m.Range, ...], Meta(min_length=1, max_length=m.MAX_RANGES)]
    revision: _Count
    rows: Annotated[int, Meta(ge=1, le=1 << 30)]
    limit: Annotated[int, Meta(ge=1, le=m.MAX_PIECES)]


class Rows(Question, frozen=True, tag=3):
    prefix: m.Prefix
    span: m.Range
    revision: _Count
    limit: Annotated[int, Meta(ge=1, le=m.MAX_ROWS)]
    values: bool


class Pick(Question, frozen=True, tag=4):
    prefix: m.Prefix
    names: Annotated[tuple[m.Key, ...], Meta(max_length=m.MAX_ROWS)]
    revision: _Count


class Changes(Question, frozen=True, tag=5):
    prefix: m.Prefix
    after_revision: _Count
    limit: Annotated[int, Meta(ge=1, le=m.MAX_EVENTS)]
    wait_s: _Wait


class Cursor(Question, frozen=True, tag=6):
    origin: Cluster
    name: Name


class Upstream(Question, frozen=True, tag=7):
    place: Annotated[str, Meta(max_length=1_024)]


class Apply(Question, frozen=True, tag=8):
    batch: m.Batch


# --- of tags and blobs ------------------------------------------------------------------------------------------------


class Tags(Question, frozen=True, tag=9):
    prefix: TagName
    after: TagName
    limit: Annotated[int, Meta(ge=1, le=m.MAX_TAGS)]


class Tagged(Question, frozen=True, tag=10):
    prefix: TagName
    names: Annotated[tuple[TagName, ...], Meta(max_length=m.MAX_TAGS)]
    revision: _Count


class TagsChanged(Question, frozen=True, tag=11):
    prefix: TagName
    after_revision: _Count
    wait_s: _Wait


class ApplyTags(Question, frozen=True, tag=12):
    batch: m.TagBatch


class Blob(Question, frozen=True, tag=13):
    tags: TagName
    blob: m.Hash


class Lacking(Question, frozen=True, tag=14):
    tags: TagName
    blobs: _Hashes


AnyQuestion: TypeAlias = (
    About
    | Digests
    | Rows
    | Pick
    | Changes
    | Cursor
    | Upstream
    | Apply
    | Tags
    | Tagged
    | TagsChanged
    | ApplyTags
    | Blob
    | Lacking
)
Reply: TypeAlias = Answer | Refused

# --- streams: what comes first says what for --------------------------------------------------------------------------


class ReadBlob(Question, frozen=True, tag=1):
    """Pieces and the end come back."""

    tags: TagName
    blob: m.Hash
    start: _Count


class AddBlob(Question, frozen=True, tag=2):
    """Pieces and the end are sent, and the end comes back."""

    tags: TagName
    blob: m.Blob


AnyOpening: TypeAlias = ReadBlob | AddBlob


class Piece(Struct, frozen=True, array_like=True, tag=1):
    data: Annotated[bytes, Meta(min_length=1, max_length=MAX_PIECE_BYTES)]


class End(Struct, frozen=True, array_like=True, tag=2):
    """That was all, and it is well."""


Told: TypeAlias = Piece | End | Refused

questions: Final[Codec[AnyQuestion]] = Codec(AnyQuestion, m.VERSION, SUBJECT)
replies: Final[Codec[Reply]] = Codec(Reply, m.VERSION, SUBJECT)
openings: Final[Codec[AnyOpening]] = Codec(AnyOpening, m.VERSION, SUBJECT)
told: Final[Codec[Told]] = Codec(Told, m.VERSION, SUBJECT)

# --- what answers must be like ----------------------------------------------------------------------------------------

T = TypeVar("T")


def decode_answer(answer: Answer, kind: type[T]) -> T:
    """Raises MessageError; as those below."""
    try:
        return msgspec.msgpack.decode(answer.body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(f"it answers with what cannot be read: {error}") from error


def check_digests(question: Digests, answer: m.Digests) -> m.Digests:
    """Return the answer, if it is one, and goes on where it does not end."""
    _check(1 <= len(answer.ranges) <= len(question.ranges), "pieces of other ranges than were asked for")
    for span, pieces in zip(question.ranges, answer.ranges, strict=False):
        _check_keys(span, [piece.last for piece in pieces])
    start, end = question.ranges[len(answer.ranges) - 1]
    if answer.next is not None:
        # A single range may have been gone through without the end of a piece.
        is_further = answer.next > start or len(answer.ranges) > 1
        _check(is_further and answer.next >= start and _before(answer.next, end), "digests that lead nowhere")
    return answer


def check_rows(question: Rows, answer: m.Rows) -> m.Rows:
    _check_keys(question.span, [row.key for row in answer.rows])
    _check(question.values or not any(row.value for row in answer.rows), "values that were not asked for")
    if answer.next is not None:
        start, end = question.span
        last = answer.rows[-1].key if answer.rows else start
        _check(answer.next > last and _before(answer.next, end), "rows that lead nowhere")
    return answer


def check_pick(question: Pick, answer: m.Rows) -> m.Rows:
    order = iter(question.names)
    _check(all(row.key in order for row in answer.rows), "rows that were not asked for, or in another order")
    if answer.next is not None:
        _check(answer.next in question.names and answer.next != question.names[0], "rows that lead nowhere")
    return answer


def check_changes(question: Changes, answer: m.Changes) -> m.Changes:
    after = question.after_revision
    _check(after <= answer.up_to <= answer.newest, "changes up to a revision that cannot be")
    last = (after + 1, b"")
    for change in answer.changes:
        _check(after < change.revision <= answer.up_to, "changes of other revisions")
        _check((change.revision, change.key) >= last, "changes out of their order")
        last = (change.revision, change.key)
    return answer


def check_tags(question: Tags, answer: m.Tags) -> m.Tags:
    last = question.after
    for tag in answer.tags:
        _check(tag.name.startswith(question.prefix), "tags that were not asked for")
        _check(tag.name > last, "tags out of their order")
        last = tag.name
    _check(answer.next is None or answer.next > question.after, "tags that lead nowhere")
    return answer


def check_tagged(question: Tagged, answer: tuple[str | None, ...]) -> tuple[str | None, ...]:
    _check(len(answer) == len(question.names), "an answer for other tags")
    return answer


def check_blob(question: Blob, answer: m.Blob) -> m.Blob:
    _check(answer.hash == question.blob, "another blob")
    _check(len(answer.children) <= MAX_BLOBS, f"a collection of more than {MAX_BLOBS} blobs")
    return answer


def check_lacking(question: Lacking, answer: tuple[str, ...]) -> tuple[str, ...]:
    _check(set(answer) <= set(question.blobs), "blobs that were not asked for")
    return answer


def _check(is_right: bool, what: str) -> None:
    if not is_right:
        raise MessageError(f"it answers with {what}")


def _check_keys(span: m.Range, found: Iterable[bytes]) -> None:
    start, end = span
    last: bytes | None = None
    for key in found:
        _check(key >= start and _before(key, end), "keys outside of the range")
        _check(last is None or key > last, "keys out of their order")
        last = key


def _before(key: bytes, end: bytes | None) -> bool:
    return end is None or key < end
