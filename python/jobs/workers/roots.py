"""Root images of jobs that are blobs: unpacked once, kept by their hashes, and bounded.

Each is unpacked by a process that has no rights but to the directory that it fills (`jobs_sandbox::confine`), under a
name that is not taken for an image's; it gets that once it is whole. So they outlast the worker's life, but not the
machine's, and what a kill has left half done is deleted by the next. One that nobody uses goes when its room is needed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import secrets
import stat
import sys
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from jobs import _native
from jobs.workers.executor import ExecutorError
from jobs.workers.inputs import InputCache, InputError
from jobs.workers.nodeapi import NodeApi
from jobs.workers.removal import delete
from jobs.workers.scratch import place_of
from jobs.workers.transfers import in_thread

logger = logging.getLogger(__name__)

MAX_ENTRIES: Final = 1_000_000
"""Files, directories and links of one image."""
MAX_DEPTH: Final = 64
MEMORY_BYTES: Final = 1 << 30
CPU_S: Final = 600
MAX_ANSWER_BYTES: Final = 8 << 20
_PACKAGE: Final = Path(__file__).parents[2]
_DESCRIPTION: Final = "image.json"
_NAME: Final = re.compile(r"[0-9a-f]{64}(?:\.[0-9]+)?")
_PROGRAM: Final = """\
import json, os, sys
with open("/proc/self/comm", "w") as comm:  # so that a next life of the worker knows it
    comm.write(sys.argv[5])
