"""Sends spans to a collector: in batches, beside everything else, and never at the cost of it.

What waits is bounded. A collector that is slow, refuses or is away loses spans, which are counted, and nothing else.
"""

from __future__ import annotations

import asyncio
import gzip
import logging
import random
import re
import ssl
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import aiohttp
from msgspec import Struct

from jobs.tracing import otlp
from jobs.tracing.spans import Span, Value

logger = logging.getLogger(__name__)

BATCH: Final = 512
"""Spans of one request at most."""
REQUEST_TIMEOUT_S: Final = 10.0
STOP_TIMEOUT_S: Final = 2.0
"""For what waits when the node stops."""
MAX_TRIES: Final = 6
FIRST_PAUSE_S: Final = 1.0
MAX_PAUSE_S: Final = 30.0
MAX_ANSWER_BYTES: Final = 64 << 10
GZIP_LEVEL: Final = 1
TRACES_PATH: Final = "/v1/traces"
"""Where collectors take spans, below the address that they are known by."""
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")


class ExporterConfig(Struct, frozen=True, kw_only=True):
    """Where spans go, and what is said with them."""

    url: str
    headers: Mapping[str, str] = {}
    ca_file: Path | None = None
    """Certificates that the collector's is checked against, in place of the system's."""
    resource: Mapping[str, Value] = {}
    version: str = ""
    max_spans: int = 8_192
    """That wait to be sent; more are dropped."""
    interval_s: float = 2.0
    """Spans wait so long for others to be sent with."""


class TracingError(Exception):
    """What is configured of the exporter cannot be used; the text says what."""


def traces_url(endpoint: str) -> str:
    """Return where spans go of an endpoint that may be given without a path."""
    return endpoint if urlsplit(endpoint).path.strip("/") else endpoint.rstrip("/") + TRACES_PATH


def read_headers(file: Path) -> dict[str, str]:
    """Return the headers that a file has, one a line. Raises TracingError."""
    try:
        lines = file.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TracingError(f"tracing.headers_file: {file} cannot be read: {error}") from error
    headers: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, colon, value = line.partition(":")
        if not colon or _HEADER_NAME.fullmatch(name) is None or not value.strip().isprintable():
            raise TracingError(
                f"tracing.headers_file: line {number} of {file} is no header, as in Authorization: VALUE"
            )
        headers[name] = value.strip()
    return headers


class _Refused(Exception):
    """The collector does not want the spans."""


class _Later(Exception):
    """The collector may take them later, after so many seconds at least."""

    def __init__(self, why: str, after_s: float = 0.0) -> None:
        super().__init__(why)
        self.after_s = after_s


