"""What a job cannot see, reach or do."""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.protocol.ids import Attempt
from jobs.protocol.model import Reason
from jobs.workers.sandbox import Configure, End, Launcher, LauncherError

from .conftest import Sandbox, limits

EPERM, EINVAL, ENOSYS, EAFNOSUPPORT = 1, 22, 38, 97

CALL = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    return ctypes.get_errno() if result == -1 else 0
"""

requires_x86_64 = pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86_64")
requires_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")


def test_only_the_standard_descriptors_and_the_one_for_notes_are_open(sandbox: Sandbox) -> None:
    program = "import os; print(sorted(int(n) for n in os.listdir('/proc/self/fd')))"
    assert sandbox.python(program).stdout == "[0, 1, 2, 3, 4]\n"  # 4 is the listing itself


def test_the_first_process_holds_nothing_that_a_job_could_reach(sandbox: Sandbox) -> None:
    result = sandbox.run("sh", "-c", "ls /proc/1/fd; cat /proc/1/environ; cat /proc/1/maps; kill -9 1; echo alive")
    assert result.stdout == "alive\n"


def test_abstract_sockets_of_the_host_are_out_of_reach(sandbox: Sandbox) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0jobs-sandbox-test")
        server.listen()
        result = sandbox.python("import socket; socket.socket(socket.AF_UNIX).connect('\\0jobs-sandbox-test')")
    assert "Connection" in result.stderr or "refused" in result.stderr
    assert result.outcome.exit_code == 1


def test_the_network_of_the_host_is_had_only_where_the_operator_allows_it(
    sandbox: Sandbox, fresh: Callable[..., Sandbox]
) -> None:
    refused = sandbox.run("true", network="host").outcome
    assert refused.reason is Reason.SANDBOX_UNAVAILABLE
    assert "operator" in (refused.message or "")
    allowed = fresh(allow_host_network=True)
    with socket.create_server(("127.0.0.1", 0)) as server:
        program = f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}))"
        outcome = allowed.python(program, network="host").outcome
        assert (outcome.reason, outcome.sandbox) == (None, "standard")
        assert allowed.python(program).outcome.reason is Reason.EXIT_CODE
    assert allowed.run("true").outcome.sandbox == "strict"


def test_the_three_writable_places_share_one_size(sandbox: Sandbox) -> None:
    small = limits(tmp_bytes=4 << 20)
    script = "head -c 3000000 /dev/zero > /tmp/a; head -c 3000000 /dev/zero > /work/b || echo full"
    result = sandbox.run(script=script, limits=small)
    assert "No space left" in result.stderr
    assert result.stdout == "full\n"
    many = sandbox.run(script="i=0; while touch $i; do i=$((i+1)); done; [ $i -lt 3000 ] && echo bounded", limits=small)
    assert many.stdout == "bounded\n"


def test_nothing_that_one_job_writes_is_there_for_the_next(sandbox: Sandbox) -> None:
    sandbox.run(script="for d in /tmp /work /dev/shm; do echo secret > $d/left; done")
    assert sandbox.run(script="find /tmp /work /dev/shm /.job -name left").stdout == ""


def test_everything_else_is_read_only(sandbox: Sandbox) -> None:
    for path in ("/", "/usr", "/etc", "/usr/bin", "/dev", "/run", "/var", "/home", "/proc/sys/kernel"):
        result = sandbox.run("sh", "-c", f"echo x > {path}/jobs-test")
        assert result.outcome.exit_code != 0, path
    for path in ("/usr/bin/env", "/etc/passwd", "/proc/sys/kernel/hostname"):
        result = sandbox.run("sh", "-c", f"echo x >> {path}")
        assert result.outcome.exit_code != 0, path
    assert not Path("/usr/jobs-test").exists()


def test_no_other_path_of_the_host_is_visible(sandbox: Sandbox, tmp_path: Path) -> None:
    listing = set(sandbox.run("ls", "-A", "/").stdout.split())
    assert listing <= {
        ".job", "bin", "dev", "etc", "home", "lib", "lib32", "lib64", "libx32", "nix", "proc", "root", "run", "sbin",
        "tmp", "usr", "var", "work",
    }  # fmt: skip
    secret = tmp_path / "secret"
    secret.write_text("secret")
    secret.chmod(0o644)
    for path in (
        secret,
        "/etc/shadow",
        "/etc/hostname.real",
        "/root/.profile",
        "/sys/kernel",
        "/proc/1/root/etc/shadow",
    ):
        assert sandbox.run("cat", str(path)).outcome.exit_code == 1, path
    assert sandbox.run("cat", "/etc/hostname").stdout == "job\n"


def test_a_path_that_the_operator_adds_is_shown_read_only(
    fresh: Callable[..., Sandbox], tmp_path_factory: pytest.TempPathFactory
) -> None:
    shown = Path("/var/lib") if os.geteuid() else Path("/opt")
    if not shown.exists():
        pytest.skip(f"no {shown}")
    extra = fresh(read_only_paths=[str(shown), "/does/not/exist"])
    assert set(extra.run("ls", "-A", str(shown)).stdout.split()) == set(os.listdir(shown))
    assert extra.run("touch", f"{shown}/x").outcome.exit_code == 1


@pytest.mark.parametrize("path", ["relative", "/usr/../root"])
def test_a_path_that_is_not_absolute_and_plain_stops_the_launcher(path: str) -> None:
    with pytest.raises(LauncherError, match="not an absolute path"):
        Launcher.start(Configure(slots=1, read_only_paths=[path]))


def test_privileges_are_gone_for_good(sandbox: Sandbox) -> None:
    status = dict(
        line.split(":\t", 1) for line in sandbox.run("cat", "/proc/self/status").stdout.splitlines() if ":\t" in line
    )
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0, name
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert (status["SigBlk"], status["SigIgn"]) == ("0000000000000000", "0000000000000000")
    assert status["Umask"] == "0022"
    assert status["Uid"].split() == ["1000"] * 4
    bits = sandbox.python(CALL + "print(libc.prctl(27, 0, 0, 0, 0) == 0b11101111)")  # PR_GET_SECUREBITS
    assert bits.stdout == "True\n"


def test_the_first_process_has_no_rights_either(sandbox: Sandbox) -> None:
    job = sandbox.start("sleep", "1000")
    lines = Path(f"/proc/{sandbox.wait_started(job)}/status").read_text().splitlines()
    sandbox.launcher.send([End(job=job, attempt=Attempt(1), now=True)])
    sandbox.wait(job)
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert [int(status[f"Cap{which}"], 16) for which in ("Inh", "Prm", "Eff", "Bnd", "Amb")] == [0] * 5
    assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")


def test_a_process_asks_of_itself_what_is_listed(sandbox: Sandbox) -> None:
    told = sandbox.python(
        CALL
        + """
