"""An owner sees in queries what the API would show them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from jobs.protocol.model import Content, KvPut, Schedule, SqlJob, SqlPayload
from jobs.service import Caller
from tests.support.plane import ADMIN, ALICE, BOB, Plane, shell
from tests.support.workerprocess import worker_process

STEP_S = 60.0


class Asker:
    """Asks by queries of several owners."""

    def __init__(self, plane: Plane) -> None:
        self.plane = plane

    async def rows(self, caller: Caller, sql: str) -> list[Any]:
        payload = SqlPayload(sql=sql, format="json")
        (submitted,) = await self.plane.control.submit(caller, [SqlJob(payload=payload)])
        async with asyncio.timeout(STEP_S):
            ended = await self.plane.control.wait(caller, submitted.job.id, STEP_S)
        found = await self.plane.control.result(caller, ended.id, None)
        assert found.reason is None, found.message
        return [msgspec.json.decode(line) for line in bytes(found.stdout).splitlines()]

    async def column(self, caller: Caller, sql: str) -> set[Any]:
        return {next(iter(row.values())) for row in await self.rows(caller, sql)}


def run(directory: Path, scenario: Callable[[Asker], Coroutine[Any, Any, None]]) -> None:
    async def inside() -> None:
        async with (
            Plane(directory) as plane,
            worker_process(directory, "--slots", "1", worker_type="sql", JOBS_NODE__DATA_DIR=str(directory)),
        ):
            await scenario(Asker(plane))

    asyncio.run(inside())


def test_jobs_results_and_the_trail_are_those_of_their_owner(tmp_path: Path) -> None:
    async def scenario(asker: Asker) -> None:
        control = asker.plane.control
        for owner in (ALICE, BOB):
            await control.submit(owner, [shell("true", labels={"of": str(owner.uid)})])
        for owner in (ALICE, BOB):
            assert await asker.column(owner, "SELECT DISTINCT owner FROM jobs") == {owner.uid}
            assert await asker.column(owner, "SELECT DISTINCT owner FROM audit") == {owner.uid}
            await asker.rows(owner, "SELECT 1 AS one")
            mine = await asker.column(owner, "SELECT id FROM jobs")
            assert await asker.column(owner, "SELECT job_id FROM results") <= mine
            other = BOB if owner is ALICE else ALICE
            assert await asker.rows(owner, f"SELECT * FROM jobs WHERE owner = {other.uid}") == []
        assert {ALICE.uid, BOB.uid} <= await asker.column(ADMIN, "SELECT DISTINCT owner FROM jobs")

    run(tmp_path, scenario)


def test_keys_outside_of_the_users_part_are_for_administrators(tmp_path: Path) -> None:
    async def scenario(asker: Asker) -> None:
        await asker.plane.control.kv_put(ALICE, KvPut(key="/data/x", value=Content(text="1")))
        assert await asker.column(ALICE, "SELECT key FROM kv") == {"/data/x"}
        assert await asker.rows(ALICE, "SELECT key FROM kv WHERE key LIKE '/jobs/%'") == []
        assert await asker.rows(ALICE, "SELECT key FROM kv WHERE key = '/tables/t' OR key >= '/'") == [
            {"key": "/data/x"}
        ]
        all_keys = await asker.column(ADMIN, "SELECT key FROM kv")
        assert any(key.startswith("/jobs/state/") for key in all_keys)

    run(tmp_path, scenario)


def test_schedules_are_those_of_their_owner_and_workers_are_everybody_s(tmp_path: Path) -> None:
    async def scenario(asker: Asker) -> None:
        made = Schedule(every_s=86_400.0, job=shell("true"))
        for owner in (ALICE, BOB):
            await asker.plane.control.schedules.put(owner, f"of-{owner.uid}", made, None)
        for owner in (ALICE, BOB):
            assert await asker.column(owner, "SELECT name FROM schedules") == {f"of-{owner.uid}"}
            assert len(await asker.rows(owner, "SELECT * FROM workers")) == 1
        assert len(await asker.column(ADMIN, "SELECT name FROM schedules")) == 2

    run(tmp_path, scenario)


def test_an_owner_cannot_ask_to_be_another(tmp_path: Path) -> None:
    async def scenario(asker: Asker) -> None:
        caller = replace(ALICE, gid=0)
        assert await asker.column(caller, "SELECT count(*) AS n FROM jobs WHERE owner <> 1001") == {0}
        plan = await asker.rows(ALICE, "EXPLAIN SELECT key FROM kv WHERE key LIKE '/jobs/%'")
        assert plan

    run(tmp_path, scenario)
