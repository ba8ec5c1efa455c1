"""Changes that are decided on what is stored, and decided anew until nothing has come between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from jobs.consensus import Consensus
from jobs.control.once import MAX_TRIES, try_id, was_done
from jobs.control.transitions import check
from jobs.errors import InternalError
from jobs.service import Caller
from jobs.store import EQ, Compare, ModRevisionIs, Op, Store, Txn

OP_BYTES: Final = 256

Decided: TypeAlias = tuple[tuple[Compare, ...], tuple[Op, ...]]
"""What has to be so, and what is written then."""


async def change(consensus: Consensus, store: Store, caller: Caller, decide: Callable[[], Decided]) -> None:
    """Write what is decided, once for a request however often it comes. Raises what `decide` raises."""
    await consensus.barrier()
    for number in range(MAX_TRIES):
        if was_done(store, caller.request_id):
            return
        compares, ops = decide()
        txn = Txn(compares, ops, request_id=try_id(caller.request_id, number))
        done = await consensus.propose(txn, OP_BYTES * len(ops))
        check(done)
        if done.succeeded:
            return
    raise InternalError(f"what a change stands on has changed {MAX_TRIES} times while it was tried")


def unchanged(store: Store, key: bytes) -> ModRevisionIs:
    """Return the compare that holds while a key is as it is now."""
    found = store.get(key)
    return ModRevisionIs(key, EQ, 0 if found is None else found[4])
