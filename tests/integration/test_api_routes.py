"""Every route against a real node with a real worker, as the node's own user and as a stranger."""

from __future__ import annotations

import http.client
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import jsonschema_rs
import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from jobs.api.routes import ROUTES
from jobs.node import STOP_GRACE_S
from jobs.protocol.model import BATCH_JOBS
from jobs.testing import EmbeddedNode
from tests.support.api import job

ABSENT = "01890000-0000-7000-8000-000000000000"
STRANGER = 12_345


@contextmanager
def effective_user(uid: int) -> Iterator[None]:
    """Be another user: SO_PEERCRED tells the effective ids at the time of the connect."""
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


class Caller:
    """Asks the node one request at a time, on a connection of its own each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.document: dict[str, Any] = {}
        self.document = self.ok("GET", "/openapi.json")

    def ask(
        self, method: str, target: str, body: object = None, *, uid: int | None = None, **headers: str
    ) -> tuple[int, str, bytes]:
        made = http.client.HTTPConnection("jobs")
        made.sock = socket.socket(socket.AF_UNIX)
        made.sock.settimeout(30)
        with nullcontext() if uid is None else effective_user(uid):
            made.sock.connect(str(self.path))
        data = None if body is None else msgspec.json.encode(body)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        made.request(method, target, data, sent | ({"Content-Type": "application/json"} if data else {}))
        answer = made.getresponse()
        content = answer.read()
        made.close()
        return answer.status, answer.headers["Content-Type"] or "", content

    def ok(self, method: str, target: str, body: object = None, *, status: int = 200) -> Any:
        """Return the JSON of a success, having checked it against the node's own document."""
        got, kind, content = self.ask(method, target, body)
        assert (got, kind.partition(";")[0]) == (status, "application/json"), content
        answer = json.loads(content)
        if self.document:
            self.check(method, target, status, answer)
        return answer

    def check(self, method: str, target: str, status: int, answer: object) -> None:
        path = target.partition("?")[0]
        operations = self.document["paths"].get(path)
        if operations is None:
            parts = path.split("/")
            operations = self.document["paths"]["/".join([*parts[:3], "{id}", *parts[4:]])]
        schema = operations[method.lower()]["responses"][str(status)]["content"]["application/json"]["schema"]
        jsonschema_rs.validate({**schema, "components": self.document["components"]}, answer)

    def problem(self, method: str, target: str, body: object = None) -> tuple[int, str]:
        status, kind, content = self.ask(method, target, body)
        assert kind.partition(";")[0] == "application/problem+json", content
        found = json.loads(content)
        assert found["status"] == status
        return status, found["code"]

    def as_stranger(self, method: str, target: str, body: object = None) -> tuple[int, Any]:
        """Ask as another user; the answer's JSON comes back."""
        status, _, content = self.ask(method, target, body, uid=STRANGER)
        return status, json.loads(content)


