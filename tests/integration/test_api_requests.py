"""Requests that are wrong in every way a socket allows: each gets its own clear answer, and the node goes on."""

from __future__ import annotations

import asyncio
import time

import msgspec
import pytest

from jobs.protocol.model import ShellJob, ShellPayload
from tests.support.api import Api, job, request, scenario

MISSING = "01890000-0000-7000-8000-000000000000"


async def refused_body(api: Api, body: object, target: str = "/v1/jobs") -> dict[str, object]:
    return (await api.ask("POST", target, body)).problem(400, "invalid_request")


# --- fields and types -------------------------------------------------------------------------------------------------


@scenario()
async def test_an_unknown_query_parameter_is_named_with_what_is_possible(api: Api) -> None:
    found = (await api.ask("GET", "/v1/jobs?stat=failed")).problem(400, "invalid_request")
    assert found["field"] == "stat"
    assert "state" in found["expected"]
    assert "limit" in found["expected"]
    found = (await api.ask("GET", "/v1/workers?limit=1")).problem(400, "invalid_request")
    assert (found["field"], found["expected"]) == ("limit", "no parameters")


@scenario()
async def test_a_wrong_query_value_names_its_parameter(api: Api) -> None:
    for target, field in (
        ("/v1/jobs?limit=0", "limit"),
        ("/v1/jobs?limit=ten", "limit"),
        ("/v1/jobs?limit=99999999999999999999999999", "limit"),
        ("/v1/jobs?limit=1&limit=2", "limit"),
        ("/v1/jobs?state=done", "state[0]"),
        ("/v1/jobs?order=random", "order"),
        ("/v1/jobs?label=x", "label"),
        ("/v1/jobs?cursor=x", "cursor"),
        ("/v1/kv", "key"),
        ("/v1/kv?key=", "key"),
        ("/v1/kv:scan?prefix=", "prefix"),
        (f"/v1/jobs/{MISSING}/wait?timeout_s=nan", "timeout_s"),
        (f"/v1/jobs/{MISSING}/wait?timeout_s=-1", "timeout_s"),
        ("/v1/jobs/7", "id"),
        ("/v1/jobs:watch?after_revision=-1", "after_revision"),
        ("/v1/jobs:watch?after_revision=999999", "after_revision"),
        ("/v1/kv:watch?key=/data/a&after_revision=999999", "after_revision"),
        ("/v1/kv?key=/data/a&revision=999999", "revision"),
    ):
        found = (await api.ask("GET", target)).problem(400, "invalid_request")
        assert found["field"] == field, (target, found)


@scenario()
async def test_an_unknown_body_field_is_named_by_its_path_with_the_known_ones(api: Api) -> None:
    found = await refused_body(api, {**job(), "pririty": 3})
    assert found["field"] == "$.pririty"
    assert "priority" in str(found["expected"])
    found = await refused_body(api, {"type": "shell", "payload": {"argv": ["a"], "limits": {"memory": 1}}})
    assert found["field"] == "$.payload.limits.memory"
    assert "memory_bytes" in str(found["expected"])
    found = await refused_body(api, {"jobs": [job(), {**job(), "x": 1}]}, "/v1/jobs:batch")
    assert found["field"] == "$.jobs[1].x"
    found = await refused_body(api, {"then": [{"put": {"key": "/data/a", "value": {"txt": ""}}}]}, "/v1/kv:txn")
    assert (found["field"], "base64" in str(found["expected"])) == ("$.then[0].put.value.txt", True)


@scenario()
async def test_a_wrong_type_is_named_by_its_path(api: Api) -> None:
    for body, field in (
        ({**job(), "priority": "high"}, "$.priority"),
        ({**job(), "priority": 101}, "$.priority"),
        ({**job(), "priority": 1.5}, "$.priority"),
        ({**job(), "queue": "a b"}, "$.queue"),
        ({**job(), "queue": "a\n"}, "$.queue"),
        ({"type": "shell", "payload": {"argv": "true"}}, "$.payload.argv"),
        ({"type": "shell", "payload": {"argv": []}}, "$.payload.argv"),
        ({"type": "shell", "payload": {"argv": ["a"], "network": "all"}}, "$.payload.network"),
        ({"type": "shell"}, "$.payload"),
        ({"type": "wash", "payload": {}}, "$.type"),
        ([], "$"),
        (None, "$"),
        ("text", "$"),
    ):
        found = await refused_body(api, msgspec.json.encode(body))
        assert found["field"] == field, (body, found)
        assert found["expected"], (body, found)


