"""Replicated commands: a group of members that agree on one log of transactions, over PySyncObj.

- `messages`: what members say to each other, as bytes (pure). `membership`: who they are (pure).
- `journal`: the log as PySyncObj wants it. `raft`: PySyncObj and what it lacks; the only module that knows it.
- `member`: one member, stepped by whoever drives it; a simulation does, too. `driver`: on the event loop.
"""

from jobs.consensus.driver import MAX_PENDING_TXNS, Consensus, ConsensusConfig, MemberProgress, Network
from jobs.consensus.member import ConsensusError
from jobs.consensus.membership import MemberRecord, Members, Role, find_member

__all__ = [
    "MAX_PENDING_TXNS",
    "Consensus",
    "ConsensusConfig",
    "ConsensusError",
    "MemberProgress",
    "MemberRecord",
    "Members",
    "Network",
    "Role",
    "find_member",
]
