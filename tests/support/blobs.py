"""A node's blobs behind the API of a test's own process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from jobs.api import ApiConfig, serve
from jobs.blobs import BlobStore
from jobs.blobs.host import BlobHost
from jobs.blobs.part import BlobPart
from tests.support.api import Api, scenario_of
from tests.support.backend import SiteBackend
from tests.support.plane import Plane


class BlobApi(Api):
    """A served control plane with the blobs of its node."""

    store: BlobStore
    host: BlobHost
    directory: Path

    def drafts(self) -> list[Path]:
        """Return what additions that are under way, or were broken off, have on the disk."""
        return list((self.directory / "blobs/incoming").iterdir())


@asynccontextmanager
async def served(
    directory: Path, *, min_free_bytes: int = 0, max_blob_bytes: int = 1 << 40, **changes: Any
) -> AsyncIterator[BlobApi]:
    """Serve a control plane and blobs with these settings of ApiConfig."""
    async with Plane(directory) as plane:
        store = await BlobStore.open(directory / "blobs", min_free_bytes=min_free_bytes)
        part = BlobPart(
            store, plane.site, plane.consensus, plane.store, None, None, max_blob_bytes=max_blob_bytes, grace_s=3_600
        )
        socket = directory / "api.sock"
        server = await serve(SiteBackend(plane.site, part.host), str(socket), ApiConfig(**changes))
        api = BlobApi(plane, server, socket)
        api.store, api.host, api.directory = store, part.host, directory
        try:
            yield api
        finally:
            await server.stop(1.0)
            await part.stop()
            await store.close()


scenario = scenario_of(served)
