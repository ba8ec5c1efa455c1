"""Entries on their way from a leader to one member: how many at once, and what to do about lost ones. Pure."""

from __future__ import annotations

from collections import deque
from typing import Final

from msgspec import Struct, field

from jobs.consensus.messages import Appended

IN_FLIGHT_MESSAGES: Final = 64
IN_FLIGHT_BYTES: Final = 8 << 20
"""Of entries on the way to one member, before it has answered."""
LARGE_BYTES: Final = 256 << 10
"""Of entries on the way to a member: so many may take longer than a leader may be silent."""
LACKED_ROUNDS: Final = 5


class Flow(Struct):
    """Entries on their way to one member: (index of the last one, bytes) a message, oldest first."""

    messages: deque[tuple[int, int]] = field(default_factory=deque)
    size_bytes: int = 0
    probing: bool = True
    """Where the logs meet is not known: one message at a time."""
    window: int = 1
    """How many messages may be on the way: more with each that arrives, one again when something was lost. Without that
    every refusal of what came out of order would put as many new ones on the way."""
    prev_index: int = 0
    """After which entry the last message began."""
    answered_round: int = 0
    lacked: set[int] = field(default_factory=set)
    """Rounds, since an entry last arrived, in which the member said to lack what it had acknowledged; few of them."""

    def sent(self, prev_index: int, last_index: int, size_bytes: int) -> None:
        self.prev_index = prev_index
        self.messages.append((last_index, size_bytes))
        self.size_bytes += size_bytes

    def arrived(self, index: int) -> None:
        while self.messages and self.messages[0][0] <= index:
            self.size_bytes -= self.messages.popleft()[1]
            self.window = min(self.window + 1, IN_FLIGHT_MESSAGES)
        self.lacked.clear()
        if not self.messages:
            # The answer to an older message is no reason to stop probing: many would be on the way at once.
            self.probing = False

    def reset(self) -> None:
        self.messages.clear()
        self.size_bytes = 0
        self.window = 1
        self.probing = True

    def is_forgotten(self, round_number: int) -> bool:
        """The member lacks what it had acknowledged. That is an old answer, unless it is said again and again, and
        nothing else is: then return True."""
        if len(self.lacked) < LACKED_ROUNDS:
            self.lacked.add(round_number)
            return False
        return True

    def is_old(self, refusal: Appended, matched: int) -> bool:
        """Tell whether a refusal is of something sent before what is on the way now; if not, something was lost, or the
        logs differ."""
        if refusal.prev_index <= matched:
            return True
        if not self.probing or not self.messages:
            return False
        if self.is_large and refusal.prev_index >= self.messages[-1][0]:
            return False  # what was sent after it has come
        return refusal.prev_index != self.prev_index

    @property
    def is_large(self) -> bool:
        return self.size_bytes > LARGE_BYTES

    @property
    def may_be_lost(self) -> bool:
        """Whether a probe is to be sent again with the next sign of life. One that takes long is not sent again and
        again meanwhile; if it is lost, the sign of life is refused."""
        return self.probing and bool(self.messages) and not self.is_large

    @property
    def is_full(self) -> bool:
        most = 1 if self.probing else self.window
        return len(self.messages) >= most or self.size_bytes >= IN_FLIGHT_BYTES
