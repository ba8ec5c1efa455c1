"""HTTP/1.1 as a client of the node needs it (RFC 9112), pure: requests to bytes, bytes to answers.

The standard library's http.client is slow to import and costs a short request more than all the rest;
see docs/decisions/0007-own-http-reader.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

MAX_HEAD_BYTES: Final = 64 << 10
MAX_CHUNK_LINE_BYTES: Final = 1 << 10
BODY_TYPE: Final = "application/octet-stream"
"""Of a body that is nothing but content."""
_BODILESS: Final = (204, 304)


class ProtocolError(Exception):
    """What came is not HTTP, or ended too early."""


def encode_request(method: str, target: str, headers: Mapping[str, str], body: bytes | None) -> bytes:
    """Return a request as it goes over the wire; `target` is quoted already."""
    length = {} if body is None else {"Content-Length": str(len(body))}
    return encode_head(method, target, {**headers, **length}) + (body or b"")


def encode_head(method: str, target: str, headers: Mapping[str, str]) -> bytes:
    """Return the head of a request whose body follows it, by the length or in the chunks that the headers tell."""
    head = [f"{method} {target} HTTP/1.1", "Host: localhost", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join((*head, "\r\n")).encode("ascii")


def body_headers(size_bytes: int | None) -> dict[str, str]:
    """Return how a body is told that is sent once the node says so."""
    length = {"Transfer-Encoding": "chunked"} if size_bytes is None else {"Content-Length": str(size_bytes)}
    return {"Expect": "100-continue", "Content-Type": BODY_TYPE, **length}


def encode_chunk(data: bytes) -> bytes:
    """Return a chunk of a chunked body; the empty one is its end."""
    return b"%x\r\n" % len(data) + data + b"\r\n"


class ResponseReader:
    """Reads one answer, however its bytes are cut: each state is the method that reads the next thing."""

    def __init__(self) -> None:
        self.status = 0
        """0 until the head has come."""
        self.headers: dict[str, str] = {}
        """By name in lower case."""
        self.may_send = False
        """The node waits for the body."""
        self.is_complete = False
        self._buffer = bytearray()
        self._left_bytes = 0
        self._may_go_on = False
        self._ends_with_connection = False
        self._state: Callable[[bytearray], bool] = self._read_head

    @property
    def is_reusable(self) -> bool:
        """Whether the connection can carry another request."""
        return self.is_complete and self._may_go_on and not self._buffer

    def feed(self, data: bytes) -> bytes:
        """Return the part of the body that `data` brings. Raises ProtocolError."""
        self._buffer += data
        body = bytearray()
        while not self.is_complete and self._state(body):
            pass
        return bytes(body)

    def end(self) -> None:
        """Take note that the connection has ended. Raises ProtocolError unless the answer is whole."""
        if not (self.is_complete or self._ends_with_connection):
            raise ProtocolError("it ended in the middle of an answer" if self.status else "it ended without an answer")
        self.is_complete = True

    def _read_head(self, _body: bytearray) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end > MAX_HEAD_BYTES or (end < 0 and len(self._buffer) > MAX_HEAD_BYTES):
            raise ProtocolError(f"the answer's head is longer than {MAX_HEAD_BYTES} bytes")
        if end < 0:
            return False
        first, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
        del self._buffer[: end + 4]
        version, _, rest = first.partition(" ")
        code = rest[:3]
        if version not in ("HTTP/1.1", "HTTP/1.0") or not (code.isascii() and code.isdigit() and len(code) == 3):
            raise ProtocolError(f"an answer does not begin with {first[:80]!r}")
        headers = _headers(lines)
        if code[0] == "1":
            self.may_send |= code == "100"
            return True  # informational: the answer itself follows
        self.status, self.headers = int(code), headers
        self._may_go_on = version == "HTTP/1.1" and headers.get("connection", "").lower() != "close"
        self._choose_body()
        return True

    def _choose_body(self) -> None:
        coding, length = self.headers.get("transfer-encoding"), self.headers.get("content-length")
        if self.status in _BODILESS:
            self.is_complete = True
        elif coding is not None:
            if coding.lower() != "chunked":
                raise ProtocolError(f"the transfer coding {coding[:80]!r} is not known")
            self._state = self._read_chunk_size
        elif length is not None:
            if not (length.isascii() and length.isdigit() and len(length) < 19):
                raise ProtocolError(f"{length[:80]!r} is no length")
            self._left_bytes = int(length)
            self.is_complete = self._left_bytes == 0
            self._state = self._read_length
        else:
            self._ends_with_connection, self._may_go_on = True, False
            self._state = self._read_rest

    def _read_length(self, body: bytearray) -> bool:
        self._take(body)
        self.is_complete = self._left_bytes == 0
        return False

    def _read_rest(self, body: bytearray) -> bool:
        body += self._buffer
        self._buffer.clear()
        return False

    def _read_chunk_size(self, _body: bytearray) -> bool:
        size_line = self._line()
        if size_line is None:
            return False
        digits = size_line.partition(b";")[0].strip()
        if not 0 < len(digits) <= 15 or digits.strip(b"0123456789abcdefABCDEF"):
            raise ProtocolError(f"{bytes(digits[:80])!r} is no size of a chunk")
        self._left_bytes = int(digits, 16)
        self._state = self._read_chunk if self._left_bytes else self._read_trailer
        return True

    def _read_chunk(self, body: bytearray) -> bool:
        self._take(body)
        if self._left_bytes:
            return False
        self._state = self._read_chunk_end
        return True

    def _read_chunk_end(self, _body: bytearray) -> bool:
        line = self._line()
        if line:
            raise ProtocolError("a chunk is longer than its size")
        self._state = self._read_chunk_size if line is not None else self._state
        return line is not None

    def _read_trailer(self, _body: bytearray) -> bool:
        line = self._line()
        self.is_complete = line == b""
        return line is not None

    def _take(self, body: bytearray) -> None:
        """Move what there is of a part with a known length."""
        piece = self._buffer[: self._left_bytes]
        body += piece
        self._left_bytes -= len(piece)
        del self._buffer[: len(piece)]

    def _line(self) -> bytes | None:
        """Return the next line without its end, None while it is not whole."""
        end = self._buffer.find(b"\r\n", 0, MAX_CHUNK_LINE_BYTES + 2)
        if end < 0:
            if len(self._buffer) > MAX_CHUNK_LINE_BYTES:
                raise ProtocolError(f"a line of more than {MAX_CHUNK_LINE_BYTES} bytes between chunks")
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line


def _headers(lines: list[str]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise ProtocolError(f"{line[:80]!r} is no header")
        headers[name.lower()] = value.strip()
    return headers
