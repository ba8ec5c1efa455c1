"""The API against its own OpenAPI document: whatever is sent, the answer is one of it, and never a 5xx but 507.

JOBS_TEST_SEED replays a run, JOBS_TEST_SCALE multiplies the number of examples.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from requests import Session
from requests.adapters import HTTPAdapter
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool

from jobs.api.openapi import document
from jobs.client import shell_job
from jobs.protocol.model import Schedule
from jobs.testing import EmbeddedNode

SEED: Final = int(os.environ.get("JOBS_TEST_SEED", "20261124"))
SCALE: Final = int(os.environ.get("JOBS_TEST_SCALE", "1"))
EXAMPLES: Final = 25 * SCALE
FULL: Final = 507


def no_fault(context: Any, answer: Any, case: Any) -> bool | None:
    """No room is no fault: the examples set what an owner's blobs may take, too."""
    return None if answer.status_code == FULL else not_a_server_error(context, answer, case)


CHECKS: Final = [
    no_fault,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
FOLLOWED: Final = ("watch_jobs", "watch_job", "kv_watch")
"""Operations whose success does not end; their errors are tested elsewhere."""
SETTINGS: Final = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)

loaded: Any = schemathesis.openapi.from_dict(json.loads(document()))
OPERATIONS: Final[list[Any]] = [
    found.ok() for found in loaded.get_all_operations() if found.ok().definition.raw["operationId"] not in FOLLOWED
]


class UnixConnection(HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("jobs", timeout=20)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(str(self._path))


class UnixPool(HTTPConnectionPool):
    def __init__(self, path: Path) -> None:
        super().__init__("jobs")
        self._path = path

    def _new_conn(self) -> UnixConnection:
        return UnixConnection(self._path)


class UnixAdapter(HTTPAdapter):
    """Carries requests over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._pool = UnixPool(path)

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> UnixPool:
        return self._pool

    def close(self) -> None:
        self._pool.close()


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedNode]:
    print(f"JOBS_TEST_SEED={SEED}")
    with EmbeddedNode(tmp_path_factory.mktemp("fuzz") / "node") as made:
        yield made
        assert "incident" not in made.log_file.read_text()


@pytest.fixture(scope="module")
def session(node: EmbeddedNode) -> Iterator[Session]:
    with Session() as made:
        made.mount("http://", UnixAdapter(node.socket))
        yield made


@pytest.fixture(scope="module")
def existing(node: EmbeddedNode) -> dict[str, str]:
    """Ids of things that are there, by the beginning of their paths."""
    with node.client() as client:
        made = client.shell(["echo", "out"]).job.id
        assert client.wait(made).state == "completed"
        client.schedules.set("weekly", Schedule(job=shell_job(["true"]), cron="@weekly"))
        blob = client.blobs.put(b"content", tag="kept").hash
        return {
            "jobs": made,
            "leases": str(client.kv.grant(3600).id),
            "schedules": "weekly",
            "blobs": blob,
            "blob-tags": "kept",
        }


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.definition.raw["operationId"])
@pytest.mark.parametrize("mode", schemathesis.GenerationMode, ids=lambda mode: mode.value)
def test_every_answer_is_one_of_the_document(
    operation: Any, mode: Any, session: Session, existing: dict[str, str]
) -> None:
    @seed(SEED)
    @SETTINGS
    @given(case=operation.as_strategy(generation_mode=mode), exists=st.booleans())
    def examples(case: Any, exists: bool) -> None:
        found = existing.get(operation.path.split("/")[2])
        if exists and found is not None and "id" in (case.path_parameters or {}):
            case.path_parameters["id"] = found
        print(f"JOBS_TEST_SEED={SEED} {case.as_curl_command()[:2000]}")
        answer = case.call(base_url="http://jobs", session=session)
        case.validate_response(answer, checks=CHECKS)

    if mode is schemathesis.GenerationMode.NEGATIVE and not (operation.body or operation.query or operation.headers):
        pytest.skip("nothing can be wrong with what is not sent")
    examples()


@seed(SEED)
@SETTINGS
@given(head=st.binary(max_size=300), body=st.binary(max_size=300))
def test_bytes_of_any_kind_are_answered_or_refused(node: EmbeddedNode, head: bytes, body: bytes) -> None:
    """Random bytes as a request, then as the body of one: an answer below 500, or a closed connection."""
    for data, whole in (
        (head + b"\r\n\r\n", False),
        (b"POST /v1/jobs HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body, True),
    ):
        with socket.socket(socket.AF_UNIX) as made:
            made.settimeout(20)
            made.connect(str(node.socket))
            made.sendall(data)
            if not whole:
                made.shutdown(socket.SHUT_WR)
            answer = made.recv(100)
            assert (not answer and not whole) or re.match(rb"HTTP/1\.[01] 4\d\d ", answer), (SEED, data, answer)
