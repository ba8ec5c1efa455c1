"""A hostile program (`hostile.c`), run as a job: everything that it tries, and what it meets.

What ordinary programs may do, and these walls must not break, is in `test_ordinary_programs`.
"""

from __future__ import annotations

import shutil
import subprocess
from errno import (
    EACCES,
    EAFNOSUPPORT,
    ECONNREFUSED,
    EINVAL,
    EMFILE,
    ENETUNREACH,
    ENOENT,
    ENOMEM,
    ENOSPC,
    ENOSYS,
    ENXIO,
    EOPNOTSUPP,
    EPERM,
    EPROTONOSUPPORT,
    EROFS,
    ESOCKTNOSUPPORT,
    ETXTBSY,
    EXDEV,
)
from pathlib import Path

import pytest

from jobs.protocol.ids import Attempt
from jobs.workers.sandbox import End

from .conftest import Sandbox, limits

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")

FIRST_PROCESS = ("niceness", "scheduler", "parameters", "attributes", "processors", "disk")
KINDS = ("user", "mount", "pid", "net", "ipc", "uts", "cgroup")
MET: dict[str, dict[str, object]] = {
    # Nothing is open that leads out, and above the root is the root.
    "descriptors": {"climb": 0, "above": "root", "root of the first": ENOENT, "cwd of the first": ENOENT},
    "programs": {
        "write the first's program": ENOENT,
        "read the first's program": ENOENT,
        "write the own program": ETXTBSY,
        "write a shared program": EACCES,
        "replace a shared program": EXDEV,
    },
    "others": {
        "ptrace": EPERM,
        "process_vm_readv": EPERM,
        "process_vm_writev": EPERM,
        "pidfd_getfd": EPERM,
        "memory": ENOENT,
        "environ": ENOENT,
        "descriptors": ENOENT,
        "maps": ENOENT,
        "oom score": ENOENT,
        "less likely killed": EACCES,
        **dict.fromkeys(("compare", "advise", "move pages", "migrate pages"), EPERM),
        "others": 0,
        "limits of the first": EPERM,
    },
    "namespaces": {
        **{f"{how} {kind}": EPERM for kind in KINDS for how in ("unshare", "clone")},
        "unshare time": EPERM,
        "clone3": ENOSYS,
        "setns by a file": EPERM,
        "setns by a process": EPERM,
        "namespaces of the first": ENOENT,
        "more namespaces": EACCES,
        **dict.fromkeys(("map of uids", "map of gids", "map of projects"), EPERM),
        "groups after all": EACCES,
        "map of the first": ENOENT,
    },
    "cgroups": {
        "mount v2": EPERM,
        "mount v1": EPERM,
        "a group": ENOENT,
        "release_agent": ENOENT,
        "processes": ENOENT,
    },
    "rights": {
        "setuid": 0,  # of its own program, which its mount makes nothing of: see below
        "file capabilities": EPERM,
        "trusted attribute": EPERM,
        "another owner": EINVAL,
        "become root": EINVAL,
        "become another": EINVAL,
        "other groups": EPERM,
        "keep capabilities": EPERM,
        "ambient": EPERM,
        "new privileges again": EINVAL,
        "no filter": EINVAL,
        "another program's name": EINVAL,
        **dict.fromkeys(("fixed addresses", "readable is executable", "segments"), EPERM),
    },
    "filters": {"a supervisor": 0, "unshare all the same": EPERM, "what is allowed": 0},
    "devices": {
        "character device": EPERM,
        "block device": EPERM,
        "fifo": 0,
        "memory": ENOENT,
        "kernel messages": ENOENT,
        "fuse": ENOENT,
        "tun": ENOENT,
        "virtual machines": ENOENT,
        "terminal": ENXIO,
        "packet socket": EAFNOSUPPORT,
        "raw socket": EPERM,
        "terminals": ENOENT,
        "terminals of its own": ENOENT,
        "routes": 0,
        "other netlink": 0,
        "other families": 0,
        "other types": 0,
        "bridges and virtual networks": 0,
        **dict.fromkeys(("sctp", "l2tp", "mptcp", "a pair of audit's"), EPROTONOSUPPORT),
        **dict.fromkeys(("sctp by its type", "dccp"), ESOCKTNOSUPPORT),
        "a pair": 0,
        **dict.fromkeys(("out of band", "out of band, as a message"), EOPNOTSUPP),
        **{f"terminal request {number}": EPERM for number in range(3)},
    },
    "mounts": {
        **dict.fromkeys(
            (
                *("unmask", "remount", "shared", "bind", "proc", "tmpfs", "pivot_root", "chroot"),
                *("fsopen", "open_tree", "fsconfig", "fsmount", "fspick", "move_mount", "mount_setattr"),
            ),
            EPERM,
        ),
        **dict.fromkeys(("open_tree_attr", "statmount", "listmount"), ENOSYS),
        "settings": 0,
        "formats of programs": ENOENT,
        "write /usr": EROFS,
        "write /etc": EROFS,
        "write /proc/sys": EACCES,
        "sysrq": 0,
        "kcore": 0,
    },
    "machine": {
        **dict.fromkeys(
            (
                *("clock", "clock_settime", "adjtimex", "hostname", "reboot", "kexec", "module", "bpf", "perf"),
                *("userfaultfd", "io_uring", "acct", "swap", "quota", "kernel log", "ports", "keys"),
                *("a session of keys", "handles", "secret memory", "asynchronous reads"),
                *("huge pages", "huge pages of a file", "huge pages shared"),
            ),
            EPERM,
        ),
        # nothing is done, and it is told that it is
        "everybody's files": 0,
        "the files of a file system": 0,
    },
    "precedence": {
        "nicer": EACCES,
        "real time": EPERM,
        "first at the disk": EPERM,
        "by a deadline": EPERM,
        "a core for itself": EINVAL,
        **dict.fromkeys((f"the first's {what}" for what in FIRST_PROCESS), EPERM),
        "the niceness of all": EPERM,
        "the disk of all": EPERM,
        "its own niceness": 0,
        "its own processors": 0,
        "locked memory": ENOMEM,
        "core": "1 1",  # 1, not 0, keeps it from a program of the host as well
        "more processes": EPERM,
        "more files": EPERM,
    },
}


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The program, which needs no library."""
    built = tmp_path_factory.mktemp("hostile") / "hostile"
    source = Path(__file__).with_name("hostile.c")
    subprocess.run(["gcc", "-static", "-O1", "-o", str(built), str(source), "-lpthread"], check=True)
    return built.read_bytes()


def told(output: str) -> dict[str, object]:
    """Return what the program said, by what it tried."""
    found: dict[str, object] = {}
    for line in output.splitlines():
        name, _, value = line.rpartition(" ")
        if name == "core" or name.startswith("core "):
            name, value = "core", f"{name.removeprefix('core ')} {value}"
        found[name] = int(value) if value.isdigit() else value
    return found


OFFLINE = dict.fromkeys(("raw socket", "sctp", "sctp by its type", "dccp", "l2tp", "mptcp"), ENETUNREACH)
"""What is met by a job without a network, which has no socket of the internet's."""


