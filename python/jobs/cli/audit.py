"""The audit trail: who did what to which job."""

from __future__ import annotations

import argparse
from itertools import islice
from typing import Final

from jobs.cli import exits
from jobs.cli.command import Command, Parser, at_least
from jobs.cli.output import moment, print_json, print_table
from jobs.cli.submission import past_ms
from jobs.client import Client
from jobs.protocol.model import AuditEntry


def audit(client: Client, options: argparse.Namespace) -> int:
    found = client.audit(
        job=options.job, uid=options.uid, action=options.action, from_ms=options.since, to_ms=options.until
    )
    shown = islice(found, options.limit or None)
    if options.json:
        for entry in shown:
            print_json(entry)
    else:
        rows = ((moment(entry.at_ms), entry.uid, entry.action, _subject(entry), _detail(entry)) for entry in shown)
        print_table(("TIME", "UID", "ACTION", "SUBJECT", "DETAIL"), rows)
    return exits.OK


def _subject(entry: AuditEntry) -> str:
    return entry.subject if entry.last is None else f"{entry.subject}…{entry.last}"


def _configure(parser: Parser) -> None:
    parser.add_argument("--job", metavar="ID", help="what was done to this job")
    parser.add_argument("--uid", type=at_least(0), metavar="UID", help="what this user did")
    parser.add_argument("--action", metavar="NAME", help="what it was, or how that begins: job.")
    parser.add_argument(
        "--since", type=past_ms, metavar="TIME", help="so long ago (2h), or a moment (2030-01-31T12:00)"
    )
    parser.add_argument("--until", type=past_ms, metavar="TIME", help="before that")
    parser.add_argument("--limit", type=at_least(0), default=50, metavar="N", help="0 lists all")


def _detail(entry: AuditEntry) -> str:
    made = "" if entry.made is None else f"made {entry.made}"
    return ", ".join(text for text in (entry.detail, made) if text)


COMMANDS: Final = (Command("audit", audit, "List who did what to which job, newest first.", _configure),)
