"""Commands on queues and owners: queues, queue, owner."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from functools import partial
from typing import Any, Final

from jobs.cli import exits
from jobs.cli.command import Command, Parser, UsageError, at_least
from jobs.cli.output import print_fields, print_json, print_table
from jobs.cli.submission import duration, size
from jobs.client import Client
from jobs.protocol.model import OwnerView, QueueView

_LIMITS: Final = {
    "max_pending": "pending",
    "max_pending_per_owner": "pending of an owner",
    "max_running": "running",
    "max_running_per_owner": "running of an owner",
}
_SETTINGS: Final = ("weight", *_LIMITS, "max_blob_bytes")


def queues(client: Client, options: argparse.Namespace) -> int:
    found = client.queues.list()
    if options.json:
        for queue in found:
            print_json(queue)
        return exits.OK
    print_table(
        ("NAME", "WEIGHT", "PENDING", "WAITING", "RUNNING", "STATE", "LIMITS"),
        ((q.name, f"{q.weight:g}", q.pending, q.waiting, q.running, state_of(q), limits_of(q) or "-") for q in found),
    )
    return exits.OK


def state_of(queue: QueueView) -> str:
    return ", ".join(name for name in ("paused", "draining") if getattr(queue, name)) or "open"


def limits_of(settings: QueueView | OwnerView) -> str:
    """Return the limits that are set, in words as short as possible."""
    limits = [
        f"{value} {what}" for name, what in _LIMITS.items() if (value := getattr(settings, name, None)) is not None
    ]
    if isinstance(settings, OwnerView) and settings.max_blob_bytes is not None:
        limits.append(f"{settings.max_blob_bytes} bytes of blobs")
    if isinstance(settings, QueueView) and settings.rate_count is not None:
        limits.append(f"{settings.rate_count} starts in {settings.rate_period_s:g} s")
    return "; ".join(limits)


def show_queue(client: Client, options: argparse.Namespace) -> int:
    return _show_queue(client.queues.get(options.name), options)


def set_queue(client: Client, options: argparse.Namespace) -> int:
    return _show_queue(client.queues.change(options.name, **_changes(options)), options)


def tell_queue(what: str, client: Client, options: argparse.Namespace) -> int:
    return _show_queue(getattr(client.queues, what)(options.name), options)


def _show_queue(queue: QueueView, options: argparse.Namespace) -> int:
    if options.json:
        print_json(queue)
        return exits.OK
    print_fields(
        [
            ("name", queue.name),
            ("state", state_of(queue)),
            ("pending", f"{queue.pending}, of which {queue.waiting} wait for a time or other jobs"),
            ("running", queue.running),
            ("weight", f"{queue.weight:g}"),
            ("limits", limits_of(queue) or "none"),
            ("managed by", queue.managed_by),
        ]
    )
    return exits.OK


def show_owner(client: Client, options: argparse.Namespace) -> int:
    return _show_owner(client.owners.get(options.uid), options)


def set_owner(client: Client, options: argparse.Namespace) -> int:
    return _show_owner(client.owners.change(options.uid, **_changes(options)), options)


def _show_owner(owner: OwnerView, options: argparse.Namespace) -> int:
    if options.json:
        print_json(owner)
        return exits.OK
    print_fields(
        [
            ("uid", owner.uid),
            ("pending", owner.pending),
            ("running", owner.running),
            ("blobs", f"{owner.blobs} of {owner.blob_bytes} bytes"),
            ("weight", f"{owner.weight:g}"),
            ("limits", limits_of(owner) or "none"),
        ]
    )
    return exits.OK


def _changes(options: argparse.Namespace) -> dict[str, Any]:
    """Return what is given of the settings. Raises UsageError for nothing at all."""
    changes: dict[str, Any] = {name: getattr(options, name) for name in _SETTINGS if name in options}
    if "rate" in options:
        changes |= options.rate
    if not changes:
        raise UsageError("nothing is to be set; --help lists what can be")
    return changes


def limit(text: str) -> int | None:
    """Parse a limit: a number, or `none`."""
    return None if text == "none" else at_least(0)(text)


def size_limit(text: str) -> int | None:
    """Parse a number of bytes such as 50GiB, or `none`."""
    return None if text == "none" else size(text)


def rate(text: str) -> dict[str, Any]:
    """Parse a rate such as 10/1m or 5/s, or `none`."""
    if text == "none":
        return {"rate_count": None}
    count, slash, period = text.partition("/")
    if not slash or not count.isdecimal() or not period:
        raise argparse.ArgumentTypeError(f"{text!r} is no rate; for example 10/1m, 5/s, none")
    return {"rate_count": int(count), "rate_period_s": duration(period if period[0].isdecimal() else f"1{period}")}


def _add_name(parser: Parser) -> None:
    parser.add_argument("name")


def _add_uid(parser: Parser) -> None:
    parser.add_argument("uid", type=at_least(0))


def _add_settings(parser: Parser, limits: Iterable[str]) -> None:
    """Add options that are in the namespace only when they are given."""
    absent = argparse.SUPPRESS
    parser.add_argument("--weight", type=float, default=absent, metavar="W", help="share among those that wait")
    for name in limits:
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=limit, default=absent, metavar="N|none", help=f"jobs {_LIMITS[name]} at most")


def _configure_set_queue(parser: Parser) -> None:
    _add_name(parser)
    _add_settings(parser, _LIMITS)
    parser.add_argument(
        "--rate", type=rate, default=argparse.SUPPRESS, metavar="N/TIME|none", help="so many starts in each such time"
    )


def _configure_set_owner(parser: Parser) -> None:
    _add_uid(parser)
    _add_settings(parser, ("max_pending", "max_running"))
    parser.add_argument(
        "--max-blob-bytes",
        type=size_limit,
        default=argparse.SUPPRESS,
        metavar="SIZE|none",
        help="what blobs may come to, such as 50GiB",
    )


def _configure_queue(parser: Parser) -> None:
    actions = parser.add_commands("queue_action")
    for action in (
        Command("show", show_queue, "Show a queue.", _add_name),
        Command("set", set_queue, "Set what is given of a queue; the rest stays as it is.", _configure_set_queue),
        Command("pause", partial(tell_queue, "pause"), "Start nothing of it; what runs goes on.", _add_name),
        Command("resume", partial(tell_queue, "resume"), "Start its jobs again.", _add_name),
        Command(
            "drain", partial(tell_queue, "drain"), "Take no more jobs in; those that wait are still run.", _add_name
        ),
        Command("open", partial(tell_queue, "open"), "Take jobs in again.", _add_name),
    ):
        action.add_to(actions)


def _configure_owner(parser: Parser) -> None:
    actions = parser.add_commands("owner_action")
    for action in (
        Command("show", show_owner, "Show an owner.", _add_uid),
        Command("set", set_owner, "Set what is given of an owner; the rest stays as it is.", _configure_set_owner),
    ):
        action.add_to(actions)


COMMANDS: Final = (
    Command("queues", queues, "List the queues."),
    Command("queue", None, "Show or set a queue; pause, resume, drain or open it.", _configure_queue),
    Command("owner", None, "Show or set an owner of jobs: weight and limits.", _configure_owner),
)
