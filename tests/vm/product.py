"""What is tried in the machines: the wheel of this tree and what it needs, as a disk for them."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Final

from tests.vm.machine import Machine

TREE: Final = Path(__file__).parents[2]
SITE: Final = "lib/python3.11/site-packages"
PREFIX: Final = "/opt/jobs"
DISK: Final = "product"
"""Name of the disk; see `Machine`."""


def product(directory: Path) -> Path:
    """Make a disk with the wheel of this tree and what it needs: a virtual environment for the Python of the image.

    What it needs comes from the environment that this runs in, where the lock file has put it: no network is used.
    """
    disk = directory / "product.squashfs"
    with tempfile.TemporaryDirectory(dir=directory) as name:
        root = Path(name) / "root"
        site = root / SITE
        site.mkdir(parents=True)
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
        subprocess.run([*install, "--target", str(site), str(wheel(Path(name)))], check=True)
        for distribution in needed():
            copy_distribution(distribution, site)
        (root / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
        # The commands as pip has written them, with the interpreter that will be there.
        (site / "bin").rename(root / "bin")
        for program in (root / "bin").iterdir():
            lines = program.read_text().splitlines(keepends=True)
            program.write_text("".join([f"#!{PREFIX}/bin/python\n", *lines[1:]]))
        (root / "bin" / "python").symlink_to("/usr/bin/python3")
        compiled = [sys.executable, "-m", "compileall", "-q", "-s", str(root), "-p", PREFIX]
        subprocess.run([*compiled, "--invalidation-mode", "unchecked-hash", str(site)], check=True)
        plain = ["-noI", "-noD", "-noF", "-noX", "-all-root", "-quiet", "-no-progress"]
        subprocess.run(["mksquashfs", str(root), str(disk), "-noappend", *plain], check=True)
    return disk


def wheel(directory: Path) -> Path:
    """Return a wheel of this tree, or the one that `$JOBS_VM_WHEEL` names."""
    if named := os.environ.get("JOBS_VM_WHEEL"):
        return Path(named)
    maturin = Path(sys.executable).with_name("maturin")
    # For the image alone, whose libraries are no older than those of what builds it.
    build = [str(maturin), "build", "--release", "--locked", "--skip-auditwheel", "--quiet", "--out", str(directory)]
    subprocess.run(build, check=True, cwd=TREE)
    (made,) = directory.glob("*.whl")
    return made


def mount_product(machine: Machine) -> None:
    """Put the disk of `product` in its place, also at the next boots, and its commands where all look for them."""
    line = f"/dev/disk/by-id/virtio-{DISK} {PREFIX} squashfs ro 0 0"
    machine.check(
        f"echo {line!r} >>/etc/fstab && mkdir -p {PREFIX} && mount {PREFIX} && ln -s {PREFIX}/bin/job* /usr/local/bin/"
    )


def needed() -> list[importlib.metadata.Distribution]:
    """Return what the package needs to run, at any depth."""
    from packaging.requirements import Requirement

    found: dict[str, importlib.metadata.Distribution] = {}
    project = tomllib.loads((TREE / "pyproject.toml").read_text())["project"]
    waiting: list[str] = list(project["dependencies"])
    while waiting:
        requirement = Requirement(waiting.pop())
        key = canonical(requirement.name)
        if key not in found and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            found[key] = importlib.metadata.distribution(key)
            waiting.extend(found[key].requires or ())
    return [found[key] for key in sorted(found)]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def copy_distribution(distribution: importlib.metadata.Distribution, site: Path) -> None:
    for file in distribution.files or ():
        if ".." in file.parts or file.suffix == ".pyc":
            continue
        target = site / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(str(file.locate()), target)
