"""Entries of journald, as a socket in its place receives them."""

from __future__ import annotations

import logging
import os
import socket
import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TextIO

import pytest

from jobs import logs
from jobs.config import Logging
from jobs.journal import JournalHandler

pytestmark = pytest.mark.usefixtures("untouched_root")


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "socket"))
        listening.settimeout(10)
        yield listening


@pytest.fixture
def stream(tmp_path: Path, journald: socket.socket, monkeypatch: pytest.MonkeyPatch) -> Iterator[TextIO]:
    """Standard error as systemd connects it with the journal, and the program's log set up on it."""
    with (tmp_path / "stream").open("w+") as made:
        status = os.fstat(made.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        handler = partial(JournalHandler, path=str(tmp_path / "socket"))
        monkeypatch.setattr("jobs.logs.JournalHandler", handler)
        logs.setup(Logging(format="auto", level="debug"), stream=made)
        yield made


def received(journald: socket.socket) -> dict[str, str]:
    """Return the next entry, read as journald reads it."""
    data, descriptors, _, _ = socket.recv_fds(journald, 1 << 20, 1)
    for descriptor in descriptors:
        data = os.pread(descriptor, 1 << 24, 0)
        with pytest.raises(PermissionError):
            os.pwrite(descriptor, b"x", 0)
        os.close(descriptor)
    entry = {}
    while data:
        line, data = data.split(b"\n", 1)
        name, is_plain, value = line.partition(b"=")
        if not is_plain:
            (size,) = struct.unpack("<Q", data[:8])
            value, data = data[8 : 8 + size], data[8 + size + 1 :]
        entry[name.decode()] = value.decode()
    return entry


def test_an_entry_has_the_fields_of_its_line_as_its_own(journald: socket.socket, stream: TextIO) -> None:
    with logs.context(worker="w", attempt=1):
        logging.getLogger("jobs.x").warning("late %s", "report", extra={"job": "j", "attempt": 2, "pids": [1, 2]})
    entry = received(journald)
    own = {name: value for name, value in entry.items() if not name.startswith(("CODE_", "SYSLOG_"))}
    assert own == {
        "MESSAGE": "late report", "PRIORITY": "4", "JOBS_LOGGER": "jobs.x", "JOBS_JOB_ID": "j", "JOBS_ATTEMPT": "2",
        "JOBS_WORKER": "w", "JOBS_PIDS": "[1, 2]",
    }  # fmt: skip
    assert Path(entry["CODE_FILE"]).name == "test_journal.py"
    stream.seek(0)
    assert stream.read() == ""


def test_every_level_has_its_priority(journald: socket.socket, stream: TextIO) -> None:
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
        logging.getLogger().log(level, "x")
    assert [received(journald)["PRIORITY"] for _ in range(5)] == ["7", "6", "4", "3", "2"]


def test_what_is_logged_cannot_forge_a_field(journald: socket.socket, stream: TextIO) -> None:
    forged = "a\nPRIORITY=0\nMESSAGE=b"
    logging.getLogger().info("name %s", forged, extra={"job": forged, "bad-name": 1, "logger": "forged"})
    entry = received(journald)
    assert (entry["MESSAGE"], entry["JOBS_JOB_ID"]) == (f"name {forged}", forged)
    assert (entry["PRIORITY"], entry["JOBS_LOGGER"]) == ("6", "root")
    assert "JOBS_BAD-NAME" not in entry


def test_a_failure_comes_with_its_traceback(journald: socket.socket, stream: TextIO) -> None:
    try:
        raise KeyError("what")
    except KeyError:
        logging.getLogger().exception("failed")
    message = received(journald)["MESSAGE"]
    assert message.startswith("failed\nTraceback")
    assert message.endswith("KeyError: 'what'")


def test_an_entry_too_large_for_a_datagram_comes_as_a_sealed_file(journald: socket.socket, stream: TextIO) -> None:
    text = "x" * (4 << 20)
    logging.getLogger().info(text)
    assert received(journald)["MESSAGE"] == text


def test_without_a_journal_that_reads_lines_go_to_standard_error(journald: socket.socket, stream: TextIO) -> None:
    journald.close()
    logging.getLogger().error("alone", extra={"job": "j"})
    stream.seek(0)
    line = stream.read()
    assert line.startswith("<3>{")
    assert '"job":"j"' in line


def test_who_asks_for_json_has_lines_of_it_also_under_journald(journald: socket.socket, stream: TextIO) -> None:
    logs.setup(Logging(format="json", level="info"), stream=stream)
    logging.getLogger().error("a line")
    stream.seek(0)
    assert stream.read().startswith('<3>{"time"')
