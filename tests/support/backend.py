"""A backend of the API that is a site alone, without a cluster's key and membership."""

from __future__ import annotations

from jobs.backups.source import BackupSource
from jobs.blobs.host import BlobHost
from jobs.control import Site
from jobs.protocol.model import Health
from jobs.service import BlobOperations, ClusterService, LabelledMetrics, ReplicationOperations


class SiteBackend:
    def __init__(self, site: Site, blob_host: BlobHost | None = None) -> None:
        self.whereabouts = site
        self._blob_host = blob_host

    @property
    def blob_host(self) -> BlobHost:
        if self._blob_host is None:
            raise NotImplementedError("this site alone has no blobs")
        return self._blob_host

    @property
    def cluster(self) -> ClusterService:
        raise NotImplementedError("a site alone knows of no cluster")

    @property
    def blob_operations(self) -> BlobOperations:
        raise NotImplementedError("a site alone has no blobs")

    @property
    def replication_operations(self) -> ReplicationOperations:
        raise NotImplementedError("a site alone does not replicate")

    @property
    def backup_source(self) -> BackupSource:
        raise NotImplementedError("a site alone gives nothing for backups")

    def health(self) -> Health:
        return self.whereabouts.health()

    def metrics(self) -> dict[str, tuple[str, float]]:
        return self.whereabouts.metrics()

    def labelled_metrics(self) -> LabelledMetrics:
        return {}
