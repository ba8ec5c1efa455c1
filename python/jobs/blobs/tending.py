"""What a node does with its own blobs, by its own will or a member's order: have some, hash them anew, sweep, look."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from typing import Final, TypeAlias

from jobs._native import CorruptError, DiskFullError, NativeError, NotFoundError
from jobs.blobs import messages as m
from jobs.blobs.catalogue import Catalogue
from jobs.blobs.store import BlobStore, FetchFailed, Progress, Stat
from jobs.blobs.together import each
from jobs.clock import wall_ms

logger = logging.getLogger(__name__)

AT_ONCE: Final = 8
"""Blobs of one order."""
MAX_SUSPECTS: Final = 1_000

OnAdvance: TypeAlias = Callable[[m.Advance], None]


class Tending:
    """The only one who sweeps the store. The leader knows of what a fetch has brought when that returns."""

    def __init__(
        self, store: BlobStore, catalogue: Catalogue, member: str, *, max_blob_bytes: int, grace_ms: int
    ) -> None:
        self._store = store
        self._catalogue = catalogue
        self._member = member
        self._max_blob_bytes = max_blob_bytes
        self._grace_ms = grace_ms
        """Nothing younger is swept, whoever orders it."""
        self._deleting: dict[str, asyncio.Future[None]] = {}

    async def carry_out(self, order: m.Order, on_advance: OnAdvance) -> m.End:
        """Raises errors of `jobs.errors` for what stands in the way of all of it."""
        match order:
            case m.Fetch():
                return await self.fetch(order.blobs, on_advance, keep=order.keep)
            case m.Survey():
                return await self.survey()
            case m.Verify():
                return await self.verify(order, on_advance)
            case m.Sweep():
                return await self.sweep(order)
            case m.Check():
                return await self.check(order.blobs)

    async def survey(self) -> m.Room:
        used = await self._store.usage()
        return m.Room(used["free_bytes"], used["blobs"], used["bytes"])

    # --- have ---------------------------------------------------------------------------------------------------------

    async def fetch(self, blobs: Sequence[m.Sought], on_advance: OnAdvance, *, keep: bool = True) -> m.Fetched:
        """Have these here, and tell the leader if they are to stay. None of them is swept before it knows."""
        tally = _Tally(on_advance)
        async with AsyncExitStack() as holds:
            outcomes = await each(blobs, AT_ONCE, lambda sought: self._have(sought, tally, holds))
            here = [outcome for outcome in outcomes if isinstance(outcome, str)]
            if keep:
                await self._catalogue.held(self._member, tuple(here), ())
        failures = tuple(outcome for outcome in outcomes if isinstance(outcome, m.Failure))
        return m.Fetched(tally.had_bytes, tuple(here), failures, tally.sources(), tuple(tally.suspects))

    async def _have(self, sought: m.Sought, tally: _Tally, holds: AsyncExitStack) -> str | m.Failure:
        """Have one, and hold it. One that is here and turns out to be damaged is put aside then, and fetched."""
        outcome = await self._try(sought, tally, holds)
        if isinstance(outcome, m.Failure) and outcome.kind == "corrupt":
            outcome = await self._try(sought, tally, holds)
        return outcome

    async def _try(self, sought: m.Sought, tally: _Tally, holds: AsyncExitStack) -> str | m.Failure:
        blob = sought.hash
        if blob in self._deleting:
            await asyncio.shield(self._deleting[blob])
        providers = [provider for provider in sought.providers if provider != self._member]
        try:
            fetched = await self._store.fetch(
                blob, providers, max_bytes=self._max_blob_bytes, on_progress=lambda now: tally.advance(blob, now)
            )
            await holds.enter_async_context(self._store.reading(blob))
        except FetchFailed as failed:
            tally.tried(blob, ((one.peer, one.size_bytes, one.reason) for one in failed.providers))
            why = "; ".join(f"{one.peer}: {one.reason}" for one in failed.providers)
            told = "no provider gave it" if failed.kind == "unavailable" and why else failed.detail
            return m.Failure(blob, failed.kind, f"{told}: {why}" if why else told)
        except (NotFoundError, CorruptError) as error:
            return m.Failure(blob, "corrupt", str(error))
        except DiskFullError as error:
            return m.Failure(blob, "disk_full", str(error))
        except NativeError as error:
            return m.Failure(blob, "io", str(error))
        tally.tried(blob, ((one.peer, one.size_bytes, one.reason) for one in fetched.providers))
        tally.had(blob, fetched.size_bytes)
        return blob

    # --- look ---------------------------------------------------------------------------------------------------------

    async def check(self, blobs: Sequence[str]) -> m.Checked:
        """Tell the leader of those that are not here."""
        with self._store.uses() as used:
            found = await each(blobs, AT_ONCE, self._store.stat)
            gone = tuple(blob for blob, stat in zip(blobs, found, strict=True) if stat is None and blob not in used)
            await self._catalogue.held(self._member, (), gone)
        if gone:
            logger.warning("%s blobs that this node is to have are not here", len(gone), extra={"first": gone[0]})
        return m.Checked(gone)

    async def verify(self, order: m.Verify, on_advance: OnAdvance) -> m.Verified:
        """Hash blobs anew, one after the other, and mend what is damaged from those who have it too."""
        blobs: Iterable[m.Sought] = order.blobs
        after = None
        if not order.blobs:
            entries = await self._catalogue.entries(order.after, order.limit, self._member)
            blobs = [m.Sought(entry.hash, entry.holders) for entry in entries]
            after = entries[-1].hash if len(entries) == order.limit else None
        count = size_bytes = 0
        damages = []
        for sought in blobs:
            verdict = await self._store.verify(sought.hash)
            if verdict in ("damaged", "missing"):
                damages.append(await self._mend(sought, verdict))
            elif verdict == "mended":
                damages.append(m.Damage(sought.hash, "its tree of hashes was wrong", "it was made anew", mended=True))
            stat = await self._store.stat(sought.hash)
            count += 1
            size_bytes += 0 if stat is None else stat.size_bytes
            on_advance(m.Advance(size_bytes, 0))
        return m.Verified(count, size_bytes, tuple(damages), after)

    async def _mend(self, sought: m.Sought, verdict: str) -> m.Damage:
        found = "damaged, and put aside" if verdict == "damaged" else "missing"
        logger.warning("blob %s: %s", sought.hash, found)
        await self._catalogue.held(self._member, (), (sought.hash,))
        fetched = await self.fetch((sought,), lambda now: None)
        if fetched.failures:
            return m.Damage(sought.hash, found, f"not mended: {fetched.failures[0].detail}"[:4_096], mended=False)
        sources = ", ".join(source.member for source in fetched.sources if source.size_bytes)
        return m.Damage(sought.hash, found, f"mended from {sources or 'what was here'}", mended=True)

    # --- sweep --------------------------------------------------------------------------------------------------------

    async def sweep(self, order: m.Sweep) -> m.Swept:
        """Delete what of a page is not to be here, and is not young; what was used while it was asked about stays."""
        grace_ms = self._grace_ms if order.grace_ms is None else order.grace_ms
        if not order.dry_run:
            grace_ms = max(grace_ms, self._grace_ms)
        if not order.after and not order.dry_run:
            await self._store.discard_partials(grace_ms)
        with self._store.uses() as used:
            page = await self._store.page(order.after or None, order.limit)
            wanted = await self._catalogue.wanted(self._member, tuple(stat.hash for stat in page)) if page else ()
            spared: dict[str, int] = {}
            removed = []
            for stat, is_wanted in zip(page, wanted, strict=True):
                if is_wanted:
                    continue
                outcome, freed = await self._remove(stat, grace_ms, used, dry_run=order.dry_run)
                if outcome == "deleted":
                    removed.append(m.Removed(stat.hash, freed))
                elif outcome != "missing":
                    spared[outcome] = spared.get(outcome, 0) + 1
        return m.Swept(len(page), tuple(removed), spared, page[-1].hash if len(page) == order.limit else None)

    async def discard(self, blob: str) -> None:
        """Delete what the catalogue has refused, however young it is, unless it is to be here, or was used since."""
        with self._store.uses() as used:
            stat = await self._store.stat(blob)
            (is_wanted,) = await self._catalogue.wanted(self._member, (blob,))
            if stat is not None and not is_wanted:
                # Who adds it anew from here on makes it younger than that.
                await self._remove(stat, max(0, wall_ms() - stat.added_ms), used, dry_run=False)

    async def _remove(self, stat: Stat, grace_ms: int, used: set[str], *, dry_run: bool) -> tuple[str, int]:
        blob = stat.hash
        if blob in used:
            return "held", 0
        if dry_run:
            young = wall_ms() - stat.added_ms < grace_ms
            return ("recent", 0) if young else ("deleted", stat.size_bytes)
        if blob in self._deleting:
            # By another sweep, which tells what came of it.
            await asyncio.shield(self._deleting[blob])
            return "missing", 0
        # In the same turn as the look at what was used: who comes to want it from here on waits, and fetches it anew.
        deleted = self._deleting[blob] = asyncio.get_running_loop().create_future()
        try:
            return await self._store.delete(blob, min_age_ms=grace_ms)
        finally:
            del self._deleting[blob]
            deleted.set_result(None)


class _Tally:
    """How far a fetch of several blobs is, and what came of whom."""

    def __init__(self, on_advance: OnAdvance) -> None:
        self._on_advance = on_advance
        self._under_way: dict[str, Progress] = {}
        self.had_bytes = 0
        self._given: dict[str, int] = {}
        self._reasons: dict[str, str] = {}
        self.suspects: list[m.Suspect] = []

    def advance(self, blob: str, now: Progress) -> None:
        self._under_way[blob] = now
        done = sum(one.done_bytes for one in self._under_way.values())
        total = sum(one.total_bytes for one in self._under_way.values())
        self._on_advance(m.Advance(self.had_bytes + done, self.had_bytes + total))

    def had(self, blob: str, size_bytes: int) -> None:
        self._under_way.pop(blob, None)
        self.had_bytes += size_bytes

    def tried(self, blob: str, providers: Iterable[tuple[str, int, str]]) -> None:
        for member, size_bytes, reason in providers:
            self._given[member] = self._given.get(member, 0) + size_bytes
            if reason:
                self._reasons[member] = reason[:1_000]
                if len(self.suspects) < MAX_SUSPECTS:
                    self.suspects.append(m.Suspect(blob, member))

    def sources(self) -> tuple[m.Source, ...]:
        return tuple(m.Source(who, given, self._reasons.get(who, "")) for who, given in self._given.items())