for option, value in ((16, ctypes.create_string_buffer(16)), (62, 0), (78, 1), (67, 1)):
    print(option, libc.prctl(option, value, 1 << 20, 0, 0), ctypes.get_errno())
"""
    )
    # PR_GET_NAME; cores for itself, tables of futexes, pages shared with others.
    assert told.stdout == f"16 0 0\n62 -1 {EINVAL}\n78 -1 {EINVAL}\n67 -1 {EINVAL}\n"


def test_files_that_all_are_shown_stay_in_memory(sandbox: Sandbox) -> None:
    path = "/usr/bin/python3"
    program = f"import os; os.posix_fadvise(os.open({path!r}, os.O_RDONLY), 0, 0, os.POSIX_FADV_DONTNEED)"
    Path(path).read_bytes()
    before = in_memory(path)
    assert sandbox.python(program).outcome.exit_code == 0
    assert in_memory(path) == before > 0


def in_memory(path: str) -> int:
    """Return how many pages of a file the kernel holds."""
    libc = ctypes.CDLL(None, use_errno=True)
    size = os.stat(path).st_size
    with (
        open(path, "rb") as file,
        mmap.mmap(file.fileno(), size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as area,
    ):
        held = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        start = ctypes.c_char.from_buffer(area)
        assert libc.mincore(ctypes.byref(start), ctypes.c_size_t(size), held) == 0
        del start
        return sum(page & 1 for page in held)


def test_the_launcher_and_its_helper_live_with_a_filter_which_jobs_inherit_and_add_to(sandbox: Sandbox) -> None:
    def filters(status: str) -> list[str]:
        return [line.split()[1] for line in status.splitlines() if line.startswith("Seccomp")]

    for pid in (sandbox.launcher.pid, *sandbox.helpers):
        assert filters(Path(f"/proc/{pid}/status").read_text()) == ["2", "1"]
    assert filters(sandbox.run("cat", "/proc/self/status").stdout) == ["2", "2"]


RT_SIGACTION = {"x86_64": 13, "aarch64": 134}[os.uname().machine]


@pytest.mark.parametrize("number", [signal.SIGHUP, 32, 33])
def test_signals_that_the_worker_was_started_with_ignored_are_not_ignored_in_a_job(number: int) -> None:
    """Signals 32 and 33 are the C library's own, so it neither ignores them nor stops ignoring them when asked."""
    libc = ctypes.CDLL(None, use_errno=True)
    ignored, before = (ctypes.c_ulong * 4)(1), (ctypes.c_ulong * 4)()
    assert libc.syscall(RT_SIGACTION, int(number), ignored, before, 8) == 0
    try:
        launcher = Launcher.start(Configure(slots=1))
    finally:
        libc.syscall(RT_SIGACTION, int(number), before, None, 8)
    try:
        status = Sandbox(launcher).run("grep", "SigIgn", "/proc/self/status").stdout
    finally:
        launcher.close()
    assert status == "SigIgn:\t0000000000000000\n"


