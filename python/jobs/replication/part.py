"""A node's part in replication, put together: the way to the leader, and what it answers members where it leads."""

from __future__ import annotations

from jobs.cluster import Peers
from jobs.consensus import Consensus
from jobs.control import Site
from jobs.forward.questions import QuestionDesk
from jobs.forward.reach import Reach
from jobs.replication.answers import Answers
from jobs.replication.leader import SUBJECT, LeaderLink


class ReplicationPart:
    """Of a member, or of a node that is alone."""

    def __init__(
        self, site: Site, consensus: Consensus, peers: Peers | None, reach: Reach | None, answers: Answers
    ) -> None:
        self.answers = answers
        self.link = LeaderLink(site, reach)
        if peers is not None:
            QuestionDesk(SUBJECT, site, peers, lambda member: consensus.members.get(member) is not None)
