"""The blobs that running jobs are shown: fetched from the node once, kept by their hashes, read-only, and bounded.

Each is a file, or a directory for a collection, in one directory that the launcher shows jobs parts of. What is not
used any more stays for the next job until its room is needed. Room is taken for all inputs of a job at once, in the
order in which the jobs came, so that no two of them wait for what the other holds.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final

from msgspec import Struct

from jobs.blobs.together import each
from jobs.client.requests import segment
from jobs.errors import JobsError, RangeNotSatisfiable
from jobs.protocol.model import BlobFiles
from jobs.workers.executor import ExecutorError
from jobs.workers.nodeapi import NodeApi
from jobs.workers.scratch import scratch
from jobs.workers.transfers import again, download, held, in_thread

AT_A_TIME: Final = 8
"""Files that are fetched at once; others wait for their turn."""
READABLE: Final = 0o755
KIND_HEADER: Final = "jobs-blob-kind"


class InputError(Exception):
    """An input cannot be had; the text says which and why."""


class _Plan(Struct, frozen=True):
    """What is to be fetched of one blob."""

    blob: str
    files: tuple[tuple[str | None, int], ...]
    """Names in a collection, and sizes; for any other blob None and its size."""

    @property
    def size_bytes(self) -> int:
        return sum(size_bytes for _, size_bytes in self.files)

    @property
    def is_collection(self) -> bool:
        return not self.files or self.files[0][0] is not None


class _Entry:
    """A blob that is here or is being fetched."""

    def __init__(self, plan: _Plan, owner: int) -> None:
        self.blob = plan.blob
        self.owner = owner
        """Whose job has it fetched."""
        self.size_bytes = plan.size_bytes
        self.holders = 0
        self.fetch: asyncio.Task[None] | None = None


class Held:
    """Inputs that stay as they are until they are let go of."""

    def __init__(self, cache: InputCache, entries: Sequence[_Entry], names: Mapping[str, str]) -> None:
        self.names = dict(names)
        """Path in the job's directory → entry of the cache's directory."""
        self._cache = cache
        self._entries = entries

    def release(self) -> None:
        """They are not needed any more; to be called once."""
        self._cache.release(self._entries)


class InputCache:
    """The directory, and what is in it. Used on one event loop."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self.directory = directory
        """Anybody may search it; what it is in is this worker's alone."""
        self._max_bytes = max_bytes
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        """By hash; what was used longest ago comes first."""
        self._turn = asyncio.Lock()
        self._freed = asyncio.Event()
        self._fetches = asyncio.Semaphore(AT_A_TIME)
        self._number = 0

    async def hold(self, node: NodeApi, wanted: Mapping[str, str], on_fetch: Callable[[int], None]) -> Held:
        """Have blobs here, by the paths at which a job is to see them; `on_fetch` is told of bytes that have to come.

        Raises InputError. Whoever gives up meanwhile holds nothing.
        """
        paths: dict[str, str] = {}
        for path, blob in wanted.items():
            paths.setdefault(blob, path)
        plans: dict[str, _Plan] = {}
        while True:
            await self._plan(node, paths, plans)
            async with self._turn:
                await self._wait_for_room(node, plans, paths)
                entries = [self._take(node, blob, plans) for blob in paths]
            missing = sum(entry.size_bytes for entry in entries if entry.fetch is not None)
            if missing:
                on_fetch(missing)
            try:
                for entry in entries:
                    if entry.fetch is not None:
                        await asyncio.shield(entry.fetch)
                return Held(self, entries, wanted)
            except (JobsError, OSError) as error:
                self.release(entries)
                # What another may not read any more this one may.
                if entry.owner == node.owner:
                    why = error.strerror if isinstance(error, OSError) else error
                    raise InputError(f"input {paths[entry.blob]}, blob {entry.blob}: {why}") from error
                plans.clear()
            except BaseException:
                self.release(entries)
                raise

    def release(self, entries: Iterable[_Entry]) -> None:
        for entry in entries:
            entry.holders -= 1
            if not entry.holders and entry.fetch is not None:
                # Nobody waits for it any more.
                entry.fetch.cancel()
                self._drop(entry)
        self._freed.set()

    def close(self) -> None:
        """Remove everything."""
        for entry in self._entries.values():
            if entry.fetch is not None:
                entry.fetch.cancel()
        shutil.rmtree(self.directory.parent, ignore_errors=True)

    # --- room -----------------------------------------------------------------------------------------------------

    async def _plan(self, node: NodeApi, paths: Mapping[str, str], plans: dict[str, _Plan]) -> None:
        """Find out what is to be fetched of the blobs that are not here."""
        for blob, path in paths.items():
            if blob in self._entries or blob in plans:
                continue
            try:
                plans[blob] = await again(lambda blob=blob: self._plan_of(node, blob))  # type: ignore[misc]
            except JobsError as error:
                raise InputError(f"input {path}, blob {blob}: {error}") from error

    async def _plan_of(self, node: NodeApi, blob: str) -> _Plan:
        kind, size_bytes = await _look(node, blob)
        if kind != "collection":
            return _Plan(blob, ((None, size_bytes),))
        listed = await node.get(f"/v1/blobs/{segment(blob)}/files", BlobFiles)
        names = {file.hash: file.name for file in listed.files}
        looks = await each(names.values(), AT_A_TIME, lambda name: _look(node, blob, name))
        sizes = {content: size_bytes for content, (_, size_bytes) in zip(names, looks, strict=True)}
        return _Plan(blob, tuple((file.name, sizes[file.hash]) for file in listed.files))

    async def _wait_for_room(self, node: NodeApi, plans: dict[str, _Plan], paths: Mapping[str, str]) -> None:
        """Return once there is room for all of the blobs together with what others hold."""
        while True:
            # What was here, or was on its way, may be gone.
            while not all(blob in self._entries or blob in plans for blob in paths):
                await self._plan(node, paths, plans)
            own = sum(self._size_of(blob, plans) for blob in paths)
            if own > self._max_bytes:
                raise InputError(f"the inputs have {own} bytes; this worker has room for {self._max_bytes}")
            entries = self._entries.values()
            others = sum(entry.size_bytes for entry in entries if entry.holders and entry.blob not in paths)
            if others + own <= self._max_bytes:
                self._make_room(plans, paths)
                return
            self._freed.clear()
            await self._freed.wait()

    def _size_of(self, blob: str, plans: Mapping[str, _Plan]) -> int:
        return self._entries[blob].size_bytes if blob in self._entries else plans[blob].size_bytes

    def _make_room(self, plans: Mapping[str, _Plan], paths: Mapping[str, str]) -> None:
        """Let go of what nobody holds and was used longest ago, as far as that is needed."""
        needed = sum(plan.size_bytes for blob, plan in plans.items() if blob not in self._entries)
        used = sum(entry.size_bytes for entry in self._entries.values())
        for entry in list(self._entries.values()):
            if used + needed <= self._max_bytes:
                break
            if not entry.holders and entry.blob not in paths:
                used -= entry.size_bytes
                self._drop(entry)
                self._remove(entry.blob)

    def _take(self, node: NodeApi, blob: str, plans: Mapping[str, _Plan]) -> _Entry:
        entry = self._entries.get(blob)
        if entry is None:
            entry = self._entries[blob] = _Entry(plans[blob], node.owner)
            entry.fetch = asyncio.get_running_loop().create_task(self._fetch(node, entry, plans[blob]))
            entry.fetch.add_done_callback(_look_at)
        self._entries.move_to_end(blob)
        entry.holders += 1
        return entry

    def _drop(self, entry: _Entry) -> None:
        if self._entries.get(entry.blob) is entry:
            del self._entries[entry.blob]

    def _remove(self, name: str) -> None:
        """Take an entry out of the way at once, and delete it a little later."""
        gone = self._draft()
        with suppress(FileNotFoundError):
            os.rename(self.directory / name, gone)
            _delete_later(gone)

    # --- fetches ----------------------------------------------------------------------------------------------------

    async def _fetch(self, node: NodeApi, entry: _Entry, plan: _Plan) -> None:
        draft = self._draft()

        async def fetch(file: tuple[str | None, int]) -> None:
            name, size_bytes = file
            target = draft if name is None else await in_thread(_place_in, draft, name)
            async with self._fetches:
                await self._write(target, node, plan.blob, name, size_bytes)

        try:
            if plan.is_collection:
                await in_thread(os.mkdir, draft, 0o755)
            await each(plan.files, AT_A_TIME, fetch)
            if plan.is_collection:
                await in_thread(_open_up, draft)
            # At once with the next line: nobody gives up in between.
            os.rename(draft, self.directory / entry.blob)
            entry.fetch = None
        except BaseException:
            self._drop(entry)
            self._freed.set()
            _delete_later(draft)
            raise

    async def _write(self, target: Path, node: NodeApi, blob: str, name: str | None, size_bytes: int) -> None:
        async with held(_create, target) as file, aclosing(download(node, blob, name, size_bytes)) as pieces:
            async for piece in pieces:
                await in_thread(file.write, piece)
            await in_thread(_finish, file)

    def _draft(self) -> Path:
        self._number += 1
        return self.directory / f".{self._number}"


