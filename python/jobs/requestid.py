"""Ids of requests: by its id a request that is sent again is known as the same one (docs/decisions/0017)."""

from __future__ import annotations

import hashlib
import re
from typing import Final

from jobs.errors import InvalidRequest
from jobs.protocol.ids import REQUEST_ID_HEADER, RequestId

TIME_BYTES: Final = 6
SAID_BYTES: Final = 10
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def request_id(text: str, uid: int, method: str, target: str, body: bytes) -> RequestId:
    """Return what a request is known by: its id together with who sends it and what it says. Raises InvalidRequest.

    So nobody is told of another's request, and an id that is used for something else is another request's. Of the UUID
    the first bytes stay, which in a UUIDv7 are the time: ids made one after the other are neighbours in the store.
    """
    if _UUID.fullmatch(text) is None:
        raise InvalidRequest(f"{text!r:.80} is no UUID", field=REQUEST_ID_HEADER, expected="a UUID, best a new UUIDv7")
    given = bytes.fromhex(text.replace("-", ""))
    said = hashlib.blake2b(given + f"{uid} {method} {target}\n".encode(), digest_size=SAID_BYTES)
    said.update(body)
    return RequestId(given[:TIME_BYTES] + said.digest())
