"""What a seed means. Each takes some kinds of faults and leaves others out, so that rare mixtures come up too."""

from __future__ import annotations

from random import Random

from msgspec import Struct

HEARTBEAT_S = 0.1
ELECTION_MIN_S = 0.5
ELECTION_MAX_S = 1.2

FAULTS = (
    "cut",  # the network is parted: fully, one way, with a bridge
    "storm",  # many messages are lost and late
    "kill",  # a process ends, the machine goes on
    "power",  # a machine loses power, and what was not synced
    "outage",  # all of them do at once
    "crash_point",  # a process ends in the middle of what it does with its disk
    "pause",  # a process is stopped for a while, and knows nothing of it
    "slow_disk",
    "broken_sync",
    "full_log",
    "full_store",
    "members",  # members come and go
    "transfer",  # the leader hands over
    "clocks",  # steady clocks run at different rates
)
SCENARIOS = (
    "deaf",  # one who follows does not hear the leader, and everybody hears it
    "unanswered",  # a leader is heard, and hears nobody, until it gives up
    "former",  # a leader comes back to one of those who have elected another, and not to that one
    "handed_over",  # a leader hears nothing from when it has handed over
    "slow_clock",  # a leader whose clock is as slow, and others' as fast, as is allowed is cut off
    "figure_8",  # what the figure of the Raft paper shows: entries of old terms on a majority, and yet not committed
    "no_room",  # all disks are full, and the leader goes
    "late_order",  # the same, and its word that another may lead comes long after it has given that up
)
"""Faults that follow what happens, step by step, to where a mistake would show; chance alone comes there too seldom."""


class Plan(Struct, frozen=True, kw_only=True):
    """One run: all of it follows from the seed."""

    seed: int
    members: int
    bootstrap: bool
    """Begin with one member, which the others join."""
    faults: frozenset[str]
    chaos_s: float
    pace_s: float
    """About how long it is from one fault to the next."""
    lose: float
    double: float
    late: float
    """Share of messages that are lost, come twice, are long on their way."""
    clients: int
    readers: int
    think_s: float
    snapshot_bytes: int
    """A host takes a snapshot when its log is so large."""
    large: bool
    """Whether commands are so large that logs need several segments."""
    keen: bool
    """Whether clients look for whoever believes to lead, also those who do so wrongly."""
    drift: float
    """How far from true a steady clock may run."""
    append_entries: int
    """How many entries a message takes, and a batch that is applied."""
    sync_s: float
    """How long a disk takes to sync, about."""
    options: str = ""
    """What to add to the command that runs it again."""

    @classmethod
    def of(cls, seed: int, *, options: str = "") -> Plan:
        chance = Random(f"{seed}/plan")
        faults = frozenset(fault for fault in FAULTS if chance.random() < 0.4)
        scenarios = Random(f"{seed}/scenarios")
        steered = frozenset(one for one in SCENARIOS if scenarios.random() < 0.3)
        return cls(
            seed=seed,
            members=chance.choice((3, 3, 3, 5)),
            bootstrap=chance.random() < 0.15,
            faults=faults | steered,
            chaos_s=chance.uniform(5, 12),
            pace_s=chance.choice((0.15, 0.3, 0.7, 1.5)),
            lose=chance.choice((0, 0, 0.01, 0.1)),
            double=chance.choice((0, 0, 0.05)),
            late=chance.choice((0, 0.02, 0.1)),
            clients=chance.randint(2, 4),
            readers=chance.randint(0, 1),
            think_s=chance.choice((0.02, 0.1, 0.3)),
            snapshot_bytes=chance.choice((2_000, 10_000, 50_000, 1 << 30)),
            large=chance.random() < 0.25,
            append_entries=chance.choice((1, 3, 1_024)),
            sync_s=chance.choice((0.0002, 0.001, 0.006)),
            keen=scenarios.random() < 0.4,
            drift=0.1 if "clocks" in faults or "slow_clock" in steered else 0.01,
            options=options,
        )
