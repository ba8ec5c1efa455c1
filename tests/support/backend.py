"""A backend of the API that is a site alone, without a cluster's key and membership."""

from __future__ import annotations

from jobs.control import Site
from jobs.protocol.model import Health
from jobs.service import BlobOperations, ClusterService


class SiteBackend:
    def __init__(self, site: Site) -> None:
        self.whereabouts = site

    @property
    def cluster(self) -> ClusterService:
        raise NotImplementedError("a site alone knows of no cluster")

    @property
    def blob_operations(self) -> BlobOperations:
        raise NotImplementedError("a site alone has no blobs")

    def health(self) -> Health:
        return self.whereabouts.health()

    def metrics(self) -> dict[str, tuple[str, float]]:
        return self.whereabouts.metrics()
