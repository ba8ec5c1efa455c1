"""Nix as the tests use it: it evaluates, and builds nothing. Where there is no Nix, they are skipped."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
NIX: Final = ROOT / "nix"
EVALUATE: Final = shutil.which("nix-instantiate")
needs_nix = pytest.mark.skipif(EVALUATE is None, reason="no nix-instantiate here (Debian: apt install nix-bin)")
NIXPKGS_LIB: Final = os.environ.get("JOBS_TEST_NIXPKGS_LIB")
"""Path of nixpkgs' `lib`; else the tests ask for `<nixpkgs/lib>`, and else they take the stub alone."""


class EvaluationFailed(Exception):
    """What Nix says."""


def evaluate(file: Path, attribute: str = "", **arguments: str) -> Any:
    """Return what a file of nix/tests, or one attribute of it, comes to; `arguments` are expressions.

    Raises EvaluationFailed.
    """
    assert EVALUATE is not None
    command = [EVALUATE, "--store", "dummy://", "--eval", "--strict", "--json", str(file), "--attr", attribute]
    for name, expression in arguments.items():
        command += ["--arg", name, expression]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    if done.returncode != 0:
        raise EvaluationFailed(done.stderr)
    return json.loads(done.stdout)


def machine(*options: str, lib: str | None = None) -> dict[str, Any]:
    """Return what the module makes of a machine whose options are set in so many places."""
    found: dict[str, Any] = evaluate(NIX / "tests" / "eval.nix", **_arguments(options, lib))
    return found


def refusals(*options: str, lib: str | None = None) -> list[str]:
    """Return what the module has against a machine, without building anything of it."""
    found: list[str] = evaluate(NIX / "tests" / "eval.nix", "failed", **_arguments(options, lib))
    return found


def _arguments(options: Sequence[str], lib: str | None) -> dict[str, str]:
    modules = " ".join(f"({{ lib, ... }}: {{ {text} }})" for text in options)
    return {"machine": f"{{ imports = [ {modules} ]; }}"} | ({} if lib is None else {"lib": lib})


def nixpkgs_lib() -> str | None:
    """Return nixpkgs' lib as an expression, if it is here."""
    assert EVALUATE is not None
    expression = f"import {NIXPKGS_LIB}" if NIXPKGS_LIB else "import <nixpkgs/lib>"
    command = [EVALUATE, "--store", "dummy://", "--eval", "-E", f"({expression}).version"]
    found = subprocess.run(command, capture_output=True, timeout=100)
    return f"({expression})" if found.returncode == 0 else None


def toml(value: Mapping[str, Any]) -> str:
    """Write what nixpkgs' pkgs.formats.toml would: scalars and lists of a table first, then the tables in it."""
    return "".join(_table((), value))


def _table(path: tuple[str, ...], table: Mapping[str, Any]) -> list[str]:
    lines = [f"{_key(name)} = {_value(value)}\n" for name, value in table.items() if not isinstance(value, dict)]
    if path:
        lines.insert(0, f"[{'.'.join(map(_key, path))}]\n")
    for name, value in table.items():
        if isinstance(value, dict):
            lines += _table((*path, name), value)
    return lines


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)


def _value(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return json.dumps(value)
