"""What a node does so that whoever comes to it gets to the control plane, here or elsewhere."""

from __future__ import annotations

from jobs.api import ApiServer
from jobs.cluster import Asked, Inquiry, Opened, Peers
from jobs.consensus import Consensus
from jobs.control import Site
from jobs.forward.follower import Forwarder
from jobs.forward.leader import LeaderSide
from jobs.forward.reach import Reach
from jobs.forward.relay import Relay
from jobs.forward.tunnel import RemoteWay
from jobs.workerdoor import Way, WorkerDoor


class Passage:
    """Joins the sockets of a node, its site, and the other members. Without a network there are no others."""

    def __init__(self, site: Site, api: ApiServer, door: WorkerDoor) -> None:
        self._site = site
        self._api = api
        self._door = door
        self.reach: Reach | None = None
        """The way to a leader elsewhere; None where there are no others."""
        self._inquiry: Inquiry | None = None
        self._remote: RemoteWay | None = None
        site.on_change = self._on_change
        self._on_change()

    def join(self, peers: Peers, consensus: Consensus) -> None:
        """Pass requests and workers on to other members, and take theirs."""
        site, api = self._site, self._api
        site.others = self._inquiry = inquiry = Inquiry(peers, consensus, site)
        self.reach = reach = Reach(peers, inquiry)
        api.forwarder = Forwarder(reach, site.node, site, api.desk, api.forwarded)
        leader_side = LeaderSide(site, api.desk, self._gateway, api.forwarded)
        peers.requests[Asked.FORWARD] = leader_side.on_request
        peers.streams[Opened.FORWARD] = peers.streams[Opened.WORKER] = leader_side.on_stream
        Relay(peers, consensus, leader_side)
        self._on_change()

    def stop(self) -> None:
        """Let go of the workers that are connected to another node."""
        self._site.on_change = lambda: None
        if self._inquiry is not None:
            self._inquiry.stop()
        self._lead_to(None)

    def _gateway(self) -> Way | None:
        return None if self._site.control is None else self._site.control.gateway

    def _on_change(self) -> None:
        """The control plane has come or gone, or another member leads."""
        site, remote = self._site, self._remote
        if site.control is not None or site.leads or site.leader is None or self.reach is None:
            self._lead_to(None)
        elif remote is None or remote.leader != site.leader:
            self._lead_to(RemoteWay(self.reach, site.leader))

    def _lead_to(self, remote: RemoteWay | None) -> None:
        former, self._remote = self._remote, remote
        self._door.lead(remote or self._gateway())
        if former is not None and former is not remote:
            former.close()
