"""Output is bounded, counted, in order, and as slow as its reader."""

from __future__ import annotations

import time
from pathlib import Path

from jobs.protocol.ids import Attempt
from jobs.protocol.model import Reason
from jobs.protocol.wire import OUTPUT_CHUNK_BYTES, OUTPUT_WINDOW_BYTES
from jobs.workers.sandbox import Ack, End, Output

from .conftest import Sandbox, limits

MIB = 1 << 20


def resident_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))


def test_a_flood_is_cut_at_the_limit_with_the_true_count(sandbox: Sandbox) -> None:
    result = sandbox.run(
        "sh", "-c", "head -c 5000000 /dev/zero; echo end >&2; exit 0", limits=limits(output_bytes=100_000)
    )
    outcome = result.outcome
    assert outcome.reason is None
    assert (outcome.stdout.bytes, outcome.stdout.stored_bytes, outcome.stdout.truncated) == (5_000_000, 100_000, True)
    assert (outcome.stderr.bytes, outcome.stderr.stored_bytes, outcome.stderr.truncated) == (4, 0, True)
    assert len(result.stdout) == 100_000


def test_output_of_exactly_the_limit_is_not_truncated(sandbox: Sandbox) -> None:
    outcome = sandbox.run("head", "-c", "1000", "/dev/zero", limits=limits(output_bytes=1000)).outcome
    assert (outcome.stdout.stored_bytes, outcome.stdout.truncated) == (1000, False)


def test_more_output_than_is_kept_ends_a_job_that_asks_for_that(sandbox: Sandbox) -> None:
    bounds = limits(output_bytes=1000)
    flood = sandbox.run("yes", limits=bounds, fail_on_output_limit=True)
    assert (flood.outcome.reason, flood.outcome.signal) == (Reason.OUTPUT_LIMIT, 15)
    assert flood.outcome.message == "wrote more output than its limit of 1000 bytes"
    assert len(flood.stdout) == flood.outcome.stdout.stored_bytes == 1000
    # one that may have ended before anybody has looked
    short = sandbox.run("head", "-c", "1001", "/dev/zero", limits=bounds, fail_on_output_limit=True).outcome
    assert (short.reason, short.stdout.bytes, short.stdout.stored_bytes) == (Reason.OUTPUT_LIMIT, 1001, 1000)
    both = "head -c 500 /dev/zero; head -c 500 /dev/zero >&2"
    assert sandbox.run("sh", "-c", both, limits=bounds, fail_on_output_limit=True).outcome.reason is None
    assert sandbox.run("sh", "-c", f"{both}; echo", limits=bounds, fail_on_output_limit=True).outcome.reason


def test_no_output_is_kept_where_none_is_wanted(sandbox: Sandbox) -> None:
    outcome = sandbox.run("echo", "hello", limits=limits(output_bytes=0)).outcome
    assert (outcome.stdout.bytes, outcome.stdout.stored_bytes, outcome.stdout.truncated) == (6, 0, True)


def test_one_line_of_100_mb_takes_bounded_memory(sandbox: Sandbox) -> None:
    before = resident_bytes(sandbox.launcher.pid)
    job = sandbox.start("head", "-c", "100000000", "/dev/zero", limits=limits(output_bytes=200_000_000))
    result = sandbox.wait(job)
    assert result.outcome.stdout.stored_bytes == 100_000_000
    assert sum(len(data) for _, data in result.segments) == 100_000_000
    assert resident_bytes(sandbox.launcher.pid) - before < 8 * MIB


def test_one_line_of_a_gigabyte_is_counted_to_its_end_and_holds_nobody_up(sandbox: Sandbox) -> None:
    before = resident_bytes(sandbox.launcher.pid)
    job = sandbox.start("head", "-c", "1000000000", "/dev/zero", limits=limits(output_bytes=1000))
    assert sandbox.run("echo", "neighbour").stdout == "neighbour\n"
    stdout = sandbox.wait(job).outcome.stdout
    assert (stdout.bytes, stdout.stored_bytes, stdout.truncated) == (1_000_000_000, 1000, True)
    assert resident_bytes(sandbox.launcher.pid) - before < 8 * MIB


def test_frames_are_no_larger_than_the_node_takes(sandbox: Sandbox) -> None:
    result = sandbox.run("head", "-c", "3000000", "/dev/zero")
    sizes = [sum(len(data) for _, data in event.segments) for event in result.events if hasattr(event, "segments")]
    assert sum(sizes) == 3_000_000
    assert max(sizes) <= OUTPUT_CHUNK_BYTES
    assert len(sizes) < 100  # and not many small ones either


def test_a_reader_that_stops_stops_the_job(sandbox: Sandbox) -> None:
    # given a worker that acknowledges nothing
    sandbox.acknowledge = False
    job = sandbox.start("sh", "-c", "head -c 20000000 /dev/zero; echo done >&2")
    sandbox.pump(lambda: len(sandbox.output(job)) >= OUTPUT_WINDOW_BYTES - OUTPUT_CHUNK_BYTES)
    # when the launcher has had time to send more (it answers another job meanwhile)
    for _ in range(5):
        sandbox.run("sleep", "0.1")
    # then it has sent exactly the window, and the job stands
    received = len(sandbox.output(job))
    assert received == OUTPUT_WINDOW_BYTES
    # and when all is acknowledged, it goes on to its end
    sandbox.acknowledge = True
    sandbox.launcher.send([Ack(job=job, attempt=Attempt(1), count=received)])
    assert sandbox.wait(job).outcome.stdout.bytes == 20_000_000


def test_a_job_that_stands_can_be_ended(sandbox: Sandbox) -> None:
    sandbox.acknowledge = False
    job = sandbox.start("cat", "/dev/zero", grace_s=0.2)
    sandbox.pump(lambda: len(sandbox.output(job)) >= OUTPUT_WINDOW_BYTES - OUTPUT_CHUNK_BYTES)
    sandbox.launcher.send([End(job=job, attempt=Attempt(1))])
    result = sandbox.wait(job)
    assert result.outcome.reason is Reason.CANCELLED
    assert result.outcome.stdout.stored_bytes == len(sandbox.output(job))


def test_output_of_a_running_job_comes_within_a_moment(sandbox: Sandbox) -> None:
    job = sandbox.start("sh", "-c", "echo first; sleep 1; echo second")
    begin = time.monotonic()
    sandbox.wait_output(job, b"first\n")
    assert time.monotonic() - begin < 0.9
    result = sandbox.wait(job)
    assert [event.segments for event in result.events if isinstance(event, Output)] == [[(1, b"first\n")]]
    assert result.segments == [(1, b"first\n"), (1, b"second\n")]


def test_a_stream_that_is_closed_early_does_not_disturb_the_other(sandbox: Sandbox) -> None:
    result = sandbox.run("sh", "-c", "exec >&-; sleep 0.2; echo late >&2")
    assert (result.stdout, result.stderr) == ("", "late\n")
