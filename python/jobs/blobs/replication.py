"""Has as many nodes keep a blob as are to: at once when it comes, and brings here what others have."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable, Sequence
from typing import Final

from msgspec import structs

from jobs.blobs import messages as m
from jobs.blobs.catalogue import Catalogue, Entry
from jobs.blobs.members import Members
from jobs.blobs.placement import choose, order_providers
from jobs.blobs.tending import OnAdvance
from jobs.blobs.together import each
from jobs.errors import BlobDamaged, BlobUnavailable, JobsError, StorageFull
from jobs.forward.orders import Unreached

logger = logging.getLogger(__name__)

SURVEY_S: Final = 3.0
"""A member that has not said within this what room it has is not chosen."""
SURVEY_TTL_S: Final = 5.0
"""For so long what it said is believed."""
MAX_SUSPECTS: Final = 1_000
"""Blobs that members are still to be asked for, which did not give them."""


def unheard(now: m.Advance) -> None:
    """Nobody wants to know how far it is."""


class Replicator:
    """Implements `host.Replicator`."""

    def __init__(self, members: Members, catalogue: Catalogue) -> None:
        self.members = members
        self._catalogue = catalogue
        self._rooms: dict[str, tuple[float, int]] = {}
        self._surveys: dict[str, asyncio.Task[None]] = {}
        self._suspects: dict[str, set[str]] = {}
        self._checking: asyncio.Task[None] | None = None

    def stop(self) -> None:
        for task in (*self._surveys.values(), *([self._checking] if self._checking else ())):
            task.cancel()

    def name_of(self, member: str) -> str:
        return self.members.name(member)

    # --- on other nodes -----------------------------------------------------------------------------------------------

    async def spread(self, entry: Entry, on_advance: OnAdvance = unheard) -> Entry:
        """Return when as many nodes have a blob and its children as are to, or all that are reached; the entry with
        those that have it.

        Raises StorageFull or BlobUnavailable when members that are reached cannot take it: it stays the owner's, and
        the leader sees to the rest when it can.
        """
        have = self.members.ids & frozenset(entry.holders)
        wanted = min(entry.replicas, len(self.members.ids))
        if len(have) >= wanted:
            return entry
        spreading = _Spreading(self, entry, wanted - len(have), on_advance)
        rooms = await self.rooms()
        spreading.refused |= {
            member: f"it has room for {free} bytes more" for member, free in rooms.items() if free < entry.size_bytes
        }
        candidates = choose(rooms, entry.hash, entry.size_bytes, have)
        # Whoever has not said in time what room it has may still take it.
        candidates += sorted(self.members.reached - have - frozenset(rooms))
        await spreading.on(candidates, await self.blobs_of(entry))
        if len(spreading.done) < wanted - len(have) and (refused := spreading.refused):
            raise self._refusal(entry, have | frozenset(spreading.done), refused, spreading.is_full)
        return structs.replace(entry, holders=(*entry.holders, *spreading.done))

    async def put_on(self, entry: Entry, member: str, on_advance: OnAdvance = unheard) -> m.Fetched:
        """Have one member keep a blob and its children. Raises Unreached, StorageFull, BlobUnavailable, BlobDamaged."""
        return await self.give(member, entry, await self.blobs_of(entry), on_advance=on_advance)

    async def give(
        self,
        member: str,
        entry: Entry,
        blobs: Sequence[str],
        *,
        keep: bool = True,
        providers: tuple[str, ...] = (),
        on_advance: OnAdvance = unheard,
    ) -> m.Fetched:
        """Have a member fetch blobs of an entry, lot by lot, up to the first lot with one that it could not have; from
        these providers only where some are given. Raises Unreached, StorageFull, BlobUnavailable, BlobDamaged."""
        total = m.Fetched(0)
        for lot in m.lots(blobs):
            had = total.size_bytes

            def advanced(now: m.Advance, had: int = had) -> None:
                on_advance(m.Advance(had + now.done_bytes, max(had + now.total_bytes, entry.size_bytes)))

            # Lot by lot: a collection may have 100,000 blobs.
            sought = (
                tuple(m.Sought(blob, providers) for blob in lot)
                if providers
                else tuple(self.sought(lot, entry.holders, member))
            )
            fetched = await self.members.fetch(member, m.Fetch(sought, keep), advanced)
            self.suspect(fetched.suspects)
            if fetched.failures:
                self._rooms.pop(member, None)
                raise self.failed(fetched.failures[0], self.name_of(member))
            total = added(total, fetched)
        return total

    async def rooms(self) -> dict[str, int]:
        """Return the bytes that each member that is reached may still take, as it has said a moment ago."""
        now_s = asyncio.get_running_loop().time()
        reached = self.members.reached
        self._rooms = {who: known for who, known in self._rooms.items() if who in reached}
        stale = [who for who in reached if who not in self._rooms or now_s - self._rooms[who][0] > SURVEY_TTL_S]
        if stale:
            await asyncio.wait([self._survey_once(member) for member in stale])
        return {who: free for who, (_, free) in self._rooms.items()}

    def _survey_once(self, member: str) -> asyncio.Task[None]:
        """Ask a member, once for all who want to know."""
        if member not in self._surveys:
            self._surveys[member] = task = asyncio.get_running_loop().create_task(self._survey(member))
            task.add_done_callback(lambda _: self._surveys.pop(member, None))
        return self._surveys[member]

    async def _survey(self, member: str) -> None:
        try:
            async with asyncio.timeout(SURVEY_S):
                room = await self.members.survey(member)
        except (TimeoutError, Unreached, JobsError) as error:
            logger.info("no word of the room on %s: %s", self.name_of(member), error)
            self._rooms.pop(member, None)
        else:
            self._rooms[member] = asyncio.get_running_loop().time(), room.free_bytes

    def _refusal(self, entry: Entry, have: Collection[str], refused: dict[str, str], is_full: bool) -> JobsError:
        on = ", ".join(sorted(map(self.name_of, have)))
        why = "; ".join(f"{self.name_of(who)}: {self.members.named_in(text)}" for who, text in refused.items())
        text = f"the blob {entry.hash} is to be on {entry.replicas} nodes, and is on {on or 'none'}: {why}"
        expected = "room on other nodes; it is kept where it is, and copied on when that is possible"
        return StorageFull(text, expected=expected) if is_full else BlobUnavailable(text, expected=expected)

    # --- here ---------------------------------------------------------------------------------------------------------

    async def bring(self, entry: Entry) -> None:
        """Have here what other nodes hold, with its children, for as long as no sweep finds that it is not to be here.

        Raises BlobUnavailable, BlobDamaged, StorageFull.
        """
        await self.give(self.members.me, entry, await self.blobs_of(entry), keep=False)

    async def have_here(
        self, entry: Entry, *, providers: tuple[str, ...] = (), on_advance: OnAdvance = unheard
    ) -> m.Fetched:
        """Have here a blob and its children, and keep them. Raises as `bring`."""
        blobs = await self.blobs_of(entry)
        return await self.give(self.members.me, entry, blobs, providers=providers, on_advance=on_advance)

    async def blobs_of(self, entry: Entry) -> tuple[str, ...]:
        """Return a blob and its children."""
        return (entry.hash, *(await self._catalogue.children(entry.hash) if entry.kind == "collection" else ()))

    def sought(self, blobs: Iterable[str], holders: Iterable[str], seeker: str) -> list[m.Sought]:
        """Return blobs with whom to have them from: those that are said to have them, and then all others, who may have
        a child that is elsewhere, or a copy of which nobody knows."""
        members, reached = self.members.ids - {seeker}, self.members.reached
        first = members & frozenset(holders)
        return [
            m.Sought(
                blob,
                order_providers(first, reached, blob, seeker)
                + order_providers((members - first) & reached, reached, blob, seeker),
            )
            for blob in blobs
        ]

    def failed(self, failure: m.Failure, name: str) -> JobsError:
        """Return the error of a blob that a node could not have."""
        text = f"{name} cannot have the blob {failure.hash}: {self.members.named_in(failure.detail)}"
        match failure.kind:
            case "disk_full" | "limit":
                return StorageFull(text, expected="more room on that node")
            case "corrupt":
                return BlobDamaged(text, expected="a good copy on another node")
            case _:
                return BlobUnavailable(text, expected="the same once a node that has it is reached", retry_after_s=1)

    # --- those that did not give ----------------------------------------------------------------------------------

    def suspect(self, suspects: Iterable[m.Suspect]) -> None:
        """Have members look whether they still have what they did not give."""
        for suspect in suspects:
            if sum(map(len, self._suspects.values())) < MAX_SUSPECTS and suspect.member in self.members.ids:
                self._suspects.setdefault(suspect.member, set()).add(suspect.hash)
        if self._suspects and self._checking is None:
            self._checking = asyncio.get_running_loop().create_task(self._check())

    async def _check(self) -> None:
        try:
            while self._suspects:
                member, blobs = self._suspects.popitem()
                try:
                    async with asyncio.timeout(SURVEY_S * 10):
                        gone = (await self.members.check(member, tuple(sorted(blobs)))).gone
                except (TimeoutError, Unreached, JobsError) as error:
                    logger.info("%s did not look for what it did not give: %s", self.name_of(member), error)
                else:
                    if gone:
                        logger.warning("%s no longer has %s blobs", self.name_of(member), len(gone))
        finally:
            self._checking = None


class _Spreading:
    """One blob on its way to so many members."""

    def __init__(self, replicator: Replicator, entry: Entry, count: int, on_advance: OnAdvance) -> None:
        self._replicator = replicator
        self._entry = entry
        self._count = count
        self._on_advance = on_advance
        self._far: dict[str, m.Advance] = {}
        self.done: list[str] = []
        self.refused: dict[str, str] = {}
        """Why members cannot have it that are reached."""
        self._others = 0
        """Refusals for another cause than a lack of room."""

    @property
    def is_full(self) -> bool:
        return self._others == 0

    async def on(self, candidates: list[str], blobs: tuple[str, ...]) -> None:
        """Try the candidates in turn, as many at once as are needed."""
        left = iter(candidates)

        async def one(_: int) -> None:
            for member in left:
                if await self._try(member, blobs):
                    return

        await each(range(self._count), self._count, one)

    async def _try(self, member: str, blobs: tuple[str, ...]) -> bool:
        replicator = self._replicator

        def advanced(now: m.Advance) -> None:
            self._far[member] = now
            done = sum(one.done_bytes for one in self._far.values())
            self._on_advance(m.Advance(done, sum(one.total_bytes for one in self._far.values())))

        try:
            await replicator.give(member, self._entry, blobs, on_advance=advanced)
        except Unreached as error:
            logger.warning("blob %s: %s", self._entry.hash, error)
            return False
        except JobsError as error:
            logger.warning("blob %s: %s", self._entry.hash, error)
            self.refused[member] = error.detail
            self._others += not isinstance(error, StorageFull)
            return False
        self.done.append(member)
        return True


def added(one: m.Fetched, other: m.Fetched) -> m.Fetched:
    """Return what two orders to fetch came to together."""
    sources = {source.member: source for source in one.sources}
    for source in other.sources:
        known = sources.get(source.member, m.Source(source.member, 0))
        size_bytes = known.size_bytes + source.size_bytes
        sources[source.member] = m.Source(source.member, size_bytes, source.reason or known.reason)
    return m.Fetched(
        one.size_bytes + other.size_bytes,
        one.here + other.here,
        one.failures + other.failures,
        tuple(sources.values()),
        one.suspects + other.suspects,
    )
