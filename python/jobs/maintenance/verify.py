"""`verify`: has members read log, store and snapshots anew, and blobs, and compares what they have with each other."""

from __future__ import annotations

from typing import Final

import msgspec

from jobs.blobs import messages as bm
from jobs.blobs.members import Members as BlobMembers
from jobs.errors import JobsError
from jobs.forward.orders import Unreached
from jobs.maintenance import messages as m
from jobs.maintenance.replicas import Comparison
from jobs.maintenance.run import Run
from jobs.protocol.model import FindingStatus, MaintenanceVerify, VerifyPart

REJOIN: Final = (
    "stop the node, remove it from the cluster, empty its node.data_dir, and let it join anew (docs/cluster.md); a "
    "node that is alone is restored from a backup"
)
ADVICE: Final[dict[VerifyPart, str]] = {
    "log": REJOIN,
    "store": REJOIN,
    "snapshots": "run compact with part log: it writes a new snapshot in place of this one",
    "blobs": "look at the node's disk (smartctl -a); what no node has whole is lost: add it again",
}


class Verification:
    def __init__(self, run: Run, payload: MaintenanceVerify, blobs: BlobMembers) -> None:
        self._run = run
        self._payload = payload
        self._blobs = blobs

    async def carry_out(self) -> None:
        """One member after the other: so most of them are as quick as ever."""
        parts = self._payload.parts
        chosen = self._run.members.chosen(self._payload.nodes)
        for member in chosen:
            for part in ("log", "store", "snapshots", "blobs"):
                step = f"{part} {member}"
                if part in parts and self._run.claim.goes_on(step):
                    await self._check(part, step, member)
                    await self._run.claim.ended(step)
        if "replicas" in parts and self._run.claim.goes_on("replicas"):
            await Comparison(self._run, chosen).carry_out()
            await self._run.claim.ended("replicas")

    async def _check(self, part: VerifyPart, step: str, member: str) -> None:
        try:
            match part:
                case "blobs":
                    await self._check_blobs(step, member)
                case _:
                    await self._read_anew(part, step, member)
        except (Unreached, JobsError) as error:
            self._run.give_up(member, part, error)

    async def _read_anew(self, part: VerifyPart, step: str, member: str) -> None:
        run, claim = self._run, self._run.claim
        name, position = run.members.name(member), claim.position(step)
        size_bytes = 0
        while True:
            order: m.CheckLog | m.CheckStore | m.CheckSnapshot
            match part:
                case "log":
                    order = m.CheckLog(position)
                case "store":
                    order = m.CheckStore(position)
                case _:
                    order = m.CheckSnapshot()
            checked = await run.members.check(member, order, run.advanced(f"{part} of {name}"))
            size_bytes += checked.size_bytes
            claim.node(name, examined=checked.examined)
            claim.count(**{part: checked.examined, f"{part}_bytes": checked.size_bytes})
            for problem in checked.problems:
                claim.count(damaged=1)
                await run.tell(member, part, "failing", problem, ADVICE[part])
            run.news.advance(size_bytes, 0, f"{part} of {name}: {size_bytes} bytes read anew")
            if checked.cursor is None:
                return
            position = checked.cursor
            await claim.moved(step, position)

    async def _check_blobs(self, step: str, member: str) -> None:
        """Have a member hash its blobs anew, and mend what others have whole."""
        run, claim = self._run, self._run.claim
        name, position = run.members.name(member), claim.position(step)
        after: str | None = msgspec.msgpack.decode(position, type=str) if position else ""
        done_bytes, total_bytes = 0, (await self._blobs.survey(member)).size_bytes

        def advanced(now: bm.Advance) -> None:
            run.news.advance(done_bytes + now.done_bytes, total_bytes, f"blobs of {name}")

        while after is not None:
            order = bm.Verify(after=after)
            verified = await run.pacing.step(self._blobs.verify(member, order, advanced))
            done_bytes += verified.size_bytes
            claim.node(name, examined=verified.blobs)
            claim.count(blobs=verified.blobs, blobs_bytes=verified.size_bytes)
            for damage in verified.damages:
                claim.count(damaged=1, mended=int(damage.mended))
                value = f"blob {damage.hash}: {damage.found}; {damage.outcome}"
                status: FindingStatus = "warning" if damage.mended else "failing"
                await run.tell(member, "blobs", status, value, ADVICE["blobs"])
            after = verified.after
            if after is not None:
                await claim.moved(step, msgspec.msgpack.encode(after))
