"""The command on files that jobs have left as blobs."""

from __future__ import annotations

import argparse
from typing import Final

from jobs.cli import exits
from jobs.cli.command import Command, Parser, UsageError, at_least
from jobs.cli.output import note, print_json, print_table, size
from jobs.cli.submission import duration
from jobs.client import Client
from jobs.protocol.model import Artefact, JobResult


def artefacts(client: Client, options: argparse.Namespace) -> int:
    """List them, or with --to write them to a directory; what a pattern matched and was not taken is told."""
    found = client.result(options.id, attempt=options.attempt, timeout_s=options.wait)
    chosen = _chosen(found, options.path)
    if options.to is not None:
        _save(client, chosen, options.to)
    if options.json:
        for one in chosen:
            print_json(one)
    elif options.to is None:
        print_table(("PATH", "SIZE", "BLOB"), ((one.path, size(one.size_bytes), one.hash) for one in chosen))
    for skipped in found.skipped:
        note(f"not taken: {skipped.path} {skipped.why}")
    return exits.OK


def _chosen(found: JobResult, paths: list[str]) -> list[Artefact]:
    by_path = {one.path: one for one in found.artefacts}
    missing = next((path for path in paths if path not in by_path), None)
    if missing is not None:
        raise UsageError(f"job {found.id} has left no {missing}")
    return [by_path[path] for path in paths] if paths else found.artefacts


def _save(client: Client, chosen: list[Artefact], directory: str) -> None:
    from jobs.client.directories import Landing, write_all

    with Landing(directory) as landing:
        for one in chosen:
            with landing.file(one.path) as file:
                for piece in client.blobs.stream(one.hash):
                    write_all(file, piece)


def _configure(parser: Parser) -> None:
    parser.add_argument("id", metavar="ID", help="the job's id")
    parser.add_argument("path", nargs="*", metavar="PATH", help="only these; by default all")
    parser.add_argument("--to", metavar="DIR", help="write them below this directory")
    parser.add_argument("--attempt", type=at_least(1), metavar="N", help="of this attempt instead of the last")
    parser.add_argument("--wait", type=duration, default=0.0, metavar="TIME", help="wait so long for the job's end")


COMMANDS: Final = (Command("artefacts", artefacts, "List or fetch the files that a job has left.", _configure),)
