"""Replicated commands: a group of members that agree on one log of transactions, over PySyncObj.

- `messages`: what members say to each other, as bytes (pure). `membership`: who they are (pure).
- `journal`: the log as PySyncObj wants it. `raft`: PySyncObj and what it lacks; nobody else knows it. Its parts:
  `elections`, `follower`, `flow` (of entries to one member), `rounds` (of signs of life).
- `member`: one member, stepped by whoever drives it; a simulation does, too.
- `driver`: on the event loop. Its parts: `proposals`, `readers`, `leadership`, `snapshots`, `compaction`.
"""

from jobs.consensus.driver import Consensus, ConsensusConfig
from jobs.consensus.leadership import MemberProgress
from jobs.consensus.member import ConsensusError
from jobs.consensus.membership import MemberRecord, Members, Role, find_member
from jobs.consensus.network import Network
from jobs.consensus.proposals import MAX_PENDING_TXNS

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
