"""What another cluster's nodes may ask here, by the scopes of its link. Pure.

Who may write below a prefix may also learn which keys are there and whether they are as they are to be, which a sync
has to know; values are for who may read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from jobs import records
from jobs.errors import Forbidden, InvalidRequest
from jobs.protocol.model.base import Name
from jobs.records import LinkRecord
from jobs.replication import frames as f
from jobs.replication import messages as m
from jobs.replication.origins import TAGS


def check_question(link: LinkRecord, question: f.AnyQuestion | f.AnyOpening) -> None:
    """Raises Forbidden for what the link does not allow, naming it, and InvalidRequest for what nobody may ask."""
    _CHECKS[type(question)](link, question)


def _compare_keys(link: LinkRecord, prefix: bytes) -> None:
    scopes = (*link.scopes.read, *link.scopes.write)
    _check_keys(link, prefix, "compare", scopes, "--allow-read or --allow-write")


def _digests(link: LinkRecord, question: f.Digests) -> None:
    _compare_keys(link, question.prefix)
    if question.rows & (question.rows - 1):
        raise InvalidRequest(f"pieces of {question.rows} rows", expected="a power of two")


def _read_keys(link: LinkRecord, prefix: bytes) -> None:
    _check_keys(link, prefix, "read", link.scopes.read, "--allow-read")


def _rows(link: LinkRecord, question: f.Rows) -> None:
    (_read_keys if question.values else _compare_keys)(link, question.prefix)


def _compare_tags(link: LinkRecord, prefix: str) -> None:
    scopes = (*link.scopes.read_tags, *link.scopes.write_tags)
    _check_tags(link, prefix, "compare", scopes, "--allow-read-tags or --allow-write-tags")


def _upstream(link: LinkRecord, question: f.Upstream) -> None:
    if question.place.startswith(TAGS):
        _compare_tags(link, question.place.removeprefix(TAGS))
    else:
        _compare_keys(link, question.place.encode())


def _check_batch(link: LinkRecord, batch: m.Batch) -> None:
    _check_sync(link, batch)
    _check_cursor(batch.cursor, is_tags=False)
    _check_keys(link, batch.cursor.target_prefix.encode(), "write", link.scopes.write, "--allow-write")
    size = sum(len(change.key) + len(change.value or b"") for change in batch.changes)
    if size > m.MAX_BATCH_BYTES and len(batch.changes) > 1:
        raise InvalidRequest(
            f"a batch of {size} bytes", expected=f"at most {m.MAX_BATCH_BYTES}, unless it is one change"
        )


def _check_tag_batch(link: LinkRecord, batch: m.TagBatch) -> None:
    _check_sync(link, batch)
    _check_cursor(batch.cursor, is_tags=True)
    _check_tags(link, batch.cursor.target_prefix, "write", link.scopes.write_tags, "--allow-write-tags")
    for change in batch.changes:
        if not change.name.startswith(batch.cursor.target_prefix):
            raise Forbidden(
                f"tag {change.name!r} is not one of the sync's", expected=f"{batch.cursor.target_prefix!r} in front"
            )


def _check_cursor(cursor: records.CursorRecord, *, is_tags: bool) -> None:
    if cursor.is_tags != is_tags:
        raise InvalidRequest("a cursor of keys for tags, or of tags for keys", expected="the cursor of the sync itself")
    if (size := len(records.encode(cursor))) > f.MAX_CURSOR_BYTES:
        raise InvalidRequest(f"a cursor of {size} bytes", expected=f"at most {f.MAX_CURSOR_BYTES}")


def _check_sync(link: LinkRecord, batch: m.Batch | m.TagBatch) -> None:
    _check_own(link, batch.origin)
    try:
        msgspec.convert(batch.name, Name)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"{batch.name!r} is no name of a sync", expected="a name") from error


def _check_own(link: LinkRecord, origin: str) -> None:
    if origin != link.cluster:
        raise Forbidden(f"cluster {link.cluster} may not touch the syncs of cluster {origin}")


def _check_keys(link: LinkRecord, prefix: bytes, what: str, scopes: Sequence[str], option: str) -> None:
    if not any(prefix.startswith(scope.encode()) for scope in scopes):
        raise _forbidden(link, what, f"keys that begin with {prefix.decode(errors='replace')!r}", scopes, option)


def _check_tags(link: LinkRecord, prefix: str, what: str, scopes: Sequence[str], option: str) -> None:
    if not any(prefix.startswith(scope) for scope in scopes):
        raise _forbidden(link, what, f"tags that begin with {prefix!r}", scopes, option)


def _forbidden(link: LinkRecord, what: str, which: str, scopes: Sequence[str], option: str) -> Forbidden:
    allowed = ", ".join(map(repr, scopes)) or "nothing"
    return Forbidden(
        f"the cluster that is asked does not let cluster {link.cluster} {what} {which}",
        expected=f"what its link allows: {allowed} (in that cluster: jobctl replication link {option})",
    )


def _read_tags(link: LinkRecord, question: f.Blob | f.ReadBlob) -> None:
    _check_tags(link, question.tags, "read", link.scopes.read_tags, "--allow-read-tags")


def _write_tags(link: LinkRecord, question: f.Lacking | f.AddBlob) -> None:
    _check_tags(link, question.tags, "write", link.scopes.write_tags, "--allow-write-tags")


_CHECKS: Final[dict[type, Callable[[LinkRecord, Any], None]]] = {
    f.About: lambda link, question: None,
    f.Digests: _digests,
    f.Rows: _rows,
    f.Pick: lambda link, question: _read_keys(link, question.prefix),
    f.Changes: lambda link, question: _read_keys(link, question.prefix),
    f.Cursor: lambda link, question: _check_own(link, question.origin),
    f.Upstream: _upstream,
    f.Apply: lambda link, question: _check_batch(link, question.batch),
    f.Tags: lambda link, question: _compare_tags(link, question.prefix),
    f.Tagged: lambda link, question: _compare_tags(link, question.prefix),
    f.TagsChanged: lambda link, question: _compare_tags(link, question.prefix),
    f.ApplyTags: lambda link, question: _check_tag_batch(link, question.batch),
    f.Blob: _read_tags,
    f.ReadBlob: _read_tags,
    f.Lacking: _write_tags,
    f.AddBlob: _write_tags,
}
