"""Runs jobs by a launcher of its own inside a virtual machine, as a test asks: a worker's side without a node.

In, one JSON object a line: `spawn` (fields of Spawn, with `limits` as an object), `end` (a job), `lose` (the launcher
is killed, and the next one takes its place). Out: `ready`, `output`, `exited`, `lost`. At the end of the input it ends.
"""

from __future__ import annotations

import itertools
import json
import os
import select
import signal
import sys
from typing import Any

import msgspec

from jobs.protocol.ids import Attempt, JobId
from jobs.workers.ids import subordinate_ids
from jobs.workers.sandbox import Ack, Configure, End, Exited, JobLimits, Launcher, LauncherError, Output, Spawn

TOLD_BYTES = 4096
"""What is told of a job's output is its beginning, and its last piece with the end."""


class Bench:
    def __init__(self, config: Configure) -> None:
        self._config = config
        self._launcher = self._start()
        self._outputs: dict[JobId, bytearray] = {}

    def _start(self) -> Launcher:
        launcher = Launcher.start(self._config)
        tell(ready=launcher.ready.features, level=launcher.ready.level, launcher=launcher.pid)
        return launcher

    def serve(self) -> None:
        rest = b""
        while True:
            for source in select.select([0, self._launcher], [], [])[0]:
                if source is self._launcher:
                    self._receive()
                    continue
                data = os.read(0, 65_536)
                if not data:
                    self._launcher.close()
                    return
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._take(json.loads(line))

    def _take(self, message: dict[str, Any]) -> None:
        if "spawn" in message:
            fields = message["spawn"]
            limits = JobLimits(**fields.pop("limits", {}))
            self._launcher.send([Spawn(**{"attempt": Attempt(1), **fields, "limits": limits})])
        elif "end" in message:
            self._launcher.send([End(job=JobId(message["end"]), attempt=Attempt(1), now=True)])
        elif "lose" in message:
            os.kill(self._launcher.pid, signal.SIGKILL)

    def _receive(self) -> None:
        try:
            events = self._launcher.receive()
        except LauncherError as error:
            self._launcher.close()
            tell(lost=str(error))
            self._launcher = self._start()
            return
        for event in events:
            if isinstance(event, Output):
                data = b"".join(data for _, data in event.segments)
                self._launcher.send([Ack(job=event.job, attempt=event.attempt, count=len(data))])
                told = self._outputs.setdefault(event.job, bytearray())
                if len(told) < TOLD_BYTES:
                    told += data
                    tell(output=event.job, text=data.decode(errors="replace"))
            elif isinstance(event, Exited):
                text = self._outputs.pop(event.job, bytearray()) + b"".join(data for _, data in event.segments)
                tell(exited=event.job, outcome=msgspec.to_builtins(event.outcome), text=text.decode(errors="replace"))


_numbers = itertools.count()


def tell(**message: object) -> None:
    print(json.dumps({**message, "n": next(_numbers)}), flush=True)


if __name__ == "__main__":
    Bench(Configure(**json.loads(sys.argv[1]), subordinate=subordinate_ids())).serve()