class Exporter:
    """The spans that wait, and the task that sends them."""

    def __init__(self, config: ExporterConfig) -> None:
        """Raises TracingError for certificates that cannot be used."""
        self._config = config
        try:
            self._ssl = ssl.create_default_context(cafile=config.ca_file)
        except (OSError, ValueError) as error:
            raise TracingError(f"tracing.ca_file: {config.ca_file} cannot be used: {error}") from error
        self._waiting: deque[Span] = deque()
        self._some = asyncio.Event()
        self._many = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._is_stopping = False
        self._is_failing = False
        self.exported_total = 0
        self.failed_requests_total = 0
        self.dropped_total: dict[str, float] = {"queue_full": 0, "rejected": 0, "unreachable": 0}

    def add(self, spans: Iterable[Span]) -> None:
        """Have spans sent; those that there is no room for are dropped."""
        for span in spans:
            if len(self._waiting) >= self._config.max_spans:
                self.dropped_total["queue_full"] += 1
            else:
                self._waiting.append(span)
        if self._waiting:
            self._some.set()
        if len(self._waiting) >= BATCH:
            self._many.set()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Send what waits, if that is quickly done."""
        self._is_stopping = True
        self._some.set()
        self._many.set()
        if self._task is None:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await asyncio.shield(self._task)
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
        connector = aiohttp.TCPConnector(limit=1, ssl=self._ssl)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            while await self._next():
                batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
                try:
                    await self._send(session, batch)
                except Exception:
                    self.dropped_total["rejected"] += len(batch)
                    logger.exception("spans could not be exported")

    async def _next(self) -> bool:
        """Wait until there is something to send; False when nothing is any more."""
        if not self._waiting:
            self._some.clear()
            if not self._is_stopping:
                await self._some.wait()
        if len(self._waiting) < BATCH and not self._is_stopping:
            self._many.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._config.interval_s):
                    await self._many.wait()
        return bool(self._waiting) or not self._is_stopping

    async def _send(self, session: aiohttp.ClientSession, batch: Sequence[Span]) -> None:
        """Send a batch, again where that may help, and drop it in the end."""
        body = await asyncio.to_thread(self._body, batch)
        pause_s = FIRST_PAUSE_S
        for number in range(1, MAX_TRIES + 1):
            try:
                lost = await self._post(session, body)
            except _Refused as error:
                self._on_failure(str(error))
                self.dropped_total["rejected"] += len(batch)
                return
            except _Later as error:
                self._on_failure(str(error))
                if number == MAX_TRIES or self._is_stopping:
                    break
                await self._pause(max(error.after_s, pause_s * (0.5 + random.random() / 2)))  # noqa: S311 - jitter
                pause_s = min(2 * pause_s, MAX_PAUSE_S)
            else:
                self._on_success()
                self.exported_total += len(batch) - lost
                self.dropped_total["rejected"] += lost
                return
        self.dropped_total["unreachable"] += len(batch)

    async def _pause(self, seconds: float) -> None:
        """Wait, but not on when the node stops."""
        self._many.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(min(seconds, MAX_PAUSE_S)):
                while not self._is_stopping:
                    self._many.clear()
                    await self._many.wait()

    def _body(self, batch: Sequence[Span]) -> bytes:
        return gzip.compress(otlp.encode(batch, self._config.resource, self._config.version), GZIP_LEVEL)

    async def _post(self, session: aiohttp.ClientSession, body: bytes) -> int:
        """Return how many of the spans were not taken."""
        headers = {**self._config.headers, "Content-Type": "application/json", "Content-Encoding": "gzip"}
        try:
            async with session.post(
                self._config.url, data=body, headers=headers, allow_redirects=False, skip_auto_headers=["Accept"]
            ) as answer:
                text = await answer.content.read(MAX_ANSWER_BYTES)
                if answer.status in otlp.RETRYABLE:
                    raise _Later(f"it answers {answer.status}", _seconds(answer.headers.get("Retry-After")))
                if answer.status >= 300:
                    raise _Refused(f"it answers {answer.status}: {text[:200].decode(errors='replace')}")
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise _Later(str(error) or type(error).__name__) from error
        lost, why = otlp.rejected(text)
        if lost:
            logger.warning("the collector did not take %d spans: %s", lost, why)
        return lost

    def _on_failure(self, why: str) -> None:
        self.failed_requests_total += 1
        if not self._is_failing:
            self._is_failing = True
            logger.warning("spans cannot be exported: %s", why, extra={"endpoint": self._config.url})

    def _on_success(self) -> None:
        if self._is_failing:
            self._is_failing = False
            logger.info("spans are exported again", extra={"endpoint": self._config.url})

    def metrics(self) -> dict[str, tuple[str, float]]:
        return {
            "jobs_tracing_spans_waiting": ("Spans that wait to be exported", self.waiting),
            "jobs_tracing_spans_exported_total": ("Spans that the collector has taken", self.exported_total),
            "jobs_tracing_failed_requests_total": ("Exports that failed, each try", self.failed_requests_total),
        }

    def labelled_metrics(self) -> dict[str, tuple[str, str, dict[str, float]]]:
        dropped = dict(self.dropped_total)
        return {"jobs_tracing_spans_dropped_total": ("Spans that nobody has got", "cause", dropped)}


def _seconds(text: str | None) -> float:
    """Return what Retry-After says in seconds; 0 for a date, which collectors do not send."""
    return float(text) if text is not None and text.isascii() and text.isdigit() else 0.0
