"""Payloads as they come with assignments: the node has checked them, and workers do not rely on that."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

from jobs.errors import InvalidRequest
from jobs.validate import MAX_SPEC_BYTES

P = TypeVar("P")


def checked(data: bytes, decode: Callable[[bytes], P], check: Callable[[P, str], object], noun: str) -> P:
    """Return the payload of a job of this kind. Raises InvalidRequest for what cannot be run."""
    if len(data) > MAX_SPEC_BYTES:
        raise InvalidRequest(f"the payload takes {len(data)} bytes", expected=f"at most {MAX_SPEC_BYTES}")
    try:
        payload = decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the payload is not one of {noun}: {error}") from error
    check(payload, "$")
    return payload
