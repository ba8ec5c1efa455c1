"""An operation that is this job's, in the whole cluster: how far it is, and what came of it so far."""

from __future__ import annotations

import hashlib
import time
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from jobs.clock import wall_ms
from jobs.maintenance import messages as m
from jobs.maintenance.link import LeaderLink
from jobs.protocol.ids import JobId
from jobs.protocol.model import Finding, FindingStatus, MaintenanceNode, MaintenancePayload, MaintenanceResult

KEEP_S: Final = 2.0
"""How far it is is written no more often, but at the end of a part."""
CHECK_S: Final = 0.2
"""Whose it is is asked no more often. Steps that change something are refused by the leader once it is another's."""
RESUME_MS: Final = 6 * 3_600_000
"""What was left off longer ago begins anew: what it had looked at has changed since."""
MAX_FINDINGS: Final = 200
MAX_TEXT: Final = 500
_WORST: Final[dict[FindingStatus, int]] = {"failing": 0, "warning": 1, "ok": 2}


class _Node(Struct, array_like=True):
    freed_bytes: int = 0
    examined: int = 0
    outcome: str = ""


class Standing(Struct, array_like=True):
    """How far an operation is: what goes on from it has the same payload."""

    payload: bytes
    at_ms: int
    ended: list[str] = []
    """Parts that have come to their end."""
    positions: dict[str, bytes] = {}
    """Of others, where to go on."""
    nodes: dict[str, _Node] = {}
    findings: Annotated[list[Finding], Meta(max_length=MAX_FINDINGS)] = []
    found: int = 0
    """Findings that there were."""


class Claim:
    """`moved` and `ended` raise OperationUnderWay once the operation is another's."""

    def __init__(self, link: LeaderLink, payload: MaintenancePayload, claimed: m.Claimed) -> None:
        operation = payload.__struct_config__.tag
        assert isinstance(operation, str)
        self._link = link
        self._operation = operation
        self.token = m.Token(operation, claimed.revision)
        self._standing = _resumed(claimed.cursor, _digest(payload))
        self.counts = dict(claimed.done) if self._standing.at_ms else {}
        self._kept_s = self._checked_s = time.monotonic()

    @classmethod
    async def take(cls, link: LeaderLink, job: JobId, payload: MaintenancePayload) -> Claim:
        """Raises OperationUnderWay."""
        operation = payload.__struct_config__.tag
        assert isinstance(operation, str)
        return cls(link, payload, await link.claim(operation, job))

    # --- how far it is ------------------------------------------------------------------------------------------------

    def goes_on(self, part: str) -> bool:
        """Tell whether a part has not come to its end."""
        return part not in self._standing.ended

    def position(self, part: str) -> bytes:
        """Return where a part is to go on; b"" is its beginning."""
        return self._standing.positions.get(part, b"")

    async def moved(self, part: str, position: bytes) -> None:
        """A step is done, and the part goes on there."""
        self._standing.positions[part] = position
        now_s = time.monotonic()
        if now_s - self._kept_s >= KEEP_S:
            await self._keep()
        elif now_s - self._checked_s >= CHECK_S:
            await self._link.check(self.token)
            self._checked_s = now_s

    async def ended(self, part: str) -> None:
        self._standing.positions.pop(part, None)
        self._standing.ended.append(part)
        await self._keep()

    async def _keep(self) -> None:
        self._standing.at_ms = wall_ms()
        cursor = msgspec.msgpack.encode(self._standing)
        self.token = await self._link.keep(self.token, cursor, self.counts)
        self._kept_s = self._checked_s = time.monotonic()

    async def release(self) -> None:
        await self._link.release(self.token)

    # --- what came of it ----------------------------------------------------------------------------------------------

    def count(self, **counts: int) -> None:
        for name, count in counts.items():
            self.counts[name] = self.counts.get(name, 0) + count

    def node(self, name: str, *, freed_bytes: int = 0, examined: int = 0, outcome: str = "") -> None:
        """Add up what came of a member; an outcome says what was left undone."""
        node = self._standing.nodes.setdefault(name, _Node())
        node.freed_bytes += freed_bytes
        node.examined += examined
        if outcome and outcome not in node.outcome:
            node.outcome = "; ".join(filter(None, (node.outcome, outcome[:MAX_TEXT])))[: 4 * MAX_TEXT]

    def find(self, finding: Finding) -> None:
        """Take a finding down; of too many, the worst stay."""
        kept = self._standing.findings
        kept.append(
            Finding(
                node=finding.node,
                check=finding.check,
                status=finding.status,
                value=finding.value[:MAX_TEXT],
                advice=finding.advice[:MAX_TEXT],
            )
        )
        kept.sort(key=lambda one: _WORST[one.status])
        del kept[MAX_FINDINGS:]
        self._standing.found += 1

    def result(self, *, dry_run: bool, seconds: float) -> MaintenanceResult:
        findings = self._standing.findings
        return MaintenanceResult(
            operation=self._operation,
            dry_run=dry_run,
            status=findings[0].status if findings else "ok",
            nodes=[
                MaintenanceNode(node=name, freed_bytes=node.freed_bytes, examined=node.examined, outcome=node.outcome)
                for name, node in sorted(self._standing.nodes.items())
            ],
            counts=self.counts,
            freed_bytes=sum(node.freed_bytes for node in self._standing.nodes.values()),
            findings=findings,
            seconds=seconds,
        )


def _resumed(cursor: bytes, payload: bytes) -> Standing:
    """Return how far the same operation was when it was left off a while ago, or the beginning."""
    if cursor:
        try:
            former = msgspec.msgpack.decode(cursor, type=Standing)
        except msgspec.MsgspecError:
            return Standing(payload, 0)  # of another release
        if former.payload == payload and 0 <= wall_ms() - former.at_ms < RESUME_MS:
            return former
    return Standing(payload, 0)


def _digest(payload: MaintenancePayload) -> bytes:
    return hashlib.blake2b(msgspec.json.encode(payload, order="sorted"), digest_size=16).digest()
