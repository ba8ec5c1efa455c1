"""Unit files: reading them with their drop-ins, and writing those that NixOS makes of a module's services."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

Settings = dict[str, list[str]]
Unit = dict[str, Settings]
KINDS: Final = {"services": "service", "sockets": "socket", "targets": "target", "paths": "path"}
_SECTIONS: Final = {"unitConfig": "Unit", "serviceConfig": "Service", "socketConfig": "Socket", "pathConfig": "Path"}


def read_unit(*files: Path) -> Unit:
    """Return a unit with its drop-ins, in their order; an empty value takes back what came before."""
    unit: Unit = {}
    for file in files:
        section: Settings = {}
        for line in map(str.strip, file.read_text().replace("\\\n", " ").splitlines()):
            if not line or line[0] in "#;":
                continue
            if line[0] == "[":
                section = unit.setdefault(line[1:-1], {})
                continue
            name, _, value = line.partition("=")
            section.setdefault(name, []).append(value)
            if not value:
                section[name] = []
    return unit


def override(unit: Mapping[str, Any], script: str) -> str:
    """Return a unit of the module as NixOS writes it, without what every unit of NixOS has (PATH and the like).

    `script`: where the file of its script is, if it has one.
    """
    lines = ["[Unit]"]
    if unit["description"]:
        lines.append(f"Description={unit['description']}")
    for name in ("wants", "requires", "after"):
        if unit[name]:
            lines.append(f"{name.capitalize()}={' '.join(unit[name])}")
    if unit["startLimitIntervalSec"] is not None:
        lines.append(f"StartLimitIntervalSec={unit['startLimitIntervalSec']}")
    for option, section in _SECTIONS.items():
        if section != "Unit":
            lines += [f"[{section}]"] if option in unit else []
        lines += _lines(unit.get(option, {}))
    if unit.get("script"):
        lines += ["[Service]", f"ExecStart={script}"]
    return "\n".join(lines) + "\n"


def _lines(settings: Mapping[str, Any]) -> Iterable[str]:
    for name, value in settings.items():
        for one in value if isinstance(value, list) else [value]:
            yield f"{name}={str(one).lower() if isinstance(one, bool) else one}"


def lay_out(packaged: Path, made: Mapping[str, Any], target: Path) -> None:
    """Put units together as nixos/lib/systemd-lib.nix does: those of the package, the module's as drop-ins of them or
    as units of their own, and links for what wants them."""
    for file in packaged.rglob("*"):
        if file.is_file():
            copy = target / file.relative_to(packaged)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    for kind, suffix in KINDS.items():
        for name, unit in made[kind].items():
            file = target / f"{name}.{suffix}"
            if file.exists() or unit["overrideStrategy"] == "asDropin":
                file = target / f"{name}.{suffix}.d" / "overrides.conf"
                file.parent.mkdir(exist_ok=True)
            script = file.with_name(f"{name}-start")
            if unit.get("script"):
                script.write_text(f"#!/bin/sh\nset -e\n{unit['script']}\n")
                script.chmod(0o755)
            file.write_text(override(unit, str(script)))
            for wanting in unit["wantedBy"]:
                wants = target / f"{wanting}.wants"
                wants.mkdir(exist_ok=True)
                (wants / f"{name}.{suffix}").symlink_to(f"../{name}.{suffix}")
