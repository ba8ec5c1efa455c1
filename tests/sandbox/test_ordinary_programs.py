"""What an ordinary program expects of its world works in the sandbox."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from .conftest import Sandbox, limits


def needs(*programs: str) -> pytest.MarkDecorator:
    missing = [program for program in programs if shutil.which(program, path="/usr/bin:/bin") is None]
    return pytest.mark.skipif(bool(missing), reason=f"not in /usr/bin: {missing}")


def test_python_with_threads_processes_and_its_library(sandbox: Sandbox) -> None:
    program = """
import concurrent.futures, hashlib, json, multiprocessing, os, sqlite3, ssl, subprocess, tempfile, threading
with concurrent.futures.ThreadPoolExecutor(16) as pool:
    assert sum(pool.map(lambda n: n * n, range(100))) == 328350
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(abs, [-1, -2]) == [1, 2]
with tempfile.NamedTemporaryFile() as file:
    db = sqlite3.connect(file.name)
    db.execute("create table t (x)")
    db.commit()
assert subprocess.run(["echo", "x"], capture_output=True, check=True).stdout == b"x\\n"
assert ssl.create_default_context()
print(json.dumps({"cpus": os.cpu_count() > 0, "user": os.path.expanduser("~")}))
"""
    result = sandbox.python(program)
    assert (result.stderr, result.stdout) == ("", '{"cpus": true, "user": "/work"}\n')


@needs("gcc")
def test_a_compiler_and_what_it_made(sandbox: Sandbox) -> None:
    source = b'#include <stdio.h>\nint main(void) { puts("compiled"); return 0; }\n'
    result = sandbox.run(script="gcc -O2 -o hello hello.c && ./hello", files={"hello.c": source})
    assert (result.stderr, result.stdout) == ("", "compiled\n")


@needs("java")
def test_java_finds_its_security(sandbox: Sandbox) -> None:
    source = b"""class Id { public static void main(String[] a) throws Exception {
        System.out.println(java.util.UUID.randomUUID().toString().length());
        System.out.println(java.net.InetAddress.getByName("127.0.0.1"));
    } }"""
    result = sandbox.run("java", "-Xmx64m", "Id.java", files={"Id.java": source}, limits=limits(memory_bytes=None))
    assert (result.stderr, result.stdout) == ("", "36\n/127.0.0.1\n")


SERVERS = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))


@pytest.mark.skipif(not SERVERS, reason="no PostgreSQL in /usr/lib/postgresql")
def test_a_server_that_listens_at_its_loopback_has_one_where_it_asks_for_it(sandbox: Sandbox) -> None:
    script = f"""
PATH={SERVERS[0].parent}:$PATH
initdb -D d -A trust >/dev/null && pg_ctl -D d -w -o '-k /tmp' -l log start >/dev/null || {{ cat log; exit 1; }}
psql -h 127.0.0.1 -d postgres -Atc 'SELECT 6 * 7'
pg_ctl -D d -m fast -w stop >/dev/null
"""
    assert sandbox.run(script=script, network="loopback").stdout == "42\n"
    # Without, it says what is the matter.
    refused = sandbox.run(script=script)
    assert refused.outcome.exit_code == 1
    assert "Network is unreachable" in refused.stdout


@needs("gcc", "make")
def test_make(sandbox: Sandbox) -> None:
    rules = b"all: one two\n\t./one && ./two\n%: %.c\n\tgcc -o $@ $<\n"
    source = b"#include <stdio.h>\nint main(void) { puts(__FILE__); return 0; }\n"
    result = sandbox.run("make", "-s", "-j2", files={"Makefile": rules, "one.c": source, "two.c": source})
    assert (result.stderr, result.stdout) == ("", "one.c\ntwo.c\n")


def test_sockets_of_the_usual_kinds(sandbox: Sandbox) -> None:
    program = """
import asyncio, socket
for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
    server = socket.create_server((address, 0), family=family)
    client = socket.create_connection(server.getsockname()[:2])
    client.sendall(b"stream")
    assert server.accept()[0].recv(16) == b"stream"
    with socket.socket(family, socket.SOCK_DGRAM) as one, socket.socket(family, socket.SOCK_DGRAM) as two:
        one.bind((address, 0))
        two.sendto(b"datagram", one.getsockname())
        assert one.recv(16) == b"datagram"
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
    one, two = socket.socketpair(socket.AF_UNIX, kind)
    socket.send_fds(one, [b"x"], [0])
    assert len(socket.recv_fds(two, 1, 1)[1]) == 1
