"""A node's part in replication, put together: the way to the leader, this cluster as a side, others over links."""

from __future__ import annotations

from jobs.blobs.host import BlobHost
from jobs.cluster import Peers
from jobs.consensus import Consensus
from jobs.control import Site
from jobs.errors import MembershipConflict
from jobs.forward.questions import QuestionDesk
from jobs.forward.reach import Reach
from jobs.replication.answers import Answers
from jobs.replication.desk import ForeignDesk
from jobs.replication.foreign import ForeignSide
from jobs.replication.leader import SUBJECT, LeaderLink
from jobs.replication.linked import Linked
from jobs.replication.local import LocalSide
from jobs.replication.operations import Operations
from jobs.replication.side import Side
from jobs.store import Store


class ReplicationPart:
    """Of a member, or of a node that is alone. `operations` is what workers ask."""

    def __init__(
        self,
        site: Site,
        consensus: Consensus,
        store: Store,
        peers: Peers | None,
        reach: Reach | None,
        answers: Answers,
        host: BlobHost,
        cluster: str,
    ) -> None:
        self.link = LeaderLink(site, reach)
        self.linked = Linked(site, store, peers)
        self.side = LocalSide(store, site, self.link, host, cluster=cluster, name=site.node)
        self.operations = Operations(store, self.side, cluster, self.link, self._find)
        self._peers = peers
        answers.ask = lambda link: self._find(link).about()
        self._desk: ForeignDesk | None = None
        if peers is not None:
            QuestionDesk(SUBJECT, site, peers, lambda member: consensus.members.get(member) is not None)
            self._desk = ForeignDesk(peers, self.side, self.linked.of, self._reached)

    def _find(self, link: str) -> Side:
        """Return a linked cluster. Raises NotFound."""
        self.linked.named(link)
        if self._peers is None:
            raise MembershipConflict(
                "this node has no address at which others reach it", expected="cluster.listen in its configuration"
            )
        return ForeignSide(self._peers, link, self.linked.named)

    def metrics(self) -> dict[str, tuple[str, float]]:
        """Prometheus metrics: name → (help, value)."""
        if self._desk is None:
            return {}
        return {
            "jobs_links_answered_total": ("Questions of linked clusters that were answered here", self._desk.answered),
            "jobs_links_refused_total": ("Questions of linked clusters that were refused here", self._desk.refused),
        }

    async def _reached(self) -> None:
        """Have this node's store at what was acknowledged before."""
        await self.link.reach(await self.link.reached())

    async def stop(self) -> None:
        await self.linked.stop()