def test_a_job_has_its_own_session_and_host_name(sandbox: Sandbox) -> None:
    program = "import os; print(os.getpid() == os.getsid(0) == os.getpgid(0), os.uname().nodename)"
    assert sandbox.python(program).stdout == "True job\n"


def test_every_namespace_of_a_job_is_its_own(sandbox: Sandbox) -> None:
    kinds = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
    program = f"import os; print(*(os.readlink(f'/proc/self/ns/{{kind}}') for kind in {kinds}))"
    hosts = [os.readlink(f"/proc/{pid}/ns/{kind}") for pid in ("self", sandbox.launcher.pid) for kind in kinds]
    # Two at the same time, as the kernel gives numbers out again.
    first = sandbox.start("sh", "-c", '/usr/bin/python3 -I -c "$PROGRAM"; exec sleep 1000', env={"PROGRAM": program})
    sandbox.wait_output(first, b"\n")
    second = sandbox.python(program).stdout.split()
    own = sandbox.output(first).decode().split()
    sandbox.launcher.send([End(job=first, attempt=Attempt(1), now=True)])
    sandbox.wait(first)
    assert len({*own, *second}) == 2 * len(kinds)
    assert not {*own, *second} & {*hosts}


def test_other_processes_are_invisible(sandbox: Sandbox) -> None:
    other = sandbox.start("sleep", "5")
    sandbox.wait_started(other)
    listing = sandbox.run("sh", "-c", "echo /proc/[0-9]*").stdout.split()
    sandbox.launcher.send([End(job=other, attempt=Attempt(1), now=True)])
    sandbox.wait(other)
    assert listing == ["/proc/2"]


