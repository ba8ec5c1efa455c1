"""Content-addressed blobs: the store of a node, on its event loop."""

from jobs.blobs.store import Added, BlobStore, Fetched, FetchFailed, Progress, Stat, Tried

__all__ = ["Added", "BlobStore", "FetchFailed", "Fetched", "Progress", "Stat", "Tried"]
