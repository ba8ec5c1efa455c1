"""Entry of `jobctl`: the command line, and errors in words."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from jobs.cli import exits, jobs, kv, node
from jobs.cli.output import note
from jobs.cli.submission import UsageError
from jobs.client import Client, default_socket
from jobs.errors import InvalidRequest, JobsError


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--json", action="store_true", help="one JSON object a line")
    shared.add_argument(
        "--socket", metavar="PATH", help="the node's socket (default: $JOBS_SOCKET, or /run/jobs/api.sock)"
    )
    made = argparse.ArgumentParser(prog="jobctl", description="Submit jobs to a node, and see what becomes of them.")
    made.add_argument("--version", action="store_true", help="print the version")
    commands = made.add_subparsers(dest="command", metavar="COMMAND")
    for group in (jobs, kv, node):
        group.add_commands(commands, shared)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code comes back."""
    try:
        return _main(arguments)
    except BrokenPipeError:
        # Whoever read our output has gone. Python would complain once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.SIGNAL_BASE + 13
    except KeyboardInterrupt:
        return exits.INTERRUPTED


def _main(arguments: Sequence[str] | None) -> int:
    made = parser()
    options = made.parse_args(arguments)
    if options.version:
        from jobs._native import __version__

        print(f"jobctl {__version__}")
        return exits.OK
    if options.command is None:
        made.print_help(sys.stderr)
        return exits.USAGE
    try:
        with Client(options.socket or default_socket()) as client:
            code: int = options.function(client, options)
            return code
    except UsageError as error:
        note(str(error))
        return exits.USAGE
    except InvalidRequest as error:
        note(f"{error}")
        return exits.DATA
    except JobsError as error:
        note(f"{error}")
        return exits.of_error(error)


if __name__ == "__main__":
    sys.exit(main())
