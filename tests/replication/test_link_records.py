"""Links to other clusters, as the leader keeps them: invitations, bounds, names, who may, what is written of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import keys
from jobs.control.replication import ReplicationConfig
from jobs.control.replication.links import read_links
from jobs.errors import Forbidden, InvalidRequest, MembershipConflict, NotFound, TooManyRequests
from jobs.protocol.ids import RequestId
from jobs.protocol.model import LinkScopes, LinkSet
from jobs.replication.invitation import PREFIX, Invited, decode, encode
from jobs.service import AuditFilter, Caller
from tests.support.loop import on_loop
from tests.support.plane import ADMIN, ALICE, CLUSTER, Plane

OTHER = "d" * 32


def invited(cluster: str = OTHER, *peers: str) -> Invited:
    return Invited(cluster=cluster, peers={peer * 32: ["10.0.0.1:7420", "[fd00::1]:7420"] for peer in peers or ("ab",)})


def link(cluster: str = OTHER, *peers: str, scopes: LinkScopes | None = None) -> LinkSet:
    return LinkSet(invitation=encode(invited(cluster, *peers)), scopes=scopes or LinkScopes(read=["/data/shop/"]))


def test_an_invitation_says_what_it_was_made_of_and_is_one_word() -> None:
    text = encode(invited())
    assert decode(f"  {text}\n") == invited()
    assert text.startswith(PREFIX)
    assert len(text.split()) == 1


@given(cut=st.integers(0, 500), flip=st.integers(0, 500), how=st.integers(1, 63))
def test_an_invitation_that_is_cut_off_or_changed_is_refused(cut: int, flip: int, how: int) -> None:
    text = encode(invited())
    with pytest.raises(InvalidRequest, match="jobctl replication invite"):
        decode(text[: cut % len(text)])
    place = len(PREFIX) + flip % (len(text) - len(PREFIX) - 1)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    other = alphabet[(alphabet.index(text[place]) + how) % 64]
    with pytest.raises(InvalidRequest):
        decode(text[:place] + other + text[place + 1 :])


@pytest.mark.parametrize(
    "address",
    ["host:7420", "10.0.0.1", "10.0.0.1:0", "10.0.0.1:99999", "fd00::1:7420", "[fe80::1%eth0]:1", "0.0.0.0:1"],
)
def test_an_invitation_with_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(InvalidRequest, match="for an address and port"):
        decode(encode(Invited(cluster=OTHER, peers={"ab" * 32: [address]})))


@on_loop
async def test_a_link_is_made_changed_and_cut_and_all_of_it_is_on_record(tmp_path: Path) -> None:
    async with Plane(tmp_path) as plane:
        replication = plane.control.replication
        made = await replication.set_link(ADMIN, "east", link())
        assert (made.name, made.cluster, made.reached) == ("east", OTHER, False)
        before = plane.store.get(keys.LINKS_CHANGED)
        changed = await replication.set_link(ADMIN, "east", link(OTHER, "ab", "cd"))
        assert len(changed.peers) == 2
        assert changed.created_ms == made.created_ms
        assert plane.store.get(keys.LINKS_CHANGED) != before
        assert [one.name for one in (await replication.links(ADMIN)).links] == ["east"]
        await replication.delete_link(ADMIN, "east")
        assert read_links(plane.store) == {}
        with pytest.raises(NotFound):
            await replication.delete_link(ADMIN, "east")
        where = AuditFilter(job=None, uid=None, action="link.", from_ms=0, to_ms=None)
        page = await plane.control.audit.page(ADMIN, where, limit=10, cursor=None)
        assert [entry.action for entry in page.entries] == ["link.delete", "link.set", "link.set"]


@on_loop
async def test_what_cannot_be_a_link_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    async with Plane(tmp_path, replication=ReplicationConfig(cluster=CLUSTER, max_links=2, max_peers=4)) as plane:
        replication = plane.control.replication
        await replication.set_link(ADMIN, "east", link())
        before = plane.store.revision
        for name, wanted, error, text in (
            ("self", link(CLUSTER), InvalidRequest, "to this cluster itself"),
            ("again", link(OTHER, "cd"), InvalidRequest, "link 'east' is to that cluster already"),
            ("node", link("e" * 32, "ab"), InvalidRequest, "link 'east' is to that cluster already"),
            ("bad name", link("e" * 32, "cd"), InvalidRequest, "no name of a link"),
            ("many", link("e" * 32, "cd", "ce", "cf", "ca"), TooManyRequests, "5 nodes"),
            ("none", LinkSet(invitation="hello"), InvalidRequest, "this is no invitation"),
        ):
            with pytest.raises(error, match=text):
                await replication.set_link(ADMIN, name, wanted)
        for refused in (
            replication.set_link(ALICE, "west", link("e" * 32, "cd")),
            replication.links(ALICE),
            replication.delete_link(ALICE, "east"),
            replication.invitation(ALICE),
        ):
            with pytest.raises(Forbidden):
                await refused
        assert plane.store.revision == before
        await replication.set_link(ADMIN, "west", link("e" * 32, "cd"))
        with pytest.raises(TooManyRequests, match="2 links already"):
            await replication.set_link(ADMIN, "north", link("f" * 32, "ce"))


@on_loop
async def test_a_request_that_comes_again_makes_one_link(tmp_path: Path) -> None:
    async with Plane(tmp_path) as plane:
        caller = Caller(uid=0, gid=0, admin=True, request_id=RequestId(b"r" * 16))
        await plane.control.replication.set_link(caller, "east", link())
        before = plane.store.revision
        await plane.control.replication.set_link(caller, "east", link())
        assert plane.store.revision == before


@on_loop
async def test_a_node_alone_invites_nobody(tmp_path: Path) -> None:
    async with Plane(tmp_path) as plane:
        with pytest.raises(MembershipConflict, match="no other cluster can reach it"):
            await plane.control.replication.invitation(ADMIN)
