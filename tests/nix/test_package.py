"""The package, the flake and the test of three machines, as far as they can be looked at without building anything."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest

from jobs.cli.main import parser
from jobs.config import check_config
from jobs.declarations import parse
from tests.nix.nix import NIX, ROOT, evaluate, needs_nix, toml

LOCK: Final = (ROOT / "python" / "requirements.lock").read_text()
WHEELS: Final[dict[str, Any]] = json.loads((NIX / "wheels.json").read_text())
PROJECT: Final = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SYSTEMS: Final = ["aarch64-linux", "x86_64-linux"]

MACHINE: Final = (
    *("succeed", "fail", "wait_for_unit", "wait_until_succeeds", "wait_until_fails"),
    *("crash", "start", "wait_for_open_port", "copy_from_host"),
)
"""Methods of a machine of nixpkgs' test driver."""


def locked(name: str) -> tuple[str, set[str]]:
    """Return version and hashes of a package in the lock file."""
    found = re.search(rf"^{re.escape(name)}==(\S+)[^\n]*\n((?:    --hash=[^\n]*\n)+)", LOCK, re.MULTILINE)
    assert found is not None, f"{name} is not in the lock file: make lock"
    return found[1], set(re.findall(r"[0-9a-f]{64}", found[2]))


# --- package ----------------------------------------------------------------------------------------------------------


def test_python_packages_are_those_of_the_lock_file() -> None:
    """If this fails: `make lock` renews nix/wheels.json, too."""
    direct = sorted(re.split(r"[<>=]", name)[0] for name in PROJECT["dependencies"])
    assert WHEELS["direct"] == direct
    for name, entry in WHEELS["packages"].items():
        version, hashes = locked(name)
        assert sorted(entry["files"]) == SYSTEMS
        assert set(entry["needs"]) <= set(WHEELS["packages"])
        for file in entry["files"].values():
            assert file["version"] == version
            assert file["sha256"] in hashes
    needed = set(direct).union(*(entry["needs"] for entry in WHEELS["packages"].values()))
    assert set(WHEELS["packages"]) == needed


def test_a_file_is_for_the_python_and_the_machine_of_the_package() -> None:
    tag = "cp" + WHEELS["python"].replace(".", "")
    assert f"python{WHEELS['python'].replace('.', '')}" in (NIX / "package.nix").read_text()
    for entry in WHEELS["packages"].values():
        for system, file in entry["files"].items():
            if file["format"] == "wheel":
                assert file["platform"] == "any" or system.removesuffix("-linux") in file["platform"]
                assert file["python"] in ("py3", "py2.py3", tag) or file["abi"] == "abi3"


@needs_nix
@pytest.mark.parametrize("system", SYSTEMS)
def test_the_package_is_that_of_the_project(system: str) -> None:
    made = evaluate(NIX / "tests" / "package.nix", system=f'"{system}"')
    assert (made["pname"], made["version"], made["description"]) == ("jobs", PROJECT["version"], PROJECT["description"])
    assert made["platforms"] == SYSTEMS
    library = made["library"]
    assert library["dependencies"] == WHEELS["direct"]
    assert library["cargoDeps"] == str(ROOT / "rust" / "Cargo.lock")
    assert "maturin build" in library["buildPhase"]
    for command in PROJECT["scripts"]:
        assert command in made["installPhase"]
    assert {name: one["dependencies"] for name, one in made["packages"].items()} == {
        name: entry["needs"] for name, entry in WHEELS["packages"].items()
    }


def test_cargo_vendors_without_the_network() -> None:
    """A crate of a git repository would need a hash in nix/package.nix."""
    lock = tomllib.loads((ROOT / "rust" / "Cargo.lock").read_text())
    assert {package["source"] for package in lock["package"] if "source" in package} == {
        "registry+https://github.com/rust-lang/crates.io-index"
    }


# --- flake ------------------------------------------------------------------------------------------------------------


