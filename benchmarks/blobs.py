"""Blobs: added beside plain BLAKE3 of the same bytes, and fetched from a node to another beside a bare stream of the
same transport, in one run.

python -m benchmarks.blobs [--mib 1024] [--small 2000]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from benchmarks.net import CHUNK, Peer
from benchmarks.report import show
from jobs._native import Blake3
from jobs.blobs import BlobStore

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


async def timed(store: BlobStore, blob: str, server: str, *, children: bool = False) -> float:
    started = time.perf_counter()
    await store.fetch(blob, [server], children=children)
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
        bare, fetched = await bare_stream(peer, server, mib), await timed(store, large, server)
        started = time.perf_counter()
        for number in range(small):
            await store.add(_once((number + small).to_bytes(8) * (SMALL_BYTES // 8)))
        added_small = time.perf_counter() - started
        fetched_small = await timed(store, sequence, server, children=True)
        both = f"{(hashed + written) / added:.0%} of hash and write one after the other"
        show("BLAKE3 alone, in memory", f"{mib / hashed:,.0f} MiB/s")
        show("written and fsynced alone", f"{mib / written:,.0f} MiB/s")
        show(f"{mib} MiB added: hashed, written, fsynced", f"{mib / added:,.0f} MiB/s", both)
        show("bare stream of the transport, memory to memory", f"{mib / bare:,.0f} MiB/s")
        against = f"{bare / fetched:.0%} of the bare stream"
        show(f"{mib} MiB fetched: verified, written, fsynced", f"{mib / fetched:,.0f} MiB/s", against)
        show(f"{small} of 4 KiB added, one after the other", f"{small / added_small:,.0f}/s")
        show(f"{small} of 4 KiB fetched as one sequence", f"{small / fetched_small:,.0f}/s")
        await store.close()
        await peer.net.close()
        process.stdin.close()


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--mib", type=int, default=1_024)
    made.add_argument("--small", type=int, default=2_000)
    made.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    arguments = made.parse_args()
    if arguments.serve is not None:
        asyncio.run(serve(arguments.serve, arguments.mib, arguments.small))
        return
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(Path(folder), arguments.mib, arguments.small))


if __name__ == "__main__":
    main()
