"""Hosts that lack something of what the sandbox is made of: no job is run with less than the operator accepts.

Each thing is really taken away from a launcher (`tests/support/without.py`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.workers.sandbox import Configure, Launcher, LauncherError, Level

from .conftest import Sandbox

WITHOUT = Path(__file__).parents[1] / "support/without.py"
BARE = ("user", "mnt", "pid")
OTHERS = ("net", "ipc", "uts", "cgroup")
WORDS = {kind: f"{ {'mnt': 'mount', 'net': 'network'}.get(kind, kind) } namespace" for kind in BARE + OTHERS}
CALLS = {
    "pivot_root": 155,
    "unshare": 272,
    "setns": 308,
    "seccomp": 317,
    "move_mount": 429,
    "fsopen": 430,
    "pidfd_open": 434,
    "clone3": 435,
    "close_range": 436,
    "mount_setattr": 442,
}
LANDLOCK = 444

requires_x86_64 = pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86_64")


def start(*without: str, level: Level = "strict") -> Launcher:
    wrapper = [sys.executable, "-I", "-S", str(WITHOUT), *without, "--"]
    return Launcher.start(Configure(slots=1, level=level), wrapper=wrapper)


@pytest.fixture
def running() -> Iterator[list[Launcher]]:
    launchers: list[Launcher] = []
    yield launchers
    for launcher in launchers:
        launcher.close()


def run_true(launcher: Launcher, running: list[Launcher]) -> str:
    """Run a job, and return the level of its isolation."""
    running.append(launcher)
    outcome = Sandbox(launcher).run("true").outcome
    assert outcome.reason is None
    return outcome.sandbox


def test_a_host_that_lacks_nothing_is_strict(running: list[Launcher]) -> None:
    assert run_true(start("--call", "9999"), running) == "strict"
    assert run_true(start("--namespace", "time"), running) == "strict"  # jobs need none of these


@pytest.mark.parametrize("kind", BARE + OTHERS)
def test_without_a_kind_of_namespace_nothing_runs_as_strict(kind: str) -> None:
    with pytest.raises(LauncherError, match=f"strict is not possible.*{WORDS[kind]}"):
        start("--namespace", kind)


@pytest.mark.parametrize("kind", BARE)
def test_without_the_walls_that_are_always_there_nothing_runs_at_all(kind: str) -> None:
    with pytest.raises(LauncherError, match=WORDS[kind]):
        start("--namespace", kind, level="standard")


@pytest.mark.parametrize("kind", OTHERS)
def test_without_another_wall_jobs_run_where_the_operator_accepts_it_and_say_so(
    kind: str, running: list[Launcher]
) -> None:
    launcher = start("--namespace", kind, level="standard")
    assert launcher.ready.features[WORDS[kind]].startswith("missing")
    assert run_true(launcher, running) == "standard"


@requires_x86_64
@pytest.mark.parametrize("name", CALLS)
def test_a_kernel_without_a_call_that_a_wall_needs_runs_nothing_as_strict(name: str) -> None:
    with pytest.raises(LauncherError):
        start("--call", str(CALLS[name]))


@requires_x86_64
def test_a_kernel_without_seccomp_runs_jobs_where_the_operator_accepts_it_and_says_so(running: list[Launcher]) -> None:
    launcher = start("--call", str(CALLS["seccomp"]), level="standard")
    assert launcher.ready.features["seccomp"].startswith("missing")
    assert run_true(launcher, running) == "standard"


@requires_x86_64
def test_without_seccomp_no_network_namespace_is_used_again(running: list[Launcher]) -> None:
    launcher = start("--call", str(CALLS["seccomp"]), level="standard")
    running.append(launcher)
    sandbox = Sandbox(launcher)
    cookie = "import socket; print(socket.socket(socket.AF_INET).getsockopt(socket.SOL_SOCKET, 71, 8).hex())"
    seen = [sandbox.python(cookie).stdout for _ in range(8)]
    assert len(set(seen)) == len(seen)
    assert all(seen)


@requires_x86_64
def test_landlock_is_a_second_wall_and_its_lack_is_told(running: list[Launcher]) -> None:
    launcher = start("--call", str(LANDLOCK))
    assert launcher.ready.features["landlock"].startswith("missing")
    assert run_true(launcher, running) == "strict"
