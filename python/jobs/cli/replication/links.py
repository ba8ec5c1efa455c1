"""Commands on links to other clusters: invite, link, links, unlink."""

from __future__ import annotations

import argparse
import sys
from typing import Final

from jobs.cli import exits
from jobs.cli.command import Command, Parser
from jobs.cli.output import ago, clean, note, print_json, print_table
from jobs.client import Client
from jobs.protocol.model import LinkScopes, LinkView


def invite(client: Client, options: argparse.Namespace) -> int:
    made = client.replication.invitation()
    if options.json:
        print_json(made)
    else:
        print(made.invitation)
        note("no secret; on the other cluster: jobctl replication link NAME INVITATION, and the same the other way")
    return exits.OK


def link(client: Client, options: argparse.Namespace) -> int:
    text = sys.stdin.readline() if options.invitation == "-" else options.invitation
    scopes = LinkScopes(
        read=options.allow_read,
        write=options.allow_write,
        read_tags=options.allow_read_tags,
        write_tags=options.allow_write_tags,
    )
    made = client.replication.link(options.name, text.strip(), scopes)
    if options.json:
        print_json(made)
    else:
        print(f"{clean(made.name)}: cluster {made.cluster}; here it may {_allowed(made.scopes)}")
    return exits.OK


def unlink(client: Client, options: argparse.Namespace) -> int:
    client.replication.unlink(options.name)
    if options.json:
        print_json({"name": options.name, "deleted": True})
    return exits.OK


def links(client: Client, options: argparse.Namespace) -> int:
    found = client.replication.links()
    if options.json:
        for one in found:
            print_json(one)
    else:
        print_table(("NAME", "CLUSTER", "STATE", "NODES", "HERE IT MAY", "MADE", "PROBLEM"), map(_row, found))
    return exits.OK


def _row(one: LinkView) -> tuple[object, ...]:
    state = "reached" if one.reached else "not reached"
    return (
        one.name,
        one.cluster[:16],
        state,
        len(one.peers),
        _allowed(one.scopes),
        ago(one.created_ms),
        one.problem or "-",
    )


def _allowed(scopes: LinkScopes) -> str:
    """Return what the other cluster may do here, in words."""
    parts = (
        ("read", scopes.read),
        ("write", scopes.write),
        ("read tags", scopes.read_tags),
        ("write tags", scopes.write_tags),
    )
    told = [f"{what} {' '.join(prefix or '(all)' for prefix in prefixes)}" for what, prefixes in parts if prefixes]
    return ", ".join(told) or "do nothing"


def _configure_link(parser: Parser) -> None:
    parser.add_argument("name", help="what the link is called here")
    parser.add_argument("invitation", help="what `jobctl replication invite` printed there; - reads it from stdin")
    for what, metavar, text in (
        ("read", "PREFIX", "keys below this, such as /data/orders/, may be read from there; again"),
        ("write", "PREFIX", "keys below this may be written from there; again"),
        ("read-tags", "PREFIX", "tags that begin so, and their blobs, may be read from there; again"),
        ("write-tags", "PREFIX", "tags that begin so may be set from there; again"),
    ):
        parser.add_argument(f"--allow-{what}", action="append", default=[], metavar=metavar, help=text)


def _add_name(parser: Parser) -> None:
    parser.add_argument("name")


ACTIONS: Final = (
    Command("invite", invite, "Print what another cluster is given to make a link to this one."),
    Command("link", link, "Make a link to another cluster, or replace it.", _configure_link),
    Command("links", links, "List the links to other clusters."),
    Command("unlink", unlink, "Delete a link: the other cluster is cut off at once.", _add_name),
)
