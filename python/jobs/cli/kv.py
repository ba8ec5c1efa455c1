"""Commands on the key-value store: put, get, delete, scan, txn, watch, lease."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Final

import msgspec

from jobs.cli import exits
from jobs.cli.command import Command, Parser, add_stale, at_least, consistency
from jobs.cli.output import clean, note, print_json, print_table
from jobs.cli.submission import duration, read
from jobs.client import Client
from jobs.errors import InvalidRequest
from jobs.invalid import invalid_body
from jobs.protocol.model import KeyValue, KvTxn


def put(client: Client, options: argparse.Namespace) -> int:
    value = read("-") if options.value in (None, "-") else os.fsencode(options.value)
    done = client.kv.put(options.key, value, lease=options.lease)
    if options.json:
        print_json({"key": options.key, "revision": done.revision})
    return exits.OK


def get(client: Client, options: argparse.Namespace) -> int:
    found = client.kv.get(options.key, revision=options.revision, consistency=consistency(options))
    if found is None:
        note(f"there is no key {options.key}")
        return exits.FAILED
    if options.json:
        print_json(found)
        return exits.OK
    data = bytes(found.value)
    sys.stdout.buffer.write(data)
    if sys.stdout.isatty() and not data.endswith(b"\n"):
        sys.stdout.buffer.write(b"\n")
    sys.stdout.buffer.flush()
    return exits.OK


def delete(client: Client, options: argparse.Namespace) -> int:
    count = client.kv.delete(options.key, prefix=options.prefix)
    if options.json:
        print_json({"key": options.key, "deleted": count})
    else:
        print(count)
    return exits.OK


def scan(client: Client, options: argparse.Namespace) -> int:
    rows = client.kv.scan(
        options.prefix, revision=options.revision, keys_only=options.keys_only, consistency=consistency(options)
    )
    if options.json:
        for row in rows:
            print_json(row)
    elif options.keys_only:
        for row in rows:
            print(clean(row.key))
    else:
        print_table(("KEY", "REVISION", "VALUE"), ((row.key, row.mod_revision, shown(row)) for row in rows))
    return exits.OK


def shown(row: KeyValue) -> str:
    """Return a value on one line, cut to a length that fits."""
    text = row.value.text if row.value.text is not None else f"({len(bytes(row.value))} bytes)"
    return text if len(text) <= 80 else text[:77] + "…"


def txn(client: Client, options: argparse.Namespace) -> int:
    try:
        wanted = msgspec.json.decode(read(options.file), type=KvTxn)
    except msgspec.ValidationError as error:
        raise invalid_body(error, KvTxn) from error
    except msgspec.DecodeError as error:
        raise InvalidRequest(
            f"{options.file} is not JSON: {error}", field="$", expected="a KvTxn of the API"
        ) from error
    done = client.kv.txn(compare=wanted.compare, then=wanted.then, otherwise=wanted.otherwise)
    print_json(done)
    return exits.OK if done.succeeded else exits.FAILED


def watch(client: Client, options: argparse.Namespace) -> int:
    for event in client.kv.watch(options.key, prefix=options.prefix, after_revision=options.after_revision):
        if options.json:
            print_json(event)
        else:
            value = f" {clean(shown(event.kv))}" if event.kv is not None else ""
            print(f"{event.revision} {event.type} {clean(event.key)}{value}", flush=True)
    return exits.OK


def grant(client: Client, options: argparse.Namespace) -> int:
    lease = client.kv.grant(options.ttl)
    if options.json:
        print_json(lease)
    else:
        print(lease.id)
    return exits.OK


def keepalive(client: Client, options: argparse.Namespace) -> int:
    lease = client.kv.keepalive(options.lease)
    if options.json:
        print_json(lease)
    else:
        print(f"{lease.remaining_s:.1f} s")
    return exits.OK


def revoke(client: Client, options: argparse.Namespace) -> int:
    client.kv.revoke(options.lease)
    if options.json:
        print_json({"lease": options.lease, "revoked": True})
    return exits.OK


def _configure_put(parser: Parser) -> None:
    parser.add_argument("key")
    parser.add_argument("value", nargs="?", help="- or nothing reads it from standard input")
    parser.add_argument(
        "--lease", type=at_least(1), default=0, metavar="ID", help="delete the key when this lease ends"
    )


def _configure_get(parser: Parser) -> None:
    parser.add_argument("key")
    parser.add_argument("--revision", type=at_least(0), default=0, metavar="N", help="as it was then")
    add_stale(parser)


def _configure_delete(parser: Parser) -> None:
    parser.add_argument("key")
    parser.add_argument("--prefix", action="store_true", help="all keys that begin so")


def _configure_scan(parser: Parser) -> None:
    parser.add_argument("prefix", nargs="?", default="/data/")
    parser.add_argument("--revision", type=at_least(0), default=0, metavar="N", help="as it was then")
    parser.add_argument("--keys-only", action="store_true")
    add_stale(parser)


def _configure_watch(parser: Parser) -> None:
    parser.add_argument("key")
    parser.add_argument("--prefix", action="store_true", help="all keys that begin so")
    parser.add_argument("--after-revision", type=at_least(0), metavar="N", help="what has happened since as well")


def _configure_lease(parser: Parser) -> None:
    actions = parser.add_commands("lease_action")
    for action in (
        Command("grant", grant, "Make a lease and print its id.", lambda made: made.add_argument("ttl", type=duration)),
        Command("keepalive", keepalive, "Start its time anew.", _add_lease),
        Command("revoke", revoke, "End it and delete its keys.", _add_lease),
    ):
        action.add_to(actions)


def _add_lease(parser: Parser) -> None:
    parser.add_argument("lease", type=at_least(1))


def _configure_kv(parser: Parser) -> None:
    actions = parser.add_commands("action")
    for action in (
        Command("put", put, "Set a key.", _configure_put),
        Command("get", get, "Print a key's value as it is; 1 when the key is not there.", _configure_get),
        Command("delete", delete, "Delete a key, and print how many were deleted.", _configure_delete),
        Command("scan", scan, "List the keys with a prefix.", _configure_scan),
        Command(
            "txn",
            txn,
            "Apply a transaction, read as JSON (KvTxn of the API) from a file.",
            lambda made: made.add_argument("file", nargs="?", default="-"),
        ),
        Command("watch", watch, "Print changes as they happen.", _configure_watch),
        Command("lease", None, "Leases: keys that go when nobody keeps them.", _configure_lease),
    ):
        action.add_to(actions)


COMMANDS: Final = (Command("kv", None, "Keys and values below /data/.", _configure_kv),)
