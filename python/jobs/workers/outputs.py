"""Finds the files that a job's `outputs` name in what it has left, and opens them: nothing else, whatever the job did.

Nothing of the job runs any more, and its file system is its own, so there is nothing of the host to be led to. Still a
path is followed part by part, each relative to the directory before it and never through a link or into another file
system; a file is looked at before it is opened, so that no FIFO and no device ever is, and it is what was looked at
that is opened; and one that changes while it is read is refused.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import translate
from typing import Final

from msgspec import Struct

from jobs.protocol.model import MAX_OUTPUT_PATH_BYTES, MAX_OUTPUTS, OutputSkipped
from jobs.validate import MAX_OUTPUT_DEPTH

MAX_ENTRIES: Final = 200_000
"""Names that are looked at for one job."""
MAX_SKIPPED: Final = 20
"""Of the files that are not taken, so many are told of."""
ANY_DEPTH: Final = "**"
_WILD: Final = re.compile(r"[*?[]")
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_LOOK: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_KINDS: Final = (
    (stat.S_ISLNK, "is a symbolic link"),
    (stat.S_ISFIFO, "is a FIFO"),
    (stat.S_ISSOCK, "is a socket"),
    (stat.S_ISDIR, "is a directory: a pattern that ends with /** names what is in it"),
)


class OutputError(Exception):
    """An output cannot be taken; the text says which and why."""


class TooMuchError(OutputError):
    """What the job has left is more than is taken."""


class Identity(Struct, frozen=True):
    """By which a file is known again, and by which it is seen whether it has changed."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int
    changed_ns: int


class OutputFile(Struct, frozen=True):
    """A file that is an output."""

    path: str
    """Relative to the job's directory."""
    identity: Identity

    @property
    def size_bytes(self) -> int:
        return self.identity.size_bytes


class Found(Struct, frozen=True):
    """The outputs of a job, in the order of their paths, and what was in the place of some and is not taken."""

    files: tuple[OutputFile, ...]
    skipped: tuple[OutputSkipped, ...]


class _Refused(Exception):
    """Something is not taken, and why."""


class _Pattern:
    """One of the patterns, cut at its slashes."""

    def __init__(self, text: str) -> None:
        self.text = text
        parts = text.split("/")
        if parts[-1] == ANY_DEPTH:
            parts.append("*")
        self.is_literal = not any(_WILD.search(part) for part in parts)
        self.parts = parts
        self._matchers = [re.compile(translate(part)).match for part in parts]

    def matches(self, place: int, name: str) -> bool:
        """Tell whether a name is what this part of the pattern says; as in a shell, a dot in front has to be named."""
        if name.startswith(".") and not self.parts[place].startswith("."):
            return False
        return self._matchers[place](name) is not None


_State = tuple[int, int]
"""Pattern, and the part of it that is next."""


class _Search:
    """Looks for what matches, through each directory once."""

    def __init__(self, root: int, patterns: Sequence[str], spared: frozenset[str]) -> None:
        self.patterns = [_Pattern(pattern) for pattern in patterns]
        self.files: list[OutputFile] = []
        self.skipped: list[OutputSkipped] = []
        self.met: set[int] = set()
        """Patterns that something was found for."""
        self._device = os.fstat(root).st_dev
        self._spared = spared
        self._entries = 0

    def look_into(self, directory: int, below: str, states: frozenset[_State], depth: int) -> None:
        """Take what matches in a directory, and look into those below that may have more."""
        states = self._widened(states)
        for name in self._names(directory, states):
            path = f"{below}{name}"
            if path in self._spared:
                continue
            ended, further = self._after(states, name)
            if ended or further:
                self._take(directory, name, path, ended, further, depth)

    def _take(
        self, directory: int, name: str, path: str, ended: set[int], further: frozenset[_State], depth: int
    ) -> None:
        try:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                # A directory that a pattern with wildcards happens to match is not meant.
                ended = {number for number in ended if self.patterns[number].is_literal}
                if not ended:
                    self._descend(directory, name, path, further, depth)
                    return
            if not ended:
                return
            self.files.append(OutputFile(_text(path), _checked(status, self._device)))
        except (_Refused, OSError) as error:
            self._skip(path, error, ended)
            return
        self.met |= ended
        if len(self.files) > MAX_OUTPUTS:
            raise TooMuchError(f"more than {MAX_OUTPUTS} files match the outputs, which is all that a job may leave")

    def _skip(self, path: str, error: _Refused | OSError, ended: set[int]) -> None:
        why = str(error) if isinstance(error, _Refused) else f"cannot be read: {error.strerror}"
        shown = path.encode(errors="backslashreplace").decode()[:MAX_OUTPUT_PATH_BYTES]
        if any(self.patterns[number].is_literal for number in ended):
            raise OutputError(f"output {shown} {why}")
        if len(self.skipped) < MAX_SKIPPED:
            self.skipped.append(OutputSkipped(path=shown, why=why))

    def _descend(self, directory: int, name: str, path: str, states: frozenset[_State], depth: int) -> None:
        if not states:
            return
        if depth >= MAX_OUTPUT_DEPTH:
            raise TooMuchError(f"{path[:200]} is more than {MAX_OUTPUT_DEPTH} directories deep")
        with _opened(name, _DIRECTORY, directory) as handle:
            if os.fstat(handle).st_dev == self._device:
                self.look_into(handle, f"{path}/", states, depth + 1)

    def _widened(self, states: frozenset[_State]) -> frozenset[_State]:
        """Return the states with those that `**` for no directory at all leads to."""
        found = set(states)
        for number, first in states:
            place = first
            while self.patterns[number].parts[place] == ANY_DEPTH:
                place += 1
                found.add((number, place))
        return frozenset(found)

    def _after(self, states: frozenset[_State], name: str) -> tuple[set[int], frozenset[_State]]:
        """Return the patterns that end with this name, and the states below it."""
        ended: set[int] = set()
        further: set[_State] = set()
        for number, place in states:
            pattern = self.patterns[number]
            if pattern.parts[place] == ANY_DEPTH:
                if not name.startswith("."):
                    further.add((number, place))
            elif pattern.matches(place, name):
                if place + 1 == len(pattern.parts):
                    ended.add(number)
                else:
                    further.add((number, place + 1))
        return ended, frozenset(further)

    def _names(self, directory: int, states: frozenset[_State]) -> list[str]:
        """Return the names to look at in a directory: where each pattern says which, only those, and not all others."""
        parts = [self.patterns[number].parts[place] for number, place in states]
        if not any(_WILD.search(part) for part in parts):
            return [name for name in sorted(set(parts)) if _exists(name, directory)]
        names: list[str] = []
        with os.scandir(directory) as entries:
            for entry in entries:
                self._entries += 1
                if self._entries > MAX_ENTRIES:
                    raise TooMuchError(f"there are more than {MAX_ENTRIES} files to look at for the outputs")
                names.append(entry.name)
        return sorted(names)


