"""Commands on what is known of blobs: ls, stat, pin, unpin, share, forget."""

from __future__ import annotations

import argparse
from typing import Final

from jobs.cli import exits
from jobs.cli.blob.names import NAMED, checked_tag, hash_of, own_tag
from jobs.cli.command import Command, Parser, UsageError, at_least
from jobs.cli.output import ago, clean, moment, print_fields, print_json, print_table, size
from jobs.cli.submission import duration
from jobs.client import Client
from jobs.protocol.model import BlobView

SHOWN_REFERENCES: Final = 3


def ls(client: Client, options: argparse.Namespace) -> int:
    if options.blob is not None:
        if options.tags or options.owner is not None:
            raise UsageError("--tags and --owner are for the list of blobs")
        return _list_files(client, options)
    return _list_tags(client, options) if options.tags else _list_blobs(client, options)


def _list_blobs(client: Client, options: argparse.Namespace) -> int:
    found = client.blobs.list(owner=options.owner)
    if options.json:
        for blob in found:
            print_json(blob)
        return exits.OK
    print_table(
        ("HASH", "SIZE", "KIND", "NODES", "USED", "KEPT BY"),
        ((b.hash, size(b.size_bytes), b.kind, nodes_of(b), ago(b.touched_ms), kept_by(b)) for b in found),
    )
    return exits.OK


def _list_tags(client: Client, options: argparse.Namespace) -> int:
    found = client.blobs.tags(options.prefix)
    if options.json:
        for tag in found:
            print_json(tag)
        return exits.OK
    print_table(("NAME", "HASH", "OWNER", "SET"), ((t.name, t.hash, t.owner, ago(t.created_ms)) for t in found))
    return exits.OK


def _list_files(client: Client, options: argparse.Namespace) -> int:
    files = client.blobs.files(hash_of(client, options.blob))
    for name, blob in files.items():
        if options.json:
            print_json({"name": name, "hash": blob})
        else:
            print(f"{blob}  {clean(name)}")
    return exits.OK


def nodes_of(blob: BlobView) -> str:
    """Return how many nodes have a blob, and how many are to."""
    return f"{len(blob.nodes)}/{blob.replicas}"


def kept_by(blob: BlobView) -> str:
    """Return what keeps a blob, in words as short as possible."""
    shown = [f"{reference.kind} {reference.name}" for reference in blob.references[:SHOWN_REFERENCES]]
    more = len(blob.references) - len(shown)
    return ", ".join([*shown, *([f"{more} more"] if more > 0 else [])]) or "-"


def stat(client: Client, options: argparse.Namespace) -> int:
    blob = client.blobs.stat(hash_of(client, options.blob))
    if options.json:
        print_json(blob)
        return exits.OK
    print_fields(
        [
            ("hash", blob.hash),
            ("size", f"{blob.size_bytes:,} bytes"),
            ("kind", blob.kind),
            ("nodes", f"{', '.join(blob.nodes) or 'none'}; to be on {blob.replicas}"),
            ("owners", ", ".join(map(str, blob.owners))),
            ("added", moment(blob.created_ms)),
            ("last used", moment(blob.touched_ms)),
            *(("kept by", f"{reference.kind} {reference.name}") for reference in blob.references),
            *([] if blob.references else [("kept by", "nothing: it goes after the grace period")]),
        ]
    )
    return exits.OK


def pin(client: Client, options: argparse.Namespace) -> int:
    blob = hash_of(client, options.blob)
    tag = client.blobs.pin(options.tag or own_tag(blob), blob, replace=not options.new)
    if options.json:
        print_json(tag)
    else:
        print(clean(tag.name))
    return exits.OK


def unpin(client: Client, options: argparse.Namespace) -> int:
    client.blobs.unpin(checked_tag(options.tag))
    if options.json:
        print_json({"name": options.tag, "deleted": True})
    return exits.OK


def share(client: Client, options: argparse.Namespace) -> int:
    ticket = client.blobs.share(hash_of(client, options.blob), ttl_s=options.ttl)
    if options.json:
        print_json(ticket)
    else:
        print(ticket.ticket)
    return exits.OK


def forget(client: Client, options: argparse.Namespace) -> int:
    client.blobs.forget(options.blob)
    if options.json:
        print_json({"hash": options.blob, "forgotten": True})
    return exits.OK


def _configure_ls(parser: Parser) -> None:
    parser.add_argument("blob", nargs="?", metavar="HASH|TAG", help="a collection, to list its files")
    parser.add_argument("--tags", action="store_true", help="list tags instead")
    parser.add_argument("--prefix", default="", help="only tags that begin so")
    parser.add_argument("--owner", type=at_least(0), metavar="UID", help="of this user")


def _configure_pin(parser: Parser) -> None:
    _add_blob(parser)
    parser.add_argument("tag", nargs="?", metavar="NAME", help="by default put/UID/ and part of its hash")
    parser.add_argument("--new", action="store_true", help="refuse a name that keeps another blob already")


def _configure_unpin(parser: Parser) -> None:
    parser.add_argument("tag", metavar="NAME")


def _configure_share(parser: Parser) -> None:
    _add_blob(parser)
    parser.add_argument("--ttl", type=duration, default=86_400.0, metavar="TIME", help="for how long; by default 1d")


def _configure_forget(parser: Parser) -> None:
    parser.add_argument("blob", metavar="HASH")


def _add_blob(parser: Parser) -> None:
    parser.add_argument("blob", metavar="HASH|TAG", help=NAMED)


ACTIONS: Final = (
    Command("ls", ls, "List blobs, tags, or the files of a collection.", _configure_ls),
    Command("stat", stat, "Show what is known of a blob: where it is, and what keeps it.", _add_blob),
    Command("pin", pin, "Keep a blob by a name.", _configure_pin),
    Command("unpin", unpin, "Delete a name; the blob goes after a while, unless it has others.", _configure_unpin),
    Command("share", share, "Print a ticket with which others can have a blob too.", _configure_share),
    Command(
        "forget",
        forget,
        "Give a blob up: it is yours no longer, by whatever name.",
        _configure_forget,
    ),
)
