"""Whether all members have the same at one revision: digests of ranges, coarse first, and finer where they differ, down
to the first row that does."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from jobs.blobs.together import each
from jobs.control.data import text
from jobs.errors import Compacted, JobsError
from jobs.forward.orders import Unreached
from jobs.maintenance import messages as m
from jobs.maintenance.run import Run

LEVELS: Final = (65_536, 256, 1)
"""Rows of a piece, about; those of one are rows."""
LIMIT: Final = 512
END: Final = b"\xff"
"""Behind every key: keys of the system begin with a slash, and users' below /data/."""
PART: Final = "replicas"
ADVICE: Final = (
    "stop the member that differs from the others, remove it from the cluster, empty its node.data_dir, and let it "
    "join anew (docs/cluster.md)"
)


class CompactedMeanwhile(Exception):
    """The revision at which members are compared is gone on one of them."""


class Lost(Exception):
    """A member does not say what it has."""

    def __init__(self, member: str, error: Unreached | JobsError) -> None:
        super().__init__(str(error))
        self.member = member
        self.error = error


class Difference(Struct, frozen=True):
    """The first row in which members differ is behind `start`, and not behind `last`."""

    start: bytes
    last: bytes


class Comparison:
    def __init__(self, run: Run, members: Sequence[str]) -> None:
        self._run = run
        self._members = list(members)
        self._revision = 0

    async def carry_out(self) -> None:
        run, claim = self._run, self._run.claim
        if len(self._members) < 2:
            claim.node(run.members.name(run.members.me), outcome="replicas: there is nobody to compare with")
        while len(self._members) > 1:
            self._revision = await run.link.reached()
            try:
                difference = await self._compare(claim.position(PART), END, LEVELS[0], remember=True)
                if difference is not None:
                    await self._tell(await self._first(difference))
                return
            except CompactedMeanwhile:
                await claim.moved(PART, claim.position(PART))
            except Lost as lost:
                run.give_up(lost.member, PART, lost.error)
                self._members.remove(lost.member)

    async def _first(self, difference: Difference) -> bytes:
        """Return the first key in whose row they differ."""
        for rows in LEVELS[1:]:
            finer = await self._compare(difference.start, difference.last + b"\x00", rows)
            assert finer is not None, "what differs as a whole differs in a part"
            difference = finer
        return difference.last

    async def _compare(self, start: bytes, end: bytes, rows: int, *, remember: bool = False) -> Difference | None:
        """Return where members begin to differ within a range; None for nowhere."""
        run, claim = self._run, self._run.claim
        ways = [_Way(member, self._run, start, end, rows, self._revision) for member in self._members]
        equal = start
        seen = 0
        while True:
            await each([way for way in ways if not way.pieces], len(ways), _Way.read)
            whole = min(len(way.pieces) for way in ways)
            for _ in range(whole):
                heads = [way.pieces.popleft() for way in ways]
                if any(head != heads[0] for head in heads):
                    lasts = [head.last for head in heads]
                    return Difference(equal, min(lasts) if rows == 1 else max(lasts))
                equal, seen = heads[0].last + b"\x00", seen + heads[0].rows
                if remember:
                    claim.count(replicas=heads[0].rows)
            if remember:
                run.news.advance(seen, 0, f"{seen} rows are equal on {len(ways)} members")
                await claim.moved(PART, equal)
            rests = [way.pieces[0].last for way in ways if way.pieces]
            if rests and any(way.is_over and not way.pieces for way in ways):
                return Difference(equal, min(rests) if rows == 1 else max(rests))
            if not rests and all(way.is_over for way in ways):
                return None

    async def _tell(self, key: bytes) -> None:
        """Say what each member has at the first key that differs."""
        run = self._run
        shown = await each(self._members, len(self._members), lambda member: self._show(member, key))
        found = dict(zip(self._members, shown, strict=True))
        said = "; ".join(f"{run.members.name(member)} has {_in_words(one)}" for member, one in found.items())
        value = f"at revision {self._revision} members differ first at the key {text(key)!r}: {said}"
        others = [_in_words(one) for one in shown]
        odd = [member for member, one in found.items() if 2 * others.count(_in_words(one)) <= len(others)]
        for member in odd or self._members:
            await run.tell(member, PART, "failing", value, ADVICE)
        run.claim.count(differing=1)

    async def _show(self, member: str, key: bytes) -> m.Shown:
        try:
            return await self._run.members.show(member, key, self._revision)
        except Compacted:
            raise CompactedMeanwhile from None
        except (Unreached, JobsError) as error:
            raise Lost(member, error) from error


class _Way:
    """What one member says of a range, piece by piece."""

    def __init__(self, member: str, run: Run, start: bytes, end: bytes, rows: int, revision: int) -> None:
        self._member = member
        self._run = run
        self._order = m.Digest(start, end, b"", revision, rows, LIMIT)
        self.pieces: deque[m.Piece] = deque()
        self.is_over = False

    async def read(self) -> None:
        """Have pieces, unless there are none any more. Raises CompactedMeanwhile."""
        while not self.pieces and not self.is_over:
            try:
                digested = await self._run.members.digest(self._member, self._order)
            except (Unreached, JobsError) as error:
                raise Lost(self._member, error) from error
            if digested.compacted:
                raise CompactedMeanwhile
            self.pieces.extend(digested.pieces)
            self.is_over = not digested.cursor
            order = self._order
            self._order = m.Digest(order.start, order.end, digested.cursor, order.revision, order.rows, order.limit)


def _in_words(shown: m.Shown) -> str:
    if not shown.version:
        return "nothing"
    revisions = f"of revision {shown.mod_revision}, made at {shown.create_revision}"
    lease = f", lease {shown.lease}" if shown.lease else ""
    return f"version {shown.version} {revisions}, {shown.size_bytes} bytes (SHA-256 {shown.digest[:16]}){lease}"