@requires_x86_64
def test_dangerous_system_calls_are_refused(sandbox: Sandbox) -> None:
    denied = {
        "unshare": (272, 0x10000000), "setns": (308, 0, 0), "mount": (165, 0, 0, 0, 0, 0), "umount2": (166, 0, 0),
        "pivot_root": (155, 0, 0), "chroot": (161, 0), "ptrace": (101, 16, 1, 0, 0), "bpf": (321, 0, 0, 0),
        "perf_event_open": (298, 0, 0, 0, 0, 0), "userfaultfd": (323, 0), "io_uring_setup": (425, 1, 0),
        "keyctl": (250, 0), "add_key": (248, 0, 0, 0, 0, 0), "kexec_load": (246, 0, 0, 0, 0),
        "process_vm_readv": (310, 1, 0, 0, 0, 0, 0), "open_tree": (428, 0, 0, 0), "fsopen": (430, 0, 0),
        "mount_setattr": (442, 0, 0, 0, 0, 0), "init_module": (175, 0, 0, 0), "swapon": (167, 0, 0),
        "open_by_handle_at": (304, 0, 0, 0), "syslog": (103, 10, 0, 0), "iopl": (172, 3), "reboot": (169, 0, 0, 0),
        "clone newuser": (56, 0x10000011, 0, 0, 0, 0), "clone newnet": (56, 0x40000011, 0, 0, 0, 0),
    }  # fmt: skip
    result = sandbox.python(CALL + f"print({{name: call(*call_) for name, call_ in {denied!r}.items()}})")
    assert eval(result.stdout) == dict.fromkeys(denied, EPERM)
    unknown = {"clone3": (435, 0, 0), "beyond the table": (463, 0), "x32": (0x40000000 + 39,), "far": (10_000,)}
    result = sandbox.python(CALL + f"print({{name: call(*call_) for name, call_ in {unknown!r}.items()}})")
    assert eval(result.stdout) == dict.fromkeys(unknown, ENOSYS)


@requires_x86_64
def test_input_cannot_be_pushed_into_a_terminal_whatever_the_high_bits(sandbox: Sandbox) -> None:
    for request in (0x5412, 0x1_0000_5412, 0x7FFF_0000_0000_541C, 0x1_0000_541D, 0x8000_0000_0000_5423):
        assert sandbox.python(CALL + f"print(call(16, 0, {request}, 0))").stdout == f"{EPERM}\n"
    assert sandbox.python(CALL + "print(call(16, 0, 0x5401, 0))").stdout == "25\n"  # ENOTTY: the call itself is allowed


def test_socket_families_without_namespaces_are_refused(sandbox: Sandbox) -> None:
    program = """
import socket
for family in (40, 38, 17, 21):
    try:
        socket.socket(family, socket.SOCK_DGRAM)
    except OSError as error:
        print(error.errno)
"""
    assert sandbox.python(program).stdout == f"{EAFNOSUPPORT}\n" * 4


@requires_gcc
@requires_x86_64
def test_a_call_by_the_32_bit_convention_ends_the_process(sandbox: Sandbox, tmp_path: Path) -> None:
    source = tmp_path / "int80.c"
    source.write_text('int main(void) { int r; __asm__ volatile("int $0x80" : "=a"(r) : "a"(20)); return r > 0; }')
    subprocess.run(["gcc", "-static", "-o", str(tmp_path / "int80"), str(source)], check=True)
    outcome = sandbox.run("./int80", files={"int80": (tmp_path / "int80").read_bytes()}).outcome
    assert (outcome.reason, outcome.signal) == (Reason.SIGNAL, 31)
    assert "foreign architecture" in (outcome.message or "")


def landlock_version() -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    return int(libc.syscall(ctypes.c_long(444), None, ctypes.c_long(0), ctypes.c_long(1)))