def find(root: int, patterns: Sequence[str], spared: frozenset[str], max_bytes: int) -> Found:
    """Return the files below a directory that the patterns name, apart from those that are `spared`.

    Raises TooMuchError for more than is taken, OutputError where a pattern without wildcards names no file.
    """
    search = _Search(root, patterns, spared)
    with _opened(".", _DIRECTORY, root) as handle:
        search.look_into(handle, "", frozenset((number, 0) for number in range(len(patterns))), 0)
    for number, pattern in enumerate(search.patterns):
        if pattern.is_literal and number not in search.met:
            raise OutputError(f"output {pattern.text} is not there")
    total = sum(file.size_bytes for file in search.files)
    if total > max_bytes:
        raise TooMuchError(f"the outputs have {total} bytes; at most {max_bytes} are taken")
    return Found(tuple(sorted(search.files, key=lambda file: file.path)), tuple(search.skipped))


@contextmanager
def opened(root: int, file: OutputFile) -> Iterator[int]:
    """Give a descriptor of a file that was found, to read it from. Raises OutputError where it has changed."""
    try:
        handle = _open(root, file)
    except (OSError, _Refused) as error:
        why = f"cannot be opened: {error.strerror}" if isinstance(error, OSError) else error
        raise OutputError(f"output {file.path} {why}") from error
    try:
        yield handle
    finally:
        os.close(handle)


def _open(root: int, file: OutputFile) -> int:
    *parents, name = file.path.split("/")
    with ExitStack() as stack:
        directory = root
        for part in parents:
            directory = stack.enter_context(_opened(part, _LOOK | os.O_DIRECTORY, directory))
        handle = stack.enter_context(_opened(name, _LOOK, directory))
        _compare(file, handle)
        # By /proc, as what was looked at is what is opened, and never anything that has taken its place.
        return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)


def read(handle: int, file: OutputFile, offset: int, count: int) -> bytes:
    """Return the next bytes of a file. Raises OutputError where it has become shorter."""
    data = os.pread(handle, min(count, file.size_bytes - offset), offset)
    if not data and offset < file.size_bytes:
        raise OutputError(f"output {file.path} became shorter while it was read")
    return data


def check_unchanged(handle: int, file: OutputFile) -> None:
    """Raise OutputError unless a file is as it was when it was found."""
    try:
        _compare(file, handle)
    except _Refused as error:
        raise OutputError(f"output {file.path} {error}") from error


def _compare(file: OutputFile, handle: int) -> None:
    if _checked(os.fstat(handle), file.identity.device) != file.identity:
        raise _Refused("changed while it was read")


def _checked(status: os.stat_result, device: int) -> Identity:
    """Return what a file is known by. Raises _Refused for what is not taken."""
    if not stat.S_ISREG(status.st_mode):
        what = next((what for is_kind, what in _KINDS if is_kind(status.st_mode)), "is a device")
        raise _Refused(what)
    if status.st_dev != device:
        raise _Refused("is on another file system")
    if status.st_nlink != 1:
        raise _Refused(f"has {status.st_nlink} names (hard links)")
    return Identity(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _text(path: str) -> str:
    """Return the path. Raises _Refused for one that is no text, or too long to be told of."""
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        raise _Refused("has a name that is not UTF-8") from None
    if size > MAX_OUTPUT_PATH_BYTES:
        raise _Refused(f"has a path of {size} bytes; at most {MAX_OUTPUT_PATH_BYTES} are possible")
    return path


def _exists(name: str, directory: int) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            return False
        raise
    return True


@contextmanager
def _opened(name: str, flags: int, directory: int) -> Iterator[int]:
    handle = os.open(name, flags, dir_fd=directory)
    try:
        yield handle
    finally:
        os.close(handle)
