"""Making jobs to submit: options with their types, keys that make a second sending harmless."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from typing import Final, Literal, TypedDict, Unpack

from msgspec.structs import replace

from jobs.content import content_of
from jobs.errors import InvalidRequest, PayloadTooLarge
from jobs.protocol.model import (
    ArraySpec,
    Content,
    InputFile,
    JobSubmit,
    Limits,
    Requires,
    Retention,
    Retry,
    RootImage,
    ShellJob,
    ShellPayload,
)

_ESCAPED: Final = bytes(set(range(32)) - set(b"\b\t\n\f\r"))
"""What JSON writes with six bytes."""


class JobOptions(TypedDict, total=False):
    """What every job can be given; meanings and defaults are those of `ShellJob`."""

    queue: str
    priority: int
    requires: Requires
    timeout_s: float | None
    heartbeat_s: float | None
    retry: Retry
    labels: dict[str, str]
    idempotency_key: str | None
    unique_key: str | None
    not_before_ms: int | None
    deadline_ms: int | None
    depends_on: list[str]
    on_failure: Literal["fail", "run"]
    ref: str | None
    concurrency_key: str | None
    concurrency_limit: int
    retention: Retention
    array: ArraySpec | None


class ShellOptions(JobOptions, total=False):
    """What a command can be given besides; meanings and defaults are those of `ShellPayload`."""

    stdin: bytes | str | None
    files: Mapping[str, bytes | str | InputFile]
    outputs: list[str]
    outputs_on_failure: bool
    on_output_limit: Literal["truncate", "fail"]
    env: dict[str, str]
    cwd: str | None
    limits: Limits
    network: Literal["none", "loopback", "host"]
    connect: list[str]
    grace_s: float | None
    secrets: dict[str, str]
    root: str | RootImage | None


def shell_job(command: Sequence[str] | str, **options: Unpack[ShellOptions]) -> ShellJob:
    """Return a job that runs a command: a sequence of arguments, or one string as a script for /bin/sh.

    `timeout_s` and `grace_s` are seconds; `files` maps paths in the job's directory to what they hold: bytes, text, or
    `InputFile(blob=…)`; `secrets` maps names of files below /run/secrets to names of the owner's secrets;
    `root` is the name of an image of the worker's operator, or `RootImage(blob=…)`.
    """
    fields = dict(options)
    payload = {name: fields.pop(name) for name in ShellPayload.__struct_fields__ if name in fields}
    stdin, files = options.get("stdin"), options.get("files", {})
    payload |= {
        "stdin": None if stdin is None else to_content(stdin),
        "files": {name: to_file(held) for name, held in files.items()},
    }
    what = {"script": command} if isinstance(command, str) else {"argv": list(command)}
    return ShellJob(payload=ShellPayload(**what, **payload), **fields)  # type: ignore[arg-type]


def to_content(value: bytes | str) -> Content:
    """Return what a job is given: bytes as text where they are UTF-8, unless JSON would escape so many of them that
    base64 is shorter."""
    if isinstance(value, str):
        return Content(text=value)
    escaped = len(value) - len(value.translate(None, _ESCAPED))
    if 15 * escaped > len(value):  # base64 adds a third, an escape five bytes
        return Content(base64=base64.b64encode(value).decode())
    return content_of(value)


def to_file(value: bytes | str | InputFile) -> InputFile:
    """Return a file that a job is given."""
    if isinstance(value, InputFile):
        return value
    content = to_content(value)
    return InputFile(text=content.text, base64=content.base64)


def with_key(job: JobSubmit) -> JobSubmit:
    """Return the job with an idempotency key of its own where it has none, so that it can be sent again safely."""
    return job if job.idempotency_key is not None else replace(job, idempotency_key=new_key())


def new_key() -> str:
    """Return a key that nobody else uses."""
    return f"client-{os.urandom(16).hex()}"


def blamed(error: PayloadTooLarge, job: JobSubmit) -> PayloadTooLarge:
    """Return the refusal of a whole request with the field that it is about, as the node has not read that far."""
    if error.field in (None, "$") and job.array is not None and job.array.range is None:
        name = "lines" if job.array.lines is not None else "items"
        return PayloadTooLarge(error.detail, field=f"$.array.{name}", expected=f"{error.expected}: api.max_body_bytes")
    return error


def single(job: JobSubmit) -> JobSubmit:
    """Return the job; raise InvalidRequest for an array, which has no output and exit code of its own."""
    if job.array is not None:
        raise InvalidRequest(
            "an array has no result of its own", field="$.array", expected="submit, wait, and the results of its tasks"
        )
    return job