@scenario()
async def test_a_submission_says_its_type(api: Api) -> None:
    for body, target, field in (
        ({"payload": {"argv": ["true"]}}, "/v1/jobs", "$.type"),
        ({"jobs": [job(), {"payload": {"argv": ["type"]}}]}, "/v1/jobs:batch", "$.jobs[1].type"),
        ({"payload": {"argv": ["true"], "env": {"type": "shell"}}}, "/v1/jobs", "$.type"),
    ):
        found = await refused_body(api, body, target)
        assert (found["field"], found["expected"]) == (field, "one of blob, maintenance, replication, shell, sql")
    escaped = b'{"t\\u0079pe": "shell", "payload": {"argv": ["true"]}}'
    assert (await api.ask("POST", "/v1/jobs", escaped)).status == 201


# --- bytes that are no JSON -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"type": "shell", "payload": {"argv": ["tr',
        b'{"type": "shell", "payload": {"argv": ["\xff\xfe"]}}',
        b'{"type": "shell", "payload": {"argv": ["\xed\xa0\x80"]}}',
        rb'{"type": "shell", "payload": {"argv": ["\ud800"]}}',
        b"[" * 200_000,
        b'{"type": "shell", "payload": {"argv": ' + b"[" * 200_000,
        b'{"a":' * 200_000,
        b"\x00" * 100,
        b'{"type": "shell", "payload": {"argv": ["true"]}} {}',
        b'{"type": "shell", "payload": {"argv": ["true"]}, "timeout_s": NaN}',
        b'{"type": "shell", "payload": {"argv": ["true"]}, "timeout_s": 1e999}',
        b'{"type": "shell", "payload": {"argv": ["true"]}, "priority": ' + b"9" * 100_000 + b"}",
    ],
    ids=lambda body: f"{body[:30]!r}",
)
def test_a_body_that_is_not_json_as_it_should_be(tmp_path: object, body: bytes) -> None:
    @scenario()
    async def refused(api: Api) -> None:
        await refused_body(api, body)
        assert (await api.ask("GET", "/v1/health")).status == 200

    refused(tmp_path)  # type: ignore[arg-type]


@scenario()
async def test_a_body_in_another_form_is_refused(api: Api) -> None:
    body = msgspec.json.encode(job())
    head = b"POST /v1/jobs HTTP/1.1\r\nHost: jobs\r\nContent-Length: %d\r\n" % len(body)
    for line in (
        b"Content-Type: text/xml\r\n\r\n",
        b"Content-Type: application/json\r\nContent-Encoding: gzip\r\n\r\n",
    ):
        async with await api.connect() as raw:
            await raw.send(head + line + body)
            (await raw.answer()).problem(415, "unsupported_media_type")
    async with await api.connect() as raw:
        await raw.send(head + b"Content-Type: application/json; charset=utf-8\r\n\r\n" + body)
        assert (await raw.answer()).status == 201


# --- sizes ------------------------------------------------------------------------------------------------------------


@scenario(max_body_bytes=100_000)
async def test_a_body_declared_too_large_is_refused_before_it_is_sent(api: Api) -> None:
    async with await api.connect() as raw:
        await raw.send(b"POST /v1/jobs HTTP/1.1\r\nHost: jobs\r\nContent-Length: 100001\r\n\r\n")
        found = (await raw.answer()).problem(413, "payload_too_large")
        assert "100000" in found["expected"]
        assert await raw.closed()


