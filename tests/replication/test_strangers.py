"""Whatever a linked cluster asks, a real node answers it, or refuses it by name, and is the same afterwards."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
from msgspec import structs

from jobs import keys, records
from jobs._native import Endpoint
from jobs.cluster import Peers
from jobs.forward.questions import Answer
from jobs.forward.speech import Codec, MessageError
from jobs.protocol.model import LinkScopes
from jobs.records import CursorRecord, LinkRecord
from jobs.replication import frames as f
from jobs.replication import messages as m
from jobs.replication.answers import Answers
from jobs.replication.part import ReplicationPart
from jobs.store import Put, Txn
from tests.support.loop import on_loop
from tests.support.plane import CLUSTER, Plane

T = TypeVar("T")
SCALE = int(os.environ.get("JOBS_TEST_SCALE", "1"))
SEED = int(os.environ.get("JOBS_TEST_SEED", "0")) or random.randrange(1 << 32)
OTHER = "d" * 32
HASH = "a" * 64
SCOPES = LinkScopes(read=["/data/"], write=["/data/w/"], read_tags=["in-"], write_tags=["out-"])
CODECS: list[Codec[Any]] = [f.questions, f.replies, f.openings, f.told]


class Chance:
    """Questions that look random, from a seed."""

    def __init__(self, seed: int) -> None:
        self._source = random.Random(seed)

    def one_of(self, *given: Any) -> Any:
        return self._source.choice(given)

    def key(self) -> bytes:
        size = self.one_of(0, 1, 2, 8, 1_023, 1_024)
        return self.one_of(b"", b"a", b"k1", b"\xff", b"\x00", b"\xff\xfe" * (size // 2), self._source.randbytes(size))

    def prefix(self) -> bytes:
        return self.one_of(b"/data/", b"/data/w/", b"/data/r", b"/data/" + self.key()[:1_018], b"/jobs/", self.key())

    def revision(self) -> int:
        """Of the store, which waits for one that is yet to come."""
        return self.one_of(0, 1)

    def number(self) -> int:
        return self.one_of(0, 1, 2, self._source.randrange(1 << 10), (1 << 63) - 1)

    def span(self) -> m.Range:
        return self.key(), self.one_of(None, self.key())

    def name(self) -> str:
        return self.one_of("s", "in-1", "out-1", "", "../x", "\x00", "ü" * 60, "x" * 128)

    def change(self) -> m.Change:
        value = self.one_of(None, b"", b"v", bytes(self.one_of(10, 1 << 20)))
        base = self.one_of(m.UNKNOWN, m.ABSENT, m.PRESENT, self._source.randbytes(self.one_of(2, 16, 32)))
        return m.Change(self.key(), value, self.number(), self.number(), base)

    def cursor(self) -> CursorRecord:
        return CursorRecord(
            source=self.name(),
            prefix=self.name(),
            target_prefix=self.one_of("/data/w/", "/data/w/x", "/data/", "out-", "", "\x00"),
            is_tags=self.one_of(True, False),
            upstream=tuple(self.name() for _ in range(self.one_of(0, 1, 5))),
            position=self.number(),
            comparing=self.number(),
            after=self.key(),
            conflicts=self.number(),
            holder=self.name(),
        )

    def several(self, make: Callable[[], T], *counts: int) -> tuple[T, ...]:
        return tuple(make() for _ in range(self.one_of(*counts)))

    def tag_change(self) -> m.TagChange:
        return m.TagChange(self.name(), self.one_of(None, HASH), self.number(), 0, self.one_of(None, "", HASH))

    def question(self) -> f.AnyQuestion:
        origin = self.one_of(OTHER, OTHER, CLUSTER)
        tags = self.one_of("in-", "out-", "", self.name())
        expected, policy = self.one_of(0, 0, self.number()), self.one_of("source", "newer", "fail")
        limit = self.one_of(1, 100, 500)
        kinds: list[Callable[[], f.AnyQuestion]] = [
            f.About,
            lambda: f.Digests(
                self.prefix(),
                self.several(self.span, 1, 2, 5, 100),
                self.revision(),
                self.one_of(1, 3, 256, 1 << 30),
                limit,
            ),
            lambda: f.Rows(self.prefix(), self.span(), self.revision(), limit, self.one_of(True, False)),
            lambda: f.Pick(self.prefix(), self.several(self.key, 0, 1, 20), self.revision()),
            lambda: f.Changes(self.prefix(), self.revision(), limit, 0.0),
            lambda: f.Cursor(origin, self.one_of("s", "other")),
            lambda: f.Upstream(self.one_of("/data/w/", "tags:in-", "tags:", self.name())),
            lambda: f.Apply(
                m.Batch(
                    origin,
                    self.one_of("s", self.name()),
                    expected,
                    self.cursor(),
                    self.several(self.change, 0, 1, 5),
                    policy,
                )
            ),
            lambda: f.Tags(tags, self.name(), limit),
            lambda: f.Tagged(tags, self.several(self.name, 0, 3), self.revision()),
            lambda: f.TagsChanged(tags, self.number(), 0.0),
            lambda: f.ApplyTags(
                m.TagBatch(origin, "t", expected, self.cursor(), self.several(self.tag_change, 0, 1, 5), policy)
            ),
            lambda: f.Blob(tags, HASH),
            lambda: f.Lacking(tags, (HASH,) * self.one_of(0, 1, 100)),
        ]
        asked: f.AnyQuestion = self.one_of(*kinds)()
        return asked

    def spoiled(self, body: bytes) -> bytes:
        """Return a message with some bits turned, cut off, or with more behind it."""
        data = bytearray(body)
        for _ in range(self.one_of(0, 1, 3)):
            data[self._source.randrange(len(data))] ^= 1 << self._source.randrange(8)
        return self.one_of(bytes(data), bytes(data[: self._source.randrange(len(data))]), bytes(data) + self.key())


def served(plane: Plane, folder: Path) -> tuple[ReplicationPart, Peers]:
    endpoint = Endpoint(str(folder / "node.key"), bind=["127.0.0.1:0"], cluster=CLUSTER, node="n1")
    peers = Peers(endpoint, folder)
    part = ReplicationPart(
        plane.site,
        plane.consensus,
        plane.store,
        peers,
        None,
        Answers(),
        plane.output,
        CLUSTER,  # type: ignore[arg-type]
    )
    return part, peers


@on_loop
async def test_whatever_is_asked_is_answered_or_refused_by_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chance = Chance(SEED)
    async with Plane(tmp_path, with_blobs=True) as plane:
        part, peers = served(plane, tmp_path)
        peer = Endpoint.generate_key()[1]
        link = LinkRecord(cluster=OTHER, peers={peer: ()}, scopes=SCOPES, created_ms=1)
        own = {b"/data/r/%d" % number: b"value %d" % number for number in range(20)}
        puts = (Put(keys.link("far"), records.encode(link)), *(Put(key, value) for key, value in own.items()))
        await plane.consensus.propose(Txn(then=puts))
        assert peers.on_foreign_request is not None
        answered = 0
        for number in range(2_000 * SCALE):
            question = chance.question()
            body = f.questions.encode(question)
            if number % 4 == 0:
                body = chance.spoiled(body)
            reply = f.replies.decode(await peers.on_foreign_request(peer, body))
            answered += isinstance(reply, Answer)
            assert isinstance(reply, Answer) or reply.code != "internal", f"{SEED}: {question}: {reply}"
        assert answered > 100
        # Nothing but what it may write was written
        rows, _ = plane.store.range(b"/data/", b"/data0", limit=10_000)
        found = {row[0]: row[1] for row in rows if not row[0].startswith(b"/data/w/")}
        assert found == own
        rows, _ = plane.store.range(keys.SYNC_CURSORS, keys.SYNC_CURSORS + b"\xff", limit=10_000)
        assert all(row[0].startswith(keys.SYNC_CURSORS + OTHER.encode()) for row in rows)
        assert plane.store.get(keys.link("far")) is not None
        assert "Traceback" not in caplog.text
        await part.stop()
        await peers.close()


def test_whatever_comes_is_a_message_or_is_refused_as_none() -> None:
    chance, source = Chance(SEED), random.Random(SEED)
    deep = b"\x91" * 100_000 + b"\x90"
    for codec in CODECS:
        for prefix in (b"\x92\x01", b"\x95\x02"):
            with pytest.raises(MessageError):
                codec.decode(b"\x01" + prefix + deep)
        for _ in range(200 * SCALE):
            for data in (source.randbytes(source.randrange(60)), chance.spoiled(f.questions.encode(chance.question()))):
                try:
                    codec.decode(data)
                except MessageError:
                    continue


@pytest.mark.parametrize("deep", [b"\x91" * 100_000 + b"\x90", b"\xc4\x01a" * 3])
def test_an_answer_is_read_as_what_it_is_to_be_or_not_at_all(deep: bytes) -> None:
    for kind in (m.About, m.Digests, m.Rows, m.Changes, m.Applied, m.Tags, m.Blob):
        with pytest.raises(MessageError):
            f.decode_answer(Answer(b"\x9a\x01" + deep), kind)
    about = m.About("green", "n", 1, 1, 1)
    assert f.decode_answer(Answer(msgspec.msgpack.encode(about)), m.About) == about
    assert structs.asdict(about)["version"] == m.VERSION
