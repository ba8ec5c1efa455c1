"""What the leader keeps of replication: links to other clusters, how far syncs are, what they write here.

- `bounds`: what is configured. `changing`: one change at a time, decided anew until nothing came between (both small).
- `links`: other clusters. `syncs`: how far syncs are, for people, and the conflicts that they met.
- `verdict`: what becomes of one change of a sync. `apply`: of a batch of them. `tags`: the same for tags.
- `service`: all of it as one object.
"""

from jobs.control.replication.bounds import ReplicationConfig
from jobs.control.replication.service import Replication

__all__ = ["Replication", "ReplicationConfig"]
