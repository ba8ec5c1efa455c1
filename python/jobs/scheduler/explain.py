"""Why a job that is ready is not started: what a plan made now would find against it. Pure, and changes nothing.

A plan starts a job as soon as there is neither a limit against it nor room missing, one after the other in the order of
the queues. So a job of which nothing is told here is started by the plans to come, at its turn.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from msgspec import Struct

from jobs.protocol.ids import WorkerId
from jobs.protocol.model import Obstacle, ObstacleKind, Requires, WorkerFit
from jobs.records import Demand
from jobs.scheduler import rate
from jobs.scheduler.backlog import Backlog
from jobs.scheduler.rooms import Candidate, Shape

MAX_WORKERS: Final = 100
MAX_HOLDERS: Final = 20
_MIB: Final = 1 << 20


class Finding(Struct, frozen=True, kw_only=True):
    """What is against a start."""

    obstacles: list[Obstacle]
    workers: list[WorkerFit]
    """Nearest first, not all if they are many."""
    more_workers: int
    reserved: WorkerId | None
    """A worker that is kept for jobs that ask the same."""


def explain(
    backlog: Backlog,
    demand: Demand,
    queue: str,
    owner: int,
    workers: Collection[Candidate],
    shut: Mapping[WorkerId, str],
    now_ms: int,
) -> Finding:
    """Return what is against starting a job of this queue and owner now; `shut` says why workers are not open."""
    shape = Shape(demand)
    kept = {worker: state.shape.name for worker, state in backlog.parking.reserved.items()}
    fits = [_fit(shape, worker, kept.get(worker.worker, shape.name) == shape.name, shut) for worker in workers]
    fits.sort(key=lambda fit: (not fit.takes, not fit.suits, len(fit.lacks), fit.worker))
    obstacles = [*_limits(backlog, queue, owner, now_ms), *_key(backlog, demand), *_room(demand.type, fits)]
    return Finding(
        obstacles=obstacles,
        workers=fits[:MAX_WORKERS],
        more_workers=max(0, len(fits) - MAX_WORKERS),
        reserved=backlog.parking.is_reserved(shape),
    )


# --- limits -----------------------------------------------------------------------------------------------------------


def _limits(backlog: Backlog, queue: str, owner: int, now_ms: int) -> list[Obstacle]:
    record, usage = backlog.queue(queue), backlog.usage
    found: list[Obstacle] = []
    if record.paused:
        found.append(Obstacle(kind="paused", text=f"queue {queue} is paused"))
    whose = f"of uid {owner}"
    limits: tuple[tuple[ObstacleKind, str, int, int | None], ...] = (
        ("queue_limit", f"in queue {queue}", usage.of_queue(queue), record.max_running),
        ("share_limit", f"{whose} in queue {queue}", usage.of_share(queue, owner), record.max_running_per_owner),
        ("owner_limit", whose, usage.of_owner(owner), backlog.owner(owner).max_running),
    )
    for kind, which, count, limit in limits:
        if limit is not None and count >= limit:
            text = f"{_running(count)} {which}; the limit is {limit}"
            found.append(Obstacle(kind=kind, text=text, count=count, limit=limit))
    due_ms = rate.allowed_from_ms(backlog.arrival_us(queue), record, now_ms)
    if due_ms is not None:
        text = f"the rate of queue {queue} is {record.rate_count} starts in {record.rate_period_s:g} s"
        found.append(Obstacle(kind="rate", text=text, until_ms=due_ms))
    return found


def _key(backlog: Backlog, demand: Demand) -> list[Obstacle]:
    key, limit = demand.concurrency_key, demand.concurrency_limit
    if key is None:
        return []
    holders = sorted(backlog.usage.holders(key))
    if len(holders) < limit:
        return []
    return [
        Obstacle(
            kind="concurrency_key",
            text=f"{_running(len(holders))} under concurrency key {key}; the limit is {limit}",
            count=len(holders),
            limit=limit,
            jobs=holders[:MAX_HOLDERS],
            more_jobs=max(0, len(holders) - MAX_HOLDERS),
        )
    ]


def _running(count: int) -> str:
    return "1 job is running" if count == 1 else f"{count} jobs are running"


# --- workers ----------------------------------------------------------------------------------------------------------


def _room(kind: str, fits: Sequence[WorkerFit]) -> list[Obstacle]:
    """Return what is against the job on the workers' side; nothing if one of them takes it."""
    if any(fit.takes for fit in fits):
        return []
    suitable = sum(fit.suits for fit in fits)
    if suitable:
        what = "the worker that it suits has" if suitable == 1 else f"the {suitable} workers that it suits have"
        return [Obstacle(kind="room", text=f"{what} no room for it now")]
    if len(fits) > 1:
        text = f"none of the {len(fits)} registered workers can ever take it"
    elif fits:
        text = "the only registered worker can never take it"
    else:
        text = f"no worker is registered; it needs one of type {kind}"
    return [Obstacle(kind="unsuitable", text=text)]


