"""The transport between two processes, beside plain TCP and plain QUIC of the same library, in one run.

python -m benchmarks.net [--round-trips 5000] [--messages 500000] [--bulk-mib 1024]
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.load import percentiles
from benchmarks.report import show
from jobs._native import Endpoint
from jobs.net import Net, Stream
from jobs.transfer import read_offer, send_file

SMALL = bytes(128)
MESSAGE = bytes(200)
CHUNK = bytes(256 << 10)


class Peer:
    """Echoes requests and streams, counts messages, keeps files, and throws away what comes on other streams."""

    def __init__(self, folder: Path, name: str) -> None:
        endpoint = Endpoint(str(folder / f"{name}.key"), bind=["127.0.0.1:0"], cluster="bench", node=name)
        self.net = Net(endpoint, self)
        self.up = asyncio.Event()
        self.count = 0
        self._folder = folder

    def on_peer_up(self, peer: str, name: str) -> None:
        self.up.set()

    def on_peer_down(self, peer: str, reason: str) -> None: ...

    def on_refused(self, who: str, kind: str, detail: str, left_out: int) -> None: ...

    def on_message(self, peer: str, message: bytes) -> None:
        self.count += 1

    async def on_request(self, peer: str, body: bytes) -> bytes:
        return b"%d" % self.count if body == b"count" else body

    async def on_stream(self, peer: str, header: bytes, stream: Stream) -> None:
        if header == b"file":
            await (await read_offer(stream)).receive(self._folder / "received")
            return
        while data := await stream.read():
            if header == b"echo":
                await stream.write(data)


async def serve(folder: Path) -> None:
    net = Peer(folder, "server").net
    print(net.id, *net.endpoint.addresses, flush=True)
    client, *addresses = (await asyncio.to_thread(sys.stdin.readline)).split()
    net.set_peers({client: addresses})
    await asyncio.to_thread(sys.stdin.read)
    await net.close()


async def round_trips(net: Net, server: str, count: int) -> tuple[float, float]:
    times = []
    for _ in range(count):
        started = time.perf_counter()
        await net.request(server, SMALL, 10)
        times.append((time.perf_counter() - started) * 1e6)
    return percentiles(times)


async def concurrent(net: Net, server: str, count: int) -> float:
    started = time.perf_counter()
    for _ in range(0, count, 256):
        await asyncio.gather(*(net.request(server, SMALL, 30) for _ in range(256)))
    return count / (time.perf_counter() - started)


async def messages(net: Net, server: str, count: int) -> float:
    started = time.perf_counter()
    for number in range(count):
        while not net.send(server, MESSAGE):
            await asyncio.sleep(0)
        if number % 256 == 0:
            await asyncio.sleep(0)
    while int(await net.request(server, b"count", 10)) < count:
        await asyncio.sleep(0.001)
    return count / (time.perf_counter() - started)


async def open_and_end(net: Net, server: str, count: int) -> tuple[float, float]:
    """Return p50 and p99 in µs of a stream's whole life: opened, a line echoed, finished on both sides."""
    times = []
    for _ in range(count):
        started = time.perf_counter()
        stream = await net.open_stream(server, b"echo")
        await stream.write(SMALL)
        await stream.finish()
        while await stream.read():
            pass
        times.append((time.perf_counter() - started) * 1e6)
    return percentiles(times)


async def echoes(net: Net, server: str, count: int) -> tuple[float, float]:
    """Return p50 and p99 in µs of a round trip on one stream."""
    stream = await net.open_stream(server, b"echo")
    times = []
    for _ in range(count):
        started = time.perf_counter()
        await stream.write(SMALL)
        await stream.read_exactly(len(SMALL))
        times.append((time.perf_counter() - started) * 1e6)
    await stream.finish()
    return percentiles(times)