@pytest.fixture(scope="module")
def node() -> Iterator[EmbeddedNode]:
    """A node that every user can reach; pytest's own directories are closed to others."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        made = EmbeddedNode(Path(directory) / "node", env={"JOBS_API__MODE": "0666"})
        made.directory.mkdir(mode=0o755)
        with made:
            yield made


@pytest.fixture
def api(node: EmbeddedNode) -> Caller:
    return Caller(node.socket)


needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")


# --- jobs -------------------------------------------------------------------------------------------------------------


def finished(api: Caller, *argv: str, **fields: object) -> str:
    made: str = api.ok("POST", "/v1/jobs", job(*argv, **fields), status=201)["job"]["id"]
    assert api.ok("GET", f"/v1/jobs/{made}/wait?timeout_s=30")["state"] in ("completed", "failed")
    return made


def test_a_job_from_submission_to_result(api: Caller) -> None:
    made = finished(api, "sh", "-c", "echo out; echo err >&2; exit 3")
    assert api.ok("GET", f"/v1/jobs/{made}")["spec"]["payload"]["argv"][0] == "sh"
    result = api.ok("GET", f"/v1/jobs/{made}/result")
    assert (result["state"], result["reason"]) == ("failed", "exit_code")
    assert (result["stdout"]["text"], result["stderr"]["text"]) == ("out\n", "err\n")
    assert result["execution"]["exit_code"] == 3
    assert api.ok("GET", f"/v1/jobs/{made}/result?attempt=1") == result
    assert api.problem("GET", f"/v1/jobs/{made}/result?attempt=2") == (404, "not_found")
    assert api.ok("POST", f"/v1/jobs/{made}/cancel")["outcome"] == "already_final"


def test_the_same_idempotency_key_is_the_same_job(api: Caller) -> None:
    body = job("echo", "once", idempotency_key="k1")
    first = api.ok("POST", "/v1/jobs", body, status=201)
    again = api.ok("POST", "/v1/jobs", body, status=200)
    assert (first["created"], again["created"]) == (True, False)
    assert first["job"]["id"] == again["job"]["id"]
    assert api.problem("POST", "/v1/jobs", {**body, "priority": 1}) == (409, "idempotency_conflict")


def test_several_jobs_are_accepted_all_or_none(api: Caller) -> None:
    jobs = [job("true", queue="batch", labels={"n": str(n)}) for n in range(BATCH_JOBS)]
    assert len(api.ok("POST", "/v1/jobs:batch", {"jobs": jobs}, status=201)["jobs"]) == BATCH_JOBS
    before = len(api.ok("GET", "/v1/jobs?queue=batch&limit=1000")["jobs"])
    for wrong in ([*jobs, job()], [], [job(queue="batch"), {"type": "shell", "payload": {}}]):
        assert api.problem("POST", "/v1/jobs:batch", {"jobs": wrong}) == (400, "invalid_request")
    assert len(api.ok("GET", "/v1/jobs?queue=batch&limit=1000")["jobs"]) == before == BATCH_JOBS


def test_pages_hold_every_job_once_in_order_and_filters_hold(api: Caller) -> None:
    made = [finished(api, "true", queue="pages", labels={"odd": str(n % 2)}) for n in range(7)]
    for order, expected in (("oldest", made), ("newest", made[::-1])):
        seen: list[str] = []
        cursor = ""
        while True:
            page = api.ok("GET", f"/v1/jobs?queue=pages&limit=2&order={order}{cursor}")
            seen += [view["id"] for view in page["jobs"]]
            if page["next_cursor"] is None:
                break
            cursor = f"&cursor={page['next_cursor']}"
        assert seen == expected
    assert len(api.ok("GET", "/v1/jobs?queue=pages&label=odd=1")["jobs"]) == 3
    assert (
        len(api.ok("GET", f"/v1/jobs?queue=pages&state=completed&state=failed&type=shell&owner={os.getuid()}")["jobs"])
        == 7
    )
    assert api.ok("GET", "/v1/jobs?queue=pages&state=running")["jobs"] == []


def test_logs_raw_by_stream_and_as_events_that_resume(api: Caller) -> None:
    made = finished(api, "sh", "-c", "for i in 1 2 3; do echo o$i; echo e$i >&2; done")
    target = f"/v1/jobs/{made}/logs"
    assert api.ask("GET", f"{target}?stream=stdout")[2] == b"o1\no2\no3\n"
    assert api.ask("GET", f"{target}?stream=stderr&follow=true")[2] == b"e1\ne2\ne3\n"
    assert sorted(api.ask("GET", target)[2].split()) == [b"e1", b"e2", b"e3", b"o1", b"o2", b"o3"]
    events = api.ask("GET", target, Accept="text/event-stream")[2].decode().split("\n\n")[:-1]
    ids = [event.partition("\n")[0].removeprefix("id: ") for event in events]
    assert len(set(ids)) == len(ids)
    assert events[0] == "id: 1.-1"  # where it begins, for one who comes back before there was anything
    rest = api.ask("GET", target, Accept="text/event-stream", Last_Event_ID=ids[2])[2].decode().split("\n\n")[:-1]
    assert rest == [f"id: {ids[2]}", *events[3:]]


def test_output_that_comes_while_it_is_followed_is_passed_on_at_once(api: Caller, tmp_path: Path) -> None:
    made = api.ok("POST", "/v1/jobs", job("sh", "-c", "echo first; sleep 60"), status=201)["job"]["id"]
    connection = http.client.HTTPConnection("jobs")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(20)
    connection.sock.connect(str(api.path))
    connection.request("GET", f"/v1/jobs/{made}/logs?follow=true")
    answer = connection.getresponse()
    assert answer.readline() == b"first\n", "while the job still runs"
    assert api.ok("POST", f"/v1/jobs/{made}/cancel")["outcome"] == "requested"
    assert answer.read() == b"", "the log ends with the job, whole"
    assert api.ok("GET", f"/v1/jobs/{made}/result?timeout_s=20")["reason"] == "cancelled"
    connection.close()


def test_what_is_not_there(api: Caller) -> None:
    for method, target in (
        ("GET", f"/v1/jobs/{ABSENT}"),
        ("GET", f"/v1/jobs/{ABSENT}/result"),
        ("GET", f"/v1/jobs/{ABSENT}/wait"),
        ("GET", f"/v1/jobs/{ABSENT}/logs"),
        ("GET", f"/v1/jobs/{ABSENT}/watch"),
        ("POST", f"/v1/jobs/{ABSENT}/cancel"),
        ("GET", f"/v1/jobs/{ABSENT}/explain"),
        ("POST", "/v1/workers/nobody/drain"),
        ("POST", "/v1/workers/nobody/resume"),
        ("GET", "/v1/kv?key=/data/nothing"),
    ):
        assert api.problem(method, target) == (404, "not_found"), target
    for method, target in (("POST", "/v1/leases/7/keepalive"), ("DELETE", "/v1/leases/7")):
        assert api.problem(method, target) == (404, "lease_not_found")


# --- other users ------------------------------------------------------------------------------------------------------


@needs_root
def test_a_stranger_sees_and_ends_only_their_own_jobs(api: Caller) -> None:
    foreign = finished(api, "echo", "secret", queue="private")
    for method, target in (
        ("GET", f"/v1/jobs/{foreign}"),
        ("GET", f"/v1/jobs/{foreign}/result"),
        ("GET", f"/v1/jobs/{foreign}/wait"),
        ("GET", f"/v1/jobs/{foreign}/logs"),
        ("GET", f"/v1/jobs/{foreign}/logs?follow=true"),
        ("GET", f"/v1/jobs/{foreign}/watch"),
        ("POST", f"/v1/jobs/{foreign}/cancel"),
        ("GET", "/v1/kv?key=/jobs/state/x"),
        ("GET", "/v1/kv:scan?prefix=/jobs/"),
        ("GET", "/v1/kv:scan?prefix=/"),
        ("GET", "/v1/kv:watch?key=/jobs/&prefix=true"),
        ("GET", f"/v1/jobs/{foreign}/explain"),
        ("POST", "/v1/workers/any/drain"),
        ("POST", "/v1/workers/any/resume"),
        *(("POST", f"/v1/queues/any/{what}") for what in ("pause", "resume", "drain", "open")),
        ("GET", "/v1/owners/0"),
    ):
        status, problem = api.as_stranger(method, target)
        assert (status, problem["code"]) == (403, "forbidden"), target
        assert "secret" not in str(problem)
    for method in ("PUT", "PATCH"):
        for target in ("/v1/queues/any", f"/v1/owners/{STRANGER}"):
            assert api.as_stranger(method, target, {"weight": 9})[1]["code"] == "forbidden"
    status, told = api.as_stranger("GET", "/v1/overview")
    assert (status, told["all_owners"], told["jobs"], told["failed"]) == (200, False, [], [])
    assert api.as_stranger("GET", f"/v1/owners/{STRANGER}")[0] == api.as_stranger("GET", "/v1/queues")[0] == 200
    status, page = api.as_stranger("GET", "/v1/jobs?queue=private")
    assert (status, page["jobs"]) == (200, [])
    status, own = api.as_stranger("POST", "/v1/jobs", job("true"))
    assert (status, own["job"]["owner"]) == (201, STRANGER)
    assert api.as_stranger("GET", f"/v1/jobs/{own['job']['id']}/wait")[0] == 200
    assert api.ok("GET", f"/v1/jobs/{own['job']['id']}")["job"]["owner"] == STRANGER, "an admin sees every job"


@needs_root
def test_idempotency_keys_of_two_users_do_not_meet(api: Caller) -> None:
    body = job("true", idempotency_key="common")
    mine = api.ok("POST", "/v1/jobs", body, status=201)["job"]["id"]
    status, other = api.as_stranger("POST", "/v1/jobs", body)
    assert (status, other["created"]) == (201, True)
    assert other["job"]["id"] != mine


# --- key-value, workers, node -----------------------------------------------------------------------------------------


def test_keys_are_put_read_scanned_deleted_and_compared(api: Caller) -> None:
    for name in "abc":
        api.ok("POST", "/v1/kv:put", {"key": f"/data/kv/{name}", "value": {"text": name}})
    api.ok("POST", "/v1/kv:put", {"key": "/data/kv/a", "value": {"base64": "/w=="}})
    now = api.ok("GET", "/v1/kv?key=/data/kv/a")
    assert (now["value"], now["version"]) == ({"base64": "/w=="}, 2)
    assert api.ok("GET", f"/v1/kv?key=/data/kv/a&revision={now['create_revision']}")["value"]["text"] == "a"
    page = api.ok("GET", "/v1/kv:scan?prefix=/data/kv/&limit=2")
    rest = api.ok("GET", f"/v1/kv:scan?prefix=/data/kv/&limit=2&keys_only=true&cursor={page['next_cursor']}")
    assert [kv["key"] for kv in page["kvs"] + rest["kvs"]] == ["/data/kv/a", "/data/kv/b", "/data/kv/c"]
    txn = {
        "compare": [{"key": "/data/kv/a", "target": "version", "number": 2}],
        "then": [{"delete": {"key": "/data/kv/", "prefix": True}}, {"get": "/data/kv/b"}],
        "otherwise": [{"get": "/data/kv/b"}],
    }
    done = api.ok("POST", "/v1/kv:txn", txn)
    assert (done["succeeded"], done["results"]) == (True, [{"deleted": 3, "kv": None}, {"deleted": None, "kv": None}])
    assert api.ok("POST", "/v1/kv:txn", txn)["succeeded"] is False
    assert api.ok("POST", "/v1/kv:delete", {"key": "/data/kv/a"})["results"][0]["deleted"] == 0
    assert api.problem("POST", "/v1/kv:put", {"key": "/jobs/state/x", "value": {"text": ""}}) == (403, "forbidden")
    large = {"key": "/data/large", "value": {"text": "x" * ((1 << 20) + 1)}}
    assert api.problem("POST", "/v1/kv:put", large) == (413, "payload_too_large")


def test_a_lease_is_made_kept_and_ended(api: Caller) -> None:
    lease = api.ok("POST", "/v1/leases", {"ttl_s": 30}, status=201)["id"]
    api.ok("POST", "/v1/kv:put", {"key": "/data/leased", "value": {"text": ""}, "lease": lease})
    assert 25 < api.ok("POST", f"/v1/leases/{lease}/keepalive")["remaining_s"] <= 30
    assert api.ask("DELETE", f"/v1/leases/{lease}")[0] == 204
    assert api.problem("GET", "/v1/kv?key=/data/leased") == (404, "not_found")
    late = {"key": "/data/leased", "value": {"text": ""}, "lease": lease}
    assert api.problem("POST", "/v1/kv:put", late) == (404, "lease_not_found")


def test_workers_health_and_readiness(api: Caller) -> None:
    (worker,) = api.ok("GET", "/v1/workers")["workers"]
    assert (worker["type"], worker["state"]) == ("shell", "ready")
    assert api.ok("GET", "/v1/health")["status"] == api.ok("GET", "/v1/ready")["status"] == "ok"


def test_an_overview_a_queue_an_owner_and_an_explanation_are_as_the_document_says(api: Caller) -> None:
    made = finished(api, "sh", "-c", "exit 3", queue="over/view")
    told = api.ok("GET", "/v1/overview?queues=1&workers=1&jobs=0&failed=100")
    assert (len(told["queues"]) <= 1, len(told["workers"]), told["jobs"]) == (True, 1, [])
    assert made in [letter["id"] for letter in told["failed"]]
    assert api.problem("GET", "/v1/overview?jobs=101") == (400, "invalid_request")
    assert api.ok("GET", "/v1/queues/over%2Fview")["name"] == "over/view"
    assert api.ok("GET", f"/v1/owners/{os.getuid()}")["uid"] == os.getuid()
    assert api.ok("GET", f"/v1/jobs/{made}/explain")["attempts"][0]["execution"]["exit_code"] == 3


def test_metrics_are_what_prometheus_reads(api: Caller) -> None:
    finished(api)
    status, kind, content = api.ask("GET", "/metrics")
    assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
    families = {family.name: family for family in text_string_to_metric_families(content.decode())}
    requests = {(s.labels["route"], s.labels["status"]): s.value for s in families["jobs_api_requests"].samples}
    assert requests["/v1/jobs", "201"] >= 1
    assert requests["/v1/jobs/{id}/wait", "200"] >= 1
    assert all(family.documentation for family in families.values())
    assert families["jobs_api_connections"].samples[0].value >= 1


def test_the_document_has_every_route_and_is_sound(api: Caller) -> None:
    operations = {(method.upper(), path) for path, methods in api.document["paths"].items() for method in methods}
    assert operations == {(route.method, route.path) for route in ROUTES}
    for name in api.document["components"]["schemas"]:
        schema = {"$ref": f"#/components/schemas/{name}", "components": api.document["components"]}
        jsonschema_rs.validator_for(schema)
    assert "\\\\Z" not in json.dumps(api.document), "a pattern in the document is one of ECMA-262"


# --- the socket -------------------------------------------------------------------------------------------------------


def test_the_socket_has_its_mode_and_is_gone_after_a_stop(tmp_path: Path) -> None:
    with EmbeddedNode(tmp_path / "node") as node:
        assert stat.S_IMODE(node.socket.stat().st_mode) == 0o660
        second = subprocess.run(
            [sys.executable, "-m", "jobs.node", "--embedded", str(node.directory)],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        assert second.returncode != 0
        with node.client() as client:
            assert client.health().status == "ok", "the first node was not disturbed"
        node.kill()
        assert node.socket.exists()
        node.start()
        assert node.stop() == 0
        assert not node.socket.exists()
        records = [json.loads(line) for line in node.log_file.read_text().splitlines()]
        assert [r for r in records if "asyncio" in str(r) or "aiohttp" in str(r) or "Traceback" in str(r)] == []


def test_a_stop_does_not_wait_for_streams_and_long_polls(tmp_path: Path) -> None:
    with EmbeddedNode(tmp_path / "node") as node:
        made = Caller(node.socket).ok("POST", "/v1/jobs", job("true", requires={"labels": {"none": "has"}}), status=201)
        held = []
        for target in ("/v1/jobs:watch", f"/v1/jobs/{made['job']['id']}/wait?timeout_s=300"):
            held.append(socket.socket(socket.AF_UNIX))
            held[-1].connect(str(node.socket))
            held[-1].sendall(f"GET {target} HTTP/1.1\r\nHost: jobs\r\n\r\n".encode())
        assert held[0].recv(1), "the stream is open"
        began = time.monotonic()
        assert node.stop() == 0
        assert time.monotonic() - began < STOP_GRACE_S
        for one in held:
            one.close()


def test_a_low_soft_limit_of_descriptors_does_not_bound_the_connections(tmp_path: Path) -> None:
    with EmbeddedNode(tmp_path / "node", prefix=("prlimit", "--nofile=200:4096")) as node:
        caller = Caller(node.socket)
        held = []
        for _ in range(400):
            held.append(socket.socket(socket.AF_UNIX))
            held[-1].connect(str(node.socket))
        assert caller.ok("GET", "/v1/health")["status"] == "ok"
        made = finished(caller, "echo", "served")
        assert caller.ok("GET", f"/v1/jobs/{made}/result")["stdout"]["text"] == "served\n"
        for one in held:
            one.close()


def until_status(caller: Caller, status: int) -> None:
    """Ask until this is the answer; a connection closed without one counts as none."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with suppress(ConnectionError):
            if caller.ask("GET", "/v1/health")[0] == status:
                return
    raise AssertionError(f"no answer with status {status} within 10 s")


def test_a_low_hard_limit_of_descriptors_leaves_the_node_its_files(tmp_path: Path) -> None:
    with EmbeddedNode(tmp_path / "node", prefix=("prlimit", "--nofile=300:300")) as node:
        caller = Caller(node.socket)
        held = []
        for _ in range(350):
            held.append(socket.socket(socket.AF_UNIX))
            held[-1].connect(str(node.socket))
        until_status(caller, 429)
        for one in held:
            one.close()
        until_status(caller, 200)
        made = finished(caller, "echo", "served")
        assert caller.ok("GET", f"/v1/jobs/{made}/result")["stdout"]["text"] == "served\n"
