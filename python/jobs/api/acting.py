"""Workers that ask for the owners of their jobs."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

from msgspec.structs import replace

from jobs.api.call import Ask
from jobs.api.identity import NO_GROUP
from jobs.errors import Forbidden, InvalidRequest
from jobs.protocol.ids import ACT_FOR_HEADER
from jobs.service import Caller

_NAMED: Final = re.compile(r"(?P<uid>0|[1-9][0-9]{0,9})(?P<admin>;admin)?")


def acting(ask: Ask, worker_uids: Collection[int]) -> Ask:
    """Return the request as one of whom it is made for: a worker may ask for the owner of its job.

    Raises Forbidden for whoever is no worker, InvalidRequest for a header that names nobody.
    """
    given = ask.headers.get(ACT_FOR_HEADER)
    if given is None:
        return ask
    if ask.caller.uid not in worker_uids:
        raise Forbidden("only workers act for others", field=ACT_FOR_HEADER, expected="no such header")
    named = _NAMED.fullmatch(given)
    if named is None or int(named["uid"]) >= 1 << 32:
        raise InvalidRequest(f"{given!r:.100} names nobody", field=ACT_FOR_HEADER, expected="a uid, or UID;admin")
    caller = Caller(uid=int(named["uid"]), gid=NO_GROUP, admin=named["admin"] is not None)
    return replace(ask, caller=caller)
