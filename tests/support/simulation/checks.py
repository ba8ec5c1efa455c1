"""What must hold, looked at after every step of every host.

The Raft paper's five properties (election safety, leader append-only, log matching, leader completeness, state machine
safety), the durability of what is said to be durable, and what clients and jobs were promised. An observer applies what
is committed, in order, and so knows what is true.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from jobs._native import MemoryStore
from jobs.consensus.member import command_of
from jobs.consensus.messages import Append, Appended, Message, Pulse, Vote, Voted
from jobs.consensus.raft import NO_OP

if TYPE_CHECKING:
    from tests.support.simulation.host import Host
    from tests.support.simulation.run import Simulation

HASH_EVERY = 7
"""States of hosts are compared by their hash after every so many batches."""
TERMINAL = (b"completed", b"failed")


class Checks:
    def __init__(self, sim: Simulation, base: bytes | None) -> None:
        self._sim = sim
        self.counts: Counter[str] = Counter()
        """How often what happened, for reports and for tests that the simulation does what it says."""
        self._leaders: dict[int, str] = {}
        self._votes: dict[tuple[str, int], str] = {}
        self._terms: dict[str, int] = {}
        """The highest term that each host has persisted."""
        self._entries: dict[tuple[int, int], tuple[bytes, int | None]] = {}
        """By index and term: what the entry holds, and the term of the one before."""
        self.observer = MemoryStore()
        if base is not None:
            self.observer.install(base)
        self._base = self.observer.applied_index
        self.committed: list[tuple[int, bytes, int]] = []
        """Committed entries after the base: term, payload, and the term in which they were first known so."""
        self._hashes: dict[int, bytes] = {self._base: self.observer.state_hash()}
        self._seen: dict[str, int] = {}
        """Up to which commit index each host's log was looked at."""
        self._batches: dict[str, tuple[int, int]] = {}
        self._led: dict[str, int] = {}
        self.writes: dict[bytes, tuple[bytes, int]] = {}
        """By the number of the attempt that wrote it: key and revision."""
        self._jobs: dict[bytes, tuple[bytes, bytes]] = {}
        """State and attempt, by key."""
        self._counted: dict[int, str] = {}

    def count(self, what: str) -> None:
        self.counts[what] += 1

    # --- a host's log -----------------------------------------------------------------------------------------------

    def on_opened(self, host: Host) -> None:
        """What a host persisted is there after any crash."""
        assert host.log is not None
        term, _ = host.log.hard_state()
        if term < self._terms.get(host.id, 0):
            raise self._sim.violated("a term once persisted is kept", f"{host.id} is back in term {term}")

    def on_end(self, host: Host) -> None:
        for known in (self._seen, self._batches, self._led):
            known.pop(host.id, None)

    def on_hard_state(self, host: Host, term: int, vote: str | None) -> None:
        assert host.log is not None
        former_term, former_vote = host.log.hard_state()
        if term < former_term or (term == former_term and former_vote is not None and vote != former_vote):
            raise self._sim.violated(
                "terms grow and a vote is given once",
                f"{host.id} had term {former_term} with a vote for {former_vote}, now {term} for {vote}",
            )
        self._sim.note(host.id, f"term {term} vote {vote}")

    def on_hard_state_durable(self, host: Host, term: int) -> None:
        self._terms[host.id] = term

    def on_append(self, host: Host, index: int, term: int, payload: bytes) -> None:
        assert host.log is not None
        if payload == NO_OP and (index, term) == (host.store.applied_index, host.store.applied_term):
            return  # it stands for all that a snapshot holds
        before = host.log.term_at(index - 1)
        known = self._entries.setdefault((index, term), (payload, before))
        if known[0] != payload or (None not in (known[1], before) and known[1] != before):
            raise self._sim.violated("log matching", f"{host.id} has another entry {index} of term {term}")

    def on_truncate(self, host: Host, index: int) -> None:
        committed = 0 if host.consensus is None else host.consensus.commit_index
        if index <= committed and index > host.store.snapshot_index:
            raise self._sim.violated(
                "what is committed is not truncated", f"{host.id} truncates from {index}; {committed} is committed"
            )
        self._sim.note(host.id, f"truncates from {index}")
        self.count("truncation")

    # --- messages -----------------------------------------------------------------------------------------------------

    def on_send(self, host: Host, target: str, message: Message) -> None:
        match message:
            case Append():
                self._on_leading(host, message.term)
                for offset, (term, payload) in enumerate(message.entries):
                    known = self._entries.get((message.prev_index + 1 + offset, term))
                    if known is None or known[0] != payload:
                        raise self._sim.violated(
                            "log matching", f"{host.id} sends an unknown entry {message.prev_index + 1 + offset}"
                        )
            case Pulse():
                self._on_leading(host, message.term)
            case Vote(pre=False):
                self._on_voted(host, message.term, host.id)
            case Voted(granted=True, pre=False):
                self._on_voted(host, message.term, target)
            case Appended(ok=True):
                self._on_acknowledged(host, target, message)

    def _on_leading(self, host: Host, term: int) -> None:
        leader = self._leaders.setdefault(term, host.id)
        if leader != host.id:
            raise self._sim.violated("election safety", f"{leader} and {host.id} both lead in term {term}")

    def _on_voted(self, host: Host, term: int, candidate: str) -> None:
        given = self._votes.setdefault((host.id, term), candidate)
        if given != candidate:
            raise self._sim.violated("one vote a term", f"{host.id} votes for {given} and {candidate} in term {term}")

    def _on_acknowledged(self, host: Host, leader: str, message: Appended) -> None:
        """Whether the entry that is acknowledged is the leader's cannot be asked here; that it is durable can."""
        if host.log is not None and host.log.durable_index < message.index:
            raise self._sim.violated(
                "what is acknowledged is durable", f"{host.id} acknowledges {message.index} to {leader} before its sync"
            )

    # --- after every step ---------------------------------------------------------------------------------------------

    def after_step(self, host: Host) -> None:
        consensus, log = host.consensus, host.log
        assert consensus is not None
        assert log is not None
        raft = consensus._member.raft
        if raft.leads:
            self._on_leading(host, raft.term)
            if self._led.get(host.id) != raft.term:
                self._led[host.id] = raft.term
                self._on_elected(host, raft.term)
        commit = raft.commit_index
        if commit > self._seen.get(host.id, 0):
            self._on_committed(host, raft.term, self._seen.get(host.id, 0), commit)
            self._seen[host.id] = commit
        applied = host.store.applied_index
        former, batches = self._batches.get(host.id, (-1, 0))
        if applied != former:
            self._batches[host.id] = (applied, batches + 1)
            if batches % HASH_EVERY == 0:
                self.compare_state(host)

    def _on_elected(self, host: Host, term: int) -> None:
        """Leader completeness: whoever is elected has all that was committed in former terms."""
        assert host.log is not None
        self.count("election")
        self._sim.note(host.id, f"leads in term {term}")
        first, last = host.log.first_index, host.log.last_index
        for offset in range(len(self.committed) - 1, -1, -1):
            index = self._base + 1 + offset
            entry_term, _, known_term = self.committed[offset]
            if index < first or index <= host.store.snapshot_index:
                break
            if known_term < term and (index > last or host.log.term_at(index) != entry_term):
                raise self._sim.violated(
                    "leader completeness",
                    f"{host.id} leads in term {term} without entry {index} of term {entry_term}, "
                    f"committed in {known_term}",
                )

    def _on_committed(self, host: Host, term: int, seen: int, commit: int) -> None:
        assert host.log is not None
        log, base = host.log, self._base
        begin = max(seen + 1, base + 1, log.first_index)
        grown = False
        for payload, index, entry_term in log.entries(begin, max(0, commit - begin + 1), 1 << 60):
            offset = index - base - 1
            if offset < len(self.committed):
                known = self.committed[offset]
                placeholder = payload == NO_OP and index == log.first_index  # it stands for what a snapshot held
                if known[0] != entry_term or (known[1] != payload and not placeholder):
                    raise self._sim.violated(
                        "state machine safety",
                        f"entry {index} is committed in term {known[0]}, and at {host.id} another one of {entry_term}",
                    )
            else:
                if offset > len(self.committed):
                    raise self._sim.violated("commits have no gaps", f"{host.id} knows {index} as committed first")
                self.committed.append((entry_term, payload, term))
                grown = True
        if commit > base + len(self.committed):
            raise self._sim.violated("only what is in a log is committed", f"{host.id} has commit index {commit}")
        if grown:
            self._observe()

    def _observe(self) -> None:
        """Apply what is newly committed, and look at what it did."""
        observer, first = self.observer, self.observer.applied_index
        revision = observer.revision
        new = self.committed[first - self._base :]
        observer.apply(
            [
                (first + 1 + offset, term, command_of(payload, first + 1 + offset))
                for offset, (term, payload, _) in enumerate(new)
            ]
        )
        if observer.revision == revision:
            return
        events, _ = observer.events(revision, [b"/w/", b"/job/", b"/result/", b"/counter"], limit=1 << 30)
        for at, key, value, version, _, _ in events:
            if value is None:
                continue
            attempt = value.split(b" ", 1)[0]
            if not key.startswith(b"/result/"):
                if attempt in self.writes:
                    raise self._sim.violated("a request is done once", f"{attempt!r} wrote {key!r} again")
                self.writes[attempt] = (key, at)
            if key.startswith(b"/job/"):
                self._on_job(key, value)
            elif key.startswith(b"/result/") and version != 1:
                raise self._sim.violated("one result a job", f"{key!r} is recorded for the {version}. time")

    def _on_job(self, key: bytes, value: bytes) -> None:
        state, attempt = value.split(b" ")[1:3]
        former, running = self._jobs.get(key, (b"", b""))
        if former in TERMINAL:
            raise self._sim.violated("terminal is final", f"{key!r} was {former!r} and is {state!r}")
        self._jobs[key] = (state, attempt)
        if state in TERMINAL:
            if (former, running) != (b"running", attempt):
                raise self._sim.violated(
                    "only the attempt that runs ends a job", f"{key!r} was {former!r} {running!r}, {attempt!r} ended it"
                )
            self.count("result")

    def compare_state(self, host: Host) -> None:
        """Who has applied the same entries is in the same state."""
        index, state = host.store.applied_index, host.store.state_hash()
        if self.observer.applied_index == index:
            self._hashes.setdefault(index, self.observer.state_hash())
        if self._hashes.setdefault(index, state) != state:
            raise self._sim.violated("equal logs make equal states", f"{host.id} differs after entry {index}")
        self.count("comparison")

    # --- clients ------------------------------------------------------------------------------------------------------

    def on_acknowledged_write(self, client: str, attempt: bytes, key: bytes, revision: int) -> None:
        found = self.writes.get(attempt)
        if found != (key, revision):
            raise self._sim.violated(
                "what is acknowledged is committed",
                f"{client} was told that {attempt!r} wrote {key!r} in revision {revision}; truly {found}",
            )
        self.count("acknowledged write")

    def on_report(self, client: str, key: bytes, claim: bytes, *, accepted: bool) -> None:
        """Who was told that its result is recorded is the one whose result is. Who was refused may have been accepted
        when it asked before, but is not told so once another's counts."""
        row = self.observer.get(b"/result" + key[4:])
        mine = row is not None and row[1].split(b" ")[0] == b"of-" + claim
        if accepted and not mine:
            raise self._sim.violated("one result a job", f"{client} was told that its result of {key!r} counts: {row}")
        self.count("result accepted" if accepted else "result refused")

    def on_count(self, client: str, count: int) -> None:
        """Each number is reached once, however many count."""
        other = self._counted.setdefault(count, client)
        if other != client:
            raise self._sim.violated("an increment is done once", f"{other} and {client} both counted to {count}")

    def at_the_end(self, refused: set[bytes], acknowledged: dict[bytes, int]) -> None:
        """What was refused for certain never happened; what was acknowledged is there."""
        for attempt in sorted(refused & self.writes.keys()):
            raise self._sim.violated("what is refused does not happen", f"{attempt!r} wrote {self.writes[attempt]}")
        for key, revision in acknowledged.items():
            for host in self._sim.hosts.values():
                if host.consensus is None or host.store.revision < self.observer.revision:
                    continue
                row = host.store.get(key)
                if row is None or row[4] < revision:
                    raise self._sim.violated("what is acknowledged is never lost", f"{key!r} is not at {host.id}")
