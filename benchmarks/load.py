"""A light HTTP load over a Unix socket: a connection a client, requests built beforehand, answers counted."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import msgspec

from jobs.protocol.ids import REQUEST_ID_HEADER

ECHO = {"type": "shell", "payload": {"argv": ["echo", "hello"]}}
TRUE = {"type": "shell", "payload": {"argv": ["/bin/true"]}}


class Connection:
    """One client: sends a request, waits for its answer."""

    async def open(self, socket: Path) -> Connection:
        self._reader, self._writer = await asyncio.open_unix_connection(str(socket), limit=1 << 24)
        return self

    async def ask(self, method: str, target: str, body: object = None) -> dict[str, object]:
        """Send one request and return its answer; raises RuntimeError unless it is a success."""
        return await self.send(request(method, target, body))

    async def send(self, data: bytes) -> dict[str, object]:
        decoded: dict[str, object] = msgspec.json.decode(await self._exchange(data))
        return decoded

    async def text(self, target: str) -> str:
        """Return the body of an answer that is no JSON."""
        return (await self._exchange(request("GET", target))).decode()

    async def _exchange(self, data: bytes) -> bytes:
        self._writer.write(data)
        head = await self._reader.readuntil(b"\r\n\r\n")
        size = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        answer = await self._reader.readexactly(size)
        if head[9:10] != b"2":
            raise RuntimeError(f"{head.splitlines()[0].decode()}: {answer.decode()}")
        return answer

    def close(self) -> None:
        self._writer.close()


def request(method: str, target: str, body: object = None, *, request_id: str | None = None) -> bytes:
    data = b"" if body is None else msgspec.json.encode(body)
    lines = [f"{method} {target} HTTP/1.1", "Host: jobs", f"Content-Length: {len(data)}"]
    if data:
        lines.append("Content-Type: application/json")
    if request_id is not None:
        lines.append(f"{REQUEST_ID_HEADER}: {request_id}")
    return "\r\n".join([*lines, "", ""]).encode() + data


async def closed_loop(
    socket: Path, clients: int, seconds: float, once: Callable[[Connection, int], Awaitable[object]]
) -> tuple[float, list[float]]:
    """Let `clients` repeat `once` as fast as answers come; return the rate per second and every latency in ms."""
    connections = [await Connection().open(socket) for _ in range(clients)]
    latencies: list[float] = []
    end = time.perf_counter() + seconds

    async def client(connection: Connection, numbers: Iterator[int]) -> None:
        while (began := time.perf_counter()) < end:
            await once(connection, next(numbers))
            latencies.append((time.perf_counter() - began) * 1000)

    began = time.perf_counter()
    await asyncio.gather(*(client(c, iter(range(i << 32, 1 << 60))) for i, c in enumerate(connections)))
    spent = time.perf_counter() - began
    for connection in connections:
        connection.close()
    return len(latencies) / spent, latencies


def percentiles(latencies: list[float]) -> tuple[float, float]:
    """Return p50 and p99."""
    cuts = statistics.quantiles(latencies, n=100)
    return cuts[49], cuts[98]
