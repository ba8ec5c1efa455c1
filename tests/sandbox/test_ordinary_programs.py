"""What an ordinary program expects of its world works in the sandbox."""

from __future__ import annotations

import shutil

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
