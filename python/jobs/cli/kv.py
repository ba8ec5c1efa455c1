"""Commands on the key-value store: put, get, delete, scan, txn, watch, lease."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import msgspec

from jobs.cli import exits
from jobs.cli.output import clean, note, print_json, print_table
from jobs.cli.submission import UsageError, duration, read
from jobs.client import Client
from jobs.content import content_bytes
from jobs.protocol.model import KeyValue, KvTxn


def add_commands(commands: Any, shared: argparse.ArgumentParser) -> None:
    kv = commands.add_parser("kv", help="Keys and values below /data/.", description="Keys and values below /data/.")
    actions = kv.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(name: str, function: Any, text: str) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = actions.add_parser(name, help=text, description=text, parents=[shared])
        made.set_defaults(function=function)
        return made

    putting = action("put", put, "Set a key.")
    putting.add_argument("key")
    putting.add_argument("value", nargs="?", help="- or nothing reads it from standard input")
    putting.add_argument("--lease", type=int, default=0, metavar="ID", help="delete the key when this lease ends")
    getting = action("get", get, "Print a key's value as it is; 1 when the key is not there.")
    getting.add_argument("key")
    getting.add_argument("--revision", type=int, default=0, metavar="N", help="as it was then")
    deleting = action("delete", delete, "Delete a key, and print how many were deleted.")
    deleting.add_argument("key")
    deleting.add_argument("--prefix", action="store_true", help="all keys that begin so")
    scanning = action("scan", scan, "List the keys with a prefix.")
    scanning.add_argument("prefix", nargs="?", default="/data/")
    scanning.add_argument("--revision", type=int, default=0, metavar="N")
    scanning.add_argument("--keys-only", action="store_true")
    action("txn", txn, "Apply a transaction, read as JSON (KvTxn of the API) from a file.").add_argument(
        "file", nargs="?", default="-"
    )
    watching = action("watch", watch, "Print changes as they happen.")
    watching.add_argument("key")
    watching.add_argument("--prefix", action="store_true")
    watching.add_argument("--after-revision", type=int, metavar="N", help="what has happened since as well")
    lease = actions.add_parser("lease", help="Leases: keys that go when nobody keeps them.")
    leases = lease.add_subparsers(dest="lease_action", metavar="ACTION", required=True)
    for name, function, argument, text in (
        ("grant", grant, "ttl", "Make a lease and print its id."),
        ("keepalive", keepalive, "lease", "Start its time anew."),
        ("revoke", revoke, "lease", "End it and delete its keys."),
    ):
        made = leases.add_parser(name, help=text, description=text, parents=[shared])
        made.add_argument(argument, type=duration if argument == "ttl" else int)
        made.set_defaults(function=function)


def put(client: Client, options: argparse.Namespace) -> int:
    value = options.value if options.value not in (None, "-") else read("-")
    done = client.kv.put(options.key, value, lease=options.lease)
    if options.json:
        print_json({"key": options.key, "revision": done.revision})
    return exits.OK


def get(client: Client, options: argparse.Namespace) -> int:
    found = client.kv.get(options.key, revision=options.revision)
    if found is None:
        note(f"there is no key {options.key}")
        return exits.FAILED
    if options.json:
        print_json(found)
        return exits.OK
    data = content_bytes(found.value, "value")
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
    rows = client.kv.scan(options.prefix, revision=options.revision, keys_only=options.keys_only)
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
    text = row.value.text if row.value.text is not None else f"({len(content_bytes(row.value, 'value'))} bytes)"
    return text if len(text) <= 80 else text[:77] + "…"


def txn(client: Client, options: argparse.Namespace) -> int:
    try:
        wanted = msgspec.json.decode(read(options.file), type=KvTxn)
    except msgspec.MsgspecError as error:
        raise UsageError(f"{options.file}: {error}") from error
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
