"""The cluster and its members: `client.cluster`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.client.requests import Call, Request, change, get, segment, write
from jobs.protocol.model import (
    ClusterJoin,
    ClusterView,
    LeaderTransfer,
    LeaderTransferred,
    TicketInfo,
    TicketList,
    TicketRequest,
    TicketView,
)

if TYPE_CHECKING:
    from jobs.client.asynchronous import AsyncClient
    from jobs.client.sync import Client

# --- requests --------------------------------------------------------------------------------------------------------


def get_cluster() -> Call[ClusterView]:
    return get("/v1/cluster", ClusterView)


def init_cluster() -> Call[ClusterView]:
    return write("POST", "/v1/cluster:init", ClusterView)


def join_cluster(ticket: str) -> Call[ClusterView]:
    return write("POST", "/v1/cluster:join", ClusterView, ClusterJoin(ticket=ticket))


def make_ticket(ttl_s: float) -> Call[TicketView]:
    return write("POST", "/v1/cluster:ticket", TicketView, TicketRequest(ttl_s=ttl_s))


def list_tickets() -> Call[TicketList]:
    return get("/v1/tickets", TicketList)


def revoke_ticket(ticket: str) -> Request:
    return change("DELETE", f"/v1/tickets/{segment(ticket)}")


def transfer_leadership(to: str | None) -> Call[LeaderTransferred]:
    return write("POST", "/v1/cluster:transfer", LeaderTransferred, LeaderTransfer(to=to))


def remove_member(member: str) -> Call[ClusterView]:
    return write("DELETE", f"/v1/members/{segment(member)}", ClusterView)


# --- views -----------------------------------------------------------------------------------------------------------


def is_founded(view: ClusterView) -> bool:
    """Tell whether somebody leads, and others are told where the node is."""
    return view.leader is not None and any(member.id == view.id and member.addresses for member in view.members)


def has_vote(view: ClusterView) -> bool:
    """Tell whether the node has caught up with the cluster that it joined."""
    return any(member.id == view.id and member.role == "voter" for member in view.members)


# --- clients ---------------------------------------------------------------------------------------------------------


class ClusterClient:
    """The cluster: `client.cluster`. Everybody may look at it, administrators change it."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def view(self) -> ClusterView:
        """Return the cluster as the node knows it."""
        return self._client.call(get_cluster())

    def init(self) -> ClusterView:
        """Found a cluster of the node alone, with all that it holds."""
        return self._client.call(init_cluster())

    def join(self, ticket: str) -> ClusterView:
        """Let the node join the cluster of a ticket; it gets its vote once it has caught up."""
        return self._client.call(join_cluster(ticket))

    def ticket(self, ttl_s: float = 3_600.0) -> TicketView:
        """Make a ticket with which one node can join for so many seconds."""
        return self._client.call(make_ticket(ttl_s))

    def tickets(self) -> list[TicketInfo]:
        """Return the tickets that are valid."""
        return self._client.call(list_tickets()).tickets

    def revoke_ticket(self, ticket: str) -> None:
        """Let a ticket, given by its id or the beginning of that, let nobody in any more."""
        self._client.send(revoke_ticket(ticket))

    def transfer(self, to: str | None = None) -> LeaderTransferred:
        """Let another member lead, by its name or id; by default the one with the longest log."""
        return self._client.call(transfer_leadership(to))

    def remove(self, member: str) -> ClusterView:
        """Remove a member by its name or id."""
        return self._client.call(remove_member(member))


class AsyncClusterClient:
    """The cluster: `client.cluster`; see `ClusterClient`."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def view(self) -> ClusterView:
        """Return the cluster as the node knows it."""
        return await self._client.call(get_cluster())

    async def init(self) -> ClusterView:
        """Found a cluster of the node alone, with all that it holds."""
        return await self._client.call(init_cluster())

    async def join(self, ticket: str) -> ClusterView:
        """Let the node join the cluster of a ticket; it gets its vote once it has caught up."""
        return await self._client.call(join_cluster(ticket))

    async def ticket(self, ttl_s: float = 3_600.0) -> TicketView:
        """Make a ticket with which one node can join for so many seconds."""
        return await self._client.call(make_ticket(ttl_s))

    async def tickets(self) -> list[TicketInfo]:
        """Return the tickets that are valid."""
        return (await self._client.call(list_tickets())).tickets

    async def revoke_ticket(self, ticket: str) -> None:
        """Let a ticket, given by its id or the beginning of that, let nobody in any more."""
        await self._client.send(revoke_ticket(ticket))

    async def transfer(self, to: str | None = None) -> LeaderTransferred:
        """Let another member lead, by its name or id; by default the one with the longest log."""
        return await self._client.call(transfer_leadership(to))

    async def remove(self, member: str) -> ClusterView:
        """Remove a member by its name or id."""
        return await self._client.call(remove_member(member))
