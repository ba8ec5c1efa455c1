"""Streams, long polls and many connections over the real socket."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path

import pytest

from jobs.store import Compact, Txn
from tests.support.api import Api, Raw, job, request, scenario

ABSENT = "01890000-0000-7000-8000-000000000000"
BIG = "x" * 900_000


async def put(api: Api, key: str, text: str = "v") -> int:
    answer = await api.ask("POST", "/v1/kv:put", {"key": key, "value": {"text": text}})
    assert answer.status == 200, answer
    revision: int = answer.json()["revision"]
    return revision


async def open_stream(api: Api, target: str, **headers: str) -> Raw:
    raw = await api.connect()
    await raw.send(request("GET", target, Accept="text/event-stream", **headers))
    status, answered = await raw.head()
    assert (status, answered["content-type"]) == (200, "text/event-stream")
    return raw


# --- watching ---------------------------------------------------------------------------------------------------------


@scenario()
async def test_a_watch_goes_on_after_the_last_event_that_a_client_had(api: Api) -> None:
    raw = await open_stream(api, "/v1/kv:watch?key=/data/&prefix=true")
    begin = await raw.event()
    assert set(begin) == {"id"}, "a watch says first where it begins"
    await put(api, "/data/a")
    first = await raw.event()
    raw.close()
    second, third = await put(api, "/data/b"), await put(api, "/data/c")
    for headers, query in (
        ({"Last_Event_ID": first["id"]}, "&after_revision=0"),
        ({}, f"&after_revision={first['id']}"),
    ):
        raw = await open_stream(api, f"/v1/kv:watch?key=/data/&prefix=true{query}", **headers)
        assert [(await raw.event())["id"], (await raw.event())["id"]] == [str(second), str(third)]
        raw.close()


@scenario()
async def test_a_job_is_watched_to_its_end(api: Api) -> None:
    job_id = await api.submit()
    async with await open_stream(api, f"/v1/jobs/{job_id}/watch?after_revision=0") as raw:
        assert '"state":"pending"' in (await raw.event())["data"]
        assert (await api.ask("POST", f"/v1/jobs/{job_id}/cancel")).json()["outcome"] == "cancelled"
        assert '"reason":"cancelled"' in (await raw.event())["data"]


@scenario()
async def test_history_that_is_gone_is_told_by_status(api: Api) -> None:
    for _ in range(3):
        last = await put(api, "/data/a")
    await api.plane.consensus.propose(Txn(then=(Compact(last),)))
    for target in ("/v1/kv:watch?key=/data/a&after_revision=1", "/v1/jobs:watch?after_revision=1"):
        (await api.ask("GET", target)).problem(410, "compacted")
    (await api.ask("GET", "/v1/kv?key=/data/a&revision=1")).problem(410, "compacted")


@scenario()
async def test_what_speaks_against_a_stream_is_told_by_status(api: Api) -> None:
    for target in (f"/v1/jobs/{ABSENT}/watch", f"/v1/jobs/{ABSENT}/logs?follow=true", f"/v1/jobs/{ABSENT}/logs"):
        for accept in ("text/event-stream", "*/*"):
            (await api.ask("GET", target, Accept=accept)).problem(404, "not_found")
    for value in ("x", "-1", "1" * 30, "\u0661"):
        found = await api.ask("GET", "/v1/jobs:watch", Last_Event_ID=value)
        assert found.problem(400, "invalid_request")["field"] == "Last-Event-ID"


@scenario()
async def test_followed_logs_begin_before_there_is_output(api: Api) -> None:
    job_id = await api.submit()
    async with await open_stream(api, f"/v1/jobs/{job_id}/logs?follow=true"):
        pass
    async with await api.connect() as raw:
        await raw.send(request("GET", f"/v1/jobs/{job_id}/logs?follow=true"))
        assert (await raw.head())[0] == 200
        await api.ask("POST", f"/v1/jobs/{job_id}/cancel")
        assert await raw.chunk() == b"", "a job that ended without output has an empty log, whole"


def test_clients_that_leave_are_no_fault_of_the_node(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def leave(api: Api, data: bytes) -> None:
        async with await api.connect() as raw:
            await raw.send(data)

    @scenario()
    async def clients_leave(api: Api) -> None:
        job_id = await api.submit()
        async with await open_stream(api, f"/v1/jobs/{job_id}/logs?follow=true"):
            pass
        await leave(api, request("GET", f"/v1/jobs/{job_id}/wait?timeout_s=60"))
        await leave(api, b"POST /v1/jobs HTTP/1.1\r\nHost: jobs\r\nContent-Length: 100\r\n\r\n{")
        await leave(api, b"GET /v1/hea")
        packed = b"POST /v1/jobs HTTP/1.1\r\nHost: jobs\r\nContent-Encoding: gzip\r\nContent-Length: 6\r\n\r\nno zip"
        async with await api.connect() as raw:
            await raw.send(packed)
            (await raw.answer()).problem(415, "unsupported_media_type")

    clients_leave(tmp_path)
    assert [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")] == []


# --- long polls -------------------------------------------------------------------------------------------------------


@scenario()
async def test_a_wait_returns_when_the_job_ends_and_not_before(api: Api) -> None:
    job_id = await api.submit()
    waiting = asyncio.create_task(api.ask("GET", f"/v1/jobs/{job_id}/wait?timeout_s=60"))
    await asyncio.wait([waiting], timeout=0.3)
    assert not waiting.done()
    began = time.monotonic()
    await api.ask("POST", f"/v1/jobs/{job_id}/cancel")
    assert (await waiting).json()["state"] == "failed"
    assert time.monotonic() - began < 2


@scenario()
async def test_a_wait_that_finds_no_end_returns_the_job_as_it_is(api: Api) -> None:
    job_id = await api.submit()
    assert (await api.ask("GET", f"/v1/jobs/{job_id}/wait?timeout_s=0.2")).json()["state"] == "pending"
    answer = await api.ask("GET", f"/v1/jobs/{job_id}/result?timeout_s=0.2")
    answer.problem(409, "not_finished")


@scenario()
async def test_a_hundred_waits_cost_nothing_while_nothing_happens(api: Api) -> None:
    job_id = await api.submit()
    waits = [asyncio.create_task(api.ask("GET", f"/v1/jobs/{job_id}/wait?timeout_s=30")) for _ in range(100)]
    while api.server.desk.slots.used < 100:
        await api.ask("GET", "/v1/health")
    began_cpu_s, began_s = time.process_time(), time.monotonic()
    await asyncio.wait(waits, timeout=1.0)
    used = (time.process_time() - began_cpu_s) / (time.monotonic() - began_s)
    assert used < 0.5, f"{used:.0%} of a processor for 100 idle long polls"
    await api.ask("POST", f"/v1/jobs/{job_id}/cancel")
    assert {answer.json()["state"] for answer in await asyncio.gather(*waits)} == {"failed"}


# --- bounds -----------------------------------------------------------------------------------------------------------


@scenario(max_streams_per_uid=2)
async def test_a_user_has_so_many_streams_and_no_more(api: Api) -> None:
    held = [await open_stream(api, "/v1/jobs:watch") for _ in range(2)]
    answer = await api.ask("GET", "/v1/kv:watch?key=/data/a")
    answer.problem(429, "too_many_requests")
    assert answer.headers["retry-after"] == "1"
    assert (await api.ask("GET", "/v1/health")).status == 200, "other requests are not streams"
    held[0].close()
    async with asyncio.timeout(5):
        while api.server.desk.slots.used == 2:
            await asyncio.sleep(0)
    (await open_stream(api, "/v1/jobs:watch")).close()


@scenario(max_connections=3)
async def test_a_connection_too_many_is_told_so_and_closed(api: Api) -> None:
    held = [await api.connect() for _ in range(3)]
    assert [(await raw.ask("GET", "/v1/health")).status for raw in held] == [200] * 3
    async with await api.connect() as silent:
        answer = await silent.answer()
        answer.problem(429, "too_many_requests")
        assert answer.headers["retry-after"] == "1"
        assert await silent.closed()
    (await api.ask("POST", "/v1/jobs", job())).problem(429, "too_many_requests")
    held[0].close()
    async with asyncio.timeout(10):
        while (await api.ask("GET", "/v1/health")).status != 200:
            pass
    assert (await held[1].ask("GET", "/v1/jobs")).json()["jobs"] == []


@scenario(write_timeout_s=0.3, ping_s=0.1)
async def test_a_reader_that_takes_nothing_of_a_stream_is_cut_off(api: Api) -> None:
    reader = await api.connect()
    await reader.send(request("GET", "/v1/kv:watch?key=/data/a", Accept="text/event-stream"))
    await reader.head()
    reader.writer.transport.pause_reading()  # type: ignore[attr-defined]
    async with asyncio.timeout(20), await api.connect() as writer:
        while api.server.desk.slots.used:
            body = {"key": "/data/a", "value": {"text": BIG}}
            assert (await writer.ask("POST", "/v1/kv:put", body)).status == 200
    assert (await api.ask("GET", "/v1/health")).status == 200


@scenario(write_timeout_s=0.3)
async def test_a_reader_that_takes_no_answers_is_cut_off_and_holds_one_answer_at_most(api: Api) -> None:
    await put(api, "/data/big", BIG)
    async with await api.connect() as raw:
        await raw.ask("GET", "/v1/health")
        connection = api.server.connections[-1]
        raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await raw.send(request("GET", "/v1/kv?key=/data/big") * 50)
        most = 0
        async with asyncio.timeout(20):
            while (transport := connection.transport) is not None:
                most = max(most, transport.get_write_buffer_size())
                await asyncio.sleep(0)
        assert 0 < most < 2 * len(BIG)


@scenario(idle_timeout_s=0.2, write_timeout_s=0.3)
async def test_a_reader_that_leaves_a_small_answer_does_not_keep_its_place_either(api: Api) -> None:
    await put(api, "/data/big", "x" * 230_000)
    async with await api.connect() as raw:
        raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await raw.send(request("GET", "/v1/kv?key=/data/big"))
        async with asyncio.timeout(10):
            while api.server.connections:
                await asyncio.sleep(0.01)


@scenario(max_connections=1_100)
async def test_a_thousand_idle_connections_leave_the_node_serving(api: Api) -> None:
    idle = [await api.connect() for _ in range(1_000)]
    for raw in idle[::2]:
        await raw.send(b"GET /v1/hea")
    began = time.monotonic()
    for _ in range(50):
        assert (await api.ask("POST", "/v1/jobs", job())).status == 201
    assert time.monotonic() - began < 5
    for raw in idle[:100:2]:
        await raw.send(b"lth HTTP/1.1\r\nHost: jobs\r\n\r\n")
        assert (await raw.answer()).status == 200
    for raw in idle:
        raw.close()


# --- stopping ---------------------------------------------------------------------------------------------------------


@scenario()
async def test_a_stop_ends_streams_and_long_polls_at_once(api: Api) -> None:
    job_id = await api.submit()
    stream = await open_stream(api, "/v1/jobs:watch")
    await stream.event()
    follower = await api.connect()
    await follower.send(request("GET", f"/v1/jobs/{job_id}/logs?follow=true"))
    await follower.head()
    poll = await api.connect()
    await poll.send(request("GET", f"/v1/jobs/{job_id}/wait?timeout_s=300"))
    idle = await api.connect()
    while api.server.desk.slots.used < 3:
        await api.ask("GET", "/v1/health")
    began = time.monotonic()
    await api.server.stop(30.0)
    assert time.monotonic() - began < 2
    ended = await stream.event()
    assert (ended["event"], '"code":"unavailable"' in ended["data"]) == ("problem", True)
    assert await stream.closed(), "no end mark: the stream is not whole"
    assert await follower.closed()
    answer = await poll.answer()
    answer.problem(503, "unavailable")
    assert answer.headers["retry-after"] == "1"
    assert await idle.closed()
    assert not api.socket.exists()


@scenario()
async def test_a_burst_of_connections_waits_its_turn(api: Api) -> None:
    """Given a node that is busy for a moment, then 800 clients that connect meanwhile all find room in its backlog."""
    burst = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) for _ in range(800)]
    for one in burst:
        one.connect(str(api.socket))  # in one go: the event loop of the node accepts nothing meanwhile
    burst[-1].send(request("GET", "/v1/health"))
    assert (await asyncio.get_running_loop().sock_recv(burst[-1], 100)).startswith(b"HTTP/1.1 200")
    for one in burst:
        one.close()
