"""How a job's view is mounted: nothing in it gives rights or is a device, nothing but the job's own is writable, and
what the host mounts later is not there."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs.workers.sandbox import Configure, Launcher

from .conftest import Sandbox
from .test_inputs import inputs, left

__all__ = ["inputs"]

OWN = {"/work", "/tmp", "/dev/shm", "/.job"}
"""Where a job may write; the kernel makes something of what is written in /proc, by its owner."""
MASKED = {f"/proc/{name}" for name in ("kcore", "keys", "timer_list", "sysrq-trigger")}
DEVICES = {f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty")}
PLACE = "/mnt"
"""Where something is mounted, of which nobody else hears."""
HOST = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
SHARED, RECURSIVE, NEW_MOUNTS = 1 << 20, 1 << 14, 0x20000
def check(result):
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
def mount(place, options):
    check(libc.mount(b"test", place, b"tmpfs", 0, options))
place = sys.argv[1].encode()
orders, answers = os.open(sys.argv[2], os.O_RDONLY), os.open(sys.argv[3], os.O_WRONLY)
check(libc.unshare(NEW_MOUNTS))
check(libc.mount(None, b"/", None, SHARED | RECURSIVE, None))
mount(place, b"mode=0755")
os.mkdir(place + b"/below")
mount(place + b"/below", b"mode=0755")
os.mkdir(place + b"/later")
if (child := os.fork()) == 0:
    if os.fork():
        os._exit(0)  # what is left is nobody's child
    os.read(orders, 1)
    mount(place + b"/later", b"mode=0755")
    open(place + b"/later/secret", "w").close()
    os.write(answers, b"mounted")
    os.read(orders, 1)
    os._exit(0)
os.waitpid(child, 0)
os.execv(sys.argv[4], sys.argv[4:])
"""


def mounts_of(sandbox: Sandbox, **spawn: object) -> dict[str, tuple[set[str], str]]:
    """What a job finds mounted where: the options of the mount, and whether it hands on what is mounted elsewhere."""
    text = sandbox.run("cat", "/proc/self/mountinfo", **spawn).stdout
    fields = [line.split(" - ")[0].split() for line in text.splitlines()]
    return {line[4]: (set(line[5].split(",")), " ".join(line[6:])) for line in fields}


@pytest.mark.parametrize("keep", [False, True])
def test_nothing_gives_rights_and_nothing_else_is_writable(
    fresh: Callable[..., Sandbox], inputs: Path, keep: bool
) -> None:
    sandbox = fresh(inputs=str(inputs))
    found = mounts_of(sandbox, inputs={"in": "file", "tree": "tree"}, secrets={"token": b"x" * 20}, keep=keep)
    if keep:
        # What the worker was given of it is the job's file system, and closed with it.
        root = left(sandbox, sandbox.start("true", keep=True))
        assert root is not None
        os.close(root)
    assert {"/", "/usr", "/proc", "/proc/sys", "/run/secrets", "/work/in", "/work/tree", *OWN} <= set(found)
    assert {place for place in MASKED if Path(place).exists()} <= set(found)
    for place, (options, propagation) in found.items():
        assert propagation == "", place
        if place in DEVICES | MASKED:  # by /dev/null, which has to be a device
            continue
        assert {"nosuid", "nodev"} <= options, place
        assert "ro" in options or place in OWN | {"/proc"}, place
    for place in ("/proc", "/run/secrets"):
        assert "noexec" in found[place][0], place


@pytest.fixture
def host() -> Iterator[tuple[Sandbox, Callable[[], None]]]:
    """A launcher in mounts of its own, of which jobs are shown a directory; and what mounts something there later."""
    if os.geteuid() != 0 or not Path(PLACE).is_dir():
        pytest.skip(f"not root, or no {PLACE}")
    orders, ordering = os.pipe()
    answering, answers = os.pipe()
    # What is started has the launcher's descriptors only: /proc leads to these.
    ends = [f"/proc/{os.getpid()}/fd/{end}" for end in (orders, answers)]
    wrapper = [sys.executable, "-I", "-S", "-c", HOST, PLACE, *ends]
    launcher = Launcher.start(Configure(slots=1, read_only_paths=[PLACE]), wrapper=wrapper)

    def mount_later() -> None:
        os.write(ordering, b"m")
        assert os.read(answering, 16) == b"mounted"

    yield Sandbox(launcher), mount_later
    launcher.close()
    for end in (orders, ordering, answering, answers):
        os.close(end)


def test_what_is_mounted_below_a_directory_is_read_only_as_well(host: tuple[Sandbox, Callable[[], None]]) -> None:
    sandbox, _ = host
    found = mounts_of(sandbox)
    for place in (PLACE, f"{PLACE}/below"):
        assert {"ro", "nosuid", "nodev"} <= found[place][0], place


def test_what_the_host_mounts_later_is_not_there(host: tuple[Sandbox, Callable[[], None]]) -> None:
    sandbox, mount_later = host
    assert sandbox.run("ls", "-A", PLACE).stdout.split() == ["below", "later"]
    mount_later()
    assert sandbox.run("ls", "-A", f"{PLACE}/later").stdout == ""
    assert f"{PLACE}/later" not in mounts_of(sandbox)
