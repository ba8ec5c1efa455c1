"""Commands on syncs: status, sync, verify, conflicts, forget."""

from __future__ import annotations

import argparse
from itertools import islice
from typing import Final

from jobs.cli import exits
from jobs.cli.carrying import add_job_options
from jobs.cli.command import Command, Parser, UsageError, at_least
from jobs.cli.output import ago, moment, print_fields, print_json, print_table, size, span
from jobs.cli.replication.common import add_throttle, perform, throttle
from jobs.client import Client
from jobs.errors import NotFound
from jobs.protocol.model import ReplicationResult, ReplicationSync, ReplicationVerify, SyncView

HERE: Final = "this cluster"


def status(client: Client, options: argparse.Namespace) -> int:
    found = client.replication.syncs()
    if options.name is not None:
        found = [one for one in found if one.name == options.name]
        if not found:
            raise NotFound(f"there is no sync {options.name}", expected="a name of jobctl replication status")
    if options.json:
        for one in found:
            print_json(one)
    elif options.name is not None:
        _show(found[0])
    else:
        print_table(
            ("NAME", "FROM", "TO", "PHASE", "POSITION", "BEHIND", "LAG", "RATE", "CONFLICTS", "LAST ERROR"),
            map(_row, found),
        )
    return exits.OK


def _row(one: SyncView) -> tuple[object, ...]:
    return (
        one.name,
        _end(one.source, one.prefix),
        _end(one.target, one.target_prefix),
        one.phase,
        one.position,
        one.lag_revisions,
        span(one.lag_s),
        _rate(one),
        one.conflicts,
        one.last_error or "-",
    )


def _end(link: str, prefix: str) -> str:
    return f"{link}:{prefix}" if link else prefix or "(all tags)"


def _rate(one: SyncView) -> str:
    return f"{one.rows_per_s:,.0f}/s, {size(one.bytes_per_s)}/s"


def _show(one: SyncView) -> None:
    what = "tags" if one.tags else "keys"
    print_fields(
        [
            ("name", one.name),
            ("from", f"{one.source or HERE}: {what} {one.prefix or '(all)'}"),
            ("to", f"{one.target or HERE}: {what} {one.target_prefix or '(all)'}"),
            ("job", one.job),
            ("phase", one.phase),
            ("position", f"revision {one.position} of {one.source_revision}"),
            ("behind", f"{one.lag_revisions:,} revisions, {span(one.lag_s)}"),
            ("rate", _rate(one)),
            (what, f"{one.rows:,} set, {one.deleted:,} deleted"),
            ("conflicts", f"{one.conflicts:,}"),
            ("compared", f"{one.snapshots:,} times"),
            ("last error", one.last_error),
            ("updated", f"{moment(one.updated_ms)}, {ago(one.updated_ms)} ago"),
        ]
    )


def sync(client: Client, options: argparse.Namespace) -> int:
    wanted = ReplicationSync(
        name=options.name,
        **_ends(options),
        continuous=options.continuous,
        conflicts=options.conflicts,
        throttle=throttle(options),
        restart=options.restart,
    )
    return perform(client, options, wanted)


def verify(client: Client, options: argparse.Namespace) -> int:
    return perform(client, options, ReplicationVerify(**_ends(options)), code=_is_equal)


def _is_equal(done: ReplicationResult) -> int:
    return exits.FAILED if done.differences else exits.OK


def _ends(options: argparse.Namespace) -> dict[str, str | None]:
    if (options.prefix is None) == (options.tags is None):
        raise UsageError("say either which keys (--prefix /data/…) or which --tags")
    return {
        "source": options.source,
        "target": options.target,
        "prefix": options.prefix,
        "target_prefix": options.target_prefix,
        "tags": options.tags,
    }


def conflicts(client: Client, options: argparse.Namespace) -> int:
    found = islice(client.replication.conflicts(options.name), options.limit or None)
    if options.json:
        for one in found:
            print_json(one)
        return exits.OK
    print_table(
        ("KEY", "WINNER", "DELETED AT", "SOURCE REVISION", "TARGET REVISION", "AGE"),
        (
            (one.key, one.winner, one.deleted or "-", one.source_revision, one.target_revision, ago(one.at_ms))
            for one in found
        ),
    )
    return exits.OK


def forget(client: Client, options: argparse.Namespace) -> int:
    client.replication.forget(options.name)
    if options.json:
        print_json({"name": options.name, "forgotten": True})
    return exits.OK


def _add_ends(parser: Parser) -> None:
    parser.add_argument("--from", dest="source", metavar="LINK", help="read there instead of in this cluster")
    parser.add_argument("--to", dest="target", metavar="LINK", help="write there instead of in this cluster")
    parser.add_argument("--prefix", help="the keys that begin so, such as /data/orders/")
    parser.add_argument("--target-prefix", metavar="PREFIX", help="what takes its place (default: the same)")
    parser.add_argument("--tags", metavar="PREFIX", help="the tags that begin so, and their blobs; '' for all")


def _configure_status(parser: Parser) -> None:
    parser.add_argument("name", nargs="?", help="more of this one")


def _configure_sync(parser: Parser) -> None:
    parser.add_argument("name", help="by which it goes on where it stopped")
    _add_ends(parser)
    parser.add_argument("--continuous", action="store_true", help="go on until it is cancelled")
    parser.add_argument(
        "--conflicts",
        choices=("source", "newer", "fail"),
        default="source",
        help="who wins where others have changed the target (default: source)",
    )
    parser.add_argument("--restart", action="store_true", help="forget how far it was, and compare everything")
    add_throttle(parser)
    add_job_options(parser)


def _configure_verify(parser: Parser) -> None:
    _add_ends(parser)
    add_job_options(parser)


def _configure_conflicts(parser: Parser) -> None:
    parser.add_argument("name")
    parser.add_argument("--limit", type=at_least(0), default=50, metavar="N", help="0 lists all (default: 50)")


def _configure_forget(parser: Parser) -> None:
    parser.add_argument("name")


ACTIONS: Final = (
    Command("status", status, "How far syncs are: position, lag, rate, last error.", _configure_status),
    Command("sync", sync, "Have at the target what the source has, once or continuously.", _configure_sync),
    Command("verify", verify, "Compare two sides; 1 when they differ.", _configure_verify),
    Command("conflicts", conflicts, "List what others had changed at the target.", _configure_conflicts),
    Command("forget", forget, "Forget how far a sync is, and its conflicts.", _configure_forget),
)
