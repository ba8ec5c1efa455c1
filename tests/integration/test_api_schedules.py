"""Schedules by HTTP: statuses, names, typed bodies, queries."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from tests.support.api import Api, job, scenario


def path(name: str, action: str = "") -> str:
    return f"/v1/schedules/{quote(name, safe='')}{action}"


def schedule(**fields: Any) -> dict[str, Any]:
    return {"job": job(), "every_s": 3600, **fields}


@scenario()
async def test_a_schedule_is_made_replaced_read_and_deleted(api: Api) -> None:
    name = "team/nightly"
    made = await api.ask("PUT", path(name), schedule())
    assert (made.status, made.json()["name"], made.json()["every_s"]) == (201, name, 3600)
    assert (await api.ask("PUT", path(name), schedule())).status == 200
    replaced = await api.ask("PUT", path(name) + f"?revision={made.json()['revision']}", schedule(overlap="allow"))
    assert (replaced.status, replaced.json()["overlap"]) == (200, "allow")
    read = (await api.ask("GET", path(name))).json()
    assert (read["schedule"], read["job"]["payload"]["argv"]) == (replaced.json(), ["true"])
    listed = (await api.ask("GET", "/v1/schedules")).json()
    assert [found["name"] for found in listed["schedules"]] == [name]
    triggered = await api.ask("POST", path(name, "/trigger"))
    assert (triggered.status, triggered.json()["job"]["schedule"]) == (201, name)
    jobs = (await api.ask("GET", f"/v1/jobs?schedule={quote(name, safe='')}")).json()["jobs"]
    assert [found["id"] for found in jobs] == [triggered.json()["job"]["id"]]
    assert (await api.ask("POST", path(name, "/pause"))).json()["paused"] is True
    assert (await api.ask("POST", path(name, "/resume"))).json()["paused"] is False
    assert len((await api.ask("GET", path(name, "/next?count=3"))).json()["times"]) == 3
    (await api.ask("DELETE", path(name) + "?revision=1")).problem(409, "revision_conflict")
    assert (await api.ask("DELETE", path(name))).status == 204
    (await api.ask("GET", path(name))).problem(404, "not_found")
    (await api.ask("DELETE", path(name))).problem(404, "not_found")


@scenario()
async def test_times_of_an_expression_are_told_without_a_schedule(api: Api) -> None:
    wanted = {"cron": "30 2 * * *", "timezone": "Europe/Berlin", "after_ms": 1_774_699_200_000, "count": 2}
    told = (await api.ask("POST", "/v1/schedules:preview", wanted)).json()
    assert told["times"] == [
        {"at_ms": 1_774_746_000_000, "local": "2026-03-29T03:00:00+02:00"},
        {"at_ms": 1_774_830_600_000, "local": "2026-03-30T02:30:00+02:00"},
    ]
    assert (await api.ask("GET", "/v1/schedules")).json()["schedules"] == []


@scenario()
async def test_what_is_wrong_is_refused_with_its_field(api: Api) -> None:
    for body, field in (
        (schedule(every_s=0.5), "$.every_s"),
        (schedule(every_s=-1), "$.every_s"),
        (schedule(overlap="both"), "$.overlap"),
        (schedule(max_catch_up=0), "$.max_catch_up"),
        (schedule(start_ms=-1), "$.start_ms"),
        (schedule(when="now"), "$.when"),
        (schedule(every_s=None, cron="* * * *"), "$.cron"),
        (schedule(every_s=None, cron="* * * * *", timezone="Nowhere"), "$.timezone"),
        (schedule(every_s=None, at_ms=1), "$.at_ms"),
        ({"every_s": 60}, "$.job"),
        (schedule(job={"payload": {"argv": ["true"]}}), "$.job.type"),
        (schedule(job=job(timeout_s=-1)), "$.job.timeout_s"),
        (schedule(job=job(depends_on=["a"])), "$.job.depends_on"),
    ):
        answer = await api.ask("PUT", path("wrong"), body)
        assert answer.problem(400, "invalid_request")["field"] == field, body
    (await api.ask("GET", path("wrong"))).problem(404, "not_found")
    problem = (await api.ask("PUT", path("a b"), schedule())).problem(400, "invalid_request")
    assert problem["field"] == "id"
    for query, field in (("count=0", "count"), ("count=101", "count"), ("count=x", "count")):
        await api.ask("PUT", path("right"), schedule())
        assert (await api.ask("GET", path("right", f"/next?{query}"))).problem(400, "invalid_request")["field"] == field


@scenario(plane={"max_schedules": 1})
async def test_one_too_many_is_refused_by_name(api: Api) -> None:
    assert (await api.ask("PUT", path("a"), schedule())).status == 201
    problem = (await api.ask("PUT", path("b"), schedule())).problem(429, "schedules_full")
    assert "limit is 1" in problem["detail"]
    assert (await api.ask("PUT", path("a"), schedule(every_s=60))).status == 200
