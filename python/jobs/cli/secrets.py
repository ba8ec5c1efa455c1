"""Commands on secrets: secret set, list, show, delete, key, rotate-key. No value is ever an argument, or shown."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Final

from jobs.cli import exits
from jobs.cli.command import Command, Parser, UsageError
from jobs.cli.output import moment, note, print_fields, print_json, print_table, size
from jobs.cli.submission import read
from jobs.client import Client
from jobs.protocol.model import MAX_SECRET_BYTES, SecretView

HIDDEN_FROM_BYTES: Final = 8
"""Shorter values are not looked for in what jobs write."""


def set_secret(client: Client, options: argparse.Namespace) -> int:
    value = _value(options)
    view = client.secrets.set(options.name, value, owner=options.owner)
    if len(value.strip()) < HIDDEN_FROM_BYTES:
        note(f"{options.name} is shorter than {HIDDEN_FROM_BYTES} bytes: it is not hidden in what jobs write")
    return _show(view, options)


def _value(options: argparse.Namespace) -> bytes:
    if options.file == "-" and sys.stdin.isatty():
        from getpass import getpass

        value = os.fsencode(getpass(f"Value of {options.name}: "))
    else:
        value = read(options.file, MAX_SECRET_BYTES, "a secret")
        if options.strip:
            value = value.removesuffix(b"\n").removesuffix(b"\r")
    if not value:
        raise UsageError("the value is empty; give it on standard input, or with --file FILE")
    return value


def show(client: Client, options: argparse.Namespace) -> int:
    return _show(client.secrets.get(options.name, owner=options.owner), options)


def _show(view: SecretView, options: argparse.Namespace) -> int:
    if options.json:
        print_json(view)
    else:
        print_fields(
            [
                ("name", view.name),
                ("owner", view.owner),
                ("size", size(view.size_bytes)),
                ("version", view.version),
                ("created", moment(view.created_ms)),
                ("updated", moment(view.updated_ms)),
            ]
        )
    return exits.OK


def list_secrets(client: Client, options: argparse.Namespace) -> int:
    found = client.secrets.list(owner=options.owner, everybody=options.all)
    if options.json:
        for view in found:
            print_json(view)
        return exits.OK
    rows = ((view.name, view.owner, size(view.size_bytes), view.version, moment(view.updated_ms)) for view in found)
    print_table(("NAME", "OWNER", "SIZE", "VERSION", "UPDATED"), rows)
    return exits.OK


def delete(client: Client, options: argparse.Namespace) -> int:
    for name in options.name:
        client.secrets.delete(name, owner=options.owner)
        if options.json:
            print_json({"name": name, "deleted": True})
    return exits.OK


def key(client: Client, options: argparse.Namespace) -> int:
    found = client.secrets.key()
    if options.json:
        print_json(found)
        return exits.OK
    print_fields(
        [
            ("key", found.fingerprint or "none yet"),
            ("made", moment(found.created_ms)),
            ("on the leader", "yes" if found.present else "no: it is lost, or with a node that is not reached"),
            ("secrets", found.secrets),
            ("with a former key", found.to_rewrite),
        ]
    )
    return exits.OK


def rotate_key(client: Client, options: argparse.Namespace) -> int:
    done = client.secrets.rotate_key(forget_lost=options.forget_lost)
    if options.json:
        print_json(done)
    else:
        forgotten = f", {done.forgotten} deleted" if done.forgotten else ""
        print(f"{done.rewritten} secrets encrypted anew with key {done.fingerprint}{forgotten}")
    return exits.OK


def _add_owner(parser: Parser) -> None:
    parser.add_argument("--owner", type=int, metavar="UID", help="of another user: for administrators")


def _configure_set(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--file", default="-", metavar="FILE", help="what holds the value; standard input without it")
    parser.add_argument("--strip", action="store_true", help="leave out an end of line at the end of the value")
    _add_owner(parser)


def _configure_show(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME")
    _add_owner(parser)


def _configure_list(parser: Parser) -> None:
    parser.add_argument("--all", action="store_true", help="of all users: for administrators")
    _add_owner(parser)


def _configure_delete(parser: Parser) -> None:
    parser.add_argument("name", nargs="+", metavar="NAME")
    _add_owner(parser)


def _configure_rotate(parser: Parser) -> None:
    parser.add_argument(
        "--forget-lost", action="store_true", help="delete the secrets whose key no node has any more, and go on"
    )


def _configure(parser: Parser) -> None:
    commands = parser.add_commands("secret_command")
    for command in (
        Command("set", set_secret, "keep a value, which jobs are given and nobody reads back", _configure_set),
        Command("list", list_secrets, "list secrets, without their values", _configure_list),
        Command("show", show, "tell what is known of a secret, which is not its value", _configure_show),
        Command("delete", delete, "delete secrets", _configure_delete),
        Command("key", key, "tell which key they are encrypted with"),
        Command("rotate-key", rotate_key, "encrypt all of them with a new key", _configure_rotate),
    ):
        command.add_to(commands)


COMMANDS: Final = (Command("secret", None, "values that only jobs are given", _configure),)
