"""`jobctl top` in a terminal and in pipes, against a real node."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs import Client, shell_job
from jobs.cli.columns import width
from jobs.testing import EmbeddedNode
from tests.support.terminal import Terminal

ENTER, LEAVE = b"\x1b[?1049h", b"\x1b[?1049l"
TOP = [sys.executable, "-m", "jobs.cli.main", "top"]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedNode]:
    with EmbeddedNode(tmp_path_factory.mktemp("top") / "node") as made:
        yield made


@pytest.fixture
def client(node: EmbeddedNode) -> Iterator[Client]:
    with node.client() as made:
        yield made


def environment(node: EmbeddedNode, **more: str) -> dict[str, str]:
    return {**os.environ, "JOBS_SOCKET": str(node.socket), "TERM": "xterm", **more}


def terminal(node: EmbeddedNode, *arguments: str, columns: int = 100, rows: int = 30) -> Terminal:
    return Terminal([*TOP, *arguments], environment(node), columns=columns, rows=rows)


def gave_back(shown: Terminal) -> bool:
    """Tell whether the terminal is as it was: its modes, its screen, its cursor."""
    return (
        shown.present_modes() == shown.modes
        and shown.seen.count(ENTER) == shown.seen.count(LEAVE)
        and shown.seen.rindex(LEAVE) > shown.seen.rindex(ENTER)
        and shown.seen.count(b"\x1b[?25l") == shown.seen.count(b"\x1b[?25h")
        and shown.seen.count(b"\x1b[?7l") == shown.seen.count(b"\x1b[?7h")
    )


def fits(shown: Terminal, columns: int, rows: int) -> bool:
    """Tell whether the last frame is as wide as the window, and no longer."""
    lines = [line for line in shown.frame() if line]
    return len(lines) <= rows and max(map(width, lines), default=0) == columns


# --- in a terminal ----------------------------------------------------------------------------------------------------


def test_it_follows_what_happens_until_q_and_gives_the_terminal_back(node: EmbeddedNode, client: Client) -> None:
    with terminal(node, "--interval", "100ms") as shown:
        shown.until_shown("FAILED JOB")
        assert shown.present_modes() != shown.modes, "keys are not shown and come one by one"
        failed = client.submit(shell_job("exit 7", queue="watched")).job.id
        shown.until(lambda now: any(failed in line and "exit_code" in line for line in now.frame()))
        running = client.submit(shell_job('echo "progress 30 at \x1b[31mit" >&3; sleep 60')).job.id
        shown.until(lambda now: any(running in line and "30 %" in line for line in now.frame()))
        assert b"at \x1b[31m" not in shown.seen, "what jobs say does not steer the terminal"
        client.cancel(running)
        shown.type("q")
        assert shown.end() == 0
        assert gave_back(shown)
        assert shown.errors() == ""


def test_a_frame_fits_the_window_as_it_is_now(node: EmbeddedNode) -> None:
    with terminal(node, "--interval", "100ms", columns=120, rows=40) as shown:
        shown.until_shown("FAILED JOB")
        for columns, rows in ((50, 12), (20, 4), (200, 60)):
            shown.resize(columns, rows)
            before = len(shown.seen)
            shown.until(lambda now, columns=columns, rows=rows: fits(now, columns, rows))  # type: ignore[misc]
            assert shown.seen.count(b"\x1b[H", before) <= 5, "the window's size is known at once"
        shown.type("q")
        assert shown.end() == 0
        assert gave_back(shown)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_the_terminal_is_given_back(node: EmbeddedNode, number: signal.Signals) -> None:
    with terminal(node) as shown:
        shown.until_shown("FAILED JOB")
        if number is signal.SIGINT:
            shown.type("\x03")
        else:
            shown.process.send_signal(number)
        assert shown.end() == 128 + number
        assert gave_back(shown)
        assert shown.errors() == ""


def test_ctrl_z_gives_the_terminal_back_until_it_goes_on(node: EmbeddedNode) -> None:
    with terminal(node, "--interval", "100ms") as shown:
        shown.until_shown("FAILED JOB")
        shown.type("\x1a")
        pid, status = os.waitpid(shown.process.pid, os.WUNTRACED)
        assert (pid, os.WIFSTOPPED(status)) == (shown.process.pid, True)
        shown.until(lambda now: LEAVE in now.seen)
        assert gave_back(shown)
        shown.process.send_signal(signal.SIGCONT)
        shown.until(lambda now: now.seen.count(ENTER) == 2)
        shown.type("q")
        assert shown.end() == 0
        assert gave_back(shown)


def test_a_terminal_that_is_closed_ends_it_quietly(node: EmbeddedNode) -> None:
    with terminal(node, "--interval", "100ms") as shown:
        shown.until_shown("FAILED JOB")
        shown.hang_up()
        assert shown.process.wait(30) != 0
        assert "Traceback" not in shown.errors()


def test_it_says_that_the_node_is_away_and_goes_on_when_it_is_back(tmp_path: Path) -> None:
    with EmbeddedNode(tmp_path / "node") as node, terminal(node, "--interval", "100ms") as shown:
        shown.until_shown("FAILED JOB")
        node.kill()
        shown.until_shown("cannot connect to")
        assert any("FAILED JOB" in line for line in shown.frame()), "what was known last is still shown"
        node.start()
        shown.until(lambda now: not any("cannot connect" in line for line in now.frame()))
        shown.type("q")
        assert shown.end() == 0


def test_keys_work_while_the_node_says_nothing(tmp_path: Path) -> None:
    with EmbeddedNode(tmp_path / "node") as node, terminal(node, "--interval", "100ms") as shown:
        shown.until_shown("FAILED JOB")
        os.kill(node.pid, signal.SIGSTOP)
        try:
            shown.until_shown("the node has not answered for")
            shown.type("q")
            assert shown.end() == 0
        finally:
            os.kill(node.pid, signal.SIGCONT)


# --- in pipes ---------------------------------------------------------------------------------------------------------


def piped(node: EmbeddedNode, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TOP, *arguments], capture_output=True, text=True, timeout=60, env=environment(node, **env), check=False
    )


def test_one_frame_goes_into_a_pipe_as_plain_text(node: EmbeddedNode) -> None:
    done = piped(node, "--once", COLUMNS="90")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    titles = [line.split("  ")[0] for line in done.stdout.splitlines() if line.isascii() and line[:3].isupper()]
    assert titles == ["QUEUE", "WORKER", "RUNNING JOB", "FAILED JOB"]
    assert max(map(len, done.stdout.splitlines())) <= 90


def test_json_is_one_object_a_refresh(node: EmbeddedNode) -> None:
    once = json.loads(piped(node, "--once", "--json").stdout)
    assert (once["node"], once["all_owners"], once["workers"][0]["type"]) == (once["node"], True, "shell")
    running = subprocess.Popen([*TOP, "--json", "--interval", "100ms"], stdout=subprocess.PIPE, env=environment(node))
    assert running.stdout is not None
    first, second = (json.loads(running.stdout.readline()) for _ in range(2))
    assert first["now_ms"] < second["now_ms"]
    running.send_signal(signal.SIGINT)
    assert running.wait(30) == 130
    running.stdout.close()


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ([], 2, "standard output is no terminal"),
        (["--interval", "0"], 2, "less than 0.1 s"),
        (["--interval", "soon"], 2, "no duration"),
        (["--once", "--socket", "/no/such.sock"], 69, "cannot connect"),
    ],
)
def test_what_is_wrong_is_said_in_words(node: EmbeddedNode, arguments: list[str], code: int, text: str) -> None:
    done = piped(node, *arguments)
    assert (done.returncode, text in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr
