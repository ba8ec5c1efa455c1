"""The catalogue of blobs by HTTP: statuses, names, typed bodies, queries."""

from __future__ import annotations

from urllib.parse import quote

from tests.support.api import Api, scenario
from tests.support.catalogue import ME, blob, hash_of
from tests.support.plane import ADMIN, ALICE


def path(name: str, action: str = "") -> str:
    return f"/v1/blobs/{hash_of(name)}{action}"


def tag_path(name: str) -> str:
    return f"/v1/blob-tags/{quote(name, safe='')}"


@scenario()
async def test_a_blob_is_listed_shown_shared_and_given_up(api: Api) -> None:
    me = (await api.ask("GET", "/v1/owners/0")).json()["uid"]
    await api.plane.control.blobs.register(ADMIN, blob("a", 7), ME)
    await api.plane.control.blobs.register(ALICE, blob("b"), ME)
    listed = (await api.ask("GET", f"/v1/blobs?limit=1&owner={ALICE.uid}")).json()
    assert [one["hash"] for one in listed["blobs"]] == [hash_of("b")]
    assert len((await api.ask("GET", "/v1/blobs")).json()["blobs"]) == 2
    shown = (await api.ask("GET", path("a", "/stat"))).json()
    assert (shown["size_bytes"], shown["kind"], shown["owners"], shown["references"]) == (7, "raw", [me], [])
    shared = await api.ask("POST", path("a", "/share"), {"ttl_s": 60})
    assert (shared.status, shared.json()["hash"]) == (201, hash_of("a"))
    assert (await api.ask("DELETE", path("a"))).status == 204
    (await api.ask("DELETE", path("a"))).problem(404, "not_found")
    (await api.ask("POST", path("none", "/share"), {})).problem(404, "not_found")
    (await api.ask("GET", path("none", "/stat"))).problem(404, "not_found")


@scenario()
async def test_a_tag_is_set_read_listed_and_deleted(api: Api) -> None:
    for name in "ab":
        await api.plane.control.blobs.register(ADMIN, blob(name), ME)
    made = await api.ask("PUT", tag_path("team/data"), {"hash": hash_of("a")})
    assert (made.status, made.json()["name"], made.json()["hash"]) == (200, "team/data", hash_of("a"))
    taken = await api.ask("PUT", tag_path("team/data"), {"hash": hash_of("b"), "replace": False})
    taken.problem(409, "tag_taken")
    assert (await api.ask("PUT", tag_path("team/data"), {"hash": hash_of("b")})).json()["hash"] == hash_of("b")
    assert (await api.ask("GET", tag_path("team/data"))).json()["hash"] == hash_of("b")
    assert len((await api.ask("GET", "/v1/blob-tags?prefix=team/")).json()["tags"]) == 1
    assert (await api.ask("GET", "/v1/blob-tags?prefix=other")).json()["tags"] == []
    assert (await api.ask("DELETE", tag_path("team/data"))).status == 204
    (await api.ask("GET", tag_path("team/data"))).problem(404, "not_found")
    (await api.ask("PUT", tag_path("t"), {"hash": hash_of("none")})).problem(404, "not_found")


@scenario()
async def test_garbage_is_looked_at_page_by_page(api: Api) -> None:
    for name in range(3):
        await api.plane.control.blobs.register(ADMIN, blob(name), ME)
    first = (await api.ask("POST", "/v1/blobs:collect", {"dry_run": True, "grace_s": 0, "limit": 2})).json()
    assert (first["examined"], len(first["collected"]), first["kept"]) == (2, 2, {})
    body = {"dry_run": True, "grace_s": 0, "cursor": first["next_cursor"]}
    last = (await api.ask("POST", "/v1/blobs:collect", body)).json()
    assert (last["examined"], last["next_cursor"]) == (1, None)
    kept = (await api.ask("POST", "/v1/blobs:collect", {})).json()
    assert (kept["kept"], kept["collected"]) == ({"young": 3}, [])


@scenario()
async def test_what_is_wrong_is_refused_with_its_field(api: Api) -> None:
    for method, target, body, field in (
        ("GET", "/v1/blobs/abc/stat", None, "id"),
        ("DELETE", f"/v1/blobs/{'A' * 64}", None, "id"),
        ("POST", path("a", "/share"), {"ttl_s": 0}, "$.ttl_s"),
        ("GET", "/v1/blobs?owner=-1", None, "owner"),
        ("GET", "/v1/blobs?cursor=x", None, "cursor"),
        ("GET", "/v1/blob-tags?cursor=AAAA", None, "cursor"),
        ("PUT", tag_path("a b"), {"hash": hash_of("a")}, "id"),
        ("PUT", tag_path("a"), {"hash": "../etc"}, "$.hash"),
        ("PUT", tag_path("a"), {}, "$.hash"),
        ("POST", "/v1/blobs:collect", {"limit": 0}, "$.limit"),
        ("POST", "/v1/blobs:collect", {"cursor": "x"}, "cursor"),
    ):
        answer = await api.ask(method, target, body)
        assert answer.problem(400, "invalid_request")["field"] == field, target
