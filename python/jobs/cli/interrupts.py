"""What ends commands from outside: Ctrl-C, SIGTERM, a terminal that is closed, output that nobody takes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Final

from jobs.cli.output import note
from jobs.client import Client
from jobs.errors import JobsError

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Detached(Exception):
    """Whoever watches the job wants no more of it."""


@contextmanager
def as_ctrl_c() -> Iterator[None]:
    """Have SIGTERM and SIGHUP end what runs within as Ctrl-C does, for what has something to put away."""
    former = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in former.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


class Interrupts:
    """Turns the first Ctrl-C into what was wished, `cancel` or `detach`, and the second into leaving.

    One that comes before the job's id is known takes effect as soon as it is. SIGTERM and SIGHUP are as Ctrl-C; a
    signal that whoever started us has us ignore (`nohup`, a shell's background jobs) is none.
    """

    def __init__(self, socket_path: str, wish: str) -> None:
        self._socket_path = socket_path
        self._wish = wish
        self._asked = False
        self._job: str | None = None
        self._former: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._former[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def guard(self, job: str) -> None:
        """Take note of the job. Raises Detached from now on."""
        self._job = job
        if self._asked:
            self._act(job)

    def on_output_lost(self) -> None:
        """Nobody takes the output any more: end the job, unless it is to be left alone."""
        if self._job is not None and self._wish == "cancel":
            self._cancel(self._job)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        again, self._asked = self._asked, True
        if again:
            raise Detached
        if self._job is not None:
            self._act(self._job)
        else:
            note("the node has not answered yet; once more gives up")

    def _act(self, job: str) -> None:
        if self._wish == "detach":
            raise Detached
        note("ending the job; once more leaves it alone")
        self._cancel(job)

    def _cancel(self, job: str) -> None:
        try:
            with Client(self._socket_path) as client:  # the other one may be in the middle of something
                client.cancel(job)
        except JobsError as error:
            note(f"the job could not be ended: {error}")
