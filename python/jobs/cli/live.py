"""The live view of `jobctl top`: draws what the node last said, and asks it again and again."""

from __future__ import annotations

import os
import threading
import time
from typing import Final

from jobs.cli import exits
from jobs.cli.frame import paint, render
from jobs.cli.screen import Screen
from jobs.client import Client
from jobs.errors import JobsError
from jobs.protocol.model import Overview

ANSWER_S: Final = 5.0
"""A node that says nothing for so long is said to be silent."""
LEAST_PART: Final = 10
MOST_PART: Final = 100
"""Of each kind of thing: more than any terminal shows."""
_QUIT: Final = frozenset("qQ\x03\x04")


class Live:
    """Runs until `q` or a signal. A thread waits for the node's answers, so that keys and signals always work."""

    def __init__(self, client: Client, first: Overview, interval_s: float) -> None:
        """`client` is not patient: what fails is shown, and asked for again at the next refresh."""
        self._client = client
        self._interval_s = interval_s
        self._screen = Screen()
        self._overview = first
        self._problem: str | None = None
        self._answered_s = time.monotonic()
        self._asking = False

    def run(self) -> int:
        """Return the exit code."""
        due_s = self._answered_s + self._interval_s
        with self._screen as screen:
            while screen.ended_by is None:
                self._draw()
                keys = screen.wait(self._interval_s if self._asking else due_s - time.monotonic())
                if _QUIT.intersection(keys):
                    return exits.OK
                if not self._asking and (keys or time.monotonic() >= due_s):
                    due_s = time.monotonic() + self._interval_s
                    self._ask()
        return exits.SIGNAL_BASE + screen.ended_by

    def _draw(self) -> None:
        size = self._screen.size()
        problem, silent_s = self._problem, time.monotonic() - self._answered_s
        if problem is None and silent_s > self._interval_s + ANSWER_S:
            problem = f"the node has not answered for {silent_s:.0f} s"
        lines = render(
            self._overview, columns=size.columns, rows=size.rows, clock=f"q quits  {clock()}", problem=problem
        )
        self._screen.draw(paint(lines, color=colors()), size.rows)

    def _ask(self) -> None:
        self._asking = True
        part = max(LEAST_PART, min(MOST_PART, self._screen.size().rows))
        threading.Thread(target=self._fetch, args=(part,), daemon=True).start()

    def _fetch(self, part: int) -> None:
        try:
            self._overview = self._client.overview(queues=part, workers=part, jobs=part, failed=part)
            self._problem, self._answered_s = None, time.monotonic()
        except JobsError as error:
            self._problem = str(error)
        finally:
            self._asking = False
            self._screen.wake()


def clock() -> str:
    return time.strftime("%H:%M:%S")


def colors() -> bool:
    """Tell whether the person wants colors (https://no-color.org) and the terminal has them."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