@scenario(max_body_bytes=100_000)
async def test_a_body_that_grows_too_large_in_chunks_is_refused(api: Api) -> None:
    async with await api.connect() as raw:
        await raw.send(b"POST /v1/jobs HTTP/1.1\r\nHost: jobs\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(2):
            await raw.send(b"c351\r\n" + b"x" * 50_001 + b"\r\n")
        (await raw.answer()).problem(413, "payload_too_large")
        assert await raw.closed()


@scenario(max_body_bytes=100_000)
async def test_a_client_that_writes_first_and_reads_later_still_learns_that_it_was_too_much(api: Api) -> None:
    answer = await api.ask("POST", "/v1/jobs", b"x" * 5_000_000)
    answer.problem(413, "payload_too_large")


@scenario()
async def test_a_body_in_chunks_is_as_good_as_another(api: Api) -> None:
    body = msgspec.json.encode(job())
    async with await api.connect() as raw:
        await raw.send(b"POST /v1/jobs HTTP/1.1\r\nHost: jobs\r\nTransfer-Encoding: chunked\r\n\r\n")
        for byte in body:
            await raw.send(b"1\r\n%c\r\n" % byte)
        await raw.send(b"0\r\n\r\n")
        assert (await raw.answer()).status == 201


@scenario()
async def test_chunks_that_are_none_are_refused(api: Api) -> None:
    async with await api.connect() as raw:
        await raw.send(b"POST /v1/jobs HTTP/1.1\r\nHost: jobs\r\nTransfer-Encoding: chunked\r\n\r\n")
        await raw.send(b"zz\r\nhello\r\n")
        (await raw.answer()).problem(400, "invalid_request")
        assert await raw.closed()


@scenario()
async def test_a_head_that_is_too_large_is_refused(api: Api) -> None:
    for head in (
        b"GET /v1/jobs?type=" + b"a" * 9_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /v1/health HTTP/1.1\r\nX-Much: " + b"a" * 9_000 + b"\r\n\r\n",
        b"GET /v1/health HTTP/1.1\r\n" + b"".join(b"X-%d: 1\r\n" % n for n in range(200)) + b"\r\n",
    ):
        async with await api.connect() as raw:
            await raw.send(head)
            (await raw.answer()).problem(431, "headers_too_large")
            assert await raw.closed()


@scenario()
async def test_what_is_not_http_is_refused(api: Api) -> None:
    for data in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 40 + b"\r\n\r\n",
        b"GET /v1/health HTTP/9.9\r\n\r\n",
        b"GET /v1/health HTTP/1.1\r\nno colon\r\n\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST /v1/jobs HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nContent-Length: 1e9\r\n\r\n",
    ):
        async with await api.connect() as raw:
            await raw.send(data)
            answer = await raw.answer()
            assert answer.status == 400, data
            answer.problem(400, "invalid_request")
            assert await raw.closed()
    assert (await api.ask("GET", "/v1/health")).status == 200


# --- methods and paths ------------------------------------------------------------------------------------------------


@scenario()
async def test_another_method_is_told_which_ones_there_are(api: Api) -> None:
    for method, target, allowed in (
        ("PUT", "/v1/jobs", "GET, POST"),
        ("OPTIONS", "/v1/jobs", "GET, POST"),
        ("DELETE", f"/v1/jobs/{MISSING}", "GET"),
        ("POST", "/metrics", "GET"),
        ("POST", "/openapi.json", "GET"),
        ("GET", "/v1/leases", "POST"),
    ):
        answer = await api.ask(method, target)
        answer.problem(405, "method_not_allowed")
        assert answer.headers["allow"] == allowed
    async with await api.connect() as raw:
        answer = await raw.ask("HEAD", "/v1/health")
        assert (answer.status, answer.headers["allow"]) == (405, "GET")
        assert (await raw.ask("GET", "/v1/health")).status == 200, "the connection is still in step"


@scenario()
async def test_other_paths_are_not_found(api: Api) -> None:
    for target in (
        "/",
        "/v1",
        "/v1/jobs/",
        "/v2/jobs",
        f"/v1/jobs/{MISSING}/x",
        "/v1/jobs/a/b/c",
        "/%ff%00",
        "//v1/jobs",
    ):
        (await api.ask("GET", target)).problem(404, "not_found")


