"""The cluster and its members."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from jobs.protocol.model.base import Model, TimeMs

MAX_TICKET_S = 86_400 * 30
_MemberText = Annotated[str, Meta(min_length=1, max_length=128)]


class MemberView(Model, frozen=True):
    """A member as the leader sees it, or as the node that was asked knows it."""

    id: str
    """Key of the node's endpoint."""
    name: str
    addresses: list[str]
    role: Literal["learner", "voter"]
    """A learner takes entries and has no vote yet."""
    leader: bool
    joined_ms: TimeMs
    connected: bool | None = None
    """Whether the node that was asked reaches it; None for itself."""
    lag_entries: int | None = None
    """Committed entries that the leader does not know it to have; None where no leader tells."""
    answered_ago_s: float | None = None
    """Since the leader last heard of it."""


class ClusterView(Model, frozen=True):
    """The cluster as a node knows it."""

    state: Literal["alone", "unformed", "outside", "member", "removed"]
    """`alone`: the node has no address for others; `unformed`: it waits to found or join a cluster; `outside`:
    its store does not have it as a member yet, or any more; `removed`: most voters that it knows refuse it."""
    node: str
    """Name of the node that was asked."""
    id: str | None
    """Its id; None before it has one."""
    addresses: list[str]
    """Where others reach it."""
    cluster: str | None
    leader: str | None
    """Name of the leader; None when none is known."""
    term: int
    members: list[MemberView]


class TicketRequest(Model, frozen=True):
    """A ticket for one node."""

    ttl_s: Annotated[float, Meta(ge=1, le=MAX_TICKET_S)] = 3_600.0
    """How long it may be used."""


class TicketView(Model, frozen=True):
    id: str
    """By which it is listed and revoked."""
    ticket: str
    """Secret: whoever has it can join once."""
    expires_ms: TimeMs


class TicketInfo(Model, frozen=True):
    """A ticket that is valid."""

    id: str
    expires_ms: TimeMs
    made_by: int
    """Uid of who made it."""
    used_by: str | None = None
    """Name of the member that joined with it, and has no vote yet."""


class TicketList(Model, frozen=True):
    tickets: list[TicketInfo]


class ClusterJoin(Model, frozen=True):
    ticket: Annotated[str, Meta(min_length=1, max_length=8_192)]


class LeaderTransfer(Model, frozen=True):
    to: _MemberText | None = None
    """Name or id of a voter; by default the one with the longest log."""


class LeaderTransferred(Model, frozen=True):
    leader: str
    """Name of who took over."""
