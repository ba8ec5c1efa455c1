"""Commands on schedules: set, list, show, delete, pause, resume, trigger, next."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import islice
from typing import Any, Final, get_args

from jobs.cli import exits
from jobs.cli.command import Command, Parser, UsageError, at_least
from jobs.cli.output import moment, print_fields, print_json, print_table
from jobs.cli.submission import add_job_options, command_of, duration, job_of
from jobs.client import Client
from jobs.protocol.model import (
    PREVIEW_TIMES,
    CatchUp,
    JobSubmit,
    Overlap,
    Schedule,
    ScheduleTime,
    ScheduleView,
    Timetable,
    TimetablePreview,
)

SHOWN_TIMES: Final = 3


def set_schedule(client: Client, options: argparse.Namespace) -> int:
    policies = {name: getattr(options, name) for name in _POLICIES if name in options}
    schedule = Schedule(**_timetable(options), **policies, job=job_of(options))
    view = client.schedules.set(options.name, schedule, revision=options.revision)
    if options.json:
        print_json(view)
    else:
        _print_schedule(view, schedule.job, client.schedules.next(view.name, SHOWN_TIMES))
    return exits.OK


def show(client: Client, options: argparse.Namespace) -> int:
    found = client.schedules.get(options.name)
    if options.json:
        print_json(found)
    else:
        _print_schedule(found.schedule, found.job, client.schedules.next(options.name, SHOWN_TIMES))
    return exits.OK


def list_schedules(client: Client, options: argparse.Namespace) -> int:
    shown = islice(client.schedules.list(), options.limit or None)
    if options.json:
        for schedule in shown:
            print_json(schedule)
        return exits.OK
    print_table(("NAME", "WHEN", "NEXT", "LAST", "FIRED", "SKIPPED", "MISSED", "STATE", "OWNER"), map(_row, shown))
    return exits.OK


def _row(view: ScheduleView) -> tuple[object, ...]:
    moments = _second(view.next_ms), _second(view.last_nominal_ms)
    return view.name, when(view), *moments, view.fired, view.skipped, view.missed, state_of(view), view.owner


def delete(client: Client, options: argparse.Namespace) -> int:
    for name in options.name:
        client.schedules.delete(name)
        if options.json:
            print_json({"name": name, "deleted": True})
    return exits.OK


def tell(what: str, client: Client, options: argparse.Namespace) -> int:
    for name in options.name:
        view = getattr(client.schedules, what)(name)
        if options.json:
            print_json(view)
        else:
            print_fields([("name", view.name), ("state", state_of(view)), ("next", moment(view.next_ms))])
    return exits.OK


def trigger(client: Client, options: argparse.Namespace) -> int:
    job = client.schedules.trigger(options.name).job
    if options.json:
        print_json({"id": job.id, "schedule": job.schedule, "nominal_ms": job.nominal_ms})
    else:
        print(job.id)
    return exits.OK


def next_times(client: Client, options: argparse.Namespace) -> int:
    timetable = _timetable(options)
    if options.name is None:
        times = client.schedules.preview(TimetablePreview(**timetable, count=options.count))
    elif timetable:
        raise UsageError("give either the name of a schedule or a timetable of your own")
    else:
        times = client.schedules.next(options.name, options.count)
    for time in times:
        if options.json:
            print_json(time)
        else:
            print(time.local)
    return exits.OK


def when(timetable: Timetable) -> str:
    """Return a timetable in words as short as possible."""
    if timetable.cron is not None:
        return f"{timetable.cron} {timetable.timezone}"
    if timetable.every_s is not None:
        return f"every {_length(timetable.every_s)}"
    return f"at {_second(timetable.at_ms)}"


def state_of(schedule: ScheduleView) -> str:
    return "paused" if schedule.paused else "over" if schedule.next_ms is None else "active"


def _print_schedule(view: ScheduleView, job: JobSubmit, times: Sequence[ScheduleTime]) -> None:
    catch_up = {
        "none": "none",
        "one": f"one, within {_length(view.catch_up_window_s)}",
        "all": f"all, up to {view.max_catch_up} within {_length(view.catch_up_window_s)}",
    }[view.catch_up]
    overlap = f"queue, up to {view.max_queued}" if view.overlap == "queue" else view.overlap
    error = view.last_error
    fields: list[tuple[str, object]] = [
        ("name", view.name),
        ("state", state_of(view)),
        ("when", when(view)),
        ("start", moment(view.start_ms)),
        ("end", moment(view.end_ms)),
        *(("next", time.local) for time in times),
        ("catch up", catch_up),
        ("overlap", overlap),
        ("at most", f"{view.max_per_minute} jobs a minute"),
        ("owner", view.owner),
        ("managed by", view.managed_by),
        ("command", command_of(job)),
        ("last", moment(view.last_nominal_ms)),
        ("last job", view.last_job),
        ("unfinished", view.unfinished),
        ("waiting", len(view.queued) or None),
        ("counts", f"{view.fired} fired, {view.skipped} skipped, {view.missed} missed"),
        ("revision", view.revision),
    ]
    if error is not None:
        fields.append((f"{error.outcome}", f"{moment(error.nominal_ms)}: {error.detail}"))
    print_fields(fields)


def _second(unix_ms: int | None) -> str | None:
    text = moment(unix_ms)
    return None if text is None else text[:19]


def _length(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g}{unit}"
    return f"{seconds:g}s"


def _timetable(options: argparse.Namespace) -> dict[str, Any]:
    """Return what is given of a timetable. Raises UsageError for a moment that cannot be."""
    given = {name: getattr(options, name) for name in _TIMETABLE if name in options}
    for name in ("at_ms", "start_ms", "end_ms"):
        if name in given:
            given[name] = _moment_ms(given[name], given.get("timezone"))
    return given


def _moment_ms(text: str, timezone: str | None) -> int:
    """Return a moment in ms since 1970; text without a zone is in `timezone`, or local here."""
    from datetime import datetime
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    try:
        found = datetime.fromisoformat(text)
        if found.tzinfo is None:
            found = found.astimezone() if timezone is None else found.replace(tzinfo=ZoneInfo(timezone))
    except (ZoneInfoNotFoundError, OSError) as error:
        raise UsageError(f"{timezone!r} is no time zone; for example Europe/Berlin") from error
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{text!r} is no moment; for example 2030-12-24T18:00, 2030-12-24T18:00+01:00") from error
    unix_ms = round(found.timestamp() * 1000)
    there = datetime.fromtimestamp(unix_ms / 1000, found.tzinfo)
    if there.replace(tzinfo=None) != found.replace(tzinfo=None):
        raise UsageError(f"{text} does not exist in {timezone}: the clocks go forward over it")
    return unix_ms


_TIMETABLE: Final = ("cron", "every_s", "at_ms", "timezone", "start_ms", "end_ms")
_POLICIES: Final = ("catch_up", "max_catch_up", "catch_up_window_s", "overlap", "max_queued", "max_per_minute")


def _add_timetable(parser: Parser) -> None:
    """Add options that are in the namespace only when they are given."""
    absent = argparse.SUPPRESS
    group = parser.add_argument_group("when: one of --cron, --every, --at")
    group.add_argument("--cron", default=absent, metavar="EXPR", help='such as "30 2 * * 1-5" or @daily')
    group.add_argument(
        "--every",
        dest="every_s",
        type=duration,
        default=absent,
        metavar="TIME",
        help="such as 5m, counted from --start",
    )
    group.add_argument("--at", dest="at_ms", default=absent, metavar="MOMENT", help="once, such as 2030-12-24T18:00")
    group.add_argument(
        "--timezone",
        default=absent,
        metavar="ZONE",
        help="that --cron and moments are meant in; without it --cron is in UTC, moments are local here",
    )
    group.add_argument("--start", dest="start_ms", default=absent, metavar="MOMENT", help="nothing earlier")
    group.add_argument("--end", dest="end_ms", default=absent, metavar="MOMENT", help="nothing later")


def _configure_set(parser: Parser) -> None:
    parser.add_argument("name")
    _add_timetable(parser)
    absent = argparse.SUPPRESS
    group = parser.add_argument_group("what else")
    group.add_argument(
        "--catch-up", choices=get_args(CatchUp), default=absent, help="what is made up of times that were missed"
    )
    group.add_argument("--max-catch-up", type=at_least(1), default=absent, metavar="N", help="of them at most")
    group.add_argument(
        "--catch-up-window",
        dest="catch_up_window_s",
        type=duration,
        default=absent,
        metavar="TIME",
        help="of those no longer past",
    )
    group.add_argument(
        "--overlap", choices=get_args(Overlap), default=absent, help="what to do while a former job has not ended"
    )
    group.add_argument("--max-queued", type=at_least(1), default=absent, metavar="N", help="that wait with queue")
    group.add_argument("--max-per-minute", type=at_least(1), default=absent, metavar="N", help="jobs in any minute")
    group.add_argument(
        "--revision", type=at_least(0), metavar="N", help="only if it was last set at this revision; 0: if it is new"
    )
    add_job_options(parser)
    parser.take_rest("argv")


def _configure_list(parser: Parser) -> None:
    parser.add_argument("--limit", type=at_least(0), default=0, metavar="N", help="0 lists all")


def _configure_next(parser: Parser) -> None:
    parser.add_argument("name", nargs="?", help="a schedule; or give a timetable instead")
    _add_timetable(parser)
    parser.add_argument(
        "-n", "--count", type=at_least(1), default=10, metavar="N", help=f"how many, up to {PREVIEW_TIMES}"
    )


def _add_name(parser: Parser) -> None:
    parser.add_argument("name")


def _add_names(parser: Parser) -> None:
    parser.add_argument("name", nargs="+")


def _actions() -> Iterable[Command]:
    return (
        Command("set", set_schedule, "Make a schedule of a command, or replace what it says.", _configure_set),
        Command("list", list_schedules, "List the schedules.", _configure_list),
        Command("show", show, "Show a schedule, and how far it is.", _add_name),
        Command("delete", delete, "Delete schedules; their jobs go on.", _add_names),
        Command("pause", partial(tell, "pause"), "Make no jobs until they are resumed.", _add_names),
        Command("resume", partial(tell, "resume"), "Go on from now.", _add_names),
        Command("trigger", trigger, "Make a job now, whatever the timetable says; print its id.", _add_name),
        Command("next", next_times, "Print the times to come.", _configure_next),
    )


def _configure_schedule(parser: Parser) -> None:
    actions = parser.add_commands("schedule_action")
    for action in _actions():
        action.add_to(actions)


COMMANDS: Final = (
    Command(
        "schedule", None, "Jobs that are made again and again: by cron, every so often, or once.", _configure_schedule
    ),
)
