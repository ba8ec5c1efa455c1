"""Files of any size between nodes, over a stream: offered, taken from where the receiver has them, and checked whole.

The sender offers name, size and digest; the receiver answers from which byte on it wants the file, or that it does not;
the bytes follow; the receiver says that it keeps the file, or why not. A refusal may come at any time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar
from weakref import WeakValueDictionary

import msgspec

from jobs._native import Blake3, failpoint
from jobs.durable import sync_directory
from jobs.net import Stream, StreamBroken

VERSION: Final = 1
READ_BYTES: Final = 256 << 10
MAX_NOTE_BYTES: Final = 4 << 10
HASH_BYTES: Final = 4 << 20


class TransferFailed(Exception):
    """A file was not transferred; what the receiver has of it stays for the next try, unless it was wrong."""


class _Versioned(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What is the same in each version."""

    version: int


class Description(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What a sender offers."""

    version: int = VERSION
    name: str
    size_bytes: int
    digest: bytes


class Answer(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What a receiver says: the byte from which it wants the file, later how much of it it keeps; or why not."""

    offset: int = 0
    refusal: str = ""


T = TypeVar("T")
Note = TypeVar("Note", _Versioned, Description, Answer)


async def _in_thread(work: Callable[..., T], *arguments: object) -> T:
    """Run it in a thread, and return only when it has ended: the file is not closed under it."""
    running = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait((running,))
        running.exception()  # the caller is gone
        raise


async def send_file(stream: Stream, path: Path, name: str) -> None:
    """Send a file on a stream that was opened for it; return when the receiver keeps it, durably.

    Raises TransferFailed, or OSError when the file cannot be read; the stream is over then.
    """
    try:
        with path.open("rb", buffering=0) as file:
            size_bytes, digest = await _in_thread(measure, file.fileno())
            failpoint("transfer.offer.before")
            await _write_note(stream, Description(name=name, size_bytes=size_bytes, digest=digest))
            offset = await _read_answer(stream)
            if offset > size_bytes:
                raise TransferFailed(f"{name}: the receiver wants it from byte {offset} of {size_bytes}")
            await _pump_until_answer(stream, file.fileno(), offset, size_bytes)
    except (StreamBroken, EOFError) as error:
        raise TransferFailed(f"{name}: {error}") from error
    finally:
        stream.reset("the file is not sent any further")  # nothing, once both sides have finished


async def _pump_until_answer(stream: Stream, descriptor: int, offset: int, size_bytes: int) -> None:
    """Send the rest, and return when it is answered; a refusal ends the sending."""
    answering = asyncio.ensure_future(_read_answer(stream))
    pumping = asyncio.ensure_future(_pump(stream, descriptor, offset, size_bytes))
    try:
        await asyncio.wait((answering, pumping), return_when=asyncio.FIRST_COMPLETED)
        # A stream that broke may have brought a refusal before.
        if pumping.done() and not isinstance(pumping.exception(), StreamBroken):
            await pumping
        if await answering != size_bytes or not pumping.done():
            raise TransferFailed("the receiver says that it is done before all was sent")
        with contextlib.suppress(StreamBroken):
            await stream.closed
    finally:
        for task in (answering, pumping):
            task.cancel()
        await asyncio.wait((answering, pumping))


async def _pump(stream: Stream, descriptor: int, offset: int, size_bytes: int) -> None:
    while offset < size_bytes:
        chunk = await _in_thread(os.pread, descriptor, min(READ_BYTES, size_bytes - offset), offset)
        if not chunk:
            raise TransferFailed("the file became shorter while it was sent")
        failpoint("transfer.chunk.send.before")
        await stream.write(chunk)
        offset += len(chunk)
    await stream.finish()


class Offer:
    """A file that a peer offers on a stream."""

    def __init__(self, stream: Stream, description: Description) -> None:
        self.name = description.name
        self.size_bytes = description.size_bytes
        self.digest = description.digest
        self._stream = stream

    async def decline(self, reason: str) -> None:
        """Say that the file is not wanted, or not wanted any more."""
        await _decline(self._stream, reason)

    async def receive(self, path: Path) -> None:
        """Receive the file under this name, which it gets when all of it is here, right, and on the disk.

        What came before a failure is kept beside it and not asked for again. Raises TransferFailed or OSError.
        """
        try:
            # One file is received once at a time: a sender that came back waits for the end of its former stream.
            async with _locks.setdefault(path, asyncio.Lock()):
                await self._receive(PartFile(path, self.digest, self.size_bytes))
        except OSError as error:
            await self.decline(f"the receiver's disk: {error.strerror}")
            raise
        except (StreamBroken, EOFError) as error:
            raise TransferFailed(f"{self.name}: {error}") from error
        finally:
            self._stream.reset("the file is not received any further")  # nothing, once both sides have finished

    async def _receive(self, part: PartFile) -> None:
        try:
            offset = await _in_thread(part.open)
            await _write_note(self._stream, Answer(offset=offset))
            while chunk := await self._stream.read(self.size_bytes - offset + 1):
                offset += len(chunk)
                if offset > self.size_bytes:
                    raise EOFError("more came than was offered")
                failpoint("transfer.chunk.receive.before")
                await _in_thread(part.append, chunk)
                failpoint("transfer.chunk.receive.after")
            if offset < self.size_bytes:
                raise EOFError(f"it ended {self.size_bytes - offset} bytes too soon")
            if not await _in_thread(part.complete):
                await self.decline("what came is not what was offered")
                raise TransferFailed(f"{self.name}: what came is not what was offered")
            failpoint("transfer.kept.send.before")
            await _write_note(self._stream, Answer(offset=offset))
            await self._stream.finish()
            # The file is kept, whether or not its sender learns it.
            with contextlib.suppress(StreamBroken):
                await self._stream.closed
        finally:
            part.close()


_locks: WeakValueDictionary[Path, asyncio.Lock] = WeakValueDictionary()


async def read_offer(stream: Stream) -> Offer:
    """Read what a peer offers on a stream that it opened for a file. Raises TransferFailed."""
    try:
        note = await _read_note(stream)
        if (version := _decode(note, _Versioned).version) != VERSION:
            reason = f"version {version} of a transfer is unknown here; this node speaks {VERSION}"
            await _decline(stream, reason)
            raise TransferFailed(reason)
        return Offer(stream, _decode(note, Description))
    except (StreamBroken, EOFError) as error:
        raise TransferFailed(f"an offer: {error}") from error


async def _decline(stream: Stream, reason: str) -> None:
    with contextlib.suppress(StreamBroken):
        await _write_note(stream, Answer(refusal=reason[:512]))
        await stream.finish()
        # What is on its way is thrown away until the sender has seen it.
        while await stream.read():
            pass
        await stream.closed


async def _write_note(stream: Stream, note: Description | Answer) -> None:
    body = msgspec.msgpack.encode(note)
    await stream.write(len(body).to_bytes(4, "little") + body)


async def _read_note(stream: Stream) -> bytes:
    length = int.from_bytes(await stream.read_exactly(4), "little")
    if length > MAX_NOTE_BYTES:
        raise EOFError(f"a note of {length} bytes, at most {MAX_NOTE_BYTES}")
    return await stream.read_exactly(length)


def _decode(note: bytes, kind: type[Note]) -> Note:
    try:
        return msgspec.msgpack.decode(note, type=kind)
    except msgspec.MsgspecError as error:
        raise EOFError(f"a note that is none: {error}") from error


async def _read_answer(stream: Stream) -> int:
    answer = _decode(await _read_note(stream), Answer)
    if answer.refusal:
        raise TransferFailed(f"refused: {answer.refusal}")
    return answer.offset


class PartFile:
    """A file that is being received: `NAME.DIGEST.part` until it is whole. Its methods block."""

    def __init__(self, path: Path, digest: bytes, size_bytes: int) -> None:
        self._path = path
        self._part = path.with_name(f"{path.name}.{digest.hex()[:16]}.part")
        self._digest = digest
        self._size_bytes = size_bytes
        self._hash = Blake3()
        self._descriptor: int | None = None

    def open(self) -> int:
        """Open what there is of it, and return how much. Parts of other bodies of this name are deleted."""
        for stale in self._path.parent.glob(f"{self._path.name}.*.part"):
            if stale != self._part:
                stale.unlink(missing_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = self._descriptor = os.open(self._part, flags, 0o600)
        if os.fstat(descriptor).st_size > self._size_bytes:
            os.ftruncate(descriptor, self._size_bytes)
        while data := os.read(descriptor, HASH_BYTES):
            self._hash.update(data)
        return os.lseek(descriptor, 0, os.SEEK_CUR)

    def append(self, chunk: bytes) -> None:
        assert self._descriptor is not None
        self._hash.update(chunk)
        rest = memoryview(chunk)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]

    def complete(self) -> bool:
        """Give the file its name, durably; False when it is not what was offered, and then it is deleted."""
        assert self._descriptor is not None
        if self._hash.digest() != self._digest:
            self._part.unlink(missing_ok=True)
            return False
        # Its content before its name: who finds the name finds all of it, also after a power cut.
        failpoint("transfer.sync.before")
        os.fsync(self._descriptor)
        failpoint("transfer.rename.before")
        self._part.rename(self._path)
        failpoint("transfer.rename.after")
        sync_directory(self._path.parent)  # before the sender is told that the file is kept
        failpoint("transfer.directory.sync.after")
        return True

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def measure(descriptor: int) -> tuple[int, bytes]:
    """Return size and BLAKE3 of a file."""
    digest, size_bytes = Blake3(), 0
    while data := os.pread(descriptor, HASH_BYTES, size_bytes):
        digest.update(data)
        size_bytes += len(data)
    return size_bytes, digest.digest()
