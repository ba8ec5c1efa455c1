"""A side that is another cluster: what goes over a link, and what does not, between two endpoints on this machine."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import structs

from jobs._native import Endpoint
from jobs.cluster import ForeignPeer, Peers
from jobs.errors import (
    BlobDamaged,
    BlobUnavailable,
    Compacted,
    Forbidden,
    InternalError,
    InvalidRequest,
    JobsError,
    LinkUnavailable,
    NotFound,
    NotLeader,
    ReplicationConflict,
    RevisionConflict,
    StorageFull,
    TagTaken,
    TooManyRequests,
    Unavailable,
)
from jobs.forward.questions import Answer
from jobs.protocol.model import LinkScopes
from jobs.records import CursorRecord, LinkRecord
from jobs.replication import desk
from jobs.replication import frames as f
from jobs.replication import messages as m
from jobs.replication.desk import ForeignDesk
from jobs.replication.foreign import ForeignSide
from tests.support.loop import on_loop

PATIENCE_S = 60
HASH, OTHER = "a" * 64, "b" * 64
CURSOR = CursorRecord(source="s", prefix="/data/a/", target_prefix="/data/w/", is_tags=False)
TAG_CURSOR = CursorRecord(source="s", prefix="rel-", target_prefix="out-", is_tags=True)
SCOPES = LinkScopes(read=["/data/r/"], write=["/data/w/"], read_tags=["in-"], write_tags=["out-"])


class Book:
    """A side that says what it is told to, and writes down what it was asked."""

    title = "a book"

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.asked: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.waits = asyncio.Event()
        self.given_up = asyncio.Event()
        self.content: list[bytes] = []
        self.added = b""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def answer(*args: Any, **kwargs: Any) -> Any:
            self.asked.append((name, args, kwargs))
            given = self.answers[name]
            if given is ...:
                self.waits.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    self.given_up.set()
            if isinstance(given, asyncio.Event):
                self.waits.set()
                await given.wait()
                return self.answers["after"]
            if isinstance(given, Exception):
                raise given
            return given

        return answer

    async def read_blob(self, tags: str, blob: str, start: int = 0) -> AsyncIterator[bytes]:
        self.asked.append(("read_blob", (tags, blob, start), {}))
        given = self.answers["read_blob"]
        try:
            for part in given:
                if isinstance(part, Exception):
                    raise part
                yield part
        finally:
            self.given_up.set()

    async def add_blob(self, tags: str, blob: m.Blob, pieces: AsyncIterator[bytes]) -> None:
        self.asked.append(("add_blob", (tags, blob), {}))
        given = self.answers["add_blob"]
        if isinstance(given, Exception):
            raise given
        try:
            async for part in pieces:
                self.waits.set()
                self.added += part
        finally:
            self.given_up.set()


class Node:
    def __init__(self, folder: Path, name: str, cluster: str) -> None:
        endpoint = Endpoint(
            str(folder / f"{name}.key"), bind=["127.0.0.1:0"], cluster=cluster, node=name, limits={"idle_ms": 2_000}
        )
        self.cluster = cluster
        self.peers = Peers(endpoint, folder)
        self.id = self.peers.id
        self.link: LinkRecord | None = None
        """To the other cluster."""
        self.book = Book()

    def link_to(self, *others: Node, scopes: LinkScopes = SCOPES) -> None:
        peers = {other.id: tuple(other.peers.addresses) for other in others}
        self.link = LinkRecord(cluster=others[0].cluster, peers=peers, scopes=scopes, created_ms=0)
        self.allow()

    def allow(self) -> None:
        peers = {} if self.link is None else self.link.peers
        cluster = "" if self.link is None else self.link.cluster
        self.peers.allow_foreign({id: ForeignPeer(cluster=cluster, addresses=at) for id, at in peers.items()})

    def unlink(self) -> None:
        self.link = None
        self.allow()

    def serve(self) -> ForeignDesk:
        async def reached() -> None:
            await asyncio.sleep(0)

        find = lambda peer: self.link if self.link is not None and peer in self.link.peers else None  # noqa: E731
        return ForeignDesk(self.peers, self.book, find, reached)

    def find(self, name: str) -> LinkRecord:
        if self.link is None:
            raise NotFound(f"there is no link {name}")
        return self.link


class Pair:
    """A node that asks, and nodes of another cluster that serve."""

    def __init__(self, folder: Path, asked: int) -> None:
        self.one = Node(folder, "n1", "blue")
        self.others = [Node(folder, f"m{number}", "green") for number in range(asked)]
        self.one.link_to(*self.others)
        self.desks = []
        for other in self.others:
            other.link_to(self.one)
            self.desks.append(other.serve())
        self.side = ForeignSide(self.one.peers, "north", self.one.find)

    @property
    def book(self) -> Book:
        return self.others[0].book


@contextlib.asynccontextmanager
async def linked(folder: Path, asked: int = 1) -> AsyncIterator[Pair]:
    pair = Pair(folder, asked)
    try:
        yield pair
    finally:
        for node in (pair.one, *pair.others):
            await node.peers.close()


def batch(**changes: Any) -> m.Batch:
    made = m.Batch("blue", "s1", 7, CURSOR, (m.Change(b"k", b"v", 9, 1, m.ABSENT), m.Change(b"l", None, 0)), "newer")
    return structs.replace(made, **changes)


def tag_batch(**changes: Any) -> m.TagBatch:
    made = m.TagBatch("blue", "s1", 7, TAG_CURSOR, (m.TagChange("out-1", HASH, 9, 1, ""),), "fail")
    return structs.replace(made, **changes)


def framed(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


async def failure(work: Awaitable[Any]) -> JobsError | None:
    try:
        await work
    except JobsError as error:
        return error
    return None


RANGES = ((b"a", b"c"), (b"d", None))
PIECES = m.Digests(((m.Piece(b"b", b"x" * 16, 3, 30),), (m.Piece(b"d", b"y" * 16, 1, 2),)), b"d\x00")
TAGS = m.Tags((m.Tag("in-1", HASH, 4), m.Tag("in-2", OTHER, 5)), 9, "in-2")
CHANGES = m.Changes((m.Change(b"a", b"v", 4, 1, m.ABSENT), m.Change(b"a", None, 6, 1, b"z" * 16)), 8, 9, 1, 2)
ASKED: list[tuple[str, tuple[Any, ...], dict[str, Any], Any]] = [
    ("about", (), {}, m.About("green", "north", 9, 2, 1)),
    ("digests", (b"/data/r/x", RANGES), {"revision": 7, "rows": 16, "limit": 2}, PIECES),
    ("digests", (b"/data/w/x", RANGES), {"revision": 7, "rows": 16, "limit": 2}, PIECES),
    (
        "rows",
        (b"/data/r/", (b"a", None)),
        {"revision": 0, "limit": 2, "values": True},
        m.Rows((m.Row(b"a", b"v", 1, 2), m.Row(b"b", b"", 1, 2)), b"c"),
    ),
    (
        "rows",
        (b"/data/w/", (b"", b"z")),
        {"revision": 0, "limit": 2, "values": False},
        m.Rows((m.Row(b"a", b"", 1, 2),)),
    ),
    ("pick", (b"/data/r/", (b"c", b"a", b"b")), {"revision": 3}, m.Rows((m.Row(b"c", b"v", 1, 2),), b"b")),
    ("changes", (b"/data/r/", 3), {"limit": 5, "wait_s": 0.5}, CHANGES),
    ("cursor", ("blue", "s1"), {}, None),
    ("cursor", ("blue", "s1"), {}, m.Positioned(CURSOR, 4)),
    ("upstream", ("/data/w/",), {}, frozenset({"x /data/", "y tags:in-"})),
    ("upstream", ("tags:in-",), {}, frozenset()),
    ("apply", (batch(),), {}, m.Applied(5, 1, 2, 3, 4)),
    ("tags", ("in-", "in-0"), {"limit": 5}, TAGS),
    ("tagged", ("in-", ("in-1", "in-2"), 4), {}, (HASH, None)),
    ("tags_changed", ("in-", 4), {"wait_s": 0.5}, 9),
    ("apply_tags", (tag_batch(),), {}, m.Applied(5)),
    ("blob", ("in-", HASH), {}, m.Blob(HASH, 5, "collection", (OTHER,))),
    ("lacking", ("out-", (HASH, OTHER)), {}, (OTHER,)),
]


@on_loop
async def test_what_is_asked_is_asked_of_the_other_side_and_its_answer_comes_back(tmp_path: Path) -> None:
    async with linked(tmp_path) as pair:
        for name, args, kwargs, answer in ASKED:
            pair.book.answers[name] = answer
            assert await getattr(pair.side, name)(*args, **kwargs) == answer, name
            # For changes is waited only where there are none
            passed_on = {key: value for key, value in kwargs.items() if (name, key) != ("changes", "wait_s")}
            assert pair.book.asked.pop() == (name, args, passed_on)
        nothing = m.Changes((), 3, 3)
        pair.book.answers["changes"] = nothing
        pair.book.asked.clear()
        assert await pair.side.changes(b"/data/r/", 3, limit=5, wait_s=0.5) == nothing
        waits = [kwargs for _, _, kwargs in pair.book.asked]
        assert waits == [{"limit": 5}, {"limit": 1, "wait_s": 0.5}, {"limit": 5}]
        assert pair.desks[0].answered == len(ASKED) + 1
        assert pair.side.title == "cluster north"


@on_loop
async def test_errors_come_back_as_what_they_are_and_name_the_link(tmp_path: Path) -> None:
    async with linked(tmp_path) as pair:
        cases: list[tuple[JobsError, type[JobsError]]] = [
            (Compacted("revision 3 is gone", expected="a newer one"), Compacted),
            (RevisionConflict("moved"), RevisionConflict),
            (ReplicationConflict("changed"), ReplicationConflict),
            (StorageFull("full"), StorageFull),
            (Unavailable("later", retry_after_s=2), Unavailable),
            # These are this cluster's own matter, by whichever name
            (NotLeader("I do not lead"), Unavailable),
            (TagTaken("taken"), InternalError),
        ]
        for error, kind in cases:
            pair.book.answers["about"] = error
            with pytest.raises(kind, match=f"link north: {error.detail}") as raised:
                await pair.side.about()
            assert type(raised.value) is kind
            assert (raised.value.expected, raised.value.retry_after_s) == (error.expected, error.retry_after_s)
        pair.book.answers["about"] = StorageFull("\x1b[2J" + "x" * 5_000)
        with pytest.raises(StorageFull) as full:
            await pair.side.about()
        assert "\x1b" not in full.value.detail
        assert len(full.value.detail) < 1_100
        # A fault of the other node is told as no more than that
        pair.book.answers |= {"about": ZeroDivisionError(), "read_blob": [ZeroDivisionError()]}
        with pytest.raises(InternalError, match="link north: internal error"):
            await pair.side.about()
        with pytest.raises(InternalError, match="link north: internal error"):
            await read(pair.side)


DENIED: list[tuple[str, tuple[Any, ...], dict[str, Any], str]] = [
    ("digests", (b"/data/", RANGES), {"revision": 0, "rows": 1}, "compare keys that begin with '/data/'"),
    ("rows", (b"/data/w/", (b"", None)), {"revision": 0}, "read keys that begin with '/data/w/'"),
    ("rows", (b"/data/r", (b"", None)), {"revision": 0}, "'/data/r'"),
    ("rows", (b"/jobs/", (b"", None)), {"revision": 0, "values": False}, "'/jobs/'"),
    ("pick", (b"/data/w/", (b"k",)), {"revision": 0}, "read keys"),
    ("changes", (b"", 0), {}, "read keys that begin with ''"),
    ("cursor", ("green", "s1"), {}, "may not touch the syncs of cluster green"),
    ("upstream", ("/data/x/",), {}, "compare keys"),
    ("upstream", ("tags:x",), {}, "compare tags"),
    ("apply", (batch(cursor=structs.replace(CURSOR, target_prefix="/data/r/")),), {}, "write keys that .* '/data/r/'"),
    ("apply", (batch(cursor=structs.replace(CURSOR, target_prefix="/replication/links/")),), {}, "write keys"),
    ("apply", (batch(origin="green"),), {}, "may not touch"),
    ("tags", ("", ""), {}, "compare tags that begin with ''"),
    ("tagged", ("x", ("x1",), 1), {}, "compare tags"),
    ("tags_changed", ("x", 1), {"wait_s": 0}, "compare tags"),
    ("apply_tags", (tag_batch(cursor=structs.replace(TAG_CURSOR, target_prefix="in-")),), {}, "write tags"),
    ("apply_tags", (tag_batch(changes=(m.TagChange("in-1", HASH, 1),)),), {}, "'in-1' is not one of the sync's"),
    ("blob", ("out-", HASH), {}, "read tags"),
    ("lacking", ("in-", (HASH,)), {}, "write tags"),
]


@on_loop
async def test_what_the_scopes_do_not_allow_is_refused_by_name_and_nothing_is_done(tmp_path: Path) -> None:
    async with linked(tmp_path) as pair:
        for name, args, kwargs, words in DENIED:
            with pytest.raises(Forbidden, match=words) as denied:
                await getattr(pair.side, name)(*args, **kwargs)
            assert denied.value.detail.startswith("link north: ")
        with pytest.raises(Forbidden, match="read tags"):
            await anext(aiter(pair.side.read_blob("out-", HASH)))
        with pytest.raises(Forbidden, match="write tags that begin with 'in-'"):
            await pair.side.add_blob("in-", m.Blob(HASH, 1), content(b"x"))
        for wrong in (batch(cursor=TAG_CURSOR), batch(cursor=structs.replace(CURSOR, holder="x" * 20_000))):
            with pytest.raises(InvalidRequest, match="cursor"):
                await pair.side.apply(wrong)
        with pytest.raises(InvalidRequest, match="no name of a sync"):
            await pair.side.apply(batch(name="a\x00b"))
        large = tuple(m.Change(b"%d" % number, bytes(1 << 20), 1) for number in range(5))
        with pytest.raises(InvalidRequest, match="a batch of"):
            await pair.side.apply(batch(changes=large))
        assert pair.book.asked == []
        # A link without scopes allows to ask who it is, and no more
        pair.others[0].link_to(pair.one, scopes=LinkScopes())
        pair.book.answers["about"] = m.About("green", "north", 9, 2, 1)
        await pair.side.about()
        with pytest.raises(Forbidden, match="keys that begin with '/data/r/'") as denied:
            await pair.side.rows(b"/data/r/", (b"", None), revision=0)
        assert denied.value.expected == (
            "what its link allows: nothing (in that cluster: jobctl replication link --allow-read)"
        )


MISFITS: list[tuple[str, tuple[Any, ...], dict[str, Any], Any]] = [
    ("about", (), {}, m.About("red", "north", 9, 2, 1)),
    ("digests", (b"/data/r/", ((b"a", b"c"),)), {"revision": 0, "rows": 1}, m.Digests(())),
    ("digests", (b"/data/r/", ((b"a", b"c"),)), {"revision": 0, "rows": 1}, m.Digests(((), ()))),
    ("digests", (b"/data/r/", ((b"a", b"c"),)), {"revision": 0, "rows": 1}, m.Digests(((m.Piece(b"c", b"", 1, 1),),))),
    ("digests", (b"/data/r/", ((b"a", b"c"),)), {"revision": 0, "rows": 1}, m.Digests(((),), b"a")),
    ("digests", (b"/data/r/", ((b"a", b"c"),)), {"revision": 0, "rows": 1}, m.Digests(((),), b"c")),
    ("rows", (b"/data/r/", (b"b", None)), {"revision": 0}, m.Rows((m.Row(b"a", b"v", 1, 1),))),
    ("rows", (b"/data/r/", (b"", b"b")), {"revision": 0}, m.Rows((m.Row(b"b", b"v", 1, 1),))),
    ("rows", (b"/data/r/", (b"", None)), {"revision": 0}, m.Rows((m.Row(b"b", b"", 1, 1), m.Row(b"a", b"", 1, 1)))),
    ("rows", (b"/data/r/", (b"", None)), {"revision": 0}, m.Rows((), b"")),
    ("rows", (b"/data/r/", (b"", None)), {"revision": 0}, m.Rows((m.Row(b"b", b"", 1, 1),), b"b")),
    ("rows", (b"/data/r/", (b"", None)), {"revision": 0, "values": False}, m.Rows((m.Row(b"a", b"v", 1, 1),))),
    ("pick", (b"/data/r/", (b"a", b"b")), {"revision": 0}, m.Rows((m.Row(b"c", b"v", 1, 1),))),
    ("pick", (b"/data/r/", (b"a",)), {"revision": 0}, m.Rows((m.Row(b"a", b"", 1, 1), m.Row(b"a", b"", 1, 1)))),
    ("pick", (b"/data/r/", (b"a", b"b")), {"revision": 0}, m.Rows((), b"a")),
    ("changes", (b"/data/r/", 5), {}, m.Changes((), 4, 9)),
    ("changes", (b"/data/r/", 5), {}, m.Changes((), 9, 8)),
    ("changes", (b"/data/r/", 5), {}, m.Changes((m.Change(b"a", b"", 5),), 9, 9)),
    ("changes", (b"/data/r/", 5), {}, m.Changes((m.Change(b"a", b"", 10),), 9, 10)),
    ("changes", (b"/data/r/", 5), {}, m.Changes((m.Change(b"a", b"", 8), m.Change(b"a", b"", 7)), 9, 9)),
    ("tags", ("in-", ""), {}, m.Tags((m.Tag("out-1", HASH, 1),), 9)),
    ("tags", ("in-", "in-1"), {}, m.Tags((m.Tag("in-1", HASH, 1),), 9)),
    ("tags", ("in-", "in-1"), {}, m.Tags((), 9, "in-1")),
    ("tagged", ("in-", ("in-1",), 1), {}, (HASH, HASH)),
    ("tagged", ("in-", ("in-1",), 1), {}, ("no hash",)),
    ("blob", ("in-", HASH), {}, m.Blob(OTHER, 1)),
    ("lacking", ("out-", (HASH,)), {}, (OTHER,)),
    ("apply", (batch(),), {}, "nonsense"),
    ("apply", (batch(),), {}, m.Applied(-1)),
    ("upstream", ("/data/w/",), {}, 5),
]


@on_loop
async def test_an_answer_that_does_not_fit_its_question_is_not_gone_by(tmp_path: Path) -> None:
    async with linked(tmp_path) as pair:
        for name, args, kwargs, answer in MISFITS:
            pair.book.answers[name] = answer
            with pytest.raises(InvalidRequest, match="link north: what the other cluster says cannot be used"):
                await getattr(pair.side, name)(*args, **kwargs)
        # Nor bytes that are no answer, nor one of another version
        replies = [(b"", "version None"), (b"\x01\xc1", "cannot be read"), (b"\x09abc", "version 9; this node speaks")]
        for reply, words in replies:

            async def answer_so(peer: str, body: bytes, reply: bytes = reply) -> bytes:
                return reply

            pair.others[0].peers.on_foreign_request = answer_so
            with pytest.raises(InvalidRequest, match=words) as refused:
                await pair.side.about()
            assert refused.value.expected == "nodes of the same release in both clusters"


@on_loop
async def test_frames_that_are_none_are_refused_and_the_next_one_is_answered(tmp_path: Path) -> None:
    async with linked(tmp_path) as pair:
        peers, other = pair.one.peers, pair.others[0].id
        whole = f.questions.encode(f.Apply(batch()))
        bodies = [
            (b"", "version None"),
            (b"\x09" + whole[1:], "of version 9; this node speaks version 1"),
            *((whole[:length], "cannot be read") for length in range(1, len(whole), 7)),
            (whole + b"\x00", "cannot be read"),
            (f.questions.encode(f.Changes(b"/data/r/", 0, m.MAX_EVENTS + 1, 0)), "cannot be read"),
            (f.questions.encode(f.Changes(b"/data/r/", 0, 1, 3_600.0)), "cannot be read"),
            (f.questions.encode(f.Cursor("blue", "a\x00b")), "cannot be read"),
            (f.questions.encode(f.Digests(b"/data/r/", RANGES * 600, 0, 1, 1)), "cannot be read"),
        ]
        for body, words in bodies:
            reply = f.replies.decode(await peers.ask_foreign(other, body, PATIENCE_S))
            assert not isinstance(reply, Answer)
            assert reply.code == "invalid_request"
            assert words in reply.detail
        assert pair.book.asked == []
        pair.book.answers["about"] = m.About("green", "north", 9, 2, 1)
        await pair.side.about()
        assert pair.desks[0].refused == len(bodies)
        # As the beginning of a stream
        opening = f.openings.encode(f.ReadBlob("in-", HASH, 0))
        for said in (b"", framed(b"\x09" + opening[1:]), framed(b"\x01\xc1"), framed(opening)[:-1], b"\xff" * 4):
            stream = await peers.open_foreign(other, b"")
            await stream.write(said)
            await stream.finish()
            size = int.from_bytes(await stream.read_exactly(4), "big")
            refused = f.told.decode(await stream.read_exactly(size))
            assert getattr(refused, "code", "") == "invalid_request"
            assert await stream.read() == b""
        assert pair.book.asked == [("about", (), {})]


@on_loop
async def test_whichever_node_answers_is_asked_and_the_reasons_of_all_are_told(tmp_path: Path) -> None:
    async with linked(tmp_path, asked=3) as pair:
        about = m.About("green", "north", 9, 2, 1)
        for node in pair.others:
            node.book.answers["about"] = about
        assert await pair.side.about() == about
        first = next(node for node in pair.others if node.book.asked)
        second, third = (node for node in pair.others if node is not first)
        # While it answers, it is asked
        for _ in range(3):
            await pair.side.about()
        assert len(first.book.asked) == 4
        # One that cannot now is passed over, and the next one is asked from then on
        first.book.answers["about"] = NotLeader("no leader")
        for _ in range(3):
            await pair.side.about()
        assert len(first.book.asked) == 5
        await first.peers.close()
        await pair.side.about()
        assert len(second.book.asked) + len(third.book.asked) == 4
        # A refusal that does not depend on the node is one
        for node in (second, third):
            node.book.answers["about"] = Compacted("gone")
        with pytest.raises(Compacted):
            await pair.side.about()
        # Why none of them answers, of each
        for node in (second, third):
            node.unlink()
        async with asyncio.timeout(PATIENCE_S):
            failed: JobsError | None = Compacted("")
            while isinstance(failed, Compacted):
                failed = await failure(pair.side.about())
        assert isinstance(failed, LinkUnavailable)
        for node in pair.others:
            assert node.id[:10] in failed.detail
        assert "link to this one there, too" in (failed.expected or "")
        with pytest.raises(LinkUnavailable):
            await anext(aiter(pair.side.read_blob("in-", HASH)))


@on_loop
async def test_a_link_that_is_cut_ends_what_waits_for_it(tmp_path: Path) -> None:
    async with linked(tmp_path) as pair:
        pair.book.answers["changes"] = ...
        waiting = asyncio.ensure_future(pair.side.changes(b"/data/r/", 0, wait_s=30))
        await asyncio.wait_for(pair.book.waits.wait(), PATIENCE_S)
        pair.others[0].unlink()
        with pytest.raises(LinkUnavailable, match="off the allowlist"):
            await waiting
        await asyncio.wait_for(pair.book.given_up.wait(), PATIENCE_S)
        with pytest.raises(LinkUnavailable, match="not on the allowlist"):
            await pair.side.about()
        # Made again it is used again
        pair.others[0].link_to(pair.one)
        pair.book.answers["about"] = m.About("green", "north", 9, 2, 1)
        async with asyncio.timeout(PATIENCE_S):
            # The next connection is tried after a pause
            while isinstance(await failure(pair.side.about()), LinkUnavailable):
                pass
        # On this side: it is no more, or leads elsewhere now
        record = pair.one.find("north")
        pair.one.link = structs.replace(record, cluster="red")
        with pytest.raises(NotFound, match="leads to another cluster now"):
            await pair.side.about()
        pair.one.unlink()
        with pytest.raises(NotFound, match="no link"):
            await pair.side.about()


@on_loop
async def test_a_question_that_came_before_the_store_knew_of_the_cut_is_not_answered(tmp_path: Path) -> None:
    async with linked(tmp_path) as pair:
        node = pair.others[0]

        async def reached() -> None:
            # What was acknowledged before is in the store now
            node.link = None

        ForeignDesk(node.peers, node.book, lambda peer: node.link, reached)
        with pytest.raises(Unavailable, match="there is no link here any more"):
            await pair.side.apply(batch())
        assert node.book.asked == []


@on_loop
async def test_what_is_under_way_when_a_scope_is_taken_away_brings_nothing_more(tmp_path: Path) -> None:
    async with linked(tmp_path) as pair:
        node = pair.others[0]
        # A question that waits, and is answered with what came after the change
        pair.book.answers["changes"] = written = asyncio.Event()
        waiting = asyncio.ensure_future(pair.side.changes(b"/data/r/", 0, wait_s=30))
        await asyncio.wait_for(pair.book.waits.wait(), PATIENCE_S)
        node.link_to(pair.one, scopes=LinkScopes(write_tags=["out-"], read_tags=["in-"]))
        pair.book.answers["after"] = m.Changes((m.Change(b"secret", b"v", 1),), 1, 1)
        written.set()
        with pytest.raises(Forbidden, match="'/data/r/'"):
            await waiting
        # Content that is read, or written
        going_on = asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield b"ab"
            await going_on.wait()
            yield b"c"

        pair.book.waits.clear()
        pair.book.answers |= {"read_blob": [bytes(1 << 20)] * 64, "add_blob": None}
        reading = aiter(pair.side.read_blob("in-", HASH))
        await anext(reading)
        adding = asyncio.ensure_future(pair.side.add_blob("out-", m.Blob(HASH, 3), slow()))
        await asyncio.wait_for(pair.book.waits.wait(), PATIENCE_S)
        node.link_to(pair.one, scopes=LinkScopes())
        going_on.set()
        with pytest.raises(Forbidden, match="write tags"):
            await adding
        with pytest.raises(Forbidden, match="read tags"):
            [part async for part in reading]
        assert pair.book.added == b"ab"


@on_loop
async def test_one_cluster_takes_a_bounded_part_of_a_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "MAX_SERVED", 4)
    async with linked(tmp_path) as pair:
        pair.book.answers["tags_changed"] = ...
        pair.book.answers["about"] = m.About("green", "north", 9, 2, 1)
        waiting = [asyncio.ensure_future(pair.side.tags_changed("in-", 0, wait_s=30)) for _ in range(4)]
        async with asyncio.timeout(PATIENCE_S):
            while len(pair.book.asked) < 4:
                await asyncio.sleep(0.01)
        with pytest.raises(TooManyRequests):
            await pair.side.about()
        for task in waiting:
            task.cancel()
        async with asyncio.timeout(PATIENCE_S):
            while True:
                with contextlib.suppress(TooManyRequests):
                    await pair.side.about()
                    break


# --- blobs ------------------------------------------------------------------------------------------------------------


async def content(*parts: bytes | Exception) -> AsyncIterator[bytes]:
    for part in parts:
        if isinstance(part, Exception):
            raise part
        yield part


async def read(side: ForeignSide, start: int = 0) -> bytes:
    return b"".join([part async for part in side.read_blob("in-", HASH, start)])


@on_loop
async def test_content_is_read_and_added_whatever_its_size(tmp_path: Path) -> None:
    async with linked(tmp_path) as pair:
        for parts in ([], [b"x"], [b"a" * (1 << 20), b"b", b"c" * 700_000]):
            whole = b"".join(parts)
            pair.book.answers |= {"read_blob": parts, "add_blob": None}
            assert await read(pair.side, 5) == whole
            assert pair.book.asked.pop() == ("read_blob", ("in-", HASH, 5), {})
            pair.book.added = b""
            blob = m.Blob(HASH, len(whole), "collection", (OTHER,) * f.MAX_BLOBS)
            await pair.side.add_blob("out-", blob, content(*parts))
            assert pair.book.asked.pop() == ("add_blob", ("out-", blob), {})
            assert pair.book.added == whole


@on_loop
async def test_content_that_fails_on_the_way_is_no_content(tmp_path: Path) -> None:
    async with linked(tmp_path) as pair:
        # In the beginning, and after some of it
        for parts in ([BlobDamaged("rotten")], [b"some", BlobDamaged("rotten")]):
            pair.book.answers["read_blob"] = parts
            with pytest.raises(BlobDamaged, match="link north: rotten"):
                await read(pair.side)
        pair.book.answers["read_blob"] = [BlobUnavailable("nobody has it")]
        with pytest.raises(BlobUnavailable):
            await read(pair.side)
        # The target does not want it, whether all of it was written or not
        for error in (StorageFull("full"), BlobDamaged("another content")):
            pair.book.answers["add_blob"] = error
            with pytest.raises(type(error), match=error.detail):
                await pair.side.add_blob("out-", m.Blob(HASH, 8 << 20), content(*[bytes(1 << 20)] * 8))
        # More of it than was said
        pair.book.answers["add_blob"] = None
        with pytest.raises(BlobDamaged, match="more content came"):
            await pair.side.add_blob("out-", m.Blob(HASH, 3), content(b"four"))
        # The source fails on the way: the target takes nothing for the whole
        pair.book.given_up.clear()
        with pytest.raises(BlobDamaged, match="here"):
            await pair.side.add_blob("out-", m.Blob(HASH, 3), content(b"ab", BlobDamaged("here")))
        await asyncio.wait_for(pair.book.given_up.wait(), PATIENCE_S)
        # Whoever reads gives up
        pair.book.given_up.clear()
        pair.book.answers["read_blob"] = [bytes(1 << 20)] * 64
        reading = pair.side.read_blob("in-", HASH)
        await anext(aiter(reading))
        await reading.aclose()  # type: ignore[attr-defined]
        await asyncio.wait_for(pair.book.given_up.wait(), PATIENCE_S)


@on_loop
async def test_content_ends_with_its_link(tmp_path: Path) -> None:
    async with linked(tmp_path) as pair:
        pair.book.answers |= {"read_blob": [bytes(1 << 20)] * 64, "add_blob": None}
        more = asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield b"ab"
            await more.wait()
            yield b"c"

        adding = asyncio.ensure_future(pair.side.add_blob("out-", m.Blob(HASH, 3), slow()))
        reading = aiter(pair.side.read_blob("in-", HASH))
        await anext(reading)
        await asyncio.wait_for(pair.book.waits.wait(), PATIENCE_S)
        pair.others[0].unlink()
        with pytest.raises(LinkUnavailable):
            [part async for part in reading]
        more.set()
        with pytest.raises(LinkUnavailable):
            await adding
        assert pair.book.added == b"ab"


@on_loop
async def test_a_node_that_says_anything_in_place_of_content_is_left(tmp_path: Path) -> None:
    async with linked(tmp_path) as pair:
        piece = f.told.framed(f.Piece(b"abc"))
        for said, words in [
            (b"\xff\xff\xff\xff", "a message of 4294967295 bytes"),
            (b"\x00\x00\x00\x02\x09\xc0", "version 9"),
            (piece + framed(b"\x01\xc1"), "cannot be read"),
            (piece[:-1], "too soon"),
            (piece, "too soon"),
            (f.told.framed(f.End()) + piece, None),
        ]:

            async def say(peer: str, header: bytes, stream: Any, said: bytes = said) -> None:
                await stream.write(said)

            pair.others[0].peers.on_foreign_stream = say
            if words is None:
                assert await read(pair.side) == b""
                continue
            with pytest.raises((InvalidRequest, LinkUnavailable), match=words):
                await read(pair.side)
        # In place of the word that it is wanted
        pair.others[0].peers.on_foreign_stream = say_piece
        with pytest.raises(InvalidRequest, match="nobody wants"):
            await pair.side.add_blob("out-", m.Blob(HASH, 1), content(b"x"))


async def say_piece(peer: str, header: bytes, stream: Any) -> None:
    await stream.write(f.told.framed(f.Piece(b"abc")))


@on_loop
async def test_whoever_sends_content_of_any_kind_is_answered(tmp_path: Path) -> None:
    async with linked(tmp_path) as pair:
        pair.book.answers["add_blob"] = None
        opening = f.openings.framed(f.AddBlob("out-", m.Blob(HASH, 3)))
        for said in (b"\xff\xff\xff\xff", b"\x00\x00\x00\x02\x01\xc1", f.told.framed(f.Piece(b"a"))):
            stream = await pair.one.peers.open_foreign(pair.others[0].id, b"")
            await stream.write(opening + said)
            await stream.finish()
            told = b""
            while part := await stream.read():
                told += part
            first = f.told.framed(f.End())
            assert told.startswith(first)
            refused = f.told.decode(told[len(first) + 4 :])
            assert getattr(refused, "code", "") == "invalid_request"
        assert msgspec.msgpack.decode(f.told.encode(f.End())[1:]) == [2]
