"""Commands on jobs that failed for good: dlq list, redrive, purge."""

from __future__ import annotations

import argparse
from typing import Final

from jobs.cli import exits
from jobs.cli.command import Command, Parser, UsageError, at_least
from jobs.cli.output import ago, clean, print_json, print_table
from jobs.client import Client
from jobs.client.deadletters import DeadLetterChoice
from jobs.protocol.model import Reason, Redriven


def list_dead_letters(client: Client, options: argparse.Namespace) -> int:
    from itertools import islice

    found = client.dead_letters.list(queue=options.queue, reason=_reason(options), owner=options.owner)
    shown = islice(found, options.limit or None)
    if options.json:
        for letter in shown:
            print_json(letter)
    else:
        head = ("ID", "REASON", "QUEUE", "OWNER", "AGE", "MESSAGE")
        rows = ((one.id, one.reason, one.queue, one.owner, ago(one.finished_ms), one.message or "") for one in shown)
        print_table(head, rows)
    return exits.OK


def redrive(client: Client, options: argparse.Namespace) -> int:
    """Print the new jobs' ids; what is refused is told and makes the exit code 1."""
    where = _selection(options)
    code = exits.OK
    if where is None:
        for job in options.id:
            new = client.dead_letters.redrive(job)
            _print_redriven(Redriven(id=job, job=new.job.id, refused=None), options)
        return code
    for one in client.dead_letters.redrive_many(**where):
        _print_redriven(one, options)
        if one.refused is not None:
            code = exits.FAILED
    return code


def _print_redriven(one: Redriven, options: argparse.Namespace) -> None:
    if options.json:
        print_json(one)
    else:
        print(f"{one.id} {one.job}" if one.refused is None else f"{one.id} refused: {clean(one.refused)}", flush=True)


def purge(client: Client, options: argparse.Namespace) -> int:
    where = _selection(options)
    if where is not None:
        count = client.dead_letters.purge_many(**where)
        if options.json:
            print_json({"purged": count})
        else:
            print(f"{count} purged")
        return exits.OK
    for job in options.id:
        done = client.dead_letters.purge(job)
        if options.json:
            print_json({"id": job, "outcome": done.outcome})
        else:
            print(f"{job} {done.outcome}")
    return exits.OK


def _selection(options: argparse.Namespace) -> DeadLetterChoice | None:
    """Return which dead letters are meant; None when ids say that."""
    chosen = options.all or not (options.queue is None and options.reason is None and options.owner is None)
    if chosen == bool(options.id):
        raise UsageError("give either ids, or which dead letters: --queue, --reason, --owner; --all for every one")
    if options.id:
        return None
    return {"queue": options.queue, "reason": _reason(options), "owner": options.owner, "all": options.all}


def _reason(options: argparse.Namespace) -> Reason | None:
    return None if options.reason is None else Reason(options.reason)


def _add_filters(parser: Parser) -> None:
    parser.add_argument("--queue")
    parser.add_argument("--reason", choices=[reason.value for reason in Reason], metavar="REASON")
    parser.add_argument("--owner", type=at_least(0), metavar="UID")


def _configure_list(parser: Parser) -> None:
    _add_filters(parser)
    parser.add_argument("--limit", type=at_least(0), default=50, metavar="N", help="0 lists all")


def _configure_many(parser: Parser) -> None:
    parser.add_argument("id", nargs="*")
    _add_filters(parser)
    parser.add_argument("--all", action="store_true", help="every one that you may deal with")


def _configure(parser: Parser) -> None:
    actions = parser.add_commands("action")
    for action in (
        Command("list", list_dead_letters, "List jobs that failed for good, newest first.", _configure_list),
        Command("redrive", redrive, "Repeat them as new jobs; print old and new ids.", _configure_many),
        Command("purge", purge, "Put them away; the jobs are kept as any others are.", _configure_many),
    ):
        action.add_to(actions)


COMMANDS: Final = (Command("dlq", None, "Jobs that failed for good: look at them, repeat them, purge.", _configure),)
