"""Rows put below a prefix of the running cluster, which others may be writing to: each batch is a compare-and-set.

Both what is to be put and what is there come in the order of their keys, so neither has to be held.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from typing import Final, Literal, TypeAlias

from msgspec import Struct

from jobs.backups import messages
from jobs.content import content_bytes, content_of
from jobs.errors import NotFound, ReplicationConflict
from jobs.protocol.model import KeyValue, KvCompare, KvOp, KvPut, KvTxn, KvTxnResult
from jobs.workers.nodeapi import NodeApi
from jobs.workers.replication.archive import line, rows_of
from jobs.workers.replication.gauge import Gauge
from jobs.workers.transfers import again

Existing: TypeAlias = Literal["replace", "keep", "fail"]
Rows: TypeAlias = Iterator[tuple[bytes, bytes]]
"""Key behind the prefix, and value, in order."""
BATCH_ROWS: Final = 400
BATCH_BYTES: Final = 2 << 20
MAX_TRIES: Final = 8
"""Of a batch whose keys others change meanwhile."""
_TOLD: Final = 5


class Came(Struct):
    """What came of it."""

    rows: int = 0
    """Keys that were put, or would be."""
    same: int = 0
    """That were there already with their values."""
    kept: int = 0
    """That were there with other values, and stayed."""

    def line(self, *, dry_run: bool) -> bytes:
        """Return it for the job's standard output."""
        put = {"would_put" if dry_run else "put": self.rows}
        return line(**put, same=self.same, kept=self.kept)


class _Step(Struct, frozen=True):
    key: bytes
    value: bytes
    mod_revision: int
    """Of what is there; 0 for nothing."""


async def put_rows(
    node: NodeApi, prefix: str, rows: Callable[[], Rows], existing: Existing, gauge: Gauge, *, dry_run: bool
) -> Came:
    """Put what `rows` gives, which is asked once to look and once to write. Done again it comes to the same.

    Raises ReplicationConflict with `fail`: before anything is written for what was there before.
    """
    if existing == "fail" or dry_run:
        looked = await _look(node, prefix, rows, existing, gauge)
        if dry_run:
            return looked
    came, batch, size_bytes = Came(), [], 0
    async with aclosing(_steps(node, prefix, rows(), gauge)) as steps:
        async for step, there in steps:
            if there == step.value:
                came.same += 1
            elif there is not None and existing == "keep":
                came.kept += 1
            else:
                batch.append(step)
                size_bytes += len(step.key) + len(step.value)
            if len(batch) >= BATCH_ROWS or size_bytes >= BATCH_BYTES:
                await _write(node, prefix, batch, existing, came)
                await gauge.advance(size_bytes, len(batch))
                batch, size_bytes = [], 0
    if batch:
        await _write(node, prefix, batch, existing, came)
        await gauge.advance(size_bytes, len(batch))
    return came


async def _look(node: NodeApi, prefix: str, rows: Callable[[], Rows], existing: Existing, gauge: Gauge) -> Came:
    """Return what would come of it. Raises ReplicationConflict."""
    came, others, some = Came(), 0, list[str]()
    async with aclosing(_steps(node, prefix, rows(), gauge)) as steps:
        async for step, there in steps:
            if there == step.value:
                came.same += 1
            elif there is None or existing == "replace":
                came.rows += 1
            elif existing == "keep":
                came.kept += 1
            else:
                others += 1
                if len(some) < _TOLD:
                    some.append(prefix + step.key.decode(errors="replace"))
    if others:
        raise ReplicationConflict(
            f"{others} keys are there with other values, and nothing was written: {', '.join(some)}"
            + (", …" if others > len(some) else ""),
            expected="`existing` replace or keep, or another prefix",
        )
    return came


async def _steps(node: NodeApi, prefix: str, rows: Rows, gauge: Gauge) -> AsyncGenerator[tuple[_Step, bytes | None]]:
    """Yield each row with what is there of its key."""
    top = prefix.encode()
    async with aclosing(_present(node, top)) as present:
        there = await anext(present, None)
        for key, value in _checked(rows):
            while there is not None and there[0] < key:
                there = await anext(present, None)
            if there is not None and there[0] == key:
                yield _Step(key, value, there[2]), there[1]
            else:
                yield _Step(key, value, 0), None
            gauge.look(0)


def _checked(rows: Rows) -> Rows:
    former: bytes | None = None
    for key, value in rows:
        assert former is None or former < key, "rows come in the order of their keys"
        yield key, value
        former = key


async def _present(node: NodeApi, top: bytes) -> AsyncGenerator[tuple[bytes, bytes, int]]:
    async with aclosing(rows_of(node, top, 0)) as found:
        async for page in found:
            if not isinstance(page, messages.RowsHead):
                for key, value, _, _, mod_revision, _ in page:
                    yield key[len(top) :], value, mod_revision


async def _write(node: NodeApi, prefix: str, batch: list[_Step], existing: Existing, came: Came) -> None:
    """Put a batch, unless others have changed something of it: then look again."""
    for _ in range(MAX_TRIES):
        wanted = KvTxn(
            compare=[
                KvCompare(key=_name(prefix, step), target="mod_revision", number=step.mod_revision) for step in batch
            ],
            then=[KvOp(put=KvPut(key=_name(prefix, step), value=content_of(step.value))) for step in batch],
        )
        done = await again(lambda wanted=wanted: node.post("/v1/kv:txn", KvTxnResult, wanted))  # type: ignore[misc]
        if done.succeeded:
            came.rows += len(batch)
            return
        batch = await _looked_at(node, prefix, batch, existing, came)
        if not batch:
            return
    raise ReplicationConflict(
        f"others change {_name(prefix, batch[0])} and keys by it all the time; keys before it were put",
        expected="the same once nobody writes there",
    )


async def _looked_at(node: NodeApi, prefix: str, batch: list[_Step], existing: Existing, came: Came) -> list[_Step]:
    """Return what of a batch is still to be put."""
    left: list[_Step] = []
    for step in batch:
        name = _name(prefix, step)
        try:
            found = await again(lambda name=name: node.get("/v1/kv", KeyValue, {"key": name}))  # type: ignore[misc]
        except NotFound:
            left.append(_Step(step.key, step.value, 0))
            continue
        if content_bytes(found.value, "$.value") == step.value:
            came.same += 1
        elif existing == "keep":
            came.kept += 1
        elif existing == "fail" and found.mod_revision != step.mod_revision:
            raise ReplicationConflict(
                f"{name} was written by others meanwhile; {came.rows} keys before it were put",
                expected="`existing` replace or keep",
            )
        else:
            left.append(_Step(step.key, step.value, found.mod_revision))
    return left


def _name(prefix: str, step: _Step) -> str:
    return prefix + step.key.decode()
