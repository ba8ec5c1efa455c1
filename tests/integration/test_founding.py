"""A ticket that is asked for in the very moments in which a cluster is founded."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest

from jobs.client.cluster import has_vote
from jobs.config import load_config
from jobs.errors import JobsError, MembershipConflict
from jobs.node import Node
from jobs.protocol.model import ClusterJoin, TicketRequest
from jobs.testing import free_port
from tests.support.plane import ADMIN


async def started(directory: Path, name: str, stack: AsyncExitStack, *listen: str) -> Node:
    flags = {"node": {"id": name}, "cluster": {"listen": list(listen or [f"127.0.0.1:{free_port()}"])}}
    node = Node(load_config(flags=flags, embedded=directory / name))
    stack.push_async_callback(node.stop)
    await node.start()
    return node


def test_nobody_is_let_in_before_the_founder_is_on_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was would have been the only member on record, and the cluster without a leader for good."""
    monkeypatch.delenv("JOBS_CONFIG", raising=False)

    async def scenario() -> None:
        async with AsyncExitStack() as stack, asyncio.timeout(60):
            founder = await started(tmp_path, "n1", stack)
            await founder.cluster.init(ADMIN)
            ticket = None
            while ticket is None:
                with suppress(JobsError):
                    ticket = await founder.cluster.ticket(ADMIN, TicketRequest())
                await asyncio.sleep(0)
            other = await started(tmp_path, "n2", stack)
            await other.cluster.join(ADMIN, ClusterJoin(ticket=ticket.ticket))
            while not has_vote(await other.cluster.view(ADMIN)):
                await asyncio.sleep(0.01)
            view = await founder.cluster.view(ADMIN)
            assert (view.state, view.leader) == ("member", "n1")
            assert sorted(member.name for member in view.members) == ["n1", "n2"]

    asyncio.run(scenario())


def test_an_address_that_is_not_to_be_had_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JOBS_CONFIG", raising=False)
    foreign = f"192.0.2.1:{free_port()}"

    async def scenario() -> None:
        async with AsyncExitStack() as stack, asyncio.timeout(60):
            node = await started(tmp_path, "n1", stack, foreign)
            with pytest.raises(MembershipConflict, match=f"cluster.listen: {foreign} cannot be listened on: Cannot"):
                await node.cluster.init(ADMIN)
        # What was found out changes nothing: with an address of this machine it is founded
        async with AsyncExitStack() as stack, asyncio.timeout(60):
            await (await started(tmp_path, "n1", stack)).cluster.init(ADMIN)
        # And a node that is a member already says so when it starts
        async with AsyncExitStack() as stack, asyncio.timeout(60):
            with pytest.raises(MembershipConflict, match=foreign):
                await started(tmp_path, "n1", stack, foreign)

    asyncio.run(scenario())


def test_a_member_whose_address_was_taken_from_its_configuration_does_not_wait_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JOBS_CONFIG", raising=False)

    async def scenario() -> None:
        async with AsyncExitStack() as stack, asyncio.timeout(60):
            founder = await started(tmp_path, "n1", stack)
            await founder.cluster.init(ADMIN)
        async with AsyncExitStack() as stack, asyncio.timeout(60):
            node = Node(load_config(flags={"node": {"id": "n1"}}, embedded=tmp_path / "n1"))
            stack.push_async_callback(node.stop)
            with pytest.raises(MembershipConflict, match="no address for the others") as caught:
                await node.start()
            assert caught.value.expected == "cluster.listen in its configuration"

    asyncio.run(scenario())
