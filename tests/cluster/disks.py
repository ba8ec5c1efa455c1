"""A disk for each node: a small file system of its own, whose power can be cut.

With loop devices it is ext4 on a device. A cut is ext4's own `shutdown`, made for this: from that moment nothing that
is in the kernel's memory reaches the device any more, every write fails, and what is mounted afterwards is what the
device had, after ext4's recovery. Without loop devices it is a tmpfs, which knows no power cuts.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import struct
import subprocess
import time
from pathlib import Path
from typing import Final

from tests.cluster.namespaces import run

DISK_BYTES: Final = 512 << 20
UNMOUNT_S: Final = 20.0
"""Time for the processes of a killed node to let go of its disk."""
_SHUTDOWN: Final = 0x8004587D
"""EXT4_IOC_SHUTDOWN, from the kernel's fs/ext4/ext4.h."""
_LOSE_ALL_UNWRITTEN: Final = 2
_MARKER: Final = Path("data/store/OPEN")


class Disks:
    """Mounted at a directory's subdirectories, by name."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._images = directory / "disks"
        self._images.mkdir(parents=True)
        run("mount", "-t", "tmpfs", "-o", "mode=700", "jobs-test", str(self._images))
        self._mounted: set[str] = set()
        self.missing = self._why_no_power_cuts()

    def _why_no_power_cuts(self) -> str:
        """Return why power cannot be cut here, "" when it can."""
        try:
            self._mount_ext4("probe")
            self.cut_power("probe")
        except (OSError, subprocess.CalledProcessError) as error:
            return f"needs loop devices and ext4: {getattr(error, 'stderr', '') or error}"
        finally:
            subprocess.run(["umount", str(self._directory / "probe")], capture_output=True)
        return ""

    def make(self, name: str) -> None:
        """Mount an empty disk in place of the former one, if there was any."""
        self._unmount(name)
        if self.missing:
            place = self._directory / name
            place.mkdir(exist_ok=True)
            run("mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=755", "jobs-test", str(place))
        else:
            self._mount_ext4(name)
        self._mounted.add(name)

    def _mount_ext4(self, name: str) -> None:
        image = self._image(name)
        image.unlink(missing_ok=True)
        with image.open("wb") as file:
            file.truncate(DISK_BYTES)
        options = "lazy_itable_init=1,lazy_journal_init=1,nodiscard"
        run("mkfs.ext4", "-q", "-m", "0", "-J", "size=8", "-E", options, str(image))
        self._mount(name)

    def _mount(self, name: str) -> None:
        place = self._directory / name
        place.mkdir(exist_ok=True)
        run("mount", "-t", "ext4", "-o", "loop,noatime,discard", str(self._image(name)), str(place))

    def _image(self, name: str) -> Path:
        return self._images / f"{name}.img"

    def cut_power(self, name: str) -> None:
        """Lose what is not on the device, now. The node must be killed next, and its disk plugged in again."""
        descriptor = os.open(self._directory / name, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(descriptor, _SHUTDOWN, struct.pack("I", _LOSE_ALL_UNWRITTEN))
        finally:
            os.close(descriptor)

    def plug_in(self, name: str) -> None:
        """Mount what a power cut has left, as another boot of the operating system does."""
        self._unmount(name)
        self._mount(name)
        self._mounted.add(name)
        self.boot_anew(name)

    def boot_anew(self, name: str) -> None:
        """Let what is on the disk be of another boot: a store tells them apart by the kernel's boot id."""
        marker = self._directory / name / _MARKER
        with contextlib.suppress(FileNotFoundError):
            version, _, state = marker.read_text().split()
            marker.write_text(f"{version} another-boot {state}\n")

    def _unmount(self, name: str) -> None:
        if name not in self._mounted:
            return
        deadline = time.monotonic() + UNMOUNT_S
        while True:
            done = subprocess.run(["umount", str(self._directory / name)], capture_output=True, text=True)
            if done.returncode == 0:
                break
            if time.monotonic() > deadline:
                raise OSError(errno.EBUSY, f"the disk of a killed node is still in use: {done.stderr.strip()}")
            time.sleep(0.02)
        self._mounted.discard(name)

    def unmount_all(self) -> None:
        """Let go of everything but the nodes' logs, for whoever looks for a reason."""
        for name in self._mounted:
            with contextlib.suppress(OSError):
                shutil.copy(self._directory / name / "node.log", self._directory / f"{name}.log")
        for place in (*(self._directory / name for name in self._mounted), self._images):
            subprocess.run(["umount", "--lazy", str(place)], capture_output=True)
