"""Commands on the cluster: cluster init, ticket, tickets, join, members, remove, transfer-leader."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from jobs.cli import exits
from jobs.cli.command import Command, Parser
from jobs.cli.output import note, print_fields, print_json, print_table
from jobs.cli.submission import duration
from jobs.client import Client
from jobs.client.cluster import has_vote, is_founded
from jobs.clock import rfc3339
from jobs.errors import Unavailable
from jobs.protocol.model import ClusterView, MemberView

POLL_S: Final = 0.2
REMOVED_S: Final = 10.0
"""How long it may take after a removal until a leader is known again."""
SILENT_S: Final = 2.0
"""A member that the leader has not heard for longer is told as silent: a connection outlives who is killed a while."""


def members(client: Client, options: argparse.Namespace) -> int:
    return _show(client.cluster.view(), options)


def init(client: Client, options: argparse.Namespace) -> int:
    if options.if_unformed and (view := client.cluster.view()).state != "unformed":
        return _show_formed(view, options)
    client.cluster.init()
    return _show_once(client, options.wait, is_founded, options)


def ticket(client: Client, options: argparse.Namespace) -> int:
    made = client.cluster.ticket(options.ttl)
    if options.json:
        print_json(made)
    else:
        print(made.ticket)
        note(f"valid until {rfc3339(made.expires_ms)}, for one node; on that node: jobctl cluster join TICKET")
    return exits.OK


def tickets(client: Client, options: argparse.Namespace) -> int:
    if options.revoke is not None:
        client.cluster.revoke_ticket(options.revoke)
        return exits.OK
    found = client.cluster.tickets()
    if options.json:
        for one in found:
            print_json(one)
    else:
        print_table(
            ("ID", "VALID UNTIL", "MADE BY", "USED BY"),
            ((one.id[:16], rfc3339(one.expires_ms), str(one.made_by), one.used_by or "-") for one in found),
        )
    return exits.OK


def join(client: Client, options: argparse.Namespace) -> int:
    if options.if_unformed and (view := client.cluster.view()).state != "unformed":
        return _show_formed(view, options)
    text = sys.stdin.readline() if options.ticket == "-" else options.ticket
    client.cluster.join(text.strip())
    return _show_once(client, options.wait, has_vote, options)


def _show_formed(view: ClusterView, options: argparse.Namespace) -> int:
    """Show the cluster that the node is in already; one that was removed from it is in none."""
    _show(view, options)
    return exits.FAILED if view.state == "removed" else exits.OK


def remove(client: Client, options: argparse.Namespace) -> int:
    try:
        client.cluster.remove(options.member)
    except Unavailable:
        # A node that removes itself is cut off before the answer has come.
        view = client.cluster.view()
        if view.state != "removed" or not (view.node == options.member or (view.id or "").startswith(options.member)):
            raise
    # As the node that was asked sees it: who carried it out may be the member that is gone.
    return _show_once(client, REMOVED_S, lambda view: view.leader is not None or view.state == "removed", options)


def transfer_leader(client: Client, options: argparse.Namespace) -> int:
    done = client.cluster.transfer(options.to)
    if options.json:
        print_json(done)
    else:
        print(f"{done.leader} leads")
    return exits.OK


def _show_once(
    client: Client, within_s: float, holds: Callable[[ClusterView], bool], options: argparse.Namespace
) -> int:
    """Show the cluster once something holds of it; or as it is when the time has passed, which is a failure."""
    ends_s = time.monotonic() + within_s
    while True:
        try:
            view = client.cluster.view()
        except Unavailable:
            if time.monotonic() >= ends_s:
                raise
        else:
            if holds(view):
                return _show(view, options)
            if time.monotonic() >= ends_s:
                _show(view, options)
                note(f"not done after {within_s:g} s: {_standing(view)}; it goes on: jobctl cluster members tells")
                return exits.TIMEOUT
        time.sleep(POLL_S)


def _standing(view: ClusterView) -> str:
    """Return what a node that wants to be a voter is, and what it waits for."""
    own = next((member for member in view.members if member.id == view.id), None)
    if view.leader is None:
        return f"{view.node} hears no leader"
    if own is None:
        return f"{view.node} has not got the list of members yet"
    return f"{view.node} is a {own.role}, {_behind(own)} behind {view.leader}"


def _show(view: ClusterView, options: argparse.Namespace) -> int:
    if options.json:
        print_json(view)
        return exits.OK
    print_fields(
        [
            ("cluster", view.cluster or "none"),
            ("node", f"{view.node}, {_STATES[view.state]}"),
            ("leader", f"{view.leader}, in term {view.term}" if view.leader else "none is known"),
        ]
    )
    if view.members:
        print()
        print_table(
            ("NAME", "ROLE", "STATE", "BEHIND", "ADDRESSES", "ID"),
            (
                (one.name, one.role, _state_of(one), _behind(one), ", ".join(one.addresses) or "-", one.id[:16])
                for one in view.members
            ),
        )
    return exits.OK


_STATES: Final = {
    "alone": "alone: it has no address for others (cluster.listen)",
    "unformed": "in no cluster yet: jobctl cluster init, or jobctl cluster join TICKET",
    "outside": "not a member yet, or any more",
    "removed": "removed from the cluster: stop it, empty its node.data_dir, and let it join anew",
    "member": "a member",
}


def _state_of(member: MemberView) -> str:
    if member.leader:
        return "leads"
    if member.connected is None:
        return "this node"
    if not member.connected:
        return "unreachable"
    silent_s = member.answered_ago_s
    return "connected" if silent_s is None or silent_s < SILENT_S else f"silent for {silent_s:.0f} s"


def _behind(member: MemberView) -> str:
    return "-" if member.lag_entries is None else f"{member.lag_entries} entries"


def _configure(parser: Parser) -> None:
    commands = parser.add_commands("cluster_command")
    for command in _COMMANDS:
        command.add_to(commands)


def _add_forming(parser: Parser, what: str) -> None:
    parser.add_argument(
        "--wait", type=duration, default=30.0, metavar="TIME", help=f"how long to wait until {what} (default: 30s)"
    )
    parser.add_argument(
        "--if-unformed", action="store_true", help="change nothing, and succeed, when the node is in a cluster already"
    )


def _configure_ticket(parser: Parser) -> None:
    parser.add_argument(
        "--ttl", type=duration, default=3_600.0, metavar="TIME", help="how long it may be used (default: 1h)"
    )


def _configure_tickets(parser: Parser) -> None:
    parser.add_argument("--revoke", metavar="ID", help="let this ticket let nobody in any more; the beginning will do")


def _configure_join(parser: Parser) -> None:
    parser.add_argument("ticket", help="what `jobctl cluster ticket` printed on a member; - reads it from stdin")
    _add_forming(parser, "the node has its vote")


def _configure_transfer(parser: Parser) -> None:
    parser.add_argument("to", nargs="?", metavar="MEMBER", help="name or id; by default the one with the longest log")


_COMMANDS: Final = (
    Command(
        "init",
        init,
        "Found a cluster of this node alone, with all that it holds.",
        partial(_add_forming, what="it leads"),
    ),
    Command("ticket", ticket, "Print a ticket with which one node can join, for a while.", _configure_ticket),
    Command("tickets", tickets, "List the tickets that are valid, or revoke one.", _configure_tickets),
    Command("join", join, "Join the cluster of a ticket; wait until the node has caught up.", _configure_join),
    Command("members", members, "List the members, who leads, and how far each is."),
    Command(
        "remove",
        remove,
        "Remove a member, which may be the leader.",
        lambda parser: parser.add_argument("member", help="name or id"),
    ),
    Command("transfer-leader", transfer_leader, "Let another member lead.", _configure_transfer),
)

COMMANDS: Final = (Command("cluster", None, "Found and join a cluster, and see to its members.", _configure),)
