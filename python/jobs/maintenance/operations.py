"""What jobs of type maintenance have their node do, told step by step."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator

from msgspec import Struct

from jobs.blobs.members import Members as BlobMembers
from jobs.control import Site
from jobs.control.queries import check_admin
from jobs.maintenance.claim import Claim
from jobs.maintenance.cleanup import Cleanup
from jobs.maintenance.compact import Compaction, Kept
from jobs.maintenance.health import Checkup, HealthLimits
from jobs.maintenance.link import LeaderLink
from jobs.maintenance.members import Members
from jobs.maintenance.pacing import Pacing
from jobs.maintenance.run import Run
from jobs.maintenance.usage import Usage
from jobs.maintenance.verify import Verification
from jobs.operations import News, told
from jobs.protocol.model import (
    MaintenanceCleanup,
    MaintenanceCompact,
    MaintenanceDone,
    MaintenanceHealth,
    MaintenanceMetrics,
    MaintenancePerform,
    MaintenanceVerify,
    OperationNews,
)
from jobs.service import BlobOperations, Caller
from jobs.store import Store


class MaintenanceConfig(Struct, frozen=True, kw_only=True):
    kept: Kept
    limits: HealthLimits


class Operations:
    """Implements `service.MaintenanceOperations`."""

    def __init__(
        self,
        link: LeaderLink,
        members: Members,
        pacing: Pacing,
        site: Site,
        store: Store,
        blobs: BlobOperations,
        blob_members: BlobMembers,
        config: MaintenanceConfig,
    ) -> None:
        self._link = link
        self._members = members
        self._pacing = pacing
        self._site = site
        self._store = store
        self._blobs = blobs
        self._blob_members = blob_members
        self._config = config

    def perform(self, caller: Caller, wanted: MaintenancePerform) -> AsyncGenerator[OperationNews | MaintenanceDone]:
        """Yield what is to be told of an operation, and its result. Given up when this is closed: what is done stays
        done, and the next job of its kind goes on from there."""
        return told(lambda news: self._carry_out(caller, wanted, news))

    async def _carry_out(self, caller: Caller, wanted: MaintenancePerform, news: News) -> MaintenanceDone:
        check_admin(caller, "have maintenance done")
        began_s, payload = time.monotonic(), wanted.payload
        claim = await Claim.take(self._link, wanted.job, payload)
        run = Run(claim=claim, news=news, link=self._link, members=self._members, pacing=self._pacing)
        dry_run = False
        match payload:
            case MaintenanceCompact(dry_run=dry_run):
                await Compaction(run, payload, self._store, self._config.kept).carry_out()
            case MaintenanceCleanup(dry_run=dry_run):
                await Cleanup(run, payload, caller, wanted.job, self._site, self._blobs).carry_out()
            case MaintenanceHealth():
                await Checkup(run, payload, self._config.limits).carry_out()
            case MaintenanceVerify():
                await Verification(run, payload, self._blob_members).carry_out()
            case MaintenanceMetrics():
                await self._site.reach(await self._link.reached())
                await Usage(run, payload, self._store).carry_out()
        await claim.release()
        return MaintenanceDone(result=claim.result(dry_run=dry_run, seconds=round(time.monotonic() - began_s, 6)))
