"""Files of jobs: every wrong line is named, and a million right ones take no room."""

from __future__ import annotations

import hashlib
import io
import json
import os
import threading
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import pytest

from jobs.cli.command import UsageError
from jobs.cli.jobfile import MAX_LINE_BYTES, JobFile, WrongLines, opened
from jobs.protocol.model import BATCH_JOBS
from jobs.validate import MAX_SPEC_BYTES

RIGHT = b'{"type":"shell","payload":{"argv":["true"]}}\n'
SOME_ID = "01900000-0000-7000-8000-000000000000"


def line(**fields: object) -> bytes:
    return json.dumps({"type": "shell", "payload": {"argv": ["true"]}, **fields}).encode() + b"\n"


def file_of(lines: Iterable[bytes]) -> JobFile:
    return JobFile("jobs.jsonl", io.BytesIO(b"".join(lines)))


def mistakes(lines: Iterable[bytes], *, shown: int = 20) -> list[str]:
    with pytest.raises(WrongLines) as caught:
        file_of(lines).check(None, lambda count: None, shown=shown)
    assert caught.value.total >= len(caught.value.lines)
    return [wrong.text("jobs.jsonl") for wrong in caught.value.lines]


def test_a_right_file_is_counted_and_known_by_its_content() -> None:
    data = RIGHT + b"\n  \n" + line(priority=7) + RIGHT.rstrip()
    checked = file_of([data]).check(None, lambda count: None, shown=20)
    assert (checked.jobs, checked.sha256) == (3, hashlib.sha256(data).hexdigest())
    assert [(number, job.priority) for number, job in file_of([data]).jobs()] == [(1, 0), (4, 7), (5, 0)]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (b"{nonsense\n", ": $: the line is not JSON"),
        (b"[]\n", ": $: got `array`: expected `object`"),
        (b'{"type":"shell"}\n', ": $.payload: payload is missing: expected a value"),
        (
            b'{"payload":{"argv":["true"]}}\n',
            ": $.type: type is missing: expected one of blob, maintenance, replication, shell",
        ),
        (b'{"type":"cobol","payload":{}}\n', "$.type"),
        (line(prio=1), ": $.prio: prio is unknown: expected one of "),
        (line(priority=101), ": $.priority: not acceptable: expected `int` <= 100"),
        (line(array={}), ": $.array: none or several of range, lines and items are given"),
        (line(array={"lines": ["a", "b\nc"]}), ": $.array.lines[1]: the line holds an end of line"),
        (line(payload={"argv": ["a\0"]}), ": $.payload.argv[0]: the text holds a zero byte: expected "),
        (line(payload={"argv": ["cat"], "files": {"../x": {"text": ""}}}), "is no place for a file"),
        (line(payload={"argv": ["cat"], "stdin": {"text": "x" * MAX_SPEC_BYTES}}), "bytes as JSON: expected at most"),
        (b'"' + b"x" * MAX_LINE_BYTES + b'"\n', ": the line is too long for a job"),
        (b"\xff\n", ": $: the line is not JSON in UTF-8"),
        (b"[" * 100_000 + b"\n", ": $"),
        (
            line(depends_on=["nothing"]),
            ": $.depends_on[0]: 'nothing' is neither a job's id nor the ref of an earlier line: expected an id",
        ),
    ],
)
def test_a_wrong_line_is_named_with_field_mistake_and_what_is_expected(wrong: bytes, said: str) -> None:
    (found,) = mistakes([RIGHT, RIGHT, wrong, RIGHT])
    assert found.startswith("jobs.jsonl:3: ")
    assert said in found


def test_every_wrong_line_is_named_up_to_a_number() -> None:
    lines = [RIGHT if number % 2 else b"{}\n" for number in range(1, 101)]
    assert [found.split(":")[1] for found in mistakes(lines, shown=50)] == [str(n) for n in range(2, 101, 2)]
    assert len(mistakes(lines)) == 20


def test_a_line_depends_on_any_before_it_and_on_jobs_that_are_there() -> None:
    lines = [
        line(ref="a"),
        *[RIGHT] * BATCH_JOBS,
        line(ref="b", depends_on=["a", SOME_ID]),
        line(depends_on=["b", "a"]),
    ]
    assert file_of(lines).check(None, lambda count: None, shown=20).jobs == BATCH_JOBS + 3


def test_what_a_line_depends_on_has_to_stand_before_it_and_be_one_line() -> None:
    found = mistakes([line(depends_on=["a"]), line(ref="a", depends_on=["a", "b"]), RIGHT, line(ref="a")])
    assert [text.partition(": expected")[0] for text in found] == [
        "jobs.jsonl:1: $.depends_on[0]: 'a' is neither a job's id nor the ref of an earlier line",
        "jobs.jsonl:2: $.depends_on[0]: 'a' is neither a job's id nor the ref of an earlier line",
        "jobs.jsonl:2: $.depends_on[1]: 'b' is neither a job's id nor the ref of an earlier line",
        "jobs.jsonl:4: $.ref: 'a' is the ref of line 2 too",
    ]


def test_a_large_file_takes_no_more_room_than_a_small_one(tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl"
    with path.open("wb") as out:
        for _ in range(100):
            out.write(RIGHT * 200)
    with opened(str(path)) as file:
        file.check(None, lambda count: None, shown=20)
        tracemalloc.start()
        try:
            file.check(None, lambda count: None, shown=20)
            assert sum(1 for _ in file.jobs()) == 20_000
            peak_bytes = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak_bytes < 1 << 20


def test_what_cannot_be_read_twice_is_copied(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=fifo.write_bytes, args=(RIGHT * 3,))
    writer.start()
    with opened(str(fifo)) as file:
        assert file.check(None, lambda count: None, shown=20).jobs == 3
        assert len(list(file.jobs())) == len(list(file.jobs())) == 3
    writer.join()


@pytest.mark.parametrize("path", ["/no/such/file", "/", "nul\0"])
def test_a_file_that_cannot_be_read_is_named(path: str) -> None:
    with pytest.raises(UsageError, match="cannot read"), opened(path):
        pass


def test_a_list_of_an_array_does_not_count_as_its_spec() -> None:
    lines = ["x" * 1_000] * 2_000
    checked = file_of([line(array={"lines": lines})]).check(None, lambda count: None, shown=1)
    assert checked.jobs == 1
