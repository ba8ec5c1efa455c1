"""What `jobctl top` shows, as lines that fit a terminal. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Literal, NamedTuple

from jobs.cli.columns import cell, cut, fit, width
from jobs.cli.meter import bar, clock_time
from jobs.cli.node import pairs
from jobs.cli.node import state_of as worker_state
from jobs.cli.output import span
from jobs.cli.queues import limits_of
from jobs.cli.queues import state_of as queue_state
from jobs.protocol.model import DeadLetter, Overview, QueueView, RunningJob, WorkerView

Style = Literal["", "head", "title", "warn", "bad", "dim"]
GAP: Final = 2
ID_COLUMNS: Final = 36
NAME_COLUMNS: Final = 16
BAR_COLUMNS: Final = 8
_DAY_S: Final = 86_400
_SGR: Final[dict[Style, str]] = {"head": "1", "title": "7", "warn": "33", "bad": "31", "dim": "2"}


class Line(NamedTuple):
    """One line, and how all of it looks."""

    text: str
    style: Style = ""


class Column(NamedTuple):
    title: str
    least: int = 5
    """It is never narrower than this, so that little moves from one frame to the next."""
    right: bool = False


class Row(NamedTuple):
    cells: tuple[str, ...]
    style: Style = ""


class Section(NamedTuple):
    """A table of what is there, of which some may not be told."""

    columns: tuple[Column, ...]
    rows: list[Row]
    more: int


def render(overview: Overview, *, columns: int, rows: int | None, clock: str, problem: str | None = None) -> list[Line]:
    """Return the lines of a frame: at most `rows` of them, each at most so many columns wide."""
    lines = list(_header(overview, columns, clock, problem))
    sections = [
        _queues(overview),
        _workers(overview.workers, overview.more_workers),
        _jobs(overview),
        _failed(overview),
    ]
    wanted = [max(1, len(section.rows)) for section in sections]
    shown = wanted if rows is None else allot(rows - len(lines) - 2 * len(sections), wanted)
    for section, count in zip(sections, shown, strict=True):
        lines += [Line(""), *_table(section, count, columns)]
    return lines if rows is None else lines[:rows]


def paint(lines: Iterable[Line], *, color: bool) -> list[str]:
    """Return lines as a terminal takes them."""
    return [f"\x1b[{_SGR[line.style]}m{line.text}\x1b[0m" if color and line.style else line.text for line in lines]


def allot(room: int, wanted: Sequence[int]) -> list[int]:
    """Share out room: everyone gets what they want, or as much as anybody else."""
    given = [0] * len(wanted)
    left = max(0, room)
    while left and (hungry := [index for index, want in enumerate(wanted) if given[index] < want]):
        for index in hungry[:left]:
            given[index] += 1
        left -= len(hungry[:left])
    return given


_OWNER: Final = (Column("OWNER"),)
"""Told where jobs of several owners are."""


# --- header -----------------------------------------------------------------------------------------------------------


def _header(overview: Overview, columns: int, clock: str, problem: str | None) -> Iterable[Line]:
    leads = "leads" if overview.leader else "does not lead"
    title = f"node {cell(overview.node)} {leads}, jobs {overview.version}, up {uptime(overview.uptime_s)}"
    yield Line(
        f"{fit(title, columns - len(clock) - GAP)}{' ' * GAP}{clock}" if columns > 40 else cut(title, columns), "head"
    )
    if problem is not None:
        yield Line(cut(cell(problem), columns), "bad")
    rates, own = overview.rates, overview.own
    waiting = f" ({overview.waiting:,} for a time or other jobs)" if overview.waiting else ""
    texts = [
        f"pending {overview.pending:,}{waiting}",
        f"running {overview.running:,} on {overview.slots:,} slots",
        f"per second: submitted {rates.submitted:,.1f}, started {rates.started:,.1f}, ended {rates.ended:,.1f}",
    ]
    if not overview.all_owners:
        limits = f" (limits: {limits_of(own)})" if limits_of(own) else ""
        texts.append(f"yours: {own.pending:,} pending, {own.running:,} running{limits}")
    yield from (Line(line) for line in flow(texts, columns))


def flow(texts: Iterable[str], columns: int) -> list[str]:
    """Put texts beside each other on as few lines as they need."""
    lines: list[str] = []
    for text in texts:
        joined = f"{lines[-1]}   {text}" if lines else text
        if lines and width(joined) <= columns:
            lines[-1] = joined
        else:
            lines.append(cut(text, columns))
    return lines


def uptime(seconds: float) -> str:
    days, rest_s = divmod(int(seconds), _DAY_S)
    return f"{days} d {clock_time(rest_s)}" if days else clock_time(rest_s)


# --- sections ---------------------------------------------------------------------------------------------------------


def _queues(overview: Overview) -> Section:
    columns = (
        Column("QUEUE", NAME_COLUMNS),
        Column("RUNNING", 7, right=True),
        Column("PENDING", 7, right=True),
        Column("WAITING", 7, right=True),
        Column("WEIGHT", 6, right=True),
        Column("STATE"),
        Column("LIMITS"),
    )
    return Section(columns, [_queue(queue) for queue in overview.queues], overview.more_queues)


def _queue(queue: QueueView) -> Row:
    numbers = (f"{queue.running:,}", f"{queue.pending:,}", f"{queue.waiting:,}", f"{queue.weight:g}")
    state = queue_state(queue)
    return Row((cell(queue.name), *numbers, state, limits_of(queue)), "" if state == "open" else "warn")


def _workers(workers: Sequence[WorkerView], more: int) -> Section:
    columns = (
        Column("WORKER", NAME_COLUMNS),
        Column("TYPE"),
        Column("STATE", 8),
        Column("SLOTS", 12),
        Column("PRESSURE"),
    )
    return Section(columns, [_worker(worker) for worker in workers], more)


def _worker(worker: WorkerView) -> Row:
    state = worker_state(worker)
    slots = f"{bar(worker.running, worker.slots, BAR_COLUMNS)} {worker.running} of {worker.slots}"
    pressure = pairs((name, f"{percent:.0f}%") for name, percent in worker.pressure.items() if percent >= 1)
    style: Style = "" if state == "ready" else "bad" if worker.state == "lost" else "warn"
    return Row((cell(worker.id), cell(worker.type), state, slots, pressure), style)


def _jobs(overview: Overview) -> Section:
    columns = (
        Column("RUNNING JOB" if overview.all_owners else "YOUR RUNNING JOB", ID_COLUMNS),
        Column("FOR", 7, right=True),
        Column("QUEUE"),
        *_OWNER[: overview.all_owners],
        Column("WORKER"),
        Column("PROGRESS", 9),
    )
    return Section(columns, [_job(running, overview) for running in overview.jobs], overview.more_jobs)


def _job(running: RunningJob, overview: Overview) -> Row:
    job, progress = running.job, running.progress
    said = "being ended " if job.cancel_requested else ""
    if progress is not None:
        percent = int(progress.percent)
        said += f"{percent:3d} % {bar(percent, 100, BAR_COLUMNS)} {cell(progress.message or '')}"
    lasts = clock_time(max(0, overview.now_ms - (job.started_ms or overview.now_ms)) / 1000)
    owner = (str(job.owner),)[: overview.all_owners]
    cells = (cell(job.id), lasts, cell(job.queue), *owner, cell(job.worker), said.rstrip())
    return Row(cells, "warn" if job.cancel_requested else "")


def _failed(overview: Overview) -> Section:
    columns = (
        Column("FAILED JOB" if overview.all_owners else "YOUR FAILED JOB", ID_COLUMNS),
        Column("AGO", 4, right=True),
        Column("QUEUE"),
        *_OWNER[: overview.all_owners],
        Column("REASON", 10),
        Column("MESSAGE"),
    )
    return Section(columns, [_letter(letter, overview) for letter in overview.failed], 0)


def _letter(letter: DeadLetter, overview: Overview) -> Row:
    ago = span((overview.now_ms - letter.finished_ms) / 1000)
    owner = (str(letter.owner),)[: overview.all_owners]
    return Row((cell(letter.id), ago, cell(letter.queue), *owner, letter.reason, cell(letter.message or "")), "bad")


# --- tables -----------------------------------------------------------------------------------------------------------


def _table(section: Section, count: int, columns: int) -> Iterable[Line]:
    rows = section.rows[:count]
    hidden = len(section.rows) - len(rows) + section.more
    first = section.columns[0]
    if hidden:
        first = first._replace(title=f"{first.title} ({len(rows)} of {len(rows) + hidden:,})")
    heads = (first, *section.columns[1:])
    widths = _widths(heads, rows, columns)
    yield Line(fit(_joined([(head.title, head.right) for head in heads], widths, columns), columns), "title")
    for row in rows:
        cells = [(text, head.right) for text, head in zip(row.cells, heads, strict=True)]
        yield Line(_joined(cells, widths, columns).rstrip(), row.style)
    if not section.rows and count:
        yield Line(cut("none", columns), "dim")


def _widths(heads: Sequence[Column], rows: Sequence[Row], columns: int) -> list[int]:
    """Return the width of each column: as wide as its widest text, less where that is too much for the line."""
    widths = [
        max(head.least, width(head.title), *(width(row.cells[index]) for row in rows))
        for index, head in enumerate(heads)
    ]
    excess = sum(widths) + GAP * (len(widths) - 1) - columns
    while excess > 0:
        spare, index = max((widths[index] - head.least, index) for index, head in enumerate(heads))
        if spare <= 0:
            break
        widths[index] -= 1
        excess -= 1
    return widths


def _joined(cells: Sequence[tuple[str, bool]], widths: Sequence[int], columns: int) -> str:
    texts = [fit(text, wide, right=right) for (text, right), wide in zip(cells, widths, strict=True)]
    return cut((" " * GAP).join(texts).rstrip(), columns)