def test_landlock_stands_behind_the_mount_namespace_where_the_kernel_has_it(sandbox: Sandbox) -> None:
    if (version := landlock_version()) < 1:
        pytest.skip("this kernel has no Landlock")
    assert sandbox.launcher.ready.features["landlock"].startswith(f"version {version}")
    # Linking across directories needs Landlock's REFER, which /work has within itself but not towards /tmp's mount.
    assert sandbox.run(script="echo x > a; mkdir d; ln a d/b; cat d/b").stdout == "x\n"
    # A message queue is a file that is in no directory of the job's, so that Landlock alone refuses it.
    program = """
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
made = libc.mq_open(b"/queue", 0o102, 0o600, None)
print(made, errno.errorcode[ctypes.get_errno()])
"""
    assert sandbox.python(program).stdout == "-1 EACCES\n"


def test_with_the_host_s_network_landlock_keeps_its_abstract_sockets_away(fresh: Callable[..., Sandbox]) -> None:
    if landlock_version() < 6:
        pytest.skip("the kernel's Landlock has no scopes")
    allowed = fresh(allow_host_network=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0jobs-sandbox-test-host")
        server.listen()
        program = "import socket; socket.socket(socket.AF_UNIX).connect('\\0jobs-sandbox-test-host')"
        result = allowed.python(program, network="host")
    assert result.outcome.sandbox == "standard"
    assert "PermissionError" in result.stderr


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "./x", "a//x", "", "..", "a/", "a\0b", "x" * 256])
def test_names_of_files_that_lead_elsewhere_are_refused(sandbox: Sandbox, name: str) -> None:
    outcome = sandbox.run("true", files={name: b"x"}).outcome
    assert outcome.reason is Reason.INVALID_PAYLOAD
    assert (outcome.message or "").startswith("files: ")


def test_a_file_in_the_place_of_a_directory_fails_and_says_so(sandbox: Sandbox) -> None:
    outcome = sandbox.run("true", files={"a": b"x", "a/b": b"y"}).outcome
    assert (outcome.reason, outcome.message) == (Reason.SPAWN_FAILED, "write the job's files: not a directory")


def test_files_larger_than_the_job_s_room_fail_and_say_so(sandbox: Sandbox) -> None:
    outcome = sandbox.run("true", files={"a": bytes(2 << 20)}, limits=limits(tmp_bytes=1 << 20)).outcome
    assert (outcome.reason, outcome.message) == (Reason.SPAWN_FAILED, "write the job's files: no space left on device")


def test_a_hostile_tree_goes_with_the_job(sandbox: Sandbox) -> None:
    script = """
mkdir -p deep && cd deep && i=0
while [ $i -lt 300 ]; do mkdir d && cd d; i=$((i+1)); done
cd /work; ln -s / root; ln -s /etc/passwd link; mkdir -m 000 closed; mkfifo fifo; ln deep/../link hard 2>/dev/null
echo made
"""
    assert sandbox.run(script=script).stdout == "made\n"
    assert sandbox.run("ls", "-A").stdout == ""
    assert Path("/etc/passwd").stat().st_size > 0


def test_two_jobs_of_root_never_share_a_uid(sandbox: Sandbox, identity: str) -> None:
    if identity != "root":
        pytest.skip("an ordinary user has one uid to give")
    jobs = [sandbox.start("sleep", "0.4") for _ in range(3)]
    pids = [sandbox.wait_started(job) for job in jobs]
    uids = [Path(f"/proc/{pid}").stat().st_uid for pid in pids]
    status = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
    for job in jobs:
        sandbox.wait(job)
    real = [next(line.split()[1] for line in text.splitlines() if line.startswith("Uid:")) for text in status]
    assert len(set(real)) == 3
    assert all(int(uid) > 0x7000_0000 for uid in real), (real, uids)


def test_the_launcher_itself_keeps_no_right_on_the_host(sandbox: Sandbox, identity: str) -> None:
    status = Path(f"/proc/{sandbox.launcher.pid}/status").read_text()
    uid = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("Uid:"))
    assert uid != 0
    assert os.readlink(f"/proc/{sandbox.launcher.pid}/ns/user") != os.readlink("/proc/self/ns/user")
    assert os.readlink(f"/proc/{sandbox.launcher.pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt")
