"""Commands that a worker carries out as a job: fetch, replicate, gc, verify, export."""

from __future__ import annotations

import argparse
import os
from typing import Final

from jobs.cli.blob.names import NAMED, hash_of
from jobs.cli.carrying import add_job_options, carry_out, job_options
from jobs.cli.command import Command, Parser, UsageError, at_least
from jobs.cli.output import print_fields
from jobs.cli.submission import duration
from jobs.client import Client
from jobs.client.blobjobs import TICKET_PREFIX, blob_job, succeeded
from jobs.client.blobjobs import fetch as fetch_of
from jobs.protocol.model import (
    BlobExport,
    BlobGc,
    BlobPayload,
    BlobPeer,
    BlobReplicate,
    BlobResult,
    BlobVerify,
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
    return carry_out(client, options, blob_job(payload, **job_options(options)), succeeded, _show)


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


def _configure_fetch(parser: Parser) -> None:
    parser.add_argument("blob", metavar="HASH|TAG|TICKET", help="a ticket makes the blob yours as well")
    parser.add_argument(
        "--from", dest="providers", action="append", default=[], metavar="NODE", help="only from this node; again"
    )
    parser.add_argument("--tag", help="a name that keeps it")
    add_job_options(parser)


def _configure_replicate(parser: Parser) -> None:
    parser.add_argument("blob", metavar="HASH|TAG", help=NAMED)
    parser.add_argument("--replicas", type=at_least(1), metavar="N", help="on so many nodes, from now on")
    parser.add_argument("--node", dest="nodes", action="append", default=[], metavar="NAME", help="on this one; again")
    add_job_options(parser)


def _configure_gc(parser: Parser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="say what would go and why, and delete nothing")
    parser.add_argument("--grace", type=duration, metavar="TIME", help="keep what is younger (at least blobs.grace_s)")
    add_job_options(parser)


def _configure_verify(parser: Parser) -> None:
    parser.add_argument("blob", nargs="?", metavar="HASH|TAG", help=NAMED)
    parser.add_argument("--all", action="store_true", help="every blob of every node")
    add_job_options(parser)


def _configure_export(parser: Parser) -> None:
    parser.add_argument("blob", metavar="HASH|TAG", help=NAMED)
    parser.add_argument("file", help="on the worker's machine, below one of its workers.blob.allow_files")
    add_job_options(parser)


ACTIONS: Final = (
    Command("fetch", fetch, "Have a blob on a worker's node.", _configure_fetch),
    Command("replicate", replicate, "Have a blob on more nodes, or on named ones.", _configure_replicate),
    Command("gc", gc, "Delete what nothing refers to, on all nodes.", _configure_gc),
    Command("verify", verify, "Hash blobs anew where they are, and mend what is damaged.", _configure_verify),
    Command("export", export, "Have a worker write a blob to a file or directory of its machine.", _configure_export),
)
