"""Requests, submissions and errors as both clients make them."""

from __future__ import annotations

import inspect
import subprocess
import sys
from base64 import b64encode
from contextlib import suppress

import msgspec
import pytest

import jobs
from jobs.client import operations
from jobs.client.asynchronous import AsyncClient, AsyncKeyValueClient
from jobs.client.failures import error_of, unreachable
from jobs.client.maintenance import AsyncMaintenanceClient, MaintenanceClient
from jobs.client.operations import METRICS, list_jobs, submit
from jobs.client.replication import AsyncReplicationClient, ReplicationClient
from jobs.client.requests import Feed, change, decode, get, post, segment, write
from jobs.client.submission import shell_job, to_content, with_key
from jobs.client.sync import Client, KeyValueClient
from jobs.errors import IdempotencyConflict, InternalError, InvalidRequest, QueueFull
from jobs.protocol.ids import is_job_id
from jobs.protocol.model import Content, Health, InputFile, JobState, Limits, Problem, ShellJob, ShellPayload


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Client, AsyncClient),
        (KeyValueClient, AsyncKeyValueClient),
        (MaintenanceClient, AsyncMaintenanceClient),
        (ReplicationClient, AsyncReplicationClient),
    ],
)
def test_both_clients_have_the_same_methods(one: type, other: type) -> None:
    def surface(kind: type) -> dict[str, list[inspect.Parameter]]:
        return {
            name: [parameter.replace(annotation="") for parameter in inspect.signature(member).parameters.values()]
            for name, member in vars(kind).items()
            if not name.startswith("_") and inspect.isfunction(member)
        }

    shared = surface(one)
    theirs = surface(other)
    assert shared.keys() <= theirs.keys()
    assert {name: theirs[name] for name in shared} == shared


def test_a_command_becomes_a_job() -> None:
    job = shell_job(
        ["sort", "-u"], stdin=b"\xff", files={"a": "b"}, limits=Limits(pids=5), queue="q", labels={"k": "v"}, cwd="sub"
    )
    assert job == ShellJob(
        payload=ShellPayload(
            argv=["sort", "-u"],
            stdin=Content(base64="/w=="),
            files={"a": InputFile(text="b")},
            limits=Limits(pids=5),
            cwd="sub",
        ),
        queue="q",
        labels={"k": "v"},
    )
    assert shell_job("echo a | cat").payload == ShellPayload(script="echo a | cat")


def test_bytes_travel_in_the_shorter_form() -> None:
    """A job of many control characters would be refused as too large for what JSON makes of them."""
    for data in (b"\0" * 900, b"text\n\ttext " * 90, b"\x1b[1mbold\x1b[0m plain " * 90, b"\xff" * 9, b""):
        content = to_content(data)
        assert bytes(content) == data
        forms = [Content(base64=b64encode(data).decode())]
        with suppress(UnicodeDecodeError):
            forms.append(Content(text=data.decode()))
        assert len(msgspec.json.encode(content)) <= 1.1 * min(len(msgspec.json.encode(form)) for form in forms)
    assert to_content(b"plain").text == "plain"
    assert to_content("\0" * 900).text == "\0" * 900


def test_an_option_that_does_not_exist_is_refused() -> None:
    with pytest.raises(TypeError, match="tiemout_s"):
        shell_job(["true"], tiemout_s=5)  # type: ignore[call-arg]


def test_a_misspelt_option_never_means_more() -> None:
    # Else this would have ended every job of the owner
    with pytest.raises(TypeError, match="lables"):
        operations.cancel_many({"lables": {"team": "a"}}, None)  # type: ignore[typeddict-unknown-key]
    for asked in (operations.list_jobs, operations.audit):
        with pytest.raises(TypeError, match="ownr"):
            asked({"ownr": 1}, None)  # type: ignore[operator]
    with pytest.raises(TypeError, match=r"stream; expected some of attempt, .*streams"):
        operations.logs("01890a5d-ac96-774b-bcce-b302099a8057", {"stream": "stdout"})  # type: ignore[typeddict-unknown-key]


def test_a_submission_is_given_a_key_of_its_own_once() -> None:
    plain = shell_job(["true"])
    first, second = with_key(plain), with_key(plain)
    assert first.idempotency_key != second.idempotency_key
    assert with_key(first) is first


def test_every_change_has_an_id_of_its_own_and_no_read_has_one() -> None:
    changes = [change("DELETE", "/x"), post("/x", dict).request, write("PUT", "/x", dict, {}).request]
    ids = [request.headers["Jobs-Request-Id"] for request in changes]
    assert len(set(ids)) == len(changes)
    assert all(is_job_id(name) for name in ids), "no UUIDv7"
    reads = [get("/x", dict).request, Feed("/x", {}, dict).request(), METRICS]
    assert not any("Jobs-Request-Id" in request.headers for request in reads)


