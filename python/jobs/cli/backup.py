"""Commands on backups: backup create, list, prove, restore."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from jobs.cli import exits
from jobs.cli.carrying import add_job_options
from jobs.cli.command import Command, Parser, UsageError, at_least
from jobs.cli.output import moment, note, print_json, print_table, size
from jobs.cli.replication.common import add_existing, add_place, add_throttle, perform, place, throttle
from jobs.cli.submission import past_ms
from jobs.client import Client
from jobs.client.failures import SourceFailed
from jobs.errors import BackupInvalid
from jobs.protocol.model import ReplicationBackup, ReplicationProve, ReplicationRestore

if TYPE_CHECKING:
    from jobs.backups.manifest import Manifest
    from jobs.backups.shelf import ShelfError


def create(client: Client, options: argparse.Namespace) -> int:
    wanted = ReplicationBackup(
        **place(options),
        kind=options.kind,
        full_every=options.full_every,
        recipients=options.recipients,
        blobs=options.blobs,
        keep_full=options.keep_full,
        prove=options.prove,
        throttle=throttle(options),
    )
    return perform(client, options, wanted)


def list_backups(client: Client, options: argparse.Namespace) -> int:
    where = place(options)
    read = _of_directory(where["directory"]) if where["directory"] is not None else _of_tag(client, options.tag)
    faults = [one for one in read if isinstance(one, Exception)]
    found = [one for one in read if not isinstance(one, Exception)]
    if options.json:
        for one in found:
            print_json(_summary(one))
    else:
        _show(found)
    for fault in faults:
        note(str(fault))
    return exits.FAILED if faults else exits.OK


def _show(found: Sequence[Manifest]) -> None:
    print_table(
        ("NAME", "REVISION", "MADE", "KEYS", "SIZE", "BLOBS", "ENCRYPTED FOR"),
        (
            (
                one.directory,
                f"{one.from_revision} → {one.to_revision}" if one.from_revision else one.to_revision,
                moment(one.created_ms),
                "-" if one.state is None else f"{one.state.rows:,}",
                size(sum(entry.size_bytes for entry in one.files)),
                _blobs(one),
                ", ".join(one.recipients) or "nobody",
            )
            for one in found
        ),
    )


def _blobs(one: Manifest) -> str:
    if not one.has_blobs:
        return "-"
    return f"{one.blobs:,} ({len(one.lost):,} lost)" if one.lost else f"{one.blobs:,}"


def _of_directory(directory: str) -> list[Manifest | BackupInvalid | ShelfError]:
    """Read the manifests of a directory of this machine; what is wrong with one stands in its place."""
    from jobs.backups.series import Series
    from jobs.backups.shelf import Shelf, ShelfError

    try:
        with Shelf.open(Path(directory)) as shelf:
            return list(Series(shelf).found().values())
    except ShelfError as error:
        raise SourceFailed(str(error), expected="a directory of this machine; or --tag") from error


def _of_tag(client: Client, tag: str) -> list[Manifest | BackupInvalid | ShelfError]:
    from jobs.backups import manifest

    read: list[Manifest | BackupInvalid | ShelfError] = []
    for one in client.blobs.tags(f"{tag}/"):
        if one.name.removeprefix(f"{tag}/").isdigit():
            try:
                read.append(manifest.decode(client.blobs.get(one.hash, path=manifest.FILE), one.name))
            except BackupInvalid as error:
                read.append(error)
    return read


def _summary(one: Manifest) -> dict[str, Any]:
    return {
        "name": one.directory,
        "kind": one.kind,
        "cluster": one.cluster,
        "from_revision": one.from_revision,
        "to_revision": one.to_revision,
        "created_ms": one.created_ms,
        "rows": None if one.state is None else one.state.rows,
        "bytes": sum(entry.size_bytes for entry in one.files),
        "blobs": one.blobs if one.has_blobs else None,
        "lost": one.lost,
        "recipients": one.recipients,
    }


def prove(client: Client, options: argparse.Namespace) -> int:
    return perform(client, options, ReplicationProve(**place(options)))


def restore(client: Client, options: argparse.Namespace) -> int:
    if options.revision is not None and options.at is not None:
        raise UsageError("name either a --revision or a moment (--at)")
    wanted = ReplicationRestore(
        **place(options),
        target_prefix=options.to,
        prefix=options.prefix,
        revision=options.revision,
        at_ms=options.at,
        existing=options.existing,
        throttle=throttle(options),
        dry_run=options.dry_run,
    )
    return perform(client, options, wanted)


def _configure_create(parser: Parser) -> None:
    add_place(parser, "where the series of backups is, or is to be")
    parser.add_argument(
        "--kind",
        choices=("auto", "full", "incremental"),
        default="auto",
        help="auto: what has changed since the last one, where that is possible, else everything (default)",
    )
    parser.add_argument(
        "--full-every", type=at_least(1), default=24, metavar="N", help="with auto, everything after so many"
    )
    parser.add_argument(
        "--recipient",
        dest="recipients",
        action="append",
        default=[],
        metavar="AGE1…",
        help="encrypt for this public key of age; again",
    )
    parser.add_argument("--no-blobs", dest="blobs", action="store_false", help="leave out what blobs hold")
    parser.add_argument(
        "--keep-full", type=at_least(1), metavar="N", help="delete older ones when there are more full ones"
    )
    parser.add_argument("--no-prove", dest="prove", action="store_false", help="do not restore it aside to compare it")
    add_throttle(parser)
    add_job_options(parser)


def _configure_list(parser: Parser) -> None:
    parser.add_argument("directory", nargs="?", metavar="DIR", help="the series, in a directory of this machine")
    parser.add_argument("--tag", metavar="NAME", help="or as blobs of the cluster, by this name")


def _configure_prove(parser: Parser) -> None:
    add_place(parser, "where the series of backups is")
    add_job_options(parser)


def _configure_restore(parser: Parser) -> None:
    add_place(parser, "where the series of backups is")
    parser.add_argument("--to", required=True, metavar="PREFIX", help="put the keys below this, such as /data/old/")
    parser.add_argument("--prefix", default="/data/", help="the keys of the backup that begin so (default: /data/)")
    parser.add_argument("--revision", type=at_least(1), metavar="N", help="as of this one (default: the newest)")
    parser.add_argument("--at", type=past_ms, metavar="TIME", help="as of so long ago (2h), or of 2030-01-31T12:00")
    add_existing(parser)
    add_throttle(parser)
    add_job_options(parser)


_ACTIONS: Final = (
    Command("create", create, "Back the whole cluster up: all, or what has changed since.", _configure_create),
    Command("list", list_backups, "List the backups of a series.", _configure_list),
    Command("prove", prove, "Restore a series aside, and compare it with what it says of itself.", _configure_prove),
    Command("restore", restore, "Put the keys of a backup below a prefix of this cluster.", _configure_restore),
)


def _configure(parser: Parser) -> None:
    actions = parser.add_commands("backup_action")
    for action in _ACTIONS:
        action.add_to(actions)


COMMANDS: Final = (
    Command(
        "backup",
        None,
        "Backups of the whole cluster.",
        _configure,
        epilog="to make a new cluster of a backup: jobs-node restore",
    ),
)
