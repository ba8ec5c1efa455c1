"""Commands on blobs: content by its hash, and what is known of it."""

from __future__ import annotations

from typing import Final

from jobs.cli.blob import content, jobs, known
from jobs.cli.command import Command, Parser

ACTIONS: Final = (*content.ACTIONS, *known.ACTIONS, *jobs.ACTIONS)


def _configure(parser: Parser) -> None:
    actions = parser.add_commands("blob_action")
    for action in ACTIONS:
        action.add_to(actions)


COMMANDS: Final = (Command("blob", None, "Content of any size, by its hash, on several nodes.", _configure),)