@pytest.mark.parametrize("name", MET)
@pytest.mark.parametrize("network", ["none", "loopback"])
def test_a_hostile_program_meets_a_wall_at_every_turn(
    sandbox: Sandbox, hostile: bytes, name: str, network: str
) -> None:
    result = sandbox.run("./hostile", name, files={"hostile": hostile}, network=network)
    assert result.outcome.reason is None, result.outcome
    offline = OFFLINE if (name, network) == ("devices", "none") else {}
    assert told(result.stdout) == MET[name] | offline


def test_programs_that_give_rights_give_none(sandbox: Sandbox, hostile: bytes) -> None:
    own = sandbox.run("sh", "-c", "chmod 6755 hostile; ls -l hostile | cut -c1-10; id -u", files={"hostile": hostile})
    assert own.stdout == "-rwsr-sr-x\n1000\n"
    if not Path("/usr/bin/mount").stat().st_mode & 0o4000:
        pytest.skip("/usr/bin/mount gives no rights here")
    result = sandbox.run("/usr/bin/mount", "-t", "tmpfs", "none", "/tmp")
    assert "must be superuser" in result.stderr


def test_what_the_kernel_has_for_all_is_bounded_for_each(sandbox: Sandbox, hostile: bytes) -> None:
    bounds = limits(pids=50, tmp_bytes=32 << 20, memory_bytes=1 << 30)
    neighbour = sandbox.start("sh", "-c", "while read -r line; do echo $line; done", stdin=b"a\n")
    found = told(sandbox.run("./hostile", "exhaustion", files={"hostile": hostile}, limits=bounds).stdout)
    assert sandbox.wait(neighbour).stdout == "a\n"
    bounded = dict.fromkeys(("threads", "inotify", "memfd", "shm", "msg", "sem"), "bounded")
    assert found == {
        **bounded,
        "files bounded": EMFILE,
        "inodes bounded": ENOSPC,
        "a sparse file": 0,
        "tmpfs bounded": ENOSPC,
    }
    # And the next job has everything again.
    assert sandbox.run("sh", "-c", "echo x > /work/x; cat /work/x").stdout == "x\n"


def test_neighbours_find_nothing_of_each_other(sandbox: Sandbox, hostile: bytes) -> None:
    neighbour = sandbox.start("./hostile", "leave", files={"hostile": hostile})
    sandbox.wait_output(neighbour, b"left 1\n")
    found = told(sandbox.run("./hostile", "look", files={"hostile": hostile}).stdout)
    sandbox.launcher.send([End(job=neighbour, attempt=Attempt(1), now=True)])
    sandbox.wait(neighbour)
    assert found == {
        "shared memory": ENOENT,
        "a name in /dev/shm": ENOENT,
        "a name in /tmp": ENOENT,
        "an abstract socket": ECONNREFUSED,
    }
    # It is there for whoever is in the same job.
    both = sandbox.run(
        "sh",
        "-c",
        "./hostile leave & until [ -e /tmp/neighbour ]; do :; done; ./hostile look; kill $!",
        files={"hostile": hostile},
    )
    assert told(both.stdout.replace("left 1\n", ""))["a name in /tmp"] == 0


@pytest.mark.parametrize("name", ["LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "BASH_ENV", "ENV", "PATH", "PYTHONPATH"])
def test_variables_of_a_job_reach_nobody_else(sandbox: Sandbox, name: str) -> None:
    result = sandbox.run("/bin/sh", "-c", f"echo ${name}", env={name: "/work/mine"})
    assert result.stdout == "/work/mine\n"
    for pid in (sandbox.launcher.pid, *sandbox.helpers):
        assert b"/work/mine" not in Path(f"/proc/{pid}/environ").read_bytes()
    assert "/work/mine" not in sandbox.run("env").stdout


def test_a_crash_leaves_no_core(sandbox: Sandbox) -> None:
    result = sandbox.run("sh", "-c", "ulimit -c; kill -SEGV $$")
    assert (result.outcome.signal, result.stdout) == (11, "0\n")
    assert sandbox.run("sh", "-c", "sh -c 'kill -SEGV $$'; ls -A /work").stdout == ""
