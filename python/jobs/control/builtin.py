"""The schedules by which a cluster looks after itself: made once each, and from then on like any other.

Which were made is on record, so that one that an administrator has changed or deleted stays as they left it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from jobs import keys, records, schedules
from jobs.clock import wall_ms
from jobs.consensus import Consensus
from jobs.control.audit import audit_entry
from jobs.control.once import MAX_TRIES
from jobs.control.schedules import Schedules
from jobs.control.transitions import check
from jobs.errors import StorageFull
from jobs.protocol.model import (
    MaintenanceCleanup,
    MaintenanceCompact,
    MaintenanceHealth,
    MaintenanceJob,
    MaintenanceMetrics,
    MaintenancePayload,
    MaintenanceVerify,
    Reason,
    Retention,
    Retry,
    Schedule,
)
from jobs.records import BuiltInRecord
from jobs.service import Caller
from jobs.store import EQ, Compare, ModRevisionIs, Op, Put, Store, Txn

logger = logging.getLogger(__name__)

QUEUE: Final = "maintenance"
"""One of their own, which nothing else holds up."""
_SYSTEM: Final = Caller(uid=0, gid=0, admin=True)
_HOUR_S: Final = 3_600.0
_DAY_S: Final = 86_400.0
_RETRY: Final = Retry(max_attempts=5, cap_s=60.0, reasons=[Reason.WORKER_LOST])


class BuiltIn(Struct, frozen=True):
    """A schedule as it is made."""

    name: str
    cron: str
    """In UTC; not at the same minute as others."""
    payload: MaintenancePayload
    timeout_s: float
    keep_s: float
    """How long its ended jobs are kept."""

    def schedule(self) -> Schedule:
        """Return it as a user would have set it."""
        job = MaintenanceJob(
            payload=self.payload,
            queue=QUEUE,
            timeout_s=self.timeout_s,
            retry=_RETRY,
            retention=Retention(keep_s=self.keep_s),
        )
        return Schedule(cron=self.cron, overlap="skip", catch_up="one", job=job)


BUILT_IN: Final = (
    BuiltIn("jobs-health", "*/15 * * * *", MaintenanceHealth(), 10 * 60.0, _DAY_S),
    BuiltIn("jobs-cleanup", "17 * * * *", MaintenanceCleanup(), _HOUR_S, 3 * _DAY_S),
    BuiltIn("jobs-metrics", "41 0 * * *", MaintenanceMetrics(), _HOUR_S, 31 * _DAY_S),
    BuiltIn("jobs-compact", "23 3 * * *", MaintenanceCompact(), 6 * _HOUR_S, 14 * _DAY_S),
    BuiltIn(
        "jobs-verify",
        "37 4 * * 0",
        # Blobs are read whole, which is for an administrator to schedule.
        MaintenanceVerify(parts=["log", "store", "snapshots", "replicas"]),
        _DAY_S,
        60 * _DAY_S,
    ),
)


class BuiltInSchedules:
    """Makes those that were never made."""

    def __init__(self, consensus: Consensus, store: Store, driver: Schedules) -> None:
        self._consensus = consensus
        self._store = store
        self._driver = driver

    async def make(self) -> None:
        """Make what is missing, all in one transaction; where there is no room for it, another leadership does."""
        try:
            for _ in range(MAX_TRIES):
                if await self._make():
                    return
        except StorageFull as error:
            logger.warning("schedules for maintenance are not made: %s", error)

    async def _make(self) -> bool:
        found = self._store.get(keys.BUILT_IN_SCHEDULES)
        known = () if found is None else records.decode(BuiltInRecord, found[1]).names
        missing = [one for one in BUILT_IN if one.name not in known]
        if not missing:
            return True
        # A name that somebody took before is theirs.
        wanted = [one for one in missing if self._driver.read(one.name) is None]
        now_ms = wall_ms()
        made = BuiltInRecord(names=(*known, *(one.name for one in missing)))
        compares: list[Compare] = [ModRevisionIs(keys.BUILT_IN_SCHEDULES, EQ, 0 if found is None else found[4])]
        compares += [ModRevisionIs(keys.schedule(one.name), EQ, 0) for one in wanted]
        ops: list[Op] = [Put(keys.BUILT_IN_SCHEDULES, records.encode(made))]
        for one in wanted:
            ops += _ops(one, now_ms)
        done = await self._consensus.propose(Txn(tuple(compares), tuple(ops)))
        check(done)
        if done.succeeded:
            self._begin(wanted)
        return done.succeeded

    def _begin(self, made: Sequence[BuiltIn]) -> None:
        for one in made:
            self._driver.owners[one.name] = _SYSTEM.uid
            self._driver.look(one.name)
        if made:
            logger.info("made schedules for maintenance: %s", ", ".join(one.name for one in made))


def _ops(one: BuiltIn, now_ms: int) -> tuple[Op, ...]:
    schedule = one.schedule()
    record = schedules.on_set(None, schedule, _SYSTEM.uid, now_ms)
    return (
        Put(keys.schedule(one.name), records.encode(record)),
        Put(keys.schedule_job(one.name), records.encode_spec(schedule.job)),
        audit_entry(_SYSTEM, "schedule.set", one.name, now_ms, "built in", owner=_SYSTEM.uid),
    )
