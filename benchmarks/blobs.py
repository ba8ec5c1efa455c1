"""Blobs: added beside plain BLAKE3 of the same bytes, and fetched from a process by another beside a bare stream of the
same transport and beside TCP, all over the loopback device in one run; and what memory that takes.

python -m benchmarks.blobs [--mib 1024] [--small 10000]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

from benchmarks.net import CHUNK, Peer
from benchmarks.report import show
from benchmarks.scale import resident
from jobs._native import Blake3
from jobs.blobs import BlobStore
from jobs.blobs.store import THREADS

MIB = 1 << 20
SMALL_BYTES = 4 << 10


async def zeros(mib: int, salt: bytes) -> AsyncIterator[bytes]:
    """Bytes that cost nothing to make: the disk and the hash do not know that they are alike."""
    yield salt
    piece = bytes(MIB)
    for _ in range(mib):
        yield piece


def plain_hash(mib: int) -> float:
    started = time.perf_counter()
    hasher, piece = Blake3(), bytes(MIB)
    for _ in range(mib):
        hasher.update(piece)
    hasher.digest()
    return time.perf_counter() - started


def plain_write(folder: Path, mib: int) -> float:
    started = time.perf_counter()
    piece = bytes(MIB)
    with (folder / "plain").open("wb", buffering=0) as file:
        for _ in range(mib):
            file.write(piece)
        os.fsync(file.fileno())
    took = time.perf_counter() - started
    (folder / "plain").unlink()
    return took


async def serve(folder: Path, mib: int, small: int) -> None:
    peer = Peer(folder, "server")
    blobs = await BlobStore.open(folder / "server.blobs")
    blobs.join(peer.net.endpoint)
    large = await blobs.add(zeros(mib, b"large"))
    hashes = [(await blobs.add(zeros(0, number.to_bytes(8) * (SMALL_BYTES // 8)))).hash for number in range(small)]
    sequence = await blobs.add(_once(bytes.fromhex("".join(hashes))))
    print(peer.net.id, large.hash, sequence.hash, *peer.net.endpoint.addresses, flush=True)
    client, *addresses = (await asyncio.to_thread(sys.stdin.readline)).split()
    peer.net.set_peers({client: addresses})
    await asyncio.to_thread(sys.stdin.read)
    await blobs.close()
    await peer.net.close()


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def bare_stream(peer: Peer, server: str, mib: int) -> float:
    started = time.perf_counter()
    stream = await peer.net.open_stream(server, b"sink")
    for _ in range(mib * MIB // len(CHUNK)):
        await stream.write(CHUNK)
    await stream.finish()
    while await stream.read():
        pass
    await stream.closed
    return time.perf_counter() - started


def tcp(mib: int) -> float:
    """Send as much from a thread to another, from memory to memory."""

    def send() -> None:
        with socket.create_connection(listener.getsockname()) as sender:
            piece = bytes(MIB)
            for _ in range(mib):
                sender.sendall(piece)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        started = time.perf_counter()
        thread = threading.Thread(target=send)
        thread.start()
        receiver, _ = listener.accept()
        with receiver:
            buffer = bytearray(MIB)
            while receiver.recv_into(buffer):
                pass
        thread.join()
        return time.perf_counter() - started


class Memory:
    """Looks at the memory of both processes, files' pages left out, until it is stopped."""

    def __init__(self, *pids: int) -> None:
        self._pids = pids
        self._before = [resident(pid)[0] for pid in pids]
        self._grown = [0] * len(pids)
        self._task = asyncio.create_task(self._look())

    async def _look(self) -> None:
        while True:
            for at, pid in enumerate(self._pids):
                self._grown[at] = max(self._grown[at], resident(pid)[0] - self._before[at])
            await asyncio.sleep(0.1)

    def stop(self) -> str:
        self._task.cancel()
        return ", ".join(f"{grown / MIB:+.0f} MiB" for grown in self._grown)


async def timed(store: BlobStore, blob: str, server: str, *, children: bool = False) -> float:
    started = time.perf_counter()
    await store.fetch(blob, [server], children=children)
    return time.perf_counter() - started


async def add_small(store: BlobStore, small: int) -> float:
    """Add small blobs, as many at a time as the store has threads."""
    numbers = iter(range(small, 2 * small))

    async def add() -> None:
        for number in numbers:
            await store.add(_once(number.to_bytes(8) * (SMALL_BYTES // 8)))

    started = time.perf_counter()
    await asyncio.gather(*(add() for _ in range(THREADS)))
    return time.perf_counter() - started


async def measure(folder: Path, mib: int, small: int) -> None:
    arguments = ("--serve", str(folder), "--mib", str(mib), "--small", str(small))
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.blobs", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        line = await asyncio.to_thread(process.stdout.readline)
        server, large, sequence, *addresses = line.split()
        peer = Peer(folder, "client")
        store = await BlobStore.open(folder / "client.blobs")
        store.join(peer.net.endpoint)
        process.stdin.write(" ".join([peer.net.id, *peer.net.endpoint.addresses]) + "\n")
        process.stdin.flush()
        peer.net.set_peers({server: addresses})
        await peer.up.wait()
        hashed, written = plain_hash(mib), plain_write(folder, mib)
        started = time.perf_counter()
        await store.add(zeros(mib, b"added"))
        added = time.perf_counter() - started
        bare, plain_tcp = await bare_stream(peer, server, mib), await asyncio.to_thread(tcp, mib)
        memory = Memory(os.getpid(), process.pid)
        fetched = await timed(store, large, server)
        grown = memory.stop()
        added_small = await add_small(store, small)
        fetched_small = await timed(store, sequence, server, children=True)
        both = f"{hashed / added:.0%} of BLAKE3 alone, {(hashed + written) / added:.0%} of hash and write in turn"
        show("BLAKE3 alone, in memory", f"{mib / hashed:,.0f} MiB/s")
        show("written and fsynced alone", f"{mib / written:,.0f} MiB/s")
        show(f"{mib} MiB added: hashed, written, fsynced", f"{mib / added:,.0f} MiB/s", both)
        show("bare stream of the transport, memory to memory", f"{mib / bare:,.0f} MiB/s")
        show("TCP, memory to memory", f"{mib / plain_tcp:,.0f} MiB/s")
        against = f"{bare / fetched:.0%} of the bare stream, {plain_tcp / fetched:.0%} of TCP"
        show(f"{mib} MiB fetched: verified, written, fsynced", f"{mib / fetched:,.0f} MiB/s", against)
        show("memory that came meanwhile, of who fetches and who gives", grown)
        show(f"{small} of 4 KiB added, {THREADS} at a time", f"{small / added_small:,.0f}/s")
        show(f"{small} of 4 KiB fetched as one sequence", f"{small / fetched_small:,.0f}/s")
        await store.close()
        await peer.net.close()
        process.stdin.close()


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--mib", type=int, default=1_024)
    made.add_argument("--small", type=int, default=10_000)
    made.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    arguments = made.parse_args()
    if arguments.serve is not None:
        asyncio.run(serve(arguments.serve, arguments.mib, arguments.small))
        return
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(Path(folder), arguments.mib, arguments.small))


if __name__ == "__main__":
    main()
