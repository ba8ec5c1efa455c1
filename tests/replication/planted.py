"""A node whose syncs are wrong in one way, which JOBS_TEST_PLANTED names: run in place of `jobs.node`, for tests of the
checks."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from jobs.node import main
from jobs.records import ConflictRecord, CursorRecord
from jobs.replication import messages as m
from jobs.replication.judge import Judge
from jobs.replication.keysync import KeySync
from jobs.store import Op

PLANTED: Final = "JOBS_TEST_PLANTED"
EVERY: Final = 20


def _forget(is_forgotten: Callable[[m.Change], bool]) -> None:
    send = KeySync._send

    async def less(sync: KeySync, changes: tuple[m.Change, ...], cursor: CursorRecord) -> m.Applied:
        return await send(sync, tuple(change for change in changes if not is_forgotten(change)), cursor)

    KeySync._send = less


def _say_nothing() -> None:
    recorded = Judge._recorded

    def nothing(judge: Judge, cursor: CursorRecord, conflicts: list[ConflictRecord]) -> list[Op]:
        return recorded(judge, cursor, [])

    Judge._recorded = nothing


if __name__ == "__main__":
    match os.environ[PLANTED]:
        case "":
            pass
        case "deletes are forgotten":
            _forget(lambda change: change.value is None)
        case "some puts are forgotten":
            _forget(lambda change: change.value is not None and len(change.value) % EVERY == 0)
        case "conflicts are not recorded":
            _say_nothing()
    main()
