"""`jobctl top`: a live view of queues, workers and jobs."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Final

from jobs.cli import exits
from jobs.cli.command import Command, Parser, UsageError
from jobs.cli.output import print_json
from jobs.cli.submission import duration
from jobs.client import Client

MIN_INTERVAL_S: Final = 0.1
PIPE_COLUMNS: Final = 120


def top(client: Client, options: argparse.Namespace) -> int:
    if options.json:
        return _objects(client, options)
    terminal = sys.stdout.isatty()
    if options.once:
        return _once(client, terminal)
    if not terminal:
        raise UsageError("standard output is no terminal: --once prints one frame, --json one object a refresh")
    from jobs.cli.live import Live

    first = client.overview()
    with Client(client.socket_path, patience_s=0) as quick:
        return Live(quick, first, options.interval).run()


def _objects(client: Client, options: argparse.Namespace) -> int:
    while True:
        began_s = time.monotonic()
        print_json(client.overview())
        if options.once:
            return exits.OK
        time.sleep(max(0.0, began_s + options.interval - time.monotonic()))


def _once(client: Client, terminal: bool) -> int:
    from shutil import get_terminal_size

    from jobs.cli.frame import paint, render
    from jobs.cli.live import clock, colors

    columns, _ = get_terminal_size((PIPE_COLUMNS, 0))
    lines = render(client.overview(), columns=columns, rows=None, clock=clock())
    print("\n".join(paint(lines, color=terminal and colors())))
    return exits.OK


def interval(text: str) -> float:
    """Parse how often to look."""
    seconds = duration(text)
    if seconds < MIN_INTERVAL_S:
        raise argparse.ArgumentTypeError(f"{text} is less than {MIN_INTERVAL_S:g} s")
    return seconds


def _configure(parser: Parser) -> None:
    parser.add_argument("--interval", type=interval, default=1.0, metavar="TIME", help="between refreshes (1s)")
    parser.add_argument("--once", action="store_true", help="print one frame and end; works in a pipe")


COMMANDS: Final = (
    Command(
        "top",
        top,
        "Watch queues, workers and jobs; q quits. With --json one object a refresh.",
        _configure,
    ),
)
