"""The options that describe a job, and the job that they make."""

from __future__ import annotations

import argparse
import re
import sys
import time
from typing import Final

from jobs.cli.command import Parser, UsageError, at_least
from jobs.client import shell_job
from jobs.protocol.model import (
    HASH_PATTERN,
    InputFile,
    JobSubmit,
    Limits,
    Reason,
    Requires,
    Retention,
    Retry,
    RootImage,
    ShellJob,
    SqlJob,
    tag_of,
)
from jobs.validate import MAX_SPEC_BYTES

BLOB_PREFIX: Final = "blob:"
_UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_TIMES: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}


def size(text: str) -> int:
    """Parse bytes such as 64M or 1GiB."""
    found = re.fullmatch(r"(\d+)\s*([kmgt]?)(i?b)?", text.strip().lower())
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; for example 512K, 64M, 1G")
    return int(found[1]) * _UNITS[found[2]]


def duration(text: str) -> float:
    """Parse seconds such as 1.5, 500ms, 10m."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|)", text.strip().lower())
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration; for example 30, 500ms, 10m, 2h")
    return float(found[1]) * _TIMES[found[2]]


def past_ms(text: str) -> int:
    """Parse a moment in ms since 1970: how long ago (2h), or date and time, local unless they name a zone."""
    return _moment_ms(text, -1, "2h (ago)")


def future_ms(text: str) -> int:
    """Parse a moment in ms since 1970: how long from now (2h), or date and time, local unless they name a zone."""
    return _moment_ms(text, 1, "2h (from now)")


def _moment_ms(text: str, direction: int, example: str) -> int:
    try:
        return int((time.time() + direction * duration(text)) * 1000)
    except argparse.ArgumentTypeError:
        pass
    from datetime import datetime

    try:
        return int(datetime.fromisoformat(text).timestamp() * 1000)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no moment; for example {example}, 2030-01-31T12:00") from None


def pair(text: str) -> tuple[str, str]:
    """Parse NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"{text!r} should be NAME=VALUE")
    return name, value


def count(text: str) -> tuple[str, int]:
    """Parse NAME=N."""
    name, value = pair(text)
    if not (value.isascii() and value.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} should be NAME=N with a whole number")
    return name, int(value)


def exit_codes(text: str) -> list[int]:
    """Parse exit codes such as 1,75."""
    codes = [int(part) for part in text.split(",") if part.isascii() and part.isdigit()]
    if len(codes) != text.count(",") + 1 or not all(1 <= code <= 255 for code in codes):
        raise argparse.ArgumentTypeError(f"{text!r} are no exit codes; for example 75 or 1,75, each from 1 to 255")
    return codes


def add_job_options(parser: Parser) -> None:
    _add_command(parser)
    _add_placement(parser)
    _add_attempts(parser)


def _add_command(parser: Parser) -> None:
    what = parser.add_argument_group("what to run")
    what.add_argument("argv", nargs="*", metavar="ARGV", help="the command and its arguments, after --")
    what.add_argument("--script", metavar="FILE", help="run this script with /bin/sh instead; - reads it from stdin")
    what.add_argument("--stdin", metavar="FILE", help="the command's standard input; - passes on this one")
    what.add_argument(
        "--file",
        type=pair,
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="put a copy of PATH at NAME in the job, or show it a blob there: NAME=blob:HASH",
    )
    what.add_argument(
        "--artefact",
        action="append",
        default=[],
        metavar="GLOB",
        help="keep files that the job leaves as blobs: out.csv, 'out/**', '*.log'; may be repeated",
    )
    what.add_argument("--artefacts-on-failure", action="store_true", help="also when it fails")
    what.add_argument("--env", type=pair, action="append", default=[], metavar="NAME=VALUE", help="set a variable")
    what.add_argument(
        "--secret",
        type=pair,
        action="append",
        default=[],
        metavar="FILE=NAME",
        help="give it a secret as /run/secrets/FILE; NAME may be credential:NAME, of the worker's operator",
    )
    what.add_argument("--cwd", metavar="DIR", help="directory to run in, relative to the job's own")


def _add_placement(parser: Parser) -> None:
    how = parser.add_argument_group("where and when to run it")
    how.add_argument("--queue", default="default", help="queue to wait in")
    how.add_argument("--priority", type=int, default=0, help="from -100 to 100; higher goes first")
    how.add_argument("--not-before", type=future_ms, metavar="WHEN", help="start it no earlier: 2h, 2030-01-31T12:00")
    how.add_argument("--deadline", type=future_ms, metavar="WHEN", help="fail it when it has not started by then")
    how.add_argument(
        "--require",
        type=pair,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="only on workers with this label",
    )
    how.add_argument(
        "--prefer",
        type=pair,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="rather on workers with this label",
    )
    how.add_argument(
        "--resource", type=count, action="append", default=[], metavar="NAME=N", help="so many of what a worker counts"
    )
    how.add_argument("--cpu", type=float, default=0.0, metavar="CORES", help="cores to set aside on the worker")
    how.add_argument("--reserve-memory", type=size, default=0, metavar="SIZE", help="memory to set aside on the worker")
    how.add_argument("--concurrency-key", metavar="KEY", help="run no more jobs with this key at a time than its limit")
    how.add_argument("--concurrency-limit", type=at_least(1), default=1, metavar="N", help="that limit; 1 by default")
    how.add_argument(
        "--depends-on", action="append", default=[], metavar="ID", help="wait for this job to end; may be repeated"
    )
    how.add_argument(
        "--on-failure", choices=("fail", "run"), default="fail", help="what to do when a job that is waited for fails"
    )
    how.add_argument("--idempotency-key", metavar="KEY", help="the same key makes the same job only once")
    how.add_argument("--unique-key", metavar="KEY", help="no other job while one with this key has not ended")
    how.add_argument("--label", type=pair, action="append", default=[], metavar="NAME=VALUE", help="label the job")
    how.add_argument("--keep", type=duration, metavar="TIME", help="keep the job so long after its end")
    how.add_argument("--keep-logs", type=duration, metavar="TIME", help="keep its output so long, which is less")


def _add_attempts(parser: Parser) -> None:
    how = parser.add_argument_group("attempts and their limits")
    how.add_argument("--timeout", type=duration, metavar="TIME", help="end the job after this long")
    how.add_argument("--heartbeat", type=duration, metavar="TIME", help="end the job when it is silent for this long")
    how.add_argument("--grace", type=duration, metavar="TIME", help="from SIGTERM to SIGKILL when it is ended")
    how.add_argument("--retries", type=at_least(0), default=0, metavar="N", help="try again so often when it fails")
    how.add_argument("--retry-delay", type=duration, default=1.0, metavar="TIME", help="wait before the first retry")
    how.add_argument("--retry-cap", type=duration, default=300.0, metavar="TIME", help="longest such wait")
    how.add_argument("--retry-jitter", type=float, default=0.1, metavar="SHARE", help="added to it at random, 0 to 1")
    how.add_argument(
        "--backoff", choices=("exponential", "fixed", "none"), default="exponential", help="how that wait grows"
    )
    how.add_argument(
        "--retry-on",
        choices=[reason.value for reason in Reason],
        action="append",
        metavar="REASON",
        help="try again only what failed for this reason",
    )
    how.add_argument(
        "--retry-exit-codes",
        type=exit_codes,
        metavar="N,…",
        help="of other exit codes than these nothing is tried again",
    )
    how.add_argument(
        "--no-retry-exit-codes", type=exit_codes, default=[], metavar="N,…", help="these are not tried again"
    )
    how.add_argument("--memory", type=size, metavar="SIZE", help="limit: memory")
    how.add_argument("--pids", type=int, metavar="N", help="limit: processes and threads")
    how.add_argument("--tmp", type=size, metavar="SIZE", help="limit: files in the job's directory and /tmp")
    how.add_argument("--output", type=size, metavar="SIZE", help="limit: output that is kept")
    how.add_argument(
        "--on-output-limit", choices=("truncate", "fail"), default="truncate", help="what more output than that does"
    )
    how.add_argument("--file-size", type=size, metavar="SIZE", help="limit: each file that it writes")
    how.add_argument("--open-files", type=int, metavar="N", help="limit: open files of each process")
    how.add_argument("--cpu-time", type=int, metavar="SECONDS", help="limit: processor time of each process")
    how.add_argument("--cpu-max", type=float, metavar="CORES", help="limit: cores at a time, such as 0.5")
    how.add_argument("--cpu-weight", type=int, metavar="N", help="share of the processor, 1 to 10000; 100 is ordinary")
    how.add_argument("--io-weight", type=int, metavar="N", help="share of disks, 1 to 10000; 100 is ordinary")
    how.add_argument(
        "--root", metavar="NAME", help="have an image for its root: one of the worker's operator, or blob:HASH"
    )
    how.add_argument(
        "--network", choices=("none", "loopback", "host"), default="none", help="host only where a worker allows it"
    )
    how.add_argument(
        "--connect", action="append", default=[], metavar="ADDRESS:PORT", help="may be reached by TCP, where allowed"
    )


