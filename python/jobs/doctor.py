"""What this machine has of what Jobs needs, what is missing, and how to mend it: the checks behind `jobctl doctor`."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from msgspec import Struct

from jobs.mounts import MEMORY_FILE_SYSTEMS, MOUNTINFO, file_system_of

if TYPE_CHECKING:
    from jobs.config import NodeConfig

Level: TypeAlias = Literal["strict", "standard", "none"]
KERNEL_NEEDED: Final = (5, 7)
KERNEL_WANTED: Final = (5, 14)
PYTHON_NEEDED: Final = (3, 11)
OPEN_FILES_WANTED: Final = 16_384
FREE_BYTES_WANTED: Final = 1 << 30
FSYNC_WRITES: Final = 20
FSYNC_SLOW_MS: Final = 10.0
"""A disk slower than this bounds the node to some hundred acknowledgements a second."""
CONNECT_TIMEOUT_S: Final = 1.0
NETWORK_FILE_SYSTEMS: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "afs", "glusterfs"})


class Check(Struct, frozen=True, kw_only=True):
    """One thing looked at."""

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    fix: str = ""
    """What to do about it; "" when all is well."""


def report(config: NodeConfig | None = None) -> list[Check]:
    """Look at everything; takes well under a second. Without `config` the machine's own is read."""
    checks: list[Check] = []
    if config is None:
        config, check = _load_config()
        checks.append(check)
    parts: tuple[Callable[[], Iterator[Check]], ...] = (
        _programs,
        _kernel,
        lambda: _sandbox(config.workers.shell.sandbox),
        lambda: _disk(config.node.data_dir),
        _clock,
        lambda: _sockets(config),
    )
    for part in parts:
        checks.extend(part())
    return checks


def _load_config() -> tuple[NodeConfig, Check]:
    from jobs.config import ConfigError, NodeConfig, load_config

    try:
        config = load_config()
    except ConfigError as error:
        found = "; ".join(map(str, error.problems))
        fix = "mend it (`jobctl check-config` tells more); the checks below look at the default paths"
        return NodeConfig.model_construct(), Check(name="configuration", status="fail", found=found, fix=fix)
    return config, Check(name="configuration", status="ok", found=f"valid; node {config.node.id}")


# --- programs ------------------------------------------------------------------------------------------------------


def _programs() -> Iterator[Check]:
    from jobs import _native

    python = platform.python_version()
    good = sys.version_info >= PYTHON_NEEDED
    yield Check(
        name="python", status="ok" if good else "fail", found=python, fix="" if good else "install Python 3.11 or newer"
    )
    version = _package_version()
    if version in (None, _native.__version__):
        yield Check(name="extension", status="ok", found=f"version {_native.__version__}")
    else:
        found = f"version {_native.__version__}, the Python package is {version}"
        yield Check(name="extension", status="fail", found=found, fix="build or install the package again")


def _package_version() -> str | None:
    from importlib import metadata

    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version("jobs")
    return None


# --- kernel --------------------------------------------------------------------------------------------------------


def _kernel() -> Iterator[Check]:
    release = os.uname().release
    version = kernel_version(release)
    if version >= KERNEL_WANTED:
        yield Check(name="kernel", status="ok", found=release)
    else:
        status: Literal["warn", "fail"] = "warn" if version >= KERNEL_NEEDED else "fail"
        lacks = "cgroup.kill" if version >= KERNEL_NEEDED else "CLONE_INTO_CGROUP and pidfds"
        yield Check(
            name="kernel", status=status, found=f"{release}, which lacks {lacks}", fix="use Linux 5.14 or newer"
        )
    yield from _user_namespace_limits()
    yield _open_files()


def kernel_version(release: str) -> tuple[int, int]:
    """Return (major, minor) of a kernel's release text; (0, 0) for one that cannot be read."""
    numbers = release.split("-")[0].split(".")
    if len(numbers) < 2 or not (numbers[0].isdigit() and numbers[1].isdigit()):
        return 0, 0
    return int(numbers[0]), int(numbers[1])


