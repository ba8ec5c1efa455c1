"""Lets go of what is no longer kept: ended jobs, their output, old entries of the audit trail, marks of jobs gone.

It goes in small steps with pauses as long as the steps, so that others have their turn; the lists in the store are the
only state, and where a step was left off the next start goes on. Jobs that are about to go are named in
`Transitions.leaving`: nothing that begins after that can come to depend on them.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from msgspec import Struct

from jobs import jobs, keys, retention
from jobs.clock import wall_ms
from jobs.consensus import Consensus, ConsensusError
from jobs.control import surveys
from jobs.control.ended import EndedTotals
from jobs.control.jobreferences import JobReferences
from jobs.control.removal import Removal
from jobs.control.surveys import LISTS, Found, Survey, read_heads
from jobs.control.tasks import Spawn
from jobs.control.transitions import Change, Transitions, check
from jobs.control.trimming import AuditTrimmer, Trimmer
from jobs.errors import InternalError, StorageFull, Unavailable
from jobs.retention import AgeClock, Entry, Limits, Order, Step
from jobs.store import EQ, Delete, Store, Txn, VersionIs

logger = logging.getLogger(__name__)

STEP_JOBS: Final = 16
"""Ended jobs of each list that one step looks at."""
PAUSE: Final = 1.0
"""Pause after a step, in lengths of the step."""
URGENT_PAUSE: Final = 0.2
"""The same when jobs end faster than they go."""
SOON_MS: Final = 500
"""What is too much is noticed this soon."""
CHECK_MS: Final = 60_000
"""Longest sleep: a step of the wall clock is noticed this soon."""
RETRY_MS: Final = 5_000
BEHIND_MS: Final = 3_600_000
"""How far the clock by which jobs age has to be behind for a warning."""


class RetentionConfig(Struct, frozen=True, kw_only=True):
    """How much is kept of everything that would otherwise grow without end."""

    jobs: Limits = Limits()
    audit_ms: int = 90 * 86_400_000
    audit_max: int = 1_000_000
    gone_max: int = 1_000_000
    """Jobs that are no longer kept and of which it is known that they were here."""


class Retention:
    def __init__(
        self,
        consensus: Consensus,
        store: Store,
        transitions: Transitions,
        references: JobReferences,
        spawn: Spawn,
        config: RetentionConfig,
    ) -> None:
        self._consensus = consensus
        self._store = store
        self._transitions = transitions
        self._spawn = spawn
        self._limits = config.jobs
        self._audit = AuditTrimmer(consensus, store, max_entries=config.audit_max, keep_ms=config.audit_ms)
        self._gone = Trimmer(consensus, store, keys.GONE, config.gone_max)
        self.totals = EndedTotals(store)
        self.removal = Removal(consensus, store, transitions, references)
        self.removal.on_removed = self.totals.on_removed
        self._clock = AgeClock()
        self._clock_at_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._wake_ms: int | None = None
        self._running = False
        self._stopped = False
        self._warned = False
        self._turn = asyncio.Lock()
        """Of steps: what two of them do to the same jobs would be undone by whichever ends first."""

    @property
    def behind_ms(self) -> int:
        """How far the clock by which jobs age is behind the wall clock."""
        return 0 if self._clock.ms is None else max(0, wall_ms() - self._clock.ms)

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._clock_at_s = self._loop.time()
        self._now_ms(self._heads()[0])
        self._spawn(self.totals.count())
        self._wake(SOON_MS)

    def stop(self) -> None:
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()

    def on_change(self, change: Change) -> None:
        """Take note of a committed change of a job."""
        self.totals.on_change(change)
        if not change.new.state.is_final or change.new.is_task:
            return
        own_ms = retention.own_moment_ms(change.new)
        if own_ms is not None:
            self._wake(max(0, own_ms - wall_ms()))
        totals = self.totals.known
        if totals is not None and (totals.jobs > self._limits.max_jobs or totals.bytes > self._limits.max_bytes):
            self._wake(SOON_MS)

    # --- when -----------------------------------------------------------------------------------------------------

    def _wake(self, delay_ms: int) -> None:
        """Begin a round after a delay, unless one begins before."""
        delay_ms = min(delay_ms, CHECK_MS)
        at_ms = int(self._loop.time() * 1_000) + delay_ms
        if self._stopped or (self._wake_ms is not None and self._wake_ms <= at_ms):
            return
        self._wake_ms = at_ms
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(delay_ms / 1_000, self._begin)

    def _begin(self) -> None:
        self._wake_ms = self._timer = None
        if self._running:
            self._wake(SOON_MS)
        elif not self._stopped:
            self._running = True
            self._spawn(self._round())

    async def _round(self) -> None:
        """Do step after step until nothing is left to do now."""
        delay_ms = RETRY_MS
        try:
            while True:
                began = self._loop.time()
                busy, wake_ms, now_ms = await self._step_jobs()
                busy |= await self._step_lists(now_ms)
                if not busy:
                    moments = [moment for moment in (wake_ms, self._audit.next_moment_ms()) if moment is not None]
                    delay_ms = max(SOON_MS, min(moments, default=now_ms + CHECK_MS) - now_ms)
                    return
                pause = URGENT_PAUSE if retention.is_urgent(self.totals.known, self._limits) else PAUSE
                await asyncio.sleep(pause * (self._loop.time() - began))
        except (Unavailable, StorageFull, ConsensusError) as error:
            logger.warning("what is no longer kept cannot be deleted now: %s", error)
        finally:
            self._running = False
            self._wake(delay_ms)

    async def _step_jobs(self) -> tuple[bool, int | None, int]:
        """Let some jobs go whose time is over; tell whether there may be more, when the next one's is, and the time."""
        async with self._turn:
            heads, known = self._heads()
            now_ms = self._now_ms(heads)
            plan = retention.plan(heads, self.totals.known, self._limits, now_ms, known)
            return await self._carry_out(plan.steps, now_ms), plan.wake_ms, now_ms

    async def _step_lists(self, now_ms: int) -> bool:
        async with self._turn:
            busy = await self._audit.step(now_ms)
            return await self._gone.step(now_ms) or busy

    # --- when somebody asks ---------------------------------------------------------------------------------------

    async def clean_jobs(self) -> tuple[dict[str, int], int, bool]:
        """Let some jobs go whose time is over: how many, about their bytes, and whether there may be more."""
        before = self.removal.tally()
        busy, _, _ = await self._step_jobs()
        jobs_gone, outputs, size_bytes = (now - then for now, then in zip(self.removal.tally(), before, strict=True))
        return {"jobs": jobs_gone, "outputs": outputs}, size_bytes, busy

    async def clean_lists(self) -> tuple[dict[str, int], bool]:
        """The same of the audit trail and the marks of jobs gone."""
        before = self._audit.removed_total, self._gone.removed_total
        busy = await self._step_lists(self._now_ms(self._heads()[0]))
        gone = {"audit": self._audit.removed_total - before[0], "marks": self._gone.removed_total - before[1]}
        return gone, busy

    async def survey_jobs(self, survey: Survey | None) -> Found:
        """Return what of a page of jobs would go now; without a survey, of the first."""
        survey = survey or surveys.begin(self.totals.known, self._limits)
        now_ms = self._now_ms(self._heads()[0])
        return await surveys.look(self._store, self._transitions, self.removal, self._limits, now_ms, survey)

    async def survey_lists(self) -> dict[str, int]:
        """Return how many entries of the lists would go now."""
        now_ms = self._now_ms(self._heads()[0])
        return {"audit": await self._audit.survey(now_ms), "marks": await self._gone.survey(now_ms)}

    def _now_ms(self, heads: list[Entry]) -> int:
        """Return the time by which things age."""
        moments = [retention.next_moment_ms(entry, self._limits) for entry in heads]
        audit_ms = self._audit.next_moment_ms()
        earliest_ms = min([*moments, *([] if audit_ms is None else [audit_ms])], default=None)
        at_s, wall = self._loop.time(), wall_ms()
        elapsed_ms = int((at_s - self._clock_at_s) * 1_000)
        self._clock = retention.advance(self._clock, elapsed_ms, wall, earliest_ms)
        self._clock_at_s = at_s
        now_ms = self._clock.ms
        assert now_ms is not None
        if wall - now_ms > BEHIND_MS and not self._warned:
            logger.warning(
                "the clock jumped ahead, or the node was off for long: by age things go %d times as fast as they came",
                retention.SPEED,
                extra={"behind_s": (wall - now_ms) // 1_000},
            )
        self._warned = wall - now_ms > BEHIND_MS
        return now_ms

    # --- what -----------------------------------------------------------------------------------------------------

    def _heads(self) -> tuple[list[Entry], Order | None]:
        """Read the jobs of each list that are next to go, as `read_heads`."""
        return read_heads(self._store, self._limits, STEP_JOBS)

    async def _carry_out(self, steps: list[Step], now_ms: int) -> bool:
        """Do the steps; tell whether there may be more to do. A job of which that fails does not keep the others."""
        if not steps:
            return False
        leaving = {step.entry.job for step in steps}
        self._transitions.leaving |= leaving
        try:
            # Whatever had come to depend on them before is stored before this.
            check(await self._consensus.propose(Txn()))
            settling = (self._settle(step, now_ms) for step in steps)
            done = await asyncio.gather(*settling, return_exceptions=True)
        finally:
            self._transitions.leaving -= leaving
        failed = 0
        for step, error in zip(steps, done, strict=True):
            if isinstance(error, InternalError):
                logger.error("an ended job cannot be deleted", exc_info=error, extra={"job": step.entry.job})
                failed += 1
            elif error is not None:
                raise error
        return failed < len(steps)

    async def _settle(self, step: Step, now_ms: int) -> None:
        """Do with one job what its record says, which is newer than its place in the list."""
        entry = step.entry
        stored = self._transitions.read(entry.job)
        if stored is None:
            await self._forget(entry)
            return
        record = stored.record
        if not record.state.is_final:
            return
        what = "job" if step.forced else retention.due(record, self._limits, now_ms)
        if what is not None and await self.removal.is_needed(entry.job, record):
            until_ms = retention.hold_ms(record, now_ms)
            await self._transitions.apply(entry.job, lambda record: jobs.on_held(record, until_ms))
        elif what == "job":
            await self.removal.remove(entry.job)
        elif what == "logs":
            await self.removal.remove_output(entry.job)
        elif record.held_until_ms is not None:
            await self._transitions.apply(entry.job, lambda record: jobs.on_held(record, None))

    async def _forget(self, entry: Entry) -> None:
        """Take an entry off its list that belongs to no job: nothing writes one, but it would stay at the head."""
        logger.error("an ended job is listed that is not there", extra={"job": entry.job})
        key = keys.ended(LISTS[entry.kind], entry.time_ms, entry.job)
        check(await self._consensus.propose(Txn((VersionIs(keys.state(entry.job), EQ, 0),), (Delete(key),))))
