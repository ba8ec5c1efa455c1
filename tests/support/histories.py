"""Histories made up from a register that really is linearizable, with random overlapping calls; and faults planted in
it, each of which no single copy of the data could explain."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct

from tests.support.linearizability import Operation

Fault = Literal["stale read", "lost write", "double effect", "never written"]
FAULTS: tuple[Fault, ...] = ("stale read", "lost write", "double effect", "never written")
CALL_NS = 1_000_000


class _Call(Struct):
    """An operation without its result, and the moment at which it happens; None for never."""

    operation: Operation
    at_ns: int | None


class _Planted(Struct, frozen=True):
    """A get that answers wrongly, and the writes that the fault is about."""

    fault: Fault
    read: Operation
    older: Operation
    newer: Operation


def make_history(
    chance: random.Random,
    *,
    operations: int,
    clients: int = 5,
    keys: int = 1,
    lost_answers: float = 0.0,
    fault: Fault | None = None,
) -> list[Operation]:
    """Return what clients saw of one copy of the data; of a part, `lost_answers`, they do not know what happened.

    With a fault, it is planted at a random place that it can be seen from; ValueError when there is none.
    """
    calls = [
        call for client in range(clients) for call in _calls(chance, client, operations // clients, keys, lost_answers)
    ]
    effects = sorted((call for call in calls if call.at_ns is not None), key=lambda call: call.at_ns or 0)
    order = [call.operation for call in effects]
    planted = None
    if fault is not None:
        places = list(_places(fault, order))
        if not places:
            raise ValueError(f"nowhere in this history can a {fault} be seen")
        planted = chance.choice(places)
    never = [call.operation for call in calls if call.at_ns is None]
    return [*_run(order, planted), *never]


def without_revisions(history: Sequence[Operation]) -> list[Operation]:
    return [msgspec.structs.replace(operation, revision=None) for operation in history]


def _calls(chance: random.Random, client: int, count: int, keys: int, lost_answers: float) -> Iterator[_Call]:
    """Yield what one client does, one call after the other; after a lost answer it goes on as another client."""
    now_ns = chance.randrange(CALL_NS)
    seen: dict[str, str] = {}
    for number in range(count):
        key = f"k{chance.randrange(keys)}"
        kind: Any = chance.choice(("get", "get", "get", "put", "put", "cas", "delete"))
        called_ns = now_ns + chance.randrange(CALL_NS // 4)
        at_ns: int | None = called_ns + chance.randrange(1, CALL_NS)
        answered_ns: int | None = (at_ns or 0) + chance.randrange(1, CALL_NS)
        now_ns = answered_ns or 0
        if chance.random() < lost_answers:
            answered_ns = None
            at_ns = None if chance.random() < 0.5 else called_ns + chance.randrange(1, 20 * CALL_NS)
        operation = Operation(
            client=client,
            key=key,
            kind=kind,
            called_ns=called_ns,
            answered_ns=answered_ns,
            value=f"{client}.{number}" if kind in ("put", "cas") else None,
            expected=seen.get(key, 0),
        )
        if kind == "put":
            seen[key] = f"{client}.{number}"
        yield _Call(operation, at_ns)


def _places(fault: Fault, order: Sequence[Operation]) -> Iterator[_Planted]:
    """Yield where a fault would be seen: reads called after two puts that followed each other were answered, with no
    other change of the key between the second put and the read."""
    puts: dict[str, list[Operation]] = {}
    for operation in order:
        known = puts.setdefault(operation.key, [])
        if operation.kind == "put" and operation.is_known:
            known.append(operation)
        elif operation.kind != "get":
            known.clear()
        elif len(known) >= 2 and operation.is_known:
            older, newer = known[-2:]
            if older.end_ns < newer.called_ns and newer.end_ns < operation.called_ns:
                yield _Planted(fault, operation, older, newer)


def _run(order: Sequence[Operation], planted: _Planted | None) -> Iterator[Operation]:
    """Let the operations happen one after the other and yield each with its answer."""
    held: dict[str, tuple[str, int]] = {}
    revision = 0
    older: tuple[str, int] | None = None
    for operation in order:
        key, value = operation.key, operation.value
        before = held.get(key)
        if planted is not None and operation is planted.read:
            assert older is not None
            revision += planted.fault == "double effect"
            before = {
                "stale read": older,
                "lost write": older,
                "double effect": (older[0], revision),
                "never written": ("never", revision),
            }[planted.fault]
            if planted.fault in ("lost write", "double effect"):
                held[key] = before
        answer: tuple[str | None, bool, int | None]
        if operation.kind == "get":
            answer = (before[0], True, before[1]) if before else (None, True, None)
        elif operation.kind == "delete" and before is None:
            answer = (None, False, None)
        elif operation.kind == "cas" and operation.expected != (before[0] if before else 0):
            answer = (value, False, None)
        else:
            revision += 1
            answer = (value, True, revision)
            held.pop(key, None)
            if value is not None:
                held[key] = (value, revision)
        if planted is not None and operation is planted.older:
            older = held[key]
        if operation.is_known:
            value, succeeded, known = answer
            yield msgspec.structs.replace(operation, value=value, succeeded=succeeded, revision=known)
        else:
            yield operation
