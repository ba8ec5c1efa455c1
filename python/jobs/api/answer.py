"""The answer to a request in one piece, whatever carries it: the client's connection, or another node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct

JSON: Final[Mapping[str, str]] = {"Content-Type": "application/json"}
_encode = msgspec.json.Encoder().encode


class Answer(Struct, frozen=True):
    """What a handler returns."""

    status: int
    headers: Mapping[str, str] = {}
    """Without those that whatever carries the answer says itself, such as its length."""
    body: bytes = b""

    def saying(self, headers: Mapping[str, str]) -> Answer:
        """Return the answer with these headers as well."""
        return Answer(self.status, {**self.headers, **headers}, self.body) if headers else self


GONE_OUT: Final = Answer(200)
"""Stands for an answer that has gone out on the outlet, piece by piece."""


def json_answer(body: Any, status: int = 200) -> Answer:
    return Answer(status, JSON, _encode(body))
