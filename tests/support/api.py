"""The API over a real control plane in the test's process, and a client that says exactly the bytes it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import msgspec
import uvloop

from jobs.api import ApiConfig, ApiServer, serve
from tests.support.backend import SiteBackend
from tests.support.plane import Plane

ANSWER_TIMEOUT_S = 10.0


class Answer(msgspec.Struct, frozen=True):
    """One response; header names are lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    def problem(self, status: int, code: str) -> dict[str, Any]:
        """Return the problem document, having checked that it is one and is this one."""
        assert self.headers.get("content-type") == "application/problem+json", self
        found: dict[str, Any] = self.json()
        assert (self.status, found["status"], found["code"]) == (status, status, code), found
        assert found["type"] == f"urn:jobs:error:{code}"
        assert found["title"]
        assert found["detail"]
        return found


class Raw:
    """A connection on which a test writes bytes of its own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, path: Path) -> Raw:
        return cls(*await asyncio.open_unix_connection(str(path)))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        """Return status and headers of the next response."""
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            status, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        pairs = (line.partition(":") for line in lines if line)
        return int(status.split()[1]), {name.lower(): value.strip() for name, _, value in pairs}

    async def chunk(self) -> bytes:
        """Return the next chunk of a chunked body, b"" at its end."""
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            size = int(await self.reader.readline(), 16)
            return (await self.reader.readexactly(size + 2))[:-2]

    async def event(self) -> dict[str, str]:
        """Return the next server-sent event that is no mere sign of life; {} at the stream's end."""
        while chunk := await self.chunk():
            fields = dict(line.partition(": ")[::2] for line in chunk.decode().splitlines() if not line.startswith(":"))
            fields.pop("", None)
            if fields:
                return fields
        return {}

    async def answer(self, *, to_head: bool = False) -> Answer:
        status, headers = await self.head()
        body = b""
        if headers.get("transfer-encoding") == "chunked":
            while piece := await self.chunk():
                body += piece
        elif not to_head:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return Answer(status, headers, body)

    async def ask(self, method: str, target: str, body: Any = None, **headers: str) -> Answer:
        """Send a whole request and return its answer; a body that is not bytes is sent as JSON."""
        await self.send(request(method, target, body, **headers))
        return await self.answer(to_head=method == "HEAD")

    async def closed(self) -> bool:
        """Wait until the other side has closed; tell whether it said no more before that."""
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                return await self.reader.read() == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.writer.close()

    async def __aenter__(self) -> Raw:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.close()


def request(method: str, target: str, body: Any = None, **headers: str) -> bytes:
    """Return a request as bytes; `_` in a header's name stands for `-`."""
    lines = [f"{method} {target} HTTP/1.1", "Host: jobs"]
    data = body if isinstance(body, bytes) else b"" if body is None else msgspec.json.encode(body)
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + data


class Api:
    """A served control plane."""

    def __init__(self, plane: Plane, server: ApiServer, socket: Path) -> None:
        self.plane = plane
        self.server = server
        self.socket = socket

    async def connect(self) -> Raw:
        return await Raw.connect(self.socket)

    async def ask(self, method: str, target: str, body: Any = None, **headers: str) -> Answer:
        async with await self.connect() as raw:
            return await raw.ask(method, target, body, **headers)

    async def submit(self, *argv: str, **fields: Any) -> str:
        """Submit a shell job that no worker will take; return its id."""
        answer = await self.ask("POST", "/v1/jobs", job(*argv, **fields))
        assert answer.status == 201, answer
        found: str = answer.json()["job"]["id"]
        return found


A = TypeVar("A", bound=Api)
Scenario: TypeAlias = Callable[..., Callable[[Callable[[A], Awaitable[None]]], Callable[[Path], None]]]


@asynccontextmanager
async def served(directory: Path, *, plane: dict[str, Any] | None = None, **changes: Any) -> AsyncIterator[Api]:
    """Serve a control plane without workers with these settings of ApiConfig."""
    async with Plane(directory, **(plane or {})) as made:
        socket = directory / "api.sock"
        server = await serve(SiteBackend(made.site), str(socket), ApiConfig(**changes))
        try:
            yield Api(made, server, socket)
        finally:
            await server.stop(1.0)


def job(*argv: str, **fields: Any) -> dict[str, Any]:
    """Return a submission."""
    return {"type": "shell", "payload": {"argv": list(argv or ("true",))}, **fields}


def scenario_of(served: Callable[..., AbstractAsyncContextManager[A]]) -> Scenario[A]:
    """Return what makes a test of a coroutine that is given what is served with these settings, on the event loop that
    the node uses."""

    def scenario(**settings: Any) -> Callable[[Callable[[A], Awaitable[None]]], Callable[[Path], None]]:
        def decorate(test: Callable[[A], Awaitable[None]]) -> Callable[[Path], None]:
            def run(tmp_path: Path) -> None:
                async def inner() -> None:
                    async with served(tmp_path, **settings) as api:
                        await test(api)

                uvloop.run(inner())

            run.__name__ = test.__name__
            run.__doc__ = test.__doc__
            return run

        return decorate

    return scenario


scenario = scenario_of(served)
