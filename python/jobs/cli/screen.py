"""The whole of a terminal for a while, given back as it was whatever happens: plain control sequences, no curses."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, Final, NamedTuple

_ENTER: Final = "\x1b[?1049h\x1b[?25l\x1b[?7l"
"""The other screen, no cursor, no lines that run over."""
_LEAVE: Final = "\x1b[?7h\x1b[?25h\x1b[?1049l"
_ENDS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_FALLBACK: Final = (80, 24)


class Size(NamedTuple):
    columns: int
    rows: int


class Screen:
    """A terminal between `with` and its end.

    Keys come one by one and are not shown. Ctrl-C and other signals to end do not interrupt: `wait` returns, and
    `ended_by` tells. Ctrl-Z gives the terminal back until the process goes on.
    """

    def __init__(self) -> None:
        self._out = sys.stdout
        self._in = sys.stdin.fileno() if sys.stdin.isatty() else None
        self._modes: list[Any] | None = None
        self._former: dict[signal.Signals, Any] = {}
        self._wakes, self._waker = os.pipe()
        for end in (self._wakes, self._waker):
            os.set_blocking(end, False)
        self.ended_by: int | None = None
        """Number of the signal that asked for the end."""

    def __enter__(self) -> Screen:
        handlers: dict[signal.Signals, Callable[[int, FrameType | None], None]] = dict.fromkeys(_ENDS, self._on_end)
        handlers |= {signal.SIGWINCH: self._on_resize, signal.SIGTSTP: self._on_stop}
        self._former = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        self._take()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._give_back()
        finally:
            for number, handler in self._former.items():
                signal.signal(number, handler)
            ends, self._wakes, self._waker = (self._wakes, self._waker), -1, -1
            for end in ends:
                os.close(end)

    def size(self) -> Size:
        try:
            columns, rows = os.get_terminal_size(self._out.fileno())
        except OSError:
            columns, rows = _FALLBACK
        return Size(columns or _FALLBACK[0], rows or _FALLBACK[1])

    def draw(self, lines: Sequence[str], rows: int) -> None:
        """Show lines from the top on, of a screen with so many rows.

        A line is cleared before it is written: after a full one the cursor stands on its last character.
        """
        text = "\x1b[H" + "\r\n".join(f"\x1b[K{line}" for line in lines)
        self._out.write(text + ("\r\n\x1b[J" if len(lines) < rows else ""))
        self._out.flush()

    def wake(self) -> None:
        """Let `wait` return; from any thread."""
        try:
            os.write(self._waker, b".")
        except OSError:  # full: it will return anyway; closed: nobody waits any more
            return

    def wait(self, timeout_s: float) -> str:
        """Return the keys that were pressed, as soon as there are some; "" after the time, a signal, or `wake`."""
        ends = [self._wakes] if self._in is None else [self._wakes, self._in]
        ready, _, _ = select.select(ends, [], [], max(0.0, timeout_s))
        if self._wakes in ready:
            os.read(self._wakes, 4096)
        if self._in is None or self._in not in ready:
            return ""
        try:
            keys = os.read(self._in, 1024)
        except OSError:
            keys = b""
        if not keys:  # nobody types there any more
            self._in = None
        return keys.decode(errors="replace")

    def _take(self) -> None:
        if self._in is not None:
            self._modes = termios.tcgetattr(self._in)
            tty.setcbreak(self._in)
        self._out.write(_ENTER)
        self._out.flush()

    def _give_back(self) -> None:
        if self._in is not None and self._modes is not None:
            with suppress(termios.error):  # a terminal that is gone needs nothing
                termios.tcsetattr(self._in, termios.TCSADRAIN, self._modes)
        self._out.write(_LEAVE)
        self._out.flush()

    def _on_end(self, number: int, frame: FrameType | None) -> None:
        self.ended_by = number
        self.wake()

    def _on_resize(self, number: int, frame: FrameType | None) -> None:
        self.wake()

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        self._give_back()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._take()
        self.wake()