def input_directory(configured: Path | None, tag: str) -> Path:
    """Return a new directory for inputs, after those of earlier lives are deleted. Raises ExecutorError."""
    made = scratch("inputs", configured, tag) / "shown"
    try:
        made.mkdir()
        made.chmod(0o711)
    except OSError as error:
        raise ExecutorError(f"there is no place for inputs in {made}: {error.strerror}") from error
    return made


def fetching(size_bytes: int) -> str:
    """Return what a job says of itself meanwhile."""
    return f"fetching inputs: {max(1, size_bytes >> 20)} MiB"


async def _look(node: NodeApi, blob: str, name: str | None = None) -> tuple[str, int]:
    """Return the kind and the size of a blob, or of a file of a collection."""
    # Not HEAD, whose errors do not say what is wrong.
    first = {"Range": "bytes=0-0"}
    try:
        async with node.exchange("GET", f"/v1/blobs/{segment(blob)}", {"path": name}, headers=first) as answer:
            return answer.headers.get(KIND_HEADER, "raw"), int(answer.headers["content-range"].rpartition("/")[2])
    except RangeNotSatisfiable:
        return "raw", 0  # it has no first byte, and no collection is empty


def _place_in(directory: Path, name: str) -> Path:
    """Return where a file of a collection goes, whose directories are made."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise OSError(0, f"{name!r} is no place in a directory")
    target = directory / path
    target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    return target


def _open_up(draft: Path) -> None:
    """Let jobs enter the directories of a collection, whatever the umask is."""
    for directory, *_ in os.walk(draft):
        os.chmod(directory, READABLE)


def _create(path: Path) -> BinaryIO:
    return open(path, "xb")


def _finish(file: BinaryIO) -> None:
    file.flush()
    # Executable as well, as other files that a job is given.
    os.fchmod(file.fileno(), 0o555)


def _delete_later(path: Path) -> None:
    asyncio.get_running_loop().run_in_executor(None, _delete, path)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _look_at(fetch: asyncio.Task[None]) -> None:
    """Whoever waited for it has been told."""
    if not fetch.cancelled():
        fetch.exception()
