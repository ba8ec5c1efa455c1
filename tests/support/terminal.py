"""A terminal of a test's own, and a program in it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

STEP_S = 30.0
_SEQUENCE = re.compile(r"\x1b\[[?\d;]*[A-Za-z]")


class Terminal:
    """Runs a command with a pseudo terminal as its controlling one; what it writes is kept."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], *, columns: int = 100, rows: int = 30) -> None:
        self.seen = b""
        self._fd, child = pty.openpty()
        self.resize(columns, rows)
        self.modes = termios.tcgetattr(child)
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *command],
            stdin=child,
            stdout=child,
            stderr=subprocess.PIPE,
            env=dict(env),
        )
        self._child = child

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def present_modes(self) -> list[Any]:
        return termios.tcgetattr(self._child)

    def frame(self) -> list[str]:
        """Return the lines of the last frame that is complete, without what only steers the terminal."""
        frames = self.seen.decode(errors="replace").split("\x1b[H")
        whole = frames[-2] if len(frames) > 2 else ""
        return _SEQUENCE.sub("", whole).replace("\r", "").split("\n")

    def until(self, holds: Callable[[Terminal], bool]) -> None:
        """Read what is written until something holds."""
        deadline = time.monotonic() + STEP_S
        while not holds(self):
            left_s = deadline - time.monotonic()
            assert left_s > 0, self.seen[-2_000:]
            if not self._read(left_s):
                assert holds(self), self.seen[-2_000:]
                return

    def until_shown(self, text: str) -> None:
        self.until(lambda terminal: any(text in line for line in terminal.frame()))

    def end(self) -> int:
        """Read to the end; return the exit code."""
        while self._read(STEP_S):
            if self.process.poll() is not None and not select.select([self._fd], [], [], 0)[0]:
                break
        return self.process.wait(STEP_S)

    def hang_up(self) -> None:
        os.close(self._child)
        os.close(self._fd)
        self._fd = self._child = -1

    def errors(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read().decode()

    def _read(self, timeout_s: float) -> bool:
        """Read what there is; False when there is no more."""
        ready, _, _ = select.select([self._fd], [], [], min(timeout_s, 0.2))
        if ready:
            self.seen += os.read(self._fd, 65_536)
        return bool(ready) or self.process.poll() is None

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()
        for fd in {self._fd, self._child} - {-1}:
            os.close(fd)