@scenario()
async def test_the_server_does_not_tell_what_it_is_made_of(api: Api) -> None:
    job_id = await api.submit()
    for target in ("/v1/health", "/nothing", f"/v1/jobs/{job_id}/logs", "/metrics"):
        assert (await api.ask("GET", target)).headers["server"] == "jobs", target


# --- time -------------------------------------------------------------------------------------------------------------


@scenario(header_timeout_s=0.2)
async def test_half_a_head_is_answered_and_closed_in_time(api: Api) -> None:
    async with await api.connect() as raw:
        began = time.monotonic()
        await raw.send(b"GET /v1/health HT")
        (await raw.answer()).problem(408, "request_timeout")
        assert await raw.closed()
        assert 0.15 < time.monotonic() - began < 5


@scenario(header_timeout_s=0.3)
async def test_a_head_that_comes_byte_by_byte_does_not_get_more_time(api: Api) -> None:
    async with await api.connect() as raw:
        answer = asyncio.ensure_future(raw.answer())
        for byte in b"GET /v1/health HTTP/1.1\r\nX: " + b"y" * 1_000:
            if answer.done():
                break
            try:
                await raw.send(b"%c" % byte)
            except ConnectionError:
                break  # it has answered, and closed
            await asyncio.wait([answer], timeout=0.02)
        (await answer).problem(408, "request_timeout")


@scenario(header_timeout_s=0.2, idle_timeout_s=0.5)
async def test_half_a_second_head_on_a_kept_connection_is_bounded_too(api: Api) -> None:
    async with await api.connect() as raw:
        assert (await raw.ask("GET", "/v1/health")).status == 200
        await raw.send(b"GET /v1/hea")
        (await raw.answer()).problem(408, "request_timeout")
    async with await api.connect() as raw:
        await raw.send(request("GET", "/v1/health") + b"GET /v1/hea")
        assert (await raw.answer()).status == 200
        (await raw.answer()).problem(408, "request_timeout")
        assert await raw.closed()


@scenario(body_timeout_s=0.2)
async def test_half_a_body_is_answered_and_closed_in_time(api: Api) -> None:
    async with await api.connect() as raw:
        await raw.send(b"POST /v1/jobs HTTP/1.1\r\nHost: jobs\r\nContent-Length: 100\r\n\r\n{")
        (await raw.answer()).problem(408, "request_timeout")
        assert await raw.closed()


@scenario()
async def test_a_body_cut_short_leaves_no_job(api: Api) -> None:
    body = msgspec.json.encode(job())
    async with await api.connect() as raw:
        await raw.send(b"POST /v1/jobs HTTP/1.1\r\nHost: jobs\r\nContent-Length: %d\r\n\r\n" % (len(body) + 1) + body)
    assert (await api.ask("GET", "/v1/jobs")).json()["jobs"] == []


@scenario(idle_timeout_s=0.2)
async def test_an_idle_connection_is_closed(api: Api) -> None:
    async with await api.connect() as fresh, await api.connect() as used:
        assert (await used.ask("GET", "/v1/health")).status == 200
        assert await fresh.closed()
        assert await used.closed()


@scenario()
async def test_requests_sent_ahead_are_answered_in_order(api: Api) -> None:
    targets = ["/v1/health", "/nothing", "/v1/jobs", "/metrics"] * 10
    async with await api.connect() as raw:
        await raw.send(b"".join(request("GET", target) for target in targets))
        assert [(await raw.answer()).status for _ in targets] == [200, 404, 200, 200] * 10


def test_every_field_of_a_submission_is_read_as_it_is_written() -> None:
    """What the client library sends is what the server's types read."""
    sent = ShellJob(payload=ShellPayload(argv=["é", "\U0001f600"]), labels={"a": "b"})
    assert msgspec.json.decode(msgspec.json.encode(sent), type=ShellJob) == sent
