"""`health`: measures each member, and says of each measure whether it is well and what a person can do. What judges is
pure."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Final

from msgspec import Struct

from jobs.errors import JobsError, OperationUnderWay
from jobs.forward.orders import Unreached
from jobs.maintenance import messages as m
from jobs.maintenance.run import Run
from jobs.protocol.model import FindingStatus, MaintenanceHealth

FULL_PERCENT: Final = 95.0
"""A disk or a store that is fuller is failing."""
SLOW_FSYNC: Final = 10.0
"""A slowest sync that takes so many times what is warned of is failing."""
PRESSURE_PERCENT: Final = 40.0
FREE_FILE: Final = 0.5
"""A file of which more holds nothing is worth compacting."""
MIN_FILE_BYTES: Final = 64 << 20
OPEN_FILES: Final = 0.8
LOST_S: Final = 5.0
"""A member that has not answered its leader for so long is lost to it."""
BEHIND_MS: Final = 3_600_000
GIB: Final = 1 << 30


class HealthLimits(Struct, frozen=True, kw_only=True):
    fsync_s: float
    disk_percent: float
    clock_s: float
    lag_entries: int


class Verdict(Struct, frozen=True):
    check: str
    status: FindingStatus
    value: str
    advice: str = ""


# --- one member -------------------------------------------------------------------------------------------------------


def judge(found: m.Examined, limits: HealthLimits, clock_s: float, uncertain_s: float) -> Iterator[Verdict]:
    """Yield what there is to say of one member. Its clock differs from the leader's by `clock_s`, give or take."""
    yield from _disks(found, limits)
    yield _fsync(found, limits)
    yield _clock(limits, clock_s, uncertain_s)
    yield from _pressure(found)
    yield _store(found, limits)
    yield from _files(found)


def _disks(found: m.Examined, limits: HealthLimits) -> Iterator[Verdict]:
    for disk in found.disks:
        percent = 100 * (1 - disk.free_bytes / max(1, disk.total_bytes))
        value = f"{disk.path} ({disk.holds}) is {percent:.0f} % full, {disk.free_bytes / GIB:.1f} GiB are free"
        advice = (
            "make room on it, or move node.data_dir to a larger one: run cleanup and compact, delete blobs that "
            "nobody needs; a full disk stops writes"
        )
        yield _graded("disk", percent, limits.disk_percent, FULL_PERCENT, value, advice)


def _fsync(found: m.Examined, limits: HealthLimits) -> Verdict:
    slowest_s, median_s = max(found.fsync_s), statistics.median(found.fsync_s)
    value = f"a sync of the log's disk took {1_000 * median_s:.1f} ms, the slowest {1_000 * slowest_s:.1f} ms"
    advice = (
        "every write waits for this: look for what else uses the disk (iostat, blob transfers, backups), or give the "
        "node a faster one"
    )
    return _graded("fsync", slowest_s, limits.fsync_s, SLOW_FSYNC * limits.fsync_s, value, advice)


def _clock(limits: HealthLimits, clock_s: float, uncertain_s: float) -> Verdict:
    value = f"its clock is {abs(clock_s):.3f} s {'ahead of' if clock_s > 0 else 'behind'} the leader's"
    value += f", give or take {uncertain_s:.3f} s"
    beyond_s = max(0.0, abs(clock_s) - uncertain_s)
    advice = "set it by NTP (timedatectl set-ntp true): schedules, deadlines and retention go by the leader's clock"
    return _graded("clock", beyond_s, limits.clock_s, 60 * limits.clock_s, value, advice)


def _pressure(found: m.Examined) -> Iterator[Verdict]:
    for name, percent in sorted(found.pressure.items()):
        value = f"in {percent:.0f} % of the last ten seconds something waited for {name}"
        advice = f"give the machine more {name}, or fewer slots to its workers (workers.*.slots, workers.*.pressure)"
        yield _graded("pressure", percent, PRESSURE_PERCENT, float("inf"), value, advice)


def _store(found: m.Examined, limits: HealthLimits) -> Verdict:
    if found.no_room:
        return Verdict("store", "failing", found.no_room, "make room on the disk, or raise store.max_bytes")
    percent = 100 * found.store_bytes / max(1, found.max_store_bytes)
    value = f"{found.store_bytes} bytes are in use, {percent:.0f} % of store.max_bytes; its file has {found.file_bytes}"
    if percent < limits.disk_percent and _is_empty(found):
        advice = "run compact with part file: more than half of the file holds nothing"
        return Verdict("store", "warning", value, advice)
    advice = "keep fewer jobs (retention), run cleanup and compact, or raise store.max_bytes"
    return _graded("store", percent, limits.disk_percent, FULL_PERCENT, value, advice)


def _is_empty(found: m.Examined) -> bool:
    return found.file_bytes > MIN_FILE_BYTES and found.free_file_bytes > FREE_FILE * found.file_bytes


def _files(found: m.Examined) -> Iterator[Verdict]:
    for key in found.keys:
        if key.problem:
            advice = "give it to the node's user alone (chown, chmod 0600), or bring it back from a backup"
            yield Verdict("keys", "failing", f"{key.path}: {key.problem}", advice)
        else:
            yield Verdict("keys", "ok", f"{key.path} is the node's alone")
    if found.max_open_files > 0 and found.open_files > OPEN_FILES * found.max_open_files:
        value = f"{found.open_files} of {found.max_open_files} files are open"
        yield Verdict("files", "warning", value, "raise LimitNOFILE of the unit jobs-node")
    if found.quarantined:
        value = f"{found.quarantined} damaged blobs were put aside"
        yield Verdict("blobs", "warning", value, "look at the disk (smartctl), run verify, then blob gc")


