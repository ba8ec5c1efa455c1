"""The command that makes systemd look after a node and its workers: install-units."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from jobs.cli import exits
from jobs.cli.command import Command, Parser, UsageError
from jobs.cli.output import note, print_json
from jobs.client import Client

if TYPE_CHECKING:
    from jobs.appliance import Change, File

_ROOT: Final = Path("/")
_KINDS: Final = ("sysusers", "tmpfiles")
_EPILOG: Final = """\
Then `systemctl start jobs-node` starts the node and the workers that are enabled. docs/install.md says more."""


class _StepFailed(Exception):
    """A program that was run for a step did not do it."""


def install_units(client: Client, options: argparse.Namespace) -> int:
    from jobs import appliance

    types = _types(options.workers, appliance.worker_types())
    into_another = options.root != _ROOT
    if into_another and options.enable:
        raise UsageError("--enable is for this machine; there is `systemctl --root=DIR preset-all` for another's files")
    version = options.systemd or (0 if into_another else _systemd_version())
    commands = options.commands or _own_directory()
    wanted = appliance.files(options.prefix, commands, version)
    try:
        if options.remove:
            return _remove(wanted, options)
        reason = _reason_against(commands, options)
        if reason is not None:
            note(reason)
            return exits.FAILED
        for path, change in appliance.put(wanted, options.root, dry=options.dry_run):
            _tell(path, change, options)
        if not into_another:
            _prepare(wanted, options)
            if options.enable:
                units = [*appliance.NODE_UNITS, *appliance.worker_units(types)]
                _run("systemctl", "enable", "--quiet", *units, options=options)
    except (OSError, _StepFailed) as error:
        note(str(error))
        return exits.FAILED
    return exits.OK


def _reason_against(commands: Path, options: argparse.Namespace) -> str | None:
    """Return why what is installed would not do, and what to do about it; None if it would."""
    from jobs import appliance

    other = appliance.other_installation(options.prefix, options.root)
    if other is not None:
        return f"{other} is there, of another installation, such as the Debian package: remove that first"
    return appliance.unusable(commands) if options.root == _ROOT else None


def _remove(wanted: Sequence[File], options: argparse.Namespace) -> int:
    """Stop and disable everything, and take the files away; data, users and the configuration stay."""
    from jobs import appliance

    into_another = options.root != _ROOT
    units = [*reversed(appliance.NODE_UNITS), *appliance.worker_units(appliance.worker_types())]
    there = appliance.installed(units, wanted, options.root)
    if there and not into_another:
        _run("systemctl", "disable", "--quiet", "--now", *there, options=options)
    for path, change in appliance.take_away(wanted, options.root, dry=options.dry_run):
        _tell(path, change, options)
    if there and not into_another:
        _run("systemctl", "daemon-reload", options=options)
    return exits.OK


def _prepare(wanted: Sequence[File], options: argparse.Namespace) -> None:
    """Make users and directories, and have the service manager read its files again."""
    by_kind = {kind: [str(file.path) for file in wanted if f"/{kind}.d/" in str(file.path)] for kind in _KINDS}
    _run("systemd-sysusers", *by_kind["sysusers"], options=options)
    _run("systemd-tmpfiles", "--create", *by_kind["tmpfiles"], options=options)
    _run("systemctl", "daemon-reload", options=options)


def _types(text: str | None, known: Sequence[str]) -> list[str]:
    if text is None:
        return list(known)
    named = [name.strip() for name in text.split(",") if name.strip()]
    for name in named:
        if name not in known:
            raise UsageError(f"--workers: there are no workers of type {name!r}; there are {', '.join(known)}")
    return named


def _own_directory() -> Path:
    """Return the directory of the commands that this one was installed with."""
    return Path(sys.argv[0]).resolve().parent if Path(sys.argv[0]).name == "jobctl" else Path(sys.executable).parent


def _systemd_version() -> int:
    """Return the version that runs here; 0 where there is none."""
    systemctl = shutil.which("systemctl")
    if systemctl is None:
        return 0
    said = subprocess.run([systemctl, "--version"], capture_output=True, text=True, check=False).stdout.split()
    return int(said[1]) if len(said) > 1 and said[1].isdigit() else 0


def _run(program: str, *arguments: str, options: argparse.Namespace) -> None:
    """Raises _StepFailed."""
    if options.dry_run:
        _say({"command": [program, *arguments]}, f"to run {program} {' '.join(arguments)}", options)
        return
    path = shutil.which(program)
    if path is None:
        raise _StepFailed(f"{program} is not there: this machine has no systemd; --root DIR only puts the files")
    done = subprocess.run([path, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = "; ".join(done.stderr.split("\n")).strip("; ") or f"it ended with {done.returncode}"
        raise _StepFailed(f"{program} {' '.join(arguments)}: {said}")


def _tell(path: Path, change: Change, options: argparse.Namespace) -> None:
    key, words = ("change", f"to be {change}:") if options.dry_run else ("done", str(change))
    _say({"path": str(path), key: change}, f"{words} {path}", options)


def _say(found: dict[str, object], text: str, options: argparse.Namespace) -> None:
    if options.json:
        print_json(found)
    else:
        print(text)


def _absolute(text: str) -> Path:
    if not text.startswith("/"):
        raise argparse.ArgumentTypeError(f"{text!r} is no absolute path")
    return Path(text)


def _configure(parser: Parser) -> None:
    add = parser.add_argument
    add("--prefix", type=_absolute, default=Path("/usr/local"), metavar="DIR", help="default: /usr/local")
    add("--root", type=Path, default=_ROOT, metavar="DIR", help="put the files below DIR, and do nothing else")
    add(
        "--commands", type=_absolute, metavar="DIR", help="where jobs-node and jobs-worker are (default: beside jobctl)"
    )
    add("--systemd", type=int, metavar="N", help="version of systemd that the files are for (default: that of here)")
    add("--workers", metavar="TYPES", help="types of workers to enable, such as shell,sql (default: all)")
    add("--enable", action="store_true", help="start at boot, and the workers with the node")
    add("--dry-run", action="store_true", help="say what would be done, and do nothing")
    add("--remove", action="store_true", help="stop, disable and remove; data, users and configuration stay")


COMMANDS: Final = (
    Command(
        "install-units",
        install_units,
        "Have systemd look after a node and its workers: install the units, users and directories.",
        _configure,
        _EPILOG,
    ),
)
