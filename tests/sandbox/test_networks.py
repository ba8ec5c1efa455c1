"""What network a job has: none, a loopback, a few addresses and nothing else, or the host's."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from errno import ECONNREFUSED, ENETUNREACH
from pathlib import Path

import pytest

from jobs.protocol.ids import Attempt
from jobs.protocol.model import Reason
from jobs.workers.sandbox import End, Exited, JobLimits

from .conftest import Sandbox, children_of, wait_gone

CONNECT = """
import socket, sys
def reach(address):
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=5) as one:
            one.sendall(b"hello")
            one.shutdown(socket.SHUT_WR)
            return one.makefile("rb").read().decode()
    except OSError as error:
        return error.errno
"""


@contextlib.contextmanager
def echo(host: str = "127.0.0.1") -> Iterator[tuple[str, list[bytes]]]:
    """A server on the host that answers with what it was told, in capitals; its address, and what it was told."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    heard: list[bytes] = []

    def answer(connection: socket.socket) -> None:
        with connection:
            data = b"".join(iter(lambda: connection.recv(65536), b""))
            heard.append(data)
            connection.sendall(data.upper())

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                answer(server.accept()[0])

    with socket.create_server((host, 0), family=family) as server:
        threading.Thread(target=serve, daemon=True).start()
        port = server.getsockname()[1]
        yield f"[{host}]:{port}" if ":" in host else f"{host}:{port}", heard
        server.shutdown(socket.SHUT_RDWR)


def test_without_a_network_not_even_the_loopback_answers(sandbox: Sandbox) -> None:
    program = CONNECT + "print(reach('127.0.0.1:9'), reach('192.0.2.1:80'), reach('[::1]:9'))"
    assert sandbox.python(program).stdout == f"{ENETUNREACH} {ENETUNREACH} {ENETUNREACH}\n"


SOCKETS = """
import errno, itertools, socket
for family, kind in itertools.product(socket.AddressFamily, (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW)):
    for make in (socket.socket, socket.socketpair):
        try:
            make(family, kind)
        except OSError as error:
            continue
        print(family.name, end=" ")
print(socket.if_nameindex())
"""


def test_without_a_network_there_are_sockets_of_the_job_s_own_and_of_no_other_family(sandbox: Sandbox) -> None:
    told = sandbox.python(SOCKETS).stdout
    assert set(told.partition("[")[0].split()) == {"AF_UNIX", "AF_NETLINK"}
    assert told.endswith("[(1, 'lo')]\n")
    # What has been refused there is there with a network.
    assert {"AF_INET", "AF_INET6"} < set(sandbox.python(SOCKETS, network="loopback").stdout.split())


# Which network namespace it is (SO_NETNS_COOKIE: numbers of files come again), and all that the kernel tells of it.
SURVEY = """
import os, socket
def content(path):
    try:
        with open(path, "rb") as file:
            return file.read().decode()
    except OSError as error:
        return os.strerror(error.errno)
with socket.socket(socket.AF_UNIX) as one:
    print(int.from_bytes(one.getsockopt(socket.SOL_SOCKET, 71, 8), "little"))
for directory, names, files in os.walk("/proc/self/net"):
    for name in sorted(names + files):
        status = os.lstat(os.path.join(directory, name))
        print(directory, name, oct(status.st_mode), status.st_uid, status.st_gid)
    for name in sorted(files):
        # What all namespaces have together, such as memory.
        if name not in ("protocols", "sockstat", "sockstat6", "softnet_stat", "rt_cache"):
            print(directory, name, content(os.path.join(directory, name)))
print(content("/proc/self/net/sockstat").splitlines()[0])
"""
# Names that are taken, connections that nobody accepts, messages that nobody reads, a process that goes on.
SOIL = """
import os, socket
for directory, names, files in os.walk("/proc/self/net"):
    for name in names + files:
        try:
            os.chmod(os.path.join(directory, name), 0)
        except PermissionError:
            pass
held = []
for name in ("taken", *map(str, range(200))):
    one = socket.socket(socket.AF_UNIX)
    one.bind("\\0" + name)
    held.append(one)
held[0].listen()
for _ in range(50):
    one = socket.socket(socket.AF_UNIX)
    one.connect("\\0taken")
    one.send(b"x")
    held.append(one)
if os.fork() == 0:
    os.setsid()
    os.execv("/bin/sleep", ["sleep", "1000"])
"""
# Sockets that hold each other up: the kernel collects them some time after the end of who made them.
TANGLE = """
import socket
name = socket.socket(socket.AF_UNIX)
name.bind("\\0taken")
name.listen()
for _ in range(100):
    one, (here, there) = socket.socket(socket.AF_UNIX), socket.socketpair()
    one.connect("\\0taken")
    socket.send_fds(here, [b"x"], [here.fileno(), there.fileno(), one.fileno(), name.fileno()])
rest = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
rest.bind((0, 0xFFFF))
"""


