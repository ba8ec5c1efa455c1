"""Requests that travel to the leader together: whoever waits is told, whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, cast

from jobs.errors import InternalError
from jobs.forward.envelope import Request
from jobs.forward.lots import Lots
from jobs.forward.reach import Reach
from jobs.service import Whereabouts


class Broken:
    """A way to the leader that fails as nothing is expected to."""

    def request(self, *_: object) -> Coroutine[Any, Any, bytes]:
        async def fail() -> bytes:
            raise RuntimeError("the endpoint is closed")

        return fail()


class Follower:
    leader = "leader"

    def changed(self) -> asyncio.Future[None]:
        return asyncio.get_running_loop().create_future()


def request(path: str) -> Request:
    return Request(node="n", method="GET", path=path, query="", headers=[], uid=1, gid=1, admin=False)


def test_an_unexpected_failure_is_told_to_all_who_wait() -> None:
    async def scenario() -> None:
        # Given requests of one turn of the loop, and a way to the leader that breaks
        lots = Lots(cast("Reach", Broken()), cast("Whereabouts", Follower()))
        # When they are sent
        async with asyncio.timeout(10):
            answers = await asyncio.gather(
                *(lots.ask("leader", request(path)) for path in ("/a", "/b")), return_exceptions=True
            )
        # Then each is told
        for answer in answers:
            assert isinstance(answer, InternalError)
            assert "the endpoint is closed" in str(answer)

    asyncio.run(scenario())
