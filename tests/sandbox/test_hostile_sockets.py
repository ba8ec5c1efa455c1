"""Services of the host behind sockets: the message bus, the API, whatever listens at a path. A job reaches none."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.users import let_others_in

from .conftest import Sandbox

CONNECT = """
import errno, socket, sys
for address in {addresses!r}:
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(address)
            client.sendall(b"\\0AUTH\\r\\n")
            print("reached", client.recv(64))
    except OSError as error:
        print(errno.errorcode[error.errno])
"""


def reaches(address: str) -> bytes:
    """What the bus says to somebody of the host."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(address)
        client.sendall(b"\0AUTH\r\n")
        return client.recv(64)


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[list[str]]:
    """A message bus, at a path that anybody may enter and at an abstract address."""
    if shutil.which("dbus-daemon") is None:
        pytest.skip("no dbus-daemon")
    let_others_in(tmp_path)
    path, abstract = f"{tmp_path}/bus", f"jobs-test-{tmp_path.name}"
    config = tmp_path / "bus.conf"
    listen = "".join(f"<listen>unix:{place}</listen>" for place in (f"path={path}", f"abstract={abstract}"))
    config.write_text(f"<busconfig><type>session</type>{listen}</busconfig>")
    command = ["dbus-daemon", f"--config-file={config}", "--nofork", "--nopidfile", "--print-address=1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        assert daemon.stdout.readline().startswith(b"unix:")
        yield [path, f"\0{abstract}"]
        daemon.terminate()


def test_the_message_bus_is_out_of_reach(sandbox: Sandbox, bus: list[str]) -> None:
    for address in bus:
        assert reaches(address).startswith(b"REJECTED")
    result = sandbox.python(CONNECT.format(addresses=bus), env={"DBUS_SESSION_BUS_ADDRESS": f"unix:path={bus[0]}"})
    assert result.stdout == "ENOENT\nECONNREFUSED\n"
    system = sandbox.python(
        CONNECT.format(addresses=["/run/dbus/system_bus_socket", "/var/run/dbus/system_bus_socket"])
    )
    assert system.stdout == "ENOENT\nENOENT\n"


def test_no_socket_at_a_path_of_the_host_is_to_be_found(sandbox: Sandbox, tmp_path: Path) -> None:
    """Given sockets at which the API or others could listen, open to everybody."""
    places = [
        tmp_path / "api.sock",
        *(Path(at) / f"jobs-test-{tmp_path.name}.sock" for at in ("/run", "/tmp", "/dev/shm")),
    ]
    with contextlib.ExitStack() as stack:
        made = []
        for place in places:
            server = stack.enter_context(socket.socket(socket.AF_UNIX))
            try:
                server.bind(str(place))
            except PermissionError:
                continue
            stack.callback(place.unlink)
            place.chmod(0o777)
            server.listen()
            made.append(str(place))
        assert len(made) > 1
        for place in made:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(place)
        assert sandbox.python(CONNECT.format(addresses=made)).stdout == "ENOENT\n" * len(made)
        assert sandbox.run("find", "/", "-type", "s", "-not", "-path", "/proc/*").stdout == ""


def test_the_jobs_own_sockets_work(sandbox: Sandbox) -> None:
    program = """
import os, socket
for address in ("/tmp/own", "\\0own"):
    server = socket.socket(socket.AF_UNIX)
    server.bind(address)
    server.listen()
    client = socket.socket(socket.AF_UNIX)
    client.connect(address)
    client.sendall(b"hello")
    print(server.accept()[0].recv(16))
"""
    assert sandbox.python(program).stdout == "b'hello'\n" * 2
