"""A scripted node over a real socket, with every break that a worker's way to it can have."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from jobs.protocol.model import OperationFailed, OperationLine, Problem
from jobs.workers.nodeapi import NodeApi

Answering = Callable[[bytes, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
_encode = msgspec.json.Encoder().encode


class Report:
    """What an operation has told."""

    def __init__(self) -> None:
        self.data = b""
        self.dropped = 0

    def progress(self, done: int, total: int, message: str = "") -> None:
        pass

    async def write(self, data: bytes) -> None:
        self.data += data

    def drop(self, size_bytes: int) -> None:
        self.dropped += size_bytes


class ScriptedNode:
    """Answers each connection as the next of these says, and the last of them all further ones."""

    def __init__(self, socket: Path, *answers: Answering) -> None:
        self._socket = socket
        self._answers = list(answers)
        self.heads: list[bytes] = []
        self.api = NodeApi(socket, 1001, admin=False)

    async def __aenter__(self) -> ScriptedNode:
        self._server = await asyncio.start_unix_server(self._serve, str(self._socket))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        try:
            await answer(head, reader, writer)
        finally:
            writer.close()


def says(status: int, body: bytes, *, length: int | None = None, headers: str = "") -> Answering:
    """Answer at once, with a body that may be shorter than is said; then hang up."""

    async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size = len(body) if length is None else length
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {size}\r\n{headers}\r\n".encode() + body)
        await writer.drain()

    return answer


def tells(*events: msgspec.Struct | bytes) -> Answering:
    """Tell of an operation on lines; then hang up."""
    body = b"".join(event if isinstance(event, bytes) else _encode(event) + b"\n" for event in events)
    return says(200, body)


async def hangs_up(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    return


async def cut(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Tell something, and hang up without the mark of the end."""
    text = _encode(OperationLine(text="1")) + b"\n"
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(text), text))
    await writer.drain()


def problem(code: str, status: int) -> Problem:
    return Problem(type="", title="", status=status, code=code, detail=f"it is {code}")


def failed(code: str) -> OperationFailed:
    return OperationFailed(problem=problem(code, 503))
