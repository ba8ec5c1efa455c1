"""The catalogue of blobs, which the leader alone writes: what there is, whose it is, who has it, what keeps it.

- `numbers`: how many nodes are to have a blob (pure). `stage`: what one transaction changes. `writer`: the one writer.
- `references`: for whoever stores what names a blob. `owners`: whose they are, and quotas.
- `tags`, `collections`, `sharing`: what is done with blobs.
- `entries`: what nodes ask (`blobs.catalogue.Catalogue`). `views`: what the API shows. `collect`: garbage.
- `upkeep`: what follows from members that come and go. `service`: all of it as one object.
"""

from jobs.control.blobs.numbers import BlobConfig
from jobs.control.blobs.references import References
from jobs.control.blobs.service import Blobs

__all__ = ["BlobConfig", "Blobs", "References"]
