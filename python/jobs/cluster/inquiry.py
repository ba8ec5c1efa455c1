"""Asking the other members who leads, for as long as this node hears no leader itself.

So a node that is cut off from the leader alone finds it through another member, one in a minority can name who is
missing, and one that was removed learns it. What a member says, and that it refuses to speak, comes over a connection
that is authenticated with its key.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from enum import Enum, auto
from typing import Final

import msgspec
from msgspec import Struct

from jobs.cluster.peers import Asked, Peers
from jobs.consensus import Consensus
from jobs.net import RequestFailed
from jobs.service import Whereabouts

logger = logging.getLogger(__name__)

ASK_S: Final = 1.0
"""Who has not answered within this is silent."""
AGAIN_S: Final = 1.0
REFUSAL: Final = "closed by the peer: this endpoint id is not on the allowlist"
"""What the transport says of a peer that does not know this node (rust/net/src/accept.rs)."""


class _Heard(Struct, frozen=True, array_like=True):
    """The answer: who leads, as the member that was asked has heard from that leader itself."""

    leader: str | None
    term: int


class _Mute(Enum):
    """Why there is no answer."""

    SILENT = auto()
    REFUSES = auto()


class Inquiry:
    """Implements `service.Others`. What others say is forgotten as soon as a leader is heard."""

    def __init__(self, peers: Peers, consensus: Consensus, site: Whereabouts) -> None:
        self._peers = peers
        self._consensus = consensus
        self._site = site
        self._said: dict[str, _Heard | _Mute] = {}
        self._was_removed = False
        peers.requests[Asked.LEADER] = self._on_asked
        self._asking = asyncio.get_running_loop().create_task(self._ask_while_leaderless())

    def stop(self) -> None:
        self._asking.cancel()

    # --- what they say ------------------------------------------------------------------------------------------------

    @property
    def leader(self) -> str | None:
        """Id of the member that leads, as those say that this node reaches."""
        heard = [said for said in self._said.values() if isinstance(said, _Heard) and said.leader is not None]
        latest = max(heard, key=lambda said: said.term, default=None)
        # Who takes this node for the leader has not heard that it is not.
        return None if latest is None or latest.leader == self._consensus.me else latest.leader

    def through(self, leader: str) -> str | None:
        """Return the member through which a leader is to be asked; None where that is to be done directly."""
        if self._consensus.leader is not None or leader != self.leader:
            return None
        return next(
            (
                member
                for member, said in self._said.items()
                if isinstance(said, _Heard) and said.leader == leader and member != leader
            ),
            None,
        )

    def reached(self, member: str) -> bool | None:
        """Tell whether a member has answered; None where nobody was asked."""
        said = self._said.get(member)
        return None if said is None else isinstance(said, _Heard)

    @property
    def removed(self) -> bool:
        """Whether this node was removed: most voters that it knows of refuse to speak with it, and nobody does."""
        voters = [member for member in self._consensus.members.voters if member != self._consensus.me]
        refusing = sum(self._said.get(member) is _Mute.REFUSES for member in voters)
        return refusing > len(voters) / 2 and not any(isinstance(said, _Heard) for said in self._said.values())

    def standing(self) -> tuple[str, str]:
        """Return who answers and who does not, or that this node was removed; and what would help."""
        names = self._consensus.members.name_of
        if self.removed:
            refusing = _listed(names(member) for member, said in self._said.items() if said is _Mute.REFUSES)
            return (
                f"this node was removed from its cluster: {refusing} will not speak with it",
                "another node; to let this one join anew, stop it, empty its node.data_dir, and use a new ticket",
            )
        if self.leader is not None:
            through = self.through(self.leader)
            way = "" if through is None else f" through {names(through)}, as it is not heard directly"
            return f"following {names(self.leader)}{way}", "a network on which all members reach each other"
        if not self._said:
            return "no leader", "a majority of the members that reach each other"
        answering = _listed(names(member) for member, said in self._said.items() if isinstance(said, _Heard))
        missing = _listed(names(member) for member, said in self._said.items() if isinstance(said, _Mute))
        needed = len(self._consensus.members.voters) // 2 + 1
        if not missing:
            return f"{answering} answer, and have none either", "the same request a little later"
        return (
            f"{missing} not reached" + (f", {answering} reached" if answering else ""),
            f"{needed} voters that reach each other: start those nodes, or mend the network",
        )

    # --- asking -------------------------------------------------------------------------------------------------------

    async def _ask_while_leaderless(self) -> None:
        while True:
            while self._consensus.leader is not None:
                await self._news(None)
            # An election that goes well needs nobody to be asked.
            await self._news(self._consensus.election_max_s)
            while self._consensus.leader is None:
                self._take(await self._ask_all())
                await self._news(AGAIN_S)
            self._take({})

    async def _news(self, within_s: float | None) -> None:
        """Return once a leader is known or lost, or the time has passed."""
        await asyncio.wait([self._site.changed()], timeout=within_s)

    async def _ask_all(self) -> dict[str, _Heard | _Mute]:
        members = [record.id for record in self._consensus.members.records if record.id != self._consensus.me]
        return dict(zip(members, await asyncio.gather(*map(self._ask, members)), strict=True))

    async def _ask(self, member: str) -> _Heard | _Mute:
        try:
            answer = await self._peers.request(member, Asked.LEADER, b"", ASK_S)
            return msgspec.msgpack.decode(answer, type=_Heard)
        except RequestFailed as failed:
            return _Mute.REFUSES if REFUSAL in failed.detail else _Mute.SILENT
        except msgspec.MsgspecError:
            return _Mute.SILENT

    def _take(self, said: dict[str, _Heard | _Mute]) -> None:
        if said == self._said:
            return
        self._said = said
        if self.removed and not self._was_removed:
            logger.critical("%s; it does no work any more (expected %s)", *self.standing())
        self._was_removed = self.removed
        self._site.on_others()

    async def _on_asked(self, peer: str, body: bytes) -> bytes:
        return msgspec.msgpack.encode(_Heard(self._consensus.leader, self._consensus.term))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