@needs_nix
def test_the_flake_gives_what_the_guide_says() -> None:
    found = evaluate(NIX / "tests" / "flake.nix")
    for kind in ("apps", "checks", "devShells", "formatter", "packages"):
        assert found["names"][kind] == SYSTEMS
    assert found["names"]["nixosModules"] == found["names"]["overlays"] == ["default"]
    assert found["overlay"] == "package.nix"
    assert found["module"] == ["module.nix"]
    for system in SYSTEMS:
        assert found["apps"][system]["default"]["program"].endswith("/bin/jobctl")
        assert found["apps"][system]["demo"]["program"].endswith("/bin/python -m jobs.demo")
        assert found["checks"][system] == {"cluster": "jobs-cluster", "package": "package.nix"}
        assert {"python313", "cargo", "gnumake"} <= set(found["shells"][system])


@needs_nix
@pytest.mark.skipif(shutil.which("nix") is None, reason="no nix here")
def test_nix_takes_it_as_a_flake(tmp_path: Path) -> None:
    """Without the network, and as strictly as it evaluates flakes: nothing is read but what the flake has."""
    source = tmp_path / "source"
    shutil.copytree(NIX, source / "nix")
    for file in ("flake.nix", "pyproject.toml"):
        shutil.copy(ROOT / file, source)
    command = ["nix", "--extra-experimental-features", "nix-command flakes", "--store", str(tmp_path / "store")]
    command += ["flake", "show", f"path:{source}", "--json", "--offline", "--no-write-lock-file"]
    command += ["--override-input", "nixpkgs", f"path:{NIX / 'tests' / 'stubs' / 'nixpkgs'}"]
    home = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(command, env=home, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["nixosModules"]["default"]["type"] == "nixos-module"
    assert shown["overlays"]["default"]["type"] == "nixpkgs-overlay"
    for system in SYSTEMS:
        assert shown["packages"][system]["default"]["name"] == "package.nix"
        assert shown["checks"][system]["cluster"]["name"] == "jobs-cluster"
        assert {name: app["type"] for name, app in shown["apps"][system].items()} == {"default": "app", "demo": "app"}


# --- the test of three machines ---------------------------------------------------------------------------------------


@cache
def machines() -> dict[str, Any]:
    found: dict[str, Any] = evaluate(NIX / "tests" / "machines.nix")
    return found


@needs_nix
@pytest.mark.parametrize("name", ["alpha", "beta", "gamma"])
def test_the_machines_can_be_as_they_are_described(name: str, tmp_path: Any) -> None:
    found = machines()["machines"][name]
    assert found["failed"] == found["warnings"] == []
    file = tmp_path / "node.toml"
    file.write_text(toml(found["settings"]["value"]))
    assert check_config(file) == []
    assert ("jobs-cluster" in found["paths"]) == (name != "alpha")
    assert (found["declaration"] is not None) == (name == "alpha")
    if name == "alpha":
        declared = parse(json.dumps(found["declaration"]["value"]).encode())
        assert set(declared.schedules) == {"tick", "backup-main"}


@needs_nix
def test_the_script_uses_what_the_driver_has() -> None:
    tree = ast.parse(machines()["testScript"])
    names = set(machines()["machines"]) | {"machine", "lost"}
    called = {
        node.func.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id in names
    }
    assert called <= set(MACHINE)
    known = names | {"start_all", "subtest", "json", "shlex"}
    given = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    given |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    given |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert used - given - known <= {"view", "range", "type"}


@needs_nix
def test_the_script_calls_jobctl_as_it_is() -> None:
    """Every command of it is one that the command line takes."""
    commands = list(_commands(ast.parse(machines()["testScript"])))
    assert len(commands) > 15
    for command in commands:
        try:
            parser().parse_args(command)
        except SystemExit:
            pytest.fail(f"jobctl {' '.join(command)}")


def _commands(tree: ast.AST) -> Iterator[list[str]]:
    parts = {part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if node in parts:
            continue
        if isinstance(node, ast.JoinedStr):
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "1" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
        else:
            continue
        for found in re.findall(r"jobctl ((?:'[^']*'|[^|;<>)'])+)", text):
            yield shlex.split(found)
