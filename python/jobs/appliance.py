"""Puts the units of systemd, and what goes with them, into a file system: the work of `jobctl install-units`.

What is put where is decided here and nowhere else; packages are built with the same code. A file is replaced only when
it differs, and as a whole. The configuration is the operator's: it is made once, and never touched again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Final

from msgspec import Struct

SOURCES: Final = Path(__file__).parent / "systemd"
"""The directory `systemd` of the source tree, which the wheel carries here."""
CONFIGURATION: Final = Path("/etc/jobs/node.toml")
PREFIXES: Final = (Path("/usr/local"), Path("/usr"))
"""Below which systemd looks for units: of whoever installs by hand, and of packages."""
COMMANDS: Final = ("jobs-node", "jobs-worker")
_COMMAND: Final = re.compile(rf"(?m)^(Exec[A-Za-z]*=)/usr/bin/(?=(?:{'|'.join(COMMANDS)})\b)")
_UNITS: Final = "lib/systemd/system"
_DIRECTORIES: Final = {
    "system": _UNITS,
    "system-preset": "lib/systemd/system-preset",
    "sysusers.d": "lib/sysusers.d",
    "tmpfiles.d": "lib/tmpfiles.d",
}
"""Directory of the sources → directory below the prefix."""
BACKOFF: Final = "backoff.conf"
BACKOFF_SINCE: Final = 254
"""The version of systemd that knows what is in it; an older one would complain of each line."""
_BACKED_OFF: Final = ("jobs-node.service", "jobs-worker@.service")
NODE_UNITS: Final = ("jobs.target", "jobs-node.service", "jobs-node.socket", "jobs-node-workers.socket")
HIDDEN: Final = (Path("/home"), Path("/root"), Path("/run/user"))
"""What the services cannot see (ProtectHome=)."""


class Change(StrEnum):
    """What is done with a file."""

    INSTALLED = "installed"
    REPLACED = "replaced"
    REMOVED = "removed"


class File(Struct, frozen=True, kw_only=True):
    """One file to be there."""

    path: Path
    """Absolute, in the file system that it is for."""
    content: bytes
    keep: bool = False
    """Whatever is there already stays."""


def files(prefix: Path, commands: Path, systemd: int, sources: Path = SOURCES) -> list[File]:
    """Return what belongs below `prefix`, with the commands in the directory `commands`, for a version of systemd."""
    found = [
        File(path=prefix / target / path.relative_to(sources / source), content=_adapted(path, commands))
        for source, target in _DIRECTORIES.items()
        for path in sorted((sources / source).rglob("*"))
        if path.is_file()
    ]
    if systemd >= BACKOFF_SINCE:
        content = (sources / BACKOFF).read_bytes()
        found += [File(path=prefix / _UNITS / f"{unit}.d/20-{BACKOFF}", content=content) for unit in _BACKED_OFF]
    return [*found, File(path=CONFIGURATION, content=(sources / CONFIGURATION.name).read_bytes(), keep=True)]


def _adapted(path: Path, commands: Path) -> bytes:
    """Return a file that calls the commands where they are."""
    return _COMMAND.sub(lambda match: f"{match[1]}{commands}/", path.read_text()).encode()


def put(wanted: Iterable[File], root: Path, *, dry: bool = False) -> Iterator[tuple[Path, Change]]:
    """Make the files below `root`; yields those that are made or changed, which is all that is done if `dry`.

    Raises OSError.
    """
    for file in wanted:
        path = _below(root, file)
        is_there = os.path.lexists(path)
        if is_there and (file.keep or _holds(path, file.content)):
            continue
        if not dry:
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_name(f".{path.name}.new")
            draft.write_bytes(file.content)
            draft.chmod(0o644)
            draft.rename(path)
        yield file.path, Change.REPLACED if is_there else Change.INSTALLED


def _below(root: Path, file: File) -> Path:
    return root / file.path.relative_to("/")


def _holds(path: Path, content: bytes) -> bool:
    try:
        return path.read_bytes() == content
    except OSError:
        return False


def take_away(wanted: Iterable[File], root: Path, *, dry: bool = False) -> Iterator[tuple[Path, Change]]:
    """Remove the files, but for what is kept, and directories of drop-ins that are empty then; yields what goes.

    Raises OSError.
    """
    for file in wanted:
        path = _below(root, file)
        if file.keep or not os.path.lexists(path):
            continue
        if not dry:
            path.unlink()
            if path.parent.suffix == ".d" and path.parent.name.startswith("jobs-") and not any(path.parent.iterdir()):
                path.parent.rmdir()
        yield file.path, Change.REMOVED


def installed(units: Iterable[str], wanted: Sequence[File], root: Path) -> list[str]:
    """Return those of the units whose files are there: nothing else can be disabled."""
    there = {file.path.name for file in wanted if os.path.lexists(_below(root, file))}
    return [unit for unit in units if re.sub(r"@[^.]+", "@", unit) in there]


def other_installation(prefix: Path, root: Path) -> Path | None:
    """Return the node's unit of another installation: of two systemd takes one, and upgrades of the other are lost."""
    for other in PREFIXES:
        unit = other / _UNITS / "jobs-node.service"
        if other != prefix and os.path.lexists(root / unit.relative_to("/")):
            return unit
    return None


def unusable(commands: Path) -> str | None:
    """Return why services cannot run the commands in this directory, and what to do about it; None if they can."""
    for name in COMMANDS:
        command = commands / name
        if not os.access(command, os.X_OK):
            return f"{command} is not there, or cannot be executed: name the directory of the commands with --commands"
        # An interpreter that a tool keeps for its user hides behind a link in the environment.
        for path in (command, command.with_name("python")):
            where = path.resolve()
            if any(where.is_relative_to(hidden) for hidden in HIDDEN):
                return f"{path} is {where}, which services cannot see: install Jobs elsewhere, such as in /opt/jobs"
    return None


def worker_types(sources: Path = SOURCES) -> list[str]:
    """Return the types of workers that there are units for."""
    return sorted(re.findall(r"@(\w+)\.", " ".join(path.name for path in (sources / "system").glob("*@?*.d"))))


def worker_units(types: Iterable[str]) -> list[str]:
    """Return the units of workers of these types."""
    return [f"jobs-worker@{worker_type}.service" for worker_type in types]
