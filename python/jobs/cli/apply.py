"""The command apply: makes queues and schedules as a file declares them."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from typing import TYPE_CHECKING, Final

import msgspec

from jobs.cli import exits
from jobs.cli.command import Command, Parser
from jobs.cli.output import clean, note, print_json
from jobs.cli.submission import read
from jobs.client import Client
from jobs.errors import JobsError, NotFound, RevisionConflict
from jobs.protocol.model import QueueSettings, Schedule

if TYPE_CHECKING:
    from jobs.declarations import Declaration, Plan, Step

MAX_FILE_BYTES: Final = 64 << 20
_TRIES: Final = 10
_LONGEST: Final = 60
"""So many characters of a value are shown."""
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
    return (
        _show(_plan(client, declared, options), options) if options.dry_run else _carry_out(client, declared, options)
    )


def _plan(client: Client, declared: Declaration, options: argparse.Namespace) -> Plan | None:
    """Return what is to be done; None, and say why, if others have made what is declared."""
    from jobs.declarations import plan

    views = [
        view for view in client.schedules.list() if view.name in declared.schedules or view.managed_by == declared.name
    ]
    details = {view.name: client.schedules.get(view.name) for view in views if view.name in declared.schedules}
    made = plan(declared, client.queues.list(), views, details, uid=os.getuid(), take_over=options.take_over)
    for conflict in made.conflicts:
        note(f"{conflict.detail}; give it another name, or make it this declaration's with --take-over")
    return None if made.conflicts else made


def _show(plan: Plan | None, options: argparse.Namespace) -> int:
    if plan is None:
        return exits.FAILED
    for step in plan.steps:
        _print(step, _PLANNED[step.action], options)
    if not options.json and all(step.action == "keep" for step in plan.steps):
        print("nothing to do")
    return exits.OK


def _carry_out(client: Client, declared: Declaration, options: argparse.Namespace) -> int:
    """Make it so; look anew when somebody else sets the same meanwhile, such as a node with the same declaration."""
    code = exits.OK
    done: dict[tuple[str, str], str] = {}
    for left in reversed(range(_TRIES)):
        plan = _plan(client, declared, options)
        if plan is None:
            return exits.FAILED
        try:
            code = _take_all(client, plan, done, options, is_last=left == 0)
        except RevisionConflict:
            continue
        break
    if not options.json:
        counts = Counter(done.values())
        print(", ".join(f"{counts[action]} {word}" for action, word in _DONE.items()))
    return code


def _take_all(
    client: Client, plan: Plan, done: dict[tuple[str, str], str], options: argparse.Namespace, *, is_last: bool
) -> int:
    """Take every step that can be taken; what failed is told, and nothing is removed then.

    Raises RevisionConflict if it is not the last time.
    """
    code = exits.OK
    for step in plan.steps:
        if code != exits.OK and step.action == "remove":
            note(f"{step.kind} {clean(step.name)} is not removed, as something else failed")
            continue
        try:
            _take(client, step)
        except JobsError as error:
            if isinstance(error, RevisionConflict) and not is_last:
                raise
            note(f"{step.kind} {clean(step.name)}: {error}")
            code = code or exits.of_error(error)
            continue
        if step.action != "keep" or (step.kind, step.name) not in done:
            done[step.kind, step.name] = step.action
            _print(step, _DONE[step.action], options)
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
        found = {"kind": step.kind, "name": step.name, "action": step.action, "fields": step.fields}
        print_json({**found, "changes": step.changes})
    elif step.action != "keep":
        print(f"{word} {step.kind} {clean(step.name)}")
        for change in step.changes:
            print(f"    {clean(change.path)}: {_shown(change.before)} → {_shown(change.after)}")


def _shown(value: object) -> str:
    text = "none" if value is None else msgspec.json.encode(value).decode()
    return clean(text if len(text) <= _LONGEST else text[:_LONGEST] + "…")


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
