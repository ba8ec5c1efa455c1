"""The two ways in which a request is read, here and by aiohttp, one beside the other: nobody can tell which it was."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

from jobs.api.quick import MAX_AT_ONCE
from tests.support.api import Answer, Api, Raw, job, request, scenario

MISSING = "01890000-0000-7000-8000-000000000000"
ID = "0189c0de-0000-7000-8000-00000000000"
VALUE = {"key": "/data/a", "value": {"text": "x"}}
REQUESTS = (
    request("GET", "/v1/kv?key=/data/none"),
    request("GET", "/v1/kv?key=%2Fdata%2Fnone&consistency=stale"),
    request("GET", "/v1/kv?key=/data/none&nothing=1"),
    request("GET", "/v1/kv?key=/data/none", Accept="*/*", User_Agent="a test/1.0", Connection="keep-alive"),
    request("POST", "/v1/kv:put", VALUE, Jobs_Request_Id=f"{ID}1"),
    request("POST", "/v1/kv:put", {**VALUE, "lease": 7}),
    request("POST", "/v1/kv:put", {"key": "/jobs/a", "value": {"text": "x"}}),
    request("POST", "/v1/kv:put", VALUE, Jobs_Request_Id="none"),
    request("POST", "/v1/kv:put", VALUE, Jobs_Request_Id=f"{ID}4", Content_Encoding="identity"),
    request("POST", "/v1/kv:put", {**VALUE, "kye": ""}),
    request("POST", "/v1/kv:put", b"{"),
    request("POST", "/v1/kv:put"),
    request("POST", "/v1/kv:delete", {"key": "/data/none"}, Jobs_Request_Id=f"{ID}2"),
    request("POST", "/v1/jobs", job(), Jobs_Request_Id=f"{ID}3"),
    request("POST", "/v1/jobs", job(queue="a b")),
    request("GET", "/v1/jobs/none"),
    request("GET", f"/v1/jobs/{MISSING}"),
    request("GET", f"/v1/jobs/{MISSING}/wait?timeout_s=0"),
    request("GET", f"/v1/jobs/{MISSING}/logs"),
    request("GET", "/v1/queues/a%2Fb"),
    request("DELETE", "/v1/schedules/none"),
    request("PUT", "/v1/jobs"),
    request("GET", "/none"),
    request("GET", "//v1/jobs"),
    request("GET", "/v1/../v1/jobs"),
    request("HEAD", "/v1/health"),
    request("GET", "/openapi.json"),
    request("POST", "/metrics"),
    request("GET", "/v1/kv?key=/data/none", X_Unknown="1"),
    request("GET", "/v1/kv?key=/data/none", b"a body"),
)
"""Whose answers are the same whenever they are asked for, but for the first time."""


def said(answer: Answer) -> Answer:
    """Return what does not depend on when it was said."""
    return Answer(answer.status, {**answer.headers, "date": ""}, answer.body)


async def answers(raw: Raw, requests: Sequence[bytes]) -> list[Answer]:
    """Return the answers to requests that have been sent."""
    return [said(await raw.answer(to_head=one.startswith(b"HEAD"))) for one in requests]


async def alone(api: Api) -> list[Answer]:
    """Return the answer to each request that is sent on a connection of its own, after what it changes is done."""
    found = []
    for one in REQUESTS * 2:
        async with await api.connect() as raw:
            await raw.send(one)
            found += await answers(raw, [one])
    return found[len(REQUESTS) :]


async def answers_in_pieces(api: Api, one: bytes, at: int) -> Answer:
    """Send a request in two pieces, each read by itself."""
    async with await api.connect() as raw:
        await raw.send(one[:at])
        await turns()
        await raw.send(one[at:])
        (answer,) = await answers(raw, [one])
        return answer


async def turns() -> None:
    """Let the server, which has the same loop, read what was sent."""
    for _ in range(4):
        await asyncio.sleep(0)


class Held:
    """Writes that wait until they may begin."""

    def __init__(self) -> None:
        self.came = asyncio.Event()
        """One waits."""
        self.may_begin = asyncio.Event()


@contextmanager
def writes_held(api: Api) -> Iterator[Held]:
    held, consensus = Held(), api.plane.consensus
    propose = consensus.propose

    async def later(*of: Any) -> Any:
        held.came.set()
        await held.may_begin.wait()
        return await propose(*of)

    consensus.propose = later  # type: ignore[method-assign]
    try:
        yield held
    finally:
        consensus.propose = propose  # type: ignore[method-assign]


@scenario()
async def test_a_request_has_the_same_answer_in_one_piece_and_in_two(api: Api) -> None:
    for one, whole in zip(REQUESTS, await alone(api), strict=True):
        for at in range(1, len(one), 11):
            assert await answers_in_pieces(api, one, at) == whole, one[:at]


@scenario()
async def test_a_write_may_be_cut_anywhere(api: Api) -> None:
    one = REQUESTS[4]
    found = [await answers_in_pieces(api, one, at) for at in range(1, len(one))]
    assert {answer.status for answer in found} == {200}
    assert {answer.body for answer in found} == {found[0].body}, "it is the same request, by its id"


@scenario()
async def test_requests_sent_ahead_have_the_answers_that_they_have_alone(api: Api) -> None:
    expected = await alone(api)
    for turned in range(len(REQUESTS)):
        order = (*REQUESTS[turned:], *REQUESTS[:turned])
        async with await api.connect() as raw:
            await raw.send(b"".join(order))
            assert await answers(raw, order) == expected[turned:] + expected[:turned]


@scenario()
async def test_requests_sent_ahead_may_be_cut_anywhere(api: Api) -> None:
    some = (REQUESTS[4], REQUESTS[0], REQUESTS[21])
    data = b"".join(some)
    async with await api.connect() as raw:
        await raw.send(data)
        whole = await answers(raw, some)
    for at in range(1, len(data), 3):
        async with await api.connect() as raw:
            await raw.send(data[:at])
            await turns()
            await raw.send(data[at:])
            assert await answers(raw, some) == whole, at


@scenario()
async def test_requests_sent_ahead_leave_others_their_turn(api: Api) -> None:
    count = 2_000
    metrics, answered = api.server.metrics, 0
    note = metrics.answered

    def noting(route: str, status: int) -> None:
        nonlocal answered
        answered += 1
        note(route, status)

    metrics.answered = noting  # type: ignore[method-assign]
    async with await api.connect() as raw:
        await raw.send(request("GET", "/v1/health") * count)
        reading = asyncio.ensure_future(answers(raw, [b""] * count))
        most = before = 0
        while not reading.done():
            await asyncio.sleep(0)
            most, before = max(most, answered - before), answered
        assert {answer.status for answer in await reading} == {200}
        assert 0 < most <= MAX_AT_ONCE
    assert api.server.requests_count == 0


@scenario()
async def test_plain_requests_are_read_here_and_others_by_aiohttp_on_one_connection(api: Api) -> None:
    """`requests_count` is what aiohttp has read."""
    put, get = REQUESTS[4], REQUESTS[0]
    wait, logs = (request("GET", f"/v1/jobs/{MISSING}/{what}") for what in ("wait?timeout_s=0", "logs"))
    async with await api.connect() as raw:
        for one, by_aiohttp in ((put, 0), (wait, 0), (get, 0), (logs, 1), (put, 1), (logs, 2), (get, 2)):
            await raw.send(one)
            await answers(raw, [one])
            assert api.server.requests_count == by_aiohttp
        large = request("POST", "/v1/kv:put", {"key": "/data/b", "value": {"text": "x" * 600_000}})
        await raw.send(large)
        assert (await raw.answer()).status == 200
        assert api.server.requests_count == 3
        await raw.send(put + get)
        await answers(raw, [put, get])
        assert api.server.requests_count == 3, "it was known where the large one ended"
        await raw.send(request("GET", "/v1/kv?key=/data/none", X_Unknown="1"))
        assert (await raw.answer()).status == 404
        await raw.send(put)
        assert (await raw.answer()).status == 200
        assert api.server.requests_count == 5, "after what is not plain all is aiohttp's"


@scenario()
async def test_no_second_request_can_be_hidden_in_one(api: Api) -> None:
    """Two lengths, two ways to say it, folded and other odd lines: refused, and the connection ends with it."""
    hidden = request("POST", "/v1/kv:put", {"key": "/data/hidden", "value": {"text": ""}})
    head = b"POST /v1/kv:delete HTTP/1.1\r\nHost: jobs\r\n"
    size = len(hidden)
    for lines in (
        b"Content-Length: 0\r\nContent-Length: %d\r\n" % size,
        b"Content-Length: %d\r\nContent-Length: 0\r\n" % size,
        b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: %d\r\n" % size,
        b"Content-Length : 0\r\n",
        b"Content-Length: 0, %d\r\n" % size,
        b"Content-Length: +0\r\n",
        b"Content-Length: 0x0\r\n",
        b"Content-Length:\r\n 0\r\n",
        b"Content-Length: -1\r\n",
        b"Transfer-Encoding: identity\r\n",
        b"Host: other\r\n",
        b"\x00: a\r\n",
        b"A: \x00\r\n",
        b"A: b\rContent-Length: 0\r\n",
    ):
        async with await api.connect() as raw:
            await raw.send(head + lines + b"\r\n" + hidden)
            assert (await raw.answer()).status == 400, lines
            assert await raw.closed(), lines
    assert (await api.ask("GET", "/v1/kv?key=/data/hidden")).status == 404


@scenario(max_body_bytes=1_000)
async def test_limits_are_the_same(api: Api) -> None:
    for size, status in ((1_000, 200), (1_001, 413)):
        body = msgspec.json.encode({"key": "/data/a", "value": {"text": ""}}).ljust(size)
        async with await api.connect() as raw:
            await raw.send(request("POST", "/v1/kv:put", body))
            assert (await raw.answer()).status == status
    async with await api.connect() as raw:
        await raw.send(request("GET", "/v1/health", User_Agent="x" * 9_000))
        (await raw.answer()).problem(431, "headers_too_large")
        assert await raw.closed()
    assert (await api.ask("GET", "/v1/health", User_Agent="x" * 8_000)).status == 200


@scenario()
async def test_what_a_client_expects_before_its_body_it_gets(api: Api) -> None:
    body = msgspec.json.encode(VALUE)
    async with await api.connect() as raw:
        await raw.send(request("GET", "/v1/health"))
        assert (await raw.answer()).status == 200
        head = request("POST", "/v1/kv:put", Content_Length=str(len(body)), Expect="100-continue")
        await raw.send(head)
        assert (await raw.head())[0] == 100
        await raw.send(body)
        assert (await raw.answer()).status == 200


@scenario()
async def test_a_connection_that_is_to_be_closed_is(api: Api) -> None:
    for one in (
        request("GET", "/v1/health", Connection="close"),
        request("GET", "/v1/health").replace(b"HTTP/1.1", b"HTTP/1.0"),
    ):
        async with await api.connect() as raw:
            await raw.send(request("GET", "/v1/health") + one)
            assert [(await raw.answer()).status for _ in range(2)] == [200, 200]
            assert await raw.closed()


@scenario()
async def test_a_client_that_leaves_before_its_answer_is_forgotten(api: Api) -> None:
    with writes_held(api) as held:
        async with await api.connect() as raw:
            await raw.send(request("POST", "/v1/kv:put", VALUE) * 2)
            await held.came.wait()
        async with asyncio.timeout(10):
            while any(connection.connected for connection in api.server.connections):
                await asyncio.sleep(0.01)
        held.may_begin.set()
        async with asyncio.timeout(10):
            while not api.plane.store.revision:
                await asyncio.sleep(0.01)
    assert (await api.ask("GET", "/v1/health")).status == 200
    assert api.plane.store.revision == 1, "what had begun was carried out, and no more"


@scenario()
async def test_nobody_waits_for_a_client_that_has_left(api: Api) -> None:
    """Given a request that waits for a job, and others behind it, when the client leaves, it waits no longer."""
    waiting = (await api.ask("POST", "/v1/jobs", job())).json()["job"]["id"]
    for behind in (b"", request("GET", "/v1/health"), request("GET", "/v1/health") * 400):
        async with await api.connect() as raw:
            await raw.send(request("GET", f"/v1/jobs/{waiting}/wait?timeout_s=300"))
            async with asyncio.timeout(10):
                while not api.server.desk.slots.used:
                    await asyncio.sleep(0.01)
            await raw.send(behind)
            await turns()
        async with asyncio.timeout(10):
            while api.server.desk.slots.used:
                await asyncio.sleep(0.01)


@scenario(write_timeout_s=0.3)
async def test_a_client_that_takes_no_answers_is_cut_off(api: Api) -> None:
    put = request("POST", "/v1/kv:put", {"key": "/data/large", "value": {"text": "x" * 200_000}})
    assert (await answers_in_pieces(api, put, 100)).status == 200
    with socket.socket(socket.AF_UNIX) as made:
        made.setblocking(False)
        await asyncio.get_running_loop().sock_connect(made, str(api.socket))
        made.send(request("GET", "/v1/kv?key=/data/large") * 50)
        async with asyncio.timeout(10):
            while api.server.connections:
                await asyncio.sleep(0.01)
    assert api.server.requests_count == 1


@scenario(idle_timeout_s=0.2)
async def test_an_idle_connection_is_closed_and_one_in_use_is_not(api: Api) -> None:
    async with await api.connect() as raw:
        for _ in range(8):
            assert (await raw.ask("GET", "/v1/health")).status == 200
            await asyncio.sleep(0.05)
        assert api.server.requests_count == 0
        assert await raw.closed()


@scenario()
async def test_a_stop_lets_a_request_that_has_begun_finish_and_takes_no_further_one(api: Api) -> None:
    async with await api.connect() as raw:
        with writes_held(api) as held:
            await raw.send(request("POST", "/v1/kv:put", VALUE) * 3)
            await held.came.wait()
            stop = asyncio.ensure_future(api.server.stop(10.0))
            await raw.send(request("POST", "/v1/kv:put", VALUE))
            await turns()
            assert not stop.done()
            held.may_begin.set()
            assert (await raw.answer()).json()["revision"] == 1
            assert await raw.closed()
            await stop
    assert api.plane.store.revision == 1


@scenario()
async def test_a_stop_does_not_wait_for_longer_than_its_grace(api: Api) -> None:
    async with await api.connect() as raw:
        with writes_held(api) as held:
            await raw.send(request("POST", "/v1/kv:put", VALUE))
            await held.came.wait()
            async with asyncio.timeout(5):
                await api.server.stop(0.1)
            assert await raw.closed()
    assert api.plane.store.revision == 0
