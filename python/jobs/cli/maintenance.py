"""Commands on the cluster's upkeep, each a job: maintenance compact, cleanup, health, verify, metrics."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from jobs.cli import exits
from jobs.cli.carrying import add_job_options, carry_out, in_words, job_options
from jobs.cli.command import Command, Parser, at_least
from jobs.cli.output import print_fields, print_table
from jobs.cli.output import size as size_text
from jobs.cli.submission import duration, past_ms
from jobs.client import Client
from jobs.client.maintenance import maintenance_job, succeeded
from jobs.protocol.model import (
    MaintenanceCleanup,
    MaintenanceCompact,
    MaintenanceHealth,
    MaintenanceMetrics,
    MaintenancePayload,
    MaintenanceResult,
    MaintenanceVerify,
)
from jobs.protocol.model.maintenance import CLEANUP_PARTS, COMPACT_PARTS, VERIFY_PARTS

_USAGE_HEAD: Final = ("BEGINS (UTC)", "OWNER", "TYPE", "JOBS", "FAILED", "ATTEMPTS", "TIME", "CPU", "OUTPUT", "STORED")
_USAGE: Final = "{:<16} {:>10} {:<12} {:>9} {:>8} {:>9} {:>12} {:>12} {:>9} {:>9}"


def compact(client: Client, options: argparse.Namespace) -> int:
    wanted = MaintenanceCompact(
        parts=options.parts or list(COMPACT_PARTS),
        history_age_s=options.history_age,
        history_events=options.history_events,
        nodes=options.nodes,
        dry_run=options.dry_run,
    )
    return _carry_out(client, options, wanted)


def cleanup(client: Client, options: argparse.Namespace) -> int:
    wanted = MaintenanceCleanup(parts=options.parts or list(CLEANUP_PARTS), dry_run=options.dry_run)
    return _carry_out(client, options, wanted)


def health(client: Client, options: argparse.Namespace) -> int:
    return _carry_out(client, options, MaintenanceHealth(nodes=options.nodes))


def verify(client: Client, options: argparse.Namespace) -> int:
    wanted = MaintenanceVerify(parts=options.parts or list(VERIFY_PARTS), nodes=options.nodes)
    return _carry_out(client, options, wanted)


def metrics(client: Client, options: argparse.Namespace) -> int:
    wanted = MaintenanceMetrics(period=options.period, from_ms=options.since, to_ms=options.until)
    lines = 0

    def told(line: dict[str, Any]) -> str:
        nonlocal lines
        lines += 1
        return _usage(line) if lines > 1 else f"{_USAGE.format(*_USAGE_HEAD)}\n{_usage(line)}"

    return _carry_out(client, options, wanted, told)


def _carry_out(
    client: Client,
    options: argparse.Namespace,
    payload: MaintenancePayload,
    told: Callable[[dict[str, Any]], str] = in_words,
) -> int:
    """Have a job do it, and show what came of it; what is failing makes the command fail."""
    job = maintenance_job(payload, **job_options(options))
    return carry_out(client, options, job, succeeded, show_maintenance, told=told, code=_code)


def _code(done: MaintenanceResult) -> int:
    return exits.FAILED if done.status == "failing" else exits.OK


def show_maintenance(done: MaintenanceResult) -> None:
    """Print what an operation came to."""
    gives_back = done.operation in ("compact", "cleanup")
    if done.findings:
        found = ((one.node, one.check, one.status, one.value, one.advice) for one in done.findings)
        print_table(("NODE", "CHECK", "STATUS", "FOUND", "WHAT TO DO"), found)
        print()
    if gives_back and done.nodes:
        nodes = ((one.node, size_text(one.freed_bytes), f"{one.examined:,}", one.outcome) for one in done.nodes)
        print_table(("NODE", "WOULD FREE" if done.dry_run else "FREED", "LOOKED AT", "LEFT UNDONE"), nodes)
        print()
    if done.operation == "verify" and done.nodes:
        looked = ((one.node, f"{one.examined:,}", one.outcome) for one in done.nodes)
        print_table(("NODE", "LOOKED AT", "LEFT UNDONE"), looked)
        print()
    if done.operation == "metrics" and done.counts.get("lines"):
        print()  # behind the lines
    print_fields(
        [
            ("status", done.status if done.findings or done.operation in ("health", "verify") else None),
            *((name.replace("_", " "), _count(name, count)) for name, count in done.counts.items() if count),
            ("would free" if done.dry_run else "freed", size_text(done.freed_bytes) if gives_back else None),
            ("took", f"{done.seconds:.3f} s"),
        ]
    )


def _count(name: str, count: int) -> str:
    return size_text(count) if name.endswith("_bytes") else f"{count:,}"


def _usage(line: dict[str, Any]) -> str:
    """Return what one owner's jobs of one type took, as a row."""
    begins = time.strftime("%Y-%m-%d %H:%M", time.gmtime(line["period_ms"] / 1_000))
    return _USAGE.format(
        begins,
        line["owner"],
        line["type"],
        line["jobs"],
        line["failed"],
        line["attempts"],
        f"{line['wall_s']:.1f} s",
        f"{line['cpu_s']:.1f} s",
        size_text(line["output_bytes"]),
        size_text(line["stored_bytes"]),
    )


