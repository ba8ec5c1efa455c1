"""Commands that write keys to files, and read them back: export, import."""

from __future__ import annotations

import argparse
from typing import Final

from jobs.cli.carrying import add_job_options
from jobs.cli.command import Command, Parser, at_least
from jobs.cli.replication.common import add_existing, add_place, add_throttle, perform, place, throttle
from jobs.client import Client
from jobs.protocol.model import ReplicationExport, ReplicationImport


def export(client: Client, options: argparse.Namespace) -> int:
    wanted = ReplicationExport(
        **place(options),
        prefix=options.prefix,
        format=options.format,
        revision=options.revision,
        throttle=throttle(options),
    )
    return perform(client, options, wanted)


def import_(client: Client, options: argparse.Namespace) -> int:
    wanted = ReplicationImport(
        **place(options),
        prefix=options.prefix,
        existing=options.existing,
        throttle=throttle(options),
        dry_run=options.dry_run,
    )
    return perform(client, options, wanted)


def _configure_export(parser: Parser) -> None:
    add_place(parser, "where to")
    parser.add_argument("--prefix", default="/data/", help="the keys that begin so (default: /data/)")
    parser.add_argument("--format", choices=("parquet", "arrow", "native"), default="parquet")
    parser.add_argument("--revision", type=at_least(1), metavar="N", help="as of this one (default: the newest)")
    add_throttle(parser)
    add_job_options(parser)


def _configure_import(parser: Parser) -> None:
    add_place(parser, "where it is")
    parser.add_argument("--prefix", help="in place of the one that was exported")
    add_existing(parser)
    add_throttle(parser)
    add_job_options(parser)


ACTIONS: Final = (
    Command("export", export, "Write keys as they are at one revision to files.", _configure_export),
    Command("import", import_, "Put what was exported below a prefix.", _configure_import),
)
