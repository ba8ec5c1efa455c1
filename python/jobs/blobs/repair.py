"""Keeps the factor: has other members take what too few have, on the node that leads, whenever something changes that
may help. And at a node's start: what it was to have and lost, the leader is told."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final, Protocol

from jobs import keys
from jobs.blobs import messages as m
from jobs.blobs.catalogue import Catalogue, Entry
from jobs.blobs.placement import backoff_s, choose
from jobs.blobs.replication import Replicator, unheard
from jobs.blobs.store import BlobStore
from jobs.blobs.tending import AT_ONCE, Tending
from jobs.blobs.together import each
from jobs.clock import wall_ms
from jobs.control.hub import Waiter
from jobs.errors import JobsError
from jobs.forward.orders import Unreached
from jobs.logs import Seldom
from jobs.service import Whereabouts

logger = logging.getLogger(__name__)

SETTLE_MS: Final = 10_000
"""What was added or referred to within this time may be on its way to its nodes."""
PAUSE_S: Final = 0.5
"""Between two looks at least: changes come in bursts."""
REST: Final = 4
"""Looking may take one part in so many and one of the time, however much lacks nodes and however often it changes."""
LONGEST_REST_S: Final = 30.0
"""Longest wait after a failure before a change is heard."""
SLOW_S: Final = 600.0
"""Between two looks when nothing has changed."""
LOTS_AT_ONCE: Final = 4
PAGE: Final = 256


class _Site(Whereabouts, Protocol):
    def waiter(self, *prefixes: bytes) -> AbstractContextManager[Waiter]: ...


class Repairer:
    """`chance` gives numbers in [0, 1)."""

    def __init__(self, site: _Site, catalogue: Catalogue, replicator: Replicator, chance: Callable[[], float]) -> None:
        self._site = site
        self._catalogue = catalogue
        self._replicator = replicator
        self._chance = chance
        self._bell: Waiter | None = None
        self._watched: asyncio.Future[None] | None = None
        self._seldom = Seldom(60.0)
        self.repaired = 0
        """Copies made since the start."""
        self._work = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        self._work.cancel()
        await asyncio.wait([self._work])

    def ring(self) -> None:
        """Something has changed: a member is reached again."""
        if self._bell is not None:
            self._bell.ring()

    async def _run(self) -> None:
        failures = 0
        clock = asyncio.get_running_loop().time
        with self._site.waiter(keys.BLOBS_LACKING, keys.MEMBERS) as self._bell:
            while True:
                while self._site.control is None:
                    failures = 0
                    await asyncio.wait([self._site.changed()])
                wait_s, began_s = SLOW_S, clock()
                try:
                    look = await self._look()
                    failures = failures + 1 if look.failed else 0
                    wait_s = SETTLE_MS / 1_000 if look.young else SLOW_S
                except JobsError as error:
                    logger.info("blobs that too few nodes have cannot be looked at: %s", error)
                    failures += 1
                except Exception:
                    logger.exception("copies of blobs could not be made")
                    failures += 1
                rest_s = max(PAUSE_S, REST * (clock() - began_s))
                if failures:
                    backoff = backoff_s(failures, self._chance())
                    wait_s, rest_s = min(wait_s, backoff), max(rest_s, backoff)
                self._ring_at_change()
                # Whatever rings meanwhile is heard after it.
                rest_s = min(rest_s, LONGEST_REST_S)
                await asyncio.sleep(rest_s)
                await self._bell.wait(max(0.0, wait_s - rest_s))

    def _ring_at_change(self) -> None:
        """Look again as well when leadership has come back to this node."""
        changed = self._site.changed()
        if changed is not self._watched:
            self._watched = changed
            changed.add_done_callback(lambda _: self.ring())

    async def _look(self) -> _Look:
        """Look at all blobs that too few have, page by page, and have copies made."""
        look, after = _Look(), ""
        while self._site.control is not None:
            page = await self._catalogue.lacking(after, PAGE)
            if page:
                lots = self._lots(page, await self._replicator.rooms(), look)
                await each(lots.items(), LOTS_AT_ONCE, lambda lot: self._carry_out(*lot, look))
            if len(page) < PAGE:
                break
            after = page[-1].hash
        return look

    def _lots(self, page: tuple[Entry, ...], rooms: dict[str, int], look: _Look) -> dict[str, list[m.Sought]]:
        """Return which members are to have what."""
        members = self._replicator.members
        ids, reached, now_ms = members.ids, members.reached, wall_ms()
        lots: dict[str, list[m.Sought]] = defaultdict(list)
        for entry in page:
            holders = ids & frozenset(entry.holders)
            missing = min(entry.replicas, len(ids)) - len(holders)
            if missing <= 0:
                continue
            if now_ms - entry.touched_ms < SETTLE_MS:
                look.young = True
                continue
            if not holders & reached:
                self._tell_unheld(entry, bool(holders))
                continue
            for member in choose(rooms, entry.hash, entry.size_bytes, holders)[:missing]:
                rooms[member] -= entry.size_bytes
                lots[member] += self._replicator.sought((entry.hash,), entry.holders, member)
        return lots

    def _tell_unheld(self, entry: Entry, has_holders: bool) -> None:
        why = "the members that have it are not reached" if has_holders else "no member has it"
        if (left_out := self._seldom.left_out(why)) is not None:
            logger.warning("blob %s: %s", entry.hash, why, extra={"left_out": left_out})

    async def _carry_out(self, member: str, blobs: list[m.Sought], look: _Look) -> None:
        for lot in m.lots(blobs):
            await self._carry_out_lot(member, lot, look)

    async def _carry_out_lot(self, member: str, lot: tuple[m.Sought, ...], look: _Look) -> None:
        name = self._replicator.name_of(member)
        try:
            fetched = await self._replicator.members.fetch(member, m.Fetch(lot), unheard)
        except (Unreached, JobsError) as error:
            look.failed = True
            logger.warning("%s did not make copies of %s blobs: %s", name, len(lot), error)
            return
        self._replicator.suspect(fetched.suspects)
        self.repaired += len(fetched.here)
        if fetched.failures:
            look.failed = True
            first = self._replicator.failed(fetched.failures[0], name)
            logger.warning("%s of %s copies were not made: %s", len(fetched.failures), len(lot), first)
        if fetched.here:
            logger.info("%s has copies of %s more blobs", name, len(fetched.here))


class _Look:
    """What came of looking."""

    def __init__(self) -> None:
        self.failed = False
        self.young = False


class Reconciler:
    """Compares once, at a node's start, what it is to have with what it has."""

    def __init__(
        self, store: BlobStore, catalogue: Catalogue, tending: Tending, member: str, chance: Callable[[], float]
    ) -> None:
        self._store = store
        self._catalogue = catalogue
        self._tending = tending
        self._member = member
        self._chance = chance
        self._work = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        self._work.cancel()
        await asyncio.wait([self._work])

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                await self._compare()
                return
            except JobsError as error:
                failures += 1
                logger.info("what this node has cannot be compared with the catalogue yet: %s", error)
            except Exception:
                failures += 1
                logger.exception("what this node has could not be compared with the catalogue")
            await asyncio.sleep(backoff_s(failures, self._chance()))

    async def _compare(self) -> None:
        checked = gone = found = 0
        after = ""
        while page := await self._catalogue.entries(after, PAGE, self._member):
            after = page[-1].hash
            checked += len(page)
            gone += len((await self._tending.check(tuple(entry.hash for entry in page))).gone)
        after = ""
        while page := await self._catalogue.lacking(after, PAGE):
            after = page[-1].hash
            found += await self._claim([entry.hash for entry in page if self._member not in entry.holders])
        if checked or found:
            logger.info("compared with the catalogue", extra={"blobs": checked, "gone": gone, "found": found})

    async def _claim(self, blobs: list[str]) -> int:
        """Tell the leader which of these are here after all, as after a disk that was away has come back."""
        stats = await each(blobs, AT_ONCE, self._store.stat)
        here = [m.Sought(stat.hash) for stat in stats if stat is not None]
        return sum([len((await self._tending.fetch(lot, unheard)).here) for lot in m.lots(here)])
