"""What is done once, however often its request is sent: see docs/decisions/0017.

A transaction of the key-value store that carries the request's id is enough where one is all that is done. What is
decided anew when a compare fails tries several; a failure is remembered too, so each try has an id of its own.
"""

from __future__ import annotations

from typing import Final

from jobs.protocol.ids import NO_REQUEST, LeaseId, RequestId
from jobs.store import Store, decode_results

MAX_TRIES: Final = 16
LEASE_BITS: Final = 52


def try_id(request: RequestId, number: int) -> RequestId:
    """Return the id of one of the MAX_TRIES tries of a request."""
    return RequestId(request[:-1] + bytes((request[-1] ^ number,))) if request else NO_REQUEST


def was_done(store: Store, request: RequestId) -> bool:
    """Tell whether a request was carried out before, by one of its tries."""
    for number in range(MAX_TRIES) if request else ():
        found = store.recall(try_id(request, number))
        if found is None:
            return False
        if decode_results(found)[0].succeeded:
            return True
    return False


def idempotency_key(request: RequestId, index: int = 0) -> str | None:
    """Return the idempotency key of a job that a request makes, by its index in it; None without an id."""
    return f"request-{request.hex()}-{index}" if request else None


def lease_id(request: RequestId, random_bits: int) -> LeaseId:
    """Return the id of the lease that a request makes; without an id of the request one from `random_bits`."""
    bits = int.from_bytes(request) if request else random_bits
    return LeaseId(bits % (1 << LEASE_BITS) + 1)
