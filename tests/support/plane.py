"""A control plane in the test's own process, over a real log and a real store, without API and supervisors."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from jobs._native import Log, Store
from jobs.consensus import Consensus, ConsensusConfig
from jobs.control import Control
from jobs.control.control import ControlConfig
from jobs.protocol.model import JobSubmit, ShellJob, ShellPayload
from jobs.service import Caller

ADMIN = Caller(uid=0, gid=0, admin=True)
ALICE = Caller(uid=1001, gid=1001, admin=False)
BOB = Caller(uid=1002, gid=1002, admin=False)


class Plane:
    """Log, store, consensus and control in one directory; `start` after `stop` is a restart."""

    def __init__(self, directory: Path, **changes: object) -> None:
        self.directory = directory
        self.worker_socket = directory / "worker.sock"
        settings: dict[str, object] = {"worker_uids": frozenset({os.getuid()}), "worker_lease_s": 5.0}
        settings.update(changes)
        self.config = ControlConfig(**settings)  # type: ignore[arg-type]

    async def start(self, consensus: ConsensusConfig | None = None) -> Plane:
        self.log = Log(str(self.directory / "log"))
        self.store = Store(str(self.directory / "store"))
        self.consensus = Consensus("test", self.log, self.store, consensus)
        self.control = Control("test", self.consensus, self.store, self.config)
        await self.consensus.start()
        self.worker_socket.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.worker_socket))
        listener.listen()
        await self.control.start(listener)
        return self

    async def stop(self) -> None:
        await self.control.stop()
        await self.consensus.stop()
        self.store.close()
        self.log.close()

    async def __aenter__(self) -> Plane:
        return await self.start()

    async def __aexit__(self, *error: object) -> None:
        await self.stop()


def shell(*argv: str, **changes: object) -> JobSubmit:
    return ShellJob(payload=ShellPayload(argv=list(argv or ("true",))), **changes)  # type: ignore[arg-type]
