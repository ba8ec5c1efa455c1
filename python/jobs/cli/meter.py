"""How far something long is: a bar on a terminal, a line every few seconds elsewhere, nothing when it is not wanted."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Final, TextIO

from jobs.cli.output import clean, note

REDRAW_S: Final = 0.1
LINE_S: Final = 5.0
"""Between lines where there is no terminal."""
BAR_COLUMNS: Final = 30
_ERASE: Final = "\r\x1b[K"


def number(amount: float) -> str:
    return f"{amount:,.0f}"


def amounts(done: int, total: int | None, elapsed_s: float, form: Callable[[float], str] = number) -> str:
    """Return how much of how much is done, how quickly, and how long the rest will take at that pace."""
    text = form(done)
    if total is not None:
        text += f" of {form(total)} ({100 if done >= total else 100 * done // total} %)"
    if elapsed_s <= 0 or done <= 0:
        return text
    rate = done / elapsed_s
    text += f", {form(rate)}/s"
    return text if total is None else f"{text}, {clock_time((total - done) / rate)} left"


def bar(done: int, total: int, columns: int) -> str:
    """Return a bar of so many columns."""
    full = columns if done >= total else columns * done // total
    return "█" * full + "░" * (columns - full)


def clock_time(seconds: float) -> str:
    """Return a duration as minutes and seconds, with hours where there are any."""
    minutes, rest_s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest_s:02}" if hours else f"{minutes}:{rest_s:02}"


class Meter:
    """Tells on standard error how far one thing is."""

    def __init__(
        self,
        what: str,
        total: int | None,
        *,
        quiet: bool = False,
        form: Callable[[float], str] = number,
        out: TextIO | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what = what
        self._total = total
        """None where that is not known."""
        self._form = form
        self._quiet = quiet
        self._out = out or sys.stderr
        self._terminal = self._out.isatty()
        self._now_s = now_s
        self._started_s = self._told_s = now_s()
        self._drawn = False

    def show_of(self, done: int, total: int | None) -> None:
        """Tell how much is done, of how much as is known by now."""
        self._total = total
        self.show(done)

    def show(self, done: int) -> None:
        """Tell how much is done, unless that was told just now."""
        now_s = self._now_s()
        if self._quiet or now_s - self._told_s < (REDRAW_S if self._terminal else LINE_S):
            return
        self._told_s = now_s
        text = amounts(done, self._total, now_s - self._started_s, self._form)
        if self._terminal:
            shown = "" if self._total is None else f"{bar(done, self._total, BAR_COLUMNS)} "
            self._draw(f"{self._what} {shown}{text}")
        else:
            note(f"{self._what} {text}")

    def tell(self, text: str) -> None:
        """Tell something that stays to be read."""
        if not self._quiet:
            self.clear()
            note(text)

    def clear(self) -> None:
        """Take the bar away."""
        if self._drawn:
            self._out.write(_ERASE)
            self._out.flush()
            self._drawn = False

    def _draw(self, text: str) -> None:
        columns = os.get_terminal_size(self._out.fileno()).columns or 80
        self._out.write(_ERASE + clean(text)[: columns - 1])
        self._out.flush()
        self._drawn = True
