"""Queues and owners by HTTP: paths with names of any kind, typed bodies, who may what."""

from __future__ import annotations

from urllib.parse import quote

from tests.support.api import Api, scenario

NAMES = ("default", "team/a", "a:b", "x@host.example", "_-._", "a//b", "0" * 128, "pause", "a/b/resume")


def path(name: str, action: str = "") -> str:
    return f"/v1/queues/{quote(name, safe='')}{action}"


@scenario()
async def test_a_name_with_slashes_is_one_part_of_the_path(api: Api) -> None:
    for name in NAMES:
        paused = await api.ask("POST", path(name, "/pause"))
        assert (paused.status, paused.json()["name"], paused.json()["paused"]) == (200, name, True)
        assert (await api.ask("GET", path(name))).json() == paused.json()
        changed = await api.ask("PATCH", path(name), {"max_running": 2})
        assert (changed.json()["max_running"], changed.json()["paused"]) == (2, True)
        drained = await api.ask("POST", path(name, "/drain"))
        assert drained.json()["draining"] is True
        await api.ask("POST", path(name, "/open"))
        await api.ask("POST", path(name, "/resume"))
        replaced = await api.ask("PUT", path(name), {"weight": 2})
        assert (replaced.json()["weight"], replaced.json()["max_running"]) == (2.0, None)
    listed = (await api.ask("GET", "/v1/queues")).json()
    assert [queue["name"] for queue in listed["queues"]] == sorted(NAMES)


@scenario()
async def test_slashes_that_are_not_encoded_part_the_path(api: Api) -> None:
    (await api.ask("GET", "/v1/queues/team/a")).problem(404, "not_found")
    (await api.ask("GET", "/v1/queues/")).problem(404, "not_found")
    assert (await api.ask("GET", "/v1/%71ueues/default")).status == 200, "a letter may be encoded as well"
    assert (await api.ask("GET", "/v1/kv%3Ascan?prefix=/data/")).status == 200
    (await api.ask("GET", "/v1%2Fjobs")).problem(404, "not_found")


@scenario()
async def test_what_is_no_name_is_refused_with_the_field(api: Api) -> None:
    for name in ("%2Fa", "-a", "a%00", "%0A", "a%20b", "%C3%A9", "%ff", "a%0A", "x" * 129, "%2e%2e", "{id}"):
        for method, action in (("GET", ""), ("POST", "/pause")):
            answer = await api.ask(method, f"/v1/queues/{name}{action}")
            problem = answer.problem(400, "invalid_request")
            assert problem["field"] == "id", problem
            assert "letters" in problem["expected"]


@scenario()
async def test_what_is_no_uid_is_refused_with_the_field(api: Api) -> None:
    assert (await api.ask("GET", "/v1/owners/4294967294")).json()["uid"] == 4294967294
    for uid in ("alice", "-1", "4294967295", "99999999999", "1.0", "%31%20", "%D9%A1"):
        problem = (await api.ask("GET", f"/v1/owners/{uid}")).problem(400, "invalid_request")
        assert problem["field"] == "id"


@scenario()
async def test_settings_out_of_bounds_are_refused_with_the_field(api: Api) -> None:
    for kind, body, field in (
        ("queues/q", {"weight": 0}, "$.weight"),
        ("queues/q", {"weight": None}, "$.weight"),
        ("queues/q", {"max_running": -1}, "$.max_running"),
        ("queues/q", {"max_running": 1.5}, "$.max_running"),
        ("queues/q", {"rate_count": 0}, "$.rate_count"),
        ("queues/q", {"rate_period_s": 0}, "$.rate_period_s"),
        ("queues/q", {"paused": True}, "$.paused"),
        ("owners/7", {"max_pending": "many"}, "$.max_pending"),
        ("owners/7", {"rate_count": 1}, "$.rate_count"),
    ):
        for method in ("PUT", "PATCH"):
            problem = (await api.ask(method, f"/v1/{kind}", body)).problem(400, "invalid_request")
            assert problem["field"] == field
            assert problem["expected"]
    assert (await api.ask("GET", "/v1/queues")).json() == {"queues": [], "next_cursor": None}


@scenario()
async def test_null_takes_a_limit_away_and_what_is_left_out_stays(api: Api) -> None:
    await api.ask("PUT", "/v1/owners/7", {"max_pending": 5, "max_running": 6})
    changed = await api.ask("PATCH", "/v1/owners/7", {"max_pending": None})
    assert changed.json() == {
        "uid": 7, "weight": 1.0, "max_pending": None, "max_running": 6, "max_blob_bytes": None,
        "pending": 0, "running": 0, "blobs": 0, "blob_bytes": 0,
    }  # fmt: skip
    assert (await api.ask("PATCH", "/v1/owners/7", {})).json() == changed.json()