def test_a_network_namespace_that_is_used_again_tells_nothing_of_the_job_before(fresh: Callable[..., Sandbox]) -> None:
    sandbox = fresh(slots=1)
    surveys: dict[str, list[str]] = {}
    for soil in (SOIL, SOIL, TANGLE) * 10:
        # Whatever namespace comes: the name is not taken in it.
        result = sandbox.python(SURVEY + soil)
        assert result.outcome.exit_code == 0, result.stderr
        namespace, _, told = result.stdout.partition("\n")
        surveys.setdefault(namespace, []).append(told)
    assert max(map(len, surveys.values())) > 1, "none was used again"
    for tales in surveys.values():
        assert set(tales) == {tales[0]}
        assert tales[0].endswith("sockets: used 0\n")


@pytest.mark.parametrize("slots", [1, 4, 40])
def test_no_two_jobs_have_a_network_namespace_at_the_same_time(fresh: Callable[..., Sandbox], slots: int) -> None:
    sandbox = fresh(slots=slots)
    for _ in range(4):
        running = [
            sandbox.start("/bin/sh", "-c", "stat -Lc %i /proc/self/ns/net; exec sleep 1000") for _ in range(slots)
        ]
        for job in running:
            sandbox.wait_output(job, b"\n")
        assert len({sandbox.output(job) for job in running}) == slots
        sandbox.launcher.send([End(job=job, attempt=Attempt(1), now=True) for job in running])
        for job in running:
            sandbox.wait(job)


def test_what_a_job_with_a_network_has_done_to_it_no_other_finds(fresh: Callable[..., Sandbox]) -> None:
    sandbox = fresh(slots=1)
    for network in ("loopback", "none") * 4:
        told = sandbox.python(SURVEY, network=network).stdout
        counters = next(line for line in told.splitlines() if line.startswith("Udp: ") and line[5].isdigit())
        assert set(counters.split()[1:]) == {"0"}
        soil = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))"
        sandbox.python(soil, network=network)


def test_a_maker_of_namespaces_that_stops_is_replaced(fresh: Callable[..., Sandbox]) -> None:
    # All jobs would wait for it, and so would the ends of those that run.
    sandbox = fresh(slots=2)
    (maker,) = sandbox.helpers
    os.kill(maker, signal.SIGSTOP)
    waiting = [sandbox.start("true", network="loopback") for _ in range(2)]
    waiting += [sandbox.start("sleep", "1000", network="loopback", timeout_s=0.1)]
    for job in waiting:
        sandbox.pump(lambda job=job: any(isinstance(event, Exited) for event in sandbox.of(job)))
    assert sandbox.run("true", network="loopback").outcome.exit_code == 0
    wait_gone({maker})


def test_descriptors_that_a_job_has_under_way_keep_no_other_from_its_network(fresh: Callable[..., Sandbox]) -> None:
    sandbox = fresh(slots=3)
    program = """
import contextlib, resource, socket, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE)[1:] * 2)
kept = []
with contextlib.suppress(OSError):
    while True:
        here, there = socket.socketpair()
        kept += [here, there]
        for _ in range(10):
            socket.send_fds(here, [b"x"], [0] * 100)
print("full", flush=True)
time.sleep(1000)
"""
    most = JobLimits(open_files=1 << 20)
    hoarder = sandbox.start("/usr/bin/python3", "-I", "-c", program, limits=most)
    sandbox.wait_output(hoarder, b"full")
    for network in ("none", "loopback") * 8:
        assert sandbox.run("true", network=network).outcome.reason is None
    sandbox.launcher.send([End(job=hoarder, attempt=Attempt(1), now=True)])
    sandbox.wait(hoarder)


def test_a_namespace_in_which_a_socket_is_left_goes_to_nobody(fresh: Callable[..., Sandbox]) -> None:
    if os.geteuid() != 0:
        pytest.skip("not root: cannot enter the job's network namespace")
    sandbox = fresh(slots=1)
    seen: set[bytes] = set()
    with contextlib.ExitStack() as left:
        for _ in range(8):
            job = sandbox.start("/bin/sh", "-c", "stat -Lc %i /proc/self/ns/net; exec sleep 1000")
            sandbox.wait_output(job, b"\n")
            assert sandbox.output(job) not in seen
            seen.add(sandbox.output(job))
            left.enter_context(socket_within(sandbox.wait_started(job)))
            sandbox.launcher.send([End(job=job, attempt=Attempt(1), now=True)])
            sandbox.wait(job)


@contextlib.contextmanager
def socket_within(pid: int) -> Iterator[None]:
    """A socket in the network namespace of a process, which is this one's."""
    with open("/proc/thread-self/ns/net", "rb") as own, open(f"/proc/{pid}/ns/net", "rb") as other:
        enter(other.fileno())
        try:
            made = socket.socket(socket.AF_UNIX)
        finally:
            enter(own.fileno())
    with made:
        yield


def enter(namespace: int) -> None:
    """Enter a network namespace with the calling thread."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, 0x4000_0000) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def test_a_loopback_is_the_job_s_own(sandbox: Sandbox) -> None:
    with echo() as (address, heard):
        program = (
            CONNECT
            + f"""
