"""A node among others: who belongs to its cluster, how they reach each other, how members come and go.

- `tickets`: how a node is let in, as text (pure). `file`: which cluster a node belongs to.
- `inquiry`: what the others say while this node hears no leader.
- `peers`: the endpoint, who may speak to it, and what each kind of traffic is for.
- `recovery`: a node goes on alone, by an operator's order.
- `changes`: of the members, at the leader.
- `cluster`: founding, joining, and what the API asks about all that.
"""

from jobs.cluster.cluster import Cluster, ClusterConfig
from jobs.cluster.file import ClusterFileError
from jobs.cluster.inquiry import Inquiry
from jobs.cluster.peers import Asked, ForeignPeer, Opened, Peers

__all__ = ["Asked", "Cluster", "ClusterConfig", "ClusterFileError", "ForeignPeer", "Inquiry", "Opened", "Peers"]
