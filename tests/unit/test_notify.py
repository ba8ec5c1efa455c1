"""The service manager's protocol, over a real datagram socket."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.notify import Notifier, watchdog_interval_s


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        yield sock


def said(manager: socket.socket) -> dict[str, str]:
    return dict(line.split("=", 1) for line in manager.recv(4096).decode().splitlines())


def nothing_waits(manager: socket.socket) -> bool:
    manager.setblocking(False)
    try:
        manager.recv(1)
    except BlockingIOError:
        return True
    finally:
        manager.settimeout(5)
    return False


def test_states_are_told_with_a_status_of_one_line(manager: socket.socket) -> None:
    notifier = Notifier()
    notifier.ready("all is\nwell")
    assert said(manager) == {"READY": "1", "STATUS": "all is well"}
    notifier.stopping()
    assert said(manager) == {"STOPPING": "1"}
    notifier.extend_timeout(1.5)
    assert said(manager) == {"EXTEND_TIMEOUT_USEC": "1500000"}


def test_a_status_is_sent_when_it_changes(manager: socket.socket) -> None:
    notifier = Notifier()
    notifier.status("one")
    notifier.status("one")
    notifier.status("two ß ü")
    assert said(manager) == {"STATUS": "one"}
    assert said(manager) == {"STATUS": "two ? ?"}
    assert nothing_waits(manager)


def test_reloading_carries_the_moment_on_the_monotonic_clock(manager: socket.socket) -> None:
    before = time.monotonic_ns() // 1000
    Notifier().reloading()
    message = said(manager)
    assert message["RELOADING"] == "1"
    assert before <= int(message["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000


def test_the_watchdog_is_fed_only_while_all_is_well(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "40000")
    healthy, asked = True, asyncio.Event()

    def is_healthy() -> bool:
        asked.set()
        return healthy

    async def scenario() -> None:
        nonlocal healthy
        notifier = Notifier()
        notifier.start_watchdog(is_healthy)
        for _ in range(3):  # It is asked, and the ping goes out, before the loop turns again.
            asked.clear()
            await asyncio.wait_for(asked.wait(), 5)
            assert said(manager) == {"WATCHDOG": "1"}
        healthy = False
        while not nothing_waits(manager):
            pass
        asked.clear()
        await asyncio.wait_for(asked.wait(), 5)
        assert nothing_waits(manager)
        notifier.stop_watchdog()

    asyncio.run(scenario())


def test_a_loop_that_hangs_feeds_no_watchdog(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "20000")

    async def scenario() -> None:
        Notifier().start_watchdog(lambda: True)
        assert said(manager) == {"WATCHDOG": "1"}
        manager.settimeout(0.2)
        with pytest.raises(TimeoutError):  # The loop does not turn while this waits, ten times the interval.
            manager.recv(1)

    asyncio.run(scenario())


def test_a_manager_that_does_not_read_holds_up_nothing_and_is_told_later(manager: socket.socket) -> None:
    async def scenario() -> None:
        notifier = Notifier()
        # Given a manager whose queue is full
        for number in range(1_000):
            notifier.status(str(number))
        # When the state changes, and much else is said
        notifier.ready("serving")
        for number in range(1_000):
            notifier.status(str(number))
        notifier.reloading()
        notifier.ready("serving again")
        # Then it is told of every change, in order, when it reads
        manager.setblocking(False)
        heard: list[bytes] = []
        async with asyncio.timeout(10):
            while sum(b"READY=1" in message for message in heard) < 2:
                heard.append(await asyncio.get_running_loop().sock_recv(manager, 4096))
        changes = [message.split(b"\n")[0] for message in heard if not message.startswith(b"STATUS=")]
        assert changes == [b"READY=1", b"RELOADING=1", b"READY=1"]
        # And a status that there was no room for is not taken for told
        notifier.status("serving again")
        notifier.status("news")
        assert await asyncio.get_running_loop().sock_recv(manager, 4096) == b"STATUS=news"

    asyncio.run(scenario())


def test_a_start_that_gets_ahead_is_given_more_time(manager: socket.socket) -> None:
    with Notifier().starting("opening", period_s=0.02):
        assert said(manager) == {"STATUS": "opening"}
        manager.setblocking(False)
        until_s, heard = time.monotonic() + 10, b""
        while not heard and time.monotonic() < until_s:  # this is what gets ahead
            try:
                heard = manager.recv(4096)
            except BlockingIOError:
                continue
    assert heard == b"EXTEND_TIMEOUT_USEC=60000000"


def test_a_start_that_hangs_is_not_given_more_time(manager: socket.socket) -> None:
    # Its own looking must not count: so often that it would.
    with Notifier().starting("opening", period_s=0.2):
        assert said(manager) == {"STATUS": "opening"}
        manager.settimeout(1.5)
        with pytest.raises(TimeoutError):
            manager.recv(4096)


def test_a_start_that_fails_is_over(manager: socket.socket) -> None:
    with pytest.raises(OSError, match="no disk"), Notifier().starting("opening", period_s=0.01):
        raise OSError("no disk")
    threads = [thread.name for thread in threading.enumerate()]
    assert not [name for name in threads if "_extend_while_busy" in name]


def test_a_manager_that_is_not_there_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "none"))
    Notifier().ready("serving")


def test_without_a_manager_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.setenv("WATCHDOG_USEC", "1000")

    async def scenario() -> None:
        notifier = Notifier()
        notifier.ready("x")
        notifier.start_watchdog(lambda: pytest.fail("asked without a watchdog"))

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("microseconds", "pid", "interval_s"),
    [(None, None, None), ("0", None, None), ("junk", None, None), ("30000000", None, 15.0), ("30000000", "1", None)],
)
def test_the_watchdog_of_another_process_is_not_ours(
    monkeypatch: pytest.MonkeyPatch, microseconds: str | None, pid: str | None, interval_s: float | None
) -> None:
    for name, value in (("WATCHDOG_USEC", microseconds), ("WATCHDOG_PID", pid)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert watchdog_interval_s() == interval_s
    if interval_s is not None:
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
        assert watchdog_interval_s() == interval_s
