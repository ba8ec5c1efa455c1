"""A node's transport in a process of its own, driven line by line; and the parent's end of it.

python -m tests.support.netpeer DIR NAME BIND LIMITS, and its cluster in NETPEER_CLUSTER
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

from jobs._native import Endpoint
from jobs.net import Net, RequestFailed, Stream, StreamBroken
from jobs.transfer import TransferFailed, read_offer, send_file

PATIENCE_S = 60


class Peer:
    """Answers every request with its body and tells its parent what it sees."""

    def __init__(self, folder: Path, name: str, bind: str, limits: dict[str, int]) -> None:
        self._folder = folder
        cluster = os.environ.get("NETPEER_CLUSTER", "test")
        endpoint = Endpoint(str(folder / "node.key"), bind=[bind], cluster=cluster, node=name, limits=limits)
        self._net = Net(endpoint, self)
        self._messages = 0
        self._tasks: set[asyncio.Task[None]] = set()
        tell(started=True, id=endpoint.id, addresses=endpoint.addresses)

    def on_peer_up(self, peer: str, name: str) -> None:
        tell(up=name)

    def on_peer_down(self, peer: str, reason: str) -> None:
        tell(down=reason)

    def on_refused(self, who: str, kind: str, detail: str, left_out: int) -> None:
        tell(refused=kind, detail=detail)

    def on_message(self, peer: str, message: bytes) -> None:
        self._messages += 1
        if message.startswith(b"tell "):
            tell(message=message[5:].decode(), count=self._messages)

    async def on_request(self, peer: str, body: bytes) -> bytes:
        if body == b"hang":
            tell(hanging=True)
            await asyncio.Event().wait()
        return body

    async def on_stream(self, peer: str, header: bytes, stream: Stream) -> None:
        if header == b"file":
            await self._receive(stream)
        elif header == b"echo":
            while data := await stream.read():
                await stream.write(data)
        else:
            tell(stream=header.decode())
            try:
                await stream.closed
            except StreamBroken as broken:
                tell(broken=broken.kind, detail=broken.detail)

    async def _receive(self, stream: Stream) -> None:
        try:
            offer = await read_offer(stream)
            tell(offered=offer.name, size=offer.size_bytes)
            await offer.receive(self._folder / offer.name)
            tell(received=offer.name, peak_bytes=peak_bytes())
        except TransferFailed as failed:
            tell(broken="file", detail=str(failed))

    async def _send_file(self, peer: str, path: str) -> None:
        try:
            await send_file(await self._net.open_stream(peer, b"file"), Path(path), Path(path).name)
            tell(sent=path, peak_bytes=peak_bytes())
        except TransferFailed as failed:
            tell(broken="file", detail=str(failed))

    async def _open(self, peer: str, header: str) -> None:
        stream = await self._net.open_stream(peer, header.encode())
        try:
            await stream.closed
        except StreamBroken as broken:
            tell(broken=broken.kind, detail=broken.detail)

    async def _ask(self, peer: str, body: str) -> None:
        try:
            answer = await self._net.request(peer, body.encode(), PATIENCE_S)
            tell(answer=answer.decode())
        except RequestFailed as failed:
            tell(failed=failed.kind, detail=failed.detail)

    def _keep(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def serve(self) -> None:
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            await self._carry_out(json.loads(line))
        await self._net.close()

    async def _carry_out(self, order: dict[str, Any]) -> None:
        if "peers" in order:
            self._net.set_peers(order["peers"], (), order.get("foreign"))
        elif "send" in order:
            tell(taken=self._net.send(order["to"], order["send"].encode()))
        elif "file" in order:
            self._keep(self._send_file(order["to"], order["file"]))
        elif "ask" in order:
            self._keep(self._ask(order["to"], order["ask"]))
        elif "open" in order:
            self._keep(self._open(order["to"], order["open"]))
        elif "counters" in order:
            tell(counters=self._net.endpoint.counters())


def peak_bytes(pid: int | None = None) -> int:
    """Return the most memory that a process has used, this one by default, files' pages aside."""
    status = Path("/proc") / ("self" if pid is None else str(pid)) / "status"
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return (int(fields["VmHWM"].split()[0]) - int(fields["RssFile"].split()[0])) * 1024


def tell(**news: Any) -> None:
    print(json.dumps(news), flush=True)


class NetProcess:
    """The parent's end."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self._process = process
        self._seen: list[dict[str, Any]] = []
        self.folder = folder
        self.pid = process.pid
        self.id = ""
        self.addresses: list[str] = []

    @classmethod
    async def start(
        cls,
        folder: Path,
        name: str,
        *,
        bind: str = "127.0.0.1:0",
        namespace: str | None = None,
        limits: dict[str, int] | None = None,
        module: str = "tests.support.netpeer",
        env: dict[str, str] | None = None,
    ) -> Self:
        folder.mkdir(exist_ok=True)
        prefix = ["ip", "netns", "exec", namespace] if namespace else []
        arguments = [str(folder), name, bind, json.dumps(limits or {})]
        process = await asyncio.create_subprocess_exec(
            *prefix,
            sys.executable,
            "-m",
            module,
            *arguments,
            env=os.environ | (env or {}),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        made = cls(process, folder)
        started = await made.wait("started")
        made.id, made.addresses = started["id"], started["addresses"]
        return made

    async def wait(self, *keys: str, **wanted: Any) -> dict[str, Any]:
        """Return the next news with one of these keys, and these values; others are put aside."""
        wanted_items = wanted.items()
        async with asyncio.timeout(PATIENCE_S):
            while True:
                for place, news in enumerate(self._seen):
                    if any(key in news for key in keys) and wanted_items <= news.items():
                        return self._seen.pop(place)
                assert self._process.stdout is not None
                line = await self._process.stdout.readline()
                assert line, f"the peer has ended; it told {self._seen}"
                self._seen.append(json.loads(line))

    def forget(self) -> None:
        self._seen.clear()

    def order(self, **order: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")

    def know(self, *others: NetProcess | Endpoint) -> None:
        self.order(peers={other.id: other.addresses for other in others})

    def know_foreign(self, *others: tuple[NetProcess, str]) -> None:
        """Know these of other clusters, and nobody else."""
        self.order(peers={}, foreign={other.id: (cluster, other.addresses) for other, cluster in others})

    async def counters(self) -> dict[str, int]:
        self.order(counters=True)
        counters: dict[str, int] = (await self.wait("counters"))["counters"]
        return counters

    def signal(self, number: signal.Signals) -> None:
        # In a namespace `ip` has become the interpreter by exec: it is the same process.
        os.kill(self.pid, number)

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()

    async def stop(self) -> None:
        """End it as a node ends: connections are closed with a reason."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()


@contextlib.asynccontextmanager
async def net_process(folder: Path, name: str, **options: Any) -> AsyncIterator[NetProcess]:
    process = await NetProcess.start(folder, name, **options)
    try:
        yield process
    finally:
        await process.kill()


async def main() -> None:
    folder, name, bind, limits = sys.argv[1:]
    await Peer(Path(folder), name, bind, json.loads(limits)).serve()


if __name__ == "__main__":
    asyncio.run(main())
