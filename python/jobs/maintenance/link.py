"""What nodes ask of the leader for maintenance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, cast

from jobs.cluster import Asked
from jobs.forward.questions import Answering, Questioner, Subject
from jobs.forward.reach import Reach
from jobs.maintenance import messages as m
from jobs.protocol.ids import JobId
from jobs.protocol.model import CleanupPart
from jobs.service import Service, Whereabouts

if TYPE_CHECKING:
    from jobs.control import Control

VERSION: Final = 1


def _leading(control: Service) -> object:
    return cast("Control", control).maintenance


_ANSWERING: Final[Mapping[type, Answering]] = {
    m.Claim: lambda leading, _, asked: leading.claim(asked.operation, asked.job),
    m.Keep: lambda leading, _, asked: leading.keep(asked.token, asked.cursor, asked.done),
    m.Check: lambda leading, _, asked: leading.check(asked.token),
    m.Release: lambda leading, _, asked: leading.release(asked.token),
    m.Reached: lambda leading, _, asked: leading.reached(),
    m.Clean: lambda leading, _, asked: leading.clean(
        asked.token, asked.part, dry_run=asked.dry_run, cursor=asked.cursor
    ),
    m.Compact: lambda leading, _, asked: leading.compact(asked.token, asked.revision),
    m.Forget: lambda leading, _, asked: leading.forget(asked.token),
    m.Describe: lambda leading, _, asked: leading.describe(),
}
SUBJECT: Final[Subject[m.Question]] = Subject(
    "maintenance", Asked.MAINTENANCE, VERSION, m.Question, _leading, _ANSWERING
)


class LeaderLink:
    """The methods of `control.maintenance.Maintenance`, wherever that is; errors are those of these, and Unavailable
    where no leader is found in time."""

    def __init__(self, site: Whereabouts, reach: Reach | None) -> None:
        self._ask = Questioner(SUBJECT, site, reach).ask

    async def claim(self, operation: str, job: JobId) -> m.Claimed:
        return await self._ask(m.Claim(operation, job), m.Claimed)

    async def keep(self, token: m.Token, cursor: bytes, done: dict[str, int]) -> m.Token:
        return m.Token(token.operation, await self._ask(m.Keep(token, cursor, done), int))

    async def check(self, token: m.Token) -> None:
        await self._ask(m.Check(token), type(None))

    async def release(self, token: m.Token) -> None:
        await self._ask(m.Release(token), type(None))

    async def reached(self) -> int:
        return await self._ask(m.Reached(), int)

    async def clean(self, token: m.Token, part: CleanupPart, *, dry_run: bool, cursor: bytes) -> m.Cleaned:
        return await self._ask(m.Clean(token, part, dry_run, cursor), m.Cleaned)

    async def compact(self, token: m.Token, revision: int) -> m.History:
        return await self._ask(m.Compact(token, revision), m.History)

    async def forget(self, token: m.Token) -> m.History:
        return await self._ask(m.Forget(token), m.History)

    async def describe(self) -> m.Situation:
        return await self._ask(m.Describe(), m.Situation)