import threading
with socket.create_server(("127.0.0.1", 0)) as server:
    threading.Thread(target=lambda: server.accept()[0].sendall(b"mine"), daemon=True).start()
    with socket.create_connection(server.getsockname()) as one:
        print(one.recv(9).decode())
print([name for _, name in socket.if_nameindex()], reach({address!r}), reach("192.0.2.1:80"))
"""
        )
        told = sandbox.python(program, network="loopback").stdout
    assert told == f"mine\n['lo'] {ECONNREFUSED} {ENETUNREACH}\n"
    assert not heard


def test_what_is_listed_is_reached_and_nothing_else(sandbox: Sandbox) -> None:
    with echo() as (listed, heard), echo() as (other, unheard), echo("127.0.0.2") as (elsewhere, _):
        program = CONNECT + f"print(reach({listed!r}), reach({other!r}), reach({elsewhere!r}), reach('192.0.2.1:80'))"
        told = sandbox.python(program, network="listed", connect=[listed]).stdout
    assert told == f"HELLO {ECONNREFUSED} {ECONNREFUSED} {ENETUNREACH}\n"
    assert (heard, unheard) == ([b"hello"], [])


def test_an_address_of_another_host_is_one_of_the_job_s_loopback(sandbox: Sandbox) -> None:
    # Nothing is there: the relay is told so by the host, and the job by the relay.
    program = CONNECT + "print(reach('192.0.2.7:443'), reach('192.0.2.7:80'), reach('192.0.2.8:443'))"
    told = sandbox.python(program, network="listed", connect=["192.0.2.7:443"]).stdout.split()
    assert told[0] != str(ECONNREFUSED)
    assert told[1:] == [str(ECONNREFUSED), str(ENETUNREACH)]


def test_several_addresses_and_privileged_ports_are_listened_at(sandbox: Sandbox) -> None:
    with echo() as (first, _), echo("::1") as (second, _):
        program = CONNECT + f"print(reach({first!r}), reach({second!r}))"
        told = sandbox.python(program, network="listed", connect=[first, second, "192.0.2.7:22", "192.0.2.7:80"]).stdout
    assert told == "HELLO HELLO\n"


def test_much_goes_both_ways_at_once_and_a_slow_reader_holds_up_only_itself(sandbox: Sandbox) -> None:
    with echo() as (address, heard):
        host, _, port = address.rpartition(":")
        program = f"""
import socket, threading
def pour():
    with socket.create_connection(({host!r}, {port})) as one:
        one.sendall(bytes(range(256)) * 40960)
        one.shutdown(socket.SHUT_WR)
        return sum(len(piece) for piece in iter(lambda: one.recv(1 << 16), b""))
idle = [socket.create_connection(({host!r}, {port})) for _ in range(8)]
for one in idle:
    one.sendall(b"x" * 1000)
    one.close()
print(pour(), pour())
"""
        assert sandbox.python(program, network="listed", connect=[address]).stdout == "10485760 10485760\n"
    assert sorted(map(len, heard))[-2:] == [10485760, 10485760]


def test_the_way_out_ends_with_the_job(sandbox: Sandbox) -> None:
    before = children_of(sandbox.launcher.pid)
    with echo() as (address, _):
        job = sandbox.start("sleep", "600", network="listed", connect=[address])
        sandbox.wait_started(job)
        assert len(children_of(sandbox.launcher.pid) - before) == 2  # the job's first process, and its relay
        sandbox.launcher.send([End(job=job, attempt=Attempt(1), now=True)])
        assert sandbox.wait(job).outcome.reason is Reason.CANCELLED
    wait_gone(children_of(sandbox.launcher.pid) - before)


def test_the_way_out_can_do_nothing_more_than_that(sandbox: Sandbox) -> None:
    before = children_of(sandbox.launcher.pid)
    with echo() as (address, _):
        job = sandbox.start("sleep", "600", network="listed", connect=[address])
        first = sandbox.wait_started(job)
        relay = (children_of(sandbox.launcher.pid) - before - {first}).pop()
        # It was ready before the job was started.
        lines = Path(f"/proc/{relay}/status").read_text().splitlines()
        status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        assert [int(status[f"Cap{which}"], 16) for which in ("Inh", "Prm", "Eff", "Bnd", "Amb")] == [0] * 5
        assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")
        sandbox.launcher.send([End(job=job, attempt=Attempt(1), now=True)])
        sandbox.wait(job)


@pytest.mark.parametrize("wrong", ["192.0.2.7", "0.0.0.0:80", "example.org:80", "224.0.0.1:80", "192.0.2.7:0"])
def test_what_is_no_address_of_a_service_is_refused(sandbox: Sandbox, wrong: str) -> None:
    outcome = sandbox.run("true", network="listed", connect=[wrong]).outcome
    assert outcome.reason is Reason.INVALID_PAYLOAD
    assert wrong in (outcome.message or "")