# --- the cluster ------------------------------------------------------------------------------------------------------


def judge_cluster(situation: m.Situation, limits: HealthLimits) -> Iterator[tuple[str, Verdict]]:
    """Yield what there is to say of the members as their leader sees them: id and verdict."""
    voters = [one for one in situation.members if one.is_voter]
    lost = [one for one in voters if one.answered_ago_s is None or one.answered_ago_s > LOST_S]
    spare = len(voters) // 2 if len(voters) % 2 else len(voters) // 2 - 1
    if len(voters) > 1:
        value = f"{len(voters) - len(lost)} of {len(voters)} voters answer; {spare} may be lost at once"
        short = len(lost) >= spare and bool(lost)
        advice = "start the nodes that are lost, or replace them: one more lost, and nothing can be written"
        yield situation.leader, Verdict("quorum", "warning" if short else "ok", value, advice if short else "")
    for one in situation.members:
        if one.member != situation.leader:
            yield one.member, _lag(one, limits)
    if situation.behind_ms > BEHIND_MS:
        value = f"the clock by which jobs age is {situation.behind_ms // 1_000} s behind"
        advice = "the leader's clock jumped ahead, or all nodes were off: it catches up by itself; set clocks by NTP"
        yield situation.leader, Verdict("retention", "warning", value, advice)
    if situation.pending and not situation.workers:
        value = f"{situation.pending} jobs wait, and no worker is registered"
        yield situation.leader, Verdict("workers", "warning", value, "start workers: systemctl start jobs-worker@shell")


def judge_releases(releases: Mapping[str, str]) -> Iterator[tuple[str, Verdict]]:
    """Yield the members whose release is not that of most: by id."""
    if len(set(releases.values())) < 2:
        return
    usual = statistics.mode(releases.values())
    for member, release in releases.items():
        if release != usual:
            value = f"it runs release {release}, and most members {usual}"
            yield member, Verdict("release", "warning", value, "finish the upgrade: one release on all nodes")


def _lag(one: m.Standing, limits: HealthLimits) -> Verdict:
    if one.answered_ago_s is None or one.answered_ago_s > LOST_S:
        ago = "never" if one.answered_ago_s is None else f"{one.answered_ago_s:.0f} s ago"
        return Verdict("lag", "failing", f"it last answered the leader {ago}", "start it, or mend the network to it")
    value = f"it is {one.lag_entries} entries behind the leader"
    advice = "look at its disk and its network; it catches up by itself, if need be from a snapshot"
    return _graded("lag", one.lag_entries, limits.lag_entries, float("inf"), value, advice)


def _graded(check: str, measured: float, warning: float, failing: float, value: str, advice: str) -> Verdict:
    if measured > failing:
        return Verdict(check, "failing", value, advice)
    return Verdict(check, "warning", value, advice) if measured > warning else Verdict(check, "ok", value)


# --- carried out ------------------------------------------------------------------------------------------------------


class Checkup:
    def __init__(self, run: Run, payload: MaintenanceHealth, limits: HealthLimits) -> None:
        self._run = run
        self._payload = payload
        self._limits = limits
        self._releases: dict[str, str] = {}

    async def carry_out(self) -> None:
        run = self._run
        chosen = run.members.chosen(self._payload.nodes)
        asked_s = time.monotonic()
        situation = await run.link.describe()
        # By this node's clock that only goes on, the leader's clock showed that in the middle of asking.
        leader_ms = situation.at_ms - 500 * (asked_s + time.monotonic())
        doubt_s = (time.monotonic() - asked_s) / 2
        for number, member in enumerate(chosen):
            run.news.advance(number, len(chosen), run.members.name(member))
            await self._look_at(member, leader_ms, doubt_s)
        verdicts = [*judge_cluster(situation, self._limits), *judge_releases(self._releases)]
        for member, verdict in verdicts:
            if member in chosen:
                run.find(member, verdict.check, verdict.status, verdict.value, verdict.advice)

    async def _look_at(self, member: str, leader_ms: float, doubt_s: float) -> None:
        run = self._run
        asked_s = time.monotonic()
        try:
            found = await run.members.examine(member)
        except (Unreached, JobsError) as error:
            if isinstance(error, OperationUnderWay):
                raise
            advice = "start it (systemctl start jobs-node), look at its log (journalctl -u jobs-node) and the network"
            run.find(member, "reached", "failing", str(error), advice)
            return
        answered_s = time.monotonic()
        self._releases[member] = found.release
        # What it measures takes most of the time, and it looks at its clock first.
        clock_s = (found.at_ms - 1_000 * asked_s - leader_ms) / 1_000
        took_s = answered_s - asked_s - sum(found.fsync_s)
        clock_s -= took_s / 2
        for verdict in judge(found, self._limits, clock_s, doubt_s + max(0.0, took_s / 2)):
            run.find(member, verdict.check, verdict.status, verdict.value, verdict.advice)
        run.claim.node(run.members.name(member), examined=len(found.disks) + len(found.keys))