assert (1, "lo") in socket.if_nameindex()
assert socket.getaddrinfo("localhost", 80)
async def echo():
    server = await asyncio.start_server(lambda reader, writer: writer.write(b"hello"), "127.0.0.1", 0)
    reader, _ = await asyncio.open_connection(*server.sockets[0].getsockname())
    return await reader.readexactly(5)
print(asyncio.run(echo()))
"""
    result = sandbox.python(program, network="loopback")
    assert (result.stderr, result.stdout) == ("", "b'hello'\n")


def test_threads_and_children_have_their_own_turns(sandbox: Sandbox) -> None:
    program = """
import os, subprocess, threading
child = subprocess.Popen(["sleep", "1000"])
os.setpriority(os.PRIO_PROCESS, child.pid, 19)
os.sched_setaffinity(child.pid, {min(os.sched_getaffinity(0))})
os.sched_setscheduler(child.pid, os.SCHED_IDLE, os.sched_param(0))
print(os.getpriority(os.PRIO_PROCESS, child.pid), os.sched_getscheduler(child.pid) == os.SCHED_IDLE)
def pinned():
    os.sched_setaffinity(threading.get_native_id(), {min(os.sched_getaffinity(0))})
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
    print(len(os.sched_getaffinity(0)))
thread = threading.Thread(target=pinned)
thread.start()
thread.join()
child.kill()
"""
    result = sandbox.python(program)
    assert (result.stderr, result.stdout) == ("", "19 True\n1\n")


def test_fifos_and_pipelines(sandbox: Sandbox) -> None:
    result = sandbox.run(script="mkfifo f; (echo through > f) & cat f; seq 1000 | sort -rn | head -1")
    assert result.stdout == "through\n1000\n"


def test_devices(sandbox: Sandbox) -> None:
    script = """
[ "$(head -c 16 /dev/urandom | wc -c)" = 16 ] && [ "$(head -c 16 /dev/random | wc -c)" = 16 ] && echo random
head -c 3 /dev/zero | od -An -tx1
echo x > /dev/null && echo null
echo x > /dev/full || echo full
echo shared > /dev/shm/x && cat /dev/shm/x
"""
    result = sandbox.run(script=script)
    assert result.stdout.split() == ["random", "00", "00", "00", "null", "full", "shared"]


def test_a_thousand_open_files_and_no_more_than_the_limit(sandbox: Sandbox) -> None:
    program = """
import errno
files = []
try:
    for number in range(2000):
        files.append(open(f"/tmp/{number}", "w"))
except OSError as error:
    print(len(files) > 1000, errno.errorcode[error.errno])
"""
    assert sandbox.python(program, limits=limits(open_files=1100)).stdout == "True EMFILE\n"


@needs("git")
def test_git(sandbox: Sandbox) -> None:
    script = """
git init -q repo && cd repo && echo a > a && git add a
git -c user.name=n -c user.email=e@example.org commit -qm first && git log --format=%s
"""
    assert sandbox.run(script=script).stdout == "first\n"


def test_semaphores_and_shared_memory(sandbox: Sandbox) -> None:
    program = """
import multiprocessing, multiprocessing.shared_memory as shared
lock = multiprocessing.Lock()
with lock:
    block = shared.SharedMemory(create=True, size=1 << 20)
    block.buf[0] = 7
    print(block.buf[0])
    block.close(); block.unlink()
"""
    assert sandbox.python(program).stdout == "7\n"


def test_names_of_users_and_times(sandbox: Sandbox) -> None:
    result = sandbox.run("sh", "-c", "id -un; id -gn; date -u +%Z; TZ=Europe/Berlin date +%Z; hostname")
    assert result.stdout.split()[:3] == ["job", "job", "UTC"]
    assert result.stdout.split()[-1] == "job"


def test_locales_and_bytes_pass_through(sandbox: Sandbox) -> None:
    data = bytes(range(256))
    result = sandbox.run("cat", stdin=data)
    assert b"".join(piece for _, piece in result.segments) == data
