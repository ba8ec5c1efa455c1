"""A collector of OpenTelemetry as a process of its own: takes OTLP/HTTP in JSON, strictly, and tells what it got.

`python -m tests.support.collector FILE PORT ANSWERS` adds the port to FILE as a line, and then each span that it has
taken as a line of JSON. ANSWERS are statuses for the first requests, such as `503,200`; those after them are answered
with 200.
"""

from __future__ import annotations

import contextlib
import gzip
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct, field

from tests.support.waiting import until

Digits = Annotated[str, Meta(pattern=r"^[0-9]+\Z")]
TraceId = Annotated[str, Meta(pattern=r"^(?!0{32})[0-9a-f]{32}\Z")]
SpanId = Annotated[str, Meta(pattern=r"^(?!0{16})[0-9a-f]{16}\Z")]


class _Strict(Struct, forbid_unknown_fields=True, rename="camel"):
    pass


class AnyValue(_Strict):
    string_value: str | None = None
    bool_value: bool | None = None
    int_value: Annotated[str, Meta(pattern=r"^-?[0-9]+\Z")] | None = None
    double_value: float | None = None

    def value(self) -> Any:
        given = [value for value in (self.string_value, self.bool_value, self.double_value) if value is not None]
        given += [] if self.int_value is None else [int(self.int_value)]
        (value,) = given
        return value


class KeyValue(_Strict):
    key: str
    value: AnyValue


class SpanLink(_Strict):
    trace_id: TraceId
    span_id: SpanId
    flags: int = 0
    trace_state: str = ""


class Status(_Strict):
    code: int
    message: str = ""


class OtlpSpan(_Strict):
    trace_id: TraceId
    span_id: SpanId
    name: str
    kind: Annotated[int, Meta(ge=1, le=5)]
    start_time_unix_nano: Digits
    end_time_unix_nano: Digits
    parent_span_id: SpanId | None = None
    trace_state: str = ""
    flags: int = 0
    attributes: list[KeyValue] = []
    links: list[SpanLink] = []
    status: Status | None = None


class Scope(_Strict):
    name: str
    version: str


class ScopeSpans(_Strict):
    scope: Scope
    spans: list[OtlpSpan]


class Resource(_Strict):
    attributes: list[KeyValue]


class ResourceSpans(_Strict):
    resource: Resource
    scope_spans: list[ScopeSpans]


class Export(_Strict):
    resource_spans: list[ResourceSpans]


class Got(Struct, frozen=True, kw_only=True):
    """A span as the collector took it."""

    trace: str
    id: str
    parent: str | None
    name: str
    kind: int
    start_ns: int
    end_ns: int
    state: str
    attributes: dict[str, Any]
    links: list[tuple[str, str]]
    error: str | None
    resource: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)


def spans_of(body: bytes, headers: dict[str, str]) -> list[Got]:
    """Return the spans of a request. Raises msgspec.ValidationError for what OTLP does not have."""
    found = []
    for resource in msgspec.json.decode(body, type=Export).resource_spans:
        about = {item.key: item.value.value() for item in resource.resource.attributes}
        for span in (span for scope in resource.scope_spans for span in scope.spans):
            assert int(span.start_time_unix_nano) <= int(span.end_time_unix_nano), span
            failed = span.status is not None and span.status.code == 2
            found.append(
                Got(
                    trace=span.trace_id,
                    id=span.span_id,
                    parent=span.parent_span_id,
                    name=span.name,
                    kind=span.kind,
                    start_ns=int(span.start_time_unix_nano),
                    end_ns=int(span.end_time_unix_nano),
                    state=span.trace_state,
                    attributes={item.key: item.value.value() for item in span.attributes},
                    links=[(link.trace_id, link.span_id) for link in span.links],
                    error=span.status.message if failed and span.status is not None else None,
                    resource=about,
                    headers=headers,
                )
            )
    return found


def serve(file: Path, port: int, answers: list[int]) -> None:
    """Serve until a signal ends the process."""
    out = file.open("ab", buffering=0)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status = answers.pop(0) if answers else 200
            answer = b"{}"
            if self.path != "/v1/traces" or self.headers["Content-Type"] != "application/json":
                status = 404
            elif status == 200:
                if self.headers["Content-Encoding"] == "gzip":
                    body = gzip.decompress(body)
                named = {name.lower(): value for name, value in self.headers.items()}
                try:
                    spans = spans_of(body, named)
                except Exception as error:
                    status, answer = 400, msgspec.json.encode({"code": 3, "message": str(error)})
                else:
                    out.write(b"".join(msgspec.json.encode(span) + b"\n" for span in spans))
            self.send_response(status)
            if status == 503:
                self.send_header("Retry-After", "0")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *about: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    out.write(f"{server.server_address[1]}\n".encode())
    server.serve_forever()


class Collector:
    """The process, which may end and come back at the same port."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, *answers: int) -> Collector:
        begun = self._lines()
        statuses = ",".join(map(str, answers))
        command = [sys.executable, "-m", "tests.support.collector", str(self.file), str(self.port), statuses]
        self._process = subprocess.Popen(command)
        until(lambda: len(self._lines()) > len(begun))
        self.port = int(self._lines()[len(begun)])
        return self

    def stop(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._process = None

    def spans(self) -> list[Got]:
        """Return what was taken so far."""
        return [msgspec.json.decode(line, type=Got) for line in self._lines() if line.startswith(b"{")]

    def of(self, trace: str, ended: Sequence[str] = ()) -> dict[str, list[Got]]:
        """Return the spans of a trace by name, in the order of their beginnings, once each job named has ended."""
        found: list[Got] = []

        def all_there() -> bool:
            found[:] = [span for span in self.spans() if span.trace == trace]
            jobs = {span.attributes.get("jobs.job.id") for span in found if span.name.startswith("job ")}
            return jobs >= set(ended)

        until(all_there, otherwise=f"not all spans of {trace} came: {ended}")
        named: dict[str, list[Got]] = {}
        for span in sorted(found, key=lambda span: (span.start_ns, span.end_ns)):
            named.setdefault(span.name, []).append(span)
        return named

    def _lines(self) -> list[bytes]:
        data = self.file.read_bytes() if self.file.exists() else b""
        return data[: data.rfind(b"\n") + 1].splitlines()

    def __enter__(self) -> Collector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self.stop()


@contextlib.contextmanager
def collector(directory: Path, *answers: int) -> Iterator[Collector]:
    """Run a collector for as long as the context lasts."""
    with Collector(directory / "spans.jsonl") as made:
        yield made.start(*answers)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]), [int(status) for status in sys.argv[3].split(",") if status])
