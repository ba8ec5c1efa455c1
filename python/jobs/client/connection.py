"""Connections of the synchronous client: one request at a time on each, kept for the next one."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from jobs.client.failures import gone, unreachable
from jobs.client.http1 import ProtocolError, ResponseReader, body_headers, encode_chunk, encode_head, encode_request
from jobs.client.requests import Request
from jobs.client.sources import Opened

READ_BYTES: Final = 256 << 10
MAX_IDLE: Final = 8
CONNECT_TIMEOUT_S: Final = 30
SLOWEST_BYTES_PER_S: Final = 1 << 20
"""At which the nodes are expected to put away what was sent to them."""


class Connections:
    """Opens connections to a Unix socket and keeps those that can carry another request."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.met = False
        """Whether the node was reached before."""
        self._idle: list[socket.socket] = []
        self._lock = threading.Lock()

    @contextmanager
    def exchange(self, request: Request, content: Opened | None = None) -> Iterator[Answer]:
        """Send a request, with the content as its body if it has one, and give its answer, whose head has come.

        Raises ConnectionFailed, and what reading the content raises.
        """
        connection = self._take(request.timeout_s)
        answer = Answer(connection)
        try:
            if content is None:
                _send(connection, request)
            else:
                _send_content(connection, request, content, answer)
            answer.read_head()
            yield answer
        except (OSError, ProtocolError) as error:
            raise gone(error) from error
        finally:
            self._give_back(connection, reusable=answer.is_reusable)

    def close(self) -> None:
        """Close what is kept."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _take(self, timeout_s: float) -> socket.socket:
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                return self._connect(timeout_s)
            if _is_quiet(connection):
                connection.settimeout(timeout_s)
                return connection
            connection.close()

    def _connect(self, timeout_s: float) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # A socket that does not block is refused when the node has many to accept; one that does waits its turn.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", CONNECT_TIMEOUT_S, 0))
            connection.connect(self.path)
            connection.settimeout(timeout_s)
        except OSError as error:
            connection.close()
            raise unreachable(self.path, error) from error
        self.met = True
        return connection

    def _give_back(self, connection: socket.socket, *, reusable: bool) -> None:
        if reusable:
            with self._lock:
                if len(self._idle) < MAX_IDLE:
                    self._idle.append(connection)
                    return
        connection.close()


class Answer:
    """An answer that is being read."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._reader = ResponseReader()
        self._first = b""

    @property
    def status(self) -> int:
        return self._reader.status

    @property
    def headers(self) -> Mapping[str, str]:
        return self._reader.headers

    @property
    def is_reusable(self) -> bool:
        return self._reader.is_reusable

    def may_send(self) -> bool:
        """Wait until the node takes the body; False when it has answered instead."""
        while not (self._reader.status or self._reader.may_send):
            self._first = self._receive()
        return not self._reader.status

    def read_head(self) -> None:
        while not self._reader.status:
            self._first = self._receive()

    def pieces(self) -> Iterator[bytes]:
        """Yield the body as it comes."""
        if self._first:
            yield self._first
        while not self._reader.is_complete:
            yield self._receive()

    def _receive(self) -> bytes:
        data = self._connection.recv(READ_BYTES)
        if not data:
            self._reader.end()
        return self._reader.feed(data)


def _send(connection: socket.socket, request: Request) -> None:
    """Send a request. A node that refuses it early stops reading; its answer tells why, so that is no failure."""
    try:
        connection.sendall(encode_request(request.method, request.target, request.headers, request.body))
    except (BrokenPipeError, ConnectionResetError):
        return


def _send_content(connection: socket.socket, request: Request, content: Opened, answer: Answer) -> None:
    """Send a request and, when the node has agreed to take it, its body."""
    headers = {**request.headers, **body_headers(content.size_bytes)}
    try:
        connection.sendall(encode_head(request.method, request.target, headers))
        if not answer.may_send():
            return
        while piece := content.read():
            connection.sendall(piece if content.size_bytes is not None else encode_chunk(piece))
            content.on_sent()
        if content.size_bytes is None:
            connection.sendall(encode_chunk(b""))
    except (BrokenPipeError, ConnectionResetError):
        return  # as above
    # It is now put on disks, here and elsewhere.
    connection.settimeout(request.timeout_s + content.read_bytes / SLOWEST_BYTES_PER_S)


def _is_quiet(connection: socket.socket) -> bool:
    """Tell whether a kept connection is still open with nothing on it; the node closes idle ones after a while."""
    connection.setblocking(False)
    try:
        connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
