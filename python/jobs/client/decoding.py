"""Decoding of what nodes answer.

msgspec learns a type when it is first asked for it, and lets other threads run meanwhile, which then find a type that
is half known: the interpreter crashes (msgspec 0.22). So one thread at a time makes decoders, and each is made once.
"""

from __future__ import annotations

import threading
from typing import Any, Final, TypeVar

import msgspec

T = TypeVar("T")

_decoders: Final[dict[type, msgspec.json.Decoder[Any]]] = {}
_making: Final = threading.Lock()


def decode_json(kind: type[T], data: bytes) -> T:
    """Return JSON as an object of a type. Raises msgspec.MsgspecError."""
    decoder = _decoders.get(kind)
    if decoder is None:
        with _making:
            decoder = _decoders.setdefault(kind, msgspec.json.Decoder(kind))
    found: T = decoder.decode(data)
    return found
