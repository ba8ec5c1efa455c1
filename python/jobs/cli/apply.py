"""The command apply: makes queues and schedules as a file declares them."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from typing import TYPE_CHECKING, Final

from jobs.cli import exits
from jobs.cli.command import Command, Parser
from jobs.cli.output import clean, note, print_json
from jobs.cli.submission import read
from jobs.client import Client
from jobs.errors import JobsError, NotFound
from jobs.protocol.model import QueueSettings, Schedule

if TYPE_CHECKING:
    from jobs.declarations import Declaration, Plan, Step

MAX_FILE_BYTES: Final = 64 << 20
_DONE: Final = {"create": "created", "change": "changed", "keep": "unchanged", "remove": "removed"}
_PLANNED: Final = {"create": "to create", "change": "to change", "keep": "unchanged", "remove": "to remove"}


def apply(client: Client, options: argparse.Namespace) -> int:
    from jobs.declarations import DeclarationError, parse

    try:
        declared = parse(read(options.file, MAX_FILE_BYTES, "a declaration"), options.name)
    except DeclarationError as error:
        for problem in error.problems:
            note(f"{options.file}: {problem.field}: {problem.detail}; expected {problem.expected}")
        return exits.DATA
    if options.check:
        return exits.OK
    plan = _plan(client, declared, options.take_over)
    if plan.conflicts:
        for conflict in plan.conflicts:
            note(f"{conflict.detail}; give it another name, or make it this declaration's with --take-over")
        return exits.FAILED
    return _show(plan, options) if options.dry_run else _carry_out(client, plan, options)


def _plan(client: Client, declared: Declaration, take_over: bool) -> Plan:
    from jobs.declarations import plan

    views = [
        view for view in client.schedules.list() if view.name in declared.schedules or view.managed_by == declared.name
    ]
    details = {view.name: client.schedules.get(view.name) for view in views if view.name in declared.schedules}
    return plan(declared, client.queues.list(), views, details, uid=os.getuid(), take_over=take_over)


def _show(plan: Plan, options: argparse.Namespace) -> int:
    for step in plan.steps:
        _print(step, _PLANNED[step.action], options)
    return exits.OK


def _carry_out(client: Client, plan: Plan, options: argparse.Namespace) -> int:
    """Take every step that can be taken; what failed is told, and nothing is removed then."""
    code = exits.OK
    done: Counter[str] = Counter()
    for step in plan.steps:
        if code != exits.OK and step.action == "remove":
            note(f"{step.kind} {clean(step.name)} is not removed, as something else failed")
            continue
        try:
            _take(client, step)
        except JobsError as error:
            note(f"{step.kind} {clean(step.name)}: {error}")
            code = code or exits.of_error(error)
            continue
        done[_DONE[step.action]] += 1
        _print(step, _DONE[step.action], options)
    if not options.json:
        print(", ".join(f"{done[word]} {word}" for word in _DONE.values()))
    return code


def _take(client: Client, step: Step) -> None:
    wanted = step.wanted
    if step.action == "keep":
        return
    if isinstance(wanted, Schedule):
        client.schedules.set(step.name, wanted, revision=step.revision)
    elif isinstance(wanted, QueueSettings):
        client.queues.put(step.name, wanted)
    elif step.kind == "queue":
        client.queues.put(step.name, QueueSettings())
    else:
        try:
            client.schedules.delete(step.name, revision=step.revision)
        except NotFound:
            return  # somebody else was faster


def _print(step: Step, word: str, options: argparse.Namespace) -> None:
    if options.json:
        print_json({"kind": step.kind, "name": step.name, "action": step.action, "fields": step.fields})
    elif step.action != "keep":
        changed = f" ({', '.join(step.fields)})" if step.fields else ""
        print(f"{word} {step.kind} {clean(step.name)}{changed}")


def _configure(parser: Parser) -> None:
    parser.add_argument("-f", "--file", required=True, metavar="FILE|-", help="TOML or JSON: what is declared")
    parser.add_argument("--name", metavar="NAME", help="of the declaration; else the file's own `name`, else default")
    parser.add_argument("--check", action="store_true", help="only say what is wrong with the file; needs no node")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and change nothing")
    parser.add_argument(
        "--take-over", action="store_true", help="also what was set by hand, or belongs to another declaration"
    )


COMMANDS: Final = (
    Command(
        "apply",
        apply,
        "Make queues and schedules as a file declares them; remove what it declared before and does not any more.",
        _configure,
    ),
)
