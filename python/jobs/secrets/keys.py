"""The keys of secrets as the control plane needs them: had here, known to a majority, got from others."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from jobs.errors import Unavailable
from jobs.secrets.keyring import KeyFileError, Keyring, SecretKey


class Keys:
    """Of a node that is alone."""

    def __init__(self, keyring: Keyring) -> None:
        self.keyring = keyring
        self._writing = asyncio.Lock()

    async def add(self, key: SecretKey) -> None:
        """Have a key here. Raises KeyFileError."""
        async with self._writing:
            await asyncio.to_thread(self.keyring.add, key)

    async def forget(self, fingerprints: Sequence[str]) -> None:
        """Have these no more. Raises KeyFileError."""
        if not self.keyring.held.isdisjoint(fingerprints):
            async with self._writing:
                await asyncio.to_thread(self.keyring.forget, fingerprints)

    async def spread(self, key: SecretKey) -> None:
        """Return once a majority of the members has a key on disk, this node among them. Raises Unavailable."""
        try:
            await self.add(key)
        except KeyFileError as error:
            raise Unavailable(str(error), expected="a data directory that can be written") from error

    async def fetch(self, fingerprint: str) -> bool:
        """Get a key from the members, unless it is here; return whether it is here now."""
        return self.keyring.get(fingerprint) is not None