def test_a_query_is_quoted_and_leaves_out_what_is_not_given() -> None:
    target = list_jobs({"state": JobState.FAILED, "labels": {"a": "b c&d=é"}, "owner": None}, None).request.target
    assert target == "/v1/jobs?state=failed&label=a%3Db+c%26d%3D%C3%A9&order=newest"
    several = list_jobs({"state": [JobState.PENDING, JobState.RUNNING], "page_size": 7}, "next").request.target
    assert several == "/v1/jobs?state=pending&state=running&order=newest&limit=7&cursor=next"
    assert segment("a/../b?c") == "a%2F..%2Fb%3Fc"


def test_text_that_is_not_unicode_is_refused_before_it_is_sent() -> None:
    with pytest.raises(InvalidRequest, match="not Unicode"):
        submit(shell_job(["echo", "\udcff"]))
    with pytest.raises(InvalidRequest, match="not Unicode"):
        list_jobs({"labels": {"a": "\udcff"}}, None)
    with pytest.raises(InvalidRequest, match="not Unicode"):
        post("/v1/kv:put", dict, {"key": "\udcff"})


def test_a_problem_becomes_the_error_it_was() -> None:
    problem = Problem(
        type="x", title="t", status=409, code="idempotency_conflict", detail="d", field="$.f", expected="e"
    )
    error = error_of(409, msgspec.json.encode(problem), None)
    assert type(error) is IdempotencyConflict
    assert (error.detail, error.field, error.expected, error.retry_after_s) == ("d", "$.f", "e", None)
    full = msgspec.structs.replace(problem, code="queue_full")
    assert error_of(429, msgspec.json.encode(full), "7").retry_after_s == 7
    assert error_of(429, msgspec.json.encode(full), "Wed, 21 Oct 2026").retry_after_s is None
    assert type(error_of(429, msgspec.json.encode(full), "7")) is QueueFull
    newer = msgspec.structs.replace(problem, code="of_a_newer_node")
    assert isinstance(error_of(400, msgspec.json.encode(newer), None), InternalError)
    assert "502" in error_of(502, b"<html>", None).detail


def test_an_answer_of_another_type_is_an_error_of_the_node() -> None:
    with pytest.raises(InternalError, match="no Health"):
        decode(Health, b"[]")


@pytest.mark.parametrize(
    ("cause", "hint"),
    [
        (FileNotFoundError(2, "No such file or directory"), "JOBS_SOCKET"),
        (ConnectionRefusedError(111, "Connection refused"), "start jobs-node"),
        (PermissionError(13, "Permission denied"), "group"),
        (OSError("AF_UNIX path too long"), "path"),
    ],
)
def test_a_socket_that_cannot_be_used_says_what_to_do(cause: OSError, hint: str) -> None:
    error = unreachable("/x/api.sock", cause)
    assert "/x/api.sock" in error.detail
    assert hint in (error.expected or "")


def test_importing_the_package_costs_nothing_until_something_is_used() -> None:
    probe = "import sys, jobs; print([m for m in sys.modules if m.startswith(('jobs.', 'msgspec', 'aiohttp'))])"
    assert subprocess.run([sys.executable, "-c", probe], capture_output=True, check=True).stdout == b"[]\n"
    probe = "import sys; from jobs import Client; print('aiohttp' in sys.modules, 'http.client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], capture_output=True, check=True).stdout == b"False False\n"


def test_everything_that_the_package_offers_is_there() -> None:
    for name in jobs.__all__:
        assert getattr(jobs, name).__name__ == name
    with pytest.raises(AttributeError, match="nonsense"):
        _ = jobs.nonsense


def test_threads_may_decode_what_none_has_decoded_before() -> None:
    # Given a process in which nothing was decoded, and threads that all begin at once
    program = """
import sys, threading
from contextlib import suppress
from jobs.client.requests import decode
from jobs.protocol.model import JobDetail
sys.setswitchinterval(1e-6)
data = b'{"parents":["a"],"spec":{"type":"shell","queue":"q","labels":{"a":"b"}},"job":{"labels":{"a":"b"},"id":"a"}}'
begin = threading.Barrier(8)
def run():
    begin.wait()
    for _ in range(100):
        with suppress(Exception):
            decode(JobDetail, data)
threads = [threading.Thread(target=run) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""
    # Then the interpreter lives on
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
