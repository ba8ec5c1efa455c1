"""How members come by the keys of secrets: from each other, over connections on which only members are heard.

A key is used only once a majority has it on disk, so whoever leads later finds it with one of those who made it leader.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

import msgspec

from jobs.cluster.peers import Asked, Peers
from jobs.consensus import Consensus
from jobs.errors import Unavailable
from jobs.net import Declined, RequestFailed
from jobs.secrets.keyring import KeyFileError, Keyring, SecretKey, parse
from jobs.secrets.keys import Keys

logger = logging.getLogger(__name__)

ASK_S: Final = 3.0
"""How long a member is waited for."""
FETCH: Final = "fetch"
OFFER: Final = "offer"


class KeyExchange(Keys):
    """Of a node that has others."""

    def __init__(self, keyring: Keyring, peers: Peers, consensus: Consensus) -> None:
        super().__init__(keyring)
        self._peers = peers
        self._consensus = consensus
        peers.requests[Asked.SECRET_KEYS] = self._on_request

    async def spread(self, key: SecretKey) -> None:
        await super().spread(key)
        others = self._others()
        answers = await asyncio.gather(*(self._offer(member, key) for member in others))
        voters = self._consensus.members.voters
        have = sum(has for member, has in zip(others, answers, strict=True) if member in voters)
        if have < (needed := len(voters) // 2):
            raise Unavailable(
                f"a new key of secrets reached {have} of {len(others)} other members; {needed} are needed, so that it "
                "cannot be lost with one node",
                expected="the same once more members are reached",
                retry_after_s=5,
            )

    async def fetch(self, fingerprint: str) -> bool:
        if await super().fetch(fingerprint):
            return True
        asked = [asyncio.ensure_future(self._ask(member, fingerprint)) for member in self._others()]
        try:
            for answer in asyncio.as_completed(asked):
                key = await answer
                if key is not None and key.fingerprint == fingerprint:
                    await self.add(key)
                    logger.info("the key of secrets %s has come from another member", fingerprint)
                    return True
        except KeyFileError as error:
            logger.error("%s", error)
        finally:
            for task in asked:
                task.cancel()
        return False

    def _others(self) -> list[str]:
        return [record.id for record in self._consensus.members.records if record.id != self._peers.id]

    async def _offer(self, member: str, key: SecretKey) -> bool:
        body = msgspec.msgpack.encode((OFFER, key.identity))
        try:
            await self._peers.request(member, Asked.SECRET_KEYS, body, ASK_S)
        except RequestFailed as error:
            logger.warning("a new key of secrets did not reach a member: %s", error)
            return False
        return True

    async def _ask(self, member: str, fingerprint: str) -> SecretKey | None:
        body = msgspec.msgpack.encode((FETCH, fingerprint))
        try:
            answer = await self._peers.request(member, Asked.SECRET_KEYS, body, ASK_S)
            return parse(answer.decode("ascii"))
        except (RequestFailed, UnicodeDecodeError, KeyFileError) as error:
            logger.debug("a member did not give the key of secrets %s: %s", fingerprint, error)
            return None

    async def _on_request(self, peer: str, body: bytes) -> bytes:
        """Answer a member; nobody else gets here."""
        try:
            what, text = msgspec.msgpack.decode(body, type=tuple[str, str])
            if what == OFFER:
                await self.add(parse(text))
                return b""
        except msgspec.MsgspecError as error:
            raise Declined(f"the request cannot be read: {error}") from error
        except KeyFileError as error:
            raise Declined(str(error)) from error
        key = self.keyring.get(text) if what == FETCH else None
        if key is None:
            raise Declined("that key is not here")
        return key.identity.encode()
