"""A real node, and beside its sockets one on which a test has its part in the blobs do things, a line of JSON each.

python -m tests.support.blobnode --embedded DIR
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from jobs import logs
from jobs._native import NativeError, arm_failpoints
from jobs.blobs import BlobStore
from jobs.blobs.catalogue import Entry, NewBlob
from jobs.blobs.part import BlobPart
from jobs.blobs.together import each
from jobs.config import load_config
from jobs.errors import JobsError
from jobs.node import Node
from jobs.protocol.model import BlobDone, BlobPerform, BlobTagSet
from jobs.service import Caller
from tests.support.blobpeer import pieces

NO_JOB = "00000000-0000-7000-8000-000000000000"


class Driver:
    def __init__(self, node: Node) -> None:
        self._node = node

    async def serve(self, path: Path) -> asyncio.Server:
        path.unlink(missing_ok=True)
        return await asyncio.start_unix_server(self._on_connection, str(path), limit=16 << 20)

    async def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def tell(**news: Any) -> None:
            writer.write(json.dumps(news).encode() + b"\n")

        order = json.loads(await reader.readline())
        work = asyncio.ensure_future(self._carry_out(order, tell))
        gone = asyncio.ensure_future(reader.read())
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                tell(end=work.result())
        except JobsError as error:
            tell(error=error.code, detail=error.detail)
        except Exception as error:
            tell(error=type(error).__name__, detail=str(error))
        finally:
            work.cancel()
            gone.cancel()
            writer.close()

    @property
    def _part(self) -> BlobPart:
        assert self._node.blob_part is not None
        return self._node.blob_part

    @property
    def _store(self) -> BlobStore:
        assert self._node.blobs is not None
        return self._node.blobs

    async def _carry_out(self, order: dict[str, Any], tell: Any) -> Any:
        caller = Caller(uid=order.get("uid", 0), gid=0, admin=order.get("uid", 0) == 0)
        return await getattr(self, f"_do_{order['do']}")(caller, order, tell)

    async def _do_add(self, caller: Caller, order: dict[str, Any], tell: Any) -> list[dict[str, Any]]:
        numbers = range(order.get("count", 1))
        return await each(numbers, order.get("at_once", 1), lambda number: self._add(caller, order, number))

    async def _add(self, caller: Caller, order: dict[str, Any], number: int) -> dict[str, Any]:
        """As a host does when something comes."""
        part, store = self._part, self._store
        added = await store.add(pieces(order["size"], order["seed"] + number))
        new = NewBlob(
            hash=added.hash,
            size_bytes=added.size_bytes,
            replicas=order.get("replicas"),
            tag=None if order.get("tag") is None else f"{order['tag']}{number or ''}",
        )
        async with store.reading(added.hash):
            entry, _ = await part.catalogue.register(caller, new, part.replicator.members.me)
            entry = await part.replicator.spread(entry)
        return self._entry(entry)

    async def _do_sequence(self, caller: Caller, order: dict[str, Any], tell: Any) -> dict[str, Any]:
        """Add a collection of blobs that are there."""
        part, children = self._part, tuple(order["children"])

        async def hashes() -> AsyncIterator[bytes]:
            yield bytes.fromhex("".join(children))

        added = await self._store.add(hashes())
        new = NewBlob(
            hash=added.hash,
            size_bytes=added.size_bytes,
            kind="collection",
            children=children,
            replicas=order.get("replicas"),
            tag=order.get("tag"),
        )
        async with self._store.reading(added.hash):
            entry, _ = await part.catalogue.register(caller, new, part.replicator.members.me)
            return self._entry(await part.replicator.spread(entry))

    def _entry(self, entry: Entry) -> dict[str, Any]:
        nodes = sorted(map(self._part.replicator.name_of, entry.holders))
        return {"hash": entry.hash, "replicas": entry.replicas, "nodes": nodes}

    async def _do_perform(self, caller: Caller, order: dict[str, Any], tell: Any) -> Any:
        wanted = msgspec.convert({"job": NO_JOB, "payload": order["payload"]}, BlobPerform)
        async with aclosing(self._part.operations.perform(caller, wanted)) as events:
            async for event in events:
                tell(**msgspec.to_builtins(event))
                if isinstance(event, BlobDone):
                    return msgspec.to_builtins(event.result)
        raise AssertionError("no result")

    async def _do_bring(self, caller: Caller, order: dict[str, Any], tell: Any) -> int:
        """Read as a host does."""
        entry = await self._part.catalogue.readable(caller, order["hash"])
        await self._part.replicator.bring(entry)
        size_bytes = 0
        async with self._store.reading(order["hash"]) as reading:
            async for piece in reading.pieces():
                size_bytes += len(piece)
        return size_bytes

    async def _do_readable(self, caller: Caller, order: dict[str, Any], tell: Any) -> dict[str, Any]:
        return self._entry(await self._part.catalogue.readable(caller, order["hash"]))

    async def _do_lacking(self, caller: Caller, order: dict[str, Any], tell: Any) -> list[dict[str, Any]]:
        return [self._entry(entry) for entry in await self._part.catalogue.lacking("", 1_000)]

    async def _do_entries(self, caller: Caller, order: dict[str, Any], tell: Any) -> list[dict[str, Any]]:
        found = await self._part.catalogue.entries(order.get("after", ""), 1_000)
        return [self._entry(entry) for entry in found]

    async def _do_untag(self, caller: Caller, order: dict[str, Any], tell: Any) -> None:
        """On the leader."""
        assert self._node.site is not None
        assert self._node.site.control is not None
        await self._node.site.control.blobs.delete_tag(caller, order["tag"])

    async def _do_tag(self, caller: Caller, order: dict[str, Any], tell: Any) -> None:
        await self._part.catalogue.set_tag(caller, order["tag"], BlobTagSet(hash=order["hash"]))

    async def _do_reached(self, caller: Caller, order: dict[str, Any], tell: Any) -> int:
        return len(self._part.replicator.members.reached)

    async def _do_page(self, caller: Caller, order: dict[str, Any], tell: Any) -> list[str]:
        return [stat.hash for stat in await self._store.page(order.get("after"), 1_000)]

    async def _do_usage(self, caller: Caller, order: dict[str, Any], tell: Any) -> dict[str, int]:
        return await self._store.usage()


async def run(directory: Path) -> int:
    config = load_config(None, embedded=directory)
    logs.setup(config.logging)
    arm_failpoints()
    node = Node(config)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    try:
        await node.start()
        server = await Driver(node).serve(directory / "drive.sock")
        ends = [asyncio.ensure_future(stop.wait()), asyncio.ensure_future(node.failed.wait())]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        server.close()
    except NativeError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        await node.stop()
    return 0


if __name__ == "__main__":
    assert sys.argv[1] == "--embedded"
    sys.exit(uvloop.run(run(Path(sys.argv[2]))))
