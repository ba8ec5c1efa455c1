"""What the API layer itself costs: processor time of one submission over the socket with a service that does nothing.

    python -m benchmarks.api_overhead [--requests N] [--profile]

Server and client are two processes; only the server's processor time counts. The client pipelines a few requests, so
that the server is never idle and the time for a wake-up is shared as it is under load. Beside it stands the same
exchange with a bare aiohttp handler that decodes nothing and answers the same bytes: what of it is aiohttp.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import multiprocessing
import pstats
import socket
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import msgspec
import uvloop
from aiohttp import web

from jobs import jobs
from jobs.api import ApiConfig, serve
from jobs.control.transitions import view
from jobs.protocol.ids import JobId
from jobs.protocol.model import JobSubmit, ShellJob, Submitted
from jobs.service import Backend, Caller

PIPELINED = 8
BODY = json.dumps({"type": "shell", "payload": {"argv": ["echo", "hello"]}, "labels": {"team": "a"}}).encode()
REQUEST = (
    b"POST /v1/jobs HTTP/1.1\r\nHost: jobs\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(BODY)
) + BODY
SUBMITTED = msgspec.json.decode(BODY, type=ShellJob)
JOB = view(
    JobId("01890000-0000-7000-8000-000000000000"), jobs.on_submit(SUBMITTED, owner=0, now_ms=1_700_000_000_000), 1
)


class NullService:
    """Accepts every job and does nothing with it."""

    async def submit(self, caller: Caller, jobs: Sequence[JobSubmit]) -> list[Submitted]:
        return [Submitted(job=JOB, created=True) for _ in jobs]


class NullBackend:
    """Has that service, and is its own site."""

    control = NullService()
    leads = True
    patience_s = 1.0

    @property
    def whereabouts(self) -> NullBackend:
        return self

    def metrics(self) -> dict[str, tuple[str, float]]:
        return {}


async def serve_bare(path: str) -> object:
    """Serve the same bytes without any of ours."""
    answer = b"x" * 361

    async def handle(request: web.BaseRequest) -> web.Response:
        await request.read()
        return web.Response(status=201, body=answer, content_type="application/json")

    return await asyncio.get_running_loop().create_unix_server(web.Server(handle, access_log=None), path)


async def serve_api(path: str) -> object:
    return await serve(cast("Backend", NullBackend()), path, ApiConfig())


def server(kind: str, path: str, profile: bool, pipe: Connection) -> None:
    """Serve until told; send the processor time since the last word at each."""

    async def main() -> None:
        served = await {"api": serve_api, "bare": serve_bare}[kind](path)
        pipe.send(None)
        while await asyncio.to_thread(pipe.recv):
            pipe.send(time.process_time())
        del served

    if not profile:
        uvloop.run(main())
        return
    profiler = cProfile.Profile()
    profiler.runcall(uvloop.run, main())
    pstats.Stats(profiler).sort_stats("tottime").print_stats(25)


def exchange(path: str, requests: int) -> None:
    """Send requests and read their answers."""
    with socket.socket(socket.AF_UNIX) as made:
        made.connect(path)
        for _ in range(requests // PIPELINED):
            made.sendall(REQUEST * PIPELINED)
            answers = b""
            while answers.count(b"HTTP/1.1 201") < PIPELINED or not complete(answers):
                data = made.recv(1 << 16)
                assert data, answers
                answers += data


def complete(answers: bytes) -> bool:
    """Tell whether the last answer is here whole."""
    head, end, body = answers[answers.rindex(b"HTTP/1.1 ") :].partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0) if end else 0
    return bool(end) and len(body) >= length


def measure(kind: str, requests: int, profile: bool) -> float:
    """Return the server's processor time of one request, in µs."""
    context: Any = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with tempfile.TemporaryDirectory() as directory:
        path = str(Path(directory) / "api.sock")
        process = context.Process(target=server, args=(kind, path, profile, theirs))
        process.start()
        ours.recv()
        exchange(path, max(PIPELINED, requests // 10))
        ours.send(True)
        before = ours.recv()
        exchange(path, requests)
        ours.send(True)
        used_s: float = ours.recv() - before
        ours.send(False)
        process.join()
    return used_s / (requests // PIPELINED * PIPELINED) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--profile", action="store_true", help="print where the API spends its time")
    arguments = parser.parse_args()
    if arguments.profile:
        measure("api", arguments.requests, profile=True)
        return
    api_us = min(measure("api", arguments.requests, profile=False) for _ in range(3))
    bare_us = min(measure("bare", arguments.requests, profile=False) for _ in range(3))
    found = {
        "api_submit_us": round(api_us, 1),
        "bare_aiohttp_us": round(bare_us, 1),
        "ratio": round(api_us / bare_us, 2),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
