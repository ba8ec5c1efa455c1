"""Who is at the other end: the uid of the socket's peer, and whether it may do everything."""

from __future__ import annotations

import grp
import os
import pwd
import time
from typing import Final

from jobs.service import Caller

GROUPS_TTL_S: Final = 30.0
"""A change of group membership is seen this soon."""
MAX_CACHED: Final = 1_024
NO_GROUP: Final = -1


class Identities:
    """Turns credentials into callers; asks for groups only now and then."""

    def __init__(self, admin_group: str | None) -> None:
        self._admin_group = admin_group
        self._own_uid = os.geteuid()
        self._cache: dict[tuple[int, int], tuple[float, Caller]] = {}

    def caller(self, uid: int, gid: int) -> Caller:
        """Return the caller behind SO_PEERCRED's uid and gid."""
        now = time.monotonic()
        cached = self._cache.get((uid, gid))
        if cached is not None and cached[0] > now:
            return cached[1]
        if len(self._cache) >= MAX_CACHED:
            self._cache.clear()
        caller = Caller(uid=uid, gid=gid, admin=self._is_admin(uid, gid))
        self._cache[uid, gid] = (now + GROUPS_TTL_S, caller)
        return caller

    def is_admin(self, uid: int) -> bool:
        """Tell whether a user is one, of whom no credentials are at hand."""
        return self.caller(uid, NO_GROUP).admin

    def _is_admin(self, uid: int, gid: int) -> bool:
        if uid in (0, self._own_uid):
            return True
        if self._admin_group is None:
            return False
        try:
            admin_gid = grp.getgrnam(self._admin_group).gr_gid
        except KeyError:
            return False
        if gid == admin_gid:
            return True
        try:
            user = pwd.getpwuid(uid)
        except KeyError:
            return False
        return admin_gid in os.getgrouplist(user.pw_name, user.pw_gid)
