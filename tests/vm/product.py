"""What is tried in the machines: the wheel of this tree and what it needs, as a disk for them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Final

from tests.vm.machine import Machine

TREE: Final = Path(__file__).parents[2]


def packager() -> ModuleType:
    """Return the script that makes the Debian package."""
    spec = importlib.util.spec_from_file_location("packager", TREE / "systemd/debian/build.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


PACKAGER: Final = packager()
PREFIX: Final[Path] = PACKAGER.HOME
PYTHON: Final = f"{PREFIX}/bin/python"
DISK: Final = "product"
"""Name of the disk; see `Machine`."""
PRODUCT: Final = "product.squashfs"


def product(directory: Path, built: Path) -> Path:
    """Make a disk with what the Debian package has below its home: a wheel of this tree, and what that needs.

    What it needs comes from the environment that this runs in, where the lock file has put it: no network is used.
    """
    with tempfile.TemporaryDirectory(dir=directory) as name:
        root = Path(name)
        PACKAGER.lay_out(root, built)
        return pack(root / PREFIX.relative_to("/"), directory / PRODUCT)


def pack(directory: Path, disk: Path) -> Path:
    """Make a disk for machines, that they only read, of a directory."""
    # An emulated processor is slow to decompress.
    plain = ["-noI", "-noD", "-noF", "-noX", "-all-root", "-quiet", "-no-progress"]
    subprocess.run(["mksquashfs", str(directory), str(disk), *plain], check=True)
    return disk


def wheel(directory: Path) -> None:
    """Put a wheel of this tree into a directory, or the one that `$JOBS_VM_WHEEL` names."""
    if named := os.environ.get("JOBS_VM_WHEEL"):
        shutil.copy(named, directory)
        return
    maturin = Path(sys.executable).with_name("maturin")
    # For the image alone, whose libraries are no older than those of what builds it.
    options = ["--release", "--locked", "--skip-auditwheel", "--quiet", "--out", str(directory)]
    subprocess.run([str(maturin), "build", *options], check=True, cwd=TREE)


def mount_product(machine: Machine) -> None:
    """Put the disk of `product` in its place, also at the next boots, and its commands where all look for them."""
    line = f"/dev/disk/by-id/virtio-{DISK} {PREFIX} squashfs ro 0 0"
    machine.check(
        f"echo {line!r} >>/etc/fstab && mkdir -p {PREFIX} && mount {PREFIX} && ln -s {PREFIX}/bin/job* /usr/local/bin/"
    )
