"""Lines of the program's own log."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import re
from pathlib import Path
from typing import Literal

import pytest

from jobs import logs
from jobs.config import Logging

pytestmark = pytest.mark.usefixtures("untouched_root")


def logger(log_format: Literal["auto", "json", "console"], level: Literal["debug", "info"] = "info") -> io.StringIO:
    stream = io.StringIO()
    logs.setup(Logging(format=log_format, level=level), stream=stream)
    return stream


def test_a_json_line_carries_the_fields_of_call_and_context() -> None:
    stream = logger("auto")
    with logs.context(worker="w", attempt=1):
        logging.getLogger("jobs.x").warning("late %s", "report", extra={"job": "j", "attempt": 2, "gone": None})
    (line,) = stream.getvalue().splitlines()
    record = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", record.pop("time"))
    assert record == {
        "level": "warning", "logger": "jobs.x", "message": "late report", "worker": "w", "job": "j", "attempt": 2,
    }  # fmt: skip


def test_a_field_cannot_take_the_place_of_the_line_s_own() -> None:
    stream = logger("json")
    logging.getLogger().info("real", extra={"level": "forged", "odd": object()})
    record = json.loads(stream.getvalue())
    assert (record["level"], record["message"]) == ("info", "real")


def test_what_is_logged_cannot_forge_a_line() -> None:
    """Given text with a line break and a terminal's control sequence, when logged, then one plain line comes."""
    for log_format in ("json", "console"):
        stream = logger(log_format)
        logging.getLogger().info("name %s", "a\n<0>b\x1b[2J", extra={"job": "x\ny"})
        assert len(stream.getvalue().splitlines()) == 1
        assert "\x1b" not in stream.getvalue()


def test_a_console_line_is_for_people() -> None:
    stream = logger("console")
    logging.getLogger("jobs").info("registered", extra={"node": "n1"})
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} info    registered node=n1\n", stream.getvalue())


def test_a_failure_comes_with_its_traceback() -> None:
    stream = logger("json")
    try:
        raise KeyError("what")
    except KeyError:
        logging.getLogger().exception("failed")
    assert "KeyError: 'what'" in json.loads(stream.getvalue())["error"]


def test_less_than_the_level_is_not_written() -> None:
    stream = logger("json")
    logging.getLogger("jobs").debug("quiet")
    assert stream.getvalue() == ""


def test_tasks_keep_the_context_they_were_started_in() -> None:
    stream = logger("json")

    async def scenario() -> None:
        async def work() -> None:
            logging.getLogger().info("in")

        with logs.context(job="j"):
            task = asyncio.ensure_future(work())
        await task
        logging.getLogger().info("out")

    asyncio.run(scenario())
    inside, outside = map(json.loads, stream.getvalue().splitlines())
    assert inside["job"] == "j"
    assert "job" not in outside


def test_under_journald_each_line_has_its_priority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "journal").open("w+") as stream:
        status = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        logs.setup(Logging(format="console", level="debug"), stream=stream)
        for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
            logging.getLogger().log(level, "x")
        stream.seek(0)
        assert [line[:3] for line in stream] == ["<7>", "<6>", "<4>", "<3>", "<2>"]


def test_one_line_about_a_subject_passes_in_a_while_and_tells_how_many_did_not(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr("jobs.logs.time.monotonic", lambda: now_s)
    seldom = logs.Seldom(period_s=10.0)
    assert [seldom.left_out("n1") for _ in range(4)] == [0, None, None, None]
    assert seldom.left_out("n2") == 0
    now_s += 10
    assert [seldom.left_out("n1"), seldom.left_out("n1"), seldom.left_out("n2")] == [3, None, 0]