def _user_namespace_limits() -> Iterator[Check]:
    for setting, unwanted, fix in (
        ("user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=65536"),
        ("kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "give the worker an AppArmor profile that has `userns`"),
    ):
        value = _read(Path("/proc/sys") / setting)
        name = f"sysctl {setting.replace('/', '.')}"
        if value == unwanted:
            # Root is not bound by the latter two, and the probe of the sandbox tells what holds for this user.
            yield Check(name=name, status="warn", found=value, fix=fix)
        elif value is not None:
            yield Check(name=name, status="ok", found=value)


def _open_files() -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard >= OPEN_FILES_WANTED:
        return Check(name="open files", status="ok", found=f"{soft}, up to {hard}")
    fix = f"set LimitNOFILE={OPEN_FILES_WANTED} for the services, or `ulimit -Hn` for this shell"
    return Check(name="open files", status="warn", found=f"at most {hard}", fix=fix)


# --- sandbox -------------------------------------------------------------------------------------------------------

_SANDBOX_FIXES: Final = {
    "seccomp": "use a kernel with CONFIG_SECCOMP_FILTER, and no container that forbids seccomp(2)",
    "overlay": "use Linux 5.11 or newer with overlay; root images of jobs are read-only otherwise",
    "landlock": "boot with `landlock` in the kernel's lsm= list (Linux 5.13 or newer)",
    "cgroup": "mount cgroup v2 and run the worker with Delegate=yes; limits then hold for all of a job's processes",
}
MAY_BECOME_ANYBODY: Final = 1 << 6 | 1 << 7
"""The capabilities CAP_SETGID and CAP_SETUID."""
_NAMESPACE_FIX: Final = "allow unprivileged namespaces, or start the worker as root; in a container, run it privileged"


def _sandbox(level: Level) -> Iterator[Check]:
    from jobs import _native

    yield _level(level)
    if _status_field("NoNewPrivs") is not None:
        yield Check(name="no_new_privs", status="ok", found="supported")
    else:
        yield Check(name="no_new_privs", status="fail", found="not in /proc/self/status", fix="mount /proc")
    for feature, present, required, words in _native.sandbox_probe():
        if present:
            yield Check(name=f"sandbox: {feature}", status="ok", found=words)
        else:
            status: Literal["warn", "fail"] = "fail" if required and level != "none" else "warn"
            fix = _SANDBOX_FIXES.get(feature, _NAMESPACE_FIX)
            yield Check(name=f"sandbox: {feature}", status=status, found=words, fix=fix)
    yield _job_uids()


def _job_uids() -> Check:
    """Whether a worker of this user gives each job a uid of its own."""
    from jobs.workers.ids import subordinate_ids

    name = "sandbox: job uids"
    rights = int(_status_field("CapEff") or "0", 16)
    if os.geteuid() == 0 or rights & MAY_BECOME_ANYBODY == MAY_BECOME_ANYBODY:
        return Check(name=name, status="ok", found="each job has its own, from workers.shell.uid_base on")
    ids = subordinate_ids()
    if ids is None:
        found = "this user has no subordinate uids and gids: all jobs have its own"
        fix = "usermod --add-subuids 1000000-1065535 --add-subgids 1000000-1065535 USER, with numbers that nobody has"
        return Check(name=name, status="warn", found=found, fix=fix)
    if shutil.which("newuidmap") is None or shutil.which("newgidmap") is None:
        found = "newuidmap or newgidmap is not installed: all jobs have the worker's own"
        return Check(name=name, status="warn", found=found, fix="install them (Debian: uidmap)")
    found = f"each job has its own, of the {ids.count} of /etc/subuid from {ids.uid} on"
    return Check(name=name, status="ok", found=found)


def _level(level: Level) -> Check:
    name = "sandbox level"
    if level == "none":
        found = "none: jobs run WITHOUT ISOLATION, as ordinary processes of this host"
        return Check(name=name, status="warn", found=found, fix='set workers.shell.sandbox = "strict" (the default)')
    found = "strict: every wall" if level == "strict" else "standard: walls that are missing are done without"
    return Check(name=name, status="ok", found=found)


def _status_field(name: str) -> str | None:
    lines = (_read(Path("/proc/self/status")) or "").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(f"{name}:")), None)


# --- disk ----------------------------------------------------------------------------------------------------------


def _disk(data_dir: Path) -> Iterator[Check]:
    place = data_dir
    while not os.path.exists(place):
        place = place.parent
    if not os.access(place, os.W_OK | os.X_OK):
        yield Check(
            name="data directory",
            status="warn",
            found=f"{data_dir}: not writable by uid {os.geteuid()}",
            fix="run as the node's user, or configure node.data_dir",
        )
    else:
        state = "writable" if place == data_dir else f"not there yet; {place} is writable"
        yield Check(name="data directory", status="ok", found=f"{data_dir}: {state}")
        yield _fsync(place)
    yield _file_system(place)
    free = shutil.disk_usage(place).free
    enough = free >= FREE_BYTES_WANTED
    fix = "" if enough else "free some, or configure node.data_dir on a larger disk"
    yield Check(name="disk space", status="ok" if enough else "warn", found=f"{free >> 20} MiB free", fix=fix)


def _file_system(place: Path) -> Check:
    kind = file_system_of(place.resolve(), _read(MOUNTINFO) or "")
    name = "file system"
    if kind in NETWORK_FILE_SYSTEMS or kind.startswith("fuse"):
        return Check(name=name, status="fail", found=f"{kind}: no place for a memory map", fix="use a local disk")
    if kind in MEMORY_FILE_SYSTEMS:
        return Check(name=name, status="warn", found=f"{kind}: gone after a reboot", fix="use a disk for node.data_dir")
    return Check(name=name, status="ok", found=kind)


def _fsync(place: Path) -> Check:
    """Measure how long a durable write takes: the least time of an acknowledgement."""
    times_s = []
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            for _ in range(FSYNC_WRITES):
                started = time.perf_counter()
                os.write(file.fileno(), bytes(4096))
                os.fdatasync(file.fileno())
                times_s.append(time.perf_counter() - started)
    except OSError as error:
        return Check(name="fsync", status="fail", found=f"{place}: {error.strerror}", fix="use another disk")
    times_s.sort()
    median_ms, worst_ms = 1000 * times_s[len(times_s) // 2], 1000 * times_s[-1]
    slow = median_ms > FSYNC_SLOW_MS
    fix = "use a disk with a write cache that survives a power cut" if slow else ""
    found = f"median {median_ms:.2f} ms, worst of {FSYNC_WRITES} {worst_ms:.2f} ms"
    return Check(name="fsync", status="warn" if slow else "ok", found=found, fix=fix)


# --- clock and sockets ---------------------------------------------------------------------------------------------


def _clock() -> Iterator[Check]:
    from jobs import _native

    built_s = Path(_native.__file__).stat().st_mtime
    now_s = time.time()
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now_s))
    if now_s < built_s - 86_400:
        fix = "set the clock; schedules and job ids go by it"
        yield Check(name="clock", status="fail", found=f"{shown}, before this program was built", fix=fix)
    elif Path("/run/systemd/timesync").exists() and not Path("/run/systemd/timesync/synchronized").exists():
        yield Check(
            name="clock", status="warn", found=f"{shown}, not synchronised", fix="let systemd-timesyncd sync it"
        )
    else:
        yield Check(name="clock", status="ok", found=shown)


def _sockets(config: NodeConfig) -> Iterator[Check]:
    for name, path in (("API socket", config.api_socket), ("worker socket", config.worker_socket_path)):
        yield _socket(name, path)


def _socket(name: str, path: Path) -> Check:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(CONNECT_TIMEOUT_S)
        try:
            probe.connect(str(path))
        except FileNotFoundError:
            found, fix = "is not there: no node runs here", "start it: systemctl start jobs-node"
        except ConnectionRefusedError:
            found, fix = "is there, and nobody serves it", "start the node: systemctl start jobs-node"
        except PermissionError:
            found, fix = "may not be opened by this user", "join the group that owns it"
        except OSError as error:
            found, fix = f"cannot be used: {error}", "see the node's log"
        else:
            return Check(name=name, status="ok", found=f"{path} is served")
    return Check(name=name, status="warn", found=f"{path} {found}", fix=fix)


def _read(path: Path) -> str | None:
    with contextlib.suppress(OSError):
        return path.read_text().strip()
    return None
