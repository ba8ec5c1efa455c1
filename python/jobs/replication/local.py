"""This cluster as a side of a sync."""

from __future__ import annotations

from jobs.blobs.host import BlobHost
from jobs.replication.localkeys import Leader, LocalKeys, OwnStore
from jobs.replication.localtags import LocalTags
from jobs.store import Store


class LocalSide(LocalKeys, LocalTags):
    """Implements `side.Side` for the cluster that this node is a member of."""

    def __init__(self, store: Store, own: OwnStore, leader: Leader, host: BlobHost, *, cluster: str, name: str) -> None:
        LocalTags.__init__(self, store, own, leader, host)
        self._cluster = cluster
        self._name = name
