"""Stores for queries: filled and closed, then seen by a snapshot, with DataFusion's session over its tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from datafusion import SessionConfig, SessionContext

from jobs._native import SQL_TABLES, SqlSnapshot, Store
from jobs.store import MAX_TXN_OPS, Op, Txn, decode_results, encode_command


def write(directory: Path, ops: Iterable[Op]) -> int:
    """Write to the store in a directory, which nobody has open; return its revision."""
    store = Store(str(directory))
    ops = tuple(ops)
    try:
        for start in range(0, len(ops), MAX_TXN_OPS):
            command = encode_command([Txn(then=ops[start : start + MAX_TXN_OPS])])
            (result,) = store.apply([(store.applied_index + 1, 1, command)])
            assert not decode_results(result)[0].error
        return store.revision
    finally:
        store.close()


def session(
    snapshot: SqlSnapshot, *, owner: int | None = None, partitions: int = 2, **tables: dict[str, Any]
) -> SessionContext:
    """Return a session with all tables of records, and tables of users by their definitions."""
    context = SessionContext(SessionConfig().with_target_partitions(partitions))
    for name in SQL_TABLES:
        context.register_table(name, snapshot.table(name, owner=owner))
    for name, definition in tables.items():
        context.register_table(name, snapshot.user_table(json.dumps(definition), owner=owner))
    return context


@contextmanager
def open_session(
    directory: Path, *, owner: int | None = None, revision: int = 0, **tables: dict[str, Any]
) -> Iterator[tuple[SqlSnapshot, SessionContext]]:
    """A snapshot of a store, and a session over it."""
    snapshot = SqlSnapshot(str(directory), revision=revision)
    try:
        yield snapshot, session(snapshot, owner=owner, **tables)
    finally:
        snapshot.close()


def answer(context: SessionContext, query: str) -> list[dict[str, Any]]:
    return table_of(context, query).to_pylist()


def table_of(context: SessionContext, query: str) -> pa.Table:
    return context.sql(query).to_arrow_table()


def plan(context: SessionContext, query: str) -> str:
    """Return the physical plan of a query."""
    rows = answer(context, f"EXPLAIN {query}")
    return next(str(row["plan"]) for row in rows if row["plan_type"] == "physical_plan")
