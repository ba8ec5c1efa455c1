"""Commands that send and fetch content: put, get, cat."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from jobs.cli import exits
from jobs.cli.blob.names import NAMED, hash_of, own_tag
from jobs.cli.command import Command, Parser, UsageError, at_least
from jobs.cli.output import print_json, size
from jobs.client import Client

NAME_COLUMNS: Final = 20
"""Of what is told of in front of a bar."""

if TYPE_CHECKING:
    from jobs.client.sources import OnBytes
    from jobs.protocol.model import BlobAdded


def put(client: Client, options: argparse.Namespace) -> int:
    if options.no_pin and options.tag:
        raise UsageError("--no-pin and --tag exclude each other")
    with _metered(options, "put", options.source) as on_bytes:
        added = _add(client, options, on_bytes)
    if added.tag is None and not options.no_pin:
        added = replace(added, tag=client.blobs.pin(own_tag(added.hash), added.hash).name)
    if options.json:
        print_json(added)
    else:
        print(added.hash)
    return exits.OK


def _add(client: Client, options: argparse.Namespace, on_bytes: OnBytes) -> BlobAdded:
    from pathlib import Path

    source, tag, replicas = options.source, options.tag, options.replicas
    if source != "-" and os.path.isdir(source):
        if options.expected:
            raise UsageError("--expected is for a file: the hash of a directory is that of its list of files")
        return client.blobs.put_directory(
            Path(source), tag=tag, replicas=replicas, skip_others=options.skip_others, on_bytes=on_bytes
        )
    content = sys.stdin.buffer if source == "-" else Path(source)
    return client.blobs.put(content, tag=tag, replicas=replicas, expected=options.expected, on_bytes=on_bytes)


def get(client: Client, options: argparse.Namespace) -> int:
    from pathlib import Path

    blob = hash_of(client, options.blob)
    if options.target in (None, "-"):
        return _print(client, options, blob)
    target = Path(options.target)
    is_directory = options.path is None and client.blobs.stat(blob).kind == "collection"
    if target.is_dir() and not is_directory:
        raise UsageError(f"{options.target} is a directory; name the file that is to be written")
    from jobs.cli.interrupts import as_ctrl_c

    # What has come of a file that is not whole goes.
    with as_ctrl_c(), _metered(options, "get", options.target) as on_bytes:
        if is_directory:
            written = client.blobs.save_directory(blob, target, on_bytes=on_bytes)
        else:
            written = client.blobs.save(blob, target, path=options.path, on_bytes=on_bytes)
    if options.json:
        print_json({"hash": blob, "bytes": written, "target": options.target})
    return exits.OK


def cat(client: Client, options: argparse.Namespace) -> int:
    return _print(client, options, hash_of(client, options.blob))


def _print(client: Client, options: argparse.Namespace, blob: str) -> int:
    """Write content to standard output as it comes."""
    if options.path is None and client.blobs.stat(blob).kind == "collection":
        raise UsageError(f"{options.blob} is a collection; name one of its files (--path), or get it into a directory")
    start, end = getattr(options, "range", None) or (0, None)
    out = sys.stdout.buffer
    with _metered(options, "get", options.blob) as on_bytes:
        for piece in client.blobs.stream(blob, path=options.path, start=start, end=end, on_bytes=on_bytes):
            out.write(piece)
        out.flush()
    return exits.OK


@contextmanager
def _metered(options: argparse.Namespace, what: str, which: str) -> Iterator[OnBytes]:
    """Show how far it is, unless standard output goes to the same terminal."""
    from jobs.cli.columns import cut
    from jobs.cli.meter import Meter

    # A hash or a path as it is would leave no room for the rest.
    meter = Meter(
        f"{what} {cut(os.path.basename(which) or which, NAME_COLUMNS)}",
        None,
        quiet=options.quiet or _writes_to_terminal(options),
        form=size,
    )
    try:
        yield meter.show_of
    finally:
        meter.clear()


def _writes_to_terminal(options: argparse.Namespace) -> bool:
    prints = getattr(options, "source", None) is None and getattr(options, "target", None) in (None, "-")
    return prints and sys.stdout.isatty()


def byte_range(text: str) -> tuple[int, int | None]:
    """Parse which bytes: FIRST-LAST, or FIRST- up to the end."""
    first, dash, last = text.partition("-")
    if not dash or not first.isdecimal() or (last and not last.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is no range; for example 0-1023, or 1024-")
    start, end = int(first), int(last) + 1 if last else None
    if end is not None and end <= start:
        raise argparse.ArgumentTypeError(f"{text!r} ends before it begins")
    return start, end


def _configure_put(parser: Parser) -> None:
    parser.add_argument("source", metavar="FILE|DIR|-", help="a file, a directory, or - for standard input")
    parser.add_argument("--tag", metavar="NAME", help="the name that keeps it; else put/UID/ and part of its hash")
    parser.add_argument("--no-pin", action="store_true", help="it goes after a while, unless something refers to it")
    parser.add_argument("--replicas", type=at_least(1), metavar="N", help="nodes that are to have it")
    parser.add_argument("--expected", metavar="HASH", help="refuse other content")
    parser.add_argument(
        "--skip-others", action="store_true", help="leave out what is no file and no directory, such as symbolic links"
    )
    _add_quiet(parser)


def _configure_get(parser: Parser) -> None:
    parser.add_argument("blob", metavar="HASH|TAG", help=NAMED)
    parser.add_argument(
        "target", nargs="?", metavar="FILE|DIR", help="by default standard output; a directory for a collection"
    )
    _add_path(parser)
    _add_quiet(parser)


def _configure_cat(parser: Parser) -> None:
    parser.add_argument("blob", metavar="HASH|TAG", help=NAMED)
    parser.add_argument("--range", type=byte_range, metavar="FIRST-LAST", help="these bytes only, counted from 0")
    _add_path(parser)
    _add_quiet(parser)


def _add_path(parser: Parser) -> None:
    parser.add_argument("--path", metavar="NAME", help="of a collection, this file only")


def _add_quiet(parser: Parser) -> None:
    parser.add_argument("-q", "--quiet", action="store_true", help="do not tell how far it is")


ACTIONS: Final = (
    Command("put", put, "Add a file, a directory or standard input, keep it, and print its hash.", _configure_put),
    Command("get", get, "Write a blob to a file, or a collection to a directory.", _configure_get),
    Command("cat", cat, "Write a blob, or a part of it, to standard output.", _configure_cat),
)