from importlib.machinery import ExtensionFileLoader, ModuleSpec
loader = ExtensionFileLoader("jobs._native", sys.argv[1])
native = loader.create_module(ModuleSpec("jobs._native", loader, origin=sys.argv[1]))
loader.exec_module(native)
sys.path.insert(0, sys.argv[2])
from jobs.unpack.main import main
os._exit(main(native, int(sys.argv[3]), json.loads(sys.argv[4])))
"""


class RootError(Exception):
    """An image cannot be had; the text says which and why."""


class Image(Struct, frozen=True):
    """What is said of an unpacked image."""

    env: list[str]
    cwd: str | None
    bytes: int
    entries: int
    skipped: int
    boot: str = ""
    """In which it was unpacked."""

    @property
    def variables(self) -> dict[str, str]:
        return {name: value for name, found, value in (one.partition("=") for one in self.env) if found and name}

    @property
    def directory(self) -> str | None:
        """Where its programs start, if it says so."""
        return None if self.cwd is None or self.cwd.strip("/") == "" else self.cwd


_decode_image = msgspec.json.Decoder(Image).decode


class _Entry:
    def __init__(self, image: Image) -> None:
        self.image = image
        self.holders = 0


class HeldRoot:
    """An image that stays until it is let go of."""

    def __init__(self, cache: RootCache, name: str, image: Image) -> None:
        self.root = f"cache/{name}"
        """As the launcher is told of it."""
        self.image = image
        self._cache = cache
        self._name = name

    def release(self) -> None:
        """It is not needed any more; to be called once."""
        self._cache.release(self._name)


class RootCache:
    """The images of one worker. Used on one event loop."""

    def __init__(self, configured: Path | None, tag: str, max_bytes: int, owner: int | None) -> None:
        """Find what there is of earlier lives. Raises ExecutorError.

        `owner` is the uid and gid that images are to have, for a worker of root's.
        """
        kept = os.environ.get("CACHE_DIRECTORY")  # of the unit, as systemd says it
        place = place_of(configured or (Path(kept) if kept else None)) / f"jobs-roots-{tag.removeprefix('jobs:')}"
        self.directory = place / "shown"
        """What the launcher shows of; only this worker gets there."""
        self._gone = place / "gone"
        """What is being deleted."""
        self._owner = owner
        self._tag = tag
        self._max_bytes = max_bytes
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        """By name; what was used longest ago comes first."""
        self._turn = asyncio.Lock()
        self._freed = asyncio.Event()
        self._number = 0
        try:
            _make(place)
            self.directory.mkdir(exist_ok=True)
            self.directory.chmod(0o711)
            self._gone.mkdir(exist_ok=True)
            for path in self._gone.iterdir():
                _delete_later(path)
            self._find()
        except OSError as error:
            raise ExecutorError(f"there is no place for root images in {place}: {error.strerror or error}") from error

    async def hold(
        self,
        node: NodeApi,
        blob: str,
        inputs: InputCache,
        on_fetch: Callable[[int], None],
        on_unpack: Callable[[], None],
    ) -> HeldRoot:
        """Have an image here. Raises RootError and InputError. Whoever gives up meanwhile holds nothing."""
        # For a layer over it, its owner has to be known to the launcher; another life may be configured otherwise.
        name = blob if self._owner is None else f"{blob}.{self._owner}"
        if name not in self._entries:
            # One at a time: more of them would need more room than there may be.
            async with self._turn:
                if name not in self._entries:
                    await self._unpack(_fetched(node, blob, inputs, on_fetch, on_unpack), name, blob)
        entry = self._entries[name]
        entry.holders += 1
        self._entries.move_to_end(name)
        with suppress(OSError):
            os.utime(self.directory / name / _DESCRIPTION)
        return HeldRoot(self, name, entry.image)

    def release(self, name: str) -> None:
        self._entries[name].holders -= 1
        self._freed.set()

    def _find(self) -> None:
        """Find what earlier lives have unpacked, and delete what they have not finished."""
        found = []
        for path in self.directory.iterdir():
            try:
                description = path / _DESCRIPTION
                if _NAME.fullmatch(path.name) is None:
                    raise OSError(0, "it has no name of an image")
                image = _decode_image(description.read_bytes())
                if image.boot != _boot():
                    # What was not on the disk when the machine went down is missing in it.
                    raise OSError(0, "it is of an earlier boot")
                found.append((description.stat().st_mtime, path.name, image))
            except (OSError, msgspec.MsgspecError):
                self._discard(path)
        for _, name, image in sorted(found, key=lambda one: one[:2]):
            self._entries[name] = _Entry(image)

    async def _unpack(self, fetched: AbstractAsyncContextManager[Path], name: str, blob: str) -> None:
        self._number += 1
        draft = self.directory / f".{self._number}"
        try:
            async with fetched as archive:
                image = await self._unpacked(archive, draft)
            # It is no input any more: who has another image may wait for its room among them.
            await in_thread(_describe, draft, image)
            while self._held_bytes() + image.bytes > self._max_bytes:
                self._freed.clear()
                await self._freed.wait()
            self._make_room(image.bytes)
            os.rename(draft, self.directory / name)
        except (OSError, RootError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise RootError(f"root image {blob}: {why}") from error
        finally:
            if draft.exists():
                self._discard(draft)
        self._entries[name] = _Entry(image)
        told = {"blob": blob, "bytes": image.bytes, "entries": image.entries, "skipped": image.skipped}
        logger.info("root image unpacked", extra=told)

    def _held_bytes(self) -> int:
        return sum(entry.image.bytes for entry in self._entries.values() if entry.holders)

    async def _unpacked(self, archive: Path, draft: Path) -> Image:
        options = {
            "confine": {
                "identity": self._owner,
                "memory_bytes": MEMORY_BYTES,
                "file_bytes": self._max_bytes,
                "cpu_s": CPU_S,
            },
            "tree": {
                "max_bytes": self._max_bytes,
                "max_entries": MAX_ENTRIES,
                "max_depth": MAX_DEPTH,
            },
        }
        source = _begin(archive, draft / "tree", self._owner)
        try:
            return await self._run(source, draft / "tree", options)
        finally:
            os.close(source)

    async def _run(self, source: int, target: Path, options: Mapping[str, Any]) -> Image:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-I", "-S", "-c", _PROGRAM, _native.__file__, str(_PACKAGE), str(source), json.dumps(options), self._tag),
            cwd=target,
            pass_fds=[source],
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            limit=MAX_ANSWER_BYTES,
            env={},
            start_new_session=True,
        )
        assert process.stdout is not None
        try:
            answer = await process.stdout.read(MAX_ANSWER_BYTES)
            code = await process.wait()
        except BaseException:
            with suppress(ProcessLookupError):
                process.kill()
            await asyncio.shield(process.wait())
            raise
        if code == 0:
            with suppress(msgspec.MsgspecError):
                return _decode_image(answer)
        if code == 1 and answer:
            raise RootError(answer.decode(errors="replace"))
        raise RootError(f"what unpacks it ended with {code}: it may need more memory or time than it may have")

    def _make_room(self, needed: int) -> None:
        """Let go of what nobody holds and was used longest ago, as far as that is needed."""
        used = sum(entry.image.bytes for entry in self._entries.values())
        for name, entry in list(self._entries.items()):
            if used + needed <= self._max_bytes:
                return
            if not entry.holders:
                used -= entry.image.bytes
                del self._entries[name]
                self._discard(self.directory / name)

    def _discard(self, path: Path) -> None:
        """Take something out of the way at once, and delete it a little later: it can be a million files."""
        gone = self._gone / secrets.token_hex(8)
        os.rename(path, gone)
        _delete_later(gone)


@asynccontextmanager
async def _fetched(
    node: NodeApi, blob: str, inputs: InputCache, on_fetch: Callable[[int], None], on_unpack: Callable[[], None]
) -> AsyncIterator[Path]:
    """Have the archive of an image among the inputs."""
    held = await inputs.hold(node, {"its root image": blob}, on_fetch)
    try:
        on_unpack()
        yield inputs.directory / blob
    finally:
        held.release()


def _make(place: Path) -> None:
    """Make a directory that is this user's alone, or see that it is. Raises OSError."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        place.mkdir(mode=0o700)
    status = place.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise OSError(0, "it is another user's, or no directory")
    place.chmod(0o700)


def _begin(archive: Path, tree: Path, owner: int | None) -> int:
    """Make an empty directory for what is in the archive; return a descriptor of that. Raises OSError and RootError."""
    if archive.is_dir():
        raise RootError("it is a collection, and no file of an image")
    tree.mkdir(parents=True)
    if owner is not None:
        os.chown(tree, owner, owner)
    tree.parent.chmod(0o755)
    tree.chmod(0o777)
    return os.open(archive, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)


def _describe(draft: Path, image: Image) -> None:
    with open(draft / _DESCRIPTION, "xb") as file:
        file.write(json.dumps({**msgspec.to_builtins(image), "boot": _boot()}).encode())


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


DELETING: Final = "delete-root"
"""Name of the threads that delete."""


def _delete_later(path: Path) -> None:
    threading.Thread(target=_delete, args=[path], name=DELETING, daemon=True).start()


def _delete(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            delete(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("what is left of a root image cannot be deleted: %s", error, extra={"path": str(path)})


__all__ = ["DELETING", "HeldRoot", "Image", "InputError", "RootCache", "RootError"]
