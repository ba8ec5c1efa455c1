"""Entry of `jobctl`: finds the command, runs it, and puts errors into words."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Final

from jobs.cli import (
    apply,
    arrays,
    artefacts,
    audit,
    backup,
    blob,
    cluster,
    deadletters,
    exits,
    explain,
    graph,
    install,
    jobs,
    kv,
    maintenance,
    node,
    queues,
    replication,
    run,
    schedules,
    secrets,
    sql,
    top,
)
from jobs.cli.command import Parser, UsageError
from jobs.cli.output import note
from jobs.client import Client
from jobs.errors import JobsError

GROUPS: Final = (
    run,
    sql,
    jobs,
    artefacts,
    arrays,
    explain,
    graph,
    top,
    schedules,
    secrets,
    queues,
    apply,
    deadletters,
    audit,
    cluster,
    kv,
    blob,
    maintenance,
    replication,
    backup,
    node,
    install,
)
COMMANDS: Final = {command.name: command for group in GROUPS for command in group.COMMANDS}


def parser(names: Iterable[str] = COMMANDS) -> Parser:
    """Return the parser of the command line, with these commands only."""
    made = Parser(prog="jobctl", description="Submit jobs to a node, and see what becomes of them.")
    made.add_argument("--version", action="store_true", help="print the version")
    commands = made.add_commands("command")
    for name in names:
        COMMANDS[name].add_to(commands)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    _mend_streams()
    try:
        return _run(sys.argv[1:] if arguments is None else arguments)
    except UsageError as error:
        note(str(error))
        return exits.USAGE
    except JobsError as error:
        note(str(error))
        return exits.of_error(error)
    except BrokenPipeError:
        _forget_output()
        return exits.SIGNAL_BASE + 13
    except OSError as error:  # the client names its own; what is left comes from our output
        _forget_output()
        note(f"cannot write: {error.strerror}")
        return exits.OUTPUT
    except KeyboardInterrupt:
        return exits.INTERRUPTED


def _run(arguments: Sequence[str]) -> int:
    if "--version" in arguments[:1]:
        from jobs._native import __version__

        print(f"jobctl {__version__}")
        return exits.OK
    called = [name for name in arguments[:1] if name in COMMANDS]
    options = parser(called or COMMANDS).parse_args(arguments, argparse.Namespace(json=False, socket=None))
    with Client(options.socket) as client:
        code: int = options.function(client, options)
    sys.stdout.flush()
    return code


def _mend_streams() -> None:
    """Make output that cannot fail for its characters, and streams of our own where the caller has closed them."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - for the life of the process
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _forget_output() -> None:
    """Nobody takes our output any more: Python would complain once more when it flushes at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