async def stream_body(net: Net, server: str, size_bytes: int) -> float:
    started = time.perf_counter()
    stream = await net.open_stream(server, b"memory")
    for _ in range(size_bytes // len(CHUNK)):
        await stream.write(CHUNK)
    await stream.finish()
    await stream.closed
    return size_bytes / (time.perf_counter() - started) / 1e6


async def file_body(net: Net, server: str, folder: Path, size_bytes: int) -> float:
    path = folder / "sent"
    with path.open("wb") as file:
        for _ in range(size_bytes // len(CHUNK)):
            file.write(CHUNK)
    started = time.perf_counter()
    await send_file(await net.open_stream(server, b"file"), path, "file")
    return size_bytes / (time.perf_counter() - started) / 1e6


def baseline(options: argparse.Namespace) -> dict[str, float]:
    root = Path(__file__).parent.parent
    command = ["cargo", "run", "--quiet", "--release", "--locked", "--manifest-path", str(root / "rust/Cargo.toml")]
    numbers = [str(options.round_trips), str(options.messages), str(options.bulk_mib)]
    arguments = [*command, "-p", "jobs-net", "--example", "baseline", "--", *numbers]
    lines = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    return {name: float(value) for name, value in (line.split() for line in lines)}


async def measure(options: argparse.Namespace, base: dict[str, float]) -> None:
    size_bytes = options.bulk_mib << 20
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "benchmarks.net", "--serve", name, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdin is not None
        client = Peer(folder, "client")
        net = client.net
        server, *addresses = (await process.stdout.readline()).decode().split()
        process.stdin.write(f"{net.id} {' '.join(net.endpoint.addresses)}\n".encode())
        net.set_peers({server: addresses})
        await client.up.wait()
        await round_trips(net, server, 200)
        p50, p99 = await round_trips(net, server, options.round_trips)
        ratio = f"{p50 / base['quic_p50_us']:.2f} × QUIC, {p50 / base['tcp_p50_us']:.2f} × TCP"
        show("request and answer of 128 B, p50", f"{p50:.0f} µs", ratio)
        ratio = f"{p99 / base['quic_p99_us']:.2f} × QUIC, {p99 / base['tcp_p99_us']:.2f} × TCP"
        show("request and answer of 128 B, p99", f"{p99:.0f} µs", ratio)
        show("requests, 256 at once", f"{await concurrent(net, server, options.round_trips):.0f}/s", "")
        rate = await messages(net, server, options.messages)
        of_quic, of_tcp = (rate / base[f"{name}_messages_per_s"] for name in ("quic", "tcp"))
        show("messages of 200 B", f"{rate:.0f}/s", f"{of_quic:.0%} of QUIC, {of_tcp:.0%} of TCP, in blocks of 256 KiB")
        for what, (p50, p99) in (
            ("a stream opened, 128 B echoed, closed", await open_and_end(net, server, options.round_trips)),
            ("128 B echoed on an open stream", await echoes(net, server, options.round_trips)),
        ):
            show(f"{what}, p50", f"{p50:.0f} µs", f"p99 {p99:.0f} µs")
        for what, speed in (
            ("a stream, memory to memory", await stream_body(net, server, size_bytes)),
            ("a file to a durable file", await file_body(net, server, folder, size_bytes)),
        ):
            of_quic, of_tcp = (speed / base[f"{name}_bulk_mb_per_s"] for name in ("quic", "tcp"))
            show(what, f"{speed:.0f} MB/s", f"{of_quic:.0%} of QUIC, {of_tcp:.0%} of TCP")
        await net.close()
        process.stdin.close()
        await process.wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--round-trips", type=int, default=5_000)
    parser.add_argument("--messages", type=int, default=500_000)
    parser.add_argument("--bulk-mib", type=int, default=1_024)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.serve))
        return
    base = baseline(options)
    for kind in ("tcp", "quic"):
        detail = f"p99 {base[f'{kind}_p99_us']:.0f} µs, {base[f'{kind}_messages_per_s']:.0f} messages/s"
        show(f"plain {kind.upper()}: p50 of 128 B", f"{base[f'{kind}_p50_us']:.0f} µs", detail)
        show(f"plain {kind.upper()}: bulk", f"{base[f'{kind}_bulk_mb_per_s']:.0f} MB/s", "")
    asyncio.run(measure(options, base))


if __name__ == "__main__":
    main()
