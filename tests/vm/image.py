"""The image that virtual machines start from: a small Debian with systemd, made by mmdebstrap and kept by its content.

Kept outside the tree, below `$XDG_CACHE_HOME/jobs/vm` (or `$JOBS_VM_CACHE`), by a hash of all that it is made of: it is
made once, and again when what it is made of changes. A half-made one never has the name of a whole one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

GUEST: Final = Path(__file__).parent / "guest"
SUITE: Final = "bookworm"
PACKAGES: Final = (
    "dbus",
    "e2fsprogs",
    "initramfs-tools",
    "iproute2",
    "kmod",
    "libpam-systemd",
    "linux-image-cloud-amd64",
    "procps",
    "python3",
    "python3-venv",
    "systemd",
    "systemd-sysv",
    "udev",
    "uidmap",
    "zstd",
)
# The initial file system brings the root disk and nothing else: the less of it, the sooner a machine is up.
INITRD_MODULES: Final = ("virtio_pci", "virtio_blk")
MAKING_TIMEOUT_S: Final = 900
DISK_BYTES: Final = 6 * 2**30
TOOLS: Final = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "mmdebstrap": "mmdebstrap",
    "mkfs.ext4": "e2fsprogs",
    "mksquashfs": "squashfs-tools",
    "nbdkit": "nbdkit",
}
"""What a run needs of this machine, and the Debian package that brings it (`make setup-vm` installs them)."""


class ImageError(Exception):
    """There is no Debian to be had."""


@dataclass(frozen=True, kw_only=True)
class Image:
    """A root disk, which nobody writes to (machines have layers over it), and what boots it."""

    disk: Path
    kernel: Path
    initrd: Path


def missing_tools() -> list[str]:
    """Return the packages that this machine lacks."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    return sorted(package for tool, package in TOOLS.items() if shutil.which(tool, path=path) is None)


def cache() -> Path:
    """Return the directory of what is kept between runs."""
    named = os.environ.get("JOBS_VM_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(named) if named else base / "jobs" / "vm"


def base_image() -> Image:
    """Return the image, made now when it is not there."""
    directory = cache() / f"base-{fingerprint()}"
    with locked(directory):
        if not directory.exists():
            make(directory)
    return Image(disk=directory / "root.raw", kernel=directory / "vmlinuz", initrd=directory / "initrd.img")


def fingerprint() -> str:
    """Return the hash of all that the image is made of."""
    digest = hashlib.sha256(repr((SUITE, PACKAGES, INITRD_MODULES, DISK_BYTES)).encode())
    for file in sorted(GUEST.iterdir()):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def make(directory: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="jobs-vm-") as name:
        # Without root, mmdebstrap runs as another user of a user namespace: it can enter here and write these files.
        work = Path(name)
        work.chmod(0o711)
        files = {file: work / file for file in ("root.raw", "vmlinuz", "initrd.img")}
        for path in files.values():
            path.touch()
            path.chmod(0o666)
        with files["root.raw"].open("r+b") as disk:
            disk.truncate(DISK_BYTES)
        modules = "\\n".join(INITRD_MODULES)
        conf = "$1/etc/initramfs-tools"
        debootstrap(
            f"--include={','.join(PACKAGES)}",
            f"--setup-hook=mkdir -p {conf}/conf.d && printf 'MODULES=list\\nCOMPRESS=zstd\\n' >{conf}/conf.d/vm",
            f"--setup-hook=printf '{modules}\\n' >{conf}/modules",
            f'--customize-hook={GUEST}/setup.sh "$1" {work}',
        )
        made = directory.with_suffix(".new")
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir()
        for path in files.values():
            subprocess.run(["cp", "--sparse=always", path, made / path.name], check=True)
    made.rename(directory)


def debootstrap(*options: str) -> None:
    command = ["mmdebstrap", "--quiet", "--variant=apt", "--format=null", *options, SUITE, "-"]
    try:
        ended = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=MAKING_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        raise ImageError(f"mmdebstrap has not ended in {MAKING_TIMEOUT_S} s") from None
    if ended.returncode != 0:
        raise ImageError(f"mmdebstrap: {ended.stderr.strip()[-500:]}")


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Make what belongs at `directory` in one process at a time."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with directory.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