def job_of(options: argparse.Namespace) -> ShellJob:
    """Return the job that the options describe. Raises UsageError, and InvalidRequest for what could never run."""
    if bool(options.argv) == (options.script is not None):
        raise UsageError("give either a command after -- or --script FILE")
    if options.script == "-" and options.stdin == "-":
        raise UsageError("standard input cannot be both the script and the command's input")
    return shell_job(
        options.argv or read(options.script).decode(errors="surrogateescape"),
        stdin=None if options.stdin is None else read(options.stdin),
        files={name: _file(path) for name, path in options.file},
        outputs=options.artefact,
        outputs_on_failure=options.artefacts_on_failure,
        env=dict(options.env),
        cwd=options.cwd,
        limits=Limits(
            memory_bytes=options.memory,
            pids=options.pids,
            tmp_bytes=options.tmp,
            output_bytes=options.output,
            file_bytes=options.file_size,
            open_files=options.open_files,
            cpu_s=options.cpu_time,
            cpu_milli=None if options.cpu_max is None else round(1000 * options.cpu_max),
            cpu_weight=options.cpu_weight,
            io_weight=options.io_weight,
        ),
        on_output_limit=options.on_output_limit,
        network=options.network,
        root=_root(options.root),
        connect=options.connect,
        grace_s=options.grace,
        secrets=dict(options.secret),
        queue=options.queue,
        priority=options.priority,
        timeout_s=options.timeout,
        heartbeat_s=options.heartbeat,
        retry=Retry(
            max_attempts=options.retries + 1,
            delay_s=options.retry_delay,
            backoff=options.backoff,
            cap_s=options.retry_cap,
            jitter=options.retry_jitter,
            reasons=None if options.retry_on is None else [Reason(reason) for reason in options.retry_on],
            exit_codes=options.retry_exit_codes,
            except_exit_codes=options.no_retry_exit_codes,
        ),
        labels=dict(options.label),
        requires=Requires(
            labels=dict(options.require),
            cpu_milli=round(1000 * options.cpu),
            memory_bytes=options.reserve_memory,
            resources=dict(options.resource),
            prefer=dict(options.prefer),
        ),
        not_before_ms=options.not_before,
        deadline_ms=options.deadline,
        concurrency_key=options.concurrency_key,
        concurrency_limit=options.concurrency_limit,
        depends_on=options.depends_on,
        on_failure=options.on_failure,
        retention=Retention(keep_s=options.keep, logs_s=options.keep_logs),
        idempotency_key=options.idempotency_key,
        unique_key=options.unique_key,
    )


def command_of(job: JobSubmit) -> str:
    """Return what a job runs, on one line."""
    if isinstance(job, SqlJob):
        return " ".join(job.payload.sql.split())
    if isinstance(job, ShellJob):
        return " ".join(job.payload.argv) if job.payload.argv is not None else "(script)"
    about = getattr(job.payload, "hash", None) or getattr(job.payload, "name", None)
    return f"{tag_of(job.payload)} {about}" if about else tag_of(job.payload)


def _root(name: str | None) -> str | RootImage | None:
    if name is None or not name.startswith(BLOB_PREFIX):
        return name
    return RootImage(blob=blob_hash(name))


def _file(path: str) -> bytes | InputFile:
    """Return what a file holds, or the blob that is named instead. Raises UsageError."""
    return InputFile(blob=blob_hash(path)) if path.startswith(BLOB_PREFIX) else read(path)


def blob_hash(path: str) -> str:
    """Return the hash that `blob:HASH` names. Raises UsageError."""
    blob = path.removeprefix(BLOB_PREFIX)
    if re.match(HASH_PATTERN, blob) is None:
        raise UsageError(f"{blob!r} is no hash of a blob: 64 digits 0-9 and a-f (a file of this name: ./{path})")
    return blob


def read(path: str, limit_bytes: int = MAX_SPEC_BYTES, what: str = "a job") -> bytes:
    """Return what a file, or standard input for -, holds. Raises UsageError, also for more than fits."""
    try:
        if path == "-":
            data = sys.stdin.buffer.read(limit_bytes + 1)
        else:
            with open(path, "rb") as file:
                data = file.read(limit_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise UsageError(f"cannot read {path}: {getattr(error, 'strerror', error)}") from error
    if len(data) > limit_bytes:
        raise UsageError(f"{path} holds more than {limit_bytes} bytes, which is all that {what} can carry")
    return data
