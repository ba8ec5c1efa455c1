"""A control plane in the test's own process, over a real log and a real store, without API and supervisors."""

from __future__ import annotations

import os
from pathlib import Path

from jobs._native import Log, Store
from jobs.blobs import BlobStore
from jobs.blobs.output import HostedOutput
from jobs.blobs.part import BlobPart
from jobs.consensus import Consensus, ConsensusConfig
from jobs.control import Control, ControlConfig, Site
from jobs.control.replication import ReplicationConfig
from jobs.protocol.model import JobSubmit, ShellJob, ShellPayload
from jobs.service import Caller
from jobs.workerdoor import WorkerDoor

CLUSTER = "c" * 32
ADMIN = Caller(uid=0, gid=0, admin=True)
ALICE = Caller(uid=1001, gid=1001, admin=False)
BOB = Caller(uid=1002, gid=1002, admin=False)


class Plane:
    """Log, store, consensus, control and the workers' door in one directory; `start` after `stop` is a restart."""

    def __init__(
        self,
        directory: Path,
        *,
        worker_uids: frozenset[int] | None = None,
        with_blobs: bool = False,
        **changes: object,
    ) -> None:
        """`with_blobs`: with a store of blobs, so that large output becomes some."""
        self.directory = directory
        self._with_blobs = with_blobs
        self._blobs: tuple[BlobStore, BlobPart] | None = None
        self.worker_socket = directory / "worker.sock"
        self._worker_uids = frozenset({os.getuid()}) if worker_uids is None else worker_uids
        settings: dict[str, object] = {"worker_lease_s": 5.0, "replication": ReplicationConfig(cluster=CLUSTER)}
        settings.update(changes)
        self.config = ControlConfig(**settings)  # type: ignore[arg-type]

    async def start(self, consensus: ConsensusConfig | None = None) -> Plane:
        self.log = Log(str(self.directory / "log"))
        self.store = Store(str(self.directory / "store"))
        self.consensus = Consensus("test", self.log, self.store, consensus)
        self.output = HostedOutput()
        self.site = Site("test", self.consensus, self.store, self.output, self.config)
        self.door = WorkerDoor("test", self._worker_uids)
        await self.door.start(self.worker_socket, 0o600, None)
        self.site.on_change = self._on_change
        await self.consensus.start()
        await self.site.settled()
        if self._with_blobs:
            blobs = await BlobStore.open(self.directory / "blobs", min_free_bytes=0)
            limits = {"max_blob_bytes": 1 << 40, "grace_s": 3_600}
            part = BlobPart(blobs, self.site, self.consensus, self.store, None, None, **limits)
            self.output.give(part.host)
            self._blobs = blobs, part
        return self

    @property
    def control(self) -> Control:
        assert self.site.control is not None, "it does not lead"
        return self.site.control

    @property
    def blob_part(self) -> BlobPart | None:
        """Of a plane with blobs, while it runs."""
        return None if self._blobs is None else self._blobs[1]

    def _on_change(self) -> None:
        self.door.lead(None if self.site.control is None else self.site.control.gateway)

    async def stop(self) -> None:
        if self._blobs is not None:
            await self._blobs[1].stop()
        await self.site.stop()
        await self.door.stop()
        await self.consensus.stop()
        if self._blobs is not None:
            await self._blobs[0].close()
        self.store.close()
        self.log.close()

    async def __aenter__(self) -> Plane:
        return await self.start()

    async def __aexit__(self, *error: object) -> None:
        await self.stop()


def shell(*argv: str, **changes: object) -> JobSubmit:
    return ShellJob(payload=ShellPayload(argv=list(argv or ("true",))), **changes)  # type: ignore[arg-type]
