"""Commands that a worker carries out as a job: fetch, replicate, gc, verify, export."""

from __future__ import annotations

import argparse
import os
from typing import Any, Final

from jobs.cli import exits, progress
from jobs.cli.blob.names import NAMED, hash_of
from jobs.cli.command import Command, Parser, UsageError, at_least
from jobs.cli.interrupts import Detached
from jobs.cli.output import clean, note, print_fields, print_json
from jobs.cli.submission import duration
from jobs.client import Client
from jobs.client.blobjobs import TICKET_PREFIX, blob_job, lines, succeeded
from jobs.client.blobjobs import fetch as fetch_of
from jobs.client.failures import OperationFailed
from jobs.protocol.model import (
    BlobExport,
    BlobGc,
    BlobPayload,
    BlobPeer,
    BlobReplicate,
    BlobResult,
    BlobVerify,
    Stream,
)


def fetch(client: Client, options: argparse.Namespace) -> int:
    blob = options.blob if options.blob.startswith(TICKET_PREFIX) else hash_of(client, options.blob)
    return _carry_out(client, options, fetch_of(blob, options.providers, options.tag))


def replicate(client: Client, options: argparse.Namespace) -> int:
    if (options.replicas is None) == (not options.nodes):
        raise UsageError("say how many nodes are to have it (--replicas N), or which (--node NAME)")
    blob = hash_of(client, options.blob)
    return _carry_out(client, options, BlobReplicate(hash=blob, replicas=options.replicas, nodes=options.nodes))


def gc(client: Client, options: argparse.Namespace) -> int:
    return _carry_out(client, options, BlobGc(dry_run=options.dry_run, grace_s=options.grace))


def verify(client: Client, options: argparse.Namespace) -> int:
    if (options.blob is None) != options.all:
        raise UsageError("name a blob, or --all")
    return _carry_out(client, options, BlobVerify(hash=None if options.all else hash_of(client, options.blob)))


def export(client: Client, options: argparse.Namespace) -> int:
    blob = hash_of(client, options.blob)
    return _carry_out(client, options, BlobExport(hash=blob, file=os.path.abspath(options.file)))


def _carry_out(client: Client, options: argparse.Namespace, payload: BlobPayload) -> int:
    """Have a job do it, and show what it has told and what came of it."""
    wanted = blob_job(
        payload,
        timeout_s=options.timeout,
        queue=options.queue,
        priority=options.priority,
        idempotency_key=options.idempotency_key,
    )
    try:
        result = progress.run(client, wanted)
    except Detached:
        return exits.INTERRUPTED
    for line in lines(b"".join(bytes(event.data) for event in client.logs(result.id, streams=(Stream.STDOUT,)))):
        if options.json:
            print_json(line)
        else:
            print(_in_words(line))
    try:
        done = succeeded(result)
    except OperationFailed as error:
        note(str(error))
        return progress.code_of(error.reason)
    if options.json:
        print_json(done)
    else:
        _show(done)
    return exits.OK


def _in_words(line: dict[str, Any]) -> str:
    """Return what was told of one blob on one line."""
    return "  ".join(clean(value) for value in line.values())


def _show(done: BlobResult) -> None:
    peers = [(peer.node, _of_peer(peer)) for peer in done.peers]
    blobs = f"{done.blobs:,}, {done.bytes:,} bytes" if done.blobs != 1 or done.hash is None else None
    fields: list[tuple[str, object]] = [
        ("hash", done.hash),
        ("bytes", None if blobs else f"{done.bytes:,}"),
        ("blobs", blobs),
        ("damaged", done.damaged or None),
        ("mended", done.mended if done.damaged else None),
        *peers,
        ("took", f"{done.seconds:.3f} s"),
    ]
    print_fields(fields)


def _of_peer(peer: BlobPeer) -> str:
    size = f"{peer.bytes:,} bytes" if peer.bytes else ""
    return ", ".join(part for part in (size, peer.outcome) if part) or "nothing to do"


def _add_common(parser: Parser) -> None:
    how = parser.add_argument_group("the job that does it")
    how.add_argument("--timeout", type=duration, metavar="TIME", help="end it after this long")
    how.add_argument("--queue", default="default", help="queue to wait in")
    how.add_argument("--priority", type=int, default=0, help="from -100 to 100; higher goes first")
    how.add_argument("--idempotency-key", metavar="KEY", help="the same key makes the same job only once")


def _configure_fetch(parser: Parser) -> None:
    parser.add_argument("blob", metavar="HASH|TAG|TICKET", help="a ticket makes the blob yours as well")
    parser.add_argument(
        "--from", dest="providers", action="append", default=[], metavar="NODE", help="only from this node; again"
    )
    parser.add_argument("--tag", help="a name that keeps it")
    _add_common(parser)


def _configure_replicate(parser: Parser) -> None:
    parser.add_argument("blob", metavar="HASH|TAG", help=NAMED)
    parser.add_argument("--replicas", type=at_least(1), metavar="N", help="on so many nodes, from now on")
    parser.add_argument("--node", dest="nodes", action="append", default=[], metavar="NAME", help="on this one; again")
    _add_common(parser)


def _configure_gc(parser: Parser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="say what would go and why, and delete nothing")
    parser.add_argument("--grace", type=duration, metavar="TIME", help="keep what is younger (at least blobs.grace_s)")
    _add_common(parser)


def _configure_verify(parser: Parser) -> None:
    parser.add_argument("blob", nargs="?", metavar="HASH|TAG", help=NAMED)
    parser.add_argument("--all", action="store_true", help="every blob of every node")
    _add_common(parser)


def _configure_export(parser: Parser) -> None:
    parser.add_argument("blob", metavar="HASH|TAG", help=NAMED)
    parser.add_argument("file", help="on the worker's machine, below one of its workers.blob.allow_files")
    _add_common(parser)


ACTIONS: Final = (
    Command("fetch", fetch, "Have a blob on a worker's node.", _configure_fetch),
    Command("replicate", replicate, "Have a blob on more nodes, or on named ones.", _configure_replicate),
    Command("gc", gc, "Delete what nothing refers to, on all nodes.", _configure_gc),
    Command("verify", verify, "Hash blobs anew where they are, and mend what is damaged.", _configure_verify),
    Command("export", export, "Have a worker write a blob to a file or directory of its machine.", _configure_export),
)
