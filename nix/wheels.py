"""Writes nix/wheels.json from the lock file: `python nix/wheels.py > nix/wheels.json`.

Each file is named as pip would take it for the Python and the platforms of nix/package.nix, with a hash that the lock
file has: so the package is of the same versions that the project's tests run with.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from importlib.metadata import requires
from pathlib import Path
from typing import Any, Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

ROOT: Final = Path(__file__).resolve().parent.parent
LOCK: Final = ROOT / "python" / "requirements.lock"
PYTHON: Final = "3.13"
GLIBC_MINORS: Final = range(17, 40)
SYSTEMS: Final = {"x86_64-linux": "x86_64", "aarch64-linux": "aarch64"}
SOURCES: Final = ("pysyncobj", "sdnotify")
"""Packages that come as source only; both are of Python alone."""


def locked() -> dict[str, tuple[str, frozenset[str]]]:
    """Return version and hashes of every package of the lock file."""
    entry = re.compile(r"^([a-z0-9.-]+)==(\S+)[^\n]*\\\n((?:    --hash=sha256:[0-9a-f]{64}[^\n]*\n)+)", re.MULTILINE)
    found = entry.findall(LOCK.read_text())
    return {name: (version, frozenset(re.findall(r"[0-9a-f]{64}", hashes))) for name, version, hashes in found}


def needed() -> dict[str, list[str]]:
    """Return what the project needs at run time, directly or not, and what each of these needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found: dict[str, list[str]] = {"jobs": _names(project["dependencies"])}
    waiting = list(found["jobs"])
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = _names(requires(name) or [])
            waiting += found[name]
    return found


def _names(lines: list[str]) -> list[str]:
    wanted = [Requirement(line) for line in lines]
    environment = {"python_version": PYTHON, "python_full_version": f"{PYTHON}.0", "extra": ""}
    return sorted(canonicalize_name(one.name) for one in wanted if not one.marker or one.marker.evaluate(environment))


def files(names: list[str], machine: str) -> dict[str, dict[str, Any]]:
    """Return the file of each package that pip would take, by its name."""
    lock = locked()
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as wanted:
        for name in names:
            version, hashes = lock[name]
            wanted.write(f"{name}=={version} {' '.join(f'--hash=sha256:{one}' for one in sorted(hashes))}\n")
        wanted.flush()
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--no-deps"]
        command += ["--require-hashes", "--python-version", PYTHON, "--implementation", "cp", "--only-binary", ":all:"]
        command += [f"--platform=manylinux_2_{minor}_{machine}" for minor in reversed(GLIBC_MINORS)]
        command += [f"--platform=manylinux2014_{machine}", "--target", "unused", "--report", "-", "-r", wanted.name]
        report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return {canonicalize_name(item["metadata"]["name"]): _file(item, lock) for item in report["install"]}


def _file(item: dict[str, Any], lock: dict[str, tuple[str, frozenset[str]]]) -> dict[str, Any]:
    """Return a file in the words of `fetchPypi`."""
    archive = item["download_info"]
    file_name = archive["url"].rpartition("/")[2]
    sha256 = archive["archive_info"]["hashes"]["sha256"]
    assert sha256 in lock[canonicalize_name(item["metadata"]["name"])][1], f"{file_name} is not in the lock file"
    parse_wheel_filename(file_name)
    pname, version, python, abi, platform = file_name.removesuffix(".whl").split("-")
    return {
        "format": "wheel", "pname": pname, "version": version, "dist": python, "python": python, "abi": abi,
        "platform": platform, "sha256": sha256,
    }  # fmt: skip


def source(name: str) -> dict[str, Any]:
    """Return the source archive of a package, the only file that it has, in the words of `fetchPypi`."""
    version, (sha256,) = locked()[name]
    return {"format": "setuptools", "pname": name, "version": version, "sha256": sha256}


def document() -> dict[str, Any]:
    """Return everything that nix/package.nix reads."""
    wanted = needed()
    direct = wanted.pop("jobs")
    wheels = sorted(set(wanted) - set(SOURCES))
    by_system = {system: files(wheels, machine) for system, machine in SYSTEMS.items()}
    sources = {name: source(name) for name in SOURCES}
    packages = {
        name: {
            "needs": wanted[name],
            "files": {system: sources.get(name) or by_system[system][name] for system in SYSTEMS},
        }
        for name in sorted(wanted)
    }
    return {"python": PYTHON, "direct": direct, "packages": packages}


if __name__ == "__main__":
    json.dump(document(), sys.stdout, indent=1)
    print()
