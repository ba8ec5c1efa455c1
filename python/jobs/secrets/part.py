"""A node's part in the keys of secrets: it has those in use, and no others, whoever leads."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from jobs import keys
from jobs.control import Site
from jobs.control.secretkeys import RETRY_S, keys_in_use, read_key
from jobs.logs import Seldom
from jobs.secrets.keyring import KeyFileError
from jobs.secrets.keys import Keys
from jobs.store import Store

logger = logging.getLogger(__name__)


class SecretsPart:
    """Follows the record of the key in this node's own store."""

    def __init__(self, site: Site, store: Store, held: Keys) -> None:
        self._site = site
        self._store = store
        self._held = held
        self._seldom = Seldom(60.0)
        self._lacking = 0
        self._task = asyncio.get_running_loop().create_task(self._follow())

    def metrics(self) -> dict[str, tuple[str, float]]:
        """Prometheus metrics: name → (help, value)."""
        return {"jobs_secret_keys_lacking": ("Keys of secrets that are in use and not on this node", self._lacking)}

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _follow(self) -> None:
        with self._site.waiter(keys.SECRET_KEY) as waiter:
            while True:
                record = read_key(self._store)
                if record is not None:
                    # Only those: another may be about to be used, of which the store says nothing yet.
                    await self._forget(record.retired)
                lacking = [key for key in keys_in_use(record) if not await self._held.fetch(key)]
                self._lacking = len(lacking)
                if lacking and (left_out := self._seldom.left_out("lacking")) is not None:
                    logger.warning(
                        "this node lacks the key of secrets %s, and no other member gives it",
                        ", ".join(lacking),
                        extra={"left_out": left_out},
                    )
                await waiter.wait(RETRY_S if lacking else None)

    async def _forget(self, retired: Sequence[str]) -> None:
        try:
            await self._held.forget(retired)
        except KeyFileError as error:
            logger.warning("a key of secrets that is not used any more stays: %s", error)
