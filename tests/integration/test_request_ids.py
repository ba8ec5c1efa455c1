"""Requests that are sent again with the same id: carried out once, and answered."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any

import pytest

from jobs.api.routes import ROUTES
from tests.support.api import Answer, Api, job, scenario, served

NUMBERS = itertools.count(1)


def new_id() -> str:
    return f"01890a5d-ac96-774b-bcce-{next(NUMBERS):012x}"


async def ask(api: Api, name: str, method: str, target: str, body: Any = None) -> Answer:
    return await api.ask(method, target, body, Jobs_Request_Id=name)


def put(key: str, value: str = "v") -> dict[str, Any]:
    return {"key": key, "value": {"text": value}}


async def version(api: Api, key: str) -> int:
    found: int = (await api.ask("GET", f"/v1/kv?key={key}")).json()["version"]
    return found


# --- the key-value store ---------------------------------------------------------------------------------------------


@scenario()
async def test_a_write_sent_again_is_answered_and_not_done_again(api: Api) -> None:
    name = new_id()
    first = await ask(api, name, "POST", "/v1/kv:put", put("/data/a", "mine"))
    await api.ask("POST", "/v1/kv:put", put("/data/a", "another's"))
    again = await ask(api, name, "POST", "/v1/kv:put", put("/data/a", "mine"))
    assert (first.status, first.body) == (again.status, again.body)
    assert (await api.ask("GET", "/v1/kv?key=/data/a")).json()["value"]["text"] == "another's"
    # and so is a deletion
    name = new_id()
    deletion = {"key": "/data/a"}
    first = await ask(api, name, "POST", "/v1/kv:delete", deletion)
    await api.ask("POST", "/v1/kv:put", put("/data/a"))
    again = await ask(api, name, "POST", "/v1/kv:delete", deletion)
    assert first.json()["results"][0]["deleted"] == again.json()["results"][0]["deleted"] == 1
    assert await version(api, "/data/a") == 1


@scenario()
async def test_many_sendings_at_a_time_are_one_request(api: Api) -> None:
    name = new_id()
    answers = await asyncio.gather(*(ask(api, name, "POST", "/v1/kv:put", put("/data/a")) for _ in range(20)))
    assert len({answer.body for answer in answers}) == 1
    assert await version(api, "/data/a") == 1


@scenario()
async def test_a_comparison_that_failed_stays_failed_for_its_request(api: Api) -> None:
    # given a lock that another one holds
    await api.ask("POST", "/v1/kv:put", put("/data/lock", "theirs"))
    free = {"key": "/data/lock", "target": "version", "op": "==", "number": 0}
    txn = {"compare": [free], "then": [{"put": put("/data/lock", "mine")}]}
    name = new_id()
    assert (await ask(api, name, "POST", "/v1/kv:txn", txn)).json()["succeeded"] is False
    # when it is free, and the request comes once more, late
    await api.ask("POST", "/v1/kv:delete", {"key": "/data/lock"})
    assert (await ask(api, name, "POST", "/v1/kv:txn", txn)).json()["succeeded"] is False
    # then only a new request gets it
    assert (await ask(api, new_id(), "POST", "/v1/kv:txn", txn)).json()["succeeded"] is True


@scenario()
async def test_a_transaction_that_was_refused_stays_refused_for_its_request(api: Api) -> None:
    name, body = new_id(), {**put("/data/a"), "lease": 7}
    for _ in range(2):
        (await ask(api, name, "POST", "/v1/kv:put", body)).problem(404, "lease_not_found")


@scenario()
async def test_an_id_with_another_body_is_another_request(api: Api) -> None:
    name = new_id()
    for value in ("1", "2"):
        assert (await ask(api, name, "POST", "/v1/kv:put", put("/data/a", value))).status == 200
    assert await version(api, "/data/a") == 2


@scenario()
async def test_of_a_large_result_only_that_it_was_is_remembered(api: Api) -> None:
    await api.ask("POST", "/v1/kv:put", put("/data/large", "x" * 2_000))
    name, txn = new_id(), {"then": [{"get": "/data/large"}, {"put": put("/data/a")}]}
    assert (await ask(api, name, "POST", "/v1/kv:txn", txn)).status == 200
    (await ask(api, name, "POST", "/v1/kv:txn", txn)).problem(410, "result_gone")
    assert await version(api, "/data/a") == 1


@scenario(plane={"max_store_bytes": 1 << 20})
async def test_what_was_done_before_the_store_was_full_is_told_so(api: Api) -> None:
    name = new_id()
    first = await ask(api, name, "POST", "/v1/kv:put", put("/data/first"))
    while (await api.ask("POST", "/v1/kv:put", put(f"/data/{new_id()}", "x" * 10_000))).status == 200:
        pass
    assert (await ask(api, name, "POST", "/v1/kv:put", put("/data/first"))).body == first.body
    (await ask(api, new_id(), "POST", "/v1/kv:put", put("/data/first"))).problem(507, "storage_full")


@scenario()
async def test_a_lease_is_granted_and_revoked_once(api: Api) -> None:
    granting, ttl = new_id(), {"ttl_s": 600}
    first, again = [await ask(api, granting, "POST", "/v1/leases", ttl) for _ in range(2)]
    lease = first.json()["id"]
    assert (first.status, again.status, again.json()["id"]) == (201, 201, lease)
    assert len(api.plane.store.leases()) == 1
    revoking = new_id()
    for _ in range(2):
        assert (await ask(api, revoking, "DELETE", f"/v1/leases/{lease}")).status == 204
    (await ask(api, new_id(), "DELETE", f"/v1/leases/{lease}")).problem(404, "lease_not_found")
    (await ask(api, granting, "POST", "/v1/leases", ttl)).problem(404, "lease_not_found")
    assert api.plane.store.leases() == []


def test_requests_are_known_after_a_restart(tmp_path: Path) -> None:
    names = [new_id() for _ in range(4)]
    requests: list[tuple[str, str, Any]] = [
        ("POST", "/v1/kv:put", put("/data/a")),
        ("POST", "/v1/leases", {"ttl_s": 600}),
        ("POST", "/v1/jobs", job("true")),
        ("POST", "/v1/queues/q/pause", None),
    ]

    async def send_all() -> list[Any]:
        async with served(tmp_path) as api:
            answers = [await ask(api, name, *what) for name, what in zip(names, requests, strict=True)]
            assert all(answer.status in (200, 201) for answer in answers), answers
            assert len(api.plane.store.leases()) == 1
            assert len((await api.ask("GET", "/v1/jobs")).json()["jobs"]) == 1
            assert await version(api, "/data/a") == 1
            done, lease, made, queue = (answer.json() for answer in answers)
            # Undone by somebody else: it is not done again.
            await api.ask("POST", "/v1/queues/q/resume")
            return [done, lease["id"], made["job"]["id"], queue["paused"]]

    first, again = asyncio.run(send_all()), asyncio.run(send_all())
    assert first[:3] == again[:3]
    assert (first[3], again[3]) == (True, False)


# --- what makes jobs -------------------------------------------------------------------------------------------------


async def jobs_made(api: Api) -> int:
    return len((await api.ask("GET", "/v1/jobs")).json()["jobs"])


@scenario()
async def test_a_submission_without_a_key_makes_one_job(api: Api) -> None:
    name = new_id()
    first, again = [await ask(api, name, "POST", "/v1/jobs", job("true")) for _ in range(2)]
    assert (first.status, again.status) == (201, 200)
    assert first.json()["job"]["id"] == again.json()["job"]["id"]
    name, batch = new_id(), {"jobs": [job("true"), job("true"), job("true", idempotency_key="own")]}
    lots = [(await ask(api, name, "POST", "/v1/jobs:batch", batch)).json()["jobs"] for _ in range(2)]
    assert [one["job"]["id"] for one in lots[0]] == [one["job"]["id"] for one in lots[1]]
    assert [one["created"] for one in lots[1]] == [False] * 3
    assert await jobs_made(api) == 4
    assert (await ask(api, new_id(), "POST", "/v1/jobs", job("true"))).status == 201


@scenario()
async def test_a_trigger_makes_one_job(api: Api) -> None:
    await api.ask("PUT", "/v1/schedules/s", {"job": job("true"), "every_s": 86_400})
    name = new_id()
    answers = await asyncio.gather(*(ask(api, name, "POST", "/v1/schedules/s/trigger") for _ in range(5)))
    assert sorted(answer.status for answer in answers) == [200] * 4 + [201]
    assert len({answer.json()["job"]["id"] for answer in answers}) == 1
    assert (await ask(api, new_id(), "POST", "/v1/schedules/s/trigger")).status == 201
    assert await jobs_made(api) == 2


@scenario()
async def test_some_tasks_of_an_array_are_repeated_once(api: Api) -> None:
    array = await api.submit(array={"range": {"start": 0, "stop": 3}})
    await api.ask("POST", f"/v1/jobs/{array}/cancel")
    name, wanted = new_id(), {"indices": "1-2"}
    first, again = [await ask(api, name, "POST", f"/v1/jobs/{array}/retry", wanted) for _ in range(2)]
    assert (first.status, again.status) == (201, 200), (first, again)
    assert first.json()["job"]["id"] == again.json()["job"]["id"]


# --- settings --------------------------------------------------------------------------------------------------------

PLAN = {"job": job("true"), "every_s": 86_400}
OTHER_PLAN = {"job": job("true"), "every_s": 3_600}


@pytest.mark.parametrize(
    ("before", "change", "undo", "read"),
    [
        (None, ("POST", "/v1/queues/q/pause", None), ("POST", "/v1/queues/q/resume", None), "/v1/queues/q"),
        (None, ("POST", "/v1/queues/q/drain", None), ("POST", "/v1/queues/q/open", None), "/v1/queues/q"),
        (None, ("PUT", "/v1/queues/q", {"weight": 2}), ("PUT", "/v1/queues/q", {"weight": 3}), "/v1/queues/q"),
        (None, ("PATCH", "/v1/queues/q", {"weight": 2}), ("PATCH", "/v1/queues/q", {"weight": 3}), "/v1/queues/q"),
        (None, ("PUT", "/v1/owners/7", {"weight": 2}), ("PUT", "/v1/owners/7", {"weight": 3}), "/v1/owners/7"),
        (None, ("PATCH", "/v1/owners/7", {"weight": 2}), ("PATCH", "/v1/owners/7", {"weight": 3}), "/v1/owners/7"),
        (PLAN, ("POST", "/v1/schedules/s/pause", None), ("POST", "/v1/schedules/s/resume", None), "/v1/schedules/s"),
        (PLAN, ("PUT", "/v1/schedules/s", OTHER_PLAN), ("PUT", "/v1/schedules/s", PLAN), "/v1/schedules/s"),
        (PLAN, ("DELETE", "/v1/schedules/s", None), ("PUT", "/v1/schedules/s", PLAN), "/v1/schedules/s"),
        (PLAN, ("DELETE", "/v1/schedules/s", None), None, "/v1/schedules/s"),
    ],
)
def test_a_change_that_somebody_undid_is_not_made_again(
    tmp_path: Path, before: Any, change: Any, undo: Any, read: str
) -> None:
    async def test(api: Api) -> None:
        if before is not None:
            await api.ask("PUT", "/v1/schedules/s", before)
        name = new_id()
        first = await ask(api, name, *change)
        if undo is not None:
            assert (await ask(api, new_id(), *undo)).status in (200, 201)
        now = (await api.ask("GET", read)).body
        again = await ask(api, name, *change)
        assert again.status == first.status, again
        assert (await api.ask("GET", read)).body == now

    async def run() -> None:
        async with served(tmp_path) as api:
            await test(api)

    asyncio.run(run())


@scenario()
async def test_a_schedule_set_for_one_revision_is_set_though_its_answer_was_lost(api: Api) -> None:
    name, target = new_id(), "/v1/schedules/s?revision=0"
    assert (await ask(api, name, "PUT", target, PLAN)).status == 201
    assert (await ask(api, name, "PUT", target, PLAN)).status == 200
    (await ask(api, new_id(), "PUT", target, PLAN)).problem(409, "revision_conflict")


# --- the interface ---------------------------------------------------------------------------------------------------


@scenario()
async def test_an_id_that_is_none_is_refused_where_it_counts(api: Api) -> None:
    answer = await ask(api, "seven", "POST", "/v1/kv:put", put("/data/a"))
    assert answer.problem(400, "invalid_request")["field"] == "Jobs-Request-Id"
    (await ask(api, "seven", "DELETE", "/v1/leases/7")).problem(400, "invalid_request")
    assert (await ask(api, "seven", "GET", "/v1/health")).status == 200
    (await api.ask("GET", "/v1/kv?key=/data/a")).problem(404, "not_found")


@scenario()
async def test_every_change_says_why_it_may_be_sent_again(api: Api) -> None:
    described = Path("docs/errors.md").read_text()
    document = (await api.ask("GET", "/openapi.json")).json()
    for route in ROUTES:
        operation = document["paths"][route.path][route.method.lower()]
        headers = [one["name"] for one in operation["parameters"] if one["in"] == "header"]
        assert (route.repeat is not None) == (route.method not in ("GET", "HEAD")) == ("Jobs-Request-Id" in headers)
        if route.repeat is not None:
            assert route.repeat in operation["description"]
            assert f"| `{route.method} {route.path}` | {route.repeat} |" in described