def _fit(shape: Shape, worker: Candidate, is_free: bool, shut: Mapping[WorkerId, str]) -> WorkerFit:
    """Return how the shape and a worker go together; `is_free` unless the worker is kept for another shape."""
    never = _lacks_for_good(shape, worker)
    lacks = never or _lacks_now(shape.requires, worker, is_free, shut)
    return WorkerFit(worker=worker.worker, suits=not never, takes=not lacks, lacks=lacks)


def _lacks_for_good(shape: Shape, worker: Candidate) -> list[str]:
    """Return what is missing even when the worker has nothing else to do."""
    if worker.type != shape.type:
        return [f"type {shape.type} wanted, is {worker.type}"]
    requires, total = shape.requires, worker.total
    labels = [
        f"label {name}={value} wanted, has {_label(name, worker.labels)}"
        for name, value in requires.labels.items()
        if worker.labels.get(name) != value
    ]
    counts = [
        f"{name} {asked} wanted, {f'has {has}' if (has := total.resources.get(name, 0)) else 'none'}"
        for name, asked in requires.resources.items()
        if total.resources.get(name, 0) < asked
    ]
    amounts = []
    if total.cpu_milli < requires.cpu_milli:
        amounts.append(f"cpu_milli {requires.cpu_milli} wanted, has {total.cpu_milli}")
    if total.memory_bytes < requires.memory_bytes:
        amounts.append(f"memory {_wanted(requires)} wanted, has {total.memory_bytes // _MIB} MiB")
    slots = [] if total.slots > 0 else ["has no slots"]
    return [*labels, *amounts, *counts, *slots]


def _lacks_now(requires: Requires, worker: Candidate, is_free: bool, shut: Mapping[WorkerId, str]) -> list[str]:
    """Return what keeps a suitable worker from taking the job at present."""
    free, total = worker.free, worker.total
    found = [] if worker.open else [shut.get(worker.worker, "takes no jobs")]
    if not is_free:
        found.append("is kept free for another job that has waited longer")
    if free.slots <= 0:
        found.append(f"{'its slot is' if total.slots == 1 else f'all {total.slots} slots are'} taken")
    if free.cpu_milli < requires.cpu_milli:
        found.append(f"cpu_milli {requires.cpu_milli} wanted, {free.cpu_milli} of {total.cpu_milli} free")
    if free.memory_bytes < requires.memory_bytes:
        left = f"{free.memory_bytes // _MIB} of {total.memory_bytes // _MIB} MiB free"
        found.append(f"memory {_wanted(requires)} wanted, {left}")
    found += [
        f"{name} {asked} wanted, {free.resources.get(name, 0)} of {total.resources.get(name, 0)} free"
        for name, asked in requires.resources.items()
        if free.resources.get(name, 0) < asked
    ]
    return found


def _label(name: str, labels: Mapping[str, str]) -> str:
    return f"{name}={labels[name]}" if name in labels else "none"


def _wanted(requires: Requires) -> str:
    """Return the memory, rounded up where what is there is rounded down: so what is too little looks so."""
    return f"{-(-requires.memory_bytes // _MIB)} MiB"