# --- options ----------------------------------------------------------------------------------------------------------


def _add_parts(parser: Parser, parts: Sequence[str]) -> None:
    parser.add_argument(
        "--part", dest="parts", action="append", choices=parts, help="only this; again (by default all of them)"
    )


def _add_nodes(parser: Parser, of: str = "") -> None:
    parser.add_argument(
        "--node", dest="nodes", action="append", default=[], metavar="NAME", help=f"{of}only of this node; again"
    )


def _add_dry_run(parser: Parser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="say what would go, and change nothing")


def _configure_compact(parser: Parser) -> None:
    _add_parts(parser, COMPACT_PARTS)
    parser.add_argument(
        "--history-age",
        type=duration,
        metavar="TIME",
        help="keep the changes of the last so long (else maintenance.history_age_s)",
    )
    parser.add_argument(
        "--history-events",
        type=at_least(0),
        metavar="N",
        help="keep so many changes in any case (else maintenance.history_min_events)",
    )
    _add_nodes(parser, "log and file: ")
    _add_dry_run(parser)
    add_job_options(parser)


def _configure_cleanup(parser: Parser) -> None:
    _add_parts(parser, CLEANUP_PARTS)
    _add_dry_run(parser)
    add_job_options(parser)


def _configure_health(parser: Parser) -> None:
    _add_nodes(parser)
    add_job_options(parser)


def _configure_verify(parser: Parser) -> None:
    _add_parts(parser, VERIFY_PARTS)
    _add_nodes(parser)
    add_job_options(parser)


def _configure_metrics(parser: Parser) -> None:
    parser.add_argument("--period", choices=("hour", "day", "month"), default="day", help="a row for each, in UTC")
    parser.add_argument("--since", type=past_ms, metavar="TIME", help="jobs that ended since: 2d, or 2030-01-31T12:00")
    parser.add_argument("--until", type=past_ms, metavar="TIME", help="jobs that ended before that")
    add_job_options(parser)


_ACTIONS: Final = (
    Command("compact", compact, "Give back log, old revisions, and room in the store's file.", _configure_compact),
    Command("cleanup", cleanup, "Delete now what is no longer kept, and what workers have left.", _configure_cleanup),
    Command("health", health, "Look at each node, and say what to do; ends with 1 for failing.", _configure_health),
    Command("verify", verify, "Compare everything with its checksums, and nodes with each other.", _configure_verify),
    Command("metrics", metrics, "Tell what ended jobs took, by owner, type and time.", _configure_metrics),
)


def _configure(parser: Parser) -> None:
    actions = parser.add_commands("maintenance_action")
    for action in _ACTIONS:
        action.add_to(actions)


COMMANDS: Final = (Command("maintenance", None, "The cluster's upkeep, done by workers for it.", _configure),)
