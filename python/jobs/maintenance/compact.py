"""`compact`: gives back old revisions, the log behind a snapshot, and what of the store's file holds nothing."""

from __future__ import annotations

import asyncio
from typing import Final

from msgspec import Struct

from jobs import keys, records
from jobs._native import CompactedError
from jobs.clock import wall_ms
from jobs.control.moments import revision_at
from jobs.control.transitions import read_job
from jobs.errors import JobsError
from jobs.forward.orders import Unreached
from jobs.maintenance import messages as m
from jobs.maintenance.run import Run
from jobs.protocol.model import MaintenanceCompact
from jobs.records import SyncRecord
from jobs.store import Store, prefix_end

EVENTS: Final = 4_096
"""Counted in one step."""


class Kept(Struct, frozen=True, kw_only=True):
    """How much history stays where the job does not say."""

    age_s: float
    events: int


class Compaction:
    def __init__(self, run: Run, payload: MaintenanceCompact, store: Store, kept: Kept) -> None:
        self._run = run
        self._payload = payload
        self._store = store
        self._kept = Kept(
            age_s=kept.age_s if payload.history_age_s is None else payload.history_age_s,
            events=kept.events if payload.history_events is None else payload.history_events,
        )

    async def carry_out(self) -> None:
        """History first, as giving it back takes room in the log; the file last, which both have made emptier."""
        chosen = self._run.members.chosen(self._payload.nodes)
        if "history" in self._payload.parts and self._run.claim.goes_on("history"):
            await self._history()
        if "log" in self._payload.parts:
            await self._each(chosen, "log", m.CutLog(self._payload.dry_run))
        if "file" in self._payload.parts:
            await self._each(chosen, "file", m.CompactFile(self._payload.dry_run))

    async def _each(self, chosen: list[str], part: str, order: m.CutLog | m.CompactFile) -> None:
        """One member after the other: so most of them are as quick as ever."""
        run, claim = self._run, self._run.claim
        for member in chosen:
            name, step = run.members.name(member), f"{part} {member}"
            if not claim.goes_on(step):
                continue
            run.news.advance(0, 0, f"{part} of {name}")
            try:
                freed = await run.members.free(member, order, run.advanced(f"{part} of {name}"))
            except (Unreached, JobsError) as error:
                run.give_up(member, part, error)
            else:
                freed_bytes = max(0, freed.before_bytes - freed.after_bytes)
                claim.node(name, freed_bytes=freed_bytes, examined=freed.examined, outcome=freed.outcome)
                claim.count(**{f"{part}_bytes": freed_bytes})
            await claim.ended(step)

    # --- history ------------------------------------------------------------------------------------------------------

    async def _history(self) -> None:
        run, claim = self._run, self._run.claim
        revision, why = await self._target()
        if why:
            claim.node(run.members.name(run.members.me), outcome=why)
        if self._payload.dry_run:
            claim.count(events=await self._count(revision))
        else:
            await self._give_back(revision)
        await claim.ended("history")

    async def _target(self) -> tuple[int, str]:
        """Return the revision up to which history goes, and in words who keeps it from more."""
        run, kept = self._run, self._kept
        now_revision = await run.link.reached()
        old = now_revision if kept.age_s == 0 else revision_at(self._store, wall_ms() - int(kept.age_s * 1_000))
        # Every revision has a change at least.
        target = min(old, max(0, now_revision - kept.events))
        needed = [(position, f"the sync {name}") for name, position in self._syncs()]
        for member in sorted(run.members.ids):
            try:
                revision = await run.members.needed(member)
            except (Unreached, JobsError):
                continue  # its readers are told that what they want is gone, should there be any
            if revision is not None:
                needed.append((revision, f"a reader on {run.members.name(member)}"))
        first, who = min(needed, default=(target, ""))
        if first >= target:
            return target, ""
        return first, f"history stays from revision {first} on: {who} needs it"

    def _syncs(self) -> list[tuple[str, int]]:
        """Return the syncs that read from here, and how far they are."""
        rows, _ = self._store.range(keys.SYNCS, prefix_end(keys.SYNCS), limit=10_000)
        found = []
        for key, value, *_ in rows:
            record = records.decode(SyncRecord, value)
            if not record.source and record.position and self._runs(record):
                found.append((key[len(keys.SYNCS) :].decode(), record.position))
        return found

    def _runs(self, record: SyncRecord) -> bool:
        """Tell whether the job of a sync has not ended; one that begins anew later compares what it then has not."""
        job = None if record.job is None else read_job(self._store, record.job)
        return job is not None and not job.record.state.is_final

    async def _count(self, revision: int) -> int:
        """Return how many changes there are in the history that would go."""
        seen = self._store.compact_revision
        count = 0
        while seen < revision:
            try:
                events, seen = await self._run.pacing.step(asyncio.to_thread(self._page, seen))
            except CompactedError:
                seen = self._store.compact_revision
                continue
            count += sum(event[0] <= revision for event in events)
            self._run.news.advance(0, 0, f"{count} changes counted")
        return count

    def _page(self, after: int) -> tuple[list[tuple[int, bytes, bytes | None, int, int, int]], int]:
        return self._store.events(after, [b""], limit=EVENTS)

    async def _give_back(self, revision: int) -> None:
        run, claim = self._run, self._run.claim
        history = await run.link.compact(claim.token, revision)
        before = history.events
        while history.more:
            history = await run.pacing.step(run.link.forget(claim.token))
            gone = max(0, before - history.events)
            run.news.advance(gone, 0, "history is given back")
            claim.count(events=gone)
            before = history.events
            await claim.moved("history", b"")
