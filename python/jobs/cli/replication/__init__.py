"""Commands on what is kept in step with elsewhere: links to other clusters, syncs, exports and imports."""

from __future__ import annotations

from typing import Final

from jobs.cli.command import Command, Parser
from jobs.cli.replication import files, links, syncs

ACTIONS: Final = (*syncs.ACTIONS, *links.ACTIONS, *files.ACTIONS)


def _configure(parser: Parser) -> None:
    actions = parser.add_commands("replication_action")
    for action in ACTIONS:
        action.add_to(actions)


COMMANDS: Final = (Command("replication", None, "Data in step between ranges of keys and clusters.", _configure),)
